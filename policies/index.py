"""Policy and roster by what a decision looks up in them; each is indexed once, for all jobs that follow."""

import zoneinfo
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Generic, ParamSpec, Self, TypeVar

from policies.history import Limit
from policies.model import Banned, Dataset, Policy, Rule
from protocols.envelope import key_id
from protocols.ids import Digest, KeyId, NodeName, Organisation
from protocols.wire import Constraints, Roster, RosterAnalyst, strictest

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Derived(Generic[_P, _T]):
    """What follows from frozen values alone, derived once for each of the last few that were seen.

    They are told apart by identity, since comparing them would cost as much as deriving anew, and are held as
    long as what was derived from them, so that no id comes to mean another value.
    """

    def __init__(self, derive: Callable[_P, _T], *, keep: int) -> None:
        self._derive = derive
        self._keep = keep
        self._known: dict[tuple[int, ...], tuple[object, _T]] = {}

    def __call__(self, *values: _P.args, **none: _P.kwargs) -> _T:
        """Return what was derived from these very values, or derive it."""
        key = tuple(map(id, values))
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= self._keep:
                self._known.clear()
            found = self._known[key] = (values, self._derive(*values, **none))
        return found[1]


@dataclass(frozen=True, slots=True)
class Clause:
    """One rule, and what follows from it and the rest of the policy.

    `recipients` are the organisations that the policy names; `recipient_keys` are of requesters whose
    organisation only the roster knows. `limits` are by dataset, the budget first.
    """

    rule: Rule
    roles: frozenset[str]
    columns: frozenset[str]
    recipients: frozenset[str]
    recipient_keys: tuple[KeyId, ...]
    constraints: Constraints
    sources: tuple[str, ...]
    limits: Mapping[str, tuple[Limit, ...]]

    @classmethod
    def of(cls, policy: Policy, rule: Rule) -> Self:
        """Return what follows from a rule of the policy."""
        organisations: set[str] = set()
        keys: list[KeyId] = []
        for name in rule.recipients:
            who = policy.requesters.get(name)
            if who is not None and who.organisation is None:
                keys += map(KeyId, who.keys)
            else:
                organisations.add(name if who is None or who.organisation is None else who.organisation)
        limits: dict[str, tuple[Limit, ...]] = {}
        if rule.budget is not None:
            budget = policy.budgets[rule.budget]
            limits[budget.dataset] = (Limit.of(rule.budget, budget),)
        for quota in rule.quotas:
            limit = Limit.of(quota, policy.quotas[quota])
            limits[limit.dataset] = (*limits.get(limit.dataset, ()), limit)
        return cls(
            rule,
            frozenset(rule.roles),
            frozenset(rule.columns),
            frozenset(organisations),
            tuple(keys),
            constraints_of(policy, rule),
            tuple(source_of(policy.datasets[name]) for name in rule.datasets) or ("",),
            limits,
        )


@dataclass(frozen=True, slots=True)
class Index:
    """A policy by what jobs ask of it. Rules are bits of an integer, in the file's order; times are UTC."""

    not_before: datetime
    expires: datetime
    zone: zoneinfo.ZoneInfo
    alias_of: Mapping[str, str]
    known_purposes: frozenset[str]
    banned: Mapping[str, Sequence[tuple[int, Banned]]]
    clauses: tuple[Clause, ...]
    requesters: Mapping[str, int]
    purposes: Mapping[str, int]
    job_types: Mapping[str, int]
    datasets: Mapping[str, int]
    neutral: Mapping[str, int]

    @classmethod
    def of(cls, policy: Policy) -> Self:
        """Index a policy."""
        rules = policy.rules
        banned: dict[str, list[tuple[int, Banned]]] = {}
        for number, entry in enumerate(policy.negative_list, start=1):
            banned.setdefault(entry.dataset, []).append((number, entry))
        return cls(
            policy.not_before.astimezone(UTC),
            policy.expires.astimezone(UTC),
            zoneinfo.ZoneInfo(policy.timezone),
            {key: alias for alias, who in policy.requesters.items() for key in who.keys},
            frozenset(policy.purposes),
            banned,
            tuple(Clause.of(policy, rule) for rule in rules),
            _bits(rule.requesters for rule in rules),
            _bits(rule.purposes for rule in rules),
            _bits(rule.job_types for rule in rules),
            _bits(rule.datasets for rule in rules),
            _bits(() if rule.datasets else rule.roles for rule in rules),
        )


@dataclass(frozen=True, slots=True)
class Members:
    """A roster by name and key."""

    digest: Digest
    nodes: frozenset[NodeName]
    organisations: frozenset[Organisation]
    analysts: Mapping[KeyId, RosterAnalyst]

    @classmethod
    def of(cls, roster: Roster) -> Self:
        """Index a roster."""
        return cls(
            roster.digest,
            frozenset(node.name for node in roster.nodes),
            frozenset(organisation.name for organisation in roster.organisations),
            {key_id(analyst.key): analyst for analyst in roster.analysts},
        )


def constraints_of(policy: Policy, rule: Rule) -> Constraints:
    """Return what this node demands of the run: the stricter of rule and defaults.

    A smallest group of one says that there is none: a rule for exact training states it against the default.
    """
    group = None if rule.min_group_size == 1 else policy.defaults.min_group_size
    return strictest(
        (
            Constraints(min_group_size=group, max_runtime_s=policy.defaults.max_runtime_s),
            Constraints(
                min_group_size=rule.min_group_size,
                min_organisations=rule.min_organisations,
                min_sources=rule.min_sources,
                max_rows=rule.max_rows,
                max_fraction=rule.max_fraction,
                min_coverage=rule.min_coverage,
                max_runtime_s=rule.max_runtime_s,
                max_per_minute=rule.max_per_minute,
                max_series_days=rule.max_series_days,
            ),
        )
    )


def source_of(dataset: Dataset) -> str:
    """Return the catalogue name of a dataset."""
    return dataset.source.removeprefix("local:")


def _bits(named: Iterable[Iterable[str]]) -> Mapping[str, int]:
    found: dict[str, int] = {}
    for number, names in enumerate(named):
        for name in names:
            found[name] = found.get(name, 0) | 1 << number
    return found


index_of: Final = Derived(Index.of, keep=8)
members_of: Final = Derived(Members.of, keep=8)
