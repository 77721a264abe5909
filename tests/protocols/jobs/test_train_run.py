"""A training job from rows to a model with its card, and what each coalition can work out on the way."""

import random
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from lookup_case import MemoryShelf
from train_case import AGE, OPEN, SEX, STREET, TRAIN, Attempt, prepared, rows_of, train_spec

from protocols.dp.mechanism import Vector, calibrate
from protocols.errors import InputError, ProtocolAborted
from protocols.ids import Role
from protocols.jobs.job_type import AGGREGATOR, source
from protocols.jobs.train import plan_of
from protocols.training.model import files_of, read_model
from protocols.training.params import Params
from protocols.training.parties import CHECKS, MASKED, stream
from protocols.training.schema import Rows
from protocols.training.work import WorkerGone
from protocols.wire import Constraints, InputSummary

SOURCES = (source(1), source(2), source(3))


def table(number: int, count: int = 120) -> list[dict[str, Any]]:
    """Return a department's rows; labels follow street and age."""
    rng = random.Random(number)
    rows = []
    for n in range(count):
        street, age = rng.choice(["S1", "S2", "S3", "S8"]), rng.choice([None, 10, 30, 50, 70])
        chance = 0.15 + 0.5 * (street == "S2") + 0.3 * (age == 70)
        rows.append(
            {
                "unit": f"{number}-{n}",
                "street": street,
                "age": age,
                "vaccinated": str(int(rng.random() < chance)),
                "sex": rng.choice("12"),
            }
        )
    return rows


TABLES = {role: table(number) for number, role in enumerate(SOURCES, start=1)}


def central(attempt: Attempt) -> Any:
    """Return the state that the recipe comes to on everybody's rows in one place."""
    params = attempt.params
    parts = []
    for found in attempt.prepared.values():
        columns = found.columns()
        parts.append(rows_of(params, columns).take(columns["held"] == 0))
    whole = Rows(*(np.concatenate([getattr(p, n) for p in parts]) for n in ("codes", "amounts", "labels")))
    made: Any = params.made()
    plan = plan_of(attempt.setup, params)
    state = made.start()
    while made.layout(state):
        total = made.contribute(state, whole).astype(float)
        state = made.advance(state, total, plan.rows_of("train", SOURCES))
    return made, state


def test_without_noise_the_model_is_that_of_all_rows_in_one_place():
    attempt = Attempt(train_spec(noise="none", group=SEX), TABLES)
    content = attempt.released()
    model = read_model(files_of(content.table.columns))
    made, state = central(attempt)
    assert np.array_equal(model.arrays["weights"], made.arrays(state)["weights"])
    assert model.card.privacy.notion == "none"
    assert model.card.metrics is not None
    assert model.card.metrics.on == "held-out"
    assert model.card.training.rounds == {"train": 6, "evaluate": 2}
    assert content.facts["rounds"] == 6


def test_with_noise_every_round_is_recorded_before_it_leaves_and_the_card_says_what_it_cost():
    attempt = Attempt(train_spec(rho="4", evaluate={"every": 3, "bins": 16, "rho": "1"}), TABLES)
    content = attempt.released()
    card = read_model(files_of(content.table.columns)).card
    assert card.privacy.notion == "zcdp"
    assert Fraction(card.privacy.rho) == 4
    assert card.metrics is None or card.metrics.on == "held-out, noisy"
    for role in SOURCES:
        facts = [fact for who, fact in attempt.recorded if who == role]
        assert [fact["turn"] for fact in facts] == ["train", "train", "train", "evaluate"] * 2
        assert all(fact["event"] == "training-round" and fact["sources"] == 3 for fact in facts)
        numbers = [fact["round"] for fact in facts]
        assert numbers == sorted(set(numbers))
    # What was recorded is what is charged: the whole run, and not a bit more.
    assert TRAIN.cost(attempt.spec, SOURCES[0], OPEN) == TRAIN.cost_of(
        attempt.spec, SOURCES[0], OPEN, {"train": 6, "evaluate": 2}
    )


def masked(attempt: Attempt) -> dict[int, dict[Role, np.ndarray]]:
    """Return the vectors that the aggregator receives, round by round, without checks."""
    found: dict[int, dict[Role, np.ndarray]] = {}
    for message in attempt.sent:
        for number in range(1, 40):
            if message.round == stream(number, MASKED):
                words = np.frombuffer(message.body, "<u8")
                found.setdefault(number, {})[message.sender] = words[CHECKS:]
    return found


def test_the_aggregator_sees_sums_and_of_each_department_words_that_look_random():
    attempt = Attempt(train_spec(noise="none"), TABLES)
    attempt.released()
    vectors = masked(attempt)
    assert len(vectors) == 8
    made: Any = attempt.params.made()
    first = vectors[1]
    parts = {}
    for role, found in attempt.prepared.items():
        columns = found.columns()
        rows = rows_of(attempt.params, columns).take(columns["held"] == 0)
        parts[role] = made.contribute(made.start(), rows)
    total = np.sum(list(first.values()), axis=0, dtype=np.uint64).view(np.int64)
    assert np.array_equal(total, sum(parts.values()))  # (1) the sum is what the table of coalitions says
    for role, words in first.items():
        assert not np.array_equal(words.view(np.int64), parts[role])
        # (2) A part is of some 2^24 at most; masked words lie anywhere in 64 bits.
        assert (words >> np.uint64(40)).astype(bool).mean() > 0.9
    # (3) All but one, together with the aggregator, are left with what the last one adds: so they are apart.
    rest = total - sum(parts[role] for role in SOURCES[:2])
    assert np.array_equal(rest, parts[SOURCES[2]])
    assert frozenset(SOURCES[:2]) in TRAIN.learns(attempt.spec)


def test_a_source_with_two_states_works_out_the_rounds_total_and_the_others_part():
    attempt = Attempt(train_spec(noise="none", settings={"momentum": "0", "step": "1"}), TABLES)
    attempt.released()
    made: Any = attempt.params.made()
    plan = plan_of(attempt.setup, attempt.params)
    parts = []
    for found in attempt.prepared.values():
        columns = found.columns()
        parts.append(
            made.contribute(made.start(), rows_of(attempt.params, columns).take(columns["held"] == 0))
        )
    after = made.advance(made.start(), sum(parts).astype(float), plan.rows_of("train", SOURCES))
    moved = -after.weights / (1 << 20) * plan.rows_of("train", SOURCES) * (1 << 16)
    others = moved - parts[0]
    assert np.abs(others - (parts[1] + parts[2])).max() < 1 << 10  # to the grid of the weights
    keys = {each.key for each in TRAIN.learns(attempt.spec)[frozenset({SOURCES[0]})]}
    assert "round-models" in keys


def test_no_frame_holds_anything_of_a_row():
    canary = "CANARY-7f3a"
    rows = {role: [*rows, {**rows[0], "unit": canary, "street": canary}] for role, rows in TABLES.items()}
    attempt = Attempt(train_spec(), rows)
    attempt.released()
    bodies = b"".join(message.body for message in attempt.sent)
    assert canary.encode() not in bodies
    assert b"1-17" not in bodies
    columns = attempt.prepared[SOURCES[0]].columns()
    for name in ("f:street", "f:age", "label"):
        assert columns[name].tobytes() not in bodies


def test_noise_is_that_of_the_job_and_differs_from_run_to_run():
    def first_total(seed: object) -> np.ndarray:
        attempt = Attempt(train_spec(), TABLES, seed=seed)
        attempt.released()
        return np.sum(list(masked(attempt)[1].values()), axis=0, dtype=np.uint64).view(np.int64)

    assert not np.array_equal(first_total(1), first_total(2))


def test_a_lead_that_lost_its_records_ends_the_attempt_and_publishes_nothing():
    attempt = Attempt(train_spec(), TABLES, used={"train": 4, "evaluate": 1})
    with pytest.raises(ProtocolAborted) as caught:
        attempt.released()
    assert caught.value.code == "rounds-lost"
    assert attempt.recorded == []


def test_a_party_needs_the_rows_that_its_builder_made():
    attempt = Attempt(train_spec(), TABLES)
    other = prepared(train_spec(rounds=7), TABLES[SOURCES[0]])
    for wrong in (None, other):
        with pytest.raises(TypeError):
            TRAIN.working(
                SOURCES[0],
                attempt.setup,
                wrong,
                bytes,
                used={},
                shelf=None,  # type: ignore[arg-type]  # never reached
                workers=attempt.worker,
            )


def test_a_dataset_far_larger_than_its_catalogue_says_is_refused():
    attempt = Attempt(train_spec(), TABLES)
    own = attempt.setup.inputs[SOURCES[0]]
    setup = replace(attempt.setup, inputs={**attempt.setup.inputs, SOURCES[0]: replace(own, rows=50)})
    with pytest.raises(InputError) as caught:
        TRAIN.working(
            SOURCES[0],
            setup,
            attempt.prepared[SOURCES[0]],
            bytes,
            used={},
            shelf=None,  # type: ignore[arg-type]  # never reached
            workers=attempt.worker,
        )
    assert caught.value.code == "more-rows-than-published"


def test_a_filter_finds_out_by_no_refusal_how_many_rows_it_keeps():
    def said(values: list[str]) -> str:
        attempt = Attempt(train_spec(filters=[{"slot": "street", "values": values}]), TABLES)
        published = {role: replace(each, rows=100) for role, each in attempt.setup.inputs.items()}
        with pytest.raises(InputError) as caught:
            TRAIN.working(
                SOURCES[0],
                replace(attempt.setup, inputs=published),
                attempt.prepared[SOURCES[0]],
                bytes,
                used={},
                shelf=None,  # type: ignore[arg-type]  # never reached
                workers=attempt.worker,
            )
        return caught.value.code + caught.value.message

    everybody, few = ["S1", "S2", "S3", "S8"], ["S8"]
    assert said(everybody) == said(few)
    assert said(few).startswith("more-rows-than-published")


# -- who learns what -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("test", [None, "aggregator"], ids=["held out", "public test set"])
@pytest.mark.parametrize(
    ("sources", "quorum", "colluding"), [(5, 5, 0), (5, 4, 1), (5, 2, 0), (6, 4, 0), (4, 4, 2)]
)
def test_what_departments_learn_together_is_what_the_noise_they_do_not_know_leaves(
    sources: int, quorum: int, colluding: int, test: str | None
):
    spec = train_spec(sources, rho="0.5", quorum=quorum, colluding=colluding, test=test)
    params = Params.of(spec)
    table = {members: {each.key: each for each in said} for members, said in TRAIN.learns(spec).items()}
    vector = Vector("update", 100, 1 << 20, 1 << 32)
    budget = params.budget_of("train")
    assert budget is not None
    (noise,), _ = calibrate([vector], budget, honest=params.honest, contributors=sources)
    for count in range(1, sources):
        # (1) What is left of the sum's noise once `count` shares are known: the others of a smallest set
        # that all of them are in. (2) With that noise alone, a round's loss is so many times as large.
        left = max(quorum - count, 1)
        times = Fraction(params.honest, left)
        dearer = replace(budget, amount=budget.amount * times)
        (same,), _ = calibrate([vector], dearer, honest=left, contributors=sources)
        assert float(same.spread / same.scale**2) == pytest.approx(float(noise.spread / noise.scale**2), 1e-6)
        # (3) The table says so of every such coalition, with or without the aggregator.
        for chosen in combinations(params.owners, count):
            for members in (frozenset(chosen), frozenset({*chosen, AGGREGATOR})):
                parts = [said for listed, said in table.items() if listed <= members]
                known = {key: each for said in parts for key, each in said.items()}
                text = known["departments-together"].en
                if params.honest == 1:
                    assert times <= 1
                    assert "one is enough for the loss that is stated" in text
                    continue
                assert f"the noise of {quorum} - k of them or more, and of one at the least" in text
                assert f"ρ = 0.5, by {params.honest}/({quorum} - k)" in text
                assert f"from k = {quorum - 1} on by {params.honest};" in text
                assert f"up to k = {colluding + 1} it is no more than stated" in text
                assert (times <= 1) == (count <= colluding + 1)


def test_without_noise_any_two_departments_have_the_exact_sum_of_the_rest_and_rare_codes_single_persons():
    table = {members: {each.key: each for each in said} for members, said in
             TRAIN.learns(train_spec(5, noise="none")).items()}  # fmt: skip
    for number in range(1, 6):
        said = table[frozenset({source(number)})]
        assert "exact sum of all other departments" in said["departments-together"].en
        assert "single persons" in said["round-models"].en
    sums = table[frozenset({AGGREGATOR})]["round-sums"]
    assert "single persons are whose codes are rare" in sums.en
    assert "dishonest can give out models whose next sums tell of any single row" in sums.en
    assert "不诚实的汇总方" in sums.zh


def test_of_two_departments_nobody_is_left_to_be_told_of_by_two():
    said = TRAIN.learns(train_spec(2))
    assert "departments-together" not in {each.key for group in said.values() for each in group}


def test_a_round_without_noise_reads_off_the_label_of_whoever_has_a_code_alone():
    """What `guard-min-group` is there for: one honest round, and the model says it."""
    codes = [f"S{number}" for number in range(200)]
    rng = random.Random(3)

    def people(number: int) -> list[dict[str, Any]]:
        return [
            {"unit": f"{number}-{n}", "street": rng.choice(codes), "vaccinated": str(n % 2)}
            for n in range(80)
        ]

    spec = train_spec(
        features=[{"slot": "street", "codes": codes}],
        rounds=1,
        noise="none",
        evaluate={"bins": 16},
        settings={"step": "1024", "momentum": "0"},
    )
    attempt = Attempt(spec, {role: people(number) for number, role in enumerate(SOURCES)})
    weights = read_model(files_of(attempt.released().table.columns)).arrays["weights"]
    trained = []
    for found in attempt.prepared.values():
        columns = found.columns()
        own = zip(columns["f:street"], columns["label"], columns["held"], strict=True)
        trained += [(code, label) for code, label, held in own if not held]
    alone = [(c, y) for c, y in trained if sum(code == c for code, _ in trained) == 1]
    assert len(alone) > 20
    assert all((weights[code] > 0) == (label == 1) for code, label in alone)


def inputs_of(rows: int = 100, rules: Mapping[Role, str] = {}) -> dict[Role, InputSummary]:
    zero = "sha256:" + "0" * 64
    return {
        role: InputSummary(rows, rows, rows, zero, "2026-01-01", zero, rules.get(role, "1"))  # type: ignore[arg-type]
        for role in SOURCES
    }


def test_without_noise_nobody_may_ask_for_groups_of_several_persons():
    exact, noisy = train_spec(noise="none"), train_spec()
    with pytest.raises(ProtocolAborted) as caught:
        TRAIN.check_inputs(exact, inputs_of(), Constraints(min_group_size=3))
    assert caught.value.code == "guard-min-group"
    assert "min_group_size = 1" in caught.value.hint
    TRAIN.check_inputs(exact, inputs_of(), Constraints(min_group_size=1))
    TRAIN.check_inputs(exact, inputs_of(), Constraints())
    TRAIN.check_inputs(noisy, inputs_of(), Constraints(min_group_size=1000))


@pytest.mark.parametrize(
    ("inputs", "limits", "code"),
    [
        ({source(1): inputs_of()[source(1)]}, OPEN, "guard-inputs"),
        ({**inputs_of(), AGGREGATOR: inputs_of()[source(1)]}, OPEN, "guard-inputs"),
        (inputs_of(rules={source(2): "2"}), OPEN, "guard-rules"),
        (inputs_of(1 << 25), OPEN, "guard-rows"),
        (inputs_of(), Constraints(min_organisations=4), "guard-organisations"),
        (inputs_of(), Constraints(min_sources=2), "guard-sources"),
    ],
)
def test_guards_hold_before_anything_leaves(inputs: Any, limits: Constraints, code: str):
    with pytest.raises(ProtocolAborted) as caught:
        TRAIN.check_inputs(train_spec(), inputs, limits)
    assert caught.value.code == code


def test_means_are_of_published_rows_whatever_a_department_really_has():
    attempt = Attempt(train_spec(unit_rows=1), TABLES)
    few = replace(attempt.setup.inputs[SOURCES[0]], rows=500, distinct_keys=90)
    setup = replace(attempt.setup, inputs={**attempt.setup.inputs, SOURCES[0]: few})
    plan = plan_of(setup, attempt.params)
    assert plan.rows == {SOURCES[0]: 90, SOURCES[1]: 120, SOURCES[2]: 120}
    assert plan.rows_of("train", SOURCES) == 330 - 66
    assert plan.most_rows[SOURCES[0]] == 516
    assert plan_of(setup, Params.of(train_spec(unit_rows=9))).rows[SOURCES[0]] == 500


def test_the_plans_of_two_jobs_differ_wherever_features_or_their_order_do():
    attempt = Attempt(train_spec(), TABLES)
    turned = train_spec(features=[AGE, STREET])
    plans = [
        replace(plan_of(attempt.setup, Params.of(spec)), job=bytes(32))
        for spec in (
            attempt.spec,
            turned,
            train_spec(features=[{**STREET, "codes": ["S3", "S2", "S1"]}, AGE]),
        )
    ]
    assert len({plan.digest for plan in plans}) == 3


def test_a_worker_that_cannot_be_started_ends_the_party():
    attempt = Attempt(train_spec(), TABLES)

    def none(_: object) -> Any:
        raise WorkerGone("no process", code="worker-gone")

    party = TRAIN.working(
        SOURCES[0],
        attempt.setup,
        attempt.prepared[SOURCES[0]],
        bytes,
        used={},
        shelf=MemoryShelf(),
        workers=none,
    )
    with pytest.raises(WorkerGone):
        party.start()
