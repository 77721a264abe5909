"""The shelf: what a job type keeps from job to job is whole and durable, or not there, and nobody else's."""

import os
import shutil
import stat
import tempfile
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulator import World

from node import doctor, lookups
from node.activation import InForce
from node.home import Home
from node.logs import Log
from node.shelf import DiskShelf, clear_leftovers, shelf_folder, shelf_of, shelves
from protocols.errors import StateConflict
from protocols.jobs.job_type import Shelf


def put(shelf: Shelf, name: str, *parts: bytes) -> None:
    with shelf.put(name) as write:
        for part in parts:
            write(part)


@pytest.fixture
def shelf(folder: Path) -> DiskShelf:
    return shelf_of(Home(folder), "lookup/1")


def test_a_blob_is_there_once_its_block_has_ended(shelf: DiskShelf) -> None:
    assert shelf.get("key") is None
    assert shelf.names() == []
    with shelf.put("key") as write:
        write(b"one ")
        assert shelf.get("key") is None
        write(b"two")
    assert bytes(shelf.get("key") or b"") == b"one two"
    assert shelf.names() == ["key"]


@pytest.mark.parametrize("opened", ["shelf", "shelf/lookup-1", "shelf/lookup-1/key.blob"])
def test_the_doctor_sees_what_others_may_open(shelf: DiskShelf, folder: Path, opened: str) -> None:
    home = Home(folder)
    assert list(doctor.shelf_findings(home)) == []
    put(shelf, "key", b"secret")
    [fine] = doctor.shelf_findings(home)
    assert fine.state == "ok"
    (folder / opened).chmod(0o740)
    [bad] = doctor.shelf_findings(home)
    assert (bad.state, bad.found) == (
        "error", "1 of 3 files and folders in shelf/ may be opened by other accounts"
    )  # fmt: skip


def test_the_doctor_says_what_keys_of_a_series_need_where_some_lie(folder: Path) -> None:
    home = Home(folder)
    put(shelf_of(home, "lookup/1"), "key", b"secret")
    [fine] = doctor.shelf_findings(home)
    assert not fine.hint
    put(shelf_of(home, "crosscheck-series/1"), "first", b"secret")
    [fine] = doctor.shelf_findings(home)
    assert fine.state == "ok"
    assert "encrypted" in fine.hint
    assert "backups and snapshots" in fine.hint


def test_after_an_error_there_is_what_was_there_before(shelf: DiskShelf, folder: Path) -> None:
    put(shelf, "key", b"old")

    def fail() -> None:
        with shelf.put("key") as write:
            write(b"new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert bytes(shelf.get("key") or b"") == b"old"
    assert [p.name for p in (folder / "shelf" / "lookup-1").iterdir()] == ["key.blob"]


def test_who_has_a_blob_keeps_it_when_it_is_put_again_or_dropped(shelf: DiskShelf) -> None:
    put(shelf, "table", b"first" * 5000)
    held = shelf.get("table")
    put(shelf, "table", b"second")
    shelf.drop("table")
    shelf.drop("table")
    assert held is not None
    assert held.readonly
    assert bytes(held) == b"first" * 5000
    assert shelf.get("table") is None


def test_an_empty_blob_is_one(shelf: DiskShelf) -> None:
    put(shelf, "nothing")
    assert bytes(shelf.get("nothing") or b"x") == b"x"
    assert shelf.get("nothing") is not None


def test_nobody_else_can_enter(shelf: DiskShelf, folder: Path) -> None:
    put(shelf, "key", b"secret")
    for path in (folder / "shelf", folder / "shelf" / "lookup-1"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "shelf" / "lookup-1" / "key.blob").stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["", "A", "a/b", "../x", "a b", "x" * 129, "é", "a\n"])
def test_only_names_that_are_names(shelf: DiskShelf, name: str) -> None:
    for call in (shelf.get, shelf.drop, lambda n: put(shelf, n)):
        with pytest.raises(ValueError, match="name"):
            call(name)


@settings(max_examples=25)
@given(st.dictionaries(st.from_regex(r"[a-z0-9._-]{1,128}", fullmatch=True), st.binary(max_size=64)))
def test_every_name_is_kept_apart_from_every_other(blobs: dict[str, bytes]) -> None:
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    try:
        shelf = shelf_of(Home(folder), "lookup/1")
        for name, blob in blobs.items():
            put(shelf, name, blob)
        assert shelf.names() == sorted(blobs)
        assert {name: bytes(shelf.get(name) or b"") for name in shelf.names()} == blobs
        assert all(path.parent.name == "lookup-1" for path in folder.rglob("*.blob"))
    finally:
        shutil.rmtree(folder)


def test_two_that_put_one_name_at_once_leave_one_of_both_whole(shelf: DiskShelf) -> None:
    both = threading.Barrier(2)

    def work(letter: bytes) -> None:
        both.wait()
        for _ in range(20):
            put(shelf, "table", *[letter] * 1000)

    threads = [threading.Thread(target=work, args=(letter,)) for letter in (b"a", b"b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bytes(shelf.get("table") or b"") in (b"a" * 1000, b"b" * 1000)


def test_what_a_crash_left_half_written_goes_at_the_next_start(shelf: DiskShelf, folder: Path) -> None:
    put(shelf, "key", b"kept")
    left = folder / "shelf" / "lookup-1" / "key.00ff.new"
    left.write_bytes(b"half")
    assert shelf.names() == ["key"]
    clear_leftovers(Home(folder))
    assert not left.exists()
    assert bytes(shelf.get("key") or b"") == b"kept"


def test_a_full_disk_is_said_and_leaves_what_was_there(
    shelf: DiskShelf, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    put(shelf, "key", b"old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(StateConflict) as refused:
            put(shelf, "key", b"new")
    assert refused.value.code == "shelf-write-failed"
    assert bytes(shelf.get("key") or b"") == b"old"
    assert len(list(shelf_folder(Home(folder)).rglob("*.new"))) == 0


def test_what_nobody_wants_any_more_is_deleted_with_a_receipt(world: World) -> None:
    home, now = world.homes["police"], datetime.now(UTC)
    shelf = shelf_of(home, "lookup/1")
    for name in ("used", "unused"):
        put(shelf, name, b"rows")
    long_ago = (now - timedelta(days=31)).timestamp()
    for path in shelf_folder(home).rglob("*.blob"):
        os.utime(path, (long_ago, long_ago))
    assert shelf.get("used") is not None
    state = world.open("police")
    try:
        active = InForce.load(state, home.name, home.signer.public_key).policy
        lookups.delete_unused(state, home, active, now, Log(None, world.clock))
        assert [shelf.names() for shelf in shelves(home)] == [["used"]]
        receipts = [e.body for e in state.journal.entries() if e.kind == "deletion.receipt"]
        assert receipts == [{"what": "shelf", "count": 1}]
        lookups.delete_unused(state, home, active, now, Log(None, world.clock))
        assert len([e for e in state.journal.entries() if e.kind == "deletion.receipt"]) == 1
    finally:
        state.close()
