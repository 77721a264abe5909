"""What every source must do; run on each implementation."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from node.sources import Source
from protocols.errors import InputError

Make = Callable[[Path, pa.Table], Source]

TABLE = pa.table(
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
        "secret": ["1", "2", "3", "4", "5"],
    }
)


def check_source(make: Make, folder: Path) -> None:
    """Check one implementation: `make` stores a table in a folder and opens it as a source."""
    _reads_exactly_the_declared_columns(make, folder / "columns")
    _keeps_identifiers_as_they_are(make, folder / "identifiers")
    _streams_in_batches(make, folder / "batches")
    _takes_small_tables(make, folder / "small")
    _refuses_unknown_columns_by_name(make, folder / "unknown")
    _refuses_a_table_that_is_gone(make, folder / "gone")


def read(source: Source, columns: Sequence[str]) -> pa.Table:
    batches = list(source.read(columns))
    return pa.Table.from_batches(batches) if batches else pa.table({name: [] for name in columns})


def _make(make: Make, folder: Path, table: pa.Table) -> Source:
    folder.mkdir(parents=True, exist_ok=True)
    return make(folder, table)


def _reads_exactly_the_declared_columns(make: Make, folder: Path) -> None:
    source = _make(make, folder, TABLE)
    assert [c.name for c in source.columns()] == TABLE.column_names
    for wanted in (["id"], ["Month", "id"], ["街道"]):
        assert read(source, wanted).column_names == wanted


def _keeps_identifiers_as_they_are(make: Make, folder: Path) -> None:
    source = _make(make, folder, TABLE)
    # Order is not promised; leading zeros, X, full-width digits and blanks are.
    for name in ("id", "Month"):
        assert sorted(map(str, read(source, [name])[name].to_pylist())) == sorted(
            map(str, TABLE[name].to_pylist())
        )


def _streams_in_batches(make: Make, folder: Path) -> None:
    many = pa.table({"id": [f"{n:018d}" for n in range(30_000)], "n": [str(n) for n in range(30_000)]})
    source = _make(make, folder, many)
    batches = list(source.read(["id"]))
    assert len(batches) > 1
    assert sum(batch.num_rows for batch in batches) == 30_000
    # Read twice, it is the same.
    assert sum(batch.num_rows for batch in source.read(["id"])) == 30_000


def _takes_small_tables(make: Make, folder: Path) -> None:
    one = _make(make, folder / "one", TABLE.slice(0, 1))
    assert read(one, ["id"]).num_rows == 1
    empty = _make(make, folder / "none", TABLE.slice(0, 0))
    assert [c.name for c in empty.columns()] == TABLE.column_names
    assert sum(batch.num_rows for batch in empty.read(["id"])) == 0


def _refuses_unknown_columns_by_name(make: Make, folder: Path) -> None:
    source = _make(make, folder, TABLE)
    with pytest.raises(InputError) as caught:
        list(source.read(["secrets"]))
    assert caught.value.code == "unknown-column"
    assert "closest: secret" in caught.value.message


def _refuses_a_table_that_is_gone(make: Make, folder: Path) -> None:
    source = _make(make, folder, TABLE)
    for file in folder.iterdir():
        file.unlink()
    for act in (source.columns, source.snapshot, lambda: list(source.read(["id"]))):
        with pytest.raises(InputError) as caught:
            act()
        assert caught.value.code == "file-missing"
        assert str(folder) not in caught.value.message
