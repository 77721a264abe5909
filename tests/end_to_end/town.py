"""Collaborations for end-to-end tests: real processes on loopback, everything else through the commands."""

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from crosscheck_case import person
from end_to_end.c2sp import verified

from demo.collaboration import COORDINATOR, DEPARTMENTS, Collaboration, Department, command, command_json
from demo.processes import Child, Children
from demo.run import two_source_job_text

POLICE, HUMAN_RESOURCES, HEALTH, EDUCATION, HOUSING, STATISTICS = DEPARTMENTS
SMALL_TOWN = (POLICE, HUMAN_RESOURCES, EDUCATION, STATISTICS)
DATASET = {d: name for d in DEPARTMENTS for name in d.datasets}
ENDS = ("SUCCEEDED", "FAILED", "REFUSED", "CANCELLED", "EXPIRED")

FLAGGED = range(300, 312)
LISTS: Mapping[Department, Sequence[int]] = {
    POLICE: range(120),
    HUMAN_RESOURCES: [*range(90), *FLAGGED],
    EDUCATION: [*range(30, 120), *FLAGGED],
}
"""Who is on whose list in a small town; FLAGGED are on two and not on the police's."""


def rows(people: Iterable[int]) -> str:
    """Return a register as CSV text."""
    lines = ["resident_id,street,last_seen_month"]
    lines += [f"{person(n)},99010{1 + n % 2}00{n % 3},2026-{1 + n % 9:02d}" for n in people]
    return "\n".join(lines) + "\n"


def with_datasets(text: str, like: str, names: Sequence[str]) -> str:
    """Return a policy that opens further datasets, on the terms of its dataset `like`."""
    section = text[text.index(f"[datasets.{like}]") : text.index("[[rules]]")]
    more = "".join(
        section.replace(f"datasets.{like}", f"datasets.{name}").replace(f"local:{like}", f"local:{name}")
        for name in names
    )
    text = text.replace(f'datasets = ["{like}"]', f"datasets = {json.dumps([like, *names])}")
    return text.replace("[[rules]]", f"{more}[[rules]]", 1)


def job_text(**datasets: str) -> str:
    """Return the question with two sources; `datasets` puts another dataset in the place of a usual one."""
    text = two_source_job_text()
    for usual, other in datasets.items():
        text = text.replace(f'dataset = "{usual}"', f'dataset = "{other}"')
    return text


class Town(Collaboration):
    """A collaboration that the test asks, watches, breaks and mends.

    With a city it has all its nodes and registers; without one it is a small town with the LISTS.
    """

    def __init__(self, folder: Path, children: Children, city: Path | None = None, **settings: int) -> None:
        """`settings` are the coordinator's; `record` is on, so that a test can see how far a job is."""
        departments = DEPARTMENTS if city else SMALL_TOWN
        super().__init__(folder, city or folder / "registers", children, departments=departments, record=True)
        self._settings: dict[str, int | str] = dict(settings)
        self._running: dict[str, Child] = {}
        if city is None:
            self.city.mkdir()
            for department, people in LISTS.items():
                self.register(department, DATASET[department]).write_text(rows(people))

    def register(self, department: Department, table: str) -> Path:
        whole = super().register(department, table)
        return whole if whole.exists() else self.city / f"{department.folder}-{table}.csv"

    def open(self, extra: Mapping[Department, Sequence[str]]) -> None:
        """Set everything up and start every node; the policies open `extra` datasets too."""
        self.found()
        # From here on the ports are fixed, as at a real bureau: after a restart it is found again.
        found = json.loads((self.coordinator / "addresses.json").read_text())
        self._settings |= {"public_address": found["public"], "nodes_address": found["nodes"]}
        self.enrol()
        self.add_datasets()
        for department in self.departments:
            self.pin(department)
            text = self.policy(department)
            if department in extra:
                text = with_datasets(text, DATASET[department], extra[department])
            self.activate(department, self.sign_policy(department, text, ("dpo", "owner")))
            self.start_node(department)
        self._await(lambda: all(map(self._connected, self.departments)), "the nodes to connect")

    def _connected(self, department: Department) -> bool:
        """Whether a node has heard the coordinator: from it comes the roster."""
        status = command_json("minshu-node", "status", "--home", self.home(department))
        return status["roster"] is not None

    # -- processes -----------------------------------------------------------------------------------------

    def start_coordinator(self) -> Child:
        config = self.coordinator / "coordinator.toml"
        lines = [line for line in config.read_text().splitlines() if line.split(" ")[0] not in self._settings]
        lines += [f"{name} = {json.dumps(value)}" for name, value in self._settings.items()]
        config.write_text("\n".join(lines) + "\n")
        (self.coordinator / "addresses.json").unlink(missing_ok=True)  # of one that was killed
        child = self._running["coordinator"] = super().start_coordinator()
        return child

    def start_node(self, department: Department) -> Child:
        child = self._running[department.folder] = super().start_node(department)
        return child

    def kill(self, name: str) -> None:
        """Kill a node, by its folder, or the coordinator, without a chance to do anything more."""
        child = self._running.pop(name)
        child.process.kill()
        child.process.wait()
        self.children.all.remove(child)

    # -- the analyst ---------------------------------------------------------------------------------------

    def submit(self, text: str) -> str:
        """Submit a job.toml and return the job's id."""
        path = self.folder / f"job-{len(list(self.folder.glob('job-*')))}.toml"
        path.write_text(text, encoding="utf-8")
        return command("minshu", "submit", path, "--home", self.analyst).strip()

    def show(self, job: str) -> dict[str, Any]:
        """Return a job's view."""
        view: dict[str, Any] = command_json("minshu", "show", job, "--home", self.analyst)
        return view

    def until(self, job: str, reached: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Return the job's view once it is so."""
        deadline = time.monotonic() + 60
        while not reached(view := self.show(job)):
            assert time.monotonic() < deadline, f"{view['state']} {view['code']}: {view['sentence']}"
            assert view["state"] not in ENDS, f"{view['state']} {view['code']}: {view['sentence']}"
            time.sleep(0.05)
        return view

    def end(self, job: str) -> dict[str, Any]:
        """Return the view of a job that has ended."""
        return self.until(job, lambda view: view["state"] in ENDS)

    def ask(self, text: str) -> str:
        """Submit a job and give every approval it needs; return its id."""
        job = self.submit(text)
        answered = ("AWAITING_APPROVAL", "ACCEPTED")
        view = self.until(job, lambda view: all(run["state"] in answered for run in view["runs"]))
        waiting = {run["node"] for run in view["runs"] if run["state"] == "AWAITING_APPROVAL"}
        for department in self.departments:
            if department.node in waiting:
                for role in ("dpo", "owner"):
                    self.approve(department, job, role)
        return job

    def frames(self, department: Department, job: str, attempt: int) -> list[Path]:
        """Return the files with what a node has sent in an attempt."""
        begins = f"frame-{job.removeprefix('sha256:')[:12]}-{attempt}-"
        return sorted((self.recorded / department.folder).glob(f"{begins}*"))

    def until_sending(self, department: Department, job: str, attempt: int) -> None:
        """Wait until a node has sent something derived from its data."""
        deadline = time.monotonic() + 60
        while not self.frames(department, job, attempt):
            assert time.monotonic() < deadline
            time.sleep(0.002)

    def people(self, job: str) -> list[str]:
        """Open the police's list as the duty officer does, and return its typed keys."""
        import pyarrow.csv

        out = self.folder / f"{job[-12:]}.csv"
        command("minshu-node", "release", "open", job, "--out", out, "--home", self.home(POLICE))
        return [str(key) for key in pyarrow.csv.read_csv(out)["key"].to_pylist()]

    # -- the auditor ---------------------------------------------------------------------------------------

    def entries(self, whose: Department | None, job: str = "") -> list[dict[str, Any]]:
        """Verify a department's journal, or the coordinator's, and return its entries about a job."""
        name = whose.node if whose else COORDINATOR
        home = self.home(whose) if whose else self.coordinator
        log = verified(home / "journal", self.journal_vkeys()[name])
        found = [json.loads(entry) for entry in log.entries]
        return [entry for entry in found if entry.get("job") == job] if job else found

    def kinds(self, whose: Department | None, job: str) -> list[tuple[str, int, str]]:
        """Return (kind, attempt, code) of a journal's entries about a job."""
        return [(e["kind"], e["attempt"], e["body"].get("code", "")) for e in self.entries(whose, job)]


def flushed_folder() -> str | None:
    """Return a folder in memory where there is one: nodes flush thousands of small files."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
