"""Cosignatures against vectors that were written down without our code, and stock OpenSSL."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from witnessing import MlDsa

from audit.note import Note, NoteSignature, VerifierKey, cosigned_at, cosigned_message, verify_note
from audit.witness import CosignerKeys
from protocols.envelope import KeySigner
from protocols.errors import DecodeError, SignatureInvalid

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "cosignatures.json").read_text())
TEXT, TIME = VECTORS["text"].encode(), VECTORS["time"]
ED25519 = VerifierKey.parse(VECTORS["ed25519"]["vkey"])
MLDSA = VerifierKey.parse(VECTORS["mldsa"]["vkey"])
LOG = VerifierKey.parse(VECTORS["log_vkey"])
LINES = {4: VECTORS["ed25519"]["line"], 6: VECTORS["mldsa"]["line"]}
ED25519_KEY = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(VECTORS["ed25519"]["seed"]))
MLDSA_KEY = MLDSA44PrivateKey.from_seed_bytes(bytes.fromhex(VECTORS["mldsa"]["seed"]))
KEYS = CosignerKeys(VECTORS["name"], KeySigner(ED25519_KEY), MlDsa(MLDSA_KEY))


def parse(line: str) -> NoteSignature:
    return NoteSignature.parse(line.removesuffix("\n"))


def test_one_witness_has_one_name_and_two_keys():
    assert [str(key) for key in KEYS.vkeys] == [str(ED25519), str(MLDSA)]
    assert ED25519.name == MLDSA.name
    assert ED25519.key_id != MLDSA.key_id
    assert [str(key) for key in CosignerKeys(KEYS.name, KEYS.ed25519).vkeys] == [str(ED25519)]


def test_the_signed_messages_are_those_of_the_specification():
    assert cosigned_message(ED25519, TEXT, TIME) == VECTORS["ed25519"]["message"].encode()
    assert cosigned_message(MLDSA, TEXT, TIME).hex() == VECTORS["mldsa"]["message"]


def test_our_ed25519_line_is_the_expected_one_and_the_ml_dsa_line_verifies():
    first, second = KEYS.sign(TEXT, TIME)
    assert str(first) == LINES[4]
    # FIPS 204 signs with fresh randomness: no two lines are alike.
    assert second != parse(LINES[6])
    for line in (second, parse(LINES[6])):
        assert (line.name, line.key_id, cosigned_at(line.signature)) == (MLDSA.name, MLDSA.key_id, TIME)
        assert MLDSA.holds(TEXT, line.signature)


def test_a_note_is_verified_by_log_and_witness_keys_alike():
    note = (VECTORS["note"] + LINES[4] + LINES[6]).encode()
    assert verify_note(note, [MLDSA, LOG, ED25519])[1] == (LOG, ED25519, MLDSA)
    assert Note.decode(note).encode() == note


@pytest.mark.parametrize("case", VECTORS["bad"], ids=lambda c: c["why"])
def test_a_wrong_cosignature_does_not_hold(case):
    key = {4: ED25519, 6: MLDSA}[case["key"]]
    line = parse(case["line"])
    assert (line.name, line.key_id) == (key.name, key.key_id), "or it would be an unknown key's line"
    assert not key.holds(TEXT, line.signature)
    with pytest.raises(SignatureInvalid, match="does not hold"):
        verify_note((VECTORS["note"] + case["line"]).encode(), [LOG, key])


def test_neither_kind_of_signature_passes_for_the_other():
    ours = VerifierKey(ED25519.name, 1, ED25519.public_key)
    line = parse(LINES[4])
    assert not ours.holds(TEXT, line.signature)
    assert not ours.holds(TEXT, line.signature[8:])
    assert not ED25519.holds(TEXT, ED25519_KEY.sign(TEXT))


@given(st.sampled_from([(ED25519, 4), (MLDSA, 6)]), st.data())
def test_a_cosignature_with_one_bit_changed_does_not_hold(pair, data):
    key, kind = pair
    signature = bytearray(parse(LINES[kind]).signature)
    bit = data.draw(st.integers(0, len(signature) * 8 - 1))
    signature[bit // 8] ^= 1 << bit % 8
    assert not key.holds(TEXT, bytes(signature))


@given(st.sampled_from([(ED25519, 4), (MLDSA, 6)]), st.data())
def test_a_cosignature_does_not_hold_over_a_text_with_one_bit_changed(pair, data):
    key, kind = pair
    text = bytearray(TEXT)
    bit = data.draw(st.integers(0, len(text) * 8 - 1))
    text[bit // 8] ^= 1 << bit % 8
    assert not key.holds(bytes(text), parse(LINES[kind]).signature)


@given(st.integers(0, 2**53))
def test_the_time_of_a_cosignature_is_read_back(time_s):
    line = KEYS.sign(TEXT, time_s)[0]
    assert cosigned_at(line.signature) == time_s
    assert ED25519.holds(TEXT, line.signature)


def test_a_private_key_that_is_not_the_public_one_is_found_out_before_anything_leaves():
    class Mixed:
        public_key = ED25519.public_key
        sign = staticmethod(Ed25519PrivateKey.from_private_bytes(bytes(32)).sign)

    with pytest.raises(SignatureInvalid) as caught:
        CosignerKeys(KEYS.name, Mixed()).sign(TEXT, TIME)
    assert caught.value.code == "signer-mismatch"


def test_ml_dsa_signs_no_name_of_more_than_255_bytes():
    origin = "x" * 256
    with pytest.raises(DecodeError, match="255"):
        KEYS.sign(TEXT.replace(LOG.name.encode(), origin.encode()), TIME)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
def test_stock_openssl_verifies_a_cosignature(tmp_path):
    # OpenSSL knows Ed25519 from 1.1.1 on; ML-DSA only from 3.5 on, and is checked where it does.
    checks = [("ed25519", ED25519_KEY, ED25519, 4)]
    if _openssl_version() >= (3, 5):
        checks.append(("mldsa", MLDSA_KEY, MLDSA, 6))
    for name, private, vkey, kind in checks:
        pem = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (tmp_path / "key.pem").write_bytes(pem)
        (tmp_path / "sig").write_bytes(parse(LINES[kind]).signature[8:])
        for time_s, expected in ((TIME, 0), (TIME + 1, 1)):
            (tmp_path / "message").write_bytes(cosigned_message(vkey, TEXT, time_s))
            command = "openssl pkeyutl -verify -pubin -inkey key.pem -rawin -in message -sigfile sig"
            found = subprocess.run(command.split(), cwd=tmp_path, capture_output=True).returncode
            assert found == expected, (name, time_s)


def _openssl_version() -> tuple[int, int]:
    words = subprocess.run(["openssl", "version"], capture_output=True, text=True, check=True).stdout.split()
    major, minor, *_ = words[1].split(".")
    return int(major), int(minor)
