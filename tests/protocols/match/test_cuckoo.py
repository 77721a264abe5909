"""Cuckoo placement: everybody gets a row of its own, whenever three hashes leave one for everybody."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.channel.frame import SIZE_CLASSES
from protocols.errors import ProtocolAborted
from protocols.match import cuckoo
from protocols.match.cuckoo import place
from protocols.match.shape import Shape, Sizing, bucket_bound


def drawn(count, segment, seed=3):
    return np.random.default_rng(seed).integers(0, segment, (3, count))


def check(rows, slots):
    """Everybody sits once, in a row that its hash for that segment names."""
    seats = slots[slots >= 0]
    assert sorted(seats.tolist()) == list(range(rows.shape[1]))
    for hashed in range(3):
        taken = np.flatnonzero(slots[hashed] >= 0)
        assert (rows[hashed, slots[hashed, taken]] == taken).all()


@pytest.mark.parametrize("count", [0, 1, 1000, 1 << 16])
def test_everybody_sits_once_in_a_row_of_its_own(count):
    segment = max(math.ceil(1.27 * count / 3), 1)
    rows = drawn(count, segment)
    slots = place(rows, segment)
    check(rows, slots)
    assert (slots == place(rows, segment)).all()


def test_a_table_that_is_nearly_too_full_is_filled_along_shortest_paths(monkeypatch):
    monkeypatch.setattr(cuckoo, "_ROUNDS", 3)
    rows = drawn(2000, math.ceil(1.12 * 2000 / 3))
    check(rows, place(rows, math.ceil(1.12 * 2000 / 3)))


def exists(rows, segment):
    """Whether there is a placement, by Kuhn's algorithm, one item at a time."""
    owner = {}

    def seat(item, tried):
        for hashed in range(3):
            row = hashed * segment + int(rows[hashed, item])
            if row in tried:
                continue
            tried.add(row)
            if row not in owner or seat(owner[row], tried):
                owner[row] = item
                return True
        return False

    return all(seat(item, set()) for item in range(rows.shape[1]))


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 6), st.integers(0, 18), st.integers(0, 2**32 - 1), st.integers(0, 3))
def test_a_placement_is_found_exactly_if_there_is_one(segment, count, seed, rounds):
    rows = drawn(count, segment, seed)
    before, cuckoo._ROUNDS = cuckoo._ROUNDS, rounds
    try:
        if exists(rows, segment):
            check(rows, place(rows, segment))
        else:
            with pytest.raises(ProtocolAborted) as failed:
                place(rows, segment)
            assert failed.value.code == "cuckoo-full"
    finally:
        cuckoo._ROUNDS = before


@pytest.mark.parametrize(("items", "buckets"), [(10**6, 11), (10**7, 118), (5000, 3), (10**7, 16)])
def test_a_bucket_is_larger_than_its_bound_with_probability_below_2_to_the_minus_41(items, buckets):
    # The exact tail of the binomial distribution, up to terms that fall faster than a geometric series.
    bound, share = bucket_bound(items, buckets), 1 / buckets + 2**-32
    over = bound + 1

    def ln(k):
        choose = math.lgamma(items + 1) - math.lgamma(k + 1) - math.lgamma(items - k + 1)
        return choose + k * math.log(share) + (items - k) * math.log1p(-share)

    ratio = (items - over) / (over + 1) * share / (1 - share)
    tail = ln(over) - math.log1p(-ratio)
    assert ratio < 1
    assert math.log(buckets) + tail < -41 * math.log(2)
    # And no more room than that takes, give or take a few per cent.
    assert bound < items / buckets + 9 * math.sqrt(items / buckets) + 40


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 10**8).flatmap(lambda n: st.integers(max(1, n // 1000), n)),
    st.integers(1, 10**8),
    st.integers(1, 3),
)
def test_buckets_and_messages_of_all_sizes_keep_their_limits(receiver, sender, values):
    shape = Shape.of(receiver, sender, values, Sizing())
    assert shape.buckets < 1 << 16
    assert shape.masks <= 1 << 20
    # What the statement `crafted-list` says of who fills every row.
    assert shape.rows <= max(receiver * 4 / 3, 83_328 * math.ceil(sender * values / 10**6))
    assert 3 * shape.segment >= 1.27 * max(shape.receiver_most, 1 << 16)
    assert shape.segment % 128 == 0
    assert 8 * shape.mask_bytes >= 40 + math.log2(3 * receiver * sender * values)
    assert shape.window == 1 or (shape.window - 1) * len(shape.mask_cut) <= 4
    streams = ((shape.matrix_cut, shape.column_bytes, 512), (shape.mask_cut, shape.mask_bytes, shape.masks))
    for pieces, size, items in streams:
        assert sum(pieces) == items
        assert min(pieces) > 0
        # Each is nearly full for its power of two, but for the last, which is padded by 128 KiB at most.
        for number, piece in enumerate(pieces, start=1):
            room = 1 << max(piece * size - 1, 1).bit_length()
            assert room <= 1 << 20
            assert room - piece * size < (size if number < len(pieces) else (1 << 17) + 1)


@pytest.mark.parametrize(("items", "most"), [(10**5, 0.03), (10**6, 0.04), (10**7, 0.02)])
def test_padding_to_size_classes_adds_little_where_lists_are_long(items, most):
    shape = Shape.of(items, items, 1, Sizing())
    bodies = [columns * shape.column_bytes for columns in shape.matrix_cut]
    bodies += [masks * shape.mask_bytes for masks in shape.mask_cut]
    padded = sum(next(size for size in SIZE_CLASSES if size >= 4 + body) for body in bodies)
    assert sum(bodies) < padded < (1 + most) * sum(bodies)
    # Not by rows for nobody: 1.27 for each item, and what bounds on buckets and whole blocks add.
    assert shape.rows < 1.33 * items
