"""Additive noise for a release: how much, from how many, at what cost, and how far off it leaves the numbers.

SPEC.md, "Distributed noise". A release is one or more vectors of integers with stated sensitivities;
`calibrate` splits a budget among them and says what noise each contributor adds to each.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import ceil, inf, isqrt, log2, nextafter, sqrt
from typing import TYPE_CHECKING, Final, Literal

from protocols.dp import exact
from protocols.dp.cost import ORDERS, UNIT, Cost
from protocols.dp.intervals import GaussianSum, LaplaceSum, Sum, half_width
from protocols.dp.noise import (
    at_least_one,
    discrete_gaussian,
    discrete_laplace,
    has_gaussian_table,
    has_laplace_table,
    polya,
)
from protocols.errors import InputError
from protocols.party import Rand

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]

MAX_RHO: Final = Fraction(16)
MAX_EPSILON: Final = Fraction(32)
MAX_SENSITIVITY: Final = 1 << 52
MAX_SIZE: Final = 1 << 24

REACH_BITS: Final = 100
"""No value of a vector's summed noise is beyond its `reach`, except with a chance of 2^-100."""

_MAX_REACH: Final = 1 << 62
_LEAST_SHARE: Final = 16
"""Least variance of a discrete Gaussian share: from σ = 4 on, their sum is one discrete Gaussian to 1e-60."""

CONFIDENCE: Final = Fraction(95, 100)


@dataclass(frozen=True, slots=True)
class Vector:
    """A vector of integers to be released with noise.

    Attributes:
        name: of the part of the release.
        size: coordinates.
        l1: ℓ1 sensitivity: what all coordinates together change by when one unit joins or leaves, at most.
        l2_squared: square of the ℓ2 sensitivity: the sum of the squares of these changes, at most.
        weight: its share of the budget, in proportion to the other vectors' weights.

    Raises:
        InputError: numbers that no vector has.
    """

    name: str
    size: int
    l1: int
    l2_squared: int
    weight: Fraction = Fraction(1)

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 1 <= self.size <= MAX_SIZE or self.weight <= 0:
            raise InputError(
                f"part {self.name} has {self.size} numbers and weight {self.weight}: "
                f"1 to {MAX_SIZE} numbers and a weight above zero are possible",
                code="bad-release",
                hint="ask for fewer cells",
            )
        if not 1 <= self.l1 <= MAX_SENSITIVITY or not 1 <= self.l2_squared <= MAX_SENSITIVITY**2:
            raise InputError(
                f"one person would change part {self.name} by {self.l1}, squared by {self.l2_squared}; "
                f"1 to 2^52 and its square are possible",
                code="bad-sensitivity",
                hint="give bounds that are not both zero, with fewer decimals",
            )


@dataclass(frozen=True, slots=True)
class Budget:
    """What a release may cost: ρ (`zcdp`, discrete Gaussian noise) or ε (`pure-dp`, discrete Laplace noise).

    Raises:
        InputError: zero, less, or so much that it protects nobody (ρ > 16, ε > 32).
    """

    notion: Literal["zcdp", "pure-dp"]
    amount: Fraction

    def __post_init__(self) -> None:
        """Check the amount."""
        letter, most = ("ρ", MAX_RHO) if self.notion == "zcdp" else ("ε", MAX_EPSILON)
        if self.amount <= 0:
            raise InputError(
                f"{letter} is {_short(self.amount)}, it has to be above 0",
                code="bad-privacy",
                hint=f"{letter} = 0 would need endless noise; 0.1 to 1 are usual",
            )
        if self.amount > most:
            raise InputError(
                f"{letter} is {_short(self.amount)}, at most {most} is possible",
                code="bad-privacy",
                hint=f"{letter} above {most} protects nobody; 0.1 to 1 are usual",
            )


@dataclass(frozen=True, slots=True)
class Noise:
    """The noise on one vector: each contributor adds `draw` to its own vector times `scale`.

    The released numbers are the sum of all contributors' vectors, divided by `scale`.

    Attributes:
        kind: each adds a discrete Gaussian (`gaussian`), the difference of two Pólya values (`polya`) or a
            whole discrete Laplace value (`laplace`).
        scale: integer that values are multiplied by before noise is added.
        spread: σ² of one contributor's share for `gaussian`, else the scale t of the discrete Laplace
            distribution, in scaled units. Its root, or itself, is a 64-bit float.
        honest: contributors, at least so many, whose shares an observer cannot subtract.
        contributors: all that add a share.
        size: coordinates.
    """

    kind: Literal["gaussian", "polya", "laplace"]
    scale: int
    spread: Fraction
    honest: int
    contributors: int
    size: int

    def draw(self, rand: Rand) -> "Ints":
        """Return one contributor's share: `size` fresh, independent values in scaled units, int64.

        Exact. Up to `exact.SMALL` values of a discrete Gaussian or Laplace, and those too wide for a table,
        come from OpenDP and its system randomness; all others from `rand`.
        """
        small = self.size <= exact.SMALL
        match self.kind:
            case "gaussian" if small or not has_gaussian_table(self.spread):
                return exact.discrete_gaussian(sqrt(self.spread), self.size)
            case "gaussian":
                return discrete_gaussian(self.spread).draw(self.size, rand)
            case "laplace" if small or not has_laplace_table(self.spread):
                return exact.discrete_laplace(float(self.spread), self.size)
            case "laplace":
                return discrete_laplace(self.spread).draw(self.size, rand)
            case _:
                return self._polya(rand) - self._polya(rand)

    def _polya(self, rand: Rand) -> "Ints":
        if has_laplace_table(self.spread):
            return polya(self.spread, self.honest).draw(self.size, rand)
        return exact.wide_polya(self.spread, self.honest, self.size, rand)

    @property
    def variance(self) -> float:
        """Of the noise on each released number, from all contributors, in original units."""
        return _sum(self).variance / self.scale**2

    @property
    def reach(self) -> int:
        """What the summed noise exceeds nowhere in the vector, but with a chance of 2^-100; scaled units."""
        return _sum(self).reach(REACH_BITS + log2(self.size))

    def half_width(self, confidence: Fraction = CONFIDENCE) -> float:
        """Return w: a released number is within ±w of the true one at that confidence; original units.

        From the exact distribution of the noise of all contributors together; the coverage is never below
        the confidence.

        Args:
            confidence: for each number by itself, 0.5 to 0.999999.

        Raises:
            InputError: another confidence.
        """
        return _half_width(_sum(self), confidence) / self.scale


@lru_cache(maxsize=1024)
def _sum(noise: Noise) -> Sum:
    if noise.kind == "gaussian":
        return GaussianSum(noise.spread, noise.contributors)
    return LaplaceSum(noise.spread, Fraction(noise.contributors, noise.honest))


_half_width = lru_cache(maxsize=4096)(half_width)


def calibrate(
    vectors: Sequence[Vector], budget: Budget, *, honest: int, contributors: int
) -> tuple[tuple[Noise, ...], Cost]:
    """Return the noise for each vector and what releasing them all costs: exactly the budget.

    Each vector has the share weight/Σ weights of it. The cost covers an observer who sees the sums and knows
    the shares of all but `honest` contributors.

    Args:
        vectors: one or more.
        budget: ρ or ε for all together.
        honest: h, from 1 to `contributors`; one who sees the sum and adds noise does not count, and 1 means
            that every contributor's noise is enough by itself.
        contributors: n, who add noise.

    Raises:
        InputError: `no-honest-contributor`, or noise that no 64-bit sum can hold (`noise-too-large`).
    """
    at_least_one(honest)
    if honest > contributors or not vectors:
        raise InputError(
            f"{len(vectors)} vectors with noise of {contributors} contributors, {honest} of them honest",
            code="bad-release",
            hint="at least one vector, and no more honest contributors than there are",
        )
    whole = sum(vector.weight for vector in vectors)
    amounts = [budget.amount * vector.weight / whole for vector in vectors]
    make = _gaussian if budget.notion == "zcdp" else _laplace
    noises = tuple(
        make(vector, amount, honest, contributors) for vector, amount in zip(vectors, amounts, strict=True)
    )
    if budget.notion == "zcdp":
        return noises, Cost.zcdp(budget.amount)
    # Added up before rounding, so that three thirds of a budget are the budget.
    losses = tuple(sum(min(part, order * part**2 / 2) for part in amounts) for order in ORDERS)
    return noises, Cost(tuple(ceil(loss * UNIT) for loss in losses), ceil(budget.amount * UNIT))


def _gaussian(vector: Vector, rho: Fraction, honest: int, contributors: int) -> Noise:
    scale = 1
    if honest > 1:
        # (1) The least multiple of the values for which the share Δ²/2ρh of the variance is 16.
        least = _LEAST_SHARE * 2 * rho * honest / vector.l2_squared
        scale = isqrt(ceil(least) - 1) + 1
    # (2) A float σ, next above what keeps to ρ together with what sets a sum of shares apart from one share.
    square = scale**2 * vector.l2_squared
    wanted = square / (2 * rho * honest)
    _holds(isqrt(int(wanted)))
    sigma = sqrt(wanted)
    while _rho(square, Fraction(sigma) ** 2, honest, vector.size) > rho:
        sigma = nextafter(sigma, inf)
    noise = Noise("gaussian", scale, Fraction(sigma) ** 2, honest, contributors, vector.size)
    _holds(noise.reach)
    return noise


def _rho(square: int, variance: Fraction, honest: int, size: int) -> Fraction:
    """Return ρ of h discrete Gaussian shares of variance σ²: Δ²/2hσ² + 12/5·d·τ.

    SPEC.md, "Distributed noise". τ = 10 Σ_{k<h} exp(-2π²σ² k/(k+1)) is how far the sum is from one discrete
    Gaussian (Kairouz, Liu and Steinke 2021, arXiv:2102.06387); each term is at most exp(-π²σ²) ≤ 2^(-14σ²).
    """
    apart = Fraction(24 * size * (honest - 1), 1 << min(int(14 * variance), 1024))
    return square / (2 * honest * variance) + apart


def _laplace(vector: Vector, epsilon: Fraction, honest: int, contributors: int) -> Noise:
    wanted = vector.l1 / epsilon
    _holds(wanted)
    spread = float(wanted)
    if Fraction(spread) < wanted:
        spread = nextafter(spread, inf)
    kind: Literal["polya", "laplace"] = "polya" if honest > 1 else "laplace"
    noise = Noise(kind, 1, Fraction(spread), honest, contributors, vector.size)
    _holds(noise.reach)
    return noise


def _holds(reach: Fraction | int) -> None:
    if reach >= _MAX_REACH:
        raise InputError(
            "the noise would be as large as 2^62, larger than any sum can be",
            code="noise-too-large",
            hint="give bounds and values with fewer decimals, or spend more of the budget",
        )


def _short(amount: Fraction) -> str:
    return f"{float(amount):g}" if abs(amount) < 10**9 else "beyond a thousand million"
