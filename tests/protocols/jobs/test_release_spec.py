"""What a spec of release/1 must be, and what follows from it before any party starts."""

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from crosscheck_case import ZERO
from release_case import (
    ASKS,
    AXIS,
    OPEN,
    PERSON,
    RELEASE,
    STREETS,
    planned,
    release_case,
    release_spec,
    tallied,
)

from protocols.dp.cost import Cost
from protocols.errors import InputError, ProtocolAborted
from protocols.ids import DatasetName, NodeName, Organisation, Role
from protocols.jobs import job_type
from protocols.jobs.job_type import REQUESTER, Forecaster, OutputClass
from protocols.party import Incoming
from protocols.releases.params import AGGREGATOR, source
from protocols.statistics.differencing import Between, differenced
from protocols.wire import Constraints, InputSummary, JobInput, JobSpec

BUREAU = Organisation("bureau.example")


def refused(spec: JobSpec) -> InputError:
    with pytest.raises(InputError) as error:
        RELEASE.check(spec)
    assert error.value.hint
    return error.value


def changed(spec: JobSpec, **params: Any) -> JobSpec:
    """Return the spec with other params; those of None are left out."""
    merged = {**spec.params, **params}
    return replace(spec, params={name: value for name, value in merged.items() if value is not None})


@pytest.mark.parametrize("statistic", ASKS)
@pytest.mark.parametrize("sources", [1, 2, 5, 50])
def test_every_statistic_is_asked_of_one_department_or_of_several_together(statistic, sources):
    spec = release_spec(statistic, sources)
    if statistic == "keys" and sources > 1:
        assert refused(spec).code == "keys-jointly"
        return
    RELEASE.check(spec)
    RELEASE.check(JobSpec.decode(spec.encode()))


# ---------------------------------------------------------------- how much privacy


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"rho": "0"}, "is 0"),
        ({"rho": "-0.1"}, "above 0"),
        ({"rho": "16.01"}, "at most 16"),
        ({"rho": "1000000000000"}, "at most 16"),
        ({"rho": None, "epsilon": "0"}, "is 0"),
        ({"rho": None, "epsilon": "-1"}, "above 0"),
        ({"rho": None, "epsilon": "33"}, "at most 32"),
        ({"rho": "0.1", "epsilon": "1"}, "both rho and epsilon"),
        ({"rho": None}, "neither rho nor epsilon"),
    ],
)
def test_no_privacy_loss_endless_loss_both_and_none_are_refused_in_words(params, words):
    error = refused(changed(release_spec("count"), **params))
    assert error.code == "bad-privacy"
    assert words in error.message


@pytest.mark.parametrize("amount", [0.5, 1, True, "", "much", "1e-3", "1/0", "٣", [], "0.1 "])
def test_an_amount_is_a_number_written_as_text(amount):
    assert refused(changed(release_spec("count"), rho=amount)).code == "bad-params"
    assert refused(changed(release_spec("count"), rho=None, epsilon=amount)).code == "bad-params"


def test_the_whole_range_of_amounts_is_possible():
    for params in ({"rho": "16"}, {"rho": "0.000001"}, {"epsilon": "32"}, {"epsilon": "0.001"}):
        RELEASE.check(release_spec("histogram", 3, **params))


@pytest.mark.parametrize("delta", ["0", "-0.1", "0.0011", "1"])
def test_the_chance_that_a_persons_own_key_shows_is_small_and_not_zero(delta):
    assert refused(release_spec("keys", delta=delta)).code == "bad-privacy"


# ---------------------------------------------------------------- what a statistic asks

BINS = ["0", "18", "60"]


@pytest.mark.parametrize(
    ("statistic", "params", "code"),
    [
        ("count", {"statistic": "median"}, "bad-params"),
        ("count", {"statistic": None}, "bad-params"),
        ("count", {"axes": [AXIS]}, "unknown-param"),
        ("count", {"levels": [6]}, "unknown-param"),
        ("count", {"at": ["0.5"]}, "unknown-param"),
        ("count", {"key_holder": "source-1"}, "unknown-param"),
        ("count", {"mode": "bfv"}, "unknown-param"),
        ("count", {"colluding": 0}, "unknown-param"),
        ("count", {"unit_rows": 0}, "bad-params"),
        ("count", {"unit_rows": 1001}, "bad-params"),
        ("count", {"persons_in": 2}, "bad-params"),
        ("count", {"areas": "atlantis"}, "bad-params"),
        ("histogram", {"axes": None}, "bad-params"),
        ("histogram", {"axes": [AXIS, AXIS]}, "bad-params"),
        (
            "histogram",
            {"axes": [{"slot": "a", "values": [str(i) for i in range(1025)]}] * 2},
            "too-many-cells",
        ),
        ("sum", {"measure": None}, "bad-params"),
        ("sum", {"measure": {"slot": "income"}}, "bad-params"),
        ("sum", {"measure": {"slot": "income", "bounds": ["5", "5"]}}, "bad-params"),
        ("sum", {"measure": {"slot": "street", "bounds": ["0", "5"]}}, "bad-params"),
        ("sum", {"measure": {"slot": "income", "bounds": ["0", "5"], "of": ["sum"]}}, "unknown-param"),
        ("sum", {"measure": {"slot": "income", "bounds": ["0", "1000000000000"]}}, "sum-too-large"),
        ("quantile", {"measure": {"slot": "age"}}, "bad-params"),
        ("quantile", {"measure": {"slot": "age", "bins": BINS}}, "bad-params"),
        ("quantile", {"measure": {"slot": "age", "bins": BINS, "end": "60"}}, "bad-params"),
        ("quantile", {"measure": {"slot": "age", "bins": ["0"], "end": "60"}}, "bad-params"),
        ("quantile", {"measure": {"slot": "age", "bins": ["18", "0"], "end": "60"}}, "bad-params"),
        ("quantile", {"at": None}, "bad-params"),
        ("quantile", {"at": ["0"]}, "bad-params"),
        ("quantile", {"at": ["0.5", "1"]}, "bad-params"),
        ("quantile", {"at": ["-0.5"]}, "bad-params"),
        ("quantile", {"at": ["0.9", "0.5"]}, "bad-params"),
        ("tree", {"axes": [AXIS, {"slot": "age", "bins": BINS}]}, "bad-params"),
        ("tree", {"axes": [{"slot": "age", "bins": BINS}]}, "bad-params"),
        ("tree", {"levels": None}, "bad-levels"),
        ("tree", {"levels": [6, 4]}, "bad-levels"),
        ("tree", {"levels": [6, 6]}, "bad-levels"),
        ("tree", {"levels": [0]}, "bad-levels"),
        ("tree", {"levels": [True]}, "bad-levels"),
        ("tree", {"levels": ["6"]}, "bad-levels"),
        ("tree", {"levels": 6}, "bad-levels"),
        ("tree", {"levels": [9]}, "bad-levels"),
        ("tree", {"levels": [12]}, "bad-levels"),
        ("keys", {"delta": None}, "bad-params"),
        ("keys", {"slot": None}, "bad-params"),
        ("keys", {"axes": [AXIS]}, "unknown-param"),
    ],
)
def test_params_that_cannot_be_meant_are_refused(statistic, params, code):
    assert refused(changed(release_spec(statistic), **params)).code == code


def test_a_place_in_the_tree_is_never_in_doubt():
    def levels(*values: str) -> str:
        axis = {"slot": "street", "values": [*values]}
        return refused(changed(release_spec("tree"), axes=[axis])).code

    # A district among its streets, and a community among the streets of which it lies in one.
    assert levels("990101001", "990102") == "bad-levels"
    assert levels("990101001", "990101001001") == "bad-levels"
    axis = {"slot": "street", "values": ["990101001001", "99010200"]}
    RELEASE.check(changed(release_spec("tree"), axes=[axis]))


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"key_holder": None}, "bad-params"),
        ({"key_holder": "source-4"}, "bad-params"),
        ({"key_holder": "aggregator"}, "bad-params"),
        ({"mode": "paillier"}, "bad-params"),
        ({"persons_in": 4}, "bad-params"),
        ({"persons_in": 0}, "bad-params"),
        ({"colluding": 2}, "bad-params"),
        ({"colluding": -1}, "bad-params"),
    ],
)
def test_params_of_a_joint_release_that_cannot_be_meant_are_refused(params, code):
    assert refused(changed(release_spec("count", 3), **params)).code == code


# ---------------------------------------------------------------- roles, inputs, recipients


@pytest.mark.parametrize(
    "roles",
    [
        {},
        {"source-2": "a.example/a"},
        {"source-1": "a.example/a", "aggregator": "b.example/a"},
        {"source-1": "a.example/a", "source-2": "b.example/a"},
        {"source-1": "a.example/a", "source-3": "b.example/a", "aggregator": "c.example/a"},
        {"source-1": "a.example/a", "source-2": "b.example/a", "matcher": "c.example/a"},
    ],
)
def test_other_roles_are_refused(roles):
    nodes = {Role(role): NodeName(node) for role, node in roles.items()}
    assert refused(replace(release_spec("count", 2), roles=nodes)).code == "bad-roles"


def test_more_departments_than_a_sum_carries_are_refused():
    assert refused(release_spec("count", 51)).code == "bad-roles"


def test_each_source_brings_one_dataset_with_the_slots_it_needs():
    spec = release_spec("sum", 2)
    assert refused(replace(spec, inputs=spec.inputs[1:])).code == "bad-inputs"
    neutral = JobInput(AGGREGATOR, Organisation("statistics.example"), DatasetName("people"), {})
    assert refused(replace(spec, inputs=(*spec.inputs, neutral))).code == "bad-inputs"
    columns = spec.inputs[0].columns
    for other in ({**columns, "unit": "id"}, {**columns, "age": "age"}, {"street": "street"}, {}):
        assert refused(
            replace(spec, inputs=(replace(spec.inputs[0], columns=other), spec.inputs[1]))
        ).code == ("bad-inputs")
    recent = replace(spec.inputs[0], columns={**columns, "latest": "month"})
    RELEASE.check(replace(spec, inputs=(recent, spec.inputs[1])))


def with_node(spec: JobSpec, role: Role, node: str) -> JobSpec:
    return replace(spec, roles={**spec.roles, role: NodeName(node)})


def test_one_organisation_gives_one_dataset_and_none_bears_the_requesters_name():
    spec = release_spec("count", 3)
    assert refused(with_node(spec, source(2), "department-1.example/b")).code == "one-list-each"
    assert refused(with_node(spec, AGGREGATOR, f"{REQUESTER}/a")).code == "reserved-name"


def test_the_table_goes_to_the_requester_alone():
    spec = release_spec("count", 3, key_holder="source-2")
    (release,) = RELEASE.releases(spec)
    assert release.name == "table"
    assert release.output_class is OutputClass.AGGREGATE
    assert (release.made_by, release.recipient) == ("source-2", REQUESTER)
    assert RELEASE.releases(release_spec("count"))[0].made_by == "source-1"
    assert refused(replace(spec, recipients=(BUREAU,))).code == "bad-recipients"


def test_the_named_source_is_key_holder():
    spec = release_spec("count", 3, key_holder="source-2")
    assert {role: RELEASE.kinds(spec, role) for role in spec.roles} == {
        source(1): {"source"},
        source(2): {"source", "key-holder"},
        source(3): {"source"},
        AGGREGATOR: {"aggregator"},
    }
    assert RELEASE.kinds(release_spec("count"), source(1)) == {"source"}


@pytest.mark.parametrize(
    ("statistic", "uses"),
    [
        ("count", set()),
        ("histogram", {("street", "group"), ("age", "group")}),
        ("sum", {("street", "group"), ("income", "sum")}),
        ("mean", {("street", "group"), ("income", "mean")}),
        ("quantile", {("age", "quantile")}),
        ("tree", {("street", "group")}),
        ("keys", {("job", "group")}),
    ],
)
def test_columns_are_declared_with_the_use_a_policy_must_allow(statistic, uses):
    spec = release_spec(statistic, filters=[{"slot": "year", "low": "2020"}])
    needs = RELEASE.columns(spec, source(1))
    assert {(need.slot, need.use) for need in needs} == uses | {("year", "filter"), ("latest", "filter")}
    assert {need.slot for need in needs if not need.required} == {"latest"}
    # Amounts out of bounds are clamped, so bounds need not hold all that the policy says may occur.
    assert not any(need.domain.covering for need in needs if need.domain)
    assert RELEASE.columns(release_spec("count", 2), AGGREGATOR) == ()


def violated(spec: JobSpec, requester: Organisation = BUREAU) -> bool:
    return any(apart.these & apart.those for apart in RELEASE.separation(spec, requester))


def test_the_requester_holds_no_seat_and_no_organisation_holds_two():
    spec = release_spec("count", 3)
    assert not violated(spec)
    for role, node in spec.roles.items():
        assert violated(spec, Organisation(node.partition("/")[0]))
        for other in spec.roles:
            if other != role:
                assert violated(with_node(spec, other, node.replace("/a", "/b")))
    assert violated(release_spec("count"), Organisation("department-1.example"))


# ---------------------------------------------------------------- inputs

SUMMARY = InputSummary(100, 100, 100, ZERO, "2026-01-01", ZERO, "rules")


def guard(spec: JobSpec, constraints: Constraints = OPEN, **changed: InputSummary) -> str | None:
    sources = [item.role for item in spec.inputs]
    inputs = {role: changed.get(role.replace("-", "_"), SUMMARY) for role in sources}
    try:
        RELEASE.check_inputs(spec, inputs, constraints)
    except ProtocolAborted as aborted:
        return aborted.code
    return None


def test_the_strictest_rules_of_all_departments_hold():
    spec = release_spec("count", 3)
    assert guard(spec) is None
    assert guard(spec, replace(OPEN, min_organisations=3)) is None
    assert guard(spec, replace(OPEN, min_organisations=4)) == "guard-organisations"
    assert guard(release_spec("count"), replace(OPEN, min_organisations=2)) == "guard-organisations"
    assert guard(spec, replace(OPEN, min_sources=1)) is None
    assert guard(spec, replace(OPEN, min_sources=2)) == "guard-sources"
    assert RELEASE.sources_asked(spec) == 1


def test_rows_counted_by_other_rules_are_not_added_and_every_dataset_has_its_summary():
    spec = release_spec("count", 3)
    assert guard(spec, source_2=replace(SUMMARY, rule_version="other")) == "guard-rules"
    with pytest.raises(ProtocolAborted) as aborted:
        RELEASE.check_inputs(spec, {source(1): SUMMARY}, OPEN)
    assert aborted.value.code == "guard-inputs"


def test_a_department_by_itself_hears_from_nobody():
    party = release_case(release_spec("count"), [[]]).parties[source(1)]
    with pytest.raises(ProtocolAborted) as aborted:
        party.receive(Incoming(source(2), 1, b""))
    assert aborted.value.code == "unexpected-message"


def test_a_party_takes_only_what_its_builder_returns():
    setup = release_case(release_spec("count", 2), [[], []]).setup
    with pytest.raises(TypeError):
        RELEASE.party(source(1), setup, None, bytes)
    with pytest.raises(TypeError):
        RELEASE.party(Role("source-3"), setup, None, bytes)


# ---------------------------------------------------------------- cost, query, forecast


@pytest.mark.parametrize("statistic", ASKS)
@pytest.mark.parametrize(("how", "amount"), [("rho", "0.3"), ("epsilon", "1/3")])
def test_every_source_pays_exactly_what_the_job_says(statistic, how, amount):
    sources = 1 if statistic == "keys" else 3
    spec = release_spec(statistic, sources, **{how: amount})
    costs = {RELEASE.cost(spec, item.role, OPEN) for item in spec.inputs}
    (cost,) = costs
    assert cost.queries == 1
    assert cost.rows == 0
    delta = Fraction("0.000001") if statistic == "keys" else Fraction(0)
    if how == "rho":
        assert cost == Cost.zcdp(Fraction(amount), delta) + Cost(queries=1)
        assert cost.within("zcdp", Fraction(amount), delta)
    else:
        assert cost.pure == -(-(10**15) // 3)
        assert cost.delta == delta * 10**15
    if sources > 1:
        assert RELEASE.cost(spec, AGGREGATOR, OPEN) == Cost()


def test_a_query_says_what_is_computed_of_whom_and_is_noisy():
    kept = [{"slot": "sex", "values": ["1"]}, {"slot": "year", "low": "2020", "high": "2025"}]
    spec = release_spec("mean", 2, filters=kept)
    query = RELEASE.query(spec, source(2))
    assert query is not None
    assert query.noisy
    assert dict(query.filters) == {
        "the_sex": frozenset({"1"}),
        "the_year": Between(Fraction(2020), Fraction(2025)),
    }
    assert RELEASE.query(spec, AGGREGATOR) is None
    others = [
        release_spec("sum", 2, filters=kept),
        release_spec("mean", 3, filters=kept),
        changed(spec, persons_in=1),
        changed(spec, measure={"slot": "income", "bounds": ["0", "4000"]}),
    ]
    for other in others:
        asked = RELEASE.query(other, source(2))
        assert asked is not None
        assert asked.asks != query.asks
        assert not differenced(asked, query)


def test_what_more_privacy_loss_would_buy_is_told_before_it_is_spent():
    assert isinstance(RELEASE, Forecaster)
    amounts = [Fraction(1, 100), Fraction(1, 10), Fraction(1)]
    for statistic in ASKS:
        spec = release_spec(statistic)
        found = RELEASE.forecast(spec, amounts)
        kinds = len(found) // 3
        assert [each.amount for each in found] == [amount for amount in amounts for _ in range(kinds)]
        for kind in range(kinds):
            widths = [each.within for each in found[kind::kinds]]
            assert widths == sorted(widths, reverse=True)
            assert widths[0] > widths[-1] > 0
        for each in found:
            assert each.cost == RELEASE.cost(changed(spec, rho=str(each.amount)), source(1), OPEN)
            assert each.what
            assert each.what_zh
    with pytest.raises(InputError):
        RELEASE.forecast(release_spec("count"), [Fraction(0)])


def test_a_forecast_of_a_count_is_the_interval_it_will_have():
    spec = release_spec("count", epsilon="1")
    (forecast,) = RELEASE.forecast(spec, [Fraction(1)])
    # P(|X| <= 3) of the discrete Laplace distribution with α = 1/e is 0.973; with 2 it is 0.927.
    assert forecast.within == 3
    assert planned(spec).noises[0].half_width() == 3


# ---------------------------------------------------------------- reading


def test_of_one_person_the_latest_rows_count_and_no_more_than_the_job_says():
    spec = release_spec("histogram", axes=[AXIS], unit_rows=2)
    recent = replace(spec.inputs[0], columns={**spec.inputs[0].columns, "latest": "month"})
    spec = replace(spec, inputs=(recent,))
    rows = [{"unit": "a", "street": STREETS[i], "latest": i} for i in (3, 0, 4, 1)]
    assert tallied(spec, rows).counted().tolist() == [0, 0, 0, 1, 1]
    assert tallied(spec, rows, unit=replace(PERSON, max_rows=1)).counted().tolist() == [0, 0, 0, 0, 1]


def test_an_aggregator_brings_nothing_and_the_registry_knows_the_type():
    with pytest.raises(InputError) as error:
        RELEASE.builder(release_spec("count", 2), AGGREGATOR)
    assert error.value.code == "no-dataset"
    assert job_type("release/1").name == "release/1"


def test_a_column_may_be_an_axis_and_a_filter_and_then_needs_both_uses():
    spec = release_spec("histogram", filters=[{"slot": "age", "low": "18", "high": "59"}])
    RELEASE.check(spec)
    uses = [need.use for need in RELEASE.columns(spec, source(1)) if need.slot == "age"]
    assert sorted(uses) == ["filter", "group"]
    rows = [{"unit": str(age), "street": STREETS[0], "age": age} for age in (17, 18, 59, 60)]
    assert tallied(spec, rows).counted().tolist()[:3] == [0, 2, 0]
