"""The sigmoid as a cubic with whole coefficients: r = cubic(score) - label of shared scores, without
truncation.

The least-squares cubic of the sigmoid on [-B, B] is c0 + c1·u + c3·u³ with c3 < 0 (Kim, Song, Kim, Lee and
Cheon 2018, "Logistic regression model training based on the approximate homomorphic encryption"). Scores
are whole numbers v = 2^s·u, because weights are public and on that grid and features are whole. With K =
2^3s/|c3|,

    K·cubic(u) = -v³ + ⌊c1·K/2^s⌋·v + ⌊c0·K⌋,

exactly but for two rounded constants that everybody knows. So residuals are exact whole numbers, and their
product with the features is a gradient in units of 1/K. Nothing has to be truncated, so nothing can fail.
"""

from dataclasses import dataclass
from functools import cached_property
from math import isqrt
from typing import Final

from protocols.errors import InputError
from protocols.training.schema import Floats

_LINEAR: Final = {
    4: 21_660_981, 5: 19_833_103, 6: 18_060_687, 8: 15_012_041, 10: 12_668_840, 12: 10_886_201
}  # fmt: skip
"""c1 in 1e-8 for each bound: in digits, since all parties need the same whole constants."""

_CUBIC: Final = {
    4: 66_047_077, 5: 44_735_303, 6: 30_920_975, 8: 15_930_174, 10: 9_025_718, 12: 5_531_223
}  # fmt: skip
"""-c3 in 1e-10."""

REACH: Final = (1 << 60) - 1
"""The largest magnitude of a whole number that words modulo 2^61 - 1 carry."""

MAX_BITS: Final = 12
"""Finest grid of weights. Finer ones would make what one person changes larger than noise is drawn for."""

BOUNDS: Final = tuple(_LINEAR)
"""B: largest magnitude of a score."""


@dataclass(frozen=True)
class Cubic:
    """A cubic for scores within ±`bound`.

    Attributes:
        bound: B: 4, 5, 6, 8, 10 or 12.
        bits: s, 4 to `MAX_BITS`.
    """

    bound: int
    bits: int

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InputError: `bad-params`.
        """
        if self.bound not in _LINEAR or not 4 <= self.bits <= MAX_BITS:
            raise InputError(
                f"scores within ±{self.bound} in units of 2^-{self.bits}",
                code="bad-params",
                hint="scores within ±8 in units of 2^-11 suit 150,000 rows",
            )

    @cached_property
    def real(self) -> tuple[float, float, float]:
        """c0, c1, c3."""
        return 0.5, _LINEAR[self.bound] / 10**8, -_CUBIC[self.bound] / 10**10

    @cached_property
    def unit(self) -> int:
        """K, what a residual of 1 is."""
        return (10**10 << (3 * self.bits)) // _CUBIC[self.bound]

    @cached_property
    def whole(self) -> tuple[int, int]:
        """The constants: of v⁰ and of v¹; that of v³ is -1."""
        return self.unit // 2, (_LINEAR[self.bound] * self.unit // 10**8) >> self.bits

    def value(self, score: int) -> int:
        """Return K·cubic for a whole score."""
        constant, linear = self.whole
        return constant + (linear - score * score) * score

    @cached_property
    def largest(self) -> int:
        """The largest magnitude of a residual, in units of 1/K, over all whole scores within the bound."""
        most = self.bound << self.bits
        # The cubic turns where 3v² is the linear constant; beyond and between it is monotone.
        turn = isqrt(self.whole[1] // 3)
        candidates = [v for v in (-most, -turn - 1, -turn, turn, turn + 1, most) if abs(v) <= most]
        values = [self.value(v) for v in candidates]
        return max(abs(value - label * self.unit) for value in values for label in (0, 1))

    def on(self, margins: Floats) -> Floats:
        """Return the cubic of real scores."""
        constant, linear, cubic = self.real
        values: Floats = constant + linear * margins + cubic * margins**3
        return values
