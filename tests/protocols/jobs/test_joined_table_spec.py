"""What a job of type `joined-table/1` may say, what it costs, what is published, and its pinned numbers."""

import hashlib
import json
from collections import defaultdict
from dataclasses import replace
from fractions import Fraction
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from joined_table_case import (
    JOINED,
    MONTHS,
    OVERPAID,
    PAID,
    PERSON,
    REGISTERED,
    RESIDENT,
    S1,
    S2,
    SEATS,
    axis,
    banded,
    cells_of,
    crowd,
    joined_case,
    joined_spec,
    measure,
)

from protocols.dp import exact
from protocols.dp.cost import NOTHING, Cost
from protocols.errors import InputError, ProtocolAborted
from protocols.ids import NodeName, Organisation, Role
from protocols.jobs.job_type import REQUESTER, ExactOrNoisy, Forecaster, source
from protocols.jobs.joined_table import MAX_WIDTH, Params, Total, exact_table, least_room, noisy_table
from protocols.joined.field import NARROW, WIDE
from protocols.joined.params import DEALER, HELPER, MATCHER
from protocols.statistics.differencing import differenced
from protocols.statistics.suppress import dominated
from protocols.wire import Constraints, JobSpec, organisation_of

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "vectors/joined-table.json").read_text("utf-8")
)
LIMITS = Constraints(min_group_size=10)
BUREAU = Organisation("bureau.example")


def refused(spec: JobSpec) -> InputError:
    with pytest.raises(InputError) as error:
        JOINED.check(spec)
    assert error.value.hint
    return error.value


# -- vectors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", VECTORS["bad_params"], ids=lambda vector: str(vector["params"]))
def test_bad_params_are_refused_with_their_code(vector):
    spec = joined_spec(vector["sources"], dealer=vector["dealer"], **vector["params"])
    assert refused(spec).code == vector["code"]


@pytest.mark.parametrize("vector", VECTORS["runs"], ids=lambda vector: vector["name"])
def test_a_seeded_run_sends_and_releases_what_the_vectors_say(vector, monkeypatch):
    monkeypatch.setattr(exact, "SMALL", 0)  # noise comes from `rand` alone
    lists = [crowd(range(first, last), **values) for first, last, values in vector["lists"]]
    case = joined_case(joined_spec(len(lists), **vector["params"]), lists, constraints=LIMITS, seed="vector")
    table = case.released().table.columns
    bodies: dict[str, Any] = defaultdict(hashlib.sha256)
    for m in case.sent:
        bodies[f"{m.sender}>{m.to}/{m.round:#06x}"].update(m.body)
    assert {name: digest.hexdigest()[:16] for name, digest in bodies.items()} == vector["bodies"]
    numbers = np.array([table[name] for name in ("value", "low", "high") if name in table]).T
    assert np.where(np.isnan(numbers), -1, numbers).tolist() == vector["released"]


@pytest.mark.parametrize("vector", VECTORS["exact"], ids=lambda vector: vector["name"])
def test_cells_are_withheld_and_rounded_as_the_vectors_say(vector):
    params = Params.of(joined_spec(**vector["params"]))
    made = exact_table(params, LIMITS, [np.array(each) for each in vector["cells"]])
    values = made.table.columns["value"]
    assert np.where(made.table.columns["withheld"], -1, values).tolist() == vector["released"]


# -- forms and seats -----------------------------------------------------------------------------------------


def test_a_dealer_sits_where_words_of_two_sources_are_multiplied_and_only_there():
    for spec in (joined_spec(axes=[REGISTERED, RESIDENT]), joined_spec(measures=[OVERPAID, MONTHS])):
        assert DEALER in spec.roles
        JOINED.check(spec)
        assert (
            refused(replace(spec, roles={r: n for r, n in spec.roles.items() if r != DEALER})).code
            == "bad-roles"
        )
    for params in ({"axes": [REGISTERED]}, {"axes": [{**RESIDENT, "open": "yes"}], "measures": [PAID]}):
        JOINED.check(joined_spec(**params))
        assert refused(joined_spec(dealer=True, **params)).code == "bad-roles"


def test_counts_take_narrow_words_and_amounts_wide_ones():
    assert Params.of(joined_spec(axes=[REGISTERED, RESIDENT])).field is NARROW
    assert Params.of(joined_spec(axes=[REGISTERED], measures=[PAID])).field is WIDE
    assert Params.of(joined_spec(axes=[REGISTERED, RESIDENT])).widths == (3, 3)
    assert Params.of(joined_spec(axes=[REGISTERED, RESIDENT], measures=[PAID])).widths == (6, 3)
    assert Params.of(joined_spec(3, axes=[{**RESIDENT, "open": "yes"}])).widths == (1, 0, 0)


def test_a_city_by_a_city_fits_and_wider_rows_do_not():
    streets = [str(n) for n in range(176)]
    for params in ({}, {"rho": "0.1"}):
        JOINED.check(joined_spec(axes=[axis(1, "a", streets), axis(2, "b", streets)], **params))
    wide = [str(n) for n in range(MAX_WIDTH // 2 + 1)]
    assert refused(joined_spec(axes=[axis(1, "a", wide)], measures=[PAID])).code == "too-many-words"
    JOINED.check(joined_spec(axes=[axis(1, "a", wide[:-1])], measures=[PAID]))


def test_open_axes_may_have_so_many_groups_as_a_table_has_rows():
    streets = [axis(n, f"a{n}", [str(i) for i in range(1000)], open=True) for n in (1, 2)]
    JOINED.check(joined_spec(axes=streets, margins="no"))
    assert refused(joined_spec(axes=streets)).code == "too-many-cells"
    JOINED.check(joined_spec(axes=streets, rho="0.1"))


def test_a_job_has_no_recipients_and_each_department_one_list():
    spec = joined_spec(axes=[REGISTERED])
    assert refused(replace(spec, recipients=(Organisation("x.example"),))).code == "bad-recipients"
    twice = {**spec.roles, S2: NodeName("department-1.example/b")}
    assert refused(replace(spec, roles=twice)).code == "one-list-each"


FORMS = [
    joined_spec(axes=[REGISTERED, RESIDENT]),
    joined_spec(3, axes=[{**RESIDENT, "open": "yes"}], measures=[PAID], rho="0.1"),
    joined_spec(2, measures=[OVERPAID, MONTHS], rho="0.1"),
]


def apart(spec: JobSpec, requester: Organisation = BUREAU) -> bool:
    return not any(pair.these & pair.those for pair in JOINED.separation(spec, requester))


@pytest.mark.parametrize("spec", FORMS, ids=["exact", "open", "product"])
def test_no_two_seats_that_would_learn_more_together_are_of_one_organisation(spec):
    """Every pair of seats, and the requester: only a source may be the requester's."""
    assert apart(spec)
    seats = list(spec.roles)
    for one, other in combinations(seats, 2):
        shared = NodeName(f"{organisation_of(spec.roles[one])}/other")
        one_house = replace(spec, roles={**spec.roles, other: shared})
        if {one, other} & set(SEATS):
            assert not apart(one_house), (one, other)
        else:
            assert refused(one_house).code == "one-list-each"
    for role in seats:
        assert apart(spec, organisation_of(spec.roles[role])) == (role not in SEATS), role
        recipient = replace(spec, recipients=(organisation_of(spec.roles[role]),))
        assert apart(recipient) == (role not in SEATS), role


# -- columns and queries -------------------------------------------------------------------------------------


def test_an_open_axis_needs_a_column_that_its_policy_opens_to_the_matcher():
    spec = joined_spec(axes=[{**REGISTERED, "open": "yes"}, {**RESIDENT}])
    uses = {(need.slot, need.use) for role in (S1, S2) for need in JOINED.columns(spec, role)}
    assert {("registered", "group"), ("registered", "open-to-matcher"), ("resident", "group")} <= uses
    assert ("resident", "open-to-matcher") not in uses
    assert JOINED.columns(spec, MATCHER) == ()


def test_a_product_needs_both_columns_to_be_summed_and_nothing_else():
    spec = joined_spec(measures=[OVERPAID, MONTHS])
    for role, slot in ((S1, "paid"), (S2, "months")):
        needs = [(need.slot, need.use) for need in JOINED.columns(spec, role)]
        assert needs == [("key", "join"), (slot, "sum"), ("latest", "filter")]


def test_exact_questions_are_about_the_same_persons_or_about_others_and_noisy_ones_are_never_compared():
    spec = joined_spec(axes=[REGISTERED, RESIDENT])
    query = JOINED.query(spec, S1)
    assert query is not None
    assert not query.noisy
    assert not query.amounts
    wider = {**RESIDENT, "values": [*RESIDENT["values"], "s4"]}
    for params in (
        {"axes": [REGISTERED, wider]},
        {"axes": [REGISTERED, RESIDENT], "margins": "no"},
        {"axes": [REGISTERED, RESIDENT], "measures": [PAID]},
        {"axes": [REGISTERED, RESIDENT], "filters": [{"source": "source-2", "slot": "age", "low": "18"}]},
    ):
        asked = JOINED.query(joined_spec(**params), S1)
        assert differenced(asked, query), params
    assert JOINED.query(joined_spec(axes=[REGISTERED, RESIDENT], measures=[PAID]), S2).amounts
    noisy = JOINED.query(joined_spec(axes=[REGISTERED, RESIDENT], measures=[PAID], rho="0.1"), S1)
    assert noisy.noisy
    assert not noisy.amounts
    assert not differenced(noisy, query)


def test_filters_that_exclude_each_other_may_leave_a_person_in_both_tables():
    # A person may have a row that one of them keeps, and another row that the other one keeps.
    young, old = (
        JOINED.query(
            joined_spec(axes=[RESIDENT], filters=[{"source": "source-1", "slot": "age", **ends}]), S1
        )
        for ends in ({"high": "17"}, {"low": "18"})
    )
    assert differenced(young, old)


def test_what_is_asked_of_a_measure_makes_it_another_question():
    base = joined_spec(measures=[OVERPAID, MONTHS])
    apart = joined_spec(measures=[{**PAID, "of": ["sum"]}, {**MONTHS, "of": ["sum"]}])
    mean = joined_spec(measures=[{**OVERPAID, "of": ["mean"]}, MONTHS])
    queries = [JOINED.query(spec, S1) for spec in (base, apart, mean)]
    assert all(differenced(one, other) for one, other in combinations(queries, 2))


# -- cost and forecast ---------------------------------------------------------------------------------------


def test_every_list_pays_for_noise_and_an_exact_table_is_one_question():
    for params, cost in (
        ({}, Cost(queries=1)),
        ({"rho": "0.1"}, Cost.zcdp(Fraction(1, 10)) + Cost(queries=1)),
        ({"epsilon": "0.5"}, Cost.pure_dp(Fraction(1, 2)) + Cost(queries=1)),
    ):
        spec = joined_spec(axes=[REGISTERED, RESIDENT], **params)
        assert [JOINED.cost(spec, role, LIMITS) for role in (S1, S2)] == [cost, cost]
        assert {JOINED.cost(spec, role, LIMITS) for role in SEATS} == {NOTHING}
        assert JOINED.exact(spec) == (not params)
    assert isinstance(JOINED, ExactOrNoisy)


def test_the_parts_of_the_noise_cost_no_more_than_the_whole():
    """σ² = M²/2ρ_i of each vector: the ρ_i add up to ρ, whatever is asked."""
    for measures in ([], [PAID], [{**PAID, "of": ["sum"]}], [OVERPAID, {**MONTHS, "of": ["sum", "mean"]}]):
        spec = joined_spec(axes=[REGISTERED, RESIDENT], measures=measures or None, rho="0.3")
        params = Params.of(spec)
        parts = [
            Fraction(total.most**2) / (2 * noise.spread)
            for total, noise in zip(params.totals, params.noises, strict=True)
        ]
        assert Fraction(3, 10) * (1 - Fraction(1, 10**9)) < sum(parts) <= Fraction(3, 10)


def test_a_mean_alone_is_of_amounts_around_the_middle_of_their_bounds():
    alone = Params.of(joined_spec(measures=[measure(1, "paid", "10", "100", of=["mean"])], rho="0.1"))
    assert (alone.totals[1].centre, alone.totals[1].most) == (55, 45)
    both = Params.of(joined_spec(measures=[measure(1, "paid", "10", "100", of=["sum", "mean"])], rho="0.1"))
    assert (both.totals[1].centre, both.totals[1].most) == (0, 100)
    exact_one = Params.of(joined_spec(measures=[measure(1, "paid", "10", "100", of=["mean"])]))
    assert exact_one.totals[1].centre == 0


def test_a_forecast_says_what_each_amount_buys():
    assert isinstance(JOINED, Forecaster)
    spec = joined_spec(axes=[REGISTERED, RESIDENT], measures=[PAID], rho="0.1")
    few, many = Fraction(1, 10), Fraction(2)
    found = JOINED.forecast(spec, [few, many])
    assert [each.what for each in found] == ["each count", "each sum of paid"] * 2
    assert found[0].within > found[2].within
    assert found[0].cost == JOINED.cost(spec, S1, LIMITS)
    case = joined_case(spec, [crowd(range(9), registered=["s1"], paid=[1]), crowd(range(9), resident=["s1"])])
    assert f"±{found[0].within:g} with 95 %" in str(case.released().facts["within"])
    assert refused_forecast(joined_spec(axes=[REGISTERED])) == "bad-privacy"


def refused_forecast(spec: JobSpec) -> str:
    with pytest.raises(InputError) as error:
        JOINED.forecast(spec, [Fraction(1)])
    return error.value.code


# -- guards --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        (Constraints(min_organisations=3), "guard-organisations"),
        (Constraints(min_sources=3), "guard-sources"),
        (Constraints(min_sources=2, min_organisations=2), None),
    ],
)
def test_rules_that_ask_for_more_departments_are_kept(limits, code):
    lists = [crowd(range(9), registered=["s1"])] * 2
    if code is None:
        joined_case(joined_spec(axes=[REGISTERED]), lists, constraints=limits)
        return
    with pytest.raises(ProtocolAborted) as error:
        joined_case(joined_spec(axes=[REGISTERED]), lists, constraints=limits)
    assert error.value.code == code


def test_sizes_that_no_list_has_and_lists_by_other_rules_are_refused():
    case = joined_case(joined_spec(axes=[REGISTERED]), [crowd(range(9), registered=["s1"])] * 2)
    for change, code in (
        ({"distinct_keys": 1000}, "guard-sizes"),
        ({"rule_version": "other"}, "guard-rules"),
    ):
        inputs = {**case.setup.inputs, S2: replace(case.setup.inputs[S2], **change)}
        with pytest.raises(ProtocolAborted) as error:
            JOINED.check_inputs(case.spec, inputs, LIMITS)
        assert error.value.code == code
    with pytest.raises(ProtocolAborted) as error:
        JOINED.check_inputs(case.spec, {S1: case.setup.inputs[S1]}, LIMITS)
    assert error.value.code == "guard-inputs"


@pytest.mark.parametrize("joined", [0, 1, 9])
def test_too_few_joined_persons_end_an_exact_table_before_anything_goes_to_the_helper(joined):
    lists = [crowd(range(40), registered=["s1"]), crowd(range(40 - joined, 80 - joined))]
    case = joined_case(joined_spec(axes=[REGISTERED]), lists, constraints=LIMITS)
    with pytest.raises(ProtocolAborted) as error:
        case.released()
    assert error.value.code == "guard-few-joined"
    assert not [each for each in case.sent if (each.sender, each.to) == (MATCHER, HELPER)]
    noisy = joined_case(joined_spec(axes=[REGISTERED], rho="1"), lists, constraints=LIMITS)
    assert noisy.released().table.rows == 3


def test_the_list_of_another_job_is_no_list_of_this_one():
    case = joined_case(joined_spec(axes=[REGISTERED]), [crowd(range(9), registered=["s1"])] * 2)
    other = joined_case(joined_spec(measures=[PAID]), [crowd(range(9), paid=[1])] * 2)
    for wrong in (None, other.lists[S1], case.lists[S2]):
        with pytest.raises(TypeError):
            JOINED.party(S1, case.setup, wrong, bytes)
    with pytest.raises(InputError):
        JOINED.builder(case.spec, MATCHER, PERSON)


# -- what is published ---------------------------------------------------------------------------------------


@st.composite
def boxes(draw: Any) -> tuple[list[tuple[int, int]], list[list[int]]]:
    """Bounds of one to three columns, and amounts of some persons: anywhere between, many at an end."""
    bounds = [
        (low, low + apart)
        for low, apart in draw(
            st.lists(st.tuples(st.integers(0, 40), st.integers(1, 60)), min_size=1, max_size=3)
        )
    ]
    amount = [st.one_of(st.sampled_from(ends), st.integers(*ends)) for ends in bounds]
    return bounds, [list(each) for each in draw(st.lists(st.tuples(*amount), min_size=1, max_size=40))]


@settings(max_examples=300)
@given(boxes(), st.data())
def test_in_no_combination_of_published_sums_one_person_stands_out(box: Any, data: Any):
    """Lemma 6.2: non-negative for all amounts within the bounds, it is a sum over faces of the box."""
    bounds, people = box
    n = len(people)
    for at, (low, high) in enumerate(bounds):
        total = Total("x", low, high)
        here = sum(person[at] for person in people)
        if min(here - low * n, high * n - here) < least_room(total, 1):
            return
    weight = st.integers(0, 5)
    weights = data.draw(st.tuples(weight, *(st.tuples(weight, weight) for _ in bounds)))
    parts = [
        weights[0]
        + sum(
            below * (amount - low) + above * (high - amount)
            for amount, (low, high), (below, above) in zip(person, bounds, weights[1:], strict=True)
        )
        for person in people
    ]
    assert not dominated(parts)


@pytest.mark.parametrize("low", [0, 9000])
@pytest.mark.parametrize("apart", [2, 7, 100, 10**15])
def test_one_less_than_the_least_room_may_be_dominated(low: int, apart: int):
    least = least_room(Total("x", low, low + apart), 10)
    assert Fraction(16, 7) * apart <= least < Fraction(16, 7) * apart + 1
    assert dominated([apart, (least - 1 - apart) // 2, (least - apart) // 2])


def test_of_a_flag_that_few_have_or_few_lack_no_number_is_told():
    """Persons are known to 5 at best otherwise; a sum would tell one of twelve."""
    flag = joined_spec(axes=[REGISTERED], measures=[measure(1, "flag", "0", "1", of=["sum"])], margins="no")
    for ones, shown in (([0, 1, 9], 0), ([10, 20, 30], 3), ([31, 39, 40], 0), ([3, 25, 37], 1)):
        cells = [np.array([40, 40, 40]), np.array(ones)]
        made = cells_of(exact_table(Params.of(flag), LIMITS, cells))
        assert sum(measured == "sum(flag)" for _, measured in made) == shown, ones
    assert least_room(Total("x", 7, 8), 10) == least_room(Total("x", 0, 1), 10) == 10
    assert least_room(Total("x", 0, 1), 2) == 3


def test_what_one_person_adds_above_a_low_bound_or_lacks_below_a_high_one_is_not_told():
    """Thirty of whom 29 are at an end: the sum would be exactly what the thirtieth is away from it."""
    spec = joined_spec(measures=[measure(1, "pay", "9000", "100000", of=["sum"])])
    for sums in (30 * 9000 + 47_310, 30 * 100_000 - 47_310):
        made = exact_table(Params.of(spec), LIMITS, [np.array(30), np.array(sums)])
        assert cells_of(made) == {}
    made = exact_table(Params.of(spec), LIMITS, [np.array(30), np.array(30 * 9000 + 208_000)])
    assert cells_of(made) == {("persons",): 30, ("sum(pay)",): 478_000}


@pytest.mark.parametrize("end", [100, 1000])
def test_a_withheld_cell_is_not_hidden_by_one_that_has_nothing_to_give(end: int):
    """Thirty of whom few are away from an end, and nine who all are at it: only a third cell hides the first.

    Both sums are withheld, theirs together is known, and of nine persons between the bounds it is clear that
    theirs cannot be nearer to the end.
    """
    spec = joined_spec(axes=[REGISTERED], measures=[measure(1, "pay", "100", "1000", of=["sum"])])
    counts, away = np.array([30, 9, 60]), 2000 if end == 100 else -2000
    sums = np.array([30 * end + away, 9 * end, 60 * 500])
    for asked, hidden in ((sums, 3), (sums + np.array([0, away // 9, 0]), 2)):
        made = exact_table(Params.of(spec), LIMITS, [counts, asked])
        dark = made.table.columns["withheld"].reshape(2, 4)
        assert dark.tolist() == [[True, True, hidden == 3, False]] * 2


@pytest.mark.parametrize(
    ("measures", "columns"),
    [
        ([measure(1, "a", "0", "9000"), measure(1, "b", "0", "9001")], {"a": "pay", "b": "pay"}),
        (
            [measure(1, "a", "0", "9000", times="m"), measure(1, "b"), measure(2, "m")],
            {"a": "pay", "b": "pay"},
        ),
    ],
)
def test_one_column_is_not_summed_twice(measures: Any, columns: dict[str, str]):
    """Within 9,000 and 9,001, the difference of two sums is how many have more: of twelve, one."""
    spec = mapped(joined_spec(measures=measures), columns)
    assert refused(spec).code == "measured-twice"
    JOINED.check(mapped(joined_spec(measures=measures, rho="0.1"), columns))
    JOINED.check(mapped(joined_spec(measures=measures[:1] + measures[2:]), columns))


@pytest.mark.parametrize(
    "more",
    [
        {"axes": [banded(1, "by", ["0", "9000"])]},
        {"axes": [banded(1, "by", ["0", "9000"], open=True)]},
        {"filters": [{"source": "source-1", "slot": "by", "low": "9000"}]},
        {"filters": [{"source": "source-1", "slot": "pay", "low": "9000"}]},
    ],
)
def test_a_column_is_not_summed_exactly_over_those_who_have_so_much_of_it(more: Any):
    """Bins and filters are bounds that the analyst chooses: a sum less n times 9,000 may be one person's."""
    asked = {"measures": [measure(1, "pay", "0", "100000")], **more}
    spec = mapped(joined_spec(**asked), {"by": "the_pay"})
    assert refused(spec).code == "measured-twice"
    JOINED.check(mapped(joined_spec(**asked, rho="0.1"), {"by": "the_pay"}))
    if "by" in spec.input_of(S1).columns:
        JOINED.check(joined_spec(**asked))


def test_an_exact_product_is_not_told_beside_a_sum_of_what_is_multiplied():
    """Of a column between 1 and 2, both tell exactly what those add who have 2."""
    for times in (
        [measure(1, "a", "1", "2", times="pay"), measure(2, "pay", of=["sum"])],
        [measure(1, "a", "1", "2", times="pay"), measure(1, "b", times="pay"), measure(2, "pay")],
    ):
        assert refused(joined_spec(measures=times)).code == "measured-twice"
        JOINED.check(joined_spec(measures=times, rho="0.1"))


def test_an_exact_sum_takes_bounds_of_the_policys_and_none_of_its_own():
    measures = [measure(1, "paid", "0", "9000", of=["sum", "mean"])]
    until = {"source": "source-1", "slot": "paid", "low": "119", "high": "120", "until": "2025-12"}
    for stated, params in ((True, {}), (False, {"rho": "0.1"})):
        for asked in (measures, [until]):
            needs = JOINED.columns(joined_spec(measures=asked, **params), S1)
            domains = [need.domain for need in needs if need.slot == "paid"]
            assert [domain is not None and domain.stated for domain in domains] == [stated] * len(domains)


def mapped(spec: JobSpec, columns: dict[str, str]) -> JobSpec:
    """Return the job with other columns behind some slots of the first source."""
    inputs = tuple(
        replace(given, columns={**given.columns, **{s: c for s, c in columns.items() if s in given.columns}})
        if given.role == S1
        else given
        for given in spec.inputs
    )
    return replace(spec, inputs=inputs)


def test_a_mean_that_no_64_bits_hold_is_refused():
    large = str((1 << 51) // 10)
    measures = [measure(1, "a", "0", large, of=["mean"], times="b"), measure(2, "b", "0", "1000")]
    assert refused(joined_spec(measures=measures)).code == "overflow"
    JOINED.check(joined_spec(measures=[{**measures[0], "of": ["sum"]}, measures[1]]))


def test_no_job_begins_that_would_take_more_memory_than_a_node_has():
    spec = joined_spec(axes=[axis(1, "a", [str(n) for n in range(2000)])], measures=[PAID], margins="no")
    large = replace(joined_case(spec, [crowd(range(9), a=["1"], paid=[1]), crowd(range(9))]).setup.inputs[S1])
    for keys, refused_ in ((1 << 10, False), (1 << 22, True)):
        inputs = {role: replace(large, rows=keys, distinct_keys=keys) for role in (S1, S2)}
        if not refused_:
            JOINED.check_inputs(spec, inputs, Constraints())
            continue
        with pytest.raises(ProtocolAborted) as error:
            JOINED.check_inputs(spec, inputs, Constraints())
        assert error.value.code == "guard-too-large"


def test_the_strictest_participants_minimum_holds():
    params = Params.of(joined_spec(axes=[REGISTERED], margins="no"))
    cells = [np.array([30, 19, 9])]
    for limits, shown in (
        (Constraints(), 2),
        (Constraints(min_group_size=20), 1),
        (Constraints(min_group_size=5), 3),
    ):
        assert len(cells_of(exact_table(params, limits, cells))) == shown


def test_noisy_cells_below_the_minimum_are_withheld_in_every_figure():
    params = Params.of(joined_spec(axes=[REGISTERED], measures=[PAID], rho="0.1"))
    made = noisy_table(params, LIMITS, [np.array([30, 9, -4]), np.array([9000, 9000, 10])])
    dark = made.table.columns["withheld"].reshape(3, 3)
    assert dark.tolist() == [[False, True, True]] * 3
    assert made.facts["withheld_cells"] == 2
    assert made.facts["noise_shares"] == 2


# -- words ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", FORMS, ids=["exact", "open", "product"])
def test_every_seat_and_every_coalition_of_the_document_is_spoken_of(spec):
    learns = JOINED.learns(spec)
    keys = {members: {each.key for each in said} for members, said in learns.items()}
    owners = [role for role in spec.roles if role not in SEATS]
    assert keys[frozenset({MATCHER, HELPER})] == {"payloads"}
    for owner in owners:
        assert keys[frozenset({owner})] == {"list-sizes"}
        assert keys[frozenset({MATCHER, owner})] == {"own-rows-elsewhere"}
        assert keys[frozenset({HELPER, owner})] == {"own-rows-joined"}
        assert keys[frozenset({MATCHER, HELPER, owner})] == {"joined-records"}
    product = DEALER in spec.roles
    assert (frozenset({MATCHER, DEALER}) in keys) == (frozenset({HELPER, DEALER}) in keys) == product
    noisy = not JOINED.exact(spec)
    assert ("helpers-noise" in keys[frozenset({MATCHER})]) == noisy
    assert (frozenset({Role(REQUESTER), HELPER}) in keys) == noisy


def test_what_is_seen_of_open_groups_is_said_by_name():
    spec = joined_spec(3, axes=[{**RESIDENT, "open": "yes"}, REGISTERED], rho="0.1")
    learns = JOINED.learns(spec)
    (seen,) = [each for each in learns[frozenset({MATCHER})] if each.key == "open-groups"]
    (sizes,) = [each for each in learns[frozenset({HELPER})] if each.key == "group-sizes"]
    for said in (seen, sizes):
        assert "resident" in said.en
        assert "resident" in said.zh
        assert "registered" not in said.en
    assert "resident" in learns[frozenset({MATCHER, S1})][0].en
    assert "resident" not in learns[frozenset({MATCHER, S2})][0].en
    assert "resident" in learns[frozenset({HELPER, source(3)})][0].zh
    hidden = JOINED.learns(joined_spec(axes=[REGISTERED]))
    assert "open-groups" not in {each.key for each in hidden[frozenset({MATCHER})]}


def test_statements_name_the_loss_in_both_languages():
    for budget, text in (({"rho": "0.2"}, "ρ = 0.2"), ({"epsilon": "1.5"}, "ε = 1.5")):
        (said,) = JOINED.learns(joined_spec(axes=[REGISTERED], **budget))[frozenset({Role(REQUESTER)})]
        assert text in said.en
        assert text in said.zh
