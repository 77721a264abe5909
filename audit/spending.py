"""A node's ledger as its journal tells it: the rows that every later decision was taken over.

The node keeps the same rows in its database, where nobody else sees them. Here they follow from the entries
`job.accepted`, `job.admitted`, `job.answering` and the end of each attempt.
"""

from dataclasses import dataclass, field, replace
from datetime import datetime

from policies.attempts import forgiven
from policies.history import Growing, Past
from protocols.dp.cost import Cost
from protocols.ids import JobId
from protocols.statistics.differencing import Query
from protocols.wire import CostLine


@dataclass(slots=True)
class Spent:
    """One attempt's row: what it costs, what that is to each budget, and how far it is."""

    past: Past
    lines: tuple[CostLine, ...]
    freed: bool = False
    answering: bool = False


@dataclass(slots=True)
class Spending:
    """All rows, by source. It is the `policies.history.History` of the log's node."""

    _sources: dict[str, Growing] = field(default_factory=dict)
    _unanswered: dict[str, list[Query | None]] = field(default_factory=dict)
    _jobs: dict[JobId, dict[int, Spent]] = field(default_factory=dict)
    _newest: datetime | None = None

    def of(self, source: str) -> Growing:
        """Return the rows of a source that count."""
        return self._sources.setdefault(source, Growing())

    def newest(self) -> datetime | None:
        """Return the newest time of any row, freed ones too."""
        return self._newest

    def others(self, job: JobId, attempt: int) -> list[Spent]:
        """Return the rows of a job's other attempts."""
        return [row for number, row in self._jobs.get(job, {}).items() if number != attempt]

    def reserve(self, past: Past, lines: tuple[CostLine, ...]) -> Spent:
        """Set an attempt's cost aside; its time is never before that of an earlier row, in whole seconds."""
        time = past.time if self._newest is None else max(past.time, self._newest)
        self._newest = time.replace(microsecond=0)
        row = Spent(replace(past, time=self._newest), lines)
        self._jobs.setdefault(past.job, {})[past.attempt] = row
        self.of(past.source).add(row.past)
        return row

    def charge(self, row: Spent, cost: Cost, lines: tuple[CostLine, ...]) -> None:
        """Charge what was set aside."""
        row.lines = lines
        self._change(row, replace(row.past, cost=cost, charged=True))

    def free(self, row: Spent) -> None:
        """Give back what an attempt cost: nothing left."""
        row.past, row.freed = replace(row.past, charged=False, exact=False), True
        self.of(row.past.source).drop(row.past.job, row.past.attempt)

    def settle(self, row: Spent) -> None:
        """Note the end of an attempt whose cost stays: no answer was given, if it never began to answer."""
        if row.freed or row.answering or not row.past.charged or not row.past.exact:
            return
        query, unanswered = row.past.query, self._unanswered.setdefault(row.past.source, [])
        if forgiven(query, unanswered):
            self._change(row, replace(row.past, exact=False))
            if query not in unanswered:
                unanswered.append(query)

    def _change(self, row: Spent, past: Past) -> None:
        row.past = past
        self.of(past.source).change(past)
