"""Enrolment from the node's side: what it sends, what it checks, and that a failure leaves nothing behind."""

import base64
import hashlib
import hmac
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey
from tls_authority import Authority

from audit.note import COSIGNATURE, ML_DSA_44, VerifierKey
from minshu.v1 import enrolment_pb2, enrolment_pb2_grpc
from node.enrol import TOKEN, enrol, read_token
from node.home import Home, init_home
from protocols.encoding import canonical_json, decode_json, sha256_digest
from protocols.envelope import ENROLMENT, decode_envelope, key_id, verify
from protocols.errors import InputError, MinshuError

SECRET = bytes(range(16))
NODE = "health.gz.example/node-a"
ROOTS = canonical_json(
    {
        "schema": "minshu-roots/1",
        "collaboration": "gz.example",
        "threshold": 2,
        "keys": ["aa" * 32, "bb" * 32, "cc" * 32],
    }
)
FINGERPRINT = sha256_digest(ROOTS)


class Service(enrolment_pb2_grpc.EnrolmentServiceServicer):
    """Certifies what it is asked to, or misbehaves."""

    def __init__(self, authority: Authority) -> None:
        self.authority = authority
        self.asked: list[dict[str, Any]] = []
        self.roots, self.other_key, self.refuse = ROOTS, False, False

    def Enrol(self, request: Any, context: Any) -> Any:
        if self.refuse:
            context.set_trailing_metadata(
                (("minshu-code", "token-unknown"), ("minshu-hint-bin", b"ask for a new one"))
            )
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "the token is unknown")
        envelope = decode_envelope(request.request)
        asked = decode_json(envelope.payload)
        identity = bytes.fromhex(asked["identity_key"])
        assert verify(envelope, ENROLMENT, {key_id(identity): identity})
        digest = hashlib.sha256(request.request).digest()
        assert hmac.digest(hashlib.sha256(SECRET).digest(), digest, "sha256") == request.mac
        self.asked.append(asked)
        csr = x509.load_pem_x509_csr(asked["csr"].encode())
        leaf = self.authority.certify("node", csr.public_key())
        if self.other_key:
            leaf, _ = self.authority.leaf("node")
        return enrolment_pb2.EnrolResponse(
            certificate=leaf, authority=self.authority.pem, address="127.0.0.1:9", roots=self.roots
        )


@pytest.fixture
def service() -> Iterator[tuple[Service, int]]:
    authority = Authority()
    made = Service(authority)
    server = grpc.server(ThreadPoolExecutor(2))
    enrolment_pb2_grpc.add_EnrolmentServiceServicer_to_server(made, server)
    leaf, key = authority.leaf("coordinator")
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, leaf)]))
    server.start()
    yield made, port
    server.stop(0)


def token(authority: bytes, port: int, node: str = NODE, **changes: Any) -> str:
    plain = {
        "address": f"127.0.0.1:{port}",
        "authority": authority.decode(),
        "node": node,
        "secret": SECRET.hex(),
    } | changes
    return TOKEN + base64.urlsafe_b64encode(canonical_json(plain)).rstrip(b"=").decode()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return init_home(tmp_path / "home", NODE, 2)


def nothing_kept(home: Home) -> bool:
    return not any(p.exists() for p in (home.enrolment, home.leaf_pem, home.authority_pem))


def test_a_node_enrols_and_pins_the_roots(home: Home, service: tuple[Service, int]) -> None:
    made, port = service
    enrolled = enrol(home, token(made.authority.pem, port), FINGERPRINT)
    assert (enrolled.collaboration, enrolled.threshold, enrolled.address) == ("gz.example", 2, "127.0.0.1:9")
    assert home.enrolled() == enrolled
    [asked] = made.asked
    assert asked["node"] == NODE
    assert asked["identity_key"] == home.signer.public_key.hex()
    assert asked["journal_vkey"].startswith(f"{NODE}/journal/1+")
    assert asked["witness_vkeys"] == list(home.witness_vkeys)
    assert asked["token_sha256_prefix"] == hashlib.sha256(SECRET).hexdigest()[:8]
    assert SECRET.hex() not in str(asked)


def test_each_witness_key_proves_that_this_node_has_it(home: Home, service: tuple[Service, int]) -> None:
    made, port = service
    enrol(home, token(made.authority.pem, port), FINGERPRINT)
    stated = made.asked[0]
    proofs = [bytes.fromhex(proof) for proof in stated.pop("witness_proofs")]
    message = b"minshu-enrolment/2\0" + hashlib.sha256(canonical_json(stated)).digest()
    ed25519, mldsa = map(VerifierKey.parse, stated["witness_vkeys"])
    assert (ed25519.type, mldsa.type) == (COSIGNATURE, ML_DSA_44)
    assert {ed25519.name, mldsa.name} == {f"{NODE}/witness/1"}
    assert ed25519.public_key != home.signer.public_key
    Ed25519PublicKey.from_public_bytes(ed25519.public_key).verify(proofs[0], message)
    MLDSA44PublicKey.from_public_bytes(mldsa.public_key).verify(proofs[1], message)


def test_other_roots_than_those_compared_out_of_band_are_not_pinned(
    home: Home, service: tuple[Service, int]
) -> None:
    made, port = service
    made.roots = ROOTS.replace(b"cc", b"dd")
    with pytest.raises(MinshuError) as caught:
        enrol(home, token(made.authority.pem, port), FINGERPRINT)
    assert caught.value.code == "wrong-roots"
    assert nothing_kept(home)


def test_a_certificate_for_another_key_is_not_kept(home: Home, service: tuple[Service, int]) -> None:
    made, port = service
    made.other_key = True
    with pytest.raises(MinshuError) as caught:
        enrol(home, token(made.authority.pem, port), FINGERPRINT)
    assert caught.value.code == "wrong-certificate"
    assert nothing_kept(home)


def test_the_coordinators_refusal_is_told_as_it_put_it(home: Home, service: tuple[Service, int]) -> None:
    made, port = service
    made.refuse = True
    with pytest.raises(MinshuError) as caught:
        enrol(home, token(made.authority.pem, port), FINGERPRINT)
    assert (caught.value.code, caught.value.hint) == ("token-unknown", "ask for a new one")
    assert nothing_kept(home)


def test_a_coordinator_with_another_certificate_is_not_talked_to(
    home: Home, service: tuple[Service, int]
) -> None:
    made, port = service
    with pytest.raises(MinshuError) as caught:
        enrol(home, token(Authority().pem, port), FINGERPRINT)
    assert caught.value.code == "unreachable"
    assert not made.asked


def test_a_token_of_another_node_is_not_used(home: Home, service: tuple[Service, int]) -> None:
    made, port = service
    with pytest.raises(InputError) as caught:
        enrol(home, token(made.authority.pem, port, "police.gz.example/node-a"), FINGERPRINT)
    assert caught.value.code == "token-of-another-node"
    assert not made.asked


@pytest.mark.parametrize(
    "line", ["", TOKEN, TOKEN + "!!", "minshu-token-2.abc", TOKEN + "e30", TOKEN + "A" * 20_000]
)
def test_what_is_no_token_is_refused(line: str) -> None:
    with pytest.raises(InputError) as caught:
        read_token(line)
    assert caught.value.code == "bad-token"


def test_a_token_survives_the_blanks_of_copying() -> None:
    line = token(b"pem", 1)
    assert read_token(f"  {line}\n").secret == SECRET
    with pytest.raises(InputError):
        read_token(token(b"pem", 1, secret="00" * 8))
