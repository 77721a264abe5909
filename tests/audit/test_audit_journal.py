"""The journal: entries and their owner's state commit together, and a checkpoint covers them at once."""

import json
import sqlite3
import subprocess
import sys
import threading
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from journals import ORIGIN, signer

from audit import log
from audit.entries import Entry, PolicyRef
from audit.folder import Folder
from audit.log import Journal
from audit.merkle import Tile, decode_bundle, split_tile, tile_at, tiles
from audit.note import Checkpoint, VerifierKey, verify_note
from audit.verify import verify_directory
from protocols.encoding import sha256_digest
from protocols.errors import DecodeError, InputError, MinshuError, StateConflict

ROOT = Path(__file__).parents[2]
JOB = "sha256:" + "ab" * 32
GOLDEN = json.loads((ROOT / "tests" / "vectors" / "audit_journal.json").read_text())


def stored(place) -> list[bytes]:
    with sqlite3.connect(place.database) as connection:
        rows = connection.execute("SELECT entry FROM journal_entry ORDER BY seq").fetchall()
    connection.close()
    return [row[0] for row in rows]


def checkpoint(place) -> Checkpoint:
    return Checkpoint.decode(verify_note((place.directory / "checkpoint").read_bytes(), [place.vkey])[0].text)


def test_a_new_journal_opens_with_the_key_it_will_be_verified_with(place):
    journal = place.open()
    (first,) = journal.entries()
    assert (first.seq, first.kind, first.body) == (0, "log.open", {"vkey": journal.vkey})
    assert VerifierKey.parse(journal.vkey) == place.vkey
    assert (journal.size, journal.published, journal.origin) == (1, 1, place.vkey.name)


def test_the_bytes_on_disk_are_the_published_format_of_v1(place, monkeypatch):
    monkeypatch.setattr(log, "VERSION", 1)
    journal = place.open()
    for kind, body in GOLDEN["records"]:
        journal.record(kind, body, job=GOLDEN["job"] if kind.startswith("job.") else "")
    assert journal.vkey == GOLDEN["vkey"]
    files = {path: data.hex() for path, data in place.files().items() if "checkpoint" not in path}
    assert files == GOLDEN["files"]
    assert place.files()["checkpoint"].decode() == GOLDEN["checkpoint"]


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 511, 512, 513])
def test_files_and_root_follow_the_entries_at_every_edge_of_a_tile(size, place, oracle):
    journal = place.open()
    if size > 1:
        place.fill(journal, size - 1)
    entries = stored(place)
    assert len(entries) == journal.size == journal.published == size
    assert journal.root() == oracle(entries) == checkpoint(place).root
    folder = Folder(place.directory)
    bundles = [tile_at(size, -1, index) for index in range(-(-size // 256))]
    read = [entry for tile in bundles for entry in decode_bundle(folder.read_tile(tile), tile.width)]
    assert read == entries
    for tile in tiles(size):
        assert len(split_tile(tile, folder.read_tile(tile))) == tile.width
    wanted = {tile.path for tile in [*bundles, *tiles(size)]} | {"checkpoint"}
    wanted |= {"checkpoint.old"} if size > 1 else set()
    # Partial tiles of earlier checkpoints stay until the full one stands.
    older = {path for path in place.files() if ".p/" in path} - wanted
    assert set(place.files()) - older == wanted
    assert all(Tile.parse(path).width == 1 and size < 256 for path in older)


@pytest.mark.long
def test_files_and_root_follow_the_entries_at_the_third_level(place, oracle):
    journal = place.open()
    place.fill(journal, 65_535)
    assert journal.root() == oracle([entry.encode() for entry in journal.entries()]) == checkpoint(place).root
    journal.record("clock.step", {})
    assert verify_directory(place.directory, [place.vkey]).ok
    journal.close()
    journal = place.open()
    assert journal.root() == oracle([entry.encode() for entry in journal.entries()])


def test_partial_tiles_are_removed_once_the_full_tile_stands(place):
    journal = place.open()
    for _ in range(3):
        journal.record("clock.step", {})
    assert [path for path in place.files() if "entries" in path] == [
        f"tile/entries/000.p/{width}" for width in (1, 2, 3, 4)
    ]
    place.fill(journal, 252)
    assert {path for path in place.files() if path.startswith("tile")} == {
        "tile/0/000",
        "tile/1/000.p/1",
        "tile/entries/000",
    }


def test_an_entry_carries_what_was_said_and_where_it_stands(place):
    journal = place.open()
    policy = PolicyRef(7, JOB, "R5")
    seq = journal.record(
        "job.refused", {"code": "no-rule"}, job=JOB, attempt=2, policy=policy, actor="bureau", refs=[JOB]
    )
    (entry,) = journal.entries(seq)
    assert entry == Entry(
        log=journal.origin,
        seq=1,
        time="2026-12-01T00:00:00.020Z",
        kind="job.refused",
        job=JOB,
        attempt=2,
        policy=policy,
        actor="bureau",
        body={"code": "no-rule"},
        refs=(JOB,),
    )


def test_state_and_entry_commit_together_or_not_at_all(place):
    journal = place.open()
    with journal.transaction() as connection:
        connection.execute("CREATE TABLE spent (amount INTEGER)")
    before = place.files()

    def spend_and_fail() -> None:
        with journal.transaction() as connection:
            connection.execute("INSERT INTO spent VALUES (1)")
            journal.append(connection, "job.refused", {"code": "no-rule"}, job=JOB)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        spend_and_fail()
    assert (journal.size, place.files()) == (1, before)
    with journal.transaction() as connection:
        assert connection.execute("SELECT COUNT(*) FROM spent").fetchone() == (0,)
        connection.execute("INSERT INTO spent VALUES (1)")
        seq = journal.append(connection, "job.refused", {"code": "no-rule"}, job=JOB)
    assert (seq, journal.size, checkpoint(place).size) == (1, 2, 2)


def test_a_transaction_without_an_entry_publishes_nothing(place):
    journal = place.open()
    before = (place.directory / "checkpoint").stat().st_mtime_ns
    with journal.transaction() as connection:
        connection.execute("CREATE TABLE spent (amount INTEGER)")
    assert (place.directory / "checkpoint").stat().st_mtime_ns == before


def test_an_entry_given_up_with_its_savepoint_leaves_no_gap(place):
    journal = place.open()
    with journal.transaction() as connection:
        journal.append(connection, "clock.step", {"code": "kept"})
        connection.execute("SAVEPOINT attempt")
        journal.append(connection, "clock.step", {"code": "given-up"})
        connection.execute("ROLLBACK TO attempt")
        assert journal.append(connection, "clock.step", {"code": "kept-too"}) == 2
    assert [entry.body.get("code") for entry in journal.entries(1)] == ["kept", "kept-too"]
    assert verify_directory(place.directory, [place.vkey]).ok


def test_entries_are_never_changed_or_deleted_through_the_database(place):
    journal = place.open()
    for statement in ("UPDATE journal_entry SET entry = x'00'", "DELETE FROM journal_entry"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"), journal.transaction() as connection:
            connection.execute(statement)
    assert journal.size == 1


def test_appending_outside_the_journals_own_transaction_is_refused(place):
    journal = place.open()
    foreign = sqlite3.connect(":memory:")
    with journal.transaction() as connection:
        pass
    for wrong in (connection, foreign):
        with pytest.raises(StateConflict) as caught:
            journal.append(wrong, "clock.step", {})
        assert caught.value.code == "no-transaction"
    foreign.close()
    assert journal.size == 1


def test_another_thread_cannot_append_to_this_threads_transaction(place):
    journal, caught = place.open(), []

    def intrude(connection):
        try:
            journal.append(connection, "clock.step", {})
        except StateConflict as error:
            caught.append(error.code)

    with journal.transaction() as connection:
        thread = threading.Thread(target=intrude, args=(connection,))
        thread.start()
        thread.join()
    assert caught == ["no-transaction"]


def test_a_transaction_inside_a_transaction_is_refused_not_deadlocked(place):
    journal = place.open()
    with journal.transaction() as connection:
        for nested in (
            lambda: journal.record("clock.step", {}),
            lambda: journal.transaction().__enter__(),
            journal.close,
        ):
            with pytest.raises(StateConflict) as caught:
                nested()
            assert caught.value.code == "nested-transaction"
        journal.append(connection, "clock.step", {})
    assert journal.size == 2


def test_a_body_that_ends_the_transaction_itself_is_told_so(place):
    journal = place.open()

    def end_it() -> None:
        with journal.transaction() as connection:
            journal.append(connection, "clock.step", {})
            connection.execute("ROLLBACK")

    with pytest.raises(StateConflict) as caught:
        end_it()
    assert caught.value.code == "no-transaction"
    assert journal.record("clock.step", {}) == 1


def test_a_statement_that_breaks_the_format_is_refused_and_leaves_nothing(place):
    journal = place.open()
    with pytest.raises(DecodeError):
        journal.record("job.refused", {"code": "no-rule", "note": "x"}, job=JOB)
    with pytest.raises(DecodeError), journal.transaction() as connection:
        journal.append(connection, "job.forgotten", {})
    assert (journal.size, journal.record("clock.step", {})) == (1, 1)


def test_a_closed_journal_says_so(place):
    journal = place.open()
    journal.close()
    journal.close()
    for use in (lambda: journal.record("clock.step", {}), lambda: list(journal.entries())):
        with pytest.raises(StateConflict) as caught:
            use()
        assert caught.value.code == "journal-closed"


def test_reopening_changes_nothing(place):
    with place.open() as journal:
        place.fill(journal, 300)
        root, files = journal.root(), place.files()
    with place.open() as again:
        assert (again.size, again.published, again.root()) == (301, 301, root)
        assert again.checkpoint() == files["checkpoint"]
    assert place.files() == files


def test_a_second_process_on_one_journal_exits(place):
    place.open()
    script = f"""
import sys
from datetime import UTC, datetime
from pathlib import Path
from audit.log import Journal
from protocols.errors import StateConflict
try:
    Journal.open(
        Path({str(place.directory)!r}), database=Path(sys.argv[1]), origin={place.vkey.name!r},
        signer=lambda text: b"", public_key=bytes.fromhex({place.public_key.hex()!r}),
        now=lambda: datetime.now(UTC),
    )
except StateConflict as error:
    sys.exit(error.code)
"""
    for database in (place.database, place.home / "another.sqlite"):
        done = subprocess.run(
            [sys.executable, "-c", script, str(database)], cwd=ROOT, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr.strip()) == (1, "journal-locked")


def test_a_second_journal_in_one_process_is_refused_until_the_first_closes(place):
    first = place.open()
    for elsewhere in ({}, {"directory": place.home / "other"}, {"database": place.home / "other.sqlite"}):
        with pytest.raises(StateConflict) as caught:
            place.open(**elsewhere)
        assert caught.value.code == "journal-locked"
    first.close()
    assert place.open().size == 1


def test_another_logs_database_is_refused(place):
    place.open().close()
    other = Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32)
    for wrong in (
        {"origin": "police.gz.example/node-b/journal/1"},
        {"signer": other.sign, "public_key": other.public_key().public_bytes_raw()},
    ):
        with pytest.raises(StateConflict) as caught:
            place.open(**wrong)
        assert caught.value.code == "journal-identity"


@pytest.mark.parametrize("origin", ["", "two words", "a+b", "a\nb"])
def test_an_origin_that_no_vkey_can_name_is_refused(place, origin):
    with pytest.raises(DecodeError):
        place.open(origin=origin)


def test_a_signer_with_another_key_publishes_nothing(place):
    other = Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32)
    with pytest.raises(StateConflict, match="signer-mismatch") as caught:
        place.open(signer=other.sign)
    assert caught.value.code == "journal-unpublished"
    assert not (place.directory / "checkpoint").exists()
    assert place.open().published == 1


def test_a_clock_that_runs_back_a_little_is_held(place):
    journal = place.open()
    place.clock.at -= timedelta(milliseconds=900)
    journal.record("job.refused", {"code": "no-rule"}, job=JOB)
    opened, refused = journal.entries()
    assert refused.time == opened.time
    assert verify_directory(place.directory, [place.vkey]).ok


def test_a_clock_that_runs_back_is_said_in_the_log(place):
    journal = place.open()
    journal.record("job.refused", {"code": "no-rule"}, job=JOB)
    place.clock.at -= timedelta(hours=1)
    seq = journal.record("job.refused", {"code": "no-rule"}, job=JOB)
    step, after = list(journal.entries())[2:]
    assert (seq, step.kind, after.kind) == (3, "clock.step", "job.refused")
    assert step.body == {"previous_time": "2026-12-01T00:00:00.020Z", "step_ms": -3_599_990}
    assert step.time == "2026-11-30T23:00:00.030Z" <= after.time
    assert verify_directory(place.directory, [place.vkey]).ok


def test_a_time_without_a_zone_is_refused(place):
    journal = place.open()
    journal._now = lambda: place.clock().replace(tzinfo=None)
    with pytest.raises(InputError):
        journal.record("clock.step", {})
    assert journal.size == 1


STEPS = ["record", "two", "roll back", "reopen", "rotate"]


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(-(10**10), 10**10), st.sampled_from(STEPS)), max_size=12))
def test_any_history_verifies(place, tmp_path_factory, steps):
    place.home = tmp_path_factory.mktemp("history")
    journal, said, key = place.open(), 0, 0
    for jump_ms, step in steps:
        place.clock.at += timedelta(milliseconds=jump_ms)
        if step == "record":
            journal.record("job.refused", {"code": "no-rule"}, job=JOB)
            said += 1
        elif step == "two":
            place.fill(journal, 2)
            said += 2
        elif step == "roll back":
            with pytest.raises(ZeroDivisionError):
                place.fill_and_fail(journal)
        elif step == "rotate":
            place.rotate(journal, signer(key), signer(key + 1))
            key += 1
        else:
            journal.close()
            journal = place.open_with(signer(key))
    entries = list(journal.entries())
    assert [entry.seq for entry in entries] == list(range(journal.size))
    assert sum(entry.kind == "job.refused" for entry in entries) == said
    verdict = verify_directory(place.directory, [place.vkey])
    assert (verdict.problems, verdict.size, verdict.root) == ((), journal.size, journal.root())
    assert verdict.keys == tuple(str(VerifierKey(ORIGIN, 1, signer(n).public_key)) for n in range(key + 1))
    journal.close()


def test_eight_threads_leave_no_gap_and_each_learns_its_own_seq(place):
    journal, seqs, errors = place.open(), {}, []

    def work(worker: int) -> None:
        try:
            for number in range(25):
                if number % 5:
                    line = worker * 1000 + number
                    seqs[line] = journal.record("job.refused", {"code": "no-rule", "line": line}, job=JOB)
                else:
                    with journal.transaction() as connection:
                        for line in (worker * 1000 + number, worker * 1000 + 500 + number):
                            seqs[line] = journal.append(
                                connection, "job.refused", {"code": "no-rule", "line": line}, job=JOB
                            )
        except MinshuError as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sorted(seqs.values()) == list(range(1, 8 * 30 + 1))
    assert {entry.body["line"]: entry.seq for entry in journal.entries(1)} == seqs
    assert journal.published == journal.size == 8 * 30 + 1
    assert verify_directory(place.directory, [place.vkey]).ok


class Slow(Folder):
    """Holds the checkpoint back until `gate` opens, and counts them."""

    gate = threading.Event()
    reached = threading.Event()
    checkpoints = 0

    def write(self, path: str, data: bytes) -> None:
        if path == "checkpoint":
            Slow.reached.set()
            Slow.gate.wait()
            Slow.checkpoints += 1
        super().write(path, data)


def test_threads_that_wait_share_one_commit_and_one_checkpoint(place):
    Slow.gate.set()
    journal = place.open(Slow)
    Slow.gate.clear()
    Slow.reached.clear()
    Slow.checkpoints = 0
    say = threading.Thread(target=journal.record, args=("clock.step", {}))
    say.start()
    Slow.reached.wait()
    waiting = [threading.Thread(target=journal.record, args=("clock.step", {})) for _ in range(8)]
    for thread in waiting:
        thread.start()
    while len(journal._waiting) < 8:
        threading.Event().wait(0.001)
    Slow.gate.set()
    for thread in [say, *waiting]:
        thread.join()
    assert (journal.size, journal.published, Slow.checkpoints) == (10, 10, 2)


def test_one_bad_statement_does_not_take_its_neighbours_down(place):
    journal, outcomes = place.open(), []

    def say(code: str) -> None:
        try:
            outcomes.append(journal.record("clock.step", {"code": code}))
        except DecodeError:
            outcomes.append("refused")

    threads = [threading.Thread(target=say, args=(code,)) for code in ("ok", "NOT OK", "fine")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, outcomes)) == ["1", "2", "refused"]


def test_a_waiting_thread_that_is_interrupted_hands_the_lead_on(place, monkeypatch):
    journal = place.open()
    journal._led = True  # as if another thread were committing

    class Interrupted(threading.Event):
        def wait(self, timeout=None):
            # The leader passes the lead to this thread in the moment it is interrupted.
            journal._pass_lead()
            raise KeyboardInterrupt

    monkeypatch.setattr(log, "_Waiting", partial(log._Waiting, awake=Interrupted()))
    with pytest.raises(KeyboardInterrupt):
        journal.record("clock.step", {})
    monkeypatch.undo()
    assert journal.record("clock.step", {}) == 1
    assert journal.size == 2


def test_objects_are_stored_under_their_digest(place):
    journal = place.open()
    data = b"an envelope"
    digest = journal.put_object(data)
    assert digest == sha256_digest(data) == journal.put_object(data)
    name = digest.removeprefix("sha256:")
    assert place.files()[f"objects/sha256/{name[:2]}/{name}"] == data
    assert journal.get_object(digest) == data
    assert journal.get_object(sha256_digest(b"other")) is None


def test_a_damaged_object_is_found_out_and_can_be_stored_again(place):
    journal = place.open()
    digest = journal.put_object(b"an envelope")
    name = digest.removeprefix("sha256:")
    for damaged in (b"an Envelope", b"", b"an envelope and more"):
        (place.directory / "objects" / "sha256" / name[:2] / name).write_bytes(damaged)
        with pytest.raises(DecodeError) as caught:
            journal.get_object(digest)
        assert caught.value.code == "object-damaged"
        journal.put_object(b"an envelope")
        assert journal.get_object(digest) == b"an envelope"


def test_an_object_name_that_is_no_digest_is_refused(place):
    with pytest.raises(DecodeError):
        place.open().get_object("sha256:../../checkpoint")


def test_a_reader_of_the_database_is_not_in_the_way(place):
    journal = place.open()
    reader = sqlite3.connect(place.database)
    reader.execute("BEGIN")
    assert reader.execute("SELECT COUNT(*) FROM journal_entry").fetchone() == (1,)
    journal.record("clock.step", {})
    assert reader.execute("SELECT COUNT(*) FROM journal_entry").fetchone() == (1,)
    reader.close()
    assert journal.published == 2


def test_the_journal_opens_as_a_context_and_closes(place):
    with place.open() as journal:
        assert isinstance(journal, Journal)
    assert place.open().size == 1
