"""Signed notes and checkpoints, against the reference implementation's vectors and stock OpenSSL."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from audit.note import Checkpoint, Note, NoteSignature, VerifierKey, sign_note, verify_note
from protocols.encoding import b64decode
from protocols.errors import DecodeError, SignatureInvalid

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "audit_notes.json").read_text())
TEXT, PETER_LINE, ENOCH_LINE = VECTORS["text"], VECTORS["peter"], VECTORS["enoch"]
PETER = VerifierKey.parse(VECTORS["peter_vkey"])
ENOCH = VerifierKey.parse(VECTORS["enoch_vkey"])
PETER_KEY = Ed25519PrivateKey.from_private_bytes(b64decode(VECTORS["peter_seed"])[1:])


def note(*lines: str) -> bytes:
    return (TEXT + "\n" + "".join(lines)).encode()


def test_our_signer_reproduces_the_reference_note_byte_for_byte():
    assert sign_note(TEXT.encode(), PETER, PETER_KEY.sign).encode() == note(PETER_LINE)


def test_a_verifier_key_is_printed_as_the_reference_prints_it():
    key = VerifierKey("PeterNeumann", 1, PETER_KEY.public_key().public_bytes_raw())
    assert str(key) == VECTORS["peter_vkey"]
    assert (key.label, key.key_id.hex()) == ("PeterNeumann+c74f20a3", "c74f20a3")


@pytest.mark.parametrize("case", VECTORS["bad_vkeys"], ids=lambda c: c["why"])
def test_a_malformed_verifier_key_is_refused(case):
    with pytest.raises(DecodeError):
        VerifierKey.parse(case["vkey"])


def test_no_part_of_a_verifier_key_is_a_verifier_key():
    vkey = VECTORS["peter_vkey"]
    for start in range(len(vkey)):
        for end in range(start + 1, len(vkey) + 1):
            if end - start < len(vkey):
                with pytest.raises(DecodeError):
                    VerifierKey.parse(vkey[start:end])


@pytest.mark.parametrize(
    ("name", "kind", "key", "why"),
    [("", 1, bytes(32), "empty"), ("a b", 1, bytes(32), "space"), ("a+b", 1, bytes(32), "plus"),
     ("a", 2, bytes(32), "type 2"), ("a", 1, bytes(31), "31 key bytes")],
)  # fmt: skip
def test_a_key_that_no_note_could_name_is_refused(name, kind, key, why):
    with pytest.raises(DecodeError, match=why):
        VerifierKey(name, kind, key)


def test_signatures_by_known_keys_are_returned_and_unknown_ones_ignored():
    both = note(PETER_LINE, ENOCH_LINE)
    assert verify_note(both, [PETER])[1] == (PETER,)
    assert verify_note(both, [ENOCH])[1] == (ENOCH,)
    parsed, signers = verify_note(both, [PETER, ENOCH])
    assert signers == (PETER, ENOCH)
    assert parsed.text == TEXT.encode()
    assert parsed.encode() == both


def test_a_note_that_no_known_key_signed_is_refused():
    for keys in ([], [ENOCH]):
        with pytest.raises(SignatureInvalid) as caught:
            verify_note(note(PETER_LINE), keys)
        assert caught.value.code == "no-known-signature"


def test_a_key_that_shares_only_name_or_only_id_does_not_count():
    namesake = VerifierKey(PETER.name, 1, ENOCH.public_key)
    line = str(NoteSignature("Enoch", PETER.key_id, bytes(64)))
    with pytest.raises(SignatureInvalid) as caught:
        verify_note(note(PETER_LINE, line), [namesake, ENOCH])
    assert caught.value.code == "no-known-signature"


def test_one_wrong_signature_by_a_known_key_rejects_the_whole_note():
    bent = ENOCH_LINE.replace("5n2ti", "5n3ti")
    with pytest.raises(SignatureInvalid) as caught:
        verify_note(note(PETER_LINE, bent), [PETER, ENOCH])
    assert caught.value.code == "bad-signature"
    assert verify_note(note(PETER_LINE, bent), [PETER])[1] == (PETER,)


def test_of_several_signatures_by_one_key_the_first_counts():
    bent = PETER_LINE.replace("RyyBwJnAM=", "RyyBwJnBM=")
    assert verify_note(note(PETER_LINE, bent), [PETER])[1] == (PETER,)
    with pytest.raises(SignatureInvalid):
        verify_note(note(bent, PETER_LINE), [PETER])


def test_up_to_a_hundred_signatures_are_read():
    assert verify_note(note(*[PETER_LINE] * 100), [PETER])[1] == (PETER,)


def test_two_trusted_keys_of_one_name_and_id_are_ambiguous(monkeypatch):
    # A 32-bit key id can be made to collide; here both keys are given the same one.
    monkeypatch.setattr(VerifierKey, "key_id", property(lambda _: bytes.fromhex("c74f20a3")))
    other = VerifierKey(PETER.name, 1, ENOCH.public_key)
    with pytest.raises(SignatureInvalid) as caught:
        verify_note(note(PETER_LINE), [PETER, other])
    assert caught.value.code == "ambiguous-key"
    assert verify_note(note(PETER_LINE), [PETER, PETER])[1] == (PETER,)


@pytest.mark.parametrize("case", VECTORS["bad_notes"], ids=lambda c: c["why"])
def test_a_malformed_note_is_refused(case):
    with pytest.raises(DecodeError) as caught:
        verify_note(case["note"].encode(), [PETER])
    assert caught.value.code == "malformed-note"


def test_a_note_that_is_not_utf8_or_too_long_is_refused():
    for data in (b"\xff" + note(PETER_LINE), b"x" * 1_000_001):
        with pytest.raises(DecodeError) as caught:
            Note.decode(data)
        assert caught.value.code == "malformed-note"


def test_a_text_may_hold_blank_lines_and_signature_lines():
    text = TEXT + "\n" + ENOCH_LINE + "\n\n"
    signed = sign_note(text.encode(), PETER, PETER_KEY.sign)
    parsed, signers = verify_note(signed.encode(), [PETER, ENOCH])
    assert parsed.text == text.encode()
    assert signers == (PETER,)


def test_a_signer_with_another_key_is_found_out_before_anything_is_written():
    with pytest.raises(SignatureInvalid) as caught:
        sign_note(TEXT.encode(), ENOCH, PETER_KEY.sign)
    assert caught.value.code == "signer-mismatch"


@pytest.mark.parametrize("text", [b"no newline", b"tab\there\n", b"\xff\n"])
def test_text_that_no_note_can_carry_is_not_signed_into_one(text):
    with pytest.raises(DecodeError):
        sign_note(text, PETER, PETER_KEY.sign)


LINES = st.lists(
    st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=20), max_size=6
).map(lambda lines: "".join(f"{line}\n" for line in ["first", *lines]))


@given(LINES)
def test_notes_round_trip(text):
    signed = sign_note(text.encode(), PETER, PETER_KEY.sign)
    assert verify_note(signed.encode(), [PETER]) == (signed, (PETER,))


@given(st.integers(0, len(note(PETER_LINE)) * 8 - 1))
def test_a_note_with_one_bit_changed_does_not_verify(bit):
    data = bytearray(note(PETER_LINE))
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises((DecodeError, SignatureInvalid)):
        verify_note(bytes(data), [PETER])


def test_the_published_checkpoint_is_read_and_written_back():
    case = VECTORS["checkpoint"]
    expected = Checkpoint(case["origin"], case["size"], bytes.fromhex(case["root"]))
    parsed = Note.decode(case["note"].encode())
    assert parsed.text == case["text"].encode()
    assert parsed.encode() == case["note"].encode()
    assert Checkpoint.decode(parsed.text) == expected
    assert expected.encode() == case["text"].encode()


@pytest.mark.parametrize("case", VECTORS["bad_checkpoints"], ids=lambda c: c["why"])
def test_a_malformed_checkpoint_is_refused(case):
    with pytest.raises(DecodeError):
        Checkpoint.decode(case["text"].encode())


def test_a_checkpoint_that_is_not_utf8_is_refused():
    with pytest.raises(DecodeError):
        Checkpoint.decode(b"\xff\n1\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n")


@given(
    st.text(st.characters(codec="utf-8", exclude_characters="\n"), min_size=1, max_size=30),
    st.integers(0, 2**53),
    st.binary(min_size=32, max_size=32),
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n"), min_size=1), max_size=3),
)
def test_checkpoints_round_trip(origin, size, root, extensions):
    checkpoint = Checkpoint(origin, size, root, tuple(extensions))
    assert Checkpoint.decode(checkpoint.encode()) == checkpoint


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
def test_stock_openssl_verifies_our_signature(tmp_path):
    text = Checkpoint("police.gz.example/node-a/journal/1", 3, bytes(32)).encode()
    signed = sign_note(text, PETER, PETER_KEY.sign)
    pem = PETER_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    files = {"key.pem": pem, "text": text, "sig": signed.signatures[0].signature, "other": text + b"x"}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)

    def check(name: str) -> int:
        command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", "key.pem", "-rawin"]
        return subprocess.run(
            [*command, "-in", name, "-sigfile", "sig"], cwd=tmp_path, capture_output=True
        ).returncode

    assert check("text") == 0
    assert check("other") != 0
