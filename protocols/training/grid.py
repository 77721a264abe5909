"""Vectors of real numbers as whole numbers whose ℓ2 norm is bounded exactly.

Every row's vector is rounded towards zero, so its norm does not grow: the sensitivity of a sum is the bound
itself, and no randomness is in it that a node would have to draw or prove.
"""

from typing import Final

import numpy as np

from protocols.training.schema import Floats, Ints

_MARGIN: Final = 1 - 2.0**-40
"""Keeps a vector, scaled to its bound in floats, below it; `cut` checks on whole numbers that it did."""


def cut(vectors: Floats, clip: float, bound: int) -> Ints:
    """Return vectors, those longer than `clip` shortened to it, in units of clip / bound, rounded towards
    zero.

    Args:
        vectors: k × d; one that is not finite counts as zero: a gradient that explodes says nothing.
        clip: ℓ2 norm, above 0.
        bound: at most 2^26; no row of the result has a greater ℓ2 norm, exactly.
    """
    norms = np.sqrt(np.einsum("kd,kd->k", vectors, vectors))
    usable = np.isfinite(norms)
    factors = np.where(usable, np.minimum(1.0, clip / np.maximum(norms, clip)), 0.0) * (
        _MARGIN * bound / clip
    )
    whole = np.trunc(np.where(usable[:, None], vectors, 0.0) * factors[:, None]).astype(np.int64)
    # Floats may be wrong, whole numbers are not: squares of at most bound² ≤ 2^52 add up without a wrap.
    np.clip(whole, -bound, bound, out=whole)
    beyond = np.einsum("kd,kd->k", whole.astype(np.float64), whole.astype(np.float64)) > float(bound) ** 2
    whole[beyond] = 0
    return whole
