"""A cost is a value in integers: it adds up exactly, is never rounded down, and has one text form."""

import math
from fractions import Fraction
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.dp.cost import (
    NOTHING,
    ORDERS,
    UNIT,
    Cost,
    conversion,
    decimal_down,
    decimal_up,
    total,
)
from protocols.errors import DecodeError, InputError

RATES = st.fractions(0, 10, max_denominator=10**6)
DELTAS = st.sampled_from([Fraction(0), Fraction(1, 10**9), Fraction(1, 10**15), Fraction(1, 3 * 10**6)])
COSTS = st.one_of(
    st.builds(Cost.zcdp, RATES, DELTAS),
    st.builds(Cost.pure_dp, RATES, DELTAS),
    st.builds(Cost, rows=st.integers(0, 10**9), queries=st.integers(0, 9)),
)
NOTIONS = ("zcdp", "pure-dp", "approximate-dp", "rows", "queries")


# ---------------------------------------------------------------- exact sums


@pytest.mark.parametrize("parts", [3, 4, 7, 10])
@pytest.mark.parametrize("make", [Cost.zcdp, Cost.pure_dp])
def test_all_parts_of_a_limit_fit_and_one_more_does_not(parts, make):
    # Tenths are no binary fractions: with floats the last of them is refused.
    part = Fraction("0.1")
    notion = "zcdp" if make == Cost.zcdp else "pure-dp"
    assert total([make(part)] * parts).within(notion, part * parts)
    assert not total([make(part)] * (parts + 1)).within(notion, part * parts)


def test_counts_fit_up_to_their_limit():
    assert total([Cost(rows=20_000, queries=1)] * 3).within("rows", Fraction(60_000))
    assert not total([Cost(rows=20_000)] * 3 + [Cost(rows=1)]).within("rows", Fraction(60_000))
    assert not total([Cost(queries=1)] * 5).within("queries", Fraction(4))


@given(st.lists(COSTS, max_size=6), st.randoms())
def test_a_sum_does_not_depend_on_the_order(costs, order):
    shuffled = order.sample(costs, len(costs))
    assert total(costs) == total(shuffled)
    assert total([*costs, NOTHING]) == total(costs)


@given(COSTS, COSTS, st.sampled_from(NOTIONS), RATES, st.sampled_from([Fraction(1, 10**6), Fraction(1, 10)]))
def test_spending_more_never_makes_it_fit(one, more, notion, limit, delta):
    if (one + more).within(notion, limit, delta):
        assert one.within(notion, limit, delta)


# ---------------------------------------------------------------- rounding


@given(RATES)
def test_a_cost_is_rounded_up(rho):
    for loss, order in zip(Cost.zcdp(rho).rdp, ORDERS, strict=True):
        assert 0 <= loss - rho * order * UNIT < 1
    assert Cost.zcdp(rho).rho >= rho


@given(RATES)
def test_pure_dp_is_no_dearer_than_either_of_its_bounds(epsilon):
    cost = Cost.pure_dp(epsilon)
    for loss, order in zip(cost.rdp, ORDERS, strict=True):
        assert loss >= min(epsilon, order * epsilon**2 / 2) * UNIT
        assert loss <= math.ceil(epsilon * UNIT)
    assert cost.amount("pure-dp") >= epsilon


@given(st.fractions(0, 10**6, max_denominator=10**9), st.integers(0, 18))
def test_a_decimal_text_is_on_its_side(value, places):
    assert Fraction(decimal_down(value, places)) <= value <= Fraction(decimal_up(value, places))
    assert Fraction(decimal_up(value, places)) - Fraction(decimal_down(value, places)) <= Fraction(
        1, 10**places
    )
    assert decimal_up(Fraction(decimal_up(value, places)), places) == decimal_up(value, places)


@pytest.mark.parametrize(
    ("value", "up", "down"),
    [("0", "0", "0"), ("1/3", "0.333334", "0.333333"), ("20000", "20000", "20000"), ("1/10", "0.1", "0.1")],
)
def test_decimals_read_as_people_write_them(value, up, down):
    assert (decimal_up(Fraction(value)), decimal_down(Fraction(value))) == (up, down)


# ---------------------------------------------------------------- notions


def test_gaussian_noise_has_no_pure_bound():
    cost = Cost.zcdp(Fraction("0.1"))
    assert cost.amount("pure-dp") is None
    assert not cost.within("pure-dp", Fraction(10**6))
    assert (cost + Cost.pure_dp(Fraction(1))).amount("pure-dp") is None


@pytest.mark.parametrize("notion", ["zcdp", "pure-dp", "approximate-dp"])
def test_a_delta_above_the_limit_never_fits(notion):
    cost = Cost.pure_dp(Fraction(1, 1000), Fraction(1, 10**6))
    assert not cost.within(notion, Fraction(100), Fraction(1, 10**7))


def test_only_counts_are_no_privacy_loss():
    assert not Cost(rows=5, queries=1).private_loss
    assert Cost(rows=5, queries=1).within("zcdp", Fraction(0))
    assert Cost.zcdp(Fraction(1, 10**9)).private_loss
    assert Cost.zcdp(Fraction(0), Fraction(1, 10**12)).private_loss


@pytest.mark.parametrize(("rho", "delta"), list(product(["0.01", "0.5", "2.56"], ["1e-6", "1e-10"])))
def test_epsilon_at_delta_is_the_best_of_all_orders(rho, delta):
    """Against the formula in floating point, over the same orders and over a fine grid of them."""

    def converted(order: float) -> float:
        log_delta = math.log(float(delta))
        return (
            float(rho) * order + math.log((order - 1) / order) - (log_delta + math.log(order)) / (order - 1)
        )

    epsilon = Cost.zcdp(Fraction(rho)).amount("approximate-dp", Fraction(delta))
    assert epsilon is not None
    assert float(epsilon) == pytest.approx(min(converted(float(order)) for order in ORDERS), rel=1e-12)
    finest = min(converted(1.02**step) for step in range(1, 320))
    assert finest * (1 - 1e-3) <= float(epsilon) <= finest * 1.06


def test_the_2020_census_budget():
    # rho = 2.56 and delta = 1e-10 were published as epsilon = 17.16 or so; fixed orders cost a little.
    epsilon = Cost.zcdp(Fraction("2.56")).amount("approximate-dp", Fraction("1e-10"))
    assert epsilon is not None
    assert 17.1 < float(epsilon) < 17.3


@given(st.sampled_from(ORDERS), st.fractions(Fraction(1, 10**15), Fraction(1, 2), max_denominator=10**15))
def test_the_conversion_is_rounded_up(order, delta):
    alpha, probability = float(order), float(delta)
    exact = math.log((alpha - 1) / alpha) - (math.log(probability) + math.log(alpha)) / (alpha - 1)
    assert float(conversion(order, delta)) == pytest.approx(exact, rel=1e-9, abs=1e-12)


# ---------------------------------------------------------------- the text form


@given(COSTS, COSTS)
def test_a_cost_round_trips(one, other):
    for cost in (one, one + other, NOTHING):
        assert Cost.decode(cost.encode()) == cost


@given(COSTS, COSTS)
def test_another_cost_has_another_text(one, other):
    assert (one.encode() == other.encode()) == (one == other)


GOOD = Cost.pure_dp(Fraction(1, 2)).encode()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "[]",
        "{}",
        GOOD + " ",
        GOOD.replace('"queries":0', '"queries":0.0'),
        GOOD.replace('"queries":0', '"queries":-1'),
        GOOD.replace('"queries":0', '"queries":true'),
        GOOD.replace('"rows":"0"', '"rows":0'),
        GOOD.replace('"rows":"0"', '"rows":"-1"'),
        GOOD.replace('"rows":"0"', '"rows":"00"'),
        GOOD.replace('"rows":"0"', '"rows":"' + "9" * 61 + '"'),
        GOOD.replace('"rows":"0"', '"rows":"0","sum":"0"'),
        GOOD.replace('"delta":"0"', '"delta":"٠"'),
        Cost(rows=1).encode().replace('"rdp":[]', '"rdp":["1"]'),
        Cost(rows=1).encode().replace('"rdp":[]', '"rdp":[' + ",".join(['"0"'] * len(ORDERS)) + "]"),
    ],
)
def test_any_other_text_is_refused(text):
    with pytest.raises(DecodeError):
        Cost.decode(text)


@pytest.mark.parametrize("make", [Cost.zcdp, Cost.pure_dp])
@pytest.mark.parametrize("values", [("-1", "0"), ("1", "-1/10"), ("1e31", "0")])
def test_a_cost_below_zero_or_beyond_all_bounds_is_refused(make, values):
    with pytest.raises(InputError):
        make(*map(Fraction, values))
