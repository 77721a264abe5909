"""The one way out: a TLS channel that this node dials and nobody can dial back.

A link keeps one control stream up, dialling again with growing, jittered waits, and opens a data stream per
attempt on the same channel. Nothing is queued across a broken stream: after each new one, the agent says
again whatever the coordinator may have missed.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from minshu.v1 import relay_pb2 as pb
from node.logs import Log
from node.rpc import Attempt, ControlRequest, Message, read_control
from protocols.errors import DecodeError, Unreachable

if TYPE_CHECKING:
    import grpc.aio

    from node.record import Recorder

MAX_MESSAGE_BYTES: Final = 4 << 20


class DataStream(Protocol):
    """Sealed frames of one attempt, to and from the relay. One sender and one receiver at a time."""

    async def send(self, frame: bytes) -> None:
        """Send a frame; returns when there is room for the next.

        Raises:
            Unreachable: the stream is gone.
        """
        ...

    async def receive(self) -> bytes | None:
        """Return the next frame, None when the relay ended the stream.

        Raises:
            Unreachable: the stream is gone.
        """
        ...

    async def finish(self) -> None:
        """Tell the relay that nothing more will be sent; what was sent is through."""
        ...

    def close(self) -> None:
        """Drop the stream now."""
        ...


class Uplink(Protocol):
    """What the agent needs of a link."""

    async def run(
        self, hello: Callable[[], ControlRequest], take: Callable[[Message], Awaitable[None]]
    ) -> None:
        """Keep a control stream up until cancelled: say hello on each new one, hand over what comes."""
        ...

    async def send(self, message: ControlRequest) -> None:
        """Send on the control stream that is up now.

        Raises:
            Unreachable: none is up, or it broke.
        """
        ...

    def drop(self) -> None:
        """End the control stream that is up now, so that a new one says hello again."""
        ...

    async def open_data(self, attempt: Attempt) -> DataStream:
        """Open the data stream of an attempt.

        Raises:
            Unreachable: it cannot be opened.
        """
        ...


@dataclass(frozen=True, slots=True)
class Credentials:
    """What the link proves itself with and trusts, PEM."""

    authority: bytes
    leaf: bytes
    key: bytes


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waits between dials: doubling from `shortest_s` to `longest_s`, each cut by up to a half at random."""

    shortest_s: float
    longest_s: float

    def wait_s(self, failures: int, draw: float) -> float:
        """Return how long to wait after so many failures in a row; `draw` is uniform in [0, 1)."""
        longest = min(self.longest_s, self.shortest_s * 2.0 ** min(failures - 1, 30))
        return float(longest * (1 - draw / 2))


class GrpcLink:
    """The real link: mutual TLS 1.3 over grpc.aio."""

    def __init__(
        self,
        address: str,
        credentials: Credentials,
        backoff: Backoff,
        *,
        draw: Callable[[], float],
        log: Log,
        keepalive_s: float = 30.0,
        recorder: "Recorder | None" = None,
    ) -> None:
        """Dial `address` (host:port) with these credentials; `draw` is uniform in [0, 1)."""
        self._address = address
        self._credentials = credentials
        self._backoff = backoff
        self._draw = draw
        self._log = log
        self._keepalive_s = keepalive_s
        self._recorder = recorder
        self._channel: grpc.aio.Channel | None = None
        self._control: _Stream | None = None

    async def run(
        self, hello: Callable[[], ControlRequest], take: Callable[[Message], Awaitable[None]]
    ) -> None:
        """Keep a control stream up until cancelled."""
        failures = 0
        async with self._dialled():
            while True:
                try:
                    async for message in self._stream(hello):
                        failures = 0
                        await take(message)
                    self._log.info("link-closed")
                except Unreachable as error:
                    self._log.warning(error.code, sentence=error.message)
                failures += 1
                await asyncio.sleep(self._backoff.wait_s(failures, self._draw()))

    async def _stream(self, hello: Callable[[], ControlRequest]) -> AsyncIterator[Message]:
        stream = _Stream(self._stub().Control())
        try:
            first = hello()
            self._record_up(first)
            await stream.write(first)
            self._control = stream
            while (message := await stream.read()) is not None:
                if self._recorder is not None:
                    self._recorder.control("down", message.SerializeToString())
                try:
                    known = read_control(message)
                except DecodeError as error:
                    self._log.warning(error.code, sentence=error.message)
                    continue
                yield known
        finally:
            self._control = None
            stream.close()

    async def send(self, message: ControlRequest) -> None:
        """Send on the control stream that is up now."""
        stream = self._control
        if stream is None:
            raise Unreachable("no link to the coordinator is up", code="link-down")
        self._record_up(message)
        await stream.write(message)

    def drop(self) -> None:
        """End the control stream that is up now."""
        if self._control is not None:
            self._control.close()

    async def open_data(self, attempt: Attempt) -> DataStream:
        """Open the data stream of an attempt."""
        stream = _Stream(self._stub().Data())
        try:
            await stream.write(pb.DataRequest(open=pb.Attempt(job=attempt.job, attempt=attempt.number)))
        except Unreachable:
            stream.close()
            raise
        return _GrpcData(stream)

    def _record_up(self, message: ControlRequest) -> None:
        if self._recorder is not None:
            self._recorder.control("up", message.SerializeToString())

    def _stub(self) -> Any:
        from minshu.v1.relay_pb2_grpc import NodeServiceStub

        if self._channel is None:
            raise Unreachable("the link is closed", code="link-down")
        return NodeServiceStub(self._channel)

    @asynccontextmanager
    async def _dialled(self) -> AsyncIterator[None]:
        import grpc

        credentials = grpc.ssl_channel_credentials(
            root_certificates=self._credentials.authority,
            private_key=self._credentials.key,
            certificate_chain=self._credentials.leaf,
        )
        keepalive_ms = int(self._keepalive_s * 1000)
        options = [
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.keepalive_time_ms", keepalive_ms),
            ("grpc.keepalive_timeout_ms", keepalive_ms),
            # The link backs off itself; gRPC's own waits would only add to ours.
            ("grpc.initial_reconnect_backoff_ms", int(self._backoff.shortest_s * 1000)),
            ("grpc.min_reconnect_backoff_ms", int(self._backoff.shortest_s * 1000)),
            ("grpc.max_reconnect_backoff_ms", int(self._backoff.longest_s * 1000)),
            ("grpc.enable_retries", 0),
            # Loopback proxies of the environment must never see this traffic.
            ("grpc.enable_http_proxy", 0),
        ]
        async with grpc.aio.secure_channel(self._address, credentials, options=options) as channel:
            self._channel = channel
            try:
                yield
            finally:
                self._channel = None


class _Stream:
    """One bidirectional call; turns gRPC's errors into ours."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._closed = False
        # grpc.aio allows one write at a time.
        self._writing = asyncio.Lock()

    async def write(self, message: Any) -> None:
        with self._translated():
            async with self._writing:
                await self._call.write(message)

    async def read(self) -> Any:
        """Return the next message, None at a clean end."""
        import grpc

        with self._translated():
            message = await self._call.read()
            if message is not grpc.aio.EOF:
                return message
            code = await self._call.code()
        if code is grpc.StatusCode.OK:
            return None
        raise _status(code)

    async def done_writing(self) -> None:
        with self._translated():
            async with self._writing:
                await self._call.done_writing()

    def close(self) -> None:
        self._closed = True
        self._call.cancel()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        import grpc

        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise _status(error.code()) from None
        except (grpc.RpcError, grpc.aio.UsageError, asyncio.InvalidStateError):
            raise Unreachable("the link broke", code="link-broken", hint=_HINT) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self._closed or (task is not None and task.cancelling()):
                raise
            # Our own close(), not a cancelled task: gRPC tells both the same way.
            raise Unreachable("the stream was closed here", code="link-closed") from None


class _GrpcData:
    """A data stream over a call."""

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream

    async def send(self, frame: bytes) -> None:
        await self._stream.write(pb.DataRequest(frame=frame))

    async def receive(self) -> bytes | None:
        message = await self._stream.read()
        return None if message is None else bytes(message.frame)

    async def finish(self) -> None:
        await self._stream.done_writing()

    def close(self) -> None:
        self._stream.close()


def _status(code: Any) -> Unreachable:
    """Return our error for a status. Its details are not repeated: they may quote an address or a path."""
    import grpc

    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return Unreachable(
            "the coordinator does not accept this node",
            code="not-accepted",
            hint="compare the fingerprint with the roster's; after a change of keys, enrol again",
        )
    return Unreachable(
        f"the coordinator could not be reached ({code.name.lower()})", code="unreachable", hint=_HINT
    )


_HINT: Final = "run minshu-node doctor; the node keeps trying"
