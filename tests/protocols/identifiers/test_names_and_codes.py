"""Names in one spelling, and codes of sex and marital status."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.identifiers import MARITAL, SEX, Coded, marital_code, normalise_name, normalise_names, sex_code
from protocols.identifiers.names import _PAIRS


@pytest.mark.parametrize("dot", ["·", "•", "‧", "・", "．", "･", "∙", "⋅", ".", "․", "\u0387"])
def test_every_middle_dot_becomes_the_one_of_the_standard(dot):
    assert normalise_name(f"阿卜杜拉{dot}买买提") == "阿卜杜拉\u00b7买买提"


def test_nfkc_alone_would_leave_the_dots_apart():
    dots = ["•", "‧", "・"]
    assert [unicodedata.normalize("NFKC", dot) for dot in dots] == dots


@pytest.mark.parametrize(
    ("written", "compared"),
    [
        ("張 偉", "张伟"),
        (" 歐陽\u3000麗華\u200b ", "欧阳丽华"),
        ("劉\uf9f4", "刘林"),  # a compatibility ideograph
        ("ＭＡＲＹ ＡＮＮ", "MARYANN"),
        ("Jose\u200b\u0301", "José"),
        ("王小明", "王小明"),
        ("乾於瀋", "乾於瀋"),
        ("", ""),
    ],
)
def test_a_name_is_compared_in_one_spelling(written, compared):
    assert normalise_name(written) == compared


@given(st.text(max_size=12))
def test_a_compared_name_does_not_change_again(name):
    once = normalise_name(name)
    assert normalise_name(once) == once


def test_nulls_among_names_stay_nulls():
    assert normalise_names(["張偉", None, " "]) == ["张伟", None, ""]


def test_the_simplification_table_is_a_function_that_ends():
    traditional, simplified = _PAIRS[::2], _PAIRS[1::2]
    assert len(set(traditional)) == len(traditional)
    assert not set(traditional) & set(simplified)
    assert all(unicodedata.normalize("NFKC", character) == character for character in _PAIRS)


def test_code_tables_are_those_of_the_standards():
    assert sorted(SEX) == ["0", "1", "2", "9"]
    assert sorted(MARITAL) == ["10", "20", "21", "22", "23", "30", "40", "90"]
    with pytest.raises(TypeError):
        SEX["3"] = "?"


@pytest.mark.parametrize(
    ("value", "code"),
    [("男", "1"), (" 女性 ", "2"), ("m", "1"), ("１", "1"), ("0", "0"), ("未说明", "9"), ("未知的性别", "0")],
)
def test_sex_is_coded_by_gb_t_2261_1(value, code):
    assert sex_code(value) == code


@pytest.mark.parametrize("value", ["", "3", "男女", "male?"])
def test_a_word_that_is_no_sex_has_no_code(value):
    assert sex_code(value) is None


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("未婚", "10"),
        ("已婚", "20"),
        ("初婚", "21"),
        ("再婚", "22"),
        ("復婚", "23"),
        ("复婚", "23"),
        ("喪偶", "30"),
        ("丧偶", "30"),
        ("离异", "40"),
        ("離婚", "40"),
        ("２０", "20"),
        ("未說明", "90"),
        ("24", None),
        ("", None),
    ],
)
def test_marital_status_is_coded_by_gb_t_2261_2(value, code):
    assert marital_code(value) == (None if code is None else Coded(code))


@pytest.mark.parametrize("value", ["事实婚姻", " 事实 婚姻", "事實婚姻"])
def test_a_de_facto_marriage_is_never_a_registered_one(value):
    assert marital_code(value) == Coded("90", note="de-facto-marriage")
