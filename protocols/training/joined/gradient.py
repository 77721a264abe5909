"""Residuals and gradients of a logistic regression on shared rows, as far as each party reckons alone.

The matcher M and the helper H hold shares of X (n x d, 0 or 1) and y (n, 0 or 1) modulo p = 2^61 - 1; weights
w are public. X is shared anew when it is masked (masking.py): M holds D + A_M and H holds A_H, with D = X - A
open and A the dealer's. Each iteration takes ρ with ρ² and ρ³, checked (cubes.py), and b with c = Aᵀb.

1. v = Xw is local. M and H open e = v - ρ.
2. -v³ = -(e + ρ)³ is linear in shares of ρ, ρ², ρ³, so r = K·cubic(u) - K·y is local.
3. M and H open E = r - b; Xᵀr = c + Dᵀb + (D + A)ᵀE is local (Beaver 1991), Dᵀb reckoned beforehand.

e and E are uniform whatever X and y are, since ρ and b are fresh. SPEC.md, section 6.
"""

import numpy as np

from protocols.joined.field import WIDE, Words
from protocols.training.joined.cubic import Cubic

_PRIME = np.uint64(WIDE.prime)
_LOW = np.uint64((1 << 31) - 1)
_MIDDLE = np.uint64((1 << 30) - 1)


def times(one: Words, other: "Words | np.uint64") -> Words:
    """Return products of words modulo 2^61 - 1, element by element.

    With a = a1·2^31 + a0: 2^62 is 2, and of the middle terms m = m1·2^30 + m0, m·2^31 is m1 + m0·2^31. All
    sums stay below 2^64.
    """
    a1, a0 = one >> np.uint64(31), one & _LOW
    b1, b0 = other >> np.uint64(31), other & _LOW
    middle = a1 * b0 + a0 * b1
    total = (a1 * b1 << np.uint64(1)) + (middle >> np.uint64(30)) + ((middle & _MIDDLE) << np.uint64(31))
    total += a0 * b0
    total = (total & _PRIME) + (total >> np.uint64(61))
    least: Words = np.minimum(total, total - _PRIME)
    return least


def dot(one: Words, other: Words) -> Words:
    """Return the sum of products of two vectors, as an array of one word."""
    found: Words = WIDE.product(one[:, None], other[:, None])[0]
    return found


def scores(rows: Words, weights: Words) -> Words:
    """Return the share of v = Xw, n words. Step 1.

    Args:
        rows: n x d, own share of X.
        weights: d, public.
    """
    return WIDE.dots(rows, weights[None])[:, 0]


def residuals(
    cubic: Cubic, score: Words, labels: Words, opened: Words, powers: Words, *, first: bool
) -> Words:
    """Return the share of r = K·cubic(v) - K·y, n words. Step 2.

    Args:
        cubic: public.
        score: share of v.
        labels: share of y.
        opened: e = v - ρ.
        powers: 3 x n, shares of ρ, ρ², ρ³.
        first: the matcher's.
    """
    constant, linear, unit = (np.uint64(value % WIDE.prime) for value in (*cubic.whole, cubic.unit))
    rho, square, cube = powers
    # (e + ρ)³ = e³ + 3e(eρ + ρ²) + ρ³
    total = WIDE.add(cube, times(times(opened, np.uint64(3)), WIDE.add(square, times(opened, rho))))
    if first:
        total = WIDE.add(total, times(times(opened, opened), opened))
    found = WIDE.subtract(times(score, linear), total)
    found = WIDE.subtract(found, times(labels, unit))
    return WIDE.add(found, np.full_like(score, constant)) if first else found


def gradient(rows: Words, opened: Words, base: Words) -> Words:
    """Return the share of Xᵀr, d words. Step 3.

    Args:
        rows: n x d, own share of X: D + A_M, or A_H.
        opened: E = r - b.
        base: d, own share of c + Dᵀb.
    """
    return WIDE.add(base, WIDE.product(rows, opened[:, None])[:, 0])
