"""A real geography of 43,112 areas: it adds up, and is no further off than least squares has to be."""

import numpy as np
import pytest

from bench.tree import DATA, errors, geography, levels

SEEDS = range(101, 121)


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the census geography in ../shared/data")
def test_counts_of_a_country_are_off_by_what_least_squares_leaves():
    """20 fixed seeds; over other seeds a false alarm has a chance below 1e-4 at each level."""
    tree, true = geography(DATA)
    assert tree.sizes == (1, 175, 7264, 35672)
    assert true[0].tolist() == [60238038]
    # `errors` refuses a table that does not add up, or has a count below zero.
    off, _ = errors(tree, true, levels(tree), SEEDS)
    # √(2/π)·σ, σ² = 20 at each level, made less by what the levels beside it tell.
    expected = np.array([3.5576, 3.4696, 3.2050, 3.2522])
    deviation = 0.756 * expected / np.sqrt(len(SEEDS) * np.array(tree.sizes) / [1, 1, 2, 2])
    assert np.all(np.abs(off.mean(0) - expected) < 4 * deviation + 0.01)
