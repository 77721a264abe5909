"""The journal: an append-only tile log whose source of truth is SQLite, and whose tiles follow.

An entry is appended inside the caller's own transaction, so a budget or job state and the entry that says so
become durable together or not at all. After the commit the journal is published, in this order:

(1) tiles and entry bundles are written, then their directories flushed;
(2) the checkpoint over them is signed, written and flushed; the one before goes on as `checkpoint.old`;
(3) partial tiles that a full one replaced are removed.

A crash between any two steps leaves a folder that the next start completes from the database, to the same
root. What a start cannot explain, it refuses: database, tiles and signed checkpoint must tell one story.

Witnesses' signatures come later, one publication behind or many: they are put beside the log's own, and where
they are enough, the checkpoint that carries them stands as `checkpoint.cosigned`, too.

Which key signs is decided by the log, by its last `key.rotate` entry or else `log.open`, and never by which
key happens to lie where one is looked for.
"""

import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from audit import rows
from audit.entries import VERSION, Draft, Entry, PolicyRef, format_time, parse_time
from audit.folder import CHECKPOINT, COSIGNED, OLD, Folder
from audit.merkle import (
    ENTRIES,
    HASH_BYTES,
    TILE_WIDTH,
    ReadTile,
    Tile,
    TileBuilder,
    consistency_proof,
    cut_tile,
    encode_bundle,
    inclusion_proof,
    leaf_hash,
    root_from_tiles,
    split_tile,
    tile_at,
    verify_consistency,
    verify_inclusion,
)
from audit.note import ED25519, Checkpoint, Note, NoteSignature, VerifierKey, verify_note
from audit.rotation import follow, read_statement
from audit.rows import damaged, decode_stored, reason, storage
from protocols.encoding import digest_bytes, sha256_digest
from protocols.envelope import Signer, key_id
from protocols.errors import DecodeError, MinshuError, SignatureInvalid, StateConflict
from protocols.ids import Digest

CLOCK_TOLERANCE: Final = timedelta(seconds=1)
"""A clock that runs back by no more is held; by more, the log says so in a clock.step entry."""

_COMPANY_WAIT_S: Final = 0.002
"""How long a thread that commits for others waits for as many as there were the last time."""

_HOT_BUNDLES: Final = 4
"""The newest full bundles stay one row per entry."""

_PACKED_AT_ONCE: Final = 4
"""Bundles that are packed in one transaction: a pause of milliseconds, once in a thousand entries."""

_PACKINGS_AT_ONCE: Final = 4
"""Such transactions after one publication, where an earlier release or a large one left more to pack."""

_SWEPT_AT_ONCE: Final = 8
"""Partial tiles that one publication removes; a full tile leaves 510 behind, in 256 publications."""

_T = TypeVar("_T")


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
        reader: rows.Rows,
        files: Folder,
        objects: Folder,
        resources: ExitStack,
    ) -> None:
        """Use `Journal.open`."""
        self._origin = origin
        self._given = given
        self._now = now
        self._connection = connection
        self._rows = reader
        self._files = files
        self._objects = objects
        self._resources = resources
        # Taken in this order where more than one is: writing, publishing.
        self._queueing = threading.Lock()
        self._writing = threading.Lock()
        self._publishing = threading.Lock()
        self._packing = threading.Lock()
        self._storing = threading.Lock()
        self._enough = threading.Condition(self._queueing)
        self._waiting: list[_Waiting] = []
        self._led = False
        self._company = 1
        self._owner: int | None = None
        self._closed = False
        self._keys: tuple[_LogKey, ...] = ()
        self._succeeding: tuple[_LogKey, ...] = ()
        self._size = 0
        self._packed = 0
        self._signed = 0
        self._last: tuple[int, str] | None = None
        self._edge = _Edge()
        self._note = b""
        # False after a publication that failed half-way: `checkpoint` may then be newer than `_note`.
        self._settled = True
        self._cosigned = _NONE
        self._old = _NONE

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
        with ExitStack() as resources, storage():
            rows.lock_both(resources, directory, database)
            connection = rows.open_writer(resources, database)
            reader = rows.Rows(rows.open_reader(resources, database))
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
        with self._writing, self._publishing:
            self._rows.close()
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

    @property
    def cosigned_size(self) -> int:
        """Entries that a checkpoint with its quorum of witnesses covers."""
        return self._cosigned.size

    def checkpoint(self) -> bytes:
        """Return the signed checkpoint that is on disk, with the cosignatures that came for it."""
        return self._note

    def cosigned(self) -> bytes | None:
        """Return the newest checkpoint that had its quorum of witnesses; None before there is one."""
        return self._cosigned.data or None

    def root(self) -> bytes:
        """Return the 32-byte root over the `size` committed entries."""
        with self._publishing:
            tree = self._edge.tree.copy()
            for _, leaf in self._rows.read(tree.size, self._size):
                tree.add(leaf)
            return tree.root()

    def entries(self, start: int = 0) -> Iterator[Entry]:
        """Yield committed entries from seq `start` on, up to the size at the first step.

        Raises:
            StateConflict: a stored entry changed.
        """
        for entry, _ in self._rows.read(max(start, 0), self._size):
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
            with storage():
                self._connection.execute("BEGIN IMMEDIATE")
            self._owner = threading.get_ident()
            try:
                yield self._connection
                size = self._commit()
                # Before `size` grows: whoever publishes picks the signers by size.
                self._keys += self._succeeding
            except BaseException:
                if self._connection.in_transaction:
                    with storage():
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
        with storage():
            size = rows.size_of(self._connection)
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
        with self._queueing:
            self._waiting.append(mine)
            mine.leads = not self._led
            self._led = True
            if len(self._waiting) == self._company:
                self._enough.notify()
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
            # Those who were served together come again together: to go ahead at once would serve one alone.
            self._enough.wait_for(lambda: len(self._waiting) >= self._company, _COMPANY_WAIT_S)
            batch, self._waiting = self._waiting, []
            self._company = len(batch)
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
            self._insert(self._draft("key.rotate", body), seq, time)
            with storage():
                rows.insert_statement(connection, seq, statement)
            self._succeeding = (_LogKey(seq + 1, following, signer.sign),)
        return seq

    def _roots(self, connection: sqlite3.Connection, size: int) -> tuple[bytes | None, bytes]:
        """Return the roots over the first `size` entries, None if there are no such, and over all there are.

        Those that the open transaction appended count.
        """
        tree, named = TileBuilder(), None
        with storage():
            appended = connection.execute("SELECT entry FROM journal_entry WHERE seq >= ?", (self._size,))
            fresh = [leaf_hash(entry) for (entry,) in appended]
        for leaf in (*(leaf for _, leaf in self._rows.read(0, self._size)), *fresh):
            tree.add(leaf)
            if tree.size == size:
                named = tree.root()
        return named, tree.root()

    # -- proofs and witnesses --------------------------------------------------------------------------------

    def root_at(self, size: int) -> bytes:
        """Return the 32-byte root over the first `size` entries.

        Raises:
            ValueError: fewer are published.
            StateConflict: journal-damaged: a tile that it rests on is missing or changed.
        """
        return self._proven(size, lambda read, _: root_from_tiles(read, size))

    def inclusion_proof(self, index: int, size: int) -> list[bytes]:
        """Return the proof that entry `index` is one of the first `size` (RFC 6962 section 2.1.1).

        Raises:
            ValueError: not 0 ≤ index < size, or fewer are published.
            StateConflict: journal-damaged: a tile that it rests on is missing or changed.
        """

        def prove(read: ReadTile, root: bytes) -> list[bytes]:
            proof = inclusion_proof(read, index, size)
            tile = tile_at(size, 0, index // TILE_WIDTH)
            leaf = split_tile(tile, read(tile))[index % TILE_WIDTH]
            verify_inclusion(leaf, index, size, proof, root)
            return proof

        return self._proven(size, prove)

    def consistency_proof(self, old: int, size: int) -> list[bytes]:
        """Return the proof that the tree of `size` entries extends that of `old` (RFC 6962 section 2.1.2).

        Raises:
            ValueError: not 0 ≤ old ≤ size, or fewer are published.
            StateConflict: journal-damaged: a tile that it rests on is missing or changed.
        """

        def prove(read: ReadTile, root: bytes) -> list[bytes]:
            proof = consistency_proof(read, old, size)
            verify_consistency(old, root_from_tiles(read, old), size, root, proof)
            return proof

        return self._proven(size, prove)

    def _proven(self, size: int, prove: Callable[[ReadTile, bytes], _T]) -> _T:
        """Return what `prove` makes of the tiles and of the root over `size` entries.

        A tile changed on disk is found out: its hashes do not lead to the root of the published tree.
        """
        tree = self._edge.tree
        if not 0 <= size <= tree.size:
            raise ValueError(f"no tree of {size} entries: {tree.size} are published")
        known = {(tile.level, tile.index): data for tile, data in tree.partial_tiles()}

        def read(tile: Tile) -> bytes:
            place = tile.level, tile.index
            if place not in known:
                data = self._files.read_tile(Tile(*place))
                if data is None or len(data) != TILE_WIDTH * HASH_BYTES:
                    raise damaged(f"{Tile(*place).path} is missing or cut short")
                known[place] = data
            return known[place][: tile.width * HASH_BYTES]

        with storage():
            try:
                root = root_from_tiles(read, size)
                proof = consistency_proof(read, size, tree.size)
                verify_consistency(size, root, tree.size, tree.root(), proof)
                return prove(read, root)
            except (DecodeError, SignatureInvalid) as error:
                raise damaged(f"the tiles do not lead to the published root ({error.code})") from error

    def add_cosignatures(self, text: bytes, lines: Iterable[NoteSignature], *, quorum: bool) -> None:
        """Keep what witnesses signed over a checkpoint of this log, durably.

        The lines join the newest checkpoint if `text` still is its text; with a quorum they stand, beside the
        log's own signature, in `checkpoint.cosigned`. Whether they hold, and whether they are enough, is for
        the caller to tell, who knows the witnesses.

        Args:
            text: the note text that the lines sign.
            lines: the witnesses' signature lines.
            quorum: whether they, with those given before over the same text, are enough.

        Raises:
            DecodeError: `text` is no checkpoint, or there are more lines than a note may have.
            SignatureInvalid: it is not this log's, or not of the tree that this log has at that size; or a
                line bears the log's own name.
            StateConflict: journal-write-failed: the folder holds the earlier or the new checkpoint.
                journal-key-rotated: the key that signs at that size is not at hand any more.
        """
        checkpoint = Checkpoint.decode(text)
        lines = tuple(lines)
        self._require_own(checkpoint, text)
        if any(line.name == self.origin for line in lines):
            raise SignatureInvalid("a witness signs under its own name, not the log's", code="wrong-witness")
        with self._publishing, storage():
            self._require_open()
            newest = Note.decode(self._note)
            if newest.text == text:
                note = newest.with_lines(lines)
                self._join(newest, note)
            elif text == self._cosigned.text:
                note = Note.decode(self._cosigned.data).with_lines(lines)
            else:
                note = self._sign_again(checkpoint).with_lines(lines)
            # One that comes late, behind a newer one with its quorum, serves nobody.
            if quorum and checkpoint.size >= self._cosigned.size:
                self._set_cosigned(note)

    def _require_own(self, checkpoint: Checkpoint, text: bytes) -> None:
        """Refuse a checkpoint that is not one of this log's own tree."""
        if checkpoint.origin != self.origin:
            raise SignatureInvalid("the checkpoint is another log's", code="wrong-origin")
        if not 0 < checkpoint.size <= self.published:
            raise SignatureInvalid(
                f"the checkpoint covers {checkpoint.size} entries, this log published {self.published}",
                code="wrong-size",
            )
        if text != Checkpoint(self.origin, checkpoint.size, self.root_at(checkpoint.size)).encode():
            raise SignatureInvalid(
                f"the checkpoint over {checkpoint.size} entries is not of this log's tree",
                code="wrong-root",
                hint="keep it as evidence: if this log's key signed it, the log was forked",
            )

    def _join(self, newest: Note, note: Note) -> None:
        """Write the newest checkpoint with more signature lines."""
        if note == newest or not self._settled:
            return
        data = note.encode()
        self._files.write(CHECKPOINT, data)
        self._files.sync()
        self._note = data

    def _sign_again(self, checkpoint: Checkpoint) -> Note:
        """Return an earlier checkpoint with the signature that it had: Ed25519 signs alike every time."""
        key = next(key for key in reversed(self._keys) if key.start <= checkpoint.size)
        if key.sign is None:
            raise StateConflict(
                f"the checkpoint over {checkpoint.size} entries is from before a change of the key",
                code="journal-key-rotated",
                hint="ask the witnesses to sign the newest checkpoint",
            )
        return Note(checkpoint.encode(), ()).with_signature(key.key, key.sign)

    def _set_cosigned(self, note: Note) -> None:
        kept = _Kept.of(note)
        if kept != self._cosigned:
            self._files.write(COSIGNED, kept.data)
            self._files.sync()
            self._cosigned = kept
        self._move_old_on(self.published)

    def _move_old_on(self, size: int) -> None:
        """Let `checkpoint.old` be the newest with a quorum, where `checkpoint` is to cover `size` entries."""
        if 0 < self._cosigned.size < size and self._old != self._cosigned:
            self._files.write(OLD, self._cosigned.data)
            self._files.sync()
            self._old = self._cosigned

    def set_witnessed(self, origin: str, note: bytes) -> None:
        """Keep, for auditors, the newest checkpoint of the log `origin` that this log's node cosigned.

        Raises:
            DecodeError: `note` is no checkpoint of that log.
            StateConflict: journal-write-failed.
        """
        if Checkpoint.decode(Note.decode(note).text).origin != origin:
            raise DecodeError("the checkpoint is another log's", code="wrong-origin")
        with self._storing, storage():
            self._objects.write_witnessed(origin, note)

    # -- publication and objects -----------------------------------------------------------------------------

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
        with self._storing, storage():
            return self._objects.put_object(data)

    def get_object(self, digest: str) -> bytes | None:
        """Return the object with that digest, None if it is not stored.

        Raises:
            DecodeError: the stored bytes changed.
        """
        with storage():
            return self._objects.read_object(digest)

    def delete_object(self, digest: str) -> None:
        """Remove the object with that digest, durably; does nothing where there is none.

        What was deleted, and why, is for a `deletion.receipt` entry to say.

        Raises:
            DecodeError: `digest` is none.
            StateConflict: journal-write-failed.
        """
        with self._storing, storage():
            self._objects.remove_object(digest)

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
    ) -> Draft:
        return Draft.of(
            log=self.origin,
            kind=kind,
            body=body,
            job=job,
            attempt=attempt,
            policy=policy,
            actor=actor,
            refs=refs,
            v=VERSION,
        )

    def _place(self, draft: Draft) -> int:
        """Append `draft` at the next seq and the present time; the caller holds the transaction."""
        seq, time = self._next_place(draft.kind)
        self._insert(draft, seq, time)
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
                self._insert(self._draft("clock.step", step), seq, time)
                seq += 1
        return seq, time

    def _tail(self) -> tuple[int, str]:
        """Return the next seq and the time of the entry before it."""
        with storage():
            seq = rows.size_of(self._connection)
            if seq == 0:
                return 0, ""
            # A rolled-back savepoint may have taken the remembered entry away, so its seq is compared.
            if self._last is None or self._last[0] != seq - 1:
                entry, *_ = self._connection.execute(
                    "SELECT entry FROM journal_entry WHERE seq = ?", (seq - 1,)
                ).fetchone() or next(self._rows.read(seq - 1, seq))
                self._last = seq - 1, decode_stored(entry, seq - 1).time
        return seq, self._last[1]

    def _insert(self, draft: Draft, seq: int, time: str) -> None:
        with storage():
            rows.insert(self._connection, seq, draft.at(seq, time))
        self._last = seq, time

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
                    f" ({reason(error)})",
                    code="journal-unpublished",
                    hint="free disk space or repair the signer; the next entry publishes them too",
                ) from error
        self._pack()

    def _pack(self) -> None:
        """Give bundles that are full, published and no longer new one compressed row each.

        It saves space and nothing else: where it cannot be done now, it is left to a later time.
        """
        if not self._packing.acquire(blocking=False):
            return
        try:
            for _ in range(_PACKINGS_AT_ONCE):
                first, end = self._packed, self._packed + _PACKED_AT_ONCE
                if self.published // TILE_WIDTH - _HOT_BUNDLES < end:
                    return
                packed = [self._rows.pack(number) for number in range(first, end)]
                with self._writing, storage():
                    self._require_open()
                    with self._connection:
                        self._connection.execute("BEGIN IMMEDIATE")
                        rows.move_into_bundles(self._connection, packed)
                self._packed = end
                self._rows.packed(end)
        except StateConflict:
            return  # a full disk, a stranger's lock; or damage, which stays as it is and stops the next start
        finally:
            self._packing.release()

    def _write_through(self) -> None:
        """Publish every committed entry. Memory changes only once the checkpoint is durable."""
        edge = self._edge.copy()
        standing = {tile for tile, _ in edge.partial_tiles()}
        filled: list[Tile] = []
        # (1) Tiles first: a checkpoint never promises a tile that is not there.
        for entry, leaf in self._rows.read(edge.tree.size, self._size):
            for tile, data in edge.add(entry, leaf):
                self._files.write(tile.path, data)
                filled.append(tile)
        for tile, data in edge.partial_tiles():
            if tile not in standing:
                self._files.write(tile.path, data)
        self._files.sync()
        # (2) The checkpoint.
        text = Checkpoint(self.origin, edge.tree.size, edge.tree.root()).encode()
        if not self._note.startswith(text + b"\n"):  # else only tiles were lost: what witnesses signed, stays
            self._replace_checkpoint(edge.tree.size, text)
        self._edge, self._signed = edge, edge.tree.size
        # (3) What nobody needs any more. A crash here leaves them to the next start.
        for tile in filled:
            self._files.remove_partial(tile)
        self._files.sweep(_SWEPT_AT_ONCE)

    def _replace_checkpoint(self, size: int, text: bytes) -> None:
        note = Note(text, ())
        for key, sign in self._signers(size):
            note = note.with_signature(key, sign)
        data = note.encode()
        # The one before moves first: to crash here leaves two of one size, until the next start.
        if self._cosigned.size:
            self._move_old_on(size)
        elif self._settled:
            self._files.keep(CHECKPOINT, OLD)
        self._settled = False
        self._files.write(CHECKPOINT, data)
        self._files.sync()
        self._note, self._settled = data, True

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
        self._size = rows.size_of(self._connection)
        self._packed = self._rows.bundles
        # (1) The database is this log's, and says which keys the log had.
        if self._size:
            keys = read_keys(self._rows, self.origin)
            self._keys = tuple(_LogKey(start, key, self._given.get(key)) for start, key in keys)
            self._restore_objects(statement for _, _, statement in self._rows.statements())
        # (2) It reaches as far as everything that was ever published.
        signed, cosigned, old = map(self._stored_checkpoint, (CHECKPOINT, COSIGNED, OLD))
        self._signed = signed.size or self._size
        for kept in (signed, cosigned, old):
            if kept.size > self._size:
                raise _rolled_back(self._size, kept.size)
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
        edge, complete = self._compare(signed, cosigned, old)
        self._settle_partials(edge, stray)
        # (4) Missing tiles are written again, all of them, now that the root is known to be right.
        self._note, self._cosigned, self._old = signed.data, cosigned, old
        self._edge = edge if signed.size and complete else _Edge()
        self._publish_through(self._size)
        self._move_old_on(self._size)

    def _restore_objects(self, statements: Iterable[bytes | None]) -> None:
        """Write the statements that entries rest on again where the folder lost them.

        Raises:
            StateConflict: other bytes lie in the place of one.
        """
        for statement in statements:
            try:
                if statement is not None and self.get_object(sha256_digest(statement)) is None:
                    self.put_object(statement)
            except DecodeError as error:
                raise damaged(f"an object that the log rests on is damaged ({error.code})") from error

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

    def _stored_checkpoint(self, name: str) -> "_Kept":
        known = [key.key for key in self._keys]
        try:
            data = self._files.read_checkpoint(name)
            if data is None:
                return _NONE
            note, signers = verify_note(data, dict.fromkeys([*known, *self._given]))
            checkpoint = Checkpoint.decode(note.text)
        except (DecodeError, SignatureInvalid) as error:
            raise damaged(f"the file {name} does not verify: {error.message}") from error
        if checkpoint.origin != self.origin:
            raise damaged(f"the file {name} is another log's")
        if checkpoint.size <= self._size and _in_force(self._keys, checkpoint.size) not in signers:
            raise damaged(f"the file {name} is not signed by the key that the log names there")
        return _Kept(data, note.text, checkpoint.size)

    def _compare(self, signed: "_Kept", *others: "_Kept") -> tuple["_Edge", bool]:
        """Read all rows and compare them with the tiles on disk and the checkpoints.

        Returns:
            The edge at the size of `signed`, and whether every tile up to there is on disk.

        Raises:
            StateConflict: they tell different stories.
        """
        claims = {kept.text: kept.size for kept in (signed, *others)}
        rotations = 0
        edge, published, complete = _Edge(), _Edge(), True
        self._rows.require_whole()
        for entry, leaf in self._rows.read(0, self._size):
            filled = edge.add(entry, leaf)
            size = edge.tree.size
            rotations += rows.ROTATES in entry
            if size in claims.values():
                text = Checkpoint(self.origin, size, edge.tree.root()).encode()
                if any(claim != text for claim, at in claims.items() if at == size):
                    raise damaged(f"the database does not give the root of the checkpoint over {size}")
            if size > signed.size:
                decode_stored(entry, size - 1)  # no signature covers it yet
                continue
            for tile, data in filled:
                complete &= self._stands(tile, data)
            if size == signed.size:
                published = edge.copy()
        if rotations != sum(rows.ROTATES in entry for _, entry, _ in self._rows.statements()):
            raise damaged("an entry that changes the log's key is missing from the database")
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
            raise damaged(f"{tile.path} differs from the database")
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
class _Kept:
    """A checkpoint that stands in the folder, with all its signatures.

    Attributes:
        data: the file's bytes, empty where there is none.
        text: what is signed of them.
        size: entries that it covers.
    """

    data: bytes
    text: bytes
    size: int

    @classmethod
    def of(cls, note: Note) -> Self:
        return cls(note.encode(), note.text, Checkpoint.decode(note.text).size)


_NONE: Final = _Kept(b"", b"", 0)


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

    draft: Draft
    awake: threading.Event = field(default_factory=threading.Event)
    leads: bool = False
    seq: int = -1
    error: MinshuError | None = None


def read_keys(table: rows.Rows, origin: str) -> list[tuple[int, VerifierKey]]:
    """Return the log's keys from its own entries, oldest first, each with the least tree that it signs.

    Raises:
        StateConflict: journal-identity: it is another log. journal-damaged: a rotation in it is not proven.
    """
    (entry, _), *_ = table.read(0, 1)
    first = decode_stored(entry, 0)
    if first.log != origin or first.kind != "log.open":
        raise _another_log()
    starts, keys = [0], [VerifierKey.parse(first.body["vkey"])]
    for seq, stored, statement in table.statements():
        stated = decode_stored(stored, seq)
        named = stated.body.get("checkpoint_sha256")
        if stated.kind == "log.successor" and sha256_digest(statement or b"") != named:
            raise damaged(f"entry {seq} names a checkpoint that is not the one beside it")
        if stated.kind != "key.rotate":
            continue  # the words stand elsewhere in it
        try:
            keys.append(follow(stated, statement, keys)[0])
        except (DecodeError, SignatureInvalid) as error:
            raise damaged(f"entry {seq} changes the key without proof ({error.code})") from error
        starts.append(seq + 1)
    return list(zip(starts, keys, strict=True))


def _another_log() -> StateConflict:
    return StateConflict(
        "the database was started by another log or key",
        code="journal-identity",
        hint="open it with the origin and key it was made with, or start a journal in a new place",
    )


def _rolled_back(have: int, seen: int) -> StateConflict:
    return StateConflict(
        f"the database holds {have} entries, but {seen} were already written out",
        code="journal-rolled-back",
        hint="this is an older copy of the database: put the newest one back, never continue the old one",
    )
