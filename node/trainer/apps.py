"""Flower apps of a recipe that is pure functions: the ClientApp of a node, and the Strategy of the lead.

A message of the lead is the recipe's state in arrays. `train` is answered with the vector that the recipe
makes of the node's rows; `evaluate` with a histogram of the chances that the model gives them, the ones that
it was trained on apart from the ones held out. The next state, and every figure, is made of totals.

Which rows a node has comes in columns: `f:` and a feature's slot, `label`, and where they are in use `group`
and `held`, 1 for a row that is held out.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from node.trainer.arrays import record_of, take, total
from node.trainer.grid import RelayGrid
from node.trainer.recipe import (
    ARRAYS,
    CONFIG,
    METRICS,
    ROUND,
    ROWS,
    Columns,
    Recipe,
    Settings,
    Trained,
    Turn,
)
from node.trainer.strategy import rounds, total_of
from protocols.errors import DecodeError
from protocols.training import recipe as pure
from protocols.training.card import FEWEST
from protocols.training.params import EVALUATE, HISTOGRAM, TRAIN, WorkerSettings, most_words
from protocols.training.recipe import Arrays, Layout, sigmoid
from protocols.training.rows import GROUP, HELD, LABEL
from protocols.training.schema import AMOUNT_BITS, Floats, Rows
from protocols.training.scores import HELD_OUT, Bins, auc, log_loss

FEATURE: Final = "f:"

AMOUNTS: Final = (1 << AMOUNT_BITS) + 1
"""Values of an amount."""

AUC: Final = "auc"
LOSS: Final = "loss"

Model: TypeAlias = pure.Recipe[Any]
"""A recipe with its numbers; of its states only itself knows more than arrays."""

Make: TypeAlias = Callable[[WorkerSettings, int], Model]
"""Makes a recipe of a job's settings and a public seed below 2^64; refuses settings it does not know."""


def recipe(make: Make) -> Recipe:
    """Return the Flower apps of the recipe that `make` gives."""

    def turns(settings: Settings) -> dict[str, Turn]:
        model = make(settings, 0)
        found = {TRAIN: Turn(most_words(model), lambda arrays: _layout(model, arrays))}
        if not settings.test:
            histogram = bins_of(settings).layout(settings.unit_rows)

            def answered(arrays: Arrays) -> Layout:
                model.restore(arrays)
                return histogram

            found[EVALUATE] = Turn(histogram.vector.size, answered)
        return found

    def client(settings: Settings, columns: Columns, seed: bytes) -> ClientApp:
        return _client(make(settings, seed_of(seed)), Data.of(settings, columns), bins_of(settings))

    def lead(settings: Settings, columns: Columns, seed: bytes, grid: RelayGrid) -> Trained:
        test = Data.of(settings, columns) if settings.test else None
        return _lead(settings, make(settings, seed_of(seed)), test, grid)

    return Recipe(turns, client, lead)


def seed_of(seed: bytes) -> int:
    """Return a recipe's public seed: the first 8 bytes of the job's, big-endian."""
    return int.from_bytes(seed[:8], "big")


def bins_of(settings: WorkerSettings) -> Bins:
    """Return the cells of an evaluation."""
    return Bins.even(settings.bins, settings.groups)


def _layout(model: Model, arrays: Arrays) -> Layout:
    """Return the vector that answers a state.

    Raises:
        DecodeError: `bad-state`: no state, or one after the last round.
    """
    layout = model.layout(model.restore(arrays))
    if layout is None:
        raise DecodeError("a state after the last round", code="bad-state")
    return layout


@dataclass(frozen=True, slots=True)
class Data:
    """Rows of a node, or of a public test set.

    Attributes:
        rows: all of them.
        trained: those that are trained on.
        held: n, which ones are held out.
        group: n numbers.
    """

    rows: Rows
    trained: Rows
    held: npt.NDArray[np.bool_]
    group: npt.NDArray[np.uint16]

    @classmethod
    def of(cls, settings: WorkerSettings, columns: Columns) -> "Data":
        """Put columns together as the schema has them.

        Raises:
            DecodeError: `bad-rows`: a column is missing, or holds what the job does not know.
        """
        schema = settings.schema
        try:
            labels = columns[LABEL]
            codes = [columns[FEATURE + each.name] for each in schema.coded]
            amounts = [columns[FEATURE + each.name] for each in schema.amounts]
        except KeyError:
            raise DecodeError("rows without a column of the job", code="bad-rows") from None
        held = columns.get(HELD, np.zeros(len(labels), np.uint8))
        group = columns.get(GROUP, np.zeros(len(labels), np.uint16))
        least = [*((each, width) for each, width in zip(codes, schema.widths, strict=True))]
        least += [*((each, AMOUNTS) for each in amounts), (labels, 2), (held, 2), (group, settings.groups)]
        if any(each.dtype.kind not in "ub" or (len(each) and int(each.max()) >= end) for each, end in least):
            raise DecodeError("rows with a value that the job does not know", code="bad-rows")
        rows = Rows(_table(codes, len(labels)), _table(amounts, len(labels)), labels.astype(np.uint8))
        out = held.astype(np.bool_)
        return cls(rows, rows.take(~out), out, group.astype(np.uint16))


def _table(columns: list[npt.NDArray[Any]], rows: int) -> npt.NDArray[np.uint16]:
    return np.column_stack(columns).astype(np.uint16) if columns else np.zeros((rows, 0), np.uint16)


def _client(model: Model, data: Data, bins: Bins) -> ClientApp:
    app = ClientApp()

    def state_of(message: Message) -> Any:
        return model.restore(take(message.content.array_records[ARRAYS]))

    def reply(message: Message, vector: npt.NDArray[np.int64]) -> Message:
        return Message(RecordDict({ARRAYS: record_of({"words": vector})}), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:  # noqa: ARG001  # a ClientApp's form
        return reply(message, model.contribute(state_of(message), data.trained))

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:  # noqa: ARG001  # a ClientApp's form
        margins = model.scores(state_of(message), data.rows)
        return reply(message, bins.count(margins, data.rows, data.group, data.held))

    return app


@dataclass
class Totals(Strategy):
    """Flower's strategy of a recipe over secure sums.

    Attributes:
        model: the recipe.
        bins: of an evaluation.
        test: a public test set; None where nodes evaluate.
        fewest: rows of each label, held out, without which there is no figure: none of a few persons where
            counts are exact, as on the model's card.
        state: the newest.
        figures: of this state; empty where it was not evaluated.
        curves: of all evaluations, name → figures.
        histogram: of this state; empty where it was not evaluated.
    """

    model: Model
    bins: Bins
    test: Data | None
    fewest: int
    state: Any
    figures: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[float]] = field(default_factory=lambda: {"round": [], AUC: [], LOSS: []})
    histogram: list[float] = field(default_factory=list)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask every node for its vector."""
        return _asked(TRAIN, server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Advance by the total; nothing where there is none."""
        del server_round
        reply = total_of(replies)
        if reply is None:
            return None, None
        self.figures, self.histogram = {}, []
        metrics = reply.content.metric_records[METRICS]
        self.state = self.model.advance(
            self.state,
            total(reply.content.array_records[ARRAYS]),
            int(metrics[ROWS]),  # type: ignore[arg-type]
        )
        return record_of(self.model.arrays(self.state)), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask every node for its histogram; nobody where there is a test set."""
        return [] if self.test else _asked(EVALUATE, server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return figures of the total, or of the test set; nothing where there is neither."""
        if self.test is None:
            reply = total_of(replies)
            if reply is None:
                return None
            counts = total(reply.content.array_records[ARRAYS])
            found = measured(self.bins, counts, self.fewest)
        else:
            margins = self.model.scores(self.state, self.test.rows)
            counts = self.bins.count(margins, self.test.rows, self.test.group).astype(np.float64)
            found = exact(margins, self.test.rows.labels)
        self.histogram = counts.tolist()
        self.figures = {name: value for name, value in found.items() if np.isfinite(value)}
        if len(self.figures) == len(found):  # else too few rows, or too much noise on them
            for name, value in {"round": float(server_round), **found}.items():
                self.curves[name].append(value)
        return MetricRecord({"round": server_round, **self.figures})

    def summary(self) -> None:
        """Say nothing: what a job is stands in the job."""


def _asked(
    turn: str, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
) -> list[Message]:
    said = RecordDict({ARRAYS: arrays, CONFIG: ConfigRecord({**config, ROUND: server_round})})
    return [Message(said, node, turn) for node in grid.get_node_ids()]


@dataclass
class Patience:
    """Whether training is over because the AUC on rows it was not trained on rises no more.

    Attributes:
        most: evaluations without betterment; 0 for no end before the last round.
        least: what counts as betterment.
    """

    most: int
    least: float
    best: float = 0.0
    waited: int = 0

    def over(self, figures: dict[str, float]) -> bool:
        """Take the figures of an evaluation."""
        found = figures.get(AUC)  # none where there were too few rows, or too much noise on them
        if found is not None and found >= self.best + self.least:
            self.best, self.waited = found, 0
        else:
            self.waited += 1
        return 0 < self.most <= self.waited


def _lead(settings: WorkerSettings, model: Model, test: Data | None, grid: RelayGrid) -> Trained:
    strategy = Totals(model, bins_of(settings), test, 0 if settings.noisy else FEWEST, model.start())
    patience = Patience(settings.patience, settings.least)

    def over() -> bool:
        grid.facts = dict(strategy.figures)
        return patience.over(strategy.figures)

    rounds(
        strategy,
        grid,
        record_of(model.arrays(strategy.state)),
        model.rounds,
        every=settings.every,
        over=over,
    )
    grid.facts = dict(strategy.figures)
    return Trained(model.arrays(strategy.state), {**strategy.curves, HISTOGRAM: strategy.histogram})


def measured_table(bins: Bins, counts: Floats) -> Floats:
    """Return 2 labels × bins of rows that are held out, of all groups."""
    table: Floats = bins.tables(counts)[HELD_OUT].sum(axis=0)
    return table


def measured(bins: Bins, counts: Floats, fewest: int = 0) -> dict[str, float]:
    """Return AUC and loss of rows that are held out, from a total of histograms.

    Both are NaN where a label has fewer rows than `fewest`.
    """
    table = measured_table(bins, counts)
    if table.sum(axis=1).min() < fewest:
        return {AUC: float("nan"), LOSS: float("nan")}
    return {AUC: auc(table), LOSS: log_loss(table, bins.edges)}


def exact(margins: Floats, labels: npt.NDArray[np.uint8]) -> dict[str, float]:
    """Return AUC, ties counted half, and mean loss of log-odds."""
    others = np.sort(margins[labels == 0])
    own = margins[labels == 1]
    pairs = 2 * len(own) * len(others)
    below = np.searchsorted(others, own, "left").sum() + np.searchsorted(others, own, "right").sum()
    chances = np.clip(np.where(labels == 1, sigmoid(margins), 1 - sigmoid(margins)), 1e-12, 1)
    return {
        AUC: float(below) / pairs if pairs else float("nan"),
        LOSS: float(-np.log(chances).mean()) if len(labels) else float("nan"),
    }


BUILT_IN: Final = recipe(WorkerSettings.made)
"""Minshu's own recipes: which of them a job means stands in its settings."""
