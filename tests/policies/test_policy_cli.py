import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from policies.cli import main
from policies.decide import decide
from policies.explain import decision_json, explain_decision, explain_policy
from policies.parse import parse_policy
from protocols.encoding import b64encode, canonical_json
from protocols.envelope import APPROVAL, JOB, sign
from protocols.jobs import job_type

AT = ["--at", "2026-12-02T03:04:05Z"]


@pytest.fixture
def home(tmp_path: Path, world: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "policy.toml").write_text(world.text(), "utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    code = main([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_a_job_as_the_node_received_it_is_answered_like_its_file(
    home: Path, world: Any, capsys: pytest.CaptureFixture[str]
):
    spec = world.spec()
    (home / "payload.json").write_bytes(spec.encode() + b"\n")
    (home / "envelope.json").write_bytes(sign(JOB, spec.encode(), [world.signer("analyst")]).encode())
    for name in ("payload.json", "envelope.json"):
        code, answer = run(capsys, "check", "policy.toml", "--job", name, *AT)
        assert code == 0
        assert (answer["answer"], answer["missing"], answer["approvers"]) == ("ask", 2, ["dpo", "owner"])


def test_an_envelope_that_holds_no_job_is_refused(home: Path, world: Any, capsys: pytest.CaptureFixture[str]):
    (home / "x.json").write_bytes(sign(APPROVAL, world.spec().encode(), []).encode())
    code, answer = run(capsys, "check", "policy.toml", "--job", "x.json", *AT)
    assert (code, answer["error"]["code"]) == (2, "wrong-payload-type")
    (home / "x.json").write_bytes(canonical_json({"payload": b64encode(b""), "payloadType": JOB}))
    code, answer = run(capsys, "check", "policy.toml", "--job", "x.json", *AT)
    assert (code, answer["error"]["code"]) == (2, "bad-envelope")


def test_who_asks_must_be_clear(home: Path, world: Any, capsys: pytest.CaptureFixture[str]):
    second = '[requesters.police]\nkeys = ["' + world.key("policeman") + '"]\n\n[[rules]]'
    (home / "policy.toml").write_text(world.text(**{"[[rules]]": second}), "utf-8")
    (home / "job.json").write_bytes(replace(world.spec(), requester=world.key("stranger")).encode())
    common = ("check", "policy.toml", "--job", "job.json", *AT)
    assert run(capsys, *common)[1]["error"]["code"] == "unknown-requester"
    assert run(capsys, *common, "--requester", "nobody")[1]["error"]["code"] == "unknown-requester"
    assert run(capsys, *common, "--requester", "police")[1]["error"]["code"] == "unknown-organisation"
    given = (*common, "--requester", "police", "--organisation", "police.gz.example")
    assert run(capsys, *given)[1]["code"] == "requester-not-allowed"
    assert run(capsys, *common, "--requester", "bureau")[0] == 0


def test_the_plain_text_names_every_release_and_every_statement(world: Any):
    spec = world.spec()
    decision = decide(
        world.active(), spec, node=world.node("human-resources"), roster=world.roster, now=world.now
    )
    statements = [s for group in job_type(spec.job_type).learns(spec).values() for s in group]
    texts = {language: explain_decision(decision, spec, language) for language in ("zh", "en")}
    assert statements
    for statement in statements:
        assert statement.en in texts["en"]
        assert statement.zh in texts["zh"]
    for text in texts.values():
        assert "street-table" in text
        assert "data-bureau.gz.example" in text
    assert len(decision_json(decision)["leaks"]) == len(statements)


def test_a_policy_that_cannot_be_activated_says_so_when_explained(world: Any):
    text = world.text(**{"max_rows = 20000": 'max_rows = 20000\nrate = { jobs = 1, per = "day" }'})
    parsed = parse_policy(text.encode())
    assert "cannot be activated" in explain_policy(parsed, "en")
    assert "策略无法启用" in explain_policy(parsed, "zh")


def test_a_job_type_that_this_version_does_not_know_is_explained_as_refused(world: Any):
    text = world.text(**{'job_types = ["crosscheck/1"]': 'job_types = ["table/9"]'})
    assert "unknown to this version, refused" in explain_policy(parse_policy(text.encode()), "en")


def test_explaining_as_json_carries_the_same_text(home: Path, capsys: pytest.CaptureFixture[str]):
    code, answer = run(capsys, "explain", "policy.toml", "--lang", "en")
    parsed = parse_policy((home / "policy.toml").read_bytes())
    assert (code, answer["text"]) == (0, explain_policy(parsed, "en"))


def test_a_failed_signature_leaves_the_envelope_as_it_was(
    home: Path, world: Any, capsys: pytest.CaptureFixture[str]
):
    assert run(capsys, "key", "new", "--role", "dpo", "dpo.pem")[0] == 0
    assert run(capsys, "sign", "policy.toml", "--key", "dpo.pem")[0] == 0
    before = (home / "policy.dsse").read_bytes()
    assert run(capsys, "sign", "policy.toml", "--key", "dpo.pem")[1]["error"]["code"] == "signed-already"
    assert (home / "policy.dsse").read_bytes() == before
    assert sorted(p.name for p in home.iterdir()) == ["dpo.pem", "dpo.pem.pub", "policy.dsse", "policy.toml"]
    out = ("--out", "no/such/folder.dsse")
    assert (
        run(capsys, "sign", "policy.toml", "--key", "dpo.pem", *out)[1]["error"]["code"] == "file-unwritable"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["approve"],
        ["key", "new", "--role", "king", "k"],
        ["check"],
        ["check", "x", "--at"],
        ["sign", "x"],
    ],
)
def test_a_wrong_command_line_is_an_error_with_a_hint(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as leaving:
        main(arguments)
    captured = capsys.readouterr()
    assert leaving.value.code == 2
    assert captured.out == ""
    error, hint = captured.err.splitlines()
    assert error.startswith("minshu-policy: error: ")
    assert hint.startswith("hint: minshu-policy")


def test_a_time_that_is_none_is_an_error(home: Path, world: Any, capsys: pytest.CaptureFixture[str]):
    (home / "job.json").write_bytes(world.spec().encode())
    code, answer = run(capsys, "check", "policy.toml", "--job", "job.json", "--at", "tomorrow")
    assert (code, answer["error"]["code"]) == (2, "bad-time")


def test_the_command_starts_alone_and_knows_its_version():
    command = [sys.executable, "-m", "policies.cli", "--version"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0
    assert result.stdout.startswith("minshu-policy ")
