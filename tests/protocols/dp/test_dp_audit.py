"""Who plays the distinguishing game cannot win more than the claim allows; with less noise one does.

The game: a value is 0 or the sensitivity, noise is added, and a guess is made from the result. At δ, any test
that says "larger" with probability p on one side and q on the other has p ≤ exp(ε)·q + δ, so ln((p - δ)/q)
bounds ε from below. p and q are Clopper-Pearson bounds, each wrong with probability 5e-10; the test is chosen
on one half of the games and judged on the other. Seeds are fixed; a sound mechanism is accused by chance once
in 1e9 runs.
"""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import beta

from protocols.dp.mechanism import Budget, Noise, Vector, calibrate

GAMES = 1 << 17
WRONG = 5e-10
DELTA = Fraction(1, 1000)


def seeded(seed):
    """Return a `rand` that gives the same bytes in every run."""
    return np.random.Generator(np.random.Philox(seed)).bytes


def lower(hits, games):
    """Return the Clopper-Pearson lower bound of a chance."""
    return beta.ppf(WRONG, hits, games - hits + 1) if hits else 0.0


def upper(hits, games):
    """Return the Clopper-Pearson upper bound of a chance."""
    return beta.ppf(1 - WRONG, hits + 1, games - hits) if hits < games else 1.0


def bound(with_unit, without, delta, threshold):
    """Return the ε that saying "larger" from a threshold on proves."""
    p = lower(int((with_unit >= threshold).sum()), len(with_unit))
    q = upper(int((without >= threshold).sum()), len(without))
    return math.log((p - delta) / q) if p > delta else 0.0


def audited(noise, sensitivity, *, adding, delta=Fraction(0), games=GAMES, seed=1):
    """Return the largest ε that games prove, where `adding` contributors' shares hide the value."""
    rand, sides = seeded(seed), []
    for value in (sensitivity * noise.scale, 0):
        many = Noise(noise.kind, noise.scale, noise.spread, noise.honest, noise.contributors, games)
        sides.append(value + sum(many.draw(rand) for _ in range(adding)))
    half = games // 2
    with_unit, without = sides
    thresholds = np.unique(np.quantile(with_unit[:half], np.linspace(0.005, 0.995, 80)).astype(np.int64))
    best = max(thresholds, key=lambda t: bound(with_unit[:half], without[:half], float(delta), t))
    return bound(with_unit[half:], without[half:], float(delta), best)


def halved(noise):
    """Return half the noise."""
    spread = noise.spread / 4 if noise.kind == "gaussian" else noise.spread / 2
    return Noise(noise.kind, noise.scale, spread, noise.honest, noise.contributors, noise.size)


# Games are as many as values of a vector, so all of them are drawn in bulk, as long vectors are.
CASES = [
    pytest.param(("pure-dp", Fraction(1), 1, 1, 1), id="ε=1, alone"),
    pytest.param(("pure-dp", Fraction(1), 12, 1, 2), id="ε=1, two departments"),
    pytest.param(("pure-dp", Fraction(1, 2), 1, 4, 5), id="ε=1/2, four of five"),
    pytest.param(("pure-dp", Fraction(2), 10**6, 3, 4), id="ε=2, wide, three of four"),
    pytest.param(("zcdp", Fraction(1, 2), 1, 1, 1), id="ρ=1/2, alone"),
    pytest.param(("zcdp", Fraction(1, 2), 40, 1, 2), id="ρ=1/2, two departments"),
    pytest.param(("zcdp", Fraction(1, 2), 3, 4, 5), id="ρ=1/2, four of five"),
]


def prepared(notion, amount, sensitivity, honest, contributors):
    """Return the noise on a number, and what is claimed at the δ of the game."""
    vector = Vector("v", 1, sensitivity, sensitivity**2)
    (noise,), cost = calibrate([vector], Budget(notion, amount), honest=honest, contributors=contributors)
    delta = Fraction(0) if notion == "pure-dp" else DELTA
    claim = cost.amount("pure-dp" if notion == "pure-dp" else "approximate-dp", delta)
    return noise, delta, float(claim)


@pytest.mark.parametrize("case", CASES)
def test_the_game_never_proves_more_than_the_claim(case):
    noise, delta, claim = prepared(*case)
    proven = audited(noise, case[2], adding=case[3], delta=delta)
    assert proven <= claim
    # The audit has teeth: it comes near to the claim. (Gaussian claims are Rényi's, larger than the truth.)
    assert proven > claim * (0.85 if case[0] == "pure-dp" else 0.5)


@pytest.mark.parametrize("case", CASES)
def test_the_game_catches_half_the_noise(case):
    noise, delta, claim = prepared(*case)
    assert audited(halved(noise), case[2], adding=case[3], delta=delta, seed=2) > claim


@pytest.mark.parametrize("notion", ["pure-dp", "zcdp"])
def test_the_game_catches_honest_contributors_who_are_fewer_than_counted(notion):
    noise, delta, claim = prepared(notion, Fraction(1, 2), 1, 8, 9)
    assert audited(noise, 1, adding=8, delta=delta, seed=3) <= claim
    assert audited(noise, 1, adding=2, delta=delta, seed=4) > claim


def test_the_game_catches_a_sensitivity_that_was_understated():
    noise, delta, claim = prepared("pure-dp", Fraction(1), 1, 1, 1)
    assert audited(noise, 2, adding=1, delta=delta, seed=5) > claim


@pytest.mark.long
@pytest.mark.parametrize("seed", range(10, 13))
@pytest.mark.parametrize("case", CASES)
def test_eight_million_games_prove_no_more(case, seed):
    noise, delta, claim = prepared(*case)
    proven = audited(noise, case[2], adding=case[3], delta=delta, games=1 << 22, seed=seed)
    assert claim * (0.97 if case[0] == "pure-dp" else 0.55) < proven <= claim
