"""Tables in real servers, made from Arrow, and how a node would open them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
from databases.servers import Server

from node.sources import Access, Connection, ReadLimits, TablePlace
from node.sources.database import DatabaseSource, open_table

_POSTGRES = {
    pa.string(): "text",
    pa.int64(): "bigint",
    pa.int32(): "integer",
    pa.date32(): "date",
    pa.timestamp("us"): "timestamp",
    pa.bool_(): "boolean",
    pa.decimal128(18, 2): "numeric(18, 2)",
}
_MARIADB = _POSTGRES | {pa.timestamp("us"): "datetime(6)"}


def quoted(server: Server, name: str) -> str:
    """Return a name as this server's SQL has it."""
    mark = '"' if server.dialect == "postgresql" else "`"
    return mark + name.replace(mark, mark * 2) + mark


def create(server: Server, name: str, table: pa.Table, *, grant: bool = True) -> None:
    """Store a table of Arrow and let the reading role SELECT from it."""
    types = _POSTGRES if server.dialect == "postgresql" else _MARIADB
    columns = ", ".join(f"{quoted(server, field.name)} {types[field.type]}" for field in table.schema)
    server.run(f"CREATE TABLE {quoted(server, name)} ({columns})")
    if table.num_rows:
        marks = ", ".join(["%s"] * table.num_columns)
        insert = f"INSERT INTO {quoted(server, name)} VALUES (\0)".replace("%", "%%").replace("\0", marks)
        server.run_many(insert, rows_of(table))
    if grant:
        allow(server, name)


def allow(server: Server, name: str) -> None:
    """Let the reading role SELECT from a table."""
    to = server.reader if server.dialect == "postgresql" else f"'{server.reader}'@'%'"
    server.run(f"GRANT SELECT ON {quoted(server, name)} TO {to}")


def rows_of(table: pa.Table) -> list[tuple[Any, ...]]:
    """Return a table's rows."""
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def connection_of(server: Server, folder: Path, **changes: Any) -> Connection:
    """Return a connection of the reading role, its password in a file that only we may read."""
    file = folder / f"{server.dialect}.password"
    if not file.exists():
        file.touch(mode=0o600)
        file.write_text(server.reader_password + "\n")
    settings: dict[str, Any] = {
        "url": server.url,
        "user": server.reader,
        "password_file": file.name,
        "name": "registers",
        "folder": folder,
    }
    return Connection(**settings | changes)


def source_of(
    server: Server, folder: Path, name: str, *, updated: str = "", batch_rows: int = 4096, **changes: Any
) -> DatabaseSource:
    """Return the source of a table."""
    connections = {"registers": connection_of(server, folder, **changes)}
    return open_table(TablePlace("registers", name, updated), connections, ReadLimits(batch_rows=batch_rows))


def access_of(server: Server, folder: Path, **changes: Any) -> Access:
    """Return how a node reads that has one connection."""
    return Access(connections={"registers": connection_of(server, folder, **changes)})


def table_of(batches: Iterable[pa.RecordBatch]) -> pa.Table:
    """Return batches as one table."""
    return pa.Table.from_batches(list(batches))
