"""Retention: what is due is deleted, each deletion has a receipt, and a disk that refuses loses neither."""

import asyncio
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from simulator import START, Post, World, approve_all, over, running, until

from audit.entries import Entry
from audit.folder import Folder
from node.cli import main
from node.logs import Log
from node.releases import kept
from node.retention import delete_due
from node.rpc import Attempt
from node.state import RunState, State, StoredOutput
from protocols.encoding import sha256_digest
from protocols.errors import StateConflict
from protocols.ids import JobId

LATER = START + timedelta(days=31)


async def finished(world: World, *, confirm: bool = True) -> JobId:
    """Run the standard job to its end."""
    post = Post(world)
    post.confirm = confirm
    async with running(world, post) as (_, stations):
        job = post.submit(world.spec())
        await approve_all(post, stations, job)
        await over(post, job)
        state = RunState.DONE if confirm else RunState.RELEASING
        await until(lambda: stations["police"].run(job) is state)
    return job


class Police:
    """The police department's node, off, after a job."""

    def __init__(self, world: World, job: JobId) -> None:
        self.world, self.job = world, job
        self.home = world.homes["police"]
        self.state: State = world.open("police")
        self.log = Log(self.home.log, world.clock)

    def look(self, days: float) -> list[Attempt]:
        """Look for what is due so many days later."""
        self.world.clock.at = START + timedelta(days=days)
        from node.activation import InForce

        active = InForce.load(self.state, self.home.name, self.home.signer.public_key).policy
        return delete_due(self.state, self.home, active, self.world.clock.at, self.log)

    def receipts(self) -> list[dict[str, Any]]:
        return [dict(e.body) for e in self.state.journal.entries() if e.kind == "deletion.receipt"]

    def entries(self, kind: str) -> list[Entry]:
        return [e for e in self.state.journal.entries() if e.kind == kind]

    def output(self, kind: str) -> StoredOutput:
        [found] = [o for o in self.state.outputs(self.job) if o.output_class == kind]
        return found


@pytest.fixture(scope="module")
def over_and_done(founded: World, memory: Path) -> tuple[World, JobId]:
    # A folder of its own each time: a worker may come back to this module and set it up again.
    world = founded.clone(Path(tempfile.mkdtemp(dir=memory)))
    return world, asyncio.run(finished(world))


@pytest.fixture
def police(over_and_done: tuple[World, JobId], folder: Path) -> Iterator[Police]:
    world, job = over_and_done
    made = Police(world.clone(folder / "retained"), job)
    yield made
    made.state.close()


def test_a_list_is_kept_until_its_time_is_over(police: Police) -> None:
    assert police.look(29) == []
    assert police.receipts() == []
    assert kept(police.home.releases, police.output("B"))


def test_an_expired_list_is_deleted_with_a_receipt(police: Police) -> None:
    before = police.output("B")
    police.look(31)
    assert not list(police.home.releases.iterdir())
    assert police.output("B").deleted
    [receipt] = police.receipts()
    assert (receipt["what"], receipt["release"], receipt["sha256"]) == (
        "release",
        before.release,
        before.sha256,
    )
    police.look(32)
    assert len(police.receipts()) == 1


def test_what_the_coordinator_took_needs_no_receipt(police: Police) -> None:
    police.look(31)
    assert {receipt["release"] for receipt in police.receipts()} == {police.output("B").release}


def test_a_release_nobody_took_in_time_is_deleted_and_its_run_ends(world: World) -> None:
    police = Police(world, asyncio.run(finished(world, confirm=False)))
    assert police.look(31) == [Attempt(police.job, 1)]
    assert not list(police.home.outbox.iterdir())
    assert {receipt["what"] for receipt in police.receipts()} == {"release"}
    police.state.close()


def test_a_running_node_deletes_and_ends_by_itself(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.agent.TICK_S", 0.05)
    monkeypatch.setattr("node.agent.DELETE_EVERY_S", 0.0)
    job = asyncio.run(finished(world, confirm=False))

    async def play() -> None:
        post = Post(world)
        post.confirm = False
        async with running(world, post, ["police"]) as (_, stations):
            police = stations["police"]
            world.clock.at = LATER
            await until(lambda: police.run(job) is RunState.FAILED)
            run = police.state.run(Attempt(job, 1))
            assert run is not None
            assert run.code == "release-expired"
            assert len(police.entries("deletion.receipt")) == 2

    asyncio.run(play())


def test_opening_an_expired_list_says_that_it_is_deleted(
    police: Police, capsys: pytest.CaptureFixture[str]
) -> None:
    from node.activation import InForce
    from node.desk import desk_of

    force = InForce.load(police.state, police.home.name, police.home.signer.public_key)
    police.world.clock.at = LATER
    desk = desk_of(
        police.state, force, police.home, signer=police.home.signer, now=police.world.clock, log=police.log
    )
    for _ in range(2):  # past its time, and deleted
        with pytest.raises(StateConflict) as caught:
            desk.handle("open", {"release": police.output("B").release})
        assert caught.value.code == "release-expired"
        police.look(31)
    police.state.close()
    # The machine's own clock is far behind this world's: what counts here is that the bytes are gone.
    out = police.world.folder / "list.csv"
    assert main(["release", "open", police.job, "--out", str(out), "--home", str(police.home.path)]) == 1
    assert "it is deleted" in capsys.readouterr().err
    assert not out.exists()
    police.state = police.world.open("police")


# -- job texts, salts, quality records ---------------------------------------------------------------------


def test_job_texts_and_salts_go_after_the_days_that_the_policy_says(police: Police) -> None:
    police.look(1094)
    text = police.state.job(police.job)
    record = police.state.input_record(Attempt(police.job, 1))
    assert text is not None
    assert record is not None
    police.look(1096)
    assert police.state.job(police.job) is None
    assert police.state.input_record(Attempt(police.job, 1)) is None
    assert police.state.approvals(police.job) == []
    by_kind = {receipt["what"]: receipt for receipt in police.receipts()}
    assert by_kind["job-text"]["sha256"] == sha256_digest(text)
    assert by_kind["input-record"]["sha256"] == sha256_digest(record[1])
    assert by_kind["input-record"]["dataset"] == "people"
    approvals = [e.body["envelope_sha256"] for e in police.entries("approval.recorded")]
    assert sorted(r["sha256"] for r in police.receipts() if r["what"] == "approval") == sorted(approvals)
    police.look(1097)
    assert len(police.receipts()) == 5  # the list's, and these four; none twice


def test_what_is_deleted_is_gone_from_beside_the_log_as_well(police: Police) -> None:
    journal = police.state.journal
    [accepted] = police.entries("job.accepted")
    [admitted] = police.entries("job.admitted")
    texts = [accepted.body["envelope_sha256"], admitted.body["quality_sha256"]]
    texts += [e.body["envelope_sha256"] for e in police.entries("approval.recorded")]
    assert all(journal.get_object(digest) for digest in texts)
    police.look(1096)
    assert not any(journal.get_object(digest) for digest in texts)
    assert all(journal.get_object(digest) for digest in admitted.refs)


def test_deleted_salts_are_not_left_in_the_file(police: Police) -> None:
    record = police.state.input_record(Attempt(police.job, 1))
    assert record is not None
    police.look(1096)
    police.state.close()
    for path in police.home.path.glob("node.db*"):
        assert record[0] not in path.read_bytes()
    police.state = police.world.open("police")


def test_the_ledger_forgets_nothing_when_texts_go(police: Police) -> None:
    before = police.state.ledger().of("people")
    police.look(1096)
    assert police.state.ledger().of("people") == before
    assert len(before) == 1


def test_a_job_that_is_not_over_keeps_its_text(police: Police) -> None:
    with police.state.change() as change:
        change.move(Attempt(police.job, 1), RunState.RELEASING)
    police.look(1096)
    assert police.state.job(police.job) is not None


def test_without_a_policy_no_text_is_deleted(police: Police) -> None:
    police.world.clock.at = START + timedelta(days=4000)
    delete_due(police.state, police.home, None, police.world.clock.at, police.log)
    assert police.state.job(police.job) is not None


# -- when the disk refuses ---------------------------------------------------------------------------------


def test_a_file_that_cannot_be_deleted_has_no_receipt_and_is_tried_again(
    police: Police, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(_path: Path, missing_ok: bool = False) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuses)
        police.look(31)
    assert police.receipts() == []
    assert not police.output("B").deleted
    assert "deletion-failed" in police.home.log.read_text()
    police.look(31)
    assert len(police.receipts()) == 1


def test_a_receipt_that_cannot_be_written_is_written_later(
    police: Police, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Folder, path: str, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "write", full)
        police.look(31)
    assert "journal-unpublished" in police.home.log.read_text()
    police.look(31)
    police.state.journal.publish()
    assert [receipt["what"] for receipt in police.receipts()] == ["release"]
    assert police.state.journal.published == police.state.journal.size


def test_a_transaction_that_fails_after_the_deletion_is_made_good(
    police: Police, monkeypatch: pytest.MonkeyPatch
) -> None:
    from node.state import Change

    def fails(_self: Change, _release: str) -> None:
        raise StateConflict("no", code="journal-write-failed")

    with monkeypatch.context() as patch:
        patch.setattr(Change, "mark_deleted", fails)
        police.look(31)
    assert not list(police.home.releases.iterdir())
    assert police.receipts() == []
    police.look(31)
    assert len(police.receipts()) == 1
