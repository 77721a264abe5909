"""Two-key tags: one anonymous name per person that no single organisation can compute. SPEC.md, section 2.

A holder sends `H(x)^r` around through the key-holders and back, and is left with `V = H(x)^(k1 k2)`, whose
hash is the tag. Holders of the same person get the same tag; without every key-holder's scalar nobody can
compute the tag of a guessed identifier.

    holder S        first K1          second K2         holder S
    H(x)^r    -->   ^k1         -->   ^k2         -->   ^(1/r)  =  V,   tag = SHA-256("minshu/tag/1" ‖ V)[:16]

A list that belongs to a key-holder skips that key-holder on the way and is raised to k/r when it is back.
"""

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from protocols.errors import ProtocolAborted
from protocols.ids import Role
from protocols.party import UNDER_WAY, Incoming, Outgoing, Rand
from protocols.psi import group, spread
from protocols.psi.group import POINT_BYTES, Points
from protocols.psi.runs import Rows, Runs, Shuffle, taken, words
from protocols.resources import Resources, in_memory

CHUNK_POINTS: Final = 8192
"""Points per message; every message of a stream but the last has exactly so many."""

TAG_BYTES: Final = 16
MAX_LISTS: Final = 63
"""A set of lists fits a 64-bit word, and a list's index one byte of the round number."""

_TAG_DOMAIN: Final = b"minshu/tag/1"


def is_tagging(number: int) -> bool:
    """Whether a round number belongs to tagging: hop 1, 2 or 3 in bits 8 and up, the list's index below."""
    return 1 <= number >> 8 <= 3


def tags(values: Points) -> npt.NDArray[np.bytes_]:
    """Return the tag of each V: n items of 16 bytes.

    The dtype is S16: fit to sort and compare, but numpy cuts trailing zeros of an item taken out.
    """
    sha256, raw = hashlib.sha256, values.tobytes()
    joined = b"".join(
        sha256(_TAG_DOMAIN + raw[at : at + POINT_BYTES]).digest()[:TAG_BYTES]
        for at in range(0, len(raw), POINT_BYTES)
    )
    return np.frombuffer(joined, dtype=f"S{TAG_BYTES}")


@dataclass(frozen=True, slots=True)
class Plan:
    """Who tags what in one attempt; all public.

    Args:
        owners: who brings a list; a list's index is its owner's place.
        key_holders: who holds a tag key, in the order of the path; owners of different organisations.
        counts: distinct keys of each list, as admitted.
        ctx: 32 bytes, binds H to all admissions.
    """

    owners: tuple[Role, ...]
    key_holders: tuple[Role, ...]
    counts: tuple[int, ...]
    ctx: bytes

    def route(self, index: int) -> tuple[Role, ...]:
        """Return whom list `index` passes: its owner, the other key-holders in order, its owner again."""
        owner = self.owners[index]
        return (owner, *(role for role in self.key_holders if role != owner), owner)

    def passing(self, role: Role) -> tuple[int, ...]:
        """Return the lists that `role` raises as a key-holder: all but its own, or none."""
        return tuple(i for i, owner in enumerate(self.owners) if role in self.key_holders and owner != role)


@dataclass(frozen=True, slots=True)
class Tagged:
    """A list under its tags, sorted by tag: position says nothing about the order of the input.

    `order[i]` is the index in the input of the key at position i.
    """

    tags: npt.NDArray[np.bytes_]  # n, S16, ascending
    values: Points  # n x 32: V, needed for locks
    order: npt.NDArray[np.uint32]  # n

    def __len__(self) -> int:
        """How many keys there are."""
        return len(self.order)


@dataclass(frozen=True, slots=True)
class SpilledTags:
    """A list under its tags that lies in scratch: `rows` have `tag`, `value` (V) and, after them, an entry.

    They ascend by tag. What an entry is, says the list that was tagged.
    """

    rows: Rows

    def __len__(self) -> int:
        """How many keys there are."""
        return len(self.rows)


class _Own(Protocol):
    """The own list on its way: drawn in random order, taken back in that order."""

    def draw(self, start: int, stop: int) -> list[bytes]:
        """Return the keys at these places of the random order; each place once, in order."""
        ...

    def put(self, start: int, values: Points) -> None:
        """Take V of the keys from a place on; each once, in order."""
        ...

    def finish(self) -> Tagged | SpilledTags:
        """Return the list under its tags.

        Raises:
            ProtocolAborted: `repeated-tag`.
        """
        ...


class _Held:
    """A list in memory."""

    def __init__(self, keys: npt.NDArray[np.bytes_], rand: Rand) -> None:
        self._keys = keys
        self._order = group.permutation(len(keys), rand)
        self._values = np.empty((len(keys), POINT_BYTES), dtype=np.uint8)
        self._tags = np.empty(len(keys), dtype=f"S{TAG_BYTES}")

    def draw(self, start: int, stop: int) -> list[bytes]:
        items: list[bytes] = self._keys[self._order[start:stop]].tolist()
        return items

    def put(self, start: int, values: Points) -> None:
        self._values[start : start + len(values)] = values
        self._tags[start : start + len(values)] = tags(values)

    def finish(self) -> Tagged:
        by_tag = np.lexsort(words(self._tags))
        ordered = self._tags[by_tag]
        _check_different(ordered)
        return Tagged(ordered, self._values[by_tag], self._order[by_tag])


class _Spilled:
    """A list in scratch: its entries are shuffled there, and go there again with what came back for them.

    So no order of the whole list is ever in memory, and an entry is beside its tag when that is needed.
    """

    def __init__(self, entries: Rows, rand: Rand, resources: Resources) -> None:
        self._resources = resources
        self._shuffled = Shuffle(resources, entries.dtype, len(entries), rand)
        for block in entries.blocks(CHUNK_POINTS):
            self._shuffled.add(block)
        self._dtype = np.dtype(
            [("tag", f"S{TAG_BYTES}"), ("value", np.uint8, (POINT_BYTES,)), *entries.dtype.descr]
        )
        self._names = entries.dtype.names or ()
        self._under_way: deque[npt.NDArray[Any]] = deque()
        self._runs = Runs(resources, self._dtype, "tag", _by_tag)

    def draw(self, start: int, stop: int) -> list[bytes]:
        entries = self._shuffled.take(stop - start)
        self._under_way.append(entries)
        items: list[bytes] = entries["key"].tolist()
        return items

    def put(self, start: int, values: Points) -> None:  # noqa: ARG002  # in order
        entries = self._under_way.popleft()
        rows = np.empty(len(values), dtype=self._dtype)
        rows["tag"], rows["value"] = tags(values), values
        for name in self._names:
            rows[name] = entries[name]
        self._runs.add(rows)

    def finish(self) -> SpilledTags:
        found = Rows(self._resources.scratch.store(), self._dtype)
        for block in self._runs.merged():
            found.append(block)
        return SpilledTags(found)


def _by_tag(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    rows = taken(rows, np.lexsort(words(rows["tag"])))
    _check_different(rows["tag"])
    return rows


def _check_different(ordered: npt.NDArray[np.bytes_]) -> None:
    """Check that no tag is there twice.

    Different keys have different tags. A key-holder that returns one point for several rows would have them
    locked under one key and nonce, and under a V that it may know.
    """
    if bool((ordered[1:] == ordered[:-1]).any()):
        raise ProtocolAborted(
            "two keys of the own list came back as one tag",
            code="repeated-tag",
            hint="a key-holder did not raise every point to its key; compare versions and journals",
        )


class Tagging:
    """A list owner's part, as holder and, where the plan says so, as key-holder.

    The scalars r and k are drawn here, once per attempt, and die with the object.
    """

    def __init__(
        self,
        plan: Plan,
        role: Role,
        keys: npt.NDArray[np.bytes_] | Rows,
        rand: Rand,
        resources: Resources | None = None,
        *,
        key: bytes = b"",
    ) -> None:
        """Take a list of distinct typed keys, in any order.

        Args:
            plan: who tags what.
            role: whose list it is.
            keys: the list: in memory, and then `tagged` is what becomes of it; or rows in scratch with a
                column `key` and others that stay beside it, and then `spilled` is.
            rand: draws scalars and orders.
            resources: where rows go and points are raised; None: nowhere but here.
            key: a key-holder's k, where it is not to be drawn.

        Raises:
            ProtocolAborted: the list does not have the admitted number of keys.
            StateConflict: see `Store`.
        """
        self._plan, self._role = plan, role
        self._index = plan.owners.index(role)
        self._count = len(keys)
        if self._count != plan.counts[self._index]:
            raise ProtocolAborted("own list does not have the admitted number of keys", code="count-changed")
        resources = resources or in_memory()
        self._executor = resources.executor
        self._own: _Own = _Spilled(keys, rand, resources) if isinstance(keys, Rows) else _Held(keys, rand)
        self._blind = group.random_scalar(rand)
        self._unblind = group.invert(self._blind)
        self._key = b""
        if role in plan.key_holders:
            self._key = key or group.random_scalar(rand)
            self._unblind = group.multiply(self._key, self._unblind)
        self._sent = 0
        self._received: dict[int, int] = {}  # points so far, by round
        self._open = len(plan.passing(role))
        self.tagged: Tagged | None = None
        """A list in memory under its tags, once it is back."""
        self.spilled: SpilledTags | None = None
        """A list in scratch under its tags, once it is back."""

    @property
    def serving(self) -> bool:
        """Whether lists of others still have to pass here."""
        return self._open > 0

    @property
    def done(self) -> int:
        """Points handled so far, of `total`: own ones that are back, others' that were passed on."""
        return sum(self._received.values())

    @property
    def total(self) -> int:
        """Points to be handled."""
        passing = self._plan.passing(self._role)
        return self._count + sum(self._plan.counts[index] for index in passing)

    def start(self) -> Iterator[Outgoing]:
        """Return the first window of own chunks, computed as they are asked for."""
        for _ in range(UNDER_WAY):
            yield from self._next_chunk()

    def _next_chunk(self) -> Iterator[Outgoing]:
        start = self._sent
        if start == self._count:
            return
        self._sent = stop = min(start + CHUNK_POINTS, self._count)
        items = self._own.draw(start, stop)
        blinded = spread.blind(items, _TAG_DOMAIN + self._plan.ctx, self._blind, self._executor)
        to = self._plan.route(self._index)[1]
        yield Outgoing(to, 1 << 8 | self._index, blinded.tobytes(), last=stop == self._count)

    def receive(self, message: Incoming) -> Iterable[Outgoing]:
        """Take a chunk and return what follows: it goes on to the next on its route, or the next own chunk.

        Raises:
            ProtocolAborted: not on a route to here, the wrong number of points, an invalid point, or the same
                point for two of the own keys.
        """
        index, hop = message.round & 0xFF, message.round >> 8
        route = self._plan.route(index) if index < len(self._plan.owners) else ()
        if not 1 <= hop < len(route) or (route[hop - 1], route[hop]) != (message.sender, self._role):
            raise ProtocolAborted(
                f"round {message.round} from {message.sender} is on no list's route to here",
                code="unexpected-message",
            )
        batch, seen = self._counted(message, self._plan.counts[index])
        if hop == len(route) - 1:
            if seen + len(batch) > self._sent:
                raise ProtocolAborted("a chunk came back before it was sent", code="unexpected-message")
            self._own.put(seen, spread.power(batch, self._unblind, self._executor))
            if message.last:
                found = self._own.finish()
                if isinstance(found, Tagged):
                    self.tagged = found
                else:
                    self.spilled = found
            return self._next_chunk()
        raised = spread.power(batch, self._key, self._executor)
        self._open -= message.last
        return (Outgoing(route[hop + 1], (hop + 1) << 8 | index, raised.tobytes(), message.last),)

    def _counted(self, message: Incoming, count: int) -> tuple[Points, int]:
        """Return the points of a chunk and how many came before it. Each chunk has exactly one right size."""
        seen = self._received.get(message.round, 0)
        batch = group.points(message.body)
        check_chunk(seen, len(batch), count, CHUNK_POINTS, last=message.last)
        self._received[message.round] = seen + len(batch)
        return batch, seen


def check_chunk(seen: int, found: int, count: int, chunk: int, *, last: bool) -> None:
    """Check the size of one message of a stream of `count` items in messages of `chunk`.

    Args:
        seen: items in the messages before.
        found: items in this one.
        count: items that the admission announced.
        chunk: items of every message but the last.
        last: whether the stream ends here.

    Raises:
        ProtocolAborted: `too-many-items`, `too-few-items`, or `bad-length` where the cut is wrong.
    """
    if seen + found > count:
        raise ProtocolAborted(
            "a stream has more items than its list was admitted with", code="too-many-items"
        )
    if last and seen + found < count:
        raise ProtocolAborted("a stream ends before all admitted items have come", code="too-few-items")
    if found != min(chunk, count - seen) or last != (seen + found == count):
        raise ProtocolAborted(
            f"message of {found} items, expected {min(chunk, count - seen)}", code="bad-length"
        )
