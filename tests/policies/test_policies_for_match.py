"""The example policy for `match/1`: two departments compare a column, each learns which of its own differ."""

from dataclasses import replace
from typing import Any

import pytest

from policies.attempts import set_aside
from policies.decide import decide
from policies.decision import Ask, Decision, Refuse
from policies.explain import explain_policy
from policies.history import Remembered
from policies.model import ActivePolicy
from policies.parse import cautions, parse_policy
from protocols.dp.cost import Cost
from protocols.ids import DatasetName, JobId, Organisation
from protocols.jobs.match import RECEIVER, SENDER
from protocols.wire import JobInput, JobSpec

OWN = "health"  # stands for the department of the example
VALUES = [["10"], ["20", "21", "22", "23"], ["30"], ["40"]]
COLUMNS = {"key": "person_id", "value": "marital", "last_seen": "registered_month"}


MARITAL = 'marital = { type = "enum", use = ["carry"], values = ["10", "20", "21", "22", "23", "30", "40"] }'


def policy(world: Any, marital: str = MARITAL) -> ActivePolicy:
    text = (world.examples / "match.toml").read_text("utf-8").replace("civil-affairs", OWN)
    assert MARITAL in text
    text = text.replace(MARITAL, marital)
    for letter, name in (("a", "analyst"), ("d", f"{OWN} dpo"), ("e", f"{OWN} owner")):
        text = text.replace("sha256:" + letter * 64, world.key(name))
    parsed = parse_policy(text.encode())
    assert cautions(parsed) == []
    for language in ("zh", "en"):
        assert "match/1" in explain_policy(parsed, language)
    return ActivePolicy(parsed.policy, parsed.digest)


def job(world: Any, receiver: str, **changes: Any) -> JobSpec:
    """A match of the department's list with that of the police, in one direction or the other."""
    sender = "police" if receiver == OWN else OWN
    roles = {RECEIVER: world.node(receiver), SENDER: world.node(sender)}
    spec = world.spec(
        job_type="match/1",
        params={"receiver_keys": 150_000, "compare": "differs", "values": VALUES},
        inputs=tuple(
            JobInput(
                role,
                Organisation(f"{name}.gz.example"),
                DatasetName("marriages" if name == OWN else "population"),
                COLUMNS,
            )
            for role, name in ((RECEIVER, receiver), (SENDER, sender))
        ),
        roles=roles,
        purpose="P-2026-009" if receiver == OWN else "P-2026-008",
        legal_basis="DPIA-2026-046" if receiver == OWN else "DPIA-2026-045",
        recipients=(Organisation(f"{receiver}.gz.example"),),
    )
    return replace(spec, **changes)


def asked(world: Any, spec: JobSpec, *rows: Any) -> Decision:
    return decide(
        policy(world),
        spec,
        node=world.node(OWN),
        roster=world.roster,
        now=world.now,
        history=Remembered(tuple(rows)),
    )


def test_in_either_direction_two_people_are_asked_and_the_sender_counts_every_key(world: Any) -> None:
    for receiver, rule, rows in (("police", "R1", 150_000), (OWN, "R2", 0)):
        answer = asked(world, job(world, receiver))
        assert isinstance(answer, Ask), answer
        assert (answer.rule, answer.missing) == (rule, 2)
        assert (answer.terms.cost.rows, answer.terms.cost.queries) == (rows, 1)
        (release,) = answer.terms.releases
        assert release.recipient == f"{receiver}.gz.example"
        assert {leak.statement.key for leak in answer.terms.leaks if leak.ours} >= {"list-sizes"}


def answered(world: Any, spec: JobSpec, nonce: str) -> Any:
    """Return the ledger's row of a job that was answered here."""
    answer = asked(world, replace(spec, nonce=nonce * 32))
    assert isinstance(answer, Ask)
    row = set_aside(spec, 1, answer.terms, world.now)
    return replace(row, job=JobId("sha256:" + nonce * 64), charged=True)


def test_both_directions_one_after_the_other_are_no_difference_of_groups(world: Any) -> None:
    first = answered(world, job(world, "police"), "1")
    assert isinstance(asked(world, job(world, OWN), first), Ask)
    coarser = {"receiver_keys": 150_000, "compare": "differs", "values": [["10"], VALUES[1]]}
    refusal = asked(world, job(world, OWN, params=coarser), first)
    assert isinstance(refusal, Refuse)
    assert refusal.code == "differencing"


def test_rate_and_quota_of_records_end_the_asking(world: Any) -> None:
    first, second = (answered(world, job(world, "police"), nonce) for nonce in "12")
    assert isinstance(asked(world, job(world, "police"), first), Ask)
    third = asked(world, job(world, "police"), first, second)
    assert isinstance(third, Refuse)
    assert third.code == "rate-exceeded"
    long = replace(first, cost=Cost(rows=250_001, queries=1))  # of 400,000
    refusal = asked(world, job(world, "police"), long)
    assert isinstance(refusal, Refuse)
    assert refusal.code == "budget-exceeded"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"params": {"receiver_keys": 9, "compare": "differs", "values": [["10"], ["90"]]}}, "column-values"),
        ({"params": {"receiver_keys": 9, "compare": "same"}}, "bad-params"),
        (
            {"params": {"receiver_keys": 200_001, "compare": "differs", "values": VALUES}},
            "rows-above-rule",  # before anybody is asked to approve
        ),
        ({"purpose": "P-2026-009", "legal_basis": "DPIA-2026-046"}, "role-not-allowed"),
    ],
)
def test_what_the_example_does_not_open_is_refused(world: Any, change: dict[str, Any], code: str) -> None:
    answer = asked(world, job(world, "police", **change))
    assert isinstance(answer, Refuse)
    assert answer.code == code


@pytest.mark.parametrize(
    ("marital", "code"),
    [
        # Officers read a filter as what selects rows; the receiver learns about this value.
        (MARITAL.replace("carry", "filter"), "column-use"),
        # Values one by one would pass by the groups that the policy allows.
        ('marital = { type = "int", use = ["carry"], range = [10, 40], bins = [10, 20, 30] }', "column-type"),
    ],
)
def test_a_column_that_is_not_open_to_comparison_is_not_compared(world: Any, marital: str, code: str) -> None:
    answer = decide(
        policy(world, marital),
        job(world, "police"),
        node=world.node(OWN),
        roster=world.roster,
        now=world.now,
        history=Remembered(()),
    )
    assert isinstance(answer, Refuse)
    assert answer.code == code
