"""Overlaps through real nodes: both forms, what is paid, what is answered again, what stays inside."""

import asyncio
import hashlib
from collections.abc import Collection, Iterable
from pathlib import Path

import pytest
from auditing import audited, findings
from overlap_world import OverlapWorld
from simulator import Post, Station, Task, answered, over, person, running, until

from audit.findings import Answer
from node.ledger import RowState
from node.state import RunState
from protocols.channel.frame import Header
from protocols.ids import JobId, Organisation
from protocols.jobs.overlap import Overlap
from protocols.overlap.parties import KEYS, LIST, RAISED, TAGS
from protocols.wire import JobSpec

pytestmark = pytest.mark.alone  # whole nodes, 10 s together

BOTH = ("human-resources", "health")
LISTS = {
    "police": list(range(120)),
    "human-resources": list(range(60)),
    "health": list(range(40, 110)),
}


class Twice(OverlapWorld):
    """The budget of each pair is worth two answers of ε = 0.5."""

    limit = "1.1"


@pytest.fixture(scope="module")
def overlaps(memory: Path) -> OverlapWorld:
    return Twice(memory / "overlaps", seed_lists=LISTS)


@pytest.fixture
def world(overlaps: OverlapWorld, folder: Path) -> OverlapWorld:
    return overlaps.clone(folder / "world")


async def done(post: Post, stations: dict[str, Station], job: JobId) -> Task:
    task = await answered(post, job)
    assert {verdict.answer for verdict in task.verdicts.values()} == {"permit"}, task.verdicts
    task = await over(post, job)
    assert {end.state for end in task.ended.values()} == {"DONE"}, task.ended
    for name in post.participants(task):
        await until(lambda name=name: stations[name].run(job) is RunState.DONE)  # type: ignore[misc]
    return task


def assert_holds(world: OverlapWorld, maker: str, opened: dict[str, bytes]) -> None:
    """An auditor with the opened release finds that all is as the job and the admissions say."""
    checks = audited(world, maker, opened=opened)
    assert findings(checks) == set()
    assert (checks["disclosure"].answer, checks["disclosure"].looked_at) == (Answer.HOLDS, 1)


def spellings(identifier: str) -> list[bytes]:
    """Return how an identifier could slip out."""
    raw = identifier.encode()
    plain = [raw, raw.hex().encode()]
    for key in (raw, b"RIC:" + raw):
        for name in ("sha256", "md5", "sm3"):
            digest = hashlib.new(name, key).digest()
            plain += [digest, digest.hex().encode()]
    return plain


PLANTED = [spelling for n in (0, 41, 59, 80, 109) for spelling in spellings(person(n))]


def found_in(data: bytes) -> bool:
    return any(spelling in data for spelling in PLANTED)


def scan(world: OverlapWorld, post: Post, record: Path) -> None:
    """Look for planted identifiers wherever something is written or sent; lists themselves lie elsewhere."""
    assert not found_in(b"".join(post.control))
    assert not found_in(b"".join(frame for _, frame in post.frames))
    bodies = [path for path in record.rglob("*") if path.is_file()]
    assert len(bodies) >= 4
    homes = [path for home in world.homes.values() for path in home.path.rglob("*") if path.is_file()]
    for path in (*bodies, *homes):
        assert not found_in(path.read_bytes()), path.name


def test_two_departments_count_their_overlap_and_nothing_else_leaves(world: OverlapWorld) -> None:
    record = world.folder / "recorded"

    async def play() -> None:
        async with running(world, record=record) as (post, stations):
            job = post.submit(world.overlap(*BOTH))
            await done(post, stations, job)
            [row], facts = world.opened(post, job)
            assert row["measure"] == "persons"
            # 20 are on both lists. Beyond the pool's half nothing can come out.
            assert abs(row["value"] - 20) <= 39
            assert 0 <= row["low"] <= row["value"] <= row["high"] <= 60
            assert facts["pool"] == 78
            assert facts["source-2"] == "health.gz.example"
            assert [name for name in stations if stations[name].run(job)] == [*BOTH]
            for name in BOTH:
                [charged] = stations[name].state.ledger().of_job(job)
                assert (charged.state, charged.past.cost.delta) == (RowState.CHARGED, 10**6)
                assert charged.past.cost.pure == 5 * 10**14
            scan(world, post, record)
            opened.update(world.release_of(post, job))

    opened: dict[str, bytes] = {}
    asyncio.run(play())
    assert_holds(world, BOTH[0], opened)


def test_three_departments_and_a_matcher_count_every_region_and_nothing_else_leaves(
    world: OverlapWorld,
) -> None:
    record = world.folder / "recorded"
    plain = {("yes", "no", "no"): 10, ("yes", "yes", "no"): 40, ("yes", "no", "yes"): 50}
    plain |= {("yes", "yes", "yes"): 20}

    async def play() -> None:
        async with running(world, record=record) as (post, stations):
            job = post.submit(world.overlap("police", *BOTH, matched=True))
            await done(post, stations, job)
            rows, facts = world.opened(post, job)
            assert len(rows) == 7
            for row in rows:
                true = plain.get(tuple(row[f"source-{i}"] for i in (1, 2, 3)), 0)
                assert abs(row["value"] - true) <= 100  # scale 4: beyond with a chance of e^-25
                assert 0 <= row["low"] <= row["value"] <= row["high"]
            assert facts["mechanism"] == "discrete Laplace"
            assert stations["statistics"].state.ledger().of_job(job)[-1].past.cost.rdp[0] == 0
            scan(world, post, record)
            opened.update(world.release_of(post, job))

    opened: dict[str, bytes] = {}
    asyncio.run(play())
    assert_holds(world, "statistics", opened)


def test_the_same_question_over_the_same_lists_is_answered_from_store(world: OverlapWorld) -> None:
    """The node that released says so; over another list the question is another one, with dummies anew."""

    async def play() -> None:
        async with running(world, names=BOTH) as (post, stations):
            job = post.submit(world.overlap(*BOTH))
            await done(post, stations, job)
            again = post.submit(world.overlap(*BOTH))
            verdicts = (await answered(post, again)).verdicts
            assert verdicts[BOTH[0]].answered == job
            post.stop(again, "job-over")
            world.write_list(BOTH[0], [*LISTS[BOTH[0]], 77])
            third = post.submit(world.overlap(*BOTH))
            assert (await answered(post, third)).verdicts[BOTH[0]].answered == ""

    asyncio.run(play())


def test_a_membership_attack_by_repeated_overlap_ends_with_the_budget(world: OverlapWorld) -> None:
    """Each time the list has another person less, and the overlap is asked again: is 41 on the other one?

    ε = 0.5 of 1.1 at each list: after two answers the third is refused, at both, before anything is read.
    """

    async def play() -> None:
        async with running(world) as (post, stations):
            for turn in range(2):
                world.write_list(BOTH[0], LISTS[BOTH[0]][turn : 60 if turn % 2 else 41])
                await done(post, stations, post.submit(world.overlap(*BOTH)))
            sent = len(post.frames)
            world.write_list(BOTH[0], LISTS[BOTH[0]][:42])
            for spec in (
                world.overlap(*BOTH),
                world.overlap(*reversed(BOTH)),
                world.overlap(*BOTH, matched=True),
            ):
                job = post.submit(spec)
                verdicts = (await answered(post, job)).verdicts
                assert {verdicts[name].code for name in BOTH} == {"budget-exceeded"}
                for name in BOTH:
                    assert not stations[name].state.ledger().of_job(job)
            assert len(post.frames) == sent
            # With another department there is another budget: this one is for each pair.
            verdicts = (await answered(post, post.submit(world.overlap("police", "health")))).verdicts
            assert {verdicts[name].answer for name in ("police", "health")} == {"permit"}

    asyncio.run(play())


class Cutting(Post):
    """A relay that loses a first attempt's frames of some rounds, with all that come after them: no gap."""

    cut: Collection[int] = ()

    def carried(self, header: Header, frame: bytes) -> Iterable[bytes]:
        return () if header.attempt == 1 and header.round in self.cut else (frame,)


TAGGING = range(0x0100, 0x0400)


@pytest.mark.parametrize(
    ("lost", "matched", "paying"),
    [
        pytest.param([KEYS], False, (), id="no dummy was sent"),
        pytest.param([LIST, RAISED], False, ("health",), id="dummies were sent"),
        pytest.param(TAGGING, True, (), id="no tag was sent"),
        pytest.param([TAGS], True, BOTH, id="tags were sent"),
    ],
)
def test_an_attempt_cut_short_is_paid_by_those_whose_answer_was_under_way(
    world: OverlapWorld, lost: Collection[int], matched: bool, paying: tuple[str, ...]
) -> None:
    """Dummies that were sent are never drawn again for this job; an attempt that ends before is free."""

    def paid(stations: dict[str, Station], job: JobId) -> dict[str, list[RowState]]:
        return {name: [row.state for row in stations[name].state.ledger().of_job(job)] for name in BOTH}

    async def play() -> None:
        mail = Cutting(world)
        mail.cut = lost
        async with running(world, mail) as (post, stations):
            job = post.submit(world.overlap(*BOTH, matched=matched))
            await answered(post, job)
            names = post.participants(post.tasks[job])
            await until(lambda: any(h.round in lost for h, _ in post.frames))
            for name in paying:
                await until(lambda name=name: stations[name].run(job) is RunState.DONE)  # type: ignore[misc]
            post.stop(job, "peer-lost", 1)
            await until(lambda: all(stations[n].run(job) not in (None, RunState.RUNNING) for n in names))
            first = {n: [RowState.CHARGED if n in paying else RowState.RELEASED] for n in BOTH}
            assert paid(stations, job) == first
            assert {n for n in BOTH if stations[n].entries("job.answering")} == set(paying)
            post.again(job)
            task = await answered(post, job)
            if paying:
                assert {task.verdicts[name].code for name in paying} <= {"answered-once", "attempt-over"}
            else:
                task = await over(post, job)
                assert {end.state for end in task.ended.values()} == {"DONE"}, task.ended
                assert stations["health"].run(job, 2) is RunState.DONE
                assert paid(stations, job) == {n: [*first[n], RowState.CHARGED] for n in BOTH}

    asyncio.run(play())
    assert [findings(audited(world, name)) for name in BOTH] == [set(), set()]


def test_the_sender_and_the_matcher_may_not_be_the_requesters(world: OverlapWorld) -> None:
    """The analyst's organisation with z, or with the exact regions, would have no noise left."""
    for spec, name in ((world.overlap(*BOTH), "health"), (world.overlap(*BOTH, matched=True), "statistics")):
        assert not apart(spec, f"{name}.gz.example")
        assert apart(spec, "data-bureau.gz.example")


def apart(spec: JobSpec, requester: str) -> bool:
    pairs = Overlap().separation(spec, Organisation(requester))
    return not any(pair.these & pair.those for pair in pairs)
