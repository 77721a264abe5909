import pytest
from databases.servers import Server

pytestmark = pytest.mark.alone


@pytest.mark.parametrize("kind", ["postgres", "mariadb"])
def test_a_server_starts_lets_its_administrator_write_and_comes_back_after_it_was_killed(
    kind: str, request: pytest.FixtureRequest
) -> None:
    server: Server = request.getfixturevalue(kind)
    name = server.new_name()
    server.run(f"CREATE TABLE {name} (n integer)", f"INSERT INTO {name} VALUES (1), (2)")
    server.kill()
    server.restart()
    assert server.run(f"SELECT count(*) FROM {name}") == [(2,)]
