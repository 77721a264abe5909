"""What holds of PostgreSQL and of MariaDB: one read-only state, clear errors, and nothing of a password."""

import os
import re
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pyarrow as pa
import pymysql
import pytest
import sqlalchemy as sa
from databases.servers import Server, free_port
from databases.tables import allow, create, quoted, source_of, table_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node.sources import dialects, persistence
from node.sources.database import DatabaseSource
from node.sources.persistence import persist
from node.sources.source import check_header
from protocols.errors import InputError

pytestmark = pytest.mark.alone

ROWS = 40_000
PEOPLE = pa.table({"id": ["11010519491231002X", "010105194912310021", None], "street": ["东区", "", "a'b"]})


@pytest.fixture(params=["postgres", "mariadb"])
def server(request: pytest.FixtureRequest) -> Server:
    found: Server = request.getfixturevalue(request.param)
    return found


def long_table(server: Server) -> str:
    """Return a table too long for what sockets hold back."""
    name = server.new_name()
    series = "generate_series(1, {n}) i" if server.dialect == "postgresql" else "seq_1_to_{n}"
    number = "i" if server.dialect == "postgresql" else "seq"
    server.run(
        f"CREATE TABLE {name} (n integer PRIMARY KEY, id varchar(400))",
        f"INSERT INTO {name} SELECT {number}, repeat('9', 400) FROM {series.format(n=ROWS)}",
    )
    allow(server, name)
    return name


def failing(act: Callable[[], object]) -> InputError:
    with pytest.raises(InputError) as caught:
        act()
    return caught.value


def reading(source: DatabaseSource, *columns: str) -> InputError:
    """Return what reading in a block of its own ends in."""

    def act() -> None:
        with source:
            list(source.read(list(columns) or ["id"]))

    return failing(act)


# -- one state, and nothing written --------------------------------------------------------------------------


def test_one_block_sees_one_state_and_the_next_block_the_next(server: Server, tmp_path: Path) -> None:
    name = server.new_name()
    create(server, name, PEOPLE)
    source = source_of(server, tmp_path, name)
    with source:
        first, state = table_of(source.read(["id"])), source.fingerprint()
        server.run(f"DELETE FROM {name}")
        assert table_of(source.read(["id"])) == first
        counted = table_of(source.query(sa.select(sa.func.count().label("n")).select_from(source.table)))
        assert counted["n"].to_pylist() == [3]
        assert source.fingerprint() == state
    with source:
        assert list(source.read(["id"])) == []
        assert source.fingerprint() != state


def test_nothing_can_be_written_even_by_a_role_that_may(server: Server, tmp_path: Path) -> None:
    name = server.new_name()
    create(server, name, PEOPLE)
    to = server.reader if server.dialect == "postgresql" else f"'{server.reader}'@'%'"
    server.run(f"GRANT INSERT, DELETE ON {name} TO {to}")
    for statement in (f"INSERT INTO {name} VALUES ('x', 'y')", f"DELETE FROM {name}"):
        with source_of(server, tmp_path, name) as source, pytest.raises(sa.exc.DBAPIError):
            source._connection.exec_driver_sql(statement)
    assert server.run(f"SELECT count(*) FROM {name}") == [(3,)]


def test_rows_come_as_they_are_stored_whatever_index_would_be_quicker(server: Server, tmp_path: Path) -> None:
    name = server.new_name()
    many = pa.table(
        {"n": pa.array(range(20_000), pa.int64()), "id": [f"{n * 7919 % 20_000}" for n in range(20_000)]}
    )
    # An index with all that is asked for, and shorter than the table.
    create(server, name, many)
    server.run(f"ALTER TABLE {name} ADD COLUMN filler varchar(100) DEFAULT '{'x' * 100}'")
    key = "id" if server.dialect == "postgresql" else "id(20)"
    server.run(
        f"CREATE INDEX {name}_i ON {name} ({key})",
        f"ANALYZE TABLE {name}" if key != "id" else f"VACUUM ANALYZE {name}",
    )
    with source_of(server, tmp_path, name) as source:
        assert table_of(source.read(["id"]))["id"].to_pylist() == many["id"].to_pylist()


def test_rows_of_a_view_come_in_one_order_and_those_that_tie_are_equal(
    server: Server, tmp_path: Path
) -> None:
    name = server.new_name()
    texts = ["b", "A", "a", "a ", "B", "á", None, "A"]
    create(server, name, pa.table({"id": texts, "n": pa.array(range(8), pa.int64())}))
    server.run(f"CREATE VIEW {name}_v AS SELECT * FROM {name}")
    allow(server, f"{name}_v")
    with source_of(server, tmp_path, f"{name}_v") as source:
        found = table_of(source.read(["id"]))["id"].to_pylist()
    assert sorted(filter(None, found), key=str.encode) == [text for text in found if text]
    assert sorted(map(str, found)) == sorted(map(str, texts))


def test_batches_are_bounded_by_rows_and_by_bytes(server: Server, tmp_path: Path) -> None:
    name = long_table(server)
    with source_of(server, tmp_path, name, batch_rows=50_000) as source:
        sizes = [(batch.num_rows, batch.nbytes) for batch in source.read(["id"])]
    assert sum(rows for rows, _ in sizes) == ROWS
    assert max(size for _, size in sizes) < 3 * 8 * 2**20
    assert len(sizes) > 1


# -- errors --------------------------------------------------------------------------------------------------


@dataclass
class Wrong:
    """A way to be refused, and the code for it."""

    code: str
    make: Callable[[Server, Path, str], DatabaseSource]


def _other_password(server: Server, folder: Path, name: str) -> DatabaseSource:
    (folder / "other").touch(mode=0o600)
    (folder / "other").write_text("wrong-" + server.reader_password)
    return source_of(server, folder, name, password_file="other")


def _no_rights(server: Server, folder: Path, name: str) -> DatabaseSource:
    create(server, f"{name}_x", PEOPLE, grant=False)
    return source_of(server, folder, f"{name}_x")


def _off(server: Server, folder: Path, name: str) -> DatabaseSource:
    url = f"{server.dialect}://127.0.0.1:{free_port()}/registers"
    return source_of(server, folder, name, url=url)


WRONG = {
    "wrong password": Wrong("source-refused", _other_password),
    "no rights": Wrong("source-refused", _no_rights),
    "no such table": Wrong("table-missing", lambda s, f, n: source_of(s, f, f"{n}_y")),
    "no such database": Wrong(
        "source-unreachable", lambda s, f, n: source_of(s, f, n, url=s.url.replace("registers", "nowhere"))
    ),
    "nobody listens": Wrong("source-unreachable", _off),
    "no such socket": Wrong(
        "source-unreachable",
        lambda s, f, n: source_of(s, f, n, url=f"{s.dialect}:///registers", socket=str(f / "s")),
    ),
    "another authority": Wrong(
        "source-unreachable", lambda s, f, n: source_of(s, f, n, ca=str(_authority(f)))
    ),
}


def _authority(folder: Path) -> Path:
    from tls_authority import Authority

    (folder / "ca.pem").write_bytes(Authority().pem)
    return folder / "ca.pem"


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_said_and_nothing_of_host_role_or_password(
    server: Server, tmp_path: Path, wrong: str
) -> None:
    name = server.new_name()
    create(server, name, PEOPLE)
    source = WRONG[wrong].make(server, tmp_path, name)
    with pytest.raises(InputError) as caught, source:
        list(source.read(["id"]))
    error = caught.value
    # MariaDB hides what a role has no right to see.
    hidden = {"no rights": "table-missing", "no such database": "source-refused"}
    code = WRONG[wrong].code
    assert error.code == (code if server.dialect == "postgresql" else hidden.get(wrong, code))
    shown = "".join(traceback.format_exception(error)) + repr(source) + repr(source.__dict__.get("_kind"))
    said = f"{error} {error.hint} {error!r} {shown}"
    for secret in (server.reader_password, server.reader, server.host, str(server.port), "registers"):
        assert secret not in re.sub(r'File ".*', "", said).replace("[connections.registers]", "")
    assert error.__suppress_context__ or error.__context__ is None


def test_a_column_without_rights_is_refused_and_the_others_are_read(server: Server, tmp_path: Path) -> None:
    name = server.new_name()
    create(server, name, PEOPLE, grant=False)
    to = server.reader if server.dialect == "postgresql" else f"'{server.reader}'@'%'"
    server.run(f"GRANT SELECT (id) ON {name} TO {to}")
    with source_of(server, tmp_path, name) as source:
        assert table_of(source.read(["id"]))["id"].to_pylist() == PEOPLE["id"].to_pylist()
    # PostgreSQL tells everybody which columns there are, MariaDB does not.
    code = "source-refused" if server.dialect == "postgresql" else "unknown-column"
    assert reading(source_of(server, tmp_path, name), "street").code == code


def test_a_connection_that_is_cut_in_the_middle_gives_an_error_and_no_end(
    server: Server, tmp_path: Path
) -> None:
    name = long_table(server)
    with source_of(server, tmp_path, name) as source:
        batches = source.read(["id"])
        assert next(batches).num_rows
        if server.dialect == "postgresql":
            server.run(
                f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{server.reader}'"
            )
        else:
            for (thread,) in server.run(
                f"SELECT id FROM information_schema.processlist WHERE user = '{server.reader}'"
            ):
                server.run(f"KILL CONNECTION {thread}")
        error = failing(lambda: list(batches))
    assert error.code == "source-interrupted"
    assert "9999" not in f"{error} {error.hint}"


def test_a_reading_begins_anew_when_the_server_was_killed_and_is_back(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(persistence, "WAIT_S", 0.01)
    name = long_table(server)
    begun: list[int] = []

    def read() -> int:
        rows = 0
        with source_of(server, tmp_path, name) as source:
            begun.append(0)
            for batch in source.read(["n", "id"]):
                rows += batch.num_rows
                if len(begun) == 1:
                    server.kill()
                    server.restart()
        return rows

    assert persist(read, lambda: None) == ROWS
    assert len(begun) == 2


def test_a_server_that_stays_away_is_given_up_after_three_readings(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(persistence, "WAIT_S", 0.01)
    tries: list[int] = []

    def read() -> None:
        tries.append(0)
        with _off(server, tmp_path, "t"):
            pass

    assert failing(lambda: persist(read, lambda: None)).code == "source-unreachable"
    assert len(tries) == persistence.READINGS


def test_a_source_slower_than_its_time_is_an_error(server: Server, tmp_path: Path) -> None:
    name = server.new_name()
    create(server, name, PEOPLE)
    slow = "pg_sleep(3)::text" if server.dialect == "postgresql" else "sleep(3)"
    server.run(f"CREATE VIEW {name}_v AS SELECT id, {slow} AS waited FROM {name}")
    allow(server, f"{name}_v")
    source = source_of(server, tmp_path, f"{name}_v", statement_timeout_s=1)
    assert reading(source, "id", "waited").code == "source-timeout"


def test_a_table_that_somebody_holds_is_not_waited_for_forever(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialects, "LOCK_WAIT_S", 1)
    name = server.new_name()
    create(server, name, PEOPLE)
    with closing(server.connect()) as other, other.cursor() as cursor:
        if server.dialect == "postgresql":
            cursor.execute("BEGIN")
            cursor.execute(f"LOCK TABLE {name} IN ACCESS EXCLUSIVE MODE")
        else:
            cursor.execute(f"LOCK TABLES {name} WRITE")
        assert reading(source_of(server, tmp_path, name)).code == "source-timeout"


def test_a_reading_that_is_cut_ends_at_the_server_too(server: Server, tmp_path: Path) -> None:
    name = server.new_name()
    create(server, name, PEOPLE)
    postgres = server.dialect == "postgresql"
    sleep = sa.func.pg_sleep(60, type_=sa.Text) if postgres else sa.func.sleep(60)

    def at_work() -> int:
        found = server.run(
            f"SELECT count(*) FROM pg_stat_activity WHERE usename = '{server.reader}' AND state = 'active'"
            if postgres
            else "SELECT count(*) FROM information_schema.processlist "
            f"WHERE user = '{server.reader}' AND command = 'Query'"
        )
        return int(found[0][0])

    with source_of(server, tmp_path, name) as source:
        seen: list[int] = []

        def cut() -> None:
            seen.append(at_work())
            source.cancel()

        ending = threading.Timer(1.0, cut)
        ending.start()
        error = failing(lambda: list(source.query(sa.select(sleep.label("s")))))
        ending.join()
    assert (error.code, seen) == ("source-timeout", [1])
    for _ in range(100):
        if not at_work():
            break
        time.sleep(0.1)
    assert at_work() == 0


def test_a_view_that_lies_about_its_count_is_refused(server: Server, tmp_path: Path) -> None:
    name = server.new_name()
    create(server, name, pa.table({"id": [str(n) for n in range(5000)]}))
    chance = "random()" if server.dialect == "postgresql" else "rand()"
    server.run(f"CREATE VIEW {name}_v AS SELECT id FROM {name} WHERE {chance} < 0.5")
    allow(server, f"{name}_v")
    # 5,000 coins fall twice to the same number once in 125 times: three times in a row, once in two million.
    codes = set()
    for _ in range(3):
        with source_of(server, tmp_path, f"{name}_v") as source:
            try:
                list(source.read(["id"]))
            except InputError as error:
                codes.add(error.code)
    assert codes == {"count-mismatch"}


def test_a_view_whose_table_lost_a_column_is_an_error(server: Server, tmp_path: Path) -> None:
    name = server.new_name()
    create(server, name, PEOPLE)
    server.run(f"CREATE VIEW {name}_v AS SELECT id, street FROM {name}")
    allow(server, f"{name}_v")
    # PostgreSQL drops no column that a view needs, but the view, too.
    cascade = " CASCADE" if server.dialect == "postgresql" else ""
    server.run(f"ALTER TABLE {name} DROP COLUMN street{cascade}")
    assert reading(source_of(server, tmp_path, f"{name}_v")).code == "table-missing"


# -- the last write ------------------------------------------------------------------------------------------


def test_a_column_says_when_a_table_was_last_written(server: Server, tmp_path: Path) -> None:
    name = server.new_name()
    create(server, name, PEOPLE)
    server.run(
        f"ALTER TABLE {name} ADD COLUMN changed timestamp NULL, ADD COLUMN day date, ADD COLUMN later date"
    )
    kept = "2026-03-01 08:00:00" if server.dialect == "postgresql" else "2026-03-01 00:00:00"
    server.run(
        *(["SET time_zone = '+00:00'"] if server.dialect == "mariadb" else []),
        f"UPDATE {name} SET changed = '{kept}', day = '2026-03-02', later = '2999-01-01' WHERE street = ''",
    )
    told = {}
    for column in ("changed", "day"):
        with source_of(server, tmp_path, name, updated=column) as source:
            told[column] = source.snapshot()
    # A time without a zone is Shanghai's; MariaDB's timestamp is a moment.
    assert told == {"changed": "2026-03-01T00:00:00Z", "day": "2026-03-01T16:00:00Z"}
    for column, code in (("later", "bad-updated"), ("street", "bad-updated"), ("none", "unknown-column")):
        with source_of(server, tmp_path, name, updated=column) as source:
            assert failing(source.snapshot).code == code


def test_a_source_says_whether_it_knows_when_it_was_written(server: Server, tmp_path: Path) -> None:
    name = server.new_name()
    create(server, name, PEOPLE)
    server.run(
        f"ALTER TABLE {name} ADD COLUMN day date, ADD COLUMN none date",
        f"UPDATE {name} SET day = '2026-03-02'",
    )
    server.run(f"CREATE VIEW {name}_v AS SELECT * FROM {name}")
    allow(server, f"{name}_v")

    def known(table: str, updated: str = "") -> bool:
        with source_of(server, tmp_path, table, updated=updated) as source:
            return source.written_known()

    assert known(name, "day")
    assert known(f"{name}_v", "day")
    assert not known(name, "none")
    assert not known(f"{name}_v")
    assert known(name) is (server.dialect == "mariadb")


def test_only_a_table_with_transactions_is_settled(server: Server, tmp_path: Path) -> None:
    name = server.new_name()
    create(server, name, PEOPLE)
    server.run(f"CREATE VIEW {name}_v AS SELECT * FROM {name}")
    allow(server, f"{name}_v")
    for table, settled in ((name, True), (f"{name}_v", False)):
        with source_of(server, tmp_path, table) as source:
            assert source.settled is settled


# -- a server that hangs -------------------------------------------------------------------------------------


def _processes(server: Server) -> list[int]:
    """Return the processes that answer the reading role."""
    if server.dialect == "mariadb":
        assert server.process is not None
        return [server.process.pid]
    found = server.run(f"SELECT pid FROM pg_stat_activity WHERE usename = '{server.reader}'")
    return [pid for (pid,) in found]


@pytest.mark.parametrize("when", ["reading", "asking"])
def test_a_server_that_hangs_is_left_after_its_time(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    monkeypatch.setattr(dialects, "SLACK_S", 0)
    name = long_table(server)
    source = source_of(server, tmp_path, name, statement_timeout_s=2, connect_timeout_s=2)
    stopped: list[int] = []

    def hang() -> None:
        with source:
            batches = source.read(["id"])
            if when == "reading":
                next(batches)
            else:
                batches = source.query(sa.select(source.table.c["id"]))
            stopped.extend(_processes(server))
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)
            list(batches)

    began = time.monotonic()
    try:
        error = failing(hang)
    finally:
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    assert error.code == "source-timeout"
    assert time.monotonic() - began < 15


def _descriptors() -> int:
    return len(list(Path("/dev/fd").iterdir()))


def test_no_socket_is_left_open(server: Server, tmp_path: Path) -> None:
    name = server.new_name()
    create(server, name, PEOPLE)

    def read() -> None:
        with source_of(server, tmp_path, name) as source:
            list(source.read(["id"]))

    read()
    before = _descriptors()
    for _ in range(3):
        read()
    assert _descriptors() == before


# -- long rows -----------------------------------------------------------------------------------------------


def test_long_texts_come_few_at_a_time(server: Server, tmp_path: Path) -> None:
    name = server.new_name()
    server.run(
        f"CREATE TABLE {name} (n integer, id {'text' if server.dialect == 'postgresql' else 'longtext'})"
    )
    series = (
        "generate_series(1, 60) i"
        if server.dialect == "postgresql"
        else "(SELECT seq AS i FROM seq_1_to_60) s"
    )
    server.run(f"INSERT INTO {name} SELECT i, repeat('a', 1048576) FROM {series}")
    allow(server, name)
    with source_of(server, tmp_path, name) as source:
        asked = sa.select(source.table.c["id"].label("v"))
        for read in (lambda: source.read(["id"]), lambda: source.query(asked)):
            sizes = [(batch.num_rows, batch.nbytes) for batch in read()]
            assert sum(rows for rows, _ in sizes) == 60
            assert max(size for _, size in sizes) < 2 * 8 * 2**20


# -- encryption ----------------------------------------------------------------------------------------------


def test_with_its_authority_a_server_is_read_over_tls(server: Server, tmp_path: Path) -> None:
    name = server.new_name()
    create(server, name, PEOPLE)
    for settings_ in ({"ca": str(server.ca)}, {"tls": "require"}):
        with source_of(server, tmp_path, name, **settings_) as source:
            if server.dialect == "postgresql":
                found = source._connection.exec_driver_sql(
                    "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
                ).scalar_one()
            else:
                found = source._connection.exec_driver_sql("SHOW STATUS LIKE 'Ssl_cipher'").one()[1]
            assert found
            assert table_of(source.read(["id"])).num_rows == 3


@pytest.mark.parametrize("name", ["110105194912310021", "na\u202eme"])
def test_a_column_with_a_name_that_cannot_be_published_is_refused(
    server: Server, tmp_path: Path, name: str
) -> None:
    table = server.new_name()
    create(server, table, pa.table({"id": ["1"], name: ["x"]}))
    with source_of(server, tmp_path, table) as source:
        for act in (source.columns, lambda: source.read(["id"])):
            error = failing(act)
            assert error.code in ("no-header", "unreadable-name")
            assert name not in error.message


def test_a_unix_socket_serves_as_well(server: Server, tmp_path: Path) -> None:
    name = server.new_name()
    create(server, name, PEOPLE)
    port = f":{server.port}" if server.dialect == "postgresql" else ""
    url = f"{server.dialect}://{port}/{server.database}"
    with source_of(server, tmp_path, name, url=url, socket=str(server.socket)) as source:
        assert table_of(source.read(["id"])).num_rows == 3


# -- names ---------------------------------------------------------------------------------------------------

NAMES = st.one_of(
    st.text(
        st.characters(min_codepoint=32, max_codepoint=0xFFFF, exclude_categories=["Cs", "Cc", "Cn", "Co"]),
        min_size=1,
        max_size=14,
    ).map(str.strip),
    st.sampled_from(
        [
            "x'; DROP TABLE canary; --",
            'x"; DROP TABLE canary; --',
            "x`; DROP TABLE canary; --",
            "x) UNION SELECT 1 --",
            "%(id)s",
            "%s%%",
            ":id",
            "$1",
            "\\",
            "a.b",
            "/* */",
            "SELECT",
            "ｘ＇",
        ]
    ),
).filter(lambda name: name and len(name.encode()) < 60)


def _can_be_published(name: str) -> bool:
    try:
        check_header([name])
    except InputError:
        return False
    return True


def _only_a_name(server: Server, folder: Path, table: str, column: str, other: str) -> None:
    """Read a table of these names, and ask for what is not there."""
    if table.casefold() == "canary" or column.casefold() == other.casefold():
        return
    try:
        create(server, table, pa.table({column: ["1", "2"]}))
    except (psycopg.Error, pymysql.Error):  # this server takes no such name
        return
    try:
        with source_of(server, folder, table) as source:
            if not _can_be_published(column):
                assert failing(source.columns).code in ("no-header", "unreadable-name")
                return
            assert [each.name for each in source.columns()] == [column]
            assert table_of(source.read([column]))[0].to_pylist() == ["1", "2"]
            found = source.query(sa.select(source.table.c[column].label("v")).order_by("v"))
            assert table_of(found)["v"].to_pylist() == ["1", "2"]
            assert failing(lambda: source.read([other])).code == "unknown-column"
        if other.casefold() not in (table.casefold(), "canary"):
            assert reading(source_of(server, folder, other)).code == "table-missing"
    finally:
        server.run(f"DROP TABLE {quoted(server, table)}")
    assert server.run("SELECT count(*) FROM canary") == [(0,)]


@pytest.fixture
def canary(server: Server) -> Iterator[None]:
    server.run("CREATE TABLE canary (n integer)")
    yield
    server.run("DROP TABLE canary")


@pytest.mark.usefixtures("canary")
@settings(max_examples=12, suppress_health_check=list(HealthCheck))
@given(table=NAMES, column=NAMES, other=NAMES)
def test_no_name_is_ever_more_than_a_name(
    server: Server, tmp_path: Path, table: str, column: str, other: str
) -> None:
    _only_a_name(server, tmp_path, table, column, other)


@pytest.mark.long
@pytest.mark.usefixtures("canary")
@settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(table=NAMES, column=NAMES, other=NAMES)
def test_no_name_of_very_many_is_ever_more_than_a_name(
    server: Server, tmp_path: Path, table: str, column: str, other: str
) -> None:
    _only_a_name(server, tmp_path, table, column, other)
