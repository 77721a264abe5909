"""TOML → frozen structs, strictly, with the line of whatever is wrong.

msgspec checks the leaves; the walk over tables and lists is ours, because msgspec's own errors name neither
the line nor the key inside a table of tables.
"""

import re
import tomllib
import types
import typing
from dataclasses import dataclass
from datetime import date, datetime, time
from fractions import Fraction
from typing import Any, Final, NoReturn

import msgspec

from policies.lines import Lines, Path, locate
from protocols.errors import PolicyInvalid

MAX_DEPTH: Final = 16
"""Deepest nesting of tables and lists that is read."""

_FLATTEN: Final = "no clause is nested deeper than a list in a table: remove the brackets"

DECIMAL: Final = re.compile(r"-?[0-9]{1,18}(?:\.[0-9]{1,18})?|[0-9]{1,18}e-[0-9]{1,2}")


_UNREADABLE: Final = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u061c\u115f\u1160\u180e\u200b-\u200f\u2028-\u202e"
    r"\u2060-\u206f\u2800\u3164\ufeff\uffa0\U000e0000-\U000e007f]"
)
"""Characters that show as nothing or turn the text around them: people sign what they read."""


_PLAIN: Final[dict[Any, tuple[str, str]]] = {
    date: ("a day without a time", "2027-02-28"),
    time: ("a time of day", "08:00:00"),
    Fraction: ("a decimal as text", '"0.30"'),
}
"""Kinds without a `Meta` of their own: what they are in words, and one of them."""


class _Float:
    """Stands where the text has a TOML float, so that the walk can refuse it at its line."""

    def __init__(self, _: str) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed TOML text and where everything in it stands."""

    root: dict[str, Any]
    lines: Lines

    def fail(self, path: Path, message: str, *, hint: str, code: str = "policy-invalid") -> NoReturn:
        """Raise PolicyInvalid at `path`, which is also named in the message.

        Raises:
            PolicyInvalid: always.
        """
        name = dotted(path)
        raise PolicyInvalid(
            f"{name}: {message}" if name else message, code=code, hint=hint, line=self.lines.line(path)
        )


def dotted(path: Path) -> str:
    """Return `rules[0].max_rows` for a path."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else part)
    return text


def read_toml(data: bytes, *, limit: int, what: str) -> Document:
    """Parse `data` as TOML.

    Args:
        data: the exact bytes of the file.
        limit: largest accepted length in bytes, checked before anything else.
        what: what the file is, for errors: `policy.toml`.

    Raises:
        PolicyInvalid: too long, not UTF-8, not TOML (with the line), with a character that cannot be seen,
            comments and escapes included, or nested too deeply.
    """
    if len(data) > limit:
        raise PolicyInvalid(
            f"{what} has {len(data)} bytes, at most {limit} are read",
            code="too-long",
            hint="leave out what is not needed",
        )
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PolicyInvalid(
            f"{what} is not UTF-8 text",
            code="not-utf8",
            hint="save the file as UTF-8",
            line=data.count(b"\n", 0, error.start) + 1,
        ) from None
    if hidden := _UNREADABLE.search(text):
        raise _unreadable(what, text.count("\n", 0, hidden.start()) + 1)
    try:
        root = tomllib.loads(text, parse_float=_Float)
    except tomllib.TOMLDecodeError as error:
        reason, _, place = str(error).partition(" (at ")
        at_line = re.match(r"line (\d+)", place)
        raise PolicyInvalid(
            f"{what} is not TOML: {reason}",
            code="not-toml",
            hint="correct the syntax there",
            line=int(at_line.group(1)) if at_line else text.count("\n") + 1,
        ) from None
    except RecursionError:
        raise PolicyInvalid(f"{what} is nested too deeply", code="too-deep", hint=_FLATTEN) from None
    except ValueError:
        # Python reads no whole number of more than 4300 digits, and tomllib lets that pass as it is.
        raise PolicyInvalid(
            f"{what} has a number that is too long", code="bad-number", hint="write a number people can read"
        ) from None
    document = Document(root, locate(text))
    _refuse_what_nobody_reads(document, what)
    return document


def _refuse_what_nobody_reads(document: Document, what: str) -> None:
    """Refuse deep nesting, and unreadable characters that an escape puts into a text or a key."""
    stack: list[tuple[Path, Any]] = [((), document.root)]
    while stack:
        path, value = stack.pop()
        if len(path) > MAX_DEPTH:
            document.fail(path[:1], f"nested deeper than {MAX_DEPTH} levels", code="too-deep", hint=_FLATTEN)
        texts = [*value] if isinstance(value, dict) else [value] if isinstance(value, str) else []
        if any(map(_UNREADABLE.search, texts)):
            raise _unreadable(what, document.lines.line(path))
        if isinstance(value, dict):
            stack.extend(((*path, key), item) for key, item in value.items())
        elif isinstance(value, list):
            stack.extend(((*path, index), item) for index, item in enumerate(value))


def _unreadable(what: str, line: int) -> PolicyInvalid:
    return PolicyInvalid(
        f"{what} has a character that cannot be seen, or that turns the text around it",
        code="unreadable-character",
        hint="type the line again, or save without byte-order mark: whoever signs must see all of it",
        line=line,
    )


def build(document: Document, kind: Any, value: Any, path: Path) -> Any:
    """Return `value` as `kind`: a Struct, `dict[K, V]`, `tuple[T, ...]`, `Fraction`, or what msgspec knows.

    Unknown keys, missing keys, wrong types, empty lists and repeated list items are refused. TOML has no
    null, so `T | None` reads a `T`. A `Fraction` is written as text or as a whole number.

    Raises:
        PolicyInvalid: with the line.
    """
    kind = _without_none(kind)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return _plain(document, value, path)
    if isinstance(value, _Float):
        _refuse_float(document, path)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return _struct(document, kind, value, path)
    if origin is dict:
        _expect(document, value, dict, path)
        return {
            _leaf(document, arguments[0], key, (*path, key), name=True): build(
                document, arguments[1], item, (*path, key)
            )
            for key, item in value.items()
        }
    if origin is tuple:
        return _items(document, arguments[0], value, path)
    if kind is Fraction:
        return decimal(document, value, path)
    return _leaf(document, kind, value, path)


def decimal(document: Document, value: object, path: Path) -> Fraction:
    """Return the exact value of decimal text such as `0.30` or `1e-9`, or of a whole number."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not DECIMAL.fullmatch(text):
        document.fail(
            path,
            "expected a decimal as text or a whole number",
            hint='write digits and at most one point between quotation marks, for example "0.30"',
        )
    return Fraction(text)


def _without_none(kind: Any) -> Any:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        inner = [one for one in typing.get_args(kind) if one is not type(None)]
        if len(inner) == 1:
            return inner[0]
    return kind


def _expect(document: Document, value: Any, kind: type[dict[Any, Any]] | type[list[Any]], path: Path) -> None:
    if isinstance(value, kind):
        return
    name = dotted(path)
    if kind is dict:
        document.fail(path, "expected a table", hint=f"write [{name}] on a line of its own, its keys below")
    document.fail(path, "expected a list", hint="write the list in square brackets, commas between its items")


def _struct(document: Document, kind: type[msgspec.Struct], value: Any, path: Path) -> Any:
    _expect(document, value, dict, path)
    known = {f.encode_name: f for f in msgspec.structs.fields(kind)}
    for key in value:
        if key not in known:
            document.fail(
                (*path, key),
                "unknown key",
                code="unknown-key",
                hint="known here: " + ", ".join(sorted(known)),
            )
    for key, f in known.items():
        if f.required and key not in value:
            example = _example(f.type, key)
            document.fail(
                path,
                f"the key {key} is missing",
                code="missing-key",
                hint=f"add {key}" + (f", {example}" if example else ""),
            )
    return kind(
        **{
            f.name: build(document, f.type, value[key], (*path, key))
            for key, f in known.items()
            if key in value
        }
    )


def _items(document: Document, kind: Any, value: Any, path: Path) -> tuple[Any, ...]:
    _expect(document, value, list, path)
    if not value:
        document.fail(path, "an empty list", code="empty-list", hint="list something, or leave the key out")
    result: list[Any] = []
    seen: set[Any] = set()
    for index, item in enumerate(value):
        built = build(document, kind, item, (*path, index))
        result.append(built)
        if isinstance(built, msgspec.Struct):
            continue  # only names and numbers repeat by mistake
        if built in seen:
            document.fail((*path, index), "listed twice", code="listed-twice", hint="list it once")
        seen.add(built)
    return tuple(result)


def _plain(document: Document, value: Any, path: Path) -> Any:
    """Return what JSON carries exactly: texts, whole numbers, booleans, lists and tables of these."""
    if isinstance(value, dict):
        return {key: _plain(document, item, (*path, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(document, item, (*path, index)) for index, item in enumerate(value)]
    if isinstance(value, _Float):
        _refuse_float(document, path)
    if not isinstance(value, str | int):
        document.fail(
            path,
            f"a {type(value).__name__}, expected text, a whole number or true/false",
            hint="write it as text, between quotation marks",
        )
    return value


def _refuse_float(document: Document, path: Path) -> NoReturn:
    document.fail(
        path,
        "a number with a point, expected a whole number or decimal text",
        hint='write decimals as text, for example "0.30": a float would not be exact',
    )


def _leaf(document: Document, kind: Any, value: Any, path: Path, *, name: bool = False) -> Any:
    """Return `value`, which stands at `path`, or with `name` is itself the last part of it, as `kind`."""
    try:
        return msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError as error:
        expected = _description(kind)
        key = path[-1] if isinstance(path[-1], str) and not name else ""
        document.fail(
            path,
            f"expected {expected}" if expected else str(error).partition(" - at ")[0],
            hint=_advice(kind) or _example(kind, key) or "correct the value",
        )


def _meta(kind: Any) -> msgspec.Meta | None:
    arguments = typing.get_args(kind) if typing.get_origin(kind) is typing.Annotated else ()
    return next((one for one in arguments if isinstance(one, msgspec.Meta)), None)


def _description(kind: Any) -> str:
    """Return what the type says of itself in words, through `Meta(description=…)`; a choice lists itself."""
    if typing.get_origin(kind) is typing.Literal:
        choices = ", ".join(map(str, typing.get_args(kind)))
        return f"one of {choices}" if len(typing.get_args(kind)) > 1 else choices
    meta = _meta(kind)
    return (meta.description or "") if meta is not None else _PLAIN.get(kind, ("", ""))[0]


def _advice(kind: Any) -> str:
    meta = _meta(kind)
    return str((meta.extra or {}).get("hint", "")) if meta is not None else ""


def _example(kind: Any, key: str) -> str:
    """Return `for example KEY = VALUE`, empty for a kind that has no short example."""
    kind = _without_none(kind)
    if typing.get_origin(kind) is typing.Literal:
        value = f'"{typing.get_args(kind)[0]}"'
    elif (meta := _meta(kind)) is not None and meta.examples:
        first = meta.examples[0]
        value = f'"{first}"' if isinstance(first, str) else str(first)
        if typing.get_args(kind)[0] is datetime:
            value = value.strip('"')
    elif kind in _PLAIN:
        value = _PLAIN[kind][1]
    elif typing.get_origin(kind) is tuple:
        inner = _example(typing.get_args(kind)[0], "").removeprefix("for example ")
        value = f"[{inner}]" if inner else ""
    else:
        value = ""
    return f"for example {key} = {value}" if value and key else (f"for example {value}" if value else "")
