"""Scenario 6: its jobs ask for the models that the truth is reckoned with, and that is reckoned rightly."""

from datetime import UTC, datetime
from fractions import Fraction
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from demo.city import Cells, generate, load_vaccination
from demo.city.vaccination import JOINED
from demo.narration import Failed
from demo.scenarios import vaccination
from demo.scenarios.play import policy_template
from demo.scenarios.vaccination import (
    BOOST,
    DESCENT,
    DISTRICTS,
    FEATURES,
    HEALTH_ALONE,
    LOGISTIC,
    Central,
    Judged,
)
from policies.jobfile import suppose_job
from policies.parse import parse_policy
from protocols.jobs import job_type
from protocols.jobs.job_type import UNIT, Unit
from protocols.training.boost import Boost
from protocols.training.logistic import Logistic
from protocols.training.params import Params, WorkerSettings
from protocols.training.schema import Rows
from protocols.wire import JobSpec

ALL = tuple(FEATURES)


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenario-6") / "city"
    generate("ci", 5, folder, workers=2)
    return folder


def question(name: str) -> JobSpec:
    text = files("demo.scenarios.scenario_6").joinpath(f"{name}.toml").read_bytes()
    return suppose_job(text, datetime(2026, 6, 1, tzinfo=UTC))


@pytest.mark.parametrize("name", ["districts", "boost"])
def test_a_job_trains_what_the_truth_is_reckoned_with(name: str) -> None:
    params = Params.of(question(name))
    made = WorkerSettings.decode(params.settings_bytes()).made(0)
    schema = vaccination.rows_of([Cells(1, 1, {"0" * 7: (0, 1)})], ALL)[0]
    expected = Logistic(schema, **LOGISTIC) if name == "districts" else Boost(schema, **BOOST)
    assert made == expected
    assert params.persons_in == 1
    assert params.label.positive == ("yes",)


def test_the_joined_job_sees_the_same_columns_and_only_health_has_the_label() -> None:
    params = question("joined").params
    found = {each["slot"]: each for each in params["columns"]}
    assert {slot: tuple(each.get("codes", each.get("edges", ()))) for slot, each in found.items()} == {
        name: getattr(each, "codes", None) or tuple(f"{edge:g}" for edge in each.edges)
        for name, each in FEATURES.items()
    }
    assert {name: float(params[name]) for name in DESCENT} == DESCENT
    owner = params["label"]["source"]
    assert [slot for slot, each in found.items() if each["source"] == owner] == list(HEALTH_ALONE)


def test_what_the_models_cost_fits_into_each_department_s_budget() -> None:
    spent: dict[str, Fraction] = {}
    for name in ("districts", "boost", "joined"):
        spec = question(name)
        for given in spec.inputs:
            cost = job_type(spec.job_type).cost(spec, given.role, None)  # type: ignore[arg-type]  # not looked at
            spent[given.organisation] = spent.get(given.organisation, Fraction(0)) + cost.rho
            department = next(d for d in vaccination.DEPARTMENTS if d.organisation == given.organisation)
            policy = parse_policy(policy_template(6, department).encode()).policy
            rules = [
                rule for rule in policy.rules
                if given.dataset in rule.datasets and spec.job_type in rule.job_types
            ]  # fmt: skip
            assert len(rules) == 1
            if rules[0].budget is not None:
                assert cost.rho <= rules[0].max_cost
                assert spent[given.organisation] <= policy.budgets[rules[0].budget].limit
            else:
                assert policy.datasets[given.dataset].personal == "none"
    assert len(spent) == 7


def test_rows_as_nodes_prepare_them_are_those_of_the_truth(city: Path) -> None:
    import pyarrow.parquet as pq

    spec, expected = question("districts"), load_vaccination(city)
    for given, district in zip(spec.inputs, DISTRICTS, strict=True):
        builder = job_type("train/1").builder(spec, given.role, Unit("resident-id", 3))
        table = pq.read_table(city / "registers" / district.folder / "immunisation.parquet").combine_chunks()
        slots = {slot: table[column].combine_chunks() for slot, column in given.columns.items()}
        builder.add({**slots, UNIT: table["resident_id"].combine_chunks()})
        columns = builder.finish().columns()  # type: ignore[attr-defined]  # TrainingRows
        found = np.column_stack([*(columns[f"f:{name}"] for name in ALL), columns["label"]])
        _, rows = vaccination.rows_of([expected.questions[f"{district.folder}/immunisation"]], ALL)
        right = np.column_stack([rows.codes, rows.labels])
        assert sorted(map(tuple, found.tolist())) == sorted(map(tuple, right.tolist()))


def test_joining_pays_and_districts_together_are_as_good_as_their_rows_in_one_place(city: Path) -> None:
    best = vaccination.centrals(load_vaccination(city))
    assert best["joined"].auc - best["alone"].auc > 0.05
    assert best["joined"].rows == best["alone"].rows == load_vaccination(city).questions[JOINED].persons
    assert (best["alone"].features, best["joined"].features) == (2, 7)
    assert all(0.7 < each.auc < 0.95 for each in best.values())


def test_the_area_under_the_curve_is_the_share_of_pairs_in_order() -> None:
    rng = np.random.default_rng(1)
    scores, labels = rng.integers(0, 9, 60).astype(float), rng.integers(0, 2, 60).astype(np.uint8)
    rows = Rows(np.zeros((60, 1), np.uint16), np.zeros((60, 0), np.uint16), labels)
    pairs = [
        1.0 if high > low else 0.5 if high == low else 0.0
        for high in scores[labels == 1]
        for low in scores[labels == 0]
    ]
    assert vaccination.area(scores, rows) == pytest.approx(float(np.mean(pairs)), abs=1e-12)


def judged(auc: float, *, said: float | None, held: float | None = None, membership: float | None = None):
    metrics = None
    if said is not None:
        metrics = SimpleNamespace(auc=said, auc_low=said - 0.01, auc_high=said + 0.01)
    card = SimpleNamespace(privacy=SimpleNamespace(notion="approximate-dp"), metrics=metrics)
    nobody = Rows(np.zeros((0, 7), np.uint16), np.zeros((0, 0), np.uint16), np.zeros(0, np.uint8))
    return Judged(SimpleNamespace(card=card), np.zeros(0), nobody, auc, 0.005, held, membership)  # type: ignore[arg-type]  # a card of few fields


BEST = Central(4000, 7, 0.84, 0.01)


def test_a_model_that_is_as_good_as_it_says_passes() -> None:
    vaccination.check("districts", judged(0.80, said=0.79, held=0.795, membership=0.51), BEST)


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (judged(0.60, said=0.60), "below that of all rows"),
        (judged(0.80, said=0.90, held=0.80), "the truth is 0.800"),
        (judged(0.80, said=0.80, held=0.80, membership=0.70), "tells who was trained on"),
        (judged(0.80, said=None), "was not measured"),
    ],
)
def test_a_model_that_is_not_what_it_should_be_ends_the_scenario(found: Judged, why: str) -> None:
    with pytest.raises(Failed, match=why):
        vaccination.check("districts", found, BEST)
