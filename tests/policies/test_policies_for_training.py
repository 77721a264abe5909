"""Policies for models: recipes, noise or none, what a model sees, and who may bring a public test set."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from msgspec import structs
from train_case import train_spec

from policies.decide import decide
from policies.decision import Ask, Decision, Refuse
from policies.diff import Effect, diff
from policies.explain import decision_json, explain_decision, explain_policy
from policies.model import ActivePolicy
from policies.parse import cautions, parse_policy
from protocols.errors import PolicyInvalid
from protocols.ids import DatasetName, NodeName, Role
from protocols.wire import JobSpec, organisation_of

HOME = "health"
DEPARTMENTS = ("health", "police", "housing")
DISTRICT = {"slot": "district", "codes": ["440103", "440104"]}
AGE = {"slot": "age", "edges": ["18", "60"], "missing": "yes"}
VACCINATED = {"slot": "vaccinated", "positive": ["1"]}
SEX = {"slot": "sex", "codes": ["1", "2"]}
ASKS: dict[str, Any] = {
    "features": [DISTRICT, AGE],
    "label": VACCINATED,
    "group": SEX,
    "epsilon": "0.5",
    "delta": "0.00001",
    "evaluate": {"every": 6, "rho": "0.001"},
}
PIN = {"name": "own", "distribution": "own-recipe", "version": "1.0", "digest": "sha256:" + "5" * 64}
NO_NOISE = {'budget = "models" ': "exact_training = true ", 'max_cost = "1"': ""}
EXACT = {**NO_NOISE, 'budget = "models" ': "exact_training = true\nmin_group_size = 1 "}

AGGREGATOR_RULE = """
[[rules]]
id = "R2"
requesters = ["bureau"]
purposes = ["P-2026-041"]
job_types = ["train/1"]
roles = ["aggregator"]
recipients = ["bureau"]
recipes = ["logistic"]
approvals = 0
"""


def text(world: Any, edits: Mapping[str, str] | None = None, department: str = HOME) -> str:
    """Return the example as another department's policy, with real keys."""
    written = (world.examples / "train.toml").read_text("utf-8")
    written = written.replace("disease-control.gz.example", f"{department}.gz.example")
    for letter, name in (("a", "analyst"), ("d", f"{department} dpo"), ("e", f"{department} owner")):
        written = written.replace("sha256:" + letter * 64, world.key(name))
    return world.edited(written, edits or {})


def policy(world: Any, edits: Mapping[str, str] | None = None, department: str = HOME) -> ActivePolicy:
    parsed = parse_policy(text(world, edits, department).encode())
    return ActivePolicy(parsed.policy, parsed.digest)


def job(world: Any, **params: Any) -> JobSpec:
    """Return a job over three departments, led by a fourth; params of None are left out."""
    base = train_spec(3, **{**ASKS, **params})
    roles = {Role(f"source-{n}"): world.node(d) for n, d in enumerate(DEPARTMENTS, start=1)}
    roles[Role("aggregator")] = world.node("statistics")
    inputs = tuple(
        replace(
            given,
            organisation=organisation_of(roles[given.role]),
            dataset=DatasetName("vaccinations"),
            columns={slot: slot for slot in given.columns},
        )
        for given in base.inputs
    )
    return world.spec(
        job_type="train/1",
        params=base.params,
        inputs=inputs,
        roles=roles,
        purpose="P-2026-041",
        legal_basis="DPIA-2026-071",
        recipients=(),
    )


def ask(
    world: Any,
    spec: JobSpec,
    edits: Mapping[str, str] | None = None,
    *,
    department: str = HOME,
) -> Decision:
    active = policy(world, edits, department)
    return decide(active, spec, node=world.node(department), roster=world.roster, now=world.now)


def code(decision: Decision) -> str:
    if isinstance(decision, Refuse):
        assert all((decision.sentence, decision.zh, decision.hint, decision.hint_zh))
        return decision.code
    return "fits"


def test_the_example_lets_a_model_be_made_with_noise_once_two_have_approved(world: Any):
    spec = job(world)
    decision = ask(world, spec)
    assert isinstance(decision, Ask), decision
    assert decision.missing == 2
    assert decision.terms.persons_in == (3, 3)
    (release,) = decision.terms.releases
    assert (release.name, release.output_class.value) == ("model", "C")
    for language, words in (("zh", "每一轮的模型"), ("en", "the model of every round")):
        said = explain_decision(decision, spec, language)
        assert words in said
    assert decision_json(decision, spec)["rule"] == "R1"


@pytest.mark.parametrize(
    ("params", "edits", "expected"),
    [
        ({}, {}, "fits"),
        ({"recipe": "mlp", "settings": None}, {}, "recipe-not-allowed"),
        ({"recipe": "mlp", "settings": None}, {'"boost"]': '"boost", "mlp"]'}, "fits"),
        ({"recipe": PIN, "settings": None}, {}, "recipe-not-allowed"),
        ({"recipe": PIN, "settings": None}, {'"boost"]': f'"boost", "{PIN["digest"]}"]'}, "fits"),
        # The name of a recipe from elsewhere is not what counts.
        ({"recipe": {**PIN, "name": "logistic"}, "settings": None}, {}, "recipe-not-allowed"),
        ({}, {'recipes = ["logistic", "boost"]': ""}, "recipe-not-allowed"),
    ],
)
def test_only_recipes_that_the_rule_names_make_models(world: Any, params: Any, edits: Any, expected: str):
    assert code(ask(world, job(world, **params), edits)) == expected


def test_training_without_noise_takes_a_rule_that_says_so(world: Any):
    exact = job(world, noise="none", epsilon=None, delta=None, evaluate=None)
    bare = {'budget = "models" ': "#", 'max_cost = "1"': ""}
    assert code(ask(world, exact, bare)) == "exact-training"
    # Of a code that one person has, the sum is that person's: no group of ten is kept to.
    assert code(ask(world, exact, NO_NOISE)) == "guard-min-group"
    assert code(ask(world, exact, EXACT)) == "fits"
    said = ask(world, exact, EXACT)
    assert isinstance(said, Ask)
    assert said.terms.constraints.min_group_size == 1
    for language, words in (("en", "single persons are whose codes are rare"), ("zh", "取值少见的个别人员")):
        assert words in explain_decision(said, exact, language)
    # Under a budget, which is there to pay for noise, jobs carry some, whatever else the rule says.
    both = {'budget = "models" ': 'exact_training = true\nmin_group_size = 1\nbudget = "models" '}
    assert code(ask(world, exact, both)) == "noise-required"
    assert code(ask(world, job(world), both)) == "fits"
    assert code(ask(world, job(world), EXACT)) == "no-budget"


@pytest.mark.parametrize(
    ("params", "edits", "expected"),
    [
        # Another code table than the policy's, or another order, which is the job's to choose.
        ({"features": [{**DISTRICT, "codes": ["440103", "440999"]}, AGE]}, {}, "column-values"),
        ({"features": [AGE, {**DISTRICT, "codes": ["440104", "440103"]}]}, {}, "fits"),
        ({"features": [DISTRICT, {**AGE, "edges": ["18", "61"]}]}, {}, "column-bins"),
        ({"label": {**VACCINATED, "positive": ["yes"]}}, {}, "column-values"),
        ({"group": {**SEX, "codes": ["male"]}}, {}, "column-values"),
        ({"features": [DISTRICT, {"slot": "age", "codes": ["18"]}]}, {}, "column-type"),
        ({"features": [{"slot": "district", "edges": ["1"]}, AGE]}, {}, "column-type"),
        ({}, {'age = { type = "int", use = ["train"]': 'age = { type = "int", use = ["sum"]'}, "column-use"),
        ({}, {'["district", "age", "visits", "sex", "vaccinated"]': '["district", "sex", "vaccinated"]'},
         "column-not-allowed"),
        ({"features": [AGE], "group": None, "filters": [{"slot": "district", "values": ["440103"]}]}, {},
         "fits"),
        ({"persons_in": 1}, {}, "fits"),
        ({"persons_in": 1}, {"persons_in = 1  ": "persons_in = 2  "}, "persons-in"),
        ({"epsilon": "1.5"}, {}, "cost-above-rule"),
        ({"epsilon": "3"}, {'max_cost = "1"': ""}, "budget-exceeded"),
    ],
    ids=str,
)  # fmt: skip
def test_what_a_model_sees_is_what_the_policy_lists(world: Any, params: Any, edits: Any, expected: str):
    assert code(ask(world, job(world, **params), edits)) == expected


def test_listing_codes_keeps_no_row_out_so_a_rule_for_some_rows_wants_a_filter(world: Any):
    only = {"approvals = 2\n": 'only = { district = ["440103"] }\napprovals = 2\n'}
    seen = {"features": [{**DISTRICT, "codes": ["440103"]}, AGE]}
    assert code(ask(world, job(world, **seen), only)) == "outside-scope"
    kept = {"filters": [{"slot": "district", "values": ["440103"]}]}
    assert code(ask(world, job(world, **seen, **kept), only)) == "fits"


def with_test_set(world: Any) -> JobSpec:
    spec = job(world, test="aggregator", evaluate=None)
    (public, *_) = (given for given in train_spec(3, **ASKS | {"test": "aggregator", "evaluate": None}).inputs
                    if given.role == "aggregator")  # fmt: skip
    brought = replace(
        public,
        organisation=organisation_of(world.node("statistics")),
        dataset=DatasetName("vaccinations"),
        columns={slot: slot for slot in public.columns},
    )
    return replace(spec, inputs=(*(i for i in spec.inputs if i.role != "aggregator"), brought))


PUBLIC = {
    'roles = ["source"] ': 'roles = ["aggregator"] ',
    'personal = "sensitive"\nunit = { column = "person_id", max_rows = 1 }': 'personal = "none"\n#',
    'budget = "models" ': "#",
    'max_cost = "1"': "",
    "persons_in = 1  ": "# ",
}


def without_budget(written: str) -> str:
    start, end = written.index("[budgets.models]"), written.index("[quotas.questions]")
    return written[:start] + written[end:]


def test_an_aggregator_brings_public_data_and_nothing_else(world: Any):
    spec = with_test_set(world)
    parsed = parse_policy(without_budget(text(world, PUBLIC, "statistics")).encode())
    active = ActivePolicy(parsed.policy, parsed.digest)
    common = {"node": world.node("statistics"), "roster": world.roster, "now": world.now}
    decision = decide(active, spec, **common)
    assert isinstance(decision, Ask), decision
    # Nobody is in it: no group is told from another, and no noise is paid for.
    assert decision.terms.query is None
    assert not decision.terms.cost.private_loss
    # Nobody is in it, so nobody in several departments either, whatever the job says of those.
    fewer = replace(spec, params={**spec.params, "persons_in": 1})
    assert isinstance(decide(active, fewer, **common), Ask)
    assert "one person being in" not in explain_policy(parsed, "en")
    # The same data, called personal: the policy itself is refused, and were it not, so would be the job.
    still = {old: new for old, new in PUBLIC.items() if "sensitive" not in old}
    personal = without_budget(text(world, still, "statistics"))
    with pytest.raises(PolicyInvalid) as caught:
        parse_policy(personal.encode())
    assert caught.value.code == "neutral-with-dataset"
    datasets = {
        name: structs.replace(each, personal="personal") for name, each in active.policy.datasets.items()
    }
    forged = ActivePolicy(structs.replace(active.policy, datasets=datasets), active.digest)
    assert code(decide(forged, spec, **common)) == "not-public"


def test_an_aggregator_without_data_has_a_rule_of_its_own_that_names_the_recipe(world: Any):
    base = text(world, department="statistics")
    start, end = base.index("[[rules]]"), base.index("[approvers.dpo]")
    for recipes, expected in (("logistic", "fits"), ("boost", "recipe-not-allowed")):
        written = base[:start] + AGGREGATOR_RULE.replace("logistic", recipes).lstrip() + "\n" + base[end:]
        parsed = parse_policy(written.encode())
        active = ActivePolicy(parsed.policy, parsed.digest)
        decision = decide(
            active, job(world), node=world.node("statistics"), roster=world.roster, now=world.now
        )
        assert code(decision) == expected
    # What everybody agrees on is the strictest of all: whoever leads says, too, that no group is too small.
    exact = job(world, noise="none", epsilon=None, delta=None, evaluate=None)
    for more, expected in (("", "guard-min-group"), ("exact_training = true\nmin_group_size = 1\n", "fits")):
        written = base[:start] + AGGREGATOR_RULE.lstrip() + more + "\n" + base[end:]
        parsed = parse_policy(written.encode())
        assert not [caution for caution in cautions(parsed) if "read off" in caution.en]
        active = ActivePolicy(parsed.policy, parsed.digest)
        said = decide(active, exact, node=world.node("statistics"), roster=world.roster, now=world.now)
        assert code(said) == expected


@pytest.mark.parametrize("role", ["source-1", "source-2", "source-3"])
def test_the_aggregator_is_none_of_the_sources(world: Any, role: str):
    spec = job(world)
    part = NodeName(f"{organisation_of(spec.roles[Role(role)])}/node-b")
    extra = replace(world.roster.nodes[0], name=part)
    roster = replace(world.roster, nodes=(*world.roster.nodes, extra))
    moved = replace(spec, roles={**spec.roles, Role("aggregator"): part}, roster_digest=roster.digest)
    decision = decide(policy(world), moved, node=world.node(HOME), roster=roster, now=world.now)
    assert code(decision) == "organisations-not-separate"


def test_the_aggregator_is_not_the_requesters(world: Any):
    spec = job(world)
    moved = replace(spec, roles={**spec.roles, Role("aggregator"): world.node("data-bureau")})
    assert code(ask(world, moved)) == "organisations-not-separate"


@pytest.mark.parametrize(
    ("edits", "said"),
    [
        ({}, []),
        ({'recipes = ["logistic", "boost"]': ""}, ["names no recipe"]),
        ({'budget = "models" ': "#", 'max_cost = "1"': ""}, ["names no budget to pay for noise"]),
        ({'budget = "models" ': 'exact_training = true\nbudget = "models" '}, ["has no effect"]),
        (NO_NOISE, ["refused unless the rule states min_group_size = 1"]),
        (EXACT, ["can read off what single persons are"]),
    ],
)
def test_a_rule_that_lets_nothing_be_trained_is_noticed(world: Any, edits: Any, said: list[str]):
    found = cautions(parse_policy(text(world, edits).encode()))
    assert [part for part in said if any(part in caution.en for caution in found)] == said
    assert len(found) == len(said)
    assert all(caution.zh for caution in found)


def test_people_read_by_which_recipes_and_whether_without_noise(world: Any):
    parsed = parse_policy(text(world, EXACT).encode())
    assert "可使用的训练方法: logistic, boost" in explain_policy(parsed, "zh")
    assert "also without noise: others can read off" in explain_policy(parsed, "en")
    assert "可不加噪: 他方可读出取值少见的个别人员的信息" in explain_policy(parsed, "zh")
    assert "with noise only" in explain_policy(parse_policy(text(world).encode()), "en")


def test_two_versions_are_told_apart_by_recipe_and_noise(world: Any):
    old = parse_policy(text(world).encode()).policy
    new = parse_policy(
        text(world, {'["logistic", "boost"]': '["logistic", "mlp"]\nexact_training = true'}).encode()
    ).policy
    found = {(change.clause, change.effect) for change in diff(old, new)}
    assert {
        ("rules.R1.recipes", Effect.LOOSER),
        ("rules.R1.recipes", Effect.TIGHTER),
        ("rules.R1.exact_training", Effect.LOOSER),
    } <= found
    assert ("rules.R1.exact_training", Effect.TIGHTER) in {(c.clause, c.effect) for c in diff(new, old)}
    # A group of one takes the default's place: that lets more through, as no other size in a rule does.
    fewer = parse_policy(text(world, NO_NOISE).encode()).policy
    alone = parse_policy(text(world, EXACT).encode()).policy
    assert [(c.clause, c.effect) for c in diff(fewer, alone)] == [("rules.R1.min_group_size", Effect.LOOSER)]
    assert [(c.clause, c.effect) for c in diff(alone, fewer)] == [("rules.R1.min_group_size", Effect.TIGHTER)]


def test_a_group_of_one_is_for_exact_sums_of_rounds_and_for_nothing_else(world: Any):
    kinds = '["train/1"]'
    for edits in (
        {"approvals = 2\n": "min_group_size = 1\napprovals = 2\n"},
        {**EXACT, kinds: '["train/1", "train-joined/1"]'},
        {**EXACT, kinds: '["train/1", "table/1"]'},
        {**NO_NOISE, 'budget = "models" ': "exact_training = true\nmin_group_size = 2 "},
    ):
        with pytest.raises(PolicyInvalid) as caught:
            parse_policy(text(world, edits).encode())
        assert caught.value.code == "group-too-small"


@pytest.mark.parametrize("name", ["Logistic", "sha256:55", "a b", ""])
def test_a_recipe_is_a_name_or_a_whole_digest(world: Any, name: str):
    with pytest.raises(PolicyInvalid) as caught:
        parse_policy(text(world, {'["logistic", "boost"]': f'["{name}"]'}).encode())
    assert caught.value.code == "policy-invalid"
