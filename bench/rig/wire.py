"""Bytes on the wire: a relay on 127.0.0.1 that passes connections on and counts what goes through."""

import asyncio
import contextlib
import threading
from types import TracebackType
from typing import Final, Self

_PIECE: Final = 1 << 18
_START_S: Final = 10.0
_RETRY_S: Final = 0.02


class Wire:
    """Listens on ports of its own, each standing for another one, until this context is left.

    One who dials before the other one listens waits for it.

    It takes processor time from what it measures, so bytes are counted in runs whose time does not count.
    """

    def __init__(self) -> None:
        """Count from zero."""
        self.up = 0  # bytes from those who dialled
        self.down = 0  # bytes to those who dialled
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="wire", daemon=True)
        self._servers: list[asyncio.Server] = []

    @property
    def total(self) -> int:
        """Bytes in both directions."""
        return self.up + self.down

    def __enter__(self) -> Self:
        """Start."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close every connection."""
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(_START_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def before(self, port: int) -> int:
        """Return a port of 127.0.0.1 whose connections are passed on to `port`."""
        return asyncio.run_coroutine_threadsafe(self._listen(port), self._loop).result(_START_S)

    async def _listen(self, port: int) -> int:
        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            # Cancelled, it ends quietly: asyncio's own callback trips over a cancelled one.
            with contextlib.suppress(OSError, asyncio.CancelledError), contextlib.closing(writer):
                beyond, onward = await _dial(port)
                with contextlib.closing(onward):
                    await asyncio.gather(
                        self._pass(reader, onward, up=True), self._pass(beyond, writer, up=False)
                    )

        server = await asyncio.start_server(take, "127.0.0.1", 0, limit=_PIECE)
        self._servers.append(server)
        name: tuple[str, int] = server.sockets[0].getsockname()
        return name[1]

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, up: bool) -> None:
        while data := await source.read(_PIECE):
            if up:
                self.up += len(data)
            else:
                self.down += len(data)
            sink.write(data)
            await sink.drain()
        if sink.can_write_eof():
            sink.write_eof()

    async def _stop(self) -> None:
        for server in self._servers:
            server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


async def _dial(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    for _ in range(int(_START_S / _RETRY_S)):
        try:
            return await asyncio.open_connection("127.0.0.1", port, limit=_PIECE)
        except OSError:
            await asyncio.sleep(_RETRY_S)
    raise ConnectionRefusedError
