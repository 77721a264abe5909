"""A monitor: follows logs by their folders and raises its voice at the first thing that does not fit.

For each log the newest good checkpoint is kept in a folder of the monitor's own. On each look the log must
continue it: (1) it is no smaller, and at the same size the same; (2) the tree kept, read back from the tiles,
still has the root kept; (3) with the new entries, each strict, in its place and in time order, it gives
the signed root, which proves that nothing before was touched; (4) every change of key is proven, and the last
key signed; (5) cosignatures by known witnesses hold, older checkpoints are beginnings of this one; (6) what
others have witnessed of the log, and what any log keeps as evidence of a conflict, fits in.

The first look at a log verifies it whole. What was seen before the monitor began, others have to vouch for.
A folder is followed as the log that was found in it first: another one in its place does not fit, unless it
is the next generation and says so.
"""

import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Final

from audit.bundle import Bundle, entries_of, open_bundle, open_bundles, root_at, tile_reader
from audit.entries import Entry
from audit.findings import Check
from audit.folder import Folder
from audit.heads import Conflict, Demands, Head, Heads, contradict
from audit.merkle import (
    TILE_HEIGHT,
    TILE_WIDTH,
    TileBuilder,
    inclusion_proof,
    leaf_hash,
    split_tile,
    tile_at,
    verify_inclusion,
)
from audit.note import Checkpoint, Note, VerifierKey, verify_note
from audit.rotation import follow
from audit.trust import Trust
from audit.verify import verify_directory
from audit.witness import SPLIT_VIEW
from protocols.encoding import canonical_json, decode_json, digest_bytes, sha256_digest
from protocols.envelope import MAX_ENVELOPE_BYTES
from protocols.errors import DecodeError, InputError, MinshuError, SignatureInvalid

SCHEMA: Final = "minshu-watch/1"
PLACE: Final = "minshu-watch-place/1"
MIN_EVERY_S: Final = 1.0

_EVIDENCE: Final = "evidence"
_MAX_STATE_BYTES: Final = 4 << 20
_GENERATION = re.compile(r"(.+/journal/)([1-9][0-9]{0,8})")


class Inconsistent(Exception):
    """A log does not continue what was kept of it.

    Attributes:
        code: stable, kebab-case.
        what: what was found and what was expected.
        kept: the good checkpoint, empty if there was none.
        shown: the one that does not fit.
    """

    def __init__(self, code: str, what: str, kept: bytes, shown: bytes) -> None:
        super().__init__(what)
        self.code = code
        self.what = what
        self.kept = kept
        self.shown = shown


@dataclass(frozen=True, slots=True)
class Kept:
    """What the monitor goes by for one log.

    Attributes:
        origin: its name.
        checkpoint: the newest good one, a whole note.
        keys: the log's keys so far, oldest first.
        last: time of the newest entry.
        covered: size of the newest checkpoint seen with its quorum.
    """

    origin: str
    checkpoint: bytes
    keys: tuple[str, ...]
    last: str
    covered: int = 0

    @property
    def head(self) -> Checkpoint:
        """What the checkpoint says."""
        return Checkpoint.decode(Note.decode(self.checkpoint).text)

    def encode(self) -> bytes:
        """Return the form it is kept in."""
        return canonical_json(
            {
                "schema": SCHEMA,
                "origin": self.origin,
                "checkpoint": self.checkpoint.decode(),
                "keys": list(self.keys),
                "last": self.last,
                "covered": self.covered,
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> "Kept":
        """Read it back.

        Raises:
            DecodeError: it is not what `encode` writes.
        """
        match decode_json(data, limit=_MAX_STATE_BYTES):
            case {
                "schema": "minshu-watch/1",
                "origin": str(origin),
                "checkpoint": str(checkpoint),
                "keys": [*keys],
                "last": str(last),
                "covered": int(covered),
            }:
                kept = cls(origin, checkpoint.encode(), tuple(map(str, keys)), last, covered)
            case _:
                raise DecodeError("it is not what a monitor keeps", code="bad-watch-state")
        if kept.head.origin != origin:
            raise DecodeError("the checkpoint kept is of another log", code="bad-watch-state")
        return kept


@dataclass(slots=True)
class Store:
    """The monitor's own folder: `<sha256 hex of an origin>.json` per log, `evidence/`, and per folder that is
    followed `<sha256 hex of its path>.place`, which says whose log it is.
    """

    directory: Path

    def read(self, origin: str) -> Kept | None:
        """Return what is kept of a log, None if nothing is.

        Raises:
            InputError: the file is not what this program wrote.
        """
        path = self.directory / self.name_of(origin)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            kept = Kept.decode(data)
        except DecodeError:
            raise _damaged(path.name) from None
        if kept.origin != origin:
            raise _damaged(path.name)
        return kept

    def write(self, kept: Kept) -> None:
        """Keep it, in one step and flushed.

        Raises:
            OSError: it cannot be written; what was kept stays.
        """
        folder = Folder(self.directory)
        folder.write(self.name_of(kept.origin), kept.encode())
        folder.sync()

    def place(self, path: Path) -> str:
        """Return the origin of the log that is followed at a path, empty if none was found there so far.

        Raises:
            InputError: the file is not what this program wrote.
        """
        name = self._place(path)
        try:
            said = decode_json((self.directory / name).read_bytes(), limit=_MAX_STATE_BYTES)
        except FileNotFoundError:
            return ""
        except DecodeError:
            raise _damaged(name) from None
        match said:
            case {"schema": "minshu-watch-place/1", "path": str(kept), "origin": str(origin)} if (
                kept == _absolute(path) and origin
            ):
                return origin
        raise _damaged(name)

    def bind(self, path: Path, origin: str) -> None:
        """Keep whose log is followed at a path, in one step and flushed.

        Raises:
            OSError: it cannot be written; what was kept stays.
        """
        folder = Folder(self.directory)
        said = {"schema": PLACE, "path": _absolute(path), "origin": origin}
        folder.write(self._place(path), canonical_json(said))
        folder.sync()

    @property
    def has_evidence(self) -> bool:
        """Whether an inconsistency was found before. It does not go away because the files are put right."""
        folder = self.directory / _EVIDENCE
        return folder.is_dir() and any(folder.iterdir())

    def testify(self, found: Inconsistent, origin: str) -> Path:
        """Keep both checkpoints as evidence, for good; return the folder.

        Raises:
            OSError: it cannot be written.
        """
        digest = sha256_digest(found.kept + b"\0" + found.shown).removeprefix("sha256:")
        place = f"{_EVIDENCE}/{self.name_of(origin)[:16]}-{digest[:16]}"
        folder = Folder(self.directory)
        for name, data in (("kept", found.kept), ("shown", found.shown)):
            if data:
                folder.write(f"{place}/{name}", data)
        folder.write(f"{place}/what", f"{origin}\n{found.code}: {found.what}\n".encode())
        folder.sync()
        return self.directory / place

    @staticmethod
    def name_of(origin: str) -> str:
        """Return what the file is called that says what is kept of a log."""
        return f"{sha256_digest(origin.encode()).removeprefix('sha256:')}.json"

    @staticmethod
    def _place(path: Path) -> str:
        return f"{sha256_digest(_absolute(path).encode()).removeprefix('sha256:')}.place"


def _absolute(path: Path) -> str:
    """Return a path as the auditor named it, from the root on; octets that are no text are spelt out."""
    return os.fsencode(path.absolute()).decode("utf-8", "backslashreplace")


def _damaged(name: str) -> InputError:
    return InputError(
        f"{name} in the state folder is damaged",
        code="bad-watch-state",
        hint="restore it from a backup; without it, what was seen before is not compared any more",
    )


@dataclass(slots=True)
class _Seen:
    """One log on one look, found good."""

    bundle: Bundle
    kept: Kept
    trust: Trust
    witnessed: tuple[Head, ...]
    conflicts: tuple[Conflict, ...]

    @property
    def size(self) -> int:
        return self.kept.head.size

    def signed(self, note: Note) -> bool:
        """Tell whether a key that this log has, or had, signed a note: nobody else speaks for it."""
        keys = [*map(VerifierKey.parse, self.kept.keys), *self.trust.log_keys_ever]
        return any(
            (line.name, line.key_id) == (key.name, key.key_id) and key.holds(note.text, line.signature)
            for line in note.signatures
            for key in keys
            if key.name == self.kept.origin
        )


@dataclass(slots=True)
class Monitor:
    """Follows logs. Not thread-safe.

    Attributes:
        trust: what the auditor brings.
        store: where the newest good checkpoints are.
        tell: takes one line per event.
        now: the auditor's clock: what was cosigned later than that does not count. None: any time.
    """

    trust: Trust
    store: Store
    tell: Callable[[str], None]
    now: Callable[[], datetime] | None = None
    _trusts: dict[str, Trust] = field(default_factory=dict)
    _told: dict[str, str] = field(default_factory=dict)
    _noticed: set[tuple[str, str]] = field(default_factory=set)

    @property
    def follows_all(self) -> bool:
        """Whether every log could be read when it was looked at last."""
        return not self._told

    def look(self, bundles: Sequence[Bundle]) -> None:
        """Look at every log once, and at what they say of each other.

        Raises:
            Inconsistent: the first thing that does not fit; both checkpoints are evidence by then.
            InputError: what was kept before cannot be read.
            OSError: it cannot be kept.
        """
        seen = [each for each in map(self._one, bundles) if each is not None]
        logs = {each.kept.origin: each for each in seen}
        for each in seen:
            for head in each.witnessed:
                log = logs.get(head.origin)
                if log is not None and log.signed(head.note):
                    self._view(log, head.size, head.root, head.note.encode(), head.file)
            for conflict in each.conflicts:
                self._conflict(each, conflict, logs)

    def open(self, paths: Sequence[Path], labels: Sequence[str], stack: ExitStack) -> Iterator[Bundle]:
        """Open what is there; say once of each folder that it is not."""
        for path, label in zip(paths, labels, strict=True):
            try:
                bundle = stack.enter_context(open_bundle(path))
            except InputError as error:
                self._unreadable(label, error.message)
            else:
                bundle.label = label
                yield bundle

    def _one(self, bundle: Bundle) -> _Seen | None:
        try:
            data = bundle.read_checkpoint() or b""
            origin = Checkpoint.decode(Note.decode(data).text).origin
        except (DecodeError, OSError) as error:
            self._unreadable(bundle.label, _said(error))
            return None
        self._told.pop(bundle.label, None)
        kept = self.store.read(origin)
        bound = self.store.place(bundle.path)
        if bound == origin and kept is None:
            raise _damaged(self.store.name_of(origin))
        try:
            if bound not in ("", origin):
                self._replaced(bundle, bound, data)
            seen = self._first(bundle, origin, data) if kept is None else self._next(bundle, kept, data)
            if bound != origin:
                self.store.bind(bundle.path, origin)
        except (Inconsistent, InputError):
            raise
        except (DecodeError, SignatureInvalid, OSError) as error:
            code = error.code if isinstance(error, MinshuError) else "unreadable"
            raise self._evidence(origin, code, _said(error), kept.checkpoint if kept else b"", data) from None
        except Exception as error:
            # Whatever a log was made to break here, it is said of that log.
            what = f"looking at it ended with {type(error).__name__}"
            raise self._evidence(
                origin, "unreviewable", what, kept.checkpoint if kept else b"", data
            ) from error
        return seen

    def _replaced(self, bundle: Bundle, bound: str, data: bytes) -> None:
        """Another log than before may lie in a folder only if it is the next generation, and says so."""
        checkpoint = Checkpoint.decode(Note.decode(data).text)
        before, after = map(_GENERATION.fullmatch, (bound, checkpoint.origin))
        what = f"another log, {_shown(checkpoint.origin)}, lies where it was followed"
        kept = self.store.read(bound)
        next_one = before and after and after[1] == before[1] and int(after[2]) == int(before[2]) + 1
        if next_one and checkpoint.size > 1:
            entry_data = next(entries_of(bundle, checkpoint.size, 1))
            proof = inclusion_proof(tile_reader(bundle, checkpoint.size), 1, checkpoint.size)
            verify_inclusion(leaf_hash(entry_data), 1, checkpoint.size, proof, checkpoint.root)
            entry = Entry.decode(entry_data)
            if entry.kind == "log.successor" and entry.body.get("log") == bound:
                self._follows(entry, data)
                return
            what = f"{what}, and does not say that it follows it"
        raise self._evidence(bound, "another-log", what, kept.checkpoint if kept else b"", data)

    def _unreadable(self, label: str, what: str) -> None:
        """Say once that a log cannot be read; that it is gone proves nothing."""
        if self._told.get(label) != what:
            self._told[label] = what
            self.tell(f"{label}: cannot be followed: {what}")

    def _evidence(self, origin: str, code: str, what: str, kept: bytes, shown: bytes) -> Inconsistent:
        found = Inconsistent(code, what, kept, shown)
        place = self.store.testify(found, origin)
        self.tell(f"{_shown(origin)}: INCONSISTENT: {what} [{code}]")
        self.tell(f"{_shown(origin)}: kept as evidence: {place}")
        return found

    # -- one log -------------------------------------------------------------------------------------------

    def _first(self, bundle: Bundle, origin: str, data: bytes) -> _Seen:
        trust, _ = self.trust.of(bundle)
        self._trusts[origin] = trust
        conflicts: list[Conflict] = []
        followed: list[Entry] = []

        def visit(entry: Entry) -> None:
            if entry.kind == "witness.conflict":
                conflicts.append(Conflict.of(entry))
            elif entry.kind == "log.successor":
                followed.append(entry)

        verdict = verify_directory(bundle, trust.log_keys, visit=visit)
        if not verdict.ok:
            problem = verdict.problems[0]
            raise self._evidence(origin, problem.code, f"{problem.where}: {problem.what}", b"", data)
        for entry in followed:
            self._follows(entry, data)
        self.tell(f"{_shown(origin)}: first look: {verdict.size} entries, until {verdict.last}")
        kept = Kept(origin, data, verdict.keys, verdict.last)
        return self._settle(bundle, kept, trust, conflicts, 0)

    def _follows(self, entry: Entry, data: bytes) -> None:
        """A log that follows another one ends that where it was last seen, or later."""
        body = entry.body
        said = {"log", "size", "root"} <= body.keys() and _node(body["log"]) == _node(entry.log)
        before = self.store.read(body["log"]) if said else None
        if before is None:
            return
        head = before.head
        root = digest_bytes(body["root"])
        if head.size > body["size"] or (head.size == body["size"] and head.root != root):
            what = f"a new generation follows it at {body['size']} entries, seen were {head.size}"
            raise self._evidence(before.origin, "shortened", what, before.checkpoint, data)

    def _next(self, bundle: Bundle, kept: Kept, data: bytes) -> _Seen:
        origin, before = kept.origin, kept.head
        now = Checkpoint.decode(Note.decode(data).text)
        # (1)
        if now.size < before.size:
            what = f"it shows {now.size} entries, {before.size} were seen before"
            raise self._evidence(origin, "shortened", what, kept.checkpoint, data)
        if now.size == before.size and now.root != before.root:
            what = f"another root over the same {now.size} entries"
            raise self._evidence(origin, "split-view", what, kept.checkpoint, data)
        # (2)
        tree = _tree_at(bundle, now.size, before.size)
        if tree.root() != before.root:
            what = f"its first {before.size} entries are not those seen before"
            raise self._evidence(origin, "rewritten", what, kept.checkpoint, data)
        # (3)
        trust = self._trusts.get(origin)
        if trust is None:
            trust, _ = self.trust.of(bundle)
        keys = [VerifierKey.parse(key) for key in kept.keys]
        conflicts: list[Conflict] = []
        rosters = False
        last = kept.last
        for seq, entry_data in enumerate(entries_of(bundle, now.size, before.size), before.size):
            entry = Entry.decode(entry_data)
            _require_place(entry, seq, origin, last)
            last = entry.time
            if entry.kind == "key.rotate":
                keys.append(_rotated(bundle, entry, keys, now.size))
            elif entry.kind == "witness.conflict":
                conflicts.append(Conflict.of(entry))
            rosters |= entry.kind in ("roster.activate", "roster.published")
            for tile, expected in tree.add(leaf_hash(entry_data)):
                if bundle.read_tile(tile) != expected:
                    raise DecodeError(f"{tile.path} does not follow from the entries", code="tile-mismatch")
        for tile, expected in tree.partial_tiles():
            if bundle.read_tile(tile) != expected:
                raise DecodeError(f"{tile.path} does not follow from the entries", code="tile-mismatch")
        if tree.root() != now.root:
            raise DecodeError("the entries do not give the signed root", code="root-mismatch")
        if rosters:
            trust, _ = self.trust.of(bundle)
        self._trusts[origin] = trust
        # (4)
        _, signers = verify_note(data, keys)
        if keys[-1] not in signers or not set(trust.log_keys).intersection(keys):
            raise SignatureInvalid("the checkpoint is not signed by this log's last key", code="wrong-key")
        grown = replace(kept, checkpoint=data, keys=tuple(map(str, keys)), last=last)
        return self._settle(bundle, grown, trust, conflicts, before.size)

    def _settle(
        self, bundle: Bundle, kept: Kept, trust: Trust, conflicts: Sequence[Conflict], before: int
    ) -> _Seen:
        """Check the other checkpoints in the folder, then keep what was found good."""
        origin, size = kept.origin, kept.head.size
        chain = [VerifierKey.parse(key) for key in kept.keys]
        signed, cosigned, clock, others = (Check(name) for name in ("signed", "witnessed", "time", "others"))
        now = None if self.now is None else self.now()
        looking = Heads(bundle, trust, origin, size, chain, Demands(), now)
        # (5)
        own = looking.own(signed, cosigned, clock)
        witnessed = looking.others(others)
        for finding in (*signed.findings, *others.findings):
            what = f"{finding.where}: {finding.what}"
            raise self._evidence(origin, finding.code, what, kept.checkpoint, _note(bundle, finding.where))
        for line in (
            *(f"{finding.where}: {finding.what} [{finding.code}]" for finding in clock.findings),
            *looking.notices,
        ):
            if (origin, line) not in self._noticed:
                self._noticed.add((origin, line))
                self.tell(f"{_shown(origin)}: {line}")
        covered = max((head.size for head in own if head.satisfied), default=0)
        if before and size > before:
            new = "1 new entry" if size == before + 1 else f"{size - before} new entries"
            self.tell(f"{_shown(origin)}: {new}, now {size}, until {kept.last}")
        if covered > kept.covered:
            by = next(", ".join(head.votes) for head in own if head.satisfied and head.size == covered)
            self.tell(f"{_shown(origin)}: a quorum has seen {covered} entries" + (f": {by}" if by else ""))
        kept = replace(kept, covered=max(covered, kept.covered))
        self.store.write(kept)
        return _Seen(bundle, kept, trust, witnessed, tuple(conflicts))

    # -- what they say of each other -----------------------------------------------------------------------

    def _view(self, log: _Seen, size: int, root: bytes, note: bytes, where: str) -> None:
        """(6) A checkpoint that somebody shows of a log is one of its beginnings, as far as it has come."""
        if size <= log.size and root_at(log.bundle, log.size, size) != root:
            what = f"{where} shows another root over its first {size} entries"
            raise self._evidence(log.kept.origin, "split-view", what, log.kept.checkpoint, note)

    def _conflict(self, by: _Seen, conflict: Conflict, logs: Mapping[str, _Seen]) -> None:
        """(6) Evidence that a witness kept counts if the log in question has signed all of it.

        That a witness was shown no proof says nothing of a log that has both trees in it.
        """
        log = logs.get(conflict.log)
        keys = [*by.trust.log_keys_ever, *map(VerifierKey.parse, log.kept.keys if log else ())]
        shown = conflict.shown(by.bundle, keys)
        where = f"entry {conflict.seq} of {_shown(by.kept.origin)}"
        if contradict(shown):
            what = f"it signed two histories of {shown[0][0].size} entries ({where})"
            raise self._evidence(conflict.log, "split-view", what, shown[0][1], shown[1][1])
        if log is not None:
            for checkpoint, data in shown:
                self._view(log, checkpoint.size, checkpoint.root, data, where)
            whole = len(shown) == 2 and all(checkpoint.size <= log.size for checkpoint, _ in shown)
            if whole and conflict.code != SPLIT_VIEW:
                return
        self.tell(f"{where} speaks of two views of {_shown(conflict.log)}; what is here does not show them")


def _tree_at(bundle: Bundle, size: int, at: int) -> TileBuilder:
    """Return the tree of the first `at` entries of a log of `size`, by its tiles.

    Raises:
        DecodeError, OSError: a tile is missing, too short or unreadable.
    """
    read = tile_reader(bundle, size)
    levels: list[list[bytes]] = []
    while at >> (TILE_HEIGHT * len(levels)):
        level = len(levels)
        complete = at >> (TILE_HEIGHT * level)
        tile = tile_at(at, level, complete // TILE_WIDTH) if complete % TILE_WIDTH else None
        levels.append([] if tile is None else split_tile(tile, read(tile)))
    return TileBuilder(at, levels)


def _require_place(entry: Entry, seq: int, origin: str, last: str) -> None:
    if entry.seq != seq or entry.log != origin or entry.kind == "log.open":
        raise DecodeError(f"entry {seq} is not in its place", code="wrong-seq")
    if entry.time < last and entry.kind != "clock.step":
        raise DecodeError(f"entry {seq} is earlier than the one before", code="time-backwards")


def _rotated(bundle: Bundle, entry: Entry, keys: Sequence[VerifierKey], size: int) -> VerifierKey:
    """Return the key that a change hands over to, after checking its proof and the trees that it names."""
    statement = bundle.read_object(entry.body.get("envelope_sha256", ""), MAX_ENVELOPE_BYTES)
    following, rotation = follow(entry, statement, keys)
    for at, root in (
        (entry.seq, entry.body["root"]),
        (rotation.journal_size, rotation.journal_root),
    ):
        if root_at(bundle, size, at) != digest_bytes(root):
            raise DecodeError(f"entry {entry.seq} names the root of another log", code="wrong-root")
    return following


def _note(bundle: Bundle, name: str) -> bytes:
    try:
        return bundle.read_checkpoint(name) or b""
    except (DecodeError, OSError):
        return b""


def _said(error: MinshuError | OSError) -> str:
    if isinstance(error, MinshuError):
        return error.message
    return error.strerror or str(error) or "it cannot be read"


def _shown(origin: str) -> str:
    return origin if origin.isprintable() else ascii(origin)


def _node(origin: str) -> str:
    return origin.partition("/journal/")[0]


def watch(
    paths: Sequence[Path],
    trust: Trust,
    state: Path,
    *,
    tell: Callable[[str], None],
    every_s: float | None = 60.0,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], datetime] | None = None,
) -> bool:
    """Follow logs until one is inconsistent, or until interrupted; return whether all was well.

    All is well if every log could be followed on the last look, and none was inconsistent.

    After an inconsistency it does not start again before its evidence was moved away.

    Args:
        paths: folders of logs, or bundles.
        trust: what the auditor brings.
        state: the monitor's own folder; made when it is not there.
        tell: takes one line per event.
        every_s: seconds between two looks; None: one look.
        sleep: waits that long.
        now: the auditor's clock; see `Monitor`.

    Raises:
        InputError: a folder is not there, or another monitor uses `state`, or what it holds is damaged.
        OSError: what was seen cannot be kept.
    """
    with _locked(state):
        store = Store(state)
        if store.has_evidence:
            tell("evidence of an earlier inconsistency is kept in evidence/: look at it, then move it away")
            return False
        monitor = Monitor(trust, store, tell, now)
        with _opened(paths) as bundles:
            labels = [bundle.label for bundle in bundles]
        try:
            while True:
                with ExitStack() as stack:
                    monitor.look([*monitor.open(paths, labels, stack)])
                if every_s is None:
                    return monitor.follows_all
                sleep(every_s)
        except Inconsistent:
            return False
        except KeyboardInterrupt:
            return monitor.follows_all


@contextmanager
def _opened(paths: Sequence[Path]) -> Iterator[list[Bundle]]:
    bundles = open_bundles(paths)
    try:
        yield bundles
    finally:
        for bundle in bundles:
            bundle.close()


@contextmanager
def _locked(state: Path) -> Iterator[None]:
    state.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                "another monitor uses this state folder",
                code="state-locked",
                hint="give each monitor a --state folder of its own",
            ) from None
        yield
    finally:
        os.close(descriptor)
