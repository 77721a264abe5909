"""Noise on integers: discrete Gaussian, discrete Laplace and Pólya, drawn in bulk and to 128 bits. SPEC.md, "Noise".

A `Sampler` is a table of the cumulative distribution in units of 2^-128, made with 256-bit integers, and draws
by inversion. Its distance from the distribution it stands for is bounded, `distance`, and charged to δ by
whoever releases what was drawn. Nothing here rounds a float.
"""

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Context, Decimal, localcontext
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from protocols.errors import InputError
from protocols.party import Rand

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_BITS: Final = 128
_ONE: Final = 1 << _BITS
_FIX: Final = 256
"""Fractional bits of the fixed-point numbers that a table is made of."""

_DIGITS: Final = 100
_GUIDE_BITS: Final = 16
MAX_TABLE: Final = 1 << 21
"""Most values of a table: a discrete Gaussian of σ ≤ 78,000, a discrete Laplace of scale ≤ 11,800."""

_DRAW: Final = 1 << 18
"""Values drawn at a time, so that memory does not grow with the count."""


@dataclass(frozen=True, slots=True, eq=False)
class Sampler:
    """Draws integers `first`, `first` + 1, … from one distribution.

    Attributes:
        first: smallest value.
        high, low: thresholds as pairs of 64-bit words, one fewer than values: value i is drawn when the
            uniform 128-bit number is at least threshold i-1 and below threshold i.
        guide: value index by the topmost 16 bits of the number, where these decide it; else -1.
        distance: total variation distance from the distribution at most, in units of 1.
        variance: of the distribution.
    """

    first: int
    high: "npt.NDArray[np.uint64]"
    low: "npt.NDArray[np.uint64]"
    guide: "npt.NDArray[np.int32]"
    distance: Fraction
    variance: float

    def draw(self, count: int, rand: Rand) -> "npt.NDArray[np.int64]":
        """Return `count` independent values, int64.

        Args:
            count: 0 or more.
            rand: gives the 32-byte key of an AES-256-CTR stream for each 2^18 values.
        """
        import numpy as np

        parts = [self._draw(min(_DRAW, count - done), rand) for done in range(0, count, _DRAW)]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def _draw(self, count: int, rand: Rand) -> "npt.NDArray[np.int64]":
        import numpy as np

        stream = _Stream(rand(32))
        words = stream.words(count)
        index = self.guide[words >> np.uint64(64 - _GUIDE_BITS)]
        # Where a threshold lies in the same 2^-16 of the range, the whole word decides.
        open_ = np.flatnonzero(index < 0)
        found = np.searchsorted(self.high, words[open_], side="right").astype(np.int32)
        index[open_] = found
        # `found` counts thresholds at or below the word; where the last one's high word is the number's own,
        # the low 64 bits decide. They are drawn only then: nothing else depends on them.
        tied = open_[(found > 0) & (self.high[found - 1] == words[open_])]
        for place in tied:
            number = int(words[place]) << 64 | int(stream.words(1)[0])
            index[place] = _below(self.high, self.low, number)
        return index.astype(np.int64) + self.first


class _Stream:
    """Uniform 64-bit words of AES-256-CTR under one key that is used for nothing else (NIST SP 800-38A)."""

    def __init__(self, key: bytes) -> None:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        self._stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def words(self, count: int) -> "npt.NDArray[np.uint64]":
        import numpy as np

        return np.frombuffer(self._stream.update(bytes(8 * count)), np.uint64)


def _below(high: "npt.NDArray[np.uint64]", low: "npt.NDArray[np.uint64]", number: int) -> int:
    """Return how many thresholds are at or below a 128-bit number."""
    begin, end = 0, len(high)
    while begin < end:
        middle = (begin + end) // 2
        if int(high[middle]) << 64 | int(low[middle]) <= number:
            begin = middle + 1
        else:
            end = middle
    return begin


@lru_cache(maxsize=32)
def discrete_gaussian(variance: Fraction) -> Sampler:
    """Return the sampler of the discrete Gaussian N_Z(0, σ²): P(k) ∝ exp(-k²/2σ²).

    Adding it to a value of sensitivity Δ costs ρ = Δ²/2σ² (Canonne, Kamath and Steinke 2020,
    arXiv:2004.00010, theorem 4).

    Args:
        variance: σ², above 0.

    Raises:
        InputError: σ² is not above 0, or so large that the table has more than `MAX_TABLE` values.
    """
    _positive(variance, "the variance of the noise")
    # exp(-k²/2σ²) < 2^-160 beyond: what is cut off is less than 2^-130 for every σ² a table can have.
    reach = _root(variance * 222) + 2
    _fits(2 * reach + 1)
    step = _exp(-1 / (2 * variance))
    square = step * step >> _FIX
    weights, weight, factor = [1 << _FIX], 1 << _FIX, step
    for _ in range(reach):
        weight = weight * factor >> _FIX  # exp(-(2k+1)/2σ²) leads from k to k+1
        factor = factor * square >> _FIX
        weights.append(weight)
    return _table(-reach, [*weights[:0:-1], *weights])


@lru_cache(maxsize=32)
def discrete_laplace(scale: Fraction) -> Sampler:
    """Return the sampler of the discrete Laplace distribution: P(k) ∝ exp(-|k|/scale).

    Adding it to a value of sensitivity Δ is (Δ/scale)-differentially private (Ghosh, Roughgarden and
    Sundararajan 2009); its variance is 2α/(1-α)², α = exp(-1/scale).

    Args:
        scale: Δ/ε, above 0.

    Raises:
        InputError: the scale is not above 0, or so large that the table has more than `MAX_TABLE` values.
    """
    _positive(scale, "the scale of the noise")
    weights = _powers(scale)
    return _table(1 - len(weights), [*weights[:0:-1], *weights])


@lru_cache(maxsize=32)
def polya(scale: Fraction, shares: int) -> Sampler:
    """Return the sampler of one of `shares` parts of a geometric variable: NB(1/shares, α), α = exp(-1/scale).

    The sum of so many independent differences of two such values is discrete Laplace of that scale (Goryczka and
    Xiong 2017, "A comprehensive comparison of multiparty secure additions with differential privacy").

    Args:
        scale: Δ/ε, above 0.
        shares: h, the honest contributors that are certain to be in the sum, 1 or more.

    Raises:
        InputError: see `discrete_laplace`, or no share.
    """
    _positive(scale, "the scale of the noise")
    if shares < 1:
        raise InputError(
            f"noise of {shares} honest contributors protects nobody",
            code="no-honest-contributor",
            hint="ask more departments, or let each add the whole noise",
        )
    alpha = _exp(-1 / scale)
    weights, weight = [1 << _FIX], 1 << _FIX
    for k in range(len(_powers(scale)) - 1):
        # P(k+1)/P(k) = α (k + 1/h) / (k + 1)
        weight = (weight * alpha >> _FIX) * (k * shares + 1) // ((k + 1) * shares)
        weights.append(weight)
    return _table(0, weights)


def _powers(scale: Fraction) -> list[int]:
    """Return exp(-k/scale) in fixed point for every k that matters."""
    # exp(-k/scale) < 2^-160 beyond.
    reach = int(scale * 111) + 2
    _fits(2 * reach + 1)
    alpha = _exp(-1 / scale)
    weights = [1 << _FIX]
    for _ in range(reach):
        weights.append(weights[-1] * alpha >> _FIX)
    return weights


def _table(first: int, weights: list[int]) -> Sampler:
    import numpy as np

    total = sum(weights)
    thresholds, reached = [], 0
    for weight in weights[:-1]:
        reached += weight
        # Values so unlikely that they round to nothing share the last threshold there is.
        thresholds.append(min((reached << _BITS) // total, _ONE - 1))
    high = np.array([t >> 64 for t in thresholds], np.uint64)
    low = np.array([t & (2**64 - 1) for t in thresholds], np.uint64)
    mean = sum(k * w for k, w in enumerate(weights)) / total
    variance = sum((k - mean) ** 2 * (w / total) for k, w in enumerate(weights))
    # Each value's probability is off by less than two roundings of 2^-128 and by its own relative error of
    # fewer than 2^-230; what the table leaves out is below 2^-128 (see the reaches).
    distance = Fraction(len(weights) + 2, _ONE)
    return Sampler(first, high, low, _guide(thresholds), distance, variance)


def _guide(thresholds: list[int]) -> "npt.NDArray[np.int32]":
    import numpy as np

    buckets = 1 << _GUIDE_BITS
    tops = np.array([t >> (_BITS - _GUIDE_BITS) for t in thresholds], np.int64)
    guide = np.searchsorted(tops, np.arange(buckets), side="left").astype(np.int32)
    guide[tops[tops < buckets]] = -1
    return guide


def _exp(exponent: Fraction) -> int:
    """Return e^exponent in fixed point, cut; exponent at most 0."""
    with localcontext(Context(prec=_DIGITS)):
        value = (Decimal(exponent.numerator) / Decimal(exponent.denominator)).exp()
        return int(value * (1 << _FIX))


def _root(value: Fraction) -> int:
    """Return the square root, rounded up."""
    from math import isqrt

    return isqrt(value.numerator // value.denominator) + 1


def _positive(value: Fraction, what: str) -> None:
    if value <= 0:
        raise InputError(
            f"{what} is {value}, it has to be above zero",
            code="bad-noise",
            hint="a privacy parameter of zero would need endless noise",
        )


def _fits(values: int) -> None:
    if values > MAX_TABLE:
        raise InputError(
            f"the noise would need a table of {values} values, {MAX_TABLE} are the most",
            code="noise-too-large",
            hint="ask for less privacy or a smaller bound: noise so large leaves nothing to see",
        )


Draw = Callable[[int, Rand], "npt.NDArray[np.int64]"]
