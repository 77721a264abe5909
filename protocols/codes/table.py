"""A code table: codes with titles, the days on which each was in force, and what became of it afterwards.

A table is named `NAME@VERSION`. The version of a national table is the year of the standard; that of a
department's own is the first digits of its content's digest, so that two tables of one name that differ are
told apart wherever one is named.
"""

import csv
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from io import StringIO
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Final, Self

from protocols.encoding import canonical_json, sha256_digest
from protocols.errors import InputError
from protocols.freetext import UNREADABLE

MAX_CODES: Final = 1_000_000
"""Most codes of one table; the whole nation has about 620,000 communities."""

MAX_CODE: Final = 64
"""Most characters of a code: as many as name a cell of a table."""

MAX_TITLE: Final = 128
DIGEST_DIGITS: Final = 10
"""Fewer than a mobile number has: catalogues show no run of eleven digits."""

_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,46}[a-z0-9])?")
_FIELDS: Final = ("code", "title", "valid_from", "valid_to", "successor")
_TABLE_HINT: Final = (
    "write the columns code, title, valid_from, valid_to, successor; the last three may be empty"
)


def normalise_value(text: str) -> str:
    """Return a local value for comparing: NFKC, without blanks and invisible characters around it."""
    normal = unicodedata.normalize("NFKC", text)
    first, end = 0, len(normal)
    while first < end and _is_blank(normal[first]):
        first += 1
    while first < end and _is_blank(normal[end - 1]):
        end -= 1
    return normal[first:end]


def _is_blank(character: str) -> bool:
    return character.isspace() or UNREADABLE.match(character) is not None


@dataclass(frozen=True, slots=True)
class Code:
    """One code, in force from one day until another.

    Attributes:
        code: as it stands in data.
        title: what people call it.
        valid_from: the first day on which it is in force; None for always.
        valid_to: the first day on which it is not any more; None while it is.
        successor: the one code that stands for all of it since `valid_to`; empty where there is none, or
            where it was divided among several.
    """

    code: str
    title: str
    valid_from: date | None = None
    valid_to: date | None = None
    successor: str = ""

    def in_force(self, day: date) -> bool:
        """Whether it is in force on a day."""
        return (self.valid_from is None or self.valid_from <= day) and (
            self.valid_to is None or day < self.valid_to
        )

    def to_json(self) -> dict[str, str]:
        """Return the plain JSON form; what is left at its default is left out."""
        plain = {
            "code": self.code,
            "title": self.title,
            "valid_from": "" if self.valid_from is None else self.valid_from.isoformat(),
            "valid_to": "" if self.valid_to is None else self.valid_to.isoformat(),
            "successor": self.successor,
        }
        return {key: text for key, text in plain.items() if text}

    @classmethod
    def from_json(cls, plain: object, where: str) -> Self:
        """Read the plain JSON form; days may be dates, as TOML has them.

        Raises:
            InputError: `bad-code-table`.
        """
        if not isinstance(plain, Mapping) or not {"code", "title"} <= set(plain) <= set(_FIELDS):
            raise _bad(f"{where} does not have the fields of a code", _TABLE_HINT)
        code, title, successor = (plain.get(name, "") for name in ("code", "title", "successor"))
        for text in (code, title, successor):
            if not isinstance(text, str):
                raise _bad(f"{where} has a value that is no text", 'write codes as text: "01"')
        return cls(
            code,
            title,
            _day(plain.get("valid_from", ""), where),
            _day(plain.get("valid_to", ""), where),
            successor,
        )


@dataclass(frozen=True)
class CodeTable:
    """A frozen table of codes. A code that was abolished and came back is listed once for each time.

    Attributes:
        name: `gbt2261.1`, or `districts`.
        version: the year of the standard, or digits of the digest.
        title: what people call it.
        codes: in their order.
    """

    name: str
    version: str
    title: str
    codes: tuple[Code, ...] = field(repr=False)

    @classmethod
    def of(cls, name: str, version: str, title: str, codes: Iterable[Code]) -> Self:
        """Return a table, checked; without a version, a department's own, whose version is its digest.

        Raises:
            InputError: `bad-code-table`: no code or too many; a code that is empty, long, unreadable, or not
                in its normal spelling; two times of one code that overlap; a successor that is not in the
                table, that has ended before, or that a code in force has.
        """
        if not _NAME.fullmatch(name):
            raise _bad(
                "a code table's name does not have the expected form", "use lower-case letters and digits"
            )
        table = cls(name, version, title, tuple(codes))
        table._check()
        return table if version else cls(name, table.digest[7 : 7 + DIGEST_DIGITS], title, table.codes)

    def to_json(self) -> dict[str, Any]:
        """Return the plain JSON form, without name and version."""
        return {"title": self.title, "codes": [code.to_json() for code in self.codes]}

    @property
    def id(self) -> str:
        """`NAME@VERSION`."""
        return f"{self.name}@{self.version}"

    @cached_property
    def digest(self) -> str:
        """`sha256:` + digest of title and codes."""
        return sha256_digest(canonical_json(self.to_json()))

    @cached_property
    def titles(self) -> Mapping[str, str]:
        """Every code that was ever in force, with its last title."""
        return MappingProxyType({code: times[-1].title for code, times in self._times.items()})

    def __contains__(self, code: object) -> bool:
        """Whether the code was ever in force."""
        return code in self._times

    def in_force(self, day: date) -> frozenset[str]:
        """Return the codes that are in force on a day."""
        return frozenset(each.code for each in self.codes if each.in_force(day))

    def as_of(self, code: str, day: date) -> str | None:
        """Return the code that stands for `code` on a day: itself, or the successor of its successors.

        None for a code that is not in the table, not in force yet, or gone without one successor. A code that
        was in force again later is followed from its last time.
        """
        times = self._times.get(code, ())
        if any(each.in_force(day) for each in times):
            return code
        past = [each for each in times if each.valid_to is not None and each.valid_to <= day]
        while past:
            ended = past[-1]
            if not ended.successor or ended.valid_to is None:
                return None
            later = [each for each in self._times[ended.successor] if _outlasts(each, ended.valid_to)]
            if any(each.in_force(day) for each in later):
                return ended.successor
            past = [each for each in later if each.valid_to is not None and each.valid_to <= day]
        return None

    @cached_property
    def _times(self) -> dict[str, tuple[Code, ...]]:
        found: dict[str, list[Code]] = {}
        for each in self.codes:
            found.setdefault(each.code, []).append(each)
        return {code: tuple(sorted(times, key=_start)) for code, times in found.items()}

    def _check(self) -> None:
        if not 1 <= len(self.codes) <= MAX_CODES:
            raise _bad(
                f"code table of {len(self.codes)} codes, expected 1 to {MAX_CODES}", "list each code once"
            )
        for at, each in enumerate(self.codes, start=1):
            if not each.code or len(each.code) > MAX_CODE or normalise_value(each.code) != each.code:
                raise _bad(
                    f"code number {at} is empty, longer than {MAX_CODE} characters or has blanks around it",
                    "write codes in half-width characters",
                )
            if UNREADABLE.search(each.code + each.title) or not 1 <= len(each.title) <= MAX_TITLE:
                raise _bad(f"code number {at} has no title that can be read", _TABLE_HINT)
            if each.valid_from and each.valid_to and each.valid_from >= each.valid_to:
                raise _bad(f"code number {at} ends before it begins", _TABLE_HINT)
        for times in self._times.values():
            for earlier, later in pairwise(times):
                if (
                    earlier.valid_to is None
                    or later.valid_from is None
                    or later.valid_from < earlier.valid_to
                ):
                    raise _bad("a code is in the table twice at one time", "give each time its own days")
        for at, each in enumerate(self.codes, start=1):
            if not each.successor:
                continue
            if each.valid_to is None:
                raise _bad(f"code number {at} has a successor, but no day on which it ends", _TABLE_HINT)
            follows = self._times.get(each.successor, ())
            if not any(_outlasts(next_, each.valid_to) for next_ in follows):
                raise _bad(
                    f"the successor of code number {at} is not in the table, or has ended before it",
                    "name the code that stands for it from the next day on",
                )


def _outlasts(code: Code, day: date) -> bool:
    # Strictly later: whoever follows successors comes to an end.
    return code.valid_to is None or code.valid_to > day


def _start(code: Code) -> date:
    return code.valid_from or date.min


class CodeTables:
    """The tables that a column may name: the national ones, and a department's own."""

    def __init__(self, tables: Iterable[CodeTable]) -> None:
        """Collect tables; of one id there is one.

        Raises:
            InputError: `bad-code-table`: two tables of one name and version.
        """
        self._by_id: dict[str, CodeTable] = {}
        for table in tables:
            if table.id in self._by_id and self._by_id[table.id].digest != table.digest:
                raise _bad(f"two code tables are called {table.id}", "give each a name of its own")
            self._by_id[table.id] = table

    def __iter__(self) -> Iterator[CodeTable]:
        """Yield each table."""
        return iter(self._by_id.values())

    def __getitem__(self, wanted: str) -> CodeTable:
        """Return the table of an id.

        Raises:
            InputError: `unknown-code-table`: no such table; `unknown-version`: none of that version.
        """
        if wanted in self._by_id:
            return self._by_id[wanted]
        name, _, version = wanted.partition("@")
        versions = [table.id for table in self.named(name)]
        raise InputError(
            f"code table {name} has no version {version}"
            if version
            else f"code table {name} needs a version",
            code="unknown-version",
            hint=f"known: {', '.join(versions)}",
        )

    def named(self, name: str) -> tuple[CodeTable, ...]:
        """Return the versions of a table.

        Raises:
            InputError: `unknown-code-table`.
        """
        found = tuple(table for table in self if table.name == name)
        if not found:
            raise InputError(
                "no code table of that name is known here",
                code="unknown-code-table",
                hint=f"known: {', '.join(sorted(self._by_id))}; your own are read from codes/NAME.csv",
            )
        return found


def read_code_table(name: str, text: str) -> CodeTable:
    """Return a department's own table from the text of a CSV file with one header line.

    Columns, in any order: `code`, `title`; and where wanted `valid_from`, `valid_to` (`2014-02-12`) and
    `successor`. Its title is its name.

    Args:
        name: what the file is called, without its ending.
        text: what is in it; a byte-order mark is skipped.

    Raises:
        InputError: `bad-code-table`, with the number of the line, never with what stands there.
    """
    rows = csv.reader(StringIO(text.removeprefix("\ufeff"), newline=""), strict=True)
    try:
        header = next(rows, [])
        if len(set(header)) != len(header) or not {"code", "title"} <= set(header) <= set(_FIELDS):
            raise _bad(f"code table {name}: the header is not that of a code table", _TABLE_HINT)
        codes = []
        for row in rows:
            where = f"code table {name}, line {rows.line_num}"
            if not row:
                continue
            if len(row) != len(header):
                raise _bad(f"{where}: {len(row)} values, expected {len(header)}", _TABLE_HINT)
            codes.append(Code.from_json(dict(zip(header, map(str.strip, row), strict=True)), where))
    except csv.Error:
        raise _bad(f"code table {name}, line {rows.line_num}: not CSV", _TABLE_HINT) from None
    return CodeTable.of(name, "", name, codes)


def _day(value: object, where: str) -> date | None:
    if value in ("", None):
        return None
    if type(value) is date:
        return value
    try:
        found = date.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        found = None
    if found is None or found.isoformat() != value:
        raise _bad(f"{where} has a day that is none", 'write days as "2014-02-12"')
    return found


def _bad(message: str, hint: str) -> InputError:
    return InputError(message, code="bad-code-table", hint=hint)
