"""What a node reads is judged as of the data's own day; no job chooses which persons are valid."""

import os
import random
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pytest
from quality_case import DAY, quality_spec
from table_case import DISTRICT, table_spec

from node.admission import Prepared, prepare
from node.gate import About
from node.sources import Access, FilePlace
from node.state import Dataset
from protocols.identifiers import resident_id
from protocols.jobs.job_type import Unit, source
from protocols.quality_sums import QualityInput, flat
from protocols.tables.tally import Tally
from protocols.wire import JobSpec

ABOUT = About("id", Unit("resident-id", 1))
BORN = [date(2025, 1, 1), date(2026, 3, 1), date(2026, 9, 1)]


@pytest.fixture
def read(tmp_path: Path) -> Callable[[JobSpec, datetime], Prepared]:
    """Reads one table of three children as a node does, written at some moment."""

    def once(spec: JobSpec, written: datetime) -> Prepared:
        path = tmp_path / "people.csv"
        rows = [f"{resident_id('990101', day, 1)},east" for day in BORN]
        path.write_text("\n".join(["id,the_district", *rows]), "utf-8")
        os.utime(path, (written.timestamp(),) * 2)
        dataset = Dataset("people", "", FilePlace(path), "id", (), 3, 3, 3, "2026-01-01T00:00:00Z")
        rand = random.Random(1).randbytes
        access = Access()
        return prepare(spec, source(1), dataset, access, about=ABOUT, rand=rand, go_on=lambda: None)

    return once


def persons(prepared: Prepared) -> int:
    assert isinstance(prepared.input, Tally)
    return int(np.sum(prepared.input.persons()))


def test_the_day_of_a_job_does_not_choose_whose_identifiers_are_valid(
    read: Callable[[JobSpec, datetime], Prepared],
) -> None:
    spec = table_spec(1, axes=[DISTRICT])
    written = datetime(2026, 6, 1, tzinfo=UTC)
    for day in (datetime(2025, 6, 1, tzinfo=UTC), datetime(2026, 10, 1, tzinfo=UTC)):
        asked = replace(spec, created=day, expires=day.replace(year=2027))
        assert persons(read(asked, written)) == 2
    assert persons(read(spec, datetime(2026, 10, 1, tzinfo=UTC))) == 3


def test_a_child_of_this_morning_is_valid_in_a_table_of_this_morning(
    read: Callable[[JobSpec, datetime], Prepared],
) -> None:
    spec = table_spec(1, axes=[DISTRICT])
    # Midnight of 1 September in China.
    assert persons(read(spec, datetime(2026, 8, 31, 15, 59, tzinfo=UTC))) == 2
    assert persons(read(spec, datetime(2026, 8, 31, 16, 0, tzinfo=UTC))) == 3


@pytest.mark.parametrize("created", [datetime(2025, 6, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC)])
@pytest.mark.parametrize(("hour", "future"), [(15, 1), (16, 0)])
def test_days_of_rows_about_nobody_are_judged_by_the_data_and_not_by_the_job(
    tmp_path: Path, created: datetime, hour: int, future: int
) -> None:
    path = tmp_path / "lamps.csv"
    path.write_text("the_day\n2026-06-01\n2026-09-01\n", "utf-8")
    os.utime(path, (datetime(2026, 8, 31, hour, tzinfo=UTC).timestamp(),) * 2)
    dataset = Dataset("people", "", FilePlace(path), "", (), 2, 2, 2, "2026-01-01T00:00:00Z")
    spec = replace(
        quality_spec(columns=[DAY]), created=created, expires=created.replace(year=created.year + 1)
    )
    rand = random.Random(1).randbytes
    prepared = prepare(spec, source(1), dataset, Access(), about=None, rand=rand, go_on=lambda: None)
    assert isinstance(prepared.input, QualityInput)
    places = [place.reason for place in flat(prepared.input.columns)]
    assert prepared.input.counts[places.index("future")] == future


def test_what_the_policy_said_of_the_rows_is_kept_without_the_day(
    read: Callable[[JobSpec, datetime], Prepared],
) -> None:
    # An admission stands as long as the policy says the same; the day of the data is no part of that.
    prepared = read(table_spec(1, axes=[DISTRICT]), datetime(2026, 6, 1, tzinfo=UTC))
    assert prepared.about == ABOUT
    assert prepared.summary.snapshot == "2026-06-01T00:00:00Z"
