"""Overlaps looked at again: the product's own hold, what was done to them is found."""

import io
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pyarrow.csv
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from overlap_case import overlap_case, pair_spec, venn_spec
from test_audit_disclosure import found, looked_at, released

from audit.disclosure import NO_JOB, Released
from audit.disclosure_overlap import examine_overlap
from audit.findings import Answer
from node.releases import decode_content, encode_content
from protocols.encoding import sha256_digest
from protocols.ids import Role
from protocols.jobs.job_type import Content, source
from protocols.jobs.overlap import Params
from protocols.jobs.overlap import released as table_of
from protocols.spreadsheet import for_office
from protocols.wire import JobSpec

Columns = dict[str, list[Any]]
KEYS = (5000, 4000, 3000)
PAIR = pair_spec(epsilon="0.5")
"""± 6."""
REGIONS = venn_spec(3, epsilon="0.5")
"""± 12."""


def keys_of(*counts: int) -> dict[Role, int]:
    return {source(n): count for n, count in enumerate(counts, start=1)}


def made(spec: JobSpec, *noisy: int, keys: tuple[int, ...] = KEYS) -> Content:
    params = Params.of(spec)
    return table_of(params, spec, keys[: params.sources], noisy)


def plain(content: Content) -> Columns:
    return {name: column.tolist() for name, column in content.table.columns.items()}


def codes(columns: Columns, spec: JobSpec, facts: Any = None, keys: tuple[int, ...] = KEYS) -> set[str]:
    return {problem.code for problem in examine_overlap(columns, facts or {}, spec, keys_of(*keys))}


def pair() -> tuple[JobSpec, Content]:
    return PAIR, made(PAIR, 700)


def regions() -> tuple[JobSpec, Content]:
    return REGIONS, made(REGIONS, 900, 800, 300, 500, 0, 200, 100)


BOTH = pytest.mark.parametrize("form", [pair, regions])
Form = Callable[[], tuple[JobSpec, Content]]


# -- as it was made ------------------------------------------------------------------------------------------

specs = st.one_of(
    st.builds(
        lambda epsilon, delta: pair_spec(epsilon=epsilon, delta=delta),
        st.sampled_from(["0.1", "1", "3"]),
        st.sampled_from(["1/1000000", "1/1000000000"]),
    ),
    st.builds(
        lambda sources, budget: venn_spec(sources, **budget),
        st.integers(2, 4),
        st.sampled_from([{"epsilon": "0.1"}, {"epsilon": "2"}, {"rho": "0.05"}]),
    ),
)


@settings(max_examples=60, deadline=None)
@given(st.data(), specs)
def test_no_overlap_of_the_products_own_making_is_objected_to(data, spec):
    params = Params.of(spec)
    size = (1 << params.sources) - 1 if params.matched else 1
    keys = tuple(data.draw(st.lists(st.integers(0, 90), min_size=params.sources, max_size=params.sources)))
    noisy = data.draw(st.lists(st.integers(-400, 400), min_size=size, max_size=size))
    table = made(spec, *noisy, keys=keys)
    assert examine_overlap(plain(table), table.facts, spec, keys_of(*keys)) == []


@pytest.mark.parametrize("spec", [None, venn_spec(3)])
def test_what_the_parties_release_holds(spec):
    case = overlap_case([range(30), range(10, 50), *([range(5)] if spec else [])], spec=spec)
    content = case.released()
    counts = {role: summary.distinct_keys for role, summary in case.setup.inputs.items()}
    assert examine_overlap(plain(content), content.facts, case.spec, counts) == []


def test_a_number_whose_noise_was_left_out_looks_like_one_that_has_it():
    """It says what an audit cannot show: the exact number is as likely as any near it."""
    assert codes(plain(made(PAIR, 701)), PAIR) == codes(plain(made(PAIR, 700)), PAIR) == set()


# -- as it was altered ---------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("end", ["low", "high"])
def test_an_interval_that_is_narrower_or_wider_is_found(form: Form, end: str):
    spec, content = form()
    for off in (-1, 1):
        columns = plain(content)
        columns[end][0] += off
        assert codes(columns, spec) == {"wrong-interval"}
    columns = plain(content)
    columns[end][0] = columns["value"][0]
    assert codes(columns, spec) == {"wrong-interval"}


def test_where_a_value_was_cut_its_interval_may_be_shorter_but_never_longer_nor_elsewhere():
    for value, low, high, expected in (
        (0, 0, 6, set()),
        (0, 0, 0, set()),
        (0, 0, 7, {"wrong-interval"}),
        (4000, 3994, 4000, set()),
        (4000, 3998, 4000, set()),
        (4000, 3993, 4000, {"wrong-interval"}),
        (4000, 3994, 3999, {"wrong-interval"}),
        (3, 0, 9, set()),
        (3, 0, 8, {"wrong-interval"}),
        (3, 1, 9, {"wrong-interval"}),
    ):
        columns = plain(made(PAIR, 700))
        columns["value"], columns["low"], columns["high"] = [float(value)], [float(low)], [float(high)]
        assert codes(columns, PAIR) == expected, (value, low, high)


@BOTH
def test_noise_of_another_amount_than_was_paid_for_is_found(form: Form):
    """By its intervals, and by its facts; facts that lie leave the intervals."""
    spec, honest = form()
    bold = replace(spec, params={**spec.params, "epsilon": "1"})
    noisy = [int(value) for value in honest.table.columns["value"]]
    content = made(bold, *noisy)
    assert codes(plain(content), bold, content.facts) == set()
    assert codes(plain(content), spec, content.facts) == {"wrong-interval", "wrong-facts"}
    assert codes(plain(content), spec, honest.facts) == {"wrong-interval"}
    assert codes(plain(honest), spec, content.facts) == {"wrong-facts"}


def test_another_delta_and_another_kind_of_noise_are_found():
    easier = pair_spec(epsilon="0.5", delta="1/1000000")
    assert Params.of(easier).half_width == Params.of(PAIR).half_width  # the interval alone would not tell
    content = made(easier, 700)
    assert codes(plain(content), PAIR, content.facts) == {"wrong-facts"}
    gaussian = venn_spec(3, rho="0.5")
    content = made(gaussian, *[500] * 7)
    assert codes(plain(content), REGIONS, content.facts) == {"wrong-facts", "wrong-interval"}


@BOTH
def test_any_fact_that_is_changed_missing_or_added_is_found(form: Form):
    spec, content = form()
    assert codes(plain(content), spec, content.facts) == set()
    for key, value in content.facts.items():
        for instead in ("", 20, f"{value} "):
            facts = {**content.facts, key: instead}
            assert codes(plain(content), spec, facts) == {"wrong-facts"}, key
        facts = {name: fact for name, fact in content.facts.items() if name != key}
        assert codes(plain(content), spec, facts) == {"wrong-facts"}, key
    assert codes(plain(content), spec, {**content.facts, "exact": 703}) == {"wrong-facts"}


def _row(columns: Columns, name: str, value: Any) -> None:
    columns[name][0] = value


def _drop(columns: Columns, row: int) -> None:
    for values in columns.values():
        del values[row]


def _again(columns: Columns) -> None:
    for values in columns.values():
        values.append(values[-1])


def _swap(columns: Columns) -> None:
    for values in columns.values():
        values[1], values[2] = values[2], values[1]


def _withhold(columns: Columns) -> None:
    for name in ("value", "low", "high"):
        columns[name][0] = float("nan")
    columns["withheld"][0] = True


@BOTH
@pytest.mark.parametrize(
    "spoil",
    [
        lambda c: _drop(c, 0),
        _again,
        _withhold,
        lambda c: c.pop("low"),
        lambda c: c.__setitem__("key", c["value"]),
        lambda c: _row(c, "measure", "rows"),
        lambda c: _row(c, "value", float("nan")),
        lambda c: _row(c, "value", float("inf")),
        lambda c: _row(c, "value", "many"),
        lambda c: _row(c, "value", 700.5),
        lambda c: _row(c, "low", 694.5),
        lambda c: _row(c, "value", -1.0),
        lambda c: _row(c, "low", -6.0),
        lambda c: _row(c, "high", 5001.0),
    ],
)
def test_what_is_not_the_table_of_its_job_is_said_to_be_none(form: Form, spoil: Callable[[Columns], object]):
    spec, content = form()
    columns = plain(content)
    spoil(columns)
    assert codes(columns, spec) == {"bad-table"}


@pytest.mark.parametrize("spoil", [_swap, lambda c: _drop(c, 4), lambda c: c.pop("source-3")])
def test_a_region_that_is_missing_or_elsewhere_is_found(spoil: Callable[[Columns], object]):
    columns = plain(regions()[1])
    spoil(columns)
    assert codes(columns, REGIONS) == {"bad-table"}


def test_the_admitted_lists_bound_each_region():
    """The third region is of the first two lists, the seventh of all three."""
    columns = plain(made(REGIONS, *[2000] * 7))
    assert codes(columns, REGIONS) == set()
    assert codes(columns, REGIONS, keys=(5000, 4000, 1500)) == {"bad-table"}
    columns = plain(made(REGIONS, *[4400] * 7))
    assert [columns["value"][at] for at in (0, 2, 6)] == [4400, 4000, 3000]
    assert codes(columns, REGIONS, keys=(4399, 4000, 3000)) == {"bad-table"}


def test_the_table_of_one_form_is_none_of_the_other():
    assert codes(plain(pair()[1]), REGIONS) == {"bad-table"}
    assert codes(plain(regions()[1]), PAIR) == {"bad-table"}
    assert codes(plain(pair()[1]), replace(PAIR, params={"epsilon": "1"})) == {"bad-params"}


# -- opened releases -----------------------------------------------------------------------------------------


@BOTH
def test_an_overlap_as_the_analyst_saved_it_holds_in_either_form(form: Form):
    spec, content = form()
    data = encode_content(content, "aggregate", bytes(16))
    _, _, entry = released({"990101001": 40}, 10)
    note = replace(entry.note, name="overlap", content_sha256=sha256_digest(data))
    entry = Released(note, "entry 7", entry.constraints, spec, keys=keys_of(*KEYS))
    sink = io.BytesIO()
    pyarrow.csv.write_csv(for_office(decode_content(data)[0]), sink)
    text = sink.getvalue()
    for files in (
        {"overlap.arrow": data},
        {"overlap.csv": text},
        {"overlap.arrow": data, "overlap.csv": text},
    ):
        check = looked_at(files, entry)
        assert (found(check), check.answer) == (set(), Answer.HOLDS)
    narrower = text.replace(b"706", b"705").replace(b"912", b"911")
    assert narrower != text
    assert found(looked_at({"overlap.csv": narrower}, entry)) == {"wrong-interval"}
    unnamed = looked_at({"overlap.arrow": data}, replace(entry, spec=None))
    assert (unnamed.answer, unnamed.missing) == (Answer.NOT_CHECKABLE, [NO_JOB])


def test_the_widths_that_these_tests_count_on():
    assert Params.of(PAIR).half_width == 6
    assert Params.of(REGIONS).half_width == 12
    assert Params.of(PAIR).delta == Fraction(1, 10**9)
