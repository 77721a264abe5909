from pathlib import Path
from typing import Any

import pytest

from policies.decide import check_merged, decide
from policies.decision import Ask, Permit
from policies.explain import explain_policy
from policies.model import Rate
from policies.parse import cautions, parse_policy
from protocols.jobs import JOB_TYPES
from protocols.jobs.job_type import OutputClass
from protocols.wire import strictest

EXAMPLES = sorted((Path(__file__).parents[2] / "policies" / "examples").glob("*.toml"))
NAMES = ("police", "human-resources", "health", "housing", "education", "statistics")
DEPARTMENTS = [path for path in EXAMPLES if path.stem in NAMES]
"""The departments of the first scenario; the other examples are called after a job type."""


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_parses_and_can_be_activated(path: Path):
    parsed = parse_policy(path.read_bytes())
    assert parsed.policy.defaults.release_requires == "cosigned"
    # The example for releases lets the department publish numbers of its own, and says so; the one for scores
    # lets who asks write weights.
    assert len(cautions(parsed)) == (path.stem in {"release", "score-joined"})
    for language in ("zh", "en"):
        text = explain_policy(parsed, language)
        assert all(rule.id in text for rule in parsed.policy.rules)
        assert all(entry.reason in text for entry in parsed.policy.negative_list)


def test_the_examples_are_the_departments_of_the_first_scenario_and_one_for_other_job_types():
    assert {path.stem for path in DEPARTMENTS} == set(NAMES)
    for path in DEPARTMENTS:
        assert parse_policy(path.read_bytes()).policy.policy_id == f"{path.stem}.gz.example/node-a"
    for path in set(EXAMPLES) - set(DEPARTMENTS):
        # lookup-clerk: another seat of lookup/1
        names = (f"{path.stem}/1", path.stem.partition("-")[0] + "/1")
        job_type = next(name for name in names if name in {known.name for known in JOB_TYPES})
        assert any(job_type in rule.job_types for rule in parse_policy(path.read_bytes()).policy.rules)


def test_under_the_examples_the_first_scenario_runs_once_everybody_has_approved(world: Any):
    spec = world.spec()
    permits = []
    for path in DEPARTMENTS:
        active = world.active(path.stem)
        common = {"node": world.node(path.stem), "roster": world.roster, "now": world.now}
        asked = decide(active, spec, **common)
        assert isinstance(asked, Permit if path.stem == "statistics" else Ask)
        approvals = world.verified(active, spec, cost=asked.terms.cost.encode())
        permit = decide(active, spec, **common, approvals=approvals)
        assert isinstance(permit, Permit)
        permits.append(permit)
    merged = strictest(permit.terms.constraints for permit in permits)
    assert all(check_merged(permit, merged, spec) is None for permit in permits)


def test_the_examples_say_which_failed_jobs_a_rate_counts():
    # An attempt that told nothing is freed again, whoever brought it about.
    lines = [line for path in EXAMPLES for line in path.read_text("utf-8").splitlines() if "rate = {" in line]
    assert {line.partition("#")[2].strip() for line in lines} == {
        "",
        "one that failed counts, unless it told nothing",
    }
    assert "unless it told nothing" in (Rate.__doc__ or "")


LIMITS = {"police": {"questions"}, "statistics": set()}


@pytest.mark.parametrize("path", DEPARTMENTS, ids=lambda path: path.stem)
def test_the_examples_limit_what_leaks_without_noise(path: Path, world: Any):
    policy = parse_policy(path.read_bytes()).policy
    (rule,) = policy.rules
    assert set(rule.quotas) == set(policy.quotas) == LIMITS.get(path.stem, {"records", "questions"})
    assert all(quota.scope == "per-purpose" for quota in policy.quotas.values())
    assert rule.rate is not None
    assert (rule.rate.jobs, rule.rate.per) == (10, "month")
    decision = decide(
        world.active(path.stem), world.spec(), node=world.node(path.stem), roster=world.roster, now=world.now
    )
    assert {line.budget for line in decision.terms.lines} == set(policy.quotas)
    # Three full lists a quarter, however many jobs the rate would let run.
    records = [line for line in decision.terms.lines if line.notion == "rows"]
    assert all((line.cost, line.limit) == ("20000", "60000") for line in records)


def test_in_the_examples_records_leave_for_the_police_alone(world: Any):
    for path in DEPARTMENTS:
        decision = decide(
            world.active(path.stem),
            world.spec(),
            node=world.node(path.stem),
            roster=world.roster,
            now=world.now,
        )
        assert isinstance(decision, Ask | Permit)
        for release in decision.terms.releases:
            directed = release.output_class is OutputClass.DIRECTED
            assert directed == (release.recipient == "police.gz.example")
