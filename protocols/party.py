"""A protocol is a set of state machines; `run` plays a whole protocol in memory.

A party holds no socket, file, clock or global randomness: `rand` and `now` come in as arguments. Large
inputs stream: a party consumes and yields chunks, so `outgoing` is lazy and is sent piece by piece.

Two rules keep a run free of deadlock while every queue on the way stays bounded:

(1) A flow that comes back to its sender (holder → key-holder → key-holder → holder) is windowed: the sender
    keeps at most `UNDER_WAY` chunks under way and sends the next one when one has come back. Whoever moves
    frames lets `UNDER_WAY` per role wait at each receiver, so such flows never block one another.
(2) Every other flow ends in a party that consumes without sending in reply.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from protocols.errors import ProtocolAborted
from protocols.ids import Role

Rand = Callable[[int], bytes]
"""Returns that many uniformly random bytes; `secrets.token_bytes` outside tests."""

MAX_BODY_BYTES: Final = 1 << 20
"""Largest message body, in bytes; longer streams are cut into chunks."""


UNDER_WAY: Final = 4
"""Messages of a returning flow that its sender keeps under way at most."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message to another role.

    A stream is all messages of one (sender, to, round); `last` ends it, so that a cut shows.
    """

    to: Role
    round: int
    body: bytes
    last: bool = True


@dataclass(frozen=True, slots=True)
class Incoming:
    """A message from another role, opened and checked by the channel."""

    sender: Role
    round: int
    body: bytes
    last: bool = True


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the party is: `done` of `total` units of `phase`. Sizes only, never content.

    `figures` are short texts that everybody may see while it goes on, such as the noisy AUC of a model.
    """

    phase: str
    done: int
    total: int
    figures: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """What was found for question `number` of a person at this very node. It goes to that person alone."""

    number: int
    body: Any


@dataclass(frozen=True, slots=True)
class Waiting:
    """Send `outgoing`, to its end and in order, hand over `answers`, then wait for a message.

    `answering`: with what this step sends, others could make an answer out of this party's data. The node
    remembers that durably before the first message goes out; finishing always counts as answering.

    `record`: facts that the node's journal has to hold, durably, before anything of this step is sent or
    handed over. Counts and codes, never content.
    """

    outgoing: Iterable[Outgoing] = ()
    progress: Progress | None = None
    answering: bool = False
    record: Mapping[str, int | str] | None = None
    answers: tuple[Answer, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """Send `outgoing`; the party is done and yields `output` to its own node."""

    outgoing: Iterable[Outgoing] = ()
    output: Any = None


Step = Waiting | Finished


class Party(Protocol):
    """One role's part in one attempt of a job."""

    def start(self) -> Step:
        """Return the first step. Called once."""
        ...

    def receive(self, message: Incoming) -> Step:
        """Take the next message and return the step it leads to.

        Raises:
            ProtocolAborted: the message breaks the protocol; the attempt ends here.
        """
        ...


class Serving(Party, Protocol):
    """A party of a job that stays open: people at its node put questions while it runs."""

    def ask(self, number: int, question: Any) -> Step:
        """Take a question; some later step's `answers` has the answer of that number.

        Raises:
            InputError: the question cannot be put; the party goes on as before.
        """
        ...

    def close(self) -> Step:
        """End the session in good order; questions that come later are refused."""
        ...


@dataclass(frozen=True, slots=True)
class Sent:
    """One message as it went from `sender` to `to`; a coalition's view is made of these."""

    sender: Role
    to: Role
    round: int
    body: bytes
    last: bool


def run(parties: Mapping[Role, Party], *, observe: Callable[[Sent], None] | None = None) -> dict[Role, Any]:
    """Play a protocol in memory and return each role's output.

    Messages of one (sender, to) pair arrive in order, as on the real channel, and its rules hold: bounded
    bodies, nothing after `last`, every stream ended. Delivery is round robin over the receivers, one message
    each.

    Args:
        parties: the state machine of each role.
        observe: called with every message sent, in order.

    Raises:
        ProtocolAborted: a party aborted, a message went to an unknown or finished role or broke a rule of
            the channel, or the protocol stopped with a role unfinished or a stream open.
    """
    inbox: dict[Role, deque[Incoming]] = {role: deque() for role in parties}
    outputs: dict[Role, Any] = {}
    streams: dict[tuple[Role, Role, int], bool] = {}

    def deliver(sender: Role, outgoing: Iterator[Outgoing]) -> None:
        for message in outgoing:
            if message.to not in parties or message.to == sender:
                raise ProtocolAborted(f"{sender} sent to {message.to}, which is no other role of this job")
            if len(message.body) > MAX_BODY_BYTES:
                raise ProtocolAborted(f"{sender} sent a body over {MAX_BODY_BYTES} bytes", code="too-long")
            stream = (sender, message.to, message.round)
            if streams.get(stream):
                raise ProtocolAborted(
                    f"{sender} sent after the last message of a stream", code="frame-after-last"
                )
            streams[stream] = message.last
            if observe is not None:
                observe(Sent(sender, message.to, message.round, message.body, message.last))
            inbox[message.to].append(Incoming(sender, message.round, message.body, message.last))

    def take(role: Role, step: Step) -> None:
        deliver(role, iter(step.outgoing))
        if isinstance(step, Finished):
            outputs[role] = step.output

    for role, party in parties.items():
        take(role, party.start())
    while any(inbox.values()):
        for role, waiting in inbox.items():
            if not waiting:
                continue
            if role in outputs:
                raise ProtocolAborted(f"{role} received a message after it had finished")
            take(role, parties[role].receive(waiting.popleft()))
    unfinished = sorted(set(parties) - set(outputs))
    if unfinished:
        raise ProtocolAborted(f"no message under way, but unfinished: {', '.join(unfinished)}")
    if not all(streams.values()):
        raise ProtocolAborted("a stream ended before its last frame", code="stream-truncated")
    return outputs
