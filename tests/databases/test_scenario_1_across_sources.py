"""Scenario 1 with every department's list somewhere else: the right people, whatever holds the registers."""

import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from databases.servers import Server

from bench.crosscheck import run
from demo.city import generate
from demo.collaboration import DEPARTMENTS, Collaboration, Department, command
from demo.processes import Child

POLICE, HUMAN_RESOURCES, HEALTH, EDUCATION, HOUSING, _ = DEPARTMENTS

LIMIT_MB = 900
"""Address space that a node may fill with data of its own at 1e6 people, code and files left out."""

pytestmark = pytest.mark.alone  # a whole town each time


def table_of(collaboration: Collaboration, department: Department) -> pa.Table:
    (name,) = department.datasets.values()
    return pq.read_table(collaboration.register(department, name))


def create(server: Server, name: str, table: pa.Table, load: Callable[[str, pa.Table], None]) -> str:
    """Make a table of texts and numbers in a database, readable by the node's role."""
    kinds = {
        column: ("bigint" if pa.types.is_integer(table[column].type) else "varchar(120)")
        for column in table.column_names
    }
    columns = ", ".join(f"{column} {kind}" for column, kind in kinds.items())
    server.run(f"CREATE TABLE {name} ({columns})")
    load(name, table)
    server.run(f"GRANT SELECT ON {name} TO {server.reader}")
    return name


def into_postgres(server: Server) -> Callable[[str, pa.Table], None]:
    def load(name: str, table: pa.Table) -> None:
        with (
            server.connect() as connection,
            connection.cursor() as cursor,
            cursor.copy(f"COPY {name} FROM STDIN") as copy,
        ):
            for batch in table.to_batches(50_000):
                for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    copy.write_row(row)

    return load


def into_mariadb(server: Server) -> Callable[[str, pa.Table], None]:
    def load(name: str, table: pa.Table) -> None:
        marks = ", ".join(["%s"] * table.num_columns)
        for batch in table.to_batches(20_000):
            rows = list(zip(*(column.to_pylist() for column in batch.columns), strict=True))
            server.run_many(f"INSERT INTO {name} VALUES ({marks})", rows)

    return load


def connect(collaboration: Collaboration, department: Department, server: Server) -> None:
    """Write the connection and its password where the department's engineer would."""
    home = collaboration.home(department)
    secret = home / "database.password"
    secret.touch(mode=0o600)
    secret.write_text(server.reader_password)
    with (home / "node.toml").open("a", encoding="utf-8") as file:
        file.write(
            f'\n[connections.registers]\nurl = "{server.url}"\nuser = "{server.reader}"\n'
            'password_file = "database.password"\n'
        )


def furnish(postgres: Server, mariadb: Server) -> Callable[[Collaboration], None]:
    """Return what registers the five lists: two databases, a workbook, a CSV file in GB18030, Parquet."""

    def lists(collaboration: Collaboration) -> None:
        def add(department: Department, *words: str | Path) -> None:
            (dataset,) = department.datasets
            home = collaboration.home(department)
            said = command("minshu-node", "dataset", "add", dataset, *words, "--home", home)
            assert not re.search(r"\d{15}", said)

        for department, server, into in (
            (POLICE, postgres, into_postgres),
            (HUMAN_RESOURCES, mariadb, into_mariadb),
        ):
            connect(collaboration, department, server)
            table = create(server, server.new_name(), table_of(collaboration, department), into(server))
            add(department, "--connection", "registers", "--table", table, "--key", "resident_id")
        folder = collaboration.folder
        book = openpyxl.Workbook(write_only=True)
        sheet = book.create_sheet("病人")
        health = table_of(collaboration, HEALTH)
        sheet.append(health.column_names)
        for row in health.to_pylist():
            sheet.append(list(row.values()))
        book.save(folder / "health.xlsx")
        add(HEALTH, folder / "health.xlsx")
        text = folder / "housing.csv"
        pyarrow.csv.write_csv(table_of(collaboration, HOUSING), text, pyarrow.csv.WriteOptions(delimiter=";"))
        text.write_bytes(text.read_text("utf-8").encode("gb18030"))
        add(HOUSING, text, "--encoding", "gb18030", "--delimiter", "semicolon")
        add(EDUCATION, collaboration.register(EDUCATION, *EDUCATION.datasets.values()))

    return lists


def check_answer(profile: str, postgres: Server, mariadb: Server, tmp_path: Path) -> None:
    """Play scenario 1; `run` compares the digest of the list with the city's right answer, or raises."""
    city = tmp_path / "city"
    generate(profile, 1, city)
    run(profile, 1, city=city, furnish=furnish(postgres, mariadb))


def test_the_right_people_are_found_in_two_databases_a_workbook_and_two_files(
    postgres: Server, mariadb: Server, tmp_path: Path
) -> None:
    check_answer("ci", postgres, mariadb, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("profile", ["demo", "bench"])
def test_the_right_people_are_found_in_larger_cities(
    profile: str, postgres: Server, mariadb: Server, tmp_path: Path
) -> None:
    check_answer(profile, postgres, mariadb, tmp_path)


@pytest.mark.long
def test_a_node_with_little_memory_finds_the_right_people_among_a_million(tmp_path: Path) -> None:
    limit = LIMIT_MB * 10**6

    def hold(node: Child) -> None:
        resource.prlimit(node.process.pid, resource.RLIMIT_DATA, (limit, limit))

    measured: Any = run("bench", 1, limit=hold)
    assert measured.rss_mb < LIMIT_MB
