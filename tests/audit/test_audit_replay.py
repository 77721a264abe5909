"""Verification in several processes, and of the objects that entries name: the verdict of one."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from journals import JOB, NODE, ORIGIN, Place, signer

from audit import replay as replay_module
from audit.folder import Folder
from audit.replay import ObjectCheck, Task, replay
from audit.verify import Verdict, verify_directory
from protocols.encoding import sha256_digest
from protocols.envelope import ADMISSION, RECEIPT, sign

SIGNERS = ObjectCheck({ADMISSION: [signer(5).public_key, signer(6).public_key]})


@pytest.fixture
def several(monkeypatch) -> None:
    """Starts processes for logs of a few bundles."""
    monkeypatch.setattr(replay_module, "_SERIAL_BUNDLES", 2)
    monkeypatch.setattr(replay_module, "_BUNDLES_AT_ONCE", 1)
    monkeypatch.setattr(replay_module.os, "sched_getaffinity", lambda _: {0, 1})


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Place:
    """A log of 1,600 entries, seven bundles, with a rotation and some signed objects."""
    place = Place(tmp_path_factory.mktemp("made"))
    with place.open_with(signer(0)) as journal:
        place.fill(journal, 500)
        place.rotate(journal, signer(0), signer(1))
        for number in range(4):
            admission = sign(ADMISSION, b'{"number":%d}' % number, [signer(5 + number % 2)]).encode()
            receipt = sign(RECEIPT, b"{}", [signer(9)]).encode()
            named = {"admission_sha256": JOB, "envelope_sha256": journal.put_object(admission)}
            with journal.transaction() as connection:
                journal.append(
                    connection,
                    "job.accepted",
                    named | {"decided": "2026-12-01T00:00:00.000Z"},
                    job=JOB,
                    refs=[journal.put_object(receipt), journal.put_object(b"plain %d" % number)],
                )
            place.fill(journal, 250)
        place.fill(journal, 94)
    return place


@pytest.fixture
def copy(made, place) -> Place:
    shutil.copytree(made.home, place.home, dirs_exist_ok=True)
    return place


def verdict(place: Place, **other) -> Verdict:
    return verify_directory(place.directory, [place.vkey], **other)


class Counted:
    """A reader that cannot leave this process."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.read: list[str] = []
        self.unpicklable: Callable[[], None] = lambda: None

    def read_checkpoint(self, name: str = "checkpoint") -> bytes | None:
        return self.folder.read_checkpoint(name)

    def read_tile(self, tile) -> bytes | None:
        self.read.append(tile.path)
        return self.folder.read_tile(tile)

    def read_object(self, digest: str, limit: int = 1 << 20) -> bytes | None:
        return self.folder.read_object(digest, limit)


def started(monkeypatch) -> list[int]:
    """Count the processes that are started from here on."""
    counted: list[int] = []
    start = replay_module._start

    def counting(*arguments):
        workers = start(*arguments)
        counted.append(len(workers))
        return workers

    monkeypatch.setattr(replay_module, "_start", counting)
    return counted


def test_several_processes_come_to_the_verdict_of_one(copy, several, monkeypatch):
    counted = started(monkeypatch)
    seen: list[int] = []
    parallel = verdict(copy, visit=lambda entry: seen.append(entry.seq), objects=SIGNERS)
    serial = verify_directory(Counted(Folder(copy.directory)), [copy.vkey], objects=SIGNERS)
    assert counted == [2, 0]
    assert parallel == serial
    assert parallel.ok
    assert (parallel.size, parallel.objects, parallel.objects_missing) == (1600, 13, 0)
    assert seen == list(range(1600))


def bend(place: Place, path: str, at: int) -> None:
    file = place.directory / path
    data = file.read_bytes()
    at %= len(data)
    file.write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 40))])
def test_damage_anywhere_is_told_alike_by_several_and_by_one(copy, several, seed):
    """Seeded, three places each."""
    drawn = random.Random(seed)
    files = sorted(path for path in copy.files() if path.startswith(("tile", "objects")))
    for path in drawn.sample(files, 3):
        if drawn.random() < 0.3:
            (copy.directory / path).unlink()
        else:
            bend(copy, path, drawn.randrange(1 << 20))
    reader = Counted(Folder(copy.directory))
    visited: tuple[list[int], list[int]] = [], []
    parallel = verdict(copy, objects=SIGNERS, visit=lambda entry: visited[0].append(entry.seq))
    serial = verify_directory(
        reader, [copy.vkey], objects=SIGNERS, visit=lambda entry: visited[1].append(entry.seq)
    )
    assert parallel == serial
    assert visited[0] == visited[1]


def compared(place: Place, size: int, root: bytes) -> set[str]:
    return {problem.code for problem in verdict(place, earlier=kept(place, size, root)).problems}


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 700, 1024, 1599, 1600])
def test_a_kept_checkpoint_is_compared_within_a_bundle_and_between_two(copy, size):
    with copy.open_with(signer(1)) as journal:
        root = journal.root_at(size)
    assert compared(copy, size, root) == set()
    assert compared(copy, size, bytes(32)) == {"rewritten"}
    assert compared(copy, 1601, root) == {"shortened"}


def test_several_processes_compare_it_alike(copy, several):
    with copy.open_with(signer(1)) as journal:
        root = journal.root_at(1100)
    assert compared(copy, 1100, root) == set()
    assert compared(copy, 1100, bytes(32)) == {"rewritten"}


def kept(place: Place, size: int, root: bytes) -> bytes:
    from audit.note import Checkpoint, sign_note

    return sign_note(Checkpoint(ORIGIN, size, root).encode(), place.vkey, place.key.sign).encode()


def test_a_process_that_dies_is_done_without(copy, several, monkeypatch):
    dying = replay_module._MAIN.replace("from audit.replay import serve\n", "import os; os._exit(3)\n")
    assert dying != replay_module._MAIN
    monkeypatch.setattr(replay_module, "_MAIN", dying)
    counted = started(monkeypatch)
    assert verdict(copy, objects=SIGNERS).ok
    assert counted == [2]


def test_a_process_that_dies_half_way_is_done_without(copy, several, monkeypatch):
    dying = replay_module._MAIN.replace(
        "serve(",
        "from audit.replay import Replay\nimport os\nlong = Replay.bundle\n"
        "Replay.bundle = lambda self, index, leaves: os._exit(3) if index > 3 else "
        "long(self, index, leaves=leaves)\nserve(",
    )
    monkeypatch.setattr(replay_module, "_MAIN", dying)
    seen: list[int] = []
    assert verdict(copy, visit=lambda entry: seen.append(entry.seq)).ok
    assert seen == list(range(1600))


def test_where_no_process_can_be_started_one_serves(copy, several, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(replay_module.subprocess, "Popen", refuse)
    assert verdict(copy).ok
    monkeypatch.undo()
    monkeypatch.setattr(replay_module, "_SERIAL_BUNDLES", 2)
    monkeypatch.setattr(replay_module, "_BUNDLES_AT_ONCE", 1)
    monkeypatch.setattr(replay_module.os, "sched_getaffinity", lambda _: {0})
    counted = started(monkeypatch)
    assert verdict(copy).ok
    assert counted == [0]


def test_a_reader_that_gives_up_early_leaves_no_process_behind(copy, several, monkeypatch):
    stopped = []
    stop = replay_module._Worker.stop
    monkeypatch.setattr(
        replay_module._Worker, "stop", lambda self: (stop(self), stopped.append(self._process.returncode))
    )
    bundles = replay(Folder(copy.directory), Task(ORIGIN, 1600, entries=False, signers=None))
    for _ in range(4):
        next(bundles)
    bundles.close()
    assert stopped == [-9, -9]


def test_a_checkpoint_that_claims_a_huge_log_starts_nothing(place, monkeypatch):
    counted = started(monkeypatch)
    with place.open() as journal:
        place.fill(journal, 3)
    (place.directory / "checkpoint").write_bytes(kept(place, 2**53, bytes(32)))
    codes = {problem.code for problem in verdict(place).problems}
    assert codes == {"missing", "stopped"}
    assert counted == []


def test_the_caller_may_be_any_program(copy, tmp_path):
    """A script without a guard around its own start, piped into the interpreter, and run once only."""
    import subprocess
    import sys

    script = f"""
import sys
from pathlib import Path
sys.path[:0] = [{str(Path(__file__).parents[2])!r}]
print("started")
from audit import replay
from audit.note import VerifierKey
from audit.verify import verify_directory
replay._SERIAL_BUNDLES, replay._BUNDLES_AT_ONCE = 2, 1
print(verify_directory(Path({str(copy.directory)!r}), [VerifierKey.parse({str(copy.vkey)!r})]).ok)
"""
    done = subprocess.run([sys.executable, "-"], input=script, cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("started\nTrue\n", "")

    # Nothing that lies in the folder the auditor stands in is ever imported: it may be a hostile bundle.
    for name in ("json", "pickle", "signal", "hashlib", "audit", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text('open("ran", "w").close()')
    command = [sys.executable, "-P", "-"]
    done = subprocess.run(command, input=script, cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("started\nTrue\n", "")
    assert not (tmp_path / "ran").exists()


# -- objects -------------------------------------------------------------------------------------------------


def told(place: Place, check: ObjectCheck = SIGNERS) -> list[tuple[str, str]]:
    return [(problem.code, problem.where) for problem in verdict(place, objects=check).problems]


def naming(place: Place, data: bytes, *, store: bool = True, **other) -> str:
    """A log whose entry 1 names that object."""
    with place.open() as journal:
        digest = journal.put_object(data)
        if not store:
            journal.delete_object(digest)
        journal.record(
            "job.accepted",
            {"admission_sha256": JOB, "envelope_sha256": digest, "decided": "2026-12-01T00:00:00.000Z"},
            job=JOB,
            **other,
        )
    return digest


def test_an_object_changed_in_any_way_is_named_by_the_entry_that_rests_on_it(place):
    digest = naming(place, b"an object")
    name = digest.removeprefix("sha256:")
    path = place.directory / "objects" / "sha256" / name[:2] / name
    for damaged in (b"an Object", b"", b"an object and more"):
        path.write_bytes(damaged)
        assert told(place) == [("object-damaged", "entry 1")]
        assert verdict(place).ok
    path.unlink()
    path.mkdir()
    assert told(place) == [("unreadable", "entry 1")]


def test_an_object_that_is_not_there_is_counted_and_no_problem(place):
    naming(place, b"a quality record", store=False)
    found = verdict(place, objects=SIGNERS)
    assert (found.ok, found.objects, found.objects_missing) == (True, 1, 1)


def test_a_signed_object_needs_a_signature_by_a_key_of_its_type(place):
    naming(place, sign(ADMISSION, b"{}", [signer(8)]).encode())
    assert told(place) == [("too-few-signatures", "entry 1")]
    assert told(place, ObjectCheck({RECEIPT: [signer(5).public_key]})) == []
    assert told(place, ObjectCheck({ADMISSION: []})) == [("too-few-signatures", "entry 1")]
    assert told(place, ObjectCheck({ADMISSION: [signer(8).public_key]})) == []


def test_an_object_that_only_looks_like_an_envelope_is_judged_by_its_digest(place):
    naming(place, b'{"payload":"?", "payloadType":5}')
    assert told(place) == []


def test_an_object_is_read_once_however_many_entries_name_it(place):
    digest = naming(place, b"an object")
    with place.open() as journal:
        for _ in range(3):
            journal.record("job.refused", {"code": "no-rule"}, job=JOB, refs=[digest, digest])
    reader = Counted(Folder(place.directory))
    read: list[str] = []
    reader.read_object = lambda digest, limit: read.append(digest) or b"an object"
    found = verify_directory(reader, [place.vkey], objects=SIGNERS)
    assert (found.ok, found.objects, read) == (True, 4, [digest])
    assert sha256_digest(b"an object") == digest
    assert ORIGIN.startswith(NODE)
