"""Check digits and numbers made from their parts."""

import sys
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import InputError
from protocols.identifiers import (
    check_digit,
    demo_area_table,
    normalise,
    resident_id,
    resident_id_check_digits,
)

sys.path.insert(0, str(Path(__file__).parent))
from identifier_oracle import mod_11_2  # beside this file: the tests folder is no package

bodies = st.text("0123456789", min_size=17, max_size=17)


def _rows(texts):
    return np.frombuffer("".join(texts).encode(), dtype=np.uint8).reshape(-1, 17)


@pytest.mark.parametrize(
    ("body", "check"),
    [
        ("11010519491231002", "X"),
        ("44052418800101001", "4"),
        ("0" * 17, "1"),
        ("9" * 17, "3"),
    ],  # sums 0 and 900
)
def test_the_specimens_of_gb_11643_have_their_check_digits(body, check):
    assert check_digit(body) == check
    assert resident_id_check_digits(_rows([body])).tobytes() == check.encode()


@given(st.lists(bodies, max_size=20))
def test_check_digits_agree_with_the_recursive_form_of_iso_7064(texts):
    expected = [mod_11_2(text) for text in texts]
    assert resident_id_check_digits(_rows(texts)).tobytes().decode() == "".join(expected)
    assert [check_digit(text) for text in texts] == expected


@given(bodies, st.integers(0, 16), st.integers(1, 9))
def test_one_wrong_digit_always_changes_the_check(body, at, by):
    wrong = body[:at] + str((int(body[at]) + by) % 10) + body[at + 1 :]
    assert check_digit(wrong) != check_digit(body)


@given(bodies, st.integers(0, 15))
def test_two_exchanged_neighbours_always_change_the_check(body, at):
    exchanged = body[:at] + body[at + 1] + body[at] + body[at + 2 :]
    assert (check_digit(exchanged) != check_digit(body)) == (body[at] != body[at + 1])


@given(st.integers(990101, 990111), st.dates(date(1905, 1, 1), date(2025, 6, 1)), st.integers(0, 999))
def test_a_number_made_from_its_parts_is_accepted_as_it_is(area, born, sequence):
    number = resident_id(str(area), born, sequence)
    typed = normalise(pa.array([number]), "resident-id", as_of=date(2025, 6, 1), areas=demo_area_table())
    assert typed.keys.tolist() == [f"RIC:{number}".encode()]
    assert number[:17] == f"{area}{born:%Y%m%d}{sequence:03d}"


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((2, 16), dtype=np.uint8),
        np.zeros(17, dtype=np.uint8),
        np.zeros((2, 17), dtype=np.int64),
        np.arange(17, dtype=np.uint8)[np.newaxis],
        np.full((1, 17), ord("X"), dtype=np.uint8),
    ],
    ids=["sixteen", "one dimension", "int64", "values instead of ASCII", "letters"],
)
def test_bodies_that_are_no_ascii_digits_are_refused(wrong):
    with pytest.raises(InputError):
        resident_id_check_digits(wrong)


@pytest.mark.parametrize("body", ["", "1" * 16, "1" * 18, "1" * 16 + "X", "１" * 17, "²" * 17])
def test_a_body_that_is_not_seventeen_digits_is_refused_without_showing_it(body):
    with pytest.raises(InputError) as refused:
        check_digit(body)
    assert "1111" not in refused.value.message


@pytest.mark.parametrize(
    ("area", "sequence"), [("99010", 1), ("9901011", 1), ("99010A", 1), ("990101", 1000), ("990101", -1)]
)
def test_parts_that_do_not_fit_are_refused(area, sequence):
    with pytest.raises(InputError):
        resident_id(area, date(1990, 1, 1), sequence)
