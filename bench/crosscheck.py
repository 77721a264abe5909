"""The main job, whole, at 1e5 and 1e6 people: scenario 1 with a coordinator, six nodes and all their checks.

`wall` runs from the moment every node has accepted, and the job is RUNNING, to SUCCEEDED: reading the
registers, tagging, matching, opening, releases stored. `rss` is the largest VmHWM of any node. The number of
people on the sealed list is compared with the truth, so a fast wrong answer is no figure.
"""

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.rows import Results, Row
from demo.collaboration import DEPARTMENTS, Collaboration, command, for_a_city_of
from demo.processes import Children
from demo.run import await_questions, job_text

if TYPE_CHECKING:
    from coordinator.client.sdk import Job

SIZES: Final = {"1e5": "demo", "1e6": "bench"}
"""Size in people → city profile."""

LONG_SEEDS: Final = (1, 2, 3)

_REGISTER: Final = DEPARTMENTS[0]


@dataclass(frozen=True, slots=True)
class Measured:
    """One job: seconds from RUNNING to SUCCEEDED, and the largest node's peak memory in MB."""

    wall_s: float
    rss_mb: float


def measure(results: Results, *, long: bool) -> None:
    """Measure `wall` and `rss` at each size; long, at 1e6 for several seeds."""
    if long:
        runs = [(f"1e6 seed {seed}", SIZES["1e6"], seed) for seed in LONG_SEEDS]
    else:
        runs = [(size, profile, 1) for size, profile in SIZES.items()]
    for name, profile, seed in runs:
        if results.has(f"rss {name}"):
            continue
        measured = run(profile, seed)
        if not results.has(f"wall {name}"):
            results.add(Row(f"wall {name}", measured.wall_s, "s"))
        results.add(Row(f"rss {name}", measured.rss_mb, "MB"))


def run(profile: str, seed: int) -> Measured:
    """Build the city, set up the collaboration, run the job and compare its answer with the truth.

    Raises:
        RuntimeError: the job did not succeed, or its answer is wrong.
    """
    from demo.city import generate, load_expected
    from minshu import Bureau

    with tempfile.TemporaryDirectory(prefix="minshu-bench-") as temporary, Children() as children:
        folder = Path(temporary)
        city = folder / "city"
        manifest = generate(profile, seed, city, workers=os.cpu_count() or 1)
        expected = load_expected(city)
        collaboration = Collaboration(folder / "homes", city, children)
        _set_up(collaboration, manifest.population)
        with Bureau.connect(collaboration.analyst) as bureau:
            question = folder / "job.toml"
            question.write_text(job_text(), encoding="utf-8")
            job = bureau.submit(question)
            wall_s = _wall(collaboration, job)
        peaks = children.peaks()
        found = _flagged(collaboration, job.id, folder / "opened.arrow")
    if found != expected.flagged:
        raise RuntimeError(f"{found} people on the sealed list, {expected.flagged} expected")
    return Measured(wall_s, max(peaks[department.folder] for department in DEPARTMENTS))


def _set_up(collaboration: Collaboration, people: int) -> None:
    """Bring everything up to running nodes; the policies are the examples, for a city of this size."""
    collaboration.found()
    collaboration.enrol()
    collaboration.add_datasets()
    for department in DEPARTMENTS:
        collaboration.pin(department)
        text = for_a_city_of(people, collaboration.policy(department))
        collaboration.activate(department, collaboration.sign_policy(department, text, ("dpo", "owner")))
        collaboration.start_node(department)


def _wall(collaboration: Collaboration, job: "Job") -> float:
    """Approve a job everywhere and return the seconds from RUNNING to SUCCEEDED."""
    await_questions(job)
    for department in DEPARTMENTS:
        for role in ("dpo", "owner") if department.datasets else ():
            collaboration.approve(department, job.id, role)
    started = 0.0
    for view in job.events():
        if view.state == "RUNNING" and not started:
            started = time.perf_counter()
        if view.ended and not (view.succeeded and started):
            raise RuntimeError(f"the job ended {view.state}: {view.code} {view.sentence}")
    return time.perf_counter() - started


def _flagged(collaboration: Collaboration, job: str, opened: Path) -> int:
    """Open the sealed list as the register's officer would, and return how many people are on it."""
    import pyarrow as pa

    command("minshu-node", "release", "open", job, "--out", opened, "--home", collaboration.home(_REGISTER))
    with pa.OSFile(str(opened)) as file:
        return int(pa.ipc.open_stream(file).read_all().num_rows)
