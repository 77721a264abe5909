"""Bundles made to harm whoever opens them: each is refused in a sentence, with bounded time and memory."""

import os
import resource
import shutil
import socket
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from several import ROOTS, Collaboration, key

from audit import bundle as bundle_module
from audit.bundle import MAX_OBJECT_BYTES, Bundle, export, open_bundle
from audit.merkle import MAX_SIZE, Tile
from audit.note import Checkpoint, sign_note
from audit.review import review
from audit.trust import Trust
from protocols.errors import DecodeError, InputError, StateConflict

ROOT = Path(__file__).parents[2]
SECRET = b"what the auditor has beside the bundle"


@pytest.fixture
def city(tmp_path: Path) -> Iterator[Collaboration]:
    it = Collaboration(tmp_path)
    yield it
    it.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collaboration]:
    """A collaboration, and one small bundle of it, made once."""
    it = Collaboration(tmp_path_factory.mktemp("made"))
    it["police"].refuse(2)
    export(it["police"].directory, it.home / "out")
    yield it
    it.close()


@pytest.fixture
def folder(made: Collaboration, tmp_path: Path) -> Path:
    """A copy of that bundle."""
    shutil.copytree(made.home / "out", tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def trust(made: Collaboration) -> Trust:
    return made.trust


def problems(path: Path, trust: Trust) -> set[tuple[str, str]]:
    with open_bundle(path) as bundle:
        found = review(bundle, trust)
    assert found.ok == (not any(check.findings for check in found.checks))
    return {(finding.code, finding.where) for check in found.checks for finding in check.findings}


# -- folders -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["checkpoint", "tile/0/000.p/3", "tile/entries/000.p/3"])
def test_a_link_in_the_place_of_a_file_is_not_followed(folder, trust, name):
    outside = folder.parent / "outside"
    outside.write_bytes((folder / name).read_bytes())
    (folder / name).unlink()
    (folder / name).symlink_to(outside)
    assert ("not-a-file", name) in problems(folder, trust)
    with pytest.raises(OSError, match="link"):
        open_bundle(folder).read(name)


@pytest.mark.parametrize("name", ["tile", "tile/entries", "tile/0/000.p"])
def test_a_link_in_the_place_of_a_folder_is_not_followed(folder, trust, name):
    (folder / name).rename(folder.parent / "outside")
    (folder / name).symlink_to(folder.parent / "outside")
    assert ("not-a-file", name) in problems(folder, trust)
    hidden = "tile/0/000.p/3" if name == "tile/0/000.p" else "tile/entries/000.p/3"
    assert ("missing", hidden) in problems(folder, trust)


def test_what_a_link_points_to_never_reaches_a_copy(folder):
    (folder.parent / "secret").write_bytes(SECRET)
    for name in ("witnessed/" + "ab" * 32, "timestamps/3.tsr", "objects/sha256/ab/" + "ab" * 32):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(folder.parent / "secret")
        with pytest.raises((OSError, DecodeError)):
            open_bundle(folder).read(name)
    with pytest.raises((OSError, DecodeError)):
        export(folder, folder.parent / "copy")
    assert not (folder.parent / "copy").exists()


def test_pipes_sockets_and_devices_are_not_opened(folder, trust):
    os.mkfifo(folder / "checkpoint.cosigned")
    (folder / "witnessed").mkdir()
    os.mkfifo(folder / "witnessed" / ("ab" * 32))
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "s"))
    found = problems(folder, trust)
    assert {("not-a-file", "checkpoint.cosigned"), ("not-a-file", "s")} <= found
    assert ("not-a-file", "witnessed/" + "ab" * 32) in found


def test_a_file_that_no_bundle_holds_is_named(folder, trust):
    (folder / "list.csv").write_text("somebody")
    (folder / "objects").mkdir(exist_ok=True)
    (folder / "objects" / "more").write_text("somebody")
    (folder / "a\u202eb").write_text("turned around")
    assert problems(folder, trust) == {
        ("unknown-file", "list.csv"), ("unknown-file", "objects/more"), ("unknown-file", "'a\\u202eb'"),
    }  # fmt: skip


def test_what_a_crash_left_half_written_in_a_live_folder_is_no_failure(city):
    city["police"].refuse()
    (city["police"].directory / ".new-object").write_bytes(b"half")
    with city["police"].bundle() as bundle:
        found = review(bundle, city.trust)
    assert found.ok
    assert found.notices == (".new-object: left half-written by a crash; nothing refers to it",)


def test_folders_without_end_and_files_without_number_are_refused(folder, trust, monkeypatch):
    deep = folder.joinpath(*["d"] * 40)
    deep.mkdir(parents=True)
    assert problems(folder, trust) == {("not-a-file", "d" + "/d" * 12)}
    monkeypatch.setattr(bundle_module, "MAX_FILES", 3)
    with pytest.raises(DecodeError) as caught:
        list(open_bundle(folder).files())
    assert caught.value.code == "too-many-files"


@pytest.mark.parametrize("name", ["checkpoint", "tile/0/000.p/3", "tile/entries/000.p/3", "checkpoint.old"])
def test_a_huge_file_is_not_read(folder, trust, name):
    with (folder / name).open("r+b") as file:
        file.truncate(1 << 40)  # sparse: it takes no room
    found = problems(folder, trust)
    assert ("too-long", name) in found


def test_huge_numbers_in_checkpoints_and_paths_stop_at_once(folder, trust, made):
    for size in (MAX_SIZE, 2**62, 10**40):
        text = Checkpoint(made["police"].journal.origin, min(size, MAX_SIZE), bytes(32)).encode()
        text = text.replace(str(min(size, MAX_SIZE)).encode(), str(size).encode())
        signed = sign_note(text, made["police"].vkey, key(made["police"].name).sign).encode()
        (folder / "checkpoint").write_bytes(signed)
        with open_bundle(folder) as bundle:
            found = review(bundle, replace(trust, roots=ROOTS))
        assert not found.ok
        assert sum(check.count for check in found.checks) < 8
        with pytest.raises((DecodeError, StateConflict)):
            export(folder, folder.parent / "copy")
    path = "tile/0/" + "x999/" * 5 + "999"
    (folder / path).parent.mkdir(parents=True)
    (folder / path).write_bytes(b"")
    assert ("unknown-file", path) in problems(folder, trust)


def test_thousands_of_signature_lines_are_refused_unread(folder, trust):
    note = (folder / "checkpoint").read_bytes()
    line = note.split(b"\n")[-2] + b"\n"
    for name in ("checkpoint", "checkpoint.cosigned"):
        (folder / name).write_bytes(note + line * 5000)
    found = problems(folder, trust)
    assert ("malformed-note", "checkpoint") in found
    (folder / "checkpoint").write_bytes(note)
    assert problems(folder, trust) == {("malformed-note", "checkpoint.cosigned")}


def test_hundreds_of_large_notes_of_others_fill_no_memory(folder, trust, monkeypatch):
    monkeypatch.setattr(bundle_module, "_MAX_NOTES_BYTES", 100_000)
    (folder / "witnessed").mkdir()
    for n in range(200):
        (folder / "witnessed" / f"{n:064x}").write_bytes(b"x" * 10_000)
    with open_bundle(folder) as bundle:
        # Those of the log itself are read last and are too many then, too: nothing is silently left out.
        with pytest.raises(DecodeError):
            bundle.read_checkpoint()
        assert sum(len(note) for note in bundle._snapshot().values() if isinstance(note, bytes)) <= 100_000


# -- zips --------------------------------------------------------------------------------------------------


def zipped(
    path: Path, members: dict[str, bytes], change: Callable[[zipfile.ZipInfo], None] | None = None
) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            member = zipfile.ZipInfo(name)
            member.compress_type = zipfile.ZIP_DEFLATED
            member.external_attr = 0o100644 << 16
            if change is not None:
                change(member)
            archive.writestr(member, data)
    return path


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        open_bundle(path)
    assert caught.value.code == "hostile-zip"
    assert caught.value.hint
    name, _, why = caught.value.message.partition(": this zip is not read: ")
    assert name == path.name
    return why


@pytest.mark.parametrize(
    "name",
    [
        "../checkpoint", "tile/../../x", "/etc/passwd", "C:\\x", "tile\\0", "./checkpoint", "tile//0", "a\nb",
        "a\x1b[2J", "日志", "tile/./0", "..", " ", "a b", "-".join("x" * 201),
    ],
)  # fmt: skip
def test_a_name_that_leads_out_of_the_zip_or_hides_is_refused(tmp_path, name):
    said = refused(zipped(tmp_path / "z.zip", {"checkpoint": b"", name: b"x"}))
    assert "path" in said or "too long" in said
    assert said.isprintable()


def test_a_name_twice_or_in_other_capitals_or_a_folder_that_is_a_file_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("checkpoint", b"one")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("checkpoint", b"another")
    assert "checkpoint is in it twice" in refused(tmp_path / "z.zip")
    assert "capital" in refused(zipped(tmp_path / "z.zip", {"checkpoint": b"", "Checkpoint": b""}))
    assert "is a file, too" in refused(zipped(tmp_path / "z.zip", {"tile": b"", "tile/0/000": b""}))


def test_links_and_devices_in_a_zip_are_refused(tmp_path):
    for mode in (0o120777, 0o020666, 0o010644, 0o140777):

        def change(member: zipfile.ZipInfo, mode: int = mode) -> None:
            member.external_attr = mode << 16

        assert "link or a device" in refused(
            zipped(tmp_path / "z.zip", {"checkpoint": b"/etc/passwd"}, change)
        )


def test_a_bomb_is_refused_by_its_directory_without_inflating_anything(tmp_path, monkeypatch):
    monkeypatch.setattr(zlib, "decompressobj", None)
    bomb = zipped(tmp_path / "z.zip", {"tile/0/000": bytes(50 << 20)})
    assert bomb.stat().st_size < 100_000
    assert "at most 8192 are read" in refused(bomb)
    assert "inflates to" in refused(zipped(tmp_path / "z.zip", {"anything": bytes(MAX_OBJECT_BYTES + 1)}))
    monkeypatch.setattr(bundle_module, "MAX_BYTES", 10_000)
    assert "at most 10000" in refused(zipped(tmp_path / "z.zip", {f"f{n}": bytes(4000) for n in range(4)}))
    monkeypatch.setattr(bundle_module, "MAX_FILES", 3)
    assert "4 files" in refused(zipped(tmp_path / "z.zip", {f"f{n}": b"" for n in range(4)}))


def test_a_zip_within_a_zip_is_a_file_like_any_other(tmp_path, folder, trust):
    inner = zipped(tmp_path / "inner.zip", {"x": bytes(1 << 20)}).read_bytes()
    members = {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    outer = zipped(tmp_path / "outer.zip", members | {"inner.zip": inner})
    assert problems(outer, trust) == {("unknown-file", "inner.zip")}


def test_a_directory_that_lies_about_a_files_size_yields_nothing(tmp_path):
    data = bytes(100_000)
    path = zipped(tmp_path / "z.zip", {"checkpoint": data})
    raw = path.read_bytes()
    # The size in the zip's directory, which is what bounds the reading.
    at = raw.rindex(b"PK\x01\x02") + 24
    path.write_bytes(raw[:at] + struct.pack("<I", 10) + raw[at + 4 :])
    assert "packed into" in refused(path)
    path.write_bytes(raw[:at] + struct.pack("<I", 90) + raw[at + 4 :])
    with open_bundle(path) as bundle, pytest.raises(DecodeError) as caught:
        bundle.read("checkpoint")
    assert caught.value.code == "zip-damaged"


def test_overlapping_files_are_refused(tmp_path):
    """David Fifield's non-recursive bomb: every name shares one kernel of highly compressed bytes."""
    path = zipped(tmp_path / "z.zip", {"f0": bytes(100_000), "f1": b"", "f2": b""})
    raw = bytearray(path.read_bytes())
    first = raw.index(b"PK\x01\x02")
    second = raw.index(b"PK\x01\x02", first + 4)
    for field, length in ((16, 12), (42, 4)):
        raw[second + field : second + field + length] = raw[first + field : first + field + length]
    path.write_bytes(raw)
    assert "shares its bytes" in refused(path)


@pytest.mark.parametrize(
    ("offset", "value", "said"),
    [
        (8, struct.pack("<H", 1), "encrypted"),
        (8, struct.pack("<H", 1 << 6), "encrypted"),
        (10, struct.pack("<H", 12), "method 12"),
        (34, struct.pack("<H", 7), "damaged"),
        (42, struct.pack("<I", 1 << 20), "runs into the directory"),
        (20, struct.pack("<I", 1 << 20), "packed into"),
        (24, struct.pack("<I", 0xFFFFFFFF), "2^32 - 1"),
    ],
)
def test_a_directory_with_what_is_not_read_is_refused(tmp_path, offset, value, said):
    path = zipped(tmp_path / "z.zip", {"checkpoint": b"some text, some text"})
    raw = bytearray(path.read_bytes())
    at = raw.rindex(b"PK\x01\x02") + offset
    raw[at : at + len(value)] = value
    path.write_bytes(raw)
    assert said in refused(path)


def test_a_local_head_that_says_another_name_is_found_out(tmp_path):
    path = zipped(tmp_path / "z.zip", {"checkpoint": b"text"})
    raw = bytearray(path.read_bytes())
    raw[30:40] = b"checkpoinT"
    path.write_bytes(raw)
    with open_bundle(path) as bundle, pytest.raises(DecodeError):
        bundle.read("checkpoint")


def test_what_is_no_zip_or_has_something_after_it_is_refused(tmp_path):
    path = zipped(tmp_path / "z.zip", {"checkpoint": b"text"})
    raw = path.read_bytes()
    for data in (b"", b"PK", raw[:-1], raw + b"more", raw[: len(raw) // 2], b"x" * 5000):
        path.write_bytes(data)
        assert refused(path)


def test_every_byte_of_a_zip_changed_in_turn_is_refused_or_changes_nothing(folder, tmp_path, trust):
    """What a zip says beside names, sizes and bytes (times, versions, attributes) means nothing here."""
    members = {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    path = zipped(tmp_path / "z.zip", dict(sorted(members.items())[:2]))
    raw = path.read_bytes()
    for at in range(len(raw)):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 0x55]) + raw[at + 1 :])
        try:
            with open_bundle(path) as bundle:
                found = {each.name: bundle.read(each.name) for each in bundle.files()}
        except (InputError, DecodeError):
            continue
        assert found == dict(sorted(members.items())[:2])


def wide(raw: bytes) -> bytes:
    """The same zip with the ZIP64 records that one of more than 65,535 files has."""
    _, _, _, _, count, size, start, _ = struct.unpack("<IHHHHIIH", raw[-22:])
    record = struct.pack("<IQHHIIQQQQ", 0x06064B50, 44, 45, 45, 0, 0, count, count, size, start)
    locator = struct.pack("<IIQI", 0x07064B50, 0, len(raw) - 22, 1)
    return (
        raw[:-22]
        + record
        + locator
        + struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, *[0xFFFF] * 2, *[0xFFFFFFFF] * 2, 0)
    )


def test_the_wide_form_of_a_large_zip_is_read_and_its_lies_are_refused(tmp_path):
    path = zipped(tmp_path / "z.zip", {"checkpoint": b"text"})
    raw = wide(path.read_bytes())
    path.write_bytes(raw)
    with open_bundle(path) as bundle:
        assert bundle.read("checkpoint") == b"text"
    at = raw.rindex(b"PK\x06\x06")
    for where in (at, at + 24, at + 32, at + 40, at + 48, raw.rindex(b"PK\x06\x07") + 8):
        path.write_bytes(raw[:where] + b"\xff" * 7 + raw[where + 7 :])
        assert refused(path)


@pytest.mark.long
def test_a_zip_of_more_files_than_sixteen_bits_count_is_read(tmp_path):
    names = [f"objects/sha256/{n:04x}" for n in range(0x10010)]
    zipped(tmp_path / "z.zip", dict.fromkeys(names, b""))
    with open_bundle(tmp_path / "z.zip") as bundle:
        assert {found.name for found in bundle.files()} == set(names)


def test_the_command_refuses_a_bomb_within_little_memory(tmp_path):
    zipped(tmp_path / "z.zip", {f"objects/sha256/00/{n:064x}": bytes(15 << 20) for n in range(3)})
    (tmp_path / "keys").write_text("x+00000000+AAAA\n")

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))

    command = [sys.executable, "-m", "audit.cli", "verify", "z.zip", "--keys", "keys"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=60, preexec_fn=limited,
    )  # fmt: skip
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("minshu-audit: error: ")


def test_nothing_is_ever_written_beside_or_into_a_bundle(folder, trust, tmp_path):
    export(folder, tmp_path / "out.zip")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for path in (folder, tmp_path / "out.zip"):
        problems(path, trust)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_tile_of_a_zip_is_cut_from_its_full_one(tmp_path):
    path = zipped(tmp_path / "z.zip", {"tile/0/000": bytes(range(256)) * 32})
    with open_bundle(path) as bundle:
        assert isinstance(bundle, Bundle)
        assert bundle.read_tile(Tile(0, 0, 3)) == (bytes(range(256)) * 32)[:96]
        assert bundle.read_tile(Tile(0, 1)) is None
