"""Approvals at a node: who counts, for what, for how long; each one journaled, whether it counts or not."""

import json
import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from auditing import audited, findings
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from simulator import START, World, new_signer

from node.activation import InForce, activate_roster
from node.approvals import (
    Case,
    assemble,
    check_reason,
    draft_approval,
    find_job,
    given_approvals,
    make_approval,
    to_sign,
)
from node.description import Description
from node.desk import dataset_to_json, desk_of
from node.gate import judge
from node.logs import Log
from node.mapping import ColumnMapping, pinned
from node.rpc import Attempt
from node.state import RunState, State
from policies.decision import Ask
from protocols.dp.cost import Cost
from protocols.encoding import b64decode, b64encode
from protocols.envelope import APPROVAL, KeySigner, decode_envelope, key_id, sign
from protocols.errors import InputError, MinshuError, PolicyInvalid
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
        log = Log(None, world.clock)
        self.answers: list[Verdict] = []
        off = desk_of(self.state, self.force, home, signer=home.signer, now=world.clock, log=log)
        self.desk, self.gate = replace(off, answered=self._answered), off.gate
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

    def case(self) -> Case:
        """The job as an officer is shown it."""
        force, now = self.force, self.world.clock()
        assert force.policy is not None
        assert force.roster is not None
        decision = judge(self.state, force, self.spec, Attempt(self.spec.job_id, 1), now)
        given = given_approvals(self.state, force, self.spec, now)
        return Case(self.spec, decision, force.policy, force.roster, given, ("1: AWAITING_APPROVAL",))

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


def answer(counter: Counter) -> None:
    """Take the job's attempt to where frames that an answer could be made of go out."""
    attempt = Attempt(counter.spec.job_id, 1)
    allowed = counter.gate.allowed(attempt)
    with counter.state.change() as change:
        change.reserve(allowed.row(attempt), allowed.version, None)
        change.charge(attempt, allowed.permit.terms.cost, allowed.permit.terms.lines, None)
        change.start(attempt, counter.spec.question(""))
    # What was started, but gave nothing, is repeated at no new approval.
    assert all(given.counts for given in counter.case().given)
    with counter.state.change() as change:
        change.answering(attempt)


def test_an_approval_is_used_up_by_the_attempt_that_answers(counter: Counter) -> None:
    commands = [counter.command(counter.staff.dpo), counter.command(counter.staff.owner)]
    for command in commands:
        counter.desk.handle("approve", command)
    answer(counter)
    assert [given.counts for given in counter.case().given] == [False, False]
    assert counter.decision(counter.spec).missing == 2
    # Nor is a used one recorded a second time.
    with counter.state.change() as change:
        change.move(Attempt(counter.spec.job_id, 1), RunState.AWAITING_APPROVAL)
    counter.rejected("approval-used", commands[0])


def remapped(counter: Counter, **values: str) -> None:
    """Register the department's list again, with another mapping of its streets."""
    [people] = counter.state.datasets()
    mapping = pinned({"street": ColumnMapping(table="gbt2261.1@2003", values=values)}, None)
    mapped = replace(people, description=Description(mapping=mapping))
    counter.desk.handle("dataset", dataset_to_json(mapped))


def test_an_approval_is_void_once_values_become_other_codes(counter: Counter) -> None:
    remapped(counter, S0="1")
    counter.approve(counter.staff.dpo)
    counter.approve(counter.staff.owner)
    assert counter.answers[-1].answer == "permit"
    remapped(counter, S0="1")  # the same once more
    assert [given.counts for given in counter.case().given] == [True, True]
    remapped(counter, S0="2")
    assert [given.counts for given in counter.case().given] == [False, False]
    assert counter.decision(counter.spec).missing == 2
    with pytest.raises(MinshuError):
        counter.gate.allowed(Attempt(counter.spec.job_id, 1))
    assert findings(audited(counter.world, "health")) == set()


def test_a_waiting_job_is_answered_anew_when_values_become_other_codes(counter: Counter) -> None:
    counter.approve(counter.staff.dpo)
    assert counter.answers[-1].approvals_given == 1
    remapped(counter, S0="2")
    assert counter.answers[-1].approvals_given == 0
    assert counter.approve(counter.staff.dpo)["given"] == 1  # who approved may do so again


def test_one_person_counts_once_however_often_they_sign(counter: Counter) -> None:
    counter.approve(counter.staff.dpo)
    counter.rejected("approved-already", counter.command(counter.staff.dpo))


def test_a_key_the_policy_does_not_list_does_not_count(counter: Counter) -> None:
    counter.rejected("too-few-signatures", counter.command(new_signer()))


def test_a_policy_that_lets_a_requester_approve_does_not_come_into_force(world: World) -> None:
    staff = world.staff["health"]
    staff.dpo, before = world.analyst, staff.dpo
    try:
        with pytest.raises(PolicyInvalid, match="the key stands under requesters, too"):
            world.policy("health", version=2, previous=_digest(world), approvals=2)
    finally:
        staff.dpo = before


def test_a_requesters_approval_of_its_own_job_is_refused(world: World) -> None:
    counter = Counter(world)
    counter.rejected("too-few-signatures", counter.command(world.analyst))
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
    newer = counter.world.policy("health", version=2, previous=_digest(counter.world), queries=99)
    counter.desk.handle("policy", {"envelope": b64encode(newer)})
    assert counter.answers[-1].approvals_given == 0
    assert counter.approve(counter.staff.owner)["given"] == 1
    assert counter.approve(counter.staff.dpo)["state"] == "CHECKING"
    assert [given.counts for given in counter.case().given] == [False, True, True]


def test_a_yes_to_one_price_is_no_yes_to_another(counter: Counter) -> None:
    command = counter.command(counter.staff.dpo)
    newer = counter.world.policy("health", version=2, previous=_digest(counter.world), max_rows=900)
    counter.desk.handle("policy", {"envelope": b64encode(newer)})
    digest = decode_envelope(newer).payload_digest
    said = Approval.decode(decode_envelope(b64decode(command["envelope"])).payload)
    # The same words under the new policy still name what the job cost under the old one.
    moved = sign(APPROVAL, replace(said, policy_digest=digest).encode(), [counter.staff.dpo]).encode()
    counter.rejected("approval-cost", {**command, "envelope": b64encode(moved)})


def test_an_approval_names_the_whole_cost(counter: Counter) -> None:
    command = counter.command(counter.staff.dpo)
    said = Approval.decode(decode_envelope(b64decode(command["envelope"])).payload)
    assert Cost.decode(said.cost) == Cost(rows=1000, queries=1)


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
    page = counter.case().page()
    for part in (
        counter.spec.job_id,
        "analyst-1",
        "P-1 核查",
        "核实名单并补登",
        "id (key), seen (last_seen), street (street)",
        "present_in = at_least",
        "records",
        "street-table",
        "dpo",
        "1: AWAITING_APPROVAL",
    ):
        assert part in page
    for zh, en in (
        ("将输出", "What would leave"),
        ("谁会得知什么", "Who would learn what"),
        ("参与方", "Who takes part"),
        ("最多占用额度", "Counts against, at most"),
        ("rows: 1,000 条个人记录", "rows: 1,000 records about persons"),
        (
            "queries: 1 次查询; 本任务之前剩余 100 / 100",
            "queries: one question; left before this job: 100 / 100",
        ),
        ("(Asia/Shanghai)", "(Asia/Shanghai)"),
    ):
        assert zh in page
        assert en in page


def test_the_case_as_json_has_all_that_the_page_has(counter: Counter) -> None:
    counter.approve(counter.staff.dpo)
    plain = json.loads(json.dumps(counter.case().to_json(), ensure_ascii=False))
    assert (plain["answer"], plain["missing"], plain["approvers"]) == ("ask", 1, ["owner"])
    assert plain["job"]["expected_use"] == "核实名单并补登"
    assert plain["purpose_title"] == "核查"
    assert plain["requester"] == {"name": "analyst-1", "organisation": "data-bureau.gz.example"}
    assert {part["node"] for part in plain["job"]["takes_part"]} == set(counter.spec.roles.values())
    assert {line["budget"]: (line["cost"], line["remaining"]) for line in plain["lines"]} == {
        "queries": ("1", "100"),
        "rows": ("1000", "100000"),
    }
    assert [leaving["class"] for leaving in plain["releases"]] == ["B", "A"]
    assert plain["leaks"]
    [given] = plain["approvals"]
    assert (given["approver"], given["counts"]) == ("dpo", True)


# -- signed on the officer's own machine -------------------------------------------------------------------


def test_a_draft_that_openssl_signs_counts(counter: Counter, folder: Path) -> None:
    assert counter.force.policy is not None
    draft = draft_approval(
        counter.spec,
        counter.decision(counter.spec),
        counter.force.policy,
        now=START,
        rand=secrets.token_bytes,
    )
    (folder / "draft.pae").write_bytes(to_sign(draft))
    (folder / "dpo.pem").write_bytes(
        counter.staff.dpo.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    command = "openssl pkeyutl -sign -rawin -inkey dpo.pem -in draft.pae -out draft.sig"
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    envelope = assemble(draft, (folder / "draft.sig").read_bytes(), counter.staff.dpo.public_key)
    key = b64encode(counter.staff.dpo.public_key)
    body = {"job": counter.spec.job_id, "envelope": b64encode(envelope), "key": key}
    assert counter.desk.handle("approve", body)["approver"] == "dpo"


def test_a_draft_with_another_ones_signature_does_not_count(counter: Counter) -> None:
    assert counter.force.policy is not None
    terms = counter.decision(counter.spec)
    draft = draft_approval(counter.spec, terms, counter.force.policy, now=START, rand=secrets.token_bytes)
    forged = assemble(draft, new_signer().sign(to_sign(draft)), counter.staff.dpo.public_key)
    key = b64encode(counter.staff.dpo.public_key)
    body = {"job": counter.spec.job_id, "envelope": b64encode(forged), "key": key}
    counter.rejected("too-few-signatures", body)


@pytest.mark.parametrize(
    ("code", "draft", "signature"),
    [("bad-draft", b"{}", bytes(64)), ("bad-draft", b"\xff", bytes(64)), ("bad-signature-file", None, b"x")],
)
def test_what_is_no_draft_or_no_signature_is_told_apart(
    counter: Counter, code: str, draft: bytes | None, signature: bytes
) -> None:
    assert counter.force.policy is not None
    terms = counter.decision(counter.spec)
    good = draft_approval(counter.spec, terms, counter.force.policy, now=START, rand=secrets.token_bytes)
    with pytest.raises(InputError) as caught:
        assemble(good if draft is None else draft, signature, counter.staff.dpo.public_key)
    assert caught.value.code == code


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
