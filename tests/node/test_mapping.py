"""Local values become standard codes while a dataset is read; what does not is counted, and not quoted."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conformance.check_source import SMALL, Drop, check_source
from hypothesis import given
from hypothesis import strategies as st
from simulator import START, World, answered, over, person, running
from table_world import TableWorld

from node import catalogue
from node.cli import main
from node.description import Description, read_description
from node.desk import register
from node.mapping import (
    MAX_LOCAL,
    MAX_VALUES,
    ColumnMapping,
    MappedSource,
    Translator,
    known_tables,
    mapped_source,
    may_be_shown,
    survey,
    translated,
    unmapped_of,
    values_of,
)
from node.releases import decode_content, release_info
from node.sources import Access, FilePlace, Source, SourceColumn, open_source
from node.state import Dataset
from protocols.channel import suites
from protocols.codes import NATIONAL, CodeTables, normalise_value
from protocols.errors import DecodeError, InputError

SEX = ColumnMapping(table="gbt2261.1@2003", values={"男": "1", "女": "2", "M": "1", "Ｆ": "2"})
DISTRICTS = (
    "code,title,valid_from,valid_to,successor\n"
    "990000,虚构省,,,\n"
    "990100,虚构市,,,\n"
    "990101,东区,,,\n"
    "990102,西区,,2014-02-12,990101\n"
    "990103,新区,2014-02-12,,\n"
    "990104,分区,,2014-02-12,\n"
)
SECRET = person(4321)


class Kept:
    """A table in memory, as a source."""

    def __init__(self, table: pa.Table, rows: int = 1000) -> None:
        self.table, self.rows, self.opened = table, rows, 0

    def __enter__(self) -> Self:
        self.opened += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.opened -= 1

    def columns(self) -> tuple[SourceColumn, ...]:
        return tuple(SourceColumn(name, "other") for name in self.table.column_names)

    def snapshot(self) -> str:
        return "2026-11-22T08:00:00Z"

    def fingerprint(self) -> str:
        return "sha256:" + "0" * 64

    def read(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        return iter(self.table.select(list(columns)).to_batches(self.rows))


@pytest.fixture
def codes(tmp_path: Path) -> Path:
    folder = tmp_path / "codes"
    folder.mkdir()
    (folder / "districts.csv").write_text(DISTRICTS, encoding="utf-8")
    return folder


def translator(mapping: ColumnMapping = SEX, tables: CodeTables = NATIONAL) -> Translator:
    return Translator("c", mapping, tables)


def mapped(values: Any, mapping: ColumnMapping = SEX, tables: CodeTables = NATIONAL) -> tuple[list[Any], int]:
    column = values if isinstance(values, pa.Array) else pa.array(values)
    found, unmapped = translated(column, translator(mapping, tables))
    assert found.type == pa.string()
    return found.to_pylist(), unmapped


def refused(mapping: ColumnMapping, tables: CodeTables = NATIONAL) -> InputError:
    with pytest.raises(InputError) as caught:
        translator(mapping, tables)
    return caught.value


def of_areas(codes: Path, **changes: Any) -> tuple[ColumnMapping, CodeTables]:
    tables = known_tables(codes)
    [table] = tables.named("districts")
    return ColumnMapping(table=table.id, **changes), tables


# -- values --------------------------------------------------------------------------------------------------


def test_local_values_and_codes_become_codes_and_the_rest_is_null_and_counted() -> None:
    values = ["男", " 女　", "Ｍ", "F", "1", "２", "9", None, "", "  ", "未知", "m", "3"]
    codes = ["1", "2", "1", "2", "1", "2", "9", None, None, None, None, None, None]
    assert mapped(values) == (codes, 3)


def test_an_unmapped_value_can_be_kept_as_it_is_and_is_counted_all_the_same() -> None:
    keep = ColumnMapping(table="gbt2261.1@2003", values={"男": "1"}, default="keep")
    assert mapped(["男", " 未知", None, ""], keep) == (["1", " 未知", None, None], 1)


def test_missing_values_have_a_code_where_the_mapping_gives_one() -> None:
    missing = ColumnMapping(table="gbt2261.1@2003", values={"": "9"})
    assert mapped(["1", None, " ", "x"], missing) == (["1", "9", "9", None], 1)


def test_codes_of_ones_own_are_not_taken_for_those_of_the_standard() -> None:
    """A register with 0 for 男 and 1 for 女: its 2, whatever it is, is not 女."""
    own = ColumnMapping(table="gbt2261.1@2003", values={"0": "1", "1": "2"})
    assert mapped(["0", "1", "2", "9"], own) == (["1", "2", None, None], 2)
    same = ColumnMapping(table="gbt2261.1@2003", values={"1": "1", "男": "1"})
    assert mapped(["1", "2"], same) == (["1", "2"], 0)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1, 2, None, 7]),
        pa.array([1.0, 2.0, None, 7.5]),
        pa.array([1.0, 2.0, float("nan"), 7.5]),
        pa.array([Decimal("1.00"), Decimal("2.00"), None, Decimal("7.50")]),
        pa.array(["1", "2", None, "x"], pa.large_string()),
        pa.array(["1", "2", None, "x"], pa.string_view()),
        pa.array(["1", "2", None, "x"]).dictionary_encode(),
        pa.DictionaryArray.from_arrays(pa.array([1, 2, 0, 3]), pa.array([None, "1", "2", "x"])),
        pa.array(["?", "1", "2", None, "x"]).dictionary_encode()[1:],
        pa.array(["?", "1", "2", None, "x"])[1:],
    ],
    ids=str,
)
def test_a_column_of_any_type_that_has_codes_becomes_text(column: pa.Array) -> None:
    assert mapped(column) == (["1", "2", None, None], 1)


@pytest.mark.parametrize(
    "column",
    [pa.array([[1]]), pa.array([b"1"]), pa.array([{"a": 1}]), pa.StringArray.from_buffers(
        1, pa.array([0, 2], pa.int32()).buffers()[1], pa.py_buffer(b"\xd5\xc5")
    )],
    ids=["list", "bytes", "struct", "no UTF-8"],
)  # fmt: skip
def test_a_column_that_can_have_no_codes_is_refused(column: pa.Array) -> None:
    with pytest.raises(InputError) as caught:
        mapped(column)
    assert caught.value.code == "not-text"


_SPELLINGS = st.sampled_from(
    ["男", " 男", "男\u3000", "Ｍ", "M", "m", "１", "1", "2", "9", "", " ", "x", "\u200b2"]
)
_VALUES = st.lists(st.one_of(st.none(), _SPELLINGS, st.text(max_size=4)), max_size=60)
_MAPPINGS = st.builds(
    ColumnMapping,
    table=st.just("gbt2261.1@2003"),
    values=st.dictionaries(st.sampled_from(["男", "M", "x", "1", "2", "", "？"]), st.sampled_from("0129")),
    default=st.sampled_from(["null", "keep"]),
)


def slow(values: Sequence[str | None], mapping: ColumnMapping) -> tuple[list[str | None], int]:
    """One value after the other, as the documentation says it."""
    entries = {normalise_value(local): code for local, code in mapping.values.items()}
    own = any(local in "0129" and local and local != code for local, code in entries.items())
    codes: list[str | None] = []
    unmapped = 0
    for value in values:
        normal = "" if value is None else normalise_value(value)
        if normal in entries:
            codes.append(entries[normal])
        elif normal == "":
            codes.append(None)
        elif normal in ("0", "1", "2", "9") and not own:
            codes.append(normal)
        else:
            unmapped += 1
            codes.append(value if mapping.default == "keep" else None)
    return codes, unmapped


@given(_VALUES, _MAPPINGS)
def test_columns_are_mapped_as_one_value_after_the_other_would_be(
    values: list[str | None], mapping: ColumnMapping
) -> None:
    assert mapped(pa.array(values, pa.string()), mapping) == slow(values, mapping)


@given(_VALUES, _MAPPINGS)
def test_a_database_that_compares_with_the_translation_says_the_same(
    values: list[str | None], mapping: ColumnMapping
) -> None:
    source = MappedSource(Kept(pa.table({"c": pa.array(values, pa.string())})), [translator(mapping)])
    table = source.translation("c", {value for value in values if value is not None})
    assert source.pushable("c") == (table is not None)
    if table is not None:
        assert [None if value is None else table.get(value) for value in values] == slow(values, mapping)[0]
        listed = source.translation("c")
        assert listed is not None
        assert all(table[value] == listed[value] for value in listed.keys() & table.keys())
    else:
        assert mapping.default == "keep" or "" in mapping.values


def test_many_different_values_are_not_all_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.mapping._REMEMBERED", 10)
    one = translator()
    values = [f"v{n}" for n in range(100)] + ["男"]
    assert [one.code(value) for value in values * 2] == ([None] * 100 + ["1"]) * 2
    assert len(one._seen) <= 10


# -- areas ---------------------------------------------------------------------------------------------------


def test_a_district_that_was_merged_counts_where_it_is_today(codes: Path) -> None:
    values = ["990101", "990102", "990103", "990104", "990199"]
    assert mapped(values, *of_areas(codes)) == ([*values[:4], None], 1)
    now = of_areas(codes, as_of=date(2026, 1, 1))
    assert mapped(values, *now) == (["990101", "990101", "990103", None, None], 2)
    then = of_areas(codes, as_of=date(2014, 2, 11))
    assert mapped(values, *then) == (["990101", "990102", None, "990104", None], 2)


def test_a_local_name_of_a_merged_district_is_followed_too(codes: Path) -> None:
    given_ = {"西": "990102"}
    assert mapped(["西"], *of_areas(codes, values=given_)) == (["990102"], 0)
    assert mapped(["西"], *of_areas(codes, values=given_, as_of=date(2026, 1, 1))) == (["990101"], 0)
    mapping, tables = of_areas(codes, values={"分": "990104"}, as_of=date(2026, 1, 1))
    assert refused(mapping, tables).code == "not-in-table"


def test_codes_and_addresses_are_rolled_up_to_a_level(codes: Path) -> None:
    values = [
        "990101001",
        "990102001001",
        "990101000000",
        "虚构省虚构市西区幸福街道某社区",
        "虚构省 虚构市 新区",
        "虚构省虚构市",  # larger than a county
        "990100",
        "990109001",  # in no listed county
        "某处",
    ]
    county = of_areas(codes, level="county", as_of=date(2026, 1, 1))
    assert mapped(values, *county) == (["990101"] * 4 + ["990103", None, None, None, None], 4)
    city = of_areas(codes, level="city")
    assert mapped(values, *city) == (["990100"] * 7 + [None, None], 2)


def test_what_lies_in_a_district_that_went_to_another_city_is_counted_there(codes: Path) -> None:
    moved = DISTRICTS.replace("990104,分区,,2014-02-12,", "990104,分区,,2014-02-12,990201")
    (codes / "districts.csv").write_text(moved + "990200,邻市,,,\n990201,邻区,,,\n", encoding="utf-8")
    values = ["990104", "990104003", "虚构省虚构市分区幸福街道"]
    assert mapped(values, *of_areas(codes, level="city")) == (["990100"] * 3, 0)
    assert mapped(values, *of_areas(codes, level="city", as_of=date(2026, 1, 1))) == (["990200"] * 3, 0)


def test_a_mapping_of_computed_values_is_not_pushed_down(codes: Path) -> None:
    mapping, tables = of_areas(codes, level="county")
    source = MappedSource(Kept(pa.table({"c": ["990101"], "d": ["x"]})), [translator(mapping, tables)])
    assert not source.pushable("c")
    assert source.pushable("d")
    assert source.translation("c") is None
    assert source.translation("d") is None
    plain, tables = of_areas(codes, as_of=date(2026, 1, 1))
    pushed = MappedSource(source.source, [translator(plain, tables)]).translation("c")
    assert pushed == {
        "990000": "990000",
        "990100": "990100",
        "990101": "990101",
        "990102": "990101",
        "990103": "990103",
    }


# -- what is wrong with a mapping ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "mapping"),
    [
        ("unknown-code-table", ColumnMapping(table="gbt9999@2003")),
        ("unknown-version", ColumnMapping(table="gbt2261.1@1980")),
        ("not-in-table", ColumnMapping(table="gbt2261.1@2003", values={"男": "3"})),
        (
            "not-in-table",
            ColumnMapping(table="gbt2260.provinces@2007", values={"x": "50"}, as_of=date(1990, 1, 1)),
        ),
        ("mapped-twice", ColumnMapping(table="gbt2261.1@2003", values={"M": "1", "Ｍ": "2"})),
        ("mapped-twice", ColumnMapping(table="gbt2261.1@2003", values={"男": "1", "男 ": "2"})),
        ("no-areas", ColumnMapping(table="gbt2261.1@2003", level="county")),
    ],
)  # fmt: skip
def test_a_mapping_that_cannot_be_meant_is_refused(code: str, mapping: ColumnMapping) -> None:
    error = refused(mapping)
    assert error.code == code
    assert error.hint
    assert "男" not in str(error)


def test_two_spellings_of_one_value_with_one_code_are_no_contradiction() -> None:
    assert mapped(["M", "Ｍ"], ColumnMapping(table="gbt2261.1@2003", values={"M": "1", "Ｍ": "1"})) == (
        ["1", "1"],
        0,
    )


@pytest.mark.parametrize(
    "plain",
    [
        {},
        {"table": "gbt2261.1"},
        {"table": "gbt2261.1@2003", "extra": 1},
        {"table": "gbt2261.1@2003", "values": {"男": 1}},
        {"table": "gbt2261.1@2003", "values": {"男": ""}},
        {"table": "gbt2261.1@2003", "default": "drop"},
        {"table": "gbt2261.1@2003", "as_of": "2014-13-01"},
        {"table": "gbt2261.1@2003", "level": "village"},
    ],
)
def test_a_mapping_is_read_strictly(plain: object) -> None:
    with pytest.raises(DecodeError) as caught:
        ColumnMapping.from_json(plain)
    assert caught.value.code == "bad-mapping"


def test_a_mapping_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "people.toml"
    path.write_text(
        '[mapping.sex]\ntable = "gbt2261.1@2003"\n[mapping.sex.values]\n"男" = "1"\n"" = "9"\n'
        '[mapping.area]\ntable = "demo-city.areas@2026"\nas_of = 2026-01-01\nlevel = "county"\n',
        encoding="utf-8",
    )
    description = read_description(path)
    assert description.mapping == {
        "sex": ColumnMapping(table="gbt2261.1@2003", values={"男": "1", "": "9"}),
        "area": ColumnMapping(table="demo-city.areas@2026", as_of=date(2026, 1, 1), level="county"),
    }
    assert Description.from_json(description.to_json()) == description
    for each in description.mapping.values():
        assert ColumnMapping.from_json(each.to_json()) == each


# -- a department's own tables -------------------------------------------------------------------------------


def test_a_table_that_changed_is_another_version_and_the_old_may_stay_beside_it(codes: Path) -> None:
    [first] = known_tables(codes).named("districts")
    mapping = ColumnMapping(table=first.id)
    path = codes / "districts.csv"
    path.rename(codes / "districts@2025.csv")
    path.write_text(DISTRICTS + "990105,北区,2026-01-01,,\n", encoding="utf-8")
    assert len(known_tables(codes).named("districts")) == 2
    assert translator(mapping, known_tables(codes)).code("990105") is None
    (codes / "districts@2025.csv").unlink()
    assert refused(mapping, known_tables(codes)).code == "unknown-version"


@pytest.mark.parametrize("name", ["gbt2261.1.csv", "Districts.csv", "a b.csv"])
def test_a_table_of_ones_own_does_not_take_a_national_name(codes: Path, name: str) -> None:
    (codes / name).write_text("code,title\n1,x\n")
    with pytest.raises(InputError) as caught:
        known_tables(codes)
    assert caught.value.code == "bad-code-table"
    assert str(codes) not in str(caught.value)


def test_a_table_that_is_not_text_is_refused_and_one_that_nobody_asked_for_is_not_read(codes: Path) -> None:
    (codes / "bad.csv").write_bytes(b"code,title\n1,\xd5\xc5\n")
    assert known_tables(codes, {"districts"}).named("districts")
    with pytest.raises(InputError) as caught:
        known_tables(codes)
    assert caught.value.code == "bad-code-table"


def test_without_a_folder_the_national_tables_are_there(tmp_path: Path) -> None:
    assert [t.id for t in known_tables(tmp_path / "gone")] == [t.id for t in known_tables(None)]


# -- sources -------------------------------------------------------------------------------------------------


def test_a_mapped_source_changes_its_mapped_columns_and_nothing_else() -> None:
    table = pa.table({"id": ["1", "2", "3"], "c": pa.array([1, 5, None]), "n": pa.array([1, 2, 3])})
    kept = Kept(table, rows=2)
    source = MappedSource(kept, [translator()])
    with source as opened:
        assert opened is source
        assert kept.opened == 1
        assert [c.type for c in source.columns()] == ["other", "text", "other"]
        assert pa.Table.from_batches(source.read(["n", "c"])).to_pydict() == {
            "n": [1, 2, 3],
            "c": ["1", None, None],
        }
        assert source.unmapped == {"c": 1}
        assert pa.Table.from_batches(source.read(["n"])).column_names == ["n"]
        list(source.read(["c"]))
        assert source.unmapped == {"c": 1}  # of the last reading
        assert source.snapshot() == kept.snapshot()
    assert kept.opened == 0
    assert unmapped_of(source) == {"c": 1}
    assert unmapped_of(kept) == {}


@pytest.mark.long
def test_a_mapped_source_conforms(tmp_path: Path) -> None:
    keep = ColumnMapping(table="gbt2261.1@2003", default="keep")

    def make(folder: Path, table: pa.Table) -> tuple[Source, Drop]:
        path = folder / "t.parquet"
        pq.write_table(table, path, row_group_size=4096)
        by = [Translator(name, keep, NATIONAL) for name in table.column_names if name == "Month"]
        return MappedSource(open_source(FilePlace(path), SMALL), by), path.unlink

    check_source(make, tmp_path)


def test_a_source_without_a_mapping_is_itself() -> None:
    kept = Kept(pa.table({"c": ["1"]}))
    assert mapped_source(kept, {}, None) is kept


def test_another_mapping_or_another_table_is_another_state_of_the_data(codes: Path) -> None:
    kept = Kept(pa.table({"c": ["1"]}))

    def fingerprint(mapping: ColumnMapping) -> str:
        return mapped_source(kept, {"c": mapping}, codes).fingerprint()

    other = ColumnMapping(table="gbt2261.1@2003", values={"男": "1"})
    assert fingerprint(SEX) == fingerprint(SEX)
    assert len({kept.fingerprint(), fingerprint(SEX), fingerprint(other)}) == 3


def test_a_mapping_of_a_column_that_does_not_exist_is_refused() -> None:
    source = MappedSource(Kept(pa.table({"sex": ["1"], "d": ["x"]})), [Translator("sec", SEX, NATIONAL)])
    for act in (source.columns, lambda: source.read(["d"])):
        with pytest.raises(InputError) as caught:
            act()
        assert caught.value.code == "unknown-column"
        assert "closest: sex" in caught.value.message


def test_a_survey_counts_what_a_reading_would() -> None:
    values = ["男", "x", None, "y", "y", " "] * 700
    kept = Kept(pa.table({"c": values}))
    [found] = survey(kept, [translator()]).values()
    assert (found.rows, found.missing, found.unmapped) == (4200, 1400, 2100)
    assert found.values == {"x": 700, "y": 1400}
    assert found.shown(1000, areas=None) == [("y", 1400)]


def test_a_survey_tells_no_more_different_values_apart_than_it_has_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("node.mapping.MAX_COUNTED", 5)
    [found] = survey(Kept(pa.table({"c": [f"v{n}" for n in range(50)]})), [translator()]).values()
    assert (found.unmapped, len(found.values), found.more) == (50, 5, True)


def test_what_is_too_long_to_be_mapped_is_unmapped_and_remembered_nowhere() -> None:
    by = translator()
    long = [f"{n}" + "x" * 5_000 for n in range(50)]
    column = pa.array([*long, "男" + " " * 5_000, " " * 5_000, "男"])
    codes, unmapped = translated(column, by)
    assert codes.to_pylist() == [None] * 50 + ["1", None, "1"]
    assert unmapped == 50
    kept = [*by._seen, *survey(Kept(pa.table({"c": column})), [by])["c"].values]
    assert max(map(len, kept)) <= MAX_LOCAL + 1
    assert max(map(len, values_of(Kept(pa.table({"c": column})), "c")[0])) <= MAX_LOCAL + 1


def test_a_mapping_lists_no_more_values_than_it_may() -> None:
    values = {str(n): "1" for n in range(MAX_VALUES + 1)}
    with pytest.raises(DecodeError) as caught:
        ColumnMapping.from_json({"table": "gbt2261.1@2003", "values": values})
    assert caught.value.code == "bad-mapping"


def test_a_column_that_keeps_other_values_has_no_code_table_for_others() -> None:
    for default, table in (("null", "gbt2261.1@2003"), ("keep", None)):
        plain = {"mapping": {"sex": {"table": "gbt2261.1@2003", "default": default}}}
        assert Description.from_json(plain).code_table("sex") == table


# -- commands ------------------------------------------------------------------------------------------------


def described(world: World, name: str, dataset: str, path: Path, text: str) -> None:
    """Register a file with a description."""
    description = world.folder / "description.toml"
    description.write_text(text, encoding="utf-8")
    state = world.open(name)
    register(state, scanned(path, dataset, read_description(description)))
    state.close()


def command(world: World, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    code = main([*words, "--home", str(world.homes["health"].path)])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    assert printed.err == ""
    return printed.out


def dirty_list(world: World) -> Path:
    """Write a list with odd free texts in a coded column, some of them with an identifier."""
    values = ["男"] * 40 + ["女"] * 30 + ["1"] * 20 + ["未填"] * 15 + ["外星人"] * 3 + [""] * 5
    values += [SECRET] * 12 + [f"{SECRET[:9]} {SECRET[9:]}"] * 12 + [f"张三{SECRET}"] + ["13900001234"] * 20
    path = world.folder / "dirty.csv"
    rows = [f"{person(n)},{value}" for n, value in enumerate(values)]
    path.write_text("id,sex\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return path


MAP_SEX = '[mapping.sex]\ntable = "gbt2261.1@2003"\n[mapping.sex.values]\n"男" = "1"\n"女" = "2"\n'


def test_what_a_mapping_leaves_unmapped_is_shown_to_the_engineer_and_no_person_is(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    described(world, "health", "dirty", dirty_list(world), MAP_SEX)
    text = command(world, capsys, "mapping", "check", "dirty")
    assert "sex → gbt2261.1@2003: 58.8 % of 153 values mapped, 5 missing" in text
    assert "63 rows, 6 different values" in text
    assert "        15  未填" in text
    assert "not shown: 5" in text
    [column] = json.loads(command(world, capsys, "mapping", "check", "dirty", "--json"))["columns"].values()
    assert column["shown"] == [{"value": "未填", "rows": 15}]
    assert (column["unmapped"], column["unmapped_values"], column["hidden"]) == (63, 6, 5)
    for printed in (text, json.dumps(column, ensure_ascii=False)):
        assert not any(word in printed for word in ("外星人", "张三", SECRET, SECRET[:9], "13900001234"))
    for file in world.homes["health"].path.rglob("*.log"):
        assert "未填" not in file.read_text("utf-8")


@pytest.mark.parametrize(
    ("value", "areas", "shown"),
    [
        ("未填", False, True),
        ("1234567890", False, True),
        ("139-0000-1234", False, False),
        ("１３９００００１２３４", False, False),
        (f"{SECRET[:6]}.{SECRET[6:14]}_{SECRET[14:]}", True, False),
        ("990101001001", True, True),
        ("990101001001", False, False),
        ("138001380012", True, False),
        ("861380013800", True, False),
        ("长" * 65, False, False),
        ("长" * 65_000, False, False),
    ],
)
def test_a_value_that_could_be_a_persons_number_is_not_shown(value: str, areas: bool, shown: bool) -> None:
    assert may_be_shown(value, areas=NATIONAL["demo-city.areas@2026"] if areas else None) is shown


def test_a_draft_proposes_what_words_of_registers_stand_for(
    world: World, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    described(world, "health", "dirty", dirty_list(world), "")
    words = ("mapping", "draft", "dirty", "sex", "--table", "gbt2261.1@2003")
    drafted = command(world, capsys, *words)
    assert '"男" = "1"  # 40 rows\n"女" = "2"  # 30 rows\n' in drafted
    assert '# "未填" = ""  # 15 rows: which code?' in drafted
    assert SECRET not in drafted
    assert "外星人" not in drafted
    path = tmp_path / "drafted.toml"
    path.write_text(drafted, encoding="utf-8")
    assert read_description(path).mapping["sex"].values == {"男": "1", "女": "2"}
    plain = json.loads(command(world, capsys, *words, "--json"))
    assert plain["toml"] == drafted
    assert plain["hidden"] == 5
    assert SECRET not in json.dumps(plain)


def test_known_tables_and_their_codes_are_shown(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    folder = world.homes["health"].path / "codes"
    folder.mkdir()
    (folder / "districts.csv").write_text(DISTRICTS, encoding="utf-8")
    listed = json.loads(command(world, capsys, "mapping", "codes", "--json"))["tables"]
    [own] = [each for each in listed if each["id"].startswith("districts@")]
    assert own["codes"] == 6
    assert "990102  西区, until 2014-02-12, then 990101" in command(
        world, capsys, "mapping", "codes", "districts"
    )
    assert "  1  男性" in command(world, capsys, "mapping", "codes", "gbt2261.1@2003")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("check", "people"), "no column"),
        (("check", "gone"), "no dataset"),
        (("draft", "people", "gone", "--table", "gbt2261.1@2003"), "no column gone"),
        (("draft", "people", "street", "--table", "gone"), "no code table"),
    ],
)
def test_a_command_says_what_is_missing(
    world: World, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], code: str
) -> None:
    assert main(["mapping", *words, "--home", str(world.homes["health"].path)]) == 1
    printed = capsys.readouterr()
    assert code in printed.err
    assert "hint: " in printed.err


def test_a_description_with_a_wrong_mapping_registers_nothing(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = world.folder / "wrong.toml"
    path, home = dirty_list(world), str(world.homes["health"].path)
    for text, says in (
        (MAP_SEX.replace('"2"', '"7"'), "not in gbt2261.1@2003"),
        (MAP_SEX.replace("2261.1", "2261.9"), "no code table"),
        (MAP_SEX.replace("sex", "sec"), "no column sec, closest: sex"),
    ):
        wrong.write_text(text, encoding="utf-8")
        words = ["--key", "id", "--description", str(wrong), "--home", home]
        assert main(["dataset", "add", "dirty", str(path), *words]) == 1
        assert says in capsys.readouterr().err
    assert "dirty" not in command(world, capsys, "dataset", "list")


# -- a job ---------------------------------------------------------------------------------------------------


WORDS = {"police": ("男", "女"), "human-resources": ("Ｍ", "f "), "health": ("1", "2")}
MAPPINGS = {
    "police": {"男": "1", "女": "2"},
    "human-resources": {"M": "1", "F": "2", "f": "2"},
    "health": {},
}


class CodedWorld(TableWorld):
    """Three departments that write sex in three ways: 20 men, 15 women, 5 of unknown sex each."""

    def policy_of(self, name: str, **changes: Any) -> str:
        text = (
            super().policy_of(name, **changes).replace('columns = ["street",', 'columns = ["sex", "street",')
        )
        return text.replace(
            "street = { type",
            'sex = { type = "enum", use = ["group"], values = ["1", "2"] }\nstreet = { type',
        )

    def _furnish(self, name: str) -> None:
        super()._furnish(name)
        if name not in WORDS:
            return
        man, woman = WORDS[name]
        first = 400 + 1000 * [*WORDS].index(name)
        path = self.folder / f"{name}-coded.csv"
        rows = [
            f"{person(first + n)},{value}" for n, value in enumerate([man] * 20 + [woman] * 15 + ["?"] * 5)
        ]
        path.write_text("id,sex\n" + "\n".join(rows) + "\n", encoding="utf-8")
        state = self.open(name)
        state_of = Description(mapping={"sex": ColumnMapping(table="gbt2261.1@2003", values=MAPPINGS[name])})
        register(state, scanned(path, "cases", state_of))
        state.close()


def scanned(path: Path, name: str, description: Description) -> Dataset:
    return catalogue.scan(
        name,
        FilePlace(path),
        title="",
        key="id",
        published_keys=None,
        access=Access(),
        today=START.date(),
        description=description,
    )


def test_departments_that_write_sex_in_three_ways_make_one_right_table(memory: Path) -> None:
    world = CodedWorld(memory / "coded")

    async def play() -> None:
        async with running(world) as (post, _):
            params = {"axes": [{"slot": "sex", "values": ["1", "2"]}], "measures": None}
            job = post.submit(world.table(params=params, columns={"sex": "sex"}))
            task = await answered(post, job)
            assert {verdict.answer for verdict in task.verdicts.values()} == {"permit"}, task.verdicts
            task = await over(post, job)
            assert {end.state for end in task.ended.values()} == {"DONE"}, task.ended
            [release] = post.tasks[job].uploads
            sealed = post.release(job)
            opened = suites.open_sealed(2, world.analyst_private, release_info(release, job), sealed)
            rows = decode_content(opened)[0].to_pylist()
            assert {row["sex"]: row["value"] for row in rows} == {"1": 60, "2": 45, "": 105}

    asyncio.run(play())
