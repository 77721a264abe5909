"""Words modulo a Mersenne prime: shares of whole numbers, exact sums and exact matrix products.

A word is an unsigned integer below the prime; a whole number with a sign is the residue of least magnitude.
Words stand in numpy arrays of 8 bytes (`WIDE`) or 4 (`NARROW`), little-endian on the wire. SPEC.md,
section 3.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from protocols.errors import ProtocolAborted
from protocols.sums.masks import Masks

Words: TypeAlias = npt.NDArray[np.unsignedinteger[Any]]
"""Residues below the prime, of dtype `Field.dtype`."""

_Uint64: TypeAlias = npt.NDArray[np.uint64]

Body: TypeAlias = bytes
"""What goes on the wire. (Within `Field`, `bytes` is the width of a word.)"""

_EXACT_BITS: Final = 53
"""Whole numbers up to 2^53 are exact in float64, in whatever order BLAS adds them."""

_FOLD_BITS: Final = 62
"""Sums of limb products stay below 2^62 between two foldings, so an int64 holds them."""

_ONE_THREAD: Final = 1 << 18
"""Multiplications up to which OpenBLAS stays in the calling thread: threads cost more than they bring."""

_TILE: Final = 32
"""Limb columns of one call of BLAS."""

_COLUMNS: Final = 256
"""Columns of one step of `Field.dots`: a sum of 3·256 products below 2^42 stays below 2^53."""

_CACHED: Final = 1 << 17
"""Limbs of one step of a product: 1 MiB of float64 stays in the cache of one core."""

_FEWEST_ROWS: Final = 64
"""Rows of one step of a product at least: of wide matrices, adding up products costs more than the cache."""

_SPAN: Final = 1 << 15
"""Words of one step of what goes word by word."""


class Modulus(Protocol):
    """What words are, as far as lists are masked with them: a `Field`, or the integers modulo 2^64."""

    @property
    def bytes(self) -> int:
        """Bytes of a word."""
        ...

    @property
    def dtype(self) -> str:
        """The numpy dtype of words."""
        ...

    def encode(self, values: npt.NDArray[np.int64]) -> Words:
        """Return the words of whole numbers, same shape."""
        ...

    def subtract(self, one: Words, other: Words) -> Words:
        """Return `one` - `other`, arrays of one shape."""
        ...

    def to_bytes(self, words: Words) -> Body:
        """Return words row by row, little-endian."""
        ...

    def read(self, body: Body, width: int) -> Words:
        """Return a received body as rows × `width` words.

        Raises:
            ProtocolAborted: it is none.
        """
        ...

    def stream(self, key: Body) -> "Stream":
        """Begin the stream of uniform words of this AES-256 key."""
        ...


@dataclass(frozen=True, slots=True)
class Field:
    """The integers modulo a Mersenne prime, `WIDE` or `NARROW`.

    Args:
        prime: 2^61 - 1 or 2^31 - 1: multiplying by a power of two is a rotation of bits.
        bytes: of a word, on the wire and in memory.
        checks: independent checks of a dealer's triple, so that a wrong one passes at most once in 2^59.
        limb_bits: a word is cut into pieces of so many bits, which float64 multiplies exactly.
    """

    prime: int
    bytes: Literal[4, 8]
    checks: int
    limb_bits: int

    @property
    def dtype(self) -> str:
        """The numpy dtype of words."""
        return f"<u{self.bytes}"

    @property
    def reach(self) -> int:
        """The largest magnitude that `decode` returns: (prime - 1) / 2."""
        return self.prime // 2

    @property
    def limbs(self) -> int:
        """The number of pieces a word is cut into."""
        return -(-self.prime.bit_length() // self.limb_bits)

    def encode(self, values: npt.NDArray[np.int64]) -> Words:
        """Return the residues of whole numbers, same shape.

        Raises:
            ProtocolAborted: a number is beyond ±`reach`, so it would come back as another one.
        """
        if values.size and (values.max() > self.reach or values.min() < -self.reach):
            raise ProtocolAborted(
                f"a value does not fit words modulo 2^{self.prime.bit_length()} - 1, ±{self.reach} expected",
                code="guard-overflow",
                hint="declare smaller bounds, fewer decimals or fewer rows",
            )
        residues: Words = np.empty(values.shape, dtype=self.dtype)
        for span in _spans(values):
            some = values[span]
            # The prime where the sign bit stands, else 0.
            residues[span] = some + ((some >> 63) & self.prime)
        return residues

    def decode(self, words: Words) -> npt.NDArray[np.int64]:
        """Return the whole numbers of least magnitude with these residues, same shape."""
        values = np.empty(words.shape, dtype=np.int64)
        for span in _spans(words):
            some = words[span].astype(np.int64)
            np.subtract(some, ((self.reach - some) >> 63) & self.prime, out=values[span])
        return values

    def add(self, one: Words, other: Words, out: Words | None = None) -> Words:
        """Return `one` + `other`, arrays of one shape, in `out` where given, which may be one of them."""
        if out is None:
            out = np.empty(one.shape, dtype=self.dtype)
        prime = out.dtype.type(self.prime)
        for span in _spans(out):
            total = one[span] + other[span]
            # Of a sum and the sum less the prime, one is a residue and the other, or its wrap, is larger.
            np.minimum(total, total - prime, out=out[span])
        return out

    def subtract(self, one: Words, other: Words, out: Words | None = None) -> Words:
        """Return `one` - `other`, arrays of one shape, in `out` where given, which may be one of them."""
        if out is None:
            out = np.empty(one.shape, dtype=self.dtype)
        prime = out.dtype.type(self.prime)
        for span in _spans(out):
            difference = one[span] - other[span]
            np.minimum(difference, difference + prime, out=out[span])
        return out

    def half(self, words: Words) -> Words:
        """Return the words that added to themselves give `words`."""
        # An odd word is a residue of an even number, itself and the prime: 2^61 at most, or 2^31.
        odd: Words = (words & words.dtype.type(1)) * words.dtype.type(self.prime)
        halves: Words = (words + odd) >> words.dtype.type(1)
        return halves

    def to_bytes(self, words: Words) -> Body:
        """Return words row by row, little-endian."""
        return words.astype(self.dtype, copy=False).tobytes()

    def read(self, body: Body, width: int) -> Words:
        """Return a received body as rows × `width` words, read-only and without a copy.

        Raises:
            ProtocolAborted: the body is no whole number of rows, or a word is not below the prime.
        """
        words = words_of(body, width, self.dtype)
        if words.size and words.max() >= self.prime:
            raise ProtocolAborted(
                f"a word is not below 2^{self.prime.bit_length()} - 1",
                code="bad-word",
                hint="run the same release on every node",
            )
        return words

    def stream(self, key: Body) -> "Stream":
        """Begin the stream of uniform words of this AES-256 key."""
        return Stream(key, self.prime, self.bytes)

    def product(self, left: Words, right: Words) -> Words:
        """Return leftᵀ·right, exact: n × l words and n × r words give l × r."""
        running = RunningProduct(self, left.shape[1], right.shape[1])
        running.add(left, None if right is left else right)
        return running.total()

    def sums(self, words: Words, starts: npt.NDArray[np.integer[Any]]) -> Words:
        """Return the column sums of each group of rows: n × w words give G × w.

        Args:
            words: rows in the order of groups, fewer than 2^32.
            starts: the first row of each group, ascending from 0; a group ends where the next begins, and the
                last with the rows. Two equal starts mean an empty group, whose sums are 0.
        """
        starts = np.asarray(starts, dtype=np.int64)
        rows, width = words.shape
        ends = np.append(starts[1:], rows)
        if not len(starts) or starts[0] or (ends < starts).any():
            raise ValueError(f"starts of groups must ascend from 0 to {rows} at most")
        low = np.zeros((len(starts), width), dtype=np.uint64)
        high = np.zeros_like(low)
        for span in _spans(words):
            at, block = span.start, words[span]
            first = int(np.searchsorted(ends, at, side="right"))
            last = int(np.searchsorted(starts, at + len(block), side="left"))
            begins = np.maximum(starts[first:last] - at, 0)
            # `reduceat` takes an empty group for its next row, so empty ones stay out.
            filled = np.flatnonzero(np.append(begins[1:], len(block)) > begins)
            groups, begins = first + filled, begins[filled]
            low[groups] += np.add.reduceat(block & 0xFFFFFFFF, begins, axis=0, dtype=np.uint64)
            if self.bytes == 8:
                high[groups] += np.add.reduceat(block >> 32, begins, axis=0, dtype=np.uint64)
        return _narrowed(self, _added(self, _reduced(self, low), _rotated(self, _reduced(self, high), 32)))

    def dots(self, words: Words, weights: Words) -> Words:
        """Return words·weightsᵀ, exact, of few weights: k × l words and c × l words give k × c."""
        total = np.zeros((len(weights), len(words)), dtype=np.uint64)
        for column in range(0, words.shape[1], _COLUMNS):
            some = weights[:, column : column + _COLUMNS].astype(np.uint64)
            # The place of a limb goes into its weight: Σ_s a_s·2^{bs}·u = Σ_s a_s·(2^{bs}·u mod p).
            scaled = np.hstack([_rotated(self, some, self.limb_bits * limb) for limb in range(self.limbs)])
            factors = np.vstack([_limb(self, _narrowed(self, scaled), limb) for limb in range(self.limbs)])
            factors = factors.astype(np.float64)
            step = max(1, _ONE_THREAD // factors.size)
            for at in range(0, len(words), step):
                piece = words[at : at + step, column : column + _COLUMNS]
                parts = factors @ _split(self, piece, scaled.shape[1])
                here = total[:, at : at + step]
                for limb, part in enumerate(parts.reshape(self.limbs, len(weights), -1)):
                    residues = _reduced(self, part.astype(np.uint64))
                    here[...] = _added(self, here, _rotated(self, residues, self.limb_bits * limb))
        return _narrowed(self, total.T)


def words_of(body: bytes, width: int, dtype: str) -> Words:
    """Return a body as rows × `width` words of that dtype, read-only and without a copy.

    Raises:
        ProtocolAborted: `bad-length`, it is no whole number of rows.
    """
    row = width * np.dtype(dtype).itemsize
    if len(body) % row:
        raise ProtocolAborted(
            f"body of {len(body)} bytes, rows of {row} bytes expected",
            code="bad-length",
            hint="run the same release on every node",
        )
    words: Words = np.frombuffer(body, dtype=dtype).reshape(-1, width)
    return words


def _spans(array: npt.NDArray[Any]) -> Iterator[slice]:
    """Cut the rows of an array into pieces that stay in the cache of one core."""
    step = max(1, _SPAN // max(1, math.prod(array.shape[1:])))
    return (slice(at, at + step) for at in range(0, len(array), step))


def _split(field: Field, words: Words, rows: int) -> npt.NDArray[np.float64]:
    """Return limbs: k × l words give rows × k, the lowest limb of every column first, then zeros."""
    columns = np.ascontiguousarray(words.T)
    used = field.limbs * len(columns)
    parts = np.empty((rows, len(words)))
    for limb, part in enumerate(parts[:used].reshape(field.limbs, *columns.shape)):
        part[...] = _limb(field, columns, limb)
    parts[used:] = 0
    return parts


def _limb(field: Field, words: Words, limb: int) -> npt.NDArray[np.signedinteger[Any]]:
    as_word = words.dtype.type
    piece: Words = np.right_shift(words, as_word(limb * field.limb_bits)) if limb else words
    if limb + 1 < field.limbs:
        piece = np.bitwise_and(piece, as_word((1 << field.limb_bits) - 1))
    # As signed numbers, which all limbs fit: processors convert those faster.
    signed: npt.NDArray[np.signedinteger[Any]] = piece.view(f"<i{field.bytes}")
    return signed


# What follows works on uint64, for both primes.


def _reduced(field: Field, words: _Uint64) -> _Uint64:
    """Return residues of words below 2^64."""
    bits = field.prime.bit_length()
    while words.size and words.max() > field.prime:
        words = (words & np.uint64(field.prime)) + (words >> np.uint64(bits))
    # Only the prime itself is left to be moved: by itself to 0, any residue to beyond itself.
    least: _Uint64 = np.minimum(words, words - np.uint64(field.prime))
    return least


def _rotated(field: Field, words: _Uint64, by: int) -> _Uint64:
    """Return residues of 2^by · words, for residues."""
    bits = field.prime.bit_length()
    by %= bits
    if not by:
        return words
    return ((words << np.uint64(by)) & np.uint64(field.prime)) | (words >> np.uint64(bits - by))


def _added(field: Field, one: _Uint64, other: _Uint64) -> _Uint64:
    total: _Uint64 = one + other
    least: _Uint64 = np.minimum(total, total - np.uint64(field.prime))
    return least


def _narrowed(field: Field, words: _Uint64) -> Words:
    narrow: Words = words.astype(field.dtype, copy=False)
    return narrow


class Stream:
    """Uniform words of one key: AES-256-CTR, cut into words, those not below the modulus left out."""

    def __init__(self, key: bytes, modulus: int, word_bytes: Literal[4, 8]) -> None:
        """Begin the stream."""
        self._dtype = f"<u{word_bytes}"
        self._masks = Masks((key,), (), modulus, word_bytes)

    def take(self, rows: int, width: int) -> Words:
        """Return the next rows × width words, row by row. However a stream is cut, it is the same."""
        words: Words = np.zeros(rows * width, dtype=self._dtype)
        self._masks.add_to(words)
        return words.reshape(rows, width)


class RunningProduct:
    """The sum of XᵀY over blocks of rows, exact modulo the prime.

    Words are cut into limbs; sums of products of limbs are whole numbers below 2^53 in float64 within a step,
    and below 2^62 in int64 between two foldings. Beyond its inputs it holds 9·l·r words (4·l·r with `NARROW`)
    and about 4 MiB.
    """

    def __init__(self, field: Field, left: int, right: int) -> None:
        """Begin with l × r words that are 0."""
        self._field = field
        self._left, self._right = left, right
        one, other = _tiling(field.limbs * self._left), _tiling(field.limbs * self._right)
        self._tilings = one, other
        self._limbs = np.zeros((one[0], other[0], one[1], other[1]), dtype=np.int64)
        self._folded = np.zeros((self._left, self._right), dtype=np.uint64)
        self._rows = 0
        cached = _CACHED // (one[0] * one[1] + other[0] * other[1])
        exact = 1 << (_EXACT_BITS - 2 * field.limb_bits)
        self._step = min(exact, _ONE_THREAD // (one[1] * other[1]), max(_FEWEST_ROWS, cached))
        self._most = 1 << (_FOLD_BITS - 2 * field.limb_bits)

    def add(self, left: Words, right: Words | None = None) -> None:
        """Add the product of k × l and k × r words; without `right`, of `left` with itself."""
        for at in range(0, len(left), self._step):
            rows = slice(at, at + self._step)
            one = _tiles(self._field, left[rows], self._tilings[0])
            other = one if right is None else _tiles(self._field, right[rows], self._tilings[1])
            if self._rows + self._step > self._most:
                self._fold()
            self._rows += self._step
            self._limbs += (one[:, None] @ other.swapaxes(1, 2)[None]).astype(np.int64)

    def total(self) -> Words:
        """Return the product of all blocks so far."""
        self._fold()
        return _narrowed(self._field, self._folded)

    def _fold(self) -> None:
        field, bits = self._field, self._field.limb_bits
        one, other = (count * size for count, size in self._tilings)
        limbs = self._limbs.swapaxes(1, 2).reshape(one, other).astype(np.uint64)
        for i in range(field.limbs):
            for j in range(field.limbs):
                part = limbs[i * self._left : (i + 1) * self._left, j * self._right : (j + 1) * self._right]
                part = _rotated(field, _reduced(field, part), bits * (i + j))
                self._folded = _added(field, self._folded, part)
        self._limbs[...] = 0
        self._rows = 0


def _tiling(rows: int) -> tuple[int, int]:
    """Return how many tiles of how many rows hold so many."""
    count = -(-rows // _TILE)
    return count, -(-rows // count)


def _tiles(field: Field, words: Words, tiling: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Return the limbs of k × l words as tiles of limb columns: count × size × k, filled with 0."""
    count, size = tiling
    limbs = _split(field, words, count * size)
    return limbs.reshape(count, size, len(words))


WIDE: Final = Field(prime=(1 << 61) - 1, bytes=8, checks=1, limb_bits=21)
NARROW: Final = Field(prime=(1 << 31) - 1, bytes=4, checks=2, limb_bits=16)
