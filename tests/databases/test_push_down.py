"""Counting in real databases gives the very tally that reading their rows gives."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from databases.servers import Server
from databases.tables import access_of, allow, source_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from push_down_case import (
    AGE,
    CODE,
    KIND,
    TODAY,
    Question,
    assert_same,
    metadata_of,
    people,
    questions,
    rows_of,
    same_or_read,
    stored,
)
from release_case import release_spec
from table_case import table_spec

from node.admission import Prepared, prepare
from node.gate import About
from node.sources import Access, TablePlace
from node.sources.database import DatabaseSource
from node.sources.dialects import LOCK_WAIT_S
from node.sources.words import ReadRows, Words
from node.state import Dataset
from protocols.errors import InputError
from protocols.ids import DatasetName
from protocols.jobs.job_type import UNIT, Unit, source
from protocols.tables.layout import Axis, Filter, Layout, Measure
from protocols.tables.tally import LATEST, Tally
from protocols.wire import JobSpec

pytestmark = pytest.mark.alone

TABLE = metadata_of("register")
PERSON = Unit("resident-id", 1, TODAY)
CODES = ("1", "2")

_COLUMNS = {
    "postgresql": """n integer PRIMARY KEY, person varchar(40), code varchar(80), kind text, age smallint,
        amount numeric(12, 3), income bigint, day date, seen varchar(20), rate double precision,
        at timestamp, loose numeric""",
    # Its usual collation takes case and blanks at the end for nothing.
    "mariadb": """n integer PRIMARY KEY, person varchar(40) COLLATE utf8mb4_general_ci,
        code varchar(80) CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci,
        kind tinytext COLLATE utf8mb4_unicode_ci, age tinyint, amount decimal(12, 3),
        income bigint unsigned, day date, seen varchar(20) CHARACTER SET gbk, rate double,
        at datetime(6), loose decimal(60, 20)""",
}


class Register:
    """One table of one server, filled anew for every case."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server, self._folder = server, folder
        self.name = server.new_name("register")
        server.run(f"CREATE TABLE {self.name} ({_COLUMNS[server.dialect]})")
        allow(server, self.name)

    def fill(self, rows: list[dict[str, Any]]) -> None:
        """Put rows in the place of those before."""
        with closing(self.server.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(f"DELETE FROM {self.name}")
            if rows:
                names = list(dict.fromkeys(name for row in rows for name in row))
                marks = ", ".join(["%s"] * len(names))
                cursor.executemany(
                    f"INSERT INTO {self.name} ({', '.join(names)}) VALUES ({marks})",
                    [tuple(row.get(name) for name in names) for row in rows],
                )

    def source(self, name: str = "", **changes: Any) -> DatabaseSource:
        return source_of(self.server, self._folder, name or self.name, **changes)

    def access(self) -> Access:
        return access_of(self.server, self._folder)

    def dataset(self) -> Dataset:
        """Return it as it is registered, with a column that says when it was written."""
        place = TablePlace("registers", self.name, updated="day")
        self.server.run(f"UPDATE {self.name} SET day = '2026-06-01'")
        with self.source() as source:
            columns = source.columns()
        return Dataset(DatasetName("people"), "", place, "person", columns, 9, 9, 9, "2026-01-01T00:00:00Z")


@pytest.fixture(scope="module", params=["postgres", "mariadb"])
def register(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Register:
    return Register(request.getfixturevalue(request.param), tmp_path_factory.mktemp("connection"))


def plain(person: str, number: int, **more: Any) -> dict[str, Any]:
    return {"n": number, "person": person, "code": "1", "age": 30, "income": 10, **more}


def by(*axes: Axis, most: int = 1, **more: Any) -> Layout:
    return Layout(axes, unit_rows=most, **more)


@pytest.mark.parametrize("dirty", [False, True])
def test_what_a_database_counts_is_what_its_rows_say(register: Register, dirty: bool) -> None:
    counted = []

    @settings(
        max_examples=25,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(questions(), st.booleans().flatmap(lambda nulls: rows_of(nulls=nulls, dirty=dirty)))
    def check(question: Question, rows: list[dict[str, Any]]) -> None:
        register.fill(stored(rows, TABLE))
        with register.source() as source:
            counted.append(same_or_read(question, source))

    check()
    assert sum(counted) > len(counted) / 3


@pytest.mark.long
def test_what_a_database_counts_is_what_its_rows_say_at_length(register: Register) -> None:
    @settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(questions(), st.booleans().flatmap(lambda dirty: rows_of(nulls=dirty, dirty=dirty)))
    def check(question: Question, rows: list[dict[str, Any]]) -> None:
        register.fill(stored(rows, TABLE))
        with register.source() as source:
            same_or_read(question, source)

    check()


def test_a_person_with_a_thousand_rows_counts_as_often_as_the_policy_says(register: Register) -> None:
    one, *others = people(30)
    rows = [
        plain(one, n, code="12"[n % 2], income=n % 900, day=date(2020, 1, 1) + timedelta(days=n))
        for n in range(1000)
    ]
    rows += [plain(each, 1000 + n, day=date(2021, 1, 1)) for n, each in enumerate(others)]
    register.fill(rows)
    measure = Measure("income", 0, 900)
    for most in (1, 3, 12):
        question = Question(
            by(CODE, most=12, measures=(measure,)),
            {"code": "code", "income": "income", LATEST: "day", UNIT: "person"},
            Unit("resident-id", most, TODAY),
        )
        with register.source() as source:
            tally = question.pushed(source)
            assert_same(tally, question.read(source))
        assert tally.rows == 1029
        assert tally.distinct_keys == 30
        assert int(tally.counted().sum()) == most + 29
        assert tally.quality()["over-bound"] == 1000 - most
        # The latest rows are those that count.
        assert int(tally.tops("income")[0].max()) <= sum(n % 900 for n in range(1000 - most, 1000)) + 10


def test_a_second_spelling_of_a_person_takes_all_rows_of_that_person_out_of_the_groups(
    register: Register,
) -> None:
    persons = people(40)
    wide = persons[0].translate({ord(str(d)): chr(0xFF10 + d) for d in range(10)})
    rows = [plain(each, n, day=date(2026, 1, 1 + n % 3)) for n, each in enumerate([*persons, *persons[:9]])]
    rows += [plain(wide, 90, code="2", day=date(2026, 5, 1)), plain(persons[1].lower() + " ", 91)]
    register.fill(rows)
    question = Question(by(CODE), {"code": "code", LATEST: "day", UNIT: "person"}, PERSON)
    with register.source() as source:
        tally = question.pushed(source)
        assert_same(tally, question.read(source))
    assert tally.distinct_keys == 40
    assert int(tally.persons()[1]) == 1  # by the spelling that is latest


def test_letters_of_another_case_and_blanks_at_the_end_are_other_texts(register: Register) -> None:
    texts = ["a", "A", "a ", " A", "á", "é", "e", "É", "A\t", "b"]
    register.fill(
        [plain(each, n, code=text) for n, (each, text) in enumerate(zip(people(10), texts, strict=True))]
    )
    question = Question(by(CODE), {"code": "code", UNIT: "person"}, PERSON)
    with register.source() as source:
        tally = question.pushed(source)
        assert_same(tally, question.read(source))
    assert tally.persons().tolist() == [0, 0, 2, 3, 1]


@pytest.mark.parametrize("kind", ["code", "text"])
def test_units_without_a_canonical_form_are_told_apart_by_every_character(
    register: Register, kind: str
) -> None:
    units = ["A1", "a1", "A1 ", "Ａ1", "张三", "张三 ", "x y", "A1", "é", "e\u0301"]
    register.fill([plain(each, n) for n, each in enumerate(units)])
    question = Question(by(CODE, most=3), {"code": "code", UNIT: "person"}, Unit(kind, 2))
    with register.source() as source:
        tally = question.pushed(source)
        assert_same(tally, question.read(source))
    assert tally.distinct_keys == 7


def test_amounts_are_rounded_half_to_even_in_the_database_too(register: Register) -> None:
    amounts = ["0.005", "0.015", "0.025", "0.0251", "2.675", "-0.005", "-0.015", "-2.5", "3.995", "4.005"]
    register.fill(
        [
            plain(each, n, amount=Decimal(a))
            for n, (each, a) in enumerate(zip(people(10), amounts, strict=True))
        ]
    )
    for decimals, low, high in ((2, -100, 400), (1, -20, 39), (0, -2, 3), (3, -4000, 5000)):
        layout = by(CODE, measures=(Measure("amount", low, high, decimals),))
        question = Question(layout, {"code": "code", "amount": "amount", UNIT: "person"}, PERSON, clamp=True)
        with register.source() as source:
            assert_same(question.pushed(source), question.read(source))


READ: list[tuple[str, Question, dict[str, Any]]] = [
    (
        "doubles",
        Question(by(CODE, measures=(Measure("rate", 0, 900),)), {"code": "code", "rate": "rate"}),
        {"rate": 1.5},
    ),
    (
        "digits they have",
        Question(by(CODE, measures=(Measure("loose", 0, 9),)), {"code": "code", "loose": "loose"}),
        {"loose": Decimal("1.5")},
    ),
    ("no unit", Question(by(CODE), {"code": "code", UNIT: "person"}, PERSON), {"person": None}),
    (
        "out of bounds",
        Question(by(CODE, measures=(Measure("income", 0, 9),)), {"code": "code", "income": "income"}),
        {"income": 10},
    ),
    ("canonical", Question(by(CODE), {"code": "code", UNIT: "person"}, Unit("phone", 1, TODAY)), {}),
    (
        "makes sense",
        Question(
            by(CODE, filters=(Filter("at", low=Fraction(24000), months=True),)), {"code": "code", "at": "at"}
        ),
        {"at": "2026-01-02 03:04:05"},
    ),
]


@pytest.mark.parametrize(("why", "question", "more"), READ, ids=[why for why, *_ in READ])
def test_what_sql_cannot_answer_just_so_is_read(
    register: Register, why: str, question: Question, more: dict[str, Any]
) -> None:
    register.fill([plain(people(1)[0], 0) | more])
    with register.source() as source, pytest.raises(ReadRows, match=why):
        question.pushed(source)


def test_of_equally_late_rows_those_count_that_are_read_first(register: Register) -> None:
    persons = people(30)
    wide = persons[0].translate({ord(str(d)): chr(0xFF10 + d) for d in range(10)})
    day = date(2026, 1, 1)
    rows = [
        plain(wide if n % 7 == 3 else persons[n * n % 30], n, day=day, code="123"[n * 5 % 3], income=n % 9)
        for n in range(120)
    ]
    register.fill(rows[::-1])
    # What is written anew lies elsewhere, though its key is as before.
    register.server.run(f"UPDATE {register.name} SET income = 8 WHERE n % 4 = 1")
    for most in (1, 2):
        question = Question(
            by(CODE, most=most, measures=(Measure("income", 0, 9),)),
            {"code": "code", "income": "income", LATEST: "day", UNIT: "person"},
            Unit("resident-id", 2, TODAY),
        )
        undated = Question(
            question.layout, {k: v for k, v in question.columns.items() if k != LATEST}, PERSON
        )
        for each in (question, undated):
            with register.source() as source:
                tally = each.pushed(source)
                assert_same(tally, each.read(source))
            assert tally.quality()["over-bound"] > 50


def test_where_nothing_says_what_is_read_first_equally_late_rows_that_differ_are_read(
    register: Register,
) -> None:
    server, one, other = register.server, *people(2)
    name = server.new_name("loose")
    parts = "" if server.dialect == "mariadb" else " PARTITION BY LIST (code)"
    server.run(f"CREATE TABLE {name} (person varchar(18), code varchar(2), day date){parts}")
    if parts:
        server.run(f"CREATE TABLE {name}_1 PARTITION OF {name} DEFAULT")
    allow(server, name)
    values = f"('{one}', '1', '2026-01-01'), ('{one}', '1', '2026-01-01'), ('{other}', '1', '2026-01-01')"
    server.run(f"INSERT INTO {name} VALUES {values}")
    question = Question(by(CODE), {"code": "code", LATEST: "day", UNIT: "person"}, PERSON)
    with register.source(name) as source:
        assert_same(question.pushed(source), question.read(source))
    server.run(f"INSERT INTO {name} VALUES ('{one}', '2', '2026-01-01')")
    with register.source(name) as source, pytest.raises(ReadRows, match="equally late"):
        question.pushed(source)


def test_a_view_is_read_for_nobody_knows_whether_two_statements_see_one_state_of_it(
    register: Register,
) -> None:
    server, persons = register.server, people(9)
    register.fill([plain(persons[n % 9], n, code="12"[n * 5 % 3 % 2]) for n in range(30)])
    name = server.new_name("seen")
    server.run(f"CREATE VIEW {name} AS SELECT person, code, income FROM {register.name}")
    allow(server, name)
    question = Question(by(CODE), {"code": "code", UNIT: "person"}, PERSON)
    with register.source(name) as source:
        with pytest.raises(ReadRows, match="in one state"):
            question.pushed(source)
        assert question.read(source).quality() == {"over-bound": 21}


@pytest.mark.parametrize("column", ["code", "person"])
def test_a_text_longer_than_anybody_judges_never_leaves_the_database(register: Register, column: str) -> None:
    server, name = register.server, register.server.new_name("long")
    server.run(f"CREATE TABLE {name} (n integer PRIMARY KEY, person text, code text)")
    allow(server, name)
    server.run(f"INSERT INTO {name} VALUES (1, '{people(1)[0]}', '1')")
    question = Question(by(CODE), {"code": "code", UNIT: "person"}, PERSON)
    with register.source(name) as source:
        assert_same(question.pushed(source), question.read(source))
    server.run(f"UPDATE {name} SET {column} = REPEAT('x', 1025)")
    with register.source(name) as source:
        answers: list[int] = []
        plainly = source.query

        def query(statement: Any) -> Any:
            for batch in plainly(statement):
                answers.append(batch.nbytes)
                yield batch

        source.query = query  # type: ignore[method-assign]  # watched
        with pytest.raises(ReadRows, match="1024 characters"):
            question.pushed(source)
        assert max(answers) < 1024


def test_numbers_in_a_column_of_fixed_width_are_counted(postgres: Server, tmp_path: Path) -> None:
    register, name = Register(postgres, tmp_path), postgres.new_name("fixed")
    postgres.run(f"CREATE TABLE {name} (person char(18), code char(3))")
    allow(postgres, name)
    short = people(5)[4][:6] + people(5)[4][8:17]
    rows = [(person, "1") for person in people(5)] + [(short, "a"), (people(1)[0], " A")]
    postgres.run_many(f"INSERT INTO {name} VALUES (%s, %s)", rows)
    question = Question(by(CODE, most=2), {"code": "code", UNIT: "person"}, Unit("resident-id", 2, TODAY))
    with register.source(name) as source:
        tally = question.pushed(source)
        assert_same(tally, question.read(source))
    assert tally.distinct_keys == 5
    assert tally.counted().tolist() == [5, 0, 1, 1, 0]


def test_not_a_number_and_days_without_end_are_left_to_reading(postgres: Server, tmp_path: Path) -> None:
    register = Register(postgres, tmp_path)
    bins = Axis("amount", bins=(Fraction(0), Fraction(10)))
    questions = [
        Question(by(bins), {"amount": "amount"}),
        Question(by(CODE), {"code": "code", LATEST: "day", UNIT: "person"}, PERSON),
    ]
    register.fill([plain(people(1)[0], 0, amount="NaN", day="infinity")])
    for question in questions:
        with register.source() as source, pytest.raises(ReadRows):
            question.pushed(source)


def test_days_that_are_none_are_left_to_reading(mariadb: Server, tmp_path: Path) -> None:
    register = Register(mariadb, tmp_path)
    mariadb.run(
        "SET sql_mode = ''",
        f"INSERT INTO {register.name} (n, person, code, day) VALUES (1, '{people(1)[0]}', '1', '0000-00-00')",
    )
    question = Question(by(CODE), {"code": "code", LATEST: "day", UNIT: "person"}, PERSON)
    with register.source() as source:
        with pytest.raises(ReadRows, match="calendar"):
            question.pushed(source)
        assert question.read(source).quality() == {"no-date": 1}
    mariadb.run(
        "SET sql_mode = 'ALLOW_INVALID_DATES'",
        f"UPDATE {register.name} SET day = '2026-02-31'",
    )
    with register.source() as source:
        with pytest.raises(ReadRows, match="calendar"):
            question.pushed(source)
        with pytest.raises(InputError) as caught:
            question.read(source)
    assert caught.value.code == "bad-value"
    mariadb.run(f"UPDATE {register.name} SET day = '2028-02-29'")
    with register.source() as source:
        assert_same(question.pushed(source), question.read(source))


NASTY = (
    "'",
    "''; DROP TABLE register; --",
    "\\",
    "\\'",
    "%s",
    "%(x)s",
    ":x",
    "$1",
    '"',
    "`",
    "{}",
    "1' OR '1'='1",
)


def test_no_value_of_a_job_is_ever_a_word_of_a_statement(register: Register) -> None:
    register.fill(
        [plain(each, n, code=text) for n, (each, text) in enumerate(zip(people(20), NASTY, strict=False))]
    )
    axis = Axis("code", values=tuple(text for text in NASTY if text == text.strip()))
    layout = by(axis, filters=(Filter("kind", values=NASTY[:3]),))
    for question in (
        Question(by(axis), {"code": "code", UNIT: "person"}, PERSON),
        Question(layout, {"code": "code", "kind": "kind"}),
        Question(by(AGE, KIND), {"age": "age", "kind": "code", UNIT: "code"}, Unit("code", 1)),
    ):
        with register.source() as source:
            assert_same(question.pushed(source), question.read(source))


def test_nobody_can_tell_from_an_admission_whether_rows_were_read_or_counted(
    register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        plain(each, n, code=CODES[n % 2], seen="2026-03-0" + str(1 + n % 9))
        for n, each in enumerate(people(60))
    ]
    register.fill([*rows, plain(people(1)[0], 99, code=CODES[1], seen="2026-05-01")])
    dataset = register.dataset()

    def prepared(spec: JobSpec) -> Prepared:
        rand = random.Random(1).randbytes
        return prepare(
            spec,
            source(1),
            dataset,
            register.access(),
            about=About("person", Unit("resident-id", 1)),
            rand=rand,
            go_on=lambda: None,
        )

    for spec in (
        table_spec(1, axes=[{"slot": "code", "values": list(CODES)}]),
        release_spec("histogram", axes=[{"slot": "code", "values": list(CODES)}]),
    ):
        [brings] = spec.inputs
        asked = replace(spec, inputs=(replace(brings, columns={"code": "code", LATEST: "seen"}),))
        counted = prepared(asked)
        assert counted.read_because == ""
        with monkeypatch.context() as patched:
            patched.setattr("node.admission.can_count", lambda source: False)
            read = prepared(asked)
        assert isinstance(counted.input, Tally)
        assert isinstance(read.input, Tally)
        assert_same(counted.input, read.input)
        assert replace(counted, input=None, question=read.question) == replace(read, input=None)
        assert counted.counts == {"rows": 61, "distinct-keys": 60, "over-bound": 1}


def test_why_rows_were_read_is_said_in_the_nodes_own_words(register: Register) -> None:
    register.fill([plain(each, n, rate=1.5) for n, each in enumerate(people(9))])
    spec = table_spec(
        1,
        axes=[{"slot": "code", "values": ["1"]}],
        measures=[{"slot": "rate", "bounds": ["0", "9"], "of": ["sum"]}],
    )
    [brings] = spec.inputs
    found = prepare(
        replace(spec, inputs=(replace(brings, columns={"code": "code", "rate": "rate"}),)),
        source(1),
        register.dataset(),
        register.access(),
        about=About("person", Unit("resident-id", 1)),
        rand=random.Random(1).randbytes,
        go_on=lambda: None,
    )
    assert found.read_because.startswith("a column of doubles is read")
    assert isinstance(found.input, Tally)
    assert found.input.total("rate").tolist() == [18]


def test_a_statement_that_a_database_cannot_carry_out_means_that_rows_are_read(
    register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    register.fill([plain(each, n) for n, each in enumerate(people(9))])
    spec = table_spec(1, axes=[{"slot": "code", "values": ["1"]}])
    [brings] = spec.inputs
    monkeypatch.setattr(Words, "sound", lambda *_: sa.func.no_such_function(1) == 0)
    found = prepare(
        replace(spec, inputs=(replace(brings, columns={"code": "code"}),)),
        source(1),
        register.dataset(),
        register.access(),
        about=About("person", Unit("resident-id", 1)),
        rand=random.Random(1).randbytes,
        go_on=lambda: None,
    )
    assert found.read_because == "the database failed to answer in groups"
    assert isinstance(found.input, Tally)
    assert found.input.persons().tolist() == [9]


def test_the_end_of_an_attempt_cuts_a_reading_that_waits_for_the_server(register: Register) -> None:
    register.fill([plain(each, n) for n, each in enumerate(people(9))])
    spec, dataset = table_spec(1, axes=[{"slot": "code", "values": ["1"]}]), register.dataset()
    [brings] = spec.inputs
    cuts: list[Callable[[], None]] = []
    over = threading.Event()

    class Over(Exception):
        pass

    @contextmanager
    def cut_by(cut: Callable[[], None]) -> Iterator[None]:
        cuts.append(cut)
        yield

    def go_on() -> None:
        if over.is_set():
            raise Over

    def end() -> None:
        over.set()
        cuts[-1]()

    with closing(register.server.connect()) as other, other.cursor() as cursor:
        if register.server.dialect == "postgresql":
            cursor.execute("BEGIN")
            cursor.execute(f"LOCK TABLE {register.name} IN ACCESS EXCLUSIVE MODE")
        else:
            cursor.execute(f"LOCK TABLES {register.name} WRITE")
        ending = threading.Timer(1.0, end)
        ending.start()
        began = time.monotonic()
        with pytest.raises(Over):
            prepare(
                replace(spec, inputs=(replace(brings, columns={"code": "code"}),)),
                source(1),
                dataset,
                register.access(),
                about=About("person", Unit("resident-id", 1)),
                rand=random.Random(1).randbytes,
                go_on=go_on,
                cut_by=cut_by,
            )
        ending.join()
    assert over.is_set()
    assert time.monotonic() - began < LOCK_WAIT_S / 2  # else it waited for the lock


def test_counting_ends_at_the_connections_limit_of_time(
    postgres: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register = Register(postgres, tmp_path)
    register.fill([plain(each, n) for n, each in enumerate(people(9))])
    question = Question(by(CODE), {"code": "code", UNIT: "person"}, PERSON)
    monkeypatch.setattr(Words, "sound", lambda *_: sa.cast(sa.func.pg_sleep(5), sa.Text) == "")
    with register.source(statement_timeout_s=1) as slow, pytest.raises(InputError) as caught:
        question.pushed(slow)
    assert caught.value.code == "source-timeout"
