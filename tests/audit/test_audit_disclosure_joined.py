"""Tables of joined persons looked at again: the product's own hold, and what was done to them is found."""

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow.csv
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from joined_moments_case import as_lists, moments_case, moments_spec, people
from joined_table_case import MONTHS, OVERPAID, axis, joined_spec, measure
from test_audit_disclosure import found, looked_at, released

from audit.disclosure import NO_FACTS, NO_JOB, Released
from audit.disclosure_joined import examine_joined_moments, examine_joined_table
from audit.findings import Answer
from node.releases import decode_content, encode_content
from protocols.encoding import sha256_digest
from protocols.jobs.job_type import Content
from protocols.jobs.joined_table import Params, exact_table, noisy_table
from protocols.spreadsheet import for_office
from protocols.wire import Constraints, JobSpec

Columns = dict[str, list[Any]]
LIMITS = Constraints(min_group_size=10)
PAID = measure(1, "paid", "0", "500", of=["sum", "mean"])
ALONE = measure(1, "paid", "0", "500", decimals=1, of=["mean"])


def plain(made: Content) -> Columns:
    return {name: column.tolist() for name, column in made.table.columns.items()}


def codes(columns: Columns, spec: JobSpec, facts: Any = None, limits: Constraints = LIMITS) -> set[str]:
    """Facts are looked at where they are given; without, as if there were a CSV file alone."""
    return {problem.code for problem in examine_joined_table(columns, facts, spec, limits)}


def spec_of(shape: tuple[int, ...], **params: Any) -> JobSpec:
    """Axes turn by turn of both sources; none is open, but a third one and further."""
    axes = [
        axis(1 + n % 2, f"axis{n}", [f"v{value}" for value in range(size)]) for n, size in enumerate(shape)
    ]
    return joined_spec(**({"axes": axes} if axes else {}), **params)


def exact(
    counts: Any, each: float = 0.6, limits: Constraints = LIMITS, **params: Any
) -> tuple[JobSpec, Content]:
    """Return the exact table of so many persons, of whom each has this share of the most there may be."""
    spec = spec_of(counts.shape, **params)
    asked = Params.of(spec)
    sums = [
        total.low * counts + np.rint(counts * (total.high - total.low) * each).astype(np.int64)
        for total in asked.totals[1:]
    ]
    return spec, exact_table(asked, limits, [counts, *sums])


def noisy(spec: JobSpec, seed: int, limits: Constraints = LIMITS, least: int = 0) -> Content:
    """Return a table of random totals with random noise, as good as any."""
    params, rand = Params.of(spec), np.random.default_rng(seed)
    cells = [
        rand.integers(least, 400, params.layout.shape) * (each.most if each.of else 1)
        + np.rint(rand.normal(0, each.most * 9, params.layout.shape)).astype(np.int64)
        for each in params.totals
    ]
    return noisy_table(params, limits, cells)


# -- as it was made ------------------------------------------------------------------------------------------

shapes = st.one_of(
    st.just(()),
    st.tuples(st.integers(1, 6)),
    st.tuples(st.integers(1, 5), st.integers(1, 4)),
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
)
tables = shapes.flatmap(
    lambda shape: arrays(np.int64, shape, elements=st.one_of(st.just(0), st.integers(0, 90)))
)
BOUNDED = measure(2, "pay", "90", "100", decimals=2, of=["sum", "mean"])
FLAG = measure(2, "flag", "0", "1", of=["sum", "mean"])
ASKED = [[], [PAID], [ALONE], [PAID, BOUNDED], [FLAG, ALONE], [OVERPAID, MONTHS]]
WITH_NOISE = [*ASKED, [OVERPAID, {**MONTHS, "of": ["mean"]}]]


@settings(max_examples=60, deadline=None)
@given(
    tables,
    st.sampled_from(ASKED),
    st.sampled_from([1, 5, 10, 20]),
    st.sampled_from(["yes", "no"]),
    st.floats(0, 1),
)
def test_no_exact_table_of_the_products_own_making_is_objected_to(counts, measures, minimum, margins, each):
    if not counts.shape and not measures:
        return
    limits = Constraints(min_group_size=minimum)
    params = {"measures": measures} if measures else {}
    spec, made = exact(counts, each, limits, **params, **({"margins": margins} if counts.shape else {}))
    assert examine_joined_table(plain(made), made.facts, spec, limits) == []


@settings(max_examples=60, deadline=None)
@given(
    shapes,
    st.sampled_from(WITH_NOISE),
    st.sampled_from([{"rho": "0.05"}, {"epsilon": "2"}]),
    st.integers(0, 1 << 30),
    st.integers(0, 20),
)
def test_no_noisy_table_of_the_products_own_making_is_objected_to(shape, measures, budget, seed, minimum):
    if not shape and not measures:
        return
    limits = Constraints(min_group_size=minimum)
    spec = spec_of(shape, **({"measures": measures} if measures else {}), **budget)
    made = noisy(spec, seed, limits)
    assert examine_joined_table(plain(made), made.facts, spec, limits) == []


def test_a_mean_of_amounts_that_may_be_negative_and_a_sum_cut_at_zero_hold():
    signed = measure(2, "change", "-100", "300", of=["mean"])
    spec = spec_of((3, 2), measures=[signed, PAID], rho="0.3")
    params = Params.of(spec)
    counts = np.full((3, 2), 40, dtype=np.int64)
    cells = [counts, np.array([[-9000, 9000], [0, 1], [-1, 400]]), np.array([[-500, 0], [1, 9], [70000, -1]])]
    made = noisy_table(params, LIMITS, cells)
    assert codes(plain(made), spec, made.facts) == set()


# -- as it was altered ---------------------------------------------------------------------------------------

COUNTS = np.array([[90, 60, 25], [30, 4, 50], [70, 80, 40]])


def the_exact() -> tuple[JobSpec, Content]:
    return exact(COUNTS, measures=[PAID])


def the_noisy() -> tuple[JobSpec, Content]:
    spec = spec_of((3, 3), measures=[PAID], rho="0.4")
    return spec, noisy(spec, 7, least=30)


BOTH = pytest.mark.parametrize("form", [the_exact, the_noisy])
Form = Callable[[], tuple[JobSpec, Content]]


def at(columns: Columns, name: str, *labels: str) -> int:
    rows = list(zip(columns["axis0"], columns["axis1"], columns["measure"], strict=True))
    return rows.index((*labels, name))


def show(columns: Columns, name: str, value: float, *labels: str) -> None:
    row = at(columns, name, *labels)
    columns["value"][row], columns["withheld"][row] = value, False


def test_a_withheld_cell_that_is_shown_is_found():
    spec, made = the_exact()
    columns = plain(made)
    assert columns["withheld"][at(columns, "persons", "v1", "v1")]
    show(columns, "persons", 5.0, "v1", "v1")
    assert "small-cell" in codes(columns, spec)
    columns = plain(made)
    show(columns, "sum(paid)", 1200.0, "v1", "v1")
    assert codes(columns, spec) == {"not-withheld"}


def test_a_cell_that_hides_another_and_is_shown_makes_that_one_recoverable():
    spec, made = the_exact()
    columns = plain(made)
    hidden = [
        (one, other)
        for one, other, name, dark in zip(
            *(columns[each] for each in ("axis0", "axis1", "measure", "withheld")), strict=True
        )
        if dark and name == "persons" and (one, other) != ("v1", "v1")
    ]
    assert hidden
    counts = {(f"v{i}", f"v{j}"): COUNTS[i, j] for i in range(3) for j in range(3)}
    for one, other in hidden:
        columns = plain(made)
        count = int(counts[one, other])
        show(columns, "persons", 5 * round(count / 5), one, other)
        show(columns, "sum(paid)", count * 300.0, one, other)
        show(columns, "mean(paid)", 300.0, one, other)
        assert codes(columns, spec) & {"unshielded", "recoverable", "too-narrow"}


def test_smaller_groups_than_the_strictest_participant_let_be_shown_are_found():
    spec, made = the_exact()
    assert "small-cell" in codes(plain(made), spec, limits=Constraints(min_group_size=45))
    assert "wrong-facts" in codes(plain(made), spec, made.facts, Constraints(min_group_size=45))


def test_a_count_that_is_not_rounded_is_found():
    spec, made = the_exact()
    columns = plain(made)
    columns["value"][at(columns, "persons", "v0", "v0")] = 41.0
    assert "not-rounded" in codes(columns, spec)


def test_a_sum_in_which_one_person_may_stand_out_is_found():
    """40 persons: 1142 is below 500/0.4375, 1143 is not. A mean of the same says as much."""
    for shown, expected in ((1142.0, {"dominated"}), (1143.0, set()), (20_000.0, {"dominated"})):
        spec, made = exact(
            np.array([[40]]), measures=[measure(1, "paid", "0", "500", of=["sum"])], margins="no"
        )
        columns = plain(made)
        columns["value"][1] = shown
        assert codes(columns, spec) == expected
    for shown, expected in ((27.0, {"dominated"}), (30.0, set()), (471.0, set()), (473.0, {"dominated"})):
        spec, made = exact(np.array([[40]]), measures=[ALONE], margins="no")
        columns = plain(made)
        columns["value"][1] = shown
        assert codes(columns, spec) == expected


def test_a_sum_beyond_what_so_many_persons_can_have_is_found():
    spec, made = exact(np.array([[40]]), measures=[measure(1, "paid", "0", "500", of=["sum"])], margins="no")
    # Of 42, who would be shown as 40, less than 16/7 of one person's most is missing only beyond 19,857.
    for shown, expected in (
        (42 * 500.0 - 1143, set()),
        (42 * 500.0 - 1142, {"dominated"}),
        (42 * 500.0, {"dominated"}),
        (42 * 500.0 + 1, {"does-not-add-up"}),
    ):
        columns = plain(made)
        columns["value"][1] = shown
        assert codes(columns, spec) == expected


def test_a_sum_near_what_all_have_at_least_is_found():
    """The product's own withheld it: of 30 with 9,000 and more, one person has all that is above."""
    high = measure(1, "pay", "9000", "100000", of=["sum"])
    spec, made = exact(np.array([[30]]), measures=[high], margins="no")
    assert codes(plain(made), spec, made.facts) == set()
    # Of 28 persons, as good a reading of 30, a sum is 18,000 further from 9,000 each.
    for shown, expected in ((28 * 9000 + 207_999, {"dominated"}), (28 * 9000 + 208_000, set())):
        columns = plain(made)
        columns["value"][1] = float(shown)
        assert codes(columns, spec, made.facts) == expected


def test_a_flag_of_fewer_than_the_smallest_group_is_found():
    spec, made = exact(np.array([[40]]), measures=[{**FLAG, "of": ["sum"]}], margins="no")
    for shown, expected in ((9.0, {"dominated"}), (10.0, set()), (32.0, set()), (33.0, {"dominated"})):
        columns = plain(made)
        columns["value"][1] = shown
        assert codes(columns, spec) == expected


def test_a_mean_that_is_none_of_its_sum_and_persons_is_found():
    """Half as much again, a digit more, and the quotient as it is, from which the exact number follows."""
    spec, made = exact(np.array([[41]]), 0.6137, measures=[PAID], margins="no")
    row = plain(made)["measure"].index("mean(paid)")
    total, mean = (plain(made)["value"][at] for at in (row - 1, row))
    assert codes(plain(made), spec, made.facts) == set()
    for shown in (mean * 1.5, mean + 0.01, mean + 0.001, total / 41):
        columns = plain(made)
        columns["value"][row] = shown
        assert codes(columns, spec, made.facts) == {"does-not-add-up"}, shown


@settings(max_examples=100, deadline=None)
@given(st.integers(10, 1 << 20), st.integers(0, 6), st.floats(0.05, 0.95), st.booleans())
def test_exact_means_are_rounded_as_the_auditor_expects_however_large_the_sums(n, decimals, share, product):
    digits = {"decimals": decimals, "of": ["sum", "mean"]}
    high = str((1 << 30) // 10**decimals)
    measures = [measure(1, "a", "0", high, **digits), MONTHS]
    measures[0] |= {"times": "months"} if product else {}
    measures = measures if product else measures[:1]
    spec, made = exact(np.array(n), share, measures=measures)
    columns = plain(made)
    assert codes(columns, spec, made.facts) == set()
    # Steps of a mean are 10^-(decimals + 2): one that is half-way between two is found.
    off = 0.5 / 10 ** (decimals + 2)
    if not columns["withheld"][2] and columns["value"][2] / off < 2**40:
        columns["value"][2] += off
        assert codes(columns, spec, made.facts) == {"does-not-add-up"}


def test_noise_of_another_amount_than_was_paid_for_is_found():
    spec, made = the_noisy()
    bold = replace(spec, params={**spec.params, "rho": "1"})
    assert codes(plain(made), bold) == {"wrong-interval"}
    assert codes(plain(made), bold, made.facts) == {"wrong-interval", "wrong-facts"}
    other = noisy(bold, 7, least=30)
    assert codes(plain(made), spec, other.facts) == {"wrong-facts"}


@pytest.mark.parametrize("end", ["low", "high"])
@pytest.mark.parametrize("name", ["persons", "sum(paid)", "mean(paid)"])
def test_an_interval_that_is_narrower_or_wider_is_found(name, end):
    spec, made = the_noisy()
    for off in (-0.25, 0.25):
        columns = plain(made)
        columns[end][at(columns, name, "v0", "v1")] += off
        assert codes(columns, spec) == {"wrong-interval"}


def test_a_noisy_cell_of_too_few_persons_that_is_shown_is_found():
    spec, made = the_noisy()
    assert codes(plain(made), spec, limits=Constraints(min_group_size=10_000)) == {"small-cell"}


@BOTH
def test_any_fact_that_is_changed_missing_or_added_is_found(form: Form):
    spec, made = form()
    assert codes(plain(made), spec, made.facts) == set()
    for key, value in made.facts.items():
        for instead in ("", True, f"{value} "):
            assert codes(plain(made), spec, {**made.facts, key: instead}) == {"wrong-facts"}, key
        facts = {name: fact for name, fact in made.facts.items() if name != key}
        assert codes(plain(made), spec, facts) == {"wrong-facts"}, key
    assert codes(plain(made), spec, {**made.facts, "persons": 449}) == {"wrong-facts"}


def _drop(columns: Columns) -> None:
    for values in columns.values():
        del values[0]


def _again(columns: Columns) -> None:
    for values in columns.values():
        values.append(values[-1])


def _set(name: str, value: Any) -> Callable[[Columns], None]:
    def spoil(columns: Columns) -> None:
        columns[name][0] = value

    return spoil


@BOTH
@pytest.mark.parametrize(
    "spoil",
    [
        _drop,
        _again,
        lambda c: c.pop("axis1"),
        lambda c: c.pop("value"),
        lambda c: c.__setitem__("key", c["value"]),
        _set("axis0", "v9"),
        _set("measure", "rows"),
        _set("value", float("nan")),
        _set("value", float("inf")),
        _set("value", -float("inf")),
        _set("value", "many"),
        _set("value", None),
        _set("withheld", "perhaps"),
        _set("withheld", "True"),
        lambda c: [values.clear() for values in c.values()],
    ],
)
def test_what_is_not_the_table_of_its_job_is_said_to_be_none(form: Form, spoil: Callable[[Columns], object]):
    spec, made = form()
    columns = plain(made)
    spoil(columns)
    assert codes(columns, spec, made.facts) & {"bad-table"}


@BOTH
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_hostile_file_breaks_the_tool_or_passes_for_another(form: Form, data):
    """Any number in any place is either within what rounding leaves open, or found; never a crash."""
    spec, made = form()
    columns = plain(made)
    row = data.draw(st.integers(0, len(columns["value"]) - 1))
    name = data.draw(st.sampled_from([each for each in ("value", "low", "high") if each in columns]))
    instead = data.draw(st.one_of(st.floats(), st.sampled_from([1e300, -1e300, 2.0**63, -0.0, 0.1])))
    before, columns[name][row] = columns[name][row], instead
    problems = codes(columns, spec, made.facts)
    assert (
        problems
        or instead == before
        or np.isnan([instead, before]).all()
        or "paid" in columns["measure"][row]
    )


def test_the_table_of_one_form_is_none_of_the_other():
    assert codes(plain(the_exact()[1]), the_noisy()[0]) == {"bad-table"}
    assert codes(plain(the_noisy()[1]), the_exact()[0]) == {"bad-table"}
    broken = replace(the_exact()[0], params={"areas": "demo-city"})
    assert codes(plain(the_exact()[1]), broken) == {"bad-params"}


# -- moments -------------------------------------------------------------------------------------------------

Moments = tuple[JobSpec, Content, dict[Any, int]]


def moments(n: int = 150, limits: Constraints = LIMITS, **params: Any) -> Moments:
    case = moments_case(moments_spec(2, target="income", **params), as_lists(people(n)), constraints=limits)
    return case.spec, case.released(), {role: each.distinct_keys for role, each in case.setup.inputs.items()}


@pytest.fixture(scope="module", params=["exact", "noisy"])
def either(request: pytest.FixtureRequest) -> Moments:
    return moments() if request.param == "exact" else moments(rho="2")


def faults(
    given: Moments, columns: Columns | None = None, facts: Any = None, limits: Constraints = LIMITS
) -> set[str]:
    spec, made, keys = given
    shown = plain(made) if columns is None else columns
    stated = made.facts if facts is None else facts
    return {each.code for each in examine_joined_moments(shown, stated, spec, limits, keys)}


def test_moments_of_the_products_own_making_are_not_objected_to(either: Moments):
    assert faults(either) == set()
    spec, made, keys = either
    assert examine_joined_moments(plain(made), None, spec, LIMITS, keys) == []


def test_moments_without_what_they_are_made_of_are_no_release(either: Moments):
    columns = plain(either[1])
    columns["value"] = [each + 1 for each in columns["value"]]
    for shown in (None, columns):
        assert faults(either, shown, facts={}) == {"wrong-facts"}


@pytest.mark.parametrize("name", ["value", "low", "high"])
def test_a_figure_that_the_moments_beside_it_do_not_make_is_found(either: Moments, name: str):
    for row in range(len(plain(either[1])["value"])):
        columns = plain(either[1])
        if columns["withheld"][row]:
            continue
        columns[name][row] += 0.01 * (1 + abs(columns[name][row]))
        assert faults(either, columns) <= {"does-not-add-up", "wrong-interval"}
        assert faults(either, columns), row


def test_moments_of_others_than_those_that_the_figures_are_of_are_found(either: Moments):
    n = either[1].facts["n"]
    assert faults(either, facts={**either[1].facts, "n": int(n) + 1})
    assert "bad-table" in faults(either, facts={**either[1].facts, "sums": "1"})
    assert "bad-table" in faults(either, facts={**either[1].facts, "products": "many"})
    assert "wrong-facts" in faults(either, facts={**either[1].facts, "more": 1})
    for key in ("mechanism", "within", "fewest_persons", "target", "ridge"):
        assert "wrong-facts" in faults(either, facts={**either[1].facts, key: "other"}), key
    assert faults(either, facts={**either[1].facts, "largest_q": 4})


def test_moments_of_fewer_persons_than_the_strictest_participant_asks_for_are_found(either: Moments):
    """Exact ones may not even be made of so few: then the table is none."""
    assert faults(either, limits=Constraints(min_group_size=400)) & {"small-cell", "bad-table"}
    assert faults(either, limits=Constraints(min_group_size=12)) & {"wrong-facts", "bad-table"}


def test_a_withheld_figure_that_is_shown_and_a_shown_one_that_is_missing_are_found(either: Moments):
    columns = plain(either[1])
    row = columns["withheld"].index(False)
    for name in ("value", "low", "high"):
        columns[name][row] = float("nan")
    columns["withheld"][row] = True
    assert faults(either, columns) == {"bad-table"}
    columns = plain(either[1])
    columns["measure"][1] = "median"
    assert faults(either, columns) == {"bad-table"}
    columns = plain(either[1])
    spec, made, keys = either
    columns["low"][row] = columns["value"][row] + 1
    (found,) = examine_joined_moments(columns, None, spec, LIMITS, keys)
    assert found.code == "wrong-interval"
    columns = plain(made)
    columns["a"][1] = "other"
    (found,) = examine_joined_moments(columns, None, spec, LIMITS, keys)
    assert found.code == "bad-table"


HOSTILE = st.one_of(
    st.sampled_from(["", "0", "1", "-1", "2", "9" * 400, "-" + "9" * 400, "1e9", "nan", 0, 1, -5, 1 << 4000]),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.none(),
    st.lists(st.integers(), max_size=3),
)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_moments_that_anybody_makes_up_break_the_tool(either: Moments, data):
    """Of nobody, of one person, of numbers of 400 digits: each is found."""
    spec, made, keys = either
    facts = dict(made.facts)
    for key in data.draw(st.lists(st.sampled_from(sorted(facts)), min_size=1, max_size=3, unique=True)):
        given_ = data.draw(HOSTILE)
        if key in ("sums", "products") and data.draw(st.booleans()):
            words = str(facts[key]).split()
            words[data.draw(st.integers(0, len(words) - 1))] = str(given_)
            given_ = " ".join(words)
        facts[key] = given_
    problems = examine_joined_moments(plain(made), facts, spec, LIMITS, keys)
    assert problems or facts == made.facts


@pytest.mark.parametrize("largest", [1.0, 2.0, True, "1", 3, None])
def test_what_is_no_power_of_two_in_whole_numbers_is_not_the_largest_q(either: Moments, largest: object):
    assert faults(either, facts={**either[1].facts, "largest_q": largest})


@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize("digits", [1, 400])
def test_moments_of_nobody_or_of_far_too_much_are_found(either: Moments, n: int, digits: int):
    facts = dict(either[1].facts)
    facts["n"] = n
    for key in ("sums", "products"):
        facts[key] = " ".join(["9" * digits] * len(str(facts[key]).split()))
    assert faults(either, facts=facts)


# -- opened releases -----------------------------------------------------------------------------------------


@BOTH
def test_a_table_as_the_analyst_saved_it_holds_in_either_form(form: Form):
    spec, content = form()
    data = encode_content(content, "aggregate", bytes(16))
    _, _, entry = released({"990101001": 40}, 10)
    note = replace(entry.note, name="table", content_sha256=sha256_digest(data))
    entry = Released(note, "entry 7", LIMITS, spec)
    sink = io.BytesIO()
    pyarrow.csv.write_csv(for_office(decode_content(data)[0]), sink)
    csv = sink.getvalue()
    for files in ({"table.arrow": data}, {"table.arrow": data, "table.csv": csv}):
        check = looked_at(files, entry)
        assert (found(check), check.answer) == (set(), Answer.HOLDS)
    alone = looked_at({"table.csv": csv}, entry)
    assert (found(alone), alone.answer, alone.missing) == (set(), Answer.NOT_CHECKABLE, [NO_FACTS])
    unnamed = looked_at({"table.arrow": data}, replace(entry, spec=None))
    assert (unnamed.answer, unnamed.missing) == (Answer.NOT_CHECKABLE, [NO_JOB])


@BOTH
def test_a_stream_that_states_nothing_is_not_taken_for_a_file_alone(form: Form):
    """Whoever makes the release could leave the facts out, and nothing would be held against them."""
    spec, content = form()
    bare = encode_content(replace(content, facts={}), "aggregate", bytes(16))
    _, _, entry = released({"990101001": 40}, 10)
    note = replace(entry.note, name="table", content_sha256=sha256_digest(bare))
    for asked in (spec, None):
        check = looked_at({"table.arrow": bare}, Released(note, "entry 7", LIMITS, asked))
        assert (found(check), check.answer) == ({"wrong-facts"}, Answer.FAILS)
    assert codes(plain(content), spec, {}) == {"wrong-facts"}
