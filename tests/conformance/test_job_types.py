"""What every job type must be, asked of each one in the registry."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction
from itertools import combinations
from pathlib import Path

import joined_rule_case
import pytest
import train_case
from crosscheck_case import graced_spec, job_spec
from joined_moments_case import AGE, EARNED, INSURED, YEARS, moments_spec
from joined_rule_case import clause, rule_spec
from joined_table_case import MONTHS, OVERPAID, PAID, REGISTERED, RESIDENT, joined_spec
from lookup_case import lookup_spec
from match_case import MARITAL, match_spec
from overlap_case import pair_spec, venn_spec
from quality_case import DAY, KEY, KIND, quality_spec
from release_case import ASKS, release_spec
from score_joined_case import score_spec, split_spec
from series_case import series_spec
from table_case import DISTRICT, INCOME, table_spec
from train_joined_case import NOISY, train_spec

from protocols.dp.cost import NOTHING, Cost
from protocols.encoding import canonical_json
from protocols.errors import InputError, MinshuError
from protocols.ids import DatasetName, NodeName, Organisation, Role
from protocols.jobs import JOB_TYPES
from protocols.jobs.job_type import (
    COORDINATOR,
    REQUESTER,
    InputBuilder,
    InRounds,
    JobType,
    OutputClass,
    PreparedInput,
    Setup,
    Standing,
)
from protocols.statistics.differencing import Query, differenced
from protocols.wire import Constraints, JobSpec, organisation_of

ROOT = Path(__file__).parents[2]

EXAMPLES: Mapping[str, Callable[[], tuple[JobSpec, ...]]] = {
    "crosscheck/1": lambda: (
        job_spec(2, k=1),
        job_spec(3, k=2, key_holder=3),
        job_spec(1, present_in="all"),
        job_spec(3, present_in="all"),
        graced_spec(2, as_of="2025-12-31"),
    ),
    "crosscheck-series/1": lambda: (
        series_spec(2, k=1),
        series_spec(3, k=2, key_holder=3, first="sha256:" + "a" * 64, day=2),
        series_spec(3, present_in="all", first="sha256:" + "b" * 64, day=366),
    ),
    "table/1": lambda: (
        table_spec(1),
        table_spec(3, key_holder=2, mode="mask", measures=[INCOME], margins="no"),
        table_spec(
            5,
            axes=[DISTRICT],
            filters=[{"slot": "age", "low": "18"}, {"slot": "status", "values": ["open"]}],
            measures=[{**INCOME, "of": ["mean"]}],
            persons_in=2,
            unit_rows=12,
            covers=[{"role": "source-4", "slot": "district", "values": ["east"]}],
        ),
    ),
    "release/1": lambda: (
        *(release_spec(statistic) for statistic in ASKS),
        *(release_spec(statistic, 3, key_holder="source-2") for statistic in ASKS if statistic != "keys"),
        release_spec("count", 2, epsilon="1", mode="mask", persons_in=1),
        release_spec(
            "histogram",
            5,
            epsilon="0.5",
            colluding=2,
            unit_rows=12,
            filters=[{"slot": "year", "low": "2020"}, {"slot": "status", "values": ["open"]}],
        ),
    ),
    "quality/1": lambda: (
        quality_spec(),
        quality_spec(5, key_holder=4, mode="mask", persons_in=2, unit_rows=12),
        quality_spec(3, rho="0.1"),
        quality_spec(
            4,
            columns=[{**KEY, "identifier": "uscc", "of": ["repeated"]}, KIND, DAY],
            epsilon="1",
            unit_rows=3,
        ),
    ),
    "overlap/1": lambda: (
        pair_spec(),
        pair_spec(epsilon="0.1", delta="1/1000000"),
        venn_spec(2),
        venn_spec(3, key_holders=["source-3", "source-1"], rho="0.2"),
        venn_spec(6),
    ),
    "match/1": lambda: (
        match_spec(500),
        match_spec(500, compare="held"),
        match_spec(500, values=MARITAL),
        match_spec(500, values=[["1"], ["2"]]),
        match_spec(500, form="dh"),
    ),
    "joined-rule/1": lambda: (
        rule_spec(),
        rule_spec(recipient="recipient", key_holders=["source-3", "source-1"]),
        rule_spec(
            2,
            join={"source-1": "on", "source-2": "may"},
            columns=[joined_rule_case.INCOME],
            rule=[
                clause("at_most", "5", income=1),
                clause("at_least", "1", **{"present(source-2)": 1}),
            ],
            filters=[{"source": "source-2", "slot": "status", "values": ["open"]}],
            recipient="source-1",
        ),
    ),
    "score-joined/1": lambda: (
        score_spec(),
        score_spec(
            4,
            join=None,
            scale="score",
            at_least="-0.25",
            step="1/3",
            recipient="recipient",
            key_holders=["source-2", "source-4"],
            filters=[{"source": "source-3", "slot": "status", "values": ["open"]}],
        ),
        split_spec(2, join=None, recipient="source-2"),
    ),
    "lookup/1": lambda: (
        lookup_spec(),
        lookup_spec(verified=True, scope=None, fields=["status"], columns={"last_seen": "the_seen"}),
        lookup_spec(scope={"street": "990101001", "kind": "a"}, fields=["street", "status"]),
    ),
    "joined-moments/1": lambda: (
        moments_spec(),
        moments_spec(target="income", ridge="0.01"),
        moments_spec(columns=[YEARS, EARNED], rho="0.1", key_holders=["source-2", "source-1"]),
        moments_spec(
            3,
            columns=[EARNED, YEARS, AGE, INSURED],
            target="insured",
            epsilon="1",
            filters=[{"source": "source-3", "slot": "status", "values": ["insured"]}],
        ),
    ),
    "joined-table/1": lambda: (
        joined_spec(axes=[REGISTERED, RESIDENT]),
        joined_spec(axes=[REGISTERED, RESIDENT], rho="0.1", key_holders=["source-2", "source-1"]),
        joined_spec(measures=[OVERPAID, MONTHS], rho="0.1"),
        joined_spec(
            3,
            axes=[REGISTERED, {**RESIDENT, "open": "yes"}],
            measures=[PAID],
            margins="no",
            filters=[{"source": "source-3", "slot": "status", "values": ["insured"]}],
        ),
        joined_spec(3, axes=[{**RESIDENT, "open": "yes"}], measures=[PAID], epsilon="1"),
    ),
    "train-joined/1": lambda: (
        train_spec(),
        train_spec(3, **NOISY, model="split", step="2", momentum="0.5", ridge="0.01", scores=5),
        train_spec(
            epsilon="1",
            delta="0.00001",
            evaluate={"rho": "0.002"},
            method="adassp",
            rounds=None,
            key_holders=["source-2", "source-1"],
            label={"source": "source-2", "slot": "late", "at_least": "1"},
            filters=[{"source": "source-2", "slot": "kept", "values": ["yes"]}],
        ),
        train_spec(holdout=0, rho="0.1", model="split"),
    ),
    "train/1": lambda: (
        train_case.train_spec(2),
        train_case.train_spec(noise="none"),
        train_case.train_spec(
            epsilon="1", delta="0.00001", quorum=2, persons_in=1, unit_rows=3, deadline_s=60
        ),
        train_case.train_spec(
            recipe="mlp",
            settings={"hidden": "4"},
            features=[train_case.STREET, train_case.AGE, train_case.INCOME],
            label={"slot": "doses", "at_least": "2"},
            group=train_case.SEX,
            filters=[{"slot": "year", "low": "2020"}, {"slot": "status", "values": ["open"]}],
            stop={"patience": 2, "least": "0.002"},
        ),
        train_case.train_spec(
            5,
            recipe="boost",
            settings={"batch": "2"},
            test="aggregator",
            colluding=1,
            columns={"latest": "the_day"},
        ),
        train_case.train_spec(
            recipe={
                "name": "bagging",
                "distribution": "own-recipe",
                "version": "1.0",
                "digest": "sha256:" + "5" * 64,
            },
            settings={"depth": "4"},
        ),
    ),
}
"""Valid specs of each job type, one or more per variant."""

KINDS = {
    "register", "source", "key-holder", "recipient", "matcher", "helper", "dealer", "aggregator"
}  # fmt: skip
USES = {
    "join", "group", "filter", "carry", "sum", "mean", "count", "quantile", "open-to-matcher", "train",
    "quality",
}  # fmt: skip
BUREAU = Organisation("a-bureau.example")


def check_job_type(job_type: JobType, specs: tuple[JobSpec, ...]) -> None:
    """Assert everything the rest of the house relies on."""
    check_papers(job_type)
    for spec in specs:
        assert spec.job_type == job_type.name
        job_type.check(spec)
        job_type.check(JobSpec.decode(spec.encode()))
        check_params(job_type, spec)
        check_roles(job_type, spec)
        check_releases(job_type, spec)
        check_statements(job_type, spec)
        check_separation(job_type, spec)
        check_costs(job_type, spec)
        check_query(job_type, spec)
        check_rounds(job_type, spec)


def check_papers(job_type: JobType) -> None:
    """A SPEC section, vectors and an example policy exist."""
    headings = [
        line
        for path in (ROOT / "protocols").rglob("SPEC.md")
        for line in path.read_text().splitlines()
        if line.startswith("#") and f"`{job_type.name}`" in line
    ]
    assert headings, f"no SPEC.md has a section on {job_type.name}"
    stem = job_type.name.partition("/")[0]
    vectors = json.loads((ROOT / f"tests/vectors/{stem}.json").read_text())
    assert any(name.startswith("bad") for name in vectors), "vectors have no bad ones"
    policies = [path.read_text() for path in (ROOT / "policies/examples").glob("*.toml")]
    assert any(f'"{job_type.name}"' in text for text in policies), f"no example policy allows {job_type.name}"


def check_params(job_type: JobType, spec: JobSpec) -> None:
    """Every param is needed or has a default; unknown ones and other types are refused, never a crash."""
    with pytest.raises(InputError) as error:
        job_type.check(replace(spec, params={**spec.params, "surprise": 1}))
    assert error.value.code == "unknown-param"
    strange = (None, True, -1, 10**9, 1.5, "", "strange", [], {}, ["x"], {"x": 1})
    for name in spec.params:
        for value in strange:
            if value == spec.params[name] and type(value) is type(spec.params[name]):
                continue
            with pytest.raises(InputError):
                job_type.check(replace(spec, params={**spec.params, name: value}))
    with pytest.raises(InputError):
        job_type.check(replace(spec, params={}))
    with pytest.raises(InputError):
        job_type.check(replace(spec, roles={}))
    with pytest.raises(InputError):
        job_type.check(replace(spec, inputs=()))


def check_roles(job_type: JobType, spec: JobSpec) -> None:
    """Kinds and columns are words that policies know; whoever brings data has a builder, nobody else."""
    brings = {item.role for item in spec.inputs}
    for role in spec.roles:
        kinds = job_type.kinds(spec, role)
        assert kinds, f"{role} has no kind, so no rule could allow it"
        assert kinds <= KINDS
        needs = job_type.columns(spec, role)
        assert bool(needs) == (role in brings)
        assert len(set(needs)) == len(needs)
        for need in needs:
            assert need.use in USES
            assert need.types
        if not needs:
            with pytest.raises(MinshuError):
                job_type.builder(spec, role)
            continue
        empty = job_type.builder(spec, role)
        assert callable(empty.add)
        check_prepared(empty)


def check_prepared(builder: InputBuilder) -> None:
    """An empty dataset is a valid input of no keys, and its commitment depends on the salt."""
    found: PreparedInput = builder.finish()
    assert (found.rows, found.distinct_keys, dict(found.quality())) == (0, 0, {})
    assert found.rule_version
    assert re.fullmatch("sha256:[0-9a-f]{64}", found.commitment(bytes(32)))
    assert found.commitment(bytes(32)) != found.commitment(b"\1" * 32)


def check_releases(job_type: JobType, spec: JobSpec) -> None:
    """Releases have different names, a maker in the job, and recipients that the job names."""
    releases = job_type.releases(spec)
    assert releases
    assert len({release.name for release in releases}) == len(releases)
    order = {OutputClass.AGGREGATE: 0, OutputClass.MODEL: 1, OutputClass.DIRECTED: 2}
    assert job_type.output_class == max((r.output_class for r in releases), key=lambda c: order[c])
    for release in releases:
        assert release.made_by in spec.roles
        if release.output_class == OutputClass.DIRECTED:
            assert release.recipient in spec.recipients
        else:
            assert release.recipient in (REQUESTER, *spec.recipients)


def check_statements(job_type: JobType, spec: JobSpec) -> None:
    """Every seat, the requester and the relay are spoken of, in two languages, fit for a journal."""
    table = job_type.learns(spec)
    seats = {*spec.roles, Role(REQUESTER), Role(COORDINATOR)}
    for members, statements in table.items():
        assert members, "a coalition has a member"
        assert members <= seats
        assert statements
        for statement in statements:
            assert re.fullmatch("[a-z][a-z0-9-]*", statement.key)
            assert statement.en
            assert re.search("[\u4e00-\u9fff]", statement.zh)
        canonical_json([[s.key, s.en, s.zh] for s in statements])
    assert {frozenset({seat}) for seat in seats} <= set(table), "some seat's own view is not stated"


def check_separation(job_type: JobType, spec: JobSpec) -> None:
    """No organisation may hold the seats of a coalition that learns more than its parts.

    Seats are given to one organisation each, which is separate; then those of one coalition to one.
    """
    assert separate(job_type, spec, BUREAU)
    for members in job_type.learns(spec):
        if len(members) == 1:
            continue
        seats = sorted(members - {REQUESTER})
        shared = organisation_of(spec.roles[seats[0]])
        requester = shared if REQUESTER in members else BUREAU
        roles = dict(spec.roles)
        for number, role in enumerate(seats):
            roles[role] = NodeName(f"{shared}/node-{number}")
        assert not separate(job_type, replace(spec, roles=roles), requester), (
            f"{members} may be one organisation"
        )
    neutral = {"matcher", "helper", "dealer", "aggregator"}
    computing = [role for role in spec.roles if job_type.kinds(spec, role) & neutral]
    for role in computing:
        owner = organisation_of(spec.roles[role])
        assert not separate(job_type, spec, owner), f"the requester may hold {role}"
        assert not separate(job_type, replace(spec, recipients=(owner,)), BUREAU), (
            f"a recipient may hold {role}"
        )
    for one, other in combinations(computing, 2):
        roles = {**spec.roles, other: NodeName(f"{organisation_of(spec.roles[one])}/other")}
        assert not separate(job_type, replace(spec, roles=roles), BUREAU)


LIMITS = Constraints(min_group_size=3, max_rows=500, max_fraction=Fraction(1, 2), min_coverage=Fraction(1, 2))


def check_costs(job_type: JobType, spec: JobSpec) -> None:
    """Every dataset is charged at least a question; where records leave, somebody counts every one."""
    costs = {role: job_type.cost(spec, role, LIMITS) for role in spec.roles}
    brings = {item.role for item in spec.inputs}
    for role, cost in costs.items():
        assert (cost.queries >= 1) == (role in brings)
        assert (cost == NOTHING) == (role not in brings)
        assert Cost.decode(cost.encode()) == cost
        assert job_type.cost(replace(spec, nonce="1" * 32), role, LIMITS) == cost
    records = any(r.output_class is OutputClass.DIRECTED for r in job_type.releases(spec))
    assert max(cost.rows for cost in costs.values()) == (LIMITS.max_rows if records else 0)


def check_query(job_type: JobType, spec: JobSpec) -> None:
    """A query says what is selected and nothing about who asks, when or why; other lists are another one.

    A session answers about one person at a time: no group is selected, and nothing is there to compare. Nor
    is there of a public data set, which a neutral seat brings: nobody is in it.
    """
    brings = {item.role for item in spec.inputs if "aggregator" not in job_type.kinds(spec, item.role)}
    assert 1 <= job_type.sources_asked(spec) <= len(spec.inputs)
    for role in spec.roles:
        query = job_type.query(spec, role)
        assert (query is not None) == (role in brings and not isinstance(job_type, Standing))
        if query is None:
            continue
        assert Query.decode(query.encode()) == query
        again = replace(spec, purpose="P-2", legal_basis="L-2", expected_use="x", nonce="1" * 32)
        assert job_type.query(again, role) == query
        for item in spec.inputs:
            others = [i if i is not item else replace(i, dataset=DatasetName("other")) for i in spec.inputs]
            asked = job_type.query(replace(spec, inputs=tuple(others)), role)
            assert asked is not None
            assert query.noisy or differenced(asked, query)


def check_rounds(job_type: JobType, spec: JobSpec) -> None:
    """What answers in rounds has some, costs in advance what all of them do, and makes no party without."""
    if not isinstance(job_type, InRounds):
        return
    rounds = job_type.rounds(spec)
    assert rounds
    assert all(most >= 1 for most in rounds.values())
    for role in spec.roles:
        whole = job_type.cost(spec, role, LIMITS)
        assert job_type.cost_of(spec, role, LIMITS, rounds) == whole
        none = job_type.cost_of(spec, role, LIMITS, {})
        assert none == (NOTHING if whole == NOTHING else Cost(queries=1))
        if whole.private_loss:
            # What is given back is what is not spent: one round less costs less.
            for turn, most in rounds.items():
                assert job_type.cost_of(spec, role, LIMITS, {**rounds, turn: most - 1}).rho < whole.rho
        setup = Setup(spec, 1, bytes(32), LIMITS, {})
        with pytest.raises(TypeError):
            job_type.party(role, setup, None, bytes)


def separate(job_type: JobType, spec: JobSpec, requester: Organisation) -> bool:
    """Whether no pair of a spec's separations shares an organisation; each says why."""
    pairs = job_type.separation(spec, requester)
    assert all(pair.why and pair.these and pair.those for pair in pairs)
    return not any(pair.these & pair.those for pair in pairs)


@pytest.mark.parametrize("job_type", JOB_TYPES, ids=lambda job_type: job_type.name)
def test_a_job_type_is_what_the_rest_of_the_house_relies_on(job_type):
    assert job_type.name in EXAMPLES, "give the new job type valid specs in EXAMPLES"
    check_job_type(job_type, EXAMPLES[job_type.name]())


def test_names_are_different_and_numbered():
    names = [job_type.name for job_type in JOB_TYPES]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch("[a-z][a-z-]*/[1-9][0-9]*", name) for name in names)
    assert set(EXAMPLES) == set(names)


def test_the_suite_notices_a_job_type_whose_separation_is_missing():
    (crosscheck,) = [each for each in JOB_TYPES if each.name == "crosscheck/1"]

    class Careless(type(crosscheck)):
        def separation(self, spec, requester):
            return super().separation(spec, requester)[1:]

    with pytest.raises(AssertionError, match="may be one organisation"):
        check_job_type(Careless(), EXAMPLES["crosscheck/1"]())
