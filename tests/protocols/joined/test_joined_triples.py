"""Products of shared matrices: exact, nothing seen but uniform words, and no wrong triple passes."""

import sys
import tracemalloc
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import ProtocolAborted, StateConflict
from protocols.joined import triples
from protocols.joined.field import NARROW, WIDE, Field
from protocols.joined.triples import Multiplier, Shape, corrections_bytes, deal
from protocols.party import MAX_BODY_BYTES

SEED_M, SEED_H, CTX, COIN = (bytes([tag]) * 32 for tag in b"mhxc")
SHAPES = {
    "wide": Shape(7, 3, 2, WIDE),
    "wide gram": Shape(7, 3, None, WIDE),
    "narrow": Shape(7, 3, 2, NARROW),
    "narrow gram": Shape(7, 3, None, NARROW),
}


@pytest.fixture(params=SHAPES.values(), ids=SHAPES)
def shape(request) -> Shape:
    return request.param


def drawn(shape: Shape, seed: int = 1):
    """Shares of X and Y that are uniform, as those of the sources are."""
    rand = np.random.default_rng(seed)

    def words(columns):
        return rand.integers(0, shape.field.prime, (shape.rows, columns)).astype(shape.field.dtype)

    def right():
        return None if shape.right is None else words(shape.right)

    return (words(shape.left), right()), (words(shape.left), right())


def expected(shape: Shape, shares_m, shares_h) -> np.ndarray:
    (x_m, y_m), (x_h, y_h) = shares_m, shares_h
    x = x_m.astype(object) + x_h
    y = x if y_m is None else y_m.astype(object) + y_h
    return x.T @ y % shape.field.prime


@dataclass
class Played:
    """One product, and what M and H sent each other."""

    shape: Shape
    shares_m: tuple
    shares_h: tuple
    corrections: bytes
    seeds: tuple[bytes, bytes] = (SEED_M, SEED_H)
    ctx: bytes = CTX
    coin: bytes = COIN
    sent_m: list[bytes] = field(default_factory=list)
    sent_h: list[bytes] = field(default_factory=list)

    def __post_init__(self):
        shape, (seed_m, seed_h) = self.shape, self.seeds
        self.m = Multiplier(shape, seed_m, self.ctx, first=True)
        self.h = Multiplier(shape, seed_h, self.ctx, first=False, corrections=self.corrections)
        self.m.challenge(self.coin)
        self.h.challenge(self.coin)
        for block in range(self.m.blocks):
            self.sent_m.append(self.m.open(*self.rows(self.shares_m, block)))
            self.sent_h.append(self.h.open(*self.rows(self.shares_h, block)))
            self.m.take(self.sent_h[-1])
            self.h.take(self.sent_m[-1])

    def rows(self, shares, block):
        rows = slice(block * self.shape.block_rows, (block + 1) * self.shape.block_rows)
        return tuple(None if words is None else words[rows] for words in shares)

    def verify(self) -> None:
        self.m.verify(self.h.check_share())
        self.h.verify(self.m.check_share())

    def product(self):
        self.verify()
        return self.shape.field.add(self.m.result(), self.h.result())

    def opened(self, bodies) -> np.ndarray:
        return np.concatenate([self.shape.field.read(body, self.shape.width) for body in bodies])


def played(shape: Shape, shares=None, *, corrections: bytes | None = None, **given) -> Played:
    if corrections is None:
        corrections = deal(shape, SEED_M, SEED_H, CTX)
    return Played(shape, *(shares or drawn(shape)), corrections, **given)


# exact


@settings(max_examples=60)
@given(
    st.data(),
    st.sampled_from([WIDE, NARROW]),
    st.integers(0, 9),
    st.integers(1, 4),
    st.none() | st.integers(1, 4),
)
def test_the_shares_of_a_product_add_up_to_it(data, words, rows, left, right):
    shape = Shape(rows, left, right, words)
    extreme = st.sampled_from([0, 1, words.prime - 1, words.reach]) | st.integers(0, words.prime - 1)

    def matrix(columns):
        values = data.draw(st.lists(extreme, min_size=rows * columns, max_size=rows * columns))
        return np.array(values, dtype=words.dtype).reshape(rows, columns)

    shares = tuple((matrix(left), None if right is None else matrix(right)) for _ in "mh")
    assert (played(shape, shares).product() == expected(shape, *shares)).all()


@pytest.mark.parametrize("frame", [100, 300])
def test_blocks_of_any_size_give_the_same_product(shape, monkeypatch, frame):
    monkeypatch.setattr(triples, "MAX_BODY_BYTES", frame)
    many = replace(shape, rows=61)
    case = played(many)
    assert many.blocks > 4
    assert all(len(body) <= frame for body in case.sent_m + case.sent_h)
    assert (case.product() == expected(many, *drawn(many))).all()
    # The dealer's blocks are not seen in what it sends.
    monkeypatch.setattr(triples, "MAX_BODY_BYTES", MAX_BODY_BYTES)
    assert many.blocks == 1
    assert deal(many, SEED_M, SEED_H, CTX) == case.corrections


def test_blocks_may_be_under_way_while_the_peers_are_awaited(shape, monkeypatch):
    monkeypatch.setattr(triples, "MAX_BODY_BYTES", 200)
    shape = replace(shape, rows=25)
    shares = drawn(shape)
    case = played(replace(shape, rows=0))
    case.shape, corrections = shape, deal(shape, SEED_M, SEED_H, CTX)
    case.m = Multiplier(shape, SEED_M, CTX, first=True)
    case.h = Multiplier(shape, SEED_H, CTX, first=False, corrections=corrections)
    case.m.challenge(COIN)
    case.h.challenge(COIN)
    of_m = [case.m.open(*case.rows(shares[0], block)) for block in range(shape.blocks)]
    for block, body in enumerate(of_m):
        of_h = case.h.open(*case.rows(shares[1], block))
        case.h.take(body)
        case.m.take(of_h)
    assert (case.product() == expected(shape, *shares)).all()


def test_a_block_fills_a_frame_and_no_more():
    for shape in (
        Shape(10**6, 6, None, WIDE),
        Shape(10**6, 20, 20, NARROW),
        Shape(99, 4096, 4096, WIDE),
        Shape(1, 1, 1, NARROW),
    ):
        row = shape.width * shape.field.bytes
        assert MAX_BODY_BYTES - row < shape.block_rows * row <= MAX_BODY_BYTES
        rows = [shape.rows_of(block) for block in range(shape.blocks + 1)]
        assert sum(rows) == shape.rows
        assert rows[-1] == 0


@pytest.mark.parametrize("bad", [(-1, 1, 1), (1, 0, 1), (1, 1, 0), (1, 1 << 17, 1)])
def test_a_shape_that_is_none_is_refused(bad):
    with pytest.raises(ValueError):
        Shape(*bad, WIDE)


def mpyc():
    """Another multi-party computation. It reads the command line when it is imported, which is pytest's."""
    arguments, sys.argv = sys.argv, sys.argv[:1]
    try:
        from mpyc.runtime import mpc
    finally:
        sys.argv = arguments
    return mpc


@pytest.mark.filterwarnings("ignore:numpy.core is deprecated:DeprecationWarning")
@pytest.mark.parametrize("words", [WIDE, NARROW], ids=["wide", "narrow"])
def test_products_of_signed_numbers_are_those_of_mpyc(words):
    mpc = mpyc()
    secure = mpc.SecFld(modulus=words.prime)
    rand = np.random.default_rng(7)
    x, y = rand.integers(-400, 400, (60, 3)), rand.integers(-400, 400, (60, 2))
    left, right = secure.array(x), secure.array(y)
    for factors, other, columns in ((left, left, None), (left, right, 2)):
        theirs = mpc.run(mpc.output(mpc.np_matmul(mpc.np_transpose(factors), other)))
        shape = Shape(60, 3, columns, words)
        shares_m = drawn(shape)[0]
        shares_h = tuple(
            None if share is None else words.subtract(words.encode(whole), share)
            for whole, share in zip((x, y), shares_m, strict=True)
        )
        ours = played(shape, (shares_m, shares_h)).product()
        assert [int(word) for word in theirs.value.reshape(-1)] == ours.reshape(-1).tolist()
        assert (words.decode(ours) == x.T @ (x if columns is None else y)).all()


# the dealer's part as the specification says


def stream_of_the_specification(words: Field, seed: bytes, party: bytes, label: bytes, count: int):
    names = (bytes([len(name)]) + name for name in (b"dealer", party, label))
    info = b"minshu/sums-mask/1" + CTX + b"".join(names)
    key = HKDF(SHA256(), 32, None, info).derive(seed)
    stream = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
    found = []
    while len(found) < count:
        word = int.from_bytes(stream.update(bytes(words.bytes)), "little") & words.prime
        found += [word] if word < words.prime else []
    return np.array(found, dtype=object)


def test_corrections_are_those_of_the_specification(shape):
    rows, left, words = shape.rows, shape.left, shape.field
    masks, prime = 0, words.prime
    for seed, party in ((SEED_M, b"matcher"), (SEED_H, b"helper")):
        stream = stream_of_the_specification(words, seed, party, b"joined-triple/masks", rows * shape.width)
        masks = masks + stream.reshape(rows, shape.width)
    a = masks[:, :left]
    if shape.right is None:
        product, alpha = a.T @ a, masks[:, left:]
        triple = [product[i, j] for i in range(left) for j in range(i, left)]
        gamma = [column @ column for column in alpha.T]
    else:
        triple = (a.T @ masks[:, left : shape.columns]).reshape(-1).tolist()
        alpha, beta = np.split(masks[:, shape.columns :], 2, axis=1)
        gamma = [one @ other for one, other in zip(alpha.T, beta.T, strict=True)]
    own = stream_of_the_specification(
        words, SEED_M, b"matcher", b"joined-triple/corrections", shape.cells + words.checks
    )
    body = b"".join(
        int((whole - share) % prime).to_bytes(words.bytes, "little")
        for whole, share in zip(triple + gamma, own, strict=True)
    )
    assert deal(shape, SEED_M, SEED_H, CTX) == body
    assert len(body) == corrections_bytes(shape)


def test_dealing_takes_the_memory_of_a_few_blocks_whatever_the_rows():
    peaks = []
    for rows in (1 << 16, 1 << 18):
        tracemalloc.start()
        deal(Shape(rows, 6, None, WIDE), SEED_M, SEED_H, CTX)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + (1 << 20) < 17 << 20


# a dealer that errs


def refused(case: Played) -> None:
    """Neither side gets a product, whichever hears of it first."""
    share_m, share_h = case.m.check_share(), case.h.check_share()
    for party, peer in ((case.m, share_h), (case.h, share_m)):
        with pytest.raises(ProtocolAborted) as found:
            party.verify(peer)
        assert found.value.code == "bad-triple"
        with pytest.raises(StateConflict):
            party.result()


@pytest.mark.parametrize("off_by", ["one", "any"])
def test_a_dealer_that_errs_in_one_word_is_caught(shape, off_by):
    right = deal(shape, SEED_M, SEED_H, CTX)
    rand, width = np.random.default_rng(4), shape.field.bytes
    for at in range(0, len(right), width):
        error = 1 if off_by == "one" else int(rand.integers(1, shape.field.prime))
        word = (int.from_bytes(right[at : at + width], "little") + error) % shape.field.prime
        wrong = right[:at] + word.to_bytes(width, "little") + right[at + width :]
        refused(played(shape, corrections=wrong))


def test_a_dealer_that_errs_in_every_word_is_caught(shape):
    refused(played(shape, corrections=bytes(corrections_bytes(shape))))


def test_a_dealer_that_errs_in_a_seed_is_caught(shape):
    other = bytes([SEED_M[0] ^ 1]) + SEED_M[1:]
    refused(played(shape, seeds=(other, SEED_H)))
    refused(played(shape, seeds=(SEED_M, other)))


def test_a_triple_of_another_attempt_or_shape_is_caught(shape):
    refused(played(shape, corrections=deal(shape, SEED_M, SEED_H, b"y" * 32)))
    refused(played(shape, corrections=deal(replace(shape, rows=6), SEED_M, SEED_H, CTX)))


@pytest.mark.parametrize("gram", [False, True], ids=["product", "gram"])
def test_an_error_passes_a_check_as_often_as_the_proof_allows(gram):
    # Modulo 127, where chances are large: 250 checks of one triple under 6 challenges. An error in one cell
    # off the diagonal passes where one of two weights is 0, with probability 2/127 - 1/127^2: 23.5 of 1500.
    # None, or 60 and more, by chance once in 10^9 times.
    words = Field(prime=127, bytes=4, checks=250, limb_bits=16)
    shape = Shape(3, 2, None if gram else 2, words)
    right = words.read(deal(shape, SEED_M, SEED_H, CTX), 1).copy()
    right[1] = (int(right[1, 0]) + 1) % words.prime
    passed = 0
    for tag in range(6):
        case = played(shape, corrections=words.to_bytes(right), coin=bytes([tag]) * 32)
        shares = [words.read(party.check_share(), 1) for party in (case.m, case.h)]
        passed += int((words.add(*shares) == 0).sum())
        refused(case)
    assert 0 < passed < 60


def test_two_sides_with_different_challenges_agree_on_nothing(shape):
    case = played(shape)
    other = played(shape, coin=b"d" * 32)
    with pytest.raises(ProtocolAborted) as found:
        case.m.verify(other.h.check_share())
    assert found.value.code == "bad-triple"


# a peer or a caller that errs


def aborted(code: str, call, *args) -> None:
    with pytest.raises(ProtocolAborted) as found:
        call(*args)
    assert found.value.code == code


def test_a_body_that_is_no_block_ends_the_attempt(shape):
    case, shares = played(shape), drawn(shape)
    body, words = case.sent_h[0], shape.field
    fresh = Multiplier(shape, SEED_M, CTX, first=True)
    fresh.challenge(COIN)
    aborted("unexpected-message", fresh.take, body)
    fresh.open(*shares[0])
    for wrong in (b"", body[:-1], body + bytes(words.bytes), body[: -words.bytes * shape.width]):
        aborted("bad-length", fresh.take, wrong)
    beyond = words.prime.to_bytes(words.bytes, "little")
    aborted("bad-word", fresh.take, body[: -words.bytes] + beyond)
    # None of them counted.
    fresh.take(body)
    assert fresh.check_share() == case.m.check_share()
    aborted("unexpected-message", fresh.take, body)


def test_what_the_dealer_sends_has_one_length_and_words_below_the_prime(shape):
    right = deal(shape, SEED_M, SEED_H, CTX)

    def helper(seed, corrections):
        return Multiplier(shape, seed, CTX, first=False, corrections=corrections)

    for wrong in (b"", right[:-1], right + right[: shape.field.bytes]):
        aborted("bad-length", helper, SEED_H, wrong)
    aborted("bad-word", helper, SEED_H, bytes([255]) * len(right))
    aborted("bad-length", helper, SEED_H[:-1], right)
    with pytest.raises(ValueError):
        Multiplier(shape, SEED_M, CTX, first=True, corrections=right)
    with pytest.raises(ValueError):
        Multiplier(shape, SEED_H, CTX, first=False)


def test_a_check_share_or_a_coin_of_another_form_ends_the_attempt(shape):
    case = played(shape)
    share = case.h.check_share()
    aborted("bad-length", case.m.verify, share[:-1])
    aborted("bad-length", case.m.verify, b"")
    aborted("bad-word", case.m.verify, bytes([255]) * len(share))
    aborted("bad-length", case.m.challenge, COIN[:-1])
    with pytest.raises(StateConflict):
        case.m.result()
    case.verify()
    case.m.result()


def test_steps_out_of_order_are_refused(shape):
    shares = drawn(shape)[0]
    party = Multiplier(shape, SEED_M, CTX, first=True)
    for step, code in ((lambda: party.open(*shares), "no-challenge"), (party.result, "not-verified")):
        with pytest.raises(StateConflict) as found:
            step()
        assert found.value.code == code
    party.challenge(COIN)
    with pytest.raises(StateConflict) as found:
        party.check_share()
    assert found.value.code == "product-not-complete"
    with pytest.raises(ValueError):
        party.open(shares[0][:-1], shares[1])
    with pytest.raises(ValueError):
        party.open(shares[0], shares[0] if shares[1] is None else None)
    party.open(*shares)
    with pytest.raises(ValueError):
        party.open(*shares)


# what each of them sees
#
# Chi-square over 64 equal parts of the words, 63 degrees of freedom: above 155.1 by chance once in 10^9 keys.
# The seeds are fixed; some 200 comparisons in all.

CRITICAL = 155.1
MANY = 1 << 13
PARTS = {"a": "D", "b": "E", "alpha": "ρ", "beta": "σ"}


def chi_square(words: Field, column) -> float:
    parts = np.bincount(column.reshape(-1) >> (words.prime.bit_length() - 6), minlength=64)
    return float(((parts - column.size / 64) ** 2 / (column.size / 64)).sum())


def columns_of(shape: Shape) -> dict[str, slice]:
    checks = shape.field.checks
    ends = {"a": shape.left, "b": shape.columns, "alpha": shape.columns + checks, "beta": shape.width}
    if shape.right is None:
        ends = {"a": shape.left, "alpha": shape.width}
    starts = (0, *ends.values())
    return {part: slice(start, end) for start, (part, end) in zip(starts, ends.items(), strict=False)}


def constant(shape: Shape, value: int):
    """The worst inputs: the same word everywhere, as if the sources had not masked anything."""
    shapes = (shape.left, shape.right)
    return tuple(
        None if columns is None else np.full((shape.rows, columns), value, dtype=shape.field.dtype)
        for columns in shapes
    )


def residuals(case: Played, sender: str) -> dict[str, np.ndarray]:
    """What is left of a sender's openings for one who knows what it multiplies: guesses are not confirmed.

    ρ and σ are looked at together with the openings of X and Y: a·u is known to one who knows X.
    """
    shape, words = case.shape, case.shape.field
    (x, y), bodies = (case.shares_m, case.sent_m) if sender == "m" else (case.shares_h, case.sent_h)
    seen, at = case.opened(bodies), columns_of(shape)
    left = {"a": words.subtract(x, seen[:, at["a"]])}
    if y is not None:
        left["b"] = words.subtract(y, seen[:, at["b"]])
    weights = getattr(case, sender)._weights
    for part, factor, columns in (
        ("alpha", "a", slice(0, shape.left)),
        ("beta", "b", slice(shape.left, shape.columns)),
    ):
        if part in at:
            known = words.dots(left[factor], weights[:, columns])
            left[part] = words.subtract(known, seen[:, at[part]])
    return left


@pytest.mark.parametrize("value", [0, 1, "largest"])
def test_openings_are_uniform_whatever_is_multiplied(shape, value):
    shape = replace(shape, rows=MANY)
    value = shape.field.prime - 1 if value == "largest" else value
    shares = constant(shape, value), constant(shape, 0)
    case = played(shape, shares)
    for sender, bodies in (("m", case.sent_m), ("h", case.sent_h)):
        seen = case.opened(bodies)
        for part, columns in columns_of(shape).items():
            assert chi_square(shape.field, seen[:, columns]) < CRITICAL, PARTS[part]
        for part, words in residuals(case, sender).items():
            assert chi_square(shape.field, words) < CRITICAL, PARTS[part]
    assert (case.product() == expected(shape, *shares)).all()


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("sender", ["m", "h"])
def test_every_mask_of_an_opening_is_needed(monkeypatch, part, sender):
    # The same comparison fails where one mask is left out, so it is not for want of looking.
    shape = Shape(MANY, 3, 2, WIDE)
    masks = triples.masks_of
    left_out = {"m": triples._MATCHER, "h": triples._HELPER}[sender]

    class Without:
        def __init__(self, stream):
            self.stream = stream

        def take(self, rows, width):
            words = self.stream.take(rows, width)
            words[:, columns_of(shape)[part]] = 0
            return words

    def unmasked(shape, seed, ctx, party):
        stream = masks(shape, seed, ctx, party)
        return Without(stream) if party == left_out else stream

    monkeypatch.setattr(triples, "masks_of", unmasked)
    case = played(shape, (constant(shape, 1), constant(shape, 0)))
    case.verify()
    for other in PARTS:
        uniform = chi_square(shape.field, residuals(case, sender)[other]) < CRITICAL
        assert uniform == (other != part)


def unexplained(shape: Shape, corrections: bytes) -> tuple[np.ndarray, np.ndarray]:
    """What is left of c and γ for one who knows X and Y, and so from the openings a, b, α and β."""
    words = shape.field
    masks = words.add(
        triples.masks_of(shape, SEED_M, CTX, triples._MATCHER).take(shape.rows, shape.width),
        triples.masks_of(shape, SEED_H, CTX, triples._HELPER).take(shape.rows, shape.width),
    )
    parts = {name: masks[:, columns] for name, columns in columns_of(shape).items()}
    a, alpha = parts["a"], parts["alpha"]
    c = triples._packed(shape, words.product(a, parts.get("b", a)))
    gamma = words.product(alpha, parts.get("beta", alpha)).diagonal()
    seen = words.read(corrections, 1)[:, 0]
    return words.subtract(seen[: shape.cells], c), words.subtract(seen[shape.cells :], gamma)


WORDS_OF_CORRECTIONS = {
    "wide": Shape(2, 80, 100, replace(WIDE, checks=500)),
    "wide gram": Shape(2, 120, None, replace(WIDE, checks=500)),
    "narrow": Shape(2, 80, 100, replace(NARROW, checks=500)),
    "narrow gram": Shape(2, 120, None, replace(NARROW, checks=500)),
}


@pytest.mark.parametrize("shape", WORDS_OF_CORRECTIONS.values(), ids=WORDS_OF_CORRECTIONS)
def test_corrections_are_uniform_even_to_one_who_knows_the_factors(shape, monkeypatch):
    corrections = deal(shape, SEED_M, SEED_H, CTX)
    assert chi_square(shape.field, shape.field.read(corrections, 1)) < CRITICAL
    for words in unexplained(shape, corrections):
        assert chi_square(shape.field, words) < CRITICAL
    # Without M's shares of them nothing is left.
    none = np.zeros(shape.cells + shape.field.checks, dtype=shape.field.dtype)
    monkeypatch.setattr(triples, "product_of", lambda *_: none)
    for words in unexplained(shape, deal(shape, SEED_M, SEED_H, CTX)):
        assert not words.any()
        assert chi_square(shape.field, words) > CRITICAL


def test_check_shares_are_uniform_and_tell_only_that_they_cancel():
    # Each is the other's negative, which its receiver could have computed.
    shape = Shape(2, 3, 2, replace(NARROW, checks=300))
    shares = []
    for tag in range(5):
        ctx = bytes([tag]) * 32
        corrections = deal(shape, SEED_M, SEED_H, ctx)
        case = played(shape, (constant(shape, 1), constant(shape, 0)), corrections=corrections, ctx=ctx)
        shares.append([shape.field.read(party.check_share(), 1) for party in (case.m, case.h)])
        assert not shape.field.add(*shares[-1]).any()
    for party in np.array(shares).swapaxes(0, 1):
        assert chi_square(shape.field, party) < CRITICAL


def test_result_shares_are_uniform():
    # What H sends on is the result's share: uniform, but that both add up to the product.
    shape = Shape(3, 64, 64, WIDE)
    case = played(shape, (constant(shape, 1), constant(shape, 0)))
    case.verify()
    for party in (case.m, case.h):
        assert chi_square(shape.field, party.result()) < CRITICAL


def test_streams_of_both_sides_all_purposes_and_all_attempts_differ():
    shape, ctx = Shape(4, 3, 2, WIDE), b"y" * 32
    drawn_words = [
        triples.masks_of(shape, SEED_M, CTX, triples._MATCHER).take(1, 9),
        triples.masks_of(shape, SEED_M, CTX, triples._HELPER).take(1, 9),
        triples.masks_of(shape, SEED_H, CTX, triples._MATCHER).take(1, 9),
        triples.masks_of(shape, SEED_M, ctx, triples._MATCHER).take(1, 9),
        triples.product_of(shape, SEED_M, CTX),
        triples.product_of(shape, SEED_M, ctx),
    ]
    weights = []
    for coin, of_attempt in ((COIN, CTX), (COIN, ctx), (SEED_M, CTX)):
        party = Multiplier(shape, SEED_M, of_attempt, first=True)
        party.challenge(coin)
        weights.append(party._weights)
    streams = [words.reshape(-1).tolist() for words in drawn_words + weights]
    assert len({word for words in streams for word in words}) == sum(map(len, streams))
