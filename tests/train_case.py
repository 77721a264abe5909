"""Small training jobs for tests: a spec, a department's rows, and what its builder makes of them."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
from crosscheck_case import CTX, ZERO, seeded
from lookup_case import MemoryShelf
from sources_case import Row, spec_of
from training_case import Contributor, Leader, arrays_of, read

from protocols.ids import DatasetName, Role
from protocols.jobs.job_type import AGGREGATOR, UNIT, Content, Setup, Unit, source
from protocols.jobs.train import Train
from protocols.party import Incoming, Party, Sent, Step, Waiting, run
from protocols.training.model import pack
from protocols.training.params import Params
from protocols.training.rows import TrainingRows
from protocols.training.schema import Rows
from protocols.training.work import Answer, Ask, Done, FromParty, FromWorker, Worker
from protocols.wire import Constraints, InputSummary, JobInput, JobSpec, organisation_of

TRAIN: Final = Train()
PERSON: Final = Unit("code", 1000)
OPEN: Final = Constraints()

STREET: Final = {"slot": "street", "codes": ["S1", "S2", "S3"]}
AGE: Final = {"slot": "age", "edges": ["20", "40", "60"], "missing": "yes"}
INCOME: Final = {"slot": "income", "low": "0", "high": "5000"}
VACCINATED: Final = {"slot": "vaccinated", "positive": ["1"]}
SEX: Final = {"slot": "sex", "codes": ["1", "2"]}

_KINDS: Final = {"age": pa.int64(), "income": pa.float64(), "doses": pa.int64(), "latest": pa.int64()}


def train_spec(sources: int = 3, /, columns: Mapping[str, str] = {}, **params: Any) -> JobSpec:
    """Return a valid spec; params of None are left out, `columns` are mapped beside those of the params."""
    filled: dict[str, Any] = {
        "recipe": "logistic",
        "settings": {"clip": "2", "step": "2"},
        "features": [STREET, AGE],
        "label": VACCINATED,
        "rounds": 6,
        "evaluate": {"every": 3, "bins": 16},
        "areas": "demo-city",
        **params,
    }
    if not {"rho", "epsilon", "noise"} & set(params):
        filled["rho"] = "0.5"
    exact = filled.get("noise") == "none" or filled.get("test")
    if "evaluate" not in params and not exact:
        filled["evaluate"] = {**filled["evaluate"], "rho": "0.002"}
    slots = {**columns_of(filled), **columns}
    spec = spec_of(TRAIN, sources, filled, slots)
    if not filled.get("test"):
        return spec
    organisation = organisation_of(spec.roles[AGGREGATOR])
    public = JobInput(Role(AGGREGATOR), organisation, DatasetName("benchmark"), slots)
    return replace(spec, inputs=(*spec.inputs, public))


def columns_of(params: Mapping[str, Any]) -> dict[str, str]:
    """Return slot → column for whatever the params are about; what is no table is left out."""
    parts = [*(params.get("features") or ()), *(params.get("filters") or ())]
    parts += [params.get("label"), params.get("group")]
    slots = [part["slot"] for part in parts if isinstance(part, Mapping) and "slot" in part]
    return {slot: f"the_{slot}" for slot in slots}


def prepared(
    spec: JobSpec, rows: Sequence[Row], *, unit: Unit | None = PERSON, role: Role | None = None
) -> TrainingRows:
    """Return rows as the node of that role would prepare them; `unit` of a row is the person."""
    role = role or source(1)
    builder = TRAIN.builder(spec, role, unit)
    given = spec.input_of(role)
    assert given is not None
    slots = [*given.columns, *([UNIT] if unit else [])]
    if rows:
        builder.add(
            {slot: pa.array([row.get(slot) for row in rows], _KINDS.get(slot, pa.string())) for slot in slots}
        )
    found = builder.finish()
    assert isinstance(found, TrainingRows)
    return found


# -- one attempt, with workers in memory ---------------------------------------------------------------------


def rows_of(params: Params, columns: Mapping[str, np.ndarray]) -> Rows:
    """Return what a worker trains on, from its columns."""
    schema, labels = params.schema, columns["label"]

    def table(features: Sequence[Any]) -> np.ndarray:
        chosen = [columns[f"f:{each.name}"] for each in features]
        return np.stack(chosen, 1) if chosen else np.zeros((len(labels), 0), np.uint16)

    return Rows(table(schema.coded), table(schema.amounts), labels)


class _Leader(Leader):
    """Ends with a file of arrays and the last histogram, as our workers do."""

    _counts: tuple[float, ...] = ()

    def step(self, frame: FromParty) -> FromWorker:
        said = super().step(frame)
        if not isinstance(said, Done):
            return said
        curves = {**said.curves, "histogram": list(self._counts)}
        return Done(pack(arrays_of(read(said.model))), said.facts, curves)

    def _asked(self, turn: str, state: Any) -> Generator[Ask | Done, Answer, Answer | None]:
        answer = yield from super()._asked(turn, state)
        if turn == "evaluate" and answer is not None and answer.total is not None:
            self._counts = tuple(np.frombuffer(answer.total, "<f8"))
        return answer


class Attempt:
    """One attempt over rows by role; `sent` has every message afterwards."""

    def __init__(
        self,
        spec: JobSpec,
        tables: Mapping[Role, Sequence[Row]],
        *,
        seed: object = 0,
        used: Mapping[str, int] = {},
    ) -> None:
        self.spec, self.params, self.sent = spec, Params.of(spec), list[Sent]()
        self.prepared = {role: prepared(spec, rows, role=role) for role, rows in tables.items()}
        summaries = {
            role: InputSummary(
                found.rows,
                found.distinct_keys,
                found.distinct_keys,
                found.commitment(bytes(32)),
                "2026-01-01",
                ZERO,
                found.rule_version,
            )
            for role, found in self.prepared.items()
        }
        self.setup = Setup(spec, 1, CTX, OPEN, summaries)
        self.recorded: list[tuple[Role, Mapping[str, int | str]]] = []
        self.parties: dict[Role, Party] = {
            role: _Watched(
                TRAIN.working(
                    role,
                    self.setup,
                    self.prepared.get(role),
                    seeded(f"{seed}/{role}"),
                    used=used,
                    shelf=MemoryShelf(),
                    workers=self.worker,
                ),
                role,
                self.recorded,
            )
            for role in spec.roles
        }

    def worker(self, columns: Mapping[str, np.ndarray] | None) -> Worker:
        """Start a worker that has these columns as its rows, or none."""
        made: Any = self.params.made()
        if columns is None:
            return _Leader(made, self.params.bins, every=self.params.evaluate.every)
        return Contributor(
            made, rows_of(self.params, columns), columns["held"].astype(bool), self.params.bins
        )

    def released(self) -> Content:
        """Play it whole and return the release."""
        outputs = run(self.parties, observe=self.sent.append)
        (content,) = outputs.pop(AGGREGATOR)
        assert not any(outputs.values())
        assert isinstance(content, Content)
        return content


class _Watched:
    """A party whose records are kept."""

    def __init__(
        self, party: Party, role: Role, recorded: list[tuple[Role, Mapping[str, int | str]]]
    ) -> None:
        self._party, self._role, self._recorded = party, role, recorded

    def start(self) -> Step:
        return self._party.start()

    def receive(self, message: Incoming) -> Step:
        step = self._party.receive(message)
        if isinstance(step, Waiting) and step.record is not None:
            self._recorded.append((self._role, step.record))
        return step
