"""Naive Bayes: the smallest recipe that is fit for noise. One round of counting is all it takes.

A row adds 1 to the cell of its label, and 1 to the cell of its label and code for each feature. So with p
features a person with one row changes the counts by p + 1 in ℓ1 norm and by √(p + 1) in ℓ2 norm, exactly;
nothing has to be clipped. Settings: `smoothing`, rows that every cell is taken to have beside its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from node.trainer import apps
from protocols.dp.mechanism import Vector
from protocols.errors import InputError
from protocols.training.params import WorkerSettings
from protocols.training.recipe import Arrays, Layout, checked, expect
from protocols.training.schema import Floats, Ints, Rows, Schema


@dataclass(frozen=True, slots=True)
class Counts:
    """What is known so far.

    Attributes:
        round: 0 before the counts are there, 1 after.
        cells: 2 labels × (rows, then rows of each code).
    """

    round: int
    cells: Floats


@dataclass(frozen=True)
class Bayes:
    """The recipe `bayes`: see `protocols.training.recipe.Recipe` for what each part has to do."""

    schema: Schema
    smoothing: float
    rows_per_unit: int
    rounds: int = 1

    @property
    def _shape(self) -> tuple[int, int]:
        return 2, 1 + int(self.schema.offsets[-1])

    @property
    def _features(self) -> list[tuple[int, int]]:
        """Where each feature's codes begin, and how many there are."""
        return list(zip(self.schema.offsets[:-1].tolist(), self.schema.widths, strict=True))

    def start(self) -> Counts:
        """Return the state before the counting."""
        return Counts(0, np.zeros(self._shape))

    def layout(self, state: Counts) -> Layout | None:
        """Return what the counts are as a vector."""
        if state.round:
            return None
        labels, cells = self._shape
        each, rows = len(self.schema.coded) + 1, self.rows_per_unit
        return Layout(Vector("update", labels * cells, rows * each, rows**2 * each), 1)

    def contribute(self, state: Counts, rows: Rows) -> Ints:
        """Return a node's counts."""
        del state
        counts = np.zeros(self._shape, np.int64)
        labels = rows.labels.astype(np.int64)
        counts[:, 0] = np.bincount(labels, minlength=2)
        for column, (begin, width) in enumerate(self._features):
            cells = np.bincount(labels * width + rows.codes[:, column], minlength=2 * width)
            counts[:, 1 + begin : 1 + begin + width] = cells.reshape(2, width)
        return counts.ravel()

    def advance(self, state: Counts, total: Floats, rows: int) -> Counts:
        """Return the counts of all nodes; noise may have taken some below zero."""
        del rows
        cells = checked(total, self._shape[0] * self._shape[1]).reshape(self._shape)
        return Counts(state.round + 1, np.maximum(cells, 0))

    def scores(self, state: Counts, rows: Rows) -> Floats:
        """Return the log-odds of label 1 for each row."""
        labels = np.log(state.cells[:, 0] + self.smoothing)
        odds = np.full(len(rows), labels[1] - labels[0])
        for column, (begin, width) in enumerate(self._features):
            here = state.cells[:, 1 + begin : 1 + begin + width] + self.smoothing
            share = np.log(here / here.sum(axis=1, keepdims=True))
            odds += (share[1] - share[0])[rows.codes[:, column]]
        return odds

    def arrays(self, state: Counts) -> Arrays:
        """Return the state as named arrays."""
        return {"round": np.array([state.round], np.int64), "cells": state.cells}

    def restore(self, arrays: Arrays) -> Counts:
        """Return the state that `arrays` was made of.

        Raises:
            DecodeError: `bad-state`.
        """
        expect(arrays, {"round": ((1,), "int64"), "cells": (self._shape, "float64")})
        return Counts(int(arrays["round"][0]), arrays["cells"])


_SETTINGS: Final[Mapping[str, str]] = {"smoothing": "1"}


def make(settings: WorkerSettings, seed: int) -> Bayes:
    """Return the recipe of a job.

    Raises:
        InputError: `bad-settings`: another setting, or none that could be; amounts, or several rounds.
    """
    del seed
    found = {**_SETTINGS, **settings.settings}
    try:
        smoothing = float(found["smoothing"])
    except ValueError:
        smoothing = 0.0
    if set(found) != set(_SETTINGS) or not 0 < smoothing <= 1e6 or settings.schema.amounts:
        raise InputError(
            "settings or features that naive Bayes does not have",
            code="bad-settings",
            hint='write settings = { smoothing = "1" }, and cut numbers into bins',
        )
    if settings.rounds != 1:
        raise InputError(
            f"{settings.rounds} rounds, but one is all it takes", code="bad-settings", hint="write rounds = 1"
        )
    return Bayes(settings.schema, smoothing, settings.unit_rows)


RECIPE: Final = apps.recipe(make)
