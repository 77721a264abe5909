"""Moments of aligned columns in mpyc: three parties with two columns each, honest majority, on one machine.

Run as `python moments.py -M3 ROWS SEED`; the first party prints one line of JSON. Parties are processes that
talk TCP without TLS. Rows are aligned from the start: there is nothing to join, and nobody checks a triple.
What is computed is the same: all sums and all products of six columns, modulo 2^61 - 1, opened once. The
clock runs from when all are connected and have their columns in memory.
"""

import json
import sys
import time
from typing import Any

import numpy as np
import numpy.typing as npt
from mpyc.runtime import mpc  # type: ignore[import-untyped]  # it has no types

PRIME = 2**61 - 1
BOUND = 1 << 17
LEFT = 2
"""Columns of each party."""


async def main(rows: int, seed: int) -> None:
    """Share, multiply, open."""
    whole = np.random.Generator(np.random.Philox(seed)).integers(-BOUND, BOUND, (rows, 3 * LEFT))
    field = mpc.SecFld(PRIME)
    own = whole[:, LEFT * mpc.pid : LEFT * (mpc.pid + 1)].astype(object)
    await mpc.start()
    started = time.perf_counter()
    columns = mpc.np_hstack(tuple(mpc.input(field.array(own))))
    products = await mpc.output(mpc.np_matmul(columns.T, columns))
    sums = await mpc.output(mpc.np_sum(columns, axis=0))
    seconds = time.perf_counter() - started
    right = bool((_residues(products) == whole.T @ whole % PRIME).all())
    right &= bool((_residues(sums) == whole.sum(axis=0) % PRIME).all())
    await mpc.shutdown()
    if mpc.pid == 0:
        print(json.dumps({"seconds": seconds, "right": right}), flush=True)


def _residues(found: Any) -> npt.NDArray[np.int64]:
    return np.array(found.value, dtype=object).astype(np.int64)


if __name__ == "__main__":
    mpc.run(main(int(sys.argv[1]), int(sys.argv[2])))
