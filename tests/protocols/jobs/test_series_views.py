"""What each coalition can put together from all days of a series, and what it cannot.

A view is what its members sent and received on all days, their own lists and their own secrets. Every attack
takes a view and nothing else, and is tried by every coalition.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from crosscheck_case import person
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from series_case import LOOSE, SERIES, Days, Played, series_spec

from protocols.errors import ProtocolAborted
from protocols.ids import Role
from protocols.jobs import crosscheck_series
from protocols.jobs.crosscheck import CONTENT_KEY, ENVELOPES, MATCHER, REGISTER, ROWS, TAGS, Params
from protocols.jobs.crosscheck_series import MARK_KEY, MARKS, WANTED, Day, Matcher, Register, Source
from protocols.jobs.job_type import COORDINATOR, REQUESTER, source
from protocols.party import Sent
from protocols.psi import envelopes, group, locks, series
from protocols.psi.envelopes import ENVELOPE_BYTES, RECORD_BYTES
from protocols.psi.series import OPENING, Kept, load

S1, S2, S3 = (source(i) for i in (1, 2, 3))
OWNERS = (REGISTER, S1, S2, S3)
ROLES = (*OWNERS, MATCHER)
COALITIONS = [frozenset(members) for size in range(1, len(ROLES)) for members in combinations(ROLES, size)]
PEOPLE = range(48)  # everybody an attacker would guess
ROW = ("990101001", "2025-11")
KEY_OF = {number: f"RIC:{person(number)}".encode() for number in PEOPLE}
NUMBER_OF = {key: number for number, key in KEY_OF.items()}
FIRST = [set(range(20)), set(range(10, 30)), set(range(15, 33)), {*range(4, 12), 17, 18, *range(24, 36)}]
LISTS = [
    FIRST,
    # 16 leaves the register and is flagged; 25 leaves source-1; 40 comes to two sources; 5 to source-2.
    [FIRST[0] - {16}, FIRST[1] - {25} | {40}, FIRST[2] | {40, 5}, FIRST[3]],
    # 16 is back on the register, 40 leaves all; 41 comes to source-2 and source-3; 27 to the register.
    [FIRST[0] | {27}, FIRST[1] - {25}, FIRST[2] | {5, 41}, FIRST[3] | {41}],
]


@pytest.fixture(scope="module", autouse=True)
def _few_fillers():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(series, "LEAST_POINTS", 8)
        yield


def played(params: dict[str, Any], lists: list[list[set[int]]] | None = None, seed: object = 5) -> Days:
    days = Days(params, seed=seed)
    for day, each in enumerate(lists or LISTS, 1):
        days.play([dict.fromkeys(sorted(held), ROW) for held in each], day)
    return days


@pytest.fixture(scope="module")
def at_least() -> Days:
    return played({"k": 2})


@pytest.fixture(scope="module")
def everywhere() -> Days:
    return played({"present_in": "all"})


@dataclass
class View:
    """What a coalition has: messages by day, its parties by day, what it knows V of."""

    members: frozenset[Role]
    params: Params
    days: list[Played]

    def messages(self, day: Played) -> list[Sent]:
        return [m for m in day.sent if m.sender in self.members or m.to in self.members]

    def bodies(self, day: Played, number: int, sender: Role) -> bytes:
        return b"".join(m.body for m in self.messages(day) if (m.round, m.sender) == (number, sender))

    def tags(self, day: Played) -> dict[int, list[bytes]]:
        found = {}
        for index, owner in enumerate(OWNERS):
            if body := self.bodies(day, TAGS, owner):
                found[index] = [body[at : at + 16] for at in range(0, len(body), 16)]
        return found

    def owners(self) -> Iterable[tuple[Played, Register | Source]]:
        for day in self.days:
            for role in self.members - {MATCHER}:
                party = day.parties[role]
                assert isinstance(party, Register | Source)
                yield day, party

    def values(self) -> dict[int, bytes]:
        """V of everybody it can compute V for, by lists of all days, or by guessing with both tag keys."""
        found, keys = {}, {}
        for _, party in self.owners():
            tagging = party._keeper.tagging
            for key, value in zip(party.listed.keys, tagging.values, strict=True):
                found[NUMBER_OF[key]] = value.tobytes()
            if tagging.tag_key:
                keys[party.role] = tagging.tag_key
        if set(keys) == {REGISTER, S1}:
            return values_by(keys.values(), self.days[0].setup.ctx)
        return found

    def mark_key(self, day: Played) -> bytes:
        return next((m.body for m in self.messages(day) if m.round == MARK_KEY), b"")

    def rows(self, day: Played) -> dict[bytes, dict[int, tuple[int, bytes]]]:
        """By tag: the list, the position and the row."""
        found: dict[bytes, dict[int, tuple[int, bytes]]] = defaultdict(dict)
        for index, tags in self.tags(day).items():
            width = Matcher.row_bytes if index else locks.SHARE_BYTES
            if body := self.bodies(day, ROWS, OWNERS[index]):
                for place, tag in enumerate(tags):
                    found[tag][index] = (place, body[place * width : (place + 1) * width])
        return found


def values_by(keys: Iterable[bytes], series_ctx: bytes) -> dict[int, bytes]:
    """V of everybody who can be guessed."""
    points = group.hash_to_group(list(KEY_OF.values()), b"minshu/tag/1" + series_ctx)
    for scalar in keys:
        points = group.power(points, scalar)
    return {number: point.tobytes() for number, point in zip(KEY_OF, points, strict=True)}


def tag_of(value: bytes, day: Played) -> bytes:
    return series.day_tags(np.frombuffer(value, dtype=np.uint8).reshape(1, 32), day.setup.ctx).tobytes()


def view(run: Days, *members: Role) -> View:
    return View(frozenset(members), Params.of(Day.of(run.played[0].spec).asked), run.played)


# the attacks


def elsewhere(seen: View, values: Mapping[int, bytes]) -> dict[tuple[int, int], set[int]]:
    """By day and person V is known of: which lists outside the coalition hold the person."""
    own = {OWNERS.index(role) for role in seen.members - {MATCHER}}
    found = {}
    for number, day in enumerate(seen.days):
        lists = {index: set(tags) for index, tags in seen.tags(day).items() if index not in own}
        if lists:
            for who, value in values.items():
                tag = tag_of(value, day)
                found[number, who] = {index for index, tags in lists.items() if tag in tags}
    return found


def inside(seen: View, day: Played) -> Iterable[tuple[int, int, bytes]]:
    """What is in every lock the coalition can take off: list, position, envelope ‖ sealed mark."""
    known = {tag_of(value, day): value for value in seen.values().values()}
    k, ctx = seen.params.k, day.setup.ctx
    for tag, held in seen.rows(day).items():
        shares = {seen.params.share_index(i): row[: locks.SHARE_BYTES] for i, (_, row) in held.items()}
        if tag in known:
            shares = {i: next(locks.shares_and_keys(known[tag], i, k, ctx))[0] for i in range(1, k + 1)}
        weights = locks.secret_weights(list(shares)[:k])
        for index, (place, row) in held.items():
            try:
                share = seen.params.share_index(index)
                yield index, place, locks.unlock(shares, weights, ctx, share, row[locks.SHARE_BYTES :])
            except ProtocolAborted:
                continue


def pseudonyms(seen: View) -> list[set[bytes]]:
    """By day: what the coalition calls persons whose locks open, hoping to meet them again."""
    found = []
    for day in seen.days:
        key = seen.mark_key(day)
        own = {OWNERS.index(role) for role in seen.members if MATCHER not in seen.members}
        sealed = {opened[ENVELOPE_BYTES:] for index, _, opened in inside(seen, day) if index not in own}
        if REGISTER in seen.members:
            body = seen.bodies(day, MARKS, MATCHER)
            sealed |= {body[at : at + 16] for at in range(0, len(body), 16)} - {bytes(16)}
        found.append({series.opened_marks(each, key) if key else each for each in sealed})
    return found


def met_again(seen: View) -> int:
    names = pseudonyms(seen)
    return sum(len(one & other) for one, other in combinations(names, 2))


def newness(seen: View) -> list[Counter[tuple[frozenset[int], bool]]]:
    """By day: of each combination of lists that selected rows can be tied to, how many are new or not."""
    found = []
    for day in seen.days:
        tags = seen.tags(day)
        tag_of_mark = {opened[ENVELOPE_BYTES:]: tags[i][place] for i, place, opened in inside(seen, day)}
        marks = seen.bodies(day, MARKS, MATCHER)
        bits = np.unpackbits(np.frombuffer(seen.bodies(day, WANTED, REGISTER), dtype=np.uint8)).tolist()
        counts: Counter[tuple[frozenset[int], bool]] = Counter()
        for at, new in zip(range(0, len(marks), 16), bits, strict=False):
            tag = tag_of_mark.get(marks[at : at + 16])
            if tag is not None:
                counts[frozenset(i for i, held in tags.items() if tag in held), bool(new)] += 1
        found.append(counts)
    return found


def opened(seen: View) -> set[tuple[int, int, int]]:
    """Day, list and person of every envelope the coalition can read."""
    found = set()
    for number, day in enumerate(seen.days):
        keys = {OWNERS.index(m.sender): m.body for m in seen.messages(day) if m.round == CONTENT_KEY}
        pieces = [(index, place, body[:ENVELOPE_BYTES]) for index, place, body in inside(seen, day)]
        body = b"".join(m.body for m in seen.messages(day) if m.round == ENVELOPES)
        for at in range(0, len(body), RECORD_BYTES):
            place = int.from_bytes(body[at + 1 : at + 5], "big")
            pieces.append((body[at], place, body[at + 5 : at + RECORD_BYTES]))
        for index, place, envelope in pieces:
            for key in keys.values():
                try:
                    plain = AESGCM(key).decrypt(
                        place.to_bytes(12, "big"), envelope, envelopes.domain(day.setup.ctx, index)
                    )
                except InvalidTag:
                    continue
                found.add((number, index, NUMBER_OF[envelopes.parse(plain)[0][0]]))
    return found


# what they find


def ever(members: frozenset[Role]) -> set[int]:
    """Who was on a member's list on any day."""
    own = [OWNERS.index(role) for role in members - {MATCHER}]
    return set().union(*(day[index] for day in LISTS for index in own))


def holders(day: int, who: int) -> set[int]:
    return {index for index, held in enumerate(LISTS[day]) if who in held}


def test_with_the_matcher_a_list_owner_follows_whoever_was_ever_on_its_list_through_all_days(
    at_least, everywhere
):
    for run in (at_least, everywhere):
        for members in COALITIONS:
            seen = view(run, *members)
            found = elsewhere(seen, seen.values())
            own = {OWNERS.index(role) for role in members - {MATCHER}}
            if MATCHER not in members:
                assert found == {}
                continue
            known = set(PEOPLE) if {REGISTER, S1} <= members else ever(members)
            assert found == {(d, n): holders(d, n) - own for d in range(3) for n in known}
    # Who left the list before, or came to it later: what no fresh cross-check of that day would have told.
    found = elsewhere(view(at_least, MATCHER, S1), view(at_least, MATCHER, S1).values())
    assert found[1, 25] == {2, 3}
    assert found[0, 40] == set()


def test_the_matcher_alone_meets_nobody_again_and_with_an_owner_everybody_whose_locks_open(
    at_least, everywhere
):
    def selected(day: int, params: Params) -> set[int]:
        everybody = {n: holders(day, n) for n in PEOPLE}
        if params.everywhere:
            return {n for n, held in everybody.items() if len(held) == 4}
        return {n for n, held in everybody.items() if len(held - {0}) >= params.k}

    for run in (at_least, everywhere):
        params = view(run, MATCHER).params
        open_to_all = [selected(day, params) for day in range(3)]
        flagged = [who if params.everywhere else who - LISTS[d][0] for d, who in enumerate(open_to_all)]
        for members in COALITIONS:
            again = met_again(view(run, *members))
            if MATCHER in members:
                known = [*open_to_all]
                if members != {MATCHER}:
                    at_least_these = sum(len(a & b) for a, b in combinations(known, 2))
                    assert again >= at_least_these > 0
                else:
                    assert again == 0
            elif REGISTER in members:
                # By their marks it knows again whom it was told of, and nobody else.
                assert again == sum(len(a & b) for a, b in combinations(flagged, 2))
            else:
                assert again == 0


def test_the_matcher_learns_of_each_combination_of_lists_how_many_of_the_selected_are_new(
    at_least, everywhere
):
    for run in (at_least, everywhere):
        params, told, expected = view(run, MATCHER).params, set(), []
        for day in range(3):
            held = {who: frozenset(holders(day, who)) for who in PEOPLE}
            if params.everywhere:
                selected = {who for who, lists in held.items() if len(lists) == 4}
            else:
                selected = {who for who, lists in held.items() if 0 not in lists and len(lists) >= params.k}
            expected.append(Counter((held[who], who not in told) for who in selected))
            told |= selected
        for members in COALITIONS:
            found = newness(view(run, *members))
            if MATCHER in members:
                assert found == expected
            else:  # nobody else can tie more than own rows to what is asked for
                own = {OWNERS.index(role) for role in members}
                assert all(lists <= own for counts in found for lists, _ in counts)
    # It is more than a total, and the statement says so.
    assert all(len({lists for lists, _ in counts}) > 1 for counts in newness(view(at_least, MATCHER)))
    table = SERIES.learns(at_least.played[0].spec)
    [venn] = [each for each in table[frozenset({MATCHER})] if each.key == "venn"]
    assert "for each combination how many of the selected are new" in venn.en
    assert "每一种组合的所选人员中新增" in venn.zh


def test_these_numbers_can_tell_the_matcher_that_a_person_told_of_is_now_on_other_lists():
    # One person is flagged on day 1, of source-1 and source-2; on day 2 another one is, of these.
    base = [{0, 1}, {0, 2}, {1, 2}, {0, 1}]
    run = played({"k": 2}, [base, [base[0], {0, 3}, {1, 2, 3}, {0, 1, 2}]])
    one, two = newness(view(run, MATCHER))
    assert one == {(frozenset({1, 2}), True): 1}
    assert two == {(frozenset({1, 2}), True): 1, (frozenset({2, 3}), False): 1}
    [before], [after] = (lists for lists, _ in one), (lists for lists, new in two if not new)
    assert (before, after) == (frozenset({1, 2}), frozenset({2, 3}))


def test_with_one_mark_key_for_all_days_the_matcher_would_meet_them_again(monkeypatch):
    class Constant(Register):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self._mark_key = bytes(32)

    monkeypatch.setattr(crosscheck_series, "Register", Constant)
    assert met_again(view(played({"k": 2}), MATCHER)) > 0


def test_tags_of_days_have_nothing_in_common_and_constant_ones_would_be_seen(at_least, monkeypatch):
    def common(run: Days) -> int:
        tags = [{tag for held in view(run, MATCHER).tags(day).values() for tag in held} for day in run.played]
        return sum(len(one & other) for one, other in combinations(tags, 2))

    assert common(at_least) == 0
    constant = series.day_tags
    monkeypatch.setattr(series, "day_tags", lambda values, _ctx: constant(values, bytes(32)))
    assert common(played({"k": 2})) > 50


def rank_correlation(run: Days) -> float:
    """Of the places of one list's persons in the tag order of two days."""
    ranks = []
    for day in run.played:
        tagged = day.parties[S1]._keeper.tagging.tagged
        place = np.empty(len(tagged.order))
        place[tagged.order] = np.arange(len(tagged.order))
        ranks.append(place)
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def test_places_in_tag_order_say_nothing_of_those_of_another_day(monkeypatch):
    # 48 persons: a correlation above 0.6 by chance less than once in 10^5 seeds.
    lists = [[set(PEOPLE), set(PEOPLE), set(PEOPLE)]] * 2
    assert abs(rank_correlation(played({"k": 2}, lists, seed=1))) < 0.6
    constant = series.day_tags
    monkeypatch.setattr(series, "day_tags", lambda values, _ctx: constant(values, bytes(32)))
    assert rank_correlation(played({"k": 2}, lists, seed=1)) == pytest.approx(1)


def test_exactly_these_envelopes_can_be_read_on_all_days(at_least, everywhere):
    for run in (at_least, everywhere):
        params = view(run, MATCHER).params
        told: set[tuple[int, int, int]] = set()
        alone = opened(view(run, REGISTER))
        for day, made in enumerate(run.played):
            # The register alone reads one envelope of each newly flagged person, once in the series.
            assert {f"RIC:{person(n)}" for d, _, n in alone if d == day} == made.flagged
        assert len({n for _, _, n in alone}) == len(alone)
        for members in COALITIONS:
            own = {OWNERS.index(role) for role in members - {MATCHER}}
            told = {entry for entry in alone if REGISTER in members}
            if {REGISTER, MATCHER} <= members:
                for day in range(3):
                    for who in PEOPLE:
                        held = holders(day, who)
                        many = not params.everywhere and len(held - {0}) >= params.k
                        if S1 in members or many or who in ever(members):
                            told |= {(day, index, who) for index in held - {0}}
            found = {entry for entry in opened(view(run, *members)) if entry[1] not in own}
            assert found == {entry for entry in told if entry[1] not in own}


def test_stolen_shelves_of_both_key_holders_open_the_days_gone_by(at_least):
    # The statement `kept`: the matcher's messages of the past and what lies on two shelves today.
    seen = view(at_least, MATCHER)
    shelves: dict[Role, Kept] = {}
    for role in (REGISTER, S1):
        found = load(at_least.shelves[role], at_least.first)
        assert found is not None
        shelves[role] = found
    values = values_by((kept.tag_key for kept in shelves.values()), shelves[S1].series)
    assert elsewhere(seen, values) == {(d, n): holders(d, n) for d in range(3) for n in PEOPLE}
    # One shelf alone is one list, V of it with the matcher's messages its owner's part; no key opens more.
    own = {NUMBER_OF[key]: v.tobytes() for key, v in zip(shelves[S1].keys, shelves[S1].values, strict=True)}
    assert set(own) == LISTS[-1][1]
    wrong = values_by([shelves[S1].tag_key], shelves[S1].series)
    assert not any(elsewhere(seen, wrong).values())


def test_of_what_is_new_key_holders_are_told_a_power_of_two_and_others_nothing(at_least):
    for members in COALITIONS:
        seen = view(at_least, *members)
        openings = [m for day in at_least.played for m in seen.messages(day) if m.round == OPENING]
        foreign = {m.sender for m in openings} - members
        assert foreign == (set(OWNERS) - members if members & {REGISTER, S1} else set())
        for m in openings:
            assert int.from_bytes(m.body[32:], "big") == 8


def test_to_the_relay_days_with_the_same_sizes_look_the_same_whoever_is_new():
    def frames(lists: list[list[set[int]]]) -> list[Any]:
        run = played({"k": 2}, lists, seed=3)
        return [[(m.sender, m.to, m.round, len(m.body), m.last) for m in day.sent] for day in run.played]

    base = [set(range(10)), set(range(5, 15)), set(range(5, 15))]
    flagging = [[*base[:1], base[1] - {14} | {30}, base[2] - {14} | {30}]]
    other = [[*base[:1], base[1] - {6} | {31, 32} - {32}, base[2] - {13} | {33}]]
    assert frames([base, *flagging]) == frames([base, *other])


def test_no_identifier_no_v_and_no_key_stands_in_any_message(at_least):
    everything = b"\0".join(m.body for day in at_least.played for m in day.sent)
    for number in PEOPLE:
        assert person(number).encode() not in everything
    returned = {m.body for day in at_least.played for m in day.sent if m.round == CONTENT_KEY}
    assert returned
    for day in at_least.played:
        for role in OWNERS:
            tagging = day.parties[role]._keeper.tagging
            assert not tagging.tag_key or tagging.tag_key not in everything
            assert not any(value.tobytes() in everything for value in tagging.values)


def test_no_point_tag_share_or_row_of_one_day_is_one_of_another(at_least):
    widths = {TAGS: 16, ROWS: Matcher.row_bytes, MARKS: 16, ENVELOPES: RECORD_BYTES, CONTENT_KEY: 32}
    seen: list[set[bytes]] = []
    for day in at_least.played:
        pieces = set()
        for m in day.sent:
            width = 32 if m.round >> 8 <= 3 and m.round != OPENING else widths.get(m.round, 0)
            if width:
                pieces |= {m.body[at : at + width] for at in range(0, len(m.body), width)}
                if m.round == ROWS:
                    pieces |= {m.body[at : at + 32] for at in range(0, len(m.body), width)}
        seen.append({piece for piece in pieces if any(piece)})
    assert not any(one & other for one, other in combinations(seen, 2))


# the table says just that

OWNER = {"list-sizes", "kept"}
SHOWN = {
    frozenset({REGISTER}): {*OWNER, "flagged-rows", "crafted-list", "churn"},
    frozenset({S1}): {*OWNER, "churn"},
    frozenset({S2}): OWNER,
    frozenset({S3}): OWNER,
    frozenset({MATCHER}): {"list-sizes", "venn"},
    frozenset({Role(REQUESTER)}): {"street-table"},
    frozenset({Role(COORDINATOR)}): {"list-sizes", "traffic"},
    frozenset({MATCHER, S1}): {"own-rows-elsewhere", "linked-days"},
    frozenset({MATCHER, S2}): {"own-rows-elsewhere", "linked-days"},
    frozenset({MATCHER, S3}): {"own-rows-elsewhere", "linked-days"},
    frozenset({MATCHER, REGISTER}): {"own-rows-elsewhere", "opened-envelopes"},
    frozenset({MATCHER, REGISTER, S1}): {"dictionary"},
    frozenset({MATCHER, REGISTER, S2}): {"opened-envelopes"},
    frozenset({MATCHER, REGISTER, S3}): {"opened-envelopes"},
}
"""What the tests above establish, by coalition."""


@pytest.mark.parametrize("params", [{"k": 2}, {"k": 1}, {"present_in": "all"}], ids=str)
def test_the_leakage_statement_is_what_these_tests_establish(params):
    table = SERIES.learns(series_spec(3, first="sha256:" + "a" * 64, day=2, **params))
    shown = dict(SHOWN)
    if params.get("k") == 1:  # register and matcher already read everything
        del shown[frozenset({MATCHER, REGISTER, S2})], shown[frozenset({MATCHER, REGISTER, S3})]
    assert {members: {s.key for s in statements} for members, statements in table.items()} == shown
    for members, statements in table.items():
        for statement in statements:
            about_days = ("series", "day", "系列", "天", "日")
            assert any(word in statement.en for word in about_days[:2]), (members, statement)
            assert any(word in statement.zh for word in about_days[2:]), (members, statement)


def test_limits_hold_over_the_whole_days_selection_told_before_or_not():
    days = Days({"k": 2})
    lists = [dict.fromkeys(sorted(held), ROW) for held in FIRST]
    flagged = days.play(lists, 1).flagged
    days.constraints = replace(LOOSE, max_rows=len(flagged))
    lists[1][40] = lists[2][40] = ROW
    with pytest.raises(ProtocolAborted) as error:
        days.make(lists, 2).run()
    assert error.value.code == "guard-rows"
