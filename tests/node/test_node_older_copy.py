"""A node that was put back to an older copy of itself, before anybody has told it so, and what follows."""

import asyncio
import contextlib
import secrets
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from simulator import (
    DEPARTMENTS,
    Post,
    Station,
    World,
    approve_all,
    over,
    running,
    until,
)

from audit.note import Checkpoint, Note
from audit.witness import encode_request
from minshu.v1 import audit_pb2
from node import generation
from node.cli import main
from node.desk import ask
from node.gate import MAX_OFFER_BYTES
from node.generation import begin
from node.home import Home
from node.letters import Later
from node.rpc import AddCheckpoint, Attempt, ControlRequest, Offer
from node.stops import HISTORY_GAP
from protocols.encoding import b64encode
from protocols.envelope import JOB, decode_envelope, sign
from protocols.errors import MinshuError, StateConflict
from protocols.ids import JobId

pytestmark = pytest.mark.alone  # whole nodes, 5 s together

Letter = audit_pb2.Letter


class Withheld(Post):
    """A coordinator that keeps from one node what others saw of its log."""

    def __init__(self, world: World, name: str = "") -> None:
        super().__init__(world)
        self.kept_from = name

    def witnesses(self, name: str) -> bool:
        return not self.kept_from

    def passed_on(self, sender: str, to: str, letter: Letter) -> tuple[Letter, ...]:
        asked = letter.WhichOneof("body") == "ask_head"
        return () if asked and sender == self.kept_from else (letter,)

    async def heard(self, name: str, message: ControlRequest) -> None:
        if message.WhichOneof("kind") != "outcome":
            await super().heard(name, message)


@pytest.fixture(scope="module")
def done(founded: World, memory: Path) -> tuple[World, JobId]:
    """A world in which one job has been through; tests take copies of it."""
    world = founded.clone(memory / "older-copy")

    async def play() -> JobId:
        async with running(world) as (post, stations):
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            await over(post, job)
            await until(lambda: all(map(covered, stations.values())))
            return job

    return world, asyncio.run(play())


@pytest.fixture
def town(done: tuple[World, JobId], folder: Path) -> tuple[World, JobId]:
    return done[0].clone(folder / "town"), done[1]


def covered(station: Station) -> bool:
    journal = station.state.journal
    return journal.cosigned_size == journal.size


def copy_of(home: Home, folder: Path) -> Path:
    return Path(shutil.copytree(home.path, folder / "backup"))


def put_back(home: Home, backup: Path) -> None:
    shutil.rmtree(home.path)
    shutil.copytree(backup, home.path)


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(MinshuError) as caught:
        call()
    assert caught.value.hint
    return caught.value.code


# -- what leaves a node at its desk ------------------------------------------------------------------------


def test_a_stopped_list_stays_closed_on_a_copy_from_before_the_stop(
    town: tuple[World, JobId], folder: Path
) -> None:
    world, job = town
    home = world.homes["police"]
    backup = copy_of(home, folder)

    async def stop() -> dict[str, str]:
        async with running(world) as (_, stations):
            police = stations["police"]
            [records] = [one for one in police.state.outputs(job) if one.output_class == "B"]
            police.agent.desk.handle("stop", {"envelope": b64encode(world.stop("police", "all"))})
            await until(lambda: covered(police))
            wanted = {"release": records.release}
            assert refused(lambda: police.agent.desk.handle("open", wanted)) == "stopped"
            return wanted

    async def put_back_and_asked() -> str:
        async with running(world, Withheld(world, "police"), ready=False) as (_, stations):
            police = stations["police"]
            await until(lambda: "connected" in home.log.read_text())
            assert not police.task.done()
            return refused(lambda: police.agent.desk.handle("open", wanted))

    wanted = asyncio.run(stop())
    put_back(home, backup)
    assert asyncio.run(put_back_and_asked()) == "heads-unknown"
    put_back(home, backup)
    assert refused(lambda: ask(home, "open", wanted, signer=home.signer, now=world.clock)) == "node-off"


def test_a_second_outcome_does_not_leave_a_copy_from_before_the_first(
    town: tuple[World, JobId], folder: Path
) -> None:
    world, job = town
    home = world.homes["police"]
    backup = copy_of(home, folder)
    first, second = ({"job": job, "checked": 12, "confirmed": figure, "note": ""} for figure in (6, 7))

    async def file() -> None:
        async with running(world, Withheld(world)) as (_, stations):
            desk = stations["police"].agent.desk
            desk.handle("outcome", first)
            assert refused(lambda: desk.handle("outcome", second)) == "small-count"

    async def put_back_and_filed() -> str:
        async with running(world, Withheld(world, "police"), ready=False) as (_, stations):
            return refused(lambda: stations["police"].agent.desk.handle("outcome", second))

    asyncio.run(file())
    put_back(home, backup)
    assert asyncio.run(put_back_and_filed()) == "heads-unknown"
    put_back(home, backup)
    assert refused(lambda: ask(home, "outcome", second, signer=home.signer, now=world.clock)) == "node-off"


# -- what it cosigns ---------------------------------------------------------------------------------------


def test_a_witness_that_was_put_back_cosigns_no_other_branch_before_it_knows_its_own_heads(
    town: tuple[World, JobId], folder: Path
) -> None:
    world, _ = town
    backup = copy_of(world.homes["health"], folder)

    async def go_on() -> None:
        async with running(world) as (_, stations):
            stations["police"].state.journal.record("clock.step", {})
            await until(lambda: all(map(covered, stations.values())))

    async def put_back_and_asked() -> None:
        async with running(world, Withheld(world, "health"), ready=False) as (_, stations):
            health, police = stations["health"], stations["police"]
            journal = police.state.journal
            # It answers what it saw, or nobody could begin.
            await until(lambda: police.agent.cosigning.knows)
            seen = health.state.witness_head(journal.origin)
            assert seen is not None
            old = Checkpoint.decode(Note.decode(seen).text).size
            assert old < journal.published
            proof = journal.consistency_proof(old, journal.published)
            body = encode_request(old, proof, journal.checkpoint())
            assert isinstance(health.agent.witness.cosign("", AddCheckpoint(body)), Later)
            assert health.state.witness_head(journal.origin) == seen
            assert not health.agent.cosigning.knows

    asyncio.run(go_on())
    put_back(world.homes["health"], backup)
    asyncio.run(put_back_and_asked())


def test_nodes_that_all_start_at_once_with_empty_memories_get_their_cosignatures(world: World) -> None:
    async def play() -> None:
        async with running(world, Withheld(world), DEPARTMENTS, ready=False) as (_, stations):
            assert not any(station.state.witness_heads() for station in stations.values())
            await until(lambda: all(station.agent.cosigning.knows for station in stations.values()))
            for station in stations.values():
                await until(lambda station=station: covered(station))  # type: ignore[misc]  # mypy: lambda default

    asyncio.run(play())


def test_after_a_gap_a_node_cosigns_with_other_keys(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has forgotten it could contradict under the old ones; those stay, and a crash loses none."""
    home = world.homes["health"]
    world.open("health").close()
    files = (home.witness_pem, home.witness_mldsa_pem)
    before, kept = home.witness_vkeys, [file.read_bytes() for file in files]

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(generation, "write_durably", full)
        with pytest.raises(MinshuError):
            begin(home, "restored-backup", world.clock)
    begin(home, "restored-backup", world.clock)
    aside = [file.with_name(f"{file.stem}.1.pem") for file in files]
    assert [file.read_bytes() for file in aside] == kept
    after = Home(home.path).witness_vkeys
    assert not {*before} & {*after}
    assert after == home.witness_vkeys
    assert [file.stat().st_mode & 0o777 for file in (*files, *aside)] == [0o600] * 4
    # Whose signature a roster of before would count.
    listed = world.roster.node(home.name)
    assert listed is not None
    assert listed.witness_vkeys == before


# -- a journal that was not begun to the end ---------------------------------------------------------------


def test_a_new_journal_that_was_begun_without_its_stop_is_not_run(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Killed(BaseException):
        pass

    def die(*_: Any) -> None:
        raise Killed

    home = world.homes["health"]
    with monkeypatch.context() as broken:
        broken.setattr(generation, "_carry_over", die)
        with pytest.raises(Killed):
            begin(home, "restored-backup", world.clock)
    home.generation_file.write_bytes(b"2\n")

    async def start() -> None:
        state = world.open("health")
        monkeypatch.setattr(world, "open", lambda *_: state)
        try:
            await Station(world, Post(world), "health").close()
        finally:
            monkeypatch.delattr(world, "open")
            with contextlib.suppress(sqlite3.ProgrammingError):  # by the station, if there was one
                state.close()

    with pytest.raises(StateConflict) as caught:
        asyncio.run(start())
    assert caught.value.code == "successor-unfinished"
    assert "write 1 into journal.generation" in caught.value.hint
    wanted = {"envelope": b64encode(world.stop("health", "all"))}
    assert refused(lambda: ask(home, "stop", wanted, signer=home.signer, now=world.clock)) == (
        "successor-unfinished"
    )
    # As the hint says, and then it is what it should have been.
    home.generation_file.unlink()
    reason = ["--reason", "restored-backup"]
    assert main(["journal", "successor", *reason, "--yes", "--home", str(home.path)]) == 0
    capsys.readouterr()
    asyncio.run(start())
    with contextlib.closing(world.open("health")) as state:
        kinds = [(entry.kind, entry.body.get("code")) for entry in state.journal.entries()]
    assert kinds[:2] == [("log.open", None), ("log.successor", "restored-backup")]
    assert ("stop.applied", HISTORY_GAP) in kinds


# -- what waits for a node that has just started -----------------------------------------------------------


def test_only_offers_that_an_analyst_signed_wait_in_memory(world: World) -> None:
    async def play() -> None:
        async with running(world, Withheld(world, "health"), ready=False) as (_, stations):
            health = stations["health"]
            await until(lambda: "connected" in health.home.log.read_text())
            agent = health.agent
            assert agent.gate.settling()
            spec = world.spec()
            genuine = world.sign_job(spec)
            payload = decode_envelope(genuine).payload
            stranger = world.staff["police"].dpo
            bad = [
                sign(JOB, payload, [stranger]).encode(),
                genuine + b" " * MAX_OFFER_BYTES,
                secrets.token_bytes(1 << 20),
            ]
            for number, data in enumerate(bad, start=2):
                await agent.take(Offer(Attempt(spec.job_id, number), data))
            assert not agent._unanswered
            await agent.take(Offer(Attempt(spec.job_id, 1), genuine))
            assert agent._unanswered == {Attempt(spec.job_id, 1): genuine}

    asyncio.run(play())
