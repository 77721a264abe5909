"""A scenario as it is played: a city, departments as real processes, questions, answers, the audit.

What is particular to one scenario stands in its module and in the folder `scenario_N`: a job.toml for each
question, and each department's part of its policy.
"""

import csv
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from demo.city import keys_sha256
from demo.city.plan import make_plan
from demo.city.profile import AREA_CODES, profile_named
from demo.collaboration import (
    BUREAU,
    Collaboration,
    Department,
    command,
    command_json,
    for_a_city_of,
    trusted,
)
from demo.narration import Failed, Narrator, explained
from demo.processes import Children
from demo.run import await_questions

if TYPE_CHECKING:
    from coordinator.client.release import Release
    from coordinator.client.sdk import Job
    from minshu import Bureau

JOB_TYPE: Final = 'job_type = "'
DIRECTED: Final = ("dpo", "owner")
"""Who approves at each department where records about persons leave."""


@dataclass(frozen=True, slots=True)
class Codes:
    """The public code lists of a city, in order."""

    districts: tuple[str, ...]
    streets: tuple[str, ...]
    villages: tuple[str, ...]

    def fill(self, text: str) -> str:
        """Return a job.toml with the codes in the places of {districts}, {streets} and {villages}."""
        for name in self.__slots__:
            listed = ", ".join(f'"{code}"' for code in getattr(self, name))
            text = text.replace(f'"{{{name}}}"', listed)
        return text


def codes_of(profile: str) -> Codes:
    """Return the code lists of cities of that profile.

    Raises:
        InputError: there is no such profile.
    """
    plan = make_plan(profile_named(profile))
    return Codes(AREA_CODES, plan.street_codes, plan.village_codes)


def policy_template(number: int, department: Department) -> str:
    """Return the policy of a department in a scenario: what all have in common, then its own part.

    Who has no part of its own there only witnesses.
    """
    common = files("demo.scenarios")
    frame = common.joinpath("policy.toml").read_text("utf-8")
    own = files(f"demo.scenarios.scenario_{number}").joinpath(f"{department.folder}.policy.toml")
    part = own if own.is_file() else common.joinpath("witness.policy.toml")
    return frame.replace("department.gz.example/node-a", department.node) + part.read_text("utf-8")


class Scenario(Protocol):
    """What one scenario brings."""

    @property
    def number(self) -> int:
        """Its number."""
        ...

    @property
    def title(self) -> str:
        """Its name in both languages."""
        ...

    @property
    def departments(self) -> Sequence[Department]:
        """Who takes part."""
        ...

    def play(self, play: "Play") -> Mapping[str, Any]:
        """Ask the questions, hold the answers against the truth, and leave table.csv and the pictures.

        Returns:
            Figures for the summary.

        Raises:
            Failed: something is not as it must be.
        """
        ...


class Play(Narrator):
    """One run of a scenario, step by step."""

    def __init__(
        self,
        work: Path,
        children: Children,
        scenario: Scenario,
        *,
        profile: str,
        seed: int,
        policies: Callable[[Department, str], str] | None = None,
    ) -> None:
        """Prepare a run in the folder `work`.

        Args:
            work: empty.
            children: who looks after the processes.
            scenario: what is asked, and of whom.
            profile: size of the city.
            seed: of the city.
            policies: what a department makes of its policy before it is signed; None: nothing.
        """
        super().__init__()
        self.scenario, self.profile, self.seed = scenario, profile, seed
        self.codes = codes_of(profile)
        self.city, self.result = work / "city", work / "result"
        self.result.mkdir()
        self.jobs = work / "jobs"
        self.jobs.mkdir()
        self.children = children
        self.collaboration = Collaboration(
            work / "homes", self.city, children, departments=scenario.departments
        )
        self.seconds: dict[str, float] = {}
        self._policies = policies
        self.edits: dict[str, Callable[[str], str]] = {}
        """What a scenario makes of the job.toml of a question, by its name, before it is asked."""
        self._bureau: Bureau | None = None

    def run(self) -> None:
        """Play it to its end and leave summary.json.

        Raises:
            Failed: something is not as it must be.
            MinshuError: a step could not be done.
        """
        with explained(self.collaboration.folder):
            self._run()

    def open(self) -> None:
        """Build the city, set up the collaboration, and start its processes.

        Raises:
            Failed: something is not as it must be.
            MinshuError: a step could not be done.
        """
        self._build_city()
        self._found()

    def _run(self) -> None:
        self.open()
        figures = self.scenario.play(self)
        self.bureau.close()
        audited = self._audit()
        self.seconds["total"] = time.perf_counter() - self.started
        summary = {
            "scenario": self.scenario.number,
            "title": self.scenario.title,
            "profile": self.profile,
            "seed": self.seed,
            **figures,
            "equals_expected": True,
            "journals_verified": audited,
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
            "peak_rss_mb": self.children.peaks(),
            "cores": os.cpu_count() or 1,
        }
        text = json.dumps(summary, ensure_ascii=False, indent=1) + "\n"
        (self.result / "summary.json").write_text(text, encoding="utf-8")
        self.step("Done")
        self.say("table.csv, picture.png, picture.svg and summary.json; what left the nodes is in releases/.")

    # -- steps ------------------------------------------------------------------------------------------

    def _build_city(self) -> None:
        from demo.city import generate, load_manifest

        self.step(self.scenario.title)
        begun = time.perf_counter()
        generate(self.profile, self.seed, self.city, workers=os.cpu_count() or 1)
        self.seconds["city"] = time.perf_counter() - begun
        people = load_manifest(self.city).population
        self.say(f"A synthetic city of {people:,} people, none of them real.")

    def _found(self) -> None:
        """Set up the collaboration and start its processes."""
        from minshu import Bureau

        begun = time.perf_counter()
        c = self.collaboration
        c.found()
        c.enrol()
        c.add_datasets()
        for department in c.departments:
            c.pin(department)
            c.activate(department, c.sign_policy(department, self._policy(department), ("dpo", "owner")))
            c.start_node(department)
        c.await_nodes()
        self._bureau = Bureau.connect(c.analyst)
        self.seconds["enrol"] = time.perf_counter() - begun
        names = ", ".join(department.title for department in c.departments)
        self.say(f"Nodes, each with a policy that two officers signed: {names}.")

    def _policy(self, department: Department) -> str:
        """Return a department's policy with the keys and days of this run, and caps for so large a city."""
        text = self.collaboration.policy(department, policy_template(self.scenario.number, department))
        text = text.replace(f'organisation = "{BUREAU}"', f'organisation = "{self.collaboration.bureau}"')
        text = for_a_city_of(profile_named(self.profile).population, text)
        return text if self._policies is None else self._policies(department, text)

    @property
    def _folder(self) -> Any:
        return files(f"demo.scenarios.scenario_{self.scenario.number}")

    def ask(
        self, name: str, *, approvers: Iterable[Department] = (), roles: Sequence[str] = ("dpo",)
    ) -> "Release":
        """Ask the question in NAME.toml and return its answer, which stays in releases/NAME/.

        Args:
            name: of the question.
            approvers: see `answered`.
            roles: see `answered`.

        Raises:
            Failed: the job did not succeed.
        """
        release = self.answered(name, approvers=approvers, roles=roles).release()
        release.save(self.result / "releases" / name)
        if "within" in release.facts:
            self.say(f"{release.facts['within']}.")
        return release

    def answered(
        self, name: str, *, approvers: Iterable[Department] = (), roles: Sequence[str] = ("dpo",)
    ) -> "Job":
        """Ask the question in NAME.toml and return the job, which has succeeded.

        Where noise is added, what `minshu plan` says of it is printed before.

        Args:
            name: of the question.
            approvers: departments that approve.
            roles: who of each: DIRECTED where records leave, which takes two.

        Raises:
            Failed: the job did not succeed.
        """
        begun, job = self.submitted(name, approvers=approvers, roles=roles)
        with self.children.watched(job.cancel):
            view = job.wait(progress=False)
        if view.state != "SUCCEEDED":
            raise Failed(f"{name} ended {view.state}: {view.code} {view.sentence}")
        self.seconds[name] = time.perf_counter() - begun
        self.say(f"Answered in {self.seconds[name]:.1f} s.")
        return job

    def submitted(
        self, name: str, *, approvers: Iterable[Department], roles: Sequence[str]
    ) -> tuple[float, "Job"]:
        """Ask the question in NAME.toml, and have it approved; return when it was asked, and the job.

        Raises:
            Failed: it ended before its approvals.
        """
        file, job_type = self._question(name)
        if job_type == "release/1":
            self.quote(command("minshu", "plan", file, "--lang", "en"))
        begun = time.perf_counter()
        job = self.bureau.submit(file)
        waiting = list(approvers)
        if waiting:
            await_questions(job)
            for department in waiting:
                for role in roles:
                    self.collaboration.approve(department, job.id, role)
            people = "" if len(roles) == 1 else ", by two people at each"
            self.say(f"Approved at {', '.join(d.title for d in waiting)}{people}.")
        return begun, job

    def check_records(self, job: "Job", department: Department, persons: int, sha256: str) -> None:
        """Open the sealed list at its recipient, and hold the persons on it against the truth.

        Args:
            job: that made it.
            department: the recipient.
            persons: how many are right.
            sha256: see `demo.city.keys_sha256`.

        Raises:
            Failed: there are others.
        """
        listed = self.collaboration.open_records(department, job.id)["key"].to_pylist()
        keys = [str(key).removeprefix("RIC:").encode() for key in listed]
        if len(keys) != persons or keys_sha256(keys) != sha256:
            raise Failed(f"the sealed list of {department.title} has other people than the truth")
        self.say(
            f"The sealed list of {department.title}: [bold]{len(keys):,}[/bold] people, suspected, needs "
            "human verification (疑似, 需人工核实). They are those of the truth."
        )

    def refused(self, name: str) -> str:
        """Ask the question in NAME.toml, which must be refused; return the code.

        Raises:
            Failed: it was not.
        """
        file, _ = self._question(name)
        job = self.bureau.submit(file)
        with self.children.watched(job.cancel):
            view = job.wait(progress=False)
        if view.state != "REFUSED":
            raise Failed(f"{name} ended {view.state}, expected a refusal")
        self.say(f"[green]refused[/green] {view.code}: {view.sentence}")
        return view.code

    def ended(self, name: str) -> str:
        """Ask the question in NAME.toml, whose run a guard must end without an answer; return the code.

        Raises:
            Failed: it did not fail, or left something.
        """
        file, _ = self._question(name)
        job = self.bureau.submit(file)
        with self.children.watched(job.cancel):
            view = job.wait(progress=False)
        if view.state != "FAILED" or view.releases:
            raise Failed(f"{name} ended {view.state}, expected a guard to end it without an answer")
        self.say(f"[green]no answer[/green] {view.code}: {view.sentence}")
        return view.code

    def _question(self, name: str) -> tuple[Path, str]:
        """Write the job.toml of a question and print its first line; return the file and the job type."""
        text = self.codes.fill(self._folder.joinpath(f"{name}.toml").read_text("utf-8"))
        text = for_a_city_of(profile_named(self.profile).population, text)
        text = self.edits.get(name, str)(text)
        file = self.jobs / f"{name}.toml"
        file.write_text(text, encoding="utf-8")
        job_type = text.partition(JOB_TYPE)[2].partition('"')[0]
        self.step(f"{job_type}: {text.splitlines()[0].removeprefix('# ')}")
        return file, job_type

    @property
    def bureau(self) -> "Bureau":
        """The analyst's connection."""
        assert self._bureau is not None
        return self._bureau

    def write_table(self, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Write table.csv; None is an empty field."""
        with (self.result / "table.csv").open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(rows)

    @property
    def picture(self) -> Path:
        """Where the pictures belong, without an ending."""
        return self.result / "picture"

    def _opened(self) -> list[str | Path]:
        """Return the options that hand the auditor every release, under names of their own."""
        folder = self.jobs.with_name("opened")
        folder.mkdir(exist_ok=True)
        options: list[str | Path] = []
        for table in sorted((self.result / "releases").glob("*/*.arrow")):
            copy = folder / f"{table.parent.name}.arrow"
            shutil.copyfile(table, copy)
            options += ["--release", copy]
        return options

    def _audit(self) -> bool:
        """Have an auditor verify every journal, and all against each other."""
        c = self.collaboration
        self.step("Journals, handed to an auditor")
        begun = time.perf_counter()
        c.hand_over(self.result)
        for child in reversed(self.children.all):
            child.stop()
        bundles = [self.result / "bundles" / name for name in c.journals]
        entries = sum(
            command_json("minshu-audit", "verify", bundle, *trusted(self.result), *self._opened())["size"]
            for bundle in bundles
        )
        if not command_json("minshu-audit", "cross", *bundles, *trusted(self.result))["ok"]:
            raise Failed("the journals do not agree with each other")
        self.seconds["audit"] = time.perf_counter() - begun
        self.say(f"{len(bundles)} journals verify and agree with each other: {entries} entries.")
        return True
