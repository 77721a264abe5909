"""`present_in: all` with a grace: whose date in every source is far enough back, and nobody else."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from crosscheck_case import CROSSCHECK, CTX, LOOSE, ZERO, graced_spec, job_spec, person, seeded
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from protocols.errors import InputError
from protocols.ids import Role
from protocols.jobs.crosscheck import MATCHER, REGISTER, Params
from protocols.jobs.job_type import Setup, source
from protocols.party import Sent, run
from protocols.psi.keyed_list import KeyedList
from protocols.statistics.differencing import differenced
from protocols.wire import InputSummary, JobSpec

CREATED = date(2026, 1, 1)  # of every spec of `job_spec`
STREET, SEEN = "990101001", "2025-06"

Dated = Sequence[tuple[int, date | None]]
"""Rows of a source: person number, date."""


def listed(spec: JobSpec, role: Role, rows: Dated) -> KeyedList:
    batch: dict[str, Any] = {"key": pa.array([person(number) for number, _ in rows], pa.string())}
    if role != REGISTER:
        batch["street"] = pa.array([STREET] * len(rows), pa.string())
        batch["last_seen"] = pa.array([SEEN] * len(rows), pa.string())
        batch["since"] = pa.array([day for _, day in rows], pa.date32())
    builder = CROSSCHECK.builder(spec, role)
    builder.add(batch)
    found = builder.finish()
    assert isinstance(found, KeyedList)
    return found


def flagged(
    spec: JobSpec, lists: Mapping[Role, Dated], sent: list[Sent] | None = None
) -> tuple[set[int], dict[Role, KeyedList]]:
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
    setup = Setup(spec, 1, CTX, LOOSE, summaries)
    parties = {role: CROSSCHECK.party(role, setup, ready.get(role), seeded(role)) for role in spec.roles}
    records, _ = run(parties, observe=(lambda _: None) if sent is None else sent.append)[REGISTER]
    numbers = {"RIC:" + person(number): number for rows in lists.values() for number, _ in rows}
    return {numbers[key] for key in records.table.columns["key"].tolist()}, ready


days = st.none() | st.integers(0, 130).map(lambda ago: CREATED - timedelta(ago))
rows = st.lists(st.tuples(st.integers(0, 12), days), max_size=25)


@settings(max_examples=25, deadline=None)
@given(st.sets(st.integers(0, 12), min_size=1), st.lists(rows, min_size=1, max_size=3), st.integers(1, 120))
def test_flagged_is_who_is_on_the_register_and_past_the_grace_in_every_source(register, sources, grace):
    past = [
        {n for n, day in each if day is not None and day <= CREATED - timedelta(grace)} for each in sources
    ]
    assume(all(past))  # an empty list is refused, as without a grace
    lists = {REGISTER: [(n, None) for n in register]}
    lists |= {source(i + 1): each for i, each in enumerate(sources)}
    found, ready = flagged(graced_spec(len(sources), grace_days=grace), lists)
    assert found == register.intersection(*past)
    for i, counted in enumerate(past):
        assert ready[source(i + 1)].distinct_keys == len(counted)


def test_a_grace_ends_on_its_day_and_what_is_left_out_is_counted():
    dated: Dated = [
        (1, CREATED - timedelta(60)),
        (2, CREATED - timedelta(59)),
        (3, None),
        (4, date(1850, 1, 1)),
        (5, CREATED + timedelta(3)),
        (6, date(2020, 2, 29)),
    ]
    lists = {REGISTER: [(n, None) for n in range(1, 7)], source(1): dated}
    found, ready = flagged(graced_spec(1), lists)
    assert found == {1, 6}
    assert dict(ready[source(1)].quality()) == {"within-grace": 2, "no-date": 2}
    assert (ready[source(1)].rows, ready[REGISTER].quality()) == (6, {})


def test_of_several_rows_of_a_person_one_past_the_grace_is_enough():
    # As without a grace: a row counts or not by itself, and of those that count one stays.
    dated = [(1, CREATED - timedelta(10)), (1, CREATED - timedelta(90)), (2, CREATED - timedelta(90))]
    found, ready = flagged(graced_spec(1), {REGISTER: [(1, None), (2, None)], source(1): dated})
    assert found == {1, 2}
    assert dict(ready[source(1)].quality()) == {"within-grace": 1}


def test_nothing_of_a_row_within_its_grace_leaves_a_source():
    lists = {REGISTER: [(n, None) for n in range(9)], source(1): [(n, date(2024, 1, 1)) for n in range(4)]}
    sent: list[Sent] = []
    flagged(graced_spec(1), lists, sent)
    sizes = [(message.sender, message.round, len(message.body)) for message in sent]
    sent.clear()
    lists[source(1)] = [*lists[source(1)], *((n, CREATED) for n in range(4, 9))]
    flagged(graced_spec(1), lists, sent)
    assert [(message.sender, message.round, len(message.body)) for message in sent] == sizes


def test_the_grace_counts_from_the_day_of_the_job_or_from_a_day_before_that_the_job_names():
    assert [
        Params.of(graced_spec(**params)).grace.until
        for params in ({}, {"as_of": "2025-12-31"}, {"as_of": "2026-01-01"}, {"grace_days": 1})
    ] == [date(2025, 11, 2), date(2025, 11, 1), date(2025, 11, 2), date(2025, 12, 31)]
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
    for key in ("list-sizes", "flagged-rows"):
        assert "2025-11-01" in said[key].en
        assert "2025-11-01" in said[key].zh
    plain = CROSSCHECK.learns(job_spec(2, present_in="all"))
    assert not any("2025" in each.en + each.zh for group in plain.values() for each in group)
