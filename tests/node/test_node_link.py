"""The real link: mutual TLS over gRPC against a small service in this process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from simulator import until
from tls_authority import Authority

from minshu.v1 import relay_pb2 as pb
from minshu.v1 import relay_pb2_grpc
from node import rpc
from node.link import Backoff, Credentials, GrpcLink
from node.logs import Log
from node.record import Recorder
from node.rpc import Attempt, Message
from protocols.errors import DecodeError, Unreachable
from protocols.ids import JobId, NodeName

JOB = JobId("sha256:" + "a" * 64)
ATTEMPT = Attempt(JOB, 1)


class Service(relay_pb2_grpc.NodeServiceServicer):
    """Answers hello with welcome, echoes frames back, and does as told."""

    def __init__(self) -> None:
        self.hellos: list[pb.Hello] = []
        self.heard: list[pb.ControlRequest] = []
        self.say: asyncio.Queue[pb.ControlResponse | None] = asyncio.Queue()
        self.refuse = False
        self.opened: list[pb.Attempt] = []

    async def Control(self, requests: Any, context: Any) -> None:
        if self.refuse:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "a path /home/x and more")
        first = await context.read()
        self.hellos.append(first.hello)
        await context.write(pb.ControlResponse(welcome=pb.Welcome(coordinator="c/c", roster=b"r")))

        async def listen() -> None:
            while (message := await context.read()) is not grpc.aio.EOF:
                self.heard.append(message)

        task = asyncio.create_task(listen())
        while (message := await self.say.get()) is not None:
            await context.write(message)
        task.cancel()

    async def Data(self, requests: Any, context: Any) -> None:
        first = await context.read()
        self.opened.append(first.open)
        while (message := await context.read()) is not grpc.aio.EOF:
            await context.write(pb.DataResponse(frame=message.frame))


@asynccontextmanager
async def serving(authority: Authority, service: Service, port: int = 0) -> AsyncIterator[int]:
    server = grpc.aio.server()
    relay_pb2_grpc.add_NodeServiceServicer_to_server(service, server)
    leaf, key = authority.leaf("coordinator")
    credentials = grpc.ssl_server_credentials([(key, leaf)], authority.pem, require_client_auth=True)
    port = server.add_secure_port(f"127.0.0.1:{port}", credentials)
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


class Ear:
    """What a link hands over."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    def hello(self) -> rpc.ControlRequest:
        return rpc.hello(NodeName("police.gz.example/node-a"), 3, b"catalogue", [ATTEMPT])

    async def take(self, message: Message) -> None:
        self.messages.append(message)


def link_to(port: int, credentials: Credentials, log: Log, recorder: Recorder | None = None) -> GrpcLink:
    return GrpcLink(
        f"127.0.0.1:{port}", credentials, Backoff(0.02, 0.1), draw=lambda: 0.5, log=log, recorder=recorder
    )


@asynccontextmanager
async def linked(link: GrpcLink, ear: Ear) -> AsyncIterator[None]:
    task = asyncio.create_task(link.run(ear.hello, ear.take))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "node.log", lambda: datetime.now(UTC))


def test_a_link_says_hello_carries_both_ways_and_comes_back(log: Log, tmp_path: Path) -> None:
    authority, service, ear = Authority(), Service(), Ear()

    async def play() -> None:
        recorder = Recorder(tmp_path / "recorded")
        async with serving(authority, service) as port:
            link = link_to(port, authority.credentials(), log, recorder)
            with pytest.raises(Unreachable):
                await link.send(rpc.answer(ATTEMPT, b"v"))
            async with linked(link, ear):
                await until(lambda: len(ear.messages) == 1)
                assert ear.messages[0] == rpc.Welcome(b"r")
                hello = service.hellos[0]
                assert (hello.version, hello.node, hello.roster_version) == (1, "police.gz.example/node-a", 3)
                assert [(a.job, a.attempt) for a in hello.live] == [(JOB, 1)]

                await link.send(rpc.answer(ATTEMPT, b"verdict"))
                await until(lambda: len(service.heard) == 1)
                assert service.heard[0].answer.verdict == b"verdict"

                admit = pb.Admit(attempt=pb.Attempt(job=JOB, attempt=1))
                service.say.put_nowait(pb.ControlResponse())  # an unknown kind: logged, nothing else
                service.say.put_nowait(pb.ControlResponse(admit=admit))
                await until(lambda: len(ear.messages) == 2)
                assert ear.messages[1] == rpc.Admit(ATTEMPT)

                stream = await link.open_data(ATTEMPT)
                big = b"f" * (1 << 20)
                for frame in (b"one", big):
                    await stream.send(frame)
                    assert await stream.receive() == frame
                await stream.finish()
                assert await stream.receive() is None
                stream.close()

                service.say.put_nowait(None)  # the coordinator ends the stream
                await until(lambda: len(service.hellos) == 2)
                link.drop()  # and so does the node
                await until(lambda: len(service.hellos) == 3)
        assert b"verdict" in (tmp_path / "recorded" / "control-up.bin").read_bytes()
        assert (tmp_path / "recorded" / "control-down.bin").exists()

    asyncio.run(play())
    assert "unknown-message" in (log.path or tmp_path).read_text()


def test_a_link_finds_a_coordinator_that_was_restarted(log: Log) -> None:
    authority, ear = Authority(), Ear()

    async def play() -> None:
        async with serving(authority, Service()) as port:
            link = link_to(port, authority.credentials(), log)
            task = asyncio.create_task(link.run(ear.hello, ear.take))
            await until(lambda: len(ear.messages) == 1)
            stream = await link.open_data(ATTEMPT)
            await stream.send(b"x")
            assert await stream.receive() == b"x"
        with pytest.raises(Unreachable):
            await stream.receive()
        second = Service()
        async with serving(authority, second, port):
            await until(lambda: len(ear.messages) == 2)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(play())


def logged(log: Log, code: str) -> bool:
    return log.path is not None and log.path.exists() and code in log.path.read_text()


def test_a_coordinator_of_another_authority_is_not_talked_to(log: Log) -> None:
    ours, theirs, service = Authority(), Authority(), Service()

    async def play() -> None:
        async with (
            serving(theirs, service) as port,
            linked(link_to(port, ours.credentials(), log), Ear()),
        ):
            await until(lambda: logged(log, "unreachable"))
        assert not service.hellos

    asyncio.run(play())


def test_a_node_that_is_not_accepted_says_so_and_keeps_trying(log: Log) -> None:
    authority, service, ear = Authority(), Service(), Ear()
    service.refuse = True

    async def play() -> None:
        async with (
            serving(authority, service) as port,
            linked(link_to(port, authority.credentials(), log), ear),
        ):
            await until(lambda: logged(log, "not-accepted"))
            service.refuse = False
            await until(lambda: bool(ear.messages))

    asyncio.run(play())
    assert not logged(log, "/home/x")


def test_waits_double_up_to_a_bound_and_are_jittered() -> None:
    backoff = Backoff(0.2, 5.0)
    assert [backoff.wait_s(n, 0.0) for n in (1, 2, 3, 4, 5, 6, 60)] == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert backoff.wait_s(1, 0.999) > 0.1


@pytest.mark.parametrize(
    "message",
    [
        pb.ControlResponse(),
        pb.ControlResponse(admit=pb.Admit()),
        pb.ControlResponse(admit=pb.Admit(attempt=pb.Attempt(job=JOB, attempt=0))),
        pb.ControlResponse(admit=pb.Admit(attempt=pb.Attempt(job=JOB.upper(), attempt=1))),
        pb.ControlResponse(start=pb.Start(attempt=pb.Attempt(job=JOB, attempt=1 << 21))),
        pb.ControlResponse(stop=pb.Stop(attempt=pb.Attempt(job=JOB, attempt=0), code="Not A Code")),
        pb.ControlResponse(stop=pb.Stop(attempt=pb.Attempt(job=JOB, attempt=0), code="c-11010519491231002")),
        pb.ControlResponse(stored=pb.ReleaseStored(release="../x")),
    ],
)
def test_a_message_that_does_not_have_its_form_is_refused(message: pb.ControlResponse) -> None:
    with pytest.raises(DecodeError):
        rpc.read_control(message)


def test_an_upload_is_cut_into_ordered_pieces() -> None:
    sealed = bytes(range(256)) * 8192 + b"rest"
    pieces = [m.upload for m in rpc.upload(ATTEMPT, "r" * 32, b"note", sealed)]
    assert [p.offset for p in pieces] == [0, 1 << 20, 2 << 20]
    assert [p.note for p in pieces] == [b"note", b"", b""]
    assert [p.last for p in pieces] == [False, False, True]
    assert b"".join(p.piece for p in pieces) == sealed
