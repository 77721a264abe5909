"""A journal with a fixed key and a clock that the test turns."""

import hashlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit.folder import Folder
from audit.log import Journal
from audit.note import VerifierKey

ORIGIN = "police.gz.example/node-a/journal/1"
JOB = "sha256:" + "ab" * 32


@dataclass
class Clock:
    """Advances by `step` at every reading."""

    at: datetime = datetime(2026, 12, 1, tzinfo=UTC)
    step: timedelta = timedelta(milliseconds=10)

    def __call__(self) -> datetime:
        self.at += self.step
        return self.at


@dataclass
class Place:
    """Where one journal lives, and how to open it."""

    home: Path
    key: Ed25519PrivateKey = field(default_factory=lambda: Ed25519PrivateKey.from_private_bytes(bytes(32)))
    clock: Clock = field(default_factory=Clock)
    opened: list[Journal] = field(default_factory=list)

    @property
    def directory(self) -> Path:
        return self.home / "journal"

    @property
    def database(self) -> Path:
        return self.home / "state" / "node.sqlite"

    @property
    def public_key(self) -> bytes:
        return self.key.public_key().public_bytes_raw()

    @property
    def vkey(self) -> VerifierKey:
        return VerifierKey(ORIGIN, 1, self.public_key)

    def open(self, folder: Callable[[Path, str], Folder] = Folder, **other: Any) -> Journal:
        named = {
            "directory": self.directory,
            "database": self.database,
            "origin": ORIGIN,
            "signer": self.key.sign,
            "public_key": self.public_key,
            "now": self.clock,
        } | other
        journal = Journal.open(named.pop("directory"), folder=folder, **named)
        self.opened.append(journal)
        return journal

    def fill(self, journal: Journal, count: int) -> None:
        """Append `count` entries in one transaction."""
        with journal.transaction() as connection:
            for number in range(count):
                journal.append(
                    connection, "job.refused", {"code": "no-rule", "line": number}, job=JOB, actor="bureau"
                )

    def fill_and_fail(self, journal: Journal) -> None:
        """Append one entry, then fail before the commit."""
        with journal.transaction() as connection:
            journal.append(connection, "job.refused", {"code": "no-rule"}, job=JOB)
            raise ZeroDivisionError

    def files(self) -> dict[str, bytes]:
        """Every published file."""
        return {
            path.relative_to(self.directory).as_posix(): path.read_bytes()
            for path in sorted(self.directory.rglob("*"))
            if path.is_file()
        }


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
