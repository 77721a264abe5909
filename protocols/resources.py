"""What a node lends a job type beside randomness: room for lists that do not fit into memory, and processors.

A protocol opens no file. It is given a `Scratch`, whose stores hold bytes for one attempt and are gone with
it; whoever gives one sees to it that nobody reads them.
"""

from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Final, Protocol

SPILL_ROWS: Final = 500_000
"""Rows of a list that are held in memory, unless a node sets another number; longer lists go to scratch."""


class Store(Protocol):
    """Bytes that are added at the end and read anywhere."""

    @property
    def size(self) -> int:
        """How many bytes were added."""
        ...

    def append(self, data: bytes | memoryview) -> None:
        """Add bytes at the end.

        Raises:
            StateConflict: there is no room for them, or the attempt is over.
        """
        ...

    def read(self, at: int, size: int) -> bytes:
        """Return that many bytes from a place on.

        Raises:
            ValueError: there are not so many.
            StateConflict: they cannot be read, or the attempt is over.
        """
        ...

    def drop(self) -> None:
        """Give the room back; nothing is added or read after that."""
        ...


class Scratch(Protocol):
    """Makes stores for one attempt."""

    def store(self) -> Store:
        """Return a new, empty store.

        Raises:
            StateConflict: there can be none, or the attempt is over.
        """
        ...


class MemoryStore:
    """A store in memory."""

    def __init__(self) -> None:
        """Start empty."""
        self._held = bytearray()

    @property
    def size(self) -> int:
        """How many bytes were added."""
        return len(self._held)

    def append(self, data: bytes | memoryview) -> None:
        """Add bytes at the end."""
        self._held += data

    def read(self, at: int, size: int) -> bytes:
        """Return that many bytes from a place on.

        Raises:
            ValueError: there are not so many.
        """
        if not 0 <= at <= at + size <= len(self._held):
            raise ValueError(f"{size} bytes from {at} on, of {len(self._held)}")
        return bytes(memoryview(self._held)[at : at + size])

    def drop(self) -> None:
        """Forget all."""
        self._held = bytearray()


class MemoryScratch:
    """Stores in memory: for lists that are short, and for tests."""

    def store(self) -> MemoryStore:
        """Return a new, empty store."""
        return MemoryStore()


@dataclass(frozen=True, slots=True)
class Resources:
    """What one attempt may use.

    Attributes:
        scratch: room for what does not fit into memory.
        executor: where exponentiations are done; None for the cores of this process.
        spill_rows: rows of a list that are held in memory. Of a longer one it is some times so many at any
            moment, however long it is.
    """

    scratch: Scratch = field(default_factory=MemoryScratch)
    executor: Executor | None = None
    spill_rows: int = SPILL_ROWS

    def spills(self, rows: int) -> bool:
        """Return whether a list of so many rows goes to scratch."""
        return rows > self.spill_rows

    def store(self, rows: int) -> Store:
        """Return a store for so many rows: in memory, if that is where they belong."""
        return self.scratch.store() if self.spills(rows) else MemoryStore()


def in_memory() -> Resources:
    """Return resources that hold everything in memory, however long."""
    return Resources(spill_rows=1 << 62)
