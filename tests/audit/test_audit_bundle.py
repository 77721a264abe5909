"""Bundles: what is copied out of a journal, and that nothing else ever is."""

import pickle
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from several import Collaboration

from audit import bundle as bundle_module
from audit.bundle import entries_of, export, limit_of, open_bundle, root_at
from audit.entries import Entry
from audit.merkle import ENTRIES, Tile, tiles
from audit.note import Checkpoint, Note
from audit.verify import verify_directory
from protocols.encoding import sha256_digest
from protocols.errors import DecodeError, InputError, StateConflict

JOB = "sha256:" + "ab" * 32


@pytest.fixture
def city(tmp_path: Path) -> Iterator[Collaboration]:
    it = Collaboration(tmp_path)
    yield it
    it.close()


def names(path: Path) -> set[str]:
    with open_bundle(path) as bundle:
        return {found.name for found in bundle.files()}


def contents(path: Path) -> dict[str, bytes | None]:
    with open_bundle(path) as bundle:
        return {found.name: bundle.read(found.name) for found in bundle.files()}


@pytest.mark.parametrize("name", ["out", "out.zip"])
def test_a_bundle_holds_what_belongs_to_one_checkpoint_and_verifies(city, tmp_path, name):
    city.sign_roster()
    city.whole()
    police = city["police"]
    made = export(police.directory, tmp_path / name)
    assert (made.size, made.origin) == (5, police.journal.origin)
    held = contents(tmp_path / name)
    assert made.files == len(held)
    assert made.bytes == sum(len(data or b"") for data in held.values())
    assert {path for path in held if not path.startswith(("objects/", "witnessed/"))} == {
        "checkpoint", "checkpoint.cosigned", "checkpoint.old", "tile/0/000.p/5", "tile/entries/000.p/5",
    }  # fmt: skip
    assert sum(path.startswith("witnessed/") for path in held) == 3
    assert made.objects == sum(path.startswith("objects/") for path in held) == 2
    with open_bundle(tmp_path / name) as bundle:
        assert verify_directory(bundle, [police.vkey]).ok


def test_folder_and_zip_hold_the_same_and_the_zip_is_the_same_bytes_each_time(city, tmp_path):
    city.whole()
    for name in ("out", "out.zip", "again.zip"):
        export(city["police"].directory, tmp_path / name)
    assert contents(tmp_path / "out") == contents(tmp_path / "out.zip")
    assert (tmp_path / "out.zip").read_bytes() == (tmp_path / "again.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "out.zip") as other_program:
        assert other_program.testzip() is None
    # A bundle of a bundle is that bundle.
    export(tmp_path / "out.zip", tmp_path / "third")
    assert contents(tmp_path / "third") == contents(tmp_path / "out")


def test_nothing_but_what_entries_name_is_copied_and_no_release_ever(city, tmp_path):
    police = city["police"]
    named = police.journal.put_object(b"evidence")
    stray = police.journal.put_object(b"nobody names this")
    sealed = police.journal.put_object(b"a sealed release, where it should never be")
    police.record("job.refused", {"code": "no-rule"}, job=JOB, refs=[named])
    for kind in ("output.commit", "output.released"):
        body = {"release": "0" * 32, "sha256": sealed} | ({"class": "A"} if kind == "output.commit" else {})
        police.record(kind, body, job=JOB)
    (police.directory / "list.csv").write_text("somebody's list")
    (police.directory / "releases").mkdir()
    (police.directory / "releases" / "1").write_text("opened")
    export(police.directory, tmp_path / "out")
    held = contents(tmp_path / "out")
    assert {sha256_digest(data or b"") for name, data in held.items() if name.startswith("objects/")} == {
        named
    }
    assert not any(word in name for name in held for word in ("list", "releases", stray[7:], sealed[7:]))
    assert b"sealed" not in b"".join(data or b"" for data in held.values())


def test_a_bundle_made_while_the_log_grows_is_of_one_moment(city, tmp_path):
    police = city["police"]
    police.refuse(300)
    stop = threading.Event()

    def grow() -> None:
        while not stop.is_set():
            city.clock.wait(seconds=1)
            police.record(
                "job.refused",
                {"code": "rate"},
                job=JOB,
                refs=[police.journal.put_object(b"%d" % police.journal.size)],
            )

    writer = threading.Thread(target=grow)
    writer.start()
    sizes: list[int] = []
    try:
        for n in range(4):
            sizes.append(export(police.directory, tmp_path / f"{n}.zip").size)
            while police.journal.published < sizes[-1] + 2:
                time.sleep(0.001)
    finally:
        stop.set()
        writer.join()
    assert sizes == sorted(set(sizes))
    for n, size in enumerate(sizes):
        with open_bundle(tmp_path / f"{n}.zip") as bundle:
            verdict = verify_directory(bundle, [police.vkey])
            assert (verdict.ok, verdict.size) == (True, size)
            for data in entries_of(bundle, size):
                for digest in Entry.decode(data).refs:
                    assert bundle.read_object(digest) is not None
            assert max(tile.end for tile in (Tile.parse(f.name) for f in bundle.files("tile/"))) <= size


def test_an_object_deleted_while_it_is_copied_starts_the_copy_again(city, tmp_path, monkeypatch):
    police = city["police"]
    gone = police.journal.put_object(b"deleted in a moment")
    police.record("job.refused", {"code": "no-rule"}, job=JOB, refs=[gone])
    read_object = bundle_module.Bundle.read_object
    deleted: list[str] = []

    def deleting(self, digest, limit=bundle_module.MAX_OBJECT_BYTES):
        if digest == gone and not deleted:
            police.journal.delete_object(gone)
            deleted.append(gone)
            police.record("deletion.receipt", {"what": "object", "sha256": gone})
        return read_object(self, digest, limit)

    monkeypatch.setattr(bundle_module.Bundle, "read_object", deleting)
    made = export(police.directory, tmp_path / "out")
    assert (deleted, made.objects, made.size) == ([gone], 0, 3)
    assert [entry.kind for entry in (Entry.decode(e) for e in entries_of(open_bundle(tmp_path / "out"), 3))][
        -1
    ] == ("deletion.receipt")


@pytest.mark.parametrize("name", ["out", "out.zip"])
def test_an_export_that_fails_leaves_nothing_behind_and_replaces_nothing(city, tmp_path, name):
    police = city["police"]
    police.refuse(3)
    (tmp_path / name).write_text("somebody's")
    with pytest.raises(InputError) as caught:
        export(police.directory, tmp_path / name)
    assert caught.value.code == "out-exists"
    assert (tmp_path / name).read_text() == "somebody's"
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError):
        export(police.directory, tmp_path / name)
    (tmp_path / name).unlink()
    before = set(tmp_path.iterdir())
    path = police.directory / "tile/entries/000.p/4"
    data = path.read_bytes()
    path.write_bytes(data.replace(b"no-rule", b"no-fule", 1))
    with pytest.raises(StateConflict) as conflict:
        export(police.directory, tmp_path / name)
    assert conflict.value.code == "journal-damaged"
    assert "000.p/4" in conflict.value.message
    path.unlink()
    with pytest.raises(StateConflict):
        export(police.directory, tmp_path / name)
    assert set(tmp_path.iterdir()) == before


def test_what_is_no_journal_is_not_exported(tmp_path):
    with pytest.raises(InputError) as caught:
        export(tmp_path / "nowhere", tmp_path / "out")
    assert caught.value.code == "no-folder"
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError) as caught:
        export(tmp_path / "empty", tmp_path / "out")
    assert caught.value.code == "no-checkpoint"
    assert not (tmp_path / "out").exists()


def test_every_root_that_a_log_ever_had_is_read_back_from_its_tiles(city):
    police = city["police"]
    roots = {}
    for _ in range(20):
        police.refuse(1)
        checkpoint = Checkpoint.decode(Note.decode(police.journal.checkpoint()).text)
        roots[checkpoint.size] = checkpoint.root
    police.refuse(260)
    with police.bundle() as bundle:
        size = police.journal.size
        assert all(root_at(bundle, size, at) == root for at, root in roots.items())
        with pytest.raises(DecodeError):
            root_at(bundle, size, size + 1)


def test_a_bundle_opens_again_in_another_process(city, tmp_path):
    city.whole()
    export(city["police"].directory, tmp_path / "out.zip")
    for path in (city["police"].directory, tmp_path / "out.zip"):
        with open_bundle(path) as bundle:
            again = pickle.loads(pickle.dumps(bundle))
            assert again.read_checkpoint() == bundle.read_checkpoint()


def test_every_file_that_a_bundle_holds_has_a_name_and_a_limit(city):
    city.whole()
    for found in city["police"].bundle().files():
        assert (limit_of(found.name) or 0) >= found.size
    for tile in [*tiles(70_000), Tile(ENTRIES, 1234567, 5)]:
        assert limit_of(tile.path)
    for name in (
        "", "checkpoint.new", "tile", "tile/0/0", "tile/entries/000.p/256", "objects/sha256/ab/" + "cd" * 32,
        "objects/sha256/AB/" + "AB" * 32, "witnessed/x", "timestamps/01.tsr", "timestamps/-1.tsr", "../x",
    ):  # fmt: skip
        assert limit_of(name) is None


def test_a_live_logs_checkpoints_are_read_at_one_moment(city):
    police = city["police"]
    police.refuse()
    bundle = police.bundle()
    first = bundle.read_checkpoint()
    police.refuse()
    assert bundle.read_checkpoint() == first
    assert bundle.read_checkpoint() != police.bundle().read_checkpoint()
