"""DSSE envelopes: one byte form, the type is signed too, and thresholds count distinct keys."""

import json
import shutil
import subprocess
import tracemalloc
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols import envelope as dsse
from protocols.encoding import b64encode, canonical_json, sha256_digest
from protocols.envelope import (
    APPROVAL,
    JOB,
    MAX_SIGNATURE_CHECKS,
    MAX_SIGNATURES,
    Envelope,
    KeySigner,
    Signature,
    decode_envelope,
    key_id,
    pae,
    sign,
    verify,
    verify_signature,
)
from protocols.errors import DecodeError, MinshuError, SignatureInvalid
from protocols.ids import KeyId

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "envelope.json").read_text("utf-8"))


def signer(seed: int) -> KeySigner:
    return KeySigner(Ed25519PrivateKey.from_private_bytes(bytes((seed,)) * 32))


DPO, OWNER, STRANGER = signer(1), signer(2), signer(3)
KEYS = {key_id(s.public_key): s.public_key for s in (DPO, OWNER)}
PAYLOAD = b'{"a":1}'


def refused(*arguments: object, **options: object) -> str:
    with pytest.raises(SignatureInvalid) as caught:
        verify(*arguments, **options)  # type: ignore[arg-type]  # each test passes real arguments
    return caught.value.code


# ---------------------------------------------------------------- vectors


@pytest.mark.parametrize("vector", VECTORS["pae"], ids=lambda v: v["name"])
def test_pae_vectors(vector):
    assert pae(vector["payloadType"], vector["payload"].encode()) == vector["pae"].encode()


@pytest.mark.parametrize("vector", VECTORS["good"], ids=lambda v: v["name"])
def test_good_vectors_verify(vector):
    keys = {KeyId(name): bytes.fromhex(raw) for name, raw in vector["keys"].items()}
    envelope = decode_envelope(vector["envelope"].encode())
    assert verify(envelope, vector["payloadType"], keys, vector["threshold"]) == set(vector["signed_by"])
    assert envelope.payload_digest == vector["payload_digest"]
    assert envelope.encode() == vector["envelope"].encode()


@pytest.mark.parametrize("vector", VECTORS["bad"], ids=lambda v: v["name"])
def test_bad_vectors_fail_at_their_step(vector):
    keys = {KeyId(name): bytes.fromhex(raw) for name, raw in vector["keys"].items()}
    step = "decode"
    with pytest.raises(MinshuError) as caught:  # noqa: PT012  # the step says which call failed
        envelope = decode_envelope(vector["envelope"].encode())
        step = "verify"
        verify(envelope, vector["payloadType"], keys, vector["threshold"])
    assert (step, caught.value.code) == (vector["step"], vector["code"])


def test_the_first_vector_of_rfc_8032_verifies():
    public = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
    signature = bytes.fromhex(
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555"
        "fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
    )
    assert verify_signature(public, signature, b"")
    assert not verify_signature(public, signature, b"\0")


def test_stock_openssl_accepts_our_signature_over_the_pae(tmp_path):
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl binary on this machine to check against")
    envelope = sign(JOB, PAYLOAD, [DPO])
    public = Ed25519PublicKey.from_public_bytes(DPO.public_key)
    (tmp_path / "dpo.pem").write_bytes(
        public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    (tmp_path / "dpo.sig").write_bytes(envelope.signatures[0].sig)
    command = "pkeyutl -verify -pubin -inkey dpo.pem -rawin -in pae.bin -sigfile dpo.sig"

    (tmp_path / "pae.bin").write_bytes(pae(JOB, PAYLOAD))
    good = subprocess.run([openssl, *command.split()], cwd=tmp_path, capture_output=True, text=True)
    assert (good.returncode, good.stdout.strip()) == (0, "Signature Verified Successfully")

    (tmp_path / "pae.bin").write_bytes(pae(APPROVAL, PAYLOAD))
    bad = subprocess.run([openssl, *command.split()], cwd=tmp_path, capture_output=True, text=True)
    assert bad.returncode != 0


# ---------------------------------------------------------------- thresholds


def test_both_signers_count_and_their_ids_come_back():
    assert verify(sign(JOB, PAYLOAD, [DPO, OWNER]), JOB, KEYS, 2) == set(KEYS)


def test_one_of_two_signatures_is_too_few():
    assert refused(sign(JOB, PAYLOAD, [DPO]), JOB, KEYS, 2) == "too-few-signatures"


def test_one_key_twice_counts_once():
    assert refused(sign(JOB, PAYLOAD, [DPO, DPO]), JOB, KEYS, 2) == "too-few-signatures"


def test_one_key_under_two_names_counts_once():
    envelope = sign(JOB, PAYLOAD, [DPO])
    twice = Envelope(JOB, PAYLOAD, (*envelope.signatures, Signature("owner", envelope.signatures[0].sig)))
    names = {KeyId("dpo"): DPO.public_key, KeyId("owner"): DPO.public_key}
    assert refused(twice, JOB, names, 2) == "too-few-signatures"
    assert len(verify(twice, JOB, names)) == 1


def test_a_key_nobody_pinned_does_not_count():
    assert refused(sign(JOB, PAYLOAD, [DPO, STRANGER]), JOB, KEYS, 2) == "too-few-signatures"
    assert refused(sign(JOB, PAYLOAD, [STRANGER]), JOB, KEYS) == "too-few-signatures"


def test_no_signature_is_too_few():
    assert refused(Envelope(JOB, PAYLOAD, ()), JOB, KEYS) == "too-few-signatures"
    assert refused(sign(JOB, PAYLOAD, [DPO]), JOB, {}) == "too-few-signatures"


@pytest.mark.parametrize("threshold", [0, -1])
def test_a_threshold_below_one_is_a_programming_error(threshold):
    with pytest.raises(ValueError, match="threshold"):
        verify(sign(JOB, PAYLOAD, []), JOB, KEYS, threshold)


def test_a_lying_keyid_neither_helps_nor_harms():
    honest = sign(JOB, PAYLOAD, [DPO, OWNER]).signatures
    swapped = (Signature(honest[1].keyid, honest[0].sig), Signature(honest[0].keyid, honest[1].sig))
    assert verify(Envelope(JOB, PAYLOAD, swapped), JOB, KEYS, 2) == set(KEYS)
    nameless = tuple(Signature("", s.sig) for s in honest)
    assert verify(Envelope(JOB, PAYLOAD, nameless), JOB, KEYS, 2) == set(KEYS)
    forged = Signature(key_id(DPO.public_key), STRANGER.sign(pae(JOB, PAYLOAD)))
    assert refused(Envelope(JOB, PAYLOAD, (forged,)), JOB, KEYS) == "too-few-signatures"


def test_another_payload_type_is_refused_although_the_signature_holds():
    envelope = sign(APPROVAL, PAYLOAD, [DPO])
    assert refused(envelope, JOB, KEYS) == "wrong-payload-type"
    relabelled = Envelope(JOB, envelope.payload, envelope.signatures)
    assert refused(relabelled, JOB, KEYS) == "too-few-signatures"


def test_bytes_cannot_move_between_type_and_payload():
    # Without lengths, "a b" + "c" and "a" + "b c" would be the same bytes.
    assert pae("a 1 b", b"c") != pae("a", b"b 1 c")
    assert pae("a", b"3 b c") != pae("a 3 b", b"c")


@given(st.binary(max_size=40), st.data())
@settings(deadline=None)
def test_no_altered_payload_or_signature_verifies(payload, data):
    envelope = sign(JOB, payload, [DPO])
    assert verify(decode_envelope(envelope.encode()), JOB, KEYS) == {key_id(DPO.public_key)}
    sig = bytearray(envelope.signatures[0].sig)
    sig[data.draw(st.integers(0, 63))] ^= 1 << data.draw(st.integers(0, 7))
    altered = Envelope(JOB, payload, (Signature(envelope.signatures[0].keyid, bytes(sig)),))
    assert refused(altered, JOB, KEYS) == "too-few-signatures"
    other = data.draw(st.binary(max_size=40).filter(lambda p: p != payload))
    assert refused(Envelope(JOB, other, envelope.signatures), JOB, KEYS) == "too-few-signatures"


def test_the_second_form_of_a_signature_is_refused():
    # s + L satisfies the curve equation too; RFC 8032 5.1.7 demands s < L, so signatures are not malleable.
    order = 2**252 + 27742317777372353535851937790883648493
    sig = DPO.sign(pae(JOB, PAYLOAD))
    shifted = int.from_bytes(sig[32:], "little") + order
    assert not verify_signature(DPO.public_key, sig[:32] + shifted.to_bytes(32, "little"), pae(JOB, PAYLOAD))


@pytest.mark.parametrize("public", [b"", b"\1", bytes(31), bytes(33), b"\xff" * 32, bytes(1000)])
def test_a_key_that_is_none_verifies_nothing(public):
    assert not verify_signature(public, bytes(64), b"x")


@pytest.mark.parametrize("sig", [b"", bytes(63), bytes(65), bytes(10_000)])
def test_a_signature_of_another_length_verifies_nothing(sig):
    assert not verify_signature(DPO.public_key, sig, b"x")


# ---------------------------------------------------------------- keys under which anything verifies

P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P


def add(p: tuple[int, int], q: tuple[int, int]) -> tuple[int, int]:
    """Twisted Edwards addition on edwards25519 (RFC 8032 5.1)."""
    (x1, y1), (x2, y2) = p, q
    k = D * x1 * x2 * y1 * y2 % P
    return (
        (x1 * y2 + x2 * y1) * pow(1 + k, -1, P) % P,
        (y1 * y2 + x1 * x2) * pow(1 - k, -1, P) % P,
    )


def points_of_order_at_most_8() -> set[tuple[int, int]]:
    y = dsse._ORDER_8
    x2 = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(x2, (P + 3) // 8, P)
    if x * x % P != x2:
        x = x * pow(2, (P - 1) // 4, P) % P
    assert x * x % P == x2
    points, point = set(), (0, 1)
    for _ in range(8):
        points.add(point)
        point = add(point, (x, y))
    assert point == (0, 1)
    return points


def test_every_key_of_small_order_is_refused():
    points = points_of_order_at_most_8()
    assert len(points) == 8
    encodings = {
        (y + sign * 2**255).to_bytes(32, "little")
        for _, reduced in points
        for y in (reduced, reduced + P)
        if y < 2**255
        for sign in (0, 1)
    }
    message = b"anything"
    identity = (1).to_bytes(32, "little")
    # With R = s B and s = 0 the signature is (identity, 0): it fits every message under the identity key.
    for public in encodings:
        assert not verify_signature(public, identity + bytes(32), message)
        assert int.from_bytes(public, "little") % 2**255 in dsse._SMALL_ORDER
    assert {int.from_bytes(e, "little") % 2**255 for e in encodings} == dsse._SMALL_ORDER


def test_the_library_alone_would_have_accepted_such_a_key():
    identity = (1).to_bytes(32, "little")
    Ed25519PublicKey.from_public_bytes(identity).verify(identity + bytes(32), b"anything")


# ---------------------------------------------------------------- the byte form


@given(st.binary(max_size=60), st.lists(st.sampled_from([DPO, OWNER, STRANGER]), max_size=4))
@settings(deadline=None)
def test_an_envelope_round_trips(payload, signers):
    envelope = sign(JOB, payload, signers)
    assert decode_envelope(envelope.encode()) == envelope
    assert envelope.payload_digest == sha256_digest(payload)


def plain() -> dict[str, object]:
    return {
        "payload": b64encode(PAYLOAD),
        "payloadType": JOB,
        "signatures": [{"keyid": "k", "sig": b64encode(bytes(64))}],
    }


BAD_SHAPES = {
    "not an object": [],
    "null": None,
    "no payload": {k: v for k, v in plain().items() if k != "payload"},
    "no type": {k: v for k, v in plain().items() if k != "payloadType"},
    "no signatures": {k: v for k, v in plain().items() if k != "signatures"},
    "unknown field": plain() | {"extra": 1},
    "payload is a number": plain() | {"payload": 1},
    "type is null": plain() | {"payloadType": None},
    "signatures is an object": plain() | {"signatures": {}},
    "a signature is text": plain() | {"signatures": ["x"]},
    "a signature without keyid": plain() | {"signatures": [{"sig": ""}]},
    "a signature without sig": plain() | {"signatures": [{"keyid": ""}]},
    "a signature with an unknown field": plain() | {"signatures": [{"keyid": "", "sig": "", "x": 1}]},
    "a signature whose sig is a number": plain() | {"signatures": [{"keyid": "", "sig": 1}]},
    "one signature too many": plain() | {"signatures": [{"keyid": "", "sig": ""}] * (MAX_SIGNATURES + 1)},
}


@pytest.mark.parametrize("value", BAD_SHAPES.values(), ids=BAD_SHAPES)
def test_another_shape_is_refused(value):
    with pytest.raises(DecodeError) as caught:
        decode_envelope(canonical_json(value))
    assert caught.value.code == "bad-envelope"


def test_most_signatures_that_are_accepted():
    value = plain() | {"signatures": [{"keyid": "", "sig": ""}] * MAX_SIGNATURES}
    assert len(decode_envelope(canonical_json(value)).signatures) == MAX_SIGNATURES


@pytest.mark.parametrize("payload", ["QQ", "QR==", "Q Q=", "!", "QQ==\n"])
def test_base64_of_another_form_is_refused(payload):
    for value in (plain() | {"payload": payload}, plain() | {"signatures": [{"keyid": "", "sig": payload}]}):
        with pytest.raises(DecodeError) as caught:
            decode_envelope(canonical_json(value))
        assert caught.value.code == "bad-base64"


@given(st.data())
@settings(deadline=None)
def test_a_changed_byte_is_refused_or_changes_what_is_signed(data):
    encoded = sign(JOB, PAYLOAD, [DPO]).encode()
    at = data.draw(st.integers(0, len(encoded) - 1))
    changed = bytearray(encoded)
    changed[at] ^= data.draw(st.integers(1, 255))
    try:
        envelope = decode_envelope(bytes(changed))
        verify(envelope, JOB, KEYS)
    except (DecodeError, SignatureInvalid):
        return
    # Only the keyid, which proves nothing, may differ in a document that still verifies.
    assert (envelope.payload_type, envelope.payload) == (JOB, PAYLOAD)
    assert [s.sig for s in envelope.signatures] == [DPO.sign(pae(JOB, PAYLOAD))]


@pytest.mark.parametrize(
    ("bomb", "code"),
    [
        (b"[" * (1 << 20), "too-deep"),
        (b'{"payload":' * 100_000, "too-deep"),
        (b'{"payload":"' + b"A" * (32 << 20), "too-long"),
    ],
)
def test_depth_and_size_bombs_are_refused_in_little_memory(bomb, code):
    tracemalloc.start()
    with pytest.raises(DecodeError) as caught:
        decode_envelope(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.code == code
    assert peak < 1 << 20


def test_junk_signatures_cost_a_bounded_number_of_checks(monkeypatch):
    checks = []

    def counting(public, signature, message):
        checks.append(public)
        return verify_signature(public, signature, message)

    monkeypatch.setattr(dsse, "verify_signature", counting)
    many = {KeyId(f"k{n}"): n.to_bytes(32, "big") for n in range(1024)} | KEYS
    junk = tuple(Signature("", bytes((n,)) * 64) for n in range(MAX_SIGNATURES))
    assert refused(Envelope(JOB, PAYLOAD, junk), JOB, many) == "too-few-signatures"
    assert len(checks) == MAX_SIGNATURE_CHECKS

    checks.clear()
    honest = Envelope(JOB, PAYLOAD, (*junk[:-1], sign(JOB, PAYLOAD, [OWNER]).signatures[0]))
    assert verify(honest, JOB, many) == {key_id(OWNER.public_key)}
    assert checks[0] == OWNER.public_key  # the hinted key comes first, whatever stands before it


def test_a_signer_shows_no_private_key():
    assert DPO.private_key.private_bytes_raw().hex() not in repr(DPO)
    assert (b"\1" * 32).hex() not in repr(DPO)
    assert repr(b"\1" * 32) not in repr(DPO)
