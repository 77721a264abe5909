"""Between a party's thread and its data stream: two bounded queues, so that neither runs ahead of the other.

The party computes in a thread of its own and blocks here when the link is slower, or when nothing has come
yet. Frames are taken from the stream while the party computes, up to the depth of the queue; beyond that the
relay is left to wait, and through it the sender. Waking the other side costs more than handing over a frame,
so a side is woken only if it sleeps, and one that sleeps for room only when half of the queue is free.

What people at this node ask of a party comes to its thread by the same queue, in its place among the frames,
so that neither waits for the other longer than for what came before it.
"""

import asyncio
import threading
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

from node.link import DataStream
from protocols.errors import MinshuError, Unreachable

_END: Final = b""
"""No frame is empty."""


@dataclass(frozen=True, slots=True)
class Question:
    """Something a person at this node asks of the party; `number` is its own in the session."""

    number: int
    body: Any


@dataclass(frozen=True, slots=True)
class Close:
    """The session is to end in good order."""


Handed = bytes | Question | Close
"""What a party's thread is given: a frame, or what people at this node want."""


class _Queue:
    """A bounded queue between one thread, which blocks, and the event loop, which awaits."""

    def __init__(self, loop: asyncio.AbstractEventLoop, depth: int) -> None:
        """Hold at most `depth` frames."""
        self._loop, self._depth = loop, depth
        self._waiting: deque[Handed] = deque()
        self._changed = threading.Condition()
        self._wake = asyncio.Event()
        self._asleep = False
        self._closed = False

    def put(self, frame: bytes) -> bool:
        """Thread: append a frame, waiting for room; False once the queue is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._waiting) < self._depth)
            if not self._closed:
                self._waiting.append(frame)
                self._rouse()
            return not self._closed

    def get(self) -> Handed | None:
        """Thread: return what is next, waiting for it; None once the queue is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or bool(self._waiting))
            return None if self._closed else self._take()

    def get_now(self) -> Handed | None:
        """Thread: return what is next, None where nothing is; the end stays where it is."""
        with self._changed:
            there = bool(self._waiting) and self._waiting[0] != _END
            return self._take() if there and not self._closed else None

    async def put_soon(self, frame: bytes) -> None:
        """Loop: append a frame, waiting for room; into a closed queue nothing goes."""
        while True:
            with self._changed:
                if self._closed:
                    return
                if len(self._waiting) < self._depth:
                    self._waiting.append(frame)
                    self._changed.notify()
                    self._rouse()
                    return
                self._sleep()
            await self._wake.wait()

    def put_now(self, asked: Question | Close) -> bool:
        """Loop: append what waits for no room, its asker bounds it; False once the queue is closed."""
        with self._changed:
            if not self._closed:
                self._waiting.append(asked)
                self._changed.notify()
            return not self._closed

    async def get_soon(self) -> bytes:
        """Loop: return the next frame, waiting for one."""
        while True:
            with self._changed:
                if self._waiting:
                    frame = self._take()
                    assert isinstance(frame, bytes)  # nothing else goes out
                    return frame
                self._sleep()
            await self._wake.wait()

    def close(self) -> None:
        """Let the thread go, now and whenever it comes."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _take(self) -> Handed:
        frame = self._waiting.popleft()
        if len(self._waiting) <= self._depth // 2:
            self._changed.notify()
            self._rouse()
        return frame

    def _sleep(self) -> None:
        self._asleep = True
        self._wake.clear()

    def _rouse(self) -> None:
        if self._asleep:
            self._asleep = False
            self._loop.call_soon_threadsafe(self._wake.set)


class Exchange:
    """Hands frames over. `send` and `receive` are for the party's thread, the rest for the event loop."""

    def __init__(self, stream: DataStream, depth: int) -> None:
        """Use `stream`, with up to `depth` frames waiting in each direction. Call on the loop."""
        self._stream = stream
        loop = asyncio.get_running_loop()
        self._outbox, self._inbox = _Queue(loop, depth), _Queue(loop, depth)
        self._stopped: MinshuError | None = None
        self._over = asyncio.Event()
        self._sending = asyncio.create_task(self._send_all())
        self._receiving = asyncio.create_task(self._receive_all())

    # -- the party's thread --------------------------------------------------------------------------------

    def send(self, frame: bytes) -> None:
        """Hand over a frame; blocks while the queue is full.

        Raises:
            MinshuError: what `stop` was called with, or Unreachable: the stream broke.
        """
        self.check()
        if not self._outbox.put(frame):
            self.check()

    def receive(self) -> Handed:
        """Return the next frame, or what people here ask; blocks until something comes.

        Raises:
            MinshuError: what `stop` was called with, or Unreachable `peer-lost`: none will come any more.
        """
        handed = self._inbox.get()
        self.check()
        if handed is None or handed == _END:
            raise Unreachable(
                "the relay ended the stream before the protocol was done",
                code="peer-lost",
                hint="another node or the coordinator went away; the job may be tried again",
            )
        return handed

    def receive_now(self) -> Handed | None:
        """Return what has come already, None where nothing has."""
        return self._inbox.get_now()

    def check(self) -> None:
        """Raise what `stop` was called with, if it was."""
        if self._stopped is not None:
            raise self._stopped

    # -- the loop ------------------------------------------------------------------------------------------

    def ask(self, asked: Question | Close) -> bool:
        """Hand the party's thread a question, or the wish to end; tell whether it will still see it."""
        return self._inbox.put_now(asked)

    def stop(self, error: MinshuError) -> None:
        """Make the party's thread raise `error` the next time it sends, receives or checks. Once."""
        if self._stopped is None:
            self._stopped = error
            self._over.set()
            # After the reason is there to be raised.
            self._outbox.close()
            self._inbox.close()

    async def finish(self) -> None:
        """Send what is still queued, and tell the relay that this was all.

        Raises:
            MinshuError: what `stop` was called with, or Unreachable: the stream broke.
        """
        flushing = asyncio.create_task(self._flush())
        stopping = asyncio.create_task(self._over.wait())
        try:
            await asyncio.wait((flushing, stopping), return_when=asyncio.FIRST_COMPLETED)
        finally:
            flushing.cancel()
            stopping.cancel()
        self.check()
        await self._stream.finish()

    async def _flush(self) -> None:
        await self._outbox.put_soon(_END)
        await asyncio.shield(self._sending)

    async def close(self, linger_s: float = 0.0) -> None:
        """Give the stream up, after waiting at most `linger_s` for the relay to end it in good order."""
        try:
            if linger_s:
                await asyncio.wait((self._receiving,), timeout=linger_s)
        finally:
            for task in (self._sending, self._receiving):
                task.cancel()
            self._stream.close()
        await asyncio.gather(self._sending, self._receiving, return_exceptions=True)

    async def _send_all(self) -> None:
        try:
            while (frame := await self._outbox.get_soon()) != _END:
                await self._stream.send(frame)
        except Unreachable as error:
            self.stop(error)

    async def _receive_all(self) -> None:
        try:
            while (frame := await self._stream.receive()) is not None:
                await self._inbox.put_soon(frame)
        except Unreachable:
            pass  # the party learns it as an end that came too early, if it still waits for anything
        await self._inbox.put_soon(_END)
