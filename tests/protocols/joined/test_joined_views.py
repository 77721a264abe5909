"""What each coalition can compute of joined rows, from messages actually sent, and what it cannot.

A view is what its members sent and received, their own lists and their own secrets. Every attack below takes
a view and nothing else, and is tried by every coalition of all six: whoever lacks a part gets nothing. That
single shares tell nothing is in test_joined_parties.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from crosscheck_case import CTX
from joining_case import DEALER, HELPER, MATCHER, S1, S2, S3, Joined, Listed, joined_case, key_of

from protocols.ids import Role
from protocols.joined import triples
from protocols.joined.align import ABSENT
from protocols.joined.field import WIDE
from protocols.joined.parties import ALIGN, BLOCK, DEAL, DEALT, GROUPS, ROWS, SEED, Dealer, Holder
from protocols.party import Party, Sent
from protocols.psi import group, tagging

OWNERS = (S1, S2, S3)
ROLES = (*OWNERS, MATCHER, HELPER, DEALER)
COALITIONS = [frozenset(each) for size in range(1, 7) for each in combinations(ROLES, size)]
PEOPLE = range(30)  # everybody an attacker would guess
ON = (range(14), range(4, 20), [*range(2, 11), 22, 23])
JOINED = range(4, 11)
WORDS = [{person: [100 * i + person, -person] for person in people} for i, people in enumerate(ON, start=1)]
SIZES = ((2,), (), ())
WAITS = {(S2, 19), (S3, 3)}
"""On the list, but no row counts: a filter, an axis or an empty amount leaves it out. 3 is on S1's, too."""


@cache
def played(product: str | None = "gram") -> Joined:
    """Return an attempt that has been played; without a product, `source-1` has an open axis."""
    sizes = () if product else SIZES
    lists = [Listed(words) for words in WORDS]
    if not product:
        lists[0] = Listed(WORDS[0], {person: [person % 2] for person in WORDS[0]})
    for i, owner in enumerate(OWNERS):
        waiting = frozenset(person for role, person in WAITS if role == owner)
        lists[i] = Listed(lists[i].people, lists[i].codes, waiting)
    case = joined_case(lists, widths=[2, 2, 2], product=product, open_sizes=sizes, seed="views")
    case.play()
    return case


@dataclass
class View:
    """What a coalition has."""

    case: Joined
    members: frozenset[Role]
    messages: list[Sent]

    def party(self, role: Role) -> Any:
        """Return a member's secrets."""
        return self.case.parties[role] if role in self.members else None

    def body(self, sender: Role, to: Role, number: int) -> bytes | None:
        found = [m.body for m in self.messages if (m.sender, m.to, m.round) == (sender, to, number)]
        return b"".join(found) if found else None


def view(case: Joined, members: frozenset[Role]) -> View:
    return View(case, members, [m for m in case.sent if {m.sender, m.to} & members])


# -- attacks: each returns what the coalition has, or None ---------------------------------------------------


def table(seen: View, owner: Role) -> np.ndarray | None:
    """Return a list's rows as they went to the matcher."""
    body = seen.body(owner, MATCHER, ROWS)
    if body is None:
        return None
    index = OWNERS.index(owner)
    return np.frombuffer(body, dtype=np.uint8).reshape(-1, seen.case.joining.row_bytes(index))


def tags_of(seen: View, owner: Role) -> list[bytes] | None:
    rows = table(seen, owner)
    return None if rows is None else [row[:16].tobytes() for row in rows]


def venn(seen: View) -> dict[bytes, frozenset[Role]] | None:
    """Return the lists of every tag."""
    lists = {owner: tags_of(seen, owner) for owner in OWNERS}
    if None in lists.values():
        return None
    tags = {tag for each in lists.values() for tag in each or ()}
    return {tag: frozenset(owner for owner, each in lists.items() if tag in (each or ())) for tag in tags}


def positions(seen: View) -> np.ndarray | None:
    body = seen.body(MATCHER, HELPER, ALIGN)
    return None if body is None else np.frombuffer(body, dtype="<u4").reshape(-1, 3)


def joined_count(seen: View) -> int | None:
    found, aligned = venn(seen), positions(seen)
    if aligned is not None:
        return int((aligned[:, 0] != ABSENT).sum())
    return None if found is None else sum(lists == set(OWNERS) for lists in found.values())


def payload(seen: View, owner: Role) -> np.ndarray | None:
    """Return the words of every row of a list, in tag order, joined or not."""
    rows, seed = table(seen, owner), seen.body(owner, HELPER, SEED)
    if rows is None or seed is None:
        return None
    joining = seen.case.joining
    raw = np.ascontiguousarray(rows[:, -16:]).view("<u8")
    masks = WIDE.stream(joining.mask_key(seed, owner)).take(len(rows), 2)
    return WIDE.decode(WIDE.add(raw, masks))


def aligned_words(seen: View) -> np.ndarray | None:
    """Return the words of the joined rows by what matcher and helper open and the dealer's two seeds."""
    bodies = [seen.body(MATCHER, HELPER, BLOCK), seen.body(HELPER, MATCHER, BLOCK)]
    seeds = [seen.body(DEALER, MATCHER, DEAL), seen.body(DEALER, HELPER, DEAL)]
    shape = seen.case.joining.shape
    if shape is None or None in bodies or None in seeds:
        return None
    total = np.zeros((shape.rows, shape.width), dtype=WIDE.dtype)
    for body, seed, role in zip(bodies, seeds, (MATCHER, HELPER), strict=True):
        assert body is not None
        assert seed is not None
        masks = triples.masks_of(shape, seed[:32], CTX, role).take(shape.rows, shape.width)
        total = WIDE.add(total, WIDE.add(WIDE.read(body, shape.width), masks))
    return WIDE.decode(total[:, : shape.left])


def named(seen: View, owner: Role) -> dict[int, int] | None:
    """Return the owner's person at each place of its list."""
    party = seen.party(owner)
    if party is None:
        return None
    people = list(seen.case.lists[OWNERS.index(owner)].people)
    order = party._tagging.tagged.order.tolist()
    return {place: people[at] for place, at in enumerate(order) if at < len(people)}


def own_rows_joined(seen: View, owner: Role) -> set[int] | None:
    """Return which of the owner's persons are joined."""
    places, aligned, found = named(seen, owner), positions(seen), venn(seen)
    if places is None:
        return None
    if aligned is not None:
        column = aligned[:, OWNERS.index(owner)]
        return {places[at] for at in column.tolist() if at != ABSENT}
    if found is None:
        return None
    tags = tags_of(seen, owner) or []
    return {places[at] for at, tag in enumerate(tags) if at in places and found[tag] == set(OWNERS)}


def own_rows_elsewhere(seen: View, owner: Role) -> dict[int, frozenset[Role]] | None:
    """Return which lists hold each of the owner's persons."""
    places, found, tags = named(seen, owner), venn(seen), tags_of(seen, owner)
    if places is None or found is None or tags is None:
        return None
    return {person: found[tags[at]] for at, person in places.items()}


def dictionary(seen: View) -> dict[Role, set[int]] | None:
    """Return who is on which list, by trying everybody."""
    keys = [seen.party(owner)._tagging._key for owner in (S1, S2) if seen.party(owner) is not None]
    found = venn(seen)
    if len(keys) < 2 or found is None:
        return None
    points = group.hash_to_group([key_of(person) for person in PEOPLE], b"minshu/tag/1" + CTX)
    for key in keys:
        points = group.power(points, key)
    raw = tagging.tags(points)
    guessed = {raw[i : i + 1].tobytes(): person for i, person in enumerate(PEOPLE)}
    return {
        owner: {guessed[tag] for tag, lists in found.items() if tag in guessed and owner in lists}
        for owner in OWNERS
    }


def identified(seen: View) -> dict[int, tuple[int, ...]] | None:
    """Return joined records with names: a member's places, and the words of all lists at them."""
    aligned, words = positions(seen), aligned_words(seen)
    lists = [each for owner in OWNERS if (each := payload(seen, owner)) is not None]
    if aligned is None:
        return None
    here = aligned[aligned[:, 0] != ABSENT]
    if words is None and len(lists) == len(OWNERS):
        words = np.concatenate([each[here[:, i]] for i, each in enumerate(lists)], axis=1)
    for i, owner in enumerate(OWNERS):
        places = named(seen, owner)
        if places is not None and words is not None:
            return {places[row[i]]: tuple(words[at].tolist()) for at, row in enumerate(here.tolist())}
    return None


# -- what each coalition gets --------------------------------------------------------------------------------

TRUE_VENN = sorted(
    [
        sorted(o for o, people in zip(OWNERS, ON, strict=True) if p in people and (o, p) not in WAITS)
        for p in PEOPLE
    ]
    + [[owner] for owner in OWNERS]  # stand-ins
    + [[owner] for owner, _ in WAITS]
)
TRUE_ROWS = {tuple(word for words in WORDS for word in words[person]) for person in JOINED}


def needs(*coalitions: set[Role]) -> Callable[[frozenset[Role]], bool]:
    return lambda members: any(each <= members for each in coalitions)


def check(
    attack: Callable[[View], Any],
    can: Callable[[frozenset[Role]], bool],
    right: Callable[[Any], bool],
    product: str | None = "gram",
) -> None:
    """Try an attack with every coalition: it is right for those who can, and nothing for all others."""
    succeeded = 0
    for members in COALITIONS:
        found = attack(view(played(product), members))
        if can(members):
            assert found is not None, sorted(members)
            assert right(found), sorted(members)
            succeeded += 1
        else:
            assert found is None, sorted(members)
    assert 0 < succeeded < len(COALITIONS)


def test_matcher_and_helper_know_how_many_are_joined_and_nobody_else_does():
    check(joined_count, needs({MATCHER}, {HELPER}, set(OWNERS)), lambda n: n == len(JOINED))


def test_the_matcher_knows_all_venn_regions():
    regions = lambda found: sorted(sorted(each) for each in found.values()) == [r for r in TRUE_VENN if r]  # noqa: E731
    check(venn, needs({MATCHER}, set(OWNERS)), regions)


@pytest.mark.parametrize("owner", OWNERS)
def test_matcher_and_helper_together_have_every_lists_words_without_a_name(owner):
    """Joined or not; an owner has its own anyway."""
    index = OWNERS.index(owner)
    people = WORDS[index]

    def right(found: np.ndarray) -> bool:
        expected = [words if (owner, p) not in WAITS else [0, 0] for p, words in people.items()]
        return sorted(found.tolist()) == sorted([*expected, [0, 0]])

    check(lambda seen: payload(seen, owner), needs({owner}, {MATCHER, HELPER}), right)


def test_the_dealer_with_one_of_the_two_has_the_words_of_the_joined_rows_without_a_name():
    check(
        aligned_words,
        needs({MATCHER, DEALER}, {HELPER, DEALER}, {MATCHER, HELPER}),
        lambda found: {tuple(row) for row in found.tolist() if any(row)} == TRUE_ROWS,
    )


@pytest.mark.parametrize("owner", OWNERS)
def test_an_owner_with_matcher_or_helper_knows_which_of_its_rows_are_joined(owner):
    check(
        lambda seen: own_rows_joined(seen, owner),
        needs({owner, MATCHER}, {owner, HELPER}, set(OWNERS)),
        lambda found: found == set(JOINED),
    )


@pytest.mark.parametrize("owner", OWNERS)
def test_an_owner_with_the_matcher_knows_on_which_lists_each_of_its_persons_counts(owner):
    """Joined or not: of 3, who is on two lists, S1 so reads that no row of S3 passes what is asked there."""

    def right(found: Mapping[int, frozenset[Role]]) -> bool:
        return all(
            lists
            == {
                o
                for o, people in zip(OWNERS, ON, strict=True)
                if person in people and (o, person) not in WAITS
            }
            or (owner, person) in WAITS
            for person, lists in found.items()
        ) and set(found) == set(ON[OWNERS.index(owner)])

    check(lambda seen: own_rows_elsewhere(seen, owner), needs({owner, MATCHER}, set(OWNERS)), right)


def test_an_owner_with_two_of_matcher_helper_and_dealer_has_joined_records_with_names():
    right = {person: tuple(word for words in WORDS for word in words[person]) for person in JOINED}
    two = [set(each) for each in combinations((MATCHER, HELPER, DEALER), 2)]
    # All owners together have them anyway, and find them so with either's alignment.
    can = needs(*({owner, *each} for owner in OWNERS for each in two), {*OWNERS, HELPER}, {*OWNERS, MATCHER})
    check(identified, can, lambda found: found == right)


def test_the_matcher_with_both_key_holders_reads_all_lists():
    right = {
        owner: {person for person in people if (owner, person) not in WAITS}
        for owner, people in zip(OWNERS, ON, strict=True)
    }
    check(dictionary, needs({MATCHER, S1, S2}, set(OWNERS)), lambda found: found == right)


# -- open axes -----------------------------------------------------------------------------------------------


def codes(seen: View) -> list[int] | None:
    rows = table(seen, S1)
    return None if rows is None else rows[:, 16].tolist()


def groups(seen: View) -> list[int] | None:
    body = seen.body(MATCHER, HELPER, GROUPS)
    return None if body is None else np.frombuffer(body, dtype="<u4").tolist()


def test_the_matcher_sees_the_open_code_of_every_row_and_the_helper_the_sizes_of_joined_groups():
    check(codes, needs({MATCHER}, {S1}), lambda found: (sum(found), len(found)) == (7, 15), product=None)
    check(groups, needs({MATCHER}, {HELPER}), lambda found: found == [4, 3], product=None)


def codes_by_tag(seen: View, owner: Role) -> dict[int, int] | None:
    """Return where an owner's persons stand along the open axis of S1, by the tags of both lists."""
    places, tags, theirs, rows = named(seen, owner), tags_of(seen, owner), tags_of(seen, S1), table(seen, S1)
    if places is None or tags is None or theirs is None or rows is None:
        return None
    stands = dict(zip(theirs, rows[:, 16].tolist(), strict=True))
    return {person: stands[tags[at]] for at, person in places.items() if tags[at] in stands}


def codes_by_group(seen: View, owner: Role) -> dict[int, int] | None:
    """Return the same of who is joined, by which part of the alignment is which group."""
    places, aligned, sizes = named(seen, owner), positions(seen), groups(seen)
    if places is None or aligned is None or sizes is None:
        return None
    stands = np.repeat(np.arange(len(sizes)), sizes).tolist()
    column = aligned[: len(stands), OWNERS.index(owner)].tolist()
    return {places[at]: group_ for at, group_ in zip(column, stands, strict=True)}


@pytest.mark.parametrize("owner", [S2, S3])
def test_an_owner_with_matcher_or_helper_reads_others_open_axes_by_name(owner):
    """With the matcher of whoever counts on both lists, joined or not; with the helper of the joined."""
    people = ON[OWNERS.index(owner)]
    both = {person: person % 2 for person in people if person in ON[0] and (owner, person) not in WAITS}
    assert set(both) > set(JOINED)
    check(
        lambda seen: codes_by_tag(seen, owner),
        needs({owner, MATCHER}, {owner, S1}),
        lambda found: found == both,
        product=None,
    )
    check(
        lambda seen: codes_by_group(seen, owner),
        needs({owner, MATCHER}, {owner, HELPER}),
        lambda found: found == {person: person % 2 for person in JOINED},
        product=None,
    )


# -- those who get nothing -----------------------------------------------------------------------------------


def test_the_dealer_receives_one_empty_message_and_sends_what_no_list_is_in():
    case = played()
    assert [(m.sender, m.round, m.body) for m in case.sent if m.to == DEALER] == [(HELPER, DEALT, b"")]
    assert isinstance(case.parties[DEALER], Dealer)
    # Other lists of the same sizes, the same randomness: the same messages.
    others: list[Any] = [{person + 50: [0, 0] for person in people} for people in ON]
    other = joined_case(others, widths=[2, 2, 2], product="gram", seed="views")
    other.play()
    sent = [[(m.to, m.body) for m in each.sent if m.sender == DEALER] for each in (case, other)]
    assert sent[0] == sent[1]


@pytest.mark.parametrize("owner", OWNERS)
def test_a_list_owner_receives_nothing_but_blinded_points_of_the_tagging(owner):
    received = [m for m in played().sent if m.to == owner]
    assert received
    assert all(tagging.is_tagging(m.round) for m in received)
    holder: Party = played().parties[owner]
    assert isinstance(holder, Holder)
    # None of them is the point of a guess, under the member's own keys or none.
    points = group.hash_to_group([key_of(person) for person in PEOPLE], b"minshu/tag/1" + CTX)
    tried = [points, *([group.power(points, holder._tagging._key)] if holder._tagging._key else [])]
    guesses = {point.tobytes() for each in tried for point in each}
    bodies = b"".join(m.body for m in received)
    assert not guesses & {bodies[at : at + 32] for at in range(0, len(bodies), 32)}


def test_half_of_the_openings_or_of_the_seeds_tells_nothing_of_a_row():
    """With its seed and what both open, the matcher has rows under the helper's mask; so the other way."""
    shape = played().joining.shape
    assert shape is not None
    for role in (MATCHER, HELPER):
        seen = view(played(), frozenset({role}))
        seed = seen.body(DEALER, role, DEAL)
        assert seed is not None
        masks = triples.masks_of(shape, seed[:32], CTX, role).take(shape.rows, shape.width)
        total = masks
        for body in (seen.body(MATCHER, HELPER, BLOCK), seen.body(HELPER, MATCHER, BLOCK)):
            assert body is not None
            total = WIDE.add(total, WIDE.read(body, shape.width))
        small = np.abs(WIDE.decode(total[:, : shape.left])) < 1 << 40
        assert not small.any()  # false alarm: 96 words at 2^-20
