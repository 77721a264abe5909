"""What each coalition can work out of a model's training, from messages actually sent, and what it cannot.

Tags, lists and alignment are those of joined statistics: test_joined_views.py. Here is what is new: the rows
as matcher and helper mask them, labels, and weights. Every attack is tried by every coalition of all five.
"""

from collections.abc import Callable
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
from joined_cases import Case
from train_joined_case import S1, S2, TRAIN, Ledge, as_lists, people, train_case, train_spec

from protocols.ids import Role
from protocols.joined.field import WIDE
from protocols.joined.params import DEALER, HELPER, MATCHER
from protocols.joined.parties import DEAL
from protocols.joined.triples import masks_of
from protocols.party import Sent
from protocols.training.joined.parties import PART, TALK

ROLES = (S1, S2, MATCHER, HELPER, DEALER)
COALITIONS = [frozenset(each) for size in range(1, 6) for each in combinations(ROLES, size)]
PEOPLE = people(120)


@cache
def played() -> Case:
    """Return an exact split run of one round that has been played."""
    shelves = {role: Ledge() for role in (S1, S2)}
    spec = train_spec(rounds=1, holdout=0, model="split")
    case = train_case(spec, as_lists(PEOPLE), shelves=shelves, seed="views")
    case.released()
    return case


class View:
    """What a coalition has: what its members sent and received."""

    def __init__(self, members: frozenset[Role]) -> None:
        self.case, self.members = played(), members
        self.messages: list[Sent] = [m for m in self.case.sent if {m.sender, m.to} & members]
        self.plan = self.case.parties[MATCHER]._plan  # type: ignore[attr-defined]  # public

    def body(self, sender: Role, to: Role, number: int) -> bytes | None:
        found = [m.body for m in self.messages if (m.sender, m.to, m.round) == (sender, to, number)]
        return b"".join(found) if found else None

    def opened(self) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Return X - A, v - ρ and r - b as matcher and helper opened them."""
        plan, bodies = self.plan, []
        for sender, to, skipped in ((MATCHER, HELPER, 0), (HELPER, MATCHER, 8 * (self.plan.size + 1))):
            body = self.body(sender, to, TALK)
            if body is None:
                return None
            bodies.append(body[skipped:])
        n, d = plan.rows, plan.size
        sizes = [16, 8 * n * (d + 2), 8, 16, 16 * n, 8, 8 * n, 8 * n]
        ends = np.cumsum([0, *sizes])

        def both(at: int, width: int) -> np.ndarray:
            parts = [WIDE.read(body[ends[at] : ends[at + 1]], width) for body in bodies]
            return WIDE.add(*parts)

        return both(1, d + 2)[:, :d], both(6, 1)[:, 0], both(7, 1)[:, 0]

    def dealt(self) -> np.ndarray | None:
        """Return the dealer's A and B."""
        plan, total = self.plan, None
        for role in (MATCHER, HELPER):
            seed = self.body(DEALER, role, DEAL)
            if seed is None:
                return None
            words = masks_of(plan.matrix, seed[:32], plan.bound(b"matrix"), role)
            own = words.take(plan.rows, plan.matrix.width)
            total = own if total is None else WIDE.add(total, own)
        return total


def features(seen: View) -> np.ndarray | None:
    """Return the rows of X, without names."""
    opened, dealt = seen.opened(), seen.dealt()
    if opened is None or dealt is None:
        return None
    return WIDE.decode(WIDE.add(opened[0], np.ascontiguousarray(dealt[:, : seen.plan.size])))


def labels(seen: View) -> np.ndarray | None:
    """Return the labels of these rows: of weights that are 0 a residual is K/2, less K where it is 1."""
    opened, dealt = seen.opened(), seen.dealt()
    if opened is None or dealt is None:
        return None
    residuals = WIDE.decode(WIDE.add(opened[2], np.ascontiguousarray(dealt[:, seen.plan.size])))
    cubic = seen.plan.model.cubic
    return (cubic.whole[0] - residuals) // cubic.unit


def weights(seen: View, owner: Role) -> list[int] | None:
    """Return a source's weights: of its own part, or of what the matcher tells the helper."""
    plan = seen.plan
    part = seen.body(MATCHER, owner, PART)
    if part is not None:
        return np.frombuffer(part, "<i8")[:-1].tolist()
    told = seen.body(MATCHER, HELPER, TALK)
    if told is None:
        return None
    whole = plan.scaled(np.frombuffer(told[-8 * plan.size :], "<i8").astype(np.int64)).tolist()
    return whole[:7] if owner == S1 else whole[7:-1]


def needs(*coalitions: set[Role]) -> Callable[[frozenset[Role]], bool]:
    return lambda members: any(each <= members for each in coalitions)


def check(
    attack: Callable[[View], Any], can: Callable[[frozenset[Role]], bool], right: Callable[[Any], bool]
) -> None:
    """Try an attack with every coalition: it is right for those who can, and nothing for all others."""
    succeeded = 0
    for members in COALITIONS:
        found = attack(View(members))
        if can(members):
            assert found is not None, sorted(members)
            assert right(found), sorted(members)
            succeeded += 1
        else:
            assert found is None, sorted(members)
    assert 0 < succeeded < len(COALITIONS)


TWO = needs({MATCHER, HELPER}, {MATCHER, DEALER}, {HELPER, DEALER})


def test_two_of_matcher_helper_and_dealer_have_the_joined_rows_and_nobody_else():
    limits = sorted(sum(each["limit"] >= edge for edge in (2, 4, 6)) for each in PEOPLE)

    def right(found: np.ndarray) -> bool:
        rows = found[found.any(axis=1)]
        return set(np.unique(found)) == {0, 1} and sorted(rows[:, :4].argmax(axis=1).tolist()) == limits

    check(features, TWO, right)


def test_the_same_two_have_the_labels_and_nobody_else():
    positive = sum(each["default"] == "1" for each in PEOPLE)
    check(labels, TWO, lambda found: found.sum() == positive and set(found.tolist()) == {0, 1})


def test_a_sources_weights_are_known_to_it_to_the_matcher_and_the_helper_alone():
    for owner in (S1, S2):
        expected = weights(View(frozenset({owner})), owner)
        assert expected is not None
        assert any(expected)
        check(
            lambda seen, owner=owner: weights(seen, owner),
            needs({owner}, {MATCHER}, {HELPER}),
            lambda found, expected=expected: found == expected,
        )


def test_the_dealer_receives_only_that_its_batches_are_taken_up():
    got = [each for each in played().sent if each.to == DEALER]
    assert got
    assert not any(each.body for each in got)


def test_a_source_receives_points_and_its_own_weights_and_nothing_else():
    for owner in (S1, S2):
        rounds = {each.round for each in played().sent if each.to == owner}
        assert PART in rounds
        assert all(number < 0x400 or number == PART for number in rounds)


def test_what_coalitions_learn_here_is_stated():
    said = TRAIN.learns(played().spec)
    for pair in ((MATCHER, HELPER), (MATCHER, DEALER), (HELPER, DEALER)):
        assert {each.key for each in said[frozenset(pair)]} <= {"payloads", "joined-words"}
    assert "exact-weights" in {each.key for each in said[frozenset({HELPER})]}
