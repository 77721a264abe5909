"""Sealing suites: RFC 9180 for suite 2, round trips and refusals for both."""

import secrets

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.channel import suites
from protocols.errors import DecodeError, InputError, MinshuError

BOTH = pytest.mark.parametrize("suite", suites.SUITES)
PRIVATE = {
    suite: suites.new_private_key(suite, lambda n: bytes(i % 251 for i in range(n)))
    for suite in suites.SUITES
}
PUBLIC = {suite: suites.public_key(suite, private) for suite, private in PRIVATE.items()}


def test_the_chacha_vector_of_rfc_9180_opens():
    # RFC 9180 appendix A.2.1: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20Poly1305, base mode.
    info = bytes.fromhex("4f6465206f6e2061204772656369616e2055726e")
    recipient = bytes.fromhex("8057991eef8f1f1af18f4a9491d16a1ce333f695d4db8e38da75975c4478e0fb")
    public = bytes.fromhex("4310ee97d88cc1f088a5576c77ab0cf5c3ac797f3d95139c6c84b5429c59662a")
    enc = bytes.fromhex("1afa08d3dec047a643885163f1180476fa7ddb54c6a8029ea33f95796bf2ac4a")
    key = bytes.fromhex("ad2744de8e17f4ebba575b3f5f5a8fa1f69c2a07f6e7500bc60ca6e3e3ec1c91")
    nonce = bytes.fromhex("5c4d98150661b848853b547f")
    plaintext = bytes.fromhex("4265617574792069732074727574682c20747275746820626561757479")
    ciphertext = bytes.fromhex(
        "1c5250d8034ec2b784ba2cfd69dbdb8af406cfe3ff938e131f0def8c8b60b4db21993c62ce81883d2dd1b51a28"
    )
    # The key and nonce of the vector make the ciphertext of the vector, whose associated data is "Count-0" …
    assert ChaCha20Poly1305(key).encrypt(nonce, plaintext, b"Count-0") == ciphertext
    # … and our suite, which has none, must come to the same key and nonce from enc and info.
    sealed = enc + ChaCha20Poly1305(key).encrypt(nonce, plaintext, b"")
    assert suites.open_sealed(2, recipient, info, sealed) == plaintext
    assert suites.public_key(2, recipient) == public


@BOTH
@settings(max_examples=10, deadline=None)
@given(plaintext=st.binary(max_size=100), info=st.binary(max_size=64))
def test_what_is_sealed_opens(suite, plaintext, info):
    sealed = suites.seal(suite, PUBLIC[suite], info, plaintext)
    assert len(sealed) == len(plaintext) + suites.overhead(suite)
    assert suites.open_sealed(suite, PRIVATE[suite], info, sealed) == plaintext


@BOTH
def test_sealing_twice_gives_other_bytes(suite):
    assert suites.seal(suite, PUBLIC[suite], b"", b"x") != suites.seal(suite, PUBLIC[suite], b"", b"x")


def test_keys_have_the_lengths_of_their_suite():
    # FIPS 203 ML-KEM-768: seed 64, encapsulation key 1184, ciphertext 1088. RFC 7748 X25519: 32.
    assert [len(PRIVATE[s]) for s in (1, 2)] == [64 + 32, 32]
    assert [len(PUBLIC[s]) for s in (1, 2)] == [1184 + 32, 32]
    assert [suites.overhead(s) for s in (1, 2)] == [1088 + 32 + 16, 32 + 16]


@BOTH
def test_a_private_key_is_exactly_the_bytes_of_rand(suite):
    asked = []

    def rand(count: int) -> bytes:
        asked.append(count)
        return bytes(count)

    assert suites.new_private_key(suite, rand) == bytes(asked[0])
    assert len(asked) == 1


@BOTH
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_an_altered_ciphertext_does_not_open(suite, data):
    sealed = bytearray(suites.seal(suite, PUBLIC[suite], b"info", b"plaintext"))
    sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(DecodeError) as caught:
        suites.open_sealed(suite, PRIVATE[suite], b"info", bytes(sealed))
    assert caught.value.code == "does-not-open"


@BOTH
def test_another_info_or_another_key_does_not_open(suite):
    sealed = suites.seal(suite, PUBLIC[suite], b"info", b"plaintext")
    other = suites.new_private_key(suite, secrets.token_bytes)
    for private, info in ((PRIVATE[suite], b"Info"), (PRIVATE[suite], b""), (other, b"info")):
        with pytest.raises(DecodeError) as caught:
            suites.open_sealed(suite, private, info, sealed)
        assert caught.value.code == "does-not-open"
        assert caught.value.hint


def test_both_halves_of_suite_1_are_needed():
    private = PRIVATE[1]
    other = suites.new_private_key(1, secrets.token_bytes)
    sealed = suites.seal(1, PUBLIC[1], b"", b"x")
    for mixed in (private[:64] + other[64:], other[:64] + private[64:]):
        with pytest.raises(DecodeError):
            suites.open_sealed(1, mixed, b"", sealed)


@BOTH
@pytest.mark.parametrize("length", [0, 1, 15, 16, 31, 32, 47, 48, 1087, 1088, 1119, 1120, 1135, 1136, 5000])
def test_bytes_nobody_sealed_are_a_clear_error(suite, length):
    with pytest.raises(DecodeError) as caught:
        suites.open_sealed(suite, PRIVATE[suite], b"", bytes(length))
    assert caught.value.code == "does-not-open"


@BOTH
def test_a_key_of_another_length_is_refused(suite):
    for wrong in (b"", PUBLIC[suite][:-1], PUBLIC[suite] + b"\0", PUBLIC[3 - suite]):
        with pytest.raises(DecodeError) as caught:
            suites.seal(suite, wrong, b"", b"x")
        assert caught.value.code == "bad-key"
    for wrong in (b"", PRIVATE[suite][:-1], PRIVATE[suite] + b"\0", PRIVATE[3 - suite]):
        for call in (
            lambda: suites.public_key(suite, wrong),  # noqa: B023  # called in the same turn
            lambda: suites.open_sealed(suite, wrong, b"", b""),  # noqa: B023  # called in the same turn
        ):
            with pytest.raises(DecodeError) as caught:
                call()
            assert caught.value.code == "bad-key"
            assert wrong.hex() not in caught.value.message or not wrong


# RFC 7748 section 6.1 and Bernstein's list: points whose shared secret is zero for every private key.
SMALL_ORDER = [
    0,
    1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
    2**255 - 20,
    2**255 - 19,
    2**255 - 18,
]


@BOTH
@pytest.mark.parametrize("u", SMALL_ORDER)
def test_a_public_key_that_fixes_the_secret_is_refused(suite, u):
    with pytest.raises(DecodeError) as caught:
        suites.seal(suite, PUBLIC[suite][:-32] + u.to_bytes(32, "little"), b"", b"x")
    assert caught.value.code == "bad-key"


@BOTH
@pytest.mark.parametrize("u", SMALL_ORDER)
def test_an_encapsulated_key_that_fixes_the_secret_does_not_open(suite, u):
    sealed = suites.seal(suite, PUBLIC[suite], b"", b"x")
    end = suites.overhead(suite) - 16
    weak = sealed[: end - 32] + u.to_bytes(32, "little") + sealed[end:]
    with pytest.raises(DecodeError) as caught:
        suites.open_sealed(suite, PRIVATE[suite], b"", weak)
    assert caught.value.code == "does-not-open"


def test_an_ml_kem_key_out_of_range_is_refused():
    # FIPS 203 7.2: coefficients must be below q = 3329; 0xfff is not.
    with pytest.raises(DecodeError) as caught:
        suites.seal(1, b"\xff" * 1184 + PUBLIC[1][1184:], b"", b"x")
    assert caught.value.code == "bad-key"


@pytest.mark.parametrize("suite", [0, 3, 4, 255, -1])
def test_an_unknown_suite_is_refused_everywhere(suite):
    for call in (
        lambda: suites.overhead(suite),
        lambda: suites.new_private_key(suite, secrets.token_bytes),
        lambda: suites.public_key(suite, bytes(32)),
        lambda: suites.seal(suite, bytes(32), b"", b""),
        lambda: suites.open_sealed(suite, bytes(32), b"", b""),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert caught.value.code == "unknown-suite"
        assert isinstance(caught.value, MinshuError)


def test_the_default_suite_is_the_hybrid_one():
    assert suites.DEFAULT_SUITE == 1
    assert suites.SUITES == (1, 2)
