"""What a table counts: its axes with public domains, what is measured in its cells, and which rows count.

Everything here is said by the job, in public, before anybody looks at data: two departments that read one
job make vectors of one length, whose cells mean the same. The parameters of a job are read here for every job
type that makes tables.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import prod
from typing import Any, Final, Self

from protocols.errors import InputError
from protocols.jobs.job_type import ColumnNeed, Domain
from protocols.months import month_number

MAX_AXES: Final = 4
MAX_CELLS: Final = 1 << 20
"""Most cells of a table, margins not counted."""

MAX_MEASURES: Final = 8
MAX_FILTERS: Final = 8
MAX_DECIMALS: Final = 6
MAX_ROWS: Final = 1 << 27
"""Most rows of one dataset that a table counts: with a measure's bounds it says how large a sum can be."""

MAX_UNIT_ROWS: Final = 1000
MAX_BOUND: Final = 1 << 52
"""Largest amount of a measure, in its smallest unit."""

TEXT_TYPES: Final = ("enum", "code", "text")
NUMBER_TYPES: Final = ("int", "decimal")
MONTH_TYPES: Final = ("date", "month")

_SPAN: Final = 40
MAX_TEXT: Final = 64
"""Most characters of a value that names a cell."""

RESERVED: Final = frozenset({"measure", "value", "low", "high", "withheld", "unit", "latest"})
"""Names that no axis and no measure has: columns of the released table, and slots of their own."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One direction of a table: texts from a public list, or numbers cut into bins.

    Attributes:
        slot: the job's word for the column; names the column of the released table, too.
        values: the texts that have a cell, in order; empty for a binned axis.
        bins: ascending lower bounds; each bin ends where the next begins, the last has no end. A number
            below the first has no cell.
    """

    slot: str
    values: tuple[str, ...] = ()
    bins: tuple[Fraction, ...] = ()

    @property
    def size(self) -> int:
        """Number of cells along this axis."""
        return len(self.values or self.bins)

    @property
    def labels(self) -> tuple[str, ...]:
        """What each cell is called: the text, `[0, 18)`, or `60+` for the last bin."""
        if self.values:
            return self.values
        closed = [f"[{decimal_text(low)}, {decimal_text(high)})" for low, high in pairwise(self.bins)]
        return (*closed, f"{decimal_text(self.bins[-1])}+")

    @property
    def need(self) -> ColumnNeed:
        """The column it takes."""
        if self.values:
            return ColumnNeed(self.slot, "group", TEXT_TYPES, domain=Domain(values=self.values))
        return ColumnNeed(self.slot, "group", NUMBER_TYPES, domain=Domain(bins=self.bins))

    def to_json(self) -> dict[str, Any]:
        """Return the plain JSON form."""
        return {"slot": self.slot, "values": [*self.values], "bins": [str(bound) for bound in self.bins]}


@dataclass(frozen=True, slots=True)
class Filter:
    """Which rows count at all: those whose text is listed, or whose number or month is between two.

    Attributes:
        slot: the job's word for the column.
        values: the texts that are listed; empty for numbers and months.
        low, high: least and greatest, both included; None: no bound.
        months: the column is of dates or months, and `low` and `high` number months as `protocols.months`
            does.
    """

    slot: str
    values: tuple[str, ...] = ()
    low: Fraction | None = None
    high: Fraction | None = None
    months: bool = False

    @property
    def need(self) -> ColumnNeed:
        """The column it takes."""
        if self.values:
            return ColumnNeed(self.slot, "filter", TEXT_TYPES, domain=Domain(values=self.values))
        types = MONTH_TYPES if self.months else NUMBER_TYPES
        return ColumnNeed(self.slot, "filter", types, domain=Domain(kept=(self.low, self.high)))

    def to_json(self) -> dict[str, Any]:
        """Return the plain JSON form."""
        # What a node committed to before there were months does not name them.
        return {
            "slot": self.slot,
            "values": [*self.values],
            "low": None if self.low is None else str(self.low),
            "high": None if self.high is None else str(self.high),
            **({"months": True} if self.months else {}),
        }


@dataclass(frozen=True, slots=True)
class Measure:
    """A column whose amounts are added up.

    Attributes:
        slot: the job's word for the column.
        low, high: least and greatest amount, in units of 10^-decimals.
        decimals: digits after the point that count; an amount is rounded to them, half to even.
        of: what is asked of it: `sum`, `mean`, or both.
    """

    slot: str
    low: int
    high: int
    decimals: int = 0
    of: tuple[str, ...] = ("sum",)

    @property
    def most(self) -> int:
        """Largest absolute amount."""
        return max(abs(self.low), abs(self.high))

    def needs(self, *, covering: bool) -> tuple[ColumnNeed, ...]:
        """The column it takes, once for each use that is asked of it; `covering`: see `Domain`."""
        step = 10**self.decimals
        domain = Domain(bounds=(Fraction(self.low, step), Fraction(self.high, step)), covering=covering)
        return tuple(ColumnNeed(self.slot, use, NUMBER_TYPES, domain=domain) for use in self.of)

    def to_json(self) -> dict[str, Any]:
        """Return the plain JSON form."""
        return {
            "slot": self.slot,
            "low": self.low,
            "high": self.high,
            "decimals": self.decimals,
            "of": [*self.of],
        }


@dataclass(frozen=True, slots=True)
class Layout:
    """A table as a vector: cell (i, j, …) stands at place i·size_j·… + j·… + …, the last axis fastest.

    Attributes:
        axes: none for a single figure.
        filters: which rows count.
        measures: what is added up.
        unit_rows: most rows of one person that count; of more, the latest do, then those read first.
    """

    axes: tuple[Axis, ...] = ()
    filters: tuple[Filter, ...] = ()
    measures: tuple[Measure, ...] = ()
    unit_rows: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Cells along each axis."""
        return tuple(axis.size for axis in self.axes)

    @property
    def cells(self) -> int:
        """Number of cells; 1 without axes."""
        return prod(self.shape)

    @property
    def slots(self) -> tuple[str, ...]:
        """Every slot that a dataset has to fill."""
        parts: tuple[Axis | Filter | Measure, ...] = (*self.axes, *self.filters, *self.measures)
        return tuple(dict.fromkeys(part.slot for part in parts))

    def needs(self, *, covering: bool) -> tuple[ColumnNeed, ...]:
        """Every column it takes, once for each use; a slot may come more than once."""
        return (
            *(axis.need for axis in self.axes),
            *(kept.need for kept in self.filters),
            *(need for measure in self.measures for need in measure.needs(covering=covering)),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the plain JSON form: what is computed, without the filters."""
        return {
            "axes": [axis.to_json() for axis in self.axes],
            "measures": [measure.to_json() for measure in self.measures],
            "unit_rows": self.unit_rows,
        }


class Reader:
    """Takes the params of a job apart; whatever is left over at the end is refused."""

    def __init__(self, params: Mapping[str, Any], job_type: str) -> None:
        """Read `params` of a job of type `job_type`, whose name errors say."""
        self._left, self._job_type = dict(params), job_type

    @classmethod
    def of(cls, value: object, where: str, job_type: str) -> Self:
        """Read a table inside the params.

        Raises:
            InputError: it is no table.
        """
        if not isinstance(value, Mapping):
            raise bad(f"{where} is no table", "write it as a table with keys and values")
        return cls(value, job_type)

    def finish(self) -> None:
        """Refuse what nobody has read.

        Raises:
            InputError: `unknown-param`.
        """
        if self._left:
            raise InputError(
                f"{len(self._left)} unknown param(s)",
                code="unknown-param",
                hint=f"remove what {self._job_type} does not know",
            )

    def has(self, name: str) -> bool:
        """Whether the param is there and not read yet."""
        return name in self._left

    def choice(self, name: str, choices: Sequence[str], default: str | None = None) -> str:
        """Return one of a few words."""
        value = self._left.pop(name, default)
        if not isinstance(value, str) or value not in choices:
            raise bad(f"params.{name} is none of {', '.join(choices)}", f'write {name} = "{choices[0]}"')
        return value

    def number(self, name: str, least: int, most: int, default: int | None = None) -> int:
        """Return a whole number from `least` to `most`."""
        value = self._left.pop(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise bad(f"params.{name} is no whole number from {least} to {most}", f"write {name} = {least}")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """Return a short printable text."""
        return _text(self._left.pop(name, default), f"params.{name}")

    def fraction(self, name: str) -> Fraction:
        """Return a number written as text, such as "0.1" or "1/10"; see `fraction`."""
        return fraction(self._left.pop(name, None), f"params.{name}")

    def month(self, name: str) -> Fraction:
        """Return the number of a month such as "2025-12", see `month_number`."""
        value = self._left.pop(name, None)
        try:
            return Fraction(month_number(value if isinstance(value, str) else ""))
        except ValueError:
            raise bad(
                f"params.{name} is no month from 1900-01 to 2199-12", f'write {name} = "2025-12"'
            ) from None

    def fractions(self, name: str, most: int) -> tuple[Fraction, ...]:
        """Return an ascending list of numbers written as texts, 1 to `most` of them."""
        return _fractions(self._items(name, most), f"params.{name}")

    def tables(self, name: str, most: int, *, least: int = 0) -> tuple["Reader", ...]:
        """Return a list of tables, `least` to `most` of them; none where it is left out and `least` is 0."""
        if not least and name not in self._left:
            return ()
        items = self._items(name, most)
        return tuple(Reader.of(item, f"params.{name}", self._job_type) for item in items)

    def table(self, name: str) -> "Reader":
        """Return a table."""
        return Reader.of(self._left.pop(name, None), f"params.{name}", self._job_type)

    def texts(self, name: str, most: int) -> tuple[str, ...]:
        """Return a list of different short texts, 1 to `most` of them."""
        found = tuple(_text(item, f"params.{name}") for item in self._items(name, most))
        if len(set(found)) != len(found):
            raise bad(f"params.{name} lists a text twice", "list each once")
        return found

    def _items(self, name: str, most: int) -> list[Any]:
        value = self._left.pop(name, None)
        if not isinstance(value, list | tuple) or not 1 <= len(value) <= most:
            raise bad(f"params.{name} is no list of 1 to {most} entries", f"write {name} as a list")
        return list(value)


def read_axis(reader: Reader, most: int = MAX_CELLS) -> Axis:
    """Read `{slot, values}` or `{slot, bins}`; what else the table holds is left to the caller.

    Raises:
        InputError: what is wrong.
    """
    slot = read_slot(reader)
    if reader.has("bins"):
        return Axis(slot, bins=reader.fractions("bins", most))
    return Axis(slot, values=reader.texts("values", most))


def read_axes(reader: Reader, *, least: int = 0, most: int = MAX_AXES) -> tuple[Axis, ...]:
    """Read `axes`.

    Raises:
        InputError: what is wrong; more than `MAX_CELLS` cells; one slot twice.
    """
    axes = []
    for table in reader.tables("axes", most, least=least):
        axes.append(read_axis(table))
        table.finish()
    if prod(axis.size for axis in axes) > MAX_CELLS:
        raise InputError(
            f"a table of {prod(axis.size for axis in axes)} cells, at most {MAX_CELLS} are counted",
            code="too-many-cells",
            hint="list fewer values, or ask for fewer axes at a time",
        )
    return tuple(axes)


def read_filters(reader: Reader) -> tuple[Filter, ...]:
    """Read `filters`: `{slot, values}`, or `{slot, low, high}`, or of months `{slot, from, to}`.

    Of two ends one may be left out.

    Raises:
        InputError: what is wrong.
    """
    found = []
    for table in reader.tables("filters", MAX_FILTERS):
        found.append(read_filter(table))
        table.finish()
    return tuple(found)


def read_filter(table: Reader) -> Filter:
    """Read one filter, see `read_filters`; what else the table holds is left to the caller.

    Raises:
        InputError: what is wrong.
    """
    slot = read_slot(table)
    if table.has("values"):
        return Filter(slot, values=table.texts("values", MAX_CELLS))
    months = table.has("from") or table.has("to")
    first, last = ("from", "to") if months else ("low", "high")
    read = table.month if months else table.fraction
    low = read(first) if table.has(first) else None
    high = read(last) if table.has(last) else None
    if (low is None and high is None) or (low is not None and high is not None and low > high):
        raise bad(
            "a filter keeps nothing, or everything",
            'write low = "2019", high = "2025", or of months from = "2025-01", to = "2025-09"',
        )
    return Filter(slot, low=low, high=high, months=months)


def read_measure(table: Reader, uses: Sequence[str] = ("sum", "mean")) -> Measure:
    """Read `{slot, bounds = ["0", "5000"], decimals, of}`; `of` is left out where only one use is possible.

    Raises:
        InputError: what is wrong, above all bounds that are none.
    """
    slot = read_slot(table)
    decimals = table.number("decimals", 0, MAX_DECIMALS, 0)
    of = table.texts("of", len(uses)) if len(uses) > 1 else (uses[0],)
    if not set(of) <= set(uses):
        raise bad("a measure is asked for what it does not give", f"choose from {', '.join(uses)}")
    bounds = table.fractions("bounds", 2)
    scaled = [bound * 10**decimals for bound in bounds]
    if len(bounds) != 2 or any(bound.denominator != 1 or abs(bound) > MAX_BOUND for bound in scaled):
        raise bad(
            "the bounds of a measure are not its least and greatest amount, in its own decimals",
            'write for example bounds = ["0", "5000"]',
        )
    table.finish()
    return Measure(slot, int(scaled[0]), int(scaled[1]), decimals, of)


def read_slot(table: Reader) -> str:
    """Return the slot that a table is about.

    Raises:
        InputError: a name that is taken, or none.
    """
    slot = table.text("slot")
    if slot in RESERVED or not slot.isidentifier():
        raise bad("a slot has a reserved name, or none of letters, digits and _", 'write slot = "street"')
    return slot


def check_slots(layout: Layout) -> None:
    """Refuse a slot that stands for two things on the same side: axes and measures name what is released.

    A filter may use the slot of an axis or a measure.

    Raises:
        InputError: `bad-params`.
    """
    named = [axis.slot for axis in layout.axes] + [measure.slot for measure in layout.measures]
    kept = [each.slot for each in layout.filters]
    for slots in (named, kept):
        if len(set(slots)) != len(slots):
            raise bad("two axes, filters or measures have one slot", "give each a slot of its own")


def fraction(value: object, where: str) -> Fraction:
    """Return a number that is written as text.

    Raises:
        InputError: no text such as "0.1", "1/10" or "-5" of at most 40 characters.
    """
    plain = value if isinstance(value, str) and len(value) <= _SPAN else ""
    digits = plain.removeprefix("-")
    parts = digits.split("/") if "/" in digits else digits.split(".")
    if not 1 <= len(parts) <= 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise bad(f"{where} is no number written as text", 'write it in quotation marks, such as "0.1"')
    if "/" in digits and int(parts[1]) == 0:
        raise bad(f"{where} divides by zero", 'write it in quotation marks, such as "0.1"')
    return Fraction(plain)


def _fractions(items: Sequence[object], where: str) -> tuple[Fraction, ...]:
    found = tuple(fraction(item, where) for item in items)
    if any(low >= high for low, high in pairwise(found)):
        raise bad(f"{where} is not in ascending order", "write the smallest first, each once")
    return found


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_TEXT or not value.isprintable():
        raise bad(f"{where} is no text of 1 to {MAX_TEXT} characters", "write it in quotation marks")
    if value != value.strip():
        raise bad(f"{where} begins or ends with a blank", "remove the blank: values are compared without")
    return value


def bad(message: str, hint: str) -> InputError:
    """Return the error for params that are not of their form."""
    return InputError(message, code="bad-params", hint=hint)


def decimal_text(value: Fraction) -> str:
    """Return `18`, `2.5`, or `1/3` where no decimal says it exactly."""
    if value.denominator == 1:
        return str(value.numerator)
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    if rest != 1:
        return str(value)
    digits = 0
    while (value * 10**digits).denominator != 1:
        digits += 1
    scaled = str(abs(int(value * 10**digits))).rjust(digits + 1, "0")
    return f"{'-' if value < 0 else ''}{scaled[:-digits]}.{scaled[-digits:]}"
