"""Flower's Grid over a callable: messages out, receipts and one total back.

There is no SuperLink. What Flower's apps need of one is here: numbers for messages, and replies that belong
to them.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from flwr.app import Error, Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto, recorddict_to_proto
from flwr.proto.message_pb2 import Message as WireMessage
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from google.protobuf.message import DecodeError as NotProtobuf

from protocols.errors import DecodeError
from protocols.training.work import LEAD

TTL_S: Final = 86_400.0
"""Life of a message in Flower's bookkeeping, in seconds; deadlines are the party's."""

Reply = bytes | Error | RecordDict
"""A node's reply, an error in its place, or what the total holds."""

Exchange = Callable[[int, Sequence[Message]], Iterable[tuple[int, Reply]]]
"""Takes the number of the exchange and a message for each of some nodes. Gives (node, reply) or (node,
error), and (TOTAL, content) for a total."""


class RelayGrid(Grid):
    """A Grid whose nodes are reached through `exchange`."""

    def __init__(self, run: int, nodes: Sequence[int], exchange: Exchange) -> None:
        """Begin run `run` with these nodes."""
        self._run, self._nodes, self._exchange = Run.create_empty(run), tuple(nodes), exchange
        self._exchanges, self._kept = 0, list[Message]()
        self.facts: dict[str, float] = {}
        """What may be shown of the run so far; it goes with the next question."""

    def set_run(self, run: Run) -> None:
        """Take another description of the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a message; Flower's older way of making one."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Return all nodes: who takes part is settled before a worker starts."""
        return self._nodes

    def send_and_receive(
        self,
        messages: Iterable[Message],
        *,
        timeout: float | None = None,  # noqa: ARG002 - deadlines are the party's
    ) -> Iterable[Message]:
        """Return the nodes' replies to their messages, and one from `TOTAL` where there is a total.

        The messages get numbers, and the number of this exchange as their group. A reply that does not belong
        to its message becomes an error. `timeout` is not heeded.

        Raises:
            ValueError: two messages for one node.
        """
        asked: dict[int, Message] = {}
        for message in messages:
            node = message.metadata.dst_node_id
            message.metadata.group_id = str(self._exchanges + 1)
            message.metadata.__dict__["_message_id"] = f"{self._exchanges + 1}-{node}"
            if asked.setdefault(node, message) is not message:
                raise ValueError("two messages for one node in one exchange")
        if not asked:
            return []
        self._exchanges += 1
        given = self._exchange(self._exchanges, [asked[node] for node in sorted(asked)])
        return [_reply(node, what, asked) for node, what in given]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Exchange at once; `pull_messages` has the replies."""
        sent = list(messages)
        self._kept += self.send_and_receive(sent)
        return [message.metadata.message_id for message in sent]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return what there is for these messages."""
        wanted = set(message_ids)
        found = [m for m in self._kept if m.metadata.reply_to_message_id in wanted]
        self._kept = [m for m in self._kept if m.metadata.reply_to_message_id not in wanted]
        return found


def write(message: Message) -> bytes:
    """Return a message's bytes."""
    return message_to_proto(message).SerializeToString()


def read(body: bytes) -> Message:
    """Return the message that these bytes are.

    Raises:
        DecodeError: they are none.
    """
    try:
        return message_from_proto(WireMessage.FromString(body))
    except (NotProtobuf, ValueError, TypeError, KeyError):
        raise DecodeError("not a Flower message", code="bad-message") from None


def digest(message: Message) -> bytes:
    """Return SHA-256 of what a message says and asks for, without its number, times and node."""
    said = hashlib.sha256(message.metadata.message_type.encode() + b"\0")
    said.update(recorddict_to_proto(message.content).SerializeToString(deterministic=True))
    return said.digest()


def _reply(node: int, what: Reply, asked: dict[int, Message]) -> Message:
    if isinstance(what, RecordDict):
        first = next(iter(asked.values()))
        return make_message(_metadata(first, node), content=what)
    message = asked[node]
    if isinstance(what, Error):
        return Message(what, reply_to=message)
    try:
        reply = read(what)
    except DecodeError:
        return _unfit(message)
    head, expected = reply.metadata, message.metadata
    belongs = (
        head.reply_to_message_id == expected.message_id
        and (head.src_node_id, head.dst_node_id) == (node, LEAD)
        and (head.run_id, head.message_type) == (expected.run_id, expected.message_type)
    )
    return reply if belongs else _unfit(message)


def _unfit(message: Message) -> Message:
    return Message(Error(ErrorCode.REPLY_MESSAGE_UNAVAILABLE, "bad-message"), reply_to=message)


def _metadata(message: Message, node: int) -> Metadata:
    """Return the head of a reply to `message` that no node sent."""
    asked = message.metadata
    return Metadata(
        run_id=asked.run_id,
        message_id=f"{asked.message_id}-total",
        src_node_id=node,
        dst_node_id=LEAD,
        reply_to_message_id=asked.message_id,
        group_id=asked.group_id,
        created_at=asked.created_at,
        ttl=TTL_S,
        message_type=asked.message_type,
    )
