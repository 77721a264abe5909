"""A joined list against a plain choice of rows, whatever their order, and how little its size says."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import date, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import InputError
from protocols.identifiers import area_table, resident_id
from protocols.ids import Role
from protocols.jobs.job_type import UNIT, Unit
from protocols.joined.lists import Amount, JoinedList, JoinedListBuilder, Wanted, _ascending
from protocols.months import UNKNOWN_MONTH, month_number
from protocols.psi.keyed_list import WAITING
from protocols.tables.layout import Axis, Filter

TODAY = date(2026, 11, 22)
AREAS = area_table("demo-city")
SALT = bytes(range(32))
ONE, TWO = Role("source-1"), Role("source-2")

STREETS = Axis("place", values=("S1", "S2", "S3"))
AGES = Axis("age", bins=(Fraction(0), Fraction(18), Fraction(60)))
STATES = Axis("state", values=("open", "late"))
PAID = Amount("paid", 0, 10_000, 2)
CHANGE = Amount("change", -500, 500, 1)
MONTHS = Amount("died", 0, 24, until="2025-12")
GROWN = Filter("age", low=Fraction(3), high=Fraction(90))
OPEN = Filter("state", values=("open",))
GONE = Filter(
    "died",
    low=Fraction(month_number("2020-05")),
    high=Fraction(month_number("2025-12")),
    months=True,
)

KINDS: dict[str, Any] = {
    "key": pa.string(),
    "place": pa.string(),
    "age": pa.float64(),
    "state": pa.string(),
    "paid": pa.float64(),
    "change": pa.int64(),
    "died": pa.string(),
    "latest": pa.int32(),
    "street": pa.string(),
    "last_seen": pa.string(),
}


def person(number: int) -> str:
    return resident_id(f"9901{1 + number % 11:02d}", date(1960, 1, 1), number % 900)


@dataclass(frozen=True)
class Line:
    """One row as a department has it."""

    key: str | None = person(1)
    place: str | None = "S1"
    age: float | None = 30
    state: str | None = "open"
    paid: float | None = 1.5
    change: int | None = 2
    died: str | None = "2025-10"
    latest: int | None = 202611
    street: str | None = "A"
    last_seen: str | None = "2026-01"


def columns(lines: Sequence[Line], slots: frozenset[str]) -> dict[str, Any]:
    return {slot: pa.array([getattr(line, slot) for line in lines], KINDS[slot]) for slot in slots}


def made(
    lines: Sequence[Line],
    wanted: Wanted,
    *,
    dated: bool = True,
    cuts: Sequence[int] = (),
    more: dict[str, Any] | None = None,
) -> JoinedList:
    """Return the list of these rows, in batches that end at `cuts`."""
    slots = wanted.known if dated else wanted.required
    builder = JoinedListBuilder(wanted, as_of=TODAY, areas=AREAS, unit=None)
    whole = columns(lines, slots) | (more or {})
    ends = [*sorted(cuts), len(lines)]
    for start, end in zip([0, *ends], ends, strict=False):
        builder.add({slot: column.slice(start, end - start) for slot, column in whole.items()})
    return builder.finish()


# -- the plain choice ----------------------------------------------------------------------------------------


def placed(line: Line, axis: Axis) -> int:
    value = getattr(line, axis.slot)
    if value is None:
        return -1
    if axis.values:
        return axis.values.index(value.strip()) if value.strip() in axis.values else -1
    return sum(Fraction(value) >= bound for bound in axis.bins) - 1


def passes(line: Line, kept: Filter) -> bool:
    value = getattr(line, kept.slot)
    if value is None:
        return False
    if kept.values:
        return value.strip() in kept.values
    if kept.months:
        return value != "soon" and (kept.low is None or value[:7] >= "2020-05") and value[:7] <= "2025-12"
    return (kept.low or -(10**9)) <= Fraction(value) <= (kept.high or 10**9)


def month(text: str | None) -> int | None:
    return int(text[:4]) * 12 + int(text[5:7]) - 1 if text and text != "soon" else None


def amount_of(line: Line, amount: Amount) -> int | None:
    """Return a row's amount before it is cut."""
    value = getattr(line, amount.slot)
    if amount.until is not None:
        dated, until = month(value), month(amount.until)
        assert until is not None
        return None if dated is None else until - dated
    return None if value is None else round(Fraction(value) * 10**amount.decimals)


def expected(
    lines: Sequence[Line], wanted: Wanted, *, dated: bool
) -> tuple[list[tuple[Any, ...]], Counter[str]]:
    """Return (key, counts, codes, cell, amounts, street, month) of each person, and the reasons."""
    of_person: dict[str, list[tuple[Any, ...]]] = defaultdict(list)
    reasons: Counter[str] = Counter()
    for line in lines:
        if line.key in (None, "x"):
            reasons["null" if line.key is None else "bad-length"] += 1
            continue
        codes = tuple(placed(line, axis) for axis in wanted.open)
        along = [placed(line, axis) for axis in wanted.hidden]
        selected = min((*codes, *along, 0)) == 0 and all(passes(line, kept) for kept in wanted.filters)
        plain = [amount_of(line, amount) for amount in wanted.amounts]
        counts = selected and None not in plain
        reasons["not-selected"] += not selected
        reasons["no-value"] += selected and not counts
        asked = any(kept.months for kept in wanted.filters)
        reasons["no-date"] += (dated and line.latest is None) or (asked and month(line.died) is None)
        cell, amounts = 0, ()
        if counts:
            amounts = tuple(
                min(max(value, amount.low), amount.high)
                for value, amount in zip(plain, wanted.amounts, strict=True)
                if value is not None
            )
            reasons["out-of-range"] += sum(one != other for one, other in zip(plain, amounts, strict=True))
            for axis, place in zip(wanted.hidden, along, strict=True):
                cell = cell * axis.size + place
        else:
            codes, amounts = (0,) * len(codes), (0,) * len(plain)
        recent = -line.latest if dated and line.latest is not None else 10**9
        seen = (month(line.last_seen) or UNKNOWN_MONTH) if wanted.envelope and dated else UNKNOWN_MONTH
        street = (line.street or "").strip() if wanted.envelope else ""
        of_person[line.key].append((not counts, recent, -seen, codes, cell, amounts, street))
    kept = []
    for key in sorted(of_person):
        waits, _, seen, codes, cell, amounts, street = min(of_person[key])
        reasons["repeated-key"] += len(of_person[key]) - 1
        if waits:
            seen, street = UNKNOWN_MONTH, ""
        elif wanted.envelope:
            reasons["no-street"] += not street
            reasons["no-month"] += dated and -seen == UNKNOWN_MONTH
        name = (WAITING + b"source-1:" if waits else b"") + b"RIC:" + key.encode()
        kept.append((name, not waits, codes, cell, amounts, street, -seen))
    return sorted(kept), reasons


def plain(found: JoinedList) -> list[tuple[Any, ...]]:
    blank = [""] * found.distinct_keys, [UNKNOWN_MONTH] * found.distinct_keys
    streets, months = blank
    if found.wanted.envelope:
        streets, months = [found.street_names[i] for i in found.streets], found.months.tolist()
    codes, amounts = map(tuple, found.codes.tolist()), map(tuple, found.amounts.tolist())
    return list(
        zip(
            found.keys.tolist(),
            found.counted.tolist(),
            codes,
            found.cells.tolist(),
            amounts,
            streets,
            months,
            strict=True,
        )
    )


keys = st.one_of(st.integers(1, 5).map(person), st.sampled_from([None, "x"]))
lines = st.builds(
    Line,
    key=keys,
    place=st.sampled_from(["S1", " S2 ", "S3", "S9", None]),
    age=st.sampled_from([None, -1.0, 0.0, 2.5, 17.999, 18.0, 60.0, 95.0]),
    state=st.sampled_from(["open", "late", "shut", None]),
    paid=st.sampled_from([None, -1.0, 0.0, 0.125, 7.005, 99.99, 1e9]),
    change=st.sampled_from([None, -80, -3, 0, 2, 60]),
    died=st.sampled_from(
        [None, "soon", "2025-12", "2025-01-31", "2020-05", "2020-04-30", "2026-01", "2026-02"]
    ),
    latest=st.sampled_from([None, 202601, 202602]),
    street=st.sampled_from(["A", "B ", "", None]),
    last_seen=st.sampled_from([None, "2026-01", "2026-02", "soon"]),
)
wants = st.builds(
    Wanted,
    source=st.just(ONE),
    open=st.lists(st.sampled_from([STREETS, AGES]), unique=True, max_size=2).map(tuple),
    hidden=st.lists(st.sampled_from([STATES, AGES]), unique=True, max_size=2).map(tuple),
    amounts=st.lists(st.sampled_from([PAID, CHANGE, MONTHS]), unique=True, max_size=3).map(tuple),
    filters=st.lists(st.sampled_from([GROWN, OPEN, GONE]), unique=True, max_size=2).map(tuple),
    envelope=st.booleans(),
)


@given(st.lists(lines, max_size=14), wants, st.booleans(), st.data())
@settings(max_examples=120)
def test_of_each_person_the_row_that_counts_and_is_newest_is_kept(
    rows: list[Line], wanted: Wanted, dated: bool, data: st.DataObject
) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(rows)), max_size=3))
    found = made(rows, wanted, dated=dated, cuts=cuts)
    kept, reasons = expected(rows, wanted, dated=dated)
    assert plain(found) == kept
    assert found.quality() == {reason: count for reason, count in reasons.items() if count}
    assert found.rows == len(rows)
    assert found.keys.tolist() == sorted(set(found.keys.tolist()))


@given(st.lists(lines, max_size=14), wants, st.booleans(), st.data())
@settings(max_examples=60)
def test_no_order_of_rows_and_no_cut_of_batches_changes_the_list(
    rows: list[Line], wanted: Wanted, dated: bool, data: st.DataObject
) -> None:
    other = data.draw(st.permutations(rows))
    cuts = data.draw(st.lists(st.integers(0, len(rows)), max_size=4))
    one, two = made(rows, wanted, dated=dated), made(other, wanted, dated=dated, cuts=cuts)
    assert one.commitment(SALT) == two.commitment(SALT)
    assert one.quality() == two.quality()
    assert one.keys.dtype == two.keys.dtype


@given(st.lists(lines, max_size=14), wants)
@settings(max_examples=60)
def test_how_many_keys_there_are_says_nothing_of_filters_axes_and_amounts(
    rows: list[Line], wanted: Wanted
) -> None:
    found, all_of_them = made(rows, wanted), made(rows, Wanted(ONE))
    assert found.distinct_keys == all_of_them.distinct_keys
    assert found.keys.dtype == all_of_them.keys.dtype
    assert all_of_them.counted.all()
    marks = WAITING + b"source-1:"
    assert {key.removeprefix(marks) for key in found.keys.tolist()} == set(all_of_them.keys.tolist())


def test_the_newest_row_that_counts_is_kept_and_one_without_a_date_is_the_oldest() -> None:
    wanted = Wanted(ONE, amounts=(PAID,), filters=(OPEN,), envelope=True)
    undated, old = Line(paid=1, latest=None), Line(paid=2, latest=202601, last_seen=None)
    new, newest = Line(paid=3, latest=202601, last_seen="2026-02"), Line(state="shut", latest=202609)
    rows = [undated, newest, old, new]
    while len(rows) > 1:
        kept = max(row.paid or 0 for row in rows if row.state == "open")
        for ordered in (rows, rows[::-1]):
            assert made(ordered, wanted).amounts.tolist() == [[kept * 100]]
        rows.pop()


def test_of_rows_that_are_equally_new_the_one_with_the_least_values_is_kept() -> None:
    wanted = Wanted(ONE, (STREETS,), (AGES,), (PAID, CHANGE), envelope=True)
    least = Line(place="S1", age=1, paid=1, change=1, street="A")
    for slot, more in (("place", "S2"), ("age", 20), ("paid", 2), ("change", 2), ("street", "B")):
        other = replace(least, **{slot: more})
        for rows in ([least, other], [other, least]):
            assert plain(made(rows, wanted)) == plain(made([least], wanted))


def test_the_rows_of_one_person_who_counts_in_none_make_one_key_that_waits() -> None:
    rows = [Line(state="shut", latest=1), Line(state="late"), Line(state=None)]
    found = made(rows, Wanted(ONE, filters=(OPEN,), hidden=(AGES,), amounts=(PAID,)))
    assert found.keys.tolist() == [WAITING + b"source-1:RIC:" + person(1).encode()]
    assert not found.counted.any()
    assert found.cells.tolist() == [0]
    assert found.amounts.tolist() == [[0]]
    assert found.quality() == {"not-selected": 3, "repeated-key": 2}


def test_somebody_who_waits_on_two_lists_has_no_common_key() -> None:
    rows = [Line(state="shut")]
    one, two = (made(rows, Wanted(source, filters=(OPEN,))) for source in (ONE, TWO))
    assert not set(one.keys.tolist()) & set(two.keys.tolist())


# -- amounts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "column",
    [
        pa.array([date(2024, 11, 30), None, date(2026, 2, 1), date(2025, 12, 31)]),
        pa.array([datetime(2024, 11, 30, 23), None, datetime(2026, 2, 1), datetime(2025, 12, 31)]),
        pa.array(["2024-11", None, "2026-02-01", "2025-12"]),
        pa.array(["202411", "", "202602", " "]).dictionary_encode(),
        pa.array([202411, None, 202602, 202512]),
        pa.chunked_array([["2024-11", "no day"], ["2026-02", "2025-12"]]),
    ],
)
def test_months_until_a_month_are_read_from_dates_and_months(column: Any) -> None:
    wanted = Wanted(ONE, amounts=(replace(MONTHS, low=-1, high=13),))
    rows = [Line(key=person(number)) for number in range(4)]
    found = made(rows, wanted, more={"died": column})
    read = dict(zip(found.keys.tolist(), found.amounts[:, 0].tolist(), strict=True))
    of = {number: read.get(b"RIC:" + person(number).encode()) for number in range(4)}
    assert of[0] == 13
    assert of[1] is None  # without a date the person waits
    assert of[2] == -1  # two months after it, cut
    assert of[3] == 0 or column.type == pa.dictionary(pa.int32(), pa.string())
    assert found.quality()["out-of-range"] == 1


def test_a_column_without_any_value_lets_everybody_wait() -> None:
    nothing = pa.nulls(2)
    rows = [Line(key=person(1)), Line(key=person(2))]
    for amount in (MONTHS, PAID):
        found = made(rows, Wanted(ONE, amounts=(amount,)), more={amount.slot: nothing})
        assert not found.counted.any()
        assert found.quality() == {"no-value": 2}


def test_decimals_are_rounded_half_to_even_and_cut_to_the_bounds() -> None:
    values = [Decimal("0.125"), Decimal("0.135"), Decimal("100.004"), Decimal("100.006"), Decimal("-0.004")]
    rows = [Line(key=person(number)) for number in range(1, 6)]
    found = made(rows, Wanted(ONE, amounts=(PAID,)), more={"paid": pa.array(values)})
    assert sorted(found.amounts[:, 0].tolist()) == [0, 12, 14, 10_000, 10_000]
    assert found.quality() == {"out-of-range": 1}


def test_an_amount_that_is_cut_counts_only_where_its_row_does() -> None:
    rows = [Line(paid=1e6), Line(key=person(2), paid=-5, state="shut"), Line(key="x", paid=-5)]
    quality = made(rows, Wanted(ONE, amounts=(PAID,), filters=(OPEN,))).quality()
    assert quality["out-of-range"] == 1


def test_a_list_that_refuses_what_is_out_of_range_says_how_many_and_not_which() -> None:
    refusing = Wanted(ONE, amounts=(replace(PAID, outside="refuse"),), filters=(OPEN,))
    assert made([Line(paid=100)], refusing).amounts.tolist() == [[10_000]]
    with pytest.raises(InputError, match=r"^2 amounts are out of the bounds") as caught:
        # Which rows the job selects makes no difference: else a refusal would tell of them.
        made([Line(paid=123_456.75), Line(), Line(state="shut", paid=-123_456.75)], refusing)
    assert caught.value.code == "out-of-range"
    assert caught.value.hint
    assert "123" not in str(caught.value) + caught.value.hint


def test_what_is_no_number_is_refused_by_all_rows() -> None:
    text = pa.array(["12", "twelve", "1e3"])
    rows = [Line(), Line(state="shut"), Line(key=person(2))]
    with pytest.raises(InputError, match=r"^1 rows have an amount") as caught:
        made(rows, Wanted(ONE, amounts=(PAID,), filters=(OPEN,)), more={"paid": text})
    assert caught.value.code == "bad-measure"
    assert "twelve" not in str(caught.value)


# -- batches that are refused --------------------------------------------------------------------------------

WHOLE = Wanted(ONE, (STREETS,), (AGES,), (PAID, MONTHS), (OPEN,), envelope=True)


@pytest.mark.parametrize(
    ("slot", "column", "code"),
    [
        ("key", pa.array([110101199003070077]), "not-text"),
        ("place", pa.array([1.5]), "not-text"),
        ("place", pa.array([["S1"]]), "not-text"),
        ("age", pa.array([date(2026, 1, 1)]), "not-a-number"),
        ("paid", pa.array([True]), "not-a-number"),
        ("died", pa.array([1.5]), "not-a-date"),
        ("state", pa.array([b"\xff"], pa.binary()), "not-text"),
        ("latest", pa.array([1.5]), "not-a-date"),
        ("street", pa.array(["x" * 48]), "bad-street"),
        ("last_seen", pa.array([[1]]), "not-a-date"),
    ],
)
def test_a_column_of_another_type_is_refused_by_its_slot_without_a_value(
    slot: str, column: Any, code: str
) -> None:
    with pytest.raises(InputError) as caught:
        made([Line()], WHOLE, more={slot: column})
    assert caught.value.code == code
    assert caught.value.hint
    said = str(caught.value) + caught.value.hint
    assert slot == "key" or slot in said
    assert not any(text in said for text in ("S1'", "xxx", "110101", "1.5"))


def test_slots_too_many_or_too_few_are_refused() -> None:
    whole = columns([Line()], WHOLE.known)
    for batch in (
        {slot: column for slot, column in whole.items() if slot != "paid"},
        {slot: column for slot, column in whole.items() if slot != "street"},
        {slot: column for slot, column in whole.items() if slot != "key"},
        whole | {"change": pa.array([1])},
        whole | {UNIT: whole["key"]},
    ):
        with pytest.raises(InputError) as caught:
            JoinedListBuilder(WHOLE, as_of=TODAY, areas=AREAS, unit=None).add(batch)
        assert caught.value.code == "unknown-slot"


def test_columns_that_come_and_go_or_differ_in_length_are_refused() -> None:
    whole = columns([Line()], WHOLE.known)
    builder = JoinedListBuilder(WHOLE, as_of=TODAY, areas=AREAS, unit=None)
    builder.add(whole)
    for batch in (
        {slot: column for slot, column in whole.items() if slot != "latest"},
        whole | {"paid": pa.array([1.0, 2.0])},
    ):
        with pytest.raises(InputError) as caught:
            builder.add(batch)
        assert caught.value.code == "length-mismatch"


def test_the_key_has_to_be_the_unit() -> None:
    unit = Unit("resident-id", 3)
    wanted = Wanted(ONE, amounts=(PAID,))
    whole = columns([Line()], wanted.required)
    for batch, code in (
        (whole, "unknown-slot"),
        (whole | {UNIT: pa.array([person(2)])}, "key-not-unit"),
    ):
        with pytest.raises(InputError) as caught:
            JoinedListBuilder(wanted, as_of=TODAY, areas=AREAS, unit=unit).add(batch)
        assert caught.value.code == code
    builder = JoinedListBuilder(wanted, as_of=TODAY, areas=AREAS, unit=unit)
    builder.add(whole | {UNIT: whole["key"]})
    assert builder.finish().counted.tolist() == [True]


def test_identifiers_are_judged_as_of_the_datas_day_where_the_unit_says_one() -> None:
    born = resident_id("990101", date(2026, 11, 1), 7)
    keys = pa.array([born])
    for as_of, found in ((date(2026, 10, 31), 0), (None, 1)):
        builder = JoinedListBuilder(Wanted(ONE), as_of=TODAY, areas=AREAS, unit=Unit("resident-id", 1, as_of))
        builder.add({"key": keys, UNIT: keys})
        assert builder.finish().distinct_keys == found


def test_a_type_whose_keys_would_sort_behind_those_that_wait_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("protocols.joined.lists.type_tag", lambda _: "XYZ:")
    with pytest.raises(ValueError, match="sort behind"):
        JoinedListBuilder(Wanted(ONE), as_of=TODAY, areas=AREAS, unit=None)


# -- the list ------------------------------------------------------------------------------------------------


def test_a_list_without_rows_is_a_list() -> None:
    empty = JoinedListBuilder(WHOLE, as_of=TODAY, areas=AREAS, unit=None).finish()
    for found in (empty, made([], WHOLE)):
        assert found.distinct_keys == found.rows == 0
        assert found.quality() == {}
        assert found.codes.shape == (0, 1)
        assert found.amounts.shape == (0, 2)
        assert found.block(np.zeros(0, dtype=np.uint32)).shape == (0, 3 * 3)
        assert found.commitment(SALT)


@given(st.lists(lines, min_size=1, max_size=14), wants, st.data())
@settings(max_examples=60)
def test_a_block_is_one_hot_cells_times_one_and_the_amounts(
    rows: list[Line], wanted: Wanted, data: st.DataObject
) -> None:
    found = made(rows, wanted)
    places = st.integers(0, found.distinct_keys - 1)
    picked = data.draw(st.lists(places, max_size=6)) if found.distinct_keys else []
    chosen = np.array(picked, dtype=np.uint32)
    width = 1 + len(wanted.amounts)
    block = found.block(chosen)
    assert block.dtype == np.int64
    assert block.shape == (len(picked), wanted.cells * width)
    for row, place in zip(block.tolist(), picked, strict=True):
        words = [0] * (wanted.cells * width)
        if found.counted[place]:
            at = int(found.cells[place]) * width
            words[at : at + width] = [1, *found.amounts[place].tolist()]
        assert row == words
    # Other amounts in their place, and none at all: zeros for persons who wait all the same.
    other = np.full((len(picked), 2), 7, dtype=np.int64)
    ones = found.counted[chosen].astype(np.int64)
    assert found.block(chosen, other).sum(axis=1).tolist() == (15 * ones).tolist()
    assert found.block(chosen, other[:, :0]).sum(axis=1).tolist() == ones.tolist()


def test_commitments_differ_where_lists_differ_in_one_value() -> None:
    rows = [Line(), Line(key=person(2), paid=3), Line(key=person(3), state="shut")]
    base = made(rows, WHOLE)
    others = [
        made([*rows[:2], replace(rows[2], state="open")], WHOLE),
        *(
            made([rows[0], replace(rows[1], **{slot: value}), rows[2]], WHOLE)
            for slot, value in (
                ("paid", 3.01),
                ("place", "S2"),
                ("age", 70),
                ("died", "2025-09"),
                ("street", "B"),
                ("last_seen", "2026-03"),
                ("key", person(4)),
            )
        ),
        made(rows[1:], WHOLE),
        made(rows, replace(WHOLE, source=TWO)),
        made(rows, replace(WHOLE, amounts=(replace(PAID, high=20_000), MONTHS))),
        made(rows, replace(WHOLE, envelope=False)),
    ]
    said = [each.commitment(SALT) for each in (base, *others)]
    assert len(set(said)) == len(said)
    assert base.commitment(SALT) == made(rows[::-1], WHOLE).commitment(SALT)
    assert base.commitment(bytes(32)) != base.commitment(SALT)
    with pytest.raises(ValueError, match="salt of 31 bytes"):
        base.commitment(SALT[1:])


def test_a_value_of_somebody_who_waits_is_in_no_list() -> None:
    one = made([Line(state="shut", paid=1, street="A")], WHOLE)
    other = made([Line(state="late", paid=2, street="B", last_seen=None)], WHOLE)
    assert one.commitment(SALT) == other.commitment(SALT)
    assert one.street_names == ("",)


def test_a_list_prints_sizes_alone() -> None:
    assert repr(made([Line(), Line()], WHOLE)) == "JoinedList(2 rows, 1 keys)"


def test_every_value_of_a_list_is_compared_in_these_tests() -> None:
    # A field added to the list has to be added to `plain` and the commitment, too.
    known = {"wanted", "rows", "keys", "counted", "codes", "cells", "amounts", "streets", "months"}
    assert {each.name for each in fields(JoinedList)} == known | {"street_names", "rule_version", "reasons"}


@given(st.lists(st.binary(max_size=44).filter(lambda text: not text.endswith(b"\0")), max_size=30))
@settings(max_examples=60)
def test_keys_sort_as_bytes_do_whatever_they_are_made_of(items: list[bytes]) -> None:
    array = np.array(items, dtype="S44")
    order, first = _ascending(array)
    assert order.tolist() == np.argsort(array, kind="stable").tolist()
    assert array[order][first].tolist() == sorted(set(items))


def test_keys_that_take_several_words_sort_as_bytes_do() -> None:
    letters = np.random.default_rng(7).integers(1, 256, (500, 40), dtype=np.uint8)
    array = np.repeat(letters, 2, axis=0).view("S40").ravel()
    order, first = _ascending(array)
    assert order.tolist() == np.argsort(array, kind="stable").tolist()
    assert first.sum() == 500
