"""Logistic regression by full-batch gradient descent on clipped gradients.

Abadi et al. 2016 (CCS, arXiv:1607.00133) without sampling: T rounds, each the sum of all rows' gradients,
each cut to C. With ρ for the whole run a round's noise is Gaussian with σ = C√(T/2ρ); steps use momentum.
"""

from dataclasses import dataclass
from functools import cached_property
from math import isqrt
from typing import Final

import numpy as np

from protocols.errors import InputError
from protocols.training.recipe import (
    CHUNK,
    GRID_BITS,
    UNBOUNDED,
    Arrays,
    Layout,
    bad_state,
    checked,
    expect,
    gaussian,
    sigmoid,
    within,
)
from protocols.training.schema import AMOUNT_BITS, Floats, Ints, Rows, Schema

WEIGHT_BITS: Final = 20
"""Weights are whole numbers of 2^-20: scores are exact sums, the same however rows are cut."""

_MOST: Final = 1 << 10
"""Largest magnitude of a weight; a step beyond it is cut."""


@dataclass(frozen=True, slots=True)
class Linear:
    """State of `Logistic`.

    Attributes:
        round: rounds so far.
        weights: `Schema.size` whole numbers of 2^-20: of codes, of amounts, and the constant.
        velocity: as many, the running sum of gradients that momentum takes.
    """

    round: int
    weights: Ints
    velocity: Floats


@dataclass(frozen=True)
class Logistic:
    """The recipe `logistic`.

    Attributes:
        schema: features.
        rounds: T.
        clip: C, most ℓ2 norm of one row's gradient; no cut at all where it is √(p + q + 1) or more.
        step: learning rate for the mean gradient.
        momentum: part of the velocity that stays, below 1.
        ridge: λ of λ‖w‖²/2 beside the mean loss; the constant is not penalised.
        radius: weights are projected to this ℓ2 norm; 0 means that they are not.
        rows_per_unit: rows one unit has at most.

    Raises:
        InputError: `bad-params`.
    """

    schema: Schema
    rounds: int = 60
    clip: float = 2.0
    step: float = 2.0
    momentum: float = 0.9
    ridge: float = 0.0
    radius: float = 0.0
    rows_per_unit: int = 1

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not (
            1 <= self.rounds <= 10_000
            and 0 < self.clip <= 1 << 10
            and 0 < self.step <= 1 << 10
            and 0 <= self.momentum < 1
            and 0 <= self.ridge <= 1
            and 0 <= self.radius <= 1 << 10
            and 1 <= self.rows_per_unit <= 1 << 10
        ):
            raise InputError(
                "rounds, clip, step, momentum, ridge, radius or rows of a unit beyond what is possible",
                code="bad-params",
                hint="60 rounds with clip 2, step 2 and momentum 0.9 suit one-hot features",
            )

    @property
    def _one(self) -> int:
        """What a feature of 1 is in the grid of features."""
        return 1 << AMOUNT_BITS if self.schema.amounts else 1

    @cached_property
    def _bound(self) -> int:
        """The clip in units of the gradient's grid: residuals in 2^-`GRID_BITS` times features."""
        return int(self.clip * (1 << GRID_BITS) * self._one)

    def start(self) -> Linear:
        """Return the state before the first round: all weights 0."""
        return Linear(0, np.zeros(self.schema.size, np.int64), np.zeros(self.schema.size))

    def layout(self, state: Linear) -> Layout | None:
        """Return what the next round's vector is: the gradient."""
        if state.round >= self.rounds:
            return None
        return Layout(
            gaussian(self.schema.size, self._bound, self.rows_per_unit),
            min(self._bound, self._one << GRID_BITS),
        )

    def contribute(self, state: Linear, rows: Rows) -> Ints:
        """Return the sum of the rows' gradients, each within the clip exactly."""
        codes = int(self.schema.offsets[-1])
        total = np.zeros(self.schema.size, np.int64)
        for span, some in rows.padded(CHUNK):
            chances = sigmoid(self._margins(state, some))
            residuals = np.trunc((chances - some.labels) * (1 << GRID_BITS)).astype(np.int64)
            # (1) A gradient is residual × features: cutting the residual cuts the gradient, on whole numbers.
            most = self._most(some)
            np.clip(residuals, -most, most, out=residuals)
            residuals[span.stop - span.start :] = 0
            # (2) Sums of 2^12 whole numbers below 2^26 are exact in float64: it does not matter who has
            # which row.
            values = residuals.astype(np.float64)
            for column, (begin, width) in enumerate(
                zip(self.schema.offsets[:-1].tolist(), self.schema.widths, strict=True)
            ):
                sums = np.bincount(some.codes[:, column], values, width)
                total[begin : begin + width] += sums.astype(np.int64) * self._one
            total[codes:-1] += (values @ some.amounts.astype(np.float64)).astype(np.int64)
            total[-1] += int(values.sum()) * self._one
        return total

    def advance(self, state: Linear, total: Floats, rows: int) -> Linear:
        """Return the next state: a step of gradient descent with momentum, then the projection."""
        weights = state.weights / (1 << WEIGHT_BITS)
        gradient = checked(total, self.schema.size) / (rows * self._one * (1 << GRID_BITS))
        gradient[:-1] += self.ridge * weights[:-1]
        velocity = self.momentum * state.velocity + gradient
        weights = np.clip(weights - self.step * velocity, -_MOST, _MOST)
        norm = float(np.linalg.norm(weights))
        if self.radius and norm > self.radius:
            weights *= self.radius / norm
        return Linear(state.round + 1, np.rint(weights * (1 << WEIGHT_BITS)).astype(np.int64), velocity)

    def scores(self, state: Linear, rows: Rows) -> Floats:
        """Return the log-odds of label 1 for each row."""
        found = np.empty(len(rows))
        for span, some in rows.padded(CHUNK):
            found[span] = self._margins(state, some)[: span.stop - span.start]
        return found

    def _margins(self, state: Linear, rows: Rows) -> Floats:
        codes = int(self.schema.offsets[-1])
        total = np.full(len(rows), state.weights[-1], np.int64)
        for column, begin in enumerate(self.schema.offsets[:-1].tolist()):
            total += state.weights[begin + rows.codes[:, column].astype(np.int64)]
        exact: Floats = total.astype(np.float64)
        if self.schema.amounts:
            amounts = rows.amounts.astype(np.int64) @ state.weights[codes:-1]
            exact += amounts / (1 << AMOUNT_BITS)
        return exact / (1 << WEIGHT_BITS)

    def arrays(self, state: Linear) -> Arrays:
        """Return the state as named arrays."""
        return {
            "round": np.array([state.round], np.int64),
            "weights": state.weights,
            "velocity": state.velocity,
        }

    def restore(self, arrays: Arrays) -> Linear:
        """Return the state that `arrays` was made of.

        Raises:
            DecodeError: `bad-state`.
        """
        shape = (self.schema.size,)
        expect(
            arrays, {"round": ((1,), "int64"), "weights": (shape, "int64"), "velocity": (shape, "float64")}
        )
        found = Linear(int(arrays["round"][0]), arrays["weights"], arrays["velocity"])
        if not (
            0 <= found.round <= self.rounds
            and within(found.weights, _MOST << WEIGHT_BITS)
            and within(found.velocity, UNBOUNDED)
        ):
            raise bad_state("a state of a round, or with weights, that no run comes to")
        return found

    def _most(self, rows: Rows) -> Ints:
        """Return the most that each row's residual may be, in units of 2^-`GRID_BITS`."""
        one = self._one
        amounts = rows.amounts.astype(np.int64)
        squares = (amounts * amounts).sum(axis=1) + (len(self.schema.coded) + 1) * one * one
        # Few rows differ in their square: ⌊√(bound² / square)⌋ of each that occurs.
        found, places = np.unique(squares, return_inverse=True)
        roots = [isqrt(self._bound**2 // square) for square in found.tolist()]
        return np.array(roots, np.int64)[places]
