"""Sealed frames: the relay reads nothing, and whatever it does to them is refused or dropped."""

import dataclasses
import hashlib
import json
import random
import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.channel import suites
from protocols.channel.frame import (
    MAX_FRAME_BYTES,
    SIZE_CLASSES,
    FrameOpener,
    FrameSealer,
    Header,
    read_header,
)
from protocols.encoding import sha256_digest
from protocols.envelope import KeySigner
from protocols.errors import DecodeError, MinshuError, ProtocolAborted
from protocols.ids import JobId, Role
from protocols.party import MAX_BODY_BYTES, Incoming, Outgoing

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "frame.json").read_text("utf-8"))

A, B, C = ROLES = Role("source-1"), Role("matcher"), Role("register")
JOB = JobId(sha256_digest(b"job"))
CTX = hashlib.sha256(b"context").digest()
BOTH = pytest.mark.parametrize("suite", suites.SUITES)


@dataclass(frozen=True)
class Attempt:
    """Everybody's keys in one attempt, and sealers and openers made from them."""

    suite: int = 2
    job: JobId = JOB
    attempt: int = 1
    ctx: bytes = CTX

    def signer(self, role: Role) -> KeySigner:
        return KeySigner(Ed25519PrivateKey.from_private_bytes(hashlib.sha256(role.encode()).digest()))

    def private(self, role: Role) -> bytes:
        stream = random.Random(f"{role} {self.suite}")
        return suites.new_private_key(self.suite, stream.randbytes)

    def sealer(self, me: Role, rand: Callable[[int], bytes] | None = None, **changes: Any) -> FrameSealer:
        peers = {r: suites.public_key(self.suite, self.private(r)) for r in ROLES if r != me}
        arguments = {
            "suite": self.suite,
            "job": self.job,
            "attempt": self.attempt,
            "ctx": self.ctx,
            "me": me,
            "signer": self.signer(me),
            "peers": peers,
            "rand": rand or random.Random(f"content keys of {me}").randbytes,
        }
        return FrameSealer(**(arguments | changes))

    def opener(self, me: Role, **changes: Any) -> FrameOpener:
        peers = {r: self.signer(r).public_key for r in ROLES if r != me}
        arguments = {
            "suite": self.suite,
            "job": self.job,
            "attempt": self.attempt,
            "ctx": self.ctx,
            "me": me,
            "private": self.private(me),
            "peers": peers,
        }
        return FrameOpener(**(arguments | changes))


ONE = Attempt()


def frames_of(*messages: Outgoing, attempt: Attempt = ONE, sender: Role = A) -> list[bytes]:
    sealer = attempt.sealer(sender)
    return [sealer.seal(message) for message in messages]


def refusal(opener: FrameOpener, frame: bytes) -> str:
    with pytest.raises((ProtocolAborted, DecodeError)) as caught:
        opener.open(frame)
    return caught.value.code


# ---------------------------------------------------------------- a second writer, from the specification


def header_bytes(h: Header) -> bytes:
    sender, to = h.sender.encode(), h.to.encode()
    return (
        struct.pack(">BB", 1, h.suite)
        + bytes.fromhex(h.job.removeprefix("sha256:"))
        + struct.pack(">I", h.attempt)
        + h.ctx
        + struct.pack(">B", len(sender))
        + sender
        + struct.pack(">B", len(to))
        + to
        + struct.pack(">IQBH", h.round, h.seq, h.last, h.enc_len)
    )


def padded(body: bytes, size: int) -> bytes:
    return struct.pack(">I", len(body)) + body + bytes(size - 4 - len(body))


def rogue(key: bytes, plain: bytes, sign_as: Role = A, **changes: Any) -> bytes:
    """Return a frame as a sender of our roster could make it who keeps to no rule but the layout."""
    enc = changes.pop("enc", None)
    fields = {
        "suite": 2,
        "job": JOB,
        "attempt": 1,
        "ctx": CTX,
        "sender": A,
        "to": B,
        "round": 1,
        "seq": 0,
        "last": True,
        "enc_len": 80 if enc is None else len(enc),
    } | changes
    raw = header_bytes(Header(**fields))
    if enc is None:
        info = hashlib.sha256(b"minshu/frame/1" + raw).digest()
        enc = suites.seal(2, suites.public_key(2, ONE.private(B)), info, key)
    nonce = struct.pack(">IQ", fields["round"], fields["seq"])
    ct = ChaCha20Poly1305(key).encrypt(nonce, plain, raw)
    signed = b"minshu/frame/1\0" + raw + hashlib.sha256(enc + ct).digest()
    return raw + enc + ct + ONE.signer(sign_as).sign(signed)


KEY = b"\x07" * 32


def test_a_frame_written_from_the_specification_opens():
    opener = ONE.opener(B)
    assert opener.open(rogue(KEY, padded(b"hello", 256))) == Incoming(A, 1, b"hello", last=True)
    second = rogue(KEY, padded(b"again", 256), seq=1, round=2, enc=b"")
    assert opener.open(second) == Incoming(A, 2, b"again", last=True)


# ---------------------------------------------------------------- vectors


def vector_attempt(value: dict[str, Any]) -> tuple[FrameOpener, dict[str, Any]]:
    setting = VECTORS["settings"][value["setting"]]
    opener = FrameOpener(
        suite=setting["suite"],
        job=JobId(setting["job"]),
        attempt=setting["attempt"],
        ctx=bytes.fromhex(setting["ctx"]),
        me=Role(setting["me"]),
        private=bytes.fromhex(setting["private"]),
        peers={Role(r): bytes.fromhex(k) for r, k in setting["identity_keys"].items()},
    )
    return opener, setting


@pytest.mark.parametrize("vector", VECTORS["good"], ids=lambda v: v["name"])
def test_good_vectors_open(vector):
    opener, _ = vector_attempt(vector)
    for frame, expected in zip(vector["frames"], vector["opens_to"], strict=True):
        message = opener.open(bytes.fromhex(frame))
        if expected is None:
            assert message is None
        else:
            assert message is not None
            assert (message.sender, message.round, message.last) == (
                expected["sender"],
                expected["round"],
                expected["last"],
            )
            body = bytes.fromhex(expected["body"])
            assert message.body == body
    opener.check_complete()


STEPS = {
    "decode": ({"bad-frame", "truncated"}, DecodeError, ""),
    "(1)": ({"foreign-frame", "unknown-role"}, ProtocolAborted, ""),
    "(2)": ({"frame-forged"}, ProtocolAborted, "signature"),
    "(3)": ({"frame-gap"}, ProtocolAborted, ""),
    "(4)": ({"frame-forged", "bad-frame"}, ProtocolAborted, ""),
    "(5)": ({"frame-after-last"}, ProtocolAborted, ""),
    "check_complete": ({"stream-truncated"}, ProtocolAborted, ""),
}


@pytest.mark.parametrize("vector", VECTORS["bad"], ids=lambda v: v["name"])
def test_bad_vectors_fail_at_their_step(vector):
    opener, _ = vector_attempt(vector)
    *before, bad = [bytes.fromhex(frame) for frame in vector["frames"]]
    for frame in before:
        assert opener.open(frame) is not None
    codes, kind, words = STEPS[vector["step"]]
    with pytest.raises(MinshuError) as caught:  # noqa: PT012  # a cut shows in the second call only
        opener.open(bad)
        opener.check_complete()
    assert caught.value.code == vector["code"]
    assert vector["code"] in codes
    assert isinstance(caught.value, kind)
    assert words in caught.value.message


def test_the_sealer_writes_the_vectors_again_from_the_same_rand():
    vector = next(v for v in VECTORS["good"] if "sealed_with" in v)
    made = vector["sealed_with"]
    _, setting = vector_attempt(vector)
    sealer = FrameSealer(
        suite=setting["suite"],
        job=JobId(setting["job"]),
        attempt=setting["attempt"],
        ctx=bytes.fromhex(setting["ctx"]),
        me=Role(made["me"]),
        signer=KeySigner(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(made["identity_seed"]))),
        peers={Role(setting["me"]): bytes.fromhex(setting["public"])},
        rand=lambda count: bytes.fromhex(made["content_key"])[:count],
    )
    for n, (frame, message) in enumerate(zip(vector["frames"], vector["opens_to"], strict=True)):
        body = bytes.fromhex(message["body"])
        sealed = sealer.seal(Outgoing(Role(setting["me"]), message["round"], body, message["last"]))
        expected = bytes.fromhex(frame)
        header = read_header(expected)
        start = len(header.encode())
        # HPKE's ephemeral key is fresh, so enc and the signature over it differ in the first frame only.
        assert sealed[:start] == expected[:start]
        assert sealed[start + header.enc_len : -64] == expected[start + header.enc_len : -64]
        assert n == 0 or sealed == expected


# ---------------------------------------------------------------- seal and open


@BOTH
def test_what_is_sealed_opens_in_both_directions(suite):
    attempt = Attempt(suite)
    for sender, to in ((A, B), (B, A), (A, C), (C, B)):
        sealer, opener = attempt.sealer(sender), attempt.opener(to)
        for round_ in range(3):
            for n, body in enumerate((b"", b"x", bytes(5000))):
                message = Outgoing(to, round_, body, last=n == 2)
                assert opener.open(sealer.seal(message)) == Incoming(sender, round_, body, last=n == 2)
        opener.check_complete()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.binary(max_size=300)), max_size=6))
def test_any_messages_arrive_as_they_were_sent(messages):
    sealer, opener = ONE.sealer(A), ONE.opener(B)
    for round_, body in messages:
        assert opener.open(sealer.seal(Outgoing(B, round_, body, last=False))) == Incoming(
            A, round_, body, last=False
        )


def test_only_the_first_frame_of_a_direction_carries_a_content_key():
    sealer = ONE.sealer(A)
    lengths = [read_header(sealer.seal(Outgoing(to, 1, b"", last=False))).enc_len for to in (B, B, C, C, B)]
    assert lengths == [80, 0, 80, 0, 0]


def test_each_direction_has_its_own_content_key():
    asked: list[bytes] = []

    def rand(count: int) -> bytes:
        asked.append(bytes((len(asked) + 1,)) * count)
        return asked[-1]

    sealer = ONE.sealer(A, rand)
    for to in (B, C, B, C):
        sealer.seal(Outgoing(to, 1, b"", last=False))
    assert [len(key) for key in asked] == [32, 32]
    assert len(set(asked)) == 2


def test_the_order_in_one_direction_is_independent_of_the_others():
    to_b, to_c = ONE.opener(B), ONE.opener(C)
    sealer = ONE.sealer(A)
    frames = [
        (to, sealer.seal(Outgoing(to, 1, bytes((n,)), last=False))) for n, to in enumerate((B, C, C, B, C))
    ]
    got = [
        opener.open(frame).body
        for opener, role in ((to_c, C), (to_b, B))
        for to, frame in frames
        if to == role
    ]
    assert got == [b"\1", b"\2", b"\4", b"\0", b"\3"]


def test_frames_of_two_peers_do_not_mix():
    opener = ONE.opener(B)
    from_a = frames_of(Outgoing(B, 1, b"a0", last=False), Outgoing(B, 1, b"a1"))
    from_c = frames_of(Outgoing(B, 1, b"c0"), Outgoing(B, 2, b"c1"), sender=C)
    got = [opener.open(frame) for frame in (from_a[0], from_c[0], from_a[1], from_c[1])]
    assert [(m.sender, m.body) for m in got] == [(A, b"a0"), (C, b"c0"), (A, b"a1"), (C, b"c1")]
    opener.check_complete()


def test_a_message_to_nobody_of_the_attempt_is_not_sealed():
    for to in (Role("source-9"), A):
        with pytest.raises(ProtocolAborted) as caught:
            ONE.sealer(A).seal(Outgoing(to, 1, b""))
        assert caught.value.code == "unknown-role"


def test_nothing_is_sealed_to_a_key_that_is_none():
    for public in (b"", bytes(31), bytes(32)):
        with pytest.raises(DecodeError) as caught:
            ONE.sealer(A, peers={B: public}).seal(Outgoing(B, 1, b""))
        assert caught.value.code == "bad-key"


def test_no_key_shows_in_a_repr():
    sealer, opener = ONE.sealer(A, lambda n: KEY[:n]), ONE.opener(B)
    opener.open(sealer.seal(Outgoing(B, 1, b"")))
    for secret in (KEY, ONE.private(B)):
        assert repr(secret)[2:-1] not in repr(sealer) + repr(opener)


# ---------------------------------------------------------------- nonces


def test_no_nonce_is_used_twice_under_one_key():
    sealer = ONE.sealer(A, lambda n: KEY[:n])
    nonces = set()
    sent = [(round_, last) for round_ in (0, 1, 2**32 - 1, 1, 0, 2) for last in (False, True, False)]
    for n, (round_, last) in enumerate(sent):
        frame = sealer.seal(Outgoing(B, round_, bytes((n,)), last))
        header = read_header(frame)
        nonce = struct.pack(">IQ", header.round, header.seq)
        start = len(header.encode())
        plain = ChaCha20Poly1305(KEY).decrypt(nonce, frame[start + header.enc_len : -64], frame[:start])
        assert plain == padded(bytes((n,)), 256)
        assert header.seq == n
        nonces.add(nonce)
    assert len(nonces) == len(sent)


def test_a_frame_that_could_not_be_signed_uses_up_its_nonce():
    class Away:
        public_key = ONE.signer(A).public_key

        def sign(self, data: bytes) -> bytes:
            raise OSError("the key device is away")

    sealer = ONE.sealer(A, signer=Away())
    with pytest.raises(OSError, match="away"):
        sealer.seal(Outgoing(B, 1, b"first"))
    sealer.signer = ONE.signer(A)
    # The receiver sees a gap and aborts, which is safe; a second plaintext under one nonce would not be.
    frame = sealer.seal(Outgoing(B, 1, b"second"))
    assert read_header(frame).seq == 1
    assert refusal(ONE.opener(B), frame) == "frame-gap"


# ---------------------------------------------------------------- sizes


def test_size_classes_rise_and_hold_the_longest_body():
    assert list(SIZE_CLASSES) == sorted(set(SIZE_CLASSES))
    assert SIZE_CLASSES[0] == 256
    assert SIZE_CLASSES[-1] >= MAX_BODY_BYTES + 4


@pytest.mark.parametrize("body", [size - 4 + step for size in SIZE_CLASSES[:-1] for step in (-1, 0, 1)])
def test_the_length_of_a_frame_tells_its_class_only(body):
    size = next(s for s in SIZE_CLASSES if s >= body + 4)
    sealer = ONE.sealer(A)
    first, second = (sealer.seal(Outgoing(B, 1, bytes(body), last=False)) for _ in range(2))
    header = len(read_header(second).encode())
    assert len(second) == header + size + 16 + 64
    assert len(first) == header + 80 + size + 16 + 64


@given(st.integers(0, 5000), st.integers(0, 5000))
@settings(max_examples=30, deadline=None)
def test_bodies_of_one_class_look_alike(one, other):
    a, b = (len(frames_of(Outgoing(B, 1, bytes(n)))[0]) for n in (one, other))
    classes = [next(s for s in SIZE_CLASSES if s >= n + 4) for n in (one, other)]
    assert (a == b) == (classes[0] == classes[1])


@BOTH
def test_the_longest_body_fits_and_one_byte_more_does_not(suite):
    attempt = Attempt(suite)
    longest = Outgoing(B, 1, b"\xff" * MAX_BODY_BYTES)
    frame = attempt.sealer(A).seal(longest)
    assert len(frame) <= MAX_FRAME_BYTES
    opened = attempt.opener(B).open(frame)
    assert opened is not None
    assert opened.body == longest.body
    with pytest.raises(ValueError, match="at most 1048576"):
        attempt.sealer(A).seal(Outgoing(B, 1, longest.body + b"x"))


PADDINGS = {
    "a class larger than needed": padded(b"x", 1024),
    "no class": padded(b"x", 300),
    "a byte that is not zero": padded(b"x", 256)[:-1] + b"\1",
    "a length beyond the plaintext": struct.pack(">I", 253) + bytes(252),
    "a huge length": b"\xff" * 4 + bytes(252),
    "a body over the bound": padded(bytes(MAX_BODY_BYTES + 1), SIZE_CLASSES[-1]),
}


@pytest.mark.parametrize("plain", PADDINGS.values(), ids=PADDINGS)
def test_padding_of_another_form_is_refused(plain):
    assert refusal(ONE.opener(B), rogue(KEY, plain)) == "bad-frame"


def test_a_plaintext_shorter_than_the_smallest_class_is_refused():
    assert refusal(ONE.opener(B), rogue(KEY, b"\0\0\0\0")) == "bad-frame"


def test_a_huge_frame_is_refused_in_little_memory():
    huge = HONEST[0] + bytes(64 << 20)
    opener = ONE.opener(B)
    tracemalloc.start()
    for take in (opener.open, read_header):
        with pytest.raises(DecodeError) as caught:
            take(huge)
        assert caught.value.code == "bad-frame"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 16


def test_no_frame_is_longer_than_the_bound():
    header = read_header(HONEST[0])
    assert read_header(HONEST[0] + bytes(MAX_FRAME_BYTES - len(HONEST[0]))) == header
    with pytest.raises(DecodeError, match="at most"):
        read_header(HONEST[0] + bytes(MAX_FRAME_BYTES - len(HONEST[0]) + 1))


def test_opening_takes_a_few_times_the_largest_frame_in_memory():
    frame = frames_of(Outgoing(B, 1, bytes(MAX_BODY_BYTES)))[0]
    opener = ONE.opener(B)
    tracemalloc.start()
    opener.open(frame)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * MAX_FRAME_BYTES


# ---------------------------------------------------------------- tampering


@BOTH
def test_every_flipped_header_byte_is_refused(suite):
    attempt = Attempt(suite)
    frame = frames_of(Outgoing(B, 1, b"body"), attempt=attempt)[0]
    opener = attempt.opener(B)
    for at in range(len(read_header(frame).encode())):
        for bit in (0, 7):
            flipped = bytearray(frame)
            flipped[at] ^= 1 << bit
            assert refusal(opener, bytes(flipped)) in {
                "bad-frame",
                "truncated",
                "foreign-frame",
                "unknown-role",
                "frame-forged",
            }
    assert opener.open(frame) == Incoming(A, 1, b"body", last=True)  # no forgery moved the opener


@BOTH
def test_every_flipped_region_is_refused(suite):
    attempt = Attempt(suite)
    frame = frames_of(Outgoing(B, 1, b"body"), attempt=attempt)[0]
    header = read_header(frame)
    start = len(header.encode())
    ct = start + header.enc_len
    regions = {
        "enc": range(start, ct, 13),
        "ct": range(ct, len(frame) - 80, 17),
        "tag": range(len(frame) - 80, len(frame) - 64),
        "sig": range(len(frame) - 64, len(frame)),
    }
    opener = attempt.opener(B)
    for where in regions.values():
        for at in where:
            flipped = bytearray(frame)
            flipped[at] ^= 0x10
            assert refusal(opener, bytes(flipped)) == "frame-forged"
    assert opener.open(frame) is not None


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_a_cut_or_lengthened_frame_is_refused(data):
    frame = frames_of(Outgoing(B, 1, b"body"))[0]
    cut = frame[: data.draw(st.integers(0, len(frame) - 1))]
    longer = frame + data.draw(st.binary(min_size=1, max_size=200))
    for altered in (cut, longer):
        assert refusal(ONE.opener(B), altered) in {"bad-frame", "truncated", "frame-forged"}


@given(st.binary(max_size=400))
@settings(max_examples=60, deadline=None)
def test_arbitrary_bytes_are_no_frame(data):
    with pytest.raises(DecodeError):
        read_header(data)
    with pytest.raises((DecodeError, ProtocolAborted)):
        ONE.opener(B).open(data)


def test_the_parts_of_two_frames_do_not_combine():
    first, second = (frames_of(Outgoing(B, 1, body))[0] for body in (b"one", b"two"))
    start = len(read_header(first).encode())
    enc = start + 80
    for cuts in ((start,), (enc,), (-64,), (start, enc), (enc, -64)):
        marks = [0, *(c % len(first) for c in cuts), len(first)]
        mixed = b"".join((first, second)[n % 2][begin:end] for n, (begin, end) in enumerate(pairwise(marks)))
        if mixed not in (first, second):
            assert refusal(ONE.opener(B), mixed) == "frame-forged"


def test_a_frame_signed_by_another_peer_is_forged():
    frame = rogue(KEY, padded(b"x", 256), sign_as=C)
    assert refusal(ONE.opener(B), frame) == "frame-forged"


CHANGES: dict[str, dict[str, Any]] = {
    "suite": {"suite": 1},
    "job": {"job": JobId(sha256_digest(b"other"))},
    "attempt": {"attempt": 2},
    "ctx": {"ctx": bytes(32)},
    "to": {"to": C},
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_a_frame_of_another_attempt_or_receiver_is_refused(changes):
    assert refusal(ONE.opener(B), rogue(KEY, padded(b"x", 256), **changes)) == "foreign-frame"


@pytest.mark.parametrize(
    "other",
    [
        Attempt(suite=1),
        Attempt(job=JobId(sha256_digest(b"other"))),
        Attempt(attempt=2),
        Attempt(ctx=bytes(32)),
    ],
)
def test_frames_of_two_attempts_do_not_mix(other):
    frame = frames_of(Outgoing(B, 1, b"x"), attempt=other)[0]
    assert refusal(ONE.opener(B), frame) == "foreign-frame"


def test_a_frame_for_another_receiver_is_refused_and_does_not_open_with_another_key():
    to_c = frames_of(Outgoing(C, 1, b"for c"))[0]
    assert refusal(ONE.opener(B), to_c) == "foreign-frame"
    # Even where the receiver pretends to be the other role, its key does not fit.
    assert refusal(ONE.opener(C, private=ONE.private(B)), to_c) == "frame-forged"


@pytest.mark.parametrize("sender", [Role("source-9"), B])
def test_a_sender_that_takes_no_part_is_refused(sender):
    opener = ONE.opener(B, peers={A: ONE.signer(A).public_key, B: ONE.signer(B).public_key})
    assert refusal(opener, rogue(KEY, padded(b"x", 256), sender=sender, sign_as=B)) == "unknown-role"


def test_the_header_is_bound_into_key_and_ciphertext():
    # A sender that signs another header over its own ciphertext gets nowhere either.
    frame = frames_of(Outgoing(B, 1, b"x", last=False), attempt=ONE)[0]
    header = read_header(frame)
    start = len(header.encode())
    body = frame[start:-64]
    for change in ({"round": 2}, {"last": True}):
        raw = dataclasses.replace(header, **change).encode()
        signature = ONE.signer(A).sign(b"minshu/frame/1\0" + raw + hashlib.sha256(body).digest())
        assert refusal(ONE.opener(B), raw + body + signature) == "frame-forged"


# ---------------------------------------------------------------- order


def stream(count: int = 4, round_: int = 1) -> list[bytes]:
    return frames_of(*(Outgoing(B, round_, bytes((n,)), last=n == count - 1) for n in range(count)))


def test_a_replayed_frame_is_dropped_whenever_it_comes():
    opener, frames = ONE.opener(B), stream()
    for n, frame in enumerate(frames):
        assert opener.open(frame) is not None
        for old in frames[: n + 1]:
            assert opener.open(old) is None
    opener.check_complete()


def test_a_replay_with_another_content_is_refused_or_dropped_but_never_opened():
    opener = ONE.opener(B)
    assert opener.open(rogue(KEY, padded(b"first", 256))) is not None
    assert opener.open(rogue(KEY, padded(b"other", 256))) is None
    assert refusal(opener, rogue(KEY, padded(b"other", 256), sign_as=C)) == "frame-forged"


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_missing_frame_shows_at_the_next_one(missing):
    opener, frames = ONE.opener(B), stream()
    for frame in frames[:missing]:
        opener.open(frame)
    assert refusal(opener, frames[missing + 1]) == "frame-gap"


def test_reordered_frames_are_refused():
    opener, frames = ONE.opener(B), stream()
    opener.open(frames[0])
    assert refusal(opener, frames[2]) == "frame-gap"


def test_a_frame_after_the_last_of_its_stream_is_refused():
    opener = ONE.opener(B)
    end, after = frames_of(Outgoing(B, 1, b""), Outgoing(B, 1, b""))
    opener.open(end)
    assert refusal(opener, after) == "frame-after-last"
    # Another round is another stream.
    opener = ONE.opener(B)
    for frame in frames_of(Outgoing(B, 1, b""), Outgoing(B, 2, b"")):
        assert opener.open(frame) is not None


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_a_stream_that_was_cut_is_found_at_the_end(kept):
    opener, frames = ONE.opener(B), stream()
    for frame in frames[:kept]:
        opener.open(frame)
    with pytest.raises(ProtocolAborted) as caught:
        opener.check_complete()
    assert caught.value.code == "stream-truncated"
    for frame in frames[kept:]:
        opener.open(frame)
    opener.check_complete()


def test_every_open_stream_is_seen_not_only_the_newest():
    opener = ONE.opener(B)
    for frame in frames_of(Outgoing(B, 1, b"", last=False), Outgoing(B, 2, b"")):
        opener.open(frame)
    with pytest.raises(ProtocolAborted):
        opener.check_complete()


@pytest.mark.parametrize("whole", [A, C])
def test_every_sender_is_checked_for_open_streams(whole):
    opener = ONE.opener(B)
    for sender in (A, C):
        opener.open(frames_of(Outgoing(B, 1, b"", last=sender == whole), sender=sender)[0])
    with pytest.raises(ProtocolAborted):
        opener.check_complete()


def test_the_content_key_comes_once_and_first():
    opener = ONE.opener(B)
    assert refusal(opener, rogue(KEY, padded(b"x", 256), enc=b"")) == "bad-frame"
    opener.open(rogue(KEY, padded(b"x", 256)))
    assert refusal(opener, rogue(KEY, padded(b"x", 256), seq=1, round=2)) == "bad-frame"


@pytest.mark.parametrize("length", [1, 31, 33, 64])
def test_a_content_key_of_another_length_is_refused(length):
    raw = header_bytes(Header(2, JOB, 1, CTX, A, B, 1, 0, last=True, enc_len=48 + length))
    info = hashlib.sha256(b"minshu/frame/1" + raw).digest()
    enc = suites.seal(2, suites.public_key(2, ONE.private(B)), info, bytes(length))
    body = enc + bytes(256 + 16)
    signature = ONE.signer(A).sign(b"minshu/frame/1\0" + raw + hashlib.sha256(body).digest())
    assert refusal(ONE.opener(B), raw + body + signature) == "frame-forged"


# ---------------------------------------------------------------- the header


HEADERS = st.builds(
    Header,
    suite=st.integers(0, 255),
    job=st.binary(max_size=4).map(lambda b: JobId(sha256_digest(b))),
    attempt=st.integers(0, 2**32 - 1),
    ctx=st.binary(min_size=32, max_size=32),
    sender=st.from_regex(r"[a-z0-9-]{1,100}", fullmatch=True).map(Role),
    to=st.from_regex(r"[a-z0-9-]{1,100}", fullmatch=True).map(Role),
    round=st.integers(0, 2**32 - 1),
    seq=st.integers(0, 2**64 - 1),
    last=st.booleans(),
    enc_len=st.integers(0, 2048),
)


@given(HEADERS)
@settings(max_examples=40, deadline=None)
def test_a_header_is_written_as_specified_and_read_back(header):
    raw = header.encode()
    assert raw == header_bytes(header)
    assert read_header(raw + bytes(header.enc_len + 256 + 16 + 64)) == header
    with pytest.raises(DecodeError):
        read_header(raw + bytes(header.enc_len + 256 + 16 + 63))


ROLE_AT = 1 + 1 + 32 + 4 + 32


@pytest.mark.parametrize(
    ("at", "value"),
    [(0, 0), (0, 2), (ROLE_AT, 0), (ROLE_AT, 101), (ROLE_AT, 255), (ROLE_AT + 1, 0x80)],
)
def test_a_header_of_another_form_is_refused(at, value):
    raw = bytearray(header_bytes(Header(2, JOB, 1, CTX, A, B, 1, 0, last=True, enc_len=0)) + bytes(600))
    raw[at] = value
    with pytest.raises(DecodeError):
        read_header(bytes(raw))


@pytest.mark.parametrize("name", ["", "a" * 101, "a" * 255, "源"])
@pytest.mark.parametrize("field", ["sender", "to"])
def test_a_role_of_another_form_is_refused(field, name):
    raw = header_bytes(
        Header(**{**dataclasses.asdict(read_header(HONEST[0])), "enc_len": 0, field: Role(name)})
    )
    with pytest.raises(DecodeError):
        read_header(raw + bytes(600))


@pytest.mark.parametrize("flag", [2, 3, 0x80, 0xFF])
def test_a_flag_that_is_neither_0_nor_1_is_refused(flag):
    raw = header_bytes(Header(2, JOB, 1, CTX, A, B, 1, 0, last=True, enc_len=0))
    with pytest.raises(DecodeError):
        read_header(raw[:-3] + bytes((flag,)) + raw[-2:] + bytes(600))


# ---------------------------------------------------------------- P4: the coordinator in the middle

IDENTIFIERS = [b"RIC:44010619900101%04d" % n for n in range(60)]


@BOTH
def test_p4_the_relay_sees_no_plaintext(suite):
    attempt = Attempt(suite)
    bodies = [
        b"\n".join(IDENTIFIERS),
        b"\0" * 5000,
        hashlib.sha256(b"tag").digest() * 40,
        b"".join(IDENTIFIERS),
    ]
    view = b""
    for sender, to in ((A, B), (B, C), (C, A)):
        sealer, opener = attempt.sealer(sender), attempt.opener(to)
        for n, body in enumerate(bodies):
            frame = sealer.seal(Outgoing(to, n, body))
            view += frame
            assert opener.open(frame).body == body
    for body in bodies:
        for at in range(0, len(body) - 24, 24):
            assert body[at : at + 24] not in view
    for identifier in IDENTIFIERS:
        for form in (
            identifier,
            identifier[4:],
            identifier.hex().encode(),
            hashlib.sha256(identifier).digest(),
        ):
            assert form not in view
    for secret in (attempt.private(A), attempt.private(B), attempt.private(C)):
        assert secret not in view


def test_p4_the_relay_learns_the_same_from_equal_and_unequal_bodies():
    same = frames_of(*(Outgoing(B, n, b"same") for n in range(3)))
    regions = [frame[len(read_header(frame).encode()) + read_header(frame).enc_len : -64] for frame in same]
    assert len(set(regions)) == 3


def flip(frames: list[bytes], at: int, where: int) -> None:
    changed = bytearray(frames[at])
    if changed:
        changed[where % len(changed)] ^= 1
    frames[at] = bytes(changed)


def splice(frames: list[bytes], at: int, where: int) -> None:
    start = len(read_header(HONEST[0]).encode())
    frames[at] = HONEST[where % len(HONEST)][:start] + frames[at][start:]


RELAY: dict[str, Callable[[list[bytes], int, int], object]] = {
    "drop": lambda frames, at, _: frames.pop(at),
    "replay": lambda frames, at, where: frames.insert(where % (len(frames) + 1), frames[at]),
    "swap": lambda frames, at, where: frames.insert(where % len(frames), frames.pop(at)),
    "rewrite": flip,
    "truncate": lambda frames, at, _: frames.__delitem__(slice(at, None)),
    "cut a frame": lambda frames, at, where: frames.__setitem__(
        at, frames[at][: where % (len(frames[at]) or 1)]
    ),
    "another header": splice,
    "another receiver's frame": lambda frames, at, _: frames.insert(at, TO_C),
    "another sender's frame": lambda frames, at, _: frames.insert(at, FROM_C),
    "another attempt's frame": lambda frames, at, _: frames.insert(at, OTHER_ATTEMPT),
}
SENT = [
    *(Outgoing(B, 1, b"list %d" % n, last=n == 2) for n in range(3)),
    *(Outgoing(B, 2, b"shares %d" % n, last=n == 1) for n in range(2)),
]
HONEST = frames_of(*SENT)
TO_C = frames_of(Outgoing(C, 1, b"for c"))[0]
FROM_C = frames_of(Outgoing(B, 9, b"from c", last=False), sender=C)[0]
OTHER_ATTEMPT = frames_of(SENT[0], attempt=Attempt(attempt=2))[0]


def deliver(frames: list[bytes]) -> tuple[list[Incoming], bool]:
    """Return what the receiver of A's frames got before the end or the abort, and whether it aborted."""
    opener, got = ONE.opener(B), []
    try:
        for frame in frames:
            message = opener.open(frame)
            if message is not None:
                got.append(message)
        opener.check_complete()
    except (ProtocolAborted, DecodeError):
        return got, True
    return got, False


EXPECTED = [Incoming(A, m.round, m.body, m.last) for m in SENT]


def test_p4_an_honest_relay_delivers_everything():
    assert deliver(HONEST) == (EXPECTED, False)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(RELAY)), st.integers(0, 2**16), st.integers(0, 2**16)),
        min_size=1,
        max_size=4,
    )
)
def test_p4_whatever_the_relay_does_the_receiver_gets_what_was_sent_or_aborts(program):
    frames = list(HONEST)
    for act, at, where in program:
        if frames:
            RELAY[act](frames, at % len(frames), where)
    got, aborted = deliver(frames)
    from_a = [m for m in got if m.sender == A]
    assert from_a == EXPECTED[: len(from_a)]  # a prefix, in order, each message once
    assert all(m == Incoming(C, 9, b"from c", last=False) for m in got if m.sender == C)
    if not aborted:
        # Only whole streams were withheld: the party still waits for them and its deadline ends the attempt.
        assert len(from_a) in (0, 3, 5)


@pytest.mark.parametrize(
    ("act", "at", "where", "aborts"),
    [
        ("drop", 1, 0, True),
        ("replay", 1, 3, False),
        ("swap", 1, 3, True),
        ("rewrite", 1, 5, True),
        ("truncate", 1, 0, True),
        ("cut a frame", 1, 100, True),
        ("another header", 1, 2, True),
        ("another receiver's frame", 1, 0, True),
        ("another attempt's frame", 1, 0, True),
    ],
)
def test_p4_a_relay_that_rewrites_swaps_cuts_or_truncates_is_detected(act, at, where, aborts):
    frames = list(HONEST)
    RELAY[act](frames, at, where)
    got, aborted = deliver(frames)
    assert aborted is aborts
    assert got == (EXPECTED if not aborts else EXPECTED[: len(got)])
    assert len(got) < len(EXPECTED) or not aborts
