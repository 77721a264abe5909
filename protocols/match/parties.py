"""The parties of a comparison: a receiver that learns which of its items the sender has, and a sender.

`Match.form` picks one of two protocols: DH for short lists, or where the job asks for it (dh.py), or KKRT:

    receiver  -- HELLO -->   sender      the sizes and a salt
    receiver  <-- BASE --    sender      the same, and points for 512 base transfers
    receiver  -- REPLY -->   sender      a point
    receiver  -- MATRIX -->  sender      unit by unit, `Shape.window` units ahead at most
    receiver  <-- MASKS --   sender      the masks of each unit, in ascending order

A unit is answered before the receiver sends the one that comes `window` units later, so that both sides
compute at once and neither waits for room in the other's inbox while the other waits for room in its own.
"""

from collections import deque
from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protocols.errors import ProtocolAborted
from protocols.match import base_ot, dh
from protocols.match.dh import unexpected
from protocols.match.hashing import SALT_BYTES, Joint
from protocols.match.kkrt import Awaited, Masks, ReceiverUnits, SenderUnits
from protocols.match.shape import COLUMNS, Match, Shape
from protocols.party import Finished, Incoming, Outgoing, Party, Progress, Rand, Step, Waiting
from protocols.psi.streams import bad_length
from protocols.psi.tagging import check_chunk

HELLO: Final = 0x3000
"""Round: receiver → sender, the sizes and the receiver's salt."""
BASE: Final = 0x3001
"""Round: sender → receiver, the sizes, the sender's salt and the points of the base transfers."""
REPLY: Final = 0x3002
"""Round: receiver → sender, the reply to the base transfers."""
MATRIX: Final = 0x3100
"""Round: receiver → sender, corrections of some columns for the rows of a unit."""
MASKS: Final = 0x3200
"""Round: sender → receiver, masks."""

Publish = Callable[[npt.NDArray[np.bool_]], Any]

__all__ = ["Match", "Receiver", "Sender"]


class _Side:
    """One side, whichever protocol is played."""

    _party: Party

    def start(self) -> Step:
        """Begin; where a list is empty, this is the end as well."""
        return self._party.start()

    def receive(self, message: Incoming) -> Step:
        """Take a message of the other side.

        Raises:
            InputError: `key-too-long`.
            ProtocolAborted: the message breaks the protocol, or hashes leave no room in a bucket.
        """
        return self._party.receive(message)


class Receiver(_Side):
    """Learns which of its items the sender has; its output is what `publish` makes of that."""

    def __init__(
        self,
        match: Match,
        keys: npt.NDArray[np.bytes_],
        marks: npt.NDArray[np.uint8],
        rand: Rand,
        publish: Publish,
    ) -> None:
        """Take the own list.

        Args:
            match: what is compared.
            keys: n distinct keys of at most 32 bytes, none with a zero byte at its end.
            marks: n; an item is found where the sender has its key with its mark.
            rand: draws salts, scalars and keys.
            publish: makes the output of n booleans, in the order of `keys`; called once.

        Raises:
            ProtocolAborted: `count-changed`, not the admitted number of items.
        """
        _check_count(len(keys), match.receiver_items)
        if marks.shape != keys.shape:
            raise ValueError(f"marks of shape {marks.shape}, expected one for each of {len(keys)} keys")
        if match.empty:
            self._party = _Empty(lambda: publish(np.zeros(len(keys), dtype=np.bool_)))
        elif match.form == "dh":
            self._party = dh.Receiver(match, keys, marks, rand, publish)
        else:
            self._party = _KkrtReceiver(match, keys, marks, rand, publish)


class Sender(_Side):
    """Lets the receiver find what both have, and learns nothing. Its output is `()`."""

    def __init__(
        self, match: Match, keys: npt.NDArray[np.bytes_], marks: npt.NDArray[np.uint8], rand: Rand
    ) -> None:
        """Take the own list.

        Args:
            match: what is compared.
            keys: n distinct keys of at most 32 bytes, none with a zero byte at its end.
            marks: n x values, different within each row.
            rand: draws salts, scalars, choice bits and keys.

        Raises:
            ProtocolAborted: `count-changed`, not the admitted number of keys.
        """
        _check_count(len(keys), match.sender_items)
        if marks.shape != (len(keys), match.values):
            raise ValueError(f"marks of shape {marks.shape}, expected {match.values} for each key")
        if match.empty:
            self._party = _Empty(lambda: ())
        elif match.form == "dh":
            self._party = dh.Sender(match, keys, marks, rand)
        else:
            self._party = _KkrtSender(match, keys, marks, rand)


class _Empty:
    """Either side where a list is empty: the answer is known, and no message is due."""

    def __init__(self, output: Callable[[], Any]) -> None:
        self._output = output

    def start(self) -> Step:
        return Finished((), self._output())

    def receive(self, message: Incoming) -> Step:
        raise unexpected(message)


class _KkrtReceiver:
    def __init__(
        self,
        match: Match,
        keys: npt.NDArray[np.bytes_],
        marks: npt.NDArray[np.uint8],
        rand: Rand,
        publish: Publish,
    ) -> None:
        self._match, self._keys, self._marks, self._rand = match, keys, marks, rand
        self._shape, self._publish = match.shape, publish
        self._salt = rand(SALT_BYTES)
        self._found = np.zeros(len(keys), dtype=np.bool_)
        self._answers: _Answers | None = None
        self._units: ReceiverUnits | None = None
        self._awaited: deque[Awaited] = deque()

    def start(self) -> Step:
        body = self._match.sizes + self._salt
        return Waiting((Outgoing(self._match.sender, HELLO, body),), Progress("matching", 0, 1))

    def receive(self, message: Incoming) -> Step:
        due = BASE if self._answers is None else MASKS
        if message.sender != self._match.sender or message.round != due:
            raise unexpected(message)
        if self._answers is None:
            return self._take_base(message)
        return self._take_masks(message, self._answers)

    def _take_base(self, message: Incoming) -> Step:
        self._answers = _Answers(self._shape)
        salt, points = _opened(message, self._match)
        reply, pairs = base_ot.answer(points, COLUMNS, self._match.ctx, self._rand)
        joint = Joint(self._match.ctx, self._salt, salt)

        def first() -> Iterator[Outgoing]:
            yield Outgoing(self._match.sender, REPLY, reply)
            self._units = ReceiverUnits(self._shape, joint, self._keys, self._marks, self._rand)
            self._units.hold(pairs)
            for unit in range(min(self._shape.window, self._shape.units)):
                yield from self._unit(unit)

        return Waiting(first(), Progress("matching", 0, self._shape.units))

    def _unit(self, unit: int) -> Iterator[Outgoing]:
        if self._units is None:
            raise RuntimeError("units are sent after the base transfers")
        left = len(self._shape.matrix_cut) if unit == self._shape.units - 1 else 0
        for body in self._units.messages(unit, self._awaited.append):
            left -= 1
            yield Outgoing(self._match.sender, MATRIX, body, last=left == 0)

    def _take_masks(self, message: Incoming, answers: "_Answers") -> Step:
        if not self._awaited:
            raise unexpected(message)
        units = self._shape.units
        masks = answers.take(message)
        if masks is not None:
            self._found[self._awaited.popleft().found(masks)] = True
        if answers.units == units:
            self._units = None  # room for what is published
            return Finished((), self._publish(self._found))
        ahead = answers.units + self._shape.window - 1
        follows = masks is not None and ahead < units
        return Waiting(self._unit(ahead) if follows else (), Progress("matching", answers.units, units))


class _KkrtSender:
    def __init__(
        self, match: Match, keys: npt.NDArray[np.bytes_], marks: npt.NDArray[np.uint8], rand: Rand
    ) -> None:
        self._match, self._keys, self._marks, self._rand = match, keys, marks, rand
        self._shape = match.shape
        self._salt = rand(SALT_BYTES)
        bits = np.frombuffer(rand(COLUMNS // 8), dtype=np.uint8)
        self._choices = np.unpackbits(bits, bitorder="little").astype(np.bool_)
        self._chooser = base_ot.Chooser(self._choices, match.ctx, rand)
        self._units: SenderUnits | None = None
        self._due = HELLO
        self._seen = 0

    def start(self) -> Step:
        body = self._match.sizes + self._salt + self._chooser.message
        return Waiting((Outgoing(self._match.receiver, BASE, body),), Progress("matching", 0, 1))

    def receive(self, message: Incoming) -> Step:
        if message.sender != self._match.receiver or message.round != self._due:
            raise unexpected(message)
        if self._units is None:
            return self._take_hello(message)
        if self._due == REPLY:
            if not message.last:
                raise bad_length(message)
            self._units.choose(self._choices, self._chooser.keys(message.body))
            self._due = MATRIX
            return Waiting((), self._progress())
        return self._take_columns(message, self._units)

    def _progress(self) -> Progress:
        return Progress("matching", self._seen // len(self._shape.matrix_cut), self._shape.units)

    def _take_hello(self, message: Incoming) -> Step:
        salt, rest = _opened(message, self._match)
        if rest:
            raise bad_length(message)
        joint = Joint(self._match.ctx, salt, self._salt)
        self._units = SenderUnits(self._shape, joint, self._keys, self._marks, self._rand)
        del self._keys  # from here on their hashes do
        self._due = REPLY
        return Waiting((), self._progress())

    def _take_columns(self, message: Incoming, units: SenderUnits) -> Step:
        shape, (unit, part) = self._shape, divmod(self._seen, len(self._shape.matrix_cut))
        if len(message.body) != shape.matrix_cut[part] * shape.column_bytes:
            raise bad_length(message)
        check_chunk(self._seen, 1, len(shape.matrix_cut) * shape.units, 1, last=message.last)
        self._seen += 1
        if not units.take(message.body):
            return Waiting((), self._progress())
        masks = self._masks(unit, units)
        return Finished(masks, ()) if message.last else Waiting(masks, self._progress(), answering=True)

    def _masks(self, unit: int, units: SenderUnits) -> Iterator[Outgoing]:
        shape, masks = self._shape, units.masks(unit)
        for start, stop in pairwise(accumulate(shape.mask_cut, initial=0)):
            last = unit == shape.units - 1 and stop == shape.masks
            body = masks.body(start, stop, shape.mask_bytes)
            yield Outgoing(self._match.receiver, MASKS, body, last)


class _Answers:
    """The stream of masks: what has come, cut into units."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._pieces: list[Masks] = []
        self.units = 0

    def take(self, message: Incoming) -> Masks | None:
        """Take a message; return all masks of the unit that it ends, if it ends one."""
        shape = self._shape
        if len(message.body) != shape.mask_cut[len(self._pieces)] * shape.mask_bytes:
            raise bad_length(message)
        self._pieces.append(Masks.of(message.body, shape.mask_bytes))
        complete = len(self._pieces) == len(shape.mask_cut)
        if message.last != (complete and self.units == shape.units - 1):
            code = "too-few-items" if message.last else "too-many-items"
            raise ProtocolAborted("the stream of masks does not end with the last unit", code=code)
        if not complete:
            return None
        masks = Masks.joined(self._pieces)
        self._pieces = []
        self.units += 1
        return masks


def _check_count(found: int, admitted: int) -> None:
    if found != admitted:
        raise ProtocolAborted("own list does not have the admitted number of keys", code="count-changed")


def _opened(message: Incoming, match: Match) -> tuple[bytes, bytes]:
    """Return the salt of a first message and what follows it; the other side has to mean the same sizes."""
    sizes, body = match.sizes, message.body
    start = len(sizes) + SALT_BYTES
    if len(body) < start or not message.last:
        raise bad_length(message)
    if body[: len(sizes)] != sizes:
        raise ProtocolAborted(
            f"{message.sender} compares lists of other sizes than were admitted",
            code="sizes-differ",
            hint="bring both nodes to one version; they read the same admissions",
        )
    return body[len(sizes) : start], body[start:]
