"""What the budget pays for, what the past leaves room for, and when: `decide`, steps (22) to (27) and (29).

Attempts, rates, the differencing guard, costs, budgets and quotas, and windows. Periods are of the policy's
calendar; what was answered before is in `policies.history`.
"""

import zoneinfo
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from fractions import Fraction
from typing import Final

from policies.calendar import next_open, period, unit_of
from policies.decision import Ask, Permit, Refuse
from policies.history import Hindsight, History, Limit, Lookback, Standing, standing
from policies.index import Clause, Derived, Index
from policies.model import Dataset, Rule
from policies.words import figure, grouped, measure, pair_words, rate_words, wall_time, window_words
from protocols.dp.cost import Cost, decimal_up
from protocols.ids import JobId, Role
from protocols.jobs.job_type import InRounds, Turns
from protocols.statistics.differencing import Query
from protocols.wire import Constraints, CostLine, JobSpec

ATTEMPTS_PER_JOB: Final = 3
"""How many attempts of one job may be charged at one node; a failed one counts unless it told nothing."""

ATTEMPTS_IN_ROUNDS: Final = 32
"""The same for a run in rounds, which goes on in the next attempt: its rounds are what bounds it."""

_lookback: Final = Derived(Lookback.of, keep=32)


def look_back(history: History, source: str) -> Hindsight:
    """Return what a node has answered from a source."""
    # Rows in a tuple never change, and `tuple` returns a tuple as it is; any other sequence is read anew.
    rows = history.of(source)
    return _lookback(tuple(rows)) if isinstance(rows, Sequence) else rows


# --- (22)


def check_budget(
    dataset: Dataset | None, budget: Limit | None, cost: Cost, rule: str, *, spared: bool
) -> Refuse | None:
    """Refuse noise over personal data that nothing pays for, and no noise where the rule has it paid for.

    Unpaid noise, asked for again, would average out. An exact answer takes nothing of a budget, so that the
    rule's budget would bound nothing; `spared` tells that the job could carry noise and does not.
    """
    if spared and budget is not None:
        return Refuse(
            "noise-required",
            "The rule's budget is there to pay for noise, and the job asks for exact figures.",
            "规则以隐私预算约束此类任务, 而任务要求精确结果。",
            "ask with noise: give rho or epsilon",
            "请申请加噪结果: 填写 rho 或 epsilon",
            rule,
        )
    if dataset is None or dataset.personal == "none" or budget is not None or not cost.private_loss:
        return None
    return Refuse(
        "no-budget",
        "The job adds noise to personal data, and the rule names no budget to pay for it.",
        "任务对个人信息加噪输出, 而规则未指定隐私预算。",
        "have a budget of the dataset named in the rule",
        "请在规则中指定该数据集的隐私预算",
        rule,
    )


# --- (23)


def check_attempts(past: Hindsight, job: JobId, rule: str, *, most: int = ATTEMPTS_PER_JOB) -> Refuse | None:
    """Refuse one attempt too many."""
    if past.charged(job) < most:
        return None
    return Refuse(
        "attempts-exhausted",
        f"{most} attempts of this job have run here already.",
        f"本任务已在本节点执行 {most} 次。",
        "find out why the attempts failed, then submit a new job",
        "请先查明失败原因, 再提交新任务",
        rule,
    )


def rounds_left(kind: InRounds, spec: JobSpec, used: Turns) -> dict[str, int]:
    """Return the most rounds of each turn that a run in rounds may still have at this node.

    Args:
        kind: its job type.
        spec: the job.
        used: those recorded here in other attempts of the job.
    """
    return {turn: max(most - used.get(turn, 0), 0) for turn, most in sorted(kind.rounds(spec).items())}


def cost_left(
    kind: InRounds, spec: JobSpec, role: Role, constraints: Constraints, left: Turns, *, counted: bool
) -> Cost:
    """Return what an attempt in rounds costs at most: the rounds that others have not had.

    The job is one question, however many attempts it takes; `counted`: an earlier one was charged for it. One
    with no round left costs nothing more: it sends nothing of the data, and hands over what the others made.
    """
    cost = kind.cost_of(spec, role, constraints, left)
    return replace(cost, queries=0) if counted else cost


# --- (24)


def check_rate(index: Index, clause: Clause, history: History, job: JobId, moment: datetime) -> Refuse | None:
    """Refuse one job too many in the period of the rule's rate, whichever of its datasets it asks for.

    A job counts that the rule allowed or, as it stands now, covers: another id in a new version resets
    nothing. So does one by a key, or for a purpose, that the policy no longer lists. Attempts that told
    nothing were freed (`policies.attempts.free_again`), are no part of the history and do not count.
    """
    rule = clause.rule
    if rule.rate is None:
        return None
    span = period(unit_of(rule.rate.per), moment, index.zone)
    jobs = {
        row.job
        for source in clause.sources
        for row in look_back(history, source).since(span.begin)
        if row.job != job
        and (
            row.rule == rule.id
            or (
                (row.purpose in rule.purposes or row.purpose not in index.known_purposes)
                and row.job_type in rule.job_types
                and index.alias_of.get(row.requester, rule.requesters[0]) in rule.requesters
            )
        )
    }
    if len(jobs) < rule.rate.jobs:
        return None
    until, (pace, pace_zh) = wall_time(span.end, index.zone), rate_words(rule.rate)
    return Refuse(
        "rate-exceeded",
        f"The rule allows {pace}; none is left until {until}.",
        f"规则限定{pace_zh}, {until} 之前的次数已用完。",
        f"submit the job again after {until}",
        f"请在 {until} 之后重新提交",
        rule.id,
    )


# --- (25)


def as_charged(query: Query | None, budget: Limit | None) -> Query | None:
    """Return the query as exact where no budget pays for its noise: asked again, that noise averages out.

    Only data about nobody gets here without a budget; see `check_budget`.
    """
    if query is not None and query.noisy and budget is None:
        return replace(query, noisy=False)
    return query


def check_differencing(
    past: Hindsight, query: Query | None, job: JobId, since: datetime, *, days: int, rule: str
) -> Refuse | None:
    """Refuse an exact answer that, less one given in the last `days`, would answer a third question."""
    if query is None:
        return None
    if past.repeats(query, job, since):
        # Counts of persons are rounded; exact sums before and after differ by whoever came, left or changed.
        return Refuse(
            "asked-before",
            f"An exact answer to this very question was given in the last {days} days, or is under way; the "
            "difference of two sums is what a few persons' rows have become.",
            f"{days} 天内已对同一问题给出 (或正在给出) 精确答案; 两次合计相减, 会得出个别人员的数据变动。",
            f"fetch the earlier answer, ask again {days} days after it, or ask with noise (release/1)",
            f"请取用以往的结果, 或在其 {days} 天之后再问, 或改用加噪结果 (release/1)",
            rule,
        )
    if not past.differs(query, since):
        return None
    # It names no other job and no figure: what others asked is theirs.
    return Refuse(
        "differencing",
        "An exact answer would differ from earlier ones by a group that nobody approved asking about.",
        "精确结果与以往结果相减, 会得出未经批准的人群的信息。",
        "ask about exactly the same group as before, about one that does not overlap it, or with noise",
        "请使用与以往完全相同或互不重叠的范围, 或采用加噪结果",
        rule,
    )


# --- (26)


def check_max_cost(rule: Rule, budget: Limit | None, cost: Cost) -> Refuse | None:
    """Refuse a job that costs more than the rule lets one job cost: in records, or as its budget measures."""
    if rule.max_rows is not None and cost.rows > rule.max_rows:
        rows, rows_zh = measure("rows", str(rule.max_rows))
        asked = grouped(str(cost.rows))
        return Refuse(
            "rows-above-rule",
            f"The rule lets one job give at most {rows}; this one may give {asked}.",
            f"规则规定每个任务最多给出{rows_zh}, 本任务最多可达 {asked}。",
            "state a smaller number in the job, or have the rule's max_rows raised",
            "请在任务中申报较小的数量, 或提高规则的 max_rows",
            rule.id,
        )
    most = rule.max_cost
    if most is None or budget is None or cost.within(budget.notion, most, budget.delta):
        return None
    words, words_zh = measure(budget.notion, decimal_up(most, 18))
    return Refuse(
        "cost-above-rule",
        f"The rule lets one job cost at most {words}; this one costs more.",
        f"规则规定每个任务最多占用预算 {words_zh}, 本任务超出。",
        "ask for less accuracy or fewer figures",
        "请降低精度或减少统计项",
        rule.id,
    )


# --- (27)


def charge(
    index: Index,
    limits: Iterable[Limit],
    past: Hindsight,
    cost: Cost,
    *,
    moment: datetime,
    alias: str,
    purpose: str,
    partners: Sequence[str],
    rule: str,
) -> tuple[CostLine, ...] | Refuse:
    """Return what the job would cost each budget and quota of its dataset, or the first it does not fit.

    A limit that counts for each pair has one line, too: of the partner with which the least is left.
    """
    lines = []
    for limit in limits:
        span = period(unit_of(limit.period), moment, index.zone)
        rows = past.since(span.begin)
        tightest: CostLine | None = None
        for pair in limit.pairs(partners):
            spent = limit.spent(
                rows,
                alias=alias,
                purpose=purpose,
                pair=pair,
                alias_of=index.alias_of,
                purposes=index.known_purposes,
            )
            found = standing(limit, spent, cost)
            if not found.fits or found.cost is None:
                return _exceeded(limit, found, wall_time(span.end, index.zone), rule, pair)
            if tightest is None or Fraction(found.remaining) < Fraction(tightest.remaining):
                tightest = CostLine(
                    limit.name, limit.notion, found.cost, found.remaining, found.most, span.end
                )
        if tightest is not None:
            lines.append(tightest)
    return tuple(lines)


def _exceeded(limit: Limit, found: Standing, until: str, rule: str, pair: str) -> Refuse:
    what, what_zh = ("budget", "预算") if limit.private else ("quota", "配额")
    most, most_zh = measure(limit.notion, found.most)
    left = grouped(found.remaining)
    whose = whose_zh = ""
    if limit.scope == "per-pair":
        whose, whose_zh = pair_words(pair)
        whose = f" {whose}"
    if found.cost is None:
        sentence = (
            f"The job's noise cannot be charged to {what} {limit.name}: it has no measure there, "
            "or more δ than is left"
        )
        sentence_zh = f"本任务的噪声无法计入预算 {limit.name}: 该预算没有对应的度量, 或剩余的 δ 不足"
    else:
        cost, cost_zh = measure(limit.notion, found.cost)
        sentence = f"The job would take {cost} of {what} {limit.name}"
        sentence_zh = f"本任务将占用{what_zh} {limit.name} 的 {cost_zh}"
    return Refuse(
        "budget-exceeded",
        f"{sentence}; of {most} in this period{whose}, {left} is left until {until}.",
        f"{sentence_zh}; {whose_zh}本周期上限 {most_zh}, 至 {until} 还剩 {left}。",
        f"ask for less, submit the job again after {until}, or have the {what} raised in a new version",
        f"请减少申请量, 或在 {until} 之后重新提交, 或在新版本策略中提高{what_zh}",
        rule,
    )


# --- (29)


def in_window(
    answer: Permit | Ask, rule: Rule, zone: zoneinfo.ZoneInfo, now: datetime, *, lasting: timedelta
) -> Permit | Ask | Refuse:
    """Return the answer, a permit only while the rule's window is open; else ask to wait until it opens.

    A session answers people as long as it is open, so the window has to stay open for all of it: `lasting`.
    """
    window = rule.window
    if window is None:
        return answer
    opens = next_open(window, now, zone, lasting)
    if opens is None and next_open(window, now, zone) is not None:
        hours, hours_zh = window_words(window)
        seconds = figure(lasting // timedelta(seconds=1))
        return Refuse(
            "session-too-long",
            f"The session would be open for {seconds} seconds; the rule's window never is: {hours}.",
            f"会话时长 {seconds} 秒, 超过规则的任何一个时间窗口: {hours_zh}。",
            "ask for a shorter session",
            "请缩短会话时长",
            rule.id,
        )
    if opens == now or isinstance(answer, Ask):
        return answer
    if opens is None:
        when, when_zh = "never opens: it has no days", "没有任何开放日"
    else:
        local = wall_time(opens, zone)
        when, when_zh = f"opens at {local}", f"将于 {local} 开放"
        if next_open(window, now, zone) == now:
            when = f"closes before the session would; it opens again at {local}"
            when_zh = f"将在会话结束之前关闭, {local} 再次开放"
    return Ask(
        answer.terms,
        0,
        (),
        answer.approvals,
        f"The job fits the rule, whose window {when}.",
        f"任务符合规则, 规则的时间窗口{when_zh}。",
        "nothing is left to do: this node decides again then",
        "无需操作, 届时本节点会重新判断",
        "window-closed",
        opens,
    )
