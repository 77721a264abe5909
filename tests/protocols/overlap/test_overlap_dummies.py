"""z, how many dummies are counted with an overlap: least pool, exact distribution, intervals, limits."""

from decimal import Context, Decimal, localcontext
from fractions import Fraction
from math import exp, log

import numpy as np
import pytest
from crosscheck_case import seeded
from scipy.stats import chisquare

from protocols.errors import InputError
from protocols.overlap.dummies import LEAST_DELTA, MAX_DELTA, MAX_POOL, dummies

GRID = [
    (Fraction(epsilon), Fraction(1, 10**digits))
    for epsilon in ("1/10", "1/3", "1", "8", "32")
    for digits in (6, 15)
]
# Of pools of thousands, every mass is reckoned to 75 digits.
WIDE = [pytest.param(Fraction(1, 50), Fraction(1, 10**digits), marks=pytest.mark.long) for digits in (6, 15)]

PRECISE = Context(prec=75)


def decimal(value: Fraction) -> Decimal:
    return Decimal(value.numerator) / Decimal(value.denominator)


def masses(epsilon: Fraction, half: int) -> list[Decimal]:
    """Return P(0) … P(m) to 75 digits, from the definition."""
    with localcontext(PRECISE):
        weights = [(-decimal(epsilon) * abs(z - half)).exp() for z in range(2 * half + 1)]
        whole = sum(weights)
        return [weight / whole for weight in weights]


@pytest.mark.parametrize(("epsilon", "delta"), [*GRID, *WIDE])
def test_the_pool_is_the_smallest_whose_edge_has_at_most_delta(epsilon, delta):
    found = dummies(epsilon, delta)
    low, high = found.edge()
    assert high <= delta
    with localcontext(PRECISE):
        edge = masses(epsilon, found.half)[0]
        assert decimal(low) <= edge <= decimal(high)
        if found.half > 1:
            assert masses(epsilon, found.half - 1)[0] > decimal(delta)
    assert high - low <= high / 10**50


@pytest.mark.parametrize(("epsilon", "delta"), GRID)
def test_a_count_that_changes_by_one_is_told_apart_by_epsilon_and_delta_and_no_less(epsilon, delta):
    """The hockey stick divergence of z and z + 1, both ways, is the mass of one edge: the claim is tight."""
    found = dummies(epsilon, delta)
    with localcontext(PRECISE):
        mass = masses(epsilon, found.half)
        factor = decimal(epsilon).exp()
        with_one, without = [Decimal(0), *mass], [*mass, Decimal(0)]
        for one, other in ((with_one, without), (without, with_one)):
            beyond = sum(max(a - factor * b, Decimal(0)) for a, b in zip(one, other, strict=True))
            assert abs(beyond - mass[0]) < mass[0] * Decimal(10) ** -15
            assert beyond <= decimal(delta)


@pytest.mark.parametrize(("epsilon", "delta"), [*GRID, *WIDE])
def test_the_interval_is_the_least_that_holds_with_95_percent(epsilon, delta):
    found = dummies(epsilon, delta)
    mass = masses(epsilon, found.half)

    def within(w: int) -> Decimal:
        return sum(mass[found.half - w : found.half + w + 1], Decimal(0))

    w = found.half_width()
    assert within(w) >= 0.95
    assert w == 0 or within(w - 1) < 0.95


@pytest.mark.parametrize("epsilon", ["1/20", "1", "3"])
def test_z_has_just_this_distribution(epsilon):
    # 20,000 draws each against the exact masses, cells of 20 or more expected. False alarm: 1e-6 each.
    found = dummies(Fraction(epsilon), Fraction(1, 10**6))
    drawn = found.draw(20_000, seeded(f"z/{epsilon}"))
    assert drawn.min() >= 0
    assert drawn.max() <= found.pool
    expected = np.array([float(mass) for mass in masses(Fraction(epsilon), found.half)]) * len(drawn)
    counts = np.bincount(drawn, minlength=found.pool + 1)
    kept = expected >= 20
    sides = [np.append(each[kept], each[~kept].sum()) for each in (counts, expected)]
    assert chisquare(*sides).pvalue > 1e-6


def test_a_value_beyond_the_pool_is_drawn_again(monkeypatch):
    class Wide:
        def __init__(self):
            self.left = [[0, 99, -99, 3], [-99, 2], [1]]

        def draw(self, count, rand):
            values = np.array(self.left.pop(0))
            assert len(values) == count
            return values

    wide = Wide()
    monkeypatch.setattr("protocols.overlap.dummies.discrete_laplace", lambda scale: wide)
    found = dummies(Fraction(1), Fraction(1, 10**6))
    assert (found.draw(4, bytes) - found.half).tolist() == [0, 1, 2, 3]


def test_one_seed_draws_one_z_and_another_another():
    found = dummies(Fraction(1, 100), Fraction(1, 10**9))
    assert found.draw(5, seeded(1)).tolist() == found.draw(5, seeded(1)).tolist()
    assert found.draw(5, seeded(1)).tolist() != found.draw(5, seeded(2)).tolist()


@pytest.mark.parametrize(
    ("epsilon", "delta", "code"),
    [
        ("1", LEAST_DELTA / 2, "bad-privacy"),
        ("1", MAX_DELTA * 2, "bad-privacy"),
        ("1", Fraction(0), "bad-privacy"),
        ("1/1000000", Fraction(1, 10**6), "noise-too-large"),
        ("1/300", LEAST_DELTA, "noise-too-large"),
    ],
)
def test_noise_that_no_pool_can_give_is_refused(epsilon, delta, code):
    with pytest.raises(InputError) as error:
        dummies(Fraction(epsilon), delta)
    assert error.value.code == code
    assert error.value.hint


def test_every_delta_allows_the_epsilon_that_the_hint_names():
    assert dummies(Fraction(4, 1000), LEAST_DELTA).pool <= MAX_POOL


def test_the_pool_is_about_what_the_rule_of_thumb_says():
    found = dummies(Fraction(1, 10), Fraction(1, 10**9))
    assert abs(found.pool - 2 * log(0.05 / 1e-9) / 0.1) <= 4
    assert float(found.edge()[1]) == pytest.approx(
        exp(-0.1 * found.half) * (1 - exp(-0.1)) / (1 + exp(-0.1)), rel=1e-3
    )
