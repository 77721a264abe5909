"""What is asked of a database that counts by itself, and what becomes of its answers; the database is SQLite.

The other dialects are held against real servers in tests/databases, or, where there is none, compiled here
while SQLite answers for them.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import date
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from push_down_case import (
    AREAS,
    CODE,
    TODAY,
    EngineSource,
    Question,
    assert_same,
    metadata_of,
    people,
    questions,
    rows_of,
    same_or_read,
    stored,
)
from sqlalchemy.dialects.mysql.pymysql import MySQLDialect_pymysql
from sqlalchemy.dialects.oracle.oracledb import OracleDialect_oracledb

from node.mapping import ColumnMapping, MappedSource, Translator
from node.sources.grouped import can_count, count_there
from node.sources.words import ReadRows, Words
from protocols.codes import NATIONAL
from protocols.errors import InputError
from protocols.identifiers import normalise, resident_id, resident_id_check_digits
from protocols.jobs.job_type import UNIT, Unit
from protocols.tables.grouped import form_of
from protocols.tables.layout import Axis, Layout, Measure
from protocols.tables.tally import IDENTIFIERS, LATEST

TABLE = metadata_of("register", days=False, decimals=False)
PERSON = Unit("resident-id", 1, TODAY)
BY_CODE = Question(Layout((CODE,)), {"code": "code", UNIT: "person"}, PERSON)

QUICK = settings(
    max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)


def _mysql() -> sa.Dialect:
    dialect = MySQLDialect_pymysql()
    dialect.server_version_info = (8, 0, 36)
    return dialect


@pytest.fixture(scope="module")
def connection() -> Iterator[sa.Connection]:
    with sa.create_engine("sqlite://").connect() as opened:
        raw: Any = opened.connection.dbapi_connection
        raw.create_collation("utf8mb4_0900_bin", lambda a, b: (a > b) - (a < b))
        TABLE.create(opened)
        yield opened


@pytest.fixture
def fill(connection: sa.Connection) -> Callable[[list[dict[str, Any]]], EngineSource]:
    """Puts rows in the place of those before."""

    def put(rows: list[dict[str, Any]]) -> EngineSource:
        connection.execute(TABLE.delete())
        if rows:
            names = dict.fromkeys(name for row in rows for name in row)
            connection.execute(TABLE.insert(), [{name: row.get(name) for name in names} for row in rows])
        return EngineSource(connection, TABLE)

    return put


Fill = Callable[[list[dict[str, Any]]], EngineSource]


def crowd(count: int = 12, **more: Any) -> list[dict[str, Any]]:
    return [
        {"n": n, "person": person, "code": "12"[n % 2], "age": 20 + n, "income": 10 * n} | more
        for n, person in enumerate(people(count))
    ]


def check_counted(fill: Fill, given_settings: settings, *, dirty: bool) -> int:
    ways: Counter[bool] = Counter()

    @given_settings
    @given(questions(), st.booleans().flatmap(lambda nulls: rows_of(nulls=nulls, dirty=dirty)))
    def check(question: Question, rows: list[dict[str, Any]]) -> None:
        ways[same_or_read(question, fill(stored(rows, TABLE)))] += 1

    check()
    return ways[True]


@pytest.mark.parametrize("dirty", [False, True])
def test_what_is_counted_is_what_rows_say(fill: Fill, dirty: bool) -> None:
    assert check_counted(fill, QUICK, dirty=dirty) > 5


@pytest.mark.long
@pytest.mark.parametrize("dirty", [False, True])
def test_what_is_counted_is_what_rows_say_at_length(fill: Fill, dirty: bool) -> None:
    at_length = settings(QUICK, max_examples=1000, derandomize=False)
    assert check_counted(fill, at_length, dirty=dirty) > 200


# --- dialects without a server here -------------------------------------------------------------------------


@dataclass
class Speaking(EngineSource):
    """A source whose statements are said in another dialect, and then answered by SQLite."""

    spoken: sa.Dialect | None = None

    @property
    def dialect(self) -> sa.Dialect:
        assert self.spoken is not None
        return self.spoken

    def query(self, statement: sa.Select[Any]) -> Iterator[pa.RecordBatch]:
        self.asked.append(str(statement.compile(dialect=self.dialect)))
        return EngineSource(self.connection, self.table).query(statement)


def test_mysql_has_words_for_what_is_asked(fill: Fill) -> None:
    dialect = _mysql()

    @settings(QUICK, max_examples=6)
    @given(questions(), rows_of(nulls=False, dirty=True))
    def check(question: Question, rows: list[dict[str, Any]]) -> None:
        here = fill(stored(rows, TABLE))
        same_or_read(question, Speaking(here.connection, here.table, spoken=dialect))

    check()
    here = fill(crowd() + [row | {"n": 20 + row["n"], "income": 7} for row in crowd()])
    source = Speaking(here.connection, here.table, spoken=dialect)
    ages = Axis("age", bins=(Fraction(0), Fraction(25)))
    question = Question(
        Layout((CODE, ages), measures=(Measure("income", 0, 900),)),
        {"code": "code", "age": "age", "income": "income", LATEST: "n", UNIT: "person"},
        PERSON,
    )
    assert same_or_read(question, source)
    said = " ".join(source.asked).upper()
    assert all(word in said for word in ("ROW_NUMBER", "RANK", "GROUP BY", "PARTITION BY", "SUBSTR"))


def test_a_database_that_nobody_has_compared_is_read(fill: Fill) -> None:
    source = fill(crowd())
    with pytest.raises(ReadRows, match="what oracle counts"):
        BY_CODE.pushed(Speaking(source.connection, source.table, spoken=OracleDialect_oracledb()))
    old = _mysql()
    old.server_version_info = (5, 7, 44)
    with pytest.raises(ReadRows, match="of a version"):
        BY_CODE.pushed(Speaking(source.connection, source.table, spoken=old))


# --- what is said, and what is not --------------------------------------------------------------------------


@QUICK
@given(texts=st.lists(st.text(min_size=1, max_size=20).filter(lambda t: t == t.strip() and t.isprintable())))
def test_no_text_of_a_job_is_in_a_statement(texts: list[str]) -> None:
    marked = [f"§{text}" for text in dict.fromkeys(texts)] or ["§"]
    engine = sa.create_engine("sqlite://")
    with engine.connect() as connection:
        TABLE.create(connection)
        rows = [{"n": n, "person": f"p{n}", "code": text} for n, text in enumerate(marked)]
        connection.execute(TABLE.insert(), rows)
        source = EngineSource(connection, TABLE)
        question = Question(
            Layout((Axis("code", values=tuple(marked)),)), {"code": "code", UNIT: "person"}, Unit("text", 3)
        )
        assert same_or_read(question, source)
        assert source.asked
        assert not any("§" in statement for statement in source.asked)


def test_names_of_columns_are_quoted(connection: sa.Connection) -> None:
    nasty = 'c"; DROP TABLE register; --'
    table = sa.Table("odd", sa.MetaData(), sa.Column(nasty, sa.String(9)))
    table.create(connection)
    connection.execute(table.insert(), [{nasty: "1"}, {nasty: "2"}])
    question = Question(Layout((CODE,)), {"code": nasty})
    assert same_or_read(question, EngineSource(connection, table))
    assert sa.inspect(connection).has_table("register")


def test_one_row_for_each_cell_comes_back_and_no_person(fill: Fill) -> None:
    source = fill(crowd(400))
    came: list[pa.RecordBatch] = []
    plain = source.query
    source.query = lambda statement: (came.append(batch) or batch for batch in plain(statement))  # type: ignore[method-assign]  # watched
    assert BY_CODE.pushed(source).distinct_keys == 400
    assert sum(batch.num_rows for batch in came) < 20
    told = {str(value) for batch in came for row in batch.to_pylist() for value in row.values()}
    assert not told & set(people(400))


def test_a_thousand_rows_of_one_person_count_as_often_as_the_policy_says(fill: Fill) -> None:
    one = people(1)[0]
    rows = [{"n": n, "person": one, "code": "1", "income": n} for n in range(1000)] + [
        row | {"n": 1000 + row["n"]} for row in crowd(12)[1:]
    ]
    for most in (1, 5):
        question = Question(
            Layout((CODE,), unit_rows=5),
            {"code": "code", LATEST: "income", UNIT: "person"},
            Unit("resident-id", most, TODAY),
        )
        source = fill(rows)
        tally = question.pushed(source)
        assert_same(tally, question.read(source))
        assert tally.quality() == {"over-bound": 1000 - most}
        assert int(tally.counted().sum()) == most + 11


def test_the_attempt_may_end_between_statements(fill: Fill) -> None:
    calls = iter([None, None])

    def go_on() -> None:
        if next(calls, "over") == "over":
            raise InterruptedError

    with pytest.raises(InterruptedError):
        count_there(BY_CODE.builder(), fill(crowd()), BY_CODE.columns, go_on)


# --- mapped columns -----------------------------------------------------------------------------------------


def test_a_mapped_column_is_counted_by_its_codes_and_what_is_unmapped_is_told(fill: Fill) -> None:
    local = ["男", "女", "1", "M", " 男 ", "?", "", "２", None, "女", "x", "?"]
    rows = [row | {"kind": value} for row, value in zip(crowd(12), local, strict=True)]
    mapping = ColumnMapping(table="gbt2261.1@2003", values={"男": "1", "女": "2", "M": "1"})
    source = MappedSource(fill(rows), [Translator("kind", mapping, NATIONAL)])
    sexes = Axis("kind", values=("1", "2"))
    question = Question(Layout((sexes, CODE)), {"kind": "kind", "code": "code", UNIT: "person"}, PERSON)
    assert can_count(source)
    builder = question.builder()
    unmapped = count_there(builder, source, question.columns, lambda: None)
    tally = builder.finish()
    assert_same(tally, question.read(source))
    assert int(tally.persons().sum()) == 7
    assert dict(unmapped) == dict(source.unmapped) == {"kind": 3}


def test_codes_that_are_computed_are_read(fill: Fill) -> None:
    mapping = ColumnMapping(table="gbt2261.1@2003", values={"男": "1"}, default="keep")
    source = MappedSource(fill(crowd(kind="男")), [Translator("kind", mapping, NATIONAL)])
    question = Question(Layout((Axis("kind", values=("1",)),)), {"kind": "kind"})
    with pytest.raises(ReadRows, match="codes"):
        question.pushed(source)


# --- identifiers --------------------------------------------------------------------------------------------


def _typed(kind: str) -> st.SearchStrategy[str]:
    """Texts that look like identifiers of a type: sound ones, and such with one thing wrong."""
    areas = {
        "resident-id": ["990101", "990111", "990112", "110101", "810000"],
        "residence-permit": ["810000", "820000", "830000", "840000", "990101"],
        "permanent-resident": ["999156", "911250", "199156", "999999"],
    }[kind]
    day = st.dates(date(1900, 1, 1), date(2027, 1, 1)) | st.sampled_from(
        [TODAY, date(1905, 6, 30), date(1905, 7, 1), date(2000, 2, 29), date(2026, 7, 1)]
    )
    sound = st.builds(resident_id, st.sampled_from(areas), day, st.integers(0, 999))

    def impossible(text: str, days: str) -> str:
        body = text[:6] + days + text[14:17]
        check = resident_id_check_digits(np.frombuffer(body.encode(), np.uint8).reshape(1, 17))
        return body + chr(int(check[0]))

    calendar = st.sampled_from(
        ["19010229", "20000229", "19000229", "20250431", "20251301", "00000101", "20250100"]
    )
    broken = st.builds(impossible, sound, calendar)
    other = st.builds(
        lambda text, at, character: text[:at] + character + text[at + 1 :],
        sound | broken,
        st.integers(0, 17),
        st.sampled_from("0123456789Xx ０-A\n"),
    )
    return sound | broken | other | st.builds(lambda text, end: text + end, sound, st.sampled_from(" \n0X"))


@pytest.mark.parametrize("kind", ["resident-id", "residence-permit", "permanent-resident", "uscc"])
def test_a_text_of_the_form_is_its_own_key(connection: sa.Connection, kind: str) -> None:
    form = form_of(kind, TODAY, AREAS)
    assert form is not None
    words, ways = Words(connection.dialect), Counter[bool]()
    texts = _typed(kind) if kind != "uscc" else _credit_codes()
    table = sa.table("ids", sa.column("t", sa.Text))
    connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS ids (t TEXT)")

    @QUICK
    @given(st.lists(texts, min_size=20, max_size=30))
    def check(many: list[str]) -> None:
        connection.exec_driver_sql("DELETE FROM ids")
        connection.execute(sa.insert(sa.table("ids", sa.column("t"))), [{"t": text} for text in many])
        statement = sa.select(table.c.t).where(words.sound(words.exact(table.c.t), form))
        sound = {text for (text,) in connection.execute(statement)}
        found = normalise(pa.array(many), IDENTIFIERS[kind], as_of=TODAY, areas=AREAS)
        keys = dict(zip(found.rows.tolist(), found.keys.tolist(), strict=True))
        for at, text in enumerate(many):
            own = at in keys and keys[at].decode().partition(":")[2] == text
            # Whoever is sound here is so there; and of eighteen plain characters the other way round, too.
            assert own or text not in sound
            if own and len(text) == 18:
                assert text in sound
            ways[text in sound] += 1

    check()
    assert min(ways[True], ways[False]) > 50


def _credit_codes() -> st.SearchStrategy[str]:
    alphabet = "0123456789ABCDEFGHJKLMNPQRTUWXY"

    def made(head: str, area: int, tail: str) -> str:
        body = f"{head}{area:06d}{tail}"
        total = sum(alphabet.index(c) * pow(3, at, 31) for at, c in enumerate(body))
        return body + alphabet[-total % 31]

    sound = st.builds(
        made,
        st.text(alphabet, min_size=2, max_size=2),
        st.integers(0, 999_999),
        st.text(alphabet, min_size=9, max_size=9),
    )
    other = st.builds(
        lambda text, at, character: text[:at] + character + text[at + 1 :],
        sound,
        st.integers(0, 17),
        st.sampled_from(alphabet + "IOSVZa "),
    )
    return sound | other | st.sampled_from(["0" * 18, "1" * 18, "9" * 18, "A" * 18])


# --- what a source may not answer ---------------------------------------------------------------------------


@dataclass
class Lying(EngineSource):
    """A source whose answers somebody has changed."""

    change: Callable[[dict[str, Any]], None] = lambda row: None

    def query(self, statement: sa.Select[Any]) -> Iterator[pa.RecordBatch]:
        for batch in super().query(statement):
            rows = batch.to_pylist()
            for row in rows:
                self.change(row)
            yield pa.RecordBatch.from_pylist(rows)


def _set(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(row: dict[str, Any]) -> None:
        if name in row and "persons" in row:
            row[name] = value(row[name]) if callable(value) else value

    return change


LIES: dict[str, Callable[[dict[str, Any]], None]] = {
    "more persons than rows": _set("persons", lambda n: n + 1),
    "nobody in a cell that is there": _set("persons", 0),
    "more rows than there are": _set("n", lambda n: n + 1000),
    "a count that is none": _set("n", "many"),
    "a count with a fraction": _set("n", 1.5),
    "a count below zero": _set("n", -1),
    "a count beyond 64 bits": _set("n", "99999999999999999999"),
    "another cell": _set("c0", "3"),
    "one cell twice": _set("c0", "1"),
    "more than amounts can be": _set("s0", 10**12),
    "less than amounts can be": _set("s0", -1),
    "more amounts than rows": _set("p0", lambda n: n + 1),
    "a part larger than the whole": _set("t0", lambda n: n + 10**6),
    "a second larger than the first": lambda row: row.update(u0=row["t0"] + 1) if "u0" in row else None,
    "no largest part": lambda row: row.update(t0=0, u0=0) if "u0" in row else None,
    "a column that is missing": lambda row: row.pop("persons", None) and None,
}


@pytest.mark.parametrize("lie", LIES)
def test_counts_that_contradict_one_another_are_refused(fill: Fill, lie: str) -> None:
    here = fill(crowd(8))
    question = Question(
        Layout((CODE,), measures=(Measure("income", 0, 900),)),
        {"code": "code", "income": "income", UNIT: "person"},
        PERSON,
    )
    assert_same(question.pushed(here), question.read(here))
    with pytest.raises(InputError) as caught:
        question.pushed(Lying(here.connection, here.table, change=LIES[lie]))
    assert caught.value.code == "count-mismatch"


def test_what_two_statements_may_see_in_two_states_is_read(fill: Fill) -> None:
    here = fill(crowd(8))
    assert_same(BY_CODE.pushed(here), BY_CODE.read(here))
    with pytest.raises(ReadRows, match="in one state"):
        BY_CODE.pushed(replace(here, settled=False))


def test_cells_that_a_source_does_not_cover_do_not_count_there_either(fill: Fill) -> None:
    ages = Axis("age", bins=(Fraction(0), Fraction(25), Fraction(30)))
    base = Question(Layout((CODE, ages)), {"code": "code", "age": "age", UNIT: "person"}, PERSON)
    split = replace(base, covered=tuple([True, False, True] * 5))
    source = fill(crowd(20))
    tally = split.pushed(source)
    assert_same(tally, split.read(source))
    assert tally.quality()["outside"] == 5
    odd = replace(base, covered=tuple([True, False, True] * 4 + [True, True, True]))
    with pytest.raises(ReadRows, match="covers"):
        odd.pushed(source)
