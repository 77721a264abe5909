"""Disclosure control of cross-tabs: what linear and integer programs can tell of a withheld cell."""

from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import Bounds, LinearConstraint, linprog, milp

from protocols.errors import InputError
from protocols.statistics.cross_table import (
    MAX_PROTECTED,
    boxed,
    dominated_cells,
    least_persons,
    protect_cross,
    rounded_cells,
    with_margins,
)
from protocols.statistics.suppress import dominated, rounded


def equations(shape: tuple[int, ...]) -> np.ndarray:
    """One row for each line of the table with margins: what the line has, less its margin, is nothing."""
    places = np.arange(np.prod(shape)).reshape(shape)
    rows = []
    for axis, size in enumerate(shape):
        for line in np.moveaxis(places, axis, -1).reshape(-1, size):
            row = np.zeros(places.size)
            row[line[:-1]], row[line[-1]] = 1, -1
            rows.append(row)
    return np.array(rows)


def told(whole: np.ndarray, withheld: np.ndarray, low: np.ndarray, integers: bool = False) -> Any:
    """Yield of every withheld cell between what a reader with a solver can tell it to be."""
    hidden = np.flatnonzero(withheld)
    lines = equations(whole.shape)
    known = -(lines @ np.where(withheld, 0, whole).ravel())
    lines, known = lines[:, hidden], known[lines[:, hidden].any(axis=1)]
    lines = lines[lines.any(axis=1)]
    most = 4.0 * float(whole.max() + 50)
    for number, place in enumerate(hidden):
        ends = []
        for sign in (1, -1):
            aim = np.zeros(len(hidden))
            aim[number] = sign
            if integers:
                found = milp(
                    aim,
                    constraints=LinearConstraint(lines, known, known),
                    bounds=Bounds(low.ravel()[hidden], most),
                    integrality=np.ones(len(hidden)),
                )
            else:
                bounds = np.column_stack([low.ravel()[hidden], np.full(len(hidden), most)])
                found = linprog(aim, A_eq=lines, b_eq=known, bounds=bounds, method="highs")
            assert found.status == 0, found.message
            ends.append(sign * found.fun)
        yield np.unravel_index(place, whole.shape), *ends


def given_away(whole: Any, withheld: Any, low: Any, least: Any, *, integers: bool = False) -> list[Any]:
    """Return the withheld cells that are pinned, or known to be smaller than may be published."""
    return [
        (at, low_end, high_end)
        for at, low_end, high_end in told(whole, withheld, low, integers)
        if high_end - low_end < 0.5 or high_end < min(least[at], 10**6) - 1e-6
    ]


def assert_open(counts: Any, minimum: int, *, integers: bool = False, **more: Any) -> None:
    withheld = protect_cross(counts, minimum, margins=True, **more)
    whole, least = with_margins(counts), least_persons(counts.shape, minimum, more.get("unit_cells", 1))
    assert withheld[(whole > 0) & (whole < least)].all()
    assert boxed(withheld)[withheld].all()
    # The strongest reader there is knows which withheld cells are empty.
    low = np.minimum(whole, 1)
    assert given_away(whole, withheld, low, np.where(whole < least, least, 0), integers=integers) == []
    for sums, amount in more.get("amounts", ()):
        total = with_margins(sums)
        small = withheld & (whole < least)
        goal = np.where(small, np.ceil(total * 1.1), 0)
        low = np.where(whole > 0, np.minimum(total, amount), 0)
        assert given_away(total, withheld, low, goal, integers=integers) == []


shapes = st.one_of(
    st.tuples(st.integers(1, 7)),
    st.tuples(st.integers(1, 5), st.integers(1, 4)),
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    st.tuples(*[st.integers(1, 2)] * 4),
)
sizes = st.one_of(st.just(0), st.integers(0, 3), st.integers(0, 12), st.integers(0, 80))
small_tables = shapes.flatmap(lambda shape: arrays(np.int64, shape, elements=sizes))


@settings(max_examples=60, deadline=None)
@given(small_tables, st.sampled_from([1, 2, 3, 5, 10]), st.sampled_from([1, 1, 2, 6]))
@example(np.array([3]), 10, 1)  # one cell, which is its total
@example(np.diag([3, 40, 50]), 10, 1)  # nothing to hide behind but margins
@example(np.array([[1, 1], [1, 1]]), 4, 1)  # four ones that add up to the minimum
@example(np.array([[3, 40], [0, 0]]), 10, 1)
@example(np.ones((2, 2, 2, 2), np.int64), 20, 3)
def test_no_solver_tells_a_withheld_count_from_the_published_ones(counts, minimum, unit_cells):
    assert_open(counts, minimum, unit_cells=unit_cells)


def random_case(rand: np.random.Generator) -> tuple[Any, int, dict[str, Any]]:
    axes = int(rand.integers(1, 5))
    shape = tuple(rand.integers(1, {1: 8, 2: 6, 3: 4, 4: 3}[axes], axes))
    most = int(rand.choice([2, 4, 8, 30, 60]))
    counts = rand.integers(0, most, shape) * (rand.random(shape) < rand.random())
    more: dict[str, Any] = {"unit_cells": int(rand.choice([1, 1, 2, 5]))}
    if rand.random() < 0.3:
        more["also"] = rand.random(shape) < 0.1
    if rand.random() < 0.2:
        more["also"] = rand.random(np.add(shape, 1)) < 0.05
    if rand.random() < 0.4:
        low = int(rand.integers(0, 4))
        sums = counts * low + (counts > 0) * rand.integers(0, 50, shape)
        more["amounts"] = [(sums, low), (counts * rand.integers(0, 9, shape), 0)]
    return counts, int(rand.choice([1, 2, 3, 5, 10])), more


@pytest.mark.parametrize("integers", [False, True])
def test_amounts_and_cells_that_are_withheld_for_other_reasons_stay_open_too(integers):
    rand = np.random.default_rng(5)
    for _ in range(20):
        counts, minimum, more = random_case(rand)
        assert_open(counts, minimum, integers=integers, **more)


@pytest.mark.long
@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_five_hundred_tables_of_each_seed_stay_open(seed, integers):
    rand = np.random.default_rng(seed)
    for _ in range(500):
        counts, minimum, more = random_case(rand)
        assert_open(counts, minimum, integers=integers, **more)


def test_two_withheld_cells_in_each_line_are_not_enough():
    """A ring of eight cells, two in each line: when one grows, its neighbours shrink and the next ones grow.

    Line by line, the cell of 1 person could be 50 and the one of 2 could be 82. But they are in opposite
    places of the ring: the one can grow by no more than the other can shrink, which is 1.
    """
    counts = np.array([[1, 50, 60, 30], [40, 35, 70, 45], [90, 30, 55, 47], [35, 33, 80, 2]])
    withheld = np.zeros((5, 5), bool)
    for at in [(0, 0), (0, 1), (1, 1), (1, 2), (3, 2), (3, 3), (2, 3), (2, 0)]:
        withheld[at] = True
    whole = with_margins(counts)
    assert set(np.abs(equations(whole.shape))[:, withheld.ravel()].sum(axis=1)) == {0, 2}
    found = given_away(whole, withheld, np.minimum(whole, 1), np.full(whole.shape, 10))
    assert [(at, round(low), round(high)) for at, low, high in found] == [((0, 0), 1, 2), ((3, 3), 1, 2)]
    assert not boxed(withheld).any()
    assert_open(counts, 10)


def test_an_empty_cell_stays_and_a_table_without_small_cells_is_published_whole():
    counts = np.array([[0, 30, 12], [25, 0, 0]])
    assert not protect_cross(counts, 10, margins=True).any()
    counts[0, 2] = 3
    withheld = protect_cross(counts, 10, margins=True)
    assert withheld[0, 2]
    assert not withheld[with_margins(counts) == 0].any()


def test_the_cheapest_partner_goes_with_a_lone_small_cell():
    found = protect_cross(np.array([3, 40, 12]), 10, margins=True)
    assert found.tolist() == [True, False, True, False]
    counts = np.array([[3, 40, 12], [60, 70, 80], [20, 90, 95]])
    inner = protect_cross(counts, 10, margins=True)
    assert np.argwhere(inner).tolist() == [[0, 0], [0, 2], [2, 0], [2, 2]]
    assert (inner == protect_cross(counts.copy(), 10, margins=True)).all()
    # Of equally cheap partners, the first.
    assert protect_cross(np.array([30, 3, 30, 30]), 10, margins=True).tolist() == [True, True] + [False] * 3


def test_without_margins_only_small_and_named_cells_are_withheld():
    counts = np.array([[3, 40], [0, 9]])
    named = np.array([[False, False], [True, False]])
    found = protect_cross(counts, 10, margins=False, also=named)
    assert found.tolist() == [[True, False], [True, True]]


def test_a_margin_of_one_person_in_many_cells_is_withheld():
    """Four persons with five rows each, in as many cells, make a margin of twenty."""
    counts = np.array([[4, 200], [4, 200], [4, 200], [4, 200], [4, 200]])
    assert not protect_cross(counts, 10, margins=True)[-1, 0]
    assert protect_cross(counts, 10, margins=True, unit_cells=5)[-1, 0]
    assert least_persons((12, 2), 10, 5).tolist() == [[10, 10, 20]] * 12 + [[50, 50, 50]]


def test_a_cell_that_is_withheld_for_others_is_as_open_as_a_small_one():
    counts = np.full((4, 4), 50)
    named = np.zeros((4, 4), bool)
    named[1, 2] = True
    found = protect_cross(counts, 10, margins=True, also=named)
    assert found[1, 2]
    assert found.sum() == 4
    whole = np.zeros((5, 5), bool)
    whole[1, -1] = True
    assert protect_cross(counts, 10, margins=True, also=whole)[1, -1]
    assert_open(counts, 10, also=whole)


def test_partners_hide_sums_as_well_as_counts():
    """The cheapest partner has plenty of persons and next to no money: it hides the one, not the other."""
    counts, money = np.array([3, 12, 40, 41]), np.array([900, 1, 4000, 4000])
    alone = protect_cross(counts, 10, margins=True)
    assert alone.tolist() == [True, True, False, False, False]
    whole = with_margins(money)
    assert given_away(whole, alone, np.zeros(5), np.full(5, 990))
    both = protect_cross(counts, 10, margins=True, amounts=[(money, 0)])
    assert both.tolist() == [True, True, True, False, False]


@pytest.mark.parametrize("shape", [(MAX_PROTECTED // 128 + 1, 128), (17, 16, 16), (9, 8, 8, 8)])
def test_a_large_table_has_a_limit_with_margins_and_none_without(shape):
    counts = np.full(shape, 3)
    with pytest.raises(InputError) as refused:
        protect_cross(counts, 10, margins=True)
    assert refused.value.code == "too-many-cells"
    assert protect_cross(counts, 10, margins=False).all()


def test_a_table_of_many_small_cells_is_protected_in_one_pass_over_them():
    rand = np.random.default_rng(2)
    counts = rand.poisson(rand.lognormal(2, 1.5, (176, 10)))
    withheld, whole = protect_cross(counts, 10, margins=True), with_margins(counts)
    assert boxed(withheld)[withheld].all()
    small = int(((whole > 0) & (whole < 10)).sum())
    assert small > 500
    assert withheld.sum() < 1.25 * small


@pytest.mark.parametrize(
    ("counts", "minimum", "more"),
    [
        (np.array([-1]), 10, {}),
        (np.array([1]), 0, {}),
        (np.array([1]), 10, {"unit_cells": 0}),
        (np.array(1), 10, {}),
        (np.ones((1,) * 5, np.int64), 10, {}),
        (np.zeros((3, 0), np.int64), 10, {}),
        (np.array([1 << 50]), 10, {}),
        (np.array([1, 2]), 10, {"also": np.array([True])}),
        (np.array([1, 2]), 10, {"amounts": [(np.array([1]), 0)]}),
        (np.array([1, 2]), 10, {"amounts": [(np.array([1, -1]), 0)]}),
        (np.array([1, 2]), 10, {"amounts": [(np.array([1 << 61, 1 << 61]), 0)]}),
        (np.array([1, 2]), 10, {"amounts": [(np.array([1, 1]), -1)]}),
    ],
)
def test_tables_that_are_none_are_refused(counts, minimum, more):
    with pytest.raises(ValueError, match=r"must|tables|table's|axes"):
        protect_cross(counts, minimum, margins=True, **more)


@given(small_tables, st.integers(1, 12))
def test_rounding_is_that_of_single_counts(counts, base):
    assert rounded_cells(counts, base).ravel().tolist() == [rounded(int(n), base) for n in counts.ravel()]


@given(shapes.flatmap(lambda shape: arrays(bool, shape)))
def test_a_cell_is_boxed_where_all_corners_of_a_box_are_withheld(withheld):
    places = list(product(*map(range, withheld.shape)))
    corners = {
        at: any(
            all(here != there for here, there in zip(at, other, strict=True))
            and all(withheld[corner] for corner in product(*zip(at, other, strict=True)))
            for other in places
        )
        for at in places
    }
    assert {at: bool(boxed(withheld)[at]) for at in places} == corners


# -- dominance ---------------------------------------------------------------------------------------------

amounts = st.one_of(st.integers(0, 3), st.integers(0, 100), st.just(0))


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 5).flatmap(
        # departments x persons x cells: a person may be in several departments, and in several cells
        lambda cells: arrays(
            np.int64,
            st.tuples(st.integers(1, 4), st.integers(1, 6), st.just(cells)),
            elements=amounts,
        )
    )
)
def test_a_cell_that_passes_by_its_sums_passes_person_by_person(given_by):
    # A department without two contributors to a cell states 0 for those that are not there.
    ordered = np.sort(
        np.concatenate([np.zeros((len(given_by), 2, given_by.shape[2]), np.int64), given_by], 1), 1
    )
    tops, seconds = ordered[:, -1].sum(0), ordered[:, -2].sum(0)
    persons = given_by.sum(axis=0)
    flagged = dominated_cells(given_by.sum((0, 1)), tops, seconds)
    for cell, found in enumerate(flagged):
        if not found:
            assert not dominated([int(n) for n in persons[:, cell]])
    # The margin: a person may be in several of its cells.
    margin = dominated_cells(*(with_margins(part)[-1:] for part in (given_by.sum((0, 1)), tops, seconds)))
    if not margin[0]:
        assert not dominated([int(n) for n in persons.sum(axis=1)])


@given(arrays(np.int64, st.tuples(st.integers(1, 8), st.integers(1, 4)), elements=amounts))
def test_of_one_department_the_sums_decide_as_the_rule_itself(given_by):
    ordered = np.sort(np.concatenate([np.zeros((2, given_by.shape[1]), np.int64), given_by]), 0)
    found = dominated_cells(given_by.sum(0), ordered[-1], ordered[-2])
    assert found.tolist() == [dominated([int(n) for n in cell]) for cell in given_by.T]


@given(*[st.integers(0, 1 << 62)] * 3)
def test_dominance_is_exact_for_the_largest_sums_there_are(total, top, second):
    found = dominated_cells(np.array([total]), np.array([top]), np.array([second]))
    stands_out = top > Fraction(7, 16) * total or 100 * (total - top - second) < 10 * top
    assert found.tolist() == [total > 0 and stands_out]


def test_contributions_below_zero_have_no_dominance_rule():
    one = np.array([1])
    for wrong in (np.array([-1]), np.array([1, 1])):
        with pytest.raises(ValueError, match=r"negative|shape"):
            dominated_cells(one, wrong, one)
