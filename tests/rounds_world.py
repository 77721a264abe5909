"""A job type that answers in rounds and is nothing but rounds, and a collaboration in which it is asked.

`steps/1` adds up a column round by round, without masks: what is tested with it is how rounds are counted,
journaled, paid for and gone on with, not how they hide. Its workers are objects of this process.
"""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Final

import numpy as np
import pytest
from simulator import Post
from table_world import AGGREGATOR as ADDING
from table_world import SOURCES, TableWorld

import policies.approving
import policies.decide
import protocols.jobs
from node import gate, workers
from node.rpc import Attempt
from protocols.channel.frame import Header
from protocols.dp.cost import Cost, total
from protocols.encoding import digest_bytes, sha256_digest
from protocols.errors import ProtocolAborted
from protocols.ids import DatasetName, Digest, Organisation, Role
from protocols.jobs.job_type import (
    AGGREGATOR,
    REQUESTER,
    ColumnNeed,
    Content,
    OutputClass,
    PlannedRelease,
    Setup,
    Shelf,
    Statement,
    Table,
)
from protocols.party import Finished, Incoming, Outgoing, Party, Progress, Step, Waiting
from protocols.statistics.differencing import Query
from protocols.training.work import WorkerGone
from protocols.wire import JobInput, JobSpec

TRAIN, EVALUATE = 6, 2
RHO: Final = Fraction("0.32")
EACH: Final = RHO / (TRAIN + EVALUATE)

HELLO, TASK, PART, DONE = 0x4000, 1, 2, 0x4001


def stream(number: int, kind: int) -> int:
    return 0x4010 + 4 * number + kind


def paid(rounds: Mapping[str, int]) -> Cost:
    """Return what rounds cost by hand: each the same, and the one question."""
    return total([Cost.zcdp(EACH)] * sum(rounds.values())) + Cost(queries=1)


@dataclass
class Rows:
    """A column, prepared."""

    values: np.ndarray
    rule_version: str = "steps-1"

    @property
    def rows(self) -> int:
        return len(self.values)

    @property
    def distinct_keys(self) -> int:
        return len(self.values)

    def quality(self) -> Mapping[str, int]:
        return {}

    def commitment(self, salt: bytes) -> Digest:
        return sha256_digest(salt + self.values.tobytes())


class Builder:
    """Reads a column of decimals."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def add(self, batch: Mapping[str, Any]) -> None:
        self.values += [float(value) for value in batch["paid"].to_pylist()]

    def finish(self) -> Rows:
        return Rows(np.array(self.values))


class Steps:
    """The job type `steps/1`."""

    name = "steps/1"
    output_class = OutputClass.AGGREGATE
    states_sizes = False
    counts_units = False
    silent_until_answering = True

    def check(self, spec: JobSpec) -> None:
        return

    def kinds(self, spec: JobSpec, role: Role) -> frozenset[str]:
        return frozenset({"aggregator" if role == AGGREGATOR else "source"})

    def columns(self, spec: JobSpec, role: Role) -> tuple[ColumnNeed, ...]:
        return () if role == AGGREGATOR else (ColumnNeed("paid", "sum", ("decimal",)),)

    def releases(self, spec: JobSpec) -> tuple[PlannedRelease, ...]:
        return (PlannedRelease("steps", OutputClass.AGGREGATE, AGGREGATOR, REQUESTER),)

    def separation(self, spec: JobSpec, requester: Organisation) -> tuple[()]:
        return ()

    def learns(self, spec: JobSpec) -> Mapping[frozenset[Role], tuple[Statement, ...]]:
        return {frozenset({Role(REQUESTER)}): (Statement("sums", "sums", "合计"),)}

    def rounds(self, spec: JobSpec) -> Mapping[str, int]:
        return {"train": TRAIN, "evaluate": EVALUATE}

    def members(self, spec: JobSpec) -> tuple[int, int]:
        return len(spec.inputs), len(spec.inputs)

    def cost(self, spec: JobSpec, role: Role, constraints: Any) -> Cost:
        return self.cost_of(spec, role, constraints, self.rounds(spec))

    def cost_of(self, spec: JobSpec, role: Role, constraints: Any, rounds: Mapping[str, int]) -> Cost:
        return Cost() if role == AGGREGATOR else paid(rounds)

    def query(self, spec: JobSpec, role: Role) -> Query | None:
        return None if role == AGGREGATOR else Query("steps", {}, noisy=True)

    def sources_asked(self, spec: JobSpec) -> int:
        return 1

    def builder(self, spec: JobSpec, role: Role, unit: Any = None) -> Builder:
        return Builder()

    def check_inputs(self, spec: JobSpec, inputs: Any, constraints: Any) -> None:
        return

    def party(self, role: Role, setup: Setup, prepared: Any, rand: Any) -> Party:
        raise TypeError("a job in rounds is played by `working`")

    def working(
        self,
        role: Role,
        setup: Setup,
        prepared: Rows | None,
        rand: Any,
        *,
        used: Mapping[str, int],
        shelf: Shelf,
        workers: Callable[[Any], Any],
    ) -> Party:
        if role == AGGREGATOR:
            return Leader(setup, shelf, workers)
        assert prepared is not None
        return Stepper(setup, prepared, used, shelf, workers)


class Stepper:
    """A source."""

    stubborn = False  # records what the job allows, whatever was asked

    def __init__(
        self, setup: Setup, rows: Rows, used: Mapping[str, int], shelf: Shelf, workers: Callable[[Any], Any]
    ) -> None:
        self.rows, self.used, self.shelf, self.workers = rows, dict(used), shelf, workers
        self.name = digest_bytes(setup.spec.job_id).hex() + "-last"
        self.sources = len(setup.spec.inputs)

    def start(self) -> Step:
        self.worker = self.workers({"paid": self.rows.values})
        last = self.shelf.get(self.name)
        body = json.dumps([0 if last is None else int(bytes(last)), self.used]).encode()
        return Waiting((Outgoing(AGGREGATOR, HELLO, body),))

    def receive(self, message: Incoming) -> Step:
        if message.round == DONE:
            return Finished()
        number, turn = json.loads(message.body)
        part = self.worker.step(turn)
        with self.shelf.put(self.name) as write:
            write(str(number).encode())
        return Waiting(
            (Outgoing(AGGREGATOR, stream(number, PART), str(part).encode()),),
            Progress("training", number, TRAIN + EVALUATE),
            answering=True,
            record={"event": "training-round", "turn": turn, "round": number, "sources": self.sources},
        )


class Leader:
    """The aggregator: asks for rounds until it has all, or no source has any left."""

    def __init__(self, setup: Setup, shelf: Shelf, workers: Callable[[Any], Any]) -> None:
        self.sources = [given.role for given in setup.spec.inputs]
        self.name, self.shelf = digest_bytes(setup.spec.job_id).hex() + "-lead", shelf
        self.workers = workers
        self.hellos: dict[Role, tuple[int, Mapping[str, int]]] = {}
        self.parts: dict[Role, float] = {}

    def start(self) -> Step:
        self.workers(None)
        kept = self.shelf.get(self.name)
        self.done: dict[str, Any] = {"train": 0, "evaluate": 0, "sum": 0.0}
        if kept is not None:
            self.done = json.loads(bytes(kept))
        return Waiting()

    def receive(self, message: Incoming) -> Step:
        if message.round == HELLO:
            last, used = json.loads(message.body)
            self.hellos[message.sender] = last, used
            if len(self.hellos) < len(self.sources):
                return Waiting()
            self.number = max(last for last, _ in self.hellos.values())
            self.left = {
                turn: min(most - used.get(turn, 0) for _, used in self.hellos.values())
                for turn, most in (("train", TRAIN), ("evaluate", EVALUATE))
            }
            return self.next()
        self.parts[message.sender] = float(message.body)
        if len(self.parts) < len(self.sources):
            return Waiting()
        self.done["sum"] += sum(self.parts.values())
        self.done[self.turn] += 1
        self.parts.clear()
        with self.shelf.put(self.name) as write:
            write(json.dumps(self.done).encode())
        return self.next()

    def next(self) -> Step:
        whole = {"train": TRAIN, "evaluate": EVALUATE}
        turn = next((t for t, most in whole.items() if self.done[t] < most and self.left[t] > 0), None)
        if turn is None:
            table = Table({"total": np.array([self.done["sum"]])})
            return Finished(
                [Outgoing(role, DONE, b"") for role in self.sources],
                (Content("steps", table, {"rounds": self.done["train"]}),),
            )
        self.turn, self.number = turn, self.number + 1
        self.left[turn] -= 1
        body = json.dumps([self.number, turn]).encode()
        asked = [Outgoing(role, stream(self.number, TASK), body) for role in self.sources]
        figures = {"auc": f"0.{80 + self.done['train']}", "rounds": str(self.done["train"])}
        return Waiting(asked, Progress("training", self.done["train"], TRAIN, figures))


@dataclass
class Hands:
    """The workers of a test: how many there are now, and what each does when it is asked."""

    started: int = 0
    open: int = 0
    hang_at: int | None = None
    """The step at which a worker does not answer until it is killed."""
    asked: int = 0
    shared: list[Any] = field(default_factory=list)
    hanging: threading.Event = field(default_factory=threading.Event)

    def start(self, rows: Any, config: Any) -> tuple[Any, Callable[[], None]]:
        self.started += 1
        self.open += 1
        if rows is not None:
            self.shared.append(rows)
        worker = Hand(self)
        return worker, worker.killed.set


class Hand:
    """One worker."""

    def __init__(self, hands: Hands) -> None:
        self.hands, self.killed, self.closed = hands, threading.Event(), False

    def step(self, frame: Any) -> int:
        self.hands.asked += 1
        if self.hands.hang_at is not None and self.hands.asked >= self.hands.hang_at:
            self.hands.hanging.set()
            assert self.killed.wait(60)
            raise WorkerGone("killed", code="worker-killed")
        return 1

    def close(self) -> None:
        self.hands.open -= not self.closed
        self.closed = True


@contextmanager
def registered(*kinds: Any) -> Iterator[Hands]:
    """Let these job types be known everywhere, and their workers be objects."""
    known = (*protocols.jobs._job_types(), *kinds)
    hands = Hands()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocols.jobs, "_job_types", lambda: known)
        for place in (
            policies.decide.decide,
            policies.decide.check_merged,
            policies.approving.verify_approval,
        ):
            patch.setitem(place.__kwdefaults__, "job_types", known)
        patch.setattr(workers, "start_process", hands.start)
        patch.setattr(gate, "available", lambda: True)
        patch.setattr(workers, "available", lambda: True)
        yield hands


class RoundsWorld(TableWorld):
    """Three departments whose budget pays for one whole run and a half."""

    types = (Steps.name,)
    approvals = 0
    budget = """[budgets.privacy]
dataset = "cases"
notion = "zcdp"
limit = "0.48"
period = "calendar-quarter"
scope = "all-requesters"
"""

    def policy_of(self, name: str, **changes: Any) -> str:
        text = super().policy_of(name, **changes)
        if not self.approvals or name == ADDING:
            return text
        head, tail = text.split('id = "R2"')
        rule = tail.replace("approvals = 0", 'approvals = 2\napprovers = ["dpo", "owner"]', 1)
        return f'{head}id = "R2"{rule}'

    def steps(self, **changes: Any) -> JobSpec:
        """Return the one question there is."""
        spec = self.table()
        inputs = tuple(
            JobInput(
                Role(f"source-{n + 1}"),
                Organisation(f"{name}.gz.example"),
                DatasetName("cases"),
                {"paid": "paid"},
            )
            for n, name in enumerate(SOURCES)
        )
        asked = {"job_type": Steps.name, "params": {}, "inputs": inputs, "recipients": ()}
        return self.spec(roles=spec.roles, **{**asked, **changes})


class Cut(Post):
    """A relay that loses what comes of an attempt after so many rounds, until it may pass again."""

    after: Mapping[int, int] = {}

    def carried(self, header: Header, frame: bytes) -> list[bytes]:
        most = self.after.get(header.attempt)
        if most is None or header.round < stream(0, 0):
            return [frame]
        number = (header.round - stream(0, 0)) // 4
        first = self.first.setdefault(header.attempt, number)
        return [frame] if number - first < most else []

    def __init__(self, world: Any) -> None:
        super().__init__(world)
        self.first: dict[int, int] = {}


def recorded(station: Any, job: Any, attempt: int) -> Mapping[str, int]:
    """Return the rounds that a department's journal has of an attempt."""
    found: dict[str, int] = {}
    for entry in station.entries("training.round"):
        if (entry.job, entry.attempt) == (job, attempt):
            found[entry.body["turn"]] = found.get(entry.body["turn"], 0) + 1
    return found


def cost_of(station: Any, job: Any, attempt: int) -> Cost:
    row = station.state.ledger().row(job, attempt)
    assert row is not None
    return row.past.cost


__all__ = [
    "ADDING",
    "SOURCES",
    "Attempt",
    "Cut",
    "Hands",
    "ProtocolAborted",
    "RoundsWorld",
    "Steps",
    "registered",
]
