"""Tables of dirty rows in a database, counted there and read here, for tests that both give one tally."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final, Self

import numpy as np
import pyarrow as pa
import pytest
import sqlalchemy as sa
from hypothesis import strategies as st

from node.sources import Source, SourceColumn
from node.sources.grouped import count_there
from node.sources.words import ReadRows
from protocols.errors import InputError
from protocols.identifiers import demo_area_table, resident_id
from protocols.jobs.job_type import UNIT, Unit
from protocols.tables.layout import Axis, Filter, Layout, Measure
from protocols.tables.tally import LATEST, Tally, TallyBuilder

AREAS: Final = demo_area_table()
TODAY: Final = date(2026, 6, 30)
BATCH: Final = 7  # small, so that every table comes in several

Row = Mapping[str, Any]


def kind_of(column: sa.Column[Any]) -> str:
    """Return what a source calls a column's type."""
    kinds = ((sa.Boolean, "boolean"), (sa.Integer, "integer"), (sa.Numeric, "decimal"), (sa.Date, "date"))
    return next((name for kind, name in kinds if isinstance(column.type, kind)), "text")


def arrow_of(column: sa.Column[Any]) -> pa.DataType:
    """Return what a column is read as."""
    stored = column.type
    if isinstance(stored, sa.Float):
        return pa.float64()
    if isinstance(stored, sa.Numeric):
        return pa.decimal128(stored.precision or 38, stored.scale or 0)
    plain = {"boolean": pa.bool_(), "integer": pa.int64(), "date": pa.date32()}
    return plain.get(kind_of(column), pa.string())


@dataclass
class EngineSource:
    """A table behind SQLAlchemy, as plainly as can be: what a database source has to offer for counting."""

    connection: sa.Connection
    table: sa.Table
    asked: list[str] = field(default_factory=list)
    settled: bool = True

    @property
    def dialect(self) -> sa.Dialect:
        return self.connection.dialect

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to let go of."""

    def columns(self) -> tuple[SourceColumn, ...]:
        return tuple(SourceColumn(column.name, kind_of(column)) for column in self.table.columns)

    def snapshot(self) -> str:
        return f"{TODAY}T00:00:00Z"

    def fingerprint(self) -> str:
        return "sha256:" + "0" * 64

    def read(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        schema = pa.schema([(name, arrow_of(self.table.c[name])) for name in columns])
        rows = self.connection.execute(sa.select(*(self.table.c[name] for name in columns))).fetchall()
        for first in range(0, len(rows), BATCH):
            some = rows[first : first + BATCH]
            arrays = [pa.array([row[i] for row in some], each.type) for i, each in enumerate(schema)]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)

    def query(self, statement: sa.Select[Any]) -> Iterator[pa.RecordBatch]:
        compiled = statement.compile(dialect=self.dialect)
        self.asked.append(str(compiled))
        found = self.connection.execute(statement)
        names, rows = list(found.keys()), found.fetchall()
        if not rows:
            return
        arrays = [pa.array([row[i] for row in rows]) for i in range(len(names))]
        for i, array in enumerate(arrays):
            if pa.types.is_null(array.type):
                arrays[i] = array.cast(pa.string())
        yield pa.RecordBatch.from_arrays(arrays, names=names)


# --- questions ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """What a builder is made of, and which column is which slot."""

    layout: Layout
    columns: Mapping[str, str]
    unit: Unit | None = None
    clamp: bool = False
    keys: str = ""
    covered: tuple[bool, ...] | None = None

    def builder(self) -> TallyBuilder:
        return TallyBuilder(
            self.layout,
            unit=self.unit,
            as_of=TODAY,
            areas=AREAS,
            clamp=self.clamp,
            keys=self.keys,
            covered=None if self.covered is None else np.array(self.covered),
        )

    def read(self, source: Source) -> Tally:
        """Return the tally of rows that were read one by one."""
        builder = self.builder()
        slots = sorted(self.columns)
        wanted = list(dict.fromkeys(self.columns[slot] for slot in slots))
        for batch in source.read(wanted):
            builder.add({slot: batch.column(self.columns[slot]) for slot in slots})
        return builder.finish()

    def pushed(self, source: Source) -> Tally:
        """Return the tally that the source counted itself.

        Raises:
            ReadRows: it is not to.
        """
        builder = self.builder()
        count_there(builder, source, self.columns, lambda: None)
        return builder.finish()


def assert_same(one: Tally, other: Tally) -> None:
    """Two tallies are one, in everything that anybody can ask of them."""
    assert one.quality() == other.quality()
    for name in ("layout", "rows", "distinct_keys", "rule_version", "about_units"):
        assert getattr(one, name) == getattr(other, name), name
    assert one.keyed()[0] == other.keyed()[0]
    for mine, theirs in zip(one._vectors(), other._vectors(), strict=True):
        assert mine.dtype == theirs.dtype
        assert mine.tolist() == theirs.tolist()
    for slot in one._added:
        assert (one._added[slot].tops is None) == (other._added[slot].tops is None)
    assert one.commitment(bytes(32)) == other.commitment(bytes(32))


def same_or_read(question: Question, source: Source) -> bool:
    """Whether the source counted; then what it counted is what rows say."""
    try:
        pushed: Tally | InputError = question.pushed(source)
    except ReadRows:
        return False
    except InputError as error:
        pushed = error
    if isinstance(pushed, Tally):
        assert_same(pushed, question.read(source))
        return True
    with pytest.raises(InputError) as caught:
        question.read(source)
    assert (caught.value.code, caught.value.message) == (pushed.code, pushed.message)
    return True


# --- a register ---------------------------------------------------------------------------------------------


def people(count: int) -> list[str]:
    """Return so many sound identifiers."""
    return [
        resident_id(f"9901{1 + n % 11:02d}", date(1950, 1, 1) + timedelta(days=97 * n % 27_000), n % 1000)
        for n in range(count)
    ]


_PEOPLE: Final = people(9)
_DIRTY_IDS: Final = (
    _PEOPLE[0][:17] + ("0" if _PEOPLE[0][17] != "0" else "1"),
    _PEOPLE[1].translate({ord(str(d)): chr(0xFF10 + d) for d in range(10)}),
    f" {_PEOPLE[2]}",
    f"{_PEOPLE[3]} ",
    f"{_PEOPLE[4]}\n",
    _PEOPLE[5][:6] + _PEOPLE[5][8:17],  # fifteen digits
    "110101" + _PEOPLE[6][6:],
    "99010120000230002X",
    "990101190102290006",
    "",
    "无",
    "'; DROP TABLE people; --",
    _PEOPLE[7].lower(),
    "990111209001010015",
    resident_id("810000", date(1990, 1, 1), 3),
    resident_id("990101", date(1900, 1, 1), 3),
    resident_id("990101", date(2000, 2, 29), 11),
    resident_id("990101", TODAY, 5),
    resident_id("990101", TODAY + timedelta(days=1), 5),
    resident_id("990101", date(1905, 6, 30), 7),
    resident_id("990101", date(1905, 7, 1), 7),
)
_CODES: Final = (
    "1",
    "2",
    "3",
    " 1",
    "1 ",
    "2\t",
    "1\n",
    "A\n",
    "\u30001",
    "x",
    "",
    "A",
    "a",
    "é",
    "e",
    "'",
    '"',
    "%",
    "\\",
)
_DAYS: Final = ("2026-01-02", "2026-01-03", "2026-02", "202603", "2025-12-31", "", "never", "2026-01-02 ")


def metadata_of(name: str, *, days: bool = True, decimals: bool = True) -> sa.Table:
    """Return the table of a register, for a database with these types."""
    amount = sa.Numeric(12, 3) if decimals else sa.Integer()
    return sa.Table(
        name,
        sa.MetaData(),
        sa.Column("n", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("person", sa.String(40)),
        sa.Column("code", sa.String(80)),
        sa.Column("kind", sa.String(80)),
        sa.Column("age", sa.Integer),
        sa.Column("amount", amount),
        sa.Column("income", sa.BigInteger),
        sa.Column("day", sa.Date() if days else sa.String(20)),
        sa.Column("seen", sa.String(20)),
        sa.Column("rate", sa.Float(53)),
    )


def rows_of(*, nulls: bool, dirty: bool) -> st.SearchStrategy[list[dict[str, Any]]]:
    """Rows of such a register."""

    def maybe(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        return st.none() | values if nulls else values

    persons = st.sampled_from(_PEOPLE)
    if dirty:
        persons = persons | persons | st.sampled_from(_DIRTY_IDS)
    row = st.fixed_dictionaries(
        {
            "person": persons,
            "code": st.sampled_from(_CODES if dirty else _CODES[:3]) | maybe(st.just("2")),
            "kind": maybe(st.sampled_from(_CODES[:5] if dirty else _CODES[:3])),
            "age": maybe(st.integers(-3, 120)),
            "amount": maybe(st.integers(-50, 5_500)),
            "income": maybe(st.integers(0, 900)),
            "day": maybe(st.integers(0, 800)),
            "seen": maybe(st.sampled_from(_DAYS if dirty else _DAYS[:2])),
            "rate": maybe(st.sampled_from([0.5, 2.675])),
        }
    )
    return st.lists(row, max_size=40)


def stored(rows: Sequence[Row], table: sa.Table) -> list[dict[str, Any]]:
    """Return rows as the table's types have them."""
    found = []
    for number, row in enumerate(rows):
        plain = {"n": number, **row}
        if isinstance(table.c.amount.type, sa.Numeric) and row["amount"] is not None:
            plain["amount"] = Decimal(row["amount"]) / 1000
        if row["day"] is not None:
            day = date(2024, 6, 1) + timedelta(days=row["day"])
            plain["day"] = day if isinstance(table.c.day.type, sa.Date) else day.isoformat()
        found.append(plain)
    return found


CODE: Final = Axis("code", values=("1", "2", "a", "A", "é"))
KIND: Final = Axis("kind", values=("3", "1"))
AGE: Final = Axis("age", bins=(Fraction(0), Fraction(18), Fraction(121, 2)))


def questions() -> st.SearchStrategy[Question]:
    """Questions to such a register."""
    filters = st.sampled_from(
        [
            (),
            (Filter("kind", values=("1", "2")),),
            (Filter("age", low=Fraction(3), high=Fraction(201, 2)),),
            (Filter("amount", low=Fraction(1, 3), high=Fraction(4)), Filter("code", values=("1", "2"))),
            (Filter("day", low=Fraction(2025 * 12), high=Fraction(2026 * 12 + 1), months=True),),
            (Filter("seen", low=Fraction(2026 * 12), months=True),),
        ]
    )
    measures = st.sampled_from(
        [
            (),
            (Measure("income", 0, 900),),
            (Measure("income", 0, 9000, 1), Measure("amount", 0, 5500, 3)),
            (Measure("amount", 0, 600, 2),),
            (Measure("amount", 100, 3000, 3), Measure("income", 5, 500)),
            (Measure("amount", -3, 4),),
        ]
    )
    axes = st.sampled_from([(CODE,), (AGE,), (CODE, AGE), (KIND, CODE), (AGE, KIND, CODE)])
    units = st.sampled_from(
        [None, Unit("resident-id", 1, TODAY), Unit("resident-id", 3, TODAY), Unit("code", 2)]
    )

    @st.composite
    def made(draw: st.DrawFn) -> Question:
        keys = "kind" if draw(st.integers(0, 5)) == 0 else ""
        layout = Layout(
            () if keys else draw(axes), draw(filters), draw(measures), draw(st.sampled_from([1, 2, 9]))
        )
        unit, latest = draw(units), draw(st.sampled_from(["", "day", "income", "seen"]))
        columns = {slot: slot for slot in layout.slots}
        columns |= {LATEST: latest} if latest else {}
        columns |= {UNIT: "person"} if unit else {}
        columns |= {keys: keys} if keys else {}
        if not columns:
            columns = {LATEST: "income"}
        covered = None
        if layout.axes and draw(st.booleans()):
            first = layout.axes[0].size
            covered = tuple(at // (layout.cells // first) != 1 for at in range(layout.cells))
        return Question(layout, columns, unit, draw(st.booleans()), keys, covered)

    return made()
