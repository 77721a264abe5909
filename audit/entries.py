"""Journal entries: what a log says, and nothing else.

An entry is RFC 8785 JSON with the fields {v, log, seq, time, kind, job, attempt, policy, actor, body, refs};
`seq` is its leaf index. `KINDS_BY_VERSION` is the whole vocabulary of each `v`: each kind, the body keys it
must and may carry, and each key's type. There is no free text: a reason is a code, a sentence is looked up
from it. An unknown field, kind or body key is refused when written and when read, and so is a name with a
long run of digits, so that no resident ID or telephone number slips into a log.

A kind or key is added by raising `v`; readers accept every published `v`, so a log may begin under one and go
on under the next. An entry is held to the vocabulary of its own `v`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final, Self

import msgspec

from audit.merkle import MAX_ENTRY_BYTES, MAX_SIZE
from audit.note import ED25519, VerifierKey
from protocols.encoding import canonical_json, decode_json
from protocols.errors import DecodeError, InputError

VERSION: Final = 6
"""The `v` of the entries written now."""

MAX_LIST: Final = 64
"""Most items in a list of names, or in `refs`."""

MAX_ATTEMPT: Final = (1 << 31) - 1

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_CODE = re.compile(r"[a-z][a-z0-9]*(?:[-.][a-z0-9]+)*")
_NAME = re.compile(r"\w[\w.:/@+=-]*")
_RELEASE = re.compile(r"[0-9a-f]{32}")
_DIGITS = re.compile(r"\d{11}")
_DECIMAL = re.compile(r"(?:0|[1-9][0-9]{0,9})(?:\.[0-9]{1,20})?")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z")
_ORIGIN = re.compile(r"[^\s+\x00-\x1f]{1,200}")
_KEY = re.compile(r"[a-z_]{1,40}")


def format_time(moment: datetime) -> str:
    """Return `moment` as an entry's time: UTC, RFC 3339, milliseconds (cut, not rounded).

    Raises:
        InputError: `moment` names no time zone.
    """
    if moment.utcoffset() is None:
        raise InputError("a time without a zone", code="naive-time", hint="use datetime.now(UTC)")
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def parse_time(text: str) -> datetime:
    """Return the moment of an entry's time.

    Raises:
        DecodeError: not of the form 2026-12-01T08:00:00.000Z.
    """
    if _TIME.fullmatch(text):
        try:
            return datetime.fromisoformat(text)
        except ValueError:
            pass  # the form is right but there is no such day or hour
    raise DecodeError("expected a time of the form 2026-12-01T08:00:00.000Z", code="bad-time")


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and _may_name(value)


# A log says the same few names over and over.
@lru_cache(maxsize=1 << 12)
def _may_name(value: str) -> bool:
    if len(value) > 200:
        return False
    # A digest may hold eleven digits in a row by chance; it is the one exception.
    return _is_digest(value) or (_NAME.fullmatch(value) is not None and not _DIGITS.search(value))


@lru_cache(maxsize=1 << 8)
def _is_origin(value: str) -> bool:
    return _ORIGIN.fullmatch(value) is not None


def _is_release(value: Any) -> bool:
    # A release id is 32 random hex digits, which may hold eleven decimal ones in a row by chance.
    return isinstance(value, str) and (_RELEASE.fullmatch(value) is not None or _is_name(value))


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= MAX_LIST and all(map(_is_name, value))


def _is_code(value: Any) -> bool:
    return isinstance(value, str) and _may_code(value)


@lru_cache(maxsize=1 << 10)
def _may_code(value: str) -> bool:
    return len(value) <= 80 and _CODE.fullmatch(value) is not None and not _DIGITS.search(value)


def _is_int(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_count(value: Any) -> bool:
    return _is_int(value, 0, 10**10 - 1)


def _is_size(value: Any) -> bool:
    return _is_int(value, 0, MAX_SIZE - 1)


def _is_milliseconds(value: Any) -> bool:
    return _is_int(value, 1 - MAX_SIZE, MAX_SIZE - 1)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_decimal(value: Any) -> bool:
    return isinstance(value, str) and _DECIMAL.fullmatch(value) is not None


def _is_class(value: Any) -> bool:
    return value in ("A", "B", "C")


def _is_time(value: Any) -> bool:
    try:
        parse_time(value)
    except (DecodeError, TypeError):
        return False
    return True


def _is_vkey(value: Any) -> bool:
    try:
        return VerifierKey.parse(value).type == ED25519
    except (DecodeError, TypeError):
        return False


@dataclass(frozen=True, slots=True)
class FieldType:
    """The type of a body value.

    Attributes:
        accepts: tells whether a decoded JSON value is of this type.
        says: what is expected, for error messages.
    """

    accepts: Callable[[Any], bool]
    says: str


DIGEST: Final = FieldType(_is_digest, "sha256: and 64 hex digits")
RELEASE: Final = FieldType(_is_release, "a release id: 32 hex digits, or a name")
NAME: Final = FieldType(_is_name, "a name: letters, digits and . : / @ + = _ -, no eleven digits in a row")
NAMES: Final = FieldType(_is_names, f"a list of at most {MAX_LIST} names")
CODE: Final = FieldType(_is_code, "a kebab-case code")
COUNT: Final = FieldType(_is_count, "an integer from 0 to 9999999999")
SIZE: Final = FieldType(_is_size, "an integer from 0 to 2^53 - 1")
MILLISECONDS: Final = FieldType(_is_milliseconds, "an integer number of milliseconds")
FLAG: Final = FieldType(_is_flag, "true or false")
DECIMAL: Final = FieldType(_is_decimal, 'decimal text such as "0.50"')
CLASS: Final = FieldType(_is_class, "A, B or C")
TIME: Final = FieldType(_is_time, "a time of the form 2026-12-01T08:00:00.000Z")
VKEY: Final = FieldType(_is_vkey, "a log's verifier key line")

FIELDS: Final[Mapping[str, FieldType]] = {
    # digests of documents, objects and commitments
    "sha256": DIGEST,  # the thing the entry is about: policy, roster, stop, output, receipt
    "previous": DIGEST,  # digest of the version before
    "job_sha256": DIGEST,
    "envelope_sha256": DIGEST,  # the signed envelope as received
    "question": DIGEST,
    "admission_sha256": DIGEST,
    "approval_sha256": DIGEST,
    "roster_sha256": DIGEST,
    "policy_sha256": DIGEST,
    "freshness_sha256": DIGEST,
    "leakage_sha256": DIGEST,
    "constraints_sha256": DIGEST,
    "inputs_sha256": DIGEST,
    "quality_sha256": DIGEST,
    "description_sha256": DIGEST,  # what is said of a dataset, but for how its values become codes
    "mapping_sha256": DIGEST,  # the record of how its values become codes; absent where none do
    "commitment": DIGEST,  # SHA-256(salt32 ‖ sorted list)
    "ctx": DIGEST,  # SHA-256 of the sorted admission digests
    "request_sha256": DIGEST,
    "certificate_sha256": DIGEST,
    "spki_sha256": DIGEST,
    "identity": DIGEST,  # key id of a node's identity key
    "checkpoint_sha256": DIGEST,
    "conflicting_sha256": DIGEST,
    "root": DIGEST,
    "answered_by": DIGEST,  # id of the job whose stored answer was given
    "expected_use_sha256": DIGEST,  # what the requester says the answer is for
    "content_sha256": DIGEST,  # of a release before it is sealed, salted
    "reason_sha256": DIGEST,  # of the case that a look-up is for, salted
    "first": DIGEST,  # the job that was day 1 of a series
    # who
    "requester": NAME,
    "approver": NAME,  # key id
    "role": NAME,
    "roles": NAMES,
    "signers": NAMES,  # key ids
    "recipient": NAME,
    "recipients": NAMES,
    "participants": NAMES,
    "peer": NAME,
    "witness": NAME,
    "node": NAME,
    "organisation": NAME,
    "collaboration": NAME,
    # what
    "job_type": NAME,
    "purpose": NAME,
    "legal_basis": NAME,
    "datasets": NAMES,
    "dataset": NAME,
    "partners": NAMES,  # the datasets of others that a job joins the node's own with: organisation:dataset
    "columns": NAMES,
    "column": NAME,
    "unit": NAME,  # the column that says whom a budget protects
    "snapshot": NAME,
    "rule_version": NAME,
    "release": RELEASE,
    "class": CLASS,
    "policy_id": NAME,
    "subject": NAME,  # whom or what a stop halts
    "log": NAME,  # another log's origin
    "vkey": VKEY,
    "previous_vkey": VKEY,
    "software": NAME,
    "suite": COUNT,
    # decisions
    "code": CODE,
    "clause": NAME,  # the policy field that decided
    "line": COUNT,  # 1-based line of policy.toml
    "state": NAME,
    "scope": CODE,
    "what": CODE,
    "kind": CODE,
    "give": CODE,  # how much of a look-up table: keep, delta, whole
    # figures
    "version": COUNT,
    "generation": COUNT,
    "rows": COUNT,
    "distinct_keys": COUNT,
    "bytes": SIZE,
    "count": COUNT,
    "approvals": COUNT,  # distinct people so far
    "needed": COUNT,
    "round": COUNT,  # number of a round; of a training run, never used twice at a node for one job
    "rounds": COUNT,  # of a training run that an attempt recorded here, of all turns together
    "turn": CODE,  # what a round of a training run is for: train, evaluate
    "sources": COUNT,  # whose numbers are added up in a round
    "min_group_size": COUNT,
    "max_rows": COUNT,
    "attempts": COUNT,  # that a job took
    "day": COUNT,  # which one of its series a job is, from 1
    "checked": COUNT,  # records that verification looked at
    "confirmed": COUNT,  # of which it found true
    "request": COUNT,  # number of a request in its session
    "lookups": COUNT,  # keys of a request
    "found": COUNT,  # of which the department asked has a record
    "key_version": COUNT,  # of the key that a look-up table is made with
    "table_version": COUNT,
    "sent": COUNT,  # rows of a table that are new at the other node, or have changed
    "removed": COUNT,  # rows of a table that are no more
    "seq": SIZE,
    "size": SIZE,
    "retry": FLAG,
    "opened": FLAG,  # whether anything derived from data had left
    "freed": FLAG,  # whether what was set aside for the attempt is free again
    # budgets
    "budget": NAME,
    "notion": NAME,
    "period": NAME,
    "cost": DECIMAL,
    "returned": DECIMAL,  # of what was charged, in the budget's own measure
    "spent": DECIMAL,
    "limit": DECIMAL,
    "rho": DECIMAL,  # zero-concentrated differential privacy
    "delta": DECIMAL,
    "records": COUNT,  # class-B rows that a quota counts
    "queries": COUNT,  # overlap queries that a quota counts
    # time
    "created": TIME,
    "expires": TIME,
    "not_before": TIME,
    "not_after": TIME,
    "previous_time": TIME,
    "decided": TIME,  # the moment a decision was taken for: decide it again at this one
    "step_ms": MILLISECONDS,
}
"""Every body key there is. A key means the same, and has the same type, in every kind that carries it."""


@dataclass(frozen=True, slots=True)
class EntryKind:
    """One kind of entry.

    Attributes:
        says: what the entry states, one line.
        required: body keys it must carry.
        optional: body keys it may carry; no others.
        job: True: it is about one job, `job` is that job's id. False: `job` is empty. None: either.
    """

    says: str
    required: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()
    job: bool | None = False
    accepts: Mapping[str, Callable[[Any], bool]] = field(init=False, repr=False, compare=False)
    """Of each key, what tells whether a value is of its type."""

    def __post_init__(self) -> None:
        accepts = {key: FIELDS[key].accepts for key in self.required | self.optional}
        object.__setattr__(self, "accepts", accepts)


def _kind(says: str, required: str = "", optional: str = "", *, job: bool | None = False) -> EntryKind:
    return EntryKind(says, frozenset(required.split()), frozenset(optional.split()), job)


_JOB = (
    "purpose legal_basis recipients roles role datasets columns collaboration question job_sha256 "
    "envelope_sha256 roster_sha256 class bytes signers participants created expires"
)
_VERSIONED = (
    "previous signers policy_id not_before expires freshness_sha256 policy_sha256 envelope_sha256 code"
)
_ENDED = "peer role round state retry opened requester participants job_type bytes rows sha256 policy_sha256"

_V1: Final[Mapping[str, EntryKind]] = {
    # the log itself
    "log.open": _kind(
        "the log starts; its key", "vkey", "generation software previous_vkey checkpoint_sha256"
    ),
    "log.successor": _kind(
        "a new generation follows a log that could not be continued",
        "checkpoint_sha256",
        "generation log vkey size root code",
    ),
    "key.rotate": _kind("the log's key changes", "vkey", "previous_vkey code signers"),
    "clock.step": _kind("the clock jumped", "", "previous_time step_ms code"),
    # policy and roster
    "policy.activate": _kind("a policy is in force from here on", "version sha256", _VERSIONED),
    "policy.refused": _kind(
        "a policy was not activated", "code", "line clause sha256 version previous signers policy_id expires"
    ),
    "stop.applied": _kind(
        "a stop is in force", "scope sha256", "subject signers expires version previous code envelope_sha256"
    ),
    "roster.activate": _kind("a roster is in force from here on", "version sha256", _VERSIONED),
    "roster.published": _kind("the coordinator hands out a roster", "version sha256", _VERSIONED),
    "node.enrolled": _kind(
        "a node's keys were accepted",
        "node identity",
        "organisation spki_sha256 vkey request_sha256 certificate_sha256 roster_sha256 version expires"
        " signers",
    ),
    # a job's way through
    "job.submitted": _kind("the coordinator took a job in", "requester job_type", _JOB, job=True),
    "job.received": _kind("a node was offered a job", "requester job_type", _JOB, job=True),
    "job.refused": _kind(
        "a job was refused before anything was computed",
        "code",
        _JOB + " requester job_type clause line dataset column peer state policy_sha256 approvals needed",
        job=True,
    ),
    "approval.recorded": _kind(
        "a signed approval counts",
        "approver approval_sha256",
        "role created expires cost approvals needed policy_sha256 code",
        job=True,
    ),
    "approval.rejected": _kind(
        "an approver said no, or an approval does not count",
        "code",
        "approver role approval_sha256 created expires approvals needed policy_sha256",
        job=True,
    ),
    "job.admitted": _kind(
        "a node takes part in an attempt; from here data may leave",
        "admission_sha256",
        _JOB
        + " requester job_type ctx leakage_sha256 constraints_sha256 inputs_sha256 commitment quality_sha256"
        " rows distinct_keys snapshot rule_version min_group_size max_rows approvals needed budget cost suite"
        " not_after policy_sha256",
        job=True,
    ),
    "job.cancelled": _kind("a job was withdrawn", "", _ENDED + " code signers envelope_sha256", job=True),
    "job.expired": _kind(
        "a job ran out of time before it ran", "", _ENDED + " code expires not_after", job=True
    ),
    "job.failed": _kind("an attempt failed", "code", _ENDED, job=True),
    "job.aborted": _kind("a node stopped an attempt on a guard", "code", _ENDED + " clause count", job=True),
    "outcome.filed": _kind(
        "the recipient reported what verification found",
        "sha256",
        "release rows bytes signers code",
        job=True,
    ),
    # budgets
    "budget.reserved": _kind(
        "privacy budget is set aside for an attempt",
        "budget cost",
        "spent limit period notion dataset",
        job=True,
    ),
    "budget.released": _kind(
        "a reservation is free again: nothing left this node",
        "budget cost",
        "spent limit period notion dataset code",
        job=True,
    ),
    # outputs
    "output.commit": _kind(
        "an output is final and durable; after a crash the same bytes are sent",
        "release class sha256",
        "bytes rows recipient recipients role envelope_sha256 leakage_sha256 min_group_size max_rows expires",
        job=True,
    ),
    "output.released": _kind(
        "an output left, or was handed to its recipient",
        "release sha256",
        "recipient recipients class bytes rows role envelope_sha256 expires retry",
        job=True,
    ),
    "deletion.receipt": _kind(
        "something was deleted", "what", "sha256 release dataset snapshot count bytes expires code", job=None
    ),
    # other logs
    "peer.receipt": _kind(
        "a peer's signed statement stands in this log too",
        "peer sha256",
        "kind log seq size root checkpoint_sha256 envelope_sha256 release code",
        job=None,
    ),
    "witness.conflict": _kind(
        "two views of one log do not fit together",
        "log checkpoint_sha256",
        "conflicting_sha256 witness size root code",
    ),
}


def _also(kinds: Mapping[str, EntryKind], kind: str, optional: str) -> EntryKind:
    published = kinds[kind]
    return replace(published, optional=published.optional | frozenset(optional.split()))


def _more(kind: str, optional: str) -> EntryKind:
    return _also(_V1, kind, optional)


_LEDGER = "delta unit scope rho records queries requester purpose role not_after"

_V2: Final[Mapping[str, EntryKind]] = {
    **_V1,
    # the log itself
    "key.rotate": _more("key.rotate", "envelope_sha256 identity size root"),
    "key.announced": _kind("this node's next identity key was made", "identity", "previous envelope_sha256"),
    # policy, roster, data
    "signers.pinned": _kind("who may sign policies here", "signers", "roles"),
    "stop.lifted": _kind("a stop is no longer in force", "sha256", "scope subject version signers"),
    "roster.fresh": _kind(
        "a statement that a roster is still the newest was taken over",
        "sha256 version",
        "signers expires created",
    ),
    "dataset.registered": _kind(
        "a dataset may be named in policies and jobs from here on",
        "dataset",
        "rows distinct_keys snapshot columns count code",
    ),
    # a job's way through
    "job.explained": _kind(
        "a dry answer was given; nothing ran",
        "code",
        "requester job_type purpose state approvals needed envelope_sha256 cost",
        job=True,
    ),
    "job.received": _more("job.received", "answered_by expected_use_sha256 records"),
    "job.refused": _more("job.refused", "answered_by expected_use_sha256 records"),
    "job.admitted": _more("job.admitted", "rho records queries answered_by delta"),
    "job.done": _kind("an attempt ended well at this node", "", "role peer rows opened attempts", job=True),
    "outcome.filed": _more("outcome.filed", "confirmed checked recipient envelope_sha256"),
    # budgets
    "budget.reserved": _more("budget.reserved", _LEDGER),
    "budget.charged": _kind(
        "a reservation became a charge: from here on something may have left",
        "budget cost",
        f"spent limit period notion dataset code {_LEDGER}",
        job=True,
    ),
    "budget.released": _more("budget.released", _LEDGER),
    # outputs
    "deletion.receipt": _more("deletion.receipt", "records"),
}


_V3: Final[Mapping[str, EntryKind]] = {
    **_V2,
    # what an auditor needs to take every decision once more
    "job.accepted": _kind(
        "a node's admission is signed and its cost is set aside; nothing left yet",
        "admission_sha256 envelope_sha256 decided",
        "requester job_type purpose role rows records queries rho delta roster_sha256",
        job=True,
    ),
    "job.answering": _kind(
        "messages that an answer could be made of are about to leave; approvals are used up",
        "",
        "role approvals",
        job=True,
    ),
    "job.started": _kind(
        "the coordinator handed everybody's admissions to everybody",
        "",
        "participants roster_sha256",
        job=True,
    ),
    "job.admitted": _also(_V2, "job.admitted", "decided software"),
    "job.cancelled": _also(_V2, "job.cancelled", "freed"),
    "job.expired": _also(_V2, "job.expired", "freed"),
    "job.failed": _also(_V2, "job.failed", "freed"),
    "job.aborted": _also(_V2, "job.aborted", "freed"),
    "approval.recorded": _also(_V2, "approval.recorded", "envelope_sha256"),
    "output.commit": _also(_V2, "output.commit", "content_sha256"),
    "signers.pinned": _also(_V2, "signers.pinned", "code"),
    # other logs
    "peer.receipt": _also(_V2, "peer.receipt", "class organisation"),
    "witness.conflict": _also(_V2, "witness.conflict", "peer"),
}

_V4: Final[Mapping[str, EntryKind]] = {
    **_V3,
    # what a limit for each pair of datasets counts
    "job.accepted": _also(_V3, "job.accepted", "partners"),
    # look-ups, one entry a request: how many keys, never which
    "table.sent": _kind(
        "the table of a look-up session is about to leave: whole, what changed of it, or nothing",
        "give rows",
        "role key_version table_version sent removed",
        job=True,
    ),
    "table.received": _kind(
        "the table of a look-up session is here, and people can ask",
        "give rows",
        "role key_version table_version sent removed",
        job=True,
    ),
    "lookup.answered": _kind(
        "a request of a look-up session is answered by the department asked",
        "lookups",
        "role request",
        job=True,
    ),
    "lookup.asked": _kind(
        "an answer goes to the person who asked", "lookups", "role request found reason_sha256", job=True
    ),
    "lookup.refused": _kind(
        "a request of a look-up session is over a limit, so nobody is told anything",
        "lookups code",
        "role request reason_sha256",
        job=True,
    ),
    "lookup.rotated": _kind("sessions that begin from here on use a new key", "dataset", "count"),
}

_V5: Final[Mapping[str, EntryKind]] = {
    **_V4,
    # runs in rounds: charged whole, and what no round was spent on is given back
    "training.round": _kind(
        "this source's part of a round of a training run is about to leave, masked",
        "turn round",
        "role sources",
        job=True,
    ),
    "budget.returned": _kind(
        "what no round of the attempt was spent on is free again: from here on it costs this much",
        "budget cost returned",
        f"spent limit period notion dataset {_LEDGER}",
        job=True,
    ),
    "job.done": _also(_V4, "job.done", "rounds"),
    "job.failed": _also(_V4, "job.failed", "rounds"),
    "job.aborted": _also(_V4, "job.aborted", "rounds"),
    "job.cancelled": _also(_V4, "job.cancelled", "rounds"),
    "job.expired": _also(_V4, "job.expired", "rounds"),
}

_V6: Final[Mapping[str, EntryKind]] = {
    **_V5,
    "catalogue.imported": _kind(
        "what other organisations read about datasets was taken over from a sheet", "count sha256", ""
    ),
    # how a department's own values become codes
    "dataset.registered": _also(_V5, "dataset.registered", "description_sha256 mapping_sha256"),
    "job.accepted": _also(_V5, "job.accepted", "mapping_sha256"),
    "job.admitted": _also(_V5, "job.admitted", "mapping_sha256 first day"),
}

KINDS_BY_VERSION: Final[Mapping[int, Mapping[str, EntryKind]]] = {
    1: _V1,
    2: _V2,
    3: _V3,
    4: _V4,
    5: _V5,
    6: _V6,
}
"""Every published `v`: its kinds, and what the body of each says. What is published never changes."""

ENTRY_KINDS: Final = KINDS_BY_VERSION[VERSION]
"""The kinds of the entries written now."""


@dataclass(frozen=True, slots=True)
class PolicyRef:
    """The policy, and the rule in it, by which an entry's decision was taken.

    Attributes:
        version: the policy's version.
        sha256: digest of policy.toml.
        rule: rule id; empty where no rule matched.
    """

    version: int
    sha256: str
    rule: str = ""


class _Policy(msgspec.Struct, forbid_unknown_fields=True):
    rule: str
    sha256: str
    version: int


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    """An entry as its bytes have it, with its JSON types checked and nothing else."""

    actor: str
    attempt: int
    body: dict[str, Any]
    job: str
    kind: str
    log: str
    policy: _Policy | None
    refs: list[str]
    seq: int
    time: str
    v: int

    def fields(self) -> dict[str, Any]:
        """Return what an `Entry` is made of."""
        policy = self.policy and PolicyRef(self.policy.version, self.policy.sha256, self.policy.rule)
        return {
            "log": self.log,
            "seq": self.seq,
            "time": self.time,
            "kind": self.kind,
            "job": self.job,
            "attempt": self.attempt,
            "policy": policy,
            "actor": self.actor,
            "body": self.body,
            "refs": tuple(self.refs),
            "v": self.v,
        }


_SORTED: Final = msgspec.json.Encoder(order="sorted")
_READER: Final = msgspec.json.Decoder(_Document)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a log.

    Attributes:
        log: origin of the log.
        seq: leaf index.
        time: UTC text with milliseconds, `2026-12-01T08:00:00.000Z`.
        kind: a key of `ENTRY_KINDS`.
        job: job id, or empty.
        attempt: attempt the entry belongs to; 0 where none is running.
        policy: the deciding policy, None where none was involved.
        actor: who caused it: key id, node, organisation; empty for the log's own program.
        body: what the kind says.
        refs: digests of objects and envelopes that the entry rests on.
        v: version of this format.
    """

    log: str
    seq: int
    time: str
    kind: str
    job: str
    attempt: int
    policy: PolicyRef | None
    actor: str
    body: Mapping[str, Any]
    refs: tuple[str, ...]
    v: int = VERSION

    def __post_init__(self) -> None:
        """Check every field against the published vocabulary.

        Raises:
            DecodeError: a field, kind, body key or value that v does not publish.
        """
        check_statement(self.kind, self.body, job=self.job, v=self.v)
        if not isinstance(self.log, str) or not _is_origin(self.log):
            raise _bad_field("log", "an origin line")
        if not _is_size(self.seq):
            raise _bad_field("seq", SIZE.says)
        if not _is_time(self.time):
            raise _bad_field("time", TIME.says)
        if not _is_int(self.attempt, 0, MAX_ATTEMPT):
            raise _bad_field("attempt", "an integer from 0 to 2147483647")
        if self.actor != "" and not _is_name(self.actor):
            raise _bad_field("actor", NAME.says)
        if len(self.refs) > MAX_LIST or not all(map(_is_digest, self.refs)):
            raise _bad_field("refs", "a list of at most 64 digests")
        policy = self.policy
        if policy is not None:
            if not _is_count(policy.version):
                raise _bad_field("policy.version", COUNT.says)
            if not _is_digest(policy.sha256):
                raise _bad_field("policy.sha256", DIGEST.says)
            if policy.rule != "" and not _is_name(policy.rule):
                raise _bad_field("policy.rule", NAME.says)

    def encode(self) -> bytes:
        """Return the entry's bytes: RFC 8785 JSON.

        Raises:
            DecodeError: longer than 65,535 bytes.
        """
        data = self._plain_json() or canonical_json(self._document())
        if len(data) > MAX_ENTRY_BYTES:
            raise DecodeError(
                f"entry of {len(data)} bytes, at most {MAX_ENTRY_BYTES} fit",
                code="too-long",
                hint="store the object with put_object and name its digest",
            )
        return data

    def _plain_json(self) -> bytes | None:
        """Return the entry's bytes if the fast encoder is sure to write RFC 8785, else None.

        All keys of an entry are ASCII and all its numbers small integers, so that only an escape could be
        spelled in more than one way.
        """
        try:
            data = _SORTED.encode(self)
        except (TypeError, UnicodeEncodeError):
            return None  # a subclass of a JSON type; or half a surrogate pair, which no spelling can carry
        return None if b"\\" in data else data

    def _document(self) -> dict[str, Any]:
        policy = self.policy and {
            "version": self.policy.version,
            "sha256": self.policy.sha256,
            "rule": self.policy.rule,
        }
        return {
            "v": self.v,
            "log": self.log,
            "seq": self.seq,
            "time": self.time,
            "kind": self.kind,
            "job": self.job,
            "attempt": self.attempt,
            "policy": policy,
            "actor": self.actor,
            "body": dict(self.body),
            "refs": list(self.refs),
        }

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Parse an entry strictly.

        Raises:
            DecodeError: not canonical JSON, an unknown or missing field, an unknown v, kind or body key, or
                a value not of its type.
        """
        # What is written back byte for byte, and holds no escape, is canonical: see `_plain_json`.
        if len(data) <= MAX_ENTRY_BYTES and b"\\" not in data:
            try:
                document = _READER.decode(data)
                if _SORTED.encode(document) == data:
                    return cls(**document.fields())
            except (ValueError, RecursionError, DecodeError):
                pass  # the strict way says what is wrong
        return cls._decode_strictly(data)

    @classmethod
    def reread(cls, data: bytes) -> Self:
        """Return the entry of bytes that `decode` accepted before; nothing is checked again."""
        document = _READER.decode(data)
        policy = document.policy
        entry, put = object.__new__(cls), object.__setattr__
        put(entry, "log", document.log)
        put(entry, "seq", document.seq)
        put(entry, "time", document.time)
        put(entry, "kind", document.kind)
        put(entry, "job", document.job)
        put(entry, "attempt", document.attempt)
        put(entry, "policy", policy and PolicyRef(policy.version, policy.sha256, policy.rule))
        put(entry, "actor", document.actor)
        put(entry, "body", document.body)
        put(entry, "refs", tuple(document.refs))
        put(entry, "v", document.v)
        return entry

    @classmethod
    def _decode_strictly(cls, data: bytes) -> Self:
        document = decode_json(data, limit=MAX_ENTRY_BYTES)
        if not isinstance(document, dict) or document.keys() != _ENTRY_FIELDS:
            raise DecodeError("an entry has exactly the published fields", code="bad-entry")
        policy, refs = document["policy"], document["refs"]
        if policy is not None:
            if not isinstance(policy, dict) or policy.keys() != _POLICY_FIELDS:
                raise _bad_field("policy", "null or {rule, sha256, version}")
            document["policy"] = PolicyRef(**policy)
        if not isinstance(refs, list):
            raise _bad_field("refs", "a list of digests")
        document["refs"] = tuple(refs)
        return cls(**document)


_LATEST: Final = "9999-12-31T23:59:59.999Z"


@dataclass(frozen=True, slots=True)
class Draft:
    """An entry that lacks only its place, `seq` and `time`, which come last in its bytes but for `v`.

    Attributes:
        kind: the entry's.
        head: its bytes up to the place.
        v: version of its format.
    """

    kind: str
    head: bytes
    v: int

    @classmethod
    def of(
        cls,
        *,
        log: str,
        kind: str,
        body: Mapping[str, Any],
        job: str = "",
        attempt: int = 0,
        policy: PolicyRef | None = None,
        actor: str = "",
        refs: Sequence[str] = (),
        v: int = VERSION,
    ) -> Self:
        """Return the draft, checked, and short enough for every place.

        Raises:
            DecodeError: it says something that `v` does not publish, or too much.
        """
        last = Entry(
            log, MAX_SIZE - 1, _LATEST, kind, job, attempt, policy, actor, dict(body), tuple(refs), v
        )
        return cls(kind, last.encode()[: -len(_tail(last.seq, last.time, v))], v)

    def at(self, seq: int, time: str) -> bytes:
        """Return the entry's bytes at its place.

        Args:
            seq: leaf index, below 2^53.
            time: as `format_time` writes it.
        """
        return self.head + _tail(seq, time, self.v)


def _tail(seq: int, time: str, v: int) -> bytes:
    return b'"seq":%d,"time":"%s","v":%d}' % (seq, time.encode(), v)


_ENTRY_FIELDS: Final = {
    "v", "log", "seq", "time", "kind", "job", "attempt", "policy", "actor", "body", "refs",
}  # fmt: skip
_POLICY_FIELDS: Final = {"version", "sha256", "rule"}


def check_statement(kind: str, body: Mapping[str, Any], *, job: str = "", v: int = VERSION) -> None:
    """Check what an entry is about to say, before it has a place in the log.

    Raises:
        DecodeError: unknown `v` or `kind`, a body key that the kind does not publish or lacks, a value not of
            its type, a job id where the kind has none or the other way round. The message repeats no value.
    """
    kinds = KINDS_BY_VERSION.get(v) if _is_int(v, 1, MAX_ATTEMPT) else None
    if kinds is None:
        raise DecodeError(
            f"entry format v is not one of {sorted(KINDS_BY_VERSION)}",
            code="unknown-version",
            hint="read this log with a newer release",
        )
    published = kinds.get(kind) if isinstance(kind, str) else None
    if published is None:
        raise DecodeError("an entry kind that v does not publish", code="unknown-kind")
    if not isinstance(body, Mapping):
        raise _bad_field("body", "an object")
    for key, value in body.items():
        accepts = published.accepts.get(key)
        if accepts is None:
            # A key we do not know may itself be data: it is only repeated if it cannot hold an identifier.
            shown = key if isinstance(key, str) and _KEY.fullmatch(key) else "a key"
            raise DecodeError(
                f"{kind} does not publish {shown} in its body",
                code="unknown-body-key",
                hint="see ENTRY_KINDS for what this kind may say",
            )
        if not accepts(value):
            raise _bad_field(f"body.{key} of {kind}", FIELDS[key].says)
    if not published.required <= body.keys():
        missing = published.required - body.keys()
        raise DecodeError(f"{kind} lacks {', '.join(sorted(missing))} in its body", code="missing-body-key")
    if published.job is False:
        if job != "":
            raise _bad_field(f"job of {kind}", "empty text: this kind is about no single job")
    elif not ((job == "" and published.job is None) or _is_digest(job)):
        raise _bad_field(f"job of {kind}", DIGEST.says)


def _bad_field(what: str, expected: str) -> DecodeError:
    return DecodeError(f"{what} is not {expected}", code="bad-entry-value")
