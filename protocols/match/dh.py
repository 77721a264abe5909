"""The DH form, for short lists: both sides raise every item to their secret exponents. SPEC.md, 7.

    receiver  -- H(x)^a, shuffled -->  sender
    receiver  <-- H(x)^(a b), in the same order --  sender
    receiver  <-- H(y)^b, shuffled --  sender

Each is one message. Meadows 1986; Huberman, Franklin, Hogg, EC 1999.
"""

from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protocols.errors import ProtocolAborted
from protocols.ids import Role
from protocols.match.shape import Match
from protocols.party import Finished, Incoming, Outgoing, Progress, Rand, Step, Waiting
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
        self, keys: npt.NDArray[np.bytes_], marks: npt.NDArray[np.uint8], ctx: bytes, rand: Rand
    ) -> None:
        """Take n keys with n x v marks: n v items, key ‖ mark."""
        self._keys, self._marks, self._values = keys, marks.reshape(-1), marks.shape[1]
        self._dst = _DOMAIN + ctx
        self.order = group.permutation(len(self._marks), rand)
        self.exponent = group.random_scalar(rand)

    def message(self, to: Role, number: int) -> Outgoing:
        """Return the message of all points."""
        keys: list[bytes] = self._keys[self.order // self._values].tolist()
        marks: list[int] = self._marks[self.order].tolist()
        items = [key + bytes([mark]) for key, mark in zip(keys, marks, strict=True)]
        points = group.power(group.hash_to_group(items, self._dst), self.exponent)
        return Outgoing(to, number, points.tobytes())


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
        self._list = _Blinded(keys, marks.reshape(-1, 1), match.ctx, rand)
        self._raised: Points | None = None

    def start(self) -> Step:
        """Send the own list."""
        return Waiting((self._list.message(self._match.sender, BLINDED),), self._progress(0))

    def _progress(self, done: int) -> Progress:
        return Progress("matching", done, self._match.receiver_items + self._match.entries)

    def receive(self, message: Incoming) -> Step:
        """Take the own points, raised, and then the sender's.

        Raises:
            ProtocolAborted: a message that is not due, of another length, or with an invalid point.
        """
        due = RAISED if self._raised is None else OWN
        if message.sender != self._match.sender or message.round != due:
            raise unexpected(message)
        if self._raised is None:
            self._raised = _decoded(_points(message, self._match.receiver_items))
            return Waiting((), self._progress(self._match.receiver_items))
        theirs = group.power(_points(message, self._match.entries), self._list.exponent)
        found = np.empty(self._match.receiver_items, dtype=np.bool_)
        found[self._list.order] = np.isin(_texts(self._raised), _texts(theirs))
        return Finished((), self._publish(found))


class Sender:
    """Raises what the receiver sends, and then sends its own list. Its output is `()`."""

    def __init__(
        self, match: Match, keys: npt.NDArray[np.bytes_], marks: npt.NDArray[np.uint8], rand: Rand
    ) -> None:
        """Take n keys with n x v marks."""
        self._match = match
        self._list = _Blinded(keys, marks, match.ctx, rand)

    def start(self) -> Step:
        """Wait for the receiver's list."""
        return Waiting((), Progress("matching", 0, self._match.receiver_items))

    def receive(self, message: Incoming) -> Step:
        """Raise the receiver's list; the own one follows.

        Raises:
            ProtocolAborted: a message that is not due, of another length, or with an invalid point.
        """
        if message.sender != self._match.receiver or message.round != BLINDED:
            raise unexpected(message)
        batch = _points(message, self._match.receiver_items)
        raised = group.power(batch, self._list.exponent).tobytes()
        return Finished(self._both(raised), ())

    def _both(self, raised: bytes) -> Iterator[Outgoing]:
        yield Outgoing(self._match.receiver, RAISED, raised)
        yield self._list.message(self._match.receiver, OWN)


def _points(message: Incoming, count: int) -> Points:
    """Return the points of a message that has to be a whole list of `count`."""
    batch = group.points(message.body)
    check_chunk(0, len(batch), count, count, last=message.last)
    return batch


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
