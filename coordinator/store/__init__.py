"""What the coordinator remembers: `Store` is the interface, `coordinator.store.sql` the one in use.

Every method is one transaction: it is durable when it returns, or nothing happened. A method that takes
`entries` stores them for the journal in that same transaction; they stay until `recorded`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol

from coordinator.lifecycle import Job
from protocols.encoding import sha256_digest
from protocols.ids import Digest, JobId, KeyId, NodeName, Organisation


@dataclass(frozen=True, slots=True)
class Entry:
    """A journal entry that is due; kinds and body keys are those of `audit.entries`.

    `objects` are put beside the log before it says so, at most 64; their digests are the entry's `refs`.
    """

    kind: str
    body: Mapping[str, Any]
    job: str = ""
    attempt: int = 0
    actor: str = ""
    objects: tuple[bytes, ...] = ()

    @property
    def refs(self) -> list[Digest]:
        """The digests of the objects, sorted."""
        return sorted(map(sha256_digest, self.objects))


@dataclass(frozen=True, slots=True)
class Token:
    """A one-time enrolment token; the secret itself is never stored."""

    secret_sha256: bytes
    node: NodeName
    issued: datetime
    expires: datetime
    used: datetime | None = None


@dataclass(frozen=True, slots=True)
class Enrolment:
    """What a node handed in: raw keys, vkey lines, the digest of its TLS SPKI, and the leaf it was given."""

    node: NodeName
    identity_key: bytes
    tls_spki_sha256: Digest
    journal_vkey: str
    recipient_key: bytes
    suite: int
    certificate_sha256: Digest
    enrolled: datetime
    witness_vkeys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StoredRoster:
    """A published roster; `envelope` is as signed."""

    version: int
    digest: Digest
    envelope: bytes


@dataclass(frozen=True, slots=True)
class StoredRotation:
    """A node's announcement of its next identity key, raw Ed25519; `envelope` is as signed by both keys.

    `refused` is one that came while another away from the same key stood: kept so that both show.
    """

    node: NodeName
    previous_key: bytes
    next_key: bytes
    arrived: datetime
    envelope: bytes
    refused: bool = False


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job with what does not change about it; `analyst` is the requester's name in the roster."""

    job: Job
    envelope: bytes
    requester: KeyId
    analyst: str
    organisation: Organisation
    job_type: str
    purpose: str
    legal_basis: str
    expected_use: str
    submitted: datetime


@dataclass(frozen=True, slots=True)
class Meter:
    """What one started attempt used, as `coordinator.metering` counts it.

    `rows` read by all nodes together, `records` the most about persons that may leave, `rho` the zCDP cost in
    1e-15.
    """

    job: JobId
    attempt: int
    rows: int
    records: int
    rho: int
    started: datetime


@dataclass(frozen=True, slots=True)
class Usage:
    """What one organisation has asked and spent for one purpose; units as in `Meter`, over all attempts."""

    organisation: Organisation
    purpose: str
    jobs: int
    succeeded: int
    refused: int
    rows: int
    records: int
    rho: int
    last: datetime


@dataclass(frozen=True, slots=True)
class StoredOutcome:
    """What a recipient found out about a job's releases; `envelope` is as signed, `digest` of its payload."""

    digest: Digest
    job: JobId
    by: str
    envelope: bytes
    filed: datetime


@dataclass(frozen=True, slots=True)
class StoredRelease:
    """A sealed release whose bytes lie in the releases folder under `release`."""

    release: str
    job: JobId
    attempt: int
    node: NodeName
    name: str
    output_class: str
    sealed_to: Digest
    note: bytes
    sha256: Digest
    size: int
    expires: datetime


@dataclass(frozen=True, slots=True)
class StoredReceipt:
    """What a node said of a release of its own; `digest` is that of the statement's payload."""

    job: JobId
    attempt: int
    node: NodeName
    release: str
    digest: Digest


@dataclass(frozen=True, slots=True)
class DueEntry:
    """An entry the journal does not have yet."""

    id: int
    entry: Entry


MAX_DUE: Final = 256
"""Due entries that are read at once."""


class Store(Protocol):
    """The coordinator's memory."""

    def add_token(self, token: Token) -> None:
        """Remember a token."""
        ...

    def tokens(self, prefix: str) -> Sequence[Token]:
        """Return the tokens whose hash begins with these 8 hex digits, used and expired ones too."""
        ...

    def enrol(self, secret_sha256: bytes, enrolment: Enrolment, entries: Iterable[Entry] = ()) -> None:
        """Use up a token for its node and store what the node handed in, replacing an earlier enrolment.

        Raises:
            Refused: no such token, it is another node's, used (`token-used`), expired by
                `enrolment.enrolled` (`token-expired`), or that is before it was made (`clock-moved`);
                nothing was stored.
        """
        ...

    def enrolments(self) -> Sequence[Enrolment]:
        """Return every node's latest enrolment, by name."""
        ...

    def enrolment(self, node: NodeName) -> Enrolment | None:
        """Return the latest enrolment of `node`."""
        ...

    def publish(self, roster: StoredRoster, previous: Digest | None, entries: Iterable[Entry] = ()) -> None:
        """Make `roster` the current one.

        Raises:
            StateConflict: `roster-rollback`: its version is not above the current one, if there is one, or
                `previous` is not the current digest.
        """
        ...

    def roster(self) -> StoredRoster | None:
        """Return the newest roster."""
        ...

    def rosters_after(self, version: int) -> Sequence[StoredRoster]:
        """Return the rosters above `version`, oldest first."""
        ...

    def put_freshness(
        self, version: int, issued: datetime, envelope: bytes, entries: Iterable[Entry] = ()
    ) -> bool:
        """Keep a statement on a roster version; return False, changing nothing, if one as new is kept."""
        ...

    def freshness(self, version: int) -> bytes:
        """Return the newest freshness statement about that roster version, empty for none."""
        ...

    def put_rotation(self, rotation: StoredRotation, entries: Iterable[Entry] = ()) -> None:
        """Keep an announcement in place of the node's earlier one between the same two keys."""
        ...

    def rotations(self) -> Sequence[StoredRotation]:
        """Return the announcements by node, then in the order in which they arrived."""
        ...

    def put_catalogue(self, node: NodeName, envelope: bytes) -> None:
        """Remember a node's catalogue in place of its earlier one."""
        ...

    def catalogues(self) -> Mapping[NodeName, bytes]:
        """Return every node's catalogue envelope."""
        ...

    def add_job(self, record: JobRecord, entries: Iterable[Entry] = ()) -> bool:
        """Store a new job; return False, changing nothing, for one that is known."""
        ...

    def save_job(self, job: Job, entries: Iterable[Entry] = (), meter: Meter | None = None) -> None:
        """Store a job's new state, and where it is being started, what the attempt uses.

        Raises:
            StateConflict: no such job.
        """
        ...

    def job(self, job: JobId) -> JobRecord | None:
        """Return a job."""
        ...

    def live_jobs(self) -> Sequence[JobRecord]:
        """Return the jobs that have not ended, oldest first."""
        ...

    def jobs_of(self, organisation: Organisation, limit: int) -> Sequence[JobRecord]:
        """Return an organisation's jobs, newest first."""
        ...

    def usage(self, organisation: Organisation | None = None) -> Sequence[Usage]:
        """Return what an organisation, None for all, has asked and spent, by organisation and purpose."""
        ...

    def add_outcome(self, outcome: StoredOutcome, limit: int, entries: Iterable[Entry] = ()) -> bool:
        """Store an outcome; return False, changing nothing, for one that is known.

        Raises:
            Refused: `too-many-outcomes`: the job has `limit` of them.
        """
        ...

    def outcomes_of(self, job: JobId) -> Sequence[StoredOutcome]:
        """Return a job's outcomes, as they came in."""
        ...

    def add_release(self, release: StoredRelease, entries: Iterable[Entry] = ()) -> None:
        """Store a release; the same one again changes nothing.

        Raises:
            StateConflict: `release-conflict`: that id, or that name of the attempt, is another release.
        """
        ...

    def release(self, release: str) -> StoredRelease | None:
        """Return a release."""
        ...

    def releases_of(self, job: JobId) -> Sequence[StoredRelease]:
        """Return a job's releases, by name."""
        ...

    def expired_releases(self, now: datetime) -> Sequence[StoredRelease]:
        """Return the releases to delete."""
        ...

    def all_releases(self) -> frozenset[str]:
        """Return the ids of all releases."""
        ...

    def delete_release(self, release: str, entries: Iterable[Entry] = ()) -> None:
        """Forget a release; an unknown one is no error."""
        ...

    def started(self, job: JobId, attempt: int) -> bool:
        """Return whether that attempt was started, see `save_job`."""
        ...

    def add_receipt(self, receipt: StoredReceipt, limit: int, entries: Iterable[Entry] = ()) -> bool:
        """Keep a node's receipt; return False, changing nothing, for one that is kept.

        Raises:
            StateConflict: `other-receipt`: the node said something else of that release before.
            Refused: `too-many-receipts`: the node has handed in `limit` for this attempt.
        """
        ...

    def use_nonce(self, nonce: str, expires: datetime) -> bool:
        """Remember a request's nonce; return False if it was seen before."""
        ...

    def forget(self, now: datetime) -> None:
        """Delete nonces and tokens whose time is over."""
        ...

    def add_entry(self, entry: Entry) -> None:
        """Make one entry due that changes nothing else."""
        ...

    def due_entries(self, after: int = 0) -> Sequence[DueEntry]:
        """Return entries the journal does not have yet, above that id, oldest first, at most `MAX_DUE`."""
        ...

    def recorded(self, entry_id: int) -> None:
        """Forget an entry that the journal has."""
        ...

    def close(self) -> None:
        """Let go of the database."""
        ...
