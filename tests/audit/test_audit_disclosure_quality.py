"""Quality of tables looked at again: the product's own hold, what was done to them is found."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quality_case import DAY, NAME, SEX, quality_spec

from audit.disclosure_quality import examine_quality
from protocols.jobs.job_type import Content
from protocols.jobs.quality import Params, published
from protocols.wire import Constraints, JobSpec

SPEC = quality_spec(3, columns=[SEX, DAY, NAME], persons_in=1)
NOISY = quality_spec(3, columns=[SEX, DAY, NAME], persons_in=1, rho="1")
LIMITS = Constraints(min_group_size=10)
# rows, sex: missing invalid valid, day: missing invalid valid, malformed early future, name: missing valid
COUNTS = (1000, 40, 60, 900, 52, 148, 800, 40, 33, 75, 100, 900)
SMALL = (1000, 3, 60, 937, 52, 148, 800, 40, 4, 104, 100, 900)
Columns = dict[str, list[Any]]


def made(counts: tuple[int, ...], spec: JobSpec = SPEC, behind: int = 3) -> Content:
    params = Params.of(spec)
    if params.budget is None:
        return published(params, LIMITS, np.array([*counts, *(behind * (each > 0) for each in counts)]))
    noises, totals, start = params.noise()[0], [], 0
    for noise in noises:
        totals += [each * noise.scale + 1 for each in counts[start : start + noise.size]]
        start += noise.size
    return published(params, LIMITS, np.array(totals))


def plain(content: Content) -> Columns:
    return {name: column.tolist() for name, column in content.table.columns.items()}


def codes(columns: Columns, facts: Any, spec: JobSpec = SPEC) -> set[str]:
    return {problem.code for problem in examine_quality(columns, facts, spec, LIMITS)}


def place(columns: Columns, column: str, part: str, reason: str = "", measure: str = "rows") -> int:
    rows = zip(*(columns[name] for name in ("column", "part", "reason", "measure")), strict=True)
    return list(rows).index((column, part, reason, measure))


def put(columns: Columns, at: int, value: float) -> None:
    """Publish a number that was withheld, or another one; and its share."""
    for where, number in ((at, value), (at + len(COUNTS) - 1, value / columns["value"][0])):
        columns["value"][where], columns["withheld"][where] = number, False


numbers = st.integers(0, 60)


@settings(max_examples=40, deadline=None)
@given(st.lists(numbers, min_size=7, max_size=7), st.data())
def test_what_the_product_makes_of_any_totals_holds(drawn, data):
    missing, invalid, valid, *days = drawn
    rows = missing + invalid + valid + sum(days)
    counts = [rows, missing, invalid, rows - missing - invalid]
    counts += [valid, sum(days[:3]), rows - valid - sum(days[:3]), *days[:3]]
    blank = data.draw(st.integers(0, rows))
    counts += [blank, rows - blank]
    behind = [data.draw(st.sampled_from([3, 3, 3, 2])) if each else 0 for each in counts]
    # Of a reason no more departments have rows than of its part, and of that no more than of all.
    behind[0], behind[5] = max(behind), max(behind[5], *behind[7:10])
    content = published(Params.of(SPEC), LIMITS, np.array([*counts, *behind]))
    assert codes(plain(content), content.facts) == set()


@pytest.mark.parametrize("counts", [COUNTS, SMALL, (0,) * 12, (5, 0, 0, 5, 0, 0, 5, 0, 0, 0, 0, 5)])
@pytest.mark.parametrize("spec", [SPEC, NOISY], ids=["exact", "noisy"])
def test_a_table_as_it_was_made_holds(counts, spec):
    content = made(counts, spec)
    assert codes(plain(content), content.facts, spec) == set()


@pytest.mark.parametrize("withheld", ["sex", "day"])
def test_the_partner_that_hides_a_small_number_must_not_be_published(withheld):
    content = made(SMALL)
    columns = plain(content)
    # 60 rows went with 3 missing sexes, 40 malformed days with 4 early ones.
    at = (
        place(columns, "sex", "invalid")
        if withheld == "sex"
        else place(columns, "day", "invalid", "malformed")
    )
    assert columns["withheld"][at]
    put(columns, at, 60.0 if withheld == "sex" else 40.0)
    facts = {**content.facts, "withheld_cells": content.facts["withheld_cells"] - 1}
    assert codes(columns, facts) & {"recoverable", "too-narrow"}


def test_a_small_number_must_not_be_published_nor_one_that_is_not_rounded():
    content = made(SMALL)
    columns = plain(content)
    put(columns, place(columns, "sex", "missing"), 5.0)
    facts = {**content.facts, "withheld_cells": content.facts["withheld_cells"] - 1}
    assert "small-cell" in codes(columns, facts)
    put(columns, place(columns, "sex", "missing"), 3.0)
    assert codes(columns, facts) == {"not-rounded"}


def test_a_share_that_tells_more_than_the_rounded_numbers_is_found():
    content = made(COUNTS)
    columns = plain(content)
    columns["value"][place(columns, "day", "invalid", measure="share")] = 0.148
    assert codes(columns, content.facts) == {"bad-table"}
    hidden = made(SMALL)
    columns = plain(hidden)
    at = place(columns, "sex", "missing", measure="share")
    columns["value"][at], columns["withheld"][at] = 0.003, False
    assert codes(columns, hidden.facts) == {"bad-table"}


def test_where_all_rows_are_withheld_nothing_else_is_published():
    content = made((5, 0, 0, 5, 0, 0, 5, 0, 0, 0, 0, 5))
    columns = plain(content)
    assert all(columns["withheld"])
    at = place(columns, "sex", "missing")
    columns["value"][at], columns["withheld"][at] = 0.0, False
    facts = {**content.facts, "withheld_cells": content.facts["withheld_cells"] - 1}
    assert codes(columns, facts) == {"recoverable"}


def test_a_fact_more_another_one_or_none_is_found():
    content = made(COUNTS)
    columns = plain(content)
    assert codes(columns, {**content.facts, "exactly": 148}) == {"wrong-facts"}
    assert codes(columns, {**content.facts, "minimum_group": 3}) == {"wrong-facts"}
    assert codes(columns, {**content.facts, "withheld_cells": 1}) == {"wrong-facts"}
    assert codes(columns, None) == set()


def test_other_figures_than_the_job_asked_for_are_found():
    content = made(COUNTS)
    columns = plain(content)
    columns["reason"][place(columns, "day", "invalid", "early")] = "of May"
    assert codes(columns, content.facts) == {"bad-table"}
    assert codes(plain(content), content.facts, quality_spec(3, columns=[SEX, NAME])) == {"bad-table"}


def test_noise_that_was_not_paid_for_is_found():
    content = made(COUNTS, NOISY)
    columns = plain(content)
    columns["low"] = [value - 1 for value in columns["value"]]
    columns["high"] = [value + 1 for value in columns["value"]]
    assert codes(columns, content.facts, NOISY) == {"wrong-interval"}
    columns = plain(content)
    columns["low"][1], columns["high"][1] = 0.0, 1.0
    assert "wrong-interval" in codes(columns, content.facts, NOISY)
    small = plain(made(SMALL, NOISY))
    at = place(small, "sex", "missing")
    small["value"][at], small["low"][at], small["high"][at], small["withheld"][at] = 3.0, 0.0, 9.0, False
    assert "small-cell" in codes(small, None, NOISY)
