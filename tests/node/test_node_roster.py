"""P3 at a node: it walks the chain of rosters, whatever order they come in, and goes by no stale one."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from simulator import START, Post, Station, World, new_signer, until

from audit.entries import Entry
from minshu.v1 import relay_pb2 as pb
from node import rpc
from node.activation import InForce, activate_roster, take_freshness
from node.doctor import examine
from node.home import Enrolled
from node.state import State
from protocols.envelope import ROSTER, KeySigner, decode_envelope, key_id, sign
from protocols.errors import MinshuError, Refused, StateConflict
from protocols.roots import Roots
from protocols.wire import NextRoots, Roster

DAY = timedelta(days=1)


class Shelf:
    """A node's rosters, with nothing else of it running."""

    def __init__(self, world: World) -> None:
        self.world, self.home = world, world.homes["health"]
        self.state: State = world.open("health")
        enrolled = self.home.enrolled()
        assert enrolled is not None
        self.enrolled: Enrolled = enrolled
        self.force = self.loaded()

    def loaded(self) -> InForce:
        return InForce.load(self.state, self.home.name, self.home.signer.public_key)

    def roster(self, envelope: bytes) -> bool:
        return activate_roster(self.state, self.force, envelope, self.enrolled, self.world.clock)

    def freshness(self, envelope: bytes) -> bool:
        return take_freshness(self.state, self.force, envelope, self.enrolled, self.world.clock)

    def last(self) -> Entry:
        return list(self.state.journal.entries())[-1]


@pytest.fixture
def shelf(world: World) -> Iterator[Shelf]:
    made = Shelf(world)
    yield made
    made.state.close()


def code_of(act: Callable[[], Any]) -> str:
    with pytest.raises(MinshuError) as caught:
        act()
    return caught.value.code


def chain(world: World, count: int, **changes: Any) -> list[bytes]:
    """Return the envelopes of versions 2 up to `count` after the world's first roster."""
    envelopes, last = [], world.roster
    for version in range(2, count + 1):
        last = world.make_roster(version, last.digest, **changes)
        envelopes.append(world.sign_roster(last))
    return envelopes


def hand_over(world: World, before: Roster) -> tuple[bytes, Roster, list[KeySigner]]:
    """Return the roster that hands over to other root keys, and who signs from then on."""
    holders = [new_signer() for _ in range(3)]
    keys = Roots.of("", 2, [holder.public_key for holder in holders]).keys
    roster = world.make_roster(before.version + 1, before.digest, roots=NextRoots(2, keys))
    return sign(ROSTER, roster.encode(), [*world.roots[:2], *holders[:2]]).encode(), roster, holders


# -- what is kept ------------------------------------------------------------------------------------------


def test_every_roster_of_the_chain_is_kept_and_journaled_with_who_signed_it(shelf: Shelf) -> None:
    for envelope in (shelf.world.roster_envelope, *chain(shelf.world, 4)):
        assert shelf.roster(envelope)
    assert [kept.version for kept in shelf.state.rosters()] == [1, 2, 3, 4]
    entry = shelf.last()
    assert (entry.kind, entry.body["version"]) == ("roster.activate", 4)
    assert entry.body["signers"] == sorted(key_id(root.public_key) for root in shelf.world.roots[:2])
    assert shelf.state.journal.get_object(entry.body["envelope_sha256"]) is not None


def test_the_root_keys_in_force_come_from_the_chain_at_every_start(shelf: Shelf) -> None:
    shelf.roster(shelf.world.roster_envelope)
    envelope, handing, holders = hand_over(shelf.world, shelf.world.roster)
    assert shelf.roster(envelope)
    third = shelf.world.make_roster(3, handing.digest)
    # Whether the same process goes on, or the next one reads the chain again: the old keys sign nothing.
    for force in (shelf.force, shelf.loaded()):
        shelf.force = force
        assert code_of(lambda: shelf.roster(shelf.world.sign_roster(third, 3))) == "too-few-signatures"
    assert shelf.roster(sign(ROSTER, third.encode(), holders[1:]).encode())
    assert shelf.loaded().chain(shelf.state, shelf.enrolled).version == 3


def test_a_node_enrolled_anew_under_the_next_root_keys_goes_on_with_its_chain(shelf: Shelf) -> None:
    shelf.roster(shelf.world.roster_envelope)
    envelope, handing, holders = hand_over(shelf.world, shelf.world.roster)
    shelf.roster(envelope)
    pinned = Roots.of("gz.example", 2, [holder.public_key for holder in holders])
    shelf.enrolled = replace(shelf.enrolled, roots=pinned.keys)
    shelf.force = shelf.loaded()
    third = shelf.world.make_roster(3, handing.digest)
    assert code_of(lambda: shelf.roster(shelf.world.sign_roster(third))) == "too-few-signatures"
    assert shelf.roster(sign(ROSTER, third.encode(), holders[:2]).encode())
    assert [kept.version for kept in shelf.state.rosters()] == [1, 2, 3]


def test_a_roster_changed_in_the_database_is_found_at_the_next_start_p3(shelf: Shelf) -> None:
    shelf.roster(shelf.world.roster_envelope)
    other = shelf.world.sign_roster(shelf.world.make_roster(suite=1), 1)
    with shelf.state.journal.transaction() as connection:
        connection.execute("UPDATE roster SET envelope = ?", (other,))
    assert code_of(lambda: shelf.loaded().chain(shelf.state, shelf.enrolled)) == "roster-changed"


def test_a_roster_that_could_not_be_journaled_is_not_gone_by(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.roster(shelf.world.roster_envelope)
    [second] = chain(shelf.world, 2)

    def fail(*_: object, **__: object) -> None:
        raise StateConflict("the disk is full", code="journal-write-failed")

    with monkeypatch.context() as broken:
        broken.setattr(shelf.state.journal, "append", fail)
        assert code_of(lambda: shelf.roster(second)) == "journal-write-failed"
    assert (shelf.force.roster, shelf.loaded().roster) == (shelf.world.roster, shelf.world.roster)
    assert shelf.roster(second)
    assert [kept.version for kept in shelf.state.rosters()] == [1, 2]


def test_a_roster_that_no_checkpoint_covers_yet_is_gone_by_once_it_is_shown_again(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.roster(shelf.world.roster_envelope)
    [second] = chain(shelf.world, 2)

    def fail(_: int) -> None:
        raise StateConflict("no checkpoint", code="journal-unpublished")

    with monkeypatch.context() as broken:
        broken.setattr(shelf.state.journal, "_publish_through", fail)
        assert code_of(lambda: shelf.roster(second)) == "journal-unpublished"
    assert shelf.force.roster == shelf.world.roster
    assert shelf.roster(second)
    assert shelf.force.roster is not None
    assert shelf.force.roster.version == 2
    assert not shelf.roster(second)


# -- freshness ---------------------------------------------------------------------------------------------


def test_freeze_a_roster_nobody_confirmed_for_seven_days_is_refused(shelf: Shelf) -> None:
    shelf.roster(shelf.world.roster_envelope)
    issued = shelf.world.roster.issued
    assert shelf.force.fresh(issued + 7 * DAY - timedelta(seconds=1)) == shelf.world.roster
    with pytest.raises(Refused) as stale:
        shelf.force.fresh(issued + 7 * DAY)
    assert stale.value.code == "roster-stale"


def test_a_newer_statement_is_taken_over_journaled_and_kept(shelf: Shelf) -> None:
    shelf.roster(shelf.world.roster_envelope)
    shelf.world.clock.at = START + 10 * DAY
    statement = shelf.world.fresh()
    assert shelf.freshness(statement)
    entry = shelf.last()
    assert (entry.kind, entry.body["version"], entry.body["sha256"]) == (
        "roster.fresh",
        1,
        shelf.world.roster.digest,
    )
    assert entry.body["signers"] == [key_id(shelf.world.freshener.public_key)]
    assert shelf.state.journal.get_object(entry.refs[0]) == statement
    for force in (shelf.force, shelf.loaded()):
        assert force.fresh(START + 16 * DAY).version == 1
        assert code_of(lambda force=force: force.fresh(START + 17 * DAY)) == "roster-stale"


def test_an_older_statement_changes_nothing_and_is_not_journaled(shelf: Shelf) -> None:
    shelf.roster(shelf.world.roster_envelope)
    early = shelf.world.fresh()
    shelf.world.clock.at = START + DAY
    late = shelf.world.fresh()
    assert shelf.freshness(late)
    size = shelf.state.journal.size
    assert not shelf.freshness(early)
    assert not shelf.freshness(late)
    assert shelf.state.journal.size == size


def test_a_statement_by_another_key_is_not_taken_over(shelf: Shelf) -> None:
    shelf.roster(shelf.world.roster_envelope)
    shelf.world.freshener = new_signer()
    assert code_of(lambda: shelf.freshness(shelf.world.fresh())) == "too-few-signatures"
    assert shelf.force.freshness is None


def test_the_doctor_says_how_long_the_roster_counts(shelf: Shelf) -> None:
    shelf.roster(shelf.world.roster_envelope)
    shelf.state.close()

    def found(days: float) -> str:
        at = shelf.world.roster.issued + days * DAY
        return next(f"{f.state}: {f.found}" for f in examine(shelf.home, at) if f.what == "freshness")

    assert found(1) == "ok: the roster counts as the newest until 2026-11-28T08:00:00Z"
    assert found(6).startswith("warning")
    assert found(7).startswith("error: roster version 1 was fresh until")
    assert found(70).startswith("error: roster version 1 expired")


# -- a running node ----------------------------------------------------------------------------------------


class Coordinator(Post):
    """Brings the newest roster with the welcome, and those in between after it."""

    newest = b""
    between: Sequence[bytes] = ()

    def roster_for(self, name: str) -> bytes:
        return self.newest or super().roster_for(name)

    async def connected(self, wire: Any, hello: pb.Hello) -> None:
        await super().connected(wire, hello)
        for envelope in self.between:
            wire.say(roster=pb.RosterUpdate(roster=envelope))


def version_of(station: Station) -> int:
    roster = station.agent.force.roster
    return 0 if roster is None else roster.version


def walked(world: World, post: Coordinator, version: int) -> State:
    """Run a node until it holds that version, and return its state."""

    async def play() -> State:
        station = Station(world, post, "health")
        try:
            await until(lambda: version_of(station) == version)
            await until(lambda: not post.freshness or station.agent.force.freshness is not None)
        finally:
            await station.close()
        return station.state

    asyncio.run(play())
    return world.open("health")


def test_a_node_that_was_off_takes_the_newest_once_those_in_between_are_there(world: World) -> None:
    state = walked(world, Coordinator(world), 1)
    state.close()
    post = Coordinator(world)
    *post.between, post.newest = chain(world, 5)
    post.freshness = world.fresh(Roster.decode(decode_envelope(post.newest).payload))
    state = walked(world, post, 5)
    assert [kept.version for kept in state.rosters()] == [1, 2, 3, 4, 5]
    assert state.freshness(5) == post.freshness
    state.close()


def test_a_new_node_that_pinned_the_first_root_keys_walks_over_the_hand_over(world: World) -> None:
    post = Coordinator(world)
    envelope, handing, holders = hand_over(world, world.roster)
    third = world.make_roster(3, handing.digest)
    post.between, post.newest = [envelope], sign(ROSTER, third.encode(), holders[:2]).encode()
    state = walked(world, post, 3)
    assert [kept.version for kept in state.rosters()] == [2, 3]
    state.close()


def test_a_roster_that_never_gets_its_turn_leaves_the_node_where_it_is(world: World) -> None:
    post = Coordinator(world)
    *_, post.newest = chain(world, 5)
    walked(world, Coordinator(world), 1).close()

    async def play() -> None:
        station = Station(world, post, "health")
        try:
            await until(lambda: bool(post.hellos))
            await station.agent.take(rpc.NewRoster(world.sign_roster(world.make_roster(7), 1)))
            assert version_of(station) == 1
        finally:
            await station.close()

    asyncio.run(play())
    assert "roster-fast-forward" in world.homes["health"].log.read_text()


def test_a_statement_on_the_stream_keeps_a_running_node_answering(world: World) -> None:
    async def play() -> None:
        post = Coordinator(world)
        station = Station(world, post, "statistics")
        try:
            await until(lambda: version_of(station) == 1)
            world.clock.at = START + 8 * DAY
            station.watch.heard(world.clock())

            async def answer() -> str:
                job = post.submit(world.spec())
                await until(lambda: "statistics" in post.tasks[job].verdicts)
                return post.tasks[job].verdicts["statistics"].code

            assert await answer() == "roster-stale"
            await station.agent.take(rpc.NewFreshness(world.fresh()))
            assert await answer() == "permitted"
        finally:
            await station.close()

    asyncio.run(play())


def test_a_revoked_analysts_job_is_refused_from_the_next_roster_on(world: World) -> None:
    async def play() -> None:
        post = Coordinator(world)
        station = Station(world, post, "statistics")
        try:
            await until(lambda: version_of(station) == 1)
            second = world.make_roster(2, world.roster.digest, analysts=())
            await station.agent.take(rpc.NewRoster(world.sign_roster(second)))
            job = post.submit(replace(world.spec(), roster_digest=second.digest))
            await until(lambda: "statistics" in post.tasks[job].verdicts)
            assert post.tasks[job].verdicts["statistics"].code == "unknown-requester"
        finally:
            await station.close()

    asyncio.run(play())
