"""The example policy for `joined-table/1`: noise that a budget pays for, open columns, seats apart."""

from dataclasses import replace
from fractions import Fraction
from itertools import combinations
from typing import Any

import pytest

from policies.decide import decide
from policies.decision import Ask, Decision, Refuse
from policies.model import ActivePolicy
from policies.parse import cautions, parse_policy
from protocols.dp.cost import Cost
from protocols.ids import DatasetName, NodeName, Role
from protocols.wire import JobInput, JobSpec, organisation_of

SEATS = {
    "source-1": "human-resources",
    "source-2": "health",
    "matcher": "statistics",
    "helper": "housing",
    "dealer": "education",
}
KINDS = {"source": "source-1", "slot": "kind", "values": ["employee", "resident"]}
DISTRICT = {"source": "source-1", "slot": "district", "values": ["440103", "440104"]}
OTHERS = {"source": "source-2", "slot": "other", "values": ["employee"]}
MONTHLY = {"source": "source-1", "slot": "monthly", "low": "0", "high": "20000", "of": ["sum"]}
COLUMNS = {"kind": "kind", "district": "district", "other": "kind", "monthly": "monthly_yuan"}


def policy(world: Any, edits: dict[str, str] | None = None) -> ActivePolicy:
    text = (world.examples / "joined-table.toml").read_text("utf-8")
    text = text.replace("pension-office", "human-resources")
    for letter, name in (("a", "analyst"), ("d", "human-resources dpo"), ("e", "human-resources owner")):
        text = text.replace("sha256:" + letter * 64, world.key(name))
    parsed = parse_policy(world.edited(text, edits or {}).encode())
    assert not cautions(parsed)
    return ActivePolicy(parsed.policy, parsed.digest)


def job(world: Any, **params: Any) -> JobSpec:
    parts = [part for name in ("axes", "measures") for part in params.get(name, ())]
    roles = {Role(seat): world.node(name) for seat, name in SEATS.items()}
    hidden = {part["source"] for part in parts if part.get("open") != "yes"}
    if len(hidden) < 2:
        del roles[Role("dealer")]
    inputs = tuple(
        JobInput(
            role,
            organisation_of(roles[role]),
            DatasetName("pensions"),
            {"key": "person_id"} | {p["slot"]: COLUMNS[p["slot"]] for p in parts if p["source"] == role},
        )
        for role in (Role("source-1"), Role("source-2"))
    )
    found: JobSpec = world.spec(
        job_type="joined-table/1", params=params, inputs=inputs, roles=roles, recipients=(),
        purpose="P-2026-021", legal_basis="DPIA-2026-052",
    )  # fmt: skip
    return found


def ask(world: Any, spec: JobSpec, edits: dict[str, str] | None = None, roster: Any = None) -> Decision:
    return decide(
        policy(world, edits), spec, node=world.node("human-resources"), roster=roster or world.roster,
        now=world.now,
    )  # fmt: skip


def code(decision: Decision) -> str:
    return decision.code if isinstance(decision, Refuse) else "fits"


NOISY = {"axes": [KINDS, OTHERS], "measures": [MONTHLY], "rho": "0.1"}


def test_a_table_with_noise_is_asked_about_and_charged_to_the_budget(world: Any) -> None:
    decision = ask(world, job(world, **NOISY))
    assert isinstance(decision, Ask)
    assert decision.terms.cost == Cost.zcdp(Fraction(1, 10)) + Cost(queries=1)
    assert {line.budget for line in decision.terms.lines} == {"joined", "questions"}
    assert code(ask(world, job(world, **{**NOISY, "rho": "0.3"}))) == "cost-above-rule"


def test_an_exact_table_is_refused_by_a_rule_that_names_a_budget(world: Any) -> None:
    assert code(ask(world, job(world, axes=[KINDS, OTHERS]))) == "noise-required"


EXACT = {
    'budget = "joined"                         # noise over personal data takes a budget\n': "",
    'max_cost = "0.2"\n': "",
}
"""The rule without its budget, which is there for noise alone."""


@pytest.mark.parametrize(
    ("ends", "exact", "noisy"),
    [
        (("0", "20000"), "fits", "fits"),
        (("0", "9000"), "column-range", "fits"),
        (("9000", "20000"), "column-range", "fits"),
        (("0", "20001"), "column-range", "fits"),
    ],
)
def test_an_exact_sum_keeps_to_the_range_that_the_policy_states(
    world: Any, ends: tuple[str, str], exact: str, noisy: str
) -> None:
    """Narrower, it would tell of those beyond a bound; wider, none could tell how near to theirs all are."""
    measures = [{**MONTHLY, "low": ends[0], "high": ends[1]}]
    assert code(ask(world, job(world, axes=[KINDS], measures=measures), EXACT)) == exact
    assert code(ask(world, job(world, axes=[KINDS], measures=measures, rho="0.1"))) == noisy


def test_months_have_no_range_and_are_not_added_up_exactly(world: Any) -> None:
    months = {"source": "source-1", "slot": "monthly", "low": "0", "high": "120", "until": "2025-12"}
    spec = job(world, measures=[months])
    inputs = tuple(
        replace(given, columns={**given.columns, "monthly": "stopped_month"})
        if given.role == "source-1"
        else given
        for given in spec.inputs
    )
    assert code(ask(world, replace(spec, inputs=inputs), EXACT)) == "column-range"
    noisy = replace(spec, inputs=inputs, params={**spec.params, "rho": "0.1"})
    assert code(ask(world, noisy)) == "fits"


def test_a_list_that_may_be_refused_keeps_to_the_policys_range_and_to_exact_jobs(world: Any) -> None:
    """Whether it is refused tells of single rows: of which bound, is the policy's to say."""
    strict = {**MONTHLY, "outside": "refuse"}
    for high, expected in (("20000", "fits"), ("9000", "column-range"), ("30000", "column-range")):
        spec = job(world, axes=[KINDS], measures=[{**strict, "high": high}])
        assert code(ask(world, spec, EXACT)) == expected
    assert code(ask(world, job(world, axes=[KINDS], measures=[strict], rho="0.1"))) == "bad-params"


def test_an_open_axis_is_refused_where_the_column_is_not_open_to_the_matcher(world: Any) -> None:
    for axis, expected in ((DISTRICT, "fits"), (KINDS, "column-use")):
        spec = job(world, axes=[{**axis, "open": "yes"}], rho="0.1")
        assert code(ask(world, spec)) == expected
    closed = {'use = ["group", "open-to-matcher"] }': 'use = ["group"] }'}
    assert code(ask(world, job(world, axes=[{**DISTRICT, "open": "yes"}], rho="0.1"), closed)) == "column-use"
    assert code(ask(world, job(world, axes=[DISTRICT], rho="0.1"), closed)) == "fits"


@pytest.mark.parametrize("pair", [*combinations(SEATS, 2)], ids="+".join)
def test_no_two_seats_are_of_one_organisation(world: Any, pair: tuple[str, str]) -> None:
    base = job(world, **NOISY)
    one, other = (Role(seat) for seat in pair)
    part = NodeName(f"{organisation_of(base.roles[one])}/node-b")
    extra = replace(world.roster.nodes[0], name=part)
    roster = replace(world.roster, nodes=(*world.roster.nodes, extra))
    inputs = tuple(
        replace(given, organisation=organisation_of(part)) if given.role == other else given
        for given in base.inputs
    )
    spec = replace(base, roles={**base.roles, other: part}, inputs=inputs, roster_digest=roster.digest)
    decision = ask(world, spec, roster=roster)
    lists = pair == ("source-1", "source-2")
    assert code(decision) == ("one-list-each" if lists else "organisations-not-separate")


@pytest.mark.parametrize("seat", ["matcher", "helper", "dealer"])
def test_no_neutral_seat_is_the_requesters(world: Any, seat: str) -> None:
    base = job(world, **NOISY)
    spec = replace(base, roles={**base.roles, Role(seat): world.node("data-bureau")})
    assert code(ask(world, spec)) == "organisations-not-separate"
