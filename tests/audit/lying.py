"""One node's true journal, and journals that it might have signed instead: the same key, other entries."""

import shutil
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from simulator import COLLABORATION, Clock, World

from audit.bundle import open_bundle
from audit.entries import Entry, parse_time
from audit.findings import Checks
from audit.log import Journal
from audit.note import VerifierKey
from audit.redecide import Redecider
from audit.trust import Trust
from audit.verify import read_entries, verify_directory
from protocols.encoding import sha256_digest
from protocols.envelope import KeySigner, key_id
from protocols.roots import Roots


def trust_of(world: World, name: str) -> Trust:
    """What an auditor of that node brings: the root keys and its officers' key ids."""
    staff = world.staff[name]
    return Trust(
        roots=Roots.of(COLLABORATION, 2, [root.public_key for root in world.roots]),
        officers=frozenset(key_id(officer.public_key) for officer in (staff.dpo, staff.owner)),
    )


def audited(journal: Path, trust: Trust, key: VerifierKey | None = None, **brought: Any) -> Checks:
    """Look through a journal; with a key, it has to hold together, too."""
    checks = Checks()
    with open_bundle(journal) as bundle:
        redecider = Redecider(bundle, trust, checks, **brought)
        if key is None:
            for entry in read_entries(journal):
                redecider.visit(entry)
        else:
            verdict = verify_directory(bundle, [key], visit=redecider.visit)
            assert verdict.ok, verdict.problems
        redecider.finish()
    return checks


def found(checks: Checks) -> set[tuple[str, str]]:
    """Return what was found: question and code."""
    return {(check.question, finding.code) for check in checks for finding in check.findings}


def told(checks: Checks) -> list[tuple[str, str, str, str]]:
    """Return every finding, for a failing test to show."""
    return [(check.question, f.code, f.where, f.what) for check in checks for f in check.findings]


@dataclass
class Trail:
    """A node's journal, closed. `objects` are those that a lie needs beside the true ones."""

    world: World
    name: str
    entries: list[Entry]
    objects: list[bytes] = field(default_factory=list)

    @classmethod
    def of(cls, world: World, name: str) -> "Trail":
        return cls(world, name, list(read_entries(world.homes[name].journal)))

    @property
    def journal(self) -> Path:
        return self.world.homes[self.name].journal

    @property
    def signer(self) -> KeySigner:
        return self.world.homes[self.name].signer

    @property
    def key(self) -> VerifierKey:
        return VerifierKey(self.world.homes[self.name].origin, 1, self.signer.public_key)

    @property
    def trust(self) -> Trust:
        return trust_of(self.world, self.name)

    def copy(self) -> "Trail":
        return Trail(self.world, self.name, list(self.entries))

    def put(self, data: bytes) -> str:
        """Add an object; return its digest."""
        self.objects.append(data)
        return sha256_digest(data)

    def get(self, digest: str) -> bytes:
        with open_bundle(self.journal) as bundle:
            data = bundle.read_object(digest)
        assert data is not None
        return data

    def at(self, kind: str, nth: int = 0) -> int:
        """Return where the nth entry of a kind stands; -1 is the last one."""
        places = [place for place, entry in enumerate(self.entries) if entry.kind == kind]
        return places[nth]

    def one(self, kind: str, nth: int = 0) -> Entry:
        return self.entries[self.at(kind, nth)]

    def say(self, kind: str, nth: int = 0, **body: Any) -> None:
        """Let an entry say something else."""
        place = self.at(kind, nth)
        entry = self.entries[place]
        self.entries[place] = replace(entry, body={**entry.body, **body})

    def alter(self, kind: str, nth: int = 0, **fields: Any) -> None:
        """Change fields of an entry other than its body."""
        place = self.at(kind, nth)
        self.entries[place] = replace(self.entries[place], **fields)

    def drop(self, kind: str, nth: int = 0) -> None:
        del self.entries[self.at(kind, nth)]

    def insert(self, place: int, kind: str, body: dict[str, Any], **fields: Any) -> None:
        """Put an entry in, at the time of the one before it."""
        plain = {"job": "", "attempt": 0, "policy": None, "actor": "", "refs": ()}
        made = replace(self.entries[place - 1], kind=kind, body=body, **{**plain, **fields})
        self.entries.insert(place, made)

    def later(self, moment: datetime, kind: str = "dataset.registered") -> None:
        """Let the log go on at a later time, with an hour's work."""
        from datetime import timedelta

        from audit.entries import format_time

        for hours in (0, 2):
            body = {"dataset": "people"}
            time = format_time(moment + timedelta(hours=hours))
            self.insert(len(self.entries), kind, body, time=time)

    def signed(self, folder: Path) -> Path:
        """Write the entries as the node's own log, under its own key; return its folder."""
        clock = Clock(parse_time(self.entries[0].time))
        shutil.copytree(self.journal / "objects", folder / "journal" / "objects")
        with ExitStack() as stack:
            journal = stack.enter_context(
                Journal.open(
                    folder / "journal",
                    database=folder / "node.db",
                    origin=self.key.name,
                    signer=self.signer.sign,
                    public_key=self.signer.public_key,
                    now=clock,
                )
            )
            for data in self.objects:
                journal.put_object(data)
            with journal.transaction() as connection:
                for entry in self.entries[1:]:
                    clock.at = parse_time(entry.time)
                    journal.append(
                        connection,
                        entry.kind,
                        entry.body,
                        job=entry.job,
                        attempt=entry.attempt,
                        policy=entry.policy,
                        actor=entry.actor,
                        refs=entry.refs,
                    )
        return folder / "journal"

    def audited(self, folder: Path, **brought: Any) -> Checks:
        """Sign the log as it is now, and look through it."""
        return audited(self.signed(folder), self.trust, self.key, **brought)


def visited(trail: Trail, entries: Iterable[Entry], trust: Trust | None = None) -> Checks:
    """Look through entries that are in no log, over the true objects."""
    checks = Checks()
    with open_bundle(trail.journal) as bundle:
        redecider = Redecider(bundle, trust or trail.trust, checks)
        for seq, entry in enumerate(entries):
            redecider.visit(replace(entry, seq=seq))
        redecider.finish()
    return checks


Lie = Callable[[Trail], None]
