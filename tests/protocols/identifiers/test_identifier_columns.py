"""What counts as a column of text, in every layout, and what is refused and how."""

import subprocess
import sys
from datetime import date

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from protocols.errors import InputError
from protocols.identifiers import (
    WEAK_TYPES,
    AreaTable,
    TypedKeys,
    demo_area_table,
    normalise,
    normalise_mixed,
    province_area_table,
    rule_version,
    type_tag,
)
from protocols.identifiers.columns import BLOCK_ROWS

AS_OF = date(2025, 6, 1)
AREAS = demo_area_table()
TEXTS = [
    "990101199001011230",
    None,
    " 990111198006157771",
    "990101199001011231",
    "",
    "９９０１０１１９９００１０１１２３０",
]
KEYS = [b"RIC:990101199001011230", b"RIC:990111198006157771", b"RIC:990101199001011230"]
COUNTS = {"null": 1, "empty": 1, "bad-check-digit": 1}
FULL = [text or "" for text in TEXTS]


def _resident(column, **given) -> TypedKeys:
    return normalise(column, "resident-id", **{"as_of": AS_OF, "areas": AREAS} | given)


LAYOUTS = {
    "string": pa.array(TEXTS, pa.string()),
    "large string": pa.array(TEXTS, pa.large_string()),
    "string view": pa.array(TEXTS, pa.string_view()),
    "binary": pa.array([text and text.encode() for text in TEXTS], pa.binary()),
    "large binary": pa.array([text and text.encode() for text in TEXTS], pa.large_binary()),
    "binary view": pa.array([text and text.encode() for text in TEXTS], pa.binary_view()),
    "dictionary": pa.array(TEXTS).dictionary_encode(),
    "chunks": pa.chunked_array([TEXTS[:2], [], TEXTS[2:]], pa.string()),
    "chunks of a dictionary": pa.chunked_array([TEXTS[:1], TEXTS[1:]], pa.string()).dictionary_encode(),
    "slice": pa.array(["990101", None, *TEXTS, "x" * 18]).slice(2, len(TEXTS)),
    "slice of a dictionary": pa.array(["990101", *TEXTS, "x"]).dictionary_encode().slice(1, len(TEXTS)),
    "numpy objects": np.array(TEXTS, dtype=object),
    "numpy objects with NaN": np.array([float("nan") if text is None else text for text in TEXTS], object),
    "pandas": pd.Series(TEXTS, dtype=object).to_numpy(),
    "pandas with NA": pd.array(TEXTS, dtype="string").to_numpy(),
}


@pytest.mark.parametrize("column", LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_of_the_same_column_gives_the_same_keys(column):
    typed = _resident(column)
    assert typed.keys.tolist() == KEYS
    assert typed.rows.tolist() == [0, 2, 5]
    assert typed.counts() == COUNTS


@pytest.mark.parametrize(
    "column",
    [
        np.array(FULL),
        np.array([text.encode() for text in FULL]),
        np.array(FULL, dtype=np.dtypes.StringDType()),
        np.array(FULL)[:, np.newaxis].repeat(2, axis=1)[:, 0],
    ],
    ids=["unicode", "bytes", "string dtype", "strided"],
)
def test_numpy_text_without_nulls_works_as_it_is(column):
    typed = _resident(column)
    assert typed.keys.tolist() == KEYS
    assert typed.counts() == {"empty": 2, "bad-check-digit": 1}


def test_a_fixed_width_binary_column_loses_its_padding_blanks():
    column = pa.array([b"990101199001011230  ", b" " * 20], pa.binary(20))
    typed = _resident(column)
    assert typed.keys.tolist() == KEYS[:1]
    assert typed.counts() == {"empty": 1}


@pytest.mark.parametrize(
    "kind", ["resident-id", "hmt-permit", "foreign-permanent-resident", "passport:USA", "uscc", "phone"]
)
@pytest.mark.parametrize(
    "column",
    [pa.array([], pa.string()), pa.chunked_array([], pa.string()), np.array([], dtype="U1"), pa.nulls(0)],
    ids=["array", "no chunks", "numpy", "null type"],
)
def test_an_empty_column_has_no_keys_and_no_reasons(kind, column):
    typed = normalise(column, kind, as_of=AS_OF, areas=AREAS)
    assert (len(typed.keys), len(typed.rows), len(typed.reasons)) == (0, 0, 0)
    mixed = normalise_mixed(column, pa.array([], pa.string()), as_of=AS_OF, areas=AREAS)
    assert (len(mixed.keys), mixed.counts()) == (0, {})


@pytest.mark.parametrize(
    "kind", ["resident-id", "hmt-permit", "foreign-permanent-resident", "passport:USA", "uscc", "phone"]
)
def test_columns_of_nothing_are_counted(kind):
    typed = normalise(pa.array(["", "", None]), kind, as_of=AS_OF, areas=AREAS)
    assert typed.counts() == {"null": 1, "empty": 2}
    assert normalise(pa.nulls(3), kind, as_of=AS_OF, areas=AREAS).counts() == {"null": 3}


# SPEC.md 1.3, and the neighbours that must stay.
DROPPED = [*range(0x09, 0x0E), 0x1C, 0x1D, 0x1E, 0x1F, 0x20, 0x85, 0xA0, 0xAD, 0x34F, 0x61C, 0x1680, 0x180E]
DROPPED += [
    *range(0x2000, 0x2010),
    0x2028,
    0x2029,
    *range(0x202A, 0x2030),
    *range(0x205F, 0x2070),
    0x3000,
    0xFEFF,
]
KEPT = [
    0x00,
    0x08,
    0x0E,
    0x1B,
    0x21,
    0x2D,
    0x7F,
    0x84,
    0xB7,
    0x34E,
    0x350,
    0x180D,
    0x2010,
    0x2030,
    0x2D0,
    0xFE0F,
]


def test_blanks_and_characters_without_width_are_dropped_and_nothing_else():
    number = KEYS[0][4:].decode()
    dropped = pa.array([f"{number[:9]}{chr(point)}{number[9:]}" for point in DROPPED])
    assert _resident(dropped).counts() == {}
    kept = pa.array([f"{number[:8]}{chr(point)}{number[9:]}" for point in KEPT])
    assert _resident(kept).counts() == {"bad-character": len(KEPT)}


def test_bytes_that_are_no_text_are_counted_and_end_nothing():
    good = KEYS[0][4:]
    column = pa.array([good, b"\xff" + good[1:], b"\xed\xa0\x80", good])
    typed = _resident(column)
    assert typed.rows.tolist() == [0, 3]
    assert typed.counts() == {"not-utf8": 2}


def test_a_string_column_with_broken_bytes_is_counted_too():
    buffers = pa.array([b"\xc3\x28", KEYS[0][4:]]).buffers()
    column = pa.Array.from_buffers(pa.string(), 2, buffers)
    assert _resident(column).counts() == {"not-utf8": 1}


def test_bytes_behind_a_null_are_not_read():
    data = pa.py_buffer(b"\xff\xff" + KEYS[0][4:])
    offsets = pa.py_buffer(np.array([0, 2, 20], dtype=np.int32).tobytes())
    column = pa.Array.from_buffers(pa.string(), 2, [pa.py_buffer(b"\x02"), offsets, data])
    typed = _resident(column)
    assert typed.keys.tolist() == KEYS[:1]
    assert typed.counts() == {"null": 1}


CANARY = 990101199001011230
REFUSED = {
    "int64": (pa.array([CANARY]), "not-text", "int64"),
    "float": (pa.array([float(CANARY)]), "not-text", "double"),
    "date": (pa.array([date(1990, 1, 1)]), "not-text", "date32"),
    "list": (pa.array([[str(CANARY)]]), "not-text", "nested type"),
    "dictionary of numbers": (pa.array([CANARY]).dictionary_encode(), "not-text", "int64"),
    "chunks": (pa.chunked_array([[CANARY]]), "not-text", "int64"),
    "numpy int": (np.array([CANARY]), "not-text", "int64"),
    "numpy two dimensions": (np.array([[str(CANARY)]]), "not-text", "2 dimensions"),
    "objects of int": (np.array([CANARY], dtype=object), "not-text", "holds int"),
    "objects mixed": (np.array([str(CANARY), CANARY], dtype=object), "not-text", "holds int, str"),
    "objects of lists": (np.array([str(CANARY), [CANARY]], dtype=object), "not-text", "holds list, str"),
    "lone surrogate": (np.array([f"{CANARY}\ud800"], dtype=object), "not-text", "well-formed"),
    "python list": ([str(CANARY)], "not-a-column", "list"),
    "python string": (str(CANARY), "not-a-column", "str"),
}


@pytest.mark.parametrize(("column", "code", "found"), REFUSED.values(), ids=REFUSED)
def test_a_column_that_is_no_text_is_refused_by_type_and_without_its_values(column, code, found):
    with pytest.raises(InputError) as refused:
        _resident(column)
    assert refused.value.code == code
    assert found in refused.value.message
    assert "expected" in refused.value.message
    assert refused.value.hint
    assert str(CANARY)[:8] not in refused.value.message + refused.value.hint
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


def test_an_object_column_that_turns_bad_in_a_later_block_is_refused():
    column = np.array([str(CANARY)] * BLOCK_ROWS + [CANARY], dtype=object)
    with pytest.raises(InputError, match="holds int"):
        _resident(column)


@pytest.mark.parametrize(
    "kind", ["RIC", "passport", "passport:", "passport:usa", "passport:ZZZ", "phone:", ""]
)
def test_an_unknown_type_is_refused_with_the_list_of_types(kind):
    with pytest.raises(InputError, match=r"resident-id.*passport:CCC") as refused:
        normalise(pa.array(["1"]), kind, as_of=AS_OF, areas=AREAS)
    assert refused.value.code == "unknown-type"


def test_type_columns_must_be_text_and_as_long_as_the_column():
    column = pa.array(["1", "2"])
    with pytest.raises(InputError, match="2 rows with a type column of 1") as refused:
        normalise_mixed(column, pa.array(["phone"]), as_of=AS_OF, areas=AREAS)
    assert refused.value.code == "length-mismatch"
    with pytest.raises(InputError, match="type column is of type int64"):
        normalise_mixed(column, pa.array([1, 2]), as_of=AS_OF, areas=AREAS)
    with pytest.raises(InputError, match="type column is an object array that holds int"):
        normalise_mixed(column, np.array([1, 2], dtype=object), as_of=AS_OF, areas=AREAS)


@pytest.mark.parametrize(
    "kinds",
    [
        pa.array(["resident-id", "phone", None, "passport:USA", "nonsense", "resident-id"]),
        pa.array(
            ["resident-id", "phone", None, "passport:USA", "nonsense", "resident-id"]
        ).dictionary_encode(),
        pa.chunked_array([["resident-id", "phone", None], ["passport:USA", "nonsense", "resident-id"]]),
        np.array(["resident-id", "phone", None, "passport:USA", "nonsense", "resident-id"], dtype=object),
        pa.array([b"resident-id", b"phone", None, b"passport:USA", b"\xff\xfe", b"resident-id"]),
    ],
    ids=["strings", "dictionary", "chunks", "numpy", "bytes that are no text"],
)
def test_one_list_may_hold_several_types(kinds):
    column = pa.array([KEYS[0][4:].decode(), "13800138000", "1", "C01234567", "1", "x"])
    typed = normalise_mixed(column, kinds, as_of=AS_OF, areas=AREAS)
    assert typed.keys.tolist() == [KEYS[0], b"TEL:+8613800138000", b"PP:USA:C01234567"]
    assert typed.counts() == {"unknown-type": 2, "bad-length": 1}


def test_chunks_of_types_need_not_match_chunks_of_values():
    rows = BLOCK_ROWS + 5
    column = pa.chunked_array([["13800138000"] * 3, ["13800138001"] * (rows - 3)])
    kinds = pa.chunked_array([["phone"] * (rows - 1), ["uscc"]])
    typed = normalise_mixed(column, kinds, as_of=AS_OF, areas=AREAS)
    assert typed.rows.tolist() == list(range(rows - 1))
    assert typed.counts() == {"bad-length": 1}


def test_repeats_are_kept_for_the_caller_to_count():
    assert _resident(pa.array([KEYS[0][4:].decode()] * 3)).keys.tolist() == [KEYS[0]] * 3


def test_printing_keys_prints_counts_only():
    typed = _resident(pa.array(TEXTS))
    assert repr(typed) == (f"TypedKeys(3 of 6 rows, {COUNTS}, '{rule_version(AREAS)}')")
    assert str(typed) == f"{typed}" == repr(typed)


def test_keys_cannot_be_changed_afterwards():
    typed = _resident(pa.array([KEYS[0][4:].decode()]))
    for array in (typed.keys, typed.rows, typed.reasons):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_the_column_is_not_changed():
    column = np.array([text.encode() for text in FULL])
    before = column.tolist()
    _resident(column)
    assert column.tolist() == before


def test_the_rule_version_names_rules_and_table():
    assert rule_version(AREAS).startswith("identifiers/1+areas:")
    assert _resident(pa.array(["1"])).rule_version == rule_version(AREAS)
    assert rule_version(AREAS) == rule_version(AreaTable.of(str(code) for code in range(990101, 990112)))
    assert rule_version(AREAS) != rule_version(province_area_table())


def test_tags_and_weak_types_are_known():
    assert [type_tag(kind) for kind in ("resident-id", "hmt-permit", "foreign-permanent-resident")] == [
        "RIC:",
        "HMT:",
        "FPR:",
    ]
    assert [type_tag(kind) for kind in ("passport:FRA", "uscc", "phone")] == ["PP:FRA:", "USCC:", "TEL:"]
    assert {"phone"} == WEAK_TYPES


def test_importing_the_package_does_not_load_pyarrow():
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, protocols.identifiers; print('pyarrow' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert loaded.stdout == "False\n"
