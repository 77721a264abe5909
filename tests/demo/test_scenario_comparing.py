"""A scenario's exit code is honest: each way in which an answer can be wrong is found."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demo.narration import Failed
from demo.scenarios.comparing import Released, accuracy, check_exact, deducible, most_missed, read_figures
from protocols.statistics.suppress import rounded

NAN = float("nan")
WITHHELD = Released(NAN, NAN, NAN)


def with_margins(cells: dict[tuple[str, str], int]) -> dict[tuple[str, ...], int]:
    found: Counter = Counter()
    for (row, column), count in cells.items():
        for cell in ((row, column), (row, ""), ("", column), ("", "")):
            found[cell] += count
    return dict(found)


def exact(truth, hidden=()) -> dict[tuple[str, ...], Released]:
    return {c: WITHHELD if c in hidden else Released(rounded(n, 5), NAN, NAN) for c, n in truth.items()}


TRUTH = with_margins({("a", "x"): 4, ("a", "y"): 30, ("a", "z"): 52, ("b", "x"): 41, ("b", "y"): 12,
                      ("b", "z"): 60, ("c", "x"): 25, ("c", "y"): 33, ("c", "z"): 71})  # fmt: skip
SHIELDED = {("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")}


def test_a_table_whose_small_cell_is_shielded_on_both_lines_is_accepted() -> None:
    assert check_exact(exact(TRUTH, SHIELDED), TRUTH, 10) == 4


@pytest.mark.parametrize(
    "hidden",
    [
        {("a", "x")},
        {("a", "x"), ("a", "y")},
        {("a", "x"), ("b", "x")},
        {("a", "x"), ("a", "")},
    ],
    ids=["alone", "one line only", "the other line only", "beside its margin"],
)
def test_a_withheld_cell_that_follows_from_the_others_is_found(hidden) -> None:
    with pytest.raises(Failed, match="can be told"):
        check_exact(exact(TRUTH, hidden), TRUTH, 10)


def test_a_withheld_cell_that_must_be_small_is_found() -> None:
    truth = with_margins({("a", "x"): 4, ("a", "y"): 3, ("b", "x"): 2, ("b", "y"): 5})
    hidden = {("a", "x"), ("a", "y"), ("b", "x"), ("b", "y"), ("a", ""), ("b", ""), ("", "x"), ("", "y")}
    assert check_exact(exact(truth, hidden), truth, 10) == 8
    with pytest.raises(Failed, match="can be told"):
        check_exact(exact(truth, hidden - {("", "x"), ("", "y")}), truth, 6)


def test_a_small_cell_that_is_published_is_found() -> None:
    with pytest.raises(Failed, match="fewer than 10"):
        check_exact(exact(TRUTH), TRUTH, 10)


def test_an_exact_cell_that_is_off_is_found() -> None:
    wrong = exact(TRUTH, SHIELDED) | {("c", "z"): Released(75, NAN, NAN)}
    with pytest.raises(Failed, match="rounded to 5"):
        check_exact(wrong, TRUTH, 10)


def test_a_missing_cell_is_found() -> None:
    short = exact(TRUTH, SHIELDED)
    del short["c", "z"]
    with pytest.raises(Failed, match="other cells"):
        check_exact(short, TRUTH, 10)
    with pytest.raises(Failed, match="other cells"):
        accuracy(short, TRUTH, 1)


tables = st.lists(st.lists(st.integers(1, 30), min_size=2, max_size=4), min_size=2, max_size=4).filter(
    lambda rows: len({len(row) for row in rows}) == 1
)


@given(tables, st.data())
def test_the_bounds_of_a_reader_always_hold_the_truth(rows, data) -> None:
    truth = with_margins({(f"r{i}", f"c{j}"): n for i, row in enumerate(rows) for j, n in enumerate(row)})
    hidden = set(data.draw(st.lists(st.sampled_from(sorted(truth)), unique=True)))
    bounds = deducible({cell: n for cell, n in truth.items() if cell not in hidden}, hidden)
    assert bounds.keys() == hidden
    assert all(low <= truth[cell] <= high for cell, (low, high) in bounds.items())


def test_a_cell_alone_on_a_line_is_told_exactly() -> None:
    hidden = {("a", "x")}
    assert deducible({c: n for c, n in TRUTH.items() if c not in hidden}, hidden) == {("a", "x"): (4, 4)}


# Noise ----------------------------------------------------------------------------------------------------


def noisy(truth, off=0, reach=3):
    return {cell: Released(n + off, n + off - reach, n + off + reach) for cell, n in truth.items()}


MANY = {(str(n),): 100 + n for n in range(200)}


def test_figures_within_their_intervals_are_accepted_and_measured() -> None:
    found = accuracy(noisy(MANY, off=2), MANY, 10)
    assert (found.cells, found.withheld, found.covered) == (200, 0, 1.0)
    assert (found.mean_error, found.largest_error, found.mean_half_width) == (2, 2, 3)
    assert "100.0 % of the 95 % intervals" in str(found)


def test_figures_outside_their_intervals_are_found() -> None:
    with pytest.raises(Failed, match="200 of 200 95 % intervals"):
        accuracy(noisy(MANY, off=4), MANY, 10)


def test_a_figure_below_the_minimum_is_found() -> None:
    with pytest.raises(Failed, match="below 150"):
        accuracy(noisy(MANY), MANY, 150)


def test_cells_that_no_noise_can_have_hidden_must_be_there() -> None:
    gone = dict.fromkeys(MANY, WITHHELD) | {("199",): Released(299, 296, 302)}
    with pytest.raises(Failed, match="of 200 95 % intervals"):
        accuracy(gone, MANY, 10)


def test_many_right_cells_do_not_outweigh_a_few_wrong_ones_among_thousands_withheld() -> None:
    small = {(f"s{n}",): 1 for n in range(10_000)}
    released = dict.fromkeys(small, WITHHELD) | noisy(MANY, off=4)
    with pytest.raises(Failed, match="200 of 200"):
        accuracy(released, small | MANY, 10)


def test_so_many_intervals_may_miss_as_chance_allows_once_in_a_million_tables() -> None:
    # Binomial tails at 5 %, computed elsewhere: P(X > 6 of 11) = 2.2e-7, P(X > 5 of 11) = 5.8e-6.
    assert [most_missed(n) for n in (0, 1, 11)] == [0, 1, 6]
    assert all(most_missed(n) >= n // 10 for n in (27, 176, 271, 500, 30_976))
    assert all(most_missed(n) < n / 5 for n in (176, 271, 500, 30_976))


# Reading --------------------------------------------------------------------------------------------------


class Table:
    def __init__(self, *rows) -> None:
        self.rows = rows

    def to_pylist(self):
        return [dict(zip(("street", "measure", "value", "withheld"), row, strict=True)) for row in self.rows]


def test_only_the_asked_measure_is_read_and_an_exact_table_has_no_intervals() -> None:
    table = Table(("a", "persons", 15.0, False), ("a", "sum(x)", 2.0, False), ("b", "persons", NAN, True))
    found = read_figures(table, ("street",), "persons")
    assert found[("a",)].row() == (15.0, None, None, False)
    assert found[("b",)].row() == (None, None, None, True)
    assert len(found) == 2


@pytest.mark.parametrize(
    "rows",
    [
        [("a", "persons", 15.0, False), ("a", "persons", 15.0, False)],
        [("a", "persons", 15.0, True)],
        [("a", "persons", NAN, False)],
    ],
)
def test_a_cell_twice_or_a_withheld_number_is_found(rows) -> None:
    with pytest.raises(Failed, match="twice, or is withheld"):
        read_figures(Table(*rows), ("street",), "persons")
