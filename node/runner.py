"""The runner: one attempt from `Admit` to its end, on this node.

Order is what makes it safe. Reading and preparing derive things from data but send nothing. The cost is set
aside with the admission. `Start` is checked against everybody's admissions; then commit point 1 makes the
charge and the journal entry durable; only then, and where the policy says so once witnesses have seen that
entry, is the data stream opened; and before the first frame all is checked once more, for either may have
taken long. That an answer is under way is durable before the first frame of it. Commit
point 2 makes the releases durable; only then, and once witnesses have seen that, are they sent. An attempt
that a crash or an error cut short is never resumed; its cost is freed only where it is certain that nothing
of the data was told.

A session is a run like any other that stays open: people at one node ask, and of each request the journals of
both hold how many keys it had before anything of its answer goes on.

A run in rounds computes in worker processes. Each round is counted and journaled before its frame leaves,
under what is in force then; at the attempt's end, what no round was spent on is given back.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from audit.entries import PolicyRef, format_time
from audit.statements import accepted_facts, cost_facts, published, release_facts, series_facts
from node import rpc, scratch, series
from node.admission import (
    Prepared,
    check_admissions,
    make_admission,
    prepare,
    seal_admission,
)
from node.answers import IN_CHINESE
from node.compute import open_executor
from node.config import Config
from node.cosigning import requires_cosigned
from node.counter import Counter, Session, session_over
from node.exchange import Close, Exchange, Handed, Question
from node.gate import HINDRANCES, Allowed, Gate, about_of, dataset_of
from node.home import Home
from node.journal import job_facts, policy_ref
from node.lasting import Lasting
from node.ledger import Rounds, RowState
from node.link import Uplink
from node.logs import Log
from node.quality import Look, Preflight, TooLow, demand_of, stored_preflight
from node.receipts import owe
from node.releases import SealedRelease, Sealing, discard, keep, kept, seal_all
from node.rpc import Attempt, ControlRequest
from node.scratch import DiskScratch
from node.shelf import clear_leftovers, shelf_of
from node.state import (
    NOT_OVER,
    WAITING,
    Change,
    Dataset,
    RunState,
    State,
    StoredOutput,
    StoredRun,
)
from node.stops import covering
from node.workers import Workers
from policies.attempts import (
    Agreed,
    charged_lines,
    cost_under,
    deltas_of,
    leakage_digest,
    runs_in_rounds,
)
from protocols.channel import suites
from protocols.channel.frame import FrameOpener, FrameSealer
from protocols.encoding import canonical_json, digest_bytes, sha256_digest
from protocols.envelope import Signer, decode_envelope
from protocols.errors import (
    DecodeError,
    InputError,
    MinshuError,
    ProtocolAborted,
    Refused,
    StateConflict,
    Unreachable,
)
from protocols.ids import Digest, JobId, Role
from protocols.jobs import JOB_TYPES, job_type
from protocols.jobs.job_type import (
    Content,
    ExactOrNoisy,
    InRounds,
    Keeps,
    OutputClass,
    PlannedRelease,
    PreparedInput,
    Serial,
    Setup,
    Spills,
    Standing,
)
from protocols.party import UNDER_WAY, Finished, Party, Progress, Rand, Serving, Step, Waiting
from protocols.resources import Resources
from protocols.training.lasting import forget
from protocols.wire import Admission, JobSpec

if TYPE_CHECKING:
    from node.activation import InForce
    from node.record import Recorder

T = TypeVar("T")

ADMISSION_LIFETIME: Final = timedelta(hours=1)
MAX_THREADS: Final = 64
MAX_SESSIONS: Final = 16
"""Sessions open at once. Each takes a thread for as long as it is, and none of those that runs need."""
PROGRESS_EVERY_S: Final = 0.5
SESSION_PROGRESS_S: Final = 5.0
"""How often it is told how many look-ups there were."""
TOGETHER: Final = 32
"""Steps of a session that one transaction records at most."""
LINGER_S: Final = 30.0
DECISIONS: Final = 3
"""How often a job is decided again because another one was set aside in between."""
CLOSING_S: Final = 30.0
"""How long before the end of a run its session is closed, so that it ends in good order."""
MAX_SENTENCE: Final = 1024
ROUND: Final = "training.round"
"""The kind of a round's entry."""
SOFTWARE: Final = f"minshu-{version('minshu')}"
"""What ran, for the journal."""


class Ended(MinshuError):
    """An attempt is over for a reason that lies elsewhere; `state` is how this run ends."""

    def __init__(self, state: RunState, message: str, *, code: str, hint: str = "") -> None:
        super().__init__(message, code=code, hint=hint)
        self.state = state


@dataclass(frozen=True, slots=True)
class Office:
    """What every run of this node uses."""

    home: Home
    config: Config
    state: State
    force: "InForce"
    gate: Gate
    signer: Signer
    uplink: Uplink
    log: Log
    now: Callable[[], datetime]
    monotonic: Callable[[], float]
    rand: Rand
    post: Callable[[ControlRequest], None]
    witnessed: Callable[[int, bool], Awaitable[None]]
    """Returns once witnesses have seen so many entries, if the policy in force asks for that, or the caller
    does; else raises `no-quorum`."""
    committed: Callable[[], None]
    """Told that receipts are owed."""
    recorder: "Recorder | None" = None


@dataclass(slots=True, eq=False)
class _Live:
    """An attempt in memory. Its HPKE key is nowhere else, so a restart ends it."""

    attempt: Attempt
    allowed: Allowed
    role: Role
    over: threading.Event = field(default_factory=threading.Event)
    stopped: asyncio.Event = field(default_factory=asyncio.Event)
    why: MinshuError | None = None
    task: asyncio.Task[None] | None = None
    exchange: Exchange | None = None
    session: Session | None = None
    lasting: Lasting | None = None
    closing: asyncio.TimerHandle | None = None
    workers: Workers | None = None
    cut: Callable[[], None] | None = None
    scratch: DiskScratch | None = None
    prepared: Prepared | None = None
    private: bytes = b""
    admission: Admission | None = None
    envelope: bytes = b""
    started: bool = False
    opened: bool = False

    def stop(self, why: MinshuError) -> None:
        """End the attempt where it is."""
        if self.why is None:
            self.why = why
        self.over.set()
        self.stopped.set()
        if self.exchange is not None:
            self.exchange.stop(why)
        if self.workers is not None:
            self.workers.stop()
        cut = self.cut
        if cut is not None:
            cut()

    @contextmanager
    def cut_by(self, cut: Callable[[], None]) -> Iterator[None]:
        """Have the end of the attempt cut what waits in the block; raise why, if it is over already."""
        self.cut = cut
        try:
            self.go_on()
            yield
        finally:
            self.cut = None

    def let_go(self) -> None:
        """Give back the room on disk that the attempt took."""
        if self.scratch is not None:
            self.scratch.close()

    def go_on(self) -> None:
        """Raise why the attempt is over, if it is."""
        if self.over.is_set() and self.why is not None:
            raise self.why

    @property
    def stands(self) -> bool:
        """Whether it is a session."""
        return isinstance(job_type(self.allowed.spec.job_type), Standing)

    def most(self, turn: str) -> int:
        """Return how many rounds of a turn all attempts of the job may have here together."""
        terms = self.allowed.permit.terms
        return dict(terms.rounds).get(turn, 0) + dict(terms.spent).get(turn, 0)

    def hand_over(self) -> PreparedInput | None:
        """Return what was prepared, once: what a party drops while it runs is held by nobody else."""
        prepared = self.prepared
        if prepared is None:
            return None
        self.prepared = replace(prepared, input=None)
        return prepared.input


class Runner:
    """Runs the attempts of one node. Every method is called on the event loop."""

    def __init__(self, office: Office) -> None:
        """Run with what `office` gives."""
        self._office = office
        self._live: dict[Attempt, _Live] = {}
        self._uploads: dict[Attempt, asyncio.Task[None]] = {}
        self._held: set[Attempt] = set()
        self._postponed: set[Attempt] = set()
        self._lingering: set[asyncio.Task[None]] = set()
        self._threads = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="run")
        self._sessions = ThreadPoolExecutor(MAX_SESSIONS, thread_name_prefix="session")
        self._open: set[Attempt] = set()
        self._over: set[JobId] = set()
        self._counter = Counter(office.home, office.log)

    # -- what the coordinator asks ---------------------------------------------------------------------------

    def admit(self, attempt: Attempt) -> None:
        """Read, prepare and hand in the admission; asked again, hand in the same one."""
        live = self._live.get(attempt)
        if live is not None:
            if live.envelope:
                self._office.post(rpc.admitted(attempt, live.envelope))
            return
        run = self._office.state.run(attempt)
        if run is None or run.state is not RunState.CHECKING:
            # Admitted in an earlier life, ended, or never permitted: what is known of it is said again.
            self._report(attempt, run)
            return
        try:
            allowed = self._office.gate.allowed(attempt)
        except MinshuError as error:
            if error.code in HINDRANCES:
                self._postponed.add(attempt)  # it is permitted, and will be admitted when that has passed
            else:
                self._answer_anew(attempt)
            return
        role = allowed.spec.role_of(self._office.config.name)
        assert role is not None
        live = _Live(attempt, allowed, role, scratch=DiskScratch(self._office.home.scratch))
        self._live[attempt] = live
        self._spawn(live, self._admit(live))

    def _answer_anew(self, attempt: Attempt) -> None:
        """Permitted before, not any more: a new answer replaces the old one."""
        self._office.post(rpc.answer(attempt, self._office.gate.answer_again(attempt)))

    def start(self, attempt: Attempt, admissions: tuple[bytes, ...]) -> None:
        """Check everybody's admissions and run; asked again, nothing happens."""
        live = self._live.get(attempt)
        if live is None or not live.envelope:
            self._report(attempt, self._office.state.run(attempt))
            return
        if not live.started:
            live.started = True
            self._spawn(live, self._run(live, admissions))

    def stop(self, attempt: Attempt, code: str) -> None:
        """End an attempt, or with number 0 all of a job."""
        if not attempt.number:
            self._over.add(attempt.job)
        expired = code == "job-expired"
        for run in self._office.state.runs(attempt.job):
            if attempt.number in (0, run.attempt.number) and run.state in (*WAITING, RunState.RUNNING):
                why = Ended(
                    RunState.EXPIRED if expired and run.state in WAITING else RunState.CANCELLED,
                    "the coordinator ended the attempt",
                    code=code,
                )
                self._end(run.attempt, why)
            elif (
                attempt.number in (0, run.attempt.number)
                and run.state is RunState.RELEASING
                # Over may mean succeeded, with our release: sending it again tells.
                and code != "job-over"
            ):
                why = Ended(RunState.CANCELLED, "the coordinator ended the attempt", code=code)
                self._withdraw(run.attempt, why)
        self._let_go(attempt.job)

    def _let_go(self, job: JobId) -> None:
        """Drop what a job in rounds keeps to go on with, once nothing of it will."""
        going = any(live.attempt.job == job for live in self._live.values())
        if job not in self._over or going:
            return
        self._over.discard(job)
        spec = self._spec(Attempt(job, 0))
        if spec is None or runs_in_rounds(spec.job_type) is None:
            return
        try:
            forget(shelf_of(self._office.home, spec.job_type), digest_bytes(job))
        except StateConflict as problem:
            self._office.log.failure(problem.code, job=job)

    def _withdraw(self, attempt: Attempt, why: MinshuError) -> None:
        """Give up sending releases nobody waits for any more; what is committed is never computed again."""
        under_way = self._uploads.pop(attempt, None)
        if under_way is not None:
            under_way.cancel()
        for output in self._office.state.outputs(attempt.job):
            if output.attempt == attempt:
                discard(self._office.home.outbox, output.release)
        self._finish(attempt, None, why)

    def expire_releases(self, attempt: Attempt) -> None:
        """End a run whose releases waited for the coordinator until their time was over."""
        run = self._office.state.run(attempt)
        if run is not None and run.state is RunState.RELEASING:
            why = StateConflict(
                "the coordinator did not take the releases before they expired",
                code="release-expired",
                hint="submit the job again",
            )
            self._withdraw(attempt, why)

    def supersede(self, job: JobId, number: int) -> None:
        """End all earlier attempts of a job: attempt `number` was offered."""
        for run in self._office.state.runs(job):
            if run.attempt.number < number:
                self.stop(run.attempt, "attempt-replaced")

    def live(self) -> list[Attempt]:
        """Return the attempts that this process runs or releases right now."""
        releasing = (run.attempt for run in self._office.state.runs_in(RunState.RELEASING))
        return sorted({*self._live, *releasing})

    def resend(self) -> None:
        """Say again what the coordinator may have missed: verdicts, admissions, releases, ends."""
        for run in self._office.state.runs_in(RunState.CHECKING, RunState.AWAITING_APPROVAL):
            self._office.post(rpc.answer(run.attempt, run.verdict))
        for live in self._live.values():
            if live.envelope and not live.started:
                self._office.post(rpc.admitted(live.attempt, live.envelope))
        for run in self._office.state.runs_in(RunState.RELEASING):
            self._upload_later(run.attempt)
        for run in self._office.state.unreported():
            self._report(run.attempt, run)

    def retry(self) -> None:
        """Try again what this node's own disk, its clock or its witnesses held back."""
        held, self._held = self._held, set()
        for attempt in held:
            self._upload_later(attempt)
        postponed, self._postponed = self._postponed, set()
        for attempt in postponed:
            self.admit(attempt)

    def recover(self) -> None:
        """End what a crash cut short; call once, before the first message."""
        for run in self._office.state.runs_in(RunState.RUNNING, RunState.ACCEPTED):
            error = Ended(
                RunState.FAILED,
                "the node was restarted while the attempt was under way",
                code="node-restarted",
                hint="the attempt is not resumed; a new one may be tried",
            )
            self._finish(run.attempt, None, error)
        for part in (self._settle, self.halt, self._clear, self._clear_leftovers):
            try:
                part()
            except MinshuError as problem:
                # A full disk: what is not freed stays set aside, and no stopped job is admitted anyway.
                self._office.log.failure(problem.code, sentence=problem.message)
        committed = {o.release for o in self._office.state.outputs() if not o.deleted}
        for folder in (self._office.home.releases, self._office.home.outbox):
            for file in folder.glob("*.sealed"):
                if file.stem not in committed:
                    discard(folder, file.stem)

    def _clear(self) -> None:
        """Drop what runs in rounds keep that cannot go on: their time is over, or their text is gone."""
        now = self._office.now()
        for kind in (known for known in JOB_TYPES if isinstance(known, InRounds)):
            shelf = shelf_of(self._office.home, kind.name)
            for digits in {name.partition("-")[0] for name in shelf.names()}:
                job = JobId(Digest(f"sha256:{digits}"))
                spec = self._spec(Attempt(job, 0))
                if spec is None or spec.expires <= now:
                    forget(shelf, digest_bytes(job))

    def _clear_leftovers(self) -> None:
        """Drop what a crash left half-made."""
        clear_leftovers(self._office.home)
        scratch.clear_leftovers(self._office.home.scratch)

    def _settle(self) -> None:
        """Free what attempts that no process runs any more cost, where they told nothing."""
        state = self._office.state
        left = state.ledger().under_way()
        if left:
            with state.change() as change:
                for row in left:
                    attempt = Attempt(row.past.job, row.past.attempt)
                    if self._free(change, attempt, "node-restarted", unopened=False):
                        opened = row.state is RowState.CHARGED  # or may have been
                        end = {"code": "node-restarted", "opened": opened, "freed": True}
                        change.log("job.failed", end | self._rounds(change, attempt), attempt=attempt)

    def _free(self, change: Change, attempt: Attempt, code: str, *, unopened: bool) -> bool:
        """Free what an attempt that is over may give back; where the ledger is damaged, nothing is given."""
        try:
            return change.release(attempt, code, policy_ref(self._office.force.policy), unopened=unopened)
        except StateConflict as problem:
            self._office.log.failure(problem.code, job=attempt.job, attempt=attempt.number)
            return False

    def _rounds(self, change: Change, attempt: Attempt) -> dict[str, int]:
        """Give back what no round of an attempt that is over was spent on; return how many it recorded.

        Nothing is returned of one that answers at once, or that brings no data.
        """
        spec = self._spec(attempt)
        role = None if spec is None else spec.role_of(self._office.config.name)
        if spec is None or role is None or runs_in_rounds(spec.job_type) is None:
            return {}
        try:
            rounds = change.give_back(attempt, spec, role, policy_ref(self._office.force.policy))
        except StateConflict as problem:
            # Where the ledger is damaged nothing is given back.
            self._office.log.failure(problem.code, job=attempt.job, attempt=attempt.number)
            return {}
        return {} if rounds is None else {"rounds": rounds}

    def halt(self) -> None:
        """End at once what a stop in force covers: attempts, and releases that have not left yet."""
        state = self._office.state
        for run in state.runs_in(*NOT_OVER):
            data = state.job(run.attempt.job)
            if data is None or run.state is RunState.AWAITING_APPROVAL:
                continue
            spec = JobSpec.decode(decode_envelope(data).payload)
            no = covering(self._office.force, spec, self._office.now())
            if no is None:
                continue
            why = Ended(RunState.CANCELLED, no.sentence, code=no.code, hint=no.hint)
            if run.state is RunState.CHECKING and run.attempt not in self._live:
                self._answer_anew(run.attempt)
            elif run.state is RunState.RELEASING:
                self._withdraw(run.attempt, why)
            else:
                self._end(run.attempt, why)

    def _end(self, attempt: Attempt, why: "Ended") -> None:
        """End an attempt that is not releasing yet."""
        live = self._live.get(attempt)
        if live is not None and live.task is not None and not live.task.done():
            live.stop(why)
        else:  # waiting for people, or admitted and waiting for the start
            self._live.pop(attempt, None)
            self._finish(attempt, live, why)

    def stored(self, release: str) -> None:
        """The coordinator has a release: journal it, and let go of the bytes."""
        found = self._office.state.outputs(release=release)
        if not found or found[0].stored or found[0].output_class == OutputClass.DIRECTED:
            return
        output = found[0]
        others = [o for o in self._office.state.outputs(output.attempt.job) if o.release != release]
        done = all(o.stored or o.output_class == OutputClass.DIRECTED for o in others)
        with self._office.state.change() as change:
            change.mark_stored(release)
            change.log(
                "output.released",
                {
                    "release": release,
                    "sha256": output.sha256,
                    "class": output.output_class,
                    "recipient": output.recipient,
                },
                attempt=output.attempt,
            )
            if done:
                self._done(change, output.attempt)
        discard(self._office.home.outbox, release)
        self._office.log.info("release-stored", job=output.attempt.job, release=release)

    def _done(self, change: Change, attempt: Attempt) -> None:
        """A run's good end."""
        change.move(attempt, RunState.DONE)
        spec = self._spec(attempt)
        role = None if spec is None else spec.role_of(self._office.config.name)
        body = {"opened": True, "attempts": attempt.number, **({} if role is None else {"role": role})}
        change.log("job.done", body | self._rounds(change, attempt), attempt=attempt)

    def _spec(self, attempt: Attempt) -> JobSpec | None:
        """Return an attempt's job; None once its text is deleted."""
        data = self._office.state.job(attempt.job)
        return None if data is None else JobSpec.decode(decode_envelope(data).payload)

    def noted(self, attempt: Attempt) -> None:
        """The coordinator has a run's end."""
        run = self._office.state.run(attempt)
        if run is not None and not run.noted:
            with self._office.state.change() as change:
                change.note(attempt)

    async def close(self) -> None:
        """End every attempt and wait for the threads to come back."""
        stopping = Ended(
            RunState.FAILED, "the node was stopped by its operator", code="node-restarted", hint="try again"
        )
        tasks = [live.task for live in self._live.values() if live.task is not None]
        for live in list(self._live.values()):
            if live.task is not None and not live.task.done():
                live.stop(stopping)
            else:
                self._finish(live.attempt, live, stopping)
        others = (*self._uploads.values(), *self._lingering)
        for task in others:
            task.cancel()
        await asyncio.gather(*tasks, *others, return_exceptions=True)
        for pool in (self._threads, self._sessions):
            pool.shutdown(wait=True, cancel_futures=True)

    # -- one attempt -----------------------------------------------------------------------------------------

    def _spawn(self, live: _Live, part: Any) -> None:
        live.task = asyncio.create_task(self._guarded(live, part))

    async def _guarded(self, live: _Live, part: Any) -> None:
        """The outermost loop of a run: whatever happens, it ends in a state, a journal entry and a report."""
        problem: MinshuError | None = None
        try:
            await part
        except MinshuError as error:
            problem = error
        except asyncio.CancelledError:
            problem = Ended(RunState.FAILED, "the node was stopped", code="node-restarted", hint="try again")
        except Exception as error:  # noqa: BLE001  # outermost loop
            # Only the type: a message could quote a row.
            self._office.log.failure("internal", job=live.attempt.job, kind=type(error).__name__)
            problem = StateConflict(
                "the run ended on an internal error", code="internal", hint="see the node's log; report it"
            )
        if problem is not None:
            self._live.pop(live.attempt, None)
            self._finish(live.attempt, live, problem)
            self._let_go(live.attempt.job)

    async def _admit(self, live: _Live) -> None:
        office = self._office
        spec = live.allowed.spec
        self._check_open(live)
        self._check_alone(live)
        dataset = dataset_of(office.state, office.force, spec)
        if dataset is not None:
            try:
                live.prepared = await self._prepare(live, dataset)
            except TooLow as low:
                self._keep_look(dataset, low.found)
                self._live.pop(live.attempt, None)
                live.let_go()
                office.post(rpc.answer(live.attempt, office.gate.refuse(live.attempt, low.answer)))
                return
            self._keep_look(dataset, live.prepared.looked)
            if live.prepared.read_because:
                office.log.info(
                    "rows-read",
                    job=live.attempt.job,
                    attempt=live.attempt.number,
                    sentence=live.prepared.read_because,
                )
        live.go_on()
        most_days = live.allowed.permit.terms.constraints.max_series_days
        decided = live.allowed.decided
        await self._in_thread(
            lambda: series.check_kept(office.home, spec, live.role, now=decided, most_days=most_days)
        )
        live.go_on()
        try:
            self._accept(live)
        except _Changed:
            self._live.pop(live.attempt, None)
            live.let_go()
            self._answer_anew(live.attempt)
            return
        office.log.info("admitted", job=live.attempt.job, attempt=live.attempt.number)
        office.post(rpc.admitted(live.attempt, live.envelope))

    async def _prepare(self, live: _Live, dataset: Dataset) -> Prepared:
        """Read this node's own data; where a failure must tell nothing of it, what is wrong stays here.

        That is so where nobody is told its size, and where an attempt is free until it answers: a sentence
        that counts what is out of bounds which the job chose would be an answer at no cost.

        Raises:
            InputError: see `prepare`.
            TooLow: see `prepare`. Its figures are of the whole dataset, as the catalogue says them.
        """
        office, spec, policy = self._office, live.allowed.spec, live.allowed.active.policy
        access = office.config.access
        about = about_of(policy, spec, live.role)
        demand = demand_of(policy, spec, live.role, live.allowed.permit.rule)
        look = Look(demand, stored_preflight(office.state, dataset), office.now().replace(microsecond=0))
        try:
            return await self._in_thread(
                lambda: prepare(
                    spec,
                    live.role,
                    dataset,
                    access,
                    about=about,
                    rand=office.rand,
                    go_on=live.go_on,
                    cut_by=live.cut_by,
                    resources=self._resources(live, None),
                    look=look,
                )
            )
        except InputError as error:
            asked = job_type(spec.job_type)
            if asked.states_sizes and not asked.silent_until_answering:
                raise
            office.log.failure(
                error.code,
                job=live.attempt.job,
                attempt=live.attempt.number,
                sentence=error.message,
                hint=error.hint,
            )
            raise InputError(
                "this department's data is not as the job needs it; only its own log says how",
                code=error.code,
                hint="ask the department to look into its node's log, then submit a new job",
            ) from None

    def _keep_look(self, dataset: Dataset, found: Preflight | None) -> None:
        """Keep what a look at a dataset found: it is not looked at again before it changes."""
        if found is None:
            return
        record = found.quality.record()
        if self._office.state.preflight(dataset.name) != (found.fingerprint, record):
            with self._office.state.change() as change:
                change.put_preflight(dataset.name, found.fingerprint, record)

    def _check_unchanged(self, live: _Live) -> None:
        """Refuse an exact joint answer over other data than an earlier attempt of the job was about.

        That one may have been answered in part: its masked sums and those of other data, side by side, would
        tell the difference of the two.

        Raises:
            Refused: `data-changed`, or `admission-outdated`: other rows of a person count by now, or the
                dataset would have to be otherwise.
        """
        allowed, prepared = live.allowed, live.prepared
        if prepared is None:
            return
        spec = allowed.spec
        if about_of(allowed.active.policy, spec, live.role) != prepared.about:
            raise _outdated()
        demand = demand_of(allowed.active.policy, spec, live.role, allowed.permit.rule)
        if (() if demand is None else demand.thresholds) != prepared.thresholds:
            raise _outdated()
        self._check_mapping(live)
        asked = job_type(spec.job_type)
        query = asked.query(spec, live.role)
        # Lists of persons are charged again, and what they answer is about each person alone.
        about_each = asked.states_sizes and not isinstance(asked, ExactOrNoisy)
        if about_each or len(spec.inputs) < 2 or query is None or query.noisy:
            return
        before = self._office.state.questions(live.attempt.job)
        if any(known != prepared.question for known in before.values()):
            raise Refused(
                "this department's data changed since an earlier attempt of the job",
                code="data-changed",
                hint="submit a new job: one job is answered over one state of the data",
            )

    def _check_mapping(self, live: _Live) -> None:
        """Refuse to answer with codes that stand for other values by now than when they were read.

        Raises:
            Refused: `admission-outdated`.
        """
        if live.prepared is None:
            return
        dataset = self._office.state.dataset(live.allowed.permit.terms.source)
        record = b"" if dataset is None else dataset.description.mapping_record
        if live.prepared.mapping != (sha256_digest(record) if record else None):
            raise _outdated()

    def _accept(self, live: _Live) -> None:
        """Decide once more, and set the cost aside in the transaction that accepts the attempt.

        Raises:
            _Changed: the answer is another one now.
            Refused: see `_check_unchanged`.
        """
        for _ in range(DECISIONS):
            try:
                live.allowed = self._office.gate.allowed(live.attempt)
            except MinshuError:
                raise _Changed from None
            self._check_unchanged(live)
            admission, envelope, private = self._admission(live)
            self._put_evidence(live, [envelope])
            try:
                with self._office.state.change() as change:
                    change.move(live.attempt, RunState.ACCEPTED)
                    change.log(
                        "job.accepted",
                        self._acceptance(live, admission),
                        attempt=live.attempt,
                        policy=_policy(live),
                        actor=live.allowed.spec.requester,
                        refs=[sha256_digest(envelope)],
                    )
                    change.reserve(live.allowed.row(live.attempt), live.allowed.version, _policy(live))
                    if live.prepared is not None:
                        change.add_input(
                            live.attempt,
                            live.prepared.dataset,
                            salt=live.prepared.salt,
                            commitment=live.prepared.summary.commitment,
                            quality=live.prepared.quality,
                            counts=live.prepared.counts,
                        )
            except StateConflict as error:
                if error.code != "ledger-conflict":
                    raise
            else:
                live.admission, live.envelope, live.private = admission, envelope, private
                return
        raise StateConflict(
            f"other jobs of the same dataset were set aside {DECISIONS} times in between",
            code="ledger-busy",
            hint="try again",
        )

    def _put_evidence(self, live: _Live, admissions: Sequence[bytes]) -> None:
        """Keep beside the log what its entries are about to name: none names an object that is not there."""
        journal = self._office.state.journal
        for envelope in admissions:
            journal.put_object(envelope)
        journal.put_object(self._office.state.job(live.attempt.job) or b"")
        if live.prepared is not None:
            journal.put_object(live.prepared.quality)

    def _acceptance(self, live: _Live, admission: Admission) -> dict[str, Any]:
        """Return what `job.accepted` says: all it takes to decide this attempt once more."""
        allowed = live.allowed
        rows = (
            {} if live.prepared is None else {"rows": live.prepared.summary.rows, **_mapping(live.prepared)}
        )
        return {
            **accepted_facts(allowed.spec, live.role, allowed.permit.terms.cost),
            **rows,
            "admission_sha256": admission.digest,
            "envelope_sha256": sha256_digest(self._office.state.job(live.attempt.job) or b""),
            "decided": format_time(allowed.decided),
        }

    def _admission(self, live: _Live) -> tuple[Admission, bytes, bytes]:
        """Return an admission, its envelope, and the private key for this attempt alone."""
        office = self._office
        spec, roster = live.allowed.spec, live.allowed.roster
        private = suites.new_private_key(roster.suite, office.rand)
        now = office.now().replace(microsecond=0)  # as documents say it, and the journal after them
        admission = make_admission(
            live.allowed,
            live.attempt,
            office.config.name,
            prepared=live.prepared,
            key=suites.public_key(roster.suite, private),
            until=min(
                now + ADMISSION_LIFETIME, spec.expires, roster.expires, live.allowed.active.policy.expires
            ),
        )
        return admission, seal_admission(admission, office.signer), private

    async def _run(self, live: _Live, envelopes: tuple[bytes, ...]) -> None:
        office = self._office
        live.go_on()
        with self._place(live):
            agreed = self._agree(live, envelopes)
            self._commit_start(live, agreed, envelopes)  # commit point 1
            await self._witnessed(live)
            timeout = agreed.constraints.max_runtime_s or office.config.default_runtime_s
            deadline = asyncio.get_running_loop().call_later(timeout, live.stop, _timed_out(timeout))
            try:
                contents = await self._play(live, agreed, envelopes, timeout)
                live.let_go()
                await self._release(live, contents)  # commit point 2
            finally:
                deadline.cancel()
        self._live.pop(live.attempt, None)
        office.log.info("run-done", job=live.attempt.job, attempt=live.attempt.number)
        if self._releases(live):
            # Committed, so never computed again.
            self._over.add(live.attempt.job)
        self._let_go(live.attempt.job)
        self._upload_later(live.attempt)

    @contextmanager
    def _place(self, live: _Live) -> Iterator[None]:
        """Keep one of the MAX_SESSIONS places for a session; other runs need none.

        Raises:
            StateConflict: see `_check_open`.
        """
        self._check_open(live)
        if live.stands:
            self._open.add(live.attempt)
        try:
            yield
        finally:
            self._open.discard(live.attempt)

    def _check_open(self, live: _Live) -> None:
        """Refuse a session more than may be open; before it is admitted, and again before it is charged.

        Raises:
            StateConflict: `too-many-sessions`: nothing has left, and what was set aside is free again.
        """
        if live.stands and len(self._open) >= MAX_SESSIONS:
            raise StateConflict(
                f"{MAX_SESSIONS} sessions are open at this node, and no more may be",
                code="too-many-sessions",
                hint="submit the job again when one of them has ended",
            )

    def _check_alone(self, live: _Live) -> None:
        """Refuse a day of a series while another is under way here: each goes on from what the last one left.

        Raises:
            StateConflict: `series-busy`: nothing has left.
        """
        spec = live.allowed.spec
        asked = job_type(spec.job_type)
        if not isinstance(asked, Serial):
            return
        for other in self._live.values():
            if other is live:
                return  # those after it are refused in its favour
            theirs = other.allowed.spec
            same = theirs.job_type == spec.job_type and asked.first(theirs) == asked.first(spec)
            if same and not other.over.is_set():
                raise StateConflict(
                    "another day of the series is under way at this node",
                    code="series-busy",
                    hint="submit the day again when that one has ended",
                )

    async def _witnessed(self, live: _Live) -> None:
        """Wait until witnesses have seen that the cost is charged: an older copy of this node has not.

        Raises:
            Unreachable: `no-quorum`: they have not in time; nothing has left.
            Ended: the attempt was stopped meanwhile.
        """
        size, required = self._office.state.journal.size, requires_cosigned(live.allowed.active)
        seen = asyncio.ensure_future(self._office.witnessed(size, required))
        stopped = asyncio.create_task(live.stopped.wait())
        try:
            await asyncio.wait((seen, stopped), return_when=asyncio.FIRST_COMPLETED)
            live.go_on()
            await seen
        finally:
            seen.cancel()
            stopped.cancel()

    def _check_still(self, live: _Live, envelopes: tuple[bytes, ...]) -> None:
        """Check again, before the first frame, what may have changed while witnesses or the relay took long.

        Raises:
            MinshuError: see `_agree`; nothing has left.
        """
        self._check_in_force(live)
        self._agree(live, envelopes, seen=True)

    def _check_in_force(self, live: _Live) -> None:
        """Refuse to go on under another policy or roster than this was admitted under.

        Raises:
            Refused: `admission-outdated`.
        """
        policy, roster, admission = self._office.force.policy, self._office.force.roster, live.admission
        assert admission is not None
        now = (policy and policy.digest, roster and roster.digest)
        if now != (admission.policy_digest, admission.roster_digest):
            raise _outdated()

    def _agree(self, live: _Live, envelopes: tuple[bytes, ...], *, seen: bool = False) -> Agreed:
        """Decide once more, and check everybody's admissions against that decision; see `Gate.allowed`."""
        office = self._office
        assert live.admission is not None
        allowed = office.gate.allowed(live.attempt, seen=seen)
        said = (live.admission.policy_digest, live.admission.rule, live.admission.roster_digest)
        if (allowed.active.digest, allowed.permit.rule, allowed.roster.digest) != said:
            raise _outdated()
        live.allowed = allowed
        self._check_mapping(live)
        return check_admissions(envelopes, live.envelope, allowed, live.attempt, now=office.now())

    def _commit_start(self, live: _Live, agreed: Agreed, envelopes: tuple[bytes, ...]) -> None:
        """Commit point 1: charge, approvals used, run state and `job.admitted`, in one transaction."""
        office = self._office
        admission = live.admission
        assert admission is not None
        allowed = live.allowed
        self._put_evidence(live, envelopes)
        job_envelope = office.state.job(live.attempt.job) or b""
        constraints = canonical_json(agreed.constraints.to_json())
        body = {
            **job_facts(allowed.spec, live.role),
            "admission_sha256": admission.digest,
            "envelope_sha256": sha256_digest(job_envelope),
            "ctx": "sha256:" + agreed.ctx.hex(),
            "leakage_sha256": leakage_digest(allowed.spec),
            "constraints_sha256": sha256_digest(constraints),
            "approvals": len(allowed.permit.approvals),
            "suite": admission.suite,
            "not_after": format_time(admission.not_after),
            "class": job_type(allowed.spec.job_type).output_class.value,
            "decided": format_time(allowed.decided),
            "software": SOFTWARE,
            **series_facts(allowed.spec),
        }
        terms = allowed.permit.terms
        cost = cost_under(allowed.spec, live.role, agreed.constraints, terms)
        snapshot = "" if live.prepared is None else live.prepared.summary.snapshot
        question = allowed.spec.question(snapshot)
        here = question if live.prepared is None else live.prepared.question
        facts = cost_facts(cost).items()
        body |= {"question": question, **{k: v for k, v in facts if published("job.admitted", k, v)}}
        for name in ("min_group_size", "max_rows"):
            value = getattr(agreed.constraints, name)
            if value is not None:
                body[name] = value
        if live.prepared is not None:
            summary = live.prepared.summary
            body |= {
                "rows": summary.rows,
                "distinct_keys": summary.distinct_keys,
                "commitment": summary.commitment,
                "quality_sha256": summary.quality_sha256,
                "snapshot": summary.snapshot,
                "rule_version": summary.rule_version,
                **_mapping(live.prepared),
            }
        with office.state.change() as change:
            change.log(
                "job.admitted",
                body,
                attempt=live.attempt,
                policy=_policy(live),
                actor=allowed.spec.requester,
                refs=sorted(sha256_digest(envelope) for envelope in envelopes),
            )
            lines = charged_lines(terms.lines, cost)
            deltas = deltas_of(allowed.active.policy, lines)
            rounds = Rounds(agreed.constraints, deltas) if terms.rounds else None
            change.charge(live.attempt, cost, lines, _policy(live), rounds=rounds)
            change.start(live.attempt, here)

    async def _play(
        self, live: _Live, agreed: Agreed, envelopes: tuple[bytes, ...], timeout_s: float
    ) -> tuple[Content, ...]:
        """Run the party against the data stream and return what it hands over."""
        office = self._office
        spec, roster = live.allowed.spec, live.allowed.roster
        setup = Setup(spec, live.attempt.number, agreed.ctx, agreed.constraints, agreed.inputs)
        identities = {role: roster.node(name) for role, name in spec.roles.items()}
        sealer = FrameSealer(
            suite=roster.suite,
            job=live.attempt.job,
            attempt=live.attempt.number,
            ctx=agreed.ctx,
            me=live.role,
            signer=office.signer,
            peers={role: a.key for role, a in agreed.admissions.items() if role != live.role},
            rand=office.rand,
        )
        opener = FrameOpener(
            suite=roster.suite,
            job=live.attempt.job,
            attempt=live.attempt.number,
            ctx=agreed.ctx,
            me=live.role,
            private=live.private,
            peers={role: n.identity_key for role, n in identities.items() if n is not None},
        )
        stream = await office.uplink.open_data(live.attempt)
        # Every returning flow fits the inbox whole, so that two key-holders never wait for each other.
        depth = max(office.config.queue_frames, UNDER_WAY * len(identities))
        exchange = live.exchange = Exchange(stream, depth)
        try:
            live.go_on()
            self._check_still(live, envelopes)
            loop = asyncio.get_running_loop()
            await self._open_session(live, agreed, timeout_s)
            playing = Playing(
                live.attempt,
                live.role,
                sealer,
                opener,
                exchange,
                office.recorder,
                office.monotonic,
                lambda step: loop.call_soon_threadsafe(office.post, rpc.progress(live.attempt, step)),
                lambda: asyncio.run_coroutine_threadsafe(self._answering(live), loop).result(),
                lambda steps: self._record(live, steps),
                live.session,
                TOGETHER if live.stands else 1,
            )
            live.opened = True

            workers = live.workers = Workers(office.config, live.go_on, office.log)

            def play() -> tuple[Content, ...]:
                with closing(workers), self._executor(live) as executor:
                    try:
                        party = self._party(live, setup, live.hand_over(), workers, executor)
                    except InputError:
                        # That this node's data contradict the job is an answer, too: it is remembered as one.
                        playing.answering()
                        raise
                    return playing.run(party)

            output = await self._in_thread(play, self._sessions if live.stands else None)
            await exchange.finish()
        except BaseException as error:
            self._end_session(live, error)
            if live.workers is not None:
                live.workers.stop()
            await exchange.close()
            raise
        self._end_session(live, None)
        # The relay may still be passing on what was sent; it ends the stream when everybody is done.
        self._linger(exchange)
        return output

    async def _answering(self, live: _Live) -> None:
        """Make it durable that an answer is under way; the party's thread waits for this before it sends."""
        live.go_on()
        with self._office.state.change() as change:
            change.answering(live.attempt)
            facts = {"role": live.role, "approvals": len(live.allowed.permit.approvals)}
            change.log("job.answering", facts, attempt=live.attempt, policy=_policy(live))

    def _resources(self, live: _Live, executor: Executor | None) -> Resources:
        """Return what one attempt may use of this node."""
        assert live.scratch is not None
        return Resources(live.scratch, executor, self._office.config.spill_rows)

    def _executor(self, live: _Live) -> AbstractContextManager[Executor | None]:
        """Return where the points of long lists are raised, for as long as the block is."""
        # Whoever has no list raises nothing: a cluster that is away is no matter of theirs.
        if live.prepared is not None and isinstance(job_type(live.allowed.spec.job_type), Spills):
            return open_executor(self._office.config.compute, live.go_on)
        return nullcontext()

    def _party(
        self,
        live: _Live,
        setup: Setup,
        prepared: PreparedInput | None,
        workers: Workers,
        executor: Executor | None,
    ) -> Party:
        office, asked = self._office, job_type(setup.spec.job_type)
        if isinstance(asked, InRounds):
            return asked.working(
                live.role,
                setup,
                prepared,
                office.rand,
                used=dict(live.allowed.permit.terms.spent),
                shelf=shelf_of(office.home, asked.name),
                workers=workers.start,
            )
        if isinstance(asked, Standing):
            return asked.serving(
                live.role,
                setup,
                prepared,
                office.rand,
                shelf=shelf_of(office.home, asked.name),
                monotonic=office.monotonic,
            )
        if isinstance(asked, Serial):
            return asked.party_of_day(
                live.role,
                setup,
                prepared,
                office.rand,
                shelf=shelf_of(office.home, asked.name),
                now=live.allowed.decided,
                committed=series.committed(office.state),
            )
        if isinstance(asked, Keeps):
            kept = shelf_of(office.home, asked.shelf)
            return asked.party_with(live.role, setup, prepared, office.rand, shelf=kept)
        if isinstance(asked, Spills):
            on = self._resources(live, executor)
            return asked.party_on(live.role, setup, prepared, office.rand, resources=on)
        return asked.party(live.role, setup, prepared, office.rand)

    async def _open_session(self, live: _Live, agreed: Agreed, timeout_s: float) -> None:
        """Let people here ask, where this node's role is the one that is asked through.

        Raises:
            StateConflict: `counter-unavailable`.
        """
        spec = live.allowed.spec
        asked = job_type(spec.job_type)
        seconds = asked.session_s(spec, live.role) if isinstance(asked, Standing) else None
        if seconds is None or live.exchange is None:
            return
        lasts = max(min(seconds, timeout_s - CLOSING_S), 1.0)
        clock = self._office.monotonic
        session = Session(
            live.attempt,
            live.role,
            live.exchange,
            closes=clock() + lasts,
            monotonic=clock,
            per_minute=agreed.constraints.max_per_minute,
            fields=tuple(map(str, spec.params.get("fields", ()))),
        )
        await self._counter.open(session)
        live.session = session
        live.closing = asyncio.get_running_loop().call_later(lasts, session.close)

    def _end_session(self, live: _Live, error: BaseException | None) -> None:
        if live.closing is not None:
            live.closing.cancel()
        if live.session is not None:
            why = live.why or (error if isinstance(error, MinshuError) else session_over())
            self._counter.close(live.session, why)

    def _record(self, live: _Live, steps: Sequence[Waiting]) -> None:
        """Make it durable what steps give; called in the party's thread, which waits for it.

        `event` of a step's facts is the kind of the entry: `lookup-asked` stands as `lookup.asked`. All of
        them are one transaction, under one checkpoint; sessions that record at once share the checkpoint.
        A round of a run in rounds is counted in the ledger in the same transaction.

        Raises:
            Refused: `admission-outdated`: another policy or roster than this was admitted under is in force;
                or what it was admitted under is over, see `Lasting.check`.
            DecodeError: a fact that the journal does not publish.
            StateConflict: it could not be stored, or no checkpoint covers it; nothing is answered. Or a round
                that the job may not have, see `ledger.record_round`.
        """
        live.go_on()
        self._check_in_force(live)
        if live.lasting is None:
            live.lasting = Lasting(self._office.force, live.allowed.spec.purpose)
        live.lasting.check(self._office.gate.moment())
        under, actor = _policy(live), live.allowed.spec.requester
        with self._office.state.change() as change:
            for step in steps:
                facts = dict(step.record or {})
                kind = str(facts.pop("event")).replace("-", ".", 1)
                if kind == ROUND:
                    turn, number = str(facts["turn"]), int(facts["round"])
                    change.record_round(live.attempt, turn, number, live.most(turn))
                reason = None if live.session is None else live.session.reason(step.answers)
                about = {} if reason is None else {"reason_sha256": reason}
                body = {"role": live.role, **facts, **about}
                change.log(kind, body, attempt=live.attempt, policy=under, actor=actor)

    @staticmethod
    def _releases(live: _Live) -> list[PlannedRelease]:
        """Return the releases that this seat makes."""
        return [p for p in live.allowed.permit.terms.releases if p.made_by == live.role]

    async def _release(self, live: _Live, contents: tuple[Content, ...]) -> None:
        """Commit point 2: sealed bytes durable, then state and `output.commit` in one transaction."""
        office = self._office
        planned = self._releases(live)
        sealing = Sealing(
            live.allowed.spec,
            live.attempt,
            office.config.name,
            live.allowed.roster,
            office.signer,
            office.rand,
            office.now(),
            min(office.config.release_days, live.allowed.active.policy.retention.release_days),
        )
        sealed = await self._in_thread(lambda: seal_all(sealing, planned, contents))
        live.go_on()
        to_send = any(release.planned.output_class is not OutputClass.DIRECTED for release in sealed)
        try:
            await self._in_thread(lambda: self._keep_all(sealed))
            live.go_on()
            with office.state.change() as change:
                log = office.state.journal.origin
                cosigned = requires_cosigned(live.allowed.active)
                for release in sealed:
                    seq = change.log("output.commit", _commitment(release), attempt=live.attempt)
                    made = release.stored(live.attempt)
                    change.add_output(replace(made, log=log, seq=seq, cosigned=cosigned))
                    owe(
                        change,
                        live.allowed.spec,
                        live.attempt,
                        live.allowed.roster,
                        office.config.name,
                        release=release,
                        log=log,
                        seq=seq,
                    )
                if to_send:
                    change.move(live.attempt, RunState.RELEASING)
                else:
                    self._done(change, live.attempt)
        except MinshuError as error:
            if error.code != "journal-unpublished":
                for release in sealed:
                    discard(self._folder(release.planned.output_class), release.release)
                raise
            # Committed, though no checkpoint covers it yet: nothing is sent before one does.
            office.log.failure(error.code, job=live.attempt.job)
        office.committed()

    # -- ends and reports ------------------------------------------------------------------------------------

    def _finish(self, attempt: Attempt, live: _Live | None, error: MinshuError) -> None:
        """Bring a run to its end state: journal it, then tell the coordinator."""
        office = self._office
        if live is not None:
            live.let_go()
        if isinstance(error, Unreachable):
            # One code for everything about the link that a new attempt may cure.
            code = error.code if error.code in ("peer-lost", "no-quorum") else "unreachable"
            error = Unreachable(error.message, code=code, hint=error.hint)
        state = error.state if isinstance(error, Ended) else RunState.FAILED
        before = office.state.run(attempt)
        opened = live.opened if live is not None else before is not None and before.opened
        body: dict[str, Any] = {"code": error.code, "state": state.value, "opened": opened}
        if live is not None:
            body["role"] = live.role
        policy = policy_ref(office.force.policy)
        if before is not None:
            try:
                with office.state.change() as change:
                    change.move(attempt, state, code=error.code, sentence=error.message, hint=error.hint)
                    # Only the process that ran it can know that its stream was never opened.
                    unopened = live is not None and not live.opened
                    body["freed"] = self._free(change, attempt, error.code, unopened=unopened)
                    body |= self._rounds(change, attempt)
                    change.log(_end_kind(state, error), body, attempt=attempt, policy=policy)
            except MinshuError as problem:
                # The end goes out all the same: silence would only leave the others waiting.
                office.log.failure(problem.code, job=attempt.job, attempt=attempt.number)
        office.log.warning(
            "run-ended", job=attempt.job, attempt=attempt.number, state=state.value, reason=error.code
        )
        if state is not RunState.EXPIRED:
            office.post(_ended(attempt, state, error.code, error.message, error.hint, opened=opened))

    def _report(self, attempt: Attempt, run: StoredRun | None) -> None:
        """Tell the coordinator how a run stands that is not under way in this process."""
        if run is None:
            unknown = "this attempt was never offered here"
            self._office.post(_ended(attempt, RunState.FAILED, "unknown-attempt", unknown, "", opened=False))
        elif run.state in (RunState.DONE, RunState.FAILED, RunState.CANCELLED, RunState.TIMED_OUT):
            self._office.post(_ended(attempt, run.state, run.code, run.sentence, run.hint, opened=run.opened))
        elif run.state in (RunState.AWAITING_APPROVAL, RunState.REFUSED):
            self._office.post(rpc.answer(attempt, run.verdict))

    def _upload_later(self, attempt: Attempt) -> None:
        under_way = self._uploads.get(attempt)
        if under_way is None or under_way.done():
            self._uploads[attempt] = asyncio.create_task(self._upload(attempt))

    async def _upload(self, attempt: Attempt) -> None:
        """Send what is committed and not stored, the same bytes as ever; then tell that the run is done."""
        office = self._office
        try:
            office.state.journal.publish()
            for output in office.state.outputs(attempt.job):
                if output.attempt == attempt and not output.stored:
                    await self._send_release(output)
            run = office.state.run(attempt)
            if run is not None and run.state in (RunState.RELEASING, RunState.DONE) and not run.noted:
                await office.uplink.send(_ended(attempt, RunState.DONE, "", "", "", opened=run.opened))
        except Unreachable as error:
            if error.code == "no-quorum":
                self._held.add(attempt)
                office.log.warning(error.code, job=attempt.job, attempt=attempt.number)
            return  # said again after the next welcome
        except MinshuError as error:
            self._held.add(attempt)
            office.log.failure(error.code, job=attempt.job, attempt=attempt.number, sentence=error.message)
        finally:
            if self._uploads.get(attempt) is asyncio.current_task():
                del self._uploads[attempt]

    async def _send_release(self, output: StoredOutput) -> None:
        if output.output_class == OutputClass.DIRECTED:
            return  # class B never leaves this node
        if output.log != self._office.state.journal.origin:
            raise StateConflict(
                "a release was committed in an earlier journal of this node and never sent",
                code="release-withdrawn",
                hint="have the question asked again",
            )
        await self._office.witnessed(output.seq + 1, output.cosigned)
        sealed = await self._in_thread(lambda: kept(self._office.home.outbox, output))
        for message in rpc.upload(output.attempt, output.release, output.note, sealed):
            await self._office.uplink.send(message)

    def _linger(self, exchange: Exchange) -> None:
        task = asyncio.create_task(exchange.close(LINGER_S))
        self._lingering.add(task)
        task.add_done_callback(self._lingering.discard)

    def _keep_all(self, sealed: tuple[SealedRelease, ...]) -> None:
        for release in sealed:
            self._office.state.journal.put_object(release.note_envelope)
            folder = self._folder(release.planned.output_class)
            keep(folder, release.release, release.sealed, release.note_envelope)

    def _folder(self, output_class: OutputClass) -> Path:
        home = self._office.home
        return home.releases if output_class is OutputClass.DIRECTED else home.outbox

    async def _in_thread(self, work: Callable[[], T], pool: ThreadPoolExecutor | None = None) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool or self._threads, work)


@dataclass(frozen=True, slots=True)
class Playing:
    """A party at work in its own thread: every frame in and out passes here, sealed and checked."""

    attempt: Attempt
    role: Role
    sealer: FrameSealer
    opener: FrameOpener
    exchange: Exchange
    recorder: "Recorder | None"
    monotonic: Callable[[], float]
    progress: Callable[[Progress], object]
    answering: Callable[[], object]
    """Returns once it is durable that an answer is under way."""
    record: Callable[[Sequence[Waiting]], object] | None = None
    """Returns once the facts of these steps are durable in the journal."""
    session: Session | None = None
    """Where people at this node ask; None where nobody does."""
    together: int = 1
    """Steps that are recorded at once at most, made of what waits at the same time. Where it is more than
    one, the party does not mind that the next message comes before `outgoing` of a step is sent."""

    def run(self, party: Party) -> tuple[Content, ...]:
        """Play the party to its end and return its output.

        Raises:
            ProtocolAborted: a frame or message broke the protocol, or a stream was cut.
            Unreachable: the link or a peer went away.
            Ended: the attempt was stopped from outside.
        """
        last_told = -SESSION_PROGRESS_S
        phase, said = "", False
        figures: Mapping[str, str] = {}
        steps: Sequence[Step] = (party.start(),)
        while True:
            if not said and any(isinstance(step, Finished) or step.answering for step in steps):
                self.answering()
                said = True
            self._note(steps)
            for step in steps:
                if isinstance(step, Waiting) and step.answers and self.session is not None:
                    self.session.answered(step.answers)
                for message in step.outgoing:
                    if self.recorder is not None:
                        self.recorder.body(self.attempt, self.role, message)
                    self.exchange.send(self.sealer.seal(message))
                if isinstance(step, Finished):
                    self.opener.check_complete()
                    output: tuple[Content, ...] = tuple(step.output or ())
                    return output
                told = step.progress
                now = self.monotonic()
                session = self.together > 1 and step.record is not None
                every = SESSION_PROGRESS_S if session else PROGRESS_EVERY_S
                # Figures change once a round at most, and the last ones are to be seen.
                news = told is not None and (told.phase, told.figures) != (phase, figures)
                if told is not None and (news or now >= last_told + every):
                    phase, figures, last_told = told.phase, told.figures, now
                    self.progress(told)
            steps = self._next(party)

    def _note(self, steps: Sequence[Step]) -> None:
        """Have the facts of steps made durable, before anything of any of them goes out."""
        waiting = [step for step in steps if isinstance(step, Waiting)]
        facts = [step for step in waiting if step.record is not None]
        if any(step.answers and step.record is None for step in waiting) or (facts and self.record is None):
            # No answer without an entry that says so, and nobody to say it.
            raise StateConflict("a step is not recorded, so nothing of it may leave", code="not-recorded")
        if facts and self.record is not None:
            self.record(facts)

    def _next(self, party: Party) -> Sequence[Step]:
        """Return the step that the next frame or question leads to, and those of what waits behind it."""
        steps: list[Step] = []
        while len(steps) < self.together:
            handed = self.exchange.receive_now() if steps else self.exchange.receive()
            if handed is None:
                break
            step = self._step(party, handed)
            if step is not None:
                steps.append(step)
            if isinstance(step, Finished):
                break
        return steps

    def _step(self, party: Party, handed: Handed) -> Step | None:
        match handed:
            case Question(number, body):
                try:
                    return _serving(party).ask(number, body)
                except InputError as error:
                    assert self.session is not None
                    self.session.refused(number, error)
                    return None
            case Close():
                return _serving(party).close()
            case frame:
                # A frame opened before is a replay; it is dropped without a word.
                incoming = self.opener.open(frame)
                return None if incoming is None else party.receive(incoming)


def _serving(party: Party) -> Serving:
    return cast("Serving", party)  # only where a session is open does anything but frames come


def _mapping(prepared: Prepared) -> dict[str, str]:
    """Return what an entry says of how values became codes; nothing where none did."""
    return {} if prepared.mapping is None else {"mapping_sha256": prepared.mapping}


def _outdated() -> Refused:
    """Return it anew each time: one object raised again would keep a run's frames, and with them its data."""
    return Refused(
        "policy or roster changed after this node's admission",
        code="admission-outdated",
        hint="submit the job again",
    )


class _Changed(Exception):
    """A job that was permitted is answered otherwise now."""


def _policy(live: _Live) -> PolicyRef | None:
    return policy_ref(live.allowed.active, live.allowed.permit.rule)


def _end_kind(state: RunState, error: MinshuError) -> str:
    if state is RunState.CANCELLED:
        return "job.cancelled"
    if state is RunState.EXPIRED:
        return "job.expired"
    aborted = isinstance(error, ProtocolAborted | DecodeError | Refused)
    return "job.aborted" if aborted else "job.failed"


def _ended(
    attempt: Attempt, state: RunState, code: str, sentence: str, hint: str, *, opened: bool
) -> ControlRequest:
    zh, hint_zh = IN_CHINESE.get(code, ("", ""))
    said, next_ = (" ".join(filter(None, each))[:MAX_SENTENCE] for each in ((sentence, zh), (hint, hint_zh)))
    return rpc.ended(attempt, state.value, code, said, next_, opened=opened)


def _commitment(release: SealedRelease) -> Mapping[str, Any]:
    directed = release.planned.output_class is OutputClass.DIRECTED
    return {
        **release_facts(release.note, release.planned.made_by),
        # The size of a sealed list tells how many people are on it.
        **({} if directed else {"bytes": len(release.sealed)}),
        "envelope_sha256": sha256_digest(release.note_envelope),
    }


def _timed_out(seconds: float) -> Ended:
    return Ended(
        RunState.TIMED_OUT,
        f"the run took longer than the {seconds:g} seconds that the participants allow",
        code="timed-out",
        hint="ask for a longer max_runtime_s, or a smaller question",
    )
