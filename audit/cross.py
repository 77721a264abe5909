"""Several logs held against each other: what one says of another has to stand there, and all saw the same.

`Side` gathers, entry by entry, what one log says about attempts, releases and other logs; `cross` compares.
What only time can tell is not judged: a receipt may still be under way when a bundle is made, and a log that
ends earlier cannot show what came after. The rules:

- Of an attempt that one log admitted, each other participant's log has the same admissions, or says how the
  attempt ended there. To do neither is a failure once that log goes on for `GRACE` longer, a notice before.
  A log that goes on and has not even accepted an attempt, whose admission its owner signed, fails at once.
- Of a release, each other participant's log and the coordinator's has a receipt. It is handed over every
  minute until it is kept, so a missing one is a failure if the log that owes it wrote an entry at least
  `GRACE` after the commit, and the log that lacks it wrote one at least `GRACE` after that. Before, it is a
  notice with its age.
- A receipt names a place in another log. If that log is at hand and as long, just that release stands there.
- A checkpoint that anyone shows of a log, and that the log signed, is the root of that log's beginning. A log
  shorter than checkpoints that two organisations cosigned before its own newest sign of life was cut; without
  such a sign, or by the word of one witness, its bundle is just older.
- An attempt whose cost a log took back, because nothing of it left, has no result in any other log.
- A refusal that the coordinator was told stands in the log of the node that refused, `GRACE` later.
- Of a round of a training run, all logs that recorded it say how many sources it is of, the same of each, and
  no more of them recorded it.
- Of an attempt's look-ups that a log answered, those who asked have at least as many in theirs. Where the
  attempt ended otherwise than well, or goes on, answers to the last `UNDER_WAY` requests may not have come.
"""

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from audit.bundle import Bundle, root_at
from audit.entries import Entry, parse_time
from audit.findings import Check, Checks, Finding, Question
from audit.heads import GRACE, Conflict, Demands, Head, Heads
from audit.note import VerifierKey
from audit.review import Review
from audit.trust import Trust
from audit.verify import Problem, Verdict, verify_directory
from protocols.encoding import b64encode, digest_bytes, sha256_digest
from protocols.envelope import JOB, MAX_ENVELOPE_BYTES, decode_envelope
from protocols.errors import DecodeError, InputError
from protocols.lookup.plan import BAD_ROW
from protocols.party import UNDER_WAY
from protocols.succession import CLOCK_TOLERANCE
from protocols.wire import JobSpec

QUESTIONS: Final = (
    Question(
        "admissions", "Every attempt stands in all participants' logs", "每次执行在各参与方日志中均有记录"
    ),
    Question(
        "receipts", "Every release is receipted in all participants' logs", "每项结果在各参与方日志中均有回执"
    ),
    Question("claims", "What a log says of another stands there", "日志之间的相互引用一致"),
    Question("views", "Everybody has seen the same logs", "各方所见的日志一致"),
    Question("clocks", "Clocks agree", "各方时钟一致"),
)
"""What `cross` answers, in the order of a report."""

_GRACE_MS: Final = int(GRACE / timedelta(milliseconds=1))
_TOLERANCE_MS: Final = int(CLOCK_TOLERANCE / timedelta(milliseconds=1))

Attempt = tuple[str, int]


class _Admitted(NamedTuple):
    seq: int
    ms: int
    ctx: str
    refs: frozenset[str]
    envelope: str
    admission: str


class _Commit(NamedTuple):
    seq: int
    ms: int
    attempt: Attempt
    release: str
    sha256: str
    note: str


class _Receipt(NamedTuple):
    seq: int
    ms: int
    attempt: Attempt
    peer: str
    kind: str
    release: str
    log: str
    at: int
    sha256: str
    envelope: str


class _Refusal(NamedTuple):
    """What the coordinator says that a node answered. `code`: why it refused, empty for any other answer."""

    seq: int
    ms: int
    attempt: Attempt
    peer: str
    code: str


class _Answered(NamedTuple):
    """A request of a look-up session that a node answered."""

    seq: int
    ms: int
    lookups: int


class _Round(NamedTuple):
    """A round that a source recorded: what for, and of how many sources."""

    seq: int
    turn: str
    sources: int | None


class _Claim(NamedTuple):
    """A checkpoint that a log signed, as somebody shows it. `seen`: who cosigned it, and when."""

    label: str
    where: str
    origin: str
    size: int
    root: bytes
    seen: tuple[tuple[str, int], ...] = ()


@dataclass(slots=True)
class Side:
    """One log, as far as it speaks of others.

    Attributes:
        bundle: where it lies.
        trust: what it is held against.
        verdict: whether it holds together.
        heads: its own checkpoints.
        witnessed: those of other logs that its owner cosigned.
        notices: what fails nothing, but a reader should know.
    """

    bundle: Bundle
    trust: Trust
    verdict: Verdict | None = None
    heads: tuple[Head, ...] = ()
    witnessed: tuple[Head, ...] = ()
    admitted: dict[Attempt, _Admitted] = field(default_factory=dict)
    accepted: dict[Attempt, str] = field(default_factory=dict)
    ended: dict[Attempt, int] = field(default_factory=dict)
    freed: dict[Attempt, int] = field(default_factory=dict)
    done: dict[Attempt, int] = field(default_factory=dict)
    answers: dict[Attempt, set[str]] = field(default_factory=dict)
    refusals: list[_Refusal] = field(default_factory=list)
    conflicts: list[Conflict] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    started: dict[Attempt, tuple[int, frozenset[str]]] = field(default_factory=dict)
    answered: dict[Attempt, list[_Answered]] = field(default_factory=dict)
    asked: dict[Attempt, int] = field(default_factory=dict)
    rounds: dict[tuple[str, int, int], _Round] = field(default_factory=dict)
    commits: dict[int, _Commit] = field(default_factory=dict)
    receipts: list[_Receipt] = field(default_factory=list)
    followed: list[tuple[int, str, int, bytes]] = field(default_factory=list)
    coordinates: bool = False
    version: int = 0
    _times: "array[int]" = field(default_factory=lambda: array("q"))

    @property
    def label(self) -> str:
        """The bundle's name, for a person."""
        return self.bundle.label

    @property
    def origin(self) -> str:
        """The log's name, empty if it cannot be read."""
        return self.verdict.origin if self.verdict else ""

    @property
    def node(self) -> str:
        """Whose log it is."""
        return self.origin.partition("/journal/")[0]

    @property
    def size(self) -> int:
        """Entries that its checkpoint covers."""
        return self.verdict.size if self.verdict else 0

    @property
    def last_ms(self) -> int:
        """When its newest entry was written, milliseconds since 1970; 0 without one."""
        return self._times[-1] if self._times else 0

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that it had, oldest first; none if it does not hold together."""
        return self.verdict.keys if self.verdict and self.verdict.ok else ()

    def written(self, seq: int) -> int | None:
        """Return when entry `seq` was written, None if that is not known."""
        return self._times[seq] if 0 <= seq < len(self._times) else None

    def first_after(self, ms: int) -> int | None:
        """Return when the first entry not before `ms` was written, None if there is none."""
        place = bisect_left(self._times, ms)
        return self._times[place] if place < len(self._times) else None

    def visit(self, entry: Entry) -> None:
        """Take in one entry; all, in order, once."""
        ms = int(parse_time(entry.time).timestamp() * 1000)
        # A clock that went back shows as standing still: what is searched has to be in order.
        self._times.append(max(ms, self.last_ms))
        body, attempt = entry.body, (entry.job, entry.attempt)
        self.version = max(self.version, entry.v)
        match entry.kind:
            case "job.accepted":
                self.accepted[attempt] = body["admission_sha256"]
            case "job.admitted":
                self.admitted[attempt] = _Admitted(
                    entry.seq, ms, body.get("ctx", ""), frozenset(entry.refs),
                    body.get("envelope_sha256", ""), body["admission_sha256"],
                )  # fmt: skip
            case "job.failed" | "job.aborted" | "job.cancelled" | "job.expired":
                self.ended.setdefault(attempt, entry.seq)
                if body.get("freed"):
                    self.freed.setdefault(attempt, entry.seq)
            case "job.done":
                self.done.setdefault(attempt, entry.seq)
            case "job.received":
                self.answers.setdefault(attempt, set())
            case "job.refused" if "peer" in body:
                self.refusals.append(_Refusal(entry.seq, ms, attempt, body["peer"], body["code"]))
            case "job.refused":
                self.answers.setdefault(attempt, set()).add(body["code"])
            case "lookup.answered":
                self.answered.setdefault(attempt, []).append(_Answered(entry.seq, ms, body["lookups"]))
            case "lookup.asked":
                self.asked[attempt] = self.asked.get(attempt, 0) + body["lookups"]
            case "lookup.refused" if body["code"] == BAD_ROW[0]:
                # Answered, but not to be read: the department asked does not know that.
                self.asked[attempt] = self.asked.get(attempt, 0) + body["lookups"]
            case "training.round":
                said = _Round(entry.seq, body["turn"], body.get("sources"))
                self.rounds.setdefault((*attempt, body["round"]), said)
            case "witness.conflict":
                self.conflicts.append(Conflict.of(entry))
            case "job.started":
                self.coordinates = True
                self.started[attempt] = entry.seq, frozenset(entry.refs)
            case "job.submitted" | "roster.published":
                self.coordinates = True
            case "output.commit":
                self.commits[entry.seq] = _Commit(
                    entry.seq, ms, attempt, body["release"], body["sha256"], body.get("envelope_sha256", "")
                )
            case "peer.receipt":
                if body.get("kind") == "verdict":
                    self.refusals.append(_Refusal(entry.seq, ms, attempt, body["peer"], ""))
                self.receipts.append(
                    _Receipt(
                        entry.seq, ms, attempt, body["peer"], body.get("kind", ""), body.get("release", ""),
                        body.get("log", ""), body.get("seq", -1), body["sha256"],
                        body.get("envelope_sha256", ""),
                    )
                )  # fmt: skip
            case "log.successor" if {"log", "size", "root"} <= body.keys():
                self.followed.append((entry.seq, body["log"], body["size"], digest_bytes(body["root"])))

    def take(self, reviewed: Review) -> "Side":
        """Take over what a review found, whose `also` was this one's `visit`."""
        self.verdict, self.trust = reviewed.verdict, reviewed.trust
        self.heads, self.witnessed = reviewed.heads, reviewed.witnessed
        return self

    def signed(self, head: Head) -> bool:
        """Tell whether this log signed a checkpoint of itself, by the keys that it is known to have had."""
        keys = [VerifierKey.parse(key) for key in self.keys]
        return any(
            (line.name, line.key_id) == (key.name, key.key_id) and key.holds(head.note.text, line.signature)
            for line in head.note.signatures
            for key in keys
        )

    def sign_of_life(self) -> int:
        """Return the latest moment at which this log's folder provably was not older, milliseconds."""
        # Of others' word, what two of them say: one alone could let any log look cut.
        signed = [head.latest or 0 for head in self.heads if len(head.seen) > 1]
        mine = f"{self.node}/witness/"
        signed += [
            time_s for head in self.witnessed for label, time_s in head.cosigned if label.startswith(mine)
        ]
        return max(self.last_ms, *(time_s * 1000 for time_s in signed), 0)


def gather(
    bundle: Bundle,
    trust: Trust,
    visit: Callable[[Entry], None] | None = None,
    now: datetime | None = None,
) -> Side:
    """Verify the structure of a bundle and return what it says of others.

    Whatever a bundle was made to break in here is said of that bundle: it does not verify, `unreviewable`.

    Args:
        bundle: opened.
        trust: what the auditor brings.
        visit: called with every entry, too; for a progress bar.
        now: the auditor's clock; what was cosigned later does not count. None: any time.
    """
    side = Side(bundle, trust)
    try:
        _gather(side, visit, now)
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001  # outermost: a log may be made to break what reads it
        what = f"reading it ended with {type(error).__name__}"
        problem = Problem("unreviewable", bundle.label, what)
        return Side(bundle, trust, Verdict("", 0, b"", (), (), {}, "", "", (problem,), 1))
    return side


def _gather(side: Side, visit: Callable[[Entry], None] | None, now: datetime | None) -> None:
    side.trust, _ = side.trust.of(side.bundle)
    demands = Demands()

    def each(entry: Entry) -> None:
        side.visit(entry)
        demands.visit(entry)
        if visit is not None:
            visit(entry)

    side.verdict = verify_directory(side.bundle, side.trust.log_keys, visit=each)
    if side.origin:
        checks = Checks()
        keys = [VerifierKey.parse(key) for key in side.verdict.keys]
        heads = Heads(side.bundle, side.trust, side.origin, side.size, keys, demands, now)
        side.heads = heads.own(checks["signed"], checks["witnessed"], checks["time"])
        side.witnessed = heads.others(checks["witnessed"])
        side.notices = heads.notices


@dataclass(slots=True)
class Crossed:
    """What comparing logs came to.

    Attributes:
        sides: the logs.
        checks: question → answer.
        notices: what only time can tell, or another bundle.
    """

    sides: Sequence[Side]
    checks: dict[str, Check] = field(default_factory=lambda: {q.id: Check(q.id) for q in QUESTIONS})
    notices: list[Finding] = field(default_factory=list)
    blamed: list[tuple[str, Finding]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every log holds together and nothing contradicts another."""
        whole = all(side.verdict is not None and side.verdict.ok for side in self.sides)
        return whole and not any(check.count for check in self.checks.values())

    def document(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {
            "ok": self.ok,
            "logs": [
                {
                    "bundle": side.label,
                    "origin": side.origin,
                    "size": side.size,
                    "ok": side.verdict is not None and side.verdict.ok,
                    "problems": side.verdict.problem_count if side.verdict else 0,
                    "heads": [head.document() for head in side.heads],
                }
                for side in self.sides
            ],
            "checks": [check.document() for check in self.checks.values()],
            "notices": [{"code": n.code, "where": n.where, "what": n.what} for n in self.notices],
        }

    def tell(self, reviews: Sequence[Review]) -> None:
        """Put what is wrong with a log's history into the reviews of the logs that it concerns."""
        for label, finding in self.blamed:
            for each in reviews:
                if each.label == label:
                    each.checks["witnessed"].found(finding.code, finding.where, finding.what)


def cross(sides: Sequence[Side]) -> Crossed:
    """Hold logs against each other.

    Raises:
        InputError: fewer than two.
    """
    if len(sides) < 2:
        raise InputError("one log alone contradicts nobody", code="too-few", hint="give two or more bundles")
    crossing = _Crossing(Crossed(sides))
    crossing.noted()
    crossing.admissions()
    crossing.freed()
    crossing.receipts()
    crossing.claims()
    crossing.refusals()
    crossing.lookups()
    crossing.rounds()
    crossing.views()
    crossing.clocks()
    return crossing.crossed


@dataclass(slots=True)
class _Crossing:
    """One comparison under way."""

    crossed: Crossed
    _seats: dict[str, tuple[str, ...] | None] = field(default_factory=dict)

    @property
    def sides(self) -> Sequence[Side]:
        return self.crossed.sides

    def of(self, node: str) -> list[Side]:
        return [side for side in self.sides if side.node == node]

    def of_log(self, origin: str) -> list[Side]:
        return [side for side in self.sides if side.origin == origin]

    def found(self, question: str, code: str, side: Side, where: str, what: str) -> None:
        self.crossed.checks[question].found(code, f"{side.label}: {where}", what)
        self.crossed.blamed.append((side.label, Finding(code, where, what)))

    def saw(self, question: str, side: Side, where: str) -> None:
        self.crossed.checks[question].saw(f"{side.label}: {where}")

    def notice(self, code: str, where: str, what: str) -> None:
        self.crossed.notices.append(Finding(code, where, what))

    def seats(self, side: Side, job: str, envelope: str) -> tuple[str, ...] | None:
        """Return the nodes that a job names; the job's own text says so, and hashes to its id."""
        if job not in self._seats:
            self._seats[job] = None
            try:
                data = side.bundle.read_object(envelope, MAX_ENVELOPE_BYTES) if envelope else None
                document = None if data is None else decode_envelope(data)
                if document and document.payload_type == JOB and sha256_digest(document.payload) == job:
                    self._seats[job] = tuple(JobSpec.decode(document.payload).roles.values())
            except (DecodeError, OSError):
                pass  # not known from here; another log may have it whole
            if self._seats[job] is None:
                del self._seats[job]
                return None
        return self._seats[job]

    def others(self, side: Side, attempt: Attempt, check: Check) -> list[str] | None:
        """Return the other nodes of an attempt that a log admitted, None if that cannot be told."""
        admitted = side.admitted.get(attempt)
        seats = None if admitted is None else self.seats(side, attempt[0], admitted.envelope)
        if seats is None:
            check.lacks(f"the signed text of job {_short(attempt[0])}, which names the participants")
            return None
        return [node for node in seats if node != side.node]

    # -- attempts --------------------------------------------------------------------------------------------

    def admissions(self) -> None:
        """Every attempt that one log admitted stands in all its participants' logs, and the coordinator's."""
        check = self.crossed.checks["admissions"]
        for side in self.sides:
            for attempt, admitted in side.admitted.items():
                for node in self.others(side, attempt, check) or ():
                    there = self.of(node)
                    if not there:
                        check.lacks(f"the bundle of {node}")
                    else:
                        self._admission(side, attempt, admitted, there)
                for other in self.sides:
                    if other.coordinates and other is not side:
                        self._started(side, attempt, admitted, other)

    def _admission(self, side: Side, attempt: Attempt, admitted: _Admitted, there: Sequence[Side]) -> None:
        here = f"entry {admitted.seq}"
        for other in there:
            same = other.admitted.get(attempt)
            if same is None and attempt not in other.ended:
                continue
            if same is not None and (same.ctx, same.refs) != (admitted.ctx, admitted.refs):
                what = f"its admissions are others than at entry {same.seq} of {other.label}"
                self.found("admissions", "another-admission", side, here, what)
            else:
                place = f"entry {other.ended[attempt] if same is None else same.seq}"
                self.saw("admissions", side, f"{here}, {other.label}: {place}")
            return
        other = max(there, key=lambda each: each.last_ms)
        what = f"attempt {attempt[1]} of job {_short(attempt[0])}, which {side.label} admitted at {here}"
        signed = other.version < 3 or attempt in other.accepted
        if not signed and other.last_ms > admitted.ms + _TOLERANCE_MS:
            self.found("admissions", "one-sided", other, "the whole log", f"it has never accepted {what}")
        elif other.last_ms > admitted.ms + _GRACE_MS:
            self.found("admissions", "one-sided", other, "the whole log", f"it says nothing of {what}")
        else:
            self.notice("under-way", other.label, f"it ends before it says what became of {what}")

    def _started(self, side: Side, attempt: Attempt, admitted: _Admitted, coordinator: Side) -> None:
        here = f"entry {admitted.seq}"
        started = coordinator.started.get(attempt)
        if started is not None and started[1] == admitted.refs:
            self.saw("admissions", side, f"{here}, {coordinator.label}: entry {started[0]}")
        elif started is not None:
            what = f"its admissions are others than {coordinator.label} handed out at entry {started[0]}"
            self.found("admissions", "another-admission", side, here, what)
        elif coordinator.last_ms > admitted.ms + _TOLERANCE_MS and coordinator.version >= 3:
            what = f"it never started attempt {attempt[1]} of job {_short(attempt[0])}"
            self.found(
                "admissions", "one-sided", coordinator, "the whole log", f"{what}, {side.label} {here}"
            )
        else:
            what = f"it ends before attempt {attempt[1]} of job {_short(attempt[0])}"
            self.notice("under-way", coordinator.label, what)

    def freed(self) -> None:
        """Whoever takes a cost back says that nothing left; then nobody has a result of that attempt."""
        for side in self.sides:
            for attempt, seq in side.freed.items():
                for other in self.sides:
                    if other is side:
                        continue
                    results = [commit.seq for commit in other.commits.values() if commit.attempt == attempt]
                    # Whoever only gave something is done early, and has none.
                    if attempt in other.done and attempt in other.asked:
                        results.append(other.done[attempt])
                    if results:
                        what = (
                            f"it took back what attempt {attempt[1]} of job {_short(attempt[0])} cost, but"
                            f" {other.label} has its result at entry {min(results)}"
                        )
                        self.found("admissions", "freed-but-answered", side, f"entry {seq}", what)

    # -- releases --------------------------------------------------------------------------------------------

    def receipts(self) -> None:
        """Every release is receipted by every other participant of its attempt that admitted it, too."""
        check = self.crossed.checks["receipts"]
        kept = {
            (other.label, receipt.log, receipt.at): receipt
            for other in self.sides
            for receipt in other.receipts
            if receipt.kind == "output.commit"
        }
        for side in self.sides:
            for commit in side.commits.values():
                nodes = self.others(side, commit.attempt, check)
                if nodes is None:
                    continue
                for node in nodes:
                    if not self.of(node):
                        check.lacks(f"the bundle of {node}")
                owing = [
                    other
                    for other in self.sides
                    # Who never admitted the attempt takes no receipt of it.
                    if (other.node in nodes and commit.attempt in other.admitted)
                    or (other.coordinates and commit.attempt in other.started)
                ]
                for other in owing:
                    receipt = kept.get((other.label, side.origin, commit.seq))
                    if receipt is not None:
                        where = f"entry {commit.seq}, {other.label}: entry {receipt.seq}"
                        self.saw("receipts", side, where)
                    elif side.version >= 3 and other.version >= 3:
                        self._missing(side, commit, other)

    def _missing(self, side: Side, commit: _Commit, other: Side) -> None:
        what = f"no receipt of release {commit.release} (entry {commit.seq} of {side.label})"
        awake = side.first_after(commit.ms + _GRACE_MS)
        if awake is not None and other.last_ms >= awake + _GRACE_MS:
            self.found("receipts", "one-sided", other, "the whole log", what)
        else:
            age = max(0, max(side.last_ms, other.last_ms) - commit.ms) // 1000
            self.notice("under-way", other.label, f"{what} yet, {age} s after it became final")

    # -- what one says of another ----------------------------------------------------------------------------

    def claims(self) -> None:
        """What a receipt says of another log stands there, at that place."""
        for side in self.sides:
            for receipt in side.receipts:
                if receipt.kind == "output.commit" and receipt.log:
                    self._claim(side, receipt)
                elif receipt.kind == "release":
                    self._note(side, receipt)
                elif receipt.kind == "admission":
                    self._handed(side, receipt)

    def _claim(self, side: Side, receipt: _Receipt) -> None:
        check = self.crossed.checks["claims"]
        there = [other for other in self.sides if other.origin == receipt.log]
        if not there:
            check.lacks(f"the bundle of {receipt.log}")
            return
        here = f"{side.label}: entry {receipt.seq}"
        longest = max(there, key=lambda other: other.size)
        if receipt.at >= longest.size:
            what = f"it ends at {longest.size} entries, {here} has a receipt of its entry {receipt.at}"
            if longest.last_ms > receipt.ms + _TOLERANCE_MS:
                self.found("claims", "rewritten", longest, "the whole log", what)
            else:
                self.notice("older-bundle", longest.label, what)
            return
        for other in there:
            if receipt.at >= other.size:
                continue
            commit = other.commits.get(receipt.at)
            claimed = (receipt.attempt, receipt.release, receipt.sha256)
            if commit is None or (commit.attempt, commit.release, commit.sha256) != claimed:
                what = f"{here} has a signed receipt of release {receipt.release}, which does not stand here"
                self.found("claims", "rewritten", other, f"entry {receipt.at}", what)
            else:
                check.saw(here)

    def _note(self, side: Side, receipt: _Receipt) -> None:
        """A release that the coordinator took in is one that its node made final."""
        check = self.crossed.checks["claims"]
        for other in self.of(receipt.peer):
            notes = {commit.note for commit in other.commits.values() if commit.release == receipt.release}
            if receipt.envelope in notes:
                check.saw(f"{side.label}: entry {receipt.seq}")
                return
        for other in self.of(receipt.peer)[:1]:
            what = f"it never made release {receipt.release} final, which {side.label} took in"
            if other.last_ms > receipt.ms + _TOLERANCE_MS:
                self.found("claims", "one-sided", other, "the whole log", f"{what} (entry {receipt.seq})")
            else:
                self.notice("older-bundle", other.label, f"{what} at entry {receipt.seq}")

    def _handed(self, side: Side, receipt: _Receipt) -> None:
        """An admission that the coordinator passed on is one that its node's log has."""
        check = self.crossed.checks["claims"]
        there = [other for other in self.of(receipt.peer) if other.version >= 3]
        for other in there:
            known = {other.accepted.get(receipt.attempt)}
            if receipt.attempt in other.admitted:
                known.add(other.admitted[receipt.attempt].admission)
            if receipt.sha256 in known:
                check.saw(f"{side.label}: entry {receipt.seq}")
                return
        for other in there[:1]:
            what = f"it has not the admission that {side.label} passed on at entry {receipt.seq}"
            if other.last_ms > receipt.ms + _TOLERANCE_MS or receipt.attempt in other.accepted:
                self.found("claims", "another-admission", other, "the whole log", what)
            else:
                self.notice("older-bundle", other.label, what)

    def refusals(self) -> None:
        """What the coordinator was answered, the node that answered has journaled."""
        check = self.crossed.checks["claims"]
        for side in self.sides:
            for refusal in side.refusals:
                there = self.of(refusal.peer)
                if not there:
                    check.lacks(f"the bundle of {refusal.peer}")
                elif any(_answered(other, refusal) for other in there):
                    check.saw(f"{side.label}: entry {refusal.seq}")
                else:
                    self._unanswered(side, refusal, max(there, key=lambda other: other.last_ms))

    def _unanswered(self, side: Side, refusal: _Refusal, other: Side) -> None:
        job = _short(refusal.attempt[0])
        what = f"it says nothing of refusing job {job}" if refusal.code else f"it never answered job {job}"
        where = f"{side.label} entry {refusal.seq}"
        if other.last_ms > refusal.ms + _GRACE_MS:
            self.found("claims", "refusal-left-out", other, "the whole log", f"{what}, as {where} says")
        else:
            self.notice("older-bundle", other.label, f"{what}, which {where} tells of")

    def lookups(self) -> None:
        """Whoever asked has journaled no fewer look-ups than were answered."""
        check = self.crossed.checks["claims"]
        for side in self.sides:
            for attempt, answered in side.answered.items():
                for node in self.others(side, attempt, check) or ():
                    there = self.of(node)
                    if not there:
                        check.lacks(f"the bundle of {node}")
                    else:
                        self._looked_up(side, attempt, answered, max(there, key=lambda each: each.size))

    def _looked_up(self, side: Side, attempt: Attempt, answered: Sequence[_Answered], other: Side) -> None:
        asked, settled = other.asked.get(attempt, 0), answered
        if attempt not in other.done:
            if attempt not in other.ended:  # what is recent may be in neither
                settled = [each for each in answered if each.ms + _GRACE_MS < other.last_ms]
            # Messages come in order, so what was on its way is what came last.
            settled = settled[: max(len(answered) - UNDER_WAY, 0)]
        total = sum(each.lookups for each in settled)
        if total <= asked:
            self.saw("claims", side, f"entry {answered[-1].seq}")
            return
        what = (
            f"it has {asked} look-ups of attempt {attempt[1]} of job {_short(attempt[0])}, but {side.label} "
            f"answered {total} until entry {settled[-1].seq}"
        )
        self.found("claims", "lookups-left-out", other, "the whole log", what)

    def rounds(self) -> None:
        """Whoever leads a training run tells all sources of a round the same: what for, and who is in it."""
        recorded: dict[tuple[str, int, int], list[tuple[Side, _Round]]] = {}
        for side in {side.node: side for side in self.sides}.values():
            for key, said in side.rounds.items():
                recorded.setdefault(key, []).append((side, said))
        for (job, attempt, number), each in recorded.items():
            side, first = each[0]
            about = f"round {number} of attempt {attempt} of job {_short(job)}"
            for other, said in each[1:]:
                if (said.turn, said.sources) != (first.turn, first.sources):
                    what = f"{about} is told otherwise than at entry {first.seq} of {side.label}"
                    self.found("claims", "another-round", other, f"entry {said.seq}", what)
                    break
            else:
                if first.sources is not None and len(each) > first.sources:
                    what = f"{about} is of {first.sources} sources, and {len(each)} logs recorded it"
                    self.found("claims", "another-round", side, f"entry {first.seq}", what)
                else:
                    self.saw("claims", side, f"entry {first.seq}")

    # -- one history -----------------------------------------------------------------------------------------

    def noted(self) -> None:
        """What was noted of each log by itself."""
        for side in self.sides:
            for what in side.notices:
                self.notice("noted", side.label, what)

    def views(self) -> None:
        """Every checkpoint that anyone shows of a log is of one history; so are all rosters."""
        check = self.crossed.checks["views"]
        claims = [claim for side in self.sides for claim in self._shown(side)]
        seen: dict[tuple[str, int], _Claim] = {}
        for claim in claims:
            first = seen.setdefault((claim.origin, claim.size), claim)
            if first.root != claim.root:
                self._split(first, claim)
                continue
            there = self.of_log(claim.origin)
            if not there:
                check.lacks(f"the bundle of {claim.origin}")
            for side in there:
                self._view(side, claim)
        for side in self.sides:
            self._cut(side, [claim for claim in claims if claim.origin == side.origin])
        self._rosters()

    def _shown(self, side: Side) -> Iterator[_Claim]:
        """Yield every checkpoint that one shows, its own or another log's, if that log itself signed it."""
        for head in (*side.heads, *side.witnessed):
            if head.signed_by or any(each.origin == head.origin and each.signed(head) for each in self.sides):
                yield _Claim(side.label, head.file, head.origin, head.size, head.root, head.seen)
            elif head.cosigned:
                what = f"{head.file} is not signed by any key of {head.origin} that is known here"
                self.notice("not-signed", side.label, what)
        for seq, origin, size, root in side.followed:
            if origin.partition("/journal/")[0] == side.node:
                yield _Claim(side.label, f"entry {seq}", origin, size, root)
        for conflict in side.conflicts:
            keys = [
                *side.trust.log_keys_ever,
                *(VerifierKey.parse(key) for each in self.of_log(conflict.log) for key in each.keys),
            ]
            where = f"entry {conflict.seq}"
            shown = conflict.shown(side.bundle, keys)
            there = max((each.size for each in self.of_log(conflict.log)), default=-1)
            if len(shown) < 2 or any(checkpoint.size > there for checkpoint, _ in shown):
                what = f"{where} speaks of two views of {conflict.log}, which cannot be told from here"
                self.notice("unproven-conflict", side.label, what)
            for checkpoint, _ in shown:
                yield _Claim(side.label, where, checkpoint.origin, checkpoint.size, checkpoint.root)

    def _view(self, side: Side, claim: _Claim) -> None:
        check = self.crossed.checks["views"]
        if claim.size > side.size:
            return
        try:
            root = root_at(side.bundle, side.size, claim.size)
        except (DecodeError, OSError):
            check.lacks(f"readable tiles of {side.label}")
            return
        if root == claim.root:
            check.saw(f"{claim.label}: {claim.where}")
            return
        mine = _Claim(side.label, "checkpoint", side.origin, claim.size, root)
        self._split(mine, claim)

    def _cut(self, side: Side, claims: Sequence[_Claim]) -> None:
        """A log that was seen to be longer before its own newest sign of life was cut since."""
        longer = [claim for claim in claims if claim.size > side.size]
        if not longer:
            return
        before = side.sign_of_life() - _TOLERANCE_MS
        houses = {house for claim in longer for house, time_s in claim.seen if time_s * 1000 < before}
        longest = max(longer, key=lambda claim: claim.size)
        where = f"{longest.label}: {longest.where}"
        what = f"it has {side.size} entries, but {where} shows {longest.size}"
        if len(houses) > 1:
            who = ", ".join(sorted(houses))
            self.found("views", "shortened", side, "checkpoint", f"{what}; signed for before by {who}")
        else:
            self.notice("older-bundle", side.label, f"{what}; ask for a newer bundle")

    def _split(self, one: _Claim, other: _Claim) -> None:
        what = (
            f"two histories of {one.origin} at {one.size} entries:"
            f" root {b64encode(one.root)} in {one.label} ({one.where}),"
            f" root {b64encode(other.root)} in {other.label} ({other.where})"
        )
        finding = Finding("split-view", f"{one.label}: {one.where}", what)
        check = self.crossed.checks["views"]
        if finding not in check.findings:
            check.found(finding.code, finding.where, finding.what)
            for side in self.sides:
                if side.origin == one.origin:
                    self.crossed.blamed.append((side.label, Finding("split-view", one.where, what)))

    def _rosters(self) -> None:
        seen: dict[int, tuple[str, str]] = {}
        for side in self.sides:
            for roster in side.trust.rosters:
                label, digest = seen.setdefault(roster.version, (side.label, roster.digest))
                if digest != roster.digest:
                    what = f"{label} has another text of roster version {roster.version}, as well signed"
                    self.found("views", "roster-forked", side, "rosters", what)

    # -- clocks ----------------------------------------------------------------------------------------------

    def clocks(self) -> None:
        """Nobody receipts or cosigns what is not yet written, give or take a few minutes; all participants
        admit an attempt within `GRACE`.
        """
        self._admitted_apart()
        logs = {side.origin: side for side in self.sides}
        for side in self.sides:
            told = [
                (receipt.log, receipt.at, receipt.ms, f"entry {receipt.seq}") for receipt in side.receipts
            ]
            told += [
                (head.origin, head.size - 1, head.latest * 1000, head.file)
                for head in side.witnessed
                if head.latest is not None
            ]
            for origin, seq, ms, where in told:
                other = logs.get(origin)
                written = None if other is None or other is side else other.written(seq)
                if other is None or written is None:
                    continue
                if written > ms + _TOLERANCE_MS:
                    what = f"{(written - ms) // 1000} s before {other.label} wrote what it is about"
                    self.found("clocks", "clocks-apart", side, where, what)
                else:
                    self.saw("clocks", side, where)

    def _admitted_apart(self) -> None:
        """An attempt begins everywhere at once, so whose entry is far from the others' is dated wrongly."""
        times: dict[Attempt, list[tuple[int, int, Side]]] = {}
        for side in self.sides:
            for attempt, admitted in side.admitted.items():
                times.setdefault(attempt, []).append((admitted.ms, admitted.seq, side))
        for told in times.values():
            median = sorted(ms for ms, _, _ in told)[len(told) // 2]
            for ms, seq, side in told:
                if abs(ms - median) > _GRACE_MS:
                    what = f"it admitted an attempt {abs(ms - median) // 1000} s apart from the others"
                    self.found("clocks", "clocks-apart", side, f"entry {seq}", what)


def _answered(other: Side, refusal: _Refusal) -> bool:
    """Tell whether a log has the answer that another one tells of, or says how the attempt ended instead."""
    answers = other.answers.get(refusal.attempt)
    if refusal.attempt in other.ended:
        return True
    return answers is not None and (not refusal.code or refusal.code in answers)


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:12]
