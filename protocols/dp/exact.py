"""Exact noise of any width, without a table: OpenDP's samplers, and wide Pólya. SPEC.md, "Noise"."""

from decimal import Context, Decimal, localcontext
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from protocols.dp.noise import Stream, at_least_one, poisson
from protocols.errors import InputError
from protocols.party import Rand

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]

SMALL: Final = 1 << 14
"""Values up to which OpenDP draws while a table would be made: 10 µs each, 0.16 s together."""

MAX_SCALE: Final = 1 << 56
"""Largest scale of `wide_polya`: a value does not fit in 64 bits with a chance of exp(-128)."""

_CHUNK: Final = 1 << 15
"""Values of `wide_polya` drawn at a time."""

_MARGIN: Final = 2.0**-40
"""More than what a float acceptance probability of `wide_polya` can be off; SPEC.md, "Noise", lemma 3."""


def discrete_gaussian(sigma: float, count: int) -> "Ints":
    """Return `count` values of N_Z(0, σ²), sampled exactly by OpenDP from system randomness.

    Canonne, Kamath and Steinke 2020 (arXiv:2004.00010), algorithm 3, with σ the rational that the float is.

    Args:
        sigma: σ, above 0; a value beyond 64 bits would be cut to them.
        count: 0 or more.
    """
    return _drawn(_opendp("make_gaussian", sigma), count)


def discrete_laplace(scale: float, count: int) -> "Ints":
    """Return `count` values of P(k) ∝ exp(-|k|/scale), sampled exactly by OpenDP from system randomness.

    Args:
        scale: above 0; a value beyond 64 bits would be cut to them.
        count: 0 or more.
    """
    return _drawn(_opendp("make_laplace", scale), count)


@lru_cache(maxsize=16)
def _opendp(make: str, scale: float) -> Any:
    import opendp.prelude as dp

    # OpenDP asks users of every constructor without a finished proof document to say that they know.
    dp.enable_features("contrib")
    metric = dp.l2_distance(T="f64") if make == "make_gaussian" else dp.l1_distance(T="i64")
    return getattr(dp.m, make)(dp.vector_domain(dp.atom_domain(T="i64")), metric, scale=scale)


def _drawn(measurement: Any, count: int) -> "Ints":
    import numpy as np

    return np.array(measurement([0] * count), np.int64)


def wide_polya(scale: Fraction, shares: int, count: int, rand: Rand) -> "Ints":
    """Return `count` values of the Pólya distribution NB(1/shares, exp(-1/scale)), exactly, at any scale.

    Such a value is the sum of the points of a Poisson process with exp(-k/scale)/(shares·k) points expected
    at each k = 1, 2, …. Points are drawn from one with simpler and larger expectations, and each is kept with
    the quotient (Lewis and Shedler 1979, "Simulation of nonhomogeneous Poisson processes by thinning"). Where
    geometric draws, kept if they fit, would be kept once in scale^(1-1/shares) times, this takes about
    (2 + log2 scale)/shares points for a value. SPEC.md, "Noise", lemma 3.

    Args:
        scale: above 0 and at most `MAX_SCALE`.
        shares: h, 1 or more.
        count: 0 or more.
        rand: gives the 32-byte key of an AES-256-CTR stream for each 2^15 values.

    Raises:
        InputError: another scale, or no share.
    """
    import numpy as np

    at_least_one(shares)
    if not 0 < scale <= MAX_SCALE:
        raise InputError(
            f"the scale of the noise is {float(scale):g}, at most {MAX_SCALE} is possible",
            code="noise-too-large",
            hint="give bounds and values with fewer decimals, or spend more of the budget",
        )
    # 2^top is the least power of two that is not below the scale.
    top = (-(-scale.numerator // scale.denominator) - 1).bit_length()
    # In each block [2^j, 2^(j+1)), j < top, and beyond 2^top as a whole, 1/shares points are expected.
    number = poisson(Fraction(top + 1, shares))
    values = np.zeros(count, np.int64)
    for begin in range(0, count, _CHUNK):
        part = values[begin : begin + _CHUNK]
        points = number.draw(len(part), rand)
        stream = Stream(rand(32))
        owners = np.repeat(np.arange(len(part)), points)
        places, shifts = _points(top, len(owners), stream)
        kept = _accepted(places, shifts, scale, stream)
        np.add.at(part, owners[kept], places[kept])
    return values


def _points(top: int, count: int, stream: Stream) -> tuple["Ints", "Ints"]:
    """Return points of the larger process, and e: at a point k its density is 2^-e / shares."""
    import numpy as np

    blocks = _below(top + 1, count, stream)
    offsets = stream.words(count) & ((np.uint64(1) << blocks) - np.uint64(1))
    places = (np.uint64(1) << blocks) + offsets
    shifts = blocks.astype(np.int64)
    # The last block stands for all of [m 2^top, (m+1) 2^top), m = 1, 2, …, with 2^-m of its points each.
    last = np.flatnonzero(blocks == top)
    turns = _heads(last.size, stream)
    places[last] = (turns.astype(np.uint64) << np.uint64(top)) + offsets[last]
    shifts[last] += turns
    return places.astype(np.int64), shifts


def _below(limit: int, count: int, stream: Stream) -> "npt.NDArray[np.uint64]":
    """Return uniform integers below `limit`, by rejection."""
    import numpy as np

    bound = np.uint64((1 << 64) // limit * limit - 1)
    words = stream.words(count).copy()
    while (bad := np.flatnonzero(words > bound)).size:
        words[bad] = stream.words(bad.size)
    return words % np.uint64(limit)


def _heads(count: int, stream: Stream) -> "Ints":
    """Return 1, 2, 3, … with probability 1/2, 1/4, 1/8, …."""
    import numpy as np

    turns = np.ones(count, np.int64)
    running = np.arange(count)
    while running.size:
        words = stream.words(running.size)
        ended = words != 0
        lowest = words & (~words + np.uint64(1))
        turns[running] += np.where(ended, np.log2(np.where(ended, lowest, 1).astype(np.float64)), 64).astype(
            int
        )
        running = running[~ended]
    return turns


def _accepted(places: "Ints", shifts: "Ints", scale: Fraction, stream: Stream) -> "npt.NDArray[np.bool_]":
    """Return which points k stay: each with probability 2^e · exp(-k/scale) / k."""
    import numpy as np

    uniform = stream.words(places.size)
    below = (uniform >> np.uint64(11)).astype(np.float64) * 2.0**-53
    chance = np.ldexp(np.exp(-places / float(scale)) / places, shifts)
    kept = below < chance
    for point in np.flatnonzero(np.abs(below - chance) < _MARGIN):
        kept[point] = _decided(int(uniform[point]), int(places[point]), int(shifts[point]), scale, stream)
    return kept


def _decided(word: int, place: int, shift: int, scale: Fraction, stream: Stream) -> bool:
    """Return whether a uniform number that begins with `word` is below 2^shift·exp(-place/scale)/place."""
    bits = 64
    while True:
        with localcontext(Context(prec=bits)):
            exponent = Decimal(place * scale.denominator) / Decimal(scale.numerator)
            # Far more digits than bits: the error is below one unit of the last bit.
            chance = int((-exponent).exp() * (1 << (shift + bits)) / place)
        if not chance - 1 <= word <= chance + 1:
            return word < chance
        bits, word = bits + 64, word << 64 | int(stream.words(1)[0])
