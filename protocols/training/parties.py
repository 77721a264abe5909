"""The parties of a training job: sources that contribute, and a lead that sees sums. SPEC.md, section 2.

    lower source  -- SEED  -->  higher source   a 32-byte seed for each pair
    source        -- HELLO -->  aggregator      last round, rounds left, digest of the plan
    then, round by round:
    aggregator    -- TASK  -->  sources         a message of the lead's worker
    source        -- READY -->  aggregator      the update is there; or: absent
    aggregator    -- SET   -->  ready sources   whose updates are added up
    source        -- MASKED ->  aggregator      update, noise and masks; recorded before it leaves
    at last:
    aggregator    -- DONE  -->  sources         digest of the model

An update is there before anybody is counted, so a worker that fails costs nothing. What costs nothing tells
next to nothing: few questions are answered of which no sum is made, an absence says that it is one, and a
worker that fails three times is asked no more. Who is in the set is told by the lead and bound into every
mask: told differently to two sources, their masks do not cancel.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from math import isfinite
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protocols.dp.mechanism import Noise
from protocols.encoding import Reader
from protocols.errors import DecodeError, InputError, ProtocolAborted
from protocols.ids import Role
from protocols.jobs.job_type import Shelf
from protocols.party import MAX_BODY_BYTES, Finished, Incoming, Outgoing, Progress, Rand, Step, Waiting
from protocols.sums.masks import RING, SEED_BYTES, Masks, stream_key
from protocols.training.lasting import ContributingWorker, LeadingWorker, ShelvedSteps
from protocols.training.plan import MAX_NUMBER, SHAPE_BYTES, Plan, Shape
from protocols.training.work import (
    MAX_FRAME_BYTES,
    Answer,
    Ask,
    Done,
    Handle,
    RecipeFailed,
    Update,
    Worker,
    WorkerGone,
)

SEED: Final = 0x3000
"""Round: lower → higher source, the 32-byte seed of the pair."""
HELLO: Final = 0x3001
"""Round: source → aggregator."""
DONE: Final = 0x3002
"""Round: aggregator → source, SHA-256 of the model."""

TASK: Final = 0
READY: Final = 1
SET: Final = 2
MASKED: Final = 3
_ROUNDS: Final = 0x3000
_KINDS: Final = 16

CHECKS: Final = 2
"""Words before every update that say 1: their total has to be the number of members."""

MAX_TASK_BYTES: Final = MAX_FRAME_BYTES - 4096
"""Longest TASK: a worker takes its message in one frame."""

MAX_RECEIPT_BYTES: Final = 64 << 10

MAX_FIGURES: Final = 8

MAX_FAILURES: Final = 3
"""Failures of a source's worker in one job, after which it is asked nothing more: each may tell of rows."""

ABSENT: Final = "absent"
"""Why a source has no update, as far as others are told. Its own shelf has the code."""

_CHUNK: Final = MAX_BODY_BYTES // 8  # words
_CODE: Final = re.compile(r"[a-z][a-z0-9-]{0,62}")
_ABSENT: Final = b"\x00" + ABSENT.encode("ascii")
_FIGURE: Final = re.compile(r"[a-z][a-z0-9-]{0,31}")
_OF_THE_LEAD: Final = frozenset({"wrong-message", "wrong-arrays", "wrong-exchange"})
"""Codes with which a worker refuses a message; all others are its own failure."""

_Ring = npt.NDArray[np.uint64]


def stream(number: int, kind: int) -> int:
    """Return the channel's round for a kind of message of a round of training."""
    return _ROUNDS + _KINDS * number + kind


def _cut(to: Role, number: int, body: bytes) -> Iterator[Outgoing]:
    """Yield a body in messages of the channel."""
    for at in range(0, max(len(body), 1), MAX_BODY_BYTES):
        end = at + MAX_BODY_BYTES
        yield Outgoing(to, number, body[at:end], last=end >= len(body))


# -- messages


@dataclass(frozen=True, slots=True)
class Hello:
    """What a source says first.

    Attributes:
        number: of the last round it was asked to send in, over all attempts; 0 before the first.
        left: turn → rounds that it would still send in.
        digest: 32 bytes, of the plan.
    """

    number: int
    left: Mapping[str, int]
    digest: bytes

    def encode(self, plan: Plan) -> bytes:
        """Return u32 number ‖ u32 left for each turn, sorted by name ‖ digest."""
        left = b"".join(self.left[turn].to_bytes(4, "big") for turn in sorted(plan.rounds))
        return self.number.to_bytes(4, "big") + left + self.digest

    @classmethod
    def decode(cls, body: bytes, plan: Plan) -> "Hello":
        """Read what `encode` wrote.

        Raises:
            DecodeError: another length, or `bad-hello`: more rounds than the job has.
        """
        reader = Reader(body)
        number = reader.uint(4)
        left = {turn: reader.uint(4) for turn in sorted(plan.rounds)}
        found = cls(number, left, reader.take(32))
        reader.finish()
        if any(left[turn] > most for turn, most in plan.rounds.items()):
            raise DecodeError("a source with more rounds than the job has", code="bad-hello")
        return found


@dataclass(frozen=True, slots=True)
class Task:
    """What the lead's worker asks all sources in one round.

    Attributes:
        number: of the round; never again at a source that sent in it.
        exchange: the question of the lead's worker; the same again where a round came to nothing.
        turn: `train`, `evaluate`.
        message: for the source's worker.
    """

    number: int
    exchange: int
    turn: str
    message: bytes

    def encode(self) -> bytes:
        """Return u32 number ‖ u32 exchange ‖ u8 length ‖ turn ‖ message."""
        turn = self.turn.encode("ascii")
        head = self.number.to_bytes(4, "big") + self.exchange.to_bytes(4, "big")
        return head + bytes((len(turn),)) + turn + self.message

    @classmethod
    def decode(cls, body: bytes) -> "Task":
        """Read what `encode` wrote.

        Raises:
            DecodeError: cut short, or a turn that is no ASCII.
        """
        reader = Reader(body)
        number, exchange, turn = reader.uint(4), reader.uint(4), reader.take(reader.uint(1))
        if not turn.isascii() or not exchange:
            raise DecodeError("a task without a turn or an exchange", code="bad-task")
        return cls(number, exchange, turn.decode("ascii"), reader.rest())


@dataclass(frozen=True, slots=True)
class Receipt:
    """An update is there.

    Attributes:
        message: 32 bytes, the digest of what the lead's message said.
        shape: of the vector.
        receipt: Flower's reply, for the lead's worker.
    """

    message: bytes
    shape: Shape
    receipt: bytes

    def encode(self) -> bytes:
        """Return 1 ‖ message ‖ shape ‖ receipt."""
        return b"\x01" + self.message + self.shape.encode() + self.receipt


def absent() -> bytes:
    """Return what a source says that has no update, whatever the reason: 0 ‖ "absent"."""
    return _ABSENT


def decode_ready(body: bytes) -> Receipt | None:
    """Return a receipt; None of a source that is absent.

    Raises:
        DecodeError: neither.
    """
    if len(body) > 1 + 32 + SHAPE_BYTES + MAX_RECEIPT_BYTES:
        raise DecodeError(f"a receipt of {len(body)} bytes", code="too-long")
    reader = Reader(body)
    if reader.uint(1) == 1:
        return Receipt(reader.take(32), Shape.read(reader), reader.rest())
    if body != _ABSENT:
        raise DecodeError("neither a receipt nor an absence", code="bad-ready")
    return None


# -- source


@dataclass(slots=True)
class _Pending:
    """An update that waits for the word who is in the sum."""

    number: int
    turn: str
    message: bytes
    shape: Shape
    words: npt.NDArray[np.int64]
    noise: Noise | None


class Trainer:
    """A source. Its output is `()`."""

    def __init__(
        self,
        plan: Plan,
        role: Role,
        start: Callable[[], Worker],
        rand: Rand,
        *,
        used: Mapping[str, int],
        shelf: Shelf,
    ) -> None:
        """Go on where earlier attempts of the job ended.

        Args:
            plan: of the attempt.
            role: one of its sources.
            start: starts a worker that has this source's rows.
            rand: draws seeds and noise.
            used: turn → rounds that this node recorded in earlier attempts.
            shelf: keeps the last round and the worker's state, and with which codes the worker failed.
        """
        self._plan, self._role, self._rand, self._shelf = plan, role, rand, shelf
        place = plan.sources.index(role)
        self._lower, self._higher = plan.sources[:place], plan.sources[place + 1 :]
        self._seeds = {other: rand(SEED_BYTES) for other in self._higher}
        self._used = {turn: used.get(turn, 0) for turn in plan.rounds}
        self._name = f"{plan.job.hex()}-{role}"
        self._number, state = self._kept()
        self._failures = self._failed_before()
        self._unused = 0
        self._asked = self._number
        self._worker = ContributingWorker(start, plan.begin(role, state))
        self._said_hello = False
        self._task: bytearray | None = None
        self._pending: _Pending | None = None

    def _kept(self) -> tuple[int, bytes]:
        # Every round that the node counted had a number of its own: a shelf that was lost has a floor.
        counted = sum(self._used.values())
        blob = self._shelf.get(self._name)
        if blob is None:
            return counted, b""
        reader = Reader(bytes(blob))
        return max(reader.uint(4), counted), reader.rest()

    @property
    def _failures_name(self) -> str:
        return f"{self._name}-failed"

    def _failed_before(self) -> list[str]:
        """Return with which codes the worker failed in this job: one in a line."""
        blob = self._shelf.get(self._failures_name)
        return [] if blob is None else bytes(blob).decode("ascii", "replace").splitlines()

    def start(self) -> Step:
        """Start the worker; send seeds. A worker that failed too often before is not started any more.

        Raises:
            RecipeFailed, WorkerGone: the worker cannot be started.
            ProtocolAborted: `worker-failed-too-often`, where every source is needed.
        """
        if not self._failing():
            self._worker.open()
        seeds = [Outgoing(other, SEED, self._seeds[other]) for other in self._higher]
        return Waiting((*seeds, *self._hello()), self._progress())

    def _hello(self) -> tuple[Outgoing, ...]:
        """Say it once, when a seed is shared with every other source."""
        if self._said_hello or len(self._seeds) < len(self._plan.sources) - 1:
            return ()
        self._said_hello = True
        left = {turn: max(most - self._used[turn], 0) for turn, most in self._plan.rounds.items()}
        body = Hello(self._number, left, self._plan.digest).encode(self._plan)
        return (Outgoing(self._plan.aggregator, HELLO, body),)

    def _progress(self) -> Progress:
        return Progress("training", sum(self._used.values()), sum(self._plan.rounds.values()))

    def receive(self, message: Incoming) -> Step:
        """Take a seed, a task, a set, or the end.

        Raises:
            ProtocolAborted: a message that is not due; a task or set that this source refuses:
                `round-repeated`, `turn-spent`, `wrong-message`, `wrong-arrays`, `too-few-peers`,
                `asked-too-often`, `worker-failed-too-often`.
            DecodeError: a message that is none.
        """
        if message.sender in self._lower and message.round == SEED:
            return self._take_seed(message)
        if message.sender != self._plan.aggregator or not self._said_hello:
            raise _unexpected(message)
        if message.round == DONE:
            return self._end(message)
        number, kind = divmod(message.round - _ROUNDS, _KINDS)
        if number < 1 or kind not in (TASK, SET):
            raise _unexpected(message)
        return self._take_set(number, message) if kind == SET else self._take_task(number, message)

    def _take_seed(self, message: Incoming) -> Step:
        if message.sender in self._seeds or not message.last:
            raise _unexpected(message)
        if len(message.body) != SEED_BYTES:
            raise ProtocolAborted(
                f"seed of {len(message.body)} bytes, expected {SEED_BYTES}", code="bad-length"
            )
        self._seeds[message.sender] = message.body
        return Waiting(self._hello(), self._progress())

    def _end(self, message: Incoming) -> Step:
        if not message.last or len(message.body) != 32 or self._task is not None:
            raise _unexpected(message)
        self._worker.close()
        self._shelf.drop(self._name)
        self._shelf.drop(self._failures_name)
        return Finished((), ())

    # -- a task

    def _take_task(self, number: int, message: Incoming) -> Step:
        if self._task is None:
            # A new task: whatever an earlier one led to was not asked for.
            self._pending, self._task = None, bytearray()
        if len(self._task) + len(message.body) > MAX_TASK_BYTES:
            raise ProtocolAborted(f"a task of more than {MAX_TASK_BYTES} bytes", code="too-long")
        self._task += message.body
        if not message.last:
            return Waiting((), self._progress())
        task, self._task = Task.decode(bytes(self._task)), None
        if task.number != number:
            raise ProtocolAborted("a task of another round than its stream", code="wrong-message")
        self._check(task)
        return Waiting(
            (Outgoing(self._plan.aggregator, stream(number, READY), self._answered(task)),), self._progress()
        )

    def _check(self, task: Task) -> None:
        """Refuse a task that no honest lead gives."""
        if not self._asked < task.number < MAX_NUMBER:
            raise ProtocolAborted(
                f"round {task.number} is asked for, the last one here was {self._asked}",
                code="round-repeated",
                hint="a lead that lost its records counts on from what the sources say first",
            )
        if task.turn not in self._plan.rounds:
            raise ProtocolAborted("a task of a turn that the job does not have", code="wrong-message")
        if self._used[task.turn] >= self._plan.rounds[task.turn]:
            raise ProtocolAborted(
                f"all {self._plan.rounds[task.turn]} rounds of this turn were sent in",
                code="turn-spent",
                hint="the lead goes on with what it has; a new job buys new rounds",
            )
        if self._unused > self._plan.retries:
            raise ProtocolAborted(
                f"{self._unused} questions in a row were answered, and no sum was made of any",
                code="asked-too-often",
                hint="a lead that asks without adding up looks for what costs nothing: see who runs it, and "
                "whether this node's release is that of the others",
            )
        self._asked = task.number

    def _failing(self) -> bool:
        """Return whether the worker has failed too often to be asked again.

        Raises:
            ProtocolAborted: `worker-failed-too-often`: it has, and no round can do without this source.
        """
        if len(self._failures) < MAX_FAILURES:
            return False
        if self._plan.quorum == len(self._plan.sources):
            raise ProtocolAborted(
                f"the worker here failed {MAX_FAILURES} times in this job, so it is asked nothing more",
                code="worker-failed-too-often",
                hint=f"this node's shelf says with which codes, blob …-{self._role}-failed: mend what they "
                "mean, then submit a new job",
            )
        return True

    def _failed(self, code: str) -> bytes:
        """Remember a failure durably, for this node alone, and return what others are told of it."""
        self._failures.append(code if _CODE.fullmatch(code) else "recipe-failed")
        with self._shelf.put(self._failures_name) as write:
            write("\n".join(self._failures).encode("ascii"))
        return absent()

    def _answered(self, task: Task) -> bytes:
        """Return the receipt of an update that now waits, or that there is none."""
        if self._failing():
            return absent()
        try:
            update = self._worker.handle(Handle(task.exchange, task.message))
            pending = self._checked(task, update)
        except RecipeFailed as failed:
            if failed.code in _OF_THE_LEAD:
                raise ProtocolAborted(
                    "the lead's message is none of the recipe's: other arrays, settings or records",
                    code=failed.code,
                    hint="clip, rounds and peers stand in the job; a message cannot change them",
                ) from None
            return self._failed(failed.code)
        except (WorkerGone, InputError) as error:
            return self._failed(error.code)
        self._pending = pending
        self._unused += 1
        return Receipt(update.digest, pending.shape, update.receipt).encode()

    def _checked(self, task: Task, update: Update) -> _Pending:
        """Return an update that keeps what the job promises of it.

        Raises:
            ProtocolAborted: `wrong-message`: the lead says what is another turn than its message's.
            InputError: `update-wrong-length`, `update-out-of-range`, or noise that cannot be.
        """
        if update.turn != task.turn:
            raise ProtocolAborted("a task of another turn than its message", code="wrong-message")
        shape = Shape.of(update)
        if (
            shape.words > self._worker.ready.words.get(task.turn, 0)
            or len(update.receipt) > MAX_RECEIPT_BYTES
        ):
            raise InputError(
                "an update longer than the recipe declares",
                code="update-wrong-length",
                hint="the recipe is at fault: pin another version",
            )
        words = np.frombuffer(update.words, "<i8").astype(np.int64, copy=False)
        # Not np.abs: the least int64 has no positive counterpart.
        if max(int(words.max()), -int(words.min())) > self._plan.bound((self._role,), shape):
            raise InputError(
                "a word of the own update is beyond what this source's rows add up to",
                code="update-out-of-range",
                hint="the recipe does not keep its own bounds: pin another version",
            )
        noise = self._plan.noise(task.turn, shape)
        return _Pending(task.number, task.turn, update.digest, shape, words, noise)

    # -- a set

    def _take_set(self, number: int, message: Incoming) -> Step:
        """Mask the update that waits, for the members named, and for no others."""
        pending, plan = self._pending, self._plan
        if pending is None or pending.number != number or self._task is not None or not message.last:
            raise _unexpected(message)
        members = plan.members(message.body)
        # Without noise a quorum is all: no two sets, so no two sums whose difference is one source's.
        if len(members) < plan.quorum:
            raise ProtocolAborted(
                f"{len(members)} peers in a round, at least {plan.quorum} are agreed on",
                code="too-few-peers",
                hint="a lead that asks for fewer wants sums of few: look at who runs it",
            )
        self._pending = None
        if self._role not in members:
            return Waiting((), self._progress())
        # (1) This number is used up, whatever comes: durable before anything leaves.
        self._number, self._unused = number, 0
        with self._shelf.put(self._name) as write:
            write(number.to_bytes(4, "big") + self._worker.state)
        self._used[pending.turn] += 1
        # (2) The node records the round before it sends.
        return Waiting(
            self._masked(pending, members),
            self._progress(),
            answering=True,
            record={
                "event": "training-round",
                "turn": pending.turn,
                "round": number,
                "sources": len(members),
            },
        )

    def _masked(self, pending: _Pending, members: tuple[Role, ...]) -> Iterator[Outgoing]:
        plan, noise = self._plan, pending.noise
        words = np.ones(CHECKS + pending.shape.words, np.int64)
        words[CHECKS:] = pending.words if noise is None else pending.words * noise.scale
        if noise is not None:
            words[CHECKS:] += noise.draw(self._rand)
        label = plan.label(pending.number, members, pending.turn, pending.message, pending.shape)
        masks = Masks(
            [self._key(other, label) for other in self._higher if other in members],
            [self._key(other, label) for other in self._lower if other in members],
            RING,
        )
        for at in range(0, len(words), _CHUNK):
            piece = words[at : at + _CHUNK]
            masks.add_to(piece)
            yield Outgoing(
                plan.aggregator,
                stream(pending.number, MASKED),
                piece.astype("<i8", copy=False).tobytes(),
                last=at + _CHUNK >= len(words),
            )

    def _key(self, other: Role, label: bytes) -> bytes:
        lower, higher = (other, self._role) if other in self._lower else (self._role, other)
        return stream_key(self._seeds[other], self._plan.ctx, lower, higher, label)


# -- lead


@dataclass(frozen=True, slots=True)
class Held:
    """What a run came to, beside its model.

    Attributes:
        rounds: turn → rounds whose set was told to sources, over all attempts of the job; at most those that
            one source has, as nobody is charged for more.
        versions: distribution → version of what computed.
    """

    rounds: Mapping[str, int]
    versions: Mapping[str, str]


@dataclass(slots=True)
class _Round:
    """A round under way.

    Attributes:
        number: of the round.
        ask: what is asked.
        asked: who is.
        ready: who answered with a receipt.
        failed: who did not, and why.
        members: whose updates are added up; empty until that is settled.
        shape: of their vectors.
        sums: running sums modulo 2^64, checks first.
        come: words that came of each member.
    """

    number: int
    ask: Ask
    asked: tuple[Role, ...]
    ready: dict[Role, Receipt] = field(default_factory=dict)
    failed: dict[Role, str] = field(default_factory=dict)
    members: tuple[Role, ...] = ()
    shape: Shape | None = None
    sums: _Ring = field(default_factory=lambda: np.zeros(0, np.uint64))
    come: dict[Role, int] = field(default_factory=dict)


class Lead:
    """The aggregator: asks what its worker asks, adds up what it cannot read, and ends with the model.

    Its output is what `publish` makes of the worker's last word.
    """

    def __init__(
        self,
        plan: Plan,
        start: Callable[[], Worker],
        publish: Callable[[Done, Held], Any],
        *,
        shelf: Shelf,
    ) -> None:
        """Go on where earlier attempts of the job ended.

        Args:
            plan: of the attempt.
            start: starts a worker, with the rows of a public test set where there is one.
            publish: makes the output; called once, at the end.
            shelf: keeps what the worker was told, and how many rounds were held. Whoever has made the output
                durable calls `lasting.forget`.
        """
        self._plan, self._publish, self._shelf = plan, publish, shelf
        self._name = f"{plan.job.hex()}-lead"
        self._worker = LeadingWorker(start, plan.begin(plan.aggregator), ShelvedSteps(shelf, plan.job))
        self._number, self._held = self._kept()
        self._most = max(self._number, plan.last)
        self._left: dict[Role, dict[str, int]] = {}
        self._unused: Counter[Role] = Counter()
        self._round: _Round | None = None
        self._short = 0
        self._figures: dict[str, str] = {}

    def _kept(self) -> tuple[int, dict[str, int]]:
        """Return the last number and how many rounds were held, turn by turn."""
        turns = sorted(self._plan.rounds)
        blob = self._shelf.get(self._name)
        if blob is None:
            return 0, dict.fromkeys(turns, 0)
        reader = Reader(bytes(blob))
        return reader.uint(4), {turn: reader.uint(4) for turn in turns}

    def _keep(self) -> None:
        held = b"".join(self._held[turn].to_bytes(4, "big") for turn in sorted(self._held))
        with self._shelf.put(self._name) as write:
            write(self._number.to_bytes(4, "big") + held)

    def start(self) -> Step:
        """Start the worker, and wait for every source.

        Raises:
            RecipeFailed, WorkerGone: the worker cannot be started.
        """
        self._worker.open()
        return Waiting((), self._progress())

    def _progress(self) -> Progress:
        held = min(sum(self._held.values()), sum(self._plan.rounds.values()))
        return Progress("training", held, sum(self._plan.rounds.values()), dict(self._figures))

    def receive(self, message: Incoming) -> Step:
        """Take a HELLO, a READY, or a piece of a masked vector.

        Raises:
            ProtocolAborted: a message that is not due, sums that cannot be, `quorum-lost`, `plans-differ`.
            DecodeError: a message that is none.
            RecipeFailed, WorkerGone: the worker ended.
        """
        if message.sender not in self._plan.sources:
            raise _unexpected(message)
        if message.round == HELLO:
            return self._take_hello(message)
        now = self._round
        if now is None:
            raise _unexpected(message)
        if message.round == stream(now.number, READY):
            return self._take_ready(now, message)
        if message.round == stream(now.number, MASKED):
            return self._take_masked(now, message)
        raise _unexpected(message)

    # -- asking

    def _take_hello(self, message: Incoming) -> Step:
        if message.sender in self._left or not message.last:
            raise _unexpected(message)
        hello = Hello.decode(message.body, self._plan)
        if hello.digest != self._plan.digest:
            raise ProtocolAborted(
                f"{message.sender} is ready for another run: other features, settings, noise or version",
                code="plans-differ",
                hint="bring all nodes to one version; they read the same job",
            )
        # No source has a number that this lead did not keep first. One that lost what it kept believes a
        # source, but no more than a run comes to: numbers never end because one of them is not true.
        if hello.number > self._most:
            raise ProtocolAborted(
                f"{message.sender} says it was in round {hello.number}, at most {self._most} is possible",
                code="bad-hello",
                hint="start another attempt, and ask that department what its node runs if it happens again",
            )
        if any(most - hello.left[turn] > self._held[turn] for turn, most in self._plan.rounds.items()):
            # Its sums are gone with what it kept: a model of the rounds that are left would not be the job's.
            raise ProtocolAborted(
                f"{message.sender} was in more rounds than this lead has records of",
                code="rounds-lost",
                hint="restore the folder of the aggregator's node, or submit a new job",
            )
        self._left[message.sender] = dict(hello.left)
        self._number = max(self._number, hello.number)
        if len(self._left) < len(self._plan.sources):
            return Waiting((), self._progress())
        return self._say(self._worker.go())

    def _say(self, said: Ask | Done) -> Step:
        """Ask the sources, or end; a question that nobody may answer any more is answered at once."""
        plan = self._plan
        while isinstance(said, Ask):
            self._show(said)
            turn = said.turn
            if turn not in plan.rounds:
                raise ProtocolAborted("the recipe asks for a turn that the job does not have", code="no-turn")
            able = tuple(source for source in plan.sources if self._left[source][turn] > 0)
            if len(able) >= plan.quorum:
                return self._open(said, able)
            # The recipe ends with what it has: every node says that this turn is over.
            failed = tuple((plan.node(source), "turn-spent") for source in plan.sources)
            said = self._worker.answer(Answer((), failed, None, 0))
        return self._end(said)

    def _open(self, ask: Ask, able: tuple[Role, ...]) -> Step:
        # Who was left out so often, for another message or shape, would refuse to be asked again.
        asked = tuple(source for source in able if self._unused[source] <= self._plan.retries)
        if len(asked) < self._plan.quorum:
            raise self._lost(len(asked), {"left-out"})
        self._number += 1
        if self._number >= MAX_NUMBER:
            raise ProtocolAborted("no number of a round is left", code="rounds-exhausted")
        self._round = _Round(self._number, ask, asked)
        for source in self._plan.sources:
            if source not in asked:
                self._round.failed[source] = "left-out" if source in able else "turn-spent"
        return Waiting(self._tasks(self._round), self._progress())

    def _tasks(self, now: _Round) -> Iterator[Outgoing]:
        messages = dict(now.ask.messages)
        for source in now.asked:
            task = Task(now.number, now.ask.exchange, now.ask.turn, messages[self._plan.node(source)])
            body = task.encode()
            if len(body) > MAX_TASK_BYTES:
                raise ProtocolAborted(f"a message of {len(body)} bytes is too long", code="too-long")
            yield from _cut(source, stream(now.number, TASK), body)

    def _show(self, ask: Ask) -> None:
        """Take up figures that everybody may see."""
        if not self._plan.shows:
            return
        shown = {
            name: f"{value:.4f}"
            for name, value in ask.facts.items()
            if _FIGURE.fullmatch(name) and isfinite(value)
        }
        spent = self._plan.cost(self._held).amount("approximate-dp", self._plan.delta)
        if spent is not None:
            shown["epsilon"] = f"{float(spent):.4f}"
        self._figures = {name: text for name, text in sorted(shown.items())[:MAX_FIGURES] if len(text) <= 24}

    # -- who is there

    def _take_ready(self, now: _Round, message: Incoming) -> Step:
        source = message.sender
        if now.members or source in now.ready or source in now.failed or not message.last:
            raise _unexpected(message)
        answer = decode_ready(message.body)
        if answer is not None:
            self._unused[source] += 1
        if answer is None:
            now.failed[source] = ABSENT
        elif answer.message != now.ask.digest:
            # Its worker reads the message otherwise: its masks would not cancel.
            now.failed[source] = "messages-differ"
        else:
            now.ready[source] = answer
        if len(now.ready) + len(now.failed) < len(self._plan.sources):
            return Waiting((), self._progress())
        return self._settle(now)

    def _settle(self, now: _Round) -> Step:
        """Say whose updates are added up, once everybody has answered."""
        plan = self._plan
        if now.ready:
            # Shapes follow from the message: who has another one computes otherwise than the rest.
            shape, _ = Counter(receipt.shape for receipt in now.ready.values()).most_common(1)[0]
            for source in [source for source, receipt in now.ready.items() if receipt.shape != shape]:
                del now.ready[source]
                now.failed[source] = "shapes-differ"
            now.shape = shape
        if len(now.ready) < plan.quorum or now.shape is None:
            return self._try_again(now)
        self._short = 0
        now.members = tuple(source for source in plan.sources if source in now.ready)
        now.sums = np.zeros(CHECKS + now.shape.words, np.uint64)
        now.come = dict.fromkeys(now.members, 0)
        for member in now.members:
            self._left[member][now.ask.turn] -= 1
            self._unused[member] = 0
        self._held[now.ask.turn] += 1
        # Before a source spends anything: no later attempt counts fewer.
        self._keep()
        body = plan.set_of(now.members)
        return Waiting(
            tuple(Outgoing(member, stream(now.number, SET), body) for member in now.members), self._progress()
        )

    def _try_again(self, now: _Round) -> Step:
        self._short += 1
        if self._short > self._plan.retries:
            raise self._lost(len(now.ready), set(now.failed.values()))
        return self._say(now.ask)

    def _lost(self, ready: int, reasons: set[str]) -> ProtocolAborted:
        return ProtocolAborted(
            f"{ready} sources ready, {self._plan.quorum} needed, {self._short} rounds in a row: "
            f"{', '.join(sorted(reasons))}",
            code="quorum-lost",
            hint="look at the nodes that are absent, each of which keeps why; the next attempt goes on after "
            "the last whole round",
        )

    # -- what they add up to

    def _take_masked(self, now: _Round, message: Incoming) -> Step:
        member = message.sender
        if member not in now.come:
            raise _unexpected(message)
        at, whole = now.come[member], len(now.sums)
        expected = min(_CHUNK, whole - at)
        if not expected or len(message.body) != 8 * expected or message.last != (at + expected == whole):
            raise ProtocolAborted(
                f"{len(message.body)} bytes of a masked vector, {8 * expected} expected", code="bad-length"
            )
        span = now.sums[at : at + expected]
        np.add(span, np.frombuffer(message.body, "<u8"), out=span)
        now.come[member] = at + expected
        if any(come < whole for come in now.come.values()):
            return Waiting((), self._progress())
        return self._say(self._worker.answer(self._total(now)))

    def _total(self, now: _Round) -> Answer:
        """Return what the worker is told of a round.

        Raises:
            ProtocolAborted: `not-a-sum`: masks did not cancel; `total-out-of-range`: no sources add up to it.
        """
        plan = self._plan
        assert now.shape is not None
        words = now.sums.view(np.int64)
        if (words[:CHECKS] != len(now.members)).any():
            raise ProtocolAborted(
                "the total is not the sum of the members' updates",
                code="not-a-sum",
                hint="a source masked for another set, message or seed; start another attempt, and compare "
                "the nodes' versions if it happens again",
            )
        total = words[CHECKS:]
        noise = plan.noise(now.ask.turn, now.shape)
        scale, reach = (1, 0) if noise is None else (noise.scale, noise.reach)
        most = plan.bound(now.members, now.shape) * scale + reach
        if max(int(total.max()), -int(total.min())) > most:
            raise ProtocolAborted(
                "a total is beyond what the members' rows and noise add up to",
                code="total-out-of-range",
                hint="a source added more than its rows can: ask the departments which recipe they run",
            )
        return Answer(
            tuple((plan.node(source), now.ready[source].receipt) for source in now.members),
            tuple((plan.node(source), code) for source, code in sorted(now.failed.items())),
            (total / scale).astype("<f8").tobytes(),
            plan.rows_of(now.ask.turn, now.members),
        )

    def _end(self, done: Done) -> Step:
        self._worker.close()
        self._round = None
        # No source sends in more: a round that was kept and never told counts for nobody.
        held = {turn: min(self._held[turn], most) for turn, most in self._plan.rounds.items()}
        output = self._publish(done, Held(held, dict(self._worker.ready.versions)))
        digest = sha256(done.model).digest()
        return Finished(tuple(Outgoing(source, DONE, digest) for source in self._plan.sources), output)


def _unexpected(message: Incoming) -> ProtocolAborted:
    return ProtocolAborted(f"round {message.round} from {message.sender}: not due", code="unexpected-message")
