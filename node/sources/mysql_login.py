"""Connecting by PyMySQL, with a password that goes to nobody who could read it.

A server chooses how its client logs in. Where nothing vouches for it, answers are given only in ways that
prove the password without saying it. Loaded when a MariaDB or MySQL is opened, and not before.
"""

import socket
from collections.abc import Mapping
from typing import Any, Final

import pymysql
from pymysql import _auth
from pymysql.connections import Connection

from node.sources.deadline import Deadline

CANNOT_LOGIN: Final = 2059
"""CR_AUTH_PLUGIN_CANNOT_LOAD."""

FAST: Final = 3
"""What caching_sha2_password says of a proof that it knows."""


def _refuse(*_: object) -> Any:
    raise pymysql.OperationalError(CANNOT_LOGIN, "the server asks for the password itself")


class _Refused:
    """A way to log in that would give the password away."""

    def __init__(self, connection: Any) -> None:
        del connection

    authenticate = staticmethod(_refuse)
    prompt = staticmethod(_refuse)


class _Proved:
    """`caching_sha2_password` as far as it proves the password; the rest of it would send it."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def authenticate(self, packet: Any) -> Any:
        """Answer a request, or take what the server says of an answer."""
        connection = self._connection
        if packet.is_auth_switch_request():
            salt = packet.read_all().removesuffix(b"\0")
            connection.write_packet(_auth.scramble_caching_sha2(connection.password, salt))
            packet = self._next()
            if packet.is_ok_packet():
                return packet
        packet.advance(1)
        if packet.read_uint8() != FAST:
            _refuse()
        return self._next()

    def _next(self) -> Any:
        packet = self._connection._read_packet()  # noqa: SLF001  # as PyMySQL's own ways do
        packet.check_error()
        return packet


PROVING: Final[Mapping[str, type[Any]]] = {
    # The second of two rounds of RSA goes to whatever key the server names; the oldest proof is as good as
    # the password.
    **dict.fromkeys(
        ("mysql_clear_password", "dialog", "sha256_password", "mysql_old_password"),
        _Refused,
    ),
    "caching_sha2_password": _Proved,
}
"""For `auth_plugin_map`: what is done otherwise than PyMySQL would."""


class _Wary(Connection):
    """A connection that does not say the password before it was asked for it, either."""

    _auth_plugin_map: Mapping[str, type[Any]]
    _auth_plugin_name: str

    def _request_authentication(self) -> None:
        # By a greeting with this, PyMySQL would begin with the password over any TLS.
        if self._auth_plugin_map and self._auth_plugin_name == "sha256_password":
            _refuse()
        super()._request_authentication()  # type: ignore[misc]  # not in the stubs


def connect(arguments: Mapping[str, Any], deadline: Deadline, keepalive: Mapping[int, int]) -> Connection:
    """Return a connection whose socket the deadline holds from the first byte on.

    Args:
        arguments: PyMySQL's.
        deadline: what ends waiting.
        keepalive: options of TCP.

    Raises:
        OSError: nobody listens.
        pymysql.Error: the server refuses, or is not one.
    """
    connection = _Wary(**{**arguments, "defer_connect": True})
    patience = float(arguments["connect_timeout"])
    path = arguments.get("unix_socket")
    if path:
        found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            found.settimeout(patience)
            found.connect(path)
        except OSError:
            found.close()
            raise
    else:
        found = socket.create_connection((arguments["host"], arguments["port"]), patience)
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in keepalive.items():
            found.setsockopt(socket.IPPROTO_TCP, option, value)
    deadline.hold(found.fileno())
    with deadline.within(patience):
        connection.connect(found)
    return connection
