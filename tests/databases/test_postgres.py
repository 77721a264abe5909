"""What is PostgreSQL's own: its types, what a snapshot says of a state, and views that would write."""

import threading
from contextlib import closing
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pytest
import sqlalchemy as sa
from databases.servers import Server
from databases.tables import allow, create, source_of, table_of

from node.sources import persistence
from node.sources.dialects import PostgreSql
from node.sources.persistence import persist
from protocols.errors import InputError

pytestmark = pytest.mark.alone

TYPED = """
    bare numeric, wide numeric(60, 2), money numeric(12, 2), small smallint, ratio real, moment timestamptz,
    day date, noon time, facts json, facts_b jsonb, mood {mood}, who uuid, raw bytea, tags text[],
    fixed char(20), area {area}, flag boolean
"""


def test_every_type_is_told_and_read(postgres: Server, tmp_path: Path) -> None:
    name, mood, area = (postgres.new_name(stem) for stem in ("t", "mood", "area"))
    postgres.run(
        f"CREATE TYPE {mood} AS ENUM ('在册', '迁出')",
        f"CREATE DOMAIN {area} AS varchar(6) CHECK (VALUE ~ '^[0-9]+$')",
        f"CREATE TABLE {name} ({TYPED.format(mood=mood, area=area)})",
        f"""INSERT INTO {name} VALUES (1.50, 2, 3.25, 4, 0.5, '2026-01-31 20:00:00+00', '2026-01-31',
            '12:00', '{{"a": 1}}', '{{"a": 1}}', '在册', '00000000-0000-0000-0000-000000000001', 'abc',
            '{{a,b}}', '11010519491231002X',
            '110105', true), ('NaN', NULL, 'NaN', NULL, 'NaN', {", ".join(["NULL"] * 12)})""",
    )
    allow(postgres, name)
    with source_of(postgres, tmp_path, name) as source:
        types = {column.name: column.type for column in source.columns()}
        found = table_of(source.read(list(types)))
    assert types == {
        **dict.fromkeys(("bare", "wide", "money", "ratio"), "decimal"),
        "small": "integer",
        **dict.fromkeys(("moment", "noon"), "time"),
        "day": "date",
        **dict.fromkeys(("facts", "facts_b", "who", "tags"), "other"),
        **dict.fromkeys(("mood", "raw", "fixed", "area"), "text"),
        "flag": "boolean",
    }
    first: dict[str, Any] = found.to_pylist()[0]
    assert (first["bare"], first["money"], first["day"]) == ("1.50", Decimal("3.25"), date(2026, 1, 31))
    # Eight in the evening in London is next month in Shanghai: months are the department's own.
    assert first["moment"].strftime("%Y-%m-%d %H") == "2026-02-01 04"
    assert (first["mood"], first["raw"], first["tags"], first["area"]) == ("在册", "abc", "{a,b}", "110105")
    second = found.to_pylist()[1]
    assert (second["bare"], second["money"]) == ("nan", None)


def test_days_without_end_are_no_days(postgres: Server, tmp_path: Path) -> None:
    name = postgres.new_name()
    postgres.run(
        f"CREATE TABLE {name} (day date, moment timestamptz, plain timestamp)",
        f"INSERT INTO {name} VALUES ('infinity', '-infinity', 'infinity'), ('2026-01-01', NULL, NULL)",
    )
    allow(postgres, name)
    with source_of(postgres, tmp_path, name) as source:
        found = table_of(source.read(["day", "moment", "plain"])).to_pylist()
    assert found == [
        {"day": None, "moment": None, "plain": None},
        {"day": date(2026, 1, 1), "moment": None, "plain": None},
    ]


def test_bytes_that_are_no_text_are_an_error(postgres: Server, tmp_path: Path) -> None:
    name = postgres.new_name()
    postgres.run(f"CREATE TABLE {name} (raw bytea)", rf"INSERT INTO {name} VALUES ('\xd5c5')")
    allow(postgres, name)
    with source_of(postgres, tmp_path, name) as source, pytest.raises(InputError) as caught:
        list(source.read(["raw"]))
    assert caught.value.code == "bad-value"


def test_a_database_that_checks_no_encoding_is_checked_here(postgres: Server, tmp_path: Path) -> None:
    database = postgres.new_name("ascii")
    postgres.run(
        f"CREATE DATABASE {database} ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    )
    with postgres.connect(database=database) as connection:
        connection.execute("CREATE TABLE t (id text)")
        connection.execute(r"INSERT INTO t VALUES (convert_from('\xd5c5'::bytea, 'SQL_ASCII'))")
        connection.execute(f"GRANT SELECT ON t TO {postgres.reader}")
    source = source_of(postgres, tmp_path, "t", url=postgres.url.replace(postgres.database, database))
    with source, pytest.raises(InputError) as caught:
        list(source.read(["id"]))
    assert caught.value.code == "not-utf8"


def test_a_view_that_would_write_fails_and_writes_nothing(postgres: Server, tmp_path: Path) -> None:
    name = postgres.new_name()
    create(postgres, name, pa.table({"id": ["1"]}))
    postgres.run(
        f"""CREATE FUNCTION {name}_f() RETURNS text LANGUAGE sql VOLATILE SECURITY DEFINER AS
            $$ INSERT INTO public.{name} VALUES ('written') RETURNING id $$""",
        f"CREATE VIEW {name}_v AS SELECT {name}_f() AS id",
    )
    allow(postgres, f"{name}_v")
    with source_of(postgres, tmp_path, f"{name}_v") as source, pytest.raises(InputError) as caught:
        list(source.read(["id"]))
    assert caught.value.code == "source-failed"
    assert postgres.run(f"SELECT count(*) FROM {name}") == [(1,)]


def test_one_state_has_one_fingerprint_and_a_view_never_the_same(postgres: Server, tmp_path: Path) -> None:
    name = postgres.new_name()
    create(postgres, name, pa.table({"id": ["1"]}))
    postgres.run(f"CREATE VIEW {name}_v AS SELECT * FROM {name}")
    allow(postgres, f"{name}_v")

    def fingerprint(table: str) -> str:
        with source_of(postgres, tmp_path, table) as source:
            return source.fingerprint()

    first = fingerprint(name)
    assert fingerprint(name) == first
    postgres.run(f"UPDATE {name} SET id = '2'")
    assert fingerprint(name) != first
    assert fingerprint(f"{name}_v") != fingerprint(f"{name}_v")


def test_rows_that_a_policy_of_the_table_hides_are_not_read(postgres: Server, tmp_path: Path) -> None:
    name = postgres.new_name()
    create(postgres, name, pa.table({"id": ["1", "2"]}))
    postgres.run(
        f"ALTER TABLE {name} ENABLE ROW LEVEL SECURITY", f"CREATE POLICY p ON {name} USING (id = '2')"
    )
    with source_of(postgres, tmp_path, name) as source:
        assert table_of(source.read(["id"]))["id"].to_pylist() == ["2"]
        first = source.fingerprint()
    # What it hides may hang on anything: one snapshot does not mean the same rows.
    with source_of(postgres, tmp_path, name) as source:
        assert source.fingerprint() != first
        assert not source.settled


@pytest.mark.parametrize("kind", ["table", "view", "parts", "nested"])
def test_a_table_that_is_loaded_anew_is_read_as_it_was_or_as_it_is_and_never_empty(
    postgres: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Whoever began before a TRUNCATE sees neither the rows that were there nor those that came."""
    monkeypatch.setattr(persistence, "WAIT_S", 0.01)
    name = shown = postgres.new_name()
    parts = " PARTITION BY LIST (id)" if kind in ("parts", "nested") else ""
    postgres.run(f"CREATE TABLE {name} (id text){parts}")
    if kind == "parts":
        postgres.run(f"CREATE TABLE {name}_1 PARTITION OF {name} DEFAULT")
    if kind == "nested":
        postgres.run(
            f"CREATE TABLE {name}_1 PARTITION OF {name} DEFAULT PARTITION BY LIST (id)",
            f"CREATE TABLE {name}_2 PARTITION OF {name}_1 DEFAULT",
        )
    if kind == "view":
        shown = f"{name}_v"
        postgres.run(f"CREATE VIEW {shown} AS SELECT id FROM {name}")
    postgres.run(f"INSERT INTO {name} VALUES ('old')")
    allow(postgres, shown)
    begun: list[int] = []

    def read() -> list[Any]:
        begun.append(0)
        with source_of(postgres, tmp_path, shown) as source:
            assert source.settled is (kind != "view")
            return list(table_of(source.read(["id"]))["id"].to_pylist())

    with closing(postgres.connect()) as other, other.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute(f"TRUNCATE {name}")
        cursor.execute(f"INSERT INTO {name} VALUES ('new')")
        loaded = threading.Timer(1.0, other.commit)
        loaded.start()
        assert persist(read, lambda: None) == ["new"]  # began before the end of the load, and waited for it
        loaded.join()
        assert len(begun) == 2
        # Once somebody reads, whoever loads has to wait.
        with source_of(postgres, tmp_path, shown) as source:
            cursor.execute("SET lock_timeout = '200ms'")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                cursor.execute(f"TRUNCATE {name}")
            assert table_of(source.read(["id"]))["id"].to_pylist() == ["new"]


def test_a_materialised_view_that_was_made_anew_is_read_anew(
    postgres: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = postgres.new_name()
    create(postgres, name, pa.table({"id": ["1"]}))
    postgres.run(f"CREATE MATERIALIZED VIEW {name}_m AS SELECT * FROM {name}")
    allow(postgres, f"{name}_m")
    hold = PostgreSql._hold

    def late(*given: Any) -> None:
        monkeypatch.undo()
        postgres.run(f"INSERT INTO {name} VALUES ('2')", f"REFRESH MATERIALIZED VIEW {name}_m")
        hold(*given)

    monkeypatch.setattr(PostgreSql, "_hold", late)
    with pytest.raises(InputError) as caught, source_of(postgres, tmp_path, f"{name}_m"):
        pass
    assert caught.value.code == "source-interrupted"
    with source_of(postgres, tmp_path, f"{name}_m") as source:
        assert table_of(source.read(["id"]))["id"].to_pylist() == ["1", "2"]


def test_whoever_may_read_single_columns_counts_without_asking_where_rows_lie(
    postgres: Server, tmp_path: Path
) -> None:
    name = postgres.new_name()
    create(postgres, name, pa.table({"id": ["1"], "street": ["a"]}), grant=False)
    postgres.run(f"GRANT SELECT (id) ON {name} TO {postgres.reader}")
    with source_of(postgres, tmp_path, name) as source:
        assert source.settled
        assert source.order(["id"], source.table) == []
        assert [batch.to_pydict() for batch in source.query(sa.select(source.table.c.id))] == [{"id": ["1"]}]
    allow(postgres, name)
    with source_of(postgres, tmp_path, name) as source:
        assert [str(each) for each in source.order(["id"], source.table)] == ["ctid"]


def test_nobodys_own_function_stands_in_for_the_servers(postgres: Server, tmp_path: Path) -> None:
    name = postgres.new_name()
    create(postgres, name, pa.table({"id": ["1"]}))
    postgres.run(
        # Closer to a varchar than the server's own, which takes text.
        "CREATE FUNCTION length(varchar) RETURNS integer LANGUAGE sql AS 'SELECT 99'",
    )
    try:
        with source_of(postgres, tmp_path, name) as source:
            length = sa.func.length(sa.cast(source.table.c["id"], sa.VARCHAR))
            found = table_of(source.query(sa.select(length.label("n"))))["n"].to_pylist()
            path = source._connection.exec_driver_sql("SHOW search_path").scalar_one()
            said = source._connection.exec_driver_sql("SHOW client_min_messages").scalar_one()
    finally:
        postgres.run("DROP FUNCTION length(varchar)")
    assert found == [1]
    assert (path, said) == ("pg_catalog, pg_temp", "error")


def test_a_schema_of_the_roles_own_is_where_tables_are_looked_for(postgres: Server, tmp_path: Path) -> None:
    schema, name = postgres.new_name("s"), postgres.new_name()
    postgres.run(
        f"CREATE SCHEMA {schema}",
        f"CREATE TABLE {schema}.{name} (id text)",
        f"INSERT INTO {schema}.{name} VALUES ('1')",
        f"GRANT USAGE ON SCHEMA {schema} TO {postgres.reader}",
        f"GRANT SELECT ON {schema}.{name} TO {postgres.reader}",
        f"ALTER ROLE {postgres.reader} SET search_path = {schema}",
    )
    try:
        with source_of(postgres, tmp_path, name) as source:
            assert table_of(source.read(["id"]))["id"].to_pylist() == ["1"]
    finally:
        postgres.run(f"ALTER ROLE {postgres.reader} RESET search_path")


@pytest.mark.parametrize("kind", ["PARTITION BY RANGE (n)", ""])
def test_tables_in_several_parts_and_stored_views_are_read_whole(
    postgres: Server, tmp_path: Path, kind: str
) -> None:
    name = postgres.new_name()
    if kind:
        postgres.run(
            f"CREATE TABLE {name} (n integer) {kind}",
            *(
                f"CREATE TABLE {name}_{at} PARTITION OF {name} FOR VALUES FROM ({at}) TO ({at + 10})"
                for at in (10, 0)
            ),
            f"INSERT INTO {name} SELECT generate_series(0, 19)",
        )
    else:
        postgres.run(f"CREATE MATERIALIZED VIEW {name} AS SELECT generate_series(0, 19) AS n")
    allow(postgres, name)
    with source_of(postgres, tmp_path, name) as source:
        assert table_of(source.read(["n"]))["n"].to_pylist() == list(range(20))
