"""What the dealer gives for gradients: right to the last word, or found; all that is seen is uniform."""

import sys

import numpy as np
import pytest
from crosscheck_case import seeded
from train_joined_case import played

from protocols.errors import ProtocolAborted
from protocols.joined.field import WIDE
from protocols.joined.triples import Shape, corrections_bytes, deal
from protocols.training.joined import cubes, gradient, masking
from protocols.training.joined.cubes import Cubes
from protocols.training.joined.cubic import Cubic
from protocols.training.joined.masking import masked
from protocols.training.joined.talk import Talk, opened

CTX = b"c" * 32
SEEDS = b"m" * 32, b"h" * 32
COINS = b"1" * 16, b"2" * 16
PRIME = WIDE.prime


def shares(values, seed="x"):
    """Return uniform shares of whole numbers."""
    whole = np.asarray(values, dtype=np.int64)
    one = WIDE.stream(seeded(seed)(32)).take(1, whole.size).reshape(whole.shape)
    return one, WIDE.subtract(WIDE.encode(whole), one)


def matrix_of(n=9, d=4, rounds=3, seed=0):
    x = np.random.default_rng(seed).integers(0, 2, (n, d))
    return Shape(n, d, rounds, WIDE), x


def mask(shape, x, corrections=None, seeds=SEEDS, said=None):
    own = shares(x) if isinstance(x, np.ndarray) else x
    corrections = deal(shape, *SEEDS, CTX) if corrections is None else corrections
    parts = [
        masked(shape, CTX, seeds[0], None, COINS[0], own[0].copy()),
        masked(shape, CTX, seeds[1], corrections, COINS[1], own[1].copy()),
    ]
    return played(parts, said=said)


def power(batch, corrections=None, seeds=SEEDS, said=None):
    corrections = batch.deal(*SEEDS) if corrections is None else corrections
    parts = [batch.checked(seeds[0], None, COINS[0]), batch.checked(seeds[1], corrections, COINS[1])]
    return played(parts, said=said)


# exact


def test_powers_are_those_of_one_uniform_word():
    both = power(Cubes(50, CTX))
    rho, square, cube = WIDE.add(*both).astype(object)
    assert (square == rho * rho % PRIME).all()
    assert (cube == rho * rho * rho % PRIME).all()
    assert len(set(rho.tolist())) == 50


def test_a_masked_matrix_is_shared_anew_with_a_product_for_every_round():
    shape, x = matrix_of()
    m, h = mask(shape, x)
    assert (WIDE.decode(WIDE.add(m.rows, h.rows)) == x).all()
    for t in range(3):
        vector = np.array([3, -5, 7, 0, 1 << 40, -1, 2, 2, 9])
        r = shares(vector, "r")
        factors = [each.factors[:, t].copy() for each in (m, h)]
        e = WIDE.add(*(WIDE.subtract(own, b) for own, b in zip(r, factors, strict=True)))
        both = (gradient.gradient(each.rows, e, each.bases[:, t].copy()) for each in (m, h))
        assert WIDE.decode(WIDE.add(*both)).tolist() == (x.T @ vector).tolist()


def test_residuals_are_the_cubic_of_every_score_to_the_last_unit():
    cubic = Cubic(8, 12)
    most = cubic.bound << cubic.bits
    v = np.array([0, 1, -1, most, -most, 12345, -777])
    y = np.array([0, 1, 0, 1, 0, 1, 1])
    score, label = shares(v), shares(y, "y")
    powers = power(Cubes(len(v), CTX))
    e = WIDE.add(*(WIDE.subtract(own, each[0]) for own, each in zip(score, powers, strict=True)))
    both = [
        gradient.residuals(cubic, score[side], label[side], e, powers[side], first=side == 0)
        for side in (0, 1)
    ]
    expected = [cubic.value(int(u)) - int(l_) * cubic.unit for u, l_ in zip(v, y, strict=True)]
    assert WIDE.decode(WIDE.add(*both)).tolist() == expected
    assert max(map(abs, expected)) <= cubic.largest


@pytest.mark.parametrize("a", [0, 1, 5, 2**31, 2**60, PRIME - 1])
@pytest.mark.parametrize("b", [0, 1, 2**31 - 1, 2**30, PRIME - 1])
def test_words_are_multiplied_exactly(a, b):
    found = gradient.times(np.array([a], np.uint64), np.array([b], np.uint64))
    assert int(found[0]) == a * b % PRIME


@pytest.mark.filterwarnings("ignore:numpy.core is deprecated:DeprecationWarning")
def test_a_gradient_is_that_of_another_multi_party_computation():
    arguments, sys.argv = sys.argv, sys.argv[:1]
    try:
        from mpyc.runtime import mpc
    finally:
        sys.argv = arguments
    secure, cubic = mpc.SecFld(modulus=PRIME), Cubic(8, 7)
    rng = np.random.default_rng(3)
    x, y, w = rng.integers(0, 2, (40, 5)), rng.integers(0, 2, 40), rng.integers(-200, 200, 5)
    v = mpc.np_matmul(secure.array(x), secure.array(w))
    constant, linear = cubic.whole
    r = v * linear - v * v * v + constant - secure.array(y) * cubic.unit
    theirs = [int(each) for each in mpc.run(mpc.output(mpc.np_matmul(r, secure.array(x)))).value]
    shape = Shape(40, 5, 1, WIDE)
    rows, label, powers = mask(shape, x), shares(y, "y"), power(Cubes(40, CTX))
    score = [gradient.scores(each.rows, WIDE.encode(w)) for each in rows]
    e = WIDE.add(*(WIDE.subtract(own, each[0]) for own, each in zip(score, powers, strict=True)))
    rest = [gradient.residuals(cubic, score[i], label[i], e, powers[i], first=i == 0) for i in (0, 1)]
    b = [each.factors[:, 0].copy() for each in rows]
    opening = WIDE.add(*(WIDE.subtract(own, each) for own, each in zip(rest, b, strict=True)))
    ours = WIDE.add(*(gradient.gradient(each.rows, opening, each.bases[:, 0].copy()) for each in rows))
    assert ours.tolist() == theirs


# a dealer that errs


def flipped(right, at, error=1):
    word = (int.from_bytes(right[at : at + 8], "little") + error) % PRIME
    return right[:at] + word.to_bytes(8, "little") + right[at + 8 :]


def caught(play) -> None:
    """Both sides end, whichever looks first: neither has anything."""
    with pytest.raises(ProtocolAborted) as found:
        play()
    assert found.value.code == "bad-triple"


@pytest.mark.parametrize("error", [1, 2, PRIME - 1, 1 << 40])
def test_every_wrong_word_of_powers_is_caught(error):
    batch = Cubes(6, CTX)
    right = batch.deal(*SEEDS)
    assert len(right) == batch.correction_bytes
    for at in range(0, len(right), 8):
        caught(lambda at=at: power(batch, flipped(right, at, error)))


@pytest.mark.parametrize("error", [1, PRIME - 1, 1 << 40])
def test_every_wrong_word_of_the_matrix_is_caught(error):
    shape, x = matrix_of()
    right = deal(shape, *SEEDS, CTX)
    assert len(right) == corrections_bytes(shape)
    for at in range(0, len(right), 8):
        caught(lambda at=at: mask(shape, x, flipped(right, at, error)))


def test_a_cube_that_is_right_for_a_wrong_square_is_caught():
    """ρ² off by one, and ρ³ what ρ times that would be: each by itself would not show it."""
    batch = Cubes(4, CTX)
    rho = int(WIDE.add(*power(batch))[0, 2])
    right = batch.deal(*SEEDS)
    wrong = flipped(flipped(right, 8 * 2, 1), 8 * (4 + 2), rho)
    caught(lambda: power(batch, wrong))


def test_errors_that_would_cancel_without_a_challenge_are_caught():
    batch = Cubes(4, CTX)
    right = batch.deal(*SEEDS)
    caught(lambda: power(batch, flipped(flipped(right, 0, 5), 8, PRIME - 5)))
    caught(lambda: power(batch, flipped(flipped(right, 0, 5), 8 * 4, PRIME - 5)))


@pytest.mark.parametrize("side", [0, 1])
def test_a_wrong_seed_or_a_part_of_another_attempt_is_caught(side):
    seeds = [*SEEDS]
    seeds[side] = b"?" * 32
    shape, x = matrix_of()
    caught(lambda: power(Cubes(6, CTX), seeds=seeds))
    caught(lambda: mask(shape, x, seeds=seeds))
    caught(lambda: power(Cubes(6, CTX), Cubes(6, b"o" * 32).deal(*SEEDS)))
    caught(lambda: mask(shape, x, deal(shape, *SEEDS, b"o" * 32)))


def test_a_word_that_is_none_ends_the_attempt():
    batch = Cubes(3, CTX)
    right = batch.deal(*SEEDS)
    with pytest.raises(ProtocolAborted) as found:
        power(batch, PRIME.to_bytes(8, "little") + right[8:])
    assert found.value.code == "bad-word"


# uniform


CRITICAL = 155.1
"""χ² of 63 degrees of freedom is beyond it once in 10^9 times."""
WORDS = 4096


def chi_square(words):
    counts = np.bincount((words.reshape(-1) >> np.uint64(55)).astype(np.int64), minlength=64)
    expected = words.size / 64
    return float(((counts - expected) ** 2 / expected).sum())


class Without:
    """A stream some of whose columns are 0."""

    def __init__(self, stream, columns):
        self.stream, self.columns = stream, columns

    def take(self, rows, width):
        words = self.stream.take(rows, width)
        words[:, self.columns] = 0
        return words


def of_matrix(monkeypatch, side, without=None):
    """Return D, ρ and σ as a side opens them, less all that who knows X, u and w could say."""
    shape = Shape(WORDS, 2, 2, WIDE)
    ones = np.ones((WORDS, 2), np.uint64)
    nothing = np.zeros_like(ones)
    if without is not None:
        real = masking.masks_of
        party = (masking.MATCHER, masking.HELPER)[side]
        monkeypatch.setattr(
            masking,
            "masks_of",
            lambda shape, seed, ctx, who: (
                Without(real(shape, seed, ctx, who), without) if who == party else real(shape, seed, ctx, who)
            ),
        )
    said: list[list[bytes]] = []
    try:
        mask(shape, (ones, nothing) if side == 0 else (nothing, ones), said=said)
    except ProtocolAborted:
        assert without is not None
    return WIDE.read(said[side][1], 4)


PARTS = {"A": slice(0, 2), "alpha": slice(4, 5), "beta": slice(5, 6)}
OPENED = {"A": slice(0, 2), "alpha": slice(2, 3), "beta": slice(3, 4)}


@pytest.mark.parametrize("side", [0, 1])
def test_every_word_that_masks_the_matrix_is_uniform(monkeypatch, side):
    seen = of_matrix(monkeypatch, side)
    assert all(chi_square(seen[:, columns]) < CRITICAL for columns in OPENED.values())


@pytest.mark.parametrize("side", [0, 1])
def test_without_its_mask_features_are_not_uniform(monkeypatch, side):
    seen = of_matrix(monkeypatch, side, PARTS["A"])
    assert chi_square(seen[:, OPENED["A"]]) > CRITICAL


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("part", ["alpha", "beta"])
def test_without_their_masks_factors_are_known_to_who_knows_the_dealers(monkeypatch, side, part):
    """A u and B w are uniform by themselves; what D knows of them, less the challenge, must not be all."""
    shape = Shape(WORDS, 2, 2, WIDE)
    seen = of_matrix(monkeypatch, side, PARTS[part])[:, OPENED[part]]
    drawn = masking.masks_of(shape, SEEDS[side], CTX, (masking.MATCHER, masking.HELPER)[side])
    monkeypatch.undo()
    drawn = masking.masks_of(shape, SEEDS[side], CTX, (masking.MATCHER, masking.HELPER)[side]).take(WORDS, 6)
    key = masking.challenge_key(COINS[0] + COINS[1], CTX)
    weights = WIDE.stream(key).take(1, 4)
    factor, by = (drawn[:, :2], weights[:, :2]) if part == "alpha" else (drawn[:, 2:4], weights[:, 2:])
    assert (seen == WIDE.dots(factor, by)).all()
    masked_ = of_matrix(monkeypatch, side)[:, OPENED[part]]
    assert chi_square(WIDE.subtract(masked_, WIDE.dots(factor, by))) < CRITICAL


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("row", [0, 1])
def test_what_checks_powers_is_uniform_even_to_who_knows_the_powers(monkeypatch, side, row):
    batch = Cubes(WORDS, CTX)
    said: list[list[bytes]] = []
    powers = power(batch, said=said)[side]
    seen = WIDE.read(b"".join(said[side][1:2]), 1).reshape(2, -1)
    chi, psi = WIDE.stream(masking.challenge_key(COINS[0] + COINS[1], CTX)).take(2, WORDS)
    known = powers[0]
    if row:
        known = WIDE.add(gradient.times(chi, powers[0]), gradient.times(psi, powers[1]))
    assert chi_square(seen[row]) < CRITICAL
    assert chi_square(WIDE.subtract(known, seen[row])) < CRITICAL
    real = Cubes._stream

    def without(self, seed, party):
        stream = real(self, seed, party)
        take = stream.take

        def some(rows, width):
            words = take(rows, width)
            if rows == 3:
                words[1 + row] = 0
            return words

        stream.take = some
        return stream

    monkeypatch.setattr(Cubes, "_stream", without)
    left: list[list[bytes]] = []
    power(batch, said=left)
    bare = WIDE.read(b"".join(left[side][1:2]), 1).reshape(2, -1)
    assert (bare[row] == known).all()


@pytest.mark.parametrize("side", [0, 1])
def test_corrections_are_uniform_to_the_helper_even_if_it_knows_the_factors(side):
    batch, words = Cubes(WORDS, CTX), 2 * WORDS
    corrections = WIDE.read(batch.deal(*SEEDS), 1)[:words, 0]
    rho, square, cube = WIDE.add(*power(batch))
    whole = np.concatenate((square, cube))
    assert chi_square(corrections) < CRITICAL
    assert chi_square(WIDE.subtract(whole, corrections)) < CRITICAL
    assert chi_square(np.concatenate((rho, rho)) if side else rho) < CRITICAL


@pytest.mark.parametrize("side", [0, 1])
def test_every_opened_word_is_uniform(side):
    """Scores less ρ and residuals less b, of rows that are all alike."""
    cubic = Cubic(8, 8)
    powers = power(Cubes(WORDS, CTX))
    rows = mask(Shape(WORDS, 2, 1, WIDE), np.ones((WORDS, 2), np.int64))
    weights = WIDE.encode(np.array([100, -300]))
    score = [gradient.scores(each.rows, weights) for each in rows]
    own = [WIDE.subtract(one, each[0]) for one, each in zip(score, powers, strict=True)]
    e = WIDE.add(*own)
    assert chi_square(own[side]) < CRITICAL
    assert chi_square(e) < CRITICAL
    # To one side: the whole opening less its own part leaves the other's, whatever the score is.
    assert chi_square(WIDE.subtract(e, own[side])) < CRITICAL
    label = shares(np.ones(WORDS, np.int64), "y")
    rest = [gradient.residuals(cubic, score[i], label[i], e, powers[i], first=i == 0) for i in (0, 1)]
    assert len(set(WIDE.decode(WIDE.add(*rest)).tolist())) == 1
    masked_rest = [
        WIDE.subtract(one, each.factors[:, 0].copy()) for one, each in zip(rest, rows, strict=True)
    ]
    assert chi_square(masked_rest[side]) < CRITICAL
    assert chi_square(WIDE.add(*masked_rest)) < CRITICAL
    # Without ρ, and without b, what is opened is the score, and the residual, themselves.
    assert chi_square(WIDE.add(*score)) > CRITICAL
    assert chi_square(WIDE.add(*rest)) > CRITICAL


# talking


def test_what_is_said_is_cut_and_comes_together_however_long_it_is(monkeypatch):
    from protocols.ids import Role
    from protocols.training.joined import talk

    monkeypatch.setattr(talk, "MAX_BODY_BYTES", 64)
    monkeypatch.setattr(talk, "SPAN_WORDS", 20)
    values = np.arange(55, dtype=np.uint64)
    sides = [Talk(Role("other"), 1, opened(WIDE, values + np.uint64(side))) for side in (0, 1)]
    queue = [(side, message) for side in (0, 1) for message in sides[side].begin()]
    while queue:
        side, message = queue.pop(0)
        assert len(message.body) <= 64
        other = sides[1 - side]
        other.take(type("In", (), {"body": message.body, "last": message.last, "round": 1, "sender": "x"})())
        queue += [(1 - side, each) for each in other.go()]
    for side in sides:
        assert side.complete
        assert side.result is not None
        assert (side.result == 2 * values + np.uint64(1)).all()


def test_a_message_of_another_length_or_after_the_end_is_refused():
    from protocols.ids import Role
    from protocols.party import Incoming

    peer = Role("other")
    for body, last in ((b"", False), (b"x" * 7, False), (b"x" * 8, True)):
        side = Talk(peer, 1, opened(WIDE, np.zeros(1, np.uint64)))
        side.begin()
        side.take(Incoming(peer, 1, body, last))
        with pytest.raises(ProtocolAborted) as found:
            side.go()
        assert found.value.code == "bad-length"
    side = Talk(peer, 1, opened(WIDE, np.zeros(1, np.uint64)))
    side.begin()
    for body, last in ((bytes(8), False), (b"", True)):
        side.take(Incoming(peer, 1, body, last))
        side.go()
    assert side.complete
    with pytest.raises(ProtocolAborted) as found:
        side.take(Incoming(peer, 1, b"", last=True))
    assert found.value.code == "unexpected-message"


def test_challenges_of_batches_and_attempts_differ():
    keys = {masking.challenge_key(COINS[0] + COINS[1], bytes([tag]) * 32) for tag in range(5)}
    assert len(keys) == 5
    assert cubes.DEALER == "dealer"
