"""What the budgets and quotas of the policy in force have left, and what spent the rest: for officers.

Nothing is computed here that `decide` does not compute: the same rows, periods and sums.
"""

import zoneinfo
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from math import exp
from typing import Any, Final

from node.ledger import Ledger
from policies.calendar import period, unit_of
from policies.history import Limit, Past, ledger_time, standing
from policies.index import source_of
from policies.model import ActivePolicy, Budget, Policy, Quota
from policies.words import count_words, figure, grouped, limit_words, measure, wall_time
from protocols.dp.accounting import Report, report
from protocols.dp.cost import NOTHING, Cost, decimal_up, total
from protocols.errors import InputError
from protocols.ids import JobId
from protocols.wire import utc_text

DELTA: Final = Fraction("1e-9")
"""δ of a statement about a budget that names none: a chance of one in a thousand million."""

_PLACES: Final = 4

_WAYS: Final = {
    "ledger": ("账本换算: 以此为准", "by the ledger's own conversion: this one is binding"),
    "rdp": (
        "Rényi 会计: 把 ρ 看作高斯噪声, 把 ε 看作拉普拉斯噪声",
        "by a Rényi accountant that takes ρ for Gaussian noise, ε for Laplace noise",
    ),
    "pld": (
        "损失分布会计: 同样的噪声, 合成更精确",
        "by loss distributions: of the same noise, composed more exactly",
    ),
}
"""The ways to ε, by their field of `Report`, in Chinese and English."""


@dataclass(frozen=True, slots=True)
class Spending:
    """One attempt that a limit counts; `amount` is what it costs alone, in the limit's own measure.

    `rounds`: how many it has recorded, None where it answers at once.
    """

    past: Past
    requester: str
    amount: str
    rounds: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the plain JSON form."""
        return {
            "job": self.past.job,
            "attempt": self.past.attempt,
            "time": utc_text(self.past.time),
            "purpose": self.past.purpose,
            "requester": self.requester,
            "requester_key": self.past.requester,
            "job_type": self.past.job_type,
            "cost": self.amount,
            "charged": self.past.charged,
            **({} if self.rounds is None else {"rounds": self.rounds}),
        }


@dataclass(frozen=True, slots=True)
class Account:
    """One budget or quota in its present period; of one requester, purpose or pair where it counts for each.

    Amounts are decimal texts in the limit's own measure; `remaining` is after what is set aside, `most` the
    limit itself.
    """

    dataset: str
    name: str
    clause: Budget | Quota
    limit: Limit
    whose: str
    spent: str
    reserved: str
    remaining: str
    most: str
    until: datetime
    by: tuple[Spending, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the plain JSON form."""
        return {
            "dataset": self.dataset,
            "name": self.name,
            "kind": "quota" if isinstance(self.clause, Quota) else "budget",
            "notion": self.limit.notion,
            "scope": self.limit.scope,
            "whose": self.whose,
            "period": self.limit.period,
            "limit": self.most,
            "spent": self.spent,
            "reserved": self.reserved,
            "remaining": self.remaining,
            "until": utc_text(self.until),
            "by": [spending.to_json() for spending in self.by],
        }


def accounts(active: ActivePolicy, ledger: Ledger, now: datetime) -> list[Account]:
    """Return every budget and quota of the policy in force, by dataset.

    Raises:
        StateConflict: the ledger is damaged.
    """
    policy = active.policy
    clauses: list[tuple[str, Budget | Quota]] = [*policy.budgets.items(), *policy.quotas.items()]
    zone, moment = zoneinfo.ZoneInfo(policy.timezone), ledger_time(now, ledger)
    found = []
    for name, clause in sorted(clauses, key=lambda each: (each[1].dataset, each[0])):
        span = period(unit_of(clause.period), moment, zone)
        source = source_of(policy.datasets[clause.dataset])
        rows = [row for row in ledger.of(source) if row.time >= span.begin]
        rounds = {
            (row.past.job, row.past.attempt): row.rounds.total
            for row in ledger.rows(source)
            if row.rounds is not None
        }
        limit = Limit.of(name, clause)
        found += [
            _account(policy, limit, clause, rows, rounds, whose=whose, until=span.end)
            for whose in _each(policy, limit, rows)
        ]
    return found


def _each(policy: Policy, limit: Limit, rows: Iterable[Past]) -> Sequence[str]:
    """Return for whom a limit counts separately; one empty name where it counts for all together.

    Pairs are those that spent something: which others there may be, only jobs say. Without any, the empty
    name stands for each.
    """
    if limit.scope == "per-requester":
        return sorted(policy.requesters)
    if limit.scope == "per-purpose":
        return sorted(policy.purposes)
    if limit.scope == "per-pair":
        known = (row.partners for row in rows if row.partners is not None)
        return sorted({pair for partners in known for pair in limit.pairs(partners)}) or [""]
    return [""]


def _account(
    policy: Policy,
    limit: Limit,
    clause: Budget | Quota,
    rows: Sequence[Past],
    rounds: Mapping[tuple[JobId, int], int],
    *,
    whose: str,
    until: datetime,
) -> Account:
    alias_of = {key: alias for alias, who in policy.requesters.items() for key in who.keys}

    def counted(some: Iterable[Past]) -> Cost:
        return limit.spent(
            some, alias=whose, purpose=whose, pair=whose, alias_of=alias_of, purposes=policy.purposes
        )

    charged, total = counted(row for row in rows if row.charged), counted(rows)
    spent = charged.amount(limit.notion, limit.delta)
    both = total.amount(limit.notion, limit.delta)
    stands = standing(limit, total, NOTHING)
    return Account(
        dataset=clause.dataset,
        name=limit.name,
        clause=clause,
        limit=limit,
        whose=whose,
        spent="-" if spent is None else decimal_up(spent),
        reserved="-" if spent is None or both is None else decimal_up(both - spent),
        remaining=stands.remaining,
        most=stands.most,
        until=until,
        by=tuple(
            _spending(limit, row, alias_of.get(row.requester, "-"), rounds.get((row.job, row.attempt)))
            for row in rows
            if counted([row]) != NOTHING
        ),
    )


def _spending(limit: Limit, row: Past, alias: str, rounds: int | None) -> Spending:
    amount = row.cost.amount(limit.notion, limit.delta)
    return Spending(row, alias, "-" if amount is None else decimal_up(amount), rounds)


def page(found: Sequence[Account], policy: Policy) -> list[str]:
    """Return the accounts as lines, Chinese first."""
    zone = zoneinfo.ZoneInfo(policy.timezone)
    lines = []
    for dataset in sorted({*policy.datasets, *(account.dataset for account in found)}):
        lines.append(f"数据集 dataset {dataset}")
        mine = [account for account in found if account.dataset == dataset]
        if not mine:
            lines.append("  无预算或配额 · no budget and no quota")
        for account in mine:
            lines += _section(account, zone)
    return lines or ["策略未列出数据集 · the policy lists no dataset"]


def _section(account: Account, zone: zoneinfo.ZoneInfo) -> list[str]:
    kind = "配额 quota" if isinstance(account.clause, Quota) else "预算 budget"
    en, zh = limit_words(account.clause)
    whose = f" [{account.whose}]" if account.whose else ""
    until = wall_time(account.until, zone)
    spent, reserved, left = map(grouped, (account.spent, account.reserved, account.remaining))
    stands = (
        f"    已用 spent {spent} · 预留 reserved {reserved} · 剩余 left {left} / {grouped(account.most)}"
        f" · 至 until {until}"
    )
    lines = [
        f"  {kind} {account.name}{whose}",
        f"    {zh}",
        f"    {en}",
        stands,
    ]
    for spending in account.by:
        past = spending.past
        state = "已占用 charged" if past.charged else "预留 reserved"
        when = f"{past.time.astimezone(zone):%Y-%m-%d %H:%M}"
        rounds = "" if spending.rounds is None else f"  {spending.rounds} 轮 rounds"
        lines.append(
            f"      {when}  {grouped(spending.amount)}  {state}  {past.purpose}  {spending.requester}"
            f"  {past.job} #{past.attempt}{rounds}"
        )
    return lines


# -- what it comes to as ε -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Statement:
    """What was spent of a privacy budget in its present period: in its own measure, and as ε at a δ.

    `spent` is without what is only set aside, "-" where the notion has no measure for it; `attempts` is how
    many spent it, `rounds` how many rounds those of them recorded that answer in rounds.
    """

    account: Account
    spent: str
    attempts: int
    report: Report
    rounds: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the plain JSON form; an ε is a decimal text, rounded up, null where none holds at this δ."""
        account = self.account
        return {
            "dataset": account.dataset,
            "name": account.name,
            "notion": account.limit.notion,
            "scope": account.limit.scope,
            "whose": account.whose,
            "until": utc_text(account.until),
            "limit": account.most,
            "spent": self.spent,
            "attempts": self.attempts,
            "rounds": self.rounds,
            "delta": decimal_up(self.report.delta, 18),
            "epsilon": {
                "ledger": _epsilon(self.report.ledger),
                "rdp": _epsilon(self.report.rdp),
                "pld": _epsilon(self.report.pld),
            },
        }


def statements(found: Sequence[Account], delta: Fraction = DELTA) -> list[Statement]:
    """Return a statement for each privacy budget.

    Args:
        found: see `accounts`.
        delta: for budgets that are not about an ε at a δ of the policy's own; from 1e-15 to below 1.

    Raises:
        InputError: `no-privacy-budget`, or `nothing-spent` of any.
    """
    budgets = [account for account in found if account.limit.private]
    if not budgets:
        raise InputError(
            "the policy in force has no privacy budget",
            code="no-privacy-budget",
            hint="minshu-node budget shows its quotas",
        )
    made = [_statement(account, delta) for account in budgets]
    if not any(statement.attempts for statement in made):
        raise InputError(
            "nothing is spent of any privacy budget in its present period",
            code="nothing-spent",
            hint="minshu-node budget shows what is left, and what is only set aside",
        )
    return made


def _statement(account: Account, delta: Fraction) -> Statement:
    limit = account.limit
    paying = [each for each in account.by if each.past.charged and each.past.cost.private_loss]
    costs = [spending.past.cost for spending in paying]
    at = limit.delta if limit.notion == "approximate-dp" else delta
    spent = total(costs).amount(limit.notion, limit.delta)
    rounds = sum(spending.rounds or 0 for spending in paying)
    said = "-" if spent is None else decimal_up(spent)
    return Statement(account, said, len(costs), report(costs, at), rounds)


def _epsilon(value: Fraction | float | None) -> str | None:
    return None if value is None else decimal_up(Fraction(value), _PLACES)


def report_page(made: Sequence[Statement], policy: Policy) -> list[str]:
    """Return the statements as lines, Chinese first."""
    zone = zoneinfo.ZoneInfo(policy.timezone)
    return [line for statement in made for line in _stated(statement, zone)]


def _stated(statement: Statement, zone: zoneinfo.ZoneInfo) -> list[str]:
    account, found = statement.account, statement.report
    en, zh = limit_words(account.clause)
    whose = f" [{account.whose}]" if account.whose else ""
    lines = [
        f"预算 budget {account.name}{whose} · 数据集 dataset {account.dataset}",
        f"  {zh} · 至 until {wall_time(account.until, zone)}",
        f"  {en}",
    ]
    if not statement.attempts:
        return [*lines, "  本周期未使用 · nothing spent in this period"]
    spent, _ = measure(account.limit.notion, statement.spent)
    attempts = "one attempt" if statement.attempts == 1 else f"{statement.attempts} attempts"
    of_rounds = of_rounds_zh = ""
    if statement.rounds:
        of_rounds = f", {count_words(statement.rounds, 'round', 'rounds')}"
        of_rounds_zh = f" (共 {statement.rounds} 轮)"
    delta = figure(found.delta)
    lines += [
        (
            f"  已用 spent {spent}: {statement.attempts} 次加噪执行{of_rounds_zh}"
            f" · {attempts} with noise{of_rounds}"
        ),
        f"  折合 ε (δ = {delta}) · as ε at δ = {delta}:",
    ]
    for way, (zh, en) in _WAYS.items():
        value = _epsilon(getattr(found, way))
        shown = "-" if value is None else f"{Decimal(value):,.{_PLACES}f}"
        lines += [f"    {shown:>9}  {zh}", f"    {'':9}  {en}"]
    if found.ledger is None:
        return [
            *lines,
            "  各答案自身的 δ 已用尽此 δ: 请用更大的 --delta",
            "  the answers' own δ use this one up: ask with a larger --delta",
        ]
    fold = _fold(found.ledger)
    return [
        *lines,
        f"  含义: 看到全部答案的人, 对某人的怀疑最多增至 {fold} 倍, 例外的概率不超过 {delta}",
        f"  meaning: whoever sees them all can raise a suspicion about somebody at most {fold}-fold,",
        f"    but for a chance of {delta}",
    ]


def _fold(epsilon: Fraction) -> str:
    """Return e^ε as people read it, rounded up."""
    if epsilon > 20:
        return f"e^{decimal_up(epsilon, 1)}"
    return grouped(decimal_up(Fraction(exp(epsilon)), 1 if epsilon < 3 else 0))
