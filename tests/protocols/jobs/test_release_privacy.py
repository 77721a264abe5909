"""One person more or less: how far every vector moves, how much noise hides it, what an attacker can tell.

Noise is drawn from the system's randomness and cannot be seeded, so statistical tests state their chance of a
false alarm.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from math import exp, log
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from release_case import ASKS, AXIS, RELEASE, STREETS, Row, case_of, params_of, planned, release_spec, tallied
from scipy.stats import beta

from protocols.dp import mechanism
from protocols.jobs.job_type import Unit, source
from protocols.party import Finished
from protocols.releases.params import Params
from protocols.releases.plan import counted, vectors
from protocols.tables import numbers, tally
from protocols.wire import JobSpec

# ---------------------------------------------------------------- one person moves no vector too far


def summed(spec: JobSpec, tables: Sequence[Sequence[Row]], unit: Unit) -> list[Counter[Any]]:
    """Return every vector, added up over all departments, as what is not zero of it; keys by their names."""
    params = params_of(spec)
    found: list[Counter[Any]] = [Counter() for _ in vectors(params)]
    for number, rows in enumerate(tables, start=1):
        prepared = tallied(spec, rows, unit=unit, number=number)
        names: Sequence[Any] = prepared.keyed()[0] if params.keys else range(1 << 20)
        for total, part in zip(found, counted(params, prepared), strict=True):
            total.update({names[at]: int(part[at]) for at in np.flatnonzero(part)})
    return found


def moved(spec: JobSpec, tables: Sequence[Sequence[Row]], person: str, unit: Unit) -> list[tuple[int, int]]:
    """Return by how much each vector moves, in ℓ1 and squared ℓ2, when a person leaves all departments."""
    without = [[row for row in rows if row["unit"] != person] for rows in tables]
    return apart(summed(spec, tables, unit), summed(spec, without, unit))


def apart(ones: Sequence[Counter[Any]], others: Sequence[Counter[Any]]) -> list[tuple[int, int]]:
    pairs = zip(ones, others, strict=True)
    steps = [[one[cell] - other[cell] for cell in one.keys() | other.keys()] for one, other in pairs]
    return [(sum(map(abs, step)), sum(each**2 for each in step)) for step in steps]


def beyond(spec: JobSpec, found: Sequence[tuple[int, int]]) -> list[str]:
    """Return the vectors that move by more than the job states."""
    stated = vectors(params_of(spec))
    return [
        vector.name
        for vector, (l1, l2) in zip(stated, found, strict=True)
        if l1 > vector.l1 or l2 > vector.l2_squared
    ]


PEOPLE = ("a", "b", "c")
AMOUNTS = st.one_of(
    st.none(),
    st.integers(-6000, 6000),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([-10.0, 0.0, 2500.0, 4999.96, 5000.0, 1e300]),
)
ROWS = st.fixed_dictionaries(
    {
        "unit": st.sampled_from(PEOPLE),
        "street": st.sampled_from([*STREETS[:2], STREETS[2], "990199001", None]),
        "age": st.one_of(st.none(), st.integers(-1, 130)),
        "income": AMOUNTS.map(lambda amount: None if amount is None else float(amount)),
        "job": st.sampled_from(["nurse", "cook", "baker", "", None]),
        "latest": st.one_of(st.none(), st.integers(0, 3)),
    }
)


@st.composite
def releases(draw: Callable[..., Any]) -> tuple[JobSpec, list[list[Row]], Unit]:
    statistic = draw(st.sampled_from(sorted(ASKS)))
    sources = 1 if statistic == "keys" else draw(st.sampled_from([1, 2, 3]))
    unit_rows = draw(st.sampled_from([1, 2, 3]))
    spec = release_spec(statistic, sources, unit_rows=unit_rows)
    if draw(st.booleans()):
        inputs = (replace(each, columns={**each.columns, "latest": "month"}) for each in spec.inputs)
        spec = replace(spec, inputs=tuple(inputs))
    tables = [draw(st.lists(ROWS, max_size=9)) for _ in range(sources)]
    return spec, tables, Unit("code", draw(st.sampled_from([1, 2, 1000])))


@settings(max_examples=120, deadline=None)
@given(releases())
def test_no_person_moves_any_vector_by_more_than_its_noise_is_made_for(case):
    spec, tables, unit = case
    everybody = summed(spec, tables, unit)
    for person in PEOPLE:
        without = [[row for row in rows if row["unit"] != person] for rows in tables]
        assert beyond(spec, apart(everybody, summed(spec, without, unit))) == []


def worst(**more: Any) -> list[Row]:
    """Return the rows of somebody who is in the data twenty times, with amounts far beyond all bounds."""
    row = {"unit": "a", "street": STREETS[0], "age": 30, "income": 1e9, "job": "nurse"}
    return [{**row, **more} for _ in range(20)]


@pytest.mark.parametrize("statistic", ASKS)
def test_the_bound_is_reached_by_somebody_with_many_rows_in_every_department(statistic):
    sources = 1 if statistic == "keys" else 3
    spec = release_spec(statistic, sources, unit_rows=4)
    rows = worst() if statistic != "keys" else [{**row, "job": str(i)} for i, row in enumerate(worst())]
    unit = Unit("code", 1000)
    stated = [(vector.l1, vector.l2_squared) for vector in vectors(params_of(spec))]
    found = moved(spec, [rows] * sources, "a", unit)
    assert found == stated


@pytest.mark.parametrize("bounds", [("0", "5"), ("-5", "0"), ("-3", "4"), ("2", "4")])
def test_the_bound_of_a_mean_holds_at_both_ends_of_any_range(bounds):
    spec = release_spec("mean", measure={"slot": "income", "bounds": [*bounds]})
    ends = [moved(spec, [worst(income=amount)], "a", Unit("code", 1000))[0] for amount in (-1e9, 1e9)]
    (sums, _) = vectors(params_of(spec))
    assert max(ends) == (sums.l1, sums.l2_squared)


@pytest.mark.parametrize("statistic", ASKS)
def test_without_bounded_contributions_every_statistic_gives_somebody_away(statistic, monkeypatch):
    monkeypatch.setattr(tally, "_bounded", lambda units, *_: np.ones(len(units), dtype=np.bool_))
    spec = release_spec(statistic)
    rows = [{**row, "job": str(i)} for i, row in enumerate(worst())]
    names = [vector.name for vector in vectors(params_of(spec))]
    assert beyond(spec, moved(spec, [rows], "a", Unit("code", 1000))) == names


@pytest.mark.parametrize("statistic", ["sum", "mean"])
def test_without_clamped_amounts_a_sum_gives_somebody_away(statistic, monkeypatch):
    honest = numbers.scaled
    monkeypatch.setattr(numbers, "scaled", lambda found, digits, *_: honest(found, digits, -(10**12), 10**12))
    spec = release_spec(statistic)
    assert beyond(spec, moved(spec, [worst()], "a", Unit("code", 1000))) == ["sum"]


def test_persons_in_fewer_departments_than_the_job_says_are_hidden_all_the_same_and_in_more_are_not():
    rows, unit = worst(), Unit("code", 1000)
    spec = release_spec("count", 3, persons_in=2)
    assert beyond(spec, moved(spec, [rows, rows, []], "a", unit)) == []
    assert beyond(spec, moved(spec, [rows, rows, rows], "a", unit)) == ["count"]


# ---------------------------------------------------------------- the noise that was promised


def noise_of(spec: JobSpec, number: int, runs: int) -> np.ndarray:
    """Return the noise that one department adds, in original units: what it sends less what it counted."""
    made, empty = planned(spec), tallied(spec, [], number=number)
    scale = np.concatenate([np.full(v.size, n.scale) for v, n in zip(made.vectors, made.noises, strict=True)])
    return (
        np.stack([made.noisy(empty, np.random.default_rng([number, run]).bytes) for run in range(runs)])
        / scale
    )


def promised(params: Params) -> float:
    """Return the variance that hides one person: Δ²/2ρ, or that of discrete Laplace noise of scale Δ/ε."""
    (vector,) = vectors(params)
    amount = params.budget.amount
    if params.budget.notion == "zcdp":
        return float(Fraction(vector.l2_squared) / (2 * amount))
    alpha = exp(-amount / vector.l1)
    return 2 * alpha / (1 - alpha) ** 2


def together(spec: JobSpec, numbers: Sequence[int]) -> float:
    """Return the variance of what these departments add together, from 300 runs of 15 cells: 4500 values.

    Its own standard deviation is at most sqrt(5/4500) = 3.4 % of it (discrete Laplace noise, kurtosis 6), so
    16 % are off by chance once in 1e6.
    """
    return float(np.var(sum(noise_of(spec, number, 300) for number in numbers)))


@pytest.mark.parametrize("how", [{"rho": "0.5"}, {"rho": "2"}, {"epsilon": "1"}])
@pytest.mark.parametrize("sources", [2, 3, 4])
def test_what_the_others_add_is_enough_without_the_key_holders_share(how, sources):
    spec = release_spec("histogram", sources, **how)
    others = range(2, sources + 1)
    assert together(spec, others) > 0.84 * promised(params_of(spec))
    if sources > 2:
        assert together(spec, others[1:]) < 0.84 * promised(params_of(spec))


@pytest.mark.parametrize("how", [{"rho": "0.5"}, {"epsilon": "1"}])
def test_with_colluding_departments_fewer_are_enough(how):
    params = params_of(release_spec("histogram", 6, colluding=2, **how))
    assert params.honest == 3
    spec = release_spec("histogram", 6, colluding=2, **how)
    assert together(spec, (4, 5, 6)) > 0.84 * promised(params)


@pytest.mark.parametrize("how", [{"rho": "0.5"}, {"epsilon": "1"}])
def test_either_of_two_departments_adds_the_whole_noise(how):
    one = planned(release_spec("histogram", 1, **how)).noises
    two = planned(release_spec("histogram", 2, persons_in=1, **how)).noises
    assert [(n.kind, n.scale, n.spread) for n in one] == [(n.kind, n.scale, n.spread) for n in two]


def test_every_part_of_a_release_has_its_share_of_the_budget():
    for statistic in ASKS:
        for sources in (1, 4):
            if statistic == "keys" and sources > 1:
                continue
            made = planned(release_spec(statistic, sources, rho="0.5", unit_rows=3))
            spent = sum(
                Fraction(vector.l2_squared) / (2 * made.params.honest * noise.spread / noise.scale**2)
                for vector, noise in zip(made.vectors, made.noises, strict=True)
            )
            assert 0.4999 < spent <= Fraction(1, 2)


def test_fresh_noise_is_drawn_for_every_attempt():
    spec = release_spec("histogram", 1, rho="0.001")
    runs = noise_of(spec, 1, 2)
    assert not np.array_equal(runs[0], runs[1])


# ---------------------------------------------------------------- what an attacker can tell


def outputs(spec: JobSpec, rows: Sequence[Row], runs: int) -> list[float]:
    """Run the whole job so often, from rows to the released number."""
    prepared = {source(1): tallied(spec, rows)}
    setup = case_of(spec, prepared).setup
    found = []
    for run in range(runs):
        party = RELEASE.party(source(1), setup, prepared[source(1)], np.random.default_rng(run).bytes)
        step = party.start()
        assert isinstance(step, Finished)
        found.append(float(step.output[0].table.columns["value"][0]))
    return found


def told_apart(spec: JobSpec, person: Sequence[Row], runs: int) -> float:
    """Return ε that the released numbers surely have at least: a lower bound with confidence 1 - 2e-6.

    The attacker says "she is in it" from a number on that was fixed beforehand. Her presence makes that more
    likely by a factor of at most e^ε; both chances are bounded by Clopper and Pearson.
    """
    others: list[Mapping[str, Any]] = [{"unit": f"other {i}"} for i in range(200)]
    present, absent = outputs(spec, [*others, *person], runs), outputs(spec, others, runs)
    hits, alarms = (sum(value >= 200 + len(person) for value in each) for each in (present, absent))
    least = beta.ppf(1e-6, hits, runs - hits + 1)
    most = beta.ppf(1 - 1e-6, alarms + 1, runs - alarms)
    return log(least / most)


PERSON_ROWS: list[Mapping[str, Any]] = [{"unit": "she"}] * 2


def test_an_attacker_learns_no_more_of_one_person_than_the_job_says():
    # False alarm: the bound exceeds the true ε with a chance of at most 2e-6.
    found = told_apart(release_spec("count", epsilon="1"), PERSON_ROWS[:1], 2000)
    assert 0.5 < found <= 1
    assert told_apart(release_spec("count", epsilon="2", unit_rows=2), PERSON_ROWS, 1000) <= 2


def test_the_same_attacker_finds_a_person_whose_rows_are_not_bounded(monkeypatch):
    monkeypatch.setattr(tally, "_bounded", lambda units, *_: np.ones(len(units), dtype=np.bool_))
    assert told_apart(release_spec("count", epsilon="1"), PERSON_ROWS, 2000) > 1


def test_the_same_attacker_finds_a_person_behind_half_the_noise(monkeypatch):
    honest = mechanism.exact.discrete_laplace
    monkeypatch.setattr(mechanism.exact, "discrete_laplace", lambda scale, size: honest(scale / 2, size))
    assert told_apart(release_spec("count", epsilon="1"), PERSON_ROWS[:1], 2000) > 1


def test_an_unknown_key_of_one_person_is_not_named():
    # δ = 1e-6 for each run: a false alarm has a chance of 2e-3 · 1e-3.
    spec = release_spec("keys", unit_rows=5, rho="1")
    rows = [{"unit": "she", "job": f"rare {i}"} for i in range(5)]
    rows += [{"unit": f"other {i}", "job": "common"} for i in range(300)]
    prepared = {source(1): tallied(spec, rows)}
    for run in range(200):
        named = case_of(spec, prepared, seed=run).released().table.columns["job"].tolist()
        assert named == ["common"]


def test_an_axis_of_a_single_cell_has_noise_too():
    spec = release_spec("histogram", axes=[{**AXIS, "values": [STREETS[0]]}], rho="0.01")
    values = {float(each) for each in noise_of(spec, 1, 50).ravel()}
    assert len(values) > 5
