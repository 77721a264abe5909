"""Policies for statistics of the joined population: sources, and three seats without data of their own."""

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from joined_moments_case import moments_spec
from joined_rule_case import rule_spec
from joined_table_case import REGISTERED, RESIDENT, joined_spec

from policies import explain
from policies.attempts import set_aside
from policies.decide import check_merged, decide
from policies.decision import Decision, Permit, Refuse
from policies.explain import explain_policy
from policies.history import Past, Remembered
from policies.matching import Asked, check_separation
from policies.model import ActivePolicy
from policies.parse import ParsedPolicy, cautions, parse_policy
from protocols.dp.cost import NOTHING, Cost
from protocols.encoding import sha256_digest
from protocols.errors import InputError, PolicyInvalid
from protocols.ids import DatasetName, JobId, NodeName, Organisation, Role
from protocols.jobs import JOB_TYPES, job_type
from protocols.jobs.job_type import (
    REQUESTER,
    ColumnNeed,
    Domain,
    OutputClass,
    PlannedRelease,
    Separation,
    Statement,
)
from protocols.statistics.differencing import Query
from protocols.wire import Constraints, JobInput, JobSpec, organisation_of, strictest

SOURCES = ("human-resources", "health")
SEATS = {"matcher": "statistics", "helper": "housing", "dealer": "education"}
STREETS = ["440103001", "440103002"]


class Joined:
    """A job type of class A over two lists and three neutral seats, exact or with noise of `rho`.

    `open`: the street is seen by the matcher. `filters`: only persons of these streets.
    """

    name = "joined-sketch/1"
    output_class = OutputClass.AGGREGATE
    states_sizes = True
    counts_units = True
    silent_until_answering = True

    def check(self, spec: JobSpec) -> None:
        if not spec.params.keys() <= {"rho", "open", "filters"}:
            raise InputError("params that nobody asked for", code="unknown-param", hint="remove them")

    def kinds(self, spec: JobSpec, role: Role) -> frozenset[str]:
        return frozenset({role} if spec.input_of(role) is None else {"source", "key-holder"})

    def columns(self, spec: JobSpec, role: Role) -> tuple[ColumnNeed, ...]:
        streets = Domain(values=tuple(spec.params.get("filters", STREETS)))
        uses = ["group", "open-to-matcher"] if spec.params.get("open") else ["group"]
        return (
            ColumnNeed("key", "join", ("resident-id",)),
            *(ColumnNeed("street", use, ("enum",), domain=streets) for use in uses),
        )

    def releases(self, spec: JobSpec) -> tuple[PlannedRelease, ...]:
        return (PlannedRelease("table", OutputClass.AGGREGATE, Role("matcher"), REQUESTER),)

    def separation(self, spec: JobSpec, requester: Organisation) -> tuple[Separation, ...]:
        house = {role: frozenset({organisation_of(node)}) for role, node in spec.roles.items()}
        owners = house[Role("source-1")] | house[Role("source-2")]
        shares = [house[Role(seat)] for seat in ("matcher", "helper")]
        dealer = house[Role("dealer")]
        outside = frozenset({requester, *spec.recipients})
        return (
            Separation("payloads", shares[0], shares[1]),
            *(Separation("shares", share, dealer) for share in shares),
            *(Separation("rows", share, owners | outside) for share in shares),
            Separation("shares", dealer, outside),
        )

    def learns(self, spec: JobSpec) -> Mapping[frozenset[Role], tuple[Statement, ...]]:
        return {frozenset({Role("matcher")}): (Statement("joined", "how many are joined", "联合人数"),)}

    def cost(self, spec: JobSpec, role: Role, constraints: Constraints) -> Cost:
        if spec.input_of(role) is None:
            return NOTHING
        return Cost.zcdp(Fraction(spec.params.get("rho", 0))) + Cost(queries=1)

    def exact(self, spec: JobSpec) -> bool:
        return "rho" not in spec.params

    def query(self, spec: JobSpec, role: Role) -> Query | None:
        if spec.input_of(role) is None:
            return None
        own = {"street": frozenset(spec.params["filters"])} if "filters" in spec.params else {}
        return Query("joined-sketch/1", own, noisy=not self.exact(spec))

    def sources_asked(self, spec: JobSpec) -> int:
        return len(spec.inputs)


TYPES = (Joined(),)

HEAD = """
schema = "minshu-policy/1"
policy_id = "{department}.gz.example/node-a"
version = 1
not_before = 2026-12-01T00:00:00+08:00
expires = 2027-03-01T00:00:00+08:00
timezone = "Asia/Shanghai"
controller = "x"
[defaults]
min_group_size = 10
release_requires = "cosigned"
[requesters.bureau]
organisation = "data-bureau.gz.example"
keys = ["{analyst}"]
[purposes."P-2026-001"]
title = "x"
legal_basis = "DPIA-2026-001"
valid_until = 2027-02-28
[retention]
journal_days = 1095
release_days = 30
intermediate = "job-end"
[[rules]]
id = "R1"
requesters = ["bureau"]
purposes = ["P-2026-001"]
job_types = ["joined-sketch/1"]
recipients = ["bureau"]
approvals = 0
"""
NEUTRAL = 'roles = ["{seat}"]\n'
GIVES = """roles = ["source", "key-holder"]
datasets = ["residents"]
columns = ["person_id", "street"]
quotas = ["questions"]
{budget}
[budgets.noise]
dataset = "residents"
notion = "zcdp"
limit = "0.25"
period = "calendar-quarter"
scope = "all-requesters"
[quotas.questions]
dataset = "residents"
counts = "queries"
limit = 3
period = "calendar-month"
scope = "all-requesters"
[datasets.residents]
source = "local:residents"
grade = "general-4"
personal = "sensitive"
unit = {{ column = "person_id", max_rows = 3 }}
[datasets.residents.columns]
person_id = {{ type = "resident-id", use = ["join"] }}
street = {{ type = "enum", use = {use}, values = ["440103001", "440103002"] }}
"""
EXACT, PAID = "", 'budget = "noise"'
CLOSED, OPEN = '["group", "filter"]', '["group", "filter", "open-to-matcher"]'


def policy_text(world: Any, department: str, *, budget: str = EXACT, use: str = CLOSED) -> str:
    text = HEAD.format(department=department, analyst=world.key("analyst"))
    if department in SOURCES:
        text += GIVES.format(budget=budget, use=use)
    else:
        [seat] = [seat for seat, name in SEATS.items() if name == department]
        text += NEUTRAL.format(seat=seat)
    return text


def parsed_policy(world: Any, department: str, **policy_is: Any) -> ParsedPolicy:
    parsed = parse_policy(policy_text(world, department, **policy_is).encode(), job_types=TYPES)
    assert cautions(parsed, job_types=TYPES) == []
    return parsed


def policy(world: Any, department: str, **policy_is: Any) -> ActivePolicy:
    parsed = parsed_policy(world, department, **policy_is)
    return ActivePolicy(parsed.policy, parsed.digest)


def job(world: Any, seats: Mapping[str, str] = SEATS, **params: Any) -> JobSpec:
    """A table over both sources; `seats` says who is matcher, helper and dealer."""
    inputs = tuple(
        JobInput(
            Role(f"source-{n + 1}"),
            Organisation(f"{name}.gz.example"),
            DatasetName("residents"),
            {"key": "person_id", "street": "street"},
        )
        for n, name in enumerate(SOURCES)
    )
    roles = {Role(f"source-{n + 1}"): world.node(name) for n, name in enumerate(SOURCES)}
    roles |= {Role(seat): world.node(name) for seat, name in seats.items()}
    found: JobSpec = world.spec(
        job_type="joined-sketch/1", params=params, inputs=inputs, roles=roles, recipients=()
    )
    return found


def ask(
    world: Any, spec: JobSpec, department: str = "health", *, rows: tuple[Past, ...] = (), **policy_is: Any
) -> Decision:
    return decide(
        policy(world, department, **policy_is), spec, node=world.node(department), roster=world.roster,
        now=world.now, history=Remembered(rows), job_types=TYPES,
    )  # fmt: skip


def code(decision: Decision) -> str:
    return decision.code if isinstance(decision, Refuse) else "fits"


def answered(world: Any, spec: JobSpec, number: int, **policy_is: Any) -> Past:
    """What the ledger keeps of an answer that the health department has given."""
    decision = ask(world, spec, **policy_is)
    assert isinstance(decision, Permit), decision
    row = set_aside(spec, 1, decision.terms, world.now)
    return replace(row, job=JobId(sha256_digest(b"%d" % number)), charged=True)


def test_a_job_over_two_lists_is_permitted_at_every_seat_and_charged_where_data_is(world: Any) -> None:
    for rho, budget in ((None, EXACT), ("0.1", PAID)):
        spec = job(world) if rho is None else job(world, rho=rho)
        permits = []
        for department in (*SOURCES, *SEATS.values()):
            permit = ask(world, spec, department, budget=budget)
            assert isinstance(permit, Permit), permit
            permits.append(permit)
            gives = department in SOURCES
            assert permit.terms.cost.queries == int(gives)
            assert {line.budget for line in permit.terms.lines} == (
                ({"questions"} if rho is None else {"questions", "noise"}) if gives else set()
            )
            assert (permit.terms.query is not None) == gives
            assert permit.terms.releases[0].recipient == "data-bureau.gz.example"
        merged = strictest(permit.terms.constraints for permit in permits)
        assert all(check_merged(permit, merged, spec, job_types=TYPES) is None for permit in permits)


@pytest.mark.parametrize("seat", SEATS)
def test_a_rule_for_one_neutral_seat_lends_no_other(world: Any, seat: str) -> None:
    others = {"matcher": "helper", "helper": "dealer", "dealer": "matcher"}
    swapped = {**SEATS, seat: SEATS[others[seat]], others[seat]: SEATS[seat]}
    for wrong in (seat, others[seat]):
        assert code(ask(world, job(world, swapped), swapped[wrong])) == "role-not-allowed"


def test_neither_helper_nor_dealer_may_be_played_by_a_node_whose_rule_gives_data(world: Any) -> None:
    text = HEAD.format(department="health", analyst=world.key("analyst"))
    text += GIVES.format(budget=EXACT, use=CLOSED).replace('"key-holder"', '"helper"')
    with pytest.raises(PolicyInvalid) as caught:
        parse_policy(text.encode(), job_types=TYPES)
    assert caught.value.code == "neutral-with-dataset"


@pytest.mark.parametrize(
    "seats",
    [
        {"helper": "statistics"},
        {"dealer": "statistics"},
        {"dealer": "housing"},
        {"matcher": "health"},
        {"helper": "human-resources"},
        {"matcher": "data-bureau"},
        {"helper": "data-bureau"},
        {"dealer": "data-bureau"},
    ],
    ids=str,
)
def test_every_seat_refuses_a_job_whose_neutral_seats_are_not_apart(
    world: Any, seats: dict[str, str]
) -> None:
    spec = job(world, {**SEATS, **seats})
    for department in SOURCES:
        decision = ask(world, spec, department)
        # A department that is asked to compute besides giving data is refused before: no rule of it says so.
        assert code(decision) in ("organisations-not-separate", "role-not-allowed")
    assert "organisations-not-separate" in {code(ask(world, spec, name)) for name in SOURCES}


def test_a_part_of_an_organisation_is_not_apart_from_it(world: Any) -> None:
    spec = job(world)
    part = NodeName("lab.statistics.gz.example/node-a")
    roster = replace(world.roster, nodes=(*world.roster.nodes, replace(world.roster.nodes[0], name=part)))
    spec = replace(spec, roles={**spec.roles, Role("helper"): part}, roster_digest=roster.digest)
    decision = decide(
        policy(world, "health"),
        spec,
        node=world.node("health"),
        roster=roster,
        now=world.now,
        job_types=TYPES,
    )
    assert code(decision) == "organisations-not-separate"
    assert "payloads" in decision.sentence


def test_a_group_is_shown_to_the_matcher_only_where_the_column_says_so(world: Any) -> None:
    assert code(ask(world, job(world, open=True))) == "column-use"
    assert isinstance(ask(world, job(world, open=True), use=OPEN), Permit)
    refused = ask(world, job(world, open=True))
    assert "matcher and helper" in refused.sentence
    assert "匹配方和协助方" in refused.zh


def test_officers_read_in_both_languages_who_sees_an_open_column_and_what_a_neutral_seat_is(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explain, "JOB_TYPES", TYPES)
    parsed = [parsed_policy(world, name, use=OPEN, budget=PAID) for name in ("health", "housing")]
    said = {language: [explain_policy(each, language) for each in parsed] for language in ("en", "zh")}
    gives, helps = said["en"]
    assert "street: group, filter, open to matcher and helper, who see it of each person" in gives
    assert "joined-sketch/1 (A: numbers about groups, with noise)" in gives
    assert "This node plays: helper" in helps
    assert "Data: none, it computes for others" in helps
    assert "exact or with noise" in helps
    gives, helps = said["zh"]
    assert "对匹配方和协助方逐人公开 (其不知是谁)" in gives
    assert "精确或加噪" in helps
    exact = explain_policy(parsed_policy(world, "health"), "en")
    assert "exact: noise would take a budget" in exact


def test_noise_is_paid_for_and_a_rule_with_a_budget_gives_nothing_without(world: Any) -> None:
    assert code(ask(world, job(world, rho="0.1"))) == "no-budget"
    refused = ask(world, job(world), budget=PAID)
    assert code(refused) == "noise-required"
    assert isinstance(refused, Refuse)
    assert "rho" in refused.hint
    assert "rho" in refused.hint_zh
    assert isinstance(ask(world, job(world, rho="0.1"), budget=PAID), Permit)
    assert isinstance(ask(world, job(world)), Permit)


def test_a_budget_and_a_quota_end_the_asking(world: Any) -> None:
    noisy = job(world, rho="0.1")
    rows = tuple(answered(world, noisy, number, budget=PAID) for number in range(2))
    assert code(ask(world, noisy, rows=rows, budget=PAID)) == "budget-exceeded"
    assert isinstance(ask(world, job(world, rho="0.05"), rows=rows, budget=PAID), Permit)
    exact = tuple(answered(world, job(world), number) for number in range(3))
    assert code(ask(world, job(world), rows=exact)) == "budget-exceeded"
    # Seats without data spend nothing, however often they compute.
    for department in SEATS.values():
        assert isinstance(ask(world, noisy, department, rows=rows, budget=PAID), Permit)


def test_exact_answers_about_overlapping_groups_are_refused_where_the_data_is(world: Any) -> None:
    everyone = answered(world, job(world), 1)
    one_street = job(world, filters=STREETS[:1])
    assert code(ask(world, one_street, rows=(everyone,))) == "differencing"
    first = answered(world, one_street, 2)
    assert isinstance(ask(world, job(world, filters=STREETS[1:]), rows=(first,)), Permit)
    assert isinstance(ask(world, job(world, rho="0.1"), rows=(everyone,), budget=PAID), Permit)
    for department in SEATS.values():
        assert isinstance(ask(world, one_street, department), Permit)


def test_a_rule_for_certain_rows_takes_a_job_that_says_so(world: Any) -> None:
    only = 'quotas = ["questions"]\nonly = { street = ["440103001"] }\n'
    text = policy_text(world, "health").replace('quotas = ["questions"]\n', only)
    parsed = parse_policy(text.encode(), job_types=TYPES)
    active = ActivePolicy(parsed.policy, parsed.digest)

    def answer(**params: Any) -> str:
        return code(decide(
            active, job(world, **params), node=world.node("health"), roster=world.roster, now=world.now,
            job_types=TYPES,
        ))  # fmt: skip

    assert answer() == "outside-scope"
    assert answer(filters=STREETS[:1]) == "fits"


# -- the job types there are ---------------------------------------------------------------------------------

KNOWN = {
    "joined-table/1": lambda: joined_spec(axes=[RESIDENT, REGISTERED]),
    "joined-moments/1": moments_spec,
    "joined-rule/1": rule_spec,
}


def test_all_joined_job_types_are_looked_at() -> None:
    assert set(KNOWN) == {known.name for known in JOB_TYPES if known.name.startswith("joined-")}


@pytest.mark.parametrize("name", KNOWN)
def test_every_pair_of_seats_that_must_be_apart_is_refused_in_one_house(name: str) -> None:
    known, spec, requester = job_type(name), KNOWN[name](), Organisation("data-bureau.gz.example")
    asked_apart = Asked.of(spec, known, Role("source-1"), requester)
    assert asked_apart.together == ""
    seats = [Role("matcher"), Role("helper"), *([Role("dealer")] if Role("dealer") in spec.roles else [])]
    # (seat, house): each neutral seat in the house of each other one, and of every source; then outside.
    for seat in seats:
        for other in (*spec.roles, None):
            if other == seat:
                continue
            house = requester if other is None else organisation_of(spec.roles[other])
            roles = {**spec.roles, seat: NodeName(f"lab.{house}/node-z")}
            asked = Asked.of(replace(spec, roles=roles), known, Role("source-1"), requester)
            assert asked.together, (seat, other)
            assert code(check_separation(asked.together, "R1")) == "organisations-not-separate"


@pytest.mark.parametrize("name", KNOWN)
def test_neutral_seats_cost_nothing_select_nothing_and_bring_nothing(name: str) -> None:
    known, spec, limits = job_type(name), KNOWN[name](), Constraints(min_group_size=3, max_rows=10)
    for seat in spec.roles:
        neutral = spec.input_of(seat) is None
        assert (known.query(spec, seat) is None) == neutral
        assert (known.cost(spec, seat, limits) == NOTHING) == neutral
        if neutral:
            assert known.columns(spec, seat) == ()
            assert known.kinds(spec, seat) == {str(seat)}


def test_officers_read_which_columns_of_a_rule_may_travel(world: Any) -> None:
    parsed = parse_policy((world.examples / "joined-rule.toml").read_bytes())
    told = {"en": "only these may travel, sealed, in a record about a person: ", "zh": "仅 "}
    for language, begin in told.items():
        [line] = [each for each in explain_policy(parsed, language).splitlines() if begin in each]
        assert "person_id" in line
        assert "street" in line
        assert "self_paid_yuan" not in line
        assert "whatever its use" not in explain_policy(parsed, language)
