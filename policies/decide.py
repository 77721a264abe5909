"""May this node take part in this job? `decide` answers from the policy alone: no file, no clock, no data.

Deny by default: a job is refused unless one rule allows every part of it. The answer is a value, `Permit`,
`Ask` (the rule allows it once people have approved) or `Refuse`, with sentences for people and a stable code
for journals. Nothing in an answer comes from data, so a refusal cannot leak any.
"""

import zoneinfo
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from policies.model import NEUTRAL_KINDS, ActivePolicy, Dataset, Policy, Rule, spelt_alike
from protocols.envelope import APPROVAL, Envelope, key_id, verify
from protocols.errors import InputError, SignatureInvalid
from protocols.ids import Digest, KeyId, NodeName, Organisation, Role
from protocols.jobs import JOB_TYPES
from protocols.jobs.job_type import (
    REQUESTER,
    JobType,
    OutputClass,
    PlannedRelease,
    Statement,
)
from protocols.wire import Approval, Constraints, JobInput, JobSpec, Roster, strictest, utc_text

MAX_JOB_LIFETIME: Final = timedelta(days=30)
MAX_APPROVAL_LIFETIME: Final = timedelta(days=7)
CLOCK_TOLERANCE: Final = timedelta(minutes=5)
"""How far ahead of this node's clock another's may be."""

NO_COST: Final = "0"
"""The privacy cost of a job that charges no budget; what an approval has to name."""


@dataclass(frozen=True, slots=True)
class VerifiedApproval:
    """An approval whose signature and wording held when it was checked; `decide` looks again at what ages."""

    approver: str
    key: KeyId
    approval: Approval
    digest: Digest


@dataclass(frozen=True, slots=True)
class Leak:
    """One line of the leakage statement: what these roles together can compute. `ours`: this node is one."""

    coalition: tuple[str, ...]
    statement: Statement
    ours: bool


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms a rule allows the job; the same before and after the approvals."""

    rule: str
    constraints: Constraints
    releases: tuple[PlannedRelease, ...]
    leaks: tuple[Leak, ...]
    cost: str = NO_COST


@dataclass(frozen=True, slots=True)
class Permit:
    """Yes. `approvals` are those that were counted: they are used up by this job."""

    terms: Terms
    approvals: tuple[VerifiedApproval, ...]
    code: str = "permitted"
    sentence: str = "The job fits the rule."
    zh: str = "任务符合规则。"
    hint: str = ""
    hint_zh: str = ""

    @property
    def rule(self) -> str:
        """Id of the rule that allows the job."""
        return self.terms.rule


@dataclass(frozen=True, slots=True)
class Ask:
    """Yes, once `missing` more of `approvers` have approved."""

    terms: Terms
    missing: int
    approvers: tuple[str, ...]
    approvals: tuple[VerifiedApproval, ...]
    sentence: str
    zh: str
    hint: str
    hint_zh: str
    code: str = "approval-needed"

    @property
    def rule(self) -> str:
        """Id of the rule that asks for approvals."""
        return self.terms.rule


@dataclass(frozen=True, slots=True)
class Refuse:
    """No. `rule` is the rule that decided, empty where none applied; `hint` says what would make it pass."""

    code: str
    sentence: str
    zh: str
    hint: str
    hint_zh: str
    rule: str = ""


Decision = Permit | Ask | Refuse


@dataclass(frozen=True, slots=True)
class _Seat:
    """This node's place in the job."""

    role: Role
    kinds: frozenset[str]
    brings: JobInput | None = field(default=None)


def decide(
    active: ActivePolicy | None,
    spec: JobSpec,
    *,
    node: NodeName,
    roster: Roster,
    now: datetime | None,
    approvals: Sequence[VerifiedApproval] = (),
    job_types: Sequence[JobType] = JOB_TYPES,
) -> Decision:
    """Decide one job at one node.

    (1) The clock is trusted. (2) A policy is active, for this node, and valid now. (3) The node has a seat
    in the job. (4) Nothing on the negative list is asked for; no rule can allow that. (5) The job type is
    known. (6) The job names the roster this node holds, and only its members. (7) The job is neither early,
    late nor long-lived. (8) The requester is an analyst on the roster and known to the policy. (9) The job is
    well-formed for its type. (10) The purpose is known, still valid and on the legal basis stated.
    (11) Exactly one rule fits requester, purpose, job type and dataset, or role. (12) The rule covers
    everything the seat plays. (13) Every column exists, is in the rule, of a fitting type, used as allowed.
    (14) Everyone who receives something is a recipient of the rule; the requester may receive numbers about
    groups, never records. (15) Organisations that must stay apart are apart. (16) Enough organisations and
    sources take part. (17) Enough distinct people have approved this very job under this very policy.

    Args:
        active: the policy in force, None where none is.
        spec: the job, its signature already checked.
        node: who decides.
        roster: the roster this node holds and trusts.
        now: the node's time, None where its clock cannot be trusted.
        approvals: verified ones; those that do not fit are not counted.
        job_types: the registry.
    """
    # (1)
    if now is None:
        return Refuse(
            "clock-untrusted",
            "This node's clock cannot be trusted, so nothing that expires can be judged.",
            "本节点时钟不可信, 无法判断任何有效期。",
            "synchronise the clock and run minshu-node doctor",
            "请校准时钟后运行 minshu-node doctor",
        )
    # (2)
    if active is None:
        return Refuse(
            "no-policy",
            "No policy is active at this node, so nothing is allowed.",
            "本节点没有生效的策略, 一律拒绝。",
            "activate a policy with minshu-node policy activate",
            "请用 minshu-node policy activate 启用策略",
        )
    policy = active.policy
    if policy.policy_id != node:
        return Refuse(
            "policy-of-another-node",
            "The active policy was written for another node.",
            "当前策略属于另一个节点。",
            f"activate a policy whose policy_id is {node}",
            f"请启用 policy_id 为 {node} 的策略",
        )
    if now < policy.not_before:
        return Refuse(
            "policy-not-yet-valid",
            f"The policy holds from {utc_text(policy.not_before)} on, not yet.",
            f"策略自 {utc_text(policy.not_before)} 起生效, 现在尚未生效。",
            "submit the job again after that time",
            "请在该时间之后重新提交",
        )
    if now >= policy.expires:
        return Refuse(
            "policy-expired",
            f"The policy expired at {utc_text(policy.expires)}.",
            f"策略已于 {utc_text(policy.expires)} 到期。",
            "activate the policy's next version",
            "请启用新版本策略",
        )
    # (3)
    role = spec.role_of(node)
    if role is None:
        return Refuse(
            "not-a-participant",
            "The job gives this node no role.",
            "任务没有给本节点分配角色。",
            "name this node in the job's roles, or do not offer it the job",
            "请在任务角色中列出本节点",
        )
    brings = spec.input_of(role)
    # (4)
    if brings is not None and (no := _negative_list(policy, brings)) is not None:
        return no
    # (5)
    job_type = next((known for known in job_types if known.name == spec.job_type), None)
    if job_type is None:
        return Refuse(
            "unknown-job-type",
            f"The job type {spec.job_type} is unknown to this version.",
            f"本版本不支持任务类型 {spec.job_type}。",
            "known types: " + ", ".join(known.name for known in job_types),
            "支持的类型: " + ", ".join(known.name for known in job_types),
        )
    # (6)
    if (no := _membership(spec, roster, now)) is not None:
        return no
    # (7)
    if (no := _times(spec, now)) is not None:
        return no
    # (8)
    analyst = roster.analyst(spec.requester)
    alias = next((name for name, who in policy.requesters.items() if spec.requester in who.keys), None)
    if analyst is None or alias is None:
        return Refuse(
            "unknown-requester",
            "The job is signed with a key that "
            + ("the roster does not list." if analyst is None else "this policy does not list."),
            "任务签名所用密钥" + ("不在名册中。" if analyst is None else "不在本策略的申请方中。"),
            "have the analyst's key enrolled and listed under [requesters]",
            "请先登记分析员密钥, 并列入策略 [requesters]",
        )
    declared = policy.requesters[alias].organisation
    if declared is not None and declared != analyst.organisation:
        return Refuse(
            "requester-moved",
            "The roster lists the requester under another organisation than the policy does.",
            "名册中申请方所属机构与策略不一致。",
            "correct the roster, or the organisation under [requesters]",
            "请更正名册或策略 [requesters] 中的机构",
        )
    # (9)
    try:
        job_type.check(spec)
        seat = _Seat(role, job_type.kinds(spec, role), brings)
    except InputError as error:
        return Refuse(
            error.code,
            f"The job is not well-formed for {spec.job_type}: {error.message}.",
            f"任务内容不符合 {spec.job_type} 的规定 ({error.code})。",
            error.hint,
            "请按任务类型的要求修改任务",
        )
    # (10)
    if (no := _purpose(policy, spec, now)) is not None:
        return no
    # (11)
    rule = _rule(policy, spec, alias, seat)
    if isinstance(rule, Refuse):
        return rule
    # (12)
    if (no := _roles(rule, seat)) is not None:
        return no
    # (13)
    if brings is not None and (no := _columns(policy.datasets[brings.dataset], rule, spec, seat, job_type)):
        return no
    # (14)
    releases = _resolved(job_type.releases(spec), analyst.organisation)
    allowed = _recipients(policy, rule, roster)
    if (no := _received(rule, spec, releases, allowed, analyst.organisation)) is not None:
        return no
    # (15)
    for apart in job_type.separation(spec, analyst.organisation):
        if any(_one_house(this, that) for this in apart.these for that in apart.those):
            return Refuse(
                "organisations-not-separate",
                "One organisation, or one and a part of it, holds two seats that must be apart; "
                f"which would learn {apart.why}.",
                "同一机构(或其下属机构)占据了必须分离的两个角色, 合谋会泄露信息。",
                "give the seats to different organisations",
                "请由互不隶属的机构担任这些角色",
                rule.id,
            )
    # (16)
    constraints = constraints_of(policy, rule)
    if (no := _enough(spec, constraints, rule.id)) is not None:
        return no
    # (17)
    terms = Terms(rule.id, constraints, releases, _leaks(job_type, spec, role))
    counted = _counted(active, rule, terms, spec, node=node, now=now, approvals=approvals)
    return _approved(active.policy, rule, terms, spec.requester, counted)


def _one_house(one: str, other: str) -> bool:
    """Whether two names are of one organisation, or of one and a part: `lab.police.example` is the police."""
    return one == other or one.endswith(f".{other}") or other.endswith(f".{one}")


def check_merged(permit: Permit, merged: Constraints, spec: JobSpec) -> Refuse | None:
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
    return _enough(spec, merged, permit.rule)


def verify_approval(
    envelope: Envelope,
    active: ActivePolicy,
    *,
    spec: JobSpec,
    node: NodeName,
    now: datetime,
    keys: Iterable[bytes],
    used: Container[Digest] = frozenset(),
) -> VerifiedApproval:
    """Check one signed approval of one job.

    (1) One person of the rule's approvers signed it, with a key the policy lists. (2) It is for this job, at
    this node, under this very policy text, at no cost. (3) It is issued, not expired, and runs at most
    seven days. (4) The approver is not the requester. (5) It was not used before.

    Args:
        envelope: as received.
        active: the policy in force.
        spec: the job it should approve.
        node: the node it should approve for.
        now: the node's time.
        keys: raw public keys this node knows; the policy lists only their ids, so a key that is not listed
            there counts for nothing, whoever supplied it.
        used: digests of approvals that other jobs have used up.

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
    if approval.cost != NO_COST:
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


def _negative_list(policy: Policy, brings: JobInput) -> Refuse | None:
    asked = brings.columns.values()
    for number, entry in enumerate(policy.negative_list, start=1):
        if entry.dataset == brings.dataset and any(spelt_alike(entry.column, name) for name in asked):
            return Refuse(
                "negative-list",
                f"Column {entry.column} of {entry.dataset} is on the negative list: {entry.reason}.",
                f"数据集 {entry.dataset} 的列 {entry.column} 在负面清单上: {entry.reason}。",
                "ask the question without this column",
                "请不要使用该列",
                f"negative-list-{number}",
            )
    return None


def _membership(spec: JobSpec, roster: Roster, now: datetime) -> Refuse | None:
    if spec.collaboration != roster.collaboration or spec.roster_digest != roster.digest:
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
    members = {organisation.name for organisation in roster.organisations}
    if any(roster.node(name) is None for name in spec.roles.values()) or not members.issuperset(
        spec.recipients
    ):
        return Refuse(
            "unknown-member",
            "The job names a node or a recipient that the roster does not list.",
            "任务涉及名册之外的节点或接收方。",
            "name members of the collaboration only",
            "请只使用协作名册内的成员",
        )
    return None


def _times(spec: JobSpec, now: datetime) -> Refuse | None:
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


def _purpose(policy: Policy, spec: JobSpec, now: datetime) -> Refuse | None:
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
    if now.astimezone(zoneinfo.ZoneInfo(policy.timezone)).date() > purpose.valid_until:
        return Refuse(
            "purpose-ended",
            f"The purpose was valid until {purpose.valid_until.isoformat()}.",
            f"该用途有效期至 {purpose.valid_until.isoformat()}, 现已结束。",
            "have the purpose prolonged in a new policy version",
            "请在新版本策略中延长该用途",
        )
    return None


def _rule(policy: Policy, spec: JobSpec, alias: str, seat: _Seat) -> Rule | Refuse:
    """Return the one rule that fits, or say which dimension left none over."""
    brings = seat.brings
    if brings is not None and brings.dataset not in policy.datasets:
        return Refuse(
            "unknown-dataset",
            "The policy does not know the dataset.",
            "策略中没有该数据集。",
            "ask for a dataset that the catalogue lists",
            "请使用目录中列出的数据集",
        )
    rules = policy.rules
    by_seat = (
        (
            "role-not-allowed",
            "role",
            "角色",
            [r for r in rules if not r.datasets and seat.kinds & set(r.roles)],
        )
        if brings is None
        else ("dataset-not-allowed", "dataset", "数据集", [r for r in rules if brings.dataset in r.datasets])
    )
    fitting = set(range(len(rules)))
    for code, word, word_zh, those in (
        ("requester-not-allowed", "requester", "申请方", [r for r in rules if alias in r.requesters]),
        ("purpose-not-allowed", "purpose", "用途", [r for r in rules if spec.purpose in r.purposes]),
        ("job-type-not-allowed", "job type", "任务类型", [r for r in rules if spec.job_type in r.job_types]),
        by_seat,
    ):
        ids = {rule.id for rule in those}
        fitting = {index for index in fitting if rules[index].id in ids}
        if not fitting:
            return Refuse(
                code,
                f"No rule allows this {word}.",
                f"没有规则允许该{word_zh}。",
                "have a rule for it added to the policy, or ask within the rules there are",
                "请在策略中增加相应规则, 或在现有规则范围内申请",
            )
    # Rules cannot overlap; where two neutral ones are left, each covers a part of the seat, and (12) refuses.
    return rules[min(fitting)]


def _roles(rule: Rule, seat: _Seat) -> Refuse | None:
    # A rule with datasets that names no roles opens them to data-giving roles, never to neutral ones.
    outside = seat.kinds - set(rule.roles) if rule.roles else seat.kinds & NEUTRAL_KINDS
    if not outside and seat.kinds:
        return None
    return Refuse(
        "role-not-allowed",
        f"The rule does not let this node play: {', '.join(sorted(outside)) or 'no known role'}.",
        f"规则不允许本节点担任: {', '.join(sorted(outside)) or '未知角色'}。",
        "give the seat to another node, or have the rule's roles extended",
        "请由其他节点担任, 或在规则中增加角色",
        rule.id,
    )


def _columns(dataset: Dataset, rule: Rule, spec: JobSpec, seat: _Seat, job_type: JobType) -> Refuse | None:
    brings = seat.brings
    needs = {need.slot: need for need in job_type.columns(spec, seat.role)}
    for slot, name in sorted(brings.columns.items()) if brings is not None else ():
        need, column = needs.get(slot), dataset.columns.get(name)
        if need is None:
            return Refuse(
                "unknown-slot",
                f"{spec.job_type} has no column slot {slot} for this role.",
                f"{spec.job_type} 的该角色没有列位 {slot}。",
                f"known slots: {', '.join(sorted(needs)) or 'none'}",
                f"可用列位: {', '.join(sorted(needs)) or '无'}",
                rule.id,
            )
        if column is None:
            return Refuse(
                "unknown-column",
                f"The policy does not list column {name}, so it does not exist for jobs.",
                f"策略未列出列 {name}, 对任务而言该列不存在。",
                "use a column that the catalogue lists",
                "请使用目录中列出的列",
                rule.id,
            )
        if name not in rule.columns:
            return Refuse(
                "column-not-allowed",
                f"The rule does not open column {name}.",
                f"规则没有开放列 {name}。",
                f"columns of the rule: {', '.join(rule.columns)}",
                f"规则开放的列: {', '.join(rule.columns)}",
                rule.id,
            )
        if need.use not in column.use:
            return Refuse(
                "column-use",
                f"Column {name} may not be used to {need.use}.",
                f"列 {name} 不可用于 {need.use}。",
                f"its uses are: {', '.join(column.use)}",
                f"允许的用途: {', '.join(column.use)}",
                rule.id,
            )
        if column.type not in need.types:
            return Refuse(
                "column-type",
                f"Column {name} is of type {column.type}, slot {slot} takes {', '.join(need.types)}.",
                f"列 {name} 的类型是 {column.type}, 列位 {slot} 需要 {', '.join(need.types)}。",
                "map the slot to a column of a fitting type",
                "请选择类型相符的列",
                rule.id,
            )
    return None


def _resolved(releases: Iterable[PlannedRelease], requester: Organisation) -> tuple[PlannedRelease, ...]:
    return tuple(replace(r, recipient=requester) if r.recipient == REQUESTER else r for r in releases)


def _recipients(policy: Policy, rule: Rule, roster: Roster) -> frozenset[str]:
    """Return the organisations the rule names: outright, or as the organisation of a requester alias."""
    found: set[str] = set()
    for name in rule.recipients:
        who = policy.requesters.get(name)
        if who is None:
            found.add(name)
        elif who.organisation is not None:
            found.add(who.organisation)
        else:
            analysts = (roster.analyst(KeyId(key)) for key in who.keys)
            found.update(analyst.organisation for analyst in analysts if analyst is not None)
    return frozenset(found)


def _received(
    rule: Rule,
    spec: JobSpec,
    releases: Iterable[PlannedRelease],
    allowed: frozenset[str],
    requester: Organisation,
) -> Refuse | None:
    outside = set(spec.recipients) - allowed
    for release in releases:
        if release.recipient in spec.recipients:
            continue
        # What is about groups may go to whom the rule lets ask; records only to whom it names.
        if release.recipient != requester or release.output_class is OutputClass.DIRECTED:
            outside.add(release.recipient)
    if not outside:
        return None
    return Refuse(
        "recipient-not-allowed",
        f"The rule does not let anything leave for: {', '.join(sorted(outside))}.",
        f"规则不允许向以下机构输出: {', '.join(sorted(outside))}。",
        f"recipients of the rule: {', '.join(sorted(allowed)) or 'none'}",
        f"规则允许的接收方: {', '.join(sorted(allowed)) or '无'}",
        rule.id,
    )


def constraints_of(policy: Policy, rule: Rule) -> Constraints:
    """Return what this node demands of the run: the stricter of rule and defaults."""
    return strictest(
        (
            Constraints(
                min_group_size=policy.defaults.min_group_size, max_runtime_s=policy.defaults.max_runtime_s
            ),
            Constraints(
                min_group_size=rule.min_group_size,
                min_organisations=rule.min_organisations,
                min_sources=rule.min_sources,
                max_rows=rule.max_rows,
                max_fraction=rule.max_fraction,
                min_coverage=rule.min_coverage,
                max_runtime_s=rule.max_runtime_s,
            ),
        )
    )


def sources_asked(spec: JobSpec) -> int:
    """Return the smallest number of lists a released person is on.

    `params.k` where the job type has it, else all lists. One organisation counts once.
    """
    k = spec.params.get("k")
    lists = len({given.organisation for given in spec.inputs})
    return min(k, lists) if isinstance(k, int) and not isinstance(k, bool) else lists


def _enough(spec: JobSpec, constraints: Constraints, rule: str) -> Refuse | None:
    organisations = len({given.organisation for given in spec.inputs})
    if constraints.min_organisations is not None and organisations < constraints.min_organisations:
        return Refuse(
            "too-few-organisations",
            f"{organisations} organisations give data, {constraints.min_organisations} are required.",
            f"提供数据的机构有 {organisations} 家, 至少需要 {constraints.min_organisations} 家。",
            "ask more organisations to take part",
            "请增加参与机构",
            rule,
        )
    if constraints.min_sources is not None and sources_asked(spec) < constraints.min_sources:
        return Refuse(
            "too-few-sources",
            f"The job asks for persons in at least {sources_asked(spec)} list(s), "
            f"{constraints.min_sources} are required.",
            f"任务要求至少在 {sources_asked(spec)} 份清单中出现, 规则要求 {constraints.min_sources} 份。",
            f"set k to {constraints.min_sources} or more",
            f"请将 k 设为 {constraints.min_sources} 或更大",
            rule,
        )
    return None


def _leaks(job_type: JobType, spec: JobSpec, role: Role) -> tuple[Leak, ...]:
    """Return the leakage statement, single roles first, so that the smallest coalitions are read first."""
    table: Mapping[frozenset[Role], tuple[Statement, ...]] = job_type.learns(spec)
    ordered = sorted(table.items(), key=lambda item: (len(item[0]), sorted(item[0])))
    return tuple(
        Leak(tuple(sorted(coalition)), statement, role in coalition)
        for coalition, statements in ordered
        for statement in statements
    )


def _counted(
    active: ActivePolicy,
    rule: Rule,
    terms: Terms,
    spec: JobSpec,
    *,
    node: NodeName,
    now: datetime,
    approvals: Iterable[VerifiedApproval],
) -> dict[KeyId, VerifiedApproval]:
    """Return the approvals that fit this job on these terms today, one per key, the requester's left out."""
    job = spec.job_id
    counted: dict[KeyId, VerifiedApproval] = {}
    for given in approvals:
        approver = active.policy.approvers.get(given.approver)
        said = given.approval
        if (
            given.approver in rule.approvers
            and approver is not None
            and given.key in approver.keys
            and given.key != spec.requester
            and (said.job, said.node, said.policy_digest) == (job, node, active.digest)
            and (said.rule, said.cost) == (rule.id, terms.cost)
            and said.expires > now
        ):
            counted.setdefault(given.key, given)
    return counted


def _approved(
    policy: Policy, rule: Rule, terms: Terms, requester: KeyId, counted: Mapping[KeyId, VerifiedApproval]
) -> Permit | Ask:
    """Ask for as many people as the rule says, from as many of its capacities as there are places for."""
    covered = {given.approver for given in counted.values()}
    capacities = min(rule.approvals, len(rule.approvers))
    missing = max(rule.approvals - len(counted), capacities - len(covered))
    given = tuple(counted.values())
    if missing <= 0:
        return Permit(terms, given)
    open_to = [name for name in rule.approvers if name not in covered]
    if missing > len(open_to):
        # More are needed than capacities are left: a second person of one capacity counts, too.
        taken = {*counted, requester}
        open_to = [name for name in rule.approvers if set(policy.approvers[name].keys) - taken]
    who = ", ".join(open_to or rule.approvers)
    return Ask(
        terms,
        missing,
        tuple(open_to),
        given,
        f"The job fits the rule and needs {missing} more approval(s) by: {who}.",
        f"任务符合规则, 还需 {missing} 份审批: {who}。",
        "approve with minshu-node approve",
        "请用 minshu-node approve 审批",
    )
