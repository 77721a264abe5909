"""The approvals queue: what a person is shown before saying yes, and how a signed yes is recorded.

An approval is bound to one job, one policy text, one rule and one cost; it counts for that job alone, dies
with the policy, and a person counts once (trust §4 (6)). The signature is made where the person's key is:
here, or on the officer's own machine over the bytes that `to_sign` gives. This node only checks and keeps it.
"""

import re
import zoneinfo
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from audit.entries import format_time
from node.activation import InForce
from node.gate import about_of, authentic
from node.journal import policy_ref
from node.state import Reader, RunState, State, StoredApproval
from policies.approving import MAX_APPROVAL_LIFETIME, verify_approval
from policies.decision import Ask, Decision, Refuse, VerifiedApproval
from policies.explain import decision_json, explain_decision
from policies.model import ActivePolicy
from protocols.encoding import sha256_digest
from protocols.envelope import APPROVAL, Envelope, Signature, Signer, decode_envelope, key_id, pae, sign
from protocols.errors import DecodeError, InputError, MinshuError, Refused, StateConflict
from protocols.freetext import could_identify
from protocols.ids import JobId, KeyId, NodeName
from protocols.party import Rand
from protocols.wire import Approval, JobSpec, Roster, utc_text

MAX_REASON: Final = 300
SIGNATURE_BYTES: Final = 64


@dataclass(frozen=True, slots=True)
class Given:
    """One recorded approval as officers see it: by whom, until when, and whether it counts now.

    `used`: its job was answered with it, so it counts no more.
    """

    approver: str
    key: KeyId
    issued: datetime
    expires: datetime
    counts: bool
    used: bool

    def to_json(self) -> dict[str, Any]:
        """Return the plain JSON form."""
        return {
            "approver": self.approver,
            "key": self.key,
            "issued": utc_text(self.issued),
            "expires": utc_text(self.expires),
            "counts": self.counts,
            "used": self.used,
        }


@dataclass(frozen=True, slots=True)
class Case:
    """A job as somebody who decides about it is shown it; `states` say how its attempts stand here."""

    spec: JobSpec
    decision: Decision
    active: ActivePolicy
    roster: Roster
    given: tuple[Given, ...]
    states: tuple[str, ...]

    def page(self) -> str:
        """Return what an approver reads, Chinese first: who asks what, what is read, what would leave."""
        return prompt(self)

    def to_json(self) -> dict[str, Any]:
        """Return all of the page as plain JSON values."""
        analyst = self.roster.analyst(self.spec.requester)
        return {
            **decision_json(self.decision, self.spec),
            "purpose_title": purpose_title(self.active, self.spec),
            "requester": None
            if analyst is None
            else {"name": analyst.name, "organisation": analyst.organisation},
            "policy": {"version": self.active.policy.version, "sha256": self.active.digest},
            "approvals": [given.to_json() for given in self.given],
            "attempts": list(self.states),
        }


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


def prompt(case: Case) -> str:
    """Return what an approver reads, Chinese first: who asks what, what is read, what would leave."""
    spec, roster, active = case.spec, case.roster, case.active
    analyst = roster.analyst(spec.requester)
    titles = {o.name: o.title for o in roster.organisations}
    who = f"{analyst.name} ({titles.get(analyst.organisation, analyst.organisation)})" if analyst else "-"
    lines = [
        f"任务 job             {spec.job_id}",
        f"类型 type            {spec.job_type}",
        f"申请人 requester      {who}",
        f"用途 purpose         {spec.purpose} {purpose_title(active, spec)}",
        f"依据 legal basis     {spec.legal_basis}",
        f"预期用途 expected use {spec.expected_use}",
        f"规则 rule            {case.decision.rule or '-'}",
        f"到期 expires         {utc_text(spec.expires)}",
        f"参数 params          {', '.join(f'{name} = {spec.params[name]}' for name in sorted(spec.params))}",
        "读取的列 columns read:",
    ]
    own = None if isinstance(case.decision, Refuse) else spec.role_of(NodeName(active.policy.policy_id))
    for brings in spec.inputs:
        columns = [f"{column} ({slot})" for slot, column in sorted(brings.columns.items())]
        # No job names this column: the policy does, and what others' policies say is theirs.
        about = about_of(active.policy, spec, brings.role) if brings.role == own else None
        if about is not None:
            columns.append(f"{about.column} (unit: whom a row is about / 单位: 每行所属对象)")
        lines.append(f"  {brings.role} ({brings.organisation}) {brings.dataset}: {', '.join(columns)}")
    approved = ", ".join(sorted(given.approver for given in case.given if given.counts)) or "-"
    lines.append(f"已有审批 approvals     {approved}")
    lines.append(f"执行 attempts        {', '.join(case.states) or '-'}")
    zone = zoneinfo.ZoneInfo(active.policy.timezone)
    pages = (explain_decision(case.decision, spec, language, zone=zone) for language in _LANGUAGES)
    return "\n".join([*lines, "", *pages])


def given_approvals(reader: Reader, force: InForce, spec: JobSpec, now: datetime) -> tuple[Given, ...]:
    """Return every recorded approval of a job, oldest first, those that count no more among them."""
    active = force.policy
    approvers = {} if active is None else active.policy.approvers
    names = {key: name for name, approver in approvers.items() for key in approver.keys}
    found = []
    for stored in reader.approvals(spec.job_id):
        said = Approval.decode(decode_envelope(stored.envelope).payload)
        identifier = key_id(stored.key)
        counts = active is not None and not stored.used and _holds(stored, active, spec, force, now)
        found.append(
            Given(names.get(identifier, "-"), identifier, said.issued, said.expires, counts, stored.used)
        )
    return tuple(found)


def approvals_of(reader: Reader, force: InForce, job: JobId, now: datetime) -> tuple[Given, ...]:
    """Return every recorded approval of an offered job; none once its text is deleted."""
    data = reader.job(job)
    if data is None:
        return ()
    return given_approvals(reader, force, JobSpec.decode(decode_envelope(data).payload), now)


def draft_approval(spec: JobSpec, decision: Ask, active: ActivePolicy, *, now: datetime, rand: Rand) -> bytes:
    """Return the payload of a yes to a job on the terms of `decision`; nobody has signed it yet."""
    return Approval(
        job=spec.job_id,
        node=NodeName(active.policy.policy_id),
        policy_digest=active.digest,
        rule=decision.rule,
        cost=decision.terms.cost.encode(),
        issued=now,
        expires=min(now + MAX_APPROVAL_LIFETIME, spec.expires),
        nonce=rand(16).hex(),
    ).encode()


def make_approval(
    spec: JobSpec, decision: Ask, active: ActivePolicy, *, signer: Signer, now: datetime, rand: Rand
) -> bytes:
    """Return a person's signed yes to a job on the terms of `decision`, an envelope."""
    draft = draft_approval(spec, decision, active, now=now, rand=rand)
    return sign(APPROVAL, draft, [signer]).encode()


def to_sign_path(draft: Path) -> Path:
    """Return where the bytes to be signed lie: beside the draft."""
    return draft.with_name(f"{draft.name}.pae")


def signature_path(draft: Path) -> Path:
    """Return where the signature of a draft is looked for: beside it."""
    return draft.with_name(f"{draft.name}.sig")


def to_sign(draft: bytes) -> bytes:
    """Return the exact bytes that a signature over a draft is made of: DSSE's pre-authentication encoding."""
    return pae(APPROVAL, draft)


def assemble(draft: bytes, signature: bytes, key: bytes) -> bytes:
    """Return the envelope of a draft that was signed elsewhere; whether it holds, `record_approval` tells.

    Raises:
        InputError: the draft is none, or the signature is not 64 bytes long.
    """
    try:
        Approval.decode(draft)
    except DecodeError as error:
        raise InputError(
            f"the file is no draft of an approval ({error.code})",
            code="bad-draft",
            hint="give the file that minshu-node approve JOB --draft wrote, unchanged",
        ) from None
    if len(signature) != SIGNATURE_BYTES:
        raise InputError(
            f"the signature has {len(signature)} bytes, an Ed25519 signature has {SIGNATURE_BYTES}",
            code="bad-signature-file",
            hint="make it with openssl pkeyutl -sign -rawin -inkey KEY.pem -in DRAFT.pae -out DRAFT.sig",
        )
    return Envelope(APPROVAL, draft, (Signature(key_id(key), signature),)).encode()


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
        same_person = [a for a in recorded if a.key == key and not a.used]
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
    # Yes and key stand beside the log, so that an auditor can count again who agreed.
    state.journal.put_object(envelope)
    state.journal.put_object(key)
    with state.change() as change:
        change.add_approval(job, StoredApproval(verified.digest, key, envelope))
        change.log(
            "approval.recorded",
            {
                "approver": verified.key,
                "approval_sha256": verified.digest,
                "envelope_sha256": sha256_digest(envelope),
                "role": verified.approver,
                "created": format_time(said.issued),
                "expires": format_time(said.expires),
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


_LANGUAGES: Final = ("zh", "en")


def purpose_title(active: ActivePolicy, spec: JobSpec) -> str:
    """Return the policy's title of the job's purpose."""
    purpose = active.policy.purposes.get(spec.purpose)
    return purpose.title if purpose is not None else ""


def check_reason(reason: str) -> str:
    """Return the sentence in which a person says no; it goes to the requester.

    Raises:
        InputError: empty, longer than 300 characters, or with a number that could be an identifier.
    """
    text = " ".join(reason.split())
    if not 1 <= len(text) <= MAX_REASON or could_identify(text):
        raise InputError(
            f"a reason is one sentence of at most {MAX_REASON} characters, without long numbers",
            code="bad-reason",
            hint="it goes to the requester: name no person",
        )
    return text
