"""What a journal has told of each job so far: who approved it, its attempts, what they released."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any, Final, Self

from audit.entries import Entry
from audit.findings import Check
from audit.spending import Spent
from policies.decision import Permit, VerifiedApproval
from protocols.envelope import Envelope, decode_envelope
from protocols.ids import Digest, Role
from protocols.jobs.job_type import PlannedRelease
from protocols.wire import Constraints, InputSummary, JobSpec

SAYS_ALL: Final = 3
"""The first `v` whose entries say all it takes to decide again."""

SAYS_PARTNERS: Final = 4
"""The first `v` of a node that remembers which datasets a job joins with its own."""

SAYS_MAPPING: Final = 6
"""The first `v` of a node that says how values of a dataset become codes."""

EARLIER: Final = "entries of versions 1 and 2: they do not say for which moment a decision was taken"

NEVER: Final = datetime(1970, 1, 2, tzinfo=UTC)
"""Before every entry of this age."""

MAX_APPROVALS: Final = 64
"""Most approvals of one job that are kept, and most attempts of one that are decided again."""

_LAST: Final = datetime.max.replace(tzinfo=UTC)


def after(moment: datetime, wait: timedelta) -> datetime:
    """Return the moment after a wait; the last one there is, where that lies beyond all calendars."""
    return moment + wait if moment < _LAST - wait else _LAST


@dataclass(frozen=True, slots=True)
class Spoken:
    """A job as its requester signed it."""

    spec: JobSpec
    envelope: Envelope

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read a job's envelope; whose signature is on it, is not looked at.

        Raises:
            DecodeError: it is none.
        """
        envelope = decode_envelope(data)
        return cls(JobSpec.decode(envelope.payload), envelope)


@dataclass(slots=True)
class Given:
    """An approval on record: its digest, the raw key that signed it, the object it is.

    `verified`: as it held last, under the policy that it names. `void`: the policy under which it never will.
    """

    digest: Digest
    key: bytes
    envelope: str
    used: bool = False
    verified: VerifiedApproval | None = None
    void: Digest | None = None


@dataclass(slots=True)
class Output:
    """A committed release as far as its entries go. `left`: its recipient has it, or has opened it."""

    where: str
    output_class: str
    recipient: str
    sha256: str
    expires: str
    left: bool = False


@dataclass(frozen=True, slots=True)
class Paid:
    """What the rounds of an attempt cost follows from this.

    Attributes:
        spec: the job.
        role: the node's seat.
        constraints: what all participants agreed on, under which it was charged.
        deltas: see `policies.attempts.deltas_of`.
        most: the most rounds of each turn that all attempts of the job may have together.
        members: how many sources a round has at the least and at most, None where its type does not say.
    """

    spec: JobSpec
    role: Role
    constraints: Constraints
    deltas: Mapping[str, Fraction]
    most: Mapping[str, int]
    members: tuple[int, int] | None = None


@dataclass(slots=True)
class Attempt:
    """One attempt that was accepted.

    Attributes:
        where: the entry that says so.
        role: the node's seat.
        row: what it is in the ledger, None where that cannot be told.
        admission: digest of the node's own admission.
        permit: the decision, taken again; None once it is over, and where it could not be taken.
        undecided: it could not be decided again, or not as the node did.
        constraints: what all participants demand of the run.
        keys: the distinct keys of each list, as all participants state them.
        inputs: all that they state of each list.
        due: bodies of the `budget.*` entries of `due_kind` that have not come yet.
        freeing: how many `budget.released` have come.
        admitted: the entry that says so, empty before.
        until: when it is over at the latest.
        answered: a participant has handed over a receipt for an output of it.
        freed: the entry that says its cost is free again, empty where none does.
        sealed_to: the key that releases for the requester are sealed to.
        planned: the releases it may make and has not made, by name.
        outputs: those it has made, by release id.
        over: the entry that ends it, empty before.
        in_rounds: it is of a run in rounds, whose approvals are for all attempts.
        paid: what it takes to say what its rounds cost, None where it brings no data or answers at once.
        turns: the rounds that it recorded, by turn.
        last_round: number of the newest one.
        returned: the budgets of which a `budget.returned` has come.
    """

    where: str
    role: Role | None
    admission: str
    row: Spent | None = None
    permit: Permit | None = None
    undecided: bool = False
    constraints: Constraints = field(default_factory=Constraints)
    keys: dict[Role, int] = field(default_factory=dict)
    inputs: Mapping[Role, InputSummary] = field(default_factory=dict)
    due: list[dict[str, Any]] = field(default_factory=list)
    due_kind: str = ""
    freeing: int = 0
    admitted: str = ""
    until: datetime = NEVER
    answering: bool = False
    answered: bool = False
    freed: str = ""
    sealed_to: bytes = b""
    planned: dict[str, PlannedRelease] = field(default_factory=dict)
    outputs: dict[str, Output] = field(default_factory=dict)
    over: str = ""
    in_rounds: bool = False
    paid: Paid | None = None
    turns: Counter[str] = field(default_factory=Counter)
    last_round: int = 0
    returned: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Job:
    """One job.

    Attributes:
        received: when it was offered first, empty if no entry says so.
        since: when its text came, empty if no entry says so.
        envelope: the object it is.
        dataset: what the node brings to it, by the policy's name.
        newest: its newest attempt.
        rejected: somebody who may approve said no.
        ended: its newest attempt is over.
        refused: the attempts that were refused for good.
        authentic: the envelope and the roster for which its signature has been found to hold.
        under_way: attempts that are not over.
        deletable: what retention deletes of it, object → what a receipt calls it.
    """

    received: str = ""
    since: str = ""
    envelope: str = ""
    dataset: str = ""
    newest: int = 0
    rejected: bool = False
    ended: bool = False
    refused: frozenset[int] = frozenset()
    authentic: tuple[str, str] = ("", "")
    approvals: list[Given] = field(default_factory=list)
    attempts: dict[int, Attempt] = field(default_factory=dict)
    under_way: int = 0
    deletable: dict[str, str] = field(default_factory=dict)

    def rounds_before(self, number: int) -> Counter[str]:
        """Return the rounds of each turn that other attempts than that one have recorded."""
        used: Counter[str] = Counter()
        for other, attempt in self.attempts.items():
            if other != number:
                used.update(attempt.turns)
        return used

    @property
    def waits(self) -> bool:
        """Whether it was received, and no entry says yet how that ended."""
        return bool(self.received) and not self.ended and self.newest not in self.refused


class Jobs:
    """All jobs of a log."""

    def __init__(self) -> None:
        """Begin with none."""
        self._jobs: dict[str, Job] = {}

    def __iter__(self) -> Iterator[Job]:
        """Yield the jobs, in the order in which they came."""
        return iter(self._jobs.values())

    def of(self, entry: Entry) -> Job:
        """Return the job that an entry is about."""
        found = self._jobs.get(entry.job)
        if found is None:
            found = self._jobs[entry.job] = Job()
        return found

    def known(self, job: str) -> Job | None:
        """Return a job, None where no entry so far is about it."""
        return self._jobs.get(job)

    def attempt(self, entry: Entry) -> Attempt | None:
        """Return the attempt that an entry is about, None if it was never accepted."""
        job = self._jobs.get(entry.job)
        return None if job is None else job.attempts.get(entry.attempt)

    def under_way(self, entry: Entry, where: str, check: Check) -> Attempt | None:
        """Return the attempt that an entry of a run is about; what is wrong with it is said in `check`."""
        attempt = self.attempt(entry)
        if attempt is None or not attempt.admitted:
            check.found(
                "without-admission", where, f"{entry.kind} of an attempt that no job.admitted stands for"
            )
            return None
        if attempt.over:
            check.found("after-its-end", where, f"{entry.kind} of an attempt that is over")
        return attempt
