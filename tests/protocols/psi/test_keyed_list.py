"""Lists as a matching job uses them: normalised, each key once, committed."""

import json
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from crosscheck_case import person
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import InputError
from protocols.identifiers import demo_area_table, type_tag
from protocols.months import month_text
from protocols.psi.keyed_list import WAITING, KeyedList, KeyedListBuilder

VECTORS = json.loads((Path(__file__).parents[3] / "tests/vectors/crosscheck.json").read_text())


def builder() -> KeyedListBuilder:
    return KeyedListBuilder(as_of=date(2026, 1, 1), areas=demo_area_table())


def listed(**columns: pa.Array) -> KeyedList:
    built = builder()
    built.add(columns)
    return built.finish()


def rows_of(found: KeyedList) -> list[tuple[str, str, str]]:
    return [
        (key.decode(), found.street_names[street], month_text(month))
        for key, street, month in zip(
            found.keys.tolist(), found.streets.tolist(), found.months.tolist(), strict=True
        )
    ]


def refused(**columns: pa.Array) -> InputError:
    with pytest.raises(InputError) as error:
        listed(**columns)
    return error.value


row = st.tuples(
    st.integers(0, 6),
    st.sampled_from(["", "990101001", "东街道"]),
    st.sampled_from(["", "2024-12", "2025-01"]),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(row, max_size=25), st.integers(1, 10))
def test_of_each_key_the_row_last_seen_stays_however_the_rows_are_cut(rows, size):
    built = builder()
    for start in range(0, len(rows), size):
        piece = rows[start : start + size]
        built.add(
            {
                "key": pa.array([person(number) for number, _, _ in piece], pa.string()),
                "street": pa.array([street or None for _, street, _ in piece], pa.string()),
                "last_seen": pa.array([month or None for _, _, month in piece], pa.string()),
            }
        )
    found = built.finish()
    best: dict[str, tuple[str, str]] = {}
    for number, street, month in rows:
        key = "RIC:" + person(number)
        known = best.get(key)
        if known is None or month > known[0] or (month == known[0] and street < known[1]):
            best[key] = (month, street)
    assert rows_of(found) == [(key, street, month) for key, (month, street) in sorted(best.items())]
    assert (found.rows, found.distinct_keys) == (len(rows), len(best))
    expected = {
        "repeated-key": len(rows) - len(best),
        "no-street": sum(not street for _, street in best.values()),
        "no-month": sum(not month for month, _ in best.values()),
    }
    assert found.quality() == {code: count for code, count in expected.items() if count}


def test_an_empty_table_is_an_empty_list():
    empty = listed(key=pa.array([], pa.string()))
    assert (empty.rows, empty.distinct_keys, empty.quality()) == (0, 0, {})
    assert builder().finish().distinct_keys == 0


def test_one_row_is_a_list():
    assert rows_of(listed(key=pa.array([person(1)]))) == [("RIC:" + person(1), "", "")]


def test_wholly_invalid_identifiers_leave_an_empty_list_and_say_why():
    found = listed(key=pa.array(["x", "", None, "0" * 18, "99010119500101001" + "1"]))
    assert (found.rows, found.distinct_keys) == (5, 0)
    assert sum(found.quality().values()) == 5


def test_bytes_that_are_no_text_are_a_reason_not_a_crash():
    assert listed(key=pa.array([b"\xff\xfe", person(1).encode()])).quality() == {"not-utf8": 1}


def test_identifiers_as_numbers_are_refused_with_a_hint():
    error = refused(key=pa.array([1, 2]))
    assert error.code == "not-text"
    assert "leading zeros" in error.hint


def test_dirty_and_clean_spellings_are_one_key():
    clean = person(1)
    found = listed(key=pa.array([clean, f" {clean.lower()} ", clean[:6] + "\u3000" + clean[6:]]))
    assert (found.distinct_keys, found.quality()) == (1, {"repeated-key": 2})


def test_columns_of_different_length_are_refused():
    assert refused(key=pa.array([person(1)]), street=pa.array([], pa.string())).code == "length-mismatch"


def test_an_undeclared_slot_is_refused():
    assert refused(key=pa.array([person(1)]), income=pa.array([1])).code == "unknown-slot"


@pytest.mark.parametrize("street", ["x" * 48, "街" * 16, "a\nb", "a\x1b[31m"])
def test_a_street_that_is_no_street_is_refused_without_being_quoted(street):
    error = refused(key=pa.array([person(1)]), street=pa.array([street]))
    assert error.code == "bad-street"
    assert street not in error.message


def test_streets_that_are_not_utf8_are_refused():
    broken = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(np.array([0, 2], dtype=np.int32)), pa.py_buffer(b"\xff\xfe")]
    )
    error = refused(key=pa.array([person(1)]), street=broken)
    assert error.code == "not-text"


@pytest.mark.parametrize(
    ("column", "months"),
    [
        (pa.array([date(2025, 11, 30), None]), ["2025-11", ""]),
        (pa.array([datetime(2025, 11, 30, 23, 59, tzinfo=UTC), None]), ["2025-11", ""]),
        (pa.array(["2025-11", "2025-11-30"]), ["2025-11", "2025-11"]),
        (pa.array(["2025-13", "last week"]), ["", ""]),
        (pa.array([202511, 202513]), ["2025-11", ""]),
        (pa.array(["202511", "20251"]), ["2025-11", ""]),
        (pa.array([date(1899, 12, 31), date(2200, 1, 1)]), ["", ""]),
        (pa.array(["2199-12", None]).dictionary_encode(), ["2199-12", ""]),
        (pa.chunked_array([["1900-01"], [None]]), ["1900-01", ""]),
    ],
)
def test_months_are_read_from_dates_times_and_text(column, months):
    numbers = (2, 1) if person(2) < person(1) else (1, 2)
    found = listed(key=pa.array([person(number) for number in numbers]), last_seen=column)
    assert [month for _, _, month in rows_of(found)] == months


def test_months_as_plain_numbers_are_refused():
    assert refused(key=pa.array([person(1)]), last_seen=pa.array([2025.11])).code == "not-a-date"


UNTIL = date(2025, 11, 30)


def dated(column: pa.Array) -> KeyedList:
    built = KeyedListBuilder(as_of=date(2026, 1, 1), areas=demo_area_table(), until=UNTIL)
    built.add({"key": pa.array([person(number) for number in range(len(column))]), "since": column})
    return built.finish()


@pytest.mark.parametrize(
    ("column", "reasons"),
    [
        (pa.array([date(2025, 11, 30), date(2025, 12, 1), None]), {"within-grace": 1, "no-date": 1}),
        (pa.array([datetime(2025, 11, 30, 23, 59, tzinfo=UTC), None]), {"no-date": 1}),
        (pa.array([datetime(2025, 11, 30, 23, 59, 59, 999)]), {}),
        (pa.array(["2025-11-30", "2025-11-30T08:00", "2025-11-30 08:00:00", "20251130"]), {}),
        (
            pa.array(["2025-12-01", "2025-02-29", "2025-11", "November", ""]),
            {"within-grace": 1, "no-date": 4},
        ),
        (pa.array([20251130, 20251201, 202511]), {"within-grace": 1, "no-date": 1}),
        (pa.array(["2025-11-30", None]).dictionary_encode(), {"no-date": 1}),
        (pa.chunked_array([["2025-11-30"], ["2025-12-01"]]), {"within-grace": 1}),
        (pa.array([date(1899, 12, 31), date(1900, 1, 1), date(2200, 1, 1)]), {"no-date": 2}),
    ],
)
def test_a_row_counts_until_a_day_and_only_with_a_date(column, reasons):
    found = dated(column)
    assert dict(found.quality()) == reasons
    waiting = found.waiting(np.arange(found.distinct_keys, dtype=np.uint32))
    assert (found.rows, found.distinct_keys, waiting.sum()) == (
        len(column),
        len(column),
        sum(reasons.values()),
    )


WHEN = st.none() | st.dates(date(2025, 10, 1), date(2025, 12, 31))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 6), WHEN), max_size=20), st.dates(date(2025, 9, 1), date(2026, 2, 1))
)
def test_no_size_depends_on_the_day_until_which_rows_count(rows, until):
    built = KeyedListBuilder(as_of=date(2026, 1, 1), areas=demo_area_table(), until=until)
    for row in rows:
        built.add(
            {
                "key": pa.array([person(row[0])]),
                "street": pa.array([f"street of {row[1]}"]),
                "since": pa.array([row[1]], pa.date32()),
            }
        )
    found = built.finish()
    counted = {number for number, day in rows if day is not None and day <= until}
    expected = {
        ("RIC:" if number in counted else "WAITING:RIC:") + person(number) for number in {n for n, _ in rows}
    }
    assert [key.decode() for key in found.keys.tolist()] == sorted(expected)
    assert found.rows == len(rows)
    # What stays of a key that counts is a row that counts.
    kept = {key.removeprefix("RIC:"): street for key, street, _ in rows_of(found) if key.startswith("RIC:")}
    for number in counted:
        days = {f"street of {day}" for n, day in rows if n == number and day is not None and day <= until}
        assert kept[person(number)] in days


def test_no_type_of_identifier_has_the_tag_of_waiting_keys():
    kinds = ("resident-id", "hmt-permit", "foreign-permanent-resident", "passport:CHN", "uscc", "phone")
    assert not [kind for kind in kinds if type_tag(kind).encode().startswith(WAITING[:1])]


def test_dates_as_plain_numbers_are_refused():
    with pytest.raises(InputError) as error:
        dated(pa.array([2025.5]))
    assert error.value.code == "not-a-date"


def test_a_date_is_taken_where_rows_count_by_it_and_nowhere_else():
    assert refused(key=pa.array([person(1)]), since=pa.array([UNTIL])).code == "unknown-slot"
    built = KeyedListBuilder(as_of=UNTIL, areas=demo_area_table(), until=UNTIL)
    with pytest.raises(InputError) as error:
        built.add({"key": pa.array([person(1)])})
    assert error.value.code == "missing-slot"


def test_rows_without_a_key_are_counted_by_that_alone():
    built = KeyedListBuilder(as_of=UNTIL, areas=demo_area_table(), until=UNTIL)
    built.add({"key": pa.array(["x", person(1)]), "since": pa.array([None, None], pa.date32())})
    assert dict(built.finish().quality()) == {"bad-length": 1, "no-date": 1}


@pytest.mark.parametrize("month", [1, 1900 * 12 - 1, 2200 * 12])
def test_a_number_that_is_no_month_has_no_text(month):
    with pytest.raises(ValueError, match="month"):
        month_text(month)


def test_the_commitment_is_that_of_the_vectors_and_hides_the_order_of_rows():
    vector = VECTORS["commitment"]
    salt = bytes.fromhex(vector["salt"])
    for keys in (vector["keys"], vector["keys"][::-1]):
        found = listed(key=pa.array([key.removeprefix("RIC:") for key in keys]))
        assert found.commitment(salt) == vector["digest"]


@given(st.sets(st.integers(0, 30), min_size=1), st.sets(st.integers(0, 30), min_size=1))
def test_commitments_agree_exactly_when_lists_and_salts_do(one, two):
    def committed(numbers: set[int], salt: bytes) -> str:
        return listed(key=pa.array([person(number) for number in numbers])).commitment(salt)

    assert (committed(one, bytes(32)) == committed(two, bytes(32))) == (one == two)
    assert committed(one, bytes(32)) != committed(one, b"\1" * 32)


def test_a_salt_of_another_length_is_refused():
    with pytest.raises(ValueError, match="salt"):
        listed(key=pa.array([person(1)])).commitment(b"short")


def test_printing_a_list_shows_numbers_only():
    assert repr(listed(key=pa.array([person(1)]))) == "KeyedList(1 rows, 1 keys)"
