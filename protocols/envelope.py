"""DSSE envelopes: every signed document of Minshu is one of these.

The signature covers PAE(type, payload), so a payload of one type can never pass as another, and the type is
compared before the payload is parsed. Source: DSSE v1.0.2 (secure-systems-lab/dsse). Signatures are Ed25519
(RFC 8032), so stock OpenSSL verifies them over the PAE bytes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, Final, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from protocols.encoding import b64decode, b64encode, canonical_json, decode_json, sha256_digest
from protocols.errors import DecodeError, SignatureInvalid
from protocols.ids import Digest, KeyId

MAX_ENVELOPE_BYTES: Final = 2 << 20
MAX_SIGNATURES: Final = 16
MAX_SIGNATURE_CHECKS: Final = MAX_SIGNATURES**2
"""Most checks one `verify` makes, so that junk signatures over a long payload cost little."""

JOB: Final = "application/vnd.minshu.job.v1+json"
POLICY: Final = "application/vnd.minshu.policy.v1+toml"
APPROVAL: Final = "application/vnd.minshu.approval.v1+json"
ROSTER: Final = "application/vnd.minshu.roster.v1+json"
ADMISSION: Final = "application/vnd.minshu.admission.v1+json"
VERDICT: Final = "application/vnd.minshu.verdict.v1+json"
RELEASE: Final = "application/vnd.minshu.release.v1+json"
CATALOGUE: Final = "application/vnd.minshu.catalogue.v1+json"
REQUEST: Final = "application/vnd.minshu.request.v1+json"
ENROLMENT: Final = "application/vnd.minshu.enrolment.v1+json"
STOP: Final = "application/vnd.minshu.stop.v1+toml"
EXPLAIN: Final = "application/vnd.minshu.explain.v1+json"
"""A job as it would be, to be explained: under this type nobody can make it a job."""
OUTCOME: Final = "application/vnd.minshu.outcome.v1+json"
FRESHNESS: Final = "application/vnd.minshu.freshness.v1+json"
ROTATION: Final = "application/vnd.minshu.rotation.v1+json"
HEAD: Final = "application/vnd.minshu.head.v1+json"
"""What a witness saw last of a log."""
RECEIPT: Final = "application/vnd.minshu.receipt.v1+json"
"""What one node did, to stand in the journals of the others, too."""


_P: Final = 2**255 - 19
_ORDER_8: Final = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
_SMALL_ORDER: Final = frozenset((0, 1, _ORDER_8, _P - _ORDER_8, _P - 1, _P, _P + 1))
"""y of every encoding of a point of order 1, 2, 4 or 8. Under such a key one signature fits any message,
and RFC 8032 lets it pass (Chalkias, Garillot, Nikolaenko 2020, eprint 2020/1244)."""


def key_id(public_key: bytes) -> KeyId:
    """Return the id of a raw 32-byte Ed25519 public key."""
    return KeyId(sha256_digest(public_key))


class Signer(Protocol):
    """Something that signs with one Ed25519 key; a file now, a security module later."""

    @property
    def public_key(self) -> bytes:
        """The raw 32-byte public key."""
        ...

    def sign(self, data: bytes) -> bytes:
        """Return the 64-byte Ed25519 signature of `data`."""
        ...


@dataclass(frozen=True, slots=True)
class KeySigner:
    """A signer that holds its private key in memory."""

    private_key: Ed25519PrivateKey

    @property
    def public_key(self) -> bytes:
        """The raw 32-byte public key."""
        return self.private_key.public_key().public_bytes_raw()

    def sign(self, data: bytes) -> bytes:
        """Return the 64-byte Ed25519 signature of `data`."""
        return self.private_key.sign(data)


def verify_signature(public_key: bytes, signature: bytes, data: bytes) -> bool:
    """Return whether `signature` is `public_key`'s over `data`; never raises on bad keys or signatures."""
    if int.from_bytes(public_key, "little") % 2**255 in _SMALL_ORDER:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


def pae(payload_type: str, payload: bytes) -> bytes:
    """Return DSSE's pre-authentication encoding, the bytes that are signed."""
    kind = payload_type.encode("utf-8")
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature; `keyid` is a hint and proves nothing."""

    keyid: str
    sig: bytes


@dataclass(frozen=True, slots=True)
class Envelope:
    """A payload, its type and the signatures over both. Nothing in it is trusted before `verify`."""

    payload_type: str
    payload: bytes
    signatures: tuple[Signature, ...]

    def encode(self) -> bytes:
        """Return the envelope as canonical JSON."""
        return canonical_json(
            {
                "payload": b64encode(self.payload),
                "payloadType": self.payload_type,
                "signatures": [{"keyid": s.keyid, "sig": b64encode(s.sig)} for s in self.signatures],
            }
        )

    @property
    def payload_digest(self) -> Digest:
        """`sha256:…` of the payload: a job's id, a policy's digest, an admission's digest."""
        return sha256_digest(self.payload)

    def with_signature(self, signer: Signer) -> "Envelope":
        """Return the envelope with one more signature."""
        signature = Signature(key_id(signer.public_key), signer.sign(pae(self.payload_type, self.payload)))
        return Envelope(self.payload_type, self.payload, (*self.signatures, signature))


def sign(payload_type: str, payload: bytes, signers: Iterable[Signer]) -> Envelope:
    """Return an envelope over `payload` with one signature per signer."""
    envelope = Envelope(payload_type, payload, ())
    for signer in signers:
        envelope = envelope.with_signature(signer)
    return envelope


def decode_envelope(data: bytes) -> Envelope:
    """Parse an envelope strictly; the payload is not looked at.

    Raises:
        DecodeError: too long, unknown or missing fields, bad base64, too many signatures, not canonical.
    """
    value = decode_json(data, limit=MAX_ENVELOPE_BYTES)
    match value:
        case {"payload": str(payload), "payloadType": str(kind), "signatures": list(signatures)} if (
            len(value) == 3
        ):
            pass
        case _:
            raise DecodeError(
                "not a DSSE envelope with payload, payloadType and signatures", code="bad-envelope"
            )
    if len(signatures) > MAX_SIGNATURES:
        raise DecodeError(
            f"{len(signatures)} signatures, at most {MAX_SIGNATURES} accepted", code="bad-envelope"
        )
    return Envelope(kind, b64decode(payload), tuple(_signature(item) for item in signatures))


def _signature(item: Any) -> Signature:
    match item:
        case {"keyid": str(keyid), "sig": str(sig)} if len(item) == 2:
            return Signature(keyid, b64decode(sig))
        case _:
            raise DecodeError("a signature is not {keyid, sig}", code="bad-envelope")


def verify(
    envelope: Envelope, payload_type: str, keys: Mapping[KeyId, bytes], threshold: int = 1
) -> frozenset[KeyId]:
    """Return the ids of the distinct keys of `keys` that signed `envelope`.

    (1) The payload type is the expected one, compared before anything is parsed.
    (2) Every signature is tried against every key, MAX_SIGNATURE_CHECKS in all: `keyid` only orders them.
    (3) A key counts once, however often it signed; two names of one key are one key.
    (4) At least `threshold` distinct keys signed.

    Args:
        envelope: as decoded.
        payload_type: the only accepted type.
        keys: key id → raw 32-byte public key; the keys of the one role that may sign this document.
        threshold: how many distinct keys are needed, at least 1.

    Raises:
        SignatureInvalid: another type, or fewer valid signatures than needed.
    """
    if threshold < 1:
        raise ValueError("threshold must be at least 1")
    # (1)
    if envelope.payload_type != payload_type:
        raise SignatureInvalid(
            f"the document is signed as another type than {payload_type}", code="wrong-payload-type"
        )
    message = pae(envelope.payload_type, envelope.payload)
    by_public_key = {public: identifier for identifier, public in keys.items()}
    signed: set[KeyId] = set()
    # (2) (3)
    checks = sorted(
        product(envelope.signatures, by_public_key.items()), key=lambda check: check[0].keyid != check[1][1]
    )
    for signature, (public, identifier) in checks[:MAX_SIGNATURE_CHECKS]:
        if identifier not in signed and verify_signature(public, signature.sig, message):
            signed.add(identifier)
    # (4)
    if len(signed) < threshold:
        raise SignatureInvalid(
            f"{len(signed)} valid signatures of distinct trusted keys, {threshold} needed",
            code="too-few-signatures",
            hint="have the missing people sign, with keys that this side has pinned",
        )
    return frozenset(signed)
