"""Days of a series in a journal: whoever lets them run backwards, or too long, is found."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from audit.entries import Entry, format_time
from audit.series import SeriesDays
from audit.statements import series_facts

START = datetime(2026, 1, 1, 2, tzinfo=UTC)
FIRST, OTHER = ("sha256:" + digit * 64 for digit in "12")


class Told:
    """Tells days one after another, as a node's journal does."""

    def __init__(self) -> None:
        self.codes: list[str] = []
        self.days = SeriesDays(lambda code, _where, _what: self.codes.append(code))

    def entry(self, kind: str, job: str, attempt: int, at: datetime, **body: Any) -> Entry:
        body |= {
            "job.admitted": {"admission_sha256": FIRST, "decided": format_time(at), "datasets": ["list"]},
            "output.commit": {"release": "a" * 32, "class": "B", "sha256": FIRST},
        }.get(kind, {})
        return Entry("police/journal/1", 0, format_time(at), kind, job, attempt, None, "", body, ())

    def day(
        self,
        number: int,
        *,
        job: str = "",
        after: timedelta | None = None,
        attempt: int = 1,
        first: str = FIRST,
        ends: bool = True,
        most: int | None = 3,
        keeps: bool = True,
    ) -> "Told":
        job = job or f"sha256:{number:064x}"
        at = START + (timedelta(days=number - 1) if after is None else after)
        admitted = self.entry("job.admitted", job, attempt, at, first=first, day=number)
        if not keeps:
            del admitted.body["datasets"]
        self.days.admitted(admitted, most)
        if ends:
            for kind in ("output.commit", "job.done"):
                self.days.ended(self.entry(kind, job, attempt, at + timedelta(hours=3)), "entry 1")
        return self


def test_days_that_rise_within_their_time_are_as_they_have_to_be() -> None:
    told = Told().day(1).day(2, ends=False).day(2, attempt=2, after=timedelta(days=1.1)).day(3)
    # Days of other series are their own; a day that ended nowhere may come again in another job.
    told.day(1, first=OTHER).day(3, first=OTHER, ends=False).day(2, first=OTHER)
    assert told.codes == []


def test_a_day_that_does_not_come_after_all_that_ended_is_found() -> None:
    assert Told().day(1).day(3).day(2).codes == ["series-day"]
    assert Told().day(1).day(2).day(2, job=OTHER).codes == ["series-day"]
    assert Told().day(1).day(2).day(1, attempt=2).codes == ["series-day"]


SECOND = timedelta(seconds=1)


@pytest.mark.parametrize(("late", "codes"), [(-SECOND, []), (timedelta(), ["series-over"])])
@pytest.mark.parametrize(("most", "later"), [(3, 3), (3, 9), (9, 3), (3, None)])
def test_a_day_after_the_keys_had_to_go_is_found_whichever_day_agreed_on_the_least(
    most: int, later: int | None, late: timedelta, codes: list[str]
) -> None:
    end = timedelta(days=3)
    assert Told().day(1, most=most).day(2, after=end + late, most=later).codes == codes


def test_an_attempt_of_day_1_that_fails_makes_no_series_younger_or_longer() -> None:
    late = timedelta(days=3)
    failing: dict[str, Any] = {"attempt": 2, "after": timedelta(days=2), "ends": False, "most": 9}
    assert Told().day(1).day(1, **failing).day(2, after=late, most=9).codes == ["series-over"]
    # One that ends well has keys of its own.
    assert Told().day(1).day(1, **failing | {"ends": True}).day(2, after=late, most=9).codes == []


@pytest.mark.parametrize(
    ("number", "after", "codes"),
    [
        (2, timedelta(), []),
        (3, timedelta(days=1) - SECOND, ["series-day"]),
        (3, timedelta(days=1), []),
        (2, -SECOND, ["series-day"]),
    ],
)
def test_a_day_ahead_of_the_calendar_or_before_day_1_is_found(
    number: int, after: timedelta, codes: list[str]
) -> None:
    assert Told().day(1).day(number, after=after).codes == codes


def test_what_is_not_known_is_not_held_against_a_node() -> None:
    late = timedelta(days=30)
    assert Told().day(2, after=late).codes == []  # day 1 stands in an earlier journal
    assert Told().day(1, ends=False).day(2, after=late).codes == []
    assert Told().day(1, most=None).day(2, after=late, most=None).codes == []
    # Who keeps nothing has no clock of the series.
    assert Told().day(1, keeps=False).day(3, after=timedelta(hours=1), keeps=False).codes == []


def test_a_day_says_which_it_is_and_other_jobs_say_nothing() -> None:
    from crosscheck_case import job_spec
    from series_case import series_spec

    one, later = series_spec(3, k=2), series_spec(3, k=2, first=FIRST, day=7)
    assert series_facts(one) == {"first": one.job_id, "day": 1}
    assert series_facts(later) == {"first": FIRST, "day": 7}
    assert series_facts(job_spec(3, k=2)) == {}
