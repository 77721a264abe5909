"""ε at a δ, three ways: published figures to their last digit, and the ledger's own is never the lowest."""

import math
from collections import Counter
from fractions import Fraction
from itertools import pairwise

import pytest

from protocols.dp.accounting import (
    Gaussian,
    Laplace,
    Report,
    SampledGaussian,
    mechanisms,
    pld_epsilon,
    rdp_epsilon,
    report,
)
from protocols.dp.cost import NOTHING, ORDERS, Cost, conversion, total
from protocols.errors import InputError

NINE, FIVE = Fraction("1e-9"), Fraction("1e-5")

# ---------------------------------------------------------------- published figures


@pytest.mark.parametrize(
    ("noise_multiplier", "epochs", "rdp", "pld"),
    [(1.3, 15, "0.9544", "0.8645"), (1.1, 60, "2.5966", "2.3817"), (0.7, 45, "6.3195", "5.6394")],
)
def test_training_on_mnist_with_noise(noise_multiplier, epochs, rdp, pld):
    """DP-SGD in batches of 256 of 60,000, whole steps, δ = 1e-5: 0.954, 2.597, 6.320 by Rényi divergence."""
    steps = {SampledGaussian(noise_multiplier, 256 / 60_000): epochs * 60_000 // 256}
    assert f"{rdp_epsilon(steps, FIVE):.4f}" == rdp
    assert f"{pld_epsilon(steps, FIVE):.4f}" == pld


def test_the_2020_census():
    """ρ = 2.56 at δ = 1e-10 was published as ε = 17.16; the ledger's fixed orders are above it by 0.0072."""
    delta = Fraction("1e-10")
    found = report([Cost.zcdp(Fraction("2.56"))], delta)
    assert f"{found.rdp:.2f}" == "17.16"
    grid = [Fraction(step, 1000) for step in range(3000, 6000)]
    best, order = min((Fraction("2.56") * order + conversion(order, delta), order) for order in grid)
    assert f"{float(best):.2f}" == "17.16"
    assert f"{float(found.ledger):.4f}" == "17.1655"
    # The best order is 3.909 and the ledger's nearest is 4: that is all the difference.
    assert order == Fraction("3.909")
    assert 0.0071 < float(found.ledger - best) < 0.0073


# ---------------------------------------------------------------- against formulas of our own


def gaussian_delta(epsilon, rho):
    """δ of Gaussian noise (Balle and Wang 2018, arXiv:1805.06530, theorem 8), s the sensitivity over σ."""
    s = math.sqrt(2 * rho)

    def phi(x):
        return math.erfc(-x / math.sqrt(2)) / 2

    return phi(s / 2 - epsilon / s) - math.exp(epsilon) * phi(-s / 2 - epsilon / s)


@pytest.mark.parametrize("rho", ["0.001", "0.1", "2.56", "40"])
def test_the_loss_distribution_of_gaussian_noise_is_the_exact_one(rho):
    epsilon = pld_epsilon({Gaussian(Fraction(rho)): 1}, FIVE)
    step = 2e-4 * max(1, math.sqrt(2 * float(rho)))
    assert gaussian_delta(epsilon, float(rho)) <= 1e-5 * (1 + 1e-6)
    assert gaussian_delta(epsilon - step, float(rho)) > 1e-5


@pytest.mark.parametrize("epsilon", ["0.01", "0.5", "1", "3"])
def test_the_loss_distribution_of_laplace_noise_is_the_exact_one(epsilon):
    """δ(ε') = 1 - exp((ε' - ε)/2), so ε' = ε + 2 log(1 - δ)."""
    found = pld_epsilon({Laplace(Fraction(epsilon)): 1}, Fraction("0.001"))
    assert found == pytest.approx(float(Fraction(epsilon)) + 2 * math.log(0.999), abs=2e-4)


@pytest.mark.parametrize("delta", ["1e-9", "0.01"])
def test_one_laplace_mechanism_is_no_less_than_its_parts(delta):
    # A release of several vectors is charged the sum of their ε and reported as one mechanism.
    whole = pld_epsilon({Laplace(Fraction(1)): 1}, Fraction(delta))
    for parts in ({Laplace(Fraction(1, 4)): 4}, {Laplace(Fraction(9, 10)): 1, Laplace(Fraction(1, 10)): 1}):
        assert pld_epsilon(parts, Fraction(delta)) <= whole + 1e-4


# ---------------------------------------------------------------- costs as mechanisms


def test_gaussians_become_one_and_laplaces_are_counted():
    tenth, half = Fraction("0.1"), Fraction("0.5")
    found = mechanisms(
        [Cost.zcdp(tenth), Cost.pure_dp(half), Cost.zcdp(tenth, NINE), Cost.pure_dp(half), Cost(rows=9)]
    )
    assert found == Counter({Gaussian(2 * tenth): 1, Laplace(half): 2})
    assert mechanisms([NOTHING, Cost(delta=5)]) == Counter()


def test_a_mixed_cost_is_covered_by_one_gaussian():
    mixed = Cost.zcdp(Fraction("0.1")) + Cost.pure_dp(Fraction("0.5"))
    [(one, times)] = mechanisms([mixed]).items()
    assert times == 1
    assert all(one.rho * order * 10**15 >= loss for loss, order in zip(mixed.rdp, ORDERS, strict=True))


COSTS = {
    "one of ρ": [Cost.zcdp(Fraction("0.25"))],
    "many of ρ": [Cost.zcdp(Fraction("0.01"))] * 40,
    "one of ε": [Cost.pure_dp(Fraction(1))],
    "many of ε": [Cost.pure_dp(Fraction("0.01"))] * 300,
    "both": [Cost.zcdp(Fraction("0.1"))] * 3 + [Cost.pure_dp(Fraction("0.2"))] * 5,
}


@pytest.mark.parametrize("name", COSTS)
def test_the_ledger_is_never_the_lowest_and_loss_distributions_never_above_renyi(name):
    found = report(COSTS[name], NINE)
    assert found.ledger == total(COSTS[name]).amount("approximate-dp", NINE)
    assert found.pld <= found.rdp + 1e-4
    assert found.rdp <= float(found.ledger) * (1 + 1e-9)


def test_deltas_of_their_own_leave_less_of_it():
    cost = Cost.zcdp(Fraction("0.1"))
    spent = [Cost.zcdp(Fraction("0.1"), NINE / 4)] * 3
    assert report([cost] * 3, NINE / 4) == Report(
        NINE / 4, *(getattr(report(spent, NINE), each) for each in ("ledger", "rdp", "pld"))
    )
    assert report([*spent, Cost(delta=250_000)], NINE) == Report(NINE, None, None, None)


def test_more_delta_is_less_epsilon():
    found = [report(COSTS["both"], Fraction(1, 10**digits)) for digits in (3, 6, 9)]
    for less, more in pairwise(found):
        assert (less.ledger, less.rdp, less.pld) < (more.ledger, more.rdp, more.pld)


def test_nothing_spent_is_nothing():
    assert report([], NINE) == Report(NINE, Fraction(0), 0.0, 0.0)
    assert report([Cost(rows=4), Cost(delta=10**6)], NINE) == Report(NINE, Fraction(0), 0.0, 0.0)


@pytest.mark.parametrize("delta", ["0", "1", "-1", "2"])
def test_a_delta_that_is_none_is_refused(delta):
    with pytest.raises(InputError) as refused:
        report([], Fraction(delta))
    assert refused.value.code == "bad-privacy"
