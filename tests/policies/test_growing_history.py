"""A history that grows answers as one that is read whole, whatever comes and changes."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from policies.history import Growing, Lookback, Past
from protocols.dp.cost import Cost
from protocols.ids import JobId, KeyId
from protocols.statistics.differencing import Query

START = datetime(2026, 12, 1, tzinfo=UTC)
ASKED = [None, *(Query(asks, {"street": frozenset(kept)}) for asks in "ab" for kept in ("x", "y", "xy"))]
ASKED += [Query("a", noisy=True), *(Query("a", {"street": frozenset(kept)}, amounts=True) for kept in "xy")]


def row(job: int, attempt: int, hours: int, asked: int) -> Past:
    return Past(
        job=JobId(f"sha256:{job:064x}"),
        attempt=attempt,
        time=START + timedelta(hours=hours),
        requester=KeyId("sha256:" + "1" * 64),
        purpose="P-1",
        job_type="crosscheck/1",
        source="people",
        unit="",
        cost=Cost(queries=1),
        query=ASKED[asked],
        charged=False,
        exact=True,
        rule="R1",
    )


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["add", "charge", "settle", "drop"]), st.integers(0, 5), st.integers(0, 9)),
        max_size=30,
    )
)
def test_it_answers_as_if_it_were_read_whole(steps: list[tuple[str, int, int]]) -> None:
    growing = Growing()
    rows: dict[tuple[JobId, int], Past] = {}
    dropped: set[tuple[JobId, int]] = set()
    for hours, (step, number, asked) in enumerate(steps):
        of_job = [key for key in rows if key[0] == JobId(f"sha256:{number:064x}")]
        if step == "add":
            new = row(number, len(of_job) + 1, hours // 2, asked)
            rows[new.job, new.attempt] = new
            growing.add(new)
        elif of_job:
            key = of_job[asked % len(of_job)]
            if step == "drop":
                dropped.add(key)
                growing.drop(*key)
            elif key not in dropped:
                rows[key] = replace(rows[key], charged=True, exact=step == "charge" and rows[key].exact)
                growing.change(rows[key])
        compare(growing, Lookback.of(tuple(r for k, r in rows.items() if k not in dropped)))


def compare(growing: Growing, whole: Lookback) -> None:
    without = [(JobId(f"sha256:{number:064x}"), attempt) for number in (0, 1) for attempt in (1, 2, 9)]
    pairs: list[tuple[Any, Any]] = [(growing, whole)]
    pairs += [(growing.without(*key), whole.without(*key)) for key in without]
    for mine, theirs in pairs:
        for hours in (0, 1, 3, 99):
            begin = START + timedelta(hours=hours)
            assert list(mine.since(begin)) == list(theirs.since(begin))
            for query in ASKED:
                if query is not None:
                    assert mine.differs(query, begin) == theirs.differs(query, begin)
                    for number in range(6):
                        job = JobId(f"sha256:{number:064x}")
                        assert mine.repeats(query, job, begin) == theirs.repeats(query, job, begin)
        for number in range(6):
            job = JobId(f"sha256:{number:064x}")
            assert mine.charged(job) == theirs.charged(job)
