"""The signed documents and their one byte form: what is asked, answered, approved, released; who belongs.

Each document is a frozen value with `encode` (RFC 8785 JSON) and a `decode` that refuses unknown fields,
unknown versions and every other spelling. Past `decode`, nothing is checked twice.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, date, datetime, timedelta, timezone
from fractions import Fraction
from hashlib import sha256
from typing import Any, Final, Self

from protocols.encoding import b64decode, canonical_json, decode_json, digest_bytes, sha256_digest
from protocols.envelope import key_id
from protocols.errors import DecodeError
from protocols.freetext import UNREADABLE, could_identify
from protocols.ids import DatasetName, Digest, JobId, KeyId, NodeName, Organisation, Role

MAX_JOB_BYTES: Final = 256 << 10
MAX_PARTICIPANTS: Final = 64
MAX_TEXT: Final = 512
COSIGNER_KINDS: Final = ((4, 32), (6, 1312))
"""Type and bytes of a node's witness keys: Ed25519, and ML-DSA-44 beside it (C2SP tlog-cosignature)."""
MAX_WITNESS_VKEYS: Final = len(COSIGNER_KINDS)

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,98}[a-z0-9])?")
_NODE = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,98}[a-z0-9])?/[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
_DATASET = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?")
_COLUMN = re.compile(r"[^\W\d]\w{0,62}")
_JOB_TYPE = re.compile(r"[a-z][a-z-]{0,30}/[1-9][0-9]{0,3}")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_NONCE = re.compile(r"[0-9a-f]{32}")
_NONCE_32 = re.compile(r"[0-9a-f]{64}")
_ORIGIN = re.compile(r"[^\s+\x00-\x1f]{1,200}")
_RECEIPT_KIND = re.compile(r"output\.commit")
_HEX = re.compile(r"(?:[0-9a-f]{2})*")
_BY = re.compile(_NODE.pattern + r"|sha256:[0-9a-f]{64}")
_DECIMAL = re.compile(r"(?:0|[1-9][0-9]{0,18})(?:\.[0-9]{1,18})?")
_VKEY = re.compile(r"[^\s+]{1,200}\+[0-9a-f]{8}\+[A-Za-z0-9+/]{4,1800}={0,2}")
_FRACTION = re.compile(r"0|1|[1-9][0-9]{0,30}/[1-9][0-9]{0,30}")

_CHINA: Final = timezone(timedelta(hours=8))


def is_column(text: object) -> bool:
    """Whether a job can name a column so."""
    return isinstance(text, str) and _COLUMN.fullmatch(text) is not None


def is_node(text: object) -> bool:
    """Whether a node can be called so."""
    return isinstance(text, str) and _NODE.fullmatch(text) is not None


def utc_text(moment: datetime) -> str:
    """Return `2026-11-22T08:00:00Z`; the moment must know its zone, fractions of a second are cut."""
    # isoformat, because strftime writes the year 999 with three digits.
    return moment.astimezone(UTC).replace(microsecond=0, tzinfo=None).isoformat() + "Z"


def civil_day(moment: datetime) -> date:
    """Return the day in China at a moment, which must know its zone: UTC+8, all year, the whole country."""
    return moment.astimezone(_CHINA).date()


def parse_utc(text: str) -> datetime:
    """Return the moment of a `…Z` text.

    Raises:
        DecodeError: another form, or no such moment.
    """
    wrong = DecodeError("expected a time such as 2026-11-22T08:00:00Z", code="bad-time")
    if not _TIME.fullmatch(text):
        raise wrong
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError:
        raise wrong from None


class Fields:
    """Takes typed fields out of one decoded JSON object and refuses what is left over."""

    def __init__(self, value: Any, what: str) -> None:
        """Start on `value`, called `what` in errors."""
        if not isinstance(value, dict):
            raise DecodeError(f"{what} is not an object", code="bad-field")
        self._value = dict(value)
        self._what = what

    def take(self, name: str, kind: type | tuple[type, ...]) -> Any:
        """Return and remove field `name` of type `kind`; a boolean is no integer."""
        if name not in self._value:
            raise DecodeError(f"{self._what} lacks the field {name}", code="missing-field")
        value = self._value.pop(name)
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kind) or (isinstance(value, bool) and bool not in kinds):
            expected = " or ".join(k.__name__ for k in kinds)
            raise DecodeError(
                f"{self._what}.{name} is {type(value).__name__}, expected {expected}", code="bad-field"
            )
        return value

    def text(self, name: str, pattern: re.Pattern[str] | None = None, *, limit: int = MAX_TEXT) -> str:
        """Return a text field of at most `limit` characters that matches `pattern` whole.

        Text without a pattern may hold anything a person can read: no control or direction characters.
        """
        value: str = self.take(name, str)
        unfit = UNREADABLE.search(value) if pattern is None else not pattern.fullmatch(value)
        if len(value) > limit or unfit:
            raise DecodeError(f"{self._what}.{name} does not have the expected form", code="bad-field")
        return value

    def count(self, name: str, *, minimum: int = 0, maximum: int = 2**53 - 1) -> int:
        """Return an integer field within bounds."""
        value: int = self.take(name, int)
        if not minimum <= value <= maximum:
            raise DecodeError(f"{self._what}.{name} is outside {minimum}..{maximum}", code="bad-field")
        return value

    def digest(self, name: str) -> Digest:
        """Return a `sha256:…` field."""
        value: str = self.take(name, str)
        digest_bytes(value)
        return Digest(value)

    def time(self, name: str) -> datetime:
        """Return a UTC time field."""
        return parse_utc(self.take(name, str))

    def items(self, name: str, *, maximum: int = MAX_PARTICIPANTS) -> list[Any]:
        """Return a list field of at most `maximum` items."""
        value: list[Any] = self.take(name, list)
        if len(value) > maximum:
            raise DecodeError(f"{self._what}.{name} has more than {maximum} items", code="bad-field")
        return value

    def mapping(self, name: str, *, maximum: int = MAX_PARTICIPANTS) -> dict[str, Any]:
        """Return an object field of at most `maximum` keys."""
        value: dict[str, Any] = self.take(name, dict)
        if len(value) > maximum:
            raise DecodeError(f"{self._what}.{name} has more than {maximum} keys", code="bad-field")
        return value

    def schema(self, expected: str) -> None:
        """Refuse every schema but `expected`."""
        if self.take("schema", str) != expected:
            raise DecodeError(f"unknown schema, expected {expected}", code="unknown-schema")

    def finish(self) -> None:
        """Refuse fields nobody took."""
        if self._value:
            raise DecodeError(f"{self._what} has {len(self._value)} unknown field(s)", code="unknown-field")


def _named(text: Any, pattern: re.Pattern[str], what: str) -> str:
    if not isinstance(text, str) or not pattern.fullmatch(text):
        raise DecodeError(f"{what} does not have the expected form", code="bad-field")
    return text


@dataclass(frozen=True, slots=True)
class JobInput:
    """One dataset that a role brings: `columns` maps the job type's slot to the dataset's column."""

    role: Role
    organisation: Organisation
    dataset: DatasetName
    columns: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return the plain JSON form."""
        return {
            "role": self.role,
            "organisation": self.organisation,
            "dataset": self.dataset,
            "columns": dict(self.columns),
        }

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Read the plain JSON form strictly."""
        f = Fields(value, "job input")
        columns = f.mapping("columns")
        result = cls(
            Role(f.text("role", _NAME)),
            Organisation(f.text("organisation", _NAME)),
            DatasetName(f.text("dataset", _DATASET)),
            {
                _named(slot, _COLUMN, "column slot"): _named(c, _COLUMN, "column")
                for slot, c in columns.items()
            },
        )
        f.finish()
        return result


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What a bureau asks, as signed by one of its analysts. `minshu-job/2`, trust §3.

    `expected_use` says in a sentence what the answer is for; officers read it, and outcomes are held to it.
    """

    job_type: str
    params: Mapping[str, Any]
    inputs: tuple[JobInput, ...]
    roles: Mapping[Role, NodeName]
    purpose: str
    legal_basis: str
    expected_use: str
    recipients: tuple[Organisation, ...]
    requester: KeyId
    collaboration: str
    roster_digest: Digest
    created: datetime
    expires: datetime
    nonce: str
    _id: JobId | None = field(default=None, init=False, repr=False, compare=False)

    def encode(self) -> bytes:
        """Return the canonical payload; its digest is the job id."""
        return canonical_json(
            {
                "schema": "minshu-job/2",
                "job_type": self.job_type,
                "params": dict(self.params),
                "inputs": [i.to_json() for i in self.inputs],
                "recipients": list(self.recipients),
                "roles": dict(self.roles),
                "purpose": self.purpose,
                "legal_basis": self.legal_basis,
                "expected_use": self.expected_use,
                "requester": self.requester,
                "collaboration": self.collaboration,
                "roster_digest": self.roster_digest,
                "created": utc_text(self.created),
                "expires": utc_text(self.expires),
                "nonce": self.nonce,
            }
        )

    @property
    def job_id(self) -> JobId:
        """`sha256:` of the payload."""
        if self._id is None:
            # Nothing else of a frozen value changes, so it is worked out once; `replace` starts without it.
            object.__setattr__(self, "_id", JobId(sha256_digest(self.encode())))
        assert self._id is not None
        return self._id

    @property
    def day(self) -> date:
        """The day in China on which the job was created; identifiers are judged as of it."""
        return civil_day(self.created)

    def question(self, snapshot: str) -> Digest:
        """Digest of what is asked, over one node's data as it was at `snapshot`.

        Purpose, times, nonce and requester do not count, nor the order of inputs: the answer would be
        the same.
        """
        inputs = sorted((i.to_json() for i in self.inputs), key=lambda plain: str(plain["role"]))
        return sha256_digest(
            b"minshu/question/1\0"
            + canonical_json(
                {
                    "job_type": self.job_type,
                    "params": dict(self.params),
                    "inputs": inputs,
                    "roles": dict(self.roles),
                    "recipients": sorted(self.recipients),
                    "snapshot": snapshot,
                }
            )
        )

    def input_of(self, role: Role) -> JobInput | None:
        """Return what `role` brings, None for a role without a dataset."""
        return next((i for i in self.inputs if i.role == role), None)

    def role_of(self, node: NodeName) -> Role | None:
        """Return the one role of `node`, None where it takes no part."""
        return next((role for role, name in self.roles.items() if name == node), None)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a job payload strictly.

        (1) Canonical JSON of at most 256 KiB, known schema, no unknown field. (2) Each node has one role.
        (3) Each input belongs to a named role, to the organisation of that role's node, once.

        Raises:
            DecodeError: with the field that is wrong.
        """
        f = Fields(decode_json(payload, limit=MAX_JOB_BYTES), "job")
        f.schema("minshu-job/2")
        roles = {
            Role(_named(role, _NAME, "role")): NodeName(_named(node, _NODE, "node"))
            for role, node in f.mapping("roles").items()
        }
        spec = cls(
            job_type=f.text("job_type", _JOB_TYPE),
            params=f.mapping("params"),
            inputs=tuple(JobInput.from_json(item) for item in f.items("inputs")),
            roles=roles,
            purpose=f.text("purpose"),
            legal_basis=f.text("legal_basis"),
            expected_use=f.text("expected_use"),
            recipients=tuple(
                Organisation(_named(item, _NAME, "recipient")) for item in f.items("recipients")
            ),
            requester=KeyId(f.digest("requester")),
            collaboration=f.text("collaboration", _NAME),
            roster_digest=f.digest("roster_digest"),
            created=f.time("created"),
            expires=f.time("expires"),
            nonce=f.text("nonce", _NONCE),
        )
        f.finish()
        # (2)
        if len(set(roles.values())) != len(roles):
            raise DecodeError("a node holds two roles of the job, each node may hold one", code="bad-roles")
        # (3)
        seen: set[Role] = set()
        for item in spec.inputs:
            node = roles.get(item.role)
            if node is None or item.role in seen:
                raise DecodeError("an input names no role of the job, or a role twice", code="bad-inputs")
            if organisation_of(node) != item.organisation:
                raise DecodeError("an input's organisation is not its node's", code="bad-inputs")
            seen.add(item.role)
        if spec.expires <= spec.created:
            raise DecodeError("the job expires before it was created", code="bad-time")
        # Only the canonical spelling gets this far, so the payload is what `encode` would write again.
        object.__setattr__(spec, "_id", JobId(sha256_digest(payload)))
        return spec


def organisation_of(node: NodeName) -> Organisation:
    """Return the organisation part of a node's full name."""
    return Organisation(node.partition("/")[0])


@dataclass(frozen=True, slots=True)
class Constraints:
    """What a participant demands of a job. None means: no demand. `strictest` merges; shares are fractions.

    `min_*` merges to the largest value, `max_*` to the smallest. `max_per_minute` is of a session's look-ups,
    `max_series_days` how long the keys of a series live.
    """

    min_group_size: int | None = None
    min_organisations: int | None = None
    min_sources: int | None = None
    max_rows: int | None = None
    max_fraction: Fraction | None = None
    min_coverage: Fraction | None = None
    max_runtime_s: int | None = None
    max_per_minute: int | None = None
    max_series_days: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the plain JSON form: only what is demanded, fractions as `3/10`."""
        plain: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if value is not None:
                plain[f.name] = str(value) if isinstance(value, Fraction) else value
        return plain

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Read the plain JSON form strictly."""
        f = Fields(value, "constraints")
        found: dict[str, Any] = {}
        for name in value:
            if name in ("max_fraction", "min_coverage"):
                found[name] = _fraction(f.text(name, limit=64))
            elif name in {each.name for each in fields(cls)}:
                found[name] = f.count(name)
        f.finish()
        return cls(**found)


def _fraction(text: str) -> Fraction:
    # Matched first: Fraction would also read "1e999999999" and fill the memory.
    if not _FRACTION.fullmatch(text):
        raise DecodeError("not a fraction such as 3/10", code="bad-field")
    value = Fraction(text)
    if value > 1 or str(value) != text:
        raise DecodeError("fraction is outside 0..1 or not in lowest terms", code="bad-field")
    return value


def strictest(all_of: Iterable[Constraints]) -> Constraints:
    """Return the constraints that satisfy every participant's."""
    merged: dict[str, Any] = {}
    for one in all_of:
        for f in fields(Constraints):
            value = getattr(one, f.name)
            if value is None:
                continue
            known = merged.get(f.name)
            pick = min if f.name.startswith("max_") else max
            merged[f.name] = value if known is None else pick(known, value)
    return Constraints(**merged)


@dataclass(frozen=True, slots=True)
class InputSummary:
    """What a node says of one input before it runs; the commitment binds it to the exact list.

    `rows` as read, `distinct_keys` after normalisation and removal of repeats, `catalogue_keys` as the
    node's catalogue publishes them, `commitment` = SHA-256(salt32 ‖ sorted normalised list).
    """

    rows: int
    distinct_keys: int
    catalogue_keys: int
    commitment: Digest
    snapshot: str
    quality_sha256: Digest
    rule_version: str

    def to_json(self) -> dict[str, Any]:
        """Return the plain JSON form."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Read the plain JSON form strictly."""
        f = Fields(value, "input summary")
        result = cls(
            rows=f.count("rows"),
            distinct_keys=f.count("distinct_keys"),
            catalogue_keys=f.count("catalogue_keys"),
            commitment=f.digest("commitment"),
            snapshot=f.text("snapshot"),
            quality_sha256=f.digest("quality_sha256"),
            rule_version=f.text("rule_version"),
        )
        f.finish()
        return result


@dataclass(frozen=True, slots=True)
class Admission:
    """A node's signed yes to one attempt. `minshu-admission/1`, trust §2.

    `key` is a fresh HPKE public key of `suite` for this attempt alone; `inputs` has the node's own dataset,
    or nothing for a role without one.
    """

    job: JobId
    attempt: int
    node: NodeName
    suite: int
    key: bytes
    roster_digest: Digest
    participants: Mapping[Role, NodeName]
    policy_version: int
    policy_digest: Digest
    rule: str
    constraints: Constraints
    inputs: Mapping[DatasetName, InputSummary]
    not_after: datetime

    def encode(self) -> bytes:
        """Return the canonical payload."""
        return canonical_json(
            {
                "schema": "minshu-admission/1",
                "job": self.job,
                "attempt": self.attempt,
                "node": self.node,
                "suite": self.suite,
                "key": self.key.hex(),
                "roster_digest": self.roster_digest,
                "participants": dict(self.participants),
                "policy": {"version": self.policy_version, "sha256": self.policy_digest, "rule": self.rule},
                "constraints": self.constraints.to_json(),
                "inputs": {name: summary.to_json() for name, summary in self.inputs.items()},
                "not_after": utc_text(self.not_after),
            }
        )

    @property
    def digest(self) -> Digest:
        """`sha256:` of the payload; the sorted digests of all admissions make `ctx`."""
        return sha256_digest(self.encode())

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read an admission payload strictly.

        Raises:
            DecodeError: with the field that is wrong.
        """
        f = Fields(decode_json(payload, limit=MAX_JOB_BYTES), "admission")
        f.schema("minshu-admission/1")
        policy = Fields(f.mapping("policy"), "admission.policy")
        result = cls(
            job=JobId(f.digest("job")),
            attempt=f.count("attempt", minimum=1, maximum=1 << 20),
            node=NodeName(f.text("node", _NODE)),
            suite=f.count("suite", minimum=1, maximum=255),
            key=_hex(f.text("key", limit=8192)),
            roster_digest=f.digest("roster_digest"),
            participants={
                Role(_named(role, _NAME, "role")): NodeName(_named(node, _NODE, "node"))
                for role, node in f.mapping("participants").items()
            },
            policy_version=policy.count("version", minimum=1),
            policy_digest=policy.digest("sha256"),
            rule=policy.text("rule", limit=64),
            constraints=Constraints.from_json(f.mapping("constraints")),
            inputs={
                DatasetName(_named(name, _DATASET, "dataset")): InputSummary.from_json(summary)
                for name, summary in f.mapping("inputs").items()
            },
            not_after=f.time("not_after"),
        )
        policy.finish()
        f.finish()
        return result


def _hex(text: str) -> bytes:
    if not re.fullmatch(r"(?:[0-9a-f]{2})*", text):
        raise DecodeError("expected lower-case hex", code="bad-field")
    return bytes.fromhex(text)


def context(admissions: Iterable[Admission]) -> bytes:
    """Return `ctx`: 32 bytes, SHA-256 of the sorted admission digests, bound into every frame."""
    raw = sorted(digest_bytes(a.digest) for a in admissions)
    return digest_bytes(sha256_digest(b"minshu/ctx/1\0" + b"".join(raw)))


@dataclass(frozen=True, slots=True)
class CostLine:
    """What a job would cost one budget or quota of a policy; decimal texts in the notion's own measure.

    `remaining` is what is left before this job, rounded down; `until` is when the period ends, UTC.
    """

    budget: str
    notion: str
    cost: str
    remaining: str
    limit: str
    until: datetime

    def to_json(self) -> dict[str, Any]:
        """Return the plain JSON form."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**plain, "until": utc_text(self.until)}

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Read the plain JSON form strictly."""
        f = Fields(value, "cost line")
        result = cls(
            budget=f.text("budget", _NAME),
            notion=f.text("notion", _NAME),
            cost=f.text("cost", _DECIMAL, limit=64),
            remaining=f.text("remaining", _DECIMAL, limit=64),
            limit=f.text("limit", _DECIMAL, limit=64),
            until=f.time("until"),
        )
        f.finish()
        return result


@dataclass(frozen=True, slots=True)
class Leaving:
    """One release that a job would make."""

    name: str
    output_class: str
    recipient: Organisation
    made_by: Role

    def to_json(self) -> dict[str, Any]:
        """Return the plain JSON form."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Read the plain JSON form strictly."""
        f = Fields(value, "leaving")
        result = cls(
            name=f.text("name", _NAME),
            output_class=f.text("output_class", re.compile("[ABC]")),
            recipient=Organisation(f.text("recipient", _NAME)),
            made_by=Role(f.text("made_by", _NAME)),
        )
        f.finish()
        return result


@dataclass(frozen=True, slots=True)
class Verdict:
    """A node's signed answer to an offered job, or to a question what it would answer. `minshu-verdict/2`.

    `answer` is `permit`, `ask` or `refuse`; `code`, `sentence` and `hint` tell the analyst why and what next,
    the latter two in English and, ending in `_zh`, in Chinese. `attempt` 0 marks a dry answer: nothing was
    asked to run. `approvers` are the capacities that may still approve, `costs` what each budget would be
    charged, `leaves` what would leave and to whom, `answered` an earlier job of this node whose releases
    answer the very same question.
    """

    job: JobId
    attempt: int
    node: NodeName
    answer: str
    rule: str
    code: str
    sentence: str
    hint: str
    approvals_needed: int = 0
    approvals_given: int = 0
    approvers: tuple[str, ...] = ()
    costs: tuple[CostLine, ...] = ()
    leaves: tuple[Leaving, ...] = ()
    answered: str = ""
    sentence_zh: str = ""
    hint_zh: str = ""

    def encode(self) -> bytes:
        """Return the canonical payload."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        plain["approvers"] = list(self.approvers)
        plain["costs"] = [line.to_json() for line in self.costs]
        plain["leaves"] = [leaving.to_json() for leaving in self.leaves]
        return canonical_json({"schema": "minshu-verdict/2", **plain})

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a verdict payload strictly.

        Raises:
            DecodeError: with the field that is wrong.
        """
        f = Fields(decode_json(payload, limit=64 << 10), "verdict")
        f.schema("minshu-verdict/2")
        result = cls(
            job=JobId(f.digest("job")),
            attempt=f.count("attempt", maximum=1 << 20),
            node=NodeName(f.text("node", _NODE)),
            answer=f.text("answer", re.compile("permit|ask|refuse")),
            rule=f.text("rule", limit=64),
            code=f.text("code", limit=64),
            sentence=f.text("sentence", limit=2048),
            hint=f.text("hint", limit=2048),
            approvals_needed=f.count("approvals_needed", maximum=99),
            approvals_given=f.count("approvals_given", maximum=99),
            approvers=tuple(_named(a, _NAME, "approver") for a in f.items("approvers", maximum=16)),
            costs=tuple(CostLine.from_json(line) for line in f.items("costs", maximum=16)),
            leaves=tuple(Leaving.from_json(leaving) for leaving in f.items("leaves")),
            answered=f.text("answered", re.compile("|sha256:[0-9a-f]{64}")),
            sentence_zh=f.text("sentence_zh", limit=2048),
            hint_zh=f.text("hint_zh", limit=2048),
        )
        f.finish()
        return result


@dataclass(frozen=True, slots=True)
class Approval:
    """One person's signed yes to one job under one policy version. `minshu-approval/1`, trust §4 (6).

    `cost` is the text form of the whole cost (`protocols.dp.cost`), so that a yes to one price is no yes to
    another.
    """

    job: JobId
    node: NodeName
    policy_digest: Digest
    rule: str
    cost: str
    issued: datetime
    expires: datetime
    nonce: str

    def encode(self) -> bytes:
        """Return the canonical payload."""
        return canonical_json(
            {
                "schema": "minshu-approval/1",
                "job": self.job,
                "node": self.node,
                "policy": self.policy_digest,
                "rule": self.rule,
                "cost": self.cost,
                "issued": utc_text(self.issued),
                "expires": utc_text(self.expires),
                "nonce": self.nonce,
            }
        )

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read an approval payload strictly.

        Raises:
            DecodeError: with the field that is wrong.
        """
        f = Fields(decode_json(payload, limit=16 << 10), "approval")
        f.schema("minshu-approval/1")
        result = cls(
            job=JobId(f.digest("job")),
            node=NodeName(f.text("node", _NODE)),
            policy_digest=f.digest("policy"),
            rule=f.text("rule", limit=64),
            cost=f.text("cost", limit=4096),
            issued=f.time("issued"),
            expires=f.time("expires"),
            nonce=f.text("nonce", _NONCE),
        )
        f.finish()
        return result


@dataclass(frozen=True, slots=True)
class ReleaseNote:
    """What a node says, signed, about one release it seals. `minshu-release/1`.

    `sha256` is the digest of the sealed bytes, `content_sha256` of the plaintext; `statement` is how to read
    it, e.g. the class-B mark. `sealed_to` is the key id of the recipient's HPKE key.
    """

    release: str
    job: JobId
    attempt: int
    node: NodeName
    name: str
    output_class: str
    recipient: Organisation
    sealed_to: Digest
    suite: int
    sha256: Digest
    content_sha256: Digest
    statement: str
    created: datetime
    expires: datetime

    def encode(self) -> bytes:
        """Return the canonical payload."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        plain["created"], plain["expires"] = utc_text(self.created), utc_text(self.expires)
        return canonical_json({"schema": "minshu-release/1", **plain})

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a release note strictly.

        Raises:
            DecodeError: with the field that is wrong.
        """
        f = Fields(decode_json(payload, limit=16 << 10), "release")
        f.schema("minshu-release/1")
        result = cls(
            release=f.text("release", _NONCE),
            job=JobId(f.digest("job")),
            attempt=f.count("attempt", minimum=1, maximum=1 << 20),
            node=NodeName(f.text("node", _NODE)),
            name=f.text("name", _NAME),
            output_class=f.text("output_class", re.compile("[ABC]")),
            recipient=Organisation(f.text("recipient", _NAME)),
            sealed_to=f.digest("sealed_to"),
            suite=f.count("suite", minimum=1, maximum=255),
            sha256=f.digest("sha256"),
            content_sha256=f.digest("content_sha256"),
            statement=f.text("statement"),
            created=f.time("created"),
            expires=f.time("expires"),
        )
        f.finish()
        return result


@dataclass(frozen=True, slots=True)
class RosterOrganisation:
    """One member, with the title people know it by."""

    name: Organisation
    title: str


@dataclass(frozen=True, slots=True)
class RosterNode:
    """One node: identity key (raw Ed25519), SHA-256 of its TLS SPKI, journal vkey, recipient HPKE key."""

    name: NodeName
    identity_key: bytes
    tls_spki_sha256: Digest
    journal_vkey: str
    recipient_key: bytes
    witness_vkeys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RosterCoordinator:
    """The coordinator, and the verifier key of its journal."""

    name: NodeName
    journal_vkey: str


@dataclass(frozen=True, slots=True)
class RosterAnalyst:
    """One analyst: signing key (raw Ed25519) and the HPKE key that class A and C releases are sealed to."""

    name: str
    organisation: Organisation
    key: bytes
    recipient_key: bytes


@dataclass(frozen=True, slots=True)
class NextRoots:
    """The root keys that sign from the next roster on, raw Ed25519, sorted; `threshold` of them must."""

    threshold: int
    keys: tuple[bytes, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the plain JSON form."""
        return {"threshold": self.threshold, "keys": [key.hex() for key in self.keys]}

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Read the plain JSON form strictly."""
        f = Fields(value, "roster roots")
        threshold = f.count("threshold", minimum=1, maximum=16)
        keys = tuple(_key32(_named(key, _HEX, "root key")) for key in f.items("keys", maximum=16))
        f.finish()
        if list(keys) != sorted(set(keys)) or len(keys) < threshold:
            raise DecodeError("the next root keys are not sorted and distinct, or too few", code="bad-roots")
        return cls(threshold, keys)


@dataclass(frozen=True, slots=True)
class Roster:
    """Members and their keys, signed by the root keys each node pinned. `minshu-roster/3`, trust §1.

    `suite` is the sealing suite of the whole collaboration; it is never negotiated. `freshness_keys` are raw
    Ed25519 keys whose owners say, at least every seven days, that this roster still holds. `roots` hands the
    signing over to other root keys from the next version on, None where they stay. `coordinator` says which
    log is the coordinator's, None where nobody vouches for one: then no node cosigns it.
    """

    collaboration: str
    version: int
    previous: Digest | None
    suite: int
    issued: datetime
    expires: datetime
    organisations: tuple[RosterOrganisation, ...] = ()
    nodes: tuple[RosterNode, ...] = ()
    analysts: tuple[RosterAnalyst, ...] = ()
    freshness_keys: tuple[bytes, ...] = ()
    roots: NextRoots | None = None
    coordinator: RosterCoordinator | None = None

    def encode(self) -> bytes:
        """Return the canonical payload."""
        return canonical_json(
            {
                "schema": "minshu-roster/3",
                "coordinator": None
                if self.coordinator is None
                else {"name": self.coordinator.name, "journal_vkey": self.coordinator.journal_vkey},
                "freshness_keys": [key.hex() for key in self.freshness_keys],
                "roots": None if self.roots is None else self.roots.to_json(),
                "collaboration": self.collaboration,
                "version": self.version,
                "previous": self.previous,
                "suite": self.suite,
                "issued": utc_text(self.issued),
                "expires": utc_text(self.expires),
                "organisations": [{"name": o.name, "title": o.title} for o in self.organisations],
                "nodes": [
                    {
                        "name": n.name,
                        "identity_key": n.identity_key.hex(),
                        "tls_spki_sha256": n.tls_spki_sha256,
                        "journal_vkey": n.journal_vkey,
                        "witness_vkeys": list(n.witness_vkeys),
                        "recipient_key": n.recipient_key.hex(),
                    }
                    for n in self.nodes
                ],
                "analysts": [
                    {
                        "name": a.name,
                        "organisation": a.organisation,
                        "key": a.key.hex(),
                        "recipient_key": a.recipient_key.hex(),
                    }
                    for a in self.analysts
                ],
            }
        )

    @property
    def digest(self) -> Digest:
        """`sha256:` of the payload."""
        return sha256_digest(self.encode())

    def node(self, name: NodeName) -> RosterNode | None:
        """Return the member node of that name."""
        return next((n for n in self.nodes if n.name == name), None)

    def analyst(self, key: KeyId) -> RosterAnalyst | None:
        """Return the analyst whose signing key has that id."""
        return next((a for a in self.analysts if key_id(a.key) == key), None)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a roster payload strictly: names once each, keys once each, every node's organisation listed.

        Raises:
            DecodeError: with the field that is wrong.
        """
        f = Fields(decode_json(payload), "roster")
        f.schema("minshu-roster/3")
        previous = f.take("previous", (str, type(None)))
        if previous is not None:
            digest_bytes(previous)
        result = cls(
            collaboration=f.text("collaboration", _NAME),
            version=f.count("version", minimum=1),
            previous=previous,
            suite=f.count("suite", minimum=1, maximum=255),
            issued=f.time("issued"),
            expires=f.time("expires"),
            organisations=tuple(_roster_organisation(i) for i in f.items("organisations", maximum=1024)),
            nodes=tuple(_roster_node(i) for i in f.items("nodes", maximum=1024)),
            analysts=tuple(_roster_analyst(i) for i in f.items("analysts", maximum=1024)),
            freshness_keys=tuple(
                _key32(_named(key, _HEX, "freshness key")) for key in f.items("freshness_keys", maximum=16)
            ),
            roots=None
            if (roots := f.take("roots", (dict, type(None)))) is None
            else NextRoots.from_json(roots),
            coordinator=None
            if (coordinator := f.take("coordinator", (dict, type(None)))) is None
            else _roster_coordinator(coordinator),
        )
        f.finish()
        members = [o.name for o in result.organisations]
        names = [*members, *(n.name for n in result.nodes), *(a.name for a in result.analysts)]
        # A cosignature does not say whose it is: one key at two nodes would be two votes.
        keys = [
            *(n.identity_key for n in result.nodes),
            *(key for n in result.nodes for key in map(_cosigner_key, n.witness_vkeys)),
            *(a.key for a in result.analysts),
            *result.freshness_keys,
        ]
        if len(set(names)) != len(names) or len(set(keys)) != len(keys):
            raise DecodeError("the roster names somebody or some key twice", code="bad-roster")
        owners = [
            *(organisation_of(n.name) for n in result.nodes),
            *(a.organisation for a in result.analysts),
        ]
        if not set(owners) <= set(members):
            raise DecodeError(
                "the roster has a node or analyst of an organisation it does not list", code="bad-roster"
            )
        return result


def _key32(text: str) -> bytes:
    raw = _hex(text)
    if len(raw) != 32:
        raise DecodeError("expected a key of 32 bytes", code="bad-field")
    return raw


def _roster_organisation(value: Any) -> RosterOrganisation:
    f = Fields(value, "roster organisation")
    result = RosterOrganisation(Organisation(f.text("name", _NAME)), f.text("title"))
    f.finish()
    return result


def _cosigner_key(line: str) -> bytes:
    return b64decode(line.split("+", 2)[2])[1:]


def _cosigners(lines: Iterable[Any], node: NodeName) -> tuple[str, ...]:
    """Read a node's witness vkeys strictly: under its own name, the Ed25519 one first (C2SP signed-note)."""
    kinds = []
    for line in lines:
        name, label, encoded = _named(line, _VKEY, "witness vkey").split("+", 2)
        data = b64decode(encoded)
        kinds.append((data[0], len(data) - 1))
        own = re.fullmatch(re.escape(node) + r"/witness/[1-9][0-9]{0,8}", name)
        if own is None or sha256(name.encode() + b"\n" + data).hexdigest()[:8] != label:
            raise DecodeError("a witness vkey is another's, or contradicts itself", code="bad-field")
    if kinds != list(COSIGNER_KINDS[: len(kinds)]):
        raise DecodeError("witness vkeys are of types 4 and 6, in this order", code="bad-field")
    return tuple(lines)


def _roster_node(value: Any) -> RosterNode:
    f = Fields(value, "roster node")
    name = NodeName(f.text("name", _NODE))
    result = RosterNode(
        name=name,
        identity_key=_key32(f.text("identity_key")),
        tls_spki_sha256=f.digest("tls_spki_sha256"),
        journal_vkey=f.text("journal_vkey"),
        recipient_key=_hex(f.text("recipient_key", limit=8192)),
        witness_vkeys=_cosigners(f.items("witness_vkeys", maximum=MAX_WITNESS_VKEYS), name),
    )
    f.finish()
    return result


def _roster_coordinator(value: Any) -> RosterCoordinator:
    f = Fields(value, "roster coordinator")
    result = RosterCoordinator(NodeName(f.text("name", _NODE)), _named(f.text("journal_vkey"), _VKEY, "vkey"))
    f.finish()
    return result


def _roster_analyst(value: Any) -> RosterAnalyst:
    f = Fields(value, "roster analyst")
    result = RosterAnalyst(
        name=f.text("name", re.compile(r"[a-z0-9][a-z0-9._@-]{0,98}")),
        organisation=Organisation(f.text("organisation", _NAME)),
        key=_key32(f.text("key")),
        recipient_key=_hex(f.text("recipient_key", limit=8192)),
    )
    f.finish()
    return result


@dataclass(frozen=True, slots=True)
class Freshness:
    """Somebody whose key the roster names says that it is still the newest. `minshu-freshness/1`."""

    collaboration: str
    version: int
    sha256: Digest
    issued: datetime

    def encode(self) -> bytes:
        """Return the canonical payload."""
        return canonical_json(
            {
                "schema": "minshu-freshness/1",
                "collaboration": self.collaboration,
                "version": self.version,
                "sha256": self.sha256,
                "issued": utc_text(self.issued),
            }
        )

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a freshness statement strictly.

        Raises:
            DecodeError: with the field that is wrong.
        """
        f = Fields(decode_json(payload, limit=4 << 10), "freshness")
        f.schema("minshu-freshness/1")
        result = cls(
            collaboration=f.text("collaboration", _NAME),
            version=f.count("version", minimum=1),
            sha256=f.digest("sha256"),
            issued=f.time("issued"),
        )
        f.finish()
        return result


@dataclass(frozen=True, slots=True)
class Rotation:
    """A node hands its name and journal over to its next identity key. `minshu-rotation/1`, trust §1.

    Signed by both keys. `journal_size` and `journal_root` say where the journal stood when it was written.
    """

    node: NodeName
    previous_key: bytes
    next_key: bytes
    journal_size: int
    journal_root: Digest
    issued: datetime

    def encode(self) -> bytes:
        """Return the canonical payload."""
        return canonical_json(
            {
                "schema": "minshu-rotation/1",
                "node": self.node,
                "previous_key": self.previous_key.hex(),
                "next_key": self.next_key.hex(),
                "journal_size": self.journal_size,
                "journal_root": self.journal_root,
                "issued": utc_text(self.issued),
            }
        )

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a rotation strictly.

        Raises:
            DecodeError: with the field that is wrong.
        """
        f = Fields(decode_json(payload, limit=4 << 10), "rotation")
        f.schema("minshu-rotation/1")
        result = cls(
            node=NodeName(f.text("node", _NODE)),
            previous_key=_key32(f.text("previous_key", _HEX)),
            next_key=_key32(f.text("next_key", _HEX)),
            journal_size=f.count("journal_size"),
            journal_root=f.digest("journal_root"),
            issued=f.time("issued"),
        )
        f.finish()
        if result.previous_key == result.next_key:
            raise DecodeError("a rotation to the same key", code="bad-rotation")
        return result


@dataclass(frozen=True, slots=True)
class Head:
    """What a witness saw last of a log, to whoever gave it the nonce. `minshu-head/1`, trust §5.

    `witness` is the node that signs, `log` the origin; `size` 0 and `root` None where it saw nothing.
    """

    nonce: bytes
    log: str
    size: int
    root: Digest | None
    witness: NodeName
    issued: datetime

    def encode(self) -> bytes:
        """Return the canonical payload."""
        return canonical_json(
            {
                "schema": "minshu-head/1",
                "nonce": self.nonce.hex(),
                "log": self.log,
                "size": self.size,
                "root": self.root,
                "witness": self.witness,
                "issued": utc_text(self.issued),
            }
        )

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a head strictly.

        Raises:
            DecodeError: with the field that is wrong.
        """
        f = Fields(decode_json(payload, limit=4 << 10), "head")
        f.schema("minshu-head/1")
        root = f.take("root", (str, type(None)))
        if root is not None:
            digest_bytes(root)
        result = cls(
            nonce=bytes.fromhex(f.text("nonce", _NONCE_32)),
            log=f.text("log", _ORIGIN),
            size=f.count("size"),
            root=root,
            witness=NodeName(f.text("witness", _NODE)),
            issued=f.time("issued"),
        )
        f.finish()
        if (result.size == 0) != (result.root is None):
            raise DecodeError("a head has a root exactly where it has entries", code="bad-field")
        return result


@dataclass(frozen=True, slots=True)
class Receipt:
    """A node says that a release of a job is final here, to stand in every participant's journal.

    `minshu-receipt/1`. `kind` is that of the journal entry it speaks of, `output.commit`; `log` and `seq` say
    where that stands. `sha256` is the digest of the sealed release, `note_sha256` of its note's envelope.
    """

    job: JobId
    attempt: int
    node: NodeName
    kind: str
    release: str
    sha256: Digest
    note_sha256: Digest
    log: str
    seq: int
    issued: datetime

    def encode(self) -> bytes:
        """Return the canonical payload."""
        return canonical_json(
            {
                "schema": "minshu-receipt/1",
                "job": self.job,
                "attempt": self.attempt,
                "node": self.node,
                "kind": self.kind,
                "release": self.release,
                "sha256": self.sha256,
                "note_sha256": self.note_sha256,
                "log": self.log,
                "seq": self.seq,
                "issued": utc_text(self.issued),
            }
        )

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a receipt strictly.

        Raises:
            DecodeError: with the field that is wrong.
        """
        f = Fields(decode_json(payload, limit=8 << 10), "receipt")
        f.schema("minshu-receipt/1")
        result = cls(
            job=JobId(f.digest("job")),
            attempt=f.count("attempt", minimum=1, maximum=1 << 20),
            node=NodeName(f.text("node", _NODE)),
            kind=f.text("kind", _RECEIPT_KIND),
            release=f.text("release", _NONCE),
            sha256=f.digest("sha256"),
            note_sha256=f.digest("note_sha256"),
            log=f.text("log", _ORIGIN),
            seq=f.count("seq"),
            issued=f.time("issued"),
        )
        f.finish()
        return result


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the recipient of a release found out about it. `minshu-outcome/1`.

    `by` is the full name of the recipient's node, or the key id of the analyst, that signs it; of `checked`
    persons or figures `confirmed` turned out right. `note` is one sentence and names nobody.
    """

    job: JobId
    by: str
    checked: int
    confirmed: int
    note: str
    filed: datetime

    def encode(self) -> bytes:
        """Return the canonical payload."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        return canonical_json({"schema": "minshu-outcome/1", **plain, "filed": utc_text(self.filed)})

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read an outcome strictly.

        Raises:
            DecodeError: with the field that is wrong.
        """
        f = Fields(decode_json(payload, limit=16 << 10), "outcome")
        f.schema("minshu-outcome/1")
        result = cls(
            job=JobId(f.digest("job")),
            by=f.text("by", _BY),
            checked=f.count("checked"),
            confirmed=f.count("confirmed"),
            note=f.text("note"),
            filed=f.time("filed"),
        )
        f.finish()
        if result.confirmed > result.checked:
            raise DecodeError("more confirmed than checked", code="bad-outcome")
        if could_identify(result.note):
            raise DecodeError("the note has a number that could be an identifier", code="bad-outcome")
        return result
