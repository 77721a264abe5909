"""Letters: questions to other nodes and the coordinator about journals, and the answers to theirs.

They travel on the control stream and the coordinator passes them on, so nothing in them is believed because
of where it came from: what counts is signed. An answer counts for the question whose id it repeats, from the
one who was asked; what else comes is dropped. Whoever asks, asks again.

What others ask waits in a queue for each of them, and these have turns, so that nobody's questions hold up
anybody else's, nor this node's own work: it goes on between any two.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from node import rpc
from node.rpc import AddCheckpoint, AskHead, ControlRequest, HandReceipt, Letter, Question, Reply
from protocols.errors import MinshuError, Unreachable

if TYPE_CHECKING:
    from node.logs import Log
    from protocols.party import Rand

LINK_CODES: Final = frozenset({"link-broken", "link-closed", "link-down"})
"""A letter was lost with the link, whose ups and downs have log lines of their own."""
ANSWER_S: Final = 20.0
"""How long an answer is waited for."""
MAX_PENDING: Final = 256
"""Questions that may wait for their answers at one time."""
MAX_ASKED: Final = 64
"""Questions of one node that may wait here; what it asks beyond these is dropped."""
MAX_WAITING: Final = 1024
"""The same for all together."""
_ID_BYTES: Final = 16

R = TypeVar("R", bound=Reply)


@dataclass(frozen=True, slots=True)
class _Pending:
    """A question under way: whom it went to, and what its answer must be."""

    to: str
    expected: type[Any]
    answer: asyncio.Future[Reply]


@dataclass(frozen=True, slots=True)
class Later:
    """A question is to be served once more, after so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class _Asked:
    """A question that waits here; `at` is when it came, as the loop counts seconds."""

    id: str
    sender: str
    question: Question
    at: float


class Letters:
    """Asks, and has others' questions answered. One per node, used on the event loop."""

    def __init__(
        self,
        send: Callable[[ControlRequest], Awaitable[None]],
        post: Callable[[ControlRequest], None],
        serve: Callable[[str, Question], Reply | Later | None],
        *,
        rand: "Rand",
        log: "Log",
    ) -> None:
        """Write with `send` and `post`.

        Args:
            send: sends now, or raises Unreachable.
            post: sends when its turn comes, and may lose what it is given.
            serve: answers a question, None for not, `Later` to be called again; the name that it is given is
                the coordinator's word.
            rand: draws the questions' ids.
            log: for lines.
        """
        self._send = send
        self._post = post
        self._serve = serve
        self._rand = rand
        self._log = log
        self._pending: dict[str, _Pending] = {}
        self._asked: dict[str, deque[_Asked]] = {}
        self._waiting: Counter[str] = Counter()
        self._arrived = asyncio.Event()

    async def run(self) -> None:
        """Answer until cancelled, one question of each sender in turn."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._asked:
                sender = next(iter(self._asked))
                queue = self._asked.pop(sender)
                self._answer(queue.popleft())
                if queue:
                    self._asked[sender] = queue  # behind everybody else
                await asyncio.sleep(0)

    async def ask(
        self,
        to: str,
        question: Question,
        expected: type[R],
        timeout_s: float = ANSWER_S,
        *,
        unless: asyncio.Event | None = None,
    ) -> R:
        """Return the answer to a question.

        Args:
            to: who is asked.
            question: what.
            expected: what an answer to it is.
            timeout_s: how long it is waited for.
            unless: once set, the answer is waited for no more.

        Raises:
            Unreachable: `link-down`, `no-answer`, or `too-many-letters`.
        """
        if len(self._pending) >= MAX_PENDING:
            raise Unreachable(
                f"{MAX_PENDING} letters wait for their answers already", code="too-many-letters"
            )
        identifier = self._rand(_ID_BYTES).hex()
        pending = _Pending(to, expected, asyncio.get_running_loop().create_future())
        self._pending[identifier] = pending
        given_up = asyncio.create_task((unless or asyncio.Event()).wait())
        try:
            # Never cancelled half-way: that would end the whole stream.
            await self._send(rpc.letter(identifier, to, question))
            await asyncio.wait(
                (pending.answer, given_up), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            if not pending.answer.done():
                raise Unreachable(f"{to} has not answered for {timeout_s:g} s", code="no-answer")
            answer = pending.answer.result()
        finally:
            given_up.cancel()
            del self._pending[identifier]
        assert isinstance(answer, expected)
        return answer

    def take(self, letter: Letter) -> None:
        """Act on one letter. What is wrong with it changes nothing and ends nothing."""
        body = letter.body
        if isinstance(body, AddCheckpoint | AskHead | HandReceipt):
            self._queue(_Asked(letter.id, letter.sender, body, asyncio.get_running_loop().time()))
            return
        pending = self._pending.get(letter.id)
        if pending is None or pending.to != letter.sender or not isinstance(body, pending.expected):
            return  # late, replayed, swapped, or never asked for
        if not pending.answer.done():
            pending.answer.set_result(body)

    def lost(self) -> None:
        """The stream broke: no question on it is answered any more."""
        for pending in self._pending.values():
            if not pending.answer.done():
                pending.answer.set_exception(Unreachable("the link broke", code="link-broken"))
                pending.answer.exception()  # seen, also where the question itself could not be sent

    def _queue(self, asked: _Asked, *, again: bool = False) -> None:
        """Have a question wait for its turn; while served later, it still counts among those that wait."""
        if not again:
            if self._waiting[asked.sender] >= MAX_ASKED or self._waiting.total() >= MAX_WAITING:
                self._log.seldom("too-many-letters", asked.sender)
                return
            self._waiting[asked.sender] += 1
        self._asked.setdefault(asked.sender, deque()).append(asked)
        self._arrived.set()

    def _answer(self, asked: _Asked) -> None:
        reply: Reply | Later | None = None
        try:
            reply = self._serve(asked.sender, asked.question)
        except MinshuError as error:
            # Not answered: whoever asks, asks again.
            self._log.seldom(error.code, asked.sender, sentence=error.message)
        if isinstance(reply, Later):
            loop = asyncio.get_running_loop()
            if loop.time() + reply.seconds < asked.at + ANSWER_S:
                loop.call_later(reply.seconds, partial(self._queue, asked, again=True))
                return
            reply = None  # nobody waits for it any more
        self._waiting[asked.sender] -= 1
        if not self._waiting[asked.sender]:
            del self._waiting[asked.sender]
        if reply is not None:
            self._post(rpc.letter(asked.id, asked.sender, reply))
