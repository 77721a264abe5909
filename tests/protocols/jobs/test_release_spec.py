"""What a spec of release/1 must be, and what follows from it before any party starts."""

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from crosscheck_case import ZERO, seeded
from hypothesis import event, example, given, settings
from hypothesis import strategies as st
from release_case import (
    ASKS,
    AXIS,
    OPEN,
    PERSON,
    RELEASE,
    STREETS,
    case_of,
    planned,
    release_case,
    release_spec,
    tallied,
)

from protocols.dp.cost import Cost
from protocols.errors import InputError, ProtocolAborted
from protocols.ids import DatasetName, NodeName, Organisation, Role
from protocols.jobs import job_type
from protocols.jobs.job_type import AGGREGATOR, REQUESTER, CountsAcross, Forecaster, OutputClass, source
from protocols.party import Incoming
from protocols.releases.figures import content
from protocols.statistics.differencing import Between, Query, differenced
from protocols.tables.layout import MAX_ROWS
from protocols.tables.tally import Tally
from protocols.wire import MAX_JOB_BYTES, Constraints, InputSummary, JobInput, JobSpec

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
        ({"rho": "0.00000099"}, "below 0.000001"),
        ({"rho": "1/1" + "0" * 37}, "below 0.000001"),
        ({"rho": None, "epsilon": "0.00000099"}, "below 0.000001"),
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
    for params in ({"rho": "16"}, {"rho": "0.000001"}, {"epsilon": "32"}, {"epsilon": "0.000001"}):
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
        ("mean", {"measure": {"slot": "income", "bounds": ["8589934592", "8589934593"]}}, "sum-too-large"),
        ("mean", {"measure": {"slot": "income", "bounds": ["-8589934593", "-8589934592"]}}, "sum-too-large"),
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
    assert refused(with_node(spec, source(2), "department-1.example/b")).code == "one-source-each"
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
        changed(spec, areas="national"),
        changed(spec, filters=[{**kept[0], "values": ["2"]}, kept[1]]),
        changed(spec, measure={"slot": "income", "bounds": ["0", "4000"]}),
    ]
    for other in others:
        asked = RELEASE.query(other, source(2))
        assert asked is not None
        assert asked.asks != query.asks
        assert not differenced(asked, query)


def test_a_mean_far_from_zero_is_possible_as_long_as_its_rows_add_up():
    bounds = ["8589934590", "8589934592"]
    spec = changed(release_spec("mean"), measure={"slot": "income", "bounds": bounds})
    RELEASE.check(spec)
    rows = [{"unit": str(n), "street": STREETS[0], "income": float(bounds[1])} for n in range(50)]
    columns = release_case(spec, [rows]).released().table.columns
    (value,) = columns["value"][(columns["street"] == STREETS[0]) & (columns["measure"] == "mean(income)")]
    assert float(bounds[0]) <= value <= float(bounds[1])


def test_two_filters_of_one_column_are_refused():
    kept = [{"slot": "a", "low": "1"}, {"slot": "b", "high": "2"}]
    spec = release_spec("count", 2, filters=kept)
    RELEASE.check(spec)
    one = replace(spec.inputs[1], columns={"a": "age", "b": "age"})
    assert refused(replace(spec, inputs=(spec.inputs[0], one))).code == "filters-on-one-column"


def test_the_largest_release_has_a_query_that_can_be_read_again():
    values = [f"{n:04}".ljust(64, '"') for n in range(2050)]
    for params in ({"axes": [{"slot": "street", "values": values}]}, {"axes": [AXIS], "filters": values}):
        if "filters" in params:
            params["filters"] = [{"slot": f"f{n}", "values": values[:250]} for n in range(8)]
        spec = release_spec("histogram", **params)
        assert MAX_JOB_BYTES - 8192 < len(spec.encode()) <= MAX_JOB_BYTES
        RELEASE.check(JobSpec.decode(spec.encode()))
        query = RELEASE.query(spec, source(1))
        assert Query.decode(query.encode()) == query


def test_the_job_says_of_how_many_departments_a_person_is_in_how_many():
    assert RELEASE.persons_in(release_spec("count")) is None
    assert RELEASE.persons_in(release_spec("count", 3)) == (3, 3)
    assert RELEASE.persons_in(release_spec("count", 3, persons_in=2)) == (2, 3)
    assert isinstance(RELEASE, CountsAcross)


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
    for amount in (Fraction(0), Fraction(1, 10**7), Fraction(17)):
        with pytest.raises(InputError) as error:
            RELEASE.forecast(release_spec("count"), [amount])
        assert error.value.code == "bad-privacy"


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


# ---------------------------------------------------------------- whatever is accepted ends in a table


def wide(size: int, length: int = 4) -> dict[str, Any]:
    return {"slot": f"axis_{length}_{size}", "values": [str(i).rjust(length, "x") for i in range(size)]}


FAR: dict[str, Any] = {"slot": "income", "bounds": ["4503599627370494", "4503599627370496"]}
LIST = [f"{i:07}" for i in range(900)]


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        # More rows than a table has, though not more cells; labels too long for so many rows.
        (release_spec("sum", axes=[wide(1024), wide(1024, 5)]), "too-many-cells"),
        (release_spec("mean", axes=[wide(1024), wide(513, 5)]), "too-many-cells"),
        (release_spec("histogram", axes=[wide(1024, 64), wide(1024, 63)]), "too-many-cells"),
        # A threshold that no table can tell.
        (release_spec("keys", epsilon="0.000001"), "noise-too-large"),
        (release_spec("keys", epsilon="0.01", unit_rows=1000), "noise-too-large"),
        # Counts beyond what a tree is reckoned with.
        (release_spec("tree", 50, epsilon="0.000001", unit_rows=1000), "noise-too-large"),
        (release_spec("quantile", 50, epsilon="0.000001", unit_rows=1000), "noise-too-large"),
        # Close bounds, so little noise, but amounts whose sum leaves 64 bits before the middle is taken off.
        (release_spec("mean", measure=FAR), "sum-too-large"),
    ],
)
def test_what_could_only_fail_after_it_is_charged_is_refused_before(spec, code):
    assert refused(spec).code == code


AMOUNTS = ("0.000001", "0.00001", "0.001", "0.1", "1", "16", "32")
BOUNDS = (0, 1, -1, 5000, -(1 << 32), (1 << 33) - 1, 1 << 33, 1 << 34, 1 << 45, (1 << 52) - 1, 1 << 52)
EDGES = ("-1000000000000000000000", "-1/3", "0", "0.0000000000000000001", "1/3", "18", "1000000000000000000")


@st.composite
def specs(draw: st.DrawFn) -> JobSpec:
    """Draw a spec of any statistic, often with what is least or most of something."""
    statistic = draw(st.sampled_from(list(ASKS)))
    sources = 1 if statistic == "keys" else draw(st.sampled_from((1, 1, 2, 3, 50)))
    params: dict[str, Any] = {
        draw(st.sampled_from(("rho", "epsilon"))): draw(st.sampled_from(AMOUNTS)),
        "unit_rows": draw(st.sampled_from((1, 2, 1000))),
    }
    if sources > 1:
        params["mode"] = "mask"
        params["persons_in"] = draw(st.sampled_from((1, sources)))
        params["colluding"] = draw(st.sampled_from((0, sources - 2)))
    axes = [[], [wide(1)], [wide(7)], [wide(5), {"slot": "age", "bins": draw(ascending(EDGES, 1))}]]
    match statistic:
        case "histogram":
            params["axes"] = draw(st.sampled_from(axes[1:]))
        case "sum" | "mean":
            low, high = draw(ascending(BOUNDS, 2, 2))
            step = draw(st.integers(0, 6))
            bounds = [str(Fraction(bound, 10**step)) for bound in (low, high)]
            params["axes"] = draw(st.sampled_from(axes)) or None
            params["measure"] = {"slot": "income", "bounds": bounds, "decimals": step}
        case "tree":
            values = draw(st.sampled_from((LIST, LIST[:1], list(STREETS))))
            levels = draw(st.sampled_from(([1], [3, 5], [1, 2, 3, 4, 5, 6])))
            params |= {"axes": [{"slot": "street", "values": values}], "levels": levels}
        case "quantile":
            *bins, end = draw(ascending(EDGES, 3))
            params["measure"] = {"slot": "age", "bins": bins, "end": end}
            params["at"] = draw(st.sampled_from((["0.5"], ["1/1000000000", "999999999/1000000000"])))
        case "keys":
            params["delta"] = draw(st.sampled_from(("0.001", "1/1000000000000000000000000000000")))
    return release_spec(statistic, sources, **params)


def ascending(choices: tuple[Any, ...], least: int, most: int | None = None) -> st.SearchStrategy[list[Any]]:
    ordered = sorted(choices, key=Fraction)
    places = st.sets(st.integers(0, len(ordered) - 1), min_size=least, max_size=most)
    return places.map(lambda found: [ordered[place] for place in sorted(found)])


FILLS = ("nobody", "everybody least", "everybody most", "spread")


def extreme(spec: JobSpec, fill: str) -> Tally:
    """Return a tally of no rows, or of as many as a dataset may have with the same amount each."""
    layout, empty = planned(spec).params.layout, tallied(spec, [])
    names = () if fill == "nobody" or not spec.params.get("delta") else ("a", "b" * 64, "街")
    cells = len(names) if spec.params.get("delta") else layout.cells
    rows = np.zeros(cells, np.int64)
    if fill == "spread":
        rows[:] = MAX_ROWS // cells
    elif fill != "nobody":
        rows[-1] = MAX_ROWS
    added = {
        measure.slot: replace(
            empty._added[measure.slot],
            present=rows,
            total=rows * (measure.low if fill == "everybody least" else measure.high),
        )
        for measure in layout.measures
    }
    return replace(empty, _persons=rows, _counted=rows, _added=added, _keys=names)


@settings(max_examples=120)
@given(spec=specs(), fill=st.sampled_from(FILLS))
@example(release_spec("keys", epsilon="0.00007"), "everybody most")
@example(release_spec("tree", 3, epsilon="0.000001", mode="mask"), "everybody most")
@example(release_spec("mean", measure=FAR), "everybody most")
@example(release_spec("mean", rho="16", measure={"slot": "income", "bounds": ["0", "8589934591"]}), "spread")
def test_whatever_is_accepted_ends_in_a_table_whatever_the_data_are(spec, fill):
    try:
        RELEASE.check(spec)
    except InputError as error:
        code = error.code
    else:
        code = "accepted"
    event(code)
    if code != "accepted":
        assert code in {"noise-too-large", "sum-too-large", "bad-sensitivity", "bad-privacy"}
        return
    made, tally = planned(spec), extreme(spec, fill)
    assert RELEASE.forecast(spec, [made.params.budget.amount])
    if made.params.sources > 3:
        # Fifty parties take long, and each only adds its vector to the others'.
        parts = [made.noisy(tally, seeded(f"{number}")) for number in range(made.params.sources)]
        assert max(int(np.abs(part).max()) for part in parts) * made.params.sources <= made.bound
        released = content(made, sum(parts), 10)
    else:
        released = case_of(spec, {item.role: tally for item in spec.inputs}).released()
    columns = released.table.columns
    shown = ~columns["withheld"]
    assert (columns["low"][shown] <= columns["value"][shown]).all()
    assert (columns["value"][shown] <= columns["high"][shown]).all()
    assert np.isfinite(columns["high"][shown]).all()


def test_the_price_of_unknown_keys_says_from_how_many_persons_on_a_value_is_named():
    spec = release_spec("keys", rho="0.1", delta="1/1000000000")
    low, high = RELEASE.forecast(spec, [Fraction(1, 10), Fraction(1)])
    for forecast in (low, high):
        made = planned(changed(spec, rho=str(forecast.amount)))
        rows = [{"unit": str(i), "job": "nurse"} for i in range(300)]
        facts = (
            case_of(changed(spec, rho=str(forecast.amount)), {source(1): tallied(spec, rows)})
            .released()
            .facts
        )
        assert facts["least_named"] == made.threshold
        assert f"named from {made.threshold} noisy persons on" in forecast.what
        assert f"满 {made.threshold} 人" in forecast.what_zh
        assert forecast.within == made.noises[0].half_width()
    # 1 + the least q with P(noise >= q) <= 1e-9: 6 standard deviations of 2.24, and of 0.71.
    assert (planned(spec).threshold, planned(changed(spec, rho="1")).threshold) == (15, 6)
