"""A real coordinator on loopback, and nodes scripted on nothing but proto and protocols."""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from collaboration import NODES, POLICE, ROLE_OF, SEATS, SUITE, Collaboration, cosigner, pem, tls_key

from audit.note import VerifierKey
from audit.witness import MemoryStore, add_checkpoint
from coordinator import rpc
from coordinator.client.home import AnalystHome, connect
from coordinator.client.home import create as create_analyst
from coordinator.drafting import Card, draft
from coordinator.handout import Invite
from coordinator.home import Home, create
from coordinator.registry import Registry
from coordinator.service import Coordinator
from coordinator.store.sql import SqlStore
from minshu.v1 import audit_pb2, enrolment_pb2, enrolment_pb2_grpc, relay_pb2, relay_pb2_grpc
from protocols.channel.frame import Header
from protocols.envelope import decode_envelope
from protocols.ids import JobId, NodeName, Role
from protocols.wire import RosterCoordinator


class Loop:
    """One event loop in a thread; gRPC's own poller wants no more than one."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, step: Coroutine[Any, Any, Any], timeout_s: float = 20) -> Any:
        return asyncio.run_coroutine_threadsafe(step, self.loop).result(timeout_s)

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5)


def frame(attempt: Any, sender: str, to: str, size: int = 600, seq: int = 0) -> bytes:
    """A frame of `attempt` (job, attempt) as far as a relay can see: a true header before random bytes."""
    job, number = JobId(attempt.job), attempt.attempt
    header = Header(SUITE, job, number, bytes(32), Role(sender), Role(to), 1, seq, last=False, enc_len=0)
    raw = header.encode()
    return raw + os.urandom(size - len(raw))


def innermost(group: BaseException) -> Any:
    """The first error in nested groups."""
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group


async def until(condition: Callable[[], Any], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # what is waited for has no event of its own
            await asyncio.sleep(0.01)


@dataclass
class ScriptedNode:
    """A node as a script: it answers, admits, sends `frames` frames to the next seat, uploads and ends."""

    world: Collaboration
    name: NodeName
    address: str
    authority: bytes
    leaf: bytes
    key: bytes
    answer: str = "permit"
    says: dict[str, Any] = field(default_factory=dict)
    admits: dict[str, Any] = field(default_factory=dict)
    frames: int = 3
    frame_size: int = 600
    recipient: bytes = b""
    finishes: bool = True
    heard: list[Any] = field(default_factory=list)
    sent: list[bytes] = field(default_factory=list)
    received: list[bytes] = field(default_factory=list)
    live: list[Any] = field(default_factory=list)
    problem: Exception | None = None
    seen: MemoryStore = field(default_factory=MemoryStore)
    witness: dict[str, Any] = field(default_factory=dict)
    _task: "asyncio.Task[None] | None" = None
    _call: Any = None
    _writing: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        self.witness = {"add_checkpoint": self.cosign, "ask_head": self.say_head}

    @contextlib.asynccontextmanager
    async def stub(self):
        credentials = grpc.ssl_channel_credentials(self.authority, self.key, self.leaf)
        options = (("grpc.max_receive_message_length", 4 << 20), ("grpc.enable_http_proxy", 0))
        async with grpc.aio.secure_channel(self.address, credentials, options=options) as channel:
            yield relay_pb2_grpc.NodeServiceStub(channel)

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def say(self, **kind: Any) -> None:
        async with self._writing:  # grpc.aio allows one write at a time
            await self._call.write(relay_pb2.ControlRequest(**kind))

    def hello(self, **changes: Any) -> relay_pb2.ControlRequest:
        return relay_pb2.ControlRequest(
            hello=relay_pb2.Hello(
                **{
                    "version": 1,
                    "node": self.name,
                    "roster_version": 0,
                    "catalogue": self.world.catalogue(self.name),
                    "live": self.live,
                }
                | changes
            )
        )

    async def _run(self) -> None:
        try:
            async with self.stub() as stub:
                self._call = stub.Control()
                await self._call.write(self.hello())
                async with asyncio.TaskGroup() as group:
                    while (message := await self._call.read()) is not grpc.aio.EOF:
                        self.heard.append(message)
                        group.create_task(self._react(stub, message))
        except* grpc.aio.AioRpcError as broken:
            self.problem = rpc.error_of(innermost(broken))
        except* (ConnectionError, asyncio.InvalidStateError) as broken:
            self.problem = innermost(broken)

    async def _react(self, stub: Any, message: Any) -> None:
        kind = message.WhichOneof("kind")
        attempt = getattr(getattr(message, kind), "attempt", None)
        if kind == "offer" and self.answer:
            verdict = self.world.verdict(self.name, attempt.job, attempt.attempt, self.answer, **self.says)
            await self.say(answer=relay_pb2.Answer(attempt=attempt, verdict=verdict))
        elif kind == "explain" and self.answer:
            job = decode_envelope(message.explain.request).payload_digest
            verdict = self.world.verdict(self.name, job, 0, self.answer, **self.says)
            await self.say(explained=relay_pb2.Explained(id=message.explain.id, verdict=verdict))
        elif kind == "admit":
            self.live.append(attempt)
            admission = self.world.admission(self.name, attempt.job, attempt.attempt, **self.admits)
            await self.say(admitted=relay_pb2.Admitted(attempt=attempt, admission=admission))
        elif kind == "letter":
            await self.reply(message.letter)
        elif kind == "start":
            await self.exchange(stub, attempt)
            if self.finishes:
                await self.finish(attempt)

    async def reply(self, letter: Any) -> None:
        """Answer as a witness does, see `cosign` and `say_head`."""
        body = letter.WhichOneof("body")
        if body not in self.witness:
            return
        answer = self.witness[body](getattr(letter, body))
        if answer is not None:
            await self.say(letter=audit_pb2.Letter(id=letter.id, to=getattr(letter, "from"), **answer))

    def cosign(self, asked: Any) -> dict[str, Any]:
        """Cosign a checkpoint of the coordinator's log, or refuse to, as C2SP tlog-witness says."""
        keys = [VerifierKey.parse(self.world.coordinator.journal_vkey)]
        answer = add_checkpoint(
            asked.body,
            known=lambda origin: keys if origin == keys[0].name else (),
            store=self.seen,
            sign=lambda text: cosigner(self.name).sign(text, int(self.world.now().timestamp())),
        )
        return {"cosigned": audit_pb2.Cosigned(status=answer.status, body=answer.body)}

    def say_head(self, asked: Any) -> dict[str, Any]:
        """Hand over what was seen last of a log."""
        return {"head": self.world.head(self.name, asked.nonce, asked.log, self.seen.get(asked.log) or b"")}

    async def exchange(self, stub: Any, attempt: Any) -> None:
        """Send to the next seat, take what comes from the one before, close, wait for the stream's end."""
        me = ROLE_OF[self.name]
        seats = list(SEATS)
        to = seats[(seats.index(me) + 1) % len(seats)]
        call = stub.Data()
        await call.write(relay_pb2.DataRequest(open=attempt))

        async def send() -> None:
            for seq in range(self.frames):
                one = frame(attempt, me, to, self.frame_size, seq)
                self.sent.append(one)
                await call.write(relay_pb2.DataRequest(frame=one))

        async with asyncio.TaskGroup() as both:
            both.create_task(send())
            for number in range(self.frames):
                message = await call.read()
                if message is grpc.aio.EOF:
                    raise ConnectionError(f"the stream ended after {number} frames")
                self.received.append(message.frame)
                step = relay_pb2.RunProgress(
                    attempt=attempt, phase="exchange", done=number + 1, total=self.frames
                )
                await self.say(progress=step)
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK

    async def finish(self, attempt: Any) -> None:
        if self.name == POLICE:
            await self.upload(attempt)
        await self.say(ended=relay_pb2.RunEnded(attempt=attempt, state="DONE"))
        self.live = [one for one in self.live if one.job != attempt.job]

    async def upload(self, attempt: Any, piece_bytes: int = 700, **changes: Any) -> None:
        """The street table in several pieces."""
        note, sealed, release = self.world.release(
            attempt.job, attempt.attempt, public=self.recipient or None, **changes
        )
        for offset in range(0, len(sealed), piece_bytes):
            piece = sealed[offset : offset + piece_bytes]
            await self.say(
                upload=relay_pb2.ReleaseUpload(
                    attempt=attempt,
                    note=b"" if offset else note,
                    release=release,
                    offset=offset,
                    piece=piece,
                    last=offset + len(piece) == len(sealed),
                )
            )

    def got(self, kind: str) -> list[Any]:
        return [getattr(message, kind) for message in self.heard if message.WhichOneof("kind") == kind]


class LiveBureau:
    """A coordinator in a home, its nodes enrolled, an analyst connected; call from outside the loop."""

    def __init__(self, folder: Path, loop: Loop, **config: Any) -> None:
        self.loop = loop
        self.world = Collaboration(lambda: datetime.now(UTC))
        self.home = create(
            folder / "coordinator",
            name="bureau.gz.example/coordinator",
            collaboration="gz.example",
            roots=[one.public_key for one in self.world.roots_signers],
            threshold=2,
            suite=SUITE,
            now=self.world.now(),
        )
        self.world.coordinator = RosterCoordinator(self.home.config.name, self.home.journal_vkey)
        self.configure(**config)
        self.card = create_analyst(
            folder / "analyst", name="li", organisation="bureau.gz.example", suite=SUITE
        )
        self.analyst = AnalystHome(folder / "analyst")
        self.nodes: dict[NodeName, ScriptedNode] = {}
        self.boot()
        self.enrol_all()
        self.roster = self.publish()
        connect(self.analyst, self.invite(), self.world.roots.fingerprint)
        self.analyst = AnalystHome(folder / "analyst")

    def configure(self, **config: Any) -> None:
        path = self.home.path / "coordinator.toml"
        lines = path.read_text().splitlines()
        path.write_text(
            "\n".join(
                f"{name} = {config[name]!r}".replace("'", '"')
                if (name := line.partition(" =")[0]) in config
                else line
                for line in lines
            )
        )
        self.home = Home(self.home.path)

    def boot(self) -> None:
        self.coordinator = Coordinator(self.home)
        self.loop.run(self.coordinator.start())

    def halt(self) -> None:
        self.loop.run(self.coordinator.stop())

    def restart(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Stop and start on the same ports, so that nodes and analysts find it again."""
        public, nodes = self.coordinator.public_address, self.coordinator.nodes_address
        self.halt()
        meanwhile()
        self.configure(public_address=public, nodes_address=nodes)
        self.boot()

    def invite(self) -> str:
        authority = self.home.authority().pem.decode()
        return Invite(self.coordinator.public_address, authority, self.world.roots).encode()

    def enrol_all(self) -> None:
        for number, name in enumerate(NODES):
            secret = bytes([number]) * 16
            self.coordinator.registry.new_token(name, secret)
            answer = self.loop.run(self.enrol(*self.world.enrolment(name, secret)))
            self.nodes[name] = ScriptedNode(
                self.world,
                name,
                answer.address,
                answer.authority,
                answer.certificate,
                pem(tls_key(name)),
                recipient=self.card.recipient_key,
            )

    async def enrol(self, request: bytes, mac: bytes) -> Any:
        credentials = grpc.ssl_channel_credentials(self.home.authority().pem)
        async with grpc.aio.secure_channel(self.coordinator.public_address, credentials) as channel:
            stub = enrolment_pb2_grpc.EnrolmentServiceStub(channel)
            return await stub.Enrol(enrolment_pb2.EnrolRequest(request=request, mac=mac), timeout=10)

    def publish(self, *, signatures: int = 2, **changes: Any) -> Any:
        """Draft, sign and publish as the operator's commands do, beside the running coordinator."""
        store = SqlStore(self.home.database)
        registry = Registry(store, self.home.roots(), SUITE, self.world.now)
        roster = draft(
            registry.roster,
            **{
                "collaboration": "gz.example",
                "suite": SUITE,
                "enrolments": store.enrolments(),
                "cards": [Card.decode(self.card.encode())],
                "titles": {},
                "without": (),
                "days": 90,
                "now": self.world.now(),
                "coordinator": self.world.coordinator,
            }
            | changes,
        )
        registry.publish(self.world.signed(roster, signatures))
        store.close()
        self.until(lambda: self.coordinator.registry.roster == roster)
        return roster

    def start(self, *names: NodeName) -> None:
        for name in names or NODES:
            self.nodes[name].heard.clear()
            self.loop.run(self.nodes[name].start())
        self.until(lambda: all(self.nodes[name].got("welcome") for name in names or NODES))

    def stop_nodes(self) -> None:
        for node in self.nodes.values():
            self.loop.run(node.stop())

    def until(self, condition: Any, seconds: float = 10) -> None:
        self.loop.run(until(condition, seconds), seconds + 5)

    def close(self) -> None:
        self.stop_nodes()
        self.halt()
