"""tests/transcripts/questions.txt: what an analyst sees before a job, after it, and when it is asked again.

Lines after `$` are run and compared. Lines after `~` are what other people do meanwhile; the departments'
nodes are scripted, with answers as real ones word them. Keys, digests, times and sizes are shown as `…`.
"""

import os
import re
import shlex
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
from collaboration import BUREAU, HEALTH, NODES, POLICE, STATISTICS
from loopback import LiveBureau

from coordinator import cli as coordinator_cli
from coordinator.client import cli as analyst_cli
from minshu.v1 import relay_pb2
from protocols.encoding import sha256_digest
from protocols.envelope import decode_envelope
from protocols.ids import DatasetName, Role
from protocols.wire import Constraints, CostLine, InputSummary, Leaving, organisation_of

TRANSCRIPT = Path(__file__).parents[1] / "transcripts" / "questions.txt"
COMMANDS = {"minshu-coordinator": coordinator_cli.main, "minshu": analyst_cli.main}
MASKS = (
    (r"sha256:[0-9a-f]{64}", "sha256:…"),
    (r"20\d\d-\d\d-\d\d(?:T\d\d:\d\d:\d\dZ)?", "…"),
    (r"\d+ bytes", "… bytes"),
)
SUMMARY = InputSummary(3000, 2990, 2990, sha256_digest(b"c"), "2026-12-01", sha256_digest(b"q"), "v1")
UNTIL = datetime(2026, 12, 31, 16, tzinfo=UTC)
LEAVES = (
    Leaving("records", "B", organisation_of(POLICE), Role("register")),
    Leaving("street-table", "A", BUREAU, Role("register")),
)
PERMIT = {"code": "permitted", "sentence": "The job fits the rule.", "sentence_zh": "任务符合规则。"}
ASK = {
    "code": "approval-needed",
    "sentence": "The job fits the rule and needs 2 more approvals by: dpo, owner.",
    "sentence_zh": "任务符合规则, 还需 2 份审批: dpo, owner。",
    "hint": "ask them to approve: minshu-node approve, at their node",
    "hint_zh": "请其在本部门节点审批: minshu-node approve",
    "approvals_needed": 2,
    "approvers": ("dpo", "owner"),
}


class Stage:
    """A running collaboration, and what its people do."""

    def __init__(self, live: LiveBureau) -> None:
        self.live = live
        self.job = ""

    def costs(self, left: int) -> tuple[CostLine, ...]:
        return (
            CostLine("asked", "queries", "1", str(left), "4", UNTIL),
            CostLine("lent", "rows", "2000", str(2000 * left), "8000", UNTIL),
        )

    def run(self, line: str, capfd: pytest.CaptureFixture[str]) -> str:
        words = shlex.split(os.path.expandvars(line))
        code = COMMANDS[words[0]](words[1:])
        output = "".join(capfd.readouterr())
        if words[1] == "submit":
            os.environ["JOB"] = self.job = output.strip()
        for pattern, shown in MASKS:
            output = re.sub(pattern, shown, output)
        return output + (f"[{code}]\n" if code else "")

    def meanwhile(self, what: str) -> None:
        nodes, live = self.live.nodes, self.live
        match what:
            case "three departments' nodes are running, the statistics bureau's is not":
                for name, node in nodes.items():
                    node.says = PERMIT | {"leaves": LEAVES}
                    rows = {} if name == STATISTICS else {DatasetName("people"): SUMMARY}
                    node.admits = {"constraints": Constraints(max_rows=2000), "inputs": rows}
                nodes[HEALTH].answer, nodes[HEALTH].says = (
                    "ask",
                    ASK | {"costs": self.costs(3), "leaves": LEAVES},
                )
                live.start(*(name for name in NODES if name != STATISTICS))
            case "the statistics bureau's node is started":
                live.start(STATISTICS)
            case "the health bureau's DPO and owner approve, and the job runs":
                live.until(lambda: live.coordinator.store.job(self.job).job.run(HEALTH).verdict)
                self.answer(HEALTH, "permit", **PERMIT)
                live.until(lambda: live.coordinator.store.job(self.job).job.ended)
            case "the police check the list, door by door, and file what they found":
                envelope = live.world.outcome(self.job)
                live.loop.run(nodes[POLICE].say(outcome=relay_pb2.OutcomeFiled(outcome=envelope)))
                digest = decode_envelope(envelope).payload_digest
                live.until(lambda: digest in [one.sha256 for one in nodes[POLICE].got("filed")])
            case "the health bureau's quota is used up, and every node remembers the first job":
                for node in nodes.values():
                    node.answer, node.says = "permit", PERMIT | {"answered": self.job, "leaves": LEAVES}
                nodes[HEALTH].answer = "refuse"
                nodes[HEALTH].says = {
                    "code": "budget-exceeded",
                    "sentence": "Quota asked has 0 left until 2026-12-31T16:00:00Z, the job takes 1.",
                    "sentence_zh": "配额 asked 本期剩余 0, 任务需要 1。",
                    "hint": "ask again in the next period",
                    "hint_zh": "请在下一周期再申请",
                    "answered": self.job,
                }
            case "the job is answered":
                live.until(lambda: live.coordinator.store.job(self.job).job.ended)
            case _:
                raise AssertionError(what)

    def answer(self, node: str, answer: str, **says: object) -> None:
        attempt = relay_pb2.Attempt(job=self.job, attempt=1)
        verdict = self.live.world.verdict(node, self.job, 1, answer, **says)
        said = relay_pb2.Answer(attempt=attempt, verdict=verdict)
        self.live.loop.run(self.live.nodes[node].say(answer=said))


def test_the_transcript_of_questions_is_what_happens(live, tmp_path, monkeypatch, capfd):
    shutil.copy(Path(__file__).with_name("crosscheck.toml"), tmp_path / "job.toml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JOB", "")
    stage = Stage(live)
    written = TRANSCRIPT.read_text("utf-8")
    seen = ""
    for line in written.splitlines():
        if line.startswith("# "):
            seen += ("\n" if seen else "") + line + "\n"
        if line.startswith("~ "):
            seen += line + "\n"
            stage.meanwhile(line[2:])
        if line.startswith("$ "):
            seen += line + "\n" + stage.run(line[2:], capfd)
    assert seen == written
