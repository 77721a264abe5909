"""What each coalition can compute, derived from messages actually sent, and what it cannot.

A view is what its members sent and received, their own lists and their own secrets. Every attack below takes
a view and nothing else, and is tried by every coalition: whoever lacks a part gets nothing.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pytest
from crosscheck_case import CROSSCHECK, CTX, LOOSE, Case, case, job_spec, person, under_tags
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from protocols.errors import ProtocolAborted
from protocols.ids import Role
from protocols.jobs import crosscheck
from protocols.jobs.crosscheck import (
    CONTENT_KEY,
    ENVELOPES,
    MATCHER,
    REGISTER,
    ROW_BYTES,
    ROWS,
    TAGS,
    Params,
)
from protocols.jobs.job_type import COORDINATOR, REQUESTER, source
from protocols.party import Incoming, Party, Progress, Sent, Step, Waiting
from protocols.psi import envelopes, group, locks, tagging
from protocols.psi.envelopes import RECORD_BYTES

pytestmark = pytest.mark.usefixtures("path")

S1, S2, S3 = (source(i) for i in (1, 2, 3))
PEOPLE = range(40)  # everybody an attacker would guess
LISTS = [
    dict.fromkeys(range(20), ("", "")),
    {number: (f"99010100{number % 3}", "2025-11") for number in range(10, 30)},
    {number: (f"99010200{number % 3}", "2025-10") for number in range(15, 33)},
    {number: (f"99010300{number % 3}", "2025-09") for number in [*range(4, 12), *range(24, 36)]},
]
HOLDERS = {number: {i for i, held in enumerate(LISTS) if number in held} for number in PEOPLE}
KEY_OF = {number: f"RIC:{person(number)}".encode() for number in PEOPLE}


@dataclass
class View:
    """What a coalition has."""

    members: frozenset[Role]
    params: Params
    messages: list[Sent]
    parties: dict[Role, crosscheck.Register | crosscheck.Source | crosscheck.Matcher]  # members' own state

    def bodies(self, number: int, sender: Role) -> bytes:
        return b"".join(m.body for m in self.messages if (m.round, m.sender) == (number, sender))

    def tags(self) -> dict[int, list[bytes]]:
        """Tags of every list whose stream is in view, by list index."""
        found = {}
        for index, owner in enumerate(self.params.owners):
            body = self.bodies(TAGS, owner)
            if body:
                found[index] = [body[at : at + 16] for at in range(0, len(body), 16)]
        return found

    def scalars(self) -> dict[Role, bytes]:
        """Tag keys of members."""
        return {
            role: party.tagging._key
            for role, party in self.parties.items()
            if isinstance(party, crosscheck._ListOwner) and party.tagging._key
        }

    def values_of(self, guesses: Iterable[int]) -> dict[int, bytes]:
        """V of each person the coalition can compute V for: its own lists, or anybody with both tag keys."""
        found = {}
        for party in self.parties.values():
            if isinstance(party, crosscheck._ListOwner):
                found |= {number_of(key): value for key, value in under_tags(party)}
        keys = self.scalars()
        if set(keys) == {REGISTER, self.params.key_holder}:
            guessed = list(guesses)
            points = group.hash_to_group([KEY_OF[number] for number in guessed], b"minshu/tag/1" + CTX)
            for scalar in keys.values():
                points = group.power(points, scalar)
            found |= {number: point.tobytes() for number, point in zip(guessed, points, strict=True)}
        return found

    def content_keys(self) -> dict[int, bytes]:
        return {self.params.owners.index(m.sender): m.body for m in self.messages if m.round == CONTENT_KEY}


def number_of(key: bytes) -> int:
    return next(number for number, known in KEY_OF.items() if known == key)


def view(run: Case, *members: Role) -> View:
    inside = frozenset(members)
    return View(
        inside,
        Params.of(run.spec),
        [m for m in run.sent if m.sender in inside or m.to in inside],
        {role: party for role, party in run.parties.items() if role in inside},
    )


@pytest.fixture(scope="module")
def at_least(path: int | None) -> Case:  # anew for each
    run = case(LISTS, k=2, seed=9)
    run.run()
    return run


@pytest.fixture(scope="module")
def without_lock(path: int | None) -> Case:
    run = case(LISTS, k=1, seed=9)
    run.run()
    return run


@pytest.fixture(scope="module")
def everywhere(path: int | None) -> Case:
    run = case(LISTS, present_in="all", seed=9)
    run.run()
    return run


# the attacks


def venn(seen: View) -> Counter[frozenset[int]]:
    """Exact sizes of all regions, if all tag streams are in view."""
    lists = seen.tags()
    if set(lists) != set(range(len(seen.params.owners))):
        return Counter()
    holders: dict[bytes, set[int]] = defaultdict(set)
    for index, tags in lists.items():
        for tag in tags:
            holders[tag].add(index)
    return Counter(frozenset(each) for each in holders.values())


def linked(seen: View) -> dict[int, set[int]]:
    """For each person V is known of: which lists outside the coalition hold the tag."""
    own = {seen.params.owners.index(role) for role in seen.members if role in seen.params.owners}
    lists = {index: set(tags) for index, tags in seen.tags().items() if index not in own}
    if not lists:
        return {}
    known = seen.values_of(PEOPLE)
    tags = {
        number: tagging.tags(np.frombuffer(value, dtype=np.uint8).reshape(1, 32)).tobytes()
        for number, value in known.items()
    }
    return {number: {index for index, held in lists.items() if tag in held} for number, tag in tags.items()}


def opened(seen: View) -> set[tuple[int, int]]:
    """All (list, person) of lists outside the coalition whose envelope it can read, by every way it has.

    (1) Envelopes the matcher opened are in view. (2) k shares of a tag in view give a_0. (3) V gives a_0.
    """
    found = set()
    for m in seen.messages:
        if m.round == ENVELOPES:
            for at in range(0, len(m.body), RECORD_BYTES):
                index, position = m.body[at], int.from_bytes(m.body[at + 1 : at + 5], "big")
                found |= read(seen, index, position, m.body[at + 5 : at + RECORD_BYTES])
    values = {
        tagging.tags(np.frombuffer(value, dtype=np.uint8).reshape(1, 32)).tobytes(): value
        for value in seen.values_of(PEOPLE).values()
    }
    rows: dict[bytes, dict[int, tuple[int, bytes]]] = defaultdict(dict)
    for index, tags in seen.tags().items():
        width = ROW_BYTES if index else locks.SHARE_BYTES
        body = seen.bodies(ROWS, seen.params.owners[index])
        if body:
            for position, tag in enumerate(tags):
                rows[tag][index] = (position, body[position * width : (position + 1) * width])
    for tag, held in rows.items():
        shares = {seen.params.share_index(i): row[: locks.SHARE_BYTES] for i, (_, row) in held.items()}
        if tag in values:
            k = seen.params.k
            shares = {i: next(locks.shares_and_keys(values[tag], i, k, CTX))[0] for i in range(1, k + 1)}
        for index, (position, row) in held.items():
            if not index:
                continue
            try:
                chosen = locks.secret_weights(list(shares)[: seen.params.k])
                envelope = locks.unlock(
                    shares, chosen, CTX, seen.params.share_index(index), row[locks.SHARE_BYTES :]
                )
            except ProtocolAborted:
                continue
            found |= read(seen, index, position, envelope)
    own = {seen.params.owners.index(role) for role in seen.members & set(seen.params.owners)}
    return {(index, number) for index, number in found if index not in own}


def read(seen: View, index: int, position: int, envelope: bytes) -> set[tuple[int, int]]:
    """Try every 32-byte secret in view as the content key."""
    for key in seen.content_keys().values():
        try:
            plain = AESGCM(key).decrypt(position.to_bytes(12, "big"), envelope, envelopes.domain(CTX, index))
        except InvalidTag:
            continue
        keys, streets, months = envelopes.parse(plain)
        number = number_of(keys[0])
        assert LISTS[index][number] == (streets[0], months[0])
        return {(index, number)}
    return set()


def guessed(seen: View) -> set[int]:
    """Outsiders of all members' own lists whose presence in some other list the coalition can tell."""
    own: set[int] = set()
    for role in seen.members & set(seen.params.owners):
        own |= set(LISTS[seen.params.owners.index(role)])
    return {number for number in linked(seen) if number not in own}


TRUE_VENN = Counter(frozenset(held) for held in HOLDERS.values() if held)
ROLES = (REGISTER, S1, S2, S3, MATCHER)
COALITIONS = [frozenset(members) for size in range(1, len(ROLES)) for members in combinations(ROLES, size)]


def elsewhere(members: frozenset[Role]) -> dict[int, set[int]]:
    """What `own-rows-elsewhere` says of members' rows."""
    owners = (REGISTER, S1, S2, S3)
    own = {owners.index(role) for role in members if role in owners}
    return {number: held - own for number, held in HOLDERS.items() if held & own}


def by_name(members: frozenset[Role]) -> str:
    return "+".join(sorted(members))


def reads(members: frozenset[Role], k: int, *, everywhere: bool) -> set[tuple[int, int]]:
    """Which envelopes the coalition table lets these members read, apart from what the release says."""
    if not {REGISTER, MATCHER} <= members:
        return set()
    own = {ROLES.index(role) for role in members if role != MATCHER}
    everybody = S1 in members  # the other tag key
    return {
        (index, number)
        for number, held in HOLDERS.items()
        for index in held - own - {0}
        if everybody or held & own or (not everywhere and len(held - {0}) >= k)
    }


@pytest.mark.parametrize("members", COALITIONS, ids=by_name)
def test_only_the_matcher_learns_how_lists_overlap(at_least, everywhere, members):
    for run in (at_least, everywhere):
        # All list owners together need no protocol to compare their lists.
        knows = MATCHER in members or members == set(ROLES) - {MATCHER}
        assert venn(view(run, *members)) == (TRUE_VENN if knows else Counter())


@pytest.mark.parametrize("members", COALITIONS, ids=by_name)
def test_rows_are_linked_by_the_matcher_with_their_owner_and_by_nobody_else(at_least, members):
    found = linked(view(at_least, *members))
    if MATCHER not in members:
        # Nobody but the matcher sees a tag of another's list.
        assert found == {}
    elif not {REGISTER, S1} <= members:
        assert found == elsewhere(members)


@pytest.mark.parametrize("members", COALITIONS, ids=by_name)
def test_a_guessed_identifier_is_found_only_with_the_matcher_and_both_tag_keys(at_least, everywhere, members):
    for run in (at_least, everywhere):
        seen = view(run, *members)
        if {MATCHER, REGISTER, S1} <= members:
            outside = set(PEOPLE) - set(LISTS[0]) - set(LISTS[1])
            assert guessed(seen) >= outside - set(LISTS[2]) - set(LISTS[3])
            own = {ROLES.index(role) for role in members if role != MATCHER}
            assert linked(seen) == {number: HOLDERS[number] - own for number in PEOPLE}
        else:
            assert guessed(seen) == set()


@pytest.mark.parametrize("members", COALITIONS, ids=by_name)
@pytest.mark.parametrize(("name", "k"), [("at_least", 2), ("without_lock", 1), ("everywhere", 4)])
def test_exactly_these_envelopes_can_be_read(request, name, k, members):
    run = request.getfixturevalue(name)
    everywhere = name == "everywhere"
    released = set()
    if REGISTER in members:
        records = run.parties[REGISTER]
        assert records._inbox.complete
        released = released_rows(run)
    own = {ROLES.index(role) for role in members if role != MATCHER}
    released = {(index, number) for index, number in released if index not in own}
    assert opened(view(run, *members)) == released | reads(members, k, everywhere=everywhere)


def released_rows(run: Case) -> set[tuple[int, int]]:
    """(list, person) of each record, from the register's own view."""
    (body,) = [m.body for m in run.sent if m.round == ENVELOPES]
    found = set()
    for at in range(0, len(body), RECORD_BYTES):
        index, position = body[at], int.from_bytes(body[at + 1 : at + 5], "big")
        if not index:
            continue  # padding
        found.add((index, number_of(under_tags(run.parties[source(index)])[position][0])))
    return found


def test_the_register_alone_reads_one_envelope_of_each_flagged_person(at_least, everywhere):
    flagged = {n for n, held in HOLDERS.items() if 0 not in held and len(held) >= 2}
    alone = opened(view(at_least, REGISTER))
    assert Counter(number for _, number in alone) == Counter(flagged)
    in_all = {n for n, held in HOLDERS.items() if held == {0, 1, 2, 3}}
    assert Counter(number for _, number in opened(view(everywhere, REGISTER))) == Counter(in_all)


def test_a_register_that_leaves_persons_off_its_list_receives_them():
    # What the statement `crafted-list` admits; the commitment differs from that of the whole list.
    honest, crafted = dict(LISTS[0]), {n: row for n, row in LISTS[0].items() if n != 16}
    runs = [case([register, *LISTS[1:]], k=2, seed=1) for register in (honest, crafted)]
    rows = [set(run.released()[0].table.columns["key"].tolist()) for run in runs]
    assert rows[1] - rows[0] == {KEY_OF[16].decode()}
    assert len({run.setup.inputs[REGISTER].commitment for run in runs}) == 2


# what the statements do not say: two worlds a coalition must not be able to tell apart


def shape(run: Case, *members: Role) -> list[tuple[str, str, int, int, bool]]:
    """Everything in a view but the bytes themselves: who, to whom, round, length, end; in order."""
    return [(m.sender, m.to, m.round, len(m.body), m.last) for m in view(run, *members).messages]


def played(lists: list[dict[int, tuple[str, str]]]) -> Case:
    run = case(lists, k=2, seed=3)
    run.run()
    return run


def test_to_a_source_all_worlds_with_the_same_sizes_look_the_same():
    one = played(LISTS)
    shifted = [{(n + 7 * i) % 40: row for n, row in held.items()} for i, held in enumerate(LISTS)]
    other = played(shifted)
    assert venn(view(one, MATCHER)) != venn(view(other, MATCHER))
    for role in (S2, S3):
        assert shape(one, role) == shape(other, role)
    # The second key-holder sees chunks of all lists pass, and their sizes.
    assert sorted(shape(one, S1)) == sorted(shape(other, S1))


def test_to_the_matcher_all_worlds_with_the_same_overlaps_look_the_same():
    one = played(LISTS)
    renamed = [{n + 500: ("990111009", "2020-01") for n in held} for held in LISTS]
    other = played(renamed)

    def overlaps(run: Case) -> list[tuple[str, str, int, int, bool]]:
        return shape(run, MATCHER)

    assert overlaps(one) == overlaps(other)
    assert venn(view(one, MATCHER)) == venn(view(other, MATCHER))


def test_to_the_register_persons_who_are_not_flagged_make_no_difference():
    # Person 33 is in source-3 alone; 39 takes the place. Person 12 is on the register and in source-1 alone.
    moved = [dict(held) for held in LISTS]
    moved[3][39] = moved[3].pop(33)
    moved[1][3] = moved[1].pop(12)
    one, other = played(LISTS), played(moved)
    assert shape(one, REGISTER) == shape(other, REGISTER)
    assert {n for _, n in released_rows(one)} == {n for _, n in released_rows(other)}


@dataclass
class Watched:
    """A party whose progress, which its node tells the coordinator, is written down."""

    party: Party
    told: list[Progress | None]

    def start(self) -> Step:
        return self._seen(self.party.start())

    def receive(self, message: Incoming) -> Step:
        return self._seen(self.party.receive(message))

    def _seen(self, step: Step) -> Step:
        self.told.append(step.progress if isinstance(step, Waiting) else None)
        return step


@pytest.mark.parametrize("params", [{"k": 2}, {"k": 1}, {"present_in": "all"}])
def test_to_the_relay_all_worlds_with_the_same_sizes_and_limits_look_the_same(params, monkeypatch):
    monkeypatch.setattr(envelopes, "CHUNK_RECORDS", 2)  # so that the register tells how far it is

    def seen(first: int) -> tuple[int, object, object]:
        row = ("990101001", "2025-11")
        lists = [dict.fromkeys(range(10), row), *[dict.fromkeys(range(first, first + 8), row)] * 3]
        run = case(lists, seed=3, constraints=replace(LOOSE, max_rows=8), **params)
        told: dict[Role, list[Progress | None]] = {role: [] for role in run.parties}
        run.parties = {role: Watched(party, told[role]) for role, party in run.parties.items()}
        records, _ = run.released()
        frames = [(m.sender, m.to, m.round, len(m.body), m.last) for m in run.sent]
        return records.table.rows, frames, told

    inside, outside = seen(0), seen(10)
    assert sorted((inside[0], outside[0])) == [0, 8]
    assert inside[1:] == outside[1:]


def test_no_two_messages_carry_the_same_point_tag_or_row(at_least):
    pieces: Counter[bytes] = Counter()
    for m in at_least.sent:
        width = 32 if m.round < 0x400 else {TAGS: 16, ROWS: ROW_BYTES, ENVELOPES: RECORD_BYTES}.get(m.round)
        if width and m.round != TAGS:
            pieces.update(m.body[at : at + width] for at in range(0, len(m.body), width))
    del pieces[bytes(RECORD_BYTES)]  # padding
    assert max(pieces.values()) == 1


def test_no_identifier_stands_in_any_message(at_least, everywhere):
    for run in (at_least, everywhere):
        everything = b"\0".join(m.body for m in run.sent)
        for number in PEOPLE:
            assert person(number).encode() not in everything


# the table says just that

SHOWN = {
    frozenset({REGISTER}): {"list-sizes", "flagged-rows", "crafted-list"},
    frozenset({S1}): {"list-sizes"},
    frozenset({S2}): {"list-sizes"},
    frozenset({S3}): {"list-sizes"},
    frozenset({MATCHER}): {"list-sizes", "venn"},
    frozenset({Role(REQUESTER)}): {"street-table"},
    frozenset({Role(COORDINATOR)}): {"list-sizes", "traffic"},
    frozenset({MATCHER, S1}): {"own-rows-elsewhere"},
    frozenset({MATCHER, S2}): {"own-rows-elsewhere"},
    frozenset({MATCHER, S3}): {"own-rows-elsewhere"},
    frozenset({MATCHER, REGISTER}): {"own-rows-elsewhere", "opened-envelopes"},
    frozenset({MATCHER, REGISTER, S1}): {"dictionary"},
    frozenset({MATCHER, REGISTER, S2}): {"opened-envelopes"},
    frozenset({MATCHER, REGISTER, S3}): {"opened-envelopes"},
}
"""What the tests above establish, by coalition."""


@pytest.mark.parametrize("params", [{"k": 2}, {"k": 1}, {"present_in": "all"}])
def test_the_leakage_statement_is_what_these_tests_establish(params):
    table = CROSSCHECK.learns(job_spec(3, **params))
    shown = dict(SHOWN)
    if params.get("k") == 1:  # register and matcher already read everything
        del shown[frozenset({MATCHER, REGISTER, S2})], shown[frozenset({MATCHER, REGISTER, S3})]
    assert {members: {s.key for s in statements} for members, statements in table.items()} == shown
    spoken = [s for statements in table.values() for s in statements]
    assert all(s.en and s.zh for s in spoken)
    without = any("no lock" in s.en for s in spoken)
    assert without == (params.get("k") == 1)
