"""Keys that no list names: one unit's own is released no more often than δ says, but as soon as it may."""

from dataclasses import replace
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.dp.mechanism import Budget, Noise, Vector, calibrate
from protocols.dp.unknown_keys import release_keys, threshold
from protocols.errors import InputError

KINDS = st.sampled_from(["gaussian", "laplace"])
SPREADS = st.fractions(Fraction(1, 4), 60, max_denominator=1000)
DELTAS = st.sampled_from([Fraction(1, 1000), Fraction("1e-6"), Fraction("1e-9"), Fraction("1e-15")])


def noise(kind, spread, scale=1):
    return Noise(kind, scale, Fraction(spread), 1, 1, 1)


def weights(kind, spread):
    """Return the weights of 0, 1, 2, … to 60 digits."""
    scale = Decimal(spread.numerator) / Decimal(spread.denominator)
    found, at = [], 0
    while True:
        weight = (-(Decimal(at * at) / (2 * scale)) if kind == "gaussian" else -(Decimal(at) / scale)).exp()
        if weight < Decimal("1e-40"):
            return found
        found.append(weight)
        at += 1


def released(kind, spread, excess, keys):
    """Return the probability that one or more of `keys` keys have noise of `excess` or more; excess ≥ 1."""
    with localcontext(prec=60):
        found = weights(kind, spread)
        tail = sum(found[excess:], Decimal(0)) / (2 * sum(found) - found[0])
        return Fraction(1 - (1 - tail) ** keys)


@settings(max_examples=40)
@given(KINDS, SPREADS, st.integers(1, 5), st.integers(1, 40), DELTAS)
def test_a_key_of_one_unit_is_released_with_probability_delta_at_most(kind, spread, width, keys, delta):
    least = threshold(noise(kind, spread), width=width, keys=keys, delta=delta)
    assert released(kind, spread, least - width, keys) <= delta


@settings(max_examples=40)
@given(KINDS, SPREADS, st.integers(1, 40), DELTAS)
def test_a_lower_threshold_would_release_it_more_often(kind, spread, keys, delta):
    least = threshold(noise(kind, spread), width=1, keys=keys, delta=delta)
    if least > 2:
        assert released(kind, spread, least - 2, keys) > delta


@pytest.mark.parametrize(
    ("noise_of", "width", "keys", "delta", "least"),
    [
        # ε = 1: P(X ≥ q) = e^-q / (1 + e^-1) ≤ 1e-6 from q = 14 on (e^-14 = 8.3e-7; times .731: 6.1e-7).
        (("laplace", "1"), 1, 1, "1e-6", 15),
        # Ten keys: each may have 1e-7 or so: e^-16 · .731 = 8.2e-8.
        (("laplace", "1"), 1, 10, "1e-6", 17),
        (("laplace", "1"), 12, 10, "1e-6", 28),
        # Hardly any noise at all: P(X ≥ 1) is e^-4 / (1 + e^-4) > 1e-3, P(X ≥ 2) = 3.3e-4.
        (("laplace", "1/4"), 1, 1, "1e-3", 3),
        # σ = 1: P(X ≥ 4) = .3989 (e^-8 + e^-12.5 + …) = 1.353e-4, P(X ≥ 5) = 1.49e-6.
        (("gaussian", "1"), 1, 1, "1e-3", 5),
        (("gaussian", "1"), 1, 1, "1.36e-4", 5),
        (("gaussian", "1"), 1, 1, "1.35e-4", 6),
    ],
)
def test_thresholds_that_can_be_worked_out_by_hand(noise_of, width, keys, delta, least):
    assert threshold(noise(*noise_of), width=width, keys=keys, delta=Fraction(delta)) == least


def test_at_exactly_delta_the_key_is_released():
    # e^-1/scale is no rational number, so only a δ from its own digits comes as near as this.
    tail = released("laplace", Fraction(2), 20, 1)
    nudge = Fraction(1, 10**20) * tail
    one = noise("laplace", 2)
    assert threshold(one, width=1, keys=1, delta=tail + nudge) == 21
    assert threshold(one, width=1, keys=1, delta=tail - nudge) == 22


@settings(max_examples=40)
@given(KINDS, SPREADS, st.integers(1, 9), st.integers(1, 9), DELTAS)
def test_counts_in_finer_units_have_a_threshold_in_finer_units(kind, spread, width, scale, delta):
    fine = threshold(noise(kind, spread, scale), width=width, keys=3, delta=delta)
    assert fine - scale * width == threshold(noise(kind, spread), width=width, keys=3, delta=delta) - width


@given(SPREADS, DELTAS, st.integers(1, 20), st.integers(1, 20))
def test_whoever_can_add_more_has_a_higher_threshold(spread, delta, width, keys):
    def least(width, keys):
        return threshold(noise("gaussian", spread), width=width, keys=keys, delta=delta)

    assert least(width, keys) <= least(width, keys + 1) <= least(width + 1, keys + 1)


def test_a_calibrated_release_names_what_many_have_and_not_what_one_has():
    width, keys, delta = 1, 3, Fraction("1e-9")
    vector = Vector("keys", 2, keys * width, keys * width**2)
    [made], _ = calibrate([vector], Budget("zcdp", Fraction("0.1")), honest=1, contributors=1)
    least = threshold(made, width=width, keys=keys, delta=delta)
    # σ² = 3/0.2 = 15; the normal quantile at 1 - 3.3e-10 is 6.17: 1 + 23.9.
    assert least == 25 + 1
    # Drawn with the system's randomness: wrong once in 3e9 runs.
    counts = np.array([1, 5000])
    noisy = counts + replace(made, size=2).draw(bytes)
    assert [name for name, _ in release_keys(["稀有", "常见"], noisy, least)] == ["常见"]


# ---------------------------------------------------------------- who is named


def test_keys_at_the_threshold_are_named_in_the_order_of_their_names():
    noisy = np.array([30, 24, 25, -3, 99])
    found = release_keys(["d", "c", "b", "a", "e"], noisy, 25)
    assert found == [("b", 25), ("d", 30), ("e", 99)]
    assert release_keys([], np.array([], np.int64), 25) == []


@given(st.dictionaries(st.text(max_size=3), st.integers(-9, 60), max_size=8), st.randoms())
def test_the_order_of_the_rows_says_nothing(counts, order):
    shuffled = order.sample(list(counts), len(counts))
    noisy = np.array([counts[name] for name in shuffled], np.int64)
    straight = np.array(list(counts.values()), np.int64)
    assert release_keys(shuffled, noisy, 20) == release_keys(list(counts), straight, 20)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("bounds", "code"),
    [
        ({"width": 0}, "bad-bound"),
        ({"keys": 0}, "bad-bound"),
        ({"delta": Fraction(0)}, "bad-privacy"),
        ({"delta": Fraction(-1, 10)}, "bad-privacy"),
        ({"delta": Fraction(1, 999)}, "bad-privacy"),
    ],
)
def test_bounds_that_bound_nothing_are_refused(bounds, code):
    with pytest.raises(InputError) as refused:
        threshold(noise("laplace", 1), **{"width": 1, "keys": 1, "delta": Fraction("1e-9"), **bounds})
    assert refused.value.code == code


@pytest.mark.parametrize(
    "several", [Noise("gaussian", 1, Fraction(16), 2, 3, 1), Noise("polya", 1, Fraction(1), 2, 2, 1)]
)
def test_noise_of_several_departments_is_refused(several):
    with pytest.raises(InputError) as refused:
        threshold(several, width=1, keys=1, delta=Fraction("1e-9"))
    assert refused.value.code == "too-many-organisations"


@pytest.mark.parametrize(("names", "count"), [(["a", "b"], 1), (["a", "a"], 2), ([], 1)])
def test_counts_that_are_not_one_for_each_name_are_refused(names, count):
    with pytest.raises(InputError):
        release_keys(names, np.zeros(count, np.int64), 5)
