"""The public side of `train-joined`: weights from what is opened. SPEC.md, section 6.

Weights of every iteration are public to matcher and helper. They are kept within the set in which no row that
the schema allows has a score beyond ±B: for each feature the largest and the smallest of its codes' weights
add up, which is exact, where ‖w‖ ≤ B/max‖x‖ would be far smaller.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from protocols.dp.mechanism import Vector
from protocols.joined.moments import adassp_ridge
from protocols.training.joined.cubic import Cubic
from protocols.training.recipe import checked
from protocols.training.schema import Floats, Ints, Rows, Schema

Mask = npt.NDArray[np.bool_]

_LEAST_RIDGE: Final = 1e-9
"""Part of n that is always added: the codes of a feature add up to the constant, so moments are singular."""

_LARGEST: Final = 1 << 20
"""Largest magnitude of a weight, far beyond what steps lead to."""


@dataclass(frozen=True, slots=True)
class Descending:
    """State of `Descent`.

    Attributes:
        round: iterations so far.
        weights: d reals: of codes, and the constant.
        velocity: d.
    """

    round: int
    weights: Floats
    velocity: Floats


@dataclass(frozen=True)
class Linear:
    """Weights whose scores stay within a cubic's bound.

    Attributes:
        schema: coded features of all owners, in order; no amounts, so features are 0 or 1.
        cubic: for scores within its bound.
    """

    schema: Schema
    cubic: Cubic

    @property
    def ones(self) -> int:
        """Features of a row that are 1: one code of each column, and the constant."""
        return len(self.schema.coded) + 1

    def whole(self, weights: Floats) -> Ints:
        """Return weights in whole numbers of 2^-bits, cut towards zero."""
        return np.trunc(weights * (1 << self.cubic.bits)).astype(np.int64)

    def extreme(self, weights: Floats | Ints) -> float:
        """Return the largest magnitude of a score of any row that the schema allows."""
        begins = self.schema.offsets[:-1]
        high = np.maximum.reduceat(weights[:-1], begins).sum() + weights[-1]
        low = np.minimum.reduceat(weights[:-1], begins).sum() + weights[-1]
        return float(max(abs(high), abs(low)))

    def within(self, weights: Ints) -> bool:
        """Return whether no row has a score beyond the bound: what the sensitivity of gradients rests on."""
        most, largest = self.cubic.bound << self.cubic.bits, _LARGEST << self.cubic.bits
        # Sums of larger ones could wrap.
        return bool(((-largest <= weights) & (weights <= largest)).all()) and self.extreme(weights) <= most

    def room(self, weights: Floats) -> float:
        """Return what weights have to be divided by to be within the bound once they are whole; 1 or more.

        The whole vector shrinks, so scores keep their order.
        """
        # Each of the weights of a row moves by less than a unit when it is cut.
        room = self.cubic.bound - (self.ones + 1) / (1 << self.cubic.bits)
        return max(1.0, self.extreme(weights) / room)

    def scores(self, weights: Ints, rows: Rows) -> Floats:
        """Return the log-odds of label 1 for each row."""
        exact = weights[rows.codes + self.schema.offsets[:-1]].sum(axis=1) + weights[-1]
        scores: Floats = exact / (1 << self.cubic.bits)
        return scores


@dataclass(frozen=True)
class Descent(Linear):
    """Gradient descent with momentum.

    Attributes:
        rounds: T.
        step: learning rate for the mean gradient.
        momentum: below 1.
        ridge: λ of λ‖w‖²/2 beside the mean loss; the constant is not penalised.
    """

    rounds: int = 40
    step: float = 1.0
    momentum: float = 0.9
    ridge: float = 0.0

    @cached_property
    def vector(self) -> Vector:
        """What the sum of gradients changes by when one joined row appears or disappears."""
        largest = self.cubic.largest
        return Vector("gradient", self.schema.size, self.ones * largest, self.ones * largest**2)

    def start(self) -> Descending:
        """Return the state before the first iteration."""
        return Descending(0, np.zeros(self.schema.size), np.zeros(self.schema.size))

    def weights(self, state: Descending) -> Ints:
        """Return the weights that the next gradient is taken at, in whole numbers of 2^-bits."""
        return self.whole(state.weights)

    def positives(self, total: Ints, counts: Ints) -> Ints:
        """Return how many rows of each code have label 1, of the first sum of gradients without noise.

        At weights of 0 every score is 0, so a row's residual is a constant less the unit, if its label is 1.

        Args:
            total: d, the sum of gradients in units of 1/K.
            counts: d, how many rows have each code.
        """
        found: Ints = (self.cubic.whole[0] * counts - total) // self.cubic.unit
        return found

    def advance(
        self, state: Descending, total: Floats, rows: float, withheld: Mask | None = None
    ) -> Descending:
        """Return the next state.

        Args:
            state: public.
            total: the sum of gradients, noise included, in units of 1/K.
            rows: n, public or noisy.
            withheld: d, codes whose weights stay 0.

        Raises:
            ProtocolAborted: `bad-total`: another length.
        """
        gradient = checked(total, self.schema.size) / (float(self.cubic.unit) * max(rows, 1.0))
        gradient[:-1] += self.ridge * state.weights[:-1]
        if withheld is not None:
            gradient[withheld] = 0
        velocity = self.momentum * state.velocity + gradient
        weights = state.weights - self.step * velocity
        beyond = self.room(weights)
        if beyond > 1:
            # Momentum begins anew.
            weights, velocity = weights / beyond, np.zeros_like(velocity)
        return Descending(state.round + 1, weights, velocity)


@dataclass(frozen=True)
class OneShot(Linear):
    """A linear model of labels ±1 from second moments, in one release: AdaSSP, Wang 2018 (arXiv:1803.02596).

    Rows are scaled to norm 1, so one changes XᵀX by 1 (Frobenius) and Xᵀy by 1. The smallest eigenvalue is
    taken from the released matrix itself, so there are two releases instead of three. Its margin m foretells
    2P - 1, the hyperbolic tangent of half the log-odds; to first order, log-odds are 2m.

    Attributes:
        ridge: λ, added to the mean of squares at least.
    """

    ridge: float = 0.0

    @property
    def size(self) -> int:
        """Weights: d."""
        return self.schema.size

    @cached_property
    def moments(self) -> Vector:
        """What the upper triangle of XᵀX changes by when one joined row appears or disappears."""
        changed = self.ones * (self.ones + 1) // 2
        return Vector("moments", self.size * (self.size + 1) // 2, changed, changed)

    @cached_property
    def cross(self) -> Vector:
        """What Xᵀy changes by."""
        return Vector("cross", self.size, self.ones, self.ones)

    def fit(
        self, moments: Ints, cross: Ints, rows: float, *, variance: float, withheld: Mask | None = None
    ) -> Ints:
        """Return weights in whole numbers of 2^-bits.

        Args:
            moments: d x d, XᵀX of features 0 and 1, symmetric, noise included.
            cross: d, Xᵀy of labels ±1, noise included.
            rows: n, exact or noisy.
            variance: of the noise on each number of `moments`; 0 where they are exact.
            withheld: d, codes whose weights stay 0.
        """
        kept = np.ones(self.size, np.bool_) if withheld is None else ~withheld
        square = moments[np.ix_(kept, kept)] / self.ones
        # Noise on a row of norm 1: the matrix is divided by `ones`, and its standard deviation with it.
        ridge = adassp_ridge(square, variance**0.5 / self.ones) if variance else 0.0
        ridge = max(ridge, max(self.ridge, _LEAST_RIDGE) * max(rows, 1.0))
        found = np.zeros(self.size)
        # The paper asks for a positive definite matrix; where noise is larger than that, eigenvalues below
        # zero count as none, as for joined moments.
        values, vectors = np.linalg.eigh(square)
        across = vectors.T @ (cross[kept] / self.ones**0.5)
        found[kept] = vectors @ (across / (np.maximum(values, 0) + ridge)) / self.ones**0.5
        return self.whole(2 * found / self.room(2 * found))
