import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from simulator import World


@pytest.fixture(scope="session")
def shared_memory() -> Iterator[Path]:
    shm = Path("/dev/shm")
    base = Path(tempfile.mkdtemp(prefix="minshu-faults-", dir=shm if os.access(shm, os.W_OK) else None))
    yield base
    shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(scope="session")
def founded_world(shared_memory: Path) -> World:
    return World(shared_memory / "founded")


@pytest.fixture
def own_world(founded_world: World, shared_memory: Path) -> Iterator[World]:
    folder = Path(tempfile.mkdtemp(dir=shared_memory))
    yield founded_world.clone(folder / "world")
    shutil.rmtree(folder, ignore_errors=True)
