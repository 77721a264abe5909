"""Rosters as The Update Framework tests its metadata: by the name of the attack, then in any order at all."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from protocols.encoding import sha256_digest
from protocols.envelope import FRESHNESS, POLICY, ROSTER, Envelope, KeySigner, Signature, key_id, sign
from protocols.errors import DecodeError, MinshuError, Refused
from protocols.ids import NodeName, Organisation
from protocols.roots import Roots
from protocols.succession import (
    CLOCK_TOLERANCE,
    FRESH_FOR,
    IN_CHINESE,
    MAX_VERSION,
    Trusted,
    advance,
    fresh,
    fresh_until,
    freshen,
    in_force,
    restore,
    signers,
    signing_keys,
    walk,
)
from protocols.wire import Freshness, NextRoots, Roster, RosterNode, RosterOrganisation

NOW = datetime(2026, 12, 2, 8, tzinfo=UTC)
DAY = timedelta(days=1)


def signer(name: str) -> KeySigner:
    return KeySigner(Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest()))


OLD = [signer(f"root {n}") for n in range(3)]
NEW = [signer(f"next root {n}") for n in range(3)]
WATCH = signer("freshness")
PINNED = Roots.of("gz.example", 2, [one.public_key for one in OLD])
NEXT = NextRoots(2, Roots.of("gz.example", 2, [one.public_key for one in NEW]).keys)
FRESH_READER = Trusted(PINNED)


def roster(version: int = 1, before: Roster | None = None, **changes: Any) -> Roster:
    made = Roster(
        collaboration="gz.example",
        version=version,
        previous=before.digest if before else None,
        suite=1,
        issued=NOW - DAY,
        expires=NOW + 60 * DAY,
        freshness_keys=(WATCH.public_key,),
    )
    return replace(made, **changes)


def signed(document: Roster, by: Iterable[KeySigner] = OLD[:2], kind: str = ROSTER) -> bytes:
    return sign(kind, document.encode(), by).encode()


def statement(of: Roster, issued: datetime = NOW, by: KeySigner = WATCH, **changes: Any) -> bytes:
    said = Freshness(of.collaboration, of.version, of.digest, issued)
    return sign(FRESHNESS, replace(said, **changes).encode(), [by]).encode()


def refused(code: str, trusted: Trusted, envelope: bytes, now: datetime = NOW) -> None:
    """Check that a roster is refused with `code` and a way out."""
    with pytest.raises(MinshuError) as caught:
        advance(trusted, envelope, now)
    assert caught.value.code == code
    assert caught.value.hint


FIRST = roster()
SECOND = roster(2, FIRST)
AT_FIRST = advance(FRESH_READER, signed(FIRST), NOW)
AT_SECOND = advance(AT_FIRST, signed(SECOND), NOW)
HANDING = roster(2, FIRST, roots=NEXT)
AT_HANDING = advance(AT_FIRST, signed(HANDING, [*OLD[:2], *NEW[:2]]), NOW)


# -- rosters by the name of the attack ---------------------------------------------------------------------


def test_a_chain_is_followed_version_by_version() -> None:
    assert (AT_FIRST.roster, AT_FIRST.version, AT_SECOND.roster) == (FIRST, 1, SECOND)
    assert AT_SECOND.roots == PINNED
    assert advance(AT_SECOND, signed(SECOND, OLD), NOW) is AT_SECOND
    assert signers(AT_FIRST, signed(SECOND)) == tuple(sorted(key_id(one.public_key) for one in OLD[:2]))


def test_rollback() -> None:
    refused("roster-rollback", AT_SECOND, signed(FIRST))
    refused("roster-rollback", AT_SECOND, signed(roster(1, freshness_keys=())))


def test_fast_forward() -> None:
    third = roster(3, SECOND)
    refused("roster-fast-forward", AT_FIRST, signed(third))
    refused("roster-fast-forward", AT_FIRST, signed(roster(2**53 - 1, SECOND)))
    refused("roster-fast-forward", FRESH_READER, signed(roster(MAX_VERSION + 1, SECOND)))
    assert advance(AT_SECOND, signed(third), NOW).version == 3


def test_a_fresh_reader_takes_any_version_of_the_pinned_root_keys() -> None:
    assert advance(FRESH_READER, signed(roster(17, SECOND)), NOW).version == 17
    refused("too-few-signatures", FRESH_READER, signed(roster(17, SECOND), NEW))


def test_expired() -> None:
    old = roster(2, FIRST, issued=NOW - 30 * DAY, expires=NOW)
    after = advance(AT_FIRST, signed(old), NOW)
    for judge in (in_force, lambda found, now: fresh(found, None, now)):
        with pytest.raises(Refused) as caught:
            judge(after.roster, NOW)
        assert caught.value.code == "roster-expired"
        assert caught.value.hint
    # A reader that was off walks on through it.
    assert in_force(advance(after, signed(roster(3, old)), NOW).roster, NOW).version == 3


def test_a_roster_lives_at_most_ninety_days_and_not_backwards() -> None:
    at = roster().issued
    assert advance(FRESH_READER, signed(roster(expires=at + 90 * DAY)), NOW).version == 1
    refused("roster-life", FRESH_READER, signed(roster(expires=at + 90 * DAY + timedelta(seconds=1))))
    refused("roster-life", FRESH_READER, signed(roster(expires=at)))


def test_a_roster_of_the_future_is_refused() -> None:
    refused(
        "roster-not-valid", FRESH_READER, signed(roster(issued=NOW + CLOCK_TOLERANCE + timedelta(seconds=1)))
    )
    late = advance(FRESH_READER, signed(roster(issued=NOW + CLOCK_TOLERANCE)), NOW)
    with pytest.raises(Refused) as caught:
        in_force(late.roster, NOW - timedelta(seconds=1))
    assert caught.value.code == "roster-not-valid"


def test_below_threshold() -> None:
    refused("too-few-signatures", AT_FIRST, signed(SECOND, OLD[:1]))
    refused("too-few-signatures", AT_FIRST, signed(SECOND, []))
    refused("too-few-signatures", AT_FIRST, signed(SECOND, [OLD[0], NEW[0]]))


def test_duplicate_key() -> None:
    refused("too-few-signatures", AT_FIRST, signed(SECOND, [OLD[0]] * 5))


def test_wrong_payload_type() -> None:
    refused("wrong-payload-type", AT_FIRST, signed(SECOND, kind=POLICY))
    refused("wrong-payload-type", AT_SECOND, signed(SECOND, kind=POLICY))
    refused("wrong-payload-type", AT_FIRST, statement(FIRST))


def test_invalid_beside_valid_signature() -> None:
    whole = sign(ROSTER, SECOND.encode(), OLD[:2])
    torn = Signature(key_id(OLD[0].public_key), bytes(64))
    assert advance(AT_FIRST, replace(whole, signatures=(torn, *whole.signatures)).encode(), NOW) == AT_SECOND
    one = sign(ROSTER, SECOND.encode(), OLD[:1])
    refused("too-few-signatures", AT_FIRST, replace(one, signatures=(torn, *one.signatures)).encode())


def test_nothing_of_an_unsigned_roster_is_read() -> None:
    refused("too-few-signatures", AT_FIRST, Envelope(ROSTER, b"{" * 1000, ()).encode())
    with pytest.raises(DecodeError):
        advance(AT_FIRST, sign(ROSTER, b"{" * 1000, OLD).encode(), NOW)
    with pytest.raises(DecodeError):
        advance(AT_FIRST, b"", NOW)


def test_mix_of_collaborations() -> None:
    refused("wrong-collaboration", FRESH_READER, signed(roster(collaboration="sz.example")))
    refused("wrong-collaboration", AT_FIRST, signed(roster(2, FIRST, collaboration="sz.example")))


def test_equivocation() -> None:
    """Two texts of one version, both signed as they should be: who has the one refuses the other."""
    other = roster(2, FIRST, expires=NOW + 50 * DAY)
    refused("roster-forked", AT_SECOND, signed(other))
    refused("roster-forked", AT_SECOND, signed(roster(3, other)))
    refused("roster-forked", AT_FIRST, signed(roster(2)))
    refused("roster-forked", FRESH_READER, signed(roster(1, FIRST)))
    refused("roster-forked", FRESH_READER, signed(roster(5)))


# -- root keys ---------------------------------------------------------------------------------------------


def test_root_rotation() -> None:
    assert AT_HANDING.roots == PINNED.handed_over(NEXT)
    third = roster(3, HANDING)
    after = advance(AT_HANDING, signed(third, NEW[1:]), NOW)
    assert (after.roster, after.roots.keys) == (third, NEXT.keys)


def test_root_rotation_needs_both_thresholds() -> None:
    refused("too-few-signatures", AT_FIRST, signed(HANDING, OLD))
    refused("too-few-signatures", AT_FIRST, signed(HANDING, NEW))
    refused("too-few-signatures", AT_FIRST, signed(HANDING, [*OLD[:2], NEW[0]]))
    refused("too-few-signatures", AT_FIRST, signed(HANDING, [OLD[0], *NEW[:2]]))


def test_after_root_rotation_the_old_keys_are_refused() -> None:
    refused("too-few-signatures", AT_HANDING, signed(roster(3, HANDING), OLD))
    refused("too-few-signatures", AT_HANDING, signed(roster(2, FIRST, expires=NOW + DAY), OLD))
    assert advance(AT_HANDING, signed(HANDING, [*OLD, *NEW]), NOW) is AT_HANDING


def test_root_rotation_may_change_the_threshold_and_keep_a_key() -> None:
    three = NextRoots(3, tuple(sorted(one.public_key for one in (OLD[0], *NEW))))
    handing = roster(2, FIRST, roots=three)
    refused("too-few-signatures", AT_FIRST, signed(handing, [*OLD[:2], NEW[0]]))
    after = advance(AT_FIRST, signed(handing, [*OLD[:2], *NEW[:2]]), NOW)
    refused("too-few-signatures", after, signed(roster(3, handing), NEW[:2]))
    assert advance(after, signed(roster(3, handing), [OLD[0], *NEW[:2]]), NOW).version == 3


def test_nobody_hands_over_to_keys_that_nobody_holds() -> None:
    nobody = NextRoots(1, (bytes(32),))
    refused("too-few-signatures", AT_FIRST, signed(roster(2, FIRST, roots=nobody), OLD))


# -- walks -------------------------------------------------------------------------------------------------

CHAIN = [
    signed(FIRST),
    signed(HANDING, [*OLD[:2], *NEW[:2]]),
    signed(roster(3, HANDING), NEW[:2]),
    signed(roster(4, roster(3, HANDING)), NEW[:2]),
]


def test_a_reader_that_was_off_walks_the_rosters_in_between() -> None:
    steps = list(walk(AT_FIRST, CHAIN[1:], NOW))
    assert [trusted.version for _, trusted in steps] == [2, 3, 4]
    assert [envelope for envelope, _ in steps] == CHAIN[1:]
    assert list(walk(steps[-1][1], CHAIN[-1:], NOW)) == []


def test_a_reader_that_pinned_the_first_root_keys_starts_with_them() -> None:
    assert [trusted.version for _, trusted in walk(FRESH_READER, CHAIN, NOW)] == [1, 2, 3, 4]


def test_root_keys_that_have_handed_over_sign_no_shorter_way() -> None:
    shorter = [*CHAIN, signed(roster(5, roster(4, roster(3, HANDING))), OLD)]
    steps = walk(FRESH_READER, shorter, NOW)
    assert [next(steps)[1].version for _ in range(4)] == [1, 2, 3, 4]
    with pytest.raises(MinshuError, match="0 valid signatures"):
        next(steps)


def test_a_reader_that_pinned_the_next_root_keys_starts_where_they_took_over() -> None:
    late = Trusted(PINNED.handed_over(NEXT))
    assert [trusted.version for _, trusted in walk(late, CHAIN, NOW)] == [2, 3, 4]
    assert [trusted.version for _, trusted in walk(late, CHAIN[3:], NOW)] == [4]
    assert restore(late, CHAIN).version == 4


def test_a_reader_that_pinned_other_root_keys_goes_nowhere() -> None:
    stranger = Trusted(Roots.of("gz.example", 1, [signer("stranger").public_key]))
    with pytest.raises(MinshuError, match="0 valid signatures"):
        list(walk(stranger, CHAIN, NOW))
    assert list(walk(stranger, [], NOW)) == []


def test_what_was_kept_is_restored_whatever_the_clock_says_and_checked_again() -> None:
    newest = roster(4, roster(3, HANDING))
    kept = restore(FRESH_READER, CHAIN, statement(newest))
    assert (kept.version, kept.roots.keys) == (4, NEXT.keys)
    assert kept.freshness == Freshness("gz.example", 4, newest.digest, NOW)
    for damaged in ([*CHAIN[:3], signed(newest, OLD)], [CHAIN[0], *CHAIN[2:]], CHAIN[2:], [b"x"]):
        with pytest.raises(MinshuError):
            restore(FRESH_READER, damaged)


# -- freshness ---------------------------------------------------------------------------------------------


def test_freeze() -> None:
    """A coordinator that withholds the newest roster and every statement buys seven days, no more."""
    last = FIRST.issued + FRESH_FOR - timedelta(seconds=1)
    assert fresh(AT_FIRST.roster, None, last) == FIRST
    with pytest.raises(Refused) as caught:
        fresh(AT_FIRST.roster, None, FIRST.issued + FRESH_FOR)
    assert caught.value.code == "roster-stale"
    assert "freshen" in caught.value.hint


def test_a_statement_keeps_a_roster_fresh_but_not_beyond_its_expiry() -> None:
    said = NOW + 5 * DAY
    after = freshen(AT_FIRST, statement(FIRST, said), said)
    assert fresh_until(FIRST, after.freshness) == said + FRESH_FOR
    assert fresh(after.roster, after.freshness, said + FRESH_FOR - timedelta(seconds=1)) == FIRST
    for at, code in ((said + FRESH_FOR, "roster-stale"), (FIRST.expires, "roster-expired")):
        with pytest.raises(Refused) as caught:
            fresh(after.roster, after.freshness, at)
        assert caught.value.code == code


def test_a_new_roster_is_fresh_by_itself_and_old_statements_are_not_about_it() -> None:
    after = advance(freshen(AT_FIRST, statement(FIRST), NOW), signed(SECOND), NOW)
    assert after.freshness is None
    assert fresh_until(SECOND, None) == SECOND.issued + FRESH_FOR


def test_the_newest_statement_counts_in_any_order() -> None:
    newer = freshen(AT_FIRST, statement(FIRST, NOW), NOW)
    assert freshen(newer, statement(FIRST, NOW - timedelta(hours=1)), NOW) is newer
    assert freshen(newer, statement(FIRST, NOW), NOW) is newer


STRANGER = signer("stranger")


@pytest.mark.parametrize(
    ("trusted", "envelope", "code"),
    [
        (AT_FIRST, statement(FIRST, by=STRANGER), "too-few-signatures"),
        (AT_FIRST, statement(FIRST, by=OLD[0]), "too-few-signatures"),
        (AT_FIRST, sign(ROSTER, FIRST.encode(), [WATCH]).encode(), "wrong-payload-type"),
        (AT_FIRST, statement(FIRST, collaboration="sz.example"), "wrong-collaboration"),
        (AT_FIRST, statement(FIRST, version=2), "freshness-mismatch"),
        (AT_SECOND, statement(FIRST), "freshness-mismatch"),
        (AT_FIRST, statement(FIRST, sha256=SECOND.digest), "roster-forked"),
        (AT_FIRST, statement(FIRST, NOW + CLOCK_TOLERANCE + timedelta(seconds=1)), "freshness-not-valid"),
        (FRESH_READER, statement(FIRST), "no-roster"),
        (
            advance(FRESH_READER, signed(roster(freshness_keys=())), NOW),
            statement(roster(freshness_keys=())),
            "too-few-signatures",
        ),
    ],
)
def test_a_statement_that_does_not_hold_is_refused(trusted: Trusted, envelope: bytes, code: str) -> None:
    with pytest.raises(MinshuError) as caught:
        freshen(trusted, envelope, NOW)
    assert caught.value.code == code
    assert caught.value.hint


def test_every_refusal_at_the_gate_has_a_sentence_in_chinese() -> None:
    stale = FIRST.issued + FRESH_FOR
    for found, at in ((None, NOW), (FIRST, NOW - 2 * DAY), (FIRST, FIRST.expires), (FIRST, stale)):
        with pytest.raises(Refused) as caught:
            fresh(found, None, at)
        assert all(IN_CHINESE[caught.value.code])


def test_a_rosters_signing_keys_are_all_of_them() -> None:
    node = RosterNode(NodeName("a.example/n"), b"n" * 32, sha256_digest(b""), "", b"")
    made = roster(nodes=(node,), organisations=(RosterOrganisation(Organisation("a.example"), "A"),))
    assert signing_keys(made) == {b"n" * 32, WATCH.public_key}


# -- any documents in any order ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Presented:
    """A document as its maker knows it; what the reader sees is `envelope`."""

    document: Roster
    by: tuple[KeySigner, ...]
    kind: str

    @property
    def envelope(self) -> bytes:
        return sign(self.kind, self.document.encode(), self.by).encode()


class Model:
    """A reader as simple as can be: it knows who signed what, and keeps every step it took."""

    def __init__(self) -> None:
        self.steps: list[Roster] = []
        self.keys, self.threshold = {one.public_key for one in OLD}, 2

    def takes(self, shown: Presented) -> bool:
        document, last = shown.document, self.steps[-1] if self.steps else None
        by = {one.public_key for one in shown.by}
        if shown.kind != ROSTER or len(by & self.keys) < self.threshold:
            return False
        if document.collaboration != "gz.example" or document.issued > NOW + CLOCK_TOLERANCE:
            return False
        if last is None:
            if (document.version == 1) != (document.previous is None):
                return False
        elif (document.version, document.previous) != (last.version + 1, last.digest):
            return False
        if document.roots is not None:
            return len(by & set(document.roots.keys)) >= document.roots.threshold
        return True

    def take(self, document: Roster) -> None:
        self.steps.append(document)
        if document.roots is not None:
            self.keys, self.threshold = set(document.roots.keys), document.roots.threshold


BACK = NextRoots(1, (OLD[0].public_key,))
SOME_SIGNERS = st.lists(st.sampled_from([*OLD, *NEW, WATCH]), max_size=7).map(tuple)
EVERYBODY = (*OLD, *NEW)


class Reader(RuleBasedStateMachine):
    """Whatever is presented, in whatever order: never lower, never off the chain, never by other keys."""

    @initialize()
    def begin(self) -> None:
        self.trusted, self.model = FRESH_READER, Model()
        self.seen: list[Presented] = []
        self.highest = 0

    @rule(roots=st.sampled_from([None, None, NEXT, BACK]), suite=st.integers(1, 4))
    def present_the_next(self, *, roots: NextRoots | None, suite: int) -> None:
        self.make(EVERYBODY, ROSTER, roots=roots, suite=suite)

    @rule(
        by=st.one_of(st.sampled_from([tuple(OLD), tuple(NEW), tuple(OLD[:2])]), SOME_SIGNERS),
        roots=st.sampled_from([None, NEXT, BACK]),
    )
    def present_the_next_signed_by(self, *, by: tuple[KeySigner, ...], roots: NextRoots | None) -> None:
        self.make(by, ROSTER, roots=roots)

    @rule(
        wrong=st.sampled_from(
            [
                {"version": 1},
                {"version": 2},
                {"version": 3},
                {"version": MAX_VERSION},
                {"version": 2**50},
                {"previous": None},
                {"previous": FIRST.digest},
                {"collaboration": "sz.example"},
                {"issued": NOW + DAY},
                {"issued": NOW - 100 * DAY, "expires": NOW - 50 * DAY},
            ]
        )
    )
    def present_the_next_but_for(self, wrong: dict[str, Any]) -> None:
        self.make(EVERYBODY, ROSTER, **wrong)

    @rule()
    def present_the_next_under_another_type(self) -> None:
        self.make(EVERYBODY, POLICY)

    @rule()
    def present_the_one_at_hand_under_another_type(self) -> None:
        if self.trusted.roster is not None:
            self.show(Presented(self.trusted.roster, EVERYBODY, POLICY))

    def make(self, by: tuple[KeySigner, ...], kind: str, **changes: Any) -> None:
        document = replace(roster(self.trusted.version + 1, self.trusted.roster), **changes)
        self.seen.append(Presented(document, by, kind))
        self.show(self.seen[-1])

    @rule(which=st.integers(0, 200))
    def present_again(self, which: int) -> None:
        if self.seen:
            self.show(self.seen[which % len(self.seen)])

    @rule(issued=st.integers(-3, 0), by=st.sampled_from([WATCH, OLD[0]]), own=st.booleans())
    def confirm(self, issued: int, by: KeySigner, own: bool) -> None:
        if self.trusted.roster is None:
            return
        before = self.trusted.freshness
        about = self.trusted.roster if own else roster(9, SECOND)
        try:
            self.trusted = freshen(self.trusted, statement(about, NOW + issued * DAY, by), NOW)
        except MinshuError:
            assert by is not WATCH or not own
        after = self.trusted.freshness
        assert before is None or (after is not None and after.issued >= before.issued)

    def show(self, shown: Presented) -> None:
        same = bool(self.model.steps) and shown.kind == ROSTER and shown.document == self.model.steps[-1]
        expected = same or self.model.takes(shown)
        before = self.trusted
        try:
            self.trusted = advance(before, shown.envelope, NOW)
        except MinshuError:
            taken = False
        else:
            taken = True
        assert taken == expected
        if self.trusted is not before:
            self.model.take(shown.document)

    @invariant()
    def never_lower_never_off_the_chain(self) -> None:
        assert self.trusted.version >= self.highest
        self.highest = self.trusted.version
        steps = self.model.steps
        assert self.trusted.roster == (steps[-1] if steps else None)
        assert set(self.trusted.roots.keys) == self.model.keys
        for one, following in pairwise(steps):
            assert (following.version, following.previous) == (one.version + 1, one.digest)


Reader.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
test_no_sequence_of_documents_lowers_the_version_or_leaves_the_chain = Reader.TestCase
