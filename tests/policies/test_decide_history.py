"""What a node has answered before, and what else may stand in the way today: stops, windows, two people."""

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, time, timedelta
from fractions import Fraction
from typing import Any

import pytest
from msgspec.structs import replace as with_clauses

from policies.decide import decide
from policies.decision import Ask, Decision, Permit, Refuse
from policies.history import Past, Remembered, ledger_time
from policies.limits import ATTEMPTS_PER_JOB
from policies.model import ActivePolicy, Budget, Column, Quota, Rate, Requester, Rule, Stop, Unit, Window
from protocols.dp.cost import NOTHING, Cost
from protocols.encoding import sha256_digest
from protocols.ids import JobId, KeyId, Role
from protocols.statistics.differencing import Query
from protocols.wire import Constraints, JobSpec

QUARTER_ENDS = datetime(2026, 12, 31, 16, tzinfo=UTC)  # midnight in Shanghai
BUDGET = Budget(
    dataset="insured", notion="zcdp", limit=Fraction(1, 2), period="calendar-quarter", scope="all-requesters"
)
QUOTA = Quota(
    dataset="insured", counts="rows", limit=60_000, period="calendar-quarter", scope="all-requesters"
)
DAY = timedelta(days=1)


@dataclass(frozen=True)
class Node:
    """The human resources department: one rule for both job types, its ledger, its clock."""

    world: Any
    active: ActivePolicy
    rows: tuple[Past, ...] = ()
    now: datetime = field(default=datetime(2026, 12, 2, 3, 4, 5, tzinfo=UTC))

    @classmethod
    def of(cls, world: Any, *, dataset: dict[str, Any] | None = None, **clauses: Any) -> "Node":
        """`clauses` are the rule's; a Budget or a Quota stands for its name."""
        active = world.active()
        clauses = {"rate": None, "window": None, **clauses}
        budget, quotas = clauses.pop("budget", None), clauses.pop("quotas", ())
        unit = {"unit": Unit(column="resident_id", max_rows=12), **(dataset or {})}
        policy = with_clauses(
            active.policy,
            datasets={"insured": with_clauses(active.policy.datasets["insured"], **unit)},
            budgets={} if budget is None else {"privacy": budget},
            quotas={f"quota-{number}": quota for number, quota in enumerate(quotas)},
            rules=(
                with_clauses(
                    active.policy.rules[0],
                    job_types=("count/1", "crosscheck/1"),
                    recipients=("police.gz.example", "bureau"),
                    approvals=clauses.pop("approvals", 0),
                    budget=None if budget is None else "privacy",
                    quotas=tuple(f"quota-{number}" for number, _ in enumerate(quotas)),
                    **clauses,
                ),
            ),
        )
        return cls(world, replace(active, policy=policy))

    @property
    def rule(self) -> Rule:
        return self.active.policy.rules[0]

    def policy(self, **changes: Any) -> "Node":
        """The same node under another text."""
        policy = with_clauses(self.active.policy, **changes)
        return replace(self, active=ActivePolicy(policy, sha256_digest(repr(policy).encode())))

    def answer(self, spec: JobSpec, *, attempt: int = 1, **changes: Any) -> Decision:
        roster = replace(self.world.roster, expires=self.now + 30 * DAY)
        spec = replace(spec, roster_digest=roster.digest)
        if not spec.created <= self.now < spec.expires:
            spec = replace(spec, created=self.now, expires=self.now + DAY)
        return decide(
            self.active,
            spec,
            node=self.world.node("human-resources"),
            roster=roster,
            now=self.now,
            history=Remembered(self.rows),
            attempt=attempt,
            job_types=self.world.types,
            **changes,
        )

    def did(self, spec: JobSpec, *, at: datetime | None = None, **changes: Any) -> "Node":
        """The same node after an attempt of another job that asked the same."""
        kind = next(t for t in self.world.types if t.name == spec.job_type)
        row = Past(
            job=JobId(sha256_digest(f"job {len(self.rows)}".encode())),
            attempt=1,
            time=self.now if at is None else at,
            requester=spec.requester,
            purpose=spec.purpose,
            job_type=spec.job_type,
            source="insured",
            unit="resident_id",
            cost=kind.cost(spec, Role("source-1"), Constraints(max_rows=20_000)),
            query=kind.query(spec, Role("source-1")),
            charged=True,
            exact=True,
            rule="R1",
        )
        return replace(self, rows=(*self.rows, replace(row, **changes)))

    def did_times(self, times: int, spec: JobSpec, **changes: Any) -> "Node":
        node = self
        for _ in range(times):
            node = node.did(spec, **changes)
        return node


def refusal(decision: Decision) -> str:
    assert isinstance(decision, Refuse), decision
    for text in (decision.sentence, decision.zh, decision.hint, decision.hint_zh):
        assert text
        assert text.isprintable()
    assert any("\u4e00" <= character <= "\u9fff" for character in decision.zh)
    assert any("\u4e00" <= character <= "\u9fff" for character in decision.hint_zh)
    return decision.code


def fits(decision: Decision) -> bool:
    """Whether nothing but perhaps approvals is missing."""
    if isinstance(decision, Refuse):
        assert refusal(decision) == "budget-exceeded"
    return not isinstance(decision, Refuse)


# --- budgets


@pytest.mark.parametrize(
    ("notion", "params"),
    [("zcdp", {"rho": "0.125"}), ("pure-dp", {"epsilon": "0.125"})],
)
def test_the_fourth_of_four_quarters_fits(world: Any, notion: Any, params: dict[str, str]):
    node, spec = Node.of(world, budget=with_clauses(BUDGET, notion=notion)), world.count(**params)
    assert [fits(node.did_times(times, spec).answer(spec)) for times in range(6)] == [True] * 4 + [False] * 2


@pytest.mark.parametrize(("notion", "name"), [("zcdp", "rho"), ("pure-dp", "epsilon")])
def test_a_budget_is_not_exceeded_by_the_smallest_part(world: Any, notion: Any, name: str):
    node = Node.of(world, budget=with_clauses(BUDGET, notion=notion)).did(world.count(**{name: "0.4"}))
    assert fits(node.answer(world.count(**{name: "0.1"})))
    assert not fits(node.answer(world.count(**{name: "0.100000000000001"})))


def test_what_is_only_set_aside_counts_as_what_was_charged(world: Any):
    spec = world.count(rho="0.5")
    assert not fits(Node.of(world, budget=BUDGET).did(spec, charged=False).answer(spec))


def test_what_an_attempt_set_aside_itself_does_not_count_against_it(world: Any):
    spec = world.count(rho="0.5")
    roster = replace(world.roster, expires=world.now + 30 * DAY)
    job = replace(spec, roster_digest=roster.digest).job_id
    node = Node.of(world, budget=BUDGET).did(spec, job=job, attempt=2, charged=False)
    assert fits(node.answer(spec, attempt=2))
    assert not fits(node.answer(spec, attempt=3))
    assert not fits(node.answer(spec, attempt=0))


def test_a_new_policy_version_does_not_reset_spending(world: Any):
    spec = world.count(rho="0.5")
    node = Node.of(world, budget=BUDGET).did(spec)
    renamed = node.policy(
        version=2,
        previous=node.active.digest,
        budgets={"another": BUDGET},
        rules=(with_clauses(node.rule, id="R7", budget="another"),),
    )
    assert not fits(renamed.answer(spec))
    longer = node.policy(budgets={"privacy": with_clauses(BUDGET, period="calendar-year")})
    assert not fits(longer.answer(spec))


def test_another_name_of_the_dataset_does_not_reset_spending(world: Any):
    spec = world.count(rho="0.5")
    node = Node.of(world, budget=BUDGET).did(spec)
    dataset = node.active.policy.datasets["insured"]
    renamed = node.policy(
        datasets={"insured_persons": dataset},
        budgets={"privacy": with_clauses(BUDGET, dataset="insured_persons")},
        rules=(with_clauses(node.rule, datasets=("insured_persons",)),),
    )
    inputs = tuple(replace(i, dataset="insured_persons") if i.role == "source-1" else i for i in spec.inputs)
    assert not fits(renamed.answer(replace(spec, inputs=inputs)))


def test_another_source_has_a_budget_of_its_own(world: Any):
    spec = world.count(rho="0.5")
    assert fits(Node.of(world, budget=BUDGET).did(spec, source="pension").answer(spec))


def test_a_new_period_brings_a_new_budget(world: Any):
    spec = world.count(rho="0.5")
    node = Node.of(world, budget=BUDGET).did(spec)
    assert not fits(replace(node, now=QUARTER_ENDS - timedelta(seconds=1)).answer(spec))
    assert fits(replace(node, now=QUARTER_ENDS).answer(spec))


def test_a_clock_that_went_back_opens_no_earlier_period(world: Any):
    # The old quarter has everything left; the newest row says that it is over.
    spec = world.count(rho="0.5")
    node = replace(Node.of(world, budget=BUDGET), now=QUARTER_ENDS - timedelta(minutes=1))
    assert fits(node.answer(spec))
    assert not fits(node.did(spec, at=QUARTER_ENDS).answer(spec))
    assert ledger_time(node.now, Remembered(node.did(spec, at=QUARTER_ENDS).rows)) == QUARTER_ENDS
    # Whichever source has that row.
    decision = node.did(spec, at=QUARTER_ENDS, source="pension").answer(spec)
    assert isinstance(decision, Permit)
    assert decision.terms.lines[0].until == datetime(2027, 3, 31, 16, tzinfo=UTC)


def test_a_budget_per_purpose_counts_the_purpose_alone(world: Any):
    spec = world.count(rho="0.5")
    node = Node.of(world, budget=with_clauses(BUDGET, scope="per-purpose"))
    purposes = node.active.policy.purposes
    node = node.policy(purposes={**purposes, "P-2026-002": purposes[spec.purpose]})
    assert fits(node.did(spec, purpose="P-2026-002").answer(spec))
    assert not fits(node.did(spec).answer(spec))


def test_a_purpose_that_was_renamed_starts_with_nothing_new(world: Any):
    spec = world.count(rho="0.5")
    node = Node.of(world, budget=with_clauses(BUDGET, scope="per-purpose"))
    assert not fits(node.did(spec, purpose="P-2025-001").answer(spec))


def test_a_budget_per_requester_counts_all_keys_of_its_alias(world: Any):
    spec = world.count(rho="0.5")
    node = Node.of(world, budget=with_clauses(BUDGET, scope="per-requester"))
    colleague, policeman = KeyId(sha256_digest(b"colleague")), world.key("policeman")
    bureau = node.active.policy.requesters["bureau"]
    node = node.policy(
        requesters={
            "bureau": with_clauses(bureau, keys=(*bureau.keys, colleague)),
            "police": Requester(keys=(policeman,)),
        }
    )
    assert not fits(node.did(spec, requester=colleague).answer(spec))
    assert fits(node.did(spec, requester=policeman).answer(spec))


def test_a_requester_whose_key_was_exchanged_starts_with_nothing_new(world: Any):
    spec = world.count(rho="0.5")
    node = Node.of(world, budget=with_clauses(BUDGET, scope="per-requester"))
    assert not fits(node.did(spec, requester=KeyId(sha256_digest(b"the key before"))).answer(spec))


def test_gaussian_noise_does_not_fit_a_budget_of_pure_privacy(world: Any):
    node = Node.of(world, budget=with_clauses(BUDGET, notion="pure-dp", limit=Fraction(10)))
    decision = node.answer(world.count(rho="0.001"))
    assert refusal(decision) == "budget-exceeded"
    assert "no measure" in decision.sentence
    assert "度量" in decision.zh


def test_delta_is_spent_as_well(world: Any):
    node = Node.of(world, budget=with_clauses(BUDGET, delta=Fraction("2e-9")))
    spec = world.count(rho="0.1", delta="1/1000000000")
    assert [fits(node.did_times(times, spec).answer(spec)) for times in range(3)] == [True, True, False]
    decision = Node.of(world, budget=BUDGET).answer(spec)
    assert refusal(decision) == "budget-exceeded"
    # 0.1 of 0.5 would fit; what does not is δ, and the sentence says so.
    assert "δ" in decision.sentence
    assert "δ" in decision.zh


def test_an_epsilon_at_a_delta_is_charged_what_each_job_adds(world: Any):
    budget = with_clauses(BUDGET, notion="approximate-dp", limit=Fraction(1), delta=Fraction("1e-9"))
    node, spec = Node.of(world, budget=budget), world.count(rho="0.001")
    charged = []
    while isinstance(decision := node.did_times(len(charged), spec).answer(spec), Permit):
        (line,) = decision.terms.lines
        assert Fraction(line.cost) <= Fraction(line.remaining)
        assert Fraction(line.remaining) <= 1 - sum(charged) + Fraction(len(charged), 10**6)
        charged.append(Fraction(line.cost))
    assert refusal(decision) == "budget-exceeded"
    # Far more fit than would if every job paid what it would cost alone.
    assert len(charged) > 3 / charged[0]


def test_the_answer_says_what_each_limit_would_be_charged_and_has_left(world: Any):
    questions = with_clauses(QUOTA, counts="queries", limit=10, period="day", scope="per-purpose")
    node, spec = Node.of(world, budget=BUDGET, quotas=(questions,)), world.count(rho="0.1")
    decision = node.did(spec, at=node.now - 2 * DAY).did(spec).answer(spec)
    assert isinstance(decision, Permit)
    budget, quota = decision.terms.lines
    assert (budget.budget, budget.notion) == ("privacy", "zcdp")
    assert (budget.cost, budget.remaining, budget.limit) == ("0.1", "0.3", "0.5")
    assert budget.until == QUARTER_ENDS
    assert (quota.budget, quota.notion) == ("quota-0", "queries")
    assert (quota.cost, quota.remaining, quota.limit) == ("1", "9", "10")
    assert quota.until == datetime(2026, 12, 2, 16, tzinfo=UTC)
    assert (decision.terms.source, decision.terms.unit) == ("insured", "resident_id")
    assert decision.terms.cost == Cost.zcdp(Fraction(1, 10)) + Cost(queries=1)


def test_a_cost_is_rounded_up_and_what_is_left_is_rounded_down(world: Any):
    spec = world.count(epsilon="0.1000000001")
    node = Node.of(world, budget=with_clauses(BUDGET, notion="pure-dp")).did(spec)
    decision = node.answer(spec)
    assert isinstance(decision, Permit)
    (line,) = decision.terms.lines
    assert (line.cost, line.remaining) == ("0.100001", "0.399999")


def test_one_job_costs_no_more_than_its_rule_says(world: Any):
    node = Node.of(world, budget=BUDGET, max_cost=Fraction("0.1"))
    assert isinstance(node.answer(world.count(rho="0.1")), Permit)
    assert refusal(node.answer(world.count(rho="0.1000000001"))) == "cost-above-rule"


def test_what_a_refused_budget_says_is_what_is_left_and_until_when(world: Any):
    decision = Node.of(world, budget=BUDGET).did(world.count(rho="0.4")).answer(world.count(rho="0.2"))
    assert refusal(decision) == "budget-exceeded"
    assert decision.rule == "R1"
    for text in ("privacy", "ρ = 0.2", "ρ = 0.5", "0.1", "2027-01-01 00:00 (Asia/Shanghai)"):
        assert text in decision.sentence
        assert text in decision.zh


def test_the_policys_budget_is_for_its_dataset_alone(world: Any):
    # A rule of two datasets does not parse with a budget; were there one, the other would still go uncharged.
    node, spec = Node.of(world, budget=BUDGET), world.count(rho="0.1")
    other = with_clauses(node.active.policy.datasets["insured"], source="local:pension")
    node = node.policy(
        datasets={**node.active.policy.datasets, "pension": other},
        rules=(with_clauses(node.rule, datasets=("insured", "pension")),),
    )
    inputs = tuple(replace(i, dataset="pension") if i.role == "source-1" else i for i in spec.inputs)
    assert refusal(node.answer(replace(spec, inputs=inputs))) == "no-budget"
    # Where no person is protected, noise that no budget pays for is no reason to let the guard rest.
    nobodys = with_clauses(other, personal="none")
    node = node.policy(datasets={**node.active.policy.datasets, "pension": nobodys})
    decision = node.answer(replace(spec, inputs=inputs))
    assert isinstance(decision, Permit)
    assert decision.terms.lines == ()
    assert decision.terms.query is not None
    assert not decision.terms.query.noisy


# --- quotas


def test_a_quota_counts_the_rows_that_may_have_left(world: Any):
    node, spec = Node.of(world, quotas=(QUOTA,)), world.spec()
    assert [fits(node.did_times(times, spec).answer(spec)) for times in range(5)] == [True] * 3 + [False] * 2
    decision = node.did_times(3, spec).answer(spec)
    assert isinstance(decision, Refuse)
    assert "quota-0" in decision.sentence
    assert "配额" in decision.zh


def test_the_stricter_of_two_quotas_decides(world: Any):
    daily = with_clauses(QUOTA, counts="queries", limit=1, period="day")
    node, spec = Node.of(world, quotas=(QUOTA, daily)).did(world.spec()), world.spec()
    assert not fits(node.answer(spec))
    assert fits(replace(node, now=node.now + DAY).answer(spec))


# --- rates and attempts


def test_a_rate_counts_the_jobs_of_its_period(world: Any):
    node, spec = Node.of(world, rate=Rate(jobs=2, per="day")), world.spec()
    assert isinstance(node.did(spec).answer(spec), Ask)
    full = node.did_times(2, spec)
    decision = full.answer(spec)
    assert refusal(decision) == "rate-exceeded"
    assert "2026-12-03 00:00 (Asia/Shanghai)" in decision.sentence
    assert isinstance(replace(full, now=datetime(2026, 12, 2, 16, tzinfo=UTC)).answer(spec), Ask)


def test_a_job_that_failed_and_was_not_freed_counts_for_the_rate(world: Any):
    node, spec = Node.of(world, rate=Rate(jobs=1, per="month")), world.spec()
    assert refusal(node.did(spec, exact=False).answer(spec)) == "rate-exceeded"


def test_attempts_of_one_job_are_one_job_for_the_rate(world: Any):
    node, spec = Node.of(world, rate=Rate(jobs=2, per="month")), world.spec()
    once = JobId(sha256_digest(b"once"))
    assert isinstance(node.did(spec, job=once).did(spec, job=once, attempt=2).answer(spec), Ask)
    own = replace(spec, roster_digest=replace(world.roster, expires=node.now + 30 * DAY).digest).job_id
    node = Node.of(world, rate=Rate(jobs=1, per="month")).did(spec, job=own)
    assert isinstance(node.answer(spec, attempt=2), Ask)


def test_another_id_of_the_rule_does_not_reset_its_rate(world: Any):
    node, spec = Node.of(world, rate=Rate(jobs=1, per="month")), world.spec()
    assert refusal(node.did(spec, rule="R9").answer(spec)) == "rate-exceeded"


def test_a_rule_whose_words_change_keeps_its_rate(world: Any):
    node, spec = Node.of(world, rate=Rate(jobs=1, per="month")), world.spec()
    assert refusal(node.did(spec, purpose="P-2026-002").answer(spec)) == "rate-exceeded"


def test_a_key_that_was_exchanged_does_not_reset_the_rate(world: Any):
    node, spec = Node.of(world, rate=Rate(jobs=1, per="month")), world.spec()
    before = node.did(spec, rule="R9", requester=KeyId(sha256_digest(b"the key before")))
    assert refusal(before.answer(spec)) == "rate-exceeded"


def test_a_purpose_that_was_renamed_does_not_reset_the_rate(world: Any):
    node = Node.of(world, rate=Rate(jobs=1, per="month"))
    node = node.did(world.spec(), rule="R0", purpose="P-2025-001")
    assert refusal(node.answer(world.spec())) == "rate-exceeded"


def test_what_another_rule_covers_does_not_count_for_the_rate(world: Any):
    node, spec = Node.of(world, rate=Rate(jobs=1, per="month")), world.spec()
    purposes = node.active.policy.purposes
    node = node.policy(purposes={**purposes, "P-2026-002": purposes[spec.purpose]})
    assert isinstance(node.did(spec, rule="R9", purpose="P-2026-002").answer(spec), Ask)
    assert isinstance(node.did(spec, rule="R9", job_type="table/1").answer(spec), Ask)
    node = node.policy(
        requesters={**node.active.policy.requesters, "police": Requester(keys=(world.key("policeman"),))}
    )
    assert isinstance(node.did(spec, rule="R9", requester=world.key("policeman")).answer(spec), Ask)


def test_a_rate_holds_for_all_datasets_of_its_rule_together(world: Any):
    node, spec = Node.of(world, rate=Rate(jobs=1, per="month")), world.spec()
    other = with_clauses(node.active.policy.datasets["insured"], source="local:pension")
    node = node.did(spec, source="pension")
    assert isinstance(node.answer(spec), Ask)
    both = node.policy(
        datasets={**node.active.policy.datasets, "pension": other},
        rules=(with_clauses(node.rule, datasets=("insured", "pension")),),
    )
    assert refusal(both.answer(spec)) == "rate-exceeded"


def test_a_neutral_seat_has_a_rate_as_well(world: Any):
    active, spec = world.active("statistics"), world.spec()
    rules = (with_clauses(active.policy.rules[0], rate=Rate(jobs=1, per="hour")),)
    active = replace(active, policy=with_clauses(active.policy, rules=rules))
    row = Node.of(world).did(spec, source="", unit="", cost=NOTHING, query=None).rows[0]
    for hours, expected in ((0, Refuse), (1, Permit)):
        decision = decide(
            active,
            spec,
            node=world.node("statistics"),
            roster=world.roster,
            now=world.now + timedelta(hours=hours),
            history=Remembered((row,)),
        )
        assert isinstance(decision, expected)


def test_a_job_has_so_many_attempts_and_no_more(world: Any):
    spec = world.spec()
    roster = replace(world.roster, expires=world.now + 30 * DAY)
    job = replace(spec, roster_digest=roster.digest).job_id
    node = Node.of(world)
    for attempt in range(1, ATTEMPTS_PER_JOB + 1):
        assert isinstance(node.answer(spec, attempt=attempt), Ask)
        node = node.did(spec, job=job, attempt=attempt)
    # The last one may be asked about again; a fourth may not.
    assert isinstance(node.answer(spec, attempt=ATTEMPTS_PER_JOB), Ask)
    assert refusal(node.answer(spec, attempt=ATTEMPTS_PER_JOB + 1)) == "attempts-exhausted"
    waiting = replace(node, rows=(*node.rows[:-1], replace(node.rows[-1], charged=False)))
    assert isinstance(waiting.answer(spec, attempt=ATTEMPTS_PER_JOB + 1), Ask)


# --- the differencing guard


def at_least(world: Any, k: int) -> JobSpec:
    spec: JobSpec = world.spec()
    return replace(spec, params={**spec.params, "k": k})


def test_k_then_k_minus_one_is_refused(world: Any):
    node = Node.of(world).did(at_least(world, 3))
    assert refusal(node.answer(at_least(world, 2))) == "differencing"
    assert isinstance(node.answer(at_least(world, 3)), Ask)


def test_disjoint_groups_may_both_be_answered(world: Any):
    node = Node.of(world).did(world.count(streets=["东区"]))
    assert isinstance(node.answer(world.count(streets=["西区"])), Permit)
    assert refusal(node.answer(world.count(streets=["东区", "西区"]))) == "differencing"
    node = Node.of(world).did(world.count(ages=[60, 79]))
    assert isinstance(node.answer(world.count(ages=[80, 120])), Permit)
    assert refusal(node.answer(world.count(ages=[79, 120]))) == "differencing"


def test_noise_on_one_of_two_answers_is_enough(world: Any):
    exact, noisy = world.count(streets=["东区"]), world.count(rho="0.1")
    node = Node.of(world, budget=BUDGET)
    assert isinstance(node.did(exact).answer(noisy), Permit)
    assert isinstance(node.did(noisy).answer(exact), Permit)


def test_noise_that_no_budget_pays_for_is_no_noise(world: Any):
    node = Node.of(world, dataset={"personal": "none"}).did(world.count(streets=["东区"]))
    assert refusal(node.answer(world.count(rho="0.1"))) == "differencing"


@pytest.mark.parametrize("noise", [{"rho": "0.000000001"}, {"epsilon": "0.1"}])
def test_noise_over_personal_data_takes_a_budget(world: Any, noise: dict[str, str]):
    node, spec = Node.of(world), world.count(**noise)
    for personal in ("personal", "sensitive"):
        assert refusal(Node.of(world, dataset={"personal": personal}).answer(spec)) == "no-budget"
    assert isinstance(Node.of(world, dataset={"personal": "none"}).answer(spec), Permit)
    assert isinstance(Node.of(world, budget=BUDGET).answer(spec), Permit)
    # Exact answers are held by quotas, rates and the differencing guard instead.
    assert isinstance(node.answer(world.count()), Permit)
    # A quota counts questions; it is no budget.
    questions = with_clauses(QUOTA, counts="queries")
    assert refusal(Node.of(world, quotas=(questions,)).answer(spec)) == "no-budget"


def test_a_seat_without_data_needs_no_budget(world: Any):
    edits = {
        '"crosscheck/1"': '"crosscheck/1", "count/1"',
        '"matcher"': '"aggregator"',
        'recipients = ["police.gz.example"]': 'recipients = ["bureau"]',
    }
    active = world.active("statistics", edits)
    decision = decide(
        active, world.count(rho="0.1"), node=world.node("statistics"), roster=world.roster, now=world.now,
        job_types=world.types,
    )  # fmt: skip
    assert isinstance(decision, Permit)
    assert decision.terms.cost == NOTHING


def test_what_was_not_answered_exactly_stands_in_nobodys_way(world: Any):
    node = Node.of(world).did(at_least(world, 3), exact=False)
    assert isinstance(node.answer(at_least(world, 2)), Ask)
    waiting = Node.of(world).did(at_least(world, 3), charged=False)
    assert refusal(waiting.answer(at_least(world, 2))) == "differencing"


def test_an_answer_stands_in_the_way_for_as_long_as_the_policy_says(world: Any):
    node = Node.of(world)
    defaults = with_clauses(node.active.policy.defaults, differencing_days=30)
    node = node.policy(defaults=defaults)
    second = timedelta(seconds=1)
    recent = node.did(at_least(world, 3), at=node.now - 30 * DAY + second)
    assert refusal(recent.answer(at_least(world, 2))) == "differencing"
    assert isinstance(node.did(at_least(world, 3), at=node.now - 30 * DAY).answer(at_least(world, 2)), Ask)


def test_answers_about_another_dataset_cannot_be_subtracted(world: Any):
    node = Node.of(world).did(at_least(world, 3), source="pension")
    assert isinstance(node.answer(at_least(world, 2)), Ask)


def amounts(world: Any, **params: Any) -> JobSpec:
    """Ages added up exactly, of persons by street."""
    spec: JobSpec = world.count(bounds=["0", "120"], **params)
    both = {"street": "street", "age": "age"}
    return replace(spec, inputs=tuple(replace(i, columns=both) for i in spec.inputs))


def with_ages(node: Node) -> Node:
    """The same node, whose rule opens ages for sums."""
    dataset = node.active.policy.datasets["insured"]
    age = Column(type="int", use=("sum", "mean", "group"), range=(Fraction(0), Fraction(120)))
    dataset = with_clauses(dataset, columns={**dataset.columns, "age": age})
    rule = with_clauses(node.rule, columns=(*node.rule.columns, "age"))
    return node.policy(datasets={"insured": dataset}, rules=(rule,))


def test_exact_amounts_are_told_once_because_rows_change(world: Any):
    node, spec = with_ages(Node.of(world)), amounts(world)
    assert isinstance(node.answer(spec), Permit)
    decision = node.did(spec).answer(spec)
    assert refusal(decision) == "asked-before"
    assert isinstance(decision, Refuse)
    assert "365 days" in decision.hint
    assert "release/1" in decision.hint
    # So are they while another job may yet get them; counts of persons are rounded, and may be asked again.
    assert refusal(node.did(spec, charged=False).answer(spec)) == "asked-before"
    assert isinstance(node.did(world.count()).answer(world.count()), Permit)
    assert refusal(node.did(world.count(streets=["东区"])).answer(spec)) == "differencing"
    elsewhere = amounts(world, streets=["西区"])
    assert isinstance(node.did(amounts(world, streets=["东区"])).answer(elsewhere), Permit)


def test_amounts_may_be_asked_again_where_none_were_told(world: Any):
    node, spec = with_ages(Node.of(world)), amounts(world)
    assert isinstance(node.did(spec, exact=False).answer(spec), Permit)
    assert isinstance(node.did(spec, source="pension").answer(spec), Permit)
    # Another attempt of the same job is the same question for the same answer.
    asked = replace(spec, roster_digest=replace(world.roster, expires=node.now + 30 * DAY).digest)
    assert isinstance(node.did(spec, job=asked.job_id).answer(asked, attempt=2), Permit)
    defaults = with_clauses(node.active.policy.defaults, differencing_days=30)
    short = node.policy(defaults=defaults)
    assert refusal(short.did(spec, at=node.now - 29 * DAY).answer(spec)) == "asked-before"
    assert isinstance(short.did(spec, at=node.now - 30 * DAY).answer(spec), Permit)


def test_noise_may_be_asked_for_again_as_long_as_the_budget_pays(world: Any):
    node = with_ages(Node.of(world, budget=BUDGET))
    noisy = amounts(world, rho="0.1")
    assert isinstance(node.did(noisy).answer(noisy), Permit)
    assert isinstance(node.did(amounts(world)).answer(noisy), Permit)


def test_the_guards_refusal_names_no_job_and_no_figure(world: Any):
    one = Node.of(world).did(at_least(world, 3)).answer(at_least(world, 2))
    other = Node.of(world).did_times(2, at_least(world, 4), purpose="Q").answer(at_least(world, 2))
    assert refusal(one) == "differencing"
    assert one == other
    assert isinstance(one, Refuse)
    texts = (one.sentence, one.zh, one.hint, one.hint_zh)
    assert not any(character.isdigit() for text in texts for character in text)


def test_a_query_that_filters_nothing_is_still_a_query(world: Any):
    row = Node.of(world).did(world.spec(), query=Query("something else")).rows
    assert refusal(replace(Node.of(world), rows=row).answer(world.spec())) == "differencing"


# --- two people


def approvals_needed(decision: Decision) -> int:
    assert isinstance(decision, Permit | Ask)
    return decision.missing if isinstance(decision, Ask) else 0


@pytest.mark.parametrize(
    ("dataset", "crosscheck", "count"),
    [
        ({"personal": "sensitive"}, 2, 0),
        ({"personal": "personal"}, 0, 0),
        ({"personal": "none", "grade": "important"}, 2, 2),
        ({"personal": "none", "grade": "general-1"}, 0, 0),
    ],
)
def test_delicate_data_takes_two_people_whatever_the_rule_says(
    world: Any, dataset: dict[str, Any], crosscheck: int, count: int
):
    node = Node.of(world, dataset=dataset)
    assert approvals_needed(node.answer(world.spec())) == crosscheck
    assert approvals_needed(node.answer(world.count())) == count


def test_core_data_is_refused_by_whatever_rule(world: Any):
    node = Node.of(world, dataset={"grade": "core"})
    decision = node.answer(world.count())
    assert refusal(decision) == "core-data"
    # No rule at all: the sentence stays the same.
    assert node.policy(rules=()).answer(world.count()) == decision


def test_an_approval_is_bound_to_the_cost(world: Any):
    node, spec = Node.of(world, budget=BUDGET, approvals=2), world.count(rho="0.1")
    roster = replace(world.roster, expires=world.now + 30 * DAY)
    spec = replace(spec, roster_digest=roster.digest)
    cost = Cost.zcdp(Fraction(1, 10)) + Cost(queries=1)
    for signed, missing in ((cost, 0), (cost + Cost(queries=1), 2), (Cost(queries=1), 2)):
        approvals = world.verified(node.active, spec, cost=signed.encode())
        assert approvals_needed(node.answer(spec, approvals=approvals)) == missing


# --- stops

STOPS: list[tuple[str, str | None, str]] = [
    ("all", None, "everything"),
    ("requester", "bureau", "requester"),
    ("purpose", "P-2026-001", "purpose"),
    ("dataset", "insured", "dataset"),
]


@pytest.mark.parametrize("document", [True, False])
@pytest.mark.parametrize(("scope", "value", "word"), STOPS)
def test_a_stop_halts_what_it_names(world: Any, scope: Any, value: str | None, word: str, *, document: bool):
    node, stop = Node.of(world), Stop(scope=scope, value=value, reason="数据质量复核中")
    if document:
        stopped = replace(node, active=replace(node.active, stops=(stop,)))
    else:
        stopped = node.policy(stops=(stop,))
    decision = stopped.answer(world.count())
    assert refusal(decision) == "stopped"
    assert decision.rule == ""
    assert "数据质量复核中" in decision.sentence
    assert "数据质量复核中" in decision.zh
    assert word in decision.sentence


def test_a_stop_of_one_job_halts_that_job_alone(world: Any):
    node, roster = Node.of(world), replace(world.roster, expires=world.now + 30 * DAY)
    spec = replace(world.count(), roster_digest=roster.digest)
    stop = Stop(scope="job", value=spec.job_id, reason="x")
    node = replace(node, active=replace(node.active, stops=(stop,)))
    assert refusal(node.answer(spec)) == "stopped"
    assert isinstance(node.answer(replace(spec, nonce="1" * 32)), Permit)


@pytest.mark.parametrize(
    ("scope", "value"),
    [
        ("requester", "police"),
        ("purpose", "P-2026-002"),
        ("dataset", "patients"),
        ("job", "sha256:" + "0" * 64),
    ],
)
def test_a_stop_of_something_else_halts_nothing_here(world: Any, scope: Any, value: str):
    # `patients` is another department's list in this job; its own node may stop it.
    node, stop = Node.of(world), Stop(scope=scope, value=value, reason="x")
    node = replace(node, active=replace(node.active, stops=(stop,)))
    assert isinstance(node.answer(world.count()), Permit)


def test_a_stop_halts_neutral_seats_too(world: Any):
    stops = (Stop(scope="purpose", value="P-2026-001", reason="x"),)
    active = replace(world.active("statistics"), stops=stops)
    decision = decide(active, world.spec(), node=world.node("statistics"), roster=world.roster, now=world.now)
    assert refusal(decision) == "stopped"


# --- windows

OFFICE = Window(days=("mon", "tue", "wed", "thu", "fri"), from_=time(8), to=time(20))


def test_outside_its_window_a_rule_asks_to_wait(world: Any):
    # 11:04 on a Wednesday in Shanghai.
    node, spec = Node.of(world, window=OFFICE), world.count()
    assert isinstance(node.answer(spec), Permit)
    evening = replace(node, now=datetime(2026, 12, 2, 12, tzinfo=UTC))
    decision = evening.answer(spec)
    assert isinstance(decision, Ask)
    assert (decision.code, decision.missing, decision.approvers) == ("window-closed", 0, ())
    assert decision.opens == datetime(2026, 12, 3, 0, tzinfo=UTC)
    assert "2026-12-03 08:00 (Asia/Shanghai)" in decision.sentence
    assert "2026-12-03 08:00 (Asia/Shanghai)" in decision.zh
    assert decision.rule == "R1"
    assert isinstance(replace(node, now=decision.opens).answer(spec), Permit)


def test_approvals_are_asked_for_before_the_window_opens(world: Any):
    node = replace(Node.of(world, window=OFFICE, approvals=1), now=datetime(2026, 12, 2, 12, tzinfo=UTC))
    roster = replace(world.roster, expires=node.now + 30 * DAY)
    spec = replace(world.count(), roster_digest=roster.digest)
    decision = node.answer(spec)
    assert isinstance(decision, Ask)
    assert (decision.code, decision.missing) == ("approval-needed", 1)
    approvals = world.verified(node.active, spec, ("dpo",), cost=Cost(queries=1).encode())
    decision = node.answer(spec, approvals=approvals)
    assert isinstance(decision, Ask)
    assert (decision.code, decision.approvals) == ("window-closed", tuple(approvals))


def test_a_window_without_days_keeps_the_job_waiting(world: Any):
    node = Node.of(world, window=with_clauses(OFFICE, days=()))
    decision = node.answer(world.count())
    assert isinstance(decision, Ask)
    assert (decision.code, decision.opens) == ("window-closed", None)


# --- what is derived once is derived from what it was asked about


def test_the_order_of_rows_does_not_matter(world: Any):
    spec = world.count(rho="0.25")
    node = Node.of(world, budget=BUDGET).did(spec).did(spec, at=datetime(2026, 3, 1, tzinfo=UTC)).did(spec)
    for rows in (node.rows, node.rows[::-1], (node.rows[1], node.rows[0], node.rows[2])):
        assert not fits(replace(node, rows=rows).answer(spec))


@pytest.mark.parametrize("clauses", [{"rate": Rate(jobs=2, per="day")}, {"budget": BUDGET}])
def test_a_ledger_that_grows_in_place_is_read_anew(world: Any, clauses: dict[str, Any]):
    class Growing:
        """A history that hands out one list and adds to it."""

        def __init__(self) -> None:
            self.rows: list[Past] = []

        def of(self, source: str) -> list[Past]:
            return self.rows

        def newest(self) -> datetime | None:
            return self.rows[-1].time if self.rows else None

    nobodys = {} if "budget" in clauses else {"personal": "none"}
    node, spec, history = Node.of(world, dataset=nobodys, **clauses), world.count(rho="0.25"), Growing()
    answers = []
    for _ in range(3):
        answers.append(
            decide(
                node.active,
                spec,
                node=world.node("human-resources"),
                roster=world.roster,
                now=node.now,
                history=history,
                job_types=world.types,
            )
        )
        history.rows += node.did_times(len(history.rows) + 1, spec).rows[-1:]
    assert [type(answer) for answer in answers] == [Permit, Permit, Refuse]


def test_more_jobs_than_are_remembered_are_answered_like_the_first(world: Any):
    node, spec = Node.of(world, budget=BUDGET), world.count(rho="0.1")
    first = node.answer(spec)
    others = [node.answer(replace(spec, nonce=f"{number:032x}")) for number in range(300)]
    assert all(isinstance(answer, Permit) for answer in others)
    assert node.answer(spec) == first
