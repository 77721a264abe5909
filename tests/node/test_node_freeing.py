"""A failure before anybody answers costs nothing; what has begun to answer costs, whatever becomes of it."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from auditing import audited, findings
from simulator import Post, Station, World, answered, approve_all, over, running, until
from sum_case import sum_case, sums_plan
from table_world import SOURCES, STREETS, TableWorld
from train_case import Attempt as Training
from train_case import train_spec

from audit.entries import Entry
from audit.verify import read_entries
from node.ledger import RowState
from node.rpc import Attempt
from node.runner import Runner, _timed_out
from node.state import RunState
from protocols.channel.frame import Header
from protocols.errors import InputError
from protocols.ids import JobId, Role
from protocols.jobs import JOB_TYPES
from protocols.jobs.job_type import source
from protocols.jobs.table import CrossTable
from protocols.party import Finished, Incoming, Outgoing, Step
from protocols.sums.parties import MASKED, PUBLIC_KEY, READY, SEED
from protocols.sums.plan import Mode
from protocols.training.parties import MASKED as TRAINED
from protocols.training.parties import READY as READY_TO_TRAIN
from protocols.training.parties import SET, TASK
from protocols.training.parties import stream as training
from protocols.wire import JobSpec

pytestmark = pytest.mark.alone  # every job type on whole nodes, 17 s together


class Paid(TableWorld):
    """Two tables a month, exact ones and noisy ones; the budget is worth one noisy one and a half."""

    types = ("table/1", "release/1")
    queries = 2
    budget = """[budgets.privacy]
dataset = "cases"
notion = "zcdp"
limit = "0.75"
period = "calendar-quarter"
scope = "all-requesters"
"""

    def exact(self) -> JobSpec:
        """Return a table of persons by street and age."""
        return self.table(params={"persons_in": len(SOURCES)})

    def noisy(self) -> JobSpec:
        """Return a sum by street for rho = 0.5."""
        spec = self.table(columns={"street": "street", "paid": "paid", "latest": "day"})
        asked: dict[str, Any] = {
            "statistic": "sum",
            "rho": "0.5",
            "areas": "demo-city",
            "axes": [{"slot": "street", "values": list(STREETS)}],
            "measure": {"slot": "paid", "bounds": ["0", "1000"]},
            "key_holder": "source-1",
        }
        return replace(spec, job_type="release/1", params=asked)


ASKED: dict[str, Callable[[Paid], JobSpec]] = {"table/1": Paid.exact, "release/1": Paid.noisy}


@pytest.fixture(scope="module")
def paid(memory: Path) -> Paid:
    return Paid(memory / "paid")


@pytest.fixture
def world(paid: Paid, folder: Path) -> Paid:
    return paid.clone(folder / "world")  # type: ignore[return-value]  # a copy of its own kind


class Cutting(Post):
    """A relay that loses a job's frames of some kind, from that round on."""

    def __init__(self, world: World, lost: Callable[[Header], bool]) -> None:
        super().__init__(world)
        self.cut = lost

    def carried(self, header: Header, frame: bytes) -> Iterable[bytes]:
        return () if self.cut(header) else (frame,)


def first_frames(header: Header) -> bool:
    return header.attempt == 1


def masked(header: Header) -> bool:
    return header.round == MASKED


async def started(post: Post, stations: dict[str, Station], job: JobId) -> None:
    """Wait until every participant has passed commit point 1 and opened its stream."""
    await approve_all(post, stations, job)
    names = post.participants(post.tasks[job])
    await until(lambda: all((name, Attempt(job, 1)) in post.streams for name in names))


def states(stations: dict[str, Station], job: JobId) -> dict[str, RowState]:
    return {name: row.state for name in SOURCES for row in stations[name].state.ledger().of_job(job)[-1:]}


async def whole_budget_is_there(world: Paid, post: Post, stations: dict[str, Station]) -> None:
    """One noisy table uses more than half of what there is; then there is none for another."""
    job = post.submit(world.noisy())
    task = await over(post, job)
    assert {end.state for end in task.ended.values()} == {"DONE"}, task.ended
    again = post.submit(world.noisy())
    verdicts = (await answered(post, again)).verdicts
    assert {verdicts[name].code for name in SOURCES} == {"budget-exceeded"}


def looked_through(world: World, name: str, entries: Sequence[Entry] | None = None) -> set[tuple[str, str]]:
    """Return what an auditor finds in a department's journal, or in entries it might have signed instead."""
    return findings(audited(world, name, entries))


ENDS = ["peer-lost", "cancelled-by-requester", "timed-out"]


@pytest.mark.parametrize("code", ENDS)
@pytest.mark.parametrize("kind", ASKED)
def test_one_cut_before_anybody_answers_costs_no_department_anything(
    world: Paid, kind: str, code: str
) -> None:
    async def play() -> None:
        post = Cutting(world, first_frames)
        async with running(world, post) as (_, stations):
            job = post.submit(ASKED[kind](world))
            await started(post, stations, job)
            if code == "timed-out":
                for name in SOURCES:
                    stations[name].agent.runner._live[Attempt(job, 1)].stop(_timed_out(60))
            else:
                post.stop(job, code)
            await over(post, job)
            await until(lambda: set(states(stations, job).values()) == {RowState.RELEASED})
            for name in SOURCES:
                assert not stations[name].state.ledger().of("cases")
                [end] = [e for e in stations[name].entries("job.") if "freed" in e.body]
                assert (end.body["opened"], end.body["freed"]) == (True, True)
                assert [e.kind for e in stations[name].entries("budget.charged")]
                assert not stations[name].entries("job.answering")
            post.cut = lambda _: False
            await whole_budget_is_there(world, post, stations)

    asyncio.run(play())
    assert [looked_through(world, name) for name in SOURCES] == [set(), set(), set()]


@pytest.mark.parametrize("kind", ASKED)
def test_after_a_restart_the_cost_of_what_never_answered_is_free_again(
    world: Paid, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def crash() -> JobId:
        async with running(world, Cutting(world, first_frames)) as (post, stations):
            job = post.submit(ASKED[kind](world))
            await started(post, stations, job)
            assert set(states(stations, job).values()) == {RowState.CHARGED}
            # From here on nobody writes down how it ends.
            monkeypatch.setattr(Runner, "_finish", lambda *_: None)
            return job

    async def again(job: JobId) -> None:
        async with running(world) as (post, stations):
            assert set(states(stations, job).values()) == {RowState.RELEASED}
            for name in SOURCES:
                assert stations[name].run(job) is RunState.FAILED
            await whole_budget_is_there(world, post, stations)

    job = asyncio.run(crash())
    monkeypatch.undo()
    asyncio.run(again(job))
    assert [looked_through(world, name) for name in SOURCES] == [set(), set(), set()]


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("kind", ASKED)
def test_what_began_to_answer_costs_though_no_frame_of_it_arrived(
    world: Paid, kind: str, restarted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play() -> JobId:
        async with running(world, Cutting(world, masked)) as (post, stations):
            job = post.submit(ASKED[kind](world))
            await started(post, stations, job)
            for name in SOURCES:
                await until(lambda name=name: stations[name].entries("job.answering"))  # type: ignore[misc]
            if restarted:
                monkeypatch.setattr(Runner, "_finish", lambda *_: None)
            else:
                post.stop(job, "peer-lost")
                await over(post, job)
                assert set(states(stations, job).values()) == {RowState.CHARGED}
            return job

    job = asyncio.run(play())
    monkeypatch.undo()

    async def again() -> None:
        async with running(world) as (_, stations):
            assert set(states(stations, job).values()) == {RowState.CHARGED}

    asyncio.run(again())
    assert [looked_through(world, name) for name in SOURCES] == [set(), set(), set()]
    # The key-holder waited for totals. If it takes its cost back all the same, it is found out.
    assert ("budgets", "freed-after-it-left") in looked_through(world, "police", freed(world, "police"))


def freed(world: World, name: str) -> list[Entry]:
    """Return a journal's entries, except that what was charged is said to be free again at its end."""
    entries = list(read_entries(world.homes[name].journal))
    [end] = [n for n, entry in enumerate(entries) if "freed" in entry.body]
    lines = [
        replace(entry, kind="budget.released", time=entries[end].time, body={**entry.body, "code": "x"})
        for entry in entries
        if entry.kind == "budget.charged"
    ]
    told = replace(entries[end], body={**entries[end].body, "freed": True})
    return [*entries[:end], *lines, told, *entries[end + 1 :]]


def test_data_that_contradict_the_job_are_an_answer_and_cost(
    world: Paid, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else one would ask, at no cost and as often as one likes, whether a group has such a row."""

    def contradicted(self: CrossTable, role: str, *rest: Any) -> Any:
        if role == "source-3":
            raise InputError("a word of the own vector is beyond its share", code="sum-too-large")
        return real(self, role, *rest)

    real = CrossTable.party
    monkeypatch.setattr(CrossTable, "party", contradicted)

    async def play() -> JobId:
        async with running(world) as (post, stations):
            job = post.submit(world.exact())
            task = await over(post, job)
            assert task.ended["health"].code == "sum-too-large"
            await until(lambda: len(states(stations, job)) == 3)
            await until(lambda: RowState.CHARGED not in [states(stations, job)[n] for n in SOURCES[:2]])
            assert states(stations, job)["health"] is RowState.CHARGED
            return job

    job = asyncio.run(play())

    async def again() -> None:
        async with running(world) as (_, stations):
            assert states(stations, job)["health"] is RowState.CHARGED

    asyncio.run(again())
    assert [looked_through(world, name) for name in SOURCES] == [set(), set(), set()]


def test_what_a_cross_check_told_by_stopping_stays_charged(world: Paid) -> None:
    async def play() -> None:
        async with running(world, Cutting(world, first_frames)) as (post, stations):
            job = post.submit(world.spec())
            await started(post, stations, job)
            post.stop(job, "peer-lost")
            await over(post, job)
            assert set(states(stations, job).values()) == {RowState.CHARGED}
            assert not stations["health"].entries("job.answering")

    asyncio.run(play())
    assert looked_through(world, "health") == set()
    assert ("budgets", "freed-after-it-left") in looked_through(world, "health", freed(world, "health"))


def before_answering(mode: Mode, vectors: Sequence[Sequence[int]]) -> list[tuple[Role, Role, int, bytes]]:
    """Return every message of a secure sum that goes out before its sender is answering."""
    case = sum_case(sums_plan(3, 4, 3000, mode), vectors)
    said: list[tuple[Role, Role, int, bytes]] = []
    waiting: list[tuple[Role, Outgoing]] = []

    def take(role: Role, step: Step) -> None:
        if isinstance(step, Finished) or step.answering:
            ready.add(role)
            return
        for message in step.outgoing:
            waiting.append((role, message))
            said.append((role, message.to, message.round, message.body))

    ready: set[Role] = set()
    for role, party in case.parties.items():
        take(role, party.start())
    while waiting:
        sender, message = waiting.pop(0)
        take(message.to, case.parties[message.to].receive(Incoming(sender, message.round, message.body)))
    assert ready == set(case.plan.sources)
    return said


@pytest.mark.parametrize("mode", ["mask", "bfv"])
def test_what_a_secure_sum_sends_before_it_answers_is_the_same_whatever_the_data(mode: Mode) -> None:
    """It is why a table, a release and the quality of tables may say that they are silent until then."""
    one, other = (before_answering(mode, [[n] * 4] * 3) for n in (0, 1000))
    assert {what for _, _, what, _ in one} == {SEED, READY} | ({PUBLIC_KEY} if mode == "bfv" else set())
    # A public key is drawn by SEAL itself, before it sees any data.
    assert [m[:3] for m in one] == [m[:3] for m in other]
    assert [m for m in one if m[2] != PUBLIC_KEY] == [m for m in other if m[2] != PUBLIC_KEY]
    # Types that are no secure sums show it in tests of their own:
    shown_elsewhere = {
        "train/1",  # below
        "match/1",  # test_match_jobs.py, test_an_attempt_cut_before_the_sender_answers_costs_nothing_…
        "overlap/1",  # test_overlap_nodes.py, test_an_attempt_cut_short_is_paid_by_those_whose_answer_…
        "joined-table/1",  # test_joined_nodes.py, test_a_helper_killed_before_rows_are_sent_comes_back_…
        "joined-moments/1",  # the same: both are the parties of protocols/joined/parties.py
        "train-joined/1",  # the same: its sources are those, and answer with their rows
        "lookup/1",  # test_lookup_session.py, test_the_table_is_charged_before_anything_of_it_leaves
    }
    silent = {kind.name for kind in JOB_TYPES if kind.silent_until_answering}
    assert silent - shown_elsewhere == {"table/1", "release/1", "quality/1"}


def test_what_a_training_job_sends_before_it_answers_is_the_same_whatever_the_data() -> None:
    """Receipts, too: how an update is made of rows is public, what it is is not."""

    def said(step: int) -> list[tuple[Role, Role, int, bytes]]:
        people = [
            {
                "unit": f"{n}",
                "street": f"S{1 + n % step}",
                "age": 9 * step,
                "vaccinated": str(int(n % step > 0)),
            }
            for n in range(60)
        ]
        attempt = Training(train_spec(), {source(n): people for n in (1, 2, 3)})
        attempt.released()
        sent = [(each.sender, each.to, each.round, each.body) for each in attempt.sent]
        return sent[: next(place for place, each in enumerate(sent) if each[2] == training(1, TRAINED))]

    one, other = said(2), said(3)
    assert {what for _, _, what, _ in one} >= {training(1, kind) for kind in (TASK, READY_TO_TRAIN, SET)}
    assert one == other
