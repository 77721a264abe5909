"""Cuckoo placement: every item gets a row of its own, one of three that its hashes name.

The table has three segments and hash h names a row of segment h, so that a row tells which hash its item
used. Many items move at once: the walk follows from the hashes alone. SPEC.md, section 4.
"""

from collections import deque
from typing import Final

import numpy as np
import numpy.typing as npt

from protocols.errors import ProtocolAborted

HASHES: Final = 3

_ROUNDS: Final = 400
"""Rounds of the parallel walk. What is left then, if anything, is placed one by one along shortest paths."""

Slots = npt.NDArray[np.int32]


def place(rows: npt.NDArray[np.int64], segment: int) -> Slots:
    """Return who sits where: 3 x segment, the index of the item in each row, -1 where it is free.

    Finds a placement whenever there is one.

    Args:
        rows: 3 x n, the row that hash h names in segment h.
        segment: rows of a segment, n at most 2^31.

    Raises:
        ProtocolAborted: `cuckoo-full`, these hashes leave no placement.
    """
    slots = np.full(HASHES * segment, -1, dtype=np.int32)
    flat = rows + np.arange(HASHES, dtype=np.int64)[:, None] * segment
    # Whoever comes last into an empty segment has the row; the others try the next segment.
    pending = np.arange(rows.shape[1], dtype=np.int32)
    for hashed in range(HASHES):
        wanted = flat[hashed][pending]
        free = slots[wanted] < 0
        slots[wanted[free]] = pending[free]
        pending = pending[slots[wanted] != pending]
    turn = np.zeros(len(pending), dtype=np.int64)
    for _ in range(_ROUNDS):
        if not len(pending):
            break
        # Everybody takes the row whose turn it is. Of those that want one row the last gets it; the others,
        # and who sat there, want their row in the next segment.
        wanted = flat[turn, pending]
        evicted = slots[wanted]
        slots[wanted] = pending
        lost = slots[wanted] != pending
        moved = ~lost & (evicted >= 0)
        pending = np.concatenate((pending[lost], evicted[moved]))
        turn = (np.concatenate((turn[lost], turn[moved])) + 1) % HASHES
    for item in pending.tolist():
        _augment(item, flat, slots)
    return slots.reshape(HASHES, segment)


def _augment(item: int, flat: npt.NDArray[np.int64], slots: Slots) -> None:
    """Place one more item along a shortest path of moves to a free row."""
    came_from: dict[int, int] = {}  # row → row whose occupant may move here, -1 for `item` itself
    queue: deque[int] = deque()

    def reach(mover: int, origin: int) -> None:
        for row in flat[:, mover].tolist():
            if row not in came_from:
                came_from[row] = origin
                queue.append(row)

    reach(item, -1)
    while queue:
        row = queue.popleft()
        occupant = int(slots[row])
        if occupant >= 0:
            reach(occupant, row)
            continue
        while (origin := came_from[row]) >= 0:
            slots[row] = slots[origin]
            row = origin
        slots[row] = item
        return
    raise ProtocolAborted(
        "three hashes leave no row of its own for every item of a bucket",
        code="cuckoo-full",
        hint="start another attempt: it draws other hashes",
    )
