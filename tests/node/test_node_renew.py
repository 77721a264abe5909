"""Renewing the TLS certificate: when, what of an answer is believed, and what happens when it fails."""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from coordinator.authority import Authority, new_tls_key, read_csr
from node import renew
from node.doctor import examine
from node.home import ENROLMENT_SCHEMA, Home, init_home
from node.link import Credentials
from node.logs import Log
from node.renew import Renewal, Validity, check_leaf, make_csr, read_credentials, validity_of
from node.run import run_node
from protocols.encoding import canonical_json
from protocols.errors import InputError, MinshuError, SignatureInvalid, Unreachable
from protocols.ids import NodeName

NODE = NodeName("police.gz.example/node-a")
START = datetime(2026, 11, 22, 8, tzinfo=UTC)
DAY = timedelta(days=1)


# -- when ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("days", "wait_days"), [(0, 10), (9.5, 0.5), (10, 0), (15, 0), (29.99, 0), (-2, 12)])
def test_a_certificate_is_due_at_a_third_of_its_life(days: float, wait_days: float) -> None:
    validity = Validity(START, START + 30 * DAY)
    assert validity.wait_s(START + days * DAY) == pytest.approx(wait_days * 86_400)


@pytest.mark.parametrize("days", [30, 31, 365])
def test_an_expired_certificate_says_to_enrol_again(days: int) -> None:
    with pytest.raises(InputError) as expired:
        Validity(START, START + 30 * DAY).wait_s(START + days * DAY)
    assert expired.value.code == "certificate-expired"
    assert "minshu-node enrol" in expired.value.hint
    assert "clock" in expired.value.hint


def test_failures_wait_longer_each_time_and_are_jittered() -> None:
    validity = Validity(START, START + 30 * DAY)
    waits = [validity.retry_s(START + 10 * DAY, n, 0.0) for n in (1, 2, 3, 4, 5, 60)]
    assert waits == [300, 600, 1200, 2400, 3600, 3600]
    assert validity.retry_s(START + 10 * DAY, 3, 0.999) == pytest.approx(600, rel=0.01)


def test_the_nearer_the_end_the_sooner_it_is_tried_again() -> None:
    validity = Validity(START, START + 30 * DAY)
    now, tries = validity.ends - timedelta(hours=1), 0
    while now < validity.ends:
        now += timedelta(seconds=validity.retry_s(now, 60, 0.0))
        tries += 1
    assert 10 < tries < 100
    assert (
        validity.retry_s(validity.ends + DAY, 60, 0.0) == 3600
    )  # in vain by then: no more than now and then


# -- what is believed ----------------------------------------------------------------------------------------


@dataclass
class Bench:
    """A node's home with a certificate, the authority that issues it, and a clock."""

    home: Home
    authority: Authority
    now: datetime

    def key(self) -> Any:
        return load_pem_private_key(self.home.tls_pem.read_bytes(), None)

    def leaf(self, **changes: Any) -> bytes:
        """A leaf as the authority issues it, now."""
        give = {"node": NODE, "key": self.key().public_key(), "now": self.now} | changes
        return self.authority.node_leaf(**give)

    def credentials(self) -> Credentials:
        return read_credentials(self.home)


@pytest.fixture
def bench(folder: Path) -> Bench:
    home = init_home(folder / "node", NODE, 2)
    (folder / "authority").mkdir()
    authority = Authority.create(
        NodeName("bureau.gz.example/coordinator"), START, folder / "authority/key", folder / "authority/crt"
    )
    bench = Bench(home, authority, START)
    home.authority_pem.write_bytes(authority.pem)
    home.leaf_pem.write_bytes(bench.leaf())
    bench.now += 11 * DAY
    return bench


def test_a_fresh_leaf_of_the_authority_is_taken(bench: Bench) -> None:
    leaf = bench.leaf()
    assert check_leaf(b"some text\n" + leaf, NODE, bench.credentials(), bench.now) == leaf
    # The coordinator's clock may be a little ahead: the leaf begins then.
    check_leaf(bench.leaf(now=bench.now + timedelta(minutes=9)), NODE, bench.credentials(), bench.now)


def test_the_request_is_for_the_same_key(bench: Bench) -> None:
    csr = make_csr(NODE, bench.home.tls_pem.read_bytes())
    assert read_csr(csr.decode()) == bench.key().public_key()


def built(bench: Bench, **changes: Any) -> bytes:
    """A leaf signed by the authority's key with one thing changed."""
    give: dict[str, Any] = {
        "names": [x509.UniformResourceIdentifier(f"minshu:node:{NODE}")],
        "usage": ExtendedKeyUsageOID.CLIENT_AUTH,
        "begins": bench.now,
        "life": 30 * DAY,
        "signer": bench.authority.key,
        "issuer": bench.authority.certificate.subject,
    } | changes
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NODE)]))
        .issuer_name(give["issuer"])
        .public_key(bench.key().public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(give["begins"])
        .not_valid_after(give["begins"] + give["life"])
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([give["usage"]]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(give["signer"].public_key()), critical=False
        )
    )
    if give["names"]:
        builder = builder.add_extension(x509.SubjectAlternativeName(give["names"]), critical=False)
    return builder.sign(give["signer"], SHA256()).public_bytes(Encoding.PEM)


def uri(name: str) -> Any:
    return x509.UniformResourceIdentifier(f"minshu:node:{name}")


def nested(bench: Bench) -> bytes:
    """A leaf issued by another leaf, both handed over."""
    middle = bench.leaf()
    issuer = x509.load_pem_x509_certificate(middle).subject
    return built(bench, signer=bench.key(), issuer=issuer) + middle


BAD: dict[str, tuple[Callable[[Bench], bytes], str]] = {
    "nothing": (lambda b: b"", "bad-certificate"),
    "no certificate": (lambda b: b.leaf().replace(b"MII", b"AAA"), "bad-certificate"),
    "two certificates": (lambda b: b.leaf() + b.leaf(), "bad-certificate"),
    "a chain": (nested, "bad-certificate"),
    "too long": (lambda b: b"#" * (1 << 20) + b.leaf(), "bad-certificate"),
    "another key": (lambda b: b.leaf(key=new_tls_key().public_key()), "wrong-certificate"),
    "another node": (lambda b: b.leaf(node=NodeName("health.gz.example/node-a")), "wrong-certificate"),
    "a second name": (lambda b: built(b, names=[uri(NODE), uri("x.example/x")]), "wrong-certificate"),
    "a host name besides": (lambda b: built(b, names=[uri(NODE), x509.DNSName("x")]), "wrong-certificate"),
    "no name": (lambda b: built(b, names=[]), "wrong-certificate"),
    "a server's": (lambda b: built(b, usage=ExtendedKeyUsageOID.SERVER_AUTH), "wrong-certificate"),
    "another authority's": (lambda b: built(b, signer=new_tls_key()), "wrong-certificate"),
    "signed by its own key": (
        lambda b: built(b, signer=b.key(), issuer=x509.load_pem_x509_certificate(b.leaf()).subject),
        "wrong-certificate",
    ),
    "not yet valid": (lambda b: built(b, begins=b.now + timedelta(minutes=6)), "certificate-window"),
    "expired": (lambda b: built(b, begins=b.now - 30 * DAY), "certificate-window"),
    "years of life": (lambda b: built(b, life=365 * DAY), "certificate-window"),
    "the present one": (lambda b: b.home.leaf_pem.read_bytes(), "certificate-window"),
    "due itself": (lambda b: built(b, begins=b.now - DAY, life=3 * DAY), "certificate-window"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_an_answer_that_is_not_this_nodes_next_leaf_changes_nothing(bench: Bench, name: str) -> None:
    make, code = BAD[name]
    before = bench.home.leaf_pem.read_bytes()
    with pytest.raises((InputError, SignatureInvalid)) as refused:
        check_leaf(make(bench), NODE, bench.credentials(), bench.now)
    assert refused.value.code == code
    assert refused.value.hint
    # And so in the node: logged, tried again later, nothing written.
    link = Link(bench, answers=[make(bench)])
    play(bench, link, until=lambda: len(link.asked) == 2)
    assert logged(bench, code)
    assert bench.home.leaf_pem.read_bytes() == before
    assert link.adopted == []


# -- the loop ------------------------------------------------------------------------------------------------


@dataclass
class Link:
    """A link that answers as told; `fails` are raised first, one after the other."""

    bench: Bench
    answers: list[bytes] = field(default_factory=list)
    fails: list[MinshuError] = field(default_factory=list)
    adopt_fails: list[MinshuError] = field(default_factory=list)
    up: bool = True
    asked: list[bytes] = field(default_factory=list)
    adopted: list[Credentials] = field(default_factory=list)

    async def renew(self, csr: bytes) -> bytes:
        self.asked.append(csr)
        if self.fails:
            raise self.fails.pop(0)
        return self.answers.pop(0) if self.answers else b""

    async def adopt(self, credentials: Credentials) -> None:
        if self.adopt_fails:
            raise self.adopt_fails.pop(0)
        self.adopted.append(credentials)


def logged(bench: Bench, code: str) -> bool:
    return bench.home.log.exists() and f" {code}" in bench.home.log.read_text()


def play(
    bench: Bench, link: Link, until: Callable[[], bool], credentials: Credentials | None = None
) -> list[float]:
    """Run the renewal until something holds; return how long it would have slept each time, in seconds."""
    slept: list[float] = []
    log = Log(bench.home.log, lambda: bench.now)

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if until():
            raise asyncio.CancelledError
        assert len(slept) < 1000
        bench.now += timedelta(seconds=seconds)

    renewal = Renewal(
        bench.home,
        link,
        credentials or bench.credentials(),
        now=lambda: bench.now,
        draw=lambda: 0.0,
        log=log,
        sleep=sleep,
    )

    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(renewal.run())
    log.close()
    return slept


def test_a_due_leaf_is_renewed_written_and_put_in_use(bench: Bench) -> None:
    old, new = bench.credentials(), bench.leaf()
    link = Link(bench, [new])
    slept = play(bench, link, until=lambda: bool(link.adopted))
    assert read_csr(link.asked[0].decode()) == bench.key().public_key()
    assert bench.home.leaf_pem.read_bytes() == new
    assert bench.home.leaf_pem.stat().st_mode & 0o777 == 0o600
    assert link.adopted == [replace(old, leaf=new)]
    assert slept == [0, renew.LOOK_S]
    assert logged(bench, "certificate-renewed")


def test_a_young_leaf_is_let_be_and_looked_at_every_hour(bench: Bench) -> None:
    bench.now = START + timedelta(hours=1)
    link = Link(bench, [bench.leaf(now=START + 10 * DAY)])
    slept = play(bench, link, until=lambda: bool(link.adopted))
    assert slept[:-2] == [renew.LOOK_S] * (10 * 24 - 2) + [3300]
    assert bench.now == START + 10 * DAY - timedelta(minutes=5)  # a leaf begins five minutes early


def test_a_link_that_is_down_is_waited_for(bench: Bench) -> None:
    link = Link(bench, [bench.leaf()], up=False)

    def until() -> bool:
        link.up = bench.now > START + 11 * DAY + timedelta(seconds=20)
        return bool(link.adopted)

    slept = play(bench, link, until)
    assert slept[:20] == [renew.LINK_S] * 20
    assert len(link.asked) == 1


def test_a_coordinator_that_refuses_is_asked_again_later_and_later(bench: Bench) -> None:
    link = Link(bench, [bench.leaf()], [Unreachable("no", code="call-refused")] * 6)
    slept = play(bench, link, until=lambda: bool(link.adopted))
    assert slept[:6] == [300, 600, 1200, 2400, 3600, 3600]
    assert logged(bench, "call-refused")


def test_a_leaf_that_could_not_be_put_in_use_is_kept_and_tried_again(bench: Bench) -> None:
    link = Link(bench, [bench.leaf()], adopt_fails=[Unreachable("gone")] * 2)
    slept = play(bench, link, until=lambda: bool(link.adopted))
    assert slept[:3] == [0, 300, 600]
    assert len(link.asked) == 1  # one renewal is enough


def test_a_full_disk_keeps_the_present_leaf(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    before = bench.home.leaf_pem.read_bytes()
    monkeypatch.setattr(renew, "write_durably", full)
    link = Link(bench, [bench.leaf()])
    play(bench, link, until=lambda: bool(link.asked))
    assert logged(bench, "home-unwritable")
    assert bench.home.leaf_pem.read_bytes() == before
    assert not link.adopted


def test_a_node_enrolled_again_while_it_runs_takes_up_the_new_leaf(bench: Bench) -> None:
    bench.now = START + 40 * DAY
    expired = bench.credentials()
    link = Link(bench)

    def until() -> bool:
        if not logged(bench, "certificate-expired"):
            return False
        if not link.adopted:
            bench.home.leaf_pem.write_bytes(bench.leaf())
        return bool(link.adopted)

    play(bench, link, until, expired)
    assert not link.asked
    assert validity_of(link.adopted[0].leaf).ends > bench.now


def test_a_node_with_an_expired_certificate_does_not_start_and_says_what_to_do(bench: Bench) -> None:
    roots = {
        "schema": "minshu-roots/1",
        "collaboration": "gz.example",
        "threshold": 2,
        "keys": sorted(bytes([n] * 32).hex() for n in range(3)),
    }
    record = {"schema": ENROLMENT_SCHEMA, "address": "127.0.0.1:1", "roots": roots}
    bench.home.enrolment.write_bytes(canonical_json(record))
    old = datetime.now(UTC) - 31 * DAY
    bench.home.leaf_pem.write_bytes(bench.leaf(now=old))
    with pytest.raises(InputError) as expired:
        run_node(bench.home, None, print)
    assert expired.value.code == "certificate-expired"
    assert "minshu-node enrol" in expired.value.hint


@pytest.mark.parametrize("damaged", ["leaf_pem", "authority_pem"])
def test_damaged_certificates_are_a_clear_error(bench: Bench, damaged: str) -> None:
    path: Path = getattr(bench.home, damaged)
    path.write_bytes(b"damaged")
    with pytest.raises(InputError) as found:
        read_credentials(bench.home)
    assert found.value.code == "bad-certificate"
    path.unlink()
    with pytest.raises(InputError) as missing:
        read_credentials(bench.home)
    assert missing.value.code == "not-enrolled"


# -- the doctor ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("days", "found"),
    [
        (0, "ok: valid until 2026-12-22T07:55:00Z, renewed by itself from 2026-12-02T07:55:00Z"),
        (12, "ok: valid until"),
        (16, "warning: valid until 2026-12-22T07:55:00Z, not renewed though due since 2026-12-02T07:55:00Z"),
        (31, "error: expired 2026-12-22T07:55:00Z"),
        (-1, "error: it is not valid yet"),
    ],
)
def test_the_doctor_says_that_certificates_renew_themselves_and_what_if_not(
    bench: Bench, days: int, found: str
) -> None:
    roots = {"schema": "minshu-roots/1", "collaboration": "c", "threshold": 1, "keys": ["ab" * 32]}
    record = {"schema": ENROLMENT_SCHEMA, "address": "127.0.0.1:1", "roots": roots}
    bench.home.enrolment.write_bytes(canonical_json(record))
    [finding] = [f for f in examine(bench.home, START + days * DAY) if f.what == "certificate"]
    assert f"{finding.state}: {finding.found}".startswith(found)
    assert bool(finding.hint) == (finding.state != "ok")
    assert ("enrol" in finding.hint) == finding.found.startswith("expired")
