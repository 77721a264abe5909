"""What rounds of training cost, and how much noise a whole run needs.

Every row takes part in every round, so a round is one Gaussian release of ρ-zCDP, and a run is the sum of its
rounds: nothing is gained from sampling, and nothing has to be believed of who was sampled. What is reserved
before round one is exactly what all rounds are charged.
"""

from collections.abc import Mapping
from fractions import Fraction

from protocols.dp.cost import Cost
from protocols.dp.mechanism import Budget

_STEPS = 10**9
"""A ρ that is looked for is a whole number of 1e-9, so that it can stand in a job."""


def run_cost(budgets: Mapping[str, Budget | None], rounds: Mapping[str, int]) -> Cost:
    """Return what rounds cost one dataset: the sum of their ρ, or nothing where they have no noise.

    Rounded up once, at the end: what a run reserves is what its rounds are charged in any order, and what is
    given back for rounds that were never sent leaves the cost of those that were.

    Args:
        budgets: turn → of one round; None without noise.
        rounds: turn → how many.

    Raises:
        KeyError: a turn without a budget.
    """
    spent = ((budgets[turn], count) for turn, count in rounds.items())
    return Cost.zcdp(sum((budget.amount * count for budget, count in spent if budget), Fraction(0)))


def rho_for(epsilon: Fraction, delta: Fraction, rounds: int = 1) -> Fraction:
    """Return the largest ρ of a round, a whole number of 1e-9, with which a run costs at most ε at δ.

    Args:
        epsilon: above 0.
        delta: above 0.
        rounds: 1 or more.
    """
    low, high = 0, 1
    while _fits(high, epsilon, delta, rounds):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _fits(middle, epsilon, delta, rounds) else (low, middle)
    return Fraction(low, _STEPS)


def _fits(steps: int, epsilon: Fraction, delta: Fraction, rounds: int) -> bool:
    return Cost.zcdp(Fraction(steps * rounds, _STEPS)).within("approximate-dp", epsilon, delta)
