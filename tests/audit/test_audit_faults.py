"""Faults: kill, full disk, lost or torn files, flipped bits, rolled-back copies. Right root or no start."""

import errno
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from test_audit_cosigned_journal import ALICE, NAMES

from audit.folder import Folder
from audit.log import Journal
from audit.note import Checkpoint, Note
from audit.verify import verify_directory
from protocols.errors import MinshuError, StateConflict

ROOT = Path(__file__).parents[2]
JOB = "sha256:" + "ab" * 32

KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, "tests/audit")
from journals import JOB, Place
from audit.folder import Folder

place, kill_at = Place(Path(sys.argv[1])), int(sys.argv[2])
steps = -1

class Killed(Folder):
    def step(self):
        global steps
        if steps >= 0:
            if steps == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            steps += 1

    def write(self, path, data):
        self.step()
        super().write(path, data)
        self.step()

    def sync(self):
        super().sync()
        self.step()

    def remove_partial(self, tile):
        super().remove_partial(tile)
        self.step()

journal = place.open(Killed)
place.fill(journal, 253)
steps = 0
with journal.transaction() as connection:
    connection.execute("CREATE TABLE spent (amount INTEGER)")
    for number in range(3):
        journal.append(connection, "job.refused", {"code": "no-rule"}, job=JOB)
    if kill_at < 0:
        os.kill(os.getpid(), signal.SIGKILL)
print("steps", steps)
"""

# Steps of a publication that fills the first tile: five files written, each with a step before and after,
# their directories flushed, the checkpoint written and flushed, two folders of partial tiles removed.
STEPS = {
    "before the commit": -1,
    "after the commit, before any tile": 0,
    "after the first file": 1,
    "between the tiles": 5,
    "after the tiles, before they are flushed": 9,
    "after the tiles, before the checkpoint": 11,
    "after the checkpoint, before it is flushed": 12,
    "after the checkpoint": 13,
    "while clearing up": 14,
}


def killed(home: Path, kill_at: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", KILLED, str(home), str(kill_at)], cwd=ROOT, capture_output=True, text=True
    )


def another(place, name: str):
    """A second journal beside `place`, with the same key and clock."""
    return type(place)(place.home / name, clock=place.clock)


def rows(place) -> list[bytes]:
    connection = sqlite3.connect(place.database)
    found = [row[0] for row in connection.execute("SELECT entry FROM journal_entry ORDER BY seq")]
    connection.close()
    return found


def test_the_steps_to_kill_at_are_all_there_is(tmp_path):
    done = killed(tmp_path, 99)
    assert (done.stdout.strip(), done.returncode) == ("steps 16", 0), done.stderr


@pytest.mark.parametrize("kill_at", STEPS.values(), ids=STEPS.keys())
def test_a_killed_journal_starts_again_to_the_same_root(place, oracle, kill_at):
    done = killed(place.home, kill_at)
    assert done.returncode == -signal.SIGKILL, done.stderr
    committed = 254 if kill_at < 0 else 257
    published = 257 if kill_at >= 12 else 254
    assert f"\n{published}\n" in (place.directory / "checkpoint").read_text()
    # What auditors fetch meanwhile is whole.
    assert verify_directory(place.directory, [place.vkey]).ok

    place.clock.at += timedelta(minutes=1)
    journal = place.open()
    assert (journal.size, journal.published) == (committed, committed)
    assert journal.root() == oracle(rows(place))
    assert verify_directory(place.directory, [place.vkey]).ok
    left_over = {path for path in place.files() if "000.p" in path and committed == 257 and "/1/" not in path}
    assert left_over == set()
    # The caller's own tables share the fate of the entries.
    with journal.transaction() as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE name = 'spent'").fetchall()
    assert bool(tables) == (committed == 257)
    assert journal.record("job.refused", {"code": "no-rule"}, job=JOB) == committed


COSIGNING = (
    KILLED.partition("journal = place.open")[0]
    + """
from audit.note import Note
from test_audit_cosigned_journal import ALICE

journal = place.open(Killed)
place.fill(journal, 3)
text = Note.decode(journal.checkpoint()).text
journal.add_cosignatures(text, [ALICE.line(text)], quorum=True)
place.fill(journal, 3)
text = Note.decode(journal.checkpoint()).text
if sys.argv[3] == "late":
    place.fill(journal, 3)
steps = 0
journal.add_cosignatures(text, [ALICE.line(text)], quorum=True)
print("steps", steps)
"""
)

# Of the newest checkpoint: it is written and flushed, then its copy with a quorum. Of an earlier one: its
# copy, then the old one. What stands in the folder after so many steps: size of the newest, whether with
# cosignatures, size of the one with a quorum, of the old one.
COSIGNING_STEPS = {
    ("newest", 0): (7, False, 4, 4),
    ("newest", 1): (7, True, 4, 4),
    ("newest", 3): (7, True, 4, 4),
    ("newest", 4): (7, True, 7, 4),
    ("late", 0): (10, False, 4, 4),
    ("late", 1): (10, False, 7, 4),
    ("late", 3): (10, False, 7, 4),
    ("late", 4): (10, False, 7, 7),
}


@pytest.mark.parametrize(("which", "kill_at"), COSIGNING_STEPS)
def test_a_process_killed_around_its_cosignatures_keeps_what_was_durable(place, which, kill_at):
    done = subprocess.run(
        [sys.executable, "-c", COSIGNING, str(place.home), str(kill_at), which],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    size, lines, cosigned, old = COSIGNING_STEPS[which, kill_at]

    def found() -> tuple[int, bool, int, int]:
        notes = [Note.decode((place.directory / name).read_bytes()) for name in NAMES]
        sizes = [Checkpoint.decode(note.text).size for note in notes]
        return sizes[0], len(notes[0].signatures) > 1, sizes[1], sizes[2]

    assert found() == (size, lines, cosigned, old)
    assert verify_directory(place.directory, [place.vkey]).ok
    with place.open() as journal:
        assert (journal.published, journal.cosigned_size) == (size, cosigned)
        # The old one is brought up to date, and nothing that a witness signed is lost.
        assert found() == (size, lines, cosigned, 7 if which == "late" and cosigned == 7 else 4)
        text = Note.decode((place.directory / "checkpoint").read_bytes()).text
        journal.add_cosignatures(text, [ALICE.line(text)], quorum=True)
        assert found() == (size, True, size, cosigned if cosigned < size else 4)


def test_the_steps_around_cosignatures_are_all_there_is(tmp_path):
    for which in ("newest", "late"):
        done = subprocess.run(
            [sys.executable, "-c", COSIGNING, str(tmp_path / which), "99", which],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert (done.stdout, done.returncode) == ("steps 6\n", 0), done.stderr


class Failing(Folder):
    """A folder on a disk that fails at the write with number `at`, before or after persisting it."""

    at = -1
    after = False
    count = 0

    def write(self, path: str, data: bytes) -> None:
        fails = Failing.count == Failing.at
        Failing.count += 1
        if fails and not Failing.after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.directory / path))
        super().write(path, data)
        if fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(self.directory / path))


@pytest.fixture
def failing(monkeypatch) -> type[Failing]:
    for name, value in (("at", -1), ("after", False), ("count", 0)):
        monkeypatch.setattr(Failing, name, value)
    return Failing


@pytest.mark.parametrize("after", [False, True], ids=["before persisting", "after persisting"])
@pytest.mark.parametrize("at", [0, 1, 2, 3, 4, 5])
def test_a_write_that_fails_leaves_the_entry_committed_and_published_later(place, failing, oracle, at, after):
    journal = place.open(failing)
    place.fill(journal, 254)
    was = place.files()["checkpoint"]
    failing.at, failing.after, failing.count = at, after, 0
    with pytest.raises(StateConflict) as caught:
        place.fill(journal, 2)
    assert caught.value.code == "journal-unpublished"
    assert str(place.home) not in caught.value.message
    assert (journal.size, journal.published) == (257, 255)
    assert journal.checkpoint() == was
    assert journal.root() == oracle(rows(place))
    if not (after and at == 5):
        assert place.files()["checkpoint"] == was
        assert verify_directory(place.directory, [place.vkey]).ok

    failing.at = -1
    journal.publish()
    assert journal.published == 257
    assert verify_directory(place.directory, [place.vkey]).root == oracle(rows(place))
    assert not (place.directory / ".new").exists()


def test_after_a_full_disk_the_next_entry_publishes_the_earlier_ones_too(place, failing):
    journal = place.open(failing)
    failing.at, failing.count = 0, 0
    for _ in range(2):
        failing.count = 0
        with pytest.raises(StateConflict):
            journal.record("job.refused", {"code": "no-rule"}, job=JOB)
    failing.at = -1
    assert journal.record("job.refused", {"code": "no-rule"}, job=JOB) == 3
    assert journal.published == 4
    assert verify_directory(place.directory, [place.vkey]).ok


def test_a_disk_that_is_full_at_the_start_refuses_and_recovers(place, failing):
    failing.at = 0
    with pytest.raises(StateConflict) as caught:
        place.open(failing)
    assert caught.value.code == "journal-unpublished"
    failing.at = -1
    assert place.open(failing).published == 1


def test_a_full_database_stores_nothing_and_recovers(place, oracle):
    journal = place.open()
    place.fill(journal, 3)
    pages = journal._connection.execute("PRAGMA page_count").fetchone()[0]
    journal._connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StateConflict) as caught:
        place.fill(journal, 200)
    assert caught.value.code == "journal-write-failed"
    assert "SQLITE_FULL" in caught.value.message
    assert (journal.size, len(rows(place)), journal.published) == (4, 4, 4)
    journal._connection.execute("PRAGMA max_page_count = 100000")
    place.fill(journal, 200)
    assert journal.root() == oracle(rows(place))
    assert verify_directory(place.directory, [place.vkey]).ok


def test_an_object_that_cannot_be_stored_says_so(place, failing):
    journal = place.open(failing)
    failing.at, failing.count = 0, 0
    with pytest.raises(StateConflict) as caught:
        journal.put_object(b"data")
    assert caught.value.code == "journal-write-failed"
    failing.at = -1
    assert journal.get_object(journal.put_object(b"data")) == b"data"


def test_a_real_file_size_limit_is_survived(tmp_path):
    """The kernel refuses to let any file grow: the journal stops, and goes on where it was once it may."""
    script = """
import resource, sys
from pathlib import Path
sys.path.insert(0, "tests/audit")
from journals import JOB, Place
from audit.verify import verify_directory
from protocols.errors import StateConflict

place = Place(Path(sys.argv[1]))
journal = place.open()
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
codes, recorded = set(), 0
for _ in range(400):
    try:
        journal.record("job.refused", {"code": "no-rule"}, job=JOB)
        recorded += 1
    except StateConflict as error:
        codes.add(error.code)
        if len(codes) == 2 or recorded > 300:
            break
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
journal.record("job.refused", {"code": "no-rule"}, job=JOB)
verdict = verify_directory(place.directory, [place.vkey])
print(sorted(codes), verdict.ok, verdict.size == journal.size > recorded)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.startswith("['journal-"), done.stderr
    assert done.stdout.endswith("] True True\n"), done.stdout + done.stderr


def start(place) -> Journal | str:
    try:
        return place.open()
    except StateConflict as error:
        return error.code


def test_every_published_file_lost_alone_is_written_again(closed):
    before = closed.files()
    needed = {"checkpoint", "tile/0/000", "tile/entries/000", "tile/1/000.p/1"} | {
        f"tile/{level}/001.p/44" for level in ("0", "entries")
    }
    assert needed <= set(before)
    for path in sorted(needed):
        (closed.directory / path).unlink()
        with closed.open():
            assert {name: closed.files()[name] for name in needed} == {name: before[name] for name in needed}


def test_a_lost_folder_is_rebuilt_from_the_database(closed):
    before = closed.files()
    shutil.rmtree(closed.directory)
    with closed.open():
        after = closed.files()
    assert after == {path: data for path, data in before.items() if path in after}
    assert verify_directory(closed.directory, [closed.vkey]).ok


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "longer"])
def test_every_published_file_damaged_alone_is_found_out(closed, damage):
    for path, data in closed.files().items():
        places = [0, len(data) // 2, len(data) - 1] if damage == "flip" else [0]
        for at in places:
            bent = {
                "flip": data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :],
                "cut": data[: len(data) // 2],
                "empty": b"",
                "longer": data + b"\x00",
            }[damage]
            (closed.directory / path).write_bytes(bent)
            assert start(closed) == "journal-damaged", (path, at)
        (closed.directory / path).write_bytes(data)
    with closed.open() as journal:
        assert journal.size == 300


ANOTHER = "(SELECT entry, leaf FROM journal_entry WHERE seq = 7)"


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE journal_entry SET seq = 1000 {this}",
        "UPDATE journal_entry SET seq = -1 {this}",
        "DELETE FROM journal_entry {this}",
        "UPDATE journal_entry SET entry = x'7b7d' {this}",
        "UPDATE journal_entry SET entry = CAST(entry AS TEXT) {this}",
        "UPDATE journal_entry SET entry = 5 {this}",
        "UPDATE journal_entry SET entry = substr(entry, 1, length(entry) - 1) {this}",
        "UPDATE journal_entry SET leaf = x'00' {this}",
        "UPDATE journal_entry SET leaf = (SELECT leaf FROM journal_entry WHERE seq = 7) {this}",
        f"UPDATE journal_entry SET (entry, leaf) = {ANOTHER} {{this}}",
    ],
)
@pytest.mark.parametrize("seq", [0, 255, 299])
def test_every_field_of_the_database_is_guarded(closed, statement, seq):
    connection = sqlite3.connect(closed.database)
    connection.execute("DROP TRIGGER journal_entry_no_update")
    connection.execute("DROP TRIGGER journal_entry_no_delete")
    with connection:
        connection.execute(statement.format(this=f"WHERE seq = {seq}"))
    connection.close()
    before = closed.files()
    wanted = {"journal-damaged"}
    if seq == 0:
        wanted.add("journal-identity")
    if seq == 299:
        wanted.add("journal-rolled-back")
    assert start(closed) in wanted
    assert closed.files() == before


def test_a_history_rewritten_in_database_and_tiles_fails_at_the_signature(closed):
    """Whoever holds the disk but not the key can make everything agree, except the signed root."""
    forged = another(closed, "forged")
    with forged.open() as journal:
        forged.fill(journal, 299)
    for path, data in forged.files().items():
        if path != "checkpoint":
            (closed.directory / path).parent.mkdir(parents=True, exist_ok=True)
            (closed.directory / path).write_bytes(data)
    shutil.copy(forged.database, closed.database)
    assert start(closed) == "journal-damaged"
    assert not verify_directory(closed.directory, [closed.vkey]).ok


def test_a_bit_flipped_anywhere_in_the_database_file_never_gives_another_root(place, oracle):
    with place.open() as journal:
        place.fill(journal, 20)
        root = journal.root()
    original, files = place.database.read_bytes(), place.files()
    refused = 0
    for at in range(0, len(original), 61):
        place.database.write_bytes(original[:at] + bytes([original[at] ^ 1 << at % 8]) + original[at + 1 :])
        for suffix in ("-wal", "-shm"):
            place.database.with_name(place.database.name + suffix).unlink(missing_ok=True)
        outcome = start(place)
        if isinstance(outcome, str):
            assert outcome.startswith("journal-")
            refused += 1
        else:
            assert outcome.root() == root  # the bit was in unused space
            outcome.close()
        assert place.files() == files
    assert refused > 50


def test_a_file_that_is_no_database_is_refused(closed):
    closed.database.write_bytes(b"not a database" * 1000)
    assert start(closed) == "journal-damaged"


def test_an_older_database_put_back_is_refused(place):
    with place.open() as journal:
        place.fill(journal, 3)
    older = place.database.read_bytes()
    with place.open() as journal:
        place.fill(journal, 3)
    newer, files = place.database.read_bytes(), place.files()
    place.database.write_bytes(older)
    assert start(place) == "journal-rolled-back"
    place.database.unlink()
    assert start(place) == "journal-rolled-back"
    # Without its checkpoint too, the bundles still show how far the log had come.
    (place.directory / "checkpoint").unlink()
    assert start(place) == "journal-rolled-back"
    place.database.write_bytes(newer)
    with place.open():
        assert place.files() == files


def test_a_checkpoint_whose_rename_was_lost_is_brought_up_to_date(place, oracle):
    with place.open() as journal:
        place.fill(journal, 254)
        early = place.files()
        place.fill(journal, 10)
        late = place.files()
    (place.directory / "checkpoint").write_bytes(early["checkpoint"])
    with place.open() as journal:
        assert journal.published == 265
        assert journal.root() == oracle(rows(place))
    assert place.files() == late
    # All renames of the later publication lost: the folder is the earlier one.
    shutil.rmtree(place.directory)
    for path, data in early.items():
        (place.directory / path).parent.mkdir(parents=True, exist_ok=True)
        (place.directory / path).write_bytes(data)
    with place.open():
        assert place.files() == late


def test_a_bit_flipped_in_the_write_ahead_log_never_gives_another_root(place):
    journal = place.open()
    for _ in range(4):
        place.fill(journal, 1)
    root, crashed = journal.root(), another(place, "crashed")
    shutil.copytree(place.directory, crashed.directory)
    files = crashed.files()
    crashed.database.parent.mkdir()
    wal = crashed.database.with_name(crashed.database.name + "-wal")
    original = place.database.with_name(wal.name).read_bytes()
    outcomes = set()
    for at in range(0, len(original), 997):
        shutil.copy(place.database, crashed.database)
        wal.write_bytes(original[:at] + bytes([original[at] ^ 1 << at % 8]) + original[at + 1 :])
        outcome = start(crashed)
        if isinstance(outcome, str):
            outcomes.add(outcome)
        else:
            assert outcome.root() == root
            outcomes.add("opened")
            outcome.close()
        assert crashed.files() == files
    # SQLite drops a damaged frame and all after it: entries that were already published are then missing.
    assert "journal-rolled-back" in outcomes
    assert outcomes <= {"journal-rolled-back", "journal-damaged", "opened"}


def test_a_checkpoint_of_another_log_or_key_is_refused(closed):
    other = another(closed, "other")
    with other.open(origin="police.gz.example/node-b/journal/1") as journal:
        other.fill(journal, 299)
    shutil.copy(other.directory / "checkpoint", closed.directory / "checkpoint")
    assert start(closed) == "journal-damaged"


def test_a_half_written_temporary_file_is_cleared_away(closed):
    for name in (".new", ".new-object"):
        (closed.directory / name).write_bytes(b"half")
    with closed.open():
        assert not [path for path in closed.files() if path.startswith(".new")]


def test_a_file_that_is_no_tile_is_left_alone(closed):
    (closed.directory / "tile" / "notes.txt").write_text("mine")
    with closed.open() as journal:
        assert journal.size == 300


def test_damage_found_while_running_stops_reading(place):
    journal = place.open()
    place.fill(journal, 3)
    journal._connection.execute("DROP TRIGGER journal_entry_no_update")
    journal._connection.execute("UPDATE journal_entry SET entry = x'7b7d' WHERE seq = 2")
    read = []
    with pytest.raises(MinshuError) as caught:
        read.extend(entry.seq for entry in journal.entries())
    assert caught.value.code == "journal-damaged"


def test_a_database_locked_by_a_stranger_is_reported_not_waited_for_without_end(place, monkeypatch):
    monkeypatch.setattr("audit.rows.BUSY_TIMEOUT_S", 0.05)
    journal = place.open()
    stranger = sqlite3.connect(place.database, isolation_level=None)
    stranger.execute("BEGIN IMMEDIATE")
    with pytest.raises(StateConflict, match="SQLITE_BUSY") as caught:
        journal.record("job.refused", {"code": "no-rule"}, job=JOB)
    assert caught.value.code == "journal-write-failed"
    stranger.execute("ROLLBACK")
    stranger.close()
    assert journal.record("job.refused", {"code": "no-rule"}, job=JOB) == 1
