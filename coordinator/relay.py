"""The relay: frames of one attempt from seat to seat, unread, in bounded memory.

Of a frame it reads the header alone: which attempt, from which seat, to which. Frames between two seats keep
their order. Every sender has its own share of the attempt's bound; when it is used up, the relay stops
reading from that sender, and from no other. A frame counts until the receiver's stream has taken it, so a
receiver that has not dialled in yet, or reads slowly, costs at most what the bound allows.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from protocols.channel.frame import MAX_FRAME_BYTES, read_header
from protocols.errors import DecodeError, MinshuError, Refused, StateConflict
from protocols.ids import JobId, NodeName, Role


@dataclass(slots=True)
class _Seat:
    """One node's place: what waits for it, and what it has under way itself."""

    role: Role
    joined: bool = False
    gone: bool = False
    sent_all: bool = False
    waiting: deque[tuple["_Seat", bytes]] = field(default_factory=deque)
    mail: asyncio.Event = field(default_factory=asyncio.Event)
    room: asyncio.Event = field(default_factory=asyncio.Event)
    held_frames: int = 0
    held_bytes: int = 0


class Exchange:
    """One attempt's frames. All methods belong to one event loop."""

    def __init__(
        self,
        job: JobId,
        attempt: int,
        seats: Mapping[Role, NodeName],
        *,
        max_frames: int,
        max_bytes: int,
    ) -> None:
        """Open an exchange between `seats`; the bounds are shared out evenly among the senders."""
        self._job = job
        self._attempt = attempt
        self._seats = {node: _Seat(role) for role, node in seats.items()}
        self._by_role = {role: self._seats[node] for role, node in seats.items()}
        self._share_frames = max(1, max_frames // len(seats))
        self._share_bytes = max_bytes // len(seats)
        self._closed: MinshuError | None = None
        self.relayed_bytes = 0

    @property
    def held_bytes(self) -> int:
        """Bytes under way."""
        return sum(seat.held_bytes for seat in self._seats.values())

    def has_joined(self, node: NodeName) -> bool:
        """Tell whether the node's stream was opened."""
        seat = self._seats.get(node)
        return seat is not None and seat.joined

    def join(self, node: NodeName) -> None:
        """Open the node's stream.

        Raises:
            Refused: the node takes no part.
            StateConflict: it has, or had, a stream; a broken one is not resumed, the attempt is replaced.
        """
        self._check_open()
        seat = self._seats.get(node)
        if seat is None:
            raise Refused("this node takes no part in the attempt", code="not-a-participant")
        if seat.joined:
            raise StateConflict(
                "the attempt's data stream was opened before",
                code="data-stream-twice",
                hint="report the run as failed with unreachable; another attempt follows",
            )
        seat.joined = True

    async def put(self, node: NodeName, frame: bytes) -> None:
        """Take a frame from the node's stream; waits while the node's share is used up.

        (1) The header is of this attempt. (2) `from` is the sender's own seat. (3) `to` is another seat.

        Raises:
            DecodeError: not a frame.
            Refused: (1)-(3) does not hold.
            MinshuError: what the exchange was closed with.
        """
        sender = self._seats[node]
        if len(frame) > MAX_FRAME_BYTES:
            raise DecodeError(f"frame of {len(frame)} bytes, at most {MAX_FRAME_BYTES}", code="bad-frame")
        header = read_header(frame)
        if (header.job, header.attempt) != (self._job, self._attempt):
            raise Refused("a frame is of another attempt than its stream", code="foreign-frame")
        if header.sender != sender.role:
            raise Refused("a frame's sender is not its stream's seat", code="foreign-sender")
        receiver = self._by_role.get(header.to)
        if receiver is None or receiver is sender:
            raise Refused("a frame is addressed to no other seat of the attempt", code="unknown-role")
        while self._closed is None and (
            sender.held_frames >= self._share_frames
            or (sender.held_bytes and sender.held_bytes + len(frame) > self._share_bytes)
        ):
            sender.room.clear()
            await sender.room.wait()
        self._check_open()
        self.relayed_bytes += len(frame)
        if receiver.gone:
            # Whoever was to read it has finished or broke off; the nodes notice what is missing themselves.
            return
        sender.held_frames += 1
        sender.held_bytes += len(frame)
        receiver.waiting.append((sender, frame))
        receiver.mail.set()

    def sent_all(self, node: NodeName) -> None:
        """The node closed its half: `frames` ends once what waits for it is delivered."""
        seat = self._seats[node]
        seat.sent_all = True
        seat.mail.set()

    async def frames(self, node: NodeName) -> AsyncIterator[bytes]:
        """Yield the frames for the node, in order; a frame is let go when the next one is asked for.

        Raises:
            MinshuError: what the exchange was closed with.
        """
        seat = self._seats[node]
        while True:
            while seat.waiting:
                self._check_open()
                sender, frame = seat.waiting.popleft()
                try:
                    yield frame
                finally:
                    _let_go(sender, frame)
            self._check_open()
            if seat.sent_all:
                return
            seat.mail.clear()
            await seat.mail.wait()

    def leave(self, node: NodeName) -> None:
        """The node's stream is over, whole or broken; what waits for it is forgotten."""
        seat = self._seats[node]
        seat.gone = True
        while seat.waiting:
            _let_go(*seat.waiting.popleft())

    def close(self, error: MinshuError) -> None:
        """End every stream with `error` and forget what is under way."""
        self._closed = error
        for seat in self._seats.values():
            while seat.waiting:
                _let_go(*seat.waiting.popleft())
            seat.mail.set()
            seat.room.set()

    def _check_open(self) -> None:
        if self._closed is not None:
            raise self._closed


def _let_go(sender: _Seat, frame: bytes) -> None:
    sender.held_frames -= 1
    sender.held_bytes -= len(frame)
    sender.room.set()


class Relay:
    """All exchanges under way."""

    def __init__(self, *, max_frames: int, max_bytes: int) -> None:
        """Bound every exchange to that many frames and bytes under way."""
        self._max_frames = max_frames
        self._max_bytes = max_bytes
        self._exchanges: dict[JobId, tuple[int, Exchange]] = {}

    def open(self, job: JobId, attempt: int, seats: Mapping[Role, NodeName]) -> None:
        """Accept frames of an attempt; opening the same one again changes nothing."""
        known = self._exchanges.get(job)
        if known is not None and known[0] == attempt:
            return
        if known is not None:
            self.close(job, known[0])
        exchange = Exchange(job, attempt, seats, max_frames=self._max_frames, max_bytes=self._max_bytes)
        self._exchanges[job] = (attempt, exchange)

    def exchange(self, job: JobId, attempt: int) -> Exchange:
        """Return the exchange of an attempt.

        Raises:
            StateConflict: the attempt is not under way.
        """
        known = self._exchanges.get(job)
        if known is None or known[0] != attempt:
            raise StateConflict(
                "the attempt is not under way here",
                code="unknown-attempt",
                hint="wait for the coordinator's next offer",
            )
        return known[1]

    def close(self, job: JobId, attempt: int) -> None:
        """End an attempt's streams; one that is not open is no error."""
        known = self._exchanges.get(job)
        if known is not None and known[0] == attempt:
            del self._exchanges[job]
            known[1].close(StateConflict("the attempt is over", code="attempt-over"))
