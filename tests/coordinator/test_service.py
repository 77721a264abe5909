"""Both ports on loopback: mutual TLS, streams, the relay, uploads; and everybody who should not get in."""

import asyncio
import contextlib
import json
import socket
import ssl
import struct
from datetime import UTC, datetime

import grpc
import grpc.aio
import pytest
from collaboration import (
    HEALTH,
    INSURANCE,
    NODES,
    POLICE,
    ROLE_OF,
    SEATS,
    STATISTICS,
    csr,
    pem,
    tls_key,
)
from loopback import LiveBureau, ScriptedNode, frame, until

from audit.log import Journal
from coordinator import calls, rpc, service
from coordinator.authority import Authority, read_csr
from coordinator.client.connection import Connection
from coordinator.store import JobRecord
from minshu.v1 import jobs_pb2, jobs_pb2_grpc, relay_pb2
from protocols.envelope import JOB, key_id, sign
from protocols.errors import InputError, MinshuError, Refused, SignatureInvalid, StateConflict, Unreachable

pytestmark = pytest.mark.alone  # a whole coordinator each time, 16 s together


def submit(live: LiveBureau, **changes) -> str:
    spec = live.world.spec(live.roster, requester=key_id(live.card.key), **changes)
    envelope = sign(JOB, spec.encode(), [live.analyst.signer()]).encode()
    live.loop.run(run_submit(live, envelope))
    return spec.job_id


async def run_submit(live, envelope):
    credentials = grpc.ssl_channel_credentials(live.home.authority().pem)
    async with grpc.aio.secure_channel(live.coordinator.public_address, credentials) as channel:
        stub = jobs_pb2_grpc.BureauServiceStub(channel)
        return await stub.Submit(jobs_pb2.SubmitRequest(job=envelope), timeout=10)


def record(live: LiveBureau, job) -> JobRecord:
    return live.coordinator.store.job(job)


def ended(live: LiveBureau, job):
    live.until(lambda: record(live, job).job.ended)
    return record(live, job).job


async def refused_control(node: ScriptedNode, *messages) -> MinshuError:
    """Open a control stream, say this, and return what it is ended with."""
    async with node.stub() as stub:
        call = stub.Control()
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            for message in messages:
                await call.write(message)
        return await ending(call)


async def ending(call) -> MinshuError:
    """What the coordinator ended a call with."""
    with contextlib.suppress(grpc.aio.AioRpcError):
        while await asyncio.wait_for(call.read(), 10) is not grpc.aio.EOF:
            pass
    trailers = await call.trailing_metadata()
    return rpc.error_of(grpc.aio.AioRpcError(await call.code(), trailers, trailers, await call.details()))


def a_node_like(live: LiveBureau, name, leaf, key) -> ScriptedNode:
    node = live.nodes[name]
    return ScriptedNode(live.world, name, node.address, node.authority, leaf, key)


@pytest.fixture(scope="module")
def quiet(tmp_path_factory, loop):
    """A coordinator for those who do not get in: no node dials it for good."""
    bureau = LiveBureau(tmp_path_factory.mktemp("quiet"), loop)
    yield bureau
    bureau.close()


@pytest.fixture(scope="module")
def holding(tmp_path_factory, loop):
    """A coordinator whose nodes begin every job and wait for the test to go on."""
    bureau = LiveBureau(tmp_path_factory.mktemp("holding"), loop)
    for node in bureau.nodes.values():
        node.finishes = False
        node.exchange = hold
    bureau.start()
    yield bureau
    bureau.close()


async def hold(_stub, _attempt):
    """Do nothing with the attempt."""


# -- a whole job -------------------------------------------------------------------------------------


def test_a_job_runs_over_both_ports_and_every_frame_arrives_unchanged(live):
    for node in live.nodes.values():
        node.frames, node.frame_size = 20, 100_000
    live.start()
    job = submit(live)
    found = ended(live, job)
    assert found.state == "SUCCEEDED", (found, [node.problem for node in live.nodes.values()])
    for node in live.nodes.values():
        assert len(node.received) == 20
        seats = list(SEATS)
        before = live.nodes[SEATS[seats[seats.index(ROLE_OF[node.name]) - 1]]]
        assert node.received == before.sent
    live.until(lambda: live.nodes[POLICE].got("stored"))
    live.until(lambda: all(node.got("noted") for node in live.nodes.values()))
    (release,) = live.coordinator.store.releases_of(job)
    sealed = (live.home.releases / release.release).read_bytes()
    assert len(sealed) == release.size
    live.until(lambda: not live.coordinator.store.due_entries())
    kinds = [entry.kind for entry in live.coordinator._journal.entries()]
    assert kinds[0] == "log.open"
    assert kinds.count("node.enrolled") == len(NODES)
    assert kinds.count("peer.receipt") == len(NODES) + 1
    assert {"roster.published", "job.submitted"} <= set(kinds)


def test_the_journal_keeps_what_was_submitted(live):
    live.start()
    job = submit(live)
    ended(live, job)
    live.until(lambda: not live.coordinator.store.due_entries())
    (entry,) = [e for e in live.coordinator._journal.entries() if e.kind == "job.submitted"]
    envelope = live.coordinator._journal.get_object(entry.body["envelope_sha256"])
    assert envelope == record(live, job).envelope


def test_both_addresses_are_published_and_withdrawn(live):
    found = json.loads(live.home.addresses.read_text())
    assert found["public"] == live.coordinator.public_address
    assert found["nodes"] == live.coordinator.nodes_address
    live.halt()
    assert not live.home.addresses.exists()
    live.boot()


def test_a_second_coordinator_on_the_same_home_is_refused(quiet):
    with pytest.raises(StateConflict) as locked:
        service.Coordinator(quiet.home)
    assert locked.value.code == "journal-locked"


def test_a_port_that_is_taken_is_a_clear_error(quiet, tmp_path):
    port = quiet.coordinator.public_address
    with pytest.raises(InputError) as taken:
        quiet.loop.run(listen_on(port, quiet))
    assert taken.value.code == "cannot-listen"


async def listen_on(address, live):
    leaves = service._Leaves(
        live.home, live.coordinator.config, live.coordinator._authority, lambda: datetime.now(UTC)
    )
    server = grpc.aio.server(options=service._OPTIONS)
    try:
        service._listen(server, address, "", leaves, None)
    finally:
        await server.stop(0)


# -- who may come in ---------------------------------------------------------------------------------


def test_a_node_that_names_another_is_refused(quiet):
    node = quiet.nodes[HEALTH]
    error = quiet.loop.run(refused_control(node, node.hello(node=POLICE)))
    assert (type(error), error.code) == (SignatureInvalid, "wrong-node")


def test_a_stolen_authority_lets_nobody_in(quiet):
    """A leaf for the police, issued by the real authority, on a key the roster does not name."""
    stolen = tls_key("stolen")
    authority: Authority = quiet.home.authority()
    leaf = authority.node_leaf(POLICE, stolen.public_key(), datetime.now(UTC))
    thief = a_node_like(quiet, POLICE, leaf, pem(stolen))
    error = quiet.loop.run(refused_control(thief, thief.hello()))
    assert (type(error), error.code) == (SignatureInvalid, "wrong-tls-key")
    assert "enrol" in error.hint


def test_another_nodes_leaf_does_not_open_its_stream(quiet):
    node = quiet.nodes[HEALTH]
    thief = a_node_like(quiet, POLICE, node.leaf, node.key)
    error = quiet.loop.run(refused_control(thief, thief.hello()))
    assert error.code == "wrong-node"


def test_without_a_client_certificate_of_the_authority_there_is_no_connection(quiet, tmp_path):
    foreign = Authority.create("x.example/x", datetime.now(UTC), tmp_path / "ca", tmp_path / "crt")
    leaf = foreign.node_leaf(POLICE, read_csr(csr(POLICE)), datetime.now(UTC))
    for credentials in ((leaf, pem(tls_key(POLICE))), (None, None)):
        stranger = a_node_like(quiet, POLICE, *credentials)
        error = quiet.loop.run(refused_control(stranger, stranger.hello()))
        assert isinstance(error, Unreachable)


def test_a_node_dials_only_its_own_authority(quiet, tmp_path):
    foreign = Authority.create("x.example/x", datetime.now(UTC), tmp_path / "ca", tmp_path / "crt")
    node = quiet.nodes[POLICE]
    deceived = ScriptedNode(quiet.world, POLICE, node.address, foreign.pem, node.leaf, node.key)
    error = quiet.loop.run(refused_control(deceived, deceived.hello()))
    assert isinstance(error, Unreachable)


def raw_call(live: LiveBureau, context: ssl.SSLContext) -> bytes:
    """One gRPC call in hand-made HTTP/2, so that the TLS below it can be chosen."""
    host, port = live.coordinator.public_address.rsplit(":", 1)

    def literal(name: bytes, value: bytes) -> bytes:
        return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value

    def part(kind: int, flags: int, stream: int, body: bytes) -> bytes:
        return struct.pack(">I", len(body))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + body

    headers = b"".join(
        literal(name, value)
        for name, value in (
            (b":method", b"POST"),
            (b":scheme", b"https"),
            (b":path", b"/minshu.v1.BureauService/Submit"),
            (b":authority", host.encode()),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
        )
    )
    received = b""
    with (
        socket.create_connection((host, int(port)), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as link,
    ):
        link.sendall(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            + part(4, 0, 0, b"")
            + part(1, 4, 1, headers)
            + part(0, 1, 1, bytes(5))
        )
        link.settimeout(3)
        with contextlib.suppress(TimeoutError):
            while b"minshu-code" not in received and (more := link.recv(4096)):
                received += more
    return received


@pytest.mark.parametrize("weakness", ["tls-1.2", "classical"])
def test_a_link_without_tls_1_3_or_the_hybrid_key_exchange_is_refused(quiet, weakness):
    context = ssl.create_default_context(cadata=quiet.home.authority().pem.decode())
    context.set_alpn_protocols(["h2"])
    if weakness == "tls-1.2":
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    else:
        context.set_ecdh_curve("prime256v1")
    assert b"weak-link" in raw_call(quiet, context)


def test_silent_half_open_connections_delay_nobody(live):
    """Fifty connections that never finish their handshake, on both ports."""
    addresses = (live.coordinator.public_address, live.coordinator.nodes_address)
    with contextlib.ExitStack() as silent:
        for address in addresses:
            host, port = address.rsplit(":", 1)
            for _ in range(25):
                silent.enter_context(socket.create_connection((host, int(port)), timeout=5))
        live.start()
        job = submit(live)
        assert ended(live, job).state == "SUCCEEDED"


# -- the control stream ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (lambda node: node.hello(version=2), "unknown-version"),
        (lambda node: relay_pb2.ControlRequest(), "unknown-message"),
        (lambda node: relay_pb2.ControlRequest(ended=relay_pb2.RunEnded()), "bad-message"),
        (
            lambda node: relay_pb2.ControlRequest(
                progress=relay_pb2.RunProgress(attempt=relay_pb2.Attempt(job="sha256:" + "1" * 64, attempt=1))
            ),
            "unexpected-message",
        ),
        (lambda node: node.hello(live=[relay_pb2.Attempt(job="x", attempt=1)]), "bad-message"),
        (lambda node: node.hello(catalogue=node.world.catalogue(POLICE)), "too-few-signatures"),
    ],
)
def test_a_stream_that_begins_wrongly_is_ended_with_the_reason(quiet, message, code):
    node = quiet.nodes[HEALTH]
    assert quiet.loop.run(refused_control(node, message(node))).code == code


def test_a_stream_that_stays_silent_is_ended(quiet, monkeypatch):
    monkeypatch.setattr(calls, "FIRST_MESSAGE_S", 0.2)
    assert quiet.loop.run(refused_control(quiet.nodes[HEALTH])).code == "silent-stream"


@contextlib.contextmanager
def held_open(live: LiveBureau, address, credentials, method, number):
    """Open so many calls to a method that takes one message, and send none."""

    async def begin():
        options = (("grpc.use_local_subchannel_pool", 1),)
        channel = grpc.aio.secure_channel(address, credentials, options=options)
        call = channel.stream_unary(method, response_deserializer=lambda data: data)
        return channel, [call() for _ in range(number)]

    channels, opened = zip(*(live.loop.run(begin()) for _ in range(2)), strict=True)
    yield [call for each in opened for call in each]
    for channel in channels:
        live.loop.run(channel.close())


def test_silent_calls_hold_the_public_port_neither_for_long_nor_beyond_their_share(quiet, monkeypatch):
    monkeypatch.setattr(calls, "FIRST_MESSAGE_S", 1.5)
    credentials = grpc.ssl_channel_credentials(quiet.home.authority().pem)
    address = quiet.coordinator.public_address
    with held_open(quiet, address, credentials, "/minshu.v1.BureauService/Submit", 75) as silent:
        quiet.until(lambda: sum(call.done() for call in silent) == 150 - service.MAX_CALLS // 8)
        connection = Connection(quiet.analyst, quiet.world.now)
        with pytest.raises(Unreachable) as full:
            connection.call("List")
        assert full.value.code == "too-many-calls"
        quiet.until(lambda: all(call.done() for call in silent))
        connection.call("List")
        connection.close()


def test_a_revoked_node_holds_no_call_open(live):
    node = live.nodes[POLICE]
    live.publish(without=[POLICE])
    credentials = grpc.ssl_channel_credentials(node.authority, node.key, node.leaf)
    with held_open(live, node.address, credentials, "/minshu.v1.NodeService/Renew", 30) as silent:
        live.until(lambda: all(call.done() for call in silent), calls.FIRST_MESSAGE_S / 2)

        async def said():
            return {await call.code() for call in silent}

        assert live.loop.run(said()) == {grpc.StatusCode.UNAUTHENTICATED}


def test_a_revoked_analysts_open_watch_ends(live):
    live.start()
    for node in live.nodes.values():
        node.answer = ""
    job = submit(live)
    connection = Connection(live.analyst, live.world.now)
    watch = connection.stream("Watch", job)
    assert next(watch).view.job == job
    live.publish(without=["li"], cards=[])
    with pytest.raises(SignatureInvalid) as ended_with:
        for _ in watch:
            pass
    assert ended_with.value.code == "unknown-analyst"
    connection.close()


def test_watching_what_is_unknown_or_over_keeps_nothing(live):
    live.start()
    job = submit(live)
    ended(live, job)
    connection = Connection(live.analyst, live.world.now)
    assert [answer.view.state for answer in connection.stream("Watch", job)] == ["SUCCEEDED"]
    with pytest.raises(InputError):
        next(connection.stream("Watch", "sha256:" + "1" * 64))
    assert not live.coordinator.scheduler._changes
    connection.close()


def test_each_address_has_a_share_of_its_own():
    assert calls.origin("ipv4:192.0.2.1:443") == "192.0.2.1"
    assert calls.origin("ipv6:%5B::ffff:192.0.2.1%5D:443") == "192.0.2.1"
    same = {calls.origin(f"ipv6:%5B2001:db8:0:{net}::{host}%5D:1") for net, host in ((1, 1), (1, 2), (2, 1))}
    assert same == {"2001:db8:0:1::/64", "2001:db8:0:2::/64"}
    assert calls.origin("unix:") == ""


def test_too_many_calls_are_told_from_too_long_a_message():
    def found(details):
        empty = grpc.aio.Metadata()
        return rpc.error_of(
            grpc.aio.AioRpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, empty, empty, details)
        ).code

    assert found("Concurrent RPC limit exceeded!") == found("") == "too-many-calls"
    assert found("SERVER: Received message larger than max (9 vs. 8)") == "too-long"


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (lambda node: node.hello(), "unexpected-message"),
        (lambda node: relay_pb2.ControlRequest(), "unknown-message"),
        (
            lambda node: relay_pb2.ControlRequest(
                ended=relay_pb2.RunEnded(
                    attempt=relay_pb2.Attempt(job="sha256:" + "1" * 64, attempt=1), state="LOST", code="x"
                )
            ),
            "bad-message",
        ),
        (
            lambda node: relay_pb2.ControlRequest(
                upload=relay_pb2.ReleaseUpload(
                    attempt=relay_pb2.Attempt(job="sha256:" + "1" * 64, attempt=1), release="../../etc/passwd"
                )
            ),
            "bad-message",
        ),
    ],
)
def test_a_message_that_does_not_hold_ends_the_stream(quiet, message, code):
    node = quiet.nodes[HEALTH]
    assert quiet.loop.run(refused_control(node, node.hello(), message(node))).code == code


def test_a_node_that_dials_again_takes_its_own_place(live):
    live.start()
    first = live.nodes[HEALTH]
    second = a_node_like(live, HEALTH, first.leaf, first.key)
    live.loop.run(second.start())
    live.until(lambda: first.problem is not None)
    assert first.problem.code == "stream-replaced"
    live.until(lambda: second.got("welcome"))
    live.loop.run(second.stop())


def test_a_node_that_does_not_read_is_cut_off_and_told_again(live, monkeypatch):
    monkeypatch.setattr(service, "_MAX_QUEUED", 2)
    live.nodes[STATISTICS].answer = ""  # keeps the jobs from going on
    live.start()
    session = live.coordinator.scheduler._present[HEALTH].session

    async def flood():
        for _ in range(4):
            session.send(rpc.noted("sha256:" + "1" * 64, 1))

    live.loop.run(flood())
    live.until(lambda: live.nodes[HEALTH].problem is not None)
    assert live.nodes[HEALTH].problem.code == "slow-node"


def test_a_roster_published_beside_the_running_coordinator_closes_the_streams_it_drops(live):
    live.start()
    roster = live.publish(without=[HEALTH])
    live.until(lambda: live.nodes[HEALTH].problem is not None)
    assert live.nodes[HEALTH].problem.code == "not-in-roster"
    live.until(lambda: live.nodes[POLICE].got("roster"))
    assert live.nodes[POLICE].problem is None
    assert roster.digest != live.roster.digest
    error = live.loop.run(refused_control(live.nodes[HEALTH], live.nodes[HEALTH].hello()))
    assert error.code == "not-in-roster"


def test_a_fault_of_ours_tells_the_caller_nothing_about_it(quiet, monkeypatch):
    def fails(*_):
        raise OSError(28, "No space left on device", "/secret/path")

    monkeypatch.setattr(quiet.coordinator.store, "use_nonce", fails)
    connection = Connection(quiet.analyst, quiet.world.now)
    with pytest.raises(MinshuError) as fault:
        connection.call("List")
    assert fault.value.code == "internal"
    assert "secret" not in str(fault.value) + fault.value.hint
    connection.close()


def test_the_addresses_of_a_killed_coordinator_are_not_handed_out(live):
    found = json.loads(live.home.addresses.read_text())
    live.home.addresses.write_text(json.dumps(found | {"pid": 2**22 - 1}))
    with pytest.raises(InputError) as error:
        live.home.listening()
    assert error.value.code == "not-running"


# -- failing jobs ------------------------------------------------------------------------------------


def test_the_coordinator_restarts_mid_job_and_a_second_attempt_succeeds(live):
    for node in live.nodes.values():
        node.finishes = False
    live.start()
    job = submit(live)
    live.until(lambda: all(run.state == "RUNNING" for run in record(live, job).job.runs))
    live.restart()
    for node in live.nodes.values():
        node.finishes = True
    live.stop_nodes()
    live.start()
    found = ended(live, job)
    assert (found.state, found.attempt) == ("SUCCEEDED", 2)
    assert all(
        (job, 1) in {(s.attempt.job, s.attempt.attempt) for s in n.got("stop")} for n in live.nodes.values()
    )


def test_a_node_that_dies_mid_job_is_named_and_a_new_attempt_succeeds(live):
    for node in live.nodes.values():
        node.finishes = False
    live.start()
    job = submit(live)
    live.until(lambda: live.nodes[HEALTH].received)
    live.loop.run(live.nodes[HEALTH].stop())
    live.until(lambda: record(live, job).job.attempt == 2)
    assert HEALTH in record(live, job).job.sentence
    for node in live.nodes.values():
        node.finishes = True
    live.nodes[HEALTH].live.clear()
    live.start(HEALTH)
    assert ended(live, job).state == "SUCCEEDED"


def test_a_refusal_reaches_everybody(live):
    live.nodes[INSURANCE].answer = "refuse"
    live.start()
    job = submit(live)
    assert ended(live, job).code == "no-rule"
    live.until(lambda: all(live.nodes[n].got("stop") for n in NODES if n != INSURANCE))


# -- the relay over the wire -------------------------------------------------------------------------


def started(live: LiveBureau):
    """A job whose nodes were started but whose data streams the test opens itself."""
    job = submit(live)
    nodes = live.nodes.values()
    live.until(lambda: all(job in [start.attempt.job for start in node.got("start")] for node in nodes))
    return relay_pb2.Attempt(job=job, attempt=1)


async def refused_data(node: ScriptedNode, *messages) -> MinshuError:
    async with node.stub() as stub:
        call = stub.Data()
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            for message in messages:
                await call.write(message)
        return await ending(call)


def opening(attempt):
    return relay_pb2.DataRequest(open=attempt)


def carrying(data):
    return relay_pb2.DataRequest(frame=data)


@pytest.mark.parametrize(
    ("messages", "code"),
    [
        (lambda a: [opening(relay_pb2.Attempt(job=a.job, attempt=2))], "unknown-attempt"),
        (lambda a: [opening(relay_pb2.Attempt(job="sha256:" + "9" * 64, attempt=1))], "unknown-attempt"),
        (lambda a: [carrying(b"frame first")], "unexpected-message"),
        (lambda a: [opening(a), opening(a)], "unexpected-message"),
        (lambda a: [opening(a), carrying(frame(a, "matcher", "register"))], "foreign-sender"),
        (
            lambda a: [
                opening(a),
                carrying(frame(relay_pb2.Attempt(job=a.job, attempt=2), "register", "matcher")),
            ],
            "foreign-frame",
        ),
        (lambda a: [opening(a), carrying(frame(a, "register", "nobody"))], "unknown-role"),
        (lambda a: [opening(a), carrying(b"\x01" * 100)], "bad-frame"),
        (lambda a: [opening(a), carrying(bytes(3 << 20))], "too-long"),
    ],
)
def test_a_data_stream_carries_only_its_own_seats_frames(holding, messages, code):
    attempt = started(holding)
    assert holding.loop.run(refused_data(holding.nodes[POLICE], *messages(attempt))).code == code


def test_a_data_stream_is_opened_once(holding):
    attempt = started(holding)

    async def twice():
        async with holding.nodes[POLICE].stub() as stub:
            call = stub.Data()
            await call.write(opening(attempt))
            exchange = holding.coordinator.relay.exchange(attempt.job, 1)
            await until(lambda: exchange.has_joined(POLICE))
            error = await refused_data(holding.nodes[POLICE], opening(attempt))
            call.cancel()
            return error

    assert holding.loop.run(twice()).code == "data-stream-twice"


def test_a_sender_is_held_back_while_its_receiver_does_not_read(holding):
    attempt = started(holding)
    exchange = holding.coordinator.relay.exchange(attempt.job, 1)
    count, size = 80, 1 << 20

    async def flood_and_read():
        async with holding.nodes[POLICE].stub() as up, holding.nodes[STATISTICS].stub() as down:
            sender, receiver = up.Data(), down.Data()
            await sender.write(opening(attempt))
            await receiver.write(opening(attempt))
            sent = 0

            async def send():
                nonlocal sent
                for seq in range(count):
                    await sender.write(carrying(frame(attempt, "register", "matcher", size, seq)))
                    sent += 1
                await sender.done_writing()

            sending = asyncio.create_task(send())
            last = -1
            while sent != last:  # until nothing moves any more
                last = sent
                await asyncio.sleep(0.3)
            held, stuck = exchange.held_bytes, sent
            got = 0
            while got < count:
                message = await receiver.read()
                assert len(message.frame) == size
                got += 1
            await sending
            assert await sender.code() is grpc.StatusCode.OK
            receiver.cancel()
            return held, stuck

    held, stuck = holding.loop.run(flood_and_read(), 30)
    assert held <= (64 << 20) // len(NODES)
    assert stuck < count
    assert exchange.held_bytes == 0


def test_streams_of_an_attempt_end_with_it(holding):
    attempt = started(holding)

    async def cancelled():
        async with holding.nodes[POLICE].stub() as stub:
            call = stub.Data()
            await call.write(opening(attempt))
            exchange = holding.coordinator.relay.exchange(attempt.job, 1)
            await until(lambda: exchange.has_joined(POLICE))
            holding.coordinator.scheduler.cancel(attempt.job, holding.roster.analysts[0])
            return await asyncio.wait_for(call.code(), 5)

    assert holding.loop.run(cancelled()) is grpc.StatusCode.FAILED_PRECONDITION


# -- uploads -----------------------------------------------------------------------------------------


def uploaded(live: LiveBureau, attempt, **changes):
    live.loop.run(live.nodes[POLICE].upload(attempt, **changes))


def test_a_release_whose_bytes_are_not_its_notes_fails_the_run(holding):
    attempt = started(holding)
    uploaded(holding, attempt, sha256="sha256:" + "0" * 64)
    found = ended(holding, attempt.job)
    assert (found.state, found.code, found.run(POLICE).state) == ("FAILED", "wrong-digest", "FAILED")
    assert list(holding.home.releases.iterdir()) == []


def test_a_release_longer_than_configured_fails_the_run(holding, monkeypatch):
    monkeypatch.setattr(holding.coordinator.releases, "max_bytes", 100)
    attempt = started(holding)
    uploaded(holding, attempt)
    assert ended(holding, attempt.job).code == "too-long"
    assert list(holding.home.releases.iterdir()) == []


def test_an_upload_broken_off_leaves_nothing_and_can_be_sent_again(live):
    for node in live.nodes.values():
        node.finishes = False
    live.start()
    attempt = started(live)
    node = live.nodes[POLICE]
    note, sealed, release = live.world.release(attempt.job, 1, public=live.card.recipient_key)
    first = relay_pb2.ReleaseUpload(attempt=attempt, note=note, release=release, offset=0, piece=sealed[:10])
    live.loop.run(node.say(upload=first))
    live.until(lambda: record(live, attempt.job).job.run(POLICE).state == "RELEASING")
    live.loop.run(node.stop())
    live.until(lambda: not list(live.home.releases.iterdir()))
    live.start(POLICE)
    uploaded(live, attempt)
    live.until(lambda: live.coordinator.store.releases_of(attempt.job))


def test_a_release_of_an_attempt_that_is_over_is_not_wanted(holding):
    attempt = started(holding)
    holding.loop.run(cancel(holding, attempt.job))
    node = holding.nodes[POLICE]
    before = len(node.got("stop"))
    uploaded(holding, attempt)
    holding.until(lambda: len(node.got("stop")) > before)
    assert node.problem is None
    assert holding.coordinator.store.releases_of(attempt.job) == []


async def cancel(live, job):
    live.coordinator.scheduler.cancel(job, live.roster.analysts[0])


def test_what_a_crash_left_in_the_releases_folder_is_swept(live):
    live.start()
    job = submit(live)
    ended(live, job)
    live.halt()
    (kept,) = live.home.releases.iterdir()
    (live.home.releases / f"{'0' * 32}.part").write_bytes(b"half")
    live.boot()
    assert list(live.home.releases.iterdir()) == [kept]


# -- analysts and enrolment over the wire ------------------------------------------------------------


def test_errors_carry_code_sentence_and_hint(quiet):
    connection = Connection(quiet.analyst, quiet.world.now)
    with pytest.raises(InputError) as error:
        connection.call("Show", "sha256:" + "1" * 64)
    assert (error.value.code, error.value.message) == ("unknown-job", "no such job")
    assert "minshu list" in error.value.hint
    connection.close()


def test_a_job_of_ten_megabytes_is_refused(quiet):
    connection = Connection(quiet.analyst, quiet.world.now)
    with pytest.raises(Refused) as refused:
        connection.submit(b"{" * (10 << 20))
    assert refused.value.code == "too-long"
    connection.close()


def test_a_forged_job_is_refused(quiet):
    connection = Connection(quiet.analyst, quiet.world.now)
    with pytest.raises(SignatureInvalid) as refused:
        connection.submit(quiet.world.job(quiet.roster, by="mallory"))
    assert refused.value.code == "unknown-analyst"
    assert quiet.coordinator.store.live_jobs() == []
    connection.close()


def test_a_token_used_again_over_the_wire_is_refused(quiet):
    secret = bytes([0]) * 16
    with pytest.raises(grpc.aio.AioRpcError) as error:
        quiet.loop.run(quiet.enrol(*quiet.world.enrolment(NODES[0], secret)))
    found = rpc.error_of(error.value)
    assert (type(found), found.code) == (Refused, "token-used")


@pytest.mark.parametrize(("kind", "status"), rpc.STATUSES)
def test_every_error_has_a_status_and_comes_back_from_it(kind, status):
    assert rpc.status_of(kind("x", code="some-code")) is status
    error = grpc.aio.AioRpcError(
        status,
        grpc.aio.Metadata(),
        grpc.aio.Metadata((rpc.CODE_KEY, "some-code"), (rpc.HINT_KEY, "做这个".encode())),
        "什么不对",
    )
    found = rpc.error_of(error)
    assert (found.code, found.message, found.hint) == ("some-code", "什么不对", "做这个")
    assert rpc.status_of(found) is status


def test_the_journal_survives_as_auditors_get_it(live):
    live.start()
    ended(live, submit(live))
    live.halt()
    identity = live.home.signer()
    with Journal.open(
        live.home.journal,
        database=live.home.journal_database,
        origin="bureau.gz.example/coordinator/journal/1",
        signer=identity.sign,
        public_key=identity.public_key,
        now=lambda: datetime.now(UTC),
    ) as journal:
        assert journal.published == journal.size > len(NODES)
    live.boot()
