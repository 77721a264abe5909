"""What a node remembers, in the same SQLite database as its journal.

A change of state and the journal entry that says so are one transaction: `with state.change() as change:`
gives methods that write and `change.log(kind, body, …)` that appends. Reading needs no transaction.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from audit.entries import Entry, PolicyRef, parse_time
from audit.log import Journal
from audit.statements import budget_facts, returned_facts
from node import ledger
from node.description import NO_DESCRIPTION, Description
from node.ledger import Ledger, Rounds, Row
from node.rpc import Attempt
from node.sources import Place, SourceColumn, place_from_json
from policies.attempts import paid_rounds, returned_lines, runs_in_rounds
from policies.witnesses import Witnesses
from protocols.dp.cost import Cost
from protocols.encoding import sha256_digest
from protocols.errors import StateConflict
from protocols.ids import DatasetName, Digest, JobId, NodeName, Organisation, Role
from protocols.wire import CostLine, JobSpec, parse_utc, utc_text

FORMAT: Final = 6
"""Of the tables below. A database of format 3, 4 or 5 is brought to it, one of another release is refused."""

_PLACES: Final = (
    "ALTER TABLE dataset RENAME COLUMN path TO place",
    "UPDATE dataset SET place = json_object('file', place)",
    "ALTER TABLE dataset ADD COLUMN description TEXT NOT NULL DEFAULT '{}'",
)
"""Makes the datasets of format 5 those of format 6: a table need not be a file."""

_ADDED: Final = {
    3: (ledger.ADD_PARTNERS, ledger.ADD_ROUNDS, *_PLACES),
    4: (ledger.ADD_ROUNDS, *_PLACES),
    5: _PLACES,
}
"""What an older format lacks."""

_FORMAT_OF: Final = """SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE name = 'pin'), user_version
    FROM pragma_user_version"""

_SCHEMA: Final = (
    "CREATE TABLE IF NOT EXISTS pin (role TEXT NOT NULL, key BLOB NOT NULL UNIQUE)",
    """CREATE TABLE IF NOT EXISTS roster (
        version INTEGER PRIMARY KEY, digest TEXT NOT NULL, envelope BLOB NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS freshness (
        version INTEGER PRIMARY KEY REFERENCES roster (version), envelope BLOB NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS rotation (
        sha256 TEXT PRIMARY KEY, envelope BLOB NOT NULL, stored INTEGER NOT NULL DEFAULT 0)""",
    """CREATE TABLE IF NOT EXISTS policy (
        version INTEGER PRIMARY KEY, digest TEXT NOT NULL, envelope BLOB NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS dataset (
        name TEXT PRIMARY KEY, title TEXT NOT NULL, place TEXT NOT NULL, key TEXT NOT NULL,
        columns TEXT NOT NULL, rows INTEGER NOT NULL, distinct_keys INTEGER NOT NULL,
        published_keys INTEGER NOT NULL, snapshot TEXT NOT NULL,
        description TEXT NOT NULL DEFAULT '{}')""",
    # What the department's catalogue lists that is not registered yet.
    """CREATE TABLE IF NOT EXISTS announced (
        name TEXT PRIMARY KEY, columns TEXT NOT NULL, description TEXT NOT NULL)""",
    # What the newest look at a dataset found, and of which state of it: the record that admissions cite.
    """CREATE TABLE IF NOT EXISTS preflight (
        dataset TEXT PRIMARY KEY, fingerprint TEXT NOT NULL, record BLOB NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS stop (
        digest TEXT PRIMARY KEY, envelope BLOB NOT NULL, lifted INTEGER)""",
    """CREATE TABLE IF NOT EXISTS job (
        job TEXT PRIMARY KEY, envelope BLOB, requester TEXT NOT NULL, purpose TEXT NOT NULL,
        received TEXT NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS run (
        job TEXT NOT NULL REFERENCES job (job), attempt INTEGER NOT NULL, state TEXT NOT NULL,
        code TEXT NOT NULL DEFAULT '', sentence TEXT NOT NULL DEFAULT '', hint TEXT NOT NULL DEFAULT '',
        verdict BLOB NOT NULL DEFAULT x'', needed INTEGER NOT NULL DEFAULT 0,
        given INTEGER NOT NULL DEFAULT 0, charged INTEGER NOT NULL DEFAULT 0,
        opened INTEGER NOT NULL DEFAULT 0, noted INTEGER NOT NULL DEFAULT 0, question TEXT,
        PRIMARY KEY (job, attempt))""",
    "CREATE INDEX IF NOT EXISTS run_by_question ON run (question)",
    """CREATE TABLE IF NOT EXISTS approval (
        digest TEXT PRIMARY KEY, job TEXT NOT NULL, key BLOB NOT NULL, envelope BLOB NOT NULL,
        used INTEGER NOT NULL DEFAULT 0)""",
    """CREATE TABLE IF NOT EXISTS input (
        job TEXT NOT NULL, attempt INTEGER NOT NULL, dataset TEXT NOT NULL, salt BLOB NOT NULL,
        commitment TEXT NOT NULL, quality BLOB NOT NULL, PRIMARY KEY (job, attempt))""",
    # What was read, to the row: of job types that tell nobody, the quality record does not say it.
    """CREATE TABLE IF NOT EXISTS input_counts (
        job TEXT NOT NULL, attempt INTEGER NOT NULL, counts TEXT NOT NULL, PRIMARY KEY (job, attempt))""",
    """CREATE TABLE IF NOT EXISTS output (
        release TEXT PRIMARY KEY, job TEXT NOT NULL, attempt INTEGER NOT NULL, name TEXT NOT NULL,
        class TEXT NOT NULL, recipient TEXT NOT NULL, sha256 TEXT NOT NULL, note BLOB NOT NULL,
        stored INTEGER NOT NULL DEFAULT 0, expires TEXT NOT NULL, deleted INTEGER NOT NULL DEFAULT 0,
        log TEXT NOT NULL, seq INTEGER NOT NULL, cosigned INTEGER NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS desk (
        id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, body TEXT NOT NULL, answer TEXT)""",
    """CREATE TABLE IF NOT EXISTS outcome (
        sha256 TEXT PRIMARY KEY, job TEXT NOT NULL, payload BLOB NOT NULL,
        stored INTEGER NOT NULL DEFAULT 0, code TEXT NOT NULL DEFAULT '')""",
    # What this node saw last of each log that it cosigns, and what it showed to contradict itself.
    "CREATE TABLE IF NOT EXISTS witness_head (origin TEXT PRIMARY KEY, note BLOB NOT NULL)",
    """CREATE TABLE IF NOT EXISTS witness_conflict (
        sha256 TEXT PRIMARY KEY, origin TEXT NOT NULL, code TEXT NOT NULL, day TEXT NOT NULL)""",
    # Whose quorum still has to see that the witnesses of a log changed, and in which entry they did.
    """CREATE TABLE IF NOT EXISTS witness_change (
        log TEXT PRIMARY KEY, seq INTEGER NOT NULL, organisations TEXT NOT NULL,
        quorum INTEGER NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS receipt_due (
        sha256 TEXT NOT NULL, peer TEXT NOT NULL, payload BLOB NOT NULL, PRIMARY KEY (sha256, peer))""",
    """CREATE TABLE IF NOT EXISTS receipt_kept (
        job TEXT NOT NULL, attempt INTEGER NOT NULL, peer TEXT NOT NULL, release TEXT NOT NULL,
        sha256 TEXT NOT NULL, PRIMARY KEY (job, attempt, peer, release))""",
    *ledger.SCHEMA,
    f"PRAGMA user_version = {FORMAT}",
)


class RunState(StrEnum):
    """Where this node's part in one attempt stands."""

    CHECKING = "CHECKING"
    AWAITING_APPROVAL = "AWAITING_APPROVAL"
    ACCEPTED = "ACCEPTED"
    RUNNING = "RUNNING"
    RELEASING = "RELEASING"
    DONE = "DONE"
    REFUSED = "REFUSED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMED_OUT = "TIMED_OUT"
    EXPIRED = "EXPIRED"


WAITING: Final = (RunState.CHECKING, RunState.AWAITING_APPROVAL, RunState.ACCEPTED)
"""Nothing has left this node and nothing was charged."""

NOT_OVER: Final = (*WAITING, RunState.RUNNING, RunState.RELEASING)
"""Not at its end."""


@dataclass(frozen=True, slots=True)
class Signed:
    """A stored signed document: the newest roster or policy."""

    version: int
    digest: Digest
    envelope: bytes


@dataclass(frozen=True, slots=True)
class StoredRotation:
    """A signed announcement of the next identity key. `stored`: the coordinator has it."""

    sha256: Digest
    envelope: bytes
    stored: bool


@dataclass(frozen=True, slots=True)
class StoredOutcome:
    """A filed outcome. `stored`: the coordinator has it. `code`: why it does not keep it, empty else."""

    sha256: Digest
    job: JobId
    payload: bytes
    stored: bool
    code: str


@dataclass(frozen=True, slots=True)
class StoredStop:
    """A stop document that was applied; `lifted` by that policy version, None while it holds."""

    digest: Digest
    envelope: bytes
    lifted: int | None


@dataclass(frozen=True, slots=True)
class Dataset:
    """A catalogue entry. `published_keys` is what other organisations were told, fixed when it was added."""

    name: DatasetName
    title: str
    place: Place
    key: str
    columns: tuple[SourceColumn, ...]
    rows: int
    distinct_keys: int
    published_keys: int
    snapshot: str
    description: Description = NO_DESCRIPTION


@dataclass(frozen=True, slots=True)
class Announced:
    """A dataset that is in the department's catalogue, but not registered yet: nobody can ask about it."""

    name: DatasetName
    columns: tuple[SourceColumn, ...]
    description: Description


@dataclass(frozen=True, slots=True)
class StoredRun:
    """One run as stored. `charged`: commit point 1 was passed. `opened`: a frame may have left."""

    attempt: Attempt
    state: RunState
    code: str
    sentence: str
    hint: str
    verdict: bytes
    needed: int
    given: int
    charged: bool
    opened: bool
    noted: bool


@dataclass(frozen=True, slots=True)
class StoredApproval:
    """One recorded approval, with the public key that signed it. `used`: its job was answered by it."""

    digest: Digest
    key: bytes
    envelope: bytes
    used: bool = False


@dataclass(frozen=True, slots=True)
class StoredOutput:
    """One committed release. Its sealed bytes lie in a file until `expires`; `sha256` is theirs.

    `stored`: its recipient has it. `deleted`: the bytes are gone, and the journal says so. `log` and `seq`:
    where its `output.commit` entry stands. `cosigned`: the policy that it was made under lets nothing leave
    before witnesses have seen that.
    """

    release: str
    attempt: Attempt
    name: str
    output_class: str
    recipient: str
    sha256: Digest
    note: bytes
    stored: bool
    expires: datetime
    deleted: bool = False
    log: str = ""
    seq: int = 0
    cosigned: bool = False


@dataclass(frozen=True, slots=True)
class WitnessChange:
    """The witnesses of a log changed in entry `seq`, and a quorum of those before has not seen that yet.

    `before` are those that last saw a change, as they were then; its nodes' keys are not kept.
    """

    seq: int
    before: Witnesses


@dataclass(frozen=True, slots=True)
class DueReceipt:
    """A receipt that a peer has not confirmed; `sha256` is its payload's digest."""

    sha256: Digest
    peer: NodeName
    payload: bytes


@dataclass(frozen=True, slots=True)
class OldRecord:
    """What is kept of a job beyond the journal: to be deleted after `retention.journal_days`.

    `inputs` are the salts and quality records of its attempts: dataset and digest of the record.
    """

    job: JobId
    envelope: bytes | None
    inputs: tuple[tuple[Attempt, DatasetName, Digest], ...]


@dataclass(frozen=True, slots=True)
class DeskItem:
    """One command of another terminal."""

    number: int
    kind: str
    body: Mapping[str, Any]


class Reader:
    """Reads a node's state; any process may."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Read through `connection`."""
        self._reader = connection
        self._reader.row_factory = sqlite3.Row
        self._ledger_read: dict[str, ledger.Read] = {}

    def _all(self, query: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        try:
            return self._reader.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise StateConflict(
                f"the node's database cannot be read ({getattr(error, 'sqlite_errorname', 'error')})",
                code="state-unreadable",
                hint="check the disk; if the file is damaged, stop and keep it as evidence",
            ) from None

    def _one(self, query: str, values: Sequence[Any] = ()) -> sqlite3.Row | None:
        rows = self._all(query, values)
        return rows[0] if rows else None

    def check_format(self) -> None:
        """Refuse tables that this release does not know.

        Raises:
            StateConflict: `state-format`.
        """
        [row] = self._all(_FORMAT_OF)
        _require_format(*row)

    def pins(self) -> dict[str, tuple[bytes, ...]]:
        """Return the pinned policy signers, role → raw public keys; empty before they are pinned."""
        pinned: dict[str, tuple[bytes, ...]] = {}
        for row in self._all("SELECT role, key FROM pin ORDER BY role, key"):
            pinned[row["role"]] = (*pinned.get(row["role"], ()), bytes(row["key"]))
        return pinned

    def roster(self) -> Signed | None:
        """Return the newest activated roster."""
        return self._signed("SELECT * FROM roster ORDER BY version DESC LIMIT 1")

    def rosters(self) -> list[Signed]:
        """Return every roster of the chain that was walked here, oldest first."""
        rows = self._all("SELECT * FROM roster ORDER BY version")
        return [Signed(row["version"], Digest(row["digest"]), row["envelope"]) for row in rows]

    def freshness(self, version: int) -> bytes:
        """Return the newest freshness statement on that roster version, an envelope; empty for none."""
        row = self._one("SELECT envelope FROM freshness WHERE version = ?", (version,))
        return b"" if row is None else row["envelope"]

    def rotation(self) -> "StoredRotation | None":
        """Return the newest announcement of this node's next identity key."""
        row = self._one("SELECT * FROM rotation ORDER BY rowid DESC LIMIT 1")
        return (
            None
            if row is None
            else StoredRotation(Digest(row["sha256"]), row["envelope"], bool(row["stored"]))
        )

    def policy(self) -> Signed | None:
        """Return the newest activated policy."""
        return self._signed("SELECT * FROM policy ORDER BY version DESC LIMIT 1")

    def _signed(self, query: str) -> Signed | None:
        row = self._one(query)
        return None if row is None else Signed(row["version"], Digest(row["digest"]), row["envelope"])

    def stops(self) -> list[StoredStop]:
        """Return every stop document that was applied here, lifted ones too, oldest first."""
        rows = self._all("SELECT * FROM stop ORDER BY rowid")
        return [StoredStop(Digest(r["digest"]), r["envelope"], r["lifted"]) for r in rows]

    def ledger(self) -> Ledger:
        """Return the ledger, for one decision."""
        return Ledger(self._reader, self._ledger_read)

    def datasets(self) -> list[Dataset]:
        """Return the catalogue, by name."""
        return [_dataset(row) for row in self._all("SELECT * FROM dataset ORDER BY name")]

    def dataset(self, name: str) -> Dataset | None:
        """Return one catalogue entry."""
        row = self._one("SELECT * FROM dataset WHERE name = ?", (name,))
        return None if row is None else _dataset(row)

    def preflight(self, name: str) -> tuple[str, bytes] | None:
        """Return fingerprint and record of the newest look at a dataset."""
        row = self._one("SELECT fingerprint, record FROM preflight WHERE dataset = ?", (name,))
        return None if row is None else (row["fingerprint"], row["record"])

    def announced(self) -> list[Announced]:
        """Return the datasets that are catalogued but not registered, by name."""
        return [
            Announced(
                DatasetName(row["name"]),
                _columns(row["columns"]),
                Description.from_json(json.loads(row["description"])),
            )
            for row in self._all("SELECT * FROM announced ORDER BY name")
        ]

    def described(self, name: str) -> Description:
        """Return what is said about a dataset, registered or announced; nothing for one that is neither."""
        said = {each.name: each.description for each in self.announced()}
        known = self.dataset(name)
        return said.get(DatasetName(name), NO_DESCRIPTION) if known is None else known.description

    def job(self, job: JobId) -> bytes | None:
        """Return the envelope of an authentic job that was offered here; None once it is deleted, too."""
        row = self._one("SELECT envelope FROM job WHERE job = ?", (job,))
        return None if row is None else row["envelope"]

    def jobs_beginning(self, digits: str) -> list[JobId]:
        """Return the ids of offered jobs whose hex digits begin so, at most two."""
        begin = f"sha256:{digits}"
        rows = self._all("SELECT job FROM job WHERE substr(job, 1, ?) = ? LIMIT 2", (len(begin), begin))
        return [JobId(row["job"]) for row in rows]

    def run(self, attempt: Attempt) -> StoredRun | None:
        """Return one run."""
        row = self._one("SELECT * FROM run WHERE job = ? AND attempt = ?", (attempt.job, attempt.number))
        return None if row is None else _run(row)

    def runs(self, job: JobId | None = None) -> list[StoredRun]:
        """Return all runs, or those of one job, newest first."""
        if job is None:
            return [_run(row) for row in self._all("SELECT * FROM run ORDER BY rowid DESC")]
        rows = self._all("SELECT * FROM run WHERE job = ? ORDER BY attempt DESC", (job,))
        return [_run(row) for row in rows]

    def runs_in(self, *states: RunState) -> list[StoredRun]:
        """Return the runs in these states, oldest first."""
        rows = self._all(
            "SELECT run.* FROM run JOIN json_each(?) AS wanted ON state = wanted.value ORDER BY run.rowid",
            (json.dumps(states),),
        )
        return [_run(row) for row in rows]

    def unreported(self) -> list[StoredRun]:
        """Return ended runs whose end the coordinator has not noted. Refusals travel as verdicts instead."""
        ends = (RunState.DONE, RunState.FAILED, RunState.CANCELLED, RunState.TIMED_OUT)
        return [run for run in self.runs_in(*ends) if not run.noted]

    def answered(self, question: Digest, requester: str, purpose: str, other_than: JobId) -> JobId | None:
        """Return the newest job of a requester and purpose that ended well here over the same question."""
        row = self._one(
            "SELECT job FROM run JOIN job USING (job) WHERE question = ? AND state = 'DONE'"
            " AND requester = ? AND purpose = ? AND job <> ? ORDER BY run.rowid DESC LIMIT 1",
            (question, requester, purpose, other_than),
        )
        return None if row is None else JobId(row["job"])

    def questions(self, job: JobId) -> dict[int, Digest]:
        """Return what each attempt of a job that passed commit point 1 was asked here, by its number."""
        rows = self._all("SELECT attempt, question FROM run WHERE job = ? AND question IS NOT NULL", (job,))
        return {row["attempt"]: Digest(row["question"]) for row in rows}

    def approvals(self, job: JobId) -> list[StoredApproval]:
        """Return the approvals recorded for a job."""
        rows = self._all("SELECT * FROM approval WHERE job = ? ORDER BY rowid", (job,))
        return [StoredApproval(Digest(r["digest"]), r["key"], r["envelope"], bool(r["used"])) for r in rows]

    def approved_jobs(self) -> list[JobId]:
        """Return the jobs that have approvals which are not used up."""
        return [JobId(r["job"]) for r in self._all("SELECT DISTINCT job FROM approval WHERE used = 0")]

    def used_approvals(self, other_than: JobId) -> frozenset[Digest]:
        """Return the digests of approvals that other jobs have."""
        rows = self._all("SELECT digest FROM approval WHERE job <> ?", (other_than,))
        return frozenset(Digest(row["digest"]) for row in rows)

    def outputs(self, job: JobId | None = None, release: str = "") -> list[StoredOutput]:
        """Return committed releases: all, of one job, or one."""
        query = "SELECT * FROM output"
        values: tuple[str, ...] = ()
        if release:
            query, values = query + " WHERE release = ?", (release,)
        elif job:
            query, values = query + " WHERE job = ?", (job,)
        return [
            StoredOutput(
                r["release"],
                Attempt(JobId(r["job"]), r["attempt"]),
                r["name"],
                r["class"],
                r["recipient"],
                Digest(r["sha256"]),
                r["note"],
                bool(r["stored"]),
                parse_utc(r["expires"]),
                bool(r["deleted"]),
                r["log"],
                r["seq"],
                bool(r["cosigned"]),
            )
            for r in self._all(query + " ORDER BY rowid", values)
        ]

    def outcomes(self, job: JobId | None = None) -> list[StoredOutcome]:
        """Return the filed outcomes, all or of one job, oldest first."""
        rows = self._all("SELECT * FROM outcome WHERE ?1 IS NULL OR job = ?1 ORDER BY rowid", (job,))
        return [
            StoredOutcome(Digest(r["sha256"]), JobId(r["job"]), r["payload"], bool(r["stored"]), r["code"])
            for r in rows
        ]

    def witness_head(self, origin: str) -> bytes | None:
        """Return the newest checkpoint of another log that this node cosigned, a signed note."""
        row = self._one("SELECT note FROM witness_head WHERE origin = ?", (origin,))
        return None if row is None else row["note"]

    def witness_heads(self) -> list[tuple[str, bytes]]:
        """Return origin and newest cosigned checkpoint of every log that this node cosigned."""
        return [(row["origin"], row["note"]) for row in self._all("SELECT * FROM witness_head")]

    def conflict_known(self, sha256: str) -> bool:
        """Tell whether a conflicting checkpoint is journaled already."""
        return self._one("SELECT 1 FROM witness_conflict WHERE sha256 = ?", (sha256,)) is not None

    def conflicts(self, origin: str, code: str, day: str) -> int:
        """Return how many conflicts of a log and code were journaled on a day."""
        query = "SELECT COUNT(*) FROM witness_conflict WHERE origin = ? AND code = ? AND day = ?"
        return int(self._all(query, (origin, code, day))[0][0])

    def witness_change(self, log: str) -> WitnessChange | None:
        """Return the change of a log's witnesses that those before have still to see."""
        row = self._one("SELECT * FROM witness_change WHERE log = ?", (log,))
        if row is None:
            return None
        organisations = frozenset(Organisation(house) for house in json.loads(row["organisations"]))
        return WitnessChange(row["seq"], Witnesses({}, organisations, row["quorum"]))

    def receipts_due(self) -> list[DueReceipt]:
        """Return the receipts that somebody has not confirmed, oldest first."""
        rows = self._all("SELECT * FROM receipt_due ORDER BY rowid")
        return [DueReceipt(Digest(r["sha256"]), NodeName(r["peer"]), r["payload"]) for r in rows]

    def receipts_kept(self, attempt: Attempt, peer: str) -> dict[str, Digest]:
        """Return what a peer's receipts for an attempt are here: release → digest of the payload."""
        rows = self._all(
            "SELECT release, sha256 FROM receipt_kept WHERE job = ? AND attempt = ? AND peer = ?",
            (attempt.job, attempt.number, peer),
        )
        return {row["release"]: Digest(row["sha256"]) for row in rows}

    def logged_at(self, seq: int) -> datetime | None:
        """Return the time of this node's journal entry `seq`, None if there is no such."""
        row = self._one("SELECT entry FROM journal_entry WHERE seq = ?", (seq,))
        return None if row is None else parse_time(Entry.decode(row["entry"]).time)

    def input_record(self, attempt: Attempt) -> tuple[bytes, bytes] | None:
        """Return (salt, quality record) of an admission's input, for auditors."""
        row = self._one(
            "SELECT salt, quality FROM input WHERE job = ? AND attempt = ?", (attempt.job, attempt.number)
        )
        return None if row is None else (row["salt"], row["quality"])

    def input_counts(self, job: JobId) -> dict[int, dict[str, int]]:
        """Return what this node's own people may know of what a job read: attempt → count by reason."""
        if self._one("SELECT 1 FROM sqlite_master WHERE name = 'input_counts'") is None:
            return {}  # an earlier release wrote the database last
        rows = self._all("SELECT attempt, counts FROM input_counts WHERE job = ? ORDER BY attempt", (job,))
        return {row["attempt"]: json.loads(row["counts"]) for row in rows}

    def old_records(self, before: datetime) -> list[OldRecord]:
        """Return what is kept of ended jobs that were received before a moment, oldest first, at most 256."""
        rows = self._all(
            "SELECT job, job.envelope FROM job WHERE received < ? AND (job.envelope IS NOT NULL"
            " OR EXISTS (SELECT 1 FROM input WHERE input.job = job.job))"
            " AND NOT EXISTS (SELECT 1 FROM run JOIN json_each(?) AS now ON state = now.value"
            " WHERE run.job = job.job) ORDER BY job.rowid LIMIT 256",
            (utc_text(before), json.dumps(NOT_OVER)),
        )
        return [OldRecord(JobId(r["job"]), r["envelope"], self._inputs(JobId(r["job"]))) for r in rows]

    def _inputs(self, job: JobId) -> tuple[tuple[Attempt, DatasetName, Digest], ...]:
        rows = self._all("SELECT attempt, dataset, quality FROM input WHERE job = ? ORDER BY attempt", (job,))
        return tuple(
            (Attempt(job, r["attempt"]), DatasetName(r["dataset"]), sha256_digest(r["quality"])) for r in rows
        )

    def desk_waiting(self) -> list[DeskItem]:
        """Return the commands nobody has answered yet, oldest first."""
        rows = self._all("SELECT * FROM desk WHERE answer IS NULL ORDER BY id")
        return [DeskItem(row["id"], row["kind"], json.loads(row["body"])) for row in rows]

    def desk_answer(self, number: int) -> Mapping[str, Any] | None:
        """Return the answer to a command, None while there is none."""
        row = self._one("SELECT answer FROM desk WHERE id = ?", (number,))
        if row is None or row["answer"] is None:
            return None
        answer: Mapping[str, Any] = json.loads(row["answer"])
        return answer


def _columns(text: str) -> tuple[SourceColumn, ...]:
    return tuple(SourceColumn(name, kind) for name, kind in json.loads(text))


def _columns_text(columns: Sequence[SourceColumn]) -> str:
    return json.dumps([[column.name, column.type] for column in columns])


def _dataset(row: sqlite3.Row) -> Dataset:
    return Dataset(
        name=DatasetName(row["name"]),
        title=row["title"],
        place=place_from_json(json.loads(row["place"])),
        key=row["key"],
        columns=_columns(row["columns"]),
        rows=row["rows"],
        distinct_keys=row["distinct_keys"],
        published_keys=row["published_keys"],
        snapshot=row["snapshot"],
        description=Description.from_json(json.loads(row["description"])),
    )


def _run(row: sqlite3.Row) -> StoredRun:
    return StoredRun(
        attempt=Attempt(JobId(row["job"]), row["attempt"]),
        state=RunState(row["state"]),
        code=row["code"],
        sentence=row["sentence"],
        hint=row["hint"],
        verdict=row["verdict"],
        needed=row["needed"],
        given=row["given"],
        charged=bool(row["charged"]),
        opened=bool(row["opened"]),
        noted=bool(row["noted"]),
    )


class Change:
    """One transaction under way: state and journal, both or neither."""

    def __init__(self, journal: Journal, connection: sqlite3.Connection) -> None:
        """Write through `connection`, which is inside the journal's transaction."""
        self._journal = journal
        self._connection = connection

    def log(
        self,
        kind: str,
        body: Mapping[str, Any],
        *,
        attempt: Attempt | None = None,
        job: JobId | None = None,
        policy: PolicyRef | None = None,
        actor: str = "",
        refs: Sequence[str] = (),
    ) -> int:
        """Append a journal entry and return its seq.

        Raises:
            DecodeError: the entry says something its kind does not publish.
        """
        return self._journal.append(
            self._connection,
            kind,
            body,
            job=attempt.job if attempt else job or "",
            attempt=attempt.number if attempt else 0,
            policy=policy,
            actor=actor,
            refs=refs,
        )

    def pin(self, role: str, key: bytes) -> None:
        """Pin a policy signer."""
        self._connection.execute("INSERT INTO pin VALUES (?, ?)", (role, key))

    def add_roster(self, signed: Signed) -> None:
        """Make a roster the newest."""
        self._connection.execute(
            "INSERT INTO roster VALUES (?, ?, ?)", (signed.version, signed.digest, signed.envelope)
        )

    def put_freshness(self, version: int, envelope: bytes) -> None:
        """Keep a freshness statement on a roster version in place of an earlier one."""
        self._connection.execute("INSERT OR REPLACE INTO freshness VALUES (?, ?)", (version, envelope))

    def add_rotation(self, sha256: Digest, envelope: bytes) -> None:
        """Keep the announcement of the next identity key; `sha256` is its payload's digest."""
        self._connection.execute("INSERT INTO rotation (sha256, envelope) VALUES (?, ?)", (sha256, envelope))

    def forget_rotations(self) -> None:
        """Forget all announcements: they name a journal that does not go on."""
        self._connection.execute("DELETE FROM rotation")

    def rotation_stored(self, sha256: str) -> None:
        """The coordinator has an announcement."""
        self._connection.execute("UPDATE rotation SET stored = 1 WHERE sha256 = ?", (sha256,))

    def add_policy(self, signed: Signed) -> None:
        """Make a policy the newest."""
        self._connection.execute(
            "INSERT INTO policy VALUES (?, ?, ?)", (signed.version, signed.digest, signed.envelope)
        )

    def put_dataset(self, dataset: Dataset) -> None:
        """Add or replace a catalogue entry."""
        self._connection.execute(
            "INSERT OR REPLACE INTO dataset (name, title, place, key, columns, rows, distinct_keys,"
            " published_keys, snapshot, description) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                dataset.name,
                dataset.title,
                json.dumps(dataset.place.to_json()),
                dataset.key,
                _columns_text(dataset.columns),
                dataset.rows,
                dataset.distinct_keys,
                dataset.published_keys,
                dataset.snapshot,
                json.dumps(dataset.description.to_json()),
            ),
        )

    def put_preflight(self, name: str, fingerprint: str, record: bytes) -> None:
        """Keep the newest look at a dataset: the fingerprint of its table then, and the record."""
        self._connection.execute(
            "INSERT OR REPLACE INTO preflight (dataset, fingerprint, record) VALUES (?, ?, ?)",
            (name, fingerprint, record),
        )

    def drop_preflight(self, name: str) -> None:
        """Forget the look at a dataset, which has another table now."""
        self._connection.execute("DELETE FROM preflight WHERE dataset = ?", (name,))

    def announce(self, announced: Iterable[Announced]) -> None:
        """List these datasets as catalogued but not registered, and no others."""
        self._connection.execute("DELETE FROM announced")
        self._connection.executemany(
            "INSERT INTO announced VALUES (?, ?, ?)",
            (
                (each.name, _columns_text(each.columns), json.dumps(each.description.to_json()))
                for each in announced
            ),
        )

    def add_stop(self, digest: Digest, envelope: bytes) -> None:
        """Keep a stop document that is in force from now on."""
        self._connection.execute("INSERT INTO stop VALUES (?, ?, NULL)", (digest, envelope))

    def lift_stop(self, digest: Digest, version: int) -> None:
        """End a stop: the policy of that version names it."""
        self._connection.execute("UPDATE stop SET lifted = ? WHERE digest = ?", (version, digest))

    def add_job(
        self, job: JobId, envelope: bytes, *, requester: str, purpose: str, received: datetime
    ) -> None:
        """Remember an authentic job; one whose text was deleted since is as good as new."""
        self._connection.execute(
            "INSERT INTO job VALUES (?, ?, ?, ?, ?) ON CONFLICT (job) DO UPDATE SET"
            " envelope = excluded.envelope, received = excluded.received WHERE envelope IS NULL",
            (job, envelope, requester, purpose, utc_text(received)),
        )

    def put_run(
        self,
        attempt: Attempt,
        state: RunState,
        verdict: bytes,
        *,
        code: str = "",
        sentence: str = "",
        hint: str = "",
        needed: int = 0,
        given: int = 0,
    ) -> None:
        """Set the answer to an offer."""
        self._connection.execute(
            "INSERT INTO run (job, attempt, state, code, sentence, hint, verdict, needed, given)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (job, attempt) DO UPDATE SET"
            " state = excluded.state, code = excluded.code, sentence = excluded.sentence,"
            " hint = excluded.hint, verdict = excluded.verdict, needed = excluded.needed,"
            " given = excluded.given",
            (attempt.job, attempt.number, state, code, sentence, hint, verdict, needed, given),
        )

    def move(
        self, attempt: Attempt, state: RunState, *, code: str = "", sentence: str = "", hint: str = ""
    ) -> None:
        """Move a run to another state."""
        self._connection.execute(
            "UPDATE run SET state = ?, code = ?, sentence = ?, hint = ? WHERE job = ? AND attempt = ?",
            (state, code, sentence, hint, attempt.job, attempt.number),
        )

    def start(self, attempt: Attempt, question: Digest) -> None:
        """Commit point 1: mark the run as running on a question."""
        self._connection.execute(
            "UPDATE run SET state = 'RUNNING', charged = 1, opened = 1, question = ?"
            " WHERE job = ? AND attempt = ?",
            (question, attempt.job, attempt.number),
        )

    # -- the ledger: every change that a budget or quota feels has its journal entry -------------------------

    def reserve(self, wanted: Row, version: int, policy: PolicyRef | None) -> None:
        """Set an attempt's cost aside, decided on that version of its source.

        Raises:
            StateConflict: see `ledger.reserve`.
        """
        row = ledger.reserve(self._connection, wanted, version)
        self._log_lines("budget.reserved", row, policy)

    def charge(
        self,
        attempt: Attempt,
        cost: Cost,
        lines: Sequence[CostLine],
        policy: PolicyRef | None,
        *,
        code: str = "",
        rounds: Rounds | None = None,
    ) -> None:
        """Charge what was set aside; `code`: why, where it is not for an answer.

        `rounds`: of an attempt in rounds, none of which is recorded yet.

        Raises:
            StateConflict: see `ledger.charge`.
        """
        row = ledger.charge(self._connection, attempt.job, attempt.number, cost, lines, rounds=rounds)
        self._log_lines("budget.charged", row, policy, code)

    def answering(self, attempt: Attempt) -> None:
        """Remember that frames an answer could be made of are about to go out: approvals are used up.

        Those of a run in rounds are not: they are for all of it, and it goes on in the next attempt.

        Raises:
            StateConflict: see `ledger.answering`.
        """
        row = ledger.answering(self._connection, attempt.job, attempt.number)
        if runs_in_rounds(row.past.job_type) is None:
            self._connection.execute("UPDATE approval SET used = 1 WHERE job = ?", (attempt.job,))

    def record_round(self, attempt: Attempt, turn: str, number: int, most: int) -> None:
        """Count a round that is about to leave.

        Raises:
            StateConflict: `not-running`: the attempt is over, and nobody would pay; or see
                `ledger.record_round`.
        """
        job = attempt.job
        found = self._connection.execute(
            "SELECT state FROM run WHERE job = ? AND attempt = ?", (job, attempt.number)
        ).fetchone()
        if found is None or found[0] != RunState.RUNNING:
            raise StateConflict(
                "a round of an attempt that is over, whose cost was settled",
                code="not-running",
                hint="nothing has left; the next attempt goes on",
            )
        ledger.record_round(self._connection, job, attempt.number, turn=turn, number=number, most=most)

    def give_back(self, attempt: Attempt, spec: JobSpec, role: Role, policy: PolicyRef | None) -> int | None:
        """Lower what an attempt in rounds costs to what its rounds cost; it is over.

        Returns:
            How many rounds it recorded; None where it is none in rounds, or was never charged.

        Raises:
            StateConflict: the ledger is damaged.
        """
        row = Ledger(self._connection).row(attempt.job, attempt.number)
        if row is None or row.rounds is None or not row.past.source:
            return None
        rounds = row.rounds
        cost = paid_rounds(spec, role, rounds.constraints, rounds.turns, charged=row.past.cost)
        if row.answering and cost is not None:
            lines = returned_lines(row.lines, cost, rounds.deltas)
            lowered = ledger.give_back(self._connection, attempt.job, attempt.number, cost, lines)
            for before, after in zip(row.lines, lines, strict=True) if lowered is not None else ():
                assert lowered is not None
                body = returned_facts(lowered.past, before, after)
                if body is not None:
                    self.log(
                        "budget.returned", body, attempt=attempt, policy=policy, actor=row.past.requester
                    )
        return rounds.total

    def release(self, attempt: Attempt, code: str, policy: PolicyRef | None, *, unopened: bool) -> bool:
        """Free an attempt's cost where nothing was told, else keep it; either way the attempt is over.

        Returns:
            Whether something is free again.

        Raises:
            StateConflict: the ledger is damaged.
        """
        freed = ledger.release(self._connection, attempt.job, attempt.number, unopened=unopened)
        if freed is not None:
            self._log_lines("budget.released", freed, policy, code)
        else:
            ledger.settle(self._connection, attempt.job, attempt.number)
        return freed is not None

    def _log_lines(self, kind: str, row: Row, policy: PolicyRef | None, code: str = "") -> None:
        past = row.past
        for line in row.lines:
            self.log(
                kind,
                budget_facts(kind, past, line, code),
                attempt=Attempt(past.job, past.attempt),
                policy=policy,
                actor=past.requester,
            )

    def note(self, attempt: Attempt) -> None:
        """The coordinator has a run's end."""
        self._connection.execute(
            "UPDATE run SET noted = 1 WHERE job = ? AND attempt = ?", (attempt.job, attempt.number)
        )

    def void_approvals(self, jobs: Iterable[JobId]) -> None:
        """Count the approvals of these jobs no more: what was approved is not what would be answered now."""
        self._connection.executemany("UPDATE approval SET used = 1 WHERE job = ?", ((job,) for job in jobs))

    def add_approval(self, job: JobId, approval: StoredApproval) -> None:
        """Record an approval.

        Raises:
            StateConflict: it is recorded already.
        """
        try:
            self._connection.execute(
                "INSERT INTO approval (digest, job, key, envelope) VALUES (?, ?, ?, ?)",
                (approval.digest, job, approval.key, approval.envelope),
            )
        except sqlite3.IntegrityError:
            raise StateConflict("this approval is recorded already", code="approval-used") from None

    def add_input(
        self,
        attempt: Attempt,
        dataset: str,
        salt: bytes,
        commitment: Digest,
        quality: bytes,
        *,
        counts: Mapping[str, int],
    ) -> None:
        """Keep the salt of an input commitment and the quality record, for auditors; `counts` stay here."""
        self._connection.execute(
            "INSERT OR REPLACE INTO input VALUES (?, ?, ?, ?, ?, ?)",
            (attempt.job, attempt.number, dataset, salt, commitment, quality),
        )
        self._connection.execute(
            "INSERT OR REPLACE INTO input_counts VALUES (?, ?, ?)",
            (attempt.job, attempt.number, json.dumps(dict(counts))),
        )

    def add_output(self, output: StoredOutput) -> None:
        """Commit a release."""
        self._connection.execute(
            "INSERT INTO output VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, ?, 0, ?, ?, ?)",
            (
                output.release,
                output.attempt.job,
                output.attempt.number,
                output.name,
                output.output_class,
                output.recipient,
                output.sha256,
                output.note,
                utc_text(output.expires),
                output.log,
                output.seq,
                output.cosigned,
            ),
        )

    def mark_stored(self, release: str) -> None:
        """The coordinator has a release."""
        self._connection.execute("UPDATE output SET stored = 1 WHERE release = ?", (release,))

    def add_outcome(self, sha256: Digest, job: JobId, payload: bytes) -> None:
        """Keep an outcome; the same one again changes nothing."""
        self._connection.execute(
            "INSERT OR IGNORE INTO outcome (sha256, job, payload) VALUES (?, ?, ?)", (sha256, job, payload)
        )

    def settle_outcome(self, sha256: str, code: str = "") -> None:
        """The coordinator has an outcome, or with a code, has refused it."""
        self._connection.execute(
            "UPDATE outcome SET stored = ?, code = ? WHERE sha256 = ?", (not code, code, sha256)
        )

    def mark_deleted(self, release: str) -> None:
        """A release's bytes are gone."""
        self._connection.execute("UPDATE output SET deleted = 1 WHERE release = ?", (release,))

    def forget(self, job: JobId) -> None:
        """Delete a job's text, its approvals, and what is kept of its inputs."""
        self._connection.execute("UPDATE job SET envelope = NULL WHERE job = ?", (job,))
        self._connection.execute("DELETE FROM approval WHERE job = ?", (job,))
        self._connection.execute("DELETE FROM input WHERE job = ?", (job,))
        self._connection.execute("DELETE FROM input_counts WHERE job = ?", (job,))

    def swap_head(self, origin: str, expected: bytes | None, note: bytes) -> bool:
        """Keep the newest checkpoint of another log if the one kept is `expected`; tell whether it was."""
        if expected is None:
            query, values = "INSERT OR IGNORE INTO witness_head VALUES (?, ?)", (origin, note)
            return self._connection.execute(query, values).rowcount == 1
        swapped = self._connection.execute(
            "UPDATE witness_head SET note = ? WHERE origin = ? AND note = ?", (note, origin, expected)
        )
        return swapped.rowcount == 1

    def add_conflict(self, sha256: Digest, origin: str, code: str, day: str) -> None:
        """Remember that a conflicting checkpoint is journaled."""
        self._connection.execute(
            "INSERT INTO witness_conflict VALUES (?, ?, ?, ?)", (sha256, origin, code, day)
        )

    def change_witnesses(self, log: str, seq: int, before: Witnesses | None) -> None:
        """Note that entry `seq` changes a log's witnesses. None: nobody counted before.

        Where an earlier change is not seen yet, the witnesses before that one are still those that count.
        """
        again = self._connection.execute("UPDATE witness_change SET seq = ? WHERE log = ?", (seq, log))
        if again.rowcount == 0 and before is not None:
            organisations = json.dumps(sorted(before.organisations))
            values = (log, seq, organisations, before.quorum)
            self._connection.execute("INSERT INTO witness_change VALUES (?, ?, ?, ?)", values)

    def witnesses_changed(self, log: str, covered: int) -> None:
        """Both sets have seen the first `covered` entries: a change in one of these is through."""
        self._connection.execute("DELETE FROM witness_change WHERE log = ? AND seq < ?", (log, covered))

    def add_receipt(self, sha256: Digest, peer: str, payload: bytes) -> None:
        """Owe a peer a receipt."""
        self._connection.execute("INSERT INTO receipt_due VALUES (?, ?, ?)", (sha256, peer, payload))

    def settle_receipt(self, sha256: str, peer: str) -> None:
        """A peer has a receipt, or said why it never will."""
        self._connection.execute("DELETE FROM receipt_due WHERE sha256 = ? AND peer = ?", (sha256, peer))

    def keep_receipt(self, attempt: Attempt, peer: str, release: str, sha256: Digest) -> None:
        """Remember that a peer's receipt is journaled."""
        self._connection.execute(
            "INSERT INTO receipt_kept VALUES (?, ?, ?, ?, ?)",
            (attempt.job, attempt.number, peer, release, sha256),
        )

    def answer_desk(self, number: int, answer: Mapping[str, Any]) -> None:
        """Answer a command of another terminal."""
        self._connection.execute("UPDATE desk SET answer = ? WHERE id = ?", (json.dumps(answer), number))


class State(Reader):
    """A node's state, opened for writing: there is one, in the process that holds the journal."""

    def __init__(self, journal: Journal, reader: sqlite3.Connection) -> None:
        """Use `open_state`."""
        super().__init__(reader)
        self.journal = journal

    @contextmanager
    def change(self) -> Iterator[Change]:
        """Give one transaction; on return it is durable and its entries are under a signed checkpoint.

        Raises:
            StateConflict: nothing was stored; or `journal-unpublished`: stored, but no checkpoint covers it.
        """
        with self.journal.transaction() as connection:
            try:
                yield Change(self.journal, connection)
            except sqlite3.Error as error:
                raise StateConflict(
                    f"the node's database refused ({getattr(error, 'sqlite_errorname', 'error')})",
                    code="state-write-failed",
                    hint="free disk space and check the disk; nothing was stored",
                ) from None

    def newest_time(self) -> datetime | None:
        """Return the time of the newest journal entry."""
        size = self.journal.size
        newest = next(self.journal.entries(size - 1), None) if size else None
        return None if newest is None else parse_time(newest.time)

    def close(self) -> None:
        """Close the database and let go of the home."""
        self._reader.close()
        self.journal.close()


def open_state(journal: Journal, database: Path) -> State:
    """Return the state beside `journal`; makes the tables on first use.

    Raises:
        StateConflict: `state-format`: the tables are of another release.
    """
    with journal.transaction() as connection:
        used, version = connection.execute(_FORMAT_OF).fetchone()
        if used and version in _ADDED:
            for statement in _ADDED[version]:
                connection.execute(statement)
        else:
            _require_format(used, version)
        # What retention deletes is overwritten: salts would open the commitments that the journal names.
        connection.execute("PRAGMA secure_delete = ON")
        for statement in _SCHEMA:
            connection.execute(statement)
    return State(journal, _connect(database, query_only=True))


def _require_format(used: int, version: int) -> None:
    if version != (FORMAT if used else 0):
        raise StateConflict(
            f"this node's database has format {version}, this release reads format {FORMAT}",
            code="state-format",
            hint="start the node once with this release, which brings the database up to date"
            if used and version in _ADDED
            else "go on with the release that wrote it, or make a new node with minshu-node init",
        )


@contextmanager
def read_state(database: Path) -> Iterator[Reader]:
    """Give a reader of another process's, or nobody's, state.

    Raises:
        StateConflict: there is no state yet, it cannot be read, or it is of another release.
    """
    if not database.exists():
        raise StateConflict(
            "this node has no state yet", code="no-state", hint="make a node with minshu-node init"
        )
    with closing(_connect(database, query_only=True)) as connection:
        reader = Reader(connection)
        reader.check_format()
        yield reader


def ask_desk(database: Path, kind: str, body: Mapping[str, Any]) -> int:
    """Leave a command for the process that holds the journal; return its number."""
    with closing(_connect(database)) as connection:
        try:
            cursor = connection.execute(
                "INSERT INTO desk (kind, body) VALUES (?, ?)", (kind, json.dumps(body))
            )
        except sqlite3.Error as error:
            raise StateConflict(
                f"the node's database refused ({getattr(error, 'sqlite_errorname', 'error')})",
                code="state-write-failed",
                hint="free disk space and check the disk",
            ) from None
        return int(cursor.lastrowid or 0)


def _connect(database: Path, *, query_only: bool = False) -> sqlite3.Connection:
    connection = sqlite3.connect(database, isolation_level=None, check_same_thread=False, timeout=10.0)
    connection.execute("PRAGMA synchronous = FULL")
    if query_only:
        connection.execute("PRAGMA query_only = ON")
    return connection
