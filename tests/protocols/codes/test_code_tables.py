"""Code tables: what they refuse, which version is which, and what became of a code."""

from datetime import date

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.catalogue import Definition
from protocols.codes import (
    DEFINITIONS,
    GBT2260_PROVINCES,
    GBT2261_1,
    GBT2261_2,
    NATIONAL,
    Code,
    CodeTable,
    CodeTables,
    cited,
    normalise_value,
    read_code_table,
)
from protocols.codes.record import decode_record, encode_record
from protocols.encoding import canonical_json
from protocols.errors import DecodeError, InputError
from protocols.identifiers import MARITAL, SEX, province_area_table
from protocols.ids import Digest

MERGED = date(2014, 2, 12)
AGAIN = date(2020, 6, 1)
DISTRICTS = (
    Code("990101", "东区"),
    Code("990102", "西区", valid_to=MERGED, successor="990101"),
    Code("990103", "新区", valid_from=MERGED, valid_to=AGAIN, successor="990104"),
    Code("990104", "大区", valid_from=AGAIN),
    Code("990105", "旧县", valid_to=date(2005, 1, 1), successor="990102"),
    Code("990106", "分县", valid_to=MERGED),  # divided among several
)


def table(codes: tuple[Code, ...] = DISTRICTS) -> CodeTable:
    return CodeTable.of("districts", "", "区", codes)


def refused(act: object, *arguments: object) -> InputError:
    with pytest.raises(InputError) as caught:
        act(*arguments)  # type: ignore[operator]  # a function, in every case
    return caught.value


# -- national tables -----------------------------------------------------------------------------------------


def test_national_tables_are_named_by_standard_and_year():
    assert [t.id for t in NATIONAL] == [
        "gbt2261.1@2003",
        "gbt2261.2@2003",
        "gbt2260.provinces@2007",
        "demo-city.areas@2026",
    ]
    assert list(GBT2261_1.titles) == ["0", "1", "2", "9"]
    assert list(GBT2261_2.titles) == ["10", "20", "21", "22", "23", "30", "40", "90"]
    assert (GBT2261_1.titles, GBT2261_2.titles) == (SEX, MARITAL)


def test_there_are_34_provinces_of_which_31_number_residents():
    codes = GBT2260_PROVINCES.titles
    assert len(codes) == len(set(codes.values())) == 34
    mainland = {f"{number:02d}0000" for number in province_area_table().provinces().nonzero()[0]}
    assert set(codes) - mainland == {"710000", "810000", "820000"}


def test_a_province_is_in_force_from_its_first_day_on():
    before, on = date(1997, 3, 13), date(1997, 3, 14)
    assert GBT2260_PROVINCES.as_of("500000", before) is None
    assert GBT2260_PROVINCES.as_of("500000", on) == "500000"
    assert len(GBT2260_PROVINCES.in_force(before)) == 31
    assert len(GBT2260_PROVINCES.in_force(date(2026, 1, 1))) == 34


# -- time ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "day", "found"),
    [
        ("990101", date(1990, 1, 1), "990101"),
        ("990102", date(2014, 2, 11), "990102"),
        ("990102", MERGED, "990101"),
        ("990105", date(2004, 12, 31), "990105"),
        ("990105", date(2010, 1, 1), "990102"),
        ("990105", date(2026, 1, 1), "990101"),  # the successor of its successor
        ("990103", date(2013, 1, 1), None),  # not yet
        ("990103", AGAIN, "990104"),
        ("990104", date(2015, 1, 1), None),
        ("990106", date(2014, 2, 11), "990106"),
        ("990106", MERGED, None),
        ("990199", MERGED, None),
    ],
)
def test_a_code_is_what_stands_for_it_on_a_day(code, day, found):
    assert table().as_of(code, day) == found


def test_a_code_that_came_back_is_itself_again_and_followed_in_between():
    codes = (
        Code("a", "甲", valid_to=date(2000, 1, 1), successor="b"),
        Code("b", "乙", valid_to=date(2010, 1, 1), successor="a"),
        Code("a", "新甲", valid_from=date(2010, 1, 1)),
    )
    back = CodeTable.of("back", "", "来回", codes)
    assert [back.as_of("a", date(year, 6, 1)) for year in (1999, 2005, 2015)] == ["a", "b", "a"]
    assert [back.as_of("b", date(year, 6, 1)) for year in (1999, 2005, 2015)] == ["b", "b", "a"]
    assert back.titles == {"a": "新甲", "b": "乙"}


_ERAS = st.lists(st.integers(0, 3), min_size=1, max_size=8)


@given(_ERAS, st.integers(0, 9))
def test_what_stands_for_a_code_is_in_force_and_reached_by_its_successors(picks, year):
    """Code n ends in 1990 + n and is followed by a later one; the last goes on."""
    last = len(picks)
    codes = [
        Code(str(n), "x", valid_to=date(1990 + n, 1, 1), successor=str(min(n + 1 + pick, last)))
        for n, pick in enumerate(picks)
    ]
    chain = CodeTable.of("chain", "", "x", [*codes, Code(str(last), "x")])
    day = date(1990 + year, 1, 1)
    for start in range(last + 1):
        here = start
        while here < last and day >= date(1990 + here, 1, 1):
            here = min(here + 1 + picks[here], last)
        assert chain.as_of(str(start), day) == str(here)


# -- versions ------------------------------------------------------------------------------------------------


def test_a_table_of_ones_own_has_its_content_for_a_version():
    ours, same = table(), table()
    other = table((*DISTRICTS[:-1], Code("990106", "分县")))
    assert ours.id == same.id
    assert ours.version == ours.digest[7:17]
    assert other.version != ours.version


def test_another_version_of_a_table_is_another_table():
    ours = table()
    tables = CodeTables([*NATIONAL, ours])
    assert tables[ours.id] is ours
    assert refused(tables.__getitem__, "districts").code == "unknown-version"
    error = refused(tables.__getitem__, "districts@0000000000")
    assert error.code == "unknown-version"
    assert ours.id in error.hint
    assert refused(tables.__getitem__, "gbt2261.1@1980").code == "unknown-version"
    assert refused(tables.__getitem__, "gbt9999@2003").code == "unknown-code-table"


def test_one_name_and_version_is_one_table():
    forged = CodeTable.of("gbt2261.1", "2003", "x", [Code("1", "女性"), Code("2", "男性")])
    assert refused(CodeTables, [*NATIONAL, forged]).code == "bad-code-table"


# -- files ---------------------------------------------------------------------------------------------------

CSV = (
    "\ufeffcode,title,valid_from,valid_to,successor\r\n"
    "990101,东区,,,\r\n"
    "990102,西区,,2014-02-12,990101\r\n"
    "\r\n"
    "990103,新区,2014-02-12,2020-06-01,990104\r\n"
    "990104,大区,2020-06-01,,\r\n"
    "990105,旧县,,2005-01-01,990102\r\n"
    "990106,分县,,2014-02-12,\r\n"
)


def test_a_table_is_read_from_a_file():
    assert read_code_table("districts", CSV).codes == DISTRICTS
    assert read_code_table("kinds", "title,code\n甲,01\n").titles == {"01": "甲"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "code\n1\n",
        "code,title,extra\n1,x,y\n",
        "code,title,code\n1,x,1\n",
        "code,title\n",
        "code,title\n1,x,y\n",
        "code,title\n,x\n",
        "code,title\n1,\n",
        "code,title\n１,x\n",
        "code,title\n1,x\x00\n",
        "code,title\n" + "1" * 65 + ",x\n",
        "code,title\n1,x\n1,y\n",
        'code,title\n"1,x\n',
        "code,title,valid_from\n1,x,2014-13-01\n",
        "code,title,valid_from\n1,x,20140101\n",
        "code,title,valid_from,valid_to\n1,x,2014-01-01,2014-01-01\n",
        "code,title,valid_to\n1,x,2014-01-01\n1,x,\n",
        "code,title,valid_to,successor\n1,x,2014-01-01,2\n",
        "code,title,valid_to,successor\n1,x,,2\n2,y,,\n",
        "code,title,valid_to,successor\n1,x,2014-01-01,2\n2,y,2014-01-01,\n",
        "code,title,valid_to,successor\n1,x,2014-01-01,2\n2,y,2013-01-01,1\n",
    ],
)
def test_a_file_that_is_no_table_is_refused_and_not_quoted(text):
    error = refused(read_code_table, "districts", text)
    assert error.code == "bad-code-table"
    assert error.hint
    assert "１" not in str(error)


def test_the_line_of_an_error_is_named():
    assert "line 3" in refused(read_code_table, "t", "code,title\n1,x\n2,y,z\n").message


# -- values --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("男", "男"),
        (" 男\u3000", "男"),
        ("\ufeffＭ\u200b", "M"),
        ("１", "1"),
        ("男 性", "男 性"),
        ("\u3000 ", ""),
    ],
)
def test_values_are_compared_in_one_spelling(text, normal):
    assert normalise_value(text) == normal


@given(st.text(max_size=12))
def test_a_compared_value_does_not_change_again(text):
    assert normalise_value(normalise_value(text)) == normalise_value(text)


# -- definitions ---------------------------------------------------------------------------------------------


def test_definitions_of_population_are_told_apart():
    assert len({each.text for each in DEFINITIONS.values()}) == 3
    for name, each in DEFINITIONS.items():
        assert each.name == name
        assert cited(Definition(id=each.id, version=each.version)) == each
        assert cited(each) == each
        assert msgspec.convert(msgspec.to_builtins(each), Definition) == each  # of the form a catalogue takes


def test_a_known_definition_is_cited_whole_and_not_rewritten():
    own = Definition(id="resident-180", version="2024", text="居住半年以上")
    assert cited(own) == own
    assert cited(Definition(id="resident-180", version="2024")).text is None
    another = Definition(id="resident-population", version="2020", text="居住半年以上")
    assert refused(cited, another).code == "other-definition"
    later = Definition(id="resident-population", version="2030")
    error = refused(cited, later)
    assert (error.code, "2020" in error.hint) == ("unknown-definition", True)
    own_version = Definition(id="resident-population", version="2030", text="第八次全国人口普查")
    assert cited(own_version) == own_version


# -- the record of a mapping ---------------------------------------------------------------------------------


def test_a_mapping_record_is_read_as_it_was_written_and_in_no_other_form():
    columns = {"sex": Digest("sha256:" + "ab" * 32), "婚姻": Digest("sha256:" + "cd" * 32)}
    assert decode_record(encode_record(columns)) == columns
    assert encode_record({}) == b""
    whole = {"schema": "minshu-mapping/1", "columns": dict(columns)}
    for wrong in (
        {**whole, "schema": "minshu-mapping/2"},
        {**whole, "extra": 1},
        {**whole, "columns": {}},
        {**whole, "columns": {"a b": columns["sex"]}},
        {**whole, "columns": {"sex": "ab"}},
        {**whole, "columns": {"sex": 1}},
        [],
    ):
        with pytest.raises(DecodeError):
            decode_record(canonical_json(wrong))
