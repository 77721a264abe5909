"""Budgets and quotas that count for each pair of datasets: no pair is ever given more than the limit."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace as with_clauses

from policies.attempts import set_aside
from policies.decide import decide
from policies.decision import Decision, Permit, Refuse
from policies.explain import explain_policy
from policies.history import ALONE, Past, Remembered, partners_of
from policies.model import ActivePolicy, Budget, Quota, Unit
from policies.parse import cautions, parse_policy
from protocols.dp.cost import Cost
from protocols.encoding import sha256_digest
from protocols.ids import DatasetName, JobId, Role
from protocols.wire import JobSpec

OWN = Role("source-1")
HEALTH, HOUSING = "health.gz.example:patients", "housing.gz.example:leases"
OTHERS = ("source-2", "source-3", "source-4")
QUOTA = Quota(dataset="insured", counts="queries", limit=2, period="calendar-quarter", scope="per-pair")
BUDGET = Budget(
    dataset="insured", notion="zcdp", limit=Fraction(1, 4), period="calendar-quarter", scope="per-pair"
)


@dataclass
class Node:
    """The human resources department, one rule of which allows counts, and its ledger."""

    world: Any
    quotas: Sequence[Quota] = ()
    budget: Budget | None = None
    now: datetime = datetime(2026, 12, 2, 3, 4, 5, tzinfo=UTC)
    rows: list[Past] = field(default_factory=list)

    def spec(self, *others: str, **params: Any) -> JobSpec:
        """A count of persons by street, joined with what these roles bring."""
        spec: JobSpec = self.world.count(**params)
        taken = {OWN, *map(Role, others)}
        return replace(
            spec,
            inputs=tuple(i for i in spec.inputs if i.role in taken),
            roles={role: node for role, node in spec.roles.items() if role in {*taken, "matcher"}},
            nonce=f"{len(self.rows):032x}",
        )

    def answer(self, spec: JobSpec) -> Decision:
        active = self.world.active()
        quotas = {f"quota-{number}": quota for number, quota in enumerate(self.quotas)}
        insured = with_clauses(
            active.policy.datasets["insured"], unit=Unit(column="resident_id", max_rows=12)
        )
        rule = with_clauses(
            active.policy.rules[0],
            job_types=("count/1",),
            recipients=("bureau",),
            rate=None,
            approvals=0,
            persons_in=1,
            min_sources=None,
            quotas=tuple(quotas),
            budget=None if self.budget is None else "privacy",
        )
        policy = with_clauses(
            active.policy,
            datasets={"insured": insured},
            quotas=quotas,
            budgets={} if self.budget is None else {"privacy": self.budget},
            rules=(rule,),
        )
        return decide(
            ActivePolicy(policy, active.digest),
            spec,
            node=self.world.node("human-resources"),
            roster=self.world.roster,
            now=self.now,
            history=Remembered(tuple(self.rows)),
            attempt=1,
            job_types=self.world.types,
        )

    def ask(self, *others: str, **params: Any) -> Permit | Refuse:
        """Ask, and set aside what is allowed."""
        spec = self.spec(*others, **params)
        decision = self.answer(spec)
        if isinstance(decision, Permit):
            self.rows.append(set_aside(spec, 1, decision.terms, self.now))
        assert isinstance(decision, Permit | Refuse)
        return decision


def fits(decision: Decision) -> bool:
    if isinstance(decision, Refuse):
        assert decision.code == "budget-exceeded"
    return isinstance(decision, Permit)


def test_partners_are_the_datasets_of_others_by_organisation_and_name(world: Any):
    node = Node(world)
    assert partners_of(node.spec("source-3", "source-2"), OWN) == (HEALTH, HOUSING)
    assert partners_of(node.spec(), OWN) == ()
    assert partners_of(node.spec("source-2"), Role("matcher")) == ()


def test_each_pair_has_the_whole_limit(world: Any):
    node = Node(world, [QUOTA])
    assert [fits(node.ask("source-2")) for _ in range(3)] == [True, True, False]
    assert [fits(node.ask("source-3")) for _ in range(3)] == [True, True, False]


def test_a_job_with_several_partners_has_to_fit_each_pair_and_counts_for_each(world: Any):
    node = Node(world, [QUOTA])
    assert fits(node.ask("source-2", "source-3"))
    assert fits(node.ask("source-2"))
    refused = node.ask("source-3", "source-2", "source-4")
    assert not fits(refused)
    assert isinstance(refused, Refuse)
    assert f"with {HEALTH}, 0 is left" in refused.sentence
    assert f"与 {HEALTH} 联合的任务" in refused.zh
    assert fits(node.ask("source-3", "source-4"))
    assert not fits(node.ask("source-3"))
    assert fits(node.ask("source-4"))


def test_a_line_shows_what_the_tightest_pair_has_left(world: Any):
    node = Node(world, [QUOTA])
    node.ask("source-3")
    decision = node.answer(node.spec("source-2", "source-3"))
    assert isinstance(decision, Permit)
    assert [(line.remaining, line.cost, line.limit) for line in decision.terms.lines] == [("1", "1", "2")]


def test_a_job_over_the_dataset_alone_is_a_pair_of_its_own(world: Any):
    node = Node(world, [QUOTA])
    assert [fits(node.ask()) for _ in range(3)] == [True, True, False]
    refused = node.answer(node.spec())
    assert isinstance(refused, Refuse)
    assert "for jobs over this dataset alone" in refused.sentence
    assert fits(node.ask("source-2"))


def test_what_nobody_remembers_the_partners_of_counts_for_every_pair(world: Any):
    node = Node(world, [QUOTA])
    node.ask("source-2")
    node.rows[0] = replace(node.rows[0], partners=None)
    for others in ((), ("source-2",), ("source-3",), ("source-2", "source-4")):
        node.rows[1:] = []
        assert [fits(node.ask(*others)) for _ in range(2)] == [True, False]


def test_a_dataset_of_another_name_is_another_pair_and_only_a_limit_for_all_holds_it(world: Any):
    alone = Node(world, [QUOTA])
    both = Node(world, [QUOTA, with_clauses(QUOTA, limit=3, scope="all-requesters")])
    for node, answers in ((alone, [True] * 5), (both, [True] * 3 + [False] * 2)):
        for number, expected in enumerate(answers):
            spec = node.spec("source-2")
            renamed = tuple(
                i if i.role == OWN else replace(i, dataset=DatasetName(f"patients-{number}"))
                for i in spec.inputs
            )
            decision = node.answer(spec := replace(spec, inputs=renamed))
            assert fits(decision) is expected
            if isinstance(decision, Permit):
                node.rows.append(set_aside(spec, 1, decision.terms, node.now))


def test_who_signs_is_warned_of_limits_for_each_pair_alone(world: Any):
    text = world.text()
    each = text.replace('scope = "per-purpose"', 'scope = "per-pair"')
    (caution,) = cautions(parse_policy(each.encode()))
    assert "(questions, records)" in caution.en
    assert "合并计算" in caution.zh
    one = text.replace('limit = 12\nperiod = "calendar-quarter"\nscope = "per-purpose"',
                       'limit = 12\nperiod = "calendar-quarter"\nscope = "per-pair"')  # fmt: skip
    assert cautions(parse_policy(one.encode())) == []
    page = explain_policy(parse_policy(one.encode()), "en")
    assert (
        "at most 12 questions in a calendar quarter, for each dataset of others that it is joined with"
        in page
    )
    assert "按与之联合的每个他方数据集分别计算" in explain_policy(parse_policy(one.encode()), "zh")


def warned(text: str) -> list[str]:
    return [caution.en for caution in cautions(parse_policy(text.encode()))]


def test_a_quota_that_a_job_never_spends_does_not_hold_limits_for_each_pair(world: Any):
    text = world.text("overlap")
    assert warned(text) == []
    # An overlap gives no records away: a quota of rows stays as full as it was.
    rows = {'counts = "queries"': 'counts = "rows"'}
    (caution,) = warned(world.edited(text, rows))
    assert "(overlaps)" in caution
    together = {'scope = "per-pair"': 'scope = "all-requesters"'}
    assert warned(world.edited(text, rows | together)) == []


def test_a_register_gives_no_records_so_a_quota_of_rows_counts_nothing_of_it(world: Any):
    text = world.text("police")
    assert warned(text) == []
    (caution,) = warned(world.edited(text, {'counts = "queries"': 'counts = "rows"'}))
    assert "no quota counts what is answered" in caution


def test_periods_begin_anew_for_each_pair(world: Any):
    node = Node(world, [with_clauses(QUOTA, period="day")])
    assert [fits(node.ask("source-2")) for _ in range(3)] == [True, True, False]
    node.now += timedelta(days=1)
    assert fits(node.ask("source-2"))


partner_sets = st.sampled_from([c for n in range(4) for c in combinations(OTHERS, n)])
ends = st.sampled_from(["under way", "charged", "charged", "freed", "forgotten"])


@settings(max_examples=40, deadline=None)
@given(
    jobs=st.lists(st.tuples(partner_sets, st.sampled_from(["1/16", "1/8", "1/5"]), ends), max_size=12),
    order=st.randoms(use_true_random=False),
)
def test_no_pair_is_ever_given_more_than_the_limit(
    world: Any, jobs: list[tuple[tuple[str, ...], str, str]], order: Any
):
    """Whatever is asked in whichever order, wherever an attempt ends: freed, charged, its partners lost."""
    node = Node(world, [with_clauses(QUOTA, limit=3)], BUDGET)
    truth: list[Past] = []
    for number, (others, rho, end) in enumerate(jobs):
        node.now += timedelta(minutes=1)
        spec = replace(node.spec(*others, rho=rho), nonce=f"{number:032x}")
        decision = node.answer(spec)
        if not fits(decision):
            continue
        assert isinstance(decision, Permit)
        row = set_aside(spec, 1, decision.terms, node.now)
        if end != "freed":
            truth.append(row)
            node.rows.append(replace(row, partners=None) if end == "forgotten" else row)
            order.shuffle(node.rows)
    for pair in {name for row in truth for name in row.partners or (ALONE,)}:
        costs = [row.cost for row in truth if pair in (row.partners or (ALONE,))]
        assert sum((cost.rho for cost in costs), Fraction(0)) <= BUDGET.limit
        assert sum(cost.queries for cost in costs) <= 3


@settings(max_examples=60, deadline=None)
@given(
    before=st.lists(partner_sets, max_size=6),
    asked=partner_sets,
    limit=st.integers(1, 4),
)
def test_a_job_is_answered_where_every_pair_has_room_and_only_there(
    world: Any, before: list[tuple[str, ...]], asked: tuple[str, ...], limit: int
):
    node = Node(world, [with_clauses(QUOTA, limit=limit)])
    for number, others in enumerate(before):
        spec = node.spec(*others)
        node.rows.append(
            Past(
                job=JobId(sha256_digest(str(number).encode())), attempt=1, time=node.now,
                requester=spec.requester, purpose=spec.purpose, job_type="count/1", source="insured",
                unit="", cost=Cost(queries=1), query=None, charged=True, exact=False, rule="R1",
                partners=partners_of(spec, OWN),
            )
        )  # fmt: skip
    room = all(
        sum(one in others for others in before) < limit for one in asked
    ) if asked else sum(not others for others in before) < limit  # fmt: skip
    assert fits(node.answer(node.spec(*asked))) is room


@pytest.mark.parametrize("scope", ["all-requesters", "per-requester", "per-purpose"])
def test_other_limits_do_not_ask_with_whom(world: Any, scope: Any):
    node = Node(world, [with_clauses(QUOTA, scope=scope)])
    assert [fits(node.ask(other)) for other in OTHERS] == [True, True, False]
