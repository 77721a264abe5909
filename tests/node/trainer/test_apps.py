"""Flower apps made of recipes: the model of all rows together, and figures that are the rows' own."""

from secrets import token_bytes
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flwr", reason="the extra `train` is not installed")

from flwr.supercore.task_identity import TaskIdentity
from safetensors.numpy import load
from trainer_case import RUN, SEED
from trainer_case import settings_of as settings_with

from node.trainer import apps
from node.trainer.contributing import Contribution
from node.trainer.leading import Lead
from node.trainer.rows import Rows as Shared
from protocols.errors import DecodeError, InputError, ProtocolAborted
from protocols.training.params import WorkerSettings
from protocols.training.run import run
from protocols.training.scores import auc_error
from protocols.training.work import LEAD, Answer, Ask, Begin, Done, Handle

CODED = [
    {"slot": "age", "edges": ["20.0", "40.0", "60.0"], "missing": False},
    {"slot": "district", "codes": ["east", "west", "north"]},
    {"slot": "sex", "codes": ["1", "2"]},
]
AMOUNT = [*CODED, {"slot": "income", "low": "0.0", "high": "100.0"}]
GROUP = {"slot": "sex", "codes": ["1", "2"]}


def settings_of(recipe: str, features: list[dict[str, Any]], **changes: Any) -> bytes:
    return settings_with(recipe, features, **{"group": GROUP, **changes})


@pytest.fixture(autouse=True)
def _identity():
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, RUN, LEAD


def people(count: int, seed: int, *, amount: bool = False) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    codes = {
        name: draw.integers(0, width, count).astype("<u2")
        for name, width in (("age", 4), ("district", 4), ("sex", 3))
    }
    odds = codes["age"] - 1.5 + 2.0 * (codes["district"] == 1)
    columns = {f"f:{name}": values for name, values in codes.items()}
    if amount:
        columns["f:income"] = draw.integers(0, 257, count).astype("<u2")
    return {
        **columns,
        "label": (draw.random(count) < 1 / (1 + np.exp(-odds))).astype("u1"),
        "group": codes["sex"],
        "held": (draw.random(count) < 0.2).astype("u1"),
    }


class Played:
    """A lead and nodes in one process; `absent` gives the nodes that fail in an exchange."""

    def __init__(
        self,
        recipe: str,
        tables: list[dict[str, np.ndarray]],
        settings: bytes,
        *,
        test=None,
        absent=lambda _ask: (),
        code="node-gone",
    ) -> None:
        self.nodes, self.settings, self.recipe = tuple(range(2, 2 + len(tables))), settings, recipe
        self.asks: list[Ask] = []
        self.totals: list[np.ndarray] = []
        shared = [Shared(table) for table in tables]
        parts = {
            node: Contribution(self.begin("contribute", node, rows.columns), apps.BUILT_IN, rows.fd)
            for node, rows in zip(self.nodes, shared, strict=True)
        }
        trained = {
            node: int((table["held"] == 0).sum()) for node, table in zip(self.nodes, tables, strict=True)
        }

        def ask(question: Ask) -> Answer:
            self.asks.append(question)
            out = set(absent(question))
            updates = {
                node: parts[node].handle(Handle(question.exchange, body))
                for node, body in question.messages
                if node not in out
            }
            for update in updates.values():
                assert update.digest == question.digest
                assert len(update.words) <= 8 * self.words[update.turn]
            receipts = tuple((node, update.receipt) for node, update in updates.items())
            failed = tuple((node, code) for node in sorted(out))
            if len(out) == len(parts):
                return Answer(receipts, failed, None, 0)
            total = np.sum([np.frombuffer(update.words, "<i8") for update in updates.values()], axis=0)
            self.totals.append(total)
            return Answer(
                receipts, failed, total.astype("<f8").tobytes(), sum(trained[node] for node in updates)
            )

        public = None if test is None else Shared(test)
        columns = () if public is None else public.columns
        lead = Lead(
            self.begin("lead", LEAD, columns), apps.BUILT_IN, ask, -1 if public is None else public.fd
        )
        self.words = lead.words
        assert all(part.words == lead.words for part in parts.values())
        self.done: Done = lead.run()
        self.arrays = load(self.done.model)
        for rows in (*shared, *([] if public is None else [public])):
            rows.close()

    def begin(self, role: Any, node: int, columns) -> Begin:
        return Begin(role, self.recipe, self.settings, RUN, node, self.nodes, SEED, columns)


def central(settings: bytes, tables):
    """The recipe over all rows that are trained on, in one place, and the rows that are held out."""
    read = WorkerSettings.decode(settings)
    recipe = read.made(apps.seed_of(SEED))
    joined = {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
    data = apps.Data.of(read, joined)
    return recipe, run(recipe, [data.trained], token_bytes).state, data


CASES = {
    "logistic": ("logistic", CODED, {"clip": "1"}, 6),
    "logistic, amounts": ("logistic", AMOUNT, {"clip": "1.5", "ridge": "0.01"}, 4),
    "boost": ("boost", CODED, {"depth": "3", "fewest": "5"}, 6),
    "boost, random": ("boost", CODED, {"mode": "random", "depth": "3", "batch": "2"}, 3),
}


@pytest.mark.parametrize("case", CASES)
def test_nodes_of_uneven_size_train_the_model_of_all_rows_together(case):
    name, features, own, rounds = CASES[case]
    settings = settings_of(name, features, settings=own, rounds=rounds)
    tables = [people(count, seed, amount=features is AMOUNT) for seed, count in enumerate((300, 40, 7))]
    played = Played(name, tables, settings)
    recipe, state, _ = central(settings, tables)
    expected = recipe.arrays(state)
    assert set(played.arrays) == set(expected)
    assert all(np.array_equal(played.arrays[key], expected[key]) for key in expected)


def test_figures_are_those_of_rows_that_were_held_out():
    settings = settings_of("logistic", CODED, rounds=20, evaluate={"every": 8, "bins": 64, "test": False})
    tables = [people(2000, 1), people(900, 2)]
    played = Played("logistic", tables, settings)
    recipe, state, data = central(settings, tables)
    held = data.rows.take(data.held)
    margins = recipe.scores(state, held)
    exact = apps.exact(margins, held.labels)
    assert played.done.curves["round"] == [8, 16, 20]
    assert [ask.turn for ask in played.asks].count("evaluate") == 3
    table = apps.measured_table(
        apps.bins_of(WorkerSettings.decode(settings)), np.array(played.done.curves["histogram"])
    )
    assert table.sum() == len(held)
    assert abs(played.done.facts["auc"] - exact["auc"]) <= auc_error(table)
    assert abs(played.done.facts["loss"] - exact["loss"]) < 0.01
    assert played.done.facts["auc"] > 0.7
    assert played.done.curves["auc"][-1] == played.done.facts["auc"]


def test_figures_are_shown_from_the_first_evaluation_on():
    settings = settings_of("logistic", CODED, rounds=3, evaluate={"every": 1, "bins": 8, "test": False})
    played = Played("logistic", [people(900, 1)], settings)
    shown = [sorted(ask.facts) for ask in played.asks]
    assert shown == [[], [], *[["auc", "loss"]] * 4]


@pytest.mark.parametrize("noisy", [False, True])
def test_exact_figures_of_few_persons_are_in_no_curve_and_are_not_shown(noisy):
    settings = settings_of(
        "logistic", CODED, rounds=3, noisy=noisy, evaluate={"every": 1, "bins": 8, "test": False}
    )
    # About 40 are held out, and FEWEST of each label are needed where counts are exact.
    played = Played("logistic", [people(200, 1)], settings)
    assert bool(played.done.facts) == any(ask.facts for ask in played.asks) == noisy
    assert played.done.curves["auc"] == [] or noisy
    assert len(played.done.curves["round"]) == len(played.done.curves["loss"]) == (3 if noisy else 0)
    # The counts themselves stay with whoever makes the card, which withholds by the same number.
    assert sum(played.done.curves["histogram"]) == 200


def test_a_public_test_set_of_the_lead_is_measured_exactly_and_no_node_evaluates():
    settings = settings_of(
        "logistic", CODED, rounds=10, holdout=0, evaluate={"every": 4, "bins": 32, "test": True}
    )
    tables = [{**people(500, seed), "held": np.zeros(500, "u1")} for seed in (1, 2)]
    public = {name: values for name, values in people(400, 9).items() if name != "held"}
    played = Played("logistic", tables, settings, test=public)
    recipe, state, _ = central(settings, tables)
    data = apps.Data.of(WorkerSettings.decode(settings), public)
    expected = apps.exact(recipe.scores(state, data.rows), data.rows.labels)
    assert played.done.facts == expected
    assert {ask.turn for ask in played.asks} == {"train"}
    assert "evaluate" not in played.words
    assert played.done.curves["round"] == [4, 8, 10]
    assert sum(played.done.curves["histogram"]) == 400


def test_exact_figures_are_those_of_the_definition():
    draw = np.random.default_rng(3)
    margins, labels = draw.integers(-3, 4, 60).astype(float), draw.integers(0, 2, 60).astype("u1")
    found = apps.exact(margins, labels)
    pairs = [(a > b) + (a == b) / 2 for a in margins[labels == 1] for b in margins[labels == 0]]
    assert found["auc"] == pytest.approx(np.mean(pairs), abs=1e-12)
    chance = 1 / (1 + np.exp(-margins))
    assert found["loss"] == pytest.approx(
        -np.mean(np.log(np.where(labels == 1, chance, 1 - chance))), abs=1e-12
    )


def test_training_ends_early_where_the_auc_rises_no_more():
    def rounds(stop):
        settings = settings_of(
            "logistic",
            CODED,
            rounds=60,
            settings={"step": "4"},
            stop=stop,
            evaluate={"every": 2, "bins": 64, "test": False},
        )
        return Played("logistic", [people(1500, 1)], settings).done.curves["round"]

    assert rounds(None)[-1] == 60
    ended = rounds({"patience": 2, "least": "0.002"})
    assert 4 <= ended[-1] < 40
    assert rounds({"patience": 4, "least": "0.002"})[-1] > ended[-1]


def test_patience_counts_evaluations_in_a_row():
    patience = apps.Patience(2, 0.01)
    figures = [0.5, 0.505, 0.52, 0.52, 0.525]
    assert [patience.over({"auc": each}) for each in figures] == [False, False, False, False, True]
    assert not any(apps.Patience(0, 0.01).over({"auc": 0.5}) for _ in range(5))
    assert apps.Patience(1, 0.01).over({})  # no figure betters nothing


def test_an_evaluation_without_an_auc_counts_as_no_betterment_whatever_is_enough():
    patience = apps.Patience(2, 0.0)
    figures = [{"loss": 0.7}, {"auc": 0.0}, {"loss": 0.7}, {}]
    assert [patience.over(each) for each in figures] == [False, False, False, True]


def test_an_evaluation_that_is_all_noise_has_no_auc_and_training_goes_on_or_ends():
    bins = apps.bins_of(
        WorkerSettings.decode(
            settings_of("logistic", CODED, group=None, evaluate={"every": 1, "bins": 2, "test": False})
        )
    )
    for held in ([-7.0, -2, 3, 1], [3.0, 1, -7, -2], [-3.0, -1, -7, -2]):
        assert np.isnan(apps.measured(bins, np.array([3.0, 4, 5, 6, *held]))["auc"])


def test_rows_of_nodes_that_are_absent_do_not_count():
    settings = settings_of("logistic", CODED, rounds=3)
    tables = [people(300, seed) for seed in range(3)]
    found = Played("logistic", tables, settings, absent=lambda ask: (3,) if ask.turn == "train" else ())
    recipe, state, _ = central(settings, [tables[0], tables[2]])
    assert np.array_equal(found.arrays["weights"], recipe.arrays(state)["weights"])


def test_a_question_that_nobody_answers_is_asked_again():
    settings = settings_of("logistic", CODED, rounds=2)
    tables = [people(100, 1), people(100, 2)]
    found = Played("logistic", tables, settings, absent=lambda ask: (2, 3) if ask.exchange in {1, 4} else ())
    assert [ask.turn for ask in found.asks] == ["train", "train", "train", "evaluate", "evaluate"]
    assert np.array_equal(found.arrays["weights"], Played("logistic", tables, settings).arrays["weights"])


@pytest.mark.parametrize(
    ("spent", "turns", "curve"),
    [
        ({"train": 3, "evaluate": 9}, ["train"] * 2 + ["evaluate"] + ["train"] * 2 + ["evaluate"], [2, 4]),
        ({"train": 9, "evaluate": 1}, ["train", "train", "evaluate"] * 2 + ["train"] * 2 + ["evaluate"], [2]),
        ({"train": 0, "evaluate": 0}, ["train", "evaluate"], []),
    ],
)
def test_a_lead_ends_with_what_it_has_where_the_rounds_of_its_nodes_are_spent(spent, turns, curve):
    settings = settings_of(
        "logistic", CODED, rounds=6, noisy=True, evaluate={"every": 2, "bins": 8, "test": False}
    )
    left = dict(spent)

    def absent(ask: Ask) -> tuple[int, ...]:
        left[ask.turn] -= 1
        return (2, 3) if left[ask.turn] < 0 else ()

    tables = [people(300, 1), people(300, 2)]
    found = Played("logistic", tables, settings, absent=absent, code="turn-spent")
    assert [ask.turn for ask in found.asks] == turns
    assert found.done.curves["round"] == curve
    evaluated = spent["evaluate"] >= turns.count("evaluate")
    assert bool(found.done.facts) == bool(found.done.curves["histogram"]) == evaluated
    assert int(found.arrays["round"][0]) == min(spent["train"], 6)


def test_no_word_is_beyond_what_is_declared():
    settings = settings_of("logistic", AMOUNT, settings={"clip": "1"}, unit_rows=3)
    table = people(200, 1, amount=True)
    shared = Shared(table)
    begin = Begin("contribute", "logistic", settings, RUN, 2, (2,), SEED, shared.columns)
    part = Contribution(begin, apps.BUILT_IN, shared.fd)
    updates = []

    def ask(question: Ask) -> Answer:
        ((node, body),) = question.messages
        update = part.handle(Handle(question.exchange, body))
        updates.append(update)
        words = np.frombuffer(update.words, "<i8")
        assert np.abs(words).max() <= 200 * update.largest
        return Answer(((node, update.receipt),), (), words.astype("<f8").tobytes(), 200)

    Lead(Begin("lead", "logistic", settings, RUN, LEAD, (2,), SEED), apps.BUILT_IN, ask).run()
    recipe = WorkerSettings.decode(settings).made(0)
    vector = recipe.layout(recipe.start()).vector
    train = next(update for update in updates if update.turn == "train")
    assert (int(train.l1), int(train.l2_squared)) == (vector.l1, vector.l2_squared)
    evaluate = next(update for update in updates if update.turn == "evaluate")
    assert (evaluate.largest, evaluate.l1, evaluate.l2_squared) == (1, 3, 9)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"weights": np.zeros(3, np.int64)}, "wrong-arrays"),
        ({"velocity": np.full(12, np.nan)}, "wrong-arrays"),
        ({"round": np.array([5], np.int64)}, "wrong-arrays"),
        ({"more": np.zeros(1)}, "wrong-arrays"),
    ],
)
def test_a_state_that_is_none_of_the_recipe_s_is_refused(change, code):
    from flwr.app import ConfigRecord, Message, RecordDict

    from node.trainer.arrays import record_of
    from node.trainer.grid import write

    settings = settings_of("logistic", CODED)
    recipe = WorkerSettings.decode(settings).made(0)
    arrays = {**recipe.arrays(recipe.start()), **change}
    shared = Shared(people(20, 1))
    part = Contribution(
        Begin("contribute", "logistic", settings, RUN, 2, (2,), SEED, shared.columns),
        apps.BUILT_IN,
        shared.fd,
    )
    content = RecordDict({"arrays": record_of(arrays), "config": ConfigRecord({"server-round": 1})})
    with pytest.raises(ProtocolAborted) as caught:
        part.handle(Handle(1, write(Message(content, 2, "train", group_id="1"))))
    assert caught.value.code == code


@pytest.mark.parametrize(
    "change",
    [
        {"f:age": None},
        {"label": None},
        {"f:age": np.full(20, 4, "<u2")},
        {"label": np.full(20, 2, "u1")},
        {"held": np.full(20, 2, "u1")},
        {"group": np.full(20, 3, "<u2")},
        {"f:sex": np.zeros(20, "<f8")},
        {"f:sex": np.full(20, -1, "<i2")},
    ],
)
def test_rows_that_are_not_the_job_s_are_refused(change):
    settings = WorkerSettings.decode(settings_of("logistic", CODED))
    columns = {name: values for name, values in {**people(20, 1), **change}.items() if values is not None}
    with pytest.raises(DecodeError) as caught:
        apps.Data.of(settings, columns)
    assert caught.value.code == "bad-rows"


def test_settings_of_another_recipe_are_refused():
    with pytest.raises(DecodeError) as caught:
        Contribution(
            Begin("contribute", "mlp", settings_of("logistic", CODED), RUN, 2, (2,), SEED), apps.BUILT_IN, -1
        )
    assert caught.value.code == "bad-settings"


def test_a_setting_that_the_recipe_does_not_have_is_refused():
    settings = settings_of("logistic", CODED, settings={"larger_clip": "9"})
    with pytest.raises(InputError) as caught:
        Contribution(Begin("contribute", "logistic", settings, RUN, 2, (2,), SEED), apps.BUILT_IN, -1)
    assert caught.value.code == "bad-settings"
