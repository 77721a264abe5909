"""One byte form for whatever is signed, and a reader that never runs past its end."""

import enum
import json
import tracemalloc
from datetime import UTC, datetime

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.encoding import (
    MAX_JSON_BYTES,
    MAX_JSON_DEPTH,
    Reader,
    b64decode,
    b64encode,
    bytes16,
    canonical_json,
    decode_json,
    digest_bytes,
    parse_json,
    sha256_digest,
)
from protocols.errors import DecodeError

EXACT = st.integers(-(2**53) + 1, 2**53 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | EXACT | st.floats(-1e15, 1e15) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


def refusal(data: bytes, **limits: int) -> str:
    with pytest.raises(DecodeError) as caught:
        decode_json(data, **limits)
    return caught.value.code


# ---------------------------------------------------------------- canonical JSON


def test_the_example_of_rfc_8785_comes_out_byte_for_byte():
    value = {
        "numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 0.000000000000000000000000001],
        "string": "\u20ac$\u000f\u000aA'\u0042\u0022\u005c\\\"/",
        "literals": [None, True, False],
    }
    assert (
        canonical_json(value)
        == (
            '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
            '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
        ).encode()
    )


def test_keys_sort_by_utf_16_units_as_in_rfc_8785():
    keys = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\u0080", "\u00f6"]
    written = json.loads(canonical_json(dict.fromkeys(keys, 0)))
    assert list(written) == ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]


@given(VALUES)
@settings(deadline=None)
def test_what_is_written_is_read_back(value):
    data = canonical_json(value)
    assert decode_json(data) == value
    assert canonical_json(decode_json(data)) == data


class Text(str):
    """Text that is not quite a str."""

    __slots__ = ()


class Level(enum.IntEnum):
    LOW = 1


class Colour(enum.StrEnum):
    RED = "red"


ODD = st.sampled_from(
    [
        2**53 - 1,
        -(2**53),
        2**53,
        2**64,
        1.0,
        -0.0,
        1e20,
        float("nan"),
        "\ud83d",
        "a\x7fb",
        "\u2028",
        'a"b',
        "a\\b",
        "a\nb",
        Text("text"),
        Level.LOW,
        Colour.RED,
        b"bytes",
        (1, "two"),
        {1: "one"},
        {"\u00e9": 1, "z": 2, "\U0001f600": 3, "\ufb33": 4},
        {Text("key"): 1},
        {"b": 1, "a": {"d": 1, "c": 2}},
        datetime(2026, 12, 1, tzinfo=UTC),
        {1, 2},
    ]
)


def is_text(value: object) -> bool:
    return isinstance(value, str)


def reference(value: object) -> bytes | None:
    try:
        return rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, UnicodeEncodeError):
        return None


@given(
    st.recursive(
        VALUES | ODD,
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(TEXT | ODD.filter(is_text), inner, max_size=3)
        ),
        max_leaves=6,
    )
)
@settings(max_examples=300)
def test_every_value_is_written_as_the_reference_writes_it_or_refused_with_it(value):
    expected = reference(value)
    if expected is not None:
        assert canonical_json(value) == expected
        return
    with pytest.raises(DecodeError) as caught:
        canonical_json(value)
    assert caught.value.code == "not-canonical"


def read_by_the_reference(data: bytes) -> object:
    """Strict reading as it is defined: parse, write again, compare."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return "not-json"
    return value if reference(value) == data else "not-canonical"


@given(VALUES | ODD.filter(reference), st.data())
@settings(max_examples=300)
def test_every_document_is_read_as_the_reference_reads_it_or_refused_with_it(value, data):
    written = canonical_json(value)
    at = data.draw(st.integers(0, len(written)))
    cut = data.draw(st.integers(0, 2))
    piece = data.draw(
        st.sampled_from([b"", b" ", b"0", b".0", b"e1", b"\xff", b"\xed\xa0\x80", b"\\u0041", b","])
    )
    changed = written[:at] + piece + written[at + cut :]
    try:
        read = decode_json(changed)
    except DecodeError as error:
        read = error.code
    expected = read_by_the_reference(changed)
    assert (type(read), read) == (type(expected), expected)


@pytest.mark.parametrize(
    "data",
    [
        b"NaN",
        b"Infinity",
        b"1e400",
        b"-0",
        b"18446744073709551616",
        b"100000000000000000000",
        b'"\\ud83d"',
        b'{"\\ud83d":0}',
        b"\xef\xbb\xbf1",
        "1".encode("utf-16"),
        '"\u00e9"'.encode("latin-1"),
    ],
)
def test_what_one_parser_reads_and_another_does_not_is_refused_as_before(data):
    assert refusal(data) == read_by_the_reference(data)


@given(VALUES, st.data())
@settings(deadline=None)
def test_no_other_spelling_of_a_document_is_read(value, data):
    written = canonical_json(value)
    spellings = [
        json.dumps(value).encode(),
        json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(),
        b" " + written,
        written + b"\n",
        b"\xef\xbb\xbf" + written,
        written.decode().encode("utf-16"),
    ]
    other = data.draw(st.sampled_from(spellings))
    if other == written:
        assert decode_json(other) == value
    else:
        assert refusal(other) in {"not-canonical", "not-json"}


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b'{"a":1,"a":1}', "not-canonical"),
        (b'{"a":1,"a":2}', "not-canonical"),
        (b'{"b":1,"a":2}', "not-canonical"),
        (b'{"a": 1}', "not-canonical"),
        (b"1.0", "not-canonical"),
        (b"-0", "not-canonical"),
        (b"1e2", "not-canonical"),
        (b'"\\u0041"', "not-canonical"),
        (b'"\\/"', "not-canonical"),
        (b'"\\ud800"', "not-canonical"),
        (b'"\xed\xa0\x80"', "not-canonical"),
        (b"9007199254740992", "not-canonical"),
        (b"NaN", "not-canonical"),
        (b"Infinity", "not-canonical"),
        (b"1e999", "not-canonical"),
        (b'"\xff"', "not-json"),
        (b"", "not-json"),
        (b"{", "not-json"),
        (b"9" * 100_000, "not-json"),
    ],
)
def test_ambiguous_json_is_refused(data, code):
    assert refusal(data) == code


@pytest.mark.parametrize(
    "value", [2**53, -(2**53), float("nan"), float("inf"), b"x", {1: 2}, "\ud800", object()]
)
def test_what_json_cannot_carry_exactly_is_not_written(value):
    with pytest.raises(DecodeError) as caught:
        canonical_json(value)
    assert caught.value.code == "not-canonical"
    assert caught.value.hint


def test_a_cycle_is_not_written():
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(DecodeError):
        canonical_json(loop)


def test_length_is_checked_before_anything_is_parsed():
    bomb = b"[" * (64 << 20)
    tracemalloc.start()
    assert refusal(bomb) == "too-long"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
    assert refusal(b'"' + b"a" * 9 + b'"', limit=10) == "too-long"
    assert decode_json(b'"' + b"a" * 8 + b'"', limit=10) == "a" * 8


@pytest.mark.parametrize("pair", [(b"[", b"]"), (b'{"a":', b"}")])
def test_depth_is_bounded_exactly(pair):
    opening, closing = pair
    fits = opening * MAX_JSON_DEPTH + closing * MAX_JSON_DEPTH if opening == b"[" else None
    if fits is None:
        fits = opening * MAX_JSON_DEPTH + b"1" + closing * MAX_JSON_DEPTH
    decode_json(fits)
    assert refusal(b"[" + fits + b"]") == "too-deep"


@pytest.mark.parametrize("text", [b"]" * 5000, b"}" * 5000, b'\\"' + b"]" * 5000, b"\\\\"])
def test_brackets_in_a_string_do_not_hide_depth(text):
    assert refusal(b'["' + text + b'",' + b"[" * 40 + b"]" * 40 + b"]") == "too-deep"


def test_brackets_in_a_string_are_no_depth():
    value = ["[" * 100, '"' + "{" * 100, "\\" + "[" * 100]
    assert decode_json(canonical_json(value)) == value


@pytest.mark.parametrize(
    "shape", [b"[" * 10**6, b'{"":' * 200_000, b'"' + b'\\"' * 500_000, b'""' * 500_000, b'"' + b"\\" * 10**6]
)
def test_a_million_hostile_bytes_are_refused_without_recursion(shape):
    assert refusal(shape[:MAX_JSON_BYTES]) in {"too-deep", "not-json"}


# ---------------------------------------------------------------- digests and base64


def test_a_digest_is_sha_256_of_the_bytes():
    # FIPS 180-4 example "abc"
    expected = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_digest(b"abc") == expected
    assert digest_bytes(expected).hex() == expected[7:]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ab" * 32,
        "sha256:" + "AB" * 32,
        "sha256:" + "ab" * 31,
        "sha256:" + "ab" * 33,
        "sha256:" + "ab" * 32 + "\n",
        "sha512:" + "ab" * 32,
        "SHA256:" + "ab" * 32,
        "sha256:" + "٣" * 64,
    ],
)
def test_a_digest_has_one_spelling(text):
    with pytest.raises(DecodeError) as caught:
        digest_bytes(text)
    assert caught.value.code == "bad-digest"


@given(st.binary(max_size=64))
@settings(deadline=None)
def test_base64_round_trips(data):
    assert b64decode(b64encode(data)) == data


@pytest.mark.parametrize(
    "text", ["QQ", "QQ=", "QR==", "QQ==\n", "Q Q=", "QQ==QQ==", "-_==", "é===", "=", "Ａ==="]
)
def test_base64_has_one_spelling(text):
    with pytest.raises(DecodeError) as caught:
        b64decode(text)
    assert caught.value.code == "bad-base64"


# ---------------------------------------------------------------- the reader


def test_the_reader_takes_big_endian_fields_in_order():
    reader = Reader(b"\x01\x00\x02ab\x00\x03\xe4\xb8\xad!!")
    assert reader.uint(1) == 1
    assert reader.bytes16() == b"ab"
    assert reader.text16() == "中"
    assert reader.rest() == b"!!"
    reader.finish()


@given(st.binary(max_size=20), st.integers(-5, 30))
@settings(deadline=None)
def test_the_reader_never_passes_the_end(data, count):
    reader = Reader(data)
    if 0 <= count <= len(data):
        assert reader.take(count) == data[:count]
    else:
        with pytest.raises(DecodeError) as caught:
            reader.take(count)
        assert caught.value.code == "truncated"
        assert reader.rest() == data  # a failed read moves nothing


@given(st.binary(max_size=40))
@settings(deadline=None)
def test_any_bytes_are_a_field_or_a_clear_error(data):
    reader = Reader(data)
    length = int.from_bytes(data[:2], "big")
    if len(data) >= 2 and length <= min(16, len(data) - 2):
        assert bytes16(reader.bytes16(limit=16)) + reader.rest() == data
    else:
        with pytest.raises(DecodeError) as caught:
            reader.bytes16(limit=16)
        assert caught.value.code == ("too-long" if len(data) >= 2 and length > 16 else "truncated")


def test_bytes_left_over_are_refused():
    reader = Reader(b"\x01\x02")
    reader.uint(1)
    with pytest.raises(DecodeError) as caught:
        reader.finish()
    assert caught.value.code == "trailing-bytes"


def test_a_length_over_its_limit_is_refused_before_the_bytes_are_read():
    with pytest.raises(DecodeError) as caught:
        Reader(b"\xff\xff").bytes16(limit=10)
    assert caught.value.code == "too-long"
    with pytest.raises(DecodeError) as caught:
        bytes16(bytes(0x10000))
    assert caught.value.code == "too-long"


def test_text_that_is_not_utf_8_is_refused():
    with pytest.raises(DecodeError) as caught:
        Reader(b"\x00\x01\xff").text16()
    assert caught.value.code == "not-utf8"


# -- JSON of other programs


def test_json_of_another_program_is_read_however_it_is_spelled():
    assert parse_json(b' {"b": [1.50, "\\u0061"],\n "a": null } ') == {"b": [1.5, "a"], "a": None}


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b'{"a":1,"a":1}', "not-json"),
        (b'[{"a":{"b":1,"\\u0062":2}}]', "not-json"),
        (b"[NaN]", "not-json"),
        (b"[-Infinity]", "not-json"),
        (b"[" + b"9" * 5000 + b"]", "not-json"),
        ("[1]".encode("utf-16"), "not-json"),
        (b'"\xff"', "not-json"),
        (b"[1] 2", "not-json"),
        (b"", "not-json"),
        (b"[" * 40 + b"]" * 40, "too-deep"),
        (b'{"a":' * 200_000, "too-deep"),
        (b" " * (MAX_JSON_BYTES + 1), "too-long"),
    ],
    ids=lambda value: repr(value[:12]),
)
def test_json_of_another_program_says_one_thing_and_is_not_deep(data, code):
    with pytest.raises(DecodeError) as error:
        parse_json(data)
    assert error.value.code == code
