"""The coordinator's certificate authority: it says whose TLS key is whose, and nothing more.

A leaf only opens a connection. Whether its key is a member's is decided by the roster, which the authority
cannot sign, on every call. The roster binds the key, not the leaf: renewal gives the same key a new leaf, and
a new key comes only by enrolling again and with the next roster.
"""

import hashlib
import hmac
import ipaddress
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from coordinator.files import read_bounded, write_new
from protocols.errors import DecodeError, InputError, Refused, SignatureInvalid
from protocols.ids import Digest, NodeName

LEAF_LIFE: Final = timedelta(days=30)
RENEWALS_AN_HOUR: Final = 10
"""Renewals that a node may try in an hour; one that backs off as it should needs fewer."""

_AUTHORITY_LIFE: Final = timedelta(days=3650)
_BACKDATED: Final = timedelta(minutes=5)
"""A leaf begins a little earlier, because the peer's clock may lag."""

MAX_PEM_BYTES: Final = 16 << 10
MAX_CSR_BYTES: Final = 8 << 10
_URI: Final = "minshu:node:"


def new_tls_key() -> ec.EllipticCurvePrivateKey:
    """Return a fresh P-256 key; gRPC refuses Ed25519 leaves."""
    return ec.generate_private_key(ec.SECP256R1())


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the key as PKCS#8 PEM."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def load_tls_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Return the P-256 key in `path`.

    Raises:
        InputError: no such file, or another kind of key.
    """
    try:
        key = load_pem_private_key(read_bounded(path, MAX_PEM_BYTES), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InputError(f"{path} is not an unencrypted P-256 key in PEM", code="bad-key")
    return key


def spki_digest(key: ec.EllipticCurvePublicKey) -> Digest:
    """Return `sha256:` of the key's SubjectPublicKeyInfo, as rosters name it."""
    return Digest(
        "sha256:"
        + hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
    )


def peer_of(certificate: bytes) -> tuple[str, Digest]:
    """Return the node name and the SPKI digest of a TLS peer's leaf (PEM).

    The name stands in a `minshu:node:` URI, because a common name ends at 64 characters.

    Raises:
        DecodeError: not a node's leaf with a P-256 key.
    """
    wrong = DecodeError("the TLS certificate is not one of this authority's leaves", code="bad-certificate")
    if len(certificate) > MAX_PEM_BYTES:
        raise wrong
    try:
        leaf = x509.load_pem_x509_certificate(certificate)
        key = leaf.public_key()
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (ValueError, UnsupportedAlgorithm, x509.ExtensionNotFound):
        raise wrong from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or len(uris) != 1 or not uris[0].startswith(_URI):
        raise wrong
    return uris[0].removeprefix(_URI), spki_digest(key)


def read_csr(pem: str) -> ec.EllipticCurvePublicKey:
    """Return the public key of a certificate request that its own key signed.

    Raises:
        DecodeError: not a request.
        InputError: not P-256, or the signature does not hold.
    """
    request, key = _parsed(pem)
    _check_signature(request)
    return key


def _parsed(pem: str) -> tuple[x509.CertificateSigningRequest, ec.EllipticCurvePublicKey]:
    try:
        request = x509.load_pem_x509_csr(pem.encode("utf-8"))
        key = request.public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise DecodeError("the certificate request is not PKCS#10 in PEM", code="bad-csr") from None
    # The signature of a huge RSA key would cost whoever checks it.
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InputError("the certificate request has no P-256 key", code="bad-csr")
    return request, key


def _check_signature(request: x509.CertificateSigningRequest) -> None:
    try:
        valid = request.is_signature_valid
    except (ValueError, UnsupportedAlgorithm, InvalidSignature):
        raise DecodeError("the certificate request is not PKCS#10 in PEM", code="bad-csr") from None
    if not valid:
        raise InputError("the certificate request is not signed by its own key", code="bad-csr")


@dataclass(frozen=True, slots=True)
class Authority:
    """The CA's key and certificate, and how long its leaves live: 30 days at most."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    leaf_life: timedelta = LEAF_LIFE

    @classmethod
    def create(cls, name: NodeName, now: datetime, key_path: Path, certificate_path: Path) -> "Authority":
        """Make a CA and write both files; neither is overwritten."""
        key = new_tls_key()
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} authority"[:64])])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _BACKDATED)
            .not_valid_after(now + _AUTHORITY_LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(authority=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        write_new(key_path, private_pem(key), 0o600)
        write_new(certificate_path, certificate.public_bytes(Encoding.PEM), 0o644)
        return cls(key, certificate)

    @classmethod
    def load(cls, key_path: Path, certificate_path: Path) -> "Authority":
        """Read both files.

        Raises:
            InputError: one is missing or not what it should be.
        """
        try:
            certificate = x509.load_pem_x509_certificate(read_bounded(certificate_path, MAX_PEM_BYTES))
        except ValueError:
            raise InputError(f"{certificate_path} is not a certificate in PEM", code="bad-key") from None
        return cls(load_tls_key(key_path), certificate)

    @property
    def pem(self) -> bytes:
        """The CA certificate."""
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def renew_after(self) -> timedelta:
        """How old a leaf is when the next one is due: a third of its life."""
        return self.leaf_life / 3

    def node_leaf(self, node: NodeName, key: ec.EllipticCurvePublicKey, now: datetime) -> bytes:
        """Return a client leaf for `node`, PEM."""
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(_URI + node)]
        return self._leaf(node, key, names, ExtendedKeyUsageOID.CLIENT_AUTH, now)

    def server_leaf(self, hosts: list[str], key: ec.EllipticCurvePublicKey, now: datetime) -> bytes:
        """Return the coordinator's own leaf for the host names and addresses others dial, PEM."""
        names: list[x509.GeneralName] = []
        for host in hosts:
            try:
                names.append(x509.IPAddress(ipaddress.ip_address(host)))
            except ValueError:
                names.append(x509.DNSName(host))
        return self._leaf("minshu-coordinator", key, names, ExtendedKeyUsageOID.SERVER_AUTH, now)

    def _leaf(
        self,
        common_name: str,
        key: ec.EllipticCurvePublicKey,
        names: list[x509.GeneralName],
        usage: x509.ObjectIdentifier,
        now: datetime,
    ) -> bytes:
        begins = now - min(_BACKDATED, self.leaf_life / 10)
        leaf = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])]))
            .issuer_name(self.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(begins + self.leaf_life)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False
            )
            .sign(self.key, hashes.SHA256())
        )
        return leaf.public_bytes(Encoding.PEM)


class Renewals:
    """New leaves for keys that are members' already."""

    def __init__(
        self,
        authority: Authority,
        now: Callable[[], datetime],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Issue from `authority`; `monotonic` counts seconds and never goes back."""
        self._authority = authority
        self._now = now
        self._monotonic = monotonic
        self._tried: dict[NodeName, deque[float]] = {}

    def leaf(self, node: NodeName, spki: Digest, csr: bytes) -> bytes:
        """Return a new leaf, PEM, for the key that the node's connection proved.

        (1) The request is bounded. (2) It is for the connection's key; what is not costs no signature and
        does not count. (3) The node has not tried too often: this comes before any signature is checked or
        made, so that a flood costs neither. (4) The request is signed by its own key.

        Args:
            node: whom the roster names for the connection's key.
            spki: that key.
            csr: PKCS#10 in PEM.

        Raises:
            DecodeError, Refused, InputError, SignatureInvalid: which of them does not hold.
        """
        # (1)
        if len(csr) > MAX_CSR_BYTES:
            raise DecodeError(
                f"certificate request of {len(csr)} bytes, at most {MAX_CSR_BYTES} accepted", code="too-long"
            )
        # (2)
        request, key = _parsed(csr.decode("utf-8", "replace"))
        if not hmac.compare_digest(spki_digest(key).encode(), spki.encode()):
            raise SignatureInvalid(
                "the certificate request is for another key than the connection's",
                code="wrong-tls-key",
                hint="a renewal keeps the key; for a new key enrol again and have it put in the roster",
            )
        # (3)
        self._count(node)
        # (4)
        _check_signature(request)
        return self._authority.node_leaf(node, key, self._now())

    def _count(self, node: NodeName) -> None:
        now = self._monotonic()
        tried = self._tried.setdefault(node, deque())
        while tried and tried[0] <= now - 3600:
            tried.popleft()
        if len(tried) >= RENEWALS_AN_HOUR:
            raise Refused(
                f"{RENEWALS_AN_HOUR} renewals were tried within the hour, no more are given",
                code="too-many-renewals",
                hint="wait an hour: a certificate lives for days after its renewal is due",
            )
        tried.append(now)


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
