"""RFC 3161 time stamps over checkpoints, by an authority that openssl plays in a folder of the test."""

import random
import shutil
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from audit import timestamps
from protocols.errors import DecodeError, InputError, MinshuError, SignatureInvalid, StateConflict

GOLDEN = Path(__file__).parents[1] / "vectors" / "golden_logs"
CHECKPOINT = (GOLDEN / "257" / "checkpoint.cosigned").read_bytes()
OTHER = (GOLDEN / "256" / "checkpoint.cosigned").read_bytes()

STAMPING = ExtendedKeyUsageOID.TIME_STAMPING
CONFIG = """
[tsa]
default_tsa = stamps
[stamps]
serial = serial
signer_cert = {name}.pem
certs = {certs}
signer_key = {name}.key
signer_digest = {digest}
default_policy = 1.3.6.1.4.1.99999.1
digests = {accepted}
accuracy = secs:1
ess_cert_id_alg = sha256
"""


@dataclass(frozen=True)
class Certified:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def certified(name: str, by: Certified | None, begins: datetime, ends: datetime, *, rsa_key: bool = False,
              purpose: x509.ObjectIdentifier | None = STAMPING) -> Certified:  # fmt: skip
    """Make a root, where `by` is None, or an authority's certificate."""
    key = rsa.generate_private_key(65537, 2048) if rsa_key else ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by.certificate.subject if by else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca=by is None, path_length=None), critical=True)
    )
    if by and purpose:
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=True)
    return Certified(builder.sign((by or Certified(builder, key)).key, hashes.SHA256()), key)  # type: ignore[arg-type]


@dataclass
class Authority:
    """A time-stamping authority: roots, and openssl to answer for each kind of certificate."""

    folder: Path

    def __post_init__(self) -> None:
        now = datetime.now(UTC)
        self.root = self.keep(
            "root", certified("Root", None, now - timedelta(days=9), now + timedelta(days=9))
        )
        self.stranger = self.keep("stranger", certified("Root", None, now - timedelta(1), now + timedelta(1)))
        since, until = now - timedelta(hours=1), now + timedelta(hours=1)
        self.keep("tsa", certified("Stamps", self.root, since, until))
        self.keep("rsa", certified("RSA stamps", self.root, since, until, rsa_key=True))
        self.keep(
            "expired", certified("Old stamps", self.root, now - timedelta(days=2), now - timedelta(days=1))
        )
        mail = ExtendedKeyUsageOID.EMAIL_PROTECTION
        self.keep("mail", certified("Mail", self.root, since, until, purpose=mail))
        self.keep("plain", certified("Plain", self.root, since, until, purpose=None))
        (self.folder / "serial").write_text("01\n")

    def keep(self, name: str, it: Certified) -> Certified:
        (self.folder / f"{name}.pem").write_bytes(it.certificate.public_bytes(Encoding.PEM))
        key = it.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (self.folder / f"{name}.key").write_bytes(key)
        return it

    def roots(self, name: str = "root") -> bytes:
        return (self.folder / f"{name}.pem").read_bytes()

    def answer(
        self, query: bytes, name: str = "tsa", *, digest: str = "sha256", accepted: str = "sha256, sha512"
    ) -> bytes:
        """What the authority sends back, with its own certificate and the root's."""
        config = CONFIG.format(name=name, certs="root.pem", digest=digest, accepted=accepted)
        (self.folder / "tsa.cnf").write_text(config)
        (self.folder / "query.tsq").write_bytes(query)
        self.openssl("ts -reply -queryfile query.tsq -config tsa.cnf -out reply.tsr")
        return (self.folder / "reply.tsr").read_bytes()

    def by_hand(self, name: str, moment: datetime) -> bytes:
        """A token over `CHECKPOINT` with another time, which openssl's authority would not put there."""
        self.answer(timestamps.request(CHECKPOINT))
        self.openssl("ts -reply -in reply.tsr -token_out -out token.der")
        self.openssl("cms -verify -noverify -inform DER -in token.der -out info.der")
        info = (self.folder / "info.der").read_bytes()
        at = info.index(b"\x18\x0f") + 2
        (self.folder / "info.der").write_bytes(
            info[:at] + f"{moment:%Y%m%d%H%M%SZ}".encode() + info[at + 15 :]
        )
        self.openssl(
            "cms -sign -binary -nodetach -cades -md sha256 -econtent_type 1.2.840.113549.1.9.16.1.4"
            f" -in info.der -signer {name}.pem -inkey {name}.key -outform DER -out token.der"
        )
        token = (self.folder / "token.der").read_bytes()
        content = b"\x30\x03\x02\x01\x00" + token
        return b"\x30\x82" + len(content).to_bytes(2, "big") + content

    def openssl(self, words: str) -> str:
        done = subprocess.run(
            ["openssl", *words.split()], cwd=self.folder, capture_output=True, text=True, timeout=30
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def reply(authority: Authority) -> bytes:
    return authority.answer(timestamps.request(CHECKPOINT))


def refusal(checkpoint: bytes, reply: bytes, roots: bytes) -> str:
    with pytest.raises(MinshuError) as caught:
        timestamps.verify(checkpoint, reply, roots)
    assert caught.value.hint
    return caught.value.code


# ---------------------------------------------------------------- asking and checking


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_request_asks_openssl_for_the_digest_of_the_file_with_nonce_and_certificates(authority, algorithm):
    (authority.folder / "asked.tsq").write_bytes(timestamps.request(CHECKPOINT, algorithm))
    text = authority.openssl("ts -query -in asked.tsq -text")
    assert f"Hash Algorithm: {algorithm}" in text
    assert "Certificate required: yes" in text
    assert "Nonce: 0x" in text
    assert timestamps.request(CHECKPOINT, algorithm) != timestamps.request(CHECKPOINT, algorithm)


def test_what_is_no_checkpoint_is_not_stamped():
    with pytest.raises(DecodeError):
        timestamps.request(b"a text of any kind\n")


@pytest.mark.parametrize("name", ["tsa", "rsa"])
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_token_says_when_the_checkpoint_existed(authority, name, algorithm):
    before = datetime.now(UTC).replace(microsecond=0)
    reply = authority.answer(timestamps.request(CHECKPOINT, algorithm), name, digest=algorithm)
    stamped = timestamps.verify(CHECKPOINT, reply, authority.roots())
    assert before <= stamped.time <= datetime.now(UTC)
    assert stamped.authority == {"tsa": "CN=Stamps", "rsa": "CN=RSA stamps"}[name]
    assert stamped.policy == "1.3.6.1.4.1.99999.1"
    assert stamped.serial > 0
    (authority.folder / "data").write_bytes(CHECKPOINT)
    assert "OK" in authority.openssl("ts -verify -in reply.tsr -data data -CAfile root.pem")


def test_the_right_root_may_stand_among_others(authority, reply):
    both = authority.roots("stranger") + authority.roots()
    assert timestamps.verify(CHECKPOINT, reply, both) == timestamps.verify(
        CHECKPOINT, reply, authority.roots()
    )


def test_a_token_from_before_its_certificate_ended_still_counts(authority):
    """That is what a time stamp is for: the certificate ended yesterday, the token is older."""
    old = x509.load_pem_x509_certificate(authority.roots("expired"))
    moment = (old.not_valid_before_utc + timedelta(hours=1)).replace(microsecond=0)
    stamped = timestamps.verify(CHECKPOINT, authority.by_hand("expired", moment), authority.roots())
    assert stamped.time == moment
    assert stamped.authority == "CN=Old stamps"


# ---------------------------------------------------------------- refusals


def test_a_token_from_outside_its_certificates_time_is_refused(authority):
    assert (
        refusal(CHECKPOINT, authority.answer(timestamps.request(CHECKPOINT), "expired"), authority.roots())
        == "timestamp-untrusted"
    )
    for name, hours in (("expired", -48), ("tsa", 24 * 9), ("tsa", -24 * 9)):
        until = x509.load_pem_x509_certificate(authority.roots(name)).not_valid_before_utc
        moment = (until + timedelta(hours=hours)).replace(microsecond=0)
        assert (
            refusal(CHECKPOINT, authority.by_hand(name, moment), authority.roots()) == "timestamp-untrusted"
        )


def test_a_certificate_for_another_purpose_is_refused(authority):
    now = datetime.now(UTC).replace(microsecond=0)
    assert timestamps.verify(CHECKPOINT, authority.by_hand("tsa", now), authority.roots()).time == now
    for name in ("mail", "plain"):
        assert refusal(CHECKPOINT, authority.by_hand(name, now), authority.roots()) == "timestamp-untrusted"


def test_another_authority_of_the_same_name_is_refused(authority, reply):
    assert refusal(CHECKPOINT, reply, authority.roots("stranger")) == "timestamp-untrusted"


def test_a_token_about_another_checkpoint_is_refused(authority, reply):
    assert refusal(OTHER, reply, authority.roots()) == "timestamp-mismatch"
    assert timestamps.covers(CHECKPOINT, reply)
    assert not timestamps.covers(OTHER, reply)


def test_an_answer_without_a_token_is_refused(authority):
    asked = timestamps.request(CHECKPOINT, "sha512")
    rejected = authority.answer(asked, accepted="sha256")
    assert refusal(CHECKPOINT, rejected, authority.roots()) == "timestamp-refused"
    with pytest.raises(SignatureInvalid, match="rejection"):
        timestamps.covers(CHECKPOINT, rejected)


@pytest.mark.parametrize("size", [0, 1, 40, 500, -1])
def test_a_cut_answer_is_refused(authority, reply, size):
    assert refusal(CHECKPOINT, reply[:size], authority.roots()) == "bad-timestamp"


def test_an_answer_with_something_behind_it_or_too_long_is_refused(authority, reply):
    assert refusal(CHECKPOINT, reply + b"\0", authority.roots()) == "bad-timestamp"
    assert refusal(CHECKPOINT, bytes(1 << 20), authority.roots()) == "bad-timestamp"


def flips(reply: bytes, seed: int | None) -> list[tuple[int, int]]:
    bits = [(at, 1 << bit) for at in range(len(reply)) for bit in range(8)]
    return bits if seed is None else random.Random(seed).sample(bits, 400)


def check_flips(authority: Authority, reply: bytes, seed: int | None) -> None:
    for at, bit in flips(reply, seed):
        changed = bytearray(reply)
        changed[at] ^= bit
        assert refusal(CHECKPOINT, bytes(changed), authority.roots()) in {
            "bad-timestamp", "timestamp-untrusted", "timestamp-mismatch", "timestamp-refused",
        }, (at, bit)  # fmt: skip


@pytest.mark.parametrize("name", ["tsa", "rsa"])
def test_a_sample_of_flipped_bits_is_refused_whether_a_signature_covers_them_or_not(authority, name):
    check_flips(authority, authority.answer(timestamps.request(CHECKPOINT), name), 3161)


def test_a_certificate_whose_signature_says_that_some_bits_do_not_count_is_refused(tmp_path):
    # Only where those bits are zero is that still DER: about every second certificate will do.
    for number in range(20):
        (folder := tmp_path / str(number)).mkdir()
        authority = Authority(folder)
        reply = authority.answer(timestamps.request(CHECKPOINT))
        certificate = x509.load_pem_x509_certificate((folder / "tsa.pem").read_bytes())
        if not certificate.signature[-1] & 1:
            break
    changed = bytearray(reply)
    changed[reply.index(b"\0" + certificate.signature)] = 1
    assert refusal(CHECKPOINT, bytes(changed), authority.roots()) == "timestamp-untrusted"


@pytest.mark.long
@pytest.mark.parametrize("name", ["tsa", "rsa"])
def test_every_flipped_bit_is_refused(authority, name):
    check_flips(authority, authority.answer(timestamps.request(CHECKPOINT), name), None)


def test_roots_that_are_no_certificates_are_the_callers_mistake(reply):
    for roots in (b"", b"root", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        with pytest.raises(InputError) as caught:
            timestamps.verify(CHECKPOINT, reply, roots)
        assert caught.value.code == "bad-tsa-roots"


# ---------------------------------------------------------------- in the log's folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(GOLDEN / "257", tmp_path / "log")


def test_an_answer_is_kept_beside_its_checkpoint(folder, reply, authority):
    assert timestamps.attach(folder, CHECKPOINT, reply, authority.roots()) == 257
    kept = {path.name: path.read_bytes() for path in (folder / "timestamps").iterdir()}
    assert kept == {"257.tsr": reply, "257.checkpoint": CHECKPOINT}
    assert timestamps.attach(folder, CHECKPOINT, reply) == 257  # again: nothing changes
    assert not list(folder.glob(".new*"))


def test_an_answer_about_something_else_is_not_kept(folder, reply, authority):
    for checkpoint, roots, code in (
        (OTHER, None, "timestamp-mismatch"),
        (CHECKPOINT, authority.roots("stranger"), "timestamp-untrusted"),
    ):
        with pytest.raises(SignatureInvalid) as caught:
            timestamps.attach(folder, checkpoint, reply, roots)
        assert caught.value.code == code
    assert not (folder / "timestamps").exists()


def test_a_second_answer_never_replaces_the_first(folder, reply, authority):
    timestamps.attach(folder, CHECKPOINT, reply)
    with pytest.raises(StateConflict) as caught:
        timestamps.attach(folder, CHECKPOINT, authority.answer(timestamps.request(CHECKPOINT)))
    assert caught.value.code == "timestamp-exists"
    assert (folder / "timestamps" / "257.tsr").read_bytes() == reply


def test_the_checkpoint_that_was_stamped_is_found_in_the_folder_or_said_to_be_gone(folder, reply):
    assert timestamps.find(folder, reply) == CHECKPOINT
    (folder / "checkpoint.cosigned").rename(folder / "checkpoint.old")
    assert timestamps.find(folder, reply) == CHECKPOINT
    (folder / "checkpoint.old").unlink()
    with pytest.raises(SignatureInvalid) as caught:
        timestamps.find(folder, reply)
    assert caught.value.code == "timestamp-mismatch"
