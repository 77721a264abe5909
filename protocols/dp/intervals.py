"""How far the summed noise can be from zero: quantile, reach and variance of sums. SPEC.md, "Intervals"."""

from fractions import Fraction
from math import ceil, isqrt, log, log1p, pi, sinh, sqrt
from typing import TYPE_CHECKING, Final

from protocols.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

MAX_CONFIDENCE: Final = Fraction(999_999, 1_000_000)
"""Highest confidence of an interval; `_ERROR` is far below what it leaves."""

_TERMS: Final = 1 << 14
_TAIL_BITS: Final = 40
_ERROR: Final = 1e-9
"""What floating-point sums of `_TERMS` terms can be off, generously."""

_NARROW: Final = Fraction(4)
"""Variance from which a discrete Gaussian's transform is summed by period, and below which by value."""


class GaussianSum:
    """The sum of `count` independent discrete Gaussian values N_Z(0, variance)."""

    def __init__(self, variance: Fraction, count: int) -> None:
        self._one, self._count = variance, count

    @property
    def variance(self) -> float:
        """Of the sum; below count·σ², and equal to it within 1e-30 from σ = 2 on."""
        if self._one >= _NARROW:
            return float(self._one) * self._count
        values, weights = self._weights()
        return self._count * float(values**2 @ weights)

    def reach(self, bits: float) -> int:
        """Return r with P(|sum| > r) ≤ 2^-bits.

        N_Z(0, σ²) has E exp(λX) ≤ exp(λ²σ²/2), so the chance is at most 2·exp(-r²/2nσ²).
        """
        return isqrt(int(2 * self._count * self._one * Fraction(log(2) * (bits + 1) * (1 + 1e-9)))) + 1

    def transform(self, angles: "Floats") -> "Floats":
        """Return the characteristic function at angles in (0, π]."""
        import numpy as np

        if self._one < _NARROW:
            values, weights = self._weights()
            one = np.cos(np.outer(angles, values)) @ weights
        else:
            # Poisson summation: the Gaussian's own transform, repeated every 2π. The rest is below 1e-33.
            one = np.exp(-float(self._one) * angles**2 / 2) + np.exp(
                -float(self._one) * (2 * pi - angles) ** 2 / 2
            )
        return np.asarray(one**self._count)

    def terms(self, period: int) -> tuple[int, float]:
        """Return how many Fourier coefficients count at that period, and what the others add to at most."""
        if self._one < _NARROW:
            return period, _ERROR
        # Where nσ²θ²/2 is 60 they are below 1e-24 and fall faster than a geometric series.
        return ceil(period / (2 * pi) * sqrt(120 / (self._count * float(self._one)))) + 1, _ERROR

    def _weights(self) -> tuple["Floats", "Floats"]:
        import numpy as np

        values = np.arange(-40.0, 41.0)
        weights = np.exp(-(values**2) / (2 * float(self._one)))
        return values, weights / weights.sum()


class LaplaceSum:
    """The sum of `times` discrete Laplace values of a scale: G - G', both NB(times, exp(-1/scale)).

    `times` need not be whole: n contributors of Pólya shares 1/h are times = n/h of them.
    """

    def __init__(self, scale: Fraction, times: Fraction) -> None:
        self._scale, self._times = float(scale), float(times)
        # Where 1/2t is beyond what sinh can take, no value but zero has a probability worth a float.
        self._spread = sinh(min(1 / (2 * self._scale), 300.0))

    @property
    def variance(self) -> float:
        """Of the sum: times·2α/(1-α)²."""
        return self._times / (2 * self._spread**2)

    def reach(self, bits: float) -> int:
        """Return r with P(|sum| > r) ≤ 2^-bits: E exp(cX/scale) ≤ (1 - c²)^-times for c < 1 (Chernoff)."""
        nats = log(2) * (bits + 1)
        best = min(
            (nats - self._times * log1p(-(c**2))) / c for c in (0.5, 0.7, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99)
        )
        return ceil(best * self._scale * (1 + 1e-9)) + 1

    def transform(self, angles: "Floats") -> "Floats":
        """Return the characteristic function, ((1-α)² / (1 - 2α cos θ + α²))^times."""
        import numpy as np

        return np.asarray((1 + (np.sin(angles / 2) / self._spread) ** 2) ** -self._times)

    def terms(self, period: int) -> tuple[int, float]:
        """Return how many Fourier coefficients count at that period, and what the others add to at most."""
        # The j-th adds at most (1/j)·(B/j)^2a, B = period·sinh(1/2t)/2; those from J on (B/J)^2a/2a.
        ratio = min(period * self._spread / 2 / _TERMS, 1.0)
        return _TERMS, _ERROR + ratio ** (2 * self._times) / (2 * self._times)


Sum = GaussianSum | LaplaceSum


def half_width(noise: Sum, confidence: Fraction) -> int:
    """Return the least w for which P(|noise| ≤ w) is certainly at least `confidence`.

    P(|X| ≤ w) is a sum of Fourier coefficients of the exact distribution over a period of more than twice its
    reach. What the sum leaves out and what floats can be off are asked for on top, less than 1e-6.

    Raises:
        InputError: a confidence outside [0.5, 0.999999].
    """
    import numpy as np

    if not Fraction(1, 2) <= confidence <= MAX_CONFIDENCE:
        raise InputError(
            f"a confidence of {float(confidence):g}, 0.5 to {float(MAX_CONFIDENCE)} are possible",
            code="bad-confidence",
            hint="0.95 is usual",
        )
    reach = noise.reach(_TAIL_BITS)
    period = 2 * reach + 1
    terms, left_out = noise.terms(period)
    count = np.arange(1.0, min(terms, reach) + 1)
    angles = 2 * pi * count / period
    # The mean of the transform times the Dirichlet kernel sin((w+½)θ)/sin(θ/2) over the period's frequencies.
    factors = noise.transform(angles) * 2 / (np.sin(angles / 2) * period)
    wanted = float(confidence) + 2.0 ** (1 - _TAIL_BITS) + (left_out if terms < reach else _ERROR)
    low, high = -1, reach
    while high - low > 1:
        middle = (low + high) // 2
        share = (2 * middle + 1) / period
        if share + float((np.sin(pi * share * count) * factors).sum()) >= wanted:
            high = middle
        else:
            low = middle
    return high
