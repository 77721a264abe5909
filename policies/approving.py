"""Approvals: whether one is valid for a job, and how many people have yet to approve: `decide`, step (28)."""

from collections.abc import Container, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final

from policies.decision import Ask, Permit, Terms, VerifiedApproval
from policies.index import constraints_of
from policies.model import TWO_PEOPLE, ActivePolicy, Dataset, Policy, Rule
from policies.words import count_words
from protocols.dp.cost import Cost
from protocols.envelope import APPROVAL, Envelope, key_id, verify
from protocols.errors import InputError, SignatureInvalid
from protocols.ids import Digest, KeyId, NodeName
from protocols.jobs import JOB_TYPES
from protocols.jobs.job_type import JobType, OutputClass
from protocols.succession import CLOCK_TOLERANCE
from protocols.wire import Approval, JobSpec

MAX_APPROVAL_LIFETIME: Final = timedelta(days=7)

_text_of: Final = lru_cache(maxsize=1024)(Cost.encode)


def verify_approval(
    envelope: Envelope,
    active: ActivePolicy,
    *,
    spec: JobSpec,
    node: NodeName,
    now: datetime,
    keys: Iterable[bytes],
    used: Container[Digest] = frozenset(),
    job_types: Sequence[JobType] = JOB_TYPES,
) -> VerifiedApproval:
    """Check one signed approval of one job.

    (1) One person of the rule's approvers signed it, with a key the policy lists. (2) It is for this job, at
    this node, under this very policy text, at the cost that all of the job has there. (3) It is issued, not
    expired, and runs at most seven days. (4) The approver is not the requester. (5) It was not used before.

    Args:
        envelope: as received.
        active: the policy in force.
        spec: the job it should approve.
        node: the node it should approve for.
        now: the node's time.
        keys: raw public keys this node knows; the policy lists only their ids, so a key that is not listed
            there counts for nothing, whoever supplied it.
        used: digests of approvals that other jobs have used up.
        job_types: the registry.

    Raises:
        SignatureInvalid: signed by nobody the rule accepts, or void for another reason; the code says which.
        DecodeError: the payload is no approval.
    """
    listed = {key: name for name, approver in active.policy.approvers.items() for key in approver.keys}
    known = {key_id(key): key for key in keys if key_id(key) in listed}
    # (1) The signature is checked before the payload is parsed.
    signed = verify(envelope, APPROVAL, known)
    if len(signed) != 1:
        raise SignatureInvalid(
            f"an approval signed by {len(signed)} people, expected one each",
            code="approval-shared",
            hint="let each approver sign an approval of their own",
        )
    key = next(iter(signed))
    approval = Approval.decode(envelope.payload)
    rule = next((r for r in active.policy.rules if r.id == approval.rule), None)
    if rule is None or listed[key] not in rule.approvers:
        raise SignatureInvalid(
            "the approval is by someone whom its rule does not list as an approver",
            code="approver-not-listed",
            hint="ask one of the rule's approvers",
        )
    # (2)
    if approval.job != spec.job_id or approval.node != node:
        raise SignatureInvalid(
            "the approval is for another job or another node", code="approval-of-another-job"
        )
    if approval.policy_digest != active.digest:
        raise SignatureInvalid(
            "the approval was given under another policy text, so it is void",
            code="approval-of-another-policy",
            hint="approve the job again under the policy now in force",
        )
    if approval.cost != _cost_text(active.policy, rule, spec, node, job_types):
        raise SignatureInvalid("the approval names another cost than the job's", code="approval-cost")
    # (3)
    if approval.issued > now + CLOCK_TOLERANCE:
        raise SignatureInvalid("the approval was issued in the future", code="approval-not-yet-valid")
    if not approval.issued < approval.expires <= approval.issued + MAX_APPROVAL_LIFETIME:
        raise SignatureInvalid(
            "the approval does not expire within seven days of its issue", code="approval-too-long"
        )
    if approval.expires <= now:
        raise SignatureInvalid(
            "the approval has expired", code="approval-expired", hint="approve the job again"
        )
    # (4)
    if key == spec.requester:
        raise SignatureInvalid(
            "the approver is the requester", code="approver-is-requester", hint="ask somebody else"
        )
    # (5)
    if envelope.payload_digest in used:
        raise SignatureInvalid("the approval was used before", code="approval-used")
    return VerifiedApproval(listed[key], key, approval, envelope.payload_digest)


def _cost_text(
    policy: Policy, rule: Rule, spec: JobSpec, node: NodeName, job_types: Sequence[JobType]
) -> str | None:
    """Return the cost an approval has to name, None where the job is nothing anybody could approve."""
    role = spec.role_of(node)
    job_type = next((known for known in job_types if known.name == spec.job_type), None)
    if role is None or job_type is None:
        return None
    try:
        return job_type.cost(spec, role, constraints_of(policy, rule)).encode()
    except InputError:
        return None


def least_approvals(job_type: JobType, dataset: Dataset | None) -> int:
    """Return how many approvals the data itself asks for, whatever the rule says (trust §4 (4))."""
    if dataset is None:
        return 0
    directed = job_type.output_class is OutputClass.DIRECTED
    return TWO_PEOPLE if dataset.grade == "important" or (directed and dataset.personal == "sensitive") else 0


def count_approvals(
    active: ActivePolicy,
    rule: Rule,
    terms: Terms,
    spec: JobSpec,
    *,
    node: NodeName,
    now: datetime,
    approvals: Sequence[VerifiedApproval],
) -> dict[KeyId, VerifiedApproval]:
    """Return the approvals that fit this job on these terms today, one per key, the requester's left out."""
    counted: dict[KeyId, VerifiedApproval] = {}
    job, cost = spec.job_id, _text_of(terms.whole)
    for given in approvals:
        approver = active.policy.approvers.get(given.approver)
        said = given.approval
        if (
            given.approver in rule.approvers
            and approver is not None
            and given.key in approver.keys
            and given.key != spec.requester
            and (said.job, said.node, said.policy_digest) == (job, node, active.digest)
            and (said.rule, said.cost) == (rule.id, cost)
            and said.expires > now
        ):
            counted.setdefault(given.key, given)
    return counted


def require_approvals(
    policy: Policy,
    rule: Rule,
    terms: Terms,
    counted: Mapping[KeyId, VerifiedApproval],
    *,
    needed: int,
    requester: KeyId,
) -> Permit | Ask:
    """Ask for as many people as are needed, from as many of the rule's capacities as there are places for."""
    covered = {given.approver for given in counted.values()}
    capacities = min(needed, len(rule.approvers))
    missing = max(needed - len(counted), capacities - len(covered))
    given = tuple(counted.values())
    if missing <= 0:
        return Permit(terms, given)
    open_to = [name for name in rule.approvers if name not in covered]
    if missing > len(open_to):
        # More are needed than capacities are left: a second person of one capacity counts, too.
        taken = {*counted, requester}
        open_to = [name for name in rule.approvers if set(policy.approvers[name].keys) - taken]
    who = ", ".join(open_to or rule.approvers)
    more = count_words(missing, "more approval", "more approvals")
    return Ask(
        terms,
        missing,
        tuple(open_to),
        given,
        f"The job fits the rule and needs {more} by: {who}.",
        f"任务符合规则, 还需 {missing} 份审批: {who}。",
        "ask them to approve: minshu-node approve, at their node",
        "请审批人在其所属部门的节点上审批: minshu-node approve",
    )
