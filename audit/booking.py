"""The `budget.*` entries of a log: each one what follows from the decision before it, and none too many."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from fractions import Fraction
from typing import Any, Final

from audit.entries import Entry, parse_time
from audit.findings import Checks
from audit.force import HISTORY_GAP, SUCCESSOR, Force
from audit.jobs import EARLIER, SAYS_ALL, Attempt, Jobs
from audit.spending import Spending
from audit.statements import budget_facts, returned_facts
from policies.attempts import free_again, paid_rounds, returned_lines
from policies.history import Past
from protocols.dp.cost import Cost
from protocols.wire import CostLine

UNDECIDED: Final = "attempts that could not be decided again, for what other checks say"


@dataclass(slots=True)
class Booking:
    """What attempts are to budgets and quotas.

    Attributes:
        gaps: why what was spent can only be bounded from below, and until when: rows that count are not in
            this log.
    """

    jobs: Jobs
    spending: Spending
    force: Force
    checks: Checks
    gaps: dict[str, datetime] = field(default_factory=dict)

    def gap(self, why: str, moment: datetime) -> None:
        """Say that rows which count, from before that moment, are not in this log."""
        self.gaps[why] = max(moment, self.gaps.get(why, moment))
        self.checks["budgets"].lacks(why)

    def gap_at(self, moment: datetime) -> str:
        """Return why what was spent is not all known at a moment; empty where all that still counts is."""
        counts = moment - self.force.looks_back()
        return next((why for why, since in sorted(self.gaps.items()) if since > counts), "")

    def expect(self, attempt: Attempt, kind: str, past: Past, lines: Iterable[CostLine]) -> None:
        """From here on an attempt's entries of that kind are due."""
        attempt.due = [budget_facts(kind, past, line) for line in lines]
        attempt.due_kind = kind

    def nothing_due(self, attempt: Attempt, where: str) -> None:
        """By here all of them have come."""
        for line in attempt.due:
            self.checks["budgets"].found(
                "not-booked", where, f"no {attempt.due_kind} of budget {line['budget']} stands before it"
            )
        attempt.due = []

    def line(self, entry: Entry, where: str) -> None:
        """`budget.reserved`, `budget.charged`, `budget.released`: the next line, exactly as it follows."""
        check = self.checks["budgets"]
        if entry.v < SAYS_ALL:
            check.lacks(EARLIER)
            return
        attempt = self.jobs.attempt(entry)
        if attempt is None and entry.body.get("code") == HISTORY_GAP and self.force.carrying:
            check.lacks(SUCCESSOR)
            return
        if attempt is None:
            check.found("unfounded", where, "no decision of this log stands behind it")
            return
        row = attempt.row
        if row is None or attempt.undecided:
            check.lacks(UNDECIDED)
            return
        releasing = entry.kind == "budget.released"
        if releasing:
            attempt.freeing += 1
            due = [budget_facts(entry.kind, row.past, line, entry.body.get("code", "")) for line in row.lines]
        else:
            due = attempt.due if attempt.due_kind == entry.kind else []
        body = dict(entry.body)
        found = next((line for line in due if line["budget"] == body["budget"]), None)
        if found is None:
            check.found("unfounded", where, f"{entry.kind} of a budget that the attempt does not touch now")
            return
        if not releasing:
            attempt.due.remove(found)
        wrong = sorted(key for key in {*found, *body} if found.get(key) != body.get(key))
        if wrong == ["spent"] and self._may_have_spent(entry, found):
            return
        if wrong:
            what = f"{', '.join(wrong)}: not what the entries before it add up to"
            check.found("wrong-figure", where, what)
        else:
            check.saw(where)

    def returned(self, entry: Entry, where: str) -> None:
        """`budget.returned`: what no round of an attempt was spent on, exactly as its rounds say."""
        check, attempt = self.checks["budgets"], self.jobs.attempt(entry)
        if attempt is None:
            check.found("unfounded", where, "no decision of this log stands behind it")
            return
        if attempt.row is None or attempt.undecided:
            check.lacks(UNDECIDED)
            return
        _, _, due = self._lowered(attempt)
        name = entry.body["budget"]
        found = None if name in attempt.returned or attempt.over else due.get(name)
        attempt.returned.add(name)
        if found is None:
            check.found("unfounded", where, f"{entry.kind} of a budget that gets nothing back")
            return
        body = entry.body
        wrong = sorted(key for key in {*found, *body} if found.get(key) != body.get(key))
        if wrong == ["spent"] and self._may_have_spent(entry, found):
            return
        if wrong:
            what = f"{', '.join(wrong)}: not what the rounds before it add up to"
            check.found("wrong-figure", where, what)
        else:
            check.saw(where)

    def _lowered(
        self, attempt: Attempt
    ) -> tuple[Cost | None, tuple[CostLine, ...], dict[str, dict[str, Any]]]:
        """Return what an attempt costs for its rounds, what that is to each limit, and the entries due.

        The cost is None where it is what it was charged.
        """
        row, paid = attempt.row, attempt.paid
        if row is None or paid is None or not row.answering or row.freed:
            return None, (), {}
        charged = row.past.cost
        cost = paid_rounds(paid.spec, paid.role, paid.constraints, attempt.turns, charged=charged)
        if cost is None or cost == row.past.cost:
            return None, (), {}
        lines = returned_lines(row.lines, cost, paid.deltas)
        past = replace(row.past, cost=cost)
        facts = (returned_facts(past, before, after) for before, after in zip(row.lines, lines, strict=True))
        return cost, lines, {body["budget"]: body for body in facts if body is not None}

    def rounds(self, entry: Entry, attempt: Attempt, where: str) -> None:
        """An attempt's end: it says how many rounds stand before it, and now costs what they cost."""
        check, row = self.checks["budgets"], attempt.row
        if row is None or attempt.undecided:
            return
        said = entry.body.get("rounds")
        if said != (None if attempt.paid is None else attempt.turns.total()):
            check.found("wrong-rounds", where, "it says another number of rounds than stand before it")
        cost, lines, due = self._lowered(attempt)
        for name in sorted(due.keys() - attempt.returned):
            check.found("not-booked", where, f"no budget.returned of budget {name} stands before it")
        if cost is not None:
            self.spending.charge(row, cost, lines)

    def _may_have_spent(self, entry: Entry, found: Mapping[str, Any]) -> bool:
        """Tell whether what is not in this log may have spent the difference."""
        said, least = entry.body.get("spent"), found.get("spent")
        if said is None or least is None or not self.gap_at(parse_time(entry.time)):
            return False
        return Fraction(said) >= Fraction(least)

    def given_up(self, entry: Entry, attempt: Attempt, where: str) -> None:
        """An attempt that did not end well: what it cost is free again only where nothing was told."""
        check, row = self.checks["budgets"], attempt.row
        freed = entry.body.get("freed", False)
        if row is None or row.freed:
            return
        if attempt.freeing != (len(row.lines) if freed else 0):
            check.found("not-booked", where, "the budget.released entries do not say what its end says")
        attempt.freeing = 0
        if not freed:
            self.nothing_due(attempt, where)
            self.spending.settle(row)
            return
        if not free_again(row.past, answering=row.answering, unopened=not entry.body.get("opened", True)):
            check.found("freed-after-it-left", where, "its cost is free again, though something had left")
        attempt.due, attempt.freed = [], where
        self.answered(attempt, where)
        self.spending.free(row)

    def answered(self, attempt: Attempt, where: str) -> None:
        """What a source brought to an output that another participant committed is never free again."""
        row = attempt.row
        if attempt.answered and attempt.freed and row is not None and row.past.source:
            self.checks["budgets"].found(
                "freed-but-answered", where, "its cost is free again, and a participant has an output of it"
            )
