"""What the budgets and quotas of the policy in force have left, and what spent the rest: for officers.

Nothing is computed here that `decide` does not compute: the same rows, periods and sums.
"""

import zoneinfo
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from node.ledger import Ledger
from policies.calendar import period, unit_of
from policies.history import Limit, Past, ledger_time, standing
from policies.index import source_of
from policies.model import ActivePolicy, Budget, Policy, Quota
from policies.words import grouped, limit_words, wall_time
from protocols.dp.cost import NOTHING, Cost, decimal_up
from protocols.wire import utc_text


@dataclass(frozen=True, slots=True)
class Spending:
    """One attempt that a limit counts; `amount` is what it costs alone, in the limit's own measure."""

    past: Past
    requester: str
    amount: str

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
        }


@dataclass(frozen=True, slots=True)
class Account:
    """One budget or quota in its present period; of one requester or purpose where it counts for each.

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
        limit = Limit.of(name, clause)
        found += [
            _account(policy, limit, clause, rows, whose=whose, until=span.end)
            for whose in _each(policy, clause)
        ]
    return found


def _each(policy: Policy, clause: Budget | Quota) -> Sequence[str]:
    """Return for whom a limit counts separately; one empty name where it counts for all together."""
    if clause.scope == "per-requester":
        return sorted(policy.requesters)
    if clause.scope == "per-purpose":
        return sorted(policy.purposes)
    return [""]


def _account(
    policy: Policy,
    limit: Limit,
    clause: Budget | Quota,
    rows: Sequence[Past],
    *,
    whose: str,
    until: datetime,
) -> Account:
    alias_of = {key: alias for alias, who in policy.requesters.items() for key in who.keys}

    def counted(some: Iterable[Past]) -> Cost:
        return limit.spent(some, alias=whose, purpose=whose, alias_of=alias_of, purposes=policy.purposes)

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
            _spending(limit, row, alias_of.get(row.requester, "-"))
            for row in rows
            if counted([row]) != NOTHING
        ),
    )


def _spending(limit: Limit, row: Past, alias: str) -> Spending:
    amount = row.cost.amount(limit.notion, limit.delta)
    return Spending(row, alias, "-" if amount is None else decimal_up(amount))


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
        lines.append(
            f"      {when}  {grouped(spending.amount)}  {state}  {past.purpose}  {spending.requester}"
            f"  {past.job} #{past.attempt}"
        )
    return lines
