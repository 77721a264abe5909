"""The example policy for `joined-rule/1`: thresholds where groups begin, and no second one over a list."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from policies.attempts import set_aside
from policies.decide import decide
from policies.decision import Ask, Decision, Refuse
from policies.explain import explain_policy
from policies.history import Past, Remembered
from policies.model import ActivePolicy
from policies.parse import ParsedPolicy, parse_policy
from protocols.encoding import sha256_digest
from protocols.ids import DatasetName, JobId, Organisation, Role
from protocols.wire import JobInput, JobSpec, organisation_of

SEATS = {
    "source-1": "health",
    "source-2": "human-resources",
    "recipient": "police",
    "matcher": "statistics",
    "helper": "housing",
    "dealer": "education",
}
COST = {"source": "source-1", "slot": "cost", "low": "0", "high": "200000"}
AGE = {"source": "source-1", "slot": "age", "low": "0", "high": "120"}
INCOME = {"source": "source-2", "slot": "income", "low": "0", "high": "300000"}
COLUMNS = {"cost": "self_paid_yuan", "age": "age", "years": "age", "income": "income_yuan", "state": "status"}
AGED = 'status = { type = "enum"'
EDITS = {
    AGED: f'age = {{ type = "int", use = ["filter"], bins = [0, 18, 60] }}\n{AGED}',
    '"self_paid_yuan", "status", "street"': '"self_paid_yuan", "age", "status", "street"',
}


def parsed(world: Any, edits: dict[str, str] | None = None) -> ParsedPolicy:
    text = (world.examples / "joined-rule.toml").read_text("utf-8")
    text = text.replace("insurance.gz", "health.gz").replace("civil-affairs.gz", "police.gz")
    for letter, name in (("a", "analyst"), ("d", "health dpo"), ("e", "health owner")):
        text = text.replace("sha256:" + letter * 64, world.key(name))
    return parse_policy(world.edited(text, {**EDITS, **(edits or {})}).encode())


def job(world: Any, *clauses: dict[str, Any], **params: Any) -> JobSpec:
    named = {slot for each in clauses for slot in each["weights"]}
    columns = params.pop("columns", [each for each in (COST, AGE, INCOME) if each["slot"] in named])
    parts = [*columns, *params.get("filters", ())]
    roles = {Role(seat): world.node(name) for seat, name in SEATS.items()}

    def brought(role: Role) -> dict[str, str]:
        own = {part["slot"]: COLUMNS[part["slot"]] for part in parts if part["source"] == role}
        return {"key": "person_id", **own, **({"street": "street"} if role == "source-1" else {})}

    found: JobSpec = world.spec(
        job_type="joined-rule/1",
        params={
            "join": {"source-1": "on", "source-2": "on"},
            "columns": columns,
            "rule": list(clauses),
            "records_from": "source-1",
            "recipient": "recipient",
            **params,
        },
        inputs=tuple(
            JobInput(role, organisation_of(roles[role]), DatasetName("claims"), brought(role))
            for role in (Role("source-1"), Role("source-2"))
        ),
        roles=roles,
        recipients=(Organisation("police.gz.example"),),
        purpose="P-2026-031",
        legal_basis="DPIA-2026-061",
    )
    return found


def ask(
    world: Any, spec: JobSpec, rows: tuple[Past, ...] = (), edits: dict[str, str] | None = None
) -> Decision:
    found = parsed(world, edits)
    return decide(
        ActivePolicy(found.policy, found.digest), spec, node=world.node("health"), roster=world.roster,
        now=world.now, history=Remembered(rows),
    )  # fmt: skip


def code(decision: Decision) -> str:
    return decision.code if isinstance(decision, Refuse) else "fits"


def atleast(bound: str, **weights: int) -> dict[str, Any]:
    return {"weights": dict(weights), "at_least": bound}


def atmost(bound: str, **weights: int) -> dict[str, Any]:
    return {"weights": dict(weights), "at_most": bound}


# -- where groups begin --------------------------------------------------------------------------------------

BURDEN = atleast("1000", cost=2, income=-1)


@pytest.mark.parametrize(
    ("clause", "expected"),
    [
        (atleast("18", age=1), "fits"),
        (atleast("36", age=2), "fits"),
        (atleast("17.5", age=1), "fits"),  # of whole numbers the same
        (atmost("17", age=1), "fits"),
        (atmost("-18", age=-1), "fits"),
        (atleast("37", age=1), "column-bins"),
        (atleast("37", age=2), "column-bins"),  # from 19 on
        (atmost("18", age=1), "column-bins"),  # up to 18
        (atleast("-36", age=-1), "column-bins"),
        (atleast("121", age=1), "fits"),  # nobody
        (atleast("0", age=1), "fits"),  # everybody
        (atleast("0", cost=1, age=1000), "column-bins"),
        (atleast("0", age=1, income=1), "column-bins"),
    ],
    ids=str,
)
def test_a_threshold_cuts_a_column_only_where_the_policy_lets_groups_begin(
    world: Any, clause: dict[str, Any], expected: str
) -> None:
    assert code(ask(world, job(world, BURDEN, clause))) == expected


def test_two_slots_of_one_column_do_not_make_a_comparison_of_several_columns_pass(world: Any) -> None:
    columns = [AGE, {**AGE, "slot": "years"}, COST, INCOME]
    spec = job(world, BURDEN, atleast("37", age=1, years=1), columns=columns)
    assert code(ask(world, spec)) == "column-bins"


def test_bounds_that_cut_beside_a_group_are_a_cut_like_any_other(world: Any) -> None:
    # Clipped to 36 and 37, "at least 37" is told of who is that old.
    narrow = [{**AGE, "low": "36", "high": "37"}, COST, INCOME]
    assert code(ask(world, job(world, BURDEN, atleast("37", age=1), columns=narrow))) == "column-bins"


def test_a_column_with_decimals_and_groups_takes_no_threshold_as_amounts_are_rounded(world: Any) -> None:
    cut = {"range = [0, 2000000]": "bins = [0, 2]"}
    for decimals in (0, 2):
        spec = job(world, atleast("2", cost=1), columns=[{**COST, "decimals": decimals}])
        # With no decimals 1.7 would pass.
        assert code(ask(world, spec, edits=cut)) == "column-bins"
        assert code(ask(world, spec)) == "fits"


# -- repeated questions --------------------------------------------------------------------------------------


def answered(world: Any, spec: JobSpec, days_ago: int = 1) -> Past:
    decision = ask(world, spec)
    assert isinstance(decision, Ask), decision
    row = set_aside(spec, 1, decision.terms, world.now - timedelta(days_ago))
    return replace(row, job=JobId(sha256_digest(b"before")), charged=True)


OTHERS = {
    "threshold": lambda world: job(world, atleast("1001", cost=2, income=-1)),
    "weight": lambda world: job(world, atleast("1000", cost=3, income=-1)),
    "bounds": lambda world: job(world, BURDEN, columns=[{**COST, "high": "100000"}, INCOME]),
    "decimals": lambda world: job(world, BURDEN, columns=[{**COST, "decimals": 1}, INCOME]),
    "one clause more": lambda world: job(world, BURDEN, atleast("0", cost=1)),
    "other columns": lambda world: job(world, atleast("18", age=1)),
    "may": lambda world: job(world, BURDEN, join={"source-1": "on", "source-2": "may"}),
    "a filter": lambda world: job(
        world, BURDEN, filters=[{"source": "source-1", "slot": "state", "values": ["settled"]}]
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_no_second_threshold_over_the_same_list_halves_the_interval_of_anybodys_value(
    world: Any, name: str
) -> None:
    other = OTHERS[name](world)
    lenient = {"min_sources = 2 ": "min_sources = 1 "}
    assert code(ask(world, other, edits=lenient)) == "fits"
    assert code(ask(world, other, (answered(world, job(world, BURDEN)),), lenient)) == "differencing"


def test_filters_that_no_row_passes_both_do_not_make_room_for_a_second_threshold(world: Any) -> None:
    def of(state: str, bound: str) -> JobSpec:
        filters = [{"source": "source-1", "slot": "state", "values": [state]}]
        return job(world, atleast(bound, cost=2, income=-1), filters=filters)

    first = answered(world, of("open", "1000"))
    assert code(ask(world, of("settled", "2000"), (first,))) == "differencing"


def test_the_same_question_is_answered_again_and_after_the_guards_days_another_one_is(world: Any) -> None:
    first = answered(world, job(world, BURDEN))
    assert code(ask(world, job(world, BURDEN), (first,))) == "fits"
    again = OTHERS["threshold"](world)
    assert code(ask(world, again, (answered(world, job(world, BURDEN), days_ago=364),))) == "differencing"
    assert code(ask(world, again, (answered(world, job(world, BURDEN), days_ago=366),))) == "fits"


# -- what officers read --------------------------------------------------------------------------------------


def test_officers_read_of_every_open_column_that_other_jobs_of_the_rule_show_it(world: Any) -> None:
    both = {'job_types = ["joined-rule/1"]': 'job_types = ["joined-rule/1", "joined-table/1"]'}
    shown = {'type = "code", use = ["group"]': 'type = "code", use = ["group", "open-to-matcher"]'}
    lines = {
        "en": "may show matcher and helper of each person, without a name: street",
        "zh": "可能向匹配方和协助方逐人公开 (其不知是谁): street",
    }
    for language, line in lines.items():
        assert line in explain_policy(parsed(world, {**both, **shown}), language)
        for edits in (both, shown):
            assert line not in explain_policy(parsed(world, edits), language)
        assert "nobody sees them" not in explain_policy(parsed(world), language)
