"""The private boosting that others have: DP-EBM of interpret-core, one department with all rows.

Nori, Caruana, Bu, Shen and Kulkarni 2021, "Accuracy, Interpretability, and Differential Privacy via
Explainable Boosting" (ICML). It needs no federation, so it has the whole ε to itself and one share of noise;
numbers of its own are left as they are, but the bounds of columns are given, so that none come from the rows.
"""

import json
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from bench.peers.environment import interpreter

if TYPE_CHECKING:
    import pyarrow as pa

NAME: Final = "DP-EBM, interpret-core 0.7.8"
REQUIREMENTS: Final = Path(__file__).with_name("requirements-ebm.txt")
FIT: Final = Path(__file__).with_name("ebm_fit.py")
TIMEOUT_S: Final = 1800.0


def chances(
    train: "pa.Table",
    test: "pa.Table",
    label: str,
    bounds: Mapping[str, tuple[float, float]],
    *,
    epsilon: str,
    delta: str,
    seed: int,
) -> npt.NDArray[np.float64]:
    """Return the chance of label 1 that a model of the rows `train` gives each row of `test`.

    Args:
        train: features and the label, 0 or 1.
        test: the same columns.
        label: its column.
        bounds: column of numbers → its public bounds; the other features are nominal.
        epsilon: of the whole fit.
        delta: of the whole fit.
        seed: of its noise.

    Raises:
        RuntimeError: it ended without an answer, with the end of what it said.
    """
    from pyarrow import csv

    with tempfile.TemporaryDirectory(prefix="minshu-peer-") as temporary:
        paths = [Path(temporary) / name for name in ("train.csv", "test.csv")]
        for path, table in zip(paths, (train, test), strict=True):
            csv.write_csv(table, path)
        program = [str(interpreter(REQUIREMENTS)), "-P", str(FIT), *map(str, paths), json.dumps(dict(bounds))]
        command = [*program, label, epsilon, delta, str(seed)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    lines = [line for line in done.stdout.splitlines() if line.startswith("[")]
    if done.returncode or not lines:
        raise RuntimeError(f"the DP-EBM peer gave no answer: {done.stderr[-500:]}")
    return np.array(json.loads(lines[-1]))
