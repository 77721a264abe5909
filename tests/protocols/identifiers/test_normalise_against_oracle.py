"""Dirty columns, drawn by hypothesis, against a slow second implementation."""

import sys
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.identifiers import AreaTable, Reason, demo_area_table, normalise, normalise_mixed, resident_id
from protocols.identifiers.columns import BLOCK_ROWS
from protocols.identifiers.countries import COUNTRIES

sys.path.insert(0, str(Path(__file__).parent))
from identifier_oracle import mod_11_2, oracle  # beside this file: the tests folder is no package

CODES = ["11", "4401", "990101", "990111"]
AREAS = AreaTable.of(CODES)
KINDS = [
    "resident-id",
    "hmt-permit",
    "foreign-permanent-resident",
    "passport:USA",
    "passport:CHN",
    "uscc",
    "phone",
]
DAYS = st.sampled_from([date(2025, 6, 1), date(1999, 7, 1), date(2024, 2, 29), date(2025, 2, 28)])

digits = st.text("0123456789", min_size=1, max_size=19)


EDGE_DAYS = (
    *("20000229", "19000229", "20010229", "19040228", "19040229", "20250228", "20250631", "19990001"),
    *("19040601", "19040602", "18790701", "18780701", "20250601", "20250602", "00000101", "19991301"),
)


def _sized(count):
    return st.text("0123456789", min_size=count, max_size=count)


@st.composite
def birth_days(draw):
    usual = st.dates(date(1870, 1, 1), date(2030, 12, 31)).map(lambda day: day.strftime("%Y%m%d"))
    edges = st.sampled_from(EDGE_DAYS)
    return draw(st.one_of(usual, edges, _sized(8)))


@st.composite
def citizen_numbers(draw, areas):
    body = (
        draw(areas) + draw(birth_days()) + draw(st.one_of(_sized(3), st.sampled_from(["995", "996", "999"])))
    )
    if draw(st.integers(0, 4)) == 0:
        return body[:6] + body[8:]
    return body + (mod_11_2(body) if draw(st.integers(0, 5)) else draw(st.sampled_from("0123456789XxY")))


@st.composite
def older_cards(draw):
    body = draw(st.sampled_from(["USA", "KAZ", "ZZZ", "A1B"])) + draw(
        st.sampled_from(["1100", "4401", "8800"])
    )
    body += draw(birth_days())[2:] + draw(_sized(1))
    return body + str(sum(int(c, 36) * (7, 3, 1)[i % 3] for i, c in enumerate(body)) % 10)


@st.composite
def credit_codes(draw):
    alphabet = "0123456789ABCDEFGHJKLMNPQRTUWXY"
    body = draw(st.sampled_from(["91", "92", "00", "I1"])) + draw(_sized(6))
    body += draw(st.text(alphabet, min_size=9, max_size=9))
    total = sum(alphabet.index(c) * 3**i for i, c in enumerate(body)) if "I" not in body else 0
    return body + alphabet[-total % 31]


NUMBERS = {
    "resident-id": citizen_numbers(
        st.sampled_from(["990101", "990111", "110105", "440103", "990112", "440203", "810000"])
    ),
    "hmt-permit": citizen_numbers(st.sampled_from(["810000", "820000", "830000", "840000", "110105"])),
    "foreign-permanent-resident": st.one_of(
        older_cards(), citizen_numbers(st.sampled_from(["911124", "944840", "999840", "984124", "811124"]))
    ),
    "passport": st.text("ABCXYZ0123456789", min_size=4, max_size=10),
    "uscc": credit_codes(),
    "phone": st.one_of(
        st.tuples(st.sampled_from(["+86", "0086", "86", "0", "+", "00", "+860", "+44", "1", ""]), digits).map(
            "".join
        ),
        _sized(10).map(lambda rest: "1" + rest),
        _sized(11).map(lambda rest: "+" + rest),
    ),
}
ODDITIES = st.sampled_from(["UNKNOWN", "000000000", "000000000000000000", "11111111111", "+0", "+", "0", "X"])

SEPARATORS = st.sampled_from(
    " \u3000\u00a0\t\n\u200b\u200d\ufeff\u00ad\u2060\u202d-\u2011(."
    "\u2212\x00\u00b7\u0301\u00bdxX\u00d7\u21690"
)


@st.composite
def written(draw, kind):
    """A number as somebody wrote it, now and then one of another type."""
    kind = kind if draw(st.integers(0, 7)) else draw(st.sampled_from(sorted(NUMBERS)))
    text = draw(NUMBERS[kind.partition(":")[0]])
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2]))):
        match draw(st.integers(0, 5)):
            case 0:
                text = "".join(chr(ord(c) + 0xFEE0) if 0x21 <= ord(c) <= 0x7E else c for c in text)
            case 1:
                text = text.lower()
            case 2 | 3:
                at = draw(st.integers(0, len(text)))
                text = text[:at] + draw(SEPARATORS) + text[at:]
            case 4:
                text = f"{draw(SEPARATORS)}{text}{draw(SEPARATORS)}"
            case 5:
                at = draw(st.integers(0, len(text) - 1))
                text = text[:at] + draw(st.sampled_from("0123456789XA")) + text[at + 1 :]
    return text


@st.composite
def values(draw, kind):
    """Any cell of a column of that type, as bytes or None."""
    match draw(st.integers(0, 19)):
        case 0:
            return None
        case 1:
            return draw(st.binary(max_size=20))
        case 2:
            return draw(st.one_of(st.text(max_size=20), ODDITIES)).encode()
        case _:
            return draw(written(kind)).encode()


def columns(kind):
    return st.lists(values(kind), max_size=12)


@st.composite
def mixed_rows(draw):
    kind = draw(st.sampled_from([*KINDS, None, "passport", "RIC"]))
    return draw(values(kind if kind in KINDS else "phone")), kind


def _expected(cells, kinds, as_of):
    return [
        oracle(value, kind, as_of, CODES, COUNTRIES) if kind in KINDS else (None, "unknown-type")
        for value, kind in zip(cells, kinds, strict=True)
    ]


def _assert_same(typed, expected):
    assert [Reason(number).code for number in typed.reasons] == [reason for _, reason in expected]
    assert typed.keys.tolist() == [key.encode() for key, _ in expected if key is not None]
    assert typed.rows.tolist() == [row for row, (key, _) in enumerate(expected) if key is not None]
    assert sum(typed.counts().values()) + len(typed.keys) == len(expected)


@settings(max_examples=400, deadline=None)
@given(st.data(), st.sampled_from(KINDS), DAYS)
def test_every_row_of_a_column_has_the_oracles_answer(data, kind, as_of):
    cells = data.draw(columns(kind))
    column = pa.array(cells, data.draw(st.sampled_from([pa.binary(), pa.large_binary()])))
    typed = normalise(column, kind, as_of=as_of, areas=AREAS)
    _assert_same(typed, _expected(cells, [kind] * len(cells), as_of))


@settings(max_examples=300, deadline=None)
@given(st.lists(mixed_rows(), max_size=12), DAYS)
def test_a_mixed_column_gives_each_row_the_answer_of_its_own_type(rows, as_of):
    cells, kinds = [value for value, _ in rows], [kind for _, kind in rows]
    typed = normalise_mixed(
        pa.array(cells, pa.binary()), pa.array(kinds, pa.string()), as_of=as_of, areas=AREAS
    )
    _assert_same(typed, _expected(cells, kinds, as_of))


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(KINDS))
def test_a_canonical_form_is_its_own_canonical_form(data, kind):
    cells = data.draw(columns(kind))
    typed = normalise(pa.array(cells, pa.binary()), kind, as_of=date(2025, 6, 1), areas=AREAS)
    bodies = [key.rpartition(b":")[2] for key in typed.keys.tolist()]
    again = normalise(pa.array(bodies, pa.binary()), kind, as_of=date(2025, 6, 1), areas=AREAS)
    assert again.keys.tolist() == typed.keys.tolist()


def _register(rows, seed):
    """Rows as a register holds them: mostly clean, some dirt of every kind, in no order."""
    rng = np.random.default_rng(seed)
    cells = []
    for row in range(rows):
        born = date.fromordinal(date(1930, 1, 1).toordinal() + int(rng.integers(0, 34_000)))
        number = resident_id(f"9901{int(rng.integers(1, 12)):02d}", born, row % 1000)
        match int(rng.integers(0, 40)):
            case 0:
                number = number[:6] + number[8:17]
            case 1:
                number = "".join(chr(ord(c) + 0xFEE0) for c in number)
            case 2:
                number = number[:17] + ("0" if number[17] != "0" else "1")
            case 3:
                number = number.lower() + "  "
            case 4:
                number = None
            case 5:
                number = ""
            case 6:
                number = number[:10]
        cells.append(number)
    return cells


@pytest.mark.parametrize("rows", [BLOCK_ROWS - 1, BLOCK_ROWS, BLOCK_ROWS + 1])
def test_a_register_longer_than_a_block_has_the_oracles_answers(rows):
    cells, as_of = _register(rows, seed=rows), date(2025, 6, 1)
    typed = normalise(pa.array(cells), "resident-id", as_of=as_of, areas=demo_area_table())
    codes = [str(code) for code in range(990101, 990112)]
    expected = [oracle(value, "resident-id", as_of, codes, COUNTRIES) for value in cells]
    _assert_same(typed, expected)
    # Sequence 996 to 999 in fifteen digits says born before 1900.
    assert set(typed.counts()) == {"null", "empty", "bad-length", "bad-check-digit", "over-120"}
