"""What a table job says of itself, and everything that is refused before data is looked at."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from crosscheck_case import CTX, ZERO, seeded
from table_case import (
    AGE,
    CROSS_TABLE,
    DISTRICT,
    INCOME,
    PERSON,
    case_of,
    table_case,
    table_spec,
    tallied,
)

from protocols.dp.cost import NOTHING, Cost
from protocols.errors import InputError, ProtocolAborted
from protocols.ids import DatasetName, NodeName, Organisation, Role
from protocols.jobs import JOB_TYPES, job_type
from protocols.jobs.job_type import (
    AGGREGATOR,
    REQUESTER,
    UNIT,
    CountsAcross,
    Domain,
    OutputClass,
    Setup,
    Unit,
    source,
)
from protocols.jobs.table import Params
from protocols.party import Incoming
from protocols.statistics.cross_table import MAX_PROTECTED
from protocols.statistics.differencing import MAX_QUERY_BYTES, Query, differenced, disjoint
from protocols.tables.layout import MAX_ROWS
from protocols.wire import MAX_JOB_BYTES, Constraints, InputSummary, JobSpec, organisation_of

BUREAU = Organisation("bureau.example")
SEAT = "bureau.example/a"


def refused(spec) -> InputError:
    with pytest.raises(InputError) as error:
        CROSS_TABLE.check(spec)
    assert error.value.hint
    return error.value


def test_table_is_registered():
    assert job_type("table/1").name == "table/1"
    assert [known.name for known in JOB_TYPES].count("table/1") == 1


# params and roles


def test_a_table_takes_one_department_or_three_and_more():
    for sources in (1, 3, 4, 50):
        CROSS_TABLE.check(table_spec(sources))
    assert refused(table_spec(2)).code == "too-few-organisations"
    assert refused(table_spec(51)).code == "bad-roles"
    assert refused(replace(table_spec(3), roles={})).code == "bad-roles"
    roles = dict(table_spec(3).roles)
    del roles[AGGREGATOR]
    assert refused(replace(table_spec(3), roles=roles)).code == "bad-roles"


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"key_holder": "aggregator"}, "bad-params"),
        ({"key_holder": "source-4"}, "bad-params"),
        ({"key_holder": None}, "bad-params"),
        ({"mode": "plain"}, "bad-params"),
        ({"persons_in": 0}, "bad-params"),
        ({"persons_in": 4}, "bad-params"),
        ({"unit_rows": 0}, "bad-params"),
        ({"areas": "atlantis"}, "bad-params"),
        ({"margins": True}, "bad-params"),
        ({"axes": None}, "bad-params"),
        ({"axes": []}, "bad-params"),
        ({"axes": [DISTRICT] * 2}, "bad-params"),
        ({"axes": [DISTRICT, AGE, *({"slot": s, "values": ["x"]} for s in "abc")]}, "bad-params"),
        ({"measures": [{**INCOME, "bounds": ["-1", "5"]}]}, "below-zero"),
        ({"measures": [{**INCOME, "bounds": ["5", "1"]}]}, "bad-params"),
        ({"measures": [{**INCOME, "bounds": ["0", "NaN"]}]}, "bad-params"),
        ({"measures": [{**INCOME, "of": ["median"]}]}, "bad-params"),
        ({"measures": [INCOME] * 2}, "bad-params"),
        ({"measures": [{**INCOME, "bounds": ["0", "10000000000"]}]}, "sum-too-large"),
        ({"rho": "0.1"}, "unknown-param"),
        ({"axes": [{"slot": "a", "values": [str(n) for n in range(MAX_PROTECTED + 1)]}]}, "too-many-cells"),
    ],
    ids=str,
)
def test_params_that_cannot_be_meant_are_refused(params, code):
    assert refused(table_spec(3, **params)).code == code


def test_a_table_that_is_too_large_for_ciphertexts_may_be_masked():
    axes = [{"slot": s, "values": [str(n) for n in range(size)]} for s, size in (("a", 1000), ("b", 500))]
    large = {"axes": axes, "margins": "no", "measures": [INCOME]}
    assert refused(table_spec(3, **large)).code == "too-many-words"
    CROSS_TABLE.check(table_spec(3, **large, mode="mask"))
    CROSS_TABLE.check(table_spec(1, **large))
    # Whatever the mode, a table has so many rows at most.
    larger = {**large, "measures": [{**INCOME, "of": ["sum", "mean"]}]}
    for spec in (table_spec(3, **larger, mode="mask"), table_spec(1, **larger)):
        assert refused(spec).code == "too-many-cells"
    # The bound is the job's own, so it says nothing about data.
    few = Params.of(table_spec(3, measures=[INCOME]))
    assert few.bound == 3 * MAX_ROWS * 50_000
    assert few.sums(CTX).parameters.limbs == 2
    assert Params.of(table_spec(3)).sums(CTX).parameters.limbs == 1


def test_one_department_has_no_key_holder_and_no_mode():
    spec = table_spec(1)
    for more in ({"key_holder": "source-1"}, {"mode": "bfv"}):
        assert refused(replace(spec, params={**spec.params, **more})).code == "unknown-param"


# covers


def cover(number: int, *values: str, slot: str = "district") -> dict[str, object]:
    return {"role": source(number), "slot": slot, "values": list(values)}


def test_every_cell_is_added_up_from_three_organisations_or_more():
    CROSS_TABLE.check(table_spec(4, covers=[cover(1, "east")]))
    assert refused(table_spec(3, covers=[cover(1, "east")])).code == "too-few-organisations"
    both = [cover(1, "east"), cover(2, "east")]
    assert refused(table_spec(4, covers=both)).code == "too-few-organisations"
    CROSS_TABLE.check(table_spec(5, covers=both))
    # One that covers nothing of a cell through two axes at once counts once.
    axes = [DISTRICT, {"slot": "sex", "values": ["1", "2"]}]
    crossed = [cover(1, "east"), cover(1, "1", slot="sex"), cover(2, "west")]
    CROSS_TABLE.check(table_spec(5, axes=axes, covers=crossed))
    assert refused(table_spec(4, axes=axes, covers=crossed)).code == "too-few-organisations"


@pytest.mark.parametrize(
    "covers",
    [
        [cover(1, "north")],
        [cover(1, "[0, 18)", slot="age")],
        [cover(1, "east", slot="nowhere")],
        [cover(9, "east")],
        [cover(1, "east"), cover(1, "west")],
        [{**cover(1, "east"), "more": 1}],
        [cover(1)],
    ],
)
def test_covers_that_fit_no_axis_are_refused(covers):
    assert refused(table_spec(5, covers=covers)).code in {"bad-params", "unknown-param"}


def test_rows_where_the_job_says_a_source_has_none_do_not_count_and_nobody_hears_of_them():
    # An error would tell the requester whether there is such a row, as often as it asks.
    def person(number, district):
        return {"unit": f"p{number}", "district": district, "age": 5}

    rows = [person(1, "west"), person(2, "east"), person(3, "west"), person(3, "east")]
    spec = table_spec(4, covers=[cover(1, "east")], persons_in=1)
    first, second = (tallied(spec, rows, number=number) for number in (1, 2))
    # The third person's row in the east takes the place of the one that does not count.
    assert first.persons().reshape(2, 3)[:, 0].tolist() == [2, 0]
    assert second.persons().reshape(2, 3)[:, 0].tolist() == [1, 2]
    assert first.quality() == {"outside": 2}
    with_rows, without = (
        table_case([each, [], [], []], covers=[cover(1, "east")], persons_in=1).released()
        for each in (rows, rows[1:2] + rows[3:])
    )
    columns = [list(content.table.columns["value"]) for content in (with_rows, without)]
    assert np.array_equal(*columns, equal_nan=True)
    assert with_rows.facts == without.facts


# inputs, organisations, recipients


def test_inputs_fit_the_roles_and_the_slots():
    spec = table_spec(3, measures=[INCOME])
    first = spec.inputs[0]
    assert refused(replace(spec, inputs=spec.inputs[1:])).code == "bad-inputs"
    assert refused(replace(spec, inputs=())).code == "bad-inputs"
    extra = replace(first, role=AGGREGATOR)
    assert refused(replace(spec, inputs=(*spec.inputs, extra))).code == "bad-inputs"
    for columns in ({}, {"district": "d"}, {**first.columns, "more": "m"}, {**first.columns, UNIT: "u"}):
        assert (
            refused(replace(spec, inputs=(replace(first, columns=columns), *spec.inputs[1:]))).code
            == "bad-inputs"
        )
    dated = replace(first, columns={**first.columns, "latest": "month"})
    CROSS_TABLE.check(replace(spec, inputs=(dated, *spec.inputs[1:])))


def test_two_sources_of_one_organisation_are_refused():
    spec = table_spec(3)
    roles = {**spec.roles, source(2): NodeName("department-1.example/b")}
    assert refused(replace(spec, roles=roles)).code == "one-source-each"
    reserved = {**spec.roles, source(2): NodeName(f"{REQUESTER}/a")}
    assert refused(replace(spec, roles=reserved)).code == "reserved-name"


def test_the_table_goes_to_the_requester_and_to_nobody_else():
    spec = table_spec(3, key_holder=2)
    assert refused(replace(spec, recipients=(BUREAU,))).code == "bad-recipients"
    (release,) = CROSS_TABLE.releases(spec)
    assert (release.name, release.output_class) == ("table", OutputClass.AGGREGATE)
    assert (release.made_by, release.recipient) == (source(2), REQUESTER)
    assert CROSS_TABLE.releases(table_spec(1))[0].made_by == source(1)


def apart(spec, requester=BUREAU) -> bool:
    pairs = CROSS_TABLE.separation(spec, requester)
    assert all(pair.why for pair in pairs)
    return not any(pair.these & pair.those for pair in pairs)


@pytest.mark.parametrize("sources", [1, 3])
def test_the_requesters_organisation_holds_no_seat(sources):
    spec = table_spec(sources)
    assert apart(spec)
    for role in spec.roles:
        # The key-holder above all: it sees what the table withholds.
        assert not apart(replace(spec, roles={**spec.roles, role: NodeName(SEAT)}))


def test_the_aggregator_is_none_of_the_sources_organisations():
    spec = table_spec(3)
    for role in Params.of(spec).owners:
        same = NodeName(f"{organisation_of(spec.roles[role])}/b")
        assert not apart(replace(spec, roles={**spec.roles, AGGREGATOR: same}))


def test_kinds_are_words_of_policies():
    spec = table_spec(3, key_holder=2)
    kinds = {role: CROSS_TABLE.kinds(spec, role) for role in spec.roles}
    assert kinds == {
        source(1): {"source"},
        source(2): {"source", "key-holder"},
        source(3): {"source"},
        AGGREGATOR: {"aggregator"},
    }
    assert CROSS_TABLE.kinds(table_spec(1), source(1)) == {"source"}


def test_a_measures_bounds_have_to_hold_the_policys_range():
    needs = CROSS_TABLE.columns(table_spec(3, measures=[{**INCOME, "of": ["sum", "mean"]}]), source(1))
    assert [(need.slot, need.use) for need in needs] == [
        ("district", "group"),
        ("age", "group"),
        ("income", "sum"),
        ("income", "mean"),
        ("latest", "filter"),
    ]
    assert all(need.domain.covering for need in needs if need.slot == "income")
    assert [need.required for need in needs] == [True] * 4 + [False]


# cost and query


def test_a_table_costs_a_question_and_no_record():
    spec = table_spec(3)
    limits = Constraints(max_rows=5)
    assert CROSS_TABLE.cost(spec, source(1), limits) == Cost(queries=1)
    assert CROSS_TABLE.cost(spec, AGGREGATOR, limits) == NOTHING
    assert CROSS_TABLE.sources_asked(spec) == 1


def query(spec, number: int = 1):
    return CROSS_TABLE.query(spec, source(number))


def test_only_the_same_question_is_the_same():
    spec = table_spec(3, persons_in=1)
    asked = query(spec)
    same = [
        replace(spec, nonce="1" * 32, purpose="P-2"),
        table_spec(3, persons_in=1, mode="mask"),
        table_spec(3, persons_in=1, key_holder=3),
    ]
    assert all(query(other) == asked for other in same)
    first = spec.inputs[0]
    others = [
        table_spec(4, persons_in=1),
        table_spec(3),
        table_spec(3, persons_in=1, margins="no"),
        table_spec(3, persons_in=1, unit_rows=2),
        table_spec(3, persons_in=1, axes=[DISTRICT]),
        table_spec(3, persons_in=1, measures=[INCOME]),
        table_spec(3, persons_in=1, filters=[{"slot": "age", "low": "18"}]),
        table_spec(3, persons_in=1, areas="national"),
        replace(spec, inputs=(replace(first, dataset=DatasetName("other")), *spec.inputs[1:])),
        replace(
            spec,
            inputs=(replace(first, columns={**first.columns, "age": "months"}), *spec.inputs[1:]),
        ),
    ]
    assert all(differenced(query(other), asked) for other in others)
    assert query(spec, 1) == query(spec, 2)
    assert CROSS_TABLE.query(spec, AGGREGATOR) is None


def test_other_covers_are_another_question():
    covers = [cover(1, "east"), cover(2, "west")]
    asked = query(table_spec(5, covers=covers))
    assert query(table_spec(5, covers=covers[::-1])) == asked
    for other in (None, covers[:1], [cover(1, "west"), cover(2, "east")], [covers[0], cover(3, "west")]):
        assert differenced(query(table_spec(5, covers=other)), asked)


def filtered(*slots: str, column: str | None = "age", **kept):
    """A spec with one filter on each of these slots; `column`: the one dataset column that they all are."""
    filters = [{"slot": slot, **(kept.get(slot) or {"low": "18"})} for slot in slots]
    spec = table_spec(3, axes=[DISTRICT], filters=filters, persons_in=1)
    if column is None:
        return spec
    columns = {slot: column if slot in slots else name for slot, name in spec.inputs[0].columns.items()}
    return replace(spec, inputs=tuple(replace(each, columns=columns) for each in spec.inputs))


def test_two_filters_of_one_column_are_refused():
    # A query says once what is kept of a column; the other filter would be in no query at all.
    assert refused(filtered("a", "b")).code == "filters-on-one-column"
    CROSS_TABLE.check(filtered("a", "b", column=None))
    CROSS_TABLE.check(filtered("a"))
    # At one source alone, and an axis of the same column is no filter.
    spec = filtered("a", "b", column=None)
    one = replace(spec.inputs[2], columns={"district": "d", "a": "age", "b": "age"})
    assert refused(replace(spec, inputs=(*spec.inputs[:2], one))).code == "filters-on-one-column"
    same = {"district": "d", "a": "d", "b": "age"}
    CROSS_TABLE.check(replace(spec, inputs=tuple(replace(each, columns=same) for each in spec.inputs)))


def test_a_filter_may_keep_months_of_a_date():
    spec = filtered("a", a={"from": "2025-01", "to": "2025-09"})
    CROSS_TABLE.check(spec)
    (need,) = (need for need in CROSS_TABLE.columns(spec, source(1)) if need.slot == "a")
    assert (need.use, need.types) == ("filter", ("date", "month"))
    assert need.domain == Domain(kept=(Fraction(24300), Fraction(24308)))
    later, open_end = filtered("a", a={"from": "2025-10"}), filtered("a", a={"to": "2025-12"})
    assert not differenced(query(spec), query(later))
    assert differenced(query(spec), query(open_end))
    numbers = filtered("a", a={"low": "24300", "high": "24308"})
    assert query(numbers).asks != query(spec).asks
    for kept in (
        {"from": "2025-10", "to": "2025-09"},
        {"from": "2025-1"},
        {"from": "2025-13"},
        {"to": "1899-12"},
        {"to": "2200-01"},
        {"to": "2025-09-30"},
        {"to": 202509},
        {"to": None},
        {"from": "2025-01", "high": "3"},
        {"from": "2025-01", "values": ["2025-01"]},
    ):
        assert refused(filtered("a", a=kept)).code in {"bad-params", "unknown-param"}


def test_every_filter_is_part_of_what_is_asked():
    asked = query(filtered("a", "b"))
    for other in (filtered("a", "b", a={"low": "19"}), filtered("a", "b", b={"high": "19"}), filtered("b")):
        assert query(other).asks != asked.asks
        assert differenced(query(other), asked)
    # In whatever order they, or their values, are written.
    listed = {"values": ["x", "y"]}, {"values": ["y", "x"]}
    one, other = (
        filtered(*slots, column=None, a=kept) for slots, kept in zip(("ab", "ba"), listed, strict=True)
    )
    assert query(one) == query(other)


def test_exact_amounts_are_told_apart_from_counts():
    assert query(table_spec(3, measures=[INCOME])).amounts
    assert not query(table_spec(3)).amounts


def test_the_job_says_of_how_many_departments_a_person_is_in_how_many():
    assert CROSS_TABLE.persons_in(table_spec(1)) is None
    assert CROSS_TABLE.persons_in(table_spec(4)) == (4, 4)
    assert CROSS_TABLE.persons_in(table_spec(4, persons_in=1)) == (1, 4)
    assert isinstance(CROSS_TABLE, CountsAcross)


def largest(**params):
    """A spec of the most bytes that a job has, for its values."""
    return table_spec(3, **params, margins="no", mode="mask")


@pytest.mark.parametrize("part", ["axis", "filters", "bounds"])
def test_the_largest_job_has_a_query_that_can_be_read_again(part):
    # Quotation marks are two bytes in JSON, and would be four in JSON within JSON.
    def words(count, width):
        return [f"{number:04}".ljust(width, '"') for number in range(count)]

    if part == "axis":
        spec = largest(axes=[{"slot": "district", "values": words(2050, 64)}])
    elif part == "filters":
        filters = [{"slot": f"f{n}", "values": words(245, 64)} for n in range(8)]
        spec = largest(axes=[DISTRICT], filters=filters)
    else:
        # As a quotient of whole numbers the longest decimal takes twice its characters.
        low, high = "-7." + "9" * 36 + "7", "7." + "9" * 37 + "7"
        filters = [{"slot": f"f{n}", "low": low, "high": high} for n in range(8)]
        assert (len(low), len(high)) == (40, 40)
        spec = largest(axes=[DISTRICT], filters=filters)
    columns = {slot: slot.ljust(63, "列") for slot in spec.inputs[0].columns}
    spec = replace(spec, inputs=tuple(replace(each, columns=columns) for each in spec.inputs))
    size = len(spec.encode())
    assert part == "bounds" or MAX_JOB_BYTES - 8192 < size <= MAX_JOB_BYTES
    CROSS_TABLE.check(JobSpec.decode(spec.encode()))
    asked = query(spec)
    text = asked.encode()
    assert Query.decode(text) == asked
    # And so is that of any other: what a query adds to the words of its job has room.
    assert len(text.encode()) <= size + 4096
    assert MAX_JOB_BYTES + 4096 <= MAX_QUERY_BYTES
    assert asked.asks.startswith("sha256:")


def test_questions_about_rows_that_exclude_each_other_do_not_overlap():
    young = table_spec(3, filters=[{"slot": "age", "high": "17"}])
    old = table_spec(3, filters=[{"slot": "age", "low": "18"}])
    east = table_spec(3, axes=[AGE], filters=[{"slot": "district", "values": ["east"]}])
    west = table_spec(3, axes=[AGE], filters=[{"slot": "district", "values": ["west"]}])
    assert disjoint(query(young), query(old))
    assert disjoint(query(east), query(west))
    assert not disjoint(query(young), query(east))
    assert [*query(east).filters] == ["the_district"]  # the dataset's own column


# guards


def summaries(spec, **changes):
    one = InputSummary(10, 10, 10, ZERO, "2026-01-01", ZERO, "rules/1")
    return {role: replace(one, **changes) for role in Params.of(spec).owners}


def guard(spec, inputs, limits=Constraints()) -> str:  # noqa: B008
    with pytest.raises(ProtocolAborted) as error:
        CROSS_TABLE.check_inputs(spec, inputs, limits)
    return error.value.code


def test_guards_that_hold_let_a_table_pass():
    for sources in (1, 3, 5):
        spec = table_spec(sources)
        CROSS_TABLE.check_inputs(spec, summaries(spec), Constraints(min_sources=1, min_group_size=50))


def test_every_source_is_summed_up_and_nobody_else():
    spec = table_spec(3)
    inputs = summaries(spec)
    assert guard(spec, {}) == "guard-inputs"
    assert guard(spec, {role: inputs[role] for role in (source(1), source(2))}) == "guard-inputs"
    assert guard(spec, {**inputs, AGGREGATOR: inputs[source(1)]}) == "guard-inputs"
    other = {**inputs, source(1): replace(inputs[source(1)], rule_version="rules/2")}
    assert guard(spec, other) == "guard-rules"
    assert guard(spec, summaries(spec, rows=MAX_ROWS + 1)) == "guard-rows"


def test_as_many_organisations_stand_behind_every_cell_as_any_participant_asks_for():
    spec = table_spec(4, covers=[cover(1, "east")])
    inputs = summaries(spec)
    CROSS_TABLE.check_inputs(spec, inputs, Constraints(min_organisations=3))
    assert guard(spec, inputs, Constraints(min_organisations=4)) == "guard-organisations"
    assert (
        guard(table_spec(3), summaries(table_spec(3)), Constraints(min_organisations=4))
        == "guard-organisations"
    )
    assert (
        guard(table_spec(1), summaries(table_spec(1)), Constraints(min_organisations=2))
        == "guard-organisations"
    )
    CROSS_TABLE.check_inputs(table_spec(1), summaries(table_spec(1)), Constraints(min_organisations=1))


def test_a_rule_that_lends_persons_known_to_several_sources_lends_none_to_tables():
    spec = table_spec(3)
    assert guard(spec, summaries(spec), Constraints(min_sources=2)) == "guard-sources"


def test_a_guard_that_fails_stops_every_party_before_it_starts():
    spec = table_spec(3)
    tallies = {role: tallied(spec, []) for role in Params.of(spec).owners}
    with pytest.raises(ProtocolAborted):
        case_of(spec, tallies, constraints=Constraints(min_organisations=4))


# builder and party


def test_only_sources_have_a_builder():
    for role in (AGGREGATOR, Role("source-9")):
        with pytest.raises(InputError) as error:
            CROSS_TABLE.builder(table_spec(3), role)
        assert error.value.code == "no-dataset"


@pytest.mark.parametrize(
    ("column", "code"),
    [
        ({"income": pa.array([1.0, float("nan")])}, "bad-measure"),
        ({"income": pa.array([1.0, float("inf")])}, "bad-measure"),
        ({"income": pa.array([1.0, 5000.1])}, "out-of-bounds"),
        ({"income": pa.array([1.0, -0.1])}, "out-of-bounds"),
        ({UNIT: pa.array(["a", None])}, "unit-missing"),
    ],
    ids=["NaN", "infinite", "above", "below", "a null unit"],
)
def test_data_that_a_table_cannot_count_is_refused(column, code):
    batch = {
        "district": pa.array(["east", "west"]),
        "age": pa.array([5, 6]),
        "income": pa.array([1.0, 2.0]),
        UNIT: pa.array(["a", "b"]),
    }
    builder = CROSS_TABLE.builder(table_spec(3, measures=[INCOME]), source(1), PERSON)
    builder.add({**batch, **column})
    with pytest.raises(InputError) as error:
        builder.finish()
    assert error.value.code == code


def test_a_party_takes_nothing_but_the_tally_of_its_own_job():
    spec, other = table_spec(3), table_spec(3, axes=[DISTRICT])
    setup = Setup(spec, 1, CTX, Constraints(), summaries(spec))
    for prepared in (None, tallied(other, [])):
        with pytest.raises(TypeError):
            CROSS_TABLE.party(source(1), setup, prepared, seeded(0))


def test_a_department_alone_hears_from_nobody():
    spec = table_spec(1)
    setup = Setup(spec, 1, CTX, Constraints(), summaries(spec))
    party = CROSS_TABLE.party(source(1), setup, tallied(spec, []), seeded(0))
    assert party.start().outgoing == ()
    with pytest.raises(ProtocolAborted):
        party.receive(Incoming(AGGREGATOR, 1, b"", last=True))


def test_departments_that_read_other_bins_do_not_add_up():
    spec = table_spec(3)
    other = table_spec(3, axes=[DISTRICT, {"slot": "age", "bins": ["0", "16", "60"]}])
    cases = [
        case_of(each, {role: tallied(each, []) for role in Params.of(each).owners}) for each in (spec, other)
    ]
    cases[0].parties[source(3)] = cases[1].parties[source(3)]
    with pytest.raises(ProtocolAborted) as error:
        cases[0].released()
    assert error.value.code == "plans-differ"


def test_rows_of_a_unit_are_bounded_by_the_smaller_of_job_and_policy():
    spec = table_spec(1, axes=[DISTRICT], unit_rows=12)
    builder = CROSS_TABLE.builder(spec, source(1), Unit("code", 2))
    builder.add({"district": pa.array(["east"] * 5), UNIT: pa.array(["a"] * 5)})
    assert builder.finish().counted().tolist() == [2, 0]
    assert np.array_equal(tallied(spec, []).persons(), [0, 0])
