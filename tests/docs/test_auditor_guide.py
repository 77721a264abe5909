"""docs/auditors.md: whoever types what the page says sees what the page shows, of a job that really ran."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from docs.desk import found_authority, lay, stamp

from audit import page as audit_page
from audit.findings import Answer

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "auditors.md").read_text("utf-8")


def bash(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True, encoding="utf-8",
        timeout=60,
    )  # fmt: skip


def steps() -> Iterator[tuple[str, str]]:
    """Yield each part of the page that has commands: all of them, and what they are said to print."""
    for part in re.split(r"(?m)^## ", PAGE):
        script = ""
        for language, text in re.findall(r"(?ms)^```(sh|text)\n(.*?)^```$", part):
            if language == "sh":
                script += text
            else:
                yield script, text
                script = ""
        assert not script, "commands without their output"


def missing(shown: str, printed: str) -> list[str]:
    """Return the lines that were not printed, or not in this order; `…` stands for anything."""
    lines = iter(printed.splitlines())
    return [
        line
        for line in shown.splitlines()
        if not any(re.fullmatch(".*".join(map(re.escape, line.split("…"))), each) for each in lines)
    ]


@dataclass
class Walk:
    """The page, typed from top to bottom: what each step printed, and the folder as it is afterwards."""

    folder: Path
    printed: list[tuple[str, str]]


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Walk:
    place = tmp_path_factory.mktemp("auditor")
    folder, authority = place / "desk", place / "authority"
    lay(folder, place / "town")
    authority.mkdir()
    found_authority(authority)
    shutil.copy(authority / "tsa-root.pem", folder)
    printed = []
    for script, shown in steps():
        request, answered = script.partition("minshu-audit timestamp attach")[::2]
        done = bash(request, folder)
        output = done.stdout
        if answered:
            # Between the two commands the request goes to the authority, and its answer comes back.
            stamp(authority, folder / "health.tsq", folder / "health.tsr")
            done = bash("minshu-audit timestamp attach" + answered, folder)
            output += done.stdout
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        printed.append((shown, output))
    return Walk(folder, printed)


@pytest.mark.alone  # plays the page from its first bundle on; `.ci/run` runs it by itself
def test_every_command_of_the_page_succeeds_and_prints_what_the_page_shows(walk: Walk) -> None:
    assert len(walk.printed) == 9
    for shown, output in walk.printed:
        assert missing(shown, output) == [], output


@pytest.mark.alone  # plays the page from its first bundle on; `.ci/run` runs it by itself
def test_the_page_shows_output_after_every_command(walk: Walk) -> None:
    commands = [
        line for script, _ in steps() for line in script.splitlines() if line.startswith("minshu-audit ")
    ]
    verbs = {line.split()[1] for line in commands}
    assert verbs == {"keys", "verify", "cross", "inclusion", "timestamp", "watch", "report"}
    assert not missing("OK: …", "… OK: …\nOK: the logs agree\n")
    assert missing("OK: …\nOK: …", "OK: once\n") == ["OK: …"]


@pytest.mark.alone  # plays the page from its first bundle on; `.ci/run` runs it by itself
def test_the_reports_stand_alone_and_name_what_was_found(walk: Walk) -> None:
    english, chinese = ((walk.folder / name).read_text("utf-8") for name in ("report.html", "report.zh.html"))
    for words in ("✓ Verified", "✓ the logs agree", "police.gz.example/node-a/journal/1", "crosscheck/1"):
        assert words in english
    assert "✓ 核验通过" in chinese
    assert "health.gz.example/node-a/journal/1" in chinese
    assert "://" not in english + chinese


@pytest.mark.alone  # plays the page from its first bundle on; `.ci/run` runs it by itself
def test_by_hand_openssl_finds_a_checkpoint_and_a_job_that_were_changed(walk: Walk) -> None:
    by_hand, first_job = (script for script, _ in list(steps())[:2])
    again = by_hand.partition("\n")[2]  # not unpacked again
    assert bash(again + first_job, walk.folder).returncode == 0
    checkpoint = walk.folder / "health" / "checkpoint"
    text = checkpoint.read_text("utf-8")
    checkpoint.write_text(text.replace("\n17\n", "\n16\n"))
    assert bash(again, walk.folder).returncode != 0
    checkpoint.write_text(text)
    other = first_job.replace(" > job.json\n", " | sed s/crosscheck/crosschecl/ > job.json\n")
    assert other != first_job
    done = bash(other, walk.folder)
    assert done.returncode != 0
    assert "job.json: FAILED" in done.stdout


@pytest.mark.alone  # plays the page from its first bundle on; `.ci/run` runs it by itself
def test_a_bundle_with_one_byte_changed_is_refused_with_the_file_and_what_is_wrong(walk: Walk) -> None:
    folder = walk.folder / "changed"
    with zipfile.ZipFile(walk.folder / "police.zip") as bundle:
        bundle.extractall(folder)
    (tile,) = (folder / "tile" / "entries").rglob("18")
    data = bytearray(tile.read_bytes())
    data[data.index(b'"rows"')] ^= 1
    tile.write_bytes(data)
    done = bash("minshu-audit verify changed --roots roots.json --officers officers", walk.folder)
    assert done.returncode == 1
    assert "FAILS     Every entry is signed for, and the chain is unbroken" in done.stdout
    assert "NOT OK" in done.stdout
    assert "it is evidence" in done.stderr


def test_the_answers_on_the_page_are_those_that_are_printed() -> None:
    table = PAGE.partition("## What the answers mean")[2].partition("## ")[0]
    said = set(re.findall(r"(?m)^\| (\w+) \|", table)) - {"it"}
    printed = {audit_page._SAID[answer] for answer in Answer} | {audit_page._NONE, "note", "seen"}
    assert said == printed


def test_the_codes_on_the_page_are_codes_that_an_audit_gives() -> None:
    table = PAGE.partition("## When something fails")[2].partition("## ")[0]
    codes = {
        code for row in re.findall(r"(?m)^\| (`.*?) \|", table) for code in re.findall(r"`([\w-]+)`", row)
    }
    sources = "".join(path.read_text("utf-8") for path in (ROOT / "audit").glob("*.py"))
    assert len(codes) > 15
    assert {code for code in codes if f'"{code}"' not in sources} == set()
