"""A series of cross-checks for tests: lists day by day, a shelf for every seat, seeded randomness."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

from crosscheck_case import ZERO, Lists, job_spec, prepared, seeded

from protocols.ids import JobId, Role
from protocols.jobs.crosscheck import REGISTER
from protocols.jobs.crosscheck_series import CrosscheckSeries, Day
from protocols.jobs.job_type import Content, Setup, source
from protocols.party import Party, Sent, run
from protocols.psi.keyed_list import KeyedList
from protocols.wire import Constraints, InputSummary, JobSpec

SERIES = CrosscheckSeries()
START = datetime(2026, 1, 1, 2, tzinfo=UTC)
LOOSE = Constraints(
    min_group_size=3,
    max_rows=1000,
    max_fraction=Fraction(1),
    min_coverage=Fraction(0),
    max_series_days=30,
)  # limits that never bind, for tests of something else


class MemoryShelf:
    """A shelf in memory: each blob whole or not there."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}

    def names(self) -> list[str]:
        return sorted(self.blobs)

    def get(self, name: str) -> memoryview | None:
        blob = self.blobs.get(name)
        return None if blob is None else memoryview(blob)

    @contextmanager
    def put(self, name: str) -> Iterator[Callable[[bytes], object]]:
        pieces: list[bytes] = []
        yield lambda data: pieces.append(bytes(data))
        self.blobs[name] = b"".join(pieces)

    def drop(self, name: str) -> None:
        self.blobs.pop(name, None)


def series_spec(sources: int = 3, *, first: str = "", day: int = 0, **params: Any) -> JobSpec:
    """Return a valid spec: day 1, or with `first` a later one."""
    spec = job_spec(sources, **params)
    later = {"first": first, "day": day} if first else {}
    return replace(spec, job_type="crosscheck-series/1", params={**spec.params, **later})


@dataclass
class Played:
    """One attempt of one day."""

    spec: JobSpec
    setup: Setup
    lists: dict[Role, KeyedList]
    parties: dict[Role, Party]
    sent: list[Sent] = field(default_factory=list)
    outputs: dict[Role, Any] = field(default_factory=dict)

    @property
    def flagged(self) -> set[str]:
        """Who was newly flagged."""
        return set(self.contents[0].table.columns["key"].tolist())

    @property
    def contents(self) -> tuple[Content, Content]:
        records, table = self.outputs[REGISTER]
        return records, table

    def run(self) -> "Played":
        self.outputs = run(self.parties, observe=self.sent.append)
        return self


@dataclass
class Days:
    """A series, played day by day; the register's node has committed the releases of the jobs `committed`."""

    params: dict[str, Any]
    constraints: Constraints = LOOSE
    seed: object = 0
    shelves: dict[Role, MemoryShelf] = field(default_factory=dict)
    played: list[Played] = field(default_factory=list)
    committed: set[JobId] = field(default_factory=set)

    @property
    def first(self) -> JobId:
        return self.played[0].spec.job_id

    def job(self, sources: int, day: int, **changes: Any) -> JobSpec:
        """Return the job of a day."""
        later = {} if day == 1 else {"first": self.first, "day": day}
        spec = series_spec(sources, **later, **self.params)  # type: ignore[arg-type]  # a day is a number
        return replace(spec, nonce=f"{day:032x}", **changes)

    def make(
        self,
        lists: Lists,
        day: int,
        *,
        attempt: int = 1,
        now: datetime | None = None,
        spec: JobSpec | None = None,
        only: Sequence[Role] | None = None,
    ) -> Played:
        """Return the parties of a day, ready to run; of roles of `only` alone, where they are named."""
        spec = spec or self.job(len(lists) - 1, day)
        SERIES.check(spec)
        owners = (REGISTER, *(source(i) for i in range(1, len(lists))))
        ready = {
            role: prepared(Day.of(spec).asked, role, rows) for role, rows in zip(owners, lists, strict=True)
        }
        summaries = {
            role: InputSummary(
                listed.rows,
                listed.distinct_keys,
                listed.distinct_keys,
                listed.commitment(bytes(32)),
                "2026-01-01",
                ZERO,
                listed.rule_version,
            )
            for role, listed in ready.items()
        }
        ctx = hashlib.sha256(f"{self.seed}/{day}/{attempt}/{spec.job_id}".encode()).digest()
        setup = Setup(spec, attempt, ctx, self.constraints, summaries)
        parties = {
            role: SERIES.party_of_day(
                role,
                setup,
                ready.get(role),
                seeded(f"{self.seed}/{day}/{attempt}/{role}"),
                shelf=self.shelves.setdefault(role, MemoryShelf()),
                now=now or START + timedelta(days=day - 1),
                committed=self.committed.__contains__,
            )
            for role in only or spec.roles
        }
        return Played(spec, setup, ready, parties)

    def play(self, lists: Lists, day: int, **options: Any) -> Played:
        """Play a day whole; its end is a good one everywhere."""
        made = self.make(lists, day, **options).run()
        self.played.append(made)
        self.committed.add(made.spec.job_id)
        return made
