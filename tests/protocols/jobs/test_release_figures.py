"""From noisy totals to what is released: right without noise, joint as single, intervals that hold."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crosscheck_case import seeded
from release_case import (
    ASKS,
    AXIS,
    OPEN,
    RELEASE,
    STREETS,
    Row,
    case_of,
    planned,
    release_case,
    release_spec,
    tallied,
)
from scipy.stats import binom

from protocols.dp.mechanism import Noise, calibrate
from protocols.errors import InputError
from protocols.jobs.job_type import Content, source
from protocols.releases import plan as plans
from protocols.releases.figures import content
from protocols.wire import Constraints, JobSpec

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[2] / "vectors/release.json").read_text("utf-8"))


@dataclass(frozen=True)
class Silent(Noise):
    """Noise as it is reckoned with, but nothing is added."""

    def draw(self, rand):
        return np.zeros(self.size, np.int64)


@pytest.fixture
def silent(monkeypatch) -> Iterator[None]:
    def without(vectors, budget, **counts):
        noises, cost = calibrate(vectors, budget, **counts)
        fields = ("kind", "scale", "spread", "honest", "contributors", "size")
        return tuple(Silent(*(getattr(noise, name) for name in fields)) for noise in noises), cost

    monkeypatch.setattr(plans, "calibrate", without)
    plans.plan.cache_clear()
    yield
    plans.plan.cache_clear()


def people(count: int, first: int = 0) -> list[Row]:
    """Return so many persons, spread unevenly over streets, ages, incomes and jobs."""
    return [
        {
            "unit": f"person {i}",
            "street": STREETS[(0, 0, 1, 2, 2, 2, 3, 3, 3, 4, 1)[i % 11]],
            "age": (7 * i) % 100,
            "income": float(37 * i % 6000) if i % 13 else None,
            "job": ("nurse", "cook", "baker")[i % 3] if i % 50 else f"rare {i}",
        }
        for i in range(first, first + count)
    ]


def cells(released: Content) -> dict[tuple[str, ...], tuple[float, float, float, bool]]:
    """Return (labels and measure) → (value, low, high, withheld)."""
    columns = released.table.columns
    labels = [name for name in columns if name not in ("value", "low", "high", "withheld")]
    rows = zip(*(columns[name].tolist() for name in labels), strict=True)
    numbers = zip(*(columns[name].tolist() for name in ("value", "low", "high", "withheld")), strict=True)
    return dict(zip(rows, numbers, strict=True))


def truth(statistic: str, rows: list[Row]) -> dict[tuple[str, ...], float]:
    """Return what an honest clerk would count, apart from quantiles."""

    def age(row: Row) -> str:
        return "60+" if row["age"] >= 60 else "[18, 60)" if row["age"] >= 18 else "[0, 18)"

    streets = Counter(row["street"] for row in rows)
    low = Fraction(-10 if statistic == "sum" else 0)
    paid: dict[str, list[Fraction]] = {street: [] for street in STREETS}
    for row in rows:
        if row["income"] is not None:
            paid[row["street"]].append(min(max(Fraction(row["income"]), low), Fraction(5000)))
    match statistic:
        case "count":
            return {("persons",): len(rows)}
        case "histogram":
            cells = Counter((row["street"], age(row)) for row in rows)
            return {(*cell, "persons"): count for cell, count in cells.items()}
        case "tree":
            levels = Counter(row["street"][:length] for row in rows for length in (0, 6, 9))
            return {(area, "persons"): count for area, count in levels.items()}
        case "sum":
            sums = {(street, "sum(income)"): float(sum(paid[street])) for street in streets}
            return sums | {(street, "count(income)"): len(paid[street]) for street in streets}
        case "mean":
            means = {
                (street, "mean(income)"): float(sum(paid[street]) / len(paid[street])) for street in streets
            }
            return means | {(street, "count(income)"): len(paid[street]) for street in streets}
        case _:
            jobs = Counter(row["job"] for row in rows)
            return {(job, "persons"): count for job, count in jobs.items() if "rare" not in job}


# ---------------------------------------------------------------- without noise


@pytest.mark.parametrize("statistic", ASKS)
@pytest.mark.parametrize("how", [{"rho": "0.5"}, {"epsilon": "2"}])
def test_without_noise_every_number_is_right(silent, statistic, how):
    rows = people(600)
    released = cells(release_case(release_spec(statistic, **how), [rows]).released())
    if statistic == "quantile":
        ages = sorted(row["age"] for row in rows)
        for share, (value, low, high, withheld) in zip((60, 300, 540), released.values(), strict=True):
            # The value is within its bin, and the true quantile is between the bounds.
            assert low <= ages[share - 1] < high
            assert low <= value <= high
            assert not withheld
        return
    expected = truth(statistic, rows)
    assert released.keys() == expected.keys()
    for cell, (value, low, high, withheld) in released.items():
        assert value == pytest.approx(expected[cell], rel=1e-12)
        assert low <= value <= high
        assert not withheld


@pytest.mark.parametrize("statistic", [each for each in ASKS if each != "keys"])
@pytest.mark.parametrize("how", [{"rho": "0.5"}, {"epsilon": "2"}])
@pytest.mark.parametrize("mode", ["bfv", "mask"])
def test_without_noise_departments_together_release_what_one_with_all_rows_would(
    silent, statistic, how, mode
):
    parts = [people(200), people(150, 200), people(250, 350)]
    joint = release_case(release_spec(statistic, 3, mode=mode, **how), parts).released()
    whole = release_case(release_spec(statistic, **how), [[row for part in parts for row in part]]).released()
    together, alone = cells(joint), cells(whole)
    assert together.keys() == alone.keys()
    for cell, (value, low, high, _) in together.items():
        assert value == alone[cell][0]
        # More noise is needed where one person may be in three departments, so intervals are no narrower.
        assert low <= alone[cell][1]
        assert high >= alone[cell][2]


def test_a_joint_release_really_has_noise_of_every_department():
    spec = release_spec("histogram", 3, rho="0.001")
    values = [cells(release_case(spec, [people(2000)] * 3, seed=seed).released()) for seed in (1, 2)]
    assert values[0] != values[1]


# ---------------------------------------------------------------- intervals


@pytest.mark.parametrize(
    ("statistic", "sources", "how"),
    [
        ("count", 1, {"epsilon": "0.3"}),
        ("histogram", 1, {"rho": "0.01"}),
        ("histogram", 1, {"rho": "3"}),
        ("sum", 1, {"rho": "0.05"}),
        ("sum", 1, {"epsilon": "0.5"}),
        ("mean", 1, {"rho": "0.05"}),
        ("mean", 1, {"epsilon": "0.5"}),
        ("tree", 1, {"rho": "0.01"}),
        ("tree", 1, {"epsilon": "0.2"}),
        ("tree", 1, {"rho": "6"}),
        ("keys", 1, {"rho": "0.05"}),
        ("histogram", 3, {"rho": "0.05"}),
        ("histogram", 3, {"epsilon": "0.5"}),
    ],
)
def test_intervals_hold_the_true_number_as_often_as_they_say(statistic, sources, how):
    # Each number misses its interval in 5 of 100 runs at most. So many misses that a fair interval has them
    # with a chance below 1e-8 are too many; in all, a false alarm has a chance below 1e-6.
    runs = 250 if sources == 1 else 40
    spec = release_spec(statistic, sources, **how)
    rows = people(900)
    expected = truth(statistic, [row for _ in range(sources) for row in rows])
    tallies = {source(i): tallied(spec, rows, number=i) for i in range(1, sources + 1)}
    misses: Counter[tuple[str, ...]] = Counter()
    for run in range(runs):
        for cell, (value, low, high, withheld) in cells(case_of(spec, tallies, seed=run).released()).items():
            assert withheld or low <= value <= high
            misses[cell] += not withheld and not low <= expected[cell] <= high
    assert max(misses.values()) <= binom.ppf(1 - 1e-8, runs, 0.05)
    assert set(misses) <= set(expected)


@pytest.mark.parametrize("how", [{"rho": "0.05"}, {"epsilon": "0.5"}])
def test_bounds_of_quantiles_hold_the_true_one_as_often_as_they_say(how):
    # As above.
    spec, rows = release_spec("quantile", **how), people(900)
    ages = sorted(row["age"] for row in rows)
    tallies = {source(1): tallied(spec, rows)}
    misses = Counter[int]()
    for run in range(250):
        numbers = cells(case_of(spec, tallies, seed=run).released()).values()
        for share, (_, low, high, _) in zip((90, 450, 810), numbers, strict=True):
            misses[share] += not low <= ages[share - 1] < high
    assert max(misses.values()) <= binom.ppf(1 - 1e-8, 250, 0.05)


def shown_of_a_sparse_table(filled: int, minimum: int) -> tuple[int, float]:
    """Return how many of 10,000 cells are shown in 20 runs, every `filled`-th of 20 persons and the others
    empty, and what part of them lies in its interval. SPEC.md has the figures.
    """
    axis = {"slot": "street", "values": [str(i) for i in range(10_000)]}
    made = planned(release_spec("histogram", rho="0.02", axes=[axis]))
    true = np.where(np.arange(10_000) % filled == 0, 20, 0)
    shown = held = 0
    for run in range(20):
        noise = made.noises[0].draw(seeded(f"sparse/{run}"))
        released = content(made, true + noise, minimum)
        assert released.facts["shown_from"] == minimum
        columns = released.table.columns
        there = ~columns["withheld"]
        assert there.sum() + released.facts["withheld_cells"] == 10_000
        shown += int(there.sum())
        held += int((there & (columns["low"] <= true) & (true <= columns["high"])).sum())
    return shown, held / shown


@pytest.mark.long  # thirty tables of 10,000 cells
def test_of_cells_that_are_shown_fewer_lie_in_their_intervals_where_most_are_empty():
    # The half width is 10. What is shown is what has high noise: intervals hold before the choice, not after.
    assert planned(release_spec("histogram", rho="0.02")).noises[0].half_width() == 10
    few, held = shown_of_a_sparse_table(100, 10)
    assert few / 200_000 == pytest.approx(0.037, abs=0.003)
    assert held == pytest.approx(0.55, abs=0.03)
    _, held = shown_of_a_sparse_table(1000, 10)
    assert held == pytest.approx(0.39, abs=0.03)
    # To show only what has an interval above 0 makes it worse: an empty cell that is shown is then a miss.
    for filled in (100, 1000):
        assert shown_of_a_sparse_table(filled, 11)[1] < shown_of_a_sparse_table(filled, 10)[1] - 0.15
    # Where no cell is near the bound, the choice takes nothing away.
    assert shown_of_a_sparse_table(1, 10)[1] >= 0.945


def test_the_sentence_says_the_width_that_the_table_has():
    released = release_case(release_spec("histogram", rho="0.01"), [people(3000)]).released()
    for value, low, high, _ in cells(released).values():
        assert (value - low, high - value) == (14, 14)
    assert released.facts["within"] == "Each count is within ±14 with 95 %"
    assert released.facts["within_zh"] == "每个计数有 95 % 的把握在 ±14 以内"


# ---------------------------------------------------------------- what is withheld, and what is said of it


def test_a_cell_of_fewer_noisy_rows_than_the_strictest_minimum_is_withheld_with_all_its_numbers(silent):
    rows = [{"unit": str(i), "street": STREETS[0 if i < 10 else 1], "income": 1.0} for i in range(19)]
    for statistic in ("histogram", "sum", "mean"):
        spec = release_spec(statistic, axes=[AXIS])
        released = release_case(spec, [rows], constraints=replace(OPEN, min_group_size=10)).released()
        found = cells(released)
        shown = {cell[0] for cell, (*_, withheld) in found.items() if not withheld}
        assert shown == {STREETS[0]}
        for value, low, high, withheld in found.values():
            assert {isnan(value), isnan(low), isnan(high)} == {withheld}
        assert released.facts["withheld_cells"] == sum(withheld for *_, withheld in found.values())
        assert released.facts["minimum_group"] == 10


@pytest.mark.parametrize(("sources", "unit_rows", "shown"), [(1, 1, True), (1, 3, False), (3, 1, False)])
def test_the_minimum_is_of_persons_who_may_count_several_times(silent, sources, unit_rows, shown):
    spec = release_spec("count", sources, unit_rows=unit_rows)
    tables = [[{"unit": str(i)} for i in range(20 // sources)] for _ in range(sources)]
    limits = Constraints(min_group_size=18)
    ((_, _, _, withheld),) = cells(release_case(spec, tables, constraints=limits).released()).values()
    assert withheld != shown


def test_without_a_rule_the_minimum_is_that_of_government(silent):
    spec = release_spec("count")
    for persons, hidden in ((9, True), (10, False)):
        case = release_case(spec, [[{"unit": str(i)} for i in range(persons)]], constraints=Constraints())
        ((_, _, _, withheld),) = cells(case.released()).values()
        assert withheld == hidden


def test_the_quantile_of_nothing_and_the_mean_of_nobody_are_withheld(silent):
    for statistic in ("quantile", "mean", "count", "tree"):
        found = cells(release_case(release_spec(statistic), [[]]).released())
        assert all(withheld for *_, withheld in found.values())
    assert release_case(release_spec("keys"), [[]]).released().table.rows == 0


def test_a_name_below_the_minimum_is_not_shown_beside_a_withheld_number(silent):
    rows = [{"unit": str(i), "job": "nurse" if i < 60 else "cook"} for i in range(100)]
    limits = replace(OPEN, min_group_size=50)
    released = release_case(release_spec("keys"), [rows], constraints=limits).released()
    assert list(cells(released)) == [("nurse", "persons")]
    assert released.facts["least_named"] == 50


@pytest.mark.parametrize("how", [{"rho": "0.01"}, {"epsilon": "0.1"}])
def test_counts_are_whole_and_never_below_zero_and_a_tree_adds_up_exactly(how):
    for seed in range(20):
        released = cells(release_case(release_spec("tree", **how), [people(60)], seed=seed).released())
        counts = {cell[0]: value for cell, (value, *_, withheld) in released.items() if not withheld}
        for area, value in counts.items():
            assert value >= 0
            assert value == int(value)
            inner = {6: 9, 0: 6}.get(len(area))
            parts = [other for other in released if inner == len(other[0]) and other[0].startswith(area)]
            if parts and all(part[0] in counts for part in parts):
                assert sum(counts[part[0]] for part in parts) == value
        histogram = release_case(release_spec("histogram", **how), [people(10)], seed=seed).released()
        for value, low, _, withheld in cells(histogram).values():
            assert withheld or (value >= 1 and low >= 0 and value == int(value))


@pytest.mark.parametrize("statistic", ASKS)
def test_the_facts_say_how_it_was_made_and_what_the_interval_leaves_out(statistic):
    sources = 1 if statistic == "keys" else 4
    spec = release_spec(statistic, sources, epsilon="1.5", unit_rows=2)
    facts = release_case(spec, [people(50)] * sources).released().facts
    assert {
        name: facts[name] for name in list(facts) if not isinstance(facts[name], str) or name in EXACT
    } == {
        "statistic": statistic,
        "mechanism": "discrete Laplace",
        "epsilon": "1.5",
        **(
            {"delta": "0.000001", "least_named": facts.get("least_named")}
            if statistic == "keys"
            else {"shown_from": 2 * sources}
        ),
        "contributors": sources,
        "honest_contributors": max(sources - 1, 1),
        "rows_per_person": 2,
        "departments_per_person": sources,
        "confidence": "95 %",
        "minimum_group": 0,
        "withheld_cells": facts["withheld_cells"],
    }
    for name in ("within", "suppression", "not_covered"):
        assert str(facts[name]).isascii() or "±" in str(facts[name])
        assert any("\u4e00" <= letter <= "\u9fff" for letter in str(facts[f"{name}_zh"]))
    assert "95 %" in str(facts["within"])
    assert "noise and suppression apply to the same cells" in str(facts["suppression"])
    assert "before it is decided what is shown" in str(facts["not_covered"])
    assert "决定是否公布之前" in str(facts["not_covered_zh"])


EXACT = {"statistic", "mechanism", "epsilon", "delta", "confidence"}


# ---------------------------------------------------------------- vectors


def spec_of(vector: dict[str, Any]) -> JobSpec:
    return release_spec(vector["statistic"], vector["sources"], **vector["params"])


@pytest.mark.parametrize("vector", VECTORS["plans"], ids=lambda vector: vector["name"])
def test_a_plan_is_what_it_always_was(vector):
    made = planned(spec_of(vector))
    assert vector["vectors"] == [
        [each.name, each.size, each.l1, each.l2_squared, str(each.weight)] for each in made.vectors
    ]
    assert vector["noises"] == [[each.kind, each.scale, float(each.spread).hex()] for each in made.noises]
    assert vector["cost"] == made.cost.encode()
    assert vector["bound"] == str(made.bound)


@pytest.mark.parametrize("vector", VECTORS["tables"], ids=lambda vector: vector["name"])
def test_noisy_totals_make_the_same_table_everywhere(vector):
    totals = np.array(vector["totals"], np.int64)
    released = content(planned(spec_of(vector)), totals, vector["minimum"], vector.get("keys", ()))
    rows = [
        [None if isinstance(each, float) and isnan(each) else each for each in row] for row in released.table
    ]
    assert json.loads(json.dumps(rows, default=lambda each: each.item())) == vector["rows"]
    assert released.facts["within"] == vector["within"]


@pytest.mark.parametrize("vector", VECTORS["bad"], ids=lambda vector: vector["name"])
def test_a_bad_spec_is_refused_at_its_step(vector):
    with pytest.raises(InputError) as error:
        RELEASE.check(spec_of(vector))
    assert error.value.code == vector["code"]
