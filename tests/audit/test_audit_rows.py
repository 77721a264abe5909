"""Bundles packed into one row each: the same log on less disk, still guarded byte for byte."""

import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import pytest
from journals import JOB, Place, signer

from audit import log
from audit.merkle import leaf_hash
from audit.rows import Rows
from audit.verify import verify_directory
from protocols.errors import StateConflict

ROOT = Path(__file__).parents[2]


@pytest.fixture
def eager(monkeypatch) -> None:
    """Packs every full bundle at once, and none is too new."""
    monkeypatch.setattr(log, "_HOT_BUNDLES", 0)
    monkeypatch.setattr(log, "_PACKED_AT_ONCE", 1)


def counts(place: Place) -> tuple[int, int]:
    """Entries that have a row of their own, and bundles that have one."""
    connection = sqlite3.connect(place.database)
    (rows,) = connection.execute("SELECT COUNT(*) FROM journal_entry").fetchone()
    (bundles,) = connection.execute("SELECT COUNT(*) FROM journal_bundle").fetchone()
    connection.close()
    return rows, bundles


def change(place: Place, *statements: str) -> None:
    """Change the database behind the triggers' backs."""
    connection = sqlite3.connect(place.database)
    for kind in ("entry_no_update", "entry_no_delete", "entry_no_insert"):
        connection.execute(f"DROP TRIGGER journal_{kind}")
    for kind in ("bundle_no_update", "bundle_no_delete"):
        connection.execute(f"DROP TRIGGER journal_{kind}")
    with connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


def refused(place: Place) -> str:
    with pytest.raises(StateConflict) as caught:
        place.open()
    return caught.value.code


def test_full_bundles_become_one_row_each_once_they_are_no_longer_new(place):
    journal = place.open()
    place.fill(journal, 7 * 256)
    assert counts(place) == (7 * 256 + 1, 0)
    place.fill(journal, 256)
    assert counts(place) == (4 * 256 + 1, 4)
    # What a large transaction left is caught up with.
    place.fill(journal, 256 * 20)
    assert counts(place) == (8 * 256 + 1, 20)
    place.fill(journal, 1)
    assert counts(place) == (4 * 256 + 2, 24)


def test_a_packed_log_reads_proves_and_verifies_as_before(place, oracle, eager):
    journal = place.open()
    place.fill(journal, 700)
    assert counts(place) == (701 - 512, 2)
    entries = list(journal.entries())
    assert [entry.seq for entry in entries] == list(range(701))
    assert [entry.seq for entry in journal.entries(500)] == list(range(500, 701))
    root = journal.root()
    assert root == oracle([entry.encode() for entry in entries])
    files = place.files()
    journal.close()
    shutil.rmtree(place.directory)
    with place.open() as journal:
        assert (journal.size, journal.root()) == (701, root)
        assert journal.record("clock.step", {}) == 701
    assert files.items() - place.files().items() <= {
        (name, data) for name, data in files.items() if "checkpoint" in name or ".p/" in name
    }
    assert verify_directory(place.directory, [place.vkey]).ok


def test_packing_saves_most_of_the_space(place, eager):
    with place.open() as journal:
        for count in (255, 256, 256, 256):
            place.fill(journal, count)
        raw = sum(len(entry.encode()) for entry in journal.entries())
    connection = sqlite3.connect(place.database)
    (packed,) = connection.execute("SELECT SUM(LENGTH(entries)) FROM journal_bundle").fetchone()
    connection.close()
    assert counts(place) == (0, 4)
    assert packed < raw / 4


def test_a_log_whose_every_row_is_packed_goes_on(place, eager):
    with place.open() as journal:
        place.fill(journal, 255)
    assert counts(place) == (0, 1)
    with place.open() as journal:
        assert (journal.size, journal.published) == (256, 256)
        assert journal.record("clock.step", {}) == 256


def test_what_is_packed_is_as_append_only_as_what_is_not(place, eager):
    journal = place.open()
    place.fill(journal, 300)
    for statement in (
        "DELETE FROM journal_entry WHERE seq = 256",
        "DELETE FROM journal_bundle",
        "UPDATE journal_bundle SET leaves = x''",
        "UPDATE journal_entry SET entry = x''",
        "INSERT INTO journal_entry VALUES (7, x'7b7d', x'00')",
    ):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"), journal.transaction() as connection:
            connection.execute(statement)
    assert journal.size == 301


OTHER = "(SELECT {} FROM journal_bundle WHERE number = 1)"


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM journal_bundle WHERE number = 0",
        "DELETE FROM journal_bundle WHERE number = 1",
        "UPDATE journal_bundle SET number = 7 WHERE number = 1",
        "UPDATE journal_bundle SET number = -1 WHERE number = 0",
        "UPDATE journal_bundle SET entries = substr(entries, 1, length(entries) - 1) WHERE number = 0",
        "UPDATE journal_bundle SET entries = entries || x'00' WHERE number = 0",
        "UPDATE journal_bundle SET entries = 5 WHERE number = 0",
        f"UPDATE journal_bundle SET entries = {OTHER.format('entries')} WHERE number = 0",
        "UPDATE journal_bundle SET leaves = x'00' WHERE number = 1",
        "UPDATE journal_bundle SET leaves = CAST(leaves AS TEXT) WHERE number = 1",
        f"UPDATE journal_bundle SET leaves = {OTHER.format('leaves')} WHERE number = 0",
    ],
)
def test_every_field_of_a_packed_bundle_is_guarded(place, eager, statement):
    with place.open() as journal:
        place.fill(journal, 600)
    before = place.files()
    change(place, statement)
    assert refused(place) in {"journal-damaged", "journal-rolled-back"}
    assert place.files() == before


def test_a_bundle_that_would_unpack_without_end_is_refused_in_bounded_memory(place, eager):
    with place.open() as journal:
        place.fill(journal, 300)
    bomb = zlib.compress(bytes(1 << 25), 1)
    change(place, f"UPDATE journal_bundle SET entries = x'{bomb.hex()}'")
    assert refused(place) == "journal-damaged"


def test_entries_and_leaves_packed_alike_but_not_as_signed_are_refused(place, eager):
    with place.open() as journal:
        place.fill(journal, 300)
        entries = [entry.encode() for entry in journal.entries()][:256]
    entries[9] = entries[9].replace(b"bureau", b"bureaU")
    data = zlib.compress(b"".join(len(entry).to_bytes(2, "big") + entry for entry in entries))
    leaves = b"".join(map(leaf_hash, entries))
    change(place, f"UPDATE journal_bundle SET entries = x'{data.hex()}', leaves = x'{leaves.hex()}'")
    assert refused(place) == "journal-damaged"


def test_what_says_the_logs_keys_keeps_its_row_and_must_agree_with_the_bundle(place, eager):
    with place.open_with(signer(0)) as journal:
        place.fill(journal, 10)
        place.rotate(journal, signer(0), signer(1))
        place.fill(journal, 600)
    rows, bundles = counts(place)
    assert (rows, bundles) == (612 - 512 + 1, 2)
    with place.open_with(signer(1)) as journal:
        assert journal.size == 612
    saved = place.database.read_bytes()
    for statement in (
        "UPDATE journal_entry SET entry = replace(entry, 'key.rotate', 'key.rotatE') WHERE seq = 11",
        "DELETE FROM journal_entry WHERE seq = 11",
        "DELETE FROM journal_statement",
        "UPDATE journal_statement SET statement = x'00'",
    ):
        change(place, statement)
        with pytest.raises(StateConflict) as caught:
            place.open_with(signer(1))
        assert caught.value.code in {"journal-damaged", "journal-key-rotated", "journal-identity"}, statement
        place.database.write_bytes(saved)


def test_a_database_of_an_earlier_release_goes_on_and_is_packed_as_it_grows(place, monkeypatch):
    monkeypatch.setattr(log, "_HOT_BUNDLES", 1 << 30)
    with place.open() as journal:
        place.fill(journal, 5_000)
        root = journal.root()
    monkeypatch.undo()
    connection = sqlite3.connect(place.database)
    for name in ("entry_no_delete", "entry_no_insert", "bundle_no_update", "bundle_no_delete"):
        connection.execute(f"DROP TRIGGER journal_{name}")
    connection.execute("DROP TABLE journal_bundle")
    connection.execute(
        "CREATE TRIGGER journal_entry_no_delete BEFORE DELETE ON journal_entry"
        " BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END"
    )
    connection.close()
    with place.open() as journal:
        assert (journal.size, journal.root()) == (5_001, root)
        assert counts(place) == (5_001, 0)
        journal.record("clock.step", {})
        assert counts(place) == (5_002 - 12 * 256, 12)
    with place.open() as journal:
        assert journal.size == 5_002


def test_damage_is_not_packed_away(place, monkeypatch):
    monkeypatch.setattr(log, "_HOT_BUNDLES", 0)
    journal = place.open()
    place.fill(journal, 600)
    journal._connection.execute("DROP TRIGGER journal_entry_no_update")
    journal._connection.execute("UPDATE journal_entry SET entry = x'7b7d' WHERE seq = 9")
    place.fill(journal, 600)
    assert counts(place) == (1201, 0)
    journal.close()
    assert refused(place) == "journal-damaged"


def test_a_full_disk_puts_packing_off_and_loses_nothing(place, oracle, eager):
    journal = place.open()
    place.fill(journal, 255 - 1)
    pages = journal._connection.execute("PRAGMA page_count").fetchone()[0]
    journal._connection.execute(f"PRAGMA max_page_count = {pages}")
    place.fill(journal, 1)
    assert (journal.size, journal.published, counts(place)) == (256, 256, (256, 0))
    journal._connection.execute("PRAGMA max_page_count = 100000")
    place.fill(journal, 1)
    assert counts(place) == (1, 1)
    assert journal.root() == oracle([entry.encode() for entry in journal.entries()])


def test_readers_and_writers_are_not_disturbed_by_packing(place, eager, oracle):
    journal = place.open()
    place.fill(journal, 200)
    wrong, done = [], threading.Event()

    def read() -> None:
        while not done.is_set():
            try:
                seqs = [entry.seq for entry in journal.entries()]
            except StateConflict as error:
                wrong.append(error.code)
                return
            if seqs != list(range(len(seqs))):
                wrong.append("gap")

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        place.fill(journal, 120)
    done.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert counts(place) == (801 - 3 * 256, 3)
    assert journal.root() == oracle([entry.encode() for entry in journal.entries()])


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, "tests/audit")
from audit import log, rows
from journals import Place

log._HOT_BUNDLES, log._PACKED_AT_ONCE = 0, 1
place, kill_at = Place(Path(sys.argv[1])), sys.argv[2]
move = rows.move_into_bundles

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def killed(connection, packed):
    if kill_at == "before":
        kill()
    move(connection, packed)
    if kill_at == "inside":
        kill()

rows.move_into_bundles = killed
journal = place.open()
place.fill(journal, 255)
if kill_at == "after":
    kill()
"""


@pytest.mark.parametrize(("kill_at", "bundles"), [("before", 0), ("inside", 0), ("after", 1)])
def test_a_process_killed_while_packing_leaves_the_rows_or_the_bundle(place, oracle, kill_at, bundles):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(place.home), kill_at], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert counts(place) == (256 * (1 - bundles), bundles)
    journal = place.open()
    assert (journal.size, journal.published) == (256, 256)
    assert journal.root() == oracle([entry.encode() for entry in journal.entries()])
    assert verify_directory(place.directory, [place.vkey]).ok


def test_a_closed_table_is_read_no_more(place):
    journal = place.open()
    journal.close()
    assert isinstance(journal._rows, Rows)
    with pytest.raises(StateConflict) as caught:
        list(journal._rows.read(0, 1))
    assert caught.value.code == "journal-closed"


def test_reopening_writes_nothing_into_the_database(place):
    with place.open() as journal:
        journal.record("job.refused", {"code": "no-rule"}, job=JOB)
    before = place.database.read_bytes()
    with place.open():
        pass
    assert place.database.read_bytes() == before
