"""Real database servers for tests: each worker starts its own, in a folder of its own, and stops it.

`postgres` and `mariadb` are fixtures of the session. A test makes its tables with `server.run(…)` as the
administrator and reads them as `server.reader`, a role that may only SELECT what it is granted:

    from databases.servers import Server

    def test_something(postgres: Server) -> None:
        table = postgres.new_name()
        postgres.run(f"CREATE TABLE {table} (id text)", f"GRANT SELECT ON {table} TO {postgres.reader}")
"""

import itertools
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pymysql
import pytest
from tls_authority import Authority

ADMIN = "minshu_admin"
READER = "minshu_reader"
DATABASE = "registers"
PATIENCE_S = 60.0  # other work may share the machine
POSTGRES_MISSING = (
    "the PostgreSQL server is not installed: apt-get install postgresql (only its programs are used; "
    "the tests start a server of their own)"
)
MARIADB_MISSING = (
    "the MariaDB server is not installed: apt-get install mariadb-server (only its programs are used; "
    "the tests start a server of their own)"
)


@dataclass
class Server:
    """One running server: where it listens, and who may come in. Both passwords are random.

    Attributes:
        dialect: as a connection's `url` begins, `postgresql` or `mariadb`.
        folder: all that the server writes lies below; unix socket and log, too.
        socket: what a local client is told: the folder of the socket (PostgreSQL), or its path (MariaDB).
        port: on 127.0.0.1.
        ca: the certificate of the authority that vouches for it, in PEM.
        command: what starts it.
        account: whose process it is; None for our own.
    """

    dialect: str
    folder: Path
    socket: Path
    port: int
    ca: Path
    command: Sequence[str]
    account: str | None
    host: str = "127.0.0.1"
    database: str = DATABASE
    admin: str = ADMIN
    admin_password: str = field(default_factory=lambda: secrets.token_urlsafe(18))
    reader: str = READER
    reader_password: str = field(default_factory=lambda: secrets.token_urlsafe(18))
    process: subprocess.Popen[bytes] | None = None
    _own: Any = None  # the administrator's connection, kept between statements
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def url(self) -> str:
        """The connection's `url`: no user, no password."""
        return f"{self.dialect}://{self.host}:{self.port}/{self.database}"

    def new_name(self, stem: str = "t") -> str:
        """Return a name that no table of this server has yet."""
        return f"{stem}_{next(self._numbers)}"

    def connect(self, *, database: str | None = None) -> Any:
        """Return a DB-API connection of the administrator that commits every statement."""
        if self.dialect == "postgresql":
            return psycopg.connect(
                host=self.host,
                port=self.port,
                user=self.admin,
                password=self.admin_password,
                dbname=database or self.database,
                autocommit=True,
            )
        return pymysql.connect(
            host=self.host,
            port=self.port,
            user=self.admin,
            password=self.admin_password,
            database=database or self.database,
            autocommit=True,
            charset="utf8mb4",
        )

    def run(self, *statements: str) -> list[tuple[Any, ...]]:
        """Execute statements as the administrator; return the rows of the last."""
        if self._own is None:
            self._own = self.connect()
        with self._own.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            return list(cursor.fetchall()) if cursor.description else []

    def run_many(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        """Execute one statement with `%s` marks for every row."""
        with closing(self.connect()) as connection, connection.cursor() as cursor:
            cursor.execute("BEGIN")
            cursor.executemany(statement, rows)
            cursor.execute("COMMIT")

    def start(self) -> None:
        """Start it, or start it again after `kill`."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
                **_as(self.account),
            )

    def until_ready(self, knock: Any) -> None:
        """Wait until `knock` connects."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            assert self.process is not None
            try:
                return knock()
            except (psycopg.Error, pymysql.Error, OSError) as error:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    log = (self.folder / "log").read_text(errors="replace")
                    raise RuntimeError(f"the server did not start: {log[-2000:]}") from error
            time.sleep(0.05)

    def restart(self) -> None:
        """Start it again and wait until it takes connections."""
        self.start()
        try:
            self.until_ready(lambda: self.connect().close())
        except RuntimeError:
            # What the killed one had started may have held on to its memory for a moment.
            self.start()
            self.until_ready(lambda: self.connect().close())

    def kill(self) -> None:
        """End it as a loss of power would: the process and all that it started."""
        assert self.process is not None
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self._own is not None:
            self._own.close()
            self._own = None

    def stop(self) -> None:
        """End it; nobody will want to read its data again."""
        if self.process is not None and self.process.poll() is None:
            self.kill()


def find(name: str, *folders: Path) -> Path | None:
    """Return a program in PATH or one of these folders, the newest first."""
    found = shutil.which(name)
    if found:
        return Path(found)
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def find_postgres(name: str) -> Path | None:
    """Return a program of the PostgreSQL server: Debian keeps them out of PATH, by version."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return find(name, *versions, Path("/usr/pgsql/bin"), Path("/usr/local/pgsql/bin"))


def find_mariadb(name: str) -> Path | None:
    """Return a program of the MariaDB server."""
    return find(name, *(Path(folder) for folder in ("/usr/sbin", "/usr/bin", "/usr/libexec")))


def free_port() -> int:
    """Return a port of the loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _account(name: str) -> str | None:
    """Return the account a server has to run as: servers refuse to be root."""
    return name if os.geteuid() == 0 else None


def _as(account: str | None) -> dict[str, Any]:
    if account is None:
        return {}
    entry = pwd.getpwnam(account)
    return {
        "user": entry.pw_uid,
        "group": entry.pw_gid,
        "extra_groups": [],
        "env": {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8"},
    }


@contextmanager
def _folder(account: str | None) -> Iterator[Path]:
    # Short: the path of a unix socket has at most 107 bytes.
    made = Path(tempfile.mkdtemp(prefix="msdb-", dir="/tmp"))
    if account is not None:
        shutil.chown(made, account)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _call(command: Sequence[object], account: str | None, folder: Path) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, cwd=folder, **_as(account))
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {(done.stdout + done.stderr).decode(errors='replace')}")


def _certified(folder: Path, account: str | None) -> tuple[Path, Path, Path]:
    """Write a certificate for 127.0.0.1; return the authority's, the server's and its key."""
    authority = Authority()
    ca, leaf, key = (folder / name for name in ("ca.pem", "server.pem", "server.key"))
    key.touch(mode=0o600)
    ca.write_bytes(authority.pem)
    for path, data in zip((leaf, key), authority.leaf("server"), strict=True):
        path.write_bytes(data)
        if account is not None:
            shutil.chown(path, account)
    return ca, leaf, key


@contextmanager
def postgres_server() -> Iterator[Server]:
    """Run a PostgreSQL server that offers TLS, wants passwords and takes no care of its disk.

    Raises:
        FileNotFoundError: it is not installed.
    """
    initdb, program = find_postgres("initdb"), find_postgres("postgres")
    if initdb is None or program is None:
        raise FileNotFoundError(POSTGRES_MISSING)
    account = _account("postgres")
    with _folder(account) as folder:
        port = free_port()
        ca, leaf, key = _certified(folder, account)
        settings = {
            "ssl": "on",
            "ssl_cert_file": leaf,
            "ssl_key_file": key,
            "listen_addresses": "127.0.0.1",
            "port": port,
            "unix_socket_directories": folder,
            "fsync": "off",
            "full_page_writes": "off",
            "autovacuum": "off",
            "max_connections": 40,
        }
        data = folder / "data"
        command = [str(program), "-D", str(data)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        server = Server("postgresql", folder, folder, port, ca, command, account)
        password = folder / "password"
        password.write_text(server.admin_password)
        if account is not None:
            shutil.chown(password, account)
        initialise = [initdb, "-D", data, "-U", server.admin, "--pwfile", password, "--no-sync"]
        _call([*initialise, "-A", "scram-sha-256", "-E", "UTF8", "--locale=C.UTF-8"], account, folder)
        password.unlink()
        try:
            server.start()
            server.until_ready(lambda: server.connect(database="postgres").close())
            with server.connect(database="postgres") as connection:
                connection.execute(f"CREATE DATABASE {server.database}")
                connection.execute(f"CREATE ROLE {server.reader} LOGIN PASSWORD '{server.reader_password}'")
            yield server
        finally:
            server.stop()


@contextmanager
def mariadb_server() -> Iterator[Server]:
    """Run a MariaDB server that offers TLS, wants passwords and takes no care of its disk.

    Raises:
        FileNotFoundError: it is not installed.
    """
    install, program = find_mariadb("mariadb-install-db"), find_mariadb("mariadbd")
    if install is None or program is None:
        raise FileNotFoundError(MARIADB_MISSING)
    account = _account("mysql")
    with _folder(account) as folder:
        port, data, path = free_port(), folder / "data", folder / "s"
        ca, leaf, key = _certified(folder, account)
        initialise = [install, "--no-defaults", f"--datadir={data}", "--skip-test-db"]
        initialise += ["--auth-root-authentication-method=normal"]
        _call(initialise, account, folder)
        command = [
            str(program),
            "--no-defaults",
            f"--datadir={data}",
            f"--socket={path}",
            f"--pid-file={folder / 'pid'}",
            f"--port={port}",
            "--bind-address=127.0.0.1",
            "--skip-name-resolve",
            f"--ssl-cert={leaf}",
            f"--ssl-key={key}",
            "--innodb-flush-log-at-trx-commit=2",
            "--innodb-buffer-pool-size=64M",
            "--innodb-log-file-size=32M",
            "--skip-log-bin",
            "--character-set-server=utf8mb4",
            "--collation-server=utf8mb4_bin",
        ]
        server = Server("mariadb", folder, path, port, ca, command, account)
        try:
            server.start()
            # A fresh server has a root without password, who comes in by the socket alone.
            server.until_ready(lambda: pymysql.connect(unix_socket=str(path), user="root").close())
            root = pymysql.connect(unix_socket=str(path), user="root", autocommit=True)
            with closing(root), root.cursor() as cursor:
                cursor.execute(f"CREATE DATABASE {server.database}")
                for name, password in (
                    (server.admin, server.admin_password),
                    (server.reader, server.reader_password),
                ):
                    cursor.execute(f"CREATE USER '{name}'@'%' IDENTIFIED BY '{password}'")
                cursor.execute(f"GRANT ALL ON *.* TO '{server.admin}'@'%' WITH GRANT OPTION")
                cursor.execute("DROP USER IF EXISTS ''@'localhost'")
                cursor.execute("ALTER USER 'root'@'localhost' ACCOUNT LOCK")
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A PostgreSQL server of this worker."""
    if find_postgres("initdb") is None or find_postgres("postgres") is None:
        pytest.skip(POSTGRES_MISSING)
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="session")
def mariadb() -> Iterator[Server]:
    """A MariaDB server of this worker."""
    if find_mariadb("mariadb-install-db") is None or find_mariadb("mariadbd") is None:
        pytest.skip(MARIADB_MISSING)
    with mariadb_server() as server:
        yield server
