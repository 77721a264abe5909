"""A tally against a plain count over rows, and what bounds a person's part in it."""

import hashlib
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from protocols.encoding import canonical_json
from protocols.errors import InputError
from protocols.identifiers import area_table, resident_id
from protocols.jobs.job_type import Unit
from protocols.tables import tally
from protocols.tables.layout import Axis, Filter, Layout, Measure
from protocols.tables.tally import Tally, TallyBuilder

TODAY = date(2026, 11, 22)
AREAS = area_table("demo-city")
STREETS = Axis("street", values=("S1", "S2", "S3"))
AGES = Axis("age", bins=(Fraction(0), Fraction(18), Fraction(60)))
PAID = Measure("paid", 0, 10_000, 2)
CHANGE = Measure("change", -500, 500, 1)
GROWN = Filter("age", low=Fraction(3), high=Fraction(90))
OPEN = Filter("state", values=("open", "late"))
SPRING = Filter("seen", low=Fraction(2026 * 12 + 2), high=Fraction(2026 * 12 + 4), months=True)


def person(number: int) -> str:
    return resident_id(f"9901{1 + number % 11:02d}", date(1960, 1, 1), number % 900)


@dataclass(frozen=True)
class Line:
    """One row as a department has it."""

    unit: Any = "a"
    street: str | None = "S1"
    age: float | None = 30
    state: str | None = "open"
    paid: float | None = 1.5
    change: int | None = 2
    latest: int | None = 202611
    seen: str | None = "2026-04-01"


def table(lines: Sequence[Line], slots: Sequence[str]) -> dict[str, Any]:
    kinds = {
        "unit": pa.string(),
        "street": pa.string(),
        "age": pa.float64(),
        "state": pa.string(),
        "paid": pa.float64(),
        "change": pa.int64(),
        "latest": pa.int32(),
        "seen": pa.string(),
    }
    return {slot: pa.array([getattr(line, slot) for line in lines], kinds[slot]) for slot in slots}


def slots_of(layout: Layout, *more: str) -> list[str]:
    return list(dict.fromkeys((*layout.slots, *more)))


def make(
    lines: Sequence[Line],
    layout: Layout,
    unit: Unit | None,
    *,
    dated: bool = True,
    clamp: bool = False,
    batch: int = 1000,
    keys: str = "",
    columns: Mapping[str, Any] | None = None,
) -> Tally:
    builder = TallyBuilder(layout, unit=unit, as_of=TODAY, areas=AREAS, clamp=clamp, keys=keys)
    more = [*(["unit"] if unit else []), *(["latest"] if dated else []), *([keys] if keys else [])]
    whole = {**table(lines, slots_of(layout, *more)), **(columns or {})}
    for start in range(0, len(lines), batch):
        builder.add({slot: column.slice(start, batch) for slot, column in whole.items()})
    return builder.finish()


# -- the plain count -----------------------------------------------------------------------------------------


def cell_of(line: Line, layout: Layout) -> int | None:
    """Return the cell of a row, None for none."""
    for each in layout.filters:
        value = getattr(line, each.slot)
        if value is None:
            return None
        if each.values:
            if value.strip() not in each.values:
                return None
        elif each.months:
            if not "2026-03" <= value[:7] <= "2026-05":
                return None
        elif not (each.low or -(10**9)) <= Fraction(value) <= (each.high or 10**9):
            return None
    cell = 0
    for axis in layout.axes:
        value = getattr(line, axis.slot)
        if value is None:
            return None
        if axis.values:
            if value.strip() not in axis.values:
                return None
            place = axis.values.index(value.strip())
        else:
            place = sum(Fraction(value) >= bound for bound in axis.bins) - 1
            if place < 0:
                return None
        cell = cell * axis.size + place
    return cell


def kept_of(lines: Sequence[Line], layout: Layout, most: int | None) -> list[tuple[Any, int, Line]]:
    """Return (unit, cell, row) of every row that counts."""
    of_unit: dict[Any, list[tuple[int, Line]]] = defaultdict(list)
    for place, line in enumerate(lines):
        cell = cell_of(line, layout)
        if cell is not None:
            of_unit[place if most is None else line.unit.strip()].append((cell, line))
    found = []
    for unit, rows in of_unit.items():
        ordered = sorted(rows, key=lambda row: -(row[1].latest or -(10**12)))
        found += [(unit, cell, line) for cell, line in ordered[:most]]
    return found


def check(lines: Sequence[Line], layout: Layout, unit: Unit | None, found: Tally, *, clamp: bool) -> None:
    most = None if unit is None else min(unit.max_rows, layout.unit_rows)
    kept = kept_of(lines, layout, most)
    cells = range(layout.cells)
    assert found.rows == len(lines)
    assert found.distinct_keys == len({each for each, _, _ in kept})
    assert found.counted().tolist() == [sum(at == cell for _, at, _ in kept) for cell in cells]
    assert found.persons().tolist() == [len({who for who, at, _ in kept if at == cell}) for cell in cells]
    for measure in layout.measures:
        amounts = [
            (who, at, min(max(round(Fraction(value) * 10**measure.decimals), measure.low), measure.high))
            for who, at, line in kept
            if (value := getattr(line, measure.slot)) is not None
        ]
        slot = measure.slot
        present = [sum(at == cell for _, at, _ in amounts) for cell in cells]
        total = [sum(amount for _, at, amount in amounts if at == cell) for cell in cells]
        assert found.present(slot).tolist() == present
        assert found.total(slot).tolist() == total
        assert found.centred(slot, 77).tolist() == [t - 77 * p for t, p in zip(total, present, strict=True)]
        if clamp or measure.low < 0:
            with pytest.raises(ValueError, match="ranked"):
                found.tops(slot)
            continue
        parts: dict[int, Counter[Any]] = defaultdict(Counter)
        for who, at, amount in amounts:
            parts[at][who] += amount
        ranked = [[*sorted(parts[cell].values(), reverse=True), 0, 0] for cell in cells]
        assert [vector.tolist() for vector in found.tops(slot)] == [
            [each[0] for each in ranked],
            [each[1] for each in ranked],
        ]
    reasons = found.quality()
    lost = len(lines) - len(kept)
    assert reasons.get("outside", 0) + reasons.get("over-bound", 0) == lost
    assert reasons.get("outside", 0) == sum(cell_of(line, layout) is None for line in lines)


LINES = st.lists(
    st.builds(
        Line,
        unit=st.sampled_from(["a", "b", " b ", "c", "d", "e\x00", "e"]),
        street=st.sampled_from(["S1", "S2", " S3", "S4", "", None]),
        age=st.none() | st.integers(-2, 99).map(float) | st.sampled_from([17.999, 18.0, 59.5]),
        state=st.sampled_from(["open", "late ", "shut", None]),
        paid=st.none() | st.integers(0, 800).map(lambda eighths: eighths / 8),
        change=st.none() | st.integers(-50, 50),
        latest=st.none() | st.integers(202601, 202604),
        seen=st.sampled_from(["2026-02-28", "2026-03", "2026-05-31", "2026-06", "May", "", None]),
    ),
    max_size=40,
)
LAYOUTS = st.builds(
    Layout,
    axes=st.sampled_from([(), (STREETS,), (AGES,), (STREETS, AGES), (AGES, STREETS)]),
    filters=st.sampled_from([(), (GROWN,), (OPEN,), (GROWN, OPEN), (SPRING,), (SPRING, OPEN)]),
    measures=st.sampled_from([(), (PAID,), (PAID, CHANGE)]),
    unit_rows=st.integers(1, 4),
)
BATCH = st.integers(1, 50)
UNITS = st.none() | st.builds(Unit, kind=st.just("identifier"), max_rows=st.integers(1, 5))


@settings(max_examples=250)
@given(LINES, LAYOUTS, UNITS, st.fixed_dictionaries({"dated": st.booleans(), "clamp": st.booleans()}), BATCH)
def test_a_tally_is_the_plain_count(
    lines: list[Line], layout: Layout, unit: Unit | None, how: dict[str, bool], batch: int
) -> None:
    assume(unit is not None or how["dated"] or layout.slots)  # some column is read
    found = make(lines, layout, unit, batch=batch, **how)
    as_read = lines if how["dated"] else [Line(**{**vars(line), "latest": None}) for line in lines]
    check(as_read, layout, unit, found, clamp=how["clamp"])


@settings(max_examples=100)
@given(LINES, LAYOUTS, st.integers(1, 4), st.sampled_from(["a", "b", "c", "d"]))
def test_taking_a_unit_away_takes_its_own_part_away_and_nothing_else(
    lines: list[Line], layout: Layout, most: int, gone: str
) -> None:
    """The precondition of every noise scale: neighbours differ in one unit's kept rows alone."""
    unit = Unit("identifier", most)
    everybody = make(lines, layout, unit)
    others = make([line for line in lines if line.unit.strip() != gone], layout, unit)
    alone = make([line for line in lines if line.unit.strip() == gone], layout, unit)
    assert (others.persons() + alone.persons() == everybody.persons()).all()
    assert (others.counted() + alone.counted() == everybody.counted()).all()
    assert alone.counted().sum() <= min(most, layout.unit_rows)
    assert alone.persons().max(initial=0) <= 1
    for measure in layout.measures:
        slot = measure.slot
        assert (others.total(slot) + alone.total(slot) == everybody.total(slot)).all()
        assert (others.present(slot) + alone.present(slot) == everybody.present(slot)).all()
        assert np.abs(alone.total(slot)).sum() <= min(most, layout.unit_rows) * measure.most


@given(LINES, LAYOUTS, BATCH, st.randoms(use_true_random=False))
def test_neither_batches_nor_the_order_of_other_peoples_rows_change_a_tally(
    lines: list[Line], layout: Layout, batch: int, random: Any
) -> None:
    unit, salt = Unit("identifier", 3), bytes(32)
    keys = [line.unit.strip() for line in lines]
    queues = {key: [line for line in lines if line.unit.strip() == key] for key in keys}
    random.shuffle(keys)  # each unit's own rows stay in their order
    mixed = [queues[key].pop(0) for key in keys]
    one, other = make(lines, layout, unit), make(mixed, layout, unit, batch=batch)
    assert one.commitment(salt) == other.commitment(salt)
    assert one.quality() == other.quality()


# -- which rows of a person count ----------------------------------------------------------------------------

PEOPLE = Unit("resident-id", 12)


def test_of_a_persons_rows_the_latest_count() -> None:
    months = [202603, None, 202611, 202607]
    lines = [Line(person(1), street=f"S{n % 3 + 1}", latest=month) for n, month in enumerate(months)]
    assert make(lines, Layout((STREETS,)), PEOPLE).persons().tolist() == [0, 0, 1]
    assert make(lines, Layout((STREETS,), unit_rows=2), PEOPLE).persons().tolist() == [1, 0, 1]
    assert make(lines, Layout((STREETS,), unit_rows=3), PEOPLE).counted().tolist() == [2, 0, 1]


def test_of_equally_late_rows_those_read_first_count() -> None:
    lines = [Line(person(1), street=street) for street in ("S2", "S1", "S3")]
    assert make(lines, Layout((STREETS,)), PEOPLE).persons().tolist() == [0, 1, 0]
    assert make(lines, Layout((STREETS,)), PEOPLE, dated=False).persons().tolist() == [0, 1, 0]


def test_identifiers_are_judged_as_of_the_day_of_the_data_whatever_the_job_says() -> None:
    born = [resident_id("990101", day, 1) for day in (date(2025, 1, 1), date(2026, 1, 1), date(2026, 12, 1))]
    lines = [Line(each) for each in born]
    for day, born_by_then in ((date(2025, 6, 1), 1), (date(2026, 6, 1), 2), (date(2026, 12, 1), 3)):
        found = make(lines, Layout(), replace(PEOPLE, as_of=day))
        assert found.persons().tolist() == [born_by_then]
        assert found.quality().get("future-date", 0) == 3 - born_by_then
    assert make(lines, Layout(), PEOPLE).persons().tolist() == [2]  # TODAY


def test_a_row_in_a_cell_that_is_not_covered_counts_as_one_without_a_cell() -> None:
    layout = Layout((STREETS, AGES), measures=(PAID,))
    lines = [
        Line(person(1), street="S1", latest=202612),
        Line(person(1), street="S2", latest=202601),
        Line(person(2), street="S3", age=None),
        Line(person(3), street="S1", age=5),
    ]
    covered = np.ones((3, 3), np.bool_)
    covered[0] = False
    builder = TallyBuilder(
        layout, unit=PEOPLE, as_of=TODAY, areas=AREAS, clamp=False, covered=covered.ravel()
    )
    builder.add(table(lines, slots_of(layout, "unit", "latest")))
    found = builder.finish()
    assert found.persons().reshape(3, 3).tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert found.quality() == {"outside": 3}


def test_the_stricter_of_policy_and_job_bounds_a_person() -> None:
    lines = [Line(person(1))] * 9
    for policy, job, kept in ((12, 5, 5), (4, 5, 4), (1, 1000, 1)):
        found = make(lines, Layout(unit_rows=job), Unit("resident-id", policy))
        assert found.counted().tolist() == [kept]
        assert found.quality()["over-bound"] == 9 - kept


def test_a_row_that_does_not_count_takes_no_other_rows_place() -> None:
    """Filters and cells come first: a person's latest row outside the table does not hide the one inside."""
    lines = [Line(person(1), street="elsewhere", latest=202612), Line(person(1), street="S2", latest=202601)]
    assert make(lines, Layout((STREETS,)), PEOPLE).persons().tolist() == [0, 1, 0]
    late = [Line(person(1), state="shut", latest=202612), Line(person(1), state="open", latest=202601)]
    assert make(late, Layout(filters=(OPEN,)), PEOPLE).persons().tolist() == [1]


@pytest.mark.parametrize(
    ("column", "kept"),
    [
        (pa.array(["2026-03", "2026-11", "2026-07"]), "S2"),
        (pa.array(["2026-03-01", "2026-03-02", "2026-11-30 08:00"]), "S3"),
        (pa.array(["2026-11-01", "2026-11", "oops"]), "S1"),
        (pa.array(["9", "10", " 8 "]), "S2"),
        (pa.array([date(2026, 1, 1), date(2025, 12, 31), None]), "S1"),
        (pa.array([1, 2, 3], pa.timestamp("us")), "S3"),
        (pa.array([1, 3, 2], pa.uint8()).dictionary_encode(), "S2"),
        (pa.array([None, None, None], pa.null()), "S1"),
    ],
)
def test_days_months_and_numbers_say_which_row_is_latest(column: Any, kept: str) -> None:
    lines = [Line(person(1), street=street) for street in ("S1", "S2", "S3")]
    found = make(lines, Layout((STREETS,)), PEOPLE, columns={"latest": column})
    assert STREETS.values[int(found.persons().argmax())] == kept


def test_a_column_that_cannot_say_which_row_is_latest_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        make([Line(person(1))], Layout(), PEOPLE, columns={"latest": pa.array([2.5])})
    assert caught.value.code == "not-a-date"


# -- whom a row is about -------------------------------------------------------------------------------------


def test_two_spellings_of_one_person_are_one_person() -> None:
    spellings = [person(1), f" {person(1).lower()} ", "".join(chr(ord(c) + 0xFEE0) for c in person(1))]
    found = make([Line(each) for each in spellings], Layout(unit_rows=2), PEOPLE)
    assert (found.persons().tolist(), found.counted().tolist(), found.distinct_keys) == ([1], [2], 1)


def test_rows_without_a_usable_identifier_do_not_count_and_are_told_by_reason() -> None:
    lines = [Line(person(1)), Line(person(2)[:-1] + "!"), Line(""), Line("123"), Line("x", street="S9")]
    found = make(lines, Layout((STREETS,)), PEOPLE)
    assert found.persons().sum() == 1
    assert found.quality() == {"bad-character": 1, "empty": 1, "bad-length": 1, "outside": 1}


def test_a_table_of_which_no_row_has_a_usable_identifier_is_refused_and_no_table_of_zeros() -> None:
    lines = [Line(person(2)[:-1] + "!"), Line("123", street="S2"), Line(person(1), street="elsewhere")]
    with pytest.raises(InputError, match="none of the 2 rows") as caught:
        make(lines[:2], Layout((STREETS,)), PEOPLE)
    assert caught.value.code == "no-usable-key"
    assert make(lines, Layout((STREETS,)), PEOPLE).persons().tolist() == [0, 0, 0]


@pytest.mark.parametrize("kind", ["resident-id", "residence-permit", "identifier", "text", "int"])
def test_a_unit_column_with_nulls_is_refused_with_their_number(kind: str) -> None:
    lines = [Line(person(1)), Line(None), Line(person(2)), Line(None, street="elsewhere")]
    with pytest.raises(InputError, match="2 of 4 rows") as caught:
        make(lines, Layout((STREETS,)), Unit(kind, 1), batch=1)
    assert caught.value.code == "unit-missing"


@pytest.mark.parametrize(
    "column",
    [
        pa.array([7, 7, 8, 9]),
        pa.array([7, 7, 8, 9], pa.uint64()),
        pa.array(["7", " 7", "8", "9"]),
        pa.array(["7", "7", "8", "9"]).dictionary_encode(),
        pa.array(["家庭七", "家庭七 ", "家庭八", "家庭九" * 20]),
        pa.array([date(2026, 1, d) for d in (1, 1, 2, 3)]),
    ],
)
@pytest.mark.parametrize("batch", [1, 4])
def test_units_of_every_stored_form_are_told_apart(column: Any, batch: int) -> None:
    found = make([Line()] * 4, Layout(), Unit("text", 1), batch=batch, columns={"unit": column})
    assert found.persons().tolist() == [3]
    assert found.quality() == {"over-bound": 1}


@pytest.mark.parametrize("column", [pa.array([1.5]), pa.array([[1]]), pa.array(["x" * 300])])
def test_a_unit_that_is_no_short_code_is_refused(column: Any) -> None:
    with pytest.raises(InputError) as caught:
        make([Line()], Layout(), Unit("text", 1), columns={"unit": column})
    assert caught.value.code == "bad-unit"


# -- cells ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "found"),
    [
        (pa.array([1, 2, 9, None, 1]), [2, 1]),
        (pa.array(["1", " 2 ", "01", None, "1"]).dictionary_encode(), [2, 1]),
        (pa.array(["1", "2", "9", None, "1"], pa.string_view()), [2, 1]),
        (pa.array([None] * 5, pa.null()), [0, 0]),
    ],
)
def test_values_are_compared_as_text_without_blanks(column: Any, found: list[int]) -> None:
    layout = Layout((Axis("street", values=("1", "2")),))
    assert make([Line()] * 5, layout, None, columns={"street": column}).persons().tolist() == found


@pytest.mark.parametrize("column", [pa.array([1.0]), pa.array([b"S1"]), pa.array([["S1"]])])
def test_an_axis_that_is_no_text_is_refused_by_its_type(column: Any) -> None:
    with pytest.raises(InputError) as caught:
        make([Line()], Layout((STREETS,)), None, columns={"street": column})
    assert caught.value.code == "not-text"
    assert "S1" not in str(caught.value)


def test_text_that_is_not_utf8_is_refused_without_being_quoted() -> None:
    raw = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(np.array([0, 3], np.int32)), pa.py_buffer(b"\xff47")]
    )
    for slot, layout, unit in (
        ("street", Layout((STREETS,)), None),
        ("unit", Layout(), Unit("text", 1)),
        ("latest", Layout(), Unit("text", 1)),
    ):
        with pytest.raises(InputError) as caught:
            make([Line()], layout, unit, columns={slot: raw})
        assert "47" not in str(caught.value)
        assert caught.value.__cause__ is None


def test_the_last_axis_runs_fastest() -> None:
    lines = [Line(street="S2", age=70)]
    assert make(lines, Layout((STREETS, AGES)), None).persons().reshape(3, 3)[1, 2] == 1


def test_a_table_without_rows_is_all_zeros() -> None:
    for unit in (None, PEOPLE, Unit("text", 1)):
        found = TallyBuilder(
            Layout((STREETS,), measures=(PAID,)), unit=unit, as_of=TODAY, areas=AREAS, clamp=False
        ).finish()
        assert found.rows == found.distinct_keys == 0
        for vector in (found.persons(), found.counted(), found.total("paid"), *found.tops("paid")):
            assert vector.tolist() == [0, 0, 0]


# -- amounts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_amount_that_is_no_number_is_refused_with_how_many_rows(value: float) -> None:
    layout = Layout(measures=(PAID, Measure("age", 0, 120)))
    lines = [Line(paid=value), Line(paid=value, age=value), Line(), Line(age=value)]
    for clamp in (False, True):
        with pytest.raises(InputError, match="3 rows") as caught:
            make(lines, layout, None, clamp=clamp, batch=1)
        assert caught.value.code == "bad-measure"


def test_an_amount_out_of_bounds_is_refused_in_an_exact_table_and_cut_in_a_noisy_one() -> None:
    lines = [Line(paid=100.0), Line(paid=100.01), Line(paid=-0.01), Line(paid=100.004), Line(paid=None)]
    layout = Layout(measures=(PAID,))
    with pytest.raises(InputError, match="2 amounts") as caught:
        make(lines, layout, None, batch=2)
    assert caught.value.code == "out-of-bounds"
    found = make(lines, layout, None, clamp=True)
    assert found.total("paid").tolist() == [3 * 10_000]
    assert found.present("paid").tolist() == [4]
    assert found.quality() == {"clamped": 2, "no-value": 1}


@given(
    st.lists(
        st.builds(
            Line,
            unit=st.sampled_from(["", "x", person(1), person(2)]),
            street=st.sampled_from(["S1", "S2", "S4"]),
            state=st.sampled_from(["open", "shut"]),
            paid=st.sampled_from([1.0, 99.5, float("nan"), float("inf"), -1.0, 1e9]),
        ),
        min_size=1,
        max_size=8,
    ),
    LAYOUTS,
    LAYOUTS,
    st.booleans(),
)
def test_whether_data_are_refused_does_not_depend_on_the_rows_that_a_job_selects(
    lines: list[Line], one: Layout, other: Layout, clamp: bool
) -> None:
    """Else a refusal, which nobody pays for, would answer whether a group has such a row."""

    def outcome(layout: Layout) -> str:
        try:
            make(lines, layout, PEOPLE, clamp=clamp, batch=3)
        except InputError as error:
            return error.code + error.message
        return ""

    assert outcome(replace(one, measures=(PAID,))) == outcome(replace(other, measures=(PAID,)))


def test_sums_are_exact_where_doubles_are_not() -> None:
    most = (1 << 36) - 1
    layout = Layout(measures=(Measure("change", -most, most),))
    lines = [Line(change=most)] * 131_073 + [Line(change=2)]  # beyond 2^53, and odd
    assert make(lines, layout, None, batch=1 << 20).total("change").tolist() == [131_073 * most + 2]


def test_a_sum_that_could_wrap_is_refused_whatever_the_data() -> None:
    with pytest.raises(InputError) as caught:
        make([], Layout(measures=(Measure("change", 0, 1 << 36),)), None)
    assert caught.value.code == "sum-too-wide"
    with pytest.raises(ValueError, match="64 bits"):
        make([Line(change=7)] * 4, Layout(measures=(CHANGE,)), None).centred("change", 1 << 62)


def test_too_many_rows_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "MAX_ROWS", 5)
    assert make([Line()] * 5, Layout(), None).rows == 5
    with pytest.raises(InputError) as caught:
        make([Line()] * 6, Layout(), None, batch=3)
    assert caught.value.code == "too-many-rows"


# -- a column's own values -----------------------------------------------------------------------------------


def test_a_columns_own_values_are_told_with_their_persons() -> None:
    lines = [
        Line(person(1), street="S9"),
        Line(person(2), street=" S9 "),
        Line(person(2), street="S7", latest=202601),
        Line(person(3), street=None),
        Line(person(3), street=" "),
        Line(person(4), street="S7"),
        Line(person(4), street="x" * 65),
        Line(person(5), street="bad\x07"),
        Line(person(6), street="S0", state="shut"),
    ]
    found = make(lines, Layout(filters=(OPEN,)), PEOPLE, keys="street", batch=2)
    assert (found.keyed()[0], found.keyed()[1].tolist()) == (["S7", "S9"], [1, 2])
    both = make(lines, Layout(filters=(OPEN,), unit_rows=2), PEOPLE, keys="street")
    assert (both.keyed()[0], both.keyed()[1].tolist()) == (["S7", "S9"], [2, 2])
    assert found.quality() == {"outside": 5, "over-bound": 1}


def test_a_value_that_only_dropped_rows_have_is_not_told() -> None:
    lines = [Line(person(1), street="S1"), Line(person(1), street="S2", latest=202612)]
    assert make(lines, Layout(), PEOPLE, keys="street").keyed()[0] == ["S2"]
    assert make([], Layout(), PEOPLE, keys="street").keyed()[0] == []


def test_too_many_values_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "MAX_CELLS", 2)
    with pytest.raises(InputError) as caught:
        make([Line(street=f"S{n}") for n in range(3)], Layout(), None, keys="street")
    assert caught.value.code == "too-many-cells"


# -- batches and commitment ----------------------------------------------------------------------------------


def test_a_batch_has_exactly_the_declared_slots() -> None:
    layout, unit = Layout((STREETS,)), Unit("text", 1)
    whole = table([Line()], ["street", "unit"])
    for wrong in ({"street": whole["street"]}, {**whole, "paid": whole["unit"]}):
        builder = TallyBuilder(layout, unit=unit, as_of=TODAY, areas=AREAS, clamp=False)
        with pytest.raises(InputError) as caught:
            builder.add(wrong)
        assert caught.value.code == "unknown-slot"
    builder = TallyBuilder(layout, unit=unit, as_of=TODAY, areas=AREAS, clamp=False)
    builder.add(whole)
    for wrong in ({**whole, "latest": pa.array([1])}, {**whole, "unit": pa.array(["a", "b"])}):
        with pytest.raises(InputError) as caught:
            builder.add(wrong)
        assert caught.value.code == "length-mismatch"


def test_the_commitment_is_the_digest_that_it_says() -> None:
    layout = Layout((STREETS,), (OPEN,), (PAID,))
    found = make([Line(person(1)), Line(person(2), street="S3", paid=2)], layout, PEOPLE)
    said = canonical_json({**layout.to_json(), "filters": [OPEN.to_json()]})
    vectors = [[1, 0, 1], [1, 0, 1], [1, 0, 1], [150, 0, 200], [150, 0, 200], [0, 0, 0]]
    body = b"".join(n.to_bytes(8, "big") for vector in vectors for n in vector)
    salt = bytes(range(32))
    text = salt + b"minshu/tally/1\0" + len(said).to_bytes(4, "big") + said + bytes(4) + body
    assert found.commitment(salt) == "sha256:" + hashlib.sha256(text).hexdigest()
    with pytest.raises(ValueError, match="32"):
        found.commitment(b"short")


@pytest.mark.parametrize(
    "change",
    [
        {"street": "S2"},
        {"paid": 9.0},
        {"paid": None},
        {"unit": person(2)},
    ],
)
def test_the_commitment_binds_every_vector(change: Mapping[str, Any]) -> None:
    layout, unit = Layout((STREETS,), measures=(PAID,), unit_rows=2), PEOPLE
    lines = [Line(person(1)), Line(person(1), street="S3")]
    other = [Line(**{**vars(lines[0]), **change}), lines[1]]
    same = lines if "unit" not in change else [Line(person(1)), Line(person(1))]
    one = make(same, layout, unit).commitment(bytes(32))
    two = make(other if "unit" not in change else [Line(person(2)), Line(person(1))], layout, unit)
    assert one != two.commitment(bytes(32))


def test_nothing_of_the_vectors_is_printed_and_nobody_can_write_to_them() -> None:
    found = make([Line(person(1))] * 4711, Layout(unit_rows=1000), Unit("resident-id", 1000))
    assert repr(found) == "Tally(1 cells, 0 measures)"
    for vector in (found.persons(), found.counted()):
        with pytest.raises(ValueError, match="read-only"):
            vector[0] = 1


def test_the_rule_version_names_the_rules_and_the_area_table() -> None:
    assert make([], Layout(), None).rule_version.startswith("tables/1+identifiers/1+areas:")


def test_no_row_becomes_an_object() -> None:
    """What a million rows leave behind is arrays: no more Python objects than a thousand rows do."""

    def blocks_for(rows: int) -> int:
        builder = TallyBuilder(
            Layout((STREETS, AGES), measures=(PAID,)), unit=PEOPLE, as_of=TODAY, areas=AREAS, clamp=False
        )
        ids = pa.array([person(n) for n in range(100)]).take(pa.array(np.arange(rows) % 100))
        batch = {
            "street": pa.array(["S1"] * 100).take(pa.array(np.arange(rows) % 100)),
            "age": pa.array(np.full(rows, 30.0)),
            "paid": pa.array(np.full(rows, 1.5)),
            "unit": ids,
        }
        before = sys.getallocatedblocks()
        builder.add(batch)
        return sys.getallocatedblocks() - before

    blocks_for(1000)  # what is imported and cached on first use
    assert blocks_for(200_000) < blocks_for(1000) + 500
