"""Noise without tables has the distribution of the tables: OpenDP's samplers, and wide Pólya.

OpenDP draws from the system, so those tests differ from run to run; each fails by chance once in 1e9 runs.
The others have a fixed seed and the same bound.
"""

import math
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import chi2, kstwo, laplace, norm

from protocols.dp import exact
from protocols.dp.exact import wide_polya
from protocols.dp.noise import discrete_gaussian, discrete_laplace, polya
from protocols.errors import InputError

FALSE_ALARM = 1e-9
DRAWS = 1 << 15


def seeded(seed):
    """Return a `rand` that gives the same bytes in every run."""
    return np.random.Generator(np.random.Philox(seed)).bytes


def probabilities(weights):
    """Return the probabilities of -K … K from the weights of 0 … K."""
    both = np.array([*weights[:0:-1], *weights])
    return both / both.sum()


def chi_square_refutes(observed, expected):
    """Return whether counts contradict expected counts; expectations below 20 are put together."""
    common, rare = expected >= 20, expected < 20
    ours, theirs = observed[common], expected[common]
    if expected[rare].sum() >= 20:
        ours, theirs = np.append(ours, observed[rare].sum()), np.append(theirs, expected[rare].sum())
    return ((ours - theirs) ** 2 / theirs).sum() > chi2.isf(FALSE_ALARM, max(len(ours) - 1, 1))


def two_samples_refute(one, other):
    """Return whether two samples of one size contradict that they have one distribution."""
    low, high = min(one.min(), other.min()), max(one.max(), other.max())
    counts = [np.bincount(values - low, minlength=high - low + 1) for values in (one, other)]
    both = counts[0] + counts[1]
    common = both >= 40
    ours, theirs = (np.append(c[common], c[~common].sum()).astype(float) for c in counts)
    difference = (ours - theirs) ** 2 / np.maximum(ours + theirs, 1)
    return difference.sum() > chi2.isf(FALSE_ALARM, len(ours) - 1)


# ---------------------------------------------------------------- OpenDP


@pytest.mark.parametrize("sigma", [0.3, 1.0, 7.25])
def test_opendp_draws_the_exact_discrete_gaussian(sigma):
    values = exact.discrete_gaussian(sigma, DRAWS)
    expected = probabilities([math.exp(-k * k / (2 * sigma**2)) for k in range(200)])
    assert values.dtype == np.int64
    assert not chi_square_refutes(np.bincount(values + 199, minlength=399), expected * DRAWS)


@pytest.mark.parametrize("scale", [0.25, 1.0, 9.5])
def test_opendp_draws_the_exact_discrete_laplace(scale):
    values = exact.discrete_laplace(scale, DRAWS)
    expected = probabilities([math.exp(-k / scale) for k in range(600)])
    assert values.dtype == np.int64
    assert not chi_square_refutes(np.bincount(values + 599, minlength=1199), expected * DRAWS)


def test_the_bulk_sampler_and_opendp_draw_one_distribution():
    gaussian = discrete_gaussian(Fraction(36)).draw(DRAWS, seeded(1))
    assert not two_samples_refute(gaussian, exact.discrete_gaussian(6.0, DRAWS))
    assert two_samples_refute(gaussian, exact.discrete_gaussian(7.5, DRAWS))
    laplace_ = discrete_laplace(Fraction(4)).draw(DRAWS, seeded(2))
    assert not two_samples_refute(laplace_, exact.discrete_laplace(4.0, DRAWS))
    assert two_samples_refute(laplace_, exact.discrete_laplace(5.5, DRAWS))


def test_opendp_charges_what_we_charge():
    # Its own privacy maps, rounded up: ρ = Δ²/2σ², ε = Δ/t.
    gaussian = exact._opendp("make_gaussian", 4.0)
    assert 9 / 32 <= gaussian.map(3.0) <= 9 / 32 * (1 + 1e-12)
    laplacian = exact._opendp("make_laplace", 4.0)
    assert 3 / 4 <= laplacian.map(3) <= 3 / 4 * (1 + 1e-12)


def test_very_wide_noise_fits_in_64_bits():
    values = exact.discrete_gaussian(2.0**57, 2000)
    assert abs(values.std() / 2.0**57 - 1) < 0.12  # 7.5 standard errors
    assert len(np.unique(values)) == 2000


def test_opendp_is_loaded_only_when_it_draws():
    asked = (
        "import sys; import protocols.dp.mechanism, protocols.dp.exact as e;"
        "assert 'opendp' not in sys.modules and 'numpy' not in sys.modules;"
        "e.discrete_laplace(1.0, 1); assert 'opendp' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", asked], check=True, timeout=60)


# ---------------------------------------------------------------- wide Pólya


@pytest.mark.parametrize(
    ("scale", "shares"),
    [(Fraction(1, 3), 2), (Fraction(1), 1), (Fraction("1.5"), 3), (Fraction(4), 2), (Fraction(33), 2)],
)
def test_wide_polya_has_the_exact_polya_distribution(scale, shares):
    count = DRAWS * 4 + 7
    values = wide_polya(scale, shares, count, seeded(3))
    weights = [1.0]
    for k in range(4000):
        weights.append(weights[-1] * math.exp(-1 / scale) * (k * shares + 1) / ((k + 1) * shares))
    expected = np.array(weights) / sum(weights)
    assert not chi_square_refutes(np.bincount(values, minlength=len(expected)), expected * count)
    # … and the test would see a scale that is 8 % off.
    narrower = wide_polya(scale * Fraction(92, 100), shares, count, seeded(4))
    assert chi_square_refutes(np.bincount(narrower, minlength=len(expected)), expected * count)


def test_wide_polya_and_the_table_draw_one_distribution():
    wide = wide_polya(Fraction(50), 4, DRAWS * 4, seeded(5))
    table = polya(Fraction(50), 4).draw(DRAWS * 4, seeded(6))
    assert not two_samples_refute(wide, table)


@pytest.mark.parametrize(("scale", "shares"), [(2**20, 2), (10**9, 7), (2**54, 3), (2**56, 49)])
def test_wide_shares_together_are_discrete_laplace(scale, shares):
    count, rand = 20_000, seeded(7)
    total = sum(
        wide_polya(Fraction(scale), shares, count, rand) - wide_polya(Fraction(scale), shares, count, rand)
        for _ in range(shares)
    )
    # At such scales discrete and continuous Laplace differ by less than 1e-6 in distribution.
    distribution = laplace.cdf(np.sort(total) / scale)
    steps = np.arange(count) / count
    distance = max((distribution - steps).max(), (steps + 1 / count - distribution).max())
    assert distance < kstwo.isf(FALSE_ALARM, count) + 1e-6


def test_one_wide_share_too_few_is_not():
    count, rand, scale = 20_000, seeded(8), 10**9
    total = sum(
        wide_polya(Fraction(scale), 3, count, rand) - wide_polya(Fraction(scale), 3, count, rand)
        for _ in range(2)
    )
    distribution = laplace.cdf(np.sort(total) / scale)
    assert np.abs(distribution - np.arange(count) / count).max() > kstwo.isf(FALSE_ALARM, count) + 1e-6


def test_points_kept_by_floats_are_those_kept_by_exact_comparison(monkeypatch):
    usual = wide_polya(Fraction(10**7, 3), 3, 3000, seeded(9))
    monkeypatch.setattr(exact, "_MARGIN", 2.0)  # no float is trusted
    assert wide_polya(Fraction(10**7, 3), 3, 3000, seeded(9)).tolist() == usual.tolist()


class Words:
    """A stream of given words."""

    def __init__(self, *words):
        self.given = list(words)

    def words(self, count):
        taken, self.given = self.given[:count], self.given[count:]
        return np.array(taken, np.uint64)


@pytest.mark.parametrize(("beside", "kept"), [(-1, True), (1, False)])
def test_a_chance_that_64_bits_leave_open_is_decided_by_more(beside, kept):
    from decimal import Decimal, localcontext

    with localcontext(prec=120):
        chance = int((Decimal(-5) / 7).exp() * 2 / 5 * 2**192) + beside * 2**20
    stream = Words(chance >> 64 & (2**64 - 1), chance & (2**64 - 1))
    assert exact._decided(chance >> 128, 5, 1, Fraction(7), stream) is kept
    assert not stream.given


def test_integers_below_a_limit_are_uniform():
    values = exact._below(6, 60_000, exact.Stream(bytes(32)))
    assert not chi_square_refutes(np.bincount(values, minlength=6), np.full(6, 10_000.0))
    # 2^64 = 4 mod 6: the last four words are drawn again.
    assert exact._below(6, 2, Words(2**64 - 1, 8, 2**64 - 4, 3)).tolist() == [3, 2]


def test_heads_are_counted_across_words():
    values = exact._heads(200_000, exact.Stream(bytes(31) + b"\1"))
    observed = np.bincount(values, minlength=70)[1:]
    assert not chi_square_refutes(observed, 200_000 * 0.5 ** np.arange(1.0, 70.0))
    assert exact._heads(3, Words(1, 0, 2**63, 2**5)).tolist() == [1, 64 + 6, 64]


@pytest.mark.parametrize("scale", [Fraction(0), Fraction(2**56 + 1)])
def test_a_scale_beyond_64_bits_is_refused(scale):
    with pytest.raises(InputError) as refused:
        wide_polya(scale, 2, 1, seeded(1))
    assert refused.value.code == "noise-too-large"


def test_wide_noise_of_no_share_is_refused():
    with pytest.raises(InputError) as refused:
        wide_polya(Fraction(5), 0, 1, seeded(1))
    assert refused.value.code == "no-honest-contributor"


# ---------------------------------------------------------------- long


@pytest.mark.long
@pytest.mark.parametrize("shares", [1, 2, 10])
@pytest.mark.parametrize("scale", [Fraction(1, 2), Fraction(3), Fraction(100)])
def test_ten_million_wide_polya_draws_are_those_of_the_table(scale, shares):
    wide = wide_polya(scale, shares, 10_000_000, seeded(10))
    assert not two_samples_refute(wide, polya(scale, shares).draw(10_000_000, seeded(11)))


@pytest.mark.long
@pytest.mark.parametrize("sigma", [0.5, 3.0, 1e3, 1e9])
def test_a_million_gaussians_of_opendp_have_the_normal_quantiles(sigma):
    values = exact.discrete_gaussian(sigma, 1_000_000)
    if sigma > 100:
        steps = np.arange(1_000_000) / 1e6
        distance = np.abs(norm.cdf((np.sort(values) + 0.0) / sigma) - steps).max()
        assert distance < kstwo.isf(FALSE_ALARM, 1_000_000) + 1 / sigma
    else:
        expected = probabilities([math.exp(-k * k / (2 * sigma**2)) for k in range(100)])
        assert not chi_square_refutes(np.bincount(values + 99, minlength=199), expected * 1e6)
