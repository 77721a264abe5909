"""What every source must do, of a file or in a database; run on each implementation."""

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, TypeAlias

import pyarrow as pa
import pytest

from node.sources import Access, ReadLimits, Source
from protocols.errors import InputError

BATCH_ROWS: Final = 2048
SMALL: Final = Access(ReadLimits(batch_rows=BATCH_ROWS))
"""What every maker opens its sources with."""

Drop: TypeAlias = Callable[[], None]
Make: TypeAlias = Callable[[Path, pa.Table], tuple[Source, Drop]]
"""Stores a table and opens it: the source, and what drops the table.

One folder is one place: made there a second time, after a drop, a table takes the place of the first. A maker
of tables in a database names its table after the folder.
"""

ALL_TYPES: Final = frozenset({"text", "integer", "decimal", "date", "time", "boolean"})


@dataclass(frozen=True, slots=True)
class Tells:
    """What a format can tell.

    Attributes:
        types: the column types it knows; a column of another type is read as text.
        nulls: whether it tells a missing value from an empty text.
    """

    types: frozenset[str] = ALL_TYPES
    nulls: bool = True


ALL: Final = Tells()
TEXT_ONLY: Final = Tells(frozenset({"text"}), nulls=False)

CANARY: Final = "110105194912310021"
TABLE: Final = pa.table(
    {
        "id": [
            "11010519491231002X",
            "010105194912310021",
            None,
            "１１０１０５１９４９１２３１００２Ｘ",
            " x ",
        ],
        "街道": ["东区", "西区", "a,b", 'say "hi"', ""],
        "Month": ["2026-01", None, "2026-03", "2026-04", "2026-05"],
        "secret": [CANARY, "2", "3", "4", "5"],
    }
)
TYPED: Final = pa.table(
    {
        "name": ["张三", None, "a'b;--"],
        "count": pa.array([2**63 - 1, -(2**63), None], pa.int64()),
        "small": pa.array([1, 0, None], pa.int32()),
        "amount": pa.array([Decimal("12345678901234.50"), Decimal("-0.01"), None], pa.decimal128(18, 2)),
        "born": pa.array([date(1949, 12, 31), date(2026, 2, 28), None], pa.date32()),
        "seen": pa.array([datetime(2026, 11, 22, 8, 0, 1), datetime(1999, 1, 1), None], pa.timestamp("us")),
        "alive": pa.array([True, False, None], pa.bool_()),
    }
)
TYPES: Final = {
    "name": "text",
    "count": "integer",
    "small": "integer",
    "amount": "decimal",
    "born": "date",
    "seen": "time",
    "alive": "boolean",
}
NAMES: Final = (
    "居民身份证号码",
    "full name",
    'say "x"',
    "it's",
    "x; DROP TABLE t; --",
    '" FROM t; --',
    "a`b",
    "a.b",
    "a\\b",
    "100%",
    "%s",
    ":id",
    "$path",
    "select",
)


def check_source(make: Make, folder: Path, tells: Tells = ALL) -> None:
    """Check one implementation: `make` stores a table in a folder and opens it as a source."""
    _reads_exactly_the_declared_columns(make, folder / "columns")
    _keeps_identifiers_as_they_are(make, folder / "identifiers")
    _tells_nulls_from_empty_texts(make, folder / "nulls", tells)
    _tells_types(make, folder / "types", tells)
    _takes_any_name(make, folder / "names")
    _streams_in_batches_in_one_order(make, folder / "batches")
    _takes_small_tables(make, folder / "small")
    _is_used_again(make, folder / "again")
    _says_when_it_was_written(make, folder / "written")
    _refuses_unknown_columns_by_name(make, folder / "unknown")
    _tells_a_changed_table_as_it_is(make, folder / "changed", tells)
    _refuses_a_table_that_is_gone(make, folder / "gone")


def read(source: Source, columns: Sequence[str]) -> pa.Table:
    """Return these columns of a source whose block is open."""
    batches = list(source.read(columns))
    return pa.Table.from_batches(batches) if batches else pa.table({name: [] for name in columns})


def _made(make: Make, folder: Path, table: pa.Table) -> tuple[Source, Drop]:
    folder.mkdir(parents=True, exist_ok=True)
    return make(folder, table)


def _make(make: Make, folder: Path, table: pa.Table) -> Source:
    return _made(make, folder, table)[0]


def _refusal(source: Source, act: Callable[[], Any]) -> InputError:
    """Return the error of an act in a block of its own: some sources tell at its beginning."""
    with pytest.raises(InputError) as caught, source:
        act()
    error = caught.value
    said = f"{error} {error.hint} {error.__cause__}"
    assert CANARY not in said
    assert error.__suppress_context__ or error.__context__ is None
    return error


def _reads_exactly_the_declared_columns(make: Make, folder: Path) -> None:
    with _make(make, folder, TABLE) as source:
        assert [c.name for c in source.columns()] == TABLE.column_names
        for wanted in (["id"], ["Month", "id"], ["街道"], ["secret", "街道", "Month", "id"]):
            found = read(source, wanted)
            assert found.column_names == wanted
            for name in wanted:
                assert _texts(found[name]) == _texts(TABLE[name])


def _texts(column: pa.ChunkedArray) -> list[str]:
    return ["" if value is None else str(value) for value in column.to_pylist()]


def _keeps_identifiers_as_they_are(make: Make, folder: Path) -> None:
    with _make(make, folder, TABLE) as source:
        # Leading zeros, X, full-width digits and blanks.
        assert read(source, ["id"])["id"].to_pylist() == TABLE["id"].to_pylist()


def _tells_nulls_from_empty_texts(make: Make, folder: Path, tells: Tells) -> None:
    with _make(make, folder, pa.table({"id": ["1", "2", "3"], "note": [None, "", "x"]})) as source:
        found = read(source, ["note"])["note"].to_pylist()
    assert found[0] is None
    assert found[1] == "" if tells.nulls else not found[1]
    assert found[2] == "x"


def _tells_types(make: Make, folder: Path, tells: Tells) -> None:
    with _make(make, folder, TYPED) as source:
        told = {column.name: column.type for column in source.columns()}
        found = read(source, TYPED.column_names)
    for name, kind in TYPES.items():
        values = found[name].to_pylist()
        if kind in tells.types:
            assert told[name] == kind, name
            assert values == TYPED[name].to_pylist(), name
        elif kind == "integer":
            # No digit is lost where numbers are text.
            assert _texts(found[name]) == _texts(TYPED[name]), name
        assert values[-1] is None or name == "name"


def _takes_any_name(make: Make, folder: Path) -> None:
    table = pa.table({name: [f"{n}", f"x{n}"] for n, name in enumerate(NAMES)})
    with _make(make, folder, table) as source:
        assert tuple(c.name for c in source.columns()) == NAMES
        found = read(source, NAMES[::-1])
        assert found.column_names == list(NAMES[::-1])
        for n, name in enumerate(NAMES):
            assert found[name].to_pylist() == [f"{n}", f"x{n}"]


def _streams_in_batches_in_one_order(make: Make, folder: Path) -> None:
    many = pa.table({"id": [f"{n:018d}" for n in range(3_000)], "n": [str(n) for n in range(3_000)]})
    with _make(make, folder, many) as source:
        batches = list(source.read(["id"]))
        assert len(batches) > 1
        assert all(0 < batch.num_rows <= BATCH_ROWS for batch in batches)
        first = pa.Table.from_batches(batches)["id"].to_pylist()
        assert first == many["id"].to_pylist()
        # One column's rows fit the other's, read at another time.
        assert read(source, ["n"])["n"].to_pylist() == many["n"].to_pylist()
        assert read(source, ["id"])["id"].to_pylist() == first


def _takes_small_tables(make: Make, folder: Path) -> None:
    with _make(make, folder / "one", TABLE.slice(0, 1)) as one:
        assert read(one, ["id"]).num_rows == 1
    with _make(make, folder / "none", TABLE.slice(0, 0)) as empty:
        assert [c.name for c in empty.columns()] == TABLE.column_names
        assert sum(batch.num_rows for batch in empty.read(["id"])) == 0


def _is_used_again(make: Make, folder: Path) -> None:
    many = pa.table({"id": [f"{n:018d}" for n in range(3_000)]})
    source = _make(make, folder, many)
    for _ in range(2):
        with source:
            assert read(source, ["id"]).num_rows == 3_000
    with source:
        # Let go in the middle of a reading, it begins anew.
        next(iter(source.read(["id"])))
        assert read(source, ["id"]).num_rows == 3_000
    with suppress(KeyError), source:
        next(iter(source.read(["id"])))
        raise KeyError
    with source:
        assert read(source, ["id"]).num_rows == 3_000


def _says_when_it_was_written(make: Make, folder: Path) -> None:
    source, drop = _made(make, folder, TABLE)
    with source:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", source.snapshot())
        before = source.fingerprint()
    assert before
    drop()
    with _make(make, folder, TABLE.slice(0, 2)) as source:
        assert source.fingerprint() != before


def _refuses_unknown_columns_by_name(make: Make, folder: Path) -> None:
    source = _make(make, folder, TABLE)
    error = _refusal(source, lambda: list(source.read(["secrets"])))
    assert error.code == "unknown-column"
    assert "closest: secret" in error.message
    for name in ('id" FROM t; --', "*", "id, secret"):
        assert _refusal(source, lambda name=name: list(source.read([name]))).code == "unknown-column"  # type: ignore[misc]  # bound at once
    with source:
        # A block that ended in an error takes no later one with it.
        assert read(source, ["id"]).num_rows == TABLE.num_rows


def _tells_a_changed_table_as_it_is(make: Make, folder: Path, tells: Tells) -> None:
    """A table changed after it was registered: no reader gets values of a column that is no more."""
    source, drop = _made(make, folder, TABLE)
    with source:
        assert read(source, ["secret"]).num_rows == TABLE.num_rows
    drop()
    numbers = pa.table({"id": pa.array([7, 8], pa.int64()), "Month": ["2026-01", "2026-02"]})
    _made(make, folder, numbers)
    assert _refusal(source, lambda: list(source.read(["id", "secret"]))).code == "unknown-column"
    with source:
        told = {column.name: column.type for column in source.columns()}
        assert list(told) == ["id", "Month"]
        assert told["id"] == ("integer" if "integer" in tells.types else "text")
        assert [str(value) for value in read(source, ["id"])["id"].to_pylist()] == ["7", "8"]


def _refuses_a_table_that_is_gone(make: Make, folder: Path) -> None:
    source, drop = _made(make, folder, TABLE)
    drop()
    for act in (
        source.columns,
        source.snapshot,
        source.fingerprint,
        lambda: list(source.read(["id"])),
    ):
        error = _refusal(source, act)
        assert error.code in {"file-missing", "table-missing"}
        assert str(folder) not in f"{error.message} {error.hint}"
