"""`check_store`: what every store must do. Run on the one in use, in a file and in memory."""

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from collaboration import BUREAU, HEALTH, NOW, POLICE, SEATS

from coordinator.lifecycle import Job, JobState, Planned, Run, RunState
from coordinator.store import (
    MAX_DUE,
    Enrolment,
    Entry,
    JobRecord,
    Meter,
    Store,
    StoredOutcome,
    StoredReceipt,
    StoredRelease,
    StoredRoster,
    StoredRotation,
    Token,
    Usage,
)
from coordinator.store.sql import SqlStore
from protocols.encoding import sha256_digest
from protocols.errors import Refused, StateConflict
from protocols.ids import JobId, KeyId, NodeName, Organisation

ENTRY = Entry("node.enrolled", {"node": "a", "count": 3}, job="", attempt=0, actor="somebody")


def enrolment(node=POLICE, at=NOW):
    digest = sha256_digest(node.encode())
    return Enrolment(node, b"\x01" * 32, digest, "vkey", b"\x02" * 32, 2, digest, at, ("one", "two"))


def job_record(number=1, **changes):
    job = Job(
        id=JobId(f"sha256:{number:064x}"),
        expires=NOW + timedelta(days=1),
        runs=tuple(Run(node, role) for role, node in SEATS.items()),
        awaited=frozenset({Planned(POLICE, "street-table")}),
    )
    record = JobRecord(
        job=job,
        envelope=b"envelope",
        requester=KeyId("sha256:key"),
        analyst="li",
        organisation=BUREAU,
        job_type="crosscheck/1",
        purpose="P-2026-001",
        legal_basis="DPIA-2026-001",
        expected_use="核实后补登",
        submitted=NOW,
    )
    return replace(record, **changes)


def stored_release(number=1, **changes):
    release = StoredRelease(
        release=f"{number:032x}",
        job=JobId(f"sha256:{1:064x}"),
        attempt=1,
        node=POLICE,
        name=f"table-{number}",
        output_class="A",
        sealed_to=sha256_digest(b"key"),
        note=b"note",
        sha256=sha256_digest(b"sealed"),
        size=6,
        expires=NOW + timedelta(days=number),
    )
    return replace(release, **changes)


def due(store):
    return [one.entry for one in store.due_entries()]


# -- check_store: one function per promise -----------------------------------------------------------


def keeps_a_token_for_one_use_by_its_node_in_time(store: Store) -> None:
    store.add_token(Token(b"\x0a" * 32, POLICE, NOW, NOW + timedelta(minutes=15)))
    assert [token.node for token in store.tokens("0a0a0a0a")] == [POLICE]
    assert store.tokens("0b0b0b0b") == []
    for hashed, who, code in (
        (b"\x0b" * 32, enrolment(), "token-unknown"),
        (b"\x0a" * 32, enrolment(NodeName("other.example/node-a")), "token-unknown"),
        (b"\x0a" * 32, enrolment(at=NOW + timedelta(minutes=15)), "token-expired"),
        (b"\x0a" * 32, enrolment(at=NOW - timedelta(seconds=1)), "clock-moved"),
    ):
        with pytest.raises(Refused) as refused:
            store.enrol(hashed, who, [ENTRY])
        assert refused.value.code == code
    assert (store.enrolment(POLICE), due(store)) == (None, [])
    store.enrol(b"\x0a" * 32, enrolment(), [ENTRY])
    assert store.enrolment(POLICE) == enrolment()
    assert due(store) == [ENTRY]
    with pytest.raises(Refused) as refused:
        store.enrol(b"\x0a" * 32, enrolment())
    assert refused.value.code == "token-used"


def lets_the_latest_enrolment_of_a_node_count(store: Store) -> None:
    for byte in (1, 2):
        store.add_token(Token(bytes([byte]) * 32, POLICE, NOW, NOW + timedelta(minutes=15)))
        store.enrol(bytes([byte]) * 32, replace(enrolment(), identity_key=bytes([byte]) * 32))
    assert [one.identity_key for one in store.enrolments()] == [b"\x02" * 32]


def publishes_rosters_only_forwards(store: Store) -> None:
    first, second = StoredRoster(1, sha256_digest(b"1"), b"one"), StoredRoster(2, sha256_digest(b"2"), b"two")
    assert store.roster() is None
    store.publish(first, None, [ENTRY])
    for roster, previous in (
        (first, None),
        (second, None),
        (second, sha256_digest(b"x")),
        (first, first.digest),
    ):
        with pytest.raises(StateConflict) as conflict:
            store.publish(roster, previous, [ENTRY])
        assert conflict.value.code == "roster-rollback"
    store.publish(second, first.digest)
    assert store.roster() == second
    assert store.rosters_after(0) == [first, second]
    assert store.rosters_after(1) == [second]


def begins_a_chain_of_rosters_anywhere(store: Store) -> None:
    seventh = StoredRoster(7, sha256_digest(b"7"), b"seven")
    store.publish(seventh, sha256_digest(b"6"))
    assert store.roster() == seventh


def keeps_the_newest_freshness_statement_of_each_roster(store: Store) -> None:
    assert store.freshness(1) == b""
    assert store.put_freshness(1, NOW, b"said", [ENTRY])
    for at in (NOW, NOW - timedelta(days=1)):
        assert not store.put_freshness(1, at, b"older", [ENTRY])
    assert store.put_freshness(1, NOW + timedelta(seconds=1), b"newer")
    assert store.put_freshness(2, NOW, b"next")
    assert (store.freshness(1), store.freshness(2), due(store)) == (b"newer", b"next", [ENTRY])


def keeps_an_announcement_between_any_two_keys(store: Store) -> None:
    first = StoredRotation(POLICE, b"1" * 32, b"2" * 32, NOW, b"one")
    other = replace(
        first, next_key=b"3" * 32, arrived=NOW + timedelta(seconds=1), envelope=b"other", refused=True
    )
    store.put_rotation(other)
    store.put_rotation(first, [ENTRY])
    assert store.rotations() == [first, other]
    again = replace(other, arrived=NOW + timedelta(days=1), envelope=b"again", refused=False)
    store.put_rotation(again)
    assert store.rotations() == [first, again]
    assert due(store) == [ENTRY]


def keeps_one_catalogue_per_node(store: Store) -> None:
    store.put_catalogue(POLICE, b"old")
    store.put_catalogue(POLICE, b"new")
    assert store.catalogues() == {POLICE: b"new"}


def keeps_a_job_whole(store: Store) -> None:
    record = job_record()
    assert store.add_job(record, [ENTRY])
    assert store.job(record.job.id) == record
    assert not store.add_job(replace(record, envelope=b"other"), [ENTRY])
    assert due(store) == [ENTRY]
    job = replace(
        record.job,
        state=JobState.FAILED,
        attempt=2,
        deadline=NOW + timedelta(microseconds=1),
        awaited=frozenset(),
        stored=record.job.awaited,
        code="node-lost",
        sentence="gone",
        hint="again",
        answered_by="sha256:earlier",
        runs=tuple(
            replace(
                run,
                state=RunState.LOST,
                verdict=b"v",
                admission=b"a",
                approvals_needed=2,
                approvals_given=1,
                max_runtime_s=60,
                answered="sha256:earlier",
            )
            for run in record.job.runs
        ),
    )
    store.save_job(job, [ENTRY])
    assert store.job(job.id) == replace(record, job=job)
    assert due(store) == [ENTRY, ENTRY]
    with pytest.raises(StateConflict):
        store.save_job(replace(job, id=JobId("sha256:" + "9" * 64)), [ENTRY])
    assert due(store) == [ENTRY, ENTRY]


def lists_live_jobs_and_those_of_an_organisation(store: Store) -> None:
    others = Organisation("other.example")
    for number in (1, 2, 3):
        store.add_job(job_record(number, organisation=others if number == 2 else BUREAU))
    assert [r.job.id[-1] for r in store.live_jobs()] == ["1", "2", "3"]
    assert [r.job.id[-1] for r in store.jobs_of(BUREAU, 10)] == ["3", "1"]
    assert [r.job.id[-1] for r in store.jobs_of(BUREAU, 1)] == ["3"]
    store.save_job(replace(job_record(1).job, state=JobState.SUCCEEDED))
    assert [r.job.id[-1] for r in store.live_jobs()] == ["2", "3"]
    assert store.job(JobId("sha256:" + "9" * 64)) is None


def keeps_releases_until_they_expire(store: Store) -> None:
    one, two = stored_release(1), stored_release(2)
    store.add_release(one, [ENTRY])
    store.add_release(one, [ENTRY])
    store.add_release(two)
    assert due(store) == [ENTRY]
    assert store.releases_of(one.job) == [one, two]
    assert store.release(one.release) == one
    assert store.expired_releases(NOW + timedelta(days=1)) == [one]
    assert store.all_releases() == {one.release, two.release}
    store.delete_release(one.release, [ENTRY])
    store.delete_release(one.release)
    assert store.release(one.release) is None
    assert due(store) == [ENTRY, ENTRY]


def meters_an_attempt_once_and_with_its_start(store: Store) -> None:
    others = Organisation("other.example")
    for number, organisation in ((1, BUREAU), (2, BUREAU), (3, others)):
        store.add_job(job_record(number, organisation=organisation, submitted=NOW + timedelta(hours=number)))
    assert [(row.organisation, row.jobs, row.rows) for row in store.usage()] == [
        (BUREAU, 2, 0),
        (others, 1, 0),
    ]
    one, two = job_record(1).job, job_record(2).job
    for attempt in (1, 2, 2):
        store.save_job(replace(one, attempt=attempt), [], Meter(one.id, attempt, 100, 20, 5, NOW))
    store.save_job(replace(one, state=JobState.SUCCEEDED))
    store.save_job(replace(two, state=JobState.REFUSED))
    unknown = replace(one, id=JobId("sha256:" + "9" * 64))
    with pytest.raises(StateConflict):
        store.save_job(unknown, [], Meter(unknown.id, 1, 100, 20, 5, NOW))
    expected = Usage(BUREAU, "P-2026-001", 2, 1, 1, 200, 40, 10, NOW + timedelta(hours=2))
    assert store.usage(BUREAU) == [expected]
    assert store.usage(Organisation("nobody.example")) == []
    large = replace(job_record(3).job, state=JobState.RUNNING)
    store.save_job(large, [], Meter(large.id, 1, 10**30, 10**30, 10**30, NOW))  # as a node may claim
    assert [row.rho for row in store.usage(others)] == [10**30]


def keeps_outcomes_in_order_and_only_so_many(store: Store) -> None:
    job = job_record().job.id
    outcomes = [StoredOutcome(sha256_digest(b"%d" % n), job, "by", b"%d" % n, NOW) for n in range(3)]
    assert [store.add_outcome(one, 2, [ENTRY]) for one in (*outcomes[:2], outcomes[0])] == [True, True, False]
    with pytest.raises(Refused) as refused:
        store.add_outcome(outcomes[2], 2, [ENTRY])
    assert refused.value.code == "too-many-outcomes"
    assert store.outcomes_of(job) == outcomes[:2]
    assert store.add_outcome(replace(outcomes[2], job=JobId("sha256:other")), 2)
    assert due(store) == [ENTRY, ENTRY]


def refuses_another_release_of_the_same_id_or_name(store: Store) -> None:
    store.add_release(stored_release())
    for other in (stored_release(sha256=sha256_digest(b"x")), stored_release(2, name="table-1")):
        with pytest.raises(StateConflict) as conflict:
            store.add_release(other, [ENTRY])
        assert conflict.value.code == "release-conflict"
    assert due(store) == []


def remembers_nonces_for_their_time(store: Store) -> None:
    assert store.use_nonce("a", NOW)
    assert not store.use_nonce("a", NOW)
    assert store.use_nonce("b", NOW + timedelta(seconds=1))
    store.forget(NOW)
    assert store.use_nonce("a", NOW)
    assert not store.use_nonce("b", NOW)


def forgets_tokens_only_a_day_after_they_expired(store: Store) -> None:
    store.add_token(Token(b"\x0a" * 32, POLICE, NOW - timedelta(minutes=15), NOW))
    store.forget(NOW + timedelta(hours=23))
    assert store.tokens("0a0a0a0a")
    store.forget(NOW + timedelta(hours=24))
    assert not store.tokens("0a0a0a0a")


def hands_due_entries_over_in_order_until_they_are_recorded(store: Store) -> None:
    kinds = ["job.submitted", "job.failed", "job.refused"]
    store.add_job(job_record(), [Entry(kind, {"code": kind}) for kind in kinds])
    assert [entry.kind for entry in due(store)] == kinds
    store.recorded(store.due_entries()[0].id)
    assert [entry.kind for entry in due(store)] == kinds[1:]


def keeps_the_objects_of_due_entries_with_them(store: Store) -> None:
    entries = [replace(ENTRY, objects=(b"second", b"first\0", b"")), ENTRY, replace(ENTRY, objects=(b"x",))]
    for entry in entries:
        store.add_entry(entry)
    assert due(store) == entries
    assert due(store)[0].refs == sorted(map(sha256_digest, (b"second", b"first\0", b"")))
    first, second, third = store.due_entries()
    store.recorded(first.id)
    assert [one.entry for one in store.due_entries()] == entries[1:]
    assert store.due_entries(second.id) == [third]
    assert store.due_entries(third.id) == []


def hands_out_only_so_many_due_entries_at_once(store: Store) -> None:
    store.add_job(job_record(), [replace(ENTRY, attempt=number) for number in range(MAX_DUE + 3)])
    first = store.due_entries()
    assert [one.entry.attempt for one in first] == list(range(MAX_DUE))
    assert [one.entry.attempt for one in store.due_entries(first[-1].id)] == [256, 257, 258]


def keeps_one_receipt_of_a_release_and_only_so_many(store: Store) -> None:
    job = job_record().job.id
    one, other = (StoredReceipt(job, 1, POLICE, f"{n:032x}", sha256_digest(b"%d" % n)) for n in (1, 2))
    assert [store.add_receipt(one, 2, [ENTRY]) for _ in range(2)] == [True, False]
    with pytest.raises(StateConflict) as another:
        store.add_receipt(replace(one, digest=other.digest), 2, [ENTRY])
    assert another.value.code == "other-receipt"
    assert store.add_receipt(other, 2)
    with pytest.raises(Refused) as many:
        store.add_receipt(replace(one, release="3"), 2, [ENTRY])
    assert many.value.code == "too-many-receipts"
    assert store.add_receipt(replace(one, attempt=2), 1)
    assert store.add_receipt(replace(one, node=HEALTH), 1)
    assert due(store) == [ENTRY]


def knows_which_attempts_were_started(store: Store) -> None:
    job = job_record().job
    store.add_job(job_record())
    assert not store.started(job.id, 1)
    store.save_job(job, [], Meter(job.id, 1, 0, 0, 0, NOW))
    assert store.started(job.id, 1)
    assert not store.started(job.id, 2)


CHECKS = [
    keeps_the_objects_of_due_entries_with_them,
    hands_out_only_so_many_due_entries_at_once,
    keeps_one_receipt_of_a_release_and_only_so_many,
    knows_which_attempts_were_started,
    keeps_a_token_for_one_use_by_its_node_in_time,
    lets_the_latest_enrolment_of_a_node_count,
    publishes_rosters_only_forwards,
    begins_a_chain_of_rosters_anywhere,
    keeps_the_newest_freshness_statement_of_each_roster,
    keeps_an_announcement_between_any_two_keys,
    keeps_one_catalogue_per_node,
    keeps_a_job_whole,
    lists_live_jobs_and_those_of_an_organisation,
    keeps_releases_until_they_expire,
    meters_an_attempt_once_and_with_its_start,
    keeps_outcomes_in_order_and_only_so_many,
    refuses_another_release_of_the_same_id_or_name,
    remembers_nonces_for_their_time,
    forgets_tokens_only_a_day_after_they_expired,
    hands_due_entries_over_in_order_until_they_are_recorded,
]


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    store = SqlStore(tmp_path / "store.db" if request.param == "file" else None)
    yield store
    store.close()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_check_store(check: Callable[[Store], None], store: Store) -> None:
    check(store)


# -- what only a file can show -----------------------------------------------------------------------


def test_everything_is_there_after_reopening(tmp_path):
    store = SqlStore(tmp_path / "store.db")
    store.add_job(job_record(), [ENTRY])
    store.close()
    store = SqlStore(tmp_path / "store.db")
    assert store.job(job_record().job.id) == job_record()
    assert due(store) == [ENTRY]
    store.close()


def test_a_database_of_an_earlier_version_gets_the_columns_it_lacks(tmp_path):
    store = SqlStore(tmp_path / "store.db")
    store.add_job(job_record(), [ENTRY])
    store.add_token(Token(b"\x0a" * 32, POLICE, NOW, NOW + timedelta(minutes=15)))
    store.enrol(b"\x0a" * 32, enrolment())
    store.close()
    added = {
        "job": ("legal_basis", "expected_use", "answered_by"),
        "run": ("answered",),
        "enrolment": ("witness_vkeys",),
    }
    with closing(sqlite3.connect(tmp_path / "store.db")) as database:
        for table, columns in added.items():
            for column in columns:
                database.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
        database.execute("DROP TABLE meter")
    store = SqlStore(tmp_path / "store.db")
    assert store.job(job_record().job.id) == replace(job_record(), legal_basis="", expected_use="")
    assert [row.jobs for row in store.usage()] == [1]
    assert store.enrolments() == [replace(enrolment(), witness_vkeys=())]
    store.close()


def test_of_twenty_racing_uses_of_one_token_exactly_one_wins(tmp_path):
    stores = [SqlStore(tmp_path / "store.db") for _ in range(4)]
    stores[0].add_token(Token(b"\x0a" * 32, POLICE, NOW, NOW + timedelta(minutes=15)))
    outcomes: list[str] = []
    barrier = threading.Barrier(20)

    def use(number: int) -> None:
        barrier.wait()
        try:
            stores[number % 4].enrol(
                b"\x0a" * 32, replace(enrolment(), identity_key=bytes([number]) * 32), [ENTRY]
            )
            outcomes.append(f"won {number}")
        except Refused as refused:
            outcomes.append(refused.code)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [int(outcome[4:]) for outcome in outcomes if outcome.startswith("won")]
    assert len(winners) == 1
    assert outcomes.count("token-used") == 19
    kept = stores[0].enrolment(POLICE)
    assert kept is not None
    assert kept.identity_key == bytes(winners) * 32
    assert due(stores[0]) == [ENTRY]
    for store in stores:
        store.close()
