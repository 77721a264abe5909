"""What a spec of joined-rule/1 must be, and what follows from it before any party starts."""

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from joined_rule_case import COST, INCOME, LOOSE, RULES, S1, S2, S3, S4, SUPPORT, clause, column, rule_spec
from joined_table_case import SEATS

from protocols.dp.cost import Cost
from protocols.errors import InputError, ProtocolAborted
from protocols.ids import NodeName, Organisation, Role
from protocols.jobs import job_type
from protocols.jobs.job_type import REQUESTER, OutputClass
from protocols.jobs.joined_rule import RECIPIENT, Params
from protocols.joined.params import DEALER, HELPER, MATCHER
from protocols.statistics.differencing import differenced
from protocols.wire import Constraints, InputSummary, JobSpec

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "joined-rule.json").read_text())
BUREAU = Organisation("bureau.example")


def refused(spec: JobSpec) -> InputError:
    with pytest.raises(InputError) as error:
        RULES.check(spec)
    assert error.value.hint
    return error.value


def with_node(spec: JobSpec, role: Role, node: str) -> JobSpec:
    return replace(spec, roles={**spec.roles, role: NodeName(node)})


def separate(spec: JobSpec, requester: Organisation = BUREAU) -> bool:
    return not any(apart.these & apart.those for apart in RULES.separation(spec, requester))


@pytest.mark.parametrize("bad", VECTORS["bad_params"], ids=lambda bad: bad["why"])
def test_wrong_params_are_refused(bad: dict[str, Any]) -> None:
    spec = rule_spec()
    columns = {"key": "id", "x": "x", "age": "age", "street": "street", "last_seen": "seen"}
    for changed in (spec, replace(spec, inputs=tuple(replace(i, columns=columns) for i in spec.inputs))):
        assert refused(replace(changed, params={**spec.params, **bad["change"]})).code == bad["code"]


def test_the_registry_knows_it_and_it_survives_its_encoding() -> None:
    for spec in (rule_spec(), rule_spec(recipient="recipient"), rule_spec(recipient=S1)):
        job_type("joined-rule/1").check(JobSpec.decode(spec.encode()))


def test_a_dealer_is_always_needed() -> None:
    spec = rule_spec()
    for gone in (MATCHER, HELPER, DEALER):
        roles = {role: node for role, node in spec.roles.items() if role != gone}
        assert refused(replace(spec, roles=roles)).code == "bad-roles"


def test_a_source_brings_what_the_rule_compares_and_only_the_source_of_records_streets() -> None:
    spec = rule_spec()
    assert {need.slot for need in RULES.columns(spec, S1)} == {"key", "cost", "street", "last_seen", "latest"}
    assert {need.slot for need in RULES.columns(spec, S4)} == {"key", "latest"}
    for role in SEATS:
        assert RULES.columns(spec, role) == ()
    need, _ = [need for need in RULES.columns(spec, S2) if need.slot == "income"]
    assert need.use == "filter"  # it selects whom a record is about; no sum of it leaves
    bounds = need.domain.bounds if need.domain else None
    assert bounds == (Fraction(-10_000), Fraction(300_000))
    streets = tuple(replace(i, columns={**i.columns, "street": "street"}) for i in spec.inputs)
    assert refused(replace(spec, inputs=streets)).code == "bad-inputs"


def test_a_filter_may_not_have_the_slot_of_a_compared_column() -> None:
    spec = rule_spec(filters=[{"source": S1, "slot": "cost", "low": "1"}])
    assert refused(spec).code == "bad-params"


@pytest.mark.parametrize("recipients", [(), ("department-1.example",), ("department-4.example", "x.example")])
def test_only_the_recipients_organisation_receives_records(recipients: tuple[str, ...]) -> None:
    spec = replace(rule_spec(), recipients=tuple(map(Organisation, recipients)))
    assert refused(spec).code == "bad-recipients"


def test_a_recipient_with_a_list_is_named_by_its_list() -> None:
    spec = with_node(rule_spec(recipient="recipient"), RECIPIENT, "department-4.example/b")
    assert refused(replace(spec, recipients=(Organisation("department-4.example"),))).code == "bad-roles"


@pytest.mark.parametrize("computing", [MATCHER, HELPER, DEALER])
def test_whoever_computes_neither_asks_nor_receives_nor_computes_twice(computing: Role) -> None:
    for spec in (rule_spec(), rule_spec(recipient="recipient")):
        assert separate(spec)
        assert not separate(spec, Organisation(str(spec.roles[computing]).partition("/")[0]))
        for other in {MATCHER, HELPER, DEALER, Params.of(spec).recipient} - {computing}:
            assert not separate(with_node(spec, computing, f"{spec.roles[other]}x"))


def test_whoever_computes_brings_no_list() -> None:
    spec = rule_spec()
    for owner in (S1, S2, S3, S4):
        for computing in (MATCHER, HELPER, DEALER):
            assert not separate(with_node(spec, computing, f"{spec.roles[owner]}x"))


def test_the_recipients_organisation_may_ask_but_nothing_goes_to_whoever_asks() -> None:
    spec = rule_spec()
    assert separate(spec, Organisation("department-4.example"))
    (release,) = RULES.releases(spec)
    assert (release.output_class, release.made_by, release.recipient) == (
        OutputClass.DIRECTED,
        S4,
        "department-4.example",
    )


def test_seats_are_what_policies_call_them() -> None:
    spec = rule_spec(key_holders=[S3, S1])
    assert RULES.kinds(spec, S1) == {"source", "key-holder"}
    assert RULES.kinds(spec, S2) == {"source"}
    assert RULES.kinds(spec, S4) == {"source", "recipient"}
    assert RULES.kinds(rule_spec(recipient="recipient"), RECIPIENT) == {"recipient"}
    assert [RULES.kinds(spec, role) for role in SEATS] == [{"matcher"}, {"helper"}, {"dealer"}]


def test_every_list_but_the_recipients_pays_for_each_record_that_may_leave() -> None:
    spec, limits = rule_spec(), replace(LOOSE, max_rows=70)
    costs = {role: RULES.cost(spec, role, limits) for role in (S1, S2, S3, S4, MATCHER)}
    assert [costs[role] for role in (S1, S2, S3)] == [Cost(rows=70, queries=1)] * 3
    assert (costs[S4], costs[MATCHER]) == (Cost(queries=1), Cost())


def test_a_person_has_to_be_on_so_many_lists_as_are_on() -> None:
    assert RULES.sources_asked(rule_spec()) == 2
    assert RULES.sources_asked(rule_spec(join={S1: "on", S2: "may", S3: "may", S4: "not"})) == 1


def test_another_threshold_weight_or_way_is_another_question_and_another_order_is_not() -> None:
    spec = rule_spec()
    first, second = spec.params["rule"]
    asked = RULES.query(spec, S1)
    assert asked is not None
    others: list[dict[str, Any]] = [
        {"rule": [clause("at_least", "30001", cost=1), second]},
        {"rule": [first, clause("at_least", "0.5", cost=2, income=-1, support=-13)]},
        {"rule": [clause("at_most", "30000", cost=1), second]},
        {"rule": [first, first, second]},
        {"join": {S1: "on", S2: "on", S3: "on", S4: "not"}},
        {"columns": [{**COST, "high": "400000"}, INCOME, SUPPORT]},
        {"filters": [{"source": S2, "slot": "status", "values": ["open"]}]},
    ]
    for params in others:
        again = RULES.query(rule_spec(**params), S1)
        assert again is not None
        assert differenced(again, asked)
    for params in (
        {"rule": [second, first]},
        {"recipient": S1},
        {"key_holders": [S2, S3]},
    ):
        assert RULES.query(rule_spec(**params), S1) == asked
    assert RULES.query(spec, MATCHER) is None


def summaries(spec: JobSpec, **changes: int) -> dict[Role, InputSummary]:
    empty = RULES.builder(spec, S1).finish()
    each = InputSummary(100, 100, 100, empty.commitment(bytes(32)), "2026-01-01", spec.roster_digest, "v")
    return {role: replace(each, **changes) if role == S4 else each for role in (S1, S2, S3, S4)}


@pytest.mark.parametrize(
    ("limits", "changes", "code"),
    [
        ({"max_rows": None}, {}, "guard-missing"),
        ({"max_fraction": None}, {}, "guard-missing"),
        ({"min_sources": 3}, {}, "guard-sources"),
        ({"min_organisations": 5}, {}, "guard-organisations"),
        ({}, {"distinct_keys": 97}, "guard-list-size"),
        ({"min_coverage": Fraction(995, 1000)}, {"distinct_keys": 99}, "guard-coverage"),
        ({}, {"distinct_keys": 101}, "guard-sizes"),
        ({}, {"rule_version": "w"}, "guard-rules"),
    ],
)
def test_admissions_that_break_a_guard_end_the_attempt_before_it_begins(limits, changes, code) -> None:
    spec = rule_spec()
    RULES.check_inputs(spec, summaries(spec), LOOSE)
    with pytest.raises(ProtocolAborted) as error:
        RULES.check_inputs(spec, summaries(spec, **changes), replace(LOOSE, **limits))
    assert error.value.code == code


def keys_of(spec: JobSpec, *members: str) -> set[str]:
    return {each.key for each in RULES.learns(spec).get(frozenset(map(Role, members)), ())}


def test_every_seat_is_spoken_of() -> None:
    spec = rule_spec(recipient="recipient")
    assert {frozenset({role}) for role in (*spec.roles, Role(REQUESTER))} <= set(RULES.learns(spec))


@pytest.mark.parametrize("computing", [MATCHER, HELPER])
def test_a_recipient_on_whose_list_nobody_has_to_be_learns_more_with_others(computing: Role) -> None:
    for recipient in ("recipient", S3, S4):
        spec = rule_spec(recipient=recipient)
        # Of the lists that may hold a flagged person, the recipient knows its own.
        assert ("flagged-elsewhere" in keys_of(spec, computing, recipient)) == (recipient != S3)
        assert "flagged-sums" in keys_of(spec, DEALER, computing, recipient)
    # Everybody flagged is on the list of a recipient that is "on", and spoken of as on any source's.
    spec = rule_spec(recipient=S1)
    assert "flagged-elsewhere" not in keys_of(spec, computing, S1)
    assert keys_of(spec, DEALER, computing, S1) == {"joined-records"}
    for recipient in ("recipient", S1, S3, S4):
        assert "chosen-rows" in keys_of(rule_spec(recipient=recipient), computing, recipient)


def test_officers_read_which_rows_of_which_lists_count() -> None:
    filters = [
        {"source": S1, "slot": "status", "values": ["settled"]},
        {"source": S4, "slot": "year", "low": "2025"},
        {"source": S2, "slot": "kind", "values": [*"abcdefg"]},
        {"source": S3, "slot": "month", "from": "2025-01", "to": "2025-09"},
    ]
    for params, words in (
        ({}, ("on none of source-4; none of the values", "在 source-4 清单中没有); 不知道任何数值")),
        ({"filters": filters}, ("source-1: the_status = settled; source-4: the_year = 2025 …;",) * 2),
        (
            {"filters": filters},
            ("source-2: the_kind = a | b | c | d | e | …; source-3: the_month = 2025-01 … 2025-09",) * 2,
        ),
    ):
        spec = rule_spec(**params)
        (said,) = [each for each in RULES.learns(spec)[frozenset({S4})] if each.key == "flagged-rows"]
        assert words[0] in said.en
        assert words[1] in said.zh
        assert "count on the lists of source-1, source-2" in said.en


def test_lists_that_no_node_has_memory_for_are_refused_before_anything_leaves() -> None:
    spec = rule_spec()
    large = {role: replace(each, rows=1 << 27, distinct_keys=1 << 27, catalogue_keys=1 << 27)
             for role, each in summaries(spec).items()}  # fmt: skip
    with pytest.raises(ProtocolAborted) as error:
        RULES.check_inputs(spec, large, LOOSE)
    assert error.value.code == "guard-too-large"


def cuts(spec: JobSpec, slot: str, role: Role = S1) -> list[Fraction | None]:
    needs = [need for need in RULES.columns(spec, role) if need.slot == slot]
    return [need.domain.kept[1] for need in needs if need.domain is not None and need.domain.kept]


def test_a_clause_of_one_column_cuts_it_below_the_least_amount_that_is_on_its_upper_side() -> None:
    assert cuts(rule_spec(), "cost") == [29_999, Fraction(1, 3)]
    for each, below in (
        (clause("at_least", "29999.995", cost=1), 29_999),
        (clause("at_most", "29999.99", cost=1), 29_999),
        (clause("at_most", "-60000", cost=-2), 29_999),
        (clause("at_most", "30000", cost=1), Fraction(2_999_901, 100)),
        (clause("at_least", "1/3", cost=1), Fraction(-66, 100)),
    ):
        assert cuts(rule_spec(rule=[each], columns=[COST]), "cost") == [below]
    for everybody in (
        clause("at_least", "0", cost=1),
        clause("at_most", "500000", cost=1),
        clause("at_least", "500001", cost=1),
    ):
        assert cuts(rule_spec(rule=[everybody], columns=[COST]), "cost") == []
    months = {**COST, "until": "2025-12"}
    del months["decimals"]
    assert cuts(rule_spec(rule=[clause("at_least", "5", cost=1)], columns=[months]), "cost") == []


def test_clauses_may_be_eight_and_columns_sixteen() -> None:
    columns = [column(1, f"c{i}") for i in range(16)]
    eight = [clause("at_least", "1", **{f"c{i}": 1, f"c{i + 8}": 1}) for i in range(8)]
    RULES.check(rule_spec(columns=columns, rule=eight))
    assert refused(rule_spec(columns=[*columns, COST], rule=eight)).code == "bad-params"


def test_limits_without_a_range_are_the_strictest_of_all() -> None:
    with pytest.raises(ProtocolAborted) as error:
        RULES.check_inputs(rule_spec(), summaries(rule_spec()), Constraints())
    assert error.value.code == "guard-missing"
