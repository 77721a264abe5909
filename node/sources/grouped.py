"""Counting where the rows are: a job's group-by in a database's own words, by SQLAlchemy Core.

What comes out is the same tally, number by number, as if every row had been read: `protocols.tables.grouped`.
Where that cannot be sure, `ReadRows` says why, and the rows are read: a column of doubles, identifiers that
nobody can judge in SQL, equally late rows of one person that differ, a view, of which two statements may see
two states. The database is trusted to compare, count and add whole numbers and decimals, bytes and days; not
with what our own rules say of a text. So:

(1) Of every column of texts, codes and flags its different values are asked for, and judged here.
(2) The different units that are not certainly canonical are asked for, and judged here.
(3) Whatever any row could be refused for is counted over all rows. If there is one, the rows are read, for
    the same error as always.
(4) All other rows are grouped; those of (2), and all rows of the persons they turn out to be about, are read.

Statements are built from expressions; every value is a bind parameter. All of them run in the one transaction
that the source's `with` block is.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from math import ceil, floor, prod
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeGuard

import numpy as np

from node.sources.source import Source
from node.sources.words import MAX_BINDS, ReadRows, Words
from protocols.codes import normalise_value
from protocols.errors import InputError
from protocols.identifiers import normalise
from protocols.jobs.job_type import UNIT, TakesGroups
from protocols.months import END_MONTH, FIRST_MONTH
from protocols.tables.grouped import Asked, Groups
from protocols.tables.layout import Axis, Filter, Measure
from protocols.tables.tally import (
    IDENTIFIERS,
    LATEST,
    NEVER,
    AxisCells,
    FilterRows,
    coded,
    moments_of,
)

if TYPE_CHECKING:
    import pyarrow as pa
    import sqlalchemy as sa

    Expression = sa.ColumnElement[Any]

MAX_VALUES: Final = 10_000
"""Most different values of a column that are judged here, one by one."""

MAX_UNITS: Final = 20_000
"""Most persons whose rows are read one by one beside what is grouped."""

MAX_LENGTH: Final = 1024
"""Longest text that is judged here, in characters, or bytes where a database counts those."""

MAX_SPELLINGS: Final = 256
"""Most cells along an axis that have more than one spelling."""

_JUDGED: Final = ("not-text", "not-a-number", "not-a-date", "bad-unit", "too-many-cells")
"""What our own rules refuse a column for; of the rows as read they say it, if at all."""

_FAR: Final = 1 << 53
_LEAST, _MOST = -(1 << 63), (1 << 63) - 1
_DIGITS_BEFORE, _DIGITS_AFTER = 18, 20


class GroupingSource(Source, Protocol):
    """A source that answers statements about its table."""

    @property
    def dialect(self) -> "sa.Dialect":
        """What the database speaks."""
        ...

    @property
    def table(self) -> "sa.FromClause":
        """The table with its declared columns and their types."""
        ...

    @property
    def settled(self) -> bool:
        """Whether all statements of a `with` block see one state of it."""
        ...

    def query(self, statement: "sa.Select[Any]") -> Iterator["pa.RecordBatch"]:
        """Yield what a statement returns, in the transaction of the `with` block.

        Raises:
            InputError: as `Source.read`.
        """
        ...


class Translating(Protocol):
    """A source that reads some columns of another one as standard codes."""

    @property
    def source(self) -> Source:
        """The other one."""
        ...

    def pushable(self, column: str) -> bool:
        """Whether a database can be asked about the column."""
        ...

    def translation(self, column: str, raw: Iterable[str] | None = None) -> Mapping[str, str] | None:
        """Return raw value → code of a mapped column; None if it is not mapped."""
        ...


def can_count(source: Source) -> bool:
    """Whether a source, or what it translates, answers statements."""
    inner = source.source if _translates(source) else source
    return _groups_rows(inner)


def why_read(source: Source) -> str:
    """Return why an open source's rows are always read, empty where it may count them by itself."""
    inner = source.source if _translates(source) else source
    if not _groups_rows(inner):
        return "the source answers no statements"
    if not inner.settled:
        return "nobody can say that two statements see the view or table in one state"
    try:
        Words(inner.dialect)
    except ReadRows as error:
        return str(error)
    return ""


def _translates(source: object) -> TypeGuard[Translating]:
    return all(hasattr(source, name) for name in ("source", "pushable", "translation"))


def _groups_rows(source: object) -> TypeGuard[GroupingSource]:
    return all(hasattr(source, name) for name in ("dialect", "table", "settled", "query"))


def count_there(
    builder: TakesGroups,
    source: Source,
    columns: Mapping[str, str],
    go_on: Callable[[], None],
) -> Mapping[str, int]:
    """Let the source count all it can, and add the rest row by row: then the builder may finish.

    Args:
        builder: empty; after `ReadRows`, of no more use.
        source: in its `with` block; `can_count`.
        columns: slot → column, `UNIT` and `LATEST` among them where there are such.
        go_on: called between batches and statements; raises when the attempt is over.

    Returns:
        How many rows of each mapped column have an unmapped value.

    Raises:
        ReadRows: the rows are to be read instead.
        InputError: as `Source.read`, or `count-mismatch`.
    """
    if because := why_read(source):
        raise ReadRows(because)
    mapping = source if _translates(source) else None
    inner = source if mapping is None else mapping.source
    assert _groups_rows(inner)
    statements = _Statements(inner, mapping, builder.asked(), columns, go_on)
    apart = statements.prepare()
    builder.add_groups(statements.groups(apart))
    for batch in statements.rows_of(apart) if apart else ():
        builder.add(batch)
    if apart and not statements.ordered and builder.rests_on_order():
        raise ReadRows("equally late rows of one person differ, and which comes first is not said")
    return statements.unmapped


# --- columns ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Number:
    """A column of exact numbers."""

    value: "Expression"
    scale: int  # digits after the point; 0 of whole numbers
    whole: bool


@dataclass(frozen=True, slots=True)
class _Values:
    """The different values of a column, null not among them."""

    value: "Expression"  # compares exactly
    plain: list[Any]  # as the database has them
    judged: Any  # as jobs see them, in Arrow
    text: bool  # they are text in the database's answer


class _Statements:
    """The statements for one question to one source."""

    def __init__(
        self,
        source: GroupingSource,
        mapping: "Translating | None",
        asked: Asked,
        columns: Mapping[str, str],
        go_on: Callable[[], None],
    ) -> None:
        self._mapping = mapping
        self.unmapped: dict[str, int] = {}
        self._source, self._asked, self._columns, self._go_on = source, asked, columns, go_on
        self._words = Words(source.dialect)
        self._table = source.table  # once: each is a FROM of its own
        order = getattr(source, "order", None)
        read = list(dict.fromkeys(columns[slot] for slot in sorted(columns)))
        self._sorted: list[Expression] = [] if order is None else [*order(read, self._table)]
        self._types = {column.name: column.type for column in source.columns()}
        self._binds = 0
        self._where: list[Expression] = []
        self._cells: list[Expression] = []
        self._hinders: list[Expression] = []  # over all rows
        self._latest: Expression | None = None
        self._undated: Expression | None = None
        self._dated = LATEST in columns
        self._unit_text: Expression | None = None
        self._amounts: list[tuple[Expression, Expression, Expression]] = []
        self._names: list[str] = []
        self._places: list[dict[Any, int]] = []
        self._seen: dict[str, int] = {}

    @property
    def ordered(self) -> bool:
        """Whether rows come to be counted in the order in which reading hands them out."""
        return bool(self._sorted)

    # -- asking ----------------------------------------------------------------------------------------------

    def _ask(self, statement: "sa.Select[Any]") -> Iterator["pa.RecordBatch"]:
        self._go_on()
        for batch in self._source.query(statement):
            self._go_on()
            yield batch

    def _one(self, statement: "sa.Select[Any]") -> dict[str, int]:
        """Return the only row of a statement; sums over nothing are 0."""
        rows = [row for batch in self._ask(statement) for row in batch.to_pylist()]
        if len(rows) != 1:
            raise _mismatch()
        return {name: _whole(value) for name, value in rows[0].items()}

    def _column(self, slot: str, *, mapped: bool = False) -> "sa.ColumnElement[Any]":
        import sqlalchemy as sa

        name = self._columns[slot]
        mapping = self._mapping
        if mapping is not None and not (mapping.pushable(name) and (mapped or not self._mapped(name))):
            raise ReadRows("a column is translated to standard codes while it is read")
        column = self._table.c.get(name)
        if column is None:
            raise ReadRows("a column is not known to the database under its name")
        pushable = getattr(self._source, "pushable", None)
        moments = slot == LATEST and isinstance(column.type, sa.DateTime)  # they sort as they are
        if pushable is not None and not pushable(name) and not moments:
            raise ReadRows("a column is of a type that only reading makes sense of")
        return column

    def _days(self, slot: str, *, mapped: bool = False) -> "sa.ColumnElement[Any]":
        """Return a column of days or times.

        Raises:
            ReadRows: the database has no such type, or some are none: which become what, reading tells.
        """
        import sqlalchemy as sa

        column = self._column(slot, mapped=mapped)
        if self._words.name == "sqlite":
            raise ReadRows("the database has no type for days")
        strange = sa.select(_sum_if(self._words.strange_day(column)).label("n")).select_from(self._table)
        if self._one(strange)["n"]:
            raise ReadRows("a column holds days that are none of the calendar")
        return column

    def _type(self, slot: str) -> str:
        return self._types.get(self._columns[slot], "other")

    def _spend(self, binds: int) -> None:
        self._binds += binds
        if self._binds > MAX_BINDS:
            raise ReadRows(f"more than {MAX_BINDS} values would be named in one statement")

    # -- (1) columns of few values ---------------------------------------------------------------------------

    def _values(self, slot: str) -> "_Values":
        """Return the different values of a column, null not among them.

        Raises:
            ReadRows: it is of another type, or has too many.
        """
        import pyarrow as pa
        import sqlalchemy as sa

        name, kind = self._columns[slot], self._type(slot)
        column = self._days(slot, mapped=True) if kind == "date" else self._column(slot, mapped=True)
        if kind not in ("text", "integer", "date", "boolean"):
            raise ReadRows(f"a {kind} column is read as our own rules read it")
        value: Expression = column
        if kind == "text":
            value = self._exact(column)
        elif kind == "boolean":
            value = sa.case(
                (column.is_(sa.true()), self._words.text("true")),
                (column.is_(sa.false()), self._words.text("false")),
                else_=sa.null(),
            )
        shown = _not_long(value) if kind == "text" else value
        different = sa.select(shown.label("v")).where(column.is_not(None)).subquery("d")
        found = sa.select(different.c.v, sa.func.count().label("n")).group_by(different.c.v)
        batches = [batch for batch in self._ask(found.limit(MAX_VALUES + 1)) if batch.num_rows]
        if sum(batch.num_rows for batch in batches) > MAX_VALUES:
            raise ReadRows(f"a column has more than {MAX_VALUES} different values")
        if any(batch.column(0).null_count for batch in batches):
            raise ReadRows(f"a column has texts of more than {MAX_LENGTH} characters")
        whole = pa.chunked_array([batch.column(0) for batch in batches] or [pa.nulls(0, pa.string())])
        raw = whole.combine_chunks()
        text = kind in ("text", "boolean")
        raw = _as_text(raw) if text else raw
        judged = raw
        if self._mapped(name):
            judged = self._codes(name, raw)
            rows = [_whole(count) for batch in batches for count in batch.column(1).to_pylist()]
            spelt = zip(_as_text(raw).to_pylist(), judged.to_pylist(), rows, strict=True)
            self.unmapped[name] = sum(
                n for plain, code, n in spelt if code is None and normalise_value(plain)
            )
        return _Values(value, raw.to_pylist(), judged, text)

    def _mapped(self, name: str) -> bool:
        return self._mapping is not None and self._mapping.translation(name) is not None

    def _codes(self, name: str, raw: Any) -> Any:
        """Return the standard codes of a mapped column's values, null for what is unmapped."""
        import pyarrow as pa

        assert self._mapping is not None
        distinct = _as_text(raw).dictionary_encode()
        texts = distinct.dictionary.to_pylist()
        codes = self._mapping.translation(name, texts) or {}
        return pa.array([codes.get(text) for text in texts], pa.string()).take(distinct.indices)

    def _exact(self, column: "sa.ColumnElement[Any]") -> "Expression":
        import sqlalchemy as sa

        # Of bytes, and of types of a dialect's own, nobody has said how they are read and compared.
        if not isinstance(column.type, sa.String) or isinstance(column.type, sa.Enum):
            raise ReadRows("a column of text is of a type that is only read")
        return self._words.exact(column)

    def _among(self, value: "Expression", texts: Sequence[object]) -> "Expression":
        self._spend(len(texts))
        return self._words.among(value, texts)

    def _spelt(self, found: "_Values", places: Any) -> None:
        """Take rows with a place alone, and say the cell by one spelling for each place."""
        import sqlalchemy as sa

        there = [at for at in range(len(found.plain)) if places[at] >= 0]
        self._where.append(self._among(found.value, [found.plain[at] for at in there]))
        spellings: dict[int, list[Any]] = {}
        for at in there:
            spellings.setdefault(int(places[at]), []).append(found.plain[at])
        several = [each for each in spellings.values() if len(each) > 1]
        if len(several) > MAX_SPELLINGS:
            raise ReadRows(f"more than {MAX_SPELLINGS} cells have several spellings in the data")
        whens = [
            (
                self._among(found.value, each[1:]),
                self._words.text(each[0]) if found.text else sa.literal(each[0], found.value.type),
            )
            for each in several
        ]
        self._cells.append(sa.case(*whens, else_=found.value) if whens else found.value)
        self._places.append({each[0]: place for place, each in spellings.items()})

    # -- numbers ---------------------------------------------------------------------------------------------

    def _number(self, slot: str) -> _Number | None:
        """Return a column as exact numbers, None where it holds something else.

        Raises:
            ReadRows: numbers that are not exact, or not for sure.
        """
        import sqlalchemy as sa

        column, kind = self._column(slot), self._type(slot)
        if kind == "integer" and isinstance(column.type, sa.Integer):
            return _Number(self._words.number(column), 0, whole=True)
        if kind == "decimal":
            stored = column.type
            if not isinstance(stored, sa.Numeric) or isinstance(stored, sa.Float):
                raise ReadRows("a column of doubles is read: how they round, only our own rules say")
            digits, scale = stored.precision, stored.scale
            if (
                digits is None
                or scale is None
                or not 0 <= scale <= min(digits, _DIGITS_AFTER)
                or digits - scale > _DIGITS_BEFORE
                or self._source.dialect.name == "sqlite"
            ):
                raise ReadRows("a column of decimals does not say how many digits they have, or has too many")
            number = _Number(column, scale, whole=False)
            # NaN, which PostgreSQL sorts above all numbers.
            self._hinders.append(column > self._bound(number, 10 ** (_DIGITS_BEFORE + scale) - 1))
            return number
        return None

    def _bound(self, number: _Number, marks: int) -> "Expression":
        """Return a number of units of the column's last digit as a bind parameter."""
        import sqlalchemy as sa

        if number.whole:
            return sa.literal(marks, sa.BigInteger)
        value = Decimal(marks).scaleb(-number.scale)
        return sa.literal(value, sa.Numeric(_DIGITS_BEFORE + number.scale + 1, number.scale))

    def _reaches(self, number: _Number, bound: Fraction, *, beyond: bool = False) -> "Expression":
        """Return whether numbers reach a bound; with `beyond`, whether they exceed it."""
        import sqlalchemy as sa

        step = 10**number.scale
        marks = floor(bound * step) if beyond else ceil(bound * step)
        most = min(_MOST, 10 ** (_DIGITS_BEFORE + number.scale) - 1) if not number.whole else _MOST
        if number.whole and marks > most:
            return sa.false()
        marks = max(min(marks, most + (not number.whole)), -most)
        end = self._bound(number, marks)
        return number.value > end if beyond else number.value >= end

    def _binned(self, axis: Axis, number: _Number, allowed: Any) -> "Expression":
        """Return the bin of each number, -1 below the first and in those that do not count."""
        import sqlalchemy as sa

        self._spend(3 * axis.size)

        def half(low: int, high: int) -> "Expression":
            """Return the bin, known to be from `low` to below `high`; -1 stands before the first."""
            if high - low == 1:
                place = low if low >= 0 and (allowed is None or allowed[low]) else -1
                return sa.literal(place, sa.Integer)
            middle = (low + high) // 2
            return sa.case(
                (self._reaches(number, axis.bins[middle]), half(middle, high)), else_=half(low, middle)
            )

        return half(-1, axis.size)

    # -- filters, cells, latest ------------------------------------------------------------------------------

    def _filter(self, kept: Filter) -> None:
        slot = kept.slot
        if not kept.values and not kept.months and (number := self._number(slot)):
            if kept.low is not None:
                self._where.append(self._reaches(number, kept.low))
            if kept.high is not None:
                self._where.append(~self._reaches(number, kept.high, beyond=True))
            self._where.append(number.value.is_not(None))
            return
        if kept.months and self._type(slot) == "date":
            self._months(kept)
            return
        found = self._values(slot)
        passes = FilterRows(kept).passes(found.judged)[0]
        self._where.append(self._among(found.value, [found.plain[at] for at in np.flatnonzero(passes)]))

    def _months(self, kept: Filter) -> None:
        import sqlalchemy as sa

        column = self._days(kept.slot)
        first, last = int(kept.low or FIRST_MONTH), int(kept.high or END_MONTH - 1)
        first, last = max(first, FIRST_MONTH), min(last, END_MONTH - 1)
        start, end = (date(month // 12, month % 12 + 1, 1) for month in (first, last + 1))
        self._where += [column >= sa.literal(start, sa.Date), column < sa.literal(end, sa.Date)]

    def _axis(self, at: int, axis: Axis) -> None:
        import sqlalchemy as sa

        allowed = None if self._asked.covered is None else self._asked.covered[at]
        number = self._number(axis.slot) if axis.bins else None
        if number is not None:
            cell = self._binned(axis, number, allowed)
            self._cells.append(cell)
            self._places.append({place: place for place in range(axis.size)})
            self._where += [number.value.is_not(None), cell >= sa.literal(0, sa.Integer)]
            return
        found = self._values(axis.slot)
        places = AxisCells(axis).place(found.judged)
        if allowed is not None:
            places = np.where((places >= 0) & allowed[places], places, -1)
        self._spelt(found, places)

    def _recency(self) -> None:
        """Say how recent a row is, so that it sorts as `moments_of` does."""
        import sqlalchemy as sa

        column, kind = self._column(LATEST, mapped=True), self._type(LATEST)
        if kind == "integer" and isinstance(column.type, sa.Integer):
            self._latest = number = self._words.number(self._column(LATEST))
            # What stands for none, and what is no whole number of 64 bits with a sign.
            marks = [sa.literal(end, sa.BigInteger) for end in (NEVER, _MOST)]
            self._hinders.append(sa.or_(number <= marks[0], number > marks[1]))
        elif isinstance(column.type, sa.Date | sa.DateTime):
            self._latest = self._days(LATEST)
        elif kind == "text":
            self._latest = self._dated_text()
        else:
            raise ReadRows(f"how recent a row is, a {kind} column says as our own rules read it")
        self._undated = self._latest.is_(None)

    def _dated_text(self) -> "Expression":
        import sqlalchemy as sa

        found = self._values(LATEST)
        plain, moments = found.plain, moments_of(found.judged)
        order = sorted(range(len(plain)), key=lambda i: plain[i].encode())
        readable = [i for i in order if moments[i] != NEVER]
        if any(moments[i] >= moments[j] for i, j in pairwise(readable)):
            raise ReadRows("days and months in text do not sort as they follow one another")
        among = self._among(found.value, [plain[i] for i in readable])
        return sa.case((among, found.value), else_=sa.null())

    # -- amounts ---------------------------------------------------------------------------------------------

    def _amount(self, measure: Measure) -> tuple["Expression", "Expression", "Expression"]:
        """Return amounts in units of 10^-decimals, which are cut, and which hinder: then rows are read."""
        import sqlalchemy as sa

        number = self._number(measure.slot)
        if number is None:
            raise ReadRows("an amount is stored as text")
        value, step = number.value, 10**measure.decimals
        low, high = sa.literal(measure.low, sa.BigInteger), sa.literal(measure.high, sa.BigInteger)
        if number.whole:
            below = value < sa.literal(-(-measure.low // step), sa.BigInteger)
            above = value > sa.literal(measure.high // step, sa.BigInteger)
            amount = value * sa.literal(step, sa.BigInteger)
            cut = sa.or_(below, above)
            whole = sa.case((below, low), (above, high), (value.is_not(None), amount), else_=sa.null())
            return whole, cut, sa.false() if self._asked.clamp else cut
        far = Fraction(_FAR, step) - 1
        strange = sa.or_(self._reaches(number, far), ~self._reaches(number, -far))
        scaled = value * sa.literal(step, sa.BigInteger)
        if number.scale > measure.decimals:
            down = sa.func.floor(scaled)
            rest = scaled - down
            half = sa.literal(Decimal("0.5"), sa.Numeric(2, 1))
            odd = sa.func.mod(down, sa.literal(2, sa.Integer)) != sa.literal(0, sa.Integer)
            up = sa.or_(rest > half, sa.and_(rest == half, odd))
            scaled = down + sa.case((up, sa.literal(1, sa.Integer)), else_=sa.literal(0, sa.Integer))
        scaled = sa.cast(sa.case((~strange, scaled), else_=sa.null()), sa.BigInteger)
        cut = sa.or_(scaled < low, scaled > high)
        clipped = sa.case((scaled < low, low), (scaled > high, high), else_=scaled)
        return clipped, cut, strange if self._asked.clamp else sa.or_(strange, cut)

    # -- (2) units -------------------------------------------------------------------------------------------

    def _unit(self) -> "Expression | None":
        if self._asked.unit is None:
            return None
        column, kind = self._column(UNIT), self._type(UNIT)
        if self._asked.form is None:
            raise ReadRows("whether an identifier of this type is canonical, SQL cannot say")
        if kind == "integer" and not self._asked.identifiers:
            return column
        if kind != "text":
            raise ReadRows(f"a unit in a {kind} column is read as our own rules read it")
        return self._exact(column)

    def _doubtful(self) -> list[Any]:
        """Return every unit whose rows are read: those in doubt, and those these turn out to be."""
        import pyarrow as pa
        import sqlalchemy as sa

        asked, unit = self._asked, self._unit_text
        if unit is None or asked.form is None or self._type(UNIT) == "integer":
            return []
        doubtful = self._words.doubtful(self._table, unit, asked.form).subquery("f")
        found = sa.select(_not_long(doubtful.c.v).label("v")).limit(MAX_UNITS + 1)
        arrays = [batch.column(0) for batch in self._ask(found) if batch.num_rows]
        if not arrays:
            return []
        if sum(map(len, arrays)) > MAX_UNITS:
            raise ReadRows(f"more than {MAX_UNITS} different identifiers are not in canonical form")
        if any(array.null_count for array in arrays):
            raise ReadRows(f"an identifier has more than {MAX_LENGTH} characters")
        texts = _as_text(pa.chunked_array(arrays).combine_chunks())
        return sorted({*texts.to_pylist(), *self._meant(texts)})

    def _meant(self, texts: Any) -> list[str]:
        """Return the canonical spellings of units in doubt."""
        import pyarrow.compute as pc

        asked = self._asked
        assert asked.unit is not None
        kind = IDENTIFIERS.get(asked.unit.kind)
        if kind is None:
            return [text for text in pc.utf8_trim_whitespace(texts).to_pylist() if text]
        found = normalise(texts, kind, as_of=asked.as_of, areas=asked.areas)
        return [key.decode("ascii").partition(":")[2] for key in found.keys.tolist()]

    # -- (3) what any row could be refused for ---------------------------------------------------------------

    def prepare(self) -> list[Any]:
        """Say what is to be counted, and return the units whose rows are to be read.

        Raises:
            ReadRows: not everything can be said, or something is wrong with a row.
        """
        try:
            self._plan()
        except InputError as error:
            if error.code in _JUDGED:
                raise ReadRows("a column is not of a type that the job can use") from None
            raise
        # (2)
        apart = self._doubtful()
        self._spend(len(apart))
        # (3)
        self._seen = self._look_at_all(apart)
        if any(count for name, count in self._seen.items() if name.startswith("h")):
            raise ReadRows("a row has no unit, or an amount that is none or out of bounds")
        return apart

    def _plan(self) -> None:
        asked = self._asked
        if not asked.splits:
            raise ReadRows("the cells that this source covers are not a matter of each axis by itself")
        self._unit_text = self._unit()
        # (1)
        for kept in asked.layout.filters:
            self._filter(kept)
        for at, axis in enumerate(asked.layout.axes):
            self._axis(at, axis)
        if asked.keys:
            found = self._values(asked.keys)
            names: dict[str, int] = {}
            self._spelt(found, coded(found.judged, names, asked.keys, grow=True))
            self._names = [*names]
        self._amounts = [self._amount(measure) for measure in asked.layout.measures]
        if self._dated:
            self._recency()

    def _look_at_all(self, apart: Sequence[Any]) -> dict[str, int]:
        """Return how many rows there are, how many of units that are read, and how many hinder, by what."""
        import sqlalchemy as sa

        hinders = [*self._hinders, *(hinders for _, _, hinders in self._amounts)]
        counts: list[Any] = [sa.func.count().label("total")]
        if self._unit_text is not None:
            hinders.append(self._column(UNIT).is_(None))
            counts.append(_sum_if(self._in(apart)).label("apart"))
        counts += [_sum_if(hinder).label(f"h{i}") for i, hinder in enumerate(hinders)]
        return self._one(sa.select(*counts).select_from(self._table))

    def _in(self, apart: Sequence[Any]) -> "Expression":
        assert self._unit_text is not None
        return self._words.among(self._unit_text, apart)

    # -- (4) the rest ----------------------------------------------------------------------------------------

    def rows_of(self, apart: Sequence[Any]) -> Iterator[dict[str, Any]]:
        """Yield the rows of these units, slot by slot, as the source reads them."""
        import sqlalchemy as sa

        slots = sorted(self._columns)
        wanted = [self._column(slot).label(f"s{i}") for i, slot in enumerate(slots)]
        for batch in self._ask(sa.select(*wanted).where(self._in(apart)).order_by(*self._sorted)):
            yield {slot: self._read(slot, batch.column(i)) for i, slot in enumerate(slots)}

    def _read(self, slot: str, column: Any) -> Any:
        name = self._columns[slot]
        return self._codes(name, column) if self._mapped(name) else column

    def groups(self, apart: Sequence[Any]) -> Groups:
        """Return what the source counts of all other rows.

        Raises:
            ReadRows: equally late rows of one unit differ.
            InputError: `count-mismatch`: it counts in a form nobody asked for.
        """
        import sqlalchemy as sa

        asked = self._asked
        rows = self._rows(apart)
        seen = self._overview(rows)
        units, here = seen["units"], seen["here"]
        kept: sa.FromClause = rows
        alone = asked.unit is None or units == here
        if asked.unit is not None and seen["most"] > asked.most:
            if not self.ordered:
                self._refuse_ties(rows)
            kept = self._kept(rows)
        cells = [f"c{i}" for i in range(len(self._cells))]
        parts = self._parts(kept, cells, alone=alone)
        found = self._cells_of(self._per_cell(parts, cells)) if here else []
        return self._groups_of(found, cells, seen)

    def _cells_of(self, statement: "sa.Select[Any]") -> list["pa.RecordBatch"]:
        """Return one row for each cell.

        Raises:
            InputError: `count-mismatch`: there are more than there are cells.
        """
        most, found = prod(map(len, self._places)), []
        for batch in self._ask(statement):
            found.append(batch)
            most -= batch.num_rows
            if most < 0:
                raise _mismatch()
        return found

    def _rows(self, apart: Sequence[Any]) -> "sa.Subquery":
        """Return the rows that count: unit, cell, amounts, how recent."""
        import sqlalchemy as sa

        wanted: list[Any] = [cell.label(f"c{i}") for i, cell in enumerate(self._cells)]
        where = list(self._where)
        if self._unit_text is not None:
            wanted.append(self._unit_text.label("u"))
            if apart:
                where.append(~self._in(apart))
        for i, (amount, cut, _) in enumerate(self._amounts):
            wanted.append(amount.label(f"a{i}"))
            if self._asked.clamp:
                wanted.append(_flag(cut).label(f"x{i}"))
        if self._latest is not None and self._undated is not None:
            wanted += [self._latest.label("t"), _flag(self._undated).label("n")]
        if self._unit_text is not None:
            wanted += [each.label(f"o{i}") for i, each in enumerate(self._sorted)]
        if not wanted:
            wanted.append(sa.literal(1, sa.Integer).label("one"))
        statement = sa.select(*wanted).select_from(self._table)
        return (statement.where(sa.and_(*where)) if where else statement).subquery("r")

    def _overview(self, rows: "sa.Subquery") -> dict[str, int]:
        """Return how many rows and units there are, the most rows of one, and what else is worth knowing."""
        import sqlalchemy as sa

        seen: list[Any] = [sa.func.count().label("here")]
        for i in range(len(self._amounts)):
            seen.append(_sum_if(rows.c[f"a{i}"].is_(None)).label(f"v{i}"))
            if self._asked.clamp:
                seen.append(sa.func.sum(rows.c[f"x{i}"]).label(f"x{i}"))
        if self._latest is not None:
            seen.append(sa.func.sum(rows.c.n).label("n"))
        if self._unit_text is None:
            found = self._one(sa.select(*seen).select_from(rows))
            return {**found, "units": found["here"], "most": 1}
        one = sa.select(*seen).select_from(rows).group_by(rows.c.u).subquery("o")
        sums = [_integer(sa.func.sum(column)).label(column.name) for column in one.c]
        counts = [sa.func.count().label("units"), sa.func.max(one.c.here).label("most")]
        return self._one(sa.select(*sums, *counts).select_from(one))

    def _order(self, rows: "sa.FromClause") -> list["Expression"]:
        """Return the latest rows first, those that do not say it last; then as they are read."""
        import sqlalchemy as sa

        order: list[Expression] = [rows.c[f"o{i}"].asc() for i in range(len(self._sorted))]
        if self._latest is not None:
            return [sa.case((rows.c.t.is_(None), 1), else_=0), rows.c.t.desc(), *order]
        return order or [rows.c.u]  # a window has to have an order: all equal

    def _refuse_ties(self, rows: "sa.Subquery") -> None:
        """Refuse to choose among equally late rows of one unit that differ in what is counted.

        Raises:
            ReadRows: there are such.
        """
        import sqlalchemy as sa

        rank = sa.func.rank().over(partition_by=rows.c.u, order_by=self._order(rows)).label("k")
        ranked = sa.select(rows, rank).subquery("w")
        size, most = sa.func.count(), sa.literal(self._asked.most, sa.Integer)
        differ = [sa.func.count(ranked.c[f"c{i}"].distinct()) > 1 for i in range(len(self._cells))]
        for i in range(len(self._amounts)):
            amount = ranked.c[f"a{i}"]
            present = sa.func.count(amount)
            differ += [sa.func.count(amount.distinct()) > 1, sa.and_(present > 0, present < size)]
        if not differ:
            return
        split = (
            sa.select(ranked.c.u)
            .group_by(ranked.c.u, ranked.c.k)
            .having(sa.and_(ranked.c.k <= most, ranked.c.k + size - 1 > most, sa.or_(*differ)))
            .subquery("s")
        )
        if self._one(sa.select(sa.func.count().label("n")).select_from(split))["n"]:
            raise ReadRows("equally late rows of one person differ, and which comes first is not said")

    def _kept(self, rows: "sa.Subquery") -> "sa.FromClause":
        """Return of each unit the latest rows, at most as many as may count."""
        import sqlalchemy as sa

        number = sa.func.row_number().over(partition_by=rows.c.u, order_by=self._order(rows)).label("k")
        ranked = sa.select(rows, number).subquery("w")
        return sa.select(ranked).where(ranked.c.k <= sa.literal(self._asked.most, sa.Integer)).subquery("k")

    def _parts(self, kept: "sa.FromClause", cells: Sequence[str], *, alone: bool) -> "sa.Subquery":
        """Return what one unit adds to one cell; with `alone`, every row is a unit of its own."""
        import sqlalchemy as sa

        groups = [kept.c[name] for name in cells]
        wanted: list[Any] = [*groups]
        amounts = [kept.c[f"a{i}"] for i in range(len(self._amounts))]
        zero = sa.literal(0, sa.BigInteger)
        if alone:
            wanted.append(sa.literal(1, sa.Integer).label("n"))
            for i, amount in enumerate(amounts):
                wanted += [
                    _flag(amount.is_not(None)).label(f"p{i}"),
                    sa.func.coalesce(amount, zero).label(f"s{i}"),
                ]
            return sa.select(*wanted).select_from(kept).subquery("p")
        wanted.append(sa.func.count().label("n"))
        for i, amount in enumerate(amounts):
            wanted += [
                sa.func.count(amount).label(f"p{i}"),
                sa.func.coalesce(sa.func.sum(amount), zero).label(f"s{i}"),
            ]
        return sa.select(*wanted).select_from(kept).group_by(kept.c.u, *groups).subquery("p")

    def _per_cell(self, parts: "sa.Subquery", cells: Sequence[str]) -> "sa.Select[Any]":
        """Return one row for each cell: rows, units, and of each measure amounts, sum, and largest parts."""
        import sqlalchemy as sa

        ranked = [i for i in range(len(self._amounts)) if self._asked.ranked(i)]
        source: sa.Subquery = parts
        if ranked:
            places = [
                sa.func.row_number()
                .over(
                    partition_by=[parts.c[name] for name in cells] or None,
                    order_by=parts.c[f"s{i}"].desc(),
                )
                .label(f"k{i}")
                for i in ranked
            ]
            source = sa.select(parts, *places).subquery("q")
        groups = [source.c[name] for name in cells]
        wanted: list[Any] = [
            *groups,
            _integer(sa.func.sum(source.c.n)).label("n"),
            sa.func.count().label("persons"),
        ]
        for i in range(len(self._amounts)):
            wanted += [
                _integer(sa.func.sum(source.c[f"p{i}"])).label(f"p{i}"),
                _integer(sa.func.sum(source.c[f"s{i}"])).label(f"s{i}"),
            ]
            if i in ranked:
                for place, name in ((1, "t"), (2, "u")):
                    one = sa.case((source.c[f"k{i}"] == place, source.c[f"s{i}"]), else_=sa.null())
                    wanted.append(_integer(sa.func.max(one)).label(f"{name}{i}"))
        return sa.select(*wanted).select_from(source).group_by(*groups)

    def _groups_of(
        self, batches: Sequence["pa.RecordBatch"], cells: Sequence[str], seen: Mapping[str, int]
    ) -> Groups:
        """Return the answer as numbers, every cell found again by our own rules."""
        asked = self._asked
        measures = range(len(asked.layout.measures))
        names = ["n", "persons", *(f"{word}{i}" for i in measures for word in ("p", "s", "t", "u"))]
        numbers: dict[str, list[int]] = {name: [] for name in names}
        places: list[int] = []
        for batch in batches:
            plain = batch.to_pydict()
            if not plain.keys() <= {*cells, *names} or not {"n", "persons", *cells} <= plain.keys():
                raise _mismatch()
            for name in names:
                numbers[name] += map(_whole, plain.get(name, [0] * batch.num_rows))
            places += self._found_again([plain[name] for name in cells], batch.num_rows)
        rows = len(places)
        keys = tuple(self._names[place] for place in places) if asked.keys else ()
        vectors = {name: _vector(values) for name, values in numbers.items()}
        nothing = np.zeros((0, rows), dtype=np.int64)

        def stacked(word: str) -> "np.ndarray[Any, np.dtype[np.int64]]":
            return np.stack([vectors[f"{word}{i}"] for i in measures]) if measures else nothing

        return Groups(
            cells=_vector([0] * rows if asked.keys else places),
            keys=keys,
            persons=vectors["persons"],
            counted=vectors["n"],
            present=stacked("p"),
            total=stacked("s"),
            tops=np.stack([stacked("t"), stacked("u")]),
            rows=self._seen["total"] - self._seen.get("apart", 0),
            here=seen["here"],
            units=seen["units"],
            undated=seen.get("n", 0),
            no_value=sum(seen[f"v{i}"] for i in measures),
            clamped=sum(seen.get(f"x{i}", 0) for i in measures),
        )

    def _found_again(self, labels: Sequence[Sequence[Any]], rows: int) -> list[int]:
        """Return the cells that a source named as it was told to.

        Raises:
            InputError: `count-mismatch`: it named another.
        """
        sizes = self._asked.layout.shape or (0,) * len(labels)
        found = [0] * rows
        for known, size, column in zip(self._places, sizes, labels, strict=True):
            for row, label in enumerate(column):
                text = label.decode("utf-8", "replace") if isinstance(label, bytes) else label
                place = known.get(text)
                if place is None:
                    raise _mismatch()
                found[row] = found[row] * size + place
        return found


# --- small parts --------------------------------------------------------------------------------------------


def _flag(condition: "Expression") -> "Expression":
    import sqlalchemy as sa

    return sa.case((condition, sa.literal(1, sa.Integer)), else_=sa.literal(0, sa.Integer))


def _sum_if(condition: "Expression") -> "Expression":
    import sqlalchemy as sa

    return _integer(sa.func.sum(_flag(condition)))


def _not_long(text: "Expression") -> "Expression":
    """Return a text, null where it is longer than anybody judges here: it never leaves the database."""
    import sqlalchemy as sa

    fits = sa.func.length(text, type_=sa.Integer) <= sa.literal(MAX_LENGTH, sa.Integer)
    return sa.case((fits, text), else_=sa.null())


def _integer(number: "Expression") -> "Expression":
    """Return a sum as a whole number of 64 bits: databases add up in wider types, or in decimals."""
    import sqlalchemy as sa

    return sa.cast(number, sa.BigInteger)


def _as_text(column: Any) -> Any:
    """Return what came as bytes or text as text.

    Raises:
        ReadRows: bytes that are no text.
    """
    import pyarrow as pa

    try:
        text = column.cast(pa.string())
        text.validate(full=True)
    except pa.ArrowException:
        raise ReadRows("a column holds bytes that are no text") from None
    return text


def _whole(value: object) -> int:
    """Return a whole number as a database hands it out; nothing to add up is 0.

    Raises:
        InputError: `count-mismatch`.
    """
    if value is None:
        return 0
    if isinstance(value, int) and _LEAST <= value <= _MOST:
        return int(value)
    if isinstance(value, Decimal | str):
        try:
            number = Decimal(value)
        except ArithmeticError:
            raise _mismatch() from None
        if number.is_finite() and number == number.to_integral_value() and _LEAST <= number <= _MOST:
            return int(number)
    raise _mismatch()


def _vector(values: Sequence[int]) -> "np.ndarray[Any, np.dtype[np.int64]]":
    return np.array(values, dtype=np.int64)


def _mismatch() -> InputError:
    return InputError(
        "the source answered a count with something else",
        code="count-mismatch",
        hint="check the view or table at the source, and the version of its database",
    )
