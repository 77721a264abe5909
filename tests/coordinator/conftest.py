import sys
from pathlib import Path

import pytest

# The helpers beside these tests are plain modules; pytest's importlib mode leaves the path alone.
sys.path.insert(0, str(Path(__file__).parent))

from collaboration import Clock, Collaboration


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def world(clock: Clock) -> Collaboration:
    return Collaboration(clock)


@pytest.fixture(scope="session")
def loop():
    from loopback import Loop

    loop = Loop()
    yield loop
    loop.stop()


@pytest.fixture
def live(tmp_path, loop):
    """A running coordinator with enrolled nodes that have not dialled in yet."""
    from loopback import LiveBureau

    bureau = LiveBureau(tmp_path, loop, grace_s=1)
    yield bureau
    bureau.close()
