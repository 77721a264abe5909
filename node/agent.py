"""The agent: one loop that hears the coordinator, lets gate and runner answer, and says again what got lost.

Everything that touches the database happens on this loop, in order; reading data and computing happen in the
runner's threads.
"""

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from node import catalogue, lookups, quality, rotation, rpc, series
from node.activation import InForce, activate_roster, own_keys, take_freshness
from node.clock import Clock
from node.config import Config
from node.cosigning import Cosigning
from node.desk import Desk, error_to_json, heads_unknown
from node.explaining import Explaining
from node.gate import Gate, authentic
from node.generation import require_begun
from node.home import Enrolled, Home
from node.letters import Later, Letters
from node.link import Uplink
from node.logs import Log
from node.outcomes import Outcomes
from node.receipts import Receipts
from node.retention import delete_due
from node.rpc import AddCheckpoint, AskHead, Attempt, ControlRequest, Message, Question, Reply
from node.runner import Office, Runner
from node.state import WAITING, RunState, State
from node.witness import Witness
from protocols.envelope import Signer, decode_envelope
from protocols.errors import MinshuError, Unreachable
from protocols.party import Rand
from protocols.wire import JobSpec

if TYPE_CHECKING:
    from node.record import Recorder

TICK_S: Final = 2.0
DELETE_EVERY_S: Final = 600.0
RESEND_EVERY_S: Final = 60.0
WINDOW_CLOSED: Final = "window-closed"
MAX_POSTED: Final = 4096
MAX_POSTPONED: Final = 256
"""Offers that wait for a node that has just started to be ready, or for its disk."""


class Agent:
    """A running node."""

    def __init__(
        self,
        home: Home,
        config: Config,
        state: State,
        enrolled: Enrolled,
        uplink: Uplink,
        *,
        signer: Signer,
        log: Log,
        now: Callable[[], datetime],
        monotonic: Callable[[], float],
        rand: Rand,
        recorder: "Recorder | None" = None,
        clock: Clock | None = None,
    ) -> None:
        """Put a node together; `run` starts it. `clock` is the one that the uplink tells what it hears."""
        self._config = config
        self._state = state
        self._enrolled = enrolled
        self._uplink = uplink
        self._home = home
        self._signer = rotation.CurrentSigner(signer)
        self._log = log
        self._now = now
        self._posted: asyncio.Queue[ControlRequest] = asyncio.Queue(MAX_POSTED)
        self._unanswered: dict[Attempt, bytes] = {}
        self._waiting: rpc.Welcome | None = None
        self._monotonic = monotonic
        # Not at once: a clock that is wrong shows at the first welcome, and what is deleted is gone.
        self._deleted_at = self._series_at = monotonic()
        self._hindered = False
        self.force = InForce.load(state, config.name, signer.public_key)
        self.force.own = own_keys(home)
        require_begun(state, signer.public_key)
        # Also shows whether the rosters kept here are those that were activated.
        self.force.chain(state, enrolled)
        self._clock = clock or Clock(now, monotonic)
        self.letters = Letters(uplink.send, self.post, self._serve_letter, rand=rand, log=log)
        self.witness = Witness(
            state,
            self.force,
            home.cosigner,
            self._signer,
            trusted=self._clock.trusted,
            monotonic=monotonic,
            knows=lambda: self.cosigning.knows,
            log=log,
        )
        self.receipts = Receipts(state, self.force, self._signer, self.letters, now=now, log=log)
        self.cosigning = Cosigning(
            state,
            self.force,
            self.letters,
            wait_s=config.witness_wait_s,
            now=now,
            monotonic=monotonic,
            rand=rand,
            log=log,
            settled=self._settled,
        )
        self.gate = Gate(
            state,
            self.force,
            self._signer,
            now,
            log,
            trusted=self._clock.trusted,
            witnessing=self.cosigning.hindrance,
            settling=self.cosigning.settling,
            access=config.access,
        )
        self.explaining = Explaining(state, self.force, self.gate, self._signer, monotonic=monotonic, log=log)
        self.outcomes = Outcomes(state, self.force, self._signer, now=now, log=log, post=self.post)
        self._resent_at = monotonic()
        office = Office(
            home=home,
            config=config,
            state=state,
            force=self.force,
            gate=self.gate,
            signer=self._signer,
            uplink=uplink,
            log=log,
            now=now,
            monotonic=monotonic,
            rand=rand,
            post=self.post,
            witnessed=self.cosigning.until,
            committed=self.receipts.wake,
            recorder=recorder,
        )
        self.runner = Runner(office)
        self.desk = Desk(
            home,
            state,
            self.force,
            self.gate,
            now,
            lambda attempt, verdict: self.post(rpc.answer(attempt, verdict)),
            uplink.drop,
            self._announce,
            self.runner.halt,
            self.outcomes,
            lambda _required: None if self.cosigning.knows else heads_unknown(),
        )

    async def run(self) -> None:
        """Run until cancelled; then end every run and leave nothing half-done."""
        self.runner.recover()
        self._go_over()
        tasks = [
            asyncio.create_task(part)
            for part in (
                self._uplink.run(self.hello, self.take),
                self._send_posted(),
                self._serve(),
                self._tick(),
                self.cosigning.run(),
                self.letters.run(),
                self.receipts.run(),
            )
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # none of these ends by itself: show why
        finally:
            await self.runner.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._write_witnessed()

    def hello(self) -> ControlRequest:
        """Return what opens a control stream now."""
        roster = self._state.roster()
        signed = catalogue.publish(
            self._state.datasets(),
            self._config.name,
            self._signer,
            self._now(),
            announced=self._state.announced(),
            quality=quality.published(self._state),
        )
        version = roster.version if roster is not None else 0
        return rpc.hello(self._config.name, version, signed, self.runner.live())

    async def take(self, message: Message) -> None:
        """Act on one message of the coordinator; what is wrong with it is logged, never fatal."""
        try:
            match message:
                case rpc.Welcome():
                    # If rosters are missing in between they follow, and this one's turn comes after them.
                    self._waiting = message
                    self._take_waiting()
                    self._log.info("connected")
                    self.letters.lost()
                    self.cosigning.connected()
                    self.receipts.wake()
                    self.runner.resend()
                    self._resend_statements()
                case rpc.NewRoster(envelope):
                    self._take_roster(envelope)
                    self._take_waiting(again=True)
                case rpc.NewFreshness(envelope):
                    self._take_freshness(envelope)
                case rpc.Filed(sha256):
                    self._filed(sha256)
                case rpc.Letter():
                    self.letters.take(message)
                case rpc.Offer(attempt, job):
                    self._offer(attempt, job)
                case rpc.Admit(attempt):
                    self.runner.admit(attempt)
                case rpc.Start(attempt, admissions):
                    self.runner.start(attempt, admissions)
                case rpc.Stop(attempt, code) if code.startswith(rpc.OUTCOME_REFUSED):
                    self.outcomes.refused(attempt.job, code.removeprefix(rpc.OUTCOME_REFUSED))
                case rpc.Stop(attempt, code):
                    self.runner.stop(attempt, code)
                case rpc.Explain(identifier, request):
                    verdict = self.explaining.answer(request)
                    if verdict is not None:
                        self.post(rpc.explained(identifier, verdict))
                case rpc.Stored(release):
                    self.runner.stored(release)
                case rpc.Noted(attempt):
                    self.runner.noted(attempt)
        except MinshuError as error:
            self._log.failure(error.code, sentence=error.message)

    def post(self, message: ControlRequest) -> None:
        """Send a message when its turn comes. Lost with the stream: `resend` says again what matters."""
        try:
            self._posted.put_nowait(message)
        except asyncio.QueueFull:
            self._log.seldom("outbox-full")

    # -- parts ---------------------------------------------------------------------------------------------

    def _take_roster(self, envelope: bytes, *, again: bool = False) -> bool:
        """Return whether the roster is the one at hand now."""
        try:
            fresh = activate_roster(self._state, self.force, envelope, self._enrolled, self._now)
        except MinshuError as error:
            # The old one stays in force.
            if not again:
                self._log.warning(error.code, sentence=error.message)
            return False
        if fresh:
            self._log.info("roster-activated", version=self.force.roster.version if self.force.roster else 0)
            self._go_over()
            self.cosigning.look()
            for run in self._state.runs_in(RunState.AWAITING_APPROVAL):
                self.post(rpc.answer(run.attempt, self.gate.answer_again(run.attempt)))
        return True

    def _take_waiting(self, *, again: bool = False) -> None:
        newest = self._waiting
        if newest is None or (newest.roster and not self._take_roster(newest.roster, again=again)):
            return
        self._waiting = None
        if newest.freshness:
            self._take_freshness(newest.freshness)

    def _take_freshness(self, envelope: bytes) -> None:
        try:
            if take_freshness(self._state, self.force, envelope, self._enrolled, self._now):
                self._log.info("roster-fresh")
        except MinshuError as error:
            self._log.warning(error.code, sentence=error.message)

    # -- letters -------------------------------------------------------------------------------------------

    def _serve_letter(self, sender: str, question: Question) -> Reply | Later | None:
        self.cosigning.heard_from(sender)
        match question:
            case AddCheckpoint():
                return self.witness.cosign(sender, question)
            case AskHead():
                return self.witness.head(question)
        return self.receipts.take(question)

    def _settled(self) -> None:
        """Witnesses have seen what had to be seen first: go on with what waited for that."""
        try:
            self._offer_again()
            self._decide_again()
            self.runner.retry()
        except MinshuError as error:
            self._log.failure(error.code, sentence=error.message)

    def _write_witnessed(self) -> None:
        try:
            self.witness.write()
        except MinshuError as error:
            self._log.failure(error.code, sentence=error.message)

    # -- this node's own key -------------------------------------------------------------------------------

    def _announce(self) -> rotation.Announced:
        announced = rotation.announce(self._state, self.force, self._home, self._signer, self._now)
        self._resend_statements()
        return announced

    def _resend_statements(self) -> None:
        announced = rotation.under_way(self._state, self._signer.public_key)
        if announced is not None and not announced.stored:
            self.post(rpc.rotation(announced.envelope))
        self.outcomes.resend()
        self._resent_at = self._monotonic()

    def _filed(self, sha256: str) -> None:
        announced = rotation.under_way(self._state, self._signer.public_key)
        if announced is not None and announced.sha256 == sha256:
            with self._state.change() as change:
                change.rotation_stored(sha256)
        self.outcomes.stored(sha256)

    def _go_over(self) -> None:
        """Go over to this node's next identity key, if the roster lists it."""
        try:
            if not rotation.go_over(self._state, self.force, self._home, self._signer):
                return
        except MinshuError as error:
            # Until it succeeds the roster lists another key than this node signs with: it refuses every job.
            self._log.failure(error.code, sentence=error.message)
            return
        self._log.info("key-rotated")
        # What was said under the old key counts no more, and every job under way names an older roster.
        for run in self._state.runs_in(*WAITING, RunState.RUNNING, RunState.RELEASING):
            self.runner.stop(run.attempt, "key-rotated")
        self._uplink.drop()

    def _offer_again(self) -> None:
        for attempt, job in list(self._unanswered.items()):
            self._offer(attempt, job)

    def _offer(self, attempt: Attempt, job: bytes) -> None:
        try:
            self.runner.supersede(attempt.job, attempt.number)
            if self.gate.settling() and self._state.run(attempt) is None and self._may_keep(attempt, job):
                self._unanswered[attempt] = job
                return
            verdict = self.gate.offer(attempt, job)
        except MinshuError as error:
            # What cannot be journaled is not answered: it is tried again when the disk has recovered.
            if self._may_keep(attempt, job):
                self._unanswered[attempt] = job
            self._log.failure(error.code, job=attempt.job, sentence=error.message)
            return
        self._unanswered.pop(attempt, None)
        self.post(rpc.answer(attempt, verdict))

    def _may_keep(self, attempt: Attempt, job: bytes) -> bool:
        """Tell whether an offer may wait in memory: one of an analyst's, and there are not too many."""
        if attempt not in self._unanswered and len(self._unanswered) >= MAX_POSTPONED:
            return False
        try:
            authentic(self.force, attempt.job, job)
        except MinshuError:
            return False
        return True

    async def _send_posted(self) -> None:
        while True:
            message = await self._posted.get()
            try:
                await self._uplink.send(message)
            except Unreachable:
                pass  # said again after the next welcome, if it still matters

    async def _serve(self) -> None:
        """Carry out what other terminals left at the desk."""
        while True:
            try:
                for item in self._state.desk_waiting():
                    try:
                        answer = self.desk.handle(item.kind, item.body)
                    except MinshuError as error:
                        answer = error_to_json(error)
                    with self._state.change() as change:
                        change.answer_desk(item.number, answer)
            except MinshuError as error:
                self._log.failure(error.code, sentence=error.message)
            await asyncio.sleep(self._config.desk_poll_s)

    async def _tick(self) -> None:
        """Do what time asks for: look at the clock, publish, answer, open windows, expire, delete."""
        while True:
            await asyncio.sleep(TICK_S)
            try:
                self._look_at_clock()
                self._state.journal.publish()
                self.runner.retry()
                self._go_over()
                self._offer_again()
                self._expire()
                self._decide_again()
                self._delete_due()
                self._end_series()
                if self._monotonic() >= self._resent_at + RESEND_EVERY_S:
                    self._resend_statements()
                self._write_witnessed()
            except MinshuError as error:
                self._log.failure(error.code, sentence=error.message)

    def _look_at_clock(self) -> None:
        """Journal each jump of the clock; while it is in doubt, ask the coordinator for its time."""
        while (jump := self._clock.step()) is not None:
            body = {"step_ms": round(jump / timedelta(milliseconds=1)), "code": "wall-clock-jumped"}
            with self._state.change() as change:
                change.log("clock.step", body)
            self._log.warning("clock-step", seconds=round(jump.total_seconds()))
        if self._clock.asks_again():
            self._uplink.drop()

    def _decide_again(self) -> None:
        """Decide again what waits for its window to open; all that waits, once nothing hinders this node."""
        hindered, self._hindered = self._hindered or self.gate.held_back(), self.gate.hindered()
        if self._hindered:
            return
        for run in self._state.runs_in(RunState.AWAITING_APPROVAL):
            if hindered or run.code == WINDOW_CLOSED:
                verdict = self.gate.answer_again(run.attempt)
                if verdict != run.verdict:
                    self.post(rpc.answer(run.attempt, verdict))

    def _delete_due(self) -> None:
        """Delete what retention no longer lets this node keep; once in a while, for nothing is due often."""
        now = self._clock.trusted()
        if now is None or self._monotonic() < self._deleted_at + DELETE_EVERY_S:
            return
        self._deleted_at = self._monotonic()
        for attempt in delete_due(self._state, self._home, self.force.policy, now, self._log):
            self.runner.expire_releases(attempt)
        lookups.delete_unused(self._state, self._home, self.force.policy, now, self._log)

    def _end_series(self) -> None:
        """Delete keys of series whose days are over, also while the clock is in doubt."""
        if self._monotonic() < self._series_at + DELETE_EVERY_S:
            return
        self._series_at = self._monotonic()
        series.delete_over(self._state, self._home, self.force.policy, self._now(), self._log)

    def _expire(self) -> None:
        for run in self._state.runs_in(*WAITING):
            data = self._state.job(run.attempt.job)
            if data is None:
                continue
            spec = JobSpec.decode(decode_envelope(data).payload)
            if spec.expires <= self._now():
                self.runner.stop(Attempt(run.attempt.job, run.attempt.number), "job-expired")
