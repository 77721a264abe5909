"""What each coalition can compute of a sum, derived from messages actually sent, and what it cannot.

A view is what its members sent and received, their own vectors and their own secrets. The attack takes a view
and nothing else, and is tried by every coalition for every set of outsiders.
"""

import numpy as np
import pyarrow as pa
import pytest
from crosscheck_case import seeded
from sum_case import AGGREGATOR, SumCase, View, carried, subsets, sum_case, sum_of, sums_plan

from protocols.ids import Role
from protocols.sums import bfv
from protocols.sums.masks import RING
from protocols.sums.parties import MASKED, SEED, TOTALS
from protocols.sums.plan import Sums

FORMS = {"mask": ("mask", 1000), "one limb": ("bfv", 1000), "two limbs": ("bfv", 1 << 60)}
VECTORS = [[3, -1, 4], [1, 5, -9], [2, 6, 5], [-3, 5, 8]]


def players(sources: int) -> tuple[Role, ...]:
    return (*sums_plan(sources, 1, 0).sources, AGGREGATOR)


@pytest.fixture(scope="module", params=FORMS, ids=str)
def played(request) -> SumCase:
    mode, bound = FORMS[request.param]
    case = sum_case(sums_plan(4, 3, bound, mode, key_holder=2), VECTORS)
    assert case.run().tolist() == [3, 15, 8]
    return case


@pytest.mark.parametrize("members", subsets(players(4)), ids=lambda members: "+".join(sorted(members)))
def test_a_coalition_computes_the_sum_of_all_outsiders_if_the_key_holder_is_in_it_and_no_other(
    played, members
):
    view, plan = View(played, members), played.plan
    outside = [role for role in plan.sources if role not in members]
    for outsiders in subsets(outside):
        true = np.sum([played.vectors[role] for role in outsiders], axis=0).tolist()
        found = sum_of(view, outsiders)
        if plan.key_holder in members and outsiders == set(outside):
            assert found == true
        else:
            # By chance with a probability below 2^-130: three words of 45 bits or more.
            assert found != true


def test_the_attack_finds_what_masks_no_longer_hide():
    # The same attack, given one seed that it must not have, succeeds: it is not for want of trying.
    case = sum_case(sums_plan(4, 3, 1000, "mask", key_holder=2), VECTORS)
    case.run()
    view = View(case, frozenset({AGGREGATOR}))
    assert sum_of(view, frozenset({Role("source-1")})) != VECTORS[0]
    view.seeds |= {frozenset({m.sender, m.to}): m.body for m in case.sent if m.round == SEED}
    assert sum_of(view, frozenset({Role("source-1")})) == VECTORS[0]


# two nodes' rows swapped


WORDS = 1 << 15
PARTS = 64


CRITICAL = 155.1
"""Chi-square with 63 degrees of freedom is above it once in 10^9 times. Seeds are fixed; what SEAL draws by
itself is in none of the words that are compared."""


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_swapping_two_nodes_rows_changes_nothing_in_what_others_see(form):
    mode, bound = FORMS[form]
    plan = sums_plan(4, WORDS, bound, mode, key_holder=2)
    low, high = [-200] * WORDS, [200] * WORDS
    worlds = []
    for first, third in ((low, high), (high, low)):
        case = sum_case(plan, [first, low, third, high], seed=f"{form}{first[0]}")
        assert not case.run().any()
        worlds.append(case)
    # The aggregator with the key-holder, which opens each masked vector; and in mask mode without it.
    coalitions = [frozenset({AGGREGATOR, plan.key_holder})]
    if mode == "mask":
        coalitions.append(frozenset({AGGREGATOR}))
    for members in coalitions:
        for source in (plan.sources[0], plan.sources[2]):
            views = [View(case, members) for case in worlds]
            assert chi_square(*(stripped(view, source) for view in views), plan) < CRITICAL
            # With the seeds that it must not have, the same comparison tells the worlds apart.
            for view, case in zip(views, worlds, strict=True):
                view.seeds |= {frozenset({m.sender, m.to}): m.body for m in case.sent if m.round == SEED}
            assert chi_square(*(stripped(view, source) for view in views), plan) > 10 * CRITICAL


def stripped(view: View, source: Role) -> np.ndarray:
    """A source's masked words less every stream in view."""
    words = view.masked(source)
    assert words is not None
    view.streams(source).add_to(words)
    return carried(words, view.plan)


def chi_square(one: np.ndarray, other: np.ndarray, plan: Sums) -> float:
    """Compare two samples by the upper six bits of a word modulo the modulus: 64 parts."""
    modulus, counts = plan.parameters.modulus, []
    for sample in (one, other):
        words = sample % modulus if modulus < RING else sample
        top = words.view(np.uint64) >> np.uint64((modulus - 1).bit_length() - 6)
        counts.append(np.bincount(top.astype(np.int64), minlength=PARTS).astype(float))
    total = counts[0] + counts[1]
    seen = total > 0
    return float(((counts[0] - counts[1])[seen] ** 2 / total[seen]).sum())


def test_to_the_aggregator_ciphertexts_of_both_worlds_have_uniform_coefficients():
    # SEAL draws by itself, so this one is not seeded: each of four comparisons fails once in 10^9 runs.
    plan = sums_plan(3, 3, 1000, "bfv", key_holder=3)
    moduli = (0xFFFFEE001, 0xFFFFC4001)
    for vectors in ([[9] * 3, [-9] * 3, [0] * 3], [[-9] * 3, [9] * 3, [0] * 3]):
        case = sum_case(plan, vectors)
        case.run()
        view = View(case, frozenset({AGGREGATOR}))
        assert view.secret is None
        for source in plan.sources[:2]:
            (body,) = (m.body for m in view.messages if (m.sender, m.round) == (source, MASKED))
            (written,) = bfv.unpack(body, 1)
            plain = pa.CompressedInputStream(pa.BufferReader(written[16:]), "zstd").read()
            coefficients = np.frombuffer(plain[97:], dtype="<u8").reshape(2, 2, bfv.DEGREE)
            parts = np.zeros(PARTS)
            for at, modulus in enumerate(moduli):
                some = coefficients[:, at].ravel().astype(object) * PARTS // modulus
                parts += np.bincount(some.astype(np.int64), minlength=PARTS)
            expected = coefficients.size / PARTS
            assert ((parts - expected) ** 2 / expected).sum() < CRITICAL


# nothing of a vector in any frame


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_no_word_of_a_vector_is_in_any_message(form):
    mode, bound = FORMS[form]
    # Words of which no two bytes are alike and that no chance makes: 40 bits in about a megabyte, 2^-20.
    words = [0x1B2C3D4E5F, 0x6A79_8867_55]
    plan = sums_plan(3, len(words), max(bound, 1 << 42), mode)
    case = sum_case(plan, [words, [-word for word in words], words], seed="canary")
    assert case.run().tolist() == words
    for message in case.sent:
        seen = [message.body]
        if mode == "bfv" and message.round in (MASKED, TOTALS):
            seen += [
                pa.CompressedInputStream(pa.BufferReader(each[16:]), "zstd").read()
                for each in bfv.unpack(message.body, plan.places)
            ]
        for body in seen:
            for word in words:
                for order in ("little", "big"):
                    assert word.to_bytes(5, order) not in body
                    assert str(word).encode() not in body


def test_what_a_relay_sees_follows_from_the_plan_alone():
    for mode, slack in (("mask", 0), ("bfv", 300)):
        plan = sums_plan(3, 5000, 1 << 40, mode)
        shapes = []
        for words in ([0] * 5000, [plan.share] * 5000):
            case = sum_case(plan, [words] * 3)
            case.run()
            shapes.append([(m.sender, m.to, m.round, len(m.body), m.last) for m in case.sent])
        one, other = shapes
        assert [each[:3] + each[4:] for each in one] == [each[:3] + each[4:] for each in other]
        # Uniform coefficients compress to about the same length, whatever is in them.
        assert all(abs(a[3] - b[3]) <= slack for a, b in zip(one, other, strict=True))


def test_the_key_holder_draws_nothing_that_others_could_repeat():
    # The cover of the key-holder's own vector is its own: no message carries that seed.
    case = sum_case(sums_plan(3, 3, 1000, "mask"), VECTORS[:3])
    own = case.parties[case.plan.key_holder]._own_seed
    case.run()
    assert own not in {m.body for m in case.sent}
    assert own not in {seeded(f"0/{role}")(32) for role in case.plan.sources}
