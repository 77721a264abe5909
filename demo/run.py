"""`make demo`: the main job, whole and for real, on a synthetic city, and every attack it must refuse.

A coordinator, a neutral node and five departments' nodes run as processes of their own and speak mutual TLS
on loopback. What stands in demo-out/summary.json was measured in this run; the exit code is 0 only if the
flagged people are exactly the right ones, every attack was refused, every journal verifies, and no planted
identifier was found in anything that left a node.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.table import Table as Grid

from demo.collaboration import (
    DEPARTMENTS,
    Collaboration,
    CommandFailed,
    Department,
    command,
    command_json,
    for_a_city_of,
    trusted,
    with_datasets,
    with_overlaps,
)
from demo.narration import Failed, Narrator, explained
from demo.outfolder import whole
from demo.processes import Children
from protocols.envelope import JOB, Envelope, decode_envelope
from protocols.errors import MinshuError

if TYPE_CHECKING:
    import pyarrow as pa

    from coordinator.client.outcomes import FiledOutcome
    from coordinator.client.release import Release
    from coordinator.client.sdk import Job
    from demo.city import Expected
    from minshu import Bureau

CANARIES_PER_TABLE: Final = 4
UNAPPROVED_SECONDS: Final = 4
ATTACK_DATASETS: Final = ("population_empty", "population_garbage")

POLICE, HUMAN_RESOURCES, HEALTH, EDUCATION, HOUSING, STATISTICS = DEPARTMENTS


@dataclass(slots=True)
class Summary:
    """What demo-out/summary.json says; times in seconds, memory in MB."""

    flagged: int = 0
    confirmed: int = 0
    equals_expected: bool = False
    refused: list[dict[str, str]] = field(default_factory=list)
    stored_answer: bool = False
    outcome: dict[str, int] = field(default_factory=dict)
    journals_verified: bool = False
    leak_scan: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    peak_rss_mb: dict[str, float] = field(default_factory=dict)
    cores: int = os.cpu_count() or 1

    def to_json(self) -> str:
        """Return the file's text."""
        plain = {name: getattr(self, name) for name in self.__slots__}
        plain["seconds"] = {name: round(value, 2) for name, value in self.seconds.items()}
        return json.dumps(plain, ensure_ascii=False, indent=1) + "\n"


def run(out: Path, *, profile: str = "demo", seed: int = 1) -> int:
    """Run the demo and leave its results in `out`; return the exit code.

    Everything is built in a hidden folder beside `out` and renamed at the end: `out` is whole or as before.

    Raises:
        MinshuError: something is off; nothing is left but the message.
    """
    with whole(out) as work, Children() as children:
        Demo(work, children, profile=profile, seed=seed).play()
    return 0


class Demo(Narrator):
    """One run, step by step."""

    def __init__(self, work: Path, children: Children, *, profile: str, seed: int) -> None:
        """Prepare a run in the folder `work`."""
        super().__init__()
        self.profile, self.seed = profile, seed
        self.children = children
        self.work = work
        self.city = work / "city"
        self.result = work / "result"
        self.collaboration = Collaboration(work / "homes", self.city, children, record=True)
        self.summary = Summary()

    def play(self) -> None:
        """Run every step.

        Raises:
            Failed: something is not as it must be.
            MinshuError: a step could not be done.
        """
        with explained(self.collaboration.folder):
            self._play()

    def _play(self) -> None:
        expected = self._build_city()
        self._crack()
        self._found()
        bureau = self._connect()
        self._dishonest(bureau)
        job, records = self._main_job(bureau, expected)
        self._afterwards(bureau, job, expected)
        bureau.close()
        self._hand_over()
        self.summary.peak_rss_mb = self.children.peaks()
        for child in reversed(self.children.all):
            child.stop()
        self._audit()
        self._tampered()
        self._scan(records)
        self.summary.seconds["total"] = time.perf_counter() - self.started
        (self.result / "summary.json").write_text(self.summary.to_json(), encoding="utf-8")
        self._closing_words()

    # -- steps ------------------------------------------------------------------------------------------

    def _build_city(self) -> "Expected":
        from demo.city import generate, load_expected, load_manifest

        self.step("A synthetic city")
        begun = time.perf_counter()
        generate(self.profile, self.seed, self.city, workers=os.cpu_count() or 1)
        self.summary.seconds["city"] = time.perf_counter() - begun
        expected, manifest = load_expected(self.city), load_manifest(self.city)
        self.say(f"{manifest.population:,} people, none of them real, in the registers of ten departments.")
        self.say(
            f"The truth, which no node sees: {expected.flagged:,} are known to two or more departments "
            f"and not to the police."
        )
        return expected

    def _crack(self) -> None:
        """Show on one district and birth year that a list of hashed identifiers is a list of identifiers."""
        import pyarrow.parquet as pq

        from demo.crack import crack

        self.step("Why not simply exchange hashes?")
        register = self.collaboration.register(HUMAN_RESOURCES, "insured")
        numbers = pq.read_table(register, columns=["resident_id"])["resident_id"].to_pylist()
        area, year = "990101", 1985
        listed = {
            hashlib.sha256(number.encode()).digest()
            for number in numbers
            if number and len(number) == 18 and number.startswith(f"{area}{year}")
        }
        cracked = crack(listed, area, year)
        self.say(
            f"{cracked.hashes} SHA-256 hashes of one district and birth year: {cracked.found} identifiers "
            f"read back in {cracked.seconds:.1f} s, by trying all {cracked.candidates:,} that exist."
        )
        self.say(
            "[dim]Extrapolated, not run: every identifier of a whole city in "
            f"{cracked.city_minutes:.0f} minutes on one core.[/dim]"
        )

    def _found(self) -> None:
        """Set up the collaboration and start its processes."""
        from demo.city import empty_register, garbage_register, load_expected, load_manifest

        self.step("Six nodes, a coordinator and an analyst")
        begun = time.perf_counter()
        c = self.collaboration
        c.found()
        c.enrol()
        self.say("Enrolled with one-time tokens; the roster is signed by two of three root keys.")
        c.add_datasets()
        # What a dishonest police department would bring; its catalogue publishes the size of the true list.
        size = load_expected(self.city).lists["police"].distinct_keys
        empty = empty_register(self.work / "attack-empty")
        garbage = garbage_register(self.work / "attack-garbage", size, self.seed)
        for dataset, file in zip(ATTACK_DATASETS, (empty, garbage), strict=True):
            c.add_dataset(POLICE, dataset, file, "--published-keys", str(size))
        for department in DEPARTMENTS:
            c.pin(department)
        self._one_signature()
        for department in DEPARTMENTS:
            text = c.policy(department)
            if department is POLICE:
                # As a dishonest department would write it: with two more registers.
                text = with_datasets(text, "population", ATTACK_DATASETS)
            if department is HUMAN_RESOURCES:
                # The most careful department: two lists of 20,000 in a quarter and no third.
                text = text.replace("limit = 60000", "limit = 40000")
            if department in (EDUCATION, HOUSING):
                (dataset,) = department.datasets
                text = with_overlaps(text, dataset, _scenario_text("overlap.policy.toml"))
            text = for_a_city_of(load_manifest(self.city).population, text)
            c.activate(department, c.sign_policy(department, text, ("dpo", "owner")))
        self.say("Each department's policy is signed by its data protection officer and its data owner.")
        for department in DEPARTMENTS:
            c.start_node(department)
        c.await_nodes()
        self.summary.seconds["enrol"] = time.perf_counter() - begun

    def _one_signature(self) -> None:
        """Refused case: a policy that only the DPO signed."""
        c = self.collaboration
        envelope = c.sign_policy(HEALTH, c.policy(HEALTH), ("dpo",), name="one-signature")
        try:
            c.activate(HEALTH, envelope)
        except CommandFailed as error:
            self.summary.refused.append({"case": "one-signature policy", "reason": error.reason})
        else:
            raise Failed("a policy with one signature was activated")

    def _refused(self, case: str, reason: str) -> None:
        self.summary.refused.append({"case": case, "reason": reason})
        self._say_refused(case, reason)

    def _say_refused(self, case: str, reason: str) -> None:
        self.say(f"[green]refused[/green] {case}: {reason}")

    def _connect(self) -> "Bureau":
        from minshu import Bureau

        return Bureau.connect(self.collaboration.analyst)

    def _job_file(self, name: str, text: str) -> Path:
        """Write a job.toml and return its path."""
        path = self.work / "jobs" / f"{name.replace(' ', '-')}.toml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def _approve(
        self, job: str, departments: Sequence[Department], *, show: Department | None = None
    ) -> None:
        """Approve a job at each department, once as its DPO and once as its owner."""
        for department in departments:
            for role in ("dpo", "owner"):
                prompt = self.collaboration.approve(department, job, role)
                if department is show and role == "dpo":
                    self.quote("\n".join(_shortened_prompt(prompt)))
        names = ", ".join(d.title for d in departments)
        self.say(f"Approved twice, by different people, at {names}.")

    def _main_job(self, bureau: "Bureau", expected: "Expected") -> tuple["Job", list[str]]:
        """Ask the question of scenario 1; return the job and the identifiers on the police's sealed list."""
        self.step("The question: who is known to two or more departments and not to the police? (疑似漏登)")
        question = self._job_file("scenario-1", job_text())
        self.say("Asked first what every node would answer, before anything runs:")
        self.quote("\n".join(_shortened_explanation(bureau.explain(question).lines("en"))))
        job = bureau.submit(question)
        self.say(f"Submitted and signed: {job.id}")
        await_questions(job)
        self.say("What the health department's officer is shown before signing:")
        givers = [d for d in DEPARTMENTS if d.datasets]
        begun = time.perf_counter()
        self._approve(job.id, givers, show=HEALTH)
        with self.children.watched(job.cancel):
            view = job.wait()
        self.summary.seconds["protocol"] = time.perf_counter() - begun
        if view.state != "SUCCEEDED":
            raise Failed(f"the job ended {view.state}: {view.code} {view.sentence}")
        release = job.release()
        self._keep_releases(release)
        keys = self._open_records(job.id)
        self._compare(release.to_arrow(), keys, expected)
        self._file_outcome(job)
        return job, keys

    def _keep_releases(self, table: "Release") -> None:
        """Copy the main job's releases: the bureau's table also opened, the police's list only sealed."""
        c, folder = self.collaboration, self.result / "releases"
        table.save(folder)
        shutil.copyfile(c.coordinator / "releases" / table.note.release, folder / f"{table.name}.sealed")
        police = c.home(POLICE)
        for release in command_json("minshu-node", "status", "--home", police)["releases"]:
            if release["job"] == table.note.job and release["class"] == "B":
                kept = police / "releases" / release["release"]
                shutil.copyfile(f"{kept}.sealed", folder / f"{release['name']}.sealed")
                shutil.copyfile(f"{kept}.note", folder / f"{release['name']}.note.dsse")

    def _open_records(self, job: str) -> list[str]:
        """Open the sealed list as the police's duty officer would; return its typed keys."""
        return [str(key) for key in self.collaboration.open_records(POLICE, job)["key"].to_pylist()]

    def _compare(self, table: "pa.Table", keys: list[str], expected: "Expected") -> None:
        """Print what came out beside the truth, and hold one against the other."""
        import pyarrow.parquet as pq

        from protocols.jobs.crosscheck import street_table

        truth = pq.read_table(self.city / "truth" / "flagged.parquet")
        unregistered = {
            f"RIC:{number}"
            for number, meaning in zip(
                truth["resident_id"].to_pylist(), truth["meaning"].to_pylist(), strict=True
            )
            if meaning == "true"
        }
        digest = hashlib.sha256("".join(f"{key}\n" for key in sorted(keys)).encode()).hexdigest()
        right_table = street_table(expected.streets, 10).table
        same_table = {name: table[name].to_pylist() for name in table.column_names} == {
            name: column.tolist() for name, column in right_table.columns.items()
        }
        same_people = (
            digest == expected.flagged_sha256.removeprefix("sha256:") and len(keys) == expected.flagged
        )
        self.summary.flagged = len(keys)
        self.summary.confirmed = len(unregistered & set(keys))
        self.summary.equals_expected = same_people and same_table
        self._print_streets(table)
        self.say(
            f"The police's sealed list: [bold]{len(keys):,}[/bold] people, suspected, needs human "
            f"verification (疑似, 需人工核实). The truth: {expected.flagged:,}."
        )
        self.say(
            f"When checked by people, {self.summary.confirmed:,} turn out unregistered "
            f"({100 * self.summary.confirmed / max(1, len(keys)):.1f} %)."
        )
        if not self.summary.equals_expected:
            raise Failed(
                f"the answer differs from the truth (people equal: {same_people}, table equal: {same_table})"
            )

    def _print_streets(self, table: "pa.Table") -> None:
        rows = table.to_pylist()
        grid = Grid(
            title="The bureau's street table, by district", title_justify="left", box=None, padding=(0, 2)
        )
        for column, justify in (("district", "left"), ("people", "right"), ("streets shown", "right"),
                                ("withheld", "right")):  # fmt: skip
            grid.add_column(column, justify="right" if justify == "right" else "left")
        for row in rows:
            if row["level"] != "district":
                continue
            streets = [r for r in rows if r["level"] == "street" and r["district"] == row["district"]]
            hidden = sum(r["withheld"] for r in streets)
            grid.add_row(
                row["district"],
                "withheld" if row["withheld"] else f"{row['count']:,}",
                str(len(streets) - hidden),
                str(hidden),
            )
        self.console.print()
        self.console.print(grid)
        self.say(
            "[dim]Groups below 10 are withheld, and others with them where a sum would give one away; "
            "the rest is rounded to 5.[/dim]"
        )

    def _file_outcome(self, job: "Job") -> None:
        """After three months of visits, the police say how many of the list turned out right (评估)."""
        s = self.summary
        command(
            "minshu-node", "outcome", job.id, "--home", self.collaboration.home(POLICE),
            "--checked", str(s.flagged), "--confirmed", str(s.confirmed), "--note", "核实完毕",
        )  # fmt: skip
        filed = self._await_outcome(job)
        s.outcome = {"checked": filed.checked, "confirmed": filed.confirmed}
        if s.outcome != {"checked": s.flagged, "confirmed": s.confirmed}:
            raise Failed(f"the outcome reached the bureau as {filed}")
        self.say(f"The police file what became of it; the bureau sees: {filed}.")

    def _await_outcome(self, job: "Job") -> "FiledOutcome":
        deadline = time.monotonic() + 30
        while not (outcomes := job.view().outcomes):
            if time.monotonic() > deadline:
                raise Failed("the outcome the police filed never reached the bureau")
            time.sleep(0.1)
        return outcomes[0]

    # -- attacks ----------------------------------------------------------------------------------------

    def _dishonest(self, bureau: "Bureau") -> None:
        """What is tried before the question is asked: nothing of it may end in an answer."""
        self.step("What a dishonest department or analyst would try first")
        for case in self.summary.refused:
            self._say_refused(**case)
        unapproved = self._unapproved(bureau)
        self._negative_list(bureau)
        self._bad_register(bureau, "empty-input register", "population_empty")
        self._bad_register(bureau, "garbage register of the right size", "population_garbage")
        self._ended("unapproved job", unapproved)

    def _afterwards(self, bureau: "Bureau", job: "Job", expected: "Expected") -> None:
        """What is tried once there is an answer: it may be had again, but nothing beside it."""
        self.step("And once there is an answer")
        self._forged_job(job)
        self._same_question(bureau, job)
        self._end("same lists at another threshold", bureau, job_text().replace("k = 2", "k = 3"))
        self._repeated_overlap(bureau, expected)
        self._over_budget(bureau)
        self._stopped(bureau)

    def _same_question(self, bureau: "Bureau", job: "Job") -> None:
        """Ask again while nobody's data has changed: the stored answer, at no cost."""
        before = self._budgets()
        again = bureau.submit(self._job_file("same-question", job_text()))
        view = again.wait(progress=False)
        if view.state != "SUCCEEDED" or view.answered_by != job.id:
            raise Failed(f"the same question ended {view.state} {view.code}, expected the stored answer")
        if again.release().to_arrow() != job.release().to_arrow():
            raise Failed("the same question got another answer")
        if self._budgets() != before:
            raise Failed("the stored answer was charged again")
        self.summary.stored_answer = True
        self.say("The same question again: the stored answer, no new run and no new cost.")

    def _repeated_overlap(self, bureau: "Bureau", expected: "Expected") -> None:
        """Refused case: the same overlap counted once more, to average two noises out.

        Asked the same way, it would be the stored answer; so the two departments change seats.
        """
        text = _scenario_text("overlap.toml")
        begun = time.perf_counter()
        job = bureau.submit(self._job_file("overlap", text))
        with self.children.watched(job.cancel):
            view = job.wait(progress=False)
        self.summary.seconds["overlap"] = time.perf_counter() - begun
        if view.state != "SUCCEEDED":
            raise Failed(f"the overlap ended {view.state}: {view.code} {view.sentence}")
        (row,) = job.release().to_arrow().to_pylist()
        truth = sum(
            persons
            for region, persons in expected.venn.items()
            if {EDUCATION.folder, HOUSING.folder} <= set(region.split("+"))
        )
        # Laplace noise is beyond five times the half width of its 95 % less than once in a million times.
        if abs(row["value"] - truth) > 5 * (row["high"] - row["low"]):
            raise Failed("the overlap is further from the truth than noise can be")
        self.say(
            f"How many persons education and housing have in common: {row['value']:,.0f} "
            f"({row['low']:,.0f} to {row['high']:,.0f} with 95 %); nobody can tell from it who is among them."
        )
        swapped = text.replace("source-1", "source-0").replace("source-2", "source-1")
        self._end("overlap asked once more", bureau, swapped.replace("source-0", "source-2"))

    def _budgets(self) -> list[Any]:
        """Return what every department's budgets and quotas have left, and what spent the rest."""
        c = self.collaboration
        return [command_json("minshu-node", "budget", "--home", c.home(d)) for d in DEPARTMENTS]

    def _over_budget(self, bureau: "Bureau") -> None:
        """Refused case: a new question to data whose quota of the quarter is spent."""
        register = self.collaboration.register(HOUSING, "leases")
        os.utime(register)
        self.say("The housing department delivers its list anew: no stored answer serves any more.")
        self._end("job over the quota", bureau, job_text())
        self.say(
            "What the human resources department has given away, and to which jobs. The one with the garbage "
            "register counts: data had left for it when it was found out."
        )
        home = self.collaboration.home(HUMAN_RESOURCES)
        self.quote(command("minshu-node", "budget", "--home", home))

    def _stopped(self, bureau: "Bureau") -> None:
        """Refused case: one officer halts the purpose, with one signature."""
        c = self.collaboration
        stop = self.work / "stop.dsse"
        command(
            "minshu-policy", "stop", "--node", HEALTH.node, "--scope", "purpose", "--value", "P-2026-001",
            "--reason", "复核期间暂停", "--key", c.officer(HEALTH, "dpo"), "--out", stop,
        )  # fmt: skip
        command("minshu-node", "stop", stop, "--home", c.home(HEALTH))
        self.say("The health department's officer stops the purpose, with one signature.")
        job = bureau.submit(self._job_file("job-under-a-stop", job_text()))
        job.wait(progress=False)
        # Others refuse as well, their quota being spent; what counts here is this department's reason.
        deadline = time.monotonic() + 30
        while not (run := next(run for run in job.view().runs if run.node == HEALTH.node)).code:
            if time.monotonic() > deadline:
                raise Failed("the department that stopped the purpose never answered")
            time.sleep(0.1)
        if run.code != "stopped":
            raise Failed(f"a stopped purpose was answered {run.code}")
        self._refused("job under a stop", f"{run.node}: {run.code}: {run.sentence}")

    def _end(self, case: str, bureau: "Bureau", text: str, approvers: Sequence[Department] = ()) -> None:
        """Submit a job that must not succeed, with all approvals, and note why it was refused."""
        job = bureau.submit(self._job_file(case, text))
        if approvers:
            await_questions(job)
            self._approve(job.id, approvers)
        self._ended(case, job)

    def _ended(self, case: str, job: "Job") -> None:
        view = job.wait(progress=False)
        if view.state == "SUCCEEDED":
            raise Failed(f"the {case} job was carried out")
        self._refused(case, f"{view.state}, {view.code}: {view.sentence}")

    def _forged_job(self, job: "Job") -> None:
        """Change one parameter of the signed main job and keep its signature."""
        genuine = decode_envelope(self.collaboration.kept_job(job.id))
        forged = Envelope(JOB, genuine.payload.replace(b'"k":2', b'"k":3'), genuine.signatures)
        try:
            self.collaboration.submit_raw(forged.encode())
        except MinshuError as error:
            self._refused("forged job", f"{error.code}: {error.message}")
        else:
            raise Failed("a forged job was accepted")

    def _negative_list(self, bureau: "Bureau") -> None:
        text = two_source_job_text().replace(
            'last_seen = "last_seen_month" }', 'last_seen = "bank_account" }', 1
        )
        self._end("negative-list column", bureau, text)

    def _unapproved(self, bureau: "Bureau") -> "Job":
        """Submit a job that nobody approves; it waits until it expires."""
        until = datetime.now(UTC) + timedelta(seconds=UNAPPROVED_SECONDS)
        text = two_source_job_text().replace("valid_hours = 72", f"expires = {until:%Y-%m-%dT%H:%M:%SZ}")
        return bureau.submit(self._job_file("unapproved job", text))

    def _bad_register(self, bureau: "Bureau", case: str, dataset: str) -> None:
        """Have the police bring a list that knows nobody, to receive everybody. Two sources are enough."""
        text = two_source_job_text().replace('dataset = "population"', f'dataset = "{dataset}"')
        self._end(case, bureau, text, [POLICE, HUMAN_RESOURCES, EDUCATION])

    # -- afterwards -------------------------------------------------------------------------------------

    def _hand_over(self) -> None:
        """Leave what auditors get: each journal as a bundle, and the keys, which come on another way."""
        c = self.collaboration
        self.step("Journals, handed to an auditor")
        c.hand_over(self.result)
        for name in c.journals:
            # The bare log, for readers that know C2SP tlog-tiles and nothing else.
            bundle, copy = self.result / "bundles" / name, self.result / "journals" / name
            copy.mkdir(parents=True)
            shutil.copyfile(bundle / "checkpoint", copy / "checkpoint")
            shutil.copytree(bundle / "tile", copy / "tile")
        self.say(f"{len(c.journals)} bundles: journal and signed documents, no list, no table, no record.")

    def _audit(self) -> None:
        """Audit every bundle alone, then all against each other, and draw the report."""
        bundles = [self.result / "bundles" / name for name in self.collaboration.journals]
        entries = admissions = 0
        table = ("--release", self.result / "releases" / "street-table.arrow")
        for bundle in bundles:
            found = command_json("minshu-audit", "verify", bundle, *trusted(self.result), *table)
            entries += found["size"]
            checks = {check["question"]: check for check in found["checks"]}
            admissions += checks["clauses"]["looked_at"]
        crossed = command_json("minshu-audit", "cross", *bundles, *trusted(self.result))
        if not crossed["ok"]:
            raise Failed("the journals do not agree with each other")
        for language in ("en", "zh"):
            report = self.result / ("report.html" if language == "en" else f"report.{language}.html")
            options = (*trusted(self.result), "--lang", language, "--out", report)
            command("minshu-audit", "report", *bundles, *options)
        self.summary.journals_verified = True
        self.say(
            f"{len(bundles)} journals verify, each cosigned by a quorum of other departments: "
            f"{entries} entries, every refusal among them."
        )
        self.say(
            f"{admissions} admissions decided again from the policy of their moment; what one journal says "
            "of a job stands in the others, too."
        )

    def _tampered(self) -> None:
        """Flip one bit of one entry, and show what the auditor sees."""
        bundle = self.work / "tampered"
        shutil.copytree(self.result / "bundles" / POLICE.folder, bundle)
        victim = max((bundle / "tile" / "entries").rglob("*"), key=lambda file: file.stat().st_size)
        data = bytearray(victim.read_bytes())
        data[len(data) // 2] ^= 1
        victim.write_bytes(data)
        self.say("One bit of the police's journal is flipped; the auditor sees:")
        try:
            command("minshu-audit", "verify", bundle, *trusted(self.result))
        except CommandFailed as seen:
            problems = [line for line in seen.output.splitlines() if line.startswith("problem")]
            if seen.code != 1 or not problems:
                raise
            self.quote("\n".join([*problems[:4], *seen.error.splitlines()[:1]]))
        else:
            raise Failed("a changed journal verified")

    def _scan(self, records: list[str]) -> None:
        """Search everything that left a node, every log and every home for planted identifiers."""
        from demo.leaks import Scanner

        self.step("Leaks")
        canaries = self._canaries(records)
        homes = self.collaboration.folder
        (homes / "printed.txt").write_text(self.console.export_text(clear=False), encoding="utf-8")
        findings = Scanner(canaries).scan([homes, self.result])
        size = sum(f.stat().st_size for f in homes.rglob("*") if f.is_file())
        self.summary.leak_scan = {"canaries": len(canaries), "found": len(findings)}
        self.say(
            f"{len(canaries)} planted identifiers, as text, hex, base64, SHA-256, SM3 and MD5, in "
            f"{size / 1e6:,.0f} MB of messages before sealing, logs, journals, databases and of what is "
            f"printed here: {len(findings)} found."
        )
        if findings:
            where = sorted({f"{f.form} in {f.file.relative_to(self.work)}" for f in findings})
            raise Failed(f"planted identifiers leaked: {'; '.join(where[:5])}")

    def _canaries(self, records: list[str]) -> list[str]:
        """Return identifiers of every department's list, of the flagged, and values no rule names."""
        import pyarrow.parquet as pq

        canaries = [key.partition(":")[2] for key in records[:: max(1, len(records) // CANARIES_PER_TABLE)]]
        for department in DEPARTMENTS:
            for table in department.datasets.values():
                data = pq.read_table(self.collaboration.register(department, table))
                step = max(1, data.num_rows // CANARIES_PER_TABLE)
                for column in ("resident_id", "name", "phone", "bank_account"):
                    if column not in data.column_names:
                        continue
                    values: list[Any] = data[column].take(list(range(0, data.num_rows, step))).to_pylist()
                    # A name of two characters is no canary: its bytes stand in random data by chance.
                    canaries += [str(v).strip() for v in values if v and len(str(v).strip().encode()) >= 11]
        return sorted(set(canaries))

    def _closing_words(self) -> None:
        self.step("Done")
        s = self.summary
        self.say(
            f"{s.seconds['total']:.0f} s in all, {s.seconds['protocol']:.0f} s of them for the job; "
            f"largest process {max(s.peak_rss_mb.values()):.0f} MB."
        )


def _shortened_explanation(lines: Sequence[str]) -> list[str]:
    """Return an explanation without what its answers have in common."""
    common = ("  rule: ", "  reason: ", "  hint: ")
    kept = [line for line in lines if line and not line.startswith(common)]
    return [*kept, "… and with each answer its rule, its reason and what to do"]


def _shortened_prompt(prompt: str) -> list[str]:
    """Return the Chinese half of an approval's page, of its longest list only the first lines."""
    head, chinese, *_english = prompt.split("\n\n")
    lines = chinese.splitlines()
    shown = next(n for n, line in enumerate(lines) if line.startswith("  只有违规串通")) + 3
    return [
        *head.splitlines(),
        "",
        *lines[:shown],
        f"… {len(lines) - shown} more such lines, and all in English",
    ]


def await_questions(job: "Job") -> None:
    """Wait until every node has answered the offer, some of them by asking for approvals.

    Raises:
        Failed: the job ended before.
    """
    for view in job.events():
        if all(run.state in ("AWAITING_APPROVAL", "ACCEPTED") for run in view.runs):
            return
    raise Failed(f"the job ended {view.state} before its approvals: {view.code} {view.sentence}")


def job_text() -> str:
    """Return scenario 1's job.toml."""
    return _scenario_text("job.toml")


def _scenario_text(name: str) -> str:
    return files("demo.scenarios.scenario_1").joinpath(name).read_text("utf-8")


def two_source_job_text() -> str:
    """Return the job with human resources and education as its only sources."""
    head, *inputs = job_text().split("[[inputs]]")
    left_out = ("source-2", "source-4")
    head = "".join(line for line in head.splitlines(keepends=True) if not line.startswith(left_out))
    keep = [part for part in inputs if not any(f'role = "{role}"' in part for role in left_out)]
    return "[[inputs]]".join([head, *keep]).replace("source-3", "source-2")
