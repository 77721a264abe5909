"""Rules in whole numbers, the words of a row, and the locks of envelopes."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from crosscheck_case import CTX
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import InputError
from protocols.ids import Role
from protocols.jobs.job_type import source
from protocols.joined.rules import RING64, Clause, Column, Question, Rule, row_keys
from protocols.psi.envelopes import sealed

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "joined-rule.json").read_text())
S1, S2, S3 = (source(i) for i in (1, 2, 3))
MATCHER, HELPER, DEALER, RECIPIENT = map(Role, ("matcher", "helper", "dealer", "recipient"))
COLUMNS = tuple(Column(**each) for each in VECTORS["columns"])


def ruled(*clauses: Clause, columns=COLUMNS, ways=tuple(VECTORS["ways"])) -> Rule:
    return Rule(ways, columns, clauses)


def clause_of(vector) -> Clause:
    return Clause(tuple(vector["weights"].items()), vector["sense"], Fraction(vector["bound"]))


def question(rule: Rule, counts=(40, 30, 20), ctx: bytes = CTX, **limits) -> Question:
    limits = {"max_rows": 10, "max_fraction": Fraction(1, 2)} | limits
    seats = {"matcher": MATCHER, "helper": HELPER, "dealer": DEALER, "source": S1, "recipient": RECIPIENT}
    return Question.of(rule, (S1, S2, S3), (S1, S2), counts, ctx, **seats, **limits)


@pytest.mark.parametrize("vector", VECTORS["forms"], ids=lambda each: f"{each['sense']} {each['bound']}")
def test_a_clause_in_whole_numbers_is_that_of_the_vectors(vector):
    (form,) = ruled(clause_of(vector)).forms
    assert (dict(form.factors), form.constant) == (vector["factors"], vector["constant"])
    assert form.width == vector["width"]


def test_the_words_of_rows_are_those_of_the_vectors():
    rule = ruled(clause_of(VECTORS["forms"][0]), clause_of(VECTORS["forms"][1]))
    for row in VECTORS["rows"]:
        amounts = np.array([row["amounts"]], dtype=np.int64)
        words = rule.words(row["owner"], amounts, np.array([True]))
        assert [f"{word:016x}" for word in words.view(np.uint64)[0].tolist()] == row["words"]


amount = st.integers(-50, 50)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_form_holds_exactly_where_the_clause_does(data):
    decimals = [data.draw(st.integers(0, 3)) for _ in range(3)]
    ways = tuple(data.draw(st.sampled_from(["on", "may"])) for _ in range(3))
    columns = tuple(Column(f"c{i}", i, -50, 50, places) for i, places in enumerate(decimals))
    names = data.draw(st.lists(st.sampled_from([0, 1, 2]), min_size=1, unique=True))
    weights = tuple((f"c{i}", data.draw(st.integers(-9, 9).filter(bool))) for i in names)
    amounts = [data.draw(amount | st.sampled_from([-50, 50])) for _ in range(3)]
    total = sum(
        weight * Fraction(amounts[int(slot[1])], 10 ** decimals[int(slot[1])]) for slot, weight in weights
    )
    bound = data.draw(st.fractions(-9, 9, max_denominator=10_000) | st.just(total))
    for sense, holds in (("at_least", total >= bound), ("at_most", total <= bound)):
        rule = Rule(ways if "on" in ways else ("on", *ways[1:]), columns, (Clause(weights, sense, bound),))
        (form,) = rule.forms
        value = form.constant + sum(factor * amounts[int(slot[1])] for slot, factor in form.factors.items())
        assert (value >= 0) == holds
        assert -(1 << (form.width - 1)) <= value < 1 << (form.width - 1)
        parts = np.zeros(1, dtype=np.uint64)
        flags = []
        for owner in range(3):
            own = np.array([[amounts[owner]]], dtype=np.int64)
            words = rule.words(owner, own, np.array([True])).view(np.uint64)[0]
            if rule.parts(owner):
                parts += words[0]
            if rule.has_bit(owner):
                flags.append(int(words[-1]))
        if rule.crossing:
            assert ((parts + np.uint64(form.constant % (1 << 64))).view(np.int64)[0] >= 0) == holds
            assert all(flags)
        else:
            assert all(flags) == holds


def test_the_width_is_the_least_that_holds_all_values():
    for low, high, width in ((0, 127, 8), (0, 128, 9), (-128, 0, 8), (-129, 0, 9), (0, 1, 2), (-1, 0, 1)):
        (form,) = ruled(
            Clause((("a", 1), ("b", 1)), "at_least", Fraction(0)),
            columns=(Column("a", 0, low, high), Column("b", 1, 0, 0)),
            ways=("on", "on"),
        ).forms
        assert form.width == width
    assert (
        ruled(
            Clause((("a", 1),), "at_least", Fraction(0)), columns=(Column("a", 0, 5, 6),), ways=("on", "on")
        )
        .forms[0]
        .width
        == 4
    )


def test_a_list_that_may_hold_a_person_counts_as_zero_where_it_does_not():
    columns = (Column("a", 1, 500, 600), Column("b", 0, 0, 0))
    asked = Clause((("a", 1), ("b", 1)), "at_least", Fraction(500))
    on, may = (ruled(asked, columns=columns, ways=("on", way)).forms[0].width for way in ("on", "may"))
    assert (on, may) == (8, 10)


def test_values_of_62_bits_are_compared_and_wider_ones_refused():
    columns = (Column("a", 0, 0, (1 << 52) - 1), Column("b", 1, 0, 1))
    asked = Clause((("a", 1 << 9), ("b", 1)), "at_least", Fraction(0))
    assert ruled(asked, columns=columns, ways=("on", "on")).forms[0].width == 62
    wider = Clause((("a", 1 << 10), ("b", 1)), "at_least", Fraction(0))
    with pytest.raises(InputError) as error:
        ruled(wider, columns=columns, ways=("on", "on"))
    assert error.value.code == "overflow"


def test_clauses_of_one_owner_leave_as_one_bit_and_no_column_leaves_alone():
    local = [Clause((("cost", 1),), "at_least", Fraction(n)) for n in (1, 2, 3)]
    together = Clause((("cost", 1), ("income", -1)), "at_least", Fraction(0))
    assert [ruled(*local).width(owner) for owner in range(3)] == [1, 0, 0]
    rule = ruled(*local, together)
    assert [rule.width(owner) for owner in range(3)] == [2, 1, 0]
    amounts = np.array([[150], [250], [350]], dtype=np.int64)
    words = rule.words(0, amounts, np.array([True, True, True]))
    assert words[:, 1].tolist() == [0, 0, 1]
    assert words[:, 0].tolist() == [150, 250, 350]


def test_the_first_list_that_is_on_always_says_who_counts():
    rule = ruled(Clause((("income", 1),), "at_least", Fraction(0)), ways=("may", "on", "on"))
    assert [rule.has_bit(owner) for owner in range(3)] == [False, True, False]
    rows = np.array([[5], [5]], dtype=np.int64)
    assert rule.words(1, rows, np.array([True, False])).tolist() == [[1], [0]]
    rule = ruled(Clause((("income", 1),), "at_least", Fraction(0)), ways=("on", "on", "on"))
    assert [rule.has_bit(owner) for owner in range(3)] == [True, True, False]
    assert rule.words(0, rows, np.array([True, False])).tolist() == [[1], [0]]


def test_of_who_is_absent_everybody_knows_the_words():
    present = Column("present(source-3)", 2, 0, 1, presence=True)
    columns = (*COLUMNS, present)
    for bound, sense, bit in (
        ("0", "at_least", 1),
        ("1", "at_least", 0),
        ("0", "at_most", 1),
        ("-1", "at_most", 0),
    ):
        rule = ruled(Clause((("support", 1),), sense, Fraction(bound)), columns=columns)
        assert rule.absent(2).tolist() == [bit]
    both = Clause((("present(source-3)", 5), ("cost", 1)), "at_least", Fraction(5))
    rule = ruled(both, columns=columns)
    assert rule.absent(2).tolist() == [0]
    here = rule.words(2, np.array([[70]], dtype=np.int64), np.array([True]))
    assert here.tolist() == [[500]]  # in units of a hundredth, as costs are


def test_room_is_what_passes_the_guards_at_most():
    rule = ruled(Clause((("cost", 1),), "at_least", Fraction(0)))
    # The third list may hold a person, so it is not what bounds the joined rows.
    assert question(rule).joining.rows == 30
    assert (question(rule).room, question(rule, max_rows=20).room) == (10, 15)
    assert question(rule, counts=(0, 30, 20)).joining.rows == 1
    alone = ruled(Clause((("cost", 1),), "at_least", Fraction(0)), ways=("on", "may", "not"))
    assert question(alone).joining.rows == 40
    assert question(rule, counts=(0, 30, 20)).room == 0


def test_a_lock_is_that_of_the_vectors():
    vector, ctx = VECTORS["lock"], bytes.fromhex(VECTORS["ctx"])
    rule = ruled(Clause((("cost", 1),), "at_least", Fraction(0)))
    asked = question(rule, ctx=ctx)
    key = asked.lock_key(bytes.fromhex(vector["seed"]))
    (found,) = row_keys(key, np.array([vector["position"]], dtype=np.uint32))
    assert found.hex() == vector["lock_key"]
    street = vector["street"].encode()
    plain = bytes([len(vector["key"])]) + vector["key"].encode().ljust(31, b"\0")
    plain += bytes([len(street)]) + street.ljust(47, b"\0") + vector["month"].to_bytes(2, "big")
    (envelope,) = sealed(plain, bytes.fromhex(vector["content_key"]), ctx, asked.number, vector["position"])
    assert envelope.hex() == vector["envelope"]
    assert AESGCM(found).encrypt(bytes(12), envelope, None).hex() == vector["locked"]


def test_every_row_has_a_lock_of_its_own():
    key = bytes(range(32))
    keys = row_keys(key, np.arange(5000))
    assert len(set(keys)) == 5000
    assert row_keys(key, np.array([4999, 17])) == [keys[4999], keys[17]]
    assert row_keys(key[::-1], np.array([17])) != [keys[17]]


@given(st.lists(st.integers(-(1 << 63), (1 << 63) - 1), min_size=1, max_size=20))
def test_words_modulo_2_to_the_64_are_masked_and_come_back(values):
    given_ = np.array(values, dtype=np.int64)
    mask = RING64.stream(bytes(32)).take(len(values), 1)[:, 0]
    masked = RING64.subtract(RING64.encode(given_), mask)
    assert (masked + mask).view(np.int64).tolist() == values
    read = RING64.read(RING64.to_bytes(masked), 1)
    assert read[:, 0].tolist() == masked.tolist()
