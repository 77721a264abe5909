"""What training costs and how good its models are.

`round overhead`: five departments train the recipe `logistic`, a model of 124 numbers, under a sixth that
leads. Every node is a process that plays its real party over sealed frames, TLS and the coordinator's relay,
as `bench.rig.nodes` says, with the real worker process beside it; a department's round is durable in a
journal before its vector leaves. Rows are few, so a round is everything but computing: it is the time from
one question of the lead's worker to its next, the median of all. The peer is Flower's own deployment on
loopback with a model of the same size in plain text: its exchange, in the same run. `round overhead 3e4` is
the same with 30,001 numbers, but without noise: drawing it is computing, and it takes most of the time there.

How good models are, `bench.models.across` measures on UCI Adult and `bench.models.joined` on defaults of
credit cards, two public data sets that lie in `shared/data` beside the sources.
"""

import json
import secrets
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from audit.entries import PolicyRef
from audit.log import Journal
from bench.journal import Place
from bench.models import across, joined
from bench.peers import flower_deployed
from bench.rig.nodes import JOB, Nodes, running
from bench.rows import Results, Row
from demo.collaboration import DEPARTMENTS
from node.config import Config
from node.shelf import DiskShelf
from node.workers import Workers
from protocols.dp.mechanism import Budget
from protocols.encoding import canonical_json, sha256_digest
from protocols.ids import NodeName, Role
from protocols.party import Finished, Incoming, Party, Step, Waiting
from protocols.training.params import EVALUATE, TRAIN, schema_of
from protocols.training.parties import Held, Lead, Trainer
from protocols.training.plan import Plan
from protocols.training.schema import Coded
from protocols.training.work import Ask, Done, FromParty, FromWorker, Worker

ROUNDS: Final = 40
PEER_EXCHANGES: Final = 3
ROWS: Final = 100
"""Of each department: enough for a histogram, and nothing to compute."""

AGGREGATOR: Final = Role("aggregator")
SOURCES: Final = tuple(Role(f"source-{number}") for number in range(1, 6))
_SEATS: Final = {**dict(zip(SOURCES, DEPARTMENTS[:5], strict=True)), AGGREGATOR: DEPARTMENTS[5]}

_RHO: Final = Fraction(3, 100)


@dataclass(frozen=True, slots=True)
class Size:
    """A model to measure rounds of.

    Attributes:
        codes: of each feature; the model has one number more than all of them.
        noisy: whether noise is added.
    """

    codes: tuple[int, ...]
    noisy: bool

    @property
    def words(self) -> int:
        """Numbers of the model."""
        return sum(self.codes) + 1


SIZES: Final = {
    "round overhead": Size((61, 62), noisy=True),
    "round overhead 3e4": Size((3750,) * 8, noisy=False),
}


def measure(results: Results, *, long: bool) -> None:
    """Measure every row that is not there yet."""
    rounds(results, 3 * ROUNDS if long else ROUNDS)
    across.measure(results)
    joined.measure(results)


# -- rounds --------------------------------------------------------------------------------------------------


def rounds(results: Results, count: int) -> None:
    """Measure rounds of each size, and Flower's exchange beside each."""
    missing = [what for what in SIZES if not results.has(what)]
    if not missing:
        return
    with (
        tempfile.TemporaryDirectory(prefix="minshu-bench-") as temporary,
        running(Path(temporary), DEPARTMENTS) as (nodes, _),
    ):
        for what in missing:
            theirs = flower_deployed.measure(
                len(SOURCES), SIZES[what].words, PEER_EXCHANGES, "subprocess"
            ).median_s
            seconds = held(nodes, Path(temporary), what, count)
            results.add(Row(what, 1e3 * median(seconds), "ms", "Flower's deployment", 1e3 * theirs))


def held(nodes: Nodes, folder: Path, what: str, count: int) -> list[float]:
    """Return the seconds of every round but the first.

    Raises:
        RuntimeError: not all rounds were held.
    """
    place = folder / what.replace(" ", "-")
    place.mkdir()
    params = {"what": what, "rounds": count, "folder": str(place)}
    nodes.play(_SEATS, f"{__name__}:party", params)
    said = json.loads((place / "asked.json").read_text())
    if said["rounds"] != {TRAIN: count, EVALUATE: 1}:
        raise RuntimeError(f"{said['rounds']} rounds were held, {count} and an evaluation expected")
    return [after - before for before, after in pairwise(said["asked"][1:])]


# -- in the nodes --------------------------------------------------------------------------------------------


def plan_of(features: Iterable[Coded], count: int, *, noisy: bool) -> Plan:
    """Return one attempt of a run."""
    settings = {
        "recipe": "logistic",
        "settings": {"clip": "1"},
        "features": [{"slot": each.name, "codes": [*each.codes]} for each in features],
        "label": {"slot": "label", "positive": ["1"]},
        "group": None,
        "rounds": count,
        "holdout": 5,
        "evaluate": {"every": count, "bins": 32, "test": False},
        "stop": None,
        "unit_rows": 1,
        "noisy": noisy,
    }
    budgets = {TRAIN: Budget("zcdp", _RHO / count), EVALUATE: Budget("zcdp", _RHO / 10)}
    name = sha256(canonical_json(settings)).digest()
    return Plan(
        job=name,
        ctx=sha256(b"minshu/bench/training" + name).digest(),
        sources=SOURCES,
        aggregator=AGGREGATOR,
        recipe="logistic",
        settings=canonical_json(settings),
        rounds={TRAIN: count, EVALUATE: 1},
        budgets=budgets if noisy else dict.fromkeys(budgets),
        quorum=len(SOURCES),
        honest=len(SOURCES) - 1,
        persons_in=1,
        rows=dict.fromkeys(SOURCES, ROWS),
        most_rows=dict.fromkeys(SOURCES, ROWS),
        holdout=5,
        shown=True,
    )


def party(role: Role, params: Mapping[str, Any]) -> Party:
    """Return a role's party with its worker process."""
    size, count, folder = SIZES[params["what"]], params["rounds"], Path(params["folder"])
    # The last code of a feature is that of values that are not listed.
    features = tuple(
        Coded(f"f{at}", tuple(map(str, range(width - 1)))) for at, width in enumerate(size.codes)
    )
    plan = plan_of(features, count, noisy=size.noisy)
    workers = Workers(Config(NodeName(_SEATS[role].node)), lambda: None)
    shelf = DiskShelf(folder / f"{role}-shelf")
    if role == AGGREGATOR:
        asked: list[float] = []

        def published(done: Done, held: Held) -> tuple[()]:
            del done
            (folder / "asked.json").write_text(json.dumps({"asked": asked, "rounds": dict(held.rounds)}))
            return ()

        return Closing(Lead(plan, lambda: Timed(workers.start(None), asked), published, shelf=shelf), workers)
    columns = rows_of(features, int(role.rpartition("-")[2]))
    trainer = Trainer(plan, role, lambda: workers.start(columns), secrets.token_bytes, used={}, shelf=shelf)
    return Recording(Closing(trainer, workers), Place(folder / f"{role}-journal").open(), role)


def rows_of(features: tuple[Coded, ...], seed: int) -> dict[str, npt.NDArray[Any]]:
    """Return a department's columns."""
    draw, schema = np.random.default_rng(seed), schema_of(features)
    columns = {
        f"f:{each.name}": draw.integers(0, width, ROWS).astype("<u2")
        for each, width in zip(features, schema.widths, strict=True)
    }
    ones = {"label": 0.5, "held": 0.2}
    return columns | {name: (draw.random(ROWS) < part).astype("u1") for name, part in ones.items()}


@dataclass(slots=True)
class Timed:
    """The lead's worker; `asked` has when each of its questions and its last word came."""

    worker: Worker
    asked: list[float]

    def step(self, frame: FromParty) -> FromWorker:
        """Pass on."""
        answer = self.worker.step(frame)
        if isinstance(answer, Ask | Done):
            self.asked.append(time.perf_counter())
        return answer

    def close(self) -> None:
        """Pass on."""
        self.worker.close()


@dataclass(slots=True)
class Closing:
    """A party whose workers end with it."""

    party: Party
    workers: Workers

    def start(self) -> Step:
        """Start."""
        return self.party.start()

    def receive(self, message: Incoming) -> Step:
        """Pass on."""
        step = self.party.receive(message)
        if isinstance(step, Finished):
            self.workers.close()
        return step


@dataclass(slots=True)
class Recording:
    """A source whose rounds are in a journal, durably and under a checkpoint, before anything leaves."""

    party: Party
    journal: Journal
    role: Role
    policy: PolicyRef = field(default_factory=lambda: PolicyRef(1, sha256_digest(b"minshu/bench"), "R1"))

    def start(self) -> Step:
        """Start."""
        return self.party.start()

    def receive(self, message: Incoming) -> Step:
        """Pass on; record what is to be recorded."""
        step = self.party.receive(message)
        if isinstance(step, Waiting) and step.record is not None:
            facts = {name: value for name, value in step.record.items() if name != "event"}
            self.journal.record(
                kind="training.round",
                body={"role": self.role, **facts},
                job=JOB,
                attempt=1,
                policy=self.policy,
                actor="statistics.gz.example/analyst-1",
            )
            return replace(step, record=None)
        if isinstance(step, Finished):
            self.journal.close()
        return step
