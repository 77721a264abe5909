import csv
import os
import threading
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import openpyxl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from conformance.check_source import ALL, SMALL, TEXT_ONLY, Drop, Make, Tells, check_source
from hypothesis import given, settings
from hypothesis import strategies as st

from node.sources import FilePlace, Source, encodings, open_source
from node.sources.encodings import DELIMITERS, Dialect, detect
from node.sources.source import check_header
from protocols.errors import InputError


def as_csv(folder: Path, table: pa.Table) -> tuple[Source, Drop]:
    path = folder / "t.csv"
    pyarrow.csv.write_csv(table, path)
    return open_source(FilePlace(path), SMALL), path.unlink


def as_tsv(folder: Path, table: pa.Table) -> tuple[Source, Drop]:
    path = folder / "t.tsv"
    pyarrow.csv.write_csv(table, path, pyarrow.csv.WriteOptions(delimiter="\t"))
    return open_source(FilePlace(path), SMALL), path.unlink


def as_csv_of_an_office_program(folder: Path, table: pa.Table) -> tuple[Source, Drop]:
    """With a byte-order mark and the line ends of another system."""
    path = folder / "t.csv"
    pyarrow.csv.write_csv(table, path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    return open_source(FilePlace(path), SMALL), path.unlink


def as_parquet(folder: Path, table: pa.Table) -> tuple[Source, Drop]:
    path = folder / "t.parquet"
    pq.write_table(table, path, compression="zstd", row_group_size=4096)
    return open_source(FilePlace(path), SMALL), path.unlink


def as_csv_of_another_office_program(folder: Path, table: pa.Table) -> tuple[Source, Drop]:
    """In GB18030, with semicolons."""
    path = folder / "t.csv"
    pyarrow.csv.write_csv(table, path, pyarrow.csv.WriteOptions(delimiter=";"))
    path.write_bytes(path.read_text("utf-8").encode("gb18030"))
    return open_source(FilePlace(path, encoding="gb18030", delimiter=";"), SMALL), path.unlink


def as_workbook(folder: Path, table: pa.Table) -> tuple[Source, Drop]:
    path = folder / "t.xlsx"
    workbook = openpyxl.Workbook(write_only=True)
    sheet = workbook.create_sheet("人员")
    sheet.append(table.column_names)
    texts = [
        # As somebody does who means to lose nothing: a number of more than 15 digits as text.
        [str(v) if isinstance(v, int) and abs(v) >= 10**15 else v for v in column.to_pylist()]
        for column in table.columns
    ]
    for row in zip(*texts, strict=True):
        sheet.append(row)
    workbook.save(path)
    return open_source(FilePlace(path), SMALL), path.unlink


@pytest.mark.parametrize(
    ("make", "tells"),
    [
        (as_csv, TEXT_ONLY),
        (as_tsv, TEXT_ONLY),
        (as_csv_of_an_office_program, TEXT_ONLY),
        (as_csv_of_another_office_program, TEXT_ONLY),
        (as_workbook, TEXT_ONLY),
        (as_parquet, ALL),
    ],
)
def test_every_source_conforms(make: Make, tells: Tells, tmp_path: Path) -> None:
    check_source(make, tmp_path, tells)


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
    source, _ = as_csv(tmp_path, many)
    batches = source.read(["id"])
    next(batches)
    with (tmp_path / "t.csv").open("a") as file:
        file.write("x\n")
    assert failing(lambda: list(batches)).code in {"changed-while-reading", "bad-file"}


@pytest.mark.parametrize("name", ["t[1]", "t*", "t?", "[a-z]", "t[[]1]"])
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_file_is_read_that_is_named_like_a_pattern(tmp_path: Path, name: str, ending: str) -> None:
    for file, value in ((name, "this"), ("t1", "another"), ("t[1", "another")):
        path = tmp_path / f"{file}.{ending}"
        if ending == "csv":
            path.write_text(f"id\n{value}\n")
        else:
            pq.write_table(pa.table({"id": [value]}), path)
    with open_source(FilePlace(tmp_path / f"{name}.{ending}"), SMALL) as source:
        assert [column.name for column in source.columns()] == ["id"]
        assert [batch.to_pydict() for batch in source.read(["id"])] == [{"id": ["this"]}]


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


# -- headers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [as_csv, as_csv_of_another_office_program, as_workbook, as_parquet])
@pytest.mark.parametrize(
    ("names", "code"),
    [
        ([SECRET.decode(), "张三", "女"], "no-header"),
        (["张三", "１３８００１３８０００"], "no-header"),
        (["name", "110105 19491231 002X"], "no-header"),
        (["name", "E12345678"], "no-header"),
        (["id", "na\x9b2Jme"], "unreadable-name"),
        (["id", "na\u202eme"], "unreadable-name"),
        (["ID", "id"], "duplicate-column"),
        (["Straße", "STRASSE"], "duplicate-column"),
    ],
)
def test_a_header_that_cannot_be_published_is_refused_and_not_quoted(
    make: Make, names: list[str], code: str, tmp_path: Path
) -> None:
    source, _ = make(tmp_path, pa.table([["x"] for _ in names], names=names))
    for act in (source.columns, lambda: list(source.read(names[:1]))):
        error = failing(act)
        assert error.code == code
        assert not [name for name in names[:2] if name in f"{error} {error.hint}".split()]


def test_names_that_only_resemble_numbers_are_names() -> None:
    check_header(
        ["2026-01", "20260101", "V2", "gdp_2023_2024", "sha256_" + "0" * 10, "街道", "区划代码(12位)", " a "]
    )


def test_columns_that_parquet_has_twice_are_not_given_other_names(tmp_path: Path) -> None:
    pq.write_table(pa.table([["x"], ["y"]], names=["id", "id"]), tmp_path / "t.parquet")
    assert failing(open_source(FilePlace(tmp_path / "t.parquet"), SMALL).columns).code == "duplicate-column"


def test_a_folder_name_makes_no_column(tmp_path: Path) -> None:
    folder = tmp_path / "year=2026"
    folder.mkdir()
    source, _ = as_parquet(folder, pa.table({"id": ["1"]}))
    assert [column.name for column in source.columns()] == ["id"]


def test_a_file_whose_time_was_set_back_is_another(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", "id\n1\n")
    source = open_source(FilePlace(path), SMALL)
    before, status = source.fingerprint(), path.stat()
    time.sleep(0.02)
    written(path, "id\n2\n")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert source.snapshot() == open_source(FilePlace(path), SMALL).snapshot()
    assert source.fingerprint() != before


def test_identifiers_in_a_column_of_numbers_are_told_as_such(tmp_path: Path) -> None:
    source, _ = as_parquet(tmp_path, pa.table({"id": [110105194912310021]}))
    assert source.columns()[0].type == "integer"


# -- text files --------------------------------------------------------------------------------------------

NAMES = ["张三", "李四", "王五"]


def written(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def rows_of(place: FilePlace, columns: list[str]) -> list[dict[str, object]]:
    batches = list(open_source(place, SMALL).read(columns))
    return [row for batch in batches for row in batch.to_pylist()]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030"])
@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
def test_encoding_and_delimiter_are_found_out(tmp_path: Path, encoding: str, delimiter: str) -> None:
    lines = [["id", "姓名", "备注"], *([f"{n:018d}", name, ""] for n, name in enumerate(NAMES * 40))]
    text = "\n".join(delimiter.join(line) for line in lines) + "\n"
    path = written(tmp_path / "t.csv", text, encoding)
    found = detect(path)
    assert found == Dialect(encoding.removesuffix("-sig"), delimiter)
    place = FilePlace(path, encoding=found.encoding, delimiter=found.delimiter)
    assert FilePlace.from_json(place.to_json()) == place
    assert [row["姓名"] for row in rows_of(place, ["姓名"])] == NAMES * 40


def test_the_encoding_of_the_last_line_counts_like_that_of_the_first(tmp_path: Path) -> None:
    rows = "".join(f"{n:018d},x\n" for n in range(40_000))
    path = written(tmp_path / "t.csv", f"id,name\n{rows}{SECRET.decode()},张三\n", "gb18030")
    assert detect(path).encoding == "gb18030"


def test_utf8_with_a_damaged_byte_is_not_taken_for_gb18030(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    text = "id,name\n" + "".join(f"{n:018d},{'张三丰' * 3}\n" for n in range(200))
    path.write_bytes(text.encode() + SECRET + b",\xe5\xbc\n")
    error = failing(lambda: detect(path))
    assert error.code == "not-utf8"
    assert "line 202" in error.message
    assert SECRET.decode() not in error.message


@pytest.mark.parametrize("data", ["id,name\n1,x\n".encode("utf-16"), b"id\0name\n", b"id,\xff\xff\n1,\x80\n"])
def test_text_of_no_known_encoding_is_a_clear_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(data)
    assert failing(lambda: detect(path)).code == "unknown-encoding"


@pytest.mark.parametrize(
    ("code", "character"),
    [("a6d9", "︐"), ("a6f3", "︙"), ("fe59", "龴"), ("fea0", "龻"), ("fe51", "𠂇"), ("a8bc", "ḿ")],
)
def test_a_character_that_gb18030_moved_is_the_one_of_today(
    tmp_path: Path, code: str, character: str
) -> None:
    path = tmp_path / "t.csv"
    data = bytes.fromhex(code)
    path.write_bytes(b"id," + data + b"\n" + "张三,".encode("gb18030") + data + b"\n")
    assert rows_of(FilePlace(path, encoding="gb18030"), [character]) == [{character: character}]
    assert character.encode("gb18030").decode("gb18030") not in EARLIER


def test_text_of_another_east_asian_encoding_is_not_taken_for_gb18030(tmp_path: Path) -> None:
    path = written(
        tmp_path / "t.csv", "姓名,地址,性別\n張三,臺北市中正區,男\n陳小明,高雄市鳳山區,女\n", "big5"
    )
    error = failing(lambda: detect(path))
    assert (error.code, "gb18030" in error.hint) == ("unknown-encoding", True)
    # One name in a department's own font, among thousands, is no reason.
    own = "id,name\n" + "".join(f"{n:018d},张三丰\n" for n in range(2000)) + "1,\ue000\n"
    assert detect(written(path, own, "gb18030")).encoding == "gb18030"


def test_lines_that_end_in_two_ways_are_told_with_the_first(tmp_path: Path) -> None:
    error = bad(tmp_path, b'id,b\r\n1,"x\ny"\r\n' + SECRET + b",x\n5,6\r\n")
    assert (error.code, error.message) == (
        "bad-file",
        "line 4 of the file ends in another way than the first",
    )


def test_a_delimiter_inside_a_value_or_in_the_header_alone_misleads_nobody(tmp_path: Path) -> None:
    quoted = written(tmp_path / "q.csv", 'id;"a,b,c,d"\n1;"x,y"\n2;z\n')
    assert detect(quoted).delimiter == ";"
    listed = written(tmp_path / "l.csv", "id,phones;mobile|home|work\n1,2;3\n4,5;6\n")
    assert detect(listed).delimiter in {",", ";"}
    assert detect(written(tmp_path / "o.csv", "id\n1\n")).delimiter == ","
    assert detect(written(tmp_path / "e.csv", "")).delimiter == ","


@pytest.mark.parametrize("delimiter", ["，", "^", "'", " "])
def test_any_single_character_separates_values(tmp_path: Path, delimiter: str) -> None:
    path = written(tmp_path / "t.csv", f"id{delimiter}姓名\n1{delimiter}张三\n", "gb18030")
    place = FilePlace(path, encoding="gb18030", delimiter=delimiter)
    assert rows_of(place, ["姓名", "id"]) == [{"姓名": "张三", "id": "1"}]


def test_bytes_that_are_no_gb18030_name_the_line_and_no_content(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    rows = b"".join(b"%018d,\xd5\xc5\n" % n for n in range(30_000))
    path.write_bytes(b"id,name\n" + rows + SECRET + b",\xd5\xff\n" + rows)
    error = failing(lambda: rows_of(FilePlace(path, encoding="gb18030"), ["id"]))
    assert error.code == "not-gb18030"
    assert "line 30002" in error.message
    assert SECRET.decode() not in f"{error} {error.hint} {error.__cause__} {error.__context__}"
    path.write_bytes(b"id,name\n" + SECRET + b",\xd5")
    assert failing(lambda: rows_of(FilePlace(path, encoding="gb18030"), ["id"])).code == "not-gb18030"
    path.write_bytes(b"id,\xd5\xff\n")
    assert failing(lambda: rows_of(FilePlace(path, encoding="gb18030"), ["id"])).code == "not-gb18030"


def test_a_gb18030_file_with_a_broken_line_is_as_clear_an_error_as_any(tmp_path: Path) -> None:
    rows = "".join(f"{n:018d},张三\n" for n in range(100))
    path = written(tmp_path / "t.csv", f"id,name\n{rows}{SECRET.decode()},李四,x\n", "gb18030")
    error = failing(lambda: rows_of(FilePlace(path, encoding="gb18030"), ["id"]))
    assert error.code == "bad-file"
    assert "line 102" in error.message
    assert SECRET.decode() not in f"{error} {error.hint}"


def test_a_gb18030_file_is_streamed_and_its_reader_may_leave(tmp_path: Path) -> None:
    rows = "".join(f"{n:018d},{'张三丰' * 20}\n" for n in range(20_000))
    place = FilePlace(written(tmp_path / "t.csv", "id,name\n" + rows, "gb18030"), encoding="gb18030")
    before = threading.active_count()
    reading = open_source(place, SMALL).read(["id"])
    next(reading)
    reading.close()
    assert threading.active_count() == before
    assert sum(batch.num_rows for batch in open_source(place, SMALL).read(["name"])) == 20_000


EARLIER = "".join(map(chr, encodings._EARLIER))
"""What GB18030 moved since the edition that Python writes."""

CELLS = st.text(st.characters(codec="gb18030", exclude_characters="\r\0\ufeff" + EARLIER), max_size=6)


ALIKE = given(
    rows=st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=6),
    delimiter=st.sampled_from(DELIMITERS),
    end=st.sampled_from(["\n", "\r\n"]),
)


@settings(max_examples=5, deadline=None)
@ALIKE
def test_a_text_file_reads_alike_in_every_encoding(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, ...]], delimiter: str, end: str
) -> None:
    check_alike(tmp_path_factory.mktemp("alike"), rows, delimiter, end)


@pytest.mark.long
@settings(max_examples=200, deadline=None)
@ALIKE
def test_very_many_text_files_read_alike_in_every_encoding(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, ...]], delimiter: str, end: str
) -> None:
    check_alike(tmp_path_factory.mktemp("alike"), rows, delimiter, end)


def check_alike(folder: Path, rows: list[tuple[str, ...]], delimiter: str, end: str) -> None:
    text = StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerows([("id", "姓名", "note"), *rows])
    columns = ["id", "姓名", "note"]
    expected = [dict(zip(columns, (value or None for value in row), strict=True)) for row in rows]
    for encoding in ("utf-8", "utf-8-sig", "gb18030"):
        path = written(folder / f"{encoding}.csv", text.getvalue(), encoding)
        named = encoding.removesuffix("-sig")
        assert rows_of(FilePlace(path, encoding=named, delimiter=delimiter), columns) == expected
        assert detect(path, encoding=named).delimiter == delimiter


def test_two_sheets_of_a_workbook_are_two_tables_and_two_encodings_of_a_file_are_one(tmp_path: Path) -> None:
    path = written(tmp_path / "t.xlsx", "")
    assert not FilePlace(path, sheet="a").same(FilePlace(path, sheet="b"))
    assert FilePlace(path, sheet="a").same(FilePlace(path, sheet="a"))
    # The only sheet may be either.
    assert FilePlace(path, sheet="a").same(FilePlace(path))
    assert FilePlace(path, encoding="gb18030").same(FilePlace(path, delimiter=";"))
