"""Lists for a match: which rows stay, under which mark, and what is said of the others."""

import hashlib
import json
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from crosscheck_case import person
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import InputError
from protocols.identifiers import area_table
from protocols.match.inputs import MAX_VALUES, NOT_COMPARABLE, MatchList, MatchListBuilder

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "match.json").read_text())
GROUPS = (("10",), ("20", "21", "22"), ("30",))
Batch = dict[str, list[Any]]


def built(*batches: Batch, groups: tuple[tuple[str, ...], ...] = ()) -> MatchList:
    builder = MatchListBuilder(as_of=date(2026, 1, 1), areas=area_table("demo-city"), groups=groups)
    for batch in batches:
        builder.add({slot: pa.array(values, pa.string()) for slot, values in batch.items()})
    return builder.finish()


def marked(listed: MatchList) -> dict[str, int]:
    assert (listed.keys[1:] > listed.keys[:-1]).all()
    return dict(zip((key.decode()[4:] for key in listed.keys.tolist()), listed.marks.tolist(), strict=True))


def test_each_key_stands_once_in_order_and_the_rest_is_counted() -> None:
    numbers = [5, 3, 3, 9, 5]
    listed = built(
        {"key": [person(n) for n in numbers]},
        {"key": [person(3), None, "123", f" {person(7)[:17]}{person(7)[17].lower()} "]},
    )
    assert marked(listed) == dict.fromkeys((person(n) for n in (3, 5, 7, 9)), 0)
    assert (listed.rows, listed.distinct_keys) == (9, 4)
    assert listed.quality()["repeated-key"] == 3
    assert sum(listed.quality().values()) == 5
    assert repr(listed) == "MatchList(9 rows, 4 keys)"


def test_keys_of_another_type_are_left_out_and_counted() -> None:
    listed = built({"key": ["E12345678", person(1), "91440101MA5CQ8R01X"]})
    assert marked(listed) == {person(1): 0}
    assert sum(listed.quality().values()) == 2


@pytest.mark.parametrize("empty", [(), ({"key": []},), ({"key": [None]},)])
def test_a_list_without_keys_is_a_list(empty: tuple[Batch, ...]) -> None:
    listed = built(*empty)
    assert (listed.distinct_keys, len(listed.marks)) == (0, 0)
    with_values = built(*({**b, "value": [None] * len(b["key"])} for b in empty), groups=GROUPS)
    assert with_values.distinct_keys == 0
    assert listed.commitment(bytes(32)) == with_values.commitment(bytes(32))


def test_values_are_marked_by_their_group_and_keys_with_none_stay_as_not_comparable() -> None:
    values = ["10", " 21 ", "22", "30", "90", "", None, "１０"]
    listed = built({"key": [person(n) for n in range(8)], "value": values}, groups=GROUPS)
    expected = {person(0): 1, person(1): 2, person(2): 2, person(3): 3}
    assert marked(listed) == expected | dict.fromkeys(map(person, range(4, 8)), 0)
    assert dict(listed.quality()) == {"other-value": 2, "no-value": 2}
    assert listed.rows == 8


def test_whole_numbers_are_values_as_they_are_written() -> None:
    builder = MatchListBuilder(as_of=date(2026, 1, 1), areas=area_table("demo-city"), groups=GROUPS)
    builder.add({"key": pa.array([person(1)]), "value": pa.array([21])})
    assert marked(builder.finish()) == {person(1): 2}


def test_of_one_keys_rows_the_one_last_seen_stays_and_of_equals_the_smallest_value() -> None:
    groups = (("30", "10"), ("20",), ("05",))
    rows = [
        (1, "20", "2026-01"), (1, "10", "2026-02"), (1, "30", "2025-12"),  # the latest
        (2, "20", "202601"), (2, "10", "2026-01-31"),  # as late: "10" before "20"
        (3, "20", None), (3, "30", "1900-01"),  # known before unknown
        (4, "20", None), (4, "05", None),  # both unknown
        (5, "90", "2026-05"), (5, "20", "2020-01"),  # no group: not a row to compare
        (6, "90", "2026-05"), (6, "", None),  # no group, all of them
        (7, "90", "2026-05"), (7, "05", None),  # a row to compare, whenever
    ]  # fmt: skip
    for order in (rows, rows[::-1]):
        batch = dict(zip(("key", "value", "last_seen"), map(list, zip(*order, strict=True)), strict=True))
        batch["key"] = [person(n) for n in batch["key"]]
        halves = [{slot: values[part] for slot, values in batch.items()} for part in (slice(5), slice(5, 99))]
        listed = built(*halves, groups=groups)
        assert marked(listed) == {
            person(n): mark for n, mark in enumerate((1, 1, 1, 3, 2, NOT_COMPARABLE, 3), start=1)
        }
        quality = {"other-value": 3, "no-value": 1, "repeated-key": 8, "no-month": 2}
        assert dict(listed.quality()) == quality


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 12),
            st.sampled_from(["10", "20", "21", "30", "x", ""]),
            st.sampled_from(["1900-01", "2026-01", "2025-08", "2025-11", ""]),
        ),
        max_size=40,
    ),
    st.integers(1, 7),
)
def test_a_list_is_that_of_plain_python(rows: list[tuple[int, str, str]], size: int) -> None:
    batches = [
        {
            "key": [person(n) for n, _, _ in rows[at : at + size]],
            "value": [value for _, value, _ in rows[at : at + size]],
            "last_seen": [month for _, _, month in rows[at : at + size]],
        }
        for at in range(0, len(rows), size)
    ]
    number = {value: place for place, group in enumerate(GROUPS, 1) for value in group}
    best: dict[str, tuple[str, str]] = {}
    expected = {person(n): NOT_COMPARABLE for n, _, _ in rows}
    for n, value, month in rows:
        if value in number:
            known = best.get(person(n))
            later = known is None or month > known[1] or (month == known[1] and value < known[0])
            best[person(n)] = (value, month) if later or known is None else known
    expected |= {key: number[value] for key, (value, _) in best.items()}
    assert marked(built(*batches, groups=GROUPS)) == expected


def test_how_many_keys_a_list_has_does_not_depend_on_which_values_are_compared() -> None:
    batch = {"key": [person(n // 2) for n in range(12)], "value": ["10", "90", "20", "", None, "x"] * 2}
    sizes = {
        built(batch, groups=groups).distinct_keys
        for groups in (GROUPS, (("90",), ("zz",)), (("10",), ("20",)), (("a",), ("b",)))
    }
    assert sizes == {built({"key": batch["key"]}).distinct_keys} == {6}


def test_the_commitment_binds_keys_and_marks() -> None:
    salt = bytes(range(32))
    for vector in VECTORS["commitments"]:
        keys = np.array([key.encode() for key in vector["keys"]])
        marks = np.array(vector.get("marks", [0] * len(keys)), dtype=np.uint8)
        listed = MatchList(len(keys), keys, marks, "marks" in vector, "rules")
        assert vector["salt"] == salt.hex()
        assert listed.commitment(salt) == vector["digest"]
    one, two = (
        ([person(n) for n in range(3)], ["10", "20", "30"]),
        ([person(n) for n in range(3)], ["10"] * 3),
    )
    none = (one[0], ["x", "y", ""])
    made = {
        built({"key": keys, "value": values}, groups=GROUPS).commitment(salt)
        for keys, values in (one, two, none)
    }
    assert len(made | {built({"key": one[0]}).commitment(salt)}) == 4
    with pytest.raises(ValueError, match="salt"):
        built().commitment(b"short")


def test_the_commitment_is_what_the_specification_says() -> None:
    listed = built({"key": [person(2), person(1)], "value": ["30", "10"]}, groups=GROUPS)
    items = sorted([f"RIC:{person(1)}=1".encode(), f"RIC:{person(2)}=3".encode()])
    plain = bytes(32) + b"".join(len(item).to_bytes(2, "big") + item for item in items)
    assert listed.commitment(bytes(32)) == f"sha256:{hashlib.sha256(plain).hexdigest()}"


@pytest.mark.parametrize("items", [[b"a", b"bcd", b"ef"], [b"abc", b"def"], [b"x"], []])
def test_items_of_any_lengths_are_committed_to_alike(items: list[bytes]) -> None:
    plain = bytes(32) + b"".join(len(item).to_bytes(2, "big") + item for item in items)
    marks = np.zeros(len(items), dtype=np.uint8)
    listed = MatchList(len(items), np.array(items, dtype="S3"), marks, valued=False, rule_version="rules")
    assert listed.commitment(bytes(32)) == f"sha256:{hashlib.sha256(plain).hexdigest()}"


@pytest.mark.parametrize(
    ("batch", "code"),
    [
        ({"key": ["1"]}, "unknown-slot"),
        ({"key": ["1"], "value": ["10"], "street": ["x"]}, "unknown-slot"),
        ({"value": ["10"]}, "unknown-slot"),
        ({"key": ["1", "2"], "value": ["10"]}, "length-mismatch"),
    ],
)
def test_other_slots_and_lengths_are_refused(batch: Batch, code: str) -> None:
    with pytest.raises(InputError) as error:
        built(batch, groups=GROUPS)
    assert error.value.code == code


def test_columns_that_hold_no_text_or_dates_are_refused_without_a_word_of_them() -> None:
    builder = MatchListBuilder(as_of=date(2026, 1, 1), areas=area_table("demo-city"), groups=GROUPS)
    bad = pa.array([b"\xff\xfe"], pa.binary())
    with pytest.raises(InputError) as error:
        builder.add({"key": pa.array([person(1)]), "value": bad})
    assert error.value.code == "not-text"
    with pytest.raises(InputError) as error:
        builder.add({"key": pa.array([person(1)]), "value": pa.array(["10"]), "last_seen": pa.array([1.5])})
    assert error.value.code == "not-a-date"
    with pytest.raises(InputError):
        built({"key": [person(1)], "last_seen": ["2026-01"]})


def test_a_list_without_values_reads_no_dates() -> None:
    with pytest.raises(InputError) as error:
        built({"key": [person(1)], "last_seen": ["2026-01"]})
    assert error.value.code == "unknown-slot"


def test_more_values_than_a_byte_counts_are_refused() -> None:
    values = tuple(str(n) for n in range(MAX_VALUES))
    listed = built({"key": [person(1), person(2)], "value": ["0", "254"]}, groups=(values[:1], values[1:]))
    assert marked(listed) == {person(1): 1, person(2): 2}
    with pytest.raises(ValueError, match="255"):
        MatchListBuilder(
            as_of=date(2026, 1, 1), areas=area_table("demo-city"), groups=((*values, "x"), ("y",))
        )
