"""Codes and names of areas on five levels."""

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.codes import (
    DEMO_AREAS,
    GBT2260_PROVINCES,
    GBT2261_2,
    LEVELS,
    Address,
    Areas,
    Code,
    CodeTable,
    area_code,
    at_level,
    level_of,
    parent_of,
)
from protocols.errors import InputError

MERGED = date(2014, 2, 12)
TOWN = Areas(
    CodeTable.of(
        "town",
        "",
        "城",
        [
            Code("420000", "湖北省"),
            Code("421000", "荆州市"),
            Code("421002", "沙市区"),
            Code("421003", "荆州区"),
            Code("421003001", "西城街道"),
            Code("421003001001", "西城社区"),
            Code("429000", "省直辖县级行政区划"),
            Code("429004", "仙桃市"),
            Code("440000", "广东省"),
            Code("440100", "广州市"),
            Code("440112", "黄埔区"),
            Code("440116", "萝岗区", valid_to=MERGED, successor="440112"),
            Code("441900", "东莞市"),
            Code("110000", "北京市"),
            Code("110100", "市辖区"),
            Code("110105", "朝阳区"),
        ],
    )
)


@pytest.mark.parametrize(
    ("text", "code", "level", "parent"),
    [
        ("44", "440000", "province", None),
        ("4401", "440100", "city", "440000"),
        ("440103", "440103", "county", "440100"),
        ("440103001", "440103001", "street", "440103"),
        ("440103001002", "440103001002", "community", "440103001"),
        ("440103001000", "440103001", "street", "440103"),
        ("440103000000", "440103", "county", "440100"),
        ("440000000000", "440000", "province", None),
        ("441900003", "441900003", "street", "441900"),  # a city without counties
        ("441900003001", "441900003001", "community", "441900003"),
        ("440103000001", "440103000001", "community", "440103"),  # a community in no street
    ],
)
def test_a_code_has_one_form_a_level_and_a_place(text, code, level, parent):
    assert area_code(text) == code
    assert level_of(code) == level
    assert parent_of(code) == parent


@pytest.mark.parametrize(
    "text", ["", "4", "440", "44010", "044010", "4401030", "44010３", "440103 ", "x40103"]
)
def test_what_is_no_code_has_no_form(text):
    assert area_code(text) is None


@pytest.mark.parametrize(
    ("code", "rolled"),
    [
        ("440103001002", ["440000", "440100", "440103", "440103001", "440103001002"]),
        ("440103", ["440000", "440100", "440103", None, None]),
        ("441900003", ["440000", "441900", "441900", "441900003", None]),
        ("440000", ["440000", None, None, None, None]),
    ],
)
def test_codes_roll_up(code, rolled):
    assert [at_level(code, level) for level in LEVELS] == rolled


@given(st.from_regex(r"[1-9][0-9]{11}", fullmatch=True))
def test_rolling_up_is_what_taking_parents_comes_to(text):
    code = area_code(text)
    assert code is not None
    assert area_code(code) == code
    line = [code]
    while (above := parent_of(line[-1])) is not None:
        line.append(above)
    assert LEVELS.index(level_of(line[-1])) == 0
    levels = [LEVELS.index(level_of(each)) for each in line]
    assert levels == sorted(set(levels), reverse=True)
    for level in LEVELS[: levels[0] + 1]:
        assert at_level(code, level) in line


@pytest.mark.parametrize(
    ("code", "as_of", "level"),
    [
        ("421003001001", None, None),
        ("421003001002", None, "community"),
        ("421003002001", None, "street"),
        ("421004001001", None, "county"),
        ("425003001001", None, "city"),
        ("990101", None, "province"),
        ("440116", None, None),
        ("440116", date(2014, 2, 11), None),
        ("440116", MERGED, "county"),
    ],
)
def test_each_level_is_checked_from_the_top(code, as_of, level):
    assert TOWN.first_unlisted(code, as_of) == level


def test_a_table_judges_only_the_levels_that_it_lists():
    assert Areas(GBT2260_PROVINCES).first_unlisted("440103001") is None
    assert Areas(GBT2260_PROVINCES).first_unlisted("490103001") == "province"
    assert Areas(DEMO_AREAS).first_unlisted("990112") == "county"


def test_a_table_of_something_else_is_no_table_of_areas():
    with pytest.raises(InputError) as caught:
        Areas(GBT2261_2)
    assert caught.value.code == "no-areas"


@pytest.mark.parametrize(
    ("text", "names", "code"),
    [
        ("湖北省荆州市荆州区西城街道西城社区", "湖北省 荆州市 荆州区 西城街道 西城社区", "421003001001"),
        (" 湖北省 荆州市　荆州区 ", "湖北省 荆州市 荆州区 - -", "421003"),
        # Its name has that of a city within: only the table knows.
        ("湖北省荆州市沙市区", "湖北省 荆州市 沙市区 - -", "421002"),
        ("湖北省仙桃市", "湖北省 - 仙桃市 - -", "429004"),
        ("北京市朝阳区", "北京市 - 朝阳区 - -", "110105"),
        ("北京市市辖区朝阳区", "北京市 市辖区 朝阳区 - -", "110105"),
        ("广东省广州市萝岗区", "广东省 广州市 萝岗区 - -", "440116"),  # as it was called then
        ("广东省", "广东省 - - - -", "440000"),
    ],
)
def test_an_address_is_taken_apart_by_the_table(text, names, code):
    expected = ["" if name == "-" else name for name in names.split()]
    assert TOWN.split(text) == Address(tuple(expected), code)  # type: ignore[arg-type]  # five names


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("广东省广州市越秀区东湖街道东湖社区", "广东省 广州市 越秀区 东湖街道 东湖社区"),
        ("北京市朝阳区建外街道永安里社区", "北京市 - 朝阳区 建外街道 永安里社区"),
        ("北京市北京市朝阳区建外街道", "北京市 北京市 朝阳区 建外街道 -"),
        (
            "内蒙古自治区呼伦贝尔市鄂温克族自治旗巴彦塔拉乡东村",
            "内蒙古自治区 呼伦贝尔市 鄂温克族自治旗 巴彦塔拉乡 东村",
        ),
        ("湖南省长沙市长沙县星沙街道望仙村委会", "湖南省 长沙市 长沙县 星沙街道 望仙村委会"),
    ],
)
def test_below_what_the_table_lists_names_end_as_names_of_their_level_do(text, names):
    found = Areas(GBT2260_PROVINCES).split(text)
    assert found is not None
    assert list(found.names) == ["" if name == "-" else name for name in names.split()]
    assert level_of(found.code) == "province"


@pytest.mark.parametrize(
    "text", ["", "荆州区", "湖北省荆州市东区", "湖北省荆州市荆州区西城街道西城社区5号", "x" * 129]
)
def test_what_is_no_address_of_the_table_is_not_guessed(text):
    assert TOWN.split(text) is None


RECODED = date(2015, 3, 1)
AGAIN = date(2020, 1, 1)


def island(*codes: Code) -> Areas:
    return Areas(
        CodeTable.of(
            "island", "", "岛", [Code("460000", "海南省"), Code("469000", "省直辖县级行政区划"), *codes]
        )
    )


@pytest.mark.parametrize(
    "codes",
    [
        [("460025", None, RECODED, "469021"), ("469021", RECODED, None, "")],
        [("469021", None, RECODED, "460025"), ("460025", RECODED, None, "")],
        [
            ("469021", RECODED, AGAIN, "460022"),
            ("460025", None, RECODED, "469021"),
            ("460022", AGAIN, None, ""),
        ],
        # Abolished, and come back.
        [
            ("460025", AGAIN, None, ""),
            ("469021", RECODED, AGAIN, "460025"),
            ("460025", None, RECODED, "469021"),
        ],
    ],
)
def test_an_area_that_got_another_code_is_found_by_its_name_on_every_day(codes):
    listed = [Code(code, "定安县", start, end, successor) for code, start, end, successor in codes]
    areas = island(*listed)
    assert areas.split("海南省定安县") is None  # of no day
    found = areas.split("海南省定安县", recoded=True)
    assert found is not None
    assert found.names == ("海南省", "", "定安县", "", "")
    for day in (date(2014, 1, 1), RECODED, date(2019, 12, 31), AGAIN, date(2026, 1, 1)):
        [expected] = [each.code for each in listed if each.in_force(day)]
        assert areas.table.as_of(found.code, day) == expected


def test_two_areas_of_one_name_that_do_not_follow_each_other_stay_two():
    other = Code("469021", "定安县")
    assert island(Code("460025", "定安县", None, RECODED), other).split("海南省定安县", recoded=True) is None
    town = Code("469030", "文昌市")
    merged = [Code(code, "定安县", None, RECODED, "469030") for code in ("460025", "469021")]
    assert island(*merged, town).split("海南省定安县", recoded=True) is None


def test_what_can_be_taken_apart_in_two_ways_or_in_none_is_not():
    areas = Areas(GBT2260_PROVINCES)
    texts = ["湖北省荆州市沙市区崇文街道金龙社区", "湖北省荆州市", "某省某市", " ", "广东省广州市越秀区"]
    assert [areas.split(text) is not None for text in texts] == [False, True, False, False, True]


@given(st.text(alphabet="省市区县镇乡街道社村东", max_size=40))
def test_names_taken_apart_add_up_to_the_address(text):
    found = Areas(GBT2260_PROVINCES).split("广东省" + text)
    assert found is None or "".join(found.names) == "广东省" + text
