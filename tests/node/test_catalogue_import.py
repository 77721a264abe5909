"""A department's own catalogue as a spreadsheet: all of it or none, every fault with its cell.

tests/transcripts/catalogue.txt is what its engineer types and sees.
"""

import asyncio
import contextlib
import csv
import io
import json
import shlex
import subprocess
import sys
import zipfile
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openpyxl import Workbook, load_workbook
from simulator import START, World, running

from coordinator.registry import MAX_CATALOGUE_BYTES
from node import catalogue
from node.catalogue_import import (
    HEADERS,
    MAX_FAULTS,
    Imported,
    entries_from_json,
    entries_to_json,
    import_entries,
    read_sheet,
    template,
)
from node.cli import main
from node.description import Description
from node.desk import register
from node.sources import FilePlace, SourceColumn
from node.state import Announced, Dataset, State
from protocols.encoding import decode_json, sha256_digest
from protocols.envelope import CATALOGUE, decode_envelope, key_id, verify
from protocols.errors import DecodeError, InputError
from protocols.ids import DatasetName, NodeName

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "catalogue-166.csv"
TRANSCRIPT = ROOT / "tests" / "transcripts" / "catalogue.txt"
HEAD = ("目录编号", "数据项名称", "责任部门", "数据集", "字段名", "字段类型", "代码表", "权威数据源", "分级")
ROWS = (
    ("4401-001", "身份号码", "市卫生健康委", "people", "id", "字符型", "", "否", "一般4级"),
    ("4401-001", "街道", "市卫生健康委", "people", "street", "C", "", "是", "一般4级"),
    ("4401-002", "性别", "市卫生健康委", "births", "sex", "varchar(1)", "GB/T 2261.1-2003", "是", "重要"),
)
NODE = NodeName("health.gz.example/node-a")


def as_csv(rows: Sequence[Sequence[str]], head: Sequence[str] = HEAD) -> bytes:
    made = io.StringIO()
    csv.writer(made).writerows([head, *rows])
    return made.getvalue().encode()


def as_excel(rows: Sequence[Sequence[object]], change: Callable[[Workbook], None] = lambda _: None) -> bytes:
    book = Workbook()
    for row in (HEAD, *rows):
        book.worksheets[0].append(list(row))
    change(book)
    made = io.BytesIO()
    book.save(made)
    return made.getvalue()


def faults(data: bytes, name: str = "own.csv", **options: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        read_sheet(name, data, **options)
    assert caught.value.code == "bad-sheet"
    return [line.strip() for line in caught.value.message.splitlines()[1:]]


def changed(row: int, header: str, text: str) -> bytes:
    rows = [list(each) for each in ROWS]
    rows[row - 2][HEAD.index(header)] = text
    return as_csv(rows)


@pytest.fixture
def health(world: World) -> Iterator[State]:
    state = world.open("health")
    yield state
    state.close()


# -- what a sheet says -------------------------------------------------------------------------------------


def test_the_example_has_166_entries_of_a_plausible_city() -> None:
    sheet = read_sheet(EXAMPLE.name, EXAMPLE.read_bytes())
    assert sum(len(entry.columns) for entry in sheet.entries) == 166
    assert sheet.ignored == ()
    by_name = {entry.name: entry for entry in sheet.entries}
    assert len(by_name) == 20
    population = by_name[DatasetName("population")].description
    assert (population.organisation, population.grade, population.update_days) == ("市公安局", "important", 1)
    assert population.columns["sex"].code_table == "gbt2261.1@2003"
    # Each field has a number of its own, and one source.
    assert population.columns["sex"].item == "9901-001-05"
    sources = [
        entry.description.columns[column.name].title
        for entry in sheet.entries
        for column in entry.columns
        if entry.description.is_authoritative(column.name)
    ]
    assert len(sources) == len(set(sources)) > 40


@pytest.mark.long
def test_the_example_is_what_its_script_writes_of_the_city(tmp_path: Path) -> None:
    from demo.cli import main as demo

    assert demo(["city", "--profile", "ci", str(tmp_path / "city")]) == 0
    script = EXAMPLE.with_name("catalogue_166.py")
    command = [sys.executable, str(script), str(tmp_path / "city"), str(tmp_path / "made.csv")]
    subprocess.run(command, check=True)
    assert (tmp_path / "made.csv").read_bytes() == EXAMPLE.read_bytes()


def test_a_department_takes_its_own_rows_of_the_citys_catalogue() -> None:
    sheet = read_sheet(EXAMPLE.name, EXAMPLE.read_bytes(), owner="市民政局 ")
    assert [entry.name for entry in sheet.entries] == ["marriage", "low_income", "funeral"]
    with pytest.raises(InputError):
        read_sheet(EXAMPLE.name, EXAMPLE.read_bytes(), owner="市气象局")


@pytest.mark.parametrize("form", ["csv", "gb18030", "bom", "xlsx"])
def test_all_forms_of_a_sheet_say_the_same(form: str) -> None:
    plain = as_csv(ROWS)
    data = {
        "csv": plain,
        "gb18030": plain.decode().encode("gb18030"),
        "bom": b"\xef\xbb\xbf" + plain,
        "xlsx": as_excel(ROWS),
    }[form]
    sheet = read_sheet("own.xlsx" if form == "xlsx" else "OWN.CSV", data)
    assert sheet == read_sheet("own.csv", plain)
    people, births = sheet.entries
    assert people.columns == (SourceColumn("id", "text"), SourceColumn("street", "text"))
    assert (people.description.item, people.description.grade) == ("4401-001", "general-4")
    assert [people.description.is_authoritative(name) for name in ("id", "street")] == [False, True]
    assert births.description.columns["sex"].code_table == "gbt2261.1@2003"


def test_headers_may_be_in_english_starred_or_unknown() -> None:
    head = (
        "Owner（部门）*",
        "Dataset（标识）（必填）",
        "FIELD",
        "Type",
        "联系人",
        "Purposes",
        "Update Period",
    )
    sheet = read_sheet(
        "own.csv", as_csv([("Health", "births", "sex", "int", "张三", "a；b", "7 days")], head)
    )
    (entry,) = sheet.entries
    assert sheet.ignored == ("联系人",)
    assert (entry.description.purposes, entry.description.update_days) == (("a", "b"), 7)
    assert "张三" not in json.dumps(entries_to_json(sheet.entries), ensure_ascii=False)


def test_a_header_or_type_that_is_too_long_is_none_that_is_known() -> None:
    long = "(" * 100_000
    sheet = read_sheet("own.csv", as_csv([(*row, "x") for row in ROWS], (*HEAD, long)))
    assert sheet.ignored == ("(" * 40,)
    (fault,) = faults(changed(3, "字段类型", f"字符型{long})"))
    assert fault.startswith("F3: unknown type")


def test_a_row_without_a_field_is_about_the_whole_dataset() -> None:
    rows = [("4401-007", "出生", "市卫生健康委"), ("4401-008", "死亡", "市卫生健康委")]
    sheet = read_sheet("own.csv", as_csv(rows, HEAD[:3]))
    assert [(e.name, e.description.title, e.columns) for e in sheet.entries] == [
        ("4401-007", "出生", ()),
        ("4401-008", "死亡", ()),
    ]


def test_a_row_about_the_dataset_may_stand_beside_those_of_its_fields() -> None:
    whole = ("4401-001", "人口", "市卫生健康委", "people", "", "", "", "", "")
    assert read_sheet("own.csv", as_csv([*ROWS, whole])).entries[0].description.title == "人口"
    (fault,) = faults(as_csv([*ROWS, whole, whole]))
    assert fault.startswith("row 6: about the dataset of row 5 again")


def test_a_field_may_have_another_owner_than_its_dataset() -> None:
    rows = [[*row] for row in ROWS]
    rows[1][2] = "市民政局"
    people = read_sheet("own.csv", as_csv(rows)).entries[0].description
    assert (people.organisation, people.columns["street"].organisation) == ("市卫生健康委", "市民政局")


def test_the_template_takes_every_header_and_says_what_goes_where() -> None:
    head = [aliases[0] for aliases in HEADERS.values()]
    assert template("own.csv").decode("utf-8-sig").strip().split(",") == head
    book = load_workbook(io.BytesIO(template("own.xlsx")))
    first, about = book.worksheets
    assert [cell.value for cell in first[1]] == head
    assert [row[0].value for row in about.iter_rows(min_row=2)] == head
    assert all(row[2].value for row in about.iter_rows(min_row=2))
    with pytest.raises(InputError):
        template("own.ods")
    with pytest.raises(InputError, match="lists no dataset"):
        read_sheet("own.xlsx", template("own.xlsx"))


# -- what is wrong with one --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (changed(4, "分级", "绝密"), "I4: unknown grade"),
        (changed(4, "责任部门", ""), "row 4: no 责任部门"),
        (changed(4, "目录编号", "4401-001"), "A4: the id of another dataset, see A2"),
        (changed(3, "字段名", "id"), "E3: the field of row 2 again"),
        (changed(3, "分级", "重要"), "I3: another value than I2, of the same dataset"),
        (changed(3, "字段类型", "魔法型"), "F3: unknown type"),
        (changed(3, "数据集", "常住人口"), "D3: no name of a dataset"),
        (changed(3, "字段名", "a b"), "E3: expected a column name"),
        (changed(3, "数据项名称", "电话13800138000"), "B3: expected a text"),
        (changed(3, "权威数据源", "也许"), "H3: unknown answer"),
        (changed(4, "代码表", "国标"), "G4: expected a code table"),
        (changed(3, "数据项名称", "=1+1"), "B3: is a formula"),
        (as_csv(ROWS, ("a", *HEAD[1:3], "b", *HEAD[4:])), "row 1: no header 数据集"),
        (as_csv(ROWS, (*HEAD[:2], "b", *HEAD[3:])), "row 1: no header 责任部门"),
        (as_csv(ROWS, (*HEAD[:4], "责任部门", *HEAD[5:])), "E1: says the same as C1"),
        (as_csv([("", *ROWS[0][1:3], "", *ROWS[0][4:])]), "row 2: names neither a dataset nor"),
        (b'a,"b\n', "row 1: no line of CSV"),
    ],
)
def test_what_is_wrong_is_told_with_its_cell(data: bytes, found: str) -> None:
    (fault,) = faults(data)
    assert fault.startswith(found)


def test_a_definition_takes_its_version_and_a_period_a_number_of_days() -> None:
    head = ("责任部门", "数据集", "口径编号", "更新周期")
    assert [fault[:2] for fault in faults(as_csv([("卫健", "births", "resident", "偶尔")], head))] == [
        "D2",
        "C2",
    ]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda book: book.worksheets[0].merge_cells("C2:C3"), "C2:C3: are merged"),
        (lambda book: book.worksheets[0].__setitem__("B2", "=A2"), "B2: is a formula"),
        (lambda book: book.worksheets[0].__setitem__("B2", "#REF!"), "B2: shows an error"),
        (lambda book: setattr(book.worksheets[0].row_dimensions[3], "hidden", True), "row 3: is hidden"),
        (
            lambda book: setattr(book.worksheets[0].column_dimensions["C"], "hidden", True),
            "column C: is hidden",
        ),
    ],
)
def test_a_workbook_shows_what_it_says(change: Callable[[Workbook], None], found: str) -> None:
    (fault,) = faults(as_excel(ROWS, change), "own.xlsx")
    assert fault.startswith(found)


def test_a_workbook_is_read_as_strictly_as_a_dataset() -> None:
    def change(book: Workbook) -> None:
        sheet = book.worksheets[0]
        sheet["A2"], sheet["A2"].number_format = 4401, "000000"
        sheet["B2"], sheet["B3"] = "=A2", 110105194912310021
        sheet.row_dimensions[4].hidden = True
        sheet.merge_cells("G6:H6")

    assert [fault.partition(": ")[0] for fault in faults(as_excel(ROWS, change), "own.xlsx")] == [
        "A2",
        "B2",
        "B3",
        "row 4",
        "G6:H6",
    ]


def test_a_sheet_whose_only_cells_lie_far_apart_is_read_as_what_it_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The corners of the largest sheet: 17 thousand million cells lie between."""
    data = as_excel([], lambda book: book.worksheets[0].cell(1_048_576, 16_384, "x"))
    assert len(data) < 10_000
    assert faults(data, "own.xlsx") == ["row 1048576: names neither a dataset nor a catalogue id"]
    monkeypatch.setattr("node.catalogue_import.MAX_CELLS", 10_000)
    with pytest.raises(InputError, match="or 10000 cells"):
        read_sheet("own.xlsx", data)


def test_a_workbook_full_of_faults_is_not_read_to_its_end() -> None:
    listed = faults(as_excel([["=1"] * 9] * 200), "own.xlsx")
    assert listed[-1] == "and 980 more"


def test_faults_are_listed_together_and_at_most_twenty() -> None:
    rows = [("", "x", "市卫生健康委", f"d{n}", "f", "魔法型", "", "", "绝密") for n in range(15)]
    listed = faults(as_csv(rows))
    assert len(listed) == MAX_FAULTS + 1
    assert listed[-1] == "and 10 more"
    assert listed[0].startswith("I2: ")


def test_no_fault_repeats_what_stands_in_a_cell() -> None:
    canary = "110101199003077"
    for header in HEAD:
        with contextlib.suppress(InputError):
            read_sheet("own.csv", changed(3, header, canary + "X"))
            continue
        assert canary not in "".join(faults(changed(3, header, canary + "X")))


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"\x00" * 99, as_csv(ROWS)])
def test_bytes_that_are_no_workbook_are_refused(data: bytes) -> None:
    with pytest.raises(InputError) as caught:
        read_sheet("own.xlsx", data)
    assert caught.value.code == "bad-sheet"
    with pytest.raises(InputError) as caught:
        read_sheet("own.pdf", data)
    assert caught.value.code == "unknown-format"


def test_a_workbook_that_unpacks_to_very_much_is_not_unpacked() -> None:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("xl/worksheets/sheet1.xml", bytes((128 << 20) + 1))
    with pytest.raises(InputError) as caught:
        read_sheet("own.xlsx", made.getvalue())
    assert caught.value.code == "memory-limit"


@given(
    st.lists(
        st.lists(st.sampled_from([*HEAD, "people", "=1", "是", "", "x\u202e", "1.5", "重要"]), max_size=9)
    )
)
def test_any_sheet_is_read_or_refused_with_an_error_of_ours(rows: list[list[str]]) -> None:
    with contextlib.suppress(InputError):
        sheet = read_sheet("own.csv", as_csv(rows))
        assert entries_from_json(json.loads(json.dumps(entries_to_json(sheet.entries)))) == sheet.entries


# -- what becomes of it ------------------------------------------------------------------------------------


def taken(state: State, data: bytes) -> Imported:
    return import_entries(state, read_sheet("own.csv", data).entries, sha256_digest(data))


def test_registered_datasets_are_described_and_others_announced(health: State) -> None:
    data = as_csv(ROWS)
    size = health.journal.size
    found = taken(health, data)
    assert (found.count, len(found.described)) == (2, 1)
    (people,) = health.datasets()
    assert people.description.columns["street"].title == "街道"
    assert [(each.name, each.columns) for each in health.announced()] == [
        ("births", (SourceColumn("sex", "text"),))
    ]
    again, entry = list(health.journal.entries())[size:]
    assert (entry.kind, entry.body) == ("catalogue.imported", {"count": 2, "sha256": sha256_digest(data)})
    assert (again.kind, again.body["description_sha256"]) == ("dataset.registered", people.description.digest)
    # What says the same once more changes no dataset.
    taken(health, data)
    assert [each.kind for each in list(health.journal.entries())[size:]][2:] == ["catalogue.imported"]


def test_entries_that_are_none_are_an_error_of_ours() -> None:
    for plain in ([7], {}, [{"name": "a"}]):
        with pytest.raises(DecodeError) as caught:
            entries_from_json(plain)
        assert caught.value.code == "bad-entries"


def test_what_a_sheet_does_not_say_stays_and_what_it_no_longer_announces_is_gone(health: State) -> None:
    (before,) = health.datasets()
    said = Description.from_json(
        {
            "legal_basis": "传染病防治法",
            "authoritative": ["street"],
            "mapping": {"street": {"table": "local@1"}},
            "columns": {"street": {"unit": "x"}},
        }
    )
    with health.change() as change:
        change.put_dataset(replace(before, description=said))
    rows = [[*row] for row in ROWS]
    rows[1][7] = "否"
    taken(health, as_csv(rows))
    (people,) = health.datasets()
    assert people.description.legal_basis == "传染病防治法"
    assert people.description.mapping == said.mapping
    assert (people.description.columns["street"].unit, people.description.columns["street"].title) == (
        "x",
        "街道",
    )
    assert not people.description.is_authoritative("street")
    taken(health, as_csv(ROWS[:2]))
    assert health.announced() == []


def test_a_sheet_that_does_not_fit_the_registered_table_changes_nothing(health: State) -> None:
    before, size = health.datasets(), health.journal.size
    for header, text, found in [
        ("字段名", "streets", "row 3: the registered dataset people has no column streets"),
        ("字段类型", "整数型", "row 3: column street of people is text"),
    ]:
        entries = read_sheet("own.csv", changed(3, header, text)).entries
        with pytest.raises(InputError) as caught:
            import_entries(health, entries, sha256_digest(b""))
        assert found in caught.value.message
    assert (health.datasets(), health.announced(), health.journal.size) == (before, [], size)


def test_an_announced_dataset_takes_its_description_along_when_it_is_registered(
    health: State, folder: Path
) -> None:
    taken(health, as_csv(ROWS))
    path = folder / "births.csv"
    path.write_text("sex,weight\n1,3200\n")
    born = Dataset(
        name=DatasetName("births"), title="births", place=FilePlace(path), key="",
        columns=(SourceColumn("sex", "text"), SourceColumn("weight", "integer")),
        rows=1, distinct_keys=1, published_keys=1, snapshot="2026-11-22T08:00:00Z",
    )  # fmt: skip
    register(health, born, keep=True)
    assert health.announced() == []
    kept = health.dataset("births")
    assert kept is not None
    assert kept.description.columns["sex"].title == "性别"
    # A table that lost a described column is not registered as if nothing had happened.
    lost = replace(born, columns=born.columns[1:])
    with pytest.raises(InputError) as caught:
        register(health, lost, keep=True)
    assert caught.value.code == "unknown-column"
    # One that is described anew, if only by nothing, keeps nothing.
    register(health, lost)
    kept = health.dataset("births")
    assert kept is not None
    assert kept.description == Description()


# -- what is published -------------------------------------------------------------------------------------


def published(state: State, world: World, **more: object) -> tuple[dict[str, object], bytes]:
    signer = world.homes["health"].signer
    envelope = catalogue.publish(
        state.datasets(), NODE, signer, START, announced=state.announced(), **more  # type: ignore[arg-type]  # quality alone
    )  # fmt: skip
    document = decode_envelope(envelope)
    verify(document, CATALOGUE, {key_id(signer.public_key): signer.public_key})
    return decode_json(document.payload), envelope


def test_names_types_and_rounded_counts_are_published_and_never_a_place(world: World, health: State) -> None:
    taken(health, as_csv(ROWS))
    (people,) = health.datasets()
    content, _ = published(health, world, quality={"people": {"valid": "99.9"}})
    assert content["schema"] == "minshu-catalogue/2"
    (said,) = content["datasets"]  # type: ignore[misc]  # JSON
    assert (said["rows"], said["distinct_keys"]) == (catalogue.rounded(people.rows), people.published_keys)
    assert said["columns"][1] == {"name": "street", "type": "text", "title": "街道", "authoritative": True}
    assert said["quality"] == {"valid": "99.9"}
    (announced,) = content["announced"]  # type: ignore[misc]  # JSON
    assert announced["organisation"] == "市卫生健康委"
    assert not announced.keys() & {"rows", "distinct_keys", "snapshot", "key", "quality"}
    text = json.dumps(content, ensure_ascii=False)
    for secret in (str(people.place.path), people.place.path.name, str(world.homes["health"].path), "place"):
        assert secret not in text


def test_what_stays_at_the_node_is_not_published(world: World, health: State) -> None:
    (people,) = health.datasets()
    canary = "城关旧代码"
    said = Description.from_json(
        {"title": "就诊", "mapping": {"street": {"table": "local@1", "values": {canary: "1"}}}}
    )
    for shown in (True, False):
        description = Description.from_json({**said.to_json(), "shown": shown})
        described = replace(people, description=description)
        with health.change() as change:
            change.put_dataset(described)
        content, _ = published(health, world)
        text = json.dumps(content, ensure_ascii=False)
        assert canary not in text
        # After mapping the column has the codes of that table, and others are to know which.
        assert ("local@1" in text) is shown
        assert len(content["datasets"]) == shown  # type: ignore[arg-type]  # JSON


def entries_of(datasets: int, columns: int) -> list[Announced]:
    """A catalogue of the fullest descriptions that a city could have."""
    about = Description.from_json(
        {
            "title": "常住人口信息登记", "item": "4401-001-0001", "organisation": "市公安局人口支队",
            "grade": "important", "sharing": "conditional", "purposes": ["人口管理", "公共服务", "应急处置"],
            "update_days": 7, "legal_basis": "中华人民共和国户口登记条例第三条",
            "definition": {"id": "resident-180", "version": "2024", "text": "居住半年以上的人口, 含暂住"},
            "columns": {
                f"column_{n}": {"title": f"数据项{n}", "code_table": "gbt2261.1@2003", "authoritative": True}
                for n in range(columns)
            },
        }
    )  # fmt: skip
    fields = tuple(SourceColumn(f"column_{n}", "text") for n in range(columns))
    return [Announced(DatasetName(f"dataset_{n}"), fields, about) for n in range(datasets)]


def test_166_full_entries_fit_and_what_does_not_is_refused_before_it_is_kept(
    world: World, health: State
) -> None:
    catalogue.check_room([], entries_of(166, 30))

    def size(count: int) -> int:
        return len(catalogue.document([], entries_of(count, 30), NODE, START))

    many = bisect_right(range(1000), catalogue.MAX_BYTES, key=size) - 1
    assert many > 166
    assert size(many) <= catalogue.MAX_BYTES < size(many + 1)
    signer = world.homes["health"].signer
    longest = catalogue.publish([], NodeName(NODE), signer, datetime.now(UTC), announced=entries_of(many, 30))
    assert len(longest) <= MAX_CATALOGUE_BYTES
    with pytest.raises(InputError) as caught:
        catalogue.check_room([], entries_of(many + 1, 30))
    assert caught.value.code == "catalogue-too-long"


def test_figures_that_do_not_fit_are_left_out_and_the_catalogue_goes_out(world: World, health: State) -> None:
    long = {"people": {f"figure_{n}": "99.9" for n in range(60_000)}}
    content, envelope = published(health, world, quality=long)
    assert "quality" not in content["datasets"][0]  # type: ignore[index]  # JSON
    assert len(envelope) <= MAX_CATALOGUE_BYTES


def test_hiding_the_last_dataset_is_published_too(world: World, health: State) -> None:
    """A node that sent nothing would leave its earlier catalogue with the coordinator."""
    (people,) = health.datasets()
    signer = world.homes["health"].signer
    hidden = replace(people, description=Description(shown=False))
    assert catalogue.publish([], NODE, signer, START) == b""
    assert catalogue.publish([hidden], NODE, signer, START)


# -- commands ----------------------------------------------------------------------------------------------


def test_the_transcript_is_what_happens(
    world: World, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder.joinpath("own.csv").write_bytes(as_csv(ROWS))
    folder.joinpath("wrong.csv").write_bytes(changed(4, "分级", "绝密"))
    folder.joinpath("drifted.csv").write_bytes(changed(3, "字段名", "streets"))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MINSHU_HOME", str(world.homes["health"].path))
    monkeypatch.setattr("node.page._now", world.clock)
    written = TRANSCRIPT.read_text("utf-8")
    seen = ""
    for line in written.splitlines():
        if line.startswith("# "):
            seen += ("\n" if seen else "") + line + "\n"
        if line.startswith("$ "):
            capfd.readouterr()
            code = main(shlex.split(line[2:])[1:])
            seen += line + "\n" + "".join(capfd.readouterr()) + (f"[{code}]\n" if code else "")
    assert seen == written


def test_a_sheet_that_is_too_long_or_not_there_is_not_read(
    world: World, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = str(world.homes["health"].path)
    long = folder / "long.csv"
    long.write_bytes(b"," * ((16 << 20) + 1))
    assert main(["catalogue", "import", str(long), "--home", home]) == 1
    assert main(["catalogue", "import", str(folder / "none.csv"), "--home", home]) == 1
    said = capsys.readouterr().err
    assert "has more than 16 MiB" in said
    assert "cannot be read" in said
    assert str(folder) not in said


def test_a_dataset_keeps_what_is_said_of_it_until_another_description_takes_its_place(
    world: World, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = str(world.homes["health"].path)
    path = world.write_list("health", range(30), at=folder / "patients.csv")
    said = folder / "patients.toml"
    said.write_text('title = "就诊"\n[columns.street]\ntitle = "街道"\n', "utf-8")

    def shown() -> dict[str, object]:
        capsys.readouterr()
        assert main(["catalogue", "show", "--json", "--home", home]) == 0
        return {each["name"]: each for each in json.loads(capsys.readouterr().out)["datasets"]}

    add = ["dataset", "add", "patients", str(path), "--key", "id", "--home", home]
    assert main([*add, "--description", str(said)]) == 0
    first = shown()["patients"]
    assert first["title"] == "就诊"  # type: ignore[index]  # JSON
    assert main(add) == 0
    assert shown()["patients"] == first
    said.write_text('[columns.streets]\ntitle = "街道"\n', "utf-8")
    assert main([*add, "--description", str(said)]) == 1
    assert "closest: street" in capsys.readouterr().err
    assert shown()["patients"] == first


def test_a_node_says_hello_with_what_it_announces(world: World) -> None:
    async def play() -> None:
        async with running(world, names=["health"], ready=False) as (_, stations):
            station = stations["health"]
            taken(station.state, as_csv(ROWS))
            hello = station.agent.hello().hello
            document = decode_envelope(hello.catalogue)
            signer = world.homes["health"].signer
            verify(document, CATALOGUE, {key_id(signer.public_key): signer.public_key})
            found = decode_json(document.payload)
            assert [each["name"] for each in found["announced"]] == ["births"]
            assert str(world.homes["health"].path).encode() not in document.payload

    asyncio.run(play())
