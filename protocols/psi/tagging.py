"""Two-key tags: one anonymous name per person that no single organisation can compute. SPEC.md, section 2.

A holder sends `H(x)^r` around through the key-holders and back, and is left with `V = H(x)^(k1 k2)`, whose
hash is the tag. Holders of the same person get the same tag; without every key-holder's scalar nobody can
compute the tag of a guessed identifier.

    holder S        first K1          second K2         holder S
    H(x)^r    -->   ^k1         -->   ^k2         -->   ^(1/r)  =  V,   tag = SHA-256("minshu/tag/1" ‖ V)[:16]

A list that belongs to a key-holder skips that key-holder on the way and is raised to k/r when it is back.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from protocols.errors import ProtocolAborted
from protocols.ids import Role
from protocols.party import UNDER_WAY, Incoming, Outgoing, Rand
from protocols.psi import group
from protocols.psi.group import POINT_BYTES, Points

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


class Tagging:
    """A list owner's part, as holder and, where the plan says so, as key-holder.

    The scalars r and k are drawn here, once per attempt, and die with the object.
    """

    def __init__(self, plan: Plan, role: Role, keys: npt.NDArray[np.bytes_], rand: Rand) -> None:
        """Take a list of distinct typed keys, in any order.

        Raises:
            ProtocolAborted: the list does not have the admitted number of keys.
        """
        self._plan, self._role, self._keys = plan, role, keys
        self._index = plan.owners.index(role)
        if len(keys) != plan.counts[self._index]:
            raise ProtocolAborted("own list does not have the admitted number of keys", code="count-changed")
        self._order = group.permutation(len(keys), rand)
        self._blind = group.random_scalar(rand)
        self._unblind = group.invert(self._blind)
        self._key = b""
        if role in plan.key_holders:
            self._key = group.random_scalar(rand)
            self._unblind = group.multiply(self._key, self._unblind)
        self._values = np.empty((len(keys), POINT_BYTES), dtype=np.uint8)
        self._tags = np.empty(len(keys), dtype=f"S{TAG_BYTES}")
        self._sent = 0
        self._received: dict[int, int] = {}  # points so far, by round
        self._open = len(plan.passing(role))
        self.tagged: Tagged | None = None
        """The list under its tags, once it is back."""

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
        return len(self._keys) + sum(self._plan.counts[index] for index in passing)

    def start(self) -> Iterator[Outgoing]:
        """Return the first window of own chunks, computed as they are asked for."""
        for _ in range(UNDER_WAY):
            yield from self._next_chunk()

    def _next_chunk(self) -> Iterator[Outgoing]:
        start = self._sent
        if start == len(self._keys):
            return
        self._sent = stop = min(start + CHUNK_POINTS, len(self._keys))
        items: list[bytes] = self._keys[self._order[start:stop]].tolist()
        blinded = group.power(group.hash_to_group(items, _TAG_DOMAIN + self._plan.ctx), self._blind)
        to = self._plan.route(self._index)[1]
        yield Outgoing(to, 1 << 8 | self._index, blinded.tobytes(), last=stop == len(self._keys))

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
            values = group.power(batch, self._unblind)
            self._values[seen : seen + len(batch)] = values
            self._tags[seen : seen + len(batch)] = tags(values)
            if message.last:
                self._finish()
            return self._next_chunk()
        raised = group.power(batch, self._key)
        self._open -= message.last
        return (Outgoing(route[hop + 1], (hop + 1) << 8 | index, raised.tobytes(), message.last),)

    def _counted(self, message: Incoming, count: int) -> tuple[Points, int]:
        """Return the points of a chunk and how many came before it. Each chunk has exactly one right size."""
        seen = self._received.get(message.round, 0)
        batch = group.points(message.body)
        check_chunk(seen, len(batch), count, CHUNK_POINTS, last=message.last)
        self._received[message.round] = seen + len(batch)
        return batch, seen

    def _finish(self) -> None:
        by_tag = np.argsort(self._tags, kind="stable")
        ordered = self._tags[by_tag]
        # Different keys have different tags. A key-holder that returns one point for several rows would have
        # them locked under one key and nonce, and under a V that it may know.
        if bool((ordered[1:] == ordered[:-1]).any()):
            raise ProtocolAborted(
                "two keys of the own list came back as one tag",
                code="repeated-tag",
                hint="a key-holder did not raise every point to its key; compare versions and journals",
            )
        self.tagged = Tagged(ordered, self._values[by_tag], self._order[by_tag])
        self._values, self._tags = self._values[:0].copy(), self._tags[:0].copy()


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
