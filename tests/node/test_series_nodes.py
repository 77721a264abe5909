"""Days of a series through real nodes that restart in between; what ends one, and what a crash leaves."""

import asyncio
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from auditing import audited, findings
from simulator import (
    Fragile,
    Post,
    Station,
    World,
    answered,
    approve_all,
    over,
    person,
    running,
    until,
)

from audit.series import SeriesDays
from node import series as series_at_node
from node.activation import InForce
from node.agent import DELETE_EVERY_S
from node.ledger import RowState
from node.logs import Log
from node.releases import kept, open_release
from node.rpc import Attempt
from node.runner import _Live
from node.shelf import shelf_of
from node.state import RunState
from protocols.envelope import decode_envelope
from protocols.errors import StateConflict
from protocols.ids import JobId
from protocols.jobs.crosscheck import REGISTER
from protocols.wire import JobSpec, ReleaseNote

SERIES = "crosscheck-series/1"
KEEPERS = ("police", "human-resources", "health")


class SeriesWorld(World):
    """Departments that let the standard question be asked day after day, for three days."""

    most_days: int | None = 3

    def policy_of(self, name: str, **changes: Any) -> str:
        text = super().policy_of(name, **changes)
        old = 'job_types = ["crosscheck/1"]\n'
        assert text.count(old) == 1
        if self.most_days is None:
            return text
        days = "" if name == "statistics" else f"max_series_days = {self.most_days}\n"
        return text.replace(old, f'job_types = ["{SERIES}"]\n{days}')

    def day(self, first: JobId | None = None, number: int = 1, **changes: Any) -> JobSpec:
        """Return the job of a day, day 1 without `first`."""
        params = {"present_in": "at_least", "k": 2, "key_holder": "source-1", "areas": "demo-city"}
        later = {} if first is None else {"first": first, "day": number}
        return self.spec(job_type=SERIES, params=params | later, **changes)

    def in_force(self, name: str) -> InForce:
        """Return what a department's node, which does not run, would obey."""
        home, state = self.homes[name], self.open(name)
        force = InForce.load(state, home.name, home.signer.public_key)
        state.close()
        return force


@pytest.fixture(scope="module")
def begun(memory: Path) -> tuple[SeriesWorld, JobId]:
    """A world whose series has had its first day."""
    world = SeriesWorld(memory / "series")
    job = asyncio.run(played(world, world.day()))
    assert told(world, job) == set(range(300, 312))
    return world, job


@pytest.fixture
def later(begun: tuple[SeriesWorld, JobId], folder: Path) -> tuple[SeriesWorld, JobId]:
    """A copy of that world on the next day."""
    world, first = begun
    copied = world.clone(folder / "world")
    assert isinstance(copied, SeriesWorld)
    pass_days(copied, 1)
    return copied, first


def pass_days(world: World, days: float) -> None:
    world.clock.at += timedelta(days=days)


def add(world: World, **people: list[int]) -> None:
    """Have more people on lists; what is there stays."""
    for name, more in people.items():
        department = name.replace("_", "-")
        world.lists = {**world.lists, department: [*world.lists[department], *more]}
        world.write_list(department, world.lists[department])


async def played(world: World, spec: JobSpec) -> JobId:
    """Start all nodes, play a job to its good end and stop them again."""
    async with running(world) as (post, stations):
        job = post.submit(spec)
        await approve_all(post, stations, job)
        task = await over(post, job)
        assert {e.state for e in task.ended.values()} == {"DONE"}, [e.code for e in task.ended.values()]
        await until(lambda: stations["police"].run(job, task.attempt) is RunState.DONE)
        return job


def told(world: World, job: JobId) -> set[int]:
    """Return whom the police were told of by a job."""
    home, state = world.homes["police"], world.open("police")
    [records] = [o for o in state.outputs(job) if o.output_class == "B"]
    state.close()
    note = ReleaseNote.decode(decode_envelope(records.note).payload)
    listed, _ = open_release(kept(home.releases, records), note, home.recipient_private())
    numbers = {f"RIC:{person(n)}": n for n in range(500)}
    return {numbers[key] for key in listed.column("key").to_pylist()}


def blobs(world: World, name: str) -> dict[str, bytes]:
    shelf = shelf_of(world.homes[name], SERIES)
    return {each: bytes(shelf.get(each) or b"") for each in shelf.names()}


@pytest.mark.alone
def test_a_series_of_three_days_with_restarts_in_between_tells_each_person_once(later, monkeypatch) -> None:
    world, first = later
    assert all(len(blobs(world, name)) == 1 for name in KEEPERS)
    assert not blobs(world, "statistics")
    add(world, human_resources=[320, 321], health=[320, 322])
    second = asyncio.run(played(world, world.day(first, 2)))
    assert told(world, second) == {320}
    pass_days(world, 1)
    add(world, health=[321])
    third = asyncio.run(played(world, world.day(first, 3)))
    assert told(world, third) == {321}
    for name in KEEPERS:
        [blob] = blobs(world, name).values()
        assert person(300).encode() in blob or name == "police"
        log = world.homes[name].log.read_text()
        assert person(300) not in log
        state = world.open(name)
        days = [e.body for e in state.journal.entries() if e.kind == "job.admitted"]
        assert [(body["first"], body["day"]) for body in days] == [(first, 1), (first, 2), (first, 3)]
        state.close()
    # An auditor decides all three days again and finds nothing.
    assert not findings(audited(world, "police"))
    admitted = SeriesDays.admitted
    monkeypatch.setattr(SeriesDays, "admitted", lambda days, entry, _most: admitted(days, entry, 1))
    assert ("executed", "series-over") in findings(audited(world, "police"))

    async def fourth() -> None:
        async with running(world) as (post, _):
            job = post.submit(world.day(first, 4))
            task = await answered(post, job)
            codes = {name: verdict.code for name, verdict in task.verdicts.items()}
            assert {codes[name] for name in KEEPERS} == {"series-over"}

    asyncio.run(fourth())


@pytest.mark.long  # seconds of real nodes each
def test_a_series_that_is_too_old_ends_before_admission_and_costs_nothing(later) -> None:
    world, first = later
    pass_days(world, 2)  # three days after it began

    async def play() -> None:
        async with running(world) as (post, stations):
            # The nodes themselves drop it when they look; this one has not looked yet.
            job = post.submit(world.day(first, 2))
            await approve_all(post, stations, job)
            task = post.tasks[job]
            await until(lambda: bool(task.ended))
            ended = {e.code for e in task.ended.values()}
            assert ended & {"series-over", "series-lost"}
            for name in KEEPERS:
                rows = [r for r in stations[name].state.ledger().rows("people") if r.past.job == job]
                assert all(row.state is RowState.RELEASED for row in rows)

    asyncio.run(play())


def test_keys_go_when_their_days_are_over_or_no_rule_allows_series_any_more(later) -> None:
    world, _first = later
    homes = {name: world.homes[name] for name in KEEPERS}

    def looked(name: str, days: float) -> int:
        home, state = homes[name], world.open(name)
        force = InForce.load(state, home.name, home.signer.public_key)
        log = Log(home.log, world.clock)
        now = world.clock() + timedelta(days=days)
        series_at_node.delete_over(state, home, force.policy, now, log)
        receipts = [e.body for e in state.journal.entries() if e.kind == "deletion.receipt"]
        state.close()
        log.close()
        assert receipts == [{"what": "shelf", "count": 1}] * len(receipts)
        return len(receipts)

    assert looked("police", 1.99) == 0
    assert blobs(world, "police")
    assert looked("police", 2) == 1
    assert not blobs(world, "police")
    # A clock set back does not make younger what the journal saw grow old.
    world.most_days = 1
    pass_days(world, 1)
    world.activate("human-resources")
    world.clock.at -= timedelta(days=1.5)
    assert looked("human-resources", 0) == 1
    world.clock.at += timedelta(days=0.5)
    world.most_days = None  # a policy with crosscheck/1 alone
    world.activate("health")
    assert looked("health", 0) == 1
    assert not blobs(world, "health")


def test_where_no_policy_is_in_force_no_series_is_kept(later) -> None:
    world, _first = later
    home, state = world.homes["health"], world.open("health")
    log = Log(home.log, world.clock)
    series_at_node.delete_over(state, home, None, world.clock(), log)
    state.close()
    log.close()
    assert not blobs(world, "health")


def test_a_coordinator_that_says_a_wrong_time_keeps_no_keys_alive(later) -> None:
    world, _first = later

    async def look() -> None:
        station = Station(world, Post(world), "police")
        station.task.cancel()
        pass_days(world, 3)
        station.watch.heard(world.clock() - timedelta(days=2))
        assert station.watch.trusted() is None
        station.agent._series_at -= DELETE_EVERY_S
        station.agent._end_series()
        await station.close()

    assert blobs(world, "police")
    asyncio.run(look())
    assert not blobs(world, "police")


def test_a_node_admits_one_day_of_a_series_at_a_time(later) -> None:
    world, first = later

    def live(spec: JobSpec, number: int = 1) -> _Live:
        allowed: Any = SimpleNamespace(spec=spec)
        return _Live(Attempt(spec.job_id, number), allowed, REGISTER)

    async def look() -> None:
        station = Station(world, Post(world), "police")
        station.task.cancel()
        runner = station.agent.runner
        second, third, other = live(world.day(first, 2)), live(world.day(first, 3)), live(world.day())
        runner._live = {each.attempt: each for each in (second, third, other)}
        runner._check_alone(second)  # the first to come
        runner._check_alone(other)  # of another series
        with pytest.raises(StateConflict) as error:
            runner._check_alone(third)
        assert error.value.code == "series-busy"
        second.stop(error.value)  # it is over, if not yet gone
        runner._check_alone(third)
        runner._live = {}
        await station.close()

    asyncio.run(look())


@pytest.mark.long  # seconds of real nodes each
def test_a_lost_shelf_is_said_and_a_new_series_tells_everybody(later) -> None:
    world, first = later
    shelf = shelf_of(world.homes["health"], SERIES)
    for name in shelf.names():
        shelf.drop(name)

    async def play() -> None:
        async with running(world) as (post, stations):
            job = post.submit(world.day(first, 2))
            await approve_all(post, stations, job)
            task = post.tasks[job]
            await until(lambda: "series-lost" in {e.code for e in task.ended.values()})
            again = post.submit(world.day())
            await approve_all(post, stations, again)
            await over(post, again)
            await until(lambda: stations["police"].run(again) is RunState.DONE)
            assert {e.state for e in post.tasks[again].ended.values()} == {"DONE"}

    asyncio.run(play())


@pytest.mark.alone
def test_a_register_that_dies_before_its_records_are_durable_is_told_again(later) -> None:
    world, first = later
    add(world, human_resources=[320], health=[320])
    spec = world.day(first, 2)

    async def play() -> JobId:
        post = Post(world)
        async with running(world, post, [n for n in world.departments if n != "police"]) as (_, stations):
            doomed = type("Doomed", (Fragile,), {"at": "output.commit", "before": True})
            police = Station(world, post, "police", doomed)
            await until(lambda: "police" in post.wires and police.ready())
            job = post.submit(spec)
            await approve_all(post, {**stations, "police": police}, job)
            await until(lambda: police.state.dead)  # type: ignore[attr-defined]  # a Fragile state
            await police.kill()
            return job

    job = asyncio.run(play())
    state = world.open("police")
    assert not state.outputs(job)
    state.close()
    # Its shelf says that it was told; its journal does not, and that decides.
    pass_days(world, 1)
    third = asyncio.run(played(world, world.day(first, 3)))
    assert told(world, third) == {320}
