"""The one way out: a TLS channel that this node dials and nobody can dial back.

A link keeps one control stream up, dialling again with growing, jittered waits, and opens a data stream per
attempt on the same channel. Nothing is queued across a broken stream: after each new one, the agent says
again whatever the coordinator may have missed.

With new credentials the link moves to a new channel: the control stream at once, data streams as they are
opened. The old channel stays until the last stream on it has ended, so a run never notices.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from minshu.v1 import relay_pb2 as pb
from node.logs import Log
from node.rpc import Attempt, ControlRequest, Message, read_control
from protocols.errors import DecodeError, Unreachable
from protocols.wire import parse_utc

if TYPE_CHECKING:
    import grpc.aio

    from node.clock import Clock
    from node.record import Recorder

MAX_MESSAGE_BYTES: Final = 4 << 20
CALL_S: Final = 20.0
"""How long one call, or dialling with new credentials, may take."""

_CODE: Final = re.compile(r"[a-z][a-z-]{0,60}")


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
        clock: "Clock | None" = None,
    ) -> None:
        """Dial `address` (host:port) with these credentials.

        Args:
            address: host:port of the coordinator.
            credentials: what to prove and trust at first.
            backoff: waits between dials.
            draw: uniform in [0, 1).
            log: where the link's ups and downs go.
            keepalive_s: a silent link is probed after that many seconds.
            recorder: keeps control messages, None for not.
            clock: told the coordinator's time at every welcome.
        """
        self._address = address
        self._credentials = credentials
        self._backoff = backoff
        self._draw = draw
        self._log = log
        self._keepalive_s = keepalive_s
        self._recorder = recorder
        self._clock = clock
        self._line: _Line | None = None
        self._retired: dict[asyncio.Task[None], _Line] = {}
        self._control: _Stream | None = None
        self._greeted = False

    @property
    def up(self) -> bool:
        """Whether a control stream is up."""
        return self._greeted

    async def run(
        self, hello: Callable[[], ControlRequest], take: Callable[[Message], Awaitable[None]]
    ) -> None:
        """Keep a control stream up until cancelled."""
        failures = 0
        self._line = _Line(self._dial(self._credentials))
        try:
            while True:
                line = self._line
                try:
                    async for message in self._stream(line, hello):
                        failures = 0
                        await take(message)
                    self._log.info("link-closed")
                except Unreachable as error:
                    if self._line is line:
                        self._log.warning(error.code, sentence=error.message)
                if self._line is not line:
                    continue  # the control stream moves: its new channel is connected already
                failures += 1
                await asyncio.sleep(self._backoff.wait_s(failures, self._draw()))
        finally:
            lines = [self._line, *self._retired.values()]
            self._line = None
            for task in self._retired:
                task.cancel()
            await asyncio.gather(*(line.channel.close() for line in lines))

    async def _stream(self, line: "_Line", hello: Callable[[], ControlRequest]) -> AsyncIterator[Message]:
        stream = self._control = line.stream("Control")
        try:
            # Said only now that the stream before is not heard any more: what a hello leaves out is lost.
            first = hello()
            self._record_up(first)
            await stream.write(first)
            self._greeted = True
            while (message := await stream.read()) is not None:
                if self._recorder is not None:
                    self._recorder.control("down", message.SerializeToString())
                try:
                    known = read_control(message)
                    self._look_at_clock(message)
                except DecodeError as error:
                    self._log.warning(error.code, sentence=error.message)
                    continue
                yield known
        finally:
            self._control, self._greeted = None, False
            stream.close()

    def _look_at_clock(self, message: pb.ControlResponse) -> None:
        if self._clock is not None and message.WhichOneof("kind") == "welcome" and message.welcome.time:
            self._clock.heard(parse_utc(message.welcome.time))

    async def send(self, message: ControlRequest) -> None:
        """Send on the control stream that is up now."""
        stream = self._control
        if stream is None or not self._greeted:
            raise Unreachable("no link to the coordinator is up", code="link-down")
        self._record_up(message)
        await stream.write(message)

    def drop(self) -> None:
        """End the control stream that is up now."""
        if self._control is not None:
            self._control.close()

    async def open_data(self, attempt: Attempt) -> DataStream:
        """Open the data stream of an attempt."""
        stream = self._up_line().stream("Data")
        try:
            await stream.write(pb.DataRequest(open=pb.Attempt(job=attempt.job, attempt=attempt.number)))
        except Unreachable:
            stream.close()
            raise
        return _GrpcData(stream)

    async def renew(self, csr: bytes) -> bytes:
        """Return what the coordinator answers to a certificate request (PEM), unchecked.

        Raises:
            Unreachable: no link is up, or the coordinator refuses.
        """
        import grpc

        try:
            answer = await self._up_line().call("Renew", pb.RenewRequest(csr=csr))
        except grpc.aio.AioRpcError as error:
            raise _refusal(error) from None
        return bytes(answer.certificate)

    async def adopt(self, credentials: Credentials) -> None:
        """Prove ourselves with `credentials` from now on.

        A new channel is dialled first. Once it is connected, the control stream moves there and new data
        streams are opened there; those on the old channel go on, and it closes with the last of them. Before
        `run`, and after it, only the next dial is concerned.

        Raises:
            Unreachable: the coordinator was not reached with them; the link stays as it was.
        """
        if self._line is not None:
            line = _Line(self._dial(credentials))
            try:
                async with asyncio.timeout(CALL_S):
                    await line.channel.channel_ready()
                old, self._line = self._up_line(), line
            except BaseException as problem:
                await line.channel.close()
                if isinstance(problem, TimeoutError):
                    raise Unreachable(
                        "the coordinator could not be reached with the new certificate",
                        code="unreachable",
                        hint=_HINT,
                    ) from None
                raise
            task = asyncio.create_task(old.close_when_idle())
            self._retired[task] = old
            task.add_done_callback(self._retired.pop)
            self.drop()
        self._credentials = credentials

    def _record_up(self, message: ControlRequest) -> None:
        if self._recorder is not None:
            self._recorder.control("up", message.SerializeToString())

    def _up_line(self) -> "_Line":
        if self._line is None:
            raise Unreachable("the link is closed", code="link-down")
        return self._line

    def _dial(self, credentials: Credentials) -> "grpc.aio.Channel":
        import grpc

        proof = grpc.ssl_channel_credentials(
            root_certificates=credentials.authority,
            private_key=credentials.key,
            certificate_chain=credentials.leaf,
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
            # A channel with new credentials must not share the connection of one with old ones.
            ("grpc.use_local_subchannel_pool", 1),
        ]
        return grpc.aio.secure_channel(self._address, proof, options=options)


class _Line:
    """A channel, and how many calls are on it."""

    def __init__(self, channel: "grpc.aio.Channel") -> None:
        from minshu.v1.relay_pb2_grpc import NodeServiceStub

        self.channel = channel
        self._stub: Any = NodeServiceStub(channel)
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def stream(self, method: str) -> "_Stream":
        """Begin a bidirectional call."""
        return _Stream(self._counted(getattr(self._stub, method)()))

    async def call(self, method: str, request: Any) -> Any:
        """Make a call with one request and one answer."""
        return await self._counted(getattr(self._stub, method)(request, timeout=CALL_S))

    async def close_when_idle(self) -> None:
        """Wait until the last call has ended, then close the channel."""
        await self._idle.wait()
        await self.channel.close()

    def _counted(self, call: Any) -> Any:
        self._calls += 1
        self._idle.clear()
        call.add_done_callback(self._ended)
        return call

    def _ended(self, _call: Any) -> None:
        self._calls -= 1
        if not self._calls:
            self._idle.set()


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


def _refusal(error: "grpc.aio.AioRpcError") -> Unreachable:
    """Return why a call was refused, by its reason code alone."""
    for key, value in error.trailing_metadata() or ():
        if key == "minshu-code" and isinstance(value, str) and _CODE.fullmatch(value):
            return Unreachable(f"the coordinator refuses: {value}", code="call-refused", hint=_HINT)
    return _status(error.code())


_HINT: Final = "run minshu-node doctor; the node keeps trying"
