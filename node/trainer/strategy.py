"""Flower's strategies over a secure sum: what a lead's recipe mixes in or calls."""

from collections.abc import Callable, Iterable
from logging import WARNING, getLogger
from typing import Final

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from protocols.errors import ProtocolAborted
from protocols.training.work import TOTAL

getLogger("flwr").setLevel(WARNING)  # a strategy tells every round at INFO

MAX_TRIES: Final = 64
"""Questions without a total in a row, after which a lead gives up by itself; its party does so earlier."""

SPENT: Final = "turn-spent"
"""The code of a node that has no round of a turn left."""


class OverTotals(Strategy):
    """Mixed in before a strategy of Flower's: it gets the total alone, as the reply of one node that is all
    nodes.

    `class Adam(OverTotals, FedAdam)` is FedAdam whose mean is the one `mean` makes of the secure sum.
    Receipts of nodes never reach the strategy; how many there were, and whether they were enough, the party
    has settled.
    """

    mean: Callable[[Message], Message]
    """Turns the total into what one node would have replied; set by the recipe, such as division by rows."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Hand the total to the strategy."""
        return super().aggregate_train(server_round, self._total(replies))  # type: ignore[safe-super]  # of the strategy behind

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Hand the total to the strategy."""
        return super().aggregate_evaluate(server_round, self._total(replies))  # type: ignore[safe-super]  # of the strategy behind

    def _total(self, replies: Iterable[Message]) -> list[Message]:
        return [self.mean(reply) for reply in replies if reply.metadata.src_node_id == TOTAL]


def total_of(replies: Iterable[Message]) -> Message | None:
    """Return the reply that holds the secure sum, if there is one."""
    return next((reply for reply in replies if reply.metadata.src_node_id == TOTAL), None)


def rounds(
    strategy: Strategy,
    grid: Grid,
    arrays: ArrayRecord,
    number: int,
    *,
    every: int = 0,
    over: Callable[[], bool] = lambda: False,
) -> ArrayRecord:
    """Train for at most `number` rounds and return the model.

    Flower's `Strategy.start` does the same, but evaluates after every round, cannot stop early, and goes on
    with the old model where a round came to nothing; here such a round is held again. Where the nodes have
    spent their rounds, training ends with the model there is.

    Args:
        strategy: of Flower's, over totals.
        grid: whose nodes are asked.
        arrays: of the first model.
        number: of rounds.
        every: evaluate after so many rounds, and after the last; 0 for never.
        over: asked after an evaluation: whether to stop.

    Raises:
        ProtocolAborted: `no-total`: 64 questions in a row came to nothing.
    """
    for now in range(1, number + 1):
        trained = _trained(strategy, grid, now, arrays)
        arrays = trained or arrays
        last = now == number or trained is None
        due = every and (last or now % every == 0)
        if (due and _evaluated(strategy, grid, now, arrays) and over()) or last:
            break
    return arrays


def _trained(strategy: Strategy, grid: Grid, now: int, arrays: ArrayRecord) -> ArrayRecord | None:
    """Return the model after a round; None where no node has a round left."""
    for _ in range(MAX_TRIES):
        asked = strategy.configure_train(now, arrays, ConfigRecord(), grid)
        replies = list(grid.send_and_receive(asked))
        if _spent(replies):
            return None
        new, _metrics = strategy.aggregate_train(now, replies)
        if new is not None:
            return new
    raise _nothing()


def _evaluated(strategy: Strategy, grid: Grid, now: int, arrays: ArrayRecord) -> bool:
    """Evaluate a model; return whether the nodes had a round left for it."""
    for _ in range(MAX_TRIES):
        asked = strategy.configure_evaluate(now, arrays, ConfigRecord(), grid)
        replies = list(grid.send_and_receive(asked))
        if _spent(replies):
            return False
        if strategy.aggregate_evaluate(now, replies) is not None:
            return True
    raise _nothing()


def _spent(replies: list[Message]) -> bool:
    return bool(replies) and all(reply.has_error() and reply.error.reason == SPENT for reply in replies)


def _nothing() -> ProtocolAborted:
    return ProtocolAborted(
        f"{MAX_TRIES} questions in a row came to nothing",
        code="no-total",
        hint="see why nodes did not answer",
    )
