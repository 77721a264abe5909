"""The gate: every offered job gets one signed, journaled answer; what nobody foresaw is refused.

(1) The envelope is small enough and well-formed. (2) Its payload hashes to the job id it is offered under.
(3) An analyst whom the roster lists signed it, and is the requester it names. (4) The attempt is newer than
all before. (5) The policy decides. (6) The dataset and its columns are registered here. (7) The question was
not asked by another job, the job has attempts left, and made no release before.

An answer is kept: the same offer gets the same answer again. Nothing here touches data.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from node.activation import InForce
from node.journal import job_facts, policy_ref
from node.logs import Log
from node.rpc import Attempt
from node.sources import check_columns
from node.state import ATTEMPTS_HINT, SERIES_HINT, Dataset, Reader, RunState, State, StoredRun
from policies.decide import (
    CLOCK_TOLERANCE,
    Ask,
    Decision,
    Permit,
    Refuse,
    VerifiedApproval,
    decide,
    verify_approval,
)
from policies.model import ActivePolicy
from protocols.encoding import sha256_digest
from protocols.envelope import JOB, VERDICT, Signer, decode_envelope, key_id, sign, verify
from protocols.errors import DecodeError, InputError, MinshuError, Refused, SignatureInvalid
from protocols.ids import JobId
from protocols.wire import JobSpec, Roster, Verdict, utc_text

MAX_OFFER_BYTES: Final = 512 << 10
RUNS_PER_SERIES: Final = 1
"""How many jobs may ask one question of this node's data."""
ATTEMPTS_PER_JOB: Final = 3
"""How many attempts of one job may pass commit point 1 here; failed ones count."""

SAID_NO: Final = "approver-said-no"
MAX_REMEMBERED: Final = 1024

_AGAIN: Final = (
    RunState.CHECKING,
    RunState.ACCEPTED,
    RunState.RUNNING,
    RunState.RELEASING,
    RunState.REFUSED,
)
_ANSWERS: Final = {Permit: "permit", Ask: "ask", Refuse: "refuse"}
_STATES: Final = {Permit: RunState.CHECKING, Ask: RunState.AWAITING_APPROVAL, Refuse: RunState.REFUSED}


@dataclass(frozen=True, slots=True)
class Allowed:
    """A job this node may take part in now: what `admit` and `start` go by."""

    spec: JobSpec
    permit: Permit
    active: ActivePolicy
    roster: Roster


class Gate:
    """Answers offers. One per node, used from one thread."""

    def __init__(
        self, state: State, force: InForce, signer: Signer, now: Callable[[], datetime], log: Log
    ) -> None:
        """Answer with `signer`'s signature, by what is in force."""
        self._state = state
        self._force = force
        self._signer = signer
        self._now = now
        self._log = log
        # Answers to offers that make no run: a forger or a replay must not fill the database.
        self._passing: OrderedDict[tuple[Attempt, str], bytes] = OrderedDict()

    def offer(self, attempt: Attempt, data: bytes) -> bytes:
        """Return this node's signed verdict on an offered job, an envelope."""
        # (1) (2) (3)
        try:
            spec = authentic(self._force, attempt.job, data)
        except MinshuError as error:
            return self._refuse_passing(attempt, data, _refusal(error))
        known = self._state.run(attempt)
        if known is not None and known.state is not RunState.AWAITING_APPROVAL:
            return self._again(known)
        # (4)
        newest = max((run.attempt.number for run in self._state.runs(attempt.job)), default=0)
        if attempt.number < newest:
            facts = job_facts(spec, spec.role_of(self._force.name))
            return self._refuse_passing(attempt, data, OLD_ATTEMPT, facts)
        # (5) (6) (7)
        return self._answer(attempt, spec, data, self.judge(spec, attempt))

    def reconsider(self, job: JobId) -> tuple[Attempt, bytes] | None:
        """Decide a waiting job again, after an approval or a new policy; None if it does not wait."""
        waiting = [r for r in self._state.runs(job) if r.state is RunState.AWAITING_APPROVAL]
        data = self._state.job(job)
        if not waiting or data is None:
            return None
        attempt = waiting[0].attempt
        return attempt, self.offer(attempt, data)

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
        """Return what this node answers to an authentic job now."""
        return judge(self._state, self._force, spec, attempt, trusted_now(self._state, self._now()))

    def allowed(self, attempt: Attempt) -> Allowed:
        """Return a job that is still permitted.

        Raises:
            Refused: it is not, or no longer, or was never offered.
        """
        data = self._state.job(attempt.job)
        if data is None:
            raise Refused("this attempt was never offered here", code="unknown-attempt")
        spec = authentic(self._force, attempt.job, data)
        decision = self.judge(spec, attempt)
        if not isinstance(decision, Permit):
            raise Refused(decision.sentence, code=decision.code, hint=decision.hint, rule=decision.rule)
        active, roster = self._force.policy, self._force.roster
        if active is None or roster is None:
            raise Refused("no policy or roster is in force", code="no-policy")
        return Allowed(spec, decision, active, roster)

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
        said = Refuse(
            SAID_NO,
            f"Somebody who may approve said no: {reason}.",
            f"审批人拒绝: {reason}。",
            "talk to the department before submitting again",
            "请先与该部门沟通",
        )
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
        before = self._state.run(attempt)
        given = 0 if isinstance(decision, Refuse) else len(decision.approvals)
        needed = given + decision.missing if isinstance(decision, Ask) else given
        state = _STATES[type(decision)]
        same = before is not None and (before.state, before.given, before.needed) == (state, given, needed)
        if before is not None and same:
            return before.verdict
        verdict = self._verdict(attempt, decision)
        facts = job_facts(spec, spec.role_of(self._force.name))
        facts |= {"bytes": len(data), "envelope_sha256": sha256_digest(data)}
        with self._state.change() as change:
            change.add_job(attempt.job, data, spec.series, utc_text(self._now()))
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
            f"job-{_ANSWERS[type(decision)]}", job=attempt.job, attempt=attempt.number, reason=decision.code
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

    def _verdict(self, attempt: Attempt, decision: Decision) -> bytes:
        given = 0 if isinstance(decision, Refuse) else len(decision.approvals)
        verdict = Verdict(
            job=attempt.job,
            attempt=attempt.number,
            node=self._force.name,
            answer=_ANSWERS[type(decision)],
            rule=decision.rule,
            code=decision.code,
            sentence=_both(decision.sentence, decision.zh),
            hint=_both(decision.hint, decision.hint_zh),
            approvals_needed=given + decision.missing if isinstance(decision, Ask) else given,
            approvals_given=given,
        )
        return sign(VERDICT, verdict.encode(), [self._signer]).encode()


def authentic(force: InForce, job: JobId, data: bytes) -> JobSpec:
    """Return the job in an envelope that an analyst on the roster signed; nothing is parsed before that.

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
        signers = verify(envelope, JOB, analysts)
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


def judge(reader: Reader, force: InForce, spec: JobSpec, attempt: Attempt, now: datetime | None) -> Decision:
    """Return what a node answers to an authentic job. Changes nothing, so other terminals may ask too."""
    try:
        force.me()
    except Refused as error:
        return _refusal(error)
    assert force.roster is not None
    # (5)
    decision = decide(
        force.policy,
        spec,
        node=force.name,
        roster=force.roster,
        now=now,
        approvals=_approvals(reader, force, spec, now),
    )
    if isinstance(decision, Refuse):
        return decision
    # (6)
    try:
        dataset_of(reader, force, spec)
    except InputError as error:
        return _refusal(error, decision.rule)
    # (7)
    if any(run.code == SAID_NO for run in reader.runs(spec.job_id)):
        return REJECTED_BEFORE
    if reader.series_taken(spec.series, spec.job_id):
        return _with_rule(SERIES_RATE, decision.rule)
    if reader.charged_attempts(spec.job_id) >= ATTEMPTS_PER_JOB:
        return _with_rule(ATTEMPTS_EXHAUSTED, decision.rule)
    if any(output.attempt.number != attempt.number for output in reader.outputs(spec.job_id)):
        return _with_rule(OUTPUT_EXISTS, decision.rule)
    return decision


def dataset_of(reader: Reader, force: InForce, spec: JobSpec) -> Dataset | None:
    """Return the registered dataset that this node brings to a job, None for a role without one.

    Raises:
        InputError: it is not registered here, or lacks a column.
    """
    role = spec.role_of(force.name)
    brings = spec.input_of(role) if role is not None else None
    if brings is None or force.policy is None:
        return None
    source = force.policy.policy.datasets[brings.dataset].source.removeprefix("local:")
    dataset = reader.dataset(source)
    if dataset is None:
        raise InputError(
            "the policy opens a dataset that is not registered at this node",
            code="dataset-not-registered",
            hint="register it with minshu-node dataset add",
        )
    check_columns(dataset.columns, list(brings.columns.values()))
    return dataset


def trusted_now(reader: State, now: datetime) -> datetime | None:
    """Return `now`, or None where this node's own journal is ahead of it: no expiry can be judged then."""
    newest = reader.newest_time()
    return None if newest is not None and now < newest - CLOCK_TOLERANCE else now


def _approvals(reader: Reader, force: InForce, spec: JobSpec, now: datetime | None) -> list[VerifiedApproval]:
    """Return the recorded approvals that still hold under the policy now in force."""
    if force.policy is None or now is None:
        return []
    holding = []
    for stored in reader.approvals(spec.job_id):
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


def _refusal(error: MinshuError, rule: str = "") -> Refuse:
    sentence = error.message[:1].upper() + error.message[1:] + "."
    return Refuse(error.code, sentence, "", error.hint, "", rule)


def _with_rule(no: Refuse, rule: str) -> Refuse:
    return Refuse(no.code, no.sentence, no.zh, no.hint, no.hint_zh, rule)


def _both(en: str, zh: str) -> str:
    # One readable line: a verdict with a control character would be refused by its reader.
    return "".join(c if c.isprintable() else " " for c in f"{en} {zh}").strip()[:2048]


SERIES_RATE: Final = Refuse(
    "series-rate",
    "Another job has asked the same question of this node already.",
    "另一任务已就同一问题使用过本节点的数据。",
    SERIES_HINT,
    "请使用先前任务的结果",
)
ATTEMPTS_EXHAUSTED: Final = Refuse(
    "attempts-exhausted",
    f"{ATTEMPTS_PER_JOB} attempts of this job have run here already.",
    f"本任务已在本节点执行 {ATTEMPTS_PER_JOB} 次。",
    ATTEMPTS_HINT,
    "请先查明失败原因, 再提交新任务",
)
OUTPUT_EXISTS: Final = Refuse(
    "output-exists",
    "An earlier attempt of this job made its release here; it is not computed a second time.",
    "本任务先前一次执行已产生结果, 不再重复计算。",
    "use the release of the earlier attempt",
    "请使用先前执行的结果",
)
OLD_ATTEMPT: Final = Refuse(
    "old-attempt",
    "A newer attempt of this job was offered before; numbers only increase.",
    "已收到本任务更新的执行序号, 序号只能增加。",
    "offer the next attempt",
    "请使用下一个执行序号",
)
ATTEMPT_OVER: Final = Refuse(
    "attempt-over",
    "This attempt has ended here; it is not run a second time.",
    "本次执行已结束, 不再重复。",
    "offer the next attempt",
    "请使用下一个执行序号",
)
REJECTED_BEFORE: Final = Refuse(
    SAID_NO,
    "Somebody who may approve has said no to this job.",
    "审批人已拒绝本任务。",
    "talk to the department before submitting again",
    "请先与该部门沟通",
)
