"""Small joined rules for tests: specs, lists, all parties, and the right answer in plain Python."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, Final

import joined_cases
from crosscheck_case import CTX, person
from joined_cases import S1, S2, S3, S4, SEATS, Case, Row, amount
from sources_case import spec_of

from protocols.ids import NodeName, Organisation, Role
from protocols.jobs.job_type import AGGREGATOR, source
from protocols.jobs.joined_rule import RECIPIENT, JoinedRule
from protocols.joined.lists import JoinedList
from protocols.wire import Constraints, JobSpec, organisation_of

__all__ = ["S1", "S2", "S3", "S4", "Case", "Row"]

RULES: Final = JoinedRule()
LOOSE: Final = Constraints(max_rows=1000, max_fraction=Fraction(1))


def column(number: int, slot: str, low: str = "0", high: str = "1000", **more: Any) -> dict[str, Any]:
    """Return a column of a source."""
    return amount(number, slot, low, high, **more)


def clause(sense: str, bound: str, **weights: int) -> dict[str, Any]:
    """Return a clause."""
    return {"weights": dict(weights), sense: bound}


COST: Final = column(1, "cost", "0", "500000", decimals=2)
INCOME: Final = column(2, "income", "-10000", "300000", decimals=1)
SUPPORT: Final = column(3, "support", "0", "5000")
HARDSHIP: Final[Mapping[str, Any]] = {
    "join": {S1: "on", S2: "on", S3: "may", S4: "not"},
    "columns": [COST, INCOME, SUPPORT],
    "rule": [
        clause("at_least", "30000", cost=1),
        clause("at_least", "0.5", cost=2, income=-1, support=-12),
    ],
    "records_from": S1,
    "recipient": S4,
}
"""Costs of 30,000 and more, twice the costs above income and support; not yet on the recipient's list."""


def rule_spec(sources: int = 4, **params: Any) -> JobSpec:
    """Return a spec of `HARDSHIP`, where `params` say nothing else; params of None are left out."""
    filled = {"areas": "demo-city", **HARDSHIP, **params}
    spec = spec_of(RULES, sources, filled, {})
    roles = {role: node for role, node in spec.roles.items() if role != AGGREGATOR} | SEATS
    if filled["recipient"] == RECIPIENT:
        roles[RECIPIENT] = NodeName("relief.example/a")
    inputs = tuple(replace(given, columns=columns_of(filled, given.role)) for given in spec.inputs)
    recipient = roles.get(Role(filled["recipient"]), NodeName("nobody.example/a"))
    return replace(spec, roles=roles, inputs=inputs, recipients=(organisation_of(recipient),))


def columns_of(params: Mapping[str, Any], role: Role) -> dict[str, str]:
    """Return slot → column of one source."""
    street = {"street": "street", "last_seen": "seen"} if params["records_from"] == role else {}
    return joined_cases.columns_of(params, role, "columns", "filters") | street


def listed(spec: JobSpec, role: Role, rows: Sequence[Row]) -> JoinedList:
    """Return rows, perhaps with "street" and "last_seen", as the node of that source would prepare them."""
    return joined_cases.listed(RULES, spec, role, rows, unit=None)


def rule_case(
    spec: JobSpec,
    lists: Sequence[Sequence[Row]],
    *,
    constraints: Constraints = LOOSE,
    seed: object = 0,
    ctx: bytes = CTX,
    catalogue: Mapping[Role, int] | None = None,
) -> Case:
    """Return a rule over these rows, one list for each source."""
    RULES.check(spec)
    ready = {source(i): listed(spec, source(i), rows) for i, rows in enumerate(lists, start=1)}
    return joined_cases.case_of(
        RULES, spec, ready, constraints=constraints, seed=seed, ctx=ctx, catalogue=catalogue
    )


def right(spec: JobSpec, lists: Sequence[Sequence[Row]]) -> list[str]:
    """Return the keys of persons for whom the rule holds, by looking at everybody's rows, in fractions.

    One row of a person on each list.
    """
    params = spec.params
    people = [{row["who"]: row for row in rows} for rows in lists]
    bounds = {each["slot"]: each for each in params["columns"]}
    owner = {each["slot"]: int(str(each["source"])[-1]) - 1 for each in params["columns"]}
    ways = [params["join"][source(i + 1)] for i in range(len(lists))]
    filters = [(int(str(each["source"])[-1]) - 1, each) for each in params.get("filters") or ()]
    for place, kept in filters:
        people[place] = {
            who: row for who, row in people[place].items() if row[kept["slot"]] in kept["values"]
        }

    def value(slot: str, who: int) -> Fraction:
        if slot.startswith("present("):
            return Fraction(who in people[int(slot[-2]) - 1])
        row = people[owner[slot]].get(who)
        if row is None:
            return Fraction(0)
        step = 10 ** bounds[slot].get("decimals", 0)
        amount = Fraction(round(Fraction(str(row[slot])) * step), step)
        return min(max(amount, Fraction(bounds[slot]["low"])), Fraction(bounds[slot]["high"]))

    def holds(each: Mapping[str, Any], who: int) -> bool:
        total = sum(weight * value(slot, who) for slot, weight in each["weights"].items())
        return (
            total >= Fraction(each["at_least"]) if "at_least" in each else total <= Fraction(each["at_most"])
        )

    asked = {who for who in set().union(*people) if _joined(ways, people, who)}
    return sorted(f"RIC:{person(who)}" for who in asked if all(holds(each, who) for each in params["rule"]))


def _joined(ways: Sequence[str], people: Sequence[Mapping[int, Row]], who: int) -> bool:
    wanted = {"on": (True,), "may": (True, False), "not": (False,)}
    return all((who in held) in wanted[way] for way, held in zip(ways, people, strict=True))


def households(count: int = 60) -> list[list[Row]]:
    """Return four lists of `HARDSHIP` that overlap, of persons 0 … count - 1."""
    return [
        [
            {
                "who": n,
                "cost": (n * 7919) % 90_000 + 0.25,
                "street": f"99010100{n % 3}",
                "last_seen": f"2025-{1 + n % 12:02d}",
            }
            for n in range(count)
            if n % 7
        ],
        [{"who": n, "income": (n * 104_729) % 120_000 - 5000.5} for n in range(count) if n % 5],
        [{"who": n, "support": 100 * (n % 40)} for n in range(count) if n % 3 == 0],
        [{"who": n} for n in range(count) if n % 11 == 0],
    ]


def outsider(name: str) -> Organisation:
    """Return an organisation that has no seat."""
    return Organisation(name)
