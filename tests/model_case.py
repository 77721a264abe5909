"""Small models with their cards, as who leads a run makes them."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from fractions import Fraction
from functools import cache
from random import Random
from typing import Any, Final

import numpy as np

from protocols.dp.cost import Cost
from protocols.ids import DatasetName, Digest, KeyId, NodeName, Organisation, Role
from protocols.jobs.job_type import Content
from protocols.training.boost import Boost
from protocols.training.card import Metrics, Plan, measure
from protocols.training.logistic import Logistic
from protocols.training.mlp import Mlp
from protocols.training.model import model_content, pack
from protocols.training.recipe import Recipe
from protocols.training.run import run
from protocols.training.schema import Amount, Binned, Coded, Rows, Schema
from protocols.training.scores import Bins
from protocols.wire import InputSummary, JobInput, JobSpec

ZERO: Final = Digest("sha256:" + "0" * 64)
AGE: Final = {"slot": "age", "edges": ["20", "40", "60"], "missing": "yes"}
DISTRICT: Final = {"slot": "district", "codes": ["east", "west"]}
INCOME: Final = {"slot": "income", "low": "0", "high": "1000"}
NODES: Final = {
    Role(f"source-{number}"): NodeName(f"{name}.gz.example/node-a")
    for number, name in enumerate(("police", "human-resources", "health"), start=1)
}
AGGREGATOR: Final = NodeName("statistics.gz.example/node-a")
TURNS: Final = {"train": 4, "evaluate": 1}
RHO: Final = Fraction(1, 2)


def spec_of(recipe: Any = "logistic", **params: Any) -> JobSpec:
    """Return a job of `train/1` over three departments; params of None are left out."""
    features = [AGE, DISTRICT] if recipe == "boost" else [AGE, INCOME, DISTRICT]
    filled = {
        "recipe": recipe,
        "features": features,
        "label": {"slot": "ill", "positive": ["1"]},
        "group": {"slot": "sex", "codes": ["1", "2"]},
        "areas": "demo-city",
        "rounds": 4,
        "holdout": 5,
        "evaluate": {"every": 4, "bins": 8, "rho": "0.1"},
        "rho": "0.5",
    } | params
    slots = ["code", "latest", "ill", "sex", *(feature["slot"] for feature in features)]
    return JobSpec(
        job_type="train/1",
        params={name: value for name, value in filled.items() if value is not None},
        inputs=tuple(
            JobInput(
                role,
                Organisation(node.split("/")[0]),
                DatasetName("people"),
                {slot: slot for slot in slots if slot != "code"},
            )
            for role, node in NODES.items()
        ),
        roles={**NODES, Role("aggregator"): AGGREGATOR},
        purpose="vaccination-uptake",
        legal_basis="statistics law, article 9",
        expected_use="to choose where to open vaccination rooms",
        recipients=(Organisation("bureau.gz.example"),),
        requester=KeyId(ZERO),
        collaboration="gz.example",
        roster_digest=ZERO,
        created=datetime(2026, 11, 1, tzinfo=UTC),
        expires=datetime(2026, 11, 2, tzinfo=UTC),
        nonce="ab" * 16,
    )


def inputs_of(spec: JobSpec) -> dict[Role, InputSummary]:
    """Return what the departments' admissions say of their rows."""
    return {
        each.role: InputSummary(130 + at, 120 + at, 100 * at, ZERO, "2026-10-31", ZERO, "2")
        for at, each in enumerate(spec.inputs, start=1)
    }


def schema_of(recipe: Any) -> Schema:
    """Return what the job's model sees of a row."""
    coded = (Binned("age", (20.0, 40.0, 60.0), missing=True), Coded("district", ("east", "west")))
    return Schema(coded, () if recipe == "boost" else (Amount("income", 0.0, 1000.0),))


def table_of(recipe: Any, count: int = 300, seed: int = 1) -> dict[str, np.ndarray]:
    """Return columns as people keep them, empty ages and unlisted districts among them."""
    rng = np.random.default_rng(seed)
    ages = rng.uniform(0, 90, count)
    ages[::17] = np.nan
    table = {
        "age": ages,
        "district": rng.choice(np.array(["east", "west", "elsewhere"], dtype=object), count),
        "income": rng.uniform(-10, 1100, count),
    }
    return {name: values for name, values in table.items() if name != "income" or recipe != "boost"}


def recipe_of(name: Any, schema: Schema) -> Recipe[Any]:
    """Return a recipe of few rounds."""
    match name:
        case "mlp":
            return Mlp(schema, hidden=3, rounds=4)
        case "boost":
            return Boost(schema, trees=2, depth=2, fewest=5, step=1.0)
    return Logistic(schema, rounds=4)


def rows_of(recipe: Any, count: int = 300) -> Rows:
    """Return rows whose label goes with age and district."""
    table = table_of(recipe, count)
    chance = 1 / (1 + np.exp(2 - np.nan_to_num(table["age"]) / 30 - (table["district"] == "west")))
    return schema_of(recipe).encode(table, (np.random.default_rng(2).random(count) < chance).astype(int))


@cache
def trained(recipe: str = "logistic") -> tuple[Recipe[Any], Any]:
    """Return a recipe and its state after all of its rounds; a perceptron of its first weights, changed."""
    made = recipe_of(recipe, schema_of(recipe))
    rows = rows_of(recipe)
    if recipe == "mlp":  # PyTorch takes seconds to import
        state = made.start()
        return made, replace(state, weights=state.weights + np.linspace(-1, 1, len(state.weights)))
    return made, run(made, [rows.take(slice(0, 150)), rows.take(slice(150, 300))], Random(3).randbytes).state


def plan_of(spec: JobSpec) -> Plan:
    """Return the numbers of the run."""
    return Plan(TURNS, 3, 2, 3, 1, 5, Cost.zcdp(RHO))


def metrics_of() -> Metrics:
    """Return figures of many rows of two groups, and of few of a third."""
    bins = Bins.even(8, groups=3)
    rng = np.random.default_rng(4)
    counts = rng.integers(100, 300, bins.size).astype(float)
    counts[-16:] = 1  # held out, of unlisted groups
    return measure(bins.tables(counts), bins.edges, "held-out, noisy", variance=4.0, codes=["1", "2"])


def content_of(spec: JobSpec | None = None, model: bytes | None = None, **changes: Any) -> Content:
    """Return the content of a release, of a model that was trained for it where none is given."""
    spec = spec or spec_of()
    if model is None:
        made, state = trained(spec.params["recipe"])
        model = pack(made.arrays(state))
    filled: dict[str, Any] = {
        "model": model,
        "rounds": TURNS,
        "spent": Cost.zcdp(RHO),
        "metrics": metrics_of(),
        "curves": {"auc": [0.6, 0.7]},
        "versions": {"minshu": "0.1.0"},
    }
    return model_content(spec, inputs_of(spec), plan_of(spec), **filled | changes)


def files_in(content: Content) -> dict[str, bytes]:
    """Return the files of a release."""
    columns: Mapping[str, Any] = content.table.columns
    return dict(zip(columns["file"].tolist(), columns["data"].tolist(), strict=True))
