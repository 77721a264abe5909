"""The DH form, for short lists: both sides raise every item to their secret exponents. SPEC.md, 7.

    receiver  -- H(x)^a, shuffled -->  sender
    receiver  <-- H(x)^(a b), in the same order --  sender     windowed: UNDER_WAY messages at most
    receiver  <-- H(y)^b, shuffled --  sender                  once all of the above has been sent

Meadows 1986; Huberman, Franklin, Hogg, EC 1999.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protocols.errors import ProtocolAborted
from protocols.match.shape import Match
from protocols.party import UNDER_WAY, Finished, Incoming, Outgoing, Progress, Rand, Step, Waiting
from protocols.psi import group
from protocols.psi.group import POINT_BYTES, Points
from protocols.psi.tagging import CHUNK_POINTS, check_chunk

BLINDED: Final = 0x3300
"""Round: receiver → sender, H(x)^a."""
RAISED: Final = 0x3301
"""Round: sender → receiver, the same raised to b."""
OWN: Final = 0x3302
"""Round: sender → receiver, H(y)^b."""

_DOMAIN: Final = b"minshu/match-dh/1"


class _Blinded:
    """A list of items in random order, each hashed to the group and raised to one secret exponent."""

    def __init__(
        self, keys: npt.NDArray[np.bytes_], marks: npt.NDArray[np.uint8], ctx: bytes, rand: Rand
    ) -> None:
        """Take n keys with n x v marks: n v items, key ‖ mark."""
        self._keys, self._marks, self._values = keys, marks.reshape(-1), marks.shape[1]
        self._dst = _DOMAIN + ctx
        self.order = group.permutation(len(self._marks), rand)
        self.exponent = group.random_scalar(rand)

    def __len__(self) -> int:
        return len(self.order)

    def chunk(self, start: int) -> Points:
        """Return the points from `start` on, as many as a message holds."""
        places = self.order[start : start + CHUNK_POINTS]
        keys: list[bytes] = self._keys[places // self._values].tolist()
        items = [key + bytes([mark]) for key, mark in zip(keys, self._marks[places].tolist(), strict=True)]
        return group.power(group.hash_to_group(items, self._dst), self.exponent)


class Receiver:
    """Learns which of its items the sender has."""

    def __init__(
        self,
        match: Match,
        keys: npt.NDArray[np.bytes_],
        marks: npt.NDArray[np.uint8],
        rand: Rand,
        publish: Callable[[npt.NDArray[np.bool_]], Any],
    ) -> None:
        """Take n keys with n marks."""
        self._sender, self._publish = match.sender, publish
        self._list = _Blinded(keys, marks.reshape(-1, 1), match.ctx, rand)
        self._sent = 0
        self._raised = np.empty((len(keys), POINT_BYTES), dtype=np.uint8)
        self._theirs = np.empty((match.entries, POINT_BYTES), dtype=np.uint8)
        self._received = {RAISED: 0, OWN: 0}

    def start(self) -> Step:
        """Send the first window of the own list."""
        return Waiting(self._window(), self._progress())

    def _window(self) -> Iterator[Outgoing]:
        for _ in range(UNDER_WAY):
            yield from self._next()

    def _next(self) -> Iterator[Outgoing]:
        start = self._sent
        if start == len(self._list):
            return
        self._sent = stop = min(start + CHUNK_POINTS, len(self._list))
        body = self._list.chunk(start).tobytes()
        yield Outgoing(self._sender, BLINDED, body, last=stop == len(self._list))

    def _progress(self) -> Progress:
        return Progress("matching", sum(self._received.values()), len(self._list) + len(self._theirs))

    def receive(self, message: Incoming) -> Step:
        """Take points of either list.

        Raises:
            ProtocolAborted: a message that is not due, of another length, or with an invalid point.
        """
        number = message.round
        if message.sender != self._sender or number not in self._received:
            raise unexpected(message)
        if number == OWN and self._received[RAISED] < len(self._list):
            raise unexpected(message)
        held = self._raised if number == RAISED else self._theirs
        batch, seen = group.points(message.body), self._received[number]
        check_chunk(seen, len(batch), len(held), CHUNK_POINTS, last=message.last)
        if number == RAISED and seen + len(batch) > self._sent:
            raise unexpected(message)
        self._received[number] = seen + len(batch)
        if number == RAISED:
            held[seen : seen + len(batch)] = _decoded(batch)
            return Waiting(self._next(), self._progress())
        held[seen : seen + len(batch)] = group.power(batch, self._list.exponent)
        if not message.last:
            return Waiting((), self._progress())
        found = np.empty(len(self._list), dtype=np.bool_)
        found[self._list.order] = np.isin(_texts(self._raised), _texts(self._theirs))
        return Finished((), self._publish(found))


class Sender:
    """Raises what the receiver sends, and then sends its own list. Its output is `()`."""

    def __init__(
        self, match: Match, keys: npt.NDArray[np.bytes_], marks: npt.NDArray[np.uint8], rand: Rand
    ) -> None:
        """Take n keys with n x v marks."""
        self._receiver, self._items = match.receiver, match.receiver_items
        self._list = _Blinded(keys, marks, match.ctx, rand)
        self._received = 0

    def start(self) -> Step:
        """Wait for the receiver's list."""
        return Waiting((), self._progress())

    def _progress(self) -> Progress:
        return Progress("matching", self._received, self._items)

    def receive(self, message: Incoming) -> Step:
        """Raise a piece of the receiver's list; the own list follows the last.

        Raises:
            ProtocolAborted: a message that is not due, of another length, or with an invalid point.
        """
        if message.sender != self._receiver or message.round != BLINDED:
            raise unexpected(message)
        batch = group.points(message.body)
        check_chunk(self._received, len(batch), self._items, CHUNK_POINTS, last=message.last)
        self._received += len(batch)
        raised = group.power(batch, self._list.exponent).tobytes()
        reply = Outgoing(self._receiver, RAISED, raised, message.last)
        return Finished(self._all(reply), ()) if message.last else Waiting((reply,), self._progress())

    def _all(self, reply: Outgoing) -> Iterable[Outgoing]:
        yield reply
        for start in range(0, len(self._list), CHUNK_POINTS):
            last = start + CHUNK_POINTS >= len(self._list)
            yield Outgoing(self._receiver, OWN, self._list.chunk(start).tobytes(), last)


def unexpected(message: Incoming) -> ProtocolAborted:
    """Return the error for a message that is not due."""
    return ProtocolAborted(f"round {message.round} from {message.sender}: not due", code="unexpected-message")


def _texts(points: Points) -> npt.NDArray[np.bytes_]:
    """Return one item for each point: all have one length, so that zeros at the end do not matter."""
    return points.view(f"S{POINT_BYTES}")[:, 0]


def _decoded(batch: Points) -> Points:
    """Check points that are only compared as strictly as those that are raised."""
    if not bool(batch.any(axis=1).all()):
        raise ProtocolAborted("a received point is the identity", code="bad-point")
    return group.add(batch, np.zeros_like(batch))
