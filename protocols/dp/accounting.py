"""Reports: what costs come to as ε at a δ, by the ledger's own conversion and by two accountants beside it.

The ledger binds: it keeps bounds that hold for whatever mechanism was charged. dp-accounting's Rényi and
privacy-loss-distribution accountants are given the mechanisms themselves, and show what is kept in reserve.
SPEC.md, "Accounting reports".
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import isfinite, sqrt
from typing import Any, Final

from protocols.dp.cost import UNIT, Cost, total
from protocols.errors import InputError

_INTERVAL: Final = 1e-4
"""Width of the steps in which privacy losses are counted; each is rounded up."""


@dataclass(frozen=True, slots=True)
class Gaussian:
    """Gaussian noise of ρ-zCDP: noise multiplier 1/√(2ρ), the standard deviation over the ℓ2 sensitivity."""

    rho: Fraction


@dataclass(frozen=True, slots=True)
class Laplace:
    """Laplace noise of ε: scale over ℓ1 sensitivity is 1/ε."""

    epsilon: Fraction


@dataclass(frozen=True, slots=True)
class SampledGaussian:
    """One step that adds Gaussian noise to a sum over a Poisson sample.

    Attributes:
        noise_multiplier: standard deviation over ℓ2 sensitivity.
        rate: the chance of each unit to be in the sample.
    """

    noise_multiplier: float
    rate: float


Mechanism = Gaussian | Laplace | SampledGaussian


@dataclass(frozen=True, slots=True)
class Report:
    """What costs come to: ε at a δ; None where none holds, as when their own δs leave nothing of it.

    Attributes:
        delta: the δ it is about.
        ledger: by the ledger's conversion from its fixed orders, rounded up. This one is binding.
        rdp: by dp-accounting's Rényi accountant.
        pld: by its privacy-loss-distribution accountant, every loss rounded up.
    """

    delta: Fraction
    ledger: Fraction | None
    rdp: float | None
    pld: float | None


def report(costs: Iterable[Cost], delta: Fraction) -> Report:
    """Return what costs of one dataset come to together, at `delta`.

    Raises:
        InputError: a δ that is none.
    """
    if not 0 < delta < 1:
        raise InputError(
            f"δ is {float(delta):g}, expected above 0 and below 1",
            code="bad-privacy",
            hint="take far less than one over the number of persons, for example 1e-9",
        )
    costs = tuple(costs)
    spent = total(costs)
    ledger = spent.amount("approximate-dp", delta)
    left = delta - Fraction(spent.delta, UNIT)
    if left <= 0:
        nothing = 0.0 if ledger == 0 else None
        return Report(delta, ledger, nothing, nothing)
    found = mechanisms(costs)
    return Report(delta, ledger, rdp_epsilon(found, left), pld_epsilon(found, left))


def mechanisms(costs: Iterable[Cost]) -> Counter[Mechanism]:
    """Return the mechanisms that costs stand for, and how many times each ran.

    A cost with a pure ε is one Laplace mechanism of that ε; else one Gaussian of the least ρ that covers its
    Rényi orders. Gaussians compose to one whose ρ is the sum of theirs, exactly, and are added up. Costs
    without privacy loss, and those of δ alone, are none.
    """
    found: Counter[Mechanism] = Counter()
    rho = Fraction(0)
    for cost in costs:
        if cost.pure is None:
            rho += cost.rho
        elif cost.pure > 0:
            found[Laplace(Fraction(cost.pure, UNIT))] += 1
    if rho:
        found[Gaussian(rho)] = 1
    return found


def rdp_epsilon(mechanisms: Mapping[Mechanism, int], delta: Fraction) -> float | None:
    """Return ε at `delta` of mechanisms, each run so many times, by dp-accounting's Rényi accountant.

    Add or remove one unit; its standard orders, 1.1 to 512.
    """
    from dp_accounting import rdp  # type: ignore[import-untyped]  # dp-accounting ships no types

    return _epsilon(rdp.RdpAccountant(), mechanisms, delta)


def pld_epsilon(mechanisms: Mapping[Mechanism, int], delta: Fraction) -> float | None:
    """Return ε at `delta` of mechanisms, each run so many times, by dp-accounting's loss distributions.

    Add or remove one unit; losses are rounded up to the next 1e-4, or to the next 1e-4 of their standard
    deviation where that is more.
    """
    from dp_accounting import pld

    spread = max([sqrt(2 * each.rho) for each in mechanisms if isinstance(each, Gaussian)], default=0.0)
    accountant = pld.PLDAccountant(value_discretization_interval=_INTERVAL * max(1.0, spread))
    return _epsilon(accountant, mechanisms, delta)


def _epsilon(accountant: Any, mechanisms: Mapping[Mechanism, int], delta: Fraction) -> float | None:
    for mechanism, times in mechanisms.items():
        accountant.compose(_event(mechanism), times)
    epsilon = float(accountant.get_epsilon(float(delta)))
    return epsilon if isfinite(epsilon) else None


def _event(mechanism: Mechanism) -> Any:
    import dp_accounting

    match mechanism:
        case Gaussian(rho):
            return dp_accounting.GaussianDpEvent(1 / sqrt(2 * rho))
        case Laplace(epsilon):
            return dp_accounting.LaplaceDpEvent(float(1 / epsilon))
        case SampledGaussian(noise_multiplier, rate):
            return dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise_multiplier))
