"""Look-ups through real nodes: right answers, limits, what a restart leaves, what leaves and is written."""

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from auditing import audited, findings
from lookup_world import CLERKS, NAMES, OWNS, STREETS, LookupWorld, found, open_one, residents
from session_case import ask, do, refusal
from simulator import START, Post, Station, answered, approve_all, over, person, running, until

from audit.entries import Entry
from audit.verify import read_entries
from node import lookups
from node.counter import socket_path
from node.ledger import RowState
from node.shelf import shelf_of
from node.state import RunState
from policies.decision import Refuse
from policies.history import Lookback, Past
from policies.limits import check_differencing
from protocols.channel.frame import Header
from protocols.envelope import key_id
from protocols.ids import JobId
from protocols.jobs.lookup import OWNER
from protocols.lookup.plan import ASK, BUILT, GO_ON
from protocols.statistics.differencing import Query

pytestmark = pytest.mark.alone  # sessions of whole nodes, 15 s together

ASKS, ALSO = CLERKS


@pytest.fixture(scope="module")
def departments(memory: Path) -> LookupWorld:
    return LookupWorld(memory / "lookups")


@pytest.fixture
def world(departments: LookupWorld, folder: Path) -> LookupWorld:
    return departments.clone(folder / "world")  # type: ignore[return-value]  # a copy of its own kind


def expected(*people: int) -> list[dict[str, str] | None]:
    rows = {
        who: {"status": status, "seen": seen}
        for who, street, status, seen in residents()
        if street == STREETS[0]
    }
    return [rows.get(who) for who in people]


async def closed(post: Post, stations: dict[str, Station], clerk: str, job: JobId) -> None:
    await do(stations[clerk], "close", job=job)
    task = await over(post, job)
    assert {end.state for end in task.ended.values()} == {"DONE"}, task.ended


def test_a_clerk_finds_who_is_of_the_own_street_and_nobody_else(world: LookupWorld) -> None:
    async def play() -> None:
        async with running(world, names=NAMES) as (post, stations):
            job = await open_one(post, stations, world.lookup())
            assert await found(stations[ASKS], job, 0, 2, 1, 3, 99) == expected(0, 2, 1, 3, 99)
            assert expected(0, 1) != [None, None]
            said = await ask(stations[ASKS], job, person(4), fields=["status"], reason="案 2026-17")
            assert said["rows"] == [{"status": "在册-1"}]
            await closed(post, stations, ASKS, job)
            counts = [(e.kind, e.body["lookups"]) for e in stations[OWNS].entries("lookup.")]
            assert counts == [("lookup.answered", 5), ("lookup.answered", 1)]
            asked = [e.body for e in stations[ASKS].entries("lookup.asked")]
            assert [body["lookups"] for body in asked] == [5, 1]
            assert ["reason_sha256" in body for body in asked] == [False, True]
            [sent] = stations[OWNS].entries("table.sent")
            assert (sent.body["give"], sent.body["rows"]) == ("whole", 20)
            # What was agreed is charged, whether it was asked or not.
            assert sum(row.cost.rows for row in stations[OWNS].state.ledger().of("residents")) == 100

    asyncio.run(play())


def test_two_clerks_ask_at_once_each_in_the_own_session(world: LookupWorld) -> None:
    async def play() -> None:
        async with running(world, names=NAMES) as (post, stations):
            jobs = {clerk: await open_one(post, stations, world.lookup(clerk)) for clerk in CLERKS}
            answers = await asyncio.gather(
                *(found(stations[clerk], jobs[clerk], n) for n in range(12) for clerk in CLERKS)
            )
            assert answers == [expected(n) for n in range(12) for _ in CLERKS]
            assert (await refusal(found(stations[ASKS], jobs[ALSO], 0))).code == "no-session"
            for clerk in CLERKS:
                await closed(post, stations, clerk, jobs[clerk])
                assert len(stations[clerk].entries("lookup.asked")) == 12
            assert len(stations[OWNS].entries("lookup.answered")) == 24

    asyncio.run(play())


def test_what_a_session_and_a_minute_allow_is_all_that_is_answered(folder: Path) -> None:
    class Slow(LookupWorld):
        per_minute = 5

    async def play() -> None:
        world = Slow(folder / "world")
        async with running(world, names=NAMES) as (post, stations):
            job = await open_one(post, stations, world.lookup(lookups=7))
            clerk = stations[ASKS]
            assert await found(clerk, job, 0, 2, 4) == expected(0, 2, 4)
            said = await ask(clerk, job, *map(person, (6, 8, 10)))
            assert said["refused"] == "rate-exceeded"
            assert "rows" not in said
            assert await found(clerk, job, 6, 8) == expected(6, 8)
            said = await ask(clerk, job, *map(person, range(6)))
            assert (said["refused"], said["fits"]) == ("too-many-items", 2)
            [listed] = (await do(clerk, "sessions"))["sessions"]
            assert (listed["per_minute"], listed["fields"]) == (5, ["status", "seen"])
            codes = [e.body["code"] for e in clerk.entries("lookup.refused")]
            assert codes == ["rate-exceeded", "too-many-items"]

    asyncio.run(play())


def test_two_sessions_of_one_clerk_have_one_rate(folder: Path) -> None:
    class Slow(LookupWorld):
        per_minute = 60

    async def play() -> None:
        world = Slow(folder / "world")
        async with running(world, names=NAMES) as (post, stations):
            jobs = [await open_one(post, stations, world.lookup(lookups=n)) for n in (100, 99)]
            clerk = stations[ASKS]
            said = [await ask(clerk, job, *map(person, range(50))) for job in jobs]
            assert ["rows" in each for each in said] == [True, False]
            assert said[1]["refused"] == "rate-exceeded"
            assert sum(e.body["lookups"] for e in stations[OWNS].entries("lookup.answered")) == 50

    asyncio.run(play())


def test_somebody_of_another_house_cannot_have_a_session_opened(world: LookupWorld) -> None:
    async def play() -> None:
        async with running(world, names=NAMES) as (post, _stations):
            bureau = key_id(world.analyst.public_key)
            task = await answered(post, post.submit(replace(world.lookup(), requester=bureau)))
            codes = {verdict.code for verdict in task.verdicts.values() if verdict.answer == "refuse"}
            assert codes == {"requester-not-clerk"}

    asyncio.run(play())


@pytest.mark.long
def test_a_clerks_daily_quota_refuses_the_session_that_would_exceed_it(folder: Path) -> None:
    class Frugal(LookupWorld):
        daily = 150

    async def play() -> None:
        world = Frugal(folder / "world")
        async with running(world, names=NAMES) as (post, stations):
            first = await open_one(post, stations, world.lookup())
            await closed(post, stations, ASKS, first)
            second = post.submit(world.lookup())
            task = await answered(post, second)
            assert (task.verdicts[OWNS].answer, task.verdicts[OWNS].code) == ("refuse", "budget-exceeded")
            await open_one(post, stations, world.lookup(lookups=50))

    asyncio.run(play())


def test_a_session_stands_in_nobodys_way_and_is_never_answered_from_the_store(world: LookupWorld) -> None:
    """An exact table of the very rows is allowed after it; asked again, it is opened again."""
    table = Query("a table of the street", {"street": frozenset({STREETS[0]})})

    def differencing(past: Sequence[Past]) -> Refuse | None:
        looked = Lookback.of(tuple(past))
        return check_differencing(looked, table, other, START, days=365, rule="R")

    other = JobId("sha256:" + "0" * 64)

    async def play() -> None:
        async with running(world, names=NAMES) as (post, stations):
            spec = world.lookup()
            first = await open_one(post, stations, spec)
            assert await found(stations[ASKS], first, 0) == expected(0)
            await closed(post, stations, ASKS, first)
            [row] = stations[OWNS].state.ledger().of("residents")
            assert (row.query, row.exact, row.charged) == (None, True, True)
            assert differencing([row]) is None
            # Had it been a query, of the same rows and other fields, the table would have waited a year.
            asked = replace(row, query=Query("status and seen", table.filters))
            refused = differencing([replace(asked, time=START + timedelta(days=1))])
            assert refused is not None
            assert refused.code == "differencing"
            second = await open_one(post, stations, replace(spec, nonce="1" * 32))
            assert second != first
            assert {v.answered for v in post.tasks[second].verdicts.values()} == {""}
            assert await found(stations[ASKS], second, 0, 1) == expected(0, 1)

    asyncio.run(play())


@pytest.mark.parametrize("name", [ASKS, pytest.param(OWNS, marks=pytest.mark.long)])
def test_a_restart_ends_the_session_and_the_next_needs_no_table(world: LookupWorld, name: str) -> None:
    async def play() -> None:
        async with running(world, names=NAMES) as (post, stations):
            job = await open_one(post, stations, world.lookup())
            assert await found(stations[ASKS], job, 0) == expected(0)
            await stations[name].close()
            stations[name] = station = Station(world, post, name)
            await until(station.ready)
            assert station.run(job) is RunState.FAILED
            post.stop(job, "peer-failed")
            await until(lambda: not socket_path(stations[ASKS].home).exists())
            assert (await refusal(found(stations[ASKS], job, 0))).code == "no-session"
            again = await open_one(post, stations, world.lookup())
            assert await found(stations[ASKS], again, 0, 1) == expected(0, 1)
            assert [e.body["give"] for e in stations[ASKS].entries("table.received")] == ["whole", "keep"]

    asyncio.run(play())


def test_who_asks_while_the_owner_goes_away_hears_of_it(world: LookupWorld) -> None:
    lost: list[Header] = []

    class Losing(Post):
        def carried(self, header: Header, frame: bytes) -> tuple[bytes, ...]:
            if header.to != OWNER or header.round != ASK:
                return (frame,)
            lost.append(header)
            return ()

    async def play() -> None:
        async with running(world, Losing(world), names=NAMES) as (post, stations):
            job = await open_one(post, stations, world.lookup())
            asking = asyncio.create_task(found(stations[ASKS], job, 0))
            await until(lambda: bool(lost))
            await stations[OWNS].close()
            assert (await refusal(asking)).code == "peer-failed"
            assert stations[ASKS].entries("lookup.asked") == []

    asyncio.run(play())


def test_a_session_that_ends_before_the_table_leaves_is_free_again_and_after_it_stays_charged(
    world: LookupWorld,
) -> None:
    """Without the table nothing can be looked up; with it all the look-ups that were agreed may have been."""

    class Late(Post):
        def carried(self, header: Header, frame: bytes) -> tuple[bytes, ...]:
            return () if header.round == GO_ON and header.job == cut else (frame,)

    cut = JobId("")

    async def play() -> None:
        nonlocal cut
        post = Late(world)
        async with running(world, post, names=NAMES) as (_, stations):
            owner = stations[OWNS]
            cut = post.submit(world.lookup())
            await approve_all(post, stations, cut)
            await until(lambda: any(h.round == BUILT and h.job == cut for h, _ in post.frames))
            assert [row.state for row in owner.state.ledger().of_job(cut)] == [RowState.CHARGED]
            post.stop(cut, "cancelled-by-requester")
            await over(post, cut)
            await until(lambda: owner.state.ledger().of_job(cut)[0].state is RowState.RELEASED)
            assert owner.state.ledger().of("residents") == ()
            job = await open_one(post, stations, world.lookup())
            post.stop(job, "cancelled-by-requester")
            await over(post, job)
            await until(lambda: owner.run(job) is RunState.CANCELLED)
            [row] = owner.state.ledger().of_job(job)
            assert (row.state, row.past.cost.rows) == (RowState.CHARGED, 100)

    asyncio.run(play())
    for name in (ASKS, OWNS):
        assert looked_through(world, name, lambda _: None) == set()


def test_the_next_day_only_what_changed_is_sent(world: LookupWorld) -> None:
    async def play() -> None:
        async with running(world, names=NAMES) as (post, stations):
            await closed(post, stations, ASKS, await open_one(post, stations, world.lookup()))
        rows = [row for row in residents() if row[0] not in (2, 4)]
        rows += [(2, STREETS[0], "迁出", "2026-11"), (400, STREETS[0], "新登记", "2026-11")]
        world.list_residents(rows)
        async with running(world, names=NAMES) as (post, stations):
            job = await open_one(post, stations, world.lookup())
            answers = await found(stations[ASKS], job, 0, 2, 4, 400)
            assert answers[0] == expected(0)[0]
            assert [row and row["status"] for row in answers[1:]] == ["迁出", None, "新登记"]
            sent = stations[OWNS].entries("table.sent")[-1].body
            assert (sent["give"], sent["sent"], sent["removed"]) == ("delta", 2, 1)

    asyncio.run(play())


def test_after_a_rotation_the_next_session_has_another_key_and_the_whole_table(world: LookupWorld) -> None:
    async def play() -> None:
        async with running(world, names=NAMES) as (post, stations):
            first = await open_one(post, stations, world.lookup())
            owner = stations[OWNS]
            assert lookups.rotate(owner.home, owner.state, "residents") == {
                "dataset": "residents",
                "tables": 1,
            }
            # Whoever asks now still asks with the key that the session began with.
            assert await found(stations[ASKS], first, 0) == expected(0)
            await closed(post, stations, ASKS, first)
            second = await open_one(post, stations, world.lookup())
            assert await found(stations[ASKS], second, 0, 1) == expected(0, 1)
            said = [(e.body["give"], e.body["key_version"]) for e in stations[OWNS].entries("table.sent")]
            assert said == [("whole", 1), ("whole", 2)]
            assert [e.body for e in owner.entries("lookup.rotated")] == [{"dataset": "residents", "count": 1}]

    asyncio.run(play())


# -- what leaves ---------------------------------------------------------------------------------------------


def spellings(text: str) -> list[bytes]:
    """Return how an identifier could slip out; of a field, its text."""
    raw = text.encode()
    plain = [raw, raw.hex().encode()]
    if text.isascii():
        for prefix in (b"", b"RIC:"):
            for name in ("sha256", "md5"):
                digest = hashlib.new(name, prefix + raw).digest()
                plain += [digest, digest[:16], digest.hex().encode()]
    return plain


IDS = [spelling for n in range(40) for spelling in spellings(person(n))]
FIELDS = [spelling for status in ("在册-0", "在册-1", "在册-2") for spelling in spellings(status)]


def holds(data: bytes, canaries: list[bytes]) -> bool:
    return any(canary in data for canary in canaries)


def test_no_identifier_and_no_row_is_in_what_leaves_nor_in_log_journal_or_shelf(world: LookupWorld) -> None:
    record = world.folder / "recorded"

    async def play() -> Post:
        async with running(world, names=NAMES, record=record) as (post, stations):
            job = await open_one(post, stations, world.lookup())
            await found(stations[ASKS], job, *range(20))
            await refusal(ask(stations[ASKS], job, person(0), "no number"))
            await closed(post, stations, ASKS, job)
            return post

    post = asyncio.run(play())
    canaries = IDS + FIELDS
    assert not holds(b"".join(post.control), canaries)
    assert not holds(b"".join(frame for _, frame in post.frames), canaries)
    bodies = [path.read_bytes() for path in record.rglob("*") if path.is_file()]
    assert len(bodies) >= 8
    assert not any(holds(body, canaries) for body in bodies)
    for name in NAMES:
        for path in world.homes[name].path.rglob("*"):
            if path.is_file():
                assert not holds(path.read_bytes(), IDS), path.name
                assert name == OWNS or not holds(path.read_bytes(), FIELDS), path.name
    assert shelf_of(world.homes[ASKS], "lookup/1").names()
    assert shelf_of(world.homes[OWNS], "lookup/1").names()


# -- what an auditor sees ------------------------------------------------------------------------------------


def looked_through(
    world: LookupWorld, name: str, change: Callable[[list[Entry]], object]
) -> set[tuple[str, str]]:
    """Return question and code of what an auditor finds in a node's entries, changed first."""
    entries = list(read_entries(world.homes[name].journal))
    change(entries)
    return findings(audited(world, name, entries))


def first(entries: list[Entry], kind: str) -> int:
    return next(place for place, entry in enumerate(entries) if entry.kind == kind)


def test_an_auditor_finds_a_session_right_and_sees_answers_that_nobody_was_charged_for(
    world: LookupWorld,
) -> None:
    async def play() -> None:
        async with running(world, names=NAMES) as (post, stations):
            job = await open_one(post, stations, world.lookup(lookups=20))
            await found(stations[ASKS], job, *range(20))
            await closed(post, stations, ASKS, job)

    def again(entries: list[Entry]) -> None:
        place = first(entries, "lookup.answered")
        entries.insert(place, entries[place])

    def silent(entries: list[Entry]) -> None:
        del entries[first(entries, "job.answering")]

    def foreign(entries: list[Entry]) -> None:
        place = first(entries, "lookup.asked")
        entries[place] = replace(entries[place], attempt=2)

    asyncio.run(play())
    for name in (ASKS, OWNS):
        assert looked_through(world, name, lambda _: None) == set()
    assert looked_through(world, OWNS, again) == {("outputs", "too-many-lookups")}
    assert ("outputs", "without-answer") in looked_through(world, OWNS, silent)
    assert looked_through(world, ASKS, foreign) == {("outputs", "without-admission")}
