"""`match/1`, whole: two nodes, a coordinator and a CSV file each, beside SecretFlow's spu on the same lists.

Half of each list is in common. Our clock runs from when both runs are ACCEPTED, by the later of the two
journal entries, to when the receiver's database says that its release is committed: start, both witnessed
entries, protocol, sealing, release on disk. Nodes have run a job before. Theirs runs as `bench.peers` says.
Both take turns. The number of records in each release is compared with the truth.

CPU is that of the coordinator and both nodes while the clock runs; memory the peak of the larger node, from
its start on, so with the reading of its list; wire what both nodes send to the coordinator, which passes it
on, counted by a relay before the coordinator in a run of its own.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final

from bench.peers import RR22, TURNS, Used, play
from bench.rig.lists import COLUMN, Lists, write_lists
from bench.rig.turns import take_turns
from bench.rig.usage import Sampler
from bench.rig.wire import Wire
from bench.rows import Results, Row
from demo.collaboration import BUREAU, Collaboration, Department
from demo.processes import Child, Children
from demo.run import await_questions

if TYPE_CHECKING:
    from coordinator.client.sdk import Job
    from minshu import Bureau

RECEIVER: Final = Department("police", "公安 police")
SENDER: Final = Department("health", "卫健 health")
SIZES: Final = ("1e5", "1e6")
LONG_SIZES: Final = ("1e7",)
WARM_UP: Final = "1e4"

ENTRIES: Final = ("job.accepted", "job.admitted", "job.answering")
STEPS: Final = ("start", "protocol", "release")
"""What the receiver does from one of these entries to the next, and from the last one to the end."""


@dataclass(frozen=True, slots=True)
class Ran:
    """What one job of ours took; see the module. `steps`: seconds of each of `STEPS`."""

    wall_s: float
    cpu_s: float
    rss_mb: float
    wire_mb: float
    steps: tuple[float, ...]


def measure(results: Results, *, long: bool) -> None:
    """Measure each size in turns with spu's RR22."""
    sizes = [size for size in (LONG_SIZES if long else SIZES) if not results.has(f"match {size} wire")]
    if not sizes:
        return
    with tempfile.TemporaryDirectory(prefix="minshu-bench-") as temporary:
        folder = Path(temporary)
        lists = {size: write_lists(folder, int(float(size))) for size in (WARM_UP, *sizes)}
        with running(folder / "ours", lists) as rig:
            rig.run(WARM_UP)
            compared = {size: _turns(results, rig, size) for size in sizes}
            rig.count_wire()
            rig.run(WARM_UP)
            for size in sizes:
                wire_mb = rig.run(size).wire_mb, play(RR22, lists[size], count_wire=True).wire_mb
                _add(results, f"match {size}", compared[size], wire_mb)


def _turns(results: Results, rig: "Rig", size: str) -> tuple[list[Ran], list[Used]]:
    ours: list[Ran] = []
    theirs: list[Used] = []

    def one() -> float:
        ours.append(rig.run(size))
        return ours[-1].wall_s

    def peer() -> float:
        theirs.append(play(RR22, rig.lists[size]))
        return theirs[-1].wall_s

    wall_s, peers_wall_s = take_turns(one, peer, TURNS)
    _put(results, Row(f"match {size}", wall_s, "s", RR22.name, peers_wall_s))
    return ours, theirs


def _add(
    results: Results, name: str, compared: tuple[Sequence[Ran], Sequence[Used]], wire_mb: tuple[float, float]
) -> None:
    ran, peers = compared
    figures = {
        "cpu": (median(each.cpu_s for each in ran), "s", median(each.cpu_s for each in peers)),
        "rss": (max(each.rss_mb for each in ran), "MB", median(each.rss_mb for each in peers)),
        **{step: (median(each.steps[place] for each in ran), "s", None) for place, step in enumerate(STEPS)},
        "wire": (wire_mb[0], "MB", wire_mb[1]),
    }
    for what, (value, unit, peer) in figures.items():
        _put(results, Row(f"{name} {what}", value, unit, None if peer is None else RR22.name, peer))


def _put(results: Results, row: Row) -> None:
    """Add a row, unless an earlier run, cut short after it, has it."""
    if not results.has(row.what):
        results.add(row)


@dataclass(slots=True)
class Rig:
    """Two running nodes, each with every list in its catalogue, and the analyst who asks."""

    collaboration: Collaboration
    bureau: "Bureau"
    lists: dict[str, Lists]
    stack: ExitStack
    nodes: dict[Department, Child] = field(default_factory=dict)
    wire: Wire | None = None

    def run(self, size: str) -> Ran:
        """Ask which persons of two lists are on both.

        Raises:
            RuntimeError: the job did not succeed, or its answer is wrong.
        """
        for file in (self.lists[size].receiver, self.lists[size].sender):
            file.touch()  # as if written anew: else the same question would get the answer it had before
        question = self.collaboration.folder / "job.toml"
        question.write_text(job_text(size), encoding="utf-8")
        job = self.bureau.submit(question)
        await_questions(job)
        coordinator = next(child for child in self.collaboration.children.all if child.name == "coordinator")
        processes = [child.process.pid for child in (coordinator, *self.nodes.values())]
        wire = self.wire
        with Sampler(processes, (lambda: wire.up) if wire else (lambda: 0)) as sampler:
            for department in self.nodes:
                for role in ("dpo", "owner"):
                    self.collaboration.approve(department, job.id, role)
            ended = self._await_end(job)
        times = [_times(self._database(department), job.id) for department in self.nodes]
        accepted = max(each["job.accepted"] for each in times)
        began, done = sampler.at(accepted), sampler.at(ended)
        received = times[0]
        steps = [accepted, received["job.admitted"], received["job.answering"], ended]
        self._check(job, size)
        for child in self.nodes.values():
            child.note_peak()
        return Ran(
            wall_s=ended - accepted,
            cpu_s=done.cpu_s - began.cpu_s,
            rss_mb=max(child.peak_rss_mb for child in self.nodes.values()),
            wire_mb=(done.counted - began.counted) / 1e6,
            steps=tuple(after - before for before, after in pairwise(steps)),
        )

    def _await_end(self, job: "Job") -> float:
        """Return when the receiver's release was on its disk and its database said so."""
        from node.state import RunState, read_state
        from protocols.ids import JobId

        ends = (RunState.DONE, RunState.FAILED, RunState.CANCELLED, RunState.TIMED_OUT)
        with read_state(self._database(RECEIVER)) as state:
            while True:
                self.collaboration.children.check()
                runs = state.runs(JobId(job.id))
                if runs and runs[0].state in ends:
                    ended = time.time()
                    break
                time.sleep(0.005)
        for view in job.events():
            if view.ended and not view.succeeded:
                raise RuntimeError(f"the job ended {view.state}: {view.code} {view.sentence}")
        return ended

    def _check(self, job: "Job", size: str) -> None:
        from node.home import Home
        from node.releases import kept, open_release
        from node.state import read_state
        from protocols.envelope import decode_envelope
        from protocols.wire import ReleaseNote

        home = Home(self.collaboration.home(RECEIVER))
        with read_state(home.database) as state:
            (output,) = [output for output in state.outputs() if output.attempt.job == job.id]
        note = ReleaseNote.decode(decode_envelope(output.note).payload)
        table, _ = open_release(kept(home.releases, output), note, home.recipient_private())
        if table.num_rows != self.lists[size].common:
            raise RuntimeError(f"{table.num_rows} records, {self.lists[size].common} expected")

    def _database(self, department: Department) -> Path:
        from node.home import Home

        return Home(self.collaboration.home(department)).database

    def start(self) -> None:
        """Start the nodes anew."""
        for child in self.nodes.values():
            child.stop()
            self.collaboration.children.all.remove(child)
        self.nodes = {each: self.collaboration.start_node(each) for each in (RECEIVER, SENDER)}
        self.collaboration.await_nodes()

    def count_wire(self) -> None:
        """From now on, have what the nodes send pass a counting relay."""
        from node.home import Home

        self.wire = self.stack.enter_context(Wire())
        for department in self.nodes:
            home = Home(self.collaboration.home(department))
            enrolled = home.enrolled()
            assert enrolled is not None
            port = self.wire.before(int(enrolled.address.rpartition(":")[2]))
            with (home.path / "node.toml").open("a", encoding="utf-8") as file:
                file.write(f'coordinator = "127.0.0.1:{port}"\n')
        self.start()


@contextmanager
def running(folder: Path, lists: dict[str, Lists]) -> Iterator[Rig]:
    """Set up the collaboration and run it."""
    from minshu import Bureau

    folder.mkdir()
    with ExitStack() as stack:
        children = stack.enter_context(Children())
        collaboration = Collaboration(folder, folder, children, departments=(RECEIVER, SENDER))
        collaboration.found()
        collaboration.enrol()
        for department in collaboration.departments:
            for size, pair in lists.items():
                file = pair.receiver if department is RECEIVER else pair.sender
                collaboration.add_dataset(department, f"list-{size}", file)
            collaboration.pin(department)
            text = collaboration.policy(department, policy_text(department, list(lists)))
            collaboration.activate(department, collaboration.sign_policy(department, text, ("dpo", "owner")))
        bureau = stack.enter_context(Bureau.connect(collaboration.analyst))
        rig = Rig(collaboration, bureau, lists, stack)
        rig.start()
        yield rig


def _times(database: Path, job: str) -> dict[str, float]:
    """Return when each entry of `ENTRIES` of a job was written, in seconds since 1970."""
    from audit.entries import Entry, parse_time
    from audit.rows import Rows, open_reader, size_of

    with ExitStack() as stack:
        connection = open_reader(stack, database)
        with closing(Rows(connection)) as rows:
            entries = [Entry.decode(data) for data, *_ in rows.read(0, size_of(connection))]
    return {e.kind: parse_time(e.time).timestamp() for e in entries if e.job == job and e.kind in ENTRIES}


def job_text(size: str) -> str:
    """Return the job: which persons of the receiver's list are on the sender's?"""
    return f"""
job_type = "match/1"
purpose = "P-1"
legal_basis = "DPIA-1"
expected_use = "measurement"
collaboration = "gz.example"
recipients = ["{RECEIVER.organisation}"]
valid_hours = 24

[params]
receiver_keys = {int(float(size))}
areas = "demo-city"

[roles]
receiver = "{RECEIVER.node}"
sender = "{SENDER.node}"

[[inputs]]
role = "receiver"
dataset = "list-{size}"
columns = {{ key = "{COLUMN}" }}

[[inputs]]
role = "sender"
dataset = "list-{size}"
columns = {{ key = "{COLUMN}" }}
"""


def policy_text(department: Department, sizes: Sequence[str]) -> str:
    """Return a policy that permits that job as often as it is measured, with the limits that it takes."""
    datasets = [f"list-{size}" for size in sizes]
    opened = "".join(
        f"""
[datasets.{name}]
source = "local:{name}"
grade = "general-4"
personal = "sensitive"

[datasets.{name}.columns]
{COLUMN} = {{ type = "resident-id", use = ["join"] }}

[quotas.records-{name}]
dataset = "{name}"
counts = "rows"
limit = 1000000000
period = "calendar-quarter"
scope = "per-purpose"

[quotas.questions-{name}]
dataset = "{name}"
counts = "queries"
limit = 1000
period = "calendar-quarter"
scope = "per-purpose"

[[rules]]
id = "R-{name}"
requesters = ["bureau"]
purposes = ["P-1"]
job_types = ["match/1"]
roles = ["{"recipient" if department is RECEIVER else "source"}"]
datasets = ["{name}"]
columns = ["{COLUMN}"]
recipients = ["{RECEIVER.organisation}"]
min_sources = 2
max_rows = 20000000
max_fraction = "1"
min_coverage = "0.50"
quotas = ["records-{name}", "questions-{name}"]
rate = {{ jobs = 100, per = "month" }}
approvals = 2
approvers = ["dpo", "owner"]
"""
        for name in datasets
    )
    officers = "".join(
        f"""
[approvers.{role}]
keys = ["sha256:{letter * 64}"]
"""
        for role, letter in (("dpo", "d"), ("owner", "e"))
    )
    return f"""
schema = "minshu-policy/1"
policy_id = "{department.node}"
version = 1
not_before = 2026-12-01T00:00:00+08:00
expires = 2027-03-01T00:00:00+08:00
timezone = "Asia/Shanghai"
controller = "measurement"

[defaults]
min_group_size = 10
max_runtime_s = 3600
release_requires = "cosigned"

[requesters.bureau]
organisation = "{BUREAU}"
keys = ["sha256:{"a" * 64}"]

[purposes."P-1"]
title = "measurement"
legal_basis = "DPIA-1"
valid_until = 2027-02-28
{opened}{officers}
[retention]
journal_days = 1095
release_days = 30
intermediate = "job-end"
"""
