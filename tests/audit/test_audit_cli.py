"""`minshu-audit`, as a newcomer sees it."""

import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
from journals import signer
from several import ROOTS, Collaboration

from audit.cli import main
from audit.entries import Entry, PolicyRef
from audit.findings import CHECKLIST
from audit.log import Journal
from audit.merkle import EMPTY_ROOT
from audit.note import Checkpoint, VerifierKey, sign_note
from audit.quorum import TrustPolicy
from audit.trust import quorum_of
from protocols.encoding import sha256_digest
from protocols.roots import Roots

ROOT = Path(__file__).parents[2]
JOB = "sha256:" + "ab" * 32
DIGEST = "sha256:" + "cd" * 32


EVIDENCE = sha256_digest(b"what an entry rests on")


@pytest.fixture(autouse=True)
def today(monkeypatch):
    """The auditor's clock shows the day after everything happened."""
    monkeypatch.setattr("audit.cli._now", lambda: datetime(2026, 12, 2, tzinfo=UTC))


@pytest.fixture
def shown(place, monkeypatch):
    """A journal of five entries under ./journal, its key in ./police.vkey; the test stands in that folder."""
    with place.open() as journal:
        journal.put_object(b"what an entry rests on")
        journal.record(
            "policy.activate", {"version": 7, "sha256": DIGEST, "signers": [DIGEST, JOB]}, actor="dpo"
        )
        journal.record(
            "job.submitted", {"requester": "bureau", "job_type": "crosscheck/1", "purpose": "养老"}, job=JOB
        )
        journal.record("job.refused", {"code": "no-rule"}, job=DIGEST, actor="bureau")
        journal.record(
            "job.failed", {"code": "peer-lost", "retry": True}, job=JOB, attempt=2, refs=[EVIDENCE]
        )
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
    status, out, err = run(capsys, "verify", "journal", "--keys", "police.vkey")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    signed = "holds     Every entry is signed for, and the chain is unbroken"
    assert lines[:7] == [
        "log       police.gz.example/node-a/journal/1",
        "entries   5, from 2026-12-01T00:00:00.010Z to 2026-12-01T00:00:00.050Z",
        f"root      {(shown.directory / 'checkpoint').read_text().splitlines()[2]}",
        "signed    police.gz.example/node-a/journal/1+23f19482",
        "kinds     1 job.failed, 1 job.refused, 1 job.submitted, 1 log.open, 1 policy.activate",
        f"{signed} (7: all entries, checkpoint, checkpoint.old)",
        "open      Heads agree across the organisations",
    ]
    assert sum(line[:10] in ("holds     ", "open      ", "none      ") for line in lines) == len(CHECKLIST)
    assert lines[-1] == "OK: the signature holds; entries, tiles and root agree"
    assert all(len(line) <= 120 for line in lines)


def test_a_journal_that_does_not(shown, capsys):
    bundle = shown.directory / "tile/entries/000.p/5"
    bundle.write_bytes(bundle.read_bytes().replace(b"no-rule", b"no-fule"))
    status, out, err = run(capsys, "verify", "journal", "--keys", "police.vkey")
    assert status == 1
    assert [line for line in out.splitlines() if line.startswith("problem")] == [
        "problem   tile/0/000.p/5: its hashes are not those of the entries [tile-mismatch]",
        "problem   tile/entries/000.p/5: entry 3 is not the one that was signed for [entry-changed]",
        "problem   checkpoint: the entries do not give the signed root [root-mismatch]",
        "problem   tile/entries/000.p/4: it is not the beginning of tile/entries/000.p/5 [tile-mismatch]",
    ]
    assert "FAILS     Every entry is signed for, and the chain is unbroken" in out
    assert out.splitlines()[-1] == "NOT OK"
    assert err == (
        "minshu-audit: error: this journal does not verify: 4 problems\n"
        "hint: keep the folder as it is, it is evidence; fetch a second copy and compare\n"
    )


def test_a_journal_without_a_checkpoint(shown, capsys):
    (shown.directory / "checkpoint").unlink()
    status, out, err = run(capsys, "verify", "journal", "--keys", "police.vkey")
    assert status == 1
    assert out.splitlines()[:2] == [
        "FAILS     Every entry is signed for, and the chain is unbroken",
        "problem   checkpoint: the folder holds none [no-checkpoint]",
    ]
    assert out.endswith("\nNOT OK\n")
    assert (
        err
        == """\
minshu-audit: error: this journal does not verify: 1 problem
hint: keep the folder as it is, it is evidence; fetch a second copy and compare
"""
    )


def test_a_journal_is_compared_with_the_checkpoint_an_auditor_kept(shown, capsys):
    kept = Path("kept")
    kept.write_bytes((shown.directory / "checkpoint").read_bytes())
    command = ("verify", "journal", "--keys", "police.vkey", "--since")
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
    status, out, _ = run(capsys, "verify", "journal", "--keys", "police.vkey")
    assert (status, origin in out) == (1, False)
    assert "log       'police\\u202e.gz'\n" in out


@pytest.fixture
def rotated(shown):
    """The same journal after its key has changed, and one entry later; the auditor has the old key."""
    with shown.open() as journal:
        shown.rotate(journal, signer(0), signer(1))
    with shown.open_with(signer(1)) as journal:
        journal.record("clock.step", {"step_ms": -5000})
        (shown.home / "newer.vkey").write_text(journal.vkey + "\n")
    return shown


def test_a_journal_whose_key_has_changed_verifies_with_the_old_key_and_with_the_new(rotated, capsys):
    for vkey in ("police.vkey", "newer.vkey"):
        status, out, err = run(capsys, "verify", "journal", "--keys", vkey)
        assert (status, err) == (0, "")
        name = rotated.vkey.name
        assert out.splitlines()[3:5] == [
            f"keys      {name}+23f19482, then {name}+06e2b3b1",
            f"signed    {name}+06e2b3b1",
        ]
    (rotated.home / "other.vkey").write_text(
        str(VerifierKey(rotated.vkey.name, 1, signer(2).public_key)) + "\n"
    )
    status, out, _ = run(capsys, "verify", "journal", "--keys", "other.vkey")
    assert status == 1
    assert "problem   checkpoint: none of the trusted keys ever was this log's [no-known-signature]\n" in out


def test_a_key_that_changed_without_the_old_keys_word_is_found_out(rotated, capsys, monkeypatch):
    """The program that wrote this journal had lost its checks."""
    with rotated.open_with(signer(1)) as journal, monkeypatch.context() as careless:
        careless.setattr("audit.rotation.verify", lambda *_, **__: frozenset())
        seq = rotated.rotate(journal, signer(1), signer(2), by=(signer(2),))
    status, out, err = run(capsys, "verify", "journal", "--keys", "police.vkey")
    assert status == 1
    assert (
        f"problem   entry {seq}: 1 valid signatures of distinct trusted keys, 2 needed [too-few-signatures]\n"
        in out
    )
    assert err.startswith("minshu-audit: error: this journal does not verify: 1 problem\n")


def test_a_change_of_key_is_shown_with_both_keys(rotated, capsys):
    _, out, _ = run(capsys, "show", "journal", "--kind", "key.rotate")
    objects = [path.read_bytes() for path in rotated.directory.rglob("objects/sha256/*/*")]
    (data,) = (data for data in objects if sha256_digest(data) != EVIDENCE)
    assert out == (
        "     5  2026-12-01T00:00:00.060Z  key.rotate"
        f"          envelope_sha256={sha256_digest(data)[7:19]}"
        f"  identity={sha256_digest(signer(1).public_key)[7:19]}"
        "  previous_vkey=police.gz.example/node-a/journal/1+23f19482"
        f"  root={entry_root(rotated)}  size=5"
        f"  vkey={(rotated.home / 'newer.vkey').read_text()}"
    )
    _, out, _ = run(capsys, "show", "journal", "--kind", "clock.step")
    assert out == "     6  2026-12-01T00:00:00.070Z  clock.step          step_ms=-5000\n"


def entry_root(place) -> str:
    bundle = (place.directory / "tile/entries/000.p/7").read_bytes()
    return bundle.rpartition(b'"root":"sha256:')[2][:12].decode()


def test_more_problems_than_anyone_reads_are_summed_up(shown, capsys, monkeypatch):
    monkeypatch.setattr("audit.verify.MAX_PROBLEMS", 1)
    bundle = shown.directory / "tile/entries/000.p/5"
    bundle.write_bytes(bundle.read_bytes().replace(b"no-rule", b"no-fule"))
    _, out, _ = run(capsys, "verify", "journal", "--keys", "police.vkey")
    assert "          and 1 more\n" in out


def test_the_verdict_as_json(shown, capsys):
    status, out, _ = run(capsys, "verify", "journal", "--keys", "police.vkey", "--json")
    verdict = json.loads(out)
    assert (status, verdict["ok"], verdict["size"], verdict["problems"]) == (0, True, 5, [])
    (shown.directory / "tile/0/000.p/5").unlink()
    status, out, _ = run(capsys, "verify", "journal", "--keys", "police.vkey", "--json")
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
     2  2026-12-01T00:00:00.030Z  job.submitted       job=abababababab  job_type=crosscheck/1  \
purpose=养老  requester=bureau
     3  2026-12-01T00:00:00.040Z  job.refused         job=cdcdcdcdcdcd  actor=bureau  code=no-rule
     4  2026-12-01T00:00:00.050Z  job.failed          job=abababababab  attempt=2  code=peer-lost  \
retry=yes  refs={EVIDENCE[7:19]}
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
            "the following arguments are required: BUNDLE",
            "run minshu-audit verify --help",
        ),
        (["frobnicate"], None, "run minshu-audit --help"),
        (
            ["verify", "nowhere", "--keys", "police.vkey"],
            "nowhere: there is no such folder",
            "give the folder that holds checkpoint and tile/, or a .zip of it",
        ),
        (
            ["verify", "journal"],
            "nothing to hold it against: no key was given",
            "give --keys or --roots, as the operators or root key holders handed them out",
        ),
        (
            ["verify", "journal", "--keys", "nowhere"],
            "the key file nowhere cannot be read: No such file or directory",
            "check the path and its permissions",
        ),
        (["verify", "journal", "--keys", "empty"], "the key file is empty", "it holds one key per line"),
        (
            ["verify", "journal", "--keys", "binary"],
            "the key file binary cannot be read: it is not UTF-8 text",
            "check the path and its permissions",
        ),
        (
            ["verify", "journal", "--keys", "wrong"],
            "wrong: not a verifier key: expected name+8 hex digits+base64",
            "copy the vkey line exactly as the log's operator handed it out",
        ),
        (["show", "nowhere"], "nowhere: there is no such folder", None),
        (
            ["cross", "journal", "--keys", "police.vkey"],
            "one log alone contradicts nobody",
            "give two or more bundles",
        ),
        (["cross", "journal", "journal", "--keys", "police.vkey"], "one bundle is named twice", None),
        (["inclusion", "journal"], "neither BUNDLE and SEQ nor --check were given", None),
        (["inclusion", "journal", "x"], None, "run minshu-audit inclusion --help"),
        (
            ["inclusion", "journal", "5"],
            "there is no entry 5: checkpoint covers 5",
            "entries are numbered from 0",
        ),
        (["inclusion", "--check", "empty"], "a proof says nothing without its entry", None),
        (["bundle", "journal", "--out", "police.vkey"], "police.vkey is there already", None),
        (["watch", "journal", "--state", "s", "--every", "0", "--keys", "police.vkey"], None, None),
        (["timestamp"], None, "run minshu-audit timestamp --help"),
        (["keys", "--roots", "empty", "--roster", "journal", "--out", "k"], None, None),
        (["verify", "journal", "--keys", "police.vkey", "--quorum", "wrong"], None, None),
        (["verify", "journal", "--keys", "police.vkey", "--since", "nowhere"], None, None),
        (["verify", "journal", "--keys", "police.vkey", "--release", "nowhere"], None, None),
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
    place.clock.at = datetime(2020, 12, 1, tzinfo=UTC)
    with place.open() as journal:
        place.fill(journal, 2000)
        (place.home / "police.vkey").write_text(journal.vkey + "\n")
    command = [sys.executable, "-m", "audit.cli"]
    verify = subprocess.run(
        [*command, "verify", str(place.directory), "--keys", str(place.home / "police.vkey")],
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


# -- several journals --------------------------------------------------------------------------------------


@pytest.fixture
def city(tmp_path, monkeypatch):
    """Four journals that witnessed each other, everybody's keys in ./keys, the root keys in ./roots.json."""
    it = Collaboration(tmp_path)
    monkeypatch.chdir(tmp_path)
    it.sign_roster()
    it.whole()
    keys = tmp_path / "keys"
    keys.mkdir()
    for each in it.departments.values():
        (keys / each.short).write_text(f"{each.vkey}\n")
        (keys / f"{each.short}.witness").write_text("".join(f"{key}\n" for key in each.witness.vkeys))
    (tmp_path / "roots.json").write_bytes(ROOTS.encode())
    yield it
    it.close()


ALL = ("police", "health", "housing", "bureau")


def test_a_bundle_is_made_and_named(city, capsys):
    status, out, err = run(capsys, "bundle", "police", "--out", "p.zip")
    assert (status, err) == (0, "")
    size = sum(info.file_size for info in zipfile.ZipFile("p.zip").infolist())
    assert out == (
        "bundle    p.zip\n"
        "log       police.gz.example/node-a/journal/1\n"
        "entries   5\n"
        f"files     10, of these 2 objects; {size:,} bytes\n"
    )
    status, out, _ = run(capsys, "bundle", "police", "--out", "p", "--json")
    assert (status, json.loads(out)["objects"]) == (0, 2)


def test_journals_that_agree_and_one_that_was_rewritten(city, capsys):
    status, out, err = run(capsys, "cross", *ALL, "--keys", "keys")
    assert (status, err) == (0, "")
    said = "Every attempt stands in all participants' logs"
    assert out.splitlines()[:5] == [
        *(
            f"{short}: {city[short].journal.origin}, {city[short].journal.size} entries"
            f" until {verdict_of(city, short)}, verifies"
            for short in ALL
        ),
        f"holds     {said} (9: police: entry 3, health: entry 3, police …)",
    ]
    assert out.endswith("\nOK: the logs agree\n")
    twin = city.forked("police")
    city["police"].refuse()
    twin.refuse(2)
    city.witnessed("police", by=["health"])
    status, out, err = run(capsys, "cross", "forked/police", "health", "--roots", "roots.json")
    assert status == 1
    assert (
        "problem   police: checkpoint: two histories of police.gz.example/node-a/journal/1 at 6 entries:"
        in out
    )
    assert out.endswith("NOT OK\n")
    assert err.startswith("minshu-audit: error: these journals do not verify: ")
    status, out, _ = run(capsys, "cross", "forked/police", "health", "--roots", "roots.json", "--json")
    assert (status, json.loads(out)["ok"]) == (1, False)


def verdict_of(city: Collaboration, short: str) -> str:
    return list(city[short].journal.entries())[-1].time


def test_one_entry_is_proven_with_the_witnesses_who_saw_it(city, capsys):
    policy = TrustPolicy.of(
        [city["police"].vkey], quorum_of(None, city.roster(), city["police"].journal.origin)
    )
    Path("quorum").write_bytes(policy.encode())
    assert run(capsys, "inclusion", "police", "4", "--out", "p", "--entry", "e")[0] == 0
    status, out, err = run(capsys, "inclusion", "--check", "p", "--entry", "e", "--quorum", "quorum")
    assert (status, err) == (0, "")
    witnesses = [city[short].witness.vkeys[0].label for short in ("health", "housing")]
    assert out.splitlines() == [
        "log       police.gz.example/node-a/journal/1",
        f"entry     4, output.commit of {verdict_of(city, 'police')}, is in its tree of 5",
        f"cosigned  {', '.join(witnesses)}",
        "OK: the proof holds, the quorum has seen it",
    ]
    # What the log has not yet had cosigned is proven, but not seen.
    city["police"].refuse()
    assert run(capsys, "inclusion", "police", "5", "--out", "p", "--entry", "e")[0] == 0
    status, out, err = run(capsys, "inclusion", "--check", "p", "--entry", "e", "--quorum", "quorum")
    assert (status, out.splitlines()[-1]) == (1, "NOT OK")
    assert "too few witnesses" in err
    status, out, _ = run(capsys, "inclusion", "--check", "p", "--entry", "e", "--keys", "keys")
    assert (status, out.splitlines()[-2:]) == (
        0, ["cosigned  by nobody whose key you brought", "OK: the proof holds"],
    )  # fmt: skip
    # Printed, it is the same text.
    printed = run(capsys, "inclusion", "police", "5")[1]
    assert printed.encode() == Path("p").read_bytes()
    Path("e").write_bytes(Path("e").read_bytes() + b" ")
    assert run(capsys, "inclusion", "--check", "p", "--entry", "e", "--keys", "keys")[0] == 1
    Path("p").write_text(printed.replace("index 5", "index 4"))
    assert run(capsys, "inclusion", "--check", "p", "--entry", "e", "--keys", "keys")[0] == 1


def test_a_report_is_one_page_over_all(city, capsys):
    status, out, _ = run(capsys, "report", *ALL, "--keys", "keys", "--out", "report.html", "--lang", "zh")
    # The entries are made up, so that the decisions in them follow from nothing.
    assert status == 1
    assert out.splitlines()[-2:] == ["the logs agree", "report    report.html"]
    page = Path("report.html").read_text()
    assert all(city[short].journal.origin in page for short in ALL)
    assert '<html lang="zh' in page
    status, out, _ = run(capsys, "report", "bureau", "--keys", "keys", "--out", "r.html", "--json")
    assert json.loads(out)["cross"] is None
    assert json.loads(out)["out"] == "r.html"


def test_watching_tells_and_stops(city, capsys):
    command = ("watch", "police", "health", "--state", "state", "--once", "--keys", "keys")
    status, out, err = run(capsys, *command)
    assert (status, err) == (0, "")
    assert out.splitlines()[0] == (
        "2026-12-02T00:00:00Z  police.gz.example/node-a/journal/1: first look: 5 entries,"
        f" until {verdict_of(city, 'police')}"
    )
    assert run(capsys, *command) == (0, "", "")
    shutil.copytree("police", "backup")
    city["police"].refuse()
    assert run(capsys, *command)[0] == 0
    shutil.rmtree("police")
    shutil.move("backup", "police")
    status, out, err = run(capsys, *command)
    assert status == 1
    assert "INCONSISTENT: it shows 5 entries, 6 were seen before [shortened]" in out
    assert err.startswith(
        "minshu-audit: error: a journal is inconsistent, or could not be followed\nhint: keep the state"
    )


def test_watching_a_folder_without_a_journal_is_no_success(city, capsys):
    Path("empty").mkdir()
    status, out, _ = run(capsys, "watch", "empty", "--state", "state", "--once", "--keys", "keys")
    assert status == 1
    assert "empty: cannot be followed" in out


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_nothing_that_a_journal_says_turns_the_page_around(tmp_path, capsys, form):
    origin = "a\u202eb\x9b31m\U000e0001/journal/1"
    with Journal.open(
        tmp_path / "journal",
        database=tmp_path / "db",
        origin=origin,
        signer=signer(1).sign,
        public_key=signer(1).public_key,
        now=lambda: datetime(2026, 12, 1, tzinfo=UTC),
    ):
        pass
    status, out, _ = run(capsys, "show", str(tmp_path / "journal"), *form)
    assert status == 0
    assert out.rstrip("\n").isprintable()
    if form:
        assert json.loads(out)["log"] == origin
    else:
        assert "u202e" in out


def test_a_bundle_that_breaks_its_review_is_reported_and_the_next_one_all_the_same(city, capsys, monkeypatch):
    from audit.facts import Facts

    visit = Facts.visit

    def broken(facts: Facts, entry: Entry) -> None:
        if entry.log.startswith("police."):
            raise OverflowError
        visit(facts, entry)

    monkeypatch.setattr(Facts, "visit", broken)
    command = ("report", "police", "health", "--keys", "keys", "--out", "r.html")
    status, out, err = run(capsys, *command)
    assert status == 1
    assert out.splitlines()[0] == "police: no log, NOT OK"
    assert out.splitlines()[1].startswith("health: health.gz.example/node-a/journal/1")
    assert "Traceback" not in err
    assert "unreviewable" in Path("r.html").read_text()
    assert run(capsys, "verify", "police", "--keys", "keys")[0] == 1


def test_a_monitor_ends_cleanly_when_it_is_interrupted(city):
    command = [sys.executable, "-m", "audit.cli", "watch", "police", "--state", "state", "--keys", "keys"]
    child = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        # Where the tests run in the background of a shell, interrupts are ignored, also by what they start.
        text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509  # one thread
    )  # fmt: skip
    assert child.stdout is not None
    assert "first look: 5 entries" in child.stdout.readline()
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=30)
    assert (child.returncode, err) == (0, "")


def test_keys_are_written_from_rosters_that_the_root_keys_signed(city, capsys):
    Path("roster.dsse").write_bytes(city.rosters[0])
    status, out, _ = run(
        capsys, "keys", "--roots", "roots.json", "--roster", "roster.dsse", "--out", "brought"
    )
    assert status == 0
    assert out.splitlines()[0] == f"roots     {ROOTS.fingerprint}; compare it with the root key holders"
    names = sorted(
        path.relative_to("brought").as_posix() for path in Path("brought").rglob("*") if path.is_file()
    )
    houses = [f"{house}.gz.example_node-a" for house in ("health", "housing", "police")]
    assert names == [
        "keys/bureau.gz.example_coordinator",
        *(f"keys/{house}{end}" for house in houses for end in ("", ".witness")),
        "quorum/bureau.gz.example_coordinator",
        *(f"quorum/{house}" for house in houses),
    ]
    police = ("--keys", "brought/keys", "--quorum", "brought/quorum/police.gz.example_node-a")
    _, out, _ = run(capsys, "verify", "police", *police)
    assert "seen      checkpoint by 2 votes, a quorum: health.gz.example, housing.gz.example\n" in out
    # Out of a bundle, too; and not with other root keys.
    assert run(capsys, "keys", "--roots", "roots.json", "--roster", "health", "--out", "again")[0] == 0
    others = Roots.of("gz", 2, [signer(n).public_key for n in range(3)])
    Path("others.json").write_bytes(others.encode())
    status, _, err = run(capsys, "keys", "--roots", "others.json", "--roster", "roster.dsse", "--out", "no")
    assert (status, err.splitlines()[0]) == (
        1,
        (
            "minshu-audit: error: the rosters do not follow from the root keys: version 1: a roster that"
            " neither the root keys you brought signed nor any before them"
        ),
    )
    assert not Path("no").exists()


def test_a_time_stamp_is_asked_for_over_the_cosigned_checkpoint(city, capsys):
    status, out, _ = run(capsys, "timestamp", "request", "police", "--out", "q.tsq")
    assert (status, out) == (0, "request   q.tsq, over 5 entries\nkept      q.tsq.checkpoint\n")
    assert Path("q.tsq.checkpoint").read_bytes() == Path("police/checkpoint.cosigned").read_bytes()
    Path("r.tsr").write_bytes(b"no answer")
    status, _, err = run(capsys, "timestamp", "attach", "police", "r.tsr")
    assert (status, err.startswith("minshu-audit: error: not a time-stamping authority's answer")) == (
        1,
        True,
    )


def test_planted_identifiers_are_looked_for_in_every_file(shown, capsys):
    Path("planted").write_text("990101199001011234\n\n99010219900101567X\n")
    command = ("verify", "journal", "--keys", "police.vkey", "--canaries", "planted")
    assert run(capsys, *command)[0] == 0
    (shown.directory / "list").write_text("x 990101199001011234 x")
    status, out, _ = run(capsys, *command)
    assert status == 1
    assert "problem   list: planted identifier 0 stands in it as text [canary]" in out
    assert "990101199001011234" not in out


def test_a_long_journal_says_how_far_it_is(shown, capsys, monkeypatch):
    monkeypatch.setattr("audit.page.LONG", 3)
    monkeypatch.setattr("audit.review.EVERY", 2)
    _, _, err = run(capsys, "verify", "journal", "--keys", "police.vkey")
    assert err == "journal: 2 of 5 entries\njournal: 4 of 5 entries\n"
