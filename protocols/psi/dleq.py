"""Batched proofs that many points were raised to one key: RFC 9497, section 2.2, for ristretto255-SHA512.

The prover knows `key` with `public = base^key` and shows `after[i] = before[i]^key` for every i at once
(Chaum-Pedersen, made non-interactive by hashing, over a random linear combination of the pairs). A false
statement passes with probability about 2^-252 per hash call tried.

The hash covers the public key, every pair and the context, not `base`: that is part of the protocol, the
generator in RFC 9497.
"""

import hashlib
import hmac
from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from protocols.errors import ProtocolAborted
from protocols.party import Rand
from protocols.psi import group
from protocols.psi.group import POINT_BYTES, SCALAR_BYTES, Points

PROOF_BYTES: Final = 2 * SCALAR_BYTES
"""Two scalars: c ‖ s."""

MAX_POINTS: Final = 1 << 16
"""Most pairs of one proof: each is numbered by two bytes."""


def hash_to_scalar(message: bytes, dst: bytes) -> bytes:
    """Return HashToScalar of RFC 9497, section 4.1, little-endian; `dst` is the whole tag."""
    (uniform,) = group.expand((message,), dst + bytes([len(dst)]))
    return (int.from_bytes(uniform, "little") % group.ORDER).to_bytes(SCALAR_BYTES, "little")


def prove(  # noqa: PLR0917  # a statement in the order of RFC 9497
    key: bytes, base: bytes, public: bytes, before: Points, after: Points, context: bytes, rand: Rand
) -> bytes:
    """Return the proof of `after = before^key`: GenerateProof with ComputeCompositesFast.

    Args:
        key: the secret scalar.
        base: 32 bytes, fixed by the protocol.
        public: base^key.
        before: n x 32, 1 to `MAX_POINTS` points.
        after: n x 32, each of `before` raised to `key`.
        context: binds the proof to its use; the context string of RFC 9497.
        rand: draws the commitment's scalar.

    Raises:
        ProtocolAborted: `bad-point`, a point is invalid or the identity.
        ValueError: no points, too many, or not as many after as before.
    """
    weights = _weights(public, before, after, context)
    mixed = _combined(before, weights)
    raised = group.power(mixed, key)
    commitment = group.random_scalar(rand)
    committed = group.power(_one(base), commitment), group.power(mixed, commitment)
    c = _challenge(public, (mixed, raised, *committed), context)
    return c + group.scalar_difference(commitment, group.multiply(c, key))


def verify(  # noqa: PLR0917  # a statement in the order of RFC 9497
    base: bytes, public: bytes, before: Points, after: Points, proof: bytes, context: bytes
) -> None:
    """Check a proof that one key, that of `public`, raised every point: VerifyProof.

    Args:
        base: 32 bytes, fixed by the protocol.
        public: the prover's key, as known before.
        before: n x 32, 1 to `MAX_POINTS` points.
        after: n x 32.
        proof: 64 bytes.
        context: as for `prove`.

    Raises:
        ProtocolAborted: `bad-proof`; `bad-point`, a point is invalid or the identity.
        ValueError: no points, too many, or not as many after as before.
    """
    c, s = proof[:SCALAR_BYTES], proof[SCALAR_BYTES:]
    if len(proof) != PROOF_BYTES or not (_is_scalar(c) and _is_scalar(s)):
        raise bad_proof()
    weights = _weights(public, before, after, context)
    mixed, raised = _combined(before, weights), _combined(after, weights)
    first = group.add(group.power(_one(base), s), group.power(_one(public), c))
    second = group.add(group.power(mixed, s), group.power(raised, c))
    if not hmac.compare_digest(_challenge(public, (mixed, raised, first, second), context), c):
        raise bad_proof()


def bad_proof() -> ProtocolAborted:
    """Return a new error: one that is raised again keeps the frames it passed, which may hold secrets."""
    return ProtocolAborted(
        "the proof that all points were raised to the published key does not hold",
        code="bad-proof",
        hint="the prover used another key, or its software is broken; ask it which key version it runs",
    )


def _is_scalar(data: bytes) -> bool:
    # Zero, which an honest prover draws with probability 2^-252, would make an identity below.
    return 0 < int.from_bytes(data, "little") < group.ORDER


def _one(point: bytes) -> Points:
    return np.frombuffer(point, dtype=np.uint8).reshape(1, POINT_BYTES)


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


def _weights(public: bytes, before: Points, after: Points, context: bytes) -> npt.NDArray[np.uint8]:
    """Return the scalar that each pair counts with: n x 32."""
    if before.shape != after.shape or not 1 <= len(before) <= MAX_POINTS:
        raise ValueError(f"{len(before)} points before, {len(after)} after, expected 1 to {MAX_POINTS} each")
    seed = hashlib.sha512(_sized(public) + _sized(b"Seed-" + context)).digest()
    dst = b"HashToScalar-" + context
    head, mark, order = _sized(seed), POINT_BYTES.to_bytes(2, "big"), group.ORDER
    left, right = before.tobytes(), after.tobytes()

    def transcripts() -> Iterator[bytes]:
        for i in range(len(before)):
            at = slice(i * POINT_BYTES, (i + 1) * POINT_BYTES)
            yield b"".join((head, i.to_bytes(2, "big"), mark, left[at], mark, right[at], b"Composite"))

    scalars = b"".join(
        (int.from_bytes(uniform, "little") % order).to_bytes(SCALAR_BYTES, "little")
        for uniform in group.expand(transcripts(), dst + bytes([len(dst)]))
    )
    return np.frombuffer(scalars, dtype=np.uint8).reshape(-1, SCALAR_BYTES)


def _combined(points: Points, weights: npt.NDArray[np.uint8]) -> Points:
    """Return the sum of all points, each times its weight: 1 x 32."""
    terms = group.power_each(points, weights)
    while len(terms) > 1:
        half = len(terms) // 2
        terms = np.concatenate((group.add(terms[:half], terms[half : 2 * half]), terms[2 * half :]))
    return terms


def _challenge(public: bytes, elements: tuple[Points, ...], context: bytes) -> bytes:
    parts = (public, *(element.tobytes() for element in elements))
    return hash_to_scalar(b"".join(map(_sized, parts)) + b"Challenge", b"HashToScalar-" + context)
