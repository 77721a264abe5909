"""Moments against numpy, fractions and statsmodels; noise against repetition; what may be shown at all."""

from fractions import Fraction
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from protocols.dp import exact as sampling
from protocols.dp.cost import Cost
from protocols.dp.mechanism import Budget, Noise
from protocols.errors import InputError
from protocols.jobs.job_type import Content
from protocols.joined.moments import (
    FEWEST_APART,
    MAX_REACH,
    Column,
    Moments,
    Question,
    again,
    finest,
    noises,
    pairs,
    reaches,
    released,
    shown,
    t_quantile,
    table,
)

Ints = npt.NDArray[np.int64]
Key = tuple[str, str, str]

INCOME = Column("income", 0, 20_000_00, 2, finest(50_000))
YEARS = Column("years", 0, 45)
AGE = Column("age", 16, 70)
FLAG = Column("flag", 0, 1)
DEBT = Column("debt", -50_000, 50_000)


def moments(columns: tuple[Column, ...], amounts: Ints) -> Moments:
    """Return exact moments of amounts, persons x columns, in units of 10^-decimals."""
    q = np.stack([column.quantised(amounts[:, i]) for i, column in enumerate(columns)], axis=1)
    return Moments.of(len(q), q.sum(axis=0), q.T @ q, range(len(columns)))


def rows(content: Content) -> dict[Key, tuple[float, float, float]]:
    """Return what is shown."""
    at = content.table.columns
    return {
        (measure, a, b): (value, low, high)
        for a, b, measure, value, low, high, withheld in zip(
            *(at[name] for name in ("a", "b", "measure", "value", "low", "high", "withheld")), strict=True
        )
        if not withheld
    }


def exactly(question: Question, found: Moments) -> Content:
    """Return the table of exact moments, whatever may be shown of them."""
    return table(question, found, range(len(question.columns)))


def population(n: int, seed: int = 1) -> Ints:
    """Return income in cents, years, age and a flag of n persons, who depend on each other."""
    rng = np.random.default_rng(seed)
    age = np.clip(np.rint(rng.normal(42, 11, n)), 16, 70)
    years = np.clip(np.rint((age - 16) * rng.uniform(0.1, 0.9, n)), 0, 45)
    flag = (rng.random(n) < 0.3).astype(float)
    income = 4000 + 90 * years + 15 * age - 600 * flag + rng.normal(0, 1200, n)
    income = np.rint(np.clip(income, 0, 20_000) * 100)
    return np.stack([income, years, age, flag], axis=1).astype(np.int64)


COLUMNS = (INCOME, YEARS, AGE, FLAG)


# -- q -------------------------------------------------------------------------------------------------------


@given(st.data())
def test_every_amount_has_a_q_within_reach_that_stands_for_it_to_half_a_step(data):
    low = data.draw(st.integers(-(2**52), 2**52 - 1))
    high = data.draw(st.integers(low + 1, 2**52) | st.integers(low + 1, min(low + 2**19, 2**52)))
    column = Column("x", low, high)
    amounts = np.array([low, high, *data.draw(st.lists(st.integers(low, high), max_size=8))])
    q = column.quantised(amounts)
    assert 1 <= column.reach <= MAX_REACH
    assert np.abs(q).max() <= column.reach
    off = [
        abs(2 * x - column.twice_centre - column.twice_step * each)
        for x, each in zip(amounts.tolist(), q.tolist(), strict=True)
    ]
    assert 2 * max(off) <= column.twice_step
    assert (max(off) == 0) or not column.exact
    assert column.exact == (column.width <= 2 * MAX_REACH)


def test_a_flag_is_plus_or_minus_one_and_a_wide_column_loses_its_last_bits():
    assert FLAG.quantised(np.array([0, 1])).tolist() == [-1, 1]
    assert Column("x", -3, 3).quantised(np.array([-3, 0, 3])).tolist() == [-3, 0, 3]
    wide = Column("x", 0, 10**9, 2)
    assert (wide.twice_step, wide.reach, wide.step) == (2 << 12, 122070, Fraction(4096, 100))


def test_q_is_as_fine_as_the_longest_sum_allows():
    assert [finest(n) for n in (1, 100, 10**6, 1 << 20, (1 << 26) - 1)] == [
        1 << 26,
        1 << 26,
        1 << 20,
        1 << 19,
        1 << 17,
    ]
    for n in (1, 255, 256, 257, 10**6, (1 << 26) - 1):
        assert n * finest(n) ** 2 < 1 << 60


def test_coefficients_of_rounded_amounts_are_those_of_the_rows_to_1e_5():
    columns = (Column("income", 0, 20_000_00, 2), YEARS, AGE, FLAG)
    assert not columns[0].exact
    amounts = population(30_000)
    for target in (0, 1):
        found, oracle = (
            rows(exactly(Question(columns, target), moments(columns, amounts))),
            fitted(amounts, columns, target),
        )
        to = columns[target].slot
        values = [found["coefficient", c.slot, to][0] for c in columns if c.slot != to]
        np.testing.assert_allclose(values, oracle.params[1:], rtol=1e-5)


# -- exact figures -------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    n=st.integers(100, 140),
    bounds=st.lists(
        st.tuples(st.integers(-(10**6), 10**6), st.integers(1, 2**18), st.integers(0, 4)),
        min_size=2,
        max_size=5,
    ),
    seed=st.integers(0, 2**32),
)
def test_means_and_covariances_are_the_exact_ones(n, bounds, seed):
    columns = tuple(Column(f"c{i}", low, low + width, d) for i, (low, width, d) in enumerate(bounds))
    rng = np.random.default_rng(seed)
    amounts = np.stack([rng.integers(c.low, c.high, n, endpoint=True) for c in columns], axis=1)
    found = rows(exactly(Question(columns), moments(columns, amounts)))
    real = [[Fraction(x, 10**c.decimals) for x in amounts[:, i].tolist()] for i, c in enumerate(columns)]
    means = [sum(each) / n for each in real]
    for i, c in enumerate(columns):
        assert found["mean", c.slot, ""] == (float(means[i]),) * 3
        for j in range(i, len(columns)):
            pairs_ = zip(real[i], real[j], strict=True)
            both = sum((x - means[i]) * (y - means[j]) for x, y in pairs_) / (n - 1)
            key = ("variance", c.slot, "") if i == j else ("covariance", c.slot, columns[j].slot)
            assert found[key] == (float(both),) * 3
    # Floats of 64 bits mantissa as a second opinion on correlations.
    long = amounts.astype(np.longdouble)
    expected = np.corrcoef(long.astype(np.float64), rowvar=False)
    for (i, one), (j, other) in (
        (a, b) for a in enumerate(columns) for b in enumerate(columns) if a[0] < b[0]
    ):
        assert found["correlation", one.slot, other.slot][0] == pytest.approx(expected[i, j], abs=1e-9)


def fitted(amounts: Ints, columns: tuple[Column, ...], target: int) -> Any:
    real = amounts / np.array([10**c.decimals for c in columns])
    return sm.OLS(real[:, target], sm.add_constant(np.delete(real, target, axis=1))).fit()


@pytest.mark.parametrize("n", [100, 3000])
@pytest.mark.parametrize("target", [0, 2])
def test_ordinary_regression_is_that_of_statsmodels(n, target):
    columns, amounts = COLUMNS, population(n)
    content = exactly(Question(columns, target), moments(columns, amounts))
    found, oracle = rows(content), fitted(amounts, columns, target)
    to = columns[target].slot
    slots = ["", *(c.slot for c in columns if c.slot != to)]
    names = ["intercept", *["coefficient"] * 3]
    for at, (measure, slot) in enumerate(zip(names, slots, strict=True)):
        error = oracle.bse[at]
        value, low, high = found[measure, slot, to]
        assert value == pytest.approx(oracle.params[at], rel=1e-9, abs=1e-9 * error)
        assert found["standard-error", slot, to][0] == pytest.approx(error, rel=1e-9)
        assert (low, high) == pytest.approx(tuple(oracle.conf_int()[at]), rel=1e-8, abs=1e-8 * error)
    assert found["residual-variance", "", to][0] == pytest.approx(oracle.mse_resid, rel=1e-9)
    assert found["r-squared", "", to][0] == pytest.approx(oracle.rsquared, rel=1e-9)
    assert content.facts["coefficients"] == "shown"


def test_without_rounding_coefficients_are_those_of_the_rows_to_the_last_digits():
    columns = (AGE, YEARS, FLAG)
    amounts = population(5000)[:, [2, 1, 3]]
    found = rows(exactly(Question(columns, 0), moments(columns, amounts)))
    oracle = fitted(amounts, columns, 0)
    values = [
        found[k][0]
        for k in (("intercept", "", "age"), ("coefficient", "years", "age"), ("coefficient", "flag", "age"))
    ]
    np.testing.assert_allclose(values, oracle.params, rtol=1e-11)


@pytest.mark.parametrize("penalty", ["1/1000", "0.5", "7"])
def test_ridge_is_ordinary_regression_with_a_row_for_each_penalty(penalty):
    amounts, ridge = population(800), Fraction(penalty)
    found = rows(exactly(Question(COLUMNS, 0, ridge), moments(COLUMNS, amounts)))
    real = amounts / np.array([10**c.decimals for c in COLUMNS])
    y, x = real[:, 0], real[:, 1:]
    half = np.array([c.width / 2 / 10**c.decimals for c in COLUMNS[1:]])
    n = len(y)
    centred, about = x - x.mean(axis=0), y - y.mean()
    more = np.diag(np.sqrt(n * float(ridge)) * half)
    oracle = sm.OLS(np.append(about, np.zeros(3)), np.vstack([centred, more])).fit()
    np.testing.assert_allclose(
        [found["coefficient", c.slot, "income"][0] for c in COLUMNS[1:]], oracle.params, rtol=1e-7
    )
    # Errors of the shrunk coefficients as a linear function of y, and of the intercept with them.
    shrink = np.linalg.solve(centred.T @ centred + more.T @ more, centred.T)
    freedom = n - 1 - np.trace(centred @ shrink)
    variance = ((about - centred @ oracle.params) ** 2).sum() / freedom
    maps = np.vstack([np.full(n, 1 / n) - x.mean(axis=0) @ shrink, shrink])
    errors = np.sqrt(variance * (maps**2).sum(axis=1))
    slots = ["", "years", "age", "flag"]
    np.testing.assert_allclose(
        [found["standard-error", slot, "income"][0] for slot in slots], errors, rtol=1e-6
    )


def test_one_predictor_is_the_textbook_line():
    rng = np.random.default_rng(5)
    x = rng.integers(-100, 100, 300)
    amounts = np.stack([np.clip(3 * x + rng.integers(-9, 9, 300), -400, 400), x], axis=1)
    columns = (Column("y", -400, 400), Column("x", -100, 100))
    found, line = (
        rows(exactly(Question(columns, 0), moments(columns, amounts))),
        stats.linregress(x, amounts[:, 0]),
    )
    assert found["coefficient", "x", "y"][0] == pytest.approx(line.slope, rel=1e-12)
    assert found["standard-error", "x", "y"][0] == pytest.approx(line.stderr, rel=1e-10)
    assert found["intercept", "", "y"][0] == pytest.approx(line.intercept, rel=1e-10)


@pytest.mark.parametrize("freedom", [80, 84.5, 99, 1000, 1e6])
def test_quantiles_of_t_are_those_of_scipy(freedom):
    assert t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=1e-8)


# -- degenerate columns --------------------------------------------------------------------------------------


def test_a_constant_column_has_a_mean_but_no_correlation_and_no_coefficients():
    amounts = population(3000)[:, [0, 1]]
    amounts = np.concatenate([amounts, np.full((3000, 1), 7)], axis=1)
    columns = (INCOME, YEARS, Column("same", 0, 30))
    content = exactly(Question(columns, 0), moments(columns, amounts))
    assert shown(columns, moments(columns, amounts), 10) == (0, 1, 2)
    found = rows(content)
    assert found["mean", "same", ""][0] == 7
    assert found["variance", "same", ""][0] == 0
    assert ("correlation", "income", "same") not in found
    assert ("correlation", "income", "years") in found
    assert not any(measure == "coefficient" for measure, _, _ in found)
    assert content.facts["coefficients"] == "singular"
    with_ridge = rows(exactly(Question(columns, 0, Fraction(1, 10)), moments(columns, amounts)))
    assert with_ridge["coefficient", "same", "income"][0] == 0
    explained = rows(exactly(Question(columns, 2, Fraction(0)), moments(columns, amounts)))
    assert explained["coefficient", "income", "same"] == (0.0, 0.0, 0.0)
    assert ("r-squared", "", "same") not in explained


def test_perfect_correlation_is_one_and_its_regression_is_singular_or_without_error():
    x = population(400)[:, 1]
    amounts = np.stack([x, 2 * x, population(400)[:, 2]], axis=1)
    columns = (YEARS, Column("twice", 0, 90), AGE)
    content = exactly(Question(columns, 2), moments(columns, amounts))
    assert rows(content)["correlation", "years", "twice"][0] == 1.0
    assert content.facts["coefficients"] == "singular"
    assert not any(key[0] in ("coefficient", "standard-error", "intercept") for key in rows(content))
    ridge = rows(exactly(Question(columns, 2, Fraction(1, 100)), moments(columns, amounts)))
    assert ridge["coefficient", "years", "age"][0] > 0
    line = rows(exactly(Question(columns[:2], 1), moments(columns[:2], amounts[:, :2])))
    assert line["coefficient", "years", "twice"] == (2.0, 2.0, 2.0)
    assert line["r-squared", "", "twice"][0] == 1.0


@given(st.integers(0, 2**32), st.integers(100, 400), st.sampled_from([1, -1]))
def test_correlations_lie_between_minus_one_and_one_and_extremes_do_not_overflow(seed, n, sign):
    rng = np.random.default_rng(seed)
    ends = rng.integers(0, 2, n)
    columns = (Column("a", -(2**52), 2**52), Column("b", -(2**52), 2**52))
    high = np.where(ends == 1, 2**52, -(2**52))
    found = rows(exactly(Question(columns), moments(columns, np.stack([high, sign * high], axis=1))))
    if 0 < ends.sum() < n:
        assert found["correlation", "a", "b"][0] == sign
    assert found["variance", "a", ""][0] == pytest.approx(float(high.astype(float).var(ddof=1)), rel=1e-9)


def test_a_column_that_all_but_follows_from_another_is_no_ground_for_coefficients():
    rng = np.random.default_rng(3)
    x = rng.integers(0, 10**9, 4000)
    near = np.clip(x + rng.integers(-20_000, 20_000, 4000), 0, 10**9)
    columns = (Column("y", 0, 1000), Column("x", 0, 10**9), Column("near", 0, 10**9))
    amounts = np.stack([rng.integers(0, 1000, 4000), x, near], axis=1)
    content = exactly(Question(columns, 0), moments(columns, amounts))
    assert content.facts["coefficients"] in ("imprecise", "withheld")
    assert not any(key[0] == "coefficient" for key in rows(content))


# -- what may be shown without noise -------------------------------------------------------------------------


def flags(n: int, ones: int) -> Ints:
    return (np.arange(n) < ones).astype(np.int64)


@pytest.mark.parametrize("n", [100, 1000])
@pytest.mark.parametrize("least", [10, 30])
def test_a_flag_is_shown_of_nobody_or_of_a_group_on_either_side(n, least):
    """With one person flagged, the sums of products would be all that person's amounts."""
    for ones in (0, 1, least - 1, least, n - least, n - least + 1, n - 1, n):
        amounts = flags(n, ones)[:, np.newaxis]
        fine = ones in (0, n) or least <= ones <= n - least
        assert shown((FLAG,), moments((FLAG,), amounts), least) == ((0,) if fine else ())


def test_a_flag_of_a_few_is_withheld_beside_other_columns_and_these_are_shown():
    rng = np.random.default_rng(2)
    columns = (FLAG, Column("x", 0, 99), Column("z", -50, 50))
    others = [rng.integers(0, 100, 1000), rng.integers(-50, 51, 1000)]
    for ones, expected in ((1, (1, 2)), (9, (1, 2)), (20, (0, 1, 2)), (985, (0, 1, 2)), (999, (1, 2))):
        amounts = np.stack([rng.permutation(flags(1000, ones)), *others], axis=1)
        assert shown(columns, moments(columns, amounts), 10) == expected


def test_two_flags_that_differ_for_a_few_are_not_shown_together():
    """Their difference is a flag of these few, and its products with other columns their amounts."""
    rng = np.random.default_rng(1)
    one = (rng.random(1000) < 0.4).astype(np.int64)
    other = one.copy()
    other[:3] = 1 - other[:3]
    columns = (FLAG, Column("other", 0, 1), YEARS)
    years = population(1000)[:, 1]
    assert shown(columns, moments(columns, np.stack([one, other, years], axis=1)), 10) == (0, 2)
    other[:12] = 1 - one[:12]
    assert shown(columns, moments(columns, np.stack([one, one, years], axis=1)), 10) == (0, 1, 2)


def test_the_few_who_have_an_amount_at_all_are_not_shown():
    """Seven of a thousand receive something: their sum and the sum of its squares tell much of each."""
    paid = np.zeros(1000, np.int64)
    paid[:7] = [900, 1000, 800, 700, 950, 990, 940]
    years = population(1000)[:, 1]
    columns = (Column("paid", 0, 1000), YEARS)
    assert shown(columns, moments(columns, np.stack([paid, years], axis=1)), 10) == (1,)
    # And the few who differ from what everybody else has in the middle of the bounds.
    odd = np.full(1000, 500, np.int64)
    odd[:7] = [0, 1000, 20, 980, 40, 1000, 900]
    assert shown(columns, moments(columns, np.stack([odd, years], axis=1)), 10) == (1,)


@pytest.mark.parametrize("least", [10, 25])
def test_a_corner_of_a_few_is_not_shown(least):
    """Each of two flags has a large group, but only a few persons have both."""
    columns = (FLAG, Column("other", 0, 1))
    for both, expected in ((1, (0,)), (least - 1, (0,)), (least, (0, 1)), (0, (0, 1))):
        one, other = flags(400, 100), np.zeros(400, np.int64)
        other[100 - both : 200] = 1
        found = moments(columns, np.stack([one, other], axis=1))
        assert found.products[0][1] + sum(found.sums) + 400 == 4 * both  # -1 and 1
        assert shown(columns, found, least) == expected


def test_an_amount_that_one_person_of_a_group_has_is_not_shown_beside_the_group():
    """Enough are flagged, and enough have income: but of the flagged one alone."""
    rng = np.random.default_rng(8)
    flag, income = flags(2000, 40), rng.integers(0, 10_000, 2000)
    columns = (FLAG, Column("income", 0, 10_000))
    assert shown(columns, moments(columns, np.stack([flag, income], axis=1)), 10) == (0, 1)
    income[:39] = 0
    income[39] = 10_000
    assert shown(columns, moments(columns, np.stack([flag, income], axis=1)), 10) == (0,)
    income[39] = 0  # then none of them has any
    assert shown(columns, moments(columns, np.stack([flag, income], axis=1)), 10) == (0, 1)


@pytest.mark.parametrize(("least", "expected"), [(10, (0, 1, 2)), (43, (0, 1)), (100, (0, 1))])
def test_a_combination_that_differs_for_fewer_than_the_smallest_group_is_not_shown(least, expected):
    """Two flags, and a number of both that is wrong for 42 persons; each flag and corner has its hundreds."""
    one, other = (np.arange(6000) % 2).astype(np.int64), (np.arange(6000) // 2 % 2).astype(np.int64)
    both = one + other
    alike = np.flatnonzero(both != 1)[:42]
    both[alike] = 2 - both[alike]
    columns = (FLAG, Column("other", 0, 1), Column("both", 0, 2))
    assert int((both - one - other != 0).sum()) == 42
    assert shown(columns, moments(columns, np.stack([one, other, both], axis=1)), least) == expected


def test_a_flag_that_others_make_is_a_column_beside_further_ones():
    """Of nested flags the difference is a flag, and its corner with a third is a cell of one person."""
    rng = np.random.default_rng(6)
    columns = (FLAG, Column("inner", 0, 1), Column("third", 0, 1))
    outer, third = (rng.random(2000) < 0.5).astype(np.int64), (rng.random(2000) < 0.4).astype(np.int64)
    inner = outer * (rng.random(2000) < 0.5)
    between = np.flatnonzero(outer - inner)
    for few, expected in ((0, (0, 1, 2)), (1, (0, 1)), (9, (0, 1)), (10, (0, 1, 2))):
        third[between] = 0
        third[between[:few]] = 1
        found = moments(columns, np.stack([outer, inner, third], axis=1))
        assert shown(columns, found, 10) == expected
        # In whatever order: the last one that makes such a cell goes.
        turned = (columns[2], columns[0], columns[1])
        assert (shown(turned, moments(turned, np.stack([third, outer, inner], axis=1)), 10) == (0, 1, 2)) == (
            expected == (0, 1, 2)
        )
    # An amount that one person of the difference has alone.
    amounts = rng.integers(1, 1000, 2000)
    amounts[between] = 0
    more = (FLAG, Column("inner", 0, 1), Column("amount", 0, 1000))
    assert shown(more, moments(more, np.stack([outer, inner, amounts], axis=1)), 10) == (0, 1, 2)
    amounts[between[0]] = 700
    assert shown(more, moments(more, np.stack([outer, inner, amounts], axis=1)), 10) == (0, 1)


def test_a_column_that_follows_from_others_has_corners_like_any():
    """c is a less b and d, which no two of them make: few of those with e have it, whichever comes first."""
    kinds = np.arange(4000) % 4
    a, b, d = ((kinds > 0) * 1, (kinds == 1) * 1, (kinds == 2) * 1)
    c, places = a - b - d, np.flatnonzero(kinds == 3)
    for few, fine in ((0, True), (9, False), (10, True)):
        e = ((kinds != 3) & (np.arange(4000) < 2000)) * 1
        e[places[:few]] = 1
        for flags_ in ((a, b, d, c, e), (a, b, d, e, c)):
            columns = tuple(Column(f"c{i}", 0, 1) for i in range(5))
            found = shown(columns, moments(columns, np.stack(flags_, axis=1)), 10)
            assert found == ((0, 1, 2, 3, 4) if fine else (0, 1, 2, 3))


@pytest.mark.parametrize("least", [10, 60])
def test_ends_follow_from_leverage_where_a_column_follows_from_others(least):
    """(Σf)² ≥ k·Σf² for what is above each bound: proven for whatever passes the rule on leverage."""
    rng = np.random.default_rng(least)
    for _ in range(20):
        x = rng.integers(0, 100, 3000)
        y = np.where(rng.random(3000) < rng.uniform(0.01, 0.5), 100 - x, 0)
        columns = (Column("x", 0, 100), Column("y", 0, 100), Column("both", 0, 200))
        amounts = np.stack([x, y, x + y], axis=1)
        if 2 not in shown(columns, moments(columns, amounts), least):
            continue
        for f in (x + y - (x + y).min(), (x + y).max() - x - y, x + y, 200 - x - y):
            assert int(f.sum()) ** 2 >= least * int((f**2).sum())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 5), st.sampled_from([3, 25]))
def test_no_combination_of_shown_columns_tells_a_few_from_all_others(seed, size, least):
    """With whole weights, that is: it is the same for all, or differs for enough from any one value."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(100, 900))
    columns = tuple(Column(f"c{i}", 0, int(rng.choice([1, 1, 2, 3]))) for i in range(size))
    amounts = np.stack([rng.integers(0, c.high, n, endpoint=True) for c in columns], axis=1)
    for at in range(1, size):
        if rng.random() < 0.6:  # nearly a copy of the column before, but for a few
            amounts[:, at] = np.minimum(amounts[:, at - 1], columns[at].high)
            few = rng.integers(0, 25)
            amounts[:few, at] = rng.integers(0, columns[at].high, few, endpoint=True)
    kept = shown(columns, moments(columns, amounts), least)
    weights = np.array(np.meshgrid(*[range(-2, 3)] * len(kept))).reshape(len(kept), -1).T
    for weight in weights if len(kept) else ():
        _, counts = np.unique(amounts[:, kept] @ weight, return_counts=True)
        apart = n - int(counts.max())
        assert apart == 0 or apart >= max(FEWEST_APART, least)


def test_what_is_withheld_is_in_no_figure_and_no_fact():
    amounts = population(3000)
    amounts[:, 3] = flags(3000, 4)
    content = released(Question(COLUMNS, 0), moments(COLUMNS, amounts))
    assert content.facts["withheld_columns"] == "flag"
    assert content.facts["columns"] == "income years age"
    assert len(str(content.facts["products"]).split()) == 6
    assert content.facts["coefficients"] == "withheld"
    for key in rows(content):
        assert "flag" not in key
        assert key[0] not in ("coefficient", "intercept", "standard-error", "residual-variance", "r-squared")
    columns = content.table.columns
    about = [i for i, (a, b) in enumerate(zip(columns["a"], columns["b"], strict=True)) if "flag" in (a, b)]
    assert all(columns["withheld"][about])
    assert np.isnan(columns["value"][about].astype(float)).all()


def test_an_auditor_makes_the_same_table_of_the_facts_and_notices_columns_that_must_not_be_shown():
    amounts = population(3000)
    question = Question(COLUMNS, 0)
    content = released(question, moments(COLUMNS, amounts))
    made = again(question, content.facts)
    assert made.facts == content.facts
    for name, column in content.table.columns.items():
        np.testing.assert_array_equal(made.table.columns[name], column)
    amounts[:, 3] = flags(3000, 4)
    careless = exactly(question, moments(COLUMNS, amounts))
    with pytest.raises(InputError) as error:
        again(question, careless.facts)
    assert error.value.code == "bad-table"
    for facts in (
        {},
        {"columns": "income"},
        {**content.facts, "n": "x"},
        {**content.facts, "columns": "x"},
        {**content.facts, "sums": "1 2"},
    ):
        with pytest.raises(InputError):
            again(question, facts)


@pytest.mark.parametrize("budget", [None, Budget("zcdp", Fraction(1, 2))], ids=str)
def test_of_few_persons_or_beyond_all_words_an_auditor_makes_no_table(budget):
    question = Question(COLUMNS, 0, noise=None if budget is None else noises(COLUMNS, budget), least=120)
    facts = dict(exactly(question, moments(COLUMNS, population(40_000))).facts)
    again(question, facts)
    sums, products = str(facts["sums"]).split(), str(facts["products"]).split()
    for wrong in (
        *({"n": n} for n in (119, 100, 1, 0, -5, 10**400)),
        {"sums": " ".join([*sums[:3], "9" * 400])},
        {"sums": " ".join([*sums[:3], str(-(1 << 60))])},
        {"products": " ".join(["9" * 400, *products[1:]])},
        {"n": 0, "sums": "0 0 0 0", "products": " ".join(["0"] * 10)},
    ):
        with pytest.raises(InputError) as error:
            again(question, {**facts, **wrong})
        assert error.value.code == "bad-table"


# -- noise ---------------------------------------------------------------------------------------------------


def drawn(columns: tuple[Column, ...], budget: Budget, exact: Moments, seed: int) -> Moments:
    """Return noisy moments as they are published: noise of both on sums, of the matcher on n.

    Noise of the distributions that `noises` gives, rounded to whole numbers, from a seed.
    """
    noise, rng = noises(columns, budget), np.random.default_rng(seed)

    def one(of: Noise) -> int:
        spread = float(of.spread)
        draw = (
            (lambda: rng.normal(0, sqrt(spread)))
            if budget.notion == "zcdp"
            else (lambda: rng.laplace(0, spread))
        )
        return sum(round(draw()) for _ in range(of.contributors))

    sums = np.array(exact.sums) + [one(each) for each in noise.sums]
    products = np.array(exact.products)
    for (i, j), each in zip(pairs(len(columns)), noise.products, strict=True):
        products[i, j] += one(each)
        products[j, i] = products[i, j]
    return Moments.of(exact.n + one(noise.count), sums, products, range(len(columns)))


ZCDP = Budget("zcdp", Fraction(1, 2))
PURE = Budget("pure-dp", Fraction(1))


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.integers(2, 5))
def test_one_person_changes_moments_by_no_more_than_noise_is_reckoned_for(seed, size):
    """Of all amounts within bounds, and met by the greatest: the sensitivities are tight."""
    rng = np.random.default_rng(seed)
    columns = tuple(Column(f"c{i}", *sorted(rng.choice(2000, 2, replace=False) - 1000)) for i in range(size))
    columns = tuple(Column(c.slot, int(c.low), int(c.high)) for c in columns)
    reach = np.array([c.reach for c in columns])
    person = np.array([[rng.integers(c.low, c.high, endpoint=True) for c in columns]])
    furthest = np.array([[c.low if abs(c.ends[0]) == c.reach else c.high for c in columns]])
    for who, tight in ((person, False), (furthest, True)):
        one = moments(columns, who)
        changed = np.array(one.sums), np.array([one.products[i][j] for i, j in pairs(size)])
        most = reach, np.array([reach[i] * reach[j] for i, j in pairs(size)])
        for mine, bound in zip(changed, most, strict=True):
            assert (np.abs(mine) <= bound).all()
            assert not tight or (np.abs(mine) == bound).all()


@pytest.mark.parametrize("budget", [ZCDP, PURE], ids=["zcdp", "pure"])
def test_all_parts_together_cost_just_the_budget(budget):
    noise = noises(COLUMNS, budget)
    reach = [c.reach for c in COLUMNS]
    most = [1, *reach, *(reach[i] * reach[j] for i, j in pairs(4))]
    parts = [noise.count, *noise.sums, *noise.products]
    if budget.notion == "zcdp":
        assert noise.cost == Cost.zcdp(budget.amount)
        spent = sum(Fraction(by**2) / (2 * each.spread) for by, each in zip(most, parts, strict=True))
    else:
        assert noise.cost.pure == 10**15
        spent = sum(by / each.spread for by, each in zip(most, parts, strict=True))
    assert spent <= budget.amount
    assert spent > budget.amount * Fraction(999_999, 1_000_000)
    # Each of the two adds all of it: whoever knows one share meets the other, whole.
    assert {each.honest for each in parts} == {1}
    assert noise.count.contributors == 1
    assert {each.contributors for each in parts[1:]} == {2}
    spread = float(noise.sums[0].spread)
    both = 2 * spread if budget.notion == "zcdp" else 2 * 2 * spread**2
    assert noise.sums[0].variance == pytest.approx(both, rel=1e-6)


def test_noise_is_symmetric_and_as_large_as_it_says(monkeypatch):
    # 1000 draws from a seed: each mean square is within 6 of its standard deviations, √(2/1000). False alarm
    # of another seed: 1e-8.
    monkeypatch.setattr(sampling, "SMALL", 0)  # noise comes from `rand` alone
    noise, rand = noises((FLAG, Column("few", 0, 6)), ZCDP), np.random.default_rng(3).bytes
    draws = [noise.draw(rand) for _ in range(1000)]
    products = np.array([each[1] for each in draws])
    np.testing.assert_array_equal(products, products.transpose(0, 2, 1))
    assert {each[0].shape for each in draws} == {(1, 2)}
    for at, (i, j) in enumerate(pairs(2)):
        square = float((products[:, i, j] ** 2).mean()) / float(noise.products[at].spread)
        assert abs(square - 1) < 6 * sqrt(2 / 1000)


@pytest.mark.parametrize("budget", [ZCDP, PURE], ids=["zcdp", "pure"])
def test_intervals_hold_the_figures_without_noise(budget):
    # 60 draws, seeds 0 to 59, of 21 figures, each in its interval with 95 %: for one figure fewer than 45 of
    # 60 hold with a chance below 3e-8, for some figure below 1e-6.
    amounts = population(20_000)
    question = Question(COLUMNS, noise=noises(COLUMNS, budget))
    exact = moments(COLUMNS, amounts)
    true = rows(exactly(Question(COLUMNS), exact))
    held: dict[Key, int] = dict.fromkeys(true, 0)
    for seed in range(60):
        for key, (value, low, high) in rows(released(question, drawn(COLUMNS, budget, exact, seed))).items():
            assert low <= value <= high
            held[key] += low <= true[key][0] <= high
    assert min(held.values()) >= 45, held


def test_with_much_budget_adassp_is_the_ordinary_fit_and_with_little_it_shrinks():
    amounts = population(50_000)
    exact = moments(COLUMNS, amounts)
    oracle = fitted(amounts, COLUMNS, 0)
    most = Budget("zcdp", Fraction(16))
    found = rows(released(Question(COLUMNS, 0, noise=noises(COLUMNS, most)), drawn(COLUMNS, most, exact, 1)))
    for at, slot in enumerate(("years", "age", "flag"), start=1):
        value, low, high = found["coefficient", slot, "income"]
        assert value == pytest.approx(oracle.params[at], rel=0.1)
        assert low <= value <= high
    few = moments(COLUMNS, population(150))
    least = Budget("zcdp", Fraction(1, 1000))
    shrunk = rows(released(Question(COLUMNS, 0, noise=noises(COLUMNS, least)), drawn(COLUMNS, least, few, 1)))
    # 20,000 yuan over 45 years is the most that a line within the bounds can rise.
    assert abs(shrunk["coefficient", "years", "income"][0]) < 20_000 / 45


def test_adassp_errs_as_little_as_its_intervals_say():
    # 60 draws, seeds 0 to 59; the fit without noise is in the interval but for shrinkage, small at this size.
    # For one coefficient fewer than 42 of 60 hold with a chance below 1e-10 at 95 %.
    amounts = population(200_000)
    exact, budget = moments(COLUMNS, amounts), Budget("zcdp", Fraction(1))
    question = Question(COLUMNS, 0, noise=noises(COLUMNS, budget))
    oracle = fitted(amounts, COLUMNS, 0).params
    held = np.zeros(4)
    for seed in range(60):
        found = rows(released(question, drawn(COLUMNS, budget, exact, seed)))
        keys = [
            ("intercept", "", "income"),
            *(("coefficient", s, "income") for s in ("years", "age", "flag")),
        ]
        held += [found[key][1] <= true <= found[key][2] for key, true in zip(keys, oracle, strict=True)]
    assert held.min() >= 42, held


def test_noisy_variances_are_not_negative_and_a_correlation_drowned_in_noise_is_withheld():
    budget = Budget("zcdp", Fraction(1, 10_000))
    amounts = np.concatenate([population(200)[:, :2], np.full((200, 1), 40)], axis=1)
    columns = (INCOME, YEARS, AGE)
    exact = moments(columns, amounts)
    for seed in range(10):
        found = rows(
            released(Question(columns, 0, noise=noises(columns, budget)), drawn(columns, budget, exact, seed))
        )
        for (measure, a, b), (value, low, high) in found.items():
            assert np.isfinite([value, low, high]).all(), (measure, a, b)
            if measure == "variance":
                assert 0 <= low <= value <= high
            if measure == "correlation":
                assert -1 <= low <= value <= high <= 1
            if measure == "mean":
                column = next(c for c in columns if c.slot == a)
                assert column.low / 10**column.decimals <= low <= high <= column.high / 10**column.decimals
        assert ("correlation", "years", "age") not in found


def test_an_auditor_makes_a_noisy_table_again_as_well():
    budget = ZCDP
    question = Question(COLUMNS, 0, noise=noises(COLUMNS, budget))
    content = released(question, drawn(COLUMNS, budget, moments(COLUMNS, population(3000)), 1))
    made = again(question, content.facts)
    assert made.facts == content.facts
    np.testing.assert_allclose(
        made.table.columns["value"].astype(float), content.table.columns["value"].astype(float), rtol=1e-12
    )


def test_reaches_are_of_persons_and_noise():
    assert reaches((FLAG, AGE), None, 100) == 100 * 27 * 27
    noise = noises((FLAG, AGE), ZCDP)
    assert reaches((FLAG, AGE), noise, 100) == 100 * 27 * 27 + noise.products[2].reach
    wide = (Column("income", 0, 20_000_00, 2), DEBT)
    assert reaches(wide, None, (1 << 26) - 1) < 1 << 60
