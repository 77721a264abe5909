"""A password that came by the environment is in no process that this one starts."""

import os
from pathlib import Path

import pytest

from node.compute import open_executor
from node.config import Compute
from node.sources import Connection

pytestmark = pytest.mark.alone

VARIABLE = "MINSHU_TEST_PASSWORD"


@pytest.mark.parametrize("use", [Connection.check, Connection.password])
def test_a_worker_has_no_password_in_its_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: object
) -> None:
    monkeypatch.setenv(VARIABLE, "Sesame-opens-8841")
    connection = Connection(url="postgresql://127.0.0.1/d", password_env=VARIABLE, folder=tmp_path)
    assert callable(use)
    use(connection)
    with open_executor(Compute(processes=1), lambda: None) as executor:
        assert executor is not None
        assert executor.submit(os.getenv, "PATH").result(60) == os.environ["PATH"]
        assert executor.submit(os.getenv, VARIABLE).result(60) is None
    # Settings are read anew now and then: it is still known here.
    again = Connection(url="postgresql://127.0.0.1/d", password_env=VARIABLE, folder=tmp_path)
    assert again.password() == "Sesame-opens-8841"
    monkeypatch.setenv(VARIABLE, "another")
    assert again.password() == "another"
