"""TOML → frozen structs, strictly, with the line of whatever is wrong.

msgspec checks the leaves; the walk over tables and lists is ours, because msgspec's own errors name neither
the line nor the key inside a table of tables.
"""

import re
import tomllib
import types
import typing
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final, NoReturn

import msgspec

from policies.lines import Lines, Path, locate
from protocols.errors import PolicyInvalid

MAX_DEPTH: Final = 16
"""Deepest nesting of tables and lists that is read."""

DECIMAL: Final = re.compile(r"-?[0-9]{1,18}(?:\.[0-9]{1,18})?|[0-9]{1,18}e-[0-9]{1,2}")


_UNREADABLE: Final = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u061c\u115f\u1160\u180e\u200b-\u200f\u2028-\u202e"
    r"\u2060-\u206f\u2800\u3164\ufeff\uffa0\U000e0000-\U000e007f]"
)
"""Characters that show as nothing or turn the text around them: people sign what they read."""


class _Float:
    """Stands where the text has a TOML float, so that the walk can refuse it at its line."""

    def __init__(self, _: str) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed TOML text and where everything in it stands."""

    root: dict[str, Any]
    lines: Lines

    def fail(self, path: Path, message: str, *, code: str = "policy-invalid", hint: str = "") -> NoReturn:
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
        raise PolicyInvalid(f"{what} is nested too deeply", code="too-deep") from None
    except ValueError:
        # Python reads no whole number of more than 4300 digits, and tomllib lets that pass as it is.
        raise PolicyInvalid(f"{what} has a number that is too long", code="bad-number") from None
    document = Document(root, locate(text))
    _refuse_what_nobody_reads(document, what)
    return document


def _refuse_what_nobody_reads(document: Document, what: str) -> None:
    """Refuse deep nesting, and unreadable characters that an escape puts into a text or a key."""
    stack: list[tuple[Path, Any]] = [((), document.root)]
    while stack:
        path, value = stack.pop()
        if len(path) > MAX_DEPTH:
            document.fail(path[:1], f"nested deeper than {MAX_DEPTH} levels", code="too-deep")
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
        _expect(document, value, dict, path, "a table")
        return {
            _leaf(document, arguments[0], key, (*path, key)): build(
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
        document.fail(path, 'expected a decimal as text, for example "0.30"')
    return Fraction(text)


def _without_none(kind: Any) -> Any:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        inner = [one for one in typing.get_args(kind) if one is not type(None)]
        if len(inner) == 1:
            return inner[0]
    return kind


def _expect(document: Document, value: Any, kind: type, path: Path, name: str) -> None:
    if not isinstance(value, kind):
        document.fail(path, f"expected {name}")


def _struct(document: Document, kind: type[msgspec.Struct], value: Any, path: Path) -> Any:
    _expect(document, value, dict, path, "a table")
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
            document.fail(path, f"the key {key} is missing", code="missing-key", hint=f"add {key}")
    return kind(
        **{
            f.name: build(document, f.type, value[key], (*path, key))
            for key, f in known.items()
            if key in value
        }
    )


def _items(document: Document, kind: Any, value: Any, path: Path) -> tuple[Any, ...]:
    _expect(document, value, list, path, "a list")
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
        document.fail(path, f"a {type(value).__name__}, expected text, a whole number or true/false")
    return value


def _refuse_float(document: Document, path: Path) -> NoReturn:
    document.fail(
        path,
        "a number with a point, expected a whole number or decimal text",
        hint='write decimals as text, for example "0.30": a float would not be exact',
    )


def _leaf(document: Document, kind: Any, value: Any, path: Path) -> Any:
    try:
        return msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError as error:
        expected = _description(kind)
        document.fail(path, f"expected {expected}" if expected else str(error).partition(" - at ")[0])


def _description(kind: Any) -> str:
    """Return what the type says of itself in words, through `Meta(description=…)`."""
    for one in typing.get_args(kind) if typing.get_origin(kind) is typing.Annotated else ():
        if isinstance(one, msgspec.Meta) and one.description:
            return one.description
    return ""
