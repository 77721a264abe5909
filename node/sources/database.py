"""Tables in a department's databases: read-only, one state per block, streamed into Arrow in bounded memory.

A block is one transaction that can write nothing and sees one state (REPEATABLE READ). SELECT names the
declared columns and no other, every name quoted by SQLAlchemy; no value is ever part of a statement.

The order of rows. Of equally late rows of one person those read first count, so the order has to be the same
at every reading of one state. SQL promises none, and sorting all rows by all columns is dear. So:

- PostgreSQL's tables come as they are stored: a plain scan from the first page to the last, by one process,
  without an index and without joining another scan half-way. That costs nothing, and vacuuming moves no row.
- InnoDB's tables, likewise by a scan without an index, come by the key that they are stored by.
- Elsewhere they come by the primary key; where there is none, and of views, by all the columns that are read,
  compared by their bytes: rows that tie are then equal, and it does not matter which comes first. The server
  has to sort for that.
"""

import re
import secrets
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Self

from node.sources.connections import Connection
from node.sources.dialects import (
    Dialect,
    MariaDb,
    PostgreSql,
    Stored,
    StoredColumn,
    dialect_of,
    moment_of,
    source_error,
)
from node.sources.place import TablePlace
from node.sources.source import ReadLimits, Source, SourceColumn, check_columns, check_header
from protocols.encoding import sha256_digest
from protocols.errors import InputError
from protocols.wire import utc_text

if TYPE_CHECKING:
    import pyarrow as pa
    import sqlalchemy as sa

BATCH_BYTES: Final = 8 << 20
"""About the most that one batch holds, unless a single row does."""

FIRST_ROWS: Final = 8
"""Fetched before anybody knows how long rows are; then twice as many each time, as long as they are short."""

SHORT: Final = 16
"""What a value is reckoned at that is no text, in bytes."""

FUTURE: Final = timedelta(days=1)

_DAYS: Final = (-719_162, 2_932_896)
"""0001-01-01 and 9999-12-31, in days since 1970."""

_MICROSECONDS: Final = (_DAYS[0] * 86_400_000_000, (_DAYS[1] + 1) * 86_400_000_000 - 1)

_NO_NUMBERS: Final = ("nan", "inf", "-inf")

_SNAPSHOT = re.compile(r"[0-9A-F]+(?:-[0-9A-F]+)*")


class DatabaseSource:
    """A table or view. It is used in a `with` block, in one thread.

    Attributes:
        dialect: SQLAlchemy's; in a block.
        table: the table with all its columns, for expressions; in a block.
    """

    def __init__(
        self,
        place: TablePlace,
        connection: Connection,
        limits: ReadLimits,
    ) -> None:
        """Take what says where the table is; nothing is opened.

        Args:
            place: the table.
            connection: how its database is reached.
            limits: rows per batch.

        Raises:
            InputError: the connection's settings are not usable.
        """
        self._place = place
        self._limits = limits
        self._kind: Dialect = dialect_of(connection)
        self._open: sa.Connection | None = None
        self._session: int | None = None
        self._reading: Iterator[pa.RecordBatch] | None = None

    # -- the block -------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        """Connect and begin the transaction.

        Raises:
            InputError: `source-unreachable`, `source-refused`, `source-timeout`, `table-missing`,
                `driver-missing`, `password-missing`, `password-exposed`.
        """
        self._engine = self._kind.engine()
        try:
            with self._kind.asking(connecting=True):
                self._open = self._engine.connect()
            with self._kind.asking():
                self._began = datetime.now(UTC)
                self._newest: list[datetime | None] = []
                self._session = self._kind.session_of(self._open)
                self._kind.begin(self._open)
                stored = self._kind.describe(self._open, self._place.table)
        except BaseException:
            self._leave()
            raise
        if stored is None:
            self._leave()
            raise source_error("table-missing")
        self._stored: Stored = stored
        self._known = {column.name: column for column in stored.columns}
        self._fingerprint = sha256_digest((stored.state or secrets.token_hex(16)).encode())
        return self

    def __exit__(self, *_: object) -> None:
        """End the transaction and the connection."""
        self._stop_reading()
        self._leave()

    def _leave(self) -> None:
        opened, self._open, self._session = self._open, None, None
        if opened is not None:
            import sqlalchemy as sa

            # Nothing was written, so nothing is to be taken back; a server that hangs would never do it.
            with suppress(sa.exc.SQLAlchemyError, self._kind.driver_errors(), OSError):
                opened.invalidate()
                opened.close()
        self._kind.deadline.release()

    @property
    def _connection(self) -> "sa.Connection":
        if self._open is None:
            raise RuntimeError("a source is read inside its with block")
        return self._open

    # -- what is there ---------------------------------------------------------------------------------------

    @property
    def dialect(self) -> "sa.Dialect":
        """SQLAlchemy's dialect, as the server was found."""
        return self._connection.dialect

    @property
    def table(self) -> "sa.TableClause":
        """The table with all its columns and their types, its schema named."""
        import sqlalchemy as sa

        columns = [sa.column(column.name, column.sql) for column in self._stored.columns]
        return sa.table(self._stored.name, *columns, schema=self._stored.schema)

    @property
    def settled(self) -> bool:
        """Whether all statements of a block see one state; of a view or a foreign table nobody knows."""
        return self._stored.settled

    def cancel(self) -> None:
        """End whatever waits for the server, from any thread: it raises `source-timeout`.

        Of Oracle, Dameng and Trino nobody has said how; their own limits end it.
        """
        session = self._session
        self._kind.deadline.cut()
        if session is not None:
            # Many a server notices only when it has something to send, which may be an hour later.
            threading.Thread(target=self._end_there, args=(session,), daemon=True).start()

    def _end_there(self, session: int) -> None:
        """Have the server end what it does for a connection that is cut."""
        other = dialect_of(self._kind.connection)  # whose connections are not cut
        try:
            with suppress(InputError), other.asking(connecting=True):
                other.stop(other.engine(), session)
        finally:
            other.deadline.release()

    def pushable(self, column: str) -> bool:
        """Tell whether expressions over this column mean in SQL what they mean on the values as read."""
        known = self._known.get(column)
        return known is not None and not known.as_text and known.word not in ("other", "time")

    def columns(self) -> tuple[SourceColumn, ...]:
        """Return the table's columns. Raises as `Source.columns`."""
        check_header(list(self._known), folded=False)  # a database tells names by their case
        return tuple(SourceColumn(column.name, column.word) for column in self._stored.columns)

    def snapshot(self) -> str:
        """Return the greatest value of the column named for it, or what the server says, or now.

        Raises:
            InputError: `bad-updated`: the column holds no days or times, or one that is yet to come;
                `unknown-column`.
        """
        return utc_text(self._written() or self._began)

    def written_known(self) -> bool:
        """Tell whether `snapshot` says when the table was written, and not only when it was looked at.

        Raises:
            InputError: as `snapshot`.
        """
        return self._written() is not None

    def _written(self) -> datetime | None:
        if not self._newest:  # asked for once: one block is one state
            self._newest.append(self._ask_written())
        return self._newest[0]

    def _ask_written(self) -> datetime | None:
        if not self._place.updated:
            return None if self._stored.written is None else self._stored.written.astimezone(UTC)
        import sqlalchemy as sa

        check_columns(self.columns(), [self._place.updated])
        column = self.table.c[self._place.updated]
        with self._kind.asking():
            newest = self._connection.execute(sa.select(sa.func.max(column))).scalar()
        if newest is None:
            return None
        utc = self._known[self._place.updated].utc
        moment = moment_of(newest, UTC if utc else self._kind.connection.zone)
        if moment is None or moment > self._began + FUTURE:
            what = "holds no days or times" if moment is None else "names a day that is yet to come"
            raise InputError(
                f"the column that says when the dataset was last written {what}",
                code="bad-updated",
                hint="register the dataset again, with --updated and a column that is set at every write",
            )
        return min(moment.astimezone(UTC), self._began).replace(microsecond=0)

    def fingerprint(self) -> str:
        """Return a digest of which state this is; where nothing tells, one that never comes again."""
        return self._fingerprint

    # -- reading ---------------------------------------------------------------------------------------------

    def read(self, columns: Sequence[str]) -> Iterator["pa.RecordBatch"]:
        """Yield batches of the columns; one reading at a time, an earlier one ends.

        Raises:
            InputError: as `Source.read`; `source-refused`, `source-timeout`, `source-interrupted`,
                `count-mismatch`, `not-utf8`, `bad-value`.
        """
        check_columns(self.columns(), columns)
        self._stop_reading()
        batches = self._read(tuple(columns))
        self._reading = batches
        return batches

    def query(self, statement: "sa.Select[Any]") -> Iterator["pa.RecordBatch"]:
        """Yield what a SELECT over `table` gives in the same transaction, its columns by their labels.

        Raises:
            InputError: as `read`, but for `count-mismatch`.
        """
        self._stop_reading()
        batches = self._query(statement)
        self._reading = batches
        return batches

    def _stop_reading(self) -> None:
        reading, self._reading = self._reading, None
        close = getattr(reading, "close", None)
        if close is not None:
            close()

    def _read(self, names: Sequence[str]) -> Iterator["pa.RecordBatch"]:
        columns = [self._known[name] for name in names]
        statement = self._select(columns)
        expected = None if self._stored.settled else self._count()
        rows = 0
        # Closed in there: to stop a server takes an answer of it, too.
        with self._kind.asking(), closing(self._stream(statement, columns)) as batches:
            for batch in batches:
                rows += batch.num_rows
                yield batch
        if expected is not None and rows != expected:
            raise source_error("count-mismatch")

    def _select(self, columns: Sequence[StoredColumn]) -> "sa.Select[Any]":
        import sqlalchemy as sa

        table = self.table
        values = (self._value(column, table) for column in columns)
        statement = sa.select(*(value.label(f"c{at}") for at, value in enumerate(values)))
        if self._stored.in_order:
            return self._kind.scan(statement.select_from(table), table)
        return statement.select_from(table).order_by(*self._order(columns, table))

    def order(self, columns: Sequence[str], table: "sa.TableClause") -> "Sequence[sa.ColumnElement[Any]]":
        """Return what sorts rows as `read` hands out those of these columns; empty where nothing says it.

        Rows that tie are then equal in all these columns.

        Args:
            columns: as for `read`.
            table: the one that the statement is about.
        """
        import sqlalchemy as sa

        if self._stored.in_order:
            return [sa.column(name) for name in self._stored.stored_by]
        return self._order([self._known[name] for name in columns], table)

    def _order(
        self, columns: Sequence[StoredColumn], table: "sa.TableClause"
    ) -> "list[sa.ColumnElement[Any]]":
        if self._stored.key:
            return [table.c[name] for name in self._stored.key]
        compared = (self._kind.ordered(self._value(column, table), column) for column in columns)
        return [each for several in compared for each in several]

    def _value(self, column: StoredColumn, table: "sa.TableClause") -> "sa.ColumnElement[Any]":
        """Return a column as it is read."""
        stored = table.c[column.name]
        return self._kind.text_of(stored) if column.as_text else stored

    def _count(self) -> int:
        import sqlalchemy as sa

        with self._kind.asking():
            statement = sa.select(sa.func.count()).select_from(self.table)
            return int(self._connection.execute(statement).scalar_one())

    def _stream(
        self, statement: "sa.Select[Any]", columns: Sequence[StoredColumn]
    ) -> "Generator[pa.RecordBatch]":
        match self._kind:
            case PostgreSql():
                return self._copied(self._kind, statement, columns)
            case MariaDb():
                return self._texts(self._kind, statement, columns)
        return self._rows(statement, columns)

    def _copied(
        self, kind: PostgreSql, statement: "sa.Select[Any]", columns: Sequence[StoredColumn]
    ) -> "Generator[pa.RecordBatch]":
        """Yield batches by COPY, over a connection that sees what this one sees."""
        from adbc_driver_postgresql import StatementOptions
        from sqlalchemy.dialects import postgresql

        # A paramstyle without %: nothing would undo what it doubles.
        text = str(statement.compile(dialect=postgresql.dialect(paramstyle="named")))  # type: ignore[no-untyped-call]  # SQLAlchemy leaves it open
        seen = str(self._connection.exec_driver_sql("SELECT pg_catalog.pg_export_snapshot()").scalar_one())
        if not _SNAPSHOT.fullmatch(seen):
            raise source_error("source-failed")
        validate = self._connection.exec_driver_sql("SHOW server_encoding").scalar_one() == "SQL_ASCII"
        first = self._connection.connection.dbapi_connection
        with kind.second(first) as connection, closing(connection.cursor()) as cursor:
            for each in (
                kind.BEGIN,
                f"SET TRANSACTION SNAPSHOT '{seen}'",
                kind.session(in_order=self._stored.in_order),
            ):
                cursor.execute(each)
            cursor.adbc_statement.set_options(
                **{StatementOptions.BATCH_SIZE_HINT_BYTES.value: f"{BATCH_BYTES}"}
            )
            cursor.execute(text)
            # The reader behind `fetch_record_batch`, which would drop the SQLSTATE of what goes wrong.
            batches: Iterator[pa.RecordBatch] = cursor._results.reader  # noqa: SLF001
            for batch in batches:
                for part in self._parts(batch):
                    yield self._batch(part.columns, columns, validate=validate)

    def _parts(self, batch: "pa.RecordBatch") -> Iterator["pa.RecordBatch"]:
        for at in range(0, batch.num_rows, self._limits.batch_rows):
            yield batch.slice(at, self._limits.batch_rows)

    def _texts(
        self, kind: MariaDb, statement: "sa.Select[Any]", columns: Sequence[StoredColumn]
    ) -> "Generator[pa.RecordBatch]":
        """Yield batches of an unbuffered cursor; values stay text until Arrow makes columns of them."""
        import pyarrow as pa
        from pymysql.cursors import SSCursor

        raw: Any = self._connection.connection.dbapi_connection
        text = str(statement.compile(dialect=self.dialect))
        decoders, raw.decoders = raw.decoders, {}
        cursor = raw.cursor(SSCursor)
        done = False
        try:
            cursor.execute(text, ())
            for rows in _portions(cursor.fetchmany, self._limits.batch_rows):
                yield self._batch([pa.array(each) for each in zip(*rows, strict=True)], columns)
            done = True
        finally:
            raw.decoders = decoders
            if not done and raw.open:
                # Closing reads on to the last row; the server is told to send no more.
                with suppress(InputError), kind.failing():
                    kind.stop(self._engine, raw.thread_id())
            with suppress(kind.driver_errors()):
                _let_go(cursor, raw)

    def _rows(
        self, statement: "sa.Select[Any]", columns: Sequence[StoredColumn]
    ) -> "Generator[pa.RecordBatch]":
        """Yield batches of a cursor at the server, as SQLAlchemy gives rows."""
        import pyarrow as pa

        ask = min(self._kind.connection.fetch_rows, self._limits.batch_rows)
        options = {"stream_results": True, "max_row_buffer": ask}
        with self._connection.execute(statement, execution_options=options) as result:
            for rows in _portions(result.fetchmany, ask):
                yield self._batch([pa.array(each) for each in zip(*rows, strict=True)], columns)

    def _batch(
        self, values: "Sequence[pa.Array]", columns: Sequence[StoredColumn], *, validate: bool = False
    ) -> "pa.RecordBatch":
        """Return values as the types that were found before reading; what a type cannot hold is refused."""
        import pyarrow as pa

        zone = str(self._kind.connection.timezone)
        typed = [_typed(value, column, zone) for value, column in zip(values, columns, strict=True)]
        for value in typed if validate else ():
            value.validate(full=True)
        return pa.RecordBatch.from_arrays(typed, names=[column.name for column in columns])

    def _query(self, statement: "sa.Select[Any]") -> Iterator["pa.RecordBatch"]:
        import pyarrow as pa

        labels = [str(column.key) for column in statement.selected_columns]
        ask = min(self._kind.connection.fetch_rows, self._limits.batch_rows)
        options = {"stream_results": True, "max_row_buffer": ask}
        with (
            self._kind.asking(),
            self._connection.execute(statement, execution_options=options) as result,
        ):
            for rows in _portions(result.fetchmany, ask):
                yield pa.RecordBatch.from_arrays(
                    [pa.array(each) for each in zip(*rows, strict=True)], names=labels
                )


def _portions(fetch: Callable[[int], Sequence[Any]], most: int) -> Iterator[list[Any]]:
    """Yield rows as a cursor fetches them, no more than `most` and about `BATCH_BYTES` at a time."""
    size = FIRST_ROWS
    held: list[Any] = []
    held_bytes = 0
    while rows := fetch(min(size, most - len(held))):
        found = sum(map(_bytes_of, rows))
        held += rows
        held_bytes += found
        # What these rows were like says how many more may come at once.
        size = max(1, min(2 * size, (BATCH_BYTES - held_bytes) * len(rows) // max(1, found)))
        if held_bytes >= BATCH_BYTES or len(held) >= most:
            yield held
            held, held_bytes = [], 0
    if held:
        yield held


def _bytes_of(row: Iterable[Any]) -> int:
    return sum(len(value) if isinstance(value, (str, bytes)) else SHORT for value in row)


def _typed(value: "pa.Array", column: StoredColumn, zone: str) -> "pa.Array":
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(value, pa.ExtensionArray):  # ADBC's texts of PostgreSQL's numeric
        value = value.storage
    kind, wanted = value.type, column.arrow
    if pa.types.is_string(kind) and wanted.id in (pa.date32().id, pa.timestamp("us").id):
        # As MariaDB writes that there is none.
        none = pc.starts_with(value, "0000-00-00")
        value = pc.if_else(none, pa.scalar(None, kind), value)
    if pa.types.is_string(kind) and pa.types.is_decimal(wanted):
        # As ADBC writes that a number is none.
        value = pc.if_else(pc.is_in(value, pa.array(_NO_NUMBERS)), pa.scalar(None, kind), value)
    if pa.types.is_temporal(kind):
        value = _in_calendar(value)
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        return value.cast(pa.timestamp("us", zone))
    if kind != wanted:
        value = value.cast(wanted)
    if pa.types.is_binary(wanted):
        return value.cast(pa.string())  # refuses what is not UTF-8
    if column.utc:
        return pc.assume_timezone(value, "UTC").cast(pa.timestamp("us", zone))
    return value


def _in_calendar(value: "pa.Array") -> "pa.Array":
    """Return days and times with null for `infinity`, and for years that no calendar of ours has."""
    import pyarrow as pa
    import pyarrow.compute as pc

    wide = pa.int32() if pa.types.is_date32(value.type) else pa.int64()
    first, last = _DAYS if pa.types.is_date32(value.type) else _MICROSECONDS
    plain = value.view(wide)
    found = pc.min_max(plain).as_py()
    if found["min"] is None or (first <= found["min"] and found["max"] <= last):
        return value
    inside = pc.and_(pc.greater_equal(plain, first), pc.less_equal(plain, last))
    return pc.if_else(inside, value, pa.scalar(None, value.type))


def _let_go(cursor: Any, raw: Any) -> None:
    """Close an unbuffered cursor; of a connection that is gone there is nothing more to read."""
    if not raw.open and raw._result is not None:  # noqa: SLF001  # PyMySQL would read on when it is collected
        raw._result.unbuffered_active = False  # noqa: SLF001
        cursor.connection = None
    cursor.close()


def written_known(source: Source) -> bool:
    """Tell whether an open source knows when its table was written; of a file, that is always known.

    Raises:
        InputError: as `Source.snapshot`.
    """
    inner = _unmapped(source)
    return not isinstance(inner, DatabaseSource) or inner.written_known()


def cancelling(source: Source) -> Callable[[], None]:
    """Return what ends a reading that waits for a server; files make nobody wait."""
    inner = _unmapped(source)
    return inner.cancel if isinstance(inner, DatabaseSource) else lambda: None


def _unmapped(source: Source) -> object:
    """Return what a `MappedSource` maps; any other source itself."""
    return getattr(source, "source", source)


def open_table(
    place: TablePlace,
    connections: Mapping[str, Connection],
    limits: ReadLimits,
) -> DatabaseSource:
    """Return the source of a table.

    Raises:
        InputError: `unknown-connection`; or its settings are not usable.
    """
    connection = connections.get(place.connection)
    if connection is None:
        raise InputError(
            "the dataset's connection is not configured at this node",
            code="unknown-connection",
            hint=f"write [connections.{place.connection}] into node.toml",
        )
    return DatabaseSource(place, connection, limits)
