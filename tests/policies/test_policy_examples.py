from pathlib import Path
from typing import Any

import pytest

from policies.decide import Ask, Permit, check_merged, decide
from policies.explain import explain_policy
from policies.parse import parse_policy, unsupported_clauses
from protocols.jobs.job_type import OutputClass
from protocols.wire import strictest

EXAMPLES = sorted((Path(__file__).parents[2] / "policies" / "examples").glob("*.toml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_parses_and_can_be_activated(path: Path):
    parsed = parse_policy(path.read_bytes())
    assert parsed.policy.policy_id == f"{path.stem}.gz.example/node-a"
    assert unsupported_clauses(parsed) == []
    for language in ("zh", "en"):
        text = explain_policy(parsed, language)
        assert all(rule.id in text for rule in parsed.policy.rules)
        assert all(entry.reason in text for entry in parsed.policy.negative_list)


def test_the_examples_are_the_departments_of_the_first_scenario():
    names = {path.stem for path in EXAMPLES}
    assert names == {"police", "human-resources", "health", "housing", "education", "statistics"}


def test_under_the_examples_the_first_scenario_runs_once_everybody_has_approved(world: Any):
    spec = world.spec()
    permits = []
    for path in EXAMPLES:
        active = world.active(path.stem)
        approvals = world.verified(active, spec)
        common = {"node": world.node(path.stem), "roster": world.roster, "now": world.now}
        asked = decide(active, spec, **common)
        assert isinstance(asked, Permit if path.stem == "statistics" else Ask)
        permit = decide(active, spec, **common, approvals=approvals)
        assert isinstance(permit, Permit)
        permits.append(permit)
    merged = strictest(permit.terms.constraints for permit in permits)
    assert all(check_merged(permit, merged, spec) is None for permit in permits)


def test_in_the_examples_records_leave_for_the_police_alone(world: Any):
    for path in EXAMPLES:
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
