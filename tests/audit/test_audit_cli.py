"""`minshu-audit`, as a newcomer sees it."""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from journals import signer

from audit.cli import main
from audit.entries import PolicyRef
from audit.merkle import EMPTY_ROOT
from audit.note import Checkpoint, VerifierKey, sign_note
from protocols.encoding import sha256_digest

ROOT = Path(__file__).parents[2]
JOB = "sha256:" + "ab" * 32
DIGEST = "sha256:" + "cd" * 32


@pytest.fixture
def shown(place, monkeypatch):
    """A journal of five entries under ./journal, its key in ./police.vkey; the test stands in that folder."""
    with place.open() as journal:
        journal.record(
            "policy.activate", {"version": 7, "sha256": DIGEST, "signers": [DIGEST, JOB]}, actor="dpo"
        )
        journal.record(
            "job.received", {"requester": "bureau", "job_type": "crosscheck/1", "purpose": "养老"}, job=JOB
        )
        journal.record("job.refused", {"code": "no-rule"}, job=DIGEST, actor="bureau")
        journal.record("job.failed", {"code": "peer-lost", "retry": True}, job=JOB, attempt=2, refs=[DIGEST])
        (place.home / "police.vkey").write_text(journal.vkey + "\n")
    monkeypatch.chdir(place.home)
    return place


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    try:
        status = main(arguments)
    except SystemExit as left:
        status = left.code
    out, err = capsys.readouterr()
    return status, out, err


def test_a_journal_that_verifies(shown, capsys):
    assert run(capsys, "verify", "journal", "--vkey", "police.vkey") == (
        0,
        """\
log       police.gz.example/node-a/journal/1
entries   5, from 2026-12-01T00:00:00.010Z to 2026-12-01T00:00:00.050Z
root      ROOT
signed    police.gz.example/node-a/journal/1+23f19482
       1  job.failed
       1  job.received
       1  job.refused
       1  log.open
       1  policy.activate
OK: the signature holds; entries, tiles and root agree
""".replace("ROOT", (shown.directory / "checkpoint").read_text().split("\n")[2]),
        "",
    )


def test_a_journal_that_does_not(shown, capsys):
    bundle = shown.directory / "tile/entries/000.p/5"
    bundle.write_bytes(bundle.read_bytes().replace(b"no-rule", b"no-fule"))
    status, out, err = run(capsys, "verify", "journal", "--vkey", "police.vkey")
    assert status == 1
    assert out.splitlines()[-3:] == [
        "problem   tile/0/000.p/5: its hashes are not those of the entries [tile-mismatch]",
        "problem   checkpoint: the entries do not give the signed root [root-mismatch]",
        "NOT OK",
    ]
    assert err == (
        "minshu-audit: error: this journal does not verify: 2 problems\n"
        "hint: keep the folder as it is, it is evidence; fetch a second copy and compare\n"
    )


def test_a_journal_without_a_checkpoint(shown, capsys):
    (shown.directory / "checkpoint").unlink()
    assert run(capsys, "verify", "journal", "--vkey", "police.vkey") == (
        1,
        "problem   checkpoint: the folder holds none [no-checkpoint]\nNOT OK\n",
        """\
minshu-audit: error: this journal does not verify: 1 problem
hint: keep the folder as it is, it is evidence; fetch a second copy and compare
""",
    )


def test_a_journal_is_compared_with_the_checkpoint_an_auditor_kept(shown, capsys):
    kept = Path("kept")
    kept.write_bytes((shown.directory / "checkpoint").read_bytes())
    command = ("verify", "journal", "--vkey", "police.vkey", "--since")
    assert run(capsys, *command, "kept")[0] == 0
    with shown.open() as journal:
        journal.record("job.refused", {"code": "no-rule"}, job=JOB)
    newer = (shown.directory / "checkpoint").read_bytes()
    assert run(capsys, *command, "kept")[0] == 0
    # The operator puts back an older copy, whole and well signed.
    (shown.directory / "checkpoint").write_bytes(kept.read_bytes())
    kept.write_bytes(newer)
    status, out, _ = run(capsys, *command, "kept")
    assert status == 1
    assert "problem   checkpoint: it covers 5 entries, before 6 [shortened]\n" in out
    status, _, err = run(capsys, *command, "police.vkey")
    assert (status, err.partition(":")[0]) == (2, "minshu-audit")


def test_an_origin_that_would_turn_the_text_around_is_spelt_out(shown, capsys):
    origin = "police\u202e.gz"
    text = Checkpoint(origin, 0, EMPTY_ROOT).encode()
    (shown.directory / "checkpoint").write_bytes(sign_note(text, shown.vkey, shown.key.sign).encode())
    status, out, _ = run(capsys, "verify", "journal", "--vkey", "police.vkey")
    assert (status, origin in out) == (1, False)
    assert "log       'police\\u202e.gz'\n" in out


@pytest.fixture
def rotated(shown):
    """The same journal after its key has changed, and one entry later; the auditor has the old key."""
    with shown.open() as journal:
        shown.rotate(journal, signer(0), signer(1))
    with shown.open_with(signer(1)) as journal:
        journal.record("budget.charged", {"budget": "elder_quarter", "cost": "0.10", "rho": "0.10"}, job=JOB)
        (shown.home / "newer.vkey").write_text(journal.vkey + "\n")
    return shown


def test_a_journal_whose_key_has_changed_verifies_with_the_old_key_and_with_the_new(rotated, capsys):
    for vkey in ("police.vkey", "newer.vkey"):
        status, out, err = run(capsys, "verify", "journal", "--vkey", vkey)
        assert (status, err) == (0, "")
        name = rotated.vkey.name
        assert out.splitlines()[3:5] == [
            f"keys      {name}+23f19482, then {name}+06e2b3b1",
            f"signed    {name}+06e2b3b1",
        ]
    (rotated.home / "other.vkey").write_text(
        str(VerifierKey(rotated.vkey.name, 1, signer(2).public_key)) + "\n"
    )
    status, out, _ = run(capsys, "verify", "journal", "--vkey", "other.vkey")
    assert status == 1
    assert "problem   checkpoint: none of the trusted keys ever was this log's [no-known-signature]\n" in out


def test_a_key_that_changed_without_the_old_keys_word_is_found_out(rotated, capsys, monkeypatch):
    """The program that wrote this journal had lost its checks."""
    with rotated.open_with(signer(1)) as journal, monkeypatch.context() as careless:
        careless.setattr("audit.rotation.verify", lambda *_, **__: frozenset())
        seq = rotated.rotate(journal, signer(1), signer(2), by=(signer(2),))
    status, out, err = run(capsys, "verify", "journal", "--vkey", "police.vkey")
    assert status == 1
    assert (
        f"problem   entry {seq}: 1 valid signatures of distinct trusted keys, 2 needed [too-few-signatures]\n"
        in out
    )
    assert err.startswith("minshu-audit: error: this journal does not verify: 1 problem\n")


def test_a_change_of_key_is_shown_with_both_keys(rotated, capsys):
    _, out, _ = run(capsys, "show", "journal", "--kind", "key.rotate")
    (data,) = (path.read_bytes() for path in rotated.directory.rglob("objects/sha256/*/*"))
    assert out == (
        "     5  2026-12-01T00:00:00.060Z  key.rotate"
        f"          envelope_sha256={sha256_digest(data)[7:19]}"
        f"  identity={sha256_digest(signer(1).public_key)[7:19]}"
        "  previous_vkey=police.gz.example/node-a/journal/1+23f19482"
        f"  root={entry_root(rotated)}  size=5"
        f"  vkey={(rotated.home / 'newer.vkey').read_text()}"
    )
    _, out, _ = run(capsys, "show", "journal", "--kind", "budget.charged")
    assert out == (
        "     6  2026-12-01T00:00:00.070Z  budget.charged      job=abababababab"
        "  budget=elder_quarter  cost=0.10  rho=0.10\n"
    )


def entry_root(place) -> str:
    bundle = (place.directory / "tile/entries/000.p/7").read_bytes()
    return bundle.rpartition(b'"root":"sha256:')[2][:12].decode()


def test_more_problems_than_anyone_reads_are_summed_up(shown, capsys, monkeypatch):
    monkeypatch.setattr("audit.verify.MAX_PROBLEMS", 1)
    bundle = shown.directory / "tile/entries/000.p/5"
    bundle.write_bytes(bundle.read_bytes().replace(b"no-rule", b"no-fule"))
    _, out, _ = run(capsys, "verify", "journal", "--vkey", "police.vkey")
    assert "          and 1 more\n" in out


def test_the_verdict_as_json(shown, capsys):
    status, out, _ = run(capsys, "verify", "journal", "--vkey", "police.vkey", "--json")
    verdict = json.loads(out)
    assert (status, verdict["ok"], verdict["size"], verdict["problems"]) == (0, True, 5, [])
    (shown.directory / "tile/0/000.p/5").unlink()
    status, out, _ = run(capsys, "verify", "journal", "--vkey", "police.vkey", "--json")
    verdict = json.loads(out)
    assert (status, verdict["ok"]) == (1, False)
    assert verdict["problems"] == [
        {"code": "missing", "where": "tile/0/000.p/5", "what": "the file is not there"}
    ]


def test_entries_are_shown_one_to_a_line(shown, capsys):
    assert run(capsys, "show", "journal") == (
        0,
        f"""\
     0  2026-12-01T00:00:00.010Z  log.open            vkey={shown.vkey}
     1  2026-12-01T00:00:00.020Z  policy.activate     actor=dpo  sha256=cdcdcdcdcdcd  \
signers=cdcdcdcdcdcd,abababababab  version=7
     2  2026-12-01T00:00:00.030Z  job.received        job=abababababab  job_type=crosscheck/1  \
purpose=养老  requester=bureau
     3  2026-12-01T00:00:00.040Z  job.refused         job=cdcdcdcdcdcd  actor=bureau  code=no-rule
     4  2026-12-01T00:00:00.050Z  job.failed          job=abababababab  attempt=2  code=peer-lost  \
retry=yes  refs=cdcdcdcdcdcd
""",
        "",
    )


@pytest.mark.parametrize(
    ("filters", "seqs"),
    [
        (["--kind", "job.refused"], [3]),
        (["--job", JOB], [2, 4]),
        (["--job", "ababab"], [2, 4]),
        (["--job", "sha256:cd"], [3]),
        (["--job", "cd", "--kind", "job.failed"], []),
    ],
)
def test_entries_can_be_picked_by_kind_and_job(shown, capsys, filters, seqs):
    status, out, _ = run(capsys, "show", "journal", "--json", *filters)
    assert status == 0
    assert [json.loads(line)["seq"] for line in out.splitlines()] == seqs


def test_an_entrys_json_is_the_bytes_in_the_log(shown, capsys):
    _, out, _ = run(capsys, "show", "journal", "--json")
    bundle = (shown.directory / "tile/entries/000.p/5").read_bytes()
    for line in out.splitlines():
        assert line.encode() in bundle


def test_the_policy_and_rule_of_a_decision_are_shown(place, capsys):
    with place.open() as journal:
        for rule in ("R5", ""):
            journal.record("job.refused", {"code": "rate"}, job=JOB, policy=PolicyRef(7, DIGEST, rule))
    _, out, _ = run(capsys, "show", str(place.directory), "--kind", "job.refused")
    assert "policy=v7  rule=R5" in out
    assert "policy=v7  rule=none" in out


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        ([], "the following arguments are required: COMMAND", "run minshu-audit --help"),
        (
            ["verify"],
            "the following arguments are required: DIRECTORY, --vkey",
            "run minshu-audit verify --help",
        ),
        (["frobnicate"], None, "run minshu-audit --help"),
        (
            ["verify", "nowhere", "--vkey", "police.vkey"],
            "there is no such folder",
            "give the folder that holds checkpoint and tile/",
        ),
        (
            ["verify", "journal", "--vkey", "nowhere"],
            "the key file cannot be read: No such file or directory",
            "give the file with the log's verifier key",
        ),
        (["verify", "journal", "--vkey", "empty"], "the key file is empty", "it holds one key per line"),
        (
            ["verify", "journal", "--vkey", "binary"],
            "the key file cannot be read: it is not UTF-8 text",
            "give the file with the log's verifier key",
        ),
        (
            ["verify", "journal", "--vkey", "wrong"],
            "not a verifier key: expected name+8 hex digits+base64",
            "copy the vkey line exactly as the log's operator handed it out",
        ),
        (["show", "nowhere"], "there is no such folder", "give the folder that holds checkpoint and tile/"),
        (["show", "journal", "--kind", "nonsense"], "there is no such kind of entry", None),
    ],
)
def test_a_usage_error_says_what_to_do(shown, capsys, arguments, error, hint):
    (shown.home / "empty").write_text("\n")
    (shown.home / "binary").write_bytes(b"\xff\xfe")
    (shown.home / "wrong").write_text("not a key\n")
    status, out, err = run(capsys, *arguments)
    first, second = err.splitlines()
    assert (status, out) == (2, "")
    assert first.startswith("minshu-audit: error: ")
    assert second.startswith("hint: ")
    assert error is None or first.removeprefix("minshu-audit: error: ") == error
    assert hint is None or second.removeprefix("hint: ") == hint


def test_showing_a_damaged_journal_fails_without_a_traceback(shown, capsys):
    bundle = shown.directory / "tile/entries/000.p/5"
    data = bundle.read_bytes()
    bundle.write_bytes(data.replace(b"job.refused", b"job.forgott"))
    status, _, err = run(capsys, "show", "journal")
    assert (status, err) == (1, "minshu-audit: error: an entry kind that v does not publish\n")
    bundle.unlink()
    status, _, err = run(capsys, "show", "journal")
    assert (status, err) == (1, "minshu-audit: error: tile/entries/000.p/5 is missing\n")
    bundle.mkdir()
    status, _, err = run(capsys, "show", "journal")
    assert (status, err.splitlines()[0]) == (1, "minshu-audit: error: Is a directory")
    bundle.rmdir()
    os.mkfifo(bundle)
    command = [sys.executable, "-m", "audit.cli", "show", str(shown.directory)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr.splitlines()[0]) == (1, "minshu-audit: error: Not a regular file")


def test_the_version_is_the_packages(capsys):
    assert run(capsys, "--version") == (0, f"minshu-audit {importlib.metadata.version('minshu')}\n", "")


def test_the_command_runs_on_its_own_and_stops_quietly_when_its_reader_does(place):
    with place.open() as journal:
        place.fill(journal, 2000)
        (place.home / "police.vkey").write_text(journal.vkey + "\n")
    command = [sys.executable, "-m", "audit.cli"]
    verify = subprocess.run(
        [*command, "verify", str(place.directory), "--vkey", str(place.home / "police.vkey")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (verify.returncode, verify.stderr) == (0, "")
    assert verify.stdout.endswith("OK: the signature holds; entries, tiles and root agree\n")

    reading, writing = os.pipe()
    os.close(reading)
    show = subprocess.run(
        [*command, "show", str(place.directory)], cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert show.stderr == ""
