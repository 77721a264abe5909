"""Recipes installed for one test, workers that find them, and a town of workers played in one thread."""

import base64
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from safetensors.numpy import load

from node.trainer import recipes
from node.trainer.process import Limits, WorkerProcess
from node.trainer.rows import Rows
from protocols.encoding import canonical_json
from protocols.training.lasting import ContributingWorker, LeadingWorker, Step
from protocols.training.work import (
    LEAD,
    NUMBER_OF_FIRST_SOURCE,
    Answer,
    Ask,
    Begin,
    Done,
    Go,
    Handle,
    Pin,
    Ready,
    Update,
    Worker,
)

RUN = 77
SEED = bytes(range(32))
BITS = 40
"""Of a number after the point, in the vectors of the recipe below."""

LOGISTIC = """
import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from node.trainer.arrays import record_of, take
from node.trainer.recipe import ARRAYS, CONFIG, METRICS, ROUND, ROWS, Recipe, Trained, Turn
from protocols.training.recipe import expect, gaussian, Layout
from protocols.training.work import TOTAL

BITS = 40


def turns(settings):
    d = len(settings.schema.amounts)

    def answer(arrays):
        expect(arrays, {"w": ((d,), "float64")})
        return Layout(gaussian(d, d << BITS, settings.unit_rows), 1 << BITS)

    return {"train": Turn(d, answer)}


def client(settings, rows, seed):
    app = ClientApp()
    x = np.column_stack([rows[each.name] for each in settings.schema.amounts]).astype("<f8")
    y = rows["label"].astype("<f8")

    @app.train()
    def train(message, context):
        HOOK
        w = take(message.content[ARRAYS])["w"]
        gradient = np.rint((x.T @ (1 / (1 + np.exp(-(x @ w))) - y)) * 2.0**BITS).astype(np.int64)
        return Message(RecordDict({ARRAYS: record_of({"words": gradient})}), reply_to=message)

    return app


def lead(settings, columns, seed, grid):
    w = np.zeros(len(settings.schema.amounts))
    for now in range(1, settings.rounds + 1):
        LEADHOOK
        content = RecordDict({ARRAYS: record_of({"w": w}), CONFIG: ConfigRecord({ROUND: now})})
        replies = grid.send_and_receive([Message(content, node, "train") for node in grid.get_node_ids()])
        for reply in replies:
            if reply.metadata.src_node_id == TOTAL:
                total, rows = take(reply.content[ARRAYS])["total"], reply.content[METRICS][ROWS]
                w = w - total * 2.0**-BITS / rows
    return Trained({"w": w})


RECIPE = Recipe(turns, client, lead)
"""


def settings_of(recipe: str | Pin, features: list[dict[str, Any]], **changes: Any) -> bytes:
    """The settings of a worker; `changes` in the form of `Params.asks`."""
    plain = {
        "recipe": recipe if isinstance(recipe, str) else msgspec.structs.asdict(recipe),
        "settings": {},
        "features": features,
        "label": {"slot": "label", "positive": ["1"]},
        "group": None,
        "rounds": 5,
        "holdout": 5,
        "evaluate": {"every": 1000, "bins": 32, "test": False},
        "stop": None,
        "unit_rows": 1,
        "noisy": False,
    }
    assert set(changes) <= set(plain)
    return canonical_json({**plain, **changes})


def amounts(count: int) -> list[dict[str, Any]]:
    return [{"slot": f"x{at}", "low": "-1.0", "high": "1.0"} for at in range(count)]


def logistic(hook: str = "pass", lead_hook: str = "pass") -> str:
    """A recipe's text; `hook` is a statement of its training, `lead_hook` one of its rounds."""
    return LOGISTIC.replace("LEADHOOK", lead_hook).replace("HOOK", hook)


def install(folder: Path, text: str, name: str = "recipe-for-test", module: str = "recipe_for_test") -> None:
    """Put a distribution with one module and the entry point `r` into `folder`, as an installer would."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    written = {
        f"{module}.py": text,
        f"{info.name}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info.name}/entry_points.txt": f"[minshu.recipes]\nr = {module}:RECIPE\n",
    }
    lines = []
    for path, content in written.items():
        (folder / path).write_text(content)
        digest = base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest()).decode().rstrip("=")
        lines.append(f"{path},sha256={digest},{len(content.encode())}")
    (info / "RECORD").write_text("\n".join([*lines, f"{info.name}/RECORD,,", ""]))


def program(folder: Path) -> tuple[str, ...]:
    """A worker's program that finds what is installed in `folder`."""
    start = f"import sys; sys.path.insert(0, {str(folder)!r}); from node.trainer import worker as w; "
    return "-I", "-c", start + "w.main(sys.argv[1:])"


class Kept(list[Step]):
    """A lead's steps, as a node keeps them."""

    def load(self) -> list[Step]:
        return list(self)


class Town:
    """A lead and its contributors, each a worker process; sums are plain, messages pass by in memory.

    Attributes:
        bodies: messages and receipts, in turn.
        updates: all of them.
        kept: the lead's steps, where workers are lasting.
        failing: node → code, of nodes that are not asked; they are as absent.
    """

    def __init__(
        self,
        folder: Path | None,
        tables: list[Mapping[str, np.ndarray]],
        *,
        recipe: str | Pin | None = None,
        settings: bytes | None = None,
        test: Mapping[str, np.ndarray] | None = None,
        rounds: int = 5,
        lasting: bool = False,
        kept: Kept | None = None,
        limits: Limits | None = None,
        wrap: Callable[[WorkerProcess, int], Worker] = lambda worker, _node: worker,
    ) -> None:
        self.recipe = recipe or recipes.pin("r", "recipe-for-test")
        self.settings = settings or settings_of(self.recipe, amounts(len(tables[0]) - 1), rounds=rounds)
        self.rows = {NUMBER_OF_FIRST_SOURCE + at: Rows(table) for at, table in enumerate(tables)}
        self.nodes = tuple(self.rows)
        if test is not None:
            self.rows[LEAD] = Rows(test)
        self.started: dict[int, list[WorkerProcess]] = {node: [] for node in (LEAD, *self.nodes)}
        self.kept = Kept() if kept is None else kept
        self.lasting = lasting
        self.workers: dict[int, Worker] = {}
        self.parts: dict[int, ContributingWorker | LeadingWorker] = {}
        self.bodies: list[bytes] = []
        self.updates: list[Update] = []
        self.asks: list[Ask] = []
        self.failing: dict[int, str] = {}
        self.counts = {node: rows.columns[0].rows for node, rows in self.rows.items()}

        def start(node: int) -> Worker:
            arguments = {} if folder is None else {"program": program(folder)}
            worker = WorkerProcess(self.rows.get(node), limits or Limits(), **arguments)
            self.started[node].append(worker)
            return wrap(worker, node)

        self.start = start
        for node in (LEAD, *self.nodes) if lasting else ():
            if node == LEAD:
                self.parts[node] = LeadingWorker(lambda: start(LEAD), self.first(node), self.kept)
            else:
                self.parts[node] = ContributingWorker(lambda node=node: start(node), self.first(node))

    def first(self, node: int) -> Begin:
        role = "lead" if node == LEAD else "contribute"
        columns = self.rows[node].columns if node in self.rows else ()
        return Begin(role, self.recipe, self.settings, RUN, node, self.nodes, SEED, columns)

    def begin(self, node: int) -> Ready:
        if self.lasting:
            return self.parts[node].open()
        self.workers[node] = self.start(node)
        ready = self.workers[node].step(self.first(node))
        assert isinstance(ready, Ready)
        return ready

    def handle(self, node: int, frame: Handle) -> Update:
        part = self.parts.get(node)
        if isinstance(part, ContributingWorker):
            return part.handle(frame)
        update = self.workers[node].step(frame)
        assert isinstance(update, Update)
        return update

    def lead(self, answer: Answer | None) -> Ask | Done:
        part = self.parts.get(LEAD)
        if isinstance(part, LeadingWorker):
            return part.go() if answer is None else part.answer(answer)
        said = self.workers[LEAD].step(Go() if answer is None else answer)
        assert isinstance(said, Ask | Done)
        return said

    def alone(self) -> Update:
        """Begin with one contributor and no lead, and have it train once on weights of zero."""
        from flwr.app import ConfigRecord, Message, RecordDict
        from flwr.supercore.task_identity import TaskIdentity

        from node.trainer.arrays import record_of
        from node.trainer.grid import write

        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, RUN, LEAD
        node = self.nodes[0]
        self.begin(node)
        arrays = record_of({"w": np.zeros(len(self.rows[node].columns) - 1)})
        content = RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": 1})})
        return self.handle(node, Handle(1, write(Message(content, node, "train", group_id="1"))))

    def turn(self, ask: Ask) -> Answer:
        receipts, vectors, rows = [], [], 0
        for node, message in ask.messages:
            if node in self.failing:
                continue
            update = self.handle(node, Handle(ask.exchange, message))
            assert (update.turn, update.digest) == (ask.turn, ask.digest)
            vectors.append(np.frombuffer(update.words, "<i8"))
            rows += self.counts[node]
            receipts.append((node, update.receipt))
            self.bodies += [message, update.receipt]
            self.updates.append(update)
        total = np.sum(vectors, axis=0).astype("<f8").tobytes() if vectors else None
        return Answer(tuple(receipts), tuple(self.failing.items()), total, rows if vectors else 0)

    def play(self, between: Callable[[Ask], None] = lambda _ask: None) -> Done:
        for node in (LEAD, *self.nodes):
            self.begin(node)
        said = self.lead(None)
        while isinstance(said, Ask):
            self.asks.append(said)
            between(said)
            said = self.lead(self.turn(said))
        return said

    def close(self) -> None:
        for worker in (*self.workers.values(), *self.parts.values()):
            worker.close()
        for rows in self.rows.values():
            rows.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def tables(nodes: int = 3, rows: int = 300, features: int = 4) -> list[dict[str, np.ndarray]]:
    """Uneven lists of rows whose label follows the features."""
    draw = np.random.default_rng(8)
    found = []
    for node in range(nodes):
        x = draw.uniform(-1, 1, (rows // (node + 1), features)) + 0.3 * node
        y = x @ np.arange(1, features + 1) + draw.normal(0, 1, len(x)) > 1
        found.append({**{f"x{at}": x[:, at].copy() for at in range(features)}, "label": y})
    return found


def central(found: list[dict[str, np.ndarray]], rounds: int) -> np.ndarray:
    """The same steps over all rows together."""
    x = np.concatenate([np.column_stack([t[s] for s in t if s != "label"]) for t in found])
    y = np.concatenate([t["label"] for t in found]).astype(float)
    w = np.zeros(x.shape[1])
    for _ in range(rounds):
        w = w - x.T @ (1 / (1 + np.exp(-(x @ w))) - y) / len(y)
    return w


def weights(done: Done) -> np.ndarray:
    """What the recipe above ends with."""
    return load(done.model)["w"]
