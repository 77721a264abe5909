"""Enrolment: a one-time token becomes a TLS certificate and pinned root keys.

The token says where to dial and which authority to expect there; the fingerprint of the root keys comes on
another way. A coordinator that knows the token enrols nobody: what it certifies is the key that this node
made, and the roster's signers compare the identity fingerprint out of band.
"""

import base64
import binascii
import hashlib
import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from node.home import ENROLMENT_SCHEMA, Enrolled, Home, read_private, read_roots, write_durably
from protocols.encoding import canonical_json, decode_json, sha256_digest
from protocols.envelope import ENROLMENT, sign
from protocols.errors import DecodeError, InputError, MinshuError, Refused, SignatureInvalid, Unreachable
from protocols.wire import Fields

if TYPE_CHECKING:
    import grpc

TOKEN: Final = "minshu-token-1."  # noqa: S105  # a prefix, no secret
MAX_TOKEN: Final = 16 << 10
TIMEOUT_S: Final = 20.0
_SCHEMA: Final = "minshu-enrolment/2"


@dataclass(frozen=True, slots=True)
class Token:
    """What the coordinator's operator hands over: where to dial, whom to expect, and 16 secret bytes."""

    address: str
    authority: str
    node: str
    secret: bytes


def read_token(line: str) -> Token:
    """Return the token in one line.

    Raises:
        InputError: it is none.
    """
    wrong = InputError(
        f"not one whole line that begins with {TOKEN}",
        code="bad-token",
        hint="copy the line that minshu-coordinator token printed, without blanks or line breaks",
    )
    text = line.strip()
    if not text.startswith(TOKEN) or len(text) > MAX_TOKEN:
        raise wrong
    body = text.removeprefix(TOKEN)
    try:
        f = Fields(
            decode_json(base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)),
            "token",
        )
        token = Token(
            address=f.text("address"),
            authority=f.take("authority", str),
            node=f.text("node"),
            secret=bytes.fromhex(f.text("secret")),
        )
        f.finish()
    except (DecodeError, ValueError, binascii.Error):
        raise wrong from None
    if len(token.secret) != 16:
        raise wrong
    return token


def enrol(home: Home, line: str, roots: str) -> Enrolled:
    """Enrol this node and keep what it is given.

    (1) The token is for this node. (2) The request names keys this node made, signed by its identity key and
    keyed with the token. (3) The root keys handed back have the fingerprint that was compared out of band.
    (4) The certificate is for this node's own TLS key. Only then is anything written.

    Args:
        home: the node's folder.
        line: the token.
        roots: `sha256:…`, the fingerprint of the collaboration's root keys.

    Raises:
        InputError: (1), or the coordinator's answer makes no sense.
        SignatureInvalid: (3) or (4) does not hold.
        MinshuError: what the coordinator answered.
        Unreachable: it could not be reached.
    """
    token = read_token(line)
    # (1)
    if token.node != home.name:
        raise InputError(
            f"the token is for {token.node}, this node is {home.name}",
            code="token-of-another-node",
            hint="ask for a token with this node's name",
        )
    # (2)
    request = _request(home, token)
    key = hashlib.sha256(token.secret).digest()
    mac = hmac.digest(key, hashlib.sha256(request).digest(), "sha256")
    answer = _call(token, request, mac)
    # (3)
    if not hmac.compare_digest(sha256_digest(answer.roots).encode(), roots.encode()):
        raise SignatureInvalid(
            f"the root keys have the fingerprint {sha256_digest(answer.roots)}, expected another",
            code="wrong-roots",
            hint="compare the fingerprint with the root key holders, not with the coordinator's operator, "
            "and ask for a new token: this one is used",
        )
    try:
        plain = decode_json(answer.roots)
        enrolled = read_roots(answer.address, plain)
    except DecodeError as error:
        raise InputError(f"the root keys are malformed: {error.message}", code="bad-roots") from None
    # (4)
    _check_leaf(home, answer.certificate)
    record = canonical_json({"schema": ENROLMENT_SCHEMA, "address": answer.address, "roots": plain})
    try:
        write_durably(home.authority_pem, answer.authority)
        write_durably(home.leaf_pem, answer.certificate)
        write_durably(home.enrolment, record)
    except OSError as error:
        raise InputError(
            f"the enrolment cannot be written ({error.strerror})", code="home-unwritable"
        ) from None
    return enrolled


def _tls_key(home: Home) -> Any:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        return load_pem_private_key(read_private(home.tls_pem), None)
    except (ValueError, TypeError):
        raise InputError("keys/tls.pem is no private key", code="bad-key") from None


def _request(home: Home, token: Token) -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509.oid import NameOID

    from audit.note import ED25519, VerifierKey
    from protocols.channel.suites import public_key

    signer, suite = home.signer, home.config.suite
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, home.name[:64])])
    csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(_tls_key(home), SHA256())
    cosigner = home.cosigner
    stated = {
        "schema": _SCHEMA,
        "node": home.name,
        "csr": csr.public_bytes(Encoding.PEM).decode("ascii"),
        "identity_key": signer.public_key.hex(),
        "journal_vkey": str(VerifierKey(home.origin, ED25519, signer.public_key)),
        "witness_vkeys": list(home.witness_vkeys),
        "recipient_key": public_key(suite, home.recipient_private()).hex(),
        "suite": suite,
        "token_sha256_prefix": hashlib.sha256(token.secret).hexdigest()[:8],
    }
    # Cosignatures begin otherwise, so that a proof can never be taken for one.
    proven = f"{_SCHEMA}\0".encode() + hashlib.sha256(canonical_json(stated)).digest()
    proofs = [key.sign(proven).hex() for key in (cosigner.ed25519, cosigner.mldsa) if key is not None]
    return sign(ENROLMENT, canonical_json(stated | {"witness_proofs": proofs}), [signer]).encode()


def _call(token: Token, request: bytes, mac: bytes) -> Any:
    import grpc

    from minshu.v1 import enrolment_pb2, enrolment_pb2_grpc

    credentials = grpc.ssl_channel_credentials(root_certificates=token.authority.encode())
    options = [("grpc.enable_http_proxy", 0)]
    with grpc.secure_channel(token.address, credentials, options=options) as channel:
        stub = enrolment_pb2_grpc.EnrolmentServiceStub(channel)
        try:
            return stub.Enrol(enrolment_pb2.EnrolRequest(request=request, mac=mac), timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            raise _answered(error) from None


def _answered(error: "grpc.RpcError") -> MinshuError:
    """Return the coordinator's refusal as it put it, or that it could not be reached."""
    metadata = {item.key: item.value for item in error.trailing_metadata() or ()}
    code = metadata.get("minshu-code", "")
    if isinstance(code, str) and code:
        hint = metadata.get("minshu-hint-bin", b"")
        plain = hint.decode("utf-8", "replace") if isinstance(hint, bytes) else str(hint)
        return Refused(str(error.details() or code)[:1024], code=code, hint=plain[:1024])
    return Unreachable(
        "the coordinator cannot be reached, or its certificate is not the one the token names",
        code="unreachable",
        hint="check the network; ask for a new token if the coordinator moved",
    )


def _check_leaf(home: Home, certificate: bytes) -> None:
    from cryptography import x509

    try:
        leaf = x509.load_pem_x509_certificate(certificate)
    except ValueError:
        raise InputError("the coordinator's answer is no certificate", code="bad-certificate") from None
    if leaf.public_key() != _tls_key(home).public_key():
        raise SignatureInvalid(
            "the certificate is for another key than this node's", code="wrong-certificate"
        )
