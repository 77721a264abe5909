"""Approvals at a node: who counts, for what, for how long; each one journaled, whether it counts or not."""

import secrets
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from simulator import START, World, new_signer

from node.activation import InForce, activate_policy, activate_roster
from node.approvals import check_reason, find_job, make_approval, prompt, purpose_title
from node.desk import Desk
from node.gate import Gate, judge
from node.logs import Log
from node.rpc import Attempt
from node.state import RunState, State
from policies.decide import Ask
from protocols.encoding import b64encode
from protocols.envelope import APPROVAL, KeySigner, decode_envelope, key_id, sign
from protocols.errors import InputError, MinshuError
from protocols.ids import JobId
from protocols.wire import Approval, JobSpec, Verdict


class Counter:
    """The health department's node with one waiting job."""

    def __init__(self, world: World) -> None:
        home = world.homes["health"]
        self.world, self.staff = world, world.staff["health"]
        self.state: State = world.open("health")
        self.force = InForce.load(self.state, home.name, home.signer.public_key)
        enrolled = home.enrolled()
        assert enrolled is not None
        activate_roster(self.state, self.force, world.roster_envelope, enrolled, world.clock)
        self.gate = Gate(self.state, self.force, home.signer, world.clock, Log(None, world.clock))
        self.answers: list[Verdict] = []
        self.desk = Desk(self.state, self.force, self.gate, world.clock, self._answered, lambda: None)
        self.spec = world.spec()
        self.offer(self.spec)

    def _answered(self, _: Attempt, verdict: bytes) -> None:
        self.answers.append(Verdict.decode(decode_envelope(verdict).payload))

    def offer(self, spec: JobSpec) -> None:
        self.gate.offer(Attempt(spec.job_id, 1), self.world.sign_job(spec))

    def decision(self, spec: JobSpec) -> Ask:
        decided = judge(self.state, self.force, spec, Attempt(spec.job_id, 1), self.world.clock())
        assert isinstance(decided, Ask)
        return decided

    def command(self, signer: KeySigner, spec: JobSpec | None = None, **changes: Any) -> dict[str, Any]:
        spec = spec or self.spec
        assert self.force.policy is not None
        envelope = make_approval(
            spec,
            self.decision(spec),
            self.force.policy,
            signer=signer,
            now=self.world.clock(),
            rand=secrets.token_bytes,
        )
        if changes:
            said = replace(Approval.decode(decode_envelope(envelope).payload), **changes)
            envelope = sign(APPROVAL, said.encode(), [signer]).encode()
        key = b64encode(signer.public_key)
        return {"job": spec.job_id, "envelope": b64encode(envelope), "key": key}

    def approve(self, signer: KeySigner, **changes: Any) -> dict[str, Any]:
        return self.desk.handle("approve", self.command(signer, **changes))

    def rejected(self, code: str, command: dict[str, Any]) -> None:
        """Check that an approval does not count, and that the journal says why."""
        with pytest.raises(MinshuError) as caught:
            self.desk.handle("approve", command)
        assert caught.value.code == code
        entry = list(self.state.journal.entries())[-1]
        assert (entry.kind, entry.body["code"]) == ("approval.rejected", code)
        assert self.run_state() is RunState.AWAITING_APPROVAL

    def run_state(self) -> RunState:
        run = self.state.run(Attempt(self.spec.job_id, 1))
        assert run is not None
        return run.state


@pytest.fixture
def counter(world: World) -> Iterator[Counter]:
    made = Counter(world)
    yield made
    made.state.close()


def test_two_people_of_the_rule_turn_ask_into_permit(counter: Counter) -> None:
    assert counter.approve(counter.staff.dpo)["state"] == "AWAITING_APPROVAL"
    assert counter.answers[-1].approvals_given == 1
    assert counter.approve(counter.staff.owner)["state"] == "CHECKING"
    assert counter.answers[-1].answer == "permit"
    kinds = [e.kind for e in counter.state.journal.entries()]
    assert kinds.count("approval.recorded") == 2


def test_an_approval_counts_once(counter: Counter) -> None:
    command = counter.command(counter.staff.dpo)
    counter.desk.handle("approve", command)
    counter.rejected("approval-used", command)


def test_one_person_counts_once_however_often_they_sign(counter: Counter) -> None:
    counter.approve(counter.staff.dpo)
    counter.rejected("approved-already", counter.command(counter.staff.dpo))


def test_a_key_the_policy_does_not_list_does_not_count(counter: Counter) -> None:
    counter.rejected("too-few-signatures", counter.command(new_signer()))


def test_the_requester_does_not_approve_its_own_job(world: World) -> None:
    staff = world.staff["health"]
    staff.dpo, before = world.analyst, staff.dpo
    try:
        staff_policy = world.policy("health", version=2, previous=_digest(world), approvals=2)
    finally:
        staff.dpo = before
    payload = decode_envelope(staff_policy).payload
    envelope = sign(decode_envelope(staff_policy).payload_type, payload, [staff.dpo, staff.owner]).encode()
    state = world.open("health")
    home = world.homes["health"]
    activate_policy(state, InForce.load(state, home.name, home.signer.public_key), envelope, world.clock)
    state.close()
    counter = Counter(world)
    counter.rejected("approver-is-requester", counter.command(world.analyst))
    counter.state.close()


def _digest(world: World) -> str:
    return decode_envelope(world.policies["health"]).payload_digest


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("approval-expired", {"issued": START - timedelta(days=2), "expires": START - timedelta(days=1)}),
        (
            "approval-not-yet-valid",
            {"issued": START + timedelta(hours=1), "expires": START + timedelta(days=1)},
        ),
        ("approval-too-long", {"expires": START + timedelta(days=8)}),
        ("approval-of-another-job", {"job": JobId("sha256:" + "0" * 64)}),
        ("approval-of-another-job", {"node": "police.gz.example/node-a"}),
        ("approval-of-another-policy", {"policy_digest": "sha256:" + "0" * 64}),
        ("approver-not-listed", {"rule": "R9"}),
        ("approval-cost", {"cost": "1"}),
    ],
)
def test_an_approval_of_something_else_does_not_count(
    counter: Counter, code: str, changes: dict[str, Any]
) -> None:
    counter.rejected(code, counter.command(counter.staff.dpo, **changes))


def test_an_approval_that_expires_before_the_run_counts_no_more(counter: Counter) -> None:
    counter.approve(counter.staff.dpo, expires=START + timedelta(hours=1))
    counter.world.clock.at = START + timedelta(hours=2)
    assert counter.approve(counter.staff.owner)["state"] == "AWAITING_APPROVAL"
    assert counter.answers[-1].approvals_given == 1


def test_a_new_policy_voids_the_approvals_given_under_the_old_one(counter: Counter) -> None:
    counter.approve(counter.staff.dpo)
    newer = counter.world.policy("health", version=2, previous=_digest(counter.world), max_rows=900)
    counter.desk.handle("policy", {"envelope": b64encode(newer)})
    assert counter.answers[-1].approvals_given == 0
    assert counter.approve(counter.staff.owner)["given"] == 1
    assert counter.approve(counter.staff.dpo)["state"] == "CHECKING"


def test_an_approval_of_one_job_does_not_serve_another(counter: Counter) -> None:
    command = counter.command(counter.staff.dpo)
    second = counter.world.spec()
    counter.offer(second)
    counter.rejected("approval-of-another-job", {**command, "job": second.job_id})


def test_a_job_that_does_not_wait_takes_no_approval(counter: Counter) -> None:
    command = counter.command(counter.staff.dpo)
    counter.desk.handle("reject", {"job": counter.spec.job_id, "reason": "not now"})
    with pytest.raises(MinshuError) as caught:
        counter.desk.handle("approve", command)
    assert caught.value.code == "not-waiting"


def test_a_rejected_job_stays_rejected_in_every_attempt(counter: Counter) -> None:
    counter.desk.handle("reject", {"job": counter.spec.job_id, "reason": "the purpose is unclear"})
    assert counter.answers[-1].answer == "refuse"
    assert "the purpose is unclear" in counter.answers[-1].sentence
    again = counter.gate.offer(Attempt(counter.spec.job_id, 2), counter.world.sign_job(counter.spec))
    assert Verdict.decode(decode_envelope(again).payload).code == "approver-said-no"
    kinds = [e.kind for e in counter.state.journal.entries()]
    assert "approval.rejected" in kinds


def test_the_prompt_says_who_asks_what_is_read_and_what_would_leave(counter: Counter) -> None:
    counter.approve(counter.staff.dpo)
    assert counter.force.policy is not None
    assert counter.force.roster is not None
    title = purpose_title(counter.force.policy, counter.spec)
    page = prompt(counter.spec, counter.decision(counter.spec), counter.force.roster, title)
    for part in (
        counter.spec.job_id,
        "analyst-1",
        "P-1 核查",
        "id (key), seen (last_seen), street (street)",
        "present_in = at_least",
        "records",
        "street-table",
        "dpo",
    ):
        assert part in page
    assert "将输出" in page
    assert "What would leave" in page
    assert "Who would learn what" in page


def test_a_job_is_found_by_the_beginning_of_its_id(counter: Counter) -> None:
    job = counter.spec.job_id
    assert find_job(counter.state, job[:20]) == job
    assert find_job(counter.state, job.removeprefix("sha256:")[:8]) == job
    for wrong in ("sha256:", "%", "____", "ffffffffffffffffffff"):
        with pytest.raises(InputError):
            find_job(counter.state, wrong)


@pytest.mark.parametrize("reason", ["", "x" * 301, "see 11010519491231002X", "call 13900000000 now"])
def test_a_reason_that_could_name_a_person_is_not_sent(reason: str) -> None:
    with pytest.raises(InputError) as caught:
        check_reason(reason)
    assert caught.value.code == "bad-reason"


def test_key_ids_stand_in_the_journal_and_no_names(counter: Counter) -> None:
    counter.approve(counter.staff.dpo)
    entry = list(counter.state.journal.entries())[-1]
    assert entry.body["approver"] == key_id(counter.staff.dpo.public_key)
    assert entry.actor == key_id(counter.staff.dpo.public_key)
