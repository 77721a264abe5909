"""What a policy holds jobs to that count persons: values, bins and ranges of columns, units, budgets."""

from dataclasses import replace
from typing import Any

import pytest

from policies.decide import decide
from policies.decision import Decision, Permit, Refuse
from policies.model import ActivePolicy
from policies.parse import cautions, parse_policy
from protocols.ids import Organisation
from protocols.wire import JobSpec

SEX = '{ type = "enum", use = ["group"], values = ["1", "2"] }'
AGE = '{ type = "int", use = ["group", "sum", "mean"], range = [0, 120], bins = [0, 18, 60] }'
UNIT = 'unit = { column = "resident_id", max_rows = 12 }'
BUDGET = """
[budgets.noise]
dataset = "insured"
notion = "zcdp"
limit = "0.5"
delta = "1e-9"
period = "calendar-quarter"
scope = "all-requesters"
"""


def policy(
    *, sex: str = SEX, age: str = AGE, unit: str = UNIT, budget: str = BUDGET, personal: str = "sensitive"
) -> str:
    """A department that lets its insured be counted, by a column of two values and one of numbers."""
    spends = 'budget = "noise"\nmax_cost = "0.1"' if budget else ""
    return f"""
schema = "minshu-policy/1"
policy_id = "human-resources.gz.example/node-a"
version = 1
not_before = 2026-12-01T00:00:00+08:00
expires = 2027-03-01T00:00:00+08:00
timezone = "Asia/Shanghai"
controller = "x"
[defaults]
min_group_size = 10
release_requires = "cosigned"
[requesters.bureau]
organisation = "data-bureau.gz.example"
keys = ["KEY"]
[purposes."P-2026-001"]
title = "x"
legal_basis = "DPIA-2026-001"
valid_until = 2027-02-28
[datasets.insured]
source = "local:insured"
grade = "general-4"
personal = "{personal}"
{unit}
[datasets.insured.columns]
resident_id = {{ type = "resident-id", use = ["join"] }}
street = {sex}
age = {age}
{budget}
[[rules]]
id = "R1"
requesters = ["bureau"]
purposes = ["P-2026-001"]
job_types = ["count/1"]
datasets = ["insured"]
columns = ["street", "age"]
recipients = ["bureau"]
min_organisations = 2
{spends}
approvals = 0
[retention]
journal_days = 1095
release_days = 30
intermediate = "job-end"
"""


def asked(world: Any, **params: Any) -> JobSpec:
    ages = not params.keys().isdisjoint({"bins", "bounds", "kept"})
    spec = world.count(**params)
    columns = {"street": "street", **({"age": "age"} if ages else {})}
    found: JobSpec = world.with_columns(spec, "source-1", columns)
    return replace(found, recipients=())


def answer(world: Any, text: str, spec: JobSpec, *, sent: bool = False) -> Decision:

    parsed = parse_policy(text.replace("KEY", world.key("analyst")).encode(), job_types=world.types)
    return decide(
        ActivePolicy(parsed.policy, parsed.digest), spec, node=world.node("human-resources"),
        roster=world.roster, now=world.now, job_types=world.types,
    )  # fmt: skip


def refusal(decision: Decision) -> str:
    assert isinstance(decision, Refuse), decision
    assert decision.rule == "R1"
    for text in (decision.sentence, decision.zh, decision.hint, decision.hint_zh):
        assert text.isprintable()
        assert 0 < len(text) < 200
    assert any("\u4e00" <= character <= "\u9fff" for character in decision.zh)
    assert any("\u4e00" <= character <= "\u9fff" for character in decision.hint_zh)
    return decision.code


def test_a_whole_table_job_fits_a_rule_without_quotas(world: Any):
    spec = asked(world, values=["1", "2"], bins=["0", "60"])
    assert isinstance(answer(world, policy(), spec), Permit)
    to_police = replace(spec, recipients=(Organisation("police.gz.example"),))
    assert refusal(answer(world, policy(), to_police)) == "recipient-not-allowed"


# --- values


@pytest.mark.parametrize("values", [["1", "2"], ["2"], []])
def test_listed_values_may_be_counted(world: Any, values: list[str]):
    assert isinstance(answer(world, policy(), asked(world, values=values)), Permit)


def test_a_value_that_the_policy_does_not_list_is_refused_and_not_repeated(world: Any):
    decision = answer(world, policy(), asked(world, values=["1", "440103199001011234", "男"]))
    assert refusal(decision) == "column-values"
    assert isinstance(decision, Refuse)
    assert "2 values" in decision.sentence
    for text in (decision.sentence, decision.zh, decision.hint, decision.hint_zh):
        assert "440103199001011234" not in text
        assert "男" not in text
    assert decision.hint.endswith("1, 2")


def test_values_of_a_long_code_list_are_the_jobs_to_say(world: Any):
    code = '{ type = "code", use = ["group"] }'
    assert isinstance(answer(world, policy(sex=code), asked(world, values=["1", "440103"])), Permit)


def test_of_a_long_list_of_values_only_the_first_are_read_out(world: Any):
    values = ", ".join(f'"{number}"' for number in range(100, 300))
    long = f'{{ type = "enum", use = ["group"], values = [{values}] }}'
    decision = answer(world, policy(sex=long), asked(world, values=["1"]))
    assert refusal(decision) == "column-values"
    assert decision.hint.endswith("111, … (200)")


# --- bins


@pytest.mark.parametrize(
    ("bins", "fits"),
    [(["0", "18", "60"], True), (["18"], True), (["0", "19"], False), (["0", "18", "60", "61"], False),
     (["0", "35/2"], False)],
)  # fmt: skip
def test_groups_begin_only_where_the_policy_lets_them(world: Any, bins: list[str], *, fits: bool):
    decision = answer(world, policy(), asked(world, bins=bins))
    assert isinstance(decision, Permit) if fits else refusal(decision) == "column-bins"


def test_where_the_policy_says_nothing_of_bins_they_are_the_jobs_to_say(world: Any):
    free = AGE.replace(", bins = [0, 18, 60]", "")
    assert isinstance(answer(world, policy(age=free), asked(world, bins=["0", "19"])), Permit)


@pytest.mark.parametrize(
    ("kept", "whole", "decimals"),
    [
        (["0", "17"], True, False), (["18", "59"], True, False), (["60", ""], True, True),
        (["", "17"], True, False), (["18", ""], True, True), (["0", ""], True, True),
        (["0", "18"], False, False), (["61", ""], False, False), (["17", ""], False, False),
        (["", "60"], False, False), (["18", "30"], False, False), (["0", "119/2"], False, False),
        (["35/2", ""], False, False), (["0", "120"], False, False),
    ],
)  # fmt: skip
def test_filters_keep_whole_groups(world: Any, kept: list[str], *, whole: bool, decimals: bool):
    usable = AGE.replace('"group"', '"group", "filter"')
    for age, fits in ((usable, whole), (usable.replace('"int"', '"decimal"'), decimals)):
        decision = answer(world, policy(age=age), asked(world, kept=kept))
        assert isinstance(decision, Permit) if fits else refusal(decision) == "column-bins"
    free = usable.replace(", bins = [0, 18, 60]", "")
    assert isinstance(answer(world, policy(age=free), asked(world, kept=kept)), Permit)


# --- ranges


@pytest.mark.parametrize(
    ("bounds", "fits"),
    [(["0", "120"], True), (["-1", "200"], True), (["1", "120"], False), (["0", "119"], False),
     (["0", "239/2"], False), (["121", "500"], False)],
)  # fmt: skip
def test_exact_sums_take_bounds_that_hold_the_policys_range(world: Any, bounds: list[str], *, fits: bool):
    decision = answer(world, policy(), asked(world, bounds=bounds))
    assert isinstance(decision, Permit) if fits else refusal(decision) == "column-range"


def test_an_exact_sum_of_a_column_without_a_range_is_refused(world: Any):
    boundless = AGE.replace("range = [0, 120], ", "")
    assert refusal(answer(world, policy(age=boundless), asked(world, bounds=["0", "120"]))) == "column-range"


def test_with_noise_any_bounds_will_do_because_amounts_are_clamped(world: Any):
    boundless = AGE.replace("range = [0, 120], ", "")
    for age in (AGE, boundless):
        assert isinstance(
            answer(world, policy(age=age), asked(world, bounds=["10", "20"], rho="0.1")), Permit
        )


# --- several uses of one slot


def test_a_slot_that_is_asked_for_two_uses_has_to_meet_both(world: Any):
    for lacking in ("sum", "mean"):
        age = AGE.replace(f'"{lacking}"', '"filter"')
        decision = answer(world, policy(age=age), asked(world, bounds=["0", "120"]))
        assert refusal(decision) == "column-use"
        assert f": {lacking}." in decision.sentence
    both = asked(world, bounds=["0", "120"], bins=["0"])
    assert isinstance(answer(world, policy(), both), Permit)
    assert refusal(answer(world, policy(age=AGE.replace('"group", ', "")), both)) == "column-use"


# --- in how many departments one person may be


@pytest.mark.parametrize(
    ("least", "stated", "fits"),
    [
        (None, None, True), (None, 4, True), (None, 3, False), (None, 1, False),
        (2, None, True), (2, 3, True), (2, 2, True), (2, 1, False),
        (1, 1, True), (9, 4, True), (9, 3, False),
    ],
)  # fmt: skip
def test_persons_are_in_as_many_departments_as_the_rule_says(
    world: Any, least: int | None, stated: int | None, *, fits: bool
):
    text = (
        policy()
        if least is None
        else policy().replace("approvals = 0", f"persons_in = {least}\napprovals = 0")
    )
    decision = answer(world, text, asked(world, **({} if stated is None else {"persons_in": stated})))
    if fits:
        assert isinstance(decision, Permit)
        assert decision.terms.persons_in == (stated or 4, 4)
        return
    assert refusal(decision) == "persons-in"
    assert isinstance(decision, Refuse)
    asks = min(least or 4, 4)
    assert f"at most {stated} of 4 departments; the rule asks for at least {asks}." in decision.sentence
    assert f"persons_in = {asks}" in decision.hint
    assert f"persons_in = {asks}" in decision.hint_zh


# --- units and budgets


def test_persons_are_not_counted_where_nobody_says_whom_a_row_is_about(world: Any):
    spec, without = asked(world, values=["1"]), {"unit": "", "budget": ""}
    for personal in ("personal", "sensitive"):
        decision = answer(world, policy(**without, personal=personal), spec)
        assert refusal(decision) == "missing-unit"
        assert "insured" in decision.sentence
    # Of data about nobody, every row is its own.
    assert isinstance(answer(world, policy(**without, personal="none"), spec), Permit)


def test_what_can_never_be_answered_is_noted_before_anybody_signs(world: Any):
    def notes(text: str) -> list[tuple[str, str]]:
        parsed = parse_policy(text.replace("KEY", world.key("analyst")).encode(), job_types=world.types)
        found = cautions(parsed, job_types=world.types)
        lines = text.splitlines()
        assert all(lines[caution.line - 1] == "[[rules]]" for caution in found)
        return [(caution.en, caution.zh) for caution in found]

    assert notes(policy()) == []
    assert notes(policy(unit="", budget="", personal="none")) == []
    [(en, zh)] = notes(policy(budget=""))
    assert "names no budget" in en
    assert "隐私预算" in zh
    unit, budget = notes(policy(budget="", unit=""))
    assert "whom a row is about" in unit[0]
    assert "unit" in unit[1]
    assert (en, zh) == budget
