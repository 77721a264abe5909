"""Rows that a worker shares with its party: memory without a name, written once, read only.

Nothing of a dataset touches a disk for it, nothing is copied through a pipe, and a worker that is started
again finds the same rows. Linux only: `memfd_create` and its seals.
"""

import fcntl
import mmap
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from protocols.errors import DecodeError, InputError
from protocols.training.work import Column

_ALIGNED: Final = 64
_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class Rows:
    """Columns of equal length in one piece of memory; `fd` is handed to workers."""

    def __init__(self, columns: Mapping[str, npt.NDArray[Any]]) -> None:
        """Copy the columns in.

        Args:
            columns: slot → one-dimensional array of numbers or booleans, all of one length.

        Raises:
            InputError: a column is of another kind or length.
        """
        lengths = {len(column) for column in columns.values()}
        if len(lengths) != 1 or any(c.ndim != 1 or c.dtype.kind not in "fiub" for c in columns.values()):
            raise InputError("columns are not numbers of one length", code="bad-rows")
        placed, end = [], 0
        for name, column in columns.items():
            kind = column.dtype.newbyteorder("<").str
            placed.append(Column(name, kind, len(column), end))
            end += -(-column.nbytes // _ALIGNED) * _ALIGNED
        self.columns: tuple[Column, ...] = tuple(placed)
        self.fd = os.memfd_create("rows", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, max(end, _ALIGNED))
        with mmap.mmap(self.fd, 0) as memory:
            for place, column in zip(placed, columns.values(), strict=True):
                np.frombuffer(memory, place.dtype, place.rows, place.at)[:] = column
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _SEALS)

    def close(self) -> None:
        """Let go of the memory; it is freed when the last worker has ended."""
        os.close(self.fd)

    def __enter__(self) -> Self:
        """Return self."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of the memory."""
        self.close()


def attach(fd: int, columns: Sequence[Column]) -> dict[str, npt.NDArray[Any]]:
    """Return the columns behind `fd`, read only and without a copy.

    Raises:
        DecodeError: a column does not lie within the memory.
    """
    memory = mmap.mmap(fd, 0, access=mmap.ACCESS_READ)
    try:
        return {c.name: np.frombuffer(memory, c.dtype, c.rows, c.at) for c in columns}
    except ValueError:
        raise DecodeError("a column does not lie within the shared rows", code="bad-rows") from None
