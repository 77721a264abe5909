"""tests/transcripts/policy*.txt: what a newcomer types and sees. Lines after `$` are run and compared.

Digests, fingerprints of fresh keys and the job type's own statements are shown as `…`; standard error comes
after standard output; an exit code other than 0 stands in brackets. `export NAME=VALUE` holds to the end.
"""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from policies.cli import main

ROOT = Path(__file__).parents[2]
TRANSCRIPTS = sorted((ROOT / "tests" / "transcripts").glob("policy*.txt"))


def masked(text: str) -> str:
    text = re.sub(r"sha256:[0-9a-f]{64}", "sha256:…", text)
    text = re.sub(r"(?:[0-9a-f]{4} ){15}[0-9a-f]{4}", "…", text)
    heads = "Who would learn what|What they could compute|谁会得知什么|只有违规串通"
    return re.sub(rf"(  (?:{heads})[^\n]*:\n)(?:    .*\n)+", r"\1    …\n", text)


def run(command: str, capfd: pytest.CaptureFixture[str]) -> str:
    words = shlex.split(command)
    if words[0] == "minshu-policy":
        try:
            code = main(words[1:])
        except SystemExit as leaving:
            code = int(leaving.code or 0)
    else:
        code = subprocess.run(command, shell=True, timeout=30).returncode
    output = "".join(capfd.readouterr())
    return masked(output) + (f"[{code}]\n" if code else "")


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_the_transcript_is_what_happens(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    for name in ("human-resources", "statistics"):
        shutil.copy(ROOT / "policies" / "examples" / f"{name}.toml", tmp_path)
    shutil.copy(ROOT / "tests" / "policies" / "job.toml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    written = path.read_text("utf-8")
    seen = ""
    for line in written.splitlines():
        if line.startswith("# "):
            seen += ("\n" if seen else "") + line + "\n"
        if line.startswith("$ export "):
            monkeypatch.setenv(*line.removeprefix("$ export ").split("=", 1))
            seen += line + "\n"
        elif line.startswith("$ "):
            seen += line + "\n" + run(line[2:], capfd)
    assert seen == written


def test_there_are_transcripts():
    assert TRANSCRIPTS
