"""A node that dies or loses its disk: nothing half-done, nothing said twice in two ways."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from simulator import (
    Fragile,
    Post,
    Station,
    Task,
    World,
    approve_all,
    over,
    running,
    until,
)
from tls_authority import Authority

from audit.folder import Folder
from audit.log import Journal
from node.cli import main
from node.journal import open_journal
from node.ledger import RowState
from node.rpc import Attempt
from node.state import RunState, State, open_state
from protocols.envelope import decode_envelope
from protocols.errors import StateConflict
from protocols.ids import JobId
from protocols.jobs.crosscheck import CONTENT_KEY, ROWS
from protocols.wire import JobSpec

pytestmark = pytest.mark.alone  # a hundred nodes started and killed, a minute together

TESTS = Path(__file__).resolve().parents[1]


async def crash(
    world: World, post: Post, stations: dict[str, Station], name: str, kind: str, *, before: bool
) -> JobId:
    """Run a job until one node dies at an entry of `kind`; return the job."""
    await stations.pop(name).close()
    state = type("Doomed", (Fragile,), {"at": kind, "before": before})
    stations[name] = Station(world, post, name, state)
    await until(lambda: post.wires[name].up and post.wires[name] is stations[name].wire)
    job = post.submit(world.spec())
    await approve_all(post, stations, job)
    await until(lambda: stations[name].state.dead)  # type: ignore[attr-defined]  # a Fragile state
    await asyncio.sleep(0.1)
    await stations.pop(name).kill()
    return job


async def back(world: World, post: Post, stations: dict[str, Station], name: str) -> Station:
    """Start a node again."""
    stations[name] = Station(world, post, name)
    await until(lambda: post.wires[name] is stations[name].wire and stations[name].wire.up)
    return stations[name]


def test_a_node_that_dies_before_commit_point_1_has_sent_and_charged_nothing(own_world: World) -> None:
    async def play() -> None:
        async with running(own_world) as (post, stations):
            job = await crash(own_world, post, stations, "health", "job.admitted", before=True)
            assert "source-2" not in {header.sender for header, _ in post.frames}
            health = await back(own_world, post, stations, "health")
            run = health.state.run(Attempt(job, 1))
            assert run is not None
            assert (run.state, run.code, run.charged, run.opened) == (
                RunState.FAILED,
                "node-restarted",
                False,
                False,
            )
            [entry] = health.entries("job.failed")
            assert (entry.body["code"], entry.body["opened"]) == ("node-restarted", False)
            assert not health.entries("job.admitted")
            task = post.tasks[job]
            await until(lambda: "health" in task.ended)
            assert task.ended["health"].code == "node-restarted"

    asyncio.run(play())


def test_a_node_that_dies_after_commit_point_1_reports_it_and_a_new_attempt_succeeds(
    own_world: World,
) -> None:
    async def play() -> None:
        async with running(own_world) as (post, stations):
            job = await crash(own_world, post, stations, "health", "job.admitted", before=False)
            assert "source-2" not in {header.sender for header, _ in post.frames}
            health = await back(own_world, post, stations, "health")
            run = health.state.run(Attempt(job, 1))
            assert run is not None
            assert (run.state, run.code, run.charged) == (RunState.FAILED, "node-restarted", True)
            [entry] = health.entries("job.failed")
            assert entry.body["opened"] is True
            await over(post, job)
            post.again(job)
            task = await over(post, job)
            # The same approvals serve the same job's next attempt.
            assert {e.state for e in task.ended.values()} == {"DONE"}
            assert [e.attempt for e in health.entries("job.admitted")] == [1, 2]

    asyncio.run(play())


def test_a_node_that_dies_before_commit_point_2_has_released_nothing(own_world: World) -> None:
    async def play() -> None:
        async with running(own_world) as (post, stations):
            job = await crash(own_world, post, stations, "police", "output.commit", before=True)
            assert not post.tasks[job].uploads
            home = own_world.homes["police"]
            assert list(home.releases.glob("*.sealed"))  # written, never committed
            police = await back(own_world, post, stations, "police")
            assert not list(home.releases.iterdir())
            assert not list(home.outbox.iterdir())
            assert not police.state.outputs(job)
            assert not police.entries("output.")

    asyncio.run(play())


@pytest.mark.parametrize("kind", ["output.commit", "output.released"])
def test_a_committed_release_is_sent_again_with_identical_bytes(own_world: World, kind: str) -> None:
    async def play() -> None:
        async with running(own_world) as (post, stations):
            job = await crash(own_world, post, stations, "police", kind, before=kind == "output.released")
            task = post.tasks[job]
            before = post.release(job) if task.uploads else b""
            police = await back(own_world, post, stations, "police")
            [output] = [o for o in police.state.outputs(job) if o.output_class == "A"]
            await until(lambda: police.run(job) is RunState.DONE)
            [(release, pieces)] = task.uploads.items()
            sent = b"".join(p.piece for p in pieces[-1:])
            assert release == output.release
            assert not before or before == sent
            assert len(police.entries("output.commit")) == 2
            assert len(police.entries("output.released")) == 1
            await until(lambda: task.ended.get("police") is not None)
            assert task.ended["police"].state == "DONE"

    asyncio.run(play())


def test_a_job_whose_release_exists_is_not_computed_again(own_world: World) -> None:
    async def play() -> None:
        async with running(own_world) as (post, stations):
            job = post.submit(own_world.spec())
            await approve_all(post, stations, job)
            await over(post, job)
            post.again(job)
            task = post.tasks[job]
            await until(lambda: "police" in task.verdicts)
            assert (task.verdicts["police"].answer, task.verdicts["police"].code) == (
                "refuse",
                "output-exists",
            )

    asyncio.run(play())


def test_a_release_that_cannot_be_written_ends_the_run_and_leaves_nothing(own_world: World) -> None:
    async def play() -> None:
        async with running(own_world) as (post, stations):
            outbox = own_world.homes["police"].outbox
            outbox.rmdir()
            outbox.write_text("in the way")
            job = post.submit(own_world.spec())
            await approve_all(post, stations, job)
            task = await over(post, job)
            assert task.ended["police"].code == "release-write-failed"
            police = stations["police"]
            assert not police.state.outputs(job)
            assert not police.entries("output.")
            assert not list(police.home.releases.iterdir())
            assert police.entries("job.failed")[-1].body["code"] == "release-write-failed"

    asyncio.run(play())


def test_a_damaged_release_is_never_sent(own_world: World) -> None:
    async def play() -> None:
        async with running(own_world) as (post, stations):
            job = await crash(own_world, post, stations, "police", "output.commit", before=False)
            [sealed] = own_world.homes["police"].outbox.glob("*.sealed")
            data = bytearray(sealed.read_bytes())
            data[-1] ^= 1
            sealed.write_bytes(data)
            police = await back(own_world, post, stations, "police")
            await until(lambda: "release-damaged" in police.home.log.read_text())
            assert not post.tasks[job].uploads

    asyncio.run(play())


@pytest.mark.parametrize(
    "kind",
    ["offer", "answer", "admit", "admitted", "start", "ended", "noted", "upload", "stored", "progress"],
)
def test_a_lost_control_message_in_either_direction_changes_no_outcome(own_world: World, kind: str) -> None:
    class Lossy(Post):
        def lost(self, name: str, word: str) -> bool:
            if word == kind and name not in gone:
                gone.add(name)
                return True
            return False

    gone: set[str] = set()

    async def play() -> None:
        async with running(own_world, Lossy(own_world)) as (post, stations):
            job = post.submit(own_world.spec())
            await approve_all(post, stations, job)
            task = await over(post, job)
            assert {e.state for e in task.ended.values()} == {"DONE"}
            police = stations["police"]
            await until(lambda: police.run(job) is RunState.DONE)
            await until(lambda: all(not s.state.unreported() for s in stations.values()))
            assert task.attempt == 1
            for station in stations.values():
                assert len(station.entries("job.admitted")) == 1
            assert len(police.entries("output.commit")) == 2
            assert len(police.entries("output.released")) == 1

    asyncio.run(play())
    assert gone


class Full(Folder):
    """A journal folder on a disk that may be full."""

    full = False

    def write(self, path: str, data: bytes) -> None:
        if type(self).full:
            raise OSError(28, "No space left on device")
        super().write(path, data)


def test_with_a_full_disk_no_job_is_answered_and_afterwards_each_is(
    own_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(home: object, now: Callable[[], datetime]) -> Journal:
        signer = own_world.homes["statistics"].signer
        return Journal.open(
            own_world.homes["statistics"].journal,
            database=own_world.homes["statistics"].database,
            origin=own_world.homes["statistics"].origin,
            signer=signer.sign,
            public_key=signer.public_key,
            now=now,
            folder=Full,
        )

    async def play() -> None:
        monkeypatch.setattr("simulator.open_journal", opened)
        async with running(own_world, names=["statistics"]) as (post, stations):
            await until(lambda: stations["statistics"].agent.force.roster is not None)
            monkeypatch.setattr(Full, "full", True)
            job = post.submit(own_world.spec())
            log = own_world.homes["statistics"].log
            await until(lambda: "journal-write-failed" in log.read_text())
            assert not post.tasks[job].verdicts
            monkeypatch.setattr(Full, "full", False)
            await until(lambda: bool(post.tasks[job].verdicts))
            assert post.tasks[job].verdicts["statistics"].answer == "permit"
            journal = stations["statistics"].state.journal
            assert journal.published == journal.size

    asyncio.run(play())


def test_a_peer_that_goes_away_ends_the_run_as_retryable(own_world: World) -> None:
    class Deaf(Post):
        async def relay(self, sender: object, frame: bytes) -> None:
            """Carry nothing; the relay then ends every stream."""

    async def play() -> None:
        async with running(own_world, Deaf(own_world)) as (post, stations):
            job = post.submit(own_world.spec())
            await approve_all(post, stations, job)
            await until(lambda: len(post.streams) == 4)
            for stream in post.streams.values():
                await stream.inbox.put(None)
            task: Task = await over(post, job)
            assert {e.code for e in task.ended.values()} <= {"peer-lost", "peer-failed"}
            assert "peer-lost" in {e.code for e in task.ended.values()}

    asyncio.run(play())


def test_a_second_process_on_one_home_is_turned_away(
    own_world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    home = own_world.homes["health"]
    authority = Authority()
    home.authority_pem.write_bytes(authority.pem)
    home.leaf_pem.write_bytes(authority.leaf("node")[0])
    state = own_world.open("health")
    try:
        with pytest.raises(StateConflict) as caught:
            open_journal(home, own_world.clock)
        assert caught.value.code == "journal-locked"
        assert main(["run", "--home", str(home.path)]) == 1
        assert "another process has this journal open" in capsys.readouterr().err
    finally:
        state.close()


def test_a_flipped_bit_in_the_database_keeps_the_node_from_starting(own_world: World) -> None:
    home = own_world.homes["health"]
    state = own_world.open("health")
    with state.journal.transaction() as connection:
        connection.execute("DROP TRIGGER journal_entry_no_update")
        connection.execute(
            "UPDATE journal_entry SET entry = replace(entry, 'policy', 'polizy') WHERE seq = 1"
        )
    state.close()
    with pytest.raises(StateConflict) as caught:
        open_state(open_journal(home, own_world.clock), home.database)
    assert caught.value.code == "journal-damaged"


def test_an_old_backup_of_the_database_keeps_the_node_from_starting(own_world: World) -> None:
    home = own_world.homes["health"]
    old = home.database.read_bytes()
    own_world.activate("health", max_rows=7)
    home.database.write_bytes(old)
    for ending in ("-wal", "-shm"):
        home.database.with_name(home.database.name + ending).unlink(missing_ok=True)
    with pytest.raises(StateConflict) as caught:
        open_journal(home, own_world.clock)
    assert caught.value.code == "journal-rolled-back"


# -- with a real SIGKILL -----------------------------------------------------------------------------------


def killed(world: World, name: str, kind: str, when: str, ends: str = "") -> JobId:
    """Run a job in another process that SIGKILLs itself; return the job. See killed_node.py."""
    world.save()
    script = str(TESTS / "faults" / "killed_node.py")
    command = [sys.executable, script, str(world.folder), name, kind, when, *([ends] if ends else [])]
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, timeout=40)
    assert done.returncode == -9, done.stderr.decode()
    return JobSpec.decode(decode_envelope((world.folder / "job.bin").read_bytes()).payload).job_id


@pytest.mark.parametrize(
    ("name", "kind", "when", "charged"),
    [("health", "job.admitted", "before", False), ("health", "job.admitted", "after", True)],
)
def test_after_a_real_kill_around_commit_point_1_state_and_journal_agree(
    own_world: World, name: str, kind: str, when: str, charged: bool
) -> None:
    job = killed(own_world, name, kind, when)

    async def play() -> None:
        async with running(own_world, names=[name]) as (_, stations):
            station = stations[name]
            run = station.state.run(Attempt(job, 1))
            assert run is not None
            assert (run.state, run.charged) == (RunState.FAILED, charged)
            assert bool(station.entries("job.admitted")) == charged
            [entry] = station.entries("job.failed")
            assert entry.body["code"] == "node-restarted"

    asyncio.run(play())


FAILPOINTS = {
    # where: what the ledger has when the node is back, and whether it stands for an exact answer
    ("budget.reserved", "before"): (None, False),
    ("budget.reserved", "after"): (RowState.RELEASED, False),
    ("budget.charged", "before"): (RowState.RELEASED, False),
    ("budget.charged", "after"): (RowState.CHARGED, False),
    ("ledger.answering", "before"): (RowState.CHARGED, False),
    ("ledger.answering", "after"): (RowState.CHARGED, True),
    ("budget.released", "before"): (RowState.RELEASED, False),
    ("budget.released", "after"): (RowState.RELEASED, False),
}


@pytest.mark.parametrize(
    ("kind", "when"),
    [pytest.param(*at, marks=[pytest.mark.long] if at[0] in ("budget.reserved", "budget.released") else [])
     for at in FAILPOINTS],
)  # fmt: skip
def test_after_a_real_kill_at_each_failpoint_ledger_and_journal_agree(
    own_world: World, kind: str, when: str
) -> None:
    # An attempt that is stopped before it starts is what frees a reservation.
    ends = "stopped" if kind == "budget.released" else ""
    job = killed(own_world, "health", kind, when, ends)
    expected, exact = FAILPOINTS[kind, when]

    async def play() -> None:
        async with running(own_world, names=["health"]) as (_, stations):
            health = stations["health"]
            ledger = health.state.ledger()
            row = ledger.row(job, 1)
            assert (None if row is None else row.state) == expected
            counting = ledger.of("people")
            assert [past.exact for past in counting] == ([exact] if expected is RowState.CHARGED else [])
            # What the entries add up to is what the ledger says, for each limit.
            said: dict[str, int] = {}
            for entry in health.entries("budget."):
                released = entry.kind == "budget.released"
                said[entry.body["budget"]] = 0 if released else int(entry.body["cost"])
            spent = {
                "queries": sum(p.cost.queries for p in counting),
                "rows": sum(p.cost.rows for p in counting),
            }
            assert {**dict.fromkeys(spent, 0), **said} == spent
            kinds = [e.kind for e in health.entries("budget.")]
            assert len(kinds) == len(set(kinds)) * 2  # one entry per limit, nothing said twice
            # Whoever passed commit point 1 is the only one that stays charged.
            assert bool(health.entries("job.admitted")) == (expected is RowState.CHARGED)
            if health.run(job) is not None:
                assert health.run(job) in (
                    RunState.FAILED,
                    RunState.CANCELLED,
                    RunState.AWAITING_APPROVAL,
                    RunState.CHECKING,
                )

    asyncio.run(play())


def test_no_frame_of_an_answer_leaves_before_it_is_remembered(own_world: World) -> None:
    """The node dies as it is about to remember; nothing an answer could be made of has gone out."""

    async def play() -> None:
        async with running(own_world) as (post, stations):
            job = await crash(own_world, post, stations, "health", "ledger.answering", before=True)
            sent = {header.round for header, _ in post.frames if header.sender == "source-2"}
            assert sent  # its list went through the tagging
            assert not sent & {ROWS, CONTENT_KEY}
            health = await back(own_world, post, stations, "health")
            row = health.state.ledger().row(job, 1)
            assert row is not None
            # It costs, but it answered nothing, so it is in no other question's way.
            assert (row.state, row.answering, row.past.exact) == (RowState.CHARGED, False, False)

    asyncio.run(play())


def test_after_a_real_kill_past_commit_point_2_the_same_bytes_go_out(own_world: World) -> None:
    job = killed(own_world, "police", "output.commit", "after")
    home = own_world.homes["police"]
    [sealed] = home.outbox.glob("*.sealed")
    durable = sealed.read_bytes()

    async def play() -> None:
        post = Post(own_world)
        post.tasks[job] = Task((own_world.folder / "job.bin").read_bytes())
        post.tasks[job].ended["police"] = None  # type: ignore[assignment]  # not to be offered again
        async with running(own_world, post, ["police"]) as (_, stations):
            await until(lambda: stations["police"].run(job) is RunState.DONE)
            assert post.release(job) == durable

    asyncio.run(play())
    state: State = own_world.open("police")
    assert [e.kind for e in state.journal.entries()].count("output.released") == 1
    state.close()


WITNESSED = [
    # where the whole process dies: as a witness remembers, and in each of the two waits
    ("health", "witness.head"),
    ("health", "cosigned.job.admitted"),
    ("police", "cosigned.output.commit"),
]


@pytest.mark.parametrize("when", [pytest.param("before", marks=pytest.mark.long), "after"])
@pytest.mark.parametrize(("name", "kind"), WITNESSED)
def test_p5_after_a_real_kill_around_a_cosignature_all_logs_go_on_and_nobody_sees_two(
    own_world: World, name: str, kind: str, when: str
) -> None:
    job = killed(own_world, name, kind, when)
    durable = [file.read_bytes() for file in own_world.homes["police"].outbox.glob("*.sealed")]

    async def play() -> None:
        post = Post(own_world)
        post.tasks[job] = Task((own_world.folder / "job.bin").read_bytes())
        post.tasks[job].ended = dict.fromkeys(own_world.homes)  # type: ignore[arg-type]  # not offered again
        async with running(own_world, post) as (_, stations):
            # No witness takes any of them for a restored backup, and none saw two histories.
            for station in stations.values():
                journal = station.state.journal
                await until(lambda j=journal: j.cosigned_size == j.size)  # type: ignore[misc]  # mypy: lambda default
                assert not station.entries("witness.conflict")
                assert not station.task.done()
            if kind != "witness.head":
                row = stations[name].state.ledger().row(job, 1)
                assert row is not None
                assert row.state is RowState.CHARGED
            if kind == "cosigned.output.commit":
                await until(lambda: stations["police"].run(job) is RunState.DONE)
                assert [post.release(job)] == durable

    asyncio.run(play())
