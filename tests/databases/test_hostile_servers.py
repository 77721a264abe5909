"""Servers that are none: they get no password that they could read, no file, and no more than their time."""

import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from tls_authority import Authority

from node.sources import Connection, ReadLimits, TablePlace, dialects
from node.sources.database import open_table
from protocols.errors import InputError

pytestmark = pytest.mark.alone

PASSWORD = "Sesame-opens-8841"
SALT = b"12345678", b"123456789012"

Talk = Callable[[socket.socket, list[bytes]], None]


@contextmanager
def listening(talk: Talk) -> Iterator[tuple[int, list[bytes]]]:
    """Run a server that talks to whoever comes; give its port and all that it was told."""
    told: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError, IndexError, struct.error):
                while True:
                    connection, _ = listener.accept()
                    with connection, suppress(OSError, IndexError, struct.error):
                        talk(connection, told)

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1], told
        listener.shutdown(socket.SHUT_RDWR)


def opened(folder: Path, url: str, **settings: object) -> InputError:
    file = folder / "password"
    file.touch(mode=0o600)
    file.write_text(PASSWORD)
    connection = Connection(
        url=url, user="reader", password_file="password", name="x", folder=folder, **settings
    )
    source = open_table(TablePlace("x", "t"), {"x": connection}, ReadLimits())
    with pytest.raises(InputError) as caught, source:
        pass
    return caught.value


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            raise OSError("gone")
        data += more
    return data


# -- PostgreSQL ----------------------------------------------------------------------------------------------


def _startup(connection: socket.socket, told: list[bytes]) -> None:
    size = struct.unpack("!I", _exactly(connection, 4))[0]
    told.append(_exactly(connection, size - 4))


def _asks_in_the_clear(connection: socket.socket, told: list[bytes]) -> None:
    _startup(connection, told)
    connection.sendall(b"R" + struct.pack("!II", 8, 3))
    told.append(connection.recv(1000))


@pytest.mark.parametrize("settings", [{}, {"tls": "off"}])
def test_a_postgresql_that_asks_for_the_password_itself_does_not_get_it(
    tmp_path: Path, settings: dict[str, str]
) -> None:
    with listening(_asks_in_the_clear) as (port, told):
        error = opened(tmp_path, f"postgresql://127.0.0.1:{port}/d", **settings)
    assert error.code == "source-refused"
    assert any(b"reader" in each for each in told)
    assert PASSWORD.encode() not in b"".join(told)


def _never_ready(connection: socket.socket, told: list[bytes]) -> None:
    """Let everybody in and answer no question."""
    _startup(connection, told)
    connection.sendall(b"R" + struct.pack("!II", 8, 0) + b"Z" + struct.pack("!I", 5) + b"I")
    while connection.recv(1000):
        pass


# -- MariaDB and MySQL ---------------------------------------------------------------------------------------

_CLIENT_SSL = 0x0800


def _packet(connection: socket.socket, number: int, body: bytes) -> None:
    connection.sendall(struct.pack("<I", len(body))[:3] + bytes([number]) + body)


def _received(connection: socket.socket, told: list[bytes]) -> int:
    head = _exactly(connection, 4)
    told.append(_exactly(connection, int.from_bytes(head[:3], "little")))
    return head[3] + 1


def _greeting(plugin: bytes, *, tls: bool) -> bytes:
    low = 0xF7FF & ~_CLIENT_SSL | (_CLIENT_SSL if tls else 0)
    return (
        b"\x0a5.5.5-10.11.6-MariaDB\0"
        + struct.pack("<I", 7)
        + SALT[0]
        + b"\0"
        + struct.pack("<HBHH", low, 45, 2, 0x807F)
        + b"\x15"
        + bytes(10)
        + SALT[1]
        + b"\0"
        + plugin
        + b"\0"
    )


def _maria(
    *, greeted: bytes = b"mysql_native_password", then: tuple[bytes, ...], tls: ssl.SSLContext | None = None
) -> Talk:
    def talk(connection: socket.socket, told: list[bytes]) -> None:
        _packet(connection, 0, _greeting(greeted, tls=tls is not None))
        number = _received(connection, told)
        if tls is not None:
            connection = tls.wrap_socket(connection, server_side=True)
            number = _received(connection, told)
        for answer in then:
            _packet(connection, number, answer)
            number = _received(connection, told)

    return talk


def _switch(plugin: bytes) -> bytes:
    return b"\xfe" + plugin + b"\0" + b"".join(SALT) + b"\0"


WAYS: dict[str, tuple[bytes, tuple[bytes, ...]]] = {
    "clear": (b"mysql_native_password", (_switch(b"mysql_clear_password"),)),
    "dialog": (b"mysql_native_password", (b"\xfedialog\0\x05Password: ",)),
    "sha256": (b"mysql_native_password", (_switch(b"sha256_password"),)),
    "sha256 at once": (b"sha256_password", (b"\x01\x02",)),
    "caching": (b"mysql_native_password", (_switch(b"caching_sha2_password"), b"\x01\x04")),
    "caching at once": (b"caching_sha2_password", (b"\x01\x04",)),
    "old": (b"mysql_native_password", (_switch(b"mysql_old_password"),)),
}


@pytest.fixture(scope="module")
def own_certificate(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    folder = tmp_path_factory.mktemp("certificate")
    for name, data in zip(("leaf", "key"), Authority().leaf("server"), strict=True):
        (folder / name).write_bytes(data)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "leaf", folder / "key")
    return context


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_a_mariadb_that_asks_for_the_password_itself_does_not_get_it(
    tmp_path: Path, own_certificate: ssl.SSLContext, way: str, *, encrypted: bool
) -> None:
    greeted, then = WAYS[way]
    tls = own_certificate if encrypted else None
    with listening(_maria(greeted=greeted, then=then, tls=tls)) as (port, told):
        settings = {"tls": "require"} if encrypted else {}
        error = opened(tmp_path, f"mariadb://127.0.0.1:{port}/d", **settings)
    assert error.code == "source-refused"
    assert PASSWORD.encode() not in b"".join(told)
    # Nor is it asked for a key of its own to write it with. One that begins with this learns nothing at all.
    assert not {b"\x01", b"\x02"} & set(told)
    assert bool(told) is (greeted != b"sha256_password")


def test_a_mariadb_that_offers_no_tls_where_it_is_required_learns_not_even_who_asks(tmp_path: Path) -> None:
    with listening(_maria(then=(_switch(b"mysql_clear_password"),))) as (port, told):
        error = opened(tmp_path, f"mariadb://127.0.0.1:{port}/d", tls="require")
    assert error.code in {"source-refused", "source-unreachable"}
    assert b"reader" not in b"".join(told)


def _mute(connection: socket.socket, told: list[bytes]) -> None:
    """Take whatever comes and say nothing."""
    told.append(b"")
    while connection.recv(1000):
        pass


def _drips(connection: socket.socket, told: list[bytes]) -> None:
    """Send the beginning of a packet of 16 MiB, a byte at a time."""
    told.append(b"")
    connection.sendall(b"\xff\xff\xff\0")
    while True:
        connection.sendall(b"\x0a")
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("dialect", "talk"),
    [("postgresql", _mute), ("postgresql", _never_ready), ("mariadb", _mute), ("mariadb", _drips)],
)
def test_a_server_that_comes_to_no_end_while_connecting_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dialect: str, talk: Talk
) -> None:
    monkeypatch.setattr(dialects, "SLACK_S", 1)
    with listening(talk) as (port, told):
        began = time.monotonic()
        error = opened(tmp_path, f"{dialect}://127.0.0.1:{port}/d", connect_timeout_s=2)
        assert time.monotonic() - began < 10
    assert error.code == "source-timeout"
    assert told
