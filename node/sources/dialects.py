"""What is particular to each database: one read-only state of it, what it says of a table, its errors.

PostgreSQL and MariaDB (MySQL) are asked in their own words. Oracle, Dameng and Trino come with their
SQLAlchemy dialects, of which this module knows how to connect, what makes a transaction read-only, and which
errors mean what; nothing of these three has met a server in this project's tests.
"""

import re
import socket
import ssl
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, tzinfo
from typing import TYPE_CHECKING, Any, ClassVar, Final

from node.sources.connections import Connection
from node.sources.deadline import Deadline, sockets_to
from protocols.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa
    import sqlalchemy as sa

APPLICATION: Final = "minshu-node"
LOCK_WAIT_S: Final = 10
KEEPALIVE_IDLE_S: Final = 30
KEEPALIVE_S: Final = 10
KEEPALIVES: Final = 3
SLACK_S: Final = 15
"""How much longer than the server's own limit an answer may take until its connection is cut."""

SETTLED_S: Final = 2
"""A time of last write in whole seconds tells nothing of a write in that second: it has to be that old."""

KEEPALIVE: Final[Mapping[int, int]] = {
    getattr(socket, name): value
    for name, value in (
        ("TCP_KEEPIDLE", KEEPALIVE_IDLE_S),
        ("TCP_KEEPINTVL", KEEPALIVE_S),
        ("TCP_KEEPCNT", KEEPALIVES),
    )
    if hasattr(socket, name)
}

SORTED_BYTES: Final = 4096
"""What MariaDB compares of a text when it sorts; of longer ones, whose beginnings tie, a digest."""

SORT_BYTES: Final = 8 << 20
"""What MariaDB may take for that: it needs fifteen rows at once, each with as much of every text."""

_CONNECTING: Final = threading.Lock()
"""Held while a connection to a PostgreSQL is made."""

MAX_PRECISION: Final = 38  # of Arrow's decimal128


@dataclass(frozen=True, slots=True)
class StoredColumn:
    """One column as its database has it.

    Attributes:
        name: as stored.
        word: as a `SourceColumn` says it.
        arrow: the Arrow type it is handed over in.
        sql: the type for expressions about it.
        as_text: the server has to make text of it.
        utc: a moment, read in UTC, handed over in the connection's time zone.
    """

    name: str
    word: str
    arrow: "pa.DataType"
    sql: "sa.types.TypeEngine[Any]"
    as_text: bool = False
    utc: bool = False


@dataclass(frozen=True, slots=True)
class Stored:
    """What a server says of one table.

    Attributes:
        name: its name as stored.
        schema: its schema; None for the one the server takes by itself.
        columns: all, in their order.
        key: columns of its primary key, in the key's order; empty for none.
        settled: one transaction sees one state of it, so that it has as many rows as it counts. Of a view,
            a foreign table or a table without transactions nobody knows that.
        in_order: rows come as they are stored, at every reading of one state.
        stored_by: what sorts rows as they are stored, columns of the server's own among them; empty where
            nothing says it.
        state: what changes with every write, None where nothing tells.
        written: when it was last written, None where nothing tells.
    """

    name: str
    schema: str | None
    columns: tuple[StoredColumn, ...]
    key: tuple[str, ...] = ()
    settled: bool = False
    in_order: bool = False
    stored_by: tuple[str, ...] = ()
    state: str | None = None
    written: datetime | None = None


class Dialect(ABC):
    """What every database has; one kind overrides what is its own."""

    driver: ClassVar[str]
    """As SQLAlchemy names it."""
    packages: ClassVar[str] = "'minshu[databases]'"
    """What pip installs for it."""
    outcomes: ClassVar[Mapping[str, str]] = {}
    """The server's error codes, and ours."""

    def __init__(self, connection: Connection) -> None:
        """Take a connection's settings. Raises as `Connection.address`."""
        self.connection = connection
        self.address = connection.address
        self.deadline = Deadline()

    # -- connecting ------------------------------------------------------------------------------------------

    def engine(self) -> "sa.Engine":
        """Return the engine; it keeps no connection, and quotes no parameter in an error.

        Raises:
            InputError: `driver-missing`; or the password cannot be had.
        """
        import sqlalchemy as sa

        try:
            engine = sa.create_engine(
                self.url(),
                connect_args=dict(self.connect_args()),
                poolclass=sa.NullPool,
                hide_parameters=True,
                **self.engine_args(),
            )
        except (ImportError, sa.exc.NoSuchModuleError):
            raise InputError(
                f"what reads a database of dialect {self.address.dialect} is not installed",
                code="driver-missing",
                hint=f"have this node's operator run: pip install {self.packages}",
            ) from None
        sa.event.listen(engine, "do_connect", self._connect)
        return engine

    def _connect(self, dialect: Any, record: object, positional: Any, named: Any) -> Any:
        """Return a connection of the driver whose socket the deadline holds, or None."""
        del dialect, record, positional, named

    def url(self) -> "sa.URL":
        """Return the url for SQLAlchemy: no more than the driver."""
        import sqlalchemy as sa

        return sa.URL.create(self.driver)

    @abstractmethod
    def connect_args(self) -> Mapping[str, Any]:
        """Return what the driver is connected with, the password included."""

    def engine_args(self) -> Mapping[str, Any]:
        """Return further arguments of the engine."""
        return {}

    # -- one read-only state ---------------------------------------------------------------------------------

    @abstractmethod
    def begin(self, connection: "sa.Connection") -> None:
        """Begin the transaction in which everything is read."""

    def describe(self, connection: "sa.Connection", table: str) -> Stored | None:
        """Return what the server says of a table, None if it has none of that name."""
        import sqlalchemy as sa

        inspector = sa.inspect(connection)
        schema = self.connection.schema or None
        try:
            found = inspector.get_columns(table, schema=schema)
            key = inspector.get_pk_constraint(table, schema=schema)["constrained_columns"]
        except sa.exc.NoSuchTableError:
            return None
        columns = tuple(_of_sqlalchemy(str(each["name"]), each["type"]) for each in found)
        return Stored(table, schema, columns, tuple(key or ())) if columns else None

    def text_of(self, column: "sa.ColumnElement[Any]") -> "sa.ColumnElement[Any]":
        """Return a column as text, by the server."""
        import sqlalchemy as sa

        return sa.cast(column, sa.Text())

    def scan(self, statement: "sa.Select[Any]", table: "sa.TableClause") -> "sa.Select[Any]":
        """Return a statement that reads a table `in_order` so that it does."""
        del table
        return statement

    def ordered(
        self, column: "sa.ColumnElement[Any]", stored: StoredColumn
    ) -> "Sequence[sa.ColumnElement[Any]]":
        """Return what to order by so that unequal values never tie; nothing for what cannot be ordered."""
        del stored
        return [column]

    # -- ending ----------------------------------------------------------------------------------------------

    def session_of(self, connection: "sa.Connection") -> int | None:
        """Return what `stop` ends a connection's statement by, None where it cannot."""
        del connection
        return None

    def stop(self, engine: "sa.Engine", session: int) -> None:
        """End the statement of another connection; its transaction stays. Where nobody knows how, not."""
        del engine, session

    # -- errors ----------------------------------------------------------------------------------------------

    def server_code(self, error: BaseException) -> str:
        """Return the server's or the driver's own code of an error, empty for none."""
        del error
        return ""

    def code_of(self, error: BaseException, *, connecting: bool) -> str:
        """Return our code of a driver's error."""
        found = self.server_code(error)
        if found in self.outcomes:
            return self.outcomes[found]
        if connecting:
            return "source-unreachable"
        return "source-interrupted" if _is_cut(error) else "source-failed"

    @contextmanager
    def asking(self, *, connecting: bool = False) -> Iterator[None]:
        """Do what `failing` does, and end it all if a server hangs.

        Raises:
            InputError: as `failing`, or `source-timeout`.
        """
        settings = self.connection
        patience = SLACK_S + (settings.connect_timeout_s if connecting else settings.statement_timeout_s)
        try:
            with self.deadline.within(patience), self.failing(connecting=connecting):
                yield
        except InputError:
            if self.deadline.over:
                raise source_error("source-timeout") from None
            raise

    @contextmanager
    def failing(self, *, connecting: bool = False) -> Iterator[None]:
        """Turn what drivers raise into our codes; their own messages quote hosts, names and values."""
        import pyarrow as pa
        import sqlalchemy as sa

        try:
            yield
        except sa.exc.DBAPIError as error:
            orig = error.orig if error.orig is not None else error
            cut = error.connection_invalidated and not connecting
            code = self.code_of(orig, connecting=connecting)
            raise source_error("source-interrupted" if cut and code == "source-failed" else code) from None
        except pa.ArrowException:
            raise source_error("bad-value") from None
        except UnicodeDecodeError:
            raise source_error("not-utf8") from None
        except (self.driver_errors(), sa.exc.SQLAlchemyError, OSError) as error:
            raise source_error(self.code_of(error, connecting=connecting)) from None

    def driver_errors(self) -> Any:
        """Return the classes of errors that come from beneath SQLAlchemy."""
        return ()


# -- PostgreSQL ----------------------------------------------------------------------------------------------


class PostgreSql(Dialect):
    """PostgreSQL 11 and later. Rows are read by COPY in binary, which ADBC turns into Arrow without Python.

    Two connections see one state: the first begins the transaction and exports its snapshot, the one that
    COPYs takes it on, as `pg_dump --jobs` does.
    """

    driver = "postgresql+psycopg"
    outcomes: ClassVar[Mapping[str, str]] = {
        "28000": "source-refused",
        "28P01": "source-refused",
        "42501": "source-refused",
        "3D000": "source-unreachable",
        "53300": "source-unreachable",
        "57P03": "source-unreachable",
        "42P01": "table-missing",
        "3F000": "table-missing",
        "42703": "schema-drift",
        "57014": "source-timeout",
        "55P03": "source-timeout",
        "25P03": "source-timeout",
        "57P01": "source-interrupted",
        "57P02": "source-interrupted",
        "57P05": "source-interrupted",
        "40001": "source-interrupted",  # a standby took back what was being read
        "08000": "source-interrupted",
        "08001": "source-unreachable",
        "08003": "source-interrupted",
        "08006": "source-interrupted",
        "22021": "not-utf8",
        "22P05": "not-utf8",
    }
    unsettled: ClassVar[frozenset[str]] = frozenset("vf")
    _TYPES: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("text", "varchar", "bpchar", "name", "bytea"), "text"),
        **dict.fromkeys(("int2", "int4", "int8"), "integer"),
        **dict.fromkeys(("float4", "float8", "numeric"), "decimal"),
        "date": "date",
        "timestamp": "time",
        "timestamptz": "time",
        "bool": "boolean",
    }

    def connect_args(self) -> Mapping[str, Any]:
        """Return libpq's parameters."""
        settings = self.connection
        given: dict[str, Any] = {
            "host": settings.socket or self.address.host,
            "dbname": self.address.database,
            "connect_timeout": settings.connect_timeout_s,
            "application_name": APPLICATION,
            "client_encoding": "UTF8",
            "gssencmode": "disable",
            "keepalives": 1,
            "keepalives_idle": KEEPALIVE_IDLE_S,
            "keepalives_interval": KEEPALIVE_S,
            "keepalives_count": KEEPALIVES,
            "sslmode": "disable",
        }
        if self.address.port:
            given["port"] = self.address.port
        if settings.user:
            given["user"] = settings.user
        if settings.encrypted:
            given["sslmode"] = "verify-full" if settings.ca else "require"
        if settings.ca:
            given["sslrootcert"] = str(settings.ca_path)
        else:
            # Nobody has vouched for the server: it gets no password in the clear.
            given["require_auth"] = "!password"
        password = settings.password()
        if password is not None:
            given["password"] = password
        return given

    def _connect(self, dialect: Any, record: object, positional: Any, named: Any) -> Any:
        del record
        with _CONNECTING:
            connection = dialect.connect(*positional, **named)
        self.deadline.hold(connection.fileno())
        return connection

    @contextmanager
    def second(self, first: Any) -> Iterator[Any]:
        """Give a connection of ADBC to the server that psycopg's `first` is connected to."""
        from adbc_driver_postgresql import dbapi
        from psycopg.conninfo import make_conninfo

        # Behind one name there may be several servers, and of them only this one has the snapshot.
        at = {"hostaddr": first.info.hostaddr} if self.address.host and not self.connection.socket else {}
        conninfo = make_conninfo("", **self.connect_args(), **at)
        with _CONNECTING:
            # ADBC does not show its socket. While nobody else connects, it is the new one.
            before = sockets_to(first.fileno())

            def hold() -> None:
                for inode, descriptor in sockets_to(first.fileno()).items():
                    if inode not in before:
                        self.deadline.hold(descriptor)

            def cut() -> None:
                hold()
                self.deadline.cut()

            with self.deadline.within(self.connection.connect_timeout_s + SLACK_S, cut):
                connection = dbapi.connect(conninfo)
            hold()
        with closing(connection):
            yield connection

    BEGIN: ClassVar[str] = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"

    def session(self, *, in_order: bool) -> str:
        """Return the statement that settles how queries run until the transaction ends.

        Args:
            in_order: of a scan that has to give rows in the order in which they are stored: no index, no
                second process, and not from where somebody else's scan is just now.
        """
        limit = f"{self.connection.statement_timeout_s * 1000}"
        settings = {
            "statement_timeout": limit,
            "idle_in_transaction_session_timeout": limit,
            "lock_timeout": f"{LOCK_WAIT_S * 1000}",
            "timezone": "UTC",
            "jit": "off",
            # No function or operator of anybody's own stands in for the server's.
            "search_path": "pg_catalog, pg_temp",
            "client_min_messages": "error",
        }
        if in_order:
            settings |= {
                "synchronize_seqscans": "off",
                "max_parallel_workers_per_gather": "0",
                "enable_indexscan": "off",
                "enable_indexonlyscan": "off",
                "enable_bitmapscan": "off",
            }
        each = ", ".join(
            f"pg_catalog.set_config('{name}', '{value}', true)" for name, value in settings.items()
        )
        return f"SELECT {each}"

    def begin(self, connection: "sa.Connection") -> None:
        """Begin a transaction that sees one state and can write nothing."""
        connection.exec_driver_sql(self.BEGIN)
        # Before `session` takes it away.
        current = connection.exec_driver_sql("SELECT pg_catalog.current_schema()").scalar()
        self._schema = self.connection.schema or current
        connection.exec_driver_sql(self.session(in_order=False))

    def session_of(self, connection: "sa.Connection") -> int | None:
        """Return the process at the server."""
        driver: Any = connection.connection.dbapi_connection
        return int(driver.info.backend_pid)

    def stop(self, engine: "sa.Engine", session: int) -> None:
        """End the statement of another connection; its transaction stays."""
        with engine.connect() as connection:
            connection.exec_driver_sql(f"SELECT pg_catalog.pg_cancel_backend({session:d})")

    def describe(self, connection: "sa.Connection", table: str) -> Stored | None:
        """Return what the catalogue says, which everybody may read; the table stays as it is meanwhile.

        Raises:
            InputError: `source-interrupted`: it was rewritten since the transaction began.
        """
        import sqlalchemy as sa

        about = connection.execute(
            sa.text(
                """WITH RECURSIVE part (oid) AS (
                    SELECT c.oid FROM pg_catalog.pg_class c
                        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                        WHERE c.relname = :table AND n.nspname = CAST(:schema AS pg_catalog.text)
                    UNION SELECT i.inhrelid FROM pg_catalog.pg_inherits i
                        JOIN part ON part.oid = i.inhparent)
                SELECT c.oid, n.nspname, c.relkind::text, c.relrowsecurity,
                    EXISTS (SELECT FROM part JOIN pg_catalog.pg_class k ON k.oid = part.oid
                            WHERE k.relkind = 'f'),
                    pg_catalog.txid_current_snapshot()::text, pg_catalog.pg_is_in_recovery(),
                    pg_catalog.pg_postmaster_start_time()::text,
                    c.relkind IN ('r', 'm') AND NOT c.relhassubclass
                        AND pg_catalog.has_table_privilege(c.oid, 'SELECT')
                FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                WHERE c.relname = :table AND c.relkind IN ('r', 'p', 'm', 'v', 'f')
                    AND n.nspname = CAST(:schema AS pg_catalog.text)"""
            ),
            {"table": table, "schema": self._schema},
        ).one_or_none()
        if about is None:
            return None
        oid, schema, kind, guarded, foreign, snapshot, standby, started, whole = about
        self._hold(connection, sa.table(table, schema=schema))
        rows = connection.execute(
            sa.text(
                """SELECT a.attname, t.typname, t.typtype::text, t.typnamespace = 'pg_catalog'::regnamespace,
                    CASE WHEN d.typtype = 'd' THEN d.typtypmod ELSE a.atttypmod END
                FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type d ON d.oid = a.atttypid
                    JOIN pg_catalog.pg_type t
                    ON t.oid = CASE WHEN d.typtype = 'd' THEN d.typbasetype ELSE d.oid END
                WHERE a.attrelid = :oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum"""
            ),
            {"oid": oid},
        ).all()
        local = kind not in self.unsettled and not foreign
        return Stored(
            name=table,
            schema=schema,
            columns=tuple(self._column(*row) for row in rows),
            settled=local and not guarded,
            in_order=local,
            # Whoever may read single columns may not ask where a row lies.
            stored_by=("ctid",) if whole else (),
            # Which transactions a snapshot sees says which state it is: none ends without a change in it.
            # A standby does not list those under way.
            # Where a policy of the table hides rows, which ones may change without any transaction.
            state=f"{started} {oid} {snapshot}" if local and not standby and not guarded else None,
        )

    def _hold(self, connection: "sa.Connection", table: "sa.TableClause") -> None:
        """Keep a table, its parts and what a view is made of from being rewritten until the transaction ends.

        Whoever began before a TRUNCATE sees none of the rows that were there, and none of those that came:
        rewriting a table is not part of what a snapshot holds back. So what is locked has to lie where it
        lay when the transaction began.

        Raises:
            InputError: `source-interrupted`: it does not.
        """
        import sqlalchemy as sa

        connection.execute(sa.select(sa.literal_column("1")).select_from(table).limit(0))
        moved = connection.exec_driver_sql(
            """SELECT count(*) FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_class k ON k.oid = l.relation
            WHERE l.pid = pg_catalog.pg_backend_pid() AND l.locktype = 'relation' AND k.relkind IN ('r', 'm')
                AND k.relfilenode <> 0
                AND pg_catalog.pg_relation_filenode(k.oid) IS DISTINCT FROM k.relfilenode"""
        ).scalar_one()
        if moved:
            raise source_error("source-interrupted")

    def _column(self, name: str, kind: str, family: str, own: bool, modifier: int) -> StoredColumn:
        import pyarrow as pa
        import sqlalchemy as sa

        word = self._TYPES.get(kind) if own else None
        match word:
            case "text":
                arrow = pa.binary() if kind == "bytea" else pa.string()
                return StoredColumn(name, word, arrow, sa.LargeBinary() if kind == "bytea" else sa.Text())
            case "integer":
                sized = {"int2": pa.int16(), "int4": pa.int32()}.get(kind, pa.int64())
                return StoredColumn(name, word, sized, sa.BigInteger())
            case "decimal" if kind == "numeric":
                # As `numerictypmodin` packs it; a scale below zero has no Arrow type.
                precision, scale = (modifier - 4) >> 16 & 0xFFFF, (modifier - 4) & 0x7FF
                fits = modifier >= 4 and precision <= MAX_PRECISION and scale <= precision
                return StoredColumn(
                    name,
                    word,
                    pa.decimal128(precision, scale) if fits else pa.string(),
                    sa.Numeric(precision, scale) if fits else sa.Numeric(),
                )
            case "decimal":
                return StoredColumn(name, word, pa.float64(), sa.Double())
            case "date":
                return StoredColumn(name, word, pa.date32(), sa.Date())
            case "time":
                moment = kind == "timestamptz"
                return StoredColumn(name, word, pa.timestamp("us"), sa.DateTime(timezone=moment), utc=moment)
            case "boolean":
                return StoredColumn(name, word, pa.bool_(), sa.Boolean())
        said = {"e": "text"}.get(family, "time" if kind in ("time", "timetz") else "other")
        return StoredColumn(name, said, pa.string(), sa.Text(), as_text=True)

    def ordered(
        self, column: "sa.ColumnElement[Any]", stored: StoredColumn
    ) -> "Sequence[sa.ColumnElement[Any]]":
        """Return it by its bytes: under some collations unequal texts tie."""
        import sqlalchemy as sa

        return [sa.collate(column, "C") if isinstance(stored.sql, sa.Text) else column]

    def server_code(self, error: BaseException) -> str:
        """Return the SQLSTATE."""
        return str(getattr(error, "sqlstate", None) or "")

    def code_of(self, error: BaseException, *, connecting: bool) -> str:
        """Return our code; of libpq's own errors, which have none, by what they say."""
        if connecting and not self.server_code(error):
            if re.search(r"password|authentication", str(error), re.IGNORECASE):
                return "source-refused"  # while connecting, libpq passes on no SQLSTATE
            if re.search(r"timeout", str(error), re.IGNORECASE):
                return "source-timeout"
        return super().code_of(error, connecting=connecting)

    def driver_errors(self) -> Any:
        """Return what ADBC raises."""
        import adbc_driver_manager

        return adbc_driver_manager.Error


# -- MariaDB and MySQL ---------------------------------------------------------------------------------------


class MariaDb(Dialect):
    """MariaDB and MySQL, by PyMySQL. Columns that the role may not read are not seen at all."""

    outcomes: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(
            ("1044", "1045", "1698", "1142", "1143", "1227", "1370", "2059", "3118"), "source-refused"
        ),
        **dict.fromkeys(
            ("1040", "1049", "1129", "1130", "1203", "2002", "2003", "2005"), "source-unreachable"
        ),
        **dict.fromkeys(("1146", "1109", "1932"), "table-missing"),
        **dict.fromkeys(("1054", "1356"), "schema-drift"),
        **dict.fromkeys(("1969", "3024", "1205", "1969"), "source-timeout"),
        **dict.fromkeys(("0", "1053", "1317", "1927", "2006", "2013", "2055"), "source-interrupted"),
        "1412": "changed-while-reading",
    }
    _TYPES: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(
            ("char", "varchar", "tinytext", "text", "mediumtext", "longtext", "enum", "set"), "text"
        ),
        **dict.fromkeys(("binary", "varbinary", "tinyblob", "blob", "mediumblob", "longblob"), "bytes"),
        **dict.fromkeys(("tinyint", "smallint", "mediumint", "int", "bigint", "year"), "integer"),
        **dict.fromkeys(("float", "double"), "double"),
        **dict.fromkeys(("datetime", "timestamp"), "time"),
        "decimal": "decimal",
        "date": "date",
    }

    @property
    def driver(self) -> str:  # type: ignore[override]  # one class for two names
        """As SQLAlchemy names it."""
        return f"{self.address.dialect}+pymysql"

    def connect_args(self) -> Mapping[str, Any]:
        """Return PyMySQL's arguments."""
        settings = self.connection
        given: dict[str, Any] = {
            "database": self.address.database,
            "charset": "utf8mb4",
            "connect_timeout": settings.connect_timeout_s,
            "read_timeout": settings.statement_timeout_s + LOCK_WAIT_S,
            "write_timeout": settings.statement_timeout_s + LOCK_WAIT_S,
            "program_name": APPLICATION,
            # Before anybody asks how names are quoted; and it says what a backslash in a text means.
            "sql_mode": "",
        }
        if not settings.ca:
            from node.sources.mysql_login import PROVING

            given["auth_plugin_map"] = PROVING
        if settings.socket:
            given["unix_socket"] = settings.socket
        else:
            given |= {"host": self.address.host, "port": self.address.port or 3306}
        if settings.user:
            given["user"] = settings.user
        if settings.encrypted:
            given["ssl"] = tls_context(settings)
        else:
            given["ssl_disabled"] = True
        password = settings.password()
        if password is not None:
            given["password"] = password.encode()  # PyMySQL would write it in Latin-1
        return given

    def _connect(self, dialect: Any, record: object, positional: Any, named: Any) -> Any:
        del dialect, record, positional
        from node.sources.mysql_login import connect

        return connect(named, self.deadline, KEEPALIVE)

    def begin(self, connection: "sa.Connection") -> None:
        """Begin a transaction that sees one state and can write nothing."""
        import sqlalchemy as sa

        limit = self.connection.statement_timeout_s
        # MySQL counts milliseconds, and remembers what it says of tables for a day.
        own = (
            f"max_statement_time = {limit}, default_regex_flags = ''"
            if getattr(connection.dialect, "is_mariadb", False)
            else f"max_execution_time = {limit * 1000}, information_schema_stats_expiry = 0"
        )
        connection.exec_driver_sql(
            f"SET SESSION {own}, max_sort_length = {SORTED_BYTES}, "
            f"sort_buffer_size = {SORT_BYTES}, lock_wait_timeout = {LOCK_WAIT_S}, "
            f"innodb_lock_wait_timeout = {LOCK_WAIT_S}, net_write_timeout = {limit}, "
            f"wait_timeout = {limit}, time_zone = '+00:00'"
        )
        connection.exec_driver_sql("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        began = connection.execute(sa.select(sa.func.unix_timestamp())).scalar_one()
        connection.exec_driver_sql("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY")
        self._began = int(began)

    def describe(self, connection: "sa.Connection", table: str) -> Stored | None:
        """Return what the information schema says, of columns that the role may read."""
        import sqlalchemy as sa

        about = connection.execute(
            sa.text(
                """SELECT TABLE_NAME, TABLE_SCHEMA, TABLE_TYPE, ENGINE, UNIX_TIMESTAMP(UPDATE_TIME),
                    UNIX_TIMESTAMP(CREATE_TIME), COALESCE(CREATE_OPTIONS, '')
                FROM information_schema.TABLES
                WHERE TABLE_NAME = :table AND TABLE_SCHEMA = COALESCE(NULLIF(:schema, ''), DATABASE())
                ORDER BY BINARY TABLE_NAME = :table DESC LIMIT 1"""
            ),
            {"table": table, "schema": self.connection.schema},
        ).one_or_none()
        if about is None:
            return None
        name, schema, kind, engine, updated, created, options = about
        where = {"table": name, "schema": schema}
        rows = connection.execute(
            sa.text(
                """SELECT COLUMN_NAME, DATA_TYPE, COLUMN_TYPE, NUMERIC_PRECISION, NUMERIC_SCALE
                FROM information_schema.COLUMNS WHERE TABLE_NAME = :table AND TABLE_SCHEMA = :schema
                ORDER BY ORDINAL_POSITION"""
            ),
            where,
        ).all()
        if not rows:
            return None  # a view of what is no more
        # None at all where the role may not read every column of the key.
        key = connection.execute(
            sa.text(
                """SELECT COLUMN_NAME, SUB_PART, COLLATION FROM information_schema.STATISTICS
                WHERE TABLE_NAME = :table AND TABLE_SCHEMA = :schema AND INDEX_NAME = 'PRIMARY'
                ORDER BY SEQ_IN_INDEX"""
            ),
            where,
        ).all()
        ascending = all(part is None and direction == "A" for _, part, direction in key)
        settled = kind == "BASE TABLE" and str(engine).lower() == "innodb"
        # Of a write in the second of the last one nothing would be seen.
        told = settled and updated is not None and updated + SETTLED_S <= self._began
        return Stored(
            name=name,
            schema=schema,
            columns=tuple(self._column(*row) for row in rows),
            settled=settled,
            in_order=settled,
            stored_by=tuple(str(row[0]) for row in key)
            if settled and ascending and "partitioned" not in str(options).lower()
            else (),
            state=f"{created} {updated}" if told else None,
            written=None if updated is None else datetime.fromtimestamp(int(updated), UTC),
        )

    def _column(
        self, name: str, kind: str, full: str, precision: int | None, scale: int | None
    ) -> StoredColumn:
        import pyarrow as pa
        import sqlalchemy as sa

        match self._TYPES.get(kind.lower()):
            case "text":
                return StoredColumn(name, "text", pa.string(), sa.Text())
            case "bytes":
                return StoredColumn(name, "text", pa.binary(), sa.LargeBinary())
            case "integer":
                wide = pa.uint64() if "unsigned" in full.lower() else pa.int64()
                return StoredColumn(name, "integer", wide, sa.BigInteger())
            case "double":
                return StoredColumn(name, "decimal", pa.float64(), sa.Double())
            case "decimal":
                fits = precision is not None and scale is not None and precision <= MAX_PRECISION
                return StoredColumn(
                    name,
                    "decimal",
                    pa.decimal128(precision, scale) if fits else pa.string(),
                    sa.Numeric(precision, scale),
                )
            case "date":
                return StoredColumn(name, "date", pa.date32(), sa.Date())
            case "time":
                return StoredColumn(
                    name, "time", pa.timestamp("us"), sa.DateTime(), utc=kind.lower() == "timestamp"
                )
        word = "time" if kind.lower() == "time" else "other"
        return StoredColumn(name, word, pa.string(), sa.Text(), as_text=True)

    def text_of(self, column: "sa.ColumnElement[Any]") -> "sa.ColumnElement[Any]":
        """Return a column as text, by the server."""
        import sqlalchemy as sa

        return sa.cast(column, sa.CHAR())

    def scan(self, statement: "sa.Select[Any]", table: "sa.TableClause") -> "sa.Select[Any]":
        """Return the statement so that it takes no index: InnoDB keeps rows by their key, or as they came."""
        return statement.with_hint(table, "USE INDEX ()", "mysql").with_hint(table, "USE INDEX ()", "mariadb")

    def ordered(
        self, column: "sa.ColumnElement[Any]", stored: StoredColumn
    ) -> "Sequence[sa.ColumnElement[Any]]":
        """Return it by its bytes: under most collations unequal texts tie."""
        import sqlalchemy as sa

        if not isinstance(stored.sql, (sa.Text, sa.LargeBinary)):
            return [column]
        of_bytes = sa.cast(column, sa.BINARY())
        return [of_bytes, sa.func.sha2(of_bytes, sa.literal_column("256"))]

    def session_of(self, connection: "sa.Connection") -> int | None:
        """Return the thread at the server."""
        driver: Any = connection.connection.dbapi_connection
        return int(driver.thread_id())

    def stop(self, engine: "sa.Engine", session: int) -> None:
        """End the statement of another connection; its transaction stays."""
        with engine.connect() as connection:
            connection.exec_driver_sql(f"KILL QUERY {session:d}")

    def server_code(self, error: BaseException) -> str:
        """Return the error number."""
        return str(error.args[0]) if error.args and isinstance(error.args[0], int) else ""

    def driver_errors(self) -> Any:
        """Return what PyMySQL raises."""
        import pymysql

        return pymysql.Error


# -- by their SQLAlchemy dialects ----------------------------------------------------------------------------


class Oracle(Dialect):
    """Oracle, by python-oracledb without its client libraries."""

    driver = "oracle+oracledb"
    outcomes: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("ORA-01017", "ORA-28000", "ORA-28001", "ORA-01045", "ORA-01031"), "source-refused"),
        **dict.fromkeys(
            ("ORA-12541", "ORA-12514", "ORA-12545", "DPY-6005", "DPY-6001"), "source-unreachable"
        ),
        "ORA-00942": "table-missing",
        "ORA-00904": "schema-drift",
        **dict.fromkeys(("DPY-4024", "ORA-01013", "ORA-00054", "ORA-02049"), "source-timeout"),
        **dict.fromkeys(
            ("ORA-00028", "ORA-01555", "ORA-03113", "ORA-03114", "ORA-03135", "DPY-4011", "DPY-1001"),
            "source-interrupted",
        ),
    }

    def connect_args(self) -> Mapping[str, Any]:
        """Return python-oracledb's arguments."""
        settings = self.connection
        given: dict[str, Any] = {
            "host": self.address.host,
            "port": self.address.port or (2484 if settings.encrypted else 1521),
            "service_name": self.address.database,
            "tcp_connect_timeout": float(settings.connect_timeout_s),
            "expire_time": 1,  # minutes between probes of a silent connection
            "program": APPLICATION,
            "protocol": "tcp",
        }
        if settings.user:
            given["user"] = settings.user
        if settings.encrypted:
            given |= {
                "protocol": "tcps",
                "ssl_context": tls_context(settings),
                "ssl_server_dn_match": bool(settings.ca),
            }
        password = settings.password()
        if password is not None:
            given["password"] = password
        return given

    def engine_args(self) -> Mapping[str, Any]:
        """Return how many rows come at a time."""
        return {"arraysize": self.connection.fetch_rows}

    BEGIN: ClassVar[Sequence[str]] = (
        "ALTER SESSION SET NLS_SORT = BINARY NLS_COMP = BINARY TIME_ZONE = 'UTC'",
        "SET TRANSACTION READ ONLY",  # sees what was committed when it began, and can write nothing
    )

    def begin(self, connection: "sa.Connection") -> None:
        """Begin a transaction that sees one state and can write nothing."""
        # Of each round trip; a fetch is one.
        connection.connection.dbapi_connection.call_timeout = (  # type: ignore[union-attr]  # just connected
            self.connection.statement_timeout_s * 1000
        )
        for statement in self.BEGIN:
            connection.exec_driver_sql(statement)

    def ordered(
        self, column: "sa.ColumnElement[Any]", stored: StoredColumn
    ) -> "Sequence[sa.ColumnElement[Any]]":
        """Return it; a large object cannot be ordered."""
        import sqlalchemy as sa

        return [] if isinstance(stored.sql, (sa.LargeBinary, sa.Text)) else [column]

    def server_code(self, error: BaseException) -> str:
        """Return `ORA-…`, `DPY-…`."""
        return str(getattr(error.args[0], "full_code", "")) if error.args else ""


class Dameng(Dialect):
    """Dameng DM8, by dmPython and dmSQLAlchemy, which come with the database."""

    driver = "dm+dmPython"
    packages: ClassVar[str] = "dmPython dmSQLAlchemy (from the folder drivers/python of the database)"
    outcomes: ClassVar[Mapping[str, str]] = {
        "-2501": "source-refused",
        "-5504": "source-refused",
        "-5566": "source-refused",
        "-70028": "source-unreachable",
        "-2106": "table-missing",
        "-2111": "schema-drift",
        "-70019": "source-interrupted",
        "-6407": "source-timeout",
    }

    def url(self) -> "sa.URL":
        """Return the url: this dialect makes its arguments of one."""
        import sqlalchemy as sa

        settings = self.connection
        return sa.URL.create(
            self.driver,
            username=settings.user or None,
            password=settings.password(),
            host=self.address.host,
            port=self.address.port or 5236,
        )

    def connect_args(self) -> Mapping[str, Any]:
        """Return dmPython's further arguments.

        Raises:
            InputError: TLS is required, and no folder of certificates named.
        """
        settings = self.connection
        given: dict[str, Any] = {
            "access_mode": 1,  # dmPython.DSQL_MODE_READ_ONLY
            "autoCommit": False,
            "login_timeout": settings.connect_timeout_s,
            "connection_timeout": settings.statement_timeout_s,
            "local_code": 1,  # dmPython.PG_UTF8
            "app_name": APPLICATION,
        }
        if settings.encrypted:
            if not settings.ca:
                raise InputError(
                    f"[connections.{settings.name}]: Dameng needs its folder of certificates for TLS",
                    code="bad-config",
                    hint='name that folder as ca, or set tls = "off" within a network that is trusted',
                )
            given["ssl_path"] = str(settings.ca_path)
        return given

    BEGIN: ClassVar[str] = "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"

    def begin(self, connection: "sa.Connection") -> None:
        """Begin a transaction that sees one state; the connection itself is read-only."""
        connection.exec_driver_sql(self.BEGIN)

    def ordered(
        self, column: "sa.ColumnElement[Any]", stored: StoredColumn
    ) -> "Sequence[sa.ColumnElement[Any]]":
        """Return it; a large object cannot be ordered."""
        import sqlalchemy as sa

        return [] if isinstance(stored.sql, (sa.LargeBinary, sa.Text)) else [column]

    def server_code(self, error: BaseException) -> str:
        """Return the error number."""
        found = re.search(r"CODE:(-\d+)", str(error))
        return found.group(1) if found else ""


class Trino(Dialect):
    """Trino: no transaction spans queries, so every reading is counted. Its rights make it read-only."""

    driver = "trino"
    outcomes: ClassVar[Mapping[str, str]] = {
        "PERMISSION_DENIED": "source-refused",
        "TABLE_NOT_FOUND": "table-missing",
        "SCHEMA_NOT_FOUND": "table-missing",
        "CATALOG_NOT_FOUND": "source-unreachable",
        "COLUMN_NOT_FOUND": "schema-drift",
        "EXCEEDED_TIME_LIMIT": "source-timeout",
        "ADMINISTRATIVELY_KILLED": "source-interrupted",
        "USER_CANCELED": "source-interrupted",
        "SERVER_SHUTTING_DOWN": "source-interrupted",
    }

    def url(self) -> "sa.URL":
        """Return the url without password: this dialect makes its arguments of one."""
        import sqlalchemy as sa

        settings = self.connection
        return sa.URL.create(
            self.driver,
            username=settings.user or None,
            host=self.address.host,
            port=self.address.port or (443 if settings.encrypted else 8080),
            database="/".join(filter(None, (self.address.database, settings.schema))),
        )

    def connect_args(self) -> Mapping[str, Any]:
        """Return the client's further arguments.

        Raises:
            InputError: `driver-missing`.
        """
        settings = self.connection
        given: dict[str, Any] = {
            "http_scheme": "https" if settings.encrypted else "http",
            # The password itself is sent: never to a server for which nobody vouches.
            "verify": str(settings.ca_path) if settings.ca else True,
            "source": APPLICATION,
            "request_timeout": float(settings.connect_timeout_s),
            "session_properties": {"query_max_run_time": f"{settings.statement_timeout_s}s"},
        }
        password = settings.password()
        if password is not None:
            if not settings.encrypted:
                raise InputError(
                    f"[connections.{settings.name}]: Trino takes no password without TLS",
                    code="bad-config",
                    hint='set tls = "require"',
                )
            try:
                from trino.auth import BasicAuthentication
            except ImportError:
                raise InputError(
                    "what reads a database of dialect trino is not installed",
                    code="driver-missing",
                    hint=f"have this node's operator run: pip install {self.packages}",
                ) from None
            given["auth"] = BasicAuthentication(settings.user, password)
        return given

    def begin(self, connection: "sa.Connection") -> None:
        """Begin nothing: each query is on its own."""

    def text_of(self, column: "sa.ColumnElement[Any]") -> "sa.ColumnElement[Any]":
        """Return a column as text, by the server."""
        import sqlalchemy as sa

        return sa.func.json_format(sa.cast(column, sa.JSON()))

    def server_code(self, error: BaseException) -> str:
        """Return the error's name."""
        return str(getattr(error, "error_name", ""))


_KINDS: Final[Mapping[str, type[Dialect]]] = {
    "postgresql": PostgreSql,
    "mariadb": MariaDb,
    "mysql": MariaDb,
    "oracle": Oracle,
    "dm": Dameng,
    "trino": Trino,
}


def dialect_of(connection: Connection) -> Dialect:
    """Return what is particular to a connection's database. Raises as `Connection.address`."""
    return _KINDS[connection.address.dialect](connection)


# -- what they share -----------------------------------------------------------------------------------------

_SAID: Final[Mapping[str, tuple[str, str]]] = {
    "source-unreachable": (
        "the dataset's database cannot be reached",
        "check that it runs and takes connections from this node; see minshu-node doctor",
    ),
    "source-refused": (
        "the dataset's database refuses this node's role: its password or its rights",
        "check user and password, and SELECT on what jobs read; none is sent in the clear without ca",
    ),
    "source-timeout": (
        "the dataset's database took longer than this node waits",
        "try again when it is less busy, or raise statement_timeout_s of the connection in node.toml",
    ),
    "source-interrupted": (
        "the connection to the dataset's database was lost while it was read; nothing of it was used",
        "try again once the database is steady",
    ),
    "source-failed": (
        "the dataset's database could not carry out the reading",
        "its own log says why; see minshu-node doctor",
    ),
    "table-missing": (
        "the dataset's table is not in its database, or this node's role cannot see it",
        "restore the table or the rights on it, or register its new place with minshu-node dataset add",
    ),
    "schema-drift": (
        "a column that the dataset was registered with is not in its table any more",
        "restore the column, or register the dataset again with minshu-node dataset add",
    ),
    "changed-while-reading": (
        "the dataset's table was altered while it was read",
        "run the job again",
    ),
    "count-mismatch": (
        "reading the dataset's table gave another number of rows than it counts in the same transaction",
        "register a view that gives the same rows at every reading, or the table itself",
    ),
    "not-utf8": (
        "a column of the dataset's table holds bytes that are no text",
        "convert the column to text in the database, or leave it out of the job",
    ),
    "bad-value": (
        "a column of the dataset's table holds a value that its type does not have",
        "correct the column in the database, or cast it to text in a view",
    ),
}


def source_error(code: str) -> InputError:
    """Return the error of a code: what was found and what to do, and nothing that a server said."""
    message, hint = _SAID[code]
    return InputError(message, code=code, hint=hint)


def tls_context(connection: Connection) -> ssl.SSLContext:
    """Return how TLS is spoken: verified in full with `ca`, else encrypted only.

    Raises:
        InputError: `bad-config`: the file of certificates cannot be read.
    """
    if not connection.ca:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    try:
        return ssl.create_default_context(cafile=str(connection.ca_path))
    except OSError:
        raise InputError(
            f"[connections.{connection.name}]: ca names no file of certificates in PEM",
            code="bad-config",
            hint="name the file that vouches for the database's certificate",
        ) from None


def moment_of(value: object, zone: tzinfo) -> datetime | None:
    """Return a day or a time, of that zone if it has none, as a moment; None for what is neither."""
    if isinstance(value, datetime):
        return value.replace(tzinfo=zone) if value.tzinfo is None else value
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=zone)
    return None


def _is_cut(error: BaseException) -> bool:
    """Tell whether an error without a known code says that the other side is gone."""
    if isinstance(error, (ConnectionError, socket.timeout, EOFError)):
        return True
    return bool(
        re.search(
            r"closed the connection|connection (?:\w+ )*(?:closed|lost|reset|terminated)|broken pipe|"
            r"could not receive data|no connection to the server|terminating connection",
            str(error),
            re.IGNORECASE,
        )
    )


def _of_sqlalchemy(name: str, kind: "sa.types.TypeEngine[Any]") -> StoredColumn:
    """Return a column as a dialect of SQLAlchemy describes it."""
    import pyarrow as pa
    import sqlalchemy as sa

    match kind:
        case sa.LargeBinary():
            return StoredColumn(name, "text", pa.binary(), kind)
        case sa.JSON() | sa.ARRAY() | sa.Interval() | sa.Time() | sa.types.NullType():
            return StoredColumn(name, "other", pa.string(), sa.Text(), as_text=True)
        case sa.String():
            return StoredColumn(name, "text", pa.string(), kind)
        case sa.Boolean():
            return StoredColumn(name, "boolean", pa.bool_(), kind)
        case sa.Float():
            return StoredColumn(name, "decimal", pa.float64(), kind)
        case sa.Numeric():  # before Integer: Oracle's NUMBER is both
            precision, scale = kind.precision, kind.scale
            fits = precision is not None and precision <= MAX_PRECISION and scale is not None
            arrow = pa.decimal128(precision, scale) if fits else pa.string()
            return StoredColumn(name, "integer" if fits and not scale else "decimal", arrow, kind)
        case sa.Integer():
            return StoredColumn(name, "integer", pa.int64(), kind)
        case sa.DateTime():
            return StoredColumn(name, "time", pa.timestamp("us"), kind)
        case sa.Date():
            return StoredColumn(name, "date", pa.date32(), kind)
    return StoredColumn(name, "other", pa.string(), sa.Text(), as_text=True)
