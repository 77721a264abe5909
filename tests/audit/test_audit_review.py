"""What a review finds in checkpoints, cosignatures and clocks, and what it gathers for a report."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from several import ROOTS, START, Collaboration, key

from audit.entries import Entry, format_time
from audit.facts import MAX_LISTED, MAX_STEPS, Facts
from audit.findings import Answer, Checks
from audit.heads import Demands, Heads
from audit.note import Note, VerifierKey, cosign
from audit.quorum import TrustPolicy
from audit.review import review
from audit.trust import Trust, quorum_of
from protocols.encoding import sha256_digest
from protocols.envelope import POLICY as POLICY_TYPE
from protocols.envelope import sign
from protocols.ids import NodeName
from protocols.wire import RosterNode

JOB = "sha256:" + "ab" * 32
POLICY = (Path(__file__).parents[2] / "policies" / "examples" / "police.toml").read_bytes()


@pytest.fixture
def city(tmp_path: Path) -> Iterator[Collaboration]:
    it = Collaboration(tmp_path)
    yield it
    it.close()


def looked_at(city: Collaboration, trust: Trust, short: str = "police") -> tuple[Checks, Heads]:
    """The checkpoints of one log, by themselves."""
    log, demands, checks = city[short], Demands(), Checks()
    for entry in log.journal.entries():
        demands.visit(entry)
    bundle = log.bundle()
    trust, _ = trust.of(bundle)
    heads = Heads(bundle, trust, log.journal.origin, log.journal.size, [log.vkey], demands)
    heads.own(checks["signed"], checks["witnessed"], checks["time"])
    heads.others(checks["witnessed"])
    return checks, heads


def codes(checks: Checks, question: str = "witnessed") -> list[tuple[str, str]]:
    return [(finding.code, finding.where) for finding in checks[question].findings]


# -- who has seen it ---------------------------------------------------------------------------------------


def test_a_live_folder_holds_at_every_moment_while_its_log_goes_on(city):
    city.sign_roster()
    police = city["police"]
    police.refuse(250)
    stop = threading.Event()

    def grow() -> None:
        while not stop.is_set():
            evidence = police.journal.put_object(b"%d" % police.journal.size)
            police.record("job.refused", {"code": "rate"}, job=JOB, refs=[evidence])
            city.witnessed("police")

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        for _ in range(12):
            with police.bundle() as bundle:
                found = review(bundle, Trust(roots=ROOTS))
            assert [(f.code, f.where) for check in found.checks for f in check.findings] == []
    finally:
        stop.set()
        writer.join()


def test_votes_are_counted_by_organisation_and_the_rosters_say_how_many_it_takes(city):
    city.sign_roster()
    city.witnessed("police")
    with city["police"].bundle() as bundle:
        found = review(bundle, Trust(roots=ROOTS))
    head = found.heads[0]
    assert (head.votes, head.needed, head.satisfied) == (("health.gz.example", "housing.gz.example"), 2, True)
    check = found.checks["witnessed"]
    assert check.answer is Answer.HOLDS
    assert check.figures["entries a quorum has seen"] == 2
    document = found.document()
    assert document["heads"][0]["votes"] == ["health.gz.example", "housing.gz.example"]
    assert document["roster"]["version"] == 1


def test_without_rosters_or_a_quorum_nobody_knows_whether_the_votes_are_enough(city):
    city.witnessed("police")
    checks, _ = looked_at(city, city.trust)
    assert checks["witnessed"].answer is Answer.NOT_CHECKABLE
    assert checks["witnessed"].figures["cosigned by"] == "health.gz.example, housing.gz.example"


def test_too_few_votes_fail_only_if_the_auditor_asked_for_more_or_something_relied_on_them(city):
    city.sign_roster()
    city["police"].refuse()
    city.witnessed("police", by=["health"])
    checks, _ = looked_at(city, Trust(roots=ROOTS))
    assert checks["witnessed"].answer is Answer.NOT_CHECKABLE
    assert checks["witnessed"].missing == ["a checkpoint with a quorum: 1 of 2 have cosigned so far"]
    policy = TrustPolicy.of(
        [city["police"].vkey], quorum_of(None, city.roster(), city["police"].journal.origin)
    )
    checks, _ = looked_at(city, replace(city.trust, quorum=policy))
    assert codes(checks) == [("no-quorum", "checkpoint")]


@pytest.mark.parametrize("covered", [True, False])
def test_what_left_before_a_quorum_had_seen_its_commit_is_found_out(city, covered):
    """The policy says `cosigned`; the node let the release go all the same."""
    assert b'release_requires = "cosigned"' in POLICY
    city.sign_roster()
    police = city["police"]
    digest = police.journal.put_object(POLICY)
    police.record("policy.activate", {"version": 1, "sha256": digest})
    if not covered:
        city.witnessed("police")
    commit = police.record("output.commit", {"release": "0" * 32, "class": "A", "sha256": digest}, job=JOB)
    if covered:
        city.witnessed("police")
    left = police.record("output.released", {"release": "0" * 32, "sha256": digest}, job=JOB)
    checks, _ = looked_at(city, Trust(roots=ROOTS))
    assert codes(checks) == ([] if covered else [("uncovered", f"entry {left}")])
    if not covered:
        assert f"entry {commit}" in checks["witnessed"].findings[0].what


@pytest.mark.parametrize("enveloped", [True, False])
def test_leaving_out_the_policy_does_not_leave_out_the_quorum_that_it_asks_for(city, enveloped):
    city.sign_roster()
    police = city["police"]
    envelope = sign(POLICY_TYPE, POLICY, [key("dpo"), key("owner")]).encode()
    body = {"version": 1, "sha256": sha256_digest(POLICY)}
    if enveloped:
        body["envelope_sha256"] = police.journal.put_object(envelope)
    active = police.record("policy.activate", body)
    police.record("job.admitted", {"admission_sha256": sha256_digest(b"")}, job=JOB, attempt=1)
    answering = police.record("job.answering", {}, job=JOB, attempt=1)
    city.witnessed("health")
    city.witnessed("police", by=["health"])
    checks, _ = looked_at(city, Trust(roots=ROOTS))
    unreadable = [] if enveloped else [("policy-unreadable", f"entry {active}")]
    assert codes(checks) == [("uncovered", f"entry {answering}"), *unreadable]


def test_answering_relies_on_the_admission_having_been_seen(city):
    city.sign_roster()
    police = city["police"]
    police.record("policy.activate", {"version": 1, "sha256": police.journal.put_object(POLICY)})
    city.witnessed("police")
    police.record("job.admitted", {"admission_sha256": sha256_digest(b"")}, job=JOB, attempt=1)
    answering = police.record("job.answering", {}, job=JOB, attempt=1)
    checks, _ = looked_at(city, Trust(roots=ROOTS))
    assert codes(checks) == [("uncovered", f"entry {answering}")]
    city.witnessed("police")
    assert codes(looked_at(city, Trust(roots=ROOTS))[0]) == []


def conflict(city: Collaboration, notes: list[bytes], code: str) -> int:
    """The police journal that these two checkpoints of health do not go together."""
    digests = [city["police"].journal.put_object(note) for note in notes]
    names = dict(zip(("checkpoint_sha256", "conflicting_sha256"), digests, strict=True))
    body = {"log": city["health"].journal.origin, "code": code, **names}
    return city["police"].record("witness.conflict", body)


def test_a_conflict_counts_if_the_log_that_it_is_about_signed_both(city):
    health = city["health"]
    twin = city.forked("health")
    health.refuse()
    twin.refuse()
    seq = conflict(city, [health.journal.checkpoint(), twin.journal.checkpoint()], "split-view")
    checks, _ = looked_at(city, city.trust)
    assert codes(checks) == [("witness-conflict", f"entry {seq}")]
    assert f"{health.journal.origin} signed two histories" in checks["witnessed"].findings[0].what
    checks, _ = looked_at(city, Trust(keys=(city["police"].vkey,)))
    assert not checks["witnessed"].count
    assert any("the verifier key of health" in what for what in checks["witnessed"].missing)


@pytest.mark.parametrize("code", ["split-view", "no-consistency-proof"])
def test_a_conflict_that_nothing_proves_is_a_notice_and_fails_no_log(city, code):
    """Whoever holds an honest checkpoint can show it beside a spoiled proof."""
    first = city["health"].journal.checkpoint()
    city["health"].refuse()
    conflict(city, [first, city["health"].journal.checkpoint()], code)
    checks, heads = looked_at(city, city.trust)
    assert not checks["witnessed"].count
    (notice,) = heads.unproven
    assert code in notice
    with city["police"].bundle() as bundle:
        assert notice in review(bundle, city.trust).notices


def test_a_witness_that_no_roster_listed_then_does_not_count(city):
    city.sign_roster()
    city.clock.wait(days=91)
    city["police"].refuse()
    city.witnessed("police")
    checks, heads = looked_at(city, Trust(roots=ROOTS))
    assert not checks["signed"].count
    assert any("when no roster listed that key" in notice for notice in heads.notices)
    assert "cosigned by" not in checks["witnessed"].figures
    assert checks["witnessed"].answer is Answer.NOT_CHECKABLE


def by_witnesses(city: Collaboration, **at: int) -> None:
    """The police's newest checkpoint is cosigned by these witnesses, each at a time of its own."""
    text = Note.decode(city["police"].journal.checkpoint()).text
    lines = [line for short, time_s in at.items() for line in city[short].witness.sign(text, time_s)]
    city["police"].journal.add_cosignatures(text, lines, quorum=True)


@pytest.mark.parametrize("time_s", [0, 1000, 1_796_000_000, 253_402_300_799, 1 << 40, 1 << 62, (1 << 63) - 1])
def test_one_witness_that_lies_about_the_time_fails_no_honest_log_and_is_named(city, time_s):
    city.sign_roster()
    city["police"].record(
        "policy.activate", {"version": 1, "sha256": city["police"].journal.put_object(POLICY)}
    )
    city["police"].refuse()
    by_witnesses(city, health=time_s, housing=int(city.clock.at.timestamp()) + 1)
    with city["police"].bundle() as bundle:
        found = review(bundle, Trust(keys=city.trust.keys, roots=ROOTS), now=city.clock.at)
    for question in ("signed", "witnessed", "time"):
        assert not found.checks[question].count, found.checks[question].findings
    assert any("health.gz.example/node-a/witness/1" in notice for notice in found.notices)
    assert not any("housing.gz.example/node-a/witness/1" in notice for notice in found.notices)
    head = found.heads[0]
    assert (head.votes, head.satisfied) == (("housing.gz.example",), False)


def test_entries_dated_before_what_two_witnesses_saw_without_them_are_found_out(city):
    city["police"].refuse()
    later = int((city.clock.at + timedelta(hours=2)).timestamp())
    by_witnesses(city, health=later, housing=later + 60)
    city["police"].refuse()
    checks, _ = looked_at(city, city.trust)
    assert set(codes(checks, "time")) == {("dated-back", "entry 2")}


def test_one_witness_alone_does_not_make_a_log_dated_back(city):
    city["police"].refuse()
    now = int(city.clock.at.timestamp())
    by_witnesses(city, health=now + 7200, housing=now + 1)
    city["police"].refuse()
    assert not codes(looked_at(city, city.trust)[0], "time")


@pytest.mark.parametrize(
    ("body", "good"),
    [
        ({"step_ms": -3_600_000, "previous_time": "LAST"}, True),
        ({"step_ms": -3_600_000, "code": "wall-clock-jumped"}, True),
        ({"step_ms": 1}, False),
        ({}, False),
        ({"step_ms": -3_600_000, "previous_time": "2026-12-01T00:00:00.000Z"}, False),
    ],
)
def test_a_clock_that_went_back_says_by_how_much(city, body, good):
    city["police"].refuse()
    if body.get("previous_time") == "LAST":
        body["previous_time"] = format_time(city.clock.at)
    city.clock.wait(hours=-1)
    city["police"].record("clock.step", body)
    with city["police"].bundle() as bundle:
        found = review(bundle, city.trust)
    assert [code for code, _ in codes(found.checks, "time")] == ([] if good else ["wrong-step"])


def test_a_bundle_that_breaks_its_review_is_a_finding_and_says_so(city, monkeypatch):
    def broken(*_: object) -> None:
        raise RecursionError

    monkeypatch.setattr("audit.redecide.Redecider.visit", broken)
    with city["police"].bundle() as bundle:
        found = review(bundle, city.trust)
    assert not found.ok
    assert codes(found.checks, "signed") == [("unreviewable", "police")]
    assert "RecursionError" in found.checks["signed"].findings[0].what


def test_a_log_whose_clock_is_ahead_of_its_witnesses_is_found_out(city):
    city.clock.wait(hours=1)
    city["police"].refuse()
    city.clock.wait(hours=-1)
    city.witnessed("police")
    checks, _ = looked_at(city, city.trust)
    assert {code for code, _ in codes(checks, "time")} == {"clock-ahead"}
    city.clock.wait(minutes=56)
    city.witnessed("police")
    assert city["police"].journal.size == 2


def test_entries_from_the_auditors_future_are_found_out(city):
    city["police"].refuse()
    with city["police"].bundle() as bundle:
        early = review(bundle, city.trust, now=START - timedelta(hours=1))
        late = review(bundle, city.trust, now=START)
    assert ("in-the-future", "the newest entry") in codes(early.checks, "time")
    assert codes(late.checks, "time") == []


@pytest.mark.parametrize("seconds", [3600, 1 << 52])
def test_a_cosignature_of_the_future_does_not_count(city, seconds):
    city.sign_roster()
    at = city.clock.at
    text = Note.decode(city["police"].journal.checkpoint()).text
    ahead = int(at.timestamp()) + seconds
    lines = [line for short in ("health", "housing") for line in city[short].witness.sign(text, ahead)]
    city["police"].journal.add_cosignatures(text, lines, quorum=True)
    with city["police"].bundle() as bundle:
        found = review(bundle, Trust(keys=city.trust.keys, roots=ROOTS), now=at)
    assert [head.satisfied for head in found.heads] == [False] * len(found.heads)
    assert not codes(found.checks, "time")
    assert any("at a time to come" in notice for notice in found.notices)


def test_a_witnessed_note_under_another_logs_name_or_not_cosigned_by_its_keeper_is_found_out(city):
    city.witnessed()
    folder = city["police"].directory / "witnessed"
    (health,) = (path for path in folder.iterdir() if path.read_text().startswith("health."))
    note = Note.decode(health.read_bytes())
    other = folder / ("0" * 64)
    other.write_bytes(health.read_bytes())
    health.write_bytes(replace(note, signatures=note.signatures[:1]).encode())
    checks, _ = looked_at(city, city.trust)
    assert sorted(codes(checks)) == [
        ("not-cosigned", f"witnessed/{health.name}"),
        ("wrong-origin", f"witnessed/{other.name}"),
    ]


def test_a_note_of_a_log_whose_key_was_not_brought_is_not_checkable(city):
    city.witnessed()
    checks, _ = looked_at(city, Trust(keys=(city["police"].vkey,)))
    assert any(
        "the verifier key of health.gz.example/node-a/journal/1" in what
        for what in checks["witnessed"].missing
    )
    assert not checks["witnessed"].count


def test_two_nodes_of_one_organisation_have_one_vote(city):
    roster = city.roster()
    name, twin = NodeName("health.gz.example/node-b"), key("twin witness")
    vkey = VerifierKey(f"{name}/witness/1", 4, twin.public_key)
    identity = key("twin").public_key
    log = VerifierKey(f"{name}/journal/1", 1, identity)
    spki = roster.nodes[0].tls_spki_sha256
    more = RosterNode(name, identity, spki, str(log), bytes(32), (str(vkey),))
    city.sign_roster(replace(roster, nodes=(*roster.nodes, more)))
    city.witnessed("police", by=["health"])
    text = Note.decode(city["police"].journal.checkpoint()).text
    line = cosign(text, vkey, twin.sign, int(city.clock.at.timestamp()))
    city["police"].journal.add_cosignatures(text, [line], quorum=True)
    _, heads = looked_at(city, Trust(roots=ROOTS))
    checks = Checks()
    head = heads.own(checks["signed"], checks["witnessed"], checks["time"])[0]
    assert (len(head.cosigned), head.votes, head.satisfied) == (2, ("health.gz.example",), False)


# -- what a report tells -----------------------------------------------------------------------------------


def entry(seq: int, kind: str, body: dict, *, job: str = JOB, attempt: int = 0, day: int = 1) -> Entry:
    time = format_time(START + timedelta(days=day - 1, seconds=seq))
    return Entry("a.example/n/journal/1", seq, time, kind, job, attempt, None, "", body, ())


def charge(seq: int, cost: str, spent: str, purpose: str = "P-1", budget: str = "quarter") -> Entry:
    body = {
        "budget": budget,
        "cost": cost,
        "spent": spent,
        "limit": "1.00",
        "notion": "zcdp",
        "purpose": purpose,
    }
    return entry(seq, "budget.charged", body)


def test_charges_are_summed_by_budget_and_purpose_to_the_last_digit():
    facts = Facts()
    for each in (
        charge(0, "0.1", "0.1"),
        charge(1, "0.2", "0.3"),
        charge(2, "0.3", "0.6", "P-2"),
        charge(3, "0.10", "0.7"),
    ):
        facts.visit(each)
    first, second = facts.budgets.values()
    assert (first.purpose, first.charged, first.charges, first.spent, first.entries) == (
        "P-1", Decimal("0.40"), 3, "0.7", (0, 3),
    )  # fmt: skip
    assert (second.purpose, second.charged) == ("P-2", Decimal("0.3"))


def test_a_release_is_followed_from_its_commit_to_its_leaving():
    facts = Facts()
    digest = sha256_digest(b"")
    facts.visit(entry(3, "output.commit", {"release": "r", "class": "B", "sha256": digest, "rows": 7}))
    facts.visit(entry(4, "output.released", {"release": "r", "sha256": digest, "recipient": "police"}))
    facts.visit(entry(5, "output.released", {"release": "r", "sha256": digest, "retry": True}))
    facts.visit(entry(6, "output.released", {"release": "unknown", "sha256": digest}))
    (release,) = facts.releases.values()
    assert (release.seq, release.left, release.recipient, release.rows) == (3, 4, "police", 7)


def test_days_jobs_refusals_and_deletions_are_gathered():
    facts = Facts()
    asked = {
        "requester": "bureau",
        "job_type": "table/1",
        "purpose": "P-1",
        "legal_basis": "L",
        "recipients": ["x"],
    }
    facts.visit(entry(1, "job.received", asked))
    facts.visit(entry(2, "job.refused", {"code": "rate"}, day=2))
    facts.visit(entry(3, "job.failed", {"code": "peer-lost"}, attempt=2, day=2))
    facts.visit(entry(4, "deletion.receipt", {"what": "release"}, job=""))
    facts.visit(entry(5, "policy.activate", {"version": 3, "sha256": sha256_digest(b"")}, job=""))
    assert {day: sum(kinds.values()) for day, kinds in facts.days.items()} == {
        "2026-12-01": 3,
        "2026-12-02": 2,
    }
    (job,) = facts.jobs.values()
    assert (job.job_type, job.purpose, job.recipients) == ("table/1", "P-1", ("x",))
    assert [(step.kind, step.code, step.attempt) for step in job.steps] == [
        ("job.received", "", 0), ("job.refused", "rate", 0), ("job.failed", "peer-lost", 2),
    ]  # fmt: skip
    assert facts.refusals == {"job.refused": {"rate": 1}, "job.failed": {"peer-lost": 1}}
    assert [step.what for step in (*facts.deletions, *facts.governance)] == ["release", "3"]
    document = facts.document()
    assert document["jobs"][0]["steps"][2] == {
        "seq": 3, "time": "2026-12-02T00:00:03.000Z", "kind": "job.failed", "attempt": 2, "code": "peer-lost",
    }  # fmt: skip


def test_a_year_does_not_fill_the_memory():
    facts = Facts()
    for n in range(MAX_LISTED + 10):
        facts.visit(entry(n, "job.refused", {"code": "rate"}, job=sha256_digest(b"%d" % n)))
        facts.visit(entry(n, "deletion.receipt", {"what": "release"}, job=""))
    for n in range(MAX_STEPS + 5):
        facts.visit(entry(n, "job.failed", {"code": "rate"}, job=sha256_digest(b"0")))
    assert len(facts.jobs) == len(facts.deletions) == MAX_LISTED
    assert facts.left_out == {"job steps": 10, "deletions": 10}
    assert facts.jobs[sha256_digest(b"0")].more == 6
    assert facts.refusals["job.refused"]["rate"] == MAX_LISTED + 10
