"""May this node take part in this job? `decide` answers from the policy alone: no file, no clock, no data.

Deny by default: a job is refused unless one rule allows every part of it. The answer is a value, `Permit`,
`Ask` (the rule allows it once people have approved) or `Refuse`, with sentences for people and a stable code
for journals. Nothing in an answer comes from data, so a refusal cannot leak any.

What is checked before a rule is looked for stands below `decide`; whether that rule covers the job is in
`policies.matching`, what the past leaves room for in `policies.limits`, who has to agree in
`policies.approving`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime, timedelta
from functools import partial
from types import MappingProxyType
from typing import Final

from policies.approving import count_approvals, least_approvals, require_approvals
from policies.decision import Decision, Permit, Refuse, Terms, VerifiedApproval
from policies.faults import said_in_chinese
from policies.history import History, Remembered, ledger_time, partners_of
from policies.index import Index, Members, index_of, members_of, source_of
from policies.limits import (
    ATTEMPTS_IN_ROUNDS,
    ATTEMPTS_PER_JOB,
    as_charged,
    charge,
    check_attempts,
    check_budget,
    check_differencing,
    check_max_cost,
    check_rate,
    cost_left,
    in_window,
    look_back,
    rounds_left,
)
from policies.matching import (
    asked_of,
    check_columns,
    check_enough,
    check_only,
    check_persons_in,
    check_public,
    check_recipients,
    check_roles,
    check_separation,
    check_series,
    check_smallest_group,
    check_training,
    check_unit,
    cost_of,
    fitting_clause,
    leaks_of,
)
from policies.model import ActivePolicy, Policy, Stop, spelt_alike
from policies.witnesses import witnesses_of_node
from protocols.errors import InputError
from protocols.ids import Digest, NodeName
from protocols.jobs import JOB_TYPES
from protocols.jobs.job_type import InRounds, JobType, Turns
from protocols.succession import CLOCK_TOLERANCE
from protocols.wire import Constraints, JobInput, JobSpec, Roster, strictest, utc_text

MAX_JOB_LIFETIME: Final = timedelta(days=30)

_NOTHING_BEFORE: Final = Remembered()
_NO_ROUNDS: Final[Turns] = MappingProxyType({})
_NOT_MAPPED: Final[Mapping[str, Digest]] = MappingProxyType({})


def decide(
    active: ActivePolicy | None,
    spec: JobSpec,
    *,
    node: NodeName,
    roster: Roster,
    now: datetime | None,
    approvals: Sequence[VerifiedApproval] = (),
    history: History = _NOTHING_BEFORE,
    attempt: int = 0,
    used: Turns = _NO_ROUNDS,
    mapped: Mapping[str, Digest] = _NOT_MAPPED,
    job_types: Sequence[JobType] = JOB_TYPES,
) -> Decision:
    """Decide one job at one node.

    (1) The clock is trusted. (2) A policy is active, for this node, and valid now. (3) The node has a seat in
    the job. (4) No stop halts everything. (5) The job names the roster this node holds, and only its members.
    (6) Where releases are cosigned, the roster lists witnesses enough. (7) The job is neither early, late nor
    long-lived. (8) The requester is an analyst on the roster and known to the policy; whoever is not learns
    nothing of what follows. (9) Nothing is asked for that no rule can allow: what a stop halts (the
    requester, the purpose, the dataset, the job), a column of the negative list, core data. (10) The job type
    is known. (11) The job is well-formed for its type. (12) The purpose is known, still valid and on the
    legal basis stated. (13) Exactly one rule fits requester, purpose, job type and dataset, or role. (14) The
    rule covers everything the seat plays, and names the recipe of a model; one without noise it has to allow,
    and exact sums of every round only with a smallest group of one; keys of a series may live until this day
    of it; a neutral seat brings nothing personal. (15) Every column exists, is in the rule, of a fitting
    type, used as allowed, in values, bins and a range that the policy states. (16) The job keeps to the rows
    that the rule is for, as its `only` says. (17) Where persons are counted, the policy says whom a row of
    personal data is about, and lets nobody have more rows than are reckoned with. (18) One person is taken to
    be in as many departments as the rule's `persons_in` says, without it in all; of a neutral seat's public
    data nobody is. (19) Everyone who receives something is a recipient of the rule; the requester may receive
    numbers about groups, never records. (20) Organisations that must stay apart are apart. (21) Enough
    organisations and sources take part. (22) Noise over personal data is paid for by a budget of the rule,
    and where the rule names one, a job that can carry noise does. (23) The job has attempts left here; a run
    in rounds needs no round more, its last attempt may only have to hand over the model. (24) The rule's rate
    leaves room for one more job in this period. (25) No exact answer of the last `differencing_days` is about
    a group that differs from this one and overlaps it; nor, where amounts are added up, about this very
    question. (26) One job costs no more than the rule's `max_cost`, nor gives more records than its
    `max_rows`. (27) The cost fits into what the rule's budget and quotas have left in this period; where one
    counts for each pair of datasets, into what each pair has left. (28) Enough distinct people have approved
    this very job, at this cost, under this very policy; two at least on important data, and where class B
    meets sensitive data. (29) The rule's window is open, for a session until it ends.

    Periods are the policy's calendar's, of the later of `now` and the newest row of the history: none opens
    again. Until (28) and (29) hold the answer is `Ask`.

    Args:
        active: the policy in force, with the stops in force beside it.
        spec: the job, its signature already checked; like all documents it never changes.
        node: who decides.
        roster: the roster this node holds and trusts.
        now: the node's time, None where its clock cannot be trusted.
        approvals: verified ones; those that do not fit are not counted.
        history: what this node has answered before.
        attempt: which attempt of the job asks; what is set aside for it already does not count against it.
            0: none does, the answer is dry.
        used: rounds that this node recorded in other attempts of the job, where its type runs in rounds; the
            attempt costs what the others may cost.
        mapped: columns of the node's dataset whose local values become codes → digest of how.
        job_types: the registry.
    """
    # (1)
    if now is None:
        return _CLOCK_UNTRUSTED
    # (2)
    if active is None:
        return _NO_POLICY
    policy = active.policy
    index, members = index_of(policy), members_of(roster)
    if (no := _check_policy(policy, index, node, now)) is not None:
        return no
    # (3)
    role = spec.role_of(node)
    if role is None:
        return _NOT_A_PARTICIPANT
    brings = spec.input_of(role)
    alias = index.alias_of.get(spec.requester)
    # (4)
    if (everything := next((stop for stop in _stops(active) if stop.scope == "all"), None)) is not None:
        return _stopped(everything)
    # (5)
    if (no := _check_members(spec, roster, members, now)) is not None:
        return no
    # (6)
    if (no := _check_witnesses(policy, roster)) is not None:
        return no
    # (7)
    if (no := _check_times(spec, now)) is not None:
        return no
    # (8)
    analyst = members.analysts.get(spec.requester)
    if analyst is None or alias is None:
        return _UNKNOWN_TO_ROSTER if analyst is None else _UNKNOWN_TO_POLICY
    if policy.requesters[alias].organisation not in (None, analyst.organisation):
        return _REQUESTER_MOVED
    # (9)
    if (no := _check_stops(active, spec, alias, brings)) is not None:
        return no
    if brings is not None and (no := _check_forbidden(index, policy, brings)) is not None:
        return no
    # (10)
    job_type = next((known for known in job_types if known.name == spec.job_type), None)
    if job_type is None:
        return _unknown_job_type(spec, job_types)
    # (11)
    try:
        asked = asked_of(spec, job_type, role, analyst.organisation)
    except InputError as error:
        return _ill_formed(spec, error)
    # (12)
    if (no := _check_purpose(policy, spec, now.astimezone(index.zone).date())) is not None:
        return no
    # (13)
    dataset = None if brings is None else policy.datasets.get(brings.dataset)
    if brings is not None and dataset is None:
        return _UNKNOWN_DATASET
    clause = fitting_clause(index, spec, alias, brings, asked.kinds)
    if isinstance(clause, Refuse):
        return clause
    rule = clause.rule
    # (14)
    if (no := check_roles(clause, asked.kinds)) is not None:
        return no
    if (no := check_training(rule, asked)) is not None:
        return no
    if (no := check_series(rule, asked, brings=brings is not None)) is not None:
        return no
    if isinstance(job_type, InRounds) and (no := check_smallest_group(clause, asked)) is not None:
        return no
    if (no := check_public(asked, dataset, rule.id)) is not None:
        return no
    # (15)
    if brings is not None and dataset is not None:
        no = check_columns(dataset, clause, spec.job_type, brings, asked.needs)
        if no is not None:
            return no
        # (16)
        if (no := check_only(rule, brings, asked.needs)) is not None:
            return no
        # (17)
        no = check_unit(dataset, brings, job_type, rule.id, rows_of_one=asked.rows_of_one)
        if no is not None:
            return no
        # (18)
        if (no := check_persons_in(asked, rule)) is not None:
            return no
    # (19)
    if (no := check_recipients(clause, members, spec, asked.releases, analyst.organisation)) is not None:
        return no
    # (20)
    if (no := check_separation(asked.together, rule.id)) is not None:
        return no
    # (21)
    if (no := check_enough(asked.organisations, asked.sources, clause.constraints, rule.id)) is not None:
        return no
    source = "" if dataset is None else source_of(dataset)
    limits = () if brings is None else clause.limits.get(brings.dataset, ())
    budget = next((limit for limit in limits if limit.private), None)
    whole = cost = cost_of(job_type, spec, role, clause.constraints)
    moment = ledger_time(now, history)
    past = look_back(history, source).without(spec.job_id, attempt)
    left: dict[str, int] = {}
    runs_in_rounds = isinstance(job_type, InRounds)
    if isinstance(job_type, InRounds) and brings is not None:
        left, before = rounds_left(job_type, spec, used), past.charged(spec.job_id) > 0
        if used or before:
            cost = cost_left(job_type, spec, role, clause.constraints, left, counted=before)
    # (22)
    if (no := check_budget(dataset, budget, cost, rule.id, spared=asked.spared)) is not None:
        return no
    query = as_charged(asked.query, budget)
    if query is not None and mapped:
        query = replace(query, mapped={name: mapped[name] for name in query.filters if name in mapped})
    # (23)
    most = ATTEMPTS_IN_ROUNDS if runs_in_rounds else ATTEMPTS_PER_JOB
    if (no := check_attempts(past, spec.job_id, rule.id, most=most)) is not None:
        return no
    # (24)
    if (no := check_rate(index, clause, history, spec.job_id, moment)) is not None:
        return no
    # (25)
    since = now - timedelta(policy.defaults.differencing_days)
    days = policy.defaults.differencing_days
    if (no := check_differencing(past, query, spec.job_id, since, days=days, rule=rule.id)) is not None:
        return no
    # (26)
    if (no := check_max_cost(rule, budget, cost)) is not None:
        return no
    # (27)
    partners = partners_of(spec, role)
    lines = charge(
        index,
        limits,
        past,
        cost,
        moment=moment,
        alias=alias,
        purpose=spec.purpose,
        partners=partners,
        rule=rule.id,
    )
    if isinstance(lines, Refuse):
        return lines
    terms = Terms(
        rule=rule.id,
        constraints=clause.constraints,
        releases=asked.releases,
        cost=cost,
        whole=whole,
        rounds=tuple(left.items()),
        spent=tuple(sorted(used.items())),
        lines=lines,
        source=source,
        unit="" if dataset is None or dataset.unit is None else dataset.unit.column,
        query=query,
        partners=partners,
        persons_in=asked.persons_in,
        _learnt=partial(leaks_of, job_type, spec, role),
    )
    # (28)
    counted = count_approvals(active, rule, terms, spec, node=node, now=now, approvals=approvals)
    needed = max(rule.approvals, least_approvals(job_type, dataset))
    answer = require_approvals(policy, rule, terms, counted, needed=needed, requester=spec.requester)
    # (29)
    return in_window(answer, rule, index.zone, now, lasting=asked.lasting)


def check_merged(
    permit: Permit, merged: Constraints, spec: JobSpec, *, job_types: Sequence[JobType] = JOB_TYPES
) -> Refuse | None:
    """Check the strictest constraints of all admissions against this node's own permit.

    (1) They are at least as strict as ours. (2) The job still has enough organisations and sources.

    Returns:
        None where the job may go on.
    """
    if strictest((permit.terms.constraints, merged)) != merged:
        return Refuse(
            "constraints-weakened",
            "The merged constraints are weaker than this node's own.",
            "合并后的约束比本节点的要求宽松。",
            "merge the constraints of all admissions, this node's included",
            "请合并包括本节点在内的全部约束",
            permit.rule,
        )
    job_type = next(known for known in job_types if known.name == spec.job_type)
    organisations = len({given.organisation for given in spec.inputs})
    return check_enough(organisations, job_type.sources_asked(spec), merged, permit.rule)


# --- (1), (2)

_CLOCK_UNTRUSTED: Final = Refuse(
    "clock-untrusted",
    "This node's clock cannot be trusted, so nothing that expires can be judged.",
    "本节点时钟不可信, 无法判断任何有效期。",
    "synchronise the clock and run minshu-node doctor",
    "请校准时钟后运行 minshu-node doctor",
)

_NO_POLICY: Final = Refuse(
    "no-policy",
    "No policy is active at this node, so nothing is allowed.",
    "本节点没有生效的策略, 一律拒绝。",
    "activate a policy with minshu-node policy activate",
    "请用 minshu-node policy activate 启用策略",
)


def _check_policy(policy: Policy, index: Index, node: NodeName, now: datetime) -> Refuse | None:
    if policy.policy_id != node:
        return Refuse(
            "policy-of-another-node",
            "The active policy was written for another node.",
            "当前策略属于另一个节点。",
            f"activate a policy whose policy_id is {node}",
            f"请启用 policy_id 为 {node} 的策略",
        )
    if now < index.not_before:
        return Refuse(
            "policy-not-yet-valid",
            f"The policy holds from {utc_text(policy.not_before)} on, not yet.",
            f"策略自 {utc_text(policy.not_before)} 起生效, 现在尚未生效。",
            "submit the job again after that time",
            "请在该时间之后重新提交",
        )
    if now >= index.expires:
        return Refuse(
            "policy-expired",
            f"The policy expired at {utc_text(policy.expires)}.",
            f"策略已于 {utc_text(policy.expires)} 到期。",
            "activate the policy's next version",
            "请启用新版本策略",
        )
    return None


# --- (3)

_NOT_A_PARTICIPANT: Final = Refuse(
    "not-a-participant",
    "The job gives this node no role.",
    "任务没有给本节点分配角色。",
    "name this node in the job's roles, or do not offer it the job",
    "请在任务角色中列出本节点",
)


# --- (4)

_HALTED: Final = {
    "all": ("everything at this node", "本节点的全部任务"),
    "requester": ("this requester's jobs", "该申请方的任务"),
    "purpose": ("jobs for this purpose", "该用途的任务"),
    "dataset": ("jobs on this dataset", "该数据集的任务"),
    "job": ("this job", "本任务"),
}


def _stops(active: ActivePolicy) -> tuple[Stop, ...]:
    return (*active.stops, *active.policy.stops)


def _stopped(stop: Stop) -> Refuse:
    what, what_zh = _HALTED[stop.scope]
    return Refuse(
        "stopped",
        f"The department has stopped {what}: {stop.reason}.",
        f"该部门已停止{what_zh}: {stop.reason}。",
        "talk to the department: a new policy version ends a stop",
        "请联系该部门; 停止令须由新版本策略解除",
    )


# --- (5)


def _check_members(spec: JobSpec, roster: Roster, members: Members, now: datetime) -> Refuse | None:
    if spec.collaboration != roster.collaboration or spec.roster_digest != members.digest:
        return Refuse(
            "wrong-roster",
            "The job was written for another roster than the one this node holds.",
            "任务所依据的名册与本节点持有的名册不同。",
            "fetch the current roster and submit the job again",
            "请获取最新名册后重新提交",
        )
    if now >= roster.expires:
        return Refuse(
            "roster-expired",
            f"The roster expired at {utc_text(roster.expires)}.",
            f"名册已于 {utc_text(roster.expires)} 到期。",
            "have the root keys sign a new roster",
            "请由根密钥签发新名册",
        )
    if not (
        members.nodes.issuperset(spec.roles.values()) and members.organisations.issuperset(spec.recipients)
    ):
        return Refuse(
            "unknown-member",
            "The job names a node or a recipient that the roster does not list.",
            "任务涉及名册之外的节点或接收方。",
            "name members of the collaboration only",
            "请只使用协作名册内的成员",
        )
    return None


# --- (6)


def _check_witnesses(policy: Policy, roster: Roster) -> Refuse | None:
    if policy.defaults.release_requires != "cosigned":
        return None
    witnesses = witnesses_of_node(policy, roster)
    if witnesses.possible:
        return None
    there, quorum = len(witnesses.organisations), witnesses.quorum
    if there < quorum:
        why, why_zh = "no quorum can be reached", "无法达到所需数量"
    else:
        why, why_zh = "two such groups need share nobody", "两组见证机构可能互不重叠"
    return Refuse(
        witnesses.code,
        f"Of the organisations on the roster {there} can witness for this node, "
        f"and its policy asks for {quorum}: {why}.",
        f"名册中可为本节点见证的机构有 {there} 家, 策略要求 {quorum} 家见证: {why_zh}。",
        "have nodes of more organisations listed with witness keys, or the quorum changed in a new version",
        "请在名册中登记更多机构的见证密钥, 或在新版本策略中调整见证数",
    )


# --- (7)


def _check_times(spec: JobSpec, now: datetime) -> Refuse | None:
    if spec.created > now + CLOCK_TOLERANCE:
        return Refuse(
            "job-from-the-future",
            "The job was created later than this node's clock says it is.",
            "任务创建时间晚于本节点当前时间。",
            "synchronise the clocks and submit the job again",
            "请校准时钟后重新提交",
        )
    if spec.expires <= now:
        return Refuse(
            "job-expired",
            f"The job expired at {utc_text(spec.expires)}.",
            f"任务已于 {utc_text(spec.expires)} 到期。",
            "submit the job again",
            "请重新提交任务",
        )
    if spec.expires - spec.created > MAX_JOB_LIFETIME:
        return Refuse(
            "job-too-long",
            f"The job is valid for more than {MAX_JOB_LIFETIME.days} days.",
            f"任务有效期超过 {MAX_JOB_LIFETIME.days} 天。",
            "submit it again with a shorter validity",
            "请缩短有效期后重新提交",
        )
    return None


# --- (8)

_UNKNOWN_TO_ROSTER: Final = Refuse(
    "unknown-requester",
    "The job is signed with a key that the roster does not list.",
    "任务签名所用密钥不在名册中。",
    "have the analyst's key enrolled and listed under [requesters]",
    "请先登记分析员密钥, 并列入策略 [requesters]",
)

_UNKNOWN_TO_POLICY: Final = replace(
    _UNKNOWN_TO_ROSTER,
    sentence="The job is signed with a key that this policy does not list.",
    zh="任务签名所用密钥不在本策略的申请方中。",
)

_REQUESTER_MOVED: Final = Refuse(
    "requester-moved",
    "The roster lists the requester under another organisation than the policy does.",
    "名册中申请方所属机构与策略不一致。",
    "correct the roster, or the organisation under [requesters]",
    "请更正名册或策略 [requesters] 中的机构",
)


# --- (9)


def _check_stops(active: ActivePolicy, spec: JobSpec, alias: str, brings: JobInput | None) -> Refuse | None:
    for stop in _stops(active):
        match stop.scope:
            case "all":
                halts = True
            case "requester":
                halts = stop.value == alias
            case "purpose":
                halts = stop.value == spec.purpose
            case "dataset":
                halts = brings is not None and stop.value == brings.dataset
            case "job":
                halts = stop.value == spec.job_id
        if halts:
            return _stopped(stop)
    return None


def _check_forbidden(index: Index, policy: Policy, brings: JobInput) -> Refuse | None:
    """Refuse what no rule can open: columns of the negative list, and core data."""
    for number, entry in index.banned.get(brings.dataset, ()):
        if any(spelt_alike(entry.column, name) for name in brings.columns.values()):
            return Refuse(
                "negative-list",
                f"Column {entry.column} of {entry.dataset} is on the negative list: {entry.reason}.",
                f"数据集 {entry.dataset} 的列 {entry.column} 在负面清单上: {entry.reason}。",
                "ask the question without this column",
                "请不要使用该列",
                f"negative-list-{number}",
            )
    dataset = policy.datasets.get(brings.dataset)
    if dataset is not None and dataset.grade == "core":
        return Refuse(
            "core-data",
            "The dataset is graded core; core data takes no part in joint computation.",
            "该数据集定级为核心数据, 不参与联合计算。",
            "ask the question without this dataset",
            "请不要使用该数据集",
        )
    return None


# --- (10)


def _unknown_job_type(spec: JobSpec, job_types: Sequence[JobType]) -> Refuse:
    known = ", ".join(known.name for known in job_types)
    return Refuse(
        "unknown-job-type",
        f"The job type {spec.job_type} is unknown to this version.",
        f"本版本不支持任务类型 {spec.job_type}。",
        f"known types: {known}",
        f"支持的类型: {known}",
    )


# --- (11)


def _ill_formed(spec: JobSpec, error: InputError) -> Refuse:
    fault_zh, hint_zh = said_in_chinese(error.code)
    return Refuse(
        error.code,
        f"The job is not well-formed for {spec.job_type}: {error.message}.",
        f"任务内容不符合 {spec.job_type} 的规定: {fault_zh} ({error.code})。",
        error.hint,
        hint_zh,
    )


# --- (12)


def _check_purpose(policy: Policy, spec: JobSpec, today: date) -> Refuse | None:
    purpose = policy.purposes.get(spec.purpose)
    if purpose is None:
        return Refuse(
            "unknown-purpose",
            "The policy does not know the job's purpose.",
            "策略中没有该用途。",
            "have the purpose added to the policy, or name one that is",
            "请在策略中登记该用途",
        )
    if purpose.legal_basis != spec.legal_basis:
        return Refuse(
            "legal-basis-mismatch",
            "The job states another legal basis than the policy has for this purpose.",
            "任务所列法律依据与策略中该用途的依据不一致。",
            f"state {purpose.legal_basis} as the legal basis, if that is what you rely on",
            f"若依据相符, 请填写 {purpose.legal_basis}",
        )
    # The last day counts whole, where the department is.
    if today > purpose.valid_until:
        return Refuse(
            "purpose-ended",
            f"The purpose was valid until {purpose.valid_until.isoformat()}.",
            f"该用途有效期至 {purpose.valid_until.isoformat()}, 现已结束。",
            "have the purpose prolonged in a new policy version",
            "请在新版本策略中延长该用途",
        )
    return None


# --- (13)

_UNKNOWN_DATASET: Final = Refuse(
    "unknown-dataset",
    "The policy does not know the dataset.",
    "策略中没有该数据集。",
    "ask for a dataset that the catalogue lists",
    "请使用目录中列出的数据集",
)
