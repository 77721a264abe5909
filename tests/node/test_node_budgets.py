"""Budgets and quotas through a running node: set aside, charged, freed, shown; and the last unit is one."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from simulator import START, Post, Station, Task, World, answered, approve_all, over, running, until

from node.budgets import Account, accounts, page
from node.cli import main
from node.rpc import Attempt, ControlRequest
from node.state import RunState
from policies.limits import ATTEMPTS_PER_JOB
from protocols.envelope import decode_envelope
from protocols.ids import JobId
from protocols.wire import Verdict

pytestmark = pytest.mark.alone  # whole nodes, 10 s together


class Waiting(Post):
    """Starts nothing."""

    def may_start(self, task: Task) -> bool:
        return False


def limits(world: World, station: Station) -> dict[str, Account]:
    active = station.agent.force.policy
    assert active is not None
    return {account.name: account for account in accounts(active, station.state.ledger(), world.clock())}


def figures(account: Account) -> tuple[str, str, str]:
    return account.spent, account.reserved, account.remaining


def journaled(station: Station) -> list[tuple[str, str, str]]:
    return [(e.kind, e.body["budget"], e.body["cost"]) for e in station.entries("budget.")]


def test_a_run_is_set_aside_then_charged_at_the_merged_price(world: World) -> None:
    world.activate("police", max_rows=400)  # the strictest row cap of all counts
    for name in ("health", "human-resources"):
        world.activate(name, max_rows=1000)
    seen: list[tuple[str, str, str]] = []

    class Watch(Post):
        def may_start(self, task: Task) -> bool:
            seen.append(figures(limits(world, nodes["health"])["rows"]))
            return True

    nodes: dict[str, Station] = {}

    async def play() -> None:
        async with running(world, Watch(world)) as (post, stations):
            nodes.update(stations)
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            await over(post, job)
            health = stations["health"]
            assert seen == [("0", "1000", "99000")]
            assert figures(limits(world, health)["rows"]) == ("400", "0", "99600")
            assert figures(limits(world, health)["queries"]) == ("1", "0", "99")
            assert journaled(health) == [
                ("budget.reserved", "queries", "1"),
                ("budget.reserved", "rows", "1000"),
                ("budget.charged", "queries", "1"),
                ("budget.charged", "rows", "400"),
            ]
            [admitted] = health.entries("job.admitted")
            assert (admitted.body["records"], admitted.body["queries"]) == (400, 1)
            [done] = health.entries("job.done")
            assert done.job == job
            # The register gives no records away, the matcher has no data.
            assert figures(limits(world, stations["police"])["rows"])[0] == "0"
            assert not stations["statistics"].entries("budget.")

    asyncio.run(play())


def test_an_entry_says_what_was_left_and_until_when(world: World) -> None:
    async def play() -> None:
        async with running(world, Waiting(world)) as (post, stations):
            for _ in range(2):
                job = post.submit(world.spec())
                await approve_all(post, stations, job)
                await until(lambda job=job: stations["health"].run(job) is RunState.ACCEPTED)
            entry = stations["health"].entries("budget.reserved")[-1]
            assert entry.job == job
            assert (entry.body["limit"], entry.body["spent"]) == ("100000", "1000")
            assert entry.body["not_after"] == "2026-11-30T16:00:00.000Z"
            assert (entry.body["dataset"], entry.body["purpose"]) == ("people", "P-1")
            assert entry.policy.rule == "R1"

    asyncio.run(play())


@pytest.mark.parametrize("code", ["cancelled-by-requester", "job-expired", "peer-failed"])
def test_an_attempt_that_ends_before_it_starts_frees_what_was_set_aside(world: World, code: str) -> None:
    async def play() -> None:
        async with running(world, Waiting(world)) as (post, stations):
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            health = stations["health"]
            await until(lambda: health.run(job) is RunState.ACCEPTED)
            post.stop(job, code)
            await until(lambda: health.run(job) in (RunState.CANCELLED, RunState.EXPIRED))
            assert figures(limits(world, health)["rows"]) == ("0", "0", "100000")
            assert {e.body["code"] for e in health.entries("budget.released")} == {code}

    asyncio.run(play())


def test_a_node_that_stops_before_the_start_frees_what_was_set_aside(world: World) -> None:
    async def play() -> JobId:
        async with running(world, Waiting(world)) as (post, stations):
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            await until(lambda: stations["health"].run(job) is RunState.ACCEPTED)
            return job

    job = asyncio.run(play())
    state = world.open("health")
    assert not state.ledger().of("people")
    assert state.ledger().row(job, 1) is not None
    state.close()


def test_an_attempt_whose_stream_was_never_opened_is_freed_though_it_was_charged(world: World) -> None:
    async def play() -> None:
        async with running(world) as (post, stations):
            from protocols.errors import Unreachable

            async def fails(_attempt: Attempt) -> Any:
                raise Unreachable("cut", code="link-broken")

            stations["health"].wire.open_data = fails  # type: ignore[method-assign]  # the link is down
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            task = await over(post, job)
            assert (task.ended["health"].code, task.ended["health"].opened) == ("unreachable", False)
            health = stations["health"]
            assert not health.state.ledger().of("people")
            assert [kind for kind, name, _ in journaled(health) if name == "rows"] == [
                "budget.reserved",
                "budget.charged",
                "budget.released",
            ]

    asyncio.run(play())


def test_an_attempt_cut_short_before_it_answered_costs_and_is_in_no_other_questions_way(
    world: World,
) -> None:
    class Silent(Post):
        def carried(self, header: object, frame: bytes) -> tuple[bytes, ...]:
            return () if header.to == "matcher" else (frame,)  # type: ignore[attr-defined]  # a Header

    async def play() -> None:
        async with running(world, Silent(world)) as (post, stations):
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            await until(lambda: all(s.run(job) is RunState.RUNNING for s in stations.values()))
            post.stop(job, "cancelled-by-requester")
            await over(post, job)
            [past] = stations["statistics"].state.ledger().of("")
            assert (past.charged, past.exact) == (True, False)

    asyncio.run(play())


def test_a_job_over_the_quota_is_refused_and_says_what_is_left(world: World) -> None:
    for name in ("police", "health", "human-resources"):
        world.activate(name, queries=1)

    async def play() -> None:
        async with running(world) as (post, stations):
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            await over(post, job)
            second = post.submit(world.spec())
            task = await answered(post, second)
            verdict = task.verdicts["health"]
            assert (verdict.answer, verdict.code) == ("refuse", "budget-exceeded")
            assert "剩 0" in verdict.sentence_zh
            assert verdict.answered == job

    asyncio.run(play())


def test_the_verdict_says_what_the_job_would_cost_and_what_would_leave(world: World) -> None:
    async def play() -> None:
        async with running(world) as (post, _):
            job = post.submit(world.spec())
            task = await answered(post, job)
            verdict = task.verdicts["health"]
            assert [(c.budget, c.cost, c.remaining, c.limit) for c in verdict.costs] == [
                ("queries", "1", "100", "100"),
                ("rows", "1000", "100000", "100000"),
            ]
            assert {(x.output_class, x.recipient, x.made_by) for x in verdict.leaves} == {
                ("B", "police.gz.example", "register"),
                ("A", "data-bureau.gz.example", "register"),
            }
            assert set(verdict.approvers) == {"dpo", "owner"}
            assert (verdict.approvals_needed, verdict.approvals_given) == (2, 0)

    asyncio.run(play())


def test_a_damaged_ledger_refuses_everything_on_its_source_p6(world: World) -> None:
    async def play() -> None:
        async with running(world, Waiting(world)) as (post, stations):
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            health = stations["health"]
            await until(lambda: health.run(job) is RunState.ACCEPTED)
            with health.state.journal.transaction() as connection:
                connection.execute("UPDATE ledger SET cost = replace(cost, '1000', '10')")
            health.state._ledger_read.clear()
            second = post.submit(world.spec())
            await until(lambda: "health" in post.tasks[second].verdicts)
            verdict = post.tasks[second].verdicts["health"]
            assert (verdict.answer, verdict.code) == ("refuse", "ledger-damaged")
            assert "账本" in verdict.sentence_zh
            # The attempt under way ends all the same; what it set aside stays as it is.
            post.stop(job, "cancelled-by-requester")
            await until(lambda: health.run(job) is RunState.CANCELLED)
            assert not health.entries("budget.released")

    asyncio.run(play())


def test_attempts_that_never_started_do_not_count_against_the_job(world: World) -> None:
    async def play() -> None:
        async with running(world, Waiting(world)) as (post, stations):
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            for _ in range(ATTEMPTS_PER_JOB + 1):
                await until(lambda: stations["health"].run(job, post.tasks[job].attempt) is RunState.ACCEPTED)
                post.again(job)
            task = await answered(post, job)
            assert task.verdicts["health"].answer == "permit"

    asyncio.run(play())


# -- the last unit, through gate and runner ----------------------------------------------------------------

JOBS = 50


class Alone(Post):
    """Has only the health department's node take part, and admits nobody by itself."""

    def participants(self, task: Task) -> list[str]:
        return ["health"]

    async def heard(self, name: str, message: ControlRequest) -> None:
        if message.WhichOneof("kind") == "answer":
            task = self.tasks[JobId(message.answer.attempt.job)]
            task.verdicts[name] = Verdict.decode(decode_envelope(message.answer.verdict).payload)
        elif message.WhichOneof("kind") == "admitted":
            self.tasks[JobId(message.admitted.attempt.job)].admissions[name] = message.admitted.admission
        elif message.WhichOneof("kind") == "letter":
            self.post_letter(name, message.letter)


@pytest.mark.long  # the same race between processes is the harder case, in test_node_ledger.py
def test_of_fifty_jobs_in_one_process_for_the_last_unit_exactly_one_is_admitted(world: World) -> None:
    world.activate("health", queries=1)

    async def play() -> None:
        async with running(world, Alone(world), ["health"]) as (post, stations):
            health = stations["health"]
            await until(lambda: health.agent.force.roster is not None)
            jobs = [post.submit(world.spec()) for _ in range(JOBS)]
            await until(lambda: all("health" in post.tasks[job].verdicts for job in jobs))
            for job in jobs:
                health.approve_fully(job)
            # Every one of them is permitted before anyone is admitted.
            assert {health.run(job) for job in jobs} == {RunState.CHECKING}
            for job in jobs:
                health.agent.runner.admit(Attempt(job, 1))
            await until(lambda: all(health.run(job) is not RunState.CHECKING for job in jobs))
            states = [health.run(job) for job in jobs]
            assert states.count(RunState.ACCEPTED) == 1
            assert states.count(RunState.REFUSED) == JOBS - 1
            codes = {health.state.run(Attempt(job, 1)).code for job in jobs}  # type: ignore[union-attr]  # offered
            assert codes == {"", "budget-exceeded"}
            await until(lambda: sum(bool(post.tasks[job].admissions) for job in jobs) == 1)
            await until(
                lambda: sum(post.tasks[job].verdicts["health"].answer == "refuse" for job in jobs) == 49
            )
            assert figures(limits(world, health)["queries"]) == ("0", "1", "0")
            assert len(health.entries("budget.reserved")) == 2

    asyncio.run(play())


# -- windows and clocks ------------------------------------------------------------------------------------

WINDOW = '{ days = ["mon", "tue", "wed", "thu", "fri"], from = 08:00:00, to = 20:00:00 }'


def test_a_job_outside_the_window_waits_and_goes_on_when_it_opens(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.agent.TICK_S", 0.02)
    world.activate("statistics", window=WINDOW)
    world.clock.at = datetime(2026, 11, 22, 8, tzinfo=UTC)  # a Sunday

    async def play() -> None:
        async with running(world, names=["statistics"]) as (post, stations):
            matcher = stations["statistics"]
            job = post.submit(world.spec())
            await until(lambda: "statistics" in post.tasks[job].verdicts)
            verdict = post.tasks[job].verdicts["statistics"]
            assert (verdict.answer, verdict.code, verdict.approvals_needed) == ("ask", "window-closed", 0)
            assert matcher.run(job) is RunState.AWAITING_APPROVAL
            await asyncio.sleep(0.1)
            assert matcher.run(job) is RunState.AWAITING_APPROVAL
            world.clock.at = datetime(2026, 11, 23, 0, 30, tzinfo=UTC)  # Monday, half past eight in Shanghai
            await until(lambda: post.tasks[job].verdicts["statistics"].answer == "permit")
            assert matcher.run(job) is RunState.CHECKING

    asyncio.run(play())


def test_a_clock_that_jumps_is_journaled_and_refuses_everything_until_it_is_right_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.agent.TICK_S", 0.02)
    monkeypatch.setattr(type(world.clock), "ticks", lambda _self: 0.0)

    async def play() -> None:
        async with running(world, names=["statistics"]) as (post, stations):
            matcher = stations["statistics"]
            first = post.submit(world.spec(created=START))
            await until(lambda: "statistics" in post.tasks[first].verdicts)
            world.clock.at = START + timedelta(hours=1)
            await until(lambda: bool(matcher.entries("clock.step")))
            [entry] = matcher.entries("clock.step")
            assert entry.body["step_ms"] == 3_600_000
            job = post.submit(world.spec(created=START))
            await until(lambda: "statistics" in post.tasks[job].verdicts)
            assert post.tasks[job].verdicts["statistics"].code == "clock-untrusted"
            assert post.tasks[first].verdicts["statistics"].answer == "permit"  # what waited before, waits on
            matcher.watch.heard(world.clock())
            second = post.submit(world.spec(created=START))
            await until(lambda: "statistics" in post.tasks[second].verdicts)
            assert post.tasks[second].verdicts["statistics"].answer == "permit"

    asyncio.run(play())


def test_a_yes_given_while_the_clock_is_in_doubt_counts_once_it_is_not(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.agent.TICK_S", 0.02)
    monkeypatch.setattr(type(world.clock), "ticks", lambda _self: 0.0)

    async def play() -> None:
        async with running(world, names=["health"]) as (post, stations):
            health = stations["health"]
            job = post.submit(world.spec())
            await until(lambda: "health" in post.tasks[job].verdicts)
            yes = [health.approval(job, signer) for signer in vars(world.staff["health"]).values()]
            world.clock.at = START + timedelta(hours=1)
            await until(lambda: bool(health.entries("clock.step")))
            for approval in yes:
                health.agent.desk.handle("approve", approval)
            assert health.run(job) is RunState.AWAITING_APPROVAL
            health.watch.heard(world.clock())
            await until(lambda: health.run(job) is RunState.CHECKING)
            await until(lambda: post.tasks[job].verdicts["health"].answer == "permit")

    asyncio.run(play())


def test_a_waiting_job_outlives_a_roster_that_nobody_confirmed_for_a_while(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.agent.TICK_S", 0.02)

    async def play() -> None:
        async with running(world, names=["health"]) as (post, stations):
            health = stations["health"]
            job = post.submit(world.spec(expires=START + timedelta(days=20)))
            await until(lambda: "health" in post.tasks[job].verdicts)
            world.clock.at = START + timedelta(days=10)
            second = post.submit(world.spec(created=START, expires=START + timedelta(days=20)))
            await until(lambda: "health" in post.tasks[second].verdicts)
            assert post.tasks[second].verdicts["health"].code == "roster-stale"
            assert health.run(job) is RunState.AWAITING_APPROVAL
            post.freshness = world.fresh()
            health.wire.drop()
            await until(lambda: bool(health.entries("roster.fresh")))
            health.approve_fully(job)
            assert health.run(job) is RunState.CHECKING

    asyncio.run(play())


# -- what officers read ------------------------------------------------------------------------------------


def spent(world: World) -> JobId:
    async def play() -> JobId:
        async with running(world) as (post, stations):
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            await over(post, job)
            await until(lambda: stations["police"].run(job) is RunState.DONE)
            return job

    return asyncio.run(play())


def test_the_budget_command_says_what_is_left_and_what_spent_the_rest(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = spent(world)
    monkeypatch.setattr("node.page._now", world.clock)
    home = str(world.homes["health"].path)
    capsys.readouterr()
    assert main(["budget", "--home", home, "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    queries, rows = plain["accounts"]
    assert (
        queries["name"],
        queries["limit"],
        queries["spent"],
        queries["reserved"],
        queries["remaining"],
    ) == (
        "queries",
        "100",
        "1",
        "0",
        "99",
    )
    assert queries["until"] == "2026-11-30T16:00:00Z"
    [by] = rows["by"]
    assert (by["job"], by["purpose"], by["requester"], by["cost"], by["charged"]) == (
        job,
        "P-1",
        "bureau",
        "1000",
        True,
    )
    assert by["time"] == "2026-11-22T08:00:00Z"
    assert main(["budget", "--home", home]) == 0
    text = capsys.readouterr().out
    for part in (
        "数据集 dataset people",
        "配额 quota queries",
        "剩余 left 99 / 100",
        "2026-12-01 00:00 (Asia/Shanghai)",
        "已占用 charged",
        "P-1  bureau",
        job,
    ):
        assert part in text


@pytest.mark.parametrize(("scope", "whose"), [("per-requester", ["bureau"]), ("per-purpose", ["P-1"])])
def test_a_limit_for_each_is_shown_for_each(world: World, scope: str, whose: list[str]) -> None:
    world.activate("health", scope=scope)

    async def play() -> None:
        async with running(world, Waiting(world)) as (post, stations):
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            health = stations["health"]
            await until(lambda: health.run(job) is RunState.ACCEPTED)
            active = health.agent.force.policy
            assert active is not None
            found = accounts(active, health.state.ledger(), world.clock())
            assert sorted({account.whose for account in found}) == whose
            assert [figures(a) for a in found if a.name == "queries"] == [("0", "1", "99")]
            assert any(f"[{whose[0]}]" in line for line in page(found, active.policy))

    asyncio.run(play())


def test_a_new_month_has_all_of_its_quota_and_an_old_one_never_opens_again(world: World) -> None:
    async def play() -> None:
        async with running(world, Waiting(world)) as (post, stations):
            health = stations["health"]
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            await until(lambda: health.run(job) is RunState.ACCEPTED)
            active = health.agent.force.policy
            assert active is not None

            def at(now: datetime) -> str:
                found = accounts(active, health.state.ledger(), now)
                return next(account.remaining for account in found if account.name == "queries")

            assert at(datetime(2026, 12, 1, tzinfo=UTC)) == "100"
            assert at(datetime(2026, 10, 1, tzinfo=UTC)) == "99"  # a clock set back: still November's

    asyncio.run(play())
