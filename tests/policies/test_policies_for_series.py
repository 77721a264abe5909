"""The example policy for `crosscheck-series/1`: how many days keys may live is said, or nothing runs."""

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from policies.decide import decide
from policies.decision import Ask, Decision, Permit, Refuse
from policies.diff import diff, overall
from policies.explain import explain_policy
from policies.model import ActivePolicy, Policy
from policies.parse import cautions, parse_policy
from protocols.wire import JobSpec

OWN = "human-resources"


def policy(world: Any, days: int | None = 30) -> ActivePolicy:
    """Return the example in force; the policy's own check is not asked where no days are named."""
    text = (world.examples / "crosscheck-series.toml").read_text("utf-8")
    for letter, name in (("a", "analyst"), ("d", f"{OWN} dpo"), ("e", f"{OWN} owner")):
        text = text.replace("sha256:" + letter * 64, world.key(name))
    parsed = parse_policy(text.encode())
    assert cautions(parsed) == []
    rules = tuple(msgspec.structs.replace(rule, max_series_days=days) for rule in parsed.policy.rules)
    return ActivePolicy(msgspec.structs.replace(parsed.policy, rules=rules), parsed.digest)


def job(world: Any, day: int = 1) -> JobSpec:
    spec = world.spec()
    later = {} if day == 1 else {"first": "sha256:" + "1" * 64, "day": day}
    return replace(spec, job_type="crosscheck-series/1", params={**spec.params, **later})


def decided(world: Any, active: ActivePolicy, spec: JobSpec, node: str = OWN) -> Decision:
    return decide(active, spec, node=world.node(node), roster=world.roster, now=world.now)


@pytest.mark.parametrize("day", [1, 2, 30])
def test_each_day_of_a_series_is_asked_of_people_and_costs_its_row_cap(world: Any, day: int):
    answer = decided(world, policy(world), job(world, day))
    assert isinstance(answer, Ask), answer
    assert answer.terms.constraints.max_series_days == 30
    assert (answer.terms.cost.rows, answer.terms.cost.queries) == (2000, 1)
    assert {"kept", "churn", "linked-days"} <= {leak.statement.key for leak in answer.terms.leaks}


def test_a_day_beyond_is_refused_and_so_is_every_day_where_no_number_is_named(world: Any):
    answer = decided(world, policy(world), job(world, 31))
    assert isinstance(answer, Refuse)
    assert (answer.code, answer.rule) == ("series-over", "R1")
    assert "31" in answer.sentence
    assert "31" in answer.zh
    for day in (1, 2):
        answer = decided(world, policy(world, None), job(world, day))
        assert isinstance(answer, Refuse)
        assert answer.code == "series-not-allowed"


def test_the_matcher_keeps_nothing_and_needs_no_number_but_its_own_holds(world: Any):
    text = (
        (world.examples / "statistics.toml").read_text("utf-8").replace("crosscheck/1", "crosscheck-series/1")
    )
    text = text.replace("sha256:" + "a" * 64, world.key("analyst"))
    parsed = parse_policy(text.encode())

    def answer(days: int | None) -> Decision:
        rules = tuple(msgspec.structs.replace(rule, max_series_days=days) for rule in parsed.policy.rules)
        changed = msgspec.structs.replace(parsed.policy, rules=rules)
        return decided(world, ActivePolicy(changed, parsed.digest), job(world, 9), "statistics")

    assert isinstance(answer(None), Permit), answer(None)
    refused = answer(8)
    assert isinstance(refused, Refuse)
    assert refused.code == "series-over"


def test_officers_are_told_for_how_long_and_when_that_changes(world: Any):
    parsed = parse_policy((world.examples / "crosscheck-series.toml").read_bytes())
    assert "a series of daily questions for at most 30 days, for which its keys are kept" in explain_policy(
        parsed, "en"
    )
    assert "逐日系列不超过 30 天, 其密钥保存期限相同" in explain_policy(parsed, "zh")

    def with_days(days: int | None) -> Policy:
        return policy(world, days).policy

    for old, new, effect, zh in (
        (None, 30, "looser", "逐日系列的天数上限 无 → 30"),
        (30, 60, "looser", "逐日系列的天数上限 30 → 60"),
        (60, 30, "tighter", "逐日系列的天数上限 60 → 30"),
        (30, None, "tighter", "逐日系列的天数上限 30 → 无"),
    ):
        changes = diff(with_days(old), with_days(new))
        assert overall(changes).name.lower() == effect
        assert zh in changes[0].zh
