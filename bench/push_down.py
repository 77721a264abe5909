"""A table of persons counted by PostgreSQL itself, beside the same table read and counted by the node.

`push-down` is the time of one department's tally of 1e6 rows, 11 districts by 2 sexes, one in twenty of them
a second row of a person of whom the latest counts. The server is on the same machine, so a network between
the two is not in either figure; what would go over it is: `push-down rows`, beside all rows.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench.postgres import _access, _servers
from bench.rig.turns import take_turns
from bench.rows import Results, Row
from node.sources import Source, TablePlace, open_source
from node.sources.grouped import count_there
from node.sources.source import Access
from protocols.identifiers import demo_area_table
from protocols.identifiers.resident import resident_id_check_digits
from protocols.jobs.job_type import UNIT, Unit
from protocols.tables.layout import Axis, Layout
from protocols.tables.tally import LATEST, Tally, TallyBuilder

ROWS: Final = 1_000_000
TURNS: Final = 3
TABLE: Final = "residents"
TODAY: Final = date(2026, 6, 30)

_DISTRICTS: Final = tuple(str(code) for code in range(990101, 990112))
_COLUMNS: Final = {"district": "district", "sex": "sex", LATEST: "seen", UNIT: "person"}
_LAYOUT: Final = Layout((Axis("district", values=_DISTRICTS), Axis("sex", values=("1", "2"))))


def measure(results: Results, *, long: bool) -> None:
    """Measure `push-down` and `push-down rows`."""
    del long
    if results.has("push-down"):
        return
    servers = _servers()
    with servers.postgres_server() as server, tempfile.TemporaryDirectory(prefix="minshu-bench-") as folder:
        _fill(server)
        access = _access(server, Path(folder))
        tallies: list[Tally] = []
        handed: list[int] = []
        ours, reading = take_turns(
            lambda: _timed(access, lambda source: _counted(source, handed), tallies),
            lambda: _timed(access, _read, tallies),
            TURNS,
        )
    if len({tally.commitment(bytes(32)) for tally in tallies}) != 1:
        raise RuntimeError("what was counted is not what was read")
    results.add(Row("push-down", ours, "s", "the rows read", reading))
    results.add(Row("push-down rows", handed[0], "rows", "the rows read", ROWS))


def push_down(results: Results) -> None:
    """Measure the rows for a page that has others, too."""
    measure(results, long=False)


def _fill(server: Any) -> None:
    server.run(
        f"CREATE TABLE {TABLE} (person varchar(18), district varchar(6), sex varchar(1), seen date)",
    )
    with (
        closing(server.connect()) as connection,
        connection.cursor() as cursor,
        cursor.copy(f"COPY {TABLE} FROM STDIN") as copy,
    ):
        for text in _lines():
            copy.write(text)
    server.run(f"GRANT SELECT ON {TABLE} TO {server.reader}", f"VACUUM ANALYZE {TABLE}")


def _lines() -> Iterator[str]:
    """Yield the rows as COPY takes them: distinct sound numbers, the last twentieth once more."""
    rand = np.random.default_rng(1)
    persons = ROWS - ROWS // 20
    days = np.arange("1940-01-01", "2024-01-01", dtype="datetime64[D]").astype(str)
    number = np.arange(persons)
    bodies = [
        f"{_DISTRICTS[area]}{days[day].replace('-', '')}{sequence:03d}"
        for area, day, sequence in zip(
            (number % 11).tolist(),
            (number // 11 % len(days)).tolist(),
            (number // (11 * len(days))).tolist(),
            strict=True,
        )
    ]
    characters = np.frombuffer("".join(bodies).encode(), np.uint8).reshape(-1, 17)
    checks = resident_id_check_digits(characters).tobytes().decode()
    ids = [body + check for body, check in zip(bodies, checks, strict=True)]
    shown = [*ids, *ids[-(ROWS // 20) :]]
    order = rand.permutation(ROWS)
    areas, seen = rand.integers(0, 11, ROWS).tolist(), rand.integers(0, 2000, ROWS).tolist()
    start = date(2020, 1, 1).toordinal()
    for first in range(0, ROWS, 10_000):
        yield "".join(
            f"{shown[row]}\t{_DISTRICTS[areas[row]]}\t{1 + row % 2}\t{date.fromordinal(start + seen[row])}\n"
            for row in order[first : first + 10_000].tolist()
        )


def _builder() -> TallyBuilder:
    return TallyBuilder(
        _LAYOUT, unit=Unit("resident-id", 1), as_of=TODAY, areas=demo_area_table(), clamp=False
    )


def _timed(access: Access, tally: Callable[[Source], Tally], into: list[Tally]) -> float:
    started = time.perf_counter()
    with open_source(TablePlace("bench", TABLE), access) as source:
        into.append(tally(source))
    return time.perf_counter() - started


def _read(source: Source) -> Tally:
    builder = _builder()
    slots = sorted(_COLUMNS)
    for batch in source.read([_COLUMNS[slot] for slot in slots]):
        builder.add({slot: batch.column(_COLUMNS[slot]) for slot in slots})
    return builder.finish()


class _Counting:
    """A source that counts what it hands out."""

    def __init__(self, source: Any) -> None:
        self._source, self.rows = source, 0
        self.dialect, self.table, self.columns = source.dialect, source.table, source.columns
        self.pushable, self.order, self.settled = source.pushable, source.order, source.settled

    def query(self, statement: Any) -> Iterator[Any]:
        for batch in self._source.query(statement):
            self.rows += batch.num_rows
            yield batch


def _counted(source: Source, handed: list[int]) -> Tally:
    builder, counting = _builder(), _Counting(source)
    count_there(builder, counting, _COLUMNS, lambda: None)  # type: ignore[arg-type]  # all of a source that counting needs
    handed.append(counting.rows)
    return builder.finish()
