"""The whole demo at the ci profile, as a service would start it: no terminal, no TERM, another directory."""

import base64
import csv
import fcntl
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from end_to_end.c2sp import cosigned, head_of, tree_hash, verified

from demo.city import generate
from demo.leaks import Scanner

pytestmark = pytest.mark.alone  # a whole demo, of which this looks at all it says and leaves

DEMO = Path(sys.executable).with_name("minshu-demo")
NODES = ("police", "human-resources", "health", "education", "housing", "statistics")
JOURNALS = {"coordinator", *NODES}
OVERLAP = {"education", "housing"}
"""Who says how many persons they share."""
REFUSED = {
    # case: how its reason begins, or what stands in it
    "one-signature policy": r"signed by 1 of the pinned roles \(dpo\), 2 different ones needed",
    "negative-list column": r"REFUSED, negative-list: human-resources\.gz\.example/node-a refused: ",
    "empty-input register": r"FAILED, guard-list-size: ",
    "garbage register of the right size": r"FAILED, guard-coverage: statistics\.gz\.example/node-a: ",
    "unapproved job": r"EXPIRED, job-expired: the job expired before police\.gz\.example/node-a, "
    r"human-resources\.gz\.example/node-a, education\.gz\.example/node-a had agreed$",
    "forged job": r"too-few-signatures: 0 valid signatures",
    "same lists at another threshold": r"REFUSED, differencing: ",
    "overlap asked once more": r"REFUSED, budget-exceeded: (education|housing)\.gz\.example/node-a refused: ",
    "job over the quota": r"REFUSED, budget-exceeded: human-resources\.gz\.example/node-a refused: "
    r"The job would take 20,000 records about persons of quota records; of 40,000 ",
    "job under a stop": r"health\.gz\.example/node-a: stopped: The department has stopped jobs",
}


@dataclass(frozen=True)
class Played:
    """What one run of the demo left, and what a second one in the same folder was told meanwhile."""

    out: Path
    code: int
    output: str
    second_code: int
    second_error: str

    @property
    def summary(self):
        return json.loads((self.out / "summary.json").read_text("utf-8"))

    def log(self, name):
        vkey = (self.out / "vkeys" / name).read_text("ascii").removesuffix("\n")
        return verified(self.out / "journals" / name, vkey)

    def entries(self, name):
        return [json.loads(entry) for entry in self.log(name).entries]


@pytest.fixture(scope="session")
def played(tmp_path_factory) -> Played:
    """One run for all workers of the test run: who comes first plays it, the others wait for it."""
    folder = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        folder = folder.parent
    folder = folder / "demo-end-to-end"
    folder.mkdir(exist_ok=True)
    kept = folder / "played.json"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            kept.write_text(json.dumps(play(folder)))
    return Played(folder / "out", **json.loads(kept.read_text()))


def play(folder: Path) -> dict[str, object]:
    environment = {k: v for k, v in os.environ.items() if k != "TERM"}
    arguments = [str(DEMO), "run", "--profile", "ci", "--out", "out"]
    with (folder / "output").open("w+") as output:
        first = subprocess.Popen(
            ["sh", "-c", 'exec "$@" <&-', "sh", *arguments],
            cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 30
            while not list(folder.glob(".out.work-*")):
                assert first.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)
            second = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, timeout=30)
            first.wait(150)
        finally:
            first.terminate()
            first.wait(30)
        output.seek(0)
        return {
            "code": first.returncode,
            "output": output.read(),
            "second_code": second.returncode,
            "second_error": second.stderr,
        }


@pytest.fixture(scope="session")
def truth(tmp_path_factory):
    """Who ought to be flagged: the rows of the truth that generation writes apart from the registers."""
    city = tmp_path_factory.mktemp("truth") / "city"
    generate("ci", 1, city, workers=2)
    return pq.read_table(city / "truth" / "flagged.parquet").to_pylist()


def test_the_demo_succeeds_without_a_terminal_and_from_another_directory(played):
    assert played.code == 0, played.output
    assert "\x1b" not in played.output


def test_a_second_demo_in_the_same_folder_is_refused_and_the_first_goes_on(played):
    assert played.second_code == 1
    said = played.second_error.splitlines()
    assert len(said) == 2
    assert said[0].startswith("minshu-demo: error: another demo is writing ")
    assert said[1].startswith("hint: ")
    assert played.code == 0


def test_the_summary_has_the_published_keys_and_types(played, truth):
    summary = played.summary
    assert list(summary) == [
        "flagged", "confirmed", "equals_expected", "refused", "stored_answer", "outcome", "journals_verified",
        "leak_scan", "seconds", "peak_rss_mb", "cores",
    ]  # fmt: skip
    assert summary["flagged"] == len(truth)
    assert summary["confirmed"] == sum(row["meaning"] == "true" for row in truth)
    assert summary["equals_expected"] is True
    assert summary["journals_verified"] is True
    assert set(summary["leak_scan"]) == {"canaries", "found"}
    assert summary["leak_scan"]["canaries"] >= 10
    assert summary["leak_scan"]["found"] == 0
    seconds = summary["seconds"]
    assert set(seconds) == {"city", "enrol", "protocol", "overlap", "total"}
    assert all(isinstance(value, float) and value > 0 for value in seconds.values())
    assert seconds["total"] > seconds["city"] + seconds["enrol"] + seconds["protocol"]
    assert set(summary["peak_rss_mb"]) == JOURNALS
    assert all(20 < peak < 400 for peak in summary["peak_rss_mb"].values())
    assert summary["cores"] == os.cpu_count()


def test_every_attack_was_refused_with_its_reason(played):
    refused = {case["case"]: case["reason"] for case in played.summary["refused"]}
    assert len(refused) == len(played.summary["refused"])
    assert list(refused) == list(REFUSED)
    for case, reason in refused.items():
        assert re.match(REFUSED[case], reason), f"{case}: {reason}"


def test_what_is_printed_is_what_the_summary_says_and_is_said_once(played):
    lines = [line.strip() for line in played.output.splitlines()]
    for case in played.summary["refused"]:
        assert lines.count(f"refused {case['case']}: {case['reason']}") == 1, case
    flagged, confirmed = played.summary["flagged"], played.summary["confirmed"]
    share = f"({100 * confirmed / flagged:.1f} %)"
    assert f"{confirmed:,} of {flagged:,} confirmed {share}, police.gz.example/node-a, " in played.output
    assert (
        f"The police's sealed list: {flagged:,} people, suspected, needs human verification" in played.output
    )


def test_the_stored_answer_ran_nowhere_and_every_node_vouched_for_it(played):
    assert played.summary["stored_answer"] is True
    receipts = [e for e in played.entries("coordinator") if e["body"].get("code") == "answered-before"]
    assert len({e["body"]["peer"] for e in receipts}) == len(receipts) == len(NODES)
    [job] = {e["job"] for e in receipts}
    earlier = set()
    for name in NODES:
        first, *rest = [e for e in played.entries(name) if e.get("job") == job]
        earlier.add(first["body"]["answered_by"])
        assert [(e["kind"], e["body"]["code"]) for e in rest] in ([("job.cancelled", "answered-before")], [])
    [main] = earlier
    assert {e["job"] for e in played.entries("police") if e["kind"] == "output.commit"} == {main}


def test_the_outcome_stands_in_the_journals_of_police_and_coordinator(played):
    figures = {name: played.summary[name] for name in ("flagged", "confirmed")}
    assert played.summary["outcome"] == {"checked": figures["flagged"], "confirmed": figures["confirmed"]}
    for name in ("police", "coordinator"):
        [filed] = [e["body"] for e in played.entries(name) if e["kind"] == "outcome.filed"]
        assert (filed["checked"], filed["confirmed"]) == (figures["flagged"], figures["confirmed"])


def test_every_department_charged_what_its_quotas_allow_and_no_more_p2(played):
    for name in NODES:
        spent: Counter[str] = Counter()
        for entry in played.entries(name):
            if entry["kind"] == "budget.charged":
                spent[entry["body"]["budget"]] += Fraction(entry["body"]["cost"])
                assert spent[entry["body"]["budget"]] <= Fraction(entry["body"]["limit"])
        # The garbage register's job was under way too, over two departments' usual lists.
        jobs = 2 if name in {"human-resources", "education"} else 1
        lends = {"records": 20_000 * jobs} if name not in {"police", "statistics"} else {}
        asked = {"questions": jobs} if name != "statistics" else {}
        counted = {"answers": 1} if name in OVERLAP else {}
        assert (spent.pop("overlaps", 0) > 0) == (name in OVERLAP)
        assert spent == lends | asked | counted, name


def test_every_journal_verifies_by_an_independent_reader(played):
    witnesses = {f"{name}.{ending}" for name in NODES for ending in ("witness", "witness.ml-dsa-44")}
    assert {path.name for path in (played.out / "journals").iterdir()} == JOURNALS
    assert {path.name for path in (played.out / "vkeys").iterdir()} == JOURNALS | witnesses
    origins = set()
    for name in JOURNALS:
        text = (played.out / "vkeys" / name).read_text("ascii")
        assert re.fullmatch(r"[^\n]+\n", text)
        log = played.log(name)
        assert len(log.entries) > 3
        assert [json.loads(entry)["seq"] for entry in log.entries] == list(range(len(log.entries)))
        assert {json.loads(entry)["log"] for entry in log.entries} == {log.origin}
        origins.add(log.origin)
    assert len(origins) == len(JOURNALS)


def test_every_bundle_is_cosigned_by_the_others_and_extends_its_older_checkpoint_p5(played):
    keys = {
        name: [vkey(played, f"{name}.witness"), vkey(played, f"{name}.witness.ml-dsa-44")] for name in NODES
    }
    for name in JOURNALS:
        bundle = played.out / "bundles" / name
        log = verified(bundle, vkey(played, name))
        others = [key for witness in NODES if witness != name for key in keys[witness]]
        for note in ("checkpoint", "checkpoint.old"):
            seen = cosigned(bundle / note, others)
            organisations = {signer.split("/")[0] for signer, kind in seen if kind == 4}
            # Of 5 other organisations 4 are a quorum, of 6 beside the coordinator's 5.
            assert len(organisations) >= (5 if name == "coordinator" else 4), (name, note)
            assert organisations == {signer.split("/")[0] for signer, kind in seen if kind == 6}
        origin, size, root = head_of(bundle / "checkpoint.old")
        assert (origin, size < len(log.entries)) == (log.origin, True)
        leaves = [hashlib.sha256(b"\x00" + entry).digest() for entry in log.entries]
        assert tree_hash(leaves[:size]) == root
        # Its own cosignature would count for nothing, and is not there.
        assert not cosigned(bundle / "checkpoint", keys.get(name, []))


def test_what_an_entry_rests_on_lies_beside_it_under_its_digest(played):
    for name in JOURNALS:
        objects = played.out / "bundles" / name / "objects" / "sha256"
        stored = {file.name: file.read_bytes() for file in objects.rglob("*") if file.is_file()}
        assert all(hashlib.sha256(data).hexdigest() == digest for digest, data in stored.items())
        for entry in map(json.loads, verified(played.out / "bundles" / name, vkey(played, name)).entries):
            if entry["kind"] in ("job.accepted", "job.admitted", "job.started", "policy.activate"):
                refs = {ref.removeprefix("sha256:") for ref in entry["refs"]}
                refs.add(entry["body"].get("envelope_sha256", "").removeprefix("sha256:"))
                assert refs - {""} <= stored.keys(), (name, entry["kind"])


def test_every_release_stands_in_every_participants_journal(played):
    [main] = {e["job"] for e in played.entries("police") if e["kind"] == "output.commit"}
    committed = {
        (e["body"]["release"], e["body"]["sha256"], e["seq"])
        for e in played.entries("police")
        if e["kind"] == "output.commit"
    }
    for name in JOURNALS - {"police"}:
        receipted = {
            (e["body"]["release"], e["body"]["sha256"], e["body"]["seq"])
            for e in played.entries(name)
            if e["kind"] == "peer.receipt" and e["job"] == main and e["body"].get("kind") == "output.commit"
        }
        assert receipted == committed, name


def vkey(played, name):
    return (played.out / "vkeys" / name).read_text("ascii").removesuffix("\n")


def test_the_auditor_sees_one_flipped_bit(played):
    assert "One bit of the police's journal is flipped; the auditor sees:" in played.output
    assert re.search(
        r"problem +tile/entries/000\.p/\d+: entry \d+ is not the one that was signed for", played.output
    )
    for page in ("report.html", "report.zh.html"):
        text = (played.out / page).read_text("utf-8")
        assert "<script" not in text
        assert "://" not in re.sub(r'xmlns="[^"]*"', "", text)


def test_a_changed_journal_does_not_verify(played, tmp_path):
    source = played.out / "journals" / "police"
    key = vkey(played, "police")
    for victim in ("checkpoint", "tile/entries", "tile/0"):
        copy = tmp_path / victim.replace("/", "-")
        subprocess.run(["cp", "-r", source, copy], check=True)
        file = copy / victim
        if file.is_dir():
            file = max((p for p in file.rglob("*") if p.is_file()), key=lambda p: int(p.name))
        data = bytearray(file.read_bytes())
        # In the middle of a checkpoint are cosignatures, which this reader does not look at.
        data[5 if victim == "checkpoint" else len(data) // 2] ^= 1
        file.write_bytes(data)
        with pytest.raises(Exception):  # noqa: B017  # the reader raises whatever it trips over
            verified(copy, key)


def test_every_refusal_stands_in_the_journal_of_who_refused(played):
    def codes(name, kind):
        return {e["body"].get("code") for e in played.entries(name) if e["kind"] == kind}

    assert codes("health", "policy.refused")
    assert codes("human-resources", "job.refused") >= {"negative-list", "budget-exceeded"}
    assert codes("health", "job.refused") >= {"differencing", "stopped"}
    assert [e for e in played.entries("health") if e["kind"] == "stop.applied"]
    for name in ("police", "human-resources", "education"):
        assert any(e["kind"] == "job.expired" for e in played.entries(name)), name
    assert "guard-list-size" in codes("police", "job.aborted")
    assert "guard-coverage" in codes("statistics", "job.aborted")
    assert "too-few-signatures" in codes("coordinator", "job.refused")  # the forged job


def test_no_output_without_a_signed_journal_entry_p1(played):
    releases = played.out / "releases"
    committed = {
        e["body"]["sha256"]: e["body"] for e in played.entries("police") if e["kind"] == "output.commit"
    }
    released = {
        e["body"]["sha256"]: e["body"] for e in played.entries("police") if e["kind"] == "output.released"
    }
    identity = Ed25519PublicKey.from_public_bytes(played.log("police").public_key)
    found = {}
    for name in ("street-table", "records"):
        sealed = (releases / f"{name}.sealed").read_bytes()
        note = dsse_payload(releases / f"{name}.note.dsse", identity)
        assert note["name"] == name
        assert note["sha256"] == digest(sealed)
        assert committed[note["sha256"]]["release"] == note["release"]
        found[name] = note
    assert set(committed) == {note["sha256"] for note in found.values()}
    assert found["street-table"]["sha256"] in released
    # What is not the requester's was never uploaded; the police's officer opened it at home.
    receipts = [e["body"] for e in played.entries("coordinator") if e["body"].get("kind") == "release"]
    assert found["street-table"]["release"] in [receipt["release"] for receipt in receipts]
    assert len(receipts) == 2  # the other is the number of persons whom two departments share


def dsse_payload(path, key):
    envelope = json.loads(path.read_text())
    payload, kind = base64.b64decode(envelope["payload"]), envelope["payloadType"]
    (signature,) = envelope["signatures"]
    pae = b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload)
    key.verify(base64.b64decode(signature["sig"]), pae)
    return json.loads(payload)


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def test_the_street_table_is_right_and_gives_no_small_group_away(played, truth):
    with (played.out / "releases" / "street-table.csv").open(newline="") as file:
        cells = list(csv.DictReader(file))
    streets = Counter(row["street"] for row in truth)
    districts = Counter(row["street"][:6] for row in truth)
    right = {("city", "", ""): len(truth)}
    right |= {("district", district, ""): count for district, count in districts.items()}
    right |= {("street", street[:6], street): count for street, count in streets.items()}
    shown, hidden = {}, set()
    for cell in cells:
        key = (cell["level"], cell["district"], cell["street"])
        if cell["withheld"] == "true":
            assert cell["count"] == "-1"
            hidden.add(key)
        else:
            shown[key] = int(cell["count"])
    assert len(cells) == len(right) == len(shown) + len(hidden)
    assert shown.keys() | hidden == right.keys()
    # Rounding: each to its nearest multiple of five, alone.
    assert all(count % 5 == 0 and abs(count - right[key]) <= 2 for key, count in shown.items())
    # Primary suppression: no group of 1 to 9 is shown.
    assert all(right[key] >= 10 for key in shown)
    assert any(right[key] < 10 for key in hidden)
    # Secondary: the withheld streets of a district with a total cannot be told from that total. Each is at
    # least 1, so one can be as large as all of them less one each for the others.
    for district in districts:
        withheld = [key for key in hidden if key[0] == "street" and key[1] == district]
        if withheld and ("district", district, "") in shown:
            assert len(withheld) > 1
            assert sum(right[key] for key in withheld) - (len(withheld) - 1) >= 10
    # Totals: consistent with the city's, within what rounding takes.
    totals = [count for key, count in shown.items() if key[0] == "district"]
    if len(totals) == len(districts):
        assert abs(sum(totals) - shown["city", "", ""]) <= 2 * len(totals) + 2


def test_no_planted_identifier_is_printed_or_left_in_the_results(played, truth):
    said = played.out.parent / "output"
    people = [row["resident_id"] for row in truth]
    assert (
        Scanner(people).scan([said, *(played.out / name for name in ("journals", "vkeys", "summary.json"))])
        == []
    )


@pytest.mark.long
def test_the_default_profile_finds_the_published_figures_within_two_minutes(tmp_path):
    done = subprocess.run(
        [DEMO, "run", "--out", tmp_path / "out"], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text("utf-8"))
    assert (summary["flagged"], summary["confirmed"]) == (5718, 3351)
    assert summary["equals_expected"]
    assert [case["case"] for case in summary["refused"]] == list(REFUSED)
    assert summary["seconds"]["total"] < 120


def test_nothing_but_the_results_is_left_behind(played):
    assert {path.name for path in played.out.iterdir()} == {
        "bundles", "journals", "vkeys", "roots.json", "officers", "releases", "report.html", "report.zh.html",
        "summary.json",
    }  # fmt: skip
    beside = {path.name for path in played.out.parent.iterdir()}
    assert beside == {"out", ".out.lock", "output", "lock", "played.json"}
