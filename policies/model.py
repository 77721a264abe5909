"""A department's policy as typed values: `minshu-policy/1`, trust §4.

The types say form and range; what spans several places (references, overlaps, grades) is checked by
`policies.parse`. No expression, no inheritance: what a rule says is all it says.
"""

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, time
from fractions import Fraction
from typing import Annotated, Final, Literal, get_args

import msgspec
from msgspec import Meta

from protocols.errors import InputError
from protocols.ids import Digest

SCHEMA: Final = "minshu-policy/1"
STOP_SCHEMA: Final = "minshu-stop/1"

NEUTRAL_KINDS: Final = frozenset({"matcher", "helper", "dealer", "aggregator"})
"""Role kinds that compute for others and bring no dataset."""

PUBLIC_KINDS: Final = frozenset({"aggregator"})
"""Neutral role kinds that may bring a dataset, one about nobody: a public test set."""

LEAST_GROUP: Final = 3
"""Smallest group that a policy may let figures be about; 1 in a rule says that there is none."""

WITHOUT_DATASET: Final = NEUTRAL_KINDS | {"recipient"}
"""Role kinds of rules without datasets; who receives may have something to compare it with, or nothing."""

TWO_PEOPLE: Final = 2
"""Fewest approvals of a job over important data, and of one that lets records about persons leave."""

RoleKind = Literal[
    "register", "source", "key-holder", "recipient", "matcher", "helper", "dealer", "aggregator"
]
"""What a node plays in a job, whichever seat it takes: `source-1` and `source-2` are both a `source`."""

ColumnType = Literal[
    "resident-id",
    "residence-permit",
    "permanent-resident",
    "passport",
    "uscc",
    "phone",
    "identifier",
    "enum",
    "code",
    "text",
    "int",
    "decimal",
    "bool",
    "date",
    "month",
]
"""`identifier` holds typed keys of several kinds; `code` is a code-list value that is not spelt out here."""

ColumnUse = Literal[
    "join", "group", "filter", "carry", "sum", "mean", "count", "quantile", "open-to-matcher", "train",
    "quality",
]  # fmt: skip
"""The only parts a column may play. `carry`: goes with records about persons, or is
compared person by person. `train`: a model sees it, or learns to foresee it. `quality`: rows are counted
whose value is missing, wrong or repeated, whatever it is."""

Grade = Literal["core", "important", "general-4", "general-3", "general-2", "general-1"]
"""GB/T 43697-2024."""

COLUMN_TYPES: Final = frozenset(get_args(ColumnType))
COLUMN_USES: Final = frozenset(get_args(ColumnUse))

Sensitivity = Literal["none", "personal", "sensitive"]
QualityMetric = Literal["completeness", "valid-keys", "age", "drift", "repeated"]
"""What a quality threshold can be about: the values of `protocols.quality.Metric`."""

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]

Alias = Annotated[
    str,
    Meta(
        pattern=r"^[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?\Z",
        description="a name of lower-case letters, digits, - and _",
        examples=["elder_subsidy"],
    ),
]
ColumnName = Annotated[
    str,
    Meta(
        pattern=r"^[^\W\d]\w{0,62}\Z",
        description="a column name of letters, digits and _",
        examples=["district"],
    ),
]
OrganisationName = Annotated[
    str,
    Meta(
        pattern=r"^[a-z0-9](?:[a-z0-9._-]{0,98}[a-z0-9])?\Z",
        description="an organisation's name such as police.gz.example",
        examples=["police.gz.example"],
    ),
]
NodeId = Annotated[
    str,
    Meta(
        pattern=r"^[a-z0-9](?:[a-z0-9._-]{0,98}[a-z0-9])?/[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?\Z",
        description="the full name of this node, such as police.gz.example/node-a",
        examples=["police.gz.example/node-a"],
    ),
]
DigestText = Annotated[
    str,
    Meta(
        pattern=r"^sha256:[0-9a-f]{64}\Z",
        description="sha256: and 64 lower-case hex digits",
        extra={"hint": "copy it whole, as minshu-policy key id or check prints it"},
    ),
]
PurposeId = Annotated[
    str,
    Meta(
        pattern=r"^\S{1,128}\Z",
        description="a purpose number of 1 to 128 characters without blanks",
        examples=["P-2026-014"],
    ),
]
JobTypeName = Annotated[
    str,
    Meta(
        pattern=r"^[a-z][a-z-]{0,30}/[1-9][0-9]{0,3}\Z",
        description="a job type with its version, such as crosscheck/1",
        examples=["crosscheck/1"],
    ),
]
RuleId = Annotated[
    str,
    Meta(
        pattern=r"^(?!negative-list)[A-Za-z0-9](?:[A-Za-z0-9._-]{0,30}[A-Za-z0-9])?\Z",
        description="a rule id of 1 to 32 letters, digits, dots and dashes, not starting with negative-list",
        examples=["R1"],
    ),
]
Text = Annotated[
    str,
    Meta(
        pattern=r"^[^\x00-\x1f\x7f]{1,512}\Z",
        description="a text of 1 to 512 characters on one line",
        examples=["DPIA-2026-031"],
    ),
]
GroupSize = Annotated[int, Meta(ge=3, le=100_000, description="a group size from 3 to 100000", examples=[10])]
RuleGroupSize = Annotated[
    int, Meta(ge=1, le=100_000, description="a group size from 3 to 100000, or 1", examples=[10])
]
RuntimeS = Annotated[
    int, Meta(ge=1, le=604_800, description="seconds, from 1 to 604800 (a week)", examples=[3600])
]
Days = Annotated[int, Meta(ge=1, le=36_500, description="days, from 1 to 36500", examples=[30])]
Rows = Annotated[
    int, Meta(ge=1, le=9_999_999_999, description="a number of rows from 1 to 9999999999", examples=[20000])
]
Amount = Annotated[
    int, Meta(ge=1, le=9_999_999_999, description="a number from 1 to 9999999999", examples=[60000])
]
Organisations = Annotated[
    int, Meta(ge=2, le=64, description="a number of organisations from 2 to 64", examples=[3])
]
Sources = Annotated[int, Meta(ge=1, le=63, description="a number of sources from 1 to 63", examples=[2])]
Departments = Annotated[
    int, Meta(ge=1, le=64, description="a number of departments from 1 to 64", examples=[2])
]
Approvals = Annotated[int, Meta(ge=0, le=16, description="a number of approvals from 0 to 16", examples=[2])]
Jobs = Annotated[
    int, Meta(ge=1, le=1_000_000, description="a number of jobs from 1 to 1000000", examples=[10])
]
Quorum = Annotated[int, Meta(ge=1, le=64, description="a number of organisations from 1 to 64", examples=[4])]
PerMinute = Annotated[int, Meta(ge=1, le=1_000_000, description="a number from 1 to 1000000", examples=[30])]
SeriesDays = Annotated[int, Meta(ge=1, le=366, description="days, from 1 to 366", examples=[30])]
Version = Annotated[
    int, Meta(ge=1, le=2**53 - 1, description="a version number from 1 upwards", examples=[7])
]
Moment = Annotated[
    datetime,
    Meta(tz=True, description="a time with its offset from UTC", examples=["2026-12-01T00:00:00+08:00"]),
]
RecipeName = Annotated[
    str,
    Meta(
        pattern=r"^(?:[a-z][a-z0-9-]{0,62}|sha256:[0-9a-f]{64})\Z",
        description="a recipe of Minshu's own by name, or another one by the sha256: of its distribution",
        examples=["logistic"],
    ),
]
Source = Annotated[
    str,
    Meta(
        pattern=r"^local:[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?\Z",
        description="local: and a catalogue name, never a path or a query",
        examples=["local:elder_subsidy"],
    ),
]


class _Clause(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file: every key known, no key twice, nothing changes after parsing."""


class Defaults(_Clause, frozen=True, kw_only=True):
    """What holds where a rule says nothing stricter.

    `release_requires`: `checkpoint`, nothing leaves before this node's own log says so; `cosigned`, nor
    before a quorum of other organisations has seen that. `differencing_days`: how long an exact answer stands
    in the way of exact answers about overlapping groups.
    """

    min_group_size: GroupSize
    max_runtime_s: RuntimeS = 3600
    release_requires: Literal["checkpoint", "cosigned"] = "checkpoint"
    differencing_days: Days = 365


class Witnessing(_Clause, frozen=True, kw_only=True):
    """Whose cosignatures count, and how many organisations' it takes; `policies.witnesses` has the rest.

    Without `organisations`: all others whose nodes the roster lists with witness keys. Without `quorum`:
    enough of them that a third may be dishonest or away.
    """

    quorum: Quorum | None = None
    organisations: tuple[OrganisationName, ...] = ()


class Requester(_Clause, frozen=True, kw_only=True):
    """Someone who may ask: the ids of analysts' keys. With `organisation`, the roster must agree."""

    keys: tuple[DigestText, ...]
    organisation: OrganisationName | None = None


class Purpose(_Clause, frozen=True, kw_only=True):
    """What data may be used for. `valid_until` is the last day, in the policy's timezone."""

    title: Text
    legal_basis: Text
    valid_until: date


class Column(_Clause, frozen=True, kw_only=True):
    """One column that exists for jobs. `range` is inclusive; `bins` are ascending lower bounds."""

    type: ColumnType
    use: tuple[ColumnUse, ...]
    values: tuple[Text, ...] | None = None
    range: tuple[Fraction, ...] | None = None
    bins: tuple[Fraction, ...] | None = None


class Unit(_Clause, frozen=True, kw_only=True):
    """Whom a row is about, and how many rows one of them may have."""

    column: ColumnName
    max_rows: Rows


class Quality(_Clause, frozen=True, kw_only=True):
    """What a dataset's own look at itself has to show; without a threshold, nothing is refused for it.

    What each is about says `protocols.quality.Metric`; all but the age are shares of one, of at most three
    places. `min_completeness` is about every one of `key_fields`: without any, the columns that are used to
    join, and the one that says whom a row is about.
    """

    min_completeness: Fraction | None = None
    min_valid_keys: Fraction | None = None
    max_age_days: Days | None = None
    max_drift: Fraction | None = None
    max_repeated: Fraction | None = None
    key_fields: tuple[ColumnName, ...] = ()


class Dataset(_Clause, frozen=True, kw_only=True):
    """A catalogue entry as this policy opens it; a column that is not listed does not exist."""

    source: Source
    grade: Grade
    personal: Sensitivity
    columns: dict[ColumnName, Column]
    unit: Unit | None = None
    quality: Quality | None = None


Period = Literal["day", "week", "calendar-month", "calendar-quarter", "calendar-year"]
"""A stretch of the policy's calendar; weeks begin on Monday."""

Scope = Literal["all-requesters", "per-requester", "per-purpose", "per-pair"]
"""What a limit counts together: every job, one requester's, those for one purpose, or with one other dataset.

`per-pair`: a job that joins the dataset with several others has to fit what is left of each pair; one that
joins it with none is a pair of its own.
"""


class Budget(_Clause, frozen=True, kw_only=True):
    """A privacy budget of one dataset: ρ, ε, or ε at `delta`, in each period."""

    dataset: Alias
    notion: Literal["zcdp", "pure-dp", "approximate-dp"]
    limit: Fraction
    period: Period
    scope: Scope
    delta: Fraction | None = None


class Quota(_Clause, frozen=True, kw_only=True):
    """How much of what leaks without noise one dataset gives away in each period.

    `rows`: the most records about persons that may leave. `queries`: questions answered.
    """

    dataset: Alias
    counts: Literal["rows", "queries"]
    limit: Amount
    period: Period
    scope: Scope


class Window(_Clause, frozen=True, kw_only=True):
    """When jobs may run, in the policy's timezone; `to` itself is outside. Past midnight: from > to."""

    days: tuple[Day, ...]
    from_: time = msgspec.field(name="from")
    to: time


class Rate(_Clause, frozen=True, kw_only=True):
    """How many jobs may run in each calendar period; one that failed counts unless it told nothing."""

    jobs: Jobs
    per: Literal["hour", "day", "week", "month", "quarter", "year"]


class Rule(_Clause, frozen=True, kw_only=True):
    """One thing that is allowed. A job fits wholly inside one rule or is refused.

    `persons_in`: the least number of departments in which a job may take one person to be at most. Without
    it, a job has to take everybody to be in all of them. `only`: the rows that the rule is for, as the values
    of a column; a job has to say of each such column that only these values count, or fewer.
    `max_per_minute`: how many look-ups a minute a session may make. `max_series_days`: how many days a series
    of daily questions may have, and its keys live; without it, none. `recipes`: by which models may be made,
    or score persons, at any seat; without it, none; `weights`: a job may bring those of a score.
    `exact_training`: whether a model may be made without noise; where exact sums of every round are, only
    with `min_group_size` 1, which no other rule states: no group is too small. `accepts_quality`: the
    thresholds of its datasets that its jobs need not meet. `max_duplicates`: the largest share of rows that
    repeat another's key, where the rule's jobs need fewer, or accept more, than the datasets say.
    """

    id: RuleId
    requesters: tuple[Alias, ...]
    purposes: tuple[PurposeId, ...]
    job_types: tuple[JobTypeName, ...]
    recipients: tuple[OrganisationName, ...]
    approvals: Approvals
    roles: tuple[RoleKind, ...] = ()
    datasets: tuple[Alias, ...] = ()
    columns: tuple[ColumnName, ...] = ()
    only: dict[ColumnName, tuple[Text, ...]] = {}
    approvers: tuple[Alias, ...] = ()
    min_group_size: RuleGroupSize | None = None
    min_organisations: Organisations | None = None
    min_sources: Sources | None = None
    persons_in: Departments | None = None
    max_rows: Rows | None = None
    max_fraction: Fraction | None = None
    min_coverage: Fraction | None = None
    max_runtime_s: RuntimeS | None = None
    max_per_minute: PerMinute | None = None
    max_series_days: SeriesDays | None = None
    recipes: tuple[RecipeName, ...] = ()
    exact_training: bool = False
    accepts_quality: tuple[QualityMetric, ...] = ()
    max_duplicates: Fraction | None = None
    budget: Alias | None = None
    quotas: tuple[Alias, ...] = ()
    max_cost: Fraction | None = None
    window: Window | None = None
    rate: Rate | None = None


class Approver(_Clause, frozen=True, kw_only=True):
    """The keys of those who may approve in this capacity."""

    keys: tuple[DigestText, ...]


class Retention(_Clause, frozen=True, kw_only=True):
    """How long what is kept."""

    journal_days: Days
    release_days: Days
    intermediate: Literal["job-end"]


class Banned(_Clause, frozen=True, kw_only=True):
    """A column that no rule may ever name."""

    dataset: Alias
    column: ColumnName
    reason: Text


def spelt_alike(one: str, other: str) -> bool:
    """Whether two column names may mean one column: DuckDB and most databases overlook case."""
    return one == other or _folded(one) == _folded(other)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()


class Stop(_Clause, frozen=True, kw_only=True):
    """A halt. `value` names what is halted: alias, purpose, dataset or job id; absent for `all`."""

    scope: Literal["all", "requester", "purpose", "dataset", "job"]
    reason: Text
    value: Text | None = None


class Policy(_Clause, frozen=True, kw_only=True):
    """The whole of policy.toml. `policy_id` is the full name of the one node it is for.

    `stops` halt as long as this version is in force; `lifted_stops` are the digests of stop documents that
    this version, with its two signatures, ends.
    """

    schema: Literal["minshu-policy/1"]
    policy_id: NodeId
    version: Version
    not_before: Moment
    expires: Moment
    timezone: Annotated[
        str,
        Meta(max_length=64, description="a timezone name such as Asia/Shanghai", examples=["Asia/Shanghai"]),
    ]
    controller: Text
    defaults: Defaults
    retention: Retention
    previous: DigestText | None = None
    witnesses: Witnessing | None = None
    requesters: dict[Alias, Requester] = {}
    purposes: dict[PurposeId, Purpose] = {}
    datasets: dict[Alias, Dataset] = {}
    budgets: dict[Alias, Budget] = {}
    quotas: dict[Alias, Quota] = {}
    rules: tuple[Rule, ...] = ()
    approvers: dict[Alias, Approver] = {}
    negative_list: tuple[Banned, ...] = ()
    stops: tuple[Stop, ...] = ()
    lifted_stops: tuple[DigestText, ...] = ()


class StopDocument(_Clause, frozen=True, kw_only=True):
    """A halt signed by one person, without a new policy: `minshu-stop/1`.

    It holds under every later policy, until one of them names it under `lifted_stops`.
    """

    schema: Literal["minshu-stop/1"]
    policy_id: NodeId
    issued: Moment
    stops: tuple[Stop, ...]


@dataclass(frozen=True, slots=True)
class ActivePolicy:
    """A policy that passed activation: the only kind `decide` obeys. `digest` is of the exact file.

    `stops` are those of the stop documents in force; the policy's own stand in the policy.
    """

    policy: Policy
    digest: Digest
    stops: tuple[Stop, ...] = ()


@dataclass(frozen=True, slots=True)
class PinnedSigners:
    """The keys whose owners may activate a policy here, role → raw 32-byte public keys.

    The node takes them from its own configuration; no policy can change them.

    Raises:
        InputError: a key is pinned twice or is not 32 bytes long.
    """

    roles: Mapping[str, tuple[bytes, ...]]

    def __post_init__(self) -> None:
        """Refuse a key under two roles: one person must not make two signatures."""
        keys = [key for keys in self.roles.values() for key in keys]
        if len(set(keys)) != len(keys) or any(len(key) != 32 for key in keys):
            raise InputError(
                "a pinned key stands under two roles, or is not 32 bytes long",
                code="bad-pins",
                hint="pin one key per person: whoever is data protection officer is not the owner, too",
            )


@dataclass(frozen=True, slots=True)
class StoredPolicy:
    """What a node remembers of the newest policy it activated, whatever happened to the file."""

    version: int
    digest: Digest
