"""Verification of a log from its folder alone: no database, no network, no trust in whoever handed it over.

`verify_directory` recomputes everything from the entries: (1) the checkpoint is signed, (2) every entry is
strict, in its place, in time order and of no earlier version than the one before, (3) every tile follows from
the entries, (4) so does the signed root, (5) and the root of an earlier checkpoint that the auditor kept, (6)
every change of the log's key is proven by a statement over this very log that the old and the new key have
signed, (7) the last key of that chain signed the checkpoint, and a key that the auditor holds is one of the
chain, (8) and, if asked for, every object that an entry names is what its digest says, and carries a valid
signature where it is a signed one.

It streams: memory is a few bundles of 256 entries, the tree's right edge and the log's keys. What can be said
of a bundle by itself is found out in several processes (`audit.replay`); the verdict is the same as in one.

Without (5) an older copy of the log, or another history under the same key, verifies as well: a signature
says neither that it is the newest nor that it is the only one. Keep the checkpoint of every log you verify.
And hold the newest key you can have: who steals a key that was given up can branch a log off before its
rotation, and only those who trust nothing newer would believe it.
"""

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from audit.entries import Entry
from audit.folder import Folder
from audit.merkle import (
    ENTRIES,
    TILE_WIDTH,
    Tile,
    TileBuilder,
    cut_tile,
    decode_bundle,
    root_from_tiles,
    tile_at,
)
from audit.note import Checkpoint, Note, VerifierKey, verify_note
from audit.replay import Flaw, LogReader, ObjectCheck, Replayed, Task, replay, version_back, went_back
from audit.rotation import follow
from protocols.encoding import b64encode, digest_bytes
from protocols.envelope import MAX_ENVELOPE_BYTES
from protocols.errors import DecodeError, InputError, SignatureInvalid

MAX_PROBLEMS: Final = 100
"""Further problems are counted, not described."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that does not hold.

    Attributes:
        code: stable, kebab-case.
        where: file or entry.
        what: what was found and what was expected; never an entry's content.
    """

    code: str
    where: str
    what: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What verification found. Only where `ok`, the other attributes are facts about the log.

    Attributes:
        origin: the log's name, empty if there is no readable checkpoint.
        size: entries the checkpoint covers.
        root: its root, 32 bytes.
        keys: the log's verifier keys, oldest first; empty if the log does not say.
        signed_by: labels of the keys, of the log or trusted, that signed its checkpoint.
        kinds: entries by kind.
        first: time of the first entry, empty if there is none.
        last: time of the last entry.
        problems: at most `MAX_PROBLEMS`.
        problem_count: how many there are.
        objects: objects that entries name and that were looked at, once for each naming.
        objects_missing: of those, how many are not there: deleted, or never handed out.
    """

    origin: str
    size: int
    root: bytes
    keys: tuple[str, ...]
    signed_by: tuple[str, ...]
    kinds: Mapping[str, int]
    first: str
    last: str
    problems: tuple[Problem, ...]
    problem_count: int
    objects: int = 0
    objects_missing: int = 0

    @property
    def ok(self) -> bool:
        """Whether everything holds."""
        return self.problem_count == 0

    def document(self) -> dict[str, Any]:
        """Return the verdict as plain JSON values."""
        return {
            "ok": self.ok,
            "origin": self.origin,
            "size": self.size,
            "root": b64encode(self.root),
            "keys": list(self.keys),
            "signed_by": list(self.signed_by),
            "kinds": dict(sorted(self.kinds.items())),
            "first": self.first,
            "last": self.last,
            "problem_count": self.problem_count,
            "problems": [{"code": p.code, "where": p.where, "what": p.what} for p in self.problems],
        }


def verify_directory(
    source: Path | LogReader,
    keys: Sequence[VerifierKey],
    *,
    earlier: bytes | None = None,
    visit: Callable[[Entry], None] | None = None,
    objects: ObjectCheck | None = None,
) -> Verdict:
    """Verify the log in `source`.

    Args:
        source: the log's folder, or a reader of it. Of the objects, nothing is read but what rotations rest
            on, unless `objects` asks for more. A reader that can be pickled is used in several processes.
        keys: verifier keys received on another way than the log; one of them is, or once was, the log's.
        earlier: a checkpoint of the same log, kept from an earlier verification.
        visit: called here with every well-formed entry in order, so that further checks need no second
            reading; what it is given was verified by itself, not yet as part of the tree.
        objects: how to check the objects that entries name; None to leave them out.

    Raises:
        InputError: `source` is no directory, or `earlier` is no checkpoint or was changed.
    """
    reader = _log_folder(source) if isinstance(source, Path) else source
    run = _Run(reader, visit, keys, objects, _kept(earlier))
    found = run.read_checkpoint()
    if found is None:
        return run.verdict(None, ())
    data, checkpoint = found
    run.replay(checkpoint)
    if checkpoint.size == 0:
        run.problem("empty-log", "checkpoint", "it covers no entry, but a journal begins with log.open")
    if earlier is not None:
        run.known_earlier(earlier)
    return run.verdict(checkpoint, run.signers(data, checkpoint))


def read_entries(directory: Path) -> Iterator[Entry]:
    """Yield the entries that the checkpoint in `directory` covers, in order. Nothing is verified.

    Raises:
        InputError: no such folder, or no checkpoint in it.
        DecodeError: a file or entry is missing or cannot be parsed.
        OSError: a file cannot be read.
    """
    folder = _log_folder(directory)
    data = folder.read_checkpoint()
    if data is None:
        raise InputError(
            "there is no checkpoint in this folder",
            code="no-checkpoint",
            hint="give the folder that holds checkpoint and tile/",
        )
    size = Checkpoint.decode(Note.decode(data).text).size
    for index in range(-(-size // TILE_WIDTH)):
        bundle = tile_at(size, ENTRIES, index)
        stored = folder.read_tile(bundle)
        if stored is None:
            raise DecodeError(f"{bundle.path} is missing", code="missing-entries")
        for entry in decode_bundle(stored, bundle.width):
            yield Entry.decode(entry)


def _kept(earlier: bytes | None) -> Checkpoint | None:
    if earlier is None:
        return None
    try:
        return Checkpoint.decode(Note.decode(earlier).text)
    except DecodeError as error:
        raise _bad_earlier(error) from None


def _bad_earlier(error: DecodeError | SignatureInvalid) -> InputError:
    return InputError(
        f"the earlier checkpoint does not verify: {error.message}",
        code="bad-earlier-checkpoint",
        hint="give the checkpoint file of this log as it was when you verified it before",
    )


def _log_folder(directory: Path) -> Folder:
    if not directory.is_dir():
        raise InputError(
            "there is no such folder",
            code="no-folder",
            hint="give the folder that holds checkpoint and tile/",
        )
    return Folder(directory)


@dataclass(frozen=True, slots=True)
class _Claim:
    """What the log says of its own past: the root of its first `size` entries."""

    where: str
    size: int
    root: bytes


@dataclass(slots=True)
class _Run:
    """One verification under way."""

    reader: LogReader
    visit: Callable[[Entry], None] | None
    trusted: Sequence[VerifierKey]
    objects: ObjectCheck | None
    earlier: Checkpoint | None = None
    problems: list[Problem] = field(default_factory=list)
    problem_count: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    keys: list[VerifierKey] = field(default_factory=list)
    claims: list[_Claim] = field(default_factory=list)
    first: str = ""
    last: str = ""
    v: int = 0
    seen: int = 0
    missing: int = 0

    def problem(self, code: str, where: str, what: str) -> None:
        self.problem_count += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(Problem(code, where, what))

    def say(self, flaw: Flaw) -> None:
        self.problem(flaw.code, flaw.where, flaw.what)

    def verdict(self, checkpoint: Checkpoint | None, signers: Sequence[VerifierKey]) -> Verdict:
        return Verdict(
            origin=checkpoint.origin if checkpoint else "",
            size=checkpoint.size if checkpoint else 0,
            root=checkpoint.root if checkpoint else b"",
            keys=tuple(map(str, self.keys)),
            signed_by=tuple(signer.label for signer in signers),
            kinds=dict(self.kinds),
            first=self.first,
            last=self.last,
            problems=tuple(self.problems),
            problem_count=self.problem_count,
            objects=self.seen,
            objects_missing=self.missing,
        )

    def read_checkpoint(self) -> tuple[bytes, Checkpoint] | None:
        """(1) The checkpoint is signed by a trusted key, or may yet be by one that the log itself names."""
        try:
            data = self.reader.read_checkpoint()
            if data is None:
                self.problem("no-checkpoint", "checkpoint", "the folder holds none")
                return None
            checkpoint = Checkpoint.decode(Note.decode(data).text)
            try:
                verify_note(data, self.trusted)
            except SignatureInvalid as error:
                # Where a trusted key is named as this log's would be, it may have handed over to another.
                named = any(key.name == checkpoint.origin for key in self.trusted)
                if error.code != "no-known-signature" or not named:
                    raise
        except (DecodeError, SignatureInvalid) as error:
            self.problem(error.code, "checkpoint", error.message)
            return None
        except OSError as error:
            self.problem("unreadable", "checkpoint", error.strerror or "it cannot be read")
            return None
        if checkpoint.extensions:
            self.problem("extension-lines", "checkpoint", "it carries lines that no one can check")
        return data, checkpoint

    def signers(self, data: bytes, checkpoint: Checkpoint) -> tuple[VerifierKey, ...]:
        """(7) The log's last key signed the checkpoint, and the auditor holds one of its keys."""
        try:
            _, signers = verify_note(data, dict.fromkeys([*self.keys, *self.trusted]))
        except SignatureInvalid as error:
            self.problem(error.code, "checkpoint", error.message)
            return ()
        names = {signer.name for signer in signers}
        if checkpoint.origin not in names.intersection(key.name for key in self.keys[-1:] or signers):
            self.problem("wrong-origin", "checkpoint", "its origin is not the name of the key that signed it")
        elif self.keys and self.keys[-1] not in signers:
            self.problem("wrong-key", "checkpoint", "not signed by the key that the log itself named last")
        elif not set(self.trusted).intersection(self.keys or signers):
            self.problem("no-known-signature", "checkpoint", "none of the trusted keys ever was this log's")
        return signers

    def known_earlier(self, earlier: bytes) -> None:
        """(5) What the auditor kept is signed by a key of this log."""
        try:
            verify_note(earlier, dict.fromkeys([*self.keys, *self.trusted]))
        except SignatureInvalid as error:
            if error.code != "no-known-signature":
                raise _bad_earlier(error) from None
            self.problem(error.code, "earlier checkpoint", "none of the keys of this log signed it")

    def replay(self, checkpoint: Checkpoint) -> None:
        """Rebuild the tree from the entries."""
        tree = TileBuilder()
        self.extends(tree, checkpoint)
        with closing(self.replayed(checkpoint)) as bundles:
            for index, bundle in enumerate(bundles):
                self.take(bundle)
                if not bundle.usable:
                    where = tile_at(checkpoint.size, ENTRIES, index).path
                    self.problem("stopped", where, "without these entries the rest cannot be checked")
                    return
                if bundle.root:
                    self.compare(tree.add_tile(bundle.root))
                    self.extends(tree, checkpoint)
                for leaf in bundle.leaves:
                    self.compare(tree.add(leaf))
                    self.extends(tree, checkpoint)
        self.compare(tree.partial_tiles())
        # (4) The signed root.
        if tree.root() != checkpoint.root:
            self.problem("root-mismatch", "checkpoint", "the entries do not give the signed root")
        for claim in self.claims:
            self.check_claim(claim, checkpoint.size)

    def replayed(self, checkpoint: Checkpoint) -> Generator[Replayed]:
        """(2) (8) Have every bundle verified by itself."""
        signers = None
        if self.objects is not None:
            signers = {kind: list(keys) for kind, keys in self.objects.signers.items()}
        task = Task(checkpoint.origin, checkpoint.size, self.visit is not None, signers)
        # The tree that the auditor has seen may have ended within a bundle.
        within = [self.earlier.size // TILE_WIDTH] if self.earlier is not None else []
        return replay(self.reader, task, within)

    def take(self, bundle: Replayed) -> None:
        """Add what one bundle came to."""
        for step in bundle.steps:
            if isinstance(step, Flaw):
                self.say(step)
            elif isinstance(step, bytes):
                self.key(Entry.reread(step))
            elif bundle.first < self.last:
                self.say(went_back(step))
        if bundle.versions is not None:
            seq, first_v, last_v = bundle.versions
            if first_v < self.v:
                self.say(version_back(seq))
            self.v = last_v
        self.first = self.first or bundle.first
        self.last = bundle.last or self.last
        self.kinds.update(bundle.kinds)
        self.seen += bundle.objects
        self.missing += bundle.missing
        if self.visit is not None:
            for entry in bundle.entries:
                self.visit(Entry.reread(entry))

    def extends(self, tree: TileBuilder, checkpoint: Checkpoint) -> None:
        """(5) The tree so far is the one the auditor has seen, where it is as large."""
        kept = self.earlier
        if kept is None or tree.size not in (kept.size, 0):
            return
        if tree.size == 0 and kept.origin != checkpoint.origin:
            self.problem("wrong-origin", "earlier checkpoint", "it is another log's")
        elif tree.size == 0 and kept.size > checkpoint.size:
            self.problem(
                "shortened", "checkpoint", f"it covers {checkpoint.size} entries, before {kept.size}"
            )
        if tree.size == kept.size and tree.root() != kept.root:
            self.problem("rewritten", "earlier checkpoint", f"its {kept.size} entries are not these any more")

    def key(self, entry: Entry) -> None:
        """Follow the log's keys."""
        if entry.kind == "key.rotate":
            self.rotation(entry)
        elif not self.keys:
            self.keys.append(VerifierKey.parse(entry.body["vkey"]))

    def rotation(self, entry: Entry) -> None:
        """(6) The key before and the key after have signed that one follows the other."""
        where = f"entry {entry.seq}"
        following = VerifierKey.parse(entry.body["vkey"])
        if self.keys:  # else the log's first entry is unreadable, which was said already
            try:
                following, rotation = follow(entry, self.statement(entry), self.keys)
            except (DecodeError, SignatureInvalid) as error:
                self.problem(error.code, where, error.message)
            except OSError as error:
                self.problem("unreadable", where, error.strerror or "its statement cannot be read")
            else:
                self.claims += [
                    _Claim(where, entry.seq, digest_bytes(entry.body["root"])),
                    _Claim(where, rotation.journal_size, digest_bytes(rotation.journal_root)),
                ]
        self.keys.append(following)

    def statement(self, entry: Entry) -> bytes | None:
        digest = entry.body.get("envelope_sha256")
        return None if digest is None else self.reader.read_object(digest, MAX_ENVELOPE_BYTES)

    def check_claim(self, claim: _Claim, size: int) -> None:
        """(6) The tree that a rotation names is this log's, as it was then."""

        def read(tile: Tile) -> bytes:
            now = tile_at(size, tile.level, tile.index)
            return cut_tile(now, self.reader.read_tile(now) or b"", tile.width)

        try:
            root = root_from_tiles(read, claim.size)
        except (DecodeError, OSError):
            return  # a tile is missing or damaged, which was said already
        if root != claim.root:
            self.problem("wrong-root", claim.where, f"the root it names over {claim.size} is another log's")

    def compare(self, tiles: Iterable[tuple[Tile, bytes]]) -> None:
        """(3) The hash tiles follow from the entries; those of leaves were compared with their bundles."""
        for tile, data in tiles:
            if tile.level == 0:
                continue
            try:
                stored = self.reader.read_tile(tile)
            except DecodeError as error:
                self.problem(error.code, tile.path, error.message)
            except OSError as error:
                self.problem("unreadable", tile.path, error.strerror or "it cannot be read")
            else:
                if stored is None:
                    self.problem("missing", tile.path, "the file is not there")
                elif stored != data:
                    self.problem("tile-mismatch", tile.path, "its hashes are not those of the entries")
