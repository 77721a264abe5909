"""Releases and what becomes of them: committed, handed over, verified, deleted when their time is over."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from audit.disclosure import NO_JOB, Released
from audit.entries import Entry, format_time, parse_time
from audit.evidence import Evidence
from audit.findings import Checks
from audit.force import SUCCESSOR, Force
from audit.jobs import EARLIER, SAYS_ALL, Attempt, Job, Jobs, Output, Spoken, after
from audit.statements import agrees, release_facts
from protocols.encoding import sha256_digest
from protocols.envelope import RELEASE, decode_envelope, verify
from protocols.errors import MinshuError
from protocols.jobs.job_type import SUSPECTED, OutputClass, PlannedRelease
from protocols.succession import CLOCK_TOLERANCE
from protocols.wire import JobSpec, ReleaseNote, organisation_of

PATIENCE: Final = timedelta(days=1)
"""How long after its time a thing may still be under way before that is reported."""

UNCHARGED: Final = "what a session's attempt was charged, which its entries leave open"

INPUTS: Final = "a released list and the salt of the input it is from; the node keeps both for auditors"


@dataclass(frozen=True, slots=True)
class Text:
    """A job's text that retention will delete: when it came, the entry that names it, its object."""

    received: str
    where: str
    envelope: str
    job: Job


@dataclass(slots=True)
class Outputs:
    """The releases of a log's node.

    Attributes:
        releases: those of classes A and C, by the digest of their content.
    """

    jobs: Jobs
    evidence: Evidence
    force: Force
    checks: Checks
    releases: dict[str, Released] = field(default_factory=dict)
    _lists: list[tuple[str, Output]] = field(default_factory=list)
    _texts: list[Text] = field(default_factory=list)
    _verified: set[str] = field(default_factory=set)
    _gone: set[str] = field(default_factory=set)
    _looked_up: Counter[tuple[str, int]] = field(default_factory=Counter)

    def committed(self, entry: Entry, where: str) -> None:
        """`output.commit`: an output that was permitted, made once, and sealed to whom it is for.

        (1) The attempt was admitted, and has begun to answer. (2) Its note, signed by the node, says the
        same. (3) The release is one that was permitted, and has not been made yet. (4) It goes to whom the
        permission says, sealed to that one's key. (5) It is kept no longer than the policy allows.
        """
        check, body = self.checks["outputs"], entry.body
        # (1)
        attempt = self.jobs.under_way(entry, where, check)
        output = Output(
            where, body["class"], body.get("recipient", ""), body["sha256"], body.get("expires", "")
        )
        if output.output_class == OutputClass.DIRECTED:
            self._lists.append((body["release"], output))
        if attempt is None:
            return
        if body["release"] in attempt.outputs:
            check.found("committed-twice", where, "the release was committed before")
        attempt.outputs[body["release"]] = output
        if entry.v < SAYS_ALL:
            check.lacks(EARLIER)
            return
        if not attempt.answering:
            check.found("without-answer", where, "no job.answering stands before it")
        note = self._note(entry, where)
        if note is None or attempt.permit is None or attempt.role is None:
            return
        # (2)
        facts = release_facts(note, attempt.role)
        wrong = [key for key, value in facts.items() if not agrees(key, body.get(key), value)]
        if (note.job, note.attempt, note.node) != (entry.job, entry.attempt, self.force.node) or wrong:
            check.found("wrong-note", where, "the note says something else of the release")
            return
        # (3)
        planned = attempt.planned.pop(note.name, None)
        if planned is None or planned.output_class != note.output_class:
            check.found("unplanned-release", where, "no such release was permitted, or it was made already")
            return
        # (4) (5)
        if self._fits(note, planned, attempt, where):
            check.saw(where)
        if note.output_class != OutputClass.DIRECTED:
            spec = self._spec(entry.job, where)
            persons = bool(attempt.permit.terms.unit)
            self.releases[note.content_sha256] = Released(
                note, where, attempt.constraints, spec, persons, attempt.keys, attempt.inputs
            )

    def models(self, opened: Mapping[str, bytes]) -> None:
        """Look at opened models that other nodes have made, of jobs that this node took part in."""
        from audit.disclosure_models import examine_part, made_elsewhere

        check = self.checks["disclosure"]
        for name, note, card in made_elsewhere(opened, self.releases, self.force.roster, check):
            job = self.jobs.known(note.job)
            attempt = None if job is None else job.attempts.get(note.attempt)
            if job is None or attempt is None or not attempt.admitted:
                continue
            where = attempt.admitted
            spec = self._spec(note.job, where)
            found = Released(note, where, attempt.constraints, spec, inputs=attempt.inputs)
            problems = examine_part(card, found, job.rounds_before(0))
            for problem in problems:
                check.found(problem.code, name, problem.what)
            if spec is None:
                check.lacks(NO_JOB)
            elif not problems:
                check.saw(f"{name}, {where}")

    def _spec(self, job: str, where: str) -> JobSpec | None:
        """Return what was asked, None where the job's text is not there; `executed` says so."""
        known = self.jobs.known(job)
        if known is None or not known.envelope:
            return None
        spoken = self.evidence.document(known.envelope, Spoken.decode, "executed", where)
        return None if spoken is None or spoken.spec.job_id != job else spoken.spec

    def _note(self, entry: Entry, where: str) -> ReleaseNote | None:
        digest = entry.body.get("envelope_sha256")
        if digest is None:
            self.checks["outputs"].found("no-object", where, "it names no note")
            return None
        envelope = self.evidence.document(digest, decode_envelope, "outputs", where)
        if envelope is None:
            return None
        try:
            verify(envelope, RELEASE, self.force.identities())
            return ReleaseNote.decode(envelope.payload)
        except MinshuError as error:
            self.checks["outputs"].found(error.code, where, f"the note: {error.message}")
            return None

    def _fits(self, note: ReleaseNote, planned: PlannedRelease, attempt: Attempt, where: str) -> bool:
        check, roster, active = self.checks["outputs"], self.force.roster, self.force.active
        before = check.count
        directed = planned.output_class is OutputClass.DIRECTED
        mine = self.force.me()
        key = attempt.sealed_to if not directed else b"" if mine is None else mine.recipient_key
        home = organisation_of(self.force.node)
        if note.recipient != planned.recipient or (directed and note.recipient != home):
            check.found("wrong-recipient", where, "it goes to another organisation than was permitted")
        elif key and note.sealed_to != sha256_digest(key):
            check.found("wrong-seal", where, "it is sealed to a key that is not the recipient's")
        if roster is not None and note.suite != roster.suite:
            check.found("wrong-suite", where, "it is sealed with another suite than the roster's")
        if directed and note.statement != SUSPECTED:
            check.found("unmarked", where, "a list of persons without the mark that it needs verification")
        days = None if active is None else active.policy.retention.release_days
        if days is not None and note.expires - note.created > timedelta(days=days):
            check.found("kept-too-long", where, f"it is kept for more than the {days} days of the policy")
        return check.count == before

    def released(self, entry: Entry, where: str) -> None:
        """`output.released`: a release left for its recipient; a list, which stays here, was opened."""
        body, check = entry.body, self.checks["outputs"]
        attempt = self.jobs.attempt(entry)
        output = None if attempt is None else attempt.outputs.get(body["release"])
        if output is None and attempt is None and self.force.follows(entry):
            check.lacks(SUCCESSOR)
            return
        if output is None:
            check.found("not-committed", where, "no output.commit of that attempt stands before it")
            return
        recipient = body.get("recipient", output.recipient)
        said = (body.get("class", output.output_class), recipient, body["sha256"])
        if said != (output.output_class, output.recipient, output.sha256):
            check.found("wrong-recipient", where, "it says something else than when it was committed")
        elif output.output_class == OutputClass.DIRECTED and output.expires <= entry.time:
            check.found("after-its-time", where, f"it was to be kept until {output.expires}")
        else:
            check.saw(where)
        output.left = True

    def looked_up(self, entry: Entry, where: str) -> None:
        """`table.*` and `lookup.*` of a session: a table, or answers, go from one node to the other.

        (1) The attempt was admitted, and is not over. (2) Where this node is the one asked, it has begun to
        answer, and all that it answered of the session is no more than what was charged for it.
        """
        check = self.checks["outputs"]
        # (1)
        attempt = self.jobs.under_way(entry, where, check)
        if attempt is None:
            return
        # (2)
        if entry.kind in ("table.sent", "lookup.answered") and not attempt.answering:
            check.found("without-answer", where, "no job.answering stands before it")
            return
        if entry.kind == "lookup.answered":
            session = (entry.job, entry.attempt)
            self._looked_up[session] += entry.body["lookups"]
            if attempt.row is None:
                check.lacks(UNCHARGED)
            elif self._looked_up[session] > attempt.row.past.cost.rows:
                check.found("too-many-lookups", where, "more was answered in the session than was charged")
                return
        check.saw(where)

    def all_made(self, attempt: Attempt, where: str) -> None:
        """An attempt ended well: every release it planned was made, and has left if it was to leave."""
        check = self.checks["outputs"]
        for name in attempt.planned:
            check.found("not-committed", where, f"the release {name} was never committed")
        for output in attempt.outputs.values():
            if output.output_class != OutputClass.DIRECTED and not output.left:
                check.found("not-released", where, "a release of it never left")

    # -- afterwards ------------------------------------------------------------------------------------------

    def text(self, entry: Entry, job: Job, where: str) -> None:
        """Take note of a job's text: it is there until retention deletes it."""
        self._texts.append(Text(entry.time, where, job.envelope, job))

    def filed(self, entry: Entry, where: str) -> None:
        """`outcome.filed`: people have looked at what they received."""
        if "release" in entry.body:
            self._verified.add(entry.body["release"])
        checked, confirmed = entry.body.get("checked"), entry.body.get("confirmed")
        if checked is not None and confirmed is not None and confirmed > checked:
            self.checks["verification"].found("bad-outcome", where, "more confirmed than checked")
        if entry.v >= SAYS_ALL and "envelope_sha256" in entry.body:
            self.evidence.read(entry.body["envelope_sha256"], "verification", where)

    def deleted(self, entry: Entry, where: str) -> None:
        """`deletion.receipt`: what it names is gone. Whose time it was, and of what kind, no receipt decides.

        Only what retention deletes of a job may be missing for it, and only once the policy's time was over:
        else a receipt would hide whatever nobody is to see.
        """
        body = entry.body
        if "release" in body:
            self._gone.add(body["release"])
        if "sha256" not in body:
            return
        digest = body["sha256"]
        self._gone.add(digest)
        job = self.jobs.known(entry.job)
        excuses = job is not None and job.deletable.get(digest) == body["what"]
        if job is not None and excuses and not self._due(job, entry):
            excuses = False
            self.checks["deletions"].found(
                "deleted-too-early", where, "what it names was to be kept for longer, for auditors"
            )
        self.evidence.deleted(digest, where, excuses=excuses)

    def _due(self, job: Job, entry: Entry) -> bool:
        """Tell whether the policy in force let a job's documents be deleted by now."""
        active = self.force.active
        if active is None or not job.since:
            return False
        kept = timedelta(days=active.policy.retention.journal_days)
        return parse_time(entry.time) >= after(parse_time(job.since), kept) - CLOCK_TOLERANCE

    def finish(self, last: datetime, hours: Sequence[str]) -> None:
        """Say what only the end of a log tells.

        Args:
            last: the time of its last entry.
            hours: the time of the first entry of every hour that has any, in order.
        """
        self._overdue(last, hours)
        self._unverified(last)
        if self._lists:
            self.checks["committed"].lacks(INPUTS)

    def _overdue(self, last: datetime, hours: Sequence[str]) -> None:
        """What had to be deleted has a receipt, unless the node was off when its time came."""
        check = self.checks["deletions"]

        def missed(due: datetime) -> bool:
            """Tell whether the node was at work for long enough after a moment to have done what was due."""
            later = bisect_left(hours, format_time(after(due, PATIENCE)))
            return later < len(hours) and last - parse_time(hours[later]) >= timedelta(hours=1)

        for release, output in self._lists:
            if output.expires and release not in self._gone and missed(parse_time(output.expires)):
                check.found("deletion-overdue", output.where, f"it was to be kept until {output.expires}")
        active = self.force.active
        if active is None:
            return
        kept = timedelta(days=active.policy.retention.journal_days)
        young = format_time(last - kept)
        for text in self._texts:
            if text.received >= young:
                continue  # a clock may have been set back: what came later may be due before
            # A policy that keeps for a shorter time counts from its activation on.
            due = max(after(parse_time(text.received), kept), self.force.since)
            if text.envelope not in self._gone and not text.job.waits and missed(due):
                check.found(
                    "deletion-overdue", text.where, "the job's text is kept for longer than it may be"
                )

    def _unverified(self, last: datetime) -> None:
        """What people were given to verify, they have verified by the time it is deleted."""
        check = self.checks["verification"]
        unopened = waiting = 0
        for release, output in self._lists:
            if release in self._verified:
                check.saw(output.where)
            elif not output.left:
                unopened += 1
                check.saw(output.where)
            elif output.expires and parse_time(output.expires) < last:
                check.found("not-verified", output.where, "a list that was opened, and no outcome is filed")
            else:
                waiting += 1
                check.saw(output.where)
        if self._lists:
            check.figures |= {"never opened": unopened, "still to be verified": waiting}
