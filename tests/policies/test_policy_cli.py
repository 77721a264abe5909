import json
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from policies.cli import main
from policies.decide import decide
from policies.explain import decision_json, explain_decision, explain_policy, suppose
from policies.fill import fill
from policies.keyfile import load_public
from policies.model import PinnedSigners
from policies.parse import parse_policy
from policies.sign import check_stop, sign_policy
from protocols.dp.cost import Cost
from protocols.encoding import b64encode, canonical_json, sha256_digest
from protocols.envelope import APPROVAL, JOB, key_id, sign
from protocols.jobs import job_type

EXAMPLES = Path(__file__).parents[2] / "policies" / "examples"
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


def test_a_dry_answer_carries_all_that_an_approver_reads_and_says_it_knows_no_history(
    home: Path, world: Any, capsys: pytest.CaptureFixture[str]
):
    spec = world.spec()
    (home / "job.json").write_bytes(spec.encode())
    code, answer = run(capsys, "check", "policy.toml", "--job", "job.json", *AT)
    assert code == 0
    assert (answer["history"], answer["job"]["expected_use"]) == ("none", spec.expected_use)
    assert {part["role"]: part["node"] for part in answer["job"]["takes_part"]} == spec.roles
    assert answer["job"]["takes_part"][-1]["columns"]["key"] == "resident_id"
    assert (answer["cost"]["rows"], answer["cost"]["queries"]) == (20_000, 1)
    assert Cost.decode(answer["cost"]["text"]) == Cost(rows=20_000, queries=1)
    lines = {line["budget"]: line for line in answer["lines"]}
    assert lines["records"] == {
        "budget": "records",
        "notion": "rows",
        "cost": "20000",
        "remaining": "60000",
        "limit": "60000",
        "until": "2026-12-31T16:00:00Z",
    }
    assert {release["recipient"] for release in answer["releases"]} == {
        "police.gz.example",
        "data-bureau.gz.example",
    }
    assert all(leak["en"] and leak["zh"] for leak in answer["leaks"])
    for language, note in (("en", "as if nothing had been spent"), ("zh", "尚未用掉任何额度")):
        assert main(["check", "policy.toml", "--job", "job.json", *AT, "--lang", language]) == 0
        assert note in capsys.readouterr().out


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
        assert spec.expected_use in text
        assert all(node in text for node in spec.roles.values())
        assert "60,000 / 60,000" in text
    plain = decision_json(decision, spec)
    assert len(plain["leaks"]) == len(statements)


EVERYTHING = {
    'personal = "sensitive"\n': 'personal = "sensitive"\nunit = { column = "resident_id", max_rows = 12 }\n',
    "timezone =": f'lifted_stops = ["sha256:{"0" * 64}"]\ntimezone =',
    "[approvers.dpo]": """[budgets.year]
dataset = "insured"
notion = "approximate-dp"
limit = "1.50"
delta = "1e-9"
period = "calendar-year"
scope = "per-requester"

[[stops]]
scope = "dataset"
value = "insured"
reason = "投诉待查"

[[rules]]
id = "R2"
requesters = ["bureau"]
purposes = ["P-2026-001"]
job_types = ["table/1"]
datasets = ["insured"]
columns = ["street"]
recipients = ["bureau"]
budget = "year"
max_cost = "0.25"
quotas = ["questions"]
rate = { jobs = 1, per = "day" }
window = { days = ["mon", "fri"], from = 20:00:00, to = 06:30:00 }
approvals = 0

[approvers.dpo]""",
}


EXPLAINED = {
    "en": """
  Limit: at most ε = 1.5, δ = 0.000000001 in a calendar year, for each requester (privacy budget year)
  Limit: at most 12 questions in a calendar quarter, for each purpose (quota questions)
  One job costs at most ε = 0.25 of the budget
  Pace: at most one job in a calendar day; one that fails counts unless it told nothing of the data
  Hours: Mon, Fri 20:00-06:30 (into the next day) (Asia/Shanghai)
  every job over dataset insured: 投诉待查
""",
    "zh": """
  额度: 每自然年最多 ε = 1.5, δ = 0.000000001, 每个申请方分别计算 (隐私预算 year)
  额度: 每自然季度最多 12 次查询, 每项用途分别计算 (配额 questions)
  每个任务最多占用预算 ε = 0.25
  频次: 每自然日最多 1 个任务, 失败的任务也计入, 确知未透露任何数据信息的除外
  时段: 周一、周五 20:00-06:30 (至次日) (Asia/Shanghai)
  涉及数据集 insured 的全部任务: 投诉待查
""",
}


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_limit_and_stop_of_a_policy_is_explained(world: Any, language: Any):
    lines = explain_policy(parse_policy(world.text(**EVERYTHING).encode()), language).splitlines()
    expected = [*EXPLAINED[language].strip("\n").splitlines(), f"  sha256:{'0' * 64}"]
    assert [line for line in expected if line not in lines] == []


def test_a_job_that_only_waits_for_its_hours_is_said_to_wait(world: Any):
    window = 'window = { days = ["sun"], from = 08:00:00, to = 09:00:00 }\nmax_rows = 20000'
    active, spec = world.active(edits={"max_rows = 20000": window}), world.spec()
    common = {"node": world.node("human-resources"), "roster": world.roster, "now": world.now}
    decision = decide(active, spec, **common, approvals=world.verified(active, spec))
    assert decision.code == "window-closed"
    assert explain_decision(decision, spec, "en").startswith("Waits (rule R1): ")
    assert explain_decision(decision, spec, "zh").startswith("等待 (规则 R1): ")
    plain = decision_json(decision, spec)
    assert (plain["answer"], plain["missing"], len(plain["approved"])) == ("ask", 0, 2)


def test_times_are_shown_where_the_reader_is(world: Any):
    decision = decide(
        world.active(), world.spec(), node=world.node("human-resources"), roster=world.roster, now=world.now
    )
    assert "until 2026-12-31 16:00 (UTC)" in explain_decision(decision, world.spec(), "en")
    here = explain_decision(decision, world.spec(), "en", zone=ZoneInfo("Asia/Shanghai"))
    assert "until 2027-01-01 00:00 (Asia/Shanghai)" in here


WITNESSES = {
    "": ("more than two thirds of the other organisations", "超过三分之二的其他见证机构"),
    "quorum = 4": ("seen by 4 other organisations before", "4 家其他机构见证"),
    "quorum = 1": ("seen by 1 other organisation before", "1 家其他机构见证"),
    'organisations = ["a.example", "b.example", "c.example", "d.example"]':
        ("3 of 4 other organisations before anything leaves: a.example, b", "4 家其他机构中的 3 家见证"),
    'quorum = 4\norganisations = ["a.example", "b.example", "c.example", "d.example"]':
        ("4 of 4 other organisations", "4 家其他机构中的 4 家"),
}  # fmt: skip


@pytest.mark.parametrize(("clause", "said"), WITNESSES.items())
def test_whoever_signs_reads_who_must_have_seen_what_the_node_did(
    world: Any, clause: str, said: tuple[str, str]
):
    table = f"[witnesses]\n{clause}\n\n[requesters.bureau]" if clause else "[requesters.bureau]"
    parsed = parse_policy(world.text(**{"[requesters.bureau]": table}).encode())
    for language, sentence in zip(("en", "zh"), said, strict=True):
        assert sentence in explain_policy(parsed, language)


def test_whoever_signs_reads_where_nobody_needs_to_have_seen_it(world: Any):
    text = world.text("statistics", **{'"cosigned"             #': '"checkpoint"           #'})
    assert "nobody else needs to have seen" in explain_policy(parse_policy(text.encode()), "en")
    assert "无须其他机构见证" in explain_policy(parse_policy(text.encode()), "zh")


def test_whoever_lifts_a_stop_reads_what_is_accepted_if_it_is_for_a_history_gap(world: Any):
    text = world.text(**{"timezone =": f'lifted_stops = ["sha256:{"5" * 64}"]\ntimezone ='})
    assert "nobody knows what was spent after the backup" in explain_policy(parse_policy(text.encode()), "en")
    assert "无从得知" in explain_policy(parse_policy(text.encode()), "zh")
    assert "backup" not in explain_policy(parse_policy(world.text().encode()), "en")


@pytest.mark.parametrize("clause", ["quorum = 6", 'organisations = ["tax.gz.example", "water.gz.example"]'])
def test_a_file_checked_without_a_roster_supposes_the_witnesses_that_its_policy_asks_for(
    world: Any, clause: str
):
    table = f"[witnesses]\n{clause}\n\n[requesters.bureau]"
    parsed = parse_policy(world.text(**{"[requesters.bureau]": table}).encode())
    active, spec, roster = suppose(parsed, world.spec(), "bureau", None)
    decision = decide(active, spec, node=world.node("human-resources"), roster=roster, now=world.now)
    assert decision.code == "approval-needed"
    missing = replace(roster, nodes=tuple(replace(node, witness_vkeys=()) for node in roster.nodes))
    spec = replace(spec, roster_digest=missing.digest)
    decision = decide(active, spec, node=world.node("human-resources"), roster=missing, now=world.now)
    assert decision.code == "no-quorum-possible"


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


def test_a_key_that_opens_with_a_passphrase_signs(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    secret = home / "passphrase"
    secret.write_text("correct horse battery staple\n")
    secret.chmod(0o600)
    monkeypatch.setenv("MINSHU_PASSPHRASE_FILE", str(secret))
    identifier = run(capsys, "key", "new", "--role", "dpo", "--encrypt", "dpo.pem")[1]["id"]
    assert b"ENCRYPTED PRIVATE KEY" in (home / "dpo.pem").read_bytes()
    for name in ("dpo.pem", "dpo.pem.pub"):
        shown = run(capsys, "key", "id", name)[1]
        assert shown["id"] == identifier
        assert shown["fingerprint"].replace(" ", "") == identifier.removeprefix("sha256:")
    assert run(capsys, "sign", "policy.toml", "--key", "dpo.pem")[0] == 0
    secret.write_text("correct horse battery stapler\n")
    assert run(capsys, "key", "id", "dpo.pem")[1]["error"]["code"] == "bad-passphrase"
    assert run(capsys, "sign", "policy.toml", "--key", "dpo.pem")[1]["error"]["code"] == "bad-passphrase"


def test_a_key_in_a_token_is_asked_for_by_its_uri(home: Path, capsys: pytest.CaptureFixture[str]):
    # No provider is installed here: the way leads past the file system all the same.
    for command in (["key", "id"], ["sign", "policy.toml", "--key"]):
        code, answer = run(capsys, *command, "pkcs11:object=dpo")
        assert (code, answer["error"]["code"]) == (2, "no-token-provider")


TEMPLATE = EXAMPLES / "health.toml"
IDS = {name: "sha256:" + str(number) * 64 for number, name in enumerate(("analyst", "dpo", "owner"), 1)}
SET = [word for name, identifier in IDS.items() for word in ("--set", f"{name}={identifier}")]


def test_a_template_is_filled_in_and_keeps_every_other_character(
    home: Path, capsys: pytest.CaptureFixture[str]
):
    days = [
        "--set",
        "not_before=2026-12-03",
        "--set",
        "expires=2027-02-01",
        "--set",
        "valid_until=2027-01-31",
    ]
    assert run(capsys, "fill", str(TEMPLATE), *SET, *days, "--out", "filled.toml")[0] == 0
    template, text = TEMPLATE.read_text("utf-8"), (home / "filled.toml").read_text("utf-8")
    for name, letter in zip(IDS, "ade", strict=True):
        template = template.replace("sha256:" + letter * 64, IDS[name])
    template = template.replace("2026-12-01T", "2026-12-03T").replace("2027-03-01T", "2027-02-01T")
    assert text == template.replace("2027-02-28 ", "2027-01-31 ")
    assert run(capsys, "check", "filled.toml")[0] == 0
    # What is there already is left alone.
    code, answer = run(capsys, "fill", str(TEMPLATE), *SET, "--out", "filled.toml")
    assert (code, answer["error"]["code"]) == (2, "file-exists")
    code, answer = run(capsys, "fill", str(TEMPLATE), *SET)
    assert answer["text"].count(IDS["dpo"]) == 1


def test_days_may_be_counted_from_today_where_the_department_is(
    home: Path, capsys: pytest.CaptureFixture[str]
):
    data = TEMPLATE.read_bytes()
    values = [word for word in SET if word != "--set"]
    late = datetime(2026, 12, 31, 16, 30, tzinfo=UTC)  # half past midnight in Guangzhou
    days = ["not_before=today", "expires=+90d", "valid_until=+89d"]
    text = fill(data, [*values, *days], now=late, read_key=load_nothing).data.decode()
    assert "not_before = 2027-01-01T00:00:00+08:00" in text
    assert "expires = 2027-04-01T00:00:00+08:00" in text
    assert "valid_until = 2027-03-31 " in text


def load_nothing(_: str) -> bytes:
    raise AssertionError


@pytest.mark.parametrize(
    ("values", "code"),
    [
        (["dpo"], "unknown-key"),
        (["policy_id=x"], "unknown-key"),
        (["not_before=2026-12-03", "not_before=2026-12-04"], "listed-twice"),
        (["expires=2027-02-30"], "bad-time"),
        (["expires=20270228"], "bad-time"),
        (["expires=+99999d"], "bad-time"),
        (["expires=2027-09-01"], "bad-validity"),
        ([], "placeholder-left"),
    ],
)
def test_a_template_filled_in_wrongly_is_refused_and_nothing_is_written(
    home: Path, capsys: pytest.CaptureFixture[str], values: list[str], code: str
):
    given = [word for value in values for word in ("--set", value)]
    keys = SET if code != "placeholder-left" else SET[:4]
    _, answer = run(capsys, "fill", str(TEMPLATE), *keys, *given, "--out", "filled.toml")
    assert answer["error"]["code"] == code
    assert answer["error"]["hint"]
    assert not (home / "filled.toml").exists()


def test_what_a_template_has_no_place_for_is_named(home: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["fill", str(EXAMPLES / "statistics.toml"), *SET]) == 0
    captured = capsys.readouterr()
    assert IDS["analyst"] in captured.out
    assert captured.err.splitlines() == [
        "minshu-policy: note: statistics.toml has no place for dpo",
        "minshu-policy: note: statistics.toml has no place for owner",
    ]


def test_signed_versions_are_compared_like_their_texts(
    home: Path, world: Any, capsys: pytest.CaptureFixture[str]
):
    old = (home / "policy.toml").read_bytes()
    edits = {"version = 1 ": f'version = 2\nprevious = "{sha256_digest(old)}"', "jobs = 10": "jobs = 9"}
    new = world.text(**edits).encode()
    (home / "new.toml").write_bytes(new)
    (home / "old.dsse").write_bytes(sign_policy(old, world.signer("human-resources dpo")).encode())
    for before in ("policy.toml", "old.dsse"):
        code, answer = run(capsys, "diff", before, "new.toml")
        assert (code, answer["effect"], answer["follows"]) == (0, "tighter", True)
        assert [c["clause"] for c in answer["changes"]] == ["rules.R1.rate"]
    assert run(capsys, "diff", "new.toml", "policy.toml")[1]["effect"] == "looser"
    (home / "job.dsse").write_bytes(sign(JOB, world.spec().encode(), []).encode())
    code, answer = run(capsys, "diff", "job.dsse", "new.toml")
    assert (code, answer["error"]["code"]) == (2, "wrong-payload-type")


STOP = (
    "stop",
    "--node",
    "human-resources.gz.example/node-a",
    "--reason",
    '投诉 "7" \\ 待查',
    "--key",
    "dpo.pem",
)


def test_a_stop_is_made_and_signed_in_one_step(home: Path, world: Any, capsys: pytest.CaptureFixture[str]):
    assert run(capsys, "key", "new", "--role", "dpo", "dpo.pem")[0] == 0
    key = load_public(home / "dpo.pem.pub")
    code, answer = run(capsys, *STOP, "--scope", "dataset", "--value", "insured", "--policy", "policy.toml")
    assert (code, answer["signed_by"]) == (0, key_id(key))
    data = (home / "stop.dsse").read_bytes()
    node, now = world.node("human-resources"), datetime.now(UTC)
    stop = check_stop(data, PinnedSigners({"dpo": (key,)}), now, node=node, known=())
    (halt,) = stop.document.stops
    assert (halt.scope, halt.value, halt.reason) == ("dataset", "insured", '投诉 "7" \\ 待查')
    assert stop.digest == answer["digest"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--scope", "dataset"], "bad-stop"),
        (["--scope", "all", "--value", "x"], "bad-stop"),
        (["--scope", "job", "--value", "7"], "bad-stop"),
        (["--scope", "purpose", "--value", "P-2026-009", "--policy", "policy.toml"], "unknown-purpose"),
        (["--scope", "requester", "--value", "tax", "--policy", "policy.toml"], "unknown-requester"),
        (["--scope", "all", "--reason", ""], "policy-invalid"),
        (["--scope", "all", "--reason", "a\u202eb"], "unreadable-character"),
        (["--scope", "all", "--reason", "a\udcff"], "not-utf8"),
        (["--scope", "all", "--node", "health"], "policy-invalid"),
        (
            ["--scope", "all", "--node", "health.gz.example/a", "--policy", "policy.toml"],
            "policy-of-another-node",
        ),
    ],
)
def test_a_stop_that_stops_nothing_is_not_signed(
    home: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: str
):
    assert run(capsys, "key", "new", "--role", "dpo", "dpo.pem")[0] == 0
    result, answer = run(capsys, *STOP, *arguments)
    assert (result, answer["error"]["code"]) == (2, code)
    assert answer["error"]["hint"]
    assert not (home / "stop.dsse").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["approve"],
        ["key", "new", "--role", "king", "k"],
        ["check"],
        ["check", "x", "--at"],
        ["sign", "x"],
        ["diff", "x"],
        ["fill"],
        ["key"],
        ["stop", "--node", "n", "--scope", "week", "--reason", "r", "--key", "k"],
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
