"""`minshu-node dataset`: add, list, preview, check. Nothing they say is a value of a table."""

import argparse
import json
import random
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openpyxl.worksheet.worksheet import Worksheet
from simulator import World, person

from node import dataset_cli
from node.cli import main
from node.page import print_result
from node.preview import MAX_CHARACTERS, MIN_VALUES, form_of
from node.sources import FilePlace, TablePlace
from node.sources.drift import check_registered, drift
from node.sources.source import SourceColumn
from node.state import read_state
from protocols.errors import InputError
from protocols.freetext import UNREADABLE

CANARIES = [person(n) for n in range(900, 1100)]
NAMES = ["张三", "李四", "王小五"]


class Node:
    """One department's node, and what its commands said so far."""

    def __init__(self, world: World, capsys: pytest.CaptureFixture[str]) -> None:
        self.home = world.homes["health"].path
        self.folder = world.folder
        self.database = world.homes["health"].database
        self._capsys = capsys
        self.said = ""

    def run(self, *words: str | Path) -> tuple[int, str, str]:
        self._capsys.readouterr()
        try:
            code = main(["dataset", *map(str, words), "--home", str(self.home)])
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        printed = self._capsys.readouterr()
        self.said += printed.out + printed.err
        return code, printed.out, printed.err

    def json(self, *words: str | Path) -> tuple[int, dict[str, Any]]:
        code, out, _ = self.run(*words, "--json")
        return code, json.loads(out)

    def place(self, name: str) -> object:
        with read_state(self.database) as reader:
            return next(d.place for d in reader.datasets() if d.name == name)


@pytest.fixture
def node(world: World, capsys: pytest.CaptureFixture[str]) -> Node:
    return Node(world, capsys)


@pytest.fixture(autouse=True)
def _nothing_said_is_a_value(node: Node) -> Any:
    yield
    assert not [canary for canary in CANARIES if canary in node.said]


def rows(count: int = 200) -> list[tuple[str, str, str]]:
    return [(CANARIES[n % 200], NAMES[n % 3], f"{n % 9}") for n in range(count)]


def text(lines: Sequence[Sequence[str]], delimiter: str = ",") -> str:
    return "".join(delimiter.join(line) + "\n" for line in [("id", "姓名", "code"), *lines])


def written(path: Path, content: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(content.encode(encoding))
    return path


def workbook(path: Path, sheets: Sequence[str] = ("人员",)) -> Path:
    made = openpyxl.Workbook(write_only=True)
    for title in sheets:
        sheet = made.create_sheet(title)
        for row in [("id", "姓名", "code"), *rows()]:
            sheet.append(row)
    made.save(path)
    return path


# -- add and list ------------------------------------------------------------------------------------------


def test_what_was_found_out_of_a_file_is_said_and_kept(node: Node) -> None:
    path = written(node.folder / "t.csv", text(rows(), ";"), "gb18030")
    code, out, err = node.run("add", "people-2", path)
    assert (code, err) == (0, "")
    assert "people-2: 200 rows, 200 distinct keys in column id" in out
    assert "read as text in GB18030, semicolons between values\n  it is not UTF-8, so it was taken for" in out
    assert node.place("people-2") == FilePlace(path, encoding="gb18030", delimiter=";")


def test_a_file_without_a_header_is_not_registered_and_its_first_record_not_shown(node: Node) -> None:
    lines = "".join(",".join(row) + "\n" for row in rows())
    code, out, err = node.run("add", "t", written(node.folder / "t.csv", lines))
    assert (code, out) == (1, "")
    assert "the header holds what looks like records" in err
    # Nor where a registered file lost its header.
    path = written(node.folder / "u.csv", text(rows()))
    node.run("add", "u", path)
    written(path, lines)
    assert node.json("check", "u")[1]["datasets"][0]["findings"][0]["code"] == "no-header"
    assert node.run("preview", "u", "--masked")[0] == 1


def test_nothing_that_is_printed_moves_the_cursor(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "a\x1b[2Jb\u202ec\x9bd"
    print_result(argparse.Namespace(json=False), {}, f"{hostile}\n  {hostile}")
    out = capsys.readouterr().out
    assert out == "a\\x1b[2Jb\\u202ec\\x9bd\n  a\\x1b[2Jb\\u202ec\\x9bd\n"
    print_result(argparse.Namespace(json=True), {"x": hostile})
    out = capsys.readouterr().out
    assert not UNREADABLE.search(out.rstrip("\n"))
    assert json.loads(out) == {"x": hostile}
    code, _, err = node.run("preview", hostile, "--masked")
    assert (code, UNREADABLE.findall(err.replace("\n", ""))) == (1, [])


def test_a_mapping_of_a_dataset_that_is_not_there_names_the_closest(
    node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["mapping", "check", "peoples", "--home", str(node.home)]) == 1
    assert "closest: people" in capsys.readouterr().err


def test_what_is_said_of_a_file_is_not_found_out(node: Node) -> None:
    path = written(node.folder / "t.txt", text(rows(), "^"), "gb18030")
    code, out, _ = node.run("add", "t", path, "--encoding", "GBK", "--delimiter", "^")
    assert (code, "taken for" in out) == (0, False)
    assert node.place("t") == FilePlace(path, encoding="gb18030", delimiter="^")
    code, _, err = node.run("add", "t", path, "--encoding", "utf-8", "--delimiter", "^")
    assert code == 1
    assert "the file is not UTF-8 text, line 1" in err


def test_a_reader_does_not_find_out_again(node: Node) -> None:
    path = written(node.folder / "t.csv", text(rows()))
    assert node.run("add", "t", path)[0] == 0
    written(path, text(rows()), "gb18030")
    code, found = node.json("check", "t")
    assert code == 1
    assert [f["code"] for f in found["datasets"][0]["findings"]] == ["not-utf8"]


def test_a_sheet_is_named_and_kept(node: Node) -> None:
    path = workbook(node.folder / "t.xlsx", ["人员", "备注"])
    code, _, err = node.run("add", "t", path)
    assert code == 1
    assert "--sheet: 人员, 备注" in err
    assert node.run("add", "t", path, "--sheet", "人员")[0] == 0
    assert node.place("t") == FilePlace(path, sheet="人员")
    # The other sheet is another table, and may be registered; this one under another name may not.
    assert node.run("add", "u", path, "--sheet", "备注")[0] == 0
    assert "registered as t already" in node.run("add", "v", path, "--sheet", "人员")[2]


def test_a_workbook_with_numbers_for_identifiers_is_not_registered(node: Node) -> None:
    made = openpyxl.Workbook()
    sheet = made.active
    assert isinstance(sheet, Worksheet)
    sheet.append(["id"])
    sheet.append([int(next(c for c in CANARIES if c.isdigit()))])
    made.save(node.folder / "t.xlsx")
    code, _, err = node.run("add", "t", node.folder / "t.xlsx")
    assert code == 1
    assert "cell A2 is a number of more than 15 digits" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["add", "t"], "no table is named"),
        (["add", "t", "FILE", "--connection", "c", "--table", "t"], "both a file and a table"),
        (["add", "t", "--connection", "c"], "a table has a connection and a name"),
        (["add", "t", "--table", "t", "--connection", "c", "--encoding", "utf-8"], "--encoding says nothing"),
        (["add", "t", "FILE", "--sheet", "x"], "--sheet says nothing"),
        (["add", "t", "BOOK", "--delimiter", ";"], "--delimiter says nothing"),
        (["add", "t", "FILE", "--encoding", "big5"], "none that this node reads"),
        (["add", "t", "gone.csv"], "cannot be read"),
        (["preview", "people"], "no values, only their forms"),
        (["preview", "people", "--masked", "--rows", "99"], "100 to 1000000 rows"),
        (["preview", "people", "--masked", "--rows", "1000001"], "100 to 1000000 rows"),
        (["preview", "peoples", "--masked"], "closest: people"),
        (["check", "peoples"], "closest: people"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_a_hint(node: Node, words: list[str], said: str) -> None:
    known = {
        "FILE": str(written(node.folder / "t.csv", text(rows()))),
        "BOOK": str(workbook(node.folder / "t.xlsx")),
    }
    code, out, err = node.run(*(known.get(word, word) for word in words))
    assert (code, out) == (1, "")
    assert said in err
    assert "hint: " in err


@pytest.mark.parametrize("delimiter", ["", ";;", '"', "\n"])
def test_a_delimiter_is_one_character(node: Node, delimiter: str) -> None:
    path = written(node.folder / "t.csv", text(rows()))
    code, _, err = node.run("add", "t", path, f"--delimiter={delimiter}")
    assert (code, "one character" in err) == (2, True)


def test_a_table_of_a_database_is_a_place(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []

    def scan(_name: str, place: object, **_: object) -> None:
        seen.append(place)
        raise InputError("enough", code="enough")

    monkeypatch.setattr("node.catalogue.scan", scan)
    node.run("add", "t", "--connection", "hr", "--table", "insured", "--updated", "changed_at")
    assert seen == [TablePlace("hr", "insured", "changed_at")]


def test_a_list_says_where_each_table_is_to_people_here_and_how_it_is_read_to_programs(node: Node) -> None:
    path = written(node.folder / "t.csv", text(rows(), "\t"), "gb18030")
    node.run("add", "t", path)
    out = node.run("list")[1]
    assert f"{path} (text in GB18030, tabs between values)" in out
    plain = node.json("list")[1]
    assert str(node.folder) not in json.dumps(plain)
    assert {d["name"]: d["place"] for d in plain["datasets"]}["t"] == {
        "kind": "file",
        "format": "csv",
        "encoding": "gb18030",
        "delimiter": "\t",
    }


def test_a_long_reading_says_how_far_it_is(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_cli, "LINE_ROWS", 20_000)
    many = [(CANARIES[n % 200], "x", "1") for n in range(100_000)]
    path = written(node.folder / "t.csv", text(many))
    code, _, err = node.run("add", "t", path)
    assert code == 0
    assert err.splitlines()[0].startswith("reading 读取: ")
    assert 1 <= len(err.splitlines()) <= 5
    assert node.run("check", "t", "--json")[2] == ""


# -- preview -----------------------------------------------------------------------------------------------


def test_a_preview_shows_forms_and_shares(node: Node) -> None:
    lines = [(p, name, code if n % 4 else "") for n, (p, name, code) in enumerate(rows())]
    node.run("add", "t", written(node.folder / "t.csv", text(lines)))
    code, found = node.json("preview", "t", "--masked")
    assert code == 0
    identifier, name, number = found["columns"]
    assert found["rows"] == 200
    assert {f["form"] for f in identifier["forms"]} == {"9×18", "9×17 A×1"}
    assert [(f["form"], f["percent"]) for f in name["forms"]] == [("中×2", 67), ("中×3", 33)]
    assert (number["missing"], number["forms"]) == (25, [{"form": "9×1", "percent": 100}])
    assert not number["missing_few"]
    out = node.run("preview", "t", "--masked")[1]
    assert "  姓名  text  missing 0 %  中×2 67 %, 中×3 33 %" in out


def test_a_form_that_few_records_have_is_not_shown(node: Node) -> None:
    lines = [*rows(), *[("X-1-Y", "欧阳修之", "z")] * (MIN_VALUES - 1)]
    node.run("add", "t", written(node.folder / "t.csv", text(lines)))
    found = node.json("preview", "t", "--masked")[1]
    for column in found["columns"]:
        assert column["other"] == 4
        assert not {"A×1 -×1 9×1 -×1 A×1", "中×4", "a×1"} & {f["form"] for f in column["forms"]}


def test_a_table_of_few_rows_shows_no_form_at_all(node: Node) -> None:
    node.run("add", "t", written(node.folder / "t.csv", text(rows(MIN_VALUES - 1))))
    assert all(not column["forms"] for column in node.json("preview", "t", "--masked")[1]["columns"])


def test_a_few_missing_values_are_not_counted(node: Node) -> None:
    few, enough = (MIN_VALUES - 1, MIN_VALUES)
    lines = [(p, "" if n < few else "x", "" if n < enough else "1") for n, (p, _, _) in enumerate(rows())]
    node.run("add", "t", written(node.folder / "t.csv", text(lines)))
    missing = [(c["missing"], c["missing_few"]) for c in node.json("preview", "t", "--masked")[1]["columns"]]
    assert missing == [(0, False), (None, True), (5, False)]
    assert "  姓名  text  missing few  a×1 100 %" in node.run("preview", "t", "--masked")[1]


def test_a_preview_looks_at_the_rows_it_was_asked_for(node: Node) -> None:
    node.run("add", "t", written(node.folder / "t.csv", text(rows())))
    assert node.json("preview", "t", "--masked", "--rows", "150")[1]["rows"] == 150


def test_types_that_have_one_form_show_none(node: Node) -> None:
    table = pa.table(
        {
            "id": CANARIES,
            "born": pa.array([date(1949, 12, 31)] * 200, pa.date32()),
            "alive": pa.array([True] * 200),
            "income": pa.array(range(1000, 1200), pa.int64()),
        }
    )
    pq.write_table(table, node.folder / "t.parquet")
    node.run("add", "t", node.folder / "t.parquet")
    columns = {c["name"]: c for c in node.json("preview", "t", "--masked")[1]["columns"]}
    assert (columns["born"]["type"], columns["born"]["forms"]) == ("date", [])
    assert (columns["alive"]["type"], columns["alive"]["forms"]) == ("boolean", [])
    assert columns["income"]["forms"] == [{"form": "9×4", "percent": 100}]


@given(st.text(max_size=60), st.randoms(use_true_random=False))
def test_a_form_is_the_same_for_all_values_of_its_kinds_and_lengths(value: str, rand: random.Random) -> None:
    """What is shown depends on digits, letters and characters by their kind alone."""
    kinds = {"9": "0123456789", "a": "abcxyz", "A": "ABCXYZ", "中": "张三李四王五"}
    other = "".join(rand.choice(kinds.get(_plain(c), c)) for c in value)
    assert form_of(other) == form_of(value)
    assert len(form_of(value)) <= 8 * MAX_CHARACTERS


def _plain(character: str) -> str:
    if character in "0123456789":
        return "9"
    if character.isascii() and character.isalpha():
        return "A" if character.isupper() else "a"
    return "中" if "一" <= character <= "鿿" else character


@pytest.mark.parametrize(
    ("value", "form"),
    [
        ("11010519491231002X", "9×17 A×1"),
        ("１１０x", "９×3 a×1"),
        ("买买提·吐尔逊", "中×3 ·×1 中×3"),
        ("2026-11-22", "9×4 -×1 9×2 -×1 9×2"),
        (" a", "blank×1 a×1"),
        ("a\0", "a×1 control×1"),
        ("é😀", "letter×1 mark×1"),
        ("٣", "digit×1"),
        ("", "empty text"),
        ("x" * 33, "more than 32 characters"),
        ("a1b2c3d4", "mixed"),
    ],
)
def test_forms(value: str, form: str) -> None:
    assert form_of(value) == form


# -- check -------------------------------------------------------------------------------------------------


def test_a_table_that_still_fits_is_ok(node: Node) -> None:
    node.run("add", "t", written(node.folder / "t.csv", text(rows())))
    code, out, _ = node.run("check", "t")
    assert code == 0
    assert out.startswith("ok      t: 200 rows, snapshot ")
    code, found = node.json("check")
    assert (code, [d["name"] for d in found["datasets"]]) == (0, ["people", "t"])
    assert found["datasets"][1]["tells_writes"] is True
    assert str(node.folder) not in json.dumps(found)


def fewer(path: Path) -> None:
    written(path, text(rows(150)))


def renamed(path: Path) -> None:
    written(path, text(rows()).replace("姓名", "名字", 1))


def gone(path: Path) -> None:
    path.unlink()


def torn(path: Path) -> None:
    written(path, text([*rows(), (CANARIES[0], "x", "y", "z")]))


@pytest.mark.parametrize(
    ("change", "codes", "said"),
    [
        (fewer, ["count-drift"], "the table has 150 rows, the catalogue says 200"),
        (renamed, ["schema-drift", "schema-drift"], "column 姓名 was registered and is gone"),
        (gone, ["file-missing"], "cannot be read"),
        (torn, ["bad-file"], "line 202"),
    ],
)
def test_a_table_that_no_longer_fits_is_found(
    node: Node, change: Callable[[Path], None], codes: list[str], said: str
) -> None:
    path = written(node.folder / "t.csv", text(rows()))
    node.run("add", "t", path)
    change(path)
    code, found = node.json("check", "t")
    assert code == 1
    assert [f["code"] for f in found["datasets"][0]["findings"]] == codes
    code, out, _ = node.run("check", "t")
    assert code == 1
    assert out.startswith("error   t: ")
    assert said in out
    assert "hint: " in out


def test_a_column_that_changed_type_is_found(node: Node) -> None:
    path = node.folder / "t.parquet"
    pq.write_table(pa.table({"id": CANARIES, "code": ["1"] * 200}), path)
    node.run("add", "t", path)
    pq.write_table(pa.table({"id": CANARIES, "code": [1] * 200}), path)
    code, out, _ = node.run("check", "t")
    assert code == 1
    assert "column code was registered as text and is integer now" in out


def test_a_few_rows_more_are_no_finding(node: Node) -> None:
    path = written(node.folder / "t.csv", text(rows()))
    node.run("add", "t", path)
    written(path, text([*rows(), *rows(15)]))
    assert node.run("check", "t")[0] == 0


REGISTERED = [SourceColumn("id", "text"), SourceColumn("seen", "date")]


def test_only_the_columns_a_reader_wants_must_be_as_registered() -> None:
    found = [SourceColumn("seen", "text"), SourceColumn("new", "text"), SourceColumn("id", "text")]
    check_registered(REGISTERED, found, ["id"])
    check_registered(REGISTERED, found, ["id", "new"])
    with pytest.raises(InputError) as caught:
        check_registered(REGISTERED, found, ["id", "seen"])
    assert caught.value.code == "column-type-changed"
    with pytest.raises(InputError) as caught:
        check_registered(REGISTERED, found[:2], ["id"])
    assert caught.value.code == "schema-drift"
    assert [error.code for error in drift(REGISTERED, found)] == ["column-type-changed", "schema-drift"]
    assert drift(REGISTERED, REGISTERED[::-1]) == []
