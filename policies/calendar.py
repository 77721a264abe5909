"""The policy's calendar: periods that budgets and rates count in, and windows in which jobs may run.

People write days and hours as the clock on their wall shows them; what is compared are moments. A wall time
that daylight saving skips begins when the clocks move on, one that it repeats begins the first time. So
periods tile the time line: none overlaps another, and none that has ended opens again.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Final, Literal, get_args
from zoneinfo import ZoneInfo

from policies.model import Day, Window

Unit = Literal["hour", "day", "week", "month", "quarter", "year"]

_UNITS: Final[dict[str, Unit]] = {unit: unit for unit in get_args(Unit)}
_DAYS: Final = get_args(Day)
_SECOND: Final = timedelta(seconds=1)
_LOOK_AHEAD_DAYS: Final = 15
"""A window opens within a week, or in the week after where the calendar skipped its day."""


@dataclass(frozen=True, slots=True)
class Span:
    """From `begin` to just before `end`, both UTC."""

    begin: datetime
    end: datetime


def unit_of(period: str) -> Unit:
    """Return the unit of a budget's period or a rate: `calendar-quarter` is a quarter."""
    return _UNITS[period.removeprefix("calendar-")]


def period(unit: Unit, moment: datetime, zone: ZoneInfo) -> Span:
    """Return the calendar period that `moment` is in. Weeks begin on Monday."""
    known = _latest.get((unit, zone))
    if known is not None and known.begin <= moment < known.end:
        return known
    first = _floor(unit, moment.astimezone(zone).replace(tzinfo=None, fold=0))
    span = _span(unit, first, zone)
    # Clocks set back across midnight show the old day a second time; its period has ended by then.
    while span.end <= moment:
        first = _next(unit, first)
        span = _span(unit, first, zone)
    _latest[unit, zone] = span
    return span


def next_open(
    window: Window, moment: datetime, zone: ZoneInfo, lasting: timedelta = timedelta(0)
) -> datetime | None:
    """Return when a window is open next: `moment` itself where it is open, None where it never is.

    With `lasting`, when it is open next and stays open for so long. `days` are those on which the window
    begins. One that ends earlier than it begins ends on the next day.
    """
    today = moment.astimezone(zone).date()
    for ahead in range(-1, _LOOK_AHEAD_DAYS):
        day = today + timedelta(days=ahead)
        if _DAYS[day.weekday()] not in window.days:
            continue
        begin, end = _opening(window, day, zone)
        start = max(begin, moment)
        if start < end and start + lasting <= end:
            return start
    return None


def first_moment(wall: datetime, zone: ZoneInfo) -> datetime:
    """Return the first moment, UTC, at which clocks in `zone` show `wall` or later."""
    local = wall.replace(tzinfo=zone, fold=0)
    moment = local.astimezone(UTC)
    if moment.astimezone(zone).replace(tzinfo=None) == wall:
        return moment
    # `wall` is skipped: find the second at which the offset changes, between its two readings.
    offset = local.utcoffset()
    before, after = local.replace(fold=1).astimezone(UTC).replace(microsecond=0), moment
    while after - before > _SECOND:
        middle = before + (after - before) // 2 // _SECOND * _SECOND
        if middle.astimezone(zone).utcoffset() == offset:
            before = middle
        else:
            after = middle
    return after


@lru_cache(maxsize=4096)
def _opening(window: Window, day: date, zone: ZoneInfo) -> tuple[datetime, datetime]:
    last = day + timedelta(days=window.to < window.from_)
    return (
        first_moment(datetime.combine(day, window.from_), zone),
        first_moment(datetime.combine(last, window.to), zone),
    )


_latest: Final[dict[tuple[Unit, ZoneInfo], Span]] = {}
"""The period asked for last: most questions are about the same one."""


def _span(unit: Unit, first: datetime, zone: ZoneInfo) -> Span:
    return Span(first_moment(first, zone), first_moment(_next(unit, first), zone))


def _floor(unit: Unit, wall: datetime) -> datetime:
    if unit == "hour":
        return wall.replace(minute=0, second=0, microsecond=0)
    day = wall.replace(hour=0, minute=0, second=0, microsecond=0)
    match unit:
        case "day":
            return day
        case "week":
            return day - timedelta(days=day.weekday())
        case "month":
            return day.replace(day=1)
        case "quarter":
            return day.replace(month=(day.month - 1) // 3 * 3 + 1, day=1)
        case "year":
            return day.replace(month=1, day=1)


def _next(unit: Unit, first: datetime) -> datetime:
    match unit:
        case "hour":
            return first + timedelta(hours=1)
        case "day":
            return first + timedelta(days=1)
        case "week":
            return first + timedelta(days=7)
        case "month" | "quarter" | "year":
            # Into the period that follows, however long this one is.
            longest = {"month": 31, "quarter": 92, "year": 366}[unit]
            return _floor(unit, first + timedelta(days=longest))
