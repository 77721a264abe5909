"""Exponentiations on an executor: other processes, or a cluster of the department's own machines.

What goes there is all that a list owner or key-holder raises, and the scalar it raises to: the executor is
part of the node. Without one, `protocols.psi.group` uses the cores of this process.

A list goes through message by message, one of `CHUNK_POINTS` at a time, so at most eight pieces of an attempt
are under way at any moment, each on one core: a ninth core has nothing to do.
"""

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from importlib.metadata import version
from typing import Final

import numpy as np

from protocols.errors import ProtocolAborted, StateConflict
from protocols.psi import group
from protocols.psi.group import POINT_BYTES, Points

PIECE: Final = 1024
"""Points per piece of work: some 50 ms of one core, so that handing it over costs little beside it."""


@dataclass(frozen=True, slots=True, repr=False)
class Work:
    """One piece: points to raise, or items to hash to the group first. Prints nothing of itself.

    An executor logs the arguments of a call that fails; so this one never raises, see `run`.
    """

    scalar: bytes
    points: bytes = b""
    items: tuple[bytes, ...] = ()
    dst: bytes = b""

    @property
    def size(self) -> int:
        """Length of the result, in bytes."""
        return len(self.items) * POINT_BYTES or len(self.points)

    def __repr__(self) -> str:
        return "Work()"


def installed() -> str:
    """Return the version of Minshu of this process, which can unpickle a piece if it finds this function."""
    return version("minshu")


def run(work: Work) -> bytes:
    """Return the points of a piece, raised; nothing where one is invalid.

    The process that calls this is an executor's, and computes with one thread from here on.
    """
    # Its other cores have pieces of their own. For good: other pieces may run beside this one in threads.
    group.WORKERS = 1
    try:
        base = group.hash_to_group(work.items, work.dst) if work.items else group.points(work.points)
        return group.power(base, work.scalar).tobytes()
    except ProtocolAborted:
        return b""


def power(base: Points, scalar: bytes, executor: Executor | None = None) -> Points:
    """Return each point raised to `scalar`; see `group.power`.

    Args:
        base: n x 32.
        scalar: 32 bytes, not zero modulo the order.
        executor: where; None for this process.

    Raises:
        ProtocolAborted: `bad-point`.
        StateConflict: `compute-lost`: a piece came back with another number of points.
    """
    if executor is None:
        return group.power(base, scalar)
    raw, step = np.ascontiguousarray(base).tobytes(), PIECE * POINT_BYTES
    pieces = [Work(scalar, points=raw[at : at + step]) for at in range(0, len(raw), step)]
    return _joined(executor, pieces)


def blind(items: Sequence[bytes], dst: bytes, scalar: bytes, executor: Executor | None = None) -> Points:
    """Return the group element of each item, raised to `scalar`; see `group.hash_to_group`.

    Args:
        items: any byte strings.
        dst: domain separation tag.
        scalar: 32 bytes, not zero modulo the order.
        executor: where; None for this process.

    Raises:
        StateConflict: as `power`.
    """
    if executor is None:
        return group.power(group.hash_to_group(items, dst), scalar)
    pieces = [
        Work(scalar, items=tuple(items[at : at + PIECE]), dst=dst) for at in range(0, len(items), PIECE)
    ]
    return _joined(executor, pieces)


def _joined(executor: Executor, pieces: Sequence[Work]) -> Points:
    results = list(executor.map(run, pieces))
    if not all(results):
        raise group.bad_point()
    for piece, result in zip(pieces, results, strict=True):
        if len(result) != piece.size:
            # Points after it would be taken for those of other items.
            raise StateConflict(
                f"a machine that computes for this node returned {len(result)} bytes, not {piece.size}",
                code="compute-lost",
                hint="see that all of them have this node's version of the software",
            )
    return np.frombuffer(b"".join(results), dtype=np.uint8).reshape(-1, POINT_BYTES)
