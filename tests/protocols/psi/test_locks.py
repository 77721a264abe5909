"""Threshold locks: k shares open, k - 1 do not."""

import json
from itertools import combinations
from pathlib import Path

import pytest
from crosscheck_case import CTX
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import ProtocolAborted
from protocols.psi import locks

VECTORS = json.loads((Path(__file__).parents[3] / "tests/vectors/tags.json").read_text())


def test_shares_and_keys_are_those_of_the_vectors():
    for case in VECTORS["cases"]:
        for lock in case["locks"]:
            ((share, key),) = locks.shares_and_keys(
                bytes.fromhex(case["value"]), lock["index"], lock["k"], bytes.fromhex(VECTORS["ctx"])
            )
            assert (share.hex(), key.hex()) == (lock["share"], lock["key"])


values = st.binary(min_size=32, max_size=32)


@settings(max_examples=25, deadline=None)
@given(values, st.integers(1, 5), st.integers(0, 3), st.binary(min_size=1, max_size=60))
def test_any_k_shares_open_every_lock_and_fewer_open_none(value, threshold, more, envelope):
    indices = range(1, threshold + more + 1)
    rows = {i: next(locks.lock(value, i, threshold, CTX, [envelope])) for i in indices}
    shares = {i: row[: locks.SHARE_BYTES] for i, row in rows.items()}
    for chosen in combinations(indices, threshold):
        weights = locks.secret_weights(chosen)
        for i, row in rows.items():
            assert locks.unlock(shares, weights, CTX, i, row[locks.SHARE_BYTES :]) == envelope
    for chosen in combinations(indices, threshold - 1):
        weights = locks.secret_weights(chosen)
        for i, row in rows.items():
            with pytest.raises(ProtocolAborted) as refused:
                locks.unlock(shares, weights, CTX, i, row[locks.SHARE_BYTES :])
            assert refused.value.code == "lock-broken"


@pytest.mark.parametrize("bad", VECTORS["bad_locks"], ids=lambda bad: bad["why"])
def test_a_share_from_elsewhere_does_not_open_a_lock(bad):
    value, other = (bytes.fromhex(case["value"]) for case in VECTORS["cases"][:2])
    rows = {i: next(locks.lock(value, i, bad["k"], CTX, [b"envelope"])) for i in (1, 2)}
    strange = {
        "value": next(locks.lock(other, 2, bad["k"], CTX, [b"envelope"])),
        "index": next(locks.lock(value, 3, bad["k"], CTX, [b"envelope"])),
        "ctx": next(locks.lock(value, 2, bad["k"], bytes(32), [b"envelope"])),
    }[bad["swap"]]
    shares = {1: rows[1][: locks.SHARE_BYTES], 2: strange[: locks.SHARE_BYTES]}
    with pytest.raises(ProtocolAborted) as refused:
        locks.unlock(shares, locks.secret_weights((1, 2)), CTX, 1, rows[1][locks.SHARE_BYTES :])
    assert refused.value.code == "lock-broken"


@given(values, st.integers(1, 4), st.data())
def test_one_flipped_bit_breaks_a_lock(value, threshold, data):
    row = next(locks.lock(value, 1, threshold, CTX, [b"an envelope"]))
    bit = data.draw(st.integers(0, len(row) * 8 - 1))
    broken = bytearray(row)
    broken[bit // 8] ^= 1 << bit % 8
    others = {i: next(locks.shares_and_keys(value, i, threshold, CTX))[0] for i in range(2, threshold + 1)}
    shares = {1: bytes(broken[: locks.SHARE_BYTES]), **others}
    with pytest.raises(ProtocolAborted):
        locks.unlock(shares, locks.secret_weights(shares), CTX, 1, bytes(broken[locks.SHARE_BYTES :]))


@pytest.mark.parametrize("indices", [(0, 1), (2, 2)])
def test_impossible_indices_are_refused(indices):
    with pytest.raises(ValueError, match="indices"):
        locks.secret_weights(indices)
