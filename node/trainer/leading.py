"""A Flower ServerApp under our rules: its questions go to its party, back come receipts and a total."""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

import numpy as np
from flwr.app import Error, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode

from node.trainer.arrays import record_of, take
from node.trainer.contributing import check_turns, settings_of
from node.trainer.grid import RelayGrid, Reply, digest, write
from node.trainer.recipe import ARRAYS, METRICS, ROWS, Recipe
from node.trainer.rows import attach
from protocols.errors import DecodeError
from protocols.training.model import pack
from protocols.training.work import TOTAL, Answer, Ask, Begin, Done

_FLOWERS: Final = {
    "node-gone": ErrorCode.NODE_UNAVAILABLE,
    "recipe-failed": ErrorCode.CLIENT_APP_RAISED_EXCEPTION,
    "worker-gone": ErrorCode.CLIENT_APP_CRASHED,
}
"""Our codes in Flower's numbers; others are UNKNOWN there, with ours as the reason."""


class Lead:
    """The part that leads: runs the recipe's strategy over `ask`."""

    def __init__(self, begin: Begin, recipe: Recipe, ask: Callable[[Ask], Answer], rows_fd: int = -1) -> None:
        """Begin with what puts questions to the party and returns its answers."""
        self._begin, self._recipe, self._ask = begin, recipe, ask
        self._settings = settings_of(begin)
        self._turns = recipe.turns(self._settings)
        check_turns(self._turns)
        self._columns = attach(rows_fd, begin.columns) if begin.columns else {}
        self._grid = RelayGrid(begin.run, begin.nodes, self._exchange)

    @property
    def words(self) -> dict[str, int]:
        """Message type → most words of the total."""
        return {kind: turn.words for kind, turn in self._turns.items()}

    def run(self) -> Done:
        """Train, and return the model."""
        trained = self._recipe.lead(self._settings, self._columns, self._begin.seed, self._grid)
        model = pack(trained.arrays)
        return Done(model, self._grid.facts, dict(trained.curves))

    def _exchange(self, number: int, messages: Sequence[Message]) -> Iterable[tuple[int, Reply]]:
        # One total is made of all answers, so all nodes are asked, and the same.
        if sorted(message.metadata.dst_node_id for message in messages) != sorted(self._begin.nodes):
            raise DecodeError("a question that not every node is asked", code="bad-recipe")
        said = {digest(message) for message in messages}
        if len(said) != 1:
            raise DecodeError("nodes are asked different things in one exchange", code="bad-recipe")
        first = messages[0]
        turn = self._turns.get(first.metadata.message_type)
        if turn is None:
            raise DecodeError("a question of a type that the recipe does not declare", code="bad-recipe")
        size = turn.layout(take(first.content.array_records[ARRAYS])).vector.size
        answer = self._ask(
            Ask(
                exchange=number,
                turn=first.metadata.message_type,
                messages=tuple((message.metadata.dst_node_id, write(message)) for message in messages),
                digest=said.pop(),
                facts=dict(self._grid.facts),
            )
        )
        heard = [node for node, _ in (*answer.receipts, *answer.failed)]
        if sorted(heard) != sorted(self._begin.nodes):
            raise DecodeError("not one answer for every node that was asked", code="bad-message")
        yield from answer.receipts
        for node, code in answer.failed:
            yield node, Error(_FLOWERS.get(code, ErrorCode.UNKNOWN), code)
        if answer.total is not None:
            yield TOTAL, _content(answer.total, size, answer.rows)


def _content(total: bytes, size: int, rows: int) -> RecordDict:
    """Return what a reply from `TOTAL` holds."""
    vector = np.frombuffer(total, "<f8") if len(total) == 8 * size else np.zeros(0)
    if vector.shape != (size,) or not np.isfinite(vector).all():
        raise DecodeError(f"a total is not {size} finite numbers", code="bad-total")
    return RecordDict({ARRAYS: record_of({"total": vector}), METRICS: MetricRecord({ROWS: rows})})
