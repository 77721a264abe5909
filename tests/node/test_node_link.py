"""The real link: mutual TLS over gRPC against a small service in this process."""

import asyncio
from collections.abc import AsyncIterator, Callable
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
from node.clock import Clock
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

    def __init__(self, welcome: pb.Welcome | None = None) -> None:
        self.welcome = welcome or pb.Welcome(coordinator="c/c", roster=b"r")
        self.hellos: list[pb.Hello] = []
        self.leaves: list[bytes] = []
        self.renewed: Callable[[bytes], bytes] | None = None
        self.controls = 0
        self.heard: list[pb.ControlRequest] = []
        self.say: asyncio.Queue[pb.ControlResponse | None] = asyncio.Queue()
        self.refuse = False
        self.opened: list[pb.Attempt] = []

    async def Control(self, requests: Any, context: Any) -> None:
        if self.refuse:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "a path /home/x and more")
        first = await context.read()
        self.hellos.append(first.hello)
        self.leaves += context.auth_context()["x509_pem_cert"]
        self.controls += 1
        try:
            await self.control(context)
        finally:
            self.controls -= 1

    async def control(self, context: Any) -> None:
        await context.write(pb.ControlResponse(welcome=self.welcome))

        async def listen() -> None:
            while (message := await context.read()) is not grpc.aio.EOF:
                self.heard.append(message)

        task = asyncio.create_task(listen())
        while (message := await self.say.get()) is not None:
            await context.write(message)
        task.cancel()

    async def Data(self, requests: Any, context: Any) -> None:
        first = await context.read()
        self.leaves += context.auth_context()["x509_pem_cert"]
        self.opened.append(first.open)
        while (message := await context.read()) is not grpc.aio.EOF:
            await context.write(pb.DataResponse(frame=message.frame))

    async def Renew(self, request: Any, context: Any) -> pb.RenewResponse:
        if self.renewed is None:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "too many, says /home/x",
                (("minshu-code", "too-many-renewals"),),
            )
        return pb.RenewResponse(certificate=self.renewed(request.csr))


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


def link_to(port: int, credentials: Credentials, log: Log, **more: Any) -> GrpcLink:
    backoff = Backoff(0.02, 0.1)
    return GrpcLink(f"127.0.0.1:{port}", credentials, backoff, draw=lambda: 0.5, log=log, **more)


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
            link = link_to(port, authority.credentials(), log, recorder=recorder)
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


# -- new credentials -----------------------------------------------------------------------------------------


def test_with_new_credentials_new_streams_use_a_new_channel_and_old_ones_go_on(log: Log) -> None:
    authority, service, ear = Authority(), Service(), Ear()
    old, new = authority.credentials(), authority.credentials()

    async def play() -> None:
        async with serving(authority, service) as port:
            link = link_to(port, old, log)
            assert not link.up
            async with linked(link, ear):
                await until(lambda: len(ear.messages) == 1)
                assert link.up
                first = await link.open_data(ATTEMPT)
                await first.send(b"before")
                assert await first.receive() == b"before"

                await link.adopt(new)
                await until(lambda: len(ear.messages) == 2)  # the agent sees another welcome, no more
                second = await link.open_data(ATTEMPT)
                for stream in (first, second):
                    await stream.send(b"after")
                    assert await stream.receive() == b"after"
                await until(lambda: service.controls == 1)
                await link.send(rpc.answer(ATTEMPT, b"verdict"))
                await until(lambda: len(service.heard) == 1)
                assert service.leaves == [old.leaf, old.leaf, new.leaf, new.leaf]

                # The old channel outlives its control stream and closes with its last data stream.
                [line] = link._retired.values()
                assert line.channel.get_state() is grpc.ChannelConnectivity.READY
                await first.finish()
                assert await first.receive() is None
                await until(lambda: not link._retired)
                assert line.channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN
                await second.send(b"still")
                assert await second.receive() == b"still"
            assert not link.up
            with pytest.raises(Unreachable):
                await link.open_data(ATTEMPT)

    asyncio.run(play())
    assert not (log.path or Path()).exists()  # nothing worth a line


def test_a_link_may_take_new_credentials_any_number_of_times(log: Log) -> None:
    authority, service, ear = Authority(), Service(), Ear()
    leaves = [authority.credentials() for _ in range(6)]

    async def play() -> None:
        async with serving(authority, service) as port, linked(link := link_to(port, leaves[0], log), ear):
            await until(lambda: link.up)
            streams = [await link.open_data(ATTEMPT)]
            for credentials in leaves[1:]:
                await link.adopt(credentials)
                streams.append(await link.open_data(ATTEMPT))
            for number, stream in enumerate(streams):
                await stream.send(bytes([number]))
                assert await stream.receive() == bytes([number])
            assert len(link._retired) == 5
            for stream in streams:
                stream.close()
            await until(lambda: not link._retired and service.controls == 1 and link.up)

    asyncio.run(play())


def test_what_a_hello_says_is_looked_up_only_when_the_old_stream_is_not_heard_any_more(log: Log) -> None:
    """Otherwise an attempt that begins in between is missing from it, and counts as lost."""
    authority, service = Authority(), Service()
    admit = pb.ControlResponse(admit=pb.Admit(attempt=pb.Attempt(job=JOB, attempt=1)))

    class Agent(Ear):
        def hello(self) -> rpc.ControlRequest:
            live = [m.attempt for m in self.messages if isinstance(m, rpc.Admit)]
            return rpc.hello(NodeName("police.gz.example/node-a"), 3, b"", live)

        async def take(self, message: Message) -> None:
            await asyncio.sleep(0.05)  # still at it when the link moves
            await super().take(message)

    async def play() -> None:
        ear = Agent()
        async with (
            serving(authority, service) as port,
            linked(link := link_to(port, authority.credentials(), log), ear),
        ):
            await until(lambda: len(ear.messages) == 1)
            service.say.put_nowait(admit)
            await until(service.say.empty)
            await asyncio.sleep(0.02)
            await link.adopt(authority.credentials())
            await until(lambda: len(service.hellos) == 2)
            await asyncio.sleep(0.1)
            admitted = [m for m in ear.messages if isinstance(m, rpc.Admit)]
            assert len(service.hellos[1].live) == len(admitted)

    asyncio.run(play())


@pytest.mark.parametrize("moment", ["connected", "dialling"])
def test_credentials_that_are_not_accepted_leave_the_link_as_it_was(
    log: Log, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.link.CALL_S", 0.5)
    authority, stranger, service, ear = Authority(), Authority(), Service(), Ear()
    leaf, key = stranger.leaf("node")

    async def play() -> None:
        async with serving(authority, service) as port:
            link = link_to(port, authority.credentials(), log)
            async with linked(link, ear):
                if moment == "connected":
                    await until(lambda: link.up)
                else:
                    await asyncio.sleep(0)
                with pytest.raises(Unreachable) as refused:
                    await link.adopt(Credentials(authority.pem, leaf, key))
                assert refused.value.code == "unreachable"
                await until(lambda: link.up)
                stream = await link.open_data(ATTEMPT)
                await stream.send(b"x")
                assert await stream.receive() == b"x"
                assert len(service.hellos) == 1

    asyncio.run(play())


def test_a_link_that_ends_while_it_takes_new_credentials_is_closed_whole(log: Log) -> None:
    authority, service = Authority(), Service()

    async def play() -> None:
        async with serving(authority, service) as port:
            link = link_to(port, authority.credentials(), log)
            async with linked(link, Ear()):
                await until(lambda: link.up)
                await link.open_data(ATTEMPT)
                await link.adopt(authority.credentials())
                late = asyncio.create_task(link.adopt(authority.credentials()))
                await asyncio.sleep(0)
            with pytest.raises(Unreachable):
                await late
            await until(lambda: service.controls == 0)
            assert not link._retired

    asyncio.run(play())


def test_before_it_runs_a_link_takes_new_credentials_for_its_first_dial(log: Log) -> None:
    authority, service, ear = Authority(), Service(), Ear()
    new = authority.credentials()

    async def play() -> None:
        async with serving(authority, service) as port:
            link = link_to(port, authority.credentials(), log)
            await link.adopt(new)
            async with linked(link, ear):
                await until(lambda: bool(ear.messages))
        assert service.leaves == [new.leaf]

    asyncio.run(play())


def test_a_renewal_goes_over_the_link_and_a_refusal_tells_its_code_alone(log: Log) -> None:
    authority, service = Authority(), Service()

    async def play() -> None:
        async with serving(authority, service) as port:
            link = link_to(port, authority.credentials(), log)
            with pytest.raises(Unreachable, match="closed"):
                await link.renew(b"csr")
            async with linked(link, Ear()):
                await until(lambda: link.up)
                with pytest.raises(Unreachable) as refused:
                    await link.renew(b"csr")
                assert refused.value.message == "the coordinator refuses: too-many-renewals"
                service.renewed = lambda csr: csr + b" certified"
                assert await link.renew(b"csr") == b"csr certified"

    asyncio.run(play())


# -- the coordinator's time ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("time", "trusted", "code"),
    [
        ("2026-11-22T08:04:59Z", True, ""),
        ("2026-11-22T10:03:00Z", False, ""),
        ("2025-11-22T08:00:00Z", False, ""),
        ("", True, ""),  # a coordinator that says nothing speaks against nothing
        ("yesterday", True, "bad-time"),
        ("2026-11-22T08:00:00+08:00", True, "bad-time"),
    ],
)
def test_every_welcome_is_held_against_the_clock(log: Log, time: str, trusted: bool, code: str) -> None:
    here = datetime(2026, 11, 22, 8, tzinfo=UTC)
    clock = Clock(lambda: here, lambda: 0.0)
    authority, service, ear = Authority(), Service(pb.Welcome(coordinator="c/c", time=time)), Ear()

    async def play() -> None:
        async with (
            serving(authority, service) as port,
            linked(link_to(port, authority.credentials(), log, clock=clock), ear),
        ):
            await until(lambda: bool(ear.messages) or logged(log, "bad-time"))

    asyncio.run(play())
    assert logged(log, code) == bool(code)
    assert (clock.trusted() is not None) == trusted


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
