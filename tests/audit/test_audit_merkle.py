"""Trees, tiles and proofs: against published vectors and against the RFC's own recursion."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.merkle import (
    EMPTY_ROOT,
    ENTRIES,
    Tile,
    TileBuilder,
    consistency_proof,
    cut_tile,
    decode_bundle,
    encode_bundle,
    inclusion_proof,
    leaf_hash,
    merkle_root,
    root_from_tiles,
    tile_at,
    tiles,
    verify_consistency,
    verify_inclusion,
)
from protocols.encoding import Reader
from protocols.errors import DecodeError, SignatureInvalid

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "audit_merkle.json").read_text())
LEAVES = [leaf_hash(bytes.fromhex(leaf)) for leaf in VECTORS["leaves"]]
ROOTS = [bytes.fromhex(root) for root in VECTORS["roots"]]
MANY = 70_000


class Tree:
    """All complete subtrees of a tree, from the definition of a tile; any smaller tree is cut from it."""

    def __init__(self, leaves: list[bytes]) -> None:
        self.levels = [leaves]
        while len(self.levels[-1]) >= 256:
            below = self.levels[-1]
            self.levels.append(
                [merkle_root(below[i : i + 256]) for i in range(0, len(below) - len(below) % 256, 256)]
            )

    def read(self, tile: Tile) -> bytes:
        hashes = self.levels[tile.level][tile.index * 256 : tile.index * 256 + tile.width]
        assert len(hashes) == tile.width
        return b"".join(hashes)


@pytest.fixture(scope="module")
def many() -> Tree:
    return Tree([hashlib.sha256(n.to_bytes(4, "big")).digest() for n in range(MANY)])


SMALL = Tree(LEAVES)


@pytest.mark.parametrize("size", range(9))
def test_roots_are_those_of_the_published_vectors(size):
    assert merkle_root(LEAVES[:size]) == ROOTS[size]
    assert root_from_tiles(SMALL.read, size) == ROOTS[size]


@pytest.mark.parametrize("case", VECTORS["inclusion"], ids=lambda c: f"{c['index']} of {c['size']}")
def test_inclusion_proofs_are_those_of_the_published_vectors(case):
    proof = [bytes.fromhex(item) for item in case["proof"]]
    assert inclusion_proof(SMALL.read, case["index"], case["size"]) == proof
    verify_inclusion(LEAVES[case["index"]], case["index"], case["size"], proof, ROOTS[case["size"]])


@pytest.mark.parametrize("case", VECTORS["consistency"], ids=lambda c: f"{c['old']} to {c['new']}")
def test_consistency_proofs_are_those_of_the_published_vectors(case):
    proof = [bytes.fromhex(item) for item in case["proof"]]
    assert consistency_proof(SMALL.read, case["old"], case["new"]) == proof
    verify_consistency(case["old"], ROOTS[case["old"]], case["new"], ROOTS[case["new"]], proof)


@pytest.mark.parametrize("case", VECTORS["tile_paths"], ids=lambda c: c["path"])
def test_a_tile_has_one_path(case):
    tile = Tile(case["level"], case["index"], case["width"])
    assert tile.path == case["path"]
    assert Tile.parse(case["path"]) == tile


@pytest.mark.parametrize("path", VECTORS["bad_tile_paths"])
def test_any_other_spelling_of_a_tile_path_is_refused(path):
    with pytest.raises(DecodeError) as caught:
        Tile.parse(path)
    assert caught.value.code == "bad-tile-path"


@given(st.integers(-1, 63), st.integers(0, 2**53 - 1), st.integers(1, 256))
def test_tile_paths_round_trip(level, index, width):
    assert Tile.parse(Tile(level, index, width).path) == Tile(level, index, width)


@pytest.mark.parametrize("case", VECTORS["tiles"], ids=lambda c: str(c["size"]))
def test_a_tree_has_the_tiles_that_its_size_asks_for(case):
    found: dict[str, list[int]] = {}
    for tile in tiles(case["size"]):
        full_and_partial = found.setdefault(str(tile.level), [0, 0])
        if tile.width == 256:
            full_and_partial[0] += 1
        else:
            full_and_partial[1] = tile.width
    assert found == case["tiles"]


@pytest.mark.parametrize("size", [0, 1, 2, 255, 256, 257, 511, 512, 513, 65_535, 65_536, 65_537, MANY])
def test_a_tree_grown_leaf_by_leaf_has_the_tiles_and_root_of_the_definition(size, many, leaf_oracle):
    builder, made = TileBuilder(), {}
    for leaf in many.levels[0][:size]:
        for tile, data in builder.add(leaf):
            assert tile.width == 256
            made[tile] = data
    made |= dict(builder.partial_tiles())
    assert made == {tile: many.read(tile) for tile in tiles(size)}
    assert builder.size == size
    assert builder.root() == leaf_oracle(many.levels[0][:size]) == root_from_tiles(many.read, size)


def test_a_copy_of_a_growing_tree_grows_alone():
    builder = TileBuilder()
    for leaf in LEAVES[:3]:
        builder.add(leaf)
    copy = builder.copy()
    copy.add(LEAVES[3])
    assert (builder.root(), copy.root()) == (ROOTS[3], ROOTS[4])


def test_the_empty_tree_has_no_tiles_and_the_hash_of_nothing_as_root():
    assert TileBuilder().root() == root_from_tiles(SMALL.read, 0) == EMPTY_ROOT == ROOTS[0]
    assert TileBuilder().partial_tiles() == []
    with pytest.raises(ValueError, match="no tile"):
        tile_at(0, 0, 0)


def test_every_small_tree_proves_every_leaf_and_every_earlier_size(many, leaf_oracle):
    leaves = many.levels[0]
    roots = [leaf_oracle(leaves[:size]) for size in range(40)]
    for size in range(1, 40):
        for index in range(size):
            proof = inclusion_proof(many.read, index, size)
            verify_inclusion(leaves[index], index, size, proof, roots[size])
        for old in range(size + 1):
            verify_consistency(old, roots[old], size, roots[size], consistency_proof(many.read, old, size))


SIZES = st.integers(1, MANY) | st.sampled_from([1, 255, 256, 257, 65_535, 65_536, 65_537, MANY])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_an_inclusion_proof_holds_for_its_leaf_place_and_tree_only(many, data):
    size = data.draw(SIZES)
    index = data.draw(st.integers(0, size - 1))
    proof = inclusion_proof(many.read, index, size)
    leaf, root = many.levels[0][index], root_from_tiles(many.read, size)
    verify_inclusion(leaf, index, size, proof, root)

    flip = data.draw(st.integers(0, 255))
    other = bytes(32 - 1 - flip // 8) + bytes([1 << flip % 8]) + bytes(flip // 8)
    bent = bytes(a ^ b for a, b in zip(leaf, other, strict=True))
    wrong = [
        (bent, index, size, proof, root),
        (leaf, index, size, proof, bytes(a ^ b for a, b in zip(root, other, strict=True))),
        (leaf, index, size, [*proof, other], root),
        (leaf, size, size, proof, root),
        (leaf, -1, size, proof, root),
    ]
    if proof:
        at = data.draw(st.integers(0, len(proof) - 1))
        wrong += [
            (leaf, index, size, proof[:-1], root),
            (leaf, index, size, [*proof[:at], other, *proof[at + 1 :]], root),
            (leaf, index ^ 1, size, proof, root) if index ^ 1 < size else (leaf, size, size, proof, root),
        ]
    for case in wrong:
        with pytest.raises(SignatureInvalid) as caught:
            verify_inclusion(*case)
        assert caught.value.code == "proof-invalid"


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_consistency_proof_holds_for_its_two_trees_only(many, data):
    new = data.draw(SIZES)
    old = data.draw(st.integers(1, new))
    proof = consistency_proof(many.read, old, new)
    old_root, new_root = root_from_tiles(many.read, old), root_from_tiles(many.read, new)
    verify_consistency(old, old_root, new, new_root, proof)
    wrong = [
        (old, bytes(32), new, new_root, proof),
        (old, old_root, new, bytes(32), proof),
        (old, old_root, new, new_root, [*proof, bytes(32)]),
        (new + 1, old_root, new, new_root, proof),
        (-1, old_root, new, new_root, proof),
    ]
    if proof:
        at = data.draw(st.integers(0, len(proof) - 1))
        wrong += [
            (old, old_root, new, new_root, proof[:-1]),
            (old, old_root, new, new_root, [*proof[:at], bytes(32), *proof[at + 1 :]]),
            (old, new_root, new, old_root, proof),
        ]
    for case in wrong:
        with pytest.raises(SignatureInvalid):
            verify_consistency(*case)


def test_a_proof_about_no_leaf_or_a_shrunk_tree_is_not_made():
    with pytest.raises(ValueError, match="no leaf 8"):
        inclusion_proof(SMALL.read, 8, 8)
    with pytest.raises(ValueError, match="cannot extend"):
        consistency_proof(SMALL.read, 5, 4)


def test_a_tile_of_the_wrong_length_is_refused():
    with pytest.raises(DecodeError) as caught:
        root_from_tiles(lambda tile: SMALL.read(tile) + b"\x00", 8)
    assert caught.value.code == "bad-tile"


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_bundles_round_trip_and_refuse_any_other_length(entries):
    data = encode_bundle(entries)
    assert decode_bundle(data, len(entries)) == entries
    with pytest.raises(DecodeError):
        decode_bundle(data, len(entries) + 1)
    if entries:
        with pytest.raises(DecodeError):
            decode_bundle(data, len(entries) - 1)
        with pytest.raises(DecodeError):
            decode_bundle(data[:-1], len(entries))
        bundle = Tile(ENTRIES, 0, len(entries))
        assert cut_tile(bundle, data, 1) == encode_bundle(entries[:1])


def read_field_by_field(data: bytes, width: int) -> list[bytes] | str:
    try:
        reader = Reader(data)
        entries = [reader.bytes16() for _ in range(width)]
        reader.finish()
    except DecodeError as error:
        return error.code
    return entries


@given(st.lists(st.sampled_from([0, 0, 0, 1, 2, 3, 255]), max_size=14).map(bytes), st.integers(0, 5))
def test_any_bytes_are_the_bundle_that_reading_field_by_field_gives_or_none(data, width):
    try:
        found = decode_bundle(data, width)
    except DecodeError as error:
        found = error.code
    assert found == read_field_by_field(data, width)


def test_a_full_tile_may_be_added_at_once(many):
    one_by_one, at_once = TileBuilder(), TileBuilder()
    for start in range(0, MANY - 256, 256):
        leaves = many.levels[0][start : start + 256]
        tiles_of_one = [tile for leaf in leaves for tile in one_by_one.add(leaf)]
        filled = at_once.add_tile(merkle_root(leaves))
        assert filled == [(tile, data) for tile, data in tiles_of_one if tile.level]
    assert at_once.root() == one_by_one.root()
    assert at_once.partial_tiles() == one_by_one.partial_tiles()
    at_once.add(bytes(32))
    with pytest.raises(ValueError):
        at_once.add_tile(bytes(32))


def test_a_bundle_is_big_endian_lengths_and_entries():
    assert encode_bundle([b"", b"ab", bytes(258)]) == b"\x00\x00\x00\x02ab\x01\x02" + bytes(258)
    assert decode_bundle(encode_bundle([bytes(65_535)]), 1) == [bytes(65_535)]
    with pytest.raises(DecodeError) as caught:
        encode_bundle([bytes(65_536)])
    assert caught.value.code == "too-long"
