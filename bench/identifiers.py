"""How fast resident IDs become typed keys, beside the bare numpy check digit over the same rows."""

import time
from datetime import date

import numpy as np
import pyarrow as pa

from bench.rows import Results, Row
from protocols.identifiers import demo_area_table, normalise, resident_id_check_digits

ROWS = 1_000_000


def measure(results: Results, *, long: bool) -> None:
    rows = ROWS * 10 if long else ROWS
    rng = np.random.Generator(np.random.Philox(1))
    years = rng.integers(1950, 2020, rows)
    months, days = rng.integers(1, 13, rows), rng.integers(1, 29, rows)
    body = 990101 * 10**11 + years * 10**7 + months * 10**5 + days * 10**3 + rng.integers(0, 1000, rows)
    digits = (body[:, None] // 10 ** np.arange(16, -1, -1) % 10 + ord("0")).astype(np.uint8)
    checks = resident_id_check_digits(digits)
    texts = np.column_stack((digits, checks)).tobytes()
    column = pa.array([texts[i : i + 18].decode() for i in range(0, len(texts), 18)])
    started = time.perf_counter()
    resident_id_check_digits(digits)
    bare = rows / (time.perf_counter() - started)
    started = time.perf_counter()
    keys = normalise(column, "resident-id", as_of=date(2026, 11, 1), areas=demo_area_table())
    seconds = time.perf_counter() - started
    if len(keys.keys) != rows:
        raise SystemExit(f"{rows - len(keys.keys)} well-formed rows were rejected")
    results.add(Row("normalise", rows / seconds, "rows/s", "numpy check digit alone", bare))
