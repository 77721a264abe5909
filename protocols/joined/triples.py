"""XᵀY of shared matrices with a dealer's triple, and the check that the dealer dealt a right one.

The matcher M and the helper H hold shares of X (n × l) and Y (n × r) modulo the field's prime and want shares
of XᵀY. The dealer D deals c = aᵀb of uniform a and b; everything but H's c comes from two seeds. M and H open
X - a and Y - b to each other and compute the rest alone (Beaver 1991, CRYPTO '91; for matrices Mohassel and
Zhang 2017, "SecureML", IEEE S&P). For each check D deals γ = α·β, too, which M and H sacrifice to verify c
under a challenge that D cannot know (Damgård, Pastro, Smart and Zakarias, "SPDZ", CRYPTO 2012; Damgård et
al., ESORICS 2013). SPEC.md, section 3.
"""

import hmac
from collections import deque
from dataclasses import dataclass
from typing import Final

import numpy as np

from protocols.errors import ProtocolAborted, StateConflict
from protocols.ids import Role
from protocols.joined.field import Field, RunningProduct, Stream, Words
from protocols.party import MAX_BODY_BYTES
from protocols.sums.masks import SEED_BYTES, stream_key

COIN_BYTES: Final = 16
"""What M and H each draw for the challenge."""

_DEALER: Final = Role("dealer")
_MATCHER: Final = Role("matcher")
_HELPER: Final = Role("helper")
_MASKS: Final = b"joined-triple/masks"
_CORRECTIONS: Final = b"joined-triple/corrections"
_CHALLENGE: Final = b"joined-triple/challenge"


@dataclass(frozen=True, slots=True)
class Shape:
    """What is multiplied.

    Args:
        rows: n, rows of X and Y.
        left: l, columns of X.
        right: r, columns of Y; None for XᵀX, a gram matrix.
        field: of the words.

    Raises:
        ValueError: no column, rows below 0, or a row of the openings longer than a frame.
    """

    rows: int
    left: int
    right: int | None
    field: Field

    def __post_init__(self) -> None:
        if self.rows < 0 or self.left < 1 or (self.right is not None and self.right < 1):
            raise ValueError(f"rows and columns expected, {self.rows} × {self.left} and {self.right} found")
        if self.block_rows < 1:
            raise ValueError(f"a row of {self.width} words is longer than a frame")

    @property
    def columns(self) -> int:
        """Columns of X and Y together."""
        return self.left + (self.right or 0)

    @property
    def width(self) -> int:
        """Words that are opened in each row: of X, of Y, and of the factors of every check."""
        return self.columns + self.field.checks * (1 if self.right is None else 2)

    @property
    def block_rows(self) -> int:
        """Rows of one block of openings, the last one's may be fewer; a block fills a frame."""
        return MAX_BODY_BYTES // (self.width * self.field.bytes)

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return -(-self.rows // self.block_rows)

    @property
    def cells(self) -> int:
        """Words of c: of a gram matrix the upper triangle, so that c is symmetric whatever a dealer sends."""
        return self.left * (self.left + 1) // 2 if self.right is None else self.left * self.right

    def rows_of(self, block: int) -> int:
        """Return the number of rows of a block, counted from 0; 0 beyond the last."""
        return max(0, min(self.block_rows, self.rows - block * self.block_rows))


def corrections_bytes(shape: Shape) -> int:
    """Return the length of what `deal` returns."""
    return (shape.cells + shape.field.checks) * shape.field.bytes


def deal(shape: Shape, seed_m: bytes, seed_h: bytes, ctx: bytes) -> bytes:
    """Return D's corrections for H: its share of c = aᵀb, then of γ = α·β of each check.

    Args:
        shape: of the product.
        seed_m: 32 fresh bytes, which M gets.
        seed_h: 32 fresh bytes, which H gets with the corrections.
        ctx: 32 bytes, binds the triple to the attempt.
    """
    field = shape.field
    of_m, of_h = (masks_of(shape, seed, ctx, role) for seed, role in ((seed_m, _MATCHER), (seed_h, _HELPER)))
    product, checks = _products(shape)
    for block in range(shape.blocks):
        rows = shape.rows_of(block)
        masks = of_m.take(rows, shape.width)
        (a, b), (alpha, beta) = _parts(shape, field.add(masks, of_h.take(rows, shape.width), out=masks))
        product.add(a, b)
        checks.add(alpha, beta)
    triple = np.concatenate((_packed(shape, product.total()), checks.total().diagonal()))
    return field.to_bytes(field.subtract(triple, product_of(shape, seed_m, ctx)))


class Multiplier:
    """M's or H's side of one product.

    Calls in order: `challenge`, then `open` and `take` for every block, `check_share`, `verify`, `result`.
    """

    def __init__(
        self, shape: Shape, seed: bytes, ctx: bytes, *, first: bool, corrections: bytes | None = None
    ) -> None:
        """Begin with what the dealer sent.

        Args:
            shape: of the product, the same on both sides and at the dealer.
            seed: 32 bytes from the dealer.
            ctx: 32 bytes, binds the triple to the attempt.
            first: M's side; H's otherwise.
            corrections: H's, from the dealer; M has none.

        Raises:
            ProtocolAborted: the seed or the corrections have another length, or a word is beyond the prime.
        """
        if first == (corrections is not None):
            raise ValueError("the helper takes corrections, the matcher none")
        _expect_length("seed", seed, SEED_BYTES)
        self._shape, self._ctx, self._first = shape, ctx, first
        self._masks = masks_of(shape, seed, ctx, _MATCHER if first else _HELPER)
        if corrections is None:
            dealt = product_of(shape, seed, ctx)
        else:
            _expect_length("corrections", corrections, corrections_bytes(shape))
            dealt = shape.field.read(corrections, 1).reshape(-1)
        self._c, self._gamma = _unpacked(shape, dealt[: shape.cells]), dealt[shape.cells :]
        self._product, self._checks = _products(shape)
        self._weights: Words | None = None
        self._opened = self._taken = 0
        self._under_way: deque[tuple[Words, Words]] = deque()
        self._verified = False

    @property
    def block_rows(self) -> int:
        """Rows of a block, the last one's may be fewer."""
        return self._shape.block_rows

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return self._shape.blocks

    def challenge(self, coin: bytes) -> None:
        """Take the joint coin: M's 16 bytes, then H's. No dealer sees either, nor what depends on them.

        Raises:
            ProtocolAborted: it has another length.
        """
        _expect_length("coin", coin, 2 * COIN_BYTES)
        stream = self._shape.field.stream(stream_key(coin, self._ctx, _MATCHER, _HELPER, _CHALLENGE))
        self._weights = stream.take(self._shape.field.checks, self._shape.columns)

    def open(self, x: Words, y: Words | None = None) -> bytes:
        """Return the body of the next own block, at most 1 MiB: shares of rows of X - a, Y - b, ρ and σ.

        Args:
            x: own share of the block's rows of X, `block_rows` × l words (the last block: what is left).
            y: own share of those of Y, × r; None for a gram matrix.

        Raises:
            StateConflict: there is no challenge yet.
        """
        shape, field = self._shape, self._shape.field
        if self._weights is None:
            raise StateConflict("opening asked for before the challenge", code="no-challenge")
        rows = shape.rows_of(self._opened)
        if not rows or x.shape != (rows, shape.left):
            raise ValueError(f"block {self._opened} has {rows} × {shape.left} words, {x.shape} found")
        if (None if y is None else y.shape) != (None if shape.right is None else (rows, shape.right)):
            raise ValueError(f"block {self._opened} has {rows} × {shape.right} right words")
        masks = self._masks.take(rows, shape.width)
        own = np.empty_like(masks)
        own[:, : shape.left] = x
        if y is not None:
            own[:, shape.left : shape.columns] = y
        # What is sacrificed: the factors of uᵀ(aᵀb)w = (a·u)·(b·w).
        (a, b), _ = _parts(shape, masks)
        (_, _), (of_left, of_right) = _parts(shape, own)
        of_left[...] = field.dots(a, self._weights[:, : shape.left])
        if b is not None and of_right is not None:
            of_right[...] = field.dots(b, self._weights[:, shape.left :])
        field.subtract(own, masks, out=own)
        self._opened += 1
        self._under_way.append((masks, own))
        return field.to_bytes(own)

    def take(self, body: bytes) -> None:
        """Take the peer's body of the oldest block that is opened and not yet taken.

        Raises:
            ProtocolAborted: no block is open, or the body has another length or a word beyond the prime.
        """
        shape, field = self._shape, self._shape.field
        if not self._under_way:
            raise ProtocolAborted("a block came that is not opened here", code="unexpected-message")
        masks, own = self._under_way[0]
        _expect_length("block", body, own.nbytes)
        opened = field.add(own, field.read(body, shape.width), out=own)
        self._under_way.popleft()
        self._taken += 1
        ours, theirs = _parts(shape, masks), _parts(shape, opened)
        for product, (a, b), (d, e) in zip((self._product, self._checks), ours, theirs, strict=True):
            if b is None or e is None:
                # The share of XᵀX is c + S + Sᵀ with S = aᵀD; halves of DᵀD in both make M's whole one.
                product.add(field.add(a, field.half(d)) if self._first else a, d)
            else:
                product.add(d, field.add(b, e) if self._first else b)
                product.add(a, e)

    def check_share(self) -> bytes:
        """Return own share t of what is 0 if the triple is right: a word for each check.

        Raises:
            StateConflict: blocks are missing.
        """
        return self._shape.field.to_bytes(self._check_words())

    def _check_words(self) -> Words:
        shape, field = self._shape, self._shape.field
        if self._taken < shape.blocks or self._weights is None:
            raise StateConflict(
                f"check asked for after {self._taken} of {shape.blocks} blocks", code="product-not-complete"
            )
        masked = field.add(_whole(shape, self._checks).diagonal(), self._gamma)
        u, w = self._weights[:, : shape.left], self._weights[:, -(shape.right or shape.left) :]
        claimed = field.product(field.dots(self._c, w), u.T).diagonal()
        return field.subtract(claimed, masked)

    def verify(self, peer: bytes) -> None:
        """Take the peer's `check_share`. A triple that is wrong anywhere passes at most once in 2^59 jobs.

        Raises:
            ProtocolAborted: `bad-triple`, or the share has another length or a word beyond the prime.
            StateConflict: blocks are missing.
        """
        shape, field = self._shape, self._shape.field
        _expect_length("check share", peer, field.checks * field.bytes)
        negative = field.subtract(np.zeros(field.checks, field.dtype), field.read(peer, 1)[:, 0])
        if not hmac.compare_digest(self.check_share(), field.to_bytes(negative)):
            raise ProtocolAborted(
                f"the dealer's triple for {shape.rows} rows is no product of its factors",
                code="bad-triple",
                hint="nothing was opened; have the dealer's node checked before the job is run again",
            )
        self._verified = True

    def result(self) -> Words:
        """Return own share of XᵀY: l × r words, of XᵀX all l × l.

        Raises:
            StateConflict: the triple is not verified.
        """
        if not self._verified:
            raise StateConflict("product asked for before its triple was verified", code="not-verified")
        return self._shape.field.add(self._c, _whole(self._shape, self._product))


_Pair = tuple[Words, Words | None]


def _parts(shape: Shape, rows: Words) -> tuple[_Pair, _Pair]:
    """Return the factors of the product and those of the checks, columns of the same rows."""
    of_product, of_checks = rows[:, : shape.columns], rows[:, shape.columns :]
    if shape.right is None:
        return (of_product, None), (of_checks, None)
    return (
        (of_product[:, : shape.left], of_product[:, shape.left :]),
        (of_checks[:, : shape.field.checks], of_checks[:, shape.field.checks :]),
    )


def _products(shape: Shape) -> tuple[RunningProduct, RunningProduct]:
    """Return the product and that of the checks, of which the diagonal counts."""
    checks = shape.field.checks
    return (
        RunningProduct(shape.field, shape.left, shape.right or shape.left),
        RunningProduct(shape.field, checks, checks),
    )


def _whole(shape: Shape, product: RunningProduct) -> Words:
    total = product.total()
    return shape.field.add(total, total.T) if shape.right is None else total


def masks_of(shape: Shape, seed: bytes, ctx: bytes, party: Role) -> Stream:
    """Return the stream of one party's a, b, α, β, row by row."""
    return shape.field.stream(stream_key(seed, ctx, _DEALER, party, _MASKS))


def product_of(shape: Shape, seed: bytes, ctx: bytes) -> Words:
    """Return M's shares of c and γ."""
    stream = shape.field.stream(stream_key(seed, ctx, _DEALER, _MATCHER, _CORRECTIONS))
    return stream.take(1, shape.cells + shape.field.checks).reshape(-1)


def _packed(shape: Shape, matrix: Words) -> Words:
    packed: Words = matrix[np.triu_indices(shape.left)] if shape.right is None else matrix.reshape(-1)
    return packed


def _unpacked(shape: Shape, words: Words) -> Words:
    if shape.right is not None:
        return words.reshape(shape.left, shape.right)
    matrix: Words = np.empty((shape.left, shape.left), dtype=words.dtype)
    upper = np.triu_indices(shape.left)
    matrix[upper] = words
    matrix.T[upper] = words
    return matrix


def _expect_length(name: str, body: bytes, expected: int) -> None:
    if len(body) != expected:
        raise ProtocolAborted(
            f"{name} of {len(body)} bytes, {expected} expected",
            code="bad-length",
            hint="run the same release on every node",
        )
