"""Noisy counts of a geography become one table: it adds up, nothing is below zero, least squares made it."""

import hashlib
from collections.abc import Callable
from fractions import Fraction
from itertools import product
from math import exp

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.dp.noise import discrete_gaussian, discrete_laplace
from protocols.dp.tree import MAX_COUNT, Tree, deviations, estimate, totals
from protocols.errors import InputError


def seeded(seed: str) -> Callable[[int], bytes]:
    """Random bytes that are the same in every run."""
    drawn = iter(range(1 << 30))
    return lambda count: hashlib.shake_256(f"{seed}/{next(drawn)}".encode()).digest(count)


@st.composite
def trees(draw, most_levels=4, most_children=5):
    parents, size = [], 1
    for _ in range(draw(st.integers(0, most_levels))):
        families = draw(st.lists(st.integers(1, most_children), min_size=size, max_size=size))
        each = [parent for parent, children in enumerate(families) for _ in range(children)]
        parents.append(np.array(draw(st.permutations(each)), np.int64))
        size = len(each)
        if size > 20:
            break
    return Tree(tuple(parents))


@st.composite
def noisy_trees(draw, low=-50, high=200):
    tree = draw(trees())
    noisy = [
        np.array(draw(st.lists(st.integers(low, high), min_size=size, max_size=size)), np.int64)
        for size in tree.sizes
    ]
    variances = draw(
        st.lists(st.floats(1e-3, 1e3), min_size=len(noisy), max_size=len(noisy))
        | st.just([20.0] * len(noisy))
    )
    return tree, noisy, variances


def same(ours, theirs):
    assert all(np.array_equal(mine, other) for mine, other in zip(ours, theirs, strict=True))


# ---------------------------------------------------------------- a table that adds up


@given(noisy_trees())
def test_children_add_up_to_their_parent_and_nothing_is_below_zero(case):
    tree, noisy, variances = case
    counts = estimate(tree, noisy, variances).counts
    assert tuple(map(len, counts)) == tree.sizes
    assert min(level.min() for level in counts) >= 0
    same(counts, totals(tree, counts[-1]))


@given(noisy_trees(-MAX_COUNT, MAX_COUNT))
def test_it_adds_up_for_counts_of_any_size(case):
    tree, noisy, variances = case
    counts = estimate(tree, noisy, variances).counts
    assert min(level.min() for level in counts) >= 0
    same(counts, totals(tree, counts[-1]))


@given(trees(), st.data())
def test_counts_without_noise_stay_as_they_are(tree, data):
    size = tree.sizes[-1]
    leaves = data.draw(st.lists(st.integers(0, 10**7), min_size=size, max_size=size))
    true = totals(tree, np.array(leaves, np.int64))
    variances = data.draw(st.lists(st.floats(0.01, 1e4), min_size=len(true), max_size=len(true)))
    same(estimate(tree, true, variances).counts, true)


@given(noisy_trees(), st.randoms())
def test_the_order_of_the_children_does_not_matter(case, order):
    tree, noisy, variances = case
    # `new[l][i]` is the old place of what now stands at place i.
    new = [np.zeros(1, np.int64)] + [
        np.array(order.sample(range(size), size), np.int64) for size in tree.sizes[1:]
    ]
    place = [np.argsort(each) for each in new]
    moved = Tree(tuple(place[level][parents[new[level + 1]]] for level, parents in enumerate(tree.parents)))
    one = estimate(tree, noisy, variances)
    other = estimate(moved, [y[each] for y, each in zip(noisy, new, strict=True)], variances)
    for level, each in enumerate(new):
        np.testing.assert_allclose(other.values[level], one.values[level][each], rtol=1e-9, atol=1e-7)
        np.testing.assert_allclose(other.variances[level], one.variances[level][each])
    # Where two remainders are equal, one of them goes first; nothing else depends on the order.
    if tree.parents:
        distinct = np.unique(np.round(one.values[1] % 1, 6)).size == tree.sizes[1]
        if distinct:
            assert np.array_equal(other.counts[1], one.counts[1][new[1]])


def test_a_city_of_one_level_is_its_own_count():
    found = estimate(Tree(()), [np.array([41])], [4])
    assert (found.counts[0].tolist(), found.variances[0].tolist()) == ([41], [4.0])


# ---------------------------------------------------------------- no better one is linear


def design(tree):
    """Return which leaves each node holds, top level first: a matrix of nodes by leaves."""
    levels = [np.eye(tree.sizes[-1])]
    for parents, size in zip(reversed(tree.parents), reversed(tree.sizes[:-1]), strict=True):
        levels.insert(0, np.array([levels[0][parents == node].sum(0) for node in range(size)]))
    return levels


@settings(max_examples=50)
@given(noisy_trees())
def test_up_and_down_is_weighted_least_squares(case):
    tree, noisy, variances = case
    levels = design(tree)
    matrix = np.vstack(levels)
    root = np.sqrt(np.concatenate([np.full(len(y), v) for y, v in zip(noisy, variances, strict=True)]))
    leaves, *_ = np.linalg.lstsq(matrix / root[:, None], np.concatenate(noisy) / root, rcond=None)
    covariance = np.linalg.inv((matrix / root[:, None]).T @ (matrix / root[:, None]))
    found = estimate(tree, noisy, variances)
    for level, held in enumerate(levels):
        scale = np.sqrt(np.diag(held @ covariance @ held.T)).max()
        np.testing.assert_allclose(found.values[level], held @ leaves, atol=1e-6 + 1e-6 * scale)
        np.testing.assert_allclose(found.variances[level], np.diag(held @ covariance @ held.T), rtol=1e-5)


@given(st.lists(st.integers(-30, 60), min_size=1, max_size=8), st.integers(0, 100))
def test_one_family_is_projected_on_its_sum_and_rounded(parts, whole):
    found = estimate(Tree((np.zeros(len(parts), np.int64),)), [np.array([whole]), np.array(parts)], [1e-9, 1])
    counts, values = found.counts[1], found.values[1]
    # The projection cuts one height off all parts it keeps (Duchi et al. 2008), here found by bisection.
    low, high = values.min() - whole - 1, values.max() + 1
    for _ in range(200):
        height = (low + high) / 2
        low, high = (height, high) if np.maximum(values - height, 0).sum() > whole else (low, height)
    assert np.abs(counts - np.maximum(values - height, 0)).max() < 1 + 1e-6


@given(st.lists(st.integers(-9, 9), min_size=1, max_size=4), st.integers(0, 6), st.integers(1, 99))
def test_no_other_whole_numbers_with_that_sum_are_nearer(parts, whole, percent):
    noisy = np.array(parts) * percent / 100
    found = estimate(Tree((np.zeros(len(parts), np.int64),)), [np.array([whole]), noisy], [1e-9, 1])
    counts, values = found.counts[1], found.values[1]
    ways = (way for way in product(range(whole + 1), repeat=len(parts)) if sum(way) == whole)
    nearest = min(((np.array(way) - values) ** 2).sum() for way in ways)
    assert ((counts - values) ** 2).sum() <= nearest + 1e-6


# ---------------------------------------------------------------- how far it may be off


CITY = Tree((np.zeros(4, np.int64), np.repeat(np.arange(4), 5), np.repeat(np.arange(20), 10)))


def variance_of(weight):
    """Return the variance of a distribution of these weights at 0, 1, 2, …, and the same below zero."""
    return 2 * (np.arange(len(weight)) ** 2 * weight).sum() / (2 * weight.sum() - weight[0])


@pytest.mark.parametrize("square", [Fraction(1, 5), Fraction(2), Fraction(20)])
@pytest.mark.parametrize(
    ("kind", "confidence"), [("gaussian", "0.95"), ("laplace", "0.95"), ("laplace", "0.99")]
)
@pytest.mark.parametrize("most", [4, 3000])
def test_intervals_hold_the_true_count_as_often_as_they_say(kind, square, confidence, most):
    """The seed is fixed; over other seeds a false alarm has a chance below 1e-4 at each level."""
    far = np.arange(400)
    if kind == "gaussian":
        sampler, variance = discrete_gaussian(square), variance_of(np.exp(-(far**2) / (2 * float(square))))
    else:
        scale = Fraction(int(float(square / 2) ** 0.5 * 1000), 1000)
        sampler, variance = discrete_laplace(scale), variance_of(np.exp(-far / float(scale)))
    rand, runs = seeded(f"{kind}/{square}/{most}"), 60
    true = totals(CITY, np.random.default_rng(7).integers(0, most, CITY.sizes[-1]))
    held, outwards = np.zeros(4), np.zeros(4)
    wide = deviations(Fraction(confidence), heavy=kind == "laplace")
    for _ in range(runs):
        noisy = [level + sampler.draw(len(level), rand) for level in true]
        found = estimate(CITY, noisy, [variance] * 4)
        # Around the whole counts, and around the estimate they were rounded from.
        widths = found.half_widths(Fraction(confidence), heavy=kind == "laplace")
        held += [(np.abs(c - t) <= w).sum() for c, t, w in zip(found.counts, true, widths, strict=True)]
        off = [wide * np.sqrt(each) for each in found.variances]
        outwards += [
            ((np.floor(v - w) <= t) & (t <= np.ceil(v + w))).sum()
            for v, t, w in zip(found.values, true, off, strict=True)
        ]
    share = np.minimum(held, outwards) / (np.array(CITY.sizes) * runs)
    # Counts of one table hang together: at worst as if each run gave one independent figure per district.
    independent = np.minimum(np.array(CITY.sizes), 4) * runs
    miss = 1 - float(Fraction(confidence))
    assert np.all(share >= 1 - miss - 4 * np.sqrt(miss / independent))


def test_deviations_are_those_of_the_distribution():
    assert deviations(Fraction("0.95")) == pytest.approx(1.959964)
    found = estimate(Tree(()), [np.array([100])], [25.0])
    assert found.half_widths(Fraction("0.95"))[0].tolist() == [10]  # 1.96 * 5 = 9.8, a whole number upwards
    # P(|X| > 2.118 standard deviations) of a Laplace variable is 5 %.
    assert deviations(Fraction("0.95"), heavy=True) == pytest.approx(2.118303)
    # Within half of the time the Gaussian reaches further.
    assert deviations(Fraction("0.5"), heavy=True) == deviations(Fraction("0.5"))


@pytest.mark.parametrize("confidence", ["0.8", "0.9", "0.95", "0.99", "0.999"])
def test_two_laplace_variables_reach_no_further_than_one_of_their_variance(confidence):
    """Exactly, for every share of the variance: P(|X + Y| > t) of two independent Laplace variables."""
    wide = deviations(Fraction(confidence), heavy=True)
    for share in np.linspace(0.001, 0.499, 50):
        a, b = np.sqrt(share / 2), np.sqrt((1 - share) / 2)  # scales; the variances are 2a² and 2b²
        tail = (b**2 * exp(-wide / b) - a**2 * exp(-wide / a)) / (b**2 - a**2)
        assert tail <= (1 - float(Fraction(confidence))) * (1 + 1e-12)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "parents",
    [
        ([],),
        ([0, 1],),
        ([-1, 0],),
        ([0, 0], [0, 0]),
        ([0.0, 0.0],),
        ([[0, 0]],),
    ],
)
def test_what_is_no_tree_is_refused(parents):
    with pytest.raises(InputError) as refused:
        Tree(tuple(np.array(level) for level in parents))
    assert refused.value.code == "bad-tree"


TWO = Tree((np.array([0, 0]),))


@pytest.mark.parametrize(
    ("noisy", "variances", "code"),
    [
        ([[3]], [1], "bad-tree"),
        ([[3], [1, 1, 1]], [1, 1], "bad-tree"),
        ([[3], [1, 2]], [1], "bad-tree"),
        ([[3], [1, 2]], [1, 0], "bad-noise"),
        ([[3], [1, 2]], [1, -1], "bad-noise"),
        ([[3], [1, 2]], [1, float("nan")], "bad-noise"),
        ([[3], [1, 2]], [1, float("inf")], "bad-noise"),
        ([[3], [1, MAX_COUNT + 1]], [1, 1], "count-too-large"),
        ([[3], [1, -(2**63)]], [1, 1], "count-too-large"),
        ([[3], [1.0, float("nan")]], [1, 1], "count-too-large"),
    ],
)
def test_what_does_not_fit_the_geography_is_refused(noisy, variances, code):
    with pytest.raises(InputError) as refused:
        estimate(TWO, [np.array(level) for level in noisy], variances)
    assert refused.value.code == code


@pytest.mark.parametrize("confidence", [0, 1, -1, 2])
def test_a_confidence_outside_zero_and_one_is_refused(confidence):
    with pytest.raises(InputError):
        deviations(Fraction(confidence))
