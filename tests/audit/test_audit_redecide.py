"""A node that lies signs its lies: what does not follow from its own documents is found, with its entry."""

import asyncio
import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from lying import Lie, Trail, audited, found, told, visited
from simulator import START, Post, World, answered, approve_all, new_signer, over, running, until

from audit import redecide
from audit.booking import Booking
from audit.bundle import open_bundle
from audit.entries import KINDS_BY_VERSION, Entry, PolicyRef, format_time, parse_time
from audit.evidence import Evidence
from audit.findings import Answer, Checks
from audit.force import Force
from audit.jobs import Jobs
from audit.spending import Spending
from audit.trust import Trust
from node import generation
from node.state import RunState
from policies.decision import VerifiedApproval
from policies.model import ActivePolicy
from policies.parse import parse_policy
from policies.sign import sign_policy
from protocols.encoding import b64encode
from protocols.envelope import ADMISSION, JOB, POLICY, RELEASE, ROSTER, decode_envelope, key_id, sign
from protocols.ids import JobId, Organisation
from protocols.wire import Admission, JobSpec, ReleaseNote

pytestmark = pytest.mark.alone  # journals of whole nodes, a hundred of them forged, 17 s together

MINUTE = timedelta(minutes=1)
PATIENT_S = 10.0**7  # these clocks jump; no quorum is late for that


@pytest.fixture(scope="module")
def base() -> Iterator[Path]:
    shm = Path("/dev/shm")
    made = Path(tempfile.mkdtemp(prefix="minshu-audit-", dir=shm if os.access(shm, os.W_OK) else None))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def folder(base: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=base))


class Listening(Post):
    """A coordinator that is told outcomes and keeps none."""

    async def heard(self, name: str, message: Any) -> None:
        if message.WhichOneof("kind") != "outcome":
            await super().heard(name, message)


async def lived_through(world: World) -> JobId:
    """Two jobs run, one is refused, one withdrawn, one stopped."""
    world.clock.at += timedelta(microseconds=123_456)  # no clock shows whole seconds
    post = Listening(world)
    async with running(world, post, witness_wait_s=PATIENT_S) as (_, stations):
        police = stations["police"]
        first = post.submit(world.spec())
        await approve_all(post, stations, first)
        await over(post, first)
        await until(lambda: police.run(first) is RunState.DONE)
        world.clock.at += 7 * MINUTE
        refused = post.submit(world.spec(purpose="P-9"))
        await answered(post, refused)
        withdrawn = post.submit(world.spec())
        may_start, post.may_start = post.may_start, lambda task: False  # type: ignore[method-assign]
        await approve_all(post, stations, withdrawn)
        await until(lambda: all(s.run(withdrawn) is RunState.ACCEPTED for s in stations.values()))
        post.stop(withdrawn, "withdrawn")
        await until(lambda: all(s.run(withdrawn) is RunState.CANCELLED for s in stations.values()))
        post.may_start = may_start  # type: ignore[method-assign]
        world.clock.at += timedelta(hours=3)
        second = post.submit(world.spec())
        await approve_all(post, stations, second)
        await over(post, second)
        await until(lambda: police.run(second) is RunState.DONE)
        police.agent.outcomes.file(second, 12, 12, "已核实")
        world.clock.at += 5 * MINUTE
        stop = world.stop("police", "purpose=P-1")
        police.agent.desk.handle("stop", {"envelope": b64encode(stop)})
        stopped = post.submit(world.spec())
        await answered(post, stopped)
    return second


@pytest.fixture(scope="module")
def lived(base: Path) -> tuple[World, JobId]:
    world = World(base / "world")
    return world, asyncio.run(lived_through(world))


@pytest.fixture
def police(lived: tuple[World, JobId]) -> Trail:
    """The log of the node that received the lists."""
    return Trail.of(lived[0], "police")


# -- the truth --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["police", "human-resources", "health", "statistics"])
def test_of_an_honest_log_every_decision_is_taken_again_and_found_right(
    lived: tuple[World, JobId], name: str
) -> None:
    trail = Trail.of(lived[0], name)
    checks = audited(trail.journal, trail.trust, trail.key)
    assert told(checks) == []
    assert checks["clauses"].answer is Answer.HOLDS
    decisions = sum(entry.kind in ("job.accepted", "job.admitted") for entry in trail.entries)
    assert checks["time"].looked_at == decisions >= 4
    if name != "statistics":
        assert checks["budgets"].answer is Answer.HOLDS
        assert checks["budgets"].looked_at == sum(e.kind.startswith("budget.") for e in trail.entries) >= 10


def test_an_honest_log_answers_most_of_the_checklist(police: Trail) -> None:
    checks = audited(police.journal, police.trust, police.key)
    holds = {check.question for check in checks if check.answer is Answer.HOLDS}
    assert holds >= {
        "keys", "separation", "executed", "basis", "clauses", "columns", "inputs", "outputs", "budgets",
        "overlaps", "identifiers", "leakage", "verification", "refusals", "time",
    }  # fmt: skip
    assert checks["refusals"].figures["unknown-purpose"] == 1
    assert checks["refusals"].figures["stopped"] == 1
    assert checks["refusals"].figures["withdrawn"] == 1
    assert checks["refusals"].figures["waiting or under way"] == 0
    assert checks["overlaps"].figures == {"P-1": "2 asked, 1 of them again"}
    assert checks["disclosure"].missing
    assert checks["committed"].missing


def test_the_same_entries_signed_once_more_are_found_right(police: Trail, folder: Path) -> None:
    assert told(police.audited(folder)) == []


def test_without_the_officers_keys_the_decisions_are_compared_but_not_vouched_for(police: Trail) -> None:
    checks = audited(police.journal, Trust())
    assert told(checks) == []
    for question in ("keys", "clauses"):
        assert checks[question].answer is Answer.NOT_CHECKABLE
        assert len(checks[question].missing) == 2
    assert checks["budgets"].answer is Answer.HOLDS


def test_a_roster_that_other_root_keys_signed_is_found_unless_it_leads_to_one_of_the_auditors(
    police: Trail,
) -> None:
    other = replace(police.trust, roots=replace(police.trust.roots, keys=(bytes(range(32)),), threshold=1))
    checks = audited(police.journal, other)
    assert [(q, code, where) for q, code, where, _ in told(checks)] == [
        ("keys", "other-roots", f"entry {police.at('roster.activate')}")
    ]


def test_entries_of_earlier_versions_are_not_checkable_and_fail_nothing(police: Trail) -> None:
    known = KINDS_BY_VERSION[2]
    earlier = []
    for entry in police.entries:
        if entry.kind in known:
            kind = known[entry.kind]
            body = {k: v for k, v in entry.body.items() if k in kind.required | kind.optional}
            earlier.append(replace(entry, v=2, body=body))
    checks = visited(police, earlier)
    assert told(checks) == []
    for question in ("clauses", "executed", "budgets"):
        assert checks[question].answer is Answer.NOT_CHECKABLE


# -- lies -------------------------------------------------------------------------------------------------

LIES: dict[str, tuple[str, str, Lie]] = {}
"""What is told → the question that it is an answer to, the code it is found under, and how it is told."""


def lie(name: str, question: str, code: str) -> Any:
    def keep(tell: Lie) -> Lie:
        LIES[name] = (question, code, tell)
        return tell

    return keep


def say(name: str, asked: str, code: str, kind: str, nth: int = 0, **body: Any) -> None:
    LIES[name] = (asked, code, lambda trail: trail.say(kind, nth, **body))


# budgets
say("less was spent before", "budgets", "wrong-figure", "budget.reserved", -2, spent="0")
say("the charge is smaller", "budgets", "wrong-figure", "budget.charged", -2, cost="0")
say("the limit is higher", "budgets", "wrong-figure", "budget.charged", 0, limit="99999")
say(
    "the period is longer",
    "budgets",
    "wrong-figure",
    "budget.reserved",
    0,
    not_after="2026-12-30T16:00:00.000Z",
)
say("another cost is set aside", "budgets", "wrong-figure", "job.accepted", 0, queries=0)
say("another cost is charged", "budgets", "wrong-figure", "job.admitted", 0, queries=7)
# what is said of the job
say("another column", "columns", "wrong-figure", "job.admitted", 0, columns=["id", "phone"])
say("another legal basis", "basis", "wrong-figure", "job.admitted", 0, legal_basis="L-2")
say("another class", "outputs", "wrong-figure", "job.admitted", 0, **{"class": "A"})
say("more rows than all allow", "outputs", "wrong-figure", "job.admitted", 0, max_rows=10**6)
say("a smaller group", "disclosure", "wrong-figure", "job.admitted", 0, min_group_size=1)
say(
    "other constraints",
    "executed",
    "wrong-figure",
    "job.admitted",
    0,
    constraints_sha256="sha256:" + "0" * 64,
)
say(
    "another leakage statement",
    "leakage",
    "wrong-figure",
    "job.admitted",
    0,
    leakage_sha256="sha256:" + "0" * 64,
)
say("another input", "inputs", "wrong-figure", "job.admitted", 0, commitment="sha256:" + "0" * 64)
say("fewer rows", "inputs", "wrong-figure", "job.admitted", 0, rows=1)
say("another question", "executed", "wrong-figure", "job.admitted", 0, question="sha256:" + "0" * 64)
say("more approvals", "executed", "wrong-figure", "job.admitted", 0, approvals=3)
say("more approvals used", "executed", "wrong-figure", "job.answering", 0, approvals=5)
say(
    "it was decided before", "time", "decided-elsewhen", "job.accepted", 0, decided="2026-11-21T08:00:00.000Z"
)
# outputs
say(
    "handed to another department",
    "outputs",
    "wrong-recipient",
    "output.released",
    0,
    recipient="health.gz.example",
)
say("other bytes left", "outputs", "wrong-recipient", "output.released", 0, sha256="sha256:" + "0" * 64)
say(
    "another recipient than the note's",
    "outputs",
    "wrong-note",
    "output.commit",
    1,
    recipient="health.gz.example",
)
say(
    "kept for longer than noted",
    "outputs",
    "wrong-note",
    "output.commit",
    0,
    expires="2027-12-30T16:00:00.000Z",
)
say("more confirmed than checked", "verification", "bad-outcome", "outcome.filed", 0, confirmed=99)


@lie("another rule", "clauses", "wrong-rule")
def _(trail: Trail) -> None:
    policy = trail.one("job.accepted").policy
    assert policy is not None
    trail.alter("job.accepted", policy=replace(policy, rule="R2"))


@lie("another policy", "clauses", "wrong-rule")
def _(trail: Trail) -> None:
    trail.alter("job.admitted", policy=PolicyRef(9, "sha256:" + "0" * 64, "R1"))


@lie("an approval that nobody gave", "clauses", "approval-needed")
def _(trail: Trail) -> None:
    trail.drop("approval.recorded", 1)


@lie("two admissions of one attempt", "executed", "admitted-twice")
def _(trail: Trail) -> None:
    trail.entries.insert(trail.at("job.answering"), trail.one("job.admitted"))


@lie("an admission without acceptance", "executed", "not-accepted")
def _(trail: Trail) -> None:
    trail.drop("job.accepted")


@lie("accepted twice", "executed", "accepted-twice")
def _(trail: Trail) -> None:
    trail.entries.insert(trail.at("job.admitted"), trail.one("job.accepted"))


@lie("an output without an admission", "outputs", "without-admission")
def _(trail: Trail) -> None:
    trail.alter("output.commit", attempt=2)


@lie("an output before an answer began", "outputs", "without-answer")
def _(trail: Trail) -> None:
    trail.drop("job.answering")


@lie("an output twice", "outputs", "committed-twice")
def _(trail: Trail) -> None:
    trail.entries.insert(trail.at("job.done"), trail.one("output.commit"))


@lie("a release that was never committed", "outputs", "not-committed")
def _(trail: Trail) -> None:
    trail.drop("output.commit", 1)


@lie("a release that never left", "outputs", "not-released")
def _(trail: Trail) -> None:
    trail.drop("output.released")


@lie("no end", "refusals", "no-end")
def _(trail: Trail) -> None:
    trail.drop("job.done")
    trail.later(START + timedelta(days=40))


@lie("a refused attempt is taken up after all", "refusals", "refused-before")
def _(trail: Trail) -> None:
    refused, accepted = trail.one("job.refused"), trail.one("job.accepted")
    body = {**trail.one("job.received").body, "code": refused.body["code"]}
    place = trail.at("job.accepted")
    trail.insert(place, "job.refused", body, job=accepted.job, attempt=accepted.attempt)


@lie("a job that somebody said no to", "clauses", "approver-said-no")
def _(trail: Trail) -> None:
    body = {"code": "approver-said-no"}
    trail.insert(trail.at("job.accepted"), "approval.rejected", body, job=trail.one("job.accepted").job)


@lie("the cost is free again though an answer left", "budgets", "freed-after-it-left")
def _(trail: Trail) -> None:
    body = {"code": "timed-out", "state": "FAILED", "opened": True, "freed": True}
    place = trail.at("job.done")
    trail.entries[place] = replace(trail.entries[place], kind="job.failed", body=body)


@lie("a cross-check that told something by stopping is free again", "budgets", "freed-after-it-left")
def _(trail: Trail) -> None:
    trail.drop("job.answering")
    body = {"code": "timed-out", "state": "FAILED", "opened": True, "freed": True}
    place = trail.at("job.done")
    trail.entries[place] = replace(trail.entries[place], kind="job.failed", body=body)


@lie("a cost is set aside and not booked", "budgets", "not-booked")
def _(trail: Trail) -> None:
    trail.drop("budget.reserved", 1)


@lie("a charge out of nowhere", "budgets", "unfounded")
def _(trail: Trail) -> None:
    trail.entries.insert(trail.at("job.done"), trail.one("budget.charged"))


@lie("freed without a line of it", "budgets", "not-booked")
def _(trail: Trail) -> None:
    trail.drop("budget.released", 0)


@lie("a participant's admission is left out", "executed", "admission-mismatch")
def _(trail: Trail) -> None:
    trail.alter("job.admitted", refs=trail.one("job.admitted").refs[1:])


@lie("an admission that its node never signed", "executed", "admission-mismatch")
def _(trail: Trail) -> None:
    entry = trail.one("job.admitted")
    envelopes = [decode_envelope(trail.get(digest)) for digest in entry.refs]
    place = next(i for i, e in enumerate(envelopes) if "health" in Admission.decode(e.payload).node)
    forged = sign(ADMISSION, envelopes[place].payload, [trail.signer]).encode()
    refs = [*entry.refs]
    refs[place] = trail.put(forged)
    trail.alter("job.admitted", refs=tuple(sorted(refs)))


@lie("an own admission that says something else", "executed", "wrong-admission")
def _(trail: Trail) -> None:
    entry = trail.one("job.accepted")
    said = Admission.decode(decode_envelope(trail.get(entry.refs[0])).payload)
    other = replace(said, rule="R2")
    forged = trail.put(sign(ADMISSION, other.encode(), [trail.signer]).encode())
    trail.alter("job.accepted", refs=(forged,), body={**entry.body, "admission_sha256": other.digest})


@lie("a job that its requester never signed", "keys", "too-few-signatures")
def _(trail: Trail) -> None:
    entry = trail.one("job.accepted")
    spoken = decode_envelope(trail.get(entry.body["envelope_sha256"]))
    forged = trail.put(sign(JOB, spoken.payload, [new_signer()]).encode())
    for kind in ("job.received", "job.accepted", "job.admitted"):
        trail.say(kind, envelope_sha256=forged)


@lie("another job's text", "executed", "wrong-job-id")
def _(trail: Trail) -> None:
    entry = trail.one("job.accepted")
    spec = JobSpec.decode(decode_envelope(trail.get(entry.body["envelope_sha256"])).payload)
    other = trail.world.sign_job(replace(spec, nonce="0" * 32))
    trail.say("job.accepted", envelope_sha256=trail.put(other))


def _approved(trail: Trail, signer: Any, **fields: Any) -> None:
    """Let an approval by that key take the place of the first one."""
    from protocols.envelope import APPROVAL
    from protocols.wire import Approval

    entry = trail.one("approval.recorded")
    given = Approval.decode(decode_envelope(trail.get(entry.body["envelope_sha256"])).payload)
    envelope = sign(APPROVAL, replace(given, **fields).encode(), [signer])
    trail.put(signer.public_key)
    body = {
        **entry.body,
        "approver": key_id(signer.public_key),
        "approval_sha256": envelope.payload_digest,
        "envelope_sha256": trail.put(envelope.encode()),
    }
    trail.alter("approval.recorded", body=body, actor=key_id(signer.public_key))


@lie("the requester approves", "separation", "approver-is-requester")
def _(trail: Trail) -> None:
    _approved(trail, trail.world.analyst)


@lie("a stranger approves", "keys", "too-few-signatures")
def _(trail: Trail) -> None:
    _approved(trail, new_signer())


@lie("one person approves twice", "separation", "approved-already")
def _(trail: Trail) -> None:
    _approved(trail, trail.world.staff["police"].owner, nonce="0" * 32)


@lie("an approval at another price", "executed", "approval-cost")
def _(trail: Trail) -> None:
    from protocols.dp.cost import Cost

    _approved(trail, trail.world.staff["police"].dpo, cost=Cost(queries=9).encode())


@lie("an approval of another job is used", "executed", "approval-used")
def _(trail: Trail) -> None:
    entry = trail.one("approval.recorded")
    trail.alter("approval.recorded", 2, body=entry.body)


@lie("a stop is not heeded", "clauses", "stopped")
def _(trail: Trail) -> None:
    entry = trail.one("stop.applied")
    trail.entries.insert(trail.at("job.accepted"), replace(entry, time=trail.one("job.accepted").time))
    trail.drop("stop.applied", 1)
    place = trail.at("stop.applied")
    text = trail.world.stop("police", "purpose=P-1", at=START)
    body = {**entry.body, "sha256": decode_envelope(text).payload_digest, "envelope_sha256": trail.put(text)}
    trail.entries[place] = replace(trail.entries[place], body=body)


@lie("a stop is lifted by nobody", "clauses", "lifted-by-nobody")
def _(trail: Trail) -> None:
    body = {"sha256": trail.one("stop.applied").body["sha256"], "version": 1}
    trail.insert(len(trail.entries), "stop.lifted", body)


@lie("a policy that one person signed", "clauses", "too-few-signatures")
def _(trail: Trail) -> None:
    entry = trail.one("policy.activate")
    text = decode_envelope(trail.get(entry.body["envelope_sha256"])).payload
    one = sign_policy(text, trail.world.staff["police"].dpo).encode()
    trail.say("policy.activate", envelope_sha256=trail.put(one))


@lie("a policy text that nobody signed", "clauses", "wrong-text")
def _(trail: Trail) -> None:
    trail.say("policy.activate", sha256="sha256:" + "0" * 64)


def _shifted(trail: Trail, shift: timedelta) -> None:
    """Let the clock of the whole log go on before its first acceptance."""
    first = trail.at("job.accepted")
    for place, entry in enumerate(trail.entries[first:], first):
        body = dict(entry.body)
        if "decided" in body:
            body["decided"] = format_time(parse_time(body["decided"]) + shift)
        trail.entries[place] = replace(entry, time=format_time(parse_time(entry.time) + shift), body=body)


@lie("an expired policy", "clauses", "policy-expired")
def _(trail: Trail) -> None:
    _shifted(trail, timedelta(days=90))


@lie("a roster that nobody confirmed for long", "clauses", "roster-stale")
def _(trail: Trail) -> None:
    _shifted(trail, timedelta(days=10))


@lie("a roster of other root keys", "keys", "too-few-signatures")
def _(trail: Trail) -> None:
    from protocols.envelope import ROSTER

    forged = sign(ROSTER, trail.world.roster.encode(), [new_signer(), new_signer()]).encode()
    entry = trail.one("roster.activate")
    second = {**entry.body, "envelope_sha256": trail.put(forged)}
    trail.insert(len(trail.entries), "roster.activate", second)
    text = replace(trail.world.roster, version=2, previous=trail.world.roster.digest)
    forged = sign(ROSTER, text.encode(), [new_signer(), new_signer()]).encode()
    trail.say("roster.activate", -1, envelope_sha256=trail.put(forged), sha256=text.digest, version=2)


def _noted(trail: Trail, nth: int, **fields: Any) -> None:
    """Let a note say something else, and the entries with it."""
    entry = trail.one("output.commit", nth)
    note = ReleaseNote.decode(decode_envelope(trail.get(entry.body["envelope_sha256"])).payload)
    other = replace(note, **fields)
    envelope = trail.put(sign(RELEASE, other.encode(), [trail.signer]).encode())
    said = {"recipient": other.recipient, "expires": format_time(other.expires), "class": other.output_class}
    trail.say("output.commit", nth, envelope_sha256=envelope, **said)
    for place, released in enumerate(trail.entries):
        if released.kind == "output.released" and released.body["release"] == note.release:
            body = {**released.body, "recipient": other.recipient, "class": other.output_class}
            trail.entries[place] = replace(released, body=body)


def _table(trail: Trail) -> int:
    """Return which commitment is the first table's."""
    return next(nth for nth in range(2) if trail.one("output.commit", nth).body["class"] == "A")


@lie("a table for another organisation", "outputs", "wrong-recipient")
def _(trail: Trail) -> None:
    _noted(trail, _table(trail), recipient=Organisation("health.gz.example"))


@lie("a table sealed to another key", "outputs", "wrong-seal")
def _(trail: Trail) -> None:
    _noted(trail, _table(trail), sealed_to="sha256:" + "0" * 64)


@lie("a table kept for years", "outputs", "kept-too-long")
def _(trail: Trail) -> None:
    _noted(trail, _table(trail), expires=START + timedelta(days=1000))


@lie("a list without its mark", "outputs", "unmarked")
def _(trail: Trail) -> None:
    _noted(trail, 1 - _table(trail), statement="核实完毕")


@lie("a release that nobody permitted", "outputs", "unplanned-release")
def _(trail: Trail) -> None:
    _noted(trail, _table(trail), name="records-2")


@lie("a list that nobody verified", "verification", "not-verified")
def _(trail: Trail) -> None:
    _opened(trail)
    trail.later(START + timedelta(days=40))


@lie("a list that was opened when its time was over", "outputs", "after-its-time")
def _(trail: Trail) -> None:
    trail.later(START + timedelta(days=40))
    _opened(trail)


def _opened(trail: Trail) -> None:
    """Let the first list be opened at the end of the log."""
    listed = trail.one("output.commit", 1 - _table(trail))
    body = {key: listed.body[key] for key in ("release", "sha256", "class", "recipient")}
    trail.insert(len(trail.entries), "output.released", body, job=listed.job, attempt=listed.attempt)


@lie("a list that was not deleted", "deletions", "deletion-overdue")
def _(trail: Trail) -> None:
    trail.later(START + timedelta(days=40))


@lie("a job's text that was kept for ever", "deletions", "deletion-overdue")
def _(trail: Trail) -> None:
    trail.later(START + timedelta(days=1100))


@lie("a deletion that did not take place", "deletions", "deleted-but-there")
def _(trail: Trail) -> None:
    text = trail.one("job.accepted").body["envelope_sha256"]
    trail.insert(len(trail.entries), "deletion.receipt", {"what": "job-text", "sha256": text})


@lie("an approval that is nowhere", "executed", "missing-object")
def _(trail: Trail) -> None:
    trail.say("approval.recorded", envelope_sha256="sha256:" + "0" * 64)


@lie("an identifier with dashes", "identifiers", "resident-id")
def _(trail: Trail) -> None:
    from simulator import person

    number = person(3)
    trail.say("job.received", purpose=f"{number[:6]}-{number[6:14]}-{number[14:]}")


# who may say so, and in which words
@lie("officers of its own making", "keys", "unknown-officers")
def _(trail: Trail) -> None:
    own = [new_signer(), new_signer()]
    for signer in own:
        trail.put(signer.public_key)
    ids = [key_id(signer.public_key) for signer in own]
    entry = trail.one("policy.activate")
    text = decode_envelope(trail.get(entry.body["envelope_sha256"])).payload
    trail.say("signers.pinned", signers=ids)
    trail.say("policy.activate", envelope_sha256=trail.put(sign(POLICY, text, own).encode()))


@lie("nobody is pinned", "keys", "unknown-officers")
def _(trail: Trail) -> None:
    trail.drop("signers.pinned")


@lie("one officer is pinned twice", "keys", "bad-pins")
def _(trail: Trail) -> None:
    pinned = trail.one("signers.pinned").body["signers"]
    trail.say("signers.pinned", signers=[pinned[0]] * len(pinned))


def _without(key: str) -> Lie:
    def tell(trail: Trail) -> None:
        entry = trail.one("job.admitted")
        trail.alter("job.admitted", body={k: v for k, v in entry.body.items() if k != key})

    return tell


lie("an admission for no moment", "executed", "incomplete")(_without("decided"))
lie("an admission by no software", "executed", "incomplete")(_without("software"))
lie("an admission of no text", "executed", "no-object")(_without("envelope_sha256"))


@lie("no roster", "clauses", "no-roster")
def _(trail: Trail) -> None:
    trail.drop("roster.activate")


@lie("a roster of its own making before the true one", "keys", "other-roots")
def _(trail: Trail) -> None:
    true = trail.one("roster.activate")
    forged = replace(trail.world.roster, expires=trail.world.roster.expires + timedelta(days=1))
    envelope = trail.put(sign(ROSTER, forged.encode(), [new_signer(), new_signer()]).encode())
    body = {**true.body, "sha256": forged.digest, "envelope_sha256": envelope}
    trail.insert(trail.at("roster.activate"), "roster.activate", body)


# a log before this one
@lie("a log before this one, in the middle", "signed", "stray-successor")
def _(trail: Trail) -> None:
    body = {"checkpoint_sha256": trail.put(b"x"), "code": "restored-backup", "generation": 2}
    trail.insert(4, "log.successor", body)


@lie("a log before this one, where there is none", "signed", "stray-successor")
def _(trail: Trail) -> None:
    body = {"checkpoint_sha256": trail.put(b"x"), "code": "restored-backup", "generation": 1}
    trail.insert(1, "log.successor", {**body, "log": trail.key.name})


@lie("a log before this one hides what was spent", "budgets", "wrong-figure")
def _(trail: Trail) -> None:
    trail.insert(4, "log.successor", {"checkpoint_sha256": trail.put(b"x")})
    for kind in ("budget.reserved", "budget.charged"):
        trail.say(kind, -2, spent="9")


@lie("what was spent is left out where a log before this one is named", "budgets", "wrong-figure")
def _(trail: Trail) -> None:
    trail.insert(4, "log.successor", {"checkpoint_sha256": trail.put(b"x")})
    entry = trail.one("budget.charged")
    trail.alter("budget.charged", body={k: v for k, v in entry.body.items() if k != "spent"})


@lie("other officers as if carried over", "keys", "not-carried-over")
def _(trail: Trail) -> None:
    body = {**trail.one("signers.pinned").body, "code": "carried-over"}
    trail.insert(trail.at("job.done"), "signers.pinned", body)


@lie("an older policy as if carried over", "clauses", "not-carried-over")
def _(trail: Trail) -> None:
    body = {**trail.one("policy.activate").body, "code": "carried-over"}
    trail.insert(trail.at("job.accepted"), "policy.activate", body)


# times
@lie("kept beyond all calendars", "outputs", "wrong-note")
def _(trail: Trail) -> None:
    trail.drop("job.done", -1)
    for nth in (-1, -2):
        trail.say("output.commit", nth, expires="9999-12-31T23:59:59.999Z")


# approvals that nothing can be told of
@lie("an approval of a job that was never offered", "executed", "approval-unfounded")
def _(trail: Trail) -> None:
    entry = trail.one("approval.recorded")
    trail.drop("approval.recorded")
    place = trail.at("job.received")
    trail.insert(place, "approval.recorded", dict(entry.body), job=entry.job, attempt=1, actor=entry.actor)


# identifiers
@lie("an identifier as a code", "identifiers", "mobile-number")
def _(trail: Trail) -> None:
    trail.insert(len(trail.entries), "deletion.receipt", {"what": "release", "code": "n139-0000-1234"})


@lie("an identifier as a release", "identifiers", "long-number")
def _(trail: Trail) -> None:
    trail.insert(
        len(trail.entries), "deletion.receipt", {"what": "release", "release": "13900001234" + "0" * 21}
    )


@lie("an identifier as a length", "identifiers", "long-number")
def _(trail: Trail) -> None:
    trail.insert(len(trail.entries), "deletion.receipt", {"what": "release", "bytes": 13900001234})


@lie("an identifier in two names", "identifiers", "resident-id")
def _(trail: Trail) -> None:
    from simulator import person

    number = person(3)
    body = {"dataset": "people", "columns": [number[:9], number[9:]]}
    trail.insert(len(trail.entries), "dataset.registered", body)


@pytest.mark.parametrize("name", list(LIES))
def test_a_lie_is_found(police: Trail, folder: Path, name: str) -> None:
    question, code, tell = LIES[name]
    tell(police)
    checks = police.audited(folder)
    assert (question, code) in found(checks), told(checks)
    assert checks[question].answer is Answer.FAILS


def test_a_finding_names_the_entry_that_lies(police: Trail, folder: Path) -> None:
    police.say("budget.charged", -2, spent="0")
    place = police.at("budget.charged", -2)
    checks = police.audited(folder)
    assert [(q, code, where) for q, code, where, _ in told(checks)] == [
        ("budgets", "wrong-figure", f"entry {place}")
    ]


def test_no_finding_repeats_what_it_found(police: Trail, folder: Path) -> None:
    from simulator import person

    number = person(3)
    police.say("job.received", purpose=f"{number[:6]}-{number[6:14]}-{number[14:]}")
    checks = police.audited(folder)
    assert number[6:14] not in str([check.document() for check in checks])


def test_an_entry_of_an_earlier_version_hides_nothing_in_a_log_of_a_later_one(police: Trail) -> None:
    """What an earlier version does not say cannot be decided again; it was once all there was to say."""
    job, entries = police.one("job.accepted", 2).job, []
    for entry in police.entries:
        if entry.job == job and entry.kind in {
            "job.admitted",
            "output.commit",
            "output.released",
            "job.done",
        }:
            kind = KINDS_BY_VERSION[2][entry.kind]
            body = {k: v for k, v in entry.body.items() if k in kind.required | kind.optional}
            entries.append(replace(entry, v=2, body=body))
        elif entry.job != job:
            entries.append(entry)
    checks = visited(police, entries)
    assert ("executed", "version-went-back") in found(checks)
    assert checks["executed"].answer is Answer.FAILS


# -- a log that follows another --------------------------------------------------------------------------


@pytest.fixture
def following(lived: tuple[World, JobId], folder: Path) -> Trail:
    """The next log of the node that received the lists, after a backup was put back."""
    world = lived[0].clone(folder / "world")
    generation.begin(world.homes["police"], "restored-backup", world.clock)
    return Trail.of(world, "police")


def test_what_a_log_carries_over_from_the_one_before_is_found_right(following: Trail) -> None:
    kinds = [entry.kind for entry in following.entries]
    assert kinds[:3] == ["log.open", "log.successor", "signers.pinned"]
    assert kinds.count("stop.applied") == 2
    checks = audited(following.journal, following.trust)
    assert told(checks) == []
    assert checks["budgets"].missing


def _goes_on(following: Trail, police: Trail) -> list[Entry]:
    """Return the following log's entries, and a whole job of the log before as if it were asked there."""
    shutil.copytree(police.journal / "objects", following.journal / "objects", dirs_exist_ok=True)
    kinds = ("job.received", "approval.recorded", "job.accepted")
    return [*following.entries, *(police.one(kind, nth) for kind in kinds for nth in range(2))]


def test_nothing_is_answered_while_the_stop_of_the_gap_holds(following: Trail, police: Trail) -> None:
    assert ("clauses", "stopped") in found(visited(following, _goes_on(following, police)))


def test_a_log_that_follows_another_without_a_stop_is_found(following: Trail, police: Trail) -> None:
    entries = [e for e in _goes_on(following, police) if e.body.get("code") != "history-gap"]
    assert ("clauses", "no-history-gap") in found(visited(following, entries))


def test_an_older_policy_that_is_carried_over_lifts_no_stop_of_the_gap(
    following: Trail, police: Trail
) -> None:
    entries = _goes_on(following, police)
    policy = next(entry for entry in entries if entry.kind == "policy.activate")
    last = max(n for n, entry in enumerate(entries) if entry.kind == "stop.applied")
    entries.remove(policy)
    entries.insert(last, policy)
    assert ("clauses", "no-history-gap") in found(visited(following, entries))


def test_a_second_log_that_names_none_before_it_is_found(following: Trail) -> None:
    entries = [entry for entry in following.entries if entry.kind != "log.successor"]
    assert ("signed", "no-successor") in found(visited(following, entries))


def test_a_log_that_names_another_than_the_one_before_it_is_found(following: Trail) -> None:
    for lie in ({"generation": 3}, {"log": "police.gz.example/node-a/journal/2"}):
        trail = following.copy()
        trail.say("log.successor", **lie)
        assert ("signed", "stray-successor") in found(visited(trail, trail.entries))


def test_what_a_log_before_this_one_spent_counts_no_longer_than_any_period(
    lived: tuple[World, JobId],
) -> None:
    checks, parsed = Checks(), parse_policy(decode_envelope(lived[0].policy("police")).payload)
    with open_bundle(lived[0].homes["police"].journal) as bundle:
        force = Force(Evidence(bundle, checks), Trust(), checks)
    force.active = ActivePolicy(parsed.policy, parsed.digest)
    booking = Booking(Jobs(), Spending(), force, checks)
    booking.gap("a log before", START)
    assert booking.gap_at(START + timedelta(days=300)) == "a log before"
    assert booking.gap_at(START + timedelta(days=367)) == ""


# -- receipts that excuse nothing --------------------------------------------------------------------------


def _left_out(trail: Trail, folder: Path, digest: str) -> set[tuple[str, str]]:
    """Look through the log as it is now, with one object gone from beside it."""
    journal = trail.signed(folder)
    (journal / "objects" / "sha256" / digest[7:9] / digest[7:]).unlink()
    return found(audited(journal, trail.trust, trail.key))


def _receipt(trail: Trail, what: str, digest: str) -> None:
    trail.insert(
        len(trail.entries),
        "deletion.receipt",
        {"what": what, "sha256": digest},
        job=trail.one("job.accepted").job,
    )


def test_a_text_that_is_deleted_before_its_time_is_missing(police: Trail, folder: Path) -> None:
    text = police.one("job.accepted").body["envelope_sha256"]
    police.later(START + timedelta(days=1))
    _receipt(police, "job-text", text)
    missed = _left_out(police, folder, text)
    assert {("deletions", "deleted-too-early"), ("executed", "missing-object")} <= missed


KEPT = [
    ("policy.activate", "envelope_sha256", "clauses"),
    ("roster.activate", "envelope_sha256", "keys"),
    ("stop.applied", "envelope_sha256", "clauses"),
    ("approval.recorded", "approver", "executed"),
]


@pytest.mark.parametrize("named", KEPT)
@pytest.mark.parametrize("what", ["job-text", "approval", "input-record", "release"])
def test_what_retention_never_deletes_is_missing_whatever_a_receipt_says(
    police: Trail, folder: Path, named: tuple[str, str, str], what: str
) -> None:
    kind, key, question = named
    digest = police.one(kind).body[key]
    police.later(START + timedelta(days=1100))
    _receipt(police, what, digest)
    assert (question, "missing-object") in _left_out(police, folder, digest)


# -- what others have of it ---------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [True, False])
def test_a_source_whose_answer_a_participant_used_does_not_take_its_quota_back(
    lived: tuple[World, JobId], folder: Path, before: bool
) -> None:
    trail = Trail.of(lived[0], "health")
    job = trail.one("job.accepted", 2).job
    told_by = Trail.of(lived[0], "police").one("output.commit", -1)
    receipt = {
        "peer": "police.gz.example/node-a",
        "sha256": told_by.body["sha256"],
        "kind": "output.commit",
        "release": told_by.body["release"],
    }
    entries = []
    for entry in trail.entries:
        if entry.job == job and entry.kind in ("job.answering", "peer.receipt"):
            continue
        if entry.job == job and entry.kind == "job.done":
            if before:
                entries.append(replace(entry, kind="peer.receipt", body=receipt))
            for charged in [e for e in trail.entries if e.job == job and e.kind == "budget.charged"]:
                entries.append(
                    replace(
                        charged,
                        time=entry.time,
                        kind="budget.released",
                        body={**charged.body, "code": "timed-out"},
                    )
                )
            body = {"code": "timed-out", "state": "FAILED", "opened": False, "freed": True}
            entries.append(replace(entry, kind="job.failed", body=body))
            if not before:
                entries.append(replace(entry, kind="peer.receipt", body=receipt))
            continue
        entries.append(entry)
    trail.entries = entries
    assert ("budgets", "freed-but-answered") in found(trail.audited(folder))
    without = [entry for entry in entries if entry.kind != "peer.receipt"]
    assert ("budgets", "freed-but-answered") not in found(visited(trail, without))


# -- much of it ---------------------------------------------------------------------------------------------


def test_approvals_without_end_are_kept_for_no_decision(
    police: Trail, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each decision would verify them all: N approvals and N decisions would take N² signatures."""
    given, accepted = police.one("approval.recorded"), police.one("job.accepted")
    true, verified = redecide.verify_approval, []

    def counted(*args: Any, **how: Any) -> VerifiedApproval:
        verified.append(given)
        return true(*args, **how)

    monkeypatch.setattr(redecide, "verify_approval", counted)
    monkeypatch.setattr("audit.findings.MAX_FINDINGS", 10**4)
    many = [
        replace(given, body={**given.body, "approval_sha256": f"sha256:{n:064x}"}, attempt=1)
        for n in range(300)
    ]
    received, place = police.at("job.received"), police.at("job.accepted")
    again = [replace(accepted, attempt=2 + n) for n in range(100)]
    before = [*police.entries[:received], *many, *police.entries[received:place], *again]
    checks = visited(police, before)
    assert ("executed", "approval-unfounded") in found(checks)
    assert len(verified) <= 2
    checks = visited(police, [*police.entries[:place], *again])
    assert ("executed", "too-many-attempts") in found(checks)
    verified.clear()
    visited(police, [*police.entries[:place], *many, *again])
    assert len(verified) <= 2


def test_no_more_approvals_of_one_job_are_kept_than_anybody_could_need(
    police: Trail, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redecide, "MAX_APPROVALS", 1)
    second = police.at("approval.recorded", 1)
    checks = visited(police, police.entries[: second + 1])
    assert [(q, code, where) for q, code, where, _ in told(checks)] == [
        ("executed", "too-many-approvals", f"entry {second}")
    ]


def test_a_long_log_takes_time_by_its_length(police: Trail) -> None:
    received = police.one("job.received")
    entries = [
        replace(received, seq=len(police.entries) + n, job=f"sha256:{n:064x}", time=police.entries[-1].time)
        for n in range(4000)
    ]

    def spent(count: int) -> float:
        begun = time.process_time()
        visited(police, entries[:count])
        return time.process_time() - begun

    few = spent(1000)
    assert spent(4000) < 12 * few


# -- a node whose program lies ----------------------------------------------------------------------------


def test_a_node_that_forgets_what_was_spent_is_found_out(
    base: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(folder / "world")
    for name in ("police", "human-resources", "health"):
        world.activate(name, queries=1, jobs=1)

    async def play() -> None:
        post = Post(world)
        async with running(world, post, witness_wait_s=PATIENT_S) as (_, stations):
            for _ in range(2):
                job = post.submit(world.spec())
                await approve_all(post, stations, job)
                task = await over(post, job)
                assert {ended.state for ended in task.ended.values()} == {"DONE"}

    from policies.history import Lookback

    with monkeypatch.context() as patch:
        for module in ("policies.decide", "policies.limits"):
            patch.setattr(f"{module}.look_back", lambda history, source: Lookback.of(history.of(source)[:0]))
        asyncio.run(play())
    trail = Trail.of(world, "health")
    checks = audited(trail.journal, trail.trust, trail.key)
    assert ("budgets", "rate-exceeded") in found(checks)
    second = trail.at("job.accepted", 1)
    assert ("clauses", "rate-exceeded", f"entry {second}") in [(q, c, w) for q, c, w, _ in told(checks)]
    assert not any(int(where.split()[1]) < second for _, _, where, _ in told(checks))


def test_what_retention_deleted_is_not_checkable_and_fails_nothing(
    lived: tuple[World, JobId], folder: Path
) -> None:
    from node.activation import InForce
    from node.logs import Log
    from node.retention import delete_due

    world = lived[0].clone(folder / "world")
    world.clock.at = START + timedelta(days=1100)
    home, state = world.homes["police"], world.open("police")
    active = InForce.load(state, home.name, home.signer.public_key).policy
    delete_due(state, home, active, world.clock.at, Log(home.log, world.clock))
    state.close()
    trail = Trail.of(world, "police")
    assert len([e for e in trail.entries if e.kind == "deletion.receipt"]) > 10
    checks = audited(trail.journal, trail.trust, trail.key)
    assert told(checks) == []
    for question in ("executed", "inputs"):
        assert checks[question].answer is Answer.NOT_CHECKABLE
    assert checks["deletions"].answer is Answer.HOLDS


# -- anything at all --------------------------------------------------------------------------------------


def test_whatever_a_log_says_it_is_looked_through_to_its_end(police: Trail) -> None:
    """Sixty logs, each with three values exchanged, dropped or taken from elsewhere; the seed is fixed."""
    rand = random.Random(20261122)
    bodies = [entry.body for entry in police.entries]
    values: dict[str, list[Any]] = {}
    for body in bodies:
        for key, value in body.items():
            values.setdefault(key, []).append(value)
    times = ["0001-01-01T00:00:00.000Z", "9999-12-31T23:59:59.999Z"]
    for _ in range(60):
        entries = list(police.entries)
        for _ in range(3):
            place = rand.randrange(1, len(entries))
            entries[place] = _mutated(entries[place], values, times, rand)
        if rand.random() < 0.3:
            del entries[rand.randrange(1, len(entries))]
        checks = visited(police, entries)
        assert all(check.document() for check in checks)


def _mutated(entry: Entry, values: dict[str, list[Any]], times: list[str], rand: random.Random) -> Entry:
    body = dict(entry.body)
    choice = rand.randrange(5)
    kind = KINDS_BY_VERSION[3][entry.kind]
    optional = sorted(body.keys() & kind.optional)
    if choice == 0 and optional:
        del body[rand.choice(optional)]
    elif choice == 1:
        return replace(entry, refs=entry.refs[1:] if entry.refs else ("sha256:" + "0" * 64,))
    elif choice == 2:
        return replace(entry, time=rand.choice(times))
    elif choice == 3 and "decided" in body:
        body["decided"] = rand.choice(times)
    elif body:
        key = rand.choice(sorted(body))
        body[key] = rand.choice(values[key])
    return replace(entry, body=body)
