"""Workers that are started again where they died, and taken back to where they were.

A worker that contributes hands over its state with every update, so the next start begins there. One that
leads has no state but what it was told: it is told all of it again, from the first answer on, and has to ask
what it asked before. So any strategy can be resumed, in the same attempt or a later one, and what the nodes
were asked once is never asked in other words.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Final, Protocol, TypeVar

import msgspec
from msgspec import Meta, structs

from protocols.errors import DecodeError, ProtocolAborted, StateConflict
from protocols.jobs.job_type import Shelf
from protocols.training.work import (
    Answer,
    Ask,
    Begin,
    Done,
    FromWorker,
    Go,
    Handle,
    Ready,
    RecipeFailed,
    Update,
    Worker,
    WorkerGone,
)

MAX_STEPS: Final = 10**6
"""Answers that a lead gets in one job, at most."""

MAX_KEPT_BYTES: Final = 1 << 32
"""What a shelf keeps of one job's answers, at most."""

T = TypeVar("T")

LATE: Final = "worker-deadline"
"""The code of a worker that did not answer in time."""


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An answer that the lead's worker got.

    Attributes:
        digest: of the question, as in `Ask`.
        turn: of the question.
        answer: what became of it.
    """

    digest: Annotated[bytes, Meta(min_length=32, max_length=32)]
    turn: str
    answer: Answer


class Steps(Protocol):
    """What the lead's worker was told: kept durably, in order, before it is told."""

    def load(self) -> Iterable[Step]:
        """Return all steps, which may be more than fit into memory.

        Raises:
            DecodeError: what is kept is none.
        """
        ...

    def append(self, step: Step) -> None:
        """Keep one more; when this returns, it is durable."""
        ...


class ShelvedSteps:
    """Steps on a node's shelf, one blob each, so that nothing is ever rewritten."""

    def __init__(self, shelf: Shelf, job: bytes) -> None:
        """Keep the steps of a job, by its 32 bytes."""
        self._shelf, self._prefix, self._count, self._bytes = shelf, f"{job.hex()}-step-", 0, 0

    def load(self) -> Iterator[Step]:
        """Yield all steps, those up to the first that is not there; one is in memory at a time.

        One is kept after those that were loaded last, so all of them are to be loaded before.
        """
        self._count = self._bytes = 0
        while (blob := self._shelf.get(self._name(self._count))) is not None:
            try:
                step = _steps.decode(blob)
            except msgspec.DecodeError:
                raise DecodeError("a kept step of a lead is none", code="bad-step") from None
            self._count, self._bytes = self._count + 1, self._bytes + len(blob)
            yield step

    def append(self, step: Step) -> None:
        """Keep one more.

        Raises:
            StateConflict: `steps-too-large`: there is more than any run of this size makes.
        """
        body = msgspec.msgpack.encode(step)
        if self._bytes + len(body) > MAX_KEPT_BYTES:
            raise StateConflict(
                f"answers of one run with more than {MAX_KEPT_BYTES} bytes together",
                code="steps-too-large",
                hint="train in fewer rounds, or a smaller model",
            )
        with self._shelf.put(self._name(self._count)) as write:
            write(body)
        self._count, self._bytes = self._count + 1, self._bytes + len(body)

    def _name(self, number: int) -> str:
        return f"{self._prefix}{number:06d}"


_steps: msgspec.msgpack.Decoder[Step] = msgspec.msgpack.Decoder(Step)


def forget(shelf: Shelf, job: bytes) -> None:
    """Drop what a job left on a shelf: for a node whose part in it has come to its good end."""
    for name in shelf.names():
        if name.startswith(job.hex() + "-"):
            shelf.drop(name)


class LastingWorker:
    """A worker that may die a few times within one attempt."""

    def __init__(self, start: Callable[[], Worker], begin: Begin, *, restarts: int = 2) -> None:
        """Begin with nothing started.

        Args:
            start: starts a worker.
            begin: its first frame.
            restarts: how often it is started again at most.
        """
        self._start, self._begin, self._left = start, begin, restarts
        self._worker: Worker | None = None
        self._started = False
        self.ready = Ready({}, {})

    def open(self) -> Ready:
        """Start the worker; return what it says of itself.

        Raises:
            WorkerGone: it died as often as it may.
            RecipeFailed: it ended with a code.
        """
        self._lasting(lambda _: None)
        return self.ready

    def close(self) -> None:
        """End the worker."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def _again(self, worker: Worker) -> None:
        """Take a worker that has just begun back to where the last one was."""

    def _lasting(self, step: Callable[[Worker], T]) -> T:
        """Do a step with a worker that is there, started again where it died."""
        while True:
            try:
                return step(self._there())
            except WorkerGone as gone:
                self.close()
                # Who took too long once would again; and its party has no more time for this step.
                if gone.code == LATE or self._left <= 0:
                    raise
            except (RecipeFailed, StateConflict):
                self.close()
                raise

    def _there(self) -> Worker:
        if self._worker is None:
            if self._started:
                if self._left <= 0:
                    raise WorkerGone("the worker has died as often as it may", code="worker-gone")
                self._left -= 1
            self._started = True
            worker = self._worker = self._start()
            answer = worker.step(self._begin)
            if not isinstance(answer, Ready):
                raise _not_understood()
            self.ready = answer
            self._again(worker)
        return self._worker


class ContributingWorker(LastingWorker):
    """A source's worker; its state is that of its last update."""

    def handle(self, frame: Handle) -> Update:
        """Return what a message of the lead leads to.

        Raises:
            WorkerGone, RecipeFailed: see `open`.
        """
        answer = self._lasting(lambda worker: worker.step(frame))
        if not isinstance(answer, Update):
            self.close()
            raise _not_understood()
        self._begin = structs.replace(self._begin, state=answer.state)
        return answer

    @property
    def state(self) -> bytes:
        """What the worker handed over last."""
        return self._begin.state


class LeadingWorker(LastingWorker):
    """The lead's worker, with everything that it was told."""

    def __init__(self, start: Callable[[], Worker], begin: Begin, steps: Steps, *, restarts: int = 2) -> None:
        """Begin with what was kept in earlier attempts, if anything."""
        super().__init__(start, begin, restarts=restarts)
        self._keep, self._told = steps, 0
        self._newest: Answer | None = None
        self._said: Ask | Done | None = None

    @property
    def steps(self) -> int:
        """How many questions were answered, all attempts together; known once it was opened."""
        return self._told

    def go(self) -> Ask | Done:
        """Return what the lead says after everything that it was told: its first or its next question."""
        self.open()
        return self._now()

    def answer(self, answer: Answer) -> Ask | Done:
        """Keep an answer durably, tell it, and return what the lead says next.

        Raises:
            WorkerGone, RecipeFailed: see `open`; the answer is kept, and a later attempt goes on after it.
        """
        asked = self._now()
        if not isinstance(asked, Ask) or self._told >= MAX_STEPS:
            raise ProtocolAborted("an answer to no question, or one too many", code="no-question")
        step = Step(asked.digest, asked.turn, answer)
        # Before it is told: a total has cost a round, a question has not.
        self._keep.append(step)
        self._told += 1
        self._newest, self._said = answer, None
        self._lasting(self._tell)
        return self._now()

    def _tell(self, worker: Worker) -> None:
        # One that was started again has been told already.
        if self._said is None:
            assert self._newest is not None
            self._said = _asked(worker.step(self._newest))

    def _now(self) -> Ask | Done:
        if self._said is None:
            raise _not_understood()
        return self._said

    def _again(self, worker: Worker) -> None:
        said, told = _asked(worker.step(Go())), 0
        # Read back one by one: totals of a whole run need not fit into memory.
        for step in self._keep.load():
            if not isinstance(said, Ask) or said.digest != step.digest:
                raise StateConflict(
                    "the restarted worker asks other than before",
                    code="recipe-not-deterministic",
                    hint="draw whatever is random in a recipe from the seed it is given",
                )
            said, told = _asked(worker.step(step.answer)), told + 1
        self._said, self._told = said, told


def _asked(answer: FromWorker) -> Ask | Done:
    if not isinstance(answer, Ask | Done):
        raise _not_understood()
    return answer


def _not_understood() -> WorkerGone:
    return WorkerGone("the worker said what does not answer it", code="worker-not-understood")
