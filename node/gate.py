"""The gate: every offered job gets one signed, journaled answer; what nobody foresaw is refused.

(1) The envelope is small enough and well-formed. (2) Its payload hashes to the job id it is offered under.
(3) An analyst whom the roster lists signed it, and is the requester it names. (4) The attempt is newer than
all before. (5) The roster is fresh, witnesses have seen this node's log, and the policy decides, over what
the ledger says was answered before. (6) The dataset and its columns are registered here, and what computes is
installed. (7) Nobody said no to the job, it made no release before, no attempt of it began to answer but of a
run in rounds, which goes on, and not too many were given up. (8) The dataset is not known to be worse than
the policy asks.

An answer is kept: the same offer gets the same answer again. Nothing here touches data: of a dataset's file
only the time of its last change is looked at, to tell whether an earlier job answered the same question.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from audit.entries import format_time, parse_time
from node.activation import InForce
from node.answers import ANSWERS, ATTEMPT_OVER, OLD_ATTEMPT, make_verdict, question_here, refusal, said_no
from node.datasets import open_dataset
from node.journal import job_facts, policy_ref
from node.ledger import Ledger, Row, RowState
from node.logs import Log
from node.quality import demand_of, stored_preflight
from node.rpc import Attempt
from node.sources import DEFAULT_ACCESS, Access, TablePlace, check_columns
from node.state import Dataset, Reader, RunState, State, StoredRun
from node.workers import UNAVAILABLE, available
from policies.approving import verify_approval
from policies.attempts import SAID_NO, check_earlier, runs_in_rounds, set_aside
from policies.decide import decide
from policies.decision import Ask, Decision, Permit, Refuse, VerifiedApproval
from policies.index import source_of
from policies.model import ActivePolicy, Policy
from protocols.encoding import sha256_digest
from protocols.envelope import JOB, Signer, decode_envelope, key_id, verify
from protocols.errors import DecodeError, InputError, MinshuError, Refused, SignatureInvalid, StateConflict
from protocols.ids import Digest, JobId, Role
from protocols.jobs import job_type
from protocols.jobs.job_type import Standing, Unit
from protocols.succession import CLOCK_TOLERANCE
from protocols.wire import JobInput, JobSpec, Roster, parse_utc

MAX_OFFER_BYTES: Final = 512 << 10
MAX_REMEMBERED: Final = 1024

BELIEVED: Final = timedelta(minutes=10)
"""How long a database's table is taken to be no better than it was found."""

BY_HISTORY: Final = frozenset({"rate-exceeded", "budget-exceeded", "differencing"})
"""Refusals that only say how much was answered before; an answer that exists already costs nothing more."""

HINDRANCES: Final = frozenset(
    {"clock-untrusted", "roster-stale", "heads-unknown", "policy-unwitnessed", "no-quorum"}
)
"""What keeps this node from deciding for a while. A new offer is refused with it; what waits, waits on."""

_AGAIN: Final = (
    RunState.CHECKING,
    RunState.ACCEPTED,
    RunState.RUNNING,
    RunState.RELEASING,
    RunState.REFUSED,
)
_STATES: Final = {Permit: RunState.CHECKING, Ask: RunState.AWAITING_APPROVAL, Refuse: RunState.REFUSED}


@dataclass(frozen=True, slots=True)
class Allowed:
    """A job this node may take part in now: what `admit` and `start` go by.

    `version` is the ledger's, of the job's source, that the decision was made on; `decided` the moment that
    it was made for, in whole milliseconds, as the journal says it.
    """

    spec: JobSpec
    permit: Permit
    active: ActivePolicy
    roster: Roster
    version: int
    decided: datetime

    def row(self, attempt: Attempt) -> Row:
        """Return the ledger row that sets the job's cost aside for one attempt."""
        terms = self.permit.terms
        return Row(set_aside(self.spec, attempt.number, terms, self.decided), terms.lines)


class Gate:
    """Answers offers. One per node, used from one thread."""

    def __init__(
        self,
        state: State,
        force: InForce,
        signer: Signer,
        now: Callable[[], datetime],
        log: Log,
        *,
        trusted: Callable[[], datetime | None] | None = None,
        witnessing: Callable[[], Refused | None] = lambda: None,
        settling: Callable[[], bool] = lambda: False,
        access: Access = DEFAULT_ACCESS,
    ) -> None:
        """Answer with `signer`'s signature, by what is in force.

        Args:
            state: what the node remembers.
            force: what it goes by.
            signer: its identity key.
            now: its clock, right or wrong.
            log: for lines.
            trusted: the clock where it can be believed, else None; `now` where nobody watches the clock.
            witnessing: returns why nothing may be decided before witnesses have seen more of this node's log.
            settling: tells whether that is so for a moment only, as after a start.
            access: how datasets are read.
        """
        self._state = state
        self._access = access
        self._force = force
        self._signer = signer
        self._now = now
        self.trusted = trusted or now
        self._witnessing = witnessing
        self.settling = settling
        self._held_back = False
        self._log = log
        # Answers to offers that make no run: a forger or a replay must not fill the database.
        self._passing: OrderedDict[tuple[Attempt, str], bytes] = OrderedDict()

    def offer(self, attempt: Attempt, data: bytes) -> bytes:
        """Return this node's signed verdict on an offered job, an envelope."""
        # (1) (2) (3)
        try:
            spec = authentic(self._force, attempt.job, data)
        except MinshuError as error:
            return self._refuse_passing(attempt, data, refusal(error))
        known = self._state.run(attempt)
        if known is not None and known.state is not RunState.AWAITING_APPROVAL:
            return self._again(known)
        # (4)
        newest = max((run.attempt.number for run in self._state.runs(attempt.job)), default=0)
        if attempt.number < newest:
            facts = job_facts(spec, spec.role_of(self._force.name))
            return self._refuse_passing(attempt, data, OLD_ATTEMPT, facts)
        # (5) (6) (7) (8)
        return self._answer(attempt, spec, data, self.judge(spec, attempt))

    def reconsider(self, job: JobId) -> tuple[Attempt, bytes] | None:
        """Decide a waiting job again, after an approval or a new policy; None if it does not wait."""
        waiting = [r for r in self._state.runs(job) if r.state is RunState.AWAITING_APPROVAL]
        data = self._state.job(job)
        if not waiting or data is None:
            return None
        attempt = waiting[0].attempt
        return attempt, self.offer(attempt, data)

    def refuse(self, attempt: Attempt, no: Refuse) -> bytes:
        """Refuse a permitted attempt for what its preparation found; return the answer as it is now.

        Raises:
            Refused: it was never offered.
        """
        data = self._state.job(attempt.job)
        if data is None:
            raise Refused("this attempt was never offered here", code="unknown-attempt")
        return self._answer(attempt, JobSpec.decode(decode_envelope(data).payload), data, no)

    def answer_again(self, attempt: Attempt) -> bytes:
        """Decide a permitted attempt once more, and return the answer as it is now.

        Raises:
            Refused: it was never offered.
        """
        data = self._state.job(attempt.job)
        if data is None:
            raise Refused("this attempt was never offered here", code="unknown-attempt")
        # Stored when its signature held; a roster without that analyst is for `judge` to refuse.
        spec = JobSpec.decode(decode_envelope(data).payload)
        return self._answer(attempt, spec, data, self.judge(spec, attempt))

    def judge(self, spec: JobSpec, attempt: Attempt) -> Decision:
        """Return what this node answers to an authentic job now; attempt 0 asks for a dry answer.

        A dataset that is known not to be good enough is refused at once; one that has changed since anybody
        looked is looked at when the attempt is prepared.
        """
        # What a job would be told is what it will be told in a moment.
        no, now = None if not attempt.number and self.settling() else self._witnessing(), self.moment()
        decision = judge(self._state, self._force, spec, attempt, now, unwitnessed=no)
        if isinstance(decision, Refuse) or now is None:
            return decision
        # (8)
        return self._too_low(spec, decision, now) or decision

    def _too_low(self, spec: JobSpec, decision: Permit | Ask, now: datetime) -> Refuse | None:
        """Return why the dataset of a job that a rule allows is known not to be good enough for it."""
        role = spec.role_of(self._force.name)
        if self._force.policy is None or role is None:
            return None
        demand = demand_of(self._force.policy.policy, spec, role, decision.rule)
        dataset = dataset_of(self._state, self._force, spec)
        if demand is None or dataset is None:
            return None
        known = stored_preflight(self._state, dataset)
        if known is None:
            return None
        if isinstance(dataset.place, TablePlace):
            # No answer waits for a connection. What an attempt found a moment ago is believed, lest every
            # further offer have people asked and the whole table read; later the next attempt looks.
            late = now - parse_utc(known.quality.measured) > BELIEVED or not known.holds(known.fingerprint)
            return None if late else demand.refusal(known.quality, dataset.published_keys, now)
        try:
            with open_dataset(dataset, self._access) as source:
                if not known.holds(source.fingerprint()):
                    return None
        except InputError:
            return None  # the attempt says what is wrong, when it reads
        return demand.refusal(known.quality, dataset.published_keys, now)

    def moment(self) -> datetime | None:
        """Return the time to decide for, None where the clock cannot be trusted.

        Cut to what a journal can say of it: an auditor decides again for this very moment.
        """
        now = trusted_now(self._state, self.trusted())
        return None if now is None else parse_time(format_time(now))

    def hindered(self) -> bool:
        """Tell whether this node cannot decide anything right now, for a reason that will pass."""
        now = trusted_now(self._state, self.trusted())
        if now is None or self._witnessing() is not None:
            return True
        try:
            self._force.fresh(now)
        except Refused as error:
            return error.code in HINDRANCES
        return False

    def held_back(self) -> bool:
        """Tell whether a hindrance kept something waiting from being decided since this was asked last."""
        held_back, self._held_back = self._held_back, False
        return held_back

    def dry(self, spec: JobSpec) -> tuple[Decision, bytes]:
        """Return what this node would answer to a job, and that as a signed verdict; nothing is kept."""
        decision = self.judge(spec, Attempt(spec.job_id, 0))
        return decision, self._verdict(Attempt(spec.job_id, 0), decision, self._answered(spec, decision))

    def allowed(self, attempt: Attempt, *, seen: bool = False) -> Allowed:
        """Return a job that is still permitted.

        Args:
            attempt: which.
            seen: witnesses have seen that its cost is charged, so it waits for nothing else of theirs.

        Raises:
            Refused: it is not, or no longer, or was never offered.
        """
        data = self._state.job(attempt.job)
        if data is None:
            raise Refused("this attempt was never offered here", code="unknown-attempt")
        spec = authentic(self._force, attempt.job, data)
        ledger = self._state.ledger()
        moment = self.moment()
        no = None if seen else self._witnessing()
        decision = judge(self._state, self._force, spec, attempt, moment, ledger=ledger, unwitnessed=no)
        if not isinstance(decision, Permit):
            raise Refused(decision.sentence, code=decision.code, hint=decision.hint, rule=decision.rule)
        active, roster = self._force.policy, self._force.roster
        if active is None or roster is None or moment is None:
            raise Refused("no policy or roster is in force", code="no-policy")
        return Allowed(spec, decision, active, roster, ledger.version(decision.terms.source), moment)

    def reject(self, job: JobId, reason: str, actor: str) -> tuple[Attempt, bytes]:
        """Refuse a waiting job for a person; return the new answer.

        Raises:
            Refused: the job is not waiting for approval.
        """
        waiting = [r for r in self._state.runs(job) if r.state is RunState.AWAITING_APPROVAL]
        data = self._state.job(job)
        if not waiting or data is None:
            raise Refused(
                "the job does not wait for approval here",
                code="not-waiting",
                hint="see minshu-node status",
            )
        attempt = waiting[0].attempt
        said = said_no(reason)
        spec = JobSpec.decode(decode_envelope(data).payload)
        verdict = self._verdict(attempt, said)
        with self._state.change() as change:
            change.put_run(
                attempt, RunState.REFUSED, verdict, code=said.code, sentence=said.sentence, hint=said.hint
            )
            change.log("approval.rejected", {"code": said.code}, attempt=attempt, actor=actor)
            facts = {"code": said.code, **job_facts(spec, spec.role_of(self._force.name))}
            change.log("job.refused", facts, attempt=attempt, policy=policy_ref(self._force.policy))
        return attempt, verdict

    # -- answers -------------------------------------------------------------------------------------------

    def _answer(self, attempt: Attempt, spec: JobSpec, data: bytes, decision: Decision) -> bytes:
        # One envelope per job: of its text every other one says the same, around it anybody may write.
        data = self._state.job(attempt.job) or data
        before = self._state.run(attempt)
        if before is not None and decision.code in HINDRANCES:
            self._held_back = True
            return before.verdict  # it waits on: what hinders this node will pass
        given = 0 if isinstance(decision, Refuse) else len(decision.approvals)
        needed = given + decision.missing if isinstance(decision, Ask) else given
        state = _STATES[type(decision)]
        answered = self._answered(spec, decision)
        verdict = self._verdict(attempt, decision, answered)
        # Whole verdicts are compared: rule, approvers, cost and stored answer may change, and none be stale.
        if before is not None and (before.state, before.verdict) == (state, verdict):
            return before.verdict
        facts = job_facts(spec, spec.role_of(self._force.name))
        facts |= {"bytes": len(data), "envelope_sha256": sha256_digest(data)}
        facts["expected_use_sha256"] = sha256_digest(spec.expected_use.encode("utf-8"))
        if answered:
            facts["answered_by"] = answered
        # What was asked stands beside the log, so that an auditor can decide it again.
        self._state.journal.put_object(data)
        with self._state.change() as change:
            change.add_job(
                attempt.job, data, requester=spec.requester, purpose=spec.purpose, received=self._now()
            )
            change.put_run(
                attempt,
                state,
                verdict,
                code=decision.code,
                sentence=decision.sentence,
                hint=decision.hint,
                needed=needed,
                given=given,
            )
            policy = policy_ref(self._force.policy, decision.rule)
            if isinstance(decision, Refuse):
                change.log("job.refused", {"code": decision.code, **facts}, attempt=attempt, policy=policy)
            elif before is None:
                change.log("job.received", facts, attempt=attempt, policy=policy)
        self._log.info(
            f"job-{ANSWERS[type(decision)]}", job=attempt.job, attempt=attempt.number, reason=decision.code
        )
        return verdict

    def _again(self, run: StoredRun) -> bytes:
        """Return the stored answer; a run that ended otherwise than by refusal is over."""
        if run.state in _AGAIN:
            return run.verdict
        return self._verdict(run.attempt, ATTEMPT_OVER)

    def _refuse_passing(
        self, attempt: Attempt, data: bytes, no: Refuse, facts: Mapping[str, Any] | None = None
    ) -> bytes:
        """Refuse an offer without keeping it as a run; the same offer again adds nothing to the journal."""
        digest = sha256_digest(data)
        key = (attempt, digest)
        known = self._passing.get(key)
        if known is not None:
            return known
        body = {**(facts or {}), "code": no.code, "envelope_sha256": digest, "bytes": len(data)}
        with self._state.change() as change:
            change.log("job.refused", body, attempt=attempt, policy=policy_ref(self._force.policy))
        self._log.warning("job-refuse", job=attempt.job, attempt=attempt.number, reason=no.code)
        verdict = self._passing[key] = self._verdict(attempt, no)
        if len(self._passing) > MAX_REMEMBERED:
            self._passing.popitem(last=False)
        return verdict

    def _verdict(self, attempt: Attempt, decision: Decision, answered: str = "") -> bytes:
        return make_verdict(
            decision,
            attempt.job,
            attempt.number,
            self._force.name,
            signer=self._signer,
            answered=answered,
        )

    def _question(self, spec: JobSpec, dataset: Dataset | None) -> Digest:
        """Return what is asked of a dataset as it is now; of none, of nothing.

        Raises:
            InputError: the dataset cannot be opened.
        """
        if dataset is None:
            return question_here(spec, "", None)
        with open_dataset(dataset, self._access) as source:
            return question_here(spec, source.snapshot(), source)

    def _answered(self, spec: JobSpec, decision: Decision) -> str:
        """Return the earlier job of this requester and purpose that answered the very same question here.

        What may not be asked now is not answered from store either: no stop, policy or roster is got round.
        Nor is a session, of which nothing is stored that another could be answered with; nor what a database
        holds: whether it changed only a connection tells, and no answer waits for one.
        """
        if isinstance(decision, Refuse) and decision.code not in BY_HISTORY:
            return ""
        if isinstance(job_type(spec.job_type), Standing):
            return ""
        try:
            dataset = dataset_of(self._state, self._force, spec)
            if dataset is not None and isinstance(dataset.place, TablePlace):
                return ""
            question = self._question(spec, dataset)
        except InputError:
            return ""
        found = self._state.answered(question, spec.requester, spec.purpose, spec.job_id)
        if found is None or any(o.deleted or o.expires <= self._now() for o in self._state.outputs(found)):
            return ""
        return found


def authentic(force: InForce, job: JobId, data: bytes, payload_type: str = JOB) -> JobSpec:
    """Return the job in an envelope that an analyst on the roster signed; nothing is parsed before that.

    `payload_type` says what it was signed as: a job, or one to be explained only.

    Raises:
        MinshuError: (1), (2) or (3) does not hold.
    """
    # (1)
    if len(data) > MAX_OFFER_BYTES:
        raise DecodeError(
            f"the job has {len(data)} bytes, at most {MAX_OFFER_BYTES} are accepted",
            code="job-too-large",
            hint="name datasets, not rows",
        )
    envelope = decode_envelope(data)
    # (2)
    if JobId(envelope.payload_digest) != job:
        raise SignatureInvalid(
            "the job's text is not the one its id stands for",
            code="wrong-job-id",
            hint="the coordinator altered the job or mixed up two; submit it again",
        )
    # (3)
    if force.roster is None:
        raise Refused(
            "this node holds no roster yet, so it knows no analyst",
            code="no-roster",
            hint="publish a roster that lists this node, and let the node connect once",
        )
    analysts = {key_id(a.key): a.key for a in force.roster.analysts}
    try:
        signers = verify(envelope, payload_type, analysts)
    except SignatureInvalid as error:
        if error.code == "wrong-payload-type":
            raise
        raise _forged(force.roster, envelope.payload) from None
    spec = JobSpec.decode(envelope.payload)
    if spec.requester not in signers:
        raise SignatureInvalid(
            "the job is not signed by the requester it names",
            code="job-forged",
            hint="have the requester sign and submit it",
        )
    return spec


def _forged(roster: Roster, payload: bytes) -> SignatureInvalid:
    """Return why nobody's signature holds; the payload is only read to tell the two cases apart."""
    try:
        requester = JobSpec.decode(payload).requester
    except DecodeError:
        requester = None
    if requester is not None and roster.analyst(requester) is None:
        return SignatureInvalid(
            "the requester is no analyst on the roster",
            code="unknown-requester",
            hint="have the analyst enrolled and a new roster signed, then submit again",
        )
    return SignatureInvalid(
        "no analyst on the roster signed this job",
        code="job-forged",
        hint="submit the job with minshu submit, which signs it",
    )


def judge(
    reader: Reader,
    force: InForce,
    spec: JobSpec,
    attempt: Attempt,
    now: datetime | None,
    *,
    ledger: Ledger | None = None,
    unwitnessed: Refused | None = None,
) -> Decision:
    """Return what a node answers to an authentic job. Changes nothing, so other terminals may ask too.

    Args:
        reader: what the node remembers.
        force: what it goes by.
        spec: the job.
        attempt: which try; rows of it in the ledger do not count against it.
        now: the node's time, None where its clock cannot be trusted.
        ledger: what to decide over, where the caller wants to know its version afterwards.
        unwitnessed: why nothing may be decided before witnesses have seen more, None for nothing.
    """
    in_rounds = runs_in_rounds(spec.job_type) is not None
    # (5)
    try:
        force.me()
        if now is not None:
            force.fresh(now)
        if unwitnessed is not None:
            raise unwitnessed
        assert force.roster is not None
        decision = decide(
            force.policy,
            spec,
            node=force.name,
            roster=force.roster,
            now=now,
            approvals=_approvals(reader, force, spec, now),
            history=ledger or reader.ledger(),
            attempt=attempt.number,
            used=reader.ledger().rounds_of(spec.job_id, attempt.number) if in_rounds else {},
            mapped=mapped_columns(reader, force, spec),
        )
        others = [r for r in reader.ledger().of_job(spec.job_id) if r.past.attempt != attempt.number]
    except (Refused, StateConflict) as error:
        return refusal(error)
    if isinstance(decision, Refuse):
        return decision
    # (6)
    try:
        dataset_of(reader, force, spec)
    except InputError as error:
        return refusal(error, decision.rule)
    if in_rounds and not available():
        return replace(UNAVAILABLE, rule=decision.rule)
    # (7)
    outputs = reader.outputs(spec.job_id)
    no = check_earlier(
        rejected=any(run.code == SAID_NO for run in reader.runs(spec.job_id)),
        released=any(output.attempt.number != attempt.number for output in outputs),
        # A run in rounds goes on: what it has told by now, its approvals are for.
        answering=any(row.answering for row in others) and not in_rounds,
        given_up=sum(row.state is RowState.RELEASED for row in others),
    )
    return decision if no is None else replace(no, rule=decision.rule)


def dataset_of(reader: Reader, force: InForce, spec: JobSpec) -> Dataset | None:
    """Return the registered dataset that this node brings to a job, None for a role without one.

    Raises:
        InputError: it is not registered here, or lacks a column, be it the one that says whom a row is about;
            `unit-mapped`: codes stand there for whom.
    """
    brings = _brought(force, spec)
    if brings is None or force.policy is None:
        return None
    opened = force.policy.policy.datasets[brings.dataset]
    dataset = reader.dataset(source_of(opened))
    if dataset is None:
        raise InputError(
            "the policy opens a dataset that is not registered at this node",
            code="dataset-not-registered",
            hint="register it with minshu-node dataset add",
        )
    about = about_of(force.policy.policy, spec, brings.role)
    read = [*brings.columns.values(), *([] if about is None else [about.column])]
    check_columns(dataset.columns, read)
    if opened.unit is not None and opened.unit.column in dataset.description.mapping:
        raise InputError(
            "the column that says whom a row is about has a mapping, which could make one person of several",
            code="unit-mapped",
            hint="take it out of the dataset's mapping, or name another unit in the policy",
        )
    return dataset


def mapped_columns(reader: Reader, force: InForce, spec: JobSpec) -> Mapping[str, Digest]:
    """Return the columns of the dataset this node brings whose values become codes → digest of how."""
    brings = _brought(force, spec)
    if brings is None or force.policy is None or brings.dataset not in force.policy.policy.datasets:
        return {}
    dataset = reader.dataset(source_of(force.policy.policy.datasets[brings.dataset]))
    return {} if dataset is None else dataset.description.mapped


def _brought(force: InForce, spec: JobSpec) -> JobInput | None:
    role = spec.role_of(force.name)
    return None if role is None else spec.input_of(role)


@dataclass(frozen=True, slots=True)
class About:
    """Whom a dataset's rows are about: the column that says it, and what the policy knows of them."""

    column: str
    unit: Unit


def about_of(policy: Policy, spec: JobSpec, role: Role) -> About | None:
    """Return whom the rows of a seat's dataset are about; None where its job type does not ask, or nobody."""
    brings = spec.input_of(role)
    if brings is None or not job_type(spec.job_type).counts_units:
        return None
    dataset = policy.datasets[brings.dataset]
    if dataset.unit is None:
        return None
    return About(dataset.unit.column, Unit(dataset.columns[dataset.unit.column].type, dataset.unit.max_rows))


def trusted_now(reader: State, now: datetime | None) -> datetime | None:
    """Return `now`, or None where this node's own journal is ahead of it: no expiry can be judged then."""
    newest = reader.newest_time()
    if now is None:
        return None
    return None if newest is not None and now < newest - CLOCK_TOLERANCE else now


def _approvals(reader: Reader, force: InForce, spec: JobSpec, now: datetime | None) -> list[VerifiedApproval]:
    """Return the recorded approvals that are not used up and still hold under the policy now in force."""
    if force.policy is None or now is None:
        return []
    holding = []
    for stored in reader.approvals(spec.job_id):
        if stored.used:
            continue
        try:
            envelope = decode_envelope(stored.envelope)
            holding.append(
                verify_approval(
                    envelope, force.policy, spec=spec, node=force.name, now=now, keys=[stored.key]
                )
            )
        except (SignatureInvalid, DecodeError):
            continue  # void since: expired, or given under another policy
    return holding
