"""What a recipe is: Flower apps, and what their messages hold.

A recipe's distribution names an instance of `Recipe` as an entry point in the group `minshu.recipes`. Its
apps are ordinary Flower apps. A ClientApp answers a message with one ArrayRecord of one vector of whole
numbers; the worker takes that record out, so no update is ever in a message: it goes into the secure sum,
and Flower's reply is a receipt.

Most recipes need no apps of their own: `apps.recipe` makes them of a `protocols.training.recipe.Recipe`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import numpy.typing as npt
from flwr.clientapp import ClientApp

from node.trainer.grid import RelayGrid
from protocols.training.params import WorkerSettings
from protocols.training.recipe import Arrays, Layout

ARRAYS: Final = "arrays"
"""Name of the ArrayRecord in every message, as Flower's strategies have it."""

CONFIG: Final = "config"
"""Name of the ConfigRecord in a message of the lead."""

METRICS: Final = "metrics"
"""Name of the MetricRecord beside a total."""

ROWS: Final = "num-examples"
"""Rows in a total, in its MetricRecord: where Flower's strategies look for the weight of a reply."""

ROUND: Final = "server-round"
"""The round in a ConfigRecord."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One type of message.

    Attributes:
        words: most that a vector has which such a message is answered with.
        layout: the arrays of a message → the vector that answers it: how long, and what one row adds at
            most. It raises DecodeError where no message of the recipe has these arrays.
        config: further keys of the lead's ConfigRecord, with the type of each. Whatever bounds an update is
            no such key: clip, rounds and numbers of peers stand in the job, which every node has approved.
    """

    words: int
    layout: Callable[[Arrays], Layout]
    config: Mapping[str, type[int] | type[float] | type[bool]] = field(default_factory=dict)


Columns: TypeAlias = Mapping[str, npt.NDArray[Any]]
Settings: TypeAlias = WorkerSettings


@dataclass(frozen=True, slots=True)
class Trained:
    """What a lead ends with.

    Attributes:
        arrays: of the last state.
        curves: name → figure at each point of the run.
    """

    arrays: Arrays
    curves: Mapping[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train one kind of model.

    Attributes:
        turns: settings → message type (`train`, `evaluate`, `train.split`, …) → what it holds.
        client: settings, columns, 32-byte seed → the app that contributes.
        lead: settings, columns, seed, grid → the model. It may run any Flower strategy; see `strategy`. It
            has no rows but those of a public test set: what it knows are totals. What it puts into
            `grid.facts` is shown.
    """

    turns: Callable[[Settings], Mapping[str, Turn]]
    client: Callable[[Settings, Columns, bytes], ClientApp]
    lead: Callable[[Settings, Columns, bytes, RelayGrid], Trained]
