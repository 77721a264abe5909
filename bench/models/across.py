"""Models of departments with the same columns: `train/1` on UCI Adult, measured on its test split.

A job is played in one process by its own parties over `protocols.party.run`, each beside its real worker
process; the datasets pass through the job type's builder, catalogues publish their rows rounded, and a figure
is of the model that is released with its card. Adult's test split is the aggregator's public data set.

Beside a federated model stands the same recipe on all rows in one place. Two departments train without noise
in no job, since each would have the other's sums exactly: theirs is the sum of the recipe's own vectors.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from bench.models.datasets import LABEL, LINEAR, NUMBERS, POSITIVE, TREES, adult, labels, split
from bench.models.jobs import CTX, auc, model_of, seeded, spec_of, summary_of
from bench.peers import ebm
from bench.rows import Results, Row
from node.catalogue import rounded
from node.config import Config
from node.shelf import DiskShelf
from node.workers import Workers
from protocols.ids import NodeName, Role
from protocols.jobs.job_type import AGGREGATOR, PreparedInput, Setup, source
from protocols.jobs.train import Train
from protocols.party import Party, run
from protocols.training import run as plain
from protocols.training.params import MIN_EXACT, Params
from protocols.training.schema import Rows
from protocols.wire import Constraints, JobSpec

if TYPE_CHECKING:
    import pyarrow as pa

TRAIN: Final = Train()
NODES: Final = (2, 5, 20)
FIVE: Final = 5
SEEDS: Final = (1, 2, 3)
"""Of splits, random trees and noise; a noisy figure is the mean of all."""

EPSILON: Final = "1"
DELTA: Final = "0.00001"


@dataclass(frozen=True, slots=True)
class Asked:
    """What is trained, and how.

    Attributes:
        recipe: by name.
        settings: of the recipe.
        rounds: of training.
        features: as params say them.
        noise: as params say it.
    """

    recipe: str
    settings: Mapping[str, str]
    rounds: int
    features: Sequence[Mapping[str, Any]]
    noise: Mapping[str, Any] = field(default_factory=lambda: {"noise": "none"})

    @property
    def slots(self) -> list[str]:
        """Columns of its features."""
        return [each["slot"] for each in self.features]


# Nobody is in two departments: rows of Adult are persons.
_PRIVATE: Final = {"epsilon": EPSILON, "delta": DELTA, "persons_in": 1}

LOGISTIC: Final = Asked("logistic", {"clip": "8", "step": "2"}, 60, LINEAR)
PRIVATE_LOGISTIC: Final = Asked("logistic", {"clip": "2", "step": "2"}, 60, LINEAR, _PRIVATE)
BOOST: Final = Asked("boost", {"depth": "4", "step": "0.3"}, 160, TREES)
PRIVATE_BOOST: Final = Asked(
    "boost", {"depth": "3", "batch": "4", "step": "2", "ridge": "100"}, 30, TREES, _PRIVATE
)


def measure(results: Results) -> None:
    """Measure every row that is not there yet."""
    if not results.has("federated minus centralised auc"):
        results.add(Row("federated minus centralised auc", apart(LOGISTIC), "AUC"))
    if not results.has("dp auc eps 1"):
        results.add(Row("dp auc eps 1", private(PRIVATE_LOGISTIC), "AUC", ebm.NAME, private_ebm()))
    if not results.has("boost auc"):
        train = adult("adult.data")
        found = federated(BOOST, split(train, FIVE, SEEDS[0], skewed=True), SEEDS[0])
        results.add(Row("boost auc", found, "AUC", "all rows in one place", centralised(BOOST, [train])))
    if not results.has("dp boost auc eps 1"):
        results.add(Row("dp boost auc eps 1", private(PRIVATE_BOOST), "AUC", ebm.NAME, private_ebm()))


def apart(asked: Asked) -> float:
    """Return how far a federated model's AUC is from that of the centralised one, at most over all splits."""
    train = adult("adult.data")
    whole = centralised(asked, [train])
    off = []
    for nodes in NODES:
        for skewed in (False, True):
            parts = split(train, nodes, SEEDS[0], skewed=skewed)
            # The job refuses what fewer departments would tell each other.
            own = federated(asked, parts, SEEDS[0]) if nodes >= MIN_EXACT else centralised(asked, parts)
            off.append(abs(own - whole))
    return max(off)


def private(asked: Asked) -> float:
    """Return the mean AUC over all seeds, of five departments."""
    train = adult("adult.data")
    return fmean(federated(asked, split(train, FIVE, seed, skewed=False), seed) for seed in SEEDS)


@cache
def private_ebm() -> float:
    """Return the mean AUC of DP-EBM over all seeds, with all rows in one place and every column."""
    train, test = adult("adult.data"), adult("adult.test")
    label = LABEL

    def with_labels(table: "pa.Table") -> "pa.Table":
        place = table.column_names.index(label)
        return table.set_column(place, label, [labels(table)])

    return fmean(
        auc(
            ebm.chances(
                with_labels(train),
                with_labels(test),
                label,
                NUMBERS,
                epsilon=EPSILON,
                delta=DELTA,
                seed=seed,
            ),
            labels(test),
        )
        for seed in SEEDS
    )


# -- one model -----------------------------------------------------------------------------------------------


def federated(asked: Asked, parts: Sequence["pa.Table"], seed: int, test: "pa.Table | None" = None) -> float:
    """Return the AUC of the model that a job releases.

    Args:
        asked: what is trained.
        parts: rows of each department.
        seed: of the job and of all noise.
        test: the aggregator's rows; Adult's test split unless it is given.
    """
    test = adult("adult.test") if test is None else test
    spec = job(asked, len(parts), seed)
    TRAIN.check(spec)
    tables = {**{source(at): part for at, part in enumerate(parts, start=1)}, AGGREGATOR: test}
    prepared = {role: rows_of(spec, role, table) for role, table in tables.items()}
    setup = Setup(
        spec,
        1,
        CTX,
        Constraints(),
        {
            role: summary_of(rounded(len(table)), rounded(len(table)), prepared[role].rule_version)
            for role, table in tables.items()
        },
    )
    workers = Workers(Config(NodeName("bench.example/node")), lambda: None)
    with tempfile.TemporaryDirectory(prefix="minshu-bench-") as folder:
        try:
            parties: dict[Role, Party] = {
                role: TRAIN.working(
                    role,
                    setup,
                    prepared[role],
                    seeded("train", seed, role),
                    used={},
                    shelf=DiskShelf(Path(folder) / role),
                    workers=workers.start,
                )
                for role in spec.roles
            }
            (released,) = run(parties)[AGGREGATOR]
        finally:
            workers.close()
    model = model_of(released)
    found = model.log_odds(model.rows(_columns(test, asked.slots)))
    return auc(found, labels(test))


def centralised(asked: Asked, parts: Sequence["pa.Table"], test: "pa.Table | None" = None) -> float:
    """Return the AUC of the same recipe over rows in one place, cut or not: their vectors are added up."""
    test = adult("adult.test") if test is None else test
    params = Params.of(job(asked, max(len(parts), MIN_EXACT), SEEDS[0]))
    recipe: Any = params.made()

    def encoded(table: "pa.Table") -> Rows:
        return params.schema.encode(_columns(table, asked.slots), labels(table))

    trained = plain.run(recipe, [encoded(part) for part in parts], seeded("centralised"))
    return auc(recipe.scores(trained.state, encoded(test)), labels(test))


def job(asked: Asked, departments: int, seed: int) -> JobSpec:
    """Return the job of so many departments."""
    sources = [source(at) for at in range(1, departments + 1)]
    slots = [*asked.slots, LABEL]
    return spec_of(
        TRAIN.name,
        {
            "recipe": asked.recipe,
            "settings": dict(asked.settings),
            "features": [dict(each) for each in asked.features],
            "label": {"slot": LABEL, "positive": [POSITIVE]},
            "rounds": asked.rounds,
            "test": str(AGGREGATOR),
            **asked.noise,
        },
        [*sources, AGGREGATOR],
        dict.fromkeys([*sources, AGGREGATOR], slots),
        seed,
    )


def rows_of(spec: JobSpec, role: Role, table: "pa.Table") -> PreparedInput:
    """Return a department's rows as its node would prepare them; each is of somebody of their own."""
    builder = TRAIN.builder(spec, role, None)
    given = spec.input_of(role)
    assert given is not None
    builder.add({slot: table.column(slot).combine_chunks() for slot in given.columns})
    return builder.finish()


def _columns(table: "pa.Table", names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    return {name: np.asarray(table.column(name).to_numpy()) for name in names}
