"""The example policies for `train-joined/1` and `score-joined/1`: seats, noise, and two people's word."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from fractions import Fraction
from itertools import combinations
from typing import Any

import pytest

from policies.attempts import set_aside
from policies.decide import decide
from policies.decision import Ask, Decision, Permit, Refuse
from policies.explain import explain_decision, explain_policy
from policies.history import Past, Remembered
from policies.model import ActivePolicy
from policies.parse import cautions, parse_policy
from protocols.encoding import sha256_digest
from protocols.errors import PolicyInvalid
from protocols.ids import DatasetName, JobId, NodeName, Organisation, Role
from protocols.wire import JobInput, JobSpec, organisation_of

TRAIN, SCORE = "train-joined", "score-joined"
SEATS = {
    "source-1": "health",
    "source-2": "human-resources",
    "matcher": "statistics",
    "helper": "housing",
    "dealer": "education",
}
AMOUNT = {"source": "source-1", "slot": "amount", "edges": ["100000", "600000"]}
FORM = {"source": "source-1", "slot": "form", "codes": ["single", "joint"]}
INCOME = {"source": "source-2", "slot": "income", "edges": ["60000"]}
AGE = {"source": "source-1", "slot": "age", "edges": ["40", "60"]}
ASKS: Mapping[str, Mapping[str, Any]] = {
    TRAIN: {
        "columns": [AMOUNT, FORM, INCOME],
        "label": {"source": "source-1", "slot": "overdue", "positive": ["yes"]},
        "rounds": 20,
        "rho": "0.03",
        "evaluate": {"rho": "0.002"},
    },
    SCORE: {
        "columns": [{**AGE, "weights": [-900, 0, 900]}, {**INCOME, "weights": [500, -500]}],
        "model": {"bits": 10, "constant": -400},
        "at_least": "0.5",
        "step": "0.1",
        "records_from": "source-1",
        "recipient": "recipient",
    },
}
PURPOSES = {TRAIN: ("P-2026-041", "DPIA-2026-071"), SCORE: ("P-2026-031", "DPIA-2026-061")}
EXACT = {"rho": None, "evaluate": None, "noise": "none"}
ALLOWED = {'budget = "models"     ': "exact_training = true", 'max_cost = "0.05"': ""}


def text(world: Any, name: str, edits: Mapping[str, str] | None = None) -> str:
    """Return the example as health's policy, with real keys."""
    written = (world.examples / f"{name}.toml").read_text("utf-8")
    for other, ours in (
        ("loans.gz", "health.gz"),
        ("insurance.gz", "health.gz"),
        ("civil-affairs", "police"),
    ):
        written = written.replace(other, ours)
    for letter, who in (("a", "analyst"), ("d", "health dpo"), ("e", "health owner")):
        written = written.replace("sha256:" + letter * 64, world.key(who))
    return world.edited(written, edits or {})


def policy(world: Any, name: str, edits: Mapping[str, str] | None = None) -> ActivePolicy:
    found = parse_policy(text(world, name, edits).encode())
    return ActivePolicy(found.policy, found.digest)


def job(world: Any, name: str, seats: Mapping[str, str] | None = None, **params: Any) -> JobSpec:
    """Return a job over health and human resources; params of None are left out."""
    asked = {key: value for key, value in {**ASKS[name], **params}.items() if value is not None}
    placed = {**SEATS, **({"recipient": "police"} if name == SCORE else {}), **(seats or {})}
    roles = {Role(seat): NodeName(at if "/" in at else world.node(at)) for seat, at in placed.items()}
    parts = [*asked["columns"], *([asked["label"]] if "label" in asked else ()), *asked.get("filters", ())]

    def brought(role: Role) -> dict[str, str]:
        own = {part["slot"]: part["slot"] for part in parts if part["source"] == role}
        return {
            "key": "person_id",
            **own,
            **({"street": "street"} if asked.get("records_from") == role else {}),
        }

    purpose, basis = PURPOSES[name]
    to = organisation_of(roles.get(Role(asked.get("recipient", "")), world.node("data-bureau")))
    found: JobSpec = world.spec(
        job_type=f"{name}/1",
        params=asked,
        inputs=tuple(
            JobInput(
                role,
                organisation_of(roles[role]),
                DatasetName("loans" if name == TRAIN else "claims"),
                brought(role),
            )
            for role in (Role("source-1"), Role("source-2"))
        ),
        roles=roles,
        recipients=() if name == TRAIN else (Organisation(to),),
        purpose=purpose,
        legal_basis=basis,
    )
    return found


def ask(
    world: Any,
    name: str,
    spec: JobSpec,
    edits: Mapping[str, str] | None = None,
    *,
    who: tuple[str, ...] = (),
    rows: tuple[Past, ...] = (),
) -> Decision:
    active, roster = policy(world, name, edits), world.roster
    listed = {node.name for node in roster.nodes}
    more = [replace(roster.nodes[0], name=node) for node in spec.roles.values() if node not in listed]
    roster = replace(roster, nodes=(*roster.nodes, *more))
    spec = replace(spec, roster_digest=roster.digest)
    given: dict[str, Any] = {"node": world.node("health"), "roster": roster, "now": world.now}
    first = decide(active, spec, **given, history=Remembered(rows))
    if not isinstance(first, Ask) or not who:
        return first
    approvals = world.verified(active, spec, who, cost=first.terms.cost.encode())
    return decide(active, spec, **given, history=Remembered(rows), approvals=approvals)


def code(decision: Decision) -> str:
    if isinstance(decision, Refuse):
        assert all((decision.sentence, decision.zh, decision.hint, decision.hint_zh))
        return decision.code
    return "fits"


# -- seats ---------------------------------------------------------------------------------------------------

PAIRS = [(name, *pair) for name in (TRAIN, SCORE) for pair in combinations(SEATS, 2)]
PAIRS += [(SCORE, seat, "recipient") for seat in ("matcher", "helper", "dealer")]


@pytest.mark.parametrize(("name", "one", "other"), PAIRS, ids=map("-".join, PAIRS))
def test_no_two_of_those_who_bring_and_compute_are_one_organisation(
    world: Any, name: str, one: str, other: str
) -> None:
    # The department whose policy this is stays; the other has a node of its own in that house.
    stays, moves = (other, one) if other == "recipient" else (one, other)
    at = {**SEATS, "recipient": "police"}
    spec = job(world, name, {moves: f"{at[stays]}.gz.example/node-b"})
    both_bring = (one, other) == ("source-1", "source-2")
    expected = "one-list-each" if both_bring else "organisations-not-separate"
    assert code(ask(world, name, spec)) == expected


@pytest.mark.parametrize("name", [TRAIN, SCORE])
@pytest.mark.parametrize("seat", ["matcher", "helper", "dealer"])
def test_who_computes_is_not_who_asks(world: Any, name: str, seat: str) -> None:
    spec = job(world, name, {seat: "data-bureau"})
    assert code(ask(world, name, spec)) == "organisations-not-separate"


# -- two people's word ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [TRAIN, SCORE])
def test_both_officers_approve_before_anything_runs(world: Any, name: str) -> None:
    spec = job(world, name)
    asked = ask(world, name, spec)
    assert isinstance(asked, Ask), asked
    assert asked.missing == 2
    half = ask(world, name, spec, who=("dpo",))
    assert isinstance(half, Ask)
    assert half.missing == 1
    assert isinstance(ask(world, name, spec, who=("dpo", "owner")), Permit)
    for language in ("zh", "en"):
        assert explain_decision(asked, spec, language)


@pytest.mark.parametrize("approvals", [0, 1])
def test_records_about_persons_take_two_approvals_whatever_a_rule_says(world: Any, approvals: int) -> None:
    with pytest.raises(PolicyInvalid) as caught:
        policy(world, SCORE, {"approvals = 2": f"approvals = {approvals}"})
    assert caught.value.code == "too-few-approvals"


# -- records -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guard", ["min_sources", "max_rows", "max_fraction", "min_coverage"])
def test_a_rule_that_lets_records_leave_has_every_limit_on_them(world: Any, guard: str) -> None:
    written = "\n".join(line for line in text(world, SCORE).splitlines() if not line.startswith(guard))
    with pytest.raises(PolicyInvalid) as caught:
        parse_policy(written.encode())
    assert (caught.value.code, guard in caught.value.message) == ("missing-guard", True)


def test_every_record_that_may_leave_is_charged_before_it_does(world: Any) -> None:
    first = ask(world, SCORE, job(world, SCORE))
    assert isinstance(first, Ask)
    assert (first.terms.cost.rows, first.terms.cost.queries) == (2000, 1)
    assert (first.terms.constraints.max_rows, first.terms.constraints.max_fraction) == (
        2000,
        Fraction("0.05"),
    )
    few = {"limit = 8000": "limit = 3999"}
    row = set_aside(job(world, SCORE), 1, first.terms, world.now - timedelta(days=1))
    before = (replace(row, job=JobId(sha256_digest(b"before")), charged=True),)
    assert code(ask(world, SCORE, job(world, SCORE), rows=before)) == "fits"
    assert code(ask(world, SCORE, job(world, SCORE), few, rows=before)) == "budget-exceeded"


@pytest.mark.parametrize(
    "change",
    [
        {"at_least": "0.6"},
        {"step": "0.2"},
        {"model": {"bits": 10, "constant": -401}},
        {"scale": "score"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_no_second_threshold_model_or_step_is_put_to_the_same_people(world: Any, change: Any) -> None:
    first = ask(world, SCORE, job(world, SCORE))
    assert isinstance(first, Ask)
    row = set_aside(job(world, SCORE), 1, first.terms, world.now - timedelta(days=1))
    before = (replace(row, job=JobId(sha256_digest(b"before")), charged=True),)
    assert code(ask(world, SCORE, job(world, SCORE, **change), rows=before)) == "differencing"
    assert code(ask(world, SCORE, job(world, SCORE, **change))) == "fits"


@pytest.mark.parametrize(
    ("edges", "expected"), [(["40", "60"], "fits"), (["60"], "fits"), (["40", "61"], "column-bins")]
)
def test_groups_that_a_score_weighs_begin_where_the_policy_lets_them(
    world: Any, edges: list[str], expected: str
) -> None:
    age = {**AGE, "edges": edges, "weights": list(range(len(edges) + 1))}
    columns = [age, ASKS[SCORE]["columns"][1]]
    assert code(ask(world, SCORE, job(world, SCORE, columns=columns, at_least="0.4"))) == expected


# -- noise ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "edits", "expected"),
    [
        ({}, {}, "fits"),
        ({"rho": "0.06"}, {}, "cost-above-rule"),
        (EXACT, {}, "exact-training"),
        (EXACT, {'budget = "models"     ': "#", 'max_cost = "0.05"': ""}, "exact-training"),
        # Under a budget, which is there to pay for noise, jobs carry some, whatever else the rule says.
        (EXACT, {'budget = "models"     ': 'exact_training = true\nbudget = "models"'}, "noise-required"),
        (EXACT, ALLOWED, "fits"),
        ({}, ALLOWED, "no-budget"),
        ({"method": "adassp", "rounds": None}, {}, "fits"),
        ({"model": "split"}, {}, "fits"),
        ({}, {'recipes = ["logistic"]': 'recipes = ["boost"]'}, "recipe-not-allowed"),
        ({}, {'recipes = ["logistic"]': ""}, "recipe-not-allowed"),
    ],
)
def test_a_joined_model_is_made_with_noise_or_by_a_rule_that_says_without(
    world: Any, params: Any, edits: Any, expected: str
) -> None:
    assert code(ask(world, TRAIN, job(world, TRAIN, **params), edits)) == expected


def test_the_whole_run_is_paid_for_before_round_one(world: Any) -> None:
    asked = ask(world, TRAIN, job(world, TRAIN))
    assert isinstance(asked, Ask)
    assert asked.terms.cost.rho == Fraction("0.03")
    longer = ask(world, TRAIN, job(world, TRAIN, rounds=200))
    assert isinstance(longer, Ask)
    assert longer.terms.cost == asked.terms.cost


def test_who_keeps_a_part_of_the_model_reads_so_before_approving(world: Any) -> None:
    for model, english, chinese in (
        ("split", "the weights of its own columns, which its node keeps", "由本节点保存"),
        ("assembled", "a weight for each code", "每个代码的权重"),
    ):
        spec = job(world, TRAIN, model=model)
        asked = ask(world, TRAIN, spec)
        assert english in explain_decision(asked, spec, "en")
        assert chinese in explain_decision(asked, spec, "zh")


# -- whose weights -------------------------------------------------------------------------------------------

KEPT = {
    "columns": [AGE, INCOME],
    "model": {"of": "sha256:" + "7" * 64, "bits": 20, "reach": 16},
}
BOTH = 'recipes = ["logistic", "weights"]'


@pytest.mark.parametrize(
    ("params", "named", "expected"),
    [
        ({}, BOTH, "fits"),
        ({}, 'recipes = ["weights"]', "fits"),
        ({}, 'recipes = ["logistic"]', "recipe-not-allowed"),
        ({}, "#", "recipe-not-allowed"),
        (KEPT, BOTH, "fits"),
        (KEPT, 'recipes = ["logistic"]', "fits"),
        (KEPT, 'recipes = ["weights"]', "recipe-not-allowed"),
    ],
)
def test_a_rule_says_in_so_many_words_that_who_asks_may_write_the_weights(
    world: Any, params: Any, named: str, expected: str
) -> None:
    found = ask(world, SCORE, job(world, SCORE, **params), {BOTH: named})
    assert code(found) == expected
    if isinstance(found, Refuse) and not params:
        assert "weights" in found.sentence
        assert "自带评分权重" in found.zh


@pytest.mark.parametrize("named", [BOTH, 'recipes = ["logistic"]', ""])
def test_people_read_that_who_asks_chooses_the_weights(world: Any, named: str) -> None:
    parsed = parse_policy(text(world, SCORE, {BOTH: named}).encode())
    warned = [each for each in cautions(parsed) if "bring weights" in each.en]
    assert bool(warned) == ("weights" in named)
    assert all("自带权重" in each.zh for each in warned)
    # Of a score there is no noise, and no rule is asked for a budget or a word about noise.
    assert not [each for each in cautions(parsed) if "noise" in each.en]
    assert [each.en for each in cautions(parsed) if "names no recipe" in each.en] != [] or named
    english, chinese = (explain_policy(parsed, language) for language in ("en", "zh"))
    assert ("whoever asks chooses the weights" in english) == ("weights" in named)
    assert ("评分权重由申请方自定" in chinese) == ("weights" in named)
    assert "Scores may be by" in english
    assert "Models may be made by" not in english
