"""How a department's database is reached: the tables `[connections.NAME]` of `node.toml`.

A url names dialect, host and database and never who asks: the password lies in a file that only this node's
account may read, or in its environment. Nothing of a connection is in a representation, an error or a log.
"""

import os
import re
import stat
from dataclasses import dataclass, field
from datetime import tzinfo
from ipaddress import ip_address
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo

from protocols.errors import InputError

DIALECTS: Final = ("postgresql", "mariadb", "mysql", "oracle", "dm", "trino")
"""What a url may begin with: PostgreSQL, MariaDB, MySQL, Oracle, Dameng, Trino."""

MAX_PASSWORD_BYTES: Final = 4096

_URL = re.compile(
    r"(?P<dialect>[a-z]+)://"
    r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?)?"
    r"(?::(?P<port>[0-9]{1,5}))?"
    r"(?:/(?P<database>[^\s/?#@:]*))?"
)
_TAKEN: Final[dict[str, str]] = {}
"""Passwords that were in this process's environment, by variable."""

_WITHOUT_DATABASE: Final = ("dm",)
_SOCKETS: Final = ("postgresql", "mariadb", "mysql")
_URL_HINT: Final = (
    'write url = "postgresql://db.example:5432/registers", or mariadb, mysql, oracle, dm, trino; user and '
    "password_file are settings of their own"
)


@dataclass(frozen=True, slots=True, repr=False)
class Address:
    """What a url says. `port` 0: the dialect's own."""

    dialect: str
    host: str
    port: int
    database: str


@dataclass(frozen=True, slots=True, repr=False)
class Connection:
    """One table `[connections.NAME]`. Its representation says nothing of it.

    Attributes:
        url: `dialect://host:port/database`; of Oracle the service, of Trino the catalogue.
        user: the role that may SELECT and nothing else.
        password_file: a file that holds the password, from this node's folder; others may not read it.
        password_env: or the environment variable that does.
        schema: where its tables are; empty for what the server takes by itself.
        socket: a unix socket on this machine instead of a host: its folder (PostgreSQL), or its path.
        tls: `require`, or `off`; empty for `require` wherever the database is not on this machine.
        ca: who vouches for the server, a file of certificates in PEM, from this node's folder. Without one a
            connection is encrypted, and whoever is at the other end of it believed.
        timezone: of times that the database stores without one.
        connect_timeout_s: longest wait for a connection, in seconds.
        statement_timeout_s: longest time that the server gives one query, its reading included, in seconds.
        fetch_rows: rows that a driver fetches at a time.
        name: NAME; no setting.
        folder: what relative paths are from; no setting.
    """

    url: str
    user: str = ""
    password_file: str = ""
    password_env: str = ""
    schema: str = ""
    socket: str = ""
    tls: str = field(default="", metadata={"one_of": ("", "require", "off")})
    ca: str = ""
    timezone: str = "Asia/Shanghai"
    connect_timeout_s: int = 10
    statement_timeout_s: int = 3600
    fetch_rows: int = 10_000
    name: str = field(default="", metadata={"set": False})
    folder: Path = field(default=Path(), metadata={"set": False})

    def __repr__(self) -> str:
        return "Connection(…)"

    @property
    def address(self) -> Address:
        """What the url says.

        Raises:
            InputError: it is none, or says who asks.
        """
        if "@" in self.url:
            raise self._wrong("url names a user or a password", _URL_HINT)
        found = _URL.fullmatch(self.url)
        if found is None:
            raise self._wrong("url is not dialect://host:port/database", _URL_HINT)
        dialect, host = found["dialect"], (found["host"] or "").strip("[]")
        if dialect not in DIALECTS:
            raise self._wrong(f"url begins with none of {', '.join(DIALECTS)}", _URL_HINT)
        port, database = int(found["port"] or 0), found["database"] or ""
        if port > 65_535 or not (database or dialect in _WITHOUT_DATABASE):
            raise self._wrong("url names no port from 1 to 65535, or no database", _URL_HINT)
        return Address(dialect, host, port, database)

    @property
    def local(self) -> bool:
        """Whether the database is on this machine, by what its url says."""
        host = self.address.host
        if self.socket or host == "localhost":
            return True
        try:
            return ip_address(host).is_loopback
        except ValueError:
            return False

    @property
    def encrypted(self) -> bool:
        """Whether the connection has to be TLS."""
        return self.tls == "require" or bool(self.ca) or (not self.tls and not self.local)

    @property
    def zone(self) -> tzinfo:
        """The time zone of times stored without one."""
        return ZoneInfo(self.timezone)

    @property
    def ca_path(self) -> Path | None:
        """Where the certificates lie that vouch for the server."""
        return self.folder / self.ca if self.ca else None

    def secrets(self) -> tuple[Path, ...]:
        """Return the files that nobody but the node may read."""
        return (self.folder / self.password_file,) if self.password_file else ()

    def check(self) -> None:
        """Check what no single setting says, and take a password out of this process's environment.

        Raises:
            InputError: `bad-config`.
        """
        address = self.address
        if self.password_file and self.password_env:
            raise self._wrong("password_file and password_env are both set", "keep one of them")
        if self.socket and address.dialect not in _SOCKETS:
            raise self._wrong("socket is set for a database without unix sockets", "leave it out")
        if bool(self.socket) == bool(address.host):
            raise self._wrong("neither a host nor a socket is named, or both are", _URL_HINT)
        if self.tls == "off" and self.ca:
            raise self._wrong("ca is set, and tls is off", "leave one of them out")
        try:
            ZoneInfo(self.timezone)
        except (ValueError, OSError, KeyError):
            raise self._wrong("timezone is none", "write one such as Asia/Shanghai") from None
        self._take()

    def password(self) -> str | None:
        """Return the password, None where none is configured.

        Raises:
            InputError: `password-missing`, `password-exposed`.
        """
        if self.password_env:
            self._take()
            text = _TAKEN.get(self.password_env, "")
            if not text:
                raise InputError(
                    "the environment variable with a database's password is not set",
                    code="password-missing",
                    hint="set the variable that password_env names where the node is started",
                )
            return text
        return self._password_of_file() if self.password_file else None

    def _take(self) -> None:
        """Take the password out of the environment: processes that this one starts would have it, too."""
        text = os.environ.pop(self.password_env, "") if self.password_env else ""
        if text:
            _TAKEN[self.password_env] = text

    def _password_of_file(self) -> str:
        hint = "write the password, and nothing else, into the file that password_file names, then chmod 600"
        try:
            with (self.folder / self.password_file).open("rb") as file:
                # Of the opened file: no other can be put in its place between look and reading.
                mode = os.fstat(file.fileno()).st_mode
                if mode & (stat.S_IRWXG | stat.S_IRWXO):
                    raise InputError(
                        "the file with a database's password can be read by other accounts",
                        code="password-exposed",
                        hint="run chmod 600 on the file that password_file names, and change the password",
                    )
                data = file.read(MAX_PASSWORD_BYTES + 1)
        except OSError as error:
            raise InputError(
                f"the file with a database's password cannot be read ({error.strerror})",
                code="password-missing",
                hint=hint,
            ) from None
        try:
            text = data.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            text = ""
        if not text or len(data) > MAX_PASSWORD_BYTES or "\0" in text or "\n" in text:
            raise InputError(
                "the file with a database's password holds none", code="password-missing", hint=hint
            )
        return text

    def _wrong(self, what: str, hint: str) -> InputError:
        return InputError(f"[connections.{self.name}]: {what}", code="bad-config", hint=hint)
