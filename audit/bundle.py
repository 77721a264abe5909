"""Bundles: a copy of a log's folder, as a folder or in one `.zip`. Evidence from strangers; exported whole.

What a bundle may hold is known by name: `checkpoint`, `checkpoint.old`, `checkpoint.cosigned`, `tile/…`,
`objects/sha256/ab/…`, `witnessed/<sha256 hex of an origin>`, `timestamps/<size>.tsr` and `.checkpoint`.
Reading follows no link, opens no pipe or device, writes nothing and needs memory for one file at a time: a
zip is judged by its directory (names, sizes, methods, overlaps) before anything in it is inflated, and no
file is inflated beyond the size that its directory states and its name allows.

`export` copies what belongs to one checkpoint out of a journal that may be growing, verifies the copy, and
puts it in its place in one step. It never copies a payload: a bundle holds objects that entries name, and
what an `output.commit` names as its release is left out even if it lay there.
"""

import errno
import os
import re
import shutil
import stat
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, Self

from audit.entries import Entry
from audit.folder import CHECKPOINT, COSIGNED, OLD
from audit.merkle import (
    ENTRIES,
    HASH_BYTES,
    MAX_ENTRY_BYTES,
    TILE_WIDTH,
    ReadTile,
    Tile,
    cut_tile,
    decode_bundle,
    root_from_tiles,
    tile_at,
    tiles,
)
from audit.note import MAX_NOTE_BYTES, Checkpoint, Note, VerifierKey
from audit.verify import verify_directory
from protocols.encoding import digest_bytes, sha256_digest
from protocols.errors import DecodeError, InputError, StateConflict

MAX_FILES: Final = 1 << 20
"""Most files in a bundle: eight years of a busy node."""

MAX_BYTES: Final = 32 << 30
"""Most bytes in a bundle, all files together and inflated."""

MAX_OBJECT_BYTES: Final = 16 << 20
"""Longest object that is read out of a bundle; a signed document is at most an eighth of that."""

MAX_TOKEN_BYTES: Final = 1 << 17
"""Longest time-stamp token."""

_MAX_NOTES_BYTES: Final = 32 << 20
_MAX_DEPTH: Final = 12
_MAX_NAME: Final = 200
_LEFT_OVER: Final = re.compile(r"\.new[a-z-]*(\.gone/-?[0-9]{1,2}\.[0-9]{1,12}/[0-9]{1,3})?")
_WITNESSED_FOLDER: Final = "witnessed/"
_WITNESSED: Final = re.compile(r"witnessed/[0-9a-f]{64}")
_TIMESTAMP: Final = re.compile(r"timestamps/(0|[1-9][0-9]{0,15})\.(tsr|checkpoint)")
_OBJECT: Final = re.compile(r"objects/sha256/([0-9a-f]{2})/(\1[0-9a-f]{62})")
_DIGEST: Final = re.compile(rb"sha256:[0-9a-f]{64}")
_NAME: Final = re.compile(r"[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+)*/?")


def limit_of(name: str) -> int | None:
    """Return the most bytes that the file of this name may have, None for one that no bundle holds."""
    if name in (CHECKPOINT, OLD, COSIGNED) or _WITNESSED.fullmatch(name):
        return MAX_NOTE_BYTES
    if stamped := _TIMESTAMP.fullmatch(name):
        return MAX_TOKEN_BYTES if stamped[2] == "tsr" else MAX_NOTE_BYTES
    if _OBJECT.fullmatch(name):
        return MAX_OBJECT_BYTES
    try:
        tile = Tile.parse(name)
    except DecodeError:
        return None
    return tile.width * (2 + MAX_ENTRY_BYTES if tile.level == ENTRIES else HASH_BYTES)


def is_left_over(name: str) -> bool:
    """Tell whether it is half-written or half-removed in a live journal's folder: nothing refers to it."""
    return _LEFT_OVER.fullmatch(name) is not None


def readable(name: str) -> str:
    """Return a file's name for a person; one that would turn the text around is spelt out."""
    return name if name.isascii() and name.isprintable() else ascii(name)


@dataclass(frozen=True, slots=True)
class Found:
    """One name in a bundle. `regular` is False for what is never read: links, devices, folders too deep."""

    name: str
    size: int
    regular: bool


class _Store(Protocol):
    def read(self, name: str, limit: int) -> bytes | None: ...

    def files(self, under: str = "") -> Iterator[Found]: ...

    def close(self) -> None: ...


class Bundle:
    """One log's bundle, opened to read. Safe to use from several threads, and from processes forked off.

    Attributes:
        path: where it lies, as given.
        label: its name, for a person.
    """

    def __init__(self, path: Path, store: _Store) -> None:
        """Use `open_bundle`."""
        self.path = path
        self.label = readable(path.resolve().name)
        self._store = store
        self._notes: dict[str, bytes | DecodeError | OSError | None] | None = None

    def __reduce__(self) -> tuple[Callable[[Path], "Bundle"], tuple[Path]]:
        """Another process opens it again."""
        return open_bundle, (self.path,)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close what is open."""
        self._store.close()

    def files(self, under: str = "") -> Iterator[Found]:
        """Yield everything in it, or in one folder such as `objects/`, in no particular order.

        Raises:
            DecodeError: more than `MAX_FILES`.
            OSError: a folder cannot be listed.
        """
        return self._store.files(under)

    def read(self, name: str, limit: int = MAX_OBJECT_BYTES) -> bytes | None:
        """Return the bytes of a file, None if it is not there.

        Raises:
            DecodeError: longer than `limit`, or damaged inside a zip.
            OSError: it cannot be read, or it is a link, a folder, a pipe, a device.
        """
        return self._store.read(name, limit)

    def read_checkpoint(self, name: str = CHECKPOINT) -> bytes | None:
        """Return the bytes of the checkpoint called `name`, None if there is none.

        All notes are read when the first is asked for, and stay as they were: a log that goes on meanwhile
        shows one moment of its life.

        Raises:
            DecodeError, OSError: see `read`.
        """
        note = self._snapshot().get(name)
        if isinstance(note, DecodeError | OSError):
            raise note
        return note

    def read_tile(self, tile: Tile) -> bytes | None:
        """Return the bytes of a hash tile or entry bundle, None if it is not there.

        A partial tile that is gone is cut from its full one, which replaces it.

        Raises:
            DecodeError: longer than such a tile may be, or a bundle to be cut that cannot be parsed.
            OSError: it cannot be read.
        """
        data = self.read(tile.path, limit_of(tile.path) or 0)
        if data is not None or tile.width == TILE_WIDTH:
            return data
        full = Tile(tile.level, tile.index)
        data = self.read(full.path, limit_of(full.path) or 0)
        return None if data is None else cut_tile(full, data, tile.width)

    def read_object(self, digest: str, limit: int = MAX_OBJECT_BYTES) -> bytes | None:
        """Return the object with that digest, None if it is not there.

        Raises:
            DecodeError: `digest` is none, or the stored bytes are longer than `limit` or do not hash to it.
            OSError: it cannot be read.
        """
        data = self.read(object_name(digest), limit)
        if data is not None and sha256_digest(data) != digest:
            raise DecodeError("a stored object does not hash to its name", code="object-damaged")
        return data

    def witnessed(self) -> Iterator[tuple[str, bytes]]:
        """Yield the newest checkpoint of each other log that this one's owner cosigned: file name, note.

        Raises:
            DecodeError, OSError: see `files` and `read`.
        """
        for name in sorted(name for name in self._snapshot() if name.startswith(_WITNESSED_FOLDER)):
            note = self.read_checkpoint(name)
            if note is not None:
                yield name, note

    def _snapshot(self) -> "dict[str, bytes | DecodeError | OSError | None]":
        """Return every note by name, or why it cannot be read.

        Each is only ever replaced by a newer one. What is read last is the newest: `checkpoint` covers the
        others, and this log knew no more of other logs than it had seen by then.
        """
        if self._notes is None:
            notes: dict[str, bytes | DecodeError | OSError | None] = {}
            try:
                names = [each.name for each in self._store.files(_WITNESSED_FOLDER)]
            except (DecodeError, OSError) as error:
                names, notes[_WITNESSED_FOLDER] = [], error
            total = 0
            for name in [*filter(_WITNESSED.fullmatch, names), OLD, COSIGNED, CHECKPOINT]:
                try:
                    note = notes[name] = self.read(name, min(MAX_NOTE_BYTES, _MAX_NOTES_BYTES - total))
                    total += len(note or b"")
                except (DecodeError, OSError) as error:
                    notes[name] = error
            self._notes = notes
        return self._notes

    def timestamps(self) -> Iterator[tuple[int, bytes, bytes | None]]:
        """Yield each time stamp: size of the stamped checkpoint, token, and that checkpoint if it is there.

        Raises:
            DecodeError, OSError: see `files` and `read`.
        """
        found = (_TIMESTAMP.fullmatch(each.name) for each in self._store.files("timestamps/"))
        for size in sorted(int(match[1]) for match in found if match and match[2] == "tsr"):
            token = self.read(f"timestamps/{size}.tsr", MAX_TOKEN_BYTES)
            if token is not None:
                yield size, token, self.read(f"timestamps/{size}.checkpoint", MAX_NOTE_BYTES)


def object_name(digest: str) -> str:
    """Return the name of the file that holds the object with that digest.

    Raises:
        DecodeError: not a digest.
    """
    name = digest_bytes(digest).hex()
    return f"objects/sha256/{name[:2]}/{name}"


def object_digest(name: str) -> str | None:
    """Return the digest that an object's file is named for, None for another file."""
    match = _OBJECT.fullmatch(name)
    return None if match is None else f"sha256:{match[2]}"


def tile_reader(bundle: Bundle, size: int) -> ReadTile:
    """Return a reader of hash tiles, as they were at any size up to `size`, out of those of a log of `size`.

    It raises DecodeError where a tile is missing or too short.
    """

    def read(tile: Tile) -> bytes:
        now = tile_at(size, tile.level, tile.index)
        data = bundle.read_tile(now)
        if data is None:
            raise DecodeError(f"{now.path} is missing", code="missing")
        return cut_tile(now, data, tile.width)

    return read


def root_at(bundle: Bundle, size: int, at: int) -> bytes:
    """Return the root of the first `at` entries of the log of `size` in `bundle`, by its tiles.

    Raises:
        DecodeError: `at` is more than `size`, or a tile is missing or damaged.
        OSError: a tile cannot be read.
    """
    if at > size:
        raise DecodeError(f"the log has {size} entries here, {at} were asked for", code="missing")
    return root_from_tiles(tile_reader(bundle, size), at)


def entries_of(bundle: Bundle, size: int, start: int = 0) -> Iterator[bytes]:
    """Yield the bytes of entries `start` to `size` - 1. Nothing is verified.

    Raises:
        DecodeError: a bundle of entries is missing or damaged.
        OSError: it cannot be read.
    """
    for index in range(start // TILE_WIDTH, -(-size // TILE_WIDTH)):
        tile = tile_at(size, ENTRIES, index)
        data = bundle.read_tile(tile)
        if data is None:
            raise DecodeError(f"{tile.path} is missing", code="missing")
        yield from decode_bundle(data, tile.width)[max(0, start - index * TILE_WIDTH) :]


def open_bundle(path: Path) -> Bundle:
    """Open a bundle to read: a folder, or a `.zip` with the same files.

    Raises:
        InputError: there is none, it is neither, or it is a zip that nobody should read.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        mode = 0
    if stat.S_ISDIR(mode):
        return Bundle(path, _FolderStore(os.fspath(path)))
    if stat.S_ISREG(mode):
        try:
            return Bundle(path, _ZipStore(path))
        except InputError as error:
            what = f"{readable(path.name)}: {error.message}"
            raise InputError(what, code=error.code, hint=error.hint) from None
    raise InputError(
        f"{readable(path.name)}: there is no such folder",
        code="no-folder",
        hint="give the folder that holds checkpoint and tile/, or a .zip of it",
    )


def open_bundles(paths: Sequence[Path]) -> list[Bundle]:
    """Open several bundles; where two have one name, each is called by its whole path.

    Raises:
        InputError: see `open_bundle`; or one of them is named twice.
    """
    if len({path.resolve() for path in paths}) != len(paths):
        raise InputError("one bundle is named twice", code="same-bundle", hint="name each bundle once")
    bundles = [open_bundle(path) for path in paths]
    names = Counter(bundle.label for bundle in bundles)
    for bundle in bundles:
        if names[bundle.label] > 1:
            bundle.label = readable(os.fspath(bundle.path))
    return bundles


# -- folders -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _FolderStore:
    """Opens every component of a path on its own and follows no link, whatever is swapped meanwhile."""

    root: str

    def read(self, name: str, limit: int) -> bytes | None:
        try:
            descriptor = self._open(name)
        except (FileNotFoundError, NotADirectoryError):
            return None
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            status = os.fstat(descriptor)
            if stat.S_ISDIR(status.st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if not stat.S_ISREG(status.st_mode):
                raise _not_regular()
            if status.st_size > limit:
                raise _too_long(name, limit)
            # One byte more than there should be: it may be growing.
            data = file.read(status.st_size + 1)
            while len(data) <= status.st_size and (more := file.read(status.st_size + 1 - len(data))):
                data += more
        if len(data) > limit:
            raise _too_long(name, limit)
        return data

    def files(self, under: str = "") -> Iterator[Found]:
        count = 0
        waiting = [under]
        while waiting:
            prefix = waiting.pop()
            try:
                descriptor = self._open(prefix.rstrip("/"), os.O_DIRECTORY)
            except (FileNotFoundError, NotADirectoryError):
                continue
            try:
                with os.scandir(descriptor) as listing:
                    for each in listing:
                        name = prefix + each.name
                        count += 1
                        if count > MAX_FILES:
                            raise DecodeError(f"more than {MAX_FILES} files", code="too-many-files")
                        if each.is_dir(follow_symlinks=False):
                            if name.count("/") < _MAX_DEPTH:
                                waiting.append(name + "/")
                            else:  # no bundle nests that deep: it is named, and not entered
                                yield Found(name, 0, regular=False)
                        else:
                            try:
                                status = each.stat(follow_symlinks=False)
                            except FileNotFoundError:
                                continue  # of a live folder, and gone meanwhile
                            yield Found(name, status.st_size, stat.S_ISREG(status.st_mode))
            finally:
                os.close(descriptor)

    def close(self) -> None:
        """Nothing stays open."""

    def _open(self, name: str, kind: int = 0) -> int:
        # The bundle itself may be named through a link; nothing in it may be one. To open a pipe that nobody
        # writes to would wait for ever.
        here = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        *folders, last = name.split("/")
        try:
            for folder in folders:
                inner = os.open(folder, _NO_LINK | os.O_DIRECTORY, dir_fd=here)
                os.close(here)
                here = inner
            return os.open(last or ".", _NO_LINK | os.O_NONBLOCK | os.O_NOCTTY | kind, dir_fd=here)
        except OSError as error:
            raise _link_said(error) from None
        finally:
            os.close(here)


_NO_LINK: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


def _link_said(error: OSError) -> OSError:
    if error.errno == errno.ELOOP:
        return OSError(errno.ELOOP, "It is a link, and a bundle holds none")
    return error


def _not_regular() -> OSError:
    return OSError(errno.EINVAL, "Not a regular file")


def _too_long(name: str, limit: int) -> DecodeError:
    return DecodeError(f"{readable(name)} is longer than {limit} bytes", code="too-long")


# -- zips ----------------------------------------------------------------------------------------------------

_END: Final = struct.Struct("<IHHHHIIH")
_END_64: Final = struct.Struct("<IQHHIIQQQQ")
_LOCATOR: Final = struct.Struct("<IIQI")
_LISTED: Final = struct.Struct("<IHHHHHHIIIHHHHHII")
_LOCAL: Final = struct.Struct("<IHHHHHIIIHH")
_STORED: Final = 0
_DEFLATED: Final = 8
_REFUSED_FLAGS: Final = 0x2061  # encrypted, patched, strongly encrypted, masked
_UNIX: Final = 3
_U16: Final = 0xFFFF
_U32: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class _Member:
    """One file of a zip, as its directory has it."""

    offset: int
    packed: int
    size: int
    method: int
    crc: int


class _ZipStore:
    """Reads a zip with positioned reads, so that threads and forked processes share no place in the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise _bad_zip(f"it cannot be read: {error.strerror}") from None
        try:
            self._length = os.fstat(self._descriptor).st_size
            self._members = self._directory()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    __del__ = close

    def files(self, under: str = "") -> Iterator[Found]:
        for name, member in self._members.items():
            if name.startswith(under):
                yield Found(name, member.size, regular=True)

    def read(self, name: str, limit: int) -> bytes | None:
        member = self._members.get(name)
        if member is None:
            return None
        if member.size > limit:
            raise _too_long(name, limit)
        try:
            return self._inflate(name, member)
        except zlib.error:
            raise DecodeError(f"{name} is damaged inside the zip", code="zip-damaged") from None

    def _inflate(self, name: str, member: _Member) -> bytes:
        fields = _LOCAL.unpack(self._at(member.offset, _LOCAL.size))
        signature, _, _, method, *_, name_length, extra_length = fields
        start = member.offset + _LOCAL.size + name_length + extra_length
        written = self._at(member.offset + _LOCAL.size, name_length)
        # Two names or two methods for one file: another program would read something else here.
        if (signature, method, written) != (0x04034B50, member.method, name.encode()):
            raise DecodeError(f"{name} has another head than the zip's directory says", code="zip-damaged")
        data = self._at(start, member.packed)
        if member.method == _DEFLATED:
            inflater = zlib.decompressobj(-zlib.MAX_WBITS)
            data = inflater.decompress(data, member.size + 1)
            whole = inflater.eof and not inflater.unused_data
        else:
            whole = True
        if not whole or len(data) != member.size or zlib.crc32(data) != member.crc:
            raise DecodeError(f"{name} is damaged inside the zip", code="zip-damaged")
        return data

    def _at(self, offset: int, length: int) -> bytes:
        data = os.pread(self._descriptor, length, offset)
        if len(data) != length:
            raise DecodeError("the zip ends too soon", code="zip-damaged")
        return data

    def _directory(self) -> dict[str, _Member]:
        """Return the files by name.

        (1) The directory ends the file, lies within it and is of a size that so many names may have. (2) Each
        name is a plain relative path, once, whatever the case of its letters. (3) Each file is regular,
        stored or deflated, of no more bytes than its name allows, and packs to no more than that. (4) All
        together are within bounds. (5) No two files share bytes.

        Raises:
            InputError: `hostile-zip`, with the file and the rule that it breaks.
        """
        # (1)
        start, size, count = self._end()
        if count > MAX_FILES or size > count * (_LISTED.size + _MAX_NAME + 64):
            raise _bad_zip(f"its directory lists {count} files in {size} bytes")
        members: dict[str, _Member] = {}
        total = 0
        listing = _Listing(self._descriptor, start, size)
        for _ in range(count):
            name, member = _listed(listing)
            if name.endswith("/"):
                continue  # a folder; what it holds is listed on its own
            if name in members:
                raise _bad_zip(f"{name} is in it twice")
            total += member.size
            members[name] = member
        if listing.left:
            raise _bad_zip("its directory is longer than its files")
        # (4)
        if total > MAX_BYTES:
            raise _bad_zip(f"it inflates to {total} bytes, at most {MAX_BYTES} are read")
        # (2)
        lower = {name.lower() for name in members}
        if len(lower) != len(members):
            raise _bad_zip("two of its names differ in capital letters alone")
        for name in members:
            if any(name[:at] in members for at, letter in enumerate(name) if letter == "/"):
                raise _bad_zip(f"{name} lies in a folder that is a file, too")
        # (5)
        end = 0
        for name, member in sorted(members.items(), key=lambda item: item[1].offset):
            if member.offset < end:
                raise _bad_zip(f"{name} shares its bytes with another file")
            end = member.offset + _LOCAL.size + len(name) + member.packed
        if end > start:
            raise _bad_zip("its last file runs into the directory")
        return members

    def _end(self) -> tuple[int, int, int]:
        """Return start, size and number of files of the directory."""
        if self._length < _END.size:
            raise _bad_zip("it is no zip")
        at = self._length - _END.size
        end = _END.unpack(os.pread(self._descriptor, _END.size, at))
        signature, disk, first, here, count, size, start, comment = end
        if signature != 0x06054B50 or comment:
            raise _bad_zip("it is no zip, or something follows its directory")
        if _U16 in (here, count) or _U32 in (size, start):
            at -= _LOCATOR.size
            locator = _LOCATOR.unpack(os.pread(self._descriptor, _LOCATOR.size, at)) if at > 0 else (0,) * 4
            at -= _END_64.size
            if locator[0] != 0x07064B50 or at < 0 or locator[2] != at:
                raise _bad_zip("its directory is not where it says")
            fields = _END_64.unpack(os.pread(self._descriptor, _END_64.size, at))
            signature, _, _, _, disk, first, here, count, size, start = fields
            if signature != 0x06064B50:
                raise _bad_zip("its directory is not where it says")
        if disk or first or here != count or start + size != at:
            raise _bad_zip("its directory is not where it says")
        return start, size, count


@dataclass(slots=True)
class _Listing:
    """Reads a zip's directory forwards, a piece at a time."""

    descriptor: int
    at: int
    left: int
    _piece: bytes = b""

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise _bad_zip("its directory ends too soon")
        if len(self._piece) < count:
            more = os.pread(self.descriptor, min(1 << 16, self.left) + count, self.at + len(self._piece))
            self._piece += more
        data, self._piece = self._piece[:count], self._piece[count:]
        if len(data) != count:
            raise _bad_zip("its directory ends too soon")
        self.at += count
        self.left -= count
        return data


def _listed(listing: _Listing) -> tuple[str, _Member]:
    """Return the next file of a zip's directory, or a folder: its name ends in a slash."""
    (signature, made_by, _, flags, method, _, _, crc, packed, size, name_length, extra_length, comment_length,
     disk, _, attributes, offset) = _LISTED.unpack(listing.take(_LISTED.size))  # fmt: skip
    raw = listing.take(name_length)
    extra = listing.take(extra_length)
    listing.take(comment_length)
    if signature != 0x02014B50 or disk:
        raise _bad_zip("its directory is damaged")
    # (2)
    name = raw.decode("ascii", "replace")
    parts = name.rstrip("/").split("/")
    if len(name) > _MAX_NAME or len(parts) > _MAX_DEPTH:
        raise _bad_zip("one of its names is too long")
    if not _NAME.fullmatch(name) or any(part in (".", "..") for part in parts):
        raise _bad_zip(f"{readable(name)} is no plain relative path")
    # (3)
    if flags & _REFUSED_FLAGS:
        raise _bad_zip(f"{name} is encrypted")
    if method not in (_STORED, _DEFLATED):
        raise _bad_zip(f"{name} is packed by method {method}, expected 0 or 8")
    kind = stat.S_IFMT(attributes >> 16) if made_by >> 8 == _UNIX else 0
    if kind not in (0, stat.S_IFDIR if name.endswith("/") else stat.S_IFREG):
        raise _bad_zip(f"{name} is a link or a device")
    packed, size, offset = _wide(extra, packed, size, offset)
    limit = 0 if name.endswith("/") else limit_of(name)
    limit = MAX_OBJECT_BYTES if limit is None else limit
    if size > limit:
        raise _bad_zip(f"{name} inflates to {size} bytes, at most {limit} are read")
    if (method == _STORED and packed != size) or packed > size + (size >> 8) + 64:
        raise _bad_zip(f"{name} is packed into {packed} bytes, and has {size}")
    return name, _Member(offset, packed, size, method, crc)


def _wide(extra: bytes, packed: int, size: int, offset: int) -> tuple[int, int, int]:
    """Return sizes and offset, taken from the ZIP64 field where 32 bits were too few."""
    wide = b""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        if kind == 1:
            wide = extra[4 : 4 + length]
        extra = extra[4 + length :]
    values = [size, packed, offset]
    for place, value in enumerate(values):
        if value == _U32:
            if len(wide) < 8:
                raise _bad_zip("a size of 2^32 - 1 without the field that says more")
            values[place] = int.from_bytes(wide[:8], "little")
            wide = wide[8:]
    return values[1], values[0], values[2]


def _bad_zip(why: str) -> InputError:
    return InputError(
        f"this zip is not read: {why}",
        code="hostile-zip",
        hint="give a folder, or a .zip that minshu-audit bundle wrote; do not unpack this one",
    )


# -- export --------------------------------------------------------------------------------------------------


_ATTEMPTS: Final = 5


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export holds, in entries, files, objects among these, and bytes before packing."""

    path: Path
    origin: str
    size: int
    files: int
    objects: int
    bytes: int

    def document(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {
            "out": os.fspath(self.path),
            "origin": self.origin,
            "size": self.size,
            "files": self.files,
            "objects": self.objects,
            "bytes": self.bytes,
        }


@dataclass(slots=True)
class _Copy:
    """Counts what is written, by the function that writes it."""

    put: Callable[[str, bytes], None]
    files: int = 0
    total: int = 0

    def __call__(self, name: str, data: bytes) -> None:
        self.put(name, data)
        self.files += 1
        self.total += len(data)


def export(journal: Path, out: Path) -> Exported:
    """Copy what belongs to the newest checkpoint of a journal, which may be growing, into a bundle.

    (1) The checkpoints are read first, the newest one last, and only what belongs to that one is copied.
    (2) Of the objects, those that its entries name. (3) The copy is verified against itself. (4) It is put
    in its place in one step; before that nothing is there.

    Args:
        journal: a journal's folder, of a running program, too.
        out: the new bundle: a zip if it ends in `.zip`, else a folder.

    Raises:
        InputError: `out` is there already, or `journal` is no journal's folder.
        StateConflict: the journal does not verify; nothing was written.
        OSError: something cannot be read or written.
    """
    if os.path.lexists(out):
        raise InputError(
            f"{out.name} is there already",
            code="out-exists",
            hint="name a new folder or .zip; nothing is replaced",
        )
    temporary = out.with_name(f".{out.name}.{os.getpid()}.new")
    write = _export_zip if out.suffix == ".zip" else _export_folder
    try:
        for _ in range(_ATTEMPTS):
            _discard(temporary)
            try:
                with open_bundle(journal) as source:
                    exported = write(source, temporary)
            except _Moved:
                continue
            _require_whole(temporary)
            temporary.rename(out)
            _flush(out.parent)
            return Exported(out, **exported)
    finally:
        _discard(temporary)
    raise StateConflict(
        "objects vanish while they are copied",
        code="journal-moving",
        hint="try again when the node deletes nothing; what is deleted has its receipt a moment later",
    )


def _discard(temporary: Path) -> None:
    if temporary.is_dir():
        shutil.rmtree(temporary)
    else:
        temporary.unlink(missing_ok=True)


def _export_folder(source: Bundle, target: Path) -> dict[str, Any]:
    target.mkdir()
    folders = {target}

    def put(name: str, data: bytes) -> None:
        path = target / name
        if path.parent not in folders:
            path.parent.mkdir(parents=True, exist_ok=True)
            folders.update(path.parents)
        with path.open("xb") as file:
            file.write(data)

    facts = _copy(source, put)
    # Only now, when most of it has been written out anyway: one by one, each would wait for the disk.
    for place, _, names in os.walk(target):
        for name in names:
            _flush(Path(place, name))
        _flush(Path(place))
    return facts


def _export_zip(source: Bundle, target: Path) -> dict[str, Any]:
    with target.open("xb") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:

            def put(name: str, data: bytes) -> None:
                # No time and no owner: the same journal gives the same bytes.
                member = zipfile.ZipInfo(name)
                member.compress_type = zipfile.ZIP_DEFLATED
                member.external_attr = (stat.S_IFREG | 0o644) << 16
                archive.writestr(member, data)

            facts = _copy(source, put)
        file.flush()
        os.fsync(file.fileno())
    return facts


def _copy(source: Bundle, put: Callable[[str, bytes], None]) -> dict[str, Any]:
    write = _Copy(put)
    before = _objects(source)
    # (1)
    newest = source.read_checkpoint()
    if newest is None:
        raise InputError(
            "there is no checkpoint in this folder",
            code="no-checkpoint",
            hint="give the folder that holds checkpoint and tile/",
        )
    checkpoint = _decoded(newest)
    for name in (CHECKPOINT, COSIGNED, OLD):
        note = source.read_checkpoint(name)
        # As a log publishes, the one before goes on as the old one a moment before the new one stands.
        if note is not None and (name != OLD or _decoded(note).size < checkpoint.size):
            write(name, note)
    for tile in tiles(checkpoint.size):
        write(tile.path, _whole(source, tile))
    # An object is there before an entry names it; of the digests in entries, most name no object.
    present = before | _objects(source)
    named: set[str] = set()
    payloads: set[str] = set()
    for index in range(-(-checkpoint.size // TILE_WIDTH)):
        tile = tile_at(checkpoint.size, ENTRIES, index)
        data = _whole(source, tile)
        write(tile.path, data)
        for entry in decode_bundle(data, tile.width):
            named.update(present.intersection(map(bytes.decode, _DIGEST.findall(entry))))
            if b'"kind":"output.' in entry:
                payloads.update(_payloads(entry))
    # (2)
    objects = 0
    for digest in sorted(named - payloads):
        found = source.read_object(digest)
        if found is None:
            raise _Moved
        write(object_name(digest), found)
        objects += 1
    for name, data in source.witnessed():
        write(name, data)
    for size, token, stamped in source.timestamps():
        if size <= checkpoint.size and stamped is not None:
            write(f"timestamps/{size}.tsr", token)
            write(f"timestamps/{size}.checkpoint", stamped)
    return {
        "origin": checkpoint.origin,
        "size": checkpoint.size,
        "files": write.files,
        "objects": objects,
        "bytes": write.total,
    }


def _objects(source: Bundle) -> set[str]:
    return set(filter(None, (object_digest(each.name) for each in source.files("objects/"))))


class _Moved(Exception):
    """An object was deleted meanwhile; its receipt is an entry later than the checkpoint at hand."""


def _payloads(data: bytes) -> Iterator[str]:
    """Yield the digests of what an output consists of, sealed or not: such is never copied."""
    entry = Entry.decode(data)
    if entry.kind in ("output.commit", "output.released"):
        for key in ("sha256", "content_sha256"):
            if key in entry.body:
                yield entry.body[key]


def _whole(source: Bundle, tile: Tile) -> bytes:
    data = source.read_tile(tile)
    if data is None:
        raise StateConflict(
            f"{tile.path} is missing",
            code="journal-damaged",
            hint="this is not the whole folder of a journal; keep it as it is and look at the node's log",
        )
    return data


def _decoded(data: bytes) -> Checkpoint:
    return Checkpoint.decode(Note.decode(data).text)


def _require_whole(temporary: Path) -> None:
    """(3) The copy holds together, by the key that its first entry names; whose key that is, others say."""
    with open_bundle(temporary) as copy:
        data = copy.read_checkpoint() or b""
        checkpoint = _decoded(data)
        first = next(entries_of(copy, checkpoint.size), None)
        if first is None:
            raise _not_whole("it has no entry")
        opened = Entry.decode(first).body.get("vkey", "")
        verdict = verify_directory(copy, [VerifierKey.parse(opened)])
    if not verdict.ok:
        problem = verdict.problems[0]
        raise _not_whole(f"{problem.where}: {problem.what} [{problem.code}]")


def _not_whole(why: str) -> StateConflict:
    return StateConflict(
        f"this journal does not verify: {why}",
        code="journal-damaged",
        hint="nothing was written; keep the folder as it is and look at the node's log",
    )


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
