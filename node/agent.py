"""The agent: one loop that hears the coordinator, lets gate and runner answer, and says again what got lost.

Everything that touches the database happens on this loop, in order; reading data and computing happen in the
runner's threads.
"""

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Final

from node import catalogue, rpc
from node.activation import InForce, activate_roster
from node.config import Config
from node.desk import Desk, error_to_json
from node.gate import Gate
from node.home import Enrolled, Home
from node.link import Uplink
from node.logs import Log
from node.rpc import Attempt, ControlRequest, Message
from node.runner import Office, Runner
from node.state import RunState, State
from protocols.envelope import Signer, decode_envelope
from protocols.errors import MinshuError, Unreachable
from protocols.party import Rand
from protocols.wire import JobSpec

if TYPE_CHECKING:
    from node.record import Recorder

TICK_S: Final = 2.0
MAX_POSTED: Final = 4096


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
    ) -> None:
        """Put a node together; `run` starts it."""
        self._config = config
        self._state = state
        self._enrolled = enrolled
        self._uplink = uplink
        self._signer = signer
        self._log = log
        self._now = now
        self._posted: asyncio.Queue[ControlRequest] = asyncio.Queue(MAX_POSTED)
        self._unanswered: dict[Attempt, bytes] = {}
        self.force = InForce.load(state, config.name, signer.public_key)
        self.gate = Gate(state, self.force, signer, now, log)
        office = Office(
            home=home,
            config=config,
            state=state,
            force=self.force,
            gate=self.gate,
            signer=signer,
            uplink=uplink,
            log=log,
            now=now,
            monotonic=monotonic,
            rand=rand,
            post=self.post,
            recorder=recorder,
        )
        self.runner = Runner(office)
        self.desk = Desk(
            state,
            self.force,
            self.gate,
            now,
            lambda attempt, verdict: self.post(rpc.answer(attempt, verdict)),
            uplink.drop,
        )

    async def run(self) -> None:
        """Run until cancelled; then end every run and leave nothing half-done."""
        self.runner.recover()
        tasks = [
            asyncio.create_task(part)
            for part in (
                self._uplink.run(self.hello, self.take),
                self._send_posted(),
                self._serve(),
                self._tick(),
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

    def hello(self) -> ControlRequest:
        """Return what opens a control stream now."""
        roster = self._state.roster()
        signed = catalogue.publish(self._state.datasets(), self._config.name, self._signer, self._now())
        version = roster.version if roster is not None else 0
        return rpc.hello(self._config.name, version, signed, self.runner.live())

    async def take(self, message: Message) -> None:
        """Act on one message of the coordinator; what is wrong with it is logged, never fatal."""
        try:
            match message:
                case rpc.Welcome(envelope):
                    self._take_roster(envelope)
                    self._log.info("connected")
                    self.runner.resend()
                case rpc.NewRoster(envelope):
                    self._take_roster(envelope)
                case rpc.Offer(attempt, job):
                    self._offer(attempt, job)
                case rpc.Admit(attempt):
                    self.runner.admit(attempt)
                case rpc.Start(attempt, admissions):
                    self.runner.start(attempt, admissions)
                case rpc.Stop(attempt, code):
                    self.runner.stop(attempt, code)
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
            self._log.warning("outbox-full")

    # -- parts ---------------------------------------------------------------------------------------------

    def _take_roster(self, envelope: bytes) -> None:
        if not envelope:
            return
        try:
            fresh = activate_roster(self._state, self.force, envelope, self._enrolled, self._now)
        except MinshuError as error:
            # The old one stays in force.
            self._log.warning(error.code, sentence=error.message)
            return
        if fresh:
            self._log.info("roster-activated", version=self.force.roster.version if self.force.roster else 0)
            for run in self._state.runs_in(RunState.AWAITING_APPROVAL):
                self.post(rpc.answer(run.attempt, self.gate.answer_again(run.attempt)))

    def _offer(self, attempt: Attempt, job: bytes) -> None:
        try:
            self.runner.supersede(attempt.job, attempt.number)
            verdict = self.gate.offer(attempt, job)
        except MinshuError as error:
            # What cannot be journaled is not answered: it is tried again when the disk has recovered.
            self._unanswered[attempt] = job
            self._log.failure(error.code, job=attempt.job, sentence=error.message)
            return
        self._unanswered.pop(attempt, None)
        self.post(rpc.answer(attempt, verdict))

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
        """Let waiting jobs expire, publish what a full disk held back, answer what could not be answered."""
        while True:
            await asyncio.sleep(TICK_S)
            try:
                self._state.journal.publish()
                self.runner.retry()
                for attempt, job in list(self._unanswered.items()):
                    self._offer(attempt, job)
                self._expire()
            except MinshuError as error:
                self._log.failure(error.code, sentence=error.message)

    def _expire(self) -> None:
        for run in self._state.runs_in(RunState.AWAITING_APPROVAL, RunState.CHECKING):
            data = self._state.job(run.attempt.job)
            if data is None:
                continue
            spec = JobSpec.decode(decode_envelope(data).payload)
            if spec.expires <= self._now():
                self.runner.stop(Attempt(run.attempt.job, run.attempt.number), "job-expired")
