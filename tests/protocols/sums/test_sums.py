"""Totals are the plain sums, whatever shape, mode and signs; plans that could wrap are refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from crosscheck_case import CTX, seeded
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sum_case import AGGREGATOR, names, sum_case, sums_plan

from protocols.errors import InputError
from protocols.ids import Role
from protocols.party import MAX_BODY_BYTES, Finished, Incoming, Waiting
from protocols.sums import bfv
from protocols.sums.parties import MASKED, READY, SEED, TOTALS, Aggregator, Contributor
from protocols.sums.plan import CHECKS, CIPHERTEXTS, MASK_BLOCK, MAX_TOTAL, Parameters, Sums

VECTORS = json.loads((Path(__file__).parents[2] / "vectors/table.json").read_text("utf-8"))
ONE_LIMB = (bfv.PRIME - 1) // 2
BLOCK = bfv.DEGREE - CHECKS


def drawn(plan: Sums, kind: str, seed: int) -> list[list[int]]:
    """Return vectors of one kind: random, all at the upper or lower end, or ends that alternate."""
    rng, share, words = np.random.Generator(np.random.Philox(seed)), plan.share, plan.words
    match kind:
        case "random":
            return [rng.integers(-share, share, words, endpoint=True).tolist() for _ in plan.sources]
        case "upper":
            return [[share] * words for _ in plan.sources]
        case "lower":
            return [[-share] * words for _ in plan.sources]
    return [
        [share if (word + at) % 2 else -share for word in range(words)] for at in range(len(plan.sources))
    ]


@settings(max_examples=40, deadline=None)
@given(
    sources=st.integers(2, 6),
    words=st.integers(1, 40) | st.sampled_from([BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK]),
    bound=st.integers(0, 1 << 34) | st.integers(0, ONE_LIMB) | st.integers(0, MAX_TOTAL),
    mode=st.sampled_from(["bfv", "mask"]),
    kind=st.sampled_from(["random", "upper", "lower", "alternating"]),
    key_holder=st.integers(1, 6),
    seed=st.integers(0, 1 << 32),
)
@example(2, 1, 0, "bfv", "upper", 1, 0)
@example(3, BLOCK + 1, ONE_LIMB, "bfv", "upper", 2, 0)
@example(3, BLOCK + 1, ONE_LIMB, "bfv", "lower", 3, 0)
@example(3, BLOCK + 1, ONE_LIMB + 1, "bfv", "lower", 3, 0)
@example(4, BLOCK, MAX_TOTAL, "bfv", "lower", 4, 0)
@example(4, BLOCK, MAX_TOTAL, "bfv", "upper", 1, 0)
@example(4, 9, MAX_TOTAL, "mask", "upper", 4, 0)
def test_totals_are_the_plain_sums(  # noqa: PLR0917  # hypothesis gives each by name
    sources, words, bound, mode, kind, key_holder, seed
):
    plan = sums_plan(sources, words, bound, mode, key_holder=min(key_holder, sources))
    vectors = drawn(plan, kind, seed)
    case = sum_case(plan, vectors, seed=seed)
    expected = [sum(column) for column in zip(*vectors, strict=True)]
    assert case.run().tolist() == expected
    assert max(len(message.body) for message in case.sent) <= MAX_BODY_BYTES


@pytest.mark.parametrize(("mode", "words"), [("bfv", 40), ("mask", 1000)])
def test_fifty_sources_add_up(mode, words):
    plan = sums_plan(50, words, MAX_TOTAL, mode, key_holder=50)
    vectors = drawn(plan, "random", 1)
    expected = np.array(vectors).sum(axis=0)
    assert np.array_equal(sum_case(plan, vectors).run(), expected)


def test_long_vectors_travel_in_messages_of_bounded_size():
    for mode, words, pieces in [("bfv", (CIPHERTEXTS + 2) * BLOCK, 2), ("mask", 2 * MASK_BLOCK, 3)]:
        plan = sums_plan(2, words, 1 << 40, mode)
        case = sum_case(plan, drawn(plan, "random", 2))
        case.run()
        for sender in (*plan.sources, AGGREGATOR):
            stream = [m for m in case.sent if m.sender == sender and m.round in (MASKED, TOTALS)]
            assert [m.last for m in stream] == [False] * (pieces - 1) + [True]
            assert all(len(m.body) <= MAX_BODY_BYTES for m in stream)


def test_a_sum_is_that_of_the_specification():
    vector = VECTORS["sum"]
    plan = planned(vector)
    seeds = {(each["lower"], each["higher"]): bytes.fromhex(each["seed"]) for each in vector["seeds"]}
    parties = {}
    for role in plan.sources:
        own = [seeds[role, other] for other in plan.sources if (role, other) in seeds]
        drawn_seeds = iter([*own, bytes.fromhex(vector["own_seed"])])
        words = np.array(vector["vectors"][role], dtype=np.int64)
        parties[role] = Contributor(plan, role, words, lambda count, it=drawn_seeds: next(it)[:count])
    parties[AGGREGATOR] = Aggregator(plan)
    case = sum_case(plan, list(vector["vectors"].values()))
    case.parties = parties
    assert case.run().tolist() == vector["total"]
    sent = {m.sender: m.body.hex() for m in case.sent if m.round == MASKED}
    assert sent == vector["masked"]
    assert [m.body.hex() for m in case.sent if m.round == TOTALS] == [vector["totals"]]


@pytest.mark.parametrize("vector", VECTORS["plans"], ids=lambda v: v["mode"] + " " + v["bound"])
def test_what_sources_agree_on_is_that_of_the_specification(vector):
    plan = planned(vector)
    assert plan.digest().hex() == vector["digest"]
    # Whatever is changed, the digest is another.
    others = [
        replace(plan, words=plan.words + 1),
        replace(plan, bound=plan.bound - 1),
        replace(plan, ctx=bytes(32)),
        replace(plan, meaning=b"something else"),
        replace(plan, key_holder=plan.sources[0]),
        replace(plan, aggregator=Role("another")),
        replace(plan, sources=plan.sources[::-1]),
        replace(plan, sources=(*plan.sources, Role("source-4"))),
        replace(plan, mode="bfv" if plan.mode == "mask" else "mask"),
    ]
    assert len({plan.digest(), *(other.digest() for other in others)}) == 10


def planned(vector) -> Sums:
    return Sums(
        tuple(map(Role, vector["sources"])),
        Role(vector["aggregator"]),
        Role(vector["key_holder"]),
        vector["words"],
        int(vector["bound"]),
        vector["mode"],
        bytes.fromhex(vector["ctx"]),
        bytes.fromhex(vector["meaning"]),
    )


# parameters


def test_the_fewest_limbs_that_carry_the_bound_are_taken():
    assert Parameters.choose("bfv", ONE_LIMB, 3).limbs == 1
    assert Parameters.choose("bfv", ONE_LIMB + 1, 3).limbs == 2
    assert Parameters.choose("bfv", MAX_TOTAL, 50).limbs == 2
    assert Parameters.choose("mask", MAX_TOTAL, 50).limbs == 1


@pytest.mark.parametrize(
    ("mode", "bound", "limbs"),
    [
        ("bfv", ONE_LIMB + 1, 1),
        ("bfv", MAX_TOTAL + 1, 2),
        ("mask", MAX_TOTAL + 1, 1),
        ("bfv", -1, 1),
    ],
    ids=["one limb is too small", "two limbs are too small", "the ring is too small", "below zero"],
)
def test_parameters_that_a_sum_could_wrap_in_are_refused(mode, bound, limbs):
    with pytest.raises(InputError) as error:
        Parameters(mode, bound, 3, limbs)
    assert error.value.code == "sum-too-large"


@pytest.mark.parametrize(
    ("mode", "sources", "limbs"),
    [
        ("plain", 3, 1),
        ("bfv", 3, 3),
        ("bfv", 3, 0),
        ("mask", 3, 2),
        ("bfv", 1, 1),
        ("bfv", 51, 1),
        ("bfv", 0, 1),
    ],
)
def test_parameters_that_there_are_not_are_refused(mode, sources, limbs):
    with pytest.raises(InputError) as error:
        Parameters(mode, 10, sources, limbs)
    assert error.value.code == "bad-params"


def test_plans_that_make_no_sense_are_refused():
    roles = names(3)
    good = (roles, AGGREGATOR, roles[0], 5, 100, "bfv", CTX)
    for at, wrong, code in [
        (0, (roles[0], roles[0], roles[1]), "bad-roles"),
        (1, roles[2], "bad-roles"),
        (2, AGGREGATOR, "bad-roles"),
        (2, Role("source-9"), "bad-roles"),
        (3, 0, "too-many-words"),
        (3, (1 << 22) + 1, "too-many-words"),
        (4, MAX_TOTAL + 1, "sum-too-large"),
        (0, (), "bad-params"),
    ]:
        with pytest.raises(InputError) as error:
            Sums(*good[:at], wrong, *good[at + 1 :])
        assert error.value.code == code
    with pytest.raises(InputError) as error:
        Sums(*good[:3], (1 << 21) + 1, ONE_LIMB + 1, "bfv", CTX)
    assert error.value.code == "too-many-words"
    assert Sums(*good[:3], 1 << 24, 100, "mask", CTX).blocks == 129


@pytest.mark.parametrize("word", [34, -34, (1 << 63) - 1, -(1 << 63)])
def test_a_word_beyond_the_own_share_is_refused_before_anything_is_sent(word):
    plan = sums_plan(3, 3, 100)
    with pytest.raises(InputError) as error:
        Contributor(plan, plan.sources[0], np.array([0, word, 0]), seeded(0))
    assert error.value.code == "sum-too-large"
    assert str(word) not in error.value.message
    Contributor(plan, plan.sources[0], np.array([33, -33, 0]), seeded(0))


@pytest.mark.parametrize(
    "vector",
    [
        np.zeros(2, np.int64),
        np.zeros(4, np.int64),
        np.zeros((3, 1), np.int64),
        np.zeros(3),
        np.zeros(0, np.int64),
    ],
    ids=["too short", "too long", "a matrix", "floats", "nothing"],
)
def test_a_vector_of_other_cells_is_refused(vector):
    plan = sums_plan(3, 3, 100)
    with pytest.raises(InputError) as error:
        Contributor(plan, plan.sources[0], vector, seeded(0))
    assert error.value.code == "bad-vector"


# the ready rule


@pytest.mark.parametrize("mode", ["bfv", "mask"])
def test_data_leaves_a_source_only_after_every_other_source_is_ready(mode):
    plan = sums_plan(4, 5, 100, mode, key_holder=2)
    case = sum_case(plan, [[1, 2, 3, 4, 5]] * 4)
    ready: dict[Role, set[Role]] = {role: set() for role in plan.sources}
    masked = []

    def watch(message):
        if message.round == READY:
            ready[message.to].add(message.sender)
        if message.round == MASKED:
            masked.append(message.sender)
            assert len(ready[message.sender]) == 3

    assert case.run(watch).tolist() == [4, 8, 12, 16, 20]
    assert set(masked) == set(plan.sources)


def test_the_step_that_sends_data_is_marked_as_answering():
    plan = sums_plan(3, 2, 100)
    contributors = {role: Contributor(plan, role, np.array([1, 2]), seeded(role)) for role in plan.sources}
    waiting = {role: [] for role in plan.sources}

    def take(role, step):
        outgoing = [*step.outgoing]
        data = any(m.round == MASKED for m in outgoing)
        assert data == (isinstance(step, Finished) or (isinstance(step, Waiting) and step.answering))
        for m in outgoing:
            if m.to in waiting:
                waiting[m.to].append(Incoming(role, m.round, m.body, m.last))

    for role, party in contributors.items():
        take(role, party.start())
    while any(waiting.values()):
        for role, messages in waiting.items():
            if messages:
                take(role, contributors[role].receive(messages.pop(0)))


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_without_one_source_nothing_derived_from_data_leaves_the_others(missing):
    plan = sums_plan(3, 2, 100, key_holder=2)
    roles = [role for at, role in enumerate(plan.sources, 1) if at != missing]
    parties = {role: Contributor(plan, role, np.array([1, 2]), seeded(role)) for role in roles}
    queue = [(role, m) for role, party in parties.items() for m in party.start().outgoing]
    rounds = set()
    while queue:
        sender, m = queue.pop(0)
        rounds.add(m.round)
        if m.to in parties:
            step = parties[m.to].receive(Incoming(sender, m.round, m.body, m.last))
            assert isinstance(step, Waiting)
            assert not step.answering
            queue += [(m.to, following) for following in step.outgoing]
    assert rounds <= {SEED, READY}


def test_progress_says_sizes_and_reaches_its_end():
    plan = sums_plan(3, 3 * BLOCK, 100, "bfv", key_holder=3)
    case = sum_case(plan, drawn(plan, "random", 1))
    aggregator, told = case.parties[AGGREGATOR], []
    receive = aggregator.receive

    def seen(message):
        step = receive(message)
        told.append(step.progress if isinstance(step, Waiting) else None)
        return step

    aggregator.receive = seen
    case.run()
    assert [(p.phase, p.done, p.total) for p in told if p] == [("adding", 3, 9), ("adding", 6, 9)]
    assert told[-1] is None
