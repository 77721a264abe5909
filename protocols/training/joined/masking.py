"""A shared matrix that is multiplied with many vectors is masked once, and the dealer's part checked before.

The dealer gives uniform A (n x d) and B (n x T), shared, and C = AᵀB: one column of B for each vector that is
to come. M and H open D = X - A. For a shared vector r they later open E = r - b_t and have Xᵀr = c_t + Dᵀb_t
+ (D + A)ᵀE (Beaver 1991). C is checked like the triple of one product (protocols/joined/triples.py, from
which all streams are), but that nothing of a right factor is opened. SPEC.md, section 6.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from protocols.errors import ProtocolAborted
from protocols.ids import Role
from protocols.joined.field import RunningProduct, Words
from protocols.joined.triples import COIN_BYTES, Shape, masks_of, product_of
from protocols.sums.masks import SEED_BYTES, stream_key
from protocols.training.joined.talk import SPAN_WORDS, Part, Say, opened

MATCHER: Final = Role("matcher")
HELPER: Final = Role("helper")

_CHALLENGE: Final = b"train-joined/challenge"


@dataclass(frozen=True, slots=True)
class Masked:
    """One party's part of a matrix once it is masked.

    Attributes:
        rows: n x d, own share of X: D + A_M, or A_H.
        factors: n x T, own share of B.
        bases: d x T, own share of C + DᵀB.
    """

    rows: Words
    factors: Words
    bases: Words


def coin_of(own: bytes, *, first: bool) -> Part[bytes]:
    """Toss: return M's 16 bytes, then H's. The own ones are drawn once the dealer's part is whole."""
    theirs = yield Say(own, COIN_BYTES)
    return own + theirs if first else theirs + own


def challenge_key(coin: bytes, ctx: bytes) -> bytes:
    """Return the key of the stream of a challenge."""
    assert len(coin) == 2 * COIN_BYTES <= SEED_BYTES
    return stream_key(coin, ctx, MATCHER, HELPER, _CHALLENGE)


def bad_triple(what: str) -> ProtocolAborted:
    """Return the error of a dealer's part that is wrong."""
    return ProtocolAborted(
        f"the dealer's {what} are not what they have to be",
        code="bad-triple",
        hint="nothing made with them was opened; have the dealer's node checked before the job is run again",
    )


def masked(  # noqa: PLR0917  # of what, from whom, with whose coin
    shape: Shape,
    ctx: bytes,
    seed: bytes,
    corrections: bytes | None,
    coin: bytes,
    x: Words,
) -> Part[Masked]:
    """Mask a matrix, and check what the dealer gave.

    Args:
        shape: n, d and T.
        ctx: 32 bytes, binds streams to the attempt and this purpose.
        seed: 32 bytes from the dealer.
        corrections: H's, `corrections_bytes(shape)` of them; None at M.
        coin: 16 own random bytes, drawn when `corrections` had come.
        x: n x d, own share of X; overwritten.

    Raises:
        ProtocolAborted: `bad-triple`, at both; `bad-word`.
    """
    first, field, left, right = corrections is None, shape.field, shape.left, shape.right
    assert right is not None
    dealt = product_of(shape, seed, ctx) if corrections is None else field.read(corrections, 1)[:, 0]
    c, gamma = dealt[: shape.cells].reshape(left, right), dealt[shape.cells :]
    masks = masks_of(shape, seed, ctx, MATCHER if first else HELPER)
    tossed = yield from coin_of(coin, first=first)
    weights = field.stream(challenge_key(tossed, ctx)).take(1, left + right)
    u, w = weights[:, :left], weights[:, left:]
    factors = np.empty((shape.rows, right), dtype=field.dtype)
    crossing = RunningProduct(field, left, right)
    checked = RunningProduct(field, 1, 1)
    step = max(1, SPAN_WORDS // (left + 2))
    for start in range(0, shape.rows, step):
        here = slice(start, min(start + step, shape.rows))
        drawn = masks.take(here.stop - here.start, shape.width)
        a, b, alpha, beta = np.split(drawn, [left, left + right, left + right + 1], axis=1)
        # X - A, and what is sacrificed: the factors of uᵀ(AᵀB)w = (A·u)·(B·w).
        own = np.concatenate((x[here], field.dots(a, u), field.dots(b, w)), axis=1)
        field.subtract(own, np.concatenate((a, alpha, beta), axis=1), out=own)
        both = yield from opened(field, own)
        d, rho, sigma = np.split(both, [left, left + 1], axis=1)
        crossing.add(d, b)
        checked.add(rho, field.add(beta, sigma) if first else beta)
        checked.add(alpha, sigma)
        x[here] = field.add(a, d) if first else a
        factors[here] = b
    t = field.subtract(field.product(field.dots(c, w), u.T)[0], field.add(checked.total()[0], gamma))
    if (yield from opened(field, t)).any():
        raise bad_triple("products for the gradients")
    return Masked(x, factors, field.add(c, crossing.total()))
