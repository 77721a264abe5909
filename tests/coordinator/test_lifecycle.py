"""The published tables, and every state of a small job that any order of events can reach."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from coordinator.lifecycle import (
    ANSWERED_BEFORE,
    JOB_ENDS,
    JOB_TRANSITIONS,
    RUN_ENDS,
    RUN_TRANSITIONS,
    Admit,
    Admitted,
    Answered,
    Cancelled,
    CloseRelay,
    DropReleases,
    Ended,
    Job,
    JobState,
    Limits,
    Lost,
    Offer,
    Offered,
    OpenRelay,
    Passed,
    Planned,
    Record,
    Restarted,
    Run,
    RunState,
    Start,
    Stop,
    Stored,
    Uploading,
    advance,
    offers,
)
from protocols.ids import JobId, NodeName, Role

NOW = datetime(2026, 12, 2, 8, tzinfo=UTC)
LIMITS = Limits(admit_timeout_s=300, run_timeout_s=3600, max_attempts=2)
A, B = NodeName("a.example/node-a"), NodeName("b.example/node-a")
TABLE = Planned(A, "street-table")
EARLIER, OTHER = "sha256:" + "e" * 64, "sha256:" + "f" * 64
JOB = Job(
    id=JobId("sha256:" + "1" * 64),
    expires=NOW + timedelta(days=1),
    runs=(Run(A, Role("register")), Run(B, Role("matcher"))),
    awaited=frozenset({TABLE}),
)


def play(job, *events, now=NOW):
    """The job after the events, and the effects of the last of them."""
    effects = ()
    for event in events:
        job, effects = advance(job, event, LIMITS, now)
    return job, effects


def answered(node, answer, attempt=1, **more):
    return Answered(node, attempt, answer, b"verdict", **more)


def running(job=JOB, attempt=1):
    return play(
        job,
        *(answered(node, "permit", attempt) for node in (A, B)),
        *(Admitted(node, attempt, b"admission") for node in (A, B)),
    )


def states(job):
    return [run.state.value for run in job.runs]


# -- the whole space ---------------------------------------------------------------------------------


def events_for(job):
    """Every kind of event, for each node, of the current attempt, an earlier and a later one."""
    yield from (Cancelled("analyst-1"), Passed(), Restarted())
    for node in (A, B, NodeName("c.example/node-a")):
        yield answered(node, "permit", job.attempt, answered=OTHER, usable=True)
        for attempt in {job.attempt, 1, job.attempt + 1}:
            yield Offered(node, attempt)
            for answer in ("permit", "ask", "refuse"):
                yield answered(node, answer, attempt, code="a-reason")
                for usable in (True, False):
                    yield answered(node, answer, attempt, code="a-reason", answered=EARLIER, usable=usable)
            yield Admitted(node, attempt, b"admission", 60)
            yield Uploading(node, attempt)
            yield Stored(node, attempt, TABLE.name)
            yield Lost(node, attempt, "gone")
            for state in (
                RunState.DONE,
                RunState.REFUSED,
                RunState.FAILED,
                RunState.CANCELLED,
                RunState.TIMED_OUT,
            ):
                yield Ended(node, attempt, state, "some-code", "sentence")
            yield Ended(node, attempt, RunState.FAILED, "node-restarted", "sentence")


def shape(job):
    """A job without its texts, so that equal situations count once."""
    plain = {"code": "", "sentence": "", "hint": ""}
    if job.started or job.ended:  # what was said on the way there makes no difference any more
        plain |= {"verdict": b"", "answered": ""}
    runs = tuple(replace(run, **plain) for run in job.runs)
    # The clock moves only between these: before, past the deadline, past the expiry.
    return replace(job, runs=runs, code="", sentence="", hint="", deadline=None), job.deadline is None


def explore():
    """Every reachable job, with every step between two of them."""
    seen, frontier, steps = {shape(JOB): JOB}, [JOB], []
    while frontier:
        job = frontier.pop()
        times = [NOW, JOB.expires] + ([job.deadline] if job.deadline else [])
        for event in events_for(job):
            for now in times if isinstance(event, Passed) else times[:1]:
                after, effects = advance(job, event, LIMITS, now)
                steps.append((job, event, after, effects))
                if shape(after) not in seen:
                    seen[shape(after)] = after
                    frontier.append(after)
    return list(seen.values()), steps


@pytest.fixture(scope="module")
def explored():
    return explore()


@pytest.fixture
def jobs(explored):
    return explored[0]


@pytest.fixture
def steps(explored):
    return explored[1]


def test_every_state_is_reached(jobs):
    assert {job.state for job in jobs} == set(JobState)
    assert {run.state for job in jobs for run in job.runs} == set(RunState)


def test_states_move_only_along_the_published_tables(steps):
    for before, event, after, _ in steps:
        if before.state is not after.state:
            assert after.state in JOB_TRANSITIONS[before.state], (event, before.state, after.state)
        if after.attempt != before.attempt:
            continue
        for old, new in zip(before.runs, after.runs, strict=True):
            path = _path(old.state, new.state)
            assert path, (event, old.state, new.state)


def _path(old, new):
    """A change is a step, or two where an answer overtakes the note that the offer was sent."""
    if old is new or new in RUN_TRANSITIONS[old]:
        return True
    return old is RunState.OFFERED and new in RUN_TRANSITIONS[RunState.CHECKING]


def test_an_ended_job_stays_as_it_ended(steps):
    for before, _, after, effects in steps:
        if before.state in JOB_ENDS:
            assert after.state is before.state
            assert states(after) == states(before)
            assert effects == ()


def test_an_ended_job_has_no_open_run(jobs):
    for job in jobs:
        if job.ended:
            assert all(run.state in RUN_ENDS for run in job.runs), states(job)
            assert job.deadline is None


def test_a_job_succeeds_only_when_every_run_is_done_and_every_release_is_stored_or_it_was_answered_before(
    jobs,
):
    ways = set()
    for job in jobs:
        if job.state is JobState.SUCCEEDED:
            ways.add(bool(job.answered_by))
            if job.answered_by:
                assert job.code == ANSWERED_BEFORE
                assert {run.answered for run in job.runs} == {job.answered_by}
                assert not job.stored | job.awaited
            else:
                assert states(job) == ["DONE", "DONE"]
                assert job.stored == {TABLE}
    assert ways == {True, False}


def test_only_a_job_that_every_node_says_was_answered_and_that_is_usable_is_answered_by_it(steps):
    for before, event, after, effects in steps:
        if after.answered_by and not before.answered_by:
            assert isinstance(event, Answered)
            assert event.usable
            assert event.answered == after.answered_by
            assert {run.answered for run in after.runs} == {after.answered_by}
            assert not before.started
            assert not any(isinstance(e, Admit | Start | OpenRelay | DropReleases) for e in effects)


def test_nothing_else_succeeds_without_having_run(steps):
    for before, _, after, _ in steps:
        if after.state is JobState.SUCCEEDED and not before.ended and not before.started:
            assert after.answered_by


def test_a_refusal_is_held_only_while_others_may_still_say_that_it_was_answered_before(jobs):
    held = [job for job in jobs if not job.ended and any(run.state is RunState.REFUSED for run in job.runs)]
    assert held
    for job in held:
        assert any(not run.verdict for run in job.runs)
        assert all(run.answered for run in job.runs if run.verdict)
        assert not job.admitting


def test_every_early_end_has_a_code_a_sentence_and_one_journal_entry(steps):
    kinds = {"FAILED": "job.failed", "REFUSED": "job.refused"}
    kinds |= {"CANCELLED": "job.cancelled", "EXPIRED": "job.expired"}
    for before, _, after, effects in steps:
        if after.ended and not before.ended and after.state is not JobState.SUCCEEDED:
            assert after.code
            assert after.sentence
            records = [e for e in effects if isinstance(e, Record)]
            assert [(r.kind, r.retry, r.attempt) for r in records] == [
                (kinds[after.state.value], False, before.attempt)
            ]


def test_no_job_gets_stuck(jobs):
    """From every live state some way leads to an end without any node's doing: the clock, or the analyst."""
    for job in jobs:
        if not job.ended:
            later = job.deadline or JOB.expires
            if job.started:
                assert job.deadline is not None
            assert advance(job, Passed(), LIMITS, max(later, JOB.expires))[0].ended
            assert advance(job, Cancelled("analyst-1"), LIMITS, NOW)[0].state is JobState.CANCELLED


def test_attempts_only_count_up_to_the_limit(steps):
    for before, _, after, effects in steps:
        assert after.attempt in (before.attempt, before.attempt + 1)
        assert after.attempt <= LIMITS.max_attempts
        if after.attempt > before.attempt:
            assert states(after) == ["OFFERED", "OFFERED"]
            assert not any(run.admission or run.verdict for run in after.runs)
            assert CloseRelay(before.attempt) in effects
            assert {e.node for e in effects if isinstance(e, Stop) and e.attempt == before.attempt} == {A, B}
            assert [e for e in effects if isinstance(e, Offer)] == list(offers(after))


def test_an_attempt_with_a_stored_release_is_never_replaced(steps):
    assert not [1 for before, _, after, _ in steps if before.stored and after.attempt > before.attempt]


def test_releases_of_a_job_that_did_not_succeed_are_dropped(steps):
    for before, _, after, effects in steps:
        if before.stored and after.ended and not before.ended:
            assert (DropReleases() in effects) == (after.state is not JobState.SUCCEEDED)


def test_the_relay_opens_before_the_first_start_and_closes_at_every_end(steps):
    for before, _, after, effects in steps:
        if any(isinstance(e, Start) for e in effects):
            assert effects[0] == OpenRelay()
            assert all(run.admission for run in after.runs)
        if before.started and (after.ended or after.attempt > before.attempt) and not before.ended:
            assert CloseRelay(before.attempt) in effects


def test_events_of_another_attempt_or_a_stranger_change_nothing(steps):
    for before, event, after, effects in steps:
        attempt, node = getattr(event, "attempt", before.attempt), getattr(event, "node", A)
        if attempt != before.attempt or node not in (A, B):
            assert (after, effects) == (before, ()), event


def test_nothing_started_runs_on_after_the_coordinator_restarted(steps):
    for before, event, after, _ in steps:
        if isinstance(event, Restarted) and before.started and not before.ended:
            assert after.ended or after.attempt == before.attempt + 1


# -- the way through, read as a story ----------------------------------------------------------------


def test_a_job_that_needs_no_approval_goes_straight_to_admission():
    job, effects = play(JOB, answered(A, "permit"), answered(B, "permit"))
    assert job.state is JobState.RUNNING
    assert states(job) == ["ACCEPTED", "ACCEPTED"]
    assert effects == (Admit(A), Admit(B))
    assert job.deadline == NOW + timedelta(seconds=300)


def test_a_job_waits_for_approvals_and_then_goes_on():
    job, _ = play(JOB, Offered(A, 1), answered(A, "ask", approvals_needed=2, approvals_given=1))
    assert (job.state, job.runs[0].state) == (JobState.AWAITING_APPROVAL, RunState.AWAITING_APPROVAL)
    assert (job.runs[0].approvals_given, job.runs[0].approvals_needed) == (1, 2)
    job, effects = play(job, answered(B, "permit"), answered(A, "permit"))
    assert job.state is JobState.RUNNING
    assert effects == (Admit(A), Admit(B))


def test_the_same_answer_again_asks_for_no_second_admission():
    _, effects = play(JOB, answered(A, "permit"), answered(B, "permit"), answered(B, "permit"))
    assert effects == ()


def test_a_node_may_ask_again_until_it_runs():
    job, effects = play(JOB, answered(A, "permit"), answered(B, "permit"), answered(B, "ask"))
    assert (job.deadline, effects) == (None, ())
    job, effects = play(job, answered(B, "permit"))
    assert effects == (Admit(A), Admit(B))


def test_one_refusal_ends_the_job_and_stops_the_others():
    job, effects = play(JOB, answered(A, "refuse", code="negative-list", sentence="no", hint="leave it out"))
    assert (job.state, job.code, job.hint) == (JobState.REFUSED, "negative-list", "leave it out")
    assert states(job) == ["REFUSED", "CANCELLED"]
    assert [(e.node, e.attempt) for e in effects if isinstance(e, Stop)] == [(B, 0)]


def test_a_later_verdict_is_still_shown_after_the_refusal():
    job, _ = play(JOB, answered(A, "refuse", code="no-rule", sentence="no"))
    job, effects = play(job, answered(B, "refuse", code="expired-policy", sentence="late"))
    assert (job.runs[1].code, job.runs[1].verdict) == ("expired-policy", b"verdict")
    assert (states(job), effects) == (["REFUSED", "CANCELLED"], ())


def test_all_admissions_start_the_attempt_and_the_strictest_runtime_wins():
    job, _ = play(JOB, answered(A, "permit"), answered(B, "permit"))
    job, effects = play(job, Admitted(A, 1, b"a", 7200))
    assert effects == ()
    job, effects = play(job, Admitted(B, 1, b"b", 5400))
    assert effects == (OpenRelay(), Start(A), Start(B))
    assert job.deadline == NOW + timedelta(seconds=5400)


def test_without_a_runtime_in_any_admission_the_configured_one_holds():
    job, _ = running()
    assert job.deadline == NOW + timedelta(seconds=3600)


def test_done_and_stored_in_any_order_is_success():
    job, _ = running()
    for events in (
        (Stored(A, 1, TABLE.name), Ended(A, 1, RunState.DONE), Ended(B, 1, RunState.DONE)),
        (Ended(B, 1, RunState.DONE), Ended(A, 1, RunState.DONE), Stored(A, 1, TABLE.name)),
    ):
        done, effects = play(job, *events)
        assert done.state is JobState.SUCCEEDED
        assert effects == (CloseRelay(1),)


def test_done_without_the_planned_release_is_no_success():
    job, _ = play(running()[0], Ended(A, 1, RunState.DONE), Ended(B, 1, RunState.DONE))
    assert job.state is JobState.RUNNING
    job, _ = play(job, Passed(), now=job.deadline)
    assert (job.state, job.code) == (JobState.FAILED, "timed-out")


def test_a_failure_names_the_node_and_the_reason():
    job, effects = play(
        running()[0], Ended(B, 1, RunState.FAILED, "coverage-too-low", "too few rows match", "check the list")
    )
    assert (job.state, job.code) == (JobState.FAILED, "coverage-too-low")
    assert job.sentence == f"{B}: too few rows match"
    assert states(job) == ["CANCELLED", "FAILED"]
    assert job.runs[0].code == "peer-failed"
    assert [(e.node, e.attempt, e.code) for e in effects if isinstance(e, Stop)] == [(A, 0, "peer-failed")]


@pytest.mark.parametrize(
    ("code", "named"),
    [
        ("node-restarted", "node-lost"),
        ("peer-lost", "node-lost"),
        ("unreachable", "node-lost"),
        ("no-quorum", "no-quorum"),
    ],
)
def test_a_retryable_failure_is_tried_once_more_and_then_named(code, named):
    job, effects = play(running()[0], Ended(B, 1, RunState.FAILED, code, "it stopped"))
    assert (job.state, job.attempt) == (JobState.RUNNING, 2)
    assert Record("job.failed", 1, named, B, retry=True) in effects
    job, _ = running(job, attempt=2)
    job, _ = play(job, Ended(B, 2, RunState.FAILED, code, "it stopped"))
    assert (job.state, job.code) == (JobState.FAILED, named)
    assert B in job.sentence


def test_a_node_whose_witnesses_stay_away_refuses_the_next_attempt_and_nobody_is_admitted():
    job, _ = play(running()[0], Ended(B, 1, RunState.FAILED, "no-quorum", "witnesses were away"))
    assert (job.state, job.attempt) == (JobState.RUNNING, 2)
    assert "was lost" not in job.sentence
    job, effects = play(
        job, answered(A, "permit", attempt=2), answered(B, "refuse", attempt=2, code="no-quorum")
    )
    assert (job.state, job.code) == (JobState.REFUSED, "no-quorum")
    assert not [effect for effect in effects if isinstance(effect, Admit)]


def test_a_lost_node_is_replaced_by_a_new_attempt():
    job, _ = play(running()[0], Ended(A, 1, RunState.DONE), Lost(B, 1, "gone for more than 10 s"))
    assert (job.attempt, states(job)) == (2, ["OFFERED", "OFFERED"])
    assert "gone for more than 10 s" in job.sentence


def test_what_an_earlier_attempt_says_late_is_ignored():
    job, _ = play(running()[0], Lost(B, 1, "gone"))
    assert play(job, Ended(A, 1, RunState.CANCELLED, "attempt-replaced", "stopped")) == (job, ())


def test_a_job_expires_where_not_every_node_agreed_in_time():
    job, _ = play(JOB, answered(A, "ask"), Passed(), now=JOB.expires)
    assert (job.state, states(job)) == (JobState.EXPIRED, ["EXPIRED", "EXPIRED"])


def test_a_running_job_does_not_expire():
    job, _ = running()
    job = replace(job, deadline=JOB.expires + timedelta(hours=1))
    assert play(job, Passed(), now=JOB.expires) == (job, ())


def test_slow_admission_names_who_was_slow():
    job, _ = play(JOB, answered(A, "permit"), answered(B, "permit"), Admitted(A, 1, b"a"))
    job, _ = play(job, Passed(), now=job.deadline)
    assert (job.state, job.code) == (JobState.FAILED, "timed-out")
    assert states(job) == ["CANCELLED", "TIMED_OUT"]
    assert B in job.sentence
    assert A not in job.sentence


def test_after_a_restart_admission_begins_again_because_nothing_had_left():
    job, _ = play(JOB, answered(A, "permit"), answered(B, "permit"), Admitted(A, 1, b"a"))
    later = NOW + timedelta(minutes=4)
    job, effects = play(job, Restarted(), now=later)
    assert (job.attempt, states(job), effects) == (1, ["ACCEPTED", "ACCEPTED"], ())
    assert not any(run.admission for run in job.runs)
    assert job.deadline == later + timedelta(seconds=300)


# -- answered before ---------------------------------------------------------------------------------


def before(node, answer, job=EARLIER, **more):
    return answered(node, answer, answered=job, **{"usable": True, "code": "a-code", "sentence": "no"} | more)


@pytest.mark.parametrize(
    "answers", [("permit", "permit"), ("ask", "permit"), ("refuse", "ask"), ("refuse",) * 2]
)
def test_a_question_that_all_say_was_answered_succeeds_with_the_earlier_job(answers):
    job, effects = play(JOB, before(A, answers[0]), before(B, answers[1]))
    assert (job.state, job.code, job.answered_by) == (JobState.SUCCEEDED, ANSWERED_BEFORE, EARLIER)
    assert EARLIER in job.sentence
    told = [node for node, answer in zip((A, B), answers, strict=True) if answer != "refuse"]
    assert effects == tuple(Stop(node, 0, ANSWERED_BEFORE, job.sentence) for node in told)
    assert job.deadline is None


def test_a_refusal_that_names_an_earlier_job_waits_for_the_others():
    job, effects = play(JOB, before(A, "refuse", code="budget-exceeded"))
    assert (job.state, states(job), effects) == (JobState.SUBMITTED, ["REFUSED", "OFFERED"], ())
    for other in (answered(B, "permit"), before(B, "permit", OTHER), before(B, "permit", usable=False)):
        ended, effects = play(job, other)
        assert (ended.state, ended.code) == (JobState.REFUSED, "budget-exceeded")
        assert A in ended.sentence
        assert Stop(B, 0, "peer-refused", ended.sentence) in effects


def test_a_refusal_whose_earlier_job_cannot_be_used_ends_the_job_at_once():
    job, _ = play(JOB, before(A, "refuse", usable=False))
    assert job.state is JobState.REFUSED


def test_a_refusal_that_waited_is_the_end_if_the_others_never_answer():
    job, _ = play(JOB, before(A, "refuse", code="budget-exceeded"))
    job, _ = play(job, Passed(), now=JOB.expires)
    assert (job.state, job.code, states(job)) == (
        JobState.REFUSED,
        "budget-exceeded",
        ["REFUSED", "CANCELLED"],
    )


def test_where_the_earlier_job_cannot_be_used_the_ordinary_answers_count():
    job, effects = play(JOB, before(A, "permit"), before(B, "permit", usable=False))
    assert (job.state, effects) == (JobState.RUNNING, (Admit(A), Admit(B)))
    job, _ = play(JOB, before(A, "ask"), before(B, "permit", OTHER))
    assert (job.state, states(job)) == (JobState.AWAITING_APPROVAL, ["AWAITING_APPROVAL", "ACCEPTED"])


def test_another_attempt_forgets_what_was_said_to_the_one_before():
    job, _ = play(JOB, before(A, "permit"), answered(B, "permit"))
    job, _ = play(job, Admitted(A, 1, b"a"), Admitted(B, 1, b"b"), Lost(B, 1, "gone"))
    assert (job.attempt, {run.answered for run in job.runs}) == (2, {""})
