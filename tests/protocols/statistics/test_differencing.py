"""The differencing guard against an oracle that lists every row a small table could have."""

from fractions import Fraction
from itertools import product
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from protocols.errors import DecodeError, InputError
from protocols.ids import Digest
from protocols.statistics.differencing import MAX_QUERY_BYTES, Between, Query, differenced, disjoint
from protocols.tables.layout import fraction

STREETS = ("东街", "西街", "南街")
AGES = tuple(range(6))
ROWS = tuple(product(STREETS, AGES))

STREET_FILTERS = st.frozensets(st.sampled_from(STREETS))
AGE_FILTERS = st.builds(
    Between,
    st.none() | st.integers(-1, 7).map(Fraction),
    st.none() | st.integers(-1, 7).map(Fraction),
)
QUERIES = st.builds(
    lambda asks, street, age, noisy, amounts: Query(
        asks,
        {key: kept for key, kept in (("street", street), ("age", age)) if kept is not None},
        noisy,
        amounts,
    ),
    st.sampled_from(["k = 2", "k = 3"]),
    st.none() | STREET_FILTERS,
    st.none() | AGE_FILTERS,
    st.booleans(),
    st.booleans(),
)


def selected(query: Query) -> frozenset[tuple[str, int]]:
    def kept(column: str, value: str | int) -> bool:
        wanted = query.filters.get(column)
        if wanted is None:
            return True
        if isinstance(wanted, frozenset):
            return value in wanted
        number = Fraction(value)
        return (wanted.low is None or wanted.low <= number) and (wanted.high is None or number <= wanted.high)

    return frozenset(row for row in ROWS if kept("street", row[0]) and kept("age", row[1]))


ONE, OTHER = Digest("sha256:" + "1" * 64), Digest("sha256:" + "2" * 64)


def by_sex(value: str, mapped: Digest | None, **more: Any) -> Query:
    return Query("x", {"sex": frozenset({value})}, mapped={} if mapped is None else {"sex": mapped}, **more)


def test_codes_of_two_mappings_neither_exclude_nor_equal_each_other():
    assert not differenced(by_sex("1", ONE), by_sex("2", ONE))
    assert not differenced(by_sex("1", ONE), by_sex("1", ONE))
    for then in (OTHER, None):
        for value in ("1", "2"):
            assert differenced(by_sex("1", ONE), by_sex(value, then))
            assert not differenced(by_sex("1", ONE, noisy=True), by_sex(value, then))
    # A column that is mapped in neither still tells the groups apart.
    ages = [{"age": Between(Fraction(low), Fraction(low + 4))} for low in (0, 5)]
    young, old = (
        Query("x", {**age, "sex": frozenset("1")}, mapped={"sex": m})
        for age, m in zip(ages, (ONE, OTHER), strict=True)
    )
    assert not differenced(young, old)


def test_a_query_over_mapped_columns_is_one_text_and_one_without_is_as_before():
    query = by_sex("1", ONE, amounts=True)
    assert Query.decode(query.encode()) == query
    assert "mapped" not in by_sex("1", None).encode()
    for wrong in ('"mapped":{}', '"mapped":{"sex":"1"}', '"mapped":{"sex":1}', '"mapped":1'):
        text = by_sex("1", None).encode().replace('"noisy"', wrong + ',"noisy"')
        with pytest.raises(DecodeError):
            Query.decode(text)


@given(QUERIES, QUERIES)
@example(Query("k = 2"), Query("k = 3"))
@example(Query("k = 2"), Query("k = 2", {"age": Between(Fraction(1))}))
def test_two_exact_answers_never_leave_a_difference(one, other):
    if not differenced(one, other):
        same = one.asks == other.asks and selected(one) == selected(other)
        apart = not selected(one) & selected(other)
        assert one.noisy or other.noisy or same or apart


@given(QUERIES, QUERIES)
def test_the_guard_does_not_mind_who_was_first(one, other):
    assert differenced(one, other) == differenced(other, one)
    assert disjoint(one, other) == disjoint(other, one)


@given(QUERIES)
def test_the_same_question_is_no_difference(query):
    assert not differenced(query, query)


def test_neighbouring_groups_are_apart_and_overlapping_ones_are_not():
    young, old = (
        Query("count", {"age": Between(None, Fraction(59))}),
        Query("count", {"age": Between(Fraction(60))}),
    )
    assert not differenced(young, old)
    assert differenced(young, Query("count", {"age": Between(Fraction(59))}))
    assert differenced(young, Query("count"))


def test_a_group_of_k_and_then_of_one_less_needs_noise():
    street = Query("count", {"street": frozenset({"东街"})})
    without = Query("count", {"street": frozenset({"东街"}), "id": frozenset({"a", "b"})})
    assert differenced(without, street)
    assert not differenced(Query(without.asks, without.filters, noisy=True), street)


def test_a_set_and_an_interval_are_not_known_to_be_apart():
    assert differenced(Query("x", {"a": frozenset({"1"})}), Query("x", {"a": Between(Fraction(2))}))


def test_months_are_compared_with_months_and_not_with_numbers():
    def until(low, high, *, months):
        return Query("count", {"died": Between(Fraction(low), Fraction(high), months)})

    summer, autumn = until(24305, 24307, months=True), until(24308, 24310, months=True)
    assert not differenced(summer, autumn)
    assert differenced(summer, until(24307, 24310, months=True))
    # One row may be 202506 in a column of numbers, and June where the policy calls the same column a month.
    assert differenced(summer, until(202506, 202508, months=False))
    assert differenced(until(24305, 24307, months=False), summer)
    for query in (summer, autumn):
        assert Query.decode(query.encode()) == query
    text = '{"asks":"count","filters":{"died":{"high":null,"low":"1"}},"noisy":false}'
    assert Query("count", {"died": Between(Fraction(1))}).encode() == text


@given(QUERIES)
def test_a_query_round_trips(query):
    assert Query.decode(query.encode()) == query


def test_a_text_from_before_amounts_were_told_apart_is_read_as_it_was():
    text = '{"asks":"x","filters":{},"noisy":false}'
    assert Query.decode(text) == Query("x")
    assert Query("x").encode() == text
    assert Query("x", amounts=True).encode() == '{"amounts":true,"asks":"x","filters":{},"noisy":false}'


def test_a_query_that_could_not_be_read_again_is_not_written():
    around = len(Query("").encode())
    largest = Query("x" * (MAX_QUERY_BYTES - around))
    assert Query.decode(largest.encode()) == largest
    with pytest.raises(InputError) as error:
        Query(largest.asks + "x").encode()
    assert error.value.code == "query-too-long"


@given(st.from_regex(r"-?[0-9]{1,20}(\.[0-9]{1,18}|/[1-9][0-9]{0,17})?", fullmatch=True))
@example("-7." + "9" * 36 + "7")
@example("7." + "9" * 37 + "7")
@example("9." + "0" * 37 + "1")
def test_whatever_number_a_filter_may_have_its_query_can_be_read_again(text):
    query = Query("count", {"age": Between(low=fraction(text, "low"))})
    assert Query.decode(query.encode()) == query


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"asks":"x","filters":{}}',
        '{"asks":"x","filters":{},"noisy":0}',
        '{"amounts":false,"asks":"x","filters":{},"noisy":false}',
        '{"amounts":1,"asks":"x","filters":{},"noisy":false}',
        '{"asks":"x","filters":{},"noisy":false,"more":1}',
        '{"asks":"x","filters":{"a":{"values":[1]}},"noisy":false}',
        '{"asks":"x","filters":{"a":{"values":["b","a"]}},"noisy":false}',
        '{"asks":"x","filters":{"a":{"high":null,"low":"1e999999999"}},"noisy":false}',
        '{"asks":"x","filters":{"a":{"high":null,"low":"2/4"}},"noisy":false}',
        '{"asks":"x","filters":{"a":{"high":null,"low":"1/0"}},"noisy":false}',
        '{"asks":"x","filters":{"a":{"high":null,"low":"1","months":false}},"noisy":false}',
        '{"asks":"x","filters":{"a":{"high":null,"low":"1","months":1}},"noisy":false}',
        '{"asks":"x","filters":{"a":{}},"noisy":false}',
    ],
)
def test_any_other_text_is_refused(text):
    with pytest.raises(DecodeError):
        Query.decode(text)
