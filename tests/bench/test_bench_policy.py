"""The measured decisions are whole ones, on a policy and a past of the size that the row claims."""

from bench import policy
from bench.rows import Results
from policies.decide import decide
from policies.decision import Permit


def test_every_job_of_the_measurement_is_permitted_after_every_check():
    department = policy.Department.open()
    assert len(department.active.policy.rules) == 100
    assert len(department.history.rows) == 1000
    rules = set()
    for job, approvals in department.jobs:
        answer = decide(
            department.active,
            job,
            node=department.node,
            roster=department.roster,
            now=policy.NOW,
            approvals=approvals,
            history=department.history,
        )
        assert isinstance(answer, Permit)
        assert len(answer.approvals) == 2
        assert len(answer.terms.lines) == 2
        assert all(line.remaining != line.limit for line in answer.terms.lines)
        rules.add(answer.rule)
    assert len(rules) == 100


def test_known_and_new_jobs_are_measured_beside_bare_signatures(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.rows.OUT", tmp_path)
    monkeypatch.setattr("bench.rows.commit", lambda: "abc1234")
    monkeypatch.setattr(policy, "DECISIONS", 8)
    monkeypatch.setattr(policy, "TURNS", 1)
    results = Results("policy")
    policy.measure(results, long=False)
    assert [(row.what, row.unit) for row in results.rows] == [
        ("decide", "decisions/s"),
        ("decide first", "decisions/s"),
    ]
    assert all(row.value > 0 and row.ratio for row in results.rows)
