import tomllib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.lines import locate
from policies.strict import dotted


def line_of(text: str, *path: str | int) -> int:
    tomllib.loads(text)
    return locate(text).line(path)


def test_plain_keys_and_tables_stand_where_they_are_written():
    text = "# one\na = 1\n\n[t]\nb = 2\n  c\t=\t3\n[t.u]\nd=4\n"
    assert [line_of(text, *p) for p in (("a",), ("t",), ("t", "b"), ("t", "c"), ("t", "u", "d"))] == [
        2,
        4,
        5,
        6,
        8,
    ]


def test_each_item_of_an_array_of_tables_has_its_own_lines():
    text = "[[r]]\nid = 1\n[[r]]\nid = 2\n[r.sub]\nx = 3\n[[r.items]]\ny = 4\n[[r.items]]\ny = 5\n"
    text += "[[r]]\n[[r.items]]\ny = 6"
    assert line_of(text, "r", 0, "id") == 2
    assert line_of(text, "r", 1, "id") == 4
    assert line_of(text, "r", 1, "sub", "x") == 6
    assert line_of(text, "r", 1, "items", 1, "y") == 10
    assert line_of(text, "r", 2, "items", 0, "y") == 13


def test_dotted_and_quoted_keys_are_the_keys_tomllib_reads():
    text = 'a . b."c.d" . \'e "f\' = 1\n["x.y".z]\n"\\u00e9\\t" = 2\n"" = 3\n'
    assert line_of(text, "a", "b", "c.d", 'e "f') == 1
    assert line_of(text, "x.y", "z", "é\t") == 3
    assert line_of(text, "x.y", "z", "") == 4


def test_values_inside_lists_and_inline_tables_are_found():
    text = "a = [ # comment ]\n  1,\n  { b = 2, c.d = [3,\n 4], 'e' = '}' },\n]\nz = { y = [{ x = ']' }] }\n"
    assert line_of(text, "a", 0) == 2
    assert line_of(text, "a", 1, "b") == 3
    assert line_of(text, "a", 1, "c", "d", 1) == 4
    assert line_of(text, "a", 1, "e") == 4
    assert line_of(text, "z", "y", 0, "x") == 6


def test_text_that_looks_like_toml_is_text():
    text = 'a = """\n[t]\nb = 1 \\""" # no\n""""\nc = \'\'\'\n[[u]]\n\'\'\'\'\'\n'
    text += 'd = "\\\\" # " x = 1\ne = \'\\\'\nf = ""\ng = 1\n'
    assert [line_of(text, key) for key in "acdefg"] == [1, 5, 8, 9, 10, 11]
    assert set(locate(text).at) == {(key,) for key in "acdefg"}


def test_dates_with_a_blank_and_windows_line_ends_are_followed():
    text = "a = 2026-12-01 08:00:00\r\nb = [08:00:00, 2026-12-01]\r\n[t]\r\nc = 1\r\n"
    assert [line_of(text, *p) for p in (("a",), ("b", 1), ("t", "c"))] == [1, 2, 4]


def test_what_is_missing_is_reported_where_it_should_stand():
    text = "a = 1\n[t]\nb = 2\n"
    assert line_of(text, "t", "missing", 3) == 2
    assert line_of(text, "nowhere") == 0


def test_a_path_is_named_as_people_write_it():
    assert dotted(("rules", 0, "max_rows")) == "rules[0].max_rows"
    assert dotted(()) == ""


KEYS = st.sampled_from(["a", "b-1", "c d", "e.f", "汉字", '"', "", "'", "1"])


@st.composite
def documents(draw: st.DrawFn) -> str:
    """Random TOML in which every value is an integer that stands on one line only."""
    numbers = iter(range(100_000, 200_000))

    def key(name: str) -> str:
        if name.isascii() and name.replace("-", "").isalnum() and draw(st.booleans()):
            return name
        if "'" not in name and draw(st.booleans()):
            return f"'{name}'"
        return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'

    def gap() -> str:
        return draw(st.sampled_from(["", " ", "\t"]))

    def break_() -> str:
        return draw(st.sampled_from(["", " ", "\n", "\r\n", " # ] } = [[x]] \"'\n"]))

    def value(depth: int) -> str:
        kind = draw(st.sampled_from(["n", "n", "list", "table"])) if depth < 3 else "n"
        if kind == "list":
            items = [f"{break_()}{value(depth + 1)}{break_()}" for _ in range(draw(st.integers(0, 3)))]
            return "[" + ",".join(items) + (f",{break_()}]" if items and draw(st.booleans()) else "]")
        if kind == "table":
            names = draw(st.lists(KEYS, unique=True, max_size=3))
            return "{" + ",".join(f" {key(n)}{gap()}={gap()}{value(depth + 1)} " for n in names) + "}"
        return str(next(numbers))

    lines = []
    for table in range(draw(st.integers(0, 4))):
        if table or draw(st.booleans()):
            name = f"{key(f't{table % 2}')}{gap()}.{gap()}{key(draw(KEYS))}"
            header = f"[[list.{name}]]" if draw(st.booleans()) else f"[plain{table}.{name}]"
            lines.append(header + draw(st.sampled_from(["", " # [x]"])))
        for name in draw(st.lists(KEYS, unique=True, max_size=3)):
            dotted_key = key(name) if draw(st.booleans()) else f"{key(name)}.{gap()}{key(draw(KEYS))}"
            lines.append(f"{gap()}{dotted_key}{gap()}={gap()}{value(0)}")
    return "\n".join(lines)


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[tuple[str | int, ...], int]]:
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in leaves(item, (*path, key))]
    if isinstance(value, list):
        return [leaf for index, item in enumerate(value) for leaf in leaves(item, (*path, index))]
    return [(path, value)]


@settings(deadline=None)
@given(documents())
def test_every_value_of_any_document_is_found_on_its_line(text: str):
    try:
        root = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return  # the generator may define a key twice; there is nothing to locate then
    lines = text.replace("\r\n", "\n").split("\n")
    found = locate(text)
    for path, number in leaves(root):
        assert path in found.at
        # A list's item is marked where it starts, and so is a number.
        assert str(number) in lines[found.line(path) - 1]


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment"])
def test_an_empty_document_has_no_lines(text: str):
    assert locate(text).at == {}
