"""Receipts: what nodes say of their releases is journaled once, and only if it holds."""

from dataclasses import replace

import pytest
from collaboration import HEALTH, INSURANCE, POLICE, SEATS, SUITE, signer

from coordinator.lifecycle import Job, JobState, Run
from coordinator.receipts import Receipts
from coordinator.registry import Registry
from coordinator.store import JobRecord, Meter
from coordinator.store.sql import SqlStore
from minshu.v1 import audit_pb2
from protocols.encoding import sha256_digest
from protocols.envelope import JOB, RELEASE, decode_envelope, key_id, sign
from protocols.ids import JobId
from protocols.wire import organisation_of


@pytest.fixture
def store():
    store = SqlStore(None)
    yield store
    store.close()


@pytest.fixture
def receipts(world, clock, store):
    registry = Registry(store, world.roots, SUITE, clock)
    registry.publish(world.signed(world.roster()))
    return Receipts(registry, store)


@pytest.fixture
def job(world, clock, store, receipts) -> JobId:
    """A job that was started, without the statistics bureau's node, once."""
    envelope = world.job()
    identifier = JobId(decode_envelope(envelope).payload_digest)
    runs = tuple(Run(node, role) for role, node in SEATS.items())
    record = JobRecord(
        job=Job(id=identifier, expires=clock(), runs=runs),
        envelope=envelope,
        requester=key_id(signer("li").public_key),
        analyst="li",
        organisation=organisation_of(POLICE),
        job_type="crosscheck/1",
        purpose="P-2026-001",
        legal_basis="",
        expected_use="",
        submitted=clock(),
    )
    store.add_job(record)
    running = replace(record.job, state=JobState.RUNNING)
    store.save_job(running, [], Meter(identifier, 1, 0, 0, 0, clock()))
    return identifier


def journaled(store):
    return [one.entry for one in store.due_entries() if one.entry.kind == "peer.receipt"]


def test_a_receipt_is_journaled_once_with_what_was_signed(world, store, receipts, job):
    envelope = world.receipt(job, 1)
    kept = receipts.take(POLICE, envelope)
    assert (kept.sha256, kept.code) == (decode_envelope(envelope).payload_digest, "")
    assert receipts.take(POLICE, envelope) == kept
    (entry,) = journaled(store)
    assert (entry.job, entry.attempt, entry.objects) == (job, 1, (envelope,))
    assert entry.refs == [sha256_digest(envelope)]
    assert entry.body == {
        "peer": POLICE,
        "sha256": sha256_digest(b"sealed"),
        "kind": "output.commit",
        "release": entry.body["release"],
        "log": f"{POLICE}/journal/1",
        "seq": 7,
        "envelope_sha256": sha256_digest(envelope),
    }


def test_a_receipt_that_nobody_who_may_say_it_signed_is_not_even_answered(world, store, receipts, job):
    good = world.receipt(job, 1)
    payload = decode_envelope(good).payload
    for node, envelope in (
        (POLICE, world.receipt(job, 1, by=HEALTH)),
        (HEALTH, good),
        (POLICE, world.receipt(job, 1, log=f"{HEALTH}/journal/1")),
        (POLICE, world.receipt(job, 1, log=f"{POLICE}/journal/0")),
        (POLICE, sign(RELEASE, payload, [signer(POLICE)]).encode()),
        (POLICE, good[:-2]),
        (POLICE, b"[" * 100_000),
        (POLICE, b""),
    ):
        assert receipts.take(node, envelope) is None
    assert journaled(store) == []


def test_a_receipt_of_what_was_not_started_here_is_refused(world, store, receipts, job):
    unknown = world.receipt(sha256_digest(b"another job"), 1)
    assert receipts.take(POLICE, unknown).code == "unknown-job"
    assert receipts.take(POLICE, world.receipt(job, 2)).code == "attempt-not-started"
    assert journaled(store) == []


def test_a_stranger_to_the_job_has_no_receipt_to_hand_in(world, clock, store, receipts, job):
    record = store.job(job)
    others = tuple(run for run in record.job.runs if run.node != INSURANCE)
    store.save_job(replace(record.job, runs=others))
    assert receipts.take(INSURANCE, world.receipt(job, 1, INSURANCE)).code == "unknown-job"
    assert journaled(store) == []


def test_a_node_says_one_thing_of_a_release_and_speaks_of_no_more_than_it_makes(world, store, receipts, job):
    first = world.receipt(job, 1)
    assert receipts.take(POLICE, first).code == ""
    assert receipts.take(POLICE, world.receipt(job, 1, seq=8)).code == "other-receipt"
    codes = {receipts.take(POLICE, world.receipt(job, 1, release=f"{n:032x}")).code for n in range(8)}
    assert codes == {"", "too-many-receipts"}
    assert receipts.take(HEALTH, world.receipt(job, 1, HEALTH)).code == "too-many-receipts"
    assert receipts.take(POLICE, first).code == ""
    assert len(journaled(store)) == len({entry.body["release"] for entry in journaled(store)}) < 4


def test_a_receipt_by_letter_is_in_the_journal_and_answered(live):
    live.start()
    spec = live.world.spec(live.roster, requester=key_id(live.card.key))
    job = spec.job_id
    signed = sign(JOB, spec.encode(), [live.analyst.signer()]).encode()
    live.loop.loop.call_soon_threadsafe(live.coordinator.scheduler.submit, signed)
    live.until(lambda: live.coordinator.store.job(job))
    live.until(lambda: live.coordinator.store.job(job).job.ended)
    assert live.coordinator.store.job(job).job.state is JobState.SUCCEEDED
    node = live.nodes[POLICE]
    envelope = live.world.receipt(job, 1)
    handed = audit_pb2.Letter(
        id="0f" * 16,
        to="bureau.gz.example/coordinator",
        receipt=audit_pb2.HandReceipt(receipt=envelope),
    )
    for _ in range(2):
        live.loop.run(node.say(letter=handed))

    def kept():
        return [one for one in node.got("letter") if one.WhichOneof("body") == "receipt_kept"]

    live.until(lambda: len(kept()) == 2)
    assert {(one.id, one.receipt_kept.code) for one in kept()} == {("0f" * 16, "")}
    live.until(lambda: not live.coordinator.store.due_entries())
    journal = live.coordinator._journal
    (entry,) = [e for e in journal.entries() if e.body.get("kind") == "output.commit"]
    assert (entry.kind, entry.job, entry.refs) == ("peer.receipt", job, (sha256_digest(envelope),))
    assert journal.get_object(entry.refs[0]) == envelope
    (started,) = [e for e in journal.entries() if e.kind == "job.started"]
    assert len(started.refs) == len(SEATS)
    admitted = {decode_envelope(journal.get_object(ref)).signatures[0].keyid for ref in started.refs}
    assert admitted == {key_id(signer(node).public_key) for node in SEATS.values()}
