"""Noise is as wide as the budget asks, no narrower, and costs the budget, no more."""

import math
from decimal import Decimal, localcontext
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.dp import exact, mechanism
from protocols.dp.cost import ORDERS, UNIT, Cost, total
from protocols.dp.mechanism import Budget, Noise, Vector, calibrate
from protocols.errors import InputError

RHO = Budget("zcdp", Fraction(1, 10))
EPSILON = Budget("pure-dp", Fraction(1))


def seeded(seed):
    """Return a `rand` that gives the same bytes in every run."""
    return np.random.Generator(np.random.Philox(seed)).bytes


def one(vector, budget, honest=1, contributors=None):
    """Return the noise of one vector."""
    (noise,), _ = calibrate([vector], budget, honest=honest, contributors=contributors or honest)
    return noise


# ---------------------------------------------------------------- yardsticks by hand


def test_a_count_at_rho_a_tenth_has_variance_five():
    noise = one(Vector("count", 1, 1, 1), RHO)
    assert noise.kind == "gaussian"
    assert noise.scale == 1
    assert Fraction(5) <= noise.spread <= Fraction(5) * (1 + Fraction(1, 10**15))
    assert noise.variance == pytest.approx(5)
    assert noise.half_width() == 4  # P(|X| ≤ 4) = 0.9559, P(|X| ≤ 3) = 0.8824


def test_a_count_at_epsilon_one_has_scale_one():
    noise = one(Vector("count", 1, 1, 1), EPSILON)
    assert (noise.kind, noise.scale, noise.spread) == ("laplace", 1, 1)
    alpha = math.exp(-1)
    assert noise.variance == pytest.approx(2 * alpha / (1 - alpha) ** 2)
    assert noise.half_width() == 3  # P(|X| ≤ 3) = 0.9732, P(|X| ≤ 2) = 0.9272


def test_nine_honest_of_ten_share_the_variance():
    noise = one(Vector("count", 1, 1, 1), RHO, honest=9, contributors=10)
    # A share alone would have variance 5/9; times 6² it is 20, the first above 16.
    assert noise.scale == 6
    assert noise.spread == pytest.approx(20)
    assert noise.variance == pytest.approx(10 * 20 / 36)


def test_where_one_must_be_enough_each_adds_the_whole_noise():
    both = one(Vector("count", 1, 1, 1), RHO, honest=1, contributors=2)
    assert both.spread == one(Vector("count", 1, 1, 1), RHO).spread
    assert both.scale == 1
    assert both.variance == pytest.approx(10)
    pure = one(Vector("count", 1, 1, 1), EPSILON, honest=1, contributors=2)
    assert pure.kind == "laplace"
    assert pure.variance == pytest.approx(2 * one(Vector("count", 1, 1, 1), EPSILON).variance)


def test_polya_shares_of_the_honest_have_the_scale_of_the_whole():
    noise = one(Vector("sum", 3, 40, 1600), Budget("pure-dp", Fraction(1, 3)), honest=4, contributors=5)
    assert (noise.kind, noise.scale) == ("polya", 1)
    assert Fraction(120) == noise.spread
    assert noise.variance == pytest.approx(5 / 4 * 2 * 120**2, rel=1e-4)


def test_sensitivity_that_is_no_square_is_used_as_it_is():
    noise = one(Vector("sum", 8, 5, 7), Budget("zcdp", Fraction(1, 2)))
    assert Fraction(7) <= noise.spread <= 7 + Fraction(1, 10**14)


def test_weights_split_the_budget():
    vectors = [Vector("a", 1, 1, 1, Fraction(3)), Vector("b", 10, 1, 1, Fraction(1))]
    (a, b), cost = calibrate(vectors, RHO, honest=1, contributors=1)
    assert a.spread == pytest.approx(5 * 4 / 3)
    assert b.spread == pytest.approx(5 * 4)
    assert cost == Cost.zcdp(Fraction(1, 10))
    (a, b), cost = calibrate(vectors, EPSILON, honest=1, contributors=1)
    assert a.spread == pytest.approx(4 / 3)
    assert b.spread == 4


# ---------------------------------------------------------------- cost


@pytest.mark.parametrize(("honest", "contributors"), [(1, 1), (1, 2), (2, 3), (49, 50)])
def test_the_cost_is_the_budget_to_the_last_unit(honest, contributors):
    for rho in (Fraction(1, 10), Fraction(1, 3), Fraction(16), Fraction(1, 10**6)):
        _, cost = calibrate(
            [Vector("cells", 1 << 20, 7, 13)],
            Budget("zcdp", rho),
            honest=honest,
            contributors=contributors,
        )
        assert cost == Cost.zcdp(rho)
        assert cost.delta == 0
    for epsilon in (Fraction(1), Fraction(1, 3), Fraction(32), Fraction(1, 10**6)):
        _, cost = calibrate(
            [Vector("cells", 1 << 20, 7, 13)],
            Budget("pure-dp", epsilon),
            honest=honest,
            contributors=contributors,
        )
        assert cost == Cost.pure_dp(epsilon)
        assert cost.delta == 0


@pytest.mark.parametrize("parts", [2, 3, 7, 11])
def test_any_parts_of_a_budget_cost_the_budget_and_four_quarters_fit(parts):
    vectors = [Vector(str(i), 5, 1, 1, Fraction(1 + i)) for i in range(parts)]
    for notion, amount in (("zcdp", Fraction(1, 10)), ("pure-dp", Fraction(7, 10))):
        _, cost = calibrate(vectors, Budget(notion, amount), honest=3, contributors=4)
        assert total([cost] * 4).within(notion, amount * 4)
        assert not total([cost] * 4).within(notion, amount * 4 - Fraction(1, 10**14))
        if notion == "pure-dp":
            parted = total(Cost.pure_dp(amount * v.weight / sum(w.weight for w in vectors)) for v in vectors)
            assert cost.pure == amount * UNIT <= parted.pure
            assert all(
                ours <= theirs <= ours + parts for ours, theirs in zip(cost.rdp, parted.rdp, strict=True)
            )


@given(
    rho=st.fractions("1/1000000", 16, max_denominator=10**9),
    l2_squared=st.integers(1, 10**12),
    honest=st.integers(2, 60),
    size=st.integers(1, 1 << 20),
)
@settings(deadline=None, max_examples=100)
def test_shares_keep_to_rho_with_all_that_sets_their_sum_apart(rho, l2_squared, honest, size):
    noise = one(Vector("v", size, l2_squared, l2_squared), Budget("zcdp", rho), honest=honest)
    assert noise.spread >= 16
    square = noise.scale**2 * l2_squared
    with localcontext(prec=60):
        # τ by its own formula, π to 30 digits from below, so that it is not below the truth.
        pi = Decimal("3.14159265358979323846264338327")
        variance = Decimal(noise.spread.numerator) / noise.spread.denominator
        variance = min(variance, Decimal(40))
        tau = 10 * sum((-2 * pi**2 * variance * k / (k + 1)).exp() for k in range(1, honest))
        apart = Fraction(tau) * size * Fraction(12, 5)
    cost = square / (2 * honest * noise.spread) + (apart if noise.spread <= 40 else 0)
    assert cost <= rho
    assert square / (2 * honest * noise.spread) > rho * (1 - Fraction(1, 10**14))


@given(
    epsilon=st.fractions("1/1000000", 32, max_denominator=10**9),
    l1=st.integers(1, 10**10),
    honest=st.integers(1, 60),
)
@settings(deadline=None, max_examples=100)
def test_the_scale_keeps_to_epsilon(epsilon, l1, honest):
    noise = one(Vector("v", 3, l1, l1), Budget("pure-dp", epsilon), honest=honest)
    assert epsilon * (1 - Fraction(1, 10**15)) < l1 / noise.spread <= epsilon
    assert noise.kind == ("laplace" if honest == 1 else "polya")


@given(st.fractions("1/1000", 16, max_denominator=10**6), st.integers(1, 10**15))
@settings(deadline=None, max_examples=100)
def test_the_width_that_opendp_is_given_is_the_width_that_is_charged(rho, l2_squared):
    noise = one(Vector("v", 3, l2_squared, l2_squared), Budget("zcdp", rho))
    assert Fraction(math.sqrt(noise.spread)) ** 2 == noise.spread


# ---------------------------------------------------------------- Rényi divergences, computed


def law(noise, shares):
    """Return the probabilities of the sum of that many contributors' shares, values -K … K."""
    spread = float(noise.spread)
    reach = 40 * math.sqrt(spread) + 10 if noise.kind == "gaussian" else 400
    k = np.arange(reach + 1.0)
    if noise.kind == "gaussian":
        half = np.exp(-(k**2) / (2 * spread))
        parts = np.array([*half[:0:-1], *half])
    elif noise.kind == "laplace":
        half = np.exp(-k / spread)
        parts = np.array([*half[:0:-1], *half])
    else:
        up = np.cumprod([1.0, *((k[:-1] + 1 / noise.honest) / (k[:-1] + 1) * math.exp(-1 / spread))])
        parts = np.convolve(up, up[::-1])
    parts /= parts.sum()
    whole = parts
    for _ in range(shares - 1):
        whole = np.convolve(whole, parts)
    return whole


def divergence(order, probabilities, shift):
    """Return the Rényi divergence between a law and itself shifted."""
    p, q = probabilities[shift:], probabilities[:-shift]
    seen = (p > 1e-200) & (q > 1e-200)
    p, q = np.log(p[seen]), np.log(q[seen])
    return math.log(np.exp(order * p + (1 - order) * q).sum()) / (order - 1)


@pytest.mark.parametrize("honest", [1, 2, 4])
@pytest.mark.parametrize("budget", [RHO, Budget("zcdp", Fraction(2)), EPSILON], ids=["ρ=0.1", "ρ=2", "ε=1"])
def test_the_divergence_of_what_the_honest_add_is_what_is_charged_and_not_of_less(budget, honest):
    (noise,), cost = calibrate([Vector("v", 1, 1, 1)], budget, honest=honest, contributors=honest + 1)
    narrower = narrowed(noise)
    for order, charged in zip(ORDERS, cost.rdp, strict=True):
        if order > 8:
            continue  # beyond, tails that a float cannot hold count
        found = divergence(float(order), law(noise, honest), noise.scale)
        assert found <= charged / UNIT * (1 + 1e-6)
        if budget.notion == "zcdp":
            assert found > charged / UNIT * 0.95
        assert divergence(float(order), law(narrower, honest), noise.scale) > charged / UNIT


@pytest.mark.parametrize("honest", [1, 3])
def test_the_privacy_loss_of_pure_noise_is_epsilon_everywhere(honest):
    (noise,), _ = calibrate([Vector("v", 1, 2, 4)], EPSILON, honest=honest, contributors=honest)
    whole = law(noise, honest)
    centre = whole[len(whole) // 2 - 60 : len(whole) // 2 + 61]
    loss = np.log(centre[2:] / centre[:-2])
    assert np.abs(loss).max() == pytest.approx(1, abs=1e-6)


def test_a_sum_of_gaussian_shares_is_as_near_to_one_as_the_lemma_says():
    for sigma, shares, tight in ((1.0, 2, 0.3), (1.1, 3, 0.01), (1.25, 5, 0.0)):
        k = np.arange(-60.0, 61.0)
        part = np.exp(-(k**2) / (2 * sigma**2))
        part /= part.sum()
        whole = part
        for _ in range(shares - 1):
            whole = np.convolve(whole, part)
        half = len(whole) // 2
        x = np.arange(-6, 7)
        wide = np.exp(-(np.arange(-200.0, 201.0) ** 2) / (2 * shares * sigma**2))
        ratio = np.log(whole[half + x] / (np.exp(-(x**2) / (2 * shares * sigma**2)) / wide.sum()))
        bound = 5 * sum(math.exp(-2 * math.pi**2 * sigma**2 * k / (k + 1)) for k in range(1, shares))
        assert bound * tight <= np.abs(ratio).max() <= bound


# ---------------------------------------------------------------- draws


KINDS = [
    ("gaussian", RHO, 1, 1),
    ("gaussian", RHO, 4, 5),
    ("laplace", EPSILON, 1, 1),
    ("laplace", EPSILON, 1, 2),
    ("polya", EPSILON, 4, 5),
]


@pytest.mark.parametrize("sensitivity", [1, 30_000])
@pytest.mark.parametrize("size", [1, 300, exact.SMALL, exact.SMALL + 1])
@pytest.mark.parametrize("case", KINDS)
def test_shares_of_every_kind_and_size_have_their_width(case, size, sensitivity):
    kind, budget, honest, contributors = case
    noise = one(Vector("v", size, sensitivity, sensitivity**2), budget, honest, contributors)
    values = noise.draw(seeded(1))
    assert noise.kind == kind
    assert values.shape == (size,)
    assert values.dtype == np.int64
    assert np.abs(values).max() <= noise.reach
    if size >= exact.SMALL:
        # Kurtosis of a Pólya share is at most 3·4 + 3: 9 standard errors of the variance.
        wanted = noise.variance * noise.scale**2 / contributors
        assert abs(values.var() / wanted - 1) < 9 * math.sqrt(14 / size)


@pytest.mark.parametrize("sensitivity", [1, 10**6])
def test_opendp_draws_what_is_short_or_too_wide_for_a_table(monkeypatch, sensitivity):
    asked = []
    for name in ("discrete_gaussian", "discrete_laplace"):
        monkeypatch.setattr(exact, name, lambda width, count: asked.append((width, count)) or np.zeros(count))
    for size in (exact.SMALL, exact.SMALL + 1):
        for budget in (RHO, EPSILON):
            one(Vector("v", size, sensitivity, sensitivity**2), budget).draw(seeded(1))
    sizes = [count for _, count in asked]
    assert sizes == ([exact.SMALL] * 2 if sensitivity == 1 else [exact.SMALL] * 2 + [exact.SMALL + 1] * 2)
    assert asked[0][0] == pytest.approx(sensitivity * math.sqrt(5))
    assert asked[1][0] == pytest.approx(sensitivity)


def test_pure_shares_are_drawn_from_the_given_randomness_alone():
    for sensitivity in (1, 10**9):
        noise = one(Vector("v", 50, sensitivity, sensitivity), EPSILON, honest=3)
        first, again = noise.draw(seeded(4)), noise.draw(seeded(4))
        assert first.tolist() == again.tolist() != noise.draw(seeded(5)).tolist()


@pytest.mark.parametrize(("kind", "budget", "honest", "contributors"), KINDS)
def test_the_largest_sensitivity_has_noise_that_64_bits_hold(kind, budget, honest, contributors):
    noise = one(Vector("v", 64, 1 << 52, 1 << 104), budget, honest, contributors)
    values = noise.draw(seeded(6))
    assert np.abs(values).max() <= noise.reach < 2**62
    assert np.abs(values).max() > 2**50
    assert noise.half_width() > 2**52


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("notion", ["zcdp", "pure-dp"])
@pytest.mark.parametrize("amount", ["0", "-1", "33", "1e30"])
def test_a_budget_of_nothing_or_beyond_sense_is_refused_in_words(notion, amount):
    with pytest.raises(InputError) as refused:
        Budget(notion, Fraction(amount))
    assert refused.value.code == "bad-privacy"
    assert ("ρ" if notion == "zcdp" else "ε") in refused.value.message
    assert "usual" in refused.value.hint


def test_the_limits_of_a_budget_are_allowed():
    assert Budget("zcdp", Fraction(16)).amount == 16
    assert Budget("pure-dp", Fraction(32)).amount == 32
    with pytest.raises(InputError):
        Budget("zcdp", Fraction("16.01"))


@pytest.mark.parametrize("honest", [0, -1])
@pytest.mark.parametrize("budget", [RHO, EPSILON])
def test_noise_that_nobody_honest_adds_is_refused(budget, honest):
    with pytest.raises(InputError) as refused:
        calibrate([Vector("v", 1, 1, 1)], budget, honest=honest, contributors=3)
    assert refused.value.code == "no-honest-contributor"


def test_more_honest_than_there_are_is_refused():
    with pytest.raises(InputError):
        calibrate([Vector("v", 1, 1, 1)], RHO, honest=4, contributors=3)
    with pytest.raises(InputError):
        calibrate([], RHO, honest=1, contributors=1)


@pytest.mark.parametrize(
    ("budget", "honest"),
    [
        (Budget("zcdp", Fraction(1, 10**9)), 1),
        (Budget("zcdp", Fraction(1, 10**9)), 30),
        (Budget("zcdp", Fraction(1, 10**300)), 2),
        (Budget("pure-dp", Fraction(1, 10**4)), 1),
        (Budget("pure-dp", Fraction(1, 10**4)), 30),
        (Budget("pure-dp", Fraction(1, 10**400)), 2),
    ],
)
def test_noise_larger_than_any_sum_is_refused(budget, honest):
    with pytest.raises(InputError) as refused:
        one(Vector("v", 1, 1 << 52, 1 << 104), budget, honest)
    assert refused.value.code == "noise-too-large"
    assert "decimals" in refused.value.hint


@pytest.mark.parametrize(
    ("size", "l1", "l2_squared", "weight", "code"),
    [
        (0, 1, 1, 1, "bad-release"),
        (mechanism.MAX_SIZE + 1, 1, 1, 1, "bad-release"),
        (1, 1, 1, 0, "bad-release"),
        (1, 0, 1, 1, "bad-sensitivity"),
        (1, 1, 0, 1, "bad-sensitivity"),
        (1, (1 << 52) + 1, 1, 1, "bad-sensitivity"),
        (1, 1, (1 << 104) + 1, 1, "bad-sensitivity"),
    ],
)
def test_a_vector_that_cannot_be_is_refused(size, l1, l2_squared, weight, code):
    with pytest.raises(InputError) as refused:
        Vector("v", size, l1, l2_squared, Fraction(weight))
    assert refused.value.code == code


# ---------------------------------------------------------------- intervals


def coverage(noise):
    """Return P(|noise of the sum| ≤ w) for w = 0, 1, … from the whole law."""
    whole = law(noise, noise.contributors)
    middle = len(whole) // 2
    return np.array([whole[middle - w : middle + w + 1].sum() for w in range(300)])


@pytest.mark.parametrize("confidence", [Fraction("0.5"), Fraction("0.95"), Fraction("0.999")])
@pytest.mark.parametrize(("honest", "contributors"), [(1, 1), (1, 2), (1, 3), (2, 3), (4, 6)])
@pytest.mark.parametrize(
    "budget",
    [
        RHO,
        Budget("zcdp", Fraction(4)),
        EPSILON,
        Budget("pure-dp", Fraction(6)),
        Budget("pure-dp", Fraction(1, 9)),
    ],
    ids=["ρ=0.1", "ρ=4", "ε=1", "ε=6", "ε=1/9"],
)
def test_half_widths_are_the_least_that_cover(budget, honest, contributors, confidence):
    noise = one(Vector("v", 1, 1, 1), budget, honest, contributors)
    covered = coverage(noise)
    width = round(noise.half_width(confidence) * noise.scale)
    assert covered[width] >= confidence
    assert width == 0 or covered[width - 1] < confidence + Fraction(1, 10**6)


def test_half_widths_of_wide_noise_are_the_normal_and_the_laplace_quantiles():
    gaussian = one(Vector("v", 1, 10**9, 10**18), RHO)
    assert gaussian.half_width() == pytest.approx(1.959963985 * math.sqrt(5) * 1e9, rel=1e-7)
    laplace = one(Vector("v", 1, 10**9, 10**18), EPSILON)
    assert laplace.half_width() == pytest.approx(math.log(20) * 1e9, rel=1e-5)
    assert laplace.half_width() >= math.log(20) * 1e9
    # Two whole Laplace values: P(|X| > w) = (1 + w/2t) exp(-w/t).
    both = one(Vector("v", 1, 10**9, 10**18), EPSILON, 1, 2)
    width = both.half_width() / 1e9
    assert (1 + width / 2) * math.exp(-width) == pytest.approx(0.05, rel=1e-4)
    assert (1 + width / 2) * math.exp(-width) <= 0.05


@pytest.mark.parametrize(("kind", "budget", "honest", "contributors"), KINDS)
def test_half_widths_grow_with_confidence_and_with_contributors(kind, budget, honest, contributors):
    noise = one(Vector("v", 4, 50, 2500), budget, honest, contributors)
    widths = [noise.half_width(Fraction(c)) for c in ("0.5", "0.8", "0.95", "0.99", "0.999999")]
    assert all(a < b for a, b in pairwise(widths))
    assert widths[-1] * noise.scale <= noise.reach
    more = one(Vector("v", 4, 50, 2500), budget, honest, contributors + 3)
    assert more.half_width() > noise.half_width()


@pytest.mark.parametrize(("kind", "budget", "honest", "contributors"), KINDS)
def test_released_numbers_lie_within_their_half_width_as_often_as_stated(kind, budget, honest, contributors):
    size, rand = 1 << 17, seeded(11)
    noise = one(Vector("v", size, 25, 625), budget, honest, contributors)
    whole = sum(noise.draw(rand) for _ in range(contributors)) / noise.scale
    for confidence in (Fraction("0.8"), Fraction("0.95")):
        inside = (np.abs(whole) <= noise.half_width(confidence)).mean()
        # 6.5 standard errors: by chance less than once in 1e10.
        error = 6.5 * math.sqrt(confidence * (1 - confidence) / size)
        step = 2.5 / math.sqrt(noise.variance) / noise.scale  # the probability of one more integer, at most
        assert confidence - error <= inside <= confidence + error + step
    assert whole.std() == pytest.approx(math.sqrt(noise.variance), rel=0.03)


@pytest.mark.parametrize("confidence", ["0.49", "1", "0", "0.9999999"])
def test_a_confidence_that_makes_no_sense_is_refused(confidence):
    with pytest.raises(InputError) as refused:
        one(Vector("v", 1, 1, 1), RHO).half_width(Fraction(confidence))
    assert refused.value.code == "bad-confidence"


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_noise_beyond_its_reach_has_a_chance_of_less_than_two_to_the_minus_hundred(size):
    limit = Decimal(2) ** -100 / size
    with localcontext(prec=60):
        gaussian = one(Vector("v", size, 1, 1), RHO)
        weights = [(-Decimal(k * k) / 10).exp() for k in range(400)]
        beyond = 2 * sum(weights[gaussian.reach + 1 :]) / (2 * sum(weights) - 1)
        assert limit / 10**6 < beyond <= limit
        laplace = one(Vector("v", size, 3, 9), EPSILON)
        alpha = (Decimal(-1) / 3).exp()
        beyond = 2 * alpha ** (laplace.reach + 1) / (1 + alpha)
        assert limit / 10**6 < beyond <= limit


def test_a_noise_is_a_value():
    noise = one(Vector("v", 2, 1, 1), RHO, 2, 3)
    assert noise == one(Vector("w", 2, 1, 1), RHO, 2, 3)
    assert hash(noise) == hash(Noise("gaussian", 3, noise.spread, 2, 3, 2))


def narrowed(noise):
    """Return the same with half the width."""
    spread = noise.spread / 4 if noise.kind == "gaussian" else noise.spread / 2
    return Noise(noise.kind, noise.scale, spread, noise.honest, noise.contributors, noise.size)
