"""tests/transcripts/governance.txt: what analyst and officers type and see, from a question to a stop.

Lines after `$` are run and compared, with real nodes; lines after `~` are what other people do meanwhile.
JOB is the first job, NEW the newest. Digests, times and dates are shown as `…`; standard error comes after
standard output; an exit code other than 0 stands in brackets.
"""

import re
import shlex
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from end_to_end.town import DATASET, HUMAN_RESOURCES, POLICE, Town

from demo.child import COMMANDS
from demo.collaboration import Department
from demo.run import two_source_job_text
from protocols.envelope import decode_envelope

TRANSCRIPT = Path(__file__).parents[1] / "transcripts" / "governance.txt"
LIMIT = "limit = 20000"
MASKS = (
    (r"sha256:[0-9a-f]{64}", "sha256:…"),
    (r"20\d\d-\d\d-\d\d(?:T\d\d:\d\d:\d\dZ|(?: \d\d:\d\d))?", "…"),
    (r"\d+ bytes", "… bytes"),
    # What a run is told of first, the others' refusal or its own answer, is a race.
    (r"CANCELLED \((?:peer-refused|approval-needed|permitted)\)", "CANCELLED (…)"),
)


class FrugalTown(Town):
    """A town whose human resources department lends its list once in a quarter."""

    def text(self, department: Department, names: Sequence[object]) -> str:
        text = self.policy(department)
        return text.replace("limit = 60000", LIMIT) if department == HUMAN_RESOURCES else text


class Stage:
    """The town seen from one folder, and what its people do."""

    def __init__(self, town: FrugalTown, folder: Path) -> None:
        self.town = town
        self.jobs: list[str] = []
        (folder / "job.toml").write_text(two_source_job_text(), "utf-8")
        (folder / "analyst").symlink_to(town.analyst)
        for department in (HUMAN_RESOURCES, POLICE):
            (folder / department.folder).symlink_to(town.home(department))
        for role in ("dpo", "owner"):
            (folder / f"{role}.pem").symlink_to(town.officer(HUMAN_RESOURCES, role))
        policy = town.folder / "policies" / HUMAN_RESOURCES.folder / "policy.toml"
        text = policy.read_text("utf-8")
        digest = decode_envelope(policy.with_suffix(".dsse").read_bytes()).payload_digest
        (folder / "policy.toml").write_text(text, "utf-8")
        following = re.sub(r"(?m)^version = 1 .*$", f'version = 2\nprevious = "{digest}"', text)
        (folder / "policy-2.toml").write_text(following.replace(LIMIT, "limit = 40000"), "utf-8")

    def run(self, line: str, capfd: pytest.CaptureFixture[str]) -> str:
        replaced = line.replace("JOB", self.jobs[0]).replace("NEW", self.jobs[-1]) if self.jobs else line
        words = shlex.split(replaced)
        code = import_module(COMMANDS[words[0]]).main(words[1:])
        output = "".join(capfd.readouterr())
        if words[:2] == ["minshu", "submit"]:
            self.jobs.append(output.strip())
        for pattern, shown in MASKS:
            output = re.sub(pattern, shown, output)
        return output + (f"[{code}]\n" if code else "")

    def meanwhile(self, what: str) -> None:
        town = self.town
        match what:
            case "the departments approve the job, and it runs":
                town.approve_all(self.jobs[-1])
                assert town.end(self.jobs[-1])["state"] == "SUCCEEDED"
            case "the job is answered":
                town.settled(self.jobs[-1])
            case "the outcome reaches the bureau":
                town.wait(lambda: town.show(self.jobs[0])["outcomes"], lambda: "no outcome")
            case "human resources deliver their list anew":
                with town.register(HUMAN_RESOURCES, DATASET[HUMAN_RESOURCES]).open("a") as file:
                    file.write("\n")
            case _:
                raise AssertionError(what)


@pytest.fixture
def stage(ground: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    folder, children = ground
    town = FrugalTown(folder, children)
    town.open()
    monkeypatch.chdir(tmp_path)
    return Stage(town, tmp_path)


@pytest.mark.long  # a town of its own; test_governance.py asserts the same steps
def test_the_transcript_of_governance_is_what_happens(
    stage: Stage, capfd: pytest.CaptureFixture[str]
) -> None:
    written = TRANSCRIPT.read_text("utf-8")
    seen = ""
    for line in written.splitlines():
        if line.startswith("# "):
            seen += ("\n" if seen else "") + line + "\n"
        if line.startswith("~ "):
            seen += line + "\n"
            stage.meanwhile(line[2:])
            capfd.readouterr()
        if line.startswith("$ "):
            seen += line + "\n" + stage.run(line[2:], capfd)
    assert seen == written
