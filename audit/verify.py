"""Verification of a log from its folder alone: no database, no network, no trust in whoever handed it over.

`verify_directory` recomputes everything from the entries: (1) the checkpoint is signed by a key the auditor
holds, the last one that the log names, (2) every entry is strict, in its place and in time order, (3) every
tile follows from the entries, (4) so does the signed root, (5) and the root of an earlier checkpoint that the
auditor kept. It streams: memory is one bundle of 256 entries and the tree's right edge.

Without (5) an older copy of the log, or another history under the same key, verifies as well: a signature
says neither that it is the newest nor that it is the only one. Keep the checkpoint of every log you verify.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    decode_bundle,
    leaf_hash,
    split_tile,
    tile_at,
)
from audit.note import Checkpoint, Note, VerifierKey, verify_note
from protocols.encoding import b64encode
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
        signed_by: labels of the trusted keys that signed it.
        kinds: entries by kind.
        first: time of the first entry, empty if there is none.
        last: time of the last entry.
        problems: at most `MAX_PROBLEMS`.
        problem_count: how many there are.
    """

    origin: str
    size: int
    root: bytes
    signed_by: tuple[str, ...]
    kinds: Mapping[str, int]
    first: str
    last: str
    problems: tuple[Problem, ...]
    problem_count: int

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
            "signed_by": list(self.signed_by),
            "kinds": dict(sorted(self.kinds.items())),
            "first": self.first,
            "last": self.last,
            "problem_count": self.problem_count,
            "problems": [{"code": p.code, "where": p.where, "what": p.what} for p in self.problems],
        }


def verify_directory(
    directory: Path,
    keys: Sequence[VerifierKey],
    *,
    earlier: bytes | None = None,
    visit: Callable[[Entry], None] | None = None,
) -> Verdict:
    """Verify the log in `directory`.

    Args:
        directory: holds `checkpoint` and `tile/…`; nothing else is read.
        keys: the log's verifier keys, received on another way than the folder.
        earlier: a checkpoint of the same log, kept from an earlier verification.
        visit: called with every well-formed entry in order, so that further checks need no second reading.

    Raises:
        InputError: `directory` is no directory, or `earlier` is no checkpoint that these keys signed.
    """
    run = _Run(_log_folder(directory), visit, _kept(earlier, keys))
    checkpoint, signers = run.signed_checkpoint(keys)
    if checkpoint is not None:
        run.replay(checkpoint)
        if checkpoint.size == 0:
            run.problem("empty-log", "checkpoint", "it covers no entry, but a journal begins with log.open")
        if run.named_key and run.named_key not in map(str, signers):
            run.problem("wrong-key", "checkpoint", "not signed by the key that the log itself named last")
    return Verdict(
        origin=checkpoint.origin if checkpoint else "",
        size=checkpoint.size if checkpoint else 0,
        root=checkpoint.root if checkpoint else b"",
        signed_by=tuple(signer.label for signer in signers),
        kinds=dict(run.kinds),
        first=run.first,
        last=run.last,
        problems=tuple(run.problems),
        problem_count=run.problem_count,
    )


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


def _kept(earlier: bytes | None, keys: Sequence[VerifierKey]) -> Checkpoint | None:
    if earlier is None:
        return None
    try:
        return Checkpoint.decode(verify_note(earlier, keys)[0].text)
    except (DecodeError, SignatureInvalid) as error:
        raise InputError(
            f"the earlier checkpoint does not verify: {error.message}",
            code="bad-earlier-checkpoint",
            hint="give the checkpoint file of this log as it was when you verified it before",
        ) from None


def _log_folder(directory: Path) -> Folder:
    if not directory.is_dir():
        raise InputError(
            "there is no such folder",
            code="no-folder",
            hint="give the folder that holds checkpoint and tile/",
        )
    return Folder(directory)


@dataclass(slots=True)
class _Run:
    """One verification under way."""

    folder: Folder
    visit: Callable[[Entry], None] | None
    earlier: Checkpoint | None = None
    problems: list[Problem] = field(default_factory=list)
    problem_count: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    named_key: str = ""
    first: str = ""
    last: str = ""

    def problem(self, code: str, where: str, what: str) -> None:
        self.problem_count += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(Problem(code, where, what))

    def signed_checkpoint(
        self, keys: Sequence[VerifierKey]
    ) -> tuple[Checkpoint | None, tuple[VerifierKey, ...]]:
        """(1) The checkpoint is signed by a trusted key, and that key is this log's."""
        try:
            data = self.folder.read_checkpoint()
            if data is None:
                self.problem("no-checkpoint", "checkpoint", "the folder holds none")
                return None, ()
            note, signers = verify_note(data, keys)
            checkpoint = Checkpoint.decode(note.text)
        except (DecodeError, SignatureInvalid) as error:
            self.problem(error.code, "checkpoint", error.message)
            return None, ()
        except OSError as error:
            self.problem("unreadable", "checkpoint", error.strerror or "it cannot be read")
            return None, ()
        if checkpoint.origin not in {signer.name for signer in signers}:
            self.problem("wrong-origin", "checkpoint", "its origin is not the name of the key that signed it")
        if checkpoint.extensions:
            self.problem("extension-lines", "checkpoint", "it carries lines that no one can check")
        return checkpoint, signers

    def replay(self, checkpoint: Checkpoint) -> None:
        """Rebuild the tree from the entries."""
        tree = TileBuilder()
        self.extends(tree, checkpoint)
        for index in range(-(-checkpoint.size // TILE_WIDTH)):
            bundle = tile_at(checkpoint.size, ENTRIES, index)
            leaves = self.leaves(bundle, checkpoint)
            if leaves is None:
                self.problem("stopped", bundle.path, "without these entries the rest cannot be checked")
                return
            for leaf in leaves:
                for tile, data in tree.add(leaf):
                    self.compare(tile, data)
                self.extends(tree, checkpoint)
        for tile, data in tree.partial_tiles():
            self.compare(tile, data)
        # (4) The signed root.
        if tree.root() != checkpoint.root:
            self.problem("root-mismatch", "checkpoint", "the entries do not give the signed root")

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

    def leaves(self, bundle: Tile, checkpoint: Checkpoint) -> list[bytes] | None:
        """Return the leaf hashes of one bundle; from the hash tile where the bundle itself is unusable."""
        stored = self.read(bundle)
        if stored is not None:
            try:
                entries = decode_bundle(stored, bundle.width)
            except DecodeError as error:
                self.problem("bad-bundle", bundle.path, error.message)
            else:
                for offset, entry in enumerate(entries):
                    self.entry(entry, bundle.index * TILE_WIDTH + offset, checkpoint.origin)
                return [leaf_hash(entry) for entry in entries]
        hashes = Tile(0, bundle.index, bundle.width)
        stored = self.read(hashes)
        try:
            return None if stored is None else split_tile(hashes, stored)
        except DecodeError:
            return None

    def entry(self, data: bytes, seq: int, origin: str) -> None:
        """(2) The entry is strict, in its place and in time order."""
        where = f"entry {seq}"
        try:
            entry = Entry.decode(data)
        except DecodeError as error:
            self.problem(error.code, where, error.message)
            return
        if entry.seq != seq:
            self.problem("wrong-seq", where, f"it carries seq {entry.seq}")
        if entry.log != origin:
            self.problem("wrong-log", where, "it names another log")
        if (entry.kind == "log.open") != (seq == 0):
            self.problem("log-open", where, "a log opens once, with its first entry")
        if entry.kind in ("log.open", "key.rotate"):
            self.named_key = entry.body["vkey"]
        if entry.time < self.last and entry.kind != "clock.step":
            self.problem("time-backwards", where, "earlier than the entry before, and no clock.step says why")
        self.first = self.first or entry.time
        self.last = entry.time
        self.kinds[entry.kind] += 1
        if self.visit:
            self.visit(entry)

    def compare(self, tile: Tile, data: bytes) -> None:
        """(3) The hash tile follows from the entries."""
        stored = self.read(tile)
        if stored is not None and stored != data:
            self.problem("tile-mismatch", tile.path, "its hashes are not those of the entries")

    def read(self, tile: Tile) -> bytes | None:
        try:
            stored = self.folder.read_tile(tile)
        except DecodeError as error:
            self.problem(error.code, tile.path, error.message)
            return None
        except OSError as error:
            self.problem("unreadable", tile.path, error.strerror or "it cannot be read")
            return None
        if stored is None:
            self.problem("missing", tile.path, "the file is not there")
        return stored
