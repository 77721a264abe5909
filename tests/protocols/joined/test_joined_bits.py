"""Comparison and conjunction of shared bits, the dealer's triples and their check."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from math import comb, log2
from pathlib import Path

import numpy as np
import pytest
from crosscheck_case import CTX, seeded
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import ProtocolAborted
from protocols.joined import bits
from protocols.joined.bits import BUCKET, FEWEST, OPENED, Circuit, Plan, Triples, packed, unpacked

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "joined-rule.json").read_text())
SEEDS = (b"first holder's seed for a test..", b"second holder's seed for a test.")
COINS = (b"a coin of tests.", b"another for test")


class Heard(list):
    """What went from the first holder to the second, and back, in turn."""


def play(first, second, heard=None):
    """Play two exchanges against each other; return both results."""
    one, other = next(first), next(second)
    while True:
        assert len(one) == len(other)
        if heard is not None:
            heard += [one, other]
        try:
            following = first.send(other)
        except StopIteration as end:
            with pytest.raises(StopIteration) as last:
                second.send(one)
            return end.value, last.value.value
        other = second.send(one)
        one = following


def part(plan, batch, values, flags, *, corrections=None):
    """One holder's part of a batch; the second one has corrections."""
    first = corrections is None
    if first:
        dealt = Triples.first(plan, batch, SEEDS[0])
    else:
        dealt = Triples.second(plan, batch, SEEDS[1], corrections)
    used = yield from bits.checked(plan, batch, dealt, COINS[not first], first=first)
    return (yield from bits.conjoined(plan, values, flags, used, first=first))


def shared(values: Sequence[np.ndarray], rows: int, rng) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Additive shares modulo 2^64 of each column, filled up with zeros."""
    ones, others = [], []
    for column in values:
        filled = np.zeros(rows, dtype=np.int64)
        filled[: len(column)] = column
        mask = np.frombuffer(rng.bytes(8 * rows), dtype=np.uint64)
        ones.append(mask)
        others.append(filled.view(np.uint64) - mask)
    return ones, others


def inputs(values, flags, here: slice) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """One holder's shares of the rows `here`: values, and the lowest bits of flags, packed."""
    one = np.uint64(1)
    return [each[here] for each in values], [packed((each[here] & one).astype(bool)) for each in flags]


def evaluated(widths, values, flags, *, fewest=4, seed=0, heard=None) -> np.ndarray:
    """The rule over plaintext columns, computed in shares."""
    rows = len((values or flags)[0])
    plan = Plan(Circuit(tuple(widths), len(flags)), rows, CTX, fewest)
    rng = np.random.default_rng(seed)
    whole = plan.words * 64
    one, other = shared(values, whole, rng)
    one_flags, other_flags = shared([flag.astype(np.int64) for flag in flags], whole, rng)
    found = []
    for batch in plan.batches:
        here = slice(64 * batch.start, 64 * (batch.start + batch.words))
        corrections = bits.deal(plan, batch, *SEEDS).tobytes()
        sides = [
            part(plan, batch, *inputs(one, one_flags, here)),
            part(plan, batch, *inputs(other, other_flags, here), corrections=corrections),
        ]
        results = play(*sides, heard)
        found.append(unpacked(results[0] ^ results[1]))
    return np.concatenate(found)[:rows]


def extremes(width: int) -> list[int]:
    top = 1 << (width - 1)
    return sorted({-top, -top + 1 if width > 1 else 0, -1, 0, top - 1, top // 2, -(top // 2)})


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_row_is_true_if_every_value_is_not_negative_and_every_bit_is_set(data):
    widths = data.draw(st.lists(st.integers(1, 62), max_size=4))
    flags = data.draw(st.integers(0 if widths else 1, 3))
    rows = data.draw(st.integers(1, 130))
    values = []
    for width in widths:
        top = 1 << (width - 1)
        one = st.sampled_from(extremes(width)) | st.integers(-top, top - 1)
        values.append(np.array(data.draw(st.lists(one, min_size=rows, max_size=rows)), dtype=np.int64))
    columns = [
        np.array(data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows))) for _ in range(flags)
    ]
    expected = np.all([*(each >= 0 for each in values), *columns], axis=0)
    assert (evaluated(widths, values, columns, seed=rows) == expected).all()


@pytest.mark.parametrize("width", [1, 2, 3, 4, 31, 32, 33, 61, 62])
def test_every_width_is_exact_at_its_ends(width):
    ends = np.array(extremes(width), dtype=np.int64)
    for seed in range(3):
        assert (evaluated([width], [ends], [], seed=seed) == (ends >= 0)).all()


def test_batches_of_many_widths_give_what_one_gives(monkeypatch):
    rng = np.random.default_rng(5)
    values = [rng.integers(-1000, 1000, 700), rng.integers(-(1 << 39), 1 << 39, 700)]
    flags = [rng.integers(0, 2, 700).astype(bool)]
    expected = (values[0] >= 0) & (values[1] >= 0) & flags[0]
    assert (evaluated([11, 40], values, flags) == expected).all()
    monkeypatch.setattr(bits, "MOST_WORDS", 3)
    monkeypatch.setattr(bits, "_SPAN", 100)
    assert len(Plan(Circuit((11, 40), 1), 700, CTX).batches) == 4
    assert (evaluated([11, 40], values, flags) == expected).all()


@pytest.mark.parametrize(("widths", "flags"), [((40, 40, 40), 1), ((1,), 0), ((), 3), ((2, 62, 7), 4)])
def test_a_plan_says_how_many_ands_and_exchanges_there_are(widths, flags):
    circuit, heard = Circuit(widths, flags), Heard()
    rows = 64
    values = [np.zeros(rows, dtype=np.int64) for _ in widths]
    evaluated(widths, values, [np.ones(rows, dtype=bool)] * flags, heard=heard)
    plan = Plan(circuit, rows, CTX, 4)
    (batch,) = plan.batches
    assert len(heard) == 2 * plan.exchanges(batch)
    opened = heard[2 * (plan.exchanges(batch) - len(circuit.levels())) :: 2]
    # Each AND opens two words of 64 rows.
    assert [len(body) // 16 for body in opened] == list(circuit.levels())


def test_forty_bits_take_109_ands_in_seven_rounds():
    assert (Circuit((40,), 0).ands, len(Circuit((40,), 0).levels())) == (109, 7)


def test_a_circuit_of_nothing_or_of_too_wide_values_is_refused():
    for widths, flags in (((), 0), ((0,), 1), ((63,), 0)):
        with pytest.raises(ValueError, match="widths"):
            Circuit(widths, flags)


def test_no_exchange_is_longer_than_what_may_be_under_way():
    for widths, flags in (((2,) * 8, 6), ((62,) * 8, 6), ((1,), 0), ((3, 3), 1)):
        plan = Plan(Circuit(widths, flags), 1 << 26, CTX)
        for batch in plan.batches[:1] + plan.batches[-1:]:
            most = max([2 * 8 * level * batch.words for level in plan.circuit.levels()], default=0)
            spans = 2 * 8 * (BUCKET - 1) * min(bits._SPAN, batch.buckets)
            assert max(most, spans) <= 4 << 20


# -- triples -------------------------------------------------------------------------------------------------

SMALL = Plan(Circuit((2,), 0), 64, CTX, fewest=2)


def checked(corrections: bytes, plan: Plan = SMALL, coins=COINS) -> list[str]:
    """How the check ends at either holder."""
    (batch,) = plan.batches
    sides = [
        bits.checked(plan, batch, Triples.first(plan, batch, SEEDS[0]), coins[0], first=True),
        bits.checked(plan, batch, Triples.second(plan, batch, SEEDS[1], corrections), coins[1], first=False),
    ]
    bodies, ends = [next(side) for side in sides], ["", ""]
    while not all(ends):
        bodies.reverse()
        for place, side in enumerate(sides):
            try:
                bodies[place] = side.send(bodies[place])
            except StopIteration:
                ends[place] = "passed"
            except ProtocolAborted as error:
                ends[place] = error.code
    return ends


def dealt(plan: Plan = SMALL) -> bytes:
    (batch,) = plan.batches
    return bits.deal(plan, batch, *SEEDS).tobytes()


def test_right_triples_pass_and_are_triples():
    assert checked(dealt()) == ["passed", "passed"]
    (batch,) = SMALL.batches
    one, other = play(
        bits.checked(SMALL, batch, Triples.first(SMALL, batch, SEEDS[0]), COINS[0], first=True),
        bits.checked(SMALL, batch, Triples.second(SMALL, batch, SEEDS[1], dealt()), COINS[1], first=False),
    )
    assert (((one.a ^ other.a) & (one.b ^ other.b)) == (one.c ^ other.c)).all()
    assert len(one.a) == batch.buckets


def test_a_wrong_byte_anywhere_is_found_by_both():
    right = dealt()
    for at in range(len(right)):
        wrong = bytearray(right)
        wrong[at] ^= 1 << at % 8
        assert checked(bytes(wrong)) == ["bad-triple", "bad-triple"], at


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_corrections_that_are_all_wrong_in_one_way_are_found(flip):
    wrong = bytes(byte ^ flip for byte in dealt())
    assert checked(wrong) == ["bad-triple", "bad-triple"]


def test_wrong_words_pass_only_where_they_fill_buckets_and_as_often_as_reckoned():
    # 4 of 12 words wrong in one way: they pass if they are one of 2 buckets, 2 of C(12, 4) = 495 times.
    # Over 3000 challenges 12.1 are expected; by chance alone fewer than 1 or more than 30 come once in 2e5.
    wrong = bytearray(dealt())
    for word in range(4):
        wrong[8 * word] ^= 1
    passed = 0
    for seed in range(3000):
        coin = hashlib.sha256(b"%d" % seed).digest()
        passed += checked(bytes(wrong), coins=(coin[:16], coin[16:])) == ["passed", "passed"]
    assert 1 <= passed <= 30


def exact_luck(buckets: int) -> float:
    total = BUCKET * buckets + OPENED
    return max(log2(comb(buckets, k)) - log2(comb(total, BUCKET * k)) for k in range(1, buckets + 1))


@pytest.mark.parametrize("buckets", [1, 2, 3, 7, 16, 100, 300])
def test_the_bound_on_luck_is_the_largest_over_all_numbers_of_wrong_words(buckets):
    assert bits.luck(buckets) == pytest.approx(exact_luck(buckets))


def test_a_dealer_has_luck_in_a_whole_job_less_than_once_in_2_to_the_43():
    assert bits.luck(FEWEST) < -45.4
    # A circuit of one bit alone uses no triple.
    for widths, flags in (((62,) * 8, 6), ((40, 40, 40), 1), ((2,), 0), ((), 2), ((), 6)):
        plan = Plan(Circuit(widths, flags), 1 << 26, CTX)
        sizes = [batch.buckets for batch in plan.batches]
        assert sum(2 ** bits.luck(size) * sizes.count(size) for size in set(sizes)) < 2**-43


def test_corrections_of_another_length_are_refused():
    (batch,) = SMALL.batches
    for body in (dealt()[:-8], dealt() + bytes(8), b""):
        with pytest.raises(ProtocolAborted) as error:
            Triples.second(SMALL, batch, SEEDS[1], body)
        assert error.value.code == "bad-length"


def test_no_triple_is_used_twice():
    (batch,) = SMALL.batches
    triples = Triples.first(SMALL, batch, SEEDS[0])
    taken = [triples.take(5), triples.take(7)]
    assert (np.concatenate([each[0] for each in taken]) == triples.a).all()
    with pytest.raises(ValueError, match="more triples"):
        triples.take(1)


def test_batches_and_attempts_have_other_triples():
    plan = Plan(Circuit((40,), 0), 64, CTX, fewest=2)
    (batch,) = plan.batches
    again = replace(batch, number=1)
    elsewhere = replace(plan, ctx=hashlib.sha256(CTX).digest())
    streams = [
        bits.deal(plan, batch, *SEEDS).tobytes(),
        bits.deal(plan, again, *SEEDS).tobytes(),
        bits.deal(elsewhere, batch, *SEEDS).tobytes(),
        bits.deal(plan, batch, *SEEDS[::-1]).tobytes(),
    ]
    assert len(set(streams)) == 4


def test_the_vector_of_a_pool():
    vector = VECTORS["triples"]
    plan = Plan(Circuit((2,), 0), 64, bytes.fromhex(VECTORS["ctx"]), fewest=2)
    batch = replace(plan.batches[0], number=vector["number"], buckets=vector["buckets"])
    seeds = [bytes.fromhex(seed) for seed in vector["seeds"]]
    corrections = bits.deal(plan, batch, *seeds).tobytes()
    assert corrections.hex() == vector["corrections"]
    challenge = bits._challenge(plan, batch, *map(bytes.fromhex, vector["coins"]))
    places = np.arange(batch.triples, dtype=np.uint64)
    order, _, _ = bits._ordered(Triples(places, places, places), challenge)
    assert order.tolist() == vector["order"]


# -- what each sees ------------------------------------------------------------------------------------------


def test_all_that_goes_between_the_two_is_uniform_whatever_the_rows_are():
    # All rows and all bits alike: without triples, openings would be constant. Of the bits of all bodies
    # but coins the share of ones is 1/2 +- 5 standard deviations; by chance it is not once in 1.7e6, for each
    # of two directions and two inputs.
    for value in (0, -1):
        heard = Heard()
        evaluated([40], [np.full(4096, value)], [np.ones(4096, dtype=bool)], heard=heard, seed=3)
        for direction in (heard[0::2], heard[1::2]):
            body = b"".join(direction[1:])
            ones = unpacked(np.frombuffer(body[: len(body) // 8 * 8], dtype=np.uint64))
            deviations = (ones.mean() - 0.5) / (0.5 / np.sqrt(len(ones)))
            assert abs(deviations) < 5


def test_openings_without_triples_would_fail_that_test(monkeypatch):
    monkeypatch.setattr(Triples, "take", lambda self, words: (np.zeros(words, dtype=np.uint64),) * 3)
    heard = Heard()
    with np.errstate(all="ignore"):
        evaluated([40], [np.zeros(4096, dtype=np.int64)], [np.ones(4096, dtype=bool)], heard=heard, seed=3)
    # The helper's first openings: its own half of x is 0 at all places.
    plan = Plan(Circuit((40,), 1), 4096, CTX, 4)
    first = heard[2 * (plan.exchanges(plan.batches[0]) - len(plan.circuit.levels())) + 1]
    ones = unpacked(np.frombuffer(first, dtype=np.uint64))
    assert abs((ones.mean() - 0.5) / (0.5 / np.sqrt(len(ones)))) > 50


def test_the_second_holders_share_of_the_result_is_uniform():
    # 4096 rows that are all true: its share has ones at 1/2 +- 5 deviations, once in 1.7e6 by chance.
    plan = Plan(Circuit((40,), 1), 4096, CTX)
    (batch,) = plan.batches
    one, other = shared([np.ones(4096, dtype=np.int64)] * 2, 4096, np.random.default_rng(2))
    everything = slice(None)
    sides = [
        part(plan, batch, *inputs(one[:1], one[1:], everything)),
        part(
            plan,
            batch,
            *inputs(other[:1], other[1:], everything),
            corrections=bits.deal(plan, batch, *SEEDS).tobytes(),
        ),
    ]
    mine, theirs = play(*sides)
    assert unpacked(mine ^ theirs).all()
    assert abs(unpacked(theirs).mean() - 0.5) < 5 * 0.5 / np.sqrt(4096)


@pytest.mark.long
def test_a_hundred_thousand_rows_of_three_clauses_of_forty_bits():
    rng = np.random.default_rng(9)
    values = [rng.integers(-(1 << 39), 1 << 39, 100_000) for _ in range(3)]
    flags = [rng.integers(0, 2, 100_000).astype(bool)]
    expected = np.all([*(each >= 0 for each in values), *flags], axis=0)
    assert (evaluated([40, 40, 40], values, flags, fewest=FEWEST) == expected).all()


def test_packed_bits_come_back():
    given = np.frombuffer(seeded("bits")(64 * 5), dtype=np.uint8) > 127
    assert (unpacked(packed(given)) == given).all()
    assert packed(np.eye(64, dtype=bool)[3]).tolist() == [8]
