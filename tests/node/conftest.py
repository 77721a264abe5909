import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from simulator import World


@pytest.fixture(scope="session")
def memory() -> Iterator[Path]:
    """A folder in memory where there is one: these tests flush thousands of small files."""
    shm = Path("/dev/shm")
    base = Path(tempfile.mkdtemp(prefix="minshu-node-", dir=shm if os.access(shm, os.W_OK) else None))
    yield base
    shutil.rmtree(base, ignore_errors=True)


@pytest.fixture
def folder(memory: Path) -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(dir=memory))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="session")
def founded(memory: Path) -> World:
    """A collaboration with policies and datasets; tests take copies of it."""
    return World(memory / "founded")


@pytest.fixture
def world(founded: World, folder: Path) -> World:
    return founded.clone(folder / "world")
