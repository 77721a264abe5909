"""Scratch: what no disk ever shows, and what is left of it when an attempt ends, however it ends."""

import errno
import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from crosscheck_case import person
from hypothesis import given, settings
from hypothesis import strategies as st

from node import scratch
from node.scratch import DiskScratch, clear_leftovers
from protocols.errors import StateConflict

CANARIES = b"".join(person(number).encode() for number in range(200))


def open_files(folder: Path) -> list[int]:
    """Return this process's open files that lie in a folder, with or without a name."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(entry)  # noqa: PTH115  # may name a file that is gone
        except FileNotFoundError:
            continue  # the listing itself
        if target.startswith(f"{folder}/"):
            found.append(int(entry.name))
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "scratch"


@pytest.fixture
def disk(folder: Path) -> Iterator[DiskScratch]:
    disk = DiskScratch(folder)
    yield disk
    disk.close()


def test_the_key_is_let_go_of_with_what_was_written_under_it(folder: Path) -> None:
    disk = DiskScratch(folder)
    store, other = disk.store(), disk.store()
    store.append(CANARIES)
    other.drop()
    disk.close()
    assert not disk._key
    for each in (store, other):
        assert each._key is each._writing is None
        with pytest.raises(StateConflict) as error:
            each.append(b"more")
        assert error.value.code == "scratch-closed"


def test_nothing_that_was_added_can_be_read_in_the_file(disk: DiskScratch, folder: Path) -> None:
    store = disk.store()
    for start in range(0, len(CANARIES), 1000):
        store.append(CANARIES[start : start + 1000])
    (descriptor,) = open_files(folder)
    raw = Path(f"/proc/self/fd/{descriptor}").read_bytes()
    assert len(raw) == store.size == len(CANARIES)
    assert not any(person(number).encode() in raw for number in range(200))
    assert not any(raw[at : at + 8] in CANARIES for at in range(0, len(raw) - 8, 8))
    assert store.read(0, store.size) == CANARIES


def test_its_files_have_no_name_and_are_for_this_account_alone(disk: DiskScratch, folder: Path) -> None:
    disk.store().append(b"x")
    stores = [disk.store() for _ in range(3)]
    assert list(folder.iterdir()) == []
    assert folder.stat().st_mode & 0o777 == 0o700
    modes = {os.fstat(descriptor).st_mode & 0o777 for descriptor in open_files(folder)}
    assert modes == {0o600}
    assert len(stores) == 3


def test_a_file_system_without_unnamed_files_is_served_too(
    disk: DiskScratch, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = os.open

    def refusing(path: object, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "not here")
        return opened(path, flags, mode)  # type: ignore[arg-type]  # as it was called

    monkeypatch.setattr(scratch.os, "open", refusing)
    store = disk.store()
    store.append(CANARIES)
    assert store.read(10, 30) == CANARIES[10:40]
    assert list(folder.iterdir()) == []


@settings(max_examples=30)
@given(st.lists(st.binary(max_size=60), max_size=8), st.data())
def test_what_is_read_is_what_was_added_wherever_it_begins(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], data: st.DataObject
) -> None:
    disk = DiskScratch(tmp_path_factory.getbasetemp() / "scratch")
    store, whole = disk.store(), b"".join(pieces)
    for piece in pieces:
        store.append(memoryview(piece))
    at = data.draw(st.integers(0, len(whole)))
    size = data.draw(st.integers(0, len(whole) - at))
    assert store.read(at, size) == whole[at : at + size]
    with pytest.raises(ValueError, match="bytes from"):
        store.read(at, len(whole) - at + 1)
    disk.close()


def test_no_two_stores_and_no_two_attempts_share_a_key_stream(folder: Path) -> None:
    # Of equal contents under one stream the files would be equal.
    disks = [DiskScratch(folder) for _ in range(2)]
    stores = [disk.store() for disk in disks for _ in range(2)]
    for store in stores:
        store.append(bytes(64))
    raw = {Path(f"/proc/self/fd/{each}").read_bytes() for each in open_files(folder)}
    assert len(raw) == 4
    assert all(store.read(0, 64) == bytes(64) for store in stores)
    for disk in disks:
        disk.close()


@pytest.mark.parametrize("end", ["close", "drop", "forget"])
def test_its_room_is_free_again_however_an_attempt_ends(folder: Path, end: str) -> None:
    disk = DiskScratch(folder)
    stores = [disk.store() for _ in range(3)]
    assert len(open_files(folder)) == 3
    if end == "close":
        disk.close()
    elif end == "drop":
        for store in stores:
            store.drop()
    stores.clear()
    gc.collect()
    assert open_files(folder) == []


def test_whoever_still_uses_it_after_the_end_is_told(disk: DiskScratch) -> None:
    store = disk.store()
    store.append(b"abc")
    disk.close()
    for use in (lambda: store.append(b"d"), lambda: store.read(0, 3), disk.store):
        with pytest.raises(StateConflict) as refused:
            use()
        assert refused.value.code == "scratch-closed"


def test_a_full_disk_is_said_with_what_to_do(disk: DiskScratch, monkeypatch: pytest.MonkeyPatch) -> None:
    store = disk.store()
    store.append(b"abc")

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(scratch.os, "pwrite", full)
    with pytest.raises(StateConflict) as refused:
        store.append(CANARIES)
    assert refused.value.code == "disk-full"
    assert "scratch/" in refused.value.hint
    assert not any(person(number) in refused.value.message for number in range(200))
    monkeypatch.undo()
    # A part of it may be there: nothing is read or added any more.
    with pytest.raises(StateConflict):
        store.append(b"d")


def test_a_disk_that_takes_little_at_a_time_gets_all(
    disk: DiskScratch, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, read = os.pwrite, os.pread
    monkeypatch.setattr(scratch.os, "pwrite", lambda file, data, at: write(file, data[:7], at))
    monkeypatch.setattr(scratch.os, "pread", lambda file, size, at: read(file, min(size, 5), at))
    store = disk.store()
    store.append(CANARIES[:100])
    assert store.read(3, 90) == CANARIES[3:93]


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StateConflict) as refused:
        DiskScratch(tmp_path / "file" / "scratch").store()
    assert refused.value.code == "scratch-failed"


def test_names_that_a_crash_left_are_removed_at_the_next_start(folder: Path) -> None:
    clear_leftovers(folder)  # there is none yet
    folder.mkdir()
    (folder / "0123.new").write_bytes(b"")
    (folder / "lost+found").mkdir()
    clear_leftovers(folder)
    assert [path.name for path in folder.iterdir()] == ["lost+found"]


KILLED = """
import os, signal, sys
from pathlib import Path
from node.scratch import DiskScratch
store = DiskScratch(Path(sys.argv[1])).store()
store.append(b"x" * 1_000_000)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_of_a_process_that_is_killed_nothing_is_left(folder: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", KILLED, folder], timeout=60, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert list(folder.iterdir()) == []
