"""No identifier stands in a journal: every text of every entry and object is looked through.

What is looked for: eleven digits in a row that are not part of a digest or key (a mobile number has as many,
a resident number more), and a resident or mobile number whose digits are set apart. What the vocabulary of
the entries keeps out already is looked for all the same; the vocabulary itself might be wrong. Where the
auditor brings planted identifiers, every byte of the bundle is searched for them, in every form of
`audit.canaries`.
"""

import json
import re
import tomllib
import unicodedata
from collections.abc import Iterable, Iterator
from datetime import date
from itertools import repeat
from typing import Any, Final, Protocol

from audit.entries import CODE, FIELDS, NAME, NAMES, RELEASE, SIZE, Entry
from audit.findings import Check
from protocols.dp.cost import Cost
from protocols.encoding import b64decode
from protocols.envelope import MAX_ENVELOPE_BYTES
from protocols.errors import DecodeError, MinshuError
from protocols.freetext import could_identify
from protocols.identifiers import check_digit

MAX_KEPT: Final = 1 << 16
"""Texts remembered as harmless."""

MAX_PARSED: Final = 1 << 20
"""Longest document that is taken apart text by text; a longer one is looked through as it is."""

MAX_DEPTH: Final = 64
"""Deepest nesting that is followed; no document of this software comes near it."""

MAX_DIGITS: Final = 10
"""Most digits of a length in bytes; a mobile number has eleven."""

_TEXT_KEYS: Final = frozenset(key for key, kind in FIELDS.items() if kind in (NAME, CODE, RELEASE))
_LIST_KEYS: Final = frozenset(key for key, kind in FIELDS.items() if kind is NAMES)
_SIZE_KEYS: Final = frozenset(key for key, kind in FIELDS.items() if kind is SIZE) - {"seq", "size"}
_SENTENCES: Final = {0xFDFA: " ", 0xFDFB: " "}
"""Characters that are whole sentences when written out, of which none holds a digit."""

_WINDOW: Final = 4096
_OVERLAP: Final = 256
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_HEX: Final = re.compile(r"[0-9a-f]{32,}")
_HEX_BYTES: Final = re.compile(rb"[0-9a-f]{32,}")
_RELEASE_ID: Final = re.compile(r"[0-9a-f]{32}")
_APART: Final = re.compile(r"[\s\x00.:/@+=_()\u2010-\u2015\u2212-]+")
_RESIDENT: Final = re.compile(r"(?<!\d)(\d{6})(\d{8})\d{3}[\dXx](?!\d)", re.ASCII)
_MOBILE: Final = re.compile(r"(?<!\d)(?:86)?1[3-9]\d{9}(?!\d)", re.ASCII)
_RUNS: Final = bytes(0x30 if 0x30 <= octet <= 0x39 else 0x20 for octet in range(256))
_RUN: Final = b"0" * 11
_SET_APART: Final = b" .-_/:()"
_KEY: Final = 32
_SIGNATURE: Final = 64
_RESIDENT_DIGITS: Final = 18
_LEAST: Final = 10**10
_MOST: Final = 10**_RESIDENT_DIGITS
"""Numbers that could identify are between these: a mobile number at least, a resident number at most."""

_SPENT: Final = frozenset({"cost"})
"""Keys whose text is a privacy cost: numbers of a fixed form, and of no person."""

_LISTED: Final = frozenset({"values"})
"""Keys of the texts that a job or a policy lists, codes of areas among them."""

_COMMUNITY: Final = re.compile(r"(?:[1-6][0-9]|99)[0-9]{10}")
"""The code of a community: a province first, 99 in a synthetic city; twelve digits, as no identifier has."""

_PARAMETERS: Final = frozenset({"rho", "epsilon", "delta", "bounds", "bins", "low", "high", "end"})
_ROUND: Final = re.compile(r"-?[0-9]+(?:[./][0-9]+)?")
_MAX_FIGURES: Final = 4
"""Most digits other than zero of a number such as 1/1000000000000 or 100000000000."""


class Files(Protocol):
    """What a bundle holds, file by file; `audit.bundle.Bundle` is one."""

    def files(self) -> Iterable[Any]:
        """Yield everything in it, each with `name` and `regular`."""
        ...

    def read(self, name: str, limit: int = ...) -> bytes | None:
        """Return the bytes of a file."""
        ...


def identifying(text: str) -> str:
    """Return what in a text could identify: `long-number`, `resident-id`, `mobile-number`; empty for nothing.

    Digests and keys in hex are not looked into. A long text is looked at part by part.
    """
    if len(text) < 11 or _DIGEST.fullmatch(text):
        return ""
    if len(text) <= _WINDOW:
        return _identifying(text)
    text = _HEX.sub(" ", text)
    parts = (text[start : start + _WINDOW + _OVERLAP] for start in range(0, len(text), _WINDOW))
    return next(filter(None, map(_identifying, parts)), "")


def _identifying(text: str) -> str:
    plain = _HEX.sub(" ", unicodedata.normalize("NFKC", text.translate(_SENTENCES)))
    if could_identify(plain):
        return "long-number"
    joined = _APART.sub("", plain)
    if any(_is_resident(found) for found in _RESIDENT.finditer(joined)):
        return "resident-id"
    return "mobile-number" if could_identify(joined) and _MOBILE.search(joined) else ""


def _is_resident(found: re.Match[str]) -> bool:
    """Tell whether eighteen characters are a resident number: a date of birth, and the right check digit."""
    number, birth = found[0].upper(), found[2]
    try:
        born = date(int(birth[:4]), int(birth[4:6]), int(birth[6:]))
    except ValueError:
        return False
    return 1850 < born.year < 2100 and check_digit(number[:17]) == number[17]


class IdentifierScan:
    """Looks through a log; what it finds stands in one check, by entry or file and never by value."""

    def __init__(self, check: Check, canaries: Iterable[str] = ()) -> None:
        """Begin with nothing looked at; `canaries` are looked for in `bundle` only."""
        self._check = check
        self._canaries = tuple(canaries)
        self._entries = 0
        self._harmless: set[str] = set()

    def entry(self, entry: Entry) -> None:
        """Look through one entry's texts."""
        self._entries += 1
        harmless = self._harmless
        for key, value in entry.body.items():
            if key in _TEXT_KEYS:
                if value not in harmless:
                    self._text(value, entry, key)
            elif key in _LIST_KEYS:
                # What one name does not hold, two after each other may.
                joined = " ".join(value)
                if joined not in harmless:
                    self._list(value, joined, entry, key)
            elif key in _SIZE_KEYS and value >= 10**MAX_DIGITS:
                self._check.found(
                    "long-number", f"entry {entry.seq}", f"its {key} has more than {MAX_DIGITS} digits"
                )
        if entry.actor not in harmless:
            self._text(entry.actor, entry, "actor")
        rule = "" if entry.policy is None else entry.policy.rule
        if rule not in harmless:
            self._text(rule, entry, "policy.rule")

    def _list(self, texts: list[str], joined: str, entry: Entry, key: str) -> None:
        for text in texts:
            if self._text(text, entry, key):
                return
        if not self._text(" ".join(text for text in texts if not _DIGEST.fullmatch(text)), entry, key):
            self._keep(joined)

    def _text(self, text: str, entry: Entry, key: str) -> bool:
        if key == "release" and _RELEASE_ID.fullmatch(text):
            # Random hex, in which eleven digits may stand by chance, but never nothing else.
            found = "long-number" if text.isdecimal() else ""
        else:
            found = identifying(text)
        if found:
            self._check.found(found, f"entry {entry.seq}", f"its {key} could identify a person")
        elif key != "release" and not text.startswith("sha256:"):
            self._keep(text)
        return bool(found)

    def _keep(self, text: str) -> None:
        if len(self._harmless) >= MAX_KEPT:
            self._harmless.clear()
        self._harmless.add(text)

    def finish(self) -> None:
        """Count the entries; call once, after the last one."""
        if self._entries:
            self._check.saw("entries", self._entries)

    def bundle(self, bundle: Files) -> None:
        """Look through every object, and with canaries through every byte.

        What cannot be read is not looked into; that it cannot be is another question's answer.
        """
        from audit.canaries import Canaries

        planted = Canaries(self._canaries) if self._canaries else None
        self._check.figures["canaries"] = len(self._canaries)
        for file in bundle.files():
            is_object = file.name.startswith("objects/")
            if not file.regular or not (is_object or planted):
                continue
            try:
                data = bundle.read(file.name)
            except (DecodeError, OSError):
                continue
            if data is not None:
                self.file(file.name, data, planted=planted, as_object=is_object)

    def file(self, name: str, data: bytes, *, planted: Any = None, as_object: bool = True) -> None:
        """Look through one file."""
        texts = [data]
        if as_object:
            inside, found = _looked_into(data)
            if inside is not None:
                texts.append(inside)
            if found:
                self._check.found(found, name, "a text in this object could identify a person")
            else:
                self._check.saw(name)
        for text in texts if planted is not None else ():
            for number, form, _, _ in planted.search(text):
                self._check.found("canary", name, f"planted identifier {number} stands in it as {form}")


def _looked_into(data: bytes) -> tuple[bytes | None, str]:
    """Return an envelope's payload, None for another object, and what of either could identify a person."""
    payload: bytes | None = None
    if data.startswith(b'{"payload":"') and len(data) <= MAX_ENVELOPE_BYTES:
        try:
            document = json.loads(data)
            payload = b64decode(document.pop("payload"))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, MinshuError):
            payload = None  # no envelope: it is looked into as any text
        else:
            found = next(filter(None, map(identifying, _around(document))), "")
            if found:
                return payload, found
    text = data if payload is None else payload
    return payload, _in_text(text) if _suspicious(text) else ""


def _around(document: dict[str, Any]) -> Iterator[str]:
    """Yield the texts of an envelope. Its signatures are random text, in which digits may stand by chance."""
    for text, key in _walk(document, []):
        if key != "sig" or len(text) < _SIGNATURE:
            yield text


def _suspicious(data: bytes) -> bool:
    """Tell, fast, whether a text has to be looked into: it has eleven digits in a row, apart or not."""
    if not data.isascii():
        return True
    if _RUN not in data.translate(_RUNS, _SET_APART):
        return False
    return _RUN in _HEX_BYTES.sub(b" ", data).translate(_RUNS, _SET_APART)


def _in_text(data: bytes) -> str:
    """Return what could identify a person in a document: JSON or TOML text by text, else as it is."""
    if len(data) == _KEY and not data.isascii():
        return ""  # a key; a number in it would be chance
    text = data.decode("utf-8", "replace")
    return next(filter(None, map(identifying, _texts(text))), "")


def _texts(text: str) -> Iterator[str]:
    if len(text) > MAX_PARSED:
        yield text
        return
    for parse in (json.loads, tomllib.loads):
        try:
            parsed = parse(text)
        except (ValueError, RecursionError):
            continue
        deeper: list[Any] = []
        yield from (said for said, key in _walk(parsed, deeper) if not _is_known(said, key))
        if parse is tomllib.loads:
            yield from (line.partition("#")[2] for line in text.splitlines())
        if not deeper:
            return
    # A signed note: its signatures are random text, in which digits may stand by chance.
    yield from (line for line in text.splitlines() if not line.startswith("\u2014 "))


def _walk(value: Any, deeper: list[Any]) -> Iterator[tuple[str, str]]:
    """Yield every text of a document with its key; put what lies deeper than is followed into `deeper`."""
    path: list[Iterator[tuple[str, Any]]] = [iter([("", value)])]
    while path:
        key, found = next(path[-1], (None, None))
        if key is None:
            path.pop()
            continue
        match found:
            case dict() | list() if len(path) > MAX_DEPTH:
                deeper.append(found)
            case dict():
                yield from ((name, "") for name in found)
                path.append(iter(found.items()))
            case list():
                path.append(zip(repeat(key), found, strict=False))
            case str():
                yield found, key
            case int() if _LEAST <= found < _MOST and _is_number(str(found)):
                yield str(found), key


def _is_number(digits: str) -> bool:
    return len(digits) == _RESIDENT_DIGITS or _MOBILE.fullmatch(digits) is not None


def _is_known(text: str, key: str) -> bool:
    """Tell whether a text is long for what its key says, and of no person."""
    if key in _SPENT:
        return _is_cost(text)
    if key in _LISTED:
        return _COMMUNITY.fullmatch(text) is not None
    figures = sum(digit in "123456789" for digit in text)
    return key in _PARAMETERS and figures <= _MAX_FIGURES and _ROUND.fullmatch(text) is not None


def _is_cost(text: str) -> bool:
    try:
        Cost.decode(text)
    except DecodeError:
        return False
    return True
