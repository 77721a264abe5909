"""A journal with fixed keys and a clock that the test turns."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit.folder import Folder
from audit.log import Journal
from audit.note import VerifierKey
from protocols.envelope import ROTATION, KeySigner, sign
from protocols.wire import Rotation

NODE = "police.gz.example/node-a"
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


def signer(seed: int) -> KeySigner:
    """An identity key; that of seed 0 opens the log."""
    return KeySigner(Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32))


def statement(
    previous: KeySigner, following: KeySigner, size: int, root: bytes, *, kind: str = ROTATION, **other: Any
) -> bytes:
    """A rotation statement over a log of `size` entries, signed by both keys or by those named in `by`."""
    by = other.pop("by", (previous, following))
    facts = {
        "node": NODE,
        "previous_key": previous.public_key,
        "next_key": following.public_key,
        "journal_size": size,
        "journal_root": "sha256:" + root.hex(),
        "issued": datetime(2026, 12, 1, tzinfo=UTC),
    } | other
    return sign(kind, Rotation(**facts).encode(), by).encode()


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

    def open_with(self, *signers: KeySigner, **other: Any) -> Journal:
        """Open with one key, or with two while they change."""
        first, *rest = signers
        if rest:
            other["next_signer"] = rest[0]
        return self.open(signer=first.sign, public_key=first.public_key, **other)

    def rotate(self, journal: Journal, previous: KeySigner, following: KeySigner, **other: Any) -> int:
        """Hand the journal over, with a statement about its present tree."""
        return journal.rotate(
            following, statement(previous, following, journal.size, journal.root(), **other)
        )

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
