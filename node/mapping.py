"""How a department's own values become standard codes while a dataset is read.

A register says 男, M or 1; jobs, quality and the catalogue see the code of the standard alone. Nothing is
guessed: a value is a code of the table, or the description says which one it stands for, or it is unmapped,
which makes it null and counts it. The counts stay in the department.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

import msgspec
import numpy as np
from msgspec import Meta

from node.sources import Source, SourceColumn, check_columns
from protocols.codes import NATIONAL, Areas, CodeTable, CodeTables, normalise_value, read_code_table
from protocols.codes.areas import area_code, at_level, level_of, lineage
from protocols.encoding import canonical_json, sha256_digest
from protocols.errors import DecodeError, InputError
from protocols.freetext import could_identify, printable
from protocols.ids import Digest

if TYPE_CHECKING:
    import pyarrow as pa

MAX_CODE_FILE_BYTES: Final = 64 << 20
MAX_LOCAL: Final = 128
"""Most characters of a local value that stands for a code. What is longer is unmapped, and not looked at."""

MAX_VALUES: Final = 65_536
"""Most local values that one column's mapping lists."""

MAX_SHOWN: Final = 64
"""Most characters of a local value that a terminal shows."""

MAX_COUNTED: Final = 1 << 20
"""Most different unmapped values of a column that a survey tells apart."""

_REMEMBERED: Final = 1 << 16
"""How many different values a translation remembers."""

_SEPARATORS: Final = re.compile(r"[\W_]+")
_FILE: Final = re.compile(r"([a-z0-9](?:[a-z0-9._-]{0,46}[a-z0-9])?)(?:@[A-Za-z0-9._-]{1,64})?\.csv")

LocalValue = Annotated[
    str,
    Meta(max_length=MAX_LOCAL, description="a value as it stands in the table", examples=["男"]),
]
StandardCode = Annotated[
    str,
    Meta(min_length=1, max_length=64, description="a code of the table", examples=["1"]),
]
TableId = Annotated[
    str,
    Meta(
        pattern=r"^[a-z0-9][a-z0-9._-]{0,47}@[a-z0-9][a-z0-9.-]{0,15}\Z",
        description="a code table and its version",
        examples=["gbt2261.1@2003"],
    ),
]

TableDigest = Annotated[
    str,
    Meta(
        pattern=r"^sha256:[0-9a-f]{64}\Z",
        description="the digest of a code table",
        examples=["sha256:" + "0" * 64],
    ),
]


class ColumnMapping(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """How the values of one column become codes of one table.

    Attributes:
        table: the code table and its version.
        values: local value → code. Both sides are compared by `normalise_value`; what is a code already needs
            no entry. Where an entry gives a code of the table another meaning, the codes of this column are
            the department's own, and only what is listed passes. An entry for "" is for missing values.
        default: what becomes of other values: `null`, or `keep` to leave them as they are. Both are counted.
        as_of: of areas: a code that was abolished by this day is that of its successor, and only what is in
            force on it passes. None: every code that was ever in force passes as it is.
        level: of areas: the level to which codes are rolled up. Addresses in words are then taken apart, too.
        sha256: digest of the whole table. Written when the dataset is registered: a version says a few of its
            digits alone, and another table that has the same ones is not the one that was registered.
    """

    table: TableId
    values: Annotated[dict[LocalValue, StandardCode], Meta(max_length=MAX_VALUES)] = {}
    default: Literal["null", "keep"] = "null"
    as_of: date | None = None
    level: Literal["province", "city", "county", "street", "community"] | None = None
    sha256: TableDigest | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the plain JSON form; what is left at its default is left out."""
        return dict(msgspec.to_builtins(self))

    @classmethod
    def from_json(cls, plain: object) -> Self:
        """Read the plain JSON form strictly.

        Raises:
            DecodeError: an unknown key, or a value not of its form.
        """
        try:
            return msgspec.convert(plain, cls, strict=True)
        except msgspec.ValidationError as error:
            raise DecodeError(
                f"a column's mapping is wrong at {str(error).rpartition(' - at ')[2]}",
                code="bad-mapping",
                hint="write table, and where wanted values, default, as_of and level",
            ) from None


class Translator:
    """Turns the values of one column into codes."""

    def __init__(self, column: str, mapping: ColumnMapping, tables: CodeTables) -> None:
        """Check a mapping and make it ready.

        Raises:
            InputError: `unknown-code-table`, `unknown-version`; `not-in-table`: a code that is not in the
                table, or not as of the day; `mapped-twice`: two spellings of one value, with different codes;
                `no-areas`: a level of a table that is not of areas; `code-table-changed`: it is not the table
                that the dataset was registered with.
        """
        self.column, self.mapping = column, mapping
        self.table = tables[mapping.table]
        if mapping.sha256 not in (None, self.table.digest):
            raise InputError(
                f"column {column}: code table {self.table.id} is not the one that the dataset was registered"
                " with",
                code="code-table-changed",
                hint="put the former file back, or register the dataset again",
            )
        is_areas = all(area_code(code) == code for code in self.table.titles)
        if mapping.level and not is_areas:
            raise InputError(
                f"the mapping of column {column} names a level, but {self.table.id} is no table of areas",
                code="no-areas",
                hint="leave out level, or name a table of areas",
            )
        self.is_areas = is_areas
        self._areas = Areas(self.table) if is_areas and mapping.level else None
        self._exact: dict[str, str] = {}
        for number, (local, wanted) in enumerate(mapping.values.items(), start=1):
            normal, code = normalise_value(local), self._standard(normalise_value(wanted))
            if code is None:
                raise InputError(
                    f"column {column}: code number {number} of its mapping is not in {self.table.id}"
                    + (f" as of {mapping.as_of}" if mapping.as_of else ""),
                    code="not-in-table",
                    hint=f"see its codes: minshu-node mapping codes {self.table.id}",
                )
            if self._exact.setdefault(normal, code) != code:
                raise InputError(
                    f"column {column}: value number {number} of its mapping differs from another one only in"
                    " blanks or width of characters, but has another code",
                    code="mapped-twice",
                    hint="list each value once: full-width and half-width characters are the same",
                )
        own = any(self._standard(local) not in (None, code) for local, code in self._exact.items())
        self._standard_passes = not own
        self._seen: dict[str, str | None] = {}

    def code(self, value: str) -> str | None:
        """Return the code of a value that is not blank, None if it is unmapped."""
        value = bounded(value)
        if len(value) > MAX_LOCAL:
            return None
        if value in self._seen:
            return self._seen[value]
        normal = normalise_value(value)
        found = self._exact.get(normal)
        if found is None and self._standard_passes:
            found = self._standard(normal) or self._address(normal)
        if len(self._seen) == _REMEMBERED:
            self._seen.clear()
        self._seen[value] = found
        return found

    def pinned(self) -> ColumnMapping:
        """Return the mapping with the digest of its table."""
        return msgspec.structs.replace(self.mapping, sha256=self.table.digest)

    @property
    def areas(self) -> CodeTable | None:
        """The table, where it is one of areas."""
        return self.table if self.is_areas else None

    @property
    def of_missing(self) -> str | None:
        """The code of a missing value, None where it stays missing."""
        return self._exact.get("")

    def _standard(self, text: str) -> str | None:
        """Return the code that stands for a code as the mapping wants it, None for what is none."""
        code = area_code(text) if self.is_areas else text
        if code is None:
            return None
        if self._areas is None or self.mapping.level is None:
            return self._now(code)
        # What is smaller than the table lists belongs where the area it lies in belongs now.
        listed = next((each for each in lineage(code) if each in self.table), None)
        if listed is None or self._areas.first_unlisted(code):
            return None
        now = self._now(listed)
        above = None if now is None else at_level(now, self.mapping.level)
        return None if above is None else self._now(above)

    def _now(self, code: str) -> str | None:
        day = self.mapping.as_of
        if code not in self.table:
            return None
        return code if day is None else self.table.as_of(code, day)

    def _address(self, text: str) -> str | None:
        if self._areas is None:
            return None
        # Without a day nothing tells which code of an area is meant that got another one.
        address = self._areas.split(text, recoded=self.mapping.as_of is not None)
        return self._standard(address.code) if address and address.code else None

    def listed(self) -> Mapping[str, str] | None:
        """Return raw value → code where that is all there is to it, None where values are computed.

        The raw values are the spellings of the mapping and the codes that pass as they are. Any other
        spelling, such as in full-width characters, may be mapped, too: ask `code`.
        """
        if self.mapping.level or self.mapping.default == "keep" or "" in self._exact:
            return None
        raw = {code: self._standard(code) for code in self.table.titles} if self._standard_passes else {}
        raw |= self._exact
        raw |= {local: self._exact[normalise_value(local)] for local in self.mapping.values}
        return MappingProxyType({value: code for value, code in raw.items() if code is not None})

    def to_json(self) -> dict[str, Any]:
        """Return all that decides what a value becomes."""
        return {"column": self.column, "mapping": self.pinned().to_json()}


def bounded(value: str) -> str:
    """Return a local value without blanks around it if it is long, and cut where it is too long to be mapped.

    Whoever remembers values would hold the table, if they were remembered at any length.
    """
    return value if len(value) <= MAX_LOCAL else value.strip()[: MAX_LOCAL + 1]


class MappedSource:
    """A source whose mapped columns hold standard codes, as text. The rest of it is as it was.

    Attributes:
        source: what is mapped.
    """

    def __init__(self, source: Source, translators: Iterable[Translator]) -> None:
        """Map columns of `source`; nothing is read."""
        self.source = source
        self._translators = {each.column: each for each in translators}
        self._unmapped: dict[str, int] = {}

    def __enter__(self) -> Self:
        """Begin to read. Raises as `Source.__enter__`."""
        self.source.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        """Let go of whatever was opened."""
        self.source.__exit__(*raised)

    def columns(self) -> tuple[SourceColumn, ...]:
        """Return all columns, mapped ones as text. Raises as `Source.columns`, or if a mapped one is gone."""
        known = self.source.columns()
        check_columns(known, [*self._translators])
        return tuple(SourceColumn(c.name, "text") if c.name in self._translators else c for c in known)

    def snapshot(self) -> str:
        """Return when the table was last written. Raises as `Source.snapshot`."""
        return self.source.snapshot()

    def fingerprint(self) -> str:
        """Return a digest of the table and of how it is mapped. Raises as `Source.fingerprint`."""
        mapped = [each.to_json() for _, each in sorted(self._translators.items())]
        return sha256_digest(canonical_json([self.source.fingerprint(), mapped]))

    def read(self, columns: Sequence[str]) -> Iterator["pa.RecordBatch"]:
        """Yield batches with codes. Raises as `Source.read`, or `not-text`: of a mapped column."""
        self.columns()
        for name in columns:
            if name in self._translators:
                self._unmapped[name] = 0
        return self._mapped(self.source.read(columns))

    def _mapped(self, batches: Iterator["pa.RecordBatch"]) -> Iterator["pa.RecordBatch"]:
        for batch in batches:
            for at, name in enumerate(batch.schema.names):
                if name in self._translators:
                    codes, unmapped = translated(batch.column(at), self._translators[name])
                    self._unmapped[name] += unmapped
                    batch = batch.set_column(at, name, codes)  # noqa: PLW2901  # one column after the other
            yield batch

    @property
    def unmapped(self) -> Mapping[str, int]:
        """How many rows of each mapped column had an unmapped value, in its last reading."""
        return MappingProxyType(self._unmapped)

    def pushable(self, column: str) -> bool:
        """Whether a database can be asked about the column: it is not mapped, or `translation` says how."""
        return column not in self._translators or self.translation(column) is not None

    def translation(self, column: str, raw: Iterable[str] | None = None) -> Mapping[str, str] | None:
        """Return raw value → code of a mapped column; None if it is not mapped, or its values are computed.

        Without `raw` it is complete for a table that holds nothing but these keys: blanks and full-width
        characters around them are not among them. Given the different values that the table does hold, it is
        complete for them: what is not among its keys is unmapped. A database has to compare bytes with these,
        not letters without their case.
        """
        translator = self._translators.get(column)
        listed = None if translator is None else translator.listed()
        if translator is None or listed is None or raw is None:
            return listed
        codes = {value: translator.code(value) for value in raw if normalise_value(bounded(value))}
        return MappingProxyType({value: code for value, code in codes.items() if code is not None})


def translated(
    column: "pa.Array", translator: Translator, tell: Callable[[str, int], None] | None = None
) -> tuple["pa.Array", int]:
    """Return a column's codes, text, and how many rows had an unmapped value.

    Args:
        column: text, numbers, days or flags, in Arrow; numbers without a fraction are read as whole.
        translator: what its values become.
        tell: called with each different unmapped value and in how many rows it is.

    Raises:
        InputError: `not-text`.
    """
    import pyarrow as pa

    distinct, places = _distinct(column, translator.column)
    missing, keep = translator.of_missing, translator.mapping.default == "keep"
    codes: list[str | None] = []
    unmapped: list[int] = []
    for place, value in enumerate(distinct):
        code = None if value is None else translator.code(value)
        if code is None and (value is None or not normalise_value(bounded(value))):
            code = missing
        elif code is None:
            unmapped.append(place)
            code = value if keep else None
        codes.append(code)
    # Null is the last place.
    found = pa.array([*codes, missing], pa.string()).take(places.fill_null(len(codes)))
    if not unmapped:
        return found, 0
    counts = np.bincount(places.drop_null().to_numpy(), minlength=len(distinct))[unmapped]
    if tell is not None:
        for place, count in zip(unmapped, counts.tolist(), strict=True):
            tell(bounded(distinct[place] or ""), count)
    return found, int(counts.sum())


def _distinct(column: Any, name: str) -> tuple[list[str | None], Any]:
    """Return the different values of a column as text, and each row's place among them, null for null."""
    import pyarrow as pa

    is_ = pa.types
    kind = column.type.value_type if is_.is_dictionary(column.type) else column.type
    numbers = is_.is_floating(kind) or is_.is_decimal(kind)
    if not (
        numbers
        or is_.is_string(kind)
        or is_.is_large_string(kind)
        or is_.is_string_view(kind)
        or is_.is_integer(kind)
        or is_.is_boolean(kind)
        or is_.is_date(kind)
        or is_.is_null(kind)
    ):
        raise _not_text(name, "is of a type that has no codes")
    try:
        if not is_.is_dictionary(column.type):
            plain = column.cast(pa.string()) if is_.is_null(kind) or is_.is_string_view(kind) else column
            column = plain.dictionary_encode()
        if numbers:
            return [_number(value) for value in column.dictionary.to_pylist()], column.indices
        texts = column.dictionary.cast(pa.string())
        texts.validate(full=True)
        return texts.to_pylist(), column.indices
    except (pa.ArrowException, UnicodeDecodeError):
        # The message may quote the value.
        raise _not_text(name, "is not text in UTF-8") from None


def _number(value: Any) -> str | None:
    """Return a number as text, a whole one without a point: spreadsheets have no other numbers than 1.0."""
    if value is None or value != value:  # noqa: PLR0124  # not a number
        return None
    whole = value.is_integer() if isinstance(value, float) else value == value.to_integral_value()
    return str(int(value)) if whole else str(value)


def _not_text(name: str, why: str) -> InputError:
    return InputError(
        f"column {name}, which has a mapping, {why}",
        code="not-text",
        hint="cast it to text or whole numbers at the source",
    )


def mapped_source(source: Source, mapping: Mapping[str, ColumnMapping], codes: Path | None) -> Source:
    """Return a source that reads as its dataset's description says.

    Args:
        source: the table.
        mapping: by column; a source without any is returned as it is.
        codes: the folder of the department's own code tables, None for none.

    Raises:
        InputError: as `Translator`, and as `own_tables`.
    """
    if not mapping:
        return source
    return MappedSource(source, translators(mapping, codes))


def translators(mapping: Mapping[str, ColumnMapping], codes: Path | None) -> list[Translator]:
    """Return what translates each column. Raises as `mapped_source`."""
    wanted = {each.table.partition("@")[0] for each in mapping.values()}
    tables = known_tables(codes, wanted)
    return [Translator(column, each, tables) for column, each in mapping.items()]


def unmapped_of(source: Source) -> Mapping[str, int]:
    """Return how many rows of each mapped column that was read had an unmapped value."""
    return source.unmapped if isinstance(source, MappedSource) else MappingProxyType({})


def pinned(mapping: Mapping[str, ColumnMapping], codes: Path | None) -> dict[str, ColumnMapping]:
    """Return a mapping with the digests of its tables, as they are now. Raises as `mapped_source`."""
    return {each.column: each.pinned() for each in translators(mapping, codes)}


def record_of(mapping: Mapping[str, ColumnMapping]) -> dict[str, Digest]:
    """Return the digest of how each mapped column becomes codes, for the one mapping that was registered."""
    return {column: sha256_digest(canonical_json(each.to_json())) for column, each in sorted(mapping.items())}


def known_tables(codes: Path | None, names: Iterable[str] | None = None) -> CodeTables:
    """Return the national tables and the department's own.

    These lie as `NAME.csv` in its folder; past versions may lie beside them as `NAME@ANYTHING.csv`.

    Args:
        codes: the folder; None, or one that does not exist, for none.
        names: which tables are wanted, None for all.

    Raises:
        InputError: `bad-code-table`: a file that is none, or that has the name of a national table.
    """
    own = []
    for path in sorted(codes.glob("*.csv")) if codes is not None else ():
        found = _FILE.fullmatch(path.name)
        if found is None or any(table.name == found.group(1) for table in NATIONAL):
            raise InputError(
                "a file of a code table has a national table's name, or one that is not of the expected form",
                code="bad-code-table",
                hint="call it codes/NAME.csv, in lower-case letters, digits, dots and dashes",
            )
        if names is None or found.group(1) in names:
            own.append(_own_table(path, found.group(1)))
    return CodeTables([*NATIONAL, *own])


def _own_table(path: Path, name: str) -> CodeTable:
    try:
        status = path.stat()
    except OSError as error:
        raise _unreadable(name, error.strerror or "") from None
    return _read_table(path, name, (status.st_ino, status.st_size, status.st_mtime_ns))


@lru_cache(maxsize=16)
def _read_table(path: Path, name: str, _: tuple[int, int, int]) -> CodeTable:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CODE_FILE_BYTES + 1)
        text = data.decode("utf-8")
    except OSError as error:
        raise _unreadable(name, error.strerror or "") from None
    except UnicodeDecodeError:
        raise _unreadable(name, "it is not UTF-8 text") from None
    if len(data) > MAX_CODE_FILE_BYTES:
        raise _unreadable(name, f"it is longer than {MAX_CODE_FILE_BYTES} bytes")
    return read_code_table(name, text)


def _unreadable(name: str, why: str) -> InputError:
    return InputError(
        f"code table {name} cannot be read: {why}",
        code="bad-code-table",
        hint="put codes/NAME.csv back, as UTF-8 text with the columns code and title",
    )


# -- what an engineer sees -----------------------------------------------------------------------------------


@dataclass(slots=True)
class Survey:
    """What became of one column's values.

    Attributes:
        rows: how many were read.
        missing: of these, how many have no value.
        unmapped: how many have an unmapped one.
        values: unmapped value → rows, of the first `MAX_COUNTED` different ones.
        more: whether there were more.
    """

    rows: int = 0
    missing: int = 0
    unmapped: int = 0
    values: Counter[str] = field(default_factory=Counter, repr=False)
    more: bool = False

    def tell(self, value: str, rows: int) -> None:
        """Count an unmapped value."""
        if value in self.values or len(self.values) < MAX_COUNTED:
            self.values[value] += rows
        else:
            self.more = True

    def shown(self, least: int, *, areas: CodeTable | None) -> list[tuple[str, int]]:
        """Return the unmapped values that may stand on a terminal, the most frequent first.

        These are in `least` rows or more, short, and hold no number as long as a person's but a community's
        code, of a table of areas that lists the county it lies in, or itself.
        """
        return [
            (printable(value), rows)
            for value, rows in sorted(self.values.items(), key=lambda each: (-each[1], each[0]))
            if rows >= least and may_be_shown(value, areas=areas)
        ]


def may_be_shown(value: str, *, areas: CodeTable | None) -> bool:
    """Whether a local value is short and holds no number as long as that of a person or a telephone.

    Twelve digits pass where they begin with a street or county of the table of areas; seven of a telephone
    may do so by chance, which `Survey.shown` leaves to how often the value stands there.
    """
    if len(value) > MAX_LOCAL:
        return False
    normal = normalise_value(value)
    code = None if areas is None else area_code(normal)
    is_area = (
        code is not None
        and areas is not None
        and any(each in areas for each in lineage(code) if level_of(each) not in ("province", "city"))
    )
    return len(normal) <= MAX_SHOWN and (is_area or not could_identify(_SEPARATORS.sub("", normal)))


def survey(source: Source, by: Sequence[Translator]) -> dict[str, Survey]:
    """Read the columns of a table that is not mapped yet; return what would become of their values.

    Raises:
        InputError: as `MappedSource.read`.
    """
    found = {each.column: Survey() for each in by}
    check_columns(source.columns(), [*found])
    for batch in source.read([*found]):
        for each in by:
            seen = found[each.column]
            codes, unmapped = translated(batch.column(each.column), each, seen.tell)
            seen.rows += len(codes)
            seen.unmapped += unmapped
            if each.of_missing is None:
                kept = unmapped if each.mapping.default == "keep" else 0
                seen.missing += codes.null_count - unmapped + kept
    return found


def values_of(source: Source, column: str) -> tuple[Counter[str], bool]:
    """Return the different values of a column with their rows, in one spelling, and whether there are more.

    Raises:
        InputError: as `MappedSource.read`.
    """
    check_columns(source.columns(), [column])
    seen: Counter[str] = Counter()
    more = False
    for batch in source.read([column]):
        distinct, places = _distinct(batch.column(0), column)
        counts = np.bincount(places.drop_null().to_numpy(), minlength=len(distinct))
        for value, rows in zip(distinct, counts.tolist(), strict=True):
            normal = normalise_value(bounded(value or ""))
            if normal and (normal in seen or len(seen) < MAX_COUNTED):
                seen[normal] += rows
            elif normal:
                more = True
    return seen, more
