"""Joined jobs through six real nodes: right answers, nothing else leaves, attacks and accidents journaled."""

import asyncio
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from auditing import audited, findings
from joined_world import (
    BANDS,
    COLUMNS,
    JOINED,
    NEUTRAL,
    NOISY,
    STREETS,
    Annexed,
    JoinedWorld,
    departments_of,
    done,
    opened,
    plain_leads,
    plain_table,
    replaced,
    scan,
    street,
)
from simulator import Post, Station, answered, new_signer, over, person, running, until

from audit.findings import Answer
from node.ledger import RowState
from node.record import Recorder
from node.releases import decode_content, kept, open_release
from node.state import RunState
from protocols.channel.frame import Header
from protocols.envelope import decode_envelope
from protocols.ids import JobId
from protocols.jobs import joined_table
from protocols.jobs.job_type import SUSPECTED
from protocols.joined.params import HELPER
from protocols.joined.parties import BLOCK, FINAL, Dealer
from protocols.party import Outgoing
from protocols.sums.masks import SEED_BYTES
from protocols.wire import JobSpec, ReleaseNote

pytestmark = pytest.mark.alone  # six whole nodes each time, 13 s together

BY_ITSELF = pytest.mark.long
"""With these six nodes are ten seconds busy; they are a step of CI by themselves."""


@pytest.fixture(scope="module")
def founded(memory: Path) -> JoinedWorld:
    return JoinedWorld(memory / "joined")


@pytest.fixture
def world(founded: JoinedWorld, folder: Path) -> JoinedWorld:
    world = founded.clone(folder / "world")
    assert isinstance(world, JoinedWorld)
    return world


@pytest.fixture(scope="module")
def annexed(memory: Path) -> Annexed:
    return Annexed(memory / "annexed")


def counts(data: bytes) -> dict[tuple[str, str], int | None]:
    """Return the cells of a table of persons by street and band, without its margins."""
    table, _ = decode_content(data)
    return {
        (row["street"], row["band"]): row["value"]
        for row in table.to_pylist()
        if row["measure"] == "persons" and row["street"] in STREETS and row["band"] in BANDS
    }


@pytest.mark.parametrize("hidden", [False, True], ids=["an open axis", "both hidden"])
def test_a_table_of_the_joined_is_right_and_nothing_else_leaves(world: JoinedWorld, hidden: bool) -> None:
    record = world.folder / "recorded"
    spec = world.table(hidden=hidden)
    found: dict[str, bytes] = {}

    async def play() -> None:
        async with running(world, record=record) as (post, stations):
            job = await done(post, stations, spec)
            found["table.arrow"] = opened(world, post, job)
            for seat, name in NEUTRAL.items():
                took_part = stations[name].run(job) is not None
                assert took_part == (hidden or seat != "dealer")
                assert stations[name].state.outputs(job) == [] or seat == "matcher"
            for name in ("police", "human-resources"):
                [charged] = stations[name].state.ledger().of_job(job)
                assert (charged.state, charged.past.cost.queries) == (RowState.CHARGED, 1)
            scan(world, post, record)

    asyncio.run(play())
    plain, cells = plain_table(range(20, 240)), counts(found["table.arrow"])
    assert set(cells) == set(plain)
    for cell, true in plain.items():
        value = cells[cell]
        assert value is not None
        assert abs(value - true) <= 2  # rounded to multiples of five
    for name in departments_of(spec):
        assert findings(audited(world, name)) == set(), name
    checks = audited(world, NEUTRAL["matcher"], opened=found)
    assert findings(checks) == set()
    assert (checks["disclosure"].answer, checks["disclosure"].looked_at) == (Answer.HOLDS, 1)


def figures(data: bytes) -> dict[tuple[str, str, str], float]:
    """Return every figure of a table of moments: what it is, and of which columns."""
    table, _ = decode_content(data)
    return {(row["measure"], row["a"], row["b"]): row["value"] for row in table.to_pylist()}


def test_moments_and_a_regression_of_the_joined_are_right_and_nothing_else_leaves(world: JoinedWorld) -> None:
    record = world.folder / "recorded"
    spec = world.moments(target="wage")
    found: dict[str, bytes] = {}

    async def play() -> None:
        async with running(world, record=record) as (post, stations):
            job = await done(post, stations, spec)
            found["moments.arrow"] = opened(world, post, job)
            scan(world, post, record)

    asyncio.run(play())
    shown = figures(found["moments.arrow"])
    columns = {name: np.array([of(n) for n in JOINED], float) for name, of in COLUMNS.items()}
    assert shown["persons", "", ""] == len(JOINED)
    for name, values in columns.items():
        assert shown["mean", name, ""] == pytest.approx(values.mean(), rel=1e-6)
        assert shown["variance", name, ""] == pytest.approx(values.var(ddof=1), rel=1e-6)
    pooled = np.column_stack([np.ones(len(JOINED)), columns["age"], columns["paid"]])
    fit = np.linalg.lstsq(pooled, columns["wage"], rcond=None)[0]
    fitted = [shown["intercept", "", "wage"]]
    fitted += [shown["coefficient", name, "wage"] for name in ("age", "paid")]
    assert fitted == pytest.approx(list(fit), rel=1e-5)
    for name in departments_of(spec):
        assert findings(audited(world, name)) == set(), name
    checks = audited(world, NEUTRAL["matcher"], opened=found)
    assert findings(checks) == set()
    assert (checks["disclosure"].answer, checks["disclosure"].looked_at) == (Answer.HOLDS, 1)


def test_leads_reach_their_recipient_alone_without_the_values_that_make_them(world: JoinedWorld) -> None:
    record = world.folder / "recorded"
    spec = world.leads()

    async def play() -> list[dict[str, Any]]:
        async with running(world, record=record) as (post, stations):
            job = await done(post, stations, spec)
            assert not post.tasks[job].uploads
            assert [name for name, each in stations.items() if each.state.outputs(job)] == ["health"]
            scan(world, post, record)
            health = stations["health"]
            [output] = health.state.outputs(job)
            note = ReleaseNote.decode(decode_envelope(output.note).payload)
            assert note.statement == SUSPECTED
            sealed = kept(health.home.releases, output)
            table, _ = open_release(sealed, note, health.home.recipient_private())
            return table.to_pylist()

    leads = asyncio.run(play())
    assert {row["key"] for row in leads} == plain_leads()
    assert set(leads[0]) == {"key", "street", "last_seen", "source", "organisation"}
    for row in leads:
        assert row["street"] == street(next(n for n in JOINED if row["key"] == f"RIC:{person(n)}"))
    for name in departments_of(spec):
        assert findings(audited(world, name)) == set(), name


# -- attacks -------------------------------------------------------------------------------------------------


def refused_by_all(world: JoinedWorld, spec: JobSpec, envelope: bytes | None = None) -> dict[str, str]:
    """Submit a job that everybody refuses; return the codes, each of which stands in a journal."""
    codes: dict[str, str] = {}

    async def play() -> None:
        async with running(world) as (post, stations):
            task = await answered(post, post.submit(spec, envelope))
            for name, verdict in task.verdicts.items():
                assert verdict.answer == "refuse", name
                [entry] = stations[name].entries("job.refused")
                assert entry.body["code"] == verdict.code
                assert not stations[name].entries("budget.")
                codes[name] = verdict.code
            assert not post.frames

    asyncio.run(play())
    return codes


@pytest.mark.parametrize(
    ("seat", "part"),
    [
        pytest.param("dealer", "lab.archives", id="the helper's house deals"),
        pytest.param("helper", "lab.police", id="a source's house helps"),
    ],
)
def test_seats_in_one_house_are_refused_by_everybody(
    annexed: Annexed, folder: Path, seat: str, part: str
) -> None:
    world = annexed.clone(folder / "world")
    assert isinstance(world, Annexed)
    spec = replaced(world.table(hidden=True), seat, world.homes[part].name)
    codes = refused_by_all(world, spec)
    assert len(codes) == 5
    assert part in codes
    assert set(codes.values()) == {"organisations-not-separate"}


@BY_ITSELF
def test_a_department_without_a_rule_for_it_computes_for_nobody(world: JoinedWorld) -> None:
    async def play() -> None:
        async with running(world) as (post, stations):
            spec = replaced(world.table(), "helper", world.homes["health"].name)
            verdicts = (await answered(post, post.submit(spec))).verdicts
            assert verdicts["health"].code == "role-not-allowed"
            [entry] = stations["health"].entries("job.refused")
            assert entry.body["code"] == "role-not-allowed"

    asyncio.run(play())


def test_a_job_that_no_analyst_signed_is_refused_by_everybody(world: JoinedWorld) -> None:
    spec = world.table(hidden=True)
    codes = refused_by_all(world, spec, world.sign_job(spec, new_signer()))
    assert set(codes.values()) == {"job-forged"}
    assert len(codes) == 5


class Lying(Dealer):
    """A dealer one of whose corrections is wrong by one bit."""

    def deal(self, number: int) -> Iterator[Outgoing]:
        for message in super().deal(number):
            body = bytearray(message.body)
            if message.to == HELPER:
                body[SEED_BYTES] ^= 1
            yield Outgoing(message.to, message.round, bytes(body), message.last)


def test_a_dealer_that_lies_is_found_out_before_anything_is_opened(
    world: JoinedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joined_table, "Dealer", Lying)

    async def play() -> None:
        async with running(world) as (post, stations):
            job = post.submit(world.table(hidden=True))
            task = await over(post, job)
            codes = {name: end.code for name, end in task.ended.items() if end.state == "FAILED"}
            assert "bad-triple" in codes.values()
            assert set(codes) & {"statistics", "archives"}
            for name, code in codes.items():
                ends = [e for e in stations[name].entries("job.") if e.kind in ("job.failed", "job.aborted")]
                assert [entry.body["code"] for entry in ends] == [code]
            assert not any(header.round == FINAL for header, _ in post.frames)
            for station in stations.values():
                assert not station.entries("output.")
                assert not list(station.home.releases.iterdir())

    asyncio.run(play())
    for name in ("statistics", "archives", "standards"):
        assert findings(audited(world, name)) == set(), name


# -- accidents -----------------------------------------------------------------------------------------------


class Halting(Post):
    """A relay that loses a first job's frames of some rounds."""

    cut: Container[int] = ()

    def carried(self, header: Header, frame: bytes) -> Iterable[bytes]:
        first = next(iter(self.tasks))
        return () if (header.job, header.attempt) == (first, 1) and header.round in self.cut else (frame,)


TAGGING = range(0x0100, 0x0400)


async def helper_dies(world: JoinedWorld, post: Halting, stations: dict[str, Station], job: JobId) -> None:
    """Kill the helper once a frame was lost, start it again, and wait until the attempt is over."""
    names = post.participants(post.tasks[job])
    await until(lambda: any(header.round in post.cut for header, _ in post.frames))
    await until(lambda: all(stations[n].run(job) in (RunState.RUNNING, RunState.DONE) for n in names))
    await stations.pop("archives").kill()
    recorder = Recorder(world.folder / "recorded" / "back")
    stations["archives"] = Station(world, post, "archives", recorder=recorder)
    await until(lambda: "archives" in post.tasks[job].ended)
    assert post.tasks[job].ended["archives"].code == "node-restarted"
    await until(lambda: all(stations[n].run(job) is not RunState.RUNNING for n in names))
    assert not post.tasks[job].uploads
    [entry] = stations["archives"].entries("job.failed")
    assert (entry.attempt, entry.body["code"]) == (1, "node-restarted")


def assert_right(world: JoinedWorld, found: bytes) -> None:
    plain, cells = plain_table(range(20, 240)), counts(found)
    assert set(cells) == set(plain)
    assert all(value is not None and abs(value - plain[cell]) <= 2 for cell, value in cells.items())
    assert findings(audited(world, "archives")) == set()


@BY_ITSELF
def test_a_helper_killed_before_rows_are_sent_comes_back_and_a_new_attempt_gives_the_right_answer(
    world: JoinedWorld,
) -> None:
    record = world.folder / "recorded"

    async def play() -> bytes:
        mail = Halting(world)
        mail.cut = TAGGING
        async with running(world, mail, record=record) as (post, stations):
            job = post.submit(world.table(hidden=True))
            await answered(post, job)
            await helper_dies(world, mail, stations, job)
            post.again(job)
            task = await answered(post, job)
            refused = {name: v.code for name, v in task.verdicts.items() if v.answer != "permit"}
            assert not refused, refused
            task = await over(post, job)
            assert {end.state for end in task.ended.values()} == {"DONE"}, task.ended
            for name in ("police", "human-resources"):
                states = [row.state for row in stations[name].state.ledger().of_job(job)]
                assert states == [RowState.RELEASED, RowState.CHARGED]
            assert_fresh(bodies(record, job, 1), bodies(record, job, 2))
            return opened(world, post, job)

    assert_right(world, asyncio.run(play()))


@BY_ITSELF
def test_a_helper_killed_after_rows_were_sent_ends_the_job_and_a_new_job_gives_the_right_answer(
    world: JoinedWorld,
) -> None:
    """What was sent could be made an answer of: it is paid for, and never sent again for this job."""
    record = world.folder / "recorded"

    async def play() -> bytes:
        mail = Halting(world)
        mail.cut = (BLOCK,)
        async with running(world, mail, record=record) as (post, stations):
            first = post.submit(world.table(hidden=True))
            await answered(post, first)
            await helper_dies(world, mail, stations, first)
            post.again(first)
            codes = {name: v.code for name, v in (await answered(post, first)).verdicts.items()}
            assert {codes["police"], codes["human-resources"]} == {"answered-once"}
            post.stop(first, "peer-failed", 2)
            second = await done(post, stations, world.table(hidden=True))
            for name in ("police", "human-resources"):
                for job in (first, second):
                    states = [row.state for row in stations[name].state.ledger().of_job(job)]
                    assert states == [RowState.CHARGED]
            assert_fresh(bodies(record, first, 1), bodies(record, second, 1))
            return opened(world, post, second)

    assert_right(world, asyncio.run(play()))


def summed(world: JoinedWorld) -> JobSpec:
    """Return a table of what the persons of each street earn together, exactly; nobody sees the street."""
    params = {
        "axes": [{"source": "source-1", "slot": "street", "values": list(STREETS)}],
        "measures": [{"source": "source-2", "slot": "wage", "low": "0", "high": "10000"}],
    }
    sources = {"police": {"street": "street"}, "human-resources": {"wage": "wage"}}
    return world.joined("joined-table/1", sources, params)


@BY_ITSELF
@pytest.mark.parametrize("asked", [JoinedWorld.moments, summed], ids=["moments", "sums"])
def test_exact_amounts_that_a_crash_cost_are_not_asked_again_by_a_new_job(
    world: JoinedWorld, asked: Callable[[JoinedWorld], JobSpec]
) -> None:
    """What rows were sent for may have been answered, and somebody's amount may have changed since."""

    async def play() -> None:
        mail = Halting(world)
        mail.cut = (BLOCK,)
        async with running(world, mail) as (post, stations):
            first = post.submit(asked(world))
            await answered(post, first)
            await helper_dies(world, mail, stations, first)
            post.stop(first, "peer-failed", 1)
            spec = asked(world)
            verdicts = (await answered(post, post.submit(spec))).verdicts
            refused = {name: v.code for name, v in verdicts.items() if v.answer == "refuse"}
            assert refused == {str(each.organisation).split(".")[0]: "asked-before" for each in spec.inputs}
            assert spec.job_id != first

    asyncio.run(play())


def bodies(record: Path, job: JobId, attempt: int) -> dict[str, bytes]:
    """Return what was sent in an attempt, by sender, receiver and round."""
    found: dict[str, bytes] = {}
    begin = f"frame-{job.removeprefix('sha256:')[:12]}-{attempt}-"
    for path in sorted(record.rglob(f"{begin}*.bin")):
        name = path.name.removeprefix(begin)
        found[name] = found.get(name, b"") + path.read_bytes()
    return found


def assert_fresh(first: Mapping[str, bytes], second: Mapping[str, bytes]) -> None:
    """Nothing that was sent the first time is sent again: seeds, points, masked rows, places, triples."""
    assert set(first) <= set(second)
    assert len(first) >= 2
    for name, body in first.items():
        assert not windows(body) & windows(second[name]), name


def windows(body: bytes) -> set[bytes]:
    """Return all 16 bytes that follow one another, at every fourth byte, but for padding."""
    parts = {body[at : at + 16] for at in range(0, len(body) - 15, 4)}
    return {part for part in parts if part[:4] != b"\xff" * 4}


# -- asking again --------------------------------------------------------------------------------------------


@BY_ITSELF
def test_a_repeated_question_gets_the_stored_answer_and_no_new_noise(world: JoinedWorld) -> None:
    async def play() -> None:
        async with running(world) as (post, stations):
            job = await done(post, stations, world.table(hidden=True, rho="0.1"))
            again = post.submit(world.table(hidden=True, rho="0.1"))
            verdicts = (await answered(post, again)).verdicts
            assert verdicts["statistics"].answered == job
            assert len(post.tasks[again].uploads) == 0
            for name in ("police", "human-resources"):
                [charged] = [
                    row for row in stations[name].state.ledger().of_job(job) if row.state is RowState.CHARGED
                ]
                assert charged.past.query is not None
                assert charged.past.query.noisy

    asyncio.run(play())


class Poor(JoinedWorld):
    """A budget for one answer of ρ = 0.1."""

    rho = "0.15"


@BY_ITSELF
def test_a_budget_that_is_used_up_ends_the_asking_at_every_source(memory: Path) -> None:
    world = Poor(memory / "poor")

    async def play() -> None:
        async with running(world) as (post, stations):
            await done(post, stations, world.table(hidden=True, rho="0.1"))
            sent = len(post.frames)
            task = await answered(post, post.submit(world.table(rho="0.1")))
            refused = {name: v.code for name, v in task.verdicts.items() if v.answer == "refuse"}
            assert refused == {"police": "budget-exceeded", "human-resources": "budget-exceeded"}
            assert len(post.frames) == sent

    asyncio.run(play())


@BY_ITSELF
def test_exact_answers_are_not_given_where_a_budget_pays_for_noise(world: JoinedWorld) -> None:
    async def play() -> None:
        async with running(world) as (post, _):
            task = await answered(post, post.submit(replace(world.table(), purpose=NOISY, legal_basis="L-2")))
            refused = {name: v.code for name, v in task.verdicts.items() if v.answer == "refuse"}
            assert refused == {"police": "noise-required", "human-resources": "noise-required"}

    asyncio.run(play())


@BY_ITSELF
def test_two_exact_answers_whose_difference_is_a_few_people_are_not_given(world: JoinedWorld) -> None:
    async def play() -> None:
        async with running(world) as (post, stations):
            await done(post, stations, world.table())
            kept = [{"source": "source-1", "slot": "street", "values": ["S0", "S1"]}]
            task = await answered(post, post.submit(world.table(filters=kept)))
            refused = {name: v.code for name, v in task.verdicts.items() if v.answer == "refuse"}
            assert refused == {"police": "differencing", "human-resources": "differencing"}

    asyncio.run(play())
