"""Numbers of every stored form: their bin, their side of a bound, their whole units, exact."""

from datetime import date
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from protocols.errors import InputError
from protocols.tables import numbers

BOUNDS = st.lists(
    st.fractions(min_value=-1000, max_value=1000, max_denominator=1000), min_size=1, max_size=6, unique=True
).map(sorted)


def plain(value: Any) -> Fraction:
    """Return what a stored value says, exactly."""
    return Fraction(value.strip()) if isinstance(value, str) else Fraction(value)


def by_row(column: Any, work: Any) -> dict[int, Any]:
    found, _ = numbers.read(column, "age")
    return {int(row): item for some in found for row, item in zip(some.rows, work(some), strict=True)}


def check(column: Any, values: list[Any], bounds: list[Fraction], decimals: int) -> None:
    there = {row: plain(value) for row, value in enumerate(values) if value is not None}
    assert not numbers.read(column, "age")[1].any()
    reached = by_row(column, lambda some: numbers.passed(some, bounds))
    exceeded = by_row(column, lambda some: numbers.passed(some, bounds, beyond=True))
    assert reached == {row: sum(value >= bound for bound in bounds) for row, value in there.items()}
    assert exceeded == {row: sum(value > bound for bound in bounds) for row, value in there.items()}
    low, high = -12_345, 54_321
    cut = by_row(column, lambda some: numbers.scaled(some, decimals, low, high)[0])
    beyond = by_row(column, lambda some: numbers.scaled(some, decimals, low, high)[1])
    exact = {row: round(value * 10**decimals) for row, value in there.items()}  # Python rounds half to even
    assert cut == {row: min(max(value, low), high) for row, value in exact.items()}
    assert beyond == {row: not low <= value <= high for row, value in exact.items()}


DECIMALS = st.integers(0, 6)


@given(st.lists(st.none() | st.integers(-(1 << 63), (1 << 63) - 1), max_size=20), BOUNDS, DECIMALS)
@example([0, 5, -5, None], [Fraction(1, 3), Fraction(2, 3)], 2)
def test_whole_numbers_are_read_exactly(values: list[Any], bounds: list[Fraction], decimals: int) -> None:
    check(pa.array(values, pa.int64()), values, bounds, decimals)
    check(pa.array(values, pa.int64()).dictionary_encode(), values, bounds, decimals)


@given(st.lists(st.none() | st.integers(0, (1 << 64) - 1), max_size=20), BOUNDS, DECIMALS)
def test_unsigned_numbers_are_read_exactly(values: list[Any], bounds: list[Fraction], decimals: int) -> None:
    check(pa.array(values, pa.uint64()), values, bounds, decimals)


HALVES = st.integers(-2000, 2000).map(lambda half: half / 2)
CLOSE = st.tuples(st.integers(-99_999, 99_999), st.integers(1, 6)).map(lambda at: at[0] / 10 ** at[1])


@given(
    st.lists(st.none() | HALVES | CLOSE | st.floats(allow_nan=False, allow_infinity=False), max_size=30),
    BOUNDS,
    DECIMALS,
)
@example([2.675, 1.005, 0.125, 0.375, 2.5, 3.5, -2.5, 1e300, 5e-324], [Fraction(1, 10)], 2)
def test_doubles_are_rounded_as_what_they_are(
    values: list[Any], bounds: list[Fraction], decimals: int
) -> None:
    check(pa.array(values, pa.float64()), values, bounds, decimals)


def test_a_double_just_below_half_is_not_rounded_up() -> None:
    column = pa.array([2.675, 0.145, 1.115])  # 2.67499…, 0.14499…, 1.11499…
    assert by_row(column, lambda some: numbers.scaled(some, 2, 0, 1000)[0]) == {0: 267, 1: 14, 2: 111}


@given(
    st.lists(st.none() | st.decimals(-(10**9), 10**9, places=7), max_size=20),
    BOUNDS,
    DECIMALS,
    st.sampled_from([pa.decimal128(38, 7), pa.decimal128(20, 7), pa.decimal256(60, 7)]),
)
@example([Decimal("0.0000005"), Decimal("0.0000015")], [Fraction(1)], 6, pa.decimal128(20, 7))
def test_decimals_are_read_exactly(
    values: list[Any], bounds: list[Fraction], decimals: int, kind: Any
) -> None:
    check(pa.array(values, kind), values, bounds, decimals)


def test_decimals_far_beyond_any_bound_are_cut() -> None:
    column = pa.array([Decimal(10**37), Decimal(-(10**37)), Decimal(3)], pa.decimal128(38, 0))
    [found] = numbers.read(column, "paid")[0]
    amounts, cut = numbers.scaled(found, 6, -5_000_000, 5_000_000)
    assert amounts.tolist() == [5_000_000, -5_000_000, 3_000_000]
    assert cut.tolist() == [True, True, False]
    assert numbers.passed(found, [Fraction(0), Fraction(10**36)]).tolist() == [2, 0, 1]


WRITTEN = (
    st.integers(-(10**17), 10**17).map(str)
    | st.decimals(-(10**6), 10**6, places=9).map(lambda value: f"{value:f}")
    | st.integers(-2000, 2000).map(lambda half: f" {half / 2} ")
    | st.integers(0, 10**6).map(lambda value: f"+{value}.")
)


@given(st.lists(st.none() | WRITTEN, max_size=20), BOUNDS, DECIMALS)
def test_text_is_read_as_what_it_says(values: list[Any], bounds: list[Fraction], decimals: int) -> None:
    check(pa.array(values, pa.string()), values, bounds, decimals)
    check(pa.array(values, pa.large_string()), values, bounds, decimals)
    check(pa.array(values, pa.string()).dictionary_encode(), values, bounds, decimals)


def test_text_with_an_exponent_is_the_nearest_double() -> None:
    column = pa.array(["1e3", "2.5E-1", "1234567890123456789012.5", "0.1234567890123456789012"])
    [found] = numbers.read(column, "paid")[0]
    assert found.values.tolist() == [1000.0, 0.25, 1234567890123456789012.5, 0.1234567890123456789012]


@pytest.mark.parametrize(
    "text", ["NaN", "nan", "inf", "-inf", "1e999", "12,5", "1 000", "0x1A", "12a", "-", ".", "\uff11", "--1"]
)
def test_text_that_is_no_finite_number_is_told_apart_from_none(text: str) -> None:
    found, bad = numbers.read(pa.array(["1", text, "", "  ", None]), "paid")
    assert bad.tolist() == [False, True, False, False, False]
    assert sum(len(some.rows) for some in found) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", [pa.float64(), pa.float32(), pa.float16()])
def test_a_double_that_is_no_finite_number_is_told_apart_from_none(value: float, kind: Any) -> None:
    column = pa.array([np.float16(1), np.float16(value), None], kind)
    found, bad = numbers.read(column, "paid")
    assert bad.tolist() == [False, True, False]
    assert [some.rows.tolist() for some in found] == [[0]]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([date(2026, 11, 22)]),
        pa.array([True]),
        pa.array([b"13900004711"]),
        pa.array([{"13900004711": 1}]),
    ],
)
def test_a_column_that_is_no_numbers_is_refused_by_its_type(column: Any) -> None:
    with pytest.raises(InputError) as caught:
        numbers.read(column, "paid")
    assert caught.value.code == "not-a-number"
    assert "13900004711" not in str(caught.value)


def test_text_that_is_not_utf8_is_refused_without_being_quoted() -> None:
    raw = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(np.array([0, 3], np.int32)), pa.py_buffer(b"\xff47")]
    )
    with pytest.raises(InputError) as caught:
        numbers.read(raw, "paid")
    assert caught.value.code == "not-a-number"
    assert "47" not in str(caught.value)


def test_a_slice_and_a_chunked_column_are_read_as_one() -> None:
    column = pa.array([Decimal("9.5"), Decimal("1.5"), None, Decimal("2.5")], pa.decimal128(5, 1)).slice(1)
    pieces = pa.chunked_array([column.slice(0, 1), column.slice(1)])
    for each in (column, pieces):
        assert by_row(each, lambda some: numbers.passed(some, [Fraction(2)])) == {0: 0, 2: 1}


def test_bins_that_no_whole_number_tells_apart_take_the_last() -> None:
    bins = [Fraction(1, 5), Fraction(1, 2), Fraction(3, 2)]
    assert all(low < high for low, high in pairwise(bins))
    column = pa.array([0, 1, 2])
    assert by_row(column, lambda some: numbers.passed(some, bins)) == {0: 0, 1: 2, 2: 3}
