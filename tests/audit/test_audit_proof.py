"""Proofs that stand alone, against vectors that were written down without our code."""

import hashlib
import json
from pathlib import Path

import pymerkle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from witnessing import LOG_KEY, LOG_VKEY, ORIGIN

from audit.merkle import Tile, TileBuilder, inclusion_proof, leaf_hash
from audit.note import Checkpoint, VerifierKey, sign_note, verify_note
from audit.proof import MAX_EXTRA_BYTES, MAX_HASHES, TlogProof
from protocols.errors import DecodeError, MinshuError, SignatureInvalid

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "tlog_proofs.json").read_text())
LOG = VerifierKey.parse(VECTORS["log_vkey"])
WITNESS = VerifierKey.parse(VECTORS["witness_vkey"])


@pytest.mark.parametrize("case", VECTORS["good"], ids=lambda c: c["name"])
def test_a_proof_written_by_others_is_read_verified_and_written_back(case):
    proof = TlogProof.decode(case["proof"].encode())
    assert (proof.index, proof.extra) == (case["index"], case["extra"].encode())
    assert proof.encode() == case["proof"].encode()
    note, checkpoint = proof.verify(case["entry"].encode(), [LOG])
    assert (checkpoint.origin, checkpoint.size) == (LOG.name, case["size"])
    assert verify_note(note.encode(), [WITNESS])[1] == (WITNESS,)


@pytest.mark.parametrize("case", VECTORS["bad"], ids=lambda c: c["why"])
def test_a_bad_proof_is_refused_at_its_step(case):
    data = case["proof"].encode()
    if case["step"] == "decode":
        with pytest.raises(DecodeError):
            TlogProof.decode(data)
        return
    proof = TlogProof.decode(data)
    with pytest.raises(SignatureInvalid):
        proof.verify(case["entry"].encode(), [LOG])


def test_another_entry_is_not_proven():
    proof = TlogProof.decode(VECTORS["good"][0]["proof"].encode())
    for entry in (b"entry 1", b"", b"entry 0\n"):
        with pytest.raises(SignatureInvalid) as caught:
            proof.verify(entry, [LOG])
        assert caught.value.code == "proof-invalid"


def test_only_the_logs_own_key_speaks_for_it():
    proof = TlogProof.decode(VECTORS["good"][0]["proof"].encode())
    namesake = VerifierKey("elsewhere.example/log", 1, LOG.public_key)
    for keys in ([], [WITNESS], [namesake]):
        with pytest.raises(SignatureInvalid) as caught:
            proof.verify(b"entry 0", keys)
        assert caught.value.code == "no-known-signature"


@given(st.data())
def test_a_proof_with_one_bit_changed_proves_nothing_new(data):
    case = VECTORS["good"][2]
    changed = bytearray(case["proof"].encode())
    bit = data.draw(st.integers(0, len(changed) * 8 - 1))
    changed[bit // 8] ^= 1 << bit % 8
    try:
        proof = TlogProof.decode(bytes(changed))
        _, checkpoint = proof.verify(case["entry"].encode(), [LOG])
    except MinshuError:
        return
    # Extra data and cosignatures are not covered by the log's signature; everything else is.
    assert (proof.index, checkpoint.size) == (case["index"], case["size"])
    assert proof.encode() == bytes(changed)


@given(st.integers(1, 600), st.data())
def test_proofs_of_a_tile_log_verify_and_lead_where_pymerkle_leads(size, data):
    index = data.draw(st.integers(0, size - 1))
    entries = [b"%d" % n for n in range(size)]
    tree, tiles = TileBuilder(), {}
    oracle = pymerkle.InmemoryTree(algorithm="sha256")
    for entry in entries:
        tiles.update(tree.add(leaf_hash(entry)))
        oracle.append_entry(entry)
    tiles.update(tree.partial_tiles())

    def read(tile: Tile) -> bytes:
        return tiles[tile][: tile.width * 32]

    checkpoint = sign_note(Checkpoint(ORIGIN, size, oracle.get_root()).encode(), LOG_VKEY, LOG_KEY.sign)
    hashes = tuple(inclusion_proof(read, index, size))
    written = TlogProof(index, hashes, checkpoint.encode(), b"x").encode()
    TlogProof.decode(written).verify(entries[index], [LOG_VKEY])


@given(st.binary(max_size=400))
def test_junk_is_refused_cleanly(junk):
    with pytest.raises(DecodeError):
        TlogProof.decode(b"c2sp.org/tlog-proof@v1\n" + junk)


def test_what_is_too_much_is_refused():
    checkpoint = VECTORS["good"][0]["proof"].split("\n\n", 1)[1].encode()
    line = hashlib.sha256(b"").digest()
    most = TlogProof(0, (line,) * MAX_HASHES, checkpoint, bytes(MAX_EXTRA_BYTES))
    assert TlogProof.decode(most.encode()) == most
    for each in (
        TlogProof(0, (line,) * (MAX_HASHES + 1), checkpoint),
        TlogProof(0, (), checkpoint, bytes(MAX_EXTRA_BYTES + 1)),
        TlogProof(0, (), b"\n" * 10**6 + checkpoint),
        TlogProof(10**30, (), checkpoint),
    ):
        with pytest.raises(DecodeError):
            TlogProof.decode(each.encode())
