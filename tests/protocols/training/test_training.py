import gc
import tracemalloc
from dataclasses import replace
from fractions import Fraction
from itertools import product
from math import inf, nan
from secrets import token_bytes

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.dp.cost import ORDERS, UNIT, Cost
from protocols.dp.mechanism import Budget
from protocols.errors import DecodeError, InputError, ProtocolAborted
from protocols.training import membership, scores
from protocols.training.accounting import rho_for, run_cost
from protocols.training.boost import Boost
from protocols.training.grid import cut
from protocols.training.logistic import Logistic
from protocols.training.mlp import Mlp
from protocols.training.params import most_words
from protocols.training.run import Noise, run
from protocols.training.schema import Amount, Binned, Coded, Rows, Schema

CODED = (
    Binned("age", (20.0, 40.0, 60.0)),
    Coded("district", ("east", "west", "north")),
    Coded("sex", ("1", "2")),
)
SCHEMA = Schema(CODED)
WITH_AMOUNT = Schema(CODED, (Amount("income", 0.0, 10_000.0),))


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """As in a worker: threads of small products wait for each other more than they compute."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def people(schema: Schema = SCHEMA, count: int = 400, seed: int = 1) -> Rows:
    rng = np.random.default_rng(seed)
    table = {
        "age": rng.uniform(0, 90, count),
        "district": rng.choice(["east", "west", "north", "elsewhere"], count),
        "sex": rng.choice(["1", "2"], count),
        "income": rng.uniform(-1000, 20_000, count),
        "street": np.random.default_rng(seed + 1).choice(list("012345678"), count),
    }
    chance = 1 / (1 + np.exp(2 - table["age"] / 30 - (table["district"] == "west")))
    return schema.encode(table, (rng.random(count) < chance).astype(int))


def recipes():
    yield "logistic", Logistic(SCHEMA, rounds=4, clip=1.0)
    yield "amounts", Logistic(WITH_AMOUNT, rounds=4, clip=1.5, ridge=0.01, radius=2.0)
    yield "mlp", Mlp(SCHEMA, hidden=3, rounds=3, clip=0.3)
    yield "greedy", Boost(SCHEMA, trees=2, depth=3, fewest=5)
    yield "random", Boost(SCHEMA, mode="random", trees=4, depth=3, batch=2)
    yield "any", Boost(SCHEMA, mode="random", trees=2, depth=4, per_tree=0)


RECIPES = [pytest.param(recipe, id=name) for name, recipe in recipes()]


# -- features


def test_an_unlisted_code_and_an_empty_number_have_a_place_of_their_own():
    schema = Schema((Binned("age", (20.0, 40.0), missing=True), Coded("sex", ("1", "2"))))
    table = {"age": np.array([19.9, 20, 50, nan]), "sex": np.array(["2", "1", "9", ""])}
    rows = schema.encode(table, np.array([0, 1, 1, 0]))
    assert rows.codes.tolist() == [[0, 1], [1, 0], [2, 2], [3, 2]]
    assert schema.dense(rows).sum(axis=1).tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"age": np.array([1.0, nan])}, "not-a-number"),
        ({"age": np.array([1.0, inf])}, "not-a-number"),
        ({"age": np.array([1.0])}, "no-rows"),
        ({"labels": np.array([1, 1])}, "constant-label"),
        ({"labels": np.array([0, 2])}, "bad-labels"),
        ({"labels": np.array([])}, "no-rows"),
    ],
)
def test_rows_that_cannot_be_trained_on_are_refused(change, code):
    table = {"age": np.array([1.0, 2.0]), "labels": np.array([0, 1])} | change
    with pytest.raises(InputError) as caught:
        Schema((Binned("age", (20.0,)),)).encode(table, table["labels"])
    assert caught.value.code == code


def test_another_order_of_features_or_of_codes_has_another_digest():
    other = Schema((CODED[1], CODED[0], CODED[2]))
    codes = Schema((CODED[0], Coded("district", ("west", "east", "north")), CODED[2]))
    assert len({SCHEMA.digest, other.digest, codes.digest, WITH_AMOUNT.digest}) == 4


# -- recipes


@pytest.mark.parametrize("recipe", RECIPES)
def test_federated_training_is_centralised_training_to_the_last_bit(recipe):
    rows = people(recipe.schema)
    alone = run(recipe, [rows], token_bytes).state
    order = np.argsort(rows.labels, kind="stable")
    for cuts in ([200], [10, 30, 31], list(range(20, 400, 20))):
        nodes = [rows.take(part) for part in np.split(order, cuts)]
        together = run(recipe, nodes, token_bytes).state
        for name, array in recipe.arrays(alone).items():
            assert np.array_equal(array, recipe.arrays(together)[name]), name


@pytest.mark.parametrize("recipe", RECIPES)
def test_no_row_adds_more_than_its_bound(recipe):
    rows = people(recipe.schema, 60)
    state = recipe.start()
    while layout := recipe.layout(state):
        for at in range(len(rows)):
            own = recipe.contribute(state, rows.take(slice(at, at + 1))).tolist()
            assert sum(value * value for value in own) <= layout.vector.l2_squared
            assert max(map(abs, own)) <= layout.largest
        # Weights far from zero, so that gradients reach their bounds.
        total = recipe.contribute(state, rows) * 50.0
        state = recipe.advance(state, total, len(rows))


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_most_words_of_a_round_are_those_of_its_longest(recipe):
    rows, state, longest = people(recipe.schema, 200), recipe.start(), 0
    while layout := recipe.layout(state):
        longest = max(longest, layout.vector.size)
        state = recipe.advance(state, recipe.contribute(state, rows).astype(float), len(rows))
    assert most_words(recipe) == longest


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_state_comes_back_from_its_arrays(recipe):
    rows = people(recipe.schema)
    state = recipe.start()
    while layout := recipe.layout(state):
        again = recipe.restore(recipe.arrays(state))
        vector = recipe.contribute(again, rows)
        assert np.array_equal(vector, recipe.contribute(state, rows))
        assert vector.shape == (layout.vector.size,)
        state = recipe.advance(again, vector.astype(float), len(rows))
    assert np.array_equal(
        recipe.scores(state, rows), recipe.scores(recipe.restore(recipe.arrays(state)), rows)
    )


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_total_or_a_state_that_is_none_is_refused(recipe):
    state = recipe.start()
    size = recipe.layout(state).vector.size
    for total in (np.zeros(size + 1), np.full(size, nan), np.full(size, inf)):
        with pytest.raises(ProtocolAborted) as caught:
            recipe.advance(state, total, 100)
        assert caught.value.code == "bad-total"
    for name, array in recipe.arrays(state).items():
        for bad in ({}, {name: array.astype(np.float32)}, {name: array[..., None]}):
            arrays = {other: each for other, each in recipe.arrays(state).items() if other != name} | bad
            with pytest.raises(DecodeError):
                recipe.restore(arrays)


def test_logistic_finds_what_a_solver_finds():
    rows = people(WITH_AMOUNT, 3000)
    recipe = Logistic(WITH_AMOUNT, rounds=800, clip=8.0, step=2.0, ridge=0.003)
    found = run(recipe, [rows], token_bytes).state
    features = np.hstack([WITH_AMOUNT.dense(rows), np.ones((len(rows), 1))])
    weights = np.zeros(features.shape[1])
    penalty = np.append(np.full(len(weights) - 1, 0.003), 0)
    for _ in range(30):
        chances = 1 / (1 + np.exp(-features @ weights))
        slope = features.T @ (chances - rows.labels) / len(rows) + penalty * weights
        curve = (features * (chances * (1 - chances))[:, None]).T @ features / len(rows) + np.diag(penalty)
        weights -= np.linalg.solve(curve, slope)
    assert np.abs(features @ weights - recipe.scores(found, rows)).max() < 2e-3


def test_the_gradient_of_the_perceptron_is_that_of_its_loss():
    recipe, rows = Mlp(SCHEMA, hidden=3, clip=1e3), people(count=40)
    state = replace(recipe.start(), weights=np.random.default_rng(0).normal(0, 0.5, recipe.size))

    def loss(weights):
        margins = recipe.scores(replace(state, weights=weights), rows)
        return np.log1p(np.exp(-np.where(rows.labels == 1, margins, -margins))).sum()

    found = recipe.contribute(state, rows) * (1e3 / (1 << 20))
    shifts = np.eye(recipe.size) * 1e-5
    expected = [(loss(state.weights + s) - loss(state.weights - s)) / 2e-5 for s in shifts]
    assert np.abs(found - expected).max() < 40 * 1e3 / (1 << 20)


def test_random_trees_are_drawn_without_data_and_the_same_everywhere():
    recipe = Boost(SCHEMA, mode="random", trees=3, depth=3)
    other = run(recipe, [people(seed=2)], token_bytes).state
    state = run(recipe, [people(seed=3)], token_bytes).state
    assert np.array_equal(other.right, state.right)
    assert np.array_equal(other.features, state.features)
    assert not np.array_equal(other.leaves, state.leaves)


# -- whole numbers


@given(st.integers(0, 2**32), st.floats(1e-3, 1e3), st.integers(1, 1 << 24))
@settings(max_examples=60, deadline=None)
def test_cut_vectors_keep_their_bound_on_whole_numbers(seed, clip, bound):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(0, 1, (5, 7)) * 10.0 ** rng.integers(-6, 8, (5, 1))
    vectors[0, 0] = nan
    whole = cut(vectors, clip, bound)
    assert not whole[0].any()
    for row, original in zip(whole[1:].tolist(), vectors[1:], strict=True):
        assert sum(value * value for value in row) <= bound * bound
        norm = np.linalg.norm(original)
        expected = original * min(1, clip / norm) * bound / clip
        assert np.abs(row - expected).max() <= 1.001


# -- states from the wire

WIDE = Schema((*CODED, Coded("street", tuple(map(str, range(9))))), ())


def fuzzed():
    yield "logistic", Logistic(SCHEMA, rounds=4, clip=1.0)
    yield "amounts", Logistic(WITH_AMOUNT, rounds=4, clip=1.5)
    yield "mlp", Mlp(WITH_AMOUNT, hidden=2, rounds=3, clip=0.3)
    yield "greedy", Boost(WIDE, trees=2, depth=3, fewest=5)
    yield "random", Boost(WIDE, mode="random", trees=4, depth=2, batch=2)


def extreme(rng, array):
    """Return an array of the same form with other numbers, mostly such as no training comes to."""
    if array.dtype == np.bool_:
        return rng.random(array.shape) < 0.5
    if array.dtype == np.float64:
        ends = [0.0, 1.0, -1.0, 1e-300, 1e3, -1e3, 1e17, 1e120, 1.7e308, -1.7e308]
        return rng.choice(ends[: int(rng.integers(1, len(ends) + 1))], array.shape)
    info = np.iinfo(array.dtype)
    ends = [0, -1, 1, 2, 3, 4, 5, 1 << 10, -(1 << 14), info.max, info.min, 1 << 20, 1 << 30, -(1 << 30)]
    usable = [end for end in ends if info.min <= end <= info.max]
    return rng.choice(np.array(usable[: int(rng.integers(1, len(usable) + 1))], array.dtype), array.shape)


def any_state(rng, recipe):
    """Return arrays as a lead could send them: those of a round, some of them put into others."""
    state, rows = recipe.start(), people(recipe.schema, 30)
    for _ in range(int(rng.integers(0, recipe.rounds + 1))):
        total = recipe.contribute(state, rows) + rng.normal(0, 1e6, recipe.layout(state).vector.size)
        state = recipe.advance(state, total, len(rows))
    arrays = recipe.arrays(state)
    names = [name for name in arrays if rng.random() < 0.3]
    return {name: extreme(rng, array) if name in names else array for name, array in arrays.items()}


def taken_or_none(recipe, arrays):
    try:
        return recipe.restore(arrays)
    except DecodeError:
        return None


def every_row(schema: Schema, rng) -> Rows:
    """Return rows of all kinds: each code at its least and its greatest, amounts at both ends."""
    codes = np.stack([rng.choice([0, width - 1, width // 2], 24) for width in schema.widths], 1)
    amounts = rng.choice([0, 1, 256], (24, len(schema.amounts)))
    return Rows(codes.astype(np.uint16), amounts.astype(np.uint16), (np.arange(24) % 2).astype(np.uint8))


@pytest.mark.parametrize("recipe", [pytest.param(recipe, id=name) for name, recipe in fuzzed()])
def test_whatever_state_is_taken_is_answered_on_any_rows_within_the_bounds(recipe):
    rng = np.random.default_rng(7)
    taken = 0
    for _ in range(40):
        arrays = any_state(rng, recipe)
        state = taken_or_none(recipe, arrays)
        if state is None:
            continue
        taken += 1
        rows = every_row(recipe.schema, rng)
        with np.errstate(all="raise", under="ignore"):
            assert np.isfinite(recipe.scores(state, rows)).all()
            if (layout := recipe.layout(state)) is None:
                continue
            whole = recipe.contribute(state, rows)
        none = recipe.contribute(state, rows.take(slice(0, 0)))
        assert whole.shape == none.shape == (layout.vector.size,)
        assert not none.any()
        assert np.abs(whole).max() <= layout.bound(len(rows))
        own = recipe.contribute(state, rows.take(slice(3, 4))).tolist()
        assert sum(value * value for value in own) <= layout.vector.l2_squared
    assert taken > 8


def grown(recipe, rounds: int):
    state, rows = recipe.start(), people(recipe.schema)
    for _ in range(rounds):
        state = recipe.advance(state, recipe.contribute(state, rows).astype(float), len(rows))
    return recipe.arrays(state)


def put(array, value):
    changed = array.copy()
    changed.reshape(-1)[0] = value
    return changed


GREEDY, DRAWN = (recipe for name, recipe in fuzzed() if name in ("greedy", "random"))


@pytest.mark.parametrize(
    ("recipe", "rounds", "name", "change"),
    [
        (GREEDY, 4, "features", lambda array: put(array, len(WIDE.coded))),
        (GREEDY, 4, "features", lambda array: put(array, -2)),
        (GREEDY, 4, "features", lambda array: put(array, 2**15 - 1)),
        (DRAWN, 1, "features", lambda array: put(array, 4)),
        (GREEDY, 4, "round", lambda array: put(array, 5)),
        (GREEDY, 4, "round", lambda array: put(array, -1)),
        (GREEDY, 4, "round", lambda array: np.array([4, 0])),
        (GREEDY, 4, "round", lambda array: np.array([7, 1])),
        (DRAWN, 1, "round", lambda array: np.array([2, 0])),
        (DRAWN, 1, "round", lambda array: np.array([1, 1])),
        (DRAWN, 2, "round", lambda array: np.array([3, 0])),
        (GREEDY, 4, "leaves", lambda array: put(array, 1 << 40)),
        (GREEDY, 4, "leaves", lambda array: put(array, -(2**63))),
        (GREEDY, 4, "leaves", np.ones_like),
        (GREEDY, 4, "parents", lambda array: put(array, 1e300)),
        (GREEDY, 0, "right", lambda array: np.ones((1, *array.shape[1:]), np.bool_)),
        (Logistic(SCHEMA, rounds=4), 2, "round", lambda array: put(array, 5)),
        (Logistic(SCHEMA, rounds=4), 2, "round", lambda array: put(array, -1)),
        (Logistic(SCHEMA, rounds=4), 2, "weights", lambda array: put(array, (1 << 30) + 1)),
        (Logistic(SCHEMA, rounds=4), 2, "weights", lambda array: put(array, -(2**63))),
        (Logistic(SCHEMA, rounds=4), 2, "velocity", lambda array: put(array, 1e300)),
        (Mlp(SCHEMA, hidden=2, rounds=3), 1, "weights", lambda array: put(array, 1e200)),
        (Mlp(SCHEMA, hidden=2, rounds=3), 1, "mean", lambda array: put(array, -1e200)),
        (Mlp(SCHEMA, hidden=2, rounds=3), 1, "square", lambda array: put(array, -1.0)),
        (Mlp(SCHEMA, hidden=2, rounds=3), 1, "round", lambda array: put(array, 4)),
    ],
)
def test_a_state_that_no_run_comes_to_is_refused(recipe, rounds, name, change):
    arrays = grown(recipe, rounds)
    recipe.restore(arrays)
    with pytest.raises(DecodeError) as caught:
        recipe.restore({**arrays, name: change(arrays[name])})
    assert caught.value.code == "bad-state"


def test_the_weights_of_a_perceptron_stay_within_what_a_state_may_have():
    recipe = Mlp(SCHEMA, hidden=2, rounds=2000, step=1.0)
    state = replace(recipe.start(), weights=np.full(recipe.size, 1023.5))
    for _ in range(3):
        state = recipe.advance(state, np.full(recipe.size, -1e12), 10)
    assert np.abs(state.weights).max() == 1024
    recipe.restore(recipe.arrays(state))


# -- memory


def test_rows_are_looked_at_so_many_at_a_time_however_few_there_are():
    for count, size in [(0, 4), (1, 4), (4, 4), (5, 4), (400, 512)]:
        rows = people(WITH_AMOUNT, 400).take(slice(0, count))
        parts = list(rows.padded(size))
        assert {len(some) for _, some in parts} == {size}
        assert [n for span, _ in parts for n in range(span.start, span.stop)] == list(range(count))
        whole = np.concatenate([some.codes[: span.stop - span.start] for span, some in parts])
        assert np.array_equal(whole, rows.codes)


def peak(call) -> int:
    gc.collect()
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("recipe", [each for each in RECIPES if each.id in ("logistic", "mlp", "greedy")])
def test_memory_does_not_say_how_many_rows_a_filter_kept(recipe):
    few, many = (people(recipe.schema, count) for count in (40, 400))
    state = recipe.start()
    for rows in (few, many):
        recipe.contribute(state, rows)  # what is loaded and kept once is
    peaks = [
        peak(lambda some=some: recipe.contribute(state, some))
        for some in (few.take(slice(0, 0)), few.take(slice(0, 1)), few, many)
    ]
    # A few numbers for each row, such as its score, and no gradients: those of 400 rows are 400 × d × 8.
    assert max(peaks) - min(peaks) < 400 * 40


def test_gradients_of_large_perceptrons_take_as_much_memory_as_those_of_small_ones():
    seen = []
    for hidden in (1, 64, 512):
        recipe = Mlp(Schema((Coded("street", tuple(map(str, range(4000)))),)), hidden=hidden)
        seen.append(recipe._chunk * recipe.size)
        assert 1 <= recipe._chunk <= 512
    assert max(seen) <= 1 << 22


@pytest.mark.parametrize("hidden", [1, 3, 16])
def test_a_row_adds_the_same_whoever_else_is_looked_at_with_it(hidden):
    recipe, rows = Mlp(WITH_AMOUNT, hidden=hidden, clip=0.3), people(WITH_AMOUNT, 700)
    state = replace(recipe.start(), weights=np.random.default_rng(0).normal(size=recipe.size))
    whole = recipe.contribute(state, rows)
    without = recipe.contribute(state, rows.take(slice(1, None)))
    assert np.array_equal(whole - without, recipe.contribute(state, rows.take(slice(0, 1))))


# -- accounting


def test_a_whole_run_costs_what_dp_accounting_says_of_its_rounds_at_every_order():
    import dp_accounting

    budgets = {"train": Budget("zcdp", Fraction("0.00042")), "evaluate": Budget("zcdp", Fraction("0.0019"))}
    rounds = {"train": 57, "evaluate": 3}
    accountant = dp_accounting.rdp.RdpAccountant([float(order) for order in ORDERS])
    for turn, count in rounds.items():
        multiplier = float(1 / (2 * budgets[turn].amount)) ** 0.5
        accountant.compose(dp_accounting.GaussianDpEvent(multiplier), count)
    ours = run_cost(budgets, rounds)
    for loss, theirs in zip(ours.rdp, accountant._rdp, strict=True):
        assert loss / UNIT == pytest.approx(theirs, rel=1e-12)
    assert ours.pure is None
    assert ours.delta == 0


@pytest.mark.parametrize(("epsilon", "rounds"), [("1", 60), ("0.1", 1), ("8", 400)])
def test_a_run_for_an_epsilon_keeps_to_it_and_wastes_nothing(epsilon, rounds):
    import dp_accounting

    epsilon, delta = Fraction(epsilon), Fraction("1e-5")
    rho = rho_for(epsilon, delta, rounds)
    whole = run_cost({"train": Budget("zcdp", rho)}, {"train": rounds})
    assert whole.within("approximate-dp", epsilon, delta)
    more = run_cost({"train": Budget("zcdp", rho + Fraction(1, 10**9))}, {"train": rounds})
    assert not more.within("approximate-dp", epsilon, delta)
    accountant = dp_accounting.rdp.RdpAccountant()
    accountant.compose(dp_accounting.GaussianDpEvent(float(1 / (2 * rho)) ** 0.5), rounds)
    assert accountant.get_epsilon(1e-5) <= float(epsilon) * (1 + 1e-9)


def test_rounds_that_were_never_sent_give_back_exactly_theirs():
    budgets = {"train": Budget("zcdp", Fraction("0.01")), "evaluate": Budget("zcdp", Fraction("0.002"))}
    whole = run_cost(budgets, {"train": 20, "evaluate": 2})
    parts = run_cost(budgets, {"train": 7}) + run_cost(budgets, {"train": 13, "evaluate": 2})
    assert parts == whole
    assert run_cost(budgets | {"train": None}, {"train": 20}) == Cost()


@pytest.mark.parametrize("recipe", RECIPES[:1])
def test_noise_of_five_nodes_has_the_variance_that_was_asked_for(recipe):
    rows = people()
    recipe = replace(recipe, rounds=1, momentum=0.0, step=1.0)
    still = run(recipe, [rows], token_bytes).state
    noise = Noise(Fraction("0.5"), 4)
    nodes = [rows.take(part) for part in np.array_split(np.arange(400), 5)]
    draws = np.stack([run(recipe, nodes, token_bytes, noise).state.velocity for _ in range(300)])
    expected = (5 / 4) ** 0.5 * recipe.clip / 400
    # 3,300 values: the deviation is within 6 % of its own, all but once in 10^6 runs.
    assert (draws - still.velocity).std() == pytest.approx(expected, rel=0.06)


# -- measures

HELD = scores.HELD_OUT


def scored(count=3000, groups=1, bins=32):
    """Rows, log-odds that know something of the label and more of what was trained on, and a histogram."""
    rows, rng = people(count=count), np.random.default_rng(0)
    held = rng.random(count) < 0.4
    sign = np.where(rows.labels == 1, 1.0, -1.0)
    margins = rng.normal(0, 1, count) + sign * np.where(held, 0.5, 0.9)
    made = scores.Bins.even(bins, groups)
    group = rows.codes[:, 2] % groups
    return rows, margins, held, group, made, made.count(margins, rows, group, held)


def test_every_row_is_in_one_cell_of_its_own_side_group_label_and_bin():
    rows, margins, held, group, bins, histogram = scored(500, groups=2)
    tables = bins.tables(histogram)
    assert histogram.shape == (bins.size,)
    assert bins.layout(3).vector.l2_squared == 9
    chances = 1 / (1 + np.exp(-margins))
    for side, code, label in product((0, 1), (0, 1), (0, 1)):
        some = (held == side) & (group == code) & (rows.labels == label)
        expected, _ = np.histogram(chances[some], 32, (0, 1))
        assert tables[side, code, label].tolist() == expected.tolist()
    public = bins.tables(bins.count(margins, rows))
    assert public[scores.TRAINED].sum() == 0
    assert public[HELD].sum() == 500


@pytest.mark.parametrize("edges", [(0.25, 0.5), (0.4, 0.5, 0.7), (0.5, 0.5, 0.5), (0.75, 0.5, 0.25), ()])
def test_bins_that_are_not_symmetric_about_one_half_are_refused(edges):
    with pytest.raises(InputError) as caught:
        scores.Bins(edges)
    assert caught.value.code == "bad-bins"


def test_the_binned_auc_is_within_its_bound_of_the_exact_one():
    rows, margins, held, _, bins, histogram = scored(bins=64)
    table = bins.tables(histogram)[HELD, 0]
    own = rows.labels[held]
    pairs = margins[held][own == 1][:, None] - margins[held][own == 0]
    exact = (pairs > 0).mean() + (pairs == 0).mean() / 2
    assert abs(scores.auc(table) - exact) <= scores.auc_error(table) < 0.02


def test_the_binned_loss_is_near_the_exact_one():
    rows, margins, held, _, bins, histogram = scored(bins=256)
    own = np.where(rows.labels == 1, margins, -margins)[held]
    assert scores.log_loss(bins.tables(histogram)[HELD, 0], bins.edges) == pytest.approx(
        np.log1p(np.exp(-own)).mean(), rel=0.005
    )


def test_noise_moves_every_figure_as_far_as_predicted():
    _, _, _, _, bins, histogram = scored(groups=2)
    rng, variance = np.random.default_rng(1), 9.0

    def figures(counts):
        tables = bins.tables(counts)
        table = tables[HELD].sum(axis=0)
        return (
            scores.auc(table),
            scores.log_loss(table, bins.edges),
            *scores.errors(table, bins.edges, 0.5),
            scores.auc(scores.membership(tables)),
        )

    tables = bins.tables(histogram)
    table = tables[HELD].sum(axis=0)
    predicted = (
        scores.auc_deviation(table, 2 * variance),
        scores.log_loss_deviation(table, bins.edges, 2 * variance),
        *scores.errors_deviation(table, bins.edges, 0.5, 2 * variance),
        scores.auc_deviation(scores.membership(tables), 4 * variance),
    )
    drawn = np.array([figures(histogram + rng.normal(0, 3, bins.size)) for _ in range(2000)])
    # The deviation of 2,000 draws is within 6 of its own, 1/√4000 each, but for terms of second order.
    assert drawn.std(axis=0) == pytest.approx(np.array(predicted), rel=0.12)
    assert np.abs(drawn.mean(axis=0) - figures(histogram)).max() < 0.2 * max(predicted)


def test_the_membership_auc_of_a_histogram_is_that_of_losses():
    rows, margins, held, _, bins, histogram = scored(bins=512)
    table = scores.membership(bins.tables(histogram))
    by_loss = membership.by_loss(margins, rows, ~held).auc
    assert by_loss > 0.55
    assert abs(scores.auc(table) - by_loss) <= scores.auc_error(table) < 0.01


def test_groups_and_errors_come_from_one_histogram():
    rows = people(count=500)
    group = rows.codes[:, 2] % 2
    bins = scores.Bins.even(20, groups=2)
    margins = np.where(rows.labels == 1, 3.0, -3.0)
    tables = bins.tables(bins.count(margins, rows, group))[HELD]
    assert tables.sum() == 500
    assert [scores.auc(table) for table in tables] == [1.0, 1.0]
    assert scores.errors(tables[0], bins.edges, 0.5) == (0.0, 0.0)
    chances, parts, error = scores.calibration(tables.sum(axis=0), bins.edges, 10)
    assert parts.tolist() == [0.0, 1.0]
    assert error == pytest.approx(np.abs(chances - parts).mean(), abs=0.02)


@pytest.mark.parametrize(
    "table", [[[-5.0, -1], [-2, -2]], [[3.0, 1], [-2, 1]], [[0.0, 0], [4, 4]], [[-1.0, 1], [2, 2]]]
)
def test_counts_that_noise_has_left_fewer_than_none_have_no_auc(table):
    assert np.isnan(scores.auc(np.array(table)))
    with np.errstate(all="raise"):
        assert np.isnan(scores.auc_deviation(np.array(table), 1.0))


def test_no_bin_of_a_calibration_has_few_rows():
    table = np.array([[90.0, 60, 0, 0], [10, 40, 3, 1]])
    chances, parts, error = scores.calibration(table, (0.25, 0.5, 0.75), 100)
    assert parts.tolist() == [0.1, 44 / 104]
    assert chances.tolist() == pytest.approx([0.125, (37.5 + 3 * 0.625 + 0.875) / 104])
    assert error == pytest.approx((100 * abs(0.125 - 0.1) + 104 * abs(chances[1] - parts[1])) / 204)
    # Of too few rows in all there is none; nor does noise that takes rows away make one smaller.
    for few in (table / 100, np.zeros((2, 4)), -table):
        chances, parts, error = scores.calibration(few, (0.25, 0.5, 0.75), 100)
        assert (len(chances), len(parts), np.isnan(error)) == (0, 0, True)
    table[:, 2:] = -5
    assert scores.calibration(table, (0.25, 0.5, 0.75), 100)[1].tolist() == [0.1, 0.4]


def test_an_attack_that_knows_nothing_scores_one_half_and_one_that_knows_all_one():
    rows, rng = people(count=2000), np.random.default_rng(0)
    members = rng.random(2000) < 0.5
    # Standard deviation of an AUC of 1,000 against 1,000: .013.
    assert abs(membership.by_loss(rng.normal(0, 1, 2000), rows, members).auc - 0.5) < 0.07
    sure = np.where(rows.labels == 1, 1, -1) * np.where(members, 3.0, -3.0)
    assert membership.by_loss(sure, rows, members) == membership.Audit(1.0, 1.0)
