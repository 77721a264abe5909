"""Every refusal of the gate: signed, journaled, and the same when asked again."""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from simulator import START, World, new_signer

from audit.entries import Entry
from node.activation import InForce, activate_policy, activate_roster
from node.gate import MAX_OFFER_BYTES, Gate
from node.logs import Log
from node.rpc import Attempt
from node.state import RunState, State
from protocols.encoding import canonical_json, sha256_digest
from protocols.envelope import APPROVAL, JOB, VERDICT, decode_envelope, key_id, sign, verify
from protocols.ids import DatasetName, JobId, NodeName, Organisation, Role
from protocols.wire import JobSpec, RosterAnalyst, Verdict


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


def charge(office: Office, spec: JobSpec, number: int = 1) -> None:
    """Pass commit point 1 with an attempt of a job."""
    with office.state.change() as change:
        change.charge(Attempt(spec.job_id, number), spec.series, runs_per_series=1, attempts_per_job=3)


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
    assert verdict.sentence
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
    payload = canonical_json({"schema": "minshu-job/1", "surprise": 1})
    data = sign(JOB, payload, [office.world.analyst]).encode()
    refused(office, office.offer(data, JobId(sha256_digest(payload))), "missing-field")


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
    office.world.clock.at = START + timedelta(days=80)
    refused(office, office.ask(office.world.spec(roster_digest=office.world.roster.digest)), "policy-expired")


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


def test_the_same_question_in_another_job_is_refused(matcher: Office) -> None:
    first, second = matcher.world.spec(), matcher.world.spec()
    assert first.series == second.series
    assert matcher.ask(first).answer == "permit"
    assert matcher.ask(second).answer == "permit"  # nothing was opened yet
    charge(matcher, first)
    third = matcher.world.spec()
    refused(matcher, matcher.ask(third), "series-rate")


def test_another_question_is_not_hindered_by_an_earlier_one(matcher: Office) -> None:
    first = matcher.world.spec()
    matcher.ask(first)
    charge(matcher, first)
    other = changed_input(matcher.world.spec(), "register", dataset="other")
    assert other.series != first.series
    assert matcher.ask(other).answer == "permit"


def test_the_same_lists_under_another_key_holder_are_the_same_question(matcher: Office) -> None:
    first = matcher.world.spec()
    matcher.ask(first)
    charge(matcher, first)
    params = {**first.params, "key_holder": "source-2"}
    refused(matcher, matcher.ask(matcher.world.spec(params=params)), "series-rate")


def test_a_fourth_attempt_is_refused(matcher: Office) -> None:
    spec = matcher.world.spec()
    for number in (1, 2, 3):
        assert matcher.ask(spec, number).answer == "permit"
        charge(matcher, spec, number)
    refused(matcher, matcher.ask(spec, 4), "attempts-exhausted")


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


def test_two_racing_jobs_cannot_both_take_the_last_place(matcher: Office) -> None:
    from protocols.errors import StateConflict

    first, second = matcher.world.spec(), matcher.world.spec()
    matcher.ask(first)
    matcher.ask(second)
    charge(matcher, first)
    size = matcher.size
    with pytest.raises(StateConflict) as caught:
        charge(matcher, second)
    assert caught.value.code == "series-rate"
    run = matcher.state.run(Attempt(second.job_id, 1))
    assert run is not None
    assert not run.charged
    assert matcher.size == size


def test_a_purpose_that_looks_like_an_identifier_does_not_enter_the_journal(office: Office) -> None:
    number = "1" * 18
    refused(office, office.ask(office.world.spec(purpose=number)), "unknown-purpose")
    assert all(number.encode() not in entry.encode() for entry in office.state.journal.entries())


def test_verdicts_are_readable_lines(office: Office) -> None:
    verdict = office.ask(office.world.spec(nonce=secrets.token_hex(16)))
    assert verdict.sentence.isprintable()
    assert "审批" in verdict.sentence
