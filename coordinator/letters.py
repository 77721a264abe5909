"""Letters about journals: those between nodes are passed on, those to the coordinator answered here.

What is signed in a letter is its addressee's to check. Here it only matters that a letter says truly who
handed it in, and that no number of letters holds up anything else: a node that writes faster than `RATE` is
read more slowly, a letter to nobody is dropped, and one to a node that does not read waits behind everything
else in a queue of its own (`Session.post`). Whoever asks, asks again.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from coordinator import rpc
from coordinator.scheduler import Session
from minshu.v1 import audit_pb2
from protocols.errors import Unreachable
from protocols.ids import NodeName

MAX_LETTER_BYTES: Final = 256 << 10
RATE: Final = 512.0
"""Letters a second that are read from one node; one of `_DEAR_BYTES` counts twice."""

BURST: Final = 2048.0
"""How many it may write at once after a silence."""

QUESTION_COST: Final = 16
"""A question costs whoever answers it what so many letters do that are passed on: it signs and stores."""

_QUESTIONS: Final = frozenset({"add_checkpoint", "ask_head", "receipt"})

_DEAR_BYTES: Final = 16 << 10

_log = logging.getLogger("minshu.coordinator")


@dataclass(slots=True)
class _Allowance:
    """How much a node may write before it is read more slowly; below 0 while it waits."""

    left: float
    at: float


@dataclass(slots=True)
class _Asked:
    """A question of the coordinator's: whom, what kind of answer fits, and who waits for it."""

    node: NodeName
    kind: str
    answer: "asyncio.Future[audit_pb2.Letter]"


class Letters:
    """The post office. All of it belongs to one event loop."""

    def __init__(
        self,
        name: NodeName,
        session: Callable[[NodeName], Session | None],
        receipt: Callable[[NodeName, bytes], audit_pb2.ReceiptKept | None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Post through `session`.

        Args:
            name: the coordinator's own.
            session: a connected node's stream, None for any other.
            receipt: takes what a node hands in, and answers; None where no answer helps.
            monotonic: counts seconds and never goes back.
        """
        self._name = name
        self._session = session
        self._receipt = receipt
        self._monotonic = monotonic
        self._allowances: dict[NodeName, _Allowance] = {}
        self._asked: dict[str, _Asked] = {}

    async def take(self, node: NodeName, letter: rpc.Letter) -> None:
        """Pass on or answer a letter that `node` handed in, once it is that node's turn.

        Args:
            node: whom the connection proved.
            letter: as it was read; what it says of its sender was refused there.
        """
        size = letter.plain.ByteSize()
        kind = letter.plain.WhichOneof("body") or ""
        mine = letter.to == self._name
        await self._turn(node, size / _DEAR_BYTES + (QUESTION_COST if kind in _QUESTIONS else 1))
        if size > MAX_LETTER_BYTES or letter.to == node:
            _log.debug("node %s: a letter was dropped", node)
        elif mine:
            self._answer(node, letter.plain, kind)
        else:
            self._post(letter.to, node, letter.plain)

    async def _turn(self, node: NodeName, cost: float) -> None:
        now = self._monotonic()
        allowance = self._allowances.setdefault(node, _Allowance(BURST, now))
        allowance.left = min(BURST, allowance.left + (now - allowance.at) * RATE) - cost
        allowance.at = now
        if allowance.left < 0:
            await asyncio.sleep(-allowance.left / RATE)

    def _post(self, to: NodeName, sender: NodeName, plain: audit_pb2.Letter) -> bool:
        session = self._session(to)
        if session is not None:
            session.post(rpc.letter(sender, plain), sender)
        return session is not None

    def _answer(self, node: NodeName, plain: audit_pb2.Letter, kind: str) -> None:
        if kind == "receipt":
            kept = self._receipt(node, plain.receipt.receipt)
            if kept is not None:
                self._post(node, self._name, audit_pb2.Letter(id=plain.id, receipt_kept=kept))
            return
        # An answer counts from whom it was asked, once.
        asked = self._asked.get(plain.id)
        if asked is not None and (asked.node, asked.kind) == (node, kind) and not asked.answer.done():
            asked.answer.set_result(plain)

    async def add_checkpoint(self, node: NodeName, body: bytes, timeout_s: float) -> tuple[int, bytes]:
        """Ask a node to cosign; return status and body of its answer, see C2SP tlog-witness.

        Raises:
            Unreachable: it is not connected, or did not answer in time.
        """
        question = audit_pb2.Letter(add_checkpoint=audit_pb2.AddCheckpoint(body=body))
        answer = await self._ask(node, question, "cosigned", timeout_s)
        return answer.cosigned.status, answer.cosigned.body

    async def ask_head(self, node: NodeName, nonce: bytes, log: str, timeout_s: float) -> tuple[bytes, bytes]:
        """Ask a node what it saw last of a log; return its statement (DSSE) and that checkpoint.

        Raises:
            Unreachable: it is not connected, or did not answer in time.
        """
        question = audit_pb2.Letter(ask_head=audit_pb2.AskHead(nonce=nonce, log=log))
        answer = await self._ask(node, question, "head", timeout_s)
        return answer.head.statement, answer.head.checkpoint

    async def _ask(
        self, node: NodeName, question: audit_pb2.Letter, kind: str, timeout_s: float
    ) -> audit_pb2.Letter:
        question.id = secrets.token_hex(16)
        answer = asyncio.get_running_loop().create_future()
        self._asked[question.id] = _Asked(node, kind, answer)
        try:
            if not self._post(node, self._name, question):
                raise Unreachable(f"{node} is not connected", code="node-away")
            return await asyncio.wait_for(answer, timeout_s)
        except TimeoutError:
            raise Unreachable(f"{node} did not answer within {timeout_s:.0f} s", code="no-answer") from None
        finally:
            del self._asked[question.id]
