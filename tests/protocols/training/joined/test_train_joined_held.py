"""Counts of held-out rows on shares: those of the rows in the clear, and a dealer that errs is found."""

import numpy as np
import pytest
from crosscheck_case import seeded
from train_joined_case import played

from protocols.errors import ProtocolAborted
from protocols.joined.field import NARROW, WIDE
from protocols.training.joined import held
from protocols.training.joined.cubic import Cubic
from protocols.training.joined.held import Histogram
from protocols.training.recipe import sigmoid
from protocols.training.scores import Bins

CTX = b"c" * 32
SEEDS = b"m" * 32, b"h" * 32
FEW = 40
"""Buckets of a pool: far fewer than jobs take, so that tests are quick."""


def histogram_of(rows, bins=8, bits=8):
    return Histogram(rows, Cubic(8, bits), bins, CTX, fewest=FEW)


def shares(values, seed):
    one = WIDE.stream(seeded(seed)(32)).take(1, len(values))[0]
    return one, WIDE.subtract(WIDE.encode(np.asarray(values, np.int64)), one)


def counted(histogram, score, label, n, *, batches=None, shared=None, said=None):
    scores, labels = shared or (shares(score, "s"), shares(label, "l"))
    if batches is None:
        batches = [histogram.deal(number, *SEEDS) for number in range(len(histogram.dealt_bytes()))]
    parts = [
        histogram.counted(
            scores[side], labels[side], n, SEEDS[side], seeded(f"rand{side}"), 0, first=side == 0
        )
        for side in (0, 1)
    ]
    return played(parts, batches, said)


def plain(histogram, score, label, n):
    chances = sigmoid(np.asarray(score[:n]) / (1 << histogram.cubic.bits))
    place = np.searchsorted(np.array(histogram.edges), chances, side="right")
    cell = np.asarray(label[:n]) * histogram.bins + place
    return np.bincount(cell, minlength=2 * histogram.bins).tolist()


@pytest.mark.parametrize(("rows", "n", "bins"), [(70, 70, 8), (130, 101, 32), (64, 0, 2), (5, 5, 4)])
def test_counts_on_shares_are_those_of_the_rows(rows, n, bins):
    histogram = histogram_of(rows, bins, 11)
    rng = np.random.default_rng(rows)
    most = 8 << 11
    score = np.clip(np.rint(rng.normal(0, most / 4, rows)), -most, most).astype(np.int64)
    score[:4] = (0, most, -most, -1)
    label = rng.integers(0, 2, rows)
    both = counted(histogram, score, label, n)
    found = NARROW.decode(NARROW.add(*both))
    assert found.tolist() == plain(histogram, score, label, n)
    assert found.sum() == n


def test_scores_at_every_edge_fall_into_the_bin_that_begins_there():
    histogram = histogram_of(4 * 7, 8)
    score = [t + off for t in histogram.thresholds for off in (-1, 0)] * 2
    label = [0] * 14 + [1] * 14
    both = counted(histogram, score, label, 28)
    assert NARROW.decode(NARROW.add(*both)).tolist() == [1, *[2] * 6, 1] * 2
    assert histogram.thresholds[3] == 0
    assert histogram.edges == Bins.even(8).edges


def test_shares_that_are_not_masked_at_all_count_as_well():
    """Of weights that are all 0 scores are 0 on both sides: both add to them what they share anew."""
    histogram = histogram_of(20)
    nothing = np.zeros(20, np.uint64)
    ones = np.ones(20, np.uint64)
    both = counted(histogram, None, None, 12, shared=((nothing, nothing), (ones, nothing)))
    found = NARROW.decode(NARROW.add(*both)).tolist()
    assert found == [0] * 8 + [0, 0, 0, 0, 12, 0, 0, 0]


def test_what_fills_up_the_places_is_not_counted_whatever_it_is():
    histogram = histogram_of(100)
    rng = np.random.default_rng(0)
    score, label = rng.integers(-2000, 2000, 100), rng.integers(0, 2, 100)
    one = counted(histogram, score, label, 60)
    score[60:], label[60:] = -score[60:], 1 - label[60:]
    other = counted(histogram, score, label, 60)
    assert (NARROW.add(*one) == NARROW.add(*other)).all()


def test_every_share_that_is_sent_on_is_uniform_and_so_are_all_openings_of_the_product():
    histogram = Histogram(4096, Cubic(8, 8), 32, CTX, fewest=FEW)
    said: list[list[bytes]] = []
    both = counted(histogram, np.full(4096, 77), np.ones(4096, np.int64), 4096, said=said)
    assert NARROW.decode(NARROW.add(*both)).sum() == 4096
    shape = histogram.shape
    # The openings of the product are the long ones before the last, its check.
    for side in (0, 1):
        blocks = said[side][-1 - shape.blocks : -1]
        words = NARROW.read(b"".join(blocks), shape.width)
        counts = np.bincount((words.reshape(-1) >> 25).astype(np.int64), minlength=64)
        expected = words.size / 64
        assert float(((counts - expected) ** 2 / expected).sum()) < 155.1


@pytest.mark.parametrize("number", [0, -1])
def test_a_dealer_that_errs_in_a_bit_or_in_the_product_is_caught(number):
    histogram = histogram_of(70)
    batches = [histogram.deal(each, *SEEDS) for each in range(len(histogram.dealt_bytes()))]
    assert tuple(map(len, batches)) == histogram.dealt_bytes()
    wrong = bytearray(batches[number])
    wrong[8] ^= 1
    batches[number] = bytes(wrong)
    with pytest.raises(ProtocolAborted) as found:
        counted(histogram, [5] * 70, [1] * 70, 70, batches=batches)
    assert found.value.code == "bad-triple"


def test_batches_that_do_not_hold_all_rows_go_one_after_the_other(monkeypatch):
    from protocols.joined import bits

    monkeypatch.setattr(bits, "MOST_AND_WORDS", 400)
    histogram = histogram_of(200)
    assert len(histogram.plan.batches) > 2
    rng = np.random.default_rng(9)
    score, label = rng.integers(-2000, 2000, 200), rng.integers(0, 2, 200)
    both = counted(histogram, score, label, 200)
    assert NARROW.decode(NARROW.add(*both)).tolist() == plain(histogram, score, label, 200)


def test_streams_of_purposes_differ():
    histogram = histogram_of(10)
    bound = {histogram._bound(what) for what in (b"bits", b"counts")}
    assert len(bound | {CTX}) == 3
    assert held.MATCHER != held.HELPER
