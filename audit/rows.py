"""The journal's tables in SQLite, the source of truth that tiles and checkpoints follow.

Entries come in one row each. Once a bundle of 256 is full, published and no longer among the newest, it is
packed: one compressed row takes the place of its rows, except those that say which keys the log had. Either
way an entry lies beside its leaf hash, so that a changed byte shows; triggers keep the tables append-only.
"""

import fcntl
import os
import sqlite3
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from audit.entries import Entry
from audit.merkle import (
    MAX_BUNDLE_BYTES,
    TILE_WIDTH,
    decode_bundle,
    encode_bundle,
    leaf_hash,
)
from protocols.errors import DecodeError, MinshuError, StateConflict

BUSY_TIMEOUT_S: Final = 5.0

Row: TypeAlias = tuple[bytes, bytes]
"""An entry and its leaf hash."""

_APPEND_ONLY: Final = "SELECT RAISE(ABORT, 'the journal is append-only')"
_TRIGGERS: Final = {
    "journal_entry_no_update": "BEFORE UPDATE ON journal_entry",
    "journal_entry_no_delete": """BEFORE DELETE ON journal_entry
        WHEN NOT EXISTS (SELECT 1 FROM journal_bundle WHERE number = OLD.seq / 256)""",
    "journal_entry_no_insert": """BEFORE INSERT ON journal_entry
        WHEN EXISTS (SELECT 1 FROM journal_bundle WHERE number = NEW.seq / 256)""",
    "journal_bundle_no_update": "BEFORE UPDATE ON journal_bundle",
    "journal_bundle_no_delete": "BEFORE DELETE ON journal_bundle",
}
_TABLES: Final = {
    "journal_entry": """CREATE TABLE journal_entry (
        seq INTEGER PRIMARY KEY, entry BLOB NOT NULL, leaf BLOB NOT NULL)""",
    # What a key.rotate or log.successor entry rests on, so that a lost folder can be rebuilt whole.
    "journal_statement": """CREATE TABLE journal_statement (
        seq INTEGER PRIMARY KEY REFERENCES journal_entry, statement BLOB NOT NULL)""",
    "journal_bundle": """CREATE TABLE journal_bundle (
        number INTEGER PRIMARY KEY, entries BLOB NOT NULL, leaves BLOB NOT NULL)""",
}
_SIZE: Final = """SELECT MAX(
    COALESCE((SELECT MAX(seq) FROM journal_entry), -1) + 1,
    COALESCE((SELECT MAX(number) FROM journal_bundle), -1) * 256 + 256)"""
_BUNDLES: Final = (
    "SELECT COUNT(*), COALESCE(MIN(number), 0), COALESCE(MAX(number), -1) + 1 FROM journal_bundle"
)
_ROWS: Final = "SELECT seq, entry, leaf FROM journal_entry WHERE seq >= ? AND seq < ? ORDER BY seq LIMIT ?"
_ROWS_AT_ONCE: Final = 2 * TILE_WIDTH
_BUNDLE: Final = "SELECT entries, leaves FROM journal_bundle WHERE number = ?"
# The rows of these stay when their bundle is packed: what the log's keys follow from is found at once.
_STATEMENTS: Final = """SELECT seq, entry, statement
    FROM journal_entry LEFT JOIN journal_statement USING (seq)
    WHERE statement IS NOT NULL OR instr(entry, CAST('"kind":"key.rotate"' AS BLOB)) ORDER BY seq"""
_REMOVE: Final = """DELETE FROM journal_entry WHERE seq >= ? AND seq < ?
    AND seq NOT IN (SELECT seq FROM journal_statement)
    AND NOT instr(entry, CAST('"kind":"key.rotate"' AS BLOB))"""
ROTATES: Final = b'"kind":"key.rotate"'
"""What every `key.rotate` entry holds."""

_NOT_OURS: Final = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
"""Result codes that our own statements only meet on a file or schema that is not as we wrote it."""


def _connect(database: Path) -> sqlite3.Connection:
    # Autocommit: transactions begin and end where the caller says so, and nowhere else.
    return sqlite3.connect(database, isolation_level=None, check_same_thread=False, timeout=BUSY_TIMEOUT_S)


def open_writer(resources: ExitStack, database: Path) -> sqlite3.Connection:
    """Return the one connection that writes, with the tables made; it closes with `resources`.

    Raises:
        StateConflict: journal-write-failed: the file system cannot carry a write-ahead log.
        sqlite3.Error: see `storage`.
    """
    connection = resources.enter_context(closing(_connect(database)))
    if connection.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
        raise StateConflict(
            "the database cannot use a write-ahead log",
            code="journal-write-failed",
            hint="keep the database on a local disk, not on a network share",
        )
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    if _missing(connection):
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            make_tables(connection)
    return connection


def open_reader(resources: ExitStack, database: Path) -> sqlite3.Connection:
    """Return a connection that only reads; it closes with `resources`."""
    connection = resources.enter_context(closing(_connect(database)))
    connection.execute("PRAGMA query_only = ON")
    # A blob whose type byte flipped must show as damage, not as a decoding error.
    connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
    return connection


def make_tables(connection: sqlite3.Connection) -> None:
    """Make the tables and triggers that are missing, inside the caller's transaction."""
    for statement in _missing(connection):
        connection.execute(statement)


def _missing(connection: sqlite3.Connection) -> list[str]:
    """Return what makes the missing tables and triggers; a trigger of an earlier release is replaced."""
    found = dict(connection.execute("SELECT name, sql FROM sqlite_master").fetchall())
    statements = [statement for table, statement in _TABLES.items() if table not in found]
    for name, when in _TRIGGERS.items():
        wanted = f"CREATE TRIGGER {name} {when} BEGIN {_APPEND_ONLY}; END"
        if found.get(name) != wanted:
            statements += [f"DROP TRIGGER IF EXISTS {name}", wanted]
    return statements


def set_aside(connection: sqlite3.Connection, number: int) -> None:
    """Rename the tables of a log that ends, `journal_entry` to `journal_entry_<number>` and so on.

    The caller holds a transaction. Nothing is lost, and what was append-only stays so.
    """
    for name in _TRIGGERS:
        connection.execute(f"DROP TRIGGER IF EXISTS {name}")
    for table in _TABLES:
        connection.execute(f"ALTER TABLE {table} RENAME TO {table}_{number}")
        for change in ("UPDATE", "DELETE", "INSERT"):
            connection.execute(
                f"CREATE TRIGGER {table}_{number}_no_{change.lower()} BEFORE {change} ON {table}_{number}"
                f" BEGIN {_APPEND_ONLY}; END"
            )


def insert(connection: sqlite3.Connection, seq: int, entry: bytes) -> None:
    """Append the entry `seq`, given as its bytes, inside the caller's transaction."""
    connection.execute(
        "INSERT INTO journal_entry (seq, entry, leaf) VALUES (?, ?, ?)", (seq, entry, leaf_hash(entry))
    )


def insert_statement(connection: sqlite3.Connection, seq: int, statement: bytes) -> None:
    """Put what entry `seq` rests on beside it, inside the caller's transaction."""
    connection.execute("INSERT INTO journal_statement VALUES (?, ?)", (seq, statement))


def size_of(connection: sqlite3.Connection) -> int:
    """Return how many entries there are; those that the open transaction appended count."""
    return int(connection.execute(_SIZE).fetchone()[0])


@dataclass(frozen=True, slots=True)
class Packed:
    """A full bundle as one row."""

    number: int
    entries: bytes
    leaves: bytes


def move_into_bundles(connection: sqlite3.Connection, packed: Sequence[Packed]) -> None:
    """Put whole bundles, in order, in place of their rows, inside the caller's transaction."""
    connection.executemany(
        "INSERT INTO journal_bundle VALUES (?, ?, ?)",
        [(row.number, row.entries, row.leaves) for row in packed],
    )
    connection.execute(_REMOVE, (packed[0].number * TILE_WIDTH, (packed[-1].number + 1) * TILE_WIDTH))


class Rows:
    """Reads committed entries, each checked against its leaf hash. Safe to use from several threads.

    Args:
        connection: made by `open_reader`; this object's alone.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._closed = False
        self._packed = 0

    def close(self) -> None:
        """Read no more. Waits for the reading under way."""
        with self._lock:
            self._closed = True

    @property
    def bundles(self) -> int:
        """How many bundles are packed: the first ones, without a gap.

        Raises:
            StateConflict: journal-damaged: one is missing.
        """
        (count, first, end), *_ = self._query(_BUNDLES)
        if (first, end) != (0, count):
            raise damaged("a bundle of entries is missing from the database")
        self._packed = int(count)
        return self._packed

    def packed(self, bundles: int) -> None:
        """Take note that so many bundles are packed by now, and look for their entries there first."""
        self._packed = bundles

    def read(self, start: int, stop: int) -> Iterator[Row]:
        """Yield the committed entries from seq `start` up to, not including, `stop`.

        Raises:
            StateConflict: journal-damaged; journal-closed.
        """
        while start < stop:
            rows = self._some(start, stop)
            yield from rows
            start += len(rows)

    def statements(self) -> list[tuple[int, bytes, bytes | None]]:
        """Return seq, entry and statement of every `key.rotate` entry, and of every other with a statement.

        Raises:
            StateConflict: journal-damaged; journal-closed.
        """
        found = self._query(_STATEMENTS)
        for seq, entry, statement in found:
            if not isinstance(entry, bytes) or not isinstance(statement, bytes | None):
                raise _not_written(seq)
        return found

    def pack(self, number: int) -> Packed:
        """Return bundle `number`, which is full, as the one row that it is to become.

        Raises:
            StateConflict: journal-damaged; journal-closed.
        """
        rows = list(self.read(number * TILE_WIDTH, (number + 1) * TILE_WIDTH))
        return Packed(
            number,
            zlib.compress(encode_bundle(entry for entry, _ in rows)),
            b"".join(leaf for _, leaf in rows),
        )

    def require_whole(self) -> None:
        """Compare the rows that packing left with what was packed.

        Raises:
            StateConflict: journal-damaged; journal-closed.
        """
        packed = self.bundles * TILE_WIDTH
        for seq, entry, leaf in self._query(_ROWS, 0, packed, packed):
            if (entry, leaf) != next(self.read(seq, seq + 1)):
                raise _not_written(seq)

    def _some(self, start: int, stop: int) -> list[Row]:
        """Return at least the entry `start`, from its bundle or its row."""
        if start < self._packed * TILE_WIDTH:
            return self._unpack(start, stop)
        rows = self._query(_ROWS, start, stop, _ROWS_AT_ONCE)
        read: list[Row] = []
        for seq, entry, leaf in rows:
            if seq != start + len(read):
                break
            if not isinstance(entry, bytes) or leaf_hash(entry) != leaf:
                raise _not_written(seq)
            read.append((entry, leaf))
        # It may have been packed since.
        return read or self._unpack(start, stop)

    def _unpack(self, start: int, stop: int) -> list[Row]:
        number, offset = divmod(start, TILE_WIDTH)
        found = self._query(_BUNDLE, number)
        if not found:
            raise damaged(f"entry {start} is missing from the database")
        (packed, leaves), *_ = found
        try:
            unpacking = zlib.decompressobj()
            data = unpacking.decompress(packed, MAX_BUNDLE_BYTES)
            entries = decode_bundle(data, TILE_WIDTH)
            whole = unpacking.eof and not unpacking.unused_data
        except (zlib.error, TypeError, DecodeError):
            whole = False
        if not whole:
            raise damaged(f"bundle {number} in the database is not what was written")
        rows = [(entry, leaf_hash(entry)) for entry in entries]
        if leaves != b"".join(leaf for _, leaf in rows):
            raise damaged(f"bundle {number} in the database is not what was written")
        return rows[offset : offset + stop - start]

    def _query(self, statement: str, *values: int) -> list[tuple[Any, ...]]:
        with self._lock, storage():
            if self._closed:
                raise closed()
            return self._connection.execute(statement, values).fetchall()


def lock(resources: ExitStack, path: Path, flags: int) -> None:
    """Hold `path` locked for as long as `resources` live; the kernel lets go of it when the process dies.

    Raises:
        StateConflict: journal-locked: somebody else holds it.
    """
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    resources.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StateConflict(
            "another process has this journal open",
            code="journal-locked",
            hint="stop the other process; two writers would fork the log",
        ) from None


def lock_both(resources: ExitStack, directory: Path, database: Path) -> None:
    """Make the places of a journal and hold both locked, so that nobody else writes to either.

    Raises:
        StateConflict: journal-locked.
        OSError: a place cannot be made.
    """
    directory.mkdir(parents=True, exist_ok=True)
    database.parent.mkdir(parents=True, exist_ok=True)
    lock(resources, directory, os.O_RDONLY | os.O_DIRECTORY)
    # SQLite's own locks live on the database file and vanish when any descriptor on it closes.
    lock(resources, database.with_name(database.name + ".lock"), os.O_RDWR | os.O_CREAT)


@contextmanager
def storage() -> Iterator[None]:
    """Turn what SQLite and the file system raise into the journal's own codes."""
    try:
        yield
    except sqlite3.Error as error:
        if (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF in _NOT_OURS:
            raise damaged("the database file is not what SQLite wrote") from error
        raise StateConflict(
            f"the journal's database refused ({reason(error)})",
            code="journal-write-failed",
            hint="free disk space and check the disk; the transaction was rolled back",
        ) from error
    except UnicodeDecodeError as error:
        # SQLite quotes a damaged schema in its message, and Python cannot even read that.
        raise damaged("the database file is not what SQLite wrote") from error
    except OSError as error:
        raise StateConflict(
            f"the journal's folder cannot be used ({reason(error)})",
            code="journal-write-failed",
            hint="free disk space and check the folder's owner and permissions",
        ) from error


def reason(error: Exception) -> str:
    """Say why without a path or a value: the system's words, or the error's own code."""
    if isinstance(error, MinshuError):
        return error.code
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorname", type(error).__name__)
    return (isinstance(error, OSError) and error.strerror) or type(error).__name__


def decode_stored(entry: bytes, seq: int) -> Entry:
    """Return the entry that was stored as `seq`.

    Raises:
        StateConflict: journal-damaged.
    """
    try:
        decoded = Entry.decode(entry)
    except DecodeError as error:
        raise damaged(f"entry {seq} in the database is not an entry ({error.code})") from error
    if decoded.seq != seq:
        raise damaged(f"entry {seq} in the database carries seq {decoded.seq}")
    return decoded


def damaged(what: str) -> StateConflict:
    """Return the refusal to go on with stored bytes that contradict each other."""
    return StateConflict(
        what,
        code="journal-damaged",
        hint="stop and keep folder and database as evidence; a tile alone may be removed and is then rebuilt",
    )


def closed() -> StateConflict:
    """Return the refusal to work on a journal that was closed."""
    return StateConflict("the journal is closed", code="journal-closed")


def _not_written(seq: int) -> StateConflict:
    return damaged(f"entry {seq} in the database is not what was written")
