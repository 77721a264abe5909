"""Scratch: where lists lie that do not fit into memory, for one attempt.

Files without a name, in home/scratch/: nobody can open them, and they are gone with this process, however it
ends. What is written is encrypted with AES-256 in counter mode (NIST SP 800-38A) under a key that is in this
process's memory alone and let go of with the last of them, so what a disk, its snapshots or its next owner
keep of them says nothing but how much it was. A store has a counter prefix of its own and is only ever added
to: no part of the key stream is used twice. Nobody but this node writes there, so there is nothing to
authenticate. An attempt that is admitted and never started keeps its room until the coordinator ends it or
the job runs out.
"""

import os
import secrets
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EDQUOT, EINVAL, EISDIR, ENOSPC, EOPNOTSUPP
from pathlib import Path
from threading import Lock
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from protocols.errors import StateConflict

KEY_BYTES: Final = 32
_BLOCK: Final = 16
_NEW: Final = ".new"
_NO_UNNAMED: Final = (EOPNOTSUPP, EISDIR, EINVAL)
"""What a file system says that has no files without a name."""


class DiskScratch:
    """Stores in files of one folder; safe to use from several threads."""

    def __init__(self, folder: Path) -> None:
        """Use `folder`, which is made with the first store."""
        self._folder = folder
        self._key = secrets.token_bytes(KEY_BYTES)
        self._lock = Lock()
        self._made = 0
        self._closed = False
        self._stores: list[weakref.ref[DiskStore]] = []

    def store(self) -> "DiskStore":
        """Return a new, empty store.

        Raises:
            StateConflict: `disk-full`, `scratch-failed`, `scratch-closed`.
        """
        with self._lock:
            if self._closed:
                raise _closed()
            self._made += 1
            with _written():
                made = DiskStore(_unnamed(self._folder), self._key, self._made)
            self._stores = [each for each in self._stores if each() is not None]
            self._stores.append(weakref.ref(made))
            return made

    def close(self) -> None:
        """Drop every store, and make no more. Whoever still uses one is told so."""
        with self._lock:
            self._closed = True
            self._key = b""
            stores, self._stores = self._stores, []
        for each in stores:
            if (store := each()) is not None:
                store.drop()


class DiskStore:
    """One file: encrypted bytes, added at the end and read anywhere."""

    def __init__(self, descriptor: int, key: bytes, number: int) -> None:
        """Take an open, empty file; `number` is its own among those of the key."""
        self._descriptor = descriptor
        self._prefix = number.to_bytes(8, "big")
        self._key: algorithms.AES | None = algorithms.AES(key)
        self._writing: CipherContext | None = self._stream(0)
        self._size = 0
        self._lock = Lock()
        self._finalize = weakref.finalize(self, _close, descriptor)

    @property
    def size(self) -> int:
        """How many bytes were added."""
        return self._size

    def _stream(self, block: int) -> CipherContext:
        """Return what encrypts and decrypts from a block of 16 bytes on: file number ‖ block number."""
        assert self._key is not None
        return Cipher(self._key, modes.CTR(self._prefix + block.to_bytes(8, "big"))).encryptor()

    def append(self, data: bytes | memoryview) -> None:
        """Add bytes at the end.

        Raises:
            StateConflict: `disk-full`, `scratch-failed`, `scratch-closed`.
        """
        with self._lock:
            if self._key is None or self._writing is None:
                raise _closed()
            sealed = memoryview(self._writing.update(data))
            try:
                with _written():
                    while sealed:
                        written = os.pwrite(self._descriptor, sealed, self._size)
                        self._size, sealed = self._size + written, sealed[written:]
            except StateConflict:
                self._key = self._writing = None  # what is there ends somewhere in what was to be added
                raise

    def read(self, at: int, size: int) -> bytes:
        """Return that many bytes from a place on.

        Raises:
            ValueError: there are not so many.
            StateConflict: `scratch-failed`, `scratch-closed`.
        """
        if not 0 <= at <= at + size <= self._size:
            raise ValueError(f"{size} bytes from {at} on, of {self._size}")
        block, skip = divmod(at, _BLOCK)
        with self._lock:
            if self._key is None:
                raise _closed()
            stream = self._stream(block)
            stream.update(bytes(skip))
            pieces = []
            with _written():
                while size:
                    piece = os.pread(self._descriptor, size, at)
                    if not piece:
                        raise OSError(EINVAL, "a file became shorter")
                    pieces.append(stream.update(piece))
                    at, size = at + len(piece), size - len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def drop(self) -> None:
        """Give the room back; nothing is added or read after that."""
        with self._lock:
            self._key = self._writing = None
            self._finalize()


def _unnamed(folder: Path) -> int:
    """Return an open file that has no name, for this account alone."""
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    flags = os.O_RDWR | os.O_CLOEXEC
    if hasattr(os, "O_TMPFILE"):
        try:
            return os.open(folder, flags | os.O_TMPFILE | os.O_EXCL, 0o600)
        except OSError as error:
            if error.errno not in _NO_UNNAMED:
                raise
    # One with a name, for as long as it is empty.
    path = folder / f"{secrets.token_hex(8)}{_NEW}"
    descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    path.unlink()
    return descriptor


def clear_leftovers(folder: Path) -> None:
    """Remove names that a crash left, of empty files. Call once, before any store is made.

    Raises:
        StateConflict: `scratch-failed`.
    """
    with _written():
        for leftover in folder.glob(f"*{_NEW}"):
            leftover.unlink(missing_ok=True)


def _close(descriptor: int) -> None:
    with suppress(OSError):
        os.close(descriptor)


def _closed() -> StateConflict:
    return StateConflict("the attempt is over, and its scratch is gone", code="scratch-closed")


@contextmanager
def _written() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (ENOSPC, EDQUOT)
        raise StateConflict(
            f"this node's scratch cannot be used ({error.strerror})",
            code="disk-full" if full else "scratch-failed",
            hint="make room in the folder scratch/ of the node's home, or mount a larger disk there (a list "
            "of 20 million persons takes some 5 GB); then submit the job again",
        ) from None
