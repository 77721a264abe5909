"""An auditor with opened releases: tables that nodes really made, held against the jobs in their journals."""

import asyncio
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from auditing import audited, findings
from model_case import content_of
from simulator import Station, World, answered, over, running
from table_world import STREETS, TableWorld

from audit.findings import Answer, Check
from node.releases import encode_content, release_info
from protocols.channel import suites
from protocols.encoding import sha256_digest
from protocols.envelope import RELEASE, sign
from protocols.ids import Digest, JobId, NodeName, Organisation
from protocols.wire import JobSpec, ReleaseNote


class Answering(TableWorld):
    """Departments that answer exact and noisy questions, one of whose tables is about nobody."""

    types = ("table/1", "release/1")
    budget = """[budgets.privacy]
dataset = "cases"
notion = "zcdp"
limit = "2"
period = "calendar-quarter"
scope = "all-requesters"
"""

    def noisy(self) -> JobSpec:
        spec = self.table(["health"], columns={"street": "street", "paid": "paid", "latest": "day"})
        asked = {
            "statistic": "mean",
            "rho": "0.5",
            "areas": "demo-city",
            "axes": [{"slot": "street", "values": list(STREETS)}],
            "measure": {"slot": "paid", "bounds": ["0", "1000"]},
        }
        return replace(spec, job_type="release/1", params=asked)


class Lamps(TableWorld):
    personal, unit = "none", ""


@pytest.fixture
def folder() -> Iterator[Path]:
    shm = Path("/dev/shm")
    made = Path(tempfile.mkdtemp(prefix="minshu-audit-", dir=shm if shm.is_dir() else None))
    yield made
    shutil.rmtree(made, ignore_errors=True)


def made_by(world: TableWorld, *specs: JobSpec) -> dict[str, bytes]:
    """Run jobs of one department; return the tables as the analyst opens them."""

    async def play() -> dict[str, bytes]:
        opened = {}
        async with running(world, names=["health", "police", "human-resources"]) as (post, stations):
            for number, spec in enumerate(specs):
                job = post.submit(spec)
                await ended(post, stations, job)
                [release] = post.tasks[job].uploads
                opened[f"table {number}.arrow"] = suites.open_sealed(
                    2, world.analyst_private, release_info(release, job), post.release(job)
                )
        return opened

    return asyncio.run(play())


async def ended(post: Any, stations: dict[str, Station], job: JobId) -> None:
    task = await answered(post, job)
    assert {verdict.answer for verdict in task.verdicts.values()} == {"permit"}, task.verdicts
    await over(post, job)
    assert {end.state for end in task.ended.values()} == {"DONE"}, task.ended


def disclosed(world: World, opened: dict[str, bytes]) -> Check:
    """Take the decisions of the health department's log again, and look at opened releases."""
    checks = audited(world, "health", opened=opened)
    assert {question for question, _ in findings(checks)} <= {"disclosure"}
    return checks["disclosure"]


def test_tables_of_real_nodes_hold_against_their_jobs(folder: Path) -> None:
    world = Answering(folder / "world")
    asked = world.table(["health"])
    opened = made_by(world, asked, world.noisy())
    check = disclosed(world, opened)
    assert (check.findings, check.answer, check.looked_at) == ([], Answer.HOLDS, 2)
    # Of one of them only, the rest is open; bytes that the log does not name are nobody's.
    [first, second] = opened
    assert disclosed(world, {first: opened[first]}).answer is Answer.NOT_CHECKABLE
    mixed = disclosed(world, {first: opened[second][:-8] + bytes(8)})
    assert (mixed.looked_at, mixed.answer) == (0, Answer.NOT_CHECKABLE)
    # A model that another member has signed is held against the job it names, if this node took part in it.
    passed = disclosed(world, {**opened, **signed_model(world, JobId("sha256:" + "7" * 64))})
    assert (passed.findings, passed.answer) == ([], Answer.HOLDS)
    check = disclosed(world, {**opened, **signed_model(world, asked.job_id)})
    assert [(found.code, found.where) for found in check.findings] == [("bad-card", "model")]


def signed_model(world: World, job: JobId) -> dict[str, bytes]:
    """Return a model that the police's node has signed as made in the first attempt of a job."""
    content = encode_content(content_of(), "model", bytes(16))
    note = ReleaseNote(
        release="7c" * 16,
        job=job,
        attempt=1,
        node=NodeName(world.homes["police"].origin.removesuffix("/journal/1")),
        name="model",
        output_class="C",
        recipient=Organisation("bureau.gz.example"),
        sealed_to=Digest(job),
        suite=2,
        sha256=Digest(job),
        content_sha256=sha256_digest(content),
        statement="model",
        created=world.clock.at,
        expires=world.clock.at,
    )
    envelope = sign(RELEASE, note.encode(), [world.homes["police"].signer]).encode()
    return {"model.arrow": content, "model.note.dsse": envelope}


def test_a_table_about_nobody_holds_as_the_policy_says_that_it_is_about_nobody(folder: Path) -> None:
    world = Lamps(folder / "world")
    spec = world.table(
        ["health"],
        params={"measures": None, "persons_in": None},
        columns={"street": "street", "age": "age"},
    )
    check = disclosed(world, made_by(world, spec))
    assert (check.findings, check.answer) == ([], Answer.HOLDS)
