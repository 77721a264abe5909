"""A whole run in one process: nodes' vectors, their sum, noise, the next state. For tests and benches.

The secure sum is a plain sum here. Everything else is what a job does: sensitivities, bounds, distributed
noise, and a cost that is known before the first round.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Generic, TypeVar

import numpy as np

from protocols.dp.cost import Cost
from protocols.dp.mechanism import Budget, calibrate
from protocols.errors import ProtocolAborted
from protocols.party import Rand
from protocols.training.accounting import run_cost
from protocols.training.recipe import MAX_ROWS, Recipe
from protocols.training.schema import Rows

State = TypeVar("State")


@dataclass(frozen=True, slots=True)
class Noise:
    """What noise a run has.

    Attributes:
        rho: ρ of one round.
        honest: nodes whose noise an observer cannot subtract.
    """

    rho: Fraction
    honest: int


@dataclass(frozen=True, slots=True)
class Run(Generic[State]):
    """What a run gave.

    Attributes:
        state: the last.
        cost: of all rounds, for each node.
        largest: of the magnitudes of all words of all sums, as a part of the declared bound.
    """

    state: State
    cost: Cost
    largest: float


def run(
    recipe: Recipe[State],
    nodes: Sequence[Rows],
    rand: Rand,
    noise: Noise | None = None,
    watch: Callable[[State], None] | None = None,
) -> Run[State]:
    """Train on the rows of several nodes.

    Args:
        recipe: with all public numbers.
        nodes: rows of each.
        rand: gives random bytes for noise.
        noise: none without privacy.
        watch: is called with the state after each round.

    Raises:
        ProtocolAborted: `out-of-bounds`: a node's vector is not what it may be.
    """
    state, rows, most = recipe.start(), sum(map(len, nodes)), 0.0
    rounds = 0
    while layout := recipe.layout(state):
        vectors = []
        for node in nodes:
            vector = recipe.contribute(state, node)
            if vector.shape != (layout.vector.size,) or int(np.abs(vector).max()) > layout.bound(len(node)):
                raise ProtocolAborted("a node's vector is beyond its bound", code="out-of-bounds")
            vectors.append(vector)
        total = np.sum(vectors, axis=0)
        most = max(most, float(np.abs(total).max()) / layout.bound(min(rows, MAX_ROWS)))
        scale = 1
        if noise:
            budget = Budget("zcdp", noise.rho)
            (shares,), _ = calibrate([layout.vector], budget, honest=noise.honest, contributors=len(nodes))
            scale = shares.scale
            total = total * scale + sum(shares.draw(rand) for _ in nodes)
        state = recipe.advance(state, total / scale, rows)
        rounds += 1
        if watch:
            watch(state)
    cost = run_cost({"train": Budget("zcdp", noise.rho)}, {"train": rounds}) if noise else Cost()
    return Run(state, cost, most)
