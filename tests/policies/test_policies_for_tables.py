"""Whole policies for `table/1` and `release/1`: of departments that give data, of the office that adds up."""

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from node.approvals import Case, prompt
from policies.decide import check_merged, decide
from policies.decision import Ask, Decision, Permit, Refuse
from policies.explain import decision_json, explain_policy
from policies.history import Past, Remembered
from policies.model import ActivePolicy
from policies.parse import cautions, parse_policy
from protocols import jobs
from protocols.dp.cost import NOTHING
from protocols.encoding import sha256_digest
from protocols.ids import DatasetName, JobId, Organisation, Role
from protocols.jobs.job_type import OutputClass
from protocols.wire import Constraints, JobInput, JobSpec, organisation_of, strictest

SOURCES = ("human-resources", "health", "housing")
STREETS = ["440103001", "440103002", "440104001"]
AXIS = {"slot": "street", "values": STREETS}
AMOUNT = {"slot": "amount", "bounds": ["0", "2000"], "of": ["sum", "mean"]}
HISTOGRAM = {"statistic": "histogram", "rho": "0.1", "axes": [AXIS]}
SUM = {
    "statistic": "sum",
    "rho": "0.05",
    "axes": [AXIS],
    "measure": {"slot": "amount", "bounds": ["0", "900"]},
}
TABLE = {"axes": [AXIS], "measures": [AMOUNT]}
EXACT = {
    'job_types = ["release/1"]': 'job_types = ["table/1"]',
    'budget = "elder_quarter"                  # noise over personal data takes a budget\n': "",
    'max_cost = "0.10"                         # one job takes at most a fifth of it\n': "",
}
"""What turns the example for releases into a policy for exact tables."""

OFFICE = """
schema = "minshu-policy/1"
policy_id = "statistics.gz.example/node-a"
version = 1
not_before = 2026-12-01T00:00:00+08:00
expires = 2027-03-01T00:00:00+08:00
timezone = "Asia/Shanghai"
controller = "x"
[defaults]
min_group_size = 10
[requesters.bureau]
organisation = "data-bureau.gz.example"
keys = ["ANALYST"]
[purposes."P-2026-014"]
title = "x"
legal_basis = "DPIA-2026-031"
valid_until = 2027-02-28
[[rules]]
id = "R1"
requesters = ["bureau"]
purposes = ["P-2026-014"]
job_types = ["table/1", "release/1"]
roles = ["aggregator"]
recipients = ["bureau"]
approvals = 0
[retention]
journal_days = 1095
release_days = 30
intermediate = "job-end"
"""


def policy(world: Any, department: str, edits: Mapping[str, str] | None = None) -> ActivePolicy:
    """The example for releases as the policy of a department; of the statistics office, its own."""
    if department == "statistics":
        text = OFFICE.replace("ANALYST", world.key("analyst"))
    else:
        text = (world.examples / "release.toml").read_text("utf-8").replace("civil-affairs", department)
        for letter, name in (("a", "analyst"), ("d", f"{department} dpo"), ("e", f"{department} owner")):
            text = text.replace("sha256:" + letter * 64, world.key(name))
    parsed = parse_policy(world.edited(text, edits or {}).encode())
    # Both let the department publish numbers of its own; nothing else is to be noted.
    assert all("min_organisations" in caution.en for caution in cautions(parsed))
    return ActivePolicy(parsed.policy, parsed.digest)


def job(
    world: Any, job_type: str, params: Mapping[str, Any], departments: tuple[str, ...] = SOURCES
) -> JobSpec:
    """A job over the departments' subsidies; several of them have the statistics office add up."""
    columns = {"street": "street", "amount": "amount_yuan", "age": "age", "level": "care_level"}
    named = {AXIS["slot"], "amount", "age", "level"}
    used = {slot for slot in named if f"'{slot}'" in str(params)}
    roles = {Role(f"source-{n + 1}"): world.node(name) for n, name in enumerate(departments)}
    inputs = tuple(
        JobInput(role, organisation_of(node), DatasetName("elder_subsidy"), {s: columns[s] for s in used})
        for role, node in roles.items()
    )
    joint = {"key_holder": "source-1"} if len(departments) > 1 else {}
    if joint:
        roles[Role("aggregator")] = world.node("statistics")
    found: JobSpec = world.spec(
        job_type=job_type, params={**params, **joint}, inputs=inputs, roles=roles, recipients=(),
        purpose="P-2026-014", legal_basis="DPIA-2026-031",
    )  # fmt: skip
    return found


def ask(
    world: Any,
    spec: JobSpec,
    department: str = "human-resources",
    *,
    edits: Mapping[str, str] | None = None,
    rows: tuple[Past, ...] = (),
) -> Decision:
    return decide(
        policy(world, department, edits), spec, node=world.node(department), roster=world.roster,
        now=world.now, history=Remembered(rows),
    )  # fmt: skip


def code(decision: Decision) -> str:
    return decision.code if isinstance(decision, Refuse) else "fits"


@pytest.mark.parametrize(
    ("job_type", "params", "edits"),
    [("table/1", TABLE, EXACT), ("release/1", HISTOGRAM, {}), ("release/1", SUM, {})],
)
@pytest.mark.parametrize("departments", [SOURCES, SOURCES[:1]])
def test_a_whole_job_is_permitted_at_every_seat(
    world: Any, job_type: str, params: dict[str, Any], edits: dict[str, str], departments: tuple[str, ...]
):
    spec = job(world, job_type, params, departments)
    permits = []
    for node in spec.roles.values():
        department = node.partition(".")[0]
        active = policy(world, department, {} if department == "statistics" else edits)
        common = {"node": node, "roster": world.roster, "now": world.now}
        asked = decide(active, spec, **common)
        assert isinstance(asked, Ask | Permit), asked
        assert isinstance(asked, Permit) == (department == "statistics")
        approvals = world.verified(active, spec, ["dpo"], cost=asked.terms.cost.encode())
        permit = decide(active, spec, **common, approvals=approvals)
        assert isinstance(permit, Permit)
        permits.append(permit)
        (release,) = permit.terms.releases
        assert (release.output_class, release.recipient) == (OutputClass.AGGREGATE, "data-bureau.gz.example")
        # No quota and, for an exact table, no budget: the differencing guard and the rate hold it.
        assert [line.budget for line in permit.terms.lines] == (
            ["elder_quarter"] if department != "statistics" and job_type == "release/1" else []
        )
        assert permit.terms.cost.private_loss == bool(permit.terms.lines)
        assert (permit.terms.cost == NOTHING) == (department == "statistics")
    merged = strictest(permit.terms.constraints for permit in permits)
    assert merged.min_group_size == 10
    assert all(check_merged(permit, merged, spec) is None for permit in permits)


def test_a_release_is_charged_to_the_budget_until_nothing_is_left(world: Any):
    spec = job(world, "release/1", HISTOGRAM)
    rows: tuple[Past, ...] = ()
    codes = []
    for number in range(6):
        decision = ask(world, spec, rows=rows)
        codes.append(code(decision))
        if isinstance(decision, Refuse):
            break
        terms = decision.terms
        (line,) = terms.lines
        assert (line.notion, line.cost, line.limit) == ("zcdp", "0.1", "0.5")
        rows += (
            Past(
                job=JobId(sha256_digest(bytes([number]))), attempt=1, time=world.now,
                requester=spec.requester, purpose=spec.purpose, job_type=spec.job_type, source=terms.source,
                unit=terms.unit, cost=terms.cost, query=terms.query, charged=True, exact=False, rule="R1",
            ),
        )  # fmt: skip
        assert terms.unit == "person_id"
    assert codes == ["fits"] * 5 + ["budget-exceeded"]
    # More than one job may cost is refused at once, whichever way its privacy loss is written.
    assert code(ask(world, job(world, "release/1", {**HISTOGRAM, "rho": "0.1001"}))) == "cost-above-rule"
    pure = {k: v for k, v in HISTOGRAM.items() if k != "rho"}
    assert code(ask(world, job(world, "release/1", {**pure, "epsilon": "0.4"}))) == "fits"
    assert code(ask(world, job(world, "release/1", {**pure, "epsilon": "0.5"}))) == "cost-above-rule"


LEVEL = {"slot": "level", "values": ["0", "1", "2"]}
AGES = {"slot": "age", "bins": ["60", "70", "85"]}


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"axes": [AXIS, LEVEL, AGES]}, "fits"),
        ({"axes": [{**LEVEL, "values": ["0", "9"]}]}, "column-values"),
        ({"axes": [AXIS], "filters": [{**LEVEL, "values": ["9"]}]}, "column-values"),
        ({"axes": [{**AGES, "bins": ["60", "61"]}]}, "column-bins"),
        ({"axes": [AXIS], "measures": [{**AMOUNT, "bounds": ["0", "5000"]}]}, "fits"),
        ({"axes": [AXIS], "measures": [{**AMOUNT, "bounds": ["0", "1999"]}]}, "column-range"),
        # The rule opens ages for groups and quantiles, and amounts for sums: nothing else.
        (
            {"axes": [AXIS], "measures": [{"slot": "age", "bounds": ["0", "130"], "of": ["sum"]}]},
            "column-use",
        ),
        ({"axes": [{"slot": "amount", "bins": ["0", "100"]}]}, "column-use"),
    ],
)
def test_a_table_keeps_to_the_policys_words_of_each_column(world: Any, params: dict[str, Any], expected: str):
    assert code(ask(world, job(world, "table/1", params), edits=EXACT)) == expected


def test_quantiles_begin_their_bins_where_the_policy_lets_them(world: Any):
    quantile = {"statistic": "quantile", "rho": "0.1", "at": ["0.5"]}
    for bins, expected in ((["60", "70", "80"], "fits"), (["60", "71", "80"], "column-bins")):
        params = {**quantile, "measure": {"slot": "age", "bins": bins, "end": "120"}}
        assert code(ask(world, job(world, "release/1", params))) == expected


UNIT = "unit = { column = "
BUDGET = 'budget = "elder_quarter"'


def test_without_unit_or_budget_nothing_about_persons_is_answered(world: Any):
    whole = (world.examples / "release.toml").read_text("utf-8")
    (unit,) = (line + "\n" for line in whole.splitlines() if line.startswith(UNIT))
    (budget,) = (line + "\n" for line in whole.splitlines() if line.startswith(BUDGET))
    (cost,) = (line + "\n" for line in whole.splitlines() if line.startswith("max_cost"))
    clause = whole[whole.index("[budgets.elder_quarter]") : whole.index("[[rules]]")]

    def decision(removed: list[str], job_type: str, params: Mapping[str, Any]) -> Decision:
        text = whole.replace("civil-affairs", "human-resources").replace(
            "sha256:" + "a" * 64, world.key("analyst")
        )
        text = text.replace('job_types = ["release/1"]', 'job_types = ["release/1", "table/1"]')
        for part in removed:
            text = text.replace(part, "")
        parsed = parse_policy(text.encode())
        assert len(cautions(parsed)) == 1 + len(set(removed) & {unit, budget})
        return decide(
            ActivePolicy(parsed.policy, parsed.digest), job(world, job_type, params),
            node=world.node("human-resources"), roster=world.roster, now=world.now,
        )  # fmt: skip

    assert code(decision([budget, cost], "release/1", HISTOGRAM)) == "no-budget"
    assert code(decision([budget, cost], "table/1", TABLE)) == "fits"
    for job_type, params in (("release/1", HISTOGRAM), ("table/1", TABLE)):
        assert code(decision([unit, budget, cost, clause], job_type, params)) == "missing-unit"


def test_filters_cut_where_the_policy_lets_groups_begin(world: Any):
    """Groups of ages begin at 60, 65, 70, 75, 80, 85, 90 and 100; here ages may filter, too."""
    opened = {'use = ["group", "quantile"]': 'use = ["group", "quantile", "filter"]'}
    kept = [({"low": "65"}, "fits"), ({"high": "79"}, "fits"), ({"low": "66"}, "column-bins"),
            ({"low": "65", "high": "65"}, "column-bins"), ({"high": "80"}, "column-bins")]  # fmt: skip
    for ends, expected in kept:
        filters = [{"slot": "age", **ends}]
        table = job(world, "table/1", {"axes": [AXIS], "filters": filters})
        assert code(ask(world, table, edits={**EXACT, **opened})) == expected
        release = job(world, "release/1", {**HISTOGRAM, "filters": filters})
        assert code(ask(world, release, edits=opened)) == expected


@pytest.mark.parametrize(
    ("job_type", "params", "edits"), [("table/1", TABLE, EXACT), ("release/1", HISTOGRAM, {})]
)
def test_a_job_that_takes_persons_to_be_in_one_department_needs_a_rule_that_does(
    world: Any, job_type: str, params: dict[str, Any], edits: dict[str, str]
):
    alone = job(world, job_type, params, SOURCES[:1])
    fewer, all_of_them = ({**params, "persons_in": number} for number in (1, 3))
    for spec in (alone, job(world, job_type, params), job(world, job_type, all_of_them)):
        assert code(ask(world, spec, edits=edits)) == "fits"
    assert code(ask(world, job(world, job_type, fewer), edits=edits)) == "persons-in"
    told = {**edits, "rate = {": "persons_in = 1\nrate = {"}
    asks = ask(world, job(world, job_type, fewer), edits=told)
    assert isinstance(asks, Ask)
    assert asks.terms.persons_in == (1, 3)
    # Whoever only adds up has nobody to hide.
    assert isinstance(ask(world, job(world, job_type, fewer), "statistics"), Permit)


def test_whoever_approves_is_told_what_is_taken_for_granted_and_whom_a_row_is_about(world: Any):
    edits = {"rate = {": "persons_in = 2\nrate = {"}
    spec, active = job(world, "release/1", {**HISTOGRAM, "persons_in": 2}), policy(world, "health", edits)
    asks = decide(active, spec, node=world.node("health"), roster=world.roster, now=world.now)
    page = prompt(Case(spec, asks, active, world.roster, (), ()))
    assert (
        "one person is taken to be in at most 2 of the 3 departments that give data; where that is wrong"
        in page
    )
    assert "假定一人至多出现在提供数据的 3 个部门中的 2 个; 如不属实" in page
    (own,) = (
        line for line in page.splitlines() if "(unit: whom a row is about / 单位: 每行所属对象)" in line
    )
    # This department's own dataset only: whom the others' rows are about, their policies say.
    assert own.startswith("  source-2 (health.gz.example) elder_subsidy: ")
    assert "street (street), person_id (unit: " in own
    assert decision_json(asks, spec)["persons_in"] == {"most": 2, "of": 3}
    refused = replace(asks, terms=asks.terms) if isinstance(asks, Refuse) else Refuse("x", "x", "x", "x", "x")
    assert "(unit: " not in prompt(Case(spec, refused, active, world.roster, (), ()))


def test_a_policy_says_in_how_many_departments_a_person_is_reckoned_with(world: Any):
    for edit, en, zh in (
        ({}, "one person being in every department that gives data", "一人可能出现在全部提供数据的部门计算"),
        ({"rate = {": "persons_in = 2\nrate = {"},
         "one person being in at least 2 departments, or all there are",
         "一人可能出现在至少 2 个部门 (不足此数时为全部)计算"),
    ):  # fmt: skip
        text = (world.examples / "release.toml").read_text("utf-8")
        parsed = parse_policy(world.edited(text, edit).encode())
        assert en in explain_policy(parsed, "en")
        assert zh in explain_policy(parsed, "zh")
    lists = parse_policy(world.text("health").encode())
    assert "department that gives data" not in explain_policy(lists, "en")


@pytest.mark.parametrize(("job_type", "edits"), [("table/1", EXACT), ("release/1", {})])
def test_a_rule_by_which_a_department_may_publish_alone_is_named(
    world: Any, job_type: str, edits: dict[str, str]
):
    text = world.edited((world.examples / "release.toml").read_text("utf-8"), edits)
    (caution,) = cautions(parse_policy(text.encode()))
    assert f"rule R1 allows {job_type} without min_organisations" in caution.en
    assert f"规则 R1 允许 {job_type} 而未设 min_organisations" in caution.zh
    assert text.splitlines()[caution.line - 1] == "[[rules]]"
    for more in (
        {"rate = {": "min_organisations = 3\nrate = {"},
        {'["source", "key-holder"]': '["key-holder"]'},
    ):
        assert cautions(parse_policy(world.edited(text, more).encode())) == []
    (open_to_all,) = cautions(
        parse_policy(world.edited(text, {'roles = ["source", "key-holder"]': ""}).encode())
    )
    assert open_to_all.en == caution.en
    assert cautions(parse_policy(OFFICE.replace("ANALYST", world.key("analyst")).encode())) == []


@pytest.mark.parametrize(
    ("edits", "expected"),
    [
        ({'roles = ["source", "key-holder"]': 'roles = ["source"]'}, "role-not-allowed"),
        ({'roles = ["source", "key-holder"]': 'roles = ["key-holder"]'}, "role-not-allowed"),
        ({'"street", "care_level", "age"': '"care_level", "age"'}, "column-not-allowed"),
        ({"rate = {": "min_organisations = 4\nrate = {"}, "too-few-organisations"),
        ({"rate = {": "min_organisations = 3\nrate = {"}, "fits"),
        ({"rate = {": "min_group_size = 50\nrate = {"}, "fits"),
    ],
)
def test_a_rule_has_to_cover_the_whole_seat(world: Any, edits: dict[str, str], expected: str):
    decision = ask(world, job(world, "release/1", HISTOGRAM), edits=edits)
    assert code(decision) == expected
    if "min_group_size" in str(edits):
        assert isinstance(decision, Ask)
        assert decision.terms.constraints.min_group_size == 50


def test_a_source_that_does_not_decrypt_needs_no_rule_for_that(world: Any):
    edits = {'roles = ["source", "key-holder"]': 'roles = ["source"]'}
    assert code(ask(world, job(world, "release/1", HISTOGRAM), "health", edits=edits)) == "fits"


def test_the_office_that_adds_up_may_do_nothing_else(world: Any):
    for job_type, params in (("release/1", HISTOGRAM), ("table/1", TABLE)):
        assert isinstance(ask(world, job(world, job_type, params), "statistics"), Permit)
    assert code(ask(world, world.spec(), "statistics")) != "fits"
    spec = job(world, "release/1", HISTOGRAM)
    matcher = {'roles = ["aggregator"]': 'roles = ["matcher"]'}
    assert code(ask(world, spec, "statistics", edits=matcher)) == "role-not-allowed"


def test_whoever_asks_holds_no_seat(world: Any):
    mine = {
        'organisation = "data-bureau.gz.example"': 'organisation = "police.gz.example"',
        f'"{world.key("analyst")}"': f'"{world.key("policeman")}"',
    }
    for job_type, params, edits in (("release/1", HISTOGRAM, {}), ("table/1", TABLE, EXACT)):
        spec = job(world, job_type, params, ("human-resources", "police", "housing"))
        spec = replace(spec, requester=world.key("policeman"))
        assert code(ask(world, spec, edits={**mine, **edits})) == "organisations-not-separate"


def test_a_table_goes_to_nobody_but_who_asks(world: Any):
    for job_type, params, edits in (("release/1", HISTOGRAM, {}), ("table/1", TABLE, EXACT)):
        spec = replace(job(world, job_type, params), recipients=(Organisation("health.gz.example"),))
        assert code(ask(world, spec, edits=edits)) == "bad-recipients"


def test_what_a_table_costs_rests_on_no_constraint(world: Any):
    """`diff` relies on it: whoever tightens a constraint does not make jobs cheaper."""
    strict = Constraints(
        min_group_size=99, min_organisations=9, min_sources=9, max_rows=7, max_fraction=Fraction(1, 9),
        min_coverage=Fraction(8, 9), max_runtime_s=1,
    )  # fmt: skip
    for name, params in (("release/1", HISTOGRAM), ("release/1", SUM), ("table/1", TABLE)):
        spec, known = job(world, name, params), jobs.job_type(name)
        for role in spec.roles:
            assert known.cost(spec, role, Constraints()) == known.cost(spec, role, strict)


def test_every_job_type_of_class_a_counts_units():
    """The policy's checks of units rest on it."""
    for known in jobs.JOB_TYPES:
        if known.output_class is OutputClass.AGGREGATE:
            assert known.counts_units
