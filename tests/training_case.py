"""Small training jobs for tests: workers in memory that act like ours, and one attempt after another."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from hashlib import sha256
from typing import Any

import msgspec
import numpy as np
from crosscheck_case import CTX, seeded
from lookup_case import MemoryShelf

from protocols.dp.mechanism import Budget
from protocols.encoding import canonical_json
from protocols.errors import MinshuError
from protocols.ids import Role
from protocols.party import Incoming, Outgoing, Party, Sent, Step, Waiting, run
from protocols.training.parties import Held, Lead, Trainer
from protocols.training.plan import Plan
from protocols.training.recipe import Arrays, Recipe
from protocols.training.schema import Coded, Rows, Schema
from protocols.training.scores import HELD_OUT, Bins, auc
from protocols.training.work import (
    Answer,
    Ask,
    Begin,
    Done,
    FromParty,
    FromWorker,
    Go,
    Handle,
    Ready,
    RecipeFailed,
    Update,
    WorkerGone,
    whole,
)

AGGREGATOR = Role("aggregator")
JOB = sha256(b"a training job for tests").digest()
SCHEMA = Schema((Coded("street", ("a", "b", "c")), Coded("sex", ("1", "2")), Coded("year", ("7", "8", "9"))))


def people(count: int = 90, seed: int = 1, schema: Schema = SCHEMA) -> Rows:
    """Return rows whose label follows their codes."""
    rng = np.random.default_rng(seed)
    codes = np.stack([rng.integers(0, width, count) for width in schema.widths], 1).astype(np.uint16)
    chance = 1 / (1 + np.exp(1.5 - codes[:, 0] + (codes[:, 1] == 1)))
    return Rows(codes, np.zeros((count, 0), np.uint16), (rng.random(count) < chance).astype(np.uint8))


def parts(rows: Rows, sources: int = 3) -> list[Rows]:
    """Return rows spread over sources, unevenly and by label."""
    order = np.argsort(rows.labels, kind="stable")
    cuts = [len(rows) * (place + 1) ** 2 // (sources + 1) ** 2 for place in range(sources - 1)]
    return [rows.take(part) for part in np.split(order, [cut + 5 for cut in cuts])]


def write(message: Mapping[str, Any]) -> bytes:
    """Return a message of the lead in bytes; tests change them."""
    return msgspec.msgpack.encode(message)


def read(body: bytes) -> dict[str, Any]:
    """Return what `write` wrote."""
    return msgspec.msgpack.decode(body)


def written(arrays: Arrays) -> dict[str, Any]:
    """Return arrays as they stand in a message or model."""
    return {name: [str(a.dtype), list(a.shape), a.tobytes()] for name, a in arrays.items()}


def arrays_of(plain: Mapping[str, Any]) -> Arrays:
    """Return what `written` wrote."""
    return {
        name: np.frombuffer(data, dtype).reshape(shape).copy() for name, (dtype, shape, data) in plain.items()
    }


def said(message: Mapping[str, Any]) -> bytes:
    """Return the digest of what a message says."""
    return sha256(write({name: message[name] for name in ("turn", "arrays", "config")})).digest()


Fault = Callable[[FromParty], FromWorker | None]
"""May raise in the place of an answer, or give another one."""


def none(_: FromParty) -> None:
    """No fault."""


class Contributor:
    """A worker that contributes, in memory."""

    def __init__(
        self,
        recipe: Recipe[Any],
        rows: Rows,
        held: np.ndarray,
        bins: Bins,
        fault: Fault = none,
    ) -> None:
        self._recipe, self._rows, self._held, self._bins, self._fault = recipe, rows, held, bins, fault
        self.begin: Begin | None = None

    def step(self, frame: FromParty) -> FromWorker:
        if (other := self._fault(frame)) is not None:
            return other
        if isinstance(frame, Begin):
            self.begin, self._seen = frame, int.from_bytes(frame.state or b"\0", "big")
            longest = self._recipe.layout(self._recipe.start()).vector.size << 4
            return Ready({"train": longest, "evaluate": self._bins.size}, {"fake": "1"})
        assert isinstance(frame, Handle)
        message = read(frame.message)
        if message["exchange"] != frame.exchange:
            raise RecipeFailed("", code="wrong-exchange")
        if message["turn"] not in ("train", "evaluate") or set(message["config"]) != {"round"}:
            raise RecipeFailed("", code="wrong-message")
        try:
            state = self._recipe.restore(arrays_of(message["arrays"]))
        except MinshuError:
            raise RecipeFailed("", code="wrong-arrays") from None
        if message["turn"] == "train":
            layout = self._recipe.layout(state)
            words = self._recipe.contribute(state, self._rows.take(~self._held))
        else:
            layout = self._bins.layout()
            words = self._bins.count(self._recipe.scores(state, self._rows), self._rows, held=self._held)
        self._seen += 1
        return Update(
            receipt=b"receipt %d" % frame.exchange,
            turn=message["turn"],
            digest=said(message),
            words=words.astype("<i8").tobytes(),
            largest=layout.largest,
            l1=whole(layout.vector.l1),
            l2_squared=whole(layout.vector.l2_squared),
            state=self._seen.to_bytes(2, "big"),
        )

    def close(self) -> None:
        """Nothing to end."""


class Leader:
    """A worker that leads, in memory: what `protocols.training.run` does, over questions."""

    def __init__(
        self, recipe: Recipe[Any], bins: Bins, *, every: int = 0, enough: float = 2.0, fault: Fault = none
    ) -> None:
        self._recipe, self._bins, self._every, self._enough = recipe, bins, every, enough
        self._fault, self._loop = fault, None

    def step(self, frame: FromParty) -> FromWorker:
        if (other := self._fault(frame)) is not None:
            return other
        if isinstance(frame, Begin):
            self._begin = frame
            return Ready({"train": 1, "evaluate": self._bins.size}, {"fake": "1"})
        if isinstance(frame, Go):
            self._loop = self._run()
            return next(self._loop)
        assert isinstance(frame, Answer)
        return self._loop.send(frame)

    def close(self) -> None:
        """Nothing to end."""

    def _run(self) -> Generator[Ask | Done, Answer, None]:
        recipe, state = self._recipe, self._recipe.start()
        self._exchange, self._facts = 0, {}
        curves: dict[str, list[float]] = {"auc": []}
        while recipe.layout(state):
            answer = yield from self._asked("train", state)
            if answer is None:
                break
            try:
                state = recipe.advance(state, np.frombuffer(answer.total, "<f8").copy(), answer.rows)
            except MinshuError as error:
                raise RecipeFailed("", code=error.code) from None
            if self._every and state.round % self._every == 0:
                answer = yield from self._asked("evaluate", state)
                if answer is not None:
                    tables = self._bins.tables(np.frombuffer(answer.total, "<f8"))
                    curves["auc"].append(auc(tables[HELD_OUT].sum(axis=0)))
                    self._facts = {"auc": curves["auc"][-1]}
                    if curves["auc"][-1] >= self._enough:
                        break
        yield Done(write(written(recipe.arrays(state))), dict(self._facts), curves)

    def _asked(self, turn: str, state: Any) -> Generator[Ask | Done, Answer, Answer | None]:
        self._exchange += 1
        message = {
            "exchange": self._exchange,
            "turn": turn,
            "arrays": written(self._recipe.arrays(state)),
            "config": {"round": state.round},
        }
        body = write(message)
        answer = yield Ask(
            self._exchange,
            turn,
            tuple((node, body) for node in self._begin.nodes),
            said(message),
            dict(self._facts),
        )
        assert (answer.total is None) == (not answer.receipts)
        heard = [node for node, _ in (*answer.receipts, *answer.failed)]
        assert sorted(heard) == sorted(self._begin.nodes)
        return None if answer.total is None else answer


class Recorded:
    """A node around a source's party: counts a round before anything of it is sent."""

    def __init__(self, party: Trainer, used: dict[str, int], numbers: list[int]) -> None:
        self._party, self._used, self._numbers = party, used, numbers

    def start(self) -> Step:
        return self._party.start()

    def receive(self, message: Incoming) -> Step:
        step = self._party.receive(message)
        if isinstance(step, Waiting) and step.record is not None:
            assert step.answering
            assert step.record["event"] == "training-round"
            self._used[step.record["turn"]] = self._used.get(step.record["turn"], 0) + 1
            self._numbers.append(step.record["round"])
        return step


class Meddling:
    """A party whose messages are changed on their way out, or in: None swallows one."""

    def __init__(
        self,
        party: Party,
        out: Callable[[Outgoing], Outgoing | None] = lambda message: message,
        into: Callable[[Incoming], Incoming] = lambda message: message,
    ) -> None:
        self.party, self._out, self._into = party, out, into

    def start(self) -> Step:
        return self._changed(self.party.start())

    def receive(self, message: Incoming) -> Step:
        return self._changed(self.party.receive(self._into(message)))

    def _changed(self, step: Step) -> Step:
        return replace(step, outgoing=tuple(self._sent(step.outgoing)))

    def _sent(self, outgoing: Any) -> Iterator[Outgoing]:
        yield from (changed for message in outgoing if (changed := self._out(message)) is not None)


class Down(Exception):
    """The coordinator died."""


@dataclass
class Job:
    """One job over several attempts: what its nodes keep in between is kept here."""

    recipe: Recipe[Any]
    nodes: Sequence[Rows]
    rho: Fraction | None = None
    quorum: int = 0
    honest: int = 1
    every: int = 0
    holdout: int = 0
    rounds: Mapping[str, int] | None = None
    shown: bool = True
    enough: float = 2.0
    faults: dict[str, Fault] = field(default_factory=dict)
    settings: dict[str, bytes] = field(default_factory=dict)
    wrap: dict[str, Callable[[Party], Party]] = field(default_factory=dict)
    seed: object = 0

    def __post_init__(self) -> None:
        self.sources = tuple(Role(f"source-{number + 1}") for number in range(len(self.nodes)))
        self.roles = (*self.sources, AGGREGATOR)
        self.bins = Bins.even(8)
        self.shelves = {role: MemoryShelf() for role in self.roles}
        self.used: dict[Role, dict[str, int]] = {role: {} for role in self.sources}
        self.numbers: dict[Role, list[int]] = {role: [] for role in self.sources}
        self.sent: list[Sent] = []
        self.started: dict[Role, int] = dict.fromkeys(self.roles, 0)
        self.attempt = 0

    def plan(self, role: Role = AGGREGATOR) -> Plan:
        budget = None if self.rho is None else Budget("zcdp", self.rho)
        rows = {source: len(node) for source, node in zip(self.sources, self.nodes, strict=True)}
        most = self.recipe.rounds
        return Plan(
            job=JOB,
            ctx=sha256(CTX + bytes([self.attempt])).digest(),
            sources=self.sources,
            aggregator=AGGREGATOR,
            recipe="fake",
            settings=self.settings.get(role, canonical_json({"recipe": "fake"})),
            rounds=self.rounds or {"train": most, "evaluate": most},
            budgets={"train": budget, "evaluate": budget},
            quorum=self.quorum or len(self.sources),
            honest=self.honest,
            persons_in=1,
            rows=rows,
            most_rows=rows,
            holdout=self.holdout,
            shown=self.shown,
        )

    def held(self, rows: Rows) -> np.ndarray:
        some = np.arange(len(rows)) % self.holdout == 0 if self.holdout else np.zeros(len(rows), bool)
        return np.asarray(some)

    def start(self, role: Role) -> Contributor | Leader:
        self.started[role] += 1
        fault = self.faults.get(role, none)
        if role == AGGREGATOR:
            return Leader(self.recipe, self.bins, every=self.every, enough=self.enough, fault=fault)
        rows = self.nodes[self.sources.index(role)]
        return Contributor(self.recipe, rows, self.held(rows), self.bins, fault)

    def parties(self) -> dict[Role, Party]:
        self.attempt += 1
        made: dict[Role, Party] = {}
        for role in self.sources:
            trainer = Trainer(
                self.plan(role),
                role,
                lambda role=role: self.start(role),
                seeded(f"{self.seed}/{self.attempt}/{role}"),
                used=dict(self.used[role]),
                shelf=self.shelves[role],
            )
            made[role] = Recorded(trainer, self.used[role], self.numbers[role])
        made[AGGREGATOR] = Lead(
            self.plan(), lambda: self.start(AGGREGATOR), lambda *ended: ended, shelf=self.shelves[AGGREGATOR]
        )
        return {role: self.wrap.get(role, lambda party: party)(party) for role, party in made.items()}

    def run(self, watch: Callable[[Sent], None] = lambda _: None) -> tuple[Done, Held]:
        """Play one attempt; `sent` has every message afterwards."""
        self.sent = []

        def observe(message: Sent) -> None:
            self.sent.append(message)
            watch(message)

        outputs = run(self.parties(), observe=observe)
        assert all(outputs[source] == () for source in self.sources)
        return outputs[AGGREGATOR]

    def state(self, done: Done) -> Any:
        return self.recipe.restore(arrays_of(read(done.model)))


def dying(at: Sequence[int]) -> Fault:
    """Return a fault: the worker dies at these steps, counted from 1 over all its starts."""
    steps = 0

    def fault(_: FromParty) -> None:
        nonlocal steps
        steps += 1
        if steps in at:
            raise WorkerGone("")

    return fault
