"""The DH form: both sides raise every item to their secret exponents. SPEC.md, 7.

    receiver  -- H(x)^a, shuffled -->  sender
    receiver  <-- H(x)^(a b), in the same order --  sender
    receiver  <-- H(y)^b, shuffled --  sender

Short lists are one message each. Of the first two streams, which are one flow there and back, `UNDER_WAY`
messages are under way at most. Meadows 1986; Huberman, Franklin, Hogg, EC 1999.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protocols.errors import ProtocolAborted
from protocols.ids import Role
from protocols.match.shape import Match
from protocols.party import UNDER_WAY, Finished, Incoming, Outgoing, Progress, Rand, Step, Waiting
from protocols.psi import group
from protocols.psi.group import POINT_BYTES, Points
from protocols.psi.tagging import check_chunk

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
        self, keys: npt.NDArray[np.bytes_], marks: npt.NDArray[np.uint8], match: Match, rand: Rand
    ) -> None:
        """Take n keys with n x v marks: n v items, key ‖ mark."""
        self._keys, self._marks, self._values = keys, marks.reshape(-1), marks.shape[1]
        self._dst, self._chunk = _DOMAIN + match.ctx, match.sizing.points
        self.order = group.permutation(len(self._marks), rand)
        self.exponent = group.random_scalar(rand)
        self.sent = 0

    def messages(self, to: Role, number: int, most: int) -> Iterator[Outgoing]:
        """Yield the next messages of the stream of all points, up to `most` of them."""
        for start in range(self.sent, len(self.order), self._chunk)[:most]:
            order = self.order[start : start + self._chunk]
            self.sent += len(order)
            keys: list[bytes] = self._keys[order // self._values].tolist()
            marks: list[int] = self._marks[order].tolist()
            items = [key + bytes([mark]) for key, mark in zip(keys, marks, strict=True)]
            points = group.power(group.hash_to_group(items, self._dst), self.exponent)
            yield Outgoing(to, number, points.tobytes(), last=self.sent == len(self.order))


class _Counted:
    """The points of a stream that has to be a whole list of `count`, message by message."""

    def __init__(self, count: int, chunk: int) -> None:
        self.count, self._chunk, self.seen = count, chunk, 0

    def take(self, message: Incoming) -> Points:
        """Return the points of a message."""
        batch = group.points(message.body)
        check_chunk(self.seen, len(batch), self.count, self._chunk, last=message.last)
        self.seen += len(batch)
        return batch


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
        self._match, self._publish = match, publish
        self._list = _Blinded(keys, marks.reshape(-1, 1), match, rand)
        self._back = _Counted(match.receiver_items, match.sizing.points)
        self._theirs = _Counted(match.entries, match.sizing.points)
        self._raised = np.empty((match.receiver_items, POINT_BYTES), dtype=np.uint8)
        self._order = self._list.order
        self._found = np.zeros(match.receiver_items, dtype=np.bool_)

    def start(self) -> Step:
        """Send the first points of the own list."""
        return self._waiting(self._list.messages(self._match.sender, BLINDED, UNDER_WAY))

    def _waiting(self, outgoing: Iterable[Outgoing]) -> Waiting:
        done, total = (self._back.seen + self._theirs.seen), (self._back.count + self._theirs.count)
        return Waiting(outgoing, Progress("matching", done, total))

    def receive(self, message: Incoming) -> Step:
        """Take the own points, raised, and then the sender's.

        Raises:
            ProtocolAborted: a message that is not due, of another length, or with an invalid point.
        """
        back = self._back.seen < self._back.count
        if message.sender != self._match.sender or message.round != (RAISED if back else OWN):
            raise unexpected(message)
        return self._take_back(message) if back else self._take_theirs(message)

    def _take_back(self, message: Incoming) -> Step:
        start = self._back.seen
        batch = self._back.take(message)
        if self._back.seen > self._list.sent:
            raise unexpected(message)
        self._raised[start : self._back.seen] = _decoded(batch)
        if message.last:
            by_point = np.argsort(_texts(self._raised))
            self._raised, self._order = self._raised[by_point], self._order[by_point]
        return self._waiting(self._list.messages(self._match.sender, BLINDED, 1))

    def _take_theirs(self, message: Incoming) -> Step:
        theirs = _texts(group.power(self._theirs.take(message), self._list.exponent))
        own = _texts(self._raised)
        at = np.minimum(np.searchsorted(own, theirs), len(own) - 1)
        self._found[self._order[at[own[at] == theirs]]] = True
        return Finished((), self._publish(self._found)) if message.last else self._waiting(())


class Sender:
    """Raises what the receiver sends, and then sends its own list. Its output is `()`."""

    def __init__(
        self, match: Match, keys: npt.NDArray[np.bytes_], marks: npt.NDArray[np.uint8], rand: Rand
    ) -> None:
        """Take n keys with n x v marks."""
        self._match = match
        self._list = _Blinded(keys, marks, match, rand)
        self._passing = _Counted(match.receiver_items, match.sizing.points)

    def start(self) -> Step:
        """Wait for the receiver's list."""
        return Waiting((), self._progress())

    def _progress(self) -> Progress:
        return Progress("matching", self._passing.seen, self._passing.count)

    def receive(self, message: Incoming) -> Step:
        """Raise a message of the receiver's list; after the last one the own list follows.

        Raises:
            ProtocolAborted: a message that is not due, of another length, or with an invalid point.
        """
        if message.sender != self._match.receiver or message.round != BLINDED:
            raise unexpected(message)
        raised = group.power(self._passing.take(message), self._list.exponent)
        back = Outgoing(self._match.receiver, RAISED, raised.tobytes(), message.last)
        if not message.last:
            return Waiting((back,), self._progress())
        own = self._list.messages(self._match.receiver, OWN, self._match.entries)
        return Finished(chain((back,), own), ())


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
