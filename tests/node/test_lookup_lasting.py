"""What a session needs to go on: what it was admitted under, a place, a turn, and no more memory."""

import asyncio
import gc
import json
import weakref
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from lookup_world import CLERKS, NAMES, OWNS, LookupWorld, found, open_one
from session_case import ask, do, make_sessions, play, refusal
from simulator import START, Post, Station, World, approve_all, over, running

from node import counter, lasting, runner
from node.activation import InForce
from node.admission import prepare
from node.counter import Session, socket_path
from node.exchange import Question
from node.lasting import Lasting
from node.ledger import RowState
from node.rpc import Attempt
from node.state import RunState
from protocols.envelope import decode_envelope
from protocols.errors import Refused
from protocols.ids import JobId, Role
from protocols.lookup.inputs import LookupList
from protocols.succession import fresh_until
from protocols.wire import Freshness, Roster

pytestmark = pytest.mark.alone  # sessions of whole nodes that outlast something, 9 s together

ASKS = CLERKS[0]
NIGHT = datetime(2027, 1, 20, 16, 0, tzinfo=UTC)
"""When 20 January is over in Shanghai."""


# -- what it was admitted under ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("later", "code"),
    [(timedelta(days=6, hours=1), "roster-stale"), (timedelta(hours=-1), "clock-untrusted")],
)
def test_a_session_does_not_outlive_what_it_was_admitted_under(
    world: World, monkeypatch: pytest.MonkeyPatch, later: timedelta, code: str
) -> None:
    make_sessions(monkeypatch)

    async def session(post: Post, stations: dict[str, Station], job: JobId) -> None:
        owner = stations["human-resources"]
        await ask(stations["police"], job, "ab")
        world.clock.at += later
        assert (await refusal(ask(stations["police"], job, "ab"))).code == "peer-failed"
        task = await over(post, job)
        assert task.ended["human-resources"].code == code
        assert len(owner.entries("lookup.answered")) == 1

    play(world, session)


def in_force(world: World) -> InForce:
    state = world.open("police")
    force = InForce.load(state, world.homes["police"].name, world.homes["police"].signer.public_key)
    state.close()
    assert force.policy is not None
    force.roster = replace(
        Roster.decode(decode_envelope(world.roster_envelope).payload),
        expires=datetime(2027, 6, 1, tzinfo=UTC),
    )
    force.freshness = confirmed(force, datetime(2027, 5, 25, tzinfo=UTC))
    return force


def confirmed(force: InForce, moment: datetime) -> Freshness:
    assert force.roster is not None
    return Freshness(force.roster.collaboration, force.roster.version, force.roster.digest, moment)


def ends_sooner(what: str, force: InForce) -> None:
    assert force.policy is not None
    assert force.roster is not None
    policy = force.policy.policy
    match what:
        case "policy-expired":
            shorter: dict[str, Any] = {"expires": NIGHT}
        case "purpose-ended":
            [(name, purpose)] = policy.purposes.items()
            shorter = {"purposes": {name: _with(purpose, valid_until=date(2027, 1, 20))}}
        case "roster-expired":
            force.roster = replace(force.roster, expires=NIGHT)
            return
        case _:
            force.freshness = confirmed(force, NIGHT - timedelta(days=7))
            return
    force.policy = replace(force.policy, policy=_with(policy, **shorter))


def _with(struct: Any, **changes: Any) -> Any:
    import msgspec

    return msgspec.structs.replace(struct, **changes)


@pytest.mark.parametrize("what", ["policy-expired", "purpose-ended", "roster-expired", "roster-stale"])
def test_whatever_ends_first_ends_it_to_the_second(world: World, what: str) -> None:
    force = in_force(world)
    kept = Lasting(force, "P-1")
    kept.check(NIGHT)
    ends_sooner(what, force)
    kept.check(NIGHT - timedelta(seconds=1))
    with pytest.raises(Refused) as refused:
        kept.check(NIGHT)
    assert refused.value.code == what


def test_it_is_worked_out_once_for_what_is_in_force(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    force = in_force(world)
    worked_out: list[object] = []

    def counted(roster: Roster, freshness: Freshness | None) -> datetime:
        worked_out.append(freshness)
        return fresh_until(roster, freshness)

    monkeypatch.setattr(lasting, "fresh_until", counted)
    kept = Lasting(force, "P-1")
    for _ in range(3):
        kept.check(START)
    assert len(worked_out) == 1
    # Confirmed anew, it lasts longer, under the same roster.
    ends_sooner("roster-stale", force)
    with pytest.raises(Refused):
        kept.check(NIGHT)
    force.freshness = confirmed(force, NIGHT)
    kept.check(NIGHT)
    assert len(worked_out) == 3


# -- a place -------------------------------------------------------------------------------------------------


def test_sessions_leave_other_runs_their_threads_and_one_too_many_is_not_charged(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "MAX_THREADS", 1)
    monkeypatch.setattr(runner, "MAX_SESSIONS", 1)

    async def play_it() -> None:
        world = LookupWorld(folder / "world")
        async with running(world, names=NAMES) as (post, stations):
            job = await open_one(post, stations, world.lookup())
            again = post.submit(world.lookup(lookups=99))
            await approve_all(post, stations, again)
            task = await over(post, again)
            assert task.ended[OWNS].code == "too-many-sessions"
            assert not task.ended[OWNS].opened
            [row] = stations[OWNS].state.ledger().rows("residents")
            assert (row.past.job, row.state) == (job, RowState.CHARGED)
            assert len(await found(stations[ASKS], job, 0)) == 1
            # The one thread of all other work is free for its end.
            await do(stations[ASKS], "close", job=job)
            ended = (await over(post, job)).ended
            assert {end.state for end in ended.values()} == {"DONE"}
            third = await open_one(post, stations, world.lookup(lookups=98))
            assert len(await found(stations[ASKS], third, 0)) == 1

    asyncio.run(play_it())


def test_a_session_that_was_admitted_and_finds_no_place_left_is_freed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play_it() -> None:
        world = LookupWorld(folder / "world")
        async with running(world, names=NAMES) as (post, stations):
            owner = stations[OWNS].agent.runner
            agree = owner._check_open
            calls: list[bool] = []

            def filled(live: Any) -> None:
                calls.append(bool(live.envelope))
                if live.envelope:  # others began in between
                    monkeypatch.setattr(runner, "MAX_SESSIONS", 0)
                agree(live)

            monkeypatch.setattr(owner, "_check_open", filled)
            job = post.submit(world.lookup())
            await approve_all(post, stations, job)
            task = await over(post, job)
            assert calls == [False, True]
            assert (task.ended[OWNS].code, task.ended[OWNS].opened) == ("too-many-sessions", False)
            assert stations[OWNS].run(job) is RunState.FAILED
            [row] = stations[OWNS].state.ledger().rows("residents")
            assert row.state is RowState.RELEASED
            assert not stations[OWNS].entries("job.admitted")

    asyncio.run(play_it())


# -- a turn at the counter -----------------------------------------------------------------------------------


class Taken:
    """Stands for the exchange: what the party's thread was handed."""

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def ask(self, asked: Any) -> bool:
        assert isinstance(asked, Question)
        self.numbers.append(asked.number)
        return True


def test_one_person_at_the_window_is_served_between_the_pieces_of_lists() -> None:
    async def go() -> None:
        exchange = Taken()
        session = Session(
            Attempt(JobId("sha256:" + "0" * 64), 1),
            Role("clerk"),
            exchange,  # type: ignore[arg-type]  # only asked
            closes=1.0,
            monotonic=lambda: 0.0,
        )

        def put(who: str) -> int:
            session.ask({}, None, who)
            return session.asked

        first = [put("first list") for _ in range(20)]
        assert exchange.numbers == first[:3]
        window = put("window")
        # A place is left for it, though the list has not had a single answer.
        assert exchange.numbers == [*first[:3], window]
        second = [put("second list") for _ in range(20)]
        again = put("window")
        for number in (*first[:3], window):
            session._settle(number, {})
        # Each in turn: no list goes on because it came first, or because it is long.
        assert exchange.numbers[4:] == [first[3], second[0], again, first[4]]
        for number in exchange.numbers[4:]:
            session._settle(number, {})
        for number in exchange.numbers:  # grows
            session._settle(number, {})
        assert sorted(exchange.numbers) == sorted([*first, *second, window, again])

    asyncio.run(go())


def test_a_connection_on_which_nothing_is_asked_ends_and_one_that_waits_does_not(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_sessions(monkeypatch)
    monkeypatch.setattr(counter, "IDLE_S", 0.3)
    slow = asyncio.Event()
    hand_over = Session._hand_over
    monkeypatch.setattr(Session, "_hand_over", lambda self: hand_over(self) if slow.is_set() else None)

    async def session(_: Post, stations: dict[str, Station], job: JobId) -> None:
        path = socket_path(stations["police"].home)
        reader, writer = await asyncio.open_unix_connection(path)
        said = json.loads(await asyncio.wait_for(reader.readline(), 5.0))
        assert said["error"]["code"] == "counter-idle"
        assert await reader.read() == b""
        writer.close()
        asking = asyncio.create_task(ask(stations["police"], job, "ab"))
        await asyncio.sleep(0.7)
        assert not asking.done()
        slow.set()
        [open_now] = stations["police"].agent.runner._counter._sessions.values()
        open_now._hand_over()
        assert (await asking)["rows"] == [{"even": "yes"}]

    play(world, session)


# -- memory --------------------------------------------------------------------------------------------------


def test_a_list_that_the_party_dropped_is_held_by_nobody(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lists: list[weakref.ref[Any]] = []

    def noted(*given: Any, **named: Any) -> Any:
        prepared = prepare(*given, **named)
        assert isinstance(prepared.input, LookupList)
        lists.append(weakref.ref(prepared.input.keys))
        return prepared

    monkeypatch.setattr(runner, "prepare", noted)

    async def play_it() -> None:
        world = LookupWorld(folder / "world")
        async with running(world, names=NAMES) as (post, stations):
            job = await open_one(post, stations, world.lookup())
            assert len(await found(stations[ASKS], job, 0)) == 1
            gc.collect()
            [dropped] = lists
            assert dropped() is None
            [live] = stations[OWNS].agent.runner._live.values()
            assert live.prepared is not None
            assert live.prepared.input is None
            assert live.prepared.summary.rows
            await do(stations[ASKS], "close", job=job)
            assert {end.state for end in (await over(post, job)).ended.values()} == {"DONE"}

    asyncio.run(play_it())
