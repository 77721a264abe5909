"""A whole bundle, looked through once: does it hold together, was every decision allowed, who has seen it.

`review` verifies the structure, takes every decision again (`audit.redecide`), looks at every checkpoint
(`audit.heads`), time stamp and file, and gathers what a report tells (`audit.facts`). What could not be
checked for want of a key or a document is said; it fails nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from audit import timestamps
from audit.bundle import (
    Bundle,
    entries_of,
    is_left_over,
    limit_of,
    object_digest,
    object_name,
    readable,
    root_at,
)
from audit.entries import Entry, parse_time
from audit.facts import Facts
from audit.findings import Check, Checks
from audit.heads import Demands, Head, Heads, read_head
from audit.merkle import (
    ENTRIES,
    TILE_WIDTH,
    Tile,
    cut_tile,
    decode_bundle,
    leaf_hash,
    merkle_root,
    split_tile,
    tile_at,
)
from audit.note import Checkpoint, Note, VerifierKey
from audit.redecide import Redecider
from audit.trust import Trust
from audit.verify import Problem, Verdict, verify_directory
from protocols.errors import DecodeError, InputError, MinshuError
from protocols.succession import CLOCK_TOLERANCE
from protocols.wire import utc_text

_ALL_KEPT: Final = 3
"""The first `v` whose entries name in `refs` only what is kept beside the log."""

EVERY: Final = 4096
"""Entries between two calls that tell how far a review is."""


@dataclass(frozen=True, slots=True)
class Review:
    """What was found out about one bundle.

    Attributes:
        label: the bundle's name, for a person.
        verdict: whether it holds together.
        checks: the checklist, answered.
        heads: its own checkpoints.
        witnessed: those of other logs that its owner cosigned.
        facts: what a report tells.
        notices: what says nothing either way, but a reader should know.
        trust: what it was held against, with the rosters found in it.
    """

    label: str
    verdict: Verdict
    checks: Checks
    heads: tuple[Head, ...]
    witnessed: tuple[Head, ...]
    facts: Facts
    notices: tuple[str, ...]
    trust: Trust

    @property
    def ok(self) -> bool:
        """Whether it holds together and no check fails. What was not checkable does not fail."""
        return self.verdict.ok and self.checks.ok

    def document(self) -> dict[str, Any]:
        """Return the review as plain JSON values."""
        newest = self.trust.newest
        return {
            **self.verdict.document(),
            "ok": self.ok,
            "bundle": self.label,
            "checks": [check.document() for check in self.checks],
            "heads": [head.document() for head in self.heads],
            "witnessed": [head.document() for head in self.witnessed],
            "roster": None
            if newest is None
            else {"version": newest.version, "sha256": newest.digest, "issued": utc_text(newest.issued)},
            "notices": list(self.notices),
            "facts": self.facts.document(),
        }


@dataclass(slots=True)
class Watching:
    """Tells how far a review is, at every `EVERY`th entry: entries done, and how many there are."""

    tell: Callable[[int, int], None]
    bundle: Bundle
    total: int = 0
    done: int = 0

    def __post_init__(self) -> None:
        """Find out how many there are."""
        try:
            data = self.bundle.read_checkpoint() or b""
            self.total = Checkpoint.decode(Note.decode(data).text).size
        except (DecodeError, OSError):
            pass  # verification says what is wrong with it

    def visit(self, _: Entry) -> None:
        """Count one entry."""
        self.done += 1
        if self.done % EVERY == 0:
            self.tell(self.done, self.total)


@dataclass(slots=True)
class _Steps:
    """Finds entries that set the clock back by another amount than they say."""

    check: Check
    _last: str = ""

    def visit(self, entry: Entry) -> None:
        """Look at one entry. A clock that ran back by less than the tolerance may have been held before."""
        last, self._last = self._last, entry.time
        if entry.kind != "clock.step":
            return
        where, body = f"entry {entry.seq}", entry.body
        if body.get("previous_time", last) != last:
            self.check.found("wrong-step", where, "it names another time than the entry before it bears")
        elif entry.time < last:
            back = parse_time(last) - parse_time(entry.time)
            if timedelta(milliseconds=-body.get("step_ms", 0)) < back - CLOCK_TOLERANCE:
                what = f"the clock went back by {back}, which is more than the entry says"
                self.check.found("wrong-step", where, what)


def review(
    bundle: Bundle,
    trust: Trust,
    *,
    earlier: bytes | None = None,
    canaries: Sequence[str] = (),
    opened: Mapping[str, bytes] | None = None,
    now: datetime | None = None,
    also: Callable[[Entry], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Review:
    """Look through a bundle.

    Args:
        bundle: opened; it is believed in nothing.
        trust: what the auditor brings.
        earlier: a checkpoint of the same log, kept from an earlier verification.
        canaries: planted identifiers that must be nowhere in the bundle.
        opened: releases that their recipient opened, file name → bytes.
        now: the auditor's clock, None to leave it out: no entry may be later.
        also: called with every entry that is well-formed, in order; `audit.cross` gathers with it.
        progress: called now and then with the entries done, and how many there are.

    Whatever a bundle was made to break in here is a finding about that bundle, `unreviewable`.

    Raises:
        InputError: `earlier` is no checkpoint, or was changed.
    """
    checks, facts = Checks(), Facts()
    try:
        return _review(
            bundle,
            trust,
            checks,
            facts,
            earlier=earlier,
            canaries=canaries,
            opened=opened,
            now=now,
            also=also,
            progress=progress,
        )
    except (InputError, BrokenPipeError):
        raise
    except Exception as error:  # noqa: BLE001  # outermost: a log may be made to break what reads it
        # The next bundle is reviewed all the same, and nobody takes this one for reviewed.
        what = f"reviewing it ended with {type(error).__name__}; what was found before that stands"
        checks["signed"].found("unreviewable", bundle.label, what)
        problem = Problem("unreviewable", bundle.label, what)
        verdict = Verdict("", 0, b"", (), (), {}, "", "", (problem,), 1)
        return Review(bundle.label, verdict, checks, (), (), facts, (), trust)


def _review(
    bundle: Bundle,
    trust: Trust,
    checks: Checks,
    facts: Facts,
    *,
    earlier: bytes | None,
    canaries: Sequence[str],
    opened: Mapping[str, bytes] | None,
    now: datetime | None,
    also: Callable[[Entry], None] | None,
    progress: Callable[[int, int], None] | None,
) -> Review:
    trust, wrong = trust.of(bundle)
    for finding in wrong:
        checks["keys"].found(finding.code, finding.where, finding.what)
    demands, steps = Demands(), _Steps(checks["time"])
    redecider = Redecider(bundle, trust, checks, canaries=canaries, opened=opened)
    named = _Named.of(bundle)
    visitors = [
        facts.visit,
        demands.visit,
        steps.visit,
        redecider.visit,
        named.visit,
        *([also] if also else []),
    ]
    if progress is not None:
        visitors.append(Watching(progress, bundle).visit)

    def visit(entry: Entry) -> None:
        for each in visitors:
            each(entry)

    verdict = verify_directory(bundle, trust.log_keys, earlier=earlier, visit=visit)
    redecider.finish()
    looking = _Looking(bundle, trust, verdict, checks)
    looking.structure()
    named.tell(checks["signed"])
    heads, witnessed = looking.heads(demands, now)
    looking.timestamps(now)
    looking.files()
    return Review(
        bundle.label, verdict, checks, heads, witnessed, facts, tuple(looking.notices), looking.trust
    )


@dataclass(slots=True)
class _Named:
    """Whether the objects that entries rest on are there, or a receipt says that they were deleted."""

    present: frozenset[str]
    missing: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, bundle: Bundle) -> "_Named":
        """Begin with what is there now, which is all that a checkpoint read before can cover."""
        try:
            bundle.read_checkpoint()
            found = [object_digest(each.name) for each in bundle.files("objects/") if each.regular]
        except (DecodeError, OSError):
            found = []
        return cls(frozenset(filter(None, found)))

    def visit(self, entry: Entry) -> None:
        """Take in one entry. Of the earlier versions, not all that is named was kept."""
        if entry.kind == "deletion.receipt":
            self.missing.pop(entry.body.get("sha256", ""), None)
        elif entry.v >= _ALL_KEPT:
            for digest in entry.refs:
                if digest not in self.present:
                    self.missing.setdefault(digest, entry.seq)

    def tell(self, check: Check) -> None:
        """Say what is missing."""
        for digest, seq in self.missing.items():
            check.found(
                "missing-object", f"entry {seq}", f"it rests on {object_name(digest)}, which is not there"
            )


@dataclass(slots=True)
class _Looking:
    """The parts of a review that need no entry but the tree."""

    bundle: Bundle
    trust: Trust
    verdict: Verdict
    checks: Checks
    notices: list[str] = field(default_factory=list)

    @property
    def keys(self) -> Sequence[VerifierKey]:
        return [VerifierKey.parse(key) for key in self.verdict.keys]

    def structure(self) -> None:
        """What verification found is the first question's answer."""
        check = self.checks["signed"]
        for problem in self.verdict.problems:
            check.found(problem.code, problem.where, problem.what)
            if problem.code == "tile-mismatch":
                self._blame(problem.where, check)
        check.count += self.verdict.problem_count - len(self.verdict.problems)
        if self.verdict.ok:
            check.saw("all entries", self.verdict.size)
            check.figures["entries"] = self.verdict.size

    def _blame(self, path: str, check: Check) -> None:
        """Of entries and their hashes, say which entries were changed, if the hashes lead to the root."""
        try:
            tile = Tile.parse(path)
            if tile.level:
                return
            entries = Tile(ENTRIES, tile.index, tile.width)
            hashes = split_tile(tile, self.bundle.read_tile(tile) or b"")
            leaves = [
                leaf_hash(entry) for entry in decode_bundle(self.bundle.read_tile(entries) or b"", tile.width)
            ]
            if not self._stands(tile, hashes):
                return
        except (DecodeError, OSError):
            return  # said already
        for offset, (kept, found) in enumerate(zip(hashes, leaves, strict=True)):
            if kept != found:
                seq = tile.index * TILE_WIDTH + offset
                check.found("entry-changed", entries.path, f"entry {seq} is not the one that was signed for")

    def _stands(self, tile: Tile, hashes: Sequence[bytes]) -> bool:
        """Tell whether a tile of leaf hashes leads to the signed root."""
        size = self.verdict.size
        if tile.width < TILE_WIDTH:
            return root_at(self.bundle, size, size) == self.verdict.root
        above = tile_at(size, 1, tile.index // TILE_WIDTH)
        place = tile.index % TILE_WIDTH
        return split_tile(above, self.bundle.read_tile(above) or b"")[place] == merkle_root(hashes)

    def heads(self, demands: Demands, now: datetime | None) -> tuple[tuple[Head, ...], tuple[Head, ...]]:
        """Every checkpoint in the bundle."""
        if not self.verdict.origin:
            self.checks["witnessed"].lacks("a readable checkpoint")
            return (), ()
        origin, size = self.verdict.origin, self.verdict.size
        looking = Heads(self.bundle, self.trust, origin, size, self.keys, demands, now)
        own = looking.own(self.checks["signed"], self.checks["witnessed"], self.checks["time"])
        others = looking.others(self.checks["witnessed"])
        self.notices += [*looking.notices, *looking.unproven]
        for head in (*own, *others):
            if head.unknown:
                what = "one signature line is" if head.unknown == 1 else f"{head.unknown} signature lines are"
                self.notices.append(f"{head.file}: {what} by keys that you did not bring; they say nothing")
        return own, others

    def timestamps(self, now: datetime | None) -> None:
        """Every time stamp is over a checkpoint of this log, and the clock agrees with it."""
        check = self.checks["time"]
        if now is not None and self.verdict.last and parse_time(self.verdict.last) > now + CLOCK_TOLERANCE:
            check.found("in-the-future", "the newest entry", f"it says {self.verdict.last}")
        try:
            found = list(self.bundle.timestamps())
        except (DecodeError, OSError) as error:
            check.found("unreadable", "timestamps", _said(error))
            return
        for size, token, stamped in found:
            name = f"timestamps/{size}"
            if stamped is None:
                check.found("missing", f"{name}.checkpoint", "the file is not there")
                continue
            logs = [*self.keys, *self.trust.log_keys]
            head = read_head(f"{name}.checkpoint", stamped, logs, self.trust, check, now=now)
            if head is None:
                continue
            if not head.signed_by:
                check.found("no-known-signature", head.file, "no key of this log signed it")
            elif (head.origin, head.size) != (self.verdict.origin, size):
                check.found("wrong-origin", head.file, "it is of another log or size")
            elif size > self.verdict.size:
                check.found("out-of-order", head.file, f"the checkpoint covers {self.verdict.size} entries")
            else:
                self._stamp(head, token, stamped, check)

    def _stamp(self, head: Head, token: bytes, stamped: bytes, check: Check) -> None:
        name = f"timestamps/{head.size}.tsr"
        try:
            if root_at(self.bundle, self.verdict.size, head.size) != head.root:
                check.found("rewritten", head.file, "it is not of this log's first entries any more")
                return
            if not self.trust.tsa_roots:
                if timestamps.covers(stamped, token):
                    check.lacks("the time-stamping authority's root certificates (--tsa-root)")
                else:
                    check.found("timestamp-mismatch", name, "it is about other bytes than the checkpoint")
                return
            said = timestamps.verify(stamped, token, self.trust.tsa_roots)
            if head.size:
                last = next(entries_of(self.bundle, self.verdict.size, head.size - 1))
                written = Entry.decode(last).time
                if parse_time(written) > said.time + CLOCK_TOLERANCE:
                    what = f"it says {written}, but was time-stamped at {utc_text(said.time)}"
                    check.found("clock-ahead", f"entry {head.size - 1}", what)
                    return
        except (MinshuError, OSError) as error:
            check.found(getattr(error, "code", "unreadable"), name, _said(error))
        else:
            check.saw(name)
            check.figures["time stamped at"] = utc_text(said.time)

    def files(self) -> None:
        """Every file is one that a bundle holds, and what its name says it is.

        (1) It is a regular file with a name of the format. (2) An object hashes to its name. (3) A partial
        tile that the tree has outgrown is the beginning of what replaced it.
        """
        check = self.checks["signed"]
        beyond = 0
        try:
            for found in self.bundle.files():
                name = readable(found.name)
                limit = limit_of(found.name)
                # (1)
                if not found.regular:
                    check.found(
                        "not-a-file", name, "it is no plain file; a bundle holds no link, pipe or device"
                    )
                elif limit is None:
                    if is_left_over(found.name):
                        self.notices.append(f"{name}: left half-written by a crash; nothing refers to it")
                    else:
                        check.found("unknown-file", name, "no bundle holds a file of this name")
                elif found.size > limit:
                    check.found("too-long", name, f"it has {found.size} bytes, at most {limit} are read")
                elif (digest := object_digest(found.name)) is not None:
                    self._object(name, digest, check)
                elif found.name.startswith("tile/"):
                    beyond += self._tile(Tile.parse(found.name), check)
        except (DecodeError, OSError) as error:
            check.found("unreadable", "the folder", _said(error))
        if beyond:
            which = "one tile goes" if beyond == 1 else f"{beyond} tiles go"
            self.notices.append(f"{which} beyond the checkpoint; nobody signed for what they hold")

    def _object(self, name: str, digest: str, check: Check) -> None:
        """(2)"""
        try:
            self.bundle.read_object(digest)
        except (DecodeError, OSError) as error:
            check.found(getattr(error, "code", "unreadable"), name, _said(error))

    def _tile(self, tile: Tile, check: Check) -> int:
        """(3) Return 1 for a tile that the checkpoint does not cover, else 0."""
        size = self.verdict.size
        if tile.end > size:
            return 1
        now = tile_at(size, tile.level, tile.index)
        if now == tile:
            return 0  # verification has compared it
        try:
            whole = self.bundle.read_tile(now)
            if whole is not None and self.bundle.read(tile.path) != cut_tile(now, whole, tile.width):
                check.found("tile-mismatch", tile.path, f"it is not the beginning of {now.path}")
        except (DecodeError, OSError) as error:
            check.found(getattr(error, "code", "unreadable"), tile.path, _said(error))
        return 0


def _said(error: MinshuError | OSError) -> str:
    if isinstance(error, MinshuError):
        return error.message
    return error.strerror or str(error) or "it cannot be read"
