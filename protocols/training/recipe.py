"""What every recipe is: pure functions between rows, a public state and one vector of whole numbers a round.

A node turns its rows into a vector, a secure sum adds the nodes' vectors up, and the sum, with or without
noise, is all that the next state is made of. A row's part of the vector is cut to its bound on whole
numbers, so the sensitivity holds exactly, and the sum is the same however rows are spread over nodes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any, Final, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from protocols.dp.mechanism import Vector
from protocols.errors import DecodeError, ProtocolAborted
from protocols.training.schema import Floats, Ints, Rows, Schema

GRID_BITS: Final = 16
"""One row's part of a vector is a whole number of 2^-16 of its bound."""

MAX_ROWS: Final = 1 << 26
"""Rows of all nodes together at most."""

CHUNK: Final = 1 << 12
"""Rows that are looked at together: always so many, so that memory does not say how many there are."""

UNBOUNDED: Final = 2.0**120
"""No honest total drives what an optimiser remembers beyond it: totals are below 2^61."""


@dataclass(frozen=True, slots=True)
class Layout:
    """One round's vector, known before any data is looked at.

    Attributes:
        vector: its length, and what one unit changes it by at most.
        largest: of the magnitudes that one row adds to any word.
    """

    vector: Vector
    largest: int

    def bound(self, rows: int) -> int:
        """Return what no word of a sum over so many rows exceeds."""
        return rows * self.largest


Arrays = dict[str, npt.NDArray[Any]]
"""A state in named arrays, as safetensors keeps them."""

State = TypeVar("State")


class Recipe(Protocol[State]):
    """A way to train, with all of its public numbers."""

    @property
    def schema(self) -> Schema:
        """What it sees of a row."""

    @property
    def rounds(self) -> int:
        """Rounds at most: what is reserved before the first one."""

    def start(self) -> State:
        """Return the state before the first round."""

    def layout(self, state: State) -> Layout | None:
        """Return what the next round's vector is; None where training is over."""

    def contribute(self, state: State, rows: Rows) -> Ints:
        """Return a node's vector: the sum over its rows of what each adds. All rows take part in every round.

        Args:
            state: public.
            rows: of this node.
        """

    def advance(self, state: State, total: Floats, rows: int) -> State:
        """Return the next state.

        Args:
            state: public.
            total: the sum of all vectors, noise included, in the same unit.
            rows: of all nodes together, a public number.

        Raises:
            ProtocolAborted: `bad-total`.
        """

    def scores(self, state: State, rows: Rows) -> Floats:
        """Return the log-odds of label 1 for each row."""

    def arrays(self, state: State) -> Arrays:
        """Return the state as named arrays."""

    def restore(self, arrays: Arrays) -> State:
        """Return the state that `arrays` was made of.

        Whatever it takes, `contribute` and `scores` take on any rows: a state that made them fail, or
        overflow, on some rows and not on others would ask about rows without noise.

        Raises:
            DecodeError: `bad-state`: other names, shapes or types, a number that is none, or one that no
                `advance` makes.
        """


def gaussian(size: int, bound: int, rows_per_unit: int) -> Vector:
    """Return the vector to which a unit adds rows of ℓ2 norm `bound` at most, so many of them."""
    l2 = bound * rows_per_unit
    return Vector("update", size, (isqrt(size - 1) + 1) * l2, l2**2)


def checked(total: Floats, size: int) -> Floats:
    """Return a received total.

    Raises:
        ProtocolAborted: `bad-total`: another length, or a value that is no number.
    """
    if total.shape != (size,) or not np.isfinite(total).all():
        raise ProtocolAborted(
            f"a total of {total.shape} values, {size} finite ones expected",
            code="bad-total",
            hint="run the same release on every node",
        )
    return total


def sigmoid(margins: Floats) -> Floats:
    """Return 1/(1 + exp(-margin))."""
    chances: Floats = 1 / (1 + np.exp(-np.clip(margins, -40.0, 40.0)))
    return chances


def expect(arrays: Arrays, expected: Mapping[str, tuple[tuple[int, ...], str]]) -> None:
    """Check names, shapes and types of a state, and that all of its numbers are some.

    Raises:
        DecodeError: `bad-state`.
    """
    found = {name: (array.shape, str(array.dtype)) for name, array in arrays.items()}
    if found != expected or not all(np.isfinite(array).all() for array in arrays.values()):
        raise bad_state("a state whose arrays, shapes or types are not those of the recipe")


def within(array: npt.NDArray[Any], most: float) -> bool:
    """Return whether no number of an array has a larger magnitude; an array without numbers is within."""
    # Not np.abs: the least int64 has no positive counterpart.
    return not array.size or (array.min() >= -most and array.max() <= most)


def bad_state(why: str) -> DecodeError:
    """Return the refusal of a state."""
    return DecodeError(why, code="bad-state", hint="run the same release and the same job on every node")
