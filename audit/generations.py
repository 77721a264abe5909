"""A new generation of a log: what follows a log that cannot be continued, and says so in its first entries.

A database restored from a backup is shorter than what witnesses and auditors have seen; to append to it would
fork the log. So the log ends where it was seen last, and a new one begins under the next number: `log.open`
and `log.successor` name the newest checkpoint of the log before that anyone still has.

(1) Nobody else has the journal open, and it is the one named.
(2) The newest checkpoint of the log before is found: in the folder, or given.
(3) In one transaction, the old tables are renamed and the new ones begin with the two entries.
(4) The old folder is renamed to `<folder>.<generation>`, and the new one published.

A crash before (3) commits leaves everything as it was; after it, doing it once more finishes it.
"""

import os
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from audit import rows
from audit.entries import Entry, check_statement, format_time
from audit.folder import CHECKPOINT, COSIGNED, OLD, Folder
from audit.log import Journal, read_keys
from audit.note import ED25519, Checkpoint, Note, VerifierKey, verify_note
from audit.rows import storage
from protocols.encoding import sha256_digest
from protocols.errors import DecodeError, InputError, SignatureInvalid, StateConflict
from protocols.ids import Digest

_ORIGIN = re.compile(r"(.+/journal/)([1-9][0-9]{0,8})")


@dataclass(frozen=True, slots=True)
class Succession:
    """How one log follows another.

    Attributes:
        generation: the new log's number.
        before: the newest known checkpoint of the log before, as its note says it.
        checkpoint_sha256: digest of that note, which is an object of the new log.
        archive: where the old folder lies.
    """

    generation: int
    before: Checkpoint
    checkpoint_sha256: Digest
    archive: Path


def succeed(
    directory: Path,
    database: Path,
    *,
    origin_before: str,
    origin_after: str,
    signer: Callable[[bytes], bytes],
    public_key: bytes,
    now: Callable[[], datetime],
    reason: str,
    known_checkpoint: bytes | None = None,
) -> Succession:
    """Begin the log `origin_after` where `origin_before` cannot go on; `Journal.open` continues it then.

    The log before need not verify: it may be rolled back or damaged. What there is of it is kept, its folder
    beside the new one and its tables under other names. Other tables in the database stay as they are.

    Args:
        directory: the folder of the log before, in whose place the new log's comes.
        database: its database.
        origin_before: such as `police.gz.example/node-a/journal/1`.
        origin_after: the same with the next number.
        signer: signs for the new log: returns the 64-byte Ed25519 signature of what it is given.
        public_key: 32 bytes, the public half; the log before may have been signed with it, too.
        now: the clock; must return a time with a zone.
        reason: a kebab-case code, such as `restored-backup`.
        known_checkpoint: a signed checkpoint of the log before, perhaps newer than what the folder holds; a
            witness keeps one.

    Raises:
        InputError: the new origin does not follow the old one, or `reason` is no code.
        DecodeError: `known_checkpoint` is none.
        SignatureInvalid: `known_checkpoint` is not signed by a key of the log before.
        StateConflict: journal-locked: it is open. journal-identity: the database is another log's.
            no-checkpoint: none of the log before is known. archive-exists: its place is taken.
            journal-write-failed, journal-unpublished: do it once more, when the disk can be written again.
    """
    generation = _next(origin_before, origin_after)
    _require_reason(reason, generation)
    archive = directory.with_name(f"{directory.name}.{generation - 1}")
    with ExitStack() as resources, storage():
        # (1)
        rows.lock_both(resources, directory, database)
        connection = rows.open_writer(resources, database)
        table = rows.Rows(rows.open_reader(resources, database))
        found = _log_of(table)
        if found not in (origin_before, origin_after, None):
            raise StateConflict(
                "the database is another log's",
                code="journal-identity",
                hint="name the log that this database was made for",
            )
        if found != origin_after:
            if archive.exists():
                raise StateConflict(
                    "a folder already lies where the old log's is to go",
                    code="archive-exists",
                    hint="move it away, and keep it: it may be evidence",
                )
            # (2)
            keys = _keys_of(table, origin_before, public_key)
            note, before, signed_by = _newest(directory, origin_before, keys, known_checkpoint)
            # (3)
            begin = _Beginning(origin_after, generation, note, before, str(signed_by))
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                rows.set_aside(connection, generation - 1)
                rows.make_tables(connection)
                for entry in begin.entries(VerifierKey(origin_after, ED25519, public_key), now(), reason):
                    rows.insert(connection, entry.seq, entry.encode())
                rows.insert_statement(connection, 1, note)
        # (4)
        if not archive.exists() and _names(directory) != origin_after:
            directory.rename(archive)
            _flush(directory.parent)
    with Journal.open(
        directory,
        database=database,
        origin=origin_after,
        signer=signer,
        public_key=public_key,
        now=now,
    ) as journal:
        (successor,) = list(journal.entries(1))[:1]
        digest = Digest(successor.body["checkpoint_sha256"])
        note = journal.get_object(digest) or b""
    return Succession(generation, Checkpoint.decode(Note.decode(note).text), digest, archive)


def _next(before: str, after: str) -> int:
    """Return the number of the log `after`, which follows `before`."""
    old, new = _ORIGIN.fullmatch(before), _ORIGIN.fullmatch(after)
    if old is None or new is None or (new[1], int(new[2])) != (old[1], int(old[2]) + 1):
        raise InputError(
            "the new log is not the next generation of the one before",
            code="wrong-generation",
            hint="a log <node>/journal/<n> is followed by <node>/journal/<n + 1>",
        )
    return int(new[2])


def _log_of(table: rows.Rows) -> str | None:
    """Return the name of the log that the tables hold; None if they hold none, or do not say."""
    try:
        return next(Entry.decode(entry).log for entry, _ in table.read(0, 1))
    except (StateConflict, DecodeError):
        return None


def _keys_of(table: rows.Rows, origin: str, public_key: bytes) -> list[VerifierKey]:
    """Return the keys that the log before may have been signed with, the newest first."""
    try:
        proven = [key for _, key in read_keys(table, origin)]
    except StateConflict:
        proven = []  # empty or damaged: there is still the key of whoever succeeds itself
    return list(dict.fromkeys([VerifierKey(origin, ED25519, public_key), *reversed(proven)]))


def _newest(
    directory: Path, origin: str, keys: Sequence[VerifierKey], known: bytes | None
) -> tuple[bytes, Checkpoint, VerifierKey]:
    """Return the note of the log's newest checkpoint, what it says, and the log's key that signed it.

    Raises:
        DecodeError, SignatureInvalid: the given one is none of this log.
        StateConflict: no-checkpoint.
    """
    found = []
    if known is not None:
        found.append((known, *_signed(known, origin, keys)))
    folder = Folder(directory)
    for name in (CHECKPOINT, COSIGNED, OLD):
        try:
            note = folder.read_checkpoint(name)
            if note is not None:
                found.append((note, *_signed(note, origin, keys)))
        except (DecodeError, SignatureInvalid, OSError):
            continue  # damaged, or another's: it stays in the archive
    if not found:
        raise StateConflict(
            "no signed checkpoint of the log before is known",
            code="no-checkpoint",
            hint="give the newest one that a witness or an auditor keeps",
        )
    # Of one size, the one that more witnesses signed says more.
    return max(found, key=lambda each: (each[1].size, len(each[0])))


def _signed(data: bytes, origin: str, keys: Sequence[VerifierKey]) -> tuple[Checkpoint, VerifierKey]:
    note, signers = verify_note(data, keys)
    checkpoint = Checkpoint.decode(note.text)
    if checkpoint.origin != origin:
        raise SignatureInvalid("the checkpoint is another log's", code="wrong-origin")
    return checkpoint, next(key for key in keys if key in signers)


@dataclass(frozen=True, slots=True)
class _Beginning:
    """What the new log begins with."""

    origin: str
    generation: int
    note: bytes
    before: Checkpoint
    previous_vkey: str

    def entries(self, key: VerifierKey, moment: datetime, reason: str) -> list[Entry]:
        checkpoint = sha256_digest(self.note)
        opened = {
            "vkey": str(key),
            "generation": self.generation,
            "previous_vkey": self.previous_vkey,
            "checkpoint_sha256": checkpoint,
        }
        follows = {
            "checkpoint_sha256": checkpoint,
            "log": self.before.origin,
            "size": self.before.size,
            "root": f"sha256:{self.before.root.hex()}",
            "generation": self.generation,
            "code": reason,
        }
        said = (("log.open", opened), ("log.successor", follows))
        return [
            Entry(self.origin, seq, format_time(moment), kind, "", 0, None, "", body, ())
            for seq, (kind, body) in enumerate(said)
        ]


def _require_reason(reason: str, generation: int) -> None:
    """Refuse a reason that an entry could not carry, before anything is touched."""
    try:
        check_statement(
            "log.successor",
            {"checkpoint_sha256": sha256_digest(b""), "code": reason, "generation": generation},
        )
    except DecodeError:
        raise InputError(
            "the reason is not a code",
            code="bad-reason",
            hint="say it in kebab-case, such as restored-backup",
        ) from None


def _names(directory: Path) -> str | None:
    """Return the origin that the folder's checkpoint names; None if it has none that can be read."""
    try:
        note = Folder(directory).read_checkpoint()
        return None if note is None else Checkpoint.decode(Note.decode(note).text).origin
    except (DecodeError, OSError):
        return None


def _flush(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
