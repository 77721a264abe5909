"""The main job, whole, at 1e5 and 1e6 people: scenario 1 with a coordinator, six nodes and all their checks.

Long, at 1e6 for several seeds and at 2.3e7: some hours, 20 GB below the temporary directory (`TMPDIR`).

`wall` runs from the moment every node has accepted, and the job is RUNNING, to SUCCEEDED: reading the
registers, tagging, matching, opening, releases stored. `rss` is the largest VmHWM of any node. The number of
people on the sealed list is compared with the truth, so a fast wrong answer is no figure.
"""

import hashlib
import os
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.rows import Results, Row
from demo.collaboration import DEPARTMENTS, Collaboration, command, for_a_city_of
from demo.processes import Child, Children
from demo.run import await_questions, job_text

if TYPE_CHECKING:
    from coordinator.client.sdk import Job

SIZES: Final = {"1e5": "demo", "1e6": "bench"}
"""Size in people → city profile."""

LONG_SEEDS: Final = (1, 2, 3)

RUNTIME_S: Final = 12 * 3600
"""Longest run that policies allow here; as written they allow an hour, which a city of two cores takes longer
than."""

ADMIT_S: Final = 1800
"""Longest time for reading lists; as it comes, the coordinator waits five minutes."""

_REGISTER: Final = DEPARTMENTS[0]


class _Patient(Collaboration):
    """A collaboration whose coordinator waits longer for admissions: five nodes share the cores here."""

    def start_coordinator(self) -> Child:
        """Start it with its own setting."""
        settings = self.coordinator / "coordinator.toml"
        text, found = re.subn(
            r"(?m)^admit_timeout_s = \d+", f"admit_timeout_s = {ADMIT_S}", settings.read_text("utf-8")
        )
        assert found == 1  # else it would wait as ever
        settings.write_text(text, "utf-8")
        return super().start_coordinator()


@dataclass(frozen=True, slots=True)
class Measured:
    """One job: seconds from RUNNING to SUCCEEDED, and the largest node's peak memory in MB."""

    wall_s: float
    rss_mb: float


def measure(results: Results, *, long: bool) -> None:
    """Measure `wall` and `rss` at each size; long, at 1e6 for several seeds. 2.3e7 is in bench/scale."""
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


def run(
    profile: str,
    seed: int,
    *,
    city: Path | None = None,
    furnish: Callable[[Collaboration], None] = Collaboration.add_datasets,
    limit: Callable[[Child], None] = lambda _child: None,
) -> Measured:
    """Build the city, set up the collaboration, run the job and compare its answer with the truth.

    Args:
        profile: size of the city.
        seed: of the city.
        city: one that is there already, instead of those two.
        furnish: registers every department's datasets.
        limit: is given each node's process as soon as it runs.

    Raises:
        RuntimeError: the job did not succeed, or its answer is wrong.
    """
    from demo.city import generate, load_expected, load_manifest
    from minshu import Bureau

    with tempfile.TemporaryDirectory(prefix="minshu-bench-") as temporary, Children() as children:
        folder = Path(temporary)
        if city is None:
            city = folder / "city"
            generate(profile, seed, city, workers=os.cpu_count() or 1)
        people, expected = load_manifest(city).population, load_expected(city)
        collaboration = _Patient(folder / "homes", city, children)
        _set_up(collaboration, people, furnish, limit)
        with Bureau.connect(collaboration.analyst) as bureau:
            question = folder / "job.toml"
            question.write_text(job_text(), encoding="utf-8")
            job = bureau.submit(question)
            wall_s = _wall(collaboration, job)
        peaks = children.peaks()
        found = _flagged(collaboration, job.id, folder / "opened.arrow")
    if found != (expected.flagged, expected.flagged_sha256):
        raise RuntimeError(f"{found[0]} people on the sealed list, {expected.flagged} expected, or others")
    return Measured(wall_s, max(peaks[department.folder] for department in DEPARTMENTS))


def _set_up(
    collaboration: Collaboration,
    people: int,
    furnish: Callable[[Collaboration], None],
    limit: Callable[[Child], None],
) -> None:
    """Bring everything up to running nodes; the policies are the examples, for a city of this size."""
    collaboration.found()
    collaboration.enrol()
    furnish(collaboration)
    for department in DEPARTMENTS:
        collaboration.pin(department)
        text = for_a_city_of(people, collaboration.policy(department))
        text = re.sub(r"(?m)^max_runtime_s = \d+", f"max_runtime_s = {RUNTIME_S}", text)
        collaboration.activate(department, collaboration.sign_policy(department, text, ("dpo", "owner")))
        limit(collaboration.start_node(department))


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


def _flagged(collaboration: Collaboration, job: str, opened: Path) -> tuple[int, str]:
    """Open the sealed list as the register's officer would; return how many people are on it, and who.

    Their keys ascend, so the digest of the lines is the one in the city's right answer.
    """
    import pyarrow as pa

    command("minshu-node", "release", "open", job, "--out", opened, "--home", collaboration.home(_REGISTER))
    with pa.OSFile(str(opened)) as file:
        reader, rows, digest = pa.ipc.open_stream(file), 0, hashlib.sha256()
        for batch in reader:
            rows += batch.num_rows
            digest.update("".join(f"{key}\n" for key in batch["key"].to_pylist()).encode())
    return rows, f"sha256:{digest.hexdigest()}"
