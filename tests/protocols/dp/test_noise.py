"""Values drawn in bulk have exactly the distribution they stand for.

Every statistical test has a fixed seed and fails by chance with probability 1e-9 at most.
"""

import math
from decimal import Decimal, localcontext
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from protocols.dp import noise
from protocols.dp.noise import Sampler, Weights, discrete_gaussian, discrete_laplace, poisson, polya
from protocols.errors import InputError

FALSE_ALARM = 1e-9
DRAWS = 1 << 18


def seeded(seed):
    """Return a `rand` that gives the same bytes in every run."""
    return np.random.Generator(np.random.Philox(seed)).bytes


def weight_of_gaussian(variance, k):
    return (1 if k == 0 else 2) * (-Decimal(k * k) * variance.denominator / (2 * variance.numerator)).exp()


def weight_of_laplace(scale, k):
    return (1 if k == 0 else 2) * (-Decimal(k) * scale.denominator / scale.numerator).exp()


def weight_of_polya(scale, shares, k):
    rising = Decimal(1)
    for j in range(1, k + 1):
        rising *= Decimal((j - 1) * shares + 1) / (j * shares)
    return rising * (-Decimal(k) * scale.denominator / scale.numerator).exp()


def weight_of_poisson(mean, k):
    return (Decimal(mean.numerator) / mean.denominator) ** k / math.factorial(k)


CASES = [
    *((discrete_gaussian, weight_of_gaussian, (Fraction(v),)) for v in ("1/50", "1/3", "2", "25", "1003/7")),
    *((discrete_laplace, weight_of_laplace, (Fraction(t),)) for t in ("1/20", "0.7", "1", "23/3", "40")),
    *((polya, weight_of_polya, (Fraction(t), h)) for t, h in (("0.7", 1), ("1", 3), ("23/3", 2), ("9", 49))),
    *((poisson, weight_of_poisson, (Fraction(m),)) for m in ("1/50", "1", "27/2")),
]
NAMES = [f"{make.__name__}-{'-'.join(map(str, arguments))}" for make, _, arguments in CASES]


def exact(weight, arguments, count):
    """Return the probabilities of 0, 1, … to 50 digits, from `count` weights; the rest is nothing."""
    with localcontext(prec=60):
        weights = [weight(*arguments, k) for k in range(count)]
        assert weights[-1] < Decimal(10) ** -45
        total = sum(weights)
        return [w / total for w in weights]


def chi_square_refutes(observed, expected):
    """Return whether counts contradict expected counts; expectations below 20 are put together."""
    observed, expected = np.asarray(observed, float), np.asarray(expected, float)
    common = expected >= 20
    rare = ~common
    ours, theirs = observed[common], expected[common]
    if expected[rare].sum() >= 20:
        ours, theirs = np.append(ours, observed[rare].sum()), np.append(theirs, expected[rare].sum())
    statistic = ((ours - theirs) ** 2 / theirs).sum()
    return statistic > chi2.isf(FALSE_ALARM, max(len(ours) - 1, 1))


def signed_probabilities(halves):
    """Return the probabilities of -K … K from those of |X|."""
    tail = [float(p) / 2 for p in halves[1:]]
    return np.array([*tail[::-1], float(halves[0]), *tail])


# ---------------------------------------------------------------- thresholds


@pytest.mark.parametrize(("make", "weight", "arguments"), CASES, ids=NAMES)
def test_every_threshold_is_known_to_lie_where_it_lies(make, weight, arguments):
    sampler = make(*arguments)
    probabilities = exact(weight, arguments, 2 * len(sampler.lower) + 40)
    assert sampler.gap <= 4
    with localcontext(prec=60):
        reached = Decimal(0)
        for lower, probability in zip(sampler.lower.tolist(), probabilities, strict=False):
            reached += probability
            assert lower <= reached * 2**63 <= lower + sampler.gap


@given(st.fractions("1/30", 300, max_denominator=10**6), st.sampled_from([63, 127]))
@settings(deadline=None, max_examples=25)
def test_the_last_threshold_leaves_no_more_than_its_gap(width, bits):
    for make in (discrete_gaussian, discrete_laplace, lambda t: polya(t, 3)):
        thresholds, gap = make(width).weigh(bits).thresholds(bits)
        assert thresholds[-1] + gap >= 2**bits - 1
        assert all(a <= b for a, b in pairwise(thresholds))


def test_a_discrete_laplace_threshold_is_its_closed_form():
    sampler = discrete_laplace(Fraction(12_345))
    with localcontext(prec=60):
        alpha = (-1 / Decimal(12_345)).exp()
        for k in (0, 1, 1000, 100_000, 700_000):
            below = (1 - 2 * alpha ** (k + 1) / (1 + alpha)) * 2**63
            assert int(sampler.lower[k]) <= below <= int(sampler.lower[k]) + sampler.gap


# ---------------------------------------------------------------- what is drawn


@pytest.mark.parametrize(("make", "weight", "arguments"), CASES, ids=NAMES)
def test_draws_have_the_exact_distribution(make, weight, arguments):
    sampler = make(*arguments)
    values = sampler.draw(DRAWS, seeded(1))
    probabilities = exact(weight, arguments, 2 * len(sampler.lower) + 40)
    if sampler.signed:
        expected = signed_probabilities(probabilities)
        observed = np.bincount(values + len(probabilities) - 1, minlength=len(expected))
    else:
        expected = np.array(probabilities, float)
        observed = np.bincount(values, minlength=len(expected))
    assert not chi_square_refutes(observed, expected * DRAWS)


def test_the_chi_square_finds_a_distribution_that_is_two_percent_off():
    values = discrete_gaussian(Fraction("25.5")).draw(DRAWS * 4, seeded(2))
    probabilities = exact(weight_of_gaussian, (Fraction(25),), 120)
    observed = np.bincount(values + 119, minlength=239)
    assert chi_square_refutes(observed, signed_probabilities(probabilities) * DRAWS * 4)


@pytest.mark.parametrize("variance", [Fraction(1, 3), Fraction(10**6), Fraction(90_000) ** 2])
def test_mean_and_variance_are_those_of_the_discrete_gaussian(variance):
    values = discrete_gaussian(variance).draw(DRAWS, seeded(3)).astype(float)
    wanted = float(variance) if variance > 1 else 0.321188
    # Six and a half standard errors either way: less than 1e-10 each.
    assert abs(values.mean()) < 6.5 * math.sqrt(wanted / DRAWS)
    assert abs(values.var() / wanted - 1) < (6.5 if variance > 1 else 9) * math.sqrt(2 / DRAWS)


@pytest.mark.parametrize("shares", [1, 2, 5, 49])
@pytest.mark.parametrize("scale", [Fraction("0.7"), Fraction(15)])
def test_all_polya_shares_together_are_discrete_laplace(scale, shares):
    count, rand = DRAWS >> 1, seeded(4)
    sampler = polya(scale, shares)
    total = sum(sampler.draw(count, rand) - sampler.draw(count, rand) for _ in range(shares))
    probabilities = signed_probabilities(exact(weight_of_laplace, (scale,), 110 * math.ceil(scale)))
    half = len(probabilities) // 2
    observed = np.bincount(total + half, minlength=len(probabilities))
    assert not chi_square_refutes(observed, probabilities * count)


def test_all_but_one_polya_share_are_not():
    count, rand, scale = DRAWS >> 1, seeded(5), Fraction(15)
    sampler = polya(scale, 5)
    total = sum(sampler.draw(count, rand) - sampler.draw(count, rand) for _ in range(4))
    probabilities = signed_probabilities(exact(weight_of_laplace, (scale,), 1650))
    observed = np.bincount(total + len(probabilities) // 2, minlength=len(probabilities))
    assert chi_square_refutes(observed, probabilities * count)


@pytest.mark.parametrize("shares", [2, 7])
def test_gaussian_shares_add_up_to_the_convolution_of_their_distributions(shares):
    rand, sampler = seeded(6), discrete_gaussian(Fraction(16))
    total = sum(sampler.draw(DRAWS, rand) for _ in range(shares))
    one = signed_probabilities(exact(weight_of_gaussian, (Fraction(16),), 60))
    expected = one
    for _ in range(shares - 1):
        expected = np.convolve(expected, one)
    observed = np.bincount(total + len(expected) // 2, minlength=len(expected))
    assert not chi_square_refutes(observed, expected * DRAWS)


def test_signs_are_independent_of_sizes():
    values = discrete_laplace(Fraction(3)).draw(DRAWS * 2, seeded(7))
    sizes = np.arange(1, 20)
    above, below = (
        np.bincount(np.abs(values[side]), minlength=64)[sizes] for side in (values > 0, values < 0)
    )
    assert ((above - below) ** 2 / (above + below)).sum() < chi2.isf(FALSE_ALARM, len(sizes))


# ---------------------------------------------------------------- undecided words


class Words:
    """A stream of given words."""

    def __init__(self, *words):
        self.given = list(words)

    def words(self, count):
        taken, self.given = self.given[:count], self.given[count:]
        return np.array(taken, np.uint64)


@pytest.mark.parametrize("bits_that_leave_it_open", [63, 127, 191])
@pytest.mark.parametrize("signed", [True, False])
def test_what_words_leave_open_is_decided_as_they_begin(bits_that_leave_it_open, signed):
    known = discrete_gaussian(Fraction(25)) if signed else polya(Fraction(5), 3)

    def vague(bits):
        weights = known.weigh(bits)
        if bits > bits_that_leave_it_open:
            return weights
        return Weights(weights.values, sum(weights.values) >> 3)

    forced = Sampler.of(vague, signed=signed)
    assert (forced.guide < 0).mean() > 0.3
    assert forced.draw(400, seeded(8)).tolist() == known.draw(400, seeded(8)).tolist()


def test_a_word_at_a_threshold_is_decided_by_the_words_that_follow():
    scale = Fraction(5)
    sampler = discrete_laplace(scale)
    with localcontext(prec=90):
        alpha = (-1 / Decimal(5)).exp()
        threshold = int((1 - 2 * alpha**4 / (1 + alpha)) * 2**191)
    for beside, value in ((-1, 3), (1, 4)):
        number = threshold + beside
        words = number >> 128 << 1, number >> 64 & (2**64 - 1), number & (2**64 - 1), 0
        stream = Words(*words)
        assert sampler._draw(1, stream).tolist() == [value]
        assert len(stream.given) <= 1  # the 127 bits before were not enough


def test_a_value_beyond_the_table_is_drawn_from_a_longer_one():
    scale = Fraction(5)
    sampler = discrete_laplace(scale)
    stream = Words(2**64 - 2, 2**64 - 2**30)
    (value,) = sampler._draw(1, stream)
    with localcontext(prec=60):
        alpha = (-1 / Decimal(5)).exp()
        left = Decimal(2**30) / 2**127
        expected = math.floor((left * (1 + alpha) / 2).ln() / alpha.ln())
    assert value == expected > len(sampler.lower)


def test_the_least_word_draws_zero():
    assert discrete_laplace(Fraction(5))._draw(1, Words(0, 0)).tolist() == [0]
    assert discrete_laplace(Fraction(5))._draw(1, Words(1, 0)).tolist() == [0]


# ---------------------------------------------------------------- keys and refusals


def test_a_key_serves_a_quarter_of_a_million_values_and_is_asked_for_once():
    asked = []

    def rand(size):
        asked.append(size)
        return bytes(range(size)) if len(asked) == 1 else bytes(size)

    sampler = discrete_gaussian(Fraction(9))
    values = sampler.draw(3 * 2**18 - 5, rand)
    assert asked == [32, 32, 32]
    assert len(values) == 3 * 2**18 - 5
    # The second and the third part have the same key here, so the same values; the first has its own.
    first, second, third = values[: 2**18], values[2**18 : 2**19], values[2**19 :]
    assert (second[: len(third)] == third).all()
    assert (first != second).mean() > 0.8


def test_the_same_randomness_draws_the_same_values():
    one, again, other = (discrete_laplace(Fraction(9)).draw(1000, seeded(s)).tolist() for s in (1, 1, 2))
    assert one == again != other


def test_nothing_is_drawn_for_no_values():
    values = discrete_gaussian(Fraction(9)).draw(0, seeded(1))
    assert values.dtype == np.int64
    assert values.size == 0


@pytest.mark.parametrize("make", [discrete_gaussian, discrete_laplace, lambda t: polya(t, 2)])
@pytest.mark.parametrize("width", [Fraction(0), Fraction(-1, 3)])
def test_noise_without_width_is_refused(make, width):
    with pytest.raises(InputError) as refused:
        make(width)
    assert refused.value.code == "bad-noise"


@pytest.mark.parametrize(
    ("make", "width"),
    [
        (discrete_gaussian, Fraction(100_000) ** 2),
        (discrete_laplace, Fraction(20_000)),
        (lambda t: polya(t, 2), Fraction(20_000)),
    ],
)
def test_a_table_too_large_is_refused_before_it_is_made(make, width):
    with pytest.raises(InputError) as refused:
        make(width)
    assert refused.value.code == "noise-too-large"
    assert refused.value.hint


def test_noise_of_no_share_is_refused():
    with pytest.raises(InputError) as refused:
        polya(Fraction(5), 0)
    assert refused.value.code == "no-honest-contributor"


def test_what_has_a_table_is_what_its_sampler_takes():
    assert noise.has_gaussian_table(Fraction(95_000) ** 2)
    assert noise.has_laplace_table(Fraction(17_300))
    assert not noise.has_gaussian_table(Fraction(100_000) ** 2)
    assert not noise.has_laplace_table(Fraction(20_000))


# ---------------------------------------------------------------- long


@pytest.mark.long
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("make", "weight", "arguments"), CASES, ids=NAMES)
def test_twenty_million_draws_have_the_exact_distribution(make, weight, arguments, seed):
    sampler, rand, count = make(*arguments), seeded(100 + seed), 20_000_000
    probabilities = exact(weight, arguments, 2 * len(sampler.lower) + 40)
    expected = signed_probabilities(probabilities) if sampler.signed else np.array(probabilities, float)
    shift = len(probabilities) - 1 if sampler.signed else 0
    observed = np.zeros(len(expected))
    for _ in range(20):
        observed += np.bincount(sampler.draw(count // 20, rand) + shift, minlength=len(expected))
    assert not chi_square_refutes(observed, expected * count)
