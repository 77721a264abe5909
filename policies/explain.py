"""A policy, and a policy's answer to a job, in plain Chinese and plain English.

The same facts that `decide` uses, in the order a person asks: who, what for, which data, to whom, on what
conditions, who must agree. Nothing is computed here that `decide` does not compute.
"""

import zoneinfo
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from fractions import Fraction
from hashlib import sha256
from typing import Final, Literal

import msgspec

from policies.decide import Ask, Decision, Leak, Permit, Refuse, Terms, constraints_of
from policies.model import ActivePolicy, Policy, Rule
from policies.parse import ParsedPolicy, unsupported_clauses
from protocols.encoding import sha256_digest
from protocols.envelope import key_id
from protocols.errors import InputError
from protocols.ids import NodeName, Organisation, Role
from protocols.jobs import JOB_TYPES
from protocols.jobs.job_type import OutputClass, Statement
from protocols.wire import (
    Constraints,
    JobSpec,
    Roster,
    RosterAnalyst,
    RosterNode,
    RosterOrganisation,
    organisation_of,
)

Language = Literal["zh", "en"]

_CLASSES: Final = {
    OutputClass.AGGREGATE: ("A: numbers about groups", "A 类: 群体统计数字"),
    OutputClass.DIRECTED: (
        "B: records about persons, sealed to one recipient",
        "B 类: 定向名单, 加密发给唯一接收方",
    ),
    OutputClass.MODEL: ("C: a model", "C 类: 模型"),
}

_CONSTRAINTS: Final = {
    "min_group_size": ("no group smaller than {}", "分组人数不少于 {}"),
    "min_organisations": ("at least {} organisations give data", "至少 {} 家机构提供数据"),
    "min_sources": ("only persons on at least {} lists", "仅限至少出现在 {} 份清单中的人员"),
    "max_rows": ("at most {} records", "名单不超过 {} 条"),
    "max_fraction": (
        "the list names at most {} of the people compared for it",
        "名单人数不超过参与比对人数的 {}",
    ),
    "min_coverage": (
        "the recipient's list covers at least {} of each source",
        "接收方清单对每个来源的覆盖率不低于 {}",
    ),
    "max_runtime_s": ("at most {} seconds", "运行不超过 {} 秒"),
}

_USES: Final = {
    "join": "匹配",
    "group": "分组",
    "filter": "筛选",
    "carry": "随名单携带",
    "sum": "求和",
    "mean": "求均值",
    "count": "计数",
    "quantile": "求分位数",
    "open-to-matcher": "对匹配方公开",
}


def explain_policy(parsed: ParsedPolicy, language: Language) -> str:
    """Return what the policy allows, rule by rule, as lines of text."""
    policy = parsed.policy
    zone = zoneinfo.ZoneInfo(policy.timezone)
    since, until = (
        t.astimezone(zone).strftime("%Y-%m-%d %H:%M") for t in (policy.not_before, policy.expires)
    )
    say = _Page(language)
    say.line(
        f"Policy of {policy.policy_id}, version {policy.version}, by {policy.controller}",
        f"{policy.policy_id} 的策略, 第 {policy.version} 版, 制定: {policy.controller}",
    )
    say.line(
        f"Valid from {since} to {until} ({policy.timezone})", f"有效期 {since} 至 {until} ({policy.timezone})"
    )
    say.line(f"Digest {parsed.digest}", f"摘要 {parsed.digest}")
    say.line("What no rule allows is refused.", "规则未允许的, 一律拒绝。")
    for rule in policy.rules:
        _explain_rule(say, policy, rule)
    if policy.negative_list:
        say.blank()
        say.line("Never, whatever a rule says:", "负面清单, 任何规则都不得使用:")
        for entry in policy.negative_list:
            say.line(
                f"  {entry.dataset}.{entry.column} ({entry.reason})",
                f"  {entry.dataset}.{entry.column} ({entry.reason})",
            )
    _explain_keys(say, policy)
    say.blank()
    keep = policy.retention
    say.line(
        f"Kept: journal {keep.journal_days} days, releases {keep.release_days} days, "
        "intermediate values until the job ends",
        f"保存期限: 日志 {keep.journal_days} 天, 输出 {keep.release_days} 天, 中间结果至任务结束",
    )
    for line, clause in unsupported_clauses(parsed):
        say.line(
            f"Line {line}: {clause} is not honoured by this version; the policy cannot be activated",
            f"第 {line} 行: 本版本不支持 {clause}, 策略无法启用",
        )
    return say.text()


def explain_decision(decision: Decision, spec: JobSpec, language: Language) -> str:
    """Return what this job is answered and why, what would leave, to whom, and what it costs."""
    say = _Page(language)
    match decision:
        case Refuse():
            rule = f" ({decision.rule})" if decision.rule else ""
            say.line(f"Refused{rule}: {decision.code}", f"拒绝{rule}: {decision.code}")
            say.line(f"  {decision.sentence}", f"  {decision.zh}")
            say.line(f"  To pass: {decision.hint}", f"  若要通过: {decision.hint_zh}")
        case Ask():
            say.line(
                f"Asks for approval (rule {decision.rule}): {decision.sentence}",
                f"待审批 (规则 {decision.rule}): {decision.zh}",
            )
            _explain_terms(say, decision.terms, spec)
        case Permit():
            say.line(
                f"Permitted (rule {decision.rule}): {decision.sentence}",
                f"允许 (规则 {decision.rule}): {decision.zh}",
            )
            _explain_terms(say, decision.terms, spec)
    return say.text()


def decision_json(decision: Decision) -> dict[str, object]:
    """Return the decision as plain JSON values, for scripts."""
    plain: dict[str, object] = {
        "answer": type(decision).__name__.lower(),
        "rule": decision.rule,
        "code": decision.code,
        "sentence": decision.sentence,
        "zh": decision.zh,
        "hint": decision.hint,
        "hint_zh": decision.hint_zh,
    }
    if isinstance(decision, Ask):
        plain |= {"missing": decision.missing, "approvers": list(decision.approvers)}
    if not isinstance(decision, Refuse):
        plain |= {
            "cost": decision.terms.cost,
            "constraints": decision.terms.constraints.to_json(),
            "releases": [
                {
                    "name": r.name,
                    "class": r.output_class.value,
                    "made_by": r.made_by,
                    "recipient": r.recipient,
                }
                for r in decision.terms.releases
            ],
            "leaks": [
                {"coalition": list(leak.coalition), "key": leak.statement.key, "ours": leak.ours}
                for leak in decision.terms.leaks
            ],
        }
    return plain


def suppose(
    parsed: ParsedPolicy, spec: JobSpec, alias: str, organisation: Organisation | None
) -> tuple[ActivePolicy, JobSpec, Roster]:
    """Return policy, job and roster as if `alias` had signed the job and the roster listed everyone in it.

    A department can so ask its own policy about a job file, without a roster and without anyone's key. The
    alias gets one more key, which exists nowhere else.

    Raises:
        InputError: the policy has no such requester, or nothing says which organisation it belongs to.
    """
    policy = parsed.policy
    who = policy.requesters.get(alias)
    if who is None:
        raise InputError(
            "the policy has no requester of that name",
            code="unknown-requester",
            hint=f"requesters: {', '.join(sorted(policy.requesters)) or 'none'}",
        )
    declared = Organisation(who.organisation) if who.organisation is not None else organisation
    if declared is None:
        raise InputError(
            f"nothing says which organisation requester {alias} belongs to",
            code="unknown-organisation",
            hint=f"add organisation under [requesters.{alias}], or give --organisation",
        )
    key = _supposed_key(f"analyst {alias}")
    asking = msgspec.structs.replace(who, keys=(*who.keys, key_id(key)))
    active = ActivePolicy(
        msgspec.structs.replace(policy, requesters={**policy.requesters, alias: asking}), parsed.digest
    )
    nodes = sorted({*spec.roles.values(), NodeName(policy.policy_id)})
    organisations = sorted({declared, *spec.recipients, *(organisation_of(node) for node in nodes)})
    roster = Roster(
        collaboration=spec.collaboration,
        version=1,
        previous=None,
        suite=1,
        issued=spec.created,
        expires=spec.expires + timedelta(days=1),
        organisations=tuple(RosterOrganisation(name, name) for name in organisations),
        nodes=tuple(
            RosterNode(
                node, _supposed_key(node), sha256_digest(node.encode()), "supposed", _supposed_key(node)
            )
            for node in nodes
        ),
        analysts=(RosterAnalyst("supposed", declared, key, key),),
    )
    return active, replace(spec, requester=key_id(key), roster_digest=roster.digest), roster


def _supposed_key(name: str) -> bytes:
    return sha256(b"minshu/supposed/1\0" + name.encode()).digest()


class _Page:
    """Lines in one language; every line is given in both."""

    def __init__(self, language: Language) -> None:
        self._chinese = language == "zh"
        self._lines: list[str] = []

    def pick(self, en: str, zh: str) -> str:
        return zh if self._chinese else en

    def line(self, en: str, zh: str) -> None:
        self._lines.append(self.pick(en, zh))

    def blank(self) -> None:
        self._lines.append("")

    def text(self) -> str:
        return "\n".join(self._lines) + "\n"


def _explain_rule(say: _Page, policy: Policy, rule: Rule) -> None:
    say.blank()
    say.line(f"Rule {rule.id}", f"规则 {rule.id}")
    who = ", ".join(_requester(say, policy, name) for name in rule.requesters)
    say.line(f"  Who may ask: {who}", f"  申请方: {who}")
    for name in rule.purposes:
        purpose = policy.purposes[name]
        say.line(
            f"  What for: {name} {purpose.title} (basis {purpose.legal_basis}, until {purpose.valid_until})",
            f"  用途: {name} {purpose.title} (依据 {purpose.legal_basis}, 至 {purpose.valid_until})",
        )
    for name in rule.job_types:
        classes = [_CLASSES[known.output_class] for known in JOB_TYPES if known.name == name]
        en, zh = classes[0] if classes else ("unknown to this version, refused", "本版本不支持, 拒绝")
        say.line(f"  Job type: {name} ({en})", f"  任务类型: {name} ({zh})")
    if rule.roles:
        say.line(f"  This node plays: {', '.join(rule.roles)}", f"  本节点担任: {', '.join(rule.roles)}")
    for name in rule.datasets:
        dataset = policy.datasets[name]
        say.line(
            f"  Data: {name} (grade {dataset.grade}, personal: {dataset.personal})",
            f"  数据: {name} (分级 {dataset.grade}, 个人信息 {dataset.personal})",
        )
        for column in rule.columns:
            if column in dataset.columns:
                uses = dataset.columns[column].use
                say.line(
                    f"    {column}: {', '.join(uses)}",
                    f"    {column}: {', '.join(_USES[use] for use in uses)}",
                )
    if not rule.datasets:
        say.line("  Data: none, it computes for others", "  数据: 无, 仅为他方计算")
    directed = {known.name for known in JOB_TYPES if known.output_class is OutputClass.DIRECTED}
    if "source" in rule.roles and directed & set(rule.job_types):
        say.line(
            "    each of these columns may travel, sealed, in a record about a person, whatever its use",
            "    以上各列不论用途, 均可能随名单加密提供给接收方",
        )
    to = ", ".join(_recipient(say, policy, name) for name in rule.recipients)
    say.line(
        f"  Goes to: {to}; numbers about groups also to whoever asks",
        f"  输出给: {to}; 群体统计数字同时提供给申请方",
    )
    _explain_conditions(say, _demanded(constraints_of(policy, rule)))
    if rule.approvals:
        who = ", ".join(rule.approvers)
        say.line(
            f"  Approvals: {rule.approvals}, by different people of: {who}",
            f"  审批: {rule.approvals} 份, 由不同人员签署: {who}",
        )
    else:
        say.line("  Approvals: none", "  审批: 不需要")


def _explain_keys(say: _Page, policy: Policy) -> None:
    """List all keys: a name in a policy is whatever its author wrote, only a key is a person."""
    groups = [
        *(("who may ask", "申请方", name, who.keys) for name, who in policy.requesters.items()),
        *(("approves", "审批人", name, who.keys) for name, who in policy.approvers.items()),
    ]
    if not groups:
        return
    say.blank()
    say.line(
        "Keys, one for each person; compare them with what that person shows you:",
        "密钥 (一人一钥, 签署前请与本人逐一核对):",
    )
    for en, zh, name, keys in groups:
        for key in keys:
            say.line(f"  {name} ({en}): {key}", f"  {name} ({zh}): {key}")


def _requester(say: _Page, policy: Policy, alias: str) -> str:
    organisation = policy.requesters[alias].organisation
    return f"{alias} ({organisation or say.pick('organisation not stated', '未注明机构')})"


def _recipient(say: _Page, policy: Policy, name: str) -> str:
    """Return whom a recipient means: a requester's alias stands for its organisation, whatever its name."""
    return _requester(say, policy, name) if name in policy.requesters else name


def _explain_conditions(say: _Page, values: dict[str, int | Fraction]) -> None:
    en = "; ".join(_CONSTRAINTS[key][0].format(_share(values[key])) for key in _CONSTRAINTS if key in values)
    zh = "; ".join(_CONSTRAINTS[key][1].format(_share(values[key])) for key in _CONSTRAINTS if key in values)
    say.line(f"  Conditions: {en}", f"  条件: {zh}")


def _share(value: int | Fraction) -> str:
    """Return a share as a percentage with no more digits than it needs, a count as it is."""
    if isinstance(value, int):
        return str(value)
    percent = value * 100
    if percent.denominator == 1:
        return f"{percent.numerator} %"
    return f"{float(percent):.4g} %"


def _explain_terms(say: _Page, terms: Terms, spec: JobSpec) -> None:
    say.line("  What would leave:", "  将输出:")
    for release in terms.releases:
        en, zh = _CLASSES[release.output_class]
        node = spec.roles[release.made_by]
        say.line(
            f"    {release.name}, from {node} to {release.recipient} ({en})",
            f"    {release.name}, 由 {node} 发给 {release.recipient} ({zh})",
        )
    _explain_conditions(say, _demanded(terms.constraints))
    say.line("  Who would learn what:", "  谁会得知什么:")
    _explain_leaks(say, spec, [leak for leak in terms.leaks if len(leak.coalition) == 1])
    if together := [leak for leak in terms.leaks if len(leak.coalition) > 1]:
        say.line(
            "  What they could compute only by breaking the rules and putting together what they hold:",
            "  只有违规串通、合并各自所持数据才可能得知:",
        )
        _explain_leaks(say, spec, together)
    say.line(
        "  Privacy budget: none charged; this version has no budgets",
        "  隐私预算: 不扣减, 本版本不支持预算",
    )


def _explain_leaks(say: _Page, spec: JobSpec, leaks: Sequence[Leak]) -> None:
    """Say each statement once, with everybody it is about."""
    who: dict[Statement, list[str]] = {}
    for leak in leaks:
        who.setdefault(leak.statement, []).append(" + ".join(_seat(spec, role) for role in leak.coalition))
    for statement, coalitions in who.items():
        names = "; ".join(coalitions)
        say.line(f"    {names}: {statement.en}", f"    {names}: {statement.zh}")


def _seat(spec: JobSpec, role: str) -> str:
    """Return the role with the organisation that takes it, so that people see who could join forces."""
    node = spec.roles.get(Role(role))
    return f"{role} ({organisation_of(node)})" if node is not None else role


def _demanded(constraints: Constraints) -> dict[str, int | Fraction]:
    return {key: value for key in _CONSTRAINTS if (value := getattr(constraints, key)) is not None}
