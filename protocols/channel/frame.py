r"""Sealed frames: what travels between two roles of one attempt, unreadable and unforgeable for the relay.

Frame = header ‖ enc ‖ ct ‖ sig, trust §2. Header, big-endian:

    v u8 = 1 · suite u8 · job 32 · attempt u32 · ctx 32 · from u8+text · to u8+text · round u32 · seq u64 ·
    last u8 · enc_len u16

A direction is an ordered pair (from, to). Its first frame (seq 0) carries `enc`, the HPKE-sealed content key
with info = SHA-256("minshu/frame/1" ‖ header). ct = ChaCha20-Poly1305(content key, nonce = u32 round ‖ u64
seq, AAD = header) over u32 length ‖ body ‖ zeros, padded to a size class. sig = Ed25519 by the sender's
identity key over "minshu/frame/1\0" ‖ header ‖ SHA-256(enc ‖ ct). seq counts per direction without gaps,
so loss and reordering show; `last` ends the stream of one (direction, round), so truncation shows.
"""

import hashlib
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from protocols.channel import suites
from protocols.encoding import Reader, digest_bytes
from protocols.envelope import Signer, verify_signature
from protocols.errors import DecodeError, ProtocolAborted
from protocols.ids import JobId, Role
from protocols.party import MAX_BODY_BYTES, Incoming, Outgoing, Rand

_VERSION: Final = 1
_TAG: Final = 16
_SIGNATURE: Final = 64
_MAX_ROLE: Final = 100
_MAX_HEADER: Final = 1 + 1 + 32 + 4 + 32 + 2 * (1 + _MAX_ROLE) + 4 + 8 + 1 + 2
_SLACK: Final = 1024

SIZE_CLASSES: Final[tuple[int, ...]] = (
    *(4**k for k in range(4, 8)),
    *(2**k + _SLACK for k in range(15, 21)),
)
"""Padded plaintext sizes in bytes: 256, 1 Ki, 4 Ki, 16 Ki, then powers of two to 1 MiB with 1 Ki of room."""

MAX_FRAME_BYTES: Final = _MAX_HEADER + 2048 + SIZE_CLASSES[-1] + _TAG + _SIGNATURE
"""No frame is longer; the relay and every receiver check it before looking inside."""


@dataclass(frozen=True, slots=True)
class Header:
    """What the relay may read: who, when, how much."""

    suite: int
    job: JobId
    attempt: int
    ctx: bytes
    sender: Role
    to: Role
    round: int
    seq: int
    last: bool
    enc_len: int

    def encode(self) -> bytes:
        """Return the header bytes."""
        sender, to = self.sender.encode("ascii"), self.to.encode("ascii")
        return b"".join(
            (
                bytes((_VERSION, self.suite)),
                digest_bytes(self.job),
                self.attempt.to_bytes(4, "big"),
                self.ctx,
                bytes((len(sender),)),
                sender,
                bytes((len(to),)),
                to,
                self.round.to_bytes(4, "big"),
                self.seq.to_bytes(8, "big"),
                bytes((self.last,)),
                self.enc_len.to_bytes(2, "big"),
            )
        )


def _role(reader: Reader) -> Role:
    raw = reader.take(reader.uint(1))
    if not 1 <= len(raw) <= _MAX_ROLE or not raw.isascii():
        raise DecodeError("frame names no valid role", code="bad-frame")
    return Role(raw.decode("ascii"))


def _read(frame: bytes) -> tuple[Header, Reader]:
    if len(frame) > MAX_FRAME_BYTES:
        raise DecodeError(
            f"frame of {len(frame)} bytes, at most {MAX_FRAME_BYTES} accepted", code="bad-frame"
        )
    reader = Reader(frame[:_MAX_HEADER])
    if reader.uint(1) != _VERSION:
        raise DecodeError("unknown frame version, expected 1", code="bad-frame")
    header = Header(
        suite=reader.uint(1),
        job=JobId("sha256:" + reader.take(32).hex()),
        attempt=reader.uint(4),
        ctx=reader.take(32),
        sender=_role(reader),
        to=_role(reader),
        round=reader.uint(4),
        seq=reader.uint(8),
        last=_flag(reader.uint(1)),
        enc_len=reader.uint(2),
    )
    if len(frame) < reader.at + header.enc_len + SIZE_CLASSES[0] + _TAG + _SIGNATURE:
        raise DecodeError("frame is shorter than its header says", code="bad-frame")
    return header, reader


def _flag(value: int) -> bool:
    if value > 1:
        raise DecodeError("frame flag is neither 0 nor 1", code="bad-frame")
    return value == 1


def read_header(frame: bytes) -> Header:
    """Return a frame's header; the only thing a relay looks at.

    Raises:
        DecodeError: not a frame, too long, or an unknown version.
    """
    return _read(frame)[0]


def _padded_size(length: int) -> int:
    return SIZE_CLASSES[bisect_left(SIZE_CLASSES, length + 4)]


def _pad_into(body: bytes, scratch: bytearray) -> memoryview:
    """Write length ‖ body ‖ zeros into `scratch` and return the part that is used."""
    if len(body) > MAX_BODY_BYTES:
        raise ValueError(f"body of {len(body)} bytes, at most {MAX_BODY_BYTES}")
    end, size = 4 + len(body), _padded_size(len(body))
    scratch[:4] = len(body).to_bytes(4, "big")
    scratch[4:end] = body
    scratch[end:size] = bytes(size - end)
    return memoryview(scratch)[:size]


def _unpad(scratch: bytearray, size: int) -> bytes:
    """Return the body of the padded plaintext in the first `size` bytes of `scratch`."""
    length = int.from_bytes(scratch[:4], "big")
    end = 4 + length
    # Counted in place: comparing with a copy padded anew takes longer than the decryption.
    if length > MAX_BODY_BYTES or size != _padded_size(length) or scratch.count(0, end, size) != size - end:
        raise ProtocolAborted("a frame's padding is not canonical", code="bad-frame")
    return bytes(memoryview(scratch)[4:end])


def _nonce(header: Header) -> bytes:
    return header.round.to_bytes(4, "big") + header.seq.to_bytes(8, "big")


def _signed(header: bytes, enc: bytes, ct: bytes | memoryview) -> bytes:
    digest = hashlib.sha256(enc)
    digest.update(ct)
    return b"minshu/frame/1\0" + header + digest.digest()


def _key_info(header: bytes) -> bytes:
    return hashlib.sha256(b"minshu/frame/1" + header).digest()


@dataclass(slots=True)
class _Outbound:
    cipher: ChaCha20Poly1305
    key: bytes = field(repr=False)
    seq: int = 0


@dataclass(slots=True)
class FrameSealer:
    """Seals everything one role sends in one attempt. Not thread-safe: one sealer, one thread.

    Args:
        suite: the roster's sealing suite.
        job: job id.
        attempt: attempt number.
        ctx: 32 bytes, `wire.context` of all admissions.
        me: the sending role.
        signer: the node's identity key.
        peers: role → HPKE public key of that role's admission.
        rand: fresh content keys come from here.
    """

    suite: int
    job: JobId
    attempt: int
    ctx: bytes
    me: Role
    signer: Signer
    peers: Mapping[Role, bytes]
    rand: Rand
    _directions: dict[Role, _Outbound] = field(default_factory=dict, init=False)
    # Scratch, kept from frame to frame: fresh megabytes cost more than the cipher.
    _plain: bytearray = field(default_factory=lambda: bytearray(SIZE_CLASSES[-1]), init=False, repr=False)
    _sealed: bytearray = field(
        default_factory=lambda: bytearray(SIZE_CLASSES[-1] + _TAG), init=False, repr=False
    )

    def seal(self, message: Outgoing) -> bytes:
        """Return the frame that carries `message`.

        Raises:
            ProtocolAborted: the message goes to no peer of this attempt.
            DecodeError: the peer's public key is not one of the suite.
        """
        if message.to not in self.peers:
            raise ProtocolAborted("a message goes to a role that takes no part", code="unknown-role")
        outbound = self._directions.get(message.to)
        if outbound is None:
            key = self.rand(32)
            outbound = self._directions[message.to] = _Outbound(ChaCha20Poly1305(key), key)
        first = outbound.seq == 0
        header = Header(
            suite=self.suite,
            job=self.job,
            attempt=self.attempt,
            ctx=self.ctx,
            sender=self.me,
            to=message.to,
            round=message.round,
            seq=outbound.seq,
            last=message.last,
            enc_len=32 + suites.overhead(self.suite) if first else 0,
        )
        raw = header.encode()
        enc = suites.seal(self.suite, self.peers[message.to], _key_info(raw), outbound.key) if first else b""
        plain = _pad_into(message.body, self._plain)
        ct = memoryview(self._sealed)[: len(plain) + _TAG]
        outbound.cipher.encrypt_into(_nonce(header), plain, raw, ct)
        outbound.seq += 1
        return b"".join((raw, enc, ct, self.signer.sign(_signed(raw, enc, ct))))


@dataclass(slots=True)
class _Inbound:
    cipher: ChaCha20Poly1305
    seq: int = 0
    open_rounds: set[int] = field(default_factory=set)
    ended_rounds: set[int] = field(default_factory=set)


@dataclass(slots=True)
class FrameOpener:
    """Opens everything one role receives in one attempt. Not thread-safe.

    Args:
        suite: the roster's sealing suite.
        job: job id.
        attempt: attempt number.
        ctx: 32 bytes, `wire.context` of all admissions.
        me: the receiving role.
        private: the HPKE private key of this node's admission.
        peers: role → raw identity key from the roster.
    """

    suite: int
    job: JobId
    attempt: int
    ctx: bytes
    me: Role
    private: bytes = field(repr=False)
    peers: Mapping[Role, bytes]
    _directions: dict[Role, _Inbound] = field(default_factory=dict, init=False)
    _plain: bytearray = field(default_factory=lambda: bytearray(SIZE_CLASSES[-1]), init=False, repr=False)

    def open(self, frame: bytes) -> Incoming | None:
        """Return the message in `frame`, or None for a frame that was opened before (a replay is dropped).

        (1) The header names this attempt, this context, this receiver and a known sender.
        (2) The sender's identity key signed header and ciphertext.
        (3) seq is the next of its direction; an older one is a replay, a later one a gap.
        (4) The content key opens under this attempt's key, the ciphertext under the content key.
        (5) Nothing follows the last frame of a stream.

        Raises:
            DecodeError: not a frame.
            ProtocolAborted: (1)-(5) does not hold; the attempt must end.
        """
        header, reader = _read(frame)
        raw = frame[: reader.at]
        enc = frame[reader.at : reader.at + header.enc_len]
        ct = memoryview(frame)[reader.at + header.enc_len : -_SIGNATURE]
        # (1)
        mine = (self.suite, self.job, self.attempt, self.ctx, self.me)
        if (header.suite, header.job, header.attempt, header.ctx, header.to) != mine:
            raise ProtocolAborted("a frame belongs to another attempt or receiver", code="foreign-frame")
        if header.sender not in self.peers or header.sender == self.me:
            raise ProtocolAborted("a frame comes from a role that takes no part", code="unknown-role")
        # (2)
        signature = frame[-_SIGNATURE:]
        if not verify_signature(self.peers[header.sender], signature, _signed(raw, enc, ct)):
            raise ProtocolAborted(
                "a frame's signature does not hold: it was altered or forged", code="frame-forged"
            )
        # (3)
        inbound = self._directions.get(header.sender)
        expected = inbound.seq if inbound is not None else 0
        if header.seq < expected:
            return None
        if header.seq > expected:
            raise ProtocolAborted("frames are missing or out of order", code="frame-gap")
        # (4)
        if (header.seq == 0) != (header.enc_len != 0):
            raise ProtocolAborted("a content key comes with the first frame and only there", code="bad-frame")
        try:
            if inbound is None:
                key = suites.open_sealed(self.suite, self.private, _key_info(raw), enc)
                inbound = _Inbound(ChaCha20Poly1305(key))
            size = len(ct) - _TAG
            inbound.cipher.decrypt_into(_nonce(header), ct, raw, memoryview(self._plain)[:size])
            body = _unpad(self._plain, size)
        except (InvalidTag, DecodeError, ValueError):
            raise ProtocolAborted(
                "a frame does not open with this attempt's key", code="frame-forged"
            ) from None
        # (5)
        if header.round in inbound.ended_rounds:
            raise ProtocolAborted("a frame follows the last one of its stream", code="frame-after-last")
        self._directions[header.sender] = inbound
        inbound.seq += 1
        if header.last:
            inbound.open_rounds.discard(header.round)
            inbound.ended_rounds.add(header.round)
        else:
            inbound.open_rounds.add(header.round)
        return Incoming(header.sender, header.round, body, header.last)

    def check_complete(self) -> None:
        """Check that every stream that began has ended.

        Raises:
            ProtocolAborted: a stream was cut.
        """
        if any(inbound.open_rounds for inbound in self._directions.values()):
            raise ProtocolAborted("a stream ended before its last frame", code="stream-truncated")
