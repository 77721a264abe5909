"""A node's identity key changes: announced with both keys, listed by the root keys, only then gone over to.

A crash between any two steps leaves a node that finishes the change, or has not begun it.
"""

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from simulator import (
    DEPARTMENTS,
    Post,
    Station,
    World,
    answered,
    approve_all,
    new_signer,
    over,
    running,
    until,
)

from audit.note import ED25519, VerifierKey
from minshu.v1 import relay_pb2 as pb
from node import rotation
from node.activation import InForce, activate_roster
from node.cli import main
from node.desk import ask
from node.home import Home
from node.journal import open_journal
from node.rotation import CurrentSigner, announce, go_over, under_way
from node.rpc import ControlRequest
from node.state import RunState, State, open_state, read_state
from policies.keyfile import fingerprint, load_public, new_key, public_path
from protocols.envelope import CATALOGUE, ROTATION, decode_envelope, key_id, verify
from protocols.errors import InputError, MinshuError, StateConflict
from protocols.wire import Roster, Rotation


class Keeper:
    """One node's keys, journal and rosters."""

    def __init__(self, world: World) -> None:
        self.world, self.home = world, world.homes["health"]
        self.open()

    def open(self) -> None:
        self.state: State = open_state(open_journal(self.home, self.world.clock), self.home.database)
        self.signer = CurrentSigner(self.home.signer)
        self.force = InForce.load(self.state, self.home.name, self.signer.public_key)

    def reopen(self) -> None:
        """What a restart does: nothing in memory is left."""
        self.state.close()
        self.home = Home(self.home.path)
        self.open()

    def roster(self, roster: Roster) -> None:
        enrolled = self.home.enrolled()
        assert enrolled is not None
        activate_roster(self.state, self.force, self.world.sign_roster(roster), enrolled, self.world.clock)

    def announce(self) -> rotation.Announced:
        return announce(self.state, self.force, self.home, self.signer, self.world.clock)

    def go_over(self) -> bool:
        return go_over(self.state, self.force, self.home, self.signer)

    def entries(self, kind: str) -> list[Any]:
        return [entry for entry in self.state.journal.entries() if entry.kind == kind]


@pytest.fixture
def keeper(world: World) -> Iterator[Keeper]:
    made = Keeper(world)
    made.roster(world.roster)
    yield made
    made.state.close()


def listing(world: World, key: bytes, name: str = "health", before: Roster | None = None) -> Roster:
    """Return the next roster, with another identity key for one node."""
    last = before or world.roster
    full = world.homes[name].name
    vkey = str(VerifierKey(f"{full}/journal/1", ED25519, key))
    nodes = tuple(
        replace(node, identity_key=key, journal_vkey=vkey) if node.name == full else node
        for node in last.nodes
    )
    return replace(last, version=last.version + 1, previous=last.digest, nodes=nodes)


def code_of(act: Callable[[], Any]) -> str:
    with pytest.raises(MinshuError) as caught:
        act()
    assert caught.value.hint
    return caught.value.code


# -- announcing --------------------------------------------------------------------------------------------


def test_the_next_key_is_made_beside_the_present_one_and_announced_with_both(keeper: Keeper) -> None:
    present = keeper.signer.public_key
    announced = keeper.announce()
    assert keeper.home.signer.public_key == present
    following = keeper.home.next_signer()
    assert following is not None
    assert announced.rotation.next_key == following.public_key
    assert keeper.home.next_identity_pem.stat().st_mode & 0o777 == 0o600
    both = {key_id(key): key for key in (present, following.public_key)}
    document = decode_envelope(announced.envelope)
    assert len(verify(document, ROTATION, both, threshold=2)) == 2
    [entry] = keeper.entries("key.announced")
    assert entry.body["identity"] == key_id(following.public_key)
    assert entry.body["previous"] == key_id(present)
    assert keeper.state.journal.get_object(entry.body["envelope_sha256"]) == announced.envelope
    assert (announced.rotation.journal_size, announced.stored) == (entry.seq, False)


def test_announcing_again_makes_no_other_key_and_no_other_entry(keeper: Keeper) -> None:
    first = keeper.announce()
    size = keeper.state.journal.size
    assert keeper.announce() == first
    keeper.reopen()
    assert keeper.announce() == first
    assert keeper.state.journal.size == size


def test_a_crash_after_the_key_was_made_announces_that_key(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(State, "change", crash)
        with pytest.raises(Crash):
            keeper.announce()
    made = keeper.home.next_signer()
    assert made is not None
    assert under_way(keeper.state, keeper.signer.public_key) is None
    keeper.reopen()
    assert keeper.announce().rotation.next_key == made.public_key


def test_a_crash_while_the_key_was_made_leaves_no_half_of_it(keeper: Keeper) -> None:
    public_path(keeper.home.next_identity_pem).write_bytes(b"half")
    assert keeper.announce().rotation.next_key != keeper.signer.public_key


def test_a_next_key_that_was_lost_is_announced_anew(keeper: Keeper) -> None:
    first = keeper.announce()
    keeper.home.next_identity_pem.unlink()
    second = keeper.announce()
    assert second.rotation.next_key != first.rotation.next_key
    assert under_way(keeper.state, keeper.signer.public_key) == second


def test_a_node_that_no_roster_lists_announces_nothing(world: World) -> None:
    keeper = Keeper(world)
    assert code_of(keeper.announce) == "no-roster"
    keeper.roster(replace(world.roster, nodes=world.roster.nodes[:1]))
    assert code_of(keeper.announce) == "not-in-roster"
    assert not keeper.home.next_identity_pem.exists()
    keeper.state.close()


def test_somebody_elses_key_is_not_announced(keeper: Keeper) -> None:
    police = keeper.world.homes["police"].identity_pem
    keeper.home.next_identity_pem.write_bytes(police.read_bytes())
    keeper.home.next_identity_pem.chmod(0o600)
    assert code_of(keeper.announce) == "key-in-use"


def test_an_encrypted_identity_key_gets_no_successor_in_the_clear(keeper: Keeper) -> None:
    sealed = keeper.home.path / "sealed.pem"
    new_key(sealed, b"correct horse battery staple")
    keeper.home.identity_pem.write_bytes(sealed.read_bytes())
    assert code_of(keeper.announce) == "no-next-key"
    assert not keeper.home.next_identity_pem.exists()


# -- going over --------------------------------------------------------------------------------------------


def test_the_present_key_signs_until_a_roster_lists_the_next_one(keeper: Keeper) -> None:
    assert not keeper.go_over()
    keeper.announce()
    assert not keeper.go_over()
    keeper.roster(listing(keeper.world, new_signer().public_key))
    assert not keeper.go_over()
    assert code_of(keeper.force.me) == "not-in-roster"
    assert keeper.home.next_identity_pem.exists()


def test_going_over_hands_journal_files_and_signer_to_the_next_key(keeper: Keeper) -> None:
    old_key, old_pem = keeper.signer.public_key, keeper.home.identity_pem.read_bytes()
    following = keeper.announce().rotation.next_key
    keeper.roster(listing(keeper.world, following))
    assert keeper.go_over()
    assert keeper.signer.public_key == keeper.home.signer.public_key == following
    assert keeper.force.me().identity_key == following
    # Nothing is left of the private key that ended.
    assert old_pem not in [file.read_bytes() for file in keeper.home.identity_pem.parent.iterdir()]
    assert not keeper.home.next_identity_pem.exists()
    assert not public_path(keeper.home.next_identity_pem).exists()
    [entry] = keeper.entries("key.rotate")
    assert entry.body["vkey"] == keeper.state.journal.vkey == keeper.force.me().journal_vkey
    assert VerifierKey.parse(entry.body["previous_vkey"]).public_key == old_key
    # Nothing is under way any more; the next change begins anew.
    assert not keeper.go_over()
    keeper.reopen()
    assert keeper.signer.public_key == following
    assert keeper.announce().rotation.previous_key == following


def test_two_changes_follow_each_other(keeper: Keeper) -> None:
    last = keeper.world.roster
    for _ in range(2):
        last = listing(keeper.world, keeper.announce().rotation.next_key, before=last)
        keeper.roster(last)
        assert keeper.go_over()
    keeper.reopen()
    assert keeper.force.me().identity_key == keeper.signer.public_key
    assert len(keeper.entries("key.rotate")) == 2


def test_a_listed_key_that_is_not_here_is_said_and_nothing_goes_over(keeper: Keeper) -> None:
    following = keeper.announce().rotation.next_key
    keeper.home.next_identity_pem.unlink()
    keeper.roster(listing(keeper.world, following))
    assert code_of(keeper.go_over) == "next-key-missing"
    assert not keeper.entries("key.rotate")


class Crash(BaseException):
    """The process is gone."""


def crash(*_: object, **__: object) -> Any:
    raise Crash


class Cut:
    """Stops the process at one place of `go_over`, and says what holds there."""

    def __init__(self, target: Any, name: str, *, after: bool = False) -> None:
        self.target, self.name, self.after = target, name, after

    def into(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = getattr(self.target, self.name)

        def cut(*args: Any, **named: Any) -> Any:
            if self.after:
                real(*args, **named)
            raise Crash

        monkeypatch.setattr(self.target, self.name, cut)


class NthChange(Cut):
    """Stops before the n-th change of a name among the identity's files."""

    def __init__(self, number: int) -> None:
        super().__init__(Path, "replace")
        self.number = number

    def into(self, monkeypatch: pytest.MonkeyPatch) -> None:
        left = [self.number]

        def counted(real: Callable[..., Any]) -> Callable[..., Any]:
            def cut(path: Path, *args: Any, **named: Any) -> Any:
                if "identity" in path.name:
                    left[0] -= 1
                    if left[0] == 0:
                        raise Crash
                return real(path, *args, **named)

            return cut

        for name in ("replace", "unlink"):
            monkeypatch.setattr(Path, name, counted(getattr(Path, name)))


@pytest.fixture(
    params=[False, pytest.param(True, marks=pytest.mark.long)],  # twice scrypt for each crash
    ids=["clear", "encrypted"],
)
def either(
    request: pytest.FixtureRequest, keeper: Keeper, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> Keeper:
    """A node whose identity keys, present and next, lie in the clear, or encrypted."""
    if request.param:
        passphrase = folder / "passphrase"
        passphrase.write_bytes(b"correct horse battery staple")
        passphrase.chmod(0o600)
        monkeypatch.setenv("MINSHU_PASSPHRASE_FILE", str(passphrase))
        pem = keeper.home.identity_pem
        key = load_pem_private_key(pem.read_bytes(), password=None)
        lock = BestAvailableEncryption(passphrase.read_bytes())
        pem.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock))
        new_key(keeper.home.next_identity_pem, passphrase.read_bytes())
        keeper.reopen()
    return keeper


@pytest.mark.parametrize(
    "cut",
    [
        Cut(rotation, "go_over"),
        Cut(Home, "adopt_next_identity"),
        NthChange(1),
        NthChange(2),
        NthChange(3),
        Cut(Home, "adopt_next_identity", after=True),
    ],
    ids=["before", "journal-done", "public-there", "private-not-moved", "public-not-moved", "files-done"],
)
def test_a_crash_between_any_two_steps_is_made_good_at_the_next_start(
    either: Keeper, monkeypatch: pytest.MonkeyPatch, cut: Cut
) -> None:
    keeper = either
    following = keeper.announce().rotation.next_key
    keeper.roster(listing(keeper.world, following))
    with monkeypatch.context() as broken:
        cut.into(broken)
        with pytest.raises(Crash):
            rotation.go_over(keeper.state, keeper.force, keeper.home, keeper.signer)
    keeper.reopen()
    keeper.go_over()
    assert keeper.signer.public_key == keeper.home.signer.public_key == following
    assert keeper.force.me().identity_key == following
    assert len(keeper.entries("key.rotate")) == 1
    assert not keeper.home.next_identity_pem.exists()
    assert keeper.state.journal.published == keeper.state.journal.size
    beside = public_path(keeper.home.identity_pem)
    assert not beside.exists() or load_public(beside) == following
    keeper.reopen()
    assert keeper.signer.public_key == following
    # The next change is not hindered by what the crash left.
    if b"ENCRYPTED" not in keeper.home.identity_pem.read_bytes():
        assert keeper.announce().rotation.previous_key == following
    else:
        assert code_of(keeper.announce) == "no-next-key"
    assert not public_path(keeper.home.next_identity_pem).exists() or keeper.home.next_identity_pem.exists()


def test_the_old_key_is_kept_until_the_checkpoint_of_both_is_out(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = keeper.home.identity_pem.read_bytes()
    following = keeper.announce().rotation.next_key
    keeper.roster(listing(keeper.world, following))

    def unpublished(*_: object) -> None:
        raise StateConflict("no space", code="journal-unpublished", hint="make room")

    with monkeypatch.context() as broken:
        broken.setattr(keeper.state.journal, "_publish_through", unpublished)
        for _ in range(2):
            assert code_of(keeper.go_over) == "journal-unpublished"
            assert keeper.home.identity_pem.read_bytes() == old
    assert keeper.go_over()
    assert keeper.state.journal.published == keeper.state.journal.size


def test_a_roster_may_list_a_key_whose_announcement_was_replaced(keeper: Keeper) -> None:
    pem = keeper.home.next_identity_pem
    first = keeper.announce().rotation.next_key
    kept = pem.read_bytes()
    pem.unlink()
    second = keeper.announce().rotation.next_key
    assert second != first
    # The root key holders had the first one in hand.
    keeper.roster(listing(keeper.world, first))
    assert code_of(keeper.go_over) == "next-key-missing"
    public_path(pem).unlink()
    pem.write_bytes(kept)
    assert keeper.go_over()
    assert keeper.force.me().identity_key == keeper.signer.public_key == first
    keeper.reopen()
    assert keeper.signer.public_key == first


def test_a_key_that_was_never_announced_is_not_gone_over_to(keeper: Keeper) -> None:
    keeper.announce()
    keeper.roster(listing(keeper.world, new_signer().public_key))
    assert not keeper.go_over()
    assert not keeper.entries("key.rotate")


def test_a_disk_that_fails_under_the_files_is_tried_again_and_meanwhile_every_job_is_refused(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    following = keeper.announce().rotation.next_key
    keeper.roster(listing(keeper.world, following))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", full)
        assert code_of(keeper.go_over) in {"home-unwritable", "journal-write-failed"}
    assert code_of(keeper.force.me) == "not-in-roster"
    assert keeper.go_over()
    assert keeper.force.me().identity_key == following
    assert len(keeper.entries("key.rotate")) == 1


# -- commands ----------------------------------------------------------------------------------------------


def command(*arguments: object, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main([*map(str, arguments), "--json"]) == 0
    plain: dict[str, Any] = json.loads(capsys.readouterr().out)
    return plain


def test_the_fingerprint_to_compare_is_printed_and_shown(
    keeper: Keeper, capsys: pytest.CaptureFixture[str]
) -> None:
    keeper.state.close()
    done = command("key", "rotate", "--home", keeper.home.path, capsys=capsys)
    following = keeper.home.next_signer()
    assert following is not None
    assert done["fingerprint"] == fingerprint(following.public_key)
    shown = command("key", "show", "--home", keeper.home.path, capsys=capsys)
    assert (shown["fingerprint"], shown["next"], shown["stored"]) == (
        fingerprint(keeper.home.signer.public_key),
        done["fingerprint"],
        False,
    )
    assert main(["key", "rotate", "--home", str(keeper.home.path)]) == 0
    assert done["fingerprint"] in capsys.readouterr().out
    assert main(["key", "show", "--home", str(keeper.home.path)]) == 0
    assert "not yet at the coordinator" in capsys.readouterr().out
    keeper.open()


def test_a_command_after_a_crash_speaks_with_the_key_that_the_journal_names(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    following = keeper.announce().rotation.next_key
    keeper.roster(listing(keeper.world, following))
    with monkeypatch.context() as broken:
        Cut(Home, "adopt_next_identity").into(broken)
        with pytest.raises(Crash):
            keeper.go_over()
    keeper.state.close()
    home = Home(keeper.home.path)
    done = ask(home, "rotate", {}, signer=home.signer, now=keeper.world.clock)
    assert done["identity"] == key_id(following)
    keeper.home = Home(home.path)
    keeper.open()


def test_a_journal_that_cannot_take_its_key_is_not_left_open(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    following = keeper.announce().rotation.next_key
    keeper.roster(listing(keeper.world, following))
    with monkeypatch.context() as broken:
        Cut(Home, "adopt_next_identity").into(broken)
        with pytest.raises(Crash):
            keeper.go_over()
    keeper.state.close()

    def full(_: Home) -> None:
        raise InputError("no space", code="home-unwritable", hint="free some")

    with monkeypatch.context() as broken:
        broken.setattr(Home, "adopt_next_identity", full)
        assert code_of(lambda: open_journal(Home(keeper.home.path), keeper.world.clock)) == "home-unwritable"
    keeper.home = Home(keeper.home.path)
    keeper.open()
    assert keeper.signer.public_key == following


# -- a running node ----------------------------------------------------------------------------------------


class Coordinator(Post):
    """Takes announcements, and hands out rosters that are newer than the world's first."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.announced: list[Rotation] = []
        self.newest = world.roster
        self.files = True

    def roster_for(self, name: str) -> bytes:
        return self.world.sign_roster(self.newest)

    def publish(self, roster: Roster) -> None:
        self.newest = roster
        for wire in self.wires.values():
            wire.say(roster=pb.RosterUpdate(roster=self.world.sign_roster(roster)))

    async def heard(self, name: str, message: ControlRequest) -> None:
        if message.WhichOneof("kind") != "rotation":
            await super().heard(name, message)
            return
        envelope = decode_envelope(message.rotation.rotation)
        self.announced.append(Rotation.decode(envelope.payload))
        if self.files:
            self.wires[name].say(filed=pb.StatementStored(sha256=envelope.payload_digest))


def stored(home: Home) -> bool | None:
    with read_state(home.database) as reader:
        found = under_way(reader, home.signer.public_key)
    return None if found is None else found.stored


def test_what_was_announced_while_the_node_was_off_is_sent_until_it_is_confirmed(world: World) -> None:
    home = world.homes["health"]
    keeper = Keeper(world)
    keeper.roster(world.roster)
    keeper.state.close()
    ask(home, "rotate", {}, signer=home.signer, now=world.clock)

    async def play(post: Coordinator) -> int:
        station = Station(world, post, "health")
        try:
            await until(lambda: bool(post.hellos and post.announced))
            await until(lambda: stored(home) is post.files)
            station.wire.drop()
            await until(lambda: len(post.hellos) == 2)
            await asyncio.sleep(0.1)
        finally:
            await station.close()
        return len(post.announced)

    deaf = Coordinator(world)
    deaf.files = False
    assert asyncio.run(play(deaf)) == 2
    assert asyncio.run(play(Coordinator(world))) == 1
    quiet = Coordinator(world)
    quiet.announced.append(Rotation.decode(decode_envelope(kept(home)).payload))
    assert asyncio.run(play(quiet)) == 1


def kept(home: Home) -> bytes:
    with read_state(home.database) as reader:
        found = reader.rotation()
    assert found is not None
    return found.envelope


def test_a_running_node_goes_over_without_a_restart_and_says_hello_again(world: World) -> None:
    async def play() -> None:
        post = Coordinator(world)
        station = Station(world, post, "health")
        try:
            await until(lambda: station.agent.force.roster is not None)
            done = await asyncio.to_thread(
                ask, station.home, "rotate", {}, signer=station.home.signer, now=world.clock
            )
            following = bytes.fromhex(done["next_key"])
            await until(lambda: bool(post.announced))
            post.publish(listing(world, following))
            await until(lambda: len(post.hellos) == 2)
            assert station.agent.force.me().identity_key == following
            # The catalogue of the new hello is the new key's.
            assert post.hellos[1].roster_version == 2
            document = decode_envelope(post.hellos[1].catalogue)
            assert verify(document, CATALOGUE, {key_id(following): following})
            # And so is every verdict, without anything having been restarted.
            job = post.submit(replace(world.spec(), roster_digest=post.newest.digest))
            await until(lambda: "health" in post.tasks[job].verdicts)
            assert post.tasks[job].verdicts["health"].answer == "ask"
            assert station.run(job) is RunState.AWAITING_APPROVAL
        finally:
            await station.close()

    asyncio.run(play())


def test_a_whole_job_runs_after_every_node_has_changed_its_key(world: World) -> None:
    async def play() -> None:
        post = Coordinator(world)
        async with running(world, post) as (_, stations):
            await until(lambda: all(s.agent.force.roster for s in stations.values()))
            newest = world.roster
            for name in DEPARTMENTS:
                done = stations[name].agent.desk.handle("rotate", {})
                newest = listing(world, bytes.fromhex(done["next_key"]), name, newest)
            newest = replace(newest, version=2, previous=world.roster.digest)
            post.publish(newest)
            await until(lambda: len(post.hellos) == 2 * len(DEPARTMENTS))
            job = post.submit(replace(world.spec(), roster_digest=newest.digest))
            await approve_all(post, stations, job)
            ended = (await over(post, job)).ended
            assert {end.state for end in ended.values()} == {"DONE"}, ended

    asyncio.run(play())


def test_attempts_under_way_under_the_old_key_end_with_a_reason(world: World) -> None:
    class Slow(Coordinator):
        def may_start(self, task: Any) -> bool:
            return False

    async def play() -> None:
        post = Slow(world)
        async with running(world, post) as (_, stations):
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            await answered(post, job)
            health = stations["health"]
            await until(lambda: "health" in post.tasks[job].admissions)
            done = health.agent.desk.handle("rotate", {})
            waiting = post.submit(world.spec())
            await until(lambda: health.run(waiting) is RunState.AWAITING_APPROVAL)
            post.publish(listing(world, bytes.fromhex(done["next_key"])))
            await until(lambda: all("health" in post.tasks[one].ended for one in (job, waiting)))
            assert {post.tasks[one].ended["health"].code for one in (job, waiting)} == {"key-rotated"}

    asyncio.run(play())


def test_a_current_signer_signs_with_whatever_key_it_was_given_last() -> None:
    one, other = new_signer(), new_signer()
    current = CurrentSigner(one)
    assert (current.public_key, current.sign(b"x")) == (one.public_key, one.sign(b"x"))
    current.replace(other)
    assert (current.public_key, current.sign(b"x")) == (other.public_key, other.sign(b"x"))


def test_a_rotation_of_the_future_is_dated_by_the_nodes_clock(keeper: Keeper) -> None:
    keeper.world.clock.at += timedelta(days=3)
    assert keeper.announce().rotation.issued == keeper.world.clock.at
