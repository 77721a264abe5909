"""The form of rows, manifests and tables is that of SPEC.md, bit by bit; nothing else is read."""

import json
from pathlib import Path

import numpy as np
import pytest
from crosscheck_case import seeded
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.encoding import canonical_json, decode_json
from protocols.errors import DecodeError, ProtocolAborted
from protocols.lookup.plan import table_name
from protocols.lookup.table import (
    HEAD_BYTES,
    Manifest,
    Offer,
    Table,
    lower_bound,
    row_bytes,
    seal,
    split,
    unseal,
    width_of,
)

VECTORS = json.loads((Path(__file__).parents[2] / "vectors/lookup.json").read_text())
TABLE = bytes.fromhex(VECTORS["table"])
BUILD = bytes.fromhex(VECTORS["build"])


@pytest.mark.parametrize("row", VECTORS["rows"], ids=lambda row: row["tag"])
def test_rows_are_sealed_as_the_vectors_say(row):
    tag, seed = split(bytes.fromhex(row["output"]))
    assert (tag.hex(), seed.hex()) == (row["tag"], row["seed"])
    sealed = seal(seed, BUILD, "\x1f".join(row["fields"]).encode(), VECTORS["width"])
    assert (tag + BUILD + sealed).hex() == row["row"]
    assert len(tag + BUILD + sealed) == row_bytes(VECTORS["width"])


def test_manifest_offer_and_table_are_written_as_the_vectors_say():
    manifest = Manifest.from_json(VECTORS["manifest"])
    assert manifest.to_json() == VECTORS["manifest"]
    assert manifest.identity().hex() == VECTORS["identity"]
    assert manifest.digest.hex() == VECTORS["digest"]
    rows = sorted(bytes.fromhex(row["row"]) for row in VECTORS["rows"])
    assert manifest.header() + b"".join(rows) == TABLE
    offer = Offer.decode(bytes.fromhex(VECTORS["offer"]))
    assert offer == Offer("whole", 0, 2, manifest)
    assert offer.encode().hex() == VECTORS["offer"]


def test_tables_are_named_as_the_vectors_say():
    assert table_name(VECTORS["table_name"]["meaning"]) == VECTORS["table_name"]["name"]


def test_persons_of_the_vectors_are_found_and_others_are_not():
    table = Table.read(memoryview(TABLE))
    for row in VECTORS["rows"]:
        assert table.find(bytes.fromhex(row["output"])) == dict(
            zip(("status", "seen"), row["fields"], strict=True)
        )
    for output in (bytes(64), b"\xff" * 64, seeded("nobody")(64)):
        assert table.find(output) is None


@pytest.mark.parametrize("bad", VECTORS["bad_offers"], ids=lambda bad: bad["why"])
def test_an_offer_of_another_form_is_refused(bad):
    with pytest.raises(DecodeError):
        Offer.decode(bytes.fromhex(bad["offer"]))


@pytest.mark.parametrize("bad", VECTORS["bad_tables"], ids=lambda bad: bad["why"])
def test_a_table_of_another_form_is_not_read(bad):
    with pytest.raises(DecodeError):
        Table.read(memoryview(bytes.fromhex(bad["table"])))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_changed_manifest_is_refused_or_names_another_table(data):
    plain = dict(VECTORS["manifest"])
    name = data.draw(st.sampled_from(sorted(plain)))
    plain[name] = data.draw(
        st.none() | st.booleans() | st.integers(-5, 10**7) | st.text(max_size=8) | st.just([])
    )
    try:
        found = Manifest.from_json(decode_json(canonical_json(plain)))
    except DecodeError:
        return
    assert found.to_json() == plain
    same = canonical_json(plain) == canonical_json(VECTORS["manifest"])
    assert (found.identity().hex() == VECTORS["identity"]) == same


def test_an_own_row_that_does_not_open_is_no_miss():
    output = bytes.fromhex(VECTORS["rows"][0]["output"])
    start = TABLE.index(output[:12])
    for at in (start + 12, start + HEAD_BYTES, start + row_bytes(32) - 1):
        spoilt = bytearray(TABLE)
        spoilt[at] ^= 1
        with pytest.raises(ProtocolAborted) as refused:
            Table.read(memoryview(bytes(spoilt))).find(output)
        assert refused.value.code == "bad-row"


@pytest.mark.parametrize("plain", [b"one", b"one\x1ftwo\x1fthree", b"\xff\x1f"])
def test_a_row_that_is_no_row_of_these_fields_is_refused(plain):
    output = bytes.fromhex(VECTORS["rows"][0]["output"])
    tag, seed = split(output)
    start = TABLE.index(tag)
    row = tag + BUILD + seal(seed, BUILD, plain, 32)
    table = Table.read(memoryview(TABLE[:start] + row + TABLE[start + len(row) :]))
    with pytest.raises(ProtocolAborted) as refused:
        table.find(output)
    assert refused.value.code == "bad-row"


def test_another_persons_row_does_not_open():
    one, other = (split(bytes.fromhex(row["output"]))[1] for row in VECTORS["rows"])
    sealed = seal(one, BUILD, b"x", 32)
    assert unseal(one, BUILD, sealed) == b"x"
    assert unseal(other, BUILD, sealed) is None
    assert unseal(one, BUILD[::-1], sealed) is None


@given(st.integers(0, 4096))
def test_rows_of_one_size_class_have_one_length(longest):
    width = width_of(longest)
    assert width % 32 == 0
    assert max(longest, 1) <= width < longest + 33


class Counted:
    """Bytes that count how often they are read."""

    def __init__(self, data: bytes) -> None:
        self.data, self.reads = memoryview(data), 0

    def __getitem__(self, at):
        self.reads += 1
        return self.data[at]


@settings(max_examples=60, deadline=None)
@given(st.sets(st.binary(min_size=12, max_size=12), max_size=70), st.data())
def test_the_search_finds_the_right_place_with_as_many_reads_wherever_it_is(tags, data):
    ordered = sorted(tags)
    records = b"".join(tag + b"rest" for tag in ordered)
    looked_for = data.draw(
        st.sampled_from([*ordered, bytes(12), b"\xff" * 12]) | st.binary(min_size=12, max_size=12)
    )
    counted = Counted(records)
    found = lower_bound(counted, 16, len(ordered), looked_for)
    assert found == sum(tag < looked_for for tag in ordered)
    assert counted.reads == len(ordered).bit_length()


def test_a_hit_and_a_miss_open_one_row_each(monkeypatch):
    from protocols.lookup import table as module

    opened = []
    original = module.unseal

    def watched(seed, build, sealed):
        opened.append(len(sealed))
        return original(seed, build, sealed)

    monkeypatch.setattr(module, "unseal", watched)
    table = Table.read(memoryview(TABLE))
    assert table.find(bytes.fromhex(VECTORS["rows"][1]["output"])) is not None
    assert table.find(seeded("nobody")(64)) is None
    empty = Manifest.from_json({**VECTORS["manifest"], "rows": 0})
    assert Table(empty, memoryview(b"")).find(seeded("nobody")(64)) is None
    assert opened == [48, 48, 48]


def test_rows_are_seen_in_their_form():
    rows = Table.read(memoryview(TABLE)).rows(0, 2)
    assert [row.tobytes().hex() for row in rows["tag"]] == sorted(row["tag"] for row in VECTORS["rows"])
    assert np.array_equal(rows["build"], np.array([np.void(BUILD)] * 2))
