"""docs/journal-format.md against the golden logs: every figure on the page, computed from hashlib on."""

import base64
import hashlib
import json
import re
from pathlib import Path

import pytest

from audit.entries import _ENTRY_FIELDS, KINDS_BY_VERSION, MAX_LIST, VERSION
from audit.merkle import ENTRIES, MAX_ENTRY_BYTES, tile_at, tiles
from audit.note import MAX_NOTE_BYTES, MAX_SIGNATURES, Checkpoint, Note, VerifierKey, cosigned_message
from audit.proof import MAX_HASHES
from audit.timestamps import MAX_REPLY_BYTES
from protocols import envelope

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "vectors" / "golden_logs"
PAGE = (ROOT / "docs" / "journal-format.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```$", PAGE)


def row(first: str) -> list[str]:
    """The other cells of the table row that begins with `first`."""
    (found,) = re.findall(rf"(?m)^\| {re.escape(first)} \|(.*)\|$", PAGE)
    return [cell.strip() for cell in found.split(" | ")]


def keys() -> list[VerifierKey]:
    lines = [
        line for name in ("log", "witness") for line in (GOLDEN / "vkeys" / name).read_text().splitlines()
    ]
    return [VerifierKey.parse(line) for line in lines]


@pytest.fixture(scope="module")
def note() -> Note:
    return Note.decode((GOLDEN / "1" / "checkpoint.cosigned").read_bytes())


def test_the_roots_on_the_page_are_the_golden_ones():
    for size in (0, 1, 255, 256, 257):
        note = Note.decode((GOLDEN / str(size) / "checkpoint").read_bytes())
        assert row(str(size)) == [f"`{base64.b64encode(Checkpoint.decode(note.text).root).decode()}`"]
    for size in (65_536, 70_000):
        root = bytes.fromhex(json.loads((GOLDEN / f"{size}.json").read_text("utf-8"))["root"])
        assert row(str(size)) == [f"`{base64.b64encode(root).decode()}`"]


def test_the_entry_on_the_page_is_entry_0_and_gives_the_leaf():
    (shown,) = blocks("json")
    entry = shown.rstrip("\n").encode()
    bundle = (GOLDEN / "1" / "tile" / "entries" / "000.p" / "1").read_bytes()
    assert bundle == len(entry).to_bytes(2, "big") + entry
    assert f"has {len(entry)} bytes, so its bundle begins with `{bundle[:2].hex()}`" in PAGE
    assert f"`{hashlib.sha256(bytes(1) + entry).hexdigest()}`" in PAGE


def test_the_checkpoint_on_the_page_is_the_golden_one():
    assert blocks("text") == [(GOLDEN / "1" / "checkpoint").read_text("utf-8")]


def test_key_ids_and_types_are_those_of_the_golden_keys():
    shown = re.findall(r"(?m)^\| `(\S+)` \| ([146]) \| `([0-9a-f]{8})` \|$", PAGE)
    assert [(key.name, str(key.type), key.key_id.hex()) for key in keys()] == shown
    for key in keys():
        text = key.name.encode() + b"\n" + bytes([key.type]) + key.public_key
        assert hashlib.sha256(text).digest()[:4] == key.key_id


def test_what_signatures_cover_and_how_they_look_is_shown_to_the_byte(note):
    covered_1, line_1, covered_4, line_4, covered_6 = (bytes.fromhex(block) for block in blocks("hex"))
    _, ed25519, mldsa = keys()
    by_1, by_4, by_6 = note.signatures
    time_s = int.from_bytes(by_4.signature[:8], "big")
    assert f"cosigned at {time_s}:" in PAGE
    assert covered_1 == note.text
    assert line_1 == by_1.key_id + by_1.signature
    assert covered_4 + note.text == cosigned_message(ed25519, note.text, time_s)
    assert line_4 == by_4.key_id + by_4.signature
    assert covered_6 == cosigned_message(mldsa, note.text, time_s)
    assert [len(each.signature) for each in (by_1, by_4, by_6)] == [64, 8 + 64, 8 + 2420]
    assert all(
        key.holds(note.text, line.signature) for key, line in zip(keys(), note.signatures, strict=True)
    )


def test_the_tiles_named_on_the_page_are_those_of_their_sizes():
    named = set(re.findall(r"`(tile/[\dex][\w./]*)`", PAGE))
    partial = {tile.path for tile in tiles(70_000) if tile.width < 256}
    small = {tile.path for tile in tiles(256)}
    bundles = {tile_at(size, ENTRIES, (size - 1) // 256).path for size in (256, 70_000)}
    assert named == partial | small | bundles
    assert f"1234067 is `{tile_at(1_234_068 * 256, 0, 1_234_067).path.removeprefix('tile/0/')}`" in PAGE


def test_the_fields_and_versions_on_the_page_are_the_published_ones():
    entry_part = PAGE.partition("## Entries")[2].partition("## Checkpoints")[0]
    assert set(re.findall(r"(?m)^\| `(\w+)` \|", entry_part)) == _ENTRY_FIELDS
    *before, last = map(str, KINDS_BY_VERSION)
    assert f"{', '.join(before)} or {last}; written is {VERSION}" in PAGE
    assert f"at most {MAX_LIST} digests" in PAGE
    published = json.loads((ROOT / "tests" / "vectors" / "audit_vocabulary.json").read_text("utf-8"))
    assert json.dumps(published).count('"log.successor"') >= 1


def test_the_limits_on_the_page_are_those_of_the_code():
    assert row("entry") == [f"{MAX_ENTRY_BYTES:,} bytes"]
    assert row("signed note") == [f"{MAX_NOTE_BYTES:,} bytes, {MAX_SIGNATURES} signature lines"]
    assert row("envelope") == [
        f"{envelope.MAX_ENVELOPE_BYTES >> 20} MiB, {envelope.MAX_SIGNATURES} signatures"
    ]
    assert row("hashes in a proof") == [str(MAX_HASHES)]
    assert row("time-stamp answer") == [f"{MAX_REPLY_BYTES >> 10} KiB"]


def test_the_payload_types_on_the_page_are_those_of_the_code():
    shown = set(re.findall(r"`(application/vnd\.minshu\.\w+\.v1\+\w+)`", PAGE))
    assert shown == {envelope.ROTATION, envelope.RECEIPT, envelope.HEAD, envelope.ROSTER}
