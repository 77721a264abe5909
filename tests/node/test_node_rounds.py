"""Runs in rounds: counted before they leave, paid for as they were, gone on with in the next attempt."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from auditing import audited, findings
from rounds_world import (
    EACH,
    EVALUATE,
    PART,
    SOURCES,
    TRAIN,
    Cut,
    Hands,
    RoundsWorld,
    Stepper,
    Steps,
    cost_of,
    paid,
    recorded,
    registered,
    stream,
)
from simulator import Fragile, Post, Station, answered, approve_all, over, running, until

from node import gate, workers
from node.budgets import accounts, page
from node.ledger import RowState
from node.rpc import Attempt
from node.state import RunState
from policies.decide import decide
from policies.decision import Ask
from policies.explain import decision_json, explain_decision
from protocols.channel.frame import Header
from protocols.dp.cost import Cost, total
from protocols.encoding import b64encode
from protocols.envelope import decode_envelope
from protocols.errors import StateConflict
from protocols.ids import JobId
from protocols.wire import JobSpec

pytestmark = pytest.mark.alone  # whole nodes, 13 s together

WHOLE = {"train": TRAIN, "evaluate": EVALUATE}


@pytest.fixture(scope="module")
def known() -> Iterator[Hands]:
    with registered(Steps()) as hands:
        yield hands


@pytest.fixture(scope="module")
def founded_rounds(memory: Path, known: Hands) -> RoundsWorld:
    return RoundsWorld(memory / "rounds")


@pytest.fixture
def hands(known: Hands) -> Hands:
    """The workers, as if none had been started."""
    known.__init__()  # type: ignore[misc]  # the same object, which the registry has
    return known


@pytest.fixture
def world(founded_rounds: RoundsWorld, folder: Path, hands: Hands) -> RoundsWorld:
    return founded_rounds.clone(folder / "world")  # type: ignore[return-value]  # a copy of its own kind


def clean(world: RoundsWorld) -> None:
    for name in (*SOURCES, "statistics"):
        assert findings(audited(world, name)) == set(), name


def rho(*rounds: int) -> Fraction:
    return sum(rounds) * EACH


def spent(station: Station, job: JobId) -> Any:
    """Return what all attempts of a job cost a department together."""
    return total(row.past.cost for row in station.state.ledger().of_job(job) if row.state is RowState.CHARGED)


async def ended(stations: dict[str, Station], job: JobId, attempt: int) -> None:
    going = (RunState.RUNNING, RunState.RELEASING, RunState.ACCEPTED)
    await until(lambda: all(s.run(job, attempt) not in going for s in stations.values()))


async def goes_on(post: Post, stations: dict[str, Station], job: JobId) -> None:
    """Offer the next attempt and wait for its end."""
    post.again(job)
    task = await over(post, job)
    assert {end.state for end in task.ended.values()} == {"DONE"}, task.ended
    await ended(stations, job, task.attempt)


def test_a_whole_run_is_charged_whole_journaled_round_by_round_and_its_workers_are_gone(
    world: RoundsWorld, hands: Hands
) -> None:
    async def play() -> None:
        async with running(world) as (post, stations):
            job = post.submit(world.steps())
            task = await over(post, job)
            assert {end.state for end in task.ended.values()} == {"DONE"}, task.ended
            await ended(stations, job, 1)
            for name in SOURCES:
                station = stations[name]
                assert recorded(station, job, 1) == WHOLE
                numbers = [e.body["round"] for e in station.entries("training.round")]
                assert numbers == list(range(1, TRAIN + EVALUATE + 1))
                assert {e.body["sources"] for e in station.entries("training.round")} == {3}
                assert cost_of(station, job, 1) == paid(WHOLE)
                assert not station.entries("budget.returned")
                [done] = station.entries("job.done")
                assert done.body["rounds"] == TRAIN + EVALUATE
            assert any(b"auc" in message for message in post.control)
            station = stations["health"]
            active = station.agent.force.policy
            assert active is not None
            found = accounts(active, station.state.ledger(), world.clock())
            assert f"{job} #1  8 轮 rounds" in "\n".join(page(found, active.policy))
            assert not stations["statistics"].entries("training.round")
            [done] = stations["statistics"].entries("job.done")
            assert "rounds" not in done.body
            assert (hands.started, hands.open) == (4, 0)
            for rows in hands.shared:
                with pytest.raises(OSError, match="Bad file descriptor"):
                    rows.close()

    asyncio.run(play())
    clean(world)


@pytest.mark.parametrize("rounds", [pytest.param(1, marks=pytest.mark.long), 4])
def test_the_next_attempt_goes_on_and_all_attempts_together_cost_what_was_recorded(
    world: RoundsWorld, rounds: int
) -> None:
    async def play() -> None:
        mail = Cut(world)
        mail.after = {1: rounds}
        async with running(world, mail) as (post, stations):
            job = post.submit(world.steps())
            await until(lambda: all(sum(recorded(stations[n], job, 1).values()) == rounds for n in SOURCES))
            post.stop(job, "coordinator-restarted", attempt=1)
            await ended(stations, job, 1)
            for name in SOURCES:
                assert cost_of(stations[name], job, 1) == paid({"train": rounds})
                [end] = stations[name].entries("job.cancelled")
                assert (end.body["rounds"], end.body["freed"]) == (rounds, False)
                [back] = stations[name].entries("budget.returned")
                assert Fraction(back.body["returned"]) == rho(TRAIN + EVALUATE - rounds)
                assert Fraction(back.body["cost"]) == rho(rounds)
            await goes_on(post, stations, job)
            for name in SOURCES:
                had = recorded(stations[name], job, 2)
                assert recorded(stations[name], job, 1) == {"train": rounds}
                assert had == {"train": TRAIN - rounds, "evaluate": EVALUATE}
                numbers = [e.body["round"] for e in stations[name].entries("training.round")]
                assert numbers == sorted(set(numbers))
                # One question, and of the loss not a grain more than one undisturbed run.
                assert spent(stations[name], job) == paid(WHOLE)
                assert cost_of(stations[name], job, 2).queries == 0
            # What is left of the budget is what one run leaves: half a run, and no whole one.
            again = post.submit(world.steps())
            verdicts = (await answered(post, again)).verdicts
            assert {verdicts[name].code for name in SOURCES} == {"budget-exceeded"}

    asyncio.run(play())
    clean(world)


def test_an_attempt_without_a_round_costs_nothing(world: RoundsWorld) -> None:
    async def play() -> None:
        mail = Cut(world)
        mail.after = {1: 0}
        async with running(world, mail) as (post, stations):
            job = post.submit(world.steps())
            await until(lambda: all((name, Attempt(job, 1)) in post.streams for name in SOURCES))
            await until(lambda: any(header.round >= 0x4010 for header, _ in post.frames))
            post.stop(job, "coordinator-restarted", attempt=1)
            await ended(stations, job, 1)
            for name in SOURCES:
                row = stations[name].state.ledger().row(job, 1)
                assert row is not None
                assert row.state is RowState.RELEASED
                [end] = stations[name].entries("job.cancelled")
                assert (end.body["rounds"], end.body["freed"]) == (0, True)
            await goes_on(post, stations, job)
            for name in SOURCES:
                assert spent(stations[name], job) == paid(WHOLE)

    asyncio.run(play())
    clean(world)


def test_a_lead_that_dies_after_the_last_round_hands_the_model_over_in_the_next_attempt_at_no_cost(
    world: RoundsWorld,
) -> None:
    class Late(Post):
        # The last answer is recorded everywhere, and its sum never made: no round is left for attempt 2.
        def carried(self, header: Header, frame: bytes) -> list[bytes]:
            last = (header.attempt, header.round) == (1, stream(TRAIN + EVALUATE, PART))
            return [] if last else [frame]

    async def play() -> None:
        async with running(world, Late(world)) as (post, stations):
            job = post.submit(world.steps())
            await until(lambda: all(recorded(stations[n], job, 1) == WHOLE for n in SOURCES))
            post.stop(job, "coordinator-restarted", attempt=1)
            await ended(stations, job, 1)
            for name in SOURCES:
                assert cost_of(stations[name], job, 1) == paid(WHOLE)
                # Nobody would pay for a round of an attempt that is over, whatever its thread still does.
                with stations[name].state.change() as change, pytest.raises(StateConflict) as caught:
                    change.record_round(Attempt(job, 1), "train", 99, 99)
                assert caught.value.code == "not-running"
            await goes_on(post, stations, job)
            assert post.tasks[job].uploads
            for name in SOURCES:
                assert not recorded(stations[name], job, 2)
                assert cost_of(stations[name], job, 2) == Cost()
                assert spent(stations[name], job) == paid(WHOLE)

    asyncio.run(play())
    clean(world)


def test_a_run_whose_training_is_spent_goes_on_with_what_is_left_and_costs_no_more(
    world: RoundsWorld,
) -> None:
    async def play() -> None:
        mail = Cut(world)
        mail.after = {1: 3, 2: 3}
        async with running(world, mail) as (post, stations):
            job = post.submit(world.steps())
            for attempt in (1, 2):
                want = 3 * attempt
                await until(
                    lambda want=want: all(  # type: ignore[misc]
                        len(stations[n].entries("training.round")) == want for n in SOURCES
                    )
                )
                post.stop(job, "coordinator-restarted", attempt=attempt)
                await ended(stations, job, attempt)
                if attempt == 1:
                    post.again(job)
            await goes_on(post, stations, job)
            for name in SOURCES:
                assert recorded(stations[name], job, 3) == {"evaluate": EVALUATE}
                assert spent(stations[name], job) == paid(WHOLE)

    asyncio.run(play())
    clean(world)


def test_approvals_hold_for_all_attempts_and_name_the_cost_of_the_whole_run(
    memory: Path, folder: Path, known: Hands
) -> None:
    class Approved(RoundsWorld):
        approvals = 2

    world = Approved(folder / "approved")

    async def play() -> None:
        mail = Cut(world)
        mail.after = {1: 2}
        async with running(world, mail) as (post, stations):
            job = post.submit(world.steps())
            await approve_all(post, stations, job)
            await until(lambda: all(sum(recorded(stations[n], job, 1).values()) == 2 for n in SOURCES))
            post.stop(job, "coordinator-restarted", attempt=1)
            await ended(stations, job, 1)
            await goes_on(post, stations, job)
            health = stations["health"]
            case = read_case(health, job)
            assert "Runs in rounds: at most 6 rounds of training and 2 rounds of evaluation here" in case
            assert "按轮执行: 在本节点至多训练 6 轮、评估 2 轮" in case
            for name in SOURCES:
                assert len(stations[name].entries("approval.recorded")) == 2
                admitted = stations[name].entries("job.admitted")
                assert [entry.body["approvals"] for entry in admitted] == [2, 2]

    asyncio.run(play())
    clean(world)


def read_case(station: Station, job: JobId) -> str:
    """Return what an approver would read of a job that nothing has run of."""
    data = station.state.job(job)
    assert data is not None
    spec = JobSpec.decode(decode_envelope(data).payload)
    force = station.agent.force
    assert force.roster is not None
    said = decide(force.policy, spec, node=station.home.name, roster=force.roster, now=station.world.clock())
    assert isinstance(said, Ask)
    later = decide(
        force.policy,
        spec,
        node=station.home.name,
        roster=force.roster,
        now=station.world.clock(),
        used={"train": 2},
    )
    assert isinstance(later, Ask)
    # The approval is of all of the job, whichever attempt asks for it; what this one may cost is less.
    assert (later.terms.whole, later.terms.cost) == (said.terms.cost, paid({"train": 4, "evaluate": 2}))
    page = "".join(explain_decision(later, spec, language) for language in ("zh", "en"))
    assert "at most 4 rounds of training and 2 rounds of evaluation here, after 2 rounds of training" in page
    assert decision_json(later)["rounds"] == {"most": {"evaluate": 2, "train": 4}, "spent": {"train": 2}}
    return "".join(explain_decision(said, spec, language) for language in ("zh", "en"))


# -- what ends between rounds --------------------------------------------------------------------------------


def test_a_policy_that_changes_between_rounds_ends_the_attempt_before_the_next_one_leaves(
    world: RoundsWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever notices is the round itself: nobody else stops the attempt."""
    real = Stepper.receive
    world_of: dict[str, Station] = {}

    def receive(self: Stepper, message: Any) -> Any:
        step = real(self, message)
        station = world_of["police"]
        if len(station.entries("training.round")) == 2 and station.agent.force.policy is not None:
            active = station.agent.force.policy
            station.agent.force.policy = replace(active, digest="sha256:" + "0" * 64)
        return step

    monkeypatch.setattr(Stepper, "receive", receive)

    async def play() -> None:
        async with running(world) as (post, stations):
            world_of.update(stations)
            active = stations["police"].agent.force.policy
            job = post.submit(world.steps())
            task = await over(post, job)
            stations["police"].agent.force.policy = active
            assert task.ended["police"].code == "admission-outdated"
            assert len(stations["police"].entries("training.round")) == 2
            frames = {h.round for h, _ in post.frames if h.sender == "source-1"} if post.frames else set()
            assert len([number for number in frames if number >= 0x4010]) == 2

    asyncio.run(play())


def test_a_stop_between_rounds_ends_the_attempt_and_gives_back_what_was_not_spent(
    world: RoundsWorld, hands: Hands
) -> None:
    hands.hang_at = 8  # in the third round

    async def play() -> None:
        async with running(world) as (post, stations):
            job = post.submit(world.steps())
            await until(hands.hanging.is_set)
            station = stations["police"]
            station.agent.desk.handle("stop", {"envelope": b64encode(world.stop("police", "all"))})
            await until(lambda: station.run(job) is RunState.CANCELLED)
            rounds = sum(recorded(station, job, 1).values())
            assert rounds < TRAIN + EVALUATE
            assert cost_of(station, job, 1) == paid({"train": rounds})
            await over(post, job)
            await until(lambda: hands.open == 0)

    asyncio.run(play())
    clean(world)


def test_a_node_that_stops_kills_the_worker_that_would_make_it_wait(world: RoundsWorld, hands: Hands) -> None:
    hands.hang_at = 1

    async def play() -> None:
        async with running(world) as (post, _):
            post.submit(world.steps())
            await until(hands.hanging.is_set)

    asyncio.run(asyncio.wait_for(play(), 30))
    assert hands.open == 0


def test_a_node_without_the_extra_refuses_and_says_what_to_install(
    world: RoundsWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "available", lambda: False)

    async def play() -> None:
        async with running(world) as (post, stations):
            verdicts = (await answered(post, post.submit(world.steps()))).verdicts
            assert {verdict.code for verdict in verdicts.values()} == {"training-unavailable"}
            assert "minshu[train]" in verdicts["police"].hint
            [refused] = stations["police"].entries("job.refused")
            assert refused.body["code"] == "training-unavailable"

    asyncio.run(play())
    assert workers.UNAVAILABLE.code == "training-unavailable"


# -- accidents -----------------------------------------------------------------------------------------------


async def crash(
    world: RoundsWorld, post: Post, stations: dict[str, Station], at: str, rounds: int, *, before: bool
) -> JobId:
    """Kill a department's node when it writes an entry of a kind after so many rounds; start it again."""
    await stations.pop("health").close()
    fragile = stations["health"] = Station(
        world, post, "health", type("Dying", (Fragile,), {"before": before})
    )
    await until(fragile.ready)
    job = post.submit(world.steps())
    await until(lambda: len(fragile.entries("training.round")) >= rounds)
    fragile.state.at = at  # type: ignore[attr-defined]  # of Fragile
    await until(lambda: fragile.state.dead)  # type: ignore[attr-defined]  # of Fragile
    await fragile.kill()
    stations["health"] = Station(world, post, "health")
    await until(stations["health"].ready)
    return job


@pytest.mark.parametrize("before", [True, False], ids=["before the commit", "after it"])
@pytest.mark.parametrize(
    ("at", "rounds"),
    [
        pytest.param("ledger.answering", 0, id="answering"),
        pytest.param("training.round", 2, id="a round in between"),
        pytest.param("job.done", 0, id="the end", marks=pytest.mark.long),
    ],
)
def test_after_a_crash_an_attempt_costs_the_rounds_that_are_durable(
    world: RoundsWorld, at: str, rounds: int, before: bool
) -> None:
    async def play() -> None:
        mail = Post(world)
        async with running(world, mail) as (post, stations):
            job = await crash(world, post, stations, at, rounds, before=before)
            station = stations["health"]
            had_first = recorded(station, job, 1)
            row = station.state.ledger().row(job, 1)
            assert row is not None
            assert row.rounds is not None
            assert dict(row.rounds.turns) == dict(had_first)
            if at == "ledger.answering" and before:
                assert row.state is RowState.RELEASED
            else:
                assert row.past.cost == paid(had_first)
            ends = [e for e in station.entries("job.") if "rounds" in e.body]
            assert [e.body["rounds"] for e in ends] == [sum(had_first.values())]
            post.stop(job, "node-restarted", attempt=1)
            await ended(stations, job, 1)
            if at != "job.done":
                await goes_on(post, stations, job)
                both = [recorded(station, job, n) for n in (1, 2)]
                turns = {turn: sum(had.get(turn, 0) for had in both) for turn in WHOLE}
                assert all(turns[turn] <= most for turn, most in WHOLE.items())
                assert spent(station, job) == paid(turns)

    asyncio.run(play())
    clean(world)
