"""How a node and the city grow: memory, time per person, rows a second.

`rss` and `flatness` are those of scenario 1, played whole (bench/crosscheck): the largest node's peak, and
the time per person beside that at 1e5. `normalise` and `generate` are rows per second of one core, in
processor time: of the identifiers as the city's registers spell them, from Arrow to typed keys, and of all
tables that the generator writes. `postgres scan` is bench/postgres. Long: the city of 2.3e7, some hours and
20 GB of disk.
"""

import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from bench.crosscheck import run
from bench.rows import Results, Row

SMALL: Final = ("demo", 100_000)
LARGE: Final = ("bench", 1_000_000)
CITY: Final = ("city", 23_000_000)

_AGAIN: Final = 5
"""How often the identifiers are read: one reading takes a tenth of a second."""


def measure(results: Results, *, long: bool) -> None:
    """Measure the rows; long, at 2.3e7."""
    if not long:
        _generate_and_normalise(results)
        if find_spec("adbc_driver_postgresql") is not None:
            from bench import postgres

            postgres.measure(results, long=False)
    name, (profile, people) = ("2.3e7", CITY) if long else ("1e6", LARGE)
    small = run(SMALL[0], 1).wall_s / SMALL[1]
    large = run(profile, 1)
    results.add(Row(f"rss {name}", large.rss_mb, "MB"))
    flatness = "flatness" if not long else f"flatness {name}"
    results.add(Row(flatness, large.wall_s / people * 1e6, "us per person", "at 1e5", small * 1e6))


def _generate_and_normalise(results: Results) -> None:
    import pyarrow.parquet as pq

    from demo.city import generate
    from demo.city.profile import SNAPSHOT
    from protocols.identifiers import demo_area_table, normalise

    with tempfile.TemporaryDirectory(prefix="minshu-bench-") as temporary:
        city = Path(temporary) / "city"
        started = time.process_time()
        manifest = generate(LARGE[0], 1, city)
        spent = time.process_time() - started
        results.add(Row("generate", sum(file.rows for file in manifest.files.values()) / spent, "rows/s"))
        lists = ("police/register", "human-resources/insured", "health/patients", "housing/leases")
        columns = [pq.read_table(city / f"registers/{each}.parquet")["resident_id"] for each in lists]
    rows = kept = 0
    started = time.process_time()
    for _ in range(_AGAIN):
        for column in columns:
            for chunk in column.chunks:
                rows += len(chunk)
                kept += len(normalise(chunk, "resident-id", as_of=SNAPSHOT, areas=demo_area_table()).keys)
    spent = time.process_time() - started
    if kept < rows * 0.9:
        raise SystemExit(f"{rows - kept} of {rows} rows were rejected")
    results.add(Row("normalise", rows / spent, "rows/s"))
