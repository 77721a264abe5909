"""Sealing suites: HPKE (RFC 9180) from the library. The roster names one; it is never negotiated.

1  hybrid MLKEM768-X25519 / HKDF-SHA256 / ChaCha20-Poly1305 (default)
2  X25519 / HKDF-SHA256 / ChaCha20-Poly1305
3  reserved for SM2/SM4/SM3; refused until it exists
"""

from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from protocols.errors import DecodeError, InputError
from protocols.party import Rand

_MLKEM_SEED: Final = 64
_MLKEM_PUBLIC: Final = 1184
_X25519: Final = 32

_PrivateKey = hpke.MLKEM768X25519PrivateKey | X25519PrivateKey
_PublicKey = hpke.MLKEM768X25519PublicKey | X25519PublicKey


@dataclass(frozen=True, slots=True)
class _Suite:
    hpke: hpke.Suite
    private_bytes: int
    public_bytes: int
    overhead: int


_SUITES: Final = {
    1: _Suite(
        hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.CHACHA20_POLY1305),
        _MLKEM_SEED + _X25519,
        _MLKEM_PUBLIC + _X25519,
        hpke.KEM.MLKEM768_X25519.enc_length() + 16,
    ),
    2: _Suite(
        hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.CHACHA20_POLY1305),
        _X25519,
        _X25519,
        hpke.KEM.X25519.enc_length() + 16,
    ),
}

SUITES: Final = tuple(_SUITES)
"""The suites this version can use."""

DEFAULT_SUITE: Final = 1


def _suite(suite: int) -> _Suite:
    known = _SUITES.get(suite)
    if known is None:
        raise InputError(
            f"sealing suite {suite} is unknown, this version has {SUITES}",
            code="unknown-suite",
            hint="use a roster whose suite this version knows, or update Minshu",
        )
    return known


def _check_length(data: bytes, expected: int, what: str) -> None:
    if len(data) != expected:
        raise DecodeError(f"{what} of {len(data)} bytes, {expected} expected", code="bad-key")


def overhead(suite: int) -> int:
    """Return by how many bytes sealing lengthens a plaintext.

    Raises:
        InputError: unknown suite.
    """
    return _suite(suite).overhead


def new_private_key(suite: int, rand: Rand) -> bytes:
    """Return fresh private key bytes (suite 1: ML-KEM seed 64 ‖ X25519 32; suite 2: X25519 32).

    Raises:
        InputError: unknown suite.
    """
    return rand(_suite(suite).private_bytes)


def _private(suite: int, private: bytes) -> _PrivateKey:
    _check_length(private, _suite(suite).private_bytes, "private key")
    if suite == 2:
        return X25519PrivateKey.from_private_bytes(private)
    return hpke.MLKEM768X25519PrivateKey(
        MLKEM768PrivateKey.from_seed_bytes(private[:_MLKEM_SEED]),
        X25519PrivateKey.from_private_bytes(private[_MLKEM_SEED:]),
    )


def _public(suite: int, public: bytes) -> _PublicKey:
    _check_length(public, _suite(suite).public_bytes, "public key")
    try:
        if suite == 2:
            return X25519PublicKey.from_public_bytes(public)
        return hpke.MLKEM768X25519PublicKey(
            MLKEM768PublicKey.from_public_bytes(public[:_MLKEM_PUBLIC]),
            X25519PublicKey.from_public_bytes(public[_MLKEM_PUBLIC:]),
        )
    except ValueError:
        raise DecodeError("public key is not one of this suite", code="bad-key") from None


def public_key(suite: int, private: bytes) -> bytes:
    """Return the public key bytes of `private` (suite 1: ML-KEM 1184 ‖ X25519 32; suite 2: 32).

    Raises:
        InputError: unknown suite.
        DecodeError: wrong length.
    """
    key = _private(suite, private)
    if isinstance(key, X25519PrivateKey):
        return key.public_key().public_bytes_raw()
    return (
        MLKEM768PrivateKey.from_seed_bytes(private[:_MLKEM_SEED]).public_key().public_bytes_raw()
        + X25519PrivateKey.from_private_bytes(private[_MLKEM_SEED:]).public_key().public_bytes_raw()
    )


def seal(suite: int, public: bytes, info: bytes, plaintext: bytes) -> bytes:
    """Return HPKE single-shot base-mode encryption of `plaintext`: encapsulated key ‖ ciphertext.

    Raises:
        InputError: unknown suite.
        DecodeError: the public key is not one of this suite.
    """
    try:
        return _suite(suite).hpke.encrypt(plaintext, _public(suite, public), info=info)
    except ValueError:  # an X25519 point of small order, which would fix the shared secret
        raise DecodeError("public key is not one of this suite", code="bad-key") from None


def open_sealed(suite: int, private: bytes, info: bytes, sealed: bytes) -> bytes:
    """Return the plaintext of `seal`'s output.

    Raises:
        InputError: unknown suite.
        DecodeError: wrong key length, or the bytes were not sealed to this key with this info.
    """
    key = _private(suite, private)
    try:
        return _suite(suite).hpke.decrypt(sealed, key, info=info)
    except InvalidTag:
        raise DecodeError(
            "sealed bytes do not open: altered, or sealed to another key",
            code="does-not-open",
            hint="check that the sender used the key in the current roster",
        ) from None
