"""Flower apps of one's own: logistic regression with Flower's FedAdam on the lead.

The ClientApp is written as for Flower, but for one rule: its reply is whole numbers, in which each row has a
bounded part. `cut` sees to that: the gradient of a row is shortened to `clip` in ℓ2 norm and becomes whole
numbers of clip / 2^16, rounded towards zero. Settings: `clip`, `step`, `eta` (of Adam).
"""

from collections.abc import Iterable
from typing import Final

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.app.message import make_message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdam

from node.trainer.apps import Data
from node.trainer.arrays import record_of, take, total
from node.trainer.grid import RelayGrid
from node.trainer.recipe import ARRAYS, METRICS, ROWS, Columns, Recipe, Settings, Trained, Turn
from node.trainer.strategy import OverTotals, rounds
from protocols.errors import InputError
from protocols.training.grid import cut
from protocols.training.recipe import Arrays, Layout, expect, gaussian, sigmoid
from protocols.training.schema import Floats, Ints, Rows, Schema

BOUND: Final = 1 << 16
"""The clip in units of the grid."""

_SETTINGS: Final = {"clip": "2", "step": "1", "eta": "0.1"}


def numbers(settings: Settings) -> dict[str, float]:
    """Return the settings as numbers.

    Raises:
        InputError: `bad-settings`.
    """
    given = {**_SETTINGS, **settings.settings}
    try:
        found = {name: float(text) for name, text in given.items()}
    except ValueError:
        found = {}
    if set(found) != set(_SETTINGS) or not all(0 < number <= 1000 for number in found.values()):
        raise InputError("settings that this recipe does not have", code="bad-settings")
    return found


def turns(settings: Settings) -> dict[str, Turn]:
    """Return what messages hold: weights down, the sum of gradients up. Nobody evaluates."""
    numbers(settings)
    size = settings.schema.size

    def answer(arrays: Arrays) -> Layout:
        expect(arrays, {"w": ((size,), "float64")})
        return Layout(gaussian(size, BOUND, settings.unit_rows), BOUND)

    return {"train": Turn(size, answer)}


def gradient(schema: Schema, rows: Rows, weights: Floats, clip: float) -> Ints:
    """Return the sum of the rows' gradients, each cut to `clip`, in units of clip / `BOUND`."""
    features = np.column_stack([schema.dense(rows), np.ones(len(rows))])
    wrong = sigmoid(features @ weights) - rows.labels
    whole: Ints = cut(features * wrong[:, None], clip, BOUND).sum(axis=0)
    return whole


def client(settings: Settings, columns: Columns, seed: bytes) -> ClientApp:
    """Return the app of a node."""
    del seed
    app, data, clip = ClientApp(), Data.of(settings, columns), numbers(settings)["clip"]

    @app.train()
    def train(message: Message, context: Context) -> Message:
        del context
        weights = take(message.content.array_records[ARRAYS])["w"]
        words = gradient(settings.schema, data.trained, weights, clip)
        return Message(RecordDict({ARRAYS: record_of({"words": words})}), reply_to=message)

    return app


class Adam(OverTotals, FedAdam):
    """FedAdam, to which the secure sum is one node whose weights are a step down the mean gradient."""

    def __init__(self, *, clip: float, step: float, eta: float) -> None:
        """Take all nodes there are."""
        super().__init__(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1, eta=eta, tau=0.001)
        self._scale, self._weights = step * clip / BOUND, np.zeros(0)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Remember where the step begins."""
        self._weights = take(arrays)["w"]
        return super().configure_train(server_round, arrays, config, grid)

    def mean(self, reply: Message) -> Message:
        """Return the total as the reply of one node."""
        rows = reply.content.metric_records[METRICS][ROWS]
        assert isinstance(rows, int)
        stepped = self._weights - self._scale * total(reply.content.array_records[ARRAYS]) / rows
        said = RecordDict({ARRAYS: record_of({"w": stepped}), METRICS: MetricRecord({ROWS: 1})})
        return make_message(reply.metadata, said)


def lead(settings: Settings, columns: Columns, seed: bytes, grid: RelayGrid) -> Trained:
    """Train for all rounds."""
    del columns, seed
    first = record_of({"w": np.zeros(settings.schema.size)})
    return Trained(take(rounds(Adam(**numbers(settings)), grid, first, settings.rounds)))


RECIPE: Final = Recipe(turns, client, lead)
