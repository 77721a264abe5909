"""Counts of a table's quality, against a slow reference that looks at one value after the other."""

import os
import unicodedata
from datetime import date, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import DecodeError, InputError
from protocols.identifiers import AreaTable, normalise, resident_id
from protocols.quality import (
    MOST_DISTINCT,
    PLACEHOLDERS,
    SEED_BYTES,
    DistinctKeys,
    QualityBuilder,
    QualityCounts,
    Shares,
    shares_of,
    thousandths,
)

AREAS = AreaTable.of(f"{first:02d}" for first in range(10, 100))
TODAY = date(2026, 11, 22)
PEOPLE = [resident_id("440106", date(1970 + n, 1, 1), n) for n in range(6)]

typed = st.one_of(
    st.none(),
    st.sampled_from(
        ["", "  ", "\u3000", "无", "ＮＵＬＬ", " - ", "n/a", "未知", "0", "无业", "\ttext", "x" * 40]
    ),
    st.sampled_from(PEOPLE),
    st.sampled_from(PEOPLE).map(lambda key: key[:-1] + ("1" if key[-1] != "1" else "2")),
    st.sampled_from(PEOPLE).map(lambda key: f" {key.lower()} "),
    st.text(max_size=6),
)


def built(columns: dict[str, Any], batch: int = 7, **named: Any) -> QualityCounts:
    given_ = {"key": "", "as_of": TODAY, "areas": AREAS, "seed": bytes(SEED_BYTES), **named}
    builder = QualityBuilder(list(columns), **given_)
    rows = len(next(iter(columns.values())))
    for start in range(0, rows, batch):
        builder.add({name: values[start : start + batch] for name, values in columns.items()})
    return builder.finish()


def stands_for_nothing(value: str | None) -> str:
    """Return as what a value is missing, empty for one that is there."""
    if value is None:
        return "null"
    if not value.strip():
        return "blank"
    return "placeholder" if unicodedata.normalize("NFKC", value.strip()).lower() in PLACEHOLDERS else ""


@settings(deadline=None, max_examples=50)
@given(st.lists(typed, max_size=40))
def test_dirty_columns_are_counted_as_a_slow_reference_counts_them(values: list[str | None]):
    found = built({"id": pa.array(values, pa.string())}, key="id")
    column, key = found.columns["id"], found.key
    assert key is not None
    missing = [stands_for_nothing(value) for value in values]
    for kind in ("null", "blank", "placeholder"):
        assert getattr(column, kind) == missing.count(kind)
    there = [
        value for value, nothing in zip(values, missing, strict=True) if value is not None and not nothing
    ]
    assert column.distinct == len({value.strip() for value in there})
    # One value after the other, through the same rules.
    keys = []
    for value in there:
        one = normalise(pa.array([value]), "resident-id", as_of=TODAY, areas=AREAS)
        keys += [bytes(key) for key in one.keys]
    assert (key.rows, key.missing, key.valid) == (len(values), column.missing, len(keys))
    assert (key.distinct, key.repeated) == (len(set(keys)), len(keys) - len(set(keys)))
    assert key.valid + key.missing + sum(key.rejected.values()) == key.rows


def test_what_a_code_table_knows_is_no_placeholder_and_what_it_does_not_is_outside():
    values = pa.array(["1", "无", "2", "3", None, "-", " 1 "])
    found = built({"care": values}, codes={"care": {"1", "2", "无"}}).columns["care"]
    assert (found.placeholder, found.outside, found.missing, found.distinct) == (1, 1, 2, 4)


def test_what_a_mapping_does_not_know_is_counted_apart_from_nulls():
    builder = QualityBuilder(["sex"], as_of=TODAY, areas=AREAS, seed=bytes(SEED_BYTES))
    builder.add({"sex": pa.array(["1", None, None, None])})
    found = builder.finish({"sex": 2}).columns["sex"]
    assert (found.null, found.unmapped, found.missing) == (1, 2, 3)


@pytest.mark.parametrize(
    "values",
    [
        pa.array([date(1899, 12, 31), date(1900, 1, 1), TODAY, date(2026, 11, 23), None]),
        pa.array([datetime(1899, 12, 31, 23), datetime(1900, 1, 1), datetime(2026, 11, 22, 23),
                  datetime(2026, 11, 23), None]),
        pa.array(["1899-12-31", "19000101", "2026/11/22T08:00", " 20261123", None]),
    ],
)  # fmt: skip
def test_days_of_the_future_and_of_before_1900_are_counted(values: Any):
    found = built({"born": values}, days=["born"]).columns["born"]
    assert (found.early, found.future, found.malformed, found.null) == (1, 1, 0, 1)


def test_a_column_of_other_things_has_no_days():
    found = built({"n": pa.array([1, 2, None])}).columns["n"]
    assert (found.early, found.future, found.null, found.distinct) == (None, None, 1, 2)


def test_a_text_that_is_no_day_is_malformed_in_a_column_of_days_alone():
    values = pa.array(["2026-01-01", "soon", "31.12.2020"])
    assert built({"seen": values}, days=["seen"]).columns["seen"].malformed == 2
    assert built({"seen": values}).columns["seen"].malformed == 0


def compactly(day: date) -> str:
    return day.isoformat().replace("-", "")


def judged(compact: list[str]) -> tuple[int, int, int]:
    """Return how many of eight digits each are malformed, early and of the future, one by one."""
    days = []
    for text in compact:
        try:
            days.append(date(int(text[:4]), int(text[4:6]), int(text[6:])))
        except ValueError:
            continue
    early = sum(day < date(1900, 1, 1) for day in days)
    return len(compact) - len(days), early, sum(day > TODAY for day in days)


@pytest.mark.parametrize("year", [0, 1, 4, 1600, 1899, 1900, 2000, 2023, 2024, 2026, 2100, 9999])
def test_a_day_is_one_of_the_calendar(year: int):
    for month in (*range(14), 99):
        compact = [f"{year:04d}{month:02d}{day:02d}" for day in (*range(34), 99)]
        spelt = [f"{text[:4]}-{text[4:6]}-{text[6:]}" for text in compact]
        for values in (compact, spelt):
            found = built({"d": pa.array(values)}, batch=99, days=["d"]).columns["d"]
            assert (found.malformed, found.early, found.future) == judged(compact), month


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.from_regex(r"[0-9]{8}", fullmatch=True) | st.dates().map(compactly), min_size=1, max_size=20)
)
def test_days_are_counted_as_the_calendar_counts_them(compact: list[str]):
    found = built({"d": pa.array(compact, pa.large_string())}, days=["d"]).columns["d"]
    assert (found.malformed, found.early, found.future) == judged(compact)


@pytest.mark.parametrize("kind", [pa.int32(), pa.int64(), pa.uint64(), pa.decimal128(19, 0)])
def test_whole_numbers_that_hold_days_are_looked_at(kind: Any):
    values = pa.array([20240131, 20241399, 18991231, 20261123, 0, 202401, None]).cast(kind)
    found = built({"d": values}, days=["d"]).columns["d"]
    assert (found.malformed, found.early, found.future, found.null) == (3, 1, 1, 1)
    assert built({"d": values}).columns["d"].early is None


def test_distinct_values_are_counted_up_to_a_bound():
    few = pa.array([str(n) for n in range(MOST_DISTINCT)] * 2)
    assert built({"n": few}, batch=4000).columns["n"].distinct == MOST_DISTINCT
    more = pa.array([str(n) for n in range(MOST_DISTINCT + 1)])
    assert built({"n": more}, batch=4000).columns["n"].distinct is None
    assert built({"n": more}, batch=20_000).columns["n"].distinct is None


@pytest.mark.parametrize(
    "values",
    [
        pa.array([[1], [1, 2], None]),
        pa.array([b"\xff\xfe", b"a", None]),
        pa.array([None, None, None]),
        pa.array(["a", "b", None]).dictionary_encode(),
        pa.array([True, False, None]),
        pa.array([1.5, float("nan"), None]),
    ],
)
def test_columns_of_any_type_are_counted(values: Any):
    found = built({"any": values}).columns["any"]
    assert (found.rows, found.null) == (3, values.null_count)


def test_text_that_is_no_text_is_refused_without_being_quoted():
    broken = pa.array([b"\xff\xfesecret"]).view(pa.string())
    with pytest.raises(InputError) as caught:
        built({"name": broken})
    assert caught.value.code == "not-utf8"
    assert "secret" not in f"{caught.value.message}{caught.value.hint}{caught.value.__context__}"


@settings(max_examples=30)
@given(st.lists(st.integers(0, 300), max_size=400), st.binary(min_size=SEED_BYTES, max_size=SEED_BYTES))
def test_distinct_keys_are_exact(numbers: list[int], seed: bytes):
    counted = DistinctKeys(seed)
    for start in range(0, len(numbers), 50):
        counted.add(np.array([f"RIC:{n:018d}" for n in numbers[start : start + 50]], dtype="S22"))
    assert counted.count() == len(set(numbers))


def test_many_distinct_keys_are_exact_whatever_the_seed():
    counted = DistinctKeys(os.urandom(SEED_BYTES))
    for start in range(0, 80_000, 20_000):
        keys = (np.arange(start, start + 30_000)).astype("S22")
        counted.add(keys)
    assert counted.count() == 90_000


def test_shares_are_rounded_to_their_bad_side():
    ids = pa.array([PEOPLE[0], PEOPLE[0], PEOPLE[1], None, "x", "y", "z"])
    found = built({"id": ids}, key="id")
    assert shares_of(found, 3) == Shares({"id": 857}, valid_keys=500, repeated=334, drift=334)
    assert thousandths(0, 0, up=True) == thousandths(0, 0, up=False) == 0


def test_counts_and_shares_survive_json():
    found = built({"id": pa.array([*PEOPLE, None]), "n": pa.array(range(7))}, key="id")
    assert QualityCounts.from_json(found.to_json()) == found
    shares = shares_of(found, 5)
    assert Shares.from_json(shares.to_json()) == shares
    bare = built({"n": pa.array(range(7))})
    assert QualityCounts.from_json(bare.to_json()) == bare
    assert Shares.from_json(shares_of(bare, 0).to_json()) == shares_of(bare, 0)


@pytest.mark.parametrize(
    "plain",
    [
        None,
        {},
        {"completeness": {"id": 1000.0}},
        {"completeness": {"id": -1}},
        {"completeness": {"id": True}},
        {"completeness": {}, "drift": 0},
        {"completeness": {}, "more": 1},
    ],
)
def test_shares_of_another_form_are_refused(plain: Any):
    with pytest.raises(DecodeError):
        Shares.from_json(plain)
