"""The scheduler: takes what nodes and analysts say, moves jobs by `lifecycle.advance`, tells the nodes.

Every change is stored before anybody hears of it. What a node is told is only ever a consequence of the
stored state, so after a broken stream or a restart it is simply told again (`connected`). All methods belong
to one event loop and none waits for a node: a slow or silent one delays nobody else.
"""

import asyncio
import contextlib
import logging
import secrets
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final, Protocol

from coordinator import rpc
from coordinator.lifecycle import (
    ANSWERED_BEFORE,
    Admit,
    Admitted,
    Answered,
    Cancelled,
    CloseRelay,
    DropReleases,
    Effect,
    Ended,
    Event,
    Job,
    JobState,
    Limits,
    Lost,
    Offer,
    Offered,
    OpenRelay,
    Passed,
    Planned,
    Record,
    Restarted,
    Run,
    RunState,
    Start,
    Stop,
    Stored,
    Uploading,
    advance,
    offers,
)
from coordinator.metering import measure
from coordinator.registry import MAX_JOB_ENVELOPE_BYTES, Registry
from coordinator.relay import Relay
from coordinator.requests import MAX_AGE
from coordinator.store import Entry, JobRecord, Store, StoredOutcome, StoredRelease, Usage
from minshu.v1 import jobs_pb2, relay_pb2
from protocols.encoding import sha256_digest
from protocols.envelope import decode_envelope, key_id
from protocols.errors import (
    DecodeError,
    InputError,
    MinshuError,
    Refused,
    SignatureInvalid,
    StateConflict,
    Unreachable,
)
from protocols.ids import Digest, JobId, NodeName, Organisation
from protocols.jobs.job_type import REQUESTER, InRounds, OutputClass
from protocols.outcomes import MAX_OUTCOMES, check_figures
from protocols.statistics.suppress import MIN_GROUP
from protocols.wire import (
    Admission,
    JobSpec,
    Outcome,
    ReleaseNote,
    RosterAnalyst,
    organisation_of,
    strictest,
)

SETTLE: Final = timedelta(seconds=2)
"""How long a node that came back without an attempt may still report how it ended."""

LIST_LENGTH: Final = 100
OUTCOME_REFUSED: Final = "outcome."
"""Begins the code of a stop that says why an outcome was not kept."""

EXPLAIN_S: Final = 10.0
"""How long a node may take over a dry answer."""

MAX_REFUSALS_A_MINUTE: Final = 60
"""Refused submissions that are journaled; more are only logged."""

WATCH_PAUSE_S: Final = 0.1
"""Shortest time between two views of one watch."""

_log = logging.getLogger("minshu.coordinator")


class Session(Protocol):
    """One node's control stream."""

    @property
    def spki(self) -> Digest:
        """The TLS key the stream was opened with."""
        ...

    def send(self, message: relay_pb2.ControlResponse) -> None:
        """Queue a message; a stream that is not read in time is closed instead."""
        ...

    def post(self, message: relay_pb2.ControlResponse, sender: NodeName) -> None:
        """Queue a letter behind all other messages; where `sender` has too many there, it is dropped."""
        ...

    def close(self, error: MinshuError) -> None:
        """End the stream with `error`."""
        ...


@dataclass(slots=True)
class _Present:
    """A connected node: what it was last told, and what its hello said.

    `roster` and `freshness` it was told; `catalogue` it sent when it held roster version `held`.
    """

    session: Session
    roster: int
    freshness: bytes
    catalogue: bytes
    held: int


@dataclass(slots=True)
class _Question:
    """A job that nodes are asked about: who has not answered yet, and what the others said."""

    job: JobId
    waiting: set[NodeName]
    answers: "asyncio.Queue[tuple[NodeName, bytes]]"


class Scheduler:
    """All live jobs and connected nodes."""

    def __init__(
        self,
        *,
        name: NodeName,
        store: Store,
        registry: Registry,
        relay: Relay,
        limits: Limits,
        grace_s: int,
        max_live_jobs: int,
        now: Callable[[], datetime],
        delete_bytes: Callable[[str], None],
    ) -> None:
        """Start empty; `restore` reads what the store has. `delete_bytes` deletes a sealed release."""
        self._name = name
        self._store = store
        self._registry = registry
        self._relay = relay
        self._limits = limits
        self._grace = timedelta(seconds=grace_s)
        self._max_live_jobs = max_live_jobs
        self._now = now
        self._delete_bytes = delete_bytes
        self._live: dict[JobId, JobRecord] = {}
        self._present: dict[NodeName, _Present] = {}
        self._gone: dict[NodeName, datetime] = {}
        self._without: dict[tuple[NodeName, rpc.Attempt], datetime] = {}
        self._progress: dict[JobId, dict[NodeName, rpc.Progress]] = {}
        self._changes: dict[JobId, asyncio.Event] = {}
        self._questions: dict[str, _Question] = {}
        self._announced = self._roster_version()
        self._refusals: deque[datetime] = deque()

    def restore(self) -> None:
        """Take up the store's live jobs; an attempt that was running is lost and replaced."""
        for record in self._store.live_jobs():
            self._live[record.job.id] = record
            self._apply(record.job.id, Restarted())

    # -- analysts ------------------------------------------------------------------------------------

    def submit(self, envelope: bytes) -> JobId:
        """Take in a signed job and offer it; a job that is known already is left as it is.

        Raises:
            MinshuError: see `Registry.job`; or too many jobs are under way.
        """
        if len(envelope) <= MAX_JOB_ENVELOPE_BYTES:
            known = self._store.job(JobId(decode_envelope(envelope).payload_digest))
            if known is not None:
                return known.job.id
        try:
            spec, analyst, job_id = self._registry.job(envelope)
        except MinshuError as error:
            self._note_refusal(envelope, error)
            raise
        if len(self._live) >= self._max_live_jobs:
            raise Refused(
                f"{len(self._live)} jobs are under way, no more are taken in",
                code="too-many-jobs",
                hint="try again when some have ended",
            )
        job = Job(
            id=job_id,
            expires=spec.expires,
            runs=tuple(Run(node, role) for role, node in sorted(spec.roles.items())),
            awaited=_awaited(spec),
        )
        record = JobRecord(
            job=job,
            envelope=envelope,
            requester=spec.requester,
            analyst=analyst.name,
            organisation=analyst.organisation,
            job_type=spec.job_type,
            purpose=spec.purpose,
            legal_basis=spec.legal_basis,
            expected_use=spec.expected_use,
            submitted=self._now(),
        )
        entry = Entry(
            "job.submitted",
            {
                "requester": spec.requester,
                "job_type": spec.job_type,
                "job_sha256": job_id,
                "envelope_sha256": sha256_digest(envelope),
                "roster_sha256": spec.roster_digest,
                "participants": sorted(spec.roles.values()),
                "bytes": len(envelope),
            },
            job=job_id,
            actor=spec.requester,
            objects=(envelope,),
        )
        if self._store.add_job(record, [entry]):
            self._live[job_id] = record
            self._perform(record, offers(job))
            _log.info("job %s submitted", job_id)
        return job_id

    def _note_refusal(self, envelope: bytes, error: MinshuError) -> None:
        """Journal a submission that was not taken in, a forged one above all.

        Whoever reaches the public port can cause these, so only so many a minute are kept.
        """
        now = self._now()
        while self._refusals and self._refusals[0] <= now - timedelta(minutes=1):
            self._refusals.popleft()
        if len(envelope) > MAX_JOB_ENVELOPE_BYTES or len(self._refusals) >= MAX_REFUSALS_A_MINUTE:
            _log.warning("a submission was refused: %s", error.code)
            return
        self._refusals.append(now)
        job = decode_envelope(envelope).payload_digest
        body = {"code": error.code, "envelope_sha256": sha256_digest(envelope)}
        self._store.add_entry(Entry("job.refused", body, job=job))

    def cancel(self, job_id: JobId, analyst: RosterAnalyst) -> None:
        """Withdraw a job of the analyst's organisation; one that has ended stays as it ended.

        Raises:
            InputError: no such job.
        """
        self.record(job_id, analyst)
        self._apply(job_id, Cancelled(analyst.name))

    def record(self, job_id: JobId, analyst: RosterAnalyst) -> JobRecord:
        """Return a job of the analyst's organisation; another organisation's is as unknown as none.

        Raises:
            InputError: no such job.
        """
        record = self._live.get(job_id) or self._store.job(job_id)
        if record is None or record.organisation != analyst.organisation:
            raise InputError(
                "no such job", code="unknown-job", hint="minshu list shows your organisation's jobs"
            )
        return record

    def view(self, job_id: JobId, analyst: RosterAnalyst) -> jobs_pb2.JobView:
        """Return a job as it stands.

        Raises:
            InputError: no such job.
        """
        record = self.record(job_id, analyst)
        if record.job.state is not JobState.SUCCEEDED:
            return rpc.view(record, progress=self._progress.get(job_id))
        releases = self._store.releases_of(JobId(record.job.answered_by or job_id))
        return rpc.view(record, releases, self._store.outcomes_of(job_id))

    async def views(self, job_id: JobId, analyst: RosterAnalyst) -> AsyncIterator[jobs_pb2.JobView]:
        """Yield a job's view now and after every change, until it has ended.

        Raises:
            InputError: no such job.
            SignatureInvalid: the roster in force lists the analyst no more.
        """
        while True:
            analyst = self._registry.still_listed(analyst)
            if self.record(job_id, analyst).job.ended:
                yield self.view(job_id, analyst)
                return
            changed = self._changes.setdefault(job_id, asyncio.Event())
            yield self.view(job_id, analyst)
            await changed.wait()
            await asyncio.sleep(WATCH_PAUSE_S)

    def views_of(self, analyst: RosterAnalyst) -> list[jobs_pb2.JobView]:
        """Return the newest jobs of the analyst's organisation, without runs."""
        return [
            rpc.view(record, runs=False) for record in self._store.jobs_of(analyst.organisation, LIST_LENGTH)
        ]

    def release_for(self, release: str, analyst: RosterAnalyst) -> StoredRelease:
        """Return a release that is the analyst's to open.

        Raises:
            InputError: no such release, or its job did not succeed (yet).
            Refused: it is sealed to somebody else.
        """
        found = self._store.release(release)
        record = None if found is None else self._live.get(found.job) or self._store.job(found.job)
        if (
            found is None
            or record is None
            or record.organisation != analyst.organisation
            or record.job.state is not JobState.SUCCEEDED
        ):
            raise InputError(
                "no such release", code="unknown-release", hint="minshu show JOB names a job's releases"
            )
        if found.sealed_to != sha256_digest(analyst.recipient_key):
            raise Refused("the release is sealed to another analyst", code="not-recipient")
        return found

    async def explain(self, spec: JobSpec, question: bytes) -> AsyncGenerator[tuple[NodeName, bytes, str]]:
        """Ask every node of a job what it would answer; yield (node, verdict, code) as the answers come.

        Nothing is stored. A node that is away or does not answer in time has no verdict, and a code.
        """
        identifier, job = secrets.token_hex(16), spec.job_id
        asked = _Question(job, set(), asyncio.Queue())
        self._questions[identifier] = asked
        try:
            for node in sorted(spec.roles.values()):
                if self._send(node, rpc.explain(identifier, question)):
                    asked.waiting.add(node)
                else:
                    yield node, b"", "node-away"
            clock = asyncio.get_running_loop().time
            deadline = clock() + EXPLAIN_S
            with contextlib.suppress(TimeoutError):
                while asked.waiting or not asked.answers.empty():
                    node, verdict = await asyncio.wait_for(asked.answers.get(), deadline - clock())
                    yield node, verdict, "" if verdict else "no-answer"
            for node in sorted(asked.waiting):
                yield node, b"", "no-answer"
        finally:
            del self._questions[identifier]

    def usage(self, analyst: RosterAnalyst) -> Sequence[Usage]:
        """Return what the analyst's organisation has asked and spent."""
        return self._store.usage(analyst.organisation)

    def file(self, outcome: Outcome, analyst: RosterAnalyst, envelope: bytes) -> None:
        """Keep what an analyst found out about the releases that the analyst's organisation received.

        Raises:
            InputError: no such job.
            MinshuError: see `_file`.
        """
        self.record(outcome.job, analyst)
        self._file(outcome, analyst.organisation, envelope, analyst.key, directed=False)

    def _file(
        self, outcome: Outcome, organisation: Organisation, envelope: bytes, key: bytes, *, directed: bool
    ) -> None:
        """Keep an outcome that `key` signed; the same one again changes nothing.

        (1) The job succeeded with releases of its own. (2) The organisation received one of them: a list of
        class B, if it is `directed`, else another. (3) The outcome is not dated in the future. (4) No figure
        is of a group smaller than the releases may show. (5) There is room.

        Raises:
            InputError: no such job, or (3).
            StateConflict: (1)
            Refused: (2), (4) or (5).
        """
        record = self._live.get(outcome.job) or self._store.job(outcome.job)
        if record is None:
            raise InputError("no such job", code="unknown-job")
        job = record.job
        # (1)
        if job.answered_by:
            raise StateConflict(
                "the job was answered with an earlier job's releases",
                code=ANSWERED_BEFORE,
                hint=f"file the outcome for {job.answered_by}",
            )
        if job.state is not JobState.SUCCEEDED:
            raise StateConflict(
                f"the job is {job.state}, it has no releases to verify",
                code="job-not-succeeded",
                hint="file the outcome once the job has succeeded and its releases are verified",
            )
        # (2)
        if organisation not in _recipients(record, directed=directed):
            raise Refused(
                f"no release of this job went to {organisation}'s {'node' if directed else 'analysts'}",
                code="not-a-recipient",
                hint="who got a list files at the node: minshu-node outcome; who got a table: minshu outcome",
            )
        # (3)
        if outcome.filed > self._now() + MAX_AGE:
            raise InputError("the outcome is dated in the future", code="bad-time", hint="check the clock")
        # (4)
        check_figures(outcome, _smallest_group(job))
        entry = Entry(
            "outcome.filed",
            {
                "sha256": sha256_digest(outcome.encode()),
                "envelope_sha256": sha256_digest(envelope),
                "recipient": organisation,
                "signers": [key_id(key)],
                "checked": outcome.checked,
                "confirmed": outcome.confirmed,
            },
            job=job.id,
            attempt=job.attempt,
            actor=outcome.by,
            objects=(envelope,),
        )
        stored = StoredOutcome(sha256_digest(outcome.encode()), job.id, outcome.by, envelope, self._now())
        # (5)
        if self._store.add_outcome(stored, MAX_OUTCOMES, [entry]):
            _log.info("outcome of job %s filed", job.id)

    # -- nodes ---------------------------------------------------------------------------------------

    def connected(self, node: NodeName, session: Session, hello: rpc.Hello) -> None:
        """Take a node's new stream in place of an older one, and tell it all it has to know.

        (1) Its catalogue is kept if it is its own. (2) It gets the newest roster with its freshness, then
        those that it lacks in between, oldest first. (3) Attempts it still
        runs but that are over are stopped. (4) Of every live job it is told what it may have missed.
        """
        older = self._present.get(node)
        if older is not None:
            older.session.close(StateConflict("a newer stream took this one's place", code="stream-replaced"))
        # (1)
        self._keep_catalogue(node, hello.catalogue, hello.roster_version)
        freshness = self._registry.freshness_envelope
        self._present[node] = _Present(
            session, self._roster_version(), freshness, hello.catalogue, hello.roster_version
        )
        self._gone.pop(node, None)
        # (2)
        newest = self._registry.roster_envelope
        session.send(rpc.welcome(self._name, newest, freshness, self._now()))
        for envelope in self._registry.rosters_after(hello.roster_version)[:-1]:
            session.send(rpc.roster_update(envelope))
        # (3)
        for attempt in sorted(hello.live, key=lambda item: (item.job, item.number)):
            record = self._live.get(attempt.job)
            if record is None:
                session.send(rpc.stop(attempt.job, 0, "job-over", "the job is over"))
            elif record.job.attempt != attempt.number or record.job.run(node) is None:
                session.send(rpc.stop(attempt.job, attempt.number, "attempt-over", "the attempt is over"))
        # (4)
        for record in list(self._live.values()):
            run = record.job.run(node)
            if run is not None:
                self._resume(record, run, rpc.Attempt(record.job.id, record.job.attempt) in hello.live)

    def _keep_catalogue(self, node: NodeName, catalogue: bytes, held: int) -> None:
        """Keep a catalogue if it is the node's own; `held` is the roster version that it was signed under."""
        # Before the first roster no key is known to check it with; `roster_changed` comes back to it.
        if not catalogue or self._registry.roster is None:
            return
        try:
            self._registry.catalogue(node, catalogue)
        except SignatureInvalid:
            if not self._registry.former_catalogue(node, catalogue, held):
                raise
            # The roster that lists its next key is only on its way to it: it says hello again under that.
            return
        self._store.put_catalogue(node, catalogue)

    def session(self, node: NodeName) -> Session | None:
        """Return a connected node's stream, None for any other."""
        present = self._present.get(node)
        return None if present is None else present.session

    def disconnected(self, node: NodeName, session: Session) -> None:
        """A node's stream is gone; nothing follows from it before the grace is over."""
        present = self._present.get(node)
        if present is not None and present.session is session:
            del self._present[node]
            self._gone[node] = self._now()

    def heard(self, node: NodeName, message: rpc.Message) -> None:
        """Take a node's message, but no letter; `Piece` goes through `expect_release` and `release_stored`.

        A message that does not hold ends the run it is about: whoever sent it will not send a better one.
        """
        if isinstance(message, rpc.Hello | rpc.Piece | rpc.Letter):
            raise StateConflict("the message does not fit here", code="unexpected-message")
        if isinstance(message, rpc.Explained):
            self._explained(node, message)
            return
        if isinstance(message, rpc.OutcomeFiled):
            self._outcome_filed(node, message.outcome)
            return
        if isinstance(message, rpc.KeyRotation):
            self._rotation_announced(node, message.rotation)
            return
        attempt = message.attempt
        try:
            match message:
                case rpc.Answer():
                    self._answered(node, message)
                case rpc.AdmittedMessage():
                    admission = self._registry.admission(node, attempt.job, attempt.number, message.admission)
                    runtime = admission.constraints.max_runtime_s
                    self._apply(attempt.job, Admitted(node, attempt.number, message.admission, runtime))
                case rpc.Progress():
                    self._progressed(node, message)
                case rpc.RunEnd():
                    self._run_ended(node, message)
        except (DecodeError, SignatureInvalid) as error:
            self.failed(node, attempt, error)

    def failed(self, node: NodeName, attempt: rpc.Attempt, error: MinshuError) -> None:
        """A node's run failed because of what the node sent."""
        _log.warning("node %s: %s: %s", node, error.code, error.message)
        self._apply(
            attempt.job,
            Ended(node, attempt.number, RunState.FAILED, error.code, error.message, rpc.hint_of(error)),
        )

    def _explained(self, node: NodeName, message: rpc.Explained) -> None:
        """Pass a dry answer on; one that nobody waits for, or that does not hold, is dropped."""
        asked = self._questions.get(message.id)
        if asked is None or node not in asked.waiting:
            return
        verdict = message.verdict
        try:
            self._registry.verdict(node, asked.job, 0, verdict)
        except (DecodeError, SignatureInvalid) as error:
            _log.warning("node %s: dry answer: %s: %s", node, error.code, error.message)
            verdict = b""
        asked.waiting.discard(node)
        asked.answers.put_nowait((node, verdict))

    def _outcome_filed(self, node: NodeName, envelope: bytes) -> None:
        """Keep what a node found out about a list that it received, and tell it so.

        While the job is under way it is told nothing and says it again later. A refusal goes back as a stop
        of the job with a code of its own: the job has ended, so that nothing else can be meant.
        """
        try:
            outcome = self._registry.node_outcome(node, envelope)
        except (DecodeError, SignatureInvalid) as error:
            _log.warning("node %s: outcome: %s: %s", node, error.code, error.message)
            return
        if outcome.job in self._live:
            return
        try:
            key = self._registry.member(node).identity_key
            self._file(outcome, organisation_of(node), envelope, key, directed=True)
        except MinshuError as error:
            _log.warning("node %s: outcome of job %s: %s", node, outcome.job, error.code)
            self._send(node, rpc.stop(outcome.job, 0, f"{OUTCOME_REFUSED}{error.code}", error.message))
            return
        self._send(node, rpc.filed(sha256_digest(outcome.encode())))

    def _rotation_announced(self, node: NodeName, envelope: bytes) -> None:
        """Keep the announcement of a node's next identity key, for the next draft of a roster."""
        try:
            sha256 = self._registry.announce_rotation(node, envelope)
        except MinshuError as error:
            _log.warning("node %s: next identity key: %s: %s", node, error.code, error.message)
            return
        self._send(node, rpc.filed(sha256))

    def expect_release(self, node: NodeName, piece: rpc.Piece) -> ReleaseNote:
        """Return the note of a release that begins to arrive.

        (1) Signed by the node, about this attempt and release. (2) Class A or C: class B never comes here.
        (3) Planned by the job, for this node. (4) For the requester, sealed to the requester's key.
        (5) Not expired. (6) The attempt is the current one; a release stored before is confirmed again.

        Raises:
            MinshuError: which of them does not hold.
        """
        attempt = piece.attempt
        # (1)
        note = self._registry.release_note(node, attempt.job, attempt.number, piece.note)
        if note.release != piece.release:
            raise SignatureInvalid("the note is about another release", code="wrong-subject")
        # (2)
        if note.output_class == OutputClass.DIRECTED:
            raise Refused("a class-B release never leaves its recipient's node", code="class-b")
        record = self._live.get(attempt.job) or self._store.job(attempt.job)
        if record is None:
            raise InputError("no such job", code="unknown-job")
        # (3)
        if Planned(node, note.name) not in record.job.awaited | record.job.stored:
            raise Refused("the job plans no such release of this node", code="unplanned-release")
        # (4)
        roster = self._registry.roster
        analyst = None if roster is None else roster.analyst(record.requester)
        if (
            analyst is None
            or note.recipient != record.organisation
            or note.sealed_to != sha256_digest(analyst.recipient_key)
        ):
            raise Refused("the release is not sealed to the requester", code="wrong-recipient")
        # (5)
        if note.expires <= self._now():
            raise Refused("the release has expired before it arrived", code="release-expired")
        # (6)
        known = self._store.release(note.release)
        running = record.job.state is JobState.RUNNING and record.job.attempt == attempt.number
        if not running and known is None:
            raise StateConflict("the attempt is over, its release is not kept", code="attempt-over")
        if known is None:
            self._apply(attempt.job, Uploading(node, attempt.number))
        return note

    def release_stored(self, node: NodeName, note: ReleaseNote, envelope: bytes, size: int) -> None:
        """A release's bytes are durable: keep its row, tell the node, perhaps end the job.

        Raises:
            StateConflict: another release has this id or name.
        """
        release = StoredRelease(
            release=note.release,
            job=note.job,
            attempt=note.attempt,
            node=node,
            name=note.name,
            output_class=note.output_class,
            sealed_to=note.sealed_to,
            note=envelope,
            sha256=note.sha256,
            size=size,
            expires=note.expires,
        )
        receipt = Entry(
            "peer.receipt",
            {
                "peer": node,
                "sha256": sha256_digest(note.encode()),
                "envelope_sha256": sha256_digest(envelope),
                "kind": "release",
                "release": note.release,
            },
            job=note.job,
            attempt=note.attempt,
        )
        self._store.add_release(release, [receipt])
        self._apply(note.job, Stored(node, note.attempt, note.name))
        self._send(node, rpc.stored(note.release))

    def stop_upload(self, node: NodeName, attempt: rpc.Attempt, error: MinshuError) -> None:
        """Tell a node that a release is not wanted."""
        self._send(node, rpc.stop(attempt.job, attempt.number, error.code, error.message))

    # -- time and roster -----------------------------------------------------------------------------

    def tick(self) -> None:
        """Look at the clock: expiry, deadlines, lost nodes."""
        now = self._now()
        for record in list(self._live.values()):
            job = record.job
            self._apply(job.id, Passed(), *self._losses(job, now))
        for node, attempt in list(self._without):
            known = self._live.get(attempt.job)
            if known is None or known.job.attempt != attempt.number:
                del self._without[node, attempt]

    def clean(self) -> None:
        """Delete what has expired: releases, nonces, tokens."""
        now = self._now()
        for release in self._store.expired_releases(now):
            self._delete(release, "expired")
        self._store.forget(now)

    def roster_changed(self) -> None:
        """Where a newer roster is in force: close the streams it no longer carries, tell the others.

        Where a newer freshness statement is there, tell everybody.
        """
        if self._roster_version() != self._announced:
            self._announced = self._roster_version()
            self._tell_rosters()
            # Whoever watches looks itself up again.
            for changed in self._changes.values():
                changed.set()
            self._changes.clear()
        freshness = self._registry.freshness_envelope
        for present in self._present.values():
            if freshness and present.freshness != freshness:
                present.session.send(rpc.freshness_update(freshness))
                present.freshness = freshness

    def _tell_rosters(self) -> None:
        for node, present in list(self._present.items()):
            try:
                self._registry.check_peer(node, present.session.spki)
                self._keep_catalogue(node, present.catalogue, present.held)
            except (SignatureInvalid, DecodeError) as error:
                self._expel(node, present, error)
                continue
            for envelope in self._registry.rosters_after(present.roster):
                present.session.send(rpc.roster_update(envelope))
            present.roster = self._roster_version()

    def _expel(self, node: NodeName, present: _Present, error: MinshuError) -> None:
        present.session.close(error)
        self.disconnected(node, present.session)
        for record in list(self._live.values()):
            if record.job.run(node) is not None:
                self.failed(node, rpc.Attempt(record.job.id, record.job.attempt), error)

    def _losses(self, job: Job, now: datetime) -> Iterable[Event]:
        for run in job.runs:
            gone = self._gone.get(run.node)
            without = self._without.get((run.node, rpc.Attempt(job.id, job.attempt)))
            if gone is not None and now - gone >= self._grace:
                seconds = int(self._grace.total_seconds())
                yield Lost(run.node, job.attempt, f"its connection was gone for more than {seconds} s")
            elif gone is None and run.node not in self._present:
                # Not seen since the coordinator started: the grace begins now.
                self._gone[run.node] = now
            elif without is not None and now - without >= SETTLE:
                yield Lost(run.node, job.attempt, "it came back without the attempt; it was restarted")

    def shut_down(self) -> None:
        """End every stream: the program stops. What is stored goes on at the next start."""
        error = Unreachable("the coordinator is shutting down", code="coordinator-stopped")
        for present in self._present.values():
            present.session.close(error)
        for record in self._live.values():
            self._relay.close(record.job.id, record.job.attempt)

    # -- one change ----------------------------------------------------------------------------------

    def _apply(self, job_id: JobId, *events: Event) -> None:
        """Move a job: compute, store, then carry out."""
        record = self._live.get(job_id)
        if record is None:
            return
        job, effects = record.job, list[Effect]()
        limits = self._limits_of(record)
        for event in events:
            job, more = advance(job, event, limits, self._now())
            effects += more
        if job == record.job and not effects:
            return
        started = any(isinstance(effect, OpenRelay) for effect in effects)
        meter = measure(job, record.envelope, self._now()) if started else None
        self._store.save_job(job, _entries(record, job, effects), meter)
        record = replace(record, job=job)
        if job.ended:
            del self._live[job_id]
            self._progress.pop(job_id, None)
            _log.info("job %s %s %s", job_id, job.state, job.code)
        else:
            self._live[job_id] = record
        self._perform(record, effects)
        changed = self._changes.pop(job_id, None)
        if changed is not None:
            changed.set()

    def _limits_of(self, record: JobRecord) -> Limits:
        from protocols.jobs import job_type

        try:
            in_rounds = isinstance(job_type(record.job_type), InRounds)
        except Refused:
            in_rounds = False  # stored by a version that knew its type
        return self._limits.in_rounds if in_rounds else self._limits

    def _perform(self, record: JobRecord, effects: Sequence[Effect]) -> None:
        job = record.job
        offered: list[Event] = []
        for effect in effects:
            match effect:
                case Offer(node):
                    if self._send(node, rpc.offer(job.id, job.attempt, record.envelope)):
                        offered.append(Offered(node, job.attempt))
                case Admit(node):
                    self._send(node, rpc.admit(job.id, job.attempt))
                case Start(node):
                    self._send(node, self._start(job))
                case Stop(node, attempt, code, sentence):
                    self._send(node, rpc.stop(job.id, attempt, code, sentence))
                case OpenRelay():
                    self._relay.open(job.id, job.attempt, {run.role: run.node for run in job.runs})
                case CloseRelay(attempt):
                    self._relay.close(job.id, attempt)
                    self._progress.pop(job.id, None)
                case DropReleases():
                    for release in self._store.releases_of(job.id):
                        self._delete(release, "job-failed")
                case Record():
                    pass  # stored with the change itself
        if offered:
            self._apply(job.id, *offered)

    @staticmethod
    def _start(job: Job) -> relay_pb2.ControlResponse:
        return rpc.start(job.id, job.attempt, [run.admission for run in job.runs])

    def _resume(self, record: JobRecord, run: Run, live: bool) -> None:
        """Tell a node that came back what it may have missed of a job."""
        job = record.job
        match run.state:
            case RunState.OFFERED | RunState.CHECKING | RunState.AWAITING_APPROVAL:
                self._perform(record, [Offer(run.node)])
            case RunState.ACCEPTED if not job.admitting:
                self._perform(record, [Offer(run.node)])
            case RunState.ACCEPTED if not (run.admission and live):
                # Its key for the attempt may be gone with the process: a newer admission replaces the older.
                self._perform(record, [Admit(run.node)])
            case RunState.RUNNING if live:
                if not self._relay.exchange(job.id, job.attempt).has_joined(run.node):
                    self._perform(record, [Start(run.node)])
            case RunState.RUNNING | RunState.RELEASING if not live:
                self._without[run.node, rpc.Attempt(job.id, job.attempt)] = self._now()

    def _answered(self, node: NodeName, message: rpc.Answer) -> None:
        attempt = message.attempt
        verdict = self._registry.verdict(node, attempt.job, attempt.number, message.verdict)
        event = Answered(
            node,
            attempt.number,
            verdict.answer,
            message.verdict,
            rpc.read_code(verdict.code) or ("refused" if verdict.answer == "refuse" else ""),
            f"{verdict.sentence} {verdict.sentence_zh}".strip(),
            f"{verdict.hint} {verdict.hint_zh}".strip(),
            verdict.approvals_needed,
            verdict.approvals_given,
            verdict.answered,
            usable=self._usable(attempt.job, verdict.answered),
        )
        if attempt.job in self._live:
            self._apply(attempt.job, event)
        elif (record := self._store.job(attempt.job)) is not None:
            job, _ = advance(record.job, event, self._limits, self._now())
            if job != record.job:
                self._store.save_job(job)

    def _usable(self, job: JobId, earlier: str) -> bool:
        """Return whether an earlier job's releases may be handed out for this one now.

        It is the same analyst's, who could fetch them anyway, it succeeded with releases of its own, and
        all of them are still here.
        """
        record = self._live.get(job)
        known = self._store.job(JobId(earlier)) if earlier else None
        if record is None or known is None or known.requester != record.requester:
            return False
        if known.job.state is not JobState.SUCCEEDED or known.job.answered_by:
            return False
        now = self._now()
        held = {
            Planned(release.node, release.name)
            for release in self._store.releases_of(known.job.id)
            if release.expires > now
        }
        return known.job.stored <= held

    def _progressed(self, node: NodeName, message: rpc.Progress) -> None:
        record = self._live.get(message.attempt.job)
        run = None if record is None else record.job.run(node)
        if record is None or run is None or record.job.attempt != message.attempt.number:
            return
        self._progress.setdefault(record.job.id, {})[node] = message
        changed = self._changes.pop(record.job.id, None)
        if changed is not None:
            changed.set()

    def _run_ended(self, node: NodeName, message: rpc.RunEnd) -> None:
        attempt = message.attempt
        record = self._live.get(attempt.job) or self._store.job(attempt.job)
        if record is None or record.job.run(node) is None:
            self._send(node, rpc.stop(attempt.job, 0, "unknown-job", "no such job of this node"))
            return
        self._apply(
            attempt.job,
            Ended(node, attempt.number, message.state, message.code, message.sentence, message.hint),
        )
        self._send(node, rpc.noted(attempt.job, attempt.number))

    def _send(self, node: NodeName, message: relay_pb2.ControlResponse) -> bool:
        present = self._present.get(node)
        if present is not None:
            present.session.send(message)
        return present is not None

    def _delete(self, release: StoredRelease, code: str) -> None:
        receipt = Entry(
            "deletion.receipt",
            {
                "what": "release",
                "sha256": release.sha256,
                "release": release.release,
                "bytes": release.size,
                "code": code,
            },
            job=release.job,
            attempt=release.attempt,
        )
        # The row goes first: a crash in between leaves bytes without a row, which the next start deletes.
        self._store.delete_release(release.release, [receipt])
        self._delete_bytes(release.release)

    def _roster_version(self) -> int:
        return 0 if self._registry.roster is None else self._registry.roster.version


def _smallest_group(job: Job) -> int:
    """Return the smallest group that a participant of the job lets be shown."""
    admissions = (Admission.decode(decode_envelope(run.admission).payload) for run in job.runs)
    return strictest(admission.constraints for admission in admissions).min_group_size or MIN_GROUP


def _recipients(record: JobRecord, *, directed: bool) -> set[Organisation]:
    """Return the organisations that receive a job's lists of class B, or its other releases."""
    from protocols.jobs import job_type

    spec = _spec(record)
    return {
        record.organisation if planned.recipient == REQUESTER else planned.recipient
        for planned in job_type(spec.job_type).releases(spec)
        if (planned.output_class is OutputClass.DIRECTED) == directed
    }


def _spec(record: JobRecord) -> JobSpec:
    return JobSpec.decode(decode_envelope(record.envelope).payload)


def _awaited(spec: JobSpec) -> frozenset[Planned]:
    """Return the releases that come here: class A and C; class B goes from node to recipient."""
    from protocols.jobs import job_type

    return frozenset(
        Planned(spec.roles[planned.made_by], planned.name)
        for planned in job_type(spec.job_type).releases(spec)
        if planned.output_class is not OutputClass.DIRECTED
    )


def _entries(record: JobRecord, job: Job, effects: Iterable[Effect]) -> list[Entry]:
    """Return the journal entries of a change."""
    entries = []
    for effect in effects:
        match effect:
            case Record(kind, attempt, code, node, retry):
                body: dict[str, str | bool] = {"requester": record.requester}
                if code:
                    body["code"] = code
                if node:
                    body["peer"] = node
                if retry:
                    body["retry"] = True
                entries.append(Entry(kind, body, job=job.id, attempt=attempt))
            case OpenRelay():
                entries.append(
                    Entry(
                        "job.started",
                        {
                            "participants": sorted(run.node for run in job.runs),
                            "roster_sha256": _spec(record).roster_digest,
                        },
                        job=job.id,
                        attempt=job.attempt,
                        objects=tuple(run.admission for run in job.runs),
                    )
                )
                entries += [
                    Entry(
                        "peer.receipt",
                        {
                            "peer": run.node,
                            "sha256": decode_envelope(run.admission).payload_digest,
                            "envelope_sha256": sha256_digest(run.admission),
                            "kind": "admission",
                        },
                        job=job.id,
                        attempt=job.attempt,
                    )
                    for run in job.runs
                ]
    if job.answered_by:
        # Why nothing ran: what every node said of the earlier job.
        entries += [
            Entry(
                "peer.receipt",
                {
                    "peer": run.node,
                    "sha256": decode_envelope(run.verdict).payload_digest,
                    "envelope_sha256": sha256_digest(run.verdict),
                    "kind": "verdict",
                    "code": job.code,
                },
                job=job.id,
                attempt=job.attempt,
            )
            for run in job.runs
        ]
    return entries
