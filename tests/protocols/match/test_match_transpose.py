"""The transpose of a bit matrix against numpy's own unpacking of bits."""

import numpy as np
import pytest

from protocols.match.transpose import swap, to_columns, to_rows


def bits(words):
    return np.unpackbits(words.view(np.uint8).reshape(len(words), -1), axis=1, bitorder="little")


def drawn(*shape):
    return np.random.default_rng(7).integers(0, 1 << 64, shape, dtype=np.uint64)


@pytest.mark.parametrize("width", [1, 2, 3, 46, 846])
def test_columns_become_rows_bit_by_bit_and_columns_again(width):
    columns = drawn(128, width)
    room, rows = np.empty(32 * width, dtype=np.uint64), np.empty((64 * width, 2), dtype=np.uint64)
    before = columns.copy()
    to_rows(columns, rows, room)
    assert (bits(rows) == bits(before).T).all()
    to_columns(rows, columns, room)
    assert (columns == before).all()


def test_a_swap_undoes_itself():
    block = drawn(64, 5)
    before, room = block.copy(), np.empty(32 * 5, dtype=np.uint64)
    swap(block, room)
    assert (block != before).any()
    swap(block, room)
    assert (block == before).all()
