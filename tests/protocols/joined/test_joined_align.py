"""Who is joined, in what order, and what a helper refuses to take for an alignment."""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import permutations

import numpy as np
import pytest
from crosscheck_case import seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from protocols.errors import ProtocolAborted
from protocols.joined.align import ABSENT, Way, align, check_positions, check_sizes, cleared, filled, spread

A = ABSENT


def tags(people: set[int]) -> np.ndarray:
    """Return ascending tags; every one ends in zeros, which numpy cuts from items taken out."""
    return np.array(sorted(b"%04d" % number + bytes(12) for number in people), dtype="S16")


def persons(lists: Sequence[set[int]], positions: np.ndarray) -> list[tuple[int | None, ...]]:
    """Return who is at each place of each aligned row."""
    ordered = [sorted(people) for people in lists]
    return [
        tuple(None if at == A else ordered[i][at] for i, at in enumerate(row)) for row in positions.tolist()
    ]


PEOPLE = st.sets(st.integers(0, 25), max_size=20)


@settings(max_examples=150)
@given(st.data())
def test_those_are_joined_that_are_on_all_lists_asked_and_on_none_of_the_others(data):
    lists = data.draw(st.lists(PEOPLE, min_size=2, max_size=5))
    ways: list[Way] = data.draw(
        st.lists(st.sampled_from(["on", "may", "not"]), min_size=len(lists), max_size=len(lists)).filter(
            lambda found: "on" in found
        )
    )
    found = align([tags(each) for each in lists], ways, seeded(data.draw(st.integers(0, 99))))
    named = dict(zip(range(len(lists)), ways, strict=True))
    expected = set.intersection(*(lists[i] for i, way in named.items() if way == "on")) - set().union(
        *(lists[i] for i, way in named.items() if way == "not")
    )
    rows = persons(lists, found.positions)
    want = {
        tuple(person if way != "not" and person in lists[i] else None for i, way in named.items())
        for person in expected
    }
    assert len(rows) == len(expected) == found.n
    assert set(rows) == want
    assert found.sizes.tolist() == [len(expected)]
    padded = np.full((found.n + 3, len(lists)), A, dtype=np.uint32)
    padded[: found.n] = found.positions
    assert check_positions(padded, [len(each) for each in lists], ways) == found.n


@settings(max_examples=60)
@given(
    people=st.sets(st.integers(0, 40), max_size=30),
    sizes=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_groups_stand_one_after_the_other_the_empty_ones_as_well(people, sizes, seed):
    lists = [people, people | {41}]
    of = lambda places: (places[:, 0] % sizes).astype(np.int64)  # noqa: E731  # one line
    found = align([tags(each) for each in lists], ("on", "on"), seeded(seed), groups=sizes, group_of=of)
    assert found.sizes.tolist() == [len(range(group, len(people), sizes)) for group in range(sizes)]
    assert of(found.positions).tolist() == sorted(of(found.positions).tolist())


def test_every_order_of_four_persons_is_as_likely_in_a_group_or_without():
    # 24 orders, 1,200 draws each; false alarm 1e-6 each.
    lists = [tags({1, 2, 3, 4})] * 2
    for group_of in (None, lambda places: np.full(len(places), 1)):
        drawn = Counter[tuple[int, ...]]()
        rand = seeded("orders")
        for _ in range(1200):
            found = align(lists, ("on", "on"), rand, groups=3, group_of=group_of)
            drawn[tuple(found.positions[:, 1].tolist())] += 1
        assert set(drawn) == set(permutations(range(4)))
        assert chisquare(list(drawn.values())).pvalue > 1e-6


def test_lists_without_a_key_join_nobody():
    for lists in ([set(), {1}], [{1}, set()], [set(), set()]):
        found = align([tags(each) for each in lists], ("on", "on"), seeded(0))
        assert found.n == 0
        assert found.positions.shape == (0, 2)
    assert align([tags({1}), tags(set())], ("on", "may"), seeded(0)).positions.tolist() == [[0, A]]


RIGHT = np.array([[2, 0, A], [0, A, A], [1, 3, A], [A, A, A]], dtype=np.uint32)
COUNTS = (3, 4, 7)
WAYS: tuple[Way, ...] = ("on", "may", "not")


def test_a_right_alignment_is_taken():
    assert check_positions(RIGHT, COUNTS, WAYS) == 3
    assert check_positions(np.full((5, 3), A, dtype=np.uint32), COUNTS, WAYS) == 0


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("a place that", lambda p: p.__setitem__((0, 0), 3)),
        ("a place that", lambda p: p.__setitem__((0, 1), A - 1)),
        ("a place twice", lambda p: p.__setitem__((0, 0), 1)),
        ("a place twice", lambda p: p.__setitem__((1, 1), 3)),
        ("how the lists", lambda p: p.__setitem__((0, 2), 1)),
        ("how the lists", lambda p: p.__setitem__((0, 0), A)),
        ("how the lists", lambda p: p.__setitem__((3, 1), 1)),
        ("after padding", lambda p: p.__setitem__(slice(2, 4), p[[3, 2]])),
    ],
)
def test_an_alignment_that_is_none_is_refused(what: str, change: Callable[[np.ndarray], None]):
    positions = RIGHT.copy()
    change(positions)
    with pytest.raises(ProtocolAborted, match=what) as error:
        check_positions(positions, COUNTS, WAYS)
    assert error.value.code == "bad-alignment"


@pytest.mark.parametrize("sizes", [[3], [1, 1], [2, 2], []])
def test_groups_that_are_not_all_persons_are_refused(sizes):
    if sum(sizes) == 3:
        check_sizes(np.array(sizes, dtype=np.int64), 3)
        return
    with pytest.raises(ProtocolAborted) as error:
        check_sizes(np.array(sizes, dtype=np.int64), 3)
    assert error.value.code == "bad-groups"


@settings(max_examples=60)
@given(
    count=st.integers(1, 60),
    rows=st.integers(1, 60),
    width=st.integers(1, 4),
    chunk=st.integers(1, 50),
    seed=st.integers(0, 99),
)
def test_rows_come_to_where_the_alignment_has_them_however_they_are_cut(count, rows, width, chunk, seed):
    rng = np.random.default_rng(seed)
    joined = int(rng.integers(0, min(count, rows) + 1))
    column = np.full(rows, A, dtype=np.uint32)
    column[:joined] = rng.permutation(count)[:joined]
    column = column[rng.permutation(rows)]  # "may" lists have gaps
    stream = rng.integers(1, 1 << 31, size=(count, width)).astype(np.uint32)
    asked: list[int] = []

    class Rows:
        def take(self, wanted: int, words: int) -> np.ndarray:
            assert words == width
            asked.append(wanted)
            return stream[sum(asked[:-1]) : sum(asked)]

    out = np.zeros((rows, width), dtype=np.uint32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("protocols.joined.align._SPREAD_WORDS", chunk)
        spread(column, count, Rows(), out)
    assert sum(asked) == count
    assert max(asked) <= max(1, chunk // width)
    for row, at in enumerate(column.tolist()):
        assert (out[row] == (0 if at == A else stream[at])).all()


@given(st.data())
def test_padding_takes_unused_places_of_the_list_as_far_as_there_are_and_is_cleared(data):
    count = data.draw(st.integers(0, 30))
    places = data.draw(st.lists(st.integers(0, count - 1) if count else st.nothing(), unique=True))
    column = np.array(data.draw(st.permutations(places + [A] * data.draw(st.integers(0, 12)))), np.uint32)
    found, here = filled(column, count), column != A
    assert found[here].tolist() == column[here].tolist()
    taken = found[found != A].tolist()
    assert len(set(taken)) == len(taken) == min(len(column), count)
    assert not taken or max(taken) < count
    out = cleared(column, np.ones((len(column), 2), dtype=np.uint64))
    assert out.tolist() == [[int(each)] * 2 for each in here]


def test_unused_places_are_from_all_over_the_list():
    """In order, a clock would tell them from places of persons."""
    found = filled(np.full(500, A, dtype=np.uint32), 1000)
    steps = np.abs(np.diff(found.astype(np.int64)))
    assert np.median(steps) > 300
