"""The life of a job: states, the published table of their transitions, and the one function that moves them.

`advance` is pure: a job, an event and the time give the next job and the effects to carry out. The scheduler
stores the next job first and carries out the effects after that. Effects are messages a node may get twice.

States only move along `JOB_TRANSITIONS` and `RUN_TRANSITIONS`. An event that does not fit (late, repeated, of
another attempt) changes nothing.

A stored answer: once every node says that one earlier job has answered the same question, and that job's
releases are still here, the job succeeds with those. Nothing is admitted, nothing is charged, nothing runs.

A retry: the job keeps its state, `attempt` counts on, all runs start again as OFFERED. An attempt is not
replaced once a release of it is stored, because what may have been opened is not computed a second time. A
job that runs in rounds goes on in the next attempt, so it may have more of them.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, Self

from protocols.errors import StateConflict
from protocols.ids import JobId, NodeName, Role


class JobState(StrEnum):
    """Where a job stands."""

    SUBMITTED = "SUBMITTED"
    AWAITING_APPROVAL = "AWAITING_APPROVAL"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    REFUSED = "REFUSED"
    CANCELLED = "CANCELLED"
    EXPIRED = "EXPIRED"


class RunState(StrEnum):
    """Where one node's part in an attempt stands."""

    OFFERED = "OFFERED"
    CHECKING = "CHECKING"
    AWAITING_APPROVAL = "AWAITING_APPROVAL"
    ACCEPTED = "ACCEPTED"
    RUNNING = "RUNNING"
    RELEASING = "RELEASING"
    DONE = "DONE"
    REFUSED = "REFUSED"
    FAILED = "FAILED"
    LOST = "LOST"
    CANCELLED = "CANCELLED"
    TIMED_OUT = "TIMED_OUT"
    EXPIRED = "EXPIRED"


_J, _R = JobState, RunState

_JOB_ENDS_EARLY: Final = frozenset({_J.FAILED, _J.REFUSED, _J.CANCELLED, _J.EXPIRED})

JOB_TRANSITIONS: Final[Mapping[JobState, frozenset[JobState]]] = {
    # Nobody has to approve: straight to RUNNING. An earlier job has the answer: straight to SUCCEEDED.
    _J.SUBMITTED: _JOB_ENDS_EARLY | {_J.AWAITING_APPROVAL, _J.RUNNING, _J.SUCCEEDED},
    _J.AWAITING_APPROVAL: _JOB_ENDS_EARLY | {_J.RUNNING, _J.SUCCEEDED},
    _J.RUNNING: _JOB_ENDS_EARLY | {_J.SUCCEEDED},
    _J.SUCCEEDED: frozenset(),
    _J.FAILED: frozenset(),
    _J.REFUSED: frozenset(),
    _J.CANCELLED: frozenset(),
    _J.EXPIRED: frozenset(),
}
"""From each job state, the states it may move to."""

_RUN_ENDS_EARLY: Final = frozenset({_R.REFUSED, _R.FAILED, _R.CANCELLED, _R.EXPIRED})
_RUN_ENDS: Final = frozenset({_R.REFUSED, _R.FAILED, _R.LOST, _R.CANCELLED, _R.TIMED_OUT})

RUN_TRANSITIONS: Final[Mapping[RunState, frozenset[RunState]]] = {
    _R.OFFERED: _RUN_ENDS_EARLY | {_R.CHECKING},
    _R.CHECKING: _RUN_ENDS_EARLY | {_R.AWAITING_APPROVAL, _R.ACCEPTED, _R.OFFERED},
    _R.AWAITING_APPROVAL: _RUN_ENDS_EARLY | {_R.ACCEPTED, _R.OFFERED},
    # A later answer replaces an earlier one, so an accepted run may ask again until it runs.
    _R.ACCEPTED: _RUN_ENDS_EARLY | {_R.RUNNING, _R.AWAITING_APPROVAL, _R.TIMED_OUT, _R.OFFERED},
    _R.RUNNING: _RUN_ENDS | {_R.RELEASING, _R.DONE, _R.OFFERED},
    _R.RELEASING: _RUN_ENDS | {_R.DONE, _R.OFFERED},
    # Every way back to OFFERED is a retry.
    _R.DONE: frozenset({_R.OFFERED}),
    _R.FAILED: frozenset({_R.OFFERED}),
    _R.LOST: frozenset({_R.OFFERED}),
    _R.REFUSED: frozenset(),
    _R.CANCELLED: frozenset(),
    _R.TIMED_OUT: frozenset(),
    _R.EXPIRED: frozenset(),
}
"""From each run state, the states it may move to; OFFERED only by a retry."""

JOB_ENDS: Final = frozenset(state for state, then in JOB_TRANSITIONS.items() if not then)
RUN_ENDS: Final = frozenset(state for state, then in RUN_TRANSITIONS.items() if then <= {_R.OFFERED})
"""States in which a run waits for nothing more."""

RETRYABLE: Final[Mapping[str, str]] = {
    "node-restarted": "node-lost",
    "peer-lost": "node-lost",
    "unreachable": "node-lost",
    # Nothing of its data has left. While its witnesses are still away it refuses the next attempt, so that
    # no other node is charged for one that cannot succeed.
    "no-quorum": "no-quorum",
}
"""Reason codes of a failed run that another attempt may cure; what the job says of each."""

ANSWERED_BEFORE: Final = "answered-before"
"""Reason code of a job that succeeded with an earlier job's releases."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long and how often things are tried; seconds."""

    admit_timeout_s: int = 300
    run_timeout_s: int = 3600
    max_attempts: int = 2
    max_attempts_in_rounds: int = 10

    @property
    def in_rounds(self) -> Self:
        """Those of a job that runs in rounds: it goes on where an attempt was cut short."""
        return replace(self, max_attempts=self.max_attempts_in_rounds)


@dataclass(frozen=True, slots=True)
class Run:
    """One node's part in the current attempt.

    `verdict` and `admission` are envelopes, empty before they came; `max_runtime_s` is what the node's
    admission allows, None where it does not say. `answered` is the earlier job that the verdict says has
    answered the same question, empty for none.
    """

    node: NodeName
    role: Role
    state: RunState = RunState.OFFERED
    code: str = ""
    sentence: str = ""
    hint: str = ""
    verdict: bytes = b""
    approvals_needed: int = 0
    approvals_given: int = 0
    admission: bytes = b""
    max_runtime_s: int | None = None
    answered: str = ""


@dataclass(frozen=True, slots=True)
class Planned:
    """A release that the coordinator will hold: which node makes it, under which name."""

    node: NodeName
    name: str


@dataclass(frozen=True, slots=True)
class Job:
    """A job and its runs in the current attempt.

    `deadline` is when the step under way times out: set while admissions are collected and while it runs.
    `awaited` are the releases still to come before the job can succeed, `stored` those that are durable here.
    `answered_by` is the earlier job whose releases answer this one, empty for none.
    """

    id: JobId
    expires: datetime
    runs: tuple[Run, ...]
    awaited: frozenset[Planned] = frozenset()
    stored: frozenset[Planned] = frozenset()
    state: JobState = JobState.SUBMITTED
    attempt: int = 1
    deadline: datetime | None = None
    code: str = ""
    sentence: str = ""
    hint: str = ""
    answered_by: str = ""

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in JOB_ENDS

    @property
    def started(self) -> bool:
        """Whether the current attempt was started: every admission was handed to every node."""
        return any(run.state in (_R.RUNNING, _R.RELEASING, _R.DONE) for run in self.runs)

    @property
    def admitting(self) -> bool:
        """Whether every node has permitted and admissions are collected."""
        return all(run.state is _R.ACCEPTED for run in self.runs)

    def run(self, node: NodeName) -> Run | None:
        """Return the run of `node`, None for a node that takes no part."""
        return next((run for run in self.runs if run.node == node), None)


@dataclass(frozen=True, slots=True)
class Offered:
    """The offer went onto the node's stream."""

    node: NodeName
    attempt: int


@dataclass(frozen=True, slots=True)
class Answered:
    """A node's verdict; `verdict` is the envelope, its signature checked.

    `answered` is the earlier job that it names, `usable` whether that job's releases can be handed out now.
    """

    node: NodeName
    attempt: int
    answer: str
    verdict: bytes
    code: str = ""
    sentence: str = ""
    hint: str = ""
    approvals_needed: int = 0
    approvals_given: int = 0
    answered: str = ""
    usable: bool = False


@dataclass(frozen=True, slots=True)
class Admitted:
    """A node's admission; `admission` is the envelope, its signature checked."""

    node: NodeName
    attempt: int
    admission: bytes
    max_runtime_s: int | None = None


@dataclass(frozen=True, slots=True)
class Uploading:
    """The first piece of a release arrived."""

    node: NodeName
    attempt: int


@dataclass(frozen=True, slots=True)
class Stored:
    """A release is durable here."""

    node: NodeName
    attempt: int
    name: str


@dataclass(frozen=True, slots=True)
class Ended:
    """A node reports how its run ended: DONE, REFUSED, FAILED, CANCELLED or TIMED_OUT."""

    node: NodeName
    attempt: int
    state: RunState
    code: str = ""
    sentence: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Lost:
    """A node that was running is gone, or came back without the attempt."""

    node: NodeName
    attempt: int
    sentence: str


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Somebody of the requester's organisation withdrew the job; `by` is their name in the roster."""

    by: str


@dataclass(frozen=True, slots=True)
class Passed:
    """Time went by."""


@dataclass(frozen=True, slots=True)
class Restarted:
    """The coordinator came up again; what was under way is not known any more."""


Event = (
    Offered | Answered | Admitted | Uploading | Stored | Ended | Lost | Cancelled | Passed | Restarted
)  # what can happen to a job


@dataclass(frozen=True, slots=True)
class Offer:
    """Offer the current attempt to `node`."""

    node: NodeName


@dataclass(frozen=True, slots=True)
class Admit:
    """Ask `node` for its admission."""

    node: NodeName


@dataclass(frozen=True, slots=True)
class Start:
    """Hand all admissions to `node`. The relay is open by then."""

    node: NodeName


@dataclass(frozen=True, slots=True)
class Stop:
    """Tell `node` that the attempt, or with attempt 0 the job, is over."""

    node: NodeName
    attempt: int
    code: str
    sentence: str


@dataclass(frozen=True, slots=True)
class OpenRelay:
    """Accept frames of the current attempt."""


@dataclass(frozen=True, slots=True)
class CloseRelay:
    """Accept no more frames of `attempt` and forget those under way."""

    attempt: int


@dataclass(frozen=True, slots=True)
class DropReleases:
    """Delete what is stored of a job that did not succeed."""


@dataclass(frozen=True, slots=True)
class Record:
    """Write a journal entry of this kind about an attempt.

    `node` is whose doing it was, empty for nobody's; `retry` says that another attempt follows.
    """

    kind: str
    attempt: int
    code: str = ""
    node: str = ""
    retry: bool = False


Effect = Offer | Admit | Start | Stop | OpenRelay | CloseRelay | DropReleases | Record
Outcome = tuple[Job, tuple[Effect, ...]]


def offers(job: Job) -> tuple[Effect, ...]:
    """Return the effects that put the current attempt before every node."""
    return tuple(Offer(run.node) for run in job.runs)


def advance(job: Job, event: Event, limits: Limits, now: datetime) -> Outcome:
    """Return the job after `event`, and what has to be done about it."""
    match event:
        case Offered(node, attempt):
            return _edit(job, node, attempt, {_R.OFFERED}, lambda run: _to(run, _R.CHECKING)), ()
        case Answered():
            return _answered(job, event, limits, now)
        case Admitted():
            return _admitted(job, event, limits, now)
        case Uploading(node, attempt):
            return _edit(job, node, attempt, {_R.RUNNING}, lambda run: _to(run, _R.RELEASING)), ()
        case Stored(node, attempt, name):
            planned = Planned(node, name)
            if job.ended or attempt != job.attempt or planned not in job.awaited:
                return job, ()
            return _settle(replace(job, awaited=job.awaited - {planned}, stored=job.stored | {planned}))
        case Ended():
            return _run_ended(job, event, limits)
        case Lost(node, attempt, sentence):
            if job.ended or not _is_running(job, node, attempt):
                return job, ()
            lost = _edit(
                job,
                node,
                attempt,
                {_R.RUNNING, _R.RELEASING},
                lambda run: replace(_to(run, _R.LOST), code="node-lost", sentence=sentence, hint=""),
            )
            return _retry(lost, node, sentence, limits)
        case Cancelled(by):
            return _end(
                job,
                _J.CANCELLED,
                code="cancelled-by-requester",
                sentence=f"{by} withdrew the job",
                others=_R.CANCELLED,
            )
        case Passed():
            return _passed(job, now)
        case Restarted():
            if job.ended:
                return job, ()
            if not job.started:
                return _admit_again(job, limits, now), ()
            return _retry(job, "", "the coordinator restarted while the attempt was under way", limits)


def _admit_again(job: Job, limits: Limits, now: datetime) -> Job:
    """Forget admissions: nothing has left yet, and their keys may be gone with their nodes' processes."""
    deadline = now + timedelta(seconds=limits.admit_timeout_s) if job.admitting else None
    runs = tuple(replace(run, admission=b"", max_runtime_s=None) for run in job.runs)
    return replace(job, runs=runs, deadline=deadline)


def _is_running(job: Job, node: NodeName, attempt: int) -> bool:
    run = job.run(node)
    return run is not None and attempt == job.attempt and run.state in (_R.RUNNING, _R.RELEASING)


def _to(run: Run, state: RunState) -> Run:
    if state not in RUN_TRANSITIONS[run.state]:
        raise StateConflict(f"a run does not move from {run.state} to {state}", code="bad-transition")
    return replace(run, state=state)


def _job_to(job: Job, state: JobState) -> Job:
    if state not in JOB_TRANSITIONS[job.state]:
        raise StateConflict(f"a job does not move from {job.state} to {state}", code="bad-transition")
    return replace(job, state=state)


def _edit(job: Job, node: NodeName, attempt: int, states: set[RunState], change: Callable[[Run], Run]) -> Job:
    """Return `job` with the run of `node` changed, if it is of this attempt and in one of `states`."""
    if job.ended or attempt != job.attempt:
        return job
    return replace(
        job,
        runs=tuple(change(run) if run.node == node and run.state in states else run for run in job.runs),
    )


def _answered(job: Job, event: Answered, limits: Limits, now: datetime) -> Outcome:
    def read(run: Run) -> Run:
        return replace(
            run,
            verdict=event.verdict,
            code=event.code,
            sentence=event.sentence,
            hint=event.hint,
            approvals_needed=event.approvals_needed,
            approvals_given=event.approvals_given,
            answered=event.answered,
        )

    if job.state is _J.REFUSED and event.attempt == job.attempt:
        # Every node's reason reaches the analyst, also those that answer after the first refusal.
        return replace(
            job,
            runs=tuple(read(run) if run.node == event.node and not run.verdict else run for run in job.runs),
        ), ()
    run = job.run(event.node)
    open_states = (_R.OFFERED, _R.CHECKING, _R.AWAITING_APPROVAL, _R.ACCEPTED)
    if job.ended or event.attempt != job.attempt or run is None or run.state not in open_states:
        return job, ()
    if run.state is _R.OFFERED:  # the answer overtook the note that the offer was sent
        run = _to(run, _R.CHECKING)
    target = {"permit": _R.ACCEPTED, "ask": _R.AWAITING_APPROVAL, "refuse": _R.REFUSED}[event.answer]
    was_admitting = job.admitting
    moved = read(run if run.state is target else _to(run, target))
    if target is not _R.ACCEPTED:
        moved = replace(moved, admission=b"", max_runtime_s=None)
    job = replace(job, runs=tuple(moved if each.node == run.node else each for each in job.runs))
    # A release of its own means that it has begun to answer for itself.
    usable = event.usable and not job.stored
    if usable and all(each.answered == event.answered for each in job.runs):
        return _answered_before(job, event.answered)
    no = next((each for each in job.runs if each.state is _R.REFUSED), None)
    if no is not None:
        # A refusal now does not undo an answer given before; whether there is one, only all nodes can tell.
        agree = all(each.answered == event.answered for each in job.runs if each.verdict)
        return (job, ()) if usable and agree else _refused(job, no)
    if not job.admitting:
        # Until every node agrees again, no step is under way that could time out.
        job = replace(job, deadline=None)
        if target is _R.AWAITING_APPROVAL and job.state is _J.SUBMITTED:
            job = _job_to(job, _J.AWAITING_APPROVAL)
        return job, ()
    if was_admitting:
        return job, ()
    if job.state is not _J.RUNNING:
        job = _job_to(job, _J.RUNNING)
    job = replace(job, deadline=now + timedelta(seconds=limits.admit_timeout_s))
    return job, tuple(Admit(each.node) for each in job.runs)


def _answered_before(job: Job, earlier: str) -> Outcome:
    """Succeed with an earlier job's releases; the nodes hear that nothing is asked of them any more."""
    sentence = f"every node says that job {earlier} has answered this question"
    runs = tuple(
        run
        if run.state in RUN_ENDS
        else replace(_to(run, _R.CANCELLED), code=ANSWERED_BEFORE, sentence=sentence, hint="")
        for run in job.runs
    )
    ended = replace(
        _job_to(job, _J.SUCCEEDED),
        runs=runs,
        awaited=frozenset[Planned](),
        deadline=None,
        code=ANSWERED_BEFORE,
        sentence=sentence,
        hint="",
        answered_by=earlier,
    )
    return ended, tuple(
        Stop(run.node, 0, ANSWERED_BEFORE, sentence) for run in runs if run.state is not _R.REFUSED
    )


def _refused(job: Job, no: Run) -> Outcome:
    return _end(
        job,
        _J.REFUSED,
        code=no.code,
        sentence=f"{no.node} refused: {no.sentence}",
        hint=no.hint,
        others=_R.CANCELLED,
        because="peer-refused",
        node=no.node,
    )


def _admitted(job: Job, event: Admitted, limits: Limits, now: datetime) -> Outcome:
    if not job.admitting:
        return job, ()
    job = _edit(
        job,
        event.node,
        event.attempt,
        {_R.ACCEPTED},
        lambda run: replace(run, admission=event.admission, max_runtime_s=event.max_runtime_s),
    )
    if not all(run.admission for run in job.runs):
        return job, ()
    allowed = [run.max_runtime_s for run in job.runs if run.max_runtime_s is not None]
    seconds = min(allowed, default=limits.run_timeout_s)
    job = replace(
        job,
        runs=tuple(_to(run, _R.RUNNING) for run in job.runs),
        deadline=now + timedelta(seconds=seconds),
    )
    return job, (OpenRelay(), *(Start(run.node) for run in job.runs))


def _run_ended(job: Job, event: Ended, limits: Limits) -> Outcome:
    run = job.run(event.node)
    if job.ended or event.attempt != job.attempt or run is None or run.state in RUN_ENDS:
        return job, ()
    if event.state is _R.DONE:
        if run.state in (_R.RUNNING, _R.RELEASING):
            return _settle(_edit(job, run.node, job.attempt, {run.state}, lambda each: _to(each, _R.DONE)))
        event = replace(
            event,
            state=_R.FAILED,
            code="protocol-aborted",
            sentence="it reported an end before the attempt had started",
        )
    # A run that ends before it was started cannot time out in the table's sense: it failed.
    target = event.state if event.state in RUN_TRANSITIONS[run.state] else _R.FAILED
    ended = replace(_to(run, target), code=event.code, sentence=event.sentence, hint=event.hint)
    job = replace(job, runs=tuple(ended if each.node == run.node else each for each in job.runs))
    if target is _R.REFUSED:
        return _refused(job, ended)
    if target is _R.FAILED and event.code in RETRYABLE:
        return _retry(job, event.node, event.sentence, limits, RETRYABLE[event.code])
    return _end(
        job,
        _J.FAILED,
        code=event.code,
        sentence=f"{event.node}: {event.sentence}",
        hint=event.hint,
        others=_R.CANCELLED,
        because="peer-failed",
        node=event.node,
    )


def _settle(job: Job) -> Outcome:
    """Succeed once every run is done and every planned release is durable."""
    if job.awaited or any(run.state is not _R.DONE for run in job.runs):
        return job, ()
    return replace(_job_to(job, _J.SUCCEEDED), deadline=None), (CloseRelay(job.attempt),)


def _retry(job: Job, node: str, sentence: str, limits: Limits, code: str = "node-lost") -> Outcome:
    """Replace the attempt, or fail where no other may follow; `node` is empty where nobody is at fault."""
    if not node:
        code = "coordinator-restarted"
    else:
        what = "was lost" if code == "node-lost" else "could not start"
        sentence = f"{node} {what} in attempt {job.attempt}: {sentence}"
    if job.attempt >= limits.max_attempts or job.stored:
        return _end(
            job,
            _J.FAILED,
            code=code,
            sentence=sentence,
            hint="submit the job again once every node is back",
            others=_R.CANCELLED,
            because="peer-failed",
            node=node,
        )
    stops = tuple(Stop(run.node, job.attempt, "attempt-replaced", sentence) for run in job.runs)
    again = replace(
        job,
        attempt=job.attempt + 1,
        runs=tuple(Run(run.node, run.role) for run in job.runs),
        deadline=None,
        sentence=sentence,
    )
    record = Record("job.failed", job.attempt, code, node, retry=True)
    return again, (record, CloseRelay(job.attempt), *stops, *offers(again))


def _passed(job: Job, now: datetime) -> Outcome:
    if job.ended:
        return job, ()
    if now >= job.expires and not job.started:
        no = next((run for run in job.runs if run.state is _R.REFUSED), None)
        if no is not None:  # it waited for the others to say whether the question was answered before
            return _refused(job, no)
        silent = ", ".join(run.node for run in job.runs if run.state is not _R.ACCEPTED)
        return _end(
            job,
            _J.EXPIRED,
            code="job-expired",
            sentence=f"the job expired before {f'{silent} had agreed' if silent else 'it was started'}",
            hint="find out what kept it, then submit it again with a later `expires`",
            others=_R.EXPIRED,
        )
    if job.deadline is None or now < job.deadline:
        return job, ()
    slow = [run for run in job.runs if run.state is not _R.DONE and not (job.admitting and run.admission)]
    if slow:
        step = "admit the job" if job.admitting else "finish"
        sentence = f"{', '.join(run.node for run in slow)} did not {step} in time"
    else:
        sentence = "a release did not arrive in time"
    late = {run.node for run in slow}
    job = replace(
        job,
        runs=tuple(
            replace(_to(run, _R.TIMED_OUT), code="timed-out", sentence="it did not finish in time", hint="")
            if run.node in late
            else run
            for run in job.runs
        ),
    )
    return _end(
        job,
        _J.FAILED,
        code="timed-out",
        sentence=sentence,
        hint="look at the nodes named, then submit the job again",
        others=_R.CANCELLED,
        because="peer-failed",
        node=slow[0].node if slow else "",
    )


_RECORDED: Final = {
    _J.REFUSED: "job.refused",
    _J.FAILED: "job.failed",
    _J.CANCELLED: "job.cancelled",
    _J.EXPIRED: "job.expired",
}


def _end(
    job: Job,
    state: JobState,
    *,
    code: str,
    sentence: str,
    hint: str = "",
    others: RunState,
    because: str = "",
    node: str = "",
) -> Outcome:
    """End the job: every run still open becomes `others`, and every node hears about it.

    `because` is the code that the other runs carry; the job's own where empty.
    """
    if job.ended:
        return job, ()
    told = because or code
    runs = tuple(
        run
        if run.state in RUN_ENDS
        else replace(
            _to(run, others if others in RUN_TRANSITIONS[run.state] else _R.CANCELLED),
            code=told,
            sentence=sentence,
            hint="",
        )
        for run in job.runs
    )
    stops: Iterable[Effect] = (Stop(run.node, 0, told, sentence) for run in job.runs if run.node != node)
    ended = replace(_job_to(job, state), runs=runs, deadline=None, code=code, sentence=sentence, hint=hint)
    drop: tuple[Effect, ...] = (DropReleases(),) if job.stored else ()
    return ended, (Record(_RECORDED[state], job.attempt, code, node), CloseRelay(job.attempt), *drop, *stops)
