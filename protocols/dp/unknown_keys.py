"""Which values of an open-ended column may be named: those with enough noisy rows. SPEC.md, "Unknown keys".

Where no public list says which values there are, even that one is there at all may be due to one person.
"""

from bisect import bisect_left
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Final

from protocols.dp.mechanism import Noise
from protocols.dp.noise import discrete_gaussian, discrete_laplace
from protocols.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]

MAX_DELTA: Final = Fraction(1, 1000)

_GUARD: Final = 64
"""Bits of a probability beyond those that tell δ/keys from 0."""


def threshold(noise: Noise, *, width: int, keys: int, delta: Fraction) -> int:
    """Return the least noisy count with which a key is released, in the noise's scaled units.

    width + q, where q is the least integer with P(noise ≥ q) ≤ 1 - (1-δ)^(1/keys): of all the keys that are
    there only because of one unit, one or more are released with probability at most `delta`.

    Args:
        noise: of one contributor, drawn once for each key.
        width: most that one unit adds to the count of one key.
        keys: most keys that one unit adds to.
        delta: above 0 and at most `MAX_DELTA`; charged on top of what the noise costs.

    Raises:
        InputError: bounds below 1, a δ that is none, noise from several contributors or too wide for a table.
    """
    if width < 1 or keys < 1:
        raise InputError(
            f"a person with {width} rows for each of {keys} values, expected at least 1 of each",
            code="bad-bound",
        )
    if not 0 < delta <= MAX_DELTA:
        raise InputError(
            f"δ is {float(delta):g}, expected above 0 and at most {float(MAX_DELTA):g}",
            code="bad-privacy",
            hint="take far less than one over the number of persons, for example 1e-9",
        )
    if noise.contributors != 1 or noise.kind == "polya":
        raise InputError(
            f"values that no list names were asked of {noise.contributors} departments together",
            code="too-many-organisations",
            hint="ask one department, or give the list of values",
        )
    sampler = discrete_gaussian if noise.kind == "gaussian" else discrete_laplace
    # Every rounding is to the side of a higher threshold: what has to be reached up, probabilities down.
    bits = _GUARD + keys.bit_length() + (delta.denominator // delta.numerator).bit_length()
    one = 1 << bits
    reached = one - (delta.numerator << bits) // delta.denominator
    inside, _ = (
        sampler(noise.spread).weigh(bits).thresholds(bits)
    )  # 2^bits · P(|noise| ≤ i), or a little less
    # The distribution is symmetric: P(noise ≤ i) = (1 + P(|noise| ≤ i)) / 2.
    below = bisect_left(inside, reached, key=lambda each: _power((one + each) // 2, keys, bits))
    return width * noise.scale + below + 1


def release_keys(names: Sequence[str], noisy: "Ints", threshold: int) -> list[tuple[str, int]]:
    """Return the keys that may be named with their noisy counts, by name: an order that data have no say in.

    Raises:
        InputError: not one count for each name, or a name twice.
    """
    if len(names) != len(noisy) or len(set(names)) != len(names):
        raise InputError(
            f"{len(noisy)} counts for {len(set(names))} different names among {len(names)}", code="bad-keys"
        )
    return sorted((name, int(count)) for name, count in zip(names, noisy, strict=True) if count >= threshold)


def _power(base: int, exponent: int, bits: int) -> int:
    """Return base^exponent of a number of [0, 1] in units of 2^-bits, rounded down at every step."""
    power = 1 << bits
    for digit in f"{exponent:b}":
        power = power * power >> bits
        if digit == "1":
            power = power * base >> bits
    return power
