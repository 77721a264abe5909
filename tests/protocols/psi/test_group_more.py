"""Points one by one, their sums, and scalars: the laws of the group hold, bad encodings are refused."""

import numpy as np
import pytest
from crosscheck_case import seeded
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import ProtocolAborted
from protocols.psi import group

IDENTITY = np.zeros((1, 32), dtype=np.uint8)
BAD = {
    "not canonical": b"\xff" * 31 + b"\x7f",
    "no point": bytes([1]) + bytes(31),
    "top bit": group.BASE[:-1] + bytes([group.BASE[-1] | 0x80]),
}
scalars = st.integers(1, group.ORDER - 1)


def raw(*values: int) -> np.ndarray:
    joined = b"".join((value % group.ORDER).to_bytes(32, "little") for value in values)
    return np.frombuffer(joined, dtype=np.uint8).reshape(-1, 32)


def hashed(count: int) -> group.Points:
    return group.hash_to_group([b"%d" % i for i in range(count)], b"test")


@settings(max_examples=15, deadline=None)
@given(st.lists(scalars, min_size=1, max_size=150))
def test_each_point_is_raised_to_its_own_scalar(values):
    points = hashed(len(values))
    found = group.power_each(points, raw(*values))
    for place in {0, len(values) // 2, len(values) - 1}:
        expected = group.power(points[place : place + 1], raw(values[place]).tobytes())
        assert found[place].tobytes() == expected.tobytes()


@settings(max_examples=15, deadline=None)
@given(st.lists(scalars, min_size=1, max_size=150))
def test_the_generator_is_raised_as_any_point(values):
    base = np.tile(np.frombuffer(group.BASE, dtype=np.uint8), (len(values), 1))
    assert (group.base_power(raw(*values)) == group.power_each(base, raw(*values))).all()


@settings(max_examples=25, deadline=None)
@given(scalars, scalars)
def test_sums_of_points_are_sums_of_exponents(left, right):
    a, b = group.base_power(raw(left)), group.base_power(raw(right))
    for found, exponent in ((group.add(a, b), left + right), (group.subtract(a, b), left - right)):
        expected = group.base_power(raw(exponent)) if exponent % group.ORDER else IDENTITY
        assert (found == expected).all()


def test_pairs_are_added_one_by_one_on_all_cores():
    a, b = hashed(200), hashed(400)[200:]
    found = group.add(a, b)
    for place in (0, 63, 64, 100, 199):
        assert (found[place] == group.add(a[place : place + 1], b[place : place + 1])).all()
    assert (group.subtract(found, b) == a).all()
    assert (group.add(b, a) == found).all()


def test_the_identity_is_neutral_and_a_possible_result():
    a = hashed(1)
    assert (group.add(a, IDENTITY) == a).all()
    assert (group.subtract(a, a) == IDENTITY).all()
    assert (group.subtract(IDENTITY, group.subtract(IDENTITY, a)) == a).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, group.ORDER - 1), st.integers(0, group.ORDER - 1))
def test_scalars_add_subtract_and_multiply_modulo_the_order(left, right):
    a, b = raw(left).tobytes(), raw(right).tobytes()
    assert group.scalar_sum(a, b) == raw(left + right).tobytes()
    assert group.scalar_difference(a, b) == raw(left - right).tobytes()
    assert group.multiply(a, b) == raw(left * right).tobytes()


@pytest.mark.parametrize("call", [group.add, group.subtract], ids=["add", "subtract"])
@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_bad_encoding_is_refused_on_either_side_wherever_it_stands(call, bad):
    for count, place in ((1, 0), (200, 0), (200, 150), (200, 199)):
        good = hashed(count)
        spoilt = good.copy()
        spoilt[place] = np.frombuffer(bad, dtype=np.uint8)
        for pair in ((good, spoilt), (spoilt, good)):
            with pytest.raises(ProtocolAborted) as refused:
                call(*pair)
            assert refused.value.code == "bad-point"


@pytest.mark.parametrize("bad", [bytes(32), *BAD.values()], ids=["identity", *BAD])
def test_a_bad_point_is_refused_with_a_scalar_of_its_own(bad):
    for count, place in ((1, 0), (200, 150)):
        spoilt = hashed(count)
        spoilt[place] = np.frombuffer(bad, dtype=np.uint8)
        with pytest.raises(ProtocolAborted) as refused:
            group.power_each(spoilt, raw(*range(1, count + 1)))
        assert refused.value.code == "bad-point"


def test_scalars_of_zero_are_refused():
    with pytest.raises(ValueError, match="zero"):
        group.base_power(raw(1, 0, 2))
    with pytest.raises(ProtocolAborted):
        group.power_each(hashed(3), raw(1, 0, 2))


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="one of 32 bytes for each"):
        group.power_each(hashed(3), raw(1, 2))
    with pytest.raises(ValueError, match="expected as many"):
        group.add(hashed(3), hashed(2))


def test_nothing_gives_nothing():
    none = hashed(0)
    for found in (group.power_each(none, raw()), group.base_power(raw()), group.add(none, none)):
        assert found.shape == (0, 32)


def test_rows_of_a_larger_array_are_taken_as_they_are():
    # Strided views: the calls go by address.
    points, values = hashed(10), raw(*range(1, 11))
    assert (group.power_each(points[::2], values[::2]) == group.power_each(points, values)[::2]).all()
    assert (group.base_power(values[::3]) == group.base_power(values)[::3]).all()
    assert (group.add(points[::2], points[1::2])[1] == group.add(points[2:3], points[3:4])).all()


def test_a_random_scalar_raises_and_comes_back():
    scalar = group.random_scalar(seeded("inverse"))
    points = hashed(3)
    assert (group.power(group.power(points, scalar), group.invert(scalar)) == points).all()
