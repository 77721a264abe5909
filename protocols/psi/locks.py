"""Threshold locks: an envelope that opens only where k lists hold the same person. SPEC.md, section 3.

As in STAR (Davidson et al., CCS 2022, arXiv:2109.10074): everyone who holds V derives the same polynomial of
degree k - 1 over the scalars, the list with index i >= 1 attaches the share f(i), and locks its row under a
key made of a_0 = f(0) and i. Whoever has k shares of one V gets a_0 and can take off the lock of each of
those lists; with fewer, a_0 is uniform to him (Shamir 1979).

With k = 1 the polynomial is the constant a_0 and each share is the key: such a lock protects nothing, and
the coalition table says so.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from protocols.errors import ProtocolAborted
from protocols.psi.group import ORDER, POINT_BYTES, SCALAR_BYTES

SHARE_BYTES: Final = SCALAR_BYTES
GCM_TAG_BYTES: Final = 16

_COEFFICIENT: Final = b"minshu/lock/1"
_LOCK_KEY: Final = b"minshu/lock-key/1"
# Each lock key encrypts one message only: it is bound to ctx, V and the index.
_NONCE: Final = bytes(12)


def shares_and_keys(values: bytes, index: int, threshold: int, ctx: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield for each V the share f(index) and the lock key of that index.

    Args:
        values: n x 32 bytes, V of each row.
        index: the list's place, 1 or more: f(0) is the secret.
        threshold: k, the number of lists whose shares open a lock.
        ctx: 32 bytes.
    """
    sha512 = hashlib.sha512
    powers = [(index**j, _COEFFICIENT + ctx + bytes([j])) for j in range(threshold)]
    key_of = _key_prefix(ctx)
    end = index.to_bytes(1, "big")
    for at in range(0, len(values), POINT_BYTES):
        value = values[at : at + POINT_BYTES]
        share = secret = int.from_bytes(sha512(powers[0][1] + value).digest(), "little") % ORDER
        for factor, prefix in powers[1:]:
            share += int.from_bytes(sha512(prefix + value).digest(), "little") * factor
        yield (
            (share % ORDER).to_bytes(SHARE_BYTES, "little"),
            hashlib.sha256(key_of + secret.to_bytes(SCALAR_BYTES, "little") + end).digest(),
        )


def lock(
    values: bytes, index: int, threshold: int, ctx: bytes, envelopes: Iterable[bytes]
) -> Iterator[bytes]:
    """Yield share ‖ locked envelope for each V and its envelope. Arguments as in `shares_and_keys`."""
    pairs = shares_and_keys(values, index, threshold, ctx)
    for (share, key), envelope in zip(pairs, envelopes, strict=True):
        yield share + AESGCM(key).encrypt(_NONCE, envelope, None)


def secret_weights(indices: Iterable[int]) -> dict[int, int]:
    """Return Lagrange's weights at zero: a_0 = sum of weight x share over these indices, modulo the order.

    Raises:
        ValueError: an index is zero or stands twice.
    """
    points = list(indices)
    if len(set(points)) != len(points) or 0 in points:
        raise ValueError("indices of shares must be different and not zero")
    weights = {}
    for i in points:
        numerator = denominator = 1
        for j in points:
            if j != i:
                numerator = numerator * j % ORDER
                denominator = denominator * (j - i) % ORDER
        weights[i] = numerator * pow(denominator, -1, ORDER) % ORDER
    return weights


def unlock(
    shares: Mapping[int, bytes], weights: Mapping[int, int], ctx: bytes, index: int, locked: bytes
) -> bytes:
    """Return the envelope in the lock of list `index`.

    Args:
        shares: by list index; at least those of `weights`.
        weights: `secret_weights` of k indices.
        ctx: 32 bytes.
        index: whose lock it is.
        locked: the locked envelope.

    Raises:
        ProtocolAborted: `lock-broken`, a share or the lock is not what holders of this V would have made.
    """
    secret = sum(weights[i] * int.from_bytes(shares[i], "little") for i in weights) % ORDER
    key = hashlib.sha256(
        _key_prefix(ctx) + secret.to_bytes(SCALAR_BYTES, "little") + index.to_bytes(1, "big")
    ).digest()
    try:
        return AESGCM(key).decrypt(_NONCE, locked, None)
    except InvalidTag:
        raise ProtocolAborted(
            "a lock does not open with the shares that came with it",
            code="lock-broken",
            hint="one of the sources runs another version or altered its rows; nothing tells which",
        ) from None


def _key_prefix(ctx: bytes) -> bytes:
    return _LOCK_KEY + ctx
