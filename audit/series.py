"""Days of a series as a journal tells them: they rise, and end when the keys that were kept have to go."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from audit.entries import Entry, parse_time


@dataclass(slots=True)
class _Series:
    """One series at one node.

    Attributes:
        begun: no earlier than day 1 began, None where no entry says so.
        day: the newest day that ended well.
        job: its job.
    """

    begun: datetime | None = None
    day: int = 0
    job: str = ""


@dataclass(frozen=True, slots=True)
class _Day:
    """A day that was admitted; it may last until a moment, None where that is not known."""

    first: str
    number: int
    admitted: datetime
    most: timedelta | None


@dataclass(slots=True)
class SeriesDays:
    """The days of all series of a log's node.

    (1) A day that ends well comes after all that ended well before; a job may end again as what it was.
    (2) It was admitted no later after day 1 than all participants agreed that keys may live.
    """

    found: Callable[[str, str, str], object]
    """Takes code, where and what of a finding."""
    _days: dict[tuple[str, int], _Day] = field(default_factory=dict)
    _series: dict[str, _Series] = field(default_factory=dict)

    def admitted(self, entry: Entry, max_days: int | None) -> None:
        """`job.admitted`, which says `first` and `day` of a series; `max_days` as its participants agreed."""
        first, number = entry.body.get("first"), entry.body.get("day")
        if first is not None and number is not None:
            most = None if max_days is None else timedelta(days=max_days)
            self._days[entry.job, entry.attempt] = _Day(first, number, parse_time(entry.time), most)

    def answering(self, entry: Entry) -> None:
        """`job.answering`: day 1 has begun, if it is one."""
        day = self._days.get((entry.job, entry.attempt))
        if day is not None and day.number == 1:
            self._series.setdefault(day.first, _Series()).begun = parse_time(entry.time)

    def ended(self, entry: Entry, where: str) -> None:
        """`output.commit` or `job.done`, whichever is first: the day has ended well here.

        A node that keeps nothing of a series says the same of it.
        """
        day = self._days.pop((entry.job, entry.attempt), None)
        if day is None:
            return
        # (1)
        known = self._series.setdefault(day.first, _Series())
        if day.number < known.day or (day.number == known.day and entry.job != known.job):
            self.found(
                "series-day", where, f"day {day.number} of a series whose day {known.day} had ended before"
            )
        if day.number >= known.day:
            known.day, known.job = day.number, entry.job
        # (2)
        if known.begun is None or day.most is None:
            return
        if day.admitted >= known.begun + day.most:
            self.found("series-over", where, "keys of a series were used for more days than all rules allow")
