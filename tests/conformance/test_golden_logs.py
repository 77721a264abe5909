"""The golden logs under tests/vectors: ours are those that an independent generator wrote, byte for byte."""

import base64
import hashlib
import importlib.util
import json
import shutil
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pymerkle import InmemoryTree

from audit import log
from audit.bundle import open_bundle
from audit.entries import Entry, parse_time
from audit.log import Journal
from audit.merkle import EMPTY_ROOT, ENTRIES, TileBuilder, encode_bundle, leaf_hash, tile_at
from audit.note import Checkpoint, VerifierKey, verify_note
from audit.review import Review, review
from audit.trust import Trust
from audit.verify import read_entries, verify_directory
from protocols.encoding import b64encode

GOLDEN = Path(__file__).parents[1] / "vectors" / "golden_logs"
WHOLE = [0, 1, 255, 256, 257]
BY_DIGEST = [65_536, 70_000]


def vkeys(name: str) -> list[VerifierKey]:
    return [VerifierKey.parse(line) for line in (GOLDEN / "vkeys" / name).read_text("utf-8").splitlines()]


def files(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`, without the notes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("checkpoint", "checkpoint.cosigned")
    }


def manifest(size: int) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((GOLDEN / f"{size}.json").read_text("utf-8"))
    return document


def notes(size: int) -> dict[str, str]:
    """The log's two checkpoints."""
    if size in BY_DIGEST:
        return manifest(size)
    return {
        name: (GOLDEN / str(size) / name).read_text("utf-8") for name in ("checkpoint", "checkpoint.cosigned")
    }


def written(entries: Sequence[bytes]) -> dict[str, bytes]:
    """What our tree code writes of these entries."""
    tree, out = TileBuilder(), {}
    for data in entries:
        out |= {tile.path: content for tile, content in tree.add(leaf_hash(data))}
    out |= {tile.path: content for tile, content in tree.partial_tiles()}
    for index in range(-(-len(entries) // 256)):
        bundle = tile_at(len(entries), ENTRIES, index)
        out[bundle.path] = encode_bundle(entries[256 * index : 256 * index + 256])
    return out


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_generator", GOLDEN / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def entries(generator: ModuleType) -> list[bytes]:
    """The entries of the largest log; the others are its prefixes."""
    return [generator.entry(seq) for seq in range(BY_DIGEST[-1])]


@pytest.fixture(scope="module")
def oracle(entries: list[bytes]) -> Callable[[int], bytes]:
    """Another library's root over the first `size` entries."""
    tree = InmemoryTree(algorithm="sha256")
    for data in entries:
        tree.append_entry(data)
    return tree.get_root


def test_the_empty_log_has_the_hash_of_nothing_as_its_root():
    root = Checkpoint.decode(notes(0)["checkpoint"].rpartition("\n—")[0].encode()).root
    assert root == EMPTY_ROOT == hashlib.sha256(b"").digest()
    assert files(GOLDEN / "0") == {}


@pytest.mark.parametrize("size", WHOLE + BY_DIGEST)
def test_every_golden_root_is_ours_and_another_librarys(size, entries, oracle):
    tree = TileBuilder()
    for data in entries[:size]:
        tree.add(leaf_hash(data))
    note, signers = verify_note(notes(size)["checkpoint"].encode(), vkeys("log"))
    checkpoint = Checkpoint.decode(note.text)
    assert checkpoint == Checkpoint("golden.example/node-a/journal/1", size, tree.root())
    assert checkpoint.root == oracle(size)
    assert list(signers) == vkeys("log")


@pytest.mark.parametrize("size", WHOLE + BY_DIGEST)
def test_the_log_and_both_keys_of_the_witness_sign_the_cosigned_checkpoint(size):
    plain, cosigned = notes(size)["checkpoint"], notes(size)["checkpoint.cosigned"]
    known = vkeys("log") + vkeys("witness")
    note, signers = verify_note(cosigned.encode(), known)
    assert [key.type for key in signers] == [1, 4, 6]
    assert cosigned.startswith(plain)
    for changed in (
        cosigned.replace(f"\n{size}\n", f"\n{size + 1}\n"),
        cosigned.replace("node-a", "node-c", 1),
    ):
        for key, line in zip(known, note.signatures, strict=True):
            assert not key.holds(changed.partition("\n\n")[0].encode() + b"\n", line.signature)


@pytest.mark.parametrize("size", WHOLE)
def test_our_writer_gives_the_golden_tiles_byte_for_byte(size, entries):
    golden = files(GOLDEN / str(size))
    assert written(entries[:size]) == {
        path: data for path, data in golden.items() if path.startswith("tile/")
    }


@pytest.mark.parametrize("size", BY_DIGEST)
def test_our_writer_gives_the_golden_digests_of_every_tile(size, entries):
    ours = {path: hashlib.sha256(data).hexdigest() for path, data in written(entries[:size]).items()}
    golden = manifest(size)
    assert ours == {path: digest for path, digest in golden["files"].items() if path.startswith("tile/")}
    assert base64.b64decode(golden["checkpoint"].split("\n")[2]).hex() == golden["root"]


def test_the_journal_writes_the_golden_log_when_it_is_told_to_say_the_same(
    entries, generator, tmp_path, monkeypatch
):
    """The whole program: database, transaction, tiles and signed checkpoint; the golden logs are of v = 5."""
    monkeypatch.setattr(log, "VERSION", 5)
    now: list[datetime] = [parse_time(Entry.decode(entries[0]).time)]
    journal = Journal.open(
        tmp_path / "journal", database=tmp_path / "node.sqlite", origin=generator.ORIGIN, now=lambda: now[0],
        signer=generator.LOG_KEY.sign, public_key=generator.LOG_KEY.public_key().public_bytes_raw(),
    )  # fmt: skip
    with journal, journal.transaction() as connection:
        for text in generator.OBJECTS:
            journal.put_object(text.encode())
        for data in entries[1:257]:
            said = Entry.decode(data)
            now[0] = parse_time(said.time)
            journal.append(
                connection, said.kind, said.body, job=said.job, attempt=said.attempt, policy=said.policy,
                actor=said.actor, refs=said.refs,
            )  # fmt: skip
    # Partial tiles of the checkpoint over log.open alone may lie there, too; C2SP lets them.
    ours = files(tmp_path / "journal")
    assert {path: ours.get(path) for path in files(GOLDEN / "257")} == files(GOLDEN / "257")
    assert (tmp_path / "journal" / "checkpoint").read_text("utf-8") == notes(257)["checkpoint"]


@pytest.mark.parametrize("size", WHOLE)
def test_our_verifier_accepts_the_golden_folders(size, entries):
    folder = GOLDEN / str(size)
    verdict = verify_directory(folder, vkeys("log"))
    # The empty tree is a tree of C2SP's, but every journal says at least who opened it.
    assert [problem.code for problem in verdict.problems] == ([] if size else ["empty-log"])
    assert verdict.size == size
    assert f"\n{b64encode(verdict.root)}\n" in notes(size)["checkpoint"]
    assert [entry.encode() for entry in read_entries(folder)] == entries[:size]


def test_the_generator_still_writes_what_is_kept(generator, tmp_path):
    """All but the ML-DSA-44 lines, which differ at every run."""
    generator.main(tmp_path / "again")
    again = {
        path.relative_to(tmp_path / "again"): path.read_text("utf-8")
        for path in (tmp_path / "again").rglob("*")
        if path.is_file() and not {"tile", "objects"} & set(path.parts)
    }
    assert len(again) == len(BY_DIGEST) + 2 * len(WHOLE) + 2
    for path, text in again.items():
        kept = (GOLDEN / path).read_text("utf-8")
        ours, golden = (_without_last_line(path, each) for each in (text, kept))
        assert ours == golden, path
    for size in WHOLE:
        assert files(tmp_path / "again" / str(size)) == files(GOLDEN / str(size))


def _without_last_line(path: Path, text: str) -> Any:
    """A file's content without the witness's ML-DSA-44 line."""
    if path.suffix == ".json":
        document = json.loads(text)
        document["checkpoint.cosigned"] = _cut(document["checkpoint.cosigned"])
        return document
    return _cut(text) if path.name == "checkpoint.cosigned" else text


def _cut(note: str) -> str:
    lines = note.splitlines()
    assert len(base64.b64decode(lines[-1].split()[2])) == 4 + 8 + 2420
    return "\n".join(lines[:-1])


def audited(folder: Path) -> Review:
    """What an auditor's command finds who holds the keys: every file, signature line, entry and object."""
    with open_bundle(folder) as bundle:
        return review(bundle, Trust(keys=(*vkeys("log"), *vkeys("witness"))))


def format_holds(found: Review) -> bool:
    """Whether files, signatures and entries hold. That the jobs in them rest on nothing is another matter."""
    return found.verdict.ok and not found.checks["signed"].count and not found.checks["witnessed"].count


def test_an_audit_finds_nothing_wrong_with_a_golden_folder():
    found = audited(GOLDEN / "257")
    assert format_holds(found)
    assert {head.file: head.votes for head in found.heads} == {
        "checkpoint": (),
        "checkpoint.cosigned": ("witness.example",),
    }


def test_an_audit_finds_one_changed_byte_in_any_golden_file(tmp_path):
    folder = tmp_path / "log"
    for path in ("checkpoint", "checkpoint.cosigned", *files(GOLDEN / "257")):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(GOLDEN / "257", folder)
        data = bytearray((folder / path).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / path).write_bytes(data)
        assert not format_holds(audited(folder)), path
