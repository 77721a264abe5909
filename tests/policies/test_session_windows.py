"""A session answers people as long as it is open: it begins only where its rule's window outlasts it."""

from dataclasses import replace
from datetime import UTC, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace as with_clauses

from policies.calendar import next_open
from policies.decide import decide
from policies.decision import Ask, Decision, Permit, Refuse
from policies.model import ActivePolicy, Day, Window
from protocols.ids import Role
from protocols.wire import JobSpec

SHANGHAI = ZoneInfo("Asia/Shanghai")
OFFICE = Window(days=("mon", "tue", "wed", "thu", "fri"), from_=time(8), to=time(20))
NIGHT = Window(days=("mon", "wed"), from_=time(22), to=time(6))
DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def session(world: Any, seconds: int | None) -> Any:
    """The counting job type, as if each job were a session that the first source closes."""
    (count,) = (known for known in world.types if known.name == "count/1")

    class Session(type(count)):  # type: ignore[misc]  # the test's own job type, whatever its class
        def session_s(self, spec: JobSpec, role: Role) -> int | None:
            return seconds if role == "source-1" else None

        def serving(self, *_: Any, **__: Any) -> Any:
            raise NotImplementedError

    return Session()


def answer(
    world: Any, local: str, seconds: int | None, *, window: Window = OFFICE, approvals: int = 0
) -> Decision:
    now = datetime.fromisoformat(local).replace(tzinfo=SHANGHAI).astimezone(UTC)
    active = world.active()
    rule = with_clauses(
        active.policy.rules[0],
        job_types=("count/1",),
        recipients=("bureau",),
        quotas=(),
        rate=None,
        approvals=approvals,
        min_sources=None,
        window=window,
    )
    dataset = with_clauses(active.policy.datasets["insured"], personal="none")
    policy = with_clauses(active.policy, quotas={}, datasets={"insured": dataset}, rules=(rule,))
    spec = replace(world.count(), created=now, expires=now + timedelta(days=5))
    return decide(
        ActivePolicy(policy, active.digest),
        spec,
        node=world.node("human-resources"),
        roster=world.roster,
        now=now,
        job_types=[session(world, seconds)],
    )


def test_a_session_that_ends_as_the_window_closes_may_begin(world: Any):
    assert isinstance(answer(world, "2026-12-02T19:00:00", 3600), Permit)
    assert isinstance(answer(world, "2026-12-03T00:00:00", 6 * 3600, window=NIGHT), Permit)


def test_one_that_would_outlast_it_waits_for_the_next(world: Any):
    decision = answer(world, "2026-12-02T19:00:01", 3600)
    assert isinstance(decision, Ask)
    assert (decision.code, decision.missing) == ("window-closed", 0)
    assert decision.opens == datetime(2026, 12, 3, 0, tzinfo=UTC)
    assert "closes before the session would; it opens again at 2026-12-03 08:00 (Asia/Shanghai)" in (
        decision.sentence
    )
    assert "将在会话结束之前关闭, 2026-12-03 08:00 (Asia/Shanghai) 再次开放" in decision.zh


def test_one_that_no_window_outlasts_is_refused_before_anybody_approves(world: Any):
    for approvals in (0, 1):
        decision = answer(world, "2026-12-02T09:00:00", 12 * 3600 + 1, approvals=approvals)
        assert isinstance(decision, Refuse)
        assert (decision.code, decision.rule) == ("session-too-long", "R1")
        assert "43,201 seconds" in decision.sentence
        assert "43,201 秒" in decision.zh


def test_approvals_are_asked_for_first(world: Any):
    decision = answer(world, "2026-12-02T19:30:00", 3600, approvals=1)
    assert isinstance(decision, Ask)
    assert (decision.code, decision.missing) == ("approval-needed", 1)


@pytest.mark.parametrize("seconds", [None, 1])
def test_what_answers_once_only_has_to_begin_within_the_window(world: Any, seconds: int | None):
    assert isinstance(answer(world, "2026-12-02T19:59:59", seconds), Permit)


def test_a_window_without_days_keeps_a_session_waiting_as_it_does_any_job(world: Any):
    decision = answer(world, "2026-12-02T09:00:00", 60, window=with_clauses(OFFICE, days=()))
    assert isinstance(decision, Ask)
    assert (decision.code, decision.opens) == ("window-closed", None)


@settings(max_examples=150, deadline=None)
@given(
    window=st.builds(
        lambda days, a, b: Window(
            days=tuple(sorted(days)), from_=time(a // 4, a % 4 * 15), to=time(b // 4, b % 4 * 15)
        ),
        st.sets(st.sampled_from(DAYS), min_size=1),
        st.integers(0, 95),
        st.integers(0, 95),
    ).filter(lambda window: window.from_ != window.to),
    minutes=st.integers(0, 10_080),
    zone=st.sampled_from(["Asia/Shanghai", "Europe/Berlin", "America/St_Johns"]),
    lasting=st.integers(1, 24 * 60),
)
def test_the_window_is_open_all_the_while_and_no_earlier_beginning_would_do(
    window: Window, minutes: int, zone: str, lasting: int
):
    """Minute by minute; the week is one in which no clock here is changed."""
    there, span = ZoneInfo(zone), timedelta(minutes=lasting)
    moment = datetime(2026, 12, 7, tzinfo=there).astimezone(UTC) + timedelta(minutes=minutes)

    def whole(begin: datetime) -> bool:
        first = next_open(window, begin, there)
        # The last quarter of an hour before the end, as windows begin and end on quarters.
        return (
            first == begin
            and all(
                next_open(window, at, there) == at
                for at in (begin + timedelta(minutes=15 * n) for n in range(lasting // 15 + 1))
                if at < begin + span
            )
            and next_open(window, begin + span - timedelta(seconds=1), there)
            == begin + span - timedelta(seconds=1)
        )

    found = next_open(window, moment, there, span)
    if found is None:
        longest = (
            datetime.combine(datetime.min, window.to) - datetime.combine(datetime.min, window.from_)
        ) % timedelta(days=1)
        assert span > longest
        return
    assert found >= moment
    assert whole(found)
    if found > moment:
        assert not whole(moment)
