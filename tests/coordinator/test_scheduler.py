"""The scheduler with in-memory nodes that refuse, ask, fail, vanish, come back and equivocate."""

from dataclasses import dataclass, field

import pytest
from collaboration import (
    BUREAU,
    HEALTH,
    INSURANCE,
    NODES,
    POLICE,
    STATISTICS,
    SUITE,
    recipient_public,
    signer,
    spki,
)

from coordinator import rpc
from coordinator.lifecycle import Limits, RunState
from coordinator.registry import Registry
from coordinator.relay import Relay
from coordinator.scheduler import MAX_REFUSALS_A_MINUTE, Scheduler
from coordinator.store.sql import SqlStore
from minshu.v1 import relay_pb2
from protocols.encoding import sha256_digest
from protocols.envelope import Envelope, decode_envelope
from protocols.errors import InputError, MinshuError, Refused, SignatureInvalid, StateConflict
from protocols.ids import JobId, NodeName
from protocols.wire import RosterAnalyst

LI = RosterAnalyst("li", BUREAU, signer("li").public_key, recipient_public("li"))
ZHAO = RosterAnalyst("zhao", BUREAU, signer("zhao").public_key, recipient_public("zhao"))
WANG = RosterAnalyst("wang", "police.gz.example", signer("wang").public_key, recipient_public("wang"))


@dataclass
class FakeNode:
    """A node that answers at once unless told otherwise; its words go through the wire form, both ways."""

    name: NodeName
    bureau: "FakeBureau"
    answer: str = "permit"
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
                    self.verdict(attempt, self.answer)
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
    assert kinds == ["roster.published", "job.submitted", *["peer.receipt"] * 5]
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
    told = [node.got("welcome")[0].roster, *(update.roster for update in node.got("roster"))]
    assert told == bureau.registry.rosters_after(1)


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

    def save_job(self, job, entries=()):
        fails, self.fails = self.fails, ""
        if fails == "before":
            raise OSError(28, "No space left on device")
        self.inner.save_job(job, entries)
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
