"""New leaves for members' keys, revocation that ends live streams, the coordinator's own leaf and time."""

import asyncio
import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import grpc.aio
import pytest
from collaboration import HEALTH, INSURANCE, NOW, POLICE, STATISTICS, Clock, csr, pem, spki, tls_key
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from loopback import LiveBureau, ScriptedNode, frame, until

from coordinator import authority as authority_module
from coordinator import rpc, service
from coordinator.authority import (
    LEAF_LIFE,
    MAX_CSR_BYTES,
    RENEWALS_AN_HOUR,
    Authority,
    Renewals,
    peer_of,
)
from coordinator.store.sql import SqlStore
from minshu.v1 import jobs_pb2, jobs_pb2_grpc, relay_pb2
from protocols.envelope import JOB, key_id, sign
from protocols.errors import DecodeError, InputError, MinshuError, Refused, SignatureInvalid, Unreachable
from protocols.wire import parse_utc

pytestmark = pytest.mark.alone  # a whole coordinator each time, 9 s together


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    folder = tmp_path_factory.mktemp("ca")
    return Authority.create("bureau.gz.example/coordinator", NOW, folder / "key", folder / "crt")


@pytest.fixture
def ticks() -> list[float]:
    return [0.0]


@pytest.fixture
def renewals(authority: Authority, clock: Clock, ticks: list[float]) -> Renewals:
    return Renewals(authority, clock, lambda: ticks[0])


# -- who gets a leaf -----------------------------------------------------------------------------------------


def test_a_member_gets_a_leaf_for_the_key_it_has(renewals: Renewals, clock: Clock) -> None:
    clock.pass_(days=10)
    leaf = renewals.leaf(POLICE, spki(POLICE), csr(POLICE).encode())
    assert peer_of(leaf) == (POLICE, spki(POLICE))
    certificate = x509.load_pem_x509_certificate(leaf)
    assert certificate.not_valid_before_utc <= clock()
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc == LEAF_LIFE


def other_kind() -> str:
    key = rsa.generate_private_key(65537, 2048)
    return csr(POLICE, key)


@pytest.mark.parametrize(
    ("request_of", "kind", "code"),
    [
        (lambda: csr(POLICE, tls_key("new")), SignatureInvalid, "wrong-tls-key"),
        (lambda: csr(HEALTH), SignatureInvalid, "wrong-tls-key"),
        (lambda: "", DecodeError, "bad-csr"),
        (lambda: "\udcff", DecodeError, "bad-csr"),
        (lambda: csr(POLICE)[:-90], DecodeError, "bad-csr"),
        (lambda: csr(POLICE, ec.generate_private_key(ec.SECP384R1())), InputError, "bad-csr"),
        (other_kind, InputError, "bad-csr"),
        (lambda: " " * (MAX_CSR_BYTES + 1) + csr(POLICE), DecodeError, "too-long"),
    ],
    ids=["new key", "another node's key", "empty", "no text", "cut", "another curve", "rsa", "too long"],
)
def test_no_other_request_gets_one(renewals: Renewals, request_of: Any, kind: Any, code: str) -> None:
    with pytest.raises(kind) as refused:
        renewals.leaf(POLICE, spki(POLICE), request_of().encode("utf-8", "surrogateescape"))
    assert refused.value.code == code


def test_a_request_signed_by_another_key_is_refused(renewals: Renewals) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding

    request = x509.load_pem_x509_csr(csr(POLICE).encode())
    raw = bytearray(request.public_bytes(Encoding.DER))
    raw[-1] ^= 1
    forged = x509.load_der_x509_csr(bytes(raw)).public_bytes(Encoding.PEM)
    with pytest.raises(InputError) as refused:
        renewals.leaf(POLICE, spki(POLICE), forged)
    assert refused.value.code == "bad-csr"


def test_a_flood_of_requests_costs_no_signatures(
    renewals: Renewals, ticks: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = []

    check = authority_module._check_signature

    def counted(request: Any) -> None:
        checked.append(request)
        check(request)

    monkeypatch.setattr(authority_module, "_check_signature", counted)
    refusals = []
    for number in range(1000):
        ticks[0] += 1
        try:
            renewals.leaf(POLICE, spki(POLICE), csr(POLICE).encode() if number % 2 else b"junk")
        except MinshuError as error:
            refusals.append(error.code)
    assert len(checked) == RENEWALS_AN_HOUR
    # Junk takes nothing from the node's own renewals.
    assert refusals.count("bad-csr") == 500
    assert refusals.count("too-many-renewals") == 500 - RENEWALS_AN_HOUR
    # Others are not held up, and an hour after its first try the node is not either.
    renewals.leaf(HEALTH, spki(HEALTH), csr(HEALTH).encode())
    ticks[0] = 3601.0
    with pytest.raises(Refused):
        renewals.leaf(POLICE, spki(POLICE), csr(POLICE).encode())
    ticks[0] = 3602.0
    renewals.leaf(POLICE, spki(POLICE), csr(POLICE).encode())


@pytest.mark.parametrize("seconds", [6, 3600, 30 * 86_400])
def test_a_leaf_never_lives_longer_than_its_authority_gives_it(
    authority: Authority, clock: Clock, seconds: int
) -> None:
    brief = replace(authority, leaf_life=timedelta(seconds=seconds))
    leaf = x509.load_pem_x509_certificate(brief.node_leaf(POLICE, tls_key(POLICE).public_key(), clock()))
    assert leaf.not_valid_after_utc - leaf.not_valid_before_utc == timedelta(seconds=seconds)
    assert clock() - timedelta(seconds=1 + seconds / 10) <= leaf.not_valid_before_utc <= clock()
    assert brief.renew_after == timedelta(seconds=seconds) / 3


# -- over the wire -------------------------------------------------------------------------------------------


async def renew(node: ScriptedNode, request: str) -> bytes:
    async with node.stub() as stub:
        try:
            answer = await stub.Renew(relay_pb2.RenewRequest(csr=request.encode()), timeout=10)
        except grpc.aio.AioRpcError as error:
            raise rpc.error_of(error) from None
        return answer.certificate


def submit(live: LiveBureau) -> relay_pb2.Attempt:
    """Submit a job and wait until all nodes were told to start it."""
    spec = live.world.spec(live.roster, requester=key_id(live.card.key))
    envelope = sign(JOB, spec.encode(), [live.analyst.signer()]).encode()

    async def call() -> None:
        credentials = grpc.ssl_channel_credentials(live.home.authority().pem)
        async with grpc.aio.secure_channel(live.coordinator.public_address, credentials) as channel:
            stub = jobs_pb2_grpc.BureauServiceStub(channel)
            await stub.Submit(jobs_pb2.SubmitRequest(job=envelope), timeout=10)

    live.loop.run(call())
    live.until(lambda: all(node.got("start") for node in live.nodes.values()))
    return relay_pb2.Attempt(job=spec.job_id, attempt=1)


async def hold(_stub: Any, _attempt: Any) -> None:
    """Do nothing with the attempt: the test opens its data streams."""


def held(live: LiveBureau) -> relay_pb2.Attempt:
    """Bring all nodes into a job that waits for the test."""
    for node in live.nodes.values():
        node.finishes = False
        node.exchange = hold
    live.start()
    return submit(live)


class Stream:
    """A node's data stream under a test's hand."""

    def __init__(self, live: LiveBureau, node: ScriptedNode, attempt: relay_pb2.Attempt) -> None:
        self.live, self.node, self.attempt = live, node, attempt
        live.loop.run(self._open())

    async def _open(self) -> None:
        self._scope = self.node.stub()
        self.call = (await self._scope.__aenter__()).Data()
        await self.call.write(relay_pb2.DataRequest(open=self.attempt))
        exchange = self.live.coordinator.relay.exchange(self.attempt.job, 1)
        await until(lambda: exchange.has_joined(self.node.name))

    async def send(self, data: bytes) -> None:
        await self.call.write(relay_pb2.DataRequest(frame=data))

    async def receive(self) -> bytes:
        message = await asyncio.wait_for(self.call.read(), 10)
        assert message is not grpc.aio.EOF, await self.call.details()
        return message.frame

    async def ending(self) -> MinshuError:
        """Return what the coordinator ends the stream with."""
        try:
            while await asyncio.wait_for(self.call.read(), 10) is not grpc.aio.EOF:
                pass
        except grpc.aio.AioRpcError as error:
            return rpc.error_of(error)
        trailers = await self.call.trailing_metadata()
        code, details = await self.call.code(), await self.call.details()
        return rpc.error_of(grpc.aio.AioRpcError(code, trailers, trailers, details))

    def close(self) -> None:
        async def close() -> None:
            self.call.cancel()
            await self._scope.__aexit__(None, None, None)

        self.live.loop.run(close())


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory, loop: Any) -> Iterator[LiveBureau]:
    """A coordinator that is only asked; none of its nodes is busy."""
    bureau = LiveBureau(tmp_path_factory.mktemp("quiet"), loop)
    yield bureau
    bureau.close()


def test_a_node_renews_over_its_own_link_and_the_new_leaf_opens_the_next(quiet: LiveBureau) -> None:
    node = quiet.nodes[HEALTH]
    leaf = quiet.loop.run(renew(node, csr(HEALTH)))
    assert leaf != node.leaf
    assert peer_of(leaf) == (HEALTH, spki(HEALTH))
    node.leaf = leaf
    quiet.start(HEALTH)
    quiet.loop.run(node.stop())


@pytest.mark.parametrize(
    ("request_of", "kind", "code"),
    [
        (lambda: csr(HEALTH, tls_key("new")), SignatureInvalid, "wrong-tls-key"),
        (lambda: csr(POLICE), SignatureInvalid, "wrong-tls-key"),
        # A status stands for several of our errors; the code does not.
        (lambda: "-----BEGIN", InputError, "bad-csr"),
        (lambda: "#" * MAX_CSR_BYTES + csr(HEALTH), Refused, "too-long"),
    ],
)
def test_a_refused_renewal_says_why(quiet: LiveBureau, request_of: Any, kind: Any, code: str) -> None:
    with pytest.raises(kind) as refused:
        quiet.loop.run(renew(quiet.nodes[HEALTH], request_of()))
    assert refused.value.code == code


def test_who_is_not_in_the_roster_renews_nothing(live: LiveBureau) -> None:
    stolen = tls_key("stolen")
    leaf = live.home.authority().node_leaf(HEALTH, stolen.public_key(), datetime.now(UTC))
    node = live.nodes[HEALTH]
    thief = ScriptedNode(live.world, HEALTH, node.address, node.authority, leaf, pem(stolen))
    with pytest.raises(SignatureInvalid) as wrong:
        live.loop.run(renew(thief, csr(HEALTH, stolen)))
    assert wrong.value.code == "wrong-tls-key"
    live.publish(without=[HEALTH])
    with pytest.raises(SignatureInvalid) as dropped:
        live.loop.run(renew(node, csr(HEALTH)))
    assert dropped.value.code == "not-in-roster"
    stranger = ScriptedNode(live.world, HEALTH, node.address, node.authority, None, None)
    with pytest.raises(Unreachable):
        live.loop.run(renew(stranger, csr(HEALTH)))


def test_a_node_that_renews_too_often_is_told_to_wait(quiet: LiveBureau) -> None:
    node = quiet.nodes[POLICE]

    async def flood() -> list[str]:
        codes = []
        async with node.stub() as stub:
            for _ in range(RENEWALS_AN_HOUR + 5):
                try:
                    await stub.Renew(relay_pb2.RenewRequest(csr=csr(POLICE).encode()), timeout=10)
                    codes.append("")
                except grpc.aio.AioRpcError as error:
                    codes.append(rpc.error_of(error).code)
                    statuses.add(error.code())
        return codes

    statuses: set[grpc.StatusCode] = set()
    codes = quiet.loop.run(flood())
    assert statuses == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert codes == [""] * RENEWALS_AN_HOUR + ["too-many-renewals"] * 5


def test_every_welcome_carries_the_coordinators_time(quiet: LiveBureau) -> None:
    quiet.start(STATISTICS)
    [welcome] = quiet.nodes[STATISTICS].got("welcome")
    quiet.loop.run(quiet.nodes[STATISTICS].stop())
    assert abs(parse_utc(welcome.time) - datetime.now(UTC)) < timedelta(seconds=30)


# -- revocation ----------------------------------------------------------------------------------------------


def dropped(live: LiveBureau) -> None:
    live.publish(without=[HEALTH])


def rekeyed(live: LiveBureau) -> None:
    """The node's enrolment was repeated with another TLS key, and the next roster names that one."""
    store = SqlStore(live.home.database)
    enrolments = [
        replace(one, tls_spki_sha256=spki("new"), enrolled=live.world.now()) if one.node == HEALTH else one
        for one in store.enrolments()
    ]
    store.close()
    live.publish(enrolments=enrolments)


@pytest.mark.parametrize(("revoke", "code"), [(dropped, "not-in-roster"), (rekeyed, "wrong-tls-key")])
def test_a_revoked_node_loses_its_live_streams(live: LiveBureau, revoke: Any, code: str) -> None:
    attempt = held(live)
    stream = Stream(live, live.nodes[HEALTH], attempt)
    assert live.nodes[HEALTH].problem is None
    before = datetime.now(UTC)
    revoke(live)
    error = live.loop.run(stream.ending())
    assert (type(error), error.code) == (SignatureInvalid, code)
    live.until(lambda: live.nodes[HEALTH].problem is not None)
    problem = live.nodes[HEALTH].problem
    assert (type(problem), problem.code) == (SignatureInvalid, code)
    assert datetime.now(UTC) - before < timedelta(seconds=5)
    stream.close()

    # Nothing new is opened either, on no method.
    async def refused(method: str, first: Any) -> str:
        # A call that ends while gRPC still writes to it has the status INTERNAL at the caller, whatever it
        # ended with; then it is made again.
        status = grpc.StatusCode.INTERNAL
        while status is grpc.StatusCode.INTERNAL:
            async with live.nodes[HEALTH].stub() as stub:
                call = getattr(stub, method)()
                with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    await call.write(first)
                    await call.read()
                status, trailers = await call.code(), await call.trailing_metadata()
        assert status is grpc.StatusCode.UNAUTHENTICATED
        return dict(trailers)["minshu-code"]

    async def again() -> list[str]:
        opened = relay_pb2.DataRequest(open=attempt)
        return [await refused("Control", live.nodes[HEALTH].hello()), await refused("Data", opened)]

    assert live.loop.run(again()) == [code, code]
    # Whoever is still listed keeps its stream and is told.
    live.until(lambda: live.nodes[POLICE].got("roster"))
    assert live.nodes[POLICE].problem is None
    live.until(lambda: live.coordinator.store.job(attempt.job).job.ended)
    assert live.coordinator.store.job(attempt.job).job.code == code


def test_a_data_stream_alone_is_ended_too(live: LiveBureau) -> None:
    """A revoked node whose control stream is broken at that moment does not keep its data streams for it."""
    attempt = held(live)
    stream = Stream(live, live.nodes[HEALTH], attempt)
    others = Stream(live, live.nodes[POLICE], attempt)
    live.loop.run(live.nodes[HEALTH].stop())
    live.until(lambda: HEALTH not in live.coordinator.scheduler._present)
    dropped(live)
    assert live.loop.run(stream.ending()).code == "not-in-roster"
    assert live.coordinator._nodes._data_streams.values()  # the police's is live
    stream.close()
    others.close()
    live.until(lambda: not live.coordinator._nodes._data_streams)


def test_a_roster_that_still_lists_a_node_leaves_its_streams_alone(live: LiveBureau) -> None:
    attempt = held(live)
    streams = [Stream(live, live.nodes[name], attempt) for name in (POLICE, INSURANCE)]
    live.publish(titles={"police.gz.example": "公安"})
    live.until(lambda: live.nodes[POLICE].got("roster"))
    sent = frame(attempt, "register", "source-1")
    live.loop.run(streams[0].send(sent))
    assert live.loop.run(streams[1].receive()) == sent
    for stream in streams:
        stream.close()


@pytest.mark.parametrize("method", ["Control", "Data"])
def test_a_roster_that_comes_between_dialling_and_the_first_message_counts(
    live: LiveBureau, method: str
) -> None:
    attempt = held(live) if method == "Data" else relay_pb2.Attempt()
    node = live.nodes[HEALTH]

    async def open_silent() -> tuple[Any, Any]:
        scope = node.stub()
        call = getattr(await scope.__aenter__(), method)()
        await call.wait_for_connection()
        return scope, call

    async def late(scope: Any, call: Any) -> str:
        try:
            opening = relay_pb2.DataRequest(open=attempt)
            first = node.hello(catalogue=b"") if method == "Control" else opening
            await call.write(first)
            await call.read()
        except grpc.aio.AioRpcError as error:
            return rpc.error_of(error).code
        finally:
            await scope.__aexit__(None, None, None)
        return ""

    opened = live.loop.run(open_silent())
    dropped(live)
    live.loop.run(asyncio.sleep(3 * service.TICK_S))
    assert live.loop.run(late(*opened)) == "not-in-roster"


# -- the coordinator's own leaf ------------------------------------------------------------------------------


def test_the_servers_leaf_is_replaced_under_live_streams_for_clients_that_trust_only_the_authority(
    tmp_path: Any, loop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lives for two seconds; a stream outlives it, and whoever dials afterwards sees a newer one."""
    load = Authority.load
    monkeypatch.setattr(
        Authority, "load", lambda *paths: replace(load(*paths), leaf_life=timedelta(seconds=2))
    )
    live = LiveBureau(tmp_path, loop)
    monkeypatch.undo()
    thirty = live.home.authority()
    for name, node in live.nodes.items():
        node.leaf = thirty.node_leaf(name, tls_key(name).public_key(), datetime.now(UTC))
    try:
        attempt = held(live)
        sender, receiver = (Stream(live, live.nodes[name], attempt) for name in (POLICE, INSURANCE))
        first = server_leaf(live)
        seen = {fingerprint(first)}
        for seq in range(30):
            sent = frame(attempt, "register", "source-1", seq=seq)
            live.loop.run(sender.send(sent))
            assert live.loop.run(receiver.receive()) == sent
            if not seq % 10:
                # A new connection each, which trusts the authority and knows nothing of leaves.
                live.loop.run(renew(live.nodes[STATISTICS], csr(STATISTICS)))
                seen.add(fingerprint(server_leaf(live)))
            live.loop.run(asyncio.sleep(0.09))
        assert first.not_valid_after_utc < datetime.now(UTC)
        assert len(seen) > 2
        assert all(node.problem is None for node in live.nodes.values())
        sender.close()
        receiver.close()
    finally:
        live.close()


def server_leaf(live: LiveBureau) -> x509.Certificate:
    """Return the leaf that a TLS client sees on the public port."""
    import ssl

    host, port = live.coordinator.public_address.rsplit(":", 1)
    return x509.load_pem_x509_certificate(ssl.get_server_certificate((host, int(port))).encode())


def fingerprint(leaf: x509.Certificate) -> str:
    return hashlib.sha256(leaf.tbs_certificate_bytes).hexdigest()


@pytest.mark.parametrize("step", [timedelta(hours=1), timedelta(days=365)])
def test_a_leaf_made_while_the_clock_was_ahead_is_made_again(quiet: LiveBureau, step: timedelta) -> None:
    clock = Clock(datetime.now(UTC) + step)
    leaves = service._Leaves(quiet.home, quiet.coordinator.config, quiet.coordinator._authority, clock)
    leaves._renew()
    ahead = leaves._leaf
    clock.now -= step
    leaves._renew()
    leaf = x509.load_pem_x509_certificate(leaves._leaf)
    assert leaves._leaf != ahead
    assert leaf.not_valid_before_utc <= clock() < leaf.not_valid_after_utc
    again = leaves._leaf
    clock.pass_(days=9)
    leaves._renew()
    assert leaves._leaf == again
    clock.pass_(days=1)
    leaves._renew()
    assert leaves._leaf != again
