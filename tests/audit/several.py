"""A small collaboration of real journals that witness each other: three departments and a bureau."""

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from witnessing import keys_of

from audit.bundle import Bundle, open_bundle
from audit.log import Journal
from audit.note import Checkpoint, Note, VerifierKey
from audit.trust import Trust
from audit.witness import CosignerKeys, MemoryStore, add_checkpoint, encode_request
from protocols.encoding import sha256_digest
from protocols.envelope import JOB, ROSTER, KeySigner, decode_envelope, key_id, sign
from protocols.ids import Digest, NodeName, Organisation, Role
from protocols.roots import Roots
from protocols.wire import (
    JobInput,
    JobSpec,
    Roster,
    RosterAnalyst,
    RosterCoordinator,
    RosterNode,
    RosterOrganisation,
    organisation_of,
)

START = datetime(2026, 12, 1, tzinfo=UTC)
NODES = ("police.gz.example/node-a", "health.gz.example/node-a", "housing.gz.example/node-a")
BUREAU = "bureau.gz.example/coordinator"
QUORUM = 2


def key(name: str) -> KeySigner:
    return KeySigner(Ed25519PrivateKey.from_private_bytes(name.encode()[:32].ljust(32)))


ROOT_KEYS = [key(f"root {n}") for n in range(3)]
ROOTS = Roots.of("gz", 2, [each.public_key for each in ROOT_KEYS])
ANALYST = key("analyst")


@dataclass
class Clock:
    at: datetime = START

    def __call__(self) -> datetime:
        self.at += timedelta(milliseconds=10)
        return self.at

    def wait(self, **time: float) -> None:
        self.at += timedelta(**time)


@dataclass
class Department:
    """One log and its owner."""

    name: str
    home: Path
    clock: Clock
    journal: Journal
    witness: CosignerKeys
    store: MemoryStore = field(default_factory=MemoryStore)

    @property
    def short(self) -> str:
        return self.name.partition(".")[0]

    @property
    def directory(self) -> Path:
        return self.home / self.short

    @property
    def vkey(self) -> VerifierKey:
        return VerifierKey.parse(self.journal.vkey)

    def record(self, kind: str, body: dict[str, Any], **other: Any) -> int:
        return self.journal.record(kind, body, **other)

    def refuse(self, count: int = 1) -> None:
        with self.journal.transaction() as connection:
            for number in range(count):
                body = {"code": "no-rule", "line": number}
                self.journal.append(connection, "job.refused", body, job="sha256:" + "ab" * 32)

    def bundle(self) -> Bundle:
        return open_bundle(self.directory)


@dataclass
class Collaboration:
    """`NODES` and the bureau, with one clock."""

    home: Path
    clock: Clock = field(default_factory=Clock)
    mldsa: tuple[str, ...] = ()
    departments: dict[str, Department] = field(default_factory=dict)
    rosters: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in (*NODES, BUREAU):
            short = name.partition(".")[0]
            self.departments[short] = Department(
                name,
                self.home,
                self.clock,
                self._open(name, self.home),
                keys_of(name, mldsa=short in self.mldsa),
            )

    def __getitem__(self, short: str) -> Department:
        return self.departments[short]

    @property
    def nodes(self) -> list[Department]:
        return [self[name.partition(".")[0]] for name in NODES]

    @property
    def bureau(self) -> Department:
        return self["bureau"]

    def forked(self, short: str) -> Department:
        """The same log once more, as it is now, by whoever has its key: what a restored backup is."""
        there = self[short]
        there.journal.close()
        home = self.home / "forked"
        home.mkdir()
        shutil.copytree(there.directory, home / short)
        shutil.copy(self.home / f"{short}.sqlite", home)
        there.journal = self._open(there.name, self.home)
        twin = Department(there.name, home, self.clock, self._open(there.name, home), there.witness)
        self.departments[f"forked {short}"] = twin
        return twin

    def _open(self, name: str, home: Path) -> Journal:
        short, signer = name.partition(".")[0], key(name)
        return Journal.open(
            home / short,
            database=home / f"{short}.sqlite",
            origin=f"{name}/journal/1",
            signer=signer.sign,
            public_key=signer.public_key,
            now=self.clock,
        )

    def close(self) -> None:
        for each in self.departments.values():
            each.journal.close()

    @property
    def trust(self) -> Trust:
        """Everybody's keys, as handed over on paper."""
        logs = [each.vkey for each in self.departments.values()]
        return Trust(keys=(*logs, *(vkey for node in self.nodes for vkey in node.witness.vkeys)))

    # -- rosters -------------------------------------------------------------------------------------------

    def roster(self, **other: Any) -> Roster:
        """The next roster, not signed yet."""
        version = len(self.rosters) + 1
        facts: dict[str, Any] = {
            "collaboration": "gz",
            "version": version,
            "previous": sha256_digest(_payload(self.rosters[-1])) if self.rosters else None,
            "suite": 1,
            "issued": self.clock.at.replace(microsecond=0),
            "expires": self.clock.at.replace(microsecond=0) + timedelta(days=90),
            "organisations": tuple(
                RosterOrganisation(organisation_of(NodeName(name)), name) for name in (*NODES, BUREAU)
            ),
            "nodes": tuple(
                RosterNode(
                    NodeName(node.name),
                    key(node.name).public_key,
                    Digest(sha256_digest(node.name.encode())),
                    node.journal.vkey,
                    bytes(32),
                    tuple(map(str, node.witness.vkeys)),
                )
                for node in self.nodes
            ),
            "analysts": (
                RosterAnalyst("an", Organisation("bureau.gz.example"), ANALYST.public_key, bytes(32)),
            ),
            "coordinator": RosterCoordinator(NodeName(BUREAU), self.bureau.journal.vkey),
        }
        return Roster(**(facts | other))

    def sign_roster(self, roster: Roster | None = None, by: Sequence[KeySigner] = ROOT_KEYS[:2]) -> bytes:
        """Sign a roster and have everybody go by it."""
        roster = roster or self.roster()
        envelope = sign(ROSTER, roster.encode(), by).encode()
        self.rosters.append(envelope)
        for each in self.departments.values():
            kind = "roster.published" if each is self.bureau else "roster.activate"
            body = {
                "version": roster.version,
                "sha256": roster.digest,
                "envelope_sha256": each.journal.put_object(envelope),
            }
            each.record(kind, body)
        return envelope

    # -- witnesses -----------------------------------------------------------------------------------------

    def witnessed(self, *logs: str, by: Iterable[str] = ("police", "health", "housing")) -> None:
        """Everybody named cosigns the newest checkpoint of these logs, or of all."""
        for log in (self[short] for short in logs or self.departments):
            note = log.journal.checkpoint()
            checkpoint = Checkpoint.decode(Note.decode(note).text)
            lines = []
            for witness in (self[short] for short in by if short != log.short):
                held = witness.store.get(log.journal.origin)
                old = 0 if held is None else Checkpoint.decode(Note.decode(held).text).size
                proof = log.journal.consistency_proof(old, checkpoint.size)
                answer = add_checkpoint(
                    encode_request(old, proof, note),
                    known=lambda _, log=log: [log.vkey],
                    store=witness.store,
                    sign=lambda text, witness=witness: witness.witness.sign(
                        text, int(self.clock.at.timestamp())
                    ),
                )
                assert answer.status == 200
                kept = witness.store.get(log.journal.origin)
                assert kept is not None
                witness.journal.set_witnessed(log.journal.origin, kept)
                lines += Note.decode(note + answer.body).signatures
            lines = [line for line in lines if line.name != log.journal.origin]
            votes = {line.name for line in lines}
            log.journal.add_cosignatures(
                Note.decode(note).text, dict.fromkeys(lines), quorum=len(votes) >= QUORUM
            )

    # -- jobs ----------------------------------------------------------------------------------------------

    def spec(self, number: int = 0) -> JobSpec:
        roles = {Role(f"source-{n}"): NodeName(node.name) for n, node in enumerate(self.nodes, 1)}
        return JobSpec(
            job_type="crosscheck/1",
            params={"number": number},
            inputs=tuple(
                JobInput(role, organisation_of(node), "people", {"key": "person_id"})
                for role, node in roles.items()
            ),
            roles=roles,
            purpose="P-1",
            legal_basis="DPIA-1",
            expected_use="to see",
            recipients=(Organisation("police.gz.example"),),
            requester=key_id(ANALYST.public_key),
            collaboration="gz",
            roster_digest=Digest(sha256_digest(b"roster")),
            created=START,
            expires=START + timedelta(days=30),
            nonce="00" * 16,
        )

    def start(self, number: int = 0, *, without: Sequence[str] = ()) -> JobSpec:
        """A job that everybody admits; those in `without` never heard of it."""
        spec = self.spec(number)
        envelope = sign(JOB, spec.encode(), [ANALYST]).encode()
        admissions = {node.name: f"admission {number} of {node.name}".encode() for node in self.nodes}
        refs = sorted(sha256_digest(each) for each in admissions.values())
        facts = {"requester": spec.requester, "job_type": spec.job_type}
        for node in self.nodes:
            if node.short not in without:
                digest = node.journal.put_object(envelope)
                mine = sha256_digest(b"payload of " + admissions[node.name])
                body = {
                    "admission_sha256": mine,
                    "envelope_sha256": digest,
                    "decided": "2026-12-01T00:00:00.000Z",
                }
                node.record("job.accepted", body | facts, job=spec.job_id, attempt=1)
        if "bureau" not in without:
            self.bureau.record(
                "job.started", {"participants": sorted(admissions)}, job=spec.job_id, attempt=1, refs=refs
            )
        for node in self.nodes:
            if node.short not in without:
                body = {
                    "admission_sha256": sha256_digest(b"payload of " + admissions[node.name]),
                    "envelope_sha256": sha256_digest(envelope),
                    "ctx": sha256_digest(b"".join(admissions.values())),
                }
                node.record("job.admitted", body, job=spec.job_id, attempt=1, refs=refs)
        return spec

    def release(self, spec: JobSpec, by: str = "police", *, number: int = 0) -> int:
        """The node's release becomes final; returns where that stands."""
        return self[by].record(
            "output.commit",
            {"release": f"{number:032x}", "class": "B", "sha256": sha256_digest(b"release %d" % number)},
            job=spec.job_id,
            attempt=1,
        )

    def receipt(self, spec: JobSpec, at: int, of: str, to: Iterable[str], **other: Any) -> None:
        """Each of `to` says that it knows of the release at entry `at` of the log `of`."""
        for each in to:
            body = {
                "peer": self[of].name,
                "sha256": sha256_digest(b"release 0"),
                "kind": "output.commit",
                "release": f"{0:032x}",
                "log": self[of].journal.origin,
                "seq": at,
            }
            self[each].record("peer.receipt", body | other, job=spec.job_id, attempt=1)

    def whole(self) -> JobSpec:
        """One job from its start to its last receipt, everything witnessed."""
        spec = self.start()
        seq = self.release(spec)
        self.clock.wait(seconds=1)
        self.receipt(spec, seq, "police", ("health", "housing", "bureau"))
        self.witnessed()
        return spec


def _payload(envelope: bytes) -> bytes:
    return decode_envelope(envelope).payload
