"""tests/transcripts/audit*.txt: what an auditor types and sees. Lines after `$` are run and compared.

Digests, roots, key ids, byte counts and what a check looked at are shown as `…`; standard error comes after
standard output; an exit code other than 0 stands in brackets. Besides `minshu-audit`, `cat` is understood;
`·` stands for an empty line.
"""

import re
import shlex
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from several import ROOTS, Collaboration

from audit.cli import main

TRANSCRIPTS = sorted((Path(__file__).parents[1] / "transcripts").glob("audit*.txt"))


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Collaboration]:
    """Three departments' journals and the bureau's, as an auditor finds them, and the root keys."""
    city = Collaboration(tmp_path)
    city.sign_roster()
    shutil.copytree(city["police"].directory, tmp_path / "backup")
    for each in city.departments.values():
        each.refuse(2)
    city.witnessed()
    city["health"].refuse()
    (tmp_path / "roots.json").write_bytes(ROOTS.encode())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("audit.cli._now", lambda: datetime(2026, 12, 2, tzinfo=UTC))
    yield city
    city.close()


def masked(text: str) -> str:
    text = re.sub(r"(?:sha256:)?\b[0-9a-f]{64}\b", "…", text)
    text = re.sub(r"[A-Za-z0-9+/]{43}=|[A-Za-z0-9+/]{60,}={0,2}", "…", text)
    text = re.sub(r"\b[0-9a-f]{16}-[0-9a-f]{16}\b", "…", text)
    text = re.sub(r"(?<=\+)[0-9a-f]{8}\b", "…", text)
    text = re.sub(r"(?m)^((?:holds|open|FAILS)  .*) \(\d+: .*\)$", r"\1 (…)", text)
    return re.sub(r"[0-9,]+ bytes", "… bytes", text)


def run(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    program, *words = shlex.split(command)
    if program == "cat":
        return masked(Path(words[0]).read_text()).replace("\n\n", "\n·\n")
    assert program == "minshu-audit"
    try:
        code = main(words)
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    return masked("".join(capsys.readouterr())) + (f"[{code}]\n" if code else "")


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_commands_print_what_the_transcript_shows(path, desk, capsys):
    shown = path.read_text("utf-8")
    seen = "".join(
        f"{line}\n{run(line[2:], capsys) if line.startswith('$ ') else ''}"
        for line in shown.splitlines()
        if line.startswith(("$ ", "#")) or not line
    )
    assert seen == shown


def test_there_is_a_transcript():
    assert TRANSCRIPTS
