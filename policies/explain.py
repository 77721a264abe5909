"""A policy, and a policy's answer to a job, in plain Chinese and plain English.

The same facts that `decide` uses, in the order a person asks: who, what for, which data, to whom, on what
conditions, who must agree. Nothing is computed here that `decide` does not compute.
"""

import zoneinfo
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, timedelta, tzinfo
from fractions import Fraction
from hashlib import sha256
from typing import Final, Literal

import msgspec

from policies.decision import Ask, Decision, Leak, Permit, Refuse, Terms
from policies.index import constraints_of
from policies.model import PUBLIC_KINDS, ActivePolicy, Budget, Policy, Quota, Rule, Stop, Witnessing
from policies.parse import ParsedPolicy, cautions
from policies.quality import thresholds_of
from policies.witnesses import default_quorum
from policies.words import (
    Words,
    column_words,
    count_words,
    figure,
    grouped,
    least_persons_words,
    limit_words,
    measure,
    only_words,
    persons_words,
    rate_words,
    recipe_words,
    rounds_words,
    share,
    stop_words,
    unit_words,
    wall_time,
    weights_words,
    window_words,
)
from protocols.encoding import sha256_digest
from protocols.envelope import key_id
from protocols.errors import InputError
from protocols.ids import NodeName, Organisation, Role
from protocols.jobs import JOB_TYPES
from protocols.jobs.job_type import (
    WEIGHTS,
    CountsAcross,
    ExactOrNoisy,
    Forecaster,
    OutputClass,
    Statement,
    TellsLess,
    Trains,
)
from protocols.wire import (
    Constraints,
    JobSpec,
    Roster,
    RosterAnalyst,
    RosterNode,
    RosterOrganisation,
    organisation_of,
    utc_text,
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
    "max_per_minute": ("at most {} look-ups a minute", "每分钟核验不超过 {} 次"),
    "max_series_days": (
        "a series of daily questions for at most {} days, for which its keys are kept",
        "逐日系列不超过 {} 天, 其密钥保存期限相同",
    ),
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
    _explain_stops(say, policy)
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
    _explain_everywhere(say, policy)
    for caution in cautions(parsed):
        say.line(f"Note (line {caution.line}): {caution.en}", f"注意 (第 {caution.line} 行): {caution.zh}")
    return say.text()


def explain_stop(stops: Sequence[Stop], language: Language) -> str:
    """Return what a stop document halts, as lines of text."""
    say = _Page(language)
    for stop in stops:
        en, zh = stop_words(stop)
        say.line(f"halts {en}: {stop.reason}", f"停止{zh}: {stop.reason}")
    say.line(
        "until a policy signed by both officers names this document under lifted_stops",
        "直至由两人共同签署的新策略在 lifted_stops 中列出本文件为止",
    )
    return say.text()


def explain_decision(decision: Decision, spec: JobSpec, language: Language, *, zone: tzinfo = UTC) -> str:
    """Return what this job is answered and why, who takes part, what would leave, to whom, what it costs.

    Args:
        decision: the answer.
        spec: the job.
        language: of the text.
        zone: times are shown in it; a policy's own is its `timezone`.
    """
    say = _Page(language)
    match decision:
        case Refuse():
            rule = f" ({decision.rule})" if decision.rule else ""
            say.line(f"Refused{rule}: {decision.code}", f"拒绝{rule}: {decision.code}")
            say.line(f"  {decision.sentence}", f"  {decision.zh}")
            say.line(f"  To pass: {decision.hint}", f"  若要通过: {decision.hint_zh}")
        case Ask() if decision.missing == 0:
            say.line(
                f"Waits (rule {decision.rule}): {decision.sentence}",
                f"等待 (规则 {decision.rule}): {decision.zh}",
            )
            _explain_terms(say, decision.terms, spec, zone)
        case Ask():
            say.line(
                f"Asks for approval (rule {decision.rule}): {decision.sentence}",
                f"待审批 (规则 {decision.rule}): {decision.zh}",
            )
            _explain_terms(say, decision.terms, spec, zone)
        case Permit():
            say.line(
                f"Permitted (rule {decision.rule}): {decision.sentence}",
                f"允许 (规则 {decision.rule}): {decision.zh}",
            )
            _explain_terms(say, decision.terms, spec, zone)
    return say.text()


def decision_json(decision: Decision, spec: JobSpec | None = None) -> dict[str, object]:
    """Return the decision as plain JSON values, for scripts; with `spec`, also what is asked and by whom."""
    plain: dict[str, object] = {
        "answer": type(decision).__name__.lower(),
        "rule": decision.rule,
        "code": decision.code,
        "sentence": decision.sentence,
        "zh": decision.zh,
        "hint": decision.hint,
        "hint_zh": decision.hint_zh,
    }
    if spec is not None:
        plain["job"] = {
            "id": spec.job_id,
            "job_type": spec.job_type,
            "params": dict(spec.params),
            "purpose": spec.purpose,
            "legal_basis": spec.legal_basis,
            "expected_use": spec.expected_use,
            "requester": spec.requester,
            "recipients": list(spec.recipients),
            "expires": utc_text(spec.expires),
            "takes_part": [
                {
                    "role": role,
                    "node": node,
                    "dataset": None if (given := spec.input_of(role)) is None else given.dataset,
                    "columns": {} if given is None else dict(given.columns),
                }
                for role, node in sorted(spec.roles.items())
            ],
        }
    if isinstance(decision, Ask):
        plain |= {"missing": decision.missing, "approvers": list(decision.approvers)}
    if isinstance(decision, Refuse):
        return plain
    terms = decision.terms
    return plain | {
        "approved": [{"approver": given.approver, "key": given.key} for given in decision.approvals],
        "cost": {"text": terms.cost.encode(), "rows": terms.cost.rows, "queries": terms.cost.queries},
        "lines": [line.to_json() for line in terms.lines],
        "rounds": {"most": dict(terms.rounds), "spent": dict(terms.spent)} if terms.rounds else None,
        "constraints": terms.constraints.to_json(),
        "persons_in": None
        if terms.persons_in is None
        else {"most": terms.persons_in[0], "of": terms.persons_in[1]},
        "releases": [
            {
                "name": r.name,
                "class": r.output_class.value,
                "made_by": r.made_by,
                "recipient": r.recipient,
            }
            for r in terms.releases
        ],
        "leaks": [
            {
                "coalition": list(leak.coalition),
                "key": leak.statement.key,
                "en": leak.statement.en,
                "zh": leak.statement.zh,
                "ours": leak.ours,
            }
            for leak in terms.leaks
        ],
    }


def suppose(
    parsed: ParsedPolicy, spec: JobSpec, alias: str, organisation: Organisation | None
) -> tuple[ActivePolicy, JobSpec, Roster]:
    """Return policy, job and roster as if `alias` had signed the job and the roster listed all it takes.

    That is everyone in the job, and witnesses enough. A department can so ask its own policy about a job
    file, without a roster and without anyone's key. The alias gets one more key, which exists nowhere else.

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
    clause = policy.witnesses or Witnessing()
    watching = clause.organisations or [f"witness-{n}.supposed.example" for n in range(clause.quorum or 1)]
    witnesses = {NodeName(f"{name}/supposed"): ("supposed",) for name in watching}
    nodes = sorted({*spec.roles.values(), NodeName(policy.policy_id), *witnesses})
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
                node,
                _supposed_key(node),
                sha256_digest(node.encode()),
                "supposed",
                _supposed_key(node),
                witnesses.get(node, ()),
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
        en, zh = _kind(name, policy, rule)
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
                en, zh = column_words(dataset.columns[column])
                say.line(f"    {column}: {en}", f"    {column}: {zh}")
        if dataset.unit is not None:
            en, zh = unit_words(dataset.unit)
            say.line(f"    Counted as {en}", f"    计数: {zh}")
        for threshold in thresholds_of(dataset, rule):
            en, zh = threshold.words()
            say.line(f"    Only while {en}", f"    前提: {zh}")
        for accepted in (t for t in thresholds_of(dataset) if t.metric in rule.accepts_quality):
            en, zh = accepted.words()
            say.line(f"    Not asked here: {en}", f"    本规则不要求: {zh}")
    for column, values in rule.only.items():
        en, zh = only_words(column, values)
        say.line(
            f"    O{en.removeprefix('o')}: a job has to say so, or ask for fewer",
            f"    {zh}: 任务须如此限定, 或限定得更窄",
        )
    if not rule.datasets:
        say.line("  Data: none, it computes for others", "  数据: 无, 仅为他方计算")
    _explain_records(say, policy, rule)
    _explain_models(say, rule)
    to = ", ".join(_recipient(say, policy, name) for name in rule.recipients)
    say.line(
        f"  Goes to: {to}; numbers about groups also to whoever asks",
        f"  输出给: {to}; 群体统计数字同时提供给申请方",
    )
    _explain_conditions(say, _demanded(constraints_of(policy, rule)))
    across = {known.name for known in JOB_TYPES if isinstance(known, CountsAcross)}
    hides = bool(rule.datasets) and not (rule.roles and PUBLIC_KINDS.issuperset(rule.roles))
    if hides and (rule.persons_in is not None or across & set(rule.job_types)):
        en, zh = least_persons_words(rule.persons_in)
        if rule.persons_in is not None:
            en, zh = f"at least {en}, or all there are", f"至少 {zh} (不足此数时为全部)"
        say.line(
            f"  A job has to reckon with one person being in {en}",
            f"  任务须按一人可能出现在{zh}计算",
        )
    _explain_limits(say, policy, rule)
    if rule.approvals:
        who = ", ".join(rule.approvers)
        say.line(
            f"  Approvals: {rule.approvals}, by different people of: {who}",
            f"  审批: {rule.approvals} 份, 由不同人员签署: {who}",
        )
    else:
        say.line("  Approvals: none", "  审批: 不需要")


def _explain_models(say: _Page, rule: Rule) -> None:
    """Say by which recipes models may be made, and whether without noise; and by which persons are scored."""
    named = ", ".join(map(recipe_words, rule.recipes))
    asked = {known for known in JOB_TYPES if isinstance(known, Trains) and known.name in rule.job_types}
    if any(not isinstance(known, ExactOrNoisy) for known in asked):
        say.line(
            f"  Scores may be by: {named or 'no recipe, so none at all'}",
            f"  可用于评分的模型: {named or '无, 即不得评分'}",
        )
        if WEIGHTS in rule.recipes:
            en, zh = weights_words()
            say.line(f"    weights: {en}", f"    weights: {zh}")
    makes = any(isinstance(known, ExactOrNoisy) for known in asked)
    if not makes and (asked or not rule.recipes):
        return
    say.line(
        f"  Models may be made by: {named or 'no recipe, so none at all'}",
        f"  可使用的训练方法: {named or '无, 即不得训练模型'}",
    )
    if rule.datasets:
        exact = ("also without noise", "可不加噪") if rule.exact_training else ("with noise only", "仅限加噪")
        if rule.exact_training and rule.min_group_size == 1:
            exact = (
                "also without noise: others can read off what single persons are whose codes are rare",
                "可不加噪: 他方可读出取值少见的个别人员的信息",
            )
        say.line(f"    {exact[0]}", f"    {exact[1]}")


def _explain_records(say: _Page, policy: Policy, rule: Rule) -> None:
    """Say which of a source's columns a record about a person may hold."""
    directed = [
        known
        for known in JOB_TYPES
        if known.name in rule.job_types and known.output_class is OutputClass.DIRECTED
    ]
    if "source" not in rule.roles or not directed:
        return
    if not all(isinstance(known, TellsLess) for known in directed):
        say.line(
            "    each of these columns may travel, sealed, in a record about a person, whatever its use",
            "    以上各列不论用途, 均可能随名单加密提供给接收方",
        )
        return
    told = frozenset[str]().union(*(known.told for known in directed if isinstance(known, TellsLess)))
    opened = [policy.datasets[name].columns for name in rule.datasets]

    def used(uses: frozenset[str]) -> list[str]:
        return [c for c in rule.columns if any(c in each and uses & set(each[c].use) for each in opened)]

    en, zh = ", ".join(used(told)), "、".join(used(told))
    say.line(
        f"    only these may travel, sealed, in a record about a person: {en}; such jobs compare all others "
        "in shares, and show nobody a person's value",
        f"    仅 {zh} 可能随名单加密提供给接收方; 名单类任务对其余各列以秘密分享方式比较, "
        "任何人都看不到个人的取值",
    )
    aggregate = any(known.name in rule.job_types and known not in directed for known in JOB_TYPES)
    if aggregate and (seen := used(frozenset({"open-to-matcher"}))):
        say.line(
            "    other jobs of this rule may show matcher and helper of each person, without a name: "
            f"{', '.join(seen)}",
            f"    本规则的其他任务可能向匹配方和协助方逐人公开 (其不知是谁): {'、'.join(seen)}",
        )


def _kind(job_type: str, policy: Policy, rule: Rule) -> Words:
    """Return what a job type releases under a rule, and whether with noise."""
    known = next((known for known in JOB_TYPES if known.name == job_type), None)
    if known is None:
        return "unknown to this version, refused", "本版本不支持, 拒绝"
    en, zh = _CLASSES[known.output_class]
    if isinstance(known, ExactOrNoisy) and rule.budget is None:
        personal = any(policy.datasets[name].personal != "none" for name in rule.datasets)
        if personal:
            return f"{en}, exact: noise would take a budget", f"{zh}, 仅精确结果 (加噪须指定预算)"
        return f"{en}, exact or with noise", f"{zh}, 精确或加噪"
    if isinstance(known, Forecaster | ExactOrNoisy):
        return f"{en}, with noise", f"{zh}, 加噪"
    return en, zh


def _explain_limits(say: _Page, policy: Policy, rule: Rule) -> None:
    """Say what the rule's jobs may spend, how often they may run and when."""
    limits: list[tuple[str, Budget | Quota]] = [(name, policy.quotas[name]) for name in rule.quotas]
    if rule.budget is not None:
        limits.insert(0, (rule.budget, policy.budgets[rule.budget]))
    for name, limit in limits:
        en, zh = limit_words(limit)
        kind = ("quota", "配额") if isinstance(limit, Quota) else ("privacy budget", "隐私预算")
        say.line(f"  Limit: {en} ({kind[0]} {name})", f"  额度: {zh} ({kind[1]} {name})")
    if not limits:
        say.line("  Limit: no budget, no quota", "  额度: 未设预算和配额")
    if rule.max_cost is not None and rule.budget is not None:
        en, zh = measure(policy.budgets[rule.budget].notion, figure(rule.max_cost))
        say.line(f"  One job costs at most {en} of the budget", f"  每个任务最多占用预算 {zh}")
    if rule.rate is not None:
        en, zh = rate_words(rule.rate)
        say.line(
            f"  Pace: {en}; one that fails counts unless it told nothing of the data",
            f"  频次: {zh}, 失败的任务也计入, 确知未透露任何数据信息的除外",
        )
    if rule.window is not None:
        en, zh = window_words(rule.window)
        say.line(f"  Hours: {en} ({policy.timezone})", f"  时段: {zh} ({policy.timezone})")


def _explain_stops(say: _Page, policy: Policy) -> None:
    if policy.stops:
        say.blank()
        say.line("Stopped as long as this version is in force:", "本版本生效期间停止:")
    for stop in policy.stops:
        en, zh = stop_words(stop)
        say.line(f"  {en}: {stop.reason}", f"  {zh}: {stop.reason}")
    if policy.lifted_stops:
        say.blank()
        say.line("Ends these stop documents:", "解除以下停止令:")
    for digest in policy.lifted_stops:
        say.line(f"  {digest}", f"  {digest}")
    if policy.lifted_stops:
        say.line(
            "  If one of them is this node's own, for a history gap, you accept that nobody knows what was "
            "spent after the backup; minshu-node status shows which",
            "  如其中有本节点因历史缺口 (history-gap) 自行签发的停止令, 解除即表示接受: "
            "备份之后用掉的额度已无从得知; minshu-node status 会标明",
        )


def _explain_everywhere(say: _Page, policy: Policy) -> None:
    """Say what holds for every rule."""
    _explain_witnesses(say, policy)
    days = policy.defaults.differencing_days
    say.line(
        f"No second exact answer about an overlapping group of people within {days} days: the difference of "
        "the two would tell on single persons",
        f"{days} 天内, 对相互重叠的人群不再给出第二个精确答案, 以免由差值推知个人情况",
    )
    say.line(
        f"Periods are those of the calendar in {policy.timezone}; a new version gives nothing back",
        f"各周期按 {policy.timezone} 的自然日历计算; 新版本不返还已用额度",
    )
    keep = policy.retention
    papers, releases = figure(keep.journal_days), figure(keep.release_days)
    say.line(
        f"Kept: job texts and approvals {papers} days, releases {releases} days, intermediate values until "
        "the job ends; the journal stays",
        f"保存期限: 任务文本和审批 {papers} 天, 输出 {releases} 天, 中间结果至任务结束; 日志长期保存",
    )


def _explain_witnesses(say: _Page, policy: Policy) -> None:
    """Say who must have seen what this node did."""
    if policy.defaults.release_requires != "cosigned":
        say.line(
            "Nothing leaves before this node's own journal says so; nobody else needs to have seen that",
            "本节点自己的日志记录之后才会输出, 无须其他机构见证",
        )
        return
    clause = policy.witnesses or Witnessing()
    names, quorum = ", ".join(clause.organisations), clause.quorum
    if names:
        listed = len(clause.organisations)
        seen = default_quorum(listed) if quorum is None else quorum
        who, who_zh = f"{seen} of {listed} other organisations", f" {listed} 家其他机构中的 {seen} 家"
        those, those_zh = f": {names}", f": {names}"
    elif quorum is not None:
        who = count_words(quorum, "other organisation", "other organisations")
        who_zh, those, those_zh = f" {quorum} 家其他机构", "", ""
    else:
        who = "more than two thirds of the other organisations that witness"
        who_zh = "超过三分之二的其他见证机构"
        those, those_zh = " (4 of 5, for example)", " (例如 5 家中的 4 家)"
    say.line(
        f"What this node did must have been seen by {who} before anything leaves{those}",
        f"任何内容输出之前, 须有{who_zh}见证过本节点的操作记录{those_zh}",
    )


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
    texts = {key: figure(value) if isinstance(value, int) else share(value) for key, value in values.items()}
    en = "; ".join(_CONSTRAINTS[key][0].format(texts[key]) for key in _CONSTRAINTS if key in texts)
    zh = "; ".join(_CONSTRAINTS[key][1].format(texts[key]) for key in _CONSTRAINTS if key in texts)
    say.line(f"  Conditions: {en}", f"  条件: {zh}")


def _explain_terms(say: _Page, terms: Terms, spec: JobSpec, zone: tzinfo) -> None:
    say.line(f"  Expected use: {spec.expected_use}", f"  预期用途: {spec.expected_use}")
    say.line("  Who takes part:", "  参与方:")
    for role, node in sorted(spec.roles.items()):
        given = spec.input_of(role)
        say.line(
            f"    {role}: {node}, " + (f"with {given.dataset}" if given else "without data of its own"),
            f"    {role}: {node}, " + (f"提供 {given.dataset}" if given else "不提供数据"),
        )
    say.line("  What would leave:", "  将输出:")
    for release in terms.releases:
        en, zh = _CLASSES[release.output_class]
        node = spec.roles[release.made_by]
        say.line(
            f"    {release.name}, from {node} to {release.recipient} ({en})",
            f"    {release.name}, 由 {node} 发给 {release.recipient} ({zh})",
        )
    _explain_conditions(say, _demanded(terms.constraints))
    if terms.persons_in is not None:
        en, zh = persons_words(terms.persons_in)
        say.line(f"  By the job's word: {en}", f"  任务声明: {zh}")
    _explain_cost(say, terms, zone)
    say.line("  Who would learn what:", "  谁会得知什么:")
    _explain_leaks(say, spec, [leak for leak in terms.leaks if len(leak.coalition) == 1])
    if together := [leak for leak in terms.leaks if len(leak.coalition) > 1]:
        say.line(
            "  What they could compute only by breaking the rules and putting together what they hold:",
            "  只有违规串通、合并各自所持数据才可能得知:",
        )
        _explain_leaks(say, spec, together)


def _explain_cost(say: _Page, terms: Terms, zone: tzinfo) -> None:
    """Say what each budget and quota would be charged, and what it has left."""
    if terms.rounds:
        (left, left_zh), (had, had_zh) = rounds_words(dict(terms.rounds)), rounds_words(dict(terms.spent))
        more, more_zh = (
            (f", after {had} of earlier attempts", f" (先前执行已用{had_zh})") if had else ("", "")
        )
        say.line(
            f"  Runs in rounds: at most {left} here{more}; all of it is charged before the first one, and "
            "what no round was spent on is given back at the end of the attempt",
            f"  按轮执行: 在本节点至多{left_zh}{more_zh}; 首轮之前按全程计费, 执行结束时退还未用轮次的费用",
        )
    if not terms.lines:
        say.line("  Counts against: no budget and no quota", "  占用额度: 无预算或配额")
        return
    say.line("  Counts against, at most:", "  最多占用额度:")
    for line in terms.lines:
        en, zh = measure(line.notion, grouped(line.cost))
        left = f"{grouped(line.remaining)} / {grouped(line.limit)}"
        until = wall_time(line.until, zone)
        say.line(
            f"    {line.budget}: {en}; left before this job: {left}, until {until}",
            f"    {line.budget}: {zh}; 本任务之前剩余 {left}, 至 {until}",
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
