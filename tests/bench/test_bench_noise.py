"""Noise is measured from nothing, and noise of a wrong width is no measurement."""

from dataclasses import replace

import numpy as np
import pytest

from bench import noise
from bench.rows import Results


def test_a_million_exact_values_are_measured_beside_rounded_floats(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.rows.OUT", tmp_path)
    monkeypatch.setattr("bench.rows.commit", lambda: "abc1234")
    monkeypatch.setattr(noise, "VALUES", 20_000)
    monkeypatch.setattr(noise, "TURNS", 1)
    monkeypatch.setattr(noise.exact, "SMALL", 16_000)
    results = Results("noise")
    noise.measure(results, long=False)
    assert [(row.what, row.unit, row.peer is not None) for row in results.rows] == [
        ("exact 1e6", "s", True),
        ("laplace 1e6", "s", True),
        ("polya 1e6", "s", False),
        ("polya wide 1e6", "s", False),
        ("opendp 16000", "s", False),
    ]
    assert all(row.value > 0 for row in results.rows)


def test_the_figure_is_of_a_million_values_that_no_library_draws():
    ours = noise._noise(noise.VALUES, 1, noise.RHO, 1)
    assert ours.size == 1_000_000 > noise.exact.SMALL
    assert noise.noise.has_gaussian_table(ours.spread)


@pytest.mark.parametrize(
    "draw",
    [lambda ours: noise._normal(replace(ours, spread=ours.spread * 2)), lambda ours: _drawn(ours)[1:]],
    ids=["wider", "one too few"],
)
def test_values_of_another_width_or_count_stop_the_measurement(draw):
    ours = noise._noise(20_000, 1, noise.RHO, 1)
    assert noise.timed(ours, noise._normal, 1) > 0
    with pytest.raises(SystemExit):
        noise.timed(ours, draw, 1)


def test_the_tables_are_made_again_for_every_turn():
    ours, made = noise._noise(20_000, 1, noise.RHO, 1), []
    noise.timed(
        ours, lambda asked: made.append(noise.noise.discrete_gaussian.cache_info()) or _drawn(asked), 3
    )
    assert [info.currsize for info in made] == [0, 0, 0]


def _drawn(asked):
    return asked.draw(np.random.Generator(np.random.Philox(1)).bytes)
