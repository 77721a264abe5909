"""RFC 3161 time stamps over checkpoints: an authority outside says that a tree head existed at a moment.

A token is made over a checkpoint file's exact bytes, cosignatures included, and lies beside them in the log's
folder: `timestamps/<size>.checkpoint` and `timestamps/<size>.tsr`. `request` writes what to send, `attach`
keeps the answer, `verify` checks it offline against the authority's root certificates, which the auditor
brings. How request and answer travel is the operator's own affair: curl, or a USB stick.

Certificates need to hold at the token's time, not today: that is what a time stamp is for.
"""

import hashlib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.utils import CryptographyDeprecationWarning

from audit.folder import CHECKPOINT, COSIGNED, OLD, Folder
from audit.note import Checkpoint, Note
from protocols.errors import DecodeError, InputError, SignatureInvalid, StateConflict

if TYPE_CHECKING:
    from rfc3161_client import TimeStampResponse

TIMESTAMPS: Final = "timestamps"
"""Where tokens lie in a log's folder."""

MAX_REPLY_BYTES: Final = 64 << 10
"""Longest answer that is read; a token with its whole chain of certificates has a few thousand bytes."""

MAX_ROOTS_BYTES: Final = 1 << 20

_STATUS: Final = ("granted", "granted with changes", "rejection", "waiting", "revocation warning", "revoked")
_CERTIFICATES: Final = 0xA0
_SHA2: Final = bytes.fromhex("6086480165030402")
_RSA: Final = bytes.fromhex("2a864886f70d0101")
_ECDSA: Final = bytes.fromhex("2a8648ce3d0403")
_DIGESTS: Final = {
    "2.16.840.1.101.3.4.2.1": "sha256",
    "2.16.840.1.101.3.4.2.2": "sha384",
    "2.16.840.1.101.3.4.2.3": "sha512",
}
_ALGORITHMS: Final[Mapping[bytes, Mapping[type, tuple[bytes, ...]]]] = {
    _SHA2 + bytes([digest]): {
        RSAPublicKey: (_RSA + b"\x01", _RSA + bytes([rsa])),
        EllipticCurvePublicKey: (_ECDSA + bytes([ecdsa]),),
    }
    for digest, rsa, ecdsa in ((1, 11, 2), (2, 12, 3), (3, 13, 4))
}
"""Digest, key, and the signature algorithms that fit them, as DER names them: RFC 5754, sections 2 and 3."""


@dataclass(frozen=True, slots=True)
class Stamped:
    """What a verified token says.

    Attributes:
        time: when the checkpoint existed at the latest, UTC, whole seconds or finer.
        authority: subject of the certificate that signed, RFC 4514.
        policy: object identifier of the authority's policy.
        serial: the token's number at the authority.
    """

    time: datetime
    authority: str
    policy: str
    serial: int


def request(checkpoint: bytes, algorithm: Literal["sha256", "sha512"] = "sha256") -> bytes:
    """Return a time-stamp request (.tsq, DER) over a checkpoint file: with a nonce, asking for certificates.

    Raises:
        DecodeError: `checkpoint` is no signed checkpoint.
    """
    from rfc3161_client import HashAlgorithm, TimestampRequestBuilder

    _size(checkpoint)
    built = (
        TimestampRequestBuilder()
        .data(checkpoint)
        .hash_algorithm(HashAlgorithm[algorithm.upper()])
        .nonce(nonce=True)
        .cert_request(cert_request=True)
        .build()
    )
    return built.as_bytes()


def covers(checkpoint: bytes, reply: bytes) -> bool:
    """Tell whether an authority's answer is about these bytes. It proves nothing: `verify` does.

    Raises:
        DecodeError: `reply` is no time-stamp answer.
        SignatureInvalid: timestamp-refused: it holds no token.
    """
    imprint = _granted(reply).tst_info.message_imprint
    return _digest(imprint.hash_algorithm, checkpoint) == imprint.message


def find(directory: Path, reply: bytes) -> bytes:
    """Return the checkpoint in a log's folder that an authority's answer is about.

    Raises:
        DecodeError: `reply` is no time-stamp answer.
        SignatureInvalid: timestamp-refused, or timestamp-mismatch: the folder has moved on since the request.
        OSError: a file cannot be read.
    """
    for name in (CHECKPOINT, COSIGNED, OLD):
        path = directory / name
        if path.is_file() and covers(data := path.read_bytes(), reply):
            return data
    raise _mismatch()


def attach(directory: Path, checkpoint: bytes, reply: bytes, roots: bytes | None = None) -> int:
    """Keep an authority's answer in a log's folder and return the size of the tree that it is about.

    Both files are written as a whole or not at all, the checkpoint first.

    Args:
        directory: the log's folder.
        checkpoint: the file that was time-stamped, byte for byte.
        reply: the authority's answer (.tsr, DER).
        roots: if given, root certificates (PEM) that the token must lead to.

    Raises:
        DecodeError: `checkpoint` or `reply` is none.
        SignatureInvalid: timestamp-refused, timestamp-mismatch, and with `roots` whatever `verify` finds.
        StateConflict: timestamp-exists: this size has another one.
        OSError: the files cannot be written.
    """
    size = _size(checkpoint)
    if not covers(checkpoint, reply):
        raise _mismatch()
    if roots is not None:
        verify(checkpoint, reply, roots)
    folder = Folder(directory, ".new-timestamp")
    stamp = directory / TIMESTAMPS / f"{size}.tsr"
    if stamp.exists() and stamp.read_bytes() != reply:
        raise StateConflict(
            f"the checkpoint over {size} entries has another time stamp already",
            code="timestamp-exists",
            hint="keep the older one, it proves more; a newer one belongs to a newer checkpoint",
        )
    folder.write(f"{TIMESTAMPS}/{size}.checkpoint", checkpoint)
    folder.write(f"{TIMESTAMPS}/{size}.tsr", reply)
    folder.sync()
    return size


def verify(checkpoint: bytes, reply: bytes, roots: bytes) -> Stamped:
    """Check an authority's answer offline and return what it says.

    (1) The authority granted the request. (2) The token is about exactly these bytes. (3) Its signature holds
    under a certificate that is for time stamping alone and leads to one of `roots`, all of them valid at the
    token's time. (4) Every certificate in it leads there, and its outer fields are the published ones: what
    no signature covers has one form.

    Args:
        checkpoint: the file, byte for byte.
        reply: the authority's answer (.tsr, DER).
        roots: the authorities' root certificates (PEM), received on another way.

    Raises:
        DecodeError: `reply` is no time-stamp answer.
        InputError: bad-tsa-roots.
        SignatureInvalid: timestamp-refused, timestamp-mismatch, timestamp-untrusted.
    """
    trusted = read_roots(roots)
    # (1)
    answer = _granted(reply)
    # (2)
    imprint = answer.tst_info.message_imprint
    if _digest(imprint.hash_algorithm, checkpoint) != imprint.message:
        raise _mismatch()
    with _strangers():
        # (3) All roots together first: a file may hold a chain; then each alone: two may share a name.
        if not any(_signed(answer, chosen) for chosen in (trusted, *([root] for root in trusted))):
            raise _untrusted()
        # (4)
        try:
            signer = _outer_form(answer, trusted)
        except (ValueError, TypeError, x509.InvalidVersion, UnsupportedAlgorithm) as error:
            raise _untrusted() from error
    info = answer.tst_info
    return Stamped(
        info.gen_time.astimezone(UTC),
        signer.subject.rfc4514_string(),
        info.policy.dotted_string,
        info.serial_number,
    )


def read_roots(roots: bytes) -> list[x509.Certificate]:
    """Return the certificates in a PEM file, each once.

    Raises:
        InputError: bad-tsa-roots: it holds none within `MAX_ROOTS_BYTES`.
    """
    try:
        found = x509.load_pem_x509_certificates(roots[:MAX_ROOTS_BYTES])
    except (ValueError, x509.InvalidVersion):
        raise InputError(
            "the file of the time-stamping authority's roots holds no PEM certificate",
            code="bad-tsa-roots",
            hint="give the root certificates as the authority publishes them, in PEM",
        ) from None
    return list(dict.fromkeys(found))


def _granted(reply: bytes) -> "TimeStampResponse":
    from rfc3161_client import decode_timestamp_response

    if len(reply) > MAX_REPLY_BYTES:
        raise _no_reply(f"{len(reply)} bytes, at most {MAX_REPLY_BYTES} accepted")
    try:
        try:
            answer = decode_timestamp_response(reply)
        except ValueError:
            answer = decode_timestamp_response(_sorted_certificates(reply))
        status = answer.status
        if status:
            said = _STATUS[status] if 0 <= status < len(_STATUS) else "an unknown status"
            raise SignatureInvalid(
                f"the time-stamping authority answered with {said}, not with a token",
                code="timestamp-refused",
                hint="ask the authority why, and send the request again",
            )
        answer.tst_info.message_imprint  # noqa: B018  # parses the token, or raises
    except ValueError:
        raise _no_reply("its DER cannot be read") from None
    return answer


def _digest(algorithm: x509.ObjectIdentifier, data: bytes) -> bytes:
    name = _DIGESTS.get(algorithm.dotted_string)
    if name is None:
        raise _no_reply("its digest is not SHA-256, SHA-384 or SHA-512")
    return hashlib.new(name, data).digest()


def _signed(answer: "TimeStampResponse", roots: list[x509.Certificate]) -> bool:
    """Tell whether a token's signature holds under one of these roots."""
    from rfc3161_client import VerificationError, VerifierBuilder

    builder = VerifierBuilder()
    for root in roots:
        builder = builder.add_root_certificate(root)
    try:
        return builder.build().verify(answer, answer.tst_info.message_imprint.message)
    except (VerificationError, ValueError, TypeError, x509.InvalidVersion, UnsupportedAlgorithm):
        return False


def _outer_form(answer: "TimeStampResponse", roots: list[x509.Certificate]) -> x509.Certificate:
    """Return the certificate that signed, after looking at what the signature does not cover.

    Raises:
        ValueError: something there is not as RFC 3161 and RFC 5652 have it.
    """
    data = answer.signed_data
    (signer,) = data.signer_infos
    if data.version != 3 or signer.version != 1:
        raise ValueError("another version of CMS")
    held = [x509.load_der_x509_certificate(each) for each in data.certificates]
    # A certificate ends with its signature, in whole bytes: how many bits do not count, no signature covers.
    if any(not each.public_bytes(Encoding.DER).endswith(b"\0" + each.signature) for each in held):
        raise ValueError("a certificate whose signature ends within a byte")
    leading, rest = list(roots), [each for each in held if each not in roots]
    while found := [each for each in rest if any(_issued(each, by) for by in leading)]:
        leading += found
        rest = [each for each in rest if each not in found]
    if rest:
        raise ValueError("a certificate that leads to no root")
    (leaf,) = (
        each
        for each in set(held)
        if (each.issuer, each.serial_number) == (signer.issuer, signer.serial_number)
    )
    digest, signature = _algorithms(answer.time_stamp_token())
    fitting = [
        names for kind, names in _ALGORITHMS.get(digest, {}).items() if isinstance(leaf.public_key(), kind)
    ]
    if not any(signature in names for names in fitting):
        raise ValueError("a signature algorithm that does not fit key and digest")
    return leaf


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return True


def _algorithms(token: bytes) -> tuple[bytes, bytes]:
    """Return the names, in DER, of a token's digest and signature algorithm. RFC 5652, section 5.

    Raises:
        ValueError: it is not built like that.
    """
    *_, signers = _signed_data(token, *_elements(token))
    (signer,) = _elements(token, signers)
    # version, signer, digest algorithm, signed attributes, signature algorithm, signature
    _, _, digest, _, signature, _ = _elements(token, signer)
    return _name(token, digest), _name(token, signature)


def _name(der: bytes, algorithm: "_Element") -> bytes:
    name, *_ = _elements(der, algorithm)
    return der[name.start : name.end]


def _sorted_certificates(reply: bytes) -> bytes:
    """Return the answer with its certificates in the order that DER asks for; openssl, for one, does not.

    Raises:
        ValueError: it is not built as RFC 3161 has it.
    """
    (answer,) = _elements(reply)
    _, token = _elements(reply, answer)
    for held in _signed_data(reply, token):
        if held.tag == _CERTIFICATES:
            certificates = [reply[each.head : each.end] for each in _elements(reply, held)]
            return reply[: held.start] + b"".join(sorted(certificates)) + reply[held.end :]
    raise ValueError("no certificates")


def _signed_data(der: bytes, token: "_Element") -> "list[_Element]":
    """Return the parts of a token's SignedData: version, digests, content, perhaps certificates, signers."""
    _, content = _elements(der, token)
    (signed_data,) = _elements(der, content)
    return _elements(der, signed_data)


class _Element(NamedTuple):
    """Where a DER element lies: from `head` to `end`, what it holds from `start`."""

    tag: int
    head: int
    start: int
    end: int


def _elements(der: bytes, within: _Element | None = None) -> list[_Element]:
    """Return the DER elements that another holds, or `der`.

    Raises:
        ValueError: one is longer than what holds it.
    """
    at, end = (within.start, within.end) if within else (0, len(der))
    found = []
    while at < end:
        head, length = at, int.from_bytes(der[at + 1 : at + 2], "big")
        at += 2
        if length > 0x7F:
            more = length & 0x7F
            length = int.from_bytes(der[at : at + more], "big")
            at += more
        if at + length > end:
            raise ValueError("an element longer than what holds it")
        found.append(_Element(der[head], head, at, at + length))
        at += length
    return found


@contextmanager
def _strangers() -> Iterator[None]:
    """Keep warnings about what strangers wrote in their certificates from the terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)
        yield


def _size(checkpoint: bytes) -> int:
    return Checkpoint.decode(Note.decode(checkpoint).text).size


def _no_reply(why: str) -> DecodeError:
    return DecodeError(
        f"not a time-stamping authority's answer: {why}",
        code="bad-timestamp",
        hint="give the answer as the authority sent it (.tsr, DER)",
    )


def _mismatch() -> SignatureInvalid:
    return SignatureInvalid(
        "the time stamp is about other bytes than this checkpoint",
        code="timestamp-mismatch",
        hint="give the file that the request was made from; cosignatures that came later changed it",
    )


def _untrusted() -> SignatureInvalid:
    return SignatureInvalid(
        "the time stamp does not verify: its signature, its certificates or their purpose do not hold",
        code="timestamp-untrusted",
        hint="give the root certificates of the authority that was asked; they must have held at its time",
    )
