"""`decide` against an oracle that was written from trust §4 alone, slowly: it tries every rule, every choice
of approvals, every earlier row, and knows no order of checks, no index and no Rényi order but where ε at δ
needs one. Costs are added as what people say they are, ρ and ε, not as ledgers keep them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, time, timedelta
from fractions import Fraction
from itertools import chain, combinations, product
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import event, given, seed, settings
from hypothesis import strategies as st

from policies.decide import decide
from policies.decision import Ask, Permit, Refuse, VerifiedApproval
from policies.history import Past, Remembered
from policies.model import (
    ActivePolicy,
    Approver,
    Banned,
    Budget,
    Column,
    Dataset,
    Defaults,
    Policy,
    Purpose,
    Quota,
    Rate,
    Requester,
    Retention,
    Rule,
    Stop,
    Unit,
    Window,
    Witnessing,
)
from protocols.dp.cost import ORDERS, Cost
from protocols.encoding import sha256_digest
from protocols.errors import InputError
from protocols.ids import DatasetName, Digest, JobId, KeyId, NodeName, Organisation, Role
from protocols.jobs.job_type import OutputClass
from protocols.statistics.differencing import Between, Query
from protocols.wire import Approval, Constraints, JobInput, JobSpec, Roster, RosterNode

DIGEST = Digest(sha256_digest(b"policy"))
KEYS = {name: KeyId(sha256_digest(name.encode())) for name in ("dpo 1", "dpo 2", "owner 1", "legal 1")}
FORMER = KeyId(sha256_digest(b"an analyst who left"))
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
ZONES = ("Asia/Shanghai", "America/Los_Angeles", "America/St_Johns")

PURPOSES = [("P-2026-001", "P-2026-002")] * 3 + [("P-2026-001",), ("P-2026-002",)]
JOB_TYPES = [("crosscheck/1", "count/1")] * 3 + [("crosscheck/1",), ("count/1",)]


@dataclass(frozen=True)
class Price:
    """What an attempt costs, in words: noise of ρ or ε, δ, rows, questions."""

    rho: Fraction = Fraction(0)
    epsilon: Fraction = Fraction(0)
    delta: Fraction = Fraction(0)
    rows: int = 0
    queries: int = 0

    @property
    def cost(self) -> Cost:
        counts = Cost(rows=self.rows, queries=self.queries)
        return Cost.zcdp(self.rho, self.delta) + Cost.pure_dp(self.epsilon) + counts


@dataclass(frozen=True)
class Case:
    policy: Policy
    stops: tuple[Stop, ...]
    spec: JobSpec
    node: NodeName
    roster: Roster
    now: datetime
    approvals: tuple[VerifiedApproval, ...]
    past: tuple[tuple[Past, Price], ...]
    attempt: int
    types: Any


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
    draw = Draw(drawn, drawn(st.frozensets(st.integers(1, 180), max_size=4)))
    department = draw(st.sampled_from(["human-resources", "human-resources", "health", "statistics"]))
    node, now = world.node(department), draw(st.sampled_from(moments(world)))
    zone = draw(st.sampled_from(ZONES))
    day = now.astimezone(ZoneInfo(zone)).date()
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
    columns |= described_columns(draw, columns)
    dataset = Dataset(
        source="local:own",
        grade=draw(st.sampled_from(["general-4", "general-4", "important"]))
        if not draw.happens()
        else "core",
        personal=draw(st.sampled_from(["sensitive", "personal", "none"])),
        columns=columns,
        unit=draw.usually(Unit(column="resident_id", max_rows=1), None),
    )
    other = Dataset(source="local:other", grade="general-4", personal="sensitive", columns=columns)
    described = [own, "other"] if not draw.happens() else ["other"]
    budgets = {f"budget-{n}": budget(draw, described[0]) for n in range(draw(st.integers(0, 2)))}
    quotas = {f"quota-{n}": quota(draw, described[0]) for n in range(draw(st.integers(0, 2)))}
    rules: list[Rule] = []
    for number in range(draw(st.integers(1, 3))):
        neutral = department == "statistics" and bool(draw(st.integers(0, 5)))
        approvers = draw.some(["dpo", "owner", "legal"])
        spends = None if neutral or not budgets else draw(st.sampled_from([None, *budgets]))
        rule = Rule(
            id=f"R{number}",
            requesters=draw.some(["bureau", "police"]),
            purposes=draw(st.sampled_from(PURPOSES)),
            job_types=draw(st.sampled_from(JOB_TYPES)),
            recipients=draw.some(["police.gz.example", "bureau"]),
            roles=draw.some(
                ["matcher", "aggregator"] if neutral else ["source", "key-holder"], least=int(neutral)
            ),
            datasets=() if neutral else draw.some(described),
            columns=() if neutral else draw.some(["resident_id", "street", "last_seen_month", "age"]),
            approvals=draw(st.integers(0, 4)),
            approvers=approvers,
            min_group_size=draw(st.sampled_from([None, 5, 50])),
            min_organisations=draw.usually(None, 5, 6),
            min_sources=draw.usually(None, 2, 3, 6),
            persons_in=draw(st.sampled_from([None, None, 1, 3, 9])),
            max_rows=draw(st.sampled_from([None, 1000])),
            max_fraction=draw(st.sampled_from([None, Fraction(1, 3)])),
            max_runtime_s=draw(st.sampled_from([None, 60, 7200])),
            max_per_minute=draw(st.sampled_from([None, 30])),
            max_series_days=draw(st.sampled_from([None, 30])),
            recipes=draw(st.sampled_from([(), ("logistic",)])),
            exact_training=draw(st.booleans()),
            only={} if neutral else draw(st.sampled_from(SCOPED)),
            budget=spends,
            max_cost=None if spends is None else draw(st.sampled_from([None, None, Fraction(1, 4)])),
            quotas=() if neutral else tuple(quotas),
            rate=draw(st.none() | rates),
            window=draw(st.sampled_from([None, *WINDOWS])),
        )
        if not any(fit_one_job(rule, other) for other in rules):
            rules.append(rule)
    policy = Policy(
        schema="minshu-policy/1",
        policy_id=draw.usually(node, "other.gz.example/node-a"),
        version=1,
        not_before=now - timedelta(days=1) if not draw.happens() else now + timedelta(seconds=1),
        expires=now + timedelta(days=1) if not draw.happens() else now,
        timezone=zone,
        controller="x",
        defaults=Defaults(
            min_group_size=10,
            differencing_days=draw(st.sampled_from([30, 365])),
            release_requires=draw(st.sampled_from(["cosigned", "cosigned", "checkpoint"])),
        ),
        witnesses=draw.usually(None, *WITNESSES),
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
        datasets={name: dataset if name == own else other for name in described},
        budgets=budgets,
        quotas=quotas,
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
        stops=stops(draw, own, "sha256:" + "0" * 64),
    )
    roster = replace(
        world.roster,
        expires=now + timedelta(days=9) if not draw.happens() else now,
        nodes=(
            *(
                replace(one, witness_vkeys=()) if mute else one
                for one, mute in zip(world.roster.nodes, draw.usually([False] * 7, *MUTE), strict=True)
            ),
            *draw.usually((), parts(world)),
        ),
    )
    spec = job(draw, world, node, now)
    spec = replace(spec, roster_digest=draw.usually(roster.digest, sha256_digest(b"another")))
    halted = stops(draw, own, spec.job_id)
    attempt = draw(st.integers(0, 3))
    case = Case(policy, halted, spec, node, roster, now, (), (), attempt, world.types)
    case = replace(case, past=tuple(past(draw, world, case) for _ in range(draw(st.integers(0, 6)))))
    return replace(case, approvals=tuple(approval(draw, world, case) for _ in range(draw(st.integers(0, 4)))))


def described_columns(draw: Draw, columns: dict[str, Column]) -> dict[str, Column]:
    """Return the columns whose values the policy describes: some streets, and ages."""
    found = {}
    if "street" in columns and draw(st.booleans()):
        values = draw(st.sampled_from([("东区", "西区", "北区"), ("东区", "西区"), ("东区",)]))
        found["street"] = msgspec.structs.replace(columns["street"], type="enum", values=values)
    if draw.happens():
        return found
    found["age"] = Column(
        type=draw.usually("int", "decimal", "code"),
        use=draw.usually(
            ("group", "filter", "sum", "mean"), ("group",), ("sum",), ("mean", "group", "filter")
        ),
        range=draw(st.sampled_from([None, (0, 5), (1, 4), (0, 9)]).map(fractions)),
        bins=draw(st.sampled_from([None, (0, 2, 4), (0, 1, 2, 3)]).map(fractions)),
    )
    return found


def fractions(numbers: tuple[int, ...] | None) -> tuple[Fraction, ...] | None:
    return None if numbers is None else tuple(map(Fraction, numbers))


def moments(world: Any) -> list[datetime]:
    """A day like others, and the last and first moments of days, weeks, months, years in all the zones."""
    ends = [datetime(2026, 12, 7), datetime(2026, 12, 31), datetime(2027, 1, 1), datetime(2027, 1, 12, 13)]
    turns = [end.replace(tzinfo=ZoneInfo(zone)).astimezone(UTC) for end in ends for zone in ZONES]
    return [world.now] * 6 + [turn - timedelta(seconds=s) for turn in turns for s in (0, 1)]


WITNESSES = [
    *(Witnessing(quorum=quorum) for quorum in (1, 3, 4, 6, 7)),
    Witnessing(organisations=("police.gz.example", "health.gz.example", "tax.gz.example")),
    Witnessing(quorum=2, organisations=("police.gz.example", "education.gz.example", "housing.gz.example")),
    Witnessing(quorum=1, organisations=("tax.gz.example",)),
]
MUTE = [
    [True] * 7,
    [True, False, True, False, True, False, True],
    [False, False, True, True, True, True, True],
]
"""Whose nodes have no witness keys, in the roster's order."""


def parts(world: Any) -> tuple[RosterNode, ...]:
    """Nodes of organisations that are parts of others."""
    node = world.roster.nodes[0]
    return tuple(
        replace(node, name=NodeName(f"audit.{name}.gz.example/node-b"), witness_vkeys=("a witness key",))
        for name in ("human-resources", "health", "statistics", "police")
    )


SCOPED = [{}] * 6 + [{"street": ("东区",)}, {"street": ("西区", "东区")}]
"""Which rows a rule is only for."""
OTHERS = ("police.gz.example:population", "health.gz.example:patients", "housing.gz.example:leases")
SCOPES = ["all-requesters", "per-requester", "per-purpose", "per-pair"]
PERIODS = ["day", "week", "calendar-month", "calendar-quarter", "calendar-year"]
rates = st.builds(
    lambda jobs, per: Rate(jobs=jobs, per=per),
    st.integers(1, 3),
    st.sampled_from(["hour", "day", "week", "month", "quarter", "year"]),
)
WINDOWS = [
    Window(days=DAYS, from_=time(0), to=time(23, 59, 59)),
    Window(days=DAYS, from_=time(8), to=time(20)),
    Window(days=DAYS[:5], from_=time(19, 4, 5), to=time(11, 4, 5)),
    Window(days=("mon", "thu"), from_=time(22), to=time(9, 30)),
    Window(days=(), from_=time(0), to=time(12)),
]


def budget(draw: Draw, dataset: str) -> Budget:
    notion = draw(st.sampled_from(["zcdp", "pure-dp", "approximate-dp"]))
    delta = draw(st.sampled_from([Fraction("1e-9"), Fraction("3e-9")]))
    if notion == "pure-dp" or (notion == "zcdp" and draw(st.booleans())):
        delta = None
    return Budget(
        dataset=dataset,
        notion=notion,
        limit=draw(st.sampled_from(["0.25", "0.5", "1", "2", "4"]).map(Fraction)),
        delta=delta,
        period=draw(st.sampled_from(PERIODS)),
        scope=draw(st.sampled_from(SCOPES)),
    )


def quota(draw: Draw, dataset: str) -> Quota:
    counts = draw(st.sampled_from(["rows", "queries"]))
    return Quota(
        dataset=dataset,
        counts=counts,
        limit=draw(st.sampled_from([1000, 2000, 5000] if counts == "rows" else [1, 2, 4])),
        period=draw(st.sampled_from(PERIODS)),
        scope=draw(st.sampled_from(SCOPES)),
    )


def stops(draw: Draw, dataset: str, job: str) -> tuple[Stop, ...]:
    found = []
    for scope, values in (
        ("all", [None]),
        ("requester", ["bureau", "police"]),
        ("purpose", ["P-2026-001", "P-2026-002"]),
        ("dataset", [dataset, "other"]),
        ("job", [job, "sha256:" + "1" * 64]),
    ):
        if draw.happens():
            found.append(Stop(scope=scope, value=draw(st.sampled_from(values)), reason="x"))
    return tuple(found)


def prices(draw: Draw) -> Price:
    noise = [("1/8", 0), ("1/4", 0), (0, "1/8"), (0, "1/2"), (0, "0.1")]
    rho, epsilon = draw(st.sampled_from([(0, 0)] * 5 + noise))
    delta = draw(st.sampled_from([0, 0, "1e-9"])) if rho else 0
    rows = draw(st.sampled_from([0, 0, 1000]))
    return Price(Fraction(rho), Fraction(epsilon), Fraction(delta), rows, draw(st.sampled_from([0, 1, 1])))


def queries(draw: Draw, noisy: bool) -> Query:
    filters: dict[str, frozenset[str] | Between] = {}
    if draw(st.booleans()):
        filters["street"] = draw(st.frozensets(st.sampled_from(["东区", "西区", "北区"]), min_size=1))
    if draw(st.booleans()):
        low, high = sorted(draw(st.tuples(st.integers(0, 5), st.integers(0, 5))))
        ends = st.sampled_from([(low, high), (None, low), (high, None)])
        filters["age"] = Between(*(None if end is None else Fraction(end) for end in draw(ends)))
    return Query(draw(st.sampled_from(["count/1", "other/1"])), filters, noisy, draw(st.booleans()))


def past(draw: Draw, world: Any, case: Case) -> tuple[Past, Price]:
    spec, own_job = case.spec, not draw(st.integers(0, 2))
    ago = [
        (0, 0),
        (0, 1),
        (1, 0),
        (6, 0),
        (20, 0),
        (30, 0),
        (29, 86399),
        (80, 0),
        (200, 0),
        (365, 0),
        (400, 0),
    ]
    days, seconds = draw.usually(draw(st.sampled_from(ago)), (-1, 3600), (-9, 0))
    asked, cost = query_of(case), prices(draw)
    another = queries(draw, noisy=bool(cost.rho or cost.epsilon))
    row = Past(
        job=spec.job_id if own_job else JobId(sha256_digest(bytes([draw(st.integers(0, 3))]))),
        attempt=draw(st.integers(1, 4)),
        time=case.now - timedelta(days=days, seconds=seconds),
        requester=draw(st.sampled_from([world.key("analyst"), world.key("policeman"), FORMER])),
        purpose=draw.usually(draw(st.sampled_from(["P-2026-001", "P-2026-002"])), "P-2025-001"),
        job_type=draw(st.sampled_from(["crosscheck/1", "count/1"])),
        source=draw.usually("" if asked is None else "own", "other", ""),
        unit="resident_id",
        cost=cost.cost,
        query=draw(st.sampled_from([asked, asked, another, another, None])),
        charged=draw(st.booleans()),
        exact=draw(st.booleans()),
        rule=draw(st.sampled_from(["R0", "R1", "R9"])),
        partners=draw(st.sampled_from([None, (), OTHERS[:1], OTHERS[1:3], OTHERS])),
    )
    return row, cost


def fit_one_job(one: Rule, other: Rule) -> bool:
    """Whether some (requester, purpose, type, seat) is in both; by trying all of them."""

    def jobs(rule: Rule) -> set[tuple[str, ...]]:
        return set(product(rule.requesters, rule.purposes, rule.job_types, rule.datasets or rule.roles))

    return bool(jobs(one) & jobs(other))


def job(draw: Draw, world: Any, node: NodeName, now: datetime) -> JobSpec:
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
        job_type=draw.usually("crosscheck/1", "retrain/1"),
    )
    if draw(st.booleans()):
        counted = world.count(**draw.usually(asked(draw), {"k": 1}))
        if not counted.params.keys().isdisjoint({"bins", "bounds", "kept"}):
            ages = {"street": "street", "age": draw.usually("age", "street", "resident_id")}
            counted = replace(counted, inputs=tuple(replace(i, columns=ages) for i in counted.inputs))
        spec = replace(
            counted,
            **{
                name: getattr(spec, name) for name in ("purpose", "legal_basis", "requester", "collaboration")
            },
            created=spec.created,
            expires=spec.expires,
            recipients=(Organisation(draw.usually("data-bureau.gz.example", "police.gz.example")),),
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


def asked(draw: Draw) -> dict[str, Any]:
    """Params of count/1: how much noise, for whom; at times no more than exact amounts."""
    if not draw(st.integers(0, 3)):
        return {"bounds": ["0", "9"]}
    noise = [{}, {}, {"rho": "1/8"}, {"rho": "1/4"}, {"rho": "1/8", "delta": "1/1000000000"}]
    params = draw(st.sampled_from([*noise, {"rho": "1/2"}, {"epsilon": "1/8"}, {"epsilon": "0.1"}]))
    whom = [{}, {"streets": ["东区"]}, {"streets": ["西区", "北区"]}, {"ages": [0, 2]}, {"ages": [3, 5]}]
    cells = [{}, {}, {"values": ["东区"]}, {"values": ["东区", "西区"]}, {"values": ["东区", "北区"]}]
    ages = [{}, {}, {}, {"bins": ["0", "2"]}, {"bins": ["0", "1"]}, {"bins": ["3/2"]}]
    sums = [{}, {}, {}, {"bounds": ["0", "5"]}, {"bounds": ["1", "9"]}, {"bounds": ["1/2", "4"]}]
    ends = [
        {},
        {},
        {},
        *({"kept": kept} for kept in (["2", ""], ["", "1"], ["", "3"], ["0", "1"], ["1", ""])),
    ]
    within = [{}, {}, {"persons_in": 4}, {"persons_in": 3}, {"persons_in": 1}]
    found = dict(params)
    for choices in (whom, cells, ages, sums, ends, within):
        found |= draw(st.sampled_from(choices))
    return found


def changed(given: JobInput, change: Mapping[str, Any]) -> JobInput:
    return replace(given, **change)


def approval(draw: Draw, world: Any, case: Case) -> VerifiedApproval:
    spec, node, now = case.spec, case.node, case.now
    rules = {rule.id: rule for rule in case.policy.rules}
    rule = draw(st.sampled_from([*rules, *rules, "R9"]))
    priced = price(case, rules[rule]).cost if rule in rules else Cost()
    name = draw(st.sampled_from([*KEYS, "analyst"]))
    key = KEYS.get(name, world.key("analyst"))
    said = Approval(
        job=draw.usually(spec.job_id, sha256_digest(b"other")),
        node=draw.usually(node, NodeName("other.gz.example/node-a")),
        policy_digest=draw.usually(DIGEST, sha256_digest(b"old")),
        rule=rule,
        cost=draw.usually(priced, priced + Cost(queries=1)).encode(),
        issued=now,
        expires=draw.usually(now + timedelta(days=1), now),
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
    for stop in (*case.stops, *policy.stops):
        named = {
            "requester": [alias for alias, who in policy.requesters.items() if spec.requester in who.keys],
            "purpose": [spec.purpose],
            "dataset": [g.dataset for g in mine],
            "job": [spec.job_id],
        }
        if stop.scope == "all" or stop.value in named[stop.scope]:
            wrong.add("stopped")
    if any(g.dataset in policy.datasets and policy.datasets[g.dataset].grade == "core" for g in mine):
        wrong.add("core-data")
    for banned in policy.negative_list:
        if any((g.dataset, banned.column) == (banned.dataset, c) for g in mine for c in g.columns.values()):
            wrong.add("negative-list")
    if spec.collaboration != "gz.example" or spec.roster_digest != roster.digest:
        wrong.add("wrong-roster")
    if roster.expires <= now:
        wrong.add("roster-expired")
    if policy.defaults.release_requires == "cosigned" and not watched(case):
        wrong.add("no-quorum-possible")
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
    kind = next((t for t in case.types if t.name == spec.job_type), None)
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


def watched(case: Case) -> bool:
    """Whether some quorum of other houses is there, and each two have a house in common; by trying all."""
    own, clause = case.node.split("/")[0], case.policy.witnesses
    names = {node.name.split("/")[0] for node in case.roster.nodes if node.witness_vkeys}
    if clause is not None and clause.organisations:
        names &= set(clause.organisations)
    others = {
        name for name in names if not f".{name}".endswith(f".{own}") and not f".{own}".endswith(f".{name}")
    }
    houses = {name for name in others if not any(name.endswith(f".{whole}") for whole in others)}
    may_be_away = max((away for away in range(9) if 3 * away + 1 <= len(houses)), default=0)
    quorum = len(houses) - may_be_away if clause is None or clause.quorum is None else clause.quorum
    quorums = [set(chosen) for chosen in combinations(houses, quorum)] if quorum else []
    return bool(quorums) and all(one & other for one in quorums for other in quorums)


def said_to_strangers(case: Case) -> set[str]:
    """Codes that somebody may hear whom the roster or the policy does not list: none about its contents."""
    said = {"policy-of-another-node", "policy-not-yet-valid", "policy-expired", "not-a-participant"}
    said |= {"wrong-roster", "roster-expired", "unknown-member", "unknown-requester", "no-quorum-possible"}
    said |= {"job-from-the-future", "job-expired", "job-too-long"}
    everything = any(stop.scope == "all" for stop in (*case.stops, *case.policy.stops))
    return said | {"stopped"} if everything else said


def asking(case: Case) -> Organisation | None:
    found = [a.organisation for a in case.roster.analysts if sha256_digest(a.key) == case.spec.requester]
    return found[0] if found else None


def wrong_with(rule: Rule, case: Case) -> set[str]:
    """Codes of everything that keeps the job out of this rule; only asked of well-formed jobs."""
    policy, spec = case.policy, case.spec
    kind = next(t for t in case.types if t.name == spec.job_type)
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
        existing = policy.datasets[mine.dataset].columns
        for slot, name in mine.columns.items():
            if name not in existing:
                wrong.add("unknown-column")
                continue
            if name not in rule.columns:
                wrong.add("column-not-allowed")
            wrong |= misused(slot, existing[name], case)
        for column, allowed in rule.only.items():
            # Of these job types, a count by streets that it names is the only one that is about some rows.
            named = spec.params.get("values", []) if mine.columns.get("street") == column else []
            if spec.job_type != "count/1" or not named or not set(named) <= set(allowed):
                wrong.add("outside-scope")
        protected = policy.datasets[mine.dataset].personal != "none"
        if spec.job_type == "count/1" and protected and policy.datasets[mine.dataset].unit is None:
            wrong.add("missing-unit")
        if spec.job_type == "count/1":
            # Everywhere, unless the rule says of how few departments it can be taken for granted.
            everywhere = len(spec.inputs)
            if spec.params.get("persons_in", everywhere) < min(rule.persons_in or everywhere, everywhere):
                wrong.add("persons-in")
        noise = spec.job_type == "count/1" and {"rho", "epsilon"} & set(spec.params)
        paid = any(isinstance(clause, Budget) for clause in limits(rule, case).values())
        if noise and protected and not paid:
            wrong.add("no-budget")
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
    return wrong | used_up(rule, case)


def misused(slot: str, column: Column, case: Case) -> set[str]:
    """Codes of what is wrong with a column in a slot, from the words of the job types alone."""
    params, found = case.spec.params, set()
    uses, types = {
        "key": (["join"], ["resident-id"]),
        "street": (["group"], ["code", "enum"]),
        "last_seen": (["carry"], ["month"]),
        "age": (
            ["group"] * ("bins" in params)
            + ["sum", "mean"] * ("bounds" in params)
            + ["filter"] * ("kept" in params),
            ["int", "decimal"],
        ),
    }[slot]
    if any(use not in column.use for use in uses):
        found.add("column-use")
    if column.type not in types:
        found.add("column-type")
    if slot == "street" and column.values and any(v not in column.values for v in params.get("values", [])):
        found.add("column-values")
    if slot != "age":
        return found
    if column.bins and any(Fraction(b) not in column.bins for b in params.get("bins", [])):
        found.add("column-bins")
    if column.bins and "kept" in params and divided(column, *params["kept"]):
        found.add("column-bins")
    if "bounds" in params and not {"rho", "epsilon"} & set(params):
        low, high = map(Fraction, params["bounds"])
        # An amount that the policy says there may be, and the job has no room for; by trying tenths.
        tenths = (Fraction(n, 10) for n in range(-100, 200))
        there = [] if column.range is None else [n for n in tenths if column.range[0] <= n <= column.range[1]]
        if not there or any(n < low or n > high for n in there):
            found.add("column-range")
    return found


def divided(column: Column, low: str, high: str) -> bool:
    """Whether a filter keeps some numbers of one of the policy's groups, and not others; by trying."""
    assert column.bins is not None
    step = Fraction(1, 10) if column.type == "decimal" else Fraction(1)
    groups: dict[int, set[bool]] = {}
    for n in range(-20, 200):
        group = sum(bound <= n * step for bound in column.bins)
        kept = (not low or n * step >= Fraction(low)) and (not high or n * step <= Fraction(high))
        groups.setdefault(group, set()).add(kept)
    return any(len(kept) > 1 for kept in groups.values())


def given_by(case: Case) -> JobInput | None:
    """What this node brings."""
    role = next((role for role, name in case.spec.roles.items() if name == case.node), None)
    return next((given for given in case.spec.inputs if given.role == role), None)


def query_of(case: Case) -> Query | None:
    """What the job says it selects; None where it is not well-formed."""
    kind = next((t for t in case.types if t.name == case.spec.job_type), None)
    role = next((role for role, name in case.spec.roles.items() if name == case.node), None)
    try:
        return None if kind is None or role is None else kind.query(case.spec, role)
    except InputError:
        return None


def price(case: Case, rule: Rule) -> Price:
    """What one attempt costs under a rule, from the words of the job types alone."""
    if given_by(case) is None:
        return Price()
    if case.spec.job_type != "count/1":
        return Price(rows=rule.max_rows or 0, queries=1)
    noise = {name: Fraction(case.spec.params.get(name, 0)) for name in ("rho", "epsilon", "delta")}
    return Price(**noise, queries=1)


def called(unit: str, moment: datetime, zone: str) -> tuple[int, ...]:
    """What people call the period of a moment."""
    wall = moment.astimezone(ZoneInfo(zone))
    return {
        "hour": (wall.year, wall.month, wall.day, wall.hour),
        "day": (wall.year, wall.month, wall.day),
        "week": tuple(wall.isocalendar())[:2],
        "month": (wall.year, wall.month),
        "quarter": (wall.year, (wall.month + 2) // 3),
        "year": (wall.year,),
    }[unit.replace("calendar-", "")]


def clock(case: Case) -> datetime:
    """The time that counts for periods."""
    return max([case.now, *(row.time for row, _ in case.past)])


def pairs(limit: Budget | Quota, case: Case) -> list[str]:
    """What else the job is over, each of which has its own count; alone, nothing is."""
    if limit.scope != "per-pair":
        return [""]
    others = [g for g in case.spec.inputs if case.spec.roles[g.role] != case.node]
    return [f"{given.organisation}:{given.dataset}" for given in others] or ["nothing"]


def counts(limit: Budget | Quota, case: Case, pair: str) -> list[Price]:
    """What earlier attempts have spent of a limit in the current period."""
    policy, spec = case.policy, case.spec
    aliases = {key: alias for alias, who in policy.requesters.items() for key in who.keys}
    source = policy.datasets[limit.dataset].source.split(":")[1]
    found = []
    for row, cost in case.past:
        mine = row.job == spec.job_id and row.attempt == case.attempt
        now = called(limit.period, clock(case), policy.timezone)
        if row.source != source or mine or called(limit.period, row.time, policy.timezone) != now:
            continue
        if limit.scope == "per-purpose" and row.purpose != spec.purpose and row.purpose in policy.purposes:
            continue
        another = aliases.get(row.requester) not in (None, aliases[spec.requester])
        if limit.scope == "per-requester" and another:
            continue
        if (
            limit.scope == "per-pair"
            and row.partners is not None
            and pair not in (row.partners or ["nothing"])
        ):
            continue
        found.append(cost)
    return found


def measure(limit: Budget | Quota, prices: list[Price]) -> float | Fraction | None:
    """Return what prices come to in a limit's own measure, None where that measure cannot hold them."""
    if isinstance(limit, Quota):
        return Fraction(sum(getattr(price, limit.counts) for price in prices))
    rho, epsilon, delta = (
        sum((getattr(price, name) for price in prices), Fraction(0)) for name in ("rho", "epsilon", "delta")
    )
    squares = sum((price.epsilon**2 for price in prices), Fraction(0))
    if limit.notion == "pure-dp":
        return None if rho or delta else epsilon
    if limit.notion == "zcdp":
        # ε-DP is ε²/2-zCDP (Bun and Steinke 2016, proposition 1.4).
        return None if delta > (limit.delta or 0) else rho + squares / 2
    if not rho and not epsilon:
        return None if delta > limit.delta else Fraction(0)
    left = float(limit.delta - delta)
    if left <= 0:
        return None
    return max(
        0.0,
        min(
            sum(float(p.rho) * a + min(float(p.epsilon), a * float(p.epsilon) ** 2 / 2) for p in prices)
            + math.log1p(-1 / a)
            - math.log(left * a) / (a - 1)
            for a in map(float, ORDERS)
        ),
    )


def limits(rule: Rule, case: Case) -> dict[str, Budget | Quota]:
    """The rule's budget and quotas of the dataset that is brought."""
    brings = given_by(case)
    names = [name for name in (rule.budget, *rule.quotas) if name is not None]
    clauses = {name: case.policy.budgets.get(name) or case.policy.quotas[name] for name in names}
    return {n: c for n, c in clauses.items() if brings is not None and c.dataset == brings.dataset}


def used_up(rule: Rule, case: Case) -> set[str]:
    """Codes of what earlier attempts leave no room for."""
    policy, spec, brings = case.policy, case.spec, given_by(case)
    if brings is not None and brings.dataset not in policy.datasets:
        return set()
    wrong = set()
    source = "" if brings is None else policy.datasets[brings.dataset].source.split(":")[1]
    others = [row for row, _ in case.past if (row.job, row.attempt) != (spec.job_id, case.attempt)]
    if sum(row.job == spec.job_id and row.charged and row.source == source for row in others) > 2:
        wrong.add("attempts-exhausted")
    if rule.rate is not None:
        sources = [
            policy.datasets[name].source.split(":")[1] for name in rule.datasets if name in policy.datasets
        ]
        aliases = {key: alias for alias, who in policy.requesters.items() for key in who.keys}
        jobs = set()
        for row in others:
            known = aliases.get(row.requester)
            covered = row.purpose in rule.purposes or row.purpose not in policy.purposes
            covered &= row.job_type in rule.job_types
            covered &= known is None or known in rule.requesters
            now = called(rule.rate.per, clock(case), policy.timezone)
            if (
                row.source in (sources or [""])
                and row.job != spec.job_id
                and (row.rule == rule.id or covered)
                and called(rule.rate.per, row.time, policy.timezone) == now
            ):
                jobs.add(row.job)
        if len(jobs) >= rule.rate.jobs:
            wrong.add("rate-exceeded")
    charged = limits(rule, case)
    asked = query_of(case)
    paid = any(isinstance(clause, Budget) for clause in charged.values())
    if asked is not None and not (asked.noisy and paid):
        days = timedelta(days=policy.defaults.differencing_days)
        if any(
            row.source == source and row.exact and row.query is not None and not row.query.noisy
            and case.now - row.time < days and subtracts(asked, row.query)
            for row in others
        ):  # fmt: skip
            wrong.add("differencing")
        if asked.amounts and any(
            row.source == source and row.exact and row.query is not None and not row.query.noisy
            and case.now - row.time < days and row.job != spec.job_id
            and (row.query.asks, row.query.filters) == (asked.asks, asked.filters)
            for row in others
        ):  # fmt: skip
            wrong.add("asked-before")
    mine = price(case, rule)
    for clause in charged.values():
        if isinstance(clause, Budget) and rule.max_cost is not None:
            alone = measure(clause, [mine])
            if alone is None or alone > rule.max_cost:
                wrong.add("cost-above-rule")
        for pair in pairs(clause, case):
            together = measure(clause, [*counts(clause, case, pair), mine])
            if together is None or together > clause.limit:
                wrong.add("budget-exceeded")
    return wrong


def subtracts(one: Query, other: Query) -> bool:
    """Whether two exact answers differ by a group, found by trying every kind of person there is."""
    if one.asks == other.asks and one.filters == other.filters:
        return False
    people = product(["东区", "西区", "北区", "elsewhere"], range(-1, 7))
    return any(selects(one, *person) and selects(other, *person) for person in people)


def selects(query: Query, street: str, age: int) -> bool:
    for column, kept in query.filters.items():
        if isinstance(kept, frozenset):
            assert column == "street"
            if street not in kept:
                return False
        elif (kept.low is not None and age < kept.low) or (kept.high is not None and age > kept.high):
            return False
    return True


def people_asked(rule: Rule, case: Case) -> int:
    """How many people must approve: what the rule says, two at least where the data is delicate."""
    brings = given_by(case)
    kind = next(t for t in case.types if t.name == case.spec.job_type)
    if brings is None:
        return rule.approvals
    dataset = case.policy.datasets[brings.dataset]
    records = kind.output_class is OutputClass.DIRECTED and dataset.personal == "sensitive"
    return max(rule.approvals, 2 if records or dataset.grade == "important" else 0)


def opens(window: Window, case: Case) -> datetime | None:
    """When the window is open next, by trying its days; no zone here changes its clocks in these months."""
    zone = ZoneInfo(case.policy.timezone)
    today = case.now.astimezone(zone).date()
    for day in (today + timedelta(days=n) for n in range(-1, 9)):
        if DAYS[day.weekday()] not in window.days:
            continue
        begin, end = datetime.combine(day, window.from_, zone), datetime.combine(day, window.to, zone)
        if window.from_ > window.to:
            end = datetime.combine(day + timedelta(days=1), window.to, zone)
        if begin <= case.now < end:
            return case.now
        if begin > case.now:
            return begin
    return None


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
        and a.approval.cost == price(case, rule).cost.encode()
        and a.approval.expires > case.now
    }
    asked = people_asked(rule, case)
    for more in range(asked + 1):
        for newcomers in product(rule.approvers, repeat=more):
            people = [*usable, *((f"newcomer {n}", capacity) for n, capacity in enumerate(newcomers))]
            if any(enough(rule, asked, choice) for choice in subsets(people)):
                return more
    raise AssertionError


def subsets(people: list[tuple[str, str]]) -> Any:
    return chain.from_iterable(combinations(people, size) for size in range(len(people) + 1))


def enough(rule: Rule, asked: int, choice: tuple[tuple[str, str], ...]) -> bool:
    people, capacities = {key for key, _ in choice}, {capacity for _, capacity in choice}
    return (
        len(people) == len(choice)
        and len(people) >= asked
        and len(capacities) >= min(asked, len(rule.approvers))
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
        max_per_minute=rule.max_per_minute,
        max_series_days=rule.max_series_days,
    )


@settings(max_examples=350, deadline=None)
@given(data=st.data())
def test_decide_says_what_the_oracle_says(world: Any, data: st.DataObject):
    check(data.draw(cases(world)))


@pytest.mark.long
@seed(20261122)
@settings(max_examples=10_000, deadline=None, database=None)
@given(data=st.data())
def test_decide_says_what_the_oracle_says_in_many_cases(world: Any, data: st.DataObject):
    check(data.draw(cases(world)))


def check(case: Case) -> None:
    decision = decide(
        ActivePolicy(case.policy, DIGEST, case.stops),
        case.spec,
        node=case.node,
        roster=case.roster,
        now=case.now,
        approvals=case.approvals,
        history=Remembered(tuple(row for row, _ in case.past)),
        attempt=case.attempt,
        job_types=case.types,
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
        if "unknown-requester" in wrong:
            assert decision.code in said_to_strangers(case)
            assert not decision.rule
        if decision.rule in per_rule:
            assert decision.code in wrong | per_rule[decision.rule]
        return
    assert [rule.id for rule in fitting] == [decision.rule]
    rule = fitting[0]
    assert decision.terms.constraints == constraints(rule)
    assert decision.terms.cost == price(case, rule).cost
    check_lines(decision, rule, case)
    missing = missing_approvals(rule, case)
    waits = not missing and rule.window is not None and opens(rule.window, case) != case.now
    assert isinstance(decision, Permit) is (missing == 0 and not waits)
    if isinstance(decision, Ask):
        event(decision.code)
        assert decision.missing == missing
        assert decision.code == ("window-closed" if waits else "approval-needed")
        assert set(decision.approvers) <= set(rule.approvers)
        assert decision.opens == (opens(rule.window, case) if waits and rule.window else None)


def check_lines(decision: Permit | Ask, rule: Rule, case: Case) -> None:
    """Every limit has its line, rounded against the requester, until its period ends."""
    zone, part = case.policy.timezone, Fraction(1, 10**6)
    lines = {line.budget: line for line in decision.terms.lines}
    assert lines.keys() == limits(rule, case).keys()
    for name, clause in limits(rule, case).items():
        event(f"line of {lines[name].notion}")
        cost, remaining = Fraction(lines[name].cost), Fraction(lines[name].remaining)
        said = []
        for pair in pairs(clause, case):
            before, mine = counts(clause, case, pair), price(case, rule)
            spent, then = measure(clause, before), measure(clause, [*before, mine])
            assert spent is not None
            assert then is not None
            # Where ε at δ is meant, the oracle counts in floats.
            slack = 1e-9 if isinstance(then, float) or isinstance(spent, float) else 0
            assert remaining <= clause.limit - spent + slack
            said.append(
                -slack <= cost - (then - spent) < part + slack
                and -slack <= clause.limit - spent - remaining < part + slack
            )
        assert any(said)
        assert Fraction(lines[name].limit) == clause.limit
        until, second = lines[name].until, timedelta(seconds=1)
        current = called(clause.period, clock(case), zone)
        assert called(clause.period, until - second, zone) == current != called(clause.period, until, zone)
