"""Journals for every test of this folder."""

import hashlib
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# What several test modules share: each imports it by name.
sys.path.insert(0, str(Path(__file__).parent))

from journals import Place


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    it = Place(tmp_path)
    yield it
    for journal in it.opened:
        journal.close()


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A closed journal of 300 entries, made once; `closed` gives each test its own copy."""
    it = Place(tmp_path_factory.mktemp("built"))
    with it.open() as journal:
        it.fill(journal, 290)
        for _ in range(9):
            it.fill(journal, 1)
    return it


@pytest.fixture
def closed(place: Place, built: Place) -> Place:
    """Two bundles, a full tile, partial tiles of two levels, and those of earlier checkpoints."""
    shutil.copytree(built.home, place.home, dirs_exist_ok=True)
    place.clock.at = built.clock.at
    return place


def slow_root(leaves: list[bytes]) -> bytes:
    """MTH of RFC 6962 section 2.1, written as the RFC writes it: the oracle for everything else."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + slow_root(leaves[:k]) + slow_root(leaves[k:])).digest()


def slow_entries_root(entries: list[bytes]) -> bytes:
    return slow_root([hashlib.sha256(b"\x00" + entry).digest() for entry in entries])


@pytest.fixture
def oracle() -> Callable[[list[bytes]], bytes]:
    return slow_entries_root


@pytest.fixture(scope="session")
def leaf_oracle() -> Callable[[list[bytes]], bytes]:
    return slow_root
