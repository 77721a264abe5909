"""tests/transcripts/coordinator*.txt: what operator and analyst type and see.

Lines after `$` are run and compared; `&` at the end leaves a program running. Lines after `~` are what other
people do meanwhile. Keys, digests, ports and dates are shown as `…`; standard error comes after standard
output; an exit code other than 0 stands in brackets. `$INVITE` and `$ROOTS` are what was printed before.
"""

import base64
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest
from collaboration import Collaboration, recipient, vkey

from coordinator import cli as coordinator_cli
from coordinator.client import cli as analyst_cli
from coordinator.home import Home
from minshu.v1 import enrolment_pb2, enrolment_pb2_grpc
from policies.keyfile import new_key
from protocols.channel import suites
from protocols.encoding import decode_json

ROOT = Path(__file__).parents[2]
TRANSCRIPTS = sorted((ROOT / "tests" / "transcripts").glob("coordinator*.txt"))
COMMANDS = {"minshu-coordinator": coordinator_cli.main, "minshu": analyst_cli.main}
MASKS = (
    (r"(minshu-(?:token|invite)-1\.)\S+", r"\1…"),
    (r"sha256:[0-9a-f]{64}", "sha256:…"),
    (r"(?:[0-9a-f]{4} ){15}[0-9a-f]{4}", "…"),
    (r"127\.0\.0\.1:\d+", "127.0.0.1:…"),
    (r"20\d\d-\d\d-\d\d(?:T\d\d:\d\d:\d\dZ)?", "…"),
    (r"(/(?:journal|witness)/\d+\+)\S+", r"\1…"),
    (r"\b\d+ entries", "… entries"),
)


class Stage:
    """A folder, the programs left running in it, and what other people do."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self.capfd = capfd
        self.running: list[subprocess.Popen[str]] = []
        self.token = ""

    def run(self, line: str) -> str:
        if line.endswith(" &"):
            return masked(self.leave_running(shlex.split(line[:-2])))
        words = shlex.split(os.path.expandvars(line))
        if words[0] in COMMANDS:
            try:
                code = COMMANDS[words[0]](words[1:])
            except SystemExit as leaving:
                code = int(leaving.code or 0)
        else:
            code = subprocess.run(line, shell=True, timeout=30).returncode
        output = "".join(self.capfd.readouterr())
        self.remember(output)
        return masked(output) + (f"[{code}]\n" if code else "")

    def remember(self, output: str) -> None:
        for name, pattern in (
            ("INVITE", r"minshu-invite-1\.\S+"),
            ("TOKEN", r"minshu-token-1\.\S+"),
            ("ROOTS", r"roots     (sha256:[0-9a-f]{64})"),
        ):
            if found := re.search(pattern, output):
                os.environ[name] = found[found.lastindex or 0]

    def leave_running(self, words: list[str]) -> str:
        program = "import sys; from coordinator.cli import main; sys.exit(main())"
        process = subprocess.Popen(
            [sys.executable, "-c", program, *words[1:]],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"},
        )
        self.running.append(process)
        assert process.stdout is not None
        return process.stdout.readline()

    def meanwhile(self, what: str) -> None:
        match what.split():
            case ["the", "root", "key", "holders", "make", *names]:
                for name in names:
                    new_key(Path(name))
            case ["the", "coordinator", "is", "stopped"]:
                self.stop()
            case [node, "enrols"]:
                self.enrol(node)
            case _:
                raise AssertionError(what)

    def enrol(self, node: str) -> None:
        body = os.environ["TOKEN"].removeprefix("minshu-token-1.")
        token = decode_json(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        assert token["node"] == node
        world = Collaboration(lambda: datetime.now(UTC))
        public = suites.public_key(1, suites.new_private_key(1, lambda n: recipient(node)[:1] * n))
        request, mac = world.enrolment(
            node, bytes.fromhex(token["secret"]), suite=1, recipient_key=public.hex(), journal_vkey=vkey(node)
        )
        credentials = grpc.ssl_channel_credentials(token["authority"].encode())
        with grpc.secure_channel(token["address"], credentials) as channel:
            stub = enrolment_pb2_grpc.EnrolmentServiceStub(channel)
            answer = stub.Enrol(enrolment_pb2.EnrolRequest(request=request, mac=mac), timeout=10)
        assert answer.address == Home(Path("bureau")).listening()["nodes"]

    def stop(self) -> None:
        for process in self.running:
            process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            assert process.wait(10) == 0
            assert time.monotonic() - began < 5
        self.running.clear()

    def close(self) -> None:
        for process in self.running:
            process.kill()
            process.wait(10)


def masked(text: str) -> str:
    for pattern, shown in MASKS:
        text = re.sub(pattern, shown, text)
    return text


@pytest.fixture
def stage(tmp_path, monkeypatch, capfd):
    shutil.copy(Path(__file__).with_name("crosscheck.toml"), tmp_path / "job.toml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("MINSHU_HOME", raising=False)
    for name in ("INVITE", "TOKEN", "ROOTS"):
        monkeypatch.setenv(name, "")
    stage = Stage(capfd)
    yield stage
    stage.close()


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_the_transcript_is_what_happens(path: Path, stage: Stage):
    written = path.read_text("utf-8")
    seen = ""
    for line in written.splitlines():
        if line.startswith("# "):
            seen += ("\n" if seen else "") + line + "\n"
        if line.startswith("~ "):
            seen += line + "\n"
            stage.meanwhile(line[2:])
        if line.startswith("$ "):
            seen += line + "\n" + stage.run(line[2:])
    assert seen == written


def test_there_are_transcripts():
    assert TRANSCRIPTS


@pytest.mark.parametrize("main", COMMANDS.values(), ids=COMMANDS)
def test_wrong_usage_is_exit_code_2_and_help_is_0(main, capsys):
    for words, code in (([], 2), (["frobnicate"], 2), (["--help"], 0), (["--version"], 0)):
        with pytest.raises(SystemExit) as leaving:
            main(words)
        assert leaving.value.code == code
    assert capsys.readouterr().out.splitlines()[-1].split()[1][0].isdigit()
