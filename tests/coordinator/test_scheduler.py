"""The scheduler with in-memory nodes that refuse, ask, fail, vanish, come back and equivocate."""

import asyncio
from dataclasses import dataclass, field, replace
from datetime import timedelta

import pytest
import sqlalchemy as sa
from collaboration import (
    BUREAU,
    HEALTH,
    INSURANCE,
    NODES,
    NOW,
    POLICE,
    STATISTICS,
    SUITE,
    recipient_public,
    signer,
    spki,
)

from coordinator import metering, rpc, scheduler
from coordinator.lifecycle import JobState, Limits, RunState
from coordinator.registry import Registry
from coordinator.relay import Relay
from coordinator.scheduler import MAX_REFUSALS_A_MINUTE, Scheduler
from coordinator.store import Usage
from coordinator.store.sql import SqlStore, _meters
from minshu.v1 import relay_pb2
from protocols.encoding import canonical_json, decode_json, sha256_digest
from protocols.envelope import JOB, VERDICT, Envelope, decode_envelope, key_id, sign
from protocols.errors import DecodeError, InputError, MinshuError, Refused, SignatureInvalid, StateConflict
from protocols.ids import DatasetName, JobId, NodeName
from protocols.jobs.crosscheck import Crosscheck
from protocols.wire import Constraints, CostLine, InputSummary, RosterAnalyst, Verdict, organisation_of

LI = RosterAnalyst("li", BUREAU, signer("li").public_key, recipient_public("li"))
ZHAO = RosterAnalyst("zhao", BUREAU, signer("zhao").public_key, recipient_public("zhao"))
WANG = RosterAnalyst("wang", "police.gz.example", signer("wang").public_key, recipient_public("wang"))


@dataclass
class FakeNode:
    """A node that answers at once unless told otherwise; its words go through the wire form, both ways."""

    name: NodeName
    bureau: "FakeBureau"
    answer: str = "permit"
    says: dict = field(default_factory=dict)
    admits: bool = True
    finishes: bool = True
    heard: list = field(default_factory=list)
    live: set = field(default_factory=set)
    closed: MinshuError | None = None
    up: bool = False

    # -- the scheduler's side: a Session

    @property
    def spki(self):
        return spki(self.name)

    def send(self, message):
        message = relay_pb2.ControlResponse.FromString(message.SerializeToString())
        self.heard.append(message)
        self.bureau.mail.append((self, message))

    def close(self, error):
        self.closed = error
        self.up = False

    # -- its own side

    def connect(self, roster_version=0, catalogue=b""):
        self.up, self.closed = True, None
        hello = rpc.Hello(self.name, roster_version, catalogue, frozenset(self.live))
        self.bureau.scheduler.connected(self.name, self, hello)
        self.bureau.deliver()

    def vanish(self, *, forgetting=False):
        self.up = False
        if forgetting:
            self.live.clear()
        self.bureau.scheduler.disconnected(self.name, self)

    def say(self, **kind):
        self.bureau.scheduler.heard(
            self.name,
            rpc.read_control(
                relay_pb2.ControlRequest.FromString(relay_pb2.ControlRequest(**kind).SerializeToString())
            ),
        )

    def verdict(self, attempt, answer, **changes):
        world = self.bureau.world
        envelope = world.verdict(self.name, attempt.job, attempt.attempt, answer, **changes)
        self.say(answer=relay_pb2.Answer(attempt=attempt, verdict=envelope))

    def explain(self, asked, **changes):
        """Answer a question; `changes` replace what it says or who signs it."""
        about = {"node": self.name, "job": decode_envelope(asked.request).payload_digest, "attempt": 0}
        about |= {"answer": self.answer, "by": self.name}
        signed = self.bureau.world.verdict(**about | changes)
        self.say(explained=relay_pb2.Explained(id=asked.id, verdict=signed))

    def ended(self, attempt, state, code="", sentence=""):
        self.say(
            ended=relay_pb2.RunEnded(attempt=attempt, state=state, code=code, sentence=sentence, hint="look")
        )

    def react(self, message):
        attempt = getattr(message, message.WhichOneof("kind"))
        attempt = getattr(attempt, "attempt", None)
        match message.WhichOneof("kind"):
            case "offer":
                if self.answer:
                    self.verdict(attempt, self.answer, **self.says)
            case "explain":
                self.explain(message.explain)
            case "admit" if self.admits:
                self.live.add(rpc.Attempt(JobId(attempt.job), attempt.attempt))
                envelope = self.bureau.world.admission(self.name, attempt.job, attempt.attempt)
                self.say(admitted=relay_pb2.Admitted(attempt=attempt, admission=envelope))
            case "start" if self.finishes:
                self.finish(attempt)
            case "stop":
                self.live = {a for a in self.live if a.job != attempt.job}

    def finish(self, attempt):
        if self.name == POLICE:
            self.upload(attempt)
        self.ended(attempt, "DONE")
        self.live.discard(rpc.Attempt(JobId(attempt.job), attempt.attempt))

    def upload(self, attempt, **changes):
        note, sealed, release = self.bureau.world.release(attempt.job, attempt.attempt, **changes)
        piece = rpc.Piece(
            rpc.Attempt(JobId(attempt.job), attempt.attempt), release, note, 0, sealed, last=True
        )
        read = self.bureau.scheduler.expect_release(self.name, piece)
        self.bureau.scheduler.release_stored(self.name, read, note, len(sealed))

    def got(self, kind):
        return [getattr(message, kind) for message in self.heard if message.WhichOneof("kind") == kind]


class FakeBureau:
    """A scheduler over a store in memory, and its nodes; messages are delivered one after the other."""

    def __init__(self, world, store=None, **limits):
        self.world = world
        self.store = store or SqlStore(None)
        self.deleted = []
        self.mail = []
        self.limits = Limits(**limits)
        self.nodes = {name: FakeNode(name, self) for name in NODES}
        self.boot()
        if self.registry.roster is None:
            self.registry.publish(world.signed(world.roster()))

    def boot(self):
        """Start the program on what the store has; the nodes' streams are gone."""
        self.mail.clear()
        self.registry = Registry(self.store, self.world.roots, SUITE, self.world.now)
        self.relay = Relay(max_frames=64, max_bytes=64 << 20)
        self.scheduler = Scheduler(
            name=NodeName("bureau.gz.example/coordinator"),
            store=self.store,
            registry=self.registry,
            relay=self.relay,
            limits=self.limits,
            grace_s=10,
            max_live_jobs=3,
            now=self.world.now,
            delete_bytes=self.deleted.append,
        )
        self.scheduler.restore()

    def deliver(self):
        while self.mail:
            node, message = self.mail.pop(0)
            if node.up:
                node.react(message)

    def connect(self, *names):
        for name in names or NODES:
            self.nodes[name].connect()

    def submit(self, **changes):
        job = self.scheduler.submit(self.world.job(self.registry.roster, **changes))
        self.deliver()
        return job

    def wait(self, **span):
        self.world.now.pass_(**span)
        self.scheduler.tick()
        self.deliver()

    def job(self, job):
        return self.store.job(job).job

    def states(self, job):
        return {run.node: run.state.value for run in self.job(job).runs}

    def entries(self, *kinds):
        return [e.entry for e in self.store.due_entries() if not kinds or e.entry.kind in kinds]


@pytest.fixture
def bureau(world):
    return FakeBureau(world)


def attempt_of(job, number=1):
    return relay_pb2.Attempt(job=job, attempt=number)


# -- the good way ------------------------------------------------------------------------------------


def test_a_job_that_all_permit_runs_to_its_end(bureau):
    bureau.connect()
    job = bureau.submit()
    assert bureau.job(job).state == "SUCCEEDED"
    assert set(bureau.states(job).values()) == {"DONE"}
    for node in bureau.nodes.values():
        (start,) = node.got("start")
        signers = {decode_envelope(one).signatures[0].keyid for one in start.admissions}
        assert len(signers) == len(NODES)
        assert len(node.got("noted")) == 1
    (release,) = bureau.store.releases_of(job)
    assert bureau.nodes[POLICE].got("stored")[0].release == release.release


def test_every_step_stands_in_the_journal(bureau):
    bureau.connect()
    job = bureau.submit()
    kinds = [entry.kind for entry in bureau.entries()]
    assert kinds == ["roster.published", "job.submitted", "job.started", *["peer.receipt"] * 5]
    (started,) = bureau.entries("job.started")
    assert started.body["participants"] == sorted(NODES)
    admissions = {run.admission for run in bureau.store.job(job).job.runs}
    assert set(started.objects) == admissions
    assert started.refs == sorted(map(sha256_digest, admissions))
    receipts = bureau.entries("peer.receipt")
    assert {(e.body["kind"], e.body["peer"]) for e in receipts} == {("admission", n) for n in NODES} | {
        ("release", POLICE)
    }
    note = bureau.store.releases_of(job)[0].note
    assert receipts[-1].body["sha256"] == decode_envelope(note).payload_digest
    (submitted,) = bureau.entries("job.submitted")
    assert (submitted.job, submitted.body["job_sha256"]) == (job, job)


def test_a_job_submitted_again_is_the_same_job(bureau, world):
    envelope = world.job(bureau.registry.roster)
    first = bureau.scheduler.submit(envelope)
    assert bureau.scheduler.submit(envelope) == first
    assert len(bureau.entries("job.submitted")) == 1


def test_a_forged_submission_is_journaled_and_only_so_many_a_minute(bureau, world):
    genuine = decode_envelope(world.job(bureau.registry.roster))
    forged = Envelope(genuine.payload_type, genuine.payload.replace(b'"k":2', b'"k":1'), genuine.signatures)
    assert forged.payload != genuine.payload
    for _ in range(MAX_REFUSALS_A_MINUTE + 5):
        with pytest.raises(SignatureInvalid):
            bureau.scheduler.submit(forged.encode())
    refused = bureau.entries("job.refused")
    assert len(refused) == MAX_REFUSALS_A_MINUTE
    assert refused[0].job == forged.payload_digest
    assert refused[0].body["code"] == "too-few-signatures"


def test_no_more_jobs_are_taken_in_than_configured(bureau):
    for _ in range(3):
        bureau.submit()
    with pytest.raises(Refused) as refused:
        bureau.submit()
    assert refused.value.code == "too-many-jobs"


# -- refusing, asking, expiring ----------------------------------------------------------------------


def test_one_refusal_refuses_the_job_and_names_the_node(bureau):
    bureau.nodes[HEALTH].answer = "refuse"
    bureau.nodes[INSURANCE].answer = "ask"
    bureau.connect()
    job = bureau.submit()
    found = bureau.job(job)
    assert (found.state, found.code) == ("REFUSED", "no-rule")
    assert HEALTH in found.sentence
    assert all(run.verdict for run in found.runs if run.node != STATISTICS)
    for name in (POLICE, INSURANCE, STATISTICS):
        (stop,) = bureau.nodes[name].got("stop")
        assert (stop.attempt.job, stop.attempt.attempt, stop.code) == (job, 0, "peer-refused")
    assert bureau.nodes[HEALTH].got("stop") == []
    (entry,) = bureau.entries("job.refused")
    assert (entry.body["peer"], entry.body["code"]) == (HEALTH, "no-rule")


def test_a_job_waits_for_approval_and_then_runs(bureau):
    bureau.nodes[INSURANCE].answer = "ask"
    bureau.connect()
    job = bureau.submit()
    assert bureau.job(job).state == "AWAITING_APPROVAL"
    bureau.nodes[INSURANCE].verdict(attempt_of(job), "ask", approvals_needed=2, approvals_given=1)
    view = bureau.scheduler.view(job, LI)
    assert [(r.approvals_given, r.approvals_needed) for r in view.runs if r.node == INSURANCE] == [(1, 2)]
    bureau.nodes[INSURANCE].verdict(attempt_of(job), "permit")
    bureau.deliver()
    assert bureau.job(job).state == "SUCCEEDED"


def test_a_job_nobody_answers_expires(bureau):
    bureau.nodes[INSURANCE].answer = ""
    bureau.connect()
    job = bureau.submit()
    bureau.wait(days=3)
    assert bureau.job(job).state == "EXPIRED"
    assert bureau.entries("job.expired")[0].job == job


def test_a_cancelled_job_stops_everywhere(bureau):
    for node in bureau.nodes.values():
        node.finishes = False
    bureau.connect()
    job = bureau.submit()
    bureau.scheduler.cancel(job, ZHAO)  # anybody of the requester's organisation may
    bureau.deliver()
    assert (bureau.job(job).state, bureau.job(job).code) == ("CANCELLED", "cancelled-by-requester")
    assert all(node.got("stop")[-1].attempt.attempt == 0 for node in bureau.nodes.values())
    with pytest.raises(StateConflict):
        bureau.relay.exchange(job, 1)
    bureau.scheduler.cancel(job, LI)
    assert len(bureau.entries("job.cancelled")) == 1


def test_another_organisations_job_is_as_unknown_as_none(bureau):
    bureau.connect()
    job = bureau.submit()
    for call in (bureau.scheduler.view, bureau.scheduler.record, bureau.scheduler.cancel):
        messages = []
        for asked in (job, JobId("sha256:" + "9" * 64)):
            with pytest.raises(InputError) as error:
                call(asked, WANG)
            messages.append((error.value.code, error.value.message))
        assert messages[0] == messages[1]
    assert bureau.scheduler.views_of(WANG) == []
    assert [view.job for view in bureau.scheduler.views_of(ZHAO)] == [job]
    release = bureau.store.releases_of(job)[0].release
    with pytest.raises(InputError):
        bureau.scheduler.release_for(release, WANG)
    with pytest.raises(Refused) as refused:
        bureau.scheduler.release_for(release, ZHAO)  # sealed to somebody else
    assert refused.value.code == "not-recipient"
    assert bureau.scheduler.release_for(release, LI).release == release


# -- failing -----------------------------------------------------------------------------------------


def running(bureau):
    """A job every node was started for and none has finished."""
    for node in bureau.nodes.values():
        node.finishes = False
    bureau.connect()
    job = bureau.submit()
    assert set(bureau.states(job).values()) == {"RUNNING"}
    return job


def test_a_failed_run_fails_the_job_and_says_which_and_why(bureau):
    job = running(bureau)
    bureau.nodes[STATISTICS].ended(attempt_of(job), "FAILED", "coverage-too-low", "too few rows match")
    found = bureau.job(job)
    assert (found.state, found.code) == ("FAILED", "coverage-too-low")
    assert found.sentence == f"{STATISTICS}: too few rows match"
    assert bureau.states(job) == {n: "FAILED" if n == STATISTICS else "CANCELLED" for n in NODES}
    assert bureau.nodes[POLICE].got("stop")[0].code == "peer-failed"


def test_a_node_that_restarted_gets_a_second_attempt(bureau):
    job = running(bureau)
    for node in bureau.nodes.values():
        node.finishes = True
    bureau.nodes[HEALTH].ended(attempt_of(job), "FAILED", "node-restarted", "it was restarted")
    bureau.deliver()
    found = bureau.job(job)
    assert (found.state, found.attempt) == ("SUCCEEDED", 2)
    assert HEALTH in found.sentence
    (entry,) = bureau.entries("job.failed")
    assert (entry.attempt, entry.body["retry"], entry.body["peer"]) == (1, True, HEALTH)


def test_a_node_that_vanishes_is_lost_after_the_grace_and_not_before(bureau):
    job = running(bureau)
    bureau.nodes[HEALTH].vanish()
    bureau.wait(seconds=9)
    assert bureau.job(job).attempt == 1
    bureau.wait(seconds=2)
    assert bureau.job(job).attempt == 2
    assert bureau.states(job)[HEALTH] == "OFFERED"


def test_a_node_that_comes_back_in_time_with_its_attempt_goes_on(bureau):
    job = running(bureau)
    node = bureau.nodes[HEALTH]
    node.vanish()
    bureau.wait(seconds=9)
    node.connect()
    bureau.wait(seconds=60)
    assert (bureau.job(job).attempt, bureau.states(job)[HEALTH]) == (1, "RUNNING")
    # It never dialled the relay, so the start may have been lost with the stream: it is told again.
    assert len(node.got("start")) == 2
    bureau.relay.exchange(job, 1).join(HEALTH)
    node.vanish()
    node.connect()
    assert len(node.got("start")) == 2


def test_a_node_that_comes_back_without_its_attempt_is_lost(bureau):
    job = running(bureau)
    bureau.nodes[HEALTH].vanish(forgetting=True)
    bureau.nodes[HEALTH].connect()
    assert bureau.job(job).attempt == 1
    bureau.wait(seconds=3)
    assert bureau.job(job).attempt == 2


def test_a_node_that_finished_while_it_was_away_is_not_lost(bureau):
    job = running(bureau)
    node = bureau.nodes[HEALTH]
    node.vanish(forgetting=True)
    node.connect()
    node.ended(attempt_of(job), "DONE")
    bureau.wait(seconds=60)
    assert (bureau.job(job).attempt, bureau.states(job)[HEALTH]) == (1, "DONE")


def test_a_node_that_keeps_vanishing_fails_the_job_by_name(bureau):
    job = running(bureau)
    for _ in range(2):
        bureau.nodes[HEALTH].vanish(forgetting=True)
        bureau.wait(seconds=11)
        bureau.nodes[HEALTH].connect()
    found = bureau.job(job)
    assert (found.state, found.code) == ("FAILED", "node-lost")
    assert HEALTH in found.sentence


def test_a_slow_node_delays_nobody_elses_job(bureau):
    bureau.nodes[HEALTH].admits = False
    bureau.connect()
    slow = bureau.submit()
    bureau.nodes[HEALTH].admits = True
    quick = bureau.submit()
    assert bureau.job(quick).state == "SUCCEEDED"
    bureau.wait(seconds=301)
    found = bureau.job(slow)
    assert (found.state, found.code) == ("FAILED", "timed-out")
    assert HEALTH in found.sentence
    assert POLICE not in found.sentence


def test_a_run_beyond_the_strictest_runtime_times_out(bureau):
    job = running(bureau)  # the admissions allow 600 s
    bureau.wait(seconds=599)
    assert bureau.job(job).state == "RUNNING"
    bureau.wait(seconds=2)
    assert bureau.job(job).code == "timed-out"
    assert set(bureau.states(job).values()) == {"TIMED_OUT"}


def test_done_without_its_release_is_no_success(bureau):
    job = running(bureau)
    for node in bureau.nodes.values():
        node.ended(attempt_of(job), "DONE")
    assert bureau.job(job).state == "RUNNING"
    bureau.nodes[POLICE].upload(attempt_of(job))
    assert bureau.job(job).state == "SUCCEEDED"


def test_a_release_of_a_job_that_failed_is_deleted_and_journaled(bureau):
    job = running(bureau)
    bureau.nodes[POLICE].upload(attempt_of(job))
    (release,) = bureau.store.releases_of(job)
    with pytest.raises(InputError):
        bureau.scheduler.release_for(release.release, LI)  # not before the job has succeeded
    bureau.nodes[HEALTH].ended(attempt_of(job), "FAILED", "guard", "a guard failed")
    assert bureau.store.releases_of(job) == []
    assert bureau.deleted == [release.release]
    (receipt,) = bureau.entries("deletion.receipt")
    assert (receipt.body["release"], receipt.body["code"]) == (release.release, "job-failed")


def test_expired_releases_are_deleted_and_journaled(bureau):
    bureau.connect()
    job = bureau.submit()
    (release,) = bureau.store.releases_of(job)
    bureau.world.now.pass_(days=30)
    bureau.scheduler.clean()
    assert bureau.deleted == [release.release]
    assert bureau.entries("deletion.receipt")[0].body["code"] == "expired"
    with pytest.raises(InputError):
        bureau.scheduler.release_for(release.release, LI)


# -- lying -------------------------------------------------------------------------------------------


def test_a_forged_verdict_ends_the_run_at_once(bureau):
    bureau.nodes[HEALTH].answer = ""
    bureau.connect()
    job = bureau.submit()
    forged = bureau.world.verdict(HEALTH, job, 1, "permit", by=POLICE)
    bureau.nodes[HEALTH].say(answer=relay_pb2.Answer(attempt=attempt_of(job), verdict=forged))
    assert (bureau.job(job).state, bureau.states(job)[HEALTH]) == ("FAILED", "FAILED")


def test_a_node_cannot_answer_for_another(bureau):
    bureau.nodes[HEALTH].answer = ""
    bureau.connect()
    job = bureau.submit()
    other = bureau.world.verdict(HEALTH, job, 1, "permit")
    bureau.nodes[POLICE].say(answer=relay_pb2.Answer(attempt=attempt_of(job), verdict=other))
    assert bureau.states(job)[HEALTH] == "CANCELLED"
    assert bureau.states(job)[POLICE] == "FAILED"


def test_a_second_admission_replaces_the_first_only_before_the_start(bureau):
    bureau.nodes[HEALTH].admits = False
    for node in bureau.nodes.values():
        node.finishes = False
    bureau.connect()
    job = bureau.submit()
    second = bureau.world.admission(POLICE, job, 1, key=recipient_public("another"))
    bureau.nodes[POLICE].say(admitted=relay_pb2.Admitted(attempt=attempt_of(job), admission=second))
    late = bureau.world.admission(HEALTH, job, 1)
    bureau.nodes[HEALTH].say(admitted=relay_pb2.Admitted(attempt=attempt_of(job), admission=late))
    bureau.deliver()
    starts = [tuple(node.got("start")[0].admissions) for node in bureau.nodes.values()]
    assert len(set(starts)) == 1, "every node gets the same admissions"
    assert second in starts[0]
    third = bureau.world.admission(POLICE, job, 1, key=recipient_public("a third"))
    bureau.nodes[POLICE].say(admitted=relay_pb2.Admitted(attempt=attempt_of(job), admission=third))
    assert second == bureau.job(job).run(POLICE).admission


def test_a_stranger_to_the_job_changes_nothing(bureau):
    job = running(bureau)
    before = bureau.job(job)
    stranger = FakeNode(NodeName("stranger.example/node-a"), bureau)
    stranger.up = True
    stranger.ended(attempt_of(job), "FAILED", "guard", "x")
    stranger.ended(attempt_of("sha256:" + "9" * 64), "DONE")
    stranger.say(progress=relay_pb2.RunProgress(attempt=attempt_of(job), phase="x", done=1, total=2))
    assert bureau.job(job) == before
    assert not bureau.scheduler.view(job, LI).runs[0].phase


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"by": HEALTH}, "too-few-signatures"),
        ({"output_class": "B"}, "class-b"),
        ({"name": "another-table"}, "unplanned-release"),
        ({"recipient": "police.gz.example"}, "wrong-recipient"),
        ({"analyst": "zhao"}, "wrong-recipient"),
        ({"sealed_to": sha256_digest(b"nobody")}, "wrong-recipient"),
    ],
)
def test_a_release_that_does_not_hold_is_refused(bureau, changes, code):
    job = running(bureau)
    with pytest.raises(MinshuError) as error:
        bureau.nodes[POLICE].upload(attempt_of(job), **changes)
    assert error.value.code == code
    assert bureau.store.releases_of(job) == []


def test_another_release_in_place_of_a_stored_one_is_refused(bureau):
    job = running(bureau)
    bureau.nodes[POLICE].upload(attempt_of(job))
    with pytest.raises(StateConflict) as conflict:
        bureau.nodes[POLICE].upload(attempt_of(job), sha256=sha256_digest(b"other bytes"))
    assert conflict.value.code == "release-conflict"
    with pytest.raises(StateConflict) as conflict:
        bureau.nodes[POLICE].upload(attempt_of(job), release="f" * 32)
    assert conflict.value.code == "release-conflict"


def test_a_release_sent_again_after_the_end_is_confirmed_again(bureau):
    bureau.connect()
    job = bureau.submit()
    before = bureau.nodes[POLICE].got("stored")
    envelope = bureau.store.releases_of(job)[0]
    piece = rpc.Piece(rpc.Attempt(job, 1), envelope.release, envelope.note, 0, b"", last=True)
    note = bureau.scheduler.expect_release(POLICE, piece)
    bureau.scheduler.release_stored(POLICE, note, envelope.note, envelope.size)
    assert len(bureau.nodes[POLICE].got("stored")) == len(before) + 1
    assert len(bureau.entries("peer.receipt")) == 5


# -- coming and going --------------------------------------------------------------------------------


def test_offers_wait_for_nodes_that_are_away(bureau):
    job = bureau.submit()
    bureau.connect(POLICE, INSURANCE, HEALTH)
    assert bureau.job(job).state == "SUBMITTED"
    bureau.connect(STATISTICS)
    assert bureau.job(job).state == "SUCCEEDED"


def test_a_newer_stream_takes_the_older_ones_place(bureau):
    bureau.connect()
    newer = FakeNode(HEALTH, bureau)
    newer.connect()
    assert bureau.nodes[HEALTH].closed.code == "stream-replaced"
    bureau.scheduler.disconnected(HEALTH, bureau.nodes[HEALTH])
    assert bureau.submit()
    assert newer.got("offer")


def test_attempts_that_are_over_are_stopped_when_their_node_comes_back(bureau):
    job = running(bureau)
    node = bureau.nodes[HEALTH]
    node.vanish()
    bureau.wait(seconds=11)  # attempt 2 takes its place
    node.live.add(rpc.Attempt(JobId("sha256:" + "9" * 64), 1))
    node.heard.clear()
    node.connect()
    stops = {(stop.attempt.job, stop.attempt.attempt) for stop in node.got("stop")}
    assert stops == {(job, 1), ("sha256:" + "9" * 64, 0)}
    assert node.got("offer")[0].attempt.attempt == 2


def test_the_coordinator_restarts_while_a_job_awaits_approval_and_the_job_goes_on(bureau):
    bureau.nodes[INSURANCE].answer = "ask"
    bureau.connect()
    job = bureau.submit()
    bureau.boot()
    assert (bureau.job(job).state, bureau.job(job).attempt) == ("AWAITING_APPROVAL", 1)
    bureau.nodes[INSURANCE].answer = "permit"
    bureau.connect()
    assert (bureau.job(job).state, bureau.job(job).attempt) == ("SUCCEEDED", 1)


def test_the_coordinator_restarts_during_admission_and_the_attempt_goes_on(bureau):
    bureau.nodes[HEALTH].admits = False
    bureau.connect()
    job = bureau.submit()
    bureau.boot()
    bureau.nodes[HEALTH].admits = True
    for node in bureau.nodes.values():
        node.live.clear()  # their processes were restarted, too: the keys of the admissions are gone
    bureau.connect()
    assert (bureau.job(job).state, bureau.job(job).attempt) == ("SUCCEEDED", 1)
    assert len(bureau.nodes[POLICE].got("admit")) == 2


def test_the_coordinator_restarts_while_a_job_runs_and_a_new_attempt_follows(bureau):
    job = running(bureau)
    for node in bureau.nodes.values():
        node.finishes = True
    bureau.boot()
    bureau.connect()
    found = bureau.job(job)
    assert (found.state, found.attempt) == ("SUCCEEDED", 2)
    assert all(
        (job, 1) in {(s.attempt.job, s.attempt.attempt) for s in n.got("stop")} for n in bureau.nodes.values()
    )
    (entry,) = bureau.entries("job.failed")
    assert (entry.body["code"], entry.body["retry"]) == ("coordinator-restarted", True)


@pytest.mark.parametrize("in_rounds", [False, True], ids=["answers at once", "runs in rounds"])
def test_a_job_that_runs_in_rounds_goes_on_in_more_attempts(bureau, monkeypatch, in_rounds):
    if in_rounds:
        monkeypatch.setattr(scheduler, "InRounds", Crosscheck)
    bureau.limits = Limits(max_attempts=2, max_attempts_in_rounds=4)
    bureau.boot()
    job = running(bureau)
    most = 4 if in_rounds else 2
    for attempt in range(1, most):
        assert (bureau.job(job).state, bureau.job(job).attempt) == ("RUNNING", attempt)
        bureau.boot()
        bureau.connect()
    bureau.boot()
    bureau.connect()
    found = bureau.job(job)
    assert (found.state, found.attempt, found.code) == ("FAILED", most, "coordinator-restarted")


def test_figures_of_a_run_are_shown_with_its_progress_and_bad_ones_are_refused(bureau):
    job = running(bureau)
    step = relay_pb2.RunProgress(attempt=attempt_of(job), phase="training", done=3, total=9)
    step.figures.update({"auc": "0.8123", "epsilon": "0.52"})
    bureau.nodes[STATISTICS].say(progress=step)
    analyst = bureau.registry.roster.analysts[0]
    shown = {run.node: dict(run.figures) for run in bureau.scheduler.view(job, analyst).runs}
    assert shown == {n: {"auc": "0.8123", "epsilon": "0.52"} if n == STATISTICS else {} for n in NODES}


@pytest.mark.parametrize(
    "figures",
    [
        {f"figure-{n}": "1" for n in range(9)},
        {"AUC": "0.8"},
        {"auc ": "0.8"},
        {"": "0.8"},
        {"a" * 33: "0.8"},
        {"auc": ""},
        {"auc": "0" * 25},
        {"auc": "0.8\n"},
        {"auc": "准确"},
    ],
    ids=["nine", "capitals", "a blank", "no name", "a long name", "empty", "long", "a line's end", "words"],
)
def test_a_figure_that_is_no_short_text_is_refused(figures):
    step = relay_pb2.RunProgress(attempt=attempt_of("sha256:" + "1" * 64), phase="training", figures=figures)
    with pytest.raises(DecodeError) as caught:
        rpc.read_control(relay_pb2.ControlRequest(progress=step))
    assert caught.value.code == "bad-figures"


def test_after_a_restart_a_node_that_never_comes_back_is_missed(bureau):
    bureau.connect()
    for node in bureau.nodes.values():
        node.finishes = False
    job = bureau.submit()
    bureau.boot()  # attempt 2
    bureau.connect()
    assert set(bureau.states(job).values()) == {"RUNNING"}
    bureau.scheduler.disconnected(HEALTH, bureau.nodes[HEALTH])
    bureau.wait(seconds=11)
    assert (bureau.job(job).state, bureau.job(job).code) == ("FAILED", "node-lost")


# -- answered before ---------------------------------------------------------------------------------


def naming(bureau, earlier, *names):
    """Let these nodes, all where none is named, say that `earlier` has answered the question."""
    for name in names or NODES:
        bureau.nodes[name].says = {"answered": earlier}


def test_a_question_asked_again_is_answered_with_the_stored_releases(bureau):
    bureau.connect()
    first = bureau.submit()
    naming(bureau, first)
    bureau.nodes[HEALTH].answer = "refuse"
    bureau.nodes[INSURANCE].answer = "ask"
    again = bureau.submit()
    found = bureau.job(again)
    assert (found.state, found.code, found.answered_by) == ("SUCCEEDED", "answered-before", first)
    view = bureau.scheduler.view(again, LI)
    assert view.answered_by == first
    assert [release.release for release in view.releases] == [
        release.release for release in bureau.store.releases_of(first)
    ]
    assert all(len(node.got("admit")) == len(node.got("start")) == 1 for node in bureau.nodes.values())
    assert {n for n, node in bureau.nodes.items() if node.got("stop")} == set(NODES) - {HEALTH}
    assert all(stop.code == "answered-before" for stop in bureau.nodes[POLICE].got("stop"))
    receipts = [e for e in bureau.entries("peer.receipt") if e.job == again]
    assert {(e.body["kind"], e.body["code"], e.body["peer"]) for e in receipts} == {
        ("verdict", "answered-before", node) for node in NODES
    }
    # What answers is fetched as what it is: the earlier job's.
    assert bureau.scheduler.release_for(view.releases[0].release, LI).job == first


def test_a_question_asked_again_costs_and_reads_nothing(bureau):
    bureau.connect()
    naming(bureau, bureau.submit())
    before = bureau.store.usage(BUREAU)[0]
    bureau.submit()
    after = bureau.store.usage(BUREAU)[0]
    assert (after.jobs, after.succeeded) == (before.jobs + 1, before.succeeded + 1)
    assert (after.rows, after.records, after.rho) == (before.rows, before.records, before.rho)


def test_what_one_node_does_not_confirm_is_asked_anew(bureau):
    bureau.connect()
    first = bureau.submit()
    naming(bureau, first, POLICE, INSURANCE, HEALTH)
    again = bureau.submit()
    assert (bureau.job(again).state, bureau.job(again).answered_by) == ("SUCCEEDED", "")
    assert bureau.store.releases_of(again)


def test_nodes_that_name_different_jobs_do_not_agree(bureau):
    bureau.connect()
    first, second = bureau.submit(), bureau.submit()
    naming(bureau, first)
    naming(bureau, second, HEALTH)
    assert bureau.job(bureau.submit()).answered_by == ""


@pytest.mark.parametrize(
    "spoil",
    [
        lambda bureau, job: bureau.store.delete_release(bureau.store.releases_of(job)[0].release),
        lambda bureau, job: bureau.world.now.pass_(days=30),
        lambda bureau, job: bureau.store.save_job(replace(bureau.job(job), state=JobState.FAILED)),
        lambda bureau, job: naming(bureau, "sha256:" + "9" * 64),
    ],
    ids=["deleted", "expired", "failed", "unknown"],
)
def test_an_earlier_job_that_has_nothing_to_give_answers_nothing(bureau, spoil):
    bureau.connect()
    first = bureau.submit()
    naming(bureau, first)
    spoil(bureau, first)
    again = bureau.submit()
    assert (bureau.job(again).state, bureau.job(again).answered_by) == ("SUCCEEDED", "")


def test_an_answer_is_not_passed_on_to_another_analyst(bureau, world):
    bureau.connect()
    naming(bureau, bureau.submit())
    bureau.nodes[POLICE].finishes = False
    again = bureau.submit(by="zhao", requester=key_id(signer("zhao").public_key))
    assert (bureau.job(again).state, bureau.job(again).answered_by) == ("RUNNING", "")
    bureau.nodes[POLICE].upload(attempt_of(again), analyst="zhao")
    bureau.nodes[POLICE].ended(attempt_of(again), "DONE")
    assert (bureau.job(again).state, bureau.job(again).code) == ("SUCCEEDED", "")


def test_a_job_that_was_itself_answered_before_answers_no_other(bureau):
    bureau.connect()
    first = bureau.submit()
    naming(bureau, first)
    second = bureau.submit()
    naming(bureau, second)
    assert bureau.job(bureau.submit()).answered_by == ""


def test_a_refusal_waits_for_a_node_that_is_away_and_may_know_the_answer(bureau):
    bureau.connect()
    first = bureau.submit()
    naming(bureau, first)
    bureau.nodes[HEALTH].answer = "refuse"
    bureau.nodes[STATISTICS].vanish()
    again = bureau.submit()
    assert bureau.job(again).state == "SUBMITTED"
    bureau.boot()  # also after a restart
    bureau.connect()
    assert (bureau.job(again).state, bureau.job(again).answered_by) == ("SUCCEEDED", first)


# -- questions ---------------------------------------------------------------------------------------


def explain(bureau, spec=None, meanwhile=lambda: None):
    """Ask, deliver, and return node → (verdict, code)."""
    spec = spec or bureau.world.spec(bureau.registry.roster)

    async def ask():
        question = bureau.world.question(spec)
        answers = bureau.scheduler.explain(spec, question)
        told = asyncio.create_task(anext(answers))
        await asyncio.sleep(0)
        meanwhile()
        bureau.deliver()
        heard = [await told, *[answer async for answer in answers]]
        assert not bureau.scheduler._questions
        return {node: (verdict, code) for node, verdict, code in heard}

    return asyncio.run(ask())


def test_every_node_is_asked_and_nothing_of_it_is_kept(bureau):
    bureau.connect()
    bureau.nodes[HEALTH].answer = "refuse"
    entries = bureau.entries()
    heard = explain(bureau)
    assert {node: Verdict.decode(decode_envelope(v).payload).answer for node, (v, _) in heard.items()} == {
        node: "refuse" if node == HEALTH else "permit" for node in NODES
    }
    assert bureau.store.live_jobs() == bureau.scheduler.views_of(LI) == []
    assert bureau.entries() == entries
    assert not any(node.got("offer") for node in bureau.nodes.values())


def test_a_node_that_is_away_is_told_apart_from_one_that_is_silent(bureau, monkeypatch):
    monkeypatch.setattr(scheduler, "EXPLAIN_S", 0.05)
    bureau.connect(POLICE, INSURANCE, HEALTH)
    bureau.nodes[HEALTH].explain = lambda _: None
    heard = explain(bureau)
    assert heard[STATISTICS] == (b"", "node-away")
    assert heard[HEALTH] == (b"", "no-answer")
    assert heard[POLICE][1] == heard[INSURANCE][1] == ""


@pytest.mark.parametrize(
    "lie", [{"by": POLICE}, {"attempt": 1}, {"job": "sha256:" + "9" * 64}, {"node": POLICE}], ids=str
)
def test_a_dry_answer_that_does_not_hold_is_none(bureau, lie):
    bureau.connect()
    honest = bureau.nodes[HEALTH].explain
    bureau.nodes[HEALTH].explain = lambda asked: honest(asked, **lie)
    heard = explain(bureau)
    assert heard[HEALTH] == (b"", "no-answer")
    assert heard[POLICE][0]


def test_an_answer_nobody_waits_for_is_dropped(bureau):
    bureau.connect()
    node = bureau.nodes[HEALTH]
    heard = explain(bureau)
    asked = node.got("explain")[0]
    node.explain(asked)  # a second one, too late
    outsider = FakeNode(NodeName("stranger.example/node-a"), bureau)
    other = explain(bureau, meanwhile=lambda: outsider.explain(node.got("explain")[-1]))
    assert set(heard) == set(other) == set(NODES)


def test_a_dry_answer_is_no_answer_to_an_offer(bureau):
    bureau.nodes[HEALTH].answer = ""
    bureau.connect()
    job = bureau.submit()
    dry = bureau.world.verdict(HEALTH, job, 0, "permit")
    bureau.nodes[HEALTH].say(answer=relay_pb2.Answer(attempt=attempt_of(job), verdict=dry))
    assert (bureau.job(job).state, bureau.job(job).run(HEALTH).code) == ("FAILED", "wrong-subject")


# -- outcomes ----------------------------------------------------------------------------------------


def tell(bureau, envelope, node=POLICE):
    """Have a node file an outcome; return what it hears."""
    bureau.nodes[node].heard.clear()
    bureau.nodes[node].say(outcome=relay_pb2.OutcomeFiled(outcome=envelope))
    return [*bureau.nodes[node].got("filed"), *bureau.nodes[node].got("stop")]


def file(bureau, envelope):
    """Have an analyst file one."""
    bureau.scheduler.file(*bureau.registry.outcome(envelope), envelope)


def test_the_recipient_of_the_list_files_an_outcome_and_it_stands_with_the_job(bureau, world):
    bureau.connect()
    job = bureau.submit()
    outcome = world.outcome(job)
    for _ in range(2):  # the confirmation was lost
        (stored,) = tell(bureau, outcome)
        assert stored.sha256 == decode_envelope(outcome).payload_digest
    assert list(bureau.scheduler.view(job, LI).outcomes) == [outcome]
    (entry,) = bureau.entries("outcome.filed")
    assert (entry.job, entry.actor, entry.body["recipient"]) == (job, POLICE, organisation_of(POLICE))
    assert (entry.body["checked"], entry.body["confirmed"]) == (5718, 3351)
    assert entry.body["signers"] == [key_id(signer(POLICE).public_key)]


def test_the_analyst_files_an_outcome_of_the_table(bureau, world):
    bureau.connect()
    job = bureau.submit()
    outcome = world.outcome(job, "zhao")  # a colleague of the requester's
    file(bureau, outcome)
    file(bureau, outcome)
    assert list(bureau.scheduler.view(job, LI).outcomes) == [outcome]
    assert len(bureau.entries("outcome.filed")) == 1


@pytest.mark.parametrize(
    ("by", "changes", "code"),
    [
        (HEALTH, {}, "not-a-recipient"),
        (POLICE, {"checked": 9, "confirmed": 0}, "small-count"),
        (POLICE, {"checked": 100, "confirmed": 9}, "small-count"),
        (POLICE, {"checked": 100, "confirmed": 91}, "small-count"),
        (POLICE, {"filed": NOW + timedelta(minutes=6)}, "bad-time"),
    ],
)
def test_an_outcome_that_is_not_kept_is_refused_with_the_reason(bureau, world, by, changes, code):
    bureau.connect()
    job = bureau.submit()
    (stop,) = tell(bureau, world.outcome(job, by, **changes), by)
    assert (stop.attempt.attempt, stop.code) == (0, f"outcome.{code}")
    assert bureau.store.outcomes_of(job) == bureau.entries("outcome.filed") == []


def test_an_outcome_of_an_unknown_job_is_refused(bureau, world):
    bureau.connect()
    assert tell(bureau, world.outcome("sha256:" + "9" * 64))[0].code == "outcome.unknown-job"


@pytest.mark.parametrize(("checked", "confirmed"), [(0, 0), (10, 10), (10, 0), (20, 10)])
def test_figures_of_a_whole_group_and_of_nobody_are_kept(bureau, world, checked, confirmed):
    bureau.connect()
    job = bureau.submit()
    assert tell(bureau, world.outcome(job, checked=checked, confirmed=confirmed))[0].sha256


def test_the_strictest_group_size_of_the_run_counts(bureau, world):
    for node in bureau.nodes.values():
        node.admits = False
    bureau.connect()
    job = bureau.submit()
    for name, size in zip(NODES, (20, 50, None, 30), strict=True):
        admission = world.admission(name, job, 1, constraints=Constraints(min_group_size=size))
        bureau.nodes[name].say(admitted=relay_pb2.Admitted(attempt=attempt_of(job), admission=admission))
    bureau.deliver()
    assert bureau.job(job).state == "SUCCEEDED"
    assert tell(bureau, world.outcome(job, checked=49, confirmed=0))[0].code == "outcome.small-count"
    assert tell(bureau, world.outcome(job, checked=50, confirmed=0))[0].sha256


def test_an_outcome_of_a_job_under_way_waits_and_of_one_that_failed_is_refused(bureau, world):
    job = running(bureau)
    assert tell(bureau, world.outcome(job)) == []
    with pytest.raises(StateConflict) as early:
        file(bureau, world.outcome(job, "li"))
    assert early.value.code == "job-not-succeeded"
    bureau.nodes[HEALTH].ended(attempt_of(job), "FAILED", "guard", "a guard failed")
    assert tell(bureau, world.outcome(job))[0].code == "outcome.job-not-succeeded"


def test_outcomes_are_filed_for_the_job_that_made_the_releases(bureau, world):
    bureau.connect()
    first = bureau.submit()
    naming(bureau, first)
    again = bureau.submit()
    with pytest.raises(StateConflict) as conflict:
        file(bureau, world.outcome(again, "li"))
    assert conflict.value.code == "answered-before"
    assert first in conflict.value.hint


def test_a_forged_outcome_changes_nothing(bureau, world):
    bureau.connect()
    job = bureau.submit()
    for forged in (world.outcome(job, signed_by=HEALTH), world.outcome(job, HEALTH), b"{}", b""):
        assert tell(bureau, forged) == []
    naming_somebody = {"note": "身份证 990101199001011234 已核实"}
    assert tell(bureau, world.outcome(job, **naming_somebody)) == []
    with pytest.raises(DecodeError):
        file(bureau, world.outcome(job, "li", **naming_somebody))
    for forged in (world.outcome(job, "li", "zhao"), world.outcome(job, "li", "mallory"), world.job()):
        with pytest.raises(SignatureInvalid):
            file(bureau, forged)
    assert bureau.store.outcomes_of(job) == []


def test_another_organisations_analyst_cannot_file(bureau, world):
    bureau.connect()
    job = bureau.submit()
    with pytest.raises(InputError) as unknown:
        file(bureau, world.outcome(job, "wang"))
    assert unknown.value.code == "unknown-job"


def test_a_job_takes_only_so_many_outcomes(bureau, world):
    bureau.connect()
    job = bureau.submit()
    for number in range(scheduler.MAX_OUTCOMES):
        assert tell(bureau, world.outcome(job, checked=10_000 + number))[0].sha256
    assert tell(bureau, world.outcome(job, checked=20_000))[0].code == "outcome.too-many-outcomes"


# -- the meter ---------------------------------------------------------------------------------------

SUMMARY = InputSummary(1000, 990, 990, sha256_digest(b"c"), "2026-12-01", sha256_digest(b"q"), "v1")


def line(notion, cost):
    return CostLine("b", notion, cost, "9", "9", NOW)


def test_a_started_attempt_is_metered_from_what_its_nodes_signed(bureau, world):
    for node in bureau.nodes.values():
        node.admits = False
    # One dataset, two budgets in ρ: the dataset is charged once, whichever the budget.
    bureau.nodes[INSURANCE].says = {"costs": (line("zcdp", "0.1"), line("zcdp", "0.1"), line("rows", "70"))}
    bureau.nodes[HEALTH].says = {"costs": (line("zcdp", "0.000000000000000001"), line("pure-dp", "5"))}
    bureau.connect()
    job = bureau.submit()
    assert bureau.store.usage(BUREAU)[0].rows == 0
    for name, rows in zip(NODES, (800, 70, None, 90), strict=True):
        inputs = {} if name == STATISTICS else {DatasetName("people"): SUMMARY}
        admission = world.admission(name, job, 1, constraints=Constraints(max_rows=rows), inputs=inputs)
        bureau.nodes[name].say(admitted=relay_pb2.Admitted(attempt=attempt_of(job), admission=admission))
    bureau.deliver()
    (usage,) = bureau.store.usage(BUREAU)
    assert (usage.purpose, usage.jobs, usage.succeeded, usage.refused) == ("P-2026-001", 1, 1, 0)
    assert (usage.rows, usage.records) == (3000, 70)
    assert usage.rho == 10**14 + 1
    assert metering.rho_text(usage) == "0.100000000000001"


@pytest.mark.parametrize("limit", [None, 20_000])
def test_no_more_records_leave_than_the_other_nodes_read(bureau, world, limit):
    for node in bureau.nodes.values():
        node.admits = False
    bureau.connect()
    job = bureau.submit()
    for name in NODES:
        inputs = {} if name == STATISTICS else {DatasetName("people"): SUMMARY}
        admission = world.admission(name, job, 1, constraints=Constraints(max_rows=limit), inputs=inputs)
        bureau.nodes[name].say(admitted=relay_pb2.Admitted(attempt=attempt_of(job), admission=admission))
    (usage,) = bureau.store.usage(BUREAU)
    assert (usage.rows, usage.records) == (3000, 2000)  # the police receive the list and lend nothing to it


def test_every_attempt_that_started_is_metered_and_no_other(bureau):
    job = running(bureau)
    bureau.nodes[HEALTH].vanish()
    bureau.wait(seconds=11)
    for node in bureau.nodes.values():
        node.finishes = True
    bureau.nodes[HEALTH].connect()
    assert (bureau.job(job).state, bureau.job(job).attempt) == ("SUCCEEDED", 2)
    bureau.nodes[HEALTH].answer = "refuse"
    bureau.submit(purpose="P-2026-002")
    rows = bureau.store._rows(sa.select(_meters).order_by(_meters.c.attempt))
    assert [(row["job"], row["attempt"]) for row in rows] == [(job, 1), (job, 2)]
    assert [(u.purpose, u.jobs, u.refused) for u in bureau.scheduler.usage(LI)] == [
        ("P-2026-001", 1, 0),
        ("P-2026-002", 1, 1),
    ]
    assert bureau.scheduler.usage(WANG) == []


def test_what_a_lying_node_claims_breaks_no_answer():
    usage = Usage(BUREAU, "P-1", 1, 1, 0, 10**30, 10**30, 10**40, NOW)
    assert rpc.usage_row(usage).rows == rpc.usage_row(usage).records == 2**64 - 1
    assert rpc.usage_row(usage).rho == "1" + "0" * 25


def test_usage_is_shown_as_a_table(bureau):
    assert metering.usage_lines([], organisations=True) == ["no jobs yet"]
    usage = Usage(BUREAU, "P-1", 1200, 3, 4, 9_999_999, 20, 15 * 10**13, NOW)
    lines = metering.usage_lines(metering.usage_json([usage]), organisations=True)
    assert lines[0].startswith("organisation       purpose  ")
    assert lines[0].split()[2:] == ["jobs", "succeeded", "refused", "rows", "records", "rho", "last"]
    assert lines[1].split() == [
        BUREAU,
        "P-1",
        "1,200",
        "3",
        "4",
        "9,999,999",
        "20",
        "0.15",
        "2026-12-02T08:00:00Z",
    ]


# -- other versions ----------------------------------------------------------------------------------


def test_a_job_of_another_version_is_refused_with_what_to_do(bureau, world):
    plain = decode_json(world.spec(bureau.registry.roster).encode())
    del plain["expected_use"]
    old = sign(JOB, canonical_json(plain | {"schema": "minshu-job/1"}), [signer("li")]).encode()
    with pytest.raises(DecodeError) as refused:
        bureau.scheduler.submit(old)
    assert refused.value.code == "unknown-schema"
    assert "minshu-job/2" in refused.value.message
    assert "update the older side" in rpc.hint_of(refused.value)


def test_a_verdict_of_another_version_fails_its_run_with_what_to_do(bureau, world):
    bureau.nodes[HEALTH].answer = ""
    bureau.connect()
    job = bureau.submit()
    plain = decode_json(decode_envelope(world.verdict(HEALTH, job, 1, "permit")).payload)
    for added in ("approvers", "costs", "leaves", "answered"):
        del plain[added]
    old = sign(VERDICT, canonical_json(plain | {"schema": "minshu-verdict/1"}), [signer(HEALTH)]).encode()
    bureau.nodes[HEALTH].say(answer=relay_pb2.Answer(attempt=attempt_of(job), verdict=old))
    found = bureau.job(job)
    assert (found.state, found.code) == ("FAILED", "unknown-schema")
    assert "update the older side" in found.hint


# -- rosters -----------------------------------------------------------------------------------------


def publish(bureau, **changes):
    roster = bureau.world.roster(bureau.registry.roster.version + 1, bureau.registry.roster, **changes)
    bureau.registry.publish(bureau.world.signed(roster))
    bureau.scheduler.roster_changed()
    bureau.deliver()
    return roster


def test_a_node_is_told_every_roster_it_lacks_in_order(bureau):
    first = bureau.registry.roster_envelope
    node = bureau.nodes[POLICE]
    node.connect()
    assert node.got("welcome")[0].roster == first
    publish(bureau)
    publish(bureau)
    assert [update.roster for update in node.got("roster")] == bureau.registry.rosters_after(1)
    node.vanish()
    node.heard.clear()
    node.connect(roster_version=1)
    assert node.got("welcome")[0].roster == bureau.registry.roster_envelope
    assert [update.roster for update in node.got("roster")] == bureau.registry.between(1)
    assert len(bureau.registry.between(1)) == 1


def test_a_freshness_statement_from_another_terminal_reaches_every_node_once(bureau):
    present, late = bureau.nodes[POLICE], bureau.nodes[HEALTH]
    present.connect()
    said = bureau.world.freshness(bureau.registry.roster)
    bureau.registry.publish_freshness(said)
    for _ in range(2):
        bureau.scheduler.roster_changed()
    assert [update.freshness for update in present.got("freshness")] == [said]
    late.connect()
    assert [welcome.freshness for welcome in late.got("welcome")] == [said]
    bureau.scheduler.roster_changed()
    assert late.got("freshness") == []
    publish(bureau)
    late.vanish()
    late.heard.clear()
    late.connect(roster_version=1)
    assert late.got("welcome")[0].freshness == b""


def test_a_nodes_next_key_is_kept_confirmed_and_gone_over_to_without_losing_its_stream(bureau):
    node, key = bureau.nodes[POLICE], "police, next"
    node.connect(roster_version=1, catalogue=bureau.world.catalogue(POLICE))
    envelope = bureau.world.rotation(POLICE, key)
    bureau.scheduler.heard(POLICE, rpc.KeyRotation(envelope))
    assert [filed.sha256 for filed in node.got("filed")] == [decode_envelope(envelope).payload_digest]
    bureau.scheduler.heard(POLICE, rpc.KeyRotation(bureau.world.rotation(POLICE, "other", by=(POLICE,))))
    assert len(node.got("filed")) == len(bureau.store.rotations()) == 1
    publish(
        bureau,
        nodes=tuple(
            replace(one, identity_key=signer(key).public_key) if one.name == POLICE else one
            for one in bureau.registry.roster.nodes
        ),
    )
    # The catalogue it sent is its own under the roster that it held then: no reason to cut it off.
    assert node.closed is None
    assert node.got("roster")
    assert bureau.registry.catalogues() == []
    node.vanish()
    node.connect(roster_version=1, catalogue=bureau.world.catalogue(POLICE))
    node.vanish()
    node.connect(roster_version=2, catalogue=bureau.world.catalogue(POLICE, by=key))
    assert bureau.registry.catalogues() == [bureau.world.catalogue(POLICE, by=key)]
    node.vanish()
    with pytest.raises(SignatureInvalid):
        node.connect(roster_version=2, catalogue=bureau.world.catalogue(POLICE))


def test_a_node_that_the_new_roster_does_not_list_is_cut_off_and_its_jobs_fail(bureau):
    job = running(bureau)
    rest = tuple(node for node in bureau.registry.roster.nodes if node.name != HEALTH)
    publish(bureau, nodes=rest)
    assert bureau.nodes[HEALTH].closed.code == "not-in-roster"
    assert bureau.nodes[POLICE].closed is None
    found = bureau.job(job)
    assert (found.state, found.code, found.run(HEALTH).state) == ("FAILED", "not-in-roster", RunState.FAILED)


def test_a_job_for_an_older_roster_is_refused_with_what_to_do(bureau, world):
    envelope = world.job(bureau.registry.roster)
    publish(bureau)
    with pytest.raises(StateConflict) as outdated:
        bureau.scheduler.submit(envelope)
    assert outdated.value.code == "roster-outdated"
    assert "again" in outdated.value.hint


def test_a_catalogue_is_kept_only_from_its_own_node(bureau):
    bureau.nodes[POLICE].connect(catalogue=bureau.world.catalogue(POLICE))
    assert set(bureau.store.catalogues()) == {POLICE}
    with pytest.raises(SignatureInvalid):
        bureau.nodes[HEALTH].connect(catalogue=bureau.world.catalogue(HEALTH, by=POLICE))
    assert set(bureau.store.catalogues()) == {POLICE}


def test_a_catalogue_that_nobody_could_read_is_refused_when_its_node_says_hello(bureau):
    for wrong in ({"evil": {"x": 1}}, {"datasets": [{"name": "a"}]}, {"schema": "minshu-catalogue/9"}):
        with pytest.raises(DecodeError):
            bureau.nodes[POLICE].connect(catalogue=bureau.world.catalogue(POLICE, **wrong))
    with pytest.raises(SignatureInvalid):
        bureau.nodes[POLICE].connect(catalogue=bureau.world.catalogue(HEALTH, by=POLICE))
    assert bureau.store.catalogues() == {}
    # What an earlier release kept unread is handed out no more.
    bureau.store.put_catalogue(POLICE, bureau.world.catalogue(POLICE, evil={"x": 1}))
    assert bureau.registry.catalogues() == []


def test_a_catalogue_that_came_before_the_first_roster_is_kept_with_it(world):
    store = SqlStore(None)
    bureau = FakeBureau.__new__(FakeBureau)
    bureau.world, bureau.store, bureau.mail, bureau.deleted, bureau.limits = world, store, [], [], Limits()
    bureau.nodes = {name: FakeNode(name, bureau) for name in NODES}
    bureau.boot()
    bureau.nodes[POLICE].connect(catalogue=world.catalogue(POLICE))
    assert not store.catalogues()
    bureau.registry.publish(world.signed(world.roster()))
    bureau.scheduler.roster_changed()
    assert set(store.catalogues()) == {POLICE}
    assert bureau.nodes[POLICE].got("roster")


# -- a disk that fails -------------------------------------------------------------------------------


class FailingStore:
    """A store whose next save fails, before or after it became durable."""

    def __init__(self):
        self.inner = SqlStore(None)
        self.fails = ""

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def save_job(self, job, entries=(), meter=None):
        fails, self.fails = self.fails, ""
        if fails == "before":
            raise OSError(28, "No space left on device")
        self.inner.save_job(job, entries, meter)
        if fails == "after":
            raise OSError(5, "Input/output error")


@pytest.mark.parametrize("when", ["before", "after"])
def test_nobody_hears_of_a_change_that_could_not_be_stored(world, when):
    store = FailingStore()
    bureau = FakeBureau(world, store)
    bureau.nodes[STATISTICS].answer = ""
    bureau.connect()
    job = bureau.submit()
    store.fails = when
    with pytest.raises(OSError, match=r"No space|Input/output"):
        bureau.nodes[STATISTICS].verdict(attempt_of(job), "permit")
    assert not any(node.got("admit") for node in bureau.nodes.values())
    # The next start goes by what is stored, and the job comes to its end either way.
    bureau.boot()
    bureau.nodes[STATISTICS].answer = "permit"
    bureau.connect()
    assert (bureau.job(job).state, bureau.job(job).attempt) == ("SUCCEEDED", 1)
