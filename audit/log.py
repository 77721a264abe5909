"""The journal: an append-only tile log whose source of truth is SQLite, and whose tiles follow.

An entry is appended inside the caller's own transaction, so a budget or job state and the entry that says so
become durable together or not at all. After the commit the journal is published, in this order:

(1) tiles and entry bundles are written, then their directories flushed;
(2) the checkpoint over them is signed, written and flushed;
(3) partial tiles that a full one replaced are removed.

A crash between any two steps leaves a folder that the next start completes from the database, to the same
root. What a start cannot explain, it refuses: database, tiles and signed checkpoint must tell one story.

Which key signs is decided by the log, by its last `key.rotate` entry or else `log.open`, and never by which
key happens to lie where one is looked for.
"""

import fcntl
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from audit.entries import VERSION, Entry, PolicyRef, format_time, parse_time
from audit.folder import CHECKPOINT, Folder
from audit.merkle import (
    ENTRIES,
    MAX_SIZE,
    TILE_WIDTH,
    Tile,
    TileBuilder,
    cut_tile,
    encode_bundle,
    leaf_hash,
    tile_at,
)
from audit.note import ED25519, Checkpoint, Note, VerifierKey, verify_note
from audit.rotation import follow, read_statement
from protocols.encoding import digest_bytes, sha256_digest
from protocols.envelope import Signer, key_id
from protocols.errors import DecodeError, MinshuError, SignatureInvalid, StateConflict
from protocols.ids import Digest

CLOCK_TOLERANCE: Final = timedelta(seconds=1)
"""A clock that runs back by no more is held; by more, the log says so in a clock.step entry."""

_SCHEMA: Final = (
    """CREATE TABLE IF NOT EXISTS journal_entry (
        seq INTEGER PRIMARY KEY, entry BLOB NOT NULL, leaf BLOB NOT NULL)""",
    """CREATE TRIGGER IF NOT EXISTS journal_entry_no_update BEFORE UPDATE ON journal_entry
        BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END""",
    """CREATE TRIGGER IF NOT EXISTS journal_entry_no_delete BEFORE DELETE ON journal_entry
        BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END""",
    # What a key.rotate entry rests on stands here too, so that a lost folder can be rebuilt whole.
    """CREATE TABLE IF NOT EXISTS journal_statement (
        seq INTEGER PRIMARY KEY REFERENCES journal_entry, statement BLOB NOT NULL)""",
)
_SIZE: Final = "SELECT COALESCE(MAX(seq), -1) + 1 FROM journal_entry"
_ROWS: Final = "SELECT seq, entry, leaf FROM journal_entry WHERE seq >= ? AND seq < ? ORDER BY seq LIMIT ?"
_ROWS_AT_ONCE: Final = 512
_ROTATIONS: Final = """SELECT seq, entry, statement FROM journal_entry LEFT JOIN journal_statement USING (seq)
    WHERE instr(entry, CAST('"kind":"key.rotate"' AS BLOB)) ORDER BY seq"""
_NOT_OURS: Final = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
"""Result codes that our own statements only meet on a file or schema that is not as we wrote it."""

_LATEST: Final = "9999-12-31T23:59:59.999Z"
_BUSY_TIMEOUT_S: Final = 5.0


class Journal:
    """One log: the program that opened it is its only writer.

    Safe to call from several threads. Transactions are serialised; publication is shared, so that one
    checkpoint covers every entry committed by the time it is signed.

    Codes of the `StateConflict` it raises:
        journal-locked: another process, or another `Journal`, has it open.
        journal-damaged: database, tiles and checkpoint contradict each other, or a stored byte changed.
        journal-rolled-back: the folder shows entries that the database no longer has (a restored backup).
        journal-identity: the database belongs to another log or key.
        journal-key-rotated: it is opened with a key that the log has given up.
        rotation-out-of-place: the statement names a tree that never was this log's.
        journal-write-failed: nothing was stored; the transaction is rolled back.
        journal-unpublished: the transaction **is** committed, but no checkpoint covers it yet. Nothing may be
            released on its strength; `publish`, or the next entry, tries again.
        no-transaction, nested-transaction, journal-closed: the caller's order of calls is wrong.
    """

    def __init__(
        self,
        *,
        origin: str,
        given: Mapping[VerifierKey, Callable[[bytes], bytes]],
        now: Callable[[], datetime],
        connection: sqlite3.Connection,
        reader: sqlite3.Connection,
        files: Folder,
        objects: Folder,
        resources: ExitStack,
    ) -> None:
        """Use `Journal.open`."""
        self._origin = origin
        self._given = given
        self._now = now
        self._connection = connection
        self._reader = reader
        self._files = files
        self._objects = objects
        self._resources = resources
        # Taken in this order where more than one is: writing, publishing, reading.
        self._queueing = threading.Lock()
        self._writing = threading.Lock()
        self._publishing = threading.Lock()
        self._reading = threading.Lock()
        self._storing = threading.Lock()
        self._waiting: list[_Waiting] = []
        self._led = False
        self._owner: int | None = None
        self._closed = False
        self._keys: tuple[_LogKey, ...] = ()
        self._succeeding: tuple[_LogKey, ...] = ()
        self._size = 0
        self._signed = 0
        self._last: tuple[int, str] | None = None
        self._edge = _Edge()
        self._note = b""

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        database: Path,
        origin: str,
        signer: Callable[[bytes], bytes],
        public_key: bytes,
        now: Callable[[], datetime],
        next_signer: Signer | None = None,
        folder: Callable[[Path, str], Folder] = Folder,
    ) -> "Journal":
        """Open a journal, or start one with its `log.open` entry.

        While a key is being changed, the keys before and after are both given, in either order: the log says
        which of them signs, and if a crash came before the checkpoint that both sign, both sign it now.

        Every entry is read and hashed against the tiles and the signed checkpoint, which takes a few seconds
        per million entries; then whatever a crash left unpublished is published.

        Args:
            directory: the folder that auditors get: checkpoint, tile/…, objects/….
            database: SQLite file, outside that folder; the caller may keep its own tables in it.
            origin: the log's name, such as `police.gz.example/node-a/journal/1`; no spaces, no plus.
            signer: returns the 64-byte Ed25519 signature of the bytes it is given.
            public_key: 32 bytes, the public half.
            now: the clock; must return a time with a zone.
            next_signer: a second key that may be this log's, during a rotation.
            folder: makes the writers of `directory`; tests pass ones that fail.

        Raises:
            StateConflict: see the class.
            DecodeError: `origin` or `public_key` cannot be a log's.
        """
        given = {VerifierKey(origin, ED25519, public_key): signer}
        if next_signer is not None:
            given.setdefault(VerifierKey(origin, ED25519, next_signer.public_key), next_signer.sign)
        with ExitStack() as resources, _storage():
            directory.mkdir(parents=True, exist_ok=True)
            database.parent.mkdir(parents=True, exist_ok=True)
            _lock(resources, directory, os.O_RDONLY | os.O_DIRECTORY)
            # SQLite's own locks live on the database file and vanish when any descriptor on it closes.
            _lock(resources, database.with_name(database.name + ".lock"), os.O_RDWR | os.O_CREAT)
            connection = resources.enter_context(closing(_connect(database)))
            if connection.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
                raise StateConflict(
                    "the database cannot use a write-ahead log",
                    code="journal-write-failed",
                    hint="keep the database on a local disk, not on a network share",
                )
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            for statement in _SCHEMA:
                connection.execute(statement)
            reader = resources.enter_context(closing(_connect(database)))
            reader.execute("PRAGMA query_only = ON")
            # A blob whose type byte flipped must show as damage, not as a decoding error.
            reader.text_factory = lambda raw: raw.decode("utf-8", "replace")
            journal = cls(
                origin=origin,
                given=given,
                now=now,
                connection=connection,
                reader=reader,
                files=folder(directory, ".new"),
                objects=folder(directory, ".new-object"),
                resources=resources,
            )
            journal._recover()
            journal._resources = resources.pop_all()
        return journal

    def close(self) -> None:
        """Close the database and let go of the lock. Waits for transactions and publication under way."""
        self._refuse_nesting()
        with self._writing, self._publishing, self._reading:
            self._closed = True
            self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def origin(self) -> str:
        """The log's name."""
        return self._origin

    @property
    def vkey(self) -> str:
        """The line that auditors verify this log with; hand it out on another way than the folder.

        After a rotation it is the new key's; the lines handed out before go on to verify the log.
        """
        return str(self._keys[-1].key)

    @property
    def public_key(self) -> bytes:
        """The 32-byte public key that the log names last: of the keys given, the one that signs."""
        return self._keys[-1].key.public_key

    @property
    def size(self) -> int:
        """Entries committed."""
        return self._size

    @property
    def published(self) -> int:
        """Entries that the checkpoint on disk covers; below `size` after a failed publication."""
        return self._edge.tree.size

    def checkpoint(self) -> bytes:
        """Return the signed checkpoint that is on disk."""
        return self._note

    def root(self) -> bytes:
        """Return the 32-byte root over the `size` committed entries."""
        with self._publishing:
            tree = self._edge.tree.copy()
            for _, leaf in self._rows(tree.size, self._size):
                tree.add(leaf)
            return tree.root()

    def entries(self, start: int = 0) -> Iterator[Entry]:
        """Yield committed entries from seq `start` on, up to the size at the first step.

        Raises:
            StateConflict: a stored entry changed.
        """
        for entry, _ in self._rows(max(start, 0), self._size):
            yield Entry.decode(entry)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Give one serialised IMMEDIATE transaction; commit, then publish what was appended.

        An exception in the body rolls everything back. On return every entry appended is under a durable
        checkpoint.

        Raises:
            StateConflict: journal-write-failed: rolled back. journal-unpublished: committed all the same.
        """
        self._refuse_nesting()
        with self._writing:
            self._require_open()
            with _storage():
                self._connection.execute("BEGIN IMMEDIATE")
            self._owner = threading.get_ident()
            try:
                yield self._connection
                size = self._commit()
                # Before `size` grows: whoever publishes picks the signers by size.
                self._keys += self._succeeding
            except BaseException:
                if self._connection.in_transaction:
                    with _storage():
                        self._connection.execute("ROLLBACK")
                raise
            finally:
                self._owner = None
                self._succeeding = ()
            grown = size > self._size
            self._size = size
        if grown:
            self._publish_through(size)

    def _commit(self) -> int:
        """Commit the open transaction and return the entries there are now."""
        if not self._connection.in_transaction:
            raise StateConflict(
                "the transaction was ended inside its own block",
                code="no-transaction",
                hint="leave commit and rollback to journal.transaction()",
            )
        with _storage():
            size = int(self._connection.execute(_SIZE).fetchone()[0])
            self._connection.execute("COMMIT")
        return size

    def append(
        self,
        connection: sqlite3.Connection,
        kind: str,
        body: Mapping[str, Any],
        *,
        job: str = "",
        attempt: int = 0,
        policy: PolicyRef | None = None,
        actor: str = "",
        refs: Sequence[str] = (),
    ) -> int:
        """Append one entry inside the open transaction of `connection` and return its seq.

        If the clock ran back by more than `CLOCK_TOLERANCE` since the last entry, a `clock.step` entry goes
        first.

        Raises:
            DecodeError: the entry says something that `ENTRY_KINDS` does not publish; nothing was appended.
            StateConflict: `connection` is not in this journal's transaction, or the database refused the row.
        """
        if (
            connection is not self._connection
            or self._owner != threading.get_ident()
            or not connection.in_transaction
        ):
            raise StateConflict(
                "entries are appended inside the journal's own transaction",
                code="no-transaction",
                hint="use the connection that journal.transaction() gives",
            )
        return self._place(
            self._draft(kind, body, job=job, attempt=attempt, policy=policy, actor=actor, refs=refs)
        )

    def record(
        self,
        kind: str,
        body: Mapping[str, Any],
        *,
        job: str = "",
        attempt: int = 0,
        policy: PolicyRef | None = None,
        actor: str = "",
        refs: Sequence[str] = (),
    ) -> int:
        """Append one entry in a transaction of its own; return its seq once its checkpoint is durable.

        Threads that call at the same time share one commit and one checkpoint.

        Raises:
            DecodeError: see `append`.
            StateConflict: see `transaction`.
        """
        self._refuse_nesting()
        # Checked before it queues, its length too: what breaks the format must not take its neighbours down.
        mine = _Waiting(
            self._draft(kind, body, job=job, attempt=attempt, policy=policy, actor=actor, refs=refs)
        )
        mine.draft.encode()
        with self._queueing:
            self._waiting.append(mine)
            mine.leads = not self._led
            self._led = True
        if not mine.leads:
            try:
                mine.awake.wait()
            except BaseException:
                self._withdraw(mine)
                raise
        if mine.leads:
            self._record_waiting()
        if mine.error is not None:
            error = mine.error
            raise type(error)(error.message, code=error.code, hint=error.hint) from error
        return mine.seq

    def _record_waiting(self) -> None:
        """Append what all waiting threads queued, the caller's own entry among it; then let another lead."""
        with self._queueing:
            batch, self._waiting = self._waiting, []
        try:
            with self.transaction():
                for waiting in batch:
                    waiting.seq = self._place(waiting.draft)
        except MinshuError as error:
            for waiting in batch:
                waiting.error = error
        except BaseException:
            for waiting in batch:
                waiting.error = StateConflict(
                    "the thread that committed for several was interrupted",
                    code="journal-write-failed",
                    hint="look at the journal's last entries before recording this one again",
                )
            raise
        finally:
            for waiting in batch:
                waiting.awake.set()
            self._pass_lead()

    def _pass_lead(self) -> None:
        with self._queueing:
            self._led = bool(self._waiting)
            if self._waiting:
                self._waiting[0].leads = True
                self._waiting[0].awake.set()

    def _withdraw(self, mine: "_Waiting") -> None:
        """Take back an entry whose thread was interrupted; if a leader has it already, it is recorded."""
        with self._queueing:
            if mine in self._waiting:
                self._waiting.remove(mine)
        if mine.leads:
            self._pass_lead()

    def rotate(self, signer: Signer, statement: bytes) -> int:
        """Hand the log over to the key of `signer`; return the seq of the `key.rotate` entry that says so.

        Entry and statement commit in one transaction. The checkpoint that covers them is signed by both keys,
        the old one first; every later one by the new key alone.

        Args:
            signer: the new key, which never was this log's before.
            statement: a DSSE envelope signed by both keys, with a `minshu-rotation/1` document that names
                this node, both keys, and size and root of this log now or at any time before.

        Raises:
            DecodeError: `statement` is no such envelope; nothing was appended.
            SignatureInvalid: it does not hand this log over to this key; nothing was appended.
            StateConflict: rotation-out-of-place: nothing was appended. Else see `transaction`.
        """
        following = VerifierKey(self.origin, ED25519, signer.public_key)
        with self.transaction() as connection:
            keys = [key.key for key in self._keys]
            rotation = read_statement(statement, keys, following)
            seq, time = self._next_place("key.rotate")
            named, before = self._roots(connection, rotation.journal_size)
            if digest_bytes(rotation.journal_root) != named:
                raise StateConflict(
                    f"the statement names a tree of {rotation.journal_size} entries that is not this log's",
                    code="rotation-out-of-place",
                    hint="write a new statement, with the size and root that this journal has now",
                )
            body = {
                "vkey": str(following),
                "previous_vkey": str(keys[-1]),
                "identity": key_id(following.public_key),
                "envelope_sha256": self.put_object(statement),
                "size": seq,
                "root": f"sha256:{before.hex()}",
            }
            self._insert(replace(self._draft("key.rotate", body), seq=seq, time=time))
            with _storage():
                connection.execute("INSERT INTO journal_statement VALUES (?, ?)", (seq, statement))
            self._succeeding = (_LogKey(seq + 1, following, signer.sign),)
        return seq

    def _roots(self, connection: sqlite3.Connection, size: int) -> tuple[bytes | None, bytes]:
        """Return the roots over the first `size` entries, None if there are no such, and over all there are.

        Those that the open transaction appended count.
        """
        tree, named = TileBuilder(), None
        with _storage():
            appended = connection.execute("SELECT entry FROM journal_entry WHERE seq >= ?", (self._size,))
            fresh = [leaf_hash(entry) for (entry,) in appended]
        for leaf in (*(leaf for _, leaf in self._rows(0, self._size)), *fresh):
            tree.add(leaf)
            if tree.size == size:
                named = tree.root()
        return named, tree.root()

    def publish(self) -> None:
        """Bring tiles and checkpoint up to the committed entries; does nothing where they are.

        Raises:
            StateConflict: journal-unpublished.
        """
        self._publish_through(self._size)

    def put_object(self, data: bytes) -> Digest:
        """Store `data` durably under objects/sha256/… and return its digest, for an entry to name.

        Raises:
            StateConflict: journal-write-failed.
        """
        with self._storing, _storage():
            return self._objects.put_object(data)

    def get_object(self, digest: str) -> bytes | None:
        """Return the object with that digest, None if it is not stored.

        Raises:
            DecodeError: the stored bytes changed.
        """
        with _storage():
            return self._objects.read_object(digest)

    # -- one entry -------------------------------------------------------------------------------------------

    def _draft(
        self,
        kind: str,
        body: Mapping[str, Any],
        *,
        job: str = "",
        attempt: int = 0,
        policy: PolicyRef | None = None,
        actor: str = "",
        refs: Sequence[str] = (),
    ) -> Entry:
        """Return the entry, checked, at the longest seq and time there can be."""
        return Entry(
            log=self.origin,
            seq=MAX_SIZE - 1,
            time=_LATEST,
            kind=kind,
            job=job,
            attempt=attempt,
            policy=policy,
            actor=actor,
            body=dict(body),
            refs=tuple(refs),
            v=VERSION,
        )

    def _place(self, draft: Entry) -> int:
        """Append `draft` at the next seq and the present time; the caller holds the transaction."""
        seq, time = self._next_place(draft.kind)
        self._insert(replace(draft, seq=seq, time=time))
        return seq

    def _next_place(self, kind: str) -> tuple[int, str]:
        """Return seq and time for an entry of that kind, after a clock.step if one is due."""
        seq, last = self._tail()
        moment = self._now()
        time = format_time(moment)
        if time < last and kind != "clock.step":
            back = parse_time(last) - moment
            if back <= CLOCK_TOLERANCE:
                time = last
            else:
                step = {"previous_time": last, "step_ms": -round(back / timedelta(milliseconds=1))}
                self._insert(replace(self._draft("clock.step", step), seq=seq, time=time))
                seq += 1
        return seq, time

    def _tail(self) -> tuple[int, str]:
        """Return the next seq and the time of the entry before it."""
        with _storage():
            seq = int(self._connection.execute(_SIZE).fetchone()[0])
            if seq == 0:
                return 0, ""
            # A rolled-back savepoint may have taken the remembered entry away, so its seq is compared.
            if self._last is None or self._last[0] != seq - 1:
                row = self._connection.execute(
                    "SELECT entry FROM journal_entry WHERE seq = ?", (seq - 1,)
                ).fetchone()
                self._last = seq - 1, _decode_stored(row[0], seq - 1).time
        return seq, self._last[1]

    def _insert(self, entry: Entry) -> None:
        data = entry.encode()
        with _storage():
            self._connection.execute(
                "INSERT INTO journal_entry (seq, entry, leaf) VALUES (?, ?, ?)",
                (entry.seq, data, leaf_hash(data)),
            )
        self._last = entry.seq, entry.time

    def _rows(self, start: int, stop: int) -> Iterator[tuple[bytes, bytes]]:
        """Yield (entry, leaf hash) of committed entries, each checked against the other.

        Raises:
            StateConflict: journal-damaged.
        """
        while start < stop:
            with self._reading, _storage():
                self._require_open()
                rows = self._reader.execute(
                    _ROWS,
                    (start, stop, _ROWS_AT_ONCE),
                ).fetchall()
            if not rows:
                raise _damaged(f"entry {start} is missing from the database")
            for seq, entry, leaf in rows:
                if seq != start:
                    raise _damaged(f"entry {start} is missing from the database")
                if not isinstance(entry, bytes) or leaf_hash(entry) != leaf:
                    raise _damaged(f"entry {start} in the database is not what was written")
                yield entry, leaf
                start += 1

    # -- publication -----------------------------------------------------------------------------------------

    def _publish_through(self, size: int) -> None:
        with self._publishing:
            if self._edge.tree.size >= size:
                return  # another thread's checkpoint covers it
            try:
                self._write_through()
            except StateConflict:
                raise
            except (OSError, MinshuError) as error:
                raise StateConflict(
                    f"entries up to {self._size - 1} are committed, but no checkpoint covers them yet"
                    f" ({_reason(error)})",
                    code="journal-unpublished",
                    hint="free disk space or repair the signer; the next entry publishes them too",
                ) from error

    def _write_through(self) -> None:
        """Publish every committed entry. Memory changes only once the checkpoint is durable."""
        edge = self._edge.copy()
        standing = {tile for tile, _ in edge.partial_tiles()}
        filled: list[Tile] = []
        # (1) Tiles first: a checkpoint never promises a tile that is not there.
        for entry, leaf in self._rows(edge.tree.size, self._size):
            for tile, data in edge.add(entry, leaf):
                self._files.write(tile.path, data)
                filled.append(tile)
        for tile, data in edge.partial_tiles():
            if tile not in standing:
                self._files.write(tile.path, data)
        self._files.sync()
        # (2) The checkpoint.
        note = Note(Checkpoint(self.origin, edge.tree.size, edge.tree.root()).encode(), ())
        for key, sign in self._signers(edge.tree.size):
            note = note.with_signature(key, sign)
        signed = note.encode()
        self._files.write(CHECKPOINT, signed)
        self._files.sync()
        self._edge, self._note, self._signed = edge, signed, edge.tree.size
        # (3) What nobody needs any more. A crash here leaves them to the next start.
        for tile in filled:
            self._files.remove_partial(tile)

    def _signers(self, size: int) -> Iterator[tuple[VerifierKey, Callable[[bytes], bytes]]]:
        """Yield who signs the checkpoint over `size` entries: the key in force there, last.

        Before it, where this is the first checkpoint of its time, the keys that hand over, as far as they are
        still at hand: the statement has their consent already.
        """
        reigning = [key for key in self._keys if key.start <= size]
        for key, successor in zip(reigning, [*reigning[1:], None], strict=True):
            if key.sign is not None and (successor is None or successor.start > self._signed):
                yield key.key, key.sign

    # -- start -----------------------------------------------------------------------------------------------

    def _recover(self) -> None:
        """Compare database, tiles and checkpoint; then publish what is missing.

        Raises:
            StateConflict: they tell different stories.
        """
        self._files.discard_temporary()
        self._objects.discard_temporary()
        self._size = int(self._connection.execute(_SIZE).fetchone()[0])
        # (1) The database is this log's, and says which keys the log had.
        if self._size:
            self._keys = self._read_keys()
        # (2) It reaches as far as everything that was ever published.
        signed = self._signed_checkpoint()
        self._signed = signed.size if signed else self._size
        if signed and signed.size > self._size:
            raise _rolled_back(self._size, signed.size)
        stray = list(self._files.tiles())
        for tile in stray:
            if tile.end > self._size:
                raise _rolled_back(self._size, tile.end)
        if self._size == 0:
            key, sign = next(iter(self._given.items()))
            self._keys = (_LogKey(0, key, sign),)
            self.record("log.open", {"vkey": self.vkey})
            return
        self._require_current_key()
        # (3) Its entries give the tiles on disk and the signed root.
        edge, complete = self._compare(signed.size if signed else 0)
        if signed and edge.tree.root() != signed.root:
            raise _damaged("the database does not give the root of the signed checkpoint")
        self._settle_partials(edge, stray)
        # (4) Missing tiles are written again, all of them, now that the root is known to be right.
        self._edge = edge if signed and complete else _Edge()
        self._publish_through(self._size)
        if not self._note:
            self._note = self._files.read_checkpoint() or b""

    def _read_keys(self) -> "tuple[_LogKey, ...]":
        """Return the log's keys, oldest first, from its own entries.

        Raises:
            StateConflict: it is another log, or a rotation in it is not proven.
        """
        (entry, _), *_ = self._rows(0, 1)
        first = _decode_stored(entry, 0)
        if first.log != self.origin or first.kind != "log.open":
            raise _another_log()
        keys = [VerifierKey.parse(first.body["vkey"])]
        starts = [0]
        with self._reading, _storage():
            found = self._reader.execute(_ROTATIONS).fetchall()
        for seq, entry, statement in found:
            if not isinstance(entry, bytes) or not isinstance(statement, bytes | None):
                raise _damaged(f"entry {seq} in the database is not what was written")
            rotation = _decode_stored(entry, seq)
            if rotation.kind != "key.rotate":
                continue  # the words stand elsewhere in it
            try:
                keys.append(follow(rotation, statement, keys)[0])
                starts.append(seq + 1)
                self._restore_object(statement)
            except (DecodeError, SignatureInvalid) as error:
                raise _damaged(f"entry {seq} changes the key without proof ({error.code})") from error
        return tuple(
            _LogKey(start, key, self._given.get(key)) for start, key in zip(starts, keys, strict=True)
        )

    def _restore_object(self, statement: bytes | None) -> None:
        """Write a rotation's statement again where the folder lost it.

        Raises:
            DecodeError: other bytes lie in its place.
        """
        if statement is not None and self.get_object(sha256_digest(statement)) is None:
            self.put_object(statement)

    def _require_current_key(self) -> None:
        """Refuse to go on without the key that the log names last."""
        current = self._keys[-1]
        if current.sign is not None:
            return
        if any(key.sign for key in self._keys):
            raise StateConflict(
                f"this log has handed over to {current.key.label}; the key given is one from before",
                code="journal-key-rotated",
                hint="open it with the new key; the old one may be destroyed",
            )
        raise _another_log()

    def _signed_checkpoint(self) -> Checkpoint | None:
        known = [key.key for key in self._keys]
        try:
            data = self._files.read_checkpoint()
            if data is None:
                return None
            note, signers = verify_note(data, dict.fromkeys([*known, *self._given]))
            checkpoint = Checkpoint.decode(note.text)
        except (DecodeError, SignatureInvalid) as error:
            raise _damaged(f"the checkpoint file does not verify: {error.message}") from error
        if checkpoint.origin != self.origin:
            raise _damaged("the checkpoint is another log's")
        if checkpoint.size <= self._size and _in_force(self._keys, checkpoint.size) not in signers:
            raise _damaged("the checkpoint is not signed by the key that the log names there")
        return checkpoint

    def _compare(self, signed_size: int) -> tuple["_Edge", bool]:
        """Read all rows; return the edge at `signed_size`, and whether every tile up to there is on disk."""
        edge, published, complete = _Edge(), _Edge(), True
        for entry, leaf in self._rows(0, self._size):
            filled = edge.add(entry, leaf)
            if edge.tree.size > signed_size:
                _decode_stored(entry, edge.tree.size - 1)  # no signature covers it yet
                continue
            for tile, data in filled:
                complete &= self._stands(tile, data)
            if edge.tree.size == signed_size:
                published = edge.copy()
        for tile, data in published.partial_tiles():
            complete &= self._stands(tile, data)
        return published, complete

    def _stands(self, tile: Tile, data: bytes) -> bool:
        """Tell whether `tile` is on disk.

        Raises:
            StateConflict: it is, with other bytes.
        """
        try:
            stored = self._files.read_tile(tile)
        except DecodeError:
            stored = b""
        if stored is None:
            return False
        if stored != data:
            raise _damaged(f"{tile.path} differs from the database")
        return True

    def _settle_partials(self, edge: "_Edge", stray: Sequence[Tile]) -> None:
        """Check older partial tiles, which earlier checkpoints rest on, and drop those already replaced."""
        growing = {(tile.level, tile.index): (tile, data) for tile, data in edge.partial_tiles()}
        for tile in stray:
            full = Tile(tile.level, tile.index)
            if tile != full and full.end <= edge.tree.size:
                self._files.remove_partial(full)
            elif (tile.level, tile.index) in growing:
                now, data = growing[tile.level, tile.index]
                if tile.width <= now.width:
                    self._stands(tile, cut_tile(now, data, tile.width))

    def _refuse_nesting(self) -> None:
        if self._owner == threading.get_ident():
            raise StateConflict(
                "this thread is inside a journal transaction already",
                code="nested-transaction",
                hint="append to the open transaction instead",
            )

    def _require_open(self) -> None:
        if self._closed:
            raise StateConflict("the journal is closed", code="journal-closed")


@dataclass(frozen=True, slots=True)
class _LogKey:
    """A key of the log.

    Attributes:
        start: size of the smallest tree that it signs.
        key: the public half.
        sign: the private half; None where it is not at hand.
    """

    start: int
    key: VerifierKey
    sign: Callable[[bytes], bytes] | None


def _in_force(keys: Sequence[_LogKey], size: int) -> VerifierKey | None:
    """Return the key that signs a tree of `size` entries."""
    return next((key.key for key in reversed(keys) if key.start <= size), None)


@dataclass(slots=True)
class _Edge:
    """The right edge of a published log: all that is needed to write the tiles of the next entries."""

    tree: TileBuilder = field(default_factory=TileBuilder)
    bundle: list[bytes] = field(default_factory=list)

    def add(self, entry: bytes, leaf: bytes) -> list[tuple[Tile, bytes]]:
        """Add an entry and return the files that it completes."""
        self.bundle.append(entry)
        filled = self.tree.add(leaf)
        if len(self.bundle) < TILE_WIDTH:
            return filled
        bundle = Tile(ENTRIES, self.tree.size // TILE_WIDTH - 1), encode_bundle(self.bundle)
        self.bundle = []
        return [bundle, *filled]

    def partial_tiles(self) -> list[tuple[Tile, bytes]]:
        """Return the files that are there in part."""
        partial = self.tree.partial_tiles()
        if self.bundle:
            bundle = tile_at(self.tree.size, ENTRIES, self.tree.size // TILE_WIDTH)
            partial.insert(0, (bundle, encode_bundle(self.bundle)))
        return partial

    def copy(self) -> "_Edge":
        return _Edge(self.tree.copy(), list(self.bundle))


@dataclass(slots=True, eq=False)
class _Waiting:
    """One thread's entry in the queue, and what became of it.

    Attributes:
        draft: the entry, but for its seq and time.
        awake: set when the entry is settled, or when its thread is to lead.
        leads: its thread commits for all that wait.
        seq: where the entry stands, once committed.
        error: why it does not, or why no checkpoint covers it.
    """

    draft: Entry
    awake: threading.Event = field(default_factory=threading.Event)
    leads: bool = False
    seq: int = -1
    error: MinshuError | None = None


def _connect(database: Path) -> sqlite3.Connection:
    # Autocommit: transactions begin and end where this module says so, and nowhere else.
    return sqlite3.connect(database, isolation_level=None, check_same_thread=False, timeout=_BUSY_TIMEOUT_S)


def _lock(resources: ExitStack, path: Path, flags: int) -> None:
    """Hold `path` locked for as long as `resources` live; the kernel lets go of it when the process dies."""
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


@contextmanager
def _storage() -> Iterator[None]:
    """Turn what SQLite and the file system raise into the journal's own codes."""
    try:
        yield
    except sqlite3.Error as error:
        if (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF in _NOT_OURS:
            raise _damaged("the database file is not what SQLite wrote") from error
        raise StateConflict(
            f"the journal's database refused ({_reason(error)})",
            code="journal-write-failed",
            hint="free disk space and check the disk; the transaction was rolled back",
        ) from error
    except UnicodeDecodeError as error:
        # SQLite quotes a damaged schema in its message, and Python cannot even read that.
        raise _damaged("the database file is not what SQLite wrote") from error
    except OSError as error:
        raise StateConflict(
            f"the journal's folder cannot be used ({_reason(error)})",
            code="journal-write-failed",
            hint="free disk space and check the folder's owner and permissions",
        ) from error


def _reason(error: Exception) -> str:
    """Say why without a path or a value: the system's words, or the error's own code."""
    if isinstance(error, MinshuError):
        return error.code
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorname", type(error).__name__)
    return (isinstance(error, OSError) and error.strerror) or type(error).__name__


def _decode_stored(entry: bytes, seq: int) -> Entry:
    try:
        decoded = Entry.decode(entry)
    except DecodeError as error:
        raise _damaged(f"entry {seq} in the database is not an entry ({error.code})") from error
    if decoded.seq != seq:
        raise _damaged(f"entry {seq} in the database carries seq {decoded.seq}")
    return decoded


def _another_log() -> StateConflict:
    return StateConflict(
        "the database was started by another log or key",
        code="journal-identity",
        hint="open it with the origin and key it was made with, or start a journal in a new place",
    )


def _damaged(what: str) -> StateConflict:
    return StateConflict(
        what,
        code="journal-damaged",
        hint="stop and keep folder and database as evidence; a tile alone may be removed and is then rebuilt",
    )


def _rolled_back(have: int, seen: int) -> StateConflict:
    return StateConflict(
        f"the database holds {have} entries, but {seen} were already written out",
        code="journal-rolled-back",
        hint="this is an older copy of the database: put the newest one back, never continue the old one",
    )
