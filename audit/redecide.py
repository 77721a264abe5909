"""Every decision of a node taken again, from its journal and the documents beside it.

The entries say what the node went by (`audit.force`), what it had answered before (`audit.spending`) and for
which moment it decided. With exactly that, `policies.decide.decide` is asked again for every `job.accepted`
and `job.admitted`, and what follows from the answer is compared with what the entries say, to the last digit:
rule, constraints, admissions, costs, what each budget had left, releases and their recipients.

A node that lies signs its lies: they are found where they do not follow from its own documents. What an entry
of an earlier version does not say, and what needs a key or a document that is not there, is reported as not
checkable.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol

from audit.booking import UNDECIDED, Booking
from audit.disclosure import disclose
from audit.entries import Entry, format_time, parse_time
from audit.evidence import DELETED, Evidence, Objects
from audit.findings import Checks
from audit.force import SUCCESSOR, Brought, Force
from audit.identifiers_scan import Files, IdentifierScan
from audit.jobs import (
    EARLIER,
    MAX_APPROVALS,
    NEVER,
    SAYS_ALL,
    SAYS_MAPPING,
    SAYS_PARTNERS,
    Attempt,
    Given,
    Job,
    Jobs,
    Paid,
    Spoken,
    after,
)
from audit.outputs import PATIENCE, Outputs
from audit.quality import MET, check_record
from audit.series import SeriesDays
from audit.spending import Spending, Spent
from audit.statements import (
    accepted_facts,
    agrees,
    cost_facts,
    job_facts,
    policy_ref,
    published,
    series_facts,
)
from policies.approving import verify_approval
from policies.attempts import (
    SAID_NO,
    Agreed,
    agree,
    charged_lines,
    check_earlier,
    cost_under,
    deltas_of,
    leakage_digest,
    open_admission,
    runs_in_rounds,
    set_aside,
)
from policies.decide import decide
from policies.decision import Ask, Permit, VerifiedApproval
from policies.history import Past
from policies.index import members_of, source_of
from policies.quality import thresholds_of
from protocols.codes.record import decode_record
from protocols.dp.cost import Cost
from protocols.encoding import canonical_json, decode_json, digest_bytes, sha256_digest
from protocols.envelope import JOB, decode_envelope, key_id, verify
from protocols.errors import DecodeError, MinshuError, SignatureInvalid
from protocols.ids import Digest, JobId, KeyId, Role
from protocols.jobs import job_type
from protocols.jobs.job_type import HasQuorum
from protocols.succession import CLOCK_TOLERANCE
from protocols.wire import Admission, InputSummary, JobSpec, Roster

LONGEST_RUN: Final = timedelta(days=7)
"""How long an attempt may run where nobody limits it."""

DECISION_TAKES: Final = 2 * CLOCK_TOLERANCE
"""Most time between the moment a decision is taken for and its entry."""

_OLD_ATTEMPT: Final = "old-attempt"
"""Why an offer is refused whose text is not kept."""

_FIRST_TIME: Final = format_time(NEVER)
_LAST_TIME: Final = format_time(datetime(9000, 1, 1, tzinfo=UTC))
_MAX_PURPOSES: Final = 200

_BY_HISTORY: Final = frozenset(
    {
        "rate-exceeded",
        "budget-exceeded",
        "differencing",
        "attempts-exhausted",
        "answered-once",
        "output-exists",
    }
)
_ALSO: Final = {
    "approval-needed": "executed",
    "budget-exceeded": "budgets",
    "cost-above-rule": "budgets",
    "noise-required": "budgets",
    "rate-exceeded": "budgets",
    "differencing": "overlaps",
    "organisations-not-separate": "separation",
    "recipient-not-allowed": "outputs",
    "negative-list": "columns",
    "column-not-allowed": "columns",
    "unknown-column": "columns",
    "unknown-purpose": "basis",
    "purpose-ended": "basis",
    "legal-basis-mismatch": "basis",
}
"""Refusals that answer a question of their own as well."""

_QUESTION_OF: Final = {
    "columns": "columns",
    "datasets": "columns",
    "purpose": "basis",
    "legal_basis": "basis",
    "recipients": "outputs",
    "class": "outputs",
    "leakage_sha256": "leakage",
    "rows": "inputs",
    "distinct_keys": "inputs",
    "snapshot": "inputs",
    "commitment": "inputs",
    "quality_sha256": "inputs",
    "mapping_sha256": "inputs",
    "rule_version": "inputs",
    "records": "budgets",
    "queries": "budgets",
    "rho": "budgets",
    "delta": "budgets",
    "min_group_size": "disclosure",
    "max_rows": "outputs",
}
"""Which question a figure of a job's entry answers; what is not listed, `executed`."""


class Source(Objects, Files, Protocol):
    """A log's folder, or a bundle of it; `audit.bundle.Bundle` is one."""


class Redecider:
    """Takes a log's decisions again, entry by entry, and answers the checklist with what it finds."""

    def __init__(
        self,
        source: Source,
        trust: Brought,
        checks: Checks,
        *,
        canaries: Iterable[str] = (),
        opened: Mapping[str, bytes] | None = None,
    ) -> None:
        """Begin at the log's first entry.

        Args:
            source: the log's bundle; it is believed in nothing.
            trust: what the auditor brings.
            checks: filled in.
            canaries: planted identifiers that must be nowhere in the bundle.
            opened: releases that their recipient opened, by file name; see `audit.disclosure`.
        """
        self._source = source
        self._opened = opened or {}
        self._checks = checks
        self._evidence = Evidence(source, checks)
        self._force = Force(self._evidence, trust, checks)
        self._jobs = Jobs()
        self._spending = Spending()
        self._booking = Booking(self._jobs, self._spending, self._force, checks)
        self._outputs = Outputs(self._jobs, self._evidence, self._force, checks)
        self._series = SeriesDays(checks["executed"].found)
        self._scan = IdentifierScan(checks["identifiers"], canaries)
        self._approvals: set[bytes] = set()
        self._refusals: Counter[str] = Counter()
        self._questions: dict[str, Counter[str]] = {}
        self._mappings: dict[str, str] = {}
        self._hours: list[str] = []
        self._steps = 0
        self._last = ""
        self._v = 0
        force = self._force
        self._handlers: Mapping[str, Callable[[Entry, str], None]] = {
            "log.open": force.opened,
            "log.successor": self._succeeded,
            "key.rotate": force.opened,
            "clock.step": self._stepped,
            "signers.pinned": force.pinned,
            "policy.activate": force.activated,
            "stop.applied": force.stopped,
            "stop.lifted": force.lifted,
            "roster.activate": force.followed,
            "roster.fresh": force.confirmed,
            "dataset.registered": self._registered,
            "job.received": self._received,
            "job.refused": self._refused,
            "approval.recorded": self._approved,
            "approval.rejected": self._rejected,
            "job.accepted": self._accepted,
            "job.admitted": self._admitted,
            "job.answering": self._answering,
            "budget.reserved": self._booking.line,
            "budget.charged": self._booking.line,
            "budget.released": self._booking.line,
            "budget.returned": self._booking.returned,
            "training.round": self._round,
            "output.commit": self._committed,
            "output.released": self._outputs.released,
            "lookup.answered": self._outputs.looked_up,
            "lookup.asked": self._outputs.looked_up,
            "lookup.refused": self._outputs.looked_up,
            "table.sent": self._outputs.looked_up,
            "table.received": self._outputs.looked_up,
            "job.done": self._ended,
            "job.failed": self._ended,
            "job.aborted": self._ended,
            "job.cancelled": self._ended,
            "job.expired": self._ended,
            "outcome.filed": self._outputs.filed,
            "deletion.receipt": self._outputs.deleted,
            "peer.receipt": self._received_for,
        }

    def visit(self, entry: Entry) -> None:
        """Take the next entry of the log."""
        self._scan.entry(entry)
        if entry.time[:13] != self._last[:13]:
            self._hours.append(entry.time)
        if entry.time < self._last and entry.kind != "clock.step":
            self._checks["time"].found("time-backwards", f"entry {entry.seq}", "no clock.step says why")
        self._last = entry.time
        if entry.v != self._v:
            self._version(entry)
        if entry.seq == 1:
            self._force.begins(entry)
        if self._force.carrying:
            self._force.carries(entry)
        handle = self._handlers.get(entry.kind)
        if handle is None:
            return
        where = f"entry {entry.seq}"
        if not _FIRST_TIME < entry.time < _LAST_TIME:
            self._checks["time"].found("time-absurd", where, "it is not of this age")
            return
        try:
            handle(entry, where)
        except MinshuError as error:
            self._checks["executed"].found(error.code, where, error.message)
        except OverflowError:
            self._checks["time"].found("time-absurd", where, "it rests on a time beyond all calendars")

    # -- the log itself --------------------------------------------------------------------------------------

    def _version(self, entry: Entry) -> None:
        """An entry of an earlier version says less than it takes; so none follows one of a later version."""
        if entry.v < self._v:
            self._checks["executed"].found(
                "version-went-back", f"entry {entry.seq}", f"version {entry.v} after version {self._v}"
            )
        self._v = max(self._v, entry.v)

    def _succeeded(self, entry: Entry, where: str) -> None:
        self._force.succeeded(entry, where)
        if self._force.began is not None:
            self._booking.gap(SUCCESSOR, self._force.began)

    def _stepped(self, _: Entry, where: str) -> None:
        self._steps += 1
        self._checks["time"].saw(where)

    # -- datasets --------------------------------------------------------------------------------------------

    def _registered(self, entry: Entry, where: str) -> None:
        """`dataset.registered`: where its values become other codes, approvals of jobs that ask it are void.

        What lies beside the log says how they do, column by column.
        """
        if entry.v < SAYS_MAPPING:
            return
        name, mapping = entry.body["dataset"], entry.body.get("mapping_sha256", "")
        self._record_of(mapping, where)
        # In a log that follows another, what was registered in that one is not known.
        before = self._mappings.get(name, "" if self._force.began is None else None)
        self._mappings[name] = mapping
        if before is None or before == mapping:
            return
        datasets = {} if self._force.active is None else self._force.active.policy.datasets
        for job in self._jobs:
            opened = datasets.get(job.dataset)
            if job.dataset and (opened is None or source_of(opened) == name):
                for given in job.approvals:
                    given.used = True

    def _record_of(self, digest: str, where: str) -> Mapping[str, Digest]:
        """Return column → digest of how its values become codes; nothing without a record to read."""
        if not digest:
            return {}
        return self._evidence.document(digest, decode_record, "inputs", where) or {}

    def _mapped(self, entry: Entry, where: str, job: Job) -> Mapping[str, Digest]:
        """Return how values of the job's dataset became codes: as it was registered with last."""
        active, said = self._force.active, entry.body.get("mapping_sha256", "")
        opened = None if active is None else active.policy.datasets.get(job.dataset)
        if entry.v < SAYS_MAPPING or opened is None:
            return {}
        if said != self._mappings.get(source_of(opened), said):
            self._checks["inputs"].found(
                "other-mapping", where, "values became codes otherwise than the dataset was registered with"
            )
        return self._record_of(said, where)

    # -- offers ----------------------------------------------------------------------------------------------

    def _received(self, entry: Entry, where: str) -> None:
        job = self._jobs.of(entry)
        job.newest = max(job.newest, entry.attempt)
        job.received = job.received or entry.time
        job.dataset = next(iter(entry.body.get("datasets", [])), "")
        job.ended = False
        self._note_text(entry, job, where)
        if entry.v >= SAYS_ALL and (spoken := self._spoken(entry, where)) is not None:
            self._compare(entry, where, job_facts(spoken.spec, spoken.spec.role_of(self._force.node)))

    def _refused(self, entry: Entry, where: str) -> None:
        code = entry.body["code"]
        self._refusals[code] += 1
        self._checks["refusals"].saw(where)
        if "requester" not in entry.body:
            return  # not the job that its id stands for: the true one may yet come
        job = self._jobs.of(entry)
        job.refused |= {entry.attempt}
        if code != _OLD_ATTEMPT:
            self._note_text(entry, job, where)
        if code == SAID_NO:
            job.rejected = True
        attempt = job.attempts.get(entry.attempt)
        if attempt is not None and not attempt.over:
            self._checks["refusals"].found(
                "refused-after-acceptance", where, "the attempt was accepted before, and is not over"
            )
        # Where a person said no, the entry names no text: that is the one that was offered.
        if entry.v >= SAYS_ALL and code != _OLD_ATTEMPT and "envelope_sha256" in entry.body:
            self._spoken(entry, where)

    def _note_text(self, entry: Entry, job: Job, where: str) -> None:
        envelope = entry.body.get("envelope_sha256", "")
        if envelope and not job.envelope:
            job.envelope, job.since = envelope, job.since or entry.time
            job.deletable[envelope] = "job-text"
            if entry.v >= SAYS_ALL:
                self._outputs.text(entry, job, where)

    def _spoken(self, entry: Entry, where: str) -> Spoken | None:
        """Return the job that an entry is about, None where its text is not there."""
        digest = entry.body.get("envelope_sha256")
        if digest is None:
            self._checks["executed"].found("no-object", where, "it does not name the job's text")
            return None
        spoken = self._evidence.document(digest, Spoken.decode, "executed", where)
        if spoken is not None and spoken.spec.job_id != entry.job:
            self._checks["executed"].found("wrong-job-id", where, "the text it names is another job's")
            return None
        return spoken

    # -- approvals -------------------------------------------------------------------------------------------

    def _approved(self, entry: Entry, where: str) -> None:
        """(1) It is signed by an approver, for this job, under the policy in force. (2) Not by the requester.
        (3) It is used for no other job, and the person has not approved this one already.
        """
        if entry.v < SAYS_ALL:
            self._checks["executed"].lacks(EARLIER)
            return
        job = self._jobs.of(entry)
        named = entry.body.get("envelope_sha256", "")
        if not named:
            self._checks["executed"].found("no-object", where, "it names no envelope")
            return
        digest = Digest(entry.body["approval_sha256"])
        # (3)
        known = digest_bytes(digest)
        if known in self._approvals:
            self._checks["executed"].found("approval-used", where, "it was recorded before")
            return
        self._approvals.add(known)
        if not job.envelope or self._force.active is None:
            self._unfounded_approval(where)
            return
        if len(job.approvals) >= MAX_APPROVALS:
            self._checks["executed"].found(
                "too-many-approvals", where, f"more than {MAX_APPROVALS} of one job wait for its answer"
            )
            return
        job.deletable[named] = "approval"
        key = self._evidence.document(entry.body["approver"], bytes, "executed", where)
        envelope = self._evidence.document(named, decode_envelope, "executed", where)
        spoken = self._text_of(job, where)
        if key is None or envelope is None or spoken is None:
            return
        if envelope.payload_digest != digest:
            self._checks["executed"].found("wrong-approval", where, "the envelope it names holds another one")
            return
        given = Given(digest, key, named)
        # (2)
        if entry.body["approver"] == spoken.spec.requester:
            self._checks["separation"].found(
                "approver-is-requester", where, "who asked has approved it, and nobody may approve their own"
            )
            return
        # (1)
        try:
            verified = self._verified_approval(given, spoken.spec, parse_time(entry.time))
        except MinshuError as error:
            question = "keys" if error.code in _NOT_AN_APPROVER else "executed"
            self._checks[question].found(
                error.code, where, f"an approval that does not count: {error.message}"
            )
            return
        if entry.body.get("role") != verified.approver:
            self._checks["executed"].found("wrong-approval", where, "the entry says something else of it")
        if any(other.key == key and self._holds(other, spoken.spec, entry) for other in job.approvals):
            self._checks["separation"].found("approved-already", where, "one person has approved twice")
            return
        job.approvals.append(given)
        self._checks["executed"].saw(where)

    def _unfounded_approval(self, where: str) -> None:
        """An approval without a job that was offered, or without a policy, is of nothing: it is not kept."""
        if self._force.active is not None and self._force.began is not None:
            self._checks["executed"].lacks(SUCCESSOR)
        else:
            self._checks["executed"].found(
                "approval-unfounded", where, "no job and policy in force before it that it could be for"
            )

    def _holds(self, given: Given, spec: JobSpec, entry: Entry) -> bool:
        if given.used:
            return False
        try:
            self._verified_approval(given, spec, parse_time(entry.time))
        except MinshuError:
            return False
        return True

    def _verified_approval(self, given: Given, spec: JobSpec, now: datetime) -> VerifiedApproval:
        active, known = self._force.active, given.verified
        # A signature that held goes on to hold under this policy; its time may run out.
        if (
            active is not None
            and known is not None
            and known.approval.policy_digest == active.digest
            and known.approval.issued <= now + CLOCK_TOLERANCE
            and known.approval.expires > now
        ):
            return known
        if active is not None and given.void == active.digest:
            raise SignatureInvalid("an approval that no longer counts", code="approval-void")
        envelope = self._evidence.document(given.envelope, decode_envelope, "executed", "its object")
        if active is None or envelope is None:
            raise DecodeError("an approval that cannot be read", code="missing-object")
        try:
            given.verified = verify_approval(
                envelope, active, spec=spec, node=self._force.node, now=now, keys=[given.key]
            )
        except (SignatureInvalid, DecodeError):
            given.void = active.digest  # what did not hold once under a policy never will under it
            raise
        return given.verified

    def _counting(self, job: Job, spec: JobSpec, now: datetime) -> list[VerifiedApproval]:
        """Return the approvals that are not used up and still hold, as the node had to count them."""
        holding = []
        for given in job.approvals:
            if not given.used:
                try:
                    holding.append(self._verified_approval(given, spec, now))
                except (SignatureInvalid, DecodeError):
                    continue  # void since: expired, or given under another policy
        return holding

    def _rejected(self, entry: Entry, _: str) -> None:
        if entry.body["code"] == SAID_NO:
            self._jobs.of(entry).rejected = True

    # -- decisions -------------------------------------------------------------------------------------------

    def _text_of(self, job: Job, where: str) -> Spoken | None:
        if not job.envelope:
            return None
        return self._evidence.document(job.envelope, Spoken.decode, "executed", where)

    def _moment(self, entry: Entry, where: str) -> datetime | None:
        """Return the moment that a decision was taken for, None where that cannot be."""
        decided, written = parse_time(entry.body["decided"]), parse_time(entry.time)
        if not -CLOCK_TOLERANCE <= written - decided <= DECISION_TAKES:
            self._checks["time"].found(
                "decided-elsewhen",
                where,
                f"it says it was decided at {entry.body['decided']}, and stands at {entry.time}",
            )
            return None
        self._checks["time"].saw(where)
        return decided

    def _decide(self, entry: Entry, where: str, job: Job, spoken: Spoken) -> tuple[Permit, datetime] | None:
        """Take the decision of an attempt again; None where it is none the node may have acted on."""
        force, spec = self._force, spoken.spec
        moment = self._moment(entry, where)
        if moment is None:
            return None
        roster = force.roster
        if roster is None:
            self._no(moment, where, "no-roster", "no roster is in force, so nobody is known")
            return None
        if not self._authentic(entry, where, job, spoken, roster):
            return None
        if force.active is None:
            self._no(moment, where, "no-policy", "no policy is in force")
            return None
        if force.me() is None:
            self._no(
                moment,
                where,
                "not-in-roster",
                "the roster in force does not list this node with its log's key",
            )
        if (stale := force.fresh(moment)) is not None:
            self._no(moment, where, stale.code, stale.message)
        in_rounds = runs_in_rounds(spec.job_type) is not None
        decision = decide(
            force.active,
            spec,
            node=force.node,
            roster=roster,
            now=moment,
            approvals=self._counting(job, spec, moment),
            history=self._spending,
            attempt=entry.attempt,
            used=job.rounds_before(entry.attempt) if in_rounds else {},
            mapped=self._mapped(entry, where, job),
        )
        others = self._spending.others(JobId(entry.job), entry.attempt)
        earlier = check_earlier(
            rejected=job.rejected,
            released=any(a.outputs for number, a in job.attempts.items() if number != entry.attempt),
            answering=any(row.answering for row in others) and not in_rounds,
            given_up=sum(row.freed for row in others),
        )
        if not isinstance(decision, Permit) or earlier is not None:
            no = decision if earlier is None or not isinstance(decision, Permit) else earlier
            what = "waits for approvals or its window" if isinstance(no, Ask) else "is refused"
            self._no(moment, where, no.code, f"decided again, the attempt {what}: {no.code}")
            return None
        stated = policy_ref(force.active, decision.rule)
        if entry.policy != stated:
            self._no(
                moment, where, "wrong-rule", "it names another policy or rule than the one that allows it"
            )
        for question in ("clauses", "separation", "basis", "columns", "overlaps"):
            self._checks[question].saw(where)
        return decision, moment

    def _no(self, moment: datetime, where: str, code: str, what: str) -> None:
        if code in _BY_HISTORY and (gap := self._booking.gap_at(moment)):
            self._checks["clauses"].lacks(gap)
            return
        self._checks["clauses"].found(code, where, what)
        also = _ALSO.get(code)
        if also is not None:
            self._checks[also].found(code, where, what)

    def _authentic(self, entry: Entry, where: str, job: Job, spoken: Spoken, roster: Roster) -> bool:
        """Tell whether an analyst of the roster in force signed the job, and is the requester it names."""
        looked_at = (entry.body.get("envelope_sha256", ""), members_of(roster).digest)
        if job.authentic == looked_at:
            return True
        try:
            signers = verify(spoken.envelope, JOB, {key_id(a.key): a.key for a in roster.analysts})
        except SignatureInvalid as error:
            self._checks["keys"].found(error.code, where, f"the job: {error.message}")
            return False
        if spoken.spec.requester not in signers:
            self._checks["keys"].found("job-forged", where, "the job is not signed by the requester it names")
            return False
        job.authentic = looked_at
        self._checks["keys"].saw(where)
        return True

    def _compare(self, entry: Entry, where: str, expected: Mapping[str, Any]) -> None:
        """Compare what an entry says with what follows; each difference answers its own question."""
        for key, value in expected.items():
            if not agrees(key, entry.body.get(key), value) and published(entry.kind, key, value, entry.v):
                said = "something else" if key in entry.body else "nothing"
                self._checks[_QUESTION_OF.get(key, "executed")].found(
                    "wrong-figure", where, f"it says {said} of {key} than what follows from the documents"
                )

    # -- acceptance ------------------------------------------------------------------------------------------

    def _accepted(self, entry: Entry, where: str) -> None:
        job = self._jobs.of(entry)
        executed = self._checks["executed"]
        number = entry.attempt
        if number in job.attempts:
            executed.found("accepted-twice", where, "the attempt was accepted before")
        if number in job.refused:
            self._checks["refusals"].found(
                "refused-before", where, "this attempt was refused, and a refused one is never taken up again"
            )
        if number < job.newest:
            executed.found("old-attempt", where, "a newer attempt was offered before")
        if job.under_way:
            executed.found("two-at-once", where, "an earlier attempt of the job is not over")
        if self._force.began is not None and not self._force.gap_stopped:
            self._checks["clauses"].found(
                "no-history-gap", where, "the node did not stop itself for what it does not know"
            )
        job.newest = max(job.newest, number)
        self._note_text(entry, job, where)
        job.ended = False
        spoken = self._spoken(entry, where)
        role = None if spoken is None else spoken.spec.role_of(self._force.node)
        attempt = self._add_attempt(job, entry, where, role)
        if len(job.attempts) > MAX_APPROVALS:
            executed.found("too-many-attempts", where, f"more than {MAX_APPROVALS} of one job")
            spoken = None
        attempt.in_rounds = spoken is not None and runs_in_rounds(spoken.spec.job_type) is not None
        decided = None if spoken is None else self._decide(entry, where, job, spoken)
        if spoken is None or decided is None or role is None:
            # What it is to the budgets, its entry says; that it must not have been, has been said.
            attempt.row, attempt.undecided = self._row_of_facts(entry, job), True
            return
        permit, moment = decided
        attempt.permit, attempt.constraints = permit, permit.terms.constraints
        past = set_aside(spoken.spec, number, permit.terms, moment)
        if entry.v < SAYS_PARTNERS:
            past = replace(past, partners=None)  # as in the ledger of the node that wrote it
        attempt.row = self._spending.reserve(past, permit.terms.lines)
        self._booking.expect(attempt, "budget.reserved", past, permit.terms.lines)
        facts = accepted_facts(spoken.spec, role, permit.terms.cost)
        if entry.actor != spoken.spec.requester:
            executed.found("wrong-actor", where, "it names another requester than the job")
        admission = self._own_admission(entry, where, spoken.spec, permit)
        if admission is not None:
            for summary in admission.inputs.values():
                facts["rows"] = summary.rows
            attempt.until = admission.not_after
        self._compare(entry, where, facts)

    def _own_admission(self, entry: Entry, where: str, spec: JobSpec, permit: Permit) -> Admission | None:
        """Return the node's own admission of an attempt it accepted, which says what it decided."""
        active, roster, executed = self._force.active, self._force.roster, self._checks["executed"]
        if len(entry.refs) != 1 or active is None or roster is None:
            executed.found("no-admission", where, "it names no admission of its own")
            return None
        data = self._evidence.read(entry.refs[0], "executed", where)
        if data is None:
            return None
        try:
            admission, _ = open_admission(data, spec, roster)
        except MinshuError as error:
            executed.found(error.code, where, error.message)
            return None
        said = (admission.node, admission.digest, admission.job, admission.attempt, admission.policy_digest)
        then = (
            self._force.node,
            entry.body["admission_sha256"],
            entry.job,
            entry.attempt,
            active.digest,
        )
        terms = (admission.policy_version, admission.rule, admission.constraints, admission.roster_digest)
        if said != then or terms != (
            active.policy.version,
            permit.rule,
            permit.terms.constraints,
            roster.digest,
        ):
            executed.found("wrong-admission", where, "the admission says something else than the decision")
            return None
        executed.saw(where)
        return admission

    def _row_of_facts(self, entry: Entry, job: Job) -> Spent | None:
        """Return the row of an attempt that could not be decided again, as far as its entry says."""
        body, active = entry.body, self._force.active
        dataset = None if active is None else active.policy.datasets.get(job.dataset)
        unnamed = entry.v >= SAYS_PARTNERS and dataset is not None and "partners" not in body
        if "rho" in body or "delta" in body or unnamed or active is None:
            self._booking.gap(DELETED, parse_time(entry.time))
            return None
        return self._spending.reserve(
            Past(
                job=JobId(entry.job),
                attempt=entry.attempt,
                time=parse_time(entry.time),
                requester=KeyId(Digest(body.get("requester", ""))),
                purpose=body.get("purpose", ""),
                job_type=body.get("job_type", ""),
                source="" if dataset is None else source_of(dataset),
                unit="",
                cost=_counts(entry),
                query=None,
                charged=False,
                exact=True,
                rule="" if entry.policy is None else entry.policy.rule,
                partners=tuple(body.get("partners", ())) if entry.v >= SAYS_PARTNERS else None,
            ),
            (),
        )

    # -- admission -------------------------------------------------------------------------------------------

    def _admitted(self, entry: Entry, where: str) -> None:
        self._count_question(entry)
        executed = self._checks["executed"]
        if entry.v >= SAYS_ALL and not {"decided", "software"} <= entry.body.keys():
            executed.found("incomplete", where, "it does not say for which moment, or by which software")
        if entry.v < SAYS_ALL or "decided" not in entry.body:
            for question in ("clauses", "executed", "budgets", "inputs", "columns", "separation", "basis"):
                self._checks[question].lacks(EARLIER)
            self._booking.gap(EARLIER, parse_time(entry.time))
            job = self._jobs.of(entry)
            if entry.attempt not in job.attempts:
                self._add_attempt(job, entry, where)
            job.attempts[entry.attempt].admitted = where
            return
        job = self._jobs.of(entry)
        attempt = job.attempts.get(entry.attempt)
        if attempt is None:
            executed.found("not-accepted", where, "no job.accepted stands before it")
            attempt = self._add_attempt(job, entry, where)
        elif attempt.admitted:
            executed.found("admitted-twice", where, "the attempt was admitted before")
        elif attempt.over:
            executed.found("admitted-after-its-end", where, "the attempt was over")
        self._booking.nothing_due(attempt, where)
        attempt.admitted = attempt.admitted or where
        spoken = self._spoken(entry, where)
        decided = None if spoken is None else self._decide(entry, where, job, spoken)
        agreed = None
        if spoken is not None and decided is not None and attempt.role is not None:
            permit, moment = decided
            agreed = self._agreed(entry, where, spoken.spec, permit, moment)
        if spoken is None or decided is None or agreed is None:
            attempt.permit, attempt.undecided = None, True
            if attempt.row is not None:
                cost = _counts(entry) if spoken is None else attempt.row.past.cost
                self._spending.charge(attempt.row, cost, attempt.row.lines)
            return
        permit, moment = decided
        attempt.permit, attempt.constraints = permit, agreed.constraints
        attempt.keys = {role: summary.distinct_keys for role, summary in agreed.inputs.items()}
        attempt.inputs = agreed.inputs
        attempt.planned = {p.name: p for p in permit.terms.releases if p.made_by == attempt.role}
        run = agreed.constraints.max_runtime_s
        self._series.admitted(entry, agreed.constraints.max_series_days)
        attempt.until = moment + (LONGEST_RUN if run is None else timedelta(seconds=run))
        attempt.sealed_to = self._recipient_key(spoken.spec)
        self._charge(entry, where, spoken.spec, attempt, agreed)

    @staticmethod
    def _add_attempt(job: Job, entry: Entry, where: str, role: Role | None = None) -> Attempt:
        known = job.attempts.get(entry.attempt)
        job.under_way += known is None or bool(known.over)
        attempt = job.attempts[entry.attempt] = Attempt(where, role, entry.body["admission_sha256"])
        return attempt

    def _agreed(
        self, entry: Entry, where: str, spec: JobSpec, permit: Permit, moment: datetime
    ) -> Agreed | None:
        """Return what all participants agreed on, by the admissions that the entry names."""
        envelopes = [self._evidence.read(digest, "executed", where) for digest in entry.refs]
        roster = self._force.roster
        if roster is None or not all(envelopes):
            return None
        try:
            agreed = agree(
                [envelope for envelope in envelopes if envelope is not None],
                spec=spec,
                roster=roster,
                attempt=entry.attempt,
                permit=permit,
                now=moment,
            )
        except MinshuError as error:
            self._checks["executed"].found(error.code, where, error.message)
            return None
        self._checks["keys"].saw(where, len(envelopes))
        return agreed

    def _charge(self, entry: Entry, where: str, spec: JobSpec, attempt: Attempt, agreed: Agreed) -> None:
        permit, role = attempt.permit, attempt.role
        if permit is None or role is None:
            return
        own = agreed.admissions[role]
        if own.digest != attempt.admission:
            self._checks["executed"].found("wrong-admission", where, "it accepted on another admission")
        kind = job_type(spec.job_type)
        left = dict(permit.terms.rounds)
        cost = cost_under(spec, role, agreed.constraints, permit.terms)
        summary = next(iter(own.inputs.values()), None)
        expected: dict[str, Any] = {
            **job_facts(spec, role),
            **cost_facts(cost),
            "admission_sha256": own.digest,
            "ctx": "sha256:" + agreed.ctx.hex(),
            "leakage_sha256": leakage_digest(spec),
            "constraints_sha256": sha256_digest(canonical_json(agreed.constraints.to_json())),
            "approvals": len(permit.approvals),
            "suite": own.suite,
            "not_after": format_time(own.not_after),
            "class": kind.output_class.value,
            "question": spec.question("" if summary is None else summary.snapshot),
            **series_facts(spec),
        }
        for name in ("min_group_size", "max_rows"):
            value = getattr(agreed.constraints, name)
            if value is not None:
                expected[name] = value
        self._compare(entry, where, expected)
        self._checks["executed"].saw(where)
        self._checks["leakage"].saw(where)
        if summary is not None:
            self._inputs(entry, where, spec, role, summary)
        row = attempt.row
        if row is not None:
            lines = charged_lines(permit.terms.lines, cost)
            self._spending.charge(row, cost, lines)
            self._booking.expect(attempt, "budget.charged", row.past, lines)
            if left and self._force.active is not None:
                deltas = deltas_of(self._force.active.policy, lines)
                spent = dict(permit.terms.spent)
                most = {turn: more + spent.get(turn, 0) for turn, more in left.items()}
                members = kind.members(spec) if isinstance(kind, HasQuorum) else None
                attempt.paid = Paid(spec, role, agreed.constraints, deltas, most, members)

    def _inputs(self, entry: Entry, where: str, spec: JobSpec, role: Role, summary: InputSummary) -> None:
        """The entry, the admission and the quality record say the same of the node's own input."""
        check = self._checks["inputs"]
        facts = summary.to_json()
        facts.pop("catalogue_keys")
        self._compare(entry, where, facts)
        self._jobs.of(entry).deletable[summary.quality_sha256] = "input-record"
        record = self._evidence.document(summary.quality_sha256, decode_json, "inputs", where)
        brought = spec.input_of(role)
        if record is None or brought is None:
            return
        stated = {
            "dataset": brought.dataset,
            "snapshot": summary.snapshot,
            "rows": summary.rows,
            "distinct_keys": summary.distinct_keys,
            "rule_version": summary.rule_version,
        }
        if entry.v >= SAYS_MAPPING:
            stated["mapping"] = entry.body.get("mapping_sha256")
        if not isinstance(record, dict) or any(record.get(key) != value for key, value in stated.items()):
            check.found("wrong-figure", where, "the quality record says something else of the input")
        else:
            check.saw(where)
            self._quality(entry, where, spec, summary, record)

    def _quality(
        self, entry: Entry, where: str, spec: JobSpec, summary: InputSummary, record: Mapping[str, Any]
    ) -> None:
        """The dataset was as good as the policy in force asked of it."""
        active = self._force.active
        named = "" if entry.policy is None else entry.policy.rule
        rule = None if active is None else next((r for r in active.policy.rules if r.id == named), None)
        if active is None or rule is None:
            return
        dataset, check = active.policy.datasets[record["dataset"]], self._checks["inputs"]
        admitted = parse_time(entry.time)
        off = list(check_record(record, summary, dataset, rule, created=spec.created, admitted=admitted))
        for code, what in off:
            check.found(code, where, what)
        if not off and thresholds_of(dataset, rule):
            check.figures[MET] = int(check.figures.get(MET, 0)) + 1
            check.saw(where)

    def _count_question(self, entry: Entry) -> None:
        purpose, question = entry.body.get("purpose", "-"), entry.body.get("question")
        if question is not None and (purpose in self._questions or len(self._questions) < _MAX_PURPOSES):
            self._questions.setdefault(purpose, Counter())[question] += 1

    # -- the run ---------------------------------------------------------------------------------------------

    def _answering(self, entry: Entry, where: str) -> None:
        attempt = self._jobs.under_way(entry, where, self._checks["executed"])
        if attempt is None:
            return
        self._booking.nothing_due(attempt, where)
        attempt.answering = True
        if attempt.row is not None:
            attempt.row.answering = True
        for given in () if attempt.in_rounds else self._jobs.of(entry).approvals:
            given.used = True
        if attempt.permit is not None and entry.body.get("approvals") != len(attempt.permit.approvals):
            self._checks["executed"].found("wrong-figure", where, "it says another number of approvals")

    def _round(self, entry: Entry, where: str) -> None:
        """`training.round`: a source's part of a round leaves.

        (1) The attempt was admitted, is not over, and has begun to answer. (2) The number is above that of
        every round before, in whichever attempt of the job. (3) The job may have so many rounds of this turn.
        (4) It has as many sources as the job says: with fewer there is less noise, or none to hide among.
        """
        check = self._checks["executed"]
        # (1)
        attempt = self._jobs.under_way(entry, where, check)
        if attempt is None:
            return
        if not attempt.answering:
            check.found("without-answer", where, "no job.answering stands before it")
        # (2)
        job, turn, number = self._jobs.of(entry), entry.body["turn"], entry.body["round"]
        newest = max(other.last_round for other in job.attempts.values())
        if number <= newest:
            check.found("round-repeated", where, f"round {number}, and round {newest} stands before it")
        attempt.last_round = max(attempt.last_round, number)
        attempt.turns[turn] += 1
        # (3)
        if attempt.paid is None:
            if attempt.undecided:
                check.lacks(UNDECIDED)
            else:
                check.found("unfounded", where, "a round of an attempt that answers at once")
            return
        had = attempt.turns[turn] + job.rounds_before(entry.attempt)[turn]
        if had > attempt.paid.most.get(turn, 0):
            self._checks["budgets"].found(
                "turn-spent", where, f"more rounds of {turn} than the job may have here"
            )
            return
        # (4)
        members, said = attempt.paid.members, entry.body.get("sources")
        if members is not None and (said is None or not members[0] <= said <= members[1]):
            check.found(
                "wrong-members", where, f"it has {said} sources, the job says {members[0]} to {members[1]}"
            )
        else:
            check.saw(where)

    def _ended(self, entry: Entry, where: str) -> None:
        job = self._jobs.known(entry.job)
        if job is None:
            return  # a coordinator's log, or an offer that never became a job
        job.ended = True
        if entry.kind != "job.done":
            self._refusals[entry.body.get("code", entry.kind)] += 1
        self._checks["refusals"].saw(where)
        attempt = job.attempts.get(entry.attempt)
        if attempt is None:
            if entry.kind == "job.done":
                self._checks["executed"].found(
                    "without-admission", where, "it says that an attempt ended well that was never admitted"
                )
            return
        if entry.kind == "job.done":
            self._done(attempt, where)
            self._series.ended(entry, where)
            if not attempt.in_rounds:
                job.approvals.clear()  # used, and not needed again
        elif entry.v >= SAYS_ALL:
            self._booking.given_up(entry, attempt, where)
        self._booking.rounds(entry, attempt, where)
        if not attempt.over:
            attempt.over = where
            job.under_way -= 1
        attempt.permit, attempt.planned = None, {}

    def _received_for(self, entry: Entry, where: str) -> None:
        """`peer.receipt`: a participant has committed an output of an attempt."""
        attempt = self._jobs.attempt(entry) if entry.body.get("kind") == "output.commit" else None
        if attempt is not None:
            attempt.answered = True
            self._booking.answered(attempt, where)

    def _committed(self, entry: Entry, where: str) -> None:
        self._outputs.committed(entry, where)
        self._series.ended(entry, where)

    def _done(self, attempt: Attempt, where: str) -> None:
        executed = self._checks["executed"]
        if not attempt.admitted:
            executed.found("without-admission", where, "it ended well, and was never admitted")
        elif attempt.permit is not None and not attempt.answering:
            executed.found("without-answer", where, "it ended well, and no job.answering stands before it")
        self._outputs.all_made(attempt, where)

    def _recipient_key(self, spec: JobSpec) -> bytes:
        """Return the key that the requester's releases are sealed to, empty where nobody's is known."""
        analyst = None if self._force.roster is None else self._force.roster.analyst(spec.requester)
        return b"" if analyst is None else analyst.recipient_key

    # -- the end ---------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Say what only the end of the log tells. Call once, after the last entry."""
        self._evidence.finish()
        self._force.finish()
        self._scan.finish()
        self._scan.bundle(self._source)
        disclose(self._opened, self._outputs.releases, self._checks["disclosure"])
        self._outputs.models(self._opened)
        if not self._last:
            return
        if not _FIRST_TIME < self._last < _LAST_TIME:
            return
        last = parse_time(self._last)
        self._hours.sort()  # a clock may have been set back
        self._open_ends(last)
        self._outputs.finish(last, self._hours)
        self._figures()

    def _open_ends(self, last: datetime) -> None:
        """Every attempt that was admitted ends, and every job that was received ends somewhere."""
        check = self._checks["refusals"]
        waiting = 0
        for job in self._jobs:
            waiting += job.waits
            for attempt in job.attempts.values():
                if attempt.over or not attempt.admitted or attempt.until == NEVER:
                    continue
                kept = [parse_time(o.expires) for o in attempt.outputs.values() if o.expires]
                if after(max([attempt.until, *kept]), PATIENCE) < last:
                    check.found("no-end", attempt.admitted, "the attempt was admitted, and no entry ends it")
        check.figures["waiting or under way"] = waiting

    def _figures(self) -> None:
        refusals = self._checks["refusals"].figures
        for code, count in sorted(self._refusals.items()):
            refusals[code] = count
        overlaps = self._checks["overlaps"].figures
        for purpose, questions in sorted(self._questions.items()):
            again = sum(count - 1 for count in questions.values())
            overlaps[purpose] = f"{questions.total()} asked, {again} of them again"
        self._checks["time"].figures["clock steps"] = self._steps


_NOT_AN_APPROVER: Final = frozenset({"too-few-signatures", "approver-not-listed", "wrong-payload-type"})


def _counts(entry: Entry) -> Cost:
    """Return the cost of an attempt as its entry says it, where it is in counts."""
    return Cost(rows=entry.body.get("records", 0), queries=entry.body.get("queries", 0))
