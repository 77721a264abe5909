"""A node or the coordinator dies in the middle of a job: it says so, and what follows is whole or nothing."""

import re

import pyarrow.parquet as pq
import pytest
from end_to_end.town import EDUCATION, HEALTH, HOUSING, HUMAN_RESOURCES, POLICE, STATISTICS, Town, question

from demo.city import generate
from demo.collaboration import CommandFailed, Department, command
from demo.run import job_text, two_source_job_text
from protocols.encoding import sha256_digest

SECOND, THIRD = "second", "third"
IN_HUMAN_RESOURCES, IN_HEALTH = 1, 2


@pytest.fixture(scope="module")
def town(ground) -> Town:
    folder, children = ground
    folder.mkdir()
    generate("ci", 1, folder / "city", workers=2)
    town = Town(folder, children, folder / "city", grace_s=1)
    town.open(SECOND, THIRD)
    return town


def flagged(town: Town, on: int = 0) -> list[str]:
    """Return the typed keys that the truth flags, of those whom all the sources `on` know."""
    truth = pq.read_table(town.city / "truth" / "flagged.parquet").to_pylist()
    return sorted(f"RIC:{row['resident_id']}" for row in truth if row["sources"] & on == on)


def abandoned(town: Town, department: Department, job: str) -> list[int]:
    """Return the attempts that a node journaled as given up.

    Whether it is told first that the attempt is over, or that its data stream is, is a race it may lose.
    """
    return [n for kind, n, _ in town.kinds(department, job) if kind in ("job.cancelled", "job.failed")]


def kept_releases(town: Town) -> dict[str, str]:
    """Return the digest of every sealed file that any node keeps, by release."""
    return {
        file.stem: sha256_digest(file.read_bytes())
        for department in town.departments
        for file in town.home(department).rglob("*.sealed")
    }


def assert_p1(town: Town) -> None:
    """No sealed release anywhere, at nodes or at the coordinator, without a signed journal entry."""
    committed = {
        entry["body"]["release"]: entry["body"]["sha256"]
        for department in town.departments
        for entry in town.entries(department)
        if entry["kind"] == "output.commit"
    }
    kept = kept_releases(town)
    kept |= {
        file.name: sha256_digest(file.read_bytes())
        for file in (town.coordinator / "releases").iterdir()
        if not file.name.startswith(".")
    }
    assert kept.items() <= committed.items()


@pytest.mark.long  # twenty seconds with its town; tests/coordinator and tests/faults play it in one process
def test_a_node_killed_mid_job_is_named_and_a_new_attempt_gives_the_exact_answer(town):
    job = town.ask(job_text())
    town.until_sending(HOUSING, job, 1)
    town.kill("housing")
    lost = town.until(job, lambda view: view["attempt"] == 2)
    assert lost["state"] == "RUNNING"
    assert lost["sentence"].startswith(f"{HOUSING.node} was lost in attempt 1: ")
    assert not any(kind == "output.commit" for kind, _, _ in town.kinds(POLICE, job))
    town.start_node(HOUSING)
    view = town.end(job)
    assert (view["state"], view["attempt"]) == ("SUCCEEDED", 2)
    assert sorted(town.people(job)) == flagged(town)
    # What happened stands in every journal, and only the second attempt has an output.
    assert ("job.failed", 1, "node-restarted") in town.kinds(HOUSING, job)
    assert abandoned(town, HEALTH, job) == [1]
    assert ("job.failed", 1, "node-lost") in town.kinds(None, job)
    for department in town.departments:
        admitted = [n for kind, n, _ in town.kinds(department, job) if kind == "job.admitted"]
        assert admitted == [1, 2], department.folder
    assert [n for kind, n, _ in town.kinds(POLICE, job) if kind == "output.commit"] == [2, 2]
    assert_p1(town)


@pytest.mark.long  # ten seconds; tests/coordinator plays it in one process
def test_a_coordinator_killed_mid_job_starts_a_new_attempt_when_it_is_back(town):
    text = two_source_job_text().replace(EDUCATION.organisation, HEALTH.organisation)
    job = town.ask(question(SECOND, text.replace('"enrolment"', '"patients"')))
    town.until_sending(HUMAN_RESOURCES, job, 1)
    town.kill("coordinator")
    with pytest.raises(CommandFailed) as unhealthy:
        command("minshu-node", "doctor", "--home", town.home(HEALTH))
    assert unhealthy.value.code == 1
    assert re.search(r"(?m)^error +network: 127\.0\.0\.1:\d+ cannot be reached", unhealthy.value.output)
    town.start_coordinator()
    view = town.end(job)
    assert (view["state"], view["attempt"]) == ("SUCCEEDED", 2)
    assert "the coordinator restarted" in view["sentence"]
    assert sorted(town.people(job)) == flagged(town, IN_HUMAN_RESOURCES | IN_HEALTH)
    assert ("job.failed", 1, "coordinator-restarted") in town.kinds(None, job)
    assert [n for kind, n, _ in town.kinds(POLICE, job) if kind == "output.commit"] == [2, 2]
    assert_p1(town)


@pytest.mark.long  # five seconds; tests/coordinator plays it in one process
def test_a_node_lost_in_every_attempt_fails_the_job_by_name_and_leaves_no_output(town):
    before = kept_releases(town)
    job = town.ask(question(THIRD))
    for attempt in (1, 2):
        town.until_sending(HUMAN_RESOURCES, job, attempt)
        town.kill("human-resources")
        if attempt == 1:
            town.until(job, lambda view: view["attempt"] == 2)
            town.start_node(HUMAN_RESOURCES)
    view = town.end(job)
    town.start_node(HUMAN_RESOURCES)
    assert (view["state"], view["attempt"], view["code"]) == ("FAILED", 2, "node-lost")
    assert view["sentence"].startswith(f"{HUMAN_RESOURCES.node} was lost in attempt 2: ")
    assert view["hint"]
    runs = {run["node"]: run["state"] for run in view["runs"]}
    assert runs.pop(HUMAN_RESOURCES.node) == "LOST"
    assert set(runs.values()) == {"CANCELLED"}
    assert kept_releases(town) == before
    assert not any(kind.startswith("output.") for d in town.departments for kind, _, _ in town.kinds(d, job))
    assert abandoned(town, STATISTICS, job) == [1, 2]
    assert_p1(town)
