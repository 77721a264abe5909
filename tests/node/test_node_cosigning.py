"""What waits for witnesses, for how long, and how a node that was put back to an older copy is found out."""

import asyncio
import secrets
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from simulator import (
    DEPARTMENTS,
    Post,
    Station,
    Stream,
    Task,
    World,
    answered,
    approve_all,
    log_vkey,
    new_signer,
    over,
    running,
    until,
)

from audit.note import Checkpoint, Note
from audit.witness import CosignerKeys
from minshu.v1 import audit_pb2
from node import cli
from node.activation import InForce, own_keys
from node.cosigning import Standing
from node.desk import ask
from node.doctor import examine
from node.ledger import RowState
from node.rpc import Attempt, ControlRequest
from node.state import RunState
from protocols.channel import suites
from protocols.encoding import b64encode
from protocols.envelope import HEAD, sign
from protocols.errors import MinshuError, Refused, StateConflict
from protocols.ids import Digest, JobId
from protocols.wire import Head

pytestmark = pytest.mark.alone  # nodes that wait for witnesses, 16 s together

Letter = audit_pb2.Letter


@pytest.fixture(autouse=True)
def _faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.agent.TICK_S", 0.2)


class Censor(Post):
    """Carries letters, except those it is told to keep; nobody witnesses for a node that does not run."""

    def __init__(self, world: World, cut: Callable[[str, str, Letter], bool] = lambda *_: False) -> None:
        super().__init__(world)
        self.cut = cut

    def witnesses(self, name: str) -> bool:
        return False

    def passed_on(self, sender: str, to: str, letter: Letter) -> tuple[Letter, ...]:
        return () if self.cut(sender, to, letter) else (letter,)

    def heal(self) -> None:
        """Carry everything again, after a new welcome."""
        self.cut = lambda *_: False
        for wire in self.wires.values():
            wire.drop()


def of(name: str) -> Callable[[str, str, Letter], bool]:
    """Cut off a node that asks."""
    return lambda sender, _to, letter: sender == name and letter.WhichOneof("body") == "add_checkpoint"


def impatient(station: Station, wait_s: float = 0.3) -> Station:
    """Have a node wait no longer than so; only once nobody answers it, for the machine may be slow."""
    station.agent.cosigning._wait_s = wait_s
    return station


def code(station: Station) -> str:
    """Return what keeps a node from deciding, empty for nothing."""
    no = station.agent.cosigning.hindrance()
    return "" if no is None else no.code


def admitted(station: Station, job: JobId) -> bool:
    return any(entry.job == job for entry in station.entries("job.admitted"))


def row_of(station: Station, job: JobId, attempt: int = 1) -> RowState:
    row = station.state.ledger().row(job, attempt)
    assert row is not None
    return row.state


# -- P1: nothing leaves before others have seen it ---------------------------------------------------------


def test_p1_nothing_leaves_before_witnesses_have_seen_that_it_does(world: World) -> None:
    class Watching(Censor):
        async def open_data(self, name: str, attempt: Attempt) -> Stream:
            [entry] = stations[name].entries("job.admitted")
            opened.append((name, stations[name].state.journal.cosigned_size > entry.seq))
            return await super().open_data(name, attempt)

        async def heard(self, name: str, message: ControlRequest) -> None:
            if message.WhichOneof("kind") == "upload":
                committed = stations[name].entries("output.commit")
                seen = stations[name].state.journal.cosigned_size
                uploaded.append(all(seen > entry.seq for entry in committed))
            await super().heard(name, message)

    opened: list[tuple[str, bool]] = []
    uploaded: list[bool] = []
    stations: dict[str, Station] = {}

    async def play() -> None:
        async with running(world, Watching(world)) as (post, found):
            stations.update(found)
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            task = await over(post, job)
            assert {e.state for e in task.ended.values()} == {"DONE"}

    asyncio.run(play())
    # The matcher's department has no budget, so its policy lets it go on at once.
    assert sorted(name for name, _ in opened) == sorted(DEPARTMENTS)
    assert {name for name, seen in opened if seen} >= set(DEPARTMENTS) - {"statistics"}
    assert uploaded
    assert all(uploaded)


def test_without_a_quorum_no_data_leaves_and_the_cost_is_free_again(world: World) -> None:
    class Starting(Censor):
        def may_start(self, task: Task) -> bool:
            # From the start of the first attempt on, nobody hears from the health department.
            if task.attempt == 1:
                self.cut = of("health")
                # Long enough for what stands before the start to be seen yet.
                impatient(stations["health"], 1.0)
            return True

    stations: dict[str, Station] = {}

    async def play() -> None:
        post = Starting(world)
        async with running(world, post) as (_, found):
            stations.update(found)
            health, job = stations["health"], post.submit(world.spec())
            task = post.tasks[job]
            await approve_all(post, stations, job)
            await over(post, job)
            assert task.ended["health"].code == "no-quorum"
            assert not task.ended["health"].opened
            assert not any(header.sender == "source-2" for header, _ in post.frames)
            assert ("health", Attempt(job, 1)) not in post.streams
            assert row_of(health, job) is RowState.RELEASED
            assert not health.state.ledger().of("people")
            [entry] = health.entries("job.failed")
            assert (entry.body["code"], entry.body["opened"], entry.body["freed"]) == (
                "no-quorum",
                False,
                True,
            )
            impatient(health, 300.0)
            post.heal()
            await until(lambda: code(health) == "" and health.state.journal.cosigned_size > entry.seq)
            post.again(job)
            await over(post, job)
            assert {e.state for e in post.tasks[job].ended.values()} == {"DONE"}
            assert row_of(health, job, 2) is RowState.CHARGED

    asyncio.run(play())


def test_a_release_is_held_until_its_quorum_and_then_leaves_unchanged(world: World) -> None:
    class Opening(Censor):
        async def open_data(self, name: str, attempt: Attempt) -> Stream:
            if name == "police":
                self.cut = of("police")
                impatient(stations["police"])
            return await super().open_data(name, attempt)

    stations: dict[str, Station] = {}

    async def play() -> None:
        post = Opening(world)
        async with running(world, post) as (_, found):
            stations.update(found)
            police = stations["police"]
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            await until(lambda: police.run(job) is RunState.RELEASING)
            committed = police.entries("output.commit")
            # It was tried, waited for as long as is set, and is tried again.
            await until(lambda: police.home.log.read_text().count("warning no-quorum") >= 2)
            assert not post.tasks[job].uploads
            assert "police" not in post.tasks[job].ended
            [records] = [o for o in police.state.outputs(job) if o.output_class == "B"]
            with pytest.raises(Refused) as refused:
                police.agent.desk.handle("open", {"release": records.release})
            assert refused.value.code == "not-cosigned"
            assert row_of(police, job) is RowState.CHARGED
            post.heal()
            task = await over(post, job)
            assert task.ended["police"].state == "DONE"
            assert police.entries("output.commit") == committed
            police.agent.desk.handle("open", {"release": records.release})
            assert police.entries("output.released")[-1].body["release"] == records.release

    asyncio.run(play())


def test_a_list_stays_closed_on_a_node_that_was_stopped_before_its_quorum(world: World) -> None:
    home = world.homes["police"]

    async def play() -> str:
        post = Censor(world)
        async with running(world, post) as (_, stations):
            job = post.submit(world.spec())
            post.cut = lambda *letter: ("police", Attempt(job, 1)) in post.streams and of("police")(*letter)
            await approve_all(post, stations, job)
            await until(lambda: stations["police"].run(job) is RunState.RELEASING)
            [records] = [o for o in stations["police"].state.outputs(job) if o.output_class == "B"]
            return records.release

    release = asyncio.run(play())
    with pytest.raises(Refused) as caught:
        ask(home, "open", {"release": release}, signer=home.signer, now=world.clock)
    assert caught.value.code == "node-off"


def test_the_time_a_run_may_take_begins_after_the_wait_and_a_cancellation_ends_that(world: World) -> None:
    for name in DEPARTMENTS:
        world.activate(name, max_runtime_s=1, quorum=2)

    async def play() -> None:
        post = Censor(world)
        async with running(world, post) as (_, stations):
            job = post.submit(world.spec())
            task = await answered(post, job)
            post.cut = lambda *_: task.started
            await approve_all(post, stations, job)
            await until(lambda: all(admitted(station, job) for station in stations.values()))
            await asyncio.sleep(1.2)
            assert {station.run(job) for station in stations.values()} == {RunState.RUNNING}
            post.stop(job, "cancelled-by-requester")
            await over(post, job)
            assert {e.code for e in task.ended.values()} == {"cancelled-by-requester"}
            assert not any(e.opened for e in task.ended.values())
            assert row_of(stations["health"], job) is RowState.RELEASED
            assert not post.streams

    asyncio.run(play())


# -- hindrances --------------------------------------------------------------------------------------------


def test_nothing_is_decided_by_a_policy_that_nobody_else_has_seen(world: World) -> None:
    async def play() -> None:
        post = Censor(world)
        async with running(world, post) as (_, stations):
            health = stations["health"]
            job = post.submit(world.spec())
            await answered(post, job)
            post.cut = of("health")
            newest = health.state.policy()
            assert newest is not None
            policy = world.policy("health", version=2, previous=newest.digest)
            health.agent.desk.handle("policy", {"envelope": b64encode(policy)})
            assert code(health) == "policy-unwitnessed"
            health.approve_fully(job)
            assert health.run(job) is RunState.AWAITING_APPROVAL
            later = post.submit(world.spec(expected_use="另一问"))
            await until(lambda: "police" in post.tasks[later].verdicts)
            assert "health" not in post.tasks[later].verdicts
            post.heal()
            await until(lambda: health.run(job) is RunState.CHECKING)
            await until(lambda: "health" in post.tasks[later].verdicts)
            assert post.tasks[later].verdicts["health"].answer == "ask"

    asyncio.run(play())


def test_an_offer_waits_for_a_node_that_has_just_started_but_not_for_ever(world: World) -> None:
    async def play() -> None:
        post = Censor(world, lambda _sender, to, letter: letter.WhichOneof("body") == "ask_head")
        async with running(world, post, ready=False) as (_, stations):
            health, task = stations["health"], post.tasks[post.submit(world.spec())]
            await until(lambda: all(station.agent._unanswered for station in stations.values()))
            assert code(health) == "heads-unknown"
            assert code(stations["statistics"]) == "heads-unknown"  # though its policy waits for nobody
            assert not task.verdicts
            for station in stations.values():
                impatient(station)
            await answered(post, next(iter(post.tasks)))
            verdict = task.verdicts["health"]
            assert (verdict.answer, verdict.code) == ("refuse", "heads-unknown")
            assert "见证" in verdict.sentence_zh
            post.heal()
            await until(lambda: code(health) == "")
            later = post.submit(world.spec())
            assert (await answered(post, later)).verdicts["health"].answer == "ask"

    asyncio.run(play())


def test_new_jobs_are_refused_while_entries_wait_too_long_and_taken_again_after(world: World) -> None:
    async def play() -> None:
        post = Censor(world)
        async with running(world, post) as (_, stations):
            health = stations["health"]
            waiting = post.submit(world.spec())
            await answered(post, waiting)
            post.cut = of("health")
            health.state.journal.record("clock.step", {})
            impatient(health)
            await until(lambda: code(health) == "no-quorum")
            refused = post.submit(world.spec())
            verdict = (await answered(post, refused)).verdicts["health"]
            assert (verdict.answer, verdict.code) == ("refuse", "no-quorum")
            health.approve_fully(waiting)  # what waits, waits on
            assert health.run(waiting) is RunState.AWAITING_APPROVAL
            impatient(health, 300.0)
            assert code(health) == ""
            post.heal()
            await until(lambda: health.state.journal.cosigned_size == health.state.journal.size)
            assert (await answered(post, post.submit(world.spec()))).verdicts["health"].answer == "ask"
            await until(lambda: health.run(waiting) is RunState.CHECKING)

    asyncio.run(play())


def test_one_silent_witness_of_three_holds_up_nothing(world: World) -> None:
    async def play() -> None:
        post = Censor(world)
        async with running(world, post, ["police", "human-resources", "health"]) as (_, stations):
            await until(
                lambda: all(s.state.journal.cosigned_size == s.state.journal.size for s in stations.values())
            )
            assert {code(station) for station in stations.values()} == {""}

    asyncio.run(play())


# -- P5: a node that was put back to an older copy ---------------------------------------------------------


@pytest.fixture(scope="module")
def put_back(founded: World, memory: Path) -> World:
    """A world in which the health department did a job, and its home was then put back to before that."""
    world = founded.clone(memory / "put-back" / "world")
    home = world.homes["health"]
    backup = memory / "put-back" / "backup"
    shutil.copytree(home.path, backup)

    async def play() -> None:
        async with running(world, Censor(world)) as (post, stations):
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            await over(post, job)
            health = stations["health"].state.journal
            await until(lambda: health.cosigned_size == health.size)

    asyncio.run(play())
    shutil.rmtree(home.path)
    shutil.copytree(backup, home.path)
    return world


@pytest.fixture
def restored(put_back: World, folder: Path) -> World:
    return put_back.clone(folder / "restored")


def rolled_back(station: Station) -> StateConflict:
    """Return what a node ended with."""
    error = station.task.exception()
    assert isinstance(error, StateConflict)
    return error


def test_p5_a_restored_backup_is_found_out_and_ends(restored: World) -> None:
    async def play() -> None:
        async with running(restored, Censor(restored), ready=False) as (post, stations):
            health = stations["health"]
            job = post.submit(restored.spec())
            await until(health.task.done)
            error = rolled_back(health)
            assert error.code == "journal-rolled-back"
            assert "minshu-node journal successor" in error.hint
            assert "health" not in post.tasks[job].verdicts
            assert not health.entries("job.received")

    asyncio.run(play())


class Hostile(Censor):
    """Does something else with the answers that the health department gets about its own log."""

    def __init__(self, world: World, lie: Callable[[str, Letter], Letter | None]) -> None:
        super().__init__(world)
        self.lie: Callable[[str, Letter], Letter | None] | None = lie

    def passed_on(self, sender: str, to: str, letter: Letter) -> tuple[Letter, ...]:
        if self.lie is None or to != "health" or letter.WhichOneof("body") != "head":
            return (letter,)
        told = self.lie(sender, letter)
        return () if told is None else (told,)


def stale(world: World) -> Callable[[str, Letter], Letter]:
    """Replay what witnesses said before they saw anything, to another question."""

    def lie(sender: str, letter: Letter) -> Letter:
        home = world.homes[sender]
        old = Head(secrets.token_bytes(32), world.homes["health"].origin, 0, None, home.name, world.clock())
        statement = sign(HEAD, old.encode(), [home.signer]).encode()
        letter.head.CopyFrom(audit_pb2.HeadSaid(statement=statement))
        return letter

    return lie


def forged(world: World) -> Callable[[str, Letter], Letter]:
    """Answer in the witness's name, with a key that is not its own, that nothing was seen."""

    def lie(sender: str, letter: Letter) -> Letter:
        said = Head.decode(Envelope.payload_of(letter.head.statement))
        empty = replace(said, size=0, root=None)
        statement = sign(HEAD, empty.encode(), [world.coordinator]).encode()
        letter.head.CopyFrom(audit_pb2.HeadSaid(statement=statement))
        return letter

    return lie


class Envelope:
    """Reads what a hostile coordinator may read, too."""

    @staticmethod
    def payload_of(data: bytes) -> bytes:
        from protocols.envelope import decode_envelope

        return decode_envelope(data).payload


def swapped(world: World) -> Callable[[str, Letter], Letter]:
    """Hand every answer on as another witness's."""

    def lie(sender: str, letter: Letter) -> Letter:
        others = [name for name in DEPARTMENTS if name not in (sender, "health")]
        setattr(letter, "from", world.homes[others[0]].name)
        return letter

    return lie


def unproven(_: World) -> Callable[[str, Letter], Letter]:
    """Take away the checkpoint that would prove it."""

    def lie(_sender: str, letter: Letter) -> Letter:
        letter.head.checkpoint = b""
        return letter

    return lie


def silent(_: World) -> Callable[[str, Letter], None]:
    return lambda _sender, _letter: None


@pytest.mark.parametrize("lies", [stale, forged, swapped, unproven, silent])
def test_p5_no_lie_of_the_coordinator_makes_a_restored_backup_work(
    restored: World, lies: Callable[[World], Callable[[str, Letter], Letter | None]]
) -> None:
    async def play() -> None:
        post = Hostile(restored, lies(restored))
        async with running(restored, post, ready=False) as (_, stations):
            health = stations["health"]
            job = post.submit(restored.spec())
            await until(lambda: "police" in post.tasks[job].verdicts)
            await asyncio.sleep(0.2)
            assert code(health) == "heads-unknown"
            assert not health.entries("job.received")
            assert "health" not in post.tasks[job].verdicts
            # Nothing of the other history was shown to anybody as this log's.
            assert health.state.journal.cosigned_size == 0
            post.lie = None
            post.heal()
            await until(health.task.done)
            assert rolled_back(health).code == "journal-rolled-back"

    asyncio.run(play())


def test_p5_a_restored_backup_that_has_grown_longer_than_it_was_is_found_out_too(restored: World) -> None:
    state = restored.open("health")
    for _ in range(60):
        state.journal.record("clock.step", {"step_ms": 1})
    state.close()

    async def play() -> None:
        async with running(restored, Censor(restored), ready=False) as (_, stations):
            health = stations["health"]
            await until(health.task.done)
            assert rolled_back(health).code == "journal-rolled-back"

    asyncio.run(play())


def test_the_command_of_a_restored_backup_ends_with_1_and_says_what_to_do(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from node.cosigning import rolled_back as error

    def run_node(*_: object) -> None:
        raise error("police.gz.example/node-a", 12, 7)

    monkeypatch.setattr("node.run.run_node", run_node)
    assert cli.main(["run", "--home", str(world.homes["health"].path)]) == 1
    said = capsys.readouterr().err
    assert "12 entries" in said
    assert "minshu-node journal successor --reason" in said


def test_a_witness_that_lies_about_more_neither_ends_a_node_nor_holds_it_up(world: World) -> None:
    """It claims a head of a million entries; only this log's own signature would prove that."""

    class Liar(Censor):
        def passed_on(self, sender: str, to: str, letter: Letter) -> tuple[Letter, ...]:
            if sender == "police" and letter.WhichOneof("body") == "head":
                said = Head.decode(Envelope.payload_of(letter.head.statement))
                more = replace(said, size=10**6, root=Digest("sha256:" + "7" * 64))
                signer = self.world.homes["police"].signer
                checkpoint = Note.decode(world_checkpoint).encode()
                letter.head.statement = sign(HEAD, more.encode(), [signer]).encode()
                letter.head.checkpoint = checkpoint
                lied.append(to)
            return (letter,)

    lied: list[str] = []
    world_checkpoint = (world.homes["health"].journal / "checkpoint").read_bytes()

    async def play() -> None:
        # Statistics counts on all three others, so it will not be ready.
        async with running(world, Liar(world), ready=False) as (_, stations):
            health = stations["health"]
            await until(lambda: "health" in lied and code(health) == "")
            await until(lambda: health.state.journal.cosigned_size == health.state.journal.size)
            assert not health.task.done()
            assert code(health) == ""

    asyncio.run(play())


# -- a roster with keys that are not this node's -----------------------------------------------------------


@pytest.mark.parametrize("what", ["journal_vkey", "witness_vkeys", "recipient_key"])
def test_a_node_refuses_a_roster_that_lists_it_with_keys_not_its_own(world: World, what: str) -> None:
    home = world.homes["health"]
    mine = world.roster.node(home.name)
    assert mine is not None
    cosigner = CosignerKeys(home.cosigner.name, new_signer())
    swapped_in: dict[str, Any] = {
        "journal_vkey": log_vkey(home.origin, world.coordinator),
        "witness_vkeys": tuple(map(str, cosigner.vkeys)),
        "recipient_key": suites.public_key(
            world.suite, suites.new_private_key(world.suite, secrets.token_bytes)
        ),
    }
    nodes = tuple(
        replace(node, **{what: swapped_in[what]}) if node == mine else node for node in world.roster.nodes
    )
    world.roster_envelope = world.sign_roster(replace(world.roster, nodes=nodes))

    async def play() -> None:
        async with running(world, ready=False) as (post, stations):
            verdict = (await answered(post, post.submit(world.spec()))).verdicts["health"]
            assert (verdict.answer, verdict.code) == ("refuse", "roster-keys-differ")
            assert "密钥" in verdict.sentence_zh
            # Whoever holds the node sees it as well.
            findings = {f.what: f for f in examine(stations["health"].home, world.clock())}
            assert findings["roster"].state == "error"

    asyncio.run(play())


# -- what people see ---------------------------------------------------------------------------------------


def seen(world: World, name: str = "health") -> Standing:
    home = world.homes[name]
    state = world.open(name)
    try:
        force = InForce.load(state, home.name, home.signer.public_key)
        force.own = own_keys(home)
        force.me()
        return Standing.of(home.journal, state, force)
    finally:
        state.close()


def test_status_and_doctor_say_how_far_the_journal_is_cosigned(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def play(cut: Callable[[str, str, Letter], bool]) -> None:
        async with running(world, Censor(world, cut), ready=False) as (_, stations):
            journal = stations["health"].state.journal
            await until(lambda: journal.size > 3)
            await until(lambda: bool(cut is not never) or journal.cosigned_size == journal.size)

    def never(*_: object) -> bool:
        return False

    asyncio.run(play(never))
    standing = seen(world)
    assert standing.covered == standing.size > 0
    assert 2 <= len(standing.by) <= 3
    assert (standing.witnesses.quorum, standing.since) == (2, None)
    home = world.homes["health"]
    monkeypatch.setattr("node.page._now", world.clock)
    assert cli.main(["status", "--home", str(home.path)]) == 0
    assert f"  cosigned {standing.size} of {standing.size} entries, by " in capsys.readouterr().out
    assert {f.state for f in examine(home, world.clock()) if f.what == "witnesses"} == {"ok"}

    state = world.open("health")
    state.journal.record("clock.step", {})
    state.close()
    made = world.clock.at
    world.clock.at = made.replace(hour=made.hour + 1)
    standing = seen(world)
    assert (standing.size - standing.covered, standing.since) == (1, made)
    assert "the rest waits since" in standing.line()
    [finding] = [f for f in examine(home, world.clock()) if f.what == "witnesses"]
    assert finding.state == "error"
    assert "node.log" in finding.hint


def test_doctor_says_where_no_quorum_is_possible(world: World) -> None:
    nodes = tuple(
        replace(node, witness_vkeys=() if node.name != world.homes["health"].name else node.witness_vkeys)
        for node in world.roster.nodes
    )
    world.roster_envelope = world.sign_roster(replace(world.roster, nodes=nodes))

    async def play() -> None:
        async with running(world, ready=False) as (post, stations):
            verdict = (await answered(post, post.submit(world.spec()))).verdicts["health"]
            assert (verdict.answer, verdict.code) == ("refuse", "no-quorum-possible")
            [finding] = [f for f in examine(stations["health"].home, world.clock()) if f.what == "witnesses"]
            assert finding.state == "error"
            assert "every job is refused" in finding.found

    asyncio.run(play())


def test_a_damaged_checkpoint_is_named(world: World) -> None:
    folder = world.homes["health"].journal
    (folder / "checkpoint.cosigned").write_bytes(b"no note")
    with pytest.raises(MinshuError):
        seen(world)


def test_cosignatures_stand_beside_the_logs_own_signature(world: World) -> None:
    async def play() -> None:
        async with running(world, Censor(world)) as (_, stations):
            for station in stations.values():
                journal = station.state.journal
                await until(lambda j=journal: j.cosigned_size == j.size)  # type: ignore[misc]  # mypy: lambda default
                note = Note.decode((station.home.journal / "checkpoint.cosigned").read_bytes())
                assert Checkpoint.decode(note.text).size == journal.size
                assert note.signatures[0].name == journal.origin
                others = {line.name.removesuffix("/witness/1") for line in note.signatures[1:]}
                assert others <= {home.name for home in world.homes.values()} - {station.home.name}
                assert len(others) >= 2

    asyncio.run(play())


def test_a_witness_that_comes_later_is_asked_because_it_writes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing is left to the clock: whoever does not answer at once is not asked again.
    monkeypatch.setattr("node.cosigning.HEAD_S", 0.1)
    for name in ("ASK_FIRST_S", "ASK_OFTEN_S", "ASK_SELDOM_S"):
        monkeypatch.setattr(f"node.cosigning.{name}", 1000.0)

    async def play() -> None:
        post = Censor(world)
        async with running(world, post, ["health"], ready=False) as (_, stations):
            health = stations["health"]
            await until(lambda: code(health) == "heads-unknown")
            await asyncio.sleep(0.3)
            for name in ("police", "human-resources"):
                stations[name] = Station(world, post, name)
            await until(lambda: code(health) == "")
            await until(lambda: health.state.journal.cosigned_size == health.state.journal.size)

    asyncio.run(play())
