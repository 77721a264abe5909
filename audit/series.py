"""Days of a series as a journal tells them: they rise, none comes early, none after the keys had to go."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from audit.entries import Entry, parse_time


@dataclass(slots=True)
class _Series:
    """One series at one node.

    Attributes:
        begun: when day 1 began, in the attempt of it that ended well last; None where none stands here.
        most: how long keys may live, as agreed then.
        day: the newest day that ended well.
        job: its job.
    """

    begun: datetime | None = None
    most: timedelta | None = None
    day: int = 0
    job: str = ""


@dataclass(frozen=True, slots=True)
class _Day:
    """A day that was admitted.

    Attributes:
        first: the job of day 1.
        number: from 1.
        begun: the moment it was decided for, by which the node judges what it keeps.
        most: how long keys may live, as agreed for this day; None where that is not known.
        keeps: whether the node brings a list, and so keeps something.
    """

    first: str
    number: int
    begun: datetime
    most: timedelta | None
    keeps: bool


@dataclass(slots=True)
class SeriesDays:
    """The days of all series of a log's node.

    (1) A day that ends well comes after all that ended well before; a job may end again as what it was.
    (2) It began earlier after day 1 than keys may live, as all agreed on day 1 and on this day. (3) It is not
    ahead of the calendar. Of (2) and (3) a node that keeps nothing knows nothing.
    """

    found: Callable[[str, str, str], object]
    """Takes code, where and what of a finding."""
    _days: dict[tuple[str, int], _Day] = field(default_factory=dict)
    _series: dict[str, _Series] = field(default_factory=dict)

    def admitted(self, entry: Entry, max_days: int | None) -> None:
        """`job.admitted`, which says `first` and `day` of a series; `max_days` as its participants agreed."""
        first, number = entry.body.get("first"), entry.body.get("day")
        if first is not None and number is not None:
            begun = parse_time(entry.body["decided"])
            most = None if max_days is None else timedelta(days=max_days)
            self._days[entry.job, entry.attempt] = _Day(first, number, begun, most, "datasets" in entry.body)

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
            if day.number == 1 and day.keeps:
                known.begun, known.most = day.begun.replace(microsecond=0), day.most
        if known.begun is None:
            return
        # (2)
        age = day.begun - known.begun
        agreed = [most for most in (known.most, day.most) if most is not None]
        if agreed and age >= min(agreed):
            self.found("series-over", where, "keys of a series were used for more days than all rules allow")
        # (3)
        if day.number > 2 + age // timedelta(days=1):
            self.found("series-day", where, f"day {day.number} of a series, ahead of the calendar")
