"""`present_in: all` with a grace: whose date in every source is far enough back, and nobody else."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from crosscheck_case import (
    CROSSCHECK,
    CTX,
    LOOSE,
    ZERO,
    entries,
    graced_spec,
    job_spec,
    person,
    resources,
    seeded,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.disclosure import commitment
from protocols.errors import InputError, ProtocolAborted
from protocols.ids import Role
from protocols.jobs.crosscheck import MATCHER, REGISTER, Params
from protocols.jobs.job_type import Setup, source
from protocols.party import Sent, run
from protocols.psi.envelopes import PLAIN_BYTES, plaintexts
from protocols.psi.keyed_list import KeyedList, SpilledList
from protocols.statistics.differencing import differenced
from protocols.wire import Constraints, InputSummary, JobSpec

pytestmark = pytest.mark.usefixtures("path")

STREET, SEEN = "990101001", "2025-06"

Dated = Sequence[tuple[int, date | None]]
"""Rows of a source: person number, date."""


def listed(spec: JobSpec, role: Role, rows: Dated) -> KeyedList | SpilledList:
    batch: dict[str, Any] = {"key": pa.array([person(number) for number, _ in rows], pa.string())}
    if role != REGISTER:
        batch["street"] = pa.array([STREET] * len(rows), pa.string())
        batch["last_seen"] = pa.array([SEEN] * len(rows), pa.string())
        batch["since"] = pa.array([day for _, day in rows], pa.date32())
    builder = CROSSCHECK.builder_with(spec, role, None, resources())
    builder.add(batch)
    found = builder.finish()
    assert isinstance(found, KeyedList | SpilledList)
    return found


def flagged(
    spec: JobSpec,
    lists: Mapping[Role, Dated],
    sent: list[Sent] | None = None,
    limits: Constraints = LOOSE,
) -> tuple[set[int], dict[Role, KeyedList | SpilledList]]:
    """Play a cross-check whole; return the numbers on the register's sealed list, and the prepared lists."""
    ready = {role: listed(spec, role, rows) for role, rows in lists.items()}
    summaries = {
        role: InputSummary(
            each.rows,
            each.distinct_keys,
            each.distinct_keys,
            each.commitment(bytes(32)),
            "2026-01-01",
            ZERO,
            each.rule_version,
        )
        for role, each in ready.items()
    }
    setup = Setup(spec, 1, CTX, limits, summaries)
    parties = {
        role: CROSSCHECK.party_on(role, setup, ready.get(role), seeded(role), resources=resources())
        for role in spec.roles
    }
    records, _ = run(parties, observe=(lambda _: None) if sent is None else sent.append)[REGISTER]
    numbers = {"RIC:" + person(number): number for rows in lists.values() for number, _ in rows}
    return {numbers[key] for key in records.table.columns["key"].tolist()}, ready


BEGUN = date(2026, 1, 1)
"""The first day of the month from which every grace here is counted back."""

days = st.none() | st.integers(0, 130).map(lambda ago: BEGUN - timedelta(ago))
rows = st.lists(st.tuples(st.integers(0, 12), days), min_size=1, max_size=25)


@settings(max_examples=25, deadline=None)
@given(st.sets(st.integers(0, 12), min_size=1), st.lists(rows, min_size=1, max_size=3), st.integers(1, 120))
def test_flagged_is_who_is_on_the_register_and_past_the_grace_in_every_source(register, sources, grace):
    past = [{n for n, day in each if day is not None and day <= BEGUN - timedelta(grace)} for each in sources]
    lists = {REGISTER: [(n, None) for n in register]}
    lists |= {source(i + 1): each for i, each in enumerate(sources)}
    found, ready = flagged(graced_spec(len(sources), grace_days=grace), lists)
    assert found == register.intersection(*past)
    for i, each in enumerate(sources):
        assert ready[source(i + 1)].distinct_keys == len({number for number, _ in each})


def test_a_grace_ends_on_its_day_and_what_is_left_out_is_counted():
    dated: Dated = [
        (1, BEGUN - timedelta(60)),
        (2, BEGUN - timedelta(59)),
        (3, None),
        (4, date(1850, 1, 1)),
        (5, BEGUN + timedelta(3)),
        (6, date(2020, 2, 29)),
    ]
    lists = {REGISTER: [(n, None) for n in range(1, 7)], source(1): dated}
    found, ready = flagged(graced_spec(1), lists)
    assert found == {1, 6}
    assert dict(ready[source(1)].quality()) == {"within-grace": 2, "no-date": 2}
    assert (ready[source(1)].rows, ready[REGISTER].quality()) == (6, {})


def test_of_several_rows_of_a_person_one_past_the_grace_is_enough():
    # As without a grace: a row counts or not by itself, and of those that count one stays.
    dated = [(1, BEGUN - timedelta(10)), (1, BEGUN - timedelta(90)), (2, BEGUN - timedelta(90))]
    found, ready = flagged(graced_spec(1), {REGISTER: [(1, None), (2, None)], source(1): dated})
    assert found == {1, 2}
    assert dict(ready[source(1)].quality()) == {"within-grace": 1, "repeated-key": 1}


def test_whose_sources_all_hold_them_within_the_grace_is_not_flagged_nor_who_is_on_no_register():
    waiting = [(number, BEGUN) for number in range(5)]
    lists = {REGISTER: [(n, None) for n in range(5)], source(1): waiting, source(2): waiting}
    assert flagged(graced_spec(2), lists)[0] == set()


def sizes(sent: Sequence[Sent]) -> list[tuple[Role, int, int]]:
    return [(message.sender, message.round, len(message.body)) for message in sent]


@settings(max_examples=15, deadline=None)
@given(rows, st.integers(1, 120), st.integers(1, 120), st.integers(0, 70))
def test_no_size_that_anybody_sees_depends_on_the_grace_or_its_day(dated, one, other, back):
    lists = {REGISTER: [(n, None) for n in range(13)], source(1): dated}
    seen = []
    for grace, day in ((one, BEGUN), (other, BEGUN - timedelta(back))):
        sent: list[Sent] = []
        spec = graced_spec(1, grace_days=grace, as_of=day.isoformat())
        ready = flagged(spec, lists, sent)[1][source(1)]
        seen.append((ready.rows, ready.distinct_keys, sizes(sent)))
    assert seen[0] == seen[1]


def test_of_a_row_within_its_grace_the_envelope_says_nothing():
    dated = [(1, date(2024, 1, 1)), (2, BEGUN), (3, None)]
    one = listed(graced_spec(1), source(1), dated)
    found = plaintexts(entries(one), np.arange(3, dtype=np.uint32))
    whole = [found[at : at + PLAIN_BYTES] for at in range(0, len(found), PLAIN_BYTES)]
    assert whole[0][1:23] == b"RIC:" + person(1).encode()
    assert whole[1:] == [bytes(PLAIN_BYTES)] * 2


def test_within_a_month_there_is_one_answer():
    # Two jobs a day apart are one question: their answers must not differ by who died on one day.
    dated = [(number, BEGUN - timedelta(40 + number)) for number in range(60)]
    lists = {REGISTER: [(n, None) for n in range(60)], source(1): dated}
    answers = []
    for day in (1, 2, 15, 31):
        spec = replace(graced_spec(1), created=datetime(2026, 1, day, tzinfo=UTC))
        found, ready = flagged(spec, lists)
        answers.append((found, entries(ready[source(1)]).keys.tolist()))
        assert CROSSCHECK.query(spec, source(1)) == CROSSCHECK.query(graced_spec(1), source(1))
    assert all(answer == answers[0] for answer in answers)
    assert answers[0][0] == set(range(20, 60))


def test_coverage_counts_whoever_waits_among_those_who_are_not_on_the_register():
    dated = [(number, date(2024, 1, 1) if number < 5 else BEGUN) for number in range(10)]
    lists = {REGISTER: [(n, None) for n in range(10)], source(1): dated}
    half = replace(LOOSE, min_coverage=Fraction(1, 2))
    assert flagged(graced_spec(1), lists, limits=half)[0] == set(range(5))
    with pytest.raises(ProtocolAborted) as stopped:
        flagged(graced_spec(1), lists, limits=replace(LOOSE, min_coverage=Fraction(51, 100)))
    assert stopped.value.code == "guard-coverage"


def test_the_commitment_shows_an_auditor_who_waited_and_holds_everyone_released():
    dated = [(1, date(2024, 1, 1)), (2, BEGUN), (3, date(2024, 1, 1))]
    one, salt = listed(graced_spec(1), source(1), dated), bytes(range(32))
    keys = entries(one).keys.tolist()
    assert one.commitment(salt) == commitment(keys, salt)
    assert [key for key in keys if key.startswith(b"RIC:")] == sorted(
        b"RIC:" + person(number).encode() for number in (1, 3)
    )
    assert b"WAITING:RIC:" + person(2).encode() in keys


def test_the_grace_counts_from_the_month_of_the_job_or_of_a_day_before_that_the_job_names():
    assert [
        Params.of(graced_spec(**params)).grace.until
        for params in (
            {},
            {"as_of": "2025-12-31"},
            {"as_of": "2025-12-01"},
            {"as_of": "2026-01-01"},
            {"grace_days": 1},
        )
    ] == [date(2025, 11, 2), date(2025, 10, 2), date(2025, 10, 2), date(2025, 11, 2), date(2025, 12, 31)]
    assert Params.of(job_spec(2, present_in="all")).grace is None


@pytest.mark.parametrize(
    "params",
    [
        *({"grace_days": bad} for bad in (0, -1, 3651, True, 60.0, "60", None, [60])),
        {"as_of": "2026-01-02"},  # after the job: it would shorten the grace
        {"as_of": "2016-01-03"},  # more than ten years before
        *(
            {"as_of": bad}
            for bad in ("20251231", "2025-12-31T00:00", "2025-02-30", "yesterday", "", 20251231)
        ),
        *({"as_of": bad} for bad in (None, True, ["2025-12-31"])),
    ],
    ids=str,
)
def test_a_grace_that_is_none_is_refused(params):
    with pytest.raises(InputError) as refused:
        CROSSCHECK.check(graced_spec(**params))
    assert (refused.value.code, bool(refused.value.hint)) == ("bad-params", True)


def test_a_day_without_a_grace_and_a_grace_with_at_least_are_refused():
    spec = job_spec(2, present_in="all")
    with pytest.raises(InputError) as refused:
        CROSSCHECK.check(replace(spec, params={**spec.params, "as_of": "2025-12-31"}))
    assert refused.value.code == "bad-params"
    for name, value in (("grace_days", 60), ("as_of", "2025-12-31")):
        with pytest.raises(InputError) as refused:
            CROSSCHECK.check(job_spec(3, k=2, **{name: value}))
        assert refused.value.code == "unknown-param"


def test_with_a_grace_every_source_brings_a_date_that_its_policy_lets_filter_and_the_register_none():
    spec = graced_spec(2)
    CROSSCHECK.check(spec)
    needs = {
        role: {(n.slot, n.use, n.types, n.required) for n in CROSSCHECK.columns(spec, role)}
        for role in spec.roles
    }
    dated = ("since", "filter", ("date",), True)
    assert [dated in needs[role] for role in (source(1), source(2), REGISTER, MATCHER)] == [
        True,
        True,
        False,
        False,
    ]
    without = job_spec(2, present_in="all", grace_days=60)
    with pytest.raises(InputError) as refused:
        CROSSCHECK.check(without)
    assert refused.value.code == "bad-inputs"
    with pytest.raises(InputError) as refused:
        CROSSCHECK.check(replace(spec, params={k: v for k, v in spec.params.items() if k != "grace_days"}))
    assert refused.value.code == "bad-inputs"


def test_another_grace_is_another_group_and_the_same_days_on_another_day_are_the_same_question():
    asked = {
        name: CROSSCHECK.query(spec, source(1))
        for name, spec in {
            "60": graced_spec(),
            "61": graced_spec(grace_days=61),
            "as of": graced_spec(as_of="2025-12-01"),
            "as of another": graced_spec(as_of="2025-12-02"),
            "none": job_spec(2, present_in="all"),
        }.items()
    }
    for one, query in asked.items():
        assert query is not None
        assert [other for other, also in asked.items() if also and differenced(query, also)] == [
            other for other in asked if other != one
        ]
    later = replace(graced_spec(), created=datetime(2026, 1, 9, tzinfo=UTC))
    assert CROSSCHECK.query(later, source(1)) == asked["60"]


def test_officers_read_until_which_day_a_date_counts_in_both_languages():
    table = CROSSCHECK.learns(graced_spec(2, as_of="2025-12-31"))
    said = {statement.key: statement for statement in table[frozenset({REGISTER})]}
    assert "2025-10-02" in said["flagged-rows"].en
    assert "2025-10-02" in said["flagged-rows"].zh
    assert "2025" not in said["list-sizes"].en + said["list-sizes"].zh
    plain = CROSSCHECK.learns(job_spec(2, present_in="all"))
    assert not any("2025" in each.en + each.zh for group in plain.values() for each in group)
