"""The pages a newcomer reads first: every command in them is run, every file they name exists.

"By hand" in README.md is run as it stands, as one bash script, with real processes on loopback. What a page
shows of the output has to come, line by line and in that order; `…` stands for anything.
"""

import csv
import io
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from demo.child import COMMANDS

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")], key=lambda page: page.relative_to(ROOT).as_posix()
)
TWINS = [
    ("README.md", "README.zh.md"),
    ("docs/auditors.md", "docs/auditors.zh.md"),
    ("docs/for-officers.md", "docs/for-officers.zh.md"),
    ("docs/registers.md", "docs/registers.zh.md"),
]
RUN_BY_CI = ["make demo", "make test"]
"""The README's two commands, which `.ci/run` runs itself."""

TIMEOUT_S = 240
IDENTIFIER = re.compile(rb"9901(?:0[1-9]|1[01])(?:19|20)\d{9}[\dX]")
"""A resident number of the synthetic city."""


def page(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```$", text)


def inline_code(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", re.sub(r"(?ms)^```.*?^```$", "", text))


def section(text: str, title: str) -> str:
    found = re.search(rf"(?ms)^## {title}\n(.*?)(?=^## |\Z)", text)
    assert found is not None
    return found.group(1)


def hand_part(text: str) -> str:
    title = "By hand" if "## By hand\n" in text else "动手操作"
    return section(text, title)


@contextmanager
def bash(script: str, folder: Path, temporary: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a script in a process group of its own; whatever it leaves behind is killed."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    child = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder, env={**os.environ, "PATH": path, "TMPDIR": str(temporary)},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
        start_new_session=True,
    )  # fmt: skip
    try:
        yield child
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def output_of(script: str, folder: Path, temporary: Path) -> str:
    """Return what a script prints, after checking that it succeeds and leaves no process behind."""
    with bash(script, folder, temporary) as child:
        output, errors = child.communicate(timeout=TIMEOUT_S)
        assert child.returncode == 0, f"{errors[-3000:]}\n{output[-3000:]}"
        with pytest.raises(ProcessLookupError):
            os.killpg(child.pid, 0)
    return output


def assert_shown(shown: list[str], output: str) -> None:
    """Check that every line of the blocks comes in the output, in order."""
    lines = iter(output.splitlines())
    for expected in "".join(shown).splitlines():
        pattern = re.compile(".*".join(re.escape(part) for part in expected.split("…")))
        assert any(pattern.fullmatch(line) for line in lines), (
            f"not printed, or not in this order: {expected}"
        )


@pytest.mark.alone  # a minute of typing; `.ci/run` runs it by itself
def test_what_the_readme_has_people_type_by_hand_works(tmp_path: Path) -> None:
    """The list the police open is the right one by the city's truth; nobody else's folder holds a person."""
    text = hand_part(page("README.md"))
    output = output_of("".join(blocks(text, "sh")), ROOT, tmp_path)
    assert_shown(blocks(text, "text"), output)
    (folder,) = (path for path in tmp_path.iterdir() if (path / "city").is_dir())

    people = pq.read_table(
        folder / "city" / "truth" / "flagged.parquet", columns=["resident_id", "sources", "meaning"]
    )
    # Bits 0 and 1 of `sources` are human resources and health. Whoever both know, and the police do not, is
    # among the flagged of the four-source question, too.
    right = {f"RIC:{p['resident_id']}" for p in people.to_pylist() if p["sources"] & 3 == 3}
    records = list(
        csv.DictReader(io.StringIO((folder / "police" / "list.csv").read_text("utf-8").lstrip("\ufeff")))
    )
    assert len(right) > 100
    confirmed = {f"RIC:{p['resident_id']}" for p in people.to_pylist() if p["meaning"] == "true"} & right
    assert f"outcome: {len(confirmed)} of {len(right)} confirmed" in output
    assert len(records) == len(right)
    assert {record["key"] for record in records} == right
    assert all(record["mark"].startswith("疑似, 需人工核实") for record in records)

    streets = list(csv.DictReader((folder / "table" / "street-table.csv").open(encoding="utf-8-sig")))
    assert abs(int(streets[0]["count"]) - len(right)) < 5  # rounded to 5
    assert output.count("OK: the signature holds; entries, tiles and root agree") == 4

    outside = [folder / name for name in ("coordinator", "analyst", "table")]
    outside += [folder / node / "node" / "journal" for node in ("police", "health", "human-resources")]
    for path in (file for each in outside for file in each.rglob("*") if file.is_file()):
        assert not IDENTIFIER.search(path.read_bytes()), path.relative_to(folder)
    assert IDENTIFIER.search((folder / "police" / "list.csv").read_bytes())


@pytest.fixture
def officers_desk(tmp_path: Path) -> Path:
    """A folder with the health department's policy, valid today, and the main job."""
    text = page("policies/examples/health.toml")
    today = datetime.now(UTC) - timedelta(days=1)
    for clause, day in (("not_before", today), ("expires", today + timedelta(days=90)),
                        ("valid_until", today + timedelta(days=90))):  # fmt: skip
        text, times = re.subn(rf"(?m)^{clause} = [0-9-]+", f"{clause} = {day:%Y-%m-%d}", text)
        assert times == 1
    desk = tmp_path / "desk"
    desk.mkdir()
    (desk / "policy.toml").write_text(text, "utf-8")
    (desk / "job.toml").write_text(page("demo/scenarios/scenario_1/job.toml"), "utf-8")
    return desk


@pytest.mark.alone  # five seconds; `.ci/run` runs it by itself
def test_an_officer_reads_signs_and_checks_with_the_commands_of_the_page(
    officers_desk: Path, tmp_path: Path
) -> None:
    """The same openssl commands refuse a text that differs by one blank."""
    commands = blocks(page("docs/for-officers.md"), "sh")
    output = output_of("".join(commands), officers_desk, tmp_path)
    for answer in (
        "Rule R1",
        "well-formed",
        "Asks for approval (rule R1)",
        "Signature Verified Successfully",
    ):
        assert answer in output

    (check,) = (block for block in commands if "openssl pkeyutl" in block)
    openssl_alone = "".join(line for line in check.splitlines(keepends=True) if "cmp" not in line)
    assert "Signature Verified Successfully" in output_of(openssl_alone, officers_desk, tmp_path)
    with (officers_desk / "policy.toml").open("a") as policy:
        policy.write(" ")
    for script in (check, openssl_alone):
        with bash(script, officers_desk, tmp_path) as child:
            child.communicate(timeout=TIMEOUT_S)
            assert child.returncode != 0


def test_no_page_shows_a_command_that_no_test_runs() -> None:
    hand = blocks(hand_part(page("README.md")), "sh")
    others = [block for block in blocks(page("README.md"), "sh") if block not in hand]
    assert [line for block in others for line in block.splitlines()] == RUN_BY_CI
    assert set(RUN_BY_CI) <= set((ROOT / ".ci" / "run").read_text("utf-8").splitlines())
    with_commands = {
        path.relative_to(ROOT).as_posix() for path in PAGES if blocks(path.read_text("utf-8"), "sh")
    }
    assert with_commands == {name for twins in TWINS for name in twins}


@pytest.mark.parametrize(("english", "chinese"), TWINS)
def test_the_chinese_page_is_the_twin_of_the_english_one(english: str, chinese: str) -> None:
    one, other = page(english), page(chinese)
    assert blocks(one, "sh") == blocks(other, "sh")
    for mark in (r"(?m)^#+ ", r"(?m)^```\w+$", r"(?m)^\| ", r"(?m)^- "):
        assert [m.strip() for m in re.findall(mark, one)] == [m.strip() for m in re.findall(mark, other)]
    if english == "README.md":
        assert blocks(hand_part(one), "text") == blocks(hand_part(other), "text")
        assert blocks(one, "text")[0] == blocks(other, "text")[0]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_file_a_page_names_exists_and_no_path_is_of_one_machine(path: Path) -> None:
    text = path.read_text("utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in target:
            assert (path.parent / target.partition("#")[0]).exists(), target
    tops = {each.name for each in ROOT.iterdir() if each.is_dir()} - {"demo-out", "bench-out"}
    for code in inline_code(text):
        if re.fullmatch(r"[\w./-]+", code) and "/" in code and code.partition("/")[0] in tops:
            assert (ROOT / code).exists(), code
    assert not re.search(r"(?<![\w.$:])/(?:work|home|root|Users|tmp|var|opt)/", text)


def named_commands() -> list[str]:
    """Return every command that stands in running text."""
    found = {
        code
        for name in (name for twins in TWINS for name in twins)
        for code in inline_code(page(name))
        if code.split()[0] in COMMANDS
    }
    return sorted(found)


@pytest.mark.parametrize("code", named_commands())
def test_every_command_and_option_named_in_running_text_exists(
    code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    program, *words = shlex.split(code)
    subcommand: list[str] = []
    while words and re.fullmatch(r"[a-z]+", words[0]):
        subcommand.append(words.pop(0))
    with pytest.raises(SystemExit) as left:
        import_module(COMMANDS[program]).main([*subcommand, "--help"])
    assert left.value.code == 0
    printed = capsys.readouterr().out
    assert f"usage: {' '.join([program, *subcommand])} " in printed
    assert all(word in printed for word in words if word.startswith("--"))


def test_every_make_target_the_readme_names_exists() -> None:
    named = {code for code in [*RUN_BY_CI, *inline_code(page("README.md"))] if code.startswith("make ")}
    assert len(named) > len(RUN_BY_CI)
    for command in sorted(named):
        done = subprocess.run(["make", "-n", *command.split()[1:]], cwd=ROOT, capture_output=True, timeout=30)
        assert done.returncode == 0, command
