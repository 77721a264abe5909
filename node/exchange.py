"""Between a party's thread and its data stream: two bounded queues, so that neither runs ahead of the other.

The party computes in a thread of its own and blocks here when the link is slower, or when nothing has come
yet. Frames are taken from the stream while the party computes, up to the depth of the queue; beyond that the
relay is left to wait, and through it the sender.
"""

import asyncio
import concurrent.futures
from collections.abc import Coroutine
from typing import Any, Final

from node.link import DataStream
from protocols.errors import MinshuError, Unreachable

_END: Final = b""
"""No frame is empty."""


class Exchange:
    """Hands frames over. `send` and `receive` are for the party's thread, the rest for the event loop."""

    def __init__(self, stream: DataStream, depth: int) -> None:
        """Use `stream`, with up to `depth` frames waiting in each direction. Call on the loop."""
        self._stream = stream
        self._loop = asyncio.get_running_loop()
        self._outbox: asyncio.Queue[bytes] = asyncio.Queue(depth)
        self._inbox: asyncio.Queue[bytes] = asyncio.Queue(depth)
        self._stopped: MinshuError | None = None
        self._over = asyncio.Event()
        self._waiting: concurrent.futures.Future[Any] | None = None
        self._sending = asyncio.create_task(self._send_all())
        self._receiving = asyncio.create_task(self._receive_all())

    # -- the party's thread --------------------------------------------------------------------------------

    def send(self, frame: bytes) -> None:
        """Hand over a frame; blocks while the queue is full.

        Raises:
            MinshuError: what `stop` was called with, or Unreachable: the stream broke.
        """
        self._wait(self._outbox.put(frame))

    def receive(self) -> bytes:
        """Return the next frame; blocks until one comes.

        Raises:
            MinshuError: what `stop` was called with, or Unreachable `peer-lost`: none will come any more.
        """
        frame: bytes = self._wait(self._inbox.get())
        if frame == _END:
            raise Unreachable(
                "the relay ended the stream before the protocol was done",
                code="peer-lost",
                hint="another node or the coordinator went away; the job may be tried again",
            )
        return frame

    def check(self) -> None:
        """Raise what `stop` was called with, if it was."""
        if self._stopped is not None:
            raise self._stopped

    def _wait(self, step: Coroutine[Any, Any, Any]) -> Any:
        waiting = asyncio.run_coroutine_threadsafe(step, self._loop)
        # In this order, and `stop` in the other: whoever comes second sees what the first did.
        self._waiting = waiting
        if self._stopped is not None:
            waiting.cancel()
        try:
            return waiting.result()
        except concurrent.futures.CancelledError:
            self.check()
            raise Unreachable("this node is shutting down", code="node-stopped") from None

    # -- the loop ------------------------------------------------------------------------------------------

    def stop(self, error: MinshuError) -> None:
        """Make the party's thread raise `error` the next time it sends, receives or checks. Once."""
        if self._stopped is None:
            self._stopped = error
            self._over.set()
            if self._waiting is not None:
                self._waiting.cancel()

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
        await self._outbox.put(_END)
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
            while (frame := await self._outbox.get()) != _END:
                await self._stream.send(frame)
        except Unreachable as error:
            self.stop(error)

    async def _receive_all(self) -> None:
        try:
            while (frame := await self._stream.receive()) is not None:
                await self._inbox.put(frame)
        except Unreachable:
            pass  # the party learns it as an end that came too early, if it still waits for anything
        await self._inbox.put(_END)
