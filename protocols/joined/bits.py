"""Comparing and conjoining shared values bit by bit, 64 rows to a word, with triples of a dealer. SPEC.md, 7.

A bit is shared as the exclusive or of what the first holder (the matcher) and the second (the helper) have. A
value is shared modulo 2^B as a sum. AND takes a triple c = a AND b, shared in the same way, which a dealer
makes; the two holders check the dealer before a triple meets a bit of a row.

What the two do is written as generators: each yields bytes for the other and is sent what the other yielded
in the same place, which is as long. Nothing here knows messages or roles.
"""

import hashlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import log2
from typing import Final, Self, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from protocols.errors import ProtocolAborted
from protocols.party import MAX_BODY_BYTES, UNDER_WAY
from protocols.psi import group

WORD_BITS: Final = 64
WORD_BYTES: Final = 8

BUCKET: Final = 4
"""Words of triples in a bucket: one is used, the others vouch for it."""
OPENED: Final = 4
"""Words of triples that are opened."""
FEWEST: Final = 1 << 14
"""Buckets of a pool at least: 2^20 triples that are used. The bound on a dealer's luck rests on it."""

MOST_AND_WORDS: Final = 1 << 18
"""Words of ANDs of a batch at most, 2 MiB of each of a pool's vectors and bucket places."""
MOST_WORDS: Final = 1 << 15
"""Words of rows of a batch at most: 2^21 rows."""

_DOMAIN: Final = b"minshu/joined-bits/1"
_NONCE: Final = bytes(16)  # one key, one stream
# One exchange is at most what may be under way: the two send at the same time, and neither reads meanwhile.
_SPAN: Final = UNDER_WAY * MAX_BODY_BYTES // (2 * (BUCKET - 1) * WORD_BYTES)

Words = npt.NDArray[np.uint64]

_T = TypeVar("_T")
Exchange: TypeAlias = Generator[bytes, bytes, _T]
"""Yields what goes to the other holder, is sent what came from there, and returns its result."""


# -- circuit -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Circuit:
    """What is asked of a row: that every compared value is not negative, and every bit is set.

    Attributes:
        widths: B of each compared value, 1 to 62: it is within -2^(B-1) and 2^(B-1) - 1.
        bits: how many bits.
    """

    widths: tuple[int, ...]
    bits: int

    def __post_init__(self) -> None:
        if not self.outputs or not all(1 <= width <= 62 for width in self.widths):
            raise ValueError(f"widths {self.widths} and {self.bits} bits, expected one or more, of 1 to 62")

    @property
    def outputs(self) -> int:
        """How many bits are conjoined at the end."""
        return len(self.widths) + self.bits

    def levels(self) -> tuple[int, ...]:
        """Return how many ANDs of a row there are in each round."""
        found = []
        left = [width - 1 for width in self.widths]
        if any(left):
            found.append(sum(left))
        while max(left, default=0) > 1:
            found.append(sum(_combined(count) for count in left))
            left = [(count + 1) // 2 for count in left]
        bits = self.outputs
        while bits > 1:
            found.append(bits // 2)
            bits -= bits // 2
        return tuple(found)

    @property
    def ands(self) -> int:
        """How many ANDs of a row."""
        return sum(self.levels())


def _combined(count: int) -> int:
    """Return the ANDs that combine neighbours among `count` (g, p): the lowest pair needs no p."""
    pairs = count // 2
    return max(2 * pairs - 1, 0)


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows that go together, and the dealer's pool for them.

    Attributes:
        number: counted from 0.
        start: the first word of rows, each 64 rows.
        words: how many.
        buckets: of the pool.
    """

    number: int
    start: int
    words: int
    buckets: int

    @property
    def triples(self) -> int:
        """Words of triples that are dealt."""
        return BUCKET * self.buckets + OPENED

    @property
    def correction_bytes(self) -> int:
        """What the dealer sends the second holder."""
        return WORD_BYTES * self.triples


@dataclass(frozen=True)
class Plan:
    """What is evaluated on how many rows; all public.

    Attributes:
        circuit: of each row.
        rows: how many, 1 or more.
        ctx: 32 bytes, binds streams, challenges and digests to the attempt.
        fewest: buckets of a pool at least; fewer than `FEWEST` for tests alone.
    """

    circuit: Circuit
    rows: int
    ctx: bytes
    fewest: int = FEWEST

    @property
    def words(self) -> int:
        """Words of rows."""
        return -(-self.rows // WORD_BITS)

    @cached_property
    def batches(self) -> tuple[Batch, ...]:
        """All batches, in order."""
        ands = self.circuit.ands
        step = min(MOST_WORDS, max(1, MOST_AND_WORDS // max(ands, 1)))
        found = []
        for number, start in enumerate(range(0, self.words, step)):
            words = min(step, self.words - start)
            found.append(Batch(number, start, words, max(self.fewest, ands * words)))
        return tuple(found)

    def exchanges(self, batch: Batch) -> int:
        """Return how often the two exchange bytes for a batch."""
        # The coin, the opened words, the buckets span by span, the digest, and the rounds of ANDs.
        return 3 + -(-batch.buckets // _SPAN) + len(self.circuit.levels())


def luck(buckets: int) -> float:
    """Return log2 of the most likely way for a wrong word of a pool to pass the check. SPEC.md, 7.3."""
    total, used = BUCKET * buckets + OPENED, BUCKET

    def choices(n: int, k: int) -> float:
        # Exact products, as k or n - k is small wherever the maximum can be.
        k = min(k, n - k)
        return sum(log2((n - at) / (k - at)) for at in range(k))

    few = range(1, min(buckets, OPENED + 2) + 1)
    at_ends = {*few, *(buckets - each + 1 for each in few)}
    return max(choices(buckets, k) - choices(total, used * k) for k in at_ends)


# -- triples -------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Triples:
    """One holder's shares of words of triples, used in order, each once."""

    a: Words
    b: Words
    c: Words
    used: int = 0

    @classmethod
    def first(cls, plan: Plan, batch: Batch, seed: bytes) -> Self:
        """Return the first holder's: all of its seed's stream."""
        a, b, c = _expanded(plan, batch, seed, 3)
        return cls(a, b, c)

    @classmethod
    def second(cls, plan: Plan, batch: Batch, seed: bytes, corrections: bytes) -> Self:
        """Return the second holder's: c is what the dealer sent.

        Raises:
            ProtocolAborted: `bad-length`.
        """
        if len(corrections) != batch.correction_bytes:
            raise ProtocolAborted(
                f"corrections of {len(corrections)} bytes, expected {batch.correction_bytes}",
                code="bad-length",
            )
        a, b = _expanded(plan, batch, seed, 2)
        return cls(a, b, _read(corrections))

    def take(self, words: int) -> tuple[Words, Words, Words]:
        """Return the next words of a, b and c."""
        here = slice(self.used, self.used + words)
        if here.stop > len(self.a):
            raise ValueError("more triples are used than were dealt")
        self.used = here.stop
        return self.a[here], self.b[here], self.c[here]


def _expanded(plan: Plan, batch: Batch, seed: bytes, vectors: int) -> tuple[Words, ...]:
    """Return vectors of uniform words: a, b, and for the first holder c.

    HKDF-SHA256 and AES-256-CTR; seeds of the two holders differ, so the label needs no role.
    """
    info = _DOMAIN + plan.ctx + b"deal" + batch.number.to_bytes(4, "big")
    key = HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(seed)
    cipher = Cipher(algorithms.AES256(key), modes.CTR(_NONCE)).encryptor()
    zeros = bytes(batch.correction_bytes)
    return tuple(np.frombuffer(cipher.update(zeros), dtype="<u8") for _ in range(vectors))


def deal(plan: Plan, batch: Batch, first: bytes, second: bytes) -> Words:
    """Return the corrections of a pool, which go to the second holder. Run by the dealer.

    Args:
        plan: public.
        batch: whose pool.
        first: 32 bytes, the first holder's seed.
        second: 32 bytes, the second holder's.
    """
    a, b, c = _expanded(plan, batch, first, 3)
    a_second, b_second = _expanded(plan, batch, second, 2)
    product: Words = (a ^ a_second) & (b ^ b_second)
    product ^= c
    return product


def _challenge(plan: Plan, batch: Batch, first: bytes, second: bytes) -> bytes:
    return hashlib.sha256(
        _DOMAIN + plan.ctx + b"coin" + batch.number.to_bytes(4, "big") + first + second
    ).digest()


def checked(plan: Plan, batch: Batch, dealt: Triples, coin: bytes, *, first: bool) -> Exchange[Triples]:
    """Return the triples that are used, once the others vouch for them.

    Furukawa, Lindell, Nof, Weinstein, EUROCRYPT 2017, section 3, on words of 64 triples. SPEC.md, 7.3.

    Args:
        plan: public.
        batch: whose pool.
        dealt: the own shares. The second holder's are whole before its coin is sent.
        coin: 16 random bytes.
        first: whether this is the first holder.

    Raises:
        ProtocolAborted: `bad-triple`, at both holders.
    """
    other = yield coin
    challenge = _challenge(plan, batch, *((coin, other) if first else (other, coin)))
    a, b, c = _ordered(dealt, challenge)
    buckets = batch.buckets
    # (1) Some are opened and have to be right: else all could be wrong in one way.
    own = np.concatenate([each[BUCKET * buckets :] for each in (a, b, c)])
    opened = (own ^ _read((yield own.tobytes()))).reshape(3, OPENED)
    if bool(((opened[0] & opened[1]) != opened[2]).any()):
        raise _bad_triple()
    # (2) In every bucket, the first against each of the others: wrong in the same way, or right.
    a, b, c = (each[: BUCKET * buckets].reshape(BUCKET, buckets) for each in (a, b, c))
    differences = hashlib.sha256(_DOMAIN + plan.ctx + b"same" + batch.number.to_bytes(4, "big"))
    for start in range(0, buckets, _SPAN):
        here = slice(start, start + _SPAN)
        a_used, b_used, a_other, b_other = a[:1, here], b[:1, here], a[1:, here], b[1:, here]
        masked = np.stack([a_used ^ a_other, b_used ^ b_other])
        masked ^= _read((yield masked.tobytes())).reshape(masked.shape)
        rho, sigma = masked
        same = c[:1, here] ^ c[1:, here] ^ (rho & b_other) ^ (sigma & a_other)
        if first:
            same ^= rho & sigma
        differences.update(same.tobytes())
    if (yield differences.digest()) != differences.digest():
        raise _bad_triple()
    return Triples(a[0], b[0], c[0])


def _ordered(dealt: Triples, challenge: bytes) -> tuple[Words, Words, Words]:
    """Return the dealt words in the order that the challenge says."""
    stream = Cipher(algorithms.AES256(challenge), modes.CTR(_NONCE)).encryptor()
    order = group.permutation(len(dealt.a), lambda count: stream.update(bytes(count)))
    return dealt.a[order], dealt.b[order], dealt.c[order]


def _bad_triple() -> ProtocolAborted:
    return ProtocolAborted(
        "the dealer's triples are not what they have to be",
        code="bad-triple",
        hint="look into the dealer's node: version, journal; no value has met a triple",
    )


# -- evaluation ----------------------------------------------------------------------------------------------


def conjoined(
    plan: Plan,
    values: Sequence[Words],
    bits: Sequence[Words],
    triples: Triples,
    *,
    first: bool,
) -> Exchange[Words]:
    """Return the own share of one bit of each row: all values are not negative and all bits are set.

    Args:
        plan: public.
        values: of each compared value the own shares modulo 2^64, one word a row; rows a multiple of 64.
        bits: of each bit the own shares, packed as `packed` does.
        triples: of this batch, checked.
        first: whether this is the first holder.

    Returns:
        One bit a row, packed.
    """
    planes = [_planes(each, width) for each, width in zip(values, plan.circuit.widths, strict=True)]
    carries = yield from _carries([each[:-1] for each in planes], triples, first=first)
    signs = [each[-1] ^ carry for each, carry in zip(planes, carries, strict=True)]
    left = np.array([*((~sign if first else sign) for sign in signs), *bits], dtype=np.uint64)
    while len(left) > 1:
        half = len(left) // 2
        both = yield from _and(left[:half], left[half : 2 * half], triples, first=first)
        left = np.concatenate([both, left[2 * half :]])
    result: Words = left[0]
    return result


def _carries(planes: Sequence[Words], triples: Triples, *, first: bool) -> Exchange[list[Words]]:
    """Return shares of the carry out of each sum, whose summands are the two holders' own bits.

    A tree over (generate, propagate), Sklansky 1960: all sums together, level by level.

    Args:
        planes: of each sum, places x words: the own summand, the lowest bit first; perhaps no place.
        triples: of this batch.
        first: whether this is the first holder.
    """
    nothing = [np.zeros_like(each) for each in planes]
    mine, theirs = (planes, nothing) if first else (nothing, planes)
    spread = list(planes)
    made = yield from _ands(list(zip(mine, theirs, strict=True)), triples, first=first)
    while max((len(each) for each in made), default=0) > 1:
        pairs = []
        for g, p in zip(made, spread, strict=True):
            even = len(g) // 2 * 2
            pairs += [(p[1:even:2], g[0:even:2]), (p[3:even:2], p[2:even:2])]
        products = yield from _ands(pairs, triples, first=first)
        for place, (g, p) in enumerate(zip(made, spread, strict=True)):
            even = len(g) // 2 * 2
            carried, through = products[2 * place], products[2 * place + 1]
            made[place] = np.concatenate([g[1:even:2] ^ carried, g[even:]])
            # The lowest place's p is never asked for: no carry comes in from below.
            spread[place] = np.concatenate([p[:1], through, p[even:]]) if even else p
    return [each[0] if len(each) else np.zeros(each.shape[1], dtype=np.uint64) for each in made]


def _ands(pairs: Sequence[tuple[Words, Words]], triples: Triples, *, first: bool) -> Exchange[list[Words]]:
    """Return shares of the ANDs of several pairs of bits, in one round; of no bits, in none."""
    sizes = [len(one) for one, _ in pairs]
    if not sum(sizes):
        return [np.zeros_like(one) for one, _ in pairs]
    one, other = (np.concatenate(side) for side in zip(*pairs, strict=True))
    product = yield from _and(one, other, triples, first=first)
    return np.split(product, np.cumsum(sizes)[:-1])


def _and(one: Words, other: Words, triples: Triples, *, first: bool) -> Exchange[Words]:
    """Return shares of one AND other. Beaver, CRYPTO 1991."""
    a, b, c = (each.reshape(one.shape) for each in triples.take(one.size))
    masked = np.stack([one ^ a, other ^ b])
    masked ^= _read((yield masked.tobytes())).reshape(masked.shape)
    d, e = masked
    product: Words = c ^ (d & b) ^ (e & a)
    if first:
        product ^= d & e
    return product


def packed(bits: npt.NDArray[np.bool_]) -> Words:
    """Return 64 bits to a word, the first lowest; as many as make whole words."""
    words: Words = np.packbits(bits, bitorder="little").view("<u8")
    return words


def unpacked(words: Words) -> npt.NDArray[np.bool_]:
    """Return the bits of words: the inverse of `packed`."""
    return np.unpackbits(words.view(np.uint8), bitorder="little").astype(np.bool_)


def _planes(values: Words, width: int) -> Words:
    """Return the lowest `width` bits of each value, the lowest first: width x words."""
    one = np.uint64(1)
    return np.array([packed((values >> np.uint64(at) & one).astype(np.bool_)) for at in range(width)])


def _read(body: bytes) -> Words:
    return np.frombuffer(body, dtype="<u8")
