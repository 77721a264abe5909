"""Who counts as a witness may change, and a policy while something waits: nobody gets anything by that."""

import asyncio
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from simulator import (
    Post,
    Station,
    Stream,
    World,
    answered,
    approve_all,
    log_vkey,
    over,
    running,
    until,
)

from audit.note import ED25519, Checkpoint, Note, VerifierKey
from minshu.v1 import audit_pb2
from node import cli
from node.activation import InForce, activate_policy, activate_roster
from node.cosigning import cosigned_size, owed
from node.doctor import examine
from node.generation import begin
from node.home import Home, init_home
from node.ledger import RowState
from node.rpc import Attempt
from node.state import State
from policies.witnesses import Witnesses, witnesses_of
from protocols.channel import suites
from protocols.encoding import b64encode, sha256_digest
from protocols.errors import Refused, StateConflict
from protocols.ids import JobId, Organisation
from protocols.wire import Roster, RosterNode, RosterOrganisation

pytestmark = pytest.mark.alone  # whole nodes, 8 s together

Letter = audit_pb2.Letter
Cut = Callable[[str, str, Letter], bool]


@pytest.fixture(autouse=True)
def _faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.agent.TICK_S", 0.1)


class Hand(Post):
    """A coordinator that keeps the letters it likes, in both directions; nobody stands in for a node."""

    def __init__(self, world: World, cut: Cut = lambda *_: False) -> None:
        super().__init__(world)
        self.cut = cut

    def witnesses(self, name: str) -> bool:
        return False

    def passed_on(self, sender: str, to: str, letter: Letter) -> tuple[Letter, ...]:
        return () if self.cut(sender, to, letter) else (letter,)

    def heal(self) -> None:
        self.cut = lambda *_: False
        for wire in self.wires.values():
            wire.drop()


def between(name: str, *others: str) -> Cut:
    """Keep a node from asking these others to cosign."""
    return lambda sender, to, letter: (
        sender == name and to in others and letter.WhichOneof("body") == "add_checkpoint"
    )


def listing(*departments: str) -> str:
    """Return the rest of a [witnesses] clause that counts these alone."""
    names = ", ".join(f'"{name}.gz.example"' for name in departments)
    return f"organisations = [{names}]\n"


def code(station: Station) -> str:
    no = station.agent.cosigning.hindrance()
    return "" if no is None else no.code


def owes(station: Station) -> tuple[int, Witnesses] | None:
    assert station.agent.force.roster is not None
    return owed(station.state, station.state.journal.origin, station.agent.force.roster)


def covered(station: Station) -> bool:
    return station.agent.cosigning.covered == station.state.journal.size


def next_policy(station: Station, **changes: Any) -> None:
    """Put a department's next policy into force while its node runs."""
    newest = station.state.policy()
    assert newest is not None
    envelope = station.world.policy(
        station.name, version=newest.version + 1, previous=newest.digest, **changes
    )
    station.agent.desk.handle("policy", {"envelope": b64encode(envelope)})


def ended(station: Station) -> str:
    """Return what a node ended with."""
    error = station.task.exception()
    assert isinstance(error, StateConflict)
    return error.code


# -- P1: an older copy and other witnesses -----------------------------------------------------------------


@pytest.fixture(scope="module")
def moved_on(founded: World, memory: Path) -> tuple[World, Path]:
    """A world in which the police's one query was spent under a policy with other witnesses than before.

    The folder holds the home of the police as it was before that policy.
    """
    world = founded.clone(memory / "moved-on" / "world")
    home, backup = world.homes["police"].path, memory / "moved-on" / "backup"
    world.activate("police", queries=1, quorum=2, stops=listing("human-resources", "health"))

    async def play() -> None:
        async with running(world, Hand(world)) as (post, stations):
            police = stations["police"]
            await until(lambda: covered(police))
            await asyncio.to_thread(shutil.copytree, home, backup)
            next_policy(police, queries=1, quorum=1, stops=listing("statistics"))
            # The old ones see the change, and nothing that comes after it.
            await until(lambda: code(police) == "" and owes(police) is None)
            post.cut = between("police", "human-resources", "health")
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            task = await over(post, job)
            assert {end.state for end in task.ended.values()} == {"DONE"}

    asyncio.run(play())
    return world, backup


@pytest.fixture
def restored(moved_on: tuple[World, Path], folder: Path) -> World:
    world, backup = moved_on
    made = world.clone(folder / "restored")
    shutil.rmtree(made.homes["police"].path)
    shutil.copytree(backup, made.homes["police"].path)
    return made


@pytest.mark.parametrize("silent", ["nobody", "statistics"])
def test_p1_a_copy_from_before_the_witnesses_changed_is_found_out_whoever_answers(
    restored: World, silent: str
) -> None:
    def cut(sender: str, _to: str, letter: Letter) -> bool:
        return sender == silent and letter.WhichOneof("body") == "head"

    async def play() -> None:
        async with running(restored, Hand(restored, cut), ready=False) as (_, stations):
            await until(stations["police"].task.done)
            assert ended(stations["police"]) == "journal-rolled-back"

    asyncio.run(play())


def test_a_rollback_is_proven_by_a_witness_whose_vote_does_not_count(restored: World) -> None:
    """The police of the copy count on two others; only statistics, which they do not count, may answer."""

    def cut(sender: str, _to: str, letter: Letter) -> bool:
        return sender != "statistics" and letter.WhichOneof("body") == "head"

    async def play() -> None:
        async with running(restored, Hand(restored, cut), ready=False) as (_, stations):
            await until(stations["police"].task.done)
            assert ended(stations["police"]) == "journal-rolled-back"

    asyncio.run(play())


def test_p1_nothing_is_decided_before_the_witnesses_before_have_seen_that_others_count(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world.activate("police", queries=1, quorum=2, stops=listing("human-resources", "health"))
    cut = between("police", "human-resources", "health")
    home = world.homes["police"]

    async def change() -> None:
        async with running(world, Hand(world)) as (post, stations):
            police = stations["police"]
            await until(lambda: covered(police))
            post.cut = cut
            next_policy(police, queries=1, quorum=1, stops=listing("statistics"))
            await asyncio.sleep(0.3)
            assert code(police) == "policy-unwitnessed"
            found = owes(police)
            assert found is not None
            assert found[1].organisations == {"human-resources.gz.example", "health.gz.example"}

    async def restart() -> None:
        post = Hand(world, cut)
        async with running(world, post, ready=False, witness_wait_s=0.3) as (_, stations):
            police = stations["police"]
            await until(lambda: code(police) == "policy-unwitnessed")
            job = post.submit(world.spec())
            verdict = (await answered(post, job)).verdicts["police"]
            assert (verdict.answer, verdict.code) == ("refuse", "policy-unwitnessed")
            post.heal()
            await until(lambda: code(police) == "" and owes(police) is None)

    asyncio.run(change())
    monkeypatch.setattr("node.page._now", world.clock)
    assert cli.main(["status", "--home", str(home.path)]) == 0
    assert "the witnesses changed: 2 of those before have to see that, too" in capsys.readouterr().out
    [finding] = [f for f in examine(home, world.clock()) if f.what == "witnesses"]
    assert finding.state == "error"
    assert "health.gz.example" in finding.found
    asyncio.run(restart())
    assert [f.state for f in examine(home, world.clock()) if f.what == "witnesses"] == ["ok"]


# -- what is owed, and to whom -----------------------------------------------------------------------------


class Books:
    """The police's documents, with nothing else of their node running."""

    def __init__(self, world: World) -> None:
        self.world, self.home = world, world.homes["police"]
        self.state: State = world.open("police")
        self.force = InForce.load(self.state, self.home.name, self.home.signer.public_key)

    def policy(self, **changes: Any) -> int:
        """Activate the next policy; return its entry."""
        newest = self.state.policy()
        assert newest is not None
        envelope = self.world.policy("police", version=newest.version + 1, previous=newest.digest, **changes)
        activate_policy(self.state, self.force, envelope, self.world.clock)
        return self.last("policy.activate")

    def roster(self, *departments: str) -> int:
        """Activate the next roster, with these departments alone; return its entry."""
        held = self.force.roster
        version, previous = (1, None) if held is None else (held.version + 1, held.digest)
        roster = self.world.make_roster(version, previous)
        kept = tuple(node for node in roster.nodes if node.name.split(".")[0] in ("police", *departments))
        enrolled = self.home.enrolled()
        assert enrolled is not None
        envelope = self.world.sign_roster(replace(roster, nodes=kept))
        assert activate_roster(self.state, self.force, envelope, enrolled, self.world.clock)
        return self.last("roster.activate")

    def close(self) -> None:
        self.state.close()

    def last(self, kind: str) -> int:
        return [entry.seq for entry in self.state.journal.entries() if entry.kind == kind][-1]

    def owes(self) -> tuple[int, set[str], int] | None:
        assert self.force.roster is not None
        found = owed(self.state, self.state.journal.origin, self.force.roster)
        if found is None:
            return None
        seq, before = found
        return seq, {house.split(".")[0] for house in before.organisations}, before.quorum

    def seen(self) -> None:
        with self.state.change() as change:
            change.witnesses_changed(self.state.journal.origin, self.state.journal.size)


def test_who_counts_at_first_owes_nothing_and_each_change_is_owed_to_who_last_saw_one(world: World) -> None:
    with closing(Books(world)) as books:
        books.roster("human-resources", "health", "statistics")  # the first, after the first policy
        assert books.owes() is None
        books.policy(jobs=99)  # the same witnesses
        assert books.owes() is None
        first = books.policy(quorum=2, stops=listing("human-resources", "health"))
        assert books.owes() == (first, {"human-resources", "health", "statistics"}, 2)
        second = books.policy(quorum=1, stops=listing("statistics"))
        assert books.owes() == (second, {"human-resources", "health", "statistics"}, 2)
        with books.state.change() as change:  # less than that entry was seen
            change.witnesses_changed(books.state.journal.origin, second)
        assert books.owes() is not None
        books.seen()
        assert books.owes() is None
        third = books.policy(quorum=0, queries=None, rows=None)  # one that waits for nobody, too
        assert books.owes() == (third, {"statistics"}, 1)


def test_a_roster_that_changes_the_witnesses_is_owed_to_those_left_of_them(world: World) -> None:
    with closing(Books(world)) as books:
        books.policy(quorum=2)
        books.roster("human-resources", "health", "statistics")
        changed = books.roster("human-resources", "health")
        assert books.owes() == (changed, {"human-resources", "health"}, 2)
        books.seen()
        changed = books.roster("health", "statistics")
        assert books.owes() == (changed, {"health"}, 1)
        books.roster("statistics")
        assert books.owes() is None  # nobody is left of them


def test_of_a_set_that_counted_before_no_more_are_needed_than_are_left(world: World) -> None:
    roster, own = world.roster, Organisation("police.gz.example")
    before = witnesses_of(None, roster, own)
    assert (len(before.organisations), before.quorum) == (3, 3)
    assert before.left(roster).counts_like(before)
    fewer = replace(roster, nodes=tuple(n for n in roster.nodes if "health" not in n.name))
    assert (len(before.left(fewer).organisations), before.left(fewer).quorum) == (2, 2)
    nobody = before.left(replace(roster, nodes=()))
    assert (nobody.organisations, nobody.quorum, nobody.possible) == (frozenset(), 1, False)


# -- P1: a policy that changes while something waits -------------------------------------------------------


def test_p1_nothing_leaves_under_a_policy_that_was_replaced_before_the_first_frame(world: World) -> None:
    class Slow(Hand):
        def start(self, job: JobId) -> None:
            self.cut = lambda sender, _to, letter: (
                sender == "health" and letter.WhichOneof("body") == "add_checkpoint"
            )
            super().start(job)

    async def play() -> None:
        post = Slow(world)
        async with running(world, post) as (_, stations):
            health, job = stations["health"], post.submit(world.spec())
            await approve_all(post, stations, job)
            await until(lambda: bool(health.entries("job.admitted")))
            next_policy(health, max_rows=1)
            post.heal()
            task = await over(post, job)
            assert (task.ended["health"].code, task.ended["health"].opened) == ("admission-outdated", False)
            assert not any(header.sender == "source-2" for header, _ in post.frames)
            row = health.state.ledger().row(job, 1)
            assert row is not None
            assert row.state is RowState.RELEASED

    asyncio.run(play())


def test_p1_nothing_leaves_when_the_policy_is_replaced_while_the_relay_opens_the_stream(world: World) -> None:
    class Late(Hand):
        async def open_data(self, name: str, attempt: Attempt) -> Stream:
            stream = await super().open_data(name, attempt)
            if name == "health":
                next_policy(stations["health"], max_rows=1)
            return stream

    stations: dict[str, Station] = {}

    async def play() -> None:
        async with running(world, Late(world)) as (post, found):
            stations.update(found)
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            task = await over(post, job)
            assert (task.ended["health"].code, task.ended["health"].opened) == ("admission-outdated", False)
            assert not any(header.sender == "source-2" for header, _ in post.frames)

    asyncio.run(play())


class Holding(Hand):
    """Nobody cosigns for the police from their data stream on, and they try again soon."""

    stations: dict[str, Station]

    async def open_data(self, name: str, attempt: Attempt) -> Stream:
        if name == "police":
            self.stations["police"].agent.cosigning._wait_s = 0.2
            self.cut = between("police", "human-resources", "health", "statistics")
        return await super().open_data(name, attempt)


async def committed(post: Holding, stations: dict[str, Station]) -> JobId:
    """Have a job done up to the police's releases, whose quorum is held back."""
    post.stations = stations
    job = post.submit(post.world.spec())
    await approve_all(post, stations, job)
    await until(lambda: bool(stations["police"].state.outputs(job)))
    return job


def tries(station: Station) -> int:
    """Return how often a wait for witnesses was given up."""
    return station.home.log.read_text().count("warning no-quorum")


def test_p1_a_release_waits_for_its_quorum_though_the_next_policy_asks_for_none(world: World) -> None:
    async def play() -> None:
        async with running(world, Holding(world)) as (post, stations):
            assert isinstance(post, Holding)
            police, job = stations["police"], await committed(post, stations)
            [records] = [o for o in police.state.outputs(job) if o.output_class == "B"]
            next_policy(police, quorum=0, queries=None, rows=None)
            tried = tries(police)
            await until(lambda: tries(police) >= tried + 2)  # the second began under that policy
            with pytest.raises(Refused) as refused:
                police.agent.desk.handle("open", {"release": records.release})
            assert refused.value.code == "not-cosigned"
            assert not post.tasks[job].uploads
            assert "police" not in post.tasks[job].ended
            post.heal()
            task = await over(post, job)
            assert task.ended["police"].state == "DONE"
            assert task.uploads
            await until(lambda: opens(police, records.release))

    asyncio.run(play())


def opens(station: Station, release: str) -> bool:
    """Tell whether a list is given out by now."""
    try:
        station.agent.desk.handle("open", {"release": release})
    except Refused as no:
        return no.code != "not-cosigned"
    return True


def test_p1_no_wait_ends_by_a_quorum_that_is_none_any_more(world: World) -> None:
    """The policy wants 2; of 4 organisations that is no quorum, for two such need not share anybody."""
    home = init_home(world.folder / "tax", "tax.gz.example/node-a", world.suite)
    tax = RosterNode(
        home.name,
        home.signer.public_key,
        sha256_digest(b"tax"),
        log_vkey(home.origin, home.signer),
        suites.public_key(world.suite, home.recipient_private()),
        home.witness_vkeys,
    )
    roster = world.make_roster(2, world.roster.digest)
    office = RosterOrganisation(Organisation("tax.gz.example"), "tax")
    grown: Roster = replace(roster, nodes=(*roster.nodes, tax), organisations=(*roster.organisations, office))

    async def play() -> None:
        async with running(world, Holding(world)) as (post, stations):
            assert isinstance(post, Holding)
            police, job = stations["police"], await committed(post, stations)
            assert police.agent._take_roster(world.sign_roster(grown))
            assert not police.agent.cosigning._witnesses.possible
            post.heal()
            tried = tries(police)
            await until(lambda: tries(police) >= tried + 2)
            assert police.agent.cosigning.covered == 0
            assert not post.tasks[job].uploads
            assert "police" not in post.tasks[job].ended

    asyncio.run(play())


# -- P3: a copy from before anything had to wait -----------------------------------------------------------


def test_p3_a_copy_under_a_policy_that_asks_for_no_cosignatures_decides_nothing_before_the_heads(
    world: World,
) -> None:
    world.activate("police", quorum=0, queries=None, rows=None)
    home, backup = world.homes["police"].path, world.folder / "backup"
    shutil.copytree(home, backup)

    def cut(sender: str, _to: str, letter: Letter) -> bool:
        return sender == "police" and letter.WhichOneof("body") == "ask_head"

    async def before() -> None:
        async with running(world, Hand(world)) as (_, stations):
            next_policy(stations["police"], queries=1, quorum=2)
            await until(lambda: covered(stations["police"]))

    async def after() -> None:
        post = Hand(world, cut)
        async with running(world, post, ready=False, witness_wait_s=0.3) as (_, stations):
            police = stations["police"]
            await until(lambda: police.agent.force.roster is not None)
            assert code(police) == "heads-unknown"
            verdict = (await answered(post, post.submit(world.spec()))).verdicts["police"]
            assert (verdict.answer, verdict.code) == ("refuse", "heads-unknown")
            assert not police.agent.cosigning.required
            post.heal()
            await until(police.task.done)
            assert ended(police) == "journal-rolled-back"

    asyncio.run(before())
    shutil.rmtree(home)
    shutil.copytree(backup, home)
    asyncio.run(after())


# -- what a file claims ------------------------------------------------------------------------------------


def test_a_cosigned_checkpoint_counts_for_what_its_signatures_are_worth(world: World) -> None:
    async def play() -> None:
        async with running(world, Hand(world)) as (_, stations):
            await until(lambda: covered(stations["police"]))

    asyncio.run(play())
    home = world.homes["police"]
    file = home.journal / "checkpoint.cosigned"
    honest = Note.decode(file.read_bytes())
    bare = Note(honest.text, honest.signatures[:1]).encode()

    def size(origin: str) -> int:
        with closing(Books(world)) as books:
            return cosigned_size(books.state, books.force, origin, home.journal_of(origin), world.clock())

    assert size(home.origin) > 0
    with closing(
        Books(world)
    ) as books:  # what is written over it while the journal is open counts for nothing
        file.write_bytes(bare)
        there = cosigned_size(books.state, books.force, home.origin, home.journal, world.clock())
        assert there > 0
    assert size(home.origin) == 0
    file.write_bytes(honest.encode())

    earlier = home.origin
    begin(home, "restored-backup", world.clock)
    world.homes["police"] = home = Home(home.path)
    file = home.journal_of(earlier) / "checkpoint.cosigned"
    assert (file.read_bytes(), size(earlier) > 0) == (honest.encode(), True)
    file.write_bytes(bare)
    assert size(earlier) == 0
    seen = Checkpoint.decode(honest.text)
    forged = Checkpoint(earlier, seen.size, bytes(32)).encode()
    for note in (Note(forged, honest.signatures), Note(forged, ()).with_signature(*log_key(home, earlier))):
        file.write_bytes(note.encode())  # signed by no key of the journal, or not of its tree
        with pytest.raises(StateConflict) as damaged:
            size(earlier)
        assert damaged.value.code == "journal-damaged"


def log_key(home: Home, origin: str) -> tuple[VerifierKey, Callable[[bytes], bytes]]:
    return VerifierKey(origin, ED25519, home.signer.public_key), home.signer.sign
