"""Collaborations for end-to-end tests: real processes on loopback, everything else through the commands.

A dataset answers one question, and the same one again; every other question over it would be refused. So each
question of a test has lists of its own, under its own name.
"""

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

from crosscheck_case import person
from end_to_end.c2sp import verified

from demo.collaboration import (
    COORDINATOR,
    DEPARTMENTS,
    Collaboration,
    CommandFailed,
    Department,
    command,
    command_json,
    with_datasets,
)
from demo.processes import Child, Children
from demo.run import two_source_job_text
from protocols.envelope import decode_envelope
from protocols.wire import Roster

POLICE, HUMAN_RESOURCES, HEALTH, EDUCATION, HOUSING, STATISTICS = DEPARTMENTS
SMALL_TOWN = (POLICE, HUMAN_RESOURCES, EDUCATION, STATISTICS)
DATASET = {d: name for d in DEPARTMENTS for name in d.datasets}
RATE, OFTEN = 'rate = { jobs = 10, per = "month" }', 'rate = { jobs = 100, per = "month" }'
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


def under(department: Department, name: object) -> str:
    """Return the dataset with a department's list for the question of that name."""
    return f"{DATASET[department]}_{name}"


def question(name: object, text: str | None = None) -> str:
    """Return a job.toml, by default the question with two sources, about the lists of that name."""
    text = two_source_job_text() if text is None else text
    for department, usual in DATASET.items():
        text = text.replace(f'dataset = "{usual}"', f'dataset = "{under(department, name)}"')
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
        self.holders: tuple[int, ...] = (1, 2)
        if city is None:
            self.city.mkdir()
            for department, people in LISTS.items():
                self.register(department, DATASET[department]).write_text(rows(people))

    def register(self, department: Department, table: str) -> Path:
        whole = super().register(department, table)
        return whole if whole.exists() else self.city / f"{department.folder}-{table}.csv"

    def open(self, *names: object, later: Sequence[object] = ()) -> None:
        """Set everything up, with lists for these questions too, and start every node.

        For the questions `later` the policies are ready; `list_for` registers their lists.
        """
        self.found()
        # From here on the ports are fixed, as at a real bureau: after a restart it is found again.
        found = json.loads((self.coordinator / "addresses.json").read_text())
        self._settings |= {"public_address": found["public"], "nodes_address": found["nodes"]}
        self.enrol()
        self.add_datasets()
        self.list_for(names)
        for department in self.departments:
            self.pin(department)
            text = self.text(department, (*names, *later))
            self.activate(department, self.sign_policy(department, text, ("dpo", "owner")))
            self.start_node(department)
        self.await_nodes()

    def text(self, department: Department, names: Sequence[object]) -> str:
        """Return the policy of a department that is asked often, about the lists of these questions too."""
        text = self.policy(department)
        assert RATE in text
        text = text.replace(RATE, OFTEN)
        if len(self.departments) < len(DEPARTMENTS):
            # Of three witnesses one may be away: a test may hold up a node.
            text += "\n[witnesses]\nquorum = 2\n"
        if department not in DATASET:
            return text
        return with_datasets(text, DATASET[department], [under(department, name) for name in names])

    def list_file(self, department: Department, name: object) -> Path:
        """Return the file with a department's list for the question of that name."""
        usual = self.register(department, DATASET[department])
        return usual.with_name(f"{usual.stem}-{name}{usual.suffix}")

    def list_for(self, names: Sequence[object]) -> None:
        """Register a copy of every department's usual list for each of these questions."""
        for name, department in product(names, self.departments):
            if department in DATASET:
                copy = self.list_file(department, name)
                copy.write_bytes(self.register(department, DATASET[department]).read_bytes())
                self.add_dataset(department, under(department, name), copy)

    def amend(self, department: Department, *changes: tuple[str, str]) -> None:
        """Have both officers sign the next version of a department's policy, and activate it."""
        policies = self.folder / "policies" / department.folder
        version = len(list(policies.glob("policy*.toml")))
        before = policies / ("policy" if version == 1 else f"policy-{version}")
        text = before.with_suffix(".toml").read_text("utf-8")
        digest = decode_envelope(before.with_suffix(".dsse").read_bytes()).payload_digest
        following = re.sub(
            r"(?m)^version = .*(\nprevious = .*)?$", f'version = {version + 1}\nprevious = "{digest}"', text
        )
        for old, new in changes:
            assert old in following, old
            following = following.replace(old, new, 1)
        envelope = self.sign_policy(department, following, ("dpo", "owner"), f"policy-{version + 1}")
        self.activate(department, envelope)

    def root(self, number: int) -> Path:
        """Return the key of a root key holder, made when first asked for."""
        key = self.folder / "roots" / f"root-{number}.pem"
        if not key.exists():
            command("minshu-policy", "key", "new", "--role", "root", key)
        return key

    def publish_roster(self, *arguments: str | Path, joining: Sequence[int] = ()) -> int:
        """Publish the next roster, with the holders' signatures; return its version.

        `joining` are those of the next root keys whose holders sign as well, and hold from then on.
        """
        draft = self.folder / "next-roster.json"
        command(
            "minshu-coordinator", "roster", "draft", "--home", self.coordinator, "--out", draft, *arguments
        )
        unsigned, signed = draft, draft.with_suffix(".dsse")
        for number in (*self.holders, *joining):
            command(
                "minshu-coordinator", "roster", "sign", unsigned, "--key", self.root(number), "--out", signed
            )
            unsigned = signed
        command("minshu-coordinator", "roster", "publish", signed, "--home", self.coordinator)
        self.holders = tuple(joining) or self.holders
        return Roster.decode(decode_envelope(signed.read_bytes()).payload).version

    def journal_vkeys(self) -> dict[str, str]:
        keys = super().journal_vkeys()
        newest = self.folder / "next-roster.dsse"
        if newest.exists():
            roster = Roster.decode(decode_envelope(newest.read_bytes()).payload)
            keys |= {node.name: node.journal_vkey for node in roster.nodes}
        return keys

    def stop(self, department: Department, scope: str, value: str) -> str:
        """Have the DPO stop something at the department's node, alone; return the stop's digest."""
        stop = self.folder / f"stop-{len(list(self.folder.glob('stop-*')))}.dsse"
        command(
            "minshu-policy", "stop", "--node", department.node, "--scope", scope, "--value", value,
            "--reason", "复核期间暂停", "--key", self.officer(department, "dpo"), "--out", stop,
        )  # fmt: skip
        said = command_json("minshu-node", "stop", stop, "--home", self.home(department))
        return str(said["sha256"])

    def budget(self, department: Department) -> dict[str, Any]:
        """Return what a department's budget command says; its node need not run."""
        page: dict[str, Any] = command_json("minshu-node", "budget", "--home", self.home(department))
        return page

    def budgets(self) -> list[dict[str, Any]]:
        """Return what every department's budget command says."""
        return [self.budget(department) for department in self.departments]

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

    @contextmanager
    def frozen(self, department: Department) -> Iterator[None]:
        """Keep a node's process from doing anything meanwhile, as on a machine that hangs."""
        process = self._running[department.folder].process
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)

    def wait(self, reached: Callable[[], bool], found: Callable[[], object]) -> None:
        """Wait until it is so; `found` says what was there instead."""
        deadline = time.monotonic() + 60
        while not reached():
            assert time.monotonic() < deadline, found()
            time.sleep(0.02)

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
        self.approve_all(job)
        return job

    def approve_all(self, job: str) -> None:
        """Give a job every approval that its nodes ask for."""
        view = self.until_answered(job)
        waiting = {run["node"] for run in view["runs"] if run["state"] == "AWAITING_APPROVAL"}
        for department in self.departments:
            if department.node in waiting:
                for role in ("dpo", "owner"):
                    self.approve(department, job, role)

    def settled(self, job: str) -> None:
        """Wait until a job has ended and every one of its runs has, as the analyst sees it."""
        self.end(job)
        ends = ("DONE", "REFUSED", "CANCELLED", "FAILED", "EXPIRED", "LOST", "TIMED_OUT")

        def runs() -> list[str]:
            return [run["state"] for run in self.show(job)["runs"]]

        self.wait(lambda: all(state in ends for state in runs()), runs)

    def until_answered(self, job: str) -> dict[str, Any]:
        """Return the job's view once every node has permitted it or asks for approvals."""
        answered = ("AWAITING_APPROVAL", "ACCEPTED")
        return self.until(job, lambda view: all(run["state"] in answered for run in view["runs"]))

    def explain(self, text: str) -> tuple[dict[str, Any], int]:
        """Return what `minshu explain` says of a job.toml, and its exit code."""
        path = self.folder / "explain.toml"
        path.write_text(text, encoding="utf-8")
        try:
            return command_json("minshu", "explain", path, "--home", self.analyst), 0
        except CommandFailed as refused:
            return json.loads(refused.output), refused.code

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
