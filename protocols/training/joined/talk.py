"""What matcher and helper say to each other, in turn, as messages of one round.

Each plays its part as a generator: it says bytes and is sent what the other said in the same place, or needs
a batch of the dealer's and is sent that. So a protocol of many steps stands as it is reckoned, and who moves
messages knows nothing of it. At the end both send an empty message, the last of their streams.
"""

from collections import deque
from collections.abc import Generator
from dataclasses import dataclass
from typing import Final, Generic, TypeAlias, TypeVar

import numpy as np

from protocols.ids import Role
from protocols.joined.bits import Exchange
from protocols.joined.field import Field, Words
from protocols.party import MAX_BODY_BYTES, UNDER_WAY, Incoming, Outgoing
from protocols.psi.streams import bad_length, unexpected

SPAN_WORDS: Final = 1 << 18
"""Words that one says at once, 2 MiB: what both say at the same time has room on the way."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Say:
    """Bytes for the other, none perhaps, and how many are due from there in return."""

    body: bytes
    due: int


@dataclass(frozen=True, slots=True)
class Need:
    """A batch of the dealer's, by its number. Only the helper needs any."""

    number: int


Part: TypeAlias = Generator[Say | Need, bytes, _T]
"""Says and needs, and returns its result."""


def both(body: bytes) -> Part[bytes]:
    """Say something, and return what the other says, which is as long."""
    return (yield Say(body, len(body)))


def opened(field: Field, own: Words) -> Part[Words]:
    """Add up both shares of words, n or n x k, and return what they share."""
    flat = own.reshape(-1)
    found = np.empty_like(flat)
    for start in range(0, len(flat), SPAN_WORDS):
        here = slice(start, start + SPAN_WORDS)
        theirs = yield from both(field.to_bytes(flat[here]))
        field.add(flat[here], field.read(theirs, 1)[:, 0], out=found[here])
    return found.reshape(own.shape)


def said(exchange: Exchange[_T]) -> Part[_T]:
    """Play a part that is written as an exchange of equally long bytes."""
    body = next(exchange)
    while True:
        theirs = yield from both(body)
        try:
            body = exchange.send(theirs)
        except StopIteration as end:
            result: _T = end.value
            return result


class Talk(Generic[_T]):
    """One side of it: cuts what is said into messages, and puts together what comes."""

    def __init__(self, to: Role, number: int, part: Part[_T]) -> None:
        """Talk to `to` in messages of round `number`."""
        self._to, self._number, self._part = to, number, part
        self._begun = self._ended = False
        self._wants: Say | Need | None = None
        self._taken: list[bytes] = []
        self._early: deque[Incoming] = deque()
        self.result: _T | None = None

    @property
    def need(self) -> int | None:
        """The number of the batch that the part waits for."""
        return self._wants.number if isinstance(self._wants, Need) else None

    @property
    def complete(self) -> bool:
        """Whether both are done."""
        return self._begun and self._wants is None and self._ended

    def take(self, message: Incoming) -> None:
        """Keep a message of the other, which may be a little ahead.

        Raises:
            ProtocolAborted: `unexpected-message`.
        """
        if len(self._early) >= 2 * UNDER_WAY or self._ended:
            raise unexpected(message)
        self._early.append(message)

    def begin(self) -> list[Outgoing]:
        """Begin; return what goes out."""
        self._begun = True
        return [*self._advance(None), *self.go()]

    def give(self, batch: bytes) -> list[Outgoing]:
        """Hand over the batch that the part waits for; return what goes out."""
        return [*self._advance(batch), *self.go()]

    def go(self) -> list[Outgoing]:
        """Go as far as what has come allows; return what goes out.

        Raises:
            ProtocolAborted: a message that is not what it has to be; whatever the part raises.
        """
        outgoing: list[Outgoing] = []
        while self._early and not isinstance(self._wants, Need) and self._begun:
            message = self._early.popleft()
            if self._wants is None:
                if message.body or not message.last:
                    raise bad_length(message)
                self._ended = True
                break
            left = self._wants.due - sum(map(len, self._taken))
            if len(message.body) != min(MAX_BODY_BYTES, left) or message.last:
                raise bad_length(message)
            self._taken.append(message.body)
            if len(message.body) == left:
                body, self._taken = b"".join(self._taken), []
                outgoing += self._advance(body)
        return outgoing

    def _advance(self, came: bytes | None) -> list[Outgoing]:
        """Resume the part until it waits for something; return what it says meanwhile."""
        outgoing: list[Outgoing] = []
        while True:
            try:
                wants = next(self._part) if came is None else self._part.send(came)
            except StopIteration as end:
                self._wants, self.result = None, end.value
                return [*outgoing, Outgoing(self._to, self._number, b"")]
            self._wants = wants
            if isinstance(wants, Need):
                return outgoing
            for start in range(0, len(wants.body), MAX_BODY_BYTES):
                body = wants.body[start : start + MAX_BODY_BYTES]
                outgoing.append(Outgoing(self._to, self._number, body, last=False))
            if wants.due:
                return outgoing
            came = b""
