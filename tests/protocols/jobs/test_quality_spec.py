"""`quality/1` against vectors made from its text, and what it refuses."""

import json
from collections import Counter
from dataclasses import replace
from datetime import date
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from crosscheck_case import ZERO
from quality_case import DAY, KEY, NAME, OPEN, QUALITY, SEX, quality_case, quality_spec

from protocols.errors import InputError, ProtocolAborted
from protocols.identifiers import area_table, normalise
from protocols.ids import Role
from protocols.jobs.job_type import UNIT, Setup, Unit, source
from protocols.jobs.quality import Params
from protocols.quality_sums import (
    FirstRows,
    QualityInput,
    exact_content,
    flat,
    read_columns,
    withheld_figures,
)
from protocols.tables.layout import Reader
from protocols.wire import Constraints, InputSummary

VECTORS = json.loads((Path(__file__).parents[2] / "vectors/quality.json").read_text("utf-8"))


def columns_of(columns):
    return read_columns(Reader({"columns": columns}, "quality/1"))


def test_rows_are_counted_as_the_text_says():
    vector = VECTORS["counting"]
    spec = quality_spec(columns=vector["columns"], areas="national")
    builder = QUALITY.builder(spec, source(1))
    slots = [column["slot"] for column in vector["columns"]]
    for row in vector["rows"]:
        builder.add({slot: pa.array([value], pa.string()) for slot, value in zip(slots, row, strict=True)})
    found = builder.finish()
    assert isinstance(found, QualityInput)
    expected = [(each["column"], each["part"], each["reason"], each["rows"]) for each in vector["figures"]]
    places = [(place.column, place.part, place.reason) for place in flat(found.columns)]
    assert [(*place, count) for place, count in zip(places, found.counts.tolist(), strict=True)] == expected


@pytest.mark.parametrize("values", [pa.array([1.5, 20240131.0, None]), pa.array([b"x", b"20240131", None])])
def test_a_column_of_days_that_holds_none_is_malformed_all_over(values):
    builder = QUALITY.builder(quality_spec(columns=[DAY]), source(1))
    builder.add({"day": values})
    found = builder.finish()
    assert isinstance(found, QualityInput)
    counted = {
        (place.part, place.reason): count
        for place, count in zip(flat(found.columns), found.counts.tolist(), strict=True)
    }
    assert counted["missing", ""] == 1
    assert counted["invalid", "malformed"] == counted["invalid", ""] == 2
    assert counted["valid", ""] == counted["invalid", "early"] == counted["invalid", "future"] == 0


def test_a_commitment_is_over_what_was_asked_and_counted():
    vector = VECTORS["commitment"]
    columns = columns_of([DAY, NAME])
    assert [column.to_json() for column in columns] == vector["columns"]
    counts = np.array(vector["figures"], dtype=np.int64)
    found = QualityInput(columns, 8, 8, "rules", counts)
    assert found.commitment(bytes.fromhex(vector["salt"])) == vector["digest"]
    assert found.commitment(bytes(32)) != vector["digest"]
    with pytest.raises(ValueError, match="salt"):
        found.commitment(bytes(31))
    assert "148" not in repr(found)


@pytest.mark.parametrize("vector", VECTORS["tables"], ids=lambda vector: vector["comment"])
def test_a_table_withholds_what_the_text_says(vector):
    columns = columns_of([DAY, NAME])
    counts, behind = (np.array(vector[name]) for name in ("counts", "behind"))
    hidden = withheld_figures(columns, counts, behind, least=vector["least"], fewest=vector["fewest"])
    assert np.flatnonzero(hidden).tolist() == vector["withheld"]
    content = exact_content(columns, counts, behind, least=vector["least"], fewest=vector["fewest"], facts={})
    values = content.table.columns["value"][: len(counts)]
    assert [None if np.isnan(value) else value for value in values.tolist()] == vector["shown"]
    assert content.facts["withheld_cells"] == len(vector["withheld"])


@pytest.mark.parametrize("bad", VECTORS["bad params"], ids=lambda bad: bad["comment"])
def test_bad_params_are_refused(bad):
    spec = quality_spec(3)
    params = {**spec.params, **bad["params"]}
    spec = replace(quality_spec(bad["sources"]), params=params)
    with pytest.raises(InputError) as error:
        QUALITY.check(spec)
    assert error.value.code == bad["code"]


def test_one_column_is_not_looked_at_twice():
    spec = quality_spec(3)
    inputs = tuple(replace(i, columns={**i.columns, "name": i.columns["id"]}) for i in spec.inputs)
    with pytest.raises(InputError) as error:
        QUALITY.check(replace(spec, inputs=inputs))
    assert error.value.code == "bad-inputs"


def test_exact_figures_reckon_with_as_many_rows_of_one_person_as_the_policy_lets_be():
    with pytest.raises(InputError) as error:
        QUALITY.builder(quality_spec(3, unit_rows=11), source(1), Unit("code", 12))
    assert error.value.code == "unit-rows"
    QUALITY.builder(quality_spec(3, unit_rows=12), source(1), Unit("code", 12))
    QUALITY.builder(quality_spec(3, rho="0.1", unit_rows=1), source(1), Unit("code", 12))


def test_with_noise_no_unit_has_more_rows_than_are_reckoned_with():
    rows = [{"unit": f"p{n % 5}", "id": None, "name": "x"} for n in range(100)]
    rows += [{"unit": None, "name": "x"} for _ in range(20)]  # of whom, nobody can say
    spec = quality_spec(3, rho="0.1", unit_rows=2)
    builder = QUALITY.builder(spec, source(1), Unit("code", 3))
    for start in range(0, len(rows), 9):
        part = rows[start : start + 9]
        builder.add(
            {
                UNIT if slot == "unit" else slot: pa.array([row.get(slot) for row in part], pa.string())
                for slot in ("unit", "id", "sex", "day", "name")
            }
        )
    found = builder.finish()
    assert found.rows == 120
    assert found.counts[0] == 2 * 5 + 20
    assert found.quality()["over-bound"] == 90


@pytest.mark.parametrize("kind", ["code", "resident-id"])
def test_the_first_rows_of_each_unit_are_those_a_slow_count_keeps(kind):
    day, areas = date(2026, 1, 1), area_table("national")
    draw = np.random.default_rng(7)
    ids = VECTORS["counting"]["rows"]
    names = [*dict.fromkeys(row[0] for row in ids), *(f"u{n}" for n in range(12))]
    valid = normalise(pa.array(names, pa.string()), "resident-id", as_of=day, areas=areas)
    readable = {names[n] for n in valid.rows} if kind == "resident-id" else {*names} - {"", None}
    assert len(readable) in (2, 17)
    first = FirstRows(kind, 3, as_of=day, areas=areas, seed=bytes(32))
    seen: Counter[str | None] = Counter()
    for _ in range(40):
        units = [names[n] for n in draw.integers(0, len(names), int(draw.integers(0, 30)))]
        keep = first.take(pa.array(units, pa.string()))
        expected = []
        for unit in units:
            expected.append(unit not in readable or seen[unit] < 3)
            seen[unit] += 1
        assert keep.tolist() == expected


def setup_of(case, **constraints):
    inputs = {
        role: InputSummary(100, 100, 100, ZERO, "2026-01-01", ZERO, "r")
        for role in case.spec.roles
        if role != "aggregator"
    }
    return Setup(case.spec, 1, bytes(32), Constraints(**constraints), inputs)


@pytest.mark.parametrize(
    ("constraints", "code"),
    [({"min_organisations": 4}, "guard-organisations"), ({"min_sources": 2}, "guard-sources")],
)
def test_a_guard_ends_it_before_anything_leaves(constraints, code):
    case = quality_case([[], [], []])
    with pytest.raises(ProtocolAborted) as error:
        QUALITY.party(Role("aggregator"), setup_of(case, **constraints), None, bytes)
    assert error.value.code == code


def test_a_party_takes_no_input_of_another_job():
    one, other = quality_case([[]] * 3), quality_case([[]] * 3, columns=[KEY, SEX])
    with pytest.raises(TypeError):
        QUALITY.party(source(1), setup_of(one), other.inputs[source(1)], bytes)


def test_each_figure_with_noise_costs_what_the_job_says():
    spec = quality_spec(4, rho="0.3", unit_rows=2)
    cost = QUALITY.cost(spec, source(1), OPEN)
    assert (cost.rho, cost.queries) == (Params.of(spec).budget.amount, 1)
    noises, _ = Params.of(spec).noise()
    # rows; id and its two kinds of reasons; sex; day and its reasons; name
    assert [noise.size for noise in noises] == [1, 3, 15, 2, 3, 3, 3, 2]
    # One weight and one sensitivity each: one width.
    assert len({noise.half_width() for noise in noises[1:]}) == 1


def test_a_forecast_says_how_wide_intervals_are_before_anything_is_asked():
    spec = quality_spec(3, rho="0.1", persons_in=1)
    wide, close = QUALITY.forecast(spec, [Fraction(1, 10), Fraction(1)])
    assert wide.within > 2 * close.within > 0
    with pytest.raises(InputError, match="exact"):
        QUALITY.forecast(quality_spec(3), [Fraction(1)])
