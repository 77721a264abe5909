"""Jobs in many processes that all want the last unit of a quota, and real decisions about them.

Every job decides over the ledger before anyone sets anything aside, so that all fifty are told yes; then all
try at once. What is raced are SQLite connections on one file, as two processes of a node would have them.
"""

import multiprocessing
import random
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache
from itertools import count
from multiprocessing.synchronize import Barrier
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from simulator import START, World

from node import ledger
from node.gate import Allowed
from node.ledger import Ledger
from node.rpc import Attempt
from policies.decide import decide
from policies.decision import Decision, Permit, Refuse, VerifiedApproval
from policies.model import ActivePolicy
from policies.parse import parse_policy
from protocols.dp.cost import total
from protocols.encoding import sha256_digest
from protocols.envelope import decode_envelope, key_id
from protocols.errors import StateConflict
from protocols.ids import Digest, JobId, NodeName
from protocols.wire import Approval, JobSpec, Roster

JOBS: Final = 50
PROCESSES: Final = 5
TRIES: Final = 3
PATIENCE_S: Final = 60.0

_meeting: list[Barrier] = []


@dataclass(frozen=True)
class Case:
    """Everything that a decision goes by, without a clock, a file or a key."""

    policy: bytes
    node: NodeName
    roster: bytes
    spec: bytes
    dpo: str
    owner: str

    def decide(self, read: Ledger, attempt: int = 1) -> tuple[Decision, JobSpec]:
        """Return what the department's node would say of the job, everybody having approved."""
        spec, active, roster = JobSpec.decode(self.spec), active_of(self.policy), roster_of(self.roster)
        first = decide(active, spec, node=self.node, roster=roster, now=START, history=read, attempt=attempt)
        if isinstance(first, Refuse):
            return first, spec
        approvals = [self._approval(spec, active, first.terms.cost.encode(), who) for who in ("dpo", "owner")]
        return (
            decide(
                active,
                spec,
                node=self.node,
                roster=roster,
                now=START,
                approvals=approvals,
                history=read,
                attempt=attempt,
            ),
            spec,
        )

    def _approval(self, spec: JobSpec, active: ActivePolicy, cost: str, who: str) -> VerifiedApproval:
        key = key_id(bytes.fromhex(getattr(self, who)))
        approval = Approval(
            job=spec.job_id,
            node=self.node,
            policy_digest=active.digest,
            rule="R1",
            cost=cost,
            issued=START,
            expires=START + timedelta(days=1),
            nonce="0" * 32,
        )
        return VerifiedApproval(who, key, approval, Digest(sha256_digest(approval.encode())))


@cache
def active_of(policy: bytes) -> ActivePolicy:
    parsed = parse_policy(policy)
    return ActivePolicy(parsed.policy, parsed.digest)


@cache
def roster_of(roster: bytes) -> Roster:
    return Roster.decode(roster)


def case_of(world: World, spec: JobSpec, **policy: Any) -> Case:
    """Return the case of a job at the health department under that policy."""
    staff = world.staff["health"]
    return Case(
        decode_envelope(world.policy("health", **policy)).payload,
        world.homes["health"].name,
        world.roster.encode(),
        spec.encode(),
        staff.dpo.public_key.hex(),
        staff.owner.public_key.hex(),
    )


def reserve(connection: sqlite3.Connection, case: Case, *, meet: Barrier | None = None) -> str:
    """Decide and set aside, again where another job came first; return the answer's code."""
    for _ in range(TRIES):
        read = Ledger(connection)
        decision, spec = case.decide(read)
        if meet is not None:
            meet.wait(PATIENCE_S)
            meet = None
        if not isinstance(decision, Permit):
            return decision.code
        version = read.version(decision.terms.source)
        allowed = Allowed(spec, decision, active_of(case.policy), roster_of(case.roster), version, START)
        connection.execute("BEGIN IMMEDIATE")
        try:
            ledger.reserve(connection, allowed.row(Attempt(spec.job_id, 1)), version)
            connection.execute("COMMIT")
        except StateConflict as error:
            connection.execute("ROLLBACK")
            if error.code != "ledger-conflict":
                raise
        else:
            return decision.code
    return "ledger-busy"


def connect(database: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(database, isolation_level=None, timeout=PATIENCE_S)
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def founded(database: Path) -> sqlite3.Connection:
    """Return a new, empty ledger."""
    connection = connect(database)
    connection.execute("PRAGMA journal_mode = WAL")
    for statement in ledger.SCHEMA:
        connection.execute(statement)
    return connection


def _begin(meeting: Barrier) -> None:
    _meeting.append(meeting)


def _play(database: Path, cases: Sequence[Case]) -> list[str]:
    """Run some of the jobs, each on a connection and in a thread of its own."""

    def one(case: Case) -> str:
        connection = connect(database)
        try:
            return reserve(connection, case, meet=_meeting[0])
        finally:
            connection.close()

    with ThreadPoolExecutor(len(cases)) as threads:
        return list(threads.map(one, cases))


class Bench:
    """Processes that stay, and races among them."""

    def __init__(self, world: World, folder: Path) -> None:
        self._world = world
        self._folder = Path(tempfile.mkdtemp(dir=folder))
        self._numbers = count()
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["ledger_race"])
        self._pool = context.Pool(PROCESSES, _begin, (context.Barrier(JOBS),))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.terminate()
        self._pool.join()

    def race(self, *, seed: int) -> None:
        """Race fifty jobs for the last unit of a quota, and check that one has it and the ledger adds up."""
        draw = random.Random(seed)  # which jobs race, no secret
        world, limit = self._world, draw.randint(1, 5)
        database = self._folder / f"{next(self._numbers)}.db"  # a seed may be raced again
        book = founded(database)
        quotas: dict[str, Any] = {"queries": limit, "rows": None}
        if draw.random() < 0.5:  # the quota may also be one of records, a thousand for each job
            quotas = {"queries": None, "rows": 1000 * limit}
        specs = [replace(world.spec(), nonce=f"{draw.getrandbits(128):032x}") for _ in range(JOBS + limit)]
        before, racing = specs[:limit][1:], specs[limit:]
        for spec in before:
            assert reserve(book, case_of(world, spec, **quotas)) == "permitted"
        base = case_of(world, racing[0], **quotas)
        cases = [replace(base, spec=spec.encode()) for spec in racing]
        each = JOBS // PROCESSES
        parts = [(database, cases[start : start + each]) for start in range(0, JOBS, each)]
        answers = Counter(code for part in self._pool.starmap(_play, parts, chunksize=1) for code in part)
        assert answers == {"permitted": 1, "budget-exceeded": JOBS - 1}, f"seed {seed}: {answers}"
        spent = total(past.cost for past in Ledger(book).of("people"))
        assert (spent.queries, spent.rows) == (limit, 1000 * limit)
        jobs = {JobId(past.job) for past in Ledger(book).of("people")}
        assert len(jobs & {spec.job_id for spec in racing}) == 1
        book.close()
