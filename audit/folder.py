"""A log's folder: checkpoints, `tile/…`, `objects/…`, `witnessed/…`; a crash leaves a file old or new.

A file is written under a temporary name, flushed, then renamed over its place; `sync` flushes the directories
that renames touched. Until `sync` has returned, nothing may rely on the files.
"""

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Final

from audit.merkle import ENTRIES, HASH_BYTES, MAX_BUNDLE_BYTES, TILE_WIDTH, Tile, cut_tile
from audit.note import MAX_NOTE_BYTES
from protocols.encoding import digest_bytes, sha256_digest
from protocols.errors import DecodeError
from protocols.ids import Digest

CHECKPOINT: Final = "checkpoint"
"""The newest checkpoint: the log's signature, and what cosignatures over this very size have come."""

COSIGNED: Final = "checkpoint.cosigned"
"""The newest checkpoint that enough witnesses signed."""

OLD: Final = "checkpoint.old"
"""The newest smaller checkpoint that enough witnesses signed; if none, the one before `checkpoint`."""

MAX_OBJECT_BYTES: Final = 1 << 30


class Folder:
    """Reads and writes one log's folder. Not thread-safe: each writer has its own, with its own temporary.

    Args:
        directory: the log's folder; made when first written to.
        temporary: name, inside the folder, of the file being written.
    """

    def __init__(self, directory: Path, temporary: str = ".new") -> None:
        self.directory = directory
        self._temporary = directory / temporary
        self._touched: set[Path] = set()

    def write(self, path: str, data: bytes) -> None:
        """Put `data` at `path`, replacing what is there in one step.

        Raises:
            OSError: it could not be written; `path` is as it was, or already new.
        """
        target = self.directory / path
        self._make(target.parent)
        try:
            with self._temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            self._temporary.replace(target)
        except OSError:
            self._temporary.unlink(missing_ok=True)
            raise
        self._touched.add(target.parent)

    def sync(self) -> None:
        """Flush the directories touched since the last call, so that their new names survive a power cut.

        Raises:
            OSError: a directory could not be flushed; the next call tries again.
        """
        for directory in sorted(self._touched):
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            self._touched.discard(directory)

    def keep(self, path: str, copy: str) -> None:
        """Put what stands at `path` at `copy`, too, in one step; does nothing where nothing stands there.

        Raises:
            OSError: it could not be done; `copy` is as it was, or already new.
        """
        source = self.directory / path
        if not source.exists():
            return
        self._temporary.unlink(missing_ok=True)
        try:
            # One more name for a file already flushed: no second copy to write and flush.
            os.link(source, self._temporary)
        except OSError:
            self.write(copy, source.read_bytes())  # a file system without hard links
            return
        self._temporary.replace(self.directory / copy)
        # Where both are names of one file already, a rename does nothing.
        self._temporary.unlink(missing_ok=True)
        self._touched.add((self.directory / copy).parent)

    def remove_partial(self, tile: Tile) -> None:
        """Take the partial versions of `tile` away, which stands there in full; `sweep` frees their space."""
        aside = self.directory / f"{self._temporary.name}.gone"
        with suppress(OSError):
            aside.mkdir(exist_ok=True)
            (self.directory / f"{tile.path}.p").rename(aside / f"{tile.level}.{tile.index}")

    def sweep(self, most: int) -> None:
        """Remove at most so many files that were taken away: hundreds at once would make an entry wait."""
        aside = self.directory / f"{self._temporary.name}.gone"
        with suppress(OSError):
            for folder in sorted(aside.iterdir()):
                for file in islice(folder.iterdir(), most):
                    file.unlink()
                    most -= 1
                if not most:
                    return
                folder.rmdir()
            aside.rmdir()

    def discard_temporary(self) -> None:
        """Remove what a crash left half-written, or half-removed."""
        self._temporary.unlink(missing_ok=True)
        shutil.rmtree(self.directory / f"{self._temporary.name}.gone", ignore_errors=True)

    def read_checkpoint(self, name: str = CHECKPOINT) -> bytes | None:
        """Return the bytes of the checkpoint called `name`, None if there is none.

        Raises:
            DecodeError: longer than a note may be.
            OSError: it cannot be read.
        """
        return self._read(name, MAX_NOTE_BYTES)

    def read_tile(self, tile: Tile) -> bytes | None:
        """Return the bytes of a hash tile or entry bundle, None if it is not there.

        A partial tile that is gone is cut from its full one, which replaces it.

        Raises:
            DecodeError: longer than any tile may be, or a bundle to be cut that cannot be parsed.
            OSError: it cannot be read.
        """
        limit = MAX_BUNDLE_BYTES if tile.level == ENTRIES else TILE_WIDTH * HASH_BYTES
        data = self._read(tile.path, limit)
        if data is not None or tile.width == TILE_WIDTH:
            return data
        full = Tile(tile.level, tile.index)
        data = self._read(full.path, limit)
        return None if data is None else cut_tile(full, data, tile.width)

    def tiles(self) -> Iterator[Tile]:
        """Yield the coordinates of every tile and bundle file present, in no particular order."""
        for place, _, names in os.walk(self.directory / "tile"):
            for name in names:
                try:
                    yield Tile.parse((Path(place) / name).relative_to(self.directory).as_posix())
                except DecodeError:
                    continue  # not a tile: nobody reads it

    def put_object(self, data: bytes) -> Digest:
        """Store `data` under its digest, flushed.

        Raises:
            OSError: it could not be stored.
        """
        digest = sha256_digest(data)
        path = _object_path(digest)
        try:
            stored = self._read(path, len(data)) == data
        except DecodeError:
            stored = False  # something longer lies there: it is not the object
        if not stored:
            self.write(path, data)
        else:
            # A crash may have come between the rename and the flush of its directory.
            self._touched.add((self.directory / path).parent)
        self.sync()
        return digest

    def read_object(self, digest: str, limit: int = MAX_OBJECT_BYTES) -> bytes | None:
        """Return the object with that digest, None if it is not there.

        Raises:
            DecodeError: `digest` is none, or the stored bytes are longer than `limit` or do not hash to it.
            OSError: it cannot be read.
        """
        digest_bytes(digest)
        data = self._read(_object_path(digest), limit)
        if data is not None and sha256_digest(data) != digest:
            raise DecodeError("a stored object does not hash to its name", code="object-damaged")
        return data

    def remove_object(self, digest: str) -> None:
        """Remove the object with that digest, for good; does nothing where there is none.

        Raises:
            DecodeError: `digest` is none.
            OSError: it could not be removed.
        """
        digest_bytes(digest)
        path = self.directory / _object_path(digest)
        path.unlink(missing_ok=True)
        if path.parent.is_dir():
            self._touched.add(path.parent)
        self.sync()

    def write_witnessed(self, origin: str, note: bytes) -> None:
        """Put the newest checkpoint of the log `origin` that was cosigned here in its place, flushed.

        Raises:
            OSError: it could not be stored.
        """
        self.write(witnessed_path(origin), note)
        self.sync()

    def _read(self, path: str, limit: int) -> bytes | None:
        try:
            with _open_file(self.directory / path) as file:
                # One byte more than there should be, never `limit` at once: that much would be allocated.
                data = file.read(min(os.fstat(file.fileno()).st_size, limit) + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if len(data) > limit:
            raise DecodeError(f"{path} is longer than {limit} bytes", code="too-long")
        return data

    def _make(self, directory: Path) -> None:
        """Create `directory` and its missing parents, and remember whose listing changed."""
        missing = []
        while not directory.is_dir():
            missing.append(directory)
            directory = directory.parent
        for new in reversed(missing):
            new.mkdir(exist_ok=True)
            self._touched.add(new.parent)


def _open_file(path: Path) -> BinaryIO:
    """Open a regular file to read, and nothing else: evidence comes from strangers.

    Raises:
        OSError: there is none, or it is a directory, a pipe, a device or a socket.
    """
    # To open a pipe that nobody writes to would wait for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        raise OSError(errno.EINVAL, "Not a regular file")
    return os.fdopen(descriptor, "rb")


def witnessed_path(origin: str) -> str:
    """Return where the newest cosigned checkpoint of the log `origin` stands: its name may hold anything."""
    return f"witnessed/{sha256_digest(origin.encode()).removeprefix('sha256:')}"


def _object_path(digest: str) -> str:
    name = digest.removeprefix("sha256:")
    return f"objects/sha256/{name[:2]}/{name}"
