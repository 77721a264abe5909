"""Streams of items of a known number: cut into messages by whoever sends, counted by whoever takes them."""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from protocols.errors import ProtocolAborted
from protocols.ids import Role
from protocols.party import Incoming, Outgoing
from protocols.psi.group import POINT_BYTES
from protocols.psi.tagging import CHUNK_POINTS, check_chunk


class Stream:
    """One stream of items of a known number: checked in size, and kept until it is whole by whoever asks."""

    def __init__(self, number: int, count: int, width: int = POINT_BYTES, chunk: int = CHUNK_POINTS) -> None:
        """Expect a stream.

        Args:
            number: its round.
            count: how many items it has.
            width: bytes of each.
            chunk: items of every message but the last.
        """
        self.number, self.count, self._width, self._chunk = number, count, width, chunk
        self.seen, self.complete = 0, False
        self._kept: list[npt.NDArray[np.uint8]] = []

    def take(self, message: Incoming) -> npt.NDArray[np.uint8]:
        """Return what the next message holds, n x width bytes; a stream of nothing is one empty message.

        Raises:
            ProtocolAborted: `unexpected-message` after the last one; `bad-length`, `too-many-items`,
                `too-few-items`.
        """
        if self.complete:
            raise unexpected(message)
        if len(message.body) % self._width:
            raise ProtocolAborted(
                f"body of {len(message.body)} bytes, expected a multiple of {self._width}", code="bad-length"
            )
        found = len(message.body) // self._width
        check_chunk(self.seen, found, self.count, self._chunk, last=message.last)
        self.seen, self.complete = self.seen + found, message.last
        return np.frombuffer(message.body, dtype=np.uint8).reshape(found, self._width)

    def keep(self, items: npt.NDArray[np.uint8]) -> None:
        """Keep what came, or what became of it."""
        self._kept.append(items)

    def raw(self) -> npt.NDArray[np.uint8]:
        """Return all that was kept, in order, n x width bytes, and forget it here."""
        kept, self._kept = self._kept, []
        return np.concatenate(kept)

    def items(self) -> npt.NDArray[np.bytes_]:
        """Return all that was kept, in order, each an item of `width` bytes."""
        joined = np.concatenate(self._kept)
        return joined.reshape(-1).view(f"S{self._width}")

    def sorted(self) -> npt.NDArray[np.bytes_]:
        """Return all that was kept in ascending order.

        Raises:
            ProtocolAborted: `repeated-point`, an item is there twice.
        """
        ordered = np.sort(self.items())
        if bool((ordered[1:] == ordered[:-1]).any()):
            raise ProtocolAborted(
                "a point came twice, expected a list's keys once each and no point of the pool among them",
                code="repeated-point",
                hint="the sender runs another version, or marks points to know them again",
            )
        return ordered


def messages(
    to: Role, number: int, count: int, chunk: int, made: Callable[[int, int], npt.NDArray[np.generic] | bytes]
) -> Iterator[Outgoing]:
    """Yield `count` items as messages of `chunk`, made as they are asked for; no item is one empty message.

    Args:
        to: who takes them.
        number: the round.
        count: how many items.
        chunk: items of every message but the last.
        made: returns the items from one place to another.
    """
    for start in range(0, count or 1, chunk):
        stop = min(start + chunk, count)
        items = made(start, stop)
        body = items if isinstance(items, bytes) else items.tobytes()
        yield Outgoing(to, number, body, last=stop == count)


def single(message: Incoming, size: int) -> bytes:
    """Return the body of a stream of one message.

    Raises:
        ProtocolAborted: `bad-length`.
    """
    if len(message.body) != size or not message.last:
        raise bad_length(message)
    return message.body


def bad_length(message: Incoming) -> ProtocolAborted:
    """Return the error of a message that is longer or shorter than what is due, or comes too early to end."""
    return ProtocolAborted(
        f"round {message.round}: a message of {len(message.body)} bytes, which is not what is due",
        code="bad-length",
        hint="the other side runs another version; both read the same job and admissions",
    )


def check_ascending(tags: npt.NDArray[np.bytes_]) -> None:
    """Check that a list's tags ascend: one person is one tag, and their order tells nothing of the input's.

    Raises:
        ProtocolAborted: `bad-tags`.
    """
    if bool((tags[1:] <= tags[:-1]).any()):
        raise ProtocolAborted("a list's tags are not in ascending order, each once", code="bad-tags")


def unexpected(message: Incoming) -> ProtocolAborted:
    """Return the error of a message that is not due."""
    return ProtocolAborted(f"round {message.round} from {message.sender}: not due", code="unexpected-message")
