"""Every refusal of the gate: signed, journaled, and the same when asked again."""

import ast
import inspect
import os
import re
import secrets
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from simulator import START, World, new_signer, policy_text

from audit.entries import Entry
from node import gate as gate_module
from node import ledger as ledger_module
from node.activation import InForce, activate_policy, activate_roster, take_freshness
from node.answers import IN_CHINESE, question_here, refusal
from node.datasets import open_dataset
from node.gate import MAX_OFFER_BYTES, Gate
from node.logs import Log
from node.rpc import Attempt
from node.sources import DEFAULT_ACCESS, Source
from node.sources import source as source_module
from node.state import Dataset, Reader, RunState, State
from node.stops import apply_stop
from policies.attempts import MAX_GIVEN_UP
from policies.sign import sign_policy
from protocols import encoding as encoding_module
from protocols import envelope as envelope_module
from protocols import succession
from protocols import wire as wire_module
from protocols.encoding import canonical_json, sha256_digest
from protocols.envelope import APPROVAL, EXPLAIN, JOB, VERDICT, decode_envelope, key_id, sign, verify
from protocols.errors import Refused, StateConflict
from protocols.ids import DatasetName, JobId, NodeName, Organisation, Role
from protocols.wire import JobSpec, RosterAnalyst, Verdict, parse_utc


@dataclass
class Office:
    world: World
    name: str
    state: State
    force: InForce
    gate: Gate

    def offer(self, data: bytes, job: JobId, attempt: int = 1) -> Verdict:
        """Offer and return the verdict, after checking who signed it."""
        envelope = decode_envelope(self.gate.offer(Attempt(job, attempt), data))
        key = self.world.homes[self.name].signer.public_key
        assert verify(envelope, VERDICT, {key_id(key): key})
        return Verdict.decode(envelope.payload)

    def ask(self, spec: JobSpec, attempt: int = 1, **how: Any) -> Verdict:
        return self.offer(self.world.sign_job(spec, **how), spec.job_id, attempt)

    def last(self) -> Entry:
        return list(self.state.journal.entries())[-1]

    @property
    def size(self) -> int:
        return self.state.journal.size


@pytest.fixture
def office(world: World) -> Iterator[Office]:
    yield from opened(world, "health")


@pytest.fixture
def matcher(world: World) -> Iterator[Office]:
    yield from opened(world, "statistics")


def opened(world: World, name: str, *, roster: bool = True) -> Iterator[Office]:
    home = world.homes[name]
    state = world.open(name)
    force = InForce.load(state, home.name, home.signer.public_key)
    enrolled = home.enrolled()
    assert enrolled is not None
    if roster:
        activate_roster(state, force, world.roster_envelope, enrolled, world.clock)
    log = Log(None, world.clock)
    yield Office(world, name, state, force, Gate(state, force, home.signer, world.clock, log))
    state.close()


def table_of(dataset: Dataset) -> Source:
    return open_dataset(dataset, DEFAULT_ACCESS)


def charge(office: Office, spec: JobSpec, number: int = 1) -> None:
    """Pass commit point 1 with an attempt of a job."""
    attempt = Attempt(spec.job_id, number)
    allowed = office.gate.allowed(attempt)
    terms = allowed.permit.terms
    with office.state.change() as change:
        change.reserve(allowed.row(attempt), allowed.version, None)
        change.charge(attempt, terms.cost, terms.lines, None)
        change.start(attempt, spec.question(""))


def test_a_fitting_job_waits_for_approvals_and_is_journaled(office: Office) -> None:
    verdict = office.ask(office.world.spec())
    assert (verdict.answer, verdict.rule, verdict.approvals_needed, verdict.approvals_given) == (
        "ask",
        "R1",
        2,
        0,
    )
    entry = office.last()
    assert entry.kind == "job.received"
    assert entry.body["columns"] == ["id", "seen", "street"]
    assert entry.policy is not None
    assert entry.policy.rule == "R1"


def test_a_neutral_node_permits_without_approvals(matcher: Office) -> None:
    spec = matcher.world.spec()
    assert matcher.ask(spec).answer == "permit"
    run = matcher.state.run(Attempt(spec.job_id, 1))
    assert run is not None
    assert run.state is RunState.CHECKING


def test_the_same_offer_gets_the_same_answer_and_one_entry(office: Office) -> None:
    spec = office.world.spec()
    data = office.world.sign_job(spec)
    first = office.gate.offer(Attempt(spec.job_id, 1), data)
    size = office.size
    assert office.gate.offer(Attempt(spec.job_id, 1), data) == first
    assert office.size == size


def refused(office: Office, verdict: Verdict, code: str) -> None:
    """Check that a refusal says why, and that the journal says the same."""
    assert (verdict.answer, verdict.code) == ("refuse", code)
    # In both languages, with the way out.
    assert verdict.sentence
    assert verdict.hint
    assert re.search("[\u4e00-\u9fff]", verdict.sentence_zh)
    assert re.search("[\u4e00-\u9fff]", verdict.hint_zh)
    entry = office.last()
    assert entry.kind == "job.refused"
    assert entry.body["code"] == code
    assert entry.job == verdict.job


# -- who asks, and is it what was signed? ------------------------------------------------------------------


def test_a_job_nobody_on_the_roster_signed_is_refused(office: Office) -> None:
    spec = office.world.spec()
    refused(office, office.ask(spec, signer=new_signer()), "job-forged")


def test_a_job_of_an_unknown_requester_is_refused(office: Office) -> None:
    stranger = new_signer()
    spec = office.world.spec(requester=key_id(stranger.public_key))
    refused(office, office.ask(spec, signer=stranger), "unknown-requester")


def test_a_job_under_another_payload_type_is_refused(office: Office) -> None:
    spec = office.world.spec()
    refused(office, office.ask(spec, kind=APPROVAL), "wrong-payload-type")


def test_a_text_that_does_not_hash_to_its_job_id_is_refused(office: Office) -> None:
    one, other = office.world.spec(), office.world.spec()
    verdict = office.offer(office.world.sign_job(one), other.job_id)
    refused(office, verdict, "wrong-job-id")
    assert verdict.job == other.job_id


def test_an_analyst_cannot_submit_in_another_ones_name(office: Office) -> None:
    world, second = office.world, new_signer()
    card = RosterAnalyst("analyst-2", Organisation("data-bureau.gz.example"), second.public_key, b"k")
    roster = world.roster
    newer = replace(roster, version=2, previous=roster.digest, analysts=(*roster.analysts, card))
    enrolled = world.homes["health"].enrolled()
    assert enrolled is not None
    assert activate_roster(office.state, office.force, world.sign_roster(newer), enrolled, world.clock)
    spec = world.spec(roster_digest=newer.digest)
    refused(office, office.ask(spec, signer=second), "job-forged")


def test_bytes_that_are_no_envelope_are_refused(office: Office) -> None:
    job = JobId(sha256_digest(b"x"))
    refused(office, office.offer(b'{"a":1, "a":2}', job), "not-canonical")


def test_a_signed_text_that_is_no_job_is_refused(office: Office) -> None:
    payload = canonical_json({"schema": "minshu-job/2", "surprise": 1})
    data = sign(JOB, payload, [office.world.analyst]).encode()
    refused(office, office.offer(data, JobId(sha256_digest(payload))), "missing-field")


def test_a_job_of_an_earlier_form_is_refused(office: Office) -> None:
    payload = canonical_json({"schema": "minshu-job/1"})
    data = sign(JOB, payload, [office.world.analyst]).encode()
    refused(office, office.offer(data, JobId(sha256_digest(payload))), "unknown-schema")


def test_a_job_signed_to_be_explained_is_not_run(office: Office) -> None:
    spec = office.world.spec()
    refused(office, office.ask(spec, kind=EXPLAIN), "wrong-payload-type")


def test_a_huge_offer_is_refused_unparsed(office: Office) -> None:
    job = JobId(sha256_digest(b"x"))
    refused(office, office.offer(b"[" * (MAX_OFFER_BYTES + 1), job), "job-too-large")


def test_a_forged_offer_repeated_is_journaled_once(office: Office) -> None:
    spec = office.world.spec()
    data = office.world.sign_job(spec, new_signer())
    first = office.gate.offer(Attempt(spec.job_id, 1), data)
    size = office.size
    assert all(office.gate.offer(Attempt(spec.job_id, 1), data) == first for _ in range(5))
    assert office.size == size


def test_a_forged_offer_does_not_keep_the_true_job_out(office: Office) -> None:
    spec = office.world.spec()
    assert office.ask(spec, signer=new_signer()).answer == "refuse"
    assert office.ask(spec).answer == "ask"


# -- does the policy allow it? -----------------------------------------------------------------------------


def changed_input(spec: JobSpec, role: str, **changes: Any) -> JobSpec:
    inputs = tuple(replace(i, **changes) if i.role == role else i for i in spec.inputs)
    return replace(spec, inputs=inputs)


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("unknown-purpose", {"purpose": "P-2"}),
        ("legal-basis-mismatch", {"legal_basis": "another"}),
        ("unknown-job-type", {"job_type": "guess/1"}),
        ("wrong-roster", {"roster_digest": sha256_digest(b"another roster")}),
        ("job-expired", {"created": START - timedelta(days=2), "expires": START - timedelta(days=1)}),
        ("job-from-the-future", {"created": START + timedelta(hours=1)}),
        ("job-too-long", {"expires": START + timedelta(days=31)}),
    ],
)
def test_what_the_policy_does_not_allow_is_refused(office: Office, code: str, change: dict[str, Any]) -> None:
    refused(office, office.ask(office.world.spec(**change)), code)


def test_a_negative_list_column_is_refused(office: Office) -> None:
    columns = {"key": "id", "street": "street", "last_seen": "phone"}
    spec = changed_input(office.world.spec(), "source-2", columns=columns)
    refused(office, office.ask(spec), "negative-list")


def test_an_unlisted_dataset_is_refused(office: Office) -> None:
    spec = changed_input(office.world.spec(), "source-2", dataset=DatasetName("others"))
    refused(office, office.ask(spec), "unknown-dataset")


def test_a_job_without_a_seat_for_this_node_is_refused(office: Office) -> None:
    spec = office.world.spec()
    roles = {**spec.roles, Role("source-2"): NodeName("education.gz.example/node-a")}
    spec = changed_input(replace(spec, roles=roles), "source-2", organisation="education.gz.example")
    refused(office, office.ask(spec), "not-a-participant")


def test_without_a_policy_everything_is_refused_p6(office: Office) -> None:
    office.force.policy = None
    refused(office, office.ask(office.world.spec()), "no-policy")


def test_an_expired_policy_refuses_everything_p6(office: Office) -> None:
    world = office.world
    world.clock.at = START + timedelta(days=80)
    later = replace(
        world.roster,
        version=2,
        previous=world.roster.digest,
        issued=world.clock(),
        expires=world.clock() + timedelta(days=60),
    )
    enrolled = world.homes["health"].enrolled()
    assert enrolled is not None
    assert activate_roster(office.state, office.force, world.sign_roster(later), enrolled, world.clock)
    refused(office, office.ask(world.spec(roster_digest=later.digest)), "policy-expired")


def test_a_roster_nobody_confirmed_for_a_week_refuses_everything_p6(office: Office) -> None:
    office.world.clock.at = START + timedelta(days=6)
    refused(office, office.ask(office.world.spec()), "roster-stale")


def test_a_confirmed_roster_is_gone_by_again(office: Office) -> None:
    office.world.clock.at = START + timedelta(days=6)
    enrolled = office.world.homes["health"].enrolled()
    assert enrolled is not None
    assert office.ask(office.world.spec()).code == "roster-stale"
    assert take_freshness(office.state, office.force, office.world.fresh(), enrolled, office.world.clock)
    assert office.ask(office.world.spec()).answer == "ask"


def test_an_expired_roster_refuses_everything_p6(office: Office) -> None:
    office.world.clock.at = START + timedelta(days=60)
    refused(office, office.ask(office.world.spec()), "roster-expired")


def test_without_a_roster_everything_is_refused_p6(world: World) -> None:
    for office in opened(world, "health", roster=False):
        refused(office, office.ask(world.spec()), "no-roster")


def test_a_node_the_roster_lists_under_another_key_refuses_everything_p6(office: Office) -> None:
    office.force.identity_key = new_signer().public_key
    refused(office, office.ask(office.world.spec()), "not-in-roster")


def test_a_clock_behind_the_journal_is_not_trusted_p6(office: Office) -> None:
    office.world.clock.at = START - timedelta(hours=1)
    refused(office, office.ask(office.world.spec()), "clock-untrusted")


# -- does the dataset fit? ---------------------------------------------------------------------------------


def test_a_dataset_that_is_not_registered_is_refused(office: Office, folder: Path) -> None:
    known = office.state.dataset("people")
    assert known is not None
    text = office.world.policy("health", version=2, previous=office.state.policy().digest)  # type: ignore[union-attr]  # furnished
    payload = decode_envelope(text).payload.replace(b"local:people", b"local:others")
    staff = office.world.staff["health"]
    envelope = sign(decode_envelope(text).payload_type, payload, [staff.dpo, staff.owner]).encode()
    activate_policy(office.state, office.force, envelope, office.world.clock)
    refused(office, office.ask(office.world.spec()), "dataset-not-registered")


def test_a_column_the_dataset_lost_is_refused_with_the_closest(office: Office) -> None:
    known = office.state.dataset("people")
    assert known is not None
    columns = tuple(c for c in known.columns if c.name != "street")
    with office.state.change() as change:
        change.put_dataset(replace(known, columns=(*columns, replace(columns[0], name="streets"))))
    verdict = office.ask(office.world.spec())
    refused(office, verdict, "unknown-column")
    assert "streets" in verdict.sentence


# -- how often? --------------------------------------------------------------------------------------------


def done(office: Office, spec: JobSpec, number: int = 1) -> None:
    """Bring a job to its good end."""
    charge(office, spec, number)
    with office.state.change() as change:
        change.move(Attempt(spec.job_id, number), RunState.DONE)


def test_the_same_question_names_the_job_that_answered_it(matcher: Office) -> None:
    first, second = matcher.world.spec(), matcher.world.spec()
    assert matcher.ask(first).answered == ""
    assert matcher.ask(second).answered == ""  # nothing was answered yet
    done(matcher, first)
    third = matcher.ask(matcher.world.spec())
    assert (third.answer, third.answered) == ("permit", first.job_id)
    assert matcher.last().body["answered_by"] == first.job_id


def test_another_question_names_no_earlier_job(matcher: Office) -> None:
    first = matcher.world.spec()
    matcher.ask(first)
    done(matcher, first)
    other = changed_input(matcher.world.spec(), "register", dataset="other")
    assert matcher.ask(other).answered == ""


@pytest.mark.parametrize("state", [RunState.FAILED, RunState.CANCELLED, RunState.RUNNING])
def test_a_job_without_a_good_end_has_answered_nothing(matcher: Office, state: RunState) -> None:
    first = matcher.world.spec()
    matcher.ask(first)
    done(matcher, first)
    with matcher.state.change() as change:
        change.move(Attempt(first.job_id, 1), state)
    assert matcher.ask(matcher.world.spec()).answered == ""


def test_a_question_over_the_rate_names_the_stored_answer_beside_the_refusal(world: World) -> None:
    world.activate("statistics", jobs=1)
    for matcher in opened(world, "statistics"):
        first = world.spec()
        matcher.ask(first)
        done(matcher, first)
        verdict = matcher.ask(world.spec())
        assert (verdict.answer, verdict.code, verdict.answered) == ("refuse", "rate-exceeded", first.job_id)


def test_a_stop_names_no_stored_answer(matcher: Office) -> None:
    first = matcher.world.spec()
    matcher.ask(first)
    done(matcher, first)
    apply_stop(matcher.state, matcher.force, matcher.world.stop("statistics", "all"), matcher.world.clock)
    verdict = matcher.ask(matcher.world.spec())
    assert (verdict.code, verdict.answered) == ("stopped", "")


def test_an_answer_over_other_data_is_no_answer(office: Office) -> None:
    first = office.world.spec()
    with office.state.change() as change:
        change.add_job(
            first.job_id, b"", requester=first.requester, purpose=first.purpose, received=office.world.clock()
        )
        change.put_run(Attempt(first.job_id, 1), RunState.CHECKING, b"")
        change.start(Attempt(first.job_id, 1), first.question("2026-01-01T00:00:00Z"))
        change.move(Attempt(first.job_id, 1), RunState.DONE)
    assert office.ask(office.world.spec()).answered == ""
    known = office.state.dataset("people")
    assert known is not None
    snapshot = known.snapshot
    with office.state.change() as change:
        change.start(Attempt(first.job_id, 1), question_here(first, snapshot, table_of(known)))
        change.move(Attempt(first.job_id, 1), RunState.DONE)
    assert office.ask(office.world.spec()).answered == first.job_id


def test_a_list_written_again_within_the_same_second_is_another_question(office: Office) -> None:
    first = office.world.spec()
    known = office.state.dataset("people")
    assert known is not None
    second = int(parse_utc(known.snapshot).timestamp()) * 10**9
    os.utime(known.place.path, ns=(second, second))
    with office.state.change() as change:
        change.add_job(
            first.job_id, b"", requester=first.requester, purpose=first.purpose, received=office.world.clock()
        )
        change.put_run(Attempt(first.job_id, 1), RunState.CHECKING, b"")
        change.start(Attempt(first.job_id, 1), question_here(first, known.snapshot, table_of(known)))
        change.move(Attempt(first.job_id, 1), RunState.DONE)
    assert office.ask(office.world.spec()).answered == first.job_id
    data = known.place.path.read_bytes()
    # Of the same length, and only the fraction of the second differs: no snapshot shows it.
    known.place.path.write_bytes(data.replace(b"S1", b"S2"))
    os.utime(known.place.path, ns=(second, second + 900_000_000))
    assert table_of(known).snapshot() == known.snapshot
    assert office.ask(office.world.spec()).answered == ""


def test_an_answer_for_another_purpose_is_not_named(office: Office) -> None:
    first = office.world.spec()
    known = office.state.dataset("people")
    assert known is not None
    snapshot = known.snapshot
    with office.state.change() as change:
        change.add_job(
            first.job_id, b"", requester=first.requester, purpose="P-9", received=office.world.clock()
        )
        change.put_run(Attempt(first.job_id, 1), RunState.CHECKING, b"")
        change.start(Attempt(first.job_id, 1), question_here(first, snapshot, table_of(known)))
        change.move(Attempt(first.job_id, 1), RunState.DONE)
    assert office.ask(office.world.spec()).answered == ""


def test_a_fourth_attempt_is_refused(matcher: Office) -> None:
    spec = matcher.world.spec()
    for number in (1, 2, 3):
        assert matcher.ask(spec, number).answer == "permit"
        charge(matcher, spec, number)
    refused(matcher, matcher.ask(spec, 4), "attempts-exhausted")


def test_no_attempt_follows_one_that_began_to_answer(matcher: Office) -> None:
    spec = matcher.world.spec()
    assert matcher.ask(spec).answer == "permit"
    charge(matcher, spec)
    assert matcher.ask(spec, 2).answer == "permit"  # nothing was answered yet
    with matcher.state.change() as change:
        change.answering(Attempt(spec.job_id, 1))
    refused(matcher, matcher.ask(spec, 3), "answered-once")
    assert matcher.ask(matcher.world.spec()).answer == "permit"  # another job is another matter


def test_a_job_whose_attempts_are_given_up_again_and_again_is_refused(matcher: Office) -> None:
    spec = matcher.world.spec()
    for number in range(1, MAX_GIVEN_UP + 1):
        assert matcher.ask(spec, number).answer == "permit"
        attempt = Attempt(spec.job_id, number)
        allowed = matcher.gate.allowed(attempt)
        with matcher.state.change() as change:
            change.reserve(allowed.row(attempt), allowed.version, None)
            change.release(attempt, "peer-failed", None, unopened=True)
    refused(matcher, matcher.ask(spec, MAX_GIVEN_UP + 1), "attempts-exhausted")


def test_a_waiting_job_gets_a_new_answer_when_a_new_policy_says_the_same_otherwise(office: Office) -> None:
    spec = office.world.spec()
    before = office.ask(spec)
    again(office, rows=5000)
    after = office.ask(spec)
    assert (after.answer, after.code, after.approvals_given) == (before.answer, before.code, 0)
    [limit] = [line.limit for line in after.costs if line.notion == "rows"]
    assert (limit, before.costs != after.costs) == ("5000", True)
    size = office.size
    assert office.ask(spec) == after
    assert office.size == size


def again(office: Office, **policy: Any) -> None:
    """Put the next version of the policy into force."""
    newest, staff = office.state.policy(), office.world.staff[office.name]
    assert newest is not None
    analyst, dpo, owner = (key_id(s.public_key) for s in (office.world.analyst, staff.dpo, staff.owner))
    version = newest.version + 1
    text = policy_text(office.name, analyst, dpo, owner, version=version, previous=newest.digest, **policy)
    signed = sign_policy(text.encode(), staff.owner, sign_policy(text.encode(), staff.dpo))
    activate_policy(office.state, office.force, signed.encode(), office.world.clock)


def test_an_older_attempt_than_one_seen_is_refused(matcher: Office) -> None:
    spec = matcher.world.spec()
    data = matcher.world.sign_job(spec)
    assert matcher.offer(data, spec.job_id, 2).answer == "permit"
    refused(matcher, matcher.offer(data, spec.job_id, 1), "old-attempt")
    size = matcher.size
    assert matcher.offer(data, spec.job_id, 1).code == "old-attempt"
    assert matcher.size == size


def test_a_replayed_job_is_not_run_a_second_time(matcher: Office) -> None:
    spec = matcher.world.spec()
    matcher.ask(spec)
    charge(matcher, spec)
    with matcher.state.change() as change:
        change.move(Attempt(spec.job_id, 1), RunState.DONE)
    verdict = matcher.ask(spec)
    assert (verdict.answer, verdict.code) == ("refuse", "attempt-over")


def test_a_refused_job_stays_refused_when_offered_again(office: Office) -> None:
    spec = office.world.spec(purpose="P-2")
    first = office.ask(spec)
    size = office.size
    assert office.ask(spec) == first
    assert office.size == size


def test_two_racing_jobs_cannot_both_take_the_last_place(world: World) -> None:
    world.activate("statistics", jobs=1)
    for matcher in opened(world, "statistics"):
        first, second = world.spec(), world.spec()
        matcher.ask(first)
        matcher.ask(second)
        raced = matcher.gate.allowed(Attempt(second.job_id, 1))
        charge(matcher, first)
        size = matcher.size
        with pytest.raises(StateConflict) as caught, matcher.state.change() as change:
            change.reserve(raced.row(Attempt(second.job_id, 1)), raced.version, None)
        assert caught.value.code == "ledger-conflict"
        with pytest.raises(Refused) as refusal:
            matcher.gate.allowed(Attempt(second.job_id, 1))
        assert refusal.value.code == "rate-exceeded"
        assert matcher.state.ledger().row(second.job_id, 1) is None
        assert matcher.size == size


# -- in Chinese, too ---------------------------------------------------------------------------------------


def codes_of(*where: object) -> set[str]:
    """Return every code that the source of these functions, classes or modules can raise."""
    found: set[str] = set()
    for each in where:
        tree = ast.parse(textwrap.dedent(inspect.getsource(each)))  # type: ignore[arg-type]  # code objects all
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "code" and isinstance(node.value, ast.Constant):
                found.add(node.value.value)
    return found


def test_every_error_that_becomes_a_refusal_is_in_the_chinese_table() -> None:
    reachable = codes_of(
        gate_module.authentic,
        gate_module._forged,
        gate_module.dataset_of,
        InForce.me,
        succession.in_force,
        succession.fresh,
        envelope_module,
        encoding_module.decode_json,
        encoding_module.canonical_json,
        encoding_module.b64decode,
        encoding_module.digest_bytes,
        wire_module.Fields,
        wire_module._named,
        wire_module.parse_utc,
        wire_module.JobSpec,
        wire_module.JobInput,
        source_module.check_columns,
        ledger_module.Row,
        ledger_module.Ledger,
        ledger_module._storage,
        ledger_module._damaged,
        Reader._all,
    )
    assert len(reachable) > 20
    assert reachable <= set(IN_CHINESE)


@pytest.mark.parametrize("code", sorted(IN_CHINESE))
def test_a_refusal_that_began_as_an_error_has_both_languages(code: str) -> None:
    no = refusal(Refused("found this, expected that", code=code, hint="do that"))
    assert re.search("[\u4e00-\u9fff]", no.zh)
    assert re.search("[\u4e00-\u9fff]", no.hint_zh)
    assert no.zh.endswith("。")
    assert (no.sentence, no.hint) == ("Found this, expected that.", "do that")


def test_an_unforeseen_error_is_said_in_chinese_with_its_code() -> None:
    no = refusal(Refused("odd", code="never-seen"))
    assert "never-seen" in no.zh
    assert no.hint
    assert no.hint_zh


def test_a_purpose_that_looks_like_an_identifier_does_not_enter_the_journal(office: Office) -> None:
    number = "1" * 18
    refused(office, office.ask(office.world.spec(purpose=number)), "unknown-purpose")
    assert all(number.encode() not in entry.encode() for entry in office.state.journal.entries())


def test_verdicts_are_readable_lines(office: Office) -> None:
    verdict = office.ask(office.world.spec(nonce=secrets.token_hex(16)))
    assert verdict.sentence.isprintable()
    assert "approval" in verdict.sentence
    assert verdict.sentence_zh.isprintable()
    assert "审批" in verdict.sentence_zh
