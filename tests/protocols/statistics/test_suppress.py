"""Disclosure control: what an attacker can compute from a published table, by exhaustive search."""

from collections.abc import Iterator, Mapping
from fractions import Fraction
from itertools import product

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from protocols.statistics.suppress import ProtectedTable, dominated, protect_table, rounded

DISTRICTS = "ABC"


def tables(counts: Mapping[str, int], found: ProtectedTable) -> Iterator[dict[str, int]]:
    """Yield every table of persons that agrees with what is published, exact totals included.

    Knows nothing of how cells were chosen: a withheld street holds one person or more, the rest is addition.
    """
    hidden = [street for street, cell in found.streets.items() if cell is None]
    most = sum(counts.values()) + found.minimum + 1
    for guess in product(range(1, most + 1), repeat=len(hidden)):
        world = {**counts, **dict(zip(hidden, guess, strict=True))}
        totals = {
            d: sum(n for street, n in world.items() if street[0] == d)
            for d in {street[0] for street in counts}
        }
        true = {d: sum(n for street, n in counts.items() if street[0] == d) for d in totals}
        if any(cell is not None and totals[d] != true[d] for d, cell in found.districts.items()):
            continue
        if found.total is not None and sum(totals.values()) != sum(true.values()):
            continue
        yield {**world, **{f"district {d}": n for d, n in totals.items()}, "city": sum(totals.values())}


streets = st.tuples(st.sampled_from(DISTRICTS), st.integers(1, 2)).map(lambda pair: f"{pair[0]}{pair[1]}")
small_tables = st.dictionaries(streets, st.integers(0, 6), max_size=4)


@settings(max_examples=150, deadline=None)
@given(small_tables, st.integers(2, 4))
@example({"A1": 1, "A2": 1, "B1": 6}, 3)  # a small district of ones
@example({"A1": 1, "B1": 6, "C1": 5}, 3)  # the only withheld street of its district
@example({"A1": 2, "A2": 2}, 3)  # nothing left to hide behind but the city
@example({"A1": 1, "A2": 1, "B1": 1, "B2": 1}, 4)  # four ones that add up to the minimum
def test_no_withheld_cell_can_be_told_from_the_published_ones(counts, minimum):
    assert_shielded(counts, minimum)


@pytest.mark.long
@pytest.mark.parametrize("layout", [("A1", "A2", "A3"), ("A1", "A2", "B1"), ("A1", "B1", "C1")])
def test_every_table_of_three_small_streets_is_shielded(layout):
    for minimum in (2, 3, 4):
        for sizes in product(range(6), repeat=len(layout)):
            assert_shielded(dict(zip(layout, sizes, strict=True)), minimum)


def assert_shielded(counts: Mapping[str, int], minimum: int) -> None:
    found = protect_table(counts, {street: street[0] for street in counts}, minimum, 1)
    withheld = [street for street, cell in found.streets.items() if cell is None]
    withheld += [f"district {d}" for d, cell in found.districts.items() if cell is None]
    withheld += ["city"] if found.total is None else []
    possible: dict[str, set[int]] = {cell: set() for cell in withheld}
    for world in tables(counts, found):
        for cell in withheld:
            possible[cell].add(world[cell])
    for cell, values in possible.items():
        assert len(values) > 1, f"{cell} is pinned in {counts}"
        assert max(values) >= minimum, f"{cell} is known to be small in {counts}"


wide_tables = st.dictionaries(
    st.tuples(st.sampled_from("ABCDE"), st.integers(1, 6)).map(lambda pair: f"{pair[0]}{pair[1]}"),
    st.integers(0, 60),
    max_size=20,
)


@settings(max_examples=150, deadline=None)
@given(wide_tables, st.integers(1, 20), st.integers(1, 10))
def test_no_small_cell_is_published_and_others_are_rounded(counts, minimum, base):
    found = protect_table(counts, {street: street[0] for street in counts}, minimum, base)
    totals = {d: sum(n for s, n in counts.items() if s[0] == d) for d in found.districts}
    cells = [(counts[s], cell) for s, cell in found.streets.items()]
    cells += [(totals[d], cell) for d, cell in found.districts.items()]
    cells.append((sum(counts.values()), found.total))
    for true, cell in cells:
        if 0 < true < minimum:
            assert cell is None
        if true == 0:
            assert cell == 0
        if cell is not None:
            assert cell % base == 0
            assert abs(cell - true) * 2 <= base
    assert found.withheld == [cell for _, cell in cells].count(None)


@given(wide_tables.filter(lambda counts: all(n == 0 or n >= 20 for n in counts.values())))
def test_a_table_without_small_cells_is_published_whole(counts):
    assert protect_table(counts, {street: street[0] for street in counts}, 20, 1).withheld == 0


def test_an_empty_table_has_a_total_of_nobody():
    found = protect_table({}, {}, 10, 5)
    assert (found.streets, found.districts, found.total, found.withheld) == ({}, {}, 0, 0)


def test_the_smallest_other_street_is_withheld_with_a_lone_small_one():
    found = protect_table({"A1": 3, "A2": 40, "A3": 12}, dict.fromkeys(["A1", "A2", "A3"], "A"), 10, 5)
    assert found.streets == {"A1": None, "A2": 40, "A3": None}
    assert (found.districts, found.total) == ({"A": 55}, 55)


def test_a_lone_small_district_takes_the_smallest_other_with_it():
    counts = {"A1": 3, "B1": 40, "B2": 11, "C1": 90}
    found = protect_table(counts, {street: street[0] for street in counts}, 10, 5)
    assert found.districts == {"A": None, "B": None, "C": 90}
    assert found.streets == {"A1": None, "B1": 40, "B2": None, "C1": 90}
    assert found.total == 145


def test_a_city_below_the_minimum_is_withheld_altogether():
    found = protect_table({"A1": 3, "B1": 4}, {"A1": "A", "B1": "B"}, 10, 5)
    assert (set(found.streets.values()), set(found.districts.values()), found.total) == ({None}, {None}, None)


@pytest.mark.parametrize(
    ("count", "base", "nearest"),
    [(0, 5, 0), (2, 5, 0), (3, 5, 5), (12, 5, 10), (13, 5, 15), (5, 10, 10), (7, 1, 7)],
)
def test_rounding_goes_to_the_nearest_multiple(count, base, nearest):
    assert rounded(count, base) == nearest


@pytest.mark.parametrize(
    ("counts", "groups", "minimum", "base"),
    [({"A1": -1}, {"A1": "A"}, 10, 5), ({"A1": 1}, {}, 10, 5), ({}, {}, 0, 5), ({}, {}, 10, 0)],
)
def test_impossible_tables_are_refused(counts, groups, minimum, base):
    with pytest.raises(ValueError):
        protect_table(counts, groups, minimum, base)


@pytest.mark.parametrize(
    ("contributions", "stands_out"),
    [
        ([], False),
        ([0, 0], False),
        ([5], True),
        ([7, 5, 4], False),  # 7/16 is exactly 43.75 %
        ([701, 500, 400], True),
        ([40, 40, 3], True),  # what is left is less than a tenth of the largest
        ([40, 40, 4], True),  # top share
        ([40, 40, 16], False),
    ],
)
def test_dominance(contributions, stands_out):
    assert dominated(contributions) == stands_out


def test_the_p_percent_rule_alone():
    one = Fraction(1)
    assert dominated([40, 40, 3], top_share=one)
    assert not dominated([40, 40, 4], top_share=one)
    with pytest.raises(ValueError, match="negative"):
        dominated([-1])
