"""Verification from the folder alone: every change anyone could make to it has a name."""

import json
import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audit import log as log_module
from audit.entries import Entry
from audit.merkle import EMPTY_ROOT, ENTRIES, Tile, TileBuilder, encode_bundle, leaf_hash
from audit.note import Checkpoint, Note, VerifierKey, sign_note
from audit.verify import MAX_PROBLEMS, read_entries, verify_directory
from protocols.errors import DecodeError, InputError

JOB = "sha256:" + "ab" * 32


def codes(place, keys=None) -> set[str]:
    verdict = verify_directory(place.directory, [place.vkey] if keys is None else keys)
    assert verdict.ok == (not verdict.problems)
    return {problem.code for problem in verdict.problems}


def write_log(place, entries: list[bytes], *, extensions: tuple[str, ...] = (), origin: str = "") -> None:
    """Publish exactly these entries, signed, whatever they say: what a dishonest operator can do."""
    tree, bundles = TileBuilder(), {}
    for start in range(0, len(entries), 256):
        group = entries[start : start + 256]
        bundles[Tile(ENTRIES, start // 256, len(group))] = encode_bundle(group)
        for entry in group:
            bundles |= dict(tree.add(leaf_hash(entry)))
    bundles |= dict(tree.partial_tiles())
    for tile, data in bundles.items():
        path = place.directory / tile.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    text = Checkpoint(origin or place.vkey.name, tree.size, tree.root(), extensions).encode()
    place.directory.mkdir(exist_ok=True)
    (place.directory / "checkpoint").write_bytes(sign_note(text, place.vkey, place.key.sign).encode())


def honest(place) -> list[Entry]:
    opened = Entry(
        place.vkey.name,
        0,
        "2026-12-01T00:00:00.000Z",
        "log.open",
        "",
        0,
        None,
        "",
        {"vkey": str(place.vkey)},
        (),
    )
    refused = replace(opened, kind="job.refused", job=JOB, body={"code": "no-rule"})
    return [opened, *[replace(refused, seq=n, time=f"2026-12-01T00:00:0{n}.000Z") for n in range(1, 5)]]


def test_a_whole_journal_verifies_and_the_verdict_says_what_it_is(closed):
    verdict = verify_directory(closed.directory, [closed.vkey])
    assert verdict.ok
    assert verdict.document() == {
        "ok": True,
        "origin": closed.vkey.name,
        "size": 300,
        "root": (closed.directory / "checkpoint").read_text().split("\n")[2],
        "keys": [str(closed.vkey)],
        "signed_by": [closed.vkey.label],
        "kinds": {"job.refused": 299, "log.open": 1},
        "first": "2026-12-01T00:00:00.010Z",
        "last": "2026-12-01T00:00:03.000Z",
        "problem_count": 0,
        "problems": [],
    }
    json.dumps(verdict.document())


def test_further_checks_see_every_entry_in_order(closed):
    seen: list[int] = []
    verify_directory(closed.directory, [closed.vkey], visit=lambda entry: seen.append(entry.seq))
    assert seen == list(range(300)) == [entry.seq for entry in read_entries(closed.directory)]


@pytest.mark.parametrize(
    ("path", "damaged", "missing"),
    [
        ("checkpoint", {"malformed-note"}, {"no-checkpoint"}),
        ("tile/entries/000", {"bad-bundle"}, {"missing"}),
        ("tile/entries/001.p/44", {"bad-bundle"}, {"missing"}),
        ("tile/0/000", {"tile-mismatch"}, {"missing"}),
        ("tile/0/001.p/44", {"tile-mismatch"}, {"missing"}),
        ("tile/1/000.p/1", {"tile-mismatch"}, {"missing"}),
    ],
)
def test_each_file_damaged_missing_or_unreadable_is_named(closed, path, damaged, missing):
    file = closed.directory / path
    data = file.read_bytes()
    file.write_bytes(data[:-1])
    assert codes(closed) == damaged
    file.unlink()
    assert codes(closed) == missing
    file.mkdir()
    assert codes(closed) == {"unreadable"}
    file.rmdir()
    file.write_bytes(data)
    assert codes(closed) == set()


@pytest.fixture
def impatient() -> Iterator[None]:
    """Interrupts whatever waits for longer than any of this may take."""

    def interrupt(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    "path", ["checkpoint", "tile/entries/000", "tile/entries/001.p/44", "tile/0/000", "tile/1/000.p/1"]
)
def test_a_pipe_or_device_among_the_evidence_is_named_and_not_waited_for(closed, path, impatient):
    file = closed.directory / path
    for make in (os.mkfifo, lambda file: file.symlink_to("/dev/zero"), listen):
        file.unlink()
        make(file)
        assert codes(closed) == {"unreadable"}


def listen(path: Path) -> None:
    """Leave a socket at `path`, in whose name more than 107 bytes would not fit."""
    here = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.chdir(here)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_one_bit_changed_in_any_file_is_found_out(closed, data):
    # Older partial tiles belong to earlier checkpoints; this one does not rest on them.
    current = {"checkpoint", "tile/0/000", "tile/0/001.p/44", "tile/1/000.p/1", "tile/entries/000"}
    needed = {*current, "tile/entries/001.p/44"}
    path = closed.directory / data.draw(st.sampled_from(sorted(needed)))
    original = path.read_bytes()
    bit = data.draw(st.integers(0, len(original) * 8 - 1))
    bent = bytearray(original)
    bent[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bent)
    assert codes(closed)
    path.write_bytes(original)


def test_entries_and_tiles_both_missing_stop_the_check(closed):
    (closed.directory / "tile/entries/000").unlink()
    (closed.directory / "tile/0/000").unlink()
    assert codes(closed) == {"missing", "stopped"}
    (closed.directory / "tile/0/000").write_bytes(b"short")
    assert codes(closed) == {"missing", "stopped"}


def test_a_partial_tile_replaced_by_its_full_one_is_read_from_it(place):
    """An auditor copies the checkpoint first; by the time of the tiles the log has grown."""
    with place.open() as journal:
        place.fill(journal, 9)
        early = (place.directory / "checkpoint").read_bytes()
        place.fill(journal, 290)
    assert not (place.directory / "tile/0/000.p").exists()
    (place.directory / "checkpoint").write_bytes(early)
    assert verify_directory(place.directory, [place.vkey]).size == 10
    assert codes(place) == set()


def test_only_keys_the_auditor_holds_count(closed):
    other = Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32).public_key().public_bytes_raw()
    assert codes(closed, []) == {"no-known-signature"}
    assert codes(closed, [VerifierKey(closed.vkey.name, 1, other)]) == {"no-known-signature"}
    assert codes(closed, [VerifierKey(closed.vkey.name, 1, other), closed.vkey]) == set()


def test_an_honest_handmade_log_verifies(place):
    write_log(place, [entry.encode() for entry in honest(place)])
    assert codes(place) == set()


def test_a_log_emptied_and_signed_again_does_not_verify(place):
    write_log(place, [])
    assert codes(place) == {"empty-log"}
    assert list(read_entries(place.directory)) == []


def since(place, earlier: bytes) -> set[str]:
    verdict = verify_directory(place.directory, [place.vkey], earlier=earlier)
    return {problem.code for problem in verdict.problems}


def test_a_kept_checkpoint_shows_a_log_that_was_cut_or_rewritten_and_signed_again(place):
    entries = [entry.encode() for entry in honest(place)]
    write_log(place, entries[:4])
    kept = (place.directory / "checkpoint").read_bytes()
    assert since(place, kept) == set()
    write_log(place, entries)
    assert since(place, kept) == set()
    write_log(place, entries[:3])
    assert (codes(place), since(place, kept)) == (set(), {"shortened"})
    other = replace(honest(place)[2], body={"code": "no-purpose"}).encode()
    write_log(place, [*entries[:2], other, *entries[3:]])
    assert (codes(place), since(place, kept)) == (set(), {"rewritten"})


def test_what_was_kept_must_be_a_checkpoint_of_this_log(place):
    write_log(place, [entry.encode() for entry in honest(place)])
    kept = (place.directory / "checkpoint").read_bytes()
    for bad in (b"", kept.replace(b"5\n", b"4\n", 1)):
        with pytest.raises(InputError) as caught:
            since(place, bad)
        assert caught.value.code == "bad-earlier-checkpoint"
    foreign = Checkpoint("other.example/log", 0, EMPTY_ROOT).encode()
    assert since(place, sign_note(foreign, place.vkey, place.key.sign).encode()) == {"wrong-origin"}


@pytest.mark.parametrize(
    ("number", "change", "code"),
    [
        (2, {"seq": 3}, "wrong-seq"),
        (2, {"log": "police.gz.example/node-b/journal/1"}, "wrong-log"),
        (2, {"time": "2026-12-01T00:00:00.999Z"}, "time-backwards"),
        (0, {"kind": "job.refused", "job": JOB, "body": {"code": "no-rule"}}, "log-open"),
    ],
)
def test_a_signed_log_that_breaks_a_rule_does_not_verify(place, number, change, code):
    entries = honest(place)
    entries[number] = replace(entries[number], **change)
    write_log(place, [entry.encode() for entry in entries])
    assert code in codes(place)


def test_a_log_opens_only_once(place):
    entries = honest(place)
    entries[2] = replace(entries[0], seq=2, time=entries[2].time)
    write_log(place, [entry.encode() for entry in entries])
    assert codes(place) == {"log-open"}


def test_a_clock_step_explains_an_earlier_time(place):
    entries = honest(place)
    entries[2] = replace(entries[2], kind="clock.step", job="", body={}, time="2026-11-30T00:00:00.000Z")
    write_log(place, [entry.encode() for entry in entries])
    assert codes(place) == set()


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (lambda data: data.replace(b'"seq":2', b'"seq": 2'), "not-canonical"),
        (lambda data: data.replace(b"job.refused", b"job.forgotten"), "unknown-kind"),
        (lambda data: data.replace(b'"code"', b'"note"'), "unknown-body-key"),
        (lambda _: b"\xff\xfe", "not-json"),
        (lambda _: b"", "not-json"),
    ],
)
def test_a_signed_entry_that_is_not_strict_does_not_verify(place, bad, code):
    entries = [entry.encode() for entry in honest(place)]
    entries[2] = bad(entries[2])
    write_log(place, entries)
    assert codes(place) == {code}
    with pytest.raises(DecodeError):
        list(read_entries(place.directory))


def test_a_checkpoint_signed_by_a_key_that_the_log_does_not_name_does_not_verify(place):
    entries = honest(place)
    other = VerifierKey(place.vkey.name, 1, bytes(32))
    entries[0] = replace(entries[0], body={"vkey": str(other)})
    write_log(place, [entry.encode() for entry in entries])
    assert codes(place) == {"wrong-key"}


def test_another_logs_origin_or_lines_that_no_one_can_check_do_not_verify(place):
    entries = [replace(entry, log="other.example/log").encode() for entry in honest(place)]
    write_log(place, entries, origin="other.example/log")
    assert codes(place) == {"wrong-origin"}
    # Nor does it help that a key of that name signs as well: the log itself is the other key's.
    path, named = place.directory / "checkpoint", VerifierKey("other.example/log", 1, place.public_key)
    note = Note.decode(path.read_bytes()).with_signature(named, place.key.sign)
    path.write_bytes(note.encode())
    assert codes(place, [place.vkey, named]) == {"wrong-origin"}
    write_log(place, [entry.encode() for entry in honest(place)], extensions=("more",))
    assert codes(place) == {"extension-lines"}


def test_a_signed_root_of_other_entries_does_not_verify(place):
    write_log(place, [entry.encode() for entry in honest(place)])
    checkpoint = (place.directory / "checkpoint").read_bytes()
    entries = honest(place)
    entries[3] = replace(entries[3], body={"code": "no-purpose"})
    write_log(place, [entry.encode() for entry in entries])
    (place.directory / "checkpoint").write_bytes(checkpoint)
    assert codes(place) == {"root-mismatch"}


def test_a_checkpoint_that_claims_more_than_is_there_stops_early(place):
    text = Checkpoint(place.vkey.name, 2**53, bytes(32)).encode()
    place.directory.mkdir()
    (place.directory / "checkpoint").write_bytes(sign_note(text, place.vkey, place.key.sign).encode())
    assert codes(place) == {"missing", "stopped"}


def test_problems_beyond_the_first_hundred_are_counted(closed):
    path = closed.directory / "tile/entries/000"
    path.write_bytes(encode_bundle([b"{}"] * 256))
    verdict = verify_directory(closed.directory, [closed.vkey])
    assert len(verdict.problems) == MAX_PROBLEMS
    assert verdict.problem_count > 256
    assert not verdict.ok


def test_a_folder_that_is_not_there_is_an_input_error(place):
    for call in (lambda: verify_directory(place.directory, []), lambda: list(read_entries(place.directory))):
        with pytest.raises(InputError) as caught:
            call()
        assert caught.value.code == "no-folder"
    place.directory.mkdir()
    with pytest.raises(InputError) as caught:
        list(read_entries(place.directory))
    assert caught.value.code == "no-checkpoint"
    assert codes(place) == {"no-checkpoint"}


def test_a_file_of_any_length_is_read_in_bounded_memory(closed, monkeypatch):
    monkeypatch.setattr("audit.folder.MAX_BUNDLE_BYTES", 1000)
    assert "too-long" in codes(closed)


def test_verification_needs_no_database(closed):
    closed.database.unlink()
    assert codes(closed) == set()
    for module in ("verify", "replay", "cli"):
        source = (Path(log_module.__file__).parent / f"{module}.py").read_text()
        assert "sqlite" not in source
        assert "audit.log" not in source


@pytest.mark.parametrize("last", [3, 256, 300])
def test_no_entry_is_of_an_earlier_version_than_the_one_before(place, last):
    opened, *rest = honest(place)
    entries = [replace(opened, v=1), *(replace(rest[0], seq=n, v=2 if n < 200 else 3) for n in range(1, 301))]
    write_log(place, [entry.encode() for entry in entries])
    assert codes(place) == set()
    entries = [replace(entry, v=3) for entry in entries]
    entries[last] = replace(entries[last], v=2)
    write_log(place, [entry.encode() for entry in entries])
    verdict = verify_directory(place.directory, [place.vkey])
    assert [(p.code, p.where) for p in verdict.problems] == [("version-went-back", f"entry {last}")]
