"""What a journal keeps of its witnesses, and what it proves to them."""

import hashlib
import os
import shutil
from datetime import datetime

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from journals import JOB, ORIGIN, Place, signer

from audit.folder import Folder
from audit.merkle import verify_consistency, verify_inclusion
from audit.note import (
    COSIGNATURE,
    Checkpoint,
    Note,
    NoteSignature,
    VerifierKey,
    cosign,
    sign_note,
    verify_note,
)
from audit.verify import verify_directory
from protocols.errors import DecodeError, SignatureInvalid, StateConflict

NAMES = ("checkpoint", "checkpoint.cosigned", "checkpoint.old")


class Witness:
    """One that signs whatever it is given."""

    def __init__(self, seed: int) -> None:
        self.private = Ed25519PrivateKey.from_private_bytes(bytes([100 + seed]) * 32)
        public = self.private.public_key().public_bytes_raw()
        self.key = VerifierKey(f"education.gz.example/node-{seed}/witness/1", COSIGNATURE, public)

    def line(self, text: bytes, time_s: int = 1_800_000_000) -> NoteSignature:
        return cosign(text, self.key, self.private.sign, time_s)


ALICE, BOB = Witness(1), Witness(2)


def text_of(place: Place, name: str = "checkpoint") -> bytes:
    return Note.decode((place.directory / name).read_bytes()).text


def sizes(place: Place) -> list[int]:
    """Sizes of the three checkpoints in the folder, each signed by the log; 0 where there is none."""
    found = []
    for name in NAMES:
        path = place.directory / name
        if path.exists():
            note, _ = verify_note(path.read_bytes(), [place.vkey])
            found.append(Checkpoint.decode(note.text).size)
        else:
            found.append(0)
    return found


def cosigned(place: Place, journal, *witnesses: Witness, quorum: bool = True) -> None:
    text = text_of(place)
    journal.add_cosignatures(text, [witness.line(text) for witness in witnesses], quorum=quorum)


# -- cosignatures --------------------------------------------------------------------------------------------


def test_lines_join_the_newest_checkpoint_and_a_quorum_is_kept_beside_it(place):
    journal = place.open()
    place.fill(journal, 3)
    cosigned(place, journal, ALICE, quorum=False)
    _, signers = verify_note((place.directory / "checkpoint").read_bytes(), [place.vkey, ALICE.key, BOB.key])
    assert signers == (place.vkey, ALICE.key)
    assert (journal.cosigned_size, journal.cosigned(), sizes(place)) == (0, None, [4, 0, 1])
    cosigned(place, journal, BOB)
    data = (place.directory / "checkpoint").read_bytes()
    assert verify_note(data, [place.vkey, ALICE.key, BOB.key])[1] == (place.vkey, ALICE.key, BOB.key)
    assert data == (place.directory / "checkpoint.cosigned").read_bytes() == journal.checkpoint()
    assert (journal.cosigned_size, journal.cosigned()) == (4, data)
    assert verify_directory(place.directory, [place.vkey]).ok


def test_a_new_line_by_a_witness_takes_the_place_of_its_old_one(place):
    journal = place.open()
    text = text_of(place)
    for time_s in (1_800_000_000, 1_800_000_060):
        journal.add_cosignatures(text, [ALICE.line(text, time_s)], quorum=True)
    lines = Note.decode(journal.checkpoint()).signatures
    assert lines[1:] == (ALICE.line(text, 1_800_000_060),)


def test_before_any_quorum_the_old_checkpoint_is_the_one_before(place):
    journal = place.open()
    assert sizes(place) == [1, 0, 0]
    for count in (2, 3):
        journal.record("clock.step", {})
        assert sizes(place) == [count, 0, count - 1]


def test_the_old_checkpoint_is_the_newest_smaller_one_with_a_quorum(place):
    journal = place.open()
    journal.record("clock.step", {})
    cosigned(place, journal, ALICE)
    assert sizes(place) == [2, 2, 1]
    place.fill(journal, 3)
    place.fill(journal, 3)
    assert sizes(place) == [8, 2, 2]
    earlier = text_of(place)
    place.fill(journal, 1)
    journal.add_cosignatures(earlier, [ALICE.line(earlier)], quorum=True)
    assert sizes(place) == [9, 8, 8]
    cosigned(place, journal, ALICE)
    assert sizes(place) == [9, 9, 8]
    journal.record("clock.step", {})
    assert sizes(place) == [10, 9, 9]


def test_a_quorum_over_an_earlier_checkpoint_comes_with_the_logs_own_signature(place):
    journal = place.open()
    text = text_of(place)
    place.fill(journal, 300)
    journal.add_cosignatures(text, [ALICE.line(text)], quorum=False)
    assert sizes(place) == [301, 0, 1]
    journal.add_cosignatures(text, [ALICE.line(text), BOB.line(text)], quorum=True)
    note, signers = verify_note(journal.cosigned(), [place.vkey, ALICE.key, BOB.key])
    assert (note.text, len(signers), journal.cosigned_size) == (text, 3, 1)
    assert Note.decode(journal.checkpoint()).signatures[1:] == ()


def test_a_quorum_that_comes_behind_a_newer_one_changes_nothing(place):
    journal = place.open()
    early = text_of(place)
    place.fill(journal, 3)
    cosigned(place, journal, ALICE)
    before = place.files()
    journal.add_cosignatures(early, [ALICE.line(early)], quorum=True)
    assert (journal.cosigned_size, place.files()) == (4, before)


def forged(journal, **change) -> bytes:
    facts = {"origin": ORIGIN, "size": 2, "root": journal.root_at(2), "extensions": ()} | change
    return Checkpoint(**facts).encode()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"origin": "police.gz.example/node-b/journal/1"}, "wrong-origin"),
        ({"root": bytes(32)}, "wrong-root"),
        ({"size": 3}, "wrong-root"),
        ({"extensions": ("more",)}, "wrong-root"),
        ({"size": 0, "root": hashlib.sha256(b"").digest()}, "wrong-size"),
        ({"size": 6}, "wrong-size"),
        ({"size": 2**53}, "wrong-size"),
    ],
)
def test_what_is_no_checkpoint_of_this_very_log_is_refused(place, change, code):
    journal = place.open()
    place.fill(journal, 4)
    before, text = place.files(), forged(journal, **change)
    with pytest.raises(SignatureInvalid) as caught:
        journal.add_cosignatures(text, [ALICE.line(text)], quorum=True)
    assert caught.value.code == code
    with pytest.raises(DecodeError):
        journal.add_cosignatures(b"not a checkpoint", [], quorum=True)
    assert (place.files(), journal.cosigned_size) == (before, 0)


def test_no_witness_can_take_the_logs_own_signature_away(place):
    journal = place.open()
    text = text_of(place)
    own = Note.decode(journal.checkpoint()).signatures[0]
    with pytest.raises(SignatureInvalid) as caught:
        journal.add_cosignatures(text, [NoteSignature(own.name, own.key_id, bytes(64))], quorum=True)
    assert caught.value.code == "wrong-witness"
    assert sizes(place) == [1, 0, 0]


def test_more_lines_than_a_note_may_have_are_refused_and_nothing_is_written(place):
    journal = place.open()
    text, before = text_of(place), place.files()
    lines = [NoteSignature(f"witness-{number}", b"abcd", bytes(72)) for number in range(5_000)]
    with pytest.raises(DecodeError) as caught:
        journal.add_cosignatures(text, lines, quorum=True)
    assert caught.value.code == "malformed-note"
    assert place.files() == before
    journal.add_cosignatures(text, lines[:99], quorum=True)
    assert len(Note.decode(journal.checkpoint()).signatures) == 100
    journal.close()
    assert place.open().cosigned_size == 1


def test_a_checkpoint_file_with_thousands_of_lines_stops_the_start_and_fails_the_audit(place):
    place.open().close()
    path = place.directory / "checkpoint"
    line = str(NoteSignature("witness", b"abcd", bytes(72))).encode()
    path.write_bytes(path.read_bytes() + line * 5_000)
    with pytest.raises(StateConflict) as caught:
        place.open()
    assert caught.value.code == "journal-damaged"
    verdict = verify_directory(place.directory, [place.vkey])
    assert [problem.code for problem in verdict.problems] == ["malformed-note"]


def test_a_rotation_does_not_lose_what_was_signed_before(place):
    journal = place.open_with(signer(0))
    place.fill(journal, 2)
    text = text_of(place)
    place.rotate(journal, signer(0), signer(1))
    journal.add_cosignatures(text, [ALICE.line(text)], quorum=True)
    assert verify_note(journal.cosigned(), [place.vkey])[1] == (place.vkey,)
    cosigned(place, journal, ALICE)  # the checkpoint of both keys keeps both
    assert len(Note.decode(journal.cosigned()).signatures) == 3
    journal.close()
    journal = place.open_with(signer(1))
    assert journal.cosigned_size == 4
    with pytest.raises(StateConflict) as caught:
        journal.add_cosignatures(text, [BOB.line(text)], quorum=False)
    assert caught.value.code == "journal-key-rotated"


# -- and a restart -------------------------------------------------------------------------------------------


def test_cosignatures_survive_a_restart(place):
    with place.open() as journal:
        place.fill(journal, 3)
        cosigned(place, journal, ALICE, BOB)
        before = place.files()
    with place.open() as journal:
        assert (journal.cosigned_size, journal.checkpoint()) == (4, before["checkpoint"])
        assert place.files() == before
        journal.record("clock.step", {})
        assert sizes(place) == [5, 4, 4]


def test_lost_tiles_are_written_again_and_the_cosignatures_stay(place):
    with place.open() as journal:
        place.fill(journal, 3)
        cosigned(place, journal, ALICE)
        before = place.files()
    shutil.rmtree(place.directory / "tile")
    with place.open():
        after = place.files()
        assert {name: after[name] for name in NAMES} == {name: before[name] for name in NAMES}
        assert verify_directory(place.directory, [place.vkey]).ok


@pytest.fixture
def witnessed(place) -> Place:
    with place.open() as journal:
        place.fill(journal, 3)
        cosigned(place, journal, ALICE)
        place.fill(journal, 3)
        place.fill(journal, 3)
    assert sizes(place) == [10, 4, 4]
    return place


@pytest.mark.parametrize("name", ["checkpoint.cosigned", "checkpoint.old"])
def test_a_kept_checkpoint_that_tells_another_story_is_damage(witnessed, name):
    path = witnessed.directory / name
    good = path.read_bytes()
    other = Checkpoint(ORIGIN, 4, bytes(32)).encode()
    foreign = VerifierKey("police.gz.example/node-b/journal/1", 1, witnessed.public_key)
    bad = {
        "flipped": good.replace(b"\n4\n", b"\n5\n"),
        "cut": good[:-2],
        "empty": b"",
        "another root": sign_note(other, witnessed.vkey, witnessed.key.sign).encode(),
        "another log": sign_note(
            Checkpoint(foreign.name, 4, bytes(32)).encode(), foreign, witnessed.key.sign
        ).encode(),
        "nobody's": sign_note(Note.decode(good).text, ALICE_AS_LOG, ALICE.private.sign).encode(),
    }
    for what, data in bad.items():
        path.write_bytes(data)
        with pytest.raises(StateConflict) as caught:
            witnessed.open()
        assert caught.value.code == "journal-damaged", what
    path.write_bytes(good)
    assert witnessed.open().cosigned_size == 4


ALICE_AS_LOG = VerifierKey(ORIGIN, 1, ALICE.key.public_key)


@pytest.mark.parametrize("name", ["checkpoint.cosigned", "checkpoint.old"])
def test_a_kept_checkpoint_larger_than_the_database_shows_a_restored_backup(place, name):
    with place.open() as journal:
        place.fill(journal, 3)
    backup = place.database.read_bytes()
    early = place.files()
    with place.open() as journal:
        place.fill(journal, 3)
        cosigned(place, journal, ALICE)
        late = (place.directory / "checkpoint.cosigned").read_bytes()
    # The whole folder was restored with the database, but for one file that says how far the log had come.
    shutil.rmtree(place.directory)
    for path, data in early.items():
        (place.directory / path).parent.mkdir(parents=True, exist_ok=True)
        (place.directory / path).write_bytes(data)
    place.database.write_bytes(backup)
    (place.directory / name).write_bytes(late)
    with pytest.raises(StateConflict) as caught:
        place.open()
    assert caught.value.code == "journal-rolled-back"


def test_a_lost_kept_checkpoint_stops_nothing(witnessed):
    for name in NAMES[1:]:
        (witnessed.directory / name).unlink()
    with witnessed.open() as journal:
        assert journal.cosigned_size == 0
        journal.record("clock.step", {})
    assert sizes(witnessed) == [11, 0, 10]


def test_an_old_checkpoint_that_a_crash_left_behind_is_brought_up_to_date(witnessed):
    with witnessed.open() as journal:
        earlier = (witnessed.directory / "checkpoint.old").read_bytes()
        cosigned(witnessed, journal, ALICE)
        journal.record("clock.step", {})
    assert sizes(witnessed) == [11, 10, 10]
    (witnessed.directory / "checkpoint.old").write_bytes(earlier)
    with witnessed.open():
        assert sizes(witnessed) == [11, 10, 10]


def test_a_file_system_without_hard_links_serves_too(place, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    journal = place.open()
    journal.record("clock.step", {})
    assert sizes(place) == [2, 0, 1]


# -- proofs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 300, 513])
def test_every_proof_holds_and_rests_on_the_tiles_alone(place, oracle, size):
    journal = place.open()
    if size > 1:
        place.fill(journal, size - 1)
    entries = [entry.encode() for entry in journal.entries()]
    roots = {at: journal.root_at(at) for at in {0, 1, size // 2, size - 1, size}}
    for at, root in roots.items():
        assert root == oracle(entries[:at])
    for at in sorted(roots):
        verify_consistency(at, roots[at], size, roots[size], journal.consistency_proof(at, size))
        for index in {0, at // 2, at - 1} if at else ():
            leaf = hashlib.sha256(b"\x00" + entries[index]).digest()
            verify_inclusion(leaf, index, at, journal.inclusion_proof(index, at), roots[at])


def test_nothing_is_proven_of_entries_that_are_not_published(place):
    journal = place.open()
    for ask in (
        lambda: journal.root_at(2),
        lambda: journal.root_at(-1),
        lambda: journal.inclusion_proof(1, 1),
        lambda: journal.consistency_proof(2, 1),
        lambda: journal.consistency_proof(0, 2),
    ):
        with pytest.raises(ValueError):
            ask()


@pytest.mark.parametrize("damage", ["flip", "cut", "lose"])
def test_a_tile_changed_under_a_running_journal_proves_nothing(place, damage):
    journal = place.open()
    place.fill(journal, 600)
    path = place.directory / "tile/0/001"
    data = path.read_bytes()
    if damage == "lose":
        path.unlink()
    else:
        path.write_bytes(data[:-1] if damage == "cut" else data[:40] + bytes([data[40] ^ 1]) + data[41:])
    for ask in (lambda: journal.root_at(257), lambda: journal.inclusion_proof(300, 601)):
        with pytest.raises(StateConflict) as caught:
            ask()
        assert caught.value.code == "journal-damaged"


# -- other logs and objects ----------------------------------------------------------------------------------


def test_the_newest_checkpoint_of_another_log_stands_in_a_file_of_its_own(place):
    journal = place.open()
    other = VerifierKey("医院.example/node-a/journal/3", 1, place.public_key)
    for size in (1, 2):
        note = sign_note(Checkpoint(other.name, size, bytes(32)).encode(), other, place.key.sign).encode()
        journal.set_witnessed(other.name, note)
    name = hashlib.sha256(other.name.encode()).hexdigest()
    assert place.files()[f"witnessed/{name}"] == note
    for origin, data in ((place.vkey.name, note), (other.name, b"no note")):
        with pytest.raises(DecodeError):
            journal.set_witnessed(origin, data)


def test_a_deleted_object_is_gone_and_can_be_deleted_twice(place):
    journal = place.open()
    digest = journal.put_object(b"a quality record")
    journal.delete_object(digest)
    assert journal.get_object(digest) is None
    journal.delete_object(digest)
    with pytest.raises(DecodeError):
        journal.delete_object("sha256:../../checkpoint")
    assert not [path for path in place.files() if path.startswith("objects")]


def test_an_object_that_cannot_be_deleted_says_so(place):
    class Stuck(Folder):
        def sync(self) -> None:
            raise OSError(5, "Input/output error")

    journal = place.open()
    digest = journal.put_object(b"a quality record")
    journal._objects = Stuck(place.directory)
    with pytest.raises(StateConflict) as caught:
        journal.delete_object(digest)
    assert caught.value.code == "journal-write-failed"


def test_a_time_that_repeats_and_a_time_far_ahead_are_kept_in_order(place):
    journal = place.open()
    place.clock.step *= 0
    for _ in range(2):
        journal.record("job.refused", {"code": "no-rule"}, job=JOB)
    place.clock.at = datetime.fromisoformat("2999-12-31T23:59:59.999+00:00")
    journal.record("job.refused", {"code": "no-rule"}, job=JOB)
    place.clock.at = datetime.fromisoformat("2026-12-01T00:00:01+00:00")
    journal.record("job.refused", {"code": "no-rule"}, job=JOB)
    kinds = [entry.kind for entry in journal.entries()]
    assert kinds == ["log.open", *["job.refused"] * 3, "clock.step", "job.refused"]
    times = [entry.time for entry in journal.entries()]
    assert times[0] == times[1] == times[2]
    assert times[3].startswith("2999")
    assert times[4] == times[5]
    assert verify_directory(place.directory, [place.vkey]).ok
    journal.close()
    assert place.open().size == 6
