"""Tables of area codes."""

import dataclasses

import pytest

from protocols.errors import InputError
from protocols.identifiers import AreaTable, demo_area_table, province_area_table


def _codes(table):
    return [f"{code:06d}" for code in table.listed.nonzero()[0]]


def test_the_demo_table_lists_eleven_fictional_districts():
    assert _codes(demo_area_table()) == [str(code) for code in range(990101, 990112)]


def test_the_shipped_table_knows_the_31_mainland_provinces_and_only_provinces():
    table = province_area_table()
    assert int(table.provinces().sum()) == 31
    assert int(table.listed.sum()) == 31 * 10_000
    for code in ("110105", "460100", "500101", "659004"):
        assert table.listed[int(code)]
    for code in ("000000", "160000", "710000", "810000", "820000", "830000", "911124", "990101"):
        assert not table.listed[int(code)]


def test_prefixes_list_everything_below_them():
    table = AreaTable.of(["4401", "990101"])
    assert _codes(table) == [f"4401{rest:02d}" for rest in range(100)] + ["990101"]
    assert table.provinces().nonzero()[0].tolist() == [44, 99]


def test_tables_are_equal_when_they_list_the_same_codes():
    one, other = AreaTable.of(["990102", "990101"]), AreaTable.of(["990101", "990102", "990101"])
    assert one == other
    assert hash(one) == hash(other)
    assert one.digest == other.digest
    assert one != AreaTable.of(["990101"])
    assert one != "990101"


def test_a_table_cannot_be_changed():
    table = demo_area_table()
    with pytest.raises(ValueError, match="read-only"):
        table.listed[0] = True
    with pytest.raises(dataclasses.FrozenInstanceError):
        table.digest = ""


def test_a_table_is_read_from_the_text_of_a_published_list():
    text = (
        "\ufeff# code,name\r\n440103,荔湾区\r\n\r\n  440104 越秀区\r\n440105\t海珠区\r\n440106;天河区\n# end"
    )
    assert AreaTable.parse(text) == AreaTable.of(["440103", "440104", "440105", "440106"])


@pytest.mark.parametrize(
    "codes", [["44010"], ["440103", "x40103"], ["４４０１０３"], [""], ["4401031"], ["440103\n"]]
)
def test_a_code_that_is_none_is_refused_by_its_place(codes):
    with pytest.raises(InputError, match=f"number {len(codes)} ") as refused:
        AreaTable.of(codes)
    assert refused.value.code == "bad-area-table"


@pytest.mark.parametrize("make", [lambda: AreaTable.of([]), lambda: AreaTable.parse("# nothing\n\n")])
def test_a_table_without_codes_is_refused(make):
    with pytest.raises(InputError, match="at least one"):
        make()


def test_a_header_line_is_refused_rather_than_skipped():
    with pytest.raises(InputError, match="number 1 "):
        AreaTable.parse("code,name\n440103,荔湾区\n")
