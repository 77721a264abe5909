"""A log that cannot be continued is followed by one that says where it was left."""

import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from journals import JOB, ORIGIN, Place, signer

from audit.generations import Succession, succeed
from audit.note import Checkpoint, VerifierKey, sign_note
from audit.verify import verify_directory
from protocols.encoding import sha256_digest
from protocols.errors import DecodeError, InputError, SignatureInvalid, StateConflict

ROOT = Path(__file__).parents[2]
NEXT = ORIGIN.removesuffix("1") + "2"


def follow(place: Place, **other) -> Succession:
    named = {
        "origin_before": ORIGIN,
        "origin_after": NEXT,
        "signer": place.key.sign,
        "public_key": place.public_key,
        "now": place.clock,
        "reason": "restored-backup",
    } | other
    return succeed(place.directory, place.database, **named)


def code(place: Place, **other) -> str:
    with pytest.raises((StateConflict, InputError, DecodeError, SignatureInvalid)) as caught:
        follow(place, **other)
    return caught.value.code


def rolled_back(place: Place) -> bytes:
    """A node whose database, of 4 entries, is a backup; return the checkpoint over 7 that others saw."""
    with place.open() as journal:
        place.fill(journal, 3)
        with journal.transaction() as connection:
            connection.execute("CREATE TABLE spent (amount INTEGER)")
            connection.execute("INSERT INTO spent VALUES (5)")
    backup = place.database.read_bytes()
    with place.open() as journal:
        place.fill(journal, 3)
        seen = journal.checkpoint()
    place.database.write_bytes(backup)
    with pytest.raises(StateConflict) as caught:
        place.open()
    assert caught.value.code == "journal-rolled-back"
    return seen


def vkey_of(place: Place, origin: str) -> VerifierKey:
    return VerifierKey(origin, 1, place.public_key)


def test_a_restored_backup_is_followed_by_a_log_that_names_the_newest_checkpoint(place):
    seen = rolled_back(place)
    done = follow(place)
    assert (done.generation, done.before.size, done.checkpoint_sha256) == (2, 7, sha256_digest(seen))
    with place.open(origin=NEXT) as journal:
        opened, follows = journal.entries()
        assert (opened.kind, opened.body) == (
            "log.open",
            {
                "vkey": str(vkey_of(place, NEXT)),
                "generation": 2,
                "previous_vkey": str(place.vkey),
                "checkpoint_sha256": sha256_digest(seen),
            },
        )
        assert (follows.kind, follows.body) == (
            "log.successor",
            {
                "checkpoint_sha256": sha256_digest(seen),
                "log": ORIGIN,
                "size": 7,
                "root": "sha256:" + done.before.root.hex(),
                "generation": 2,
                "code": "restored-backup",
            },
        )
        assert journal.get_object(done.checkpoint_sha256) == seen
        assert journal.record("job.refused", {"code": "no-rule"}, job=JOB) == 2
        # The node's own tables stay as the backup has them.
        with journal.transaction() as connection:
            assert connection.execute("SELECT amount FROM spent").fetchone() == (5,)
    assert verify_directory(place.directory, [vkey_of(place, NEXT)]).ok


def test_nothing_of_the_log_before_is_lost_and_none_of_it_can_be_changed(place):
    rolled_back(place)
    before = place.files()
    done = follow(place)
    assert done.archive == place.home / "journal.1"
    kept = Place(place.home)
    archived = {
        path.relative_to(done.archive).as_posix(): path.read_bytes()
        for path in done.archive.rglob("*")
        if path.is_file()
    }
    assert archived == before
    assert verify_directory(done.archive, [kept.vkey]).size == 7
    connection = sqlite3.connect(place.database)
    assert connection.execute("SELECT COUNT(*) FROM journal_entry_1").fetchone() == (4,)
    for statement in ("DELETE FROM journal_entry_1", "UPDATE journal_entry_1 SET leaf = x''"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute(statement)
    connection.close()


def test_a_checkpoint_that_only_a_witness_kept_is_the_one_that_is_named(place):
    with place.open() as journal:
        place.fill(journal, 3)
    shutil.copytree(place.home, place.home.with_name("backup"))
    with place.open() as journal:
        place.fill(journal, 3)
        seen = journal.checkpoint()
    shutil.rmtree(place.home)
    place.home.with_name("backup").rename(place.home)
    done = follow(place, known_checkpoint=seen)
    assert (done.before.size, done.checkpoint_sha256) == (7, sha256_digest(seen))


def test_an_older_checkpoint_than_the_folders_is_not_preferred(place):
    with place.open() as journal:
        early = journal.checkpoint()
        place.fill(journal, 3)
    assert follow(place, known_checkpoint=early).before.size == 4


@pytest.mark.parametrize("damage", ["entry", "tile", "checkpoint", "first entry", "lost database"])
def test_a_damaged_log_can_be_followed_and_its_evidence_is_kept(place, damage):
    with place.open() as journal:
        place.fill(journal, 3)
        seen = journal.checkpoint()
    if damage == "tile":
        (place.directory / "tile/0/000.p/4").write_bytes(b"?")
    elif damage == "checkpoint":
        (place.directory / "checkpoint").write_bytes(b"?")
    elif damage == "lost database":
        place.database.unlink()
    else:
        connection = sqlite3.connect(place.database)
        connection.execute("DROP TRIGGER journal_entry_no_update")
        with connection:
            connection.execute(
                "UPDATE journal_entry SET entry = x'7b' WHERE seq = ?", (0 if damage == "first entry" else 2,)
            )
        connection.close()
    with pytest.raises(StateConflict):
        place.open()
    done = follow(place, reason="damaged", known_checkpoint=seen)
    assert done.before.size == 4
    with place.open(origin=NEXT) as journal:
        assert journal.size == 2


def test_a_log_that_changed_its_key_names_the_key_that_signed_last(place):
    with place.open_with(signer(0)) as journal:
        place.fill(journal, 2)
        place.rotate(journal, signer(0), signer(1))
        place.fill(journal, 2)
    done = follow(place, signer=signer(1).sign, public_key=signer(1).public_key)
    with place.open_with(signer(1), origin=NEXT) as journal:
        opened, _ = journal.entries()
    assert opened.body["previous_vkey"] == str(VerifierKey(ORIGIN, 1, signer(1).public_key))
    assert done.before.size == 6


def test_a_third_generation_follows_a_second(place):
    rolled_back(place)
    follow(place)
    with place.open(origin=NEXT) as journal:
        place.fill(journal, 300)
    third = NEXT.removesuffix("2") + "3"
    done = follow(place, origin_before=NEXT, origin_after=third)
    assert (done.before.size, done.archive.name) == (302, "journal.2")
    with place.open(origin=third) as journal:
        assert journal.size == 2
    connection = sqlite3.connect(place.database)
    assert [connection.execute(f"SELECT COUNT(*) FROM journal_entry_{n}").fetchone()[0] for n in (1, 2)] == [
        4,
        302,
    ]
    connection.close()


def test_a_lost_folder_of_the_new_log_is_rebuilt_with_the_checkpoint_it_rests_on(place):
    seen = rolled_back(place)
    done = follow(place)
    shutil.rmtree(place.directory)
    with place.open(origin=NEXT) as journal:
        assert journal.get_object(done.checkpoint_sha256) == seen


def test_the_ended_log_cannot_be_opened_again(place):
    rolled_back(place)
    follow(place)
    with pytest.raises(StateConflict) as caught:
        place.open()
    assert caught.value.code == "journal-identity"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (ORIGIN, ORIGIN),
        (ORIGIN, ORIGIN.removesuffix("1") + "3"),
        (ORIGIN, "police.gz.example/node-b/journal/2"),
        ("police.gz.example/node-a", NEXT),
        (ORIGIN, ORIGIN.removesuffix("1") + "02"),
    ],
)
def test_only_the_next_generation_of_the_same_log_follows(place, before, after):
    place.open().close()
    assert code(place, origin_before=before, origin_after=after) == "wrong-generation"


def test_a_succession_that_is_refused_leaves_everything_as_it_was(place):
    with place.open() as journal:
        place.fill(journal, 3)
        seen = journal.checkpoint()
    files, database = place.files(), place.database.read_bytes()
    other = Ed25519PrivateKey.from_private_bytes(bytes([7]) * 32)
    foreign = VerifierKey(ORIGIN, 1, other.public_key().public_bytes_raw())
    theirs = sign_note(Checkpoint(ORIGIN, 9, bytes(32)).encode(), foreign, other.sign).encode()
    elsewhere = VerifierKey("police.gz.example/node-b/journal/1", 1, place.public_key)
    another = sign_note(Checkpoint(elsewhere.name, 9, bytes(32)).encode(), elsewhere, place.key.sign)
    assert code(place, reason="It broke.") == "bad-reason"
    assert code(place, known_checkpoint=theirs) == "no-known-signature"
    assert code(place, known_checkpoint=another.encode()) == "no-known-signature"
    assert code(place, known_checkpoint=b"?") == "malformed-note"
    node_b = {"origin_before": elsewhere.name, "origin_after": elsewhere.name.removesuffix("1") + "2"}
    assert code(place, **node_b) == "journal-identity"
    (place.home / "journal.1").mkdir()
    assert code(place) == "archive-exists"
    (place.home / "journal.1").rmdir()
    assert place.files() == files
    assert place.database.read_bytes() == database
    with place.open() as journal:
        assert (journal.size, journal.checkpoint()) == (4, seen)


def test_without_any_checkpoint_there_is_nothing_to_follow(place):
    assert code(place) == "no-checkpoint"
    with place.open() as journal:
        place.fill(journal, 3)
    shutil.rmtree(place.directory)
    assert code(place) == "no-checkpoint"


def test_an_open_journal_is_not_followed(place):
    place.open()
    assert code(place) == "journal-locked"


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, "tests/audit")
from audit import generations, rows
from audit.log import Journal
from journals import ORIGIN, Place

place, kill_at = Place(Path(sys.argv[1])), int(sys.argv[2])
step = 0

def killed(call):
    def wrapped(*arguments, **named):
        global step
        if step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        step += 1
        return call(*arguments, **named)
    return wrapped

rows.set_aside = killed(rows.set_aside)
rows.insert_statement = killed(rows.insert_statement)
Path.rename = killed(Path.rename)
generations._flush = killed(generations._flush)
Journal.open = killed(Journal.open)
generations.succeed(
    place.directory, place.database, origin_before=ORIGIN, origin_after=ORIGIN[:-1] + "2",
    signer=place.key.sign, public_key=place.public_key, now=place.clock, reason="restored-backup",
)
print("steps", step)
"""


@pytest.mark.parametrize("kill_at", range(6))
def test_a_succession_killed_anywhere_is_not_begun_or_finished_by_doing_it_again(place, kill_at):
    seen = rolled_back(place)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(place.home), str(kill_at)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if kill_at == 5:
        assert (done.returncode, done.stdout) == (0, "steps 5\n"), done.stderr
    else:
        assert done.returncode == -signal.SIGKILL, done.stderr
        # Neither log may be opened half-way, except the new one once its folder is free.
        codes = set()
        for origin in (ORIGIN, NEXT) if kill_at < 3 else ():
            with pytest.raises(StateConflict) as caught:
                place.open(origin=origin)
            codes.add(caught.value.code)
        assert codes <= {"journal-rolled-back", "journal-identity", "journal-damaged"}
    for _ in range(2):
        assert follow(place).checkpoint_sha256 == sha256_digest(seen)
    with place.open(origin=NEXT) as journal:
        assert (journal.size, journal.published) == (2, 2)
    assert verify_directory(place.directory, [vkey_of(place, NEXT)]).ok
    assert verify_directory(place.home / "journal.1", [place.vkey]).size == 7
