"""Noise on integers in bulk, and exact: discrete Gaussian, discrete Laplace, Pólya. SPEC.md, "Noise".

A `Sampler` compares uniform numbers with the cumulative distribution. What 63 bits leave undecided is decided
with as many more as it takes, so a value has exactly the distribution it stands for: there is no truncation,
no rounding and no δ to charge. Nothing that decides is a float.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Context, Decimal, localcontext
from fractions import Fraction
from functools import lru_cache
from math import isqrt
from typing import TYPE_CHECKING, Final

from protocols.errors import InputError
from protocols.party import Rand

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]

MAX_TABLE: Final = 1 << 20
"""Most values of a table: a discrete Gaussian of σ ≤ 95,000, a discrete Laplace of scale ≤ 17,300."""

_WORD: Final = 63
"""Bits of a uniform word that a table decides with; the 64th is the sign."""

_GUIDE: Final = 18
_DRAW: Final = 1 << 18
"""Values drawn at a time and under one key, so that memory does not grow with the count."""

_GUARD: Final = 192
"""Bits by which the weights of a table are finer than the thresholds made of them."""


@dataclass(frozen=True, slots=True)
class Weights:
    """What a distribution on 0, 1, 2, … is made of.

    Attributes:
        values: integers in proportion to the probabilities of 0, 1, …, each at most the true weight.
        missing: upper bound of what they lack together, all values left out included.
    """

    values: list[int]
    missing: int

    def thresholds(self, bits: int) -> tuple[list[int], int]:
        """Return integers t and a gap g: 2^bits · P(X ≤ i) lies in [t_i, t_i + g]."""
        total, reached, thresholds = sum(self.values), 0, []
        for value in self.values:
            reached += value
            thresholds.append((reached << bits) // (total + self.missing))
        # (C + m)/S - C/(S + m) ≤ 2m/S for every C ≤ S; one more for each of the two roundings.
        return thresholds, (2 * self.missing << bits) // total + 2


@dataclass(frozen=True, slots=True, eq=False)
class Sampler:
    """Draws independent values of one distribution.

    Attributes:
        weigh: gives the weights for thresholds of so many bits.
        signed: each value gets a sign by a fair coin (0 has none).
        lower: 63-bit thresholds, see `Weights.thresholds`.
        gap: how far above them the true ones can be.
        guide: the value by the topmost 18 bits of a word where they decide it, else -1.
    """

    weigh: Callable[[int], Weights]
    signed: bool
    lower: "Ints"
    gap: int
    guide: "npt.NDArray[np.int32]"

    @classmethod
    def of(cls, weigh: Callable[[int], Weights], *, signed: bool) -> "Sampler":
        """Make the tables."""
        import numpy as np

        thresholds, gap = weigh(_WORD).thresholds(_WORD)
        lower = np.array(thresholds, np.int64)
        begin = np.arange(1 << _GUIDE, dtype=np.int64) << (_WORD - _GUIDE)
        guide = np.searchsorted(lower, begin - gap, side="left").astype(np.int32)
        # Where a threshold can lie among the words of a bucket, their other bits have a say.
        guide[guide != np.searchsorted(lower, begin + (1 << (_WORD - _GUIDE)) - 1, side="right")] = -1
        return cls(weigh, signed, lower, gap, guide)

    def draw(self, count: int, rand: Rand) -> "Ints":
        """Return `count` independent values, int64.

        Args:
            count: 0 or more.
            rand: gives the 32-byte key of an AES-256-CTR stream for each 2^18 values.
        """
        import numpy as np

        values = np.empty(count, np.int64)
        for done in range(0, count, _DRAW):
            values[done : done + _DRAW] = self._draw(min(_DRAW, count - done), Stream(rand(32)))
        return values

    def _draw(self, count: int, stream: "Stream") -> "Ints":
        import numpy as np

        uniform = stream.words(count)
        words = (uniform >> np.uint64(1)).view(np.int64)
        values: Ints = self.guide[words >> (_WORD - _GUIDE)].astype(np.int64)
        open_ = np.flatnonzero(values < 0)
        if open_.size:
            asked = words[open_]
            found = np.searchsorted(self.lower, asked, side="right")
            # Only the nearest threshold at or below a word can be above the number that the word begins.
            unsure = (found > 0) & (self.lower[found - 1] >= asked - self.gap)
            for place in np.flatnonzero(unsure):
                found[place] = _refined(self.weigh, int(asked[place]), stream)
            values[open_] = found
        if self.signed:
            negative = (uniform & np.uint64(1)).view(np.int64)
            values = (values ^ -negative) + negative
        return values


def _refined(weigh: Callable[[int], Weights], word: int, stream: "Stream") -> int:
    """Return the value of a uniform number that begins with `word`, with as many bits more as it takes."""
    bits = _WORD
    while True:
        bits, word = bits + 64, word << 64 | int(stream.words(1)[0])
        thresholds, gap = weigh(bits).thresholds(bits)
        found = bisect_right(thresholds, word)
        if found == bisect_left(thresholds, word - gap):
            return found


class Stream:
    """Uniform 64-bit words of AES-256-CTR under one key that is used for nothing else (NIST SP 800-38A)."""

    def __init__(self, key: bytes) -> None:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        self._stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def words(self, count: int) -> "npt.NDArray[np.uint64]":
        """Return the next `count` words."""
        import numpy as np

        return np.frombuffer(self._stream.update(bytes(8 * count)), np.uint64)


# -- distributions ------------------------------------------------------------------------------------------


@lru_cache(maxsize=16)
def discrete_gaussian(variance: Fraction) -> Sampler:
    """Return the sampler of the discrete Gaussian N_Z(0, σ²): P(k) ∝ exp(-k²/2σ²).

    Added to integers of ℓ2 sensitivity Δ it is Δ²/2σ²-zCDP (Canonne, Kamath and Steinke 2020,
    arXiv:2004.00010, theorem 4 and its multivariate form).

    Args:
        variance: σ², above 0.

    Raises:
        InputError: σ² is not above 0, or the table would have more than `MAX_TABLE` values.
    """
    _positive(variance)
    _fits(_gaussian_reach(variance, _WORD))

    def weigh(bits: int) -> Weights:
        fraction = bits + _GUARD
        reach = _gaussian_reach(variance, bits)
        factor = _exp(-1 / (2 * variance), fraction)
        square = factor * factor >> fraction
        weight = 1 << fraction
        values = [weight]
        for _ in range(reach):
            weight = weight * factor >> fraction  # exp(-(2k+1)/2σ²) leads from k to k+1
            factor = factor * square >> fraction
            values.append(2 * weight)
        return Weights(values, _missing(reach, fraction, bits))

    return Sampler.of(weigh, signed=True)


@lru_cache(maxsize=16)
def discrete_laplace(scale: Fraction) -> Sampler:
    """Return the sampler of the discrete Laplace distribution: P(k) ∝ exp(-|k|/scale).

    Added to integers of ℓ1 sensitivity Δ it is Δ/scale-differentially private (Ghosh, Roughgarden and
    Sundararajan 2009, arXiv:0811.2841).

    Args:
        scale: above 0.

    Raises:
        InputError: the scale is not above 0, or the table would have more than `MAX_TABLE` values.
    """
    _positive(scale)
    _fits(_laplace_reach(scale, _WORD))

    def weigh(bits: int) -> Weights:
        fraction = bits + _GUARD
        reach = _laplace_reach(scale, bits)
        alpha, weight = _exp(-1 / scale, fraction), 1 << fraction
        values = [weight]
        for _ in range(reach):
            weight = weight * alpha >> fraction
            values.append(2 * weight)
        return Weights(values, _missing(reach, fraction, bits))

    return Sampler.of(weigh, signed=True)


@lru_cache(maxsize=16)
def polya(scale: Fraction, shares: int) -> Sampler:
    """Return the sampler of the Pólya distribution NB(1/shares, α), α = exp(-1/scale): 0, 1, 2, ….

    The difference of two such values, summed over `shares` independent contributors, is discrete Laplace of
    that scale (Goryczka and Xiong 2017, "A comprehensive comparison of multiparty secure additions with
    differential privacy").

    Args:
        scale: above 0.
        shares: h, 1 or more.

    Raises:
        InputError: as `discrete_laplace`, or no share.
    """
    _positive(scale)
    at_least_one(shares)
    _fits(_laplace_reach(scale, _WORD))

    def weigh(bits: int) -> Weights:
        fraction = bits + _GUARD
        reach = _laplace_reach(scale, bits)
        alpha, weight = _exp(-1 / scale, fraction), 1 << fraction
        values = [weight]
        for k in range(reach):
            # P(k+1)/P(k) = α (k + 1/h) / (k + 1)
            weight = (weight * alpha >> fraction) * (k * shares + 1) // ((k + 1) * shares)
            values.append(weight)
        return Weights(values, _missing(reach, fraction, bits))

    return Sampler.of(weigh, signed=False)


@lru_cache(maxsize=64)
def poisson(mean: Fraction) -> Sampler:
    """Return the sampler of the Poisson distribution: P(k) ∝ mean^k / k!.

    Args:
        mean: above 0 and at most 100.
    """

    def weigh(bits: int) -> Weights:
        fraction = bits + _GUARD
        weight = above = 1 << fraction
        values, missing, k = [weight], 0, 0
        # Past 2·mean each weight is less than half of the one before: those left out are less than the last.
        while k <= 2 * mean or above >> (fraction - bits - 1):
            k += 1
            weight = weight * mean.numerator // (k * mean.denominator)
            above = -(-above * mean.numerator // (k * mean.denominator))
            values.append(weight)
            missing += above - weight
        return Weights(values, missing + above)

    return Sampler.of(weigh, signed=False)


def has_gaussian_table(variance: Fraction) -> bool:
    """Return whether `discrete_gaussian` takes this variance."""
    return _gaussian_reach(variance, _WORD) <= MAX_TABLE


def has_laplace_table(scale: Fraction) -> bool:
    """Return whether `discrete_laplace` and `polya` take this scale."""
    return _laplace_reach(scale, _WORD) <= MAX_TABLE


def at_least_one(honest: int) -> None:
    """Refuse noise to which no honest party contributes.

    Raises:
        InputError: fewer than one.
    """
    if honest < 1:
        raise InputError(
            f"noise of {honest} honest contributors protects nobody, at least 1 is needed",
            code="no-honest-contributor",
            hint="ask more departments, or count fewer of them as colluding",
        )


def _gaussian_reach(variance: Fraction, bits: int) -> int:
    """Return K with Σ_{k>K} 2·exp(-k²/2σ²) ≤ 2^-bits (SPEC.md, "Noise", lemma 2)."""
    return isqrt(int(2 * variance * _nats(bits))) + 2


def _laplace_reach(scale: Fraction, bits: int) -> int:
    """Return K with Σ_{k>K} 2·exp(-k/scale) ≤ 2^-bits (SPEC.md, "Noise", lemma 2)."""
    return int(scale * _nats(bits)) + 2


def _nats(bits: int) -> Fraction:
    return Fraction(6932, 10_000) * (bits + 24)  # ln 2 < 0.6932


def _missing(reach: int, fraction: int, bits: int) -> int:
    """Return what the weights up to `reach` lack: rounding (lemma 1) and the tail (lemma 2)."""
    return 8 * (reach + 2) ** 3 + (1 << (fraction - bits))


def _exp(exponent: Fraction, fraction: int) -> int:
    """Return e^exponent in fixed point, never too large, at most 3 units too small; exponent below 0."""
    # The digits leave an error far below one unit: that one is taken off.
    with localcontext(Context(prec=fraction // 3 + 10)):
        value = (Decimal(exponent.numerator) / Decimal(exponent.denominator)).exp()
        return max(int(value * (1 << fraction)) - 1, 0)


def _positive(value: Fraction) -> None:
    if value <= 0:
        raise InputError(
            f"the width of the noise is {value}, it has to be above zero",
            code="bad-noise",
            hint="a privacy parameter is a number above zero",
        )


def _fits(reach: int) -> None:
    if reach > MAX_TABLE:
        raise InputError(
            f"the noise would need a table of {reach} values, {MAX_TABLE} are the most",
            code="noise-too-large",
            hint="give bounds and values with fewer decimals, or spend more of the budget",
        )
