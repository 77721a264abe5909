"""The coordinator's two ports: analysts and enrolment over TLS, nodes over mutual TLS.

Every link is TLS 1.3 with the hybrid key exchange X25519MLKEM768, looked at on every call. A handler checks
who is there, hands what was said to registry and scheduler, and turns their errors into statuses; it holds
no state of its own.
"""

import asyncio
import hashlib
import hmac
import json
import logging
import os
import sqlite3
import threading
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import grpc
import grpc.aio

from coordinator import rpc
from coordinator.authority import Authority, Renewals, load_tls_key, peer_of, private_pem
from coordinator.calls import Calls, Context, answers, first_message
from coordinator.config import Config
from coordinator.files import replace_file
from coordinator.home import Home
from coordinator.letters import Letters
from coordinator.receipts import Receipts
from coordinator.registry import Registry
from coordinator.relay import Relay
from coordinator.releases import Releases, Upload
from coordinator.scheduler import Scheduler
from coordinator.store import DueEntry, Entry, Store
from coordinator.witnessing import Witnessing
from minshu.v1 import enrolment_pb2, enrolment_pb2_grpc, jobs_pb2, jobs_pb2_grpc, relay_pb2, relay_pb2_grpc
from protocols.channel.frame import MAX_FRAME_BYTES
from protocols.encoding import canonical_json, sha256_digest
from protocols.errors import (
    DecodeError,
    InputError,
    MinshuError,
    ProtocolAborted,
    Refused,
    SignatureInvalid,
    StateConflict,
    Unreachable,
)
from protocols.ids import Digest, JobId, NodeName
from protocols.wire import ReleaseNote, RosterAnalyst, organisation_of

MAX_PUBLIC_MESSAGE: Final = 640 << 10
"""Bytes of one message on the public port: a job envelope of 512 KiB and its frame."""

MAX_NODES_MESSAGE: Final = MAX_FRAME_BYTES + (128 << 10)
"""Bytes of one message on the nodes' port: a sealed frame, or a release piece of 1 MiB with its note."""

MAX_CALLS: Final = 1024
"""Calls that are open on the public port at once; an address has at most an eighth of them."""

MAX_NODES_CALLS: Final = 4096
"""The same of the nodes' port, where an address is a member's or the network's that members share."""

TICK_S: Final = 0.2
CLEAN_S: Final = 60.0
STOP_GRACE_S: Final = 1.0

_MAX_QUEUED: Final = 4096
_MAX_QUEUED_BYTES: Final = 64 << 20
_MAX_POSTED_BYTES: Final = 512 << 10
"""Bytes of one sender's letters that wait for one node; a letter has at least 32."""

_MAX_WATCHES: Final = 32
_MAX_QUESTIONS: Final = 4
_KEY_EXCHANGE: Final = b"X25519MLKEM768"
_TLS: Final = b"TLSv1.3"

_RECORDED_SCHEMA: Final = """CREATE TABLE IF NOT EXISTS recorded_entry (
    id INTEGER NOT NULL, sha256 BLOB NOT NULL, PRIMARY KEY (id, sha256)) WITHOUT ROWID"""
"""In the journal's database: due entries that the journal has, as far as the store may not know it yet."""

_OPTIONS: Final = (
    ("grpc.so_reuseport", 0),
    ("grpc.server_handshake_timeout_ms", 3000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 2),
    ("grpc.max_metadata_size", 16 << 10),
)
_log = logging.getLogger("minshu.coordinator")


def check_link(context: Context) -> Mapping[str, Any]:
    """Return the connection's facts after checking that it is what it has to be.

    Raises:
        SignatureInvalid: not TLS 1.3, or not the hybrid key exchange.
    """
    facts = context.auth_context()
    for key, expected in (("ssl_tls_version", _TLS), ("ssl_negotiated_key_exchange_group", _KEY_EXCHANGE)):
        if list(facts.get(key, ())) != [expected]:
            raise SignatureInvalid(
                f"the connection does not use {expected.decode()}",
                code="weak-link",
                hint="dial with a TLS library that offers TLS 1.3 and X25519MLKEM768, such as grpcio 1.80",
            )
    return facts


class BureauService(jobs_pb2_grpc.BureauServiceServicer):
    """What analysts call. Each request is signed, or what it hands in is: a job, a question, an outcome."""

    def __init__(self, scheduler: Scheduler, registry: Registry, store: Store, releases: Releases) -> None:
        """Serve from these."""
        self._scheduler = scheduler
        self._registry = registry
        self._store = store
        self._releases = releases
        self._open: dict[tuple[str, str], int] = {}

    @answers
    async def Submit(self, request: jobs_pb2.SubmitRequest, context: Context) -> jobs_pb2.SubmitResponse:  # noqa: N802  # gRPC's name
        """Take in a job."""
        check_link(context)
        return jobs_pb2.SubmitResponse(job=self._scheduler.submit(request.job))

    @answers
    async def Watch(self, request: jobs_pb2.WatchRequest, context: Context) -> None:  # noqa: N802  # gRPC's name
        """Stream a job's view until it has ended."""
        analyst, job = self._asked("Watch", request.request, context)
        with self._at_once(analyst, "watches", _MAX_WATCHES):
            async for view in self._scheduler.views(JobId(job), analyst):
                await context.write(jobs_pb2.WatchResponse(view=view))

    @answers
    async def Show(self, request: jobs_pb2.ShowRequest, context: Context) -> jobs_pb2.ShowResponse:  # noqa: N802  # gRPC's name
        """Return a job's view."""
        analyst, job = self._asked("Show", request.request, context)
        return jobs_pb2.ShowResponse(view=self._scheduler.view(JobId(job), analyst))

    @answers
    async def List(self, request: jobs_pb2.ListRequest, context: Context) -> jobs_pb2.ListResponse:  # noqa: N802  # gRPC's name
        """Return the newest jobs."""
        analyst, _ = self._asked("List", request.request, context)
        return jobs_pb2.ListResponse(views=self._scheduler.views_of(analyst))

    @answers
    async def Fetch(self, request: jobs_pb2.FetchRequest, context: Context) -> None:  # noqa: N802  # gRPC's name
        """Stream a sealed release."""
        analyst, name = self._asked("Fetch", request.request, context)
        release = self._scheduler.release_for(name, analyst)
        note = release.note
        for piece in self._releases.pieces(name):
            await context.write(jobs_pb2.FetchResponse(note=note, piece=piece))
            note = b""

    @answers
    async def Cancel(self, request: jobs_pb2.CancelRequest, context: Context) -> jobs_pb2.CancelResponse:  # noqa: N802  # gRPC's name
        """Stop a job."""
        analyst, job = self._asked("Cancel", request.request, context)
        self._scheduler.cancel(JobId(job), analyst)
        return jobs_pb2.CancelResponse(view=self._scheduler.view(JobId(job), analyst))

    @answers
    async def Catalogue(  # noqa: N802  # gRPC's name
        self, request: jobs_pb2.CatalogueRequest, context: Context
    ) -> jobs_pb2.CatalogueResponse:
        """Return the members' catalogues."""
        self._asked("Catalogue", request.request, context)
        return jobs_pb2.CatalogueResponse(catalogues=self._registry.catalogues())

    @answers
    async def Roster(self, request: jobs_pb2.RosterRequest, context: Context) -> jobs_pb2.RosterResponse:  # noqa: N802  # gRPC's name
        """Return the newest roster, what confirms it, and the rosters that lead to it."""
        _, version = self._asked("Roster", request.request, context)
        return jobs_pb2.RosterResponse(
            roster=self._registry.roster_envelope,
            freshness=self._registry.freshness_envelope,
            between=self._registry.between(int(version or 0)),
        )

    @answers
    async def Explain(self, request: jobs_pb2.ExplainRequest, context: Context) -> None:  # noqa: N802  # gRPC's name
        """Stream what the nodes of a job would answer."""
        check_link(context)
        spec, analyst = self._registry.question(request.question)
        with self._at_once(analyst, "questions", _MAX_QUESTIONS):
            async with aclosing(self._scheduler.explain(spec, request.question)) as answers:
                async for node, verdict, code in answers:
                    await context.write(jobs_pb2.ExplainResponse(node=node, verdict=verdict, code=code))

    @answers
    async def File(self, request: jobs_pb2.FileRequest, context: Context) -> jobs_pb2.FileResponse:  # noqa: N802  # gRPC's name
        """Take in an outcome."""
        check_link(context)
        outcome, analyst = self._registry.outcome(request.outcome)
        self._scheduler.file(outcome, analyst, request.outcome)
        return jobs_pb2.FileResponse(view=self._scheduler.view(outcome.job, analyst))

    @answers
    async def Usage(self, request: jobs_pb2.UsageRequest, context: Context) -> jobs_pb2.UsageResponse:  # noqa: N802  # gRPC's name
        """Return what the requester's organisation has asked and spent."""
        analyst, _ = self._asked("Usage", request.request, context)
        return jobs_pb2.UsageResponse(rows=[rpc.usage_row(row) for row in self._scheduler.usage(analyst)])

    def _asked(self, method: str, envelope: bytes, context: Context) -> tuple[RosterAnalyst, str]:
        check_link(context)
        analyst, request = self._registry.request(method, envelope)
        return analyst, request.subject

    @contextmanager
    def _at_once(self, analyst: RosterAnalyst, what: str, limit: int) -> Iterator[None]:
        """Count a call that lasts; each analyst may have so many of a kind open."""
        key = analyst.name, what
        count = self._open.get(key, 0)
        if count >= limit:
            raise Refused(
                f"{count} {what} are open for this analyst, no more are given",
                code=f"too-many-{what}",
                hint="wait until one of them has ended",
            )
        self._open[key] = count + 1
        try:
            yield
        finally:
            self._open[key] -= 1


class EnrolmentService(enrolment_pb2_grpc.EnrolmentServiceServicer):
    """How a node gets its TLS leaf."""

    def __init__(self, registry: Registry, authority: Authority, nodes_address: Callable[[], str]) -> None:
        """Serve from these; the nodes' address is known once its port is."""
        self._registry = registry
        self._authority = authority
        self._nodes_address = nodes_address

    @answers
    async def Enrol(  # noqa: N802  # gRPC's name
        self, request: enrolment_pb2.EnrolRequest, context: Context
    ) -> enrolment_pb2.EnrolResponse:
        """Take in a node's keys."""
        check_link(context)
        leaf = self._registry.enrol(request.request, request.mac, self._authority)
        return enrolment_pb2.EnrolResponse(
            certificate=leaf,
            authority=self._authority.pem,
            address=self._nodes_address(),
            roots=self._registry.roots.encode(),
        )


class ControlSession:
    """One control stream: a bounded queue down, and a way to end it."""

    def __init__(self, spki: Digest) -> None:
        """Begin with an empty queue."""
        self.spki = spki
        self._queue: deque[relay_pb2.ControlResponse] = deque()
        self._bytes = 0
        self._letters: deque[tuple[NodeName, relay_pb2.ControlResponse]] = deque()
        self._posted: Counter[NodeName] = Counter()
        self._wake = asyncio.Event()
        self._error: MinshuError | None = None

    def send(self, message: relay_pb2.ControlResponse) -> None:
        """Queue a message; a node that does not read is cut off, and told all of it again when it is back."""
        self._bytes += message.ByteSize()
        self._queue.append(message)
        if len(self._queue) > _MAX_QUEUED or self._bytes > _MAX_QUEUED_BYTES:
            self.close(Unreachable("the node does not read its control stream", code="slow-node"))
        self._wake.set()

    def post(self, message: relay_pb2.ControlResponse, sender: NodeName) -> None:
        """Queue a letter behind all other messages.

        Each sender has a share of its own, so that none can take the others' or have the node cut off.
        """
        size = message.ByteSize()
        if self._error is not None or self._posted[sender] + size > _MAX_POSTED_BYTES:
            return
        self._posted[sender] += size
        self._letters.append((sender, message))
        self._wake.set()

    def close(self, error: MinshuError) -> None:
        """End the stream with `error`."""
        self._error = self._error or error
        self._queue.clear()
        self._letters.clear()
        self._wake.set()

    def _next(self) -> relay_pb2.ControlResponse | None:
        if self._queue:
            message = self._queue.popleft()
            self._bytes -= message.ByteSize()
            return message
        if not self._letters:
            return None
        sender, message = self._letters.popleft()
        self._posted[sender] -= message.ByteSize()
        return message

    async def pump(self, context: Context) -> None:
        """Write what is queued until the stream is closed.

        Raises:
            MinshuError: what it was closed with.
        """
        while True:
            while self._error is None and (message := self._next()) is not None:
                await context.write(message)
            if self._error is not None:
                raise self._error
            self._wake.clear()
            await self._wake.wait()


class _Intake:
    """The releases that come up one control stream, one after the other."""

    def __init__(self, node: NodeName, scheduler: Scheduler, releases: Releases) -> None:
        self._node = node
        self._scheduler = scheduler
        self._releases = releases
        self._upload: Upload | None = None
        self._note: tuple[ReleaseNote, bytes] | None = None

    async def take(self, piece: rpc.Piece) -> None:
        """Take one piece; a release that does not hold fails its run, or is told to be unwanted.

        Raises:
            Unreachable: the disk failed; the node sends the release again over its next stream.
        """
        try:
            await self._take(piece)
        except StateConflict as error:
            self.drop()
            self._scheduler.stop_upload(self._node, piece.attempt, error)
        except MinshuError as error:
            self.drop()
            self._scheduler.failed(self._node, piece.attempt, error)
        except OSError as error:
            raise Unreachable(
                f"the coordinator cannot store a release ({error.strerror})", code="storage-failed"
            ) from None

    async def _take(self, piece: rpc.Piece) -> None:
        if piece.note:
            note = self._scheduler.expect_release(self._node, piece)
            self.drop()
            self._note = note, piece.note
            self._upload = self._releases.upload(note.release, note.sha256)
        if self._upload is None or self._note is None or self._upload.release != piece.release:
            raise ProtocolAborted("a release's piece came without its first one", code="upload-out-of-order")
        # Disk work waits in a thread: other nodes' streams go on meanwhile.
        await asyncio.to_thread(self._upload.write, piece.offset, piece.data)
        if piece.last:
            size = await asyncio.to_thread(self._upload.finish)
            self._scheduler.release_stored(self._node, *self._note, size)
            self.drop()

    def drop(self) -> None:
        """Forget a release that is not whole."""
        if self._upload is not None:
            self._upload.abandon()
        self._upload = self._note = None


class NodeService(relay_pb2_grpc.NodeServiceServicer):
    """What nodes call."""

    def __init__(
        self,
        scheduler: Scheduler,
        registry: Registry,
        *,
        relay: Relay,
        releases: Releases,
        renewals: Renewals,
        letters: Letters,
        connected: Callable[[NodeName], None],
    ) -> None:
        """Serve from these; `connected` is told who has come."""
        self._scheduler = scheduler
        self._registry = registry
        self._relay = relay
        self._releases = releases
        self._renewals = renewals
        self._letters = letters
        self._connected = connected
        self._data_streams: dict[asyncio.Future[None], tuple[NodeName, Digest]] = {}
        self._roster = registry.roster_envelope

    def roster_changed(self) -> None:
        """Where a newer roster is in force: end the data streams it no longer carries.

        The scheduler ends the control streams. Call this first: what it ends says why, and not only that the
        attempt is over.
        """
        if self._registry.roster_envelope == self._roster:
            return
        self._roster = self._registry.roster_envelope
        for revoked, peer in self._data_streams.items():
            try:
                self._registry.check_peer(*peer)
            except SignatureInvalid as error:
                if not revoked.done():
                    revoked.set_exception(error)

    def peer(self, context: Context) -> tuple[NodeName, Digest]:
        """Return the member whose TLS key a connection proved, and that key.

        Raises:
            SignatureInvalid: a weak link, or nobody whom the roster lists with this key.
        """
        facts = check_link(context)
        certificate = next(iter(facts.get("x509_pem_cert", ())), b"")
        name, spki = peer_of(certificate)
        return self._registry.check_peer(name, spki), spki

    async def _opened(self, context: Context) -> tuple[NodeName, Digest, Any]:
        """Return who opened a stream, and the stream's first message."""
        node, spki = self.peer(context)
        first = await first_message(context)
        # A newer roster may have come while the message was waited for.
        return self._registry.check_peer(node, spki), spki, first

    @answers
    async def Control(self, _requests: object, context: Context) -> None:  # noqa: N802  # gRPC's name
        """Serve a node's control stream."""
        node, spki, first = await self._opened(context)
        hello = rpc.read_control(first)
        if not isinstance(hello, rpc.Hello):
            raise DecodeError("a control stream begins with hello", code="unexpected-message")
        if not hmac.compare_digest(hello.node.encode(), node.encode()):
            raise SignatureInvalid("hello names another node than the TLS key", code="wrong-node")
        session = ControlSession(spki)
        try:
            self._scheduler.connected(node, session, hello)
            self._connected(node)
            await _either(session.pump(context), self._listen(node, context))
        finally:
            self._scheduler.disconnected(node, session)

    async def _listen(self, node: NodeName, context: Context) -> None:
        intake = _Intake(node, self._scheduler, self._releases)
        try:
            while (raw := await context.read()) is not grpc.aio.EOF:
                message = rpc.read_control(raw)
                if isinstance(message, rpc.Piece):
                    await intake.take(message)
                elif isinstance(message, rpc.Letter):
                    await self._letters.take(node, message)
                else:
                    self._scheduler.heard(node, message)
        finally:
            intake.drop()

    @answers
    async def Data(self, _requests: object, context: Context) -> None:  # noqa: N802  # gRPC's name
        """Relay an attempt's frames from and to a node."""
        node, spki, first = await self._opened(context)
        if first.WhichOneof("kind") != "open":
            raise DecodeError("a data stream begins with open", code="unexpected-message")
        attempt = rpc.read_attempt(first.open)
        exchange = self._relay.exchange(attempt.job, attempt.number)
        exchange.join(node)

        async def up() -> None:
            while (message := await context.read()) is not grpc.aio.EOF:
                if message.WhichOneof("kind") != "frame":
                    raise DecodeError("a data stream carries frames", code="unexpected-message")
                await exchange.put(node, message.frame)
            exchange.sent_all(node)
            # The node's half is over; `down` delivers what still waits for it and ends the call.
            await asyncio.Event().wait()

        async def down() -> None:
            async for frame in exchange.frames(node):
                await context.write(relay_pb2.DataResponse(frame=frame))

        revoked: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._data_streams[revoked] = node, spki
        try:
            await _either(revoked, up(), down())
        finally:
            del self._data_streams[revoked]
            exchange.leave(node)

    @answers
    async def Renew(  # noqa: N802  # gRPC's name
        self, request: relay_pb2.RenewRequest, context: Context
    ) -> relay_pb2.RenewResponse:
        """Give the caller a new leaf for the key that this connection proved."""
        node, spki = self.peer(context)
        leaf = self._renewals.leaf(node, spki, request.csr)
        _log.info("node %s: certificate renewed", node)
        return relay_pb2.RenewResponse(certificate=leaf)


async def _either(*parts: Awaitable[None]) -> None:
    """Run the parts together until the first one ends, then end the others; the first one's error counts."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for task, result in zip(tasks, results, strict=True):
        if task in done and isinstance(result, BaseException) and not isinstance(result, grpc.RpcError):
            # A broken connection needs no answer; everything else does.
            raise result


class Coordinator:
    """The whole program over one home: `start`, `stop`."""

    def __init__(self, home: Home, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        """Read the home; nothing listens yet.

        Raises:
            MinshuError: the home is incomplete or in use.
        """
        from audit.log import Journal
        from coordinator.store.sql import SqlStore

        self.home = home
        self.config: Config = home.config
        self._now = now
        self._authority = home.authority()
        signer = home.signer()
        self._journal: Journal = Journal.open(
            home.journal,
            database=home.journal_database,
            origin=self.home.journal_origin,
            signer=signer.sign,
            public_key=signer.public_key,
            now=now,
        )
        self.store: Store = SqlStore(home.database)
        self.registry = Registry(self.store, home.roots(), self.config.suite, now)
        self.relay = Relay(max_frames=self.config.relay_frames, max_bytes=self.config.relay_bytes)
        self.releases = Releases(home.releases, self.config.max_release_bytes)
        self.releases.clear(self.store.all_releases())
        self.scheduler = Scheduler(
            name=self.config.name,
            store=self.store,
            registry=self.registry,
            relay=self.relay,
            limits=self.config.limits,
            grace_s=self.config.grace_s,
            max_live_jobs=self.config.max_live_jobs,
            now=now,
            delete_bytes=self.releases.delete,
        )
        self.letters = Letters(
            self.config.name, self.scheduler.session, Receipts(self.registry, self.store).take
        )
        self.witnessing = Witnessing(
            self._journal,
            self.registry,
            self.letters,
            own=organisation_of(self.config.name),
            now=now,
            rolled_back=self._fail,
        )
        self._nodes = NodeService(
            self.scheduler,
            self.registry,
            relay=self.relay,
            releases=self.releases,
            renewals=Renewals(self._authority, now),
            letters=self.letters,
            connected=self.witnessing.connected,
        )
        self._servers: list[grpc.aio.Server] = []
        self._tasks: list[asyncio.Task[None]] = []
        self.error: StateConflict | None = None
        self.failed = asyncio.Event()
        self.public_address = ""
        self.nodes_address = ""

    async def start(self) -> None:
        """Listen on both ports, then publish their addresses in the home.

        Raises:
            InputError: a port cannot be listened on.
        """
        self.record_due()
        self._carry_over()
        self.scheduler.restore()
        public = grpc.aio.server(
            options=(*_OPTIONS, ("grpc.max_receive_message_length", MAX_PUBLIC_MESSAGE)),
            interceptors=(Calls(check_link, MAX_CALLS // 8),),
            maximum_concurrent_rpcs=MAX_CALLS,
        )
        nodes = grpc.aio.server(
            options=(
                *_OPTIONS,
                ("grpc.max_receive_message_length", MAX_NODES_MESSAGE),
                # A Start carries everybody's admissions.
                ("grpc.max_send_message_length", 4 << 20),
                ("grpc.max_concurrent_streams", 256),
            ),
            interceptors=(Calls(self._nodes.peer, MAX_NODES_CALLS // 8),),
            maximum_concurrent_rpcs=MAX_NODES_CALLS,
        )
        jobs_pb2_grpc.add_BureauServiceServicer_to_server(
            BureauService(self.scheduler, self.registry, self.store, self.releases), public
        )
        enrolment_pb2_grpc.add_EnrolmentServiceServicer_to_server(
            EnrolmentService(self.registry, self._authority, lambda: self.nodes_address),
            public,
        )
        relay_pb2_grpc.add_NodeServiceServicer_to_server(self._nodes, nodes)
        leaves = _Leaves(self.home, self.config, self._authority, self._now)
        self.public_address = _listen(public, self.config.public_address, self.config.host, leaves, None)
        self.nodes_address = _listen(
            nodes, self.config.nodes_address, self.config.host, leaves, self._authority.pem
        )
        self._servers = [public, nodes]
        for server in self._servers:
            await server.start()
        self._tasks = [asyncio.create_task(self._keep_house()), asyncio.create_task(self.witnessing.run())]
        addresses = {"public": self.public_address, "nodes": self.nodes_address, "pid": os.getpid()}
        replace_file(self.home.addresses, json.dumps(addresses, indent=2).encode() + b"\n")
        _log.info("listening: public %s, nodes %s", self.public_address, self.nodes_address)

    async def stop(self) -> None:
        """Stop listening, write the journal's last entries, let go of the home."""
        self.home.addresses.unlink(missing_ok=True)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.scheduler.shut_down()
        await asyncio.gather(*(server.stop(STOP_GRACE_S) for server in self._servers))
        self.close()

    def _fail(self, error: StateConflict) -> None:
        """End the program with `error`: whoever runs it waits for `failed`."""
        self.error = self.error or error
        self.failed.set()

    def close(self) -> None:
        """Write the journal's last entries, unless it proved to be the wrong one; let go of the home."""
        if self.error is None:
            self.record_due()
        self.store.close()
        self._journal.close()

    async def _keep_house(self) -> None:
        cleaned = -CLEAN_S
        clock = asyncio.get_running_loop().time
        while True:
            try:
                self.registry.refresh()
                self._nodes.roster_changed()
                self.scheduler.roster_changed()
                self.witnessing.roster_changed()
                self.scheduler.tick()
                if clock() - cleaned >= CLEAN_S:
                    cleaned = clock()
                    self.scheduler.clean()
                if self.error is None:
                    await asyncio.to_thread(self.record_due)
            except Exception:  # noqa: BLE001  # the outermost loop: a full disk must not end the program
                _log.exception("housekeeping failed; it is tried again")
                await asyncio.sleep(1)
            await asyncio.sleep(TICK_S)

    def record_due(self) -> None:
        """Write due entries to the journal, each once: also where a crash comes between journal and store."""
        after = 0
        while due := self.store.due_entries(after):
            after = due[-1].id
            for number in self._record(due):
                self.store.recorded(number)

    def _carry_over(self) -> None:
        """State again the published rosters that this generation of the journal does not hold."""
        for stored in self.store.rosters_after(0):
            digest = sha256_digest(stored.envelope)
            if self._journal.get_object(digest) is None:
                body = {
                    "version": stored.version,
                    "sha256": stored.digest,
                    "envelope_sha256": digest,
                    "code": "carried-over",
                }
                self.store.add_entry(Entry("roster.published", body, objects=(stored.envelope,)))

    def _record(self, due: Sequence[DueEntry]) -> list[int]:
        """Append these entries in one transaction; return the ids of those that stand there then."""
        for one in due:
            for data in one.entry.objects:
                self._journal.put_object(data)
        there: list[int] = []
        try:
            with self._journal.transaction() as connection:
                connection.execute(_RECORDED_SCHEMA)
                # What is before the first due entry, the store has forgotten.
                connection.execute("DELETE FROM recorded_entry WHERE id < ?", (due[0].id,))
                for one in due:
                    try:
                        self._append_once(connection, one)
                    except DecodeError:
                        # It stays due: the fault is ours, and the others must not wait for its mending.
                        _log.exception("an entry of kind %s is not one the journal accepts", one.entry.kind)
                        continue
                    there.append(one.id)
        except StateConflict as conflict:
            if conflict.code != "journal-unpublished":
                raise
            # They are in the journal, though no checkpoint covers them yet; the next one will.
        return there

    def _append_once(self, connection: sqlite3.Connection, due: DueEntry) -> None:
        entry = due.entry
        # A store put back from a backup counts its ids anew: what an entry says tells it from another.
        said = hashlib.sha256(
            canonical_json([entry.kind, entry.body, entry.job, entry.attempt, entry.actor, entry.refs])
        ).digest()
        known = connection.execute("SELECT 1 FROM recorded_entry WHERE id = ? AND sha256 = ?", (due.id, said))
        if known.fetchone() is not None:
            return
        self._journal.append(
            connection,
            entry.kind,
            entry.body,
            job=entry.job,
            attempt=entry.attempt,
            actor=entry.actor,
            refs=entry.refs,
        )
        connection.execute("INSERT INTO recorded_entry VALUES (?, ?)", (due.id, said))


class _Leaves:
    """The server's own certificate, made anew at a third of its life, without a restart."""

    def __init__(self, home: Home, config: Config, authority: Authority, now: Callable[[], datetime]) -> None:
        self._key = load_tls_key(home.tls_key)
        self._path = home.leaf
        self._authority = authority
        self._now = now
        self._hosts = _hosts(config)
        self._made: datetime | None = None
        self._leaf = b""
        self._renewing = threading.Lock()

    def _renew(self) -> None:
        # Both ports ask, from gRPC's threads.
        with self._renewing:
            now = self._now()
            # A leaf made while the clock was ahead may not be valid yet.
            if self._made is not None and timedelta() <= now - self._made < self._authority.renew_after:
                return
            self._leaf = self._authority.server_leaf(self._hosts, self._key.public_key(), now)
            replace_file(self._path, self._leaf)
            self._made = now

    def credentials(self, clients: bytes | None) -> grpc.ServerCredentials:
        """Return credentials that ask for a client certificate of `clients` (PEM), None for no such."""

        def configuration() -> Any:
            return grpc.ssl_server_certificate_configuration(
                [(private_pem(self._key), self._leaf)], root_certificates=clients
            )

        seen = self._made

        def fetch() -> Any:
            nonlocal seen
            self._renew()
            if seen == self._made:
                return None
            seen = self._made
            return configuration()

        self._renew()
        seen = self._made
        return grpc.dynamic_ssl_server_credentials(configuration(), fetch, clients is not None)


def _hosts(config: Config) -> list[str]:
    listened = {
        address.rpartition(":")[0].strip("[]") for address in (config.public_address, config.nodes_address)
    }
    return sorted({config.host, "localhost", "127.0.0.1", *listened} - {"", "0.0.0.0", "::"})  # noqa: S104  # not bound here


def _listen(server: grpc.aio.Server, address: str, host: str, leaves: _Leaves, clients: bytes | None) -> str:
    """Listen on `address` and return what others dial."""
    try:
        port = server.add_secure_port(address, leaves.credentials(clients))
    except RuntimeError:
        port = 0
    if port == 0:
        raise InputError(
            f"cannot listen on {address}",
            code="cannot-listen",
            hint="is the port taken, or the address not this machine's? See coordinator.toml",
        )
    return f"{host or address.rpartition(':')[0]}:{port}"
