"""Words modulo the two primes: exact against Python's integers, for every shape and at the extremes."""

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import ProtocolAborted
from protocols.joined.field import NARROW, WIDE, Field, RunningProduct
from protocols.sums.masks import Masks

FIELDS = {"wide": WIDE, "narrow": NARROW}
KEY = bytes(range(32))

fields = st.sampled_from([WIDE, NARROW])


@pytest.fixture(params=FIELDS.values(), ids=FIELDS)
def field(request) -> Field:
    return request.param


def residues(field: Field) -> st.SearchStrategy[int]:
    """All residues, those at which something carries above all."""
    ends = [0, 1, field.prime - 1, field.reach, field.reach + 1]
    limbs = [1 << field.limb_bits, (1 << field.limb_bits) - 1, (1 << 2 * field.limb_bits) % field.prime]
    return st.sampled_from(ends + limbs) | st.integers(0, field.prime - 1)


@st.composite
def matrices(draw, field: Field, rows: int, columns: int):
    words = draw(st.lists(residues(field), min_size=rows * columns, max_size=rows * columns))
    return np.array(words, dtype=field.dtype).reshape(rows, columns)


def drawn(field: Field, rows: int, columns: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, field.prime, (rows, columns)).astype(field.dtype)


def ints(words) -> np.ndarray:
    """Python's integers, which are exact at any size."""
    return words.astype(object)


def test_words_are_the_two_primes(field):
    assert (WIDE.prime, WIDE.bytes) == (2**61 - 1, 8)
    assert (NARROW.prime, NARROW.bytes) == (2**31 - 1, 4)
    # What verifies a triple leaves a chance of 2 in p with each check.
    assert (2 / field.prime) ** field.checks <= 2**-59


# whole numbers


@given(fields.flatmap(lambda f: st.tuples(st.just(f), st.lists(st.integers(-f.reach, f.reach), max_size=20))))
def test_numbers_with_a_sign_come_back(case):
    field, numbers = case
    words = field.encode(np.array(numbers, dtype=np.int64))
    assert words.dtype == field.dtype
    assert words.tolist() == [number % field.prime for number in numbers]
    assert field.decode(words).tolist() == numbers


def test_the_ends_of_the_range_come_back_and_one_more_is_refused(field):
    ends = np.array([[field.reach], [-field.reach], [0], [-1]])
    assert (field.decode(field.encode(ends)) == ends).all()
    for beyond in (field.reach + 1, -field.reach - 1, 2**63 - 1, -(2**63)):
        with pytest.raises(ProtocolAborted) as refused:
            field.encode(np.array([0, beyond]))
        assert refused.value.code == "guard-overflow"
        assert str(beyond) not in str(refused.value)


def test_many_rows_are_coded_as_few_are(field):
    # More than one step of what goes word by word.
    numbers = np.random.default_rng(2).integers(-field.reach, field.reach + 1, (30_000, 3))
    words = field.encode(numbers)
    assert (ints(words) == ints(numbers) % field.prime).all()
    assert (field.decode(words) == numbers).all()
    assert (ints(field.add(words, words)) == 2 * ints(numbers) % field.prime).all()


@given(st.data(), fields, st.integers(1, 3), st.integers(0, 5))
def test_sums_differences_and_halves_are_those_of_integers(data, field, columns, rows):
    one, other = (data.draw(matrices(field, rows, columns)) for _ in "ab")
    assert (ints(field.add(one, other)) == (ints(one) + ints(other)) % field.prime).all()
    assert (ints(field.subtract(one, other)) == (ints(one) - ints(other)) % field.prime).all()
    half = field.half(one)
    assert (half < field.prime).all()
    assert (field.add(half, half) == one).all()
    in_place = one.copy()
    assert field.subtract(in_place, other, out=in_place) is in_place
    assert field.add(in_place, other, out=in_place) is in_place
    assert (in_place == one).all()


def test_columns_of_a_wider_array_are_added_as_they_stand(field):
    wide = drawn(field, 50, 6)
    total = field.add(wide[:, :3], wide[:, 3:])
    assert (ints(total) == (ints(wide[:, :3]) + ints(wide[:, 3:])) % field.prime).all()


# products


@given(st.data(), fields, st.integers(0, 6), st.integers(1, 4), st.integers(1, 4))
def test_products_are_those_of_integers(data, field, rows, left, right):
    a, b = data.draw(matrices(field, rows, left)), data.draw(matrices(field, rows, right))
    product = field.product(a, b)
    assert product.dtype == field.dtype
    assert (ints(product) == ints(a).T @ ints(b) % field.prime).all()
    assert (ints(field.product(a, a)) == ints(a).T @ ints(a) % field.prime).all()


@pytest.mark.parametrize(("rows", "left", "right"), [(5000, 3, 2), (300, 40, 11), (70, 130, 33), (3, 1, 200)])
def test_products_are_exact_over_many_rows_and_tiles(field, rows, left, right):
    a, b = drawn(field, rows, left, 1), drawn(field, rows, right, 2)
    assert (ints(field.product(a, b)) == ints(a).T @ ints(b) % field.prime).all()
    assert (ints(field.product(a, a)) == ints(a).T @ ints(a) % field.prime).all()


def test_the_largest_words_do_not_round(field):
    # (-1)·(-1) in every row, with limbs that are as large as they can be: a sum that passes 2^53 would show.
    for rows in (1, 2047, 2048, 2049, 100_001):
        least = np.full((rows, 2), field.prime - 1, dtype=field.dtype)
        assert (field.product(least, least) == rows).all()
        ones = np.full((rows, 1), field.prime - 1, dtype=field.dtype)
        assert (field.product(least, ones) == rows).all()


def test_limbs_are_folded_before_they_overflow():
    # More rows than an int64 holds products of limbs.
    rows = (1 << 20) + 3000
    least = np.full((rows, 1), WIDE.prime - 1, dtype=WIDE.dtype)
    assert WIDE.product(least, least).tolist() == [[rows]]


def test_a_product_can_be_taken_in_pieces_and_looked_at_in_between(field):
    a, b = drawn(field, 900, 3, 1), drawn(field, 900, 4, 2)
    running = RunningProduct(field, 3, 4)
    for piece in (slice(0, 1), slice(1, 400), slice(400, 900)):
        running.add(a[piece], b[piece])
        seen = running.total()
        assert (seen == field.product(a[: piece.stop], b[: piece.stop])).all()


@pytest.mark.parametrize("columns", [1, 7, 255, 256, 257, 600])
def test_rows_times_weights_are_exact(field, columns):
    words, weights = drawn(field, 500, columns), drawn(field, 3, columns, 3)
    words[0] = weights[0] = field.prime - 1
    dots = field.dots(words, weights)
    assert (ints(dots) == ints(words) @ ints(weights).T % field.prime).all()
    assert int(dots[0, 0]) == columns
    assert field.dots(words[:0], weights).shape == (0, 3)


# groups


@given(st.data(), fields, st.lists(st.integers(0, 4), min_size=1, max_size=6), st.integers(1, 3))
def test_sums_of_groups_are_those_of_integers(data, field, sizes, width):
    words = data.draw(matrices(field, sum(sizes), width))
    ends = np.cumsum(sizes)
    sums = field.sums(words, ends - sizes)
    assert sums.dtype == field.dtype
    for group, (end, size) in enumerate(zip(ends, sizes, strict=True)):
        expected = [sum(column) % field.prime for column in ints(words[end - size : end]).T]
        assert sums[group].tolist() == (expected or [0] * width)


def test_groups_are_summed_across_steps_and_without_overflow(field):
    # 200,000 times -1; groups that span steps, end with them, and are empty at both ends.
    words = np.full((200_000, 2), field.prime - 1, dtype=field.dtype)
    starts = np.array([0, 0, 1, 16384, 16384, 32768, 150_000, 200_000])
    sizes = np.diff(np.append(starts, 200_000))
    assert (field.decode(field.sums(words, starts)) == -sizes[:, None]).all()
    assert (field.sums(words[:0], np.array([0, 0])) == 0).all()


@pytest.mark.parametrize("starts", [[], [1, 2], [0, 3, 2], [0, 6], [-1, 2]])
def test_groups_that_are_none_are_refused(starts):
    with pytest.raises(ValueError, match="starts of groups"):
        WIDE.sums(drawn(WIDE, 5, 1), np.array(starts, dtype=np.int64))


# the wire


@given(st.data(), fields, st.integers(0, 4), st.integers(1, 4))
def test_words_go_over_the_wire_row_by_row(data, field, rows, width):
    words = data.draw(matrices(field, rows, width))
    body = field.to_bytes(words)
    assert body == b"".join(int(word).to_bytes(field.bytes, "little") for word in words.reshape(-1))
    assert (field.read(body, width) == words).all()
    assert field.to_bytes(words.T) == field.to_bytes(np.ascontiguousarray(words.T))


def test_a_body_of_another_length_is_refused(field):
    for body in (bytes(1), bytes(3 * field.bytes), bytes(2 * field.bytes - 1)):
        with pytest.raises(ProtocolAborted) as refused:
            field.read(body, 2)
        assert refused.value.code == "bad-length"


def test_a_word_that_is_no_residue_is_refused(field):
    for word in (field.prime, field.prime + 1, (1 << 8 * field.bytes) - 1):
        body = bytes(field.bytes) + word.to_bytes(field.bytes, "little")
        with pytest.raises(ProtocolAborted) as refused:
            field.read(body, 1)
        assert refused.value.code == "bad-word"


# streams


def test_a_stream_is_counter_mode_without_the_words_beyond_the_prime(field):
    stream = Cipher(algorithms.AES256(KEY), modes.CTR(bytes(16))).encryptor().update(bytes(40_000))
    raw = np.frombuffer(stream, dtype=field.dtype) & ((1 << field.prime.bit_length()) - 1)
    assert (field.stream(KEY).take(500, 3).reshape(-1) == raw[raw < field.prime][:1500]).all()


def test_words_that_are_not_below_the_modulus_are_left_out_of_short_words_too():
    # Just above a power of two, every other word is.
    modulus = (1 << 30) + 1
    stream = Cipher(algorithms.AES256(KEY), modes.CTR(bytes(16))).encryptor().update(bytes(240_000))
    raw = np.frombuffer(stream, dtype="<u4") & ((1 << 31) - 1)
    expected = raw[raw < modulus]
    assert 29_000 < len(expected) < 31_000
    masks, pieces = Masks([KEY], [], modulus, word_bytes=4), []
    for count in (1, 7, 20_000, 8992):
        words = np.zeros(count, dtype=np.uint32)
        masks.add_to(words)
        pieces += words.tolist()
    assert pieces == expected[:29_000].tolist()


def test_a_stream_is_the_same_however_it_is_cut(field):
    whole, stream = field.stream(KEY).take(20_000, 2), field.stream(KEY)
    pieces = [stream.take(rows, 2) for rows in (1, 0, 16_000, 3999)]
    assert (np.concatenate(pieces) == whole).all()


def test_words_of_a_stream_are_uniform(field):
    # Chi-square over 64 equal parts, 63 degrees of freedom: above 155.1 by chance once in 10^9 keys.
    words = field.stream(KEY).take(1 << 16, 1)[:, 0]
    parts = np.bincount(words >> (field.prime.bit_length() - 6), minlength=64)
    assert ((parts - 1024) ** 2 / 1024).sum() < 155.1
