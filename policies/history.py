"""What a node has answered before, as `decide` needs it: rates, budgets, quotas and the differencing guard.

A node's ledger has one row per attempt that was set aside (reserved) or passed commit point 1 (charged). A
row belongs to a source of the catalogue, not to a policy: a new version, another name of a budget, a purpose
or a rule, another key or a longer period never make spending forgotten. Another source has no rows yet: a
dataset that a new version, signed by two people, takes from elsewhere begins at zero.
"""

from bisect import bisect_left
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from fractions import Fraction
from functools import lru_cache
from typing import Any, Final, Protocol, Self

from policies.model import Budget, Quota, Scope
from protocols.dp.cost import Cost, Notion, decimal_down, decimal_up, total
from protocols.ids import JobId, KeyId, Role
from protocols.statistics.differencing import Query, differenced
from protocols.wire import JobSpec


@dataclass(frozen=True, slots=True)
class Past:
    """One attempt that counts.

    Attributes:
        job, attempt: which.
        time: when it was set aside, UTC, as `ledger_time` says: never before an earlier row.
        requester: the analyst's key id.
        purpose, job_type: as the job says.
        source: catalogue name of the dataset, empty for a seat without one.
        unit: the unit column of the policy it was charged under, empty where it names none.
        cost: what it was charged.
        query: what it selects, None without a dataset.
        charged: whether commit point 1 was passed; else it is only set aside.
        exact: whether an answer without noise was or may yet be given; not, once the attempt ended before
            this node had sent anything an answer could be made of.
        rule: the rule that allowed it.
        partners: the other datasets it was joined with, as `partners_of` names them; None where nobody
            remembers: then it counts for every pair.
    """

    job: JobId
    attempt: int
    time: datetime
    requester: KeyId
    purpose: str
    job_type: str
    source: str
    unit: str
    cost: Cost
    query: Query | None
    charged: bool
    exact: bool
    rule: str
    partners: tuple[str, ...] | None = None


ALONE: Final = "alone"
"""The pair of a job that joins a dataset with no other."""


def partners_of(spec: JobSpec, role: Role) -> tuple[str, ...]:
    """Return the datasets a job joins the dataset of `role` with, in order: `health.gz.example:patients`.

    Empty for a job over one dataset alone, and for a role without one. The organisation is the roster's word,
    the dataset's name that organisation's own.
    """
    if spec.input_of(role) is None:
        return ()
    return tuple(sorted({f"{i.organisation}:{i.dataset}" for i in spec.inputs if i.role != role}))


class Hindsight(Protocol):
    """One source's rows, as a decision looks back on them."""

    def since(self, begin: datetime) -> Sequence[Past]:
        """Return the rows from `begin` on, oldest first."""
        ...

    def without(self, job: JobId, attempt: int) -> "Hindsight":
        """Return the same without the row of that attempt."""
        ...

    def charged(self, job: JobId) -> int:
        """Return how many attempts of a job were charged."""
        ...

    def differs(self, query: Query, since: datetime) -> bool:
        """Whether an exact answer since then and one to `query` give away the difference of two groups."""
        ...

    def repeats(self, query: Query, job: JobId, since: datetime) -> bool:
        """Whether another job has had exact amounts for `query` since then, or may yet have."""
        ...


class History(Protocol):
    """A node's ledger, read. Rows that were freed are not in it."""

    def of(self, source: str) -> Sequence[Past] | Hindsight:
        """Return every row of a source, oldest first; of seats without a dataset for the empty name."""
        ...

    def newest(self) -> datetime | None:
        """Return the newest time of any row, None without rows: no period before it opens again."""
        ...


@dataclass(frozen=True, slots=True)
class Remembered:
    """A history in memory."""

    rows: tuple[Past, ...] = ()
    _of: Mapping[str, tuple[Past, ...]] = field(init=False, repr=False, compare=False)
    _newest: datetime | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Sort the rows by source, so that each question is one look-up."""
        of: dict[str, list[Past]] = {}
        for row in self.rows:
            of.setdefault(row.source, []).append(row)
        object.__setattr__(self, "_of", {source: tuple(rows) for source, rows in of.items()})
        object.__setattr__(self, "_newest", max((row.time for row in self.rows), default=None))

    def of(self, source: str) -> Sequence[Past]:
        """Return every row of a source, oldest first."""
        return self._of.get(source, ())

    def newest(self) -> datetime | None:
        """Return the newest time of any row."""
        return self._newest


def ledger_time(now: datetime, history: History) -> datetime:
    """Return the time that an attempt is judged and recorded by: `now`, never before the newest row.

    A clock that was set back would else spend what an earlier period had left over.
    """
    newest = history.newest()
    return now if newest is None or newest <= now else newest


@dataclass(frozen=True, slots=True)
class Lookback:
    """One source's rows, as a decision looks back on them.

    Attributes:
        rows: by time, oldest first; `times` are theirs.
        jobs: whose rows they are.
        exact: what was or may yet be answered without noise, each query once.
    """

    rows: tuple[Past, ...]
    times: tuple[datetime, ...]
    jobs: frozenset[JobId]
    exact: tuple[Query, ...]

    @classmethod
    def of(cls, rows: tuple[Past, ...]) -> Self:
        """Return the rows of a source, looked back on."""
        ordered = tuple(sorted(rows, key=lambda row: row.time))
        queries = (row.query for row in ordered if row.exact and row.query is not None)
        different = {_as_key(query): query for query in queries}
        return cls(
            ordered,
            tuple(row.time for row in ordered),
            frozenset(row.job for row in ordered),
            tuple(different.values()),
        )

    def since(self, begin: datetime) -> tuple[Past, ...]:
        """Return the rows from `begin` on."""
        return self.rows[bisect_left(self.times, begin) :]

    def without(self, job: JobId, attempt: int) -> "Lookback":
        """Return the same without the row of that attempt."""
        if job not in self.jobs:
            return self
        return Lookback.of(tuple(row for row in self.rows if (row.job, row.attempt) != (job, attempt)))

    def charged(self, job: JobId) -> int:
        """Return how many attempts of a job were charged."""
        return sum(row.charged and row.job == job for row in self.rows) if job in self.jobs else 0

    def differs(self, query: Query, since: datetime) -> bool:
        """Whether an exact answer since then and one to `query` give away the difference of two groups."""
        if not any(differenced(query, other) for other in self.exact):
            return False
        return any(
            row.exact and row.query is not None and row.time > since and differenced(query, row.query)
            for row in self.rows
        )

    def repeats(self, query: Query, job: JobId, since: datetime) -> bool:
        """Whether another job has had exact amounts for `query` since then, or may yet have."""
        return _repeats(self.rows, query, job, since)


@dataclass(slots=True)
class Growing:
    """A source's rows as they come and change: the `Hindsight` of those that count.

    For whoever looks back at every row of a long ledger, and would read all of it each time. Rows come in the
    order of their times.
    """

    _rows: list[Past | None] = field(default_factory=list)
    _times: list[datetime] = field(default_factory=list)
    _places: dict[tuple[JobId, int], int] = field(default_factory=dict)
    _of_job: dict[JobId, list[int]] = field(default_factory=dict)
    _exact: dict[Any, list[Query]] = field(default_factory=dict)
    _left_out: int = -1

    def add(self, row: Past) -> None:
        """Take one more row."""
        place = self._places[row.job, row.attempt] = len(self._rows)
        self._of_job.setdefault(row.job, []).append(place)
        self._rows.append(None)
        self._times.append(row.time)
        self._put(place, row)

    def change(self, row: Past) -> None:
        """Take what the row of that attempt has become; its time stays."""
        self._put(self._places[row.job, row.attempt], row)

    def drop(self, job: JobId, attempt: int) -> None:
        """Count a row no more."""
        self._put(self._places[job, attempt], None)

    def _put(self, place: int, row: Past | None) -> None:
        for known, add in ((self._rows[place], False), (row, True)):
            if known is not None and known.exact and known.query is not None:
                same = self._exact.setdefault(_as_key(known.query), [])
                if add:
                    same.append(known.query)
                else:
                    same.pop()
                    if not same:
                        del self._exact[_as_key(known.query)]
        self._rows[place] = row

    def since(self, begin: datetime) -> Sequence[Past]:
        """Return the rows from `begin` on."""
        start = bisect_left(self._times, begin)
        left_out = self._left_out - start
        rows = self._rows[start:]
        return [row for place, row in enumerate(rows) if row is not None and place != left_out]

    def without(self, job: JobId, attempt: int) -> "Growing":
        """Return the same without the row of that attempt; it sees what changes in this one."""
        place = self._places.get((job, attempt), -1)
        return Growing(self._rows, self._times, self._places, self._of_job, self._exact, place)

    def charged(self, job: JobId) -> int:
        """Return how many attempts of a job were charged."""
        rows = (self._rows[place] for place in self._of_job.get(job, ()) if place != self._left_out)
        return sum(row is not None and row.charged for row in rows)

    def differs(self, query: Query, since: datetime) -> bool:
        """Whether an exact answer since then and one to `query` give away the difference of two groups."""
        if not any(differenced(query, same[0]) for same in self._exact.values()):
            return False
        return any(
            row.exact and row.query is not None and row.time > since and differenced(query, row.query)
            for row in self.since(since)
        )

    def repeats(self, query: Query, job: JobId, since: datetime) -> bool:
        """Whether another job has had exact amounts for `query` since then, or may yet have."""
        if _as_key(query) not in self._exact:
            return False
        return _repeats(self.since(since), query, job, since)


def _repeats(rows: Iterable[Past], query: Query, job: JobId, since: datetime) -> bool:
    """Whether a row of another job is of the same exact question, about data that may since have changed."""
    if not query.amounts or query.noisy:
        return False
    asked = _as_key(query)
    return any(
        row.exact
        and row.job != job
        and row.time > since
        and row.query is not None
        and _as_key(row.query) == asked
        for row in rows
    )


def _as_key(query: Query) -> Any:
    return query.asks, frozenset(query.filters.items()), query.noisy, frozenset(query.mapped.items())


# Told apart by identity: a policy has one of each, and comparing fractions takes longer than all the rest.
@dataclass(frozen=True, slots=True, eq=False)
class Limit:
    """A budget or a quota of a policy: `most` of `notion`, and `delta`, in each `period`."""

    name: str
    dataset: str
    notion: Notion
    most: Fraction
    delta: Fraction
    period: str
    scope: Scope

    @classmethod
    def of(cls, name: str, clause: Budget | Quota) -> Self:
        """Return the clause of that name."""
        notion: Notion = clause.counts if isinstance(clause, Quota) else clause.notion
        delta = None if isinstance(clause, Quota) else clause.delta
        most, none = Fraction(clause.limit), Fraction(0)
        return cls(name, clause.dataset, notion, most, delta or none, clause.period, clause.scope)

    def pairs(self, partners: Sequence[str]) -> Sequence[str]:
        """Return what a job with these partners is counted for separately: one or more names for `spent`."""
        return (partners or (ALONE,)) if self.scope == "per-pair" else ("",)

    @property
    def private(self) -> bool:
        """Whether it limits privacy loss, and not a count."""
        return self.notion not in ("rows", "queries")

    def spent(
        self,
        rows: Iterable[Past],
        *,
        alias: str,
        purpose: str,
        pair: str,
        alias_of: Mapping[str, str],
        purposes: Container[str],
    ) -> Cost:
        """Return what rows of the limit's source in this period have spent of it.

        Args:
            rows: of the source and the period.
            alias: the requester's name in the policy; matters for `per-requester`, as `purpose` does for
                `per-purpose` and `pair` for `per-pair`.
            purpose: the job's.
            pair: one of the job's partners, or `ALONE`.
            alias_of: key id → alias, as the policy has it now. A key it no longer lists counts for everybody:
                a new version that exchanges a key resets nothing.
            purposes: those the policy has now. One it no longer has counts for each of them: a new version
                that renames a purpose resets nothing, either.
        """
        if self.scope == "per-requester":
            rows = [row for row in rows if alias_of.get(row.requester, alias) == alias]
        elif self.scope == "per-purpose":
            rows = [row for row in rows if row.purpose == purpose or row.purpose not in purposes]
        elif self.scope == "per-pair":
            rows = [row for row in rows if row.partners is None or pair in (row.partners or (ALONE,))]
        if self.notion == "rows":
            return Cost(rows=sum([row.cost.rows for row in rows]))
        if self.notion == "queries":
            return Cost(queries=sum([row.cost.queries for row in rows]))
        return total(row.cost for row in rows)


@dataclass(frozen=True, slots=True)
class Standing:
    """What a job would add to what a limit counts, as decimal texts in the limit's own measure.

    `cost` is rounded up, None where the notion or the δ that is left has no measure for it; `remaining` is
    what is left before the job, rounded down; `most` is the limit.
    """

    fits: bool
    cost: str | None
    remaining: str
    most: str


@lru_cache(maxsize=4096)
def standing(limit: Limit, spent: Cost, cost: Cost) -> Standing:
    """Return where a job of that cost stands with a limit of which `spent` is spent.

    A job is charged what it adds: costs of different mechanisms compose to less than the sum of their ε or ρ.
    """
    after = spent + cost
    before, then = spent.amount(limit.notion, limit.delta), after.amount(limit.notion, limit.delta)
    left = Fraction(0) if before is None else max(limit.most - before, Fraction(0))
    fits = after.within(limit.notion, limit.most, limit.delta)
    added = None
    # What is within the limit and still does not fit has more δ than the limit allows.
    if before is not None and then is not None and (fits or then > limit.most):
        added = decimal_up(then - before)
    return Standing(fits, added, remaining=decimal_down(left), most=decimal_down(limit.most, 18))
