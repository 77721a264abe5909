"""Certificates that expire in the middle of a job, at every node and at the coordinator: no job notices."""

import subprocess
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from crosscheck_case import person
from cryptography import x509
from end_to_end import short_lived
from end_to_end.town import FLAGGED, Town, question

from demo.collaboration import Department
from demo.processes import Child

LIFE_S = 7
JOBS = 8


class HurriedTown(Town):
    """A town whose leaves live for LIFE_S seconds and whose nodes take their time."""

    def start_coordinator(self) -> Child:
        return self._hurried(super().start_coordinator)

    def start_node(self, department: Department) -> Child:
        return self._hurried(lambda: super(HurriedTown, self).start_node(department))

    @staticmethod
    def _hurried(start: Callable[[], Child]) -> Child:
        popen = subprocess.Popen

        def hurried(words: list[str], **options: Any) -> Any:
            python, _, _, parent, *command = words  # python -m demo.child …
            return popen([python, short_lived.__file__, parent, str(LIFE_S), *command], **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(subprocess, "Popen", hurried)
            return start()

    def leaves(self) -> list[x509.Certificate]:
        """Return the leaves that all nodes and the coordinator have now."""
        homes = [self.coordinator, *map(self.home, self.departments)]
        return [x509.load_pem_x509_certificate((home / "tls" / "leaf.pem").read_bytes()) for home in homes]

    def log(self, department: Department) -> list[str]:
        """Return the lines of a node's log."""
        return (self.home(department) / "node.log").read_text().splitlines()

    def running(self, job: str) -> None:
        """Wait until every node has opened its data stream."""
        self.until(job, lambda view: {run["state"] for run in view["runs"]} == {"RUNNING"})

    def check(self, job: str) -> None:
        """See a job end as it should, in its first attempt."""
        view = self.end(job)
        assert (view["state"], view["attempt"]) == ("SUCCEEDED", 1), view
        assert sorted(self.people(job)) == sorted(f"RIC:{person(n)}" for n in FLAGGED)


@pytest.fixture(scope="module")
def town(ground: Any) -> HurriedTown:
    folder, children = ground
    town = HurriedTown(folder, children)
    town.open(0, 1, later=range(2, JOBS))
    return town


def count(lines: Sequence[str], code: str) -> int:
    """Return how many log lines have a code."""
    return sum(line.split(" ")[2] == code for line in lines)


def check_log(lines: Sequence[str], moves: int) -> None:
    """See that a node moved so often, and that all it noticed of that was another welcome."""
    assert count(lines, "certificate-adopted") >= moves, lines
    assert count(lines, "connected") >= moves, lines
    assert {line.split(" ")[1] for line in lines} == {"info"}, lines
    assert not count(lines, "link-closed"), lines


@pytest.mark.long  # leaves take their time to expire
def test_leaves_that_expire_while_jobs_run_lose_no_job(town: HurriedTown) -> None:
    first = town.ask(question(0))
    deadline = time.monotonic() + 30
    while not all(count(town.log(department), "certificate-adopted") for department in town.departments):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    second = town.ask(question(1))
    town.running(second)
    opened_with = town.leaves()
    for job in (first, second):
        town.check(job)
    # Its data streams were opened with leaves that have expired since; so has the coordinator's.
    assert all(leaf.not_valid_after_utc < datetime.now(UTC) for leaf in opened_with)
    for department in town.departments:
        check_log(town.log(department), moves=4)


@pytest.mark.long
def test_leaves_that_expire_all_day_long_lose_no_job(town: HurriedTown) -> None:
    town.list_for(range(2, JOBS))
    time.sleep(1)  # the nodes say hello again, with their new catalogues
    before = {department: len(town.log(department)) for department in town.departments}
    for number in range(2, JOBS, 2):
        for job in [town.ask(question(number)), town.ask(question(number + 1))]:
            town.check(job)
    for department in town.departments:
        check_log(town.log(department)[before[department] :], moves=10)
