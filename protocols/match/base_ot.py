"""Base oblivious transfers: endemic OT on ristretto255 (Masny and Rindal, CCS 2019). SPEC.md, section 3.

The chooser learns one of two keys for each choice bit, by its bit; the other side learns both and no bit.

    chooser  -- two points for each bit -->  answerer
    chooser  <--        one point       --   answerer
"""

from hashlib import sha256
from typing import Final

import numpy as np
import numpy.typing as npt

from protocols.errors import ProtocolAborted
from protocols.party import Rand
from protocols.psi import group
from protocols.psi.group import POINT_BYTES, SCALAR_BYTES, UNIFORM_BYTES, Points

KEY_BYTES: Final = 16

_POINT_DOMAIN: Final = b"minshu/match-ot/1"
_KEY_DOMAIN: Final = b"minshu/match-ot-key/1"

Keys = npt.NDArray[np.uint8]


class Chooser:
    """The side with the bits. It draws a scalar for each and, where it has no key, a point at random."""

    def __init__(self, choices: npt.NDArray[np.bool_], ctx: bytes, rand: Rand) -> None:
        """Draw what is needed to choose by `choices`; `message` is what goes to the answerer."""
        count = len(choices)
        self._choices, self._ctx = choices.astype(np.intp), ctx
        drawn = b"".join(group.random_scalar(rand) for _ in range(count))
        self._scalars = np.frombuffer(drawn, dtype=np.uint8).reshape(count, SCALAR_BYTES)
        uniform = np.frombuffer(rand(UNIFORM_BYTES * count), dtype=np.uint8)
        other = group.from_uniform(uniform.reshape(count, UNIFORM_BYTES))
        own = group.subtract(group.base_power(self._scalars), _shift(other, self._choices, ctx))
        self._points = np.empty((count, 2, POINT_BYTES), dtype=np.uint8)
        self._points[np.arange(count), self._choices] = own
        self._points[np.arange(count), 1 - self._choices] = other

    @property
    def message(self) -> bytes:
        """Return two points for each choice."""
        return self._points.tobytes()

    def keys(self, reply: bytes) -> Keys:
        """Return n x 16 bytes: of each pair the key that the bit chose.

        Raises:
            ProtocolAborted: `bad-length`, or `bad-point` where the reply is no point or the identity.
        """
        if len(reply) != POINT_BYTES:
            raise ProtocolAborted(
                f"reply of {len(reply)} bytes to the base transfers, expected {POINT_BYTES}",
                code="bad-length",
            )
        base = np.broadcast_to(np.frombuffer(reply, dtype=np.uint8), (len(self._choices), POINT_BYTES))
        shared = group.power_each(base, self._scalars)
        return _keys(self._points, self._choices, shared, reply, self._ctx)


def answer(message: bytes, count: int, ctx: bytes, rand: Rand) -> tuple[bytes, Keys]:
    """Return the reply to a chooser of `count` bits, and n x 2 x 16 bytes: both keys of each pair.

    One scalar serves all pairs: under DDH their keys stay independent, and index, side and both points of the
    pair go into each key's hash.

    Raises:
        ProtocolAborted: `bad-length`, or `bad-point` where a point is no canonical encoding or the
            identity, or makes a key of the identity.
    """
    if len(message) != 2 * POINT_BYTES * count:
        raise ProtocolAborted(
            f"{len(message)} bytes of points for {count} base transfers, expected {2 * POINT_BYTES * count}",
            code="bad-length",
        )
    points = np.frombuffer(message, dtype=np.uint8).reshape(count, 2, POINT_BYTES)
    if not bool(points.any(axis=2).all()):
        raise ProtocolAborted("a point of a base transfer is the identity", code="bad-point")
    scalar = group.random_scalar(rand)
    reply = group.base_power(np.frombuffer(scalar, dtype=np.uint8).reshape(1, SCALAR_BYTES)).tobytes()
    keys = np.empty((count, 2, KEY_BYTES), dtype=np.uint8)
    for side in range(2):
        sides = np.full(count, side, dtype=np.intp)
        public = group.add(points[:, side], _shift(points[:, 1 - side], sides, ctx))
        keys[:, side] = _keys(points, sides, group.power(public, scalar), reply, ctx)
    return reply, keys


def _shift(other: Points, sides: npt.NDArray[np.intp], ctx: bytes) -> Points:
    """Return H_side(index, point of the other side) of each pair."""
    items = [
        index.to_bytes(2, "big") + bytes([side]) + point.tobytes()
        for index, (side, point) in enumerate(zip(sides.tolist(), other, strict=True))
    ]
    return group.hash_to_group(items, _POINT_DOMAIN + ctx)


def _keys(points: Points, sides: npt.NDArray[np.intp], shared: Points, reply: bytes, ctx: bytes) -> Keys:
    found = b"".join(
        sha256(
            b"".join(
                (
                    _KEY_DOMAIN,
                    ctx,
                    index.to_bytes(2, "big"),
                    bytes([side]),
                    pair.tobytes(),
                    reply,
                    secret.tobytes(),
                )
            )
        ).digest()[:KEY_BYTES]
        for index, (side, pair, secret) in enumerate(zip(sides.tolist(), points, shared, strict=True))
    )
    return np.frombuffer(found, dtype=np.uint8).reshape(len(sides), KEY_BYTES)
