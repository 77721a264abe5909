"""A rule that is for some rows only: a job has to say that it keeps to them, or is refused."""

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from itertools import chain, combinations, product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace as with_clauses

from policies.decide import decide
from policies.decision import Decision, Refuse
from policies.diff import Effect, diff, overall
from policies.explain import explain_policy
from policies.matching import check_only
from policies.model import ActivePolicy, Column, Policy
from policies.parse import parse_policy
from protocols.ids import Role
from protocols.jobs.job_type import ColumnNeed, Domain
from protocols.jobs.table import CrossTable
from protocols.tables.layout import Filter
from protocols.wire import JobInput, JobSpec

STREETS = ("A", "B", "C")

Only = Mapping[str, tuple[str, ...]]


def policy_of(world: Any, only: Only) -> Policy:
    """The human resources department, whose one rule answers counts of the rows in `only`."""
    policy: Policy = world.active().policy
    insured = policy.datasets["insured"]
    columns = {
        **insured.columns,
        "street": Column(type="code", use=("group", "filter")),
        "sex": Column(type="enum", use=("group",), values=("1", "2")),
        "street_of_birth": Column(type="code", use=("group", "filter")),
    }
    rule = with_clauses(
        policy.rules[0],
        job_types=("count/1", "crosscheck/1", "table/1"),
        recipients=("police.gz.example", "bureau"),
        columns=("resident_id", "street", "last_seen_month", "sex", "street_of_birth"),
        quotas=(),
        rate=None,
        min_sources=None,
        approvals=0,
        only=dict(only),
    )
    dataset = with_clauses(insured, columns=columns, personal="none")
    return with_clauses(policy, datasets={"insured": dataset}, quotas={}, rules=(rule,))


def answer(world: Any, only: Only, spec: JobSpec) -> Decision:
    policy = policy_of(world, only)
    return decide(
        ActivePolicy(policy, world.active().digest),
        spec,
        node=world.node("human-resources"),
        roster=world.roster,
        now=world.now,
        job_types=world.types,
    )


def outside(decision: Decision) -> bool:
    """Whether a job is refused for its scope; for nothing else may it be."""
    if not isinstance(decision, Refuse):
        return False
    assert decision.code == "outside-scope"
    assert decision.rule == "R1"
    for text in (decision.sentence, decision.zh, decision.hint, decision.hint_zh):
        assert text.isprintable()
        assert text
    return True


def test_a_job_that_keeps_to_the_rows_is_answered_and_one_that_asks_for_fewer_too(world: Any):
    only = {"street": ("A", "B")}
    for values in (["A", "B"], ["B", "A"], ["A"]):
        assert not outside(answer(world, only, world.count(values=values)))


def test_a_job_that_omits_the_restriction_is_refused(world: Any):
    decision = answer(world, {"street": ("A", "B")}, world.count())
    assert outside(decision)
    assert isinstance(decision, Refuse)
    assert decision.sentence == (
        "The rule is only for rows whose street is one of: A, B. "
        "The job does not say which values of column street count."
    )
    assert decision.zh == "规则仅适用于列 street 取值为 A, B 的记录, 任务未限定该列的取值。"


@pytest.mark.parametrize("values", [["A", "B", "C"], ["C"], ["a"], ["Ａ"], ["A "], ["A", "A\u0301"]])
def test_a_job_that_widens_it_or_spells_a_value_otherwise_is_refused(world: Any, values: list[str]):
    assert outside(answer(world, {"street": ("A", "B")}, world.count(values=values)))


def test_another_column_does_not_stand_for_the_one_the_rule_names(world: Any):
    spec = world.with_columns(world.count(values=["A"]), "source-1", {"street": "street_of_birth"})
    assert outside(answer(world, {"street": ("A", "B")}, spec))


@pytest.mark.parametrize("name", ["Street", "STREET", "ｓｔｒｅｅｔ", "street_"])
def test_a_column_that_is_spelt_otherwise_does_not_exist(world: Any, name: str):
    spec = world.with_columns(world.count(values=["A"]), "source-1", {"street": name})
    decision = answer(world, {"street": ("A", "B")}, spec)
    assert isinstance(decision, Refuse)
    assert decision.code == "unknown-column"


def test_a_column_that_the_job_does_not_even_name_restricts_nothing(world: Any):
    spec = world.with_columns(world.count(values=["1"]), "source-1", {"street": "sex"})
    assert outside(answer(world, {"street": ("A",)}, spec))
    assert not outside(answer(world, {"sex": ("1",)}, spec))


def test_every_column_of_the_rule_has_to_be_kept_to(world: Any):
    assert outside(answer(world, {"street": ("A",), "sex": ("1",)}, world.count(values=["A"])))


def test_a_job_type_that_hands_out_rows_whatever_their_value_is_refused(world: Any):
    assert outside(answer(world, {"street": ("A",)}, world.spec()))
    assert not outside(answer(world, {}, world.spec()))


def table(world: Any, **params: Any) -> JobSpec:
    """A table of the department's own by one column, with or without a filter."""
    own = next(i for i in world.spec().inputs if i.role == "source-1")
    slots = {"key": "resident_id", "sex": "sex"}
    slots |= {"filtered": "street"} if "filters" in params else {}
    given = JobInput(
        Role("source-1"), own.organisation, own.dataset, {k: slots[k] for k in slots if k != "key"}
    )
    axes = [{"slot": "sex", "values": ["1", "2"]}]
    return replace(
        world.spec(),
        job_type="table/1",
        params={"axes": axes, **params},
        inputs=(given,),
        roles={Role("source-1"): world.node("human-resources")},
        recipients=(),
    )


def test_a_table_without_a_filter_on_the_column_is_refused_and_with_it_answered(world: Any):
    only = {"street": ("A", "B")}
    for filters, refused in (
        (None, True),
        ([{"slot": "filtered", "values": ["A"]}], False),
        ([{"slot": "filtered", "values": ["A", "B"]}], False),
        ([{"slot": "filtered", "values": ["A", "C"]}], True),
    ):
        spec = table(world, **({} if filters is None else {"filters": filters}))
        CrossTable().check(spec)
        assert outside(answer(world, only, spec)) is refused


subsets = st.lists(st.sampled_from(STREETS), unique=True, max_size=3)


@settings(max_examples=80, deadline=None)
@given(allowed=subsets.filter(bool), axis=subsets, kept=subsets, mapped=st.sampled_from(["street", "sex"]))
def test_no_job_that_is_answered_can_be_about_a_row_outside(
    world: Any, allowed: list[str], axis: list[str], kept: list[str], mapped: str
):
    """Tried row by row: whatever parts of a job restrict the column, together they let no other row count."""
    columns = {"street": mapped, "also": "street"}
    needs = {
        "street": tuple(_needs("street", "group", axis)),
        "also": tuple(_needs("also", "filter", kept)),
    }
    rule = with_clauses(policy_of(world, {"street": tuple(allowed)}).rules[0])
    brings = replace(world.spec().inputs[1], columns=columns)
    counts = [
        street
        for street in STREETS
        if (not kept or street in kept) and (mapped != "street" or not axis or street in axis)
    ]
    if check_only(rule, brings, needs) is None:
        assert set(counts) <= set(allowed)
        assert kept or (axis and mapped == "street")


def _needs(slot: str, use: str, values: list[str]) -> Any:
    yield ColumnNeed(slot, use, ("code",), domain=Domain(values=tuple(values)))
    yield ColumnNeed(slot, "carry", ("code",))


def test_months_that_a_job_keeps_do_not_keep_to_rows_that_a_rule_is_for(world: Any):
    # A rule says texts. What is kept of the column by months, or numbers, names none, so nothing is known.
    rule = with_clauses(policy_of(world, {"street": ("A",)}).rules[0])
    brings = replace(world.spec().inputs[1], columns={"street": "street"})
    need = Filter("street", low=Fraction(24300), months=True).need
    refusal = check_only(rule, brings, {"street": (need,)})
    assert refusal is not None
    assert refusal.code == "outside-scope"


def variants() -> list[Only]:
    streets = chain.from_iterable(combinations(STREETS, n) for n in range(4))
    return [
        {name: values for name, values in (("street", street), ("sex", sex)) if values}
        for street, sex in product(streets, ((), ("1",)))
    ]


def test_what_a_new_version_says_of_its_rows_is_marked_truly(world: Any):
    specs = [world.count(values=list(v)) for n in (0, 1, 2, 3) for v in combinations(STREETS, n)]
    specs += [
        world.with_columns(world.count(values=list(v)), "source-1", {"street": "sex"})
        for v in ((), ("1",), ("1", "2"))
    ]
    answered = {}
    policies = [(only, policy_of(world, only)) for only in variants()]
    for number, (only, _) in enumerate(policies):
        answered[number] = {n for n, spec in enumerate(specs) if not outside(answer(world, only, spec))}
    marks = set()
    for (i, (_, old)), (j, (_, new)) in product(enumerate(policies), repeat=2):
        effect = overall(diff(old, new))
        marks.add(effect)
        assert answered[j] <= answered[i] or Effect.LOOSER in effect
        assert answered[i] <= answered[j] or Effect.TIGHTER in effect
    assert marks == {Effect.OTHER, Effect.LOOSER, Effect.TIGHTER, Effect.BOTH}


def test_whoever_signs_reads_every_value(world: Any):
    streets = ", ".join(f'"99010100{n:02d}"' for n in range(40))
    text = world.text().replace("approvals = 2\n", f"approvals = 2\nonly = {{ street = [{streets}] }}\n")
    parsed = parse_policy(text.encode())
    en, zh = (explain_policy(parsed, language) for language in ("en", "zh"))
    for page in (en, zh):
        assert all(f"99010100{n:02d}" in page for n in range(40))
    assert "Only for rows whose street is one of 9901010000, " in en
    assert "a job has to say so, or ask for fewer" in en
    assert "仅限列 street 取值为 9901010000、" in zh
