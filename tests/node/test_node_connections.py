"""`[connections.NAME]` in node.toml: what is refused, and what no representation ever shows."""

import traceback
from pathlib import Path

import pytest

from node.config import load_config
from node.sources import Connection, TablePlace, open_source, place_from_json
from protocols.errors import InputError

HEAD = 'name = "police.gz.example/node-a"\n'
GOOD = """[connections.registers]
url = "postgresql://db.police.example:5432/registers"
user = "minshu"
password_file = "registers.password"
ca = "db-ca.pem"
statement_timeout_s = 60
"""


def configured(folder: Path, text: str) -> Connection:
    path = folder / "node.toml"
    path.write_text(HEAD + text, encoding="utf-8")
    return load_config(path).connections["registers"]


def refused(folder: Path, text: str) -> InputError:
    with pytest.raises(InputError) as caught:
        configured(folder, text)
    return caught.value


def test_a_connection_is_read_with_its_defaults(tmp_path: Path) -> None:
    found = configured(tmp_path, GOOD)
    assert (found.address.host, found.address.port, found.address.database) == (
        "db.police.example",
        5432,
        "registers",
    )
    assert (found.connect_timeout_s, found.statement_timeout_s, found.timezone) == (10, 60, "Asia/Shanghai")
    assert found.secrets() == (tmp_path / "registers.password",)


@pytest.mark.parametrize(
    ("url", "encrypted"),
    [
        ("postgresql://db.example/x", True),
        ("postgresql://10.0.0.7/x", True),
        ("postgresql://127.0.0.1/x", False),
        ("mariadb://[::1]:3306/x", False),
        ("mysql://localhost/x", False),
        ("oracle://db.example:2484/x", True),
        ("dm://db.example:5236", True),
        ("trino://trino.example/hive", True),
    ],
)
def test_a_connection_is_encrypted_unless_it_stays_on_this_machine(
    tmp_path: Path, url: str, *, encrypted: bool
) -> None:
    assert configured(tmp_path, f'[connections.registers]\nurl = "{url}"\n').encrypted is encrypted


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('url = "postgresql://minshu:Secret1@db.example/x"', "names a user or a password"),
        ('url = "postgresql://minshu@db.example/x"', "names a user or a password"),
        ('url = "postgresql://db.example/x?password=Secret1"', "is not dialect://"),
        ('url = "sqlite:///x"', "begins with none of"),
        ('url = "postgresql://db.example"', "no database"),
        ('url = "postgresql://db.example:99999/x"', "no port"),
        ('url = "postgresql:///x"', "neither a host nor a socket"),
        ('url = "postgresql://db.example/x"\nsocket = "/run/postgresql"', "or both"),
        ('url = "oracle:///x"\nsocket = "/run/oracle"', "without unix sockets"),
        ('url = "postgresql://db.example/x"\npassword_file = "a"\npassword_env = "B"', "both set"),
        ('url = "postgresql://db.example/x"\npassword = "Secret1"', "unknown setting password"),
        ('url = "postgresql://db.example/x"\ntls = "maybe"', "none of"),
        ('url = "postgresql://db.example/x"\ntls = "off"\nca = "ca.pem"', "tls is off"),
        ('url = "postgresql://db.example/x"\ntimezone = "Mars/Base"', "timezone is none"),
        ('url = "postgresql://db.example/x"\nstatement_timeout_s = 0', "greater than zero"),
        ('url = "postgresql://db.example/x"\nfetch_rows = "many"', "another type"),
        ('user = "minshu"', "url is missing"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_not_repeated(tmp_path: Path, text: str, says: str) -> None:
    error = refused(tmp_path, f"[connections.registers]\n{text}\n")
    assert says in error.message
    assert "Secret1" not in f"{error} {error.hint} " + "".join(traceback.format_exception(error))
    assert "db.example/x" not in error.message


@pytest.mark.parametrize("name", ["Registers", "1", '"a b"', '"x.y"'])
def test_a_connection_has_a_plain_name(tmp_path: Path, name: str) -> None:
    assert refused(tmp_path, f'[connections.{name}]\nurl = "postgresql://h/x"\n').code == "bad-config"


@pytest.mark.parametrize(("second", "twice"), [("", True), ('schema = "a"', True), ('schema = "b"', False)])
def test_one_database_has_one_connection_so_that_no_table_is_registered_twice(
    tmp_path: Path, second: str, *, twice: bool
) -> None:
    url = 'url = "postgresql://db.example/x"\n'
    text = f'[connections.registers]\n{url}schema = "a"\n[connections.other]\n{url}{second}\n'
    if twice:
        assert "again" in refused(tmp_path, text).message
    else:
        assert configured(tmp_path, text).schema == "a"


def test_nothing_of_a_connection_is_in_its_representation(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text(HEAD + GOOD)
    config = load_config(tmp_path / "node.toml")
    for shown in (repr(config), repr(config.access), repr(config.connections["registers"].address)):
        assert "db.police.example" not in shown
        assert "registers.password" not in shown


def test_a_password_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    found = configured(tmp_path, GOOD)
    file = tmp_path / "registers.password"
    for mode, code in ((0o644, "password-exposed"), (0o640, "password-exposed"), (0o602, "password-exposed")):
        file.write_text("Secret1\n")
        file.chmod(mode)
        with pytest.raises(InputError) as caught:
            found.password()
        assert caught.value.code == code
        assert "chmod 600" in caught.value.hint
    file.chmod(0o600)
    assert found.password() == "Secret1"


@pytest.mark.parametrize("data", [b"", b"\n", b"a\nb\n", b"\xff\xfe", b"a\0b", b"x" * 5000])
def test_a_file_without_one_password_is_refused(tmp_path: Path, data: bytes) -> None:
    found = configured(tmp_path, GOOD)
    file = tmp_path / "registers.password"
    file.touch(mode=0o600)
    file.write_bytes(data)
    with pytest.raises(InputError) as caught:
        found.password()
    assert caught.value.code == "password-missing"
    file.unlink()
    with pytest.raises(InputError) as caught:
        found.password()
    assert caught.value.code == "password-missing"


def test_a_password_may_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = configured(
        tmp_path, GOOD.replace('password_file = "registers.password"', 'password_env = "DB_PASSWORD"')
    )
    monkeypatch.delenv("DB_PASSWORD", raising=False)
    with pytest.raises(InputError) as caught:
        found.password()
    assert caught.value.code == "password-missing"
    monkeypatch.setenv("DB_PASSWORD", "Secret1")
    assert found.password() == "Secret1"


def test_a_place_comes_back_from_its_json() -> None:
    for place in (TablePlace("registers", "people"), TablePlace("registers", "people", "changed")):
        assert place_from_json(place.to_json()) == place
    assert TablePlace("a", "People").same(TablePlace("a", "people", "changed"))
    assert not TablePlace("a", "people").same(TablePlace("b", "people"))


def test_a_table_of_no_known_connection_says_what_to_write(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text(HEAD + GOOD)
    access = load_config(tmp_path / "node.toml").access
    with pytest.raises(InputError) as caught:
        open_source(TablePlace("taxes", "people"), access)
    assert caught.value.code == "unknown-connection"
    assert "[connections.taxes]" in caught.value.hint
