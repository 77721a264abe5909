"""Budgets for each pair of datasets, decided again: entries say with whom, also once a job's text is gone."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from lying import Trail, found, told, visited
from simulator import Post, World, approve_all, over, running, until

from audit.entries import KINDS_BY_VERSION, Entry
from audit.findings import Answer
from audit.jobs import SAYS_PARTNERS
from node.activation import InForce
from node.logs import Log
from node.retention import delete_due
from node.state import RunState
from protocols.ids import JobId

PATIENT_S = 10.0**7  # these clocks jump; no quorum is late for that
PARTNERS = ["human-resources.gz.example:people", "police.gz.example:people"]


async def asked_once(world: World) -> JobId:
    async with running(world, Post(world), witness_wait_s=PATIENT_S) as (post, stations):
        job = post.submit(world.spec())
        await approve_all(post, stations, job)
        await over(post, job)
        await until(lambda: stations["health"].run(job) is RunState.DONE)
    return job


@pytest.fixture(scope="module")
def lived() -> Iterator[World]:
    """Two jobs within one month; the text of the first is deleted before the second is asked."""
    shm = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="minshu-pairs-", dir=shm if os.access(shm, os.W_OK) else None))
    world = World(folder)
    world.activate("health", scope="per-pair", queries=2, rows=2000, journal_days=1, release_days=1)
    asyncio.run(asked_once(world))
    world.clock.at += timedelta(days=4)
    state = world.open("health")
    home = world.homes["health"]
    force = InForce.load(state, home.name, home.signer.public_key)
    assert force.policy is not None
    delete_due(state, home, force.policy, world.clock.at, Log(home.log, world.clock))
    state.close()
    asyncio.run(asked_once(world))
    yield world
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def health(lived: World) -> Trail:
    return Trail.of(lived, "health")


def test_an_accepted_job_names_the_datasets_it_joins_and_a_neutral_seat_names_none(
    lived: World, health: Trail
):
    assert [e.body["partners"] for e in health.entries if e.kind == "job.accepted"] == [PARTNERS] * 2
    for entry in Trail.of(lived, "statistics").entries:
        assert "partners" not in entry.body
    state = lived.open("health")
    rows = state.ledger().rows("people")
    state.close()
    assert [row.past.partners for row in rows] == [tuple(PARTNERS)] * 2


def test_what_each_pair_has_spent_is_found_right_though_a_text_is_deleted(health: Trail):
    assert any(e.kind == "deletion.receipt" and e.body["what"] == "job-text" for e in health.entries)
    checks = visited(health, health.entries)
    assert told(checks) == []
    assert checks["budgets"].looked_at >= 2
    assert [e.body["spent"] for e in health.entries if e.kind == "budget.charged"] == ["0", "0", "1", "1000"]


def test_whoever_names_other_partners_than_the_text_is_found(health: Trail):
    lie = health.copy()
    lie.say("job.accepted", -1, partners=["tax.gz.example:people"])
    assert ("executed", "wrong-figure") in found(visited(lie, lie.entries))
    lie = health.copy()
    entry = lie.one("job.accepted", -1)
    lie.alter("job.accepted", -1, body={k: v for k, v in entry.body.items() if k != "partners"})
    assert ("executed", "wrong-figure") in found(visited(lie, lie.entries))


def test_whoever_hides_a_pair_behind_a_deleted_text_is_found_by_what_the_next_job_had_left(health: Trail):
    lie = health.copy()
    lie.say("job.accepted", 0, partners=["tax.gz.example:people"])
    assert ("budgets", "wrong-figure") in found(visited(lie, lie.entries))


def test_without_text_and_without_partners_what_was_spent_is_only_bounded_from_below(health: Trail):
    mute = health.copy()
    entry = mute.one("job.accepted", 0)
    mute.alter("job.accepted", 0, body={k: v for k, v in entry.body.items() if k != "partners"})
    checks = visited(mute, mute.entries)
    assert told(checks) == []
    assert checks["budgets"].answer is Answer.NOT_CHECKABLE


def test_entries_of_the_version_before_count_for_every_pair_and_are_found_right(health: Trail):
    """As in the ledger of the node that wrote them, which did not remember with whom."""

    def earlier(entry: Entry) -> Entry:
        known = KINDS_BY_VERSION[SAYS_PARTNERS - 1][entry.kind]
        body = {k: v for k, v in entry.body.items() if k in known.required | known.optional}
        return replace(entry, v=SAYS_PARTNERS - 1, body=body)

    until_then = health.at("job.accepted", 0) + 1
    old = [earlier(entry) for entry in health.entries[:until_then]]
    for entries in ([*old, *health.entries[until_then:]], [earlier(entry) for entry in health.entries]):
        assert told(visited(health, entries)) == []
