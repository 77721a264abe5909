"""A table of PostgreSQL read into Arrow as jobs read it, beside COPY of the same rows that are thrown away.

`postgres scan` is rows a second of a source, from connecting to the last batch, over those of `psql` that
copies the same columns to nowhere. Both read one table of a server that this measurement starts, by turns.
"""

import os
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from bench.rig.turns import take_turns
from bench.rows import ROOT, Results, Row
from node.sources import Connection, ReadLimits, TablePlace, open_source
from node.sources.source import Access

ROWS: Final = 1_000_000
TURNS: Final = 5
COLUMNS: Final = ("id", "street", "seen", "n")
TABLE: Final = "people"


def measure(results: Results, *, long: bool) -> None:
    """Measure `postgres scan`."""
    del long
    if results.has("postgres scan"):
        return
    servers = _servers()
    with servers.postgres_server() as server, tempfile.TemporaryDirectory(prefix="minshu-bench-") as folder:
        psql = servers.find_postgres("psql")
        _fill(server)
        access = _access(server, Path(folder))
        ours, raw = take_turns(lambda: _scan(access), lambda: _copy(server, psql), TURNS)
    results.add(Row("postgres scan", ours, "rows/s", "psql: COPY to nowhere", raw))


def _servers() -> Any:
    """Return the module that starts servers for tests: what they need of the machine is said in one place."""
    sys.path.append(str(ROOT / "tests"))
    return import_module("databases.servers")


def _fill(server: Any) -> None:
    server.run(
        f"CREATE TABLE {TABLE} (id text NOT NULL, street text, seen date, n integer)",
        f"""INSERT INTO {TABLE} SELECT lpad((i * 7919::bigint)::text, 18, '0'), 'S' || i % 200,
            date '2020-01-01' + i % 2000, i % 1000 FROM generate_series(1, {ROWS}) i""",
        f"GRANT SELECT ON {TABLE} TO {server.reader}",
        f"VACUUM ANALYZE {TABLE}",
    )


def _access(server: Any, folder: Path) -> Access:
    password = folder / "password"
    password.touch(mode=0o600)
    password.write_text(server.reader_password)
    connection = Connection(
        server.url, user=server.reader, password_file=password.name, name="bench", folder=folder
    )
    return Access(ReadLimits(), connections={"bench": connection})


def _scan(access: Access) -> float:
    started = time.perf_counter()
    with open_source(TablePlace("bench", TABLE), access) as source:
        rows = sum(batch.num_rows for batch in source.read(COLUMNS))
    if rows != ROWS:
        raise RuntimeError("rows are missing")
    return ROWS / (time.perf_counter() - started)


def _copy(server: Any, psql: Path) -> float:
    where = ["-h", server.host, "-p", f"{server.port}", "-U", server.reader, "-d", server.database]
    copy = f"COPY (SELECT {', '.join(COLUMNS)} FROM {TABLE}) TO STDOUT (FORMAT binary)"
    started = time.perf_counter()
    subprocess.run(
        [psql, "-X", "-q", *where, "-c", copy],
        env={"PATH": os.environ.get("PATH", ""), "PGPASSWORD": server.reader_password},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return ROWS / (time.perf_counter() - started)
