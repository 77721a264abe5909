"""A perceptron with one hidden layer, trained on clipped gradients of single rows.

Opacus gives each row's gradient; it adds no noise here and counts no budget. PyTorch and Opacus are imported
when a vector is made, so that who only reads a state or a score needs neither.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import shake_256
from typing import Any, Final

import numpy as np

from protocols.errors import InputError
from protocols.training.grid import cut
from protocols.training.recipe import (
    GRID_BITS,
    UNBOUNDED,
    Arrays,
    Layout,
    bad_state,
    checked,
    expect,
    gaussian,
    within,
)
from protocols.training.schema import Floats, Ints, Rows, Schema

_CHUNK: Final = 512
_ROOM: Final = 1 << 22
"""Rows whose gradients are in memory at a time, and numbers that these are."""

_MOST: Final = 1 << 10
"""Largest magnitude of a weight; a step beyond it is cut."""

_BOUND: Final = 1 << (GRID_BITS + 4)
"""The clip in units of the grid: finer than that of `logistic`, as every coordinate is rounded."""

_DECAY: Final = (0.9, 0.999)
_DOMAIN: Final = b"minshu/train-mlp/1"


@dataclass(frozen=True, slots=True)
class Perceptron:
    """State of `Mlp`.

    Attributes:
        round: rounds so far.
        weights: d numbers: hidden weights unit by unit, hidden constants, output weights, output constant.
        mean: d, running mean of gradients (Adam's first moment).
        square: d, running mean of their squares (Adam's second).
    """

    round: int
    weights: Floats
    mean: Floats
    square: Floats


@dataclass(frozen=True)
class Mlp:
    """The recipe `mlp`.

    Attributes:
        schema: features.
        hidden: units.
        rounds: T.
        clip: C, most ℓ2 norm of one row's gradient.
        step: learning rate of Adam.
        decay: Adam's, of the weights themselves (Loshchilov and Hutter 2019), per step of 1.
        rows_per_unit: rows one unit has at most.
        seed: of the first weights, public.

    Raises:
        InputError: `bad-params`.
    """

    schema: Schema
    hidden: int = 16
    rounds: int = 60
    clip: float = 1.0
    step: float = 0.02
    decay: float = 0.0
    rows_per_unit: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not (
            1 <= self.hidden <= 512
            and 1 <= self.rounds <= 100_000
            and 0 < self.clip <= 1 << 10
            and 0 < self.step <= 1
            and 0 <= self.decay <= 1
            and 1 <= self.rows_per_unit <= 1 << 10
        ):
            raise InputError(
                "hidden units, rounds, clip, step, decay or rows of a unit beyond what is possible",
                code="bad-params",
                hint="16 hidden units, 60 rounds with clip 1 and step 0.02 suit one-hot features",
            )

    @cached_property
    def size(self) -> int:
        """Weights in all, d."""
        inputs = self.schema.size - 1
        return self.hidden * (inputs + 1) + self.hidden + 1

    def start(self) -> Perceptron:
        """Return the state before the first round: hidden weights uniform within ±1/√p, the output 0."""
        inputs = self.schema.size - 1
        # Made of a hash, so that it is the same for every release of every library.
        words = shake_256(_DOMAIN + self.seed.to_bytes(8, "big")).digest(8 * self.hidden * inputs)
        uniform = (np.frombuffer(words, "<u8") >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1
        weights = np.zeros(self.size)
        active = len(self.schema.coded) + len(self.schema.amounts)
        weights[: self.hidden * inputs] = uniform / np.sqrt(active)
        return Perceptron(0, weights, np.zeros(self.size), np.zeros(self.size))

    def layout(self, state: Perceptron) -> Layout | None:
        """Return what the next round's vector is: the gradient."""
        if state.round >= self.rounds:
            return None
        return Layout(gaussian(self.size, _BOUND, self.rows_per_unit), _BOUND)

    def contribute(self, state: Perceptron, rows: Rows) -> Ints:
        """Return the sum of the rows' gradients, each within the clip exactly."""
        total = np.zeros(self.size, np.int64)
        for count, gradients in self._gradients(state, rows):
            total += cut(gradients, self.clip, _BOUND)[:count].sum(axis=0)
        return total

    @property
    def _chunk(self) -> int:
        """Rows that are looked at together: always so many, whatever a filter has left."""
        return max(1, min(_CHUNK, _ROOM // self.size))

    def advance(self, state: Perceptron, total: Floats, rows: int) -> Perceptron:
        """Return the next state: a step of Adam (Kingma and Ba 2015, arXiv:1412.6980)."""
        gradient = checked(total, self.size) * (self.clip / (_BOUND * rows))
        first, second = _DECAY
        mean = first * state.mean + (1 - first) * gradient
        square = second * state.square + (1 - second) * gradient**2
        step = state.round + 1
        moved = (mean / (1 - first**step)) / (np.sqrt(square / (1 - second**step)) + 1e-8)
        weights = state.weights - self.step * (moved + self.decay * state.weights)
        return Perceptron(step, np.clip(weights, -_MOST, _MOST), mean, square)

    def scores(self, state: Perceptron, rows: Rows) -> Floats:
        """Return the log-odds of label 1 for each row."""
        hidden, constants, output, constant = self._parts(state.weights)
        found = np.empty(len(rows))
        for span, some in rows.padded(self._chunk):
            margins = np.tanh(self.schema.dense(some) @ hidden.T + constants) @ output + constant
            found[span] = margins[: span.stop - span.start]
        return found

    def arrays(self, state: Perceptron) -> Arrays:
        """Return the state as named arrays."""
        return {
            "round": np.array([state.round], np.int64),
            "weights": state.weights,
            "mean": state.mean,
            "square": state.square,
        }

    def restore(self, arrays: Arrays) -> Perceptron:
        """Return the state that `arrays` was made of.

        Raises:
            DecodeError: `bad-state`.
        """
        one = ((self.size,), "float64")
        expect(arrays, {"round": ((1,), "int64"), "weights": one, "mean": one, "square": one})
        found = Perceptron(int(arrays["round"][0]), arrays["weights"], arrays["mean"], arrays["square"])
        # Weights within bounds: no sum of theirs overflows, and every gradient is finite on every row.
        if not (
            0 <= found.round <= self.rounds
            and within(found.weights, _MOST)
            and within(found.mean, UNBOUNDED)
            and within(found.square, UNBOUNDED)
            and found.square.min() >= 0
        ):
            raise bad_state("a state of a round, or with weights, that no run comes to")
        return found

    def _parts(self, weights: Floats) -> tuple[Floats, Floats, Floats, float]:
        inputs = self.schema.size - 1
        hidden, constants, output, constant = np.split(
            weights, np.cumsum([self.hidden * inputs, self.hidden, self.hidden])
        )
        return hidden.reshape(self.hidden, inputs), constants, output, float(constant[0])

    def _gradients(self, state: Perceptron, rows: Rows) -> Iterator[tuple[int, Floats]]:
        """Yield the gradients of k rows at a time, k × d, and how many of them are of rows."""
        import torch
        from opacus import GradSampleModule  # type: ignore[import-untyped]  # ships no types

        module = GradSampleModule(self._module(state), loss_reduction="sum")
        for span, some in rows.padded(self._chunk):
            # Opacus' hooks want an input that has a gradient.
            margins = module(torch.from_numpy(self.schema.dense(some)).requires_grad_())[:, 0]
            labels = torch.from_numpy(some.labels.astype(np.float64))
            loss = torch.nn.functional.binary_cross_entropy_with_logits(margins, labels, reduction="sum")
            torch.autograd.backward(loss)
            single = [each.grad_sample.reshape(len(some), -1) for each in module.parameters()]
            yield span.stop - span.start, torch.cat(single, dim=1).numpy()
            module.zero_grad(set_to_none=True)

    def _module(self, state: Perceptron) -> Any:
        import torch

        hidden, constants, output, constant = self._parts(state.weights)
        module = torch.nn.Sequential(
            torch.nn.Linear(hidden.shape[1], self.hidden, dtype=torch.float64),
            torch.nn.Tanh(),
            torch.nn.Linear(self.hidden, 1, dtype=torch.float64),
        )
        values = (hidden, constants, output[None], np.array([constant]))
        with torch.no_grad():
            for parameter, value in zip(module.parameters(), values, strict=True):
                parameter.copy_(torch.from_numpy(value.copy()))
        return module
