"""What each side and the relay can compute from messages actually sent, and what they cannot.

A view is what its members sent and received, their own lists and their own secrets. In the form for short
lists the attacks below are tried with it: whoever lacks a part gets nothing, and who has it, gets all. In the
form for long lists the same is asked of everything in a view but the bytes, which look random: worlds that a
member must not tell apart look alike.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from crosscheck_case import CTX, person
from match_case import KKRT, MARITAL, MATCHING, Case, Row, match_case

from protocols.ids import Role
from protocols.jobs.job_type import COORDINATOR
from protocols.jobs.match import RECEIVER, SENDER
from protocols.match import dh, parties
from protocols.match.shape import Sizing
from protocols.party import Finished, Incoming, Outgoing, Party, Progress, Step
from protocols.psi import group

FORMS: dict[str, Sizing | None] = {"dh": None, "kkrt": KKRT}
PEOPLE = range(40)  # everybody an attacker would guess
OURS: list[Row] = [(n, ("10", "20", "30", "40")[n % 4], "") for n in range(24)]
THEIRS: list[Row] = [(n, ("10", "22", "40")[n % 3], "") for n in range(12, 36)]
GROUP = {value: number for number, group_ in enumerate(MARITAL, start=1) for value in group_}
Item = tuple[int, int]  # person and mark


def item_bytes(item: Item) -> bytes:
    return f"RIC:{person(item[0])}".encode() + bytes([item[1]])


def played(ours: Sequence[Row], theirs: Sequence[Row], *, form: str = "dh", **params: Any) -> Case:
    if "values" not in params:
        case = match_case([n for n, _, _ in ours], [n for n, _, _ in theirs], sizing=FORMS[form], **params)
    else:
        case = match_case(ours, theirs, sizing=FORMS[form], **params)
    case.run()
    return case


# the attacks, in the form for short lists


@dataclass
class View:
    """What a coalition has: streams by round, and its members' exponents."""

    members: frozenset[Role]
    rounds: dict[int, set[bytes]]
    raised: dict[bytes, bytes]  # what it sent to be raised → what came back
    scalars: list[bytes]
    own: set[Item]

    def values_of(self, items: Iterable[Item]) -> dict[Item, bytes]:
        """H(x)^(ab) of every item the view has it for, by every way it has."""
        guessed = list(items)
        points = group.hash_to_group([item_bytes(item) for item in guessed], b"minshu/match-dh/1" + CTX)
        found: dict[Item, bytes] = {}
        once = [points, *(group.power(points, scalar) for scalar in self.scalars)]
        for reached in once:
            for item, point in zip(guessed, reached, strict=True):
                if point.tobytes() in self.raised:
                    found[item] = self.raised[point.tobytes()]
        if len(self.scalars) == 2:
            both = group.power(group.power(points, self.scalars[0]), self.scalars[1])
            found |= {item: point.tobytes() for item, point in zip(guessed, both, strict=True)}
        return found

    def theirs(self) -> set[bytes]:
        """Return every point in view that it can bring to H(y)^(ab)."""
        own = self.rounds.get(dh.OWN, set())
        if not own:
            return set()
        points = np.frombuffer(b"".join(sorted(own)), dtype=np.uint8).reshape(-1, 32)
        return {p.tobytes() for scalar in self.scalars for p in group.power(points, scalar)}


def pieces(body: bytes) -> list[bytes]:
    return [body[at : at + 32] for at in range(0, len(body), 32)]


def view(case: Case, *members: Role) -> View:
    seen = [m for m in case.sent if m.sender in members or m.to in members]
    streams = {
        number: [p for m in seen if m.round == number for p in pieces(m.body)]
        for number in {m.round for m in seen}
    }
    held: dict[Role, Any] = {role: case.parties[role] for role in members if role != COORDINATOR}
    raised = dict(zip(streams.get(dh.BLINDED, []), streams.get(dh.RAISED, []), strict=True))
    own: set[Item] = set()
    if RECEIVER in members:
        listed = case.lists[RECEIVER]
        number = {f"RIC:{person(n)}".encode(): n for n in PEOPLE}
        own = {
            (number[key], mark) for key, mark in zip(listed.keys.tolist(), listed.marks.tolist(), strict=True)
        }
    return View(
        frozenset(members),
        {number: set(points) for number, points in streams.items()},
        raised,
        [party._party._list.exponent for party in held.values()],
        own,
    )


def can_test(seen: View, items: Iterable[Item]) -> set[Item]:
    """Items of which the view tells whether the sender entered them."""
    return set(seen.values_of(items)) if seen.theirs() else set()


def entered(seen: View, items: Iterable[Item]) -> set[Item]:
    """Items that the view shows the sender to have entered."""
    theirs = seen.theirs()
    return {item for item, value in seen.values_of(items).items() if value in theirs}


def listed_by_receiver(seen: View, items: Iterable[Item]) -> set[Item]:
    """Items that the view shows to be on the receiver's list."""
    guessed = list(items)
    points = group.hash_to_group([item_bytes(item) for item in guessed], b"minshu/match-dh/1" + CTX)
    known = seen.rounds.get(dh.BLINDED, set()) | seen.rounds.get(dh.RAISED, set())
    tried = [points]
    tried += [group.power(points, scalar) for scalar in seen.scalars]
    tried += [group.power(group.power(points, one), other) for one, other in combinations(seen.scalars, 2)]
    return {item for each in tried for item, p in zip(guessed, each, strict=True) if p.tobytes() in known}


EVERY_ITEM = [(n, mark) for n in PEOPLE for mark in range(5)]
RELAY = Role(COORDINATOR)


@pytest.fixture(scope="module")
def held() -> Case:
    return played(OURS, THEIRS)


@pytest.fixture(scope="module")
def differs() -> Case:
    return played(OURS, THEIRS, values=MARITAL)


def test_the_receiver_can_test_its_own_keys_and_no_others(held: Case) -> None:
    seen = view(held, RECEIVER)
    ours, theirs = {(n, 0) for n, _, _ in OURS}, {(n, 0) for n, _, _ in THEIRS}
    assert can_test(seen, EVERY_ITEM) == ours
    assert entered(seen, EVERY_ITEM) == ours & theirs
    # With the sender's exponent, which it does not have, it could test everybody.
    both = view(held, RECEIVER, SENDER)
    assert entered(both, EVERY_ITEM) == theirs
    assert can_test(both, EVERY_ITEM) == set(EVERY_ITEM)


def test_the_receiver_can_test_one_value_of_each_of_its_persons(differs: Case) -> None:
    seen = view(differs, RECEIVER)
    ours = {n: GROUP[value] for n, value, _ in OURS}
    theirs = {n: GROUP[value] for n, value, _ in THEIRS}
    assert can_test(seen, EVERY_ITEM) == set(ours.items())
    found = entered(seen, EVERY_ITEM)
    assert found == {(n, mark) for n, mark in ours.items() if n in theirs and theirs[n] != mark}
    # The same value, and not on the sender's list, look alike: among the others are both.
    others = {n for n, _ in set(ours.items()) - found}
    assert others & set(theirs)
    assert others - set(theirs)


def test_in_the_end_the_receiver_cannot_tell_the_same_value_from_nobody(differs: Case) -> None:
    """Who has the same value at the sender may as well be somebody whom the receiver does not list."""
    ours = {n: GROUP[value] for n, value, _ in OURS}
    moved = [row if ours.get(row[0]) != GROUP[row[1]] else (row[0] + 24, *row[1:]) for row in THEIRS]
    assert moved != THEIRS
    other = played(OURS, moved, values=MARITAL)
    assert entered(view(other, RECEIVER), EVERY_ITEM) == entered(view(differs, RECEIVER), EVERY_ITEM)
    assert can_test(view(other, RECEIVER), EVERY_ITEM) == can_test(view(differs, RECEIVER), EVERY_ITEM)
    assert shape(other, RECEIVER) == shape(differs, RECEIVER)


def test_the_sender_cannot_test_whether_the_receiver_lists_somebody(held: Case, differs: Case) -> None:
    for case, ours in ((held, {(n, 0) for n, _, _ in OURS}), (differs, {(n, GROUP[v]) for n, v, _ in OURS})):
        assert listed_by_receiver(view(case, SENDER), EVERY_ITEM) == set()
        assert can_test(view(case, SENDER), EVERY_ITEM) == set()
        # The same attack with the receiver's exponent finds the list.
        assert listed_by_receiver(view(case, SENDER, RECEIVER), EVERY_ITEM) == ours


def test_the_relay_learns_nothing_even_of_what_it_could_open(held: Case) -> None:
    """It sees sealed frames; not even their contents would help, without an exponent."""
    seen = View(frozenset({RELAY}), view(held, RECEIVER).rounds, view(held, RECEIVER).raised, [], set())
    assert (can_test(seen, EVERY_ITEM), listed_by_receiver(seen, EVERY_ITEM)) == (set(), set())


def test_a_receiver_with_a_crafted_list_learns_the_same_of_whom_it_lists() -> None:
    """What the statement `crafted-list` admits; the commitment is another one."""
    curious = [(n, "10", "") for n in (30, 31, 39)]
    case = played(curious, THEIRS)
    assert entered(view(case, RECEIVER), EVERY_ITEM) == {(30, 0), (31, 0)}
    guesses = [(30, value, "") for value in ("10", "20", "30", "40")]
    answers = [len(entered(view(played([g], THEIRS, values=MARITAL), RECEIVER), EVERY_ITEM)) for g in guesses]
    assert answers == [0, 1, 1, 1]  # four jobs, four charges: the sender's value is the first
    assert case.setup.inputs[RECEIVER].commitment != played(OURS, THEIRS).setup.inputs[RECEIVER].commitment


def test_a_senders_lie_is_not_detected() -> None:
    """No statement says otherwise: it can make the answer wrong, and marks say that it needs verification."""
    everybody = [(n, "40", "") for n in range(24)]
    records = match_case(OURS, everybody, values=MARITAL).released()
    assert records.table.rows == sum(value != "40" for _, value, _ in OURS)
    assert "人工核实" in str(records.facts["mark"])


# what the statements do not say: worlds that nobody but the receiver may tell apart


def shape(case: Case, *members: Role) -> list[tuple[str, str, int, int, bool]]:
    """Everything in a view but the bytes: who, to whom, round, length, end; in order."""
    return [
        (m.sender, m.to, m.round, len(m.body), m.last)
        for m in case.sent
        if not members or m.sender in members or m.to in members
    ]


@dataclass
class Watched:
    """A party of which is written down what its node tells others: progress, and when it answers."""

    party: Party
    told: list[tuple[Progress | None, bool]] = field(default_factory=list)

    def start(self) -> Step:
        return self.seen(self.party.start())

    def receive(self, message: Incoming) -> Step:
        return self.seen(self.party.receive(message))

    def seen(self, step: Step) -> Step:
        finished = isinstance(step, Finished)
        self.told.append((None, True) if finished else (step.progress, step.answering))
        return step


@pytest.mark.parametrize(("form", "values"), [("dh", {}), ("dh", {"values": MARITAL}), ("kkrt", {})])
def test_to_sender_and_relay_all_worlds_with_the_same_sizes_look_the_same(
    form: str, values: dict[str, Any]
) -> None:
    worlds = [
        (OURS, THEIRS),
        (OURS, [(n + 100, value, "") for n, value, _ in THEIRS]),  # nobody in common
        (OURS, [(n - 12, "10", "") for n, _, _ in THEIRS]),  # the same persons
    ]
    seen = []
    for ours, theirs in worlds:
        case = (
            match_case(ours, theirs, sizing=FORMS[form], **values)
            if values
            else match_case([n for n, _, _ in ours], [n for n, _, _ in theirs], sizing=FORMS[form])
        )
        watched = {role: Watched(party) for role, party in case.parties.items()}
        case.parties.update(watched)
        assert case.released().table.rows in range(25)
        seen.append((shape(case), {role: each.told for role, each in watched.items()}))
    assert seen[0] == seen[1] == seen[2]


def test_what_comes_to_the_sender_looks_random_whatever_is_listed() -> None:
    """Bits of the matrix are ones as often as a coin's; a false alarm has a chance below 1e-8."""
    for ours in ([(7, "10", "")], OURS):
        case = played(ours, THEIRS, form="kkrt")
        bodies = b"".join(m.body for m in case.sent if m.round == parties.MATRIX)
        bits = np.unpackbits(np.frombuffer(bodies, dtype=np.uint8))
        assert abs(bits.mean() - 0.5) < 6 * 0.5 / math.sqrt(len(bits))


# an attempt that ends before the sender answers told nothing


def before_the_answer(ours: Sequence[Row], theirs: Sequence[Row], form: str) -> list[tuple[str, int, bytes]]:
    """Return every message that goes out before the sender is answering."""
    case = match_case([n for n, _, _ in ours], [n for n, _, _ in theirs], sizing=FORMS[form])
    said: list[tuple[str, int, bytes]] = []
    waiting: list[tuple[Role, Outgoing]] = []
    answered = False

    def take(role: Role, step: Step) -> None:
        nonlocal answered
        if isinstance(step, Finished) or step.answering:
            assert role == SENDER
            answered = True
            return
        for message in step.outgoing:
            said.append((role, message.round, message.body))
            waiting.append((role, message))

    for role, party in case.parties.items():
        take(role, party.start())
    while waiting and not answered:
        sender, message = waiting.pop(0)
        incoming = Incoming(sender, message.round, message.body, message.last)
        take(message.to, case.parties[message.to].receive(incoming))
    assert answered
    return said


@pytest.mark.parametrize("form", FORMS)
def test_what_the_sender_sends_before_it_answers_is_the_same_whatever_it_lists(form: str) -> None:
    """It is why a match may say that it is silent until then: the receiver's messages are all masked."""
    one = before_the_answer(OURS, THEIRS, form)
    other = before_the_answer(OURS, [(n + 200, value, "") for n, value, _ in THEIRS], form)
    assert one == other
    assert {number for _, number, _ in one} == (
        {dh.BLINDED} if form == "dh" else {parties.HELLO, parties.BASE, parties.REPLY, parties.MATRIX}
    )
    assert MATCHING.silent_until_answering
    receivers = before_the_answer([(n + 300, value, "") for n, value, _ in OURS], THEIRS, form)
    assert [(role, number, len(body)) for role, number, body in one] == [
        (role, number, len(body)) for role, number, body in receivers
    ]
    theirs = [message for message in one if message[0] == SENDER]
    assert theirs == [message for message in receivers if message[0] == SENDER]


@pytest.mark.parametrize("form", FORMS)
def test_the_receiver_makes_its_records_once_all_is_in_and_says_nothing_after(form: str) -> None:
    case = match_case(range(24), range(12, 36), sizing=FORMS[form])
    receiver = Watched(case.parties[RECEIVER])
    case.parties[RECEIVER] = receiver
    case.run()
    last = max(place for place, m in enumerate(case.sent) if m.sender == SENDER)
    assert last == len(case.sent) - 1
    made = [finished for _, finished in receiver.told]
    assert made == [False] * (len(made) - 1) + [True]
    assert all(isinstance(progress, Progress) for progress, _ in receiver.told[:-1])
