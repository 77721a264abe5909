import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from simulator import World


@pytest.fixture(scope="session")
def ram() -> Iterator[Path]:
    """A folder in memory where there is one: these tests flush thousands of small files."""
    shm = Path("/dev/shm")
    base = Path(tempfile.mkdtemp(prefix="minshu-node-", dir=shm if os.access(shm, os.W_OK) else None))
    yield base
    shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(scope="module")
def memory(ram: Path) -> Iterator[Path]:
    """A module's own folder in there. A worker that is given other modules in between begins one anew."""
    made = Path(tempfile.mkdtemp(dir=ram))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def folder(ram: Path) -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(dir=ram))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="session")
def founded(ram: Path) -> World:
    """A collaboration with policies and datasets; tests take copies of it."""
    return World(ram / "founded")


@pytest.fixture
def world(founded: World, folder: Path) -> World:
    return founded.clone(folder / "world")
