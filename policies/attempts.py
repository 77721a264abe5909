"""What follows from documents alone about one attempt: what all participants agreed on, what it is charged,
whether an earlier attempt stands in its way.

A node asks this before it runs, an auditor asks it again afterwards; both get it from here.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from fractions import Fraction
from typing import Final, cast

from policies.decide import check_merged
from policies.decision import Permit, Refuse, Terms
from policies.history import Past
from policies.model import Policy
from protocols.channel import suites
from protocols.dp.cost import Cost, Notion, decimal_up
from protocols.encoding import canonical_json, sha256_digest
from protocols.envelope import ADMISSION, decode_envelope, key_id, verify
from protocols.errors import DecodeError, InputError, ProtocolAborted, Refused, SignatureInvalid
from protocols.ids import Digest, Role
from protocols.jobs import job_type
from protocols.jobs.job_type import InRounds, Turns
from protocols.statistics.differencing import Query, differenced
from protocols.wire import (
    Admission,
    Constraints,
    CostLine,
    InputSummary,
    JobSpec,
    Roster,
    context,
    strictest,
)

SAID_NO: Final = "approver-said-no"

MAX_GIVEN_UP: Final = 8
"""Attempts of one job that may end at no cost. Each one's admission tells the list's exact size."""


@dataclass(frozen=True, slots=True)
class Agreed:
    """What all participants have agreed on for one attempt."""

    admissions: Mapping[Role, Admission]
    ctx: bytes
    constraints: Constraints
    inputs: Mapping[Role, InputSummary]


def agree(
    envelopes: Iterable[bytes],
    *,
    spec: JobSpec,
    roster: Roster,
    attempt: int,
    permit: Permit,
    now: datetime,
) -> Agreed:
    """Return what everybody's admissions agree on.

    (1) Each is signed by the identity key that the roster gives for the node it names. (2) One per
    participant, of nobody else. (3) All name this job, attempt, roster, suite and these participants, and
    none has run out. (4) Each speaks of exactly the dataset that its seat brings. (5) The strictest
    constraints of all are at least this node's own, and the job satisfies them. (6) The job type's own
    guards on sizes hold.

    Args:
        envelopes: the admissions, one of each participant.
        spec: the job.
        roster: the one that the node goes by.
        attempt: which try.
        permit: what the node itself decided.
        now: the node's time.

    Raises:
        ProtocolAborted: `admission-mismatch` or another code that says what does not hold.
    """
    found: dict[Role, Admission] = {}
    for data in envelopes:
        admission, role = open_admission(data, spec, roster)  # (1)
        if role in found:
            raise mismatch(f"{role} has two admissions")
        if (admission.job, admission.attempt) != (spec.job_id, attempt):  # (3)
            raise mismatch(f"the admission of {role} is for another job or attempt")
        _compare(admission, role, spec, roster, now)  # (3) (4)
        found[role] = admission
    # (2)
    if set(found) != set(spec.roles):
        raise mismatch(f"{len(found)} admissions for {len(spec.roles)} participants")
    inputs = {role: s for role, a in found.items() for s in a.inputs.values()}
    merged = strictest(found[role].constraints for role in sorted(found))
    # (5)
    refused = check_merged(permit, merged, spec)
    if refused is not None:
        raise ProtocolAborted(refused.sentence, code=refused.code, hint=refused.hint)
    # (6)
    job_type(spec.job_type).check_inputs(spec, inputs, merged)
    return Agreed(found, context(found.values()), merged, inputs)


def open_admission(data: bytes, spec: JobSpec, roster: Roster) -> tuple[Admission, Role]:
    """Return an admission and the seat of the node that signed it; nothing is parsed before that.

    Raises:
        ProtocolAborted: `admission-mismatch`: not signed by the node it names, or of no participant.
    """
    seats = {}
    for role, name in spec.roles.items():
        listed = roster.node(name)
        if listed is not None:
            seats[key_id(listed.identity_key)] = (role, name, listed.identity_key)
    try:
        envelope = decode_envelope(data)
        signers = verify(envelope, ADMISSION, {identifier: key for identifier, (_, _, key) in seats.items()})
        admission = Admission.decode(envelope.payload)
    except (DecodeError, SignatureInvalid) as error:
        raise mismatch(f"an admission does not verify ({error.code})") from None
    role, name, _ = seats[min(signers)]
    if len(signers) != 1 or admission.node != name:
        raise mismatch("an admission is not signed by the node it names")
    return admission, role


def _compare(admission: Admission, role: Role, spec: JobSpec, roster: Roster, now: datetime) -> None:
    if admission.roster_digest != roster.digest or admission.suite != roster.suite:
        raise mismatch(f"{role} goes by another roster than this node")
    if dict(admission.participants) != dict(spec.roles):
        raise mismatch(f"{role} was told of other participants than this node")
    if admission.not_after <= now:
        raise ProtocolAborted(
            f"the admission of {role} has run out",
            code="admission-expired",
            hint="the nodes' clocks differ, or the start was delayed; try again",
        )
    brings = spec.input_of(role)
    if set(admission.inputs) != ({brings.dataset} if brings is not None else set()):
        raise mismatch(f"{role} speaks of other datasets than the job gives it")
    try:
        suites.seal(admission.suite, admission.key, b"", b"")
    except (DecodeError, InputError, ValueError):
        raise mismatch(f"{role} gave a key that is none of the roster's suite") from None


def mismatch(what: str) -> ProtocolAborted:
    """Return the abort of an attempt about which the participants were told different things."""
    return ProtocolAborted(
        what,
        code="admission-mismatch",
        hint="the coordinator told the nodes different things; compare the nodes' journals",
    )


def leakage_digest(spec: JobSpec) -> Digest:
    """Return the digest of the leakage statement of a job, as journals have it."""
    table = job_type(spec.job_type).learns(spec)
    plain = sorted(
        ["+".join(sorted(coalition)), [[statement.key, statement.en] for statement in statements]]
        for coalition, statements in table.items()
    )
    return sha256_digest(canonical_json(plain))


def charged_lines(lines: Iterable[CostLine], cost: Cost) -> tuple[CostLine, ...]:
    """Return what a cost under the merged constraints is to each limit: counts exactly, a loss at most.

    Args:
        lines: what the attempt was set aside as.
        cost: what it costs under the constraints of all participants.
    """
    counts = {"rows": str(cost.rows), "queries": str(cost.queries)}
    return tuple(replace(line, cost=counts.get(line.notion, line.cost)) for line in lines)


def deltas_of(policy: Policy, lines: Iterable[CostLine]) -> dict[str, Fraction]:
    """Return the δ of those limits that are about an ε at a δ: what a loss is to them rests on it."""
    budgets = {line.budget: policy.budgets.get(line.budget) for line in lines}
    return {
        name: Fraction(budget.delta)
        for name, budget in budgets.items()
        if budget is not None and budget.delta is not None
    }


def returned_lines(
    lines: Iterable[CostLine], cost: Cost, deltas: Mapping[str, Fraction]
) -> tuple[CostLine, ...]:
    """Return what an attempt in rounds is to each limit once it costs no more than `cost`.

    Counts exactly; a loss at most: by itself, or as it was charged, whichever is less.

    Args:
        lines: what the attempt was charged as.
        cost: what the rounds that it recorded cost.
        deltas: see `deltas_of`.
    """
    return tuple(_returned(line, cost, deltas.get(line.budget, Fraction(0))) for line in lines)


def _returned(line: CostLine, cost: Cost, delta: Fraction) -> CostLine:
    amount = cost.amount(cast("Notion", line.notion), delta)
    alone = line.cost if amount is None else decimal_up(amount)
    return replace(line, cost=min(line.cost, alone, key=Fraction))


def runs_in_rounds(name: str) -> InRounds | None:
    """Return the job type of that name where it is one that answers round by round, else None."""
    try:
        kind = job_type(name)
    except Refused:
        return None  # unknown to this version
    return kind if isinstance(kind, InRounds) else None


def cost_under(spec: JobSpec, role: Role, constraints: Constraints, terms: Terms) -> Cost:
    """Return what an attempt is charged under the constraints of all participants.

    Args:
        spec: the job.
        role: whose seat.
        constraints: what all participants agreed on.
        terms: on which the attempt was permitted.
    """
    left = paid_rounds(spec, role, constraints, dict(terms.rounds), charged=terms.cost)
    if left is None or not terms.rounds:
        return job_type(spec.job_type).cost(spec, role, constraints)
    return left


def paid_rounds(
    spec: JobSpec, role: Role, constraints: Constraints, rounds: Turns, *, charged: Cost
) -> Cost | None:
    """Return what an attempt that recorded these rounds costs; None where its type answers at once.

    Args:
        spec: the job.
        role: whose seat.
        constraints: what all participants agreed on, under which it was charged.
        rounds: recorded in this attempt.
        charged: what it was charged: the question of a job is counted once.
    """
    kind = runs_in_rounds(spec.job_type)
    if kind is None:
        return None
    cost = kind.cost_of(spec, role, constraints, rounds)
    return replace(cost, queries=min(cost.queries, charged.queries))


def set_aside(spec: JobSpec, attempt: int, terms: Terms, moment: datetime) -> Past:
    """Return what an attempt that was permitted at a moment is to the ledger, at the most it may cost."""
    return Past(
        job=spec.job_id,
        attempt=attempt,
        time=moment,
        requester=spec.requester,
        purpose=spec.purpose,
        job_type=spec.job_type,
        source=terms.source,
        unit=terms.unit,
        cost=terms.cost,
        query=terms.query,
        charged=False,
        exact=True,
        rule=terms.rule,
        partners=terms.partners,
    )


def free_again(past: Past, *, answering: bool, unopened: bool) -> bool:
    """Return whether what an attempt cost is free again at its end: nothing of the data was told.

    What is set aside is; so is what was charged where no data stream was opened, or where the job type tells
    nothing before it begins to answer.

    Args:
        past: the attempt.
        answering: frames that an answer could be made of may have gone out.
        unopened: it is known that its data stream was never opened.
    """
    if answering:
        return False
    return not past.charged or unopened or _silent(past.job_type)


def _silent(name: str) -> bool:
    try:
        return job_type(name).silent_until_answering
    except Refused:
        return False  # unknown to this version: then nobody can say


def forgiven(asked: Query | None, unanswered: Iterable[Query | None]) -> bool:
    """Return whether an attempt that was charged and ended before it began to answer counts as no answer.

    A party that guards a threshold may have told, by stopping or by going on, on which side of it the group
    is, and its node cannot know whether it did. So that is forgiven for one question of a source: an attempt
    at another one that overlaps it counts as exact, answered or not, and no threshold is searched for by
    questions that fail.

    Args:
        asked: what the attempt selects, None without a dataset.
        unanswered: what the source's other attempts select that were forgiven.
    """
    return asked is None or not any(other is not None and differenced(asked, other) for other in unanswered)


def check_earlier(*, rejected: bool, released: bool, answering: bool, given_up: int) -> Refuse | None:
    """Refuse an attempt that an earlier one of the same job stands in the way of.

    Args:
        rejected: somebody who may approve said no to the job.
        released: another attempt of it made a release here.
        answering: another attempt of it began to answer; no hindrance to a run in rounds, which goes on.
        given_up: how many others ended at no cost.
    """
    if rejected:
        return REJECTED_BEFORE
    if released:
        return OUTPUT_EXISTS
    if answering:
        return ANSWERED_ONCE
    return GIVEN_UP if given_up >= MAX_GIVEN_UP else None


REJECTED_BEFORE: Final = Refuse(
    SAID_NO,
    "Somebody who may approve has said no to this job.",
    "审批人已拒绝本任务。",
    "talk to the department before submitting again",
    "请先与该部门沟通",
)
OUTPUT_EXISTS: Final = Refuse(
    "output-exists",
    "An earlier attempt of this job made its release here; it is not computed a second time.",
    "本任务先前一次执行已产生结果, 不再重复计算。",
    "use the release of the earlier attempt",
    "请使用先前执行的结果",
)
ANSWERED_ONCE: Final = Refuse(
    "answered-once",
    "An earlier attempt of this job began to answer; one approval pays for one answer.",
    "本任务先前一次执行已开始作答; 一次审批只对应一次作答。",
    "submit a new job and have it approved",
    "请提交新任务并重新审批",
)
GIVEN_UP: Final = Refuse(
    "attempts-exhausted",
    "Too many attempts of this job were given up before they answered.",
    "本任务多次在作答前放弃。",
    "find out why the attempts never got to an answer, then submit a new job",
    "请先查明未能作答的原因, 再提交新任务",
)
