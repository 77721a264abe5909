"""`decide` against an oracle that was written from trust §4 alone, slowly: it tries every rule and every
choice of approvals, and knows no order of checks."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from itertools import chain, combinations, product
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import event, given, seed, settings
from hypothesis import strategies as st

from policies.decide import Ask, Permit, Refuse, VerifiedApproval, decide
from policies.model import (
    ActivePolicy,
    Approver,
    Banned,
    Column,
    Dataset,
    Defaults,
    Policy,
    Purpose,
    Requester,
    Retention,
    Rule,
)
from protocols.encoding import sha256_digest
from protocols.errors import InputError
from protocols.ids import DatasetName, Digest, KeyId, NodeName, Organisation, Role
from protocols.jobs import JOB_TYPES
from protocols.jobs.job_type import (
    REQUESTER,
    ColumnNeed,
    OutputClass,
    PlannedRelease,
    Separation,
    Statement,
)
from protocols.wire import Approval, Constraints, JobInput, JobSpec, Roster, organisation_of

DIGEST = Digest(sha256_digest(b"policy"))
KEYS = {name: KeyId(sha256_digest(name.encode())) for name in ("dpo 1", "dpo 2", "owner 1", "legal 1")}


class Count:
    """A class-A job type: every source gives one group column, an aggregator adds, the requester receives."""

    name = "count/1"
    output_class = OutputClass.AGGREGATE

    def check(self, spec: JobSpec) -> None:
        if spec.params:
            raise InputError("params that nobody asked for", code="unknown-param", hint="remove them")

    def kinds(self, spec: JobSpec, role: Role) -> frozenset[str]:
        return frozenset({"aggregator"} if spec.input_of(role) is None else {"source"})

    def columns(self, spec: JobSpec, role: Role) -> tuple[ColumnNeed, ...]:
        return (ColumnNeed("street", "group", ("code", "enum")),)

    def releases(self, spec: JobSpec) -> tuple[PlannedRelease, ...]:
        return (PlannedRelease("counts", OutputClass.AGGREGATE, Role("matcher"), REQUESTER),)

    def separation(self, spec: JobSpec, requester: Organisation) -> tuple[Separation, ...]:
        return (
            Separation(
                "sums", frozenset({organisation_of(spec.roles[Role("matcher")])}), frozenset({requester})
            ),
        )

    def learns(self, spec: JobSpec) -> Mapping[frozenset[Role], tuple[Statement, ...]]:
        return {frozenset({Role("matcher")}): (Statement("sums", "sums", "总数"),)}


PURPOSES = [("P-2026-001", "P-2026-002"), ("P-2026-001",), ("P-2026-002",)]
TYPES: Any = (*JOB_TYPES, Count())


@dataclass(frozen=True)
class Case:
    policy: Policy
    spec: JobSpec
    node: NodeName
    roster: Roster
    now: datetime
    approvals: tuple[VerifiedApproval, ...]


@dataclass
class Draw:
    """Draws a case with a few faults: were everything random, nearly everything would be refused at once."""

    draw: st.DrawFn
    faults: frozenset[int]
    choices: int = 0

    def __call__(self, strategy: st.SearchStrategy[Any]) -> Any:
        return self.draw(strategy)

    def usually(self, value: Any, *others: Any) -> Any:
        self.choices += 1
        return self.draw(st.sampled_from(others)) if self.choices in self.faults else value

    def happens(self) -> bool:
        return bool(self.usually("", "yes"))

    def some(self, names: list[str], least: int = 1) -> tuple[str, ...]:
        """Everything, or with a fault a random selection."""
        choice = st.lists(st.sampled_from(names), unique=True, min_size=least).map(tuple)
        return tuple(self.draw(choice)) if self.happens() else tuple(names)


@st.composite
def cases(drawn: st.DrawFn, world: Any) -> Case:
    draw = Draw(drawn, drawn(st.frozensets(st.integers(1, 80), max_size=4)))
    department = draw(st.sampled_from(["human-resources", "health", "statistics"]))
    node, now = world.node(department), world.now
    day = date(2026, 12, 2)
    own = {"human-resources": "insured", "health": "patients", "statistics": "nothing"}[department]
    columns = {
        name: Column(type=draw.usually(kind, "int"), use=draw.usually((use,), ("sum",), (use, "filter")))
        for name, kind, use in (
            ("resident_id", "resident-id", "join"),
            ("street", "code", "group"),
            ("last_seen_month", "month", "carry"),
        )
        if not draw.happens()
    }
    dataset = Dataset(source="local:x", grade="general-4", personal="sensitive", columns=columns)
    rules: list[Rule] = []
    for number in range(draw(st.integers(1, 3))):
        neutral = department == "statistics" and bool(draw(st.integers(0, 5)))
        approvers = draw.some(["dpo", "owner", "legal"])
        rule = Rule(
            id=f"R{number}",
            requesters=draw.some(["bureau", "police"]),
            purposes=draw(st.sampled_from(PURPOSES)),
            job_types=draw(st.sampled_from([("crosscheck/1", "count/1"), ("crosscheck/1",), ("count/1",)])),
            recipients=draw.some(["police.gz.example", "bureau"]),
            roles=draw.some(
                ["matcher", "aggregator"] if neutral else ["source", "key-holder"], least=int(neutral)
            ),
            datasets=() if neutral else draw.some([own, "other"]),
            columns=() if neutral else draw.some(["resident_id", "street", "last_seen_month"]),
            approvals=draw(st.integers(0, 4)),
            approvers=approvers,
            min_group_size=draw(st.sampled_from([None, 5, 50])),
            min_organisations=draw.usually(None, 5, 6),
            min_sources=draw.usually(None, 2, 3, 6),
            max_rows=draw(st.sampled_from([None, 1000])),
            max_fraction=draw(st.sampled_from([None, Fraction(1, 3)])),
            max_runtime_s=draw(st.sampled_from([None, 60, 7200])),
        )
        if not any(fit_one_job(rule, other) for other in rules):
            rules.append(rule)
    policy = Policy(
        schema="minshu-policy/1",
        policy_id=draw.usually(node, "other.gz.example/node-a"),
        version=1,
        not_before=now - timedelta(days=1) if not draw.happens() else now + timedelta(seconds=1),
        expires=now + timedelta(days=1) if not draw.happens() else now,
        timezone=draw(st.sampled_from(["Asia/Shanghai", "America/Los_Angeles"])),
        controller="x",
        defaults=Defaults(min_group_size=10),
        retention=Retention(journal_days=1, release_days=1, intermediate="job-end"),
        requesters={
            "bureau": Requester(
                keys=(world.key("analyst"),),
                organisation=draw.usually("data-bureau.gz.example", None, "health.gz.example"),
            ),
            "police": Requester(keys=(world.key("policeman"),)),
        },
        purposes={
            name: Purpose(
                title="x",
                legal_basis=f"basis of {name}",
                valid_until=draw.usually(day + timedelta(days=9), day, day - timedelta(days=1)),
            )
            for name in draw.some(["P-2026-001", "P-2026-002"])
        },
        datasets={own: dataset, "other": dataset} if not draw.happens() else {"other": dataset},
        rules=tuple(rules),
        approvers={
            "dpo": Approver(keys=(KEYS["dpo 1"], KEYS["dpo 2"])),
            "owner": Approver(keys=(KEYS["owner 1"],)),
            "legal": Approver(keys=(draw.usually(KEYS["legal 1"], world.key("analyst")),)),
        },
        negative_list=draw.usually(
            (Banned(dataset=own, column="phone", reason="x"),),
            (Banned(dataset=own, column="street", reason="x"),),
            (Banned(dataset="register", column="street", reason="x"),),
        ),
    )
    spec = job(draw, world, node)
    roster = world.roster if not draw.happens() else replace(world.roster, expires=now)
    spec = replace(spec, roster_digest=draw.usually(roster.digest, sha256_digest(b"another")))
    approvals = tuple(approval(draw, world, spec, node) for _ in range(draw(st.integers(0, 4))))
    return Case(policy, spec, node, roster, now, approvals)


def fit_one_job(one: Rule, other: Rule) -> bool:
    """Whether some (requester, purpose, type, seat) is in both; by trying all of them."""

    def jobs(rule: Rule) -> set[tuple[str, ...]]:
        return set(product(rule.requesters, rule.purposes, rule.job_types, rule.datasets or rule.roles))

    return bool(jobs(one) & jobs(other))


def job(draw: Draw, world: Any, node: NodeName) -> JobSpec:
    now = world.now
    spec: JobSpec = world.spec(
        purpose=(purpose := draw(st.sampled_from(["P-2026-001", "P-2026-001", "P-2026-002"]))),
        legal_basis=draw.usually(f"basis of {purpose}", "no basis"),
        requester=draw.usually(world.key("analyst"), world.key("policeman"), world.key("stranger")),
        collaboration=draw.usually("gz.example", "other.example"),
        created=draw.usually(now, now + timedelta(minutes=6), now - timedelta(days=20)),
        expires=draw.usually(now + timedelta(days=2), now, now + timedelta(days=40)),
        params=draw.usually(
            {"present_in": "at_least", "k": 2, "key_holder": "source-1"},
            {"present_in": "at_least", "k": 1, "key_holder": "source-2"},
            {"present_in": "all", "key_holder": "source-1"},
            {"present_in": "never"},
        ),
        job_type=draw.usually("crosscheck/1", "train/1"),
    )
    if not draw(st.integers(0, 2)):
        inputs = tuple(replace(i, columns={"street": "street"}) for i in spec.inputs if i.role != "register")
        spec = replace(
            spec,
            job_type="count/1",
            params=draw.usually({}, {"k": 1}),
            inputs=inputs,
            recipients=(Organisation(draw.usually("data-bureau.gz.example", "police.gz.example")),),
            roles={role: name for role, name in spec.roles.items() if role != "register"},
        )
    if draw.happens():
        spec = replace(spec, roles={**spec.roles, Role("matcher"): world.node("data-bureau")})
    if draw.happens():
        spec = replace(spec, recipients=(Organisation("housing.gz.example"),))
    change = draw.usually(
        None, {"dataset": DatasetName("other")}, {"dataset": DatasetName("none")}, {"columns": {}}
    )
    if change == {"columns": {}}:
        change = {"columns": {"key": "resident_id", "street": "phone"}}
    if change is not None:
        inputs = tuple(i if spec.roles[i.role] != node else changed(i, change) for i in spec.inputs)
        spec = replace(spec, inputs=inputs)
    return spec


def changed(given: JobInput, change: Mapping[str, Any]) -> JobInput:
    return replace(given, **change)


def approval(draw: Draw, world: Any, spec: JobSpec, node: NodeName) -> VerifiedApproval:
    name = draw(st.sampled_from([*KEYS, "analyst"]))
    key = KEYS.get(name, world.key("analyst"))
    said = Approval(
        job=draw.usually(spec.job_id, sha256_digest(b"other")),
        node=draw.usually(node, NodeName("other.gz.example/node-a")),
        policy_digest=draw.usually(DIGEST, sha256_digest(b"old")),
        rule=draw(st.sampled_from(["R0", "R0", "R0", "R1", "R2"])),
        cost=draw.usually("0", "1"),
        issued=world.now,
        expires=draw.usually(world.now + timedelta(days=1), world.now),
        nonce="0" * 32,
    )
    capacity = "legal" if name == "analyst" else draw.usually(name.split()[0], "dpo", "owner")
    return VerifiedApproval(capacity, key, said, sha256_digest(b"x"))


# --- the oracle


def wrong_anywhere(case: Case) -> set[str]:
    """Codes of everything that is wrong whatever the rules say."""
    policy, spec, node, roster, now = case.policy, case.spec, case.node, case.roster, case.now
    wrong = set()
    if policy.policy_id != node:
        wrong.add("policy-of-another-node")
    if not now >= policy.not_before:
        wrong.add("policy-not-yet-valid")
    if not now < policy.expires:
        wrong.add("policy-expired")
    roles = [role for role, name in spec.roles.items() if name == node]
    if not roles:
        return wrong | {"not-a-participant"}
    mine = [given for given in spec.inputs if given.role == roles[0]]
    for banned in policy.negative_list:
        if any((g.dataset, banned.column) == (banned.dataset, c) for g in mine for c in g.columns.values()):
            wrong.add("negative-list")
    if spec.collaboration != "gz.example" or spec.roster_digest != roster.digest:
        wrong.add("wrong-roster")
    if roster.expires <= now:
        wrong.add("roster-expired")
    if spec.created - now > timedelta(minutes=5):
        wrong.add("job-from-the-future")
    if not spec.expires > now:
        wrong.add("job-expired")
    if spec.expires - spec.created > timedelta(days=30):
        wrong.add("job-too-long")
    aliases = [alias for alias, who in policy.requesters.items() if spec.requester in who.keys]
    if not aliases or asking(case) is None:
        wrong.add("unknown-requester")
    elif policy.requesters[aliases[0]].organisation not in (None, asking(case)):
        wrong.add("requester-moved")
    purpose = policy.purposes.get(spec.purpose)
    if purpose is None:
        wrong.add("unknown-purpose")
    else:
        if purpose.legal_basis != spec.legal_basis:
            wrong.add("legal-basis-mismatch")
        midnight = datetime.combine(purpose.valid_until + timedelta(days=1), datetime.min.time())
        if now >= midnight.replace(tzinfo=ZoneInfo(policy.timezone)).astimezone(UTC):
            wrong.add("purpose-ended")
    if any(given.dataset not in policy.datasets for given in mine):
        wrong.add("unknown-dataset")
    kind = next((t for t in TYPES if t.name == spec.job_type), None)
    if kind is None:
        return wrong | {"unknown-job-type"}
    try:
        kind.check(spec)
    except InputError as error:
        return wrong | {error.code}
    requester = asking(case)
    if requester is not None and any(s.these & s.those for s in kind.separation(spec, requester)):
        wrong.add("organisations-not-separate")
    return wrong


def asking(case: Case) -> Organisation | None:
    found = [a.organisation for a in case.roster.analysts if sha256_digest(a.key) == case.spec.requester]
    return found[0] if found else None


def wrong_with(rule: Rule, case: Case) -> set[str]:
    """Codes of everything that keeps the job out of this rule; only asked of well-formed jobs."""
    policy, spec = case.policy, case.spec
    kind = next(t for t in TYPES if t.name == spec.job_type)
    role = next(role for role, name in spec.roles.items() if name == case.node)
    mine = next((given for given in spec.inputs if given.role == role), None)
    kinds = kind.kinds(spec, role)
    wrong = set()
    if not any(spec.requester in policy.requesters[alias].keys for alias in rule.requesters):
        wrong.add("requester-not-allowed")
    if spec.purpose not in rule.purposes:
        wrong.add("purpose-not-allowed")
    if spec.job_type not in rule.job_types:
        wrong.add("job-type-not-allowed")
    if mine is None:
        if rule.datasets or not kinds <= set(rule.roles):
            wrong.add("role-not-allowed")
    else:
        if mine.dataset not in rule.datasets:
            wrong.add("dataset-not-allowed")
        if rule.roles and not kinds <= set(rule.roles):
            wrong.add("role-not-allowed")
        needs = {need.slot: need for need in kind.columns(spec, role)}
        existing = policy.datasets[mine.dataset].columns
        for slot, name in mine.columns.items():
            if name not in existing:
                wrong.add("unknown-column")
                continue
            if name not in rule.columns:
                wrong.add("column-not-allowed")
            if needs[slot].use not in existing[name].use:
                wrong.add("column-use")
            if existing[name].type not in needs[slot].types:
                wrong.add("column-type")
    may_receive = set(rule.recipients)
    if "bureau" in may_receive:
        may_receive.add(policy.requesters["bureau"].organisation or "data-bureau.gz.example")
    if any(recipient not in may_receive for recipient in spec.recipients):
        wrong.add("recipient-not-allowed")
    giving = {given.organisation for given in spec.inputs}
    if rule.min_organisations and len(giving) < rule.min_organisations:
        wrong.add("too-few-organisations")
    k = spec.params["k"] if spec.params.get("present_in") == "at_least" else len(giving)
    if rule.min_sources and k < rule.min_sources:
        wrong.add("too-few-sources")
    return wrong


def missing_approvals(rule: Rule, case: Case) -> int:
    """The fewest further approvals, by people nobody has seen yet, that would do; by trying."""
    usable = {
        (a.key, a.approver)
        for a in case.approvals
        if a.approver in rule.approvers
        and a.key in case.policy.approvers[a.approver].keys
        and a.key != case.spec.requester
        and a.approval.job == case.spec.job_id
        and a.approval.node == case.node
        and a.approval.policy_digest == DIGEST
        and a.approval.rule == rule.id
        and a.approval.cost == "0"
        and a.approval.expires > case.now
    }
    for more in range(rule.approvals + 1):
        for newcomers in product(rule.approvers, repeat=more):
            people = [*usable, *((f"newcomer {n}", capacity) for n, capacity in enumerate(newcomers))]
            if any(enough(rule, choice) for choice in subsets(people)):
                return more
    raise AssertionError


def subsets(people: list[tuple[str, str]]) -> Any:
    return chain.from_iterable(combinations(people, size) for size in range(len(people) + 1))


def enough(rule: Rule, choice: tuple[tuple[str, str], ...]) -> bool:
    people, capacities = {key for key, _ in choice}, {capacity for _, capacity in choice}
    return (
        len(people) == len(choice)
        and len(people) >= rule.approvals
        and len(capacities) >= min(rule.approvals, len(rule.approvers))
    )


def constraints(rule: Rule) -> Constraints:
    return Constraints(
        min_group_size=max(10, rule.min_group_size or 0),
        min_organisations=rule.min_organisations,
        min_sources=rule.min_sources,
        max_rows=rule.max_rows,
        max_fraction=rule.max_fraction,
        min_coverage=rule.min_coverage,
        max_runtime_s=min(3600, rule.max_runtime_s or 3600),
    )


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_decide_says_what_the_oracle_says(world: Any, data: st.DataObject):
    check(data.draw(cases(world)))


@pytest.mark.long
@seed(20261122)
@settings(max_examples=20_000, deadline=None, database=None)
@given(data=st.data())
def test_decide_says_what_the_oracle_says_in_many_cases(world: Any, data: st.DataObject):
    check(data.draw(cases(world)))


def check(case: Case) -> None:
    decision = decide(
        ActivePolicy(case.policy, DIGEST),
        case.spec,
        node=case.node,
        roster=case.roster,
        now=case.now,
        approvals=case.approvals,
        job_types=TYPES,
    )
    wrong = wrong_anywhere(case)
    readable = wrong <= {"organisations-not-separate"}
    per_rule = {rule.id: wrong_with(rule, case) for rule in case.policy.rules} if readable else {}
    fitting = [rule for rule in case.policy.rules if not wrong and not per_rule[rule.id]]
    event(type(decision).__name__)
    if isinstance(decision, Refuse):
        event(decision.code)
        assert fitting == []
        assert decision.code in wrong.union(*per_rule.values())
        if decision.rule in per_rule:
            assert decision.code in wrong | per_rule[decision.rule]
        return
    assert [rule.id for rule in fitting] == [decision.rule]
    assert decision.terms.constraints == constraints(fitting[0])
    missing = missing_approvals(fitting[0], case)
    assert (isinstance(decision, Permit), isinstance(decision, Ask)) == (missing == 0, missing > 0)
    if isinstance(decision, Ask):
        assert decision.missing == missing
        assert set(decision.approvers) <= set(fitting[0].approvers)
