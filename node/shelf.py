"""The shelf: what a job type keeps at this node from job to job, one folder for each type.

home/shelf/<type>/<name>.blob     whole and durable, or not there
home/shelf/<type>/<name>.….new    a blob being written; what a crash leaves of one goes at the next start

Only this node's account can open any of it. No entry of the journal names what lies here, and no backup needs
it: what is lost is made again, at the cost of sending it again.

What is dropped or replaced goes by its name alone: its bytes stay in free blocks until they are written over,
and in every snapshot and backup of the folder. So have the disk encrypted, and the folder kept out of both.
"""

import mmap
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Final

from node.home import Home, flush_folder
from protocols.errors import StateConflict

_NAME: Final = re.compile(r"[a-z0-9._-]{1,128}")
_TYPE: Final = re.compile(r"[a-z0-9-]{1,64}/[0-9]{1,4}")
_BLOB: Final = ".blob"
_NEW: Final = ".new"
_BUFFER_BYTES: Final = 1 << 20


def shelf_folder(home: Home) -> Path:
    """Return where the shelves of a node are."""
    return home.path / "shelf"


def shelf_of(home: Home, job_type: str) -> "DiskShelf":
    """Return the shelf of a job type, `lookup/1`."""
    if not _TYPE.fullmatch(job_type):
        raise ValueError("not the name of a job type")
    return DiskShelf(shelf_folder(home) / job_type.replace("/", "-"))


class DiskShelf:
    """A job type's shelf at one node; safe to use from several threads."""

    def __init__(self, folder: Path) -> None:
        """Keep blobs in `folder`, which is made when the first is put."""
        self._folder = folder

    def names(self) -> list[str]:
        """Return every name, sorted.

        Raises:
            StateConflict: `shelf-unreadable`.
        """
        with _readable():
            try:
                found = [entry.name for entry in os.scandir(self._folder)]
            except FileNotFoundError:
                return []
        return sorted(name.removesuffix(_BLOB) for name in found if name.endswith(_BLOB))

    def get(self, name: str) -> memoryview | None:
        """Return a blob, read-only and mapped; None where there is none.

        It stays as it is for whoever has it, even when another takes its place or it is dropped.

        Raises:
            StateConflict: `shelf-unreadable`.
        """
        path = self._path(name)
        with _readable():
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError:
                return None
            try:
                # When it was last wanted: what nobody wants any more is deleted.
                with suppress(PermissionError):
                    os.utime(descriptor)
                size = os.fstat(descriptor).st_size
                return memoryview(mmap.mmap(descriptor, size, prot=mmap.PROT_READ) if size else b"")
            finally:
                os.close(descriptor)

    @contextmanager
    def put(self, name: str) -> Iterator[Callable[[bytes], object]]:
        """Give a writer; when the block ends the blob is durable under its name, after an error it is not.

        Of two that put the same name at once, the one that ends last counts.

        Raises:
            StateConflict: `shelf-write-failed`; what was there before is there still.
        """
        path = self._path(name)
        temporary = path.with_name(f"{name}.{secrets.token_hex(8)}{_NEW}")
        with _written():
            made = _private_folder(self._folder)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            file = os.fdopen(os.open(temporary, flags, 0o600), "wb", _BUFFER_BYTES)

        def write(data: bytes) -> None:
            with _written():
                file.write(data)

        try:
            yield write
            with _written():
                file.flush()
                os.fsync(file.fileno())
                file.close()
                temporary.replace(path)
                for folder in (self._folder, *made):
                    flush_folder(folder)
        except BaseException:
            with suppress(OSError):
                file.close()
            with suppress(OSError):
                temporary.unlink()
            raise

    def drop(self, name: str) -> None:
        """Remove a blob, if it is there.

        Raises:
            StateConflict: `shelf-write-failed`.
        """
        with _written():
            try:
                self._path(name).unlink()
            except FileNotFoundError:
                return
            flush_folder(self._folder)

    def drop_unused(self, before: datetime) -> int:
        """Remove what nobody has put or got since a moment; return how many blobs that were.

        Raises:
            StateConflict: `shelf-write-failed`.
        """
        gone = 0
        with _written():
            for entry in os.scandir(self._folder):
                if entry.name.endswith(_BLOB) and entry.stat().st_mtime < before.timestamp():
                    Path(entry).unlink(missing_ok=True)
                    gone += 1
            if gone:
                flush_folder(self._folder)
        return gone

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise ValueError(
                "a blob's name has 1 to 128 of: lower-case letters, digits, dot, dash, underscore"
            )
        return self._folder / f"{name}{_BLOB}"


def shelves(home: Home) -> list[DiskShelf]:
    """Return every shelf that something was put on."""
    try:
        return [DiskShelf(Path(entry)) for entry in os.scandir(shelf_folder(home)) if entry.is_dir()]
    except FileNotFoundError:
        return []


def entries_of(home: Home) -> tuple[int, int]:
    """Return how many files and folders the shelves are, and how many others than the owner may open.

    Raises:
        StateConflict: `shelf-unreadable`.
    """
    folder = shelf_folder(home)
    with _readable():
        if not folder.exists():
            return 0, 0
        modes = [path.lstat().st_mode for path in (folder, *folder.rglob("*"))]
    return len(modes), sum(bool(mode & (stat.S_IRWXG | stat.S_IRWXO)) for mode in modes)


def clear_leftovers(home: Home) -> None:
    """Remove what a crash left half-written. Call once, before anything is put.

    Raises:
        StateConflict: `shelf-write-failed`.
    """
    with _written():
        for leftover in shelf_folder(home).glob(f"*/*{_NEW}"):
            leftover.unlink(missing_ok=True)


def _private_folder(folder: Path) -> list[Path]:
    """Make a folder that nobody else can enter; return those above it whose names changed."""
    changed = []
    for each in (folder.parent, folder):
        try:
            each.mkdir(mode=0o700)
            changed.append(each.parent)
        except FileExistsError:
            pass
    return changed


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StateConflict(
            f"the shelf cannot be read ({error.strerror})",
            code="shelf-unreadable",
            hint="check the folder shelf/ of this node's home and its disk",
        ) from None


@contextmanager
def _written() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StateConflict(
            f"the shelf cannot be written ({error.strerror})",
            code="shelf-write-failed",
            hint="free disk space and check the folder shelf/ of this node's home; nothing was changed",
        ) from None
