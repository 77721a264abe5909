"""A Flower ClientApp under our rules: which messages reach it, and what becomes of its replies."""

from collections.abc import Mapping
from typing import Final

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as WireRecords
from flwr.supercore.date import now

from node.trainer.arrays import take, words
from node.trainer.grid import TTL_S, digest, read, write
from node.trainer.recipe import ARRAYS, CONFIG, ROUND, Recipe, Settings, Turn
from node.trainer.rows import attach
from protocols.errors import DecodeError, ProtocolAborted
from protocols.training.params import WorkerSettings
from protocols.training.recipe import Layout
from protocols.training.work import LEAD, Begin, Handle, Update, whole

KINDS: Final = frozenset({"train", "evaluate"})
"""What a message may ask for. Flower knows more: `query`, and messages of its own system."""

RECEIPT: Final = "receipt"
"""Name of the one record in a reply to the lead."""

EXCHANGE: Final = "exchange"
"""The one number in it."""


def check_turns(turns: Mapping[str, Turn]) -> None:
    """Check what a recipe declares.

    Raises:
        DecodeError: a type of message that is neither train nor evaluate.
    """
    if not turns or any(kind.split(".")[0] not in KINDS for kind in turns):
        raise DecodeError("a recipe declares a message that neither trains nor evaluates", code="bad-recipe")


def settings_of(begin: Begin) -> Settings:
    """Return the settings of a job.

    Raises:
        DecodeError: `bad-settings`: not of their form, or of another recipe.
    """
    settings = WorkerSettings.decode(begin.settings)
    if settings.recipe != begin.recipe:
        raise DecodeError("settings of another recipe", code="bad-settings")
    return settings


class Contribution:
    """One node's part: messages of the lead in, receipts and vectors out."""

    def __init__(self, begin: Begin, recipe: Recipe, rows_fd: int) -> None:
        """Make the app of `recipe` for the node's rows."""
        settings = settings_of(begin)
        self._begin, self._turns = begin, recipe.turns(settings)
        check_turns(self._turns)
        columns = attach(rows_fd, begin.columns) if begin.columns else {}
        self._app: ClientApp = recipe.client(settings, columns, begin.seed)
        state = recorddict_from_proto(WireRecords.FromString(begin.state))
        self._context = Context(begin.run, begin.node, {}, state, {})

    @property
    def words(self) -> dict[str, int]:
        """Message type → most words of the answer."""
        return {kind: turn.words for kind, turn in self._turns.items()}

    def handle(self, handle: Handle) -> Update:
        """Return what the message leads to.

        Raises:
            ProtocolAborted: the message is not what it should be (of another exchange, another type, with
            other arrays). DecodeError: the app's reply is not what its recipe declares.
        """
        message, layout = self._accept(handle)
        said = digest(message)
        reply = self._app(message, self._context)
        if reply.has_error() or set(reply.content) != {ARRAYS} or not reply.content.array_records:
            raise DecodeError("the recipe's reply is not one record of arrays", code="recipe-reply")
        vector = words(reply.content.array_records[ARRAYS], layout.vector.size)
        receipt = RecordDict({RECEIPT: ConfigRecord({EXCHANGE: handle.exchange})})
        state = self._context.state
        return Update(
            receipt=write(Message(receipt, reply_to=message)),
            turn=message.metadata.message_type,
            digest=said,
            words=vector.astype("<i8").tobytes(),
            largest=layout.largest,
            l1=whole(layout.vector.l1),
            l2_squared=whole(layout.vector.l2_squared),
            state=recorddict_to_proto(state).SerializeToString() if state else b"",
        )

    def _accept(self, handle: Handle) -> tuple[Message, Layout]:
        # (1) It is a message of this run, from the lead to this node.
        message = read(handle.message)
        head = message.metadata
        if (head.run_id, head.src_node_id, head.dst_node_id) != (self._begin.run, LEAD, self._begin.node):
            raise ProtocolAborted("a message of another run or node", code="wrong-message")
        # (2) It asks for what the recipe declares, and nothing else.
        turn = self._turns.get(head.message_type)
        if turn is None or message.has_error():
            raise ProtocolAborted("a message of a type that the recipe does not have", code="wrong-message")
        records = message.content
        if set(records) != {ARRAYS, CONFIG}:
            raise ProtocolAborted("a message with other records than arrays and config", code="wrong-message")
        # (3) It is for the exchange that the party is in: one that was handled never comes here again.
        if head.group_id != str(handle.exchange):
            raise ProtocolAborted("a message of another exchange", code="wrong-exchange")
        config = records.config_records.get(CONFIG, ConfigRecord())
        if {key: type(value) for key, value in config.items()} != {ROUND: int, **turn.config}:
            raise ProtocolAborted("a message with settings that no recipe declares", code="wrong-message")
        # (4) Its arrays are some that the recipe knows; what answers them follows from them alone.
        try:
            layout = turn.layout(take(records.array_records[ARRAYS]))
        except (DecodeError, KeyError):
            raise ProtocolAborted(
                "a message with other arrays than the recipe's", code="wrong-arrays"
            ) from None
        if layout.vector.size > turn.words:
            raise DecodeError("a recipe's vector is longer than it declares", code="bad-recipe")
        # Clocks of nodes differ; the life of a message is counted from its arrival.
        head.created_at, head.ttl = now().timestamp(), TTL_S
        return message, layout
