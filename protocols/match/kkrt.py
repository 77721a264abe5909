"""KKRT on both sides, without messages: what the receiver computes for a unit, and what the sender.

Kolesnikov, Kumaresan, Rosulek, Trieu, "Efficient Batched Oblivious PRF with Applications to Private Set
Intersection", CCS 2016. A unit is one segment of one bucket's cuckoo table. For each of its rows the receiver
gets the OPRF's value of the one item that sits there; the sender can compute it for any item. SPEC.md, 5.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from protocols.errors import ProtocolAborted
from protocols.match.base_ot import KEY_BYTES, Keys
from protocols.match.cuckoo import HASHES, place
from protocols.match.hashing import PLANES, SPAN, Blocks, Joint, Permutation, Stream, leading, room
from protocols.match.shape import COLUMNS, PLANE_COLUMNS, Shape
from protocols.match.transpose import Words, to_columns, to_rows
from protocols.party import Rand

_PREFIX: Final = 8
_MOST_ALIKE: Final = 64
"""Most masks of a unit that begin alike: of random ones not even three do."""
_ALL: Final = np.uint64((1 << 64) - 1)


@dataclass(frozen=True, slots=True)
class Masks:
    """Masks in ascending order: their first 8 bytes as words, and the words that begin with the rest."""

    prefixes: Words
    rests: Words

    @classmethod
    def of(cls, body: bytes, size: int) -> Self:
        """Read a message of masks of `size` bytes: all prefixes, then all rests."""
        count = len(body) // size
        rests = np.zeros(count, dtype="<u8")
        if size > _PREFIX:
            part = leading(rests, size - _PREFIX)
            part[:] = np.frombuffer(body, dtype=part.dtype, offset=count * _PREFIX)
        return cls(np.frombuffer(body, dtype="<u8", count=count), rests)

    @classmethod
    def joined(cls, pieces: Sequence[Self]) -> Self:
        """Return all of them, in their order."""
        return cls(
            np.concatenate([each.prefixes for each in pieces]),
            np.concatenate([each.rests for each in pieces]),
        )

    def body(self, start: int, stop: int, size: int) -> bytes:
        """Return the message of some of them."""
        prefixes = self.prefixes[start:stop].tobytes()
        if size == _PREFIX:
            return prefixes
        return prefixes + leading(self.rests[start:stop], size - _PREFIX).tobytes()

    def order(self) -> npt.NDArray[np.int64]:
        """Return the order by prefix, then rest: it says nothing about the order they were made in."""
        count = len(self.prefixes)
        # The index takes the lowest bits of a copy: to sort words is several times faster than an argsort.
        low = np.uint64((1 << max(count - 1, 1).bit_length()) - 1)
        packed = self.prefixes & ~low
        packed |= np.arange(count, dtype=np.uint64)
        packed.sort()
        order = (packed & low).astype(np.int64)
        packed &= ~low
        if bool((packed[1:] == packed[:-1]).any()):
            return np.lexsort((self.rests, self.prefixes))
        return order

    def sorted(self) -> "Masks":
        """Return them in ascending order."""
        order = self.order()
        return Masks(self.prefixes[order], self.rests[order])


class Bucketed:
    """A list under its joint hashes, bucket by bucket: 16 bytes and an index of 4 for each item."""

    def __init__(self, keys: npt.NDArray[np.bytes_], joint: Joint, buckets: int, most: int) -> None:
        """Hash every key once, and sort by bucket.

        Raises:
            InputError: `key-too-long`.
            ProtocolAborted: `bucket-overflow`, more than `most` items in one bucket.
        """
        self._hashes = joint.hashes(keys)
        found = joint.buckets(self._hashes, buckets)
        sizes = np.bincount(found, minlength=buckets)
        if sizes.max() > most:
            raise ProtocolAborted(
                f"a bucket would have more than {most} items",
                code="bucket-overflow",
                hint="start another attempt, which draws other hashes; if that fails, a list repeats keys",
            )
        self._order = np.argsort(found, kind="stable").astype(np.uint32)
        self._ends = np.concatenate(([0], np.cumsum(sizes)))

    def bucket(self, number: int) -> tuple[npt.NDArray[np.uint32], Blocks]:
        """Return which items of the list are in a bucket, and their hashes."""
        items = self._order[self._ends[number] : self._ends[number + 1]]
        # One item of 16 bytes is taken several times faster than a row of two words.
        blocks = self._hashes.view(np.complex128)[:, 0].take(items)
        return items, blocks.view("<u8").reshape(-1, 2)


@dataclass(slots=True)
class _Chain:
    """h ← π_j(a_j ⊕ h) ⊕ a_j ⊕ h over the blocks a_0 to a_3 of each row, from h = row number. SPEC.md, 2."""

    permutations: tuple[Permutation, ...]
    state: Words
    image: Words

    @classmethod
    def of(cls, permutations: tuple[Permutation, ...], count: int) -> Self:
        return cls(permutations, room(count), room(count))

    def begin(self, numbers: npt.NDArray[np.int64], first: int) -> None:
        """Start from the numbers of rows within a unit, and that unit's first row in the whole comparison."""
        words = self.state[: 2 * len(numbers)]
        np.add(numbers.view(np.uint64), np.uint64(first), out=words[0::2])
        words[1::2] = 0

    def absorb(self, plane: int, blocks: Words) -> None:
        """Take block `plane` of every row."""
        words = self.state[: len(blocks)]
        words ^= blocks
        self.permutations[plane].apply(words, self.image)
        words ^= self.image[: len(blocks)]


@dataclass(frozen=True, slots=True)
class Awaited:
    """What the receiver keeps of a unit until the sender's masks come: its own masks, and whose they are."""

    masks: Masks
    items: npt.NDArray[np.uint32]

    def found(self, masks: Masks) -> npt.NDArray[np.uint32]:
        """Return which items of the list have a mask among `masks`.

        Raises:
            ProtocolAborted: `not-ascending`.
        """
        theirs, rests = masks.prefixes, masks.rests
        if bool((theirs[1:] < theirs[:-1]).any()):
            raise ProtocolAborted(
                "masks are not in ascending order",
                code="not-ascending",
                hint="the sender runs another version",
            )
        order = self.masks.order()  # ascending look-ups stay in the cache
        prefixes, own_rests = self.masks.prefixes[order], self.masks.rests[order]
        at = np.searchsorted(theirs, prefixes)
        hits = np.zeros(len(order), dtype=np.bool_)
        left = np.arange(len(order))
        for _ in range(_MOST_ALIKE + 1):
            left = left[at[left] < len(theirs)]
            # Whoever meets its prefix looks at the rest, and then at the next one with that prefix.
            left = left[theirs[at[left]] == prefixes[left]]
            if not len(left):
                return self.items[order[hits]]
            hits[left] |= rests[at[left]] == own_rests[left]
            at[left] += 1
        raise ProtocolAborted(
            f"more than {_MOST_ALIKE} masks begin alike, which random ones do not",
            code="not-ascending",
            hint="ask the sender's department; its software may be broken",
        )


class ReceiverUnits:
    """The receiver's side: it holds both keys of every column's pair and learns one value for each row."""

    def __init__(
        self,
        shape: Shape,
        joint: Joint,
        keys: npt.NDArray[np.bytes_],
        marks: npt.NDArray[np.uint8],
        rand: Rand,
    ) -> None:
        """Hash the list.

        Args:
            shape: the public numbers.
            joint: the keys that both sides know.
            keys: n distinct keys.
            marks: n, the mark of each.
            rand: draws the key of the dummies.

        Raises:
            InputError: `key-too-long`.
            ProtocolAborted: `bucket-overflow`.
        """
        self._shape, self._joint, self._marks = shape, joint, marks
        self._list = Bucketed(keys, joint, shape.buckets, shape.receiver_most)
        self._streams: list[list[Stream]] = []
        self._dummies = Stream(rand(KEY_BYTES))
        self._entries = room(HASHES * shape.segment)
        self._items = np.empty(0, dtype=np.uint32)
        self._slots = np.empty((HASHES, 0), dtype=np.int32)
        self._matrix = np.empty((COLUMNS, shape.words), dtype="<u8")
        # Blocks of codes, and both streams: each is a plane of a unit.
        self._codes = room(shape.segment)
        self._drawn = [room(shape.segment) for _ in range(2)]
        self._rows = np.empty((shape.segment, 2), dtype="<u8")
        self._spare = np.empty(PLANE_COLUMNS // 4 * shape.words, dtype="<u8")
        self._chain = _Chain.of(joint.rows, shape.segment)

    def hold(self, pairs: Keys) -> None:
        """Take the keys of the base transfers, 512 x 2 x 16 bytes."""
        self._streams = [[Stream(key.tobytes()) for key in pairs[:, side]] for side in range(2)]

    def _place(self, bucket: int) -> None:
        """Fill a bucket's table: items where the cuckoo puts them, and random blocks everywhere else."""
        shape = self._shape
        self._items, hashes = self._list.bucket(bucket)
        self._slots = place(self._joint.positions(hashes, shape.segment), shape.segment)
        marked = self._joint.marked(hashes, self._marks[self._items])
        _draw((self._dummies,), self._entries)
        table = self._entries[:-2].reshape(-1, 2)
        seats = self._slots.reshape(-1)
        taken = np.flatnonzero(seats >= 0)
        table[taken] = marked[seats[taken]]

    def messages(self, unit: int, keep: Callable[[Awaited], None]) -> Iterator[bytes]:
        """Yield the matrix of a unit as `matrix_cut` says; hand over what is to be kept before the last.

        Units come in order.

        Raises:
            ProtocolAborted: `cuckoo-full`.
        """
        shape, (bucket, hashed) = self._shape, divmod(unit, HASHES)
        if hashed == 0:
            self._place(bucket)
        size = 2 * shape.segment
        entries = self._entries[hashed * size : (hashed + 1) * size]
        self._chain.begin(np.arange(shape.segment), unit * shape.segment)
        ends = deque(accumulate(shape.matrix_cut, initial=0))
        for plane in range(PLANES):
            self._joint.codes[hashed][plane].apply(entries, self._codes)
            columns = self._matrix[_columns(plane)]
            to_columns(self._codes[:size].reshape(-1, 2), columns, self._spare)
            for streams, drawn in zip(self._streams, self._drawn, strict=True):
                _draw(streams[_columns(plane)], drawn)
            first, second = (drawn[:size].reshape(PLANE_COLUMNS, -1) for drawn in self._drawn)
            columns ^= first
            columns ^= second
            to_rows(first, self._rows, self._spare)
            self._chain.absorb(plane, self._rows.reshape(-1))
            if plane == PLANES - 1:
                seats = self._slots[hashed]
                taken = np.flatnonzero(seats >= 0)
                masks = _masks(self._chain.state[:size].reshape(-1, 2)[taken], shape)
                keep(Awaited(masks, self._items[seats[taken]]))
            while len(ends) > 1 and ends[1] <= _columns(plane).stop:
                yield self._matrix[ends.popleft() : ends[0]].tobytes()


class SenderUnits:
    """The sender's side: of every column's pair it holds one key, chosen by a bit that nobody else knows."""

    def __init__(
        self,
        shape: Shape,
        joint: Joint,
        keys: npt.NDArray[np.bytes_],
        marks: npt.NDArray[np.uint8],
        rand: Rand,
    ) -> None:
        """Hash the list.

        Args:
            shape: the public numbers.
            joint: the keys that both sides know.
            keys: n distinct keys.
            marks: n x values.
            rand: draws the key of the masks that stand for nobody.

        Raises:
            InputError: `key-too-long`.
            ProtocolAborted: `bucket-overflow`.
        """
        self._shape, self._joint, self._marks = shape, joint, marks
        self._list = Bucketed(keys, joint, shape.buckets, shape.sender_most)
        self._nobody = Stream(rand(KEY_BYTES))
        self._streams: list[Stream] = []
        self._items = np.empty(0, dtype=np.uint32)
        self._hashes = np.empty((0, 2), dtype=np.uint64)
        self._positions = np.empty((HASHES, 0), dtype=np.int64)
        self._matrix = np.empty((COLUMNS, shape.words), dtype="<u8")
        self._filled = 0
        self._drawn = room(shape.segment)
        self._spare = np.empty(PLANE_COLUMNS // 4 * shape.words, dtype="<u8")
        self._rows = np.empty((PLANES, shape.segment, 2), dtype="<u8")
        self._code, self._taken = room(SPAN), np.empty(SPAN, dtype=np.complex128)
        self._chain = _Chain.of(joint.rows, SPAN)

    def choose(self, choices: npt.NDArray[np.bool_], chosen: Keys) -> None:
        """Take the choice bits of the base transfers and the 512 x 16 bytes that they chose."""
        self._streams = [Stream(key.tobytes()) for key in chosen]
        self._selected = np.where(choices, _ALL, np.uint64(0)).reshape(-1, 1)
        secret = np.packbits(choices, bitorder="little").view("<u8").reshape(PLANES, 2)
        self._secret = np.tile(secret, SPAN)

    def take(self, body: bytes) -> bool:
        """Take a message of the matrix, of the length that `matrix_cut` says; return whether it ends a unit.

        They come in order.
        """
        received = np.frombuffer(body, dtype="<u8").reshape(-1, self._shape.words)
        start, stop = self._filled, self._filled + len(received)
        self._matrix[start:stop] = received
        for plane in range(start // PLANE_COLUMNS, stop // PLANE_COLUMNS):
            columns = self._matrix[_columns(plane)]
            # For every column alike, whatever its bit.
            columns &= self._selected[_columns(plane)]
            _draw(self._streams[_columns(plane)], self._drawn)
            columns ^= self._drawn[:-2].reshape(PLANE_COLUMNS, -1)
            to_rows(columns, self._rows[plane], self._spare)
        self._filled = stop % COLUMNS
        return not self._filled

    def masks(self, unit: int) -> Masks:
        """Return the masks of a unit whose columns are all in, ascending, filled up to the public number."""
        shape, (bucket, hashed) = self._shape, divmod(unit, HASHES)
        if hashed == 0:
            self._items, self._hashes = self._list.bucket(bucket)
            self._positions = self._joint.positions(self._hashes, shape.segment)
        prefixes, rests = np.empty((2, shape.masks), dtype=np.uint64)
        filled = 0
        marks, first = self._marks[self._items], unit * shape.segment
        for start in range(0, len(self._items), SPAN):
            span = slice(start, start + SPAN)
            rows = self._positions[hashed, span]
            for value in range(shape.values):
                entries = self._joint.marked(self._hashes[span], marks[span, value])
                made = _masks(self._evaluated(entries, hashed, rows, first), shape)
                prefixes[filled : filled + len(rows)] = made.prefixes
                rests[filled : filled + len(rows)] = made.rests
                filled += len(rows)
        if filled < shape.masks:
            fill = room(shape.masks - filled)
            _draw((self._nobody,), fill)
            made = _masks(fill[:-2].reshape(-1, 2), shape)
            prefixes[filled:], rests[filled:] = made.prefixes, made.rests
        return Masks(prefixes, rests).sorted()

    def _evaluated(
        self, entries: Blocks, hashed: int, rows: npt.NDArray[np.int64], first: int
    ) -> npt.NDArray[np.uint64]:
        """Return the OPRF's value of each entry in its row: the row hash of q ⊕ (code ∧ s)."""
        size = 2 * len(entries)
        self._chain.begin(rows, first)
        code, taken = self._code[:size], self._taken[: len(entries)]
        for plane in range(PLANES):
            self._joint.codes[hashed][plane].apply(entries, self._code)
            code &= self._secret[plane, :size]
            np.take(self._rows[plane].view(np.complex128)[:, 0], rows, out=taken, mode="clip")
            code ^= taken.view("<u8")
            self._chain.absorb(plane, code)
        return self._chain.state[:size].reshape(-1, 2)


def _draw(streams: Sequence[Stream], out: Words) -> None:
    """Fill `out`, but for the room behind it, with the next part of each stream in turn."""
    to = out.data.cast("B")
    size = 8 * (len(out) - 2) // len(streams)
    zeros = memoryview(bytes(size))
    for index, stream in enumerate(streams):
        stream.fill(zeros, to[index * size :])


def _columns(plane: int) -> slice:
    """Return which of the 512 columns a plane has."""
    return slice(plane * PLANE_COLUMNS, (plane + 1) * PLANE_COLUMNS)


def _masks(blocks: npt.NDArray[np.uint64], shape: Shape) -> Masks:
    """Return the first bytes of each block, as many as a mask has."""
    rest = np.uint64((1 << 8 * (shape.mask_bytes - 8)) - 1)
    return Masks(blocks[:, 0].copy(), blocks[:, 1] & rest)
