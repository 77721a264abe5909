"""`diff` forgets no change, and its marks are sound: what it calls tighter lets nothing more through.

Policies are changed as plain trees: a value replaced, a key or an item added or removed, at every place the
format has. What is no policy any more is left out.
"""

import random
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from fractions import Fraction
from functools import partial
from itertools import combinations, product
from typing import Any, get_args

import msgspec
import pytest

from policies import model
from policies.decide import decide
from policies.decision import Refuse
from policies.diff import WORDS, Change, Effect, diff, overall, summary
from policies.history import Past, Remembered
from policies.lines import Lines
from policies.model import ActivePolicy, Policy
from policies.parse import _check, parse_policy
from policies.strict import Document, build
from policies.witnesses import witnesses_of
from protocols.errors import InputError, PolicyInvalid
from protocols.ids import NodeName, Organisation, Role
from protocols.jobs import JOB_TYPES
from protocols.wire import Constraints, JobSpec, Roster, RosterAnalyst, RosterOrganisation, organisation_of

BASE = """
schema = "minshu-policy/1"
policy_id = "human-resources.gz.example/node-a"
version = 7
previous = "sha256:{zeros}"
not_before = 2026-12-01T00:00:00+08:00
expires = 2027-03-01T00:00:00+08:00
timezone = "Asia/Shanghai"
controller = "某市人力资源和社会保障局"
lifted_stops = ["sha256:{zeros}"]
[defaults]
min_group_size = 10
max_runtime_s = 3600
release_requires = "cosigned"
differencing_days = 100
[witnesses]
quorum = 3
organisations = ["police.gz.example", "health.gz.example", "housing.gz.example", "education.gz.example"]
[requesters.bureau]
organisation = "data-bureau.gz.example"
keys = ["{analyst}", "{second}"]
[requesters.police]
keys = ["{policeman}"]
[purposes."P-2026-001"]
title = "疑似漏登人口核查"
legal_basis = "DPIA-2026-001"
valid_until = 2027-02-28
[purposes."P-2026-002"]
title = "统计"
legal_basis = "DPIA-2026-002"
valid_until = 2027-01-31
[datasets.insured]
source = "local:insured"
grade = "general-4"
personal = "sensitive"
unit = {{ column = "resident_id", max_rows = 12 }}
[datasets.insured.columns]
resident_id = {{ type = "resident-id", use = ["join"] }}
street = {{ type = "code", use = ["group", "filter"] }}
last_seen_month = {{ type = "month", use = ["carry"] }}
sex = {{ type = "enum", use = ["group"], values = ["1", "2"] }}
age = {{ type = "int", use = ["filter", "group", "sum", "mean"], range = [0, 120], bins = [0, 18, 60] }}
[datasets.insured.quality]
min_completeness = "0.99"
min_valid_keys = "0.98"
max_age_days = 7
max_drift = "0.02"
max_repeated = "0.16"
key_fields = ["resident_id", "street"]
[datasets.pension]
source = "local:pension"
grade = "general-3"
personal = "personal"
unit = {{ column = "resident_id", max_rows = 1 }}
[datasets.pension.columns]
resident_id = {{ type = "resident-id", use = ["join"] }}
street = {{ type = "code", use = ["group"] }}
[budgets.quarter]
dataset = "insured"
notion = "zcdp"
limit = "0.5"
delta = "1e-9"
period = "calendar-quarter"
scope = "all-requesters"
[budgets.year]
dataset = "insured"
notion = "approximate-dp"
limit = "4"
delta = "1e-6"
period = "calendar-year"
scope = "per-purpose"
[quotas.records]
dataset = "insured"
counts = "rows"
limit = 1300
period = "calendar-month"
scope = "per-purpose"
[quotas.questions]
dataset = "insured"
counts = "queries"
limit = 3
period = "week"
scope = "per-requester"
[[rules]]
id = "R1"
requesters = ["bureau", "police"]
purposes = ["P-2026-001"]
job_types = ["crosscheck/1"]
roles = ["source", "key-holder"]
datasets = ["insured", "pension"]
columns = ["resident_id", "street", "last_seen_month"]
recipients = ["police.gz.example"]
min_organisations = 3
min_sources = 2
max_rows = 500
max_fraction = "0.30"
min_coverage = "0.80"
max_runtime_s = 1800
accepts_quality = ["age", "drift"]
max_duplicates = "0.1"
quotas = ["records", "questions"]
rate = {{ jobs = 4, per = "month" }}
window = {{ days = ["mon", "wed"], from = 08:00:00, to = 20:00:00 }}
approvals = 2
approvers = ["dpo", "owner"]
[[rules]]
id = "R2"
requesters = ["bureau"]
purposes = ["P-2026-001", "P-2026-002"]
job_types = ["count/1"]
datasets = ["insured"]
columns = ["street", "age", "sex"]
recipients = ["bureau", "police"]
min_group_size = 20
budget = "quarter"
max_cost = "0.2"
quotas = ["questions"]
rate = {{ jobs = 2, per = "day" }}
approvals = 0
[[rules]]
id = "R3"
requesters = ["bureau"]
purposes = ["P-2026-001"]
job_types = ["count/1", "crosscheck/1"]
roles = ["matcher", "aggregator"]
recipients = ["police.gz.example"]
min_sources = 2
max_rows = 500
max_fraction = "0.30"
min_coverage = "0.80"
rate = {{ jobs = 2, per = "week" }}
approvals = 1
approvers = ["dpo"]
[approvers.dpo]
keys = ["{dpo}", "{second_dpo}"]
[approvers.owner]
keys = ["{owner}"]
[retention]
journal_days = 1095
release_days = 30
intermediate = "job-end"
[[negative_list]]
dataset = "insured"
column = "bank_account"
reason = "负面清单 2.1"
[[stops]]
scope = "purpose"
value = "P-2026-002"
reason = "under review"
"""

NAMES = ("analyst", "second", "policeman", "dpo", "second_dpo", "owner")
OTHERS: dict[str, Sequence[Any]] = {
    "keys": ["sha256:" + "1" * 64, "sha256:" + "2" * 64],
    "requesters": ["bureau", "police", "new"],
    "purposes": ["P-2026-001", "P-2026-002", "new"],
    "job_types": ["crosscheck/1", "count/1", "release/1"],
    "roles": list(get_args(model.RoleKind)),
    "datasets": ["insured", "pension", "new"],
    "dataset": ["insured", "pension"],
    "columns": ["resident_id", "street", "last_seen_month", "sex", "age", "new"],
    "column": ["resident_id", "street", "bank_account"],
    "recipients": ["police.gz.example", "bureau", "police", "tax.gz.example"],
    "accepts_quality": list(get_args(model.QualityMetric)),
    "key_fields": ["resident_id", "street", "age"],
    "quotas": ["records", "questions", "new"],
    "budget": ["quarter", "year", "new"],
    "approvers": ["dpo", "owner", "new"],
    "use": list(get_args(model.ColumnUse)),
    "values": ["1", "2", "9"],
    "days": list(get_args(model.Day)),
    "range": ["-1", "5", "200"],
    "bins": ["6", "65"],
    "lifted_stops": ["sha256:" + "3" * 64],
    "type": ["code", "enum", "int", "month"],
    "grade": list(get_args(model.Grade)),
    "personal": list(get_args(model.Sensitivity)),
    "notion": ["zcdp", "pure-dp", "approximate-dp"],
    "counts": ["rows", "queries"],
    "period": list(get_args(model.Period)),
    "per": ["hour", "day", "week", "month", "quarter", "year"],
    "release_requires": ["checkpoint", "cosigned"],
    "timezone": ["UTC", "Europe/Berlin"],
    "policy_id": ["tax.gz.example/node-a"],
    "previous": ["sha256:" + "4" * 64],
    "organisations": ["statistics.gz.example", "tax.gz.example"],
    "source": ["local:other"],
    "organisation": ["police.gz.example", "data-bureau.gz.example"],
    "value": ["P-2026-001", "bureau", "insured"],
}
"""Key → values that may stand there, or in the list there."""
SCOPES = {
    "stops": ["all", "requester", "purpose", "dataset"],
    "": ["all-requesters", "per-requester", "per-purpose", "per-pair"],
}
FRACTIONS = ("limit", "delta", "max_cost", "max_fraction", "min_coverage", "max_duplicates",
             "min_completeness", "min_valid_keys", "max_drift", "max_repeated")  # fmt: skip
OPTIONAL: dict[str, dict[str, Any]] = {
    "rules": {
        "min_group_size": 30, "min_organisations": 4, "persons_in": 3, "max_runtime_s": 60, "max_cost": "0.1",
        "budget": "year",
        "rate": {"jobs": 1, "per": "month"}, "roles": ["source"], "quotas": ["records"],
        "window": {"days": ["mon"], "from": time(9), "to": time(10)}, "approvers": ["owner"], "max_rows": 10,
        "only": {"street": ["east"]}, "max_per_minute": 30, "recipes": ["logistic"], "exact_training": True,
        "max_series_days": 30,
    },
    "requesters": {"organisation": "police.gz.example"},
    "budgets": {"delta": "1e-8"},
}  # fmt: skip
"""Table → keys that may be added to an entry of it."""
ENTRIES: dict[str, Any] = {
    "requesters": {"keys": ["sha256:" + "5" * 64]},
    "purposes": {"title": "新", "legal_basis": "x", "valid_until": date(2027, 1, 1)},
    "datasets": {"source": "local:new", "grade": "general-1", "personal": "none",
                 "columns": {"street": {"type": "code", "use": ["group"]}}},
    "budgets": {"dataset": "insured", "notion": "pure-dp", "limit": "1", "period": "day",
                "scope": "per-purpose"},
    "quotas": {"dataset": "insured", "counts": "rows", "limit": 600, "period": "day",
               "scope": "all-requesters"},
    "approvers": {"keys": ["sha256:" + "6" * 64]},
    "columns": {"type": "code", "use": ["carry"]},
    "rules": {"id": "R9", "requesters": ["police"], "purposes": ["P-2026-002"], "job_types": ["count/1"],
              "datasets": ["insured"], "columns": ["street"], "recipients": ["police"], "approvals": 0},
    "negative_list": {"dataset": "pension", "column": "amount", "reason": "x"},
    "stops": {"scope": "dataset", "value": "pension", "reason": "y"},
}  # fmt: skip
"""Table → an entry that may be added to it."""

Tree = Any
Place = tuple[str | int, ...]


def plain(value: Any) -> Tree:
    """Return a policy as the tree that its TOML would parse to, keys with their default left out."""
    if isinstance(value, msgspec.Struct):
        return {
            f.encode_name: plain(getattr(value, f.name))
            for f in msgspec.structs.fields(value)
            if f.required or getattr(value, f.name) not in (None, (), {}, False)
        }
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if isinstance(value, Fraction):
        return decimal(value)
    return value


def decimal(value: Fraction) -> str:
    for places in range(16):
        scaled = value * 10**places
        if scaled.denominator == 1:
            digits = f"{abs(scaled.numerator):0{places + 1}d}"
            whole, rest = digits[: len(digits) - places], digits[len(digits) - places :]
            return ("-" if value < 0 else "") + whole + ("." + rest if rest else "")
    raise AssertionError(value)


def policy_of(tree: Tree) -> Policy | None:
    """Return the policy a tree describes, None where it describes none."""
    document = Document(tree, Lines({}))
    try:
        policy: Policy = build(document, Policy, tree, ())
        _check(document, policy, frozenset({"crosscheck/1"}))
    except PolicyInvalid:
        return None
    return policy


def places(tree: Tree, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    yield place, tree
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, item in items:
        yield from places(item, (*place, key))


def edited(tree: Tree, place: Place, change: Callable[[Any], object]) -> Tree:
    """Return a copy in which `change` was done to what stands at `place`."""
    copy = deepcopy(tree)
    holder = copy
    for part in place:
        holder = holder[part]
    change(holder)
    return copy


def put(key: Any, value: Any) -> Callable[[Any], object]:
    return lambda holder: holder.__setitem__(key, value)


def drop(key: Any) -> Callable[[Any], object]:
    return lambda holder: holder.__delitem__(key)


def append(value: Any) -> Callable[[Any], object]:
    return lambda holder: holder.append(value)


def other_values(place: Place, value: Any) -> list[Any]:
    key = next(part for part in reversed(place) if isinstance(part, str))
    if key == "scope":
        return [v for v in SCOPES.get(str(place[0]), SCOPES[""]) if v != value]
    if isinstance(place[-1], int) or key in OTHERS:
        return [v for v in OTHERS.get(key, []) if v != value]
    if isinstance(value, bool):
        return []
    if isinstance(value, int):
        return [value + 1, value - 1, value * 3, value // 2]
    if isinstance(value, datetime):
        return [value + timedelta(days=d) for d in (-3, 20)]
    if isinstance(value, date):
        return [value + timedelta(days=d) for d in (-60, 20)]
    if isinstance(value, time):
        return [time(6), time(7), time(19, 30), time(22)]
    if key in FRACTIONS:
        return [decimal(Fraction(value) * n) for n in (Fraction(1, 2), Fraction(11, 10))]
    return [f"{value}x"] if isinstance(value, str) else []


def mutations(tree: Tree) -> Iterator[tuple[Place, Callable[[], Tree]]]:
    """Yield what makes each tree that differs from `tree` at one place, with the place."""
    for place, value in places(tree):
        if not place:
            continue
        holder, key, entry = place[:-1], place[-1], ENTRIES.get(str(place[-1]))
        for other in other_values(place, value) if not isinstance(value, dict | list) else ():
            yield place, partial(edited, tree, holder, put(key, other))
        yield place, partial(edited, tree, holder, drop(key))
        if isinstance(value, list) and key in OTHERS:
            for other in OTHERS[key]:
                if other not in value:
                    yield place, partial(edited, tree, place, append(other))
        if entry is not None and isinstance(value, dict):
            yield (*place, "new"), partial(edited, tree, place, put("new", entry))
        if entry is not None and isinstance(value, list) and len(place) == 1:
            yield (*place, len(value)), partial(edited, tree, place, append(entry))
        if isinstance(value, dict) and len(place) == 2:
            for name, given in OPTIONAL.get(str(place[0]), {}).items():
                if name not in value:
                    yield (*place, name), partial(edited, tree, place, put(name, given))


def mutated(tree: Tree, rng: random.Random) -> Tree:
    return rng.choice(list(mutations(tree)))[1]()


def base(world: Any) -> Tree:
    text = BASE.format(zeros="0" * 64, **{name: world.key(name) for name in NAMES})
    return plain(parse_policy(text.encode(), job_types=world.types).policy)


def unlimited(tree: Tree) -> Tree:
    """Return the tree without what makes witnesses compulsory, and without them."""
    rules = [
        {k: v for k, v in rule.items() if k not in {"budget", "quotas", "max_cost"}} for rule in tree["rules"]
    ]
    bare = {k: v for k, v in tree.items() if k not in {"budgets", "quotas", "witnesses"}}
    return deepcopy({**bare, "rules": rules})


def clause_of(tree: Tree, place: Place) -> str:
    """Return a place as a change names it: rules by their id, entries of other lists by their table."""
    if place[0] == "rules" and len(place) > 1:
        rules = tree["rules"]
        number = place[1]
        name = rules[number]["id"] if number < len(rules) else ENTRIES["rules"]["id"]
        return ".".join(["rules", name, *(str(part) for part in place[2:3])])
    return ".".join(part for part in place if isinstance(part, str))


def test_a_policy_differs_in_nothing_from_itself(world: Any):
    policy = policy_of(base(world))
    assert policy is not None
    assert diff(policy, policy) == ()
    assert overall(()) is Effect.OTHER


def test_every_change_at_a_single_place_is_mentioned_where_it_was_made(world: Any):
    touched: set[str] = set()
    # Only a policy without limits may do without witnesses.
    for tree, table in ((base(world), ""), (unlimited(base(world)), "defaults")):
        policy = policy_of(tree)
        assert policy is not None
        for place, changed in mutations(tree):
            other = policy_of(changed()) if not table or place[0] == table else None
            if other is None or other == policy:
                continue
            here = clause_of(tree, place)
            touched.add(here)
            for old, new in ((policy, other), (other, policy)):
                changes = diff(old, new)
                # A rule that is renamed goes, and another comes.
                assert changes, here
                clauses = [change.clause for change in changes]
                assert (
                    any(c and (here.startswith(c) or c.startswith(here)) for c in clauses)
                    or place[-1] == "id"
                ), (here, clauses)
                assert all(change.en and change.zh for change in changes)
    assert untouched(touched) == set()


def untouched(touched: set[str]) -> set[str]:
    """Return the fields of the format that no clause in `touched` ends in."""
    fields = {
        f.encode_name
        for kind in vars(model).values()
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind is not model.StopDocument
        for f in msgspec.structs.fields(kind)
    }
    mentioned = {part for clause in touched for part in clause.split(".")}
    # One value only, or said at the rule as a whole; a rule without its id is another rule.
    return fields - mentioned - {"schema", "intermediate", "id", "jobs", "per", "from", "to", "days"}


def test_the_order_of_a_list_is_noticed_and_decides_nothing(world: Any):
    tree = base(world)
    changed = edited(tree, ("rules", 0, "columns"), list.reverse)
    old, new = policy_of(tree), policy_of(changed)
    assert old is not None
    assert new is not None
    (change,) = diff(old, new)
    assert (change.effect, change.en) == (Effect.OTHER, "The policy: only the order of lists differs")


# -- the marks ---------------------------------------------------------------------------------------------


def roster(world: Any, witnesses: Collection[str]) -> Roster:
    """Return the members; only the nodes of these organisations have witness keys."""
    found: Roster = world.roster
    nodes = tuple(
        n if organisation_of(n.name) in witnesses else replace(n, witness_vkeys=()) for n in found.nodes
    )
    more = RosterAnalyst(
        "zhang", Organisation("data-bureau.gz.example"), world.signer("second").public_key, b"\x05" * 32
    )
    tax = RosterOrganisation(Organisation("tax.gz.example"), "税务")
    organisations, analysts = (*found.organisations, tax), (*found.analysts, more)
    return replace(found, nodes=nodes, organisations=organisations, analysts=analysts)


def jobs(world: Any, members: Roster) -> list[JobSpec]:
    """Return jobs that the base policy answers in every way: permitted, refused for this or that, neutral."""
    asked = replace(world.spec(), roster_digest=members.digest)
    count = replace(
        asked, job_type="count/1", params={}, recipients=(Organisation("data-bureau.gz.example"),)
    )
    count = world.with_columns(count, "source-1", {"street": "street"})
    police = {"requester": world.key("policeman")}
    other = {"purpose": "P-2026-002", "legal_basis": "DPIA-2026-002"}
    pension = tuple(replace(i, dataset="pension") if i.role == "source-1" else i for i in asked.inputs)
    neutral = {**asked.roles, Role("matcher"): NodeName("human-resources.gz.example/node-a"),
               Role("source-1"): NodeName("statistics.gz.example/node-a")}  # fmt: skip
    inputs = tuple(
        replace(i, organisation=Organisation("statistics.gz.example")) if i.role == "source-1" else i
        for i in asked.inputs
    )
    bare = {"key": "resident_id", "street": "street"}
    by_sex = world.with_columns(count, "source-1", {"street": "sex"})
    ages = world.with_columns(count, "source-1", {"street": "street", "age": "age"})
    return [
        asked,
        world.with_columns(asked, "source-1", bare),
        world.with_columns(replace(asked, inputs=pension), "source-1", bare),
        replace(asked, **police),
        replace(asked, requester=world.key("second")),
        replace(asked, recipients=(Organisation("tax.gz.example"),)),
        replace(asked, params={**asked.params, "key_holder": "source-2"}),
        replace(asked, roles=neutral, inputs=inputs),
        replace(count, params={"rho": "1/10"}),
        replace(count, params={"rho": "1/4"}),
        replace(count, params={"rho": "1/50", "values": ["east"]}),
        replace(count, params={"rho": "1/50", "values": ["east", "west"]}),
        replace(count, params={"rho": "1/10"}, inputs=count.inputs[:3]),
        replace(count, params={"rho": "1/10"}, **other),
        replace(count, params={"streets": ["east"]}),
        replace(count, params={"streets": ["east", "west"]}),
        replace(count, params={"rho": "1/20"}, recipients=(Organisation("police.gz.example"),)),
        replace(count, params={"rho": "1/20"}, **police),
        replace(count, roles=neutral, inputs=tuple(i for i in count.inputs if i.role == "source-2")),
        replace(by_sex, params={"values": ["1"]}),
        replace(by_sex, params={"values": ["1", "9"]}),
        replace(ages, params={"bins": ["0", "18"], "rho": "1/50"}),
        replace(ages, params={"bins": ["0", "6"], "rho": "1/50"}),
        replace(ages, params={"bounds": ["0", "120"]}),
        replace(ages, params={"bounds": ["5", "200"]}),
        replace(ages, params={"kept": ["18", ""], "rho": "1/50"}),
        replace(ages, params={"kept": ["6", ""], "rho": "1/50"}),
        replace(count, params={"persons_in": 3, "rho": "1/50"}),
    ]


MOMENTS = [
    datetime.fromisoformat(text)
    for text in (
        "2026-12-12T03:04:05Z",
        "2026-12-12T16:30:00Z",
        "2026-12-13T16:30:00Z",  # Sunday in London, Monday in Guangzhou
        "2026-12-31T16:30:00Z",  # December, and January
        "2027-01-31T16:30:00Z",
        "2027-02-20T03:04:05Z",
    )
]


WATCHING = [f"{name}.gz.example" for name in ("police", "health", "housing", "education", "statistics")]


class City:
    """Decides jobs under changed policies, with what was answered before under the old one."""

    def __init__(self, world: Any, witnesses: Collection[str] = WATCHING) -> None:
        self.world, self.roster = world, roster(world, witnesses)
        self.digest = self.roster.digest
        self.jobs = jobs(world, self.roster)

    def refuses(self, policy: Policy, spec: JobSpec, now: datetime, past: Remembered) -> bool:
        return self.row(policy, spec, now, past) is None

    def row(self, policy: Policy, spec: JobSpec, now: datetime, past: Remembered) -> Past | None:
        """Return what the job leaves in the ledger, None where it is refused."""
        spec = replace(spec, created=now - timedelta(hours=1), expires=now + timedelta(days=1))
        node = NodeName("human-resources.gz.example/node-a")
        answer = decide(
            ActivePolicy(policy, self.digest), spec, node=node, roster=self.roster, now=now, history=past,
            job_types=self.world.types,
        )  # fmt: skip
        if isinstance(answer, Refuse):
            return None
        terms = answer.terms
        return Past(
            job=spec.job_id, attempt=1, time=now, requester=spec.requester, purpose=spec.purpose,
            job_type=spec.job_type, source=terms.source, unit=terms.unit, cost=terms.cost, query=terms.query,
            charged=True, exact=terms.query is not None and not terms.query.noisy, rule=answer.rule,
            partners=terms.partners,
        )  # fmt: skip

    def lived(self, policy: Policy, rng: random.Random) -> Remembered:
        """Return the rows of jobs that `policy` let through within ten days: some one job again and again."""
        rows: list[Past] = []
        again = rng.choice(self.jobs)
        for number in range(rng.randrange(10)):
            spec = again if rng.random() < 0.5 else rng.choice(self.jobs)
            row = self.row(policy, spec, self.world.now + timedelta(days=number), Remembered(tuple(rows)))
            rows += [row] if row is not None else []
        return Remembered(tuple(rows))


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 14))])
def test_what_is_called_tighter_lets_no_refused_job_through(world: Any, seed: int):
    """And what is called looser refuses none that was let through, whatever the old version has answered."""
    rng, tree = random.Random(seed), base(world)
    # Of these rosters the last ones leave a policy without its witnesses, or with more than its quorum suits.
    cities = [City(world, WATCHING[:number]) for number in (5, 5, 5, 4, 3, 2, 0)]
    seen: Counter[Effect] = Counter()
    turned: Counter[str] = Counter()
    while seen.total() < 160:
        city = rng.choice(cities)
        one_tree = tree if rng.random() < 0.6 else unlimited(tree)
        one_tree = one_tree if rng.random() < 0.7 else mutated(one_tree, rng)
        other_tree = mutated(one_tree, rng)
        if rng.random() < 0.3:
            other_tree = mutated(other_tree, rng)
        one, other = policy_of(one_tree), policy_of(other_tree)
        if one is None or other is None or one == other:
            continue
        for old, new in ((one, other), (other, one)):
            changes = diff(old, new)
            effect = overall(changes)
            seen[effect] += 1
            past = city.lived(old, rng)
            now = rng.choice(MOMENTS)
            for spec in city.jobs:
                before, after = (city.refuses(policy, spec, now, past) for policy in (old, new))
                turned["refused" if after else "let through"] += before != after
                assert not (before and not after) or Effect.LOOSER in effect, changes
                assert not (after and not before) or Effect.TIGHTER in effect, changes
    assert min(seen[effect] for effect in (Effect.LOOSER, Effect.TIGHTER, Effect.BOTH)) > 20, seen
    assert min(turned.values()) > 5, turned


LISTS = ("", "ab", "abc", "bcd", "abcd")


def test_what_is_said_of_witnesses_is_true_whoever_is_on_the_roster_and_whoever_has_cosigned(world: Any):
    """Not looser: nothing leaves now, by whosever cosignatures, that was held back before; and vice versa."""
    policies = []
    for quorum, names in product((None, 1, 2, 3, 4), LISTS):
        clause: Tree = {} if quorum is None else {"quorum": quorum}
        clause |= {"organisations": [f"{name}.example" for name in names]} if names else {}
        policies.append(policy_of({**base(world), "witnesses": clause}))
    policies.append(policy_of({k: v for k, v in base(world).items() if k != "witnesses"}))
    letters = ["".join(chosen) for size in range(6) for chosen in combinations("abcde", size)]
    rosters = {there: watched_by(world, there) for there in letters}
    own = Organisation("human-resources.gz.example")

    def leaves(policy: Policy) -> set[tuple[str, str]]:
        """Return all rosters, each with whoever is on it and enough together."""
        found = set()
        for there, members in rosters.items():
            witnesses = witnesses_of(policy, members, own)
            votes = {
                there_: sum(f"{x}.example" in witnesses.organisations for x in there_) for there_ in letters
            }
            enough = {
                by for by, number in votes.items() if number >= witnesses.quorum and set(by) <= set(there)
            }
            found |= {(there, by) for by in enough} if witnesses.possible else set()
        return found

    known = [(policy, leaves(policy)) for policy in policies if policy is not None]
    assert len(known) == 16
    marks: Counter[Effect] = Counter()
    for (old, before), (new, after) in product(known, repeat=2):
        effect = overall(diff(old, new))
        marks[effect] += 1
        assert after <= before or Effect.LOOSER in effect, (old.witnesses, new.witnesses)
        assert before <= after or Effect.TIGHTER in effect, (old.witnesses, new.witnesses)
        assert effect or before == after
    assert min(marks[effect] for effect in (Effect.LOOSER, Effect.TIGHTER, Effect.BOTH)) > 5, marks


def watched_by(world: Any, letters: str) -> Roster:
    node = world.roster.nodes[0]
    nodes = tuple(replace(node, name=NodeName(f"{letter}.example/node-a")) for letter in letters)
    return replace(world.roster, nodes=nodes)


@pytest.mark.parametrize("bare", [False, True])
def test_whoever_stops_waiting_for_witnesses_is_told_that_this_loosens(world: Any, bare: bool):
    tree = unlimited(base(world)) | ({} if bare else {"witnesses": base(world)["witnesses"]})
    lax = {k: v for k, v in tree.items() if k != "witnesses"}
    lax["defaults"] = {**tree["defaults"], "release_requires": "checkpoint"}
    strict, loose = policy_of(tree), policy_of(lax)
    assert strict is not None
    assert loose is not None
    assert {change.effect for change in diff(strict, loose)} == {Effect.LOOSER}
    assert {change.effect for change in diff(loose, strict)} == {Effect.TIGHTER}


@pytest.mark.parametrize(
    ("place", "value", "over"),
    [
        # The rate counts what ran over either dataset of the rule.
        (("rules", 0, "datasets"), ["insured"], "pension"),
        # Two lists of 500 leave 300 of the quota: room for a list of 100.
        (("rules", 0, "max_rows"), 100, "insured"),
    ],
)
def test_where_less_lets_more_through_it_is_called_both(world: Any, place: Place, value: Any, over: str):
    city, tree = City(world), base(world)
    if over == "insured":
        tree = edited(tree, ("quotas", "questions"), put("limit", 99))
    old, new = policy_of(tree), policy_of(edited(tree, place[:-1], put(place[-1], value)))
    assert old is not None
    assert new is not None
    asked = city.jobs[1]
    ran = city.jobs[2] if over == "pension" else asked
    past = Remembered()
    for hours in range(4):
        row = city.row(old, ran, world.now + timedelta(hours=hours), past)
        past = past if row is None else Remembered((*past.rows, row))
    later = world.now + timedelta(days=5)
    assert city.refuses(old, asked, later, past)
    assert not city.refuses(new, asked, later, past)
    assert overall(diff(old, new)) is Effect.BOTH


def test_a_cost_rests_on_no_constraint_but_the_row_cap(world: Any):
    """`diff` relies on it: whoever tightens another constraint does not make jobs cheaper."""
    spec = world.spec()
    loose = Constraints(max_rows=100)
    strict = Constraints(
        min_group_size=99, min_organisations=9, min_sources=9, max_rows=100, max_fraction=Fraction(1, 9),
        min_coverage=Fraction(8, 9), max_runtime_s=1, max_per_minute=1, max_series_days=1,
    )  # fmt: skip
    for job_type in JOB_TYPES:
        for role in spec.roles:
            try:
                job_type.check(spec)
            except InputError:
                continue
            assert job_type.cost(spec, role, loose) == job_type.cost(spec, role, strict)


# -- the sentences -----------------------------------------------------------------------------------------


EACH_PAIR = "for each dataset of others that it is joined with"
RECKON = "a job has to reckon with one person being"


def changes_of(world: Any, place: Place, value: Any) -> tuple[Change, ...]:
    tree = base(world)
    old, new = policy_of(tree), policy_of(edited(tree, place[:-1], put(place[-1], value)))
    assert old is not None
    assert new is not None
    return diff(old, new)


@pytest.mark.parametrize(
    ("place", "value", "effect", "sentence"),
    [
        (("rules", 1, "recipients"), ["bureau", "police", "tax.gz.example"], Effect.LOOSER,
         "Rule R2: tax.gz.example may now receive, too"),
        (("rules", 0, "max_rows"), 1000, Effect.BOTH,
         "Rule R1: the row cap rises from 500 to 1,000; fewer jobs fit into quota records"),
        (("rules", 2, "max_rows"), 1000, Effect.LOOSER, "Rule R3: the row cap rises from 500 to 1,000"),
        # A wider range: fewer jobs have bounds that hold it all, and more amounts are within it.
        (("datasets", "insured", "columns", "age", "range"), ["0", "150"], Effect.BOTH,
         "Column insured.age: range 0, 120 → 0, 150"),
        (("datasets", "insured", "columns", "age", "bins"), ["0", "18"], Effect.BOTH,
         "Column insured.age: groups begin at 0, 18, 60 → 0, 18"),
        (("datasets", "insured", "columns", "sex", "values"), ["1"], Effect.TIGHTER,
         "Column insured.sex: no longer with value 2"),
        (("datasets", "pension", "unit"), {"column": "street", "max_rows": 1}, Effect.BOTH,
         "Dataset pension: the column that says whom a row is about resident_id → street"),
        (("budgets", "quarter", "limit"), "0.4", Effect.TIGHTER,
         "Budget quarter: the limit falls from 0.5 to 0.4; what was spent stays spent"),
        (("rules", 0, "max_fraction"), "0.255", Effect.TIGHTER,
         "Rule R1: the largest share that a list may name falls from 30 % to 25.5 %"),
        (("rules", 1, "only"), {"street": ["east", "west"]}, Effect.TIGHTER,
         "Rule R2: is now only for rows whose street is one of east, west"),
        (("rules", 1, "max_per_minute"), 30, Effect.TIGHTER,
         "Rule R2: the number of look-ups a minute is now 30; there was no limit"),
        (("rules", 1, "max_series_days"), 30, Effect.LOOSER,
         "Rule R2: the days of a series none → 30"),
        (("quotas", "questions", "scope"), "per-pair", Effect.BOTH,
         f"Quota questions: counted for each requester → {EACH_PAIR}"),
        (("budgets", "quarter", "scope"), "per-pair", Effect.LOOSER,
         f"Budget quarter: counted for everybody together → {EACH_PAIR}"),
        (("rules", 1, "persons_in"), 2, Effect.LOOSER,
         f"Rule R2: {RECKON} in every department that gives data → 2 departments"),
        (("rules", 0, "approvals"), 3, Effect.TIGHTER, "Rule R1: the number of approvals rises from 2 to 3"),
        (("rules", 0, "rate"), {"jobs": 1, "per": "week"}, Effect.BOTH,
         "Rule R1: pace at most 4 jobs in a calendar month → at most one job in a calendar week"),
        (("rules", 0, "rate"), {"jobs": 3, "per": "quarter"}, Effect.TIGHTER,
         "Rule R1: pace at most 4 jobs in a calendar month → at most 3 jobs in a calendar quarter"),
        (("rules", 0, "window"), {"days": ["mon"], "from": time(9), "to": time(20)}, Effect.TIGHTER,
         "Rule R1: hours Mon, Wed 08:00-20:00 → Mon 09:00-20:00"),
        (("rules", 0, "window"), {"days": ["mon", "wed"], "from": time(20), "to": time(8)}, Effect.BOTH,
         "Rule R1: hours Mon, Wed 08:00-20:00 → Mon, Wed 20:00-08:00 (into the next day)"),
        (("quotas", "questions", "scope"), "per-purpose", Effect.BOTH,
         "Quota questions: counted for each requester → for each purpose"),
        (("quotas", "records", "period"), "calendar-quarter", Effect.TIGHTER,
         "Quota records: in each calendar month → calendar quarter"),
        (("datasets", "insured", "source"), "local:elsewhere", Effect.BOTH,
         "Dataset insured: comes from local:insured → local:elsewhere; what is spent begins at zero"),
        (("datasets", "insured", "grade"), "general-2", Effect.LOOSER,
         "Dataset insured: grade general, level 4 → general, level 2"),
        (("rules", 0, "approvers"), ["dpo"], Effect.TIGHTER, "Rule R1: owner may no longer approve"),
        (("rules", 0, "approvers"), ["dpo"], Effect.LOOSER,
         "Rule R1: the number of different capacities that must approve falls from 2 to 1"),
        (("rules", 0, "datasets"), ["insured"], Effect.BOTH,
         "Rule R1: no longer opens pension; what ran over it counts no longer against the rate"),
        (("expires",), datetime(2027, 3, 1, tzinfo=UTC), Effect.LOOSER,
         "The policy: the end of its validity moves from 2027-03-01 00:00 to 2027-03-01 08:00"),
        (("requesters", "police", "organisation"), "police.gz.example", Effect.TIGHTER,
         "Requester police: must belong to none → police.gz.example"),
        (("witnesses", "quorum"), 4, Effect.TIGHTER,
         "Witnesses: what this node did must have been seen by 3 → 4"),
        (("witnesses", "organisations"), [*WATCHING[:4], "tax.gz.example"], Effect.LOOSER,
         "Witnesses: tax.gz.example now counts, too"),
        (("witnesses", "organisations"), WATCHING[:3], Effect.TIGHTER,
         "Witnesses: education.gz.example no longer counts"),
        (("witnesses",), {"quorum": 3}, Effect.BOTH,
         f"Witnesses: who counts {', '.join(WATCHING[:4])} → every other organisation that witnesses"),
        (("retention", "release_days"), 60, Effect.LOOSER,
         "Kept: releases, days 30 → 60"),
        (("lifted_stops",), [], Effect.OTHER,
         f"Stop documents: no longer names sha256:{'0' * 64}, which stays lifted"),
    ],
)  # fmt: skip
def test_a_change_is_said_in_a_plain_sentence(
    world: Any, place: Place, value: Any, effect: Effect, sentence: str
):
    tree = base(world)
    if place == ("lifted_stops",):
        old, new = policy_of(tree), policy_of({k: v for k, v in tree.items() if k != "lifted_stops"})
        assert old is not None
        assert new is not None
        changes = diff(old, new)
    else:
        changes = changes_of(world, place, value)
    assert (effect, sentence) in [(change.effect, change.en) for change in changes]


def test_an_alias_that_names_another_organisation_now_shows_at_every_rule_that_sends_to_it(world: Any):
    changes = changes_of(world, ("requesters", "bureau", "organisation"), "tax.gz.example")
    assert {(c.clause, c.effect) for c in changes} == {
        ("requesters.bureau.organisation", Effect.BOTH),
        ("rules.R2.recipients", Effect.LOOSER),
        ("rules.R2.recipients", Effect.TIGHTER),
    }


def test_the_summary_says_it_first_in_one_sentence(world: Any):
    change = Change("x", Effect.LOOSER, "en", "zh")
    texts = {
        summary([replace(change, effect=effect)], language) for language in ("zh", "en") for effect in WORDS
    }
    assert len(texts) == 2 * len(WORDS) == 8
    assert summary((), "en").startswith("It neither loosens nor tightens")
    assert summary((), "zh").startswith("既不放宽也不收紧")
