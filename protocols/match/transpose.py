"""Transposing a bit matrix, 64 x 64 bits at a time, in a few passes over words that stay in the cache.

Bits count from the least significant one: bit i of word w stands for place 64 w + i.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]

SIDE: Final = 64
"""Bits of a word: rows come in multiples of it, and so do columns."""

_STAGES: Final = tuple(
    (np.uint64(step), np.uint64(sum(((1 << step) - 1) << at for at in range(0, SIDE, 2 * step))))
    for step in (32, 16, 8, 4, 2, 1)
)
"""Distance of the bits that change places, and those of a word that do so with bits further up."""


def swap(block: Words, room: Words) -> None:
    """Exchange row and bit in every 64 x 64 square: bit i of `block[k, w]` becomes bit k of `block[i, w]`.

    Its own inverse. Hacker's Delight, section 7-3, on many squares at once.

    Args:
        block: 64 x n, contiguous; changed in place.
        room: 32 x n or more words, overwritten.
    """
    width = block.shape[1]
    for step, mask in _STAGES:
        pairs = block.reshape(SIDE // (2 * int(step)), 2, int(step), width)
        lower, upper = pairs[:, 0], pairs[:, 1]
        moved = room[: SIDE // 2 * width].reshape(lower.shape)
        np.right_shift(lower, step, out=moved)
        np.bitwise_xor(moved, upper, out=moved)
        np.bitwise_and(moved, mask, out=moved)
        np.bitwise_xor(upper, moved, out=upper)
        np.left_shift(moved, step, out=moved)
        np.bitwise_xor(lower, moved, out=lower)


def to_rows(columns: Words, rows: Words, room: Words) -> None:
    """Write the transpose of 128 columns as rows of 128 bits.

    Args:
        columns: 128 x n, contiguous, 64 n bits of each column; overwritten.
        rows: 64 n x 2 words, filled.
        room: 32 x n words or more, overwritten.
    """
    width = columns.shape[1]
    squares = rows.reshape(width, SIDE, 2)
    for half in range(2):
        block = columns[SIDE * half : SIDE * (half + 1)]
        swap(block, room)
        squares[:, :, half] = block.T


def to_columns(rows: Words, columns: Words, room: Words) -> None:
    """Write the transpose of rows of 128 bits as 128 columns: the inverse of `to_rows`.

    Args:
        rows: 64 n x 2 words; left as they are.
        columns: 128 x n, contiguous, filled.
        room: 32 x n words or more, overwritten.
    """
    width = columns.shape[1]
    squares = rows.reshape(width, SIDE, 2)
    for half in range(2):
        block = columns[SIDE * half : SIDE * (half + 1)]
        block[:] = squares[:, :, half].T
        swap(block, room)
