"""Lists longer than memory: whatever is held at once, they are what they would be in memory."""

import hashlib
import tracemalloc
from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from crosscheck_case import seeded
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.psi.runs import Reader, Rows, Runs, Shuffle, merge, taken, words
from protocols.resources import MemoryScratch, MemoryStore, Resources, in_memory

TAG = np.dtype("S16")
ROW = np.dtype([("key", "S4"), ("rest", np.uint16)])


def stored(values, dtype=TAG) -> Rows:
    rows = Rows(MemoryStore(), dtype)
    rows.append(np.array(values, dtype=dtype))
    return rows


tags = st.sets(st.binary(min_size=1, max_size=3).filter(lambda tag: tag[-1]), max_size=25).map(sorted)


@given(st.lists(tags, min_size=1, max_size=5), st.integers(1, 12))
def test_a_merge_yields_every_row_once_in_common_order_and_never_much_at_a_time(lists, most):
    found: list[list[bytes]] = [[] for _ in lists]
    before = b""
    for step in merge([stored(each) for each in lists], most):
        taken_here = sorted(key for piece in step for key in piece.tolist())
        assert not taken_here or taken_here[0] > before
        before = taken_here[-1] if taken_here else before
        assert len(taken_here) <= most + len(lists)
        for place, piece in enumerate(step):
            found[place] += piece.tolist()
    assert found == lists


def test_skewed_keys_cost_steps_and_no_memory():
    # All of one list comes before all of the others: a merge by prefixes would hold it whole.
    low, high = stored([b"a%05d" % n for n in range(1000)]), stored([b"b%05d" % n for n in range(50)])
    assert max(sum(map(len, step)) for step in merge([low, high], 40)) <= 42


def sorted_once(rows):
    rows = taken(rows, np.lexsort((rows["rest"], *words(rows["key"]))))
    first = np.ones(len(rows), dtype=np.bool_)
    first[1:] = rows["key"][1:] != rows["key"][:-1]
    return rows[first]


pairs = st.lists(
    st.tuples(st.binary(min_size=1, max_size=3).filter(lambda b: b[-1]), st.integers(0, 5)), max_size=60
)


@settings(max_examples=60)
@given(pairs, st.integers(1, 9), st.integers(1, 20))
def test_runs_on_disk_and_one_in_memory_are_the_same_list(rows, held, batch):
    best: dict[bytes, int] = {}
    for key, rest in rows:
        best[key] = min(rest, best.get(key, 99))
    for resources in (Resources(spill_rows=held), in_memory()):
        runs = Runs(resources, ROW, "key", sorted_once)
        for start in range(0, len(rows), batch):
            runs.add(np.array(rows[start : start + batch], dtype=ROW))
        assert runs.spilled == (len(rows) > resources.spill_rows)
        found = [pair for block in runs.merged() for pair in block.tolist()]
        assert found == sorted(best.items())


@given(st.integers(0, 60), st.integers(1, 20), st.integers(1, 9), st.integers(0, 5))
def test_a_shuffle_has_every_row_once_however_it_is_cut(count, held, step, seed):
    shuffle = Shuffle(Resources(spill_rows=held), np.uint32, count, seeded(seed))
    for start in range(0, count, step):
        shuffle.add(np.arange(start, min(start + step, count), dtype=np.uint32))
    found: list[int] = []
    while len(piece := shuffle.take(step)):
        assert len(piece) == min(step, count - len(found))
        found += piece.tolist()
    assert sorted(found) == list(range(count))


@pytest.mark.parametrize("held", [1, 100])
def test_every_order_of_a_shuffle_is_as_likely(held):
    # Of 24 orders, 2400 draws from fixed seeds: chi-square with 23 degrees of freedom above 49.7 has
    # probability 0.001. With one row held, rows go to 8 buckets.
    drawn: Counter[tuple[int, ...]] = Counter()
    for seed in range(2400):
        shuffle = Shuffle(Resources(spill_rows=held), np.uint8, 4, seeded((held, seed)))
        shuffle.add(np.arange(4, dtype=np.uint8))
        drawn[tuple(shuffle.take(4).tolist())] += 1
    assert set(drawn) == set(permutations(range(4)))
    assert sum((count - 100) ** 2 / 100 for count in drawn.values()) < 49.7


@given(st.lists(st.integers(0, 50), max_size=30), st.lists(st.integers(0, 60), max_size=8), st.integers(1, 7))
def test_a_reader_gives_each_row_once_up_to_each_value(values, ends, block):
    kind = np.dtype([("place", np.uint64)])
    rows = stored([(value,) for value in sorted(values)], kind)
    reader, found = Reader(rows, "place", block), []
    for end in sorted(ends):
        found += reader.below(end)["place"].tolist()
        assert found == [value for value in sorted(values) if value < end]


@given(st.lists(st.binary(max_size=19).map(lambda b: b.rstrip(b"\0")), max_size=20))
def test_texts_sort_as_numbers_as_they_do_as_texts(texts):
    array = np.array(texts, dtype="S19")
    assert array[np.lexsort(words(array))].tolist() == sorted(texts)


def test_a_store_in_memory_gives_what_was_added_and_nothing_beyond():
    store = MemoryScratch().store()
    store.append(b"abc")
    store.append(memoryview(b"defg"))
    assert (store.size, store.read(2, 3), store.read(7, 0)) == (7, b"cde", b"")
    for at, size in ((6, 2), (-1, 2), (0, 8), (0, -1)):
        with pytest.raises(ValueError, match="bytes from"):
            store.read(at, size)
    store.drop()
    assert store.size == 0


class Elsewhere:
    """A store whose bytes are in no memory."""

    def __init__(self, path) -> None:
        self.file = path.open("w+b", buffering=0)
        self.size = 0

    def append(self, data) -> None:
        self.file.seek(self.size)
        self.size += self.file.write(data)

    def read(self, at: int, size: int) -> bytes:
        self.file.seek(at)
        return self.file.read(size)

    def drop(self) -> None:
        self.file.close()


def test_what_is_held_does_not_grow_with_the_list(tmp_path):
    class Scratch:
        made = 0

        def store(self) -> Elsewhere:
            Scratch.made += 1
            return Elsewhere(tmp_path / f"{Scratch.made}")

    def peak(count: int) -> int:
        resources = Resources(Scratch(), spill_rows=4000)
        tracemalloc.start()
        try:
            runs = Runs(resources, "S16,u2", "f0", lambda rows: taken(rows, np.lexsort(words(rows["f0"]))))
            shuffle = Shuffle(resources, "S16,u2", count, seeded(1))
            for start in range(0, count, 1000):
                rows = np.zeros(1000, dtype="S16,u2")
                drawn = hashlib.shake_256(b"%d" % start).digest(16000)
                rows["f0"] = np.frombuffer(drawn, dtype="S16")
                runs.add(rows)
                shuffle.add(rows)
            assert sum(map(len, runs.merged())) == count
            assert sum(iter(lambda: len(shuffle.take(500)), 0)) == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    small, large = peak(40_000), peak(160_000)
    assert large < 1.3 * small
    assert large < 4000 * 18 * 12
