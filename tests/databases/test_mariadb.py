"""What is MariaDB's own: its types, dates that are none, and when a table was last written."""

import time
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest
import sqlalchemy as sa
from databases.servers import Server
from databases.tables import allow, create, source_of, table_of

from node.sources import dialects
from protocols.errors import InputError

pytestmark = pytest.mark.alone


def test_every_type_is_told_and_read(mariadb: Server, tmp_path: Path) -> None:
    name = mariadb.new_name()
    mariadb.run(
        "SET SESSION sql_mode = '', time_zone = '+00:00'",
        f"""CREATE TABLE {name} (big bigint unsigned, flag tinyint(1), money decimal(12, 2),
            wide decimal(60, 2), ratio double, day date, plain datetime, moment timestamp NULL, noon time,
            mood enum('在册', '迁出'), facts json, raw varbinary(20),
            gbk varchar(20) CHARACTER SET gbk, year_ year, who uuid)""",
        f"""INSERT INTO {name} VALUES (18446744073709551615, 2, 3.25, 4, 0.5, '2026-01-31',
            '2026-01-31 20:00:00', '2026-01-31 20:00:00', '12:00', '在册', '{{"a": 1}}', 'abc', '张三', 2026,
            '00000000-0000-0000-0000-000000000001')""",
        f"INSERT INTO {name} (day, plain, moment) VALUES ('0000-00-00', '0000-00-00 00:00:00', NULL)",
    )
    allow(mariadb, name)
    with source_of(mariadb, tmp_path, name) as source:
        types = {column.name: column.type for column in source.columns()}
        found = table_of(source.read(list(types))).to_pylist()
    assert types == {
        **dict.fromkeys(("big", "flag", "year_"), "integer"),
        **dict.fromkeys(("money", "wide", "ratio"), "decimal"),
        "day": "date",
        **dict.fromkeys(("plain", "moment", "noon"), "time"),
        **dict.fromkeys(("mood", "facts", "raw", "gbk"), "text"),
        "who": "other",
    }
    first = found[0]
    assert (first["big"], first["flag"], first["money"]) == (2**64 - 1, 2, Decimal("3.25"))
    assert (first["day"], first["plain"]) == (date(2026, 1, 31), datetime(2026, 1, 31, 20))
    assert first["moment"].strftime("%Y-%m-%d %H") == "2026-02-01 04"
    assert (first["mood"], first["raw"], first["gbk"]) == ("在册", "abc", "张三")
    assert (found[1]["day"], found[1]["plain"]) == (None, None)


def test_bytes_that_are_no_text_are_an_error(mariadb: Server, tmp_path: Path) -> None:
    name = mariadb.new_name()
    mariadb.run(f"CREATE TABLE {name} (raw varbinary(20))", rf"INSERT INTO {name} VALUES (x'd5c5')")
    allow(mariadb, name)
    with source_of(mariadb, tmp_path, name) as source, pytest.raises(InputError) as caught:
        list(source.read(["raw"]))
    assert caught.value.code in {"bad-value", "not-utf8"}


def test_the_server_says_when_a_table_was_last_written(mariadb: Server, tmp_path: Path) -> None:
    name = mariadb.new_name()
    create(mariadb, name, pa.table({"id": ["1"]}))

    def told() -> tuple[str, str]:
        with source_of(mariadb, tmp_path, name) as source:
            return source.snapshot(), source.fingerprint()

    written, fresh = told()
    assert told()[1] != fresh  # in the second of a write nobody can tell whether there was another one
    time.sleep(3.1)
    settled = told()
    assert settled[0] == written
    assert told() == settled
    mariadb.run(f"UPDATE {name} SET id = '2'")
    assert told()[0] > written
    assert told()[1] != settled[1]


def test_a_table_without_transactions_is_counted(mariadb: Server, tmp_path: Path) -> None:
    name = mariadb.new_name()
    mariadb.run(
        f"CREATE TABLE {name} (id varchar(20)) ENGINE=Aria", f"INSERT INTO {name} VALUES ('1'), ('2')"
    )
    allow(mariadb, name)
    with source_of(mariadb, tmp_path, name) as source:
        assert table_of(source.read(["id"])).num_rows == 2
        batches = source.read(["id"])
        # It is counted before the first row: what is written in between is noticed.
        mariadb.run(f"INSERT INTO {name} VALUES ('3')")
        assert sum(batch.num_rows for batch in batches) == 3
        assert source.settled is False


def test_tables_whose_names_differ_in_case_are_told_apart(mariadb: Server, tmp_path: Path) -> None:
    name = mariadb.new_name()
    create(mariadb, name, pa.table({"id": ["small"]}))
    create(mariadb, name.upper(), pa.table({"id": ["large"]}))
    for each, value in ((name, "small"), (name.upper(), "large")):
        with source_of(mariadb, tmp_path, each) as source:
            assert table_of(source.read(["id"]))["id"].to_pylist() == [value]


def test_a_servers_own_modes_change_nothing_of_what_is_asked(mariadb: Server, tmp_path: Path) -> None:
    name = mariadb.new_name()
    create(mariadb, name, pa.table({"a`b": ["x", "X"]}))
    kept = mariadb.run("SELECT @@GLOBAL.sql_mode, @@GLOBAL.default_regex_flags, @@GLOBAL.max_sort_length")[0]
    mariadb.run(
        "SET GLOBAL sql_mode = 'ANSI_QUOTES,PIPES_AS_CONCAT,NO_BACKSLASH_ESCAPES'",
        "SET GLOBAL default_regex_flags = 'MULTILINE,DOTALL,EXTENDED'",
        "SET GLOBAL max_sort_length = 64",
    )
    try:
        with source_of(mariadb, tmp_path, name) as source:
            assert sorted(table_of(source.read(["a`b"]))[0].to_pylist()) == ["X", "x"]
            column = source.table.c["a`b"]
            asked = sa.select(column.label("v"), sa.literal("\\'").label("w")).where(
                column.regexp_match("^x$")
            )
            assert table_of(source.query(asked)).to_pylist() == [{"v": "x", "w": "\\'"}]
            lines = sa.select(sa.literal("a\nb").regexp_match("^b").label("n"))
            assert table_of(source.query(lines))["n"].to_pylist() == [0]
            modes = source._connection.exec_driver_sql(
                "SELECT @@sql_mode, @@default_regex_flags, @@max_sort_length"
            ).one()
    finally:
        mariadb.run(
            *(
                f"SET GLOBAL {mode} = '{was}'"
                for mode, was in zip(("sql_mode", "default_regex_flags"), kept[:2], strict=True)
            ),
            f"SET GLOBAL max_sort_length = {kept[2]}",
        )
    assert tuple(modes) == ("", "", dialects.SORTED_BYTES)


@pytest.mark.parametrize("kind", ["longtext", "longblob"])
def test_long_texts_that_begin_alike_never_tie(mariadb: Server, tmp_path: Path, kind: str) -> None:
    name = mariadb.new_name()
    texts = [f"{'a' * 2 * dialects.SORTED_BYTES}{n}" for n in range(30)]
    orders = []
    for each in (texts, texts[::-1]):
        table = f"{name}_{len(orders)}"
        mariadb.run(
            f"CREATE TABLE {table} (id {kind}, n integer)", f"CREATE VIEW {table}_v AS SELECT * FROM {table}"
        )
        mariadb.run_many(f"INSERT INTO {table} VALUES (%s, 1)", [(text,) for text in each])
        allow(mariadb, f"{table}_v")
        with source_of(mariadb, tmp_path, f"{table}_v") as source:
            orders.append(table_of(source.read(["id", "n"]))["id"].to_pylist())
    assert sorted(orders[0]) == sorted(texts)
    assert orders[0] == orders[1]
