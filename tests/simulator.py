"""A small collaboration in one process: real gates, runners, channels and journals; only the wire is short.

`World` makes homes, keys, roster and policies. `Post` stands in for the coordinator and carries messages as
bytes; its hooks let a test lie, tamper, replay, swap, cut or drop. `Station` is one running node. For a node
that a test does not run, a `Bystander` witnesses.
"""

import asyncio
import contextlib
import copy
import json
import secrets
import shutil
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit.note import ED25519, Checkpoint, Note, VerifierKey
from audit.witness import MemoryStore, add_checkpoint
from minshu.v1 import audit_pb2
from minshu.v1 import relay_pb2 as pb
from node import catalogue
from node.activation import InForce, activate_policy, pin_signers
from node.agent import Agent
from node.approvals import make_approval
from node.clock import Clock as Watch
from node.desk import register
from node.gate import judge
from node.home import ENROLMENT_SCHEMA, Home, init_home
from node.journal import open_journal
from node.link import DataStream
from node.logs import Log
from node.record import Recorder
from node.rpc import Attempt, ControlRequest, Message, read_control
from node.sources import Access, FilePlace
from node.state import Change, RunState, State, open_state
from policies.decision import Ask
from policies.sign import sign_policy, sign_stop
from protocols.channel import suites
from protocols.channel.frame import Header, read_header
from protocols.encoding import b64decode, b64encode, canonical_json, sha256_digest
from protocols.envelope import FRESHNESS, HEAD, JOB, ROSTER, KeySigner, decode_envelope, key_id, sign
from protocols.errors import DecodeError, Unreachable
from protocols.identifiers import resident_id
from protocols.ids import DatasetName, Digest, JobId, NodeName, Organisation, Role
from protocols.wire import (
    Freshness,
    Head,
    JobInput,
    JobSpec,
    Roster,
    RosterAnalyst,
    RosterCoordinator,
    RosterNode,
    RosterOrganisation,
    Verdict,
)

START = datetime(2026, 11, 22, 8, tzinfo=UTC)
COLLABORATION = "gz.example"
BUREAU = Organisation("data-bureau.gz.example")
COORDINATOR = NodeName("data-bureau.gz.example/coordinator")
DEPARTMENTS = ("police", "human-resources", "health", "statistics")
ROLES = {
    "police": Role("register"),
    "human-resources": Role("source-1"),
    "health": Role("source-2"),
    "statistics": Role("matcher"),
}
PATIENCE_S = 60.0  # other work may share the machine


@cache
def person(number: int) -> str:
    """Return the identity number of a fictional person."""
    return resident_id(f"9901{1 + number % 11:02d}", date(1950 + number // 900, 1, 1), number % 900)


def new_signer() -> KeySigner:
    return KeySigner(Ed25519PrivateKey.generate())


def log_vkey(origin: str, signer: KeySigner) -> str:
    """Return the verifier key line of a log that `signer` signs."""
    return str(VerifierKey(origin, ED25519, signer.public_key))


def _raw(signer: KeySigner) -> str:
    return signer.private_key.private_bytes_raw().hex()


def _signer(raw: str) -> KeySigner:
    return KeySigner(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(raw)))


@dataclass
class Clock:
    """The time of everybody in a world; a test may set it."""

    at: datetime = START

    def __call__(self) -> datetime:
        return self.at

    def ticks(self) -> float:
        """Return a monotonic clock beside which this one never jumps."""
        return (self.at - START).total_seconds()


def policy_text(department: str, analyst: str, dpo: str, owner: str, **changes: Any) -> str:
    """Return a department's policy; `changes` replace whole values, e.g. version=2, approvals=0.

    `queries`, `rows`: limits of the two quotas of its dataset, None for none of that kind. `window`, `stops`:
    TOML. `lifted`: digests of stops. `quorum`: of the three other departments as witnesses; 0 where releases
    wait for none. `quality`: thresholds of its dataset, TOML; `accepts`: those that may be missed.
    """
    give = {
        "version": 1,
        "previous": None,
        "not_before": "2026-11-01T00:00:00+08:00",
        "expires": "2027-02-01T00:00:00+08:00",
        "approvals": 0,
        "max_rows": 1000,
        "min_coverage": "0.50",
        "max_fraction": "0.50",
        "min_group_size": 3,
        "max_runtime_s": 3600,
        "negative": "phone",
        "jobs": 100,
        "queries": 100,
        "rows": 100_000,
        "scope": "all-requesters",
        "window": "",
        "stops": "",
        "lifted": [],
        "journal_days": 1095,
        "release_days": 30,
        "quorum": 0 if department == "statistics" else 2,
        "quality": "",
        "accepts": [],
    } | changes
    columns = {
        "police": ["id"],
        "statistics": [],
    }.get(department, ["id", "street", "seen"])
    previous = f'previous = "{give["previous"]}"\n' if give["previous"] else ""
    lifted = f"lifted_stops = {json.dumps(give['lifted'])}\n" if give["lifted"] else ""
    requires = "cosigned" if give["quorum"] else "checkpoint"
    text = f"""schema = "minshu-policy/1"
policy_id = "{department}.gz.example/node-a"
version = {give["version"]}
{previous}not_before = {give["not_before"]}
expires = {give["expires"]}
timezone = "Asia/Shanghai"
controller = "某局"
{lifted}[defaults]
min_group_size = {give["min_group_size"]}
max_runtime_s = {give["max_runtime_s"]}
release_requires = "{requires}"
[requesters.bureau]
organisation = "{BUREAU}"
keys = ["{analyst}"]
[purposes."P-1"]
title = "核查"
legal_basis = "L-1"
valid_until = 2027-01-31
[retention]
journal_days = {give["journal_days"]}
release_days = {give["release_days"]}
intermediate = "job-end"
[approvers.dpo]
keys = ["{dpo}"]
[approvers.owner]
keys = ["{owner}"]
[[rules]]
id = "R1"
requesters = ["bureau"]
purposes = ["P-1"]
job_types = ["crosscheck/1"]
recipients = ["police.gz.example"]
min_sources = 2
max_rows = {give["max_rows"]}
max_fraction = "{give["max_fraction"]}"
min_coverage = "{give["min_coverage"]}"
rate = {{ jobs = {give["jobs"]}, per = "month" }}
"""
    if give["window"]:
        text += f"window = {give['window']}\n"
    if give["accepts"]:
        text += f"accepts_quality = {json.dumps(give['accepts'])}\n"
    witnesses = f"[witnesses]\nquorum = {give['quorum']}\n" if give["quorum"] else ""
    if department == "statistics":
        return text + 'roles = ["matcher"]\napprovals = 0\n' + witnesses + give["stops"]
    kinds = '["register", "key-holder"]' if department == "police" else '["source", "key-holder"]'
    text += f'roles = {kinds}\ndatasets = ["people"]\ncolumns = {columns}\n'.replace("'", '"')
    approvals = give["approvals"] or 2
    text += f'approvals = {approvals}\napprovers = ["dpo", "owner"]\n'
    quotas = {kind: give[kind] for kind in ("queries", "rows") if give[kind] is not None}
    text += f"quotas = {json.dumps(sorted(quotas))}\n" if quotas else ""
    for kind, limit in quotas.items():
        text += f'[quotas.{kind}]\ndataset = "people"\ncounts = "{kind}"\nlimit = {limit}\n'
        text += f'period = "calendar-month"\nscope = "{give["scope"]}"\n'
    text += witnesses + give["stops"]
    text += '[datasets.people]\nsource = "local:people"\ngrade = "general-4"\npersonal = "personal"\n'
    text += f"[datasets.people.quality]\n{give['quality']}\n" if give["quality"] else ""
    text += "[datasets.people.columns]\n"
    text += 'id = { type = "resident-id", use = ["join"] }\n'
    if department != "police":
        text += 'street = { type = "code", use = ["group"] }\nseen = { type = "month", use = ["carry"] }\n'
    text += 'phone = { type = "phone", use = ["join"] }\n' if give["negative"] != "phone" else ""
    return text + '[[negative_list]]\ndataset = "people"\ncolumn = "phone"\nreason = "负面清单 1"\n'


@dataclass
class Staff:
    """A department's people."""

    dpo: KeySigner = field(default_factory=new_signer)
    owner: KeySigner = field(default_factory=new_signer)


class World:
    """Everything that exists before anybody runs."""

    departments: Sequence[str] = DEPARTMENTS

    def __init__(
        self, folder: Path, *, suite: int = 2, seed_lists: Mapping[str, Sequence[int]] | None = None
    ):
        self.folder, self.suite, self.clock = folder, suite, Clock()
        self.roots = [new_signer() for _ in range(3)]
        self.freshener, self.coordinator = new_signer(), new_signer()
        self.analyst, self.analyst_private = new_signer(), suites.new_private_key(suite, secrets.token_bytes)
        self.staff = {name: Staff() for name in self.departments}
        self.homes = {name: self._home(name) for name in self.departments}
        self.roster_envelope = self.sign_roster(self.make_roster())
        self.lists = dict(seed_lists or default_lists())
        self.policies: dict[str, bytes] = {}
        for name in self.departments:
            self._furnish(name)

    def clone(self, folder: Path) -> "World":
        """Return the same people and keys with homes of their own, as they are now."""
        other = copy.copy(self)
        other.folder, other.clock = folder, Clock(self.clock.at)
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        other.homes = {name: Home(folder / name) for name in self.homes}
        for name in self.lists:  # each world may do to its files what it likes
            with contextlib.closing(sqlite3.connect(other.homes[name].database)) as database:
                database.execute(
                    "UPDATE dataset SET place = replace(place, ?, ?)", (f"{self.folder}/", f"{folder}/")
                )
                database.commit()
        other.policies = dict(self.policies)
        return other

    def save(self) -> None:
        """Write the people's keys beside the homes, so that another process can `load` this world."""
        keys = {
            "roots": [_raw(root) for root in self.roots],
            "freshener": _raw(self.freshener),
            "coordinator": _raw(self.coordinator),
            "analyst": _raw(self.analyst),
            "analyst_private": self.analyst_private.hex(),
            "staff": {name: [_raw(s.dpo), _raw(s.owner)] for name, s in self.staff.items()},
            "roster": b64encode(self.roster_envelope),
        }
        (self.folder / "world.json").write_text(json.dumps(keys))

    @classmethod
    def load(cls, folder: Path, suite: int = 2) -> "World":
        """Return the world that `save` left in a folder."""
        keys = json.loads((folder / "world.json").read_text())
        world = cls.__new__(cls)
        world.folder, world.suite, world.clock = folder, suite, Clock()
        world.roots = [_signer(root) for root in keys["roots"]]
        world.freshener = _signer(keys["freshener"])
        world.coordinator = _signer(keys["coordinator"])
        world.analyst = _signer(keys["analyst"])
        world.analyst_private = bytes.fromhex(keys["analyst_private"])
        world.staff = {n: Staff(_signer(dpo), _signer(owner)) for n, (dpo, owner) in keys["staff"].items()}
        world.homes = {name: Home(folder / name) for name in cls.departments}
        world.roster_envelope = b64decode(keys["roster"])
        world.lists, world.policies = default_lists(), {}
        return world

    @property
    def roster(self) -> Roster:
        return Roster.decode(decode_envelope(self.roster_envelope).payload)

    def _home(self, name: str) -> Home:
        home = init_home(self.folder / name, f"{name}.gz.example/node-a", self.suite)
        roots = {
            "schema": "minshu-roots/1",
            "collaboration": COLLABORATION,
            "threshold": 2,
            "keys": sorted(root.public_key.hex() for root in self.roots),
        }
        record = {"schema": ENROLMENT_SCHEMA, "address": "127.0.0.1:1", "roots": roots}
        home.enrolment.write_bytes(canonical_json(record))
        return home

    def make_roster(self, version: int = 1, previous: Any = None, **changes: Any) -> Roster:
        nodes = tuple(
            RosterNode(
                home.name,
                home.signer.public_key,
                sha256_digest(name.encode()),
                log_vkey(home.origin, home.signer),
                suites.public_key(self.suite, home.recipient_private()),
                home.witness_vkeys,
            )
            for name, home in self.homes.items()
        )
        analyst = RosterAnalyst(
            "analyst-1",
            BUREAU,
            self.analyst.public_key,
            suites.public_key(self.suite, self.analyst_private),
        )
        members = [Organisation(f"{name}.gz.example") for name in self.departments] + [BUREAU]
        roster = Roster(
            COLLABORATION,
            version,
            previous,
            self.suite,
            START - timedelta(days=1),
            START + timedelta(days=60),
            tuple(RosterOrganisation(m, str(m)) for m in members),
            nodes,
            (analyst,),
            freshness_keys=(self.freshener.public_key,),
            coordinator=RosterCoordinator(
                COORDINATOR, log_vkey(f"{COORDINATOR}/journal/1", self.coordinator)
            ),
        )
        return replace(roster, **changes)

    def sign_roster(self, roster: Roster, signers: int = 2) -> bytes:
        return sign(ROSTER, roster.encode(), self.roots[:signers]).encode()

    def fresh(self, roster: Roster | None = None) -> bytes:
        """Return somebody's word that a roster is still the newest now."""
        about = roster or self.roster
        said = Freshness(COLLABORATION, about.version, about.digest, self.clock())
        return sign(FRESHNESS, said.encode(), [self.freshener]).encode()

    def stop(
        self, name: str, *stops: str, signer: KeySigner | None = None, at: datetime | None = None
    ) -> bytes:
        """Return a signed stop; each of `stops` is `scope` or `scope=value`."""
        text = f"""schema = "minshu-stop/1"
policy_id = "{name}.gz.example/node-a"
issued = {(at or self.clock()).isoformat()}
"""
        for stop in stops:
            scope, _, value = stop.partition("=")
            text += f'[[stops]]\nscope = "{scope}"\nreason = "调查中"\n' + (
                f'value = "{value}"\n' if value else ""
            )
        return sign_stop(text.encode(), signer or self.staff[name].dpo).encode()

    def policy(self, name: str, **changes: Any) -> bytes:
        """Return a signed policy envelope."""
        staff = self.staff[name]
        text = self.policy_of(name, **changes).encode()
        envelope = sign_policy(text, staff.dpo)
        return sign_policy(text, staff.owner, envelope).encode()

    def policy_of(self, name: str, **changes: Any) -> str:
        """Return the text of a department's policy."""
        staff = self.staff[name]
        return policy_text(
            name,
            key_id(self.analyst.public_key),
            key_id(staff.dpo.public_key),
            key_id(staff.owner.public_key),
            **changes,
        )

    def open(self, name: str, kind: type[State] = State) -> State:
        """Open a department's state, as its one process would."""
        home = self.homes[name]
        state = open_state(open_journal(home, self.clock), home.database)
        state.__class__ = kind
        return state

    def activate(self, name: str, **changes: Any) -> None:
        """Put the next version of a department's policy into force."""
        state, home = self.open(name), self.homes[name]
        force = InForce.load(state, home.name, home.signer.public_key)
        newest = state.policy()
        assert newest is not None
        envelope = self.policy(name, version=newest.version + 1, previous=newest.digest, **changes)
        activate_policy(state, force, envelope, self.clock)
        state.close()

    def write_list(self, name: str, people: Sequence[int], *, at: Path | None = None) -> Path:
        """Write a department's CSV file: id, street, month, and a phone number no job may read."""
        lines = ["id,street,seen,phone"]
        lines += [f"{person(n)},S{n % 3},2026-{1 + n % 9:02d},1390000{n:04d}" for n in people]
        path = at or self.folder / f"{name}.csv"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    def put_file(self, name: str, dataset: str, path: Path) -> None:
        """Put a file into a department's catalogue, as the engineer's command does; its keys are in `id`."""
        found = catalogue.scan(
            dataset,
            FilePlace(path),
            title="",
            key="id",
            published_keys=None,
            access=Access(),
            today=START.date(),
        )
        state = self.open(name)
        register(state, found)
        state.close()

    def _furnish(self, name: str) -> None:
        state = self.open(name)
        staff = self.staff[name]
        force = InForce.load(state, self.homes[name].name, self.homes[name].signer.public_key)
        pin_signers(state, staff.dpo.public_key, staff.owner.public_key)
        self.policies[name] = self.policy(name)
        activate_policy(state, force, self.policies[name], self.clock)
        if name in self.lists:
            path = self.write_list(name, self.lists[name])
            found = catalogue.scan(
                "people",
                FilePlace(path),
                title="",
                key="id",
                published_keys=None,
                access=Access(),
                today=START.date(),
            )
            with state.change() as change:
                change.put_dataset(found)
        state.close()

    # -- jobs ------------------------------------------------------------------------------------------------

    def spec(self, **changes: Any) -> JobSpec:
        """Return the standard question: in two sources and not on the register."""
        departments = {role: name for name, role in ROLES.items()}
        inputs = []
        for role in (Role("register"), Role("source-1"), Role("source-2")):
            columns = (
                {"key": "id"}
                if role == "register"
                else {"key": "id", "street": "street", "last_seen": "seen"}
            )
            organisation = Organisation(f"{departments[role]}.gz.example")
            inputs.append(JobInput(role, organisation, DatasetName("people"), columns))
        spec = JobSpec(
            job_type="crosscheck/1",
            params={"present_in": "at_least", "k": 2, "key_holder": "source-1", "areas": "demo-city"},
            inputs=tuple(inputs),
            roles={role: self.homes[name].name for name, role in ROLES.items()},
            purpose="P-1",
            legal_basis="L-1",
            expected_use="核实名单并补登",
            recipients=(Organisation("police.gz.example"),),
            requester=key_id(self.analyst.public_key),
            collaboration=COLLABORATION,
            roster_digest=self.roster.digest,
            created=self.clock(),
            expires=self.clock() + timedelta(days=2),
            nonce=secrets.token_hex(16),
        )
        return replace(spec, **changes)

    def sign_job(self, spec: JobSpec, signer: KeySigner | None = None, kind: str = JOB) -> bytes:
        return sign(kind, spec.encode(), [signer or self.analyst]).encode()


def default_lists() -> dict[str, list[int]]:
    """Return lists in which persons 300..311 are in both sources and not on the register."""
    flagged = list(range(300, 312))
    return {
        "police": list(range(120)),
        "human-resources": list(range(60)) + flagged,
        "health": list(range(40, 110)) + flagged,
    }


# -- the wire ------------------------------------------------------------------------------------------------


class Stream:
    """A data stream of one node, in memory and bounded."""

    def __init__(self, post: "Post", name: str, attempt: Attempt) -> None:
        self._post, self.name, self.attempt = post, name, attempt
        self.inbox: asyncio.Queue[bytes | None] = asyncio.Queue(64)
        self.closed = False

    async def send(self, frame: bytes) -> None:
        if self.closed:
            raise Unreachable("cut", code="link-broken")
        await self._post.relay(self, frame)

    async def receive(self) -> bytes | None:
        if self.closed:
            raise Unreachable("cut", code="link-broken")
        return await self.inbox.get()

    async def finish(self) -> None:
        await self.inbox.put(None)

    def close(self) -> None:
        self.closed = True


class Wire:
    """One node's uplink."""

    def __init__(self, post: "Post", name: str) -> None:
        self.post, self.name = post, name
        self.down: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.up = False

    async def run(
        self, hello: Callable[[], ControlRequest], take: Callable[[Message], Awaitable[None]]
    ) -> None:
        while True:
            if self.post.offline(self.name):
                await asyncio.sleep(0.02)
                continue
            self.up = True
            self.down = asyncio.Queue()
            await self.post.connected(self, hello().hello)
            while self.up and (data := await self.down.get()) is not None:
                with contextlib.suppress(DecodeError):  # as the real link does
                    await take(read_control(pb.ControlResponse.FromString(data)))
            self.up = False

    async def send(self, message: ControlRequest) -> None:
        if not self.up:
            raise Unreachable("down", code="link-down")
        data = message.SerializeToString()
        self.post.control.append(data)
        if self.post.lost(self.name, str(message.WhichOneof("kind"))):
            self.up = False
            self.drop()
            raise Unreachable("lost", code="link-broken")
        await self.post.heard(self.name, ControlRequest.FromString(data))

    def drop(self) -> None:
        self.down.put_nowait(None)

    async def open_data(self, attempt: Attempt) -> DataStream:
        return await self.post.open_data(self.name, attempt)

    def say(self, **kind: Any) -> None:
        [word] = kind
        if self.up and self.post.lost(self.name, word):
            self.drop()
        elif self.up:
            self.down.put_nowait(pb.ControlResponse(**kind).SerializeToString())


@dataclass
class Task:
    """A job as the stand-in sees it."""

    envelope: bytes
    attempt: int = 1
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    admissions: dict[str, bytes] = field(default_factory=dict)
    ended: dict[str, pb.RunEnded] = field(default_factory=dict)
    uploads: dict[str, list[pb.ReleaseUpload]] = field(default_factory=dict)
    admit_asked: bool = False
    started: bool = False


class Bystander:
    """Witnesses for a node that does not run: its keys, but a memory of its own, which begins empty."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.home, self.store = world, world.homes[name], MemoryStore()

    def answer(self, letter: audit_pb2.Letter) -> audit_pb2.Letter | None:
        answer = audit_pb2.Letter(id=letter.id)
        match letter.WhichOneof("body"):
            case "add_checkpoint":
                status, body = self.cosign(letter.add_checkpoint.body)
                answer.cosigned.CopyFrom(audit_pb2.Cosigned(status=status, body=body))
            case "ask_head":
                answer.head.CopyFrom(self.head(letter.ask_head.nonce, letter.ask_head.log))
            case _:
                return None
        return answer

    def cosign(self, body: bytes) -> tuple[int, bytes]:
        answer = add_checkpoint(
            body,
            known=lambda origin: [
                VerifierKey.parse(node.journal_vkey)
                for node in self.world.roster.nodes
                if node.journal_vkey.startswith(f"{origin}+")
            ],
            store=self.store,
            sign=lambda text: self.home.cosigner.sign(text, int(self.world.clock().timestamp())),
        )
        return answer.status, answer.body

    def head(self, nonce: bytes, log: str) -> audit_pb2.HeadSaid:
        note = self.store.get(log) or b""
        seen = Checkpoint.decode(Note.decode(note).text) if note else None
        root = None if seen is None else Digest(f"sha256:{seen.root.hex()}")
        head = Head(nonce, log, 0 if seen is None else seen.size, root, self.home.name, self.world.clock())
        statement = sign(HEAD, head.encode(), [self.home.signer]).encode()
        return audit_pb2.HeadSaid(statement=statement, checkpoint=note)


class Post:
    """An honest stand-in for the coordinator. Subclass and override a hook to get a dishonest one."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.wires: dict[str, Wire] = {}
        self.tasks: dict[JobId, Task] = {}
        self._specs: dict[JobId, JobSpec] = {}
        self.streams: dict[tuple[str, Attempt], Stream] = {}
        self.waiting: dict[tuple[str, Attempt], list[bytes]] = {}
        self.frames: list[tuple[Header, bytes]] = []
        self.control: list[bytes] = []
        self.hellos: list[pb.Hello] = []
        self.confirm = True
        self.freshness = b""
        self.down_nodes: set[str] = set()
        self.receipts: list[bytes] = []
        self.bystanders = {name: Bystander(world, name) for name in world.homes}

    # hooks ----------------------------------------------------------------------------------------------

    def roster_for(self, name: str) -> bytes:
        return self.world.roster_envelope

    def job_for(self, name: str, envelope: bytes) -> bytes:
        return envelope

    def admissions_for(self, name: str, admissions: Mapping[str, bytes]) -> Sequence[bytes]:
        return [admissions[other] for other in sorted(admissions)]

    def carried(self, header: Header, frame: bytes) -> Iterable[bytes]:
        return (frame,)

    def route(self, header: Header, frame: bytes) -> str:
        node = self.spec_of(header.job).roles[header.to]
        return next(name for name, home in self.world.homes.items() if home.name == node)

    def may_start(self, task: Task) -> bool:
        return True

    def passed_on(self, sender: str, to: str, letter: audit_pb2.Letter) -> Iterable[audit_pb2.Letter]:
        """Return what arrives of a letter, as its addressee gets it."""
        return (letter,)

    def witnesses(self, name: str) -> bool:
        """Whether a node that is not running at all has somebody who witnesses for it."""
        return name not in self.down_nodes

    def lost(self, name: str, kind: str) -> bool:
        """Whether a control message gets lost, and the stream with it."""
        return False

    def offline(self, name: str) -> bool:
        return name in self.down_nodes

    # -----------------------------------------------------------------------------------------------------

    async def connected(self, wire: Wire, hello: pb.Hello) -> None:
        self.hellos.append(hello)
        self.wires[wire.name] = wire
        roster = self.roster_for(wire.name)
        wire.say(welcome=pb.Welcome(coordinator="bureau/c", roster=roster, freshness=self.freshness))
        for job, task in self.tasks.items():
            if wire.name in task.ended:
                continue
            at = _pb(job, task.attempt)
            if wire.name not in task.verdicts:
                self._offer(wire.name, job, task)
            elif task.admit_asked and wire.name not in task.admissions:
                wire.say(admit=pb.Admit(attempt=at))
            elif task.started:
                admissions = self.admissions_for(wire.name, task.admissions)
                wire.say(start=pb.Start(attempt=at, admissions=admissions))

    def _offer(self, name: str, job: JobId, task: Task) -> None:
        offer = pb.JobOffer(attempt=_pb(job, task.attempt), job=self.job_for(name, task.envelope))
        if name in self.wires:
            self.wires[name].say(offer=offer)

    def participants(self, task: Task) -> list[str]:
        spec = JobSpec.decode(decode_envelope(task.envelope).payload)
        return [name for name, home in self.world.homes.items() if home.name in spec.roles.values()]

    def spec_of(self, job: JobId) -> JobSpec:
        """Return a submitted job; frames ask for it often."""
        if job not in self._specs:
            self._specs[job] = JobSpec.decode(decode_envelope(self.tasks[job].envelope).payload)
        return self._specs[job]

    def submit(self, spec: JobSpec, envelope: bytes | None = None) -> JobId:
        job = spec.job_id
        self.tasks[job] = task = Task(envelope or self.world.sign_job(spec))
        for name in self.participants(task):
            self._offer(name, job, task)
        return job

    def again(self, job: JobId) -> None:
        """Offer the next attempt."""
        old = self.tasks[job]
        self.tasks[job] = task = Task(old.envelope, old.attempt + 1)
        for name in self.participants(task):
            self._offer(name, job, task)

    def stop(self, job: JobId, code: str, attempt: int = 0) -> None:
        for wire in self.wires.values():
            wire.say(stop=pb.Stop(attempt=_pb(job, attempt), code=code, sentence=""))

    async def heard(self, name: str, message: ControlRequest) -> None:
        kind = message.WhichOneof("kind")
        value = getattr(message, kind)
        if kind == "letter":
            self.post_letter(name, value)
            return
        task = self.tasks.get(JobId(value.attempt.job))
        if task is None or value.attempt.attempt != task.attempt:
            return
        job = JobId(value.attempt.job)
        names = self.participants(task)
        if kind == "answer":
            verdict = Verdict.decode(decode_envelope(value.verdict).payload)
            task.verdicts[name] = verdict
            if not task.admit_asked and all(
                n in task.verdicts and task.verdicts[n].answer == "permit" for n in names
            ):
                task.admit_asked = True
                for n in names:
                    self.wires[n].say(admit=pb.Admit(attempt=_pb(job, task.attempt)))
        elif kind == "admitted":
            task.admissions[name] = value.admission
            if set(task.admissions) == set(names) and not task.started and self.may_start(task):
                self.start(job)
        elif kind == "ended":
            task.ended[name] = value
            if self.confirm:
                self.wires[name].say(noted=pb.RunNoted(attempt=_pb(job, task.attempt)))
            if value.state != "DONE":
                for other in set(names) - {name}:
                    if other in self.wires:
                        stop = pb.Stop(attempt=_pb(job, task.attempt), code="peer-failed", sentence="")
                        self.wires[other].say(stop=stop)
        elif kind == "upload":
            task.uploads.setdefault(value.release, []).append(value)
            if value.last and self.confirm:
                self.wires[name].say(stored=pb.ReleaseStored(release=value.release))

    def post_letter(self, sender: str, letter: audit_pb2.Letter) -> None:
        """Carry a node's letter as bytes to whom it is for; the coordinator keeps receipts."""
        to = letter.to
        letter.to = ""
        setattr(letter, "from", self.world.homes[sender].name)
        if to == COORDINATOR and letter.WhichOneof("body") == "receipt":
            self.receipts.append(letter.receipt.receipt)
            kept = audit_pb2.ReceiptKept(sha256=decode_envelope(letter.receipt.receipt).payload_digest)
            self.deliver(COORDINATOR, sender, audit_pb2.Letter(id=letter.id, receipt_kept=kept))
            return
        name = next((name for name, home in self.world.homes.items() if home.name == to), None)
        if name is None:
            return
        if name not in self.wires and self.witnesses(name):
            answer = self.bystanders[name].answer(letter)
            if answer is not None:
                self.deliver(to, sender, answer)
            return
        for passed in self.passed_on(sender, name, letter):
            if name in self.wires and self.wires[name].up:
                self.wires[name].say(letter=passed)

    def deliver(self, who: str, to: str, letter: audit_pb2.Letter) -> None:
        """Hand a node a letter that says it is from `who`."""
        setattr(letter, "from", who)
        if to in self.wires:
            self.wires[to].say(letter=letter)

    def start(self, job: JobId) -> None:
        task = self.tasks[job]
        task.started = True
        for name in self.participants(task):
            admissions = self.admissions_for(name, task.admissions)
            self.wires[name].say(start=pb.Start(attempt=_pb(job, task.attempt), admissions=admissions))

    async def open_data(self, name: str, attempt: Attempt) -> Stream:
        stream = self.streams[name, attempt] = Stream(self, name, attempt)
        for frame in self.waiting.pop((name, attempt), []):
            await stream.inbox.put(frame)
        return stream

    async def relay(self, sender: Stream, frame: bytes) -> None:
        header = read_header(frame)
        self.frames.append((header, frame))
        for carried in self.carried(header, frame):
            key = (self.route(header, carried), sender.attempt)
            if key in self.streams:
                await self.streams[key].inbox.put(carried)
            else:
                self.waiting.setdefault(key, []).append(carried)

    def release(self, job: JobId) -> bytes:
        """Return the sealed bytes of the one uploaded release."""
        [pieces] = self.tasks[job].uploads.values()
        return b"".join(piece.piece for piece in pieces)


def _pb(job: JobId, attempt: int) -> pb.Attempt:
    return pb.Attempt(job=job, attempt=attempt)


# -- running nodes -------------------------------------------------------------------------------------------


class Crash(BaseException):
    """The process is gone."""


class Fragile(State):
    """A state whose process dies when an entry of kind `at` is written: `before` the commit, or after it."""

    at = ""
    before = True
    dead = False

    @contextmanager
    def change(self) -> Iterator[Change]:
        if self.dead:
            raise Crash
        kinds: list[str] = []
        with super().change() as change:
            log = change.log

            def logged(kind: str, *arguments: Any, **named: Any) -> int:
                kinds.append(kind)
                return log(kind, *arguments, **named)

            answering = change.answering

            def answered(attempt: Attempt) -> None:
                kinds.append("ledger.answering")  # has no entry of its own
                answering(attempt)

            swap = change.swap_head

            def swapped(*arguments: Any) -> bool:
                kinds.append("witness.head")  # has no entry of its own
                return swap(*arguments)

            change.swap_head = swapped  # type: ignore[method-assign]  # and what was cosigned
            change.log = logged  # type: ignore[method-assign]  # to see which entry is written
            change.answering = answered  # type: ignore[method-assign]  # and which mark
            yield change
            if self.before and self.at in kinds:
                self.die()
        if self.at in kinds:
            self.die()

    def die(self) -> None:
        self.dead = True
        raise Crash


class Station:
    """One running node."""

    def __init__(
        self,
        world: World,
        post: Post,
        name: str,
        kind: type[State] = State,
        *,
        recorder: Recorder | None = None,
        **settings: Any,
    ) -> None:
        self.world, self.post, self.name = world, post, name
        self.home = world.homes[name]
        self.state = world.open(name, kind)
        self.config = replace(self.home.config, desk_poll_s=0.02, **settings)
        self.wire = Wire(post, name)
        enrolled = self.home.enrolled()
        assert enrolled is not None
        self.log = Log(self.home.log, world.clock)
        self.watch = Watch(world.clock, world.clock.ticks)
        self.agent = Agent(
            self.home,
            self.config,
            self.state,
            enrolled,
            self.wire,
            signer=self.home.signer,
            log=self.log,
            now=world.clock,
            monotonic=time.monotonic,
            rand=secrets.token_bytes,
            recorder=recorder,
            clock=self.watch,
        )
        self.task = asyncio.create_task(self.agent.run())

    async def close(self) -> None:
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await self.task
        self.state.close()
        self.log.close()

    async def kill(self) -> None:
        """End it as a crash would: what its state refuses to write by then is not written."""
        self.task.cancel()
        with contextlib.suppress(BaseException):
            await self.task
        for live in self.agent.runner._live.values():
            if live.task is not None and live.task.done():
                live.task.exception()  # seen: it is the crash
        self.state.close()
        self.log.close()

    def ready(self) -> bool:
        """Tell whether it has taken its welcome, and waits for no witness."""
        return "connected" in self.home.log.read_text() and not self.agent.cosigning.settling()

    def run(self, job: JobId, attempt: int = 1) -> RunState | None:
        run = self.state.run(Attempt(job, attempt))
        return run.state if run else None

    def entries(self, kind: str = "") -> list[Any]:
        return [e for e in self.state.journal.entries() if e.kind.startswith(kind)]

    def approve(self, job: JobId, signer: KeySigner, **changes: Any) -> dict[str, Any]:
        """Approve as a person would; `changes` alter the approval before it is signed."""
        return self.agent.desk.handle("approve", self.approval(job, signer, **changes))

    def approval(self, job: JobId, signer: KeySigner, **changes: Any) -> dict[str, Any]:
        from protocols.envelope import APPROVAL
        from protocols.wire import Approval

        force = self.agent.force
        data = self.state.job(job)
        assert data is not None
        assert force.policy is not None
        spec = JobSpec.decode(decode_envelope(data).payload)
        decision = judge(self.state, force, spec, self.state.runs(job)[0].attempt, self.world.clock())
        assert isinstance(decision, Ask), decision
        envelope = make_approval(
            spec, decision, force.policy, signer=signer, now=self.world.clock(), rand=secrets.token_bytes
        )
        if changes:
            approval = replace(Approval.decode(decode_envelope(envelope).payload), **changes)
            envelope = sign(APPROVAL, approval.encode(), [signer]).encode()
        return {"job": job, "envelope": b64encode(envelope), "key": b64encode(signer.public_key)}

    def approve_fully(self, job: JobId) -> None:
        staff = self.world.staff[self.name]
        self.approve(job, staff.dpo)
        self.approve(job, staff.owner)


@asynccontextmanager
async def running(
    world: World,
    post: Post | None = None,
    names: Sequence[str] | None = None,
    *,
    record: Path | None = None,
    ready: bool = True,
    **settings: Any,
) -> AsyncIterator[tuple[Post, dict[str, Station]]]:
    """Run nodes until the block ends, from when each has its witnesses' word on, unless `ready` is false."""
    mail = post or Post(world)
    names = world.departments if names is None else names
    stations = {
        name: Station(world, mail, name, recorder=Recorder(record / name) if record else None, **settings)
        for name in names
    }
    try:
        await until(lambda: set(mail.wires) >= set(names))
        if ready:
            await until(lambda: all(map(Station.ready, stations.values())))
        yield mail, stations
    finally:
        for station in stations.values():
            await station.close()


async def until(holds: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + patience_s
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError("it never came to hold")
        await asyncio.sleep(0.01)


async def answered(post: Post, job: JobId) -> Task:
    """Wait until every participant has answered."""
    task = post.tasks[job]
    await until(lambda: set(task.verdicts) == set(post.participants(task)))
    return task


async def approve_all(post: Post, stations: Mapping[str, Station], job: JobId) -> None:
    """Wait for the offers and give every approval that is asked for."""
    task = await answered(post, job)
    for name, verdict in list(task.verdicts.items()):
        if verdict.answer == "ask":
            stations[name].approve_fully(job)


async def over(post: Post, job: JobId) -> Task:
    """Wait until every run of the attempt has ended."""
    task = post.tasks[job]
    await until(lambda: set(task.ended) == set(post.participants(task)))
    return task
