"""How fast sealed frames go from node to coordinator to node, beside a bare grpc.aio relay of such messages.

Both sides are three processes on this machine, with the same TLS 1.3 certificates, the same generated stubs
and messages of the same size. Ours seals and opens every frame and runs the coordinator's own service; the
bare one passes bytes through a bounded queue. They take turns; the turn of median ratio counts.
"""

import asyncio
import contextlib
import os
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

from bench.rig.nodes import Nodes, running
from bench.rig.turns import take_turns
from bench.rig.worker import Talk, Worker, answers
from bench.rows import Results, Row
from demo.collaboration import DEPARTMENTS, Collaboration
from minshu.v1 import relay_pb2, relay_pb2_grpc
from protocols.channel.frame import MAX_FRAME_BYTES, SIZE_CLASSES
from protocols.ids import Role
from protocols.party import MAX_BODY_BYTES, Finished, Incoming, Outgoing, Party, Step, Waiting

SENDER: Final = Role("sender")
RECEIVER: Final = Role("receiver")
MESSAGES: Final = 256
TURNS: Final = 15

_SEATS: Final = {SENDER: DEPARTMENTS[0], RECEIVER: DEPARTMENTS[1]}
_FRAME_BYTES: Final = SIZE_CLASSES[-1] + 250
"""A sealed frame of a full body: header, padded text, tag and signature, to within a few bytes."""

_QUEUE: Final = 32
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_FRAME_BYTES + 1024),
    ("grpc.max_send_message_length", MAX_FRAME_BYTES + 1024),
)


def measure(results: Results, *, long: bool) -> None:
    """Measure `sealed` in MB of message bodies per second."""
    turns = TURNS * 5 if long else TURNS
    if results.has("sealed"):
        return
    with tempfile.TemporaryDirectory(prefix="minshu-bench-") as folder:
        ours, bare = compare(Path(folder), MESSAGES, turns)
    results.add(Row("sealed", ours, "MB/s", "bare grpc.aio relay, mutual TLS 1.3", bare))


def compare(folder: Path, messages: int, turns: int) -> tuple[float, float]:
    """Return MB/s of ours and of the bare relay."""
    with running(folder, tuple(_SEATS.values())) as (nodes, collaboration), _bare(collaboration) as peer:
        _ours(nodes, 1), peer.rate(1)  # opens every connection
        return take_turns(lambda: _ours(nodes, messages), lambda: peer.rate(messages), turns)


def _ours(nodes: Nodes, messages: int) -> float:
    played = nodes.play(_SEATS, f"{__name__}:party", {"messages": messages})
    return messages * MAX_BODY_BYTES / (played[RECEIVER].ended - played[SENDER].started) / 1e6


def party(role: Role, params: dict[str, Any]) -> Party:
    """Return the sender or the receiver of that many full bodies."""
    return Sender(params["messages"]) if role == SENDER else Receiver(params["messages"])


class Sender:
    """Sends full bodies and is done."""

    def __init__(self, messages: int) -> None:
        """Send so many."""
        self._messages = messages

    def start(self) -> Step:
        """Send everything."""
        body = os.urandom(MAX_BODY_BYTES)
        last = self._messages - 1
        return Finished(Outgoing(RECEIVER, 1, body, last=at == last) for at in range(self._messages))

    def receive(self, message: Incoming) -> Step:
        """Expect nothing."""
        raise RuntimeError(f"a message came from {message.sender}")


class Receiver:
    """Takes full bodies until the last."""

    def __init__(self, messages: int) -> None:
        """Expect so many."""
        self._missing = messages

    def start(self) -> Step:
        """Wait."""
        return Waiting()

    def receive(self, message: Incoming) -> Step:
        """Count."""
        self._missing -= 1
        if len(message.body) != MAX_BODY_BYTES or message.last != (self._missing == 0):
            raise RuntimeError("a message was lost")
        return Finished() if message.last else Waiting()


# -- the peer ---------------------------------------------------------------------------------------------


class _Bare:
    def __init__(self, sender: Worker, receiver: Worker) -> None:
        self._workers = (receiver, sender)

    def rate(self, messages: int) -> float:
        for worker in self._workers:
            worker.tell(messages=messages)
            worker.answer()
        for worker in self._workers:
            worker.tell(go=True)
        received, sent = answers(self._workers)
        seconds: float = received["ended"] - sent["started"]
        return messages * MAX_BODY_BYTES / seconds / 1e6


@contextlib.contextmanager
def _bare(collaboration: Collaboration) -> Iterator[_Bare]:
    logs = collaboration.logs
    with contextlib.ExitStack() as stack:
        relay = stack.enter_context(
            Worker(run_bare_relay, collaboration.coordinator, log=logs / "bare-relay.log")
        )
        address = relay.answer()["address"]
        ends = (
            stack.enter_context(
                Worker(run_bare_end, collaboration.home(home), address, role, log=logs / f"bare-{role}.log")
            )
            for role, home in _SEATS.items()
        )
        yield _Bare(*ends)


class BareRelay(relay_pb2_grpc.NodeServiceServicer):
    """Passes frames from the stream that opens as attempt 0 to the one that opens as attempt 1."""

    def __init__(self) -> None:
        """Begin with nothing under way."""
        self._queue: asyncio.Queue[bytes] = asyncio.Queue(_QUEUE)

    async def Data(self, _requests: object, context: Any) -> None:  # noqa: N802  # gRPC's name
        """Take in or give out frames."""
        import grpc

        first = await context.read()
        if first.open.attempt:
            while frame := await self._queue.get():
                await context.write(relay_pb2.DataResponse(frame=frame))
            return
        while (message := await context.read()) is not grpc.aio.EOF:
            await self._queue.put(message.frame)
        await self._queue.put(b"")


async def run_bare_relay(talk: Talk, home: str) -> None:
    """Run the bare relay with the certificate and key of a coordinator's home."""
    import grpc

    from coordinator.home import Home

    files = Home(Path(home))
    credentials = grpc.ssl_server_credentials(
        [(files.tls_key.read_bytes(), files.leaf.read_bytes())],
        files.authority_certificate.read_bytes(),
        require_client_auth=True,
    )
    server = grpc.aio.server(options=_OPTIONS)
    relay_pb2_grpc.add_NodeServiceServicer_to_server(BareRelay(), server)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    talk.say(address=f"127.0.0.1:{port}")
    await talk.hear()
    await server.stop(1)


async def run_bare_end(talk: Talk, home: str, address: str, role: str) -> None:
    """Run one end of the bare relay with the certificate and key of a node's home."""
    import grpc

    from node.home import Home, read_private

    files = Home(Path(home))
    credentials = grpc.ssl_channel_credentials(
        files.authority_pem.read_bytes(), read_private(files.tls_pem), files.leaf_pem.read_bytes()
    )
    async with grpc.aio.secure_channel(address, credentials, options=_OPTIONS) as channel:
        stub = relay_pb2_grpc.NodeServiceStub(channel)
        while (command := await talk.hear()) is not None:
            call = stub.Data()
            await call.write(relay_pb2.DataRequest(open=relay_pb2.Attempt(attempt=int(role == RECEIVER))))
            talk.say(ready=True)
            await talk.hear()
            started = time.monotonic()
            if role == SENDER:
                frame = os.urandom(_FRAME_BYTES)
                for _ in range(command["messages"]):
                    await call.write(relay_pb2.DataRequest(frame=frame))
                await call.done_writing()
                await call.code()
                ended = time.monotonic()
            else:
                ended = await _count(call, command["messages"])
            talk.say(started=started, ended=ended)


async def _count(call: AsyncIterator[Any], messages: int) -> float:
    taken = 0
    async for message in call:
        taken += len(message.frame) == _FRAME_BYTES
    if taken != messages:
        raise RuntimeError(f"{taken} frames of {messages} came")
    return time.monotonic()
