"""The parties of both forms of an overlap. SPEC.md, sections 3 and 4.

Two departments, without a third:

    receiver  -- POOL -->    sender      pool points under the receiver's key, with a proof
    receiver  -- KEYS -->    sender      its list under its key, shuffled
    sender    -- LIST -->    receiver    its list and m dummies, z of the pool, under its own key, shuffled
    sender    -- RAISED -->  receiver    what it got, under both keys, shuffled

Several departments and a matcher: lists are tagged (protocols/psi), and

    list owner  -- TAGS -->  matcher     tags, ascending
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protocols.errors import ProtocolAborted
from protocols.ids import Role
from protocols.jobs.crosscheck import regions
from protocols.overlap.dummies import Dummies
from protocols.party import Finished, Incoming, Outgoing, Progress, Rand, Step, Waiting
from protocols.psi import dleq, group
from protocols.psi.group import POINT_BYTES, UNIFORM_BYTES, Points
from protocols.psi.owner import ListOwner
from protocols.psi.streams import Stream, check_ascending, messages, unexpected
from protocols.psi.tagging import CHUNK_POINTS, TAG_BYTES, Plan, Tagged

POOL: Final = 0x3000
"""Round: receiver → sender, public key ‖ proof ‖ the pool's points under that key."""
KEYS: Final = 0x3100
"""Round: receiver → sender, the receiver's list under its key."""
LIST: Final = 0x3200
"""Round: sender → receiver, the sender's list and its dummies under its key."""
RAISED: Final = 0x3300
"""Round: sender → receiver, the receiver's list and the pool under both keys."""
TAGS: Final = 0x3400
"""Round: list owner → matcher, 16-byte tags in ascending order."""

CHUNK_TAGS: Final = 32768

_KEY: Final = b"minshu/overlap/1"
_POOL: Final = b"minshu/overlap-pool/1"
_PROOF: Final = b"minshu/overlap-proof/1"
_STAND_IN: Final = b"minshu/overlap-list/1/"

Keys = npt.NDArray[np.bytes_]


@dataclass(frozen=True, slots=True)
class Pair:
    """What two departments compute in one attempt; all public.

    Attributes:
        receiver: who counts.
        sender: who adds the dummies.
        receiver_keys: distinct keys of the receiver's list, as admitted.
        sender_keys: of the sender's.
        noise: how many of the pool the sender takes.
        ctx: 32 bytes, binds every point and the proof to all admissions.
    """

    receiver: Role
    sender: Role
    receiver_keys: int
    sender_keys: int
    noise: Dummies
    ctx: bytes

    def pool(self) -> Points:
        """Return the m points of the pool, as everybody can: no key of any list has one of them."""
        return group.hash_to_group([j.to_bytes(4, "big") for j in range(self.noise.pool)], _POOL + self.ctx)

    def hashed(self, keys: Keys) -> Points:
        """Return the point of each typed key."""
        items: list[bytes] = keys.tolist()
        return group.hash_to_group(items, _KEY + self.ctx)


class Receiver:
    """Learns how many keys both lists have, plus z; outputs what `publish` makes of that sum."""

    def __init__(self, pair: Pair, keys: Keys, rand: Rand, publish: Callable[[int], Any]) -> None:
        """Take a list of distinct typed keys, in any order.

        Raises:
            ProtocolAborted: `count-changed`, the list does not have the admitted number of keys.
        """
        _check_count(keys, pair.receiver_keys)
        self._pair, self._rand, self._publish = pair, rand, publish
        self._keys, self._order = keys, group.permutation(len(keys), rand)
        self._secret = group.random_scalar(rand)
        counts = {LIST: pair.sender_keys + pair.noise.pool, RAISED: pair.receiver_keys + pair.noise.pool}
        self._streams = {number: Stream(number, count) for number, count in counts.items()}

    def start(self) -> Step:
        """Send the pool and the own list."""
        return Waiting(self._sent(), self._progress())

    def _sent(self) -> Iterator[Outgoing]:
        pair, secret = self._pair, self._secret
        public = group.power(_one(group.BASE), secret).tobytes()
        pool = pair.pool()
        raised = group.power(pool, secret)
        proof = dleq.prove(secret, group.BASE, public, pool, raised, _PROOF + pair.ctx, self._rand)
        yield Outgoing(pair.sender, POOL, public + proof + raised.tobytes())
        yield from messages(
            pair.sender,
            KEYS,
            len(self._keys),
            CHUNK_POINTS,
            lambda start, stop: group.power(pair.hashed(self._keys[self._order[start:stop]]), secret),
        )

    def _progress(self) -> Progress:
        streams = self._streams.values()
        return Progress("comparing", sum(s.seen for s in streams), sum(s.count for s in streams))

    def receive(self, message: Incoming) -> Step:
        """Take points of the sender; the last of them all leads to the count.

        Raises:
            ProtocolAborted: a message that is not due, the wrong number of points, an invalid point, or one
                point twice.
        """
        stream = self._streams.get(message.round)
        if message.sender != self._pair.sender or stream is None:
            raise unexpected(message)
        batch = stream.take(message)
        stream.keep(group.power(batch, self._secret) if message.round == LIST else batch)
        if not all(each.complete for each in self._streams.values()):
            return Waiting((), self._progress())
        return Finished((), self._publish(_common(*(each.sorted() for each in self._streams.values()))))


class Sender:
    """Adds z dummies to what is counted, and learns nothing but sizes. Its output is `()`."""

    def __init__(self, pair: Pair, keys: Keys, rand: Rand) -> None:
        """Take a list of distinct typed keys, in any order; z is drawn here.

        Raises:
            ProtocolAborted: `count-changed`, the list does not have the admitted number of keys.
        """
        _check_count(keys, pair.sender_keys)
        self._pair, self._keys, self._rand = pair, keys, rand
        self._secret = group.random_scalar(rand)
        self._dummies = int(pair.noise.draw(1, rand)[0])
        self._pool: Points | None = None
        self._received = Stream(KEYS, pair.receiver_keys)
        self._raised: list[Points] = []

    def start(self) -> Step:
        """Wait for the pool."""
        return Waiting((), self._progress())

    def _progress(self) -> Progress:
        return Progress("comparing", self._received.seen, self._received.count)

    def receive(self, message: Incoming) -> Step:
        """Take the pool, then the receiver's list; once both are whole and right, everything goes out.

        Raises:
            ProtocolAborted: a message that is not due, the wrong number of points, an invalid point, one
                point twice, or `bad-proof`: a pool under another key than the one shown.
        """
        if message.sender != self._pair.receiver:
            raise unexpected(message)
        if message.round == POOL and self._pool is None:
            self._pool = self._take_pool(message)
            return Waiting((), self._progress())
        if message.round != KEYS or self._pool is None:
            raise unexpected(message)
        batch = self._received.take(message)
        self._received.keep(batch)
        self._raised.append(group.power(batch, self._secret))
        if not self._received.complete:
            return Waiting((), self._progress())
        # A point that came twice would be told from all others by coming back twice.
        self._received.keep(self._pool)
        self._received.sorted()
        self._raised.append(group.power(self._pool, self._secret))
        return Finished(chain(self._list(), self._shuffled()), ())

    def _take_pool(self, message: Incoming) -> Points:
        """Return the pool under the receiver's key.

        Raises:
            ProtocolAborted: `bad-length`, `bad-point`, `bad-proof`.
        """
        expected = POINT_BYTES + dleq.PROOF_BYTES + POINT_BYTES * self._pair.noise.pool
        if len(message.body) != expected or not message.last:
            raise ProtocolAborted(
                f"a pool of {len(message.body)} bytes, expected {expected}",
                code="bad-length",
                hint="bring both nodes to one version; they read the same job",
            )
        public, rest = message.body[:POINT_BYTES], message.body[POINT_BYTES:]
        raised = group.points(rest[dleq.PROOF_BYTES :])
        dleq.verify(
            group.BASE,
            public,
            self._pair.pool(),
            raised,
            rest[: dleq.PROOF_BYTES],
            _PROOF + self._pair.ctx,
        )
        return raised

    def _list(self) -> Iterator[Outgoing]:
        """Yield the own list and m dummies: z points of the pool, and for the others points of no key.

        Which points of the pool does not matter: the receiver gets them back shuffled, under a key that it
        does not know. All of them are raised, so that neither number nor time depends on z.
        """
        size, pool = len(self._keys), self._pair.noise.pool
        extra = group.from_uniform(_uniform(pool, self._rand))
        extra[: self._dummies] = self._pair.pool()[: self._dummies]
        order = group.permutation(size + pool, self._rand)

        def raised(start: int, stop: int) -> Points:
            places = order[start:stop]
            own = places < size
            points = np.empty((stop - start, POINT_BYTES), dtype=np.uint8)
            points[own] = self._pair.hashed(self._keys[places[own]])
            points[~own] = extra[places[~own] - size]
            return group.power(points, self._secret)

        return messages(self._pair.receiver, LIST, size + pool, CHUNK_POINTS, raised)

    def _shuffled(self) -> Iterator[Outgoing]:
        points = np.concatenate(self._raised)
        order = group.permutation(len(points), self._rand)
        return messages(
            self._pair.receiver,
            RAISED,
            len(points),
            CHUNK_POINTS,
            lambda start, stop: points[order[start:stop]],
        )


class Owner(ListOwner):
    """A list owner of several, as holder and perhaps as key-holder: its tags go to the matcher."""

    def __init__(self, plan: Plan, matcher: Role, role: Role, keys: Keys, rand: Rand) -> None:
        """Take a list of distinct typed keys, in any order.

        Args:
            plan: who tags what, from `plan_of`.
            matcher: who compares tags.
            role: whose list it is.
            keys: distinct typed keys.
            rand: draws scalars and orders.

        Raises:
            ProtocolAborted: `count-changed`, the list does not have the admitted number of keys.
        """

        def answer(tagged: Tagged) -> Iterator[Outgoing]:
            tags = tagged.tags
            return messages(matcher, TAGS, len(tags), CHUNK_TAGS, lambda start, stop: tags[start:stop])

        super().__init__(plan, role, keys, rand, stand_in=_STAND_IN, answer=answer)


class Matcher:
    """Compares tags; outputs what `publish` makes of the exact number of keys of every region."""

    def __init__(self, plan: Plan, publish: Callable[[npt.NDArray[np.int64]], Any]) -> None:
        """Count for `plan`.

        Args:
            plan: who tags what, from `plan_of`.
            publish: called once; at place s - 1 is how many keys are on just those lists whose bits are set
                in s, bit i for list i, for s = 1 … 2^n - 1.
        """
        self._plan, self._publish = plan, publish
        self._streams = [Stream(TAGS, count, TAG_BYTES, CHUNK_TAGS) for count in plan.counts]

    def start(self) -> Step:
        """Wait for tags."""
        return Waiting((), self._progress())

    def _progress(self) -> Progress:
        return Progress("collecting", sum(each.seen for each in self._streams), sum(self._plan.counts))

    def receive(self, message: Incoming) -> Step:
        """Take tags; the last of them all leads to the regions.

        Raises:
            ProtocolAborted: a message that is not due, the wrong number of tags, or tags that are not
                ascending, each once (`bad-tags`).
        """
        if message.sender not in self._plan.owners or message.round != TAGS:
            raise unexpected(message)
        stream = self._streams[self._plan.owners.index(message.sender)]
        stream.keep(stream.take(message))
        if not all(each.complete for each in self._streams):
            return Waiting((), self._progress())
        return Finished((), self._publish(region_sizes([each.items() for each in self._streams])))


def region_sizes(lists: Sequence[Keys]) -> npt.NDArray[np.int64]:
    """Return the size of every region of tagged lists, without the one key that stands for each list.

    Args:
        lists: tags of each list, ascending.

    Raises:
        ProtocolAborted: `bad-tags`, a list is not ascending or has a tag twice.
    """
    for each in lists:
        check_ascending(each)
    _, masks = regions(lists)
    sizes = np.bincount(masks.astype(np.int64), minlength=1 << len(lists))
    sizes[1 << np.arange(len(lists))] -= 1
    return sizes[1:]


def _common(one: npt.NDArray[np.bytes_], other: npt.NDArray[np.bytes_]) -> int:
    """Return how many items two ascending lists without repeats have in common."""
    joined = np.concatenate([one, other])
    joined.sort(kind="stable")  # merges two ordered runs
    return int((joined[1:] == joined[:-1]).sum())


def _check_count(keys: Keys, admitted: int) -> None:
    if len(keys) != admitted:
        raise ProtocolAborted("own list does not have the admitted number of keys", code="count-changed")


def _one(point: bytes) -> Points:
    return np.frombuffer(point, dtype=np.uint8).reshape(1, POINT_BYTES)


def _uniform(count: int, rand: Rand) -> npt.NDArray[np.uint8]:
    return np.frombuffer(rand(UNIFORM_BYTES * count), dtype=np.uint8).reshape(count, UNIFORM_BYTES)
