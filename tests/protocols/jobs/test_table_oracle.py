"""Tables against a plain reckoning of the same rows: counts, sums, means, and what may not be shown."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from table_case import AGE, DISTRICT, INCOME, OPEN, Row, cells_of, crowd, table_case

from protocols.statistics.suppress import ROUNDING, TOP_SHARE
from protocols.tables.released import exact_ratios
from protocols.wire import Constraints

DISTRICTS, BINS = ("east", "west"), ("[0, 18)", "[18, 60)", "60+")
BOTH = {**INCOME, "of": ["sum", "mean"]}

rows = st.lists(
    st.fixed_dictionaries(
        {
            "unit": st.integers(0, 30).map(str),
            "district": st.sampled_from([*DISTRICTS, "elsewhere", None]),
            "age": st.integers(-3, 90) | st.none(),
            "income": st.none() | st.integers(0, 50_000).map(lambda tenths: tenths / 10),
        }
    ),
    max_size=40,
)


def bin_of(age: int) -> str:
    return BINS[0] if age < 18 else BINS[1] if age < 60 else BINS[2]


def places(row: Row, *, margins: bool) -> Iterable[tuple[str, str]]:
    """The cells that a row counts in, sums over axes included."""
    if row["district"] not in DISTRICTS or row["age"] is None or row["age"] < 0:
        return []
    both = (
        ([row["district"], ""], [bin_of(row["age"]), ""])
        if margins
        else ([row["district"]], [bin_of(row["age"])])
    )
    return product(*both)


class Plain:
    """The same table, person by person."""

    def __init__(self, tables: Sequence[Sequence[Row]], *, margins: bool) -> None:
        self.persons: Mapping[tuple[str, str], int] = defaultdict(int)
        self.amounts: Mapping[tuple[str, str], list[tuple[str, Fraction]]] = defaultdict(list)
        for table in tables:
            first: dict[str, Row] = {}
            for row in table:
                if any(True for _ in places(row, margins=margins)):
                    first.setdefault(row["unit"], row)  # one row of each person, the first that counts
            for unit, row in first.items():
                for place in places(row, margins=margins):
                    self.persons[place] += 1
                    if row["income"] is not None:
                        self.amounts[place].append((unit, Fraction(round(row["income"] * 10), 10)))


def check(tables, content, *, margins: bool, exact: bool) -> None:
    plain, shown = Plain(tables, margins=margins), cells_of(content)
    labels = [[*DISTRICTS, ""], [*BINS, ""]] if margins else [DISTRICTS, BINS]
    for place in product(*labels):
        count, amounts = plain.persons[place], plain.amounts[place]
        total = sum(amount for _, amount in amounts)
        if exact or (*place, "persons") in shown:
            assert (
                shown[*place, "persons"] == math.floor(Fraction(count, ROUNDING) + Fraction(1, 2)) * ROUNDING
            )
        if exact or (*place, "sum(income)") in shown:
            assert shown[*place, "sum(income)"] == float(total)
        if (*place, "mean(income)") in shown:
            # Amounts have one digit after the point, so a mean has three; of two equally near the larger.
            nearest = math.floor(1000 * total / len(amounts) + Fraction(1, 2))
            assert shown[*place, "mean(income)"] == float(Fraction(nearest, 1000))
        else:
            assert not exact or not amounts
    assert len(content.table.columns["value"]) == 3 * math.prod(map(len, labels))


@settings(max_examples=25, deadline=None)
@given(
    tables=st.lists(rows, min_size=3, max_size=4),
    mode=st.sampled_from(["bfv", "mask"]),
    margins=st.booleans(),
)
def test_what_a_joint_table_shows_is_the_plain_reckoning(tables, mode, margins):
    case = table_case(tables, mode=mode, measures=[BOTH], margins="yes" if margins else "no", persons_in=1)
    check(tables, case.released(), margins=margins, exact=False)


@settings(max_examples=40, deadline=None)
@given(rows, st.booleans())
def test_what_one_department_alone_shows_is_the_plain_reckoning(table, margins):
    content = table_case([table], measures=[BOTH], margins="yes" if margins else "no").released()
    check([table], content, margins=margins, exact=False)


@pytest.mark.parametrize("sources", [1, 3, 5])
@pytest.mark.parametrize("margins", [True, False])
def test_a_table_of_large_cells_is_shown_whole(sources, margins):
    tables = [crowd(number) for number in range(sources)]
    case = table_case(
        tables, constraints=Constraints(), measures=[BOTH], margins="yes" if margins else "no", persons_in=1
    )
    content = case.released()
    check(tables, content, margins=margins, exact=True)
    assert content.facts == {
        "minimum_group": 10,
        "contributors": sources,
        "rows_per_person": 1,
        "departments_per_person": 1,
        "rounding_base": 5,
        "withheld_cells": 0,
    }
    # A department alone hears from nobody and sends nothing.
    assert bool(case.sent) == (sources > 1)


def test_columns_are_those_of_the_release():
    content = table_case([crowd(0)], measures=[BOTH]).released()
    columns = content.table.columns
    assert [*columns] == ["district", "age", "measure", "value", "withheld"]
    assert columns["value"].dtype == np.float64
    assert columns["withheld"].dtype == np.bool_
    assert columns["measure"].tolist() == ["persons"] * 12 + ["sum(income)"] * 12 + ["mean(income)"] * 12
    assert columns["district"].tolist() == ([*["east"] * 4, *["west"] * 4, *[""] * 4]) * 3
    assert columns["age"].tolist() == [*BINS, ""] * 9


@pytest.mark.parametrize("minimum", [None, 3, 20])
@pytest.mark.parametrize("persons_in", [1, 3])
def test_a_cell_of_too_few_persons_is_withheld_and_so_is_what_would_give_it_away(minimum, persons_in):
    small = [{"unit": f"s{n}", "district": "east", "age": 70, "income": 1000.0} for n in range(2)]
    tables = [[row for row in crowd(0) if (row["district"], bin_of(row["age"])) != ("east", "60+")] + small]
    tables += [
        [row for row in crowd(n) if (row["district"], bin_of(row["age"])) != ("east", "60+")] for n in (1, 2)
    ]
    limits = Constraints(min_group_size=minimum)
    content = table_case(tables, constraints=limits, measures=[BOTH], persons_in=persons_in).released()
    shown = cells_of(content)
    for word in ("persons", "sum(income)", "mean(income)"):
        assert ("east", "60+", word) not in shown
    # Withheld cells of a line are two or more, or none: else the sum over it would tell.
    hidden = {place for place in product([*DISTRICTS, ""], [*BINS, ""]) if (*place, "persons") not in shown}
    for axis in (0, 1):
        for label in {place[axis] for place in hidden}:
            assert len([place for place in hidden if place[axis] == label]) >= 2
    assert content.facts["withheld_cells"] == len(hidden)
    assert content.facts["minimum_group"] == (10 if minimum is None else minimum)
    # All figures of a cell share its fate.
    assert {place[:2] for place in shown} == {
        place for place in product([*DISTRICTS, ""], [*BINS, ""]) if (*place, "persons") in shown
    }


@pytest.mark.parametrize(("persons", "withheld"), [(9, True), (10, False), (29, True), (30, False)])
def test_a_person_whom_several_departments_count_counts_once_for_the_minimum(persons, withheld):
    persons_in = 1 if persons < 20 else 3
    everywhere = [{"unit": f"p{n}", "district": "east", "age": 5} for n in range(persons)]
    tables = [
        everywhere[: persons // 3],
        everywhere[persons // 3 : 2 * persons // 3],
        everywhere[2 * persons // 3 :],
    ]
    case = table_case(tables, constraints=Constraints(), axes=[DISTRICT], margins="no", persons_in=persons_in)
    assert (("east", "persons") not in cells_of(case.released())) == withheld


def test_a_cell_that_one_person_dominates_is_withheld_wherever_the_person_is():
    for department in range(3):
        tables = [crowd(number) for number in range(3)]
        others = sum(Plain(tables, margins=False).persons.values()) * 1000 / 6
        rich = {"unit": "rich", "district": "west", "age": 30, "income": 5000.0}
        assert Fraction(5000) < TOP_SHARE * Fraction(others)
        tables[department].append(rich)
        modest = cells_of(table_case(tables, measures=[BOTH], persons_in=1).released())
        assert ("west", "[18, 60)", "sum(income)") in modest
        poor = [
            [{**row, "income": row["income"] / 1000 if row is not rich else 5000.0} for row in t]
            for t in tables
        ]
        shown = cells_of(table_case(poor, measures=[BOTH], persons_in=1).released())
        assert ("west", "[18, 60)", "sum(income)") not in shown
        assert ("west", "", "sum(income)") not in shown


def test_the_amounts_of_a_few_in_a_large_cell_are_withheld():
    # Many persons, but only four of them with an income: their sum would be about those four.
    tables = [
        [{**row, "income": row["income"] if number < 2 else None} for number, row in enumerate(crowd(n))]
        for n in range(3)
    ]
    limits = Constraints(min_group_size=10)
    content = table_case(tables, constraints=limits, measures=[BOTH], persons_in=1).released()
    assert not any(word != "persons" for *_, word in cells_of(content))


def away(tables: Sequence[list[Row]], *numbers: int) -> list[list[Row]]:
    """The tables without the rows that some departments, counted from 1, have of old people in the east."""
    return [
        [row for row in table if number not in numbers or row["district"] != "east" or row["age"] < 60]
        for number, table in enumerate(tables, start=1)
    ]


@pytest.mark.parametrize(
    ("departments", "asked", "enough"), [(5, None, 3), (5, 2, 3), (5, 4, 4), (3, None, 3)]
)
def test_a_cell_that_fewer_departments_have_persons_in_is_withheld(departments, asked, enough):
    limits = Constraints(min_group_size=1, min_organisations=asked)
    tables = [crowd(number) for number in range(departments)]
    for absent in range(departments):
        having = departments - absent
        there = away(tables, *range(1, absent + 1))
        case = table_case(there, constraints=limits, measures=[BOTH], mode="mask", persons_in=1)
        shown = cells_of(case.released())
        for word in ("persons", "sum(income)", "mean(income)"):
            assert (("east", "60+", word) in shown) == (having >= enough), (having, word)
        # Sums over cells are of more departments, though other cells are withheld to hide this one.
        assert ("", "", "persons") in shown


def test_a_cell_that_nobody_has_persons_in_is_still_shown_as_empty():
    tables = away([crowd(number) for number in range(4)], 1, 2, 3, 4)
    shown = cells_of(table_case(tables, measures=[BOTH], persons_in=1).released())
    assert shown["east", "60+", "persons"] == shown["east", "60+", "sum(income)"] == 0
    assert shown["east", "", "persons"] > 0


@pytest.mark.parametrize(("departments", "withheld"), [(2, True), (3, False)])
def test_amounts_of_fewer_departments_are_withheld_however_many_have_persons(departments, withheld):
    tables = [
        [{**row, "income": row["income"] if number < departments else None} for row in crowd(number)]
        for number in range(4)
    ]
    shown = cells_of(table_case(tables, measures=[BOTH], persons_in=1).released())
    assert (("west", "[18, 60)", "sum(income)") not in shown) == withheld
    assert not withheld or not shown


def test_a_sum_over_cells_of_which_none_is_of_enough_departments_is_withheld():
    # Each department has a district of its own, so the whole is of three, but every part of one.
    axis = {"slot": "district", "values": ["a", "b", "c"]}
    tables = [[{**row, "district": "abc"[number]} for row in crowd(number)] for number in range(3)]
    assert not cells_of(table_case(tables, axes=[axis], persons_in=1).released())
    # One department alone publishes whatever it has.
    assert cells_of(table_case(tables[:1], axes=[axis]).released())["a", "persons"] == 400


def test_a_mean_has_two_digits_more_than_its_amounts():
    paid = {"slot": "income", "bounds": ["0", "9"], "of": ["mean"]}
    thirds = [{"unit": str(n), "district": "east", "income": float(n % 3 == 0)} for n in range(30)]
    content = table_case([thirds], axes=[DISTRICT], measures=[paid], margins="no").released()
    assert cells_of(content)["east", "mean(income)"] == 0.33
    eighths = [{"unit": str(n), "district": "east", "income": float(n % 8 == 0)} for n in range(32)]
    content = table_case([eighths], axes=[DISTRICT], measures=[paid], margins="no").released()
    assert cells_of(content)["east", "mean(income)"] == 0.13  # 0.125: of two equally near the larger


def test_an_empty_table_is_all_zeros_and_has_no_means():
    for sources in (1, 3):
        content = table_case([[]] * sources, measures=[BOTH]).released()
        shown = cells_of(content)
        assert set(shown.values()) == {0.0}
        assert {word for *_, word in shown} == {"persons", "sum(income)"}
        assert np.isnan(content.table.columns["value"]).sum() == 12


def test_sums_beyond_the_53_bits_of_a_double_are_the_nearest_double():
    totals = [(1 << 60) + 1, (1 << 61) - 1, 3, 0, 7]
    by = [10, 3, 1000, 5, 0]
    found = exact_ratios(np.array(totals), np.array(by)).tolist()
    assert found[:4] == [
        float(Fraction(total, divisor)) for total, divisor in zip(totals[:4], by, strict=False)
    ]
    assert math.isnan(found[4])
    # As a division of doubles would not be.
    total, divisor = (1 << 60) + 129, 129
    assert exact_ratios(np.array([total]), divisor)[0] == float(Fraction(total, divisor))
    assert float(total) / float(divisor) != float(Fraction(total, divisor))


def test_rows_of_one_person_beyond_unit_rows_do_not_count():
    many = [{"unit": "one", "district": "east", "age": 5} for _ in range(50)]
    for unit_rows in (1, 12):
        content = table_case([many], axes=[DISTRICT], margins="no", unit_rows=unit_rows).released()
        # One person, however many rows: rounded to 0.
        assert cells_of(content)["east", "persons"] == 0.0


def test_with_several_rows_of_a_person_a_sum_over_cells_needs_as_many_times_more():
    # One person in twelve cells would make a sum of twelve.
    axis = {"slot": "district", "values": [f"d{n:02d}" for n in range(12)]}
    rows_of_one = [{"unit": "one", "district": f"d{n:02d}"} for n in range(12)]
    limits = Constraints(min_group_size=3)
    content = table_case([rows_of_one], constraints=limits, axes=[axis], unit_rows=12).released()
    assert not cells_of(content)


def test_measures_are_kept_apart():
    second = {"slot": "rent", "bounds": ["0", "9"], "of": ["sum"]}
    tables = [[{**row, "rent": "3"} for row in crowd(n)] for n in range(3)]
    content = table_case(
        tables, axes=[DISTRICT], measures=[BOTH, second], constraints=OPEN, persons_in=1
    ).released()
    shown = cells_of(content)
    assert shown["", "sum(rent)"] == 3 * 3 * 400
    assert shown["", "sum(income)"] == float(
        sum(Fraction(round(row["income"] * 10), 10) for t in tables for row in t)
    )


def test_filters_choose_the_rows():
    grown = {"slot": "age", "low": "18"}
    tables = [crowd(n) for n in range(3)]
    content = table_case(tables, axes=[DISTRICT, AGE], filters=[grown], persons_in=1).released()
    shown = cells_of(content)
    assert shown["east", BINS[0], "persons"] == 0
    assert shown["", BINS[2], "persons"] > 0
