"""How many dummies of a public pool an overlap is raised by: truncated discrete Laplace. SPEC.md, section 2.

z in 0 … m with P(z) ∝ exp(-ε·|z - m/2|). A count that one person changes by one, plus z, is (ε, δ)-private
with δ = P(z = 0), the mass of one edge: only there one of two neighbours can come out and the other cannot.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import MAX_EMAX, MIN_EMIN, ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from fractions import Fraction
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Final

from protocols.dp.mechanism import CONFIDENCE
from protocols.dp.noise import discrete_laplace
from protocols.errors import InputError
from protocols.party import Rand

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]

MAX_POOL: Final = 1 << 14
"""Most points of a pool: half a megabyte, and a few seconds of one core at each side."""

LEAST_DELTA: Final = Fraction(1, 10**15)
"""What the ledger rounds every δ up to."""

MAX_DELTA: Final = Fraction(1, 10**6)

_DIGITS: Final = 60
_DOWN: Final = Context(prec=_DIGITS, rounding=ROUND_FLOOR, Emin=MIN_EMIN, Emax=MAX_EMAX)
_UP: Final = Context(prec=_DIGITS, rounding=ROUND_CEILING, Emin=MIN_EMIN, Emax=MAX_EMAX)


@dataclass(frozen=True, slots=True)
class Dummies:
    """The distribution of z.

    Attributes:
        epsilon: ε.
        delta: δ that is charged, not below P(z = 0).
        half: m/2, which is E z.
    """

    epsilon: Fraction
    delta: Fraction
    half: int

    @property
    def pool(self) -> int:
        """m, the points of the pool; even."""
        return 2 * self.half

    def draw(self, count: int, rand: Rand) -> "Ints":
        """Return `count` independent values of z, exactly of this distribution.

        Discrete Laplace values of scale 1/ε, each drawn again until it is not beyond m/2.
        """
        import numpy as np

        noise = discrete_laplace(1 / self.epsilon)
        values = noise.draw(count, rand)
        while (beyond := np.flatnonzero(np.abs(values) > self.half)).size:
            values[beyond] = noise.draw(beyond.size, rand)
        return values + self.half

    def edge(self) -> tuple[Fraction, Fraction]:
        """Return bounds of P(z = 0) that differ in the 50th digit."""
        low, high, sum_low, sum_high = _at(self.epsilon, self.half)
        return Fraction(low) / Fraction(sum_high), Fraction(high) / Fraction(sum_low)

    def half_width(self, confidence: Fraction = CONFIDENCE) -> int:
        """Return the least w for which P(|z - m/2| ≤ w) is certainly at least `confidence`, in 0 to 1."""
        _, _, _, whole = _at(self.epsilon, self.half)
        for w, (_, _, reached, _) in enumerate(islice(_sums(self.epsilon), self.half)):
            if Fraction(reached) >= confidence * Fraction(whole):
                return w
        return self.half  # there all of it is


@lru_cache(maxsize=64)
def dummies(epsilon: Fraction, delta: Fraction) -> Dummies:
    """Return the distribution with the smallest pool for which P(z = 0) ≤ δ.

    Args:
        epsilon: ε, above 0.
        delta: δ.

    Raises:
        InputError: `bad-privacy`, δ is out of range; `noise-too-large`, the pool would be beyond `MAX_POOL`.
    """
    if not LEAST_DELTA <= delta <= MAX_DELTA:
        raise InputError(
            f"delta is not from {float(LEAST_DELTA):g} to {float(MAX_DELTA):g}: with that chance the "
            "released number itself tells that one person is, or is not, on a list",
            code="bad-privacy",
            hint='write for example delta = "1/1000000000"',
        )
    for half, (_, high, reached, _) in enumerate(islice(_sums(epsilon), MAX_POOL // 2 + 1)):
        if half and Fraction(high) <= delta * Fraction(reached):
            return Dummies(epsilon, delta, half)
    raise InputError(
        f"the noise of epsilon = {float(epsilon):g} and delta = {float(delta):g} would need a pool of more "
        f"than {MAX_POOL} dummies",
        code="noise-too-large",
        hint="spend more of the budget: epsilon from 0.004 on is possible with every delta",
    )


@lru_cache(maxsize=64)
def _at(epsilon: Fraction, half: int) -> tuple[Decimal, Decimal, Decimal, Decimal]:
    return next(islice(_sums(epsilon), half, None))


def _sums(epsilon: Fraction) -> Iterator[tuple[Decimal, Decimal, Decimal, Decimal]]:
    """Yield for k = 0, 1, … bounds of exp(-εk), low and high, and of Σ over |j| ≤ k of exp(-ε|j|).

    Every step is rounded outwards: nothing is decided by a number that may be off the wrong way.
    """
    # Decimal's exp is correctly rounded to nearest, whatever the context says: one step aside is a bound.
    least = _UP.divide(Decimal(epsilon.numerator), Decimal(epsilon.denominator))
    most = _DOWN.divide(Decimal(epsilon.numerator), Decimal(epsilon.denominator))
    down = _DOWN.next_minus(least.copy_negate().exp(_DOWN))
    up = _UP.next_plus(most.copy_negate().exp(_UP))
    low = high = sum_low = sum_high = Decimal(1)
    while True:
        yield low, high, sum_low, sum_high
        low, high = _DOWN.multiply(low, down), _UP.multiply(high, up)
        sum_low = _DOWN.add(sum_low, _DOWN.multiply(2, low))
        sum_high = _UP.add(sum_high, _UP.multiply(2, high))
