"""What a training job may ask, and what follows of it for rounds, noise, cost and workers."""

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import train_case
from train_case import AGE, INCOME, STREET, TRAIN, train_spec

from protocols.dp.cost import Cost
from protocols.encoding import canonical_json, decode_json
from protocols.errors import DecodeError, InputError
from protocols.ids import NodeName, Role
from protocols.jobs.job_type import ExactOrNoisy, InRounds, Trains
from protocols.training.boost import Boost
from protocols.training.logistic import Logistic
from protocols.training.mlp import Mlp
from protocols.training.params import (
    BUILT_IN,
    EVALUATE,
    MAX_ASK_BYTES,
    MAX_WORDS,
    Params,
    WorkerSettings,
    state_bytes,
)
from protocols.training.params import TRAIN as TURN
from protocols.training.schema import Amount, Binned, Coded, Schema
from protocols.training.work import MAX_FRAME_BYTES, Answer, Ask, Update, encode

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[2] / "vectors/train.json").read_text("utf-8"))
PIN = {"name": "own", "distribution": "own-recipe", "version": "1.0", "digest": "sha256:" + "5" * 64}


def refusal(sources: int = 3, **params: Any) -> str:
    with pytest.raises(InputError) as caught:
        TRAIN.check(train_spec(sources, **params))
    assert caught.value.hint
    return caught.value.code


@pytest.mark.parametrize("vector", VECTORS["plans"], ids=lambda vector: str(vector["params"])[:40])
def test_rounds_noise_cost_and_settings_are_those_of_the_vectors(vector: dict[str, Any]):
    spec = train_spec(5, **vector["params"])
    TRAIN.check(spec)
    params = Params.of(spec)
    assert (params.turns, params.honest) == (vector["turns"], vector["honest"])
    budgets = {turn: params.budget_of(turn) for turn in params.turns}
    assert {t: None if b is None else str(b.amount) for t, b in budgets.items()} == vector["rho"]
    for rounds, cost in vector["cost"]:
        assert TRAIN.cost_of(spec, Role("source-1"), train_case.OPEN, rounds) == Cost.decode(cost)
    assert params.settings_bytes().decode() == vector["settings"]


@pytest.mark.parametrize(("code", "params"), VECTORS["bad_params"])
def test_params_that_cannot_be_meant_are_refused(code: str, params: dict[str, Any]):
    assert refusal(5, **params) == code


def test_the_whole_run_costs_what_the_job_says_however_rounds_are_shared_out():
    for params in ({"rho": "0.03"}, {"rho": "0.03", "test": "aggregator"}, {"rho": "0.5", "rounds": 7}):
        spec = train_spec(**params)
        whole = TRAIN.cost(spec, Role("source-2"), train_case.OPEN)
        assert whole.rho == Fraction(params["rho"])
        assert whole.queries == 1
        parts = [TRAIN.cost_of(spec, Role("source-2"), train_case.OPEN, {turn: 1}) for turn in (TURN,)]
        assert all(part.rho < whole.rho for part in parts)


def test_epsilon_buys_just_what_the_ledger_makes_of_it():
    spec = train_spec(epsilon="1", delta="0.00001")
    cost = TRAIN.cost(spec, Role("source-1"), train_case.OPEN)
    assert cost.within("approximate-dp", Fraction(1), Fraction(1, 100_000))
    assert not cost.within("approximate-dp", Fraction(998, 1000), Fraction(1, 100_000))


def test_noise_of_the_quorum_less_the_one_who_looks_is_enough():
    # Every source sees each round's state, so its own share hides nothing from it.
    assert Params.of(train_spec(5)).honest == 4
    assert Params.of(train_spec(5, quorum=3, colluding=1)).honest == 1
    assert Params.of(train_spec(2)).honest == 1
    assert refusal(2, colluding=1) == "bad-params"


def test_without_noise_three_or_more_take_part_in_every_round():
    assert refusal(2, noise="none") == "too-few-organisations"
    params = Params.of(train_spec(3, noise="none"))
    assert params.quorum == params.sources == 3
    assert params.budget_of(TURN) is params.budget_of(EVALUATE) is None
    assert refusal(4, noise="none", quorum=3) == "bad-params"


def test_one_department_alone_has_no_protocol():
    assert refusal(1) == "bad-roles"


def test_a_job_is_checked_without_drawing_the_first_weights(monkeypatch: pytest.MonkeyPatch):
    # There may be millions, and a node checks a job between two frames.
    spec = train_spec(recipe="mlp", settings={"hidden": "7"})
    made = Params.of(spec).made()
    assert isinstance(made, Mlp)
    first = made.layout(made.start())
    monkeypatch.setattr(Mlp, "start", lambda _: pytest.fail("the first weights were drawn"))
    TRAIN.check(spec)
    assert next(layout for _, layout in Params.of(spec).layouts()) == first


def test_rounds_of_trees_are_whole_trees():
    boost: dict[str, Any] = {"recipe": "boost", "noise": "none", "settings": {"depth": "3"}}
    made = Params.of(train_spec(rounds=6, **boost)).made()
    assert isinstance(made, Boost)
    assert (made.mode, made.trees, made.rounds) == ("greedy", 2, 6)
    assert refusal(rounds=7, **boost) == "bad-params"
    drawn = Params.of(train_spec(recipe="boost", settings={"batch": "4"})).made(seed=9)
    assert isinstance(drawn, Boost)
    assert (drawn.mode, drawn.trees, drawn.rounds, drawn.seed) == ("random", 24, 6, 9)


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_worker_makes_the_recipe_that_the_job_describes(name: str):
    features = [STREET, AGE] if name == "boost" else [STREET, AGE, INCOME]
    settings = {"boost": {"batch": "2"}, "mlp": {"hidden": "3"}}.get(name, {"clip": "0.5"})
    spec = train_spec(
        recipe=name,
        settings=settings,
        features=features,
        group=train_case.SEX,
        unit_rows=2,
        stop={"patience": 2, "least": "0.002"},
    )
    params = Params.of(spec)
    read = WorkerSettings.decode(params.settings_bytes())
    assert read.made(5) == params.made(5)
    assert isinstance(read.made(5), {"boost": Boost, "mlp": Mlp}.get(name, Logistic))
    assert read.schema.digest == params.schema.digest
    assert (read.groups, read.bins, read.every, read.patience, read.least) == (3, 16, 3, 2, 0.002)
    assert (read.unit_rows, read.noisy, read.test, read.holdout) == (2, True, False, 5)


def test_whatever_changes_the_computation_changes_what_workers_are_told():
    def told(**params: Any) -> bytes:
        return Params.of(train_spec(**params)).settings_bytes()

    changes: list[dict[str, Any]] = [
        {"features": [AGE, STREET]},
        {"features": [{**STREET, "codes": ["S2", "S1", "S3"]}, AGE]},
        {"features": [STREET, {**AGE, "edges": ["20", "40", "61"]}]},
        {"features": [STREET, {**AGE, "missing": "no"}]},
        {"settings": {"clip": "3", "step": "2"}},
        {"label": {"slot": "vaccinated", "positive": ["0"]}},
        {"group": train_case.SEX},
        {"rounds": 7},
        {"holdout": 4},
        {"evaluate": {"every": 2, "bins": 16, "rho": "0.002"}},
        {"unit_rows": 2},
        {"noise": "none"},
        {"stop": {"patience": 1, "least": "0"}},
        {"recipe": PIN},
    ]
    assert len({told(), *(told(**change) for change in changes)}) == len(changes) + 1


def test_a_recipe_from_elsewhere_is_named_by_its_digest_and_keeps_its_settings():
    spec = train_spec(recipe=PIN, settings={"whatever": "it likes"})
    TRAIN.check(spec)
    assert TRAIN.recipe(spec) == PIN["digest"]
    read = WorkerSettings.decode(Params.of(spec).settings_bytes())
    assert read.settings == {"whatever": "it likes"}
    assert Params.of(spec).made() is None
    with pytest.raises(TypeError):
        read.made(0)
    # A card has room for its settings: names of other forms would make one that nobody can read.
    for name in ("", "1st", "a b", "a\x1b", "a" * 64):
        assert refusal(recipe=PIN, settings={name: "x"}) == "bad-params"


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": 7},
        {"recipe": {"name": "x"}},
        {"features": [{"slot": "x"}]},
        {"features": 3},
        {"evaluate": None},
        {"stop": {"patience": 1}},
        {"stop": {"patience": 1, "least": "x"}},
    ],
    ids=str,
)
def test_settings_of_another_form_are_refused(change: dict[str, Any]):
    plain = decode_json(Params.of(train_spec()).settings_bytes(), limit=1 << 20)
    for body in (canonical_json({**plain, **change}), canonical_json([plain])):
        with pytest.raises(DecodeError) as caught:
            WorkerSettings.decode(body)
        assert caught.value.code == "bad-settings"


def test_numbers_are_kept_as_the_job_writes_them():
    params = Params.of(train_spec(features=[{"slot": "x", "edges": ["-0.1", "0.3", "1000000"]}, INCOME]))
    assert params.features == (Binned("x", (-0.1, 0.3, 1e6)), Amount("income", 0.0, 5000.0))
    assert params.columns[0].domain is not None
    assert params.columns[0].domain.bins == (Fraction(-1, 10), Fraction(3, 10), Fraction(10**6))
    assert params.asks()["features"][0]["edges"] == ["-0.1", "0.3", "1000000"]


def test_codes_are_named_to_policies_and_keep_no_row_out():
    params = Params.of(train_spec(group=train_case.SEX))
    domains = {need.slot: need.domain for need in params.columns if need.domain is not None}
    assert domains["street"].named == ("S1", "S2", "S3")
    assert domains["sex"].named == ("1", "2")
    assert domains["vaccinated"].named == ("1",)
    assert not any(domain.values for domain in domains.values())
    assert isinstance(params.group, Coded)


def test_a_column_is_not_both_what_is_seen_and_what_is_foreseen():
    spec = train_spec()
    columns = {**spec.inputs[0].columns, "vaccinated": "the_street"}
    twisted = replace(spec, inputs=(replace(spec.inputs[0], columns=columns), *spec.inputs[1:]))
    with pytest.raises(InputError) as caught:
        TRAIN.check(twisted)
    assert caught.value.code == "bad-inputs"


def test_a_node_without_the_labels_column_cannot_be_named():
    spec = train_spec()
    columns = {slot: name for slot, name in spec.inputs[0].columns.items() if slot != "vaccinated"}
    with pytest.raises(InputError) as caught:
        TRAIN.check(replace(spec, inputs=(replace(spec.inputs[0], columns=columns), *spec.inputs[1:])))
    assert caught.value.code == "bad-inputs"


def test_the_house_sees_a_type_in_rounds_that_trains_exactly_or_with_noise():
    assert isinstance(TRAIN, InRounds)
    assert isinstance(TRAIN, Trains)
    assert isinstance(TRAIN, ExactOrNoisy)
    assert not TRAIN.exact(train_spec())
    assert TRAIN.exact(train_spec(noise="none"))


def test_two_sources_of_one_organisation_are_refused():
    spec = train_spec()
    nodes = {**spec.roles, Role("source-2"): NodeName("department-1.example/b")}
    given = tuple(
        replace(each, organisation="department-1.example") if each.role == "source-2" else each
        for each in spec.inputs
    )
    with pytest.raises(InputError) as caught:
        TRAIN.check(replace(spec, roles=nodes, inputs=given))
    assert caught.value.code == "one-source-each"


CODES_900 = {"slot": "street", "codes": [f"{code}" for code in range(900)]}
SMALL: dict[str, Any] = {"rounds": 6, "evaluate": {"every": 6, "bins": 16, "rho": "0.002"}}


@pytest.mark.parametrize(
    ("fits", "beyond", "params"),
    [
        # A tree takes 13.4 KiB and a round adds 16 of them; 56 MiB are 89 rounds' for 3 departments.
        (
            {"rounds": 80},
            {"rounds": 90},
            {"recipe": "boost", "settings": {"depth": "4", "batch": "16"}, "features": [CODES_900]},
        ),
        # 24 bytes for each of 903 weights of a unit, for 6 departments: 56 MiB are 451 units.
        (
            {"settings": {"hidden": "450"}},
            {"settings": {"hidden": "512"}},
            {"recipe": "mlp", "features": [CODES_900], "sources": 6},
        ),
    ],
)
def test_a_model_that_no_frame_has_room_for_is_refused_before_anything_is_computed(fits, beyond, params):
    sources = params.pop("sources", 3)
    settled = {**SMALL, **params}
    for given in (fits, beyond):
        asked = {**settled, **given}
        asked["evaluate"] = {"every": asked["rounds"], "bins": 16, "rho": "0.002"}
        if given is beyond:
            assert refusal(sources, **asked) == "bad-params"
            continue
        TRAIN.check(train_spec(sources, **asked))
        made = Params.of(train_spec(sources, **asked)).made()
        assert made is not None
        assert sources * state_bytes(made) <= MAX_ASK_BYTES


@pytest.mark.parametrize("recipe", ["logistic", "mlp", "greedy", "random"])
def test_the_size_of_a_state_is_that_of_its_largest_on_the_way(recipe: str):
    schema = Schema((Coded("a", tuple("bcdefg")), Coded("h", ("i", "j"))))
    made: Any = {
        "logistic": Logistic(schema, rounds=2),
        "mlp": Mlp(schema, hidden=3, rounds=2),
        "greedy": Boost(schema, trees=2, depth=4),
        "random": Boost(schema, mode="random", trees=6, depth=3, batch=2),
    }[recipe]
    state, sizes = made.start(), []
    while True:
        sizes.append(sum(array.nbytes for name, array in made.arrays(state).items() if name != "round"))
        layout = made.layout(state)
        if layout is None:
            break
        state = made.advance(state, np.ones(layout.vector.size), 10)
    slack = 2 * (2 * 15 + 16 * 8 + 15 * 7)  # a tree that grows is counted with its last level's sums
    assert max(sizes) <= state_bytes(made) <= max(sizes) + (slack if recipe == "greedy" else 0)


def test_a_lead_s_question_to_all_departments_fits_into_one_frame_at_the_greatest_size():
    message = bytes(MAX_ASK_BYTES // 50)
    asked = Ask(1, "train", tuple((node, message) for node in range(2, 52)), bytes(32))
    assert len(encode(asked)) < MAX_FRAME_BYTES - 50 * 4096
    update = Update(bytes(1 << 16), "train", bytes(32), bytes(8 * MAX_WORDS), 1, 1, 1, b"")
    assert len(encode(update)) < MAX_FRAME_BYTES
    receipts = tuple((node, bytes(64 << 10)) for node in range(2, 52))
    assert len(encode(Answer(receipts, (), bytes(8 * MAX_WORDS), 1))) < MAX_FRAME_BYTES


def test_totals_that_no_lead_has_room_for_are_refused_before_anything_is_computed():
    once = {"rho": "10", "evaluate": {"every": 10_000, "bins": 16, "rho": "0.002"}, "rounds": 10_000}
    edges = [f"{edge}" for edge in range(4000)]
    # 8 bytes of 4,002 words in 10,000 rounds are 305 MiB, and of 28,008 words 2,137.
    TRAIN.check(train_spec(3, features=[{"slot": "age", "edges": edges}], **once))
    wide = [{"slot": f"x{at}", "edges": edges} for at in range(7)]
    with pytest.raises(InputError) as caught:
        Params.of(train_spec(3, features=wide, **once))
    assert caught.value.code == "bad-params"
    assert "2136 MiB" in caught.value.message
    often = {"evaluate": {"every": 1, "bins": 4096, "rho": "0.0001"}, "rho": "10"}
    grouped = {"slot": "sex", "codes": [f"{code}" for code in range(8)]}
    TRAIN.check(train_spec(3, features=[AGE], group=grouped, **often, rounds=1000))
    assert refusal(3, features=[AGE], group=grouped, **often, rounds=10_000) == "bad-params"
