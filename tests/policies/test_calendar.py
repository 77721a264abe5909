from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.calendar import Span, first_moment, next_open, period, unit_of
from policies.model import Window

SECOND = timedelta(seconds=1)
UNITS = ["hour", "day", "week", "month", "quarter", "year"]
# Half and quarter hours, daylight saving of half an hour and at midnight, a day that never was.
ZONES = [
    "Asia/Shanghai",
    "Europe/Berlin",
    "America/St_Johns",
    "Pacific/Apia",
    "Australia/Lord_Howe",
    "America/Sao_Paulo",
    "America/Los_Angeles",
    "Asia/Kathmandu",
    "UTC",
]
zones = st.sampled_from(ZONES).map(ZoneInfo)
moments = st.datetimes(datetime(1995, 1, 1), datetime(2060, 1, 1), timezones=st.just(UTC))


def near_changes(zone: ZoneInfo) -> list[datetime]:
    """The moments around each change of the offset between 2009 and 2013, by trying every hour."""
    hours = [datetime(2009, 1, 1, tzinfo=UTC) + timedelta(hours=n) for n in range(24 * 365 * 4)]
    offsets = [hour.astimezone(zone).utcoffset() for hour in hours]
    return [
        hour + timedelta(minutes=minute)
        for hour, before, after in zip(hours, offsets, offsets[1:], strict=False)
        if before != after
        for minute in range(-90, 180, 17)
    ]


CHANGES = {name: near_changes(ZoneInfo(name)) or [datetime(2010, 1, 1, tzinfo=UTC)] for name in ZONES}


@st.composite
def moments_in_zones(draw: st.DrawFn) -> tuple[datetime, ZoneInfo]:
    name = draw(st.sampled_from(ZONES))
    return draw(moments | st.sampled_from(CHANGES[name])), ZoneInfo(name)


def label(unit: str, wall: datetime) -> tuple[int, ...]:
    """What people call the period of a wall time."""
    return {
        "hour": (wall.year, wall.month, wall.day, wall.hour),
        "day": (wall.year, wall.month, wall.day),
        "week": tuple(wall.isocalendar())[:2],
        "month": (wall.year, wall.month),
        "quarter": (wall.year, (wall.month + 2) // 3),
        "year": (wall.year,),
    }[unit]


@settings(max_examples=300, deadline=None)
@given(at=moments_in_zones(), unit=st.sampled_from(UNITS))
def test_a_period_contains_its_moment_and_periods_tile_the_time_line(at, unit):
    moment, zone = at
    span = period(unit, moment, zone)
    assert span.begin <= moment < span.end
    assert period(unit, span.begin, zone) == period(unit, span.end - SECOND, zone) == span
    assert period(unit, span.end, zone).begin == span.end
    assert period(unit, span.begin - SECOND, zone).end == span.begin


@settings(max_examples=300, deadline=None)
@given(
    at=moments_in_zones(), later=st.timedeltas(timedelta(0), timedelta(days=400)), unit=st.sampled_from(UNITS)
)
def test_later_moments_are_never_in_earlier_periods(at, later, unit):
    moment, zone = at
    assert period(unit, moment, zone).begin <= period(unit, moment + later, zone).begin


@settings(max_examples=300, deadline=None)
@given(at=moments_in_zones(), unit=st.sampled_from(UNITS))
def test_a_period_is_what_the_clock_on_the_wall_says_it_is(at, unit):
    moment, zone = at
    span = period(unit, moment, zone)
    named = label(unit, span.begin.astimezone(zone))
    # Only a clock that is set back shows an earlier name again.
    assert label(unit, moment.astimezone(zone)) <= named
    assert label(unit, (span.begin - SECOND).astimezone(zone)) != named
    shown = {label(unit, (span.begin + (span.end - span.begin) * n / 50).astimezone(zone)) for n in range(50)}
    assert max(shown) == named


def test_quarters_begin_at_midnight_where_the_department_is():
    shanghai = ZoneInfo("Asia/Shanghai")
    assert period("quarter", datetime(2026, 12, 31, 15, 59, 59, tzinfo=UTC), shanghai) == Span(
        datetime(2026, 9, 30, 16, tzinfo=UTC), datetime(2026, 12, 31, 16, tzinfo=UTC)
    )
    assert period("quarter", datetime(2026, 12, 31, 16, tzinfo=UTC), shanghai).end == datetime(
        2027, 3, 31, 16, tzinfo=UTC
    )


def test_weeks_begin_on_monday():
    span = period("week", datetime(2026, 12, 6, 23, tzinfo=UTC), ZoneInfo("UTC"))
    assert span == Span(datetime(2026, 11, 30, tzinfo=UTC), datetime(2026, 12, 7, tzinfo=UTC))


def test_a_day_that_was_skipped_has_no_period():
    # Samoa went from the 29th of December 2011 straight to the 31st.
    apia, change = ZoneInfo("Pacific/Apia"), datetime(2011, 12, 30, 10, tzinfo=UTC)
    assert period("day", change - SECOND, apia).end == change
    assert period("day", change, apia) == Span(change, change + timedelta(days=1))


def test_a_day_that_clocks_were_set_back_into_does_not_open_again():
    # At 00:01 on the 7th of November 2010, clocks in St John's went back to 23:01 of the 6th.
    zone = ZoneInfo("America/St_Johns")
    midnight = datetime(2010, 11, 7, 2, 30, tzinfo=UTC)
    back = midnight + timedelta(minutes=20)
    assert back.astimezone(zone).date() == date(2010, 11, 6)
    assert period("day", back, zone).begin == midnight


def test_an_hour_that_is_shown_twice_is_one_period():
    berlin = ZoneInfo("Europe/Berlin")
    span = period("hour", datetime(2026, 10, 25, 1, 30, tzinfo=UTC), berlin)
    assert span == Span(datetime(2026, 10, 25, 0, tzinfo=UTC), datetime(2026, 10, 25, 2, tzinfo=UTC))


@settings(max_examples=300, deadline=None)
@given(zone=zones, wall=st.datetimes(datetime(1995, 1, 1), datetime(2060, 1, 1)))
def test_the_first_moment_shows_the_wall_time_or_the_first_one_after_a_gap(zone, wall):
    moment = first_moment(wall, zone)
    assert moment.astimezone(zone).replace(tzinfo=None) >= wall
    assert (moment - timedelta(microseconds=1)).astimezone(zone).replace(tzinfo=None) < wall


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("hour", "hour"),
        ("week", "week"),
        ("calendar-month", "month"),
        ("calendar-quarter", "quarter"),
        ("year", "year"),
    ],
)
def test_budgets_and_rates_name_the_same_periods(name: str, unit: str):
    assert unit_of(name) == unit


# --- windows

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
WEEKDAYS = DAYS[:5]
SHANGHAI = ZoneInfo("Asia/Shanghai")


def window(days: tuple[str, ...], begin: str, end: str) -> Window:
    return Window(days=days, from_=time.fromisoformat(begin), to=time.fromisoformat(end))


def local(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=SHANGHAI).astimezone(UTC)


@pytest.mark.parametrize(
    ("at", "opens"),
    [
        ("2026-12-02T08:00:00", None),  # Wednesday
        ("2026-12-02T19:59:59", None),
        ("2026-12-02T20:00:00", "2026-12-03T08:00:00"),
        ("2026-12-02T07:59:59", "2026-12-02T08:00:00"),
        ("2026-12-04T20:00:00", "2026-12-07T08:00:00"),  # Friday evening to Monday
        ("2026-12-06T12:00:00", "2026-12-07T08:00:00"),
    ],
)
def test_a_window_opens_on_its_days_and_its_end_is_outside(at: str, opens: str | None):
    found = next_open(window(WEEKDAYS, "08:00", "20:00"), local(at), SHANGHAI)
    assert found == local(opens or at)


@pytest.mark.parametrize(
    ("at", "opens"),
    [
        ("2026-12-04T22:00:00", None),  # Friday night
        ("2026-12-05T05:59:59", None),  # Saturday morning belongs to Friday's window
        ("2026-12-05T06:00:00", "2026-12-11T22:00:00"),
        ("2026-12-04T05:00:00", "2026-12-04T22:00:00"),  # Friday morning would be Thursday's
    ],
)
def test_a_window_past_midnight_belongs_to_the_day_it_begins_on(at: str, opens: str | None):
    found = next_open(window(("fri",), "22:00", "06:00"), local(at), SHANGHAI)
    assert found == local(opens or at)


def test_a_window_without_days_or_length_never_opens():
    assert next_open(window((), "08:00", "20:00"), local("2026-12-02T08:00:00"), SHANGHAI) is None
    assert next_open(window(DAYS, "08:00", "08:00"), local("2026-12-02T08:00:00"), SHANGHAI) is None


def test_a_window_within_a_gap_is_left_out_that_day():
    # Berlin has no 02:30 on the 28th of March 2027.
    zone, night = ZoneInfo("Europe/Berlin"), window(DAYS, "02:15", "02:45")
    assert next_open(night, datetime(2027, 3, 28, 0, tzinfo=UTC), zone) == datetime(
        2027, 3, 29, 0, 15, tzinfo=UTC
    )


times = st.times().map(lambda t: t.replace(minute=t.minute // 15 * 15, second=0, microsecond=0))
windows = st.builds(
    lambda days, begin, end: Window(days=tuple(days), from_=begin, to=end),
    st.lists(st.sampled_from(DAYS), unique=True),
    times,
    times,
)


@settings(max_examples=100, deadline=None)
@given(
    window=windows, moment=st.datetimes(datetime(2026, 1, 1), datetime(2027, 1, 1), timezones=st.just(UTC))
)
def test_a_window_is_open_when_the_clock_on_the_wall_is_between_its_times(window: Window, moment: datetime):
    def is_open(at: datetime) -> bool:
        wall = at.astimezone(SHANGHAI)
        today, yesterday = DAYS[wall.weekday()], DAYS[wall.weekday() - 1]
        if window.from_ <= window.to:
            return today in window.days and window.from_ <= wall.time() < window.to
        late = today in window.days and wall.time() >= window.from_
        return late or (yesterday in window.days and wall.time() < window.to)

    # It opens and closes at full quarters only, so these moments are all there is to try.
    quarters = moment.replace(minute=moment.minute // 15 * 15, second=0, microsecond=0)
    later = [quarters + timedelta(minutes=15 * n) for n in range(1, 9 * 96)]
    expected = next((at for at in (moment, *later) if is_open(at)), None)
    assert next_open(window, moment, SHANGHAI) == expected


@settings(max_examples=200, deadline=None)
@given(at=moments_in_zones(), window=windows)
def test_a_window_is_open_from_when_it_is_said_to_open_and_not_before(at, window: Window):
    moment, zone = at
    opens = next_open(window, moment, zone)
    if opens is None:
        assert not window.days or window.from_ == window.to
        return
    assert opens >= moment
    assert next_open(window, opens, zone) == opens
    assert next_open(window, moment + (opens - moment) / 2, zone) == opens
