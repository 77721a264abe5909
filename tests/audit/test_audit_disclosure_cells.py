"""Cross-tabs and noisy tables looked at again: the product's own hold, and what was done to them is found."""

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
from release_case import ASKS, release_spec
from simulator import new_signer
from table_case import table_spec
from test_audit_disclosure import found, looked_at, released

from audit.disclosure import NO_JOB, NO_RULES, Released
from audit.disclosure_tables import MAX_SOLVED, examine_cells
from audit.findings import Answer, Check
from audit.identifiers_scan import IdentifierScan
from node.releases import decode_content, encode_content
from protocols.encoding import sha256_digest
from protocols.envelope import JOB, sign
from protocols.jobs.job_type import Content
from protocols.jobs.table import Params, published
from protocols.releases.figures import content
from protocols.releases.params import Params as ReleaseParams
from protocols.releases.plan import plan
from protocols.spreadsheet import for_office
from protocols.statistics.cross_table import protect_cross, with_margins
from protocols.tables.released import cell_labels
from protocols.wire import Constraints, JobSpec

MINIMUM = Constraints(min_group_size=10)
Columns = dict[str, list[Any]]


def plain(made: Content) -> Columns:
    return {name: column.tolist() for name, column in made.table.columns.items()}


def codes(
    columns: Columns, spec: JobSpec, limits: Constraints = MINIMUM, facts: Any = None, **more: Any
) -> set[str]:
    return {problem.code for problem in examine_cells(columns, facts or {}, spec, limits, **more)}


def spec_of(shape: tuple[int, ...], **params: Any) -> JobSpec:
    axes = [
        {"slot": f"axis{n}", "values": [f"v{value}" for value in range(size)]} for n, size in enumerate(shape)
    ]
    return table_spec(1, axes=axes, **params)


def exact(counts: Any, limits: Constraints = MINIMUM, **params: Any) -> tuple[JobSpec, Content]:
    """Return the table of a department alone that has so many persons, each with the same amount."""
    spec = spec_of(counts.shape, **params)
    parts = [counts, np.minimum(counts, 1)]
    for _ in params.get("measures") or ():
        one = 70 * np.minimum(counts, 1)
        parts += [70 * counts, counts, one, np.where(counts > 1, one, 0), np.minimum(counts, 1)]
    (made,) = published(Params.of(spec), limits, np.concatenate([part.ravel() for part in parts]))
    return spec, made


PAID = [{"slot": "paid", "bounds": ["0", "5000"], "of": ["sum", "mean"]}]
RAND = np.random.default_rng(4)
COUNTS = RAND.integers(0, 60, (6, 5))

shapes = st.one_of(
    st.tuples(st.integers(1, 6)),
    st.tuples(st.integers(1, 5), st.integers(1, 4)),
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
)
tables = shapes.flatmap(
    lambda shape: arrays(np.int64, shape, elements=st.one_of(st.just(0), st.integers(0, 90)))
)


@settings(max_examples=100, deadline=None)
@given(
    tables,
    st.sampled_from([1, 3, 5, 10, 20]),
    st.sampled_from(["yes", "no"]),
    st.sampled_from([1, 4]),
    st.sampled_from([None, PAID]),
)
def test_no_cross_tab_of_the_products_own_making_is_objected_to(
    counts, minimum, margins, unit_rows, measures
):
    limits = Constraints(min_group_size=minimum)
    spec, made = exact(counts, limits, margins=margins, unit_rows=unit_rows, measures=measures)
    assert examine_cells(plain(made), made.facts, spec, limits) == []


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(sorted(ASKS)), st.sampled_from(["rho", "epsilon"]), st.integers(0, 20))
def test_no_noisy_table_of_the_products_own_making_is_objected_to(data, statistic, notion, minimum):
    sources = 1 if statistic == "keys" else data.draw(st.integers(1, 3))
    spec = release_spec(statistic, sources, **{notion: data.draw(st.sampled_from(["0.05", "1", "3"]))})
    columns, made = noisy(spec, data.draw(st.integers(0, 1 << 30)), minimum=minimum)
    assert examine_cells(columns, made.facts, spec, Constraints(min_group_size=minimum)) == []


KEYS = [f"key {n}" for n in range(8)]


def noisy(spec: JobSpec, seed: int, *, minimum: int = 10, least: int = 0) -> tuple[Columns, Content]:
    """Return a table of random totals with random noise, as good as any."""
    made, rand = plan(ReleaseParams.of(spec)), np.random.default_rng(seed)
    keys = KEYS if made.params.keys else []
    words = []
    for vector, noise in zip(made.vectors, made.noises, strict=True):
        size, each = len(keys) or vector.size, 40 if vector.name == "sum" else 1
        true = rand.integers(least, 600, size) * each
        words.append(true * noise.scale + np.rint(rand.normal(0, noise.scale * 9, size)).astype(np.int64))
    table = content(made, np.concatenate(words), minimum, keys)
    return plain(table), table


def row_of(columns: Columns, measure: str, **labels: str) -> int:
    return next(
        row
        for row, name in enumerate(columns["measure"])
        if name == measure and all(columns[slot][row] == text for slot, text in labels.items())
    )


# -- exact ---------------------------------------------------------------------------------------------------


def test_a_count_that_is_small_or_not_rounded_is_found():
    spec, made = exact(COUNTS)
    columns = plain(made)
    dark = columns["withheld"].index(True)
    columns["value"][dark], columns["withheld"][dark] = 5.0, False
    assert "small-cell" in codes(columns, spec)
    columns = plain(made)
    columns["value"][columns["withheld"].index(False)] += 1
    assert "not-rounded" in codes(columns, spec)


def test_a_sum_beside_a_withheld_count_is_found_and_one_of_nobody():
    spec, made = exact(COUNTS, measures=PAID)
    columns = plain(made)
    place = columns["withheld"].index(True)
    labels = {slot: columns[slot][place] for slot in ("axis0", "axis1")}
    for measure in ("sum(paid)", "mean(paid)"):
        columns = plain(made)
        row = row_of(columns, measure, **labels)
        columns["value"][row], columns["withheld"][row] = 70.0, False
        assert "not-withheld" in codes(columns, spec)
    counts = np.array([[0, 30], [40, 50]])
    spec, made = exact(counts, measures=PAID)
    columns = plain(made)
    columns["value"][row_of(columns, "sum(paid)", axis0="v0", axis1="v0")] = 140.0
    assert codes(columns, spec) == {"small-cell"}  # a count of 1 or 2 is shown as 0


def test_a_cell_without_its_shield_is_found():
    counts = np.full((4, 4), 40)
    counts[1, 2] = 3
    spec, made = exact(counts)
    columns = plain(made)
    row = row_of(columns, "persons", axis0="v0", axis1="v2")
    assert columns["withheld"][row]
    columns["value"][row], columns["withheld"][row] = 40.0, False
    assert codes(columns, spec) == {"unshielded"}


def test_a_shield_too_thin_to_hide_is_found_from_one_sum():
    """Two withheld cells in each line, but what is published leaves eight persons for both, or 14 at most."""
    counts = np.array([[3, 5, 60], [5, 3, 60], [50, 50, 50]])
    columns, spec = shown(counts, [(0, 0), (0, 1), (1, 0), (1, 1)])
    assert codes(columns, spec, Constraints(min_group_size=20)) == {"too-narrow"}
    assert codes(columns, spec) == set()  # so far the rounding hides it
    columns, spec = shown(counts, np.argwhere(protect_cross(counts, 20, margins=True)))
    assert codes(columns, spec, Constraints(min_group_size=20)) == set()


def shown(counts: Any, dark: Any) -> tuple[Columns, JobSpec]:
    """Return a table with exactly these cells withheld."""
    spec = spec_of(counts.shape)
    whole = with_margins(counts)
    withheld = np.zeros(whole.shape, bool)
    for at in dark:
        withheld[tuple(at)] = True
    labels = cell_labels(Params.of(spec).layout.axes, margins=True)
    return {
        **{slot: each.tolist() for slot, each in labels.items()},
        "measure": ["persons"] * whole.size,
        "value": np.where(withheld, np.nan, (2 * whole + 5) // 10 * 5).ravel().tolist(),
        "withheld": withheld.ravel().tolist(),
    }, spec


def test_what_only_a_solver_tells_is_found():
    """The ring of test_cross_table: line by line all is well, all lines together leave hardly any choice."""
    counts = np.full((4, 4), 600)
    counts[0, 0], counts[3, 3] = 1, 2
    ring = [(0, 0), (0, 1), (1, 1), (1, 2), (3, 2), (3, 3), (2, 3), (2, 0)]
    assert counts.size << counts.ndim <= MAX_SOLVED
    columns, spec = shown(counts, ring)
    assert codes(columns, spec, Constraints(min_group_size=100)) == {"unshielded", "too-narrow"}
    # Where any of them is small enough for the rounding to hide, nobody can tell.
    assert codes(columns, spec, Constraints(min_group_size=5)) == {"unshielded"}


def test_counts_and_sums_that_contradict_each_other_are_found():
    counts = np.full((3, 3), 40)
    columns, spec = shown(counts, [])
    columns["value"][-1] = 5000.0
    assert codes(columns, spec) == {"does-not-add-up"}
    spec, made = exact(counts, measures=PAID)
    columns = plain(made)
    columns["value"][row_of(columns, "sum(paid)", axis0="", axis1="")] += 1000
    assert codes(columns, spec) == {"does-not-add-up"}


def test_a_sum_that_withheld_cells_can_only_have_if_nobody_has_any_is_found():
    """Four withheld cells of plenty of persons, whose amounts add up to nothing."""
    counts = np.array([[4, 40, 50], [30, 40, 60], [50, 60, 90]])
    spec, made = exact(counts, measures=[PAID[0] | {"of": ["sum"]}])
    columns = plain(made)
    for row, (measure, dark) in enumerate(zip(columns["measure"], columns["withheld"], strict=True)):
        if measure == "sum(paid)" and not dark:
            columns["value"][row] = 0.0
    assert codes(columns, spec) == {"recoverable"}


def test_a_margin_of_few_persons_who_count_often_is_found():
    counts = np.array([[4, 200], [4, 200], [4, 200], [4, 200], [4, 200]])
    _, made = exact(counts)
    assert codes(plain(made), spec_of(counts.shape)) == set()
    assert "small-cell" in codes(plain(made), spec_of(counts.shape, unit_rows=5))


def test_a_person_in_several_departments_makes_the_smallest_group_as_many_times_larger():
    spec = table_spec(3, axes=[{"slot": "axis0", "values": ["v0", "v1"]}])
    columns, _ = shown(np.array([20, 40]), [])
    assert codes(columns, spec) == {"small-cell"}
    once = replace(spec, params={**spec.params, "persons_in": 1})
    assert codes(columns, once) == set()


def test_rows_about_nobody_are_published_as_they_are():
    spec = spec_of((2, 2))
    counts = np.array([[1, 2], [30, 47]])
    words = np.concatenate([counts.ravel(), np.ones(4, np.int64)])
    (made,) = published(Params.of(spec), MINIMUM, words, persons=False)
    assert examine_cells(plain(made), made.facts, spec, MINIMUM, persons=False) == []
    # The policy says whom rows are about; a table cannot excuse itself.
    assert codes(plain(made), spec, facts=made.facts) == {"bad-table"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("minimum_group", 9),
        ("minimum_group", "many"),
        ("rounding_base", 1),
        ("rounding_base", "five"),
        ("departments_per_person", 2),
        ("rows_per_person", 2),
        ("contributors", 2),
        ("withheld_cells", 0),
    ],
)
def test_facts_that_are_none_are_found(key, value):
    spec, made = exact(COUNTS)
    assert made.facts["withheld_cells"]
    assert codes(plain(made), spec, facts=dict(made.facts)) == set()
    assert codes(plain(made), spec, facts={**made.facts, key: value}) == {"wrong-facts"}


def _drop(columns: Columns, count: int) -> None:
    for values in columns.values():
        del values[-count:]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda c: c["axis0"].__setitem__(0, "v9"),
        lambda c: c["measure"].__setitem__(0, "people"),
        lambda c: c["value"].__setitem__(c["withheld"].index(True), 30.0),
        lambda c: c["value"].__setitem__(c["withheld"].index(False), float("nan")),
        lambda c: c["value"].__setitem__(c["withheld"].index(False), float("inf")),
        lambda c: c["value"].__setitem__(0, "many"),
        lambda c: c["withheld"].__setitem__(0, "perhaps"),
        lambda c: c.__setitem__("more", c["value"]),
        lambda c: c.pop("axis1"),
        lambda c: _drop(c, 1),
        lambda c: _drop(c, len(c["value"])),
    ],
)
def test_what_is_not_the_table_of_its_job_is_said_to_be_none(spoil: Callable[[Columns], object]):
    spec, made = exact(COUNTS)
    columns = plain(made)
    spoil(columns)
    assert codes(columns, spec) == {"bad-table"}


# -- noisy ---------------------------------------------------------------------------------------------------

INTERVALS = ["count", "histogram", "sum", "mean", "tree", "keys"]


@pytest.mark.parametrize("statistic", INTERVALS)
@pytest.mark.parametrize("notion", ["rho", "epsilon"])
def test_intervals_of_less_noise_than_was_paid_for_are_found(statistic, notion):
    paid, bold = (release_spec(statistic, **{notion: amount}) for amount in ("0.001", "0.1"))
    columns, made = noisy(bold, 3, least=400)
    assert not all(columns["withheld"])
    facts = {key: value for key, value in made.facts.items() if key != notion}
    expected = {"wrong-interval"} if statistic != "keys" else {"wrong-interval", "small-cell", "wrong-facts"}
    assert codes(columns, bold, facts=made.facts) == set()
    assert codes(columns, paid, facts=facts) <= expected
    assert codes(columns, paid)
    assert "wrong-facts" in codes(columns, paid, facts=made.facts)


@pytest.mark.parametrize("statistic", INTERVALS)
@pytest.mark.parametrize("end", ["low", "high"])
def test_an_interval_that_was_drawn_closer_is_found(statistic, end):
    spec = release_spec(statistic, rho="0.0005")
    columns, _ = noisy(spec, 5, least=500)
    row = columns["withheld"].index(False)
    columns[end][row] = columns["value"][row]
    assert codes(columns, spec) == {"wrong-interval"}
    columns[end][row] = columns["value"][row] + (1 if end == "low" else -1)
    assert codes(columns, spec) == {"wrong-interval"}


@pytest.mark.parametrize("statistic", ["count", "histogram", "sum", "mean", "tree", "keys"])
def test_a_noisy_number_of_few_is_found(statistic):
    spec = release_spec(statistic, rho="3")
    columns, made = noisy(spec, 7, minimum=0)
    assert codes(columns, spec, Constraints(min_group_size=0), facts=made.facts) == set()
    assert "small-cell" in codes(columns, spec, Constraints(min_group_size=580))


def test_a_sum_whose_count_is_withheld_is_found():
    spec = release_spec("sum")
    columns, _ = noisy(spec, 1)
    row = row_of(columns, "count(income)")
    columns["withheld"][row] = True
    for name in ("value", "low", "high"):
        columns[name][row] = float("nan")
    assert codes(columns, spec) == {"bad-table"}


def test_levels_of_a_tree_that_do_not_add_up_are_found():
    spec = release_spec("tree")
    columns, _ = noisy(spec, 2, least=100)
    for row in (0, 2, len(columns["value"]) - 1):
        changed = {name: list(values) for name, values in columns.items()}
        for name in ("value", "low", "high"):
            changed[name][row] += 7
        assert codes(changed, spec) == {"does-not-add-up"}


def test_quantiles_out_of_order_or_between_bins_are_found():
    spec = release_spec("quantile")
    columns, _ = noisy(spec, 2, least=100)
    between = {name: list(values) for name, values in columns.items()}
    between["low"][0] -= 0.5
    assert codes(between, spec) == {"wrong-interval"}
    turned = {name: values[::-1] if name != "measure" else values for name, values in columns.items()}
    assert codes(turned, spec) == {"wrong-interval"}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda c: c["value"].__setitem__(0, c["value"][0] + 0.5),
        lambda c: [c[name].__setitem__(0, 1e30) for name in ("value", "low", "high")],
        lambda c: c.pop("high"),
        lambda c: c["low"].__setitem__(0, float("nan")),
    ],
)
def test_numbers_that_no_totals_make_are_said_to_be_none(spoil: Callable[[Columns], object]):
    spec = release_spec("histogram")
    columns, _ = noisy(spec, 1, least=100)
    spoil(columns)
    assert codes(columns, spec) == {"bad-table"}


def test_a_key_that_is_named_twice_or_by_too_few_is_found():
    spec = release_spec("keys", rho="1")
    columns, made = noisy(spec, 3, least=50)
    assert made.facts["least_named"] == max(int(made.facts["least_named"]), 10)
    columns["job"][0] = columns["job"][1]
    assert codes(columns, spec) == {"bad-table"}
    columns, _ = noisy(spec, 3, least=50)
    for name in ("value", "low", "high"):
        columns[name][0] = 9.0
    assert codes(columns, spec) == {"small-cell"}


# -- opened releases -----------------------------------------------------------------------------------------


def opened_of(made: Content, spec: JobSpec | None, **more: Any) -> tuple[bytes, Released]:
    data = encode_content(made, "aggregate", bytes(16))
    _, _, entry = released({"990101001": 40}, 10)
    note = replace(entry.note, name="table", content_sha256=sha256_digest(data))
    return data, Released(note, "entry 7", MINIMUM, spec, **more)


@pytest.mark.parametrize("statistic", [None, "histogram", "mean"])
def test_a_table_as_the_analyst_saved_it_holds_in_either_form(statistic):
    """In a CSV file numbers are text, and an office program gets an apostrophe before some labels."""
    if statistic:
        spec = release_spec(statistic)
        _, made = noisy(spec, 3)
    else:
        spec = table_spec(1, axes=[{"slot": "a", "values": ["=1", "-2", "'3"]}], measures=PAID)
        parts = np.tile([60, 70, 80], (7, 1))
        parts[1], parts[6], parts[4:6] = 1, 1, 1
        (made,) = published(Params.of(spec), MINIMUM, parts.ravel())
    data, entry = opened_of(made, spec)
    sink = io.BytesIO()
    pyarrow.csv.write_csv(for_office(decode_content(data)[0]), sink)
    text = sink.getvalue()
    for files in ({"table.arrow": data}, {"table.csv": text}, {"table.arrow": data, "table.csv": text}):
        check = looked_at(files, entry)
        assert (found(check), check.answer) == (set(), Answer.HOLDS)
    lines = text.decode().splitlines()
    lines[1], lines[2] = lines[2], lines[1]
    other = {"table.arrow": data, "table.csv": "\n".join(lines).encode()}
    assert found(looked_at(other, entry)) == {"wrong-content"}


def test_the_job_decides_what_a_table_has_to_be():
    spec, made = exact(COUNTS)
    data, entry = opened_of(made, spec)
    assert looked_at({"table.arrow": data}, entry).answer is Answer.HOLDS
    # A street table in the place of a cross-tab, and a cross-tab in the place of a noisy table.
    street, _, of_streets = released({"990101001": 40}, 10)
    instead = replace(of_streets, spec=spec)
    assert found(looked_at({"table.arrow": street}, instead)) == {"bad-table"}
    data, entry = opened_of(made, release_spec("histogram"))
    assert found(looked_at({"table.arrow": data}, entry)) == {"bad-table"}
    data, entry = opened_of(made, replace(spec, params={"axes": "none"}))
    assert found(looked_at({"table.arrow": data}, entry)) == {"bad-params"}


def test_without_the_jobs_text_a_table_of_cells_is_not_checkable():
    spec, made = exact(COUNTS)
    data, entry = opened_of(made, None)
    check = looked_at({"table.arrow": data}, entry)
    assert (check.answer, check.missing) == (Answer.NOT_CHECKABLE, [NO_JOB])
    data, entry = opened_of(made, replace(spec, job_type="crosscheck/1"))
    assert looked_at({"table.arrow": data}, entry).missing == [NO_RULES]


# -- identifiers ---------------------------------------------------------------------------------------------


def scanned(spec: JobSpec) -> set[str]:
    check = Check("identifiers")
    IdentifierScan(check).file("objects/job", sign(JOB, spec.encode(), [new_signer()]).encode())
    return found(check)


@pytest.mark.parametrize(
    "asked",
    [
        {"axes": [{"slot": "street", "values": [f"440106{n:03}" for n in range(1, 40)]}]},
        {"axes": [{"slot": "community", "values": [f"440106{n:06}" for n in range(1001, 1040)]}]},
        {"filters": [{"slot": "community", "values": ["990101001001"]}]},
        {"axes": [{"slot": "year", "bins": ["1950", "1960", "1970", "1980", "1990", "2000"]}]},
        {"measures": [{"slot": "paid", "bounds": ["0", "100000000000"]}]},
        {"delta": "1/1000000000000"},
        {"delta": "0.0000000000001"},
    ],
)
def test_codes_of_areas_and_round_numbers_of_a_job_are_no_identifiers(asked):
    assert scanned(table_spec(1, **asked)) == set()


@pytest.mark.parametrize(
    "asked",
    [
        {"filters": [{"slot": "community", "values": ["13812345678"]}]},
        {"filters": [{"slot": "community", "values": ["8613812345678"]}]},
        {"filters": [{"slot": "community", "values": ["440106199001011234"]}]},
        {"filters": [{"slot": "community", "values": ["tel 440106001001"]}]},
        {"filters": [{"slot": "paid", "low": "13812345678"}]},
        {"delta": "1/13812345678"},
        {"title": "440106001001"},
    ],
)
def test_identifiers_among_codes_and_numbers_are_found(asked):
    assert scanned(table_spec(1, **asked))
