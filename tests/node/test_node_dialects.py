"""What is sent to databases that no server of these tests speaks for: statements, arguments, errors."""

import ssl
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import oracle

from node.sources import Connection, ReadLimits, TablePlace
from node.sources.database import DatabaseSource
from node.sources.dialects import Dialect, Stored, StoredColumn, _of_sqlalchemy, dialect_of
from protocols.errors import InputError


def connection(url: str, folder: Path, **changes: Any) -> Connection:
    file = folder / "password"
    file.touch(mode=0o600)
    file.write_text("Secret1")
    return Connection(
        **{"url": url, "user": "minshu", "password_file": "password", "folder": folder} | changes
    )


def kind_of(url: str, folder: Path, **changes: Any) -> Dialect:
    return dialect_of(connection(url, folder, **changes))


def statement_of(url: str, folder: Path, dialect: sa.Dialect, *names: str, key: tuple[str, ...] = ()) -> str:
    """Return the SELECT of columns of text in a table with an odd name."""
    source = DatabaseSource(TablePlace("c", 'odd "name"'), connection(url, folder), ReadLimits())
    columns = tuple(StoredColumn(name, "text", pa.string(), sa.String()) for name in names)
    source._stored = Stored('odd "name"', "S", columns, key)
    source._known = {column.name: column for column in columns}
    return str(source._select(columns).compile(dialect=dialect))


def test_oracle_is_asked_for_a_read_only_transaction_over_tls(tmp_path: Path) -> None:
    kind = kind_of("oracle://db.example/REGISTERS", tmp_path)
    arguments = kind.connect_args()
    assert isinstance(arguments["ssl_context"], ssl.SSLContext)
    assert {
        name: arguments[name] for name in ("host", "port", "service_name", "protocol", "user", "password")
    } == {
        "host": "db.example",
        "port": 2484,
        "service_name": "REGISTERS",
        "protocol": "tcps",
        "user": "minshu",
        "password": "Secret1",
    }
    assert kind_of("oracle://127.0.0.1/R", tmp_path).connect_args()["protocol"] == "tcp"
    sent: list[str] = []

    class Connected:
        class connection:  # noqa: N801  # as SQLAlchemy names it
            class dbapi_connection:  # noqa: N801
                call_timeout = 0

        def exec_driver_sql(self, statement: str) -> None:
            sent.append(statement)

    kind.begin(Connected())  # type: ignore[arg-type]  # only what is used of a connection
    assert sent[-1] == "SET TRANSACTION READ ONLY"
    assert Connected.connection.dbapi_connection.call_timeout == 3_600_000


def test_oracle_statements_quote_names_and_order_rows(tmp_path: Path) -> None:
    text = statement_of("oracle://h/x", tmp_path, oracle.dialect(), "id", 'a"; DROP TABLE t --', key=("id",))
    assert text.replace("\n", "") == (
        'SELECT "odd ""name""".id AS c0, "odd ""name"""."a""; DROP TABLE t --" AS c1 '
        'FROM "S"."odd ""name""" ORDER BY "odd ""name""".id'
    ).replace('"odd ""name""".', '"S"."odd ""name""".')


def test_trino_statements_quote_names_and_order_by_all_that_is_read(tmp_path: Path) -> None:
    from trino.sqlalchemy.dialect import TrinoDialect

    text = statement_of("trino://h/hive", tmp_path, TrinoDialect(), "id", 'a"b').replace("\n", "")
    assert '"a""b" AS c1' in text.replace('"S"."odd ""name""".', "")
    assert text.endswith('"a""b"')
    assert " ORDER BY " in text


def test_trino_sends_a_password_over_verified_tls_only(tmp_path: Path) -> None:
    arguments = kind_of("trino://trino.example/hive", tmp_path, schema="city").connect_args()
    assert (arguments["http_scheme"], arguments["verify"]) == ("https", True)
    assert arguments["session_properties"] == {"query_max_run_time": "3600s"}
    assert "Secret1" not in repr(arguments["auth"])
    url = kind_of("trino://trino.example/hive", tmp_path, schema="city").url()
    assert (url.database, url.port, url.password) == ("hive/city", 443, None)
    with pytest.raises(InputError) as caught:
        kind_of("trino://127.0.0.1/hive", tmp_path).connect_args()
    assert caught.value.code == "bad-config"


def test_dameng_is_connected_read_only_and_its_missing_driver_is_named(tmp_path: Path) -> None:
    kind = kind_of("dm://db.example", tmp_path, tls="off", statement_timeout_s=60)
    arguments = kind.connect_args()
    assert (arguments["access_mode"], arguments["autoCommit"], arguments["connection_timeout"]) == (
        1,
        False,
        60,
    )
    assert (kind.url().port, kind.url().username) == (5236, "minshu")
    with pytest.raises(InputError) as caught:
        kind.engine()
    assert caught.value.code == "driver-missing"
    assert "dmPython dmSQLAlchemy" in caught.value.hint
    with pytest.raises(InputError) as caught:
        kind_of("dm://db.example", tmp_path).connect_args()
    assert caught.value.code == "bad-config"


@pytest.mark.parametrize("dialect", ["postgresql", "mariadb", "oracle", "trino"])
def test_a_driver_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dialect: str
) -> None:
    def create_engine(*_: object, **__: object) -> None:
        raise ModuleNotFoundError

    monkeypatch.setattr(sa, "create_engine", create_engine)
    with pytest.raises(InputError) as caught:
        kind_of(f"{dialect}://db.example/x", tmp_path).engine()
    assert caught.value.code == "driver-missing"
    assert "minshu[databases]" in caught.value.hint


def test_no_engine_shows_its_password(tmp_path: Path) -> None:
    for url in ("postgresql://127.0.0.1/x", "mariadb://127.0.0.1/x", "oracle://127.0.0.1/x"):
        engine = kind_of(url, tmp_path).engine()
        assert "Secret1" not in f"{engine!r} {engine.url} {engine.url.render_as_string(hide_password=False)}"


def test_a_server_nobody_vouches_for_gets_no_password_in_the_clear(tmp_path: Path) -> None:
    open_ = kind_of("postgresql://db.example/x", tmp_path).connect_args()
    assert (open_["sslmode"], open_["require_auth"]) == ("require", "!password")
    vouched = kind_of("postgresql://db.example/x", tmp_path, ca="ca.pem").connect_args()
    assert (vouched["sslmode"], vouched["sslrootcert"]) == ("verify-full", str(tmp_path / "ca.pem"))
    assert "require_auth" not in vouched
    own = kind_of("mariadb://db.example/x", tmp_path).connect_args()["ssl"]
    assert (own.verify_mode, own.check_hostname) == (ssl.CERT_NONE, False)
    assert kind_of("mariadb://127.0.0.1/x", tmp_path).connect_args()["ssl_disabled"] is True


def _oracle_error(code: str) -> Exception:
    class Details:
        full_code = code

    return RuntimeError(Details())


class _Trino(Exception):
    error_name = "EXCEEDED_TIME_LIMIT"


@pytest.mark.parametrize(
    ("url", "error", "code"),
    [
        ("oracle://h/x", _oracle_error("ORA-01017"), "source-refused"),
        ("oracle://h/x", _oracle_error("ORA-00942"), "table-missing"),
        ("oracle://h/x", _oracle_error("ORA-03113"), "source-interrupted"),
        ("oracle://h/x", _oracle_error("ORA-99999"), "source-failed"),
        ("trino://h/x", _Trino(), "source-timeout"),
        ("dm://h", RuntimeError("[CODE:-2501] 用户名或密码错误"), "source-refused"),
        ("dm://h", RuntimeError("?"), "source-failed"),
    ],
)
def test_their_errors_have_our_codes(tmp_path: Path, url: str, error: Exception, code: str) -> None:
    assert kind_of(url, tmp_path).code_of(error, connecting=False) == code


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        (oracle.VARCHAR2(20), "text"),
        (oracle.CLOB(), "text"),
        (oracle.NUMBER(18, 0), "integer"),
        (oracle.NUMBER(12, 2), "decimal"),
        (oracle.NUMBER(), "decimal"),
        (oracle.DATE(), "time"),
        (oracle.TIMESTAMP(), "time"),
        (oracle.INTERVAL(), "other"),
        (oracle.RAW(16), "other"),
        (sa.BIGINT(), "integer"),
        (sa.DOUBLE(), "decimal"),
        (sa.DATE(), "date"),
        (sa.BOOLEAN(), "boolean"),
        (sa.JSON(), "other"),
        (sa.types.NullType(), "other"),
    ],
)
def test_their_types_are_told(kind: Any, word: str) -> None:
    assert _of_sqlalchemy("c", kind).word == word
