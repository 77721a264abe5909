"""The public side: the cubic, weights that no row can score beyond, and what is made of totals."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.dp.mechanism import Budget, calibrate
from protocols.errors import InputError, ProtocolAborted
from protocols.joined.moments import adassp_ridge
from protocols.training.joined.cubic import BOUNDS, MAX_BITS, REACH, Cubic
from protocols.training.joined.descent import Descent, OneShot
from protocols.training.joined.params import _finest
from protocols.training.schema import Binned, Coded, Schema

SCHEMA = Schema((Coded("a", ("x", "y")), Binned("b", (0.0, 1.0, 2.0)), Binned("c", (0.5,))))
RNG = np.random.default_rng(5)
OFFSETS = SCHEMA.offsets[:-1]


def codes_of(n, seed=0):
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(0, width, n) for width in SCHEMA.widths], axis=1)


def design(codes):
    x = np.zeros((len(codes), SCHEMA.size), np.int64)
    np.put_along_axis(x, codes + OFFSETS, 1, axis=1)
    x[:, -1] = 1
    return x


# -- the cubic


@pytest.mark.parametrize("bound", BOUNDS)
def test_the_cubic_is_the_least_squares_one_in_whole_numbers(bound):
    cubic = Cubic(bound, 7)
    u = np.linspace(-bound, bound, 20_001)
    sigmoid = 1 / (1 + np.exp(-u))
    best, *_ = np.linalg.lstsq(np.stack((u, u**3), axis=1), sigmoid - 0.5, rcond=None)
    assert cubic.real[1:] == pytest.approx(tuple(best), abs=2e-5)
    v = np.arange(-(bound << 7), (bound << 7) + 1)
    values = np.array([cubic.value(int(each)) for each in v], dtype=object)
    assert np.abs((values / cubic.unit).astype(float) - cubic.on(v / 128)).max() < 1e-4
    assert cubic.largest == max(abs(value - label * cubic.unit) for value in values for label in (0, 1))


def test_on_eight_it_is_that_of_the_literature():
    _, linear, cubic = Cubic(8, 11).real
    assert (linear * 8, -cubic * 512) == pytest.approx((1.20096, 0.81562), abs=5e-5)
    assert Cubic(8, 11).largest / Cubic(8, 11).unit == pytest.approx(1.061, abs=1e-3)


@pytest.mark.parametrize(("bound", "bits"), [(7, 8), (8, 3), (8, MAX_BITS + 1), (0, 8)])
def test_a_cubic_that_is_none_is_refused(bound, bits):
    with pytest.raises(InputError):
        Cubic(bound, bits)


@pytest.mark.parametrize("rho", [None, Fraction(1, 1000)])
@pytest.mark.parametrize("rows", [100, 30_000, 150_000, 1 << 22, 1 << 26])
def test_the_finest_grid_is_the_finest_that_totals_and_noise_leave_room_for(rows, rho):
    found = _finest(SCHEMA, 8, rows, rho)
    assert found is not None

    def reach(cubic):
        total = cubic.largest * rows
        if rho is not None:
            (noise,), _ = calibrate(
                [Descent(SCHEMA, cubic).vector], Budget("zcdp", rho), honest=1, contributors=2
            )
            total += noise.reach
        return total

    assert reach(found) <= REACH
    assert found.bits == MAX_BITS or reach(Cubic(8, found.bits + 1)) > REACH
    assert found.bits >= {100: 12, 30_000: 11, 150_000: 11, 1 << 22: 9, 1 << 26: 8}[rows] - (rho is not None)


# -- weights


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6), min_size=SCHEMA.size, max_size=SCHEMA.size),
    st.sampled_from([(4, 4), (8, 11), (12, 12)]),
)
def test_no_possible_row_scores_beyond_the_bound_after_a_step(totals, grid):
    cubic = Cubic(*grid)
    model = Descent(SCHEMA, cubic, step=8.0)
    state = model.start()
    for _ in range(3):
        state = model.advance(state, np.array(totals) * cubic.unit, 100.0)
        weights = model.weights(state)
        assert model.within(weights)
        every = np.stack(np.meshgrid(*map(np.arange, SCHEMA.widths), indexing="ij"), -1).reshape(-1, 3)
        assert np.abs(design(every) @ weights).max() <= cubic.bound << cubic.bits


def test_the_helpers_look_at_weights_is_exact():
    model = Descent(SCHEMA, Cubic(4, 4))
    most = 4 << 4
    weights = np.zeros(SCHEMA.size, np.int64)
    weights[0], weights[-1] = most - 3, 3
    assert model.within(weights)
    weights[-1] = 4
    assert not model.within(weights)
    assert not model.within(-weights)
    huge = np.full(SCHEMA.size, 1 << 62, np.int64)
    assert not model.within(huge)
    assert not model.within(-huge)
    assert not model.within(np.full(SCHEMA.size, -(1 << 63), np.int64))


def test_one_row_changes_a_gradient_by_no_more_than_is_said():
    cubic = Cubic(8, 8)
    model = Descent(SCHEMA, cubic)
    rng = np.random.default_rng(2)
    worst = 0
    for _ in range(200):
        state = model.advance(model.start(), rng.normal(0, 50, SCHEMA.size) * cubic.unit, 1.0)
        weights, x = model.weights(state), design(codes_of(8, int(rng.integers(1 << 30))))
        for row, score in zip(x, x @ weights, strict=True):
            for label in (0, 1):
                r = cubic.value(int(score)) - label * cubic.unit
                part = [r * int(each) for each in row]
                assert sum(map(abs, part)) <= model.vector.l1
                assert sum(each * each for each in part) <= model.vector.l2_squared
                worst = max(worst, sum(each * each for each in part))
    assert worst > model.vector.l2_squared / 2


def test_a_total_that_is_none_is_refused():
    model = Descent(SCHEMA, Cubic(8, 8))
    for total in (np.zeros(SCHEMA.size - 1), np.full(SCHEMA.size, np.nan), np.full(SCHEMA.size, np.inf)):
        with pytest.raises(ProtocolAborted) as found:
            model.advance(model.start(), total, 10.0)
        assert found.value.code == "bad-total"


def test_withheld_codes_keep_no_weight_and_a_ridge_shrinks():
    rng = np.random.default_rng(4)
    total = rng.normal(0, 30, SCHEMA.size)
    few = np.zeros(SCHEMA.size, np.bool_)
    few[1] = True
    plain, heavy = (Descent(SCHEMA, Cubic(8, 10), ridge=each) for each in (0.0, 0.5))
    one, other = plain.start(), heavy.start()
    for _ in range(20):
        one = plain.advance(one, total * plain.cubic.unit, 100.0, few)
        other = heavy.advance(other, total * heavy.cubic.unit, 100.0, few)
    assert one.weights[1] == other.weights[1] == 0
    assert np.abs(other.weights[:-1]).sum() < np.abs(one.weights[:-1]).sum()


# -- one release


def moments(n=3000, seed=1):
    x = design(codes_of(n, seed))
    rng = np.random.default_rng(seed)
    odds = x @ np.array([0.8, -0.8, 0, 0.6, 0.2, -0.5, -0.4, 0.3, -0.3, -0.2])
    y = 2 * (rng.random(n) < 1 / (1 + np.exp(-odds))).astype(np.int64) - 1
    return x, y, odds


def test_without_noise_it_is_ridge_regression():
    x, y, odds = moments()
    model = OneShot(SCHEMA, Cubic(8, 12), ridge=0.01)
    weights = model.fit(x.T @ x, x.T @ y, float(len(x)), variance=0.0)
    scaled = x / np.sqrt(model.ones)
    oracle = np.linalg.solve(scaled.T @ scaled + 0.01 * len(x) * np.eye(SCHEMA.size), scaled.T @ y)
    assert weights / 2**12 == pytest.approx(2 * oracle / np.sqrt(model.ones), abs=2**-11)
    assert np.corrcoef(x @ weights, odds)[0, 1] > 0.95
    assert model.within(weights)


def test_codes_that_are_withheld_are_not_in_the_regression():
    x, y, _ = moments()
    few = np.zeros(SCHEMA.size, np.bool_)
    few[[0, 4]] = True
    model = OneShot(SCHEMA, Cubic(8, 12))
    weights = model.fit(x.T @ x, x.T @ y, float(len(x)), variance=0.0, withheld=few)
    assert (weights[few] == 0).all()
    assert (weights[~few] != 0).any()


@pytest.mark.parametrize("s", [0.0, 2.0, 50.0])
def test_the_ridge_is_that_of_adassp(s):
    square = np.diag([400.0, 90.0, 3.0])
    sure = max(0.0, 3.0 - s * (2 * np.sqrt(3) + np.sqrt(2 * np.log(6 / 0.05))))
    expected = max(0.0, np.sqrt(3 * np.log(2 * 9 / 0.05)) * s - sure)
    assert adassp_ridge(square, s) == pytest.approx(expected, rel=1e-12)


def test_one_row_changes_moments_by_no_more_than_is_said():
    model = OneShot(SCHEMA, Cubic(8, 8))
    upper = np.triu_indices(SCHEMA.size)
    for row in design(codes_of(40)):
        changed = np.outer(row, row)[upper]
        assert (changed**2).sum() == model.moments.l2_squared == changed.sum() == model.moments.l1
        assert (row**2).sum() == model.cross.l2_squared == model.cross.l1
    assert model.moments.size == len(upper[0])


def test_noise_far_above_the_moments_gives_weights_all_the_same():
    x, y, _ = moments(200)
    model = OneShot(SCHEMA, Cubic(4, 8))
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 1e6, (SCHEMA.size, SCHEMA.size))
    square = x.T @ x + np.rint(noise + noise.T).astype(np.int64)
    weights = model.fit(square, x.T @ y, 200.0, variance=2e12)
    assert model.within(weights)
