"""The checkpoints in a bundle, each held against the tree and against the keys that the auditor brought.

`checkpoint`, `checkpoint.cosigned` and `checkpoint.old` are this log's own; `witnessed/…` are the newest of
other logs that its owner cosigned. Every signature line by a known key must hold. A line by a key that nobody
brought says nothing, as C2SP has it, unless it bears a known key's name or a known key did sign it.

One witness that lies fails no log but its own. What it says of the time has no vote where it cannot be, and a
notice names it; a log's clock is wrong where two organisations say so. What it says of another log's history
counts as far as that log signed it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from audit.bundle import Bundle, entries_of, root_at
from audit.entries import Entry, parse_time
from audit.findings import Check
from audit.folder import CHECKPOINT, COSIGNED, OLD, witnessed_path
from audit.note import (
    COSIGNATURE,
    MAX_NOTE_BYTES,
    Checkpoint,
    Note,
    NoteSignature,
    VerifierKey,
    cosigned_at,
    verify_note,
)
from audit.quorum import CLOCK_AHEAD, Quorum
from audit.trust import Trust, quorum_of
from audit.witness import SPLIT_VIEW
from policies.matching import one_house
from policies.model import Policy
from policies.parse import MAX_POLICY_BYTES, parse_policy
from protocols.encoding import b64encode, sha256_digest
from protocols.envelope import MAX_ENVELOPE_BYTES, decode_envelope
from protocols.errors import DecodeError, MinshuError, SignatureInvalid
from protocols.ids import NodeName
from protocols.succession import CLOCK_TOLERANCE
from protocols.wire import organisation_of, utc_text

OWN: Final = (CHECKPOINT, COSIGNED, OLD)

GRACE: Final = timedelta(hours=1)
"""What one log may take to be told of by others: a cosignature, or a receipt, that was under way so long."""

SLACK: Final = 2 * CLOCK_TOLERANCE
"""How far a witness's clock and a log's may be apart: each may be that far from the true time."""

_MAX_PENDING: Final = 4096
_MAX_CONFLICTS: Final = 1000
_LAST_S: Final = 253_402_214_400  # the last day of the year 9999


@dataclass(frozen=True, slots=True)
class Head:
    """One checkpoint, and who signed it.

    Attributes:
        file: its name in the bundle.
        origin: of which log.
        size: entries it covers.
        root: 32 bytes.
        note: the whole of it.
        signed_by: labels of the log's keys whose signature holds.
        cosigned: label of each witness key whose cosignature counts, with its time in seconds since 1970.
        seen: organisations, those of the log's own house apart, with the time of their cosignature of type 4.
        votes: organisations that have a vote and cosigned.
        needed: how many it takes; 0 where nobody told.
        satisfied: whether they are enough; None where nobody told what is.
        unknown: signature lines by keys that the auditor did not bring.
        discounted: cosignatures that hold, but whose time cannot be.
        notices: why these do not count.
    """

    file: str
    origin: str
    size: int
    root: bytes
    note: Note
    signed_by: tuple[str, ...] = ()
    cosigned: tuple[tuple[str, int], ...] = ()
    seen: tuple[tuple[str, int], ...] = ()
    votes: tuple[str, ...] = ()
    needed: int = 0
    satisfied: bool | None = None
    unknown: int = 0
    discounted: tuple[NoteSignature, ...] = ()
    notices: tuple[str, ...] = ()

    @property
    def counted(self) -> Note:
        """The note, without the cosignatures that do not count."""
        lines = tuple(line for line in self.note.signatures if line not in self.discounted)
        return replace(self.note, signatures=lines)

    @property
    def latest(self) -> int | None:
        """When it was cosigned, seconds since 1970, None if it was not: the newest time that two vouch for.

        Where but one organisation did, it is that one's word.
        """
        times = sorted((time_s for _, time_s in self.seen), reverse=True)
        return times[1] if len(times) > 1 else times[0] if times else None

    @property
    def earliest(self) -> int | None:
        """The time before which nobody cosigned it, seconds since 1970; None where fewer than two did."""
        return min(time_s for _, time_s in self.seen) if len(self.seen) > 1 else None

    def document(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {
            "file": self.file,
            "origin": self.origin,
            "size": self.size,
            "root": b64encode(self.root),
            "signed_by": list(self.signed_by),
            "cosigned": [{"key": label, "time_s": time_s} for label, time_s in self.cosigned],
            "votes": list(self.votes),
            "needed": self.needed,
            "satisfied": self.satisfied,
            "unknown_lines": self.unknown,
            "discounted_lines": len(self.discounted),
        }


def read_head(
    file: str,
    data: bytes,
    logs: Iterable[VerifierKey],
    trust: Trust,
    check: Check,
    *,
    complete: bool = True,
    now: datetime | None = None,
    written: Callable[[int], datetime | None] | None = None,
) -> Head | None:
    """Return what a checkpoint says and who signed it; None, with a finding, if it is none.

    Args:
        file: its name, for findings.
        data: the note.
        logs: keys that may sign for the log; those of other names are left aside.
        trust: knows the witnesses.
        check: takes the findings.
        complete: whether `logs` are all the keys that the log ever had.
        now: the auditor's clock; a cosignature from later does not count. None: any time.
        written: gives the time of a log's newest entry at a size, None where it is not known. A cosignature
            from earlier does not count, unless most say so, and at least two.
    """
    try:
        note = Note.decode(data)
        checkpoint = Checkpoint.decode(note.text)
    except DecodeError as error:
        check.found(error.code, file, error.message)
        return None
    known: dict[tuple[str, bytes], VerifierKey] = {}
    for key in (*trust.witness_keys, *(key for key in logs if key.name == checkpoint.origin)):
        known.setdefault((key.name, key.key_id), key)
    signed: list[str] = []
    cosigned: dict[VerifierKey, _Line] = {}
    odd: dict[NoteSignature, str] = {}
    unknown = 0
    for line in note.signatures:
        signer = known.get((line.name, line.key_id))
        if signer is None:
            unknown += 1
            # A damaged name or id leaves the signature as it was.
            near = [key for key in known.values() if line.name == key.name or line.key_id == key.key_id]
            meant = next((key for key in near if key.holds(note.text, line.signature)), None)
            if meant is not None:
                what = f"a line of {meant.label} bears another name or key id"
                check.found("mislabelled-signature", file, what)
            elif any(line.name == key.name and (key.cosigns or complete) for key in near):
                what = f"a line in the name of {_shown(line.name)} is by another key than you trust"
                check.found("unknown-key", file, what)
        elif not signer.holds(note.text, line.signature):
            check.found("bad-signature", file, f"the signature by {signer.label} does not hold")
        elif not signer.cosigns:
            signed.append(signer.label)
        else:
            time_s = cosigned_at(line.signature)
            if time_s > (_LAST_S if now is None else (now + CLOCK_AHEAD).timestamp()):
                odd[line] = f"{signer.label} cosigned it at a time to come, {_dated(time_s)}"
            elif not trust.was_witness(signer, time_s):
                odd[line] = f"{signer.label} cosigned it at {_dated(time_s)}, when no roster listed that key"
            else:
                cosigned.setdefault(signer, _Line(line, time_s))
    if checkpoint.extensions:
        check.found("extension-lines", file, "it carries lines that no one can check")
    last = None if written is None else written(checkpoint.size)
    if last is not None:
        odd |= _too_early(cosigned, last, checkpoint.origin, trust)
    seen = _seen(cosigned, checkpoint.origin, trust)
    return Head(
        file,
        checkpoint.origin,
        checkpoint.size,
        checkpoint.root,
        note,
        tuple(dict.fromkeys(signed)),
        tuple((key.label, time_s) for key, (_, time_s) in cosigned.items()),
        seen,
        tuple(sorted(house for house, _ in seen)),
        unknown=unknown,
        discounted=tuple(odd),
        notices=tuple(f"{file}: {what}: that line does not count" for what in odd.values()),
    )


class _Line(NamedTuple):
    line: NoteSignature
    time_s: int


def _seen(cosigned: Mapping[VerifierKey, _Line], origin: str, trust: Trust) -> tuple[tuple[str, int], ...]:
    """Return which organisations cosigned with a key that votes, and when first; never the log's own."""
    own = organisation_of(NodeName(origin))
    times: dict[str, int] = {}
    for key, (_, time_s) in cosigned.items():
        house = trust.house(key)
        if key.type == COSIGNATURE and not one_house(house, own):
            times[house] = min(time_s, times.get(house, time_s))
    return tuple(sorted(times.items()))


def _too_early(
    cosigned: dict[VerifierKey, _Line], written: datetime, origin: str, trust: Trust
) -> dict[NoteSignature, str]:
    """Take out the cosignatures from before the newest entry, unless it is this that is dated wrongly."""
    earliest = (written - SLACK).timestamp()
    seen = _seen(cosigned, origin, trust)
    early = sum(time_s < earliest for _, time_s in seen)
    if early > 1 and 2 * early > len(seen):
        return {}
    odd: dict[NoteSignature, str] = {}
    for key, (line, time_s) in list(cosigned.items()):
        if time_s < earliest:
            odd[line] = f"{key.label} cosigned it at {_dated(time_s)}, before its newest entry was written"
            del cosigned[key]
    return odd


class Conflict(NamedTuple):
    """What a log says of another one: that two checkpoints of it do not go together.

    Attributes:
        seq: the entry that says so.
        log: the other one's origin.
        code: what is said to be wrong.
        digests: the two checkpoints, objects beside the log that says so.
    """

    seq: int
    log: str
    code: str
    digests: tuple[str, ...]

    @classmethod
    def of(cls, entry: Entry) -> "Conflict":
        """Read a `witness.conflict` entry."""
        body = entry.body
        names = (body[key] for key in ("checkpoint_sha256", "conflicting_sha256") if key in body)
        return cls(entry.seq, body["log"], body.get("code", ""), tuple(names))

    def shown(self, bundle: Bundle, keys: Iterable[VerifierKey]) -> list[tuple[Checkpoint, bytes]]:
        """Return those of the two checkpoints that the log itself signed, with their notes.

        Args:
            bundle: of the log that says so.
            keys: the other log's; those of other names are left aside.
        """
        own = [key for key in keys if key.name == self.log]
        found: list[tuple[Checkpoint, bytes]] = []
        for digest in self.digests:
            try:
                data = bundle.read_object(digest, MAX_NOTE_BYTES) or b""
                note, _ = verify_note(data, own)
                checkpoint = Checkpoint.decode(note.text)
            except (DecodeError, SignatureInvalid, OSError):
                continue  # no evidence then
            if checkpoint.origin == self.log:
                found.append((checkpoint, data))
        return found


def contradict(shown: Sequence[tuple[Checkpoint, bytes]]) -> bool:
    """Tell whether two checkpoints that a log signed have two roots for one size, which nothing explains."""
    return len(shown) == 2 and shown[0][0].size == shown[1][0].size and shown[0][0].root != shown[1][0].root


@dataclass(slots=True)
class Demands:
    """What a log itself says had to be cosigned: entry by entry, by the policy in force.

    Before `job.answering`, the attempt's `job.admitted` needs its quorum; before `output.released`, the
    release's `output.commit`.
    """

    policies: list[tuple[int, str, str]] = field(default_factory=list)
    conflicts: list[Conflict] = field(default_factory=list)
    _waits: dict[tuple[str, int] | str, int] = field(default_factory=dict)
    _pending: list[tuple[int, int]] = field(default_factory=list)

    def visit(self, entry: Entry) -> None:
        """Take in one entry."""
        match entry.kind:
            case "policy.activate":
                names = entry.body["sha256"], entry.body.get("envelope_sha256", "")
                self.policies.append((entry.seq, *names))
            case "job.admitted":
                self._waits[entry.job, entry.attempt] = entry.seq
            case "output.commit":
                self._waits[entry.body["release"]] = entry.seq
            case "job.answering":
                self._relied(entry.seq, self._waits.pop((entry.job, entry.attempt), None))
            case "output.released":
                self._relied(entry.seq, self._waits.get(entry.body["release"]))
            case "job.done" | "job.failed" | "job.aborted" | "job.cancelled" | "job.expired":
                self._waits.pop((entry.job, entry.attempt), None)
            case "witness.conflict":
                self.conflicts.append(Conflict.of(entry))

    def _relied(self, seq: int, on: int | None) -> None:
        if on is not None:
            self._pending.append((seq, on))
            # What matters is the newest: a checkpoint covers everything before it.
            if len(self._pending) > 2 * _MAX_PENDING:
                self._pending = sorted(self._pending, key=lambda pair: pair[1])[-_MAX_PENDING:]

    def uncovered(self, covered: int) -> list[tuple[int, int]]:
        """Return what relied on an entry that no quorum has seen: its seq, and that entry's, in order."""
        return sorted(pair for pair in self._pending if pair[1] >= covered)

    def policy_at(self, seq: int) -> tuple[int, str, str] | None:
        """Return where the policy in force at entry `seq` came into force, and the digests of its text and
        envelope; None without one.
        """
        return next((named for named in reversed(self.policies) if named[0] < seq), None)


@dataclass(slots=True)
class Heads:
    """Reads a bundle's own checkpoints, and those it witnessed, into findings.

    `now` is the auditor's clock: a cosignature of the future does not count. None: any time. `notices` say
    what fails nothing, but a reader should know; `unproven`, what is said of other logs without proof.
    """

    bundle: Bundle
    trust: Trust
    origin: str
    size: int
    chain: Sequence[VerifierKey]
    demands: Demands
    now: datetime | None = None
    notices: list[str] = field(default_factory=list)
    unproven: list[str] = field(default_factory=list)
    _parsed: dict[str, Policy | None] = field(default_factory=dict)
    _unreadable: dict[str, int] = field(default_factory=dict)

    def own(self, signed: Check, witnessed: Check, time: Check) -> tuple[Head, ...]:
        """Return this log's own checkpoints, after checking them.

        (1) Each is of this log, signed by a key of its chain, its lines hold. (2) Its root is that of this
        tree at its size: the older ones are beginnings of the newest. (3) Their sizes are in order. (4)
        Enough organisations have cosigned, and what relied on that is covered. (5) They did not do so much
        before the newest entry under it was written, nor much after the entry that follows.
        """
        heads: list[Head] = []
        for name in OWN:
            data = self._note(name, signed)
            if data is None:
                continue
            head = read_head(
                name, data, self._logs(), self.trust, signed, now=self.now, written=self._newest_at
            )
            if head is not None:
                self.notices += head.notices
            if head is not None and self._is_ours(head, signed):
                heads.append(self._counted(head))
        by_name = {head.file: head for head in heads}
        newest, cosigned, old = (by_name.get(name) for name in OWN)
        # (3)
        if newest and cosigned and cosigned.size > newest.size:
            signed.found(
                "out-of-order", COSIGNED, f"it covers {cosigned.size} entries, checkpoint {newest.size}"
            )
        # They are of one size for a moment while a log publishes: the old one is put in its place first.
        if newest and old and old.size > newest.size:
            signed.found("out-of-order", OLD, f"it covers {old.size} entries, checkpoint {newest.size}")
        self._conflicts(witnessed)
        self._covered(heads, witnessed)
        for digest, seq in self._unreadable.items():
            what = f"policy {digest[7:19]}, in force from there on, cannot be read: a quorum is asked for"
            witnessed.found("policy-unreadable", f"entry {seq}", what)
        for head in heads:
            self._clock(head, time)
        return tuple(heads)

    def others(self, witnessed: Check) -> tuple[Head, ...]:
        """Return the checkpoints of other logs that this one's owner cosigned, after checking them.

        Each lies under the digest of its origin, and its lines hold. Signed by its log, as far as the auditor
        has that log's key; cosigned by this log's owner, as far as the auditor has that key.
        """
        heads: list[Head] = []
        try:
            found = list(self.bundle.witnessed())
        except (DecodeError, OSError) as error:
            witnessed.found("unreadable", "witnessed", _said(error))
            return ()
        logs = self.trust.log_keys_ever
        me = self.origin.partition("/journal/")[0] + "/"
        has_mine = any(key.name.startswith(me) for key in self.trust.witness_keys)
        for name, data in found:
            complete = bool(self.trust.rosters)
            head = read_head(name, data, logs, self.trust, witnessed, complete=complete, now=self.now)
            if head is None:
                continue
            self.notices += head.notices
            heads.append(head)
            mine = any(label.startswith(me) for label, _ in head.cosigned)
            if witnessed_path(head.origin) != name:
                witnessed.found("wrong-origin", name, "it lies under another log's name")
            elif has_mine and not mine:
                witnessed.found("not-cosigned", name, "the one who keeps it did not cosign it")
            elif not head.signed_by and any(key.name == head.origin for key in logs) and not mine:
                witnessed.found("no-known-signature", name, "no trusted key of that log signed it")
            elif not head.signed_by:
                witnessed.lacks(f"the verifier key of {_shown(head.origin)} for {name} (--keys or --roots)")
            else:
                witnessed.saw(name)
        return tuple(heads)

    def _note(self, name: str, check: Check) -> bytes | None:
        try:
            return self.bundle.read_checkpoint(name)
        except (DecodeError, OSError) as error:
            check.found("unreadable", name, _said(error))
            return None

    def _logs(self) -> tuple[VerifierKey, ...]:
        return tuple(dict.fromkeys([*self.chain, *self.trust.log_keys]))

    def _is_ours(self, head: Head, check: Check) -> bool:
        # (1)
        if head.origin != self.origin:
            check.found("wrong-origin", head.file, f"it is of {_shown(head.origin)}")
            return False
        if not head.signed_by:
            check.found("no-known-signature", head.file, "no key of this log signed it")
            return False
        # (2)
        if head.size > self.size:
            if head.file != CHECKPOINT:
                check.found(
                    "out-of-order", head.file, f"it covers {head.size} entries, checkpoint {self.size}"
                )
            return head.file == CHECKPOINT
        try:
            root = root_at(self.bundle, self.size, head.size)
        except (DecodeError, OSError) as error:
            check.found("unreadable", head.file, f"its root cannot be compared: {_said(error)}")
            return True
        if root != head.root:
            check.found(
                "rewritten", head.file, f"its {head.size} entries are not the first {head.size} of this log"
            )
        else:
            check.saw(head.file)
        return True

    def _counted(self, head: Head) -> Head:
        """(4) Return the head with what it takes, and whether that is reached."""
        asked = self.trust.quorum
        if asked is not None:
            return replace(head, satisfied=asked.satisfied(head.counted, self.now))
        quorum = self._quorum(head)
        if quorum is None:
            return head
        votes = quorum.votes(head.counted, self.now)
        return replace(
            head, votes=tuple(sorted(votes)), needed=quorum.needed, satisfied=len(votes) >= quorum.needed
        )

    def _quorum(self, head: Head) -> Quorum | None:
        at = head.latest
        roster = None if at is None else self.trust.roster_at(_moment(at))
        roster = roster or self.trust.newest
        if roster is None:
            return None
        return quorum_of(self._policy_at(head.size), roster, self.origin)

    def _policy_at(self, seq: int) -> Policy | None:
        """Return the policy in force at an entry, as far as its text or its envelope is there."""
        named = self.demands.policy_at(seq)
        if named is None:
            return None
        at, digest, signed = named
        if digest not in self._parsed:
            try:
                self._parsed[digest] = self._parse(digest, signed)
            except (MinshuError, OSError):
                self._parsed[digest] = None
        if self._parsed[digest] is None:
            self._unreadable.setdefault(digest, at)
        return self._parsed[digest]

    def _asks_for_a_quorum(self, seq: int) -> bool:
        """Tell whether the policy in force at an entry lets nothing leave before a quorum has seen it.

        One that cannot be read counts as such: else whoever leaves its text out would leave out the rule.
        """
        policy = self._policy_at(seq)
        if policy is None:
            return self.demands.policy_at(seq) is not None
        return policy.defaults.release_requires == "cosigned"

    def _parse(self, digest: str, signed: str) -> Policy | None:
        text = self.bundle.read_object(digest, MAX_POLICY_BYTES)
        if text is None:
            envelope = self.bundle.read_object(signed, MAX_ENVELOPE_BYTES) if signed else None
            text = None if envelope is None else decode_envelope(envelope).payload
        known = text is not None and sha256_digest(text) == digest
        return parse_policy(text).policy if text is not None and known else None

    def _conflicts(self, check: Check) -> None:
        """What this log's owner says of other logs counts as far as those signed it themselves.

        Two trees between which nobody showed a proof may well be of one history: whoever carries the proof
        can spoil it. Only the other log tells, which `audit.cross` asks.
        """
        keys = self.trust.log_keys_ever
        for conflict in self.demands.conflicts[:_MAX_CONFLICTS]:
            where, log = f"entry {conflict.seq}", _shown(conflict.log)
            shown = conflict.shown(self.bundle, keys)
            if contradict(shown):
                what = f"{log} signed two histories of {shown[0][0].size} entries"
                check.found("witness-conflict", where, what)
            elif conflict.code == SPLIT_VIEW and not any(key.name == conflict.log for key in keys):
                check.lacks(f"the verifier key of {log} for {where} (--keys or --roots)")
            else:
                said = f" ({conflict.code})" if conflict.code else ""
                self.unproven.append(
                    f"{where}: two views of {log} are said not to go together{said}; what is here does not"
                    " prove it, compare it with that log"
                )
        more = len(self.demands.conflicts) - _MAX_CONFLICTS
        if more > 0:
            self.unproven.append(f"{more} more entries speak of views that do not go together")

    def _covered(self, heads: Sequence[Head], check: Check) -> None:
        """(4) What relied on a quorum is under a checkpoint that had it."""
        unknown = sum(head.unknown for head in heads)
        if unknown:
            check.figures["unknown signature lines"] = unknown
        if not heads:
            return
        if all(head.satisfied is None for head in heads):
            check.lacks("who the witnesses are, and how many it takes (--roots, or --quorum with --keys)")
            best = max(heads, key=lambda head: (len(head.votes), head.size))
            check.figures["cosigned by"] = ", ".join(best.votes) or "nobody known"
            return
        covering = max((head for head in heads if head.satisfied), key=lambda head: head.size, default=None)
        covered = 0 if covering is None else covering.size
        check.figures["entries a quorum has seen"] = covered
        if covering is not None:
            check.saw(covering.file)
            check.figures["cosigned by"] = ", ".join(covering.votes)
        elif self.trust.quorum is not None:
            check.found("no-quorum", CHECKPOINT, "no checkpoint here has the cosignatures that you ask for")
        else:
            most = max(heads, key=lambda head: len(head.votes))
            check.lacks(
                f"a checkpoint with a quorum: {len(most.votes)} of {most.needed} have cosigned so far"
            )
        for seq, on in self.demands.uncovered(covered):
            if self._asks_for_a_quorum(seq):
                check.found("uncovered", f"entry {seq}", f"it relied on entry {on}, which no quorum has seen")

    def _newest_at(self, size: int) -> datetime | None:
        """Return when the newest of the first `size` entries was written, None where that cannot be told."""
        return self._time_of(size - 1)

    def _time_of(self, seq: int) -> datetime | None:
        if not 0 <= seq < self.size:
            return None
        try:
            return parse_time(Entry.decode(next(entries_of(self.bundle, self.size, seq))).time)
        except (DecodeError, OSError):
            return None  # said already

    def _clock(self, head: Head, check: Check) -> None:
        """(5) At least two organisations have to say so: one alone may be wrong, or lie."""
        earliest = head.earliest
        if earliest is None:
            return
        written, after = self._time_of(head.size - 1), self._time_of(head.size)
        first = _moment(earliest)
        if written is not None and written > first + SLACK:
            what = f"it says {utc_text(written)}, but was cosigned at {utc_text(first)}"
            check.found("clock-ahead", f"entry {head.size - 1}", what)
        elif after is not None and after < first - GRACE:
            what = f"it says {utc_text(after)}, but follows what nobody cosigned before {utc_text(first)}"
            check.found("dated-back", f"entry {head.size}", what)
        elif written is not None:
            check.saw(head.file)


def _moment(time_s: int) -> datetime:
    """Return a time in seconds since 1970; one that no calendar has is the end of the calendar."""
    return datetime.fromtimestamp(min(time_s, _LAST_S), UTC)


def _dated(time_s: int) -> str:
    """Return a time for a person."""
    return utc_text(_moment(time_s)) if time_s <= _LAST_S else "no date of any calendar"


def _said(error: DecodeError | OSError) -> str:
    if isinstance(error, DecodeError):
        return error.message
    return error.strerror or str(error) or "it cannot be read"


def _shown(origin: str) -> str:
    return origin if origin.isprintable() else ascii(origin)
