"""Streams as the specification says, uniform, and gone when everybody's are added."""

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.ids import Role
from protocols.sums import bfv
from protocols.sums.masks import RING, Masks, stream_key

VECTORS = json.loads((Path(__file__).parents[2] / "vectors/table.json").read_text("utf-8"))
KEY = bytes(range(32))
CTX = b"c" * 32


def drawn(key: bytes, count: int, modulus: int) -> list[int]:
    words = np.zeros(count, dtype=np.int64)
    Masks([key], [], modulus).add_to(words)
    return words.view(np.uint64).tolist()


@pytest.mark.parametrize("vector", VECTORS["streams"], ids=lambda v: f"{v['label']} modulo {v['modulus']}")
def test_streams_are_those_of_the_specification(vector):
    key = stream_key(
        bytes.fromhex(vector["seed"]),
        bytes.fromhex(vector["ctx"]),
        Role(vector["lower"]),
        Role(vector["higher"]),
        vector["label"].encode(),
    )
    assert key.hex() == vector["key"]
    words = drawn(key, len(vector["words"]), int(vector["modulus"]))
    assert [str(word) for word in words] == vector["words"]


def test_a_stream_belongs_to_one_attempt_one_pair_and_one_purpose():
    one, other = Role("source-1"), Role("source-2")
    keys = {
        stream_key(KEY, CTX, one, other, b"cancel"),
        stream_key(KEY, CTX, other, one, b"cancel"),
        stream_key(KEY, CTX, one, one, b"cancel"),
        stream_key(KEY, CTX, one, other, b"cover"),
        stream_key(KEY, b"d" * 32, one, other, b"cancel"),
        stream_key(bytes(32), CTX, one, other, b"cancel"),
        # Names are counted, so that none runs into the next.
        stream_key(KEY, CTX, Role("source-12"), Role("source-3"), b"cancel"),
        stream_key(KEY, CTX, Role("source-1"), Role("2source-3"), b"cancel"),
    }
    assert len(keys) == 8


@given(st.integers(2, 6), st.integers(1, 40_000), st.sampled_from([RING, bfv.PRIME]))
def test_masks_of_all_sources_cancel(sources, count, modulus):
    keys = {pair: bytes([*pair]) * 16 for pair in combinations(range(sources), 2)}
    total = np.zeros(count, dtype=np.int64)
    for source in range(sources):
        own = np.zeros(count, dtype=np.int64)
        Masks(
            [key for (lower, _), key in keys.items() if lower == source],
            [key for (_, higher), key in keys.items() if higher == source],
            modulus,
        ).add_to(own)
        assert own.any()
        total += own % modulus if modulus != RING else own
    assert not (total % modulus if modulus != RING else total).any()


@pytest.mark.parametrize("modulus", [RING, bfv.PRIME, (1 << 44) + 1])
def test_a_stream_is_the_same_however_it_is_cut(modulus):
    whole = drawn(KEY, 50_000, modulus)
    masks, pieces = Masks([KEY], [], modulus), []
    for count in (1, 4096, 40_000, 5903):
        words = np.zeros(count, dtype=np.int64)
        masks.add_to(words)
        pieces += words.view(np.uint64).tolist()
    assert pieces == whole


def test_words_that_are_not_below_the_modulus_are_left_out():
    # Just above a power of two, every other word is.
    modulus = (1 << 44) + 1
    raw = [word & ((1 << 45) - 1) for word in drawn(KEY, 60_000, RING)]
    expected = [word for word in raw if word < modulus]
    assert 29_000 < len(expected) < 31_000
    assert drawn(KEY, 29_000, modulus) == expected[:29_000]


def test_words_are_uniform_below_the_modulus():
    # Chi-square over 64 equal parts, 63 degrees of freedom: above 155.1 by chance once in 10^9 seeds.
    count = 1 << 16
    for modulus in (bfv.PRIME, RING, (1 << 44) + 1):
        words = drawn(KEY, count, modulus)
        parts = np.bincount([word * 64 // modulus for word in words], minlength=64)
        assert ((parts - count / 64) ** 2 / (count / 64)).sum() < 155.1
