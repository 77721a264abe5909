"""The demonstration's clause for overlaps: other names of datasets buy no more answers than its words say."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from demo.collaboration import with_overlaps
from policies.parse import cautions, parse_policy

ROOT = Path(__file__).parents[2]
CLAUSE = (ROOT / "demo" / "scenarios" / "scenario_1" / "overlap.policy.toml").read_text("utf-8")


def policy(department: str, dataset: str) -> Any:
    text = (ROOT / "policies" / "examples" / f"{department}.toml").read_text("utf-8")
    for letter, digit in (("a", "1"), ("d", "2"), ("e", "3")):
        text = text.replace(letter * 64, digit * 64)
    return parse_policy(with_overlaps(text, dataset, CLAUSE).encode())


@pytest.mark.parametrize(("department", "dataset"), [("education", "enrolment"), ("housing", "leases")])
def test_overlaps_are_held_by_a_limit_that_knows_no_names_of_partners(department: str, dataset: str) -> None:
    parsed = policy(department, dataset)
    assert cautions(parsed) == []
    (rule,) = [rule for rule in parsed.policy.rules if rule.job_types == ("overlap/1",)]
    (quota,) = [parsed.policy.quotas[name] for name in rule.quotas]
    assert (quota.dataset, quota.counts, quota.limit, quota.scope) == (dataset, "queries", 2, "per-purpose")
    assert rule.rate is not None
    # One pair has one answer at ε = 0.5, all pairs together two of at most the budget, as the words say.
    limit = parsed.policy.budgets[rule.budget].limit
    assert limit < 2 * Fraction(1, 2)
    assert quota.limit * limit == Fraction("1.8")
