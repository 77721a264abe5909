"""The approvals queue: what a person is shown before saying yes, and how a signed yes is recorded.

An approval is bound to one job, one policy text and one rule; it counts for that job alone, dies with the
policy, and a person counts once (trust §4 (6)). The signature is made where the person's key is; this node
only checks and keeps it.
"""

import re
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from audit.entries import format_time
from node.activation import InForce
from node.gate import authentic
from node.journal import policy_ref
from node.state import Reader, RunState, State, StoredApproval
from policies.decide import NO_COST, Ask, VerifiedApproval, verify_approval
from policies.explain import explain_decision
from policies.model import ActivePolicy
from protocols.encoding import canonical_json, sha256_digest
from protocols.envelope import APPROVAL, Signer, decode_envelope, sign
from protocols.errors import InputError, MinshuError, Refused, StateConflict
from protocols.ids import Digest, JobId, NodeName
from protocols.jobs import job_type
from protocols.party import Rand
from protocols.wire import Approval, JobSpec, Roster, utc_text

LIFETIME: Final = timedelta(days=7)
MAX_REASON: Final = 300


def find_job(reader: Reader, given: str) -> JobId:
    """Return the one offered job whose id is, or begins with, what a person typed.

    Raises:
        InputError: none, or more than one.
    """
    digits = re.fullmatch(r"(?:sha256:)?([0-9a-f]{4,64})", given)
    found = reader.jobs_beginning(digits.group(1)) if digits else []
    if len(found) != 1:
        raise InputError(
            "no offered job has that id" if not found else "more than one offered job begins so",
            code="unknown-job",
            hint="copy the job id from minshu-node status",
        )
    return found[0]


def prompt(spec: JobSpec, decision: Ask, roster: Roster, title: str) -> str:
    """Return what an approver reads, Chinese first: who asks what, what is read, what would leave."""
    analyst = roster.analyst(spec.requester)
    titles = {o.name: o.title for o in roster.organisations}
    who = f"{analyst.name} ({titles.get(analyst.organisation, analyst.organisation)})" if analyst else "-"
    lines = [
        f"任务 job             {spec.job_id}",
        f"类型 type            {spec.job_type}",
        f"申请人 requester      {who}",
        f"用途 purpose         {spec.purpose} {title}",
        f"依据 legal basis     {spec.legal_basis}",
        f"规则 rule            {decision.rule}",
        f"到期 expires         {utc_text(spec.expires)}",
        f"参数 params          {', '.join(f'{name} = {spec.params[name]}' for name in sorted(spec.params))}",
        "读取的列 columns read:",
    ]
    for given in spec.inputs:
        columns = ", ".join(f"{column} ({slot})" for slot, column in sorted(given.columns.items()))
        lines.append(f"  {given.role} ({given.organisation}) {given.dataset}: {columns}")
    approved = ", ".join(sorted(a.approver for a in decision.approvals)) or "-"
    lines.append(f"已有审批 approvals     {approved}")
    return "\n".join(
        [*lines, "", explain_decision(decision, spec, "zh"), explain_decision(decision, spec, "en")]
    )


def make_approval(
    spec: JobSpec, decision: Ask, active: ActivePolicy, *, signer: Signer, now: datetime, rand: Rand
) -> bytes:
    """Return a person's signed yes to a job on the terms of `decision`, an envelope."""
    approval = Approval(
        job=spec.job_id,
        node=NodeName(active.policy.policy_id),
        policy_digest=active.digest,
        rule=decision.rule,
        cost=NO_COST,
        issued=now,
        expires=min(now + LIFETIME, spec.expires),
        nonce=rand(16).hex(),
    )
    return sign(APPROVAL, approval.encode(), [signer]).encode()


def record_approval(
    state: State, force: InForce, job: JobId, *, envelope: bytes, key: bytes, now: Callable[[], datetime]
) -> VerifiedApproval:
    """Check an approval and keep it; one that does not count is journaled and refused.

    (1) The job waits for approval here. (2) The approval holds, see `verify_approval`, and was not recorded
    before, for this or another job. (3) The person has not approved this job already.

    Args:
        state: where it is kept.
        force: the policy it must be given under.
        job: the job it is for.
        envelope: the signed approval.
        key: the raw public key that signed; the policy lists only key ids.
        now: the clock.

    Raises:
        Refused: (1)
        MinshuError: (2) or (3), with the code that is journaled.
    """
    # (1)
    waiting = [run for run in state.runs(job) if run.state is RunState.AWAITING_APPROVAL]
    data = state.job(job)
    if not waiting or data is None or force.policy is None:
        raise Refused(
            "the job does not wait for approval here", code="not-waiting", hint="see minshu-node status"
        )
    attempt = waiting[0].attempt
    recorded = state.approvals(job)
    try:
        # (2)
        spec = authentic(force, job, data)
        signed = decode_envelope(envelope)
        used = state.used_approvals(job) | {approval.digest for approval in recorded}
        verified = verify_approval(
            signed, force.policy, spec=spec, node=force.name, now=now(), keys=[key], used=used
        )
        # (3)
        same_person = [a for a in recorded if a.key == key]
        if any(_holds(a, force.policy, spec, force, now()) for a in same_person):
            raise StateConflict(
                "this person has approved the job already, a second person is needed",
                code="approved-already",
                hint="ask another approver",
            )
    except MinshuError as error:
        with state.change() as change:
            body = {"code": error.code, "approval_sha256": sha256_digest(envelope)}
            change.log("approval.rejected", body, attempt=attempt, policy=policy_ref(force.policy))
        raise
    said = verified.approval
    with state.change() as change:
        change.add_approval(job, StoredApproval(verified.digest, key, envelope))
        change.log(
            "approval.recorded",
            {
                "approver": verified.key,
                "approval_sha256": verified.digest,
                "role": verified.approver,
                "created": format_time(said.issued),
                "expires": format_time(said.expires),
                "cost": said.cost,
            },
            attempt=attempt,
            policy=policy_ref(force.policy, said.rule),
            actor=verified.key,
        )
    return verified


def _holds(
    approval: StoredApproval, active: ActivePolicy, spec: JobSpec, force: InForce, now: datetime
) -> bool:
    try:
        verify_approval(
            decode_envelope(approval.envelope),
            active,
            spec=spec,
            node=force.name,
            now=now,
            keys=[approval.key],
        )
    except MinshuError:
        return False
    return True


def purpose_title(active: ActivePolicy, spec: JobSpec) -> str:
    """Return the policy's title of the job's purpose."""
    purpose = active.policy.purposes.get(spec.purpose)
    return purpose.title if purpose is not None else ""


def leakage_digest(spec: JobSpec) -> Digest:
    """Return the digest of the leakage statement, for the journal."""
    table = job_type(spec.job_type).learns(spec)
    plain = sorted(
        ["+".join(sorted(coalition)), [[statement.key, statement.en] for statement in statements]]
        for coalition, statements in table.items()
    )
    return sha256_digest(canonical_json(plain))


def check_reason(reason: str) -> str:
    """Return the sentence in which a person says no; it goes to the requester.

    Raises:
        InputError: empty, longer than 300 characters, or with a number that could be an identifier.
    """
    text = " ".join(reason.split())
    if not 1 <= len(text) <= MAX_REASON or re.search(r"\d{11}", text):
        raise InputError(
            f"a reason is one sentence of at most {MAX_REASON} characters, without long numbers",
            code="bad-reason",
            hint="it goes to the requester: name no person",
        )
    return text
