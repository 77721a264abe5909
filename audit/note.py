"""Signed notes, verifier keys, checkpoints and cosignatures, byte for byte as C2SP publishes them.

Sources: C2SP signed-note, tlog-checkpoint and tlog-cosignature.

A note is text that ends in a newline, a blank line, then signature lines: an em dash, the key's name, and
base64(key id ‖ signature). Other people's software reads ours unmodified, and a signature line by a key we do
not know is never an error.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey

from audit.merkle import HASH_BYTES, MAX_SIZE
from protocols.encoding import b64decode, b64encode
from protocols.errors import DecodeError, SignatureInvalid

ED25519: Final = 0x01
"""Signature type of a log's own signature: Ed25519 over the note's text."""

COSIGNATURE: Final = 0x04
"""Signature type of a witness: Ed25519 over a time and the note's text."""

ML_DSA_44: Final = 0x06
"""Signature type of a witness that holds against quantum computers, too: ML-DSA-44 (FIPS 204)."""

_KEY_BYTES: Final = {ED25519: 32, COSIGNATURE: 32, ML_DSA_44: 1312}
_TIME_BYTES: Final = 8
_MAX_TIME: Final = 2**63 - 1

MAX_NOTE_BYTES: Final = 1_000_000
MAX_SIGNATURES: Final = 100
"""The reference implementation's limits; the specification asks for at least 16 signatures."""

_KEY_ID_BYTES: Final = 4
_SIGNATURE_PREFIX: Final = "— "
_CONTROL = re.compile(rb"[\x00-\x09\x0b-\x1f]")
_SIZE = re.compile(r"0|[1-9][0-9]{0,18}")
_VKEY = re.compile(r"([^+]+)\+([0-9a-f]{8})\+([A-Za-z0-9+/]+={0,2})")


def _is_key_name(name: str) -> bool:
    return name != "" and "+" not in name and not any(map(str.isspace, name))


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A public key that note signatures are checked with.

    Attributes:
        name: the key's name: for a log its origin line.
        type: signature type identifier: `ED25519`, `COSIGNATURE` or `ML_DSA_44`.
        public_key: 32 bytes (RFC 8032), or 1,312 (FIPS 204).
    """

    name: str
    type: int
    public_key: bytes

    def __post_init__(self) -> None:
        """Refuse a key no note could name.

        Raises:
            DecodeError: empty name, a space or plus in it, unknown type, wrong key length.
        """
        if not _is_key_name(self.name):
            raise _bad_vkey("its name is empty or holds a space or a plus")
        expected = _KEY_BYTES.get(self.type)
        if expected is None:
            raise _bad_vkey(f"signature type {self.type} is not 1, 4 or 6")
        if len(self.public_key) != expected:
            raise _bad_vkey(f"{len(self.public_key)} key bytes, {expected} expected")

    @classmethod
    def parse(cls, text: str) -> "VerifierKey":
        """Read a vkey line, `name+hex(key id)+base64(type ‖ public key)`, without its newline.

        Raises:
            DecodeError: not of that form, an unknown type, or the key id is not this key's.
        """
        match = _VKEY.fullmatch(text)
        if not match:
            raise _bad_vkey("expected name+8 hex digits+base64")
        name, key_id, encoded = match.groups()
        key = b64decode(encoded)
        if not key:
            raise _bad_vkey("it holds no key")
        vkey = cls(name, key[0], key[1:])
        if vkey.key_id.hex() != key_id:
            raise _bad_vkey("its key id does not belong to its name and key")
        return vkey

    @property
    def key_id(self) -> bytes:
        """SHA-256(name ‖ 0x0A ‖ type ‖ public key)[:4]."""
        key = bytes([self.type]) + self.public_key
        return hashlib.sha256(self.name.encode() + b"\n" + key).digest()[:_KEY_ID_BYTES]

    @property
    def label(self) -> str:
        """`name+hex(key id)`: enough to name the key to a person."""
        return f"{self.name}+{self.key_id.hex()}"

    def __str__(self) -> str:
        return f"{self.label}+{b64encode(bytes([self.type]) + self.public_key)}"

    @property
    def cosigns(self) -> bool:
        """Whether it is a witness's key, and not a log's."""
        return self.type != ED25519

    def holds(self, text: bytes, signature: bytes) -> bool:
        """Tell whether `signature` is this key's over the note text `text`.

        A cosignature begins with its time, a big-endian u64 of seconds since 1970, which it covers.
        """
        try:
            if self.type == ED25519:
                Ed25519PublicKey.from_public_bytes(self.public_key).verify(signature, text)
                return True
            message = cosigned_message(self, text, cosigned_at(signature))
            if self.type == COSIGNATURE:
                Ed25519PublicKey.from_public_bytes(self.public_key).verify(signature[_TIME_BYTES:], message)
            else:
                MLDSA44PublicKey.from_public_bytes(self.public_key).verify(signature[_TIME_BYTES:], message)
        except (InvalidSignature, ValueError, DecodeError):
            return False
        return True


def keys_among(lines: Iterable[str]) -> Iterator[VerifierKey]:
    """Yield the verifier keys among lines of a roster; what is none is left out: nobody can sign with it."""
    for line in lines:
        try:
            yield VerifierKey.parse(line)
        except DecodeError:
            continue


def cosigned_at(signature: bytes) -> int:
    """Return the time of a cosignature, in seconds since 1970.

    Raises:
        DecodeError: it holds none, or one above 2^63 - 1.
    """
    time_s = int.from_bytes(signature[:_TIME_BYTES], "big")
    if len(signature) <= _TIME_BYTES or time_s > _MAX_TIME:
        raise DecodeError("a cosignature holds no time", code="malformed-note")
    return time_s


def cosigned_message(key: VerifierKey, text: bytes, time_s: int) -> bytes:
    """Return the bytes that a witness signs: C2SP tlog-cosignature, the message of the key's type.

    Args:
        key: the witness's, of type `COSIGNATURE` or `ML_DSA_44`.
        text: the checkpoint's note text.
        time_s: seconds since 1970.

    Raises:
        DecodeError: `text` is no checkpoint, or one name is longer than 255 bytes.
    """
    if key.type == COSIGNATURE:
        return b"cosignature/v1\ntime %d\n" % time_s + text
    checkpoint = Checkpoint.decode(text)
    return b"".join(
        (
            b"subtree/v1\n\0",
            _short(key.name),
            time_s.to_bytes(8, "big"),
            _short(checkpoint.origin),
            (0).to_bytes(8, "big"),
            checkpoint.size.to_bytes(8, "big"),
            checkpoint.root,
        )
    )


def cosign(text: bytes, key: VerifierKey, signer: Callable[[bytes], bytes], time_s: int) -> "NoteSignature":
    """Return a witness's signature line over a checkpoint.

    Args:
        text: the checkpoint's note text, which the witness has found consistent.
        key: the public half of what `signer` signs with.
        signer: returns the signature of what it is given: 64 bytes of Ed25519 or 2,420 of ML-DSA-44.
        time_s: seconds since 1970.

    Raises:
        SignatureInvalid: what the signer returned does not verify under `key`.
        DecodeError: `text` is no checkpoint.
    """
    signature = time_s.to_bytes(_TIME_BYTES, "big") + signer(cosigned_message(key, text, time_s))
    if not key.holds(text, signature):
        raise _signer_mismatch(key)
    return NoteSignature(key.name, key.key_id, signature)


def _short(text: str) -> bytes:
    data = text.encode()
    if not 1 <= len(data) <= 255:
        raise DecodeError("a name of a cosignature has more than 255 bytes", code="malformed-note")
    return bytes([len(data)]) + data


def _signer_mismatch(key: VerifierKey) -> SignatureInvalid:
    return SignatureInvalid(
        f"the signer's signature does not verify under {key.label}",
        code="signer-mismatch",
        hint="start with the private key that belongs to the configured public key",
    )


def _bad_vkey(why: str) -> DecodeError:
    return DecodeError(
        f"not a verifier key: {why}",
        code="bad-vkey",
        hint="copy the vkey line exactly as the log's operator handed it out",
    )


@dataclass(frozen=True, slots=True)
class NoteSignature:
    """One signature line.

    Attributes:
        name: name of the key that claims to have signed.
        key_id: 4 bytes.
        signature: what follows the key id; 64 bytes for a log's Ed25519, and a u64 time first for a witness.
    """

    name: str
    key_id: bytes
    signature: bytes

    @classmethod
    def parse(cls, line: str) -> "NoteSignature":
        """Read one signature line, without its newline.

        Raises:
            DecodeError: it is none.
        """
        return _signature_line(line)

    def __str__(self) -> str:
        return f"{_SIGNATURE_PREFIX}{self.name} {b64encode(self.key_id + self.signature)}\n"


@dataclass(frozen=True, slots=True)
class Note:
    """A parsed note. Until `verify_note` has returned it, its text says nothing.

    Attributes:
        text: the signed bytes, ending in a newline.
        signatures: in the order of the file.
    """

    text: bytes
    signatures: tuple[NoteSignature, ...]

    def encode(self) -> bytes:
        """Return the note's bytes."""
        return self.text + b"\n" + "".join(map(str, self.signatures)).encode()

    def with_lines(self, lines: Iterable[NoteSignature]) -> "Note":
        """Return the note with these signature lines, too, each in place of an earlier one by the same key.

        Raises:
            DecodeError: more than `MAX_SIGNATURES` in all.
        """
        merged = {(line.name, line.key_id): line for line in self.signatures}
        merged |= {(line.name, line.key_id): line for line in lines}
        return Note.decode(Note(self.text, tuple(merged.values())).encode())

    def with_signature(self, key: VerifierKey, signer: Callable[[bytes], bytes]) -> "Note":
        """Return the note with one more signature line, by `key`.

        Args:
            key: the public half of what `signer` signs with.
            signer: returns the 64-byte Ed25519 signature of what it is given.

        Raises:
            SignatureInvalid: what the signer returned does not verify under `key`.
            DecodeError: the text cannot be a note's text.
        """
        signature = signer(self.text)
        if not key.holds(self.text, signature):
            raise _signer_mismatch(key)
        note = Note(self.text, (*self.signatures, NoteSignature(key.name, key.key_id, signature)))
        if Note.decode(note.encode()) != note:
            raise _malformed("its text does not survive a round trip")
        return note

    @classmethod
    def decode(cls, data: bytes) -> "Note":
        """Parse a signed note strictly.

        Raises:
            DecodeError: too long, not UTF-8, control characters, no blank line, or a line after it that is no
                signature line.
        """
        if len(data) > MAX_NOTE_BYTES:
            raise _malformed(f"{len(data)} bytes, at most {MAX_NOTE_BYTES} accepted")
        if _CONTROL.search(data):
            raise _malformed("control characters other than newline")
        try:
            data.decode("utf-8")
        except UnicodeDecodeError:
            raise _malformed("not UTF-8") from None
        blank = data.rfind(b"\n\n")
        if blank < 0:
            raise _malformed("no blank line between text and signatures")
        lines = data[blank + 2 :].decode("utf-8")
        if not lines.endswith("\n"):
            raise _malformed("no signature line, or its newline is missing")
        signatures = tuple(map(_signature_line, lines[:-1].split("\n")))
        if len(signatures) > MAX_SIGNATURES:
            raise _malformed(f"{len(signatures)} signatures, at most {MAX_SIGNATURES} accepted")
        return cls(data[: blank + 1], signatures)


def _signature_line(line: str) -> NoteSignature:
    name, space, encoded = line.removeprefix(_SIGNATURE_PREFIX).partition(" ")
    if not line.startswith(_SIGNATURE_PREFIX) or not space or not _is_key_name(name):
        raise _malformed("a signature line is not '— name base64'")
    try:
        blob = b64decode(encoded)
    except DecodeError:
        raise _malformed("a signature is not base64") from None
    if len(blob) <= _KEY_ID_BYTES:
        raise _malformed("a signature line holds no signature")
    return NoteSignature(name, blob[:_KEY_ID_BYTES], blob[_KEY_ID_BYTES:])


def _malformed(why: str) -> DecodeError:
    return DecodeError(
        f"not a signed note: {why}",
        code="malformed-note",
        hint="fetch the checkpoint again; it must arrive byte for byte",
    )


def sign_note(text: bytes, key: VerifierKey, signer: Callable[[bytes], bytes]) -> Note:
    """Return `text`, UTF-8 that ends in a newline, with one signature by `key`.

    Raises:
        DecodeError, SignatureInvalid: see `Note.with_signature`.
    """
    return Note(text, ()).with_signature(key, signer)


def verify_note(data: bytes, keys: Iterable[VerifierKey]) -> tuple[Note, tuple[VerifierKey, ...]]:
    """Parse a note and check its signatures; return it and the known keys that signed it, at least one.

    Signatures by unknown keys are ignored. Of several by one key the first counts, as in the reference
    implementation (golang.org/x/mod/sumdb/note).

    Raises:
        DecodeError: not a note.
        SignatureInvalid: a known key's signature is wrong, no known key signed, or two different keys in
            `keys` share name and key id.
    """
    note = Note.decode(data)
    known: dict[tuple[str, bytes], VerifierKey] = {}
    ambiguous: set[tuple[str, bytes]] = set()
    for key in keys:
        if known.setdefault((key.name, key.key_id), key) != key:
            ambiguous.add((key.name, key.key_id))
    signed: list[VerifierKey] = []
    for line in note.signatures:
        signer = known.get((line.name, line.key_id))
        if signer is None or signer in signed:
            continue
        if (line.name, line.key_id) in ambiguous:
            raise SignatureInvalid(
                f"two trusted keys share the name and id {signer.label}", code="ambiguous-key"
            )
        if not signer.holds(note.text, line.signature):
            raise SignatureInvalid(
                f"the signature by {signer.label} does not hold",
                code="bad-signature",
                hint="the text was changed after signing, or was never signed by this key",
            )
        signed.append(signer)
    if not signed:
        raise SignatureInvalid(
            "none of the trusted keys signed this note",
            code="no-known-signature",
            hint="check that the verifier key belongs to this log",
        )
    return note, tuple(signed)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A tree head: the text of a log's signed note.

    Attributes:
        origin: the log's identity, one line.
        size: entries in the tree.
        root: RFC 6962 root, 32 bytes.
        extensions: further lines, opaque; ours have none.
    """

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    def encode(self) -> bytes:
        """Return the note text: origin, decimal size, base64 root, each on its line."""
        lines = (self.origin, str(self.size), b64encode(self.root), *self.extensions)
        return "".join(f"{line}\n" for line in lines).encode()

    @classmethod
    def decode(cls, text: bytes) -> "Checkpoint":
        """Parse a checkpoint's note text strictly.

        Raises:
            DecodeError: fewer than three lines, an empty line, a size with leading zeros, or a root that is
                not 32 bytes.
        """
        try:
            lines = text.decode("utf-8").split("\n")
        except UnicodeDecodeError:
            raise _bad_checkpoint("not UTF-8") from None
        if lines.pop() or len(lines) < 3 or not all(lines):
            raise _bad_checkpoint("expected origin, size and root, each on a line of its own")
        origin, size, root, *extensions = lines
        if not _SIZE.fullmatch(size) or int(size) > MAX_SIZE:
            raise _bad_checkpoint("its size is not a plain decimal number")
        digest = b64decode(root)
        if len(digest) != HASH_BYTES:
            raise _bad_checkpoint(f"its root has {len(digest)} bytes, {HASH_BYTES} expected")
        return cls(origin, int(size), digest, tuple(extensions))


def _bad_checkpoint(why: str) -> DecodeError:
    return DecodeError(f"not a checkpoint: {why}", code="malformed-checkpoint")
