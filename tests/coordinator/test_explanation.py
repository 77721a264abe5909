"""Dry answers as the analyst gets them: what is believed, what is detected, what is printed."""

import json
from dataclasses import replace

import pytest
from collaboration import (
    BUREAU,
    HEALTH,
    INSURANCE,
    NODES,
    NOW,
    POLICE,
    SEATS,
    STATISTICS,
    Collaboration,
    signer,
)

from coordinator.client.explanation import Explanation, explained
from minshu.v1 import jobs_pb2
from protocols.encoding import canonical_json, decode_json
from protocols.envelope import EXPLAIN, JOB, VERDICT, Envelope, decode_envelope, key_id, sign, verify
from protocols.errors import DecodeError, SignatureInvalid
from protocols.ids import Role
from protocols.wire import CostLine, JobSpec, Leaving, organisation_of

EARLIER = "sha256:" + "e" * 64
COST = CostLine("elder_quarter", "zcdp", "0.1", "0.35", "0.5", NOW)
RECORDS = Leaving("records", "B", organisation_of(POLICE), Role("register"))
TABLE = Leaving("street-table", "A", BUREAU, Role("register"))


class Question:
    """One question, and the answers a coordinator would pass on."""

    def __init__(self, world: Collaboration) -> None:
        self.world = world
        self.roster = world.roster()
        self.spec = world.spec(self.roster)

    def answer(self, node: str, answer: str = "permit", *, attempt: int = 0, job: str = "", **changes):
        verdict = self.world.verdict(node, job or self.spec.job_id, attempt, answer, **changes)
        return jobs_pb2.ExplainResponse(node=node, verdict=verdict)

    def honest(self):
        return [self.answer(node) for node in NODES]

    def read(self, responses) -> Explanation:
        return explained(self.spec, self.roster, responses)


@pytest.fixture
def question(world):
    return Question(world)


# -- believed and not believed -----------------------------------------------------------------------


def test_every_node_of_the_job_has_one_answer_in_the_order_of_the_roles(question):
    found = question.read(reversed(question.honest()))
    assert [answer.role for answer in found.answers] == sorted(SEATS)
    assert {answer.node: answer.verdict.answer for answer in found.answers} == dict.fromkeys(NODES, "permit")
    assert not found.refused


def altered(response, **changes):
    """The same envelope around another text."""
    honest = decode_envelope(response.verdict)
    plain = canonical_json(decode_json(honest.payload) | changes)
    forged = Envelope(honest.payload_type, plain, honest.signatures).encode()
    return jobs_pb2.ExplainResponse(node=response.node, verdict=forged)


LIES = {
    "altered": lambda q: altered(q.answer(HEALTH, "refuse"), answer="permit"),
    "cheaper": lambda q: altered(q.answer(HEALTH, costs=(COST,)), costs=[]),
    "swapped": lambda q: jobs_pb2.ExplainResponse(node=HEALTH, verdict=q.answer(POLICE).verdict),
    "signed by another node": lambda q: q.answer(HEALTH, by=POLICE),
    "invented": lambda q: q.answer(HEALTH, by="mallory"),
    "of another question": lambda q: q.answer(HEALTH, job="sha256:" + "9" * 64),
    "an answer to an offer": lambda q: q.answer(HEALTH, attempt=1),
    "in another's name": lambda q: jobs_pb2.ExplainResponse(
        node=HEALTH, verdict=q.world.verdict(POLICE, q.spec.job_id, 0, "permit", by=HEALTH)
    ),
    "of a stranger": lambda q: q.answer("stranger.gz.example/node-a"),
    "signed as something else": lambda q: jobs_pb2.ExplainResponse(
        node=HEALTH,
        verdict=sign(JOB, decode_envelope(q.answer(HEALTH).verdict).payload, [signer(HEALTH)]).encode(),
    ),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_what_a_coordinator_alters_swaps_or_invents_is_detected(question, lie):
    responses = [one for one in question.honest() if one.node != HEALTH]
    with pytest.raises(SignatureInvalid):
        question.read([*responses, lie(question)])


def test_a_second_answer_of_a_node_is_detected(question):
    with pytest.raises(SignatureInvalid) as twice:
        question.read([*question.honest(), question.answer(HEALTH, "refuse")])
    assert twice.value.code == "wrong-subject"


def test_an_answer_of_a_node_that_the_roster_does_not_list_is_not_believed(question):
    nodes = tuple(node for node in question.roster.nodes if node.name != HEALTH)
    question.roster = replace(question.roster, nodes=nodes)
    with pytest.raises(SignatureInvalid) as unknown:
        question.read(question.honest())
    assert unknown.value.code == "not-in-roster"


def test_a_verdict_of_another_version_is_refused(question):
    plain = decode_json(decode_envelope(question.answer(HEALTH).verdict).payload)
    old = sign(VERDICT, canonical_json(plain | {"schema": "minshu-verdict/1"}), [signer(HEALTH)]).encode()
    with pytest.raises(DecodeError) as version:
        question.read([jobs_pb2.ExplainResponse(node=HEALTH, verdict=old)])
    assert version.value.code == "unknown-schema"


def test_answers_that_are_kept_back_show_as_missing(question):
    found = question.read([question.answer(POLICE), jobs_pb2.ExplainResponse(node=HEALTH, code="node-away")])
    codes = {answer.node: answer.code for answer in found.answers}
    assert codes == {POLICE: "", HEALTH: "node-away", INSURANCE: "no-answer", STATISTICS: "no-answer"}


# -- a question is no job ----------------------------------------------------------------------------


@pytest.mark.parametrize(("made", "taken"), [(JOB, EXPLAIN), (EXPLAIN, JOB)])
def test_a_signature_under_one_type_never_fits_the_other(world, made, taken):
    key = signer("li")
    envelope = sign(made, world.spec().encode(), [key])
    keys = {key_id(key.public_key): key.public_key}
    with pytest.raises(SignatureInvalid) as wrong:
        verify(envelope, taken, keys)
    assert wrong.value.code == "wrong-payload-type"
    renamed = Envelope(taken, envelope.payload, envelope.signatures)
    with pytest.raises(SignatureInvalid):
        verify(renamed, taken, keys)
    assert JobSpec.decode(envelope.payload)  # the text alone would pass: only the type tells them apart


# -- what is printed ---------------------------------------------------------------------------------


def mixed(question) -> Explanation:
    return question.read(
        [
            question.answer(POLICE, leaves=(RECORDS, TABLE), code="permitted"),
            question.answer(
                HEALTH, "ask", code="approval-needed", approvals_needed=2, approvers=("dpo", "owner"),
                costs=(COST,),
            ),
            question.answer(INSURANCE, "refuse", hint="ask in January"),
            jobs_pb2.ExplainResponse(node=STATISTICS, code="node-away"),
        ]
    )  # fmt: skip


def test_the_page_says_who_would_answer_what_at_which_cost(question):
    page = mixed(question).lines("en")
    assert page[:2] == [
        "crosscheck/1, P-2026-001, DPIA-2026-001",
        f"  expected use: {question.spec.expected_use}",
    ]
    assert f"{POLICE} (register): would run" in page
    assert (
        "what would leave:\n  records (B: records about persons, sealed to one recipient), from register to "
        in "\n".join(page)
    )
    assert f"{HEALTH} (source-2): needs 2 approval(s) by dpo, owner" in page
    assert "  cost: elder_quarter: ρ = 0.1; 0.35 of 0.5 left before it, until 2026-12-02T08:00:00Z" in page
    assert f"{INSURANCE} (source-1): refused" in page
    assert "  hint: ask in January" in page
    assert f"{STATISTICS} (matcher): away: it is not connected, so nobody knows what it would answer" in page
    assert (
        page[-1] == f"next: submitted now, it would be refused by {INSURANCE}; follow the hints above first"
    )


def test_the_page_is_there_in_chinese(question):
    page = mixed(question).lines("zh")
    assert f"{HEALTH} (source-2): 需要 2 份审批: dpo, owner" in page
    assert f"{STATISTICS} (matcher): 离线: 节点未连接, 无法得知其答复" in page
    assert page[-1].startswith("下一步: 现在提交会被 ")


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ({}, "submitted now, it would run"),
        ({HEALTH: {"answer": "ask", "approvals_needed": 1}}, f"it would wait for 1 approval(s) at {HEALTH}"),
        ({HEALTH: {"answer": "ask", "code": "window-closed"}}, f"it would wait for the hours of {HEALTH}"),
        ({HEALTH: None}, f"it would wait until {HEALTH} is there"),
        ({n: {"answer": "refuse", "answered": EARLIER} for n in NODES}, f"the releases of job {EARLIER}"),
        ({HEALTH: {"answer": "refuse", "answered": EARLIER}}, f"refused by {HEALTH}"),
    ],
)
def test_the_last_line_says_what_happens_next(question, answers, says):
    responses = [
        question.answer(node, **(answers.get(node, {}) or {"answer": "permit"}))
        for node in NODES
        if answers.get(node, {}) is not None
    ]
    found = question.read(responses)
    assert says in found.next("en")
    assert found.next("zh")
    assert found.refused == ("refused" in found.next("en"))


def test_as_json_it_carries_what_every_node_signed(question):
    plain = json.loads(json.dumps(mixed(question).to_json()))
    answers = {one["node"]: one for one in plain["answers"]}
    assert (plain["refused"], plain["answered_before"]) == (True, None)
    assert answers[HEALTH]["verdict"]["costs"][0]["remaining"] == "0.35"
    assert answers[STATISTICS]["verdict"] is None
    signed = decode_envelope(answers[POLICE]["envelope"].encode())
    public = signer(POLICE).public_key
    assert verify(signed, VERDICT, {key_id(public): public})


def test_a_notebook_shows_it_and_runs_nothing(question):
    hostile = "<script>alert(1)</script>"
    responses = question.honest()
    responses[0] = question.answer(POLICE, "refuse", sentence=hostile, hint=hostile, rule=hostile)
    html = question.read(responses)._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "would run" in html
