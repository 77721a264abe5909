"""Oblivious pseudorandom functions: RFC 9497, modes OPRF and VOPRF, suite ristretto255-SHA512.

The owner of a key k and a client compute F_k(x): the client learns it and nothing else of k, the owner
learns nothing of x. In mode VOPRF the client also checks that the key is the published one.

    client                                owner
    Blind: H(x)^r          -->            BlindEvaluate: ^k, in mode VOPRF with a proof (`dleq`)
    Finalize: F_k(x) = SHA-512(x, (H(x)^(r k))^(1/r), "Finalize")

All functions take batches. Elements are n x 32 bytes of encodings, scalars 32 little-endian bytes.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np
import numpy.typing as npt

from protocols.party import Rand
from protocols.psi import dleq, group
from protocols.psi.group import BASE, POINT_BYTES, SCALAR_BYTES, Points

SEED_BYTES: Final = 32
OUTPUT_BYTES: Final = 64

_SUITE: Final = b"ristretto255-SHA512"


class Mode(IntEnum):
    """Which protocol variant; functions of different modes are unrelated."""

    OPRF = 0
    VOPRF = 1


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A secret scalar and the point that it makes of the generator."""

    secret: bytes
    public: bytes

    def __repr__(self) -> str:
        return f"KeyPair(public={self.public.hex()})"


def context(mode: Mode) -> bytes:
    """Return the context string of section 3.1."""
    return b"OPRFV1-" + bytes([mode]) + b"-" + _SUITE


def group_dst(mode: Mode) -> bytes:
    """Return the tag under which inputs are hashed to the group."""
    return b"HashToGroup-" + context(mode)


def derive_key_pair(seed: bytes, info: bytes, mode: Mode) -> KeyPair:
    """Return the key pair of a seed: DeriveKeyPair, section 3.2.1.

    Args:
        seed: 32 random bytes.
        info: what the key is for, at most 65535 bytes.
        mode: a key serves one mode.

    Raises:
        ValueError: the seed has another length, or `info` is too long.
    """
    if len(seed) != SEED_BYTES or len(info) > 0xFFFF:
        raise ValueError(f"seed of {len(seed)} bytes and info of {len(info)}, expected 32 and at most 65535")
    message = seed + len(info).to_bytes(2, "big") + info
    for counter in range(256):
        secret = dleq.hash_to_scalar(message + bytes([counter]), b"DeriveKeyPair" + context(mode))
        if any(secret):
            scalar = np.frombuffer(secret, dtype=np.uint8).reshape(1, SCALAR_BYTES)
            return KeyPair(secret, group.base_power(scalar).tobytes())
    raise AssertionError("256 hashes were zero")


@dataclass(frozen=True, slots=True)
class Blinded:
    """What a client keeps (`inverses`, n x 32) and sends (`elements`, n x 32)."""

    inverses: npt.NDArray[np.uint8]
    elements: Points

    def __repr__(self) -> str:
        return f"Blinded({len(self.elements)} elements)"


def blind(inputs: Sequence[bytes], mode: Mode, rand: Rand) -> Blinded:
    """Return inputs that nobody can read: Blind, each with a scalar of its own.

    Args:
        inputs: any byte strings of at most 65535 bytes.
        mode: of the key that evaluates.
        rand: draws 64 bytes for each scalar.
    """
    blinds = [int.from_bytes(group.random_scalar(rand), "little") for _ in inputs]
    elements = group.power_each(group.hash_to_group(inputs, group_dst(mode)), _scalars(blinds))
    return Blinded(_scalars(_inverses(blinds)), elements)


def _scalars(values: Sequence[int]) -> npt.NDArray[np.uint8]:
    joined = b"".join(value.to_bytes(SCALAR_BYTES, "little") for value in values)
    return np.frombuffer(joined, dtype=np.uint8).reshape(-1, SCALAR_BYTES)


def _inverses(values: Sequence[int]) -> list[int]:
    """Return the inverse of each by one inversion: Montgomery's trick. The scalars are used once."""
    order, product, before = group.ORDER, 1, []
    for value in values:
        before.append(product)
        product = product * value % order
    inverse = int.from_bytes(group.invert(product.to_bytes(SCALAR_BYTES, "little")), "little")
    found = []
    for value, others in zip(reversed(values), reversed(before), strict=True):
        found.append(inverse * others % order)
        inverse = inverse * value % order
    found.reverse()
    return found


def blind_evaluate(key: KeyPair, elements: Points, mode: Mode, rand: Rand) -> tuple[Points, bytes]:
    """Return the evaluated elements and in mode VOPRF the proof of 64 bytes, else none: BlindEvaluate.

    Args:
        key: the owner's.
        elements: n x 32, as received; in mode VOPRF at most `dleq.MAX_POINTS`.
        mode: the key's.
        rand: draws the proof's commitment.

    Raises:
        ProtocolAborted: `bad-point`, an element is invalid or the identity.
    """
    evaluated = group.power(elements, key.secret)
    if mode is Mode.OPRF:
        return evaluated, b""
    return evaluated, dleq.prove(key.secret, BASE, key.public, elements, evaluated, context(mode), rand)


def check_evaluation(public: bytes, elements: Points, evaluated: Points, proof: bytes, mode: Mode) -> None:
    """Check, in mode VOPRF, that the published key evaluated; in mode OPRF, that there is no proof.

    Raises:
        ProtocolAborted: `bad-proof`, `bad-point`.
    """
    if mode is Mode.VOPRF:
        dleq.verify(BASE, public, elements, evaluated, proof, context(mode))
    elif proof:
        raise dleq.bad_proof()


def finalize(inputs: Sequence[bytes], blinded: Blinded, evaluated: Points) -> list[bytes]:
    """Return F_k of each input, 64 bytes: Finalize, after `check_evaluation`.

    Raises:
        ProtocolAborted: `bad-point`, an element is invalid or the identity.
    """
    return _outputs(inputs, group.power_each(evaluated, blinded.inverses))


def evaluate(key: KeyPair, inputs: Sequence[bytes], mode: Mode) -> list[bytes]:
    """Return F_k of each input, 64 bytes, as the owner of the key can alone: Evaluate."""
    if not inputs:
        return []
    return _outputs(inputs, group.power(group.hash_to_group(inputs, group_dst(mode)), key.secret))


def _outputs(inputs: Sequence[bytes], elements: Points) -> list[bytes]:
    sha512, raw = hashlib.sha512, elements.tobytes()
    middle = POINT_BYTES.to_bytes(2, "big")
    return [
        sha512(
            b"".join((len(x).to_bytes(2, "big"), x, middle, raw[at : at + POINT_BYTES], b"Finalize"))
        ).digest()
        for x, at in zip(inputs, range(0, len(raw), POINT_BYTES), strict=True)
    ]
