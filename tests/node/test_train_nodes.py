"""A model of three departments, trained by real worker processes through four real nodes."""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from auditing import audited, findings
from joined_world import spellings
from simulator import Post, Station, answered, person, running, until
from table_world import SOURCES
from train_world import TrainWorld, checks

pytest.importorskip("flwr", reason="the extra `train` is not installed")

from node import workers
from node.ledger import RowState
from node.releases import decode_content, release_info
from node.state import RunState
from node.workers import Started
from protocols.channel import suites
from protocols.dp.cost import Cost, decimal_down, total
from protocols.ids import JobId
from protocols.jobs import job_type
from protocols.jobs.job_type import InRounds
from protocols.training.model import read_model
from protocols.training.params import Params
from protocols.wire import Constraints, JobSpec

pytestmark = pytest.mark.alone  # each of them starts four processes that load Flower

PLANTED = [
    spelling for name in SOURCES for who, *_ in checks(name)[::30] for spelling in spellings(person(who))
]
PATIENCE_S = 180.0


@pytest.fixture(scope="module")
def founded_training(memory: Path) -> TrainWorld:
    return TrainWorld(memory / "training")


@pytest.fixture
def world(founded_training: TrainWorld, folder: Path) -> TrainWorld:
    return founded_training.clone(folder / "world")  # type: ignore[return-value]  # a copy of its own kind


class Watched:
    """Starts real workers and knows their processes."""

    def __init__(self, start: Callable[..., Started]) -> None:
        self._start, self.processes = start, list[Any]()

    def start(self, rows: Any, config: Any) -> Started:
        worker, kill = self._start(rows, config)
        self.processes.append(worker.worker)  # type: ignore[attr-defined]  # the process within
        return worker, kill

    def alive(self) -> list[int]:
        return [process.pid for process in self.processes if Path(f"/proc/{process.pid}").exists()]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    watched = Watched(workers.start_process)
    monkeypatch.setattr(workers, "start_process", watched.start)
    yield watched
    assert watched.alive() == []


def rounds_of(station: Station, job: JobId, attempt: int) -> Mapping[str, int]:
    found: dict[str, int] = {}
    for entry in station.entries("training.round"):
        if (entry.job, entry.attempt) == (job, attempt):
            found[entry.body["turn"]] = found.get(entry.body["turn"], 0) + 1
    return found


def cost_of(spec: JobSpec, turns: Mapping[str, int]) -> Cost:
    kind = job_type(spec.job_type)
    assert isinstance(kind, InRounds)
    return kind.cost_of(spec, spec.inputs[0].role, Constraints(), turns)


def spent(station: Station, job: JobId) -> Cost:
    rows = station.state.ledger().of_job(job)
    return total(row.past.cost for row in rows if row.state is RowState.CHARGED)


def adds_up(spec: JobSpec, stations: Mapping[str, Station], job: JobId) -> None:
    """Every department has been charged for the rounds that it recorded, for all of them together, once."""
    most = Params.of(spec).turns
    for name in SOURCES:
        attempts = [run.attempt.number for run in stations[name].state.runs(job)]
        had = [rounds_of(stations[name], job, attempt) for attempt in attempts]
        turns = {turn: sum(each.get(turn, 0) for each in had) for turn in most}
        assert all(turns[turn] <= most[turn] for turn in most)
        assert spent(stations[name], job) == cost_of(spec, turns)
        numbers = [entry.body["round"] for entry in stations[name].entries("training.round")]
        assert numbers == sorted(set(numbers))


def opened(world: TrainWorld, post: Post, job: JobId) -> Any:
    """Return the model as the analyst opens it."""
    [release] = post.tasks[job].uploads
    sealed = post.release(job)
    data = suites.open_sealed(2, world.analyst_private, release_info(release, job), sealed)
    table, _ = decode_content(data)
    return {row["file"]: row["data"] for row in table.to_pylist()}


def scan(world: TrainWorld, post: Post, record: Path) -> None:
    """Look for planted identifiers wherever something is written or sent; the lists lie elsewhere."""

    def found_in(data: bytes) -> bool:
        return any(spelling in data for spelling in PLANTED)

    assert not found_in(b"".join(post.control))
    assert not found_in(b"".join(frame for _, frame in post.frames))
    bodies = [path for path in record.rglob("*") if path.is_file()]
    assert len(bodies) >= 4 * len(SOURCES)
    homes = [path for home in world.homes.values() for path in home.path.rglob("*") if path.is_file()]
    for path in (*bodies, *homes):
        assert not found_in(path.read_bytes()), path.name


async def done(post: Post, job: JobId) -> None:
    task = await answered(post, job)
    refused = {name: verdict.code for name, verdict in task.verdicts.items() if verdict.answer == "refuse"}
    assert not refused, refused
    await until(lambda: set(task.ended) == set(post.participants(task)), PATIENCE_S)
    ends = {name: (end.code, end.sentence) for name, end in task.ended.items() if end.state != "DONE"}
    assert not ends, ends


async def some_rounds(stations: Mapping[str, Station], job: JobId, count: int) -> None:
    await until(
        lambda: all(len(stations[name].entries("training.round")) >= count for name in SOURCES), PATIENCE_S
    )


async def all_over(stations: Mapping[str, Station], job: JobId, attempt: int) -> None:
    going = (RunState.RUNNING, RunState.ACCEPTED, RunState.RELEASING)
    await until(lambda: all(s.run(job, attempt) not in going for s in stations.values()), PATIENCE_S)


def clean(world: TrainWorld) -> None:
    for name in (*SOURCES, "statistics"):
        assert findings(audited(world, name)) == set(), name


def test_three_departments_train_a_model_and_nothing_else_leaves(world: TrainWorld, watched: Watched) -> None:
    record = world.folder / "recorded"
    spec = world.model()

    async def play() -> Mapping[str, bytes]:
        async with running(world, record=record) as (post, stations):
            job = post.submit(spec)
            await done(post, job)
            await all_over(stations, job, 1)
            assert [rounds_of(stations[name], job, 1)["train"] for name in SOURCES] == [8, 8, 8]
            adds_up(spec, stations, job)
            assert any(b"auc" in message for message in post.control)
            assert any(b"epsilon" in message for message in post.control)
            for station in stations.values():  # nothing is kept to go on with
                shelf = station.home.path / "shelf" / "train-1"
                assert not shelf.exists() or not list(shelf.iterdir())
            scan(world, post, record)
            return opened(world, post, job)

    files = asyncio.run(play())
    assert set(files) >= {"model.safetensors", "model-card.json"}
    assert read_model(files).card.job_type == "train/1"
    assert len(watched.processes) == 4
    clean(world)


def test_a_worker_killed_in_the_middle_is_started_again_and_nobody_notices(
    world: TrainWorld, watched: Watched
) -> None:
    spec = world.model()

    async def play() -> None:
        async with running(world) as (post, stations):
            job = post.submit(spec)
            await some_rounds(stations, job, 2)
            os.kill(watched.processes[0].pid, signal.SIGKILL)
            await done(post, job)
            await all_over(stations, job, 1)
            adds_up(spec, stations, job)
            told = [
                station.home.log.read_text("utf-8").count("worker-killed") for station in stations.values()
            ]
            assert sorted(told) == [0, 0, 0, 1]  # its own operator is told, and nobody else

    asyncio.run(play())
    assert len(watched.processes) == 5
    clean(world)


def test_an_attempt_cut_short_by_the_coordinator_goes_on_where_it_was(
    world: TrainWorld, watched: Watched
) -> None:
    spec = world.model()

    async def play() -> None:
        async with running(world) as (post, stations):
            job = post.submit(spec)
            await some_rounds(stations, job, 3)
            post.stop(job, "attempt-replaced", attempt=1)
            await all_over(stations, job, 1)
            await until(lambda: watched.alive() == [], PATIENCE_S)
            first = {name: sum(rounds_of(stations[name], job, 1).values()) for name in SOURCES}
            for name in SOURCES:
                row = stations[name].state.ledger().row(job, 1)
                assert row is not None
                assert row.past.cost == cost_of(spec, rounds_of(stations[name], job, 1))
            post.again(job)
            await done(post, job)
            await all_over(stations, job, 2)
            adds_up(spec, stations, job)
            whole = sum(Params.of(spec).turns.values())
            for name in SOURCES:
                assert sum(rounds_of(stations[name], job, 2).values()) <= whole - first[name]
                assert sum(rounds_of(stations[name], job, 2).values()) < whole - 2
            card = read_model(opened(world, post, job)).card
            assert card.training.rounds["train"] == 8

    asyncio.run(play())
    clean(world)


@pytest.mark.parametrize("name", ["health", "statistics"], ids=["a source", "the lead"])
def test_a_node_killed_in_the_middle_comes_back_and_the_run_goes_on(
    world: TrainWorld, watched: Watched, name: str
) -> None:
    spec = world.model()

    async def play() -> None:
        async with running(world) as (post, stations):
            job = post.submit(spec)
            await some_rounds(stations, job, 2)
            killed = stations.pop(name)
            killed.state.close()  # what it does from here on is nowhere
            await killed.kill()
            stations[name] = Station(world, post, name)
            await until(lambda: name in post.tasks[job].ended, PATIENCE_S)
            assert post.tasks[job].ended[name].code == "node-restarted"
            await all_over(stations, job, 1)
            if name == "health":
                rounds = rounds_of(stations[name], job, 1)
                [end] = [e for e in stations[name].entries("job.failed") if e.job == job]
                assert end.body["rounds"] == sum(rounds.values())
                row = stations[name].state.ledger().row(job, 1)
                assert row is not None
                assert row.past.cost == cost_of(spec, rounds)
            post.again(job)
            await done(post, job)
            await all_over(stations, job, 2)
            adds_up(spec, stations, job)

    asyncio.run(play())
    clean(world)


def test_what_is_left_of_a_budget_after_two_attempts_is_what_their_rounds_leave_to_the_last_digit(
    world: TrainWorld, watched: Watched
) -> None:
    spec = world.model()

    async def play() -> None:
        async with running(world) as (post, stations):
            job = post.submit(spec)
            await some_rounds(stations, job, 1)
            post.stop(job, "attempt-replaced", attempt=1)
            await all_over(stations, job, 1)
            post.again(job)
            await done(post, job)
            await all_over(stations, job, 2)
            adds_up(spec, stations, job)
            whole = cost_of(spec, Params.of(spec).turns).rho
            assert all(spent(stations[name], job).rho <= whole for name in SOURCES)
            left = 1 - max(spent(stations[name], job).rho for name in SOURCES)
            for rho, answer in ((left + Fraction("0.001"), "refuse"), (left, "permit")):
                evaluated = {"every": 4, "bins": 16, "rho": "0.05"}
                asked = {"rho": decimal_down(rho, 15), "evaluate": evaluated}
                again = post.submit(world.model(params=asked))
                verdicts = (await answered(post, again)).verdicts
                assert answer in {verdicts[name].answer for name in SOURCES}
                post.stop(again, "cancelled-by-requester")
                await all_over(stations, again, 1)

    asyncio.run(play())
    clean(world)
