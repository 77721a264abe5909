"""Key rotation: the log says which key is its own, and two keys say so together when it changes."""

import errno
import json
import os
import shutil
import signal
import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import ClassVar

import pytest
from end_to_end.c2sp import verified
from journals import JOB, ORIGIN, Place, signer, statement

from audit import log
from audit.entries import VERSION, Entry
from audit.folder import Folder
from audit.log import Journal
from audit.merkle import EMPTY_ROOT, ENTRIES, Tile, TileBuilder, encode_bundle, leaf_hash
from audit.note import Checkpoint, Note, VerifierKey, verify_note
from audit.rotation import read_statement
from audit.verify import verify_directory
from protocols.encoding import sha256_digest
from protocols.envelope import JOB as JOB_TYPE
from protocols.envelope import MAX_ENVELOPE_BYTES, KeySigner, decode_envelope, key_id
from protocols.errors import DecodeError, InputError, MinshuError, SignatureInvalid, StateConflict
from protocols.wire import Rotation

A, B, C = signer(0), signer(1), signer(2)
GOLDEN = json.loads((Path(__file__).parents[1] / "vectors" / "audit_journal_v2.json").read_text())


def vkey(key: KeySigner, name: str = ORIGIN) -> VerifierKey:
    return VerifierKey(name, 1, key.public_key)


KEYS = [vkey(A), vkey(B), vkey(C)]


def signed_by(place: Place) -> list[VerifierKey]:
    """The keys of the checkpoint's signature lines, in order; each signature holds."""
    note = Note.decode((place.directory / "checkpoint").read_bytes())
    signers = verify_note(note.encode(), KEYS)[1]
    assert len(signers) == len(note.signatures)
    return list(signers)


def object_path(place: Place, digest: str) -> Path:
    name = digest.removeprefix("sha256:")
    return place.directory / "objects" / "sha256" / name[:2] / name


def codes(place: Place, *keys: VerifierKey) -> set[str]:
    verdict = verify_directory(place.directory, keys or [vkey(A)])
    assert verdict.ok == (not verdict.problems)
    return {problem.code for problem in verdict.problems}


def start(place: Place, *signers: KeySigner) -> Journal | str:
    try:
        return place.open_with(*signers)
    except StateConflict as error:
        return error.code


# -- an honest rotation --------------------------------------------------------------------------------------


def test_a_rotation_is_an_entry_and_a_statement_under_a_checkpoint_of_both_keys(place):
    journal = place.open_with(A)
    place.fill(journal, 2)
    said = statement(A, B, journal.size, journal.root())
    root = journal.root()
    assert journal.rotate(B, said) == 3
    (entry,) = journal.entries(3)
    assert (entry.v, entry.kind, entry.body) == (
        VERSION,
        "key.rotate",
        {
            "vkey": str(vkey(B)),
            "previous_vkey": str(vkey(A)),
            "identity": key_id(B.public_key),
            "envelope_sha256": sha256_digest(said),
            "size": 3,
            "root": "sha256:" + root.hex(),
        },
    )
    assert signed_by(place) == [vkey(A), vkey(B)]
    assert object_path(place, sha256_digest(said)).read_bytes() == said
    assert (journal.vkey, journal.public_key) == (str(vkey(B)), B.public_key)
    assert VerifierKey.parse(journal.vkey).name == journal.origin == ORIGIN


def test_from_then_on_the_new_key_signs_alone(place):
    journal = place.open_with(A)
    place.rotate(journal, A, B)
    journal.record("clock.step", {})
    assert signed_by(place) == [vkey(B)]
    journal.close()
    for keys in ([B], [B, A], [A, B]):
        with place.open_with(*keys) as again:
            again.record("clock.step", {})
            assert again.vkey == str(vkey(B))
        assert signed_by(place) == [vkey(B)]


def test_the_bytes_on_disk_are_the_published_format_of_v2(place, monkeypatch):
    monkeypatch.setattr(log, "VERSION", 2)
    journal = place.open_with(A)
    for kind, body in GOLDEN["records"]:
        journal.record(kind, body, job=JOB if kind.startswith("job.") else "")
    assert journal.vkey == GOLDEN["vkey"]
    journal.rotate(B, bytes.fromhex(GOLDEN["statement"]))
    assert journal.vkey == GOLDEN["next_vkey"]
    files = place.files()
    assert files.pop("checkpoint").decode() == GOLDEN["checkpoint"]
    assert b"\n3\n" in files.pop("checkpoint.old")
    assert {path: data.hex() for path, data in files.items()} == GOLDEN["files"]
    journal.record("clock.step", {})
    assert place.files()["checkpoint"].decode() == GOLDEN["next_checkpoint"]


def test_a_second_reader_finds_either_key_on_the_checkpoint_of_the_hand_over(place):
    journal = place.open_with(A)
    place.fill(journal, 300)
    place.rotate(journal, A, B)
    logs = [verified(place.directory, str(vkey(key))) for key in (A, B)]
    assert [len(log.entries) for log in logs] == [302, 302]
    journal.record("clock.step", {})
    assert len(verified(place.directory, str(vkey(B))).entries) == 303
    with pytest.raises(AssertionError, match="not signed with this key"):
        verified(place.directory, str(vkey(A)))


def test_a_statement_may_be_older_than_the_hand_over(place):
    journal = place.open_with(A)
    place.fill(journal, 3)
    said = statement(A, B, journal.size, journal.root())
    place.fill(journal, 300)
    assert journal.rotate(B, said) == 304
    journal.record("clock.step", {})
    assert codes(place) == set()


def test_a_clock_that_ran_back_is_said_before_the_key_changes(place):
    journal = place.open_with(A)
    place.fill(journal, 2)
    place.clock.at = place.clock.at.replace(year=2025)
    assert place.rotate(journal, A, B) == 4
    assert [entry.kind for entry in journal.entries(3)] == ["clock.step", "key.rotate"]
    assert signed_by(place) == [vkey(A), vkey(B)]
    assert codes(place) == set()


def test_a_log_begun_under_v1_goes_on_under_the_newest_v_and_another_key(place, monkeypatch):
    monkeypatch.setattr(log, "VERSION", 1)
    with place.open_with(A) as journal:
        place.fill(journal, 300)
    monkeypatch.undo()
    with place.open_with(A) as journal:
        journal.record("budget.charged", {"budget": "b", "cost": "1"}, job=JOB)
        place.rotate(journal, A, B)
    with place.open_with(B) as journal:
        journal.record("job.done", {"attempts": 2}, job=JOB)
        assert [entry.v for entry in journal.entries()] == [1] * 301 + [VERSION] * 3
    assert codes(place) == codes(place, vkey(B)) == set()


# -- which key is the log's ----------------------------------------------------------------------------------


def test_the_key_that_a_log_has_given_up_does_not_open_it(place):
    with place.open_with(A) as journal:
        place.rotate(journal, A, B)
    before = place.files()
    with pytest.raises(StateConflict) as caught:
        place.open_with(A)
    assert caught.value.code == "journal-key-rotated"
    assert vkey(B).label in caught.value.message
    assert start(place, A, C) == "journal-key-rotated"
    assert start(place, C) == "journal-identity"
    assert place.files() == before
    assert isinstance(start(place, B), Journal)


def test_before_the_rotation_the_log_goes_on_with_the_old_key_wherever_the_new_one_lies(place):
    place.open_with(A).close()
    assert start(place, B) == "journal-identity"
    for keys in ([A, B], [B, A], [A, A]):
        with place.open_with(*keys) as journal:
            journal.record("clock.step", {})
            assert journal.public_key == A.public_key
        assert signed_by(place) == [vkey(A)]


def test_a_new_log_opens_with_the_first_key_given(place):
    assert place.open_with(A, B).vkey == str(vkey(A))


def test_the_words_of_a_rotation_in_another_entry_are_none(place):
    with place.open_with(A) as journal:
        journal.record("job.refused", {"code": "key.rotate"}, job=JOB, actor="key.rotate")
        journal.record("peer.receipt", {"peer": "neutral", "sha256": JOB, "kind": "key.rotate"})
    assert isinstance(start(place, A), Journal)


def test_keys_change_more_than_once(place):
    with place.open_with(A) as journal:
        place.rotate(journal, A, B)
        place.rotate(journal, B, C)
        assert signed_by(place) == [vkey(B), vkey(C)]
        journal.record("clock.step", {})
    for key in (A, B):
        assert start(place, key) == "journal-key-rotated"
    with place.open_with(C) as journal:
        assert journal.vkey == str(vkey(C))
    for key in (A, B, C):
        assert codes(place, vkey(key)) == set()
    verdict = verify_directory(place.directory, [vkey(B)])
    assert verdict.keys == (str(vkey(A)), str(vkey(B)), str(vkey(C)))
    assert verdict.signed_by == (vkey(C).label,)


# -- statements that prove nothing ---------------------------------------------------------------------------

REFUSED: dict[str, tuple[Callable[[int, bytes], bytes], type[MinshuError], str]] = {
    "signed by the old key alone": (
        lambda size, root: statement(A, B, size, root, by=(A,)),
        SignatureInvalid,
        "too-few-signatures",
    ),
    "signed by the new key alone": (
        lambda size, root: statement(A, B, size, root, by=(B,)),
        SignatureInvalid,
        "too-few-signatures",
    ),
    "signed by the new key twice": (
        lambda size, root: statement(A, B, size, root, by=(B, B)),
        SignatureInvalid,
        "too-few-signatures",
    ),
    "signed as a job": (
        lambda size, root: statement(A, B, size, root, kind=JOB_TYPE),
        SignatureInvalid,
        "wrong-payload-type",
    ),
    "about another node": (
        lambda size, root: statement(A, B, size, root, node="police.gz.example/node-b"),
        SignatureInvalid,
        "wrong-node",
    ),
    "about another key before": (
        lambda size, root: statement(A, B, size, root, previous_key=C.public_key),
        SignatureInvalid,
        "wrong-keys",
    ),
    "about another key after": (
        lambda size, root: statement(A, B, size, root, next_key=C.public_key),
        SignatureInvalid,
        "wrong-keys",
    ),
    "for keys the other way round": (
        lambda size, root: statement(B, A, size, root),
        SignatureInvalid,
        "wrong-keys",
    ),
    "for a key this log does not have": (
        lambda size, root: statement(C, B, size, root),
        SignatureInvalid,
        "too-few-signatures",
    ),
    "over another tree": (
        lambda size, root: statement(A, B, size, bytes(32)),
        StateConflict,
        "rotation-out-of-place",
    ),
    "over a tree to come": (
        lambda size, root: statement(A, B, size + 1, root),
        StateConflict,
        "rotation-out-of-place",
    ),
    "over no entry": (
        lambda size, root: statement(A, B, 0, EMPTY_ROOT),
        StateConflict,
        "rotation-out-of-place",
    ),
    "no envelope": (lambda size, root: b"{}", DecodeError, "bad-envelope"),
    "empty": (lambda size, root: b"", DecodeError, "not-json"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_a_statement_that_does_not_hand_this_log_over_changes_nothing(place, why):
    said, kind, code = REFUSED[why]
    journal = place.open_with(A)
    place.fill(journal, 2)
    before = place.files()
    with pytest.raises(kind) as caught:
        journal.rotate(B, said(journal.size, journal.root()))
    assert caught.value.code == code
    assert (journal.size, journal.vkey) == (3, str(vkey(A)))
    assert place.files() == before
    journal.record("clock.step", {})
    assert signed_by(place) == [vkey(A)]
    assert place.rotate(journal, A, B) == 4


def test_a_key_that_was_given_up_never_comes_back(place):
    journal = place.open_with(A)
    place.rotate(journal, A, B)
    for previous, following in ((B, A), (B, C)):
        if following == A:
            with pytest.raises(SignatureInvalid) as caught:
                place.rotate(journal, previous, following)
            assert caught.value.code == "key-used-before"
        else:
            place.rotate(journal, previous, following)
    with pytest.raises(SignatureInvalid):
        place.rotate(journal, C, B)


def test_a_statement_is_of_no_use_a_second_time_nor_in_the_nodes_next_log(place):
    journal = place.open_with(A)
    place.fill(journal, 2)
    said = statement(A, B, journal.size, journal.root())
    journal.rotate(B, said)
    with pytest.raises(SignatureInvalid) as caught:
        journal.rotate(B, said)
    assert caught.value.code == "key-used-before"
    journal.close()
    successor = Place(place.home / "successor")
    with successor.open_with(A, origin=ORIGIN[:-1] + "2") as other:
        successor.fill(other, 5)
        with pytest.raises(StateConflict) as caught:
            other.rotate(B, said)
        assert caught.value.code == "rotation-out-of-place"


# -- faults --------------------------------------------------------------------------------------------------


class Counted(Folder):
    """A folder that counts its steps, and at the one numbered `kill_at` its process is no more."""

    steps = -1
    kill_at = -1

    def step(self) -> None:
        if Counted.steps >= 0:
            if Counted.steps == Counted.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            Counted.steps += 1

    def write(self, path: str, data: bytes) -> None:
        self.step()
        super().write(path, data)
        self.step()

    def sync(self) -> None:
        super().sync()
        self.step()


def rotate_and_die(place: Place, kill_at: int) -> int:
    """Rotate in a process of its own that is killed at a step; return how many steps it made, if it lived."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            journal = place.open_with(A, folder=Counted)
            place.fill(journal, 2)
            said = statement(A, B, journal.size, journal.root())
            Counted.steps, Counted.kill_at = 0, kill_at
            journal.rotate(B, said)
            os.write(writing, bytes([Counted.steps]))
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        made = pipe.read()
    _, status = os.waitpid(child, 0)
    assert (status == 0) == bool(made)
    assert os.WIFSIGNALED(status) or made
    return made[0] if made else 0


# The statement's object: written (0, 1), flushed (2). The commit. Bundle (3, 4) and hash tile (5, 6), flushed
# (7). The checkpoint (8, 9), flushed (10).
COMMITTED, SIGNED, STEPS = 3, 9, 11


def test_the_steps_of_a_rotation_are_all_there_is(tmp_path):
    assert rotate_and_die(Place(tmp_path), 99) == STEPS


@pytest.mark.parametrize("kill_at", range(STEPS))
def test_a_rotation_killed_anywhere_has_happened_or_has_not_and_the_log_knows(tmp_path, kill_at):
    place = Place(tmp_path / "killed")
    rotate_and_die(place, kill_at)
    place.clock.at = place.clock.at.replace(hour=1)
    # What auditors fetch meanwhile is whole, whichever key they hold.
    assert codes(place) == set()
    rotated = kill_at >= COMMITTED
    assert signed_by(place) == ([vkey(A), vkey(B)] if kill_at >= SIGNED else [vkey(A)])
    for number, keys in enumerate([(A,), (B,), (A, B), (B, A), (C,)]):
        copy = Place(tmp_path / str(number), clock=place.clock)
        shutil.copytree(place.home, copy.home)
        journal = start(copy, *keys)
        if C in keys:
            assert journal == "journal-identity"
        elif (B if rotated else A) not in keys:
            assert journal == ("journal-key-rotated" if rotated else "journal-identity")
        else:
            assert isinstance(journal, Journal)
            now = B if rotated else A
            assert (journal.size, journal.vkey) == (4 if rotated else 3, str(vkey(now)))
            # Both keys sign the hand-over, as long as the old one is still at hand.
            both = rotated and (kill_at >= SIGNED or A in keys)
            assert signed_by(copy) == ([vkey(A), vkey(B)] if both else [vkey(now)])
            journal.record("clock.step", {})
            assert signed_by(copy) == [vkey(now)]
            if not rotated:
                copy.rotate(journal, A, B)
            assert codes(copy) == codes(copy, vkey(B)) == set()
            journal.close()


class Failing(Folder):
    """A disk that fails at write number `at`, before or after persisting it, and at every further one."""

    at = -1
    after = False
    count = 0

    def write(self, path: str, data: bytes) -> None:
        fails = 0 <= Failing.at <= Failing.count
        Failing.count += 1
        if not fails or (Failing.after and Failing.count == Failing.at + 1):
            super().write(path, data)
        if fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.fixture
def failing(monkeypatch) -> type[Failing]:
    for name, value in (("at", -1), ("after", False), ("count", 0)):
        monkeypatch.setattr(Failing, name, value)
    return Failing


@pytest.mark.parametrize("restart", [False, True], ids=["the process lives on", "the process ends"])
@pytest.mark.parametrize("after", [False, True], ids=["before persisting", "after persisting"])
@pytest.mark.parametrize("at", [0, 1, 2, 3], ids=["statement", "bundle", "tile", "checkpoint"])
def test_a_write_that_fails_leaves_the_old_key_or_a_hand_over_that_both_sign(
    place, failing, at, after, restart
):
    journal = place.open_with(A, folder=failing)
    place.fill(journal, 2)
    said = statement(A, B, journal.size, journal.root())
    failing.at, failing.after, failing.count = at, after, 0
    with pytest.raises(StateConflict) as caught:
        journal.rotate(B, said)
    assert caught.value.code == ("journal-unpublished" if at else "journal-write-failed")
    assert (journal.size, journal.published) == (4 if at else 3, 3)
    assert journal.vkey == str(vkey(B if at else A))
    assert codes(place) == set()

    failing.at = -1
    if restart:
        journal.close()
        journal = place.open_with(A, B)
    if at:
        journal.publish()
        assert signed_by(place) == [vkey(A), vkey(B)]
    else:
        assert signed_by(place) == [vkey(A)]
        journal.rotate(B, said)
    journal.record("clock.step", {})
    assert (journal.size, signed_by(place)) == (5, [vkey(B)])
    assert codes(place) == codes(place, vkey(B)) == set()


def test_two_rotations_that_no_checkpoint_covered_are_signed_by_all_three_keys(place, failing):
    journal = place.open_with(A, folder=failing)
    for number, (previous, following) in enumerate([(A, B), (B, C)]):
        failing.at, failing.count = 1, 0  # the statement can be written, the tiles cannot
        with pytest.raises(StateConflict):
            place.rotate(journal, previous, following)
        assert journal.size == number + 2
    failing.at = -1
    journal.publish()
    assert signed_by(place) == [vkey(A), vkey(B), vkey(C)]
    journal.record("clock.step", {})
    assert signed_by(place) == [vkey(C)]
    for key in (A, B, C):
        assert codes(place, vkey(key)) == set()


def test_a_database_that_is_full_leaves_the_old_key(place):
    journal = place.open_with(A)
    pages = journal._connection.execute("PRAGMA page_count").fetchone()[0]
    journal._connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StateConflict, match="SQLITE_FULL"):
        deque((journal.record("clock.step", {}) for _ in range(100)), maxlen=0)
    said, size = statement(A, B, journal.size, journal.root()), journal.size
    with pytest.raises(StateConflict, match="SQLITE_FULL") as caught:
        journal.rotate(B, said)
    assert caught.value.code == "journal-write-failed"
    assert (journal.size, journal.vkey) == (size, str(vkey(A)))
    journal._connection.execute("PRAGMA max_page_count = 100000")
    journal.record("clock.step", {})
    assert signed_by(place) == [vkey(A)]
    journal.rotate(B, said)
    assert codes(place, vkey(B)) == set()


def test_a_commit_that_fails_leaves_the_old_key_for_the_next_entry_too(place):
    journal = place.open_with(A)
    with journal.transaction() as connection:
        connection.execute("CREATE TABLE town (name TEXT PRIMARY KEY)")
        connection.execute("CREATE TABLE street (town REFERENCES town DEFERRABLE INITIALLY DEFERRED)")
        connection.execute(
            "CREATE TRIGGER lost AFTER INSERT ON journal_statement BEGIN INSERT INTO street VALUES ('x'); END"
        )
    with pytest.raises(StateConflict, match="SQLITE_CONSTRAINT") as caught:
        place.rotate(journal, A, B)
    assert caught.value.code == "journal-write-failed"
    place.fill(journal, 3)
    assert (journal.size, journal.vkey, signed_by(place)) == (4, str(vkey(A)), [vkey(A)])
    with journal.transaction() as connection:
        connection.execute("DROP TRIGGER lost")
    place.rotate(journal, A, B)
    assert codes(place) == codes(place, vkey(B)) == set()


class Gated(Folder):
    """Holds the first bundle back until `gate` opens, and keeps every checkpoint."""

    gate = threading.Event()
    reached = threading.Event()
    checkpoints: ClassVar[list[Note]] = []

    def write(self, path: str, data: bytes) -> None:
        if path == "checkpoint":
            Gated.checkpoints.append(Note.decode(data))
        elif path.startswith("tile/entries"):
            Gated.reached.set()
            Gated.gate.wait(20)
        super().write(path, data)


def test_a_checkpoint_under_way_while_the_key_changes_is_still_the_old_keys(place):
    Gated.gate.set()
    journal = place.open_with(A, folder=Gated)
    said = statement(A, B, journal.size, journal.root())
    Gated.gate.clear()
    Gated.reached.clear()
    Gated.checkpoints.clear()
    threads = [
        threading.Thread(target=journal.record, args=("clock.step", {})),
        threading.Thread(target=journal.rotate, args=(B, said)),
    ]
    threads[0].start()
    assert Gated.reached.wait(20)
    threads[1].start()
    while journal.size < 3:  # until the rotation is committed
        threading.Event().wait(0.001)
    Gated.gate.set()
    for thread in threads:
        thread.join()
    texts = [Checkpoint.decode(note.text).size for note in Gated.checkpoints]
    signers = [verify_note(note.encode(), KEYS)[1] for note in Gated.checkpoints]
    assert (texts, signers) == ([2, 3], [(vkey(A),), (vkey(A), vkey(B))])
    assert codes(place) == set()


def test_a_signer_that_has_another_key_publishes_nothing_and_is_put_right_by_a_restart(place):
    class Mistaken:
        public_key = B.public_key
        sign = C.sign

    journal = place.open_with(A)
    said = statement(A, B, journal.size, journal.root())
    with pytest.raises(StateConflict, match="signer-mismatch") as caught:
        journal.rotate(Mistaken(), said)
    assert caught.value.code == "journal-unpublished"
    journal.close()
    with place.open_with(B) as journal:
        assert (journal.published, signed_by(place)) == (2, [vkey(B)])
    assert codes(place) == set()


def test_threads_that_write_while_the_key_changes_leave_one_whole_log(place):
    journal, errors = place.open_with(A), []

    def work() -> None:
        try:
            for _ in range(20):
                journal.record("job.refused", {"code": "no-rule"}, job=JOB)
        except MinshuError as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for previous, following in ((A, B), (B, C)):
        place.rotate(journal, previous, following)
    for thread in threads:
        thread.join()
    assert errors == []
    assert journal.published == journal.size == 83
    for key in (A, B, C):
        assert codes(place, vkey(key)) == set()


def test_of_two_rotations_at_once_one_happens(place):
    journal, outcomes = place.open_with(A), []
    said = {key: statement(A, key, journal.size, journal.root()) for key in (B, C)}

    def work(key: KeySigner) -> None:
        try:
            journal.rotate(key, said[key])
            outcomes.append("rotated")
        except SignatureInvalid as error:
            outcomes.append(error.code)

    threads = [threading.Thread(target=work, args=(key,)) for key in (B, C)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["rotated", "too-few-signatures"]
    assert journal.size == 2
    assert codes(place) == set()


# -- what a start finds --------------------------------------------------------------------------------------


@pytest.fixture
def rotated(place) -> Place:
    """A closed journal: five entries by A, the rotation to B, one more."""
    with place.open_with(A) as journal:
        place.fill(journal, 4)
        place.rotate(journal, A, B)
        place.hand_over = place.files()
        journal.record("clock.step", {})
    return place


def the_object(place: Place) -> Path:
    (path,) = (path for path in place.directory.rglob("objects/sha256/*/*") if path.is_file())
    return path


def test_a_lost_folder_is_rebuilt_with_the_statement_in_it(rotated):
    before = rotated.files()
    shutil.rmtree(rotated.directory)
    with rotated.open_with(A, B):
        after = rotated.files()
    assert after == {path: data for path, data in before.items() if path in after}
    assert signed_by(rotated) == [vkey(B)]
    assert codes(rotated) == set()


@pytest.mark.parametrize("damage", ["flip", "cut", "longer"])
def test_a_damaged_statement_stops_the_node(rotated, damage):
    path = the_object(rotated)
    data = path.read_bytes()
    path.write_bytes({"flip": data[:9] + b"~" + data[10:], "cut": data[:50], "longer": data + b" "}[damage])
    assert start(rotated, B) == "journal-damaged"
    path.unlink()
    assert isinstance(start(rotated, B), Journal)
    assert path.read_bytes() == data


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM journal_statement",
        "UPDATE journal_statement SET statement = x'7b7d'",
        "UPDATE journal_statement SET statement = CAST(statement AS TEXT)",
        "UPDATE journal_statement SET statement = 5",
        "UPDATE journal_statement SET statement = :another",
        "UPDATE journal_statement SET seq = 1",
        "UPDATE journal_entry SET entry = CAST(entry AS TEXT) WHERE seq = 5",
        "UPDATE journal_entry SET entry = x'7b7d' WHERE seq = 5",
        "UPDATE journal_entry SET entry = (SELECT entry FROM journal_entry WHERE seq = 5) WHERE seq = 3",
        "DELETE FROM journal_entry WHERE seq = 5",
    ],
)
@pytest.mark.parametrize("keys", [(B,), (A, B)], ids=["new key", "both keys"])
def test_a_rotation_changed_in_the_database_is_found_out(rotated, change, keys):
    tree = read_statement(the_object(rotated).read_bytes(), KEYS[:1], KEYS[1])
    another = statement(
        A, B, tree.journal_size, bytes.fromhex(tree.journal_root[7:]), issued=tree.issued + timedelta(days=1)
    )
    connection = sqlite3.connect(rotated.database)
    connection.execute("DROP TRIGGER journal_entry_no_update")
    connection.execute("DROP TRIGGER journal_entry_no_delete")
    with connection:
        connection.execute(change, {"another": another} if ":another" in change else {})
    connection.close()
    before = rotated.files()
    # Without its rotation the log is the old key's; with the old key given too, the checkpoint still tells.
    assert start(rotated, *keys) in {"journal-damaged"} | ({"journal-identity"} if len(keys) == 1 else set())
    assert rotated.files() == before


def test_a_database_from_before_the_rotation_is_refused(place):
    with place.open_with(A) as journal:
        place.fill(journal, 2)
    older = place.database.read_bytes()
    with place.open_with(A) as journal:
        place.rotate(journal, A, B)
    place.database.write_bytes(older)
    for keys in ((A,), (B,), (A, B)):
        assert start(place, *keys) in ("journal-rolled-back", "journal-damaged")
    assert start(place, B) == "journal-rolled-back"


def test_a_checkpoint_that_the_old_key_signed_after_its_time_is_refused(rotated):
    path = rotated.directory / "checkpoint"
    note = Note.decode(path.read_bytes())
    path.write_bytes(Note(note.text, ()).with_signature(vkey(A), A.sign).encode())
    for keys in ((B,), (A, B)):
        assert start(rotated, *keys) == "journal-damaged"
    assert codes(rotated) == {"wrong-key"}
    path.write_bytes(note.encode())
    assert isinstance(start(rotated, B), Journal)


# -- what an auditor finds -----------------------------------------------------------------------------------


def test_any_key_of_the_chain_verifies_the_log_and_no_other_does(rotated):
    for folder in ("after", "hand over"):
        if folder == "hand over":
            for path, data in rotated.hand_over.items():
                (rotated.directory / path).write_bytes(data)
        for keys in ([A], [B], [A, B], [A, C]):
            assert codes(rotated, *map(vkey, keys)) == set()
        assert codes(rotated, vkey(C)) == {"no-known-signature"}
        assert codes(rotated, vkey(A, "police.gz.example/node-b/journal/1")) == {"no-known-signature"}
    verdict = verify_directory(rotated.directory, [vkey(A)])
    assert verdict.signed_by == (vkey(A).label, vkey(B).label)
    assert verdict.document()["keys"] == [str(vkey(A)), str(vkey(B))]


@pytest.mark.parametrize("line", [0, 1])
def test_each_signature_on_the_checkpoint_of_the_hand_over_must_hold(rotated, line):
    for path, data in rotated.hand_over.items():
        (rotated.directory / path).write_bytes(data)
    path = rotated.directory / "checkpoint"
    note = Note.decode(path.read_bytes())
    signatures = list(note.signatures)
    signatures[line] = replace(signatures[line], signature=bytes(64))
    path.write_bytes(replace(note, signatures=tuple(signatures)).encode())
    for key in (A, B):
        assert codes(rotated, vkey(key)) == {"bad-signature"}
    # A trusted key's broken signature ends it: nothing that the folder says is repeated.
    verdict = verify_directory(rotated.directory, [vkey((A, B)[line])])
    assert (verdict.size, verdict.keys, verdict.kinds) == (0, (), {})


def test_a_missing_damaged_oversized_or_unreadable_statement_is_named(rotated):
    path = the_object(rotated)
    data = path.read_bytes()
    path.unlink()
    assert codes(rotated) == {"missing-statement"}
    path.write_bytes(data[:-1] + b" ")
    assert codes(rotated) == {"object-damaged"}
    path.write_bytes(bytes(MAX_ENVELOPE_BYTES + 1))
    assert codes(rotated) == {"too-long"}
    path.unlink()
    path.mkdir()
    assert codes(rotated) == {"unreadable"}
    path.rmdir()
    path.write_bytes(data)
    assert codes(rotated) == set()


def forge(
    place: Place, body: dict[str, object], said: bytes | None, *, v: int = 2, by: KeySigner = B
) -> None:
    """Publish a log of five entries whose fourth is this key.rotate, signed by `by`, whatever it says."""
    opened = Entry(
        ORIGIN, 0, "2026-12-01T00:00:00.000Z", "log.open", "", 0, None, "", {"vkey": str(vkey(A))}, (), v
    )
    refused = replace(opened, kind="job.refused", job=JOB, body={"code": "no-rule"})
    entries = [opened, *[replace(refused, seq=n) for n in range(1, 5)]]
    entries[3] = replace(opened, seq=3, kind="key.rotate", body=body)
    tree = TileBuilder()
    for entry in entries:
        tree.add(leaf_hash(entry.encode()))
    files = {
        Tile(ENTRIES, 0, 5).path: encode_bundle(entry.encode() for entry in entries),
        **{tile.path: data for tile, data in tree.partial_tiles()},
        "checkpoint": Note(Checkpoint(ORIGIN, 5, tree.root()).encode(), ())
        .with_signature(vkey(by), by.sign)
        .encode(),
    }
    for path, data in files.items():
        (place.directory / path).parent.mkdir(parents=True, exist_ok=True)
        (place.directory / path).write_bytes(data)
    if said is not None:
        Folder(place.directory).put_object(said)


def root_of_forged() -> bytes:
    """The root over the three entries before the rotation of `forge`."""
    opened = Entry(
        ORIGIN, 0, "2026-12-01T00:00:00.000Z", "log.open", "", 0, None, "", {"vkey": str(vkey(A))}, (), 2
    )
    refused = replace(opened, kind="job.refused", job=JOB, body={"code": "no-rule"})
    tree = TileBuilder()
    for entry in (opened, replace(refused, seq=1), replace(refused, seq=2)):
        tree.add(leaf_hash(entry.encode()))
    return tree.root()


ROOT = root_of_forged()
HONEST = statement(A, B, 3, ROOT)


def body_of(said: bytes, **other: object) -> dict[str, object]:
    named = {
        "vkey": str(vkey(B)),
        "previous_vkey": str(vkey(A)),
        "identity": key_id(B.public_key),
        "envelope_sha256": sha256_digest(said),
        "size": 3,
        "root": "sha256:" + ROOT.hex(),
    } | other
    return {key: value for key, value in named.items() if value is not None}


def test_an_honest_handmade_rotation_verifies(place):
    forge(place, body_of(HONEST), HONEST)
    assert codes(place) == codes(place, vkey(B)) == set()


@pytest.mark.parametrize("why", [why for why, case in REFUSED.items() if case[1] is not StateConflict])
def test_a_signed_log_whose_statement_does_not_hand_it_over_does_not_verify(place, why):
    said = REFUSED[why][0](3, ROOT)
    forge(place, body_of(said), said)
    for key in (A, B):
        assert codes(place, vkey(key)) == {REFUSED[why][2]}


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (statement(A, B, 3, bytes(32)), "wrong-root"),
        (statement(A, B, 2, ROOT), "wrong-root"),
        (statement(A, B, 4, ROOT), "wrong-size"),
        (statement(A, B, 0, EMPTY_ROOT), "wrong-size"),
    ],
)
def test_a_statement_over_another_tree_does_not_verify(place, said, code):
    forge(place, body_of(said), said)
    assert codes(place) == {code}


@pytest.mark.parametrize(
    ("other", "code"),
    [
        ({"previous_vkey": None}, "rotation-unproven"),
        ({"envelope_sha256": None}, "rotation-unproven"),
        ({"size": None}, "rotation-unproven"),
        ({"root": None}, "rotation-unproven"),
        ({"identity": None}, None),
        ({"identity": key_id(A.public_key)}, "wrong-identity"),
        ({"previous_vkey": str(vkey(C))}, "wrong-previous-key"),
        ({"previous_vkey": str(vkey(A, "police.gz.example/node-b/journal/1"))}, "wrong-previous-key"),
        ({"envelope_sha256": sha256_digest(b"other")}, "missing-statement"),
        ({"size": 2}, "wrong-size"),
        ({"root": "sha256:" + "00" * 32}, "wrong-root"),
    ],
)
def test_an_entry_that_says_other_than_its_statement_does_not_verify(place, other, code):
    forge(place, body_of(HONEST, **other), HONEST)
    assert codes(place) == ({code} if code else set())


def test_a_rotation_to_a_key_that_the_statement_does_not_name_does_not_verify(place):
    forge(place, body_of(HONEST, vkey=str(vkey(C)), identity=None), HONEST, by=C)
    assert codes(place) == codes(place, vkey(C)) == {"too-few-signatures"}


def test_a_rotation_to_a_key_of_another_log_does_not_verify(place):
    elsewhere = str(vkey(B, "police.gz.example/node-b/journal/1"))
    forge(place, body_of(HONEST, vkey=elsewhere), HONEST)
    assert "wrong-origin" in codes(place)


def test_a_rotation_as_v1_could_say_it_proves_nothing(place):
    for body in ({"vkey": str(vkey(B))}, {"vkey": str(vkey(B)), "previous_vkey": str(vkey(A))}):
        forge(place, body, None, v=1)
        assert codes(place) == codes(place, vkey(B)) == {"rotation-unproven"}


def test_the_old_key_cannot_sign_on_after_the_rotation(place):
    # It may be in a thief's hands by now: it must not sign another history.
    forge(place, body_of(HONEST), HONEST, by=A)
    assert codes(place) == codes(place, vkey(B)) == {"wrong-key"}


def test_a_thief_of_the_old_key_cannot_use_the_statement_in_a_history_of_his_own(place):
    """Whatever the old key can sign is forged; of the new key there is its statement over the true past."""
    with place.open_with(A) as journal:
        place.fill(journal, 5)
        said = statement(A, B, journal.size, journal.root())
        journal.rotate(B, said)
    thief = Place(place.home / "thief")
    forge(thief, body_of(said), said, by=A)
    assert codes(thief) == codes(thief, vkey(B)) == {"wrong-size", "wrong-key"}


def test_a_replayed_rotation_does_not_verify(rotated, monkeypatch):
    """An operator whose program has lost its checks: the auditor's has not."""
    said = the_object(rotated).read_bytes()
    document = Rotation.decode(decode_envelope(said).payload)
    monkeypatch.setattr(log, "read_statement", lambda *_: document)
    with rotated.open_with(B) as journal:
        journal.rotate(B, said)
    assert codes(rotated) == {"key-used-before"}


# -- with a checkpoint that the auditor kept -----------------------------------------------------------------


def since(place: Place, earlier: bytes, *keys: VerifierKey) -> set[str]:
    verdict = verify_directory(place.directory, keys, earlier=earlier)
    return {problem.code for problem in verdict.problems}


def test_a_checkpoint_kept_from_any_keys_time_is_good_with_any_key(place):
    kept = []
    with place.open_with(A) as journal:
        for step in (
            lambda: place.fill(journal, 3),
            lambda: place.rotate(journal, A, B),
            lambda: place.fill(journal, 3),
        ):
            step()
            kept.append((place.directory / "checkpoint").read_bytes())
    for earlier in kept:
        for key in (A, B):
            assert since(place, earlier, vkey(key)) == set()


def test_a_kept_checkpoint_shows_another_history_behind_a_true_rotation(rotated):
    text = Checkpoint(ORIGIN, 3, bytes(32)).encode()
    kept = Note(text, ()).with_signature(vkey(A), A.sign).encode()
    for key in (A, B):
        assert since(rotated, kept, vkey(key)) == {"rewritten"}


def test_a_kept_checkpoint_that_no_key_of_the_log_signed_is_a_problem_and_a_changed_one_an_error(rotated):
    note = Note.decode((rotated.directory / "checkpoint").read_bytes())
    foreign = Note(note.text, ()).with_signature(vkey(C), C.sign).encode()
    assert since(rotated, foreign, vkey(A)) == {"no-known-signature"}
    with pytest.raises(InputError) as caught:
        since(rotated, note.encode().replace(b"7\n", b"6\n", 1), vkey(A))
    assert caught.value.code == "bad-earlier-checkpoint"
