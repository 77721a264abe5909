"""What each coalition can compute of an overlap, from messages actually sent, and what it cannot.

A view is what its members sent and received, their own lists and their own secrets. Every attack below takes
a view and nothing else, and is tried by every coalition: whoever lacks a part gets nothing.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pytest
from crosscheck_case import CTX, person
from overlap_case import OVERLAP, S1, S2, S3, Case, overlap_case, pair_spec, venn_spec
from scipy.stats import chisquare

from protocols.ids import Role
from protocols.jobs.job_type import COORDINATOR, REQUESTER
from protocols.jobs.overlap import MATCHER, Params
from protocols.overlap.parties import KEYS, LIST, POOL, RAISED, TAGS, Owner, Receiver, Sender
from protocols.party import Party, Progress, Sent, Step, Waiting
from protocols.psi import group, tagging
from protocols.psi.group import Points

PEOPLE = range(48)  # everybody an attacker would guess
LISTS = [range(16), range(10, 26), [*range(5), *range(20, 32)]]
KEY_OF = {number: f"RIC:{person(number)}".encode() for number in PEOPLE}


@dataclass
class View:
    """What a coalition has."""

    case: Case
    members: frozenset[Role]
    messages: list[Sent]

    def party(self, role: Role) -> Party | None:
        return self.case.parties[role] if role in self.members else None

    def points(self, number: int) -> set[bytes]:
        body = b"".join(m.body for m in self.messages if m.round == number)
        body = body[96:] if number == POOL else body
        return {body[at : at + 32] for at in range(0, len(body), 32)}


def view(case: Case, *members: Role) -> View:
    inside = frozenset(members)
    return View(case, inside, [m for m in case.sent if {m.sender, m.to} & inside])


def raised(points: set[bytes], secret: bytes) -> set[bytes]:
    found = group.power(as_points(sorted(points)), secret)
    return {point.tobytes() for point in found}


def as_points(items: list[bytes]) -> Points:
    return np.frombuffer(b"".join(items), dtype=np.uint8).reshape(-1, 32)


def by_name(members: frozenset[Role]) -> str:
    return "+".join(sorted(members))


# -- two departments -----------------------------------------------------------------------------------------

PAIRS = [frozenset({S1}), frozenset({S2}), frozenset({S1, S2})]


@pytest.fixture(scope="module")
def pair() -> Case:
    case = overlap_case(LISTS[:2], seed=4)
    case.released()
    return case


def keys_of(seen: View) -> list[bytes]:
    """Return the secret keys that the coalition has."""
    held = [seen.party(S1), seen.party(S2)]
    return [party._secret for party in held if isinstance(party, Receiver | Sender)]


def counted(seen: View) -> int | None:
    """Count what both lists have under both keys, dummies and all, if the coalition can."""
    receiver = seen.party(S1)
    if not isinstance(receiver, Receiver):
        return None
    return len(raised(seen.points(LIST), receiver._secret) & seen.points(RAISED))


def dummies_of(seen: View) -> int | None:
    sender = seen.party(S2)
    return sender._dummies if isinstance(sender, Sender) else None


def guessed(seen: View) -> set[int]:
    """Return the persons whose point, under whatever keys the coalition has, is anywhere in its view."""
    points = group.hash_to_group(list(KEY_OF.values()), b"minshu/overlap/1" + CTX)
    tried = [points]
    for key in keys_of(seen):
        tried += [group.power(each, key) for each in tried]
    everywhere = seen.points(KEYS) | seen.points(LIST) | seen.points(RAISED)
    return {
        number
        for each in tried
        for number, point in zip(KEY_OF, each, strict=True)
        if point.tobytes() in everywhere
    }


def test_the_receiver_counts_the_overlap_and_the_dummies_together_and_nobody_else_counts(pair):
    z = dummies_of(view(pair, S2))
    assert z is not None
    assert counted(view(pair, S1)) == 6 + z
    assert counted(view(pair, S2)) is None
    assert dummies_of(view(pair, S1)) is None


def test_both_together_take_the_dummies_off_as_they_could_without_a_protocol(pair):
    seen = view(pair, S1, S2)
    found, z = counted(seen), dummies_of(seen)
    assert found is not None
    assert z is not None
    assert found - z == 6


def test_the_requester_with_the_sender_has_the_exact_overlap(pair):
    value = overlap_case(LISTS[:2], seed=4).value()
    z, noise = dummies_of(view(pair, S2)), Params.of(pair.spec).dummies
    assert z is not None
    assert value + noise.half - z == 6


@pytest.mark.parametrize("members", PAIRS, ids=by_name)
def test_no_guess_is_found_that_is_not_on_a_list_of_ones_own(pair, members):
    own = {
        number for role, people in zip((S1, S2), LISTS, strict=False) if role in members for number in people
    }
    assert guessed(view(pair, *members)) == own


def test_which_of_its_rows_are_common_the_receiver_cannot_tell(pair):
    """Its own points come back under the other's key and shuffled: to name one takes that key."""
    receiver, sender = pair.parties[S1], pair.parties[S2]
    assert isinstance(receiver, Receiver)
    assert isinstance(sender, Sender)
    seen = view(pair, S1)
    common = raised(seen.points(LIST), receiver._secret) & seen.points(RAISED)
    sent = seen.points(KEYS) | seen.points(POOL)
    assert not common & sent
    assert not common & raised(sent, receiver._secret)
    # With the sender's key as well, and only with it, each point that came back has a name.
    named = raised(seen.points(KEYS), sender._secret)
    assert len(common & named) == 6
    assert len(common - named) == dummies_of(view(pair, S2))


def test_the_order_in_which_points_come_back_says_nothing_of_the_order_they_were_sent_in():
    # Of 24 runs, the place at which the first point sent comes back, in quarters. False alarm: 1e-6.
    places = []
    for seed in range(24):
        case = overlap_case([range(12), range(3)], seed=seed, epsilon="32", delta="1/1000000")
        case.released()
        sender = case.parties[S2]
        assert isinstance(sender, Sender)
        bodies = {m.round: m.body for m in case.sent}
        back = [bodies[RAISED][at : at + 32] for at in range(0, len(bodies[RAISED]), 32)]
        first = group.power(as_points([bodies[KEYS][:32]]), sender._secret).tobytes()
        places.append(back.index(first))
    counts = np.bincount(np.array(places) * 4 // 14, minlength=4)
    assert chisquare(counts).pvalue > 1e-6


def test_to_the_sender_all_lists_of_one_size_look_random():
    # The first byte of each of 360 points in 16 classes; encodings are uniform but for their last bit and
    # their topmost byte. False alarm: 1e-6.
    first = []
    for seed in range(12):
        case = overlap_case([range(30), [1]], seed=seed, epsilon="32", delta="1/1000000")
        case.released()
        first += [point[0] for point in view(case, S2).points(KEYS)]
    counts = np.bincount(np.array(first) // 16, minlength=16)
    assert counts.sum() == 360
    assert chisquare(counts).pvalue > 1e-6


@dataclass
class Watched:
    """A party whose progress, which its node tells the coordinator, is written down."""

    party: Party
    told: list[Progress | None]

    def start(self) -> Step:
        return self._seen(self.party.start())

    def receive(self, message: object) -> Step:
        return self._seen(self.party.receive(message))  # type: ignore[arg-type]  # an Incoming

    def _seen(self, step: Step) -> Step:
        self.told.append(step.progress if isinstance(step, Waiting) else None)
        return step


@pytest.mark.parametrize("matched", [False, True])
def test_to_the_relay_all_data_of_the_same_sizes_look_the_same(matched):
    def seen(lists: list[list[int]]) -> tuple[object, object]:
        case = overlap_case(lists, spec=venn_spec(2) if matched else pair_spec())
        told: dict[Role, list[Progress | None]] = {role: [] for role in case.parties}
        case.parties = {role: Watched(party, told[role]) for role, party in case.parties.items()}
        case.released()
        return told, [(m.sender, m.to, m.round, len(m.body), m.last) for m in case.sent]

    same, apart = [[*range(9)], [*range(9)]], [[*range(9)], [*range(20, 29)]]
    assert seen(same) == seen(apart)


# -- a matcher -----------------------------------------------------------------------------------------------

ROLES = (S1, S2, S3, MATCHER)
COALITIONS = [frozenset(members) for size in range(1, 4) for members in combinations(ROLES, size)]
HOLDERS = {number: {i for i, people in enumerate(LISTS) if number in people} for number in PEOPLE}


@pytest.fixture(scope="module")
def matched() -> Case:
    case = overlap_case(LISTS, spec=venn_spec(3), seed=4)
    case.released()
    return case


def tags_in(seen: View) -> dict[int, set[bytes]]:
    """Tags of every list whose stream is in view."""
    found: dict[int, set[bytes]] = {}
    for m in seen.messages:
        if m.round == TAGS:
            here = found.setdefault((S1, S2, S3).index(m.sender), set())
            here |= {m.body[at : at + 16] for at in range(0, len(m.body), 16)}
    return found


def venn(seen: View) -> Counter[frozenset[int]]:
    lists = tags_in(seen)
    if set(lists) != {0, 1, 2}:
        return Counter()
    holders: dict[bytes, set[int]] = defaultdict(set)
    for index, held in lists.items():
        for tag in held:
            holders[tag].add(index)
    found = Counter(frozenset(each) for each in holders.values())
    for index in lists:  # the keys that stand for lists
        found[frozenset({index})] -= 1
    return found


def linked(seen: View) -> dict[int, set[int]]:
    """For each person whose V the coalition knows: which lists outside of it hold the tag."""
    owners = [(role, seen.party(role)) for role in (S1, S2, S3)]
    inside = {(S1, S2, S3).index(role) for role, party in owners if party is not None}
    lists = {index: held for index, held in tags_in(seen).items() if index not in inside}
    if not lists:
        return {}
    known: dict[int, bytes] = {}
    keys: list[bytes] = []
    for _, party in owners:
        if not isinstance(party, Owner):
            continue
        tagged = party._tagging.tagged
        assert tagged is not None
        for row, value in zip(tagged.order.tolist(), tagged.values, strict=True):
            for number, key in KEY_OF.items():
                if party._tagging._own._keys[row] == key:
                    known[number] = value.tobytes()
        keys += [party._tagging._key] if party._tagging._key else []
    if len(keys) == 2:
        points = group.hash_to_group(list(KEY_OF.values()), b"minshu/tag/1" + CTX)
        for scalar in keys:
            points = group.power(points, scalar)
        known |= {number: point.tobytes() for number, point in zip(KEY_OF, points, strict=True)}
    tags = {number: tagging.tags(as_points([value])).tobytes() for number, value in known.items()}
    return {number: {index for index, held in lists.items() if tag in held} for number, tag in tags.items()}


@pytest.mark.parametrize("members", COALITIONS, ids=by_name)
def test_only_the_matcher_learns_the_exact_regions(matched, members):
    expected = Counter(frozenset(held) for held in HOLDERS.values() if held)
    alone = members == {S1, S2, S3}  # all list owners together need no protocol
    found = venn(view(matched, *members))
    assert found == (expected if MATCHER in members or alone else Counter())


@pytest.mark.parametrize("members", COALITIONS, ids=by_name)
def test_rows_are_linked_by_the_matcher_with_their_owner_and_guesses_with_both_key_holders(matched, members):
    found = linked(view(matched, *members))
    inside = {(S1, S2, S3).index(role) for role in members if role != MATCHER}
    if MATCHER not in members:
        assert found == {}
    elif {S1, S2} <= members:
        assert found == {number: held - inside for number, held in HOLDERS.items()}
    else:
        assert found == {number: held - inside for number, held in HOLDERS.items() if held & inside}


# -- the tables say just that --------------------------------------------------------------------------------

SIZES = {"list-sizes"}


def keys(spec) -> dict[frozenset[Role], set[str]]:
    return {members: {s.key for s in said} for members, said in OVERLAP.learns(spec).items()}


def test_the_leakage_statement_is_what_these_tests_establish():
    assert keys(pair_spec()) == {
        frozenset({S1}): SIZES | {"noisy-overlap"},
        frozenset({S2}): SIZES | {"own-dummies"},
        frozenset({Role(REQUESTER)}): {"noisy-overlap"},
        frozenset({Role(COORDINATOR)}): SIZES | {"traffic"},
        frozenset({Role(REQUESTER), S2}): {"exact-overlap"},
    }
    assert keys(venn_spec(3)) == {
        frozenset({S1}): SIZES,
        frozenset({S2}): SIZES,
        frozenset({S3}): SIZES,
        frozenset({MATCHER}): SIZES | {"venn"},
        frozenset({Role(REQUESTER)}): {"noisy-regions"},
        frozenset({Role(COORDINATOR)}): SIZES | {"traffic"},
        frozenset({MATCHER, S1}): {"own-rows-elsewhere"},
        frozenset({MATCHER, S2}): {"own-rows-elsewhere"},
        frozenset({MATCHER, S3}): {"own-rows-elsewhere"},
        frozenset({MATCHER, S1, S2}): {"dictionary"},
    }


def test_another_attempt_has_other_points_for_the_same_persons():
    """So two attempts, seen side by side, do not say who is in both."""
    bodies = []
    for ctx in (CTX, bytes(32)):
        case = overlap_case(LISTS[:2], ctx=ctx)
        case.released()
        bodies.append(view(case, S2).points(KEYS))
    # By the same seeds, so under the same key: only the context differs.
    assert len(bodies[0]) == len(bodies[1]) == len(LISTS[0])
    assert not bodies[0] & bodies[1]
