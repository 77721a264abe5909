from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from conformance.check_source import Make, check_source

from node.sources import Access, FilePlace, ReadLimits, Source, open_source
from protocols.errors import InputError

SMALL = Access(ReadLimits(batch_rows=4096))


def as_csv(folder: Path, table: pa.Table) -> Source:
    path = folder / "t.csv"
    pyarrow.csv.write_csv(table, path)
    return open_source(FilePlace(path), SMALL)


def as_tsv(folder: Path, table: pa.Table) -> Source:
    path = folder / "t.tsv"
    pyarrow.csv.write_csv(table, path, pyarrow.csv.WriteOptions(delimiter="\t"))
    return open_source(FilePlace(path), SMALL)


def as_csv_of_an_office_program(folder: Path, table: pa.Table) -> Source:
    """With a byte-order mark and the line ends of another system."""
    path = folder / "t.csv"
    pyarrow.csv.write_csv(table, path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    return open_source(FilePlace(path), SMALL)


def as_parquet(folder: Path, table: pa.Table) -> Source:
    path = folder / "t.parquet"
    pq.write_table(table, path, compression="zstd", row_group_size=4096)
    return open_source(FilePlace(path), SMALL)


@pytest.mark.parametrize("make", [as_csv, as_tsv, as_csv_of_an_office_program, as_parquet])
def test_every_source_conforms(make: Make, tmp_path: Path) -> None:
    check_source(make, tmp_path)


def failing(act: Callable[[], object]) -> InputError:
    with pytest.raises(InputError) as caught:
        act()
    return caught.value


def bad(tmp_path: Path, data: bytes, name: str = "t.csv") -> InputError:
    """Return what reading a file of these bytes ends in."""
    path = tmp_path / name
    path.write_bytes(data)
    return failing(lambda: list(open_source(FilePlace(path), SMALL).read(["id"])))


SECRET = b"11010519491231002X"


@pytest.mark.parametrize(
    ("code", "data"),
    [
        ("not-utf8", b"id,name\n" + SECRET + b",\xd5\xc5\xc8\xfd\n"),
        ("not-utf8", b"id,\xd0\xd5\xc3\xfb\n" + SECRET + b",x\n"),
        ("bad-file", b"id,name\n" + SECRET + b",x,y\n"),
        ("bad-file", b"id,name\n" + SECRET + b"\n"),
        ("duplicate-column", b"id,id\n" + SECRET + b",x\n"),
        ("no-header", b""),
        ("no-header", b"id,\n" + SECRET + b",x\n"),
        ("bad-file", b'"id,name\n' + SECRET + b",x\n"),
    ],
)
def test_a_broken_csv_file_is_a_clear_error_that_quotes_no_row(
    tmp_path: Path, code: str, data: bytes
) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(data)
    error = failing(lambda: list(open_source(FilePlace(path), SMALL).read(["id", "name"])))
    assert error.code == code
    assert SECRET.decode() not in f"{error} {error.hint} {error.__cause__}"
    assert error.__suppress_context__ or error.__context__ is None


def test_a_file_with_an_undecodable_line_names_the_line(tmp_path: Path) -> None:
    rows = b"".join(b"%018d,x\n" % n for n in range(50))
    path = tmp_path / "t.csv"
    path.write_bytes(b"id,name\n" + rows + SECRET + b",\xd5\xc5\n")
    error = failing(lambda: list(open_source(FilePlace(path), SMALL).read(["id", "name"])))
    assert "line 52" in error.message


def test_bytes_that_are_no_parquet_are_a_clear_error(tmp_path: Path) -> None:
    assert bad(tmp_path, b"PAR1" + SECRET * 10, "t.parquet").code == "bad-file"


def test_an_ending_nobody_reads_is_refused(tmp_path: Path) -> None:
    assert bad(tmp_path, b"", "t.doc").code == "unknown-format"


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    many = pa.table({"id": [f"{n:018d}" for n in range(20_000)]})
    source = as_csv(tmp_path, many)
    batches = source.read(["id"])
    next(batches)
    with (tmp_path / "t.csv").open("a") as file:
        file.write("x\n")
    assert failing(lambda: list(batches)).code in {"changed-while-reading", "bad-file"}


def test_a_query_reaches_no_other_file(tmp_path: Path) -> None:
    import duckdb

    from node.sources.files import _connect

    (tmp_path / "t.csv").write_text("id\n1\n")
    (tmp_path / "other.csv").write_text("id\n1\n")
    with _connect(tmp_path / "t.csv", SMALL.limits) as connection:
        assert connection.execute(f"SELECT * FROM '{tmp_path}/t.csv'").fetchall()
        for query in (
            f"SELECT * FROM '{tmp_path}/other.csv'",
            f"COPY (SELECT 1) TO '{tmp_path}/leak.csv'",
            "INSTALL httpfs",
            "SET enable_external_access = true",
        ):
            with pytest.raises(duckdb.Error):
                connection.execute(query)
    assert not (tmp_path / "leak.csv").exists()


def test_identifiers_in_a_column_of_numbers_are_told_as_such(tmp_path: Path) -> None:
    source = as_parquet(tmp_path, pa.table({"id": [110105194912310021]}))
    assert source.columns()[0].type == "integer"
