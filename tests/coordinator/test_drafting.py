"""The next roster on paper: which keys it proposes, and what it tells the people who sign it."""

from dataclasses import replace
from datetime import timedelta

import pytest
from collaboration import (
    HEALTH,
    NOW,
    POLICE,
    SUITE,
    Collaboration,
    recipient_public,
    signer,
    spki,
    vkey,
    witness_vkeys,
)

from audit.note import ED25519, VerifierKey
from coordinator.drafting import (
    changes,
    confirm,
    decode_published,
    draft,
    hand_over,
    left_out,
    next_roots,
    node_lines,
    read_roster,
    sign_roster,
)
from coordinator.store import Enrolment, StoredRotation
from policies.keyfile import fingerprint
from protocols.encoding import sha256_digest
from protocols.envelope import FRESHNESS, KeySigner, sign, verify
from protocols.errors import DecodeError, InputError, MinshuError
from protocols.ids import NodeName
from protocols.wire import Freshness, Roster, RosterCoordinator, organisation_of


def enrolment(node: NodeName) -> Enrolment:
    return Enrolment(
        node,
        signer(node).public_key,
        spki(node),
        vkey(node),
        recipient_public(node),
        SUITE,
        sha256_digest(b"leaf"),
        NOW,
        witness_vkeys(node),
    )


def rotation(node: NodeName, before: str, after: str, days: int = 0) -> StoredRotation:
    keys = signer(before).public_key, signer(after).public_key
    return StoredRotation(node, *keys, NOW + timedelta(days=days), b"envelope")


def drafted(current: Roster | None = None, **changes: object) -> Roster:
    given: dict[str, object] = {
        "collaboration": "gz.example",
        "suite": SUITE,
        "enrolments": [enrolment(POLICE), enrolment(HEALTH)],
        "cards": [],
        "titles": {},
        "without": [],
        "days": 30,
        "now": NOW,
    }
    return draft(current, **given | changes)


def identity(roster: Roster, node: NodeName) -> bytes:
    found = roster.node(node)
    assert found is not None
    return found.identity_key


# -- which keys are proposed -------------------------------------------------------------------------


def test_an_announced_key_is_proposed_with_its_journal_line():
    roster = drafted(rotations=[rotation(POLICE, POLICE, "next")])
    node = roster.node(POLICE)
    assert node.identity_key == signer("next").public_key
    assert node.journal_vkey == str(VerifierKey(f"{POLICE}/journal/1", ED25519, node.identity_key))
    assert identity(roster, HEALTH) == signer(HEALTH).public_key


def test_a_node_that_changes_its_identity_keeps_witness_keys_and_log(world: Collaboration):
    third = str(VerifierKey(f"{POLICE}/journal/3", ED25519, signer(POLICE).public_key))
    anew = replace(enrolment(POLICE), journal_vkey=third)
    node = drafted(enrolments=[anew], rotations=[rotation(POLICE, POLICE, "next")]).node(POLICE)
    assert node.witness_vkeys == witness_vkeys(POLICE)
    assert node.journal_vkey == str(VerifierKey(f"{POLICE}/journal/3", ED25519, signer("next").public_key))


def test_the_next_generation_of_a_log_is_proposed_once_its_node_enrols_again():
    first = drafted()
    second = str(VerifierKey(f"{POLICE}/journal/2", ED25519, signer(POLICE).public_key))
    anew = replace(enrolment(POLICE), journal_vkey=second, enrolled=NOW + timedelta(days=1))
    after = drafted(first, enrolments=[anew])
    assert after.node(POLICE).journal_vkey == second
    told = changes(first, after)
    assert told[0] == "node police.gz.example/node-a has another journal"
    assert f"{POLICE}/journal/2+" in told[2]
    assert len(told) == 3
    assert any(line.startswith(f"journal   {POLICE}/journal/2+") for line in node_lines(after.node(POLICE)))


def test_a_change_stays_when_the_next_change_and_the_next_roster_come():
    twice = [rotation(POLICE, POLICE, "second"), rotation(POLICE, "second", "third", 1)]
    first = drafted(rotations=twice[:1])
    second = drafted(first, rotations=twice)
    assert identity(second, POLICE) == signer("third").public_key
    assert identity(drafted(second, rotations=twice), POLICE) == signer("third").public_key


def test_a_node_that_enrolled_anew_begins_with_the_key_it_enrolled_with():
    anew = replace(enrolment(POLICE), identity_key=signer("anew").public_key)
    roster = drafted(enrolments=[anew], rotations=[rotation(POLICE, POLICE, "next")])
    assert identity(roster, POLICE) == signer("anew").public_key


def test_a_node_keeps_the_key_that_the_roster_lists_not_the_one_it_gave_up():
    first = drafted(rotations=[rotation(POLICE, POLICE, "second")])
    both = [rotation(POLICE, POLICE, "second"), rotation(POLICE, "second", "thief", 1)]
    second = drafted(first, rotations=both, keep_key=[POLICE])
    assert identity(second, POLICE) == signer("second").public_key
    assert changes(first, second) == changes(first, first)


def test_a_declined_announcement_stays_declined_until_a_newer_one():
    first, announced = drafted(), rotation(POLICE, POLICE, "thief", 1)
    second = drafted(first, rotations=[announced], keep_key=[POLICE], now=NOW + timedelta(days=2))
    third = drafted(second, rotations=[announced], now=NOW + timedelta(days=3))
    assert identity(third, POLICE) == signer(POLICE).public_key
    (told,) = left_out(second, third, [], [announced])
    assert "declined" in told
    assert fingerprint(signer("thief").public_key) in told
    newer = rotation(POLICE, POLICE, "next", 4)
    fourth = drafted(third, rotations=[announced, newer], now=NOW + timedelta(days=5))
    assert identity(fourth, POLICE) == signer("next").public_key


def test_several_announcements_are_told_and_the_refused_one_is_not_proposed():
    current = drafted()
    both = [
        rotation(POLICE, POLICE, "next", 1),
        replace(rotation(POLICE, POLICE, "other", 2), refused=True),
    ]
    after = drafted(current, rotations=both)
    assert identity(after, POLICE) == signer("next").public_key
    told = left_out(current, after, [], both)
    assert "announced 2 different keys" in told[0]
    assert told[1:3] == [
        f"  {fingerprint(signer('next').public_key)}  proposed",
        f"  {fingerprint(signer('other').public_key)}",
    ]
    assert f"--keep-key {POLICE}" in told[3]
    kept = drafted(current, rotations=both, keep_key=[POLICE])
    assert identity(kept, POLICE) == signer(POLICE).public_key


def test_a_node_left_out_stays_out_until_it_is_named_or_enrols_anew():
    first = drafted()
    second = drafted(first, without=[POLICE])
    third = drafted(second)
    assert third.node(POLICE) is None
    (told,) = left_out(second, third, [enrolment(POLICE), enrolment(HEALTH)])
    assert f"--with {POLICE}" in told
    assert drafted(second, readmit=[POLICE]).node(POLICE) == first.node(POLICE)
    anew = replace(
        enrolment(POLICE), identity_key=signer("anew").public_key, enrolled=NOW + timedelta(seconds=1)
    )
    assert identity(drafted(second, enrolments=[anew]), POLICE) == signer("anew").public_key
    assert drafted(second, enrolments=[anew]).node(HEALTH) == first.node(HEALTH)
    for unknown in ("readmit", "keep_key"):
        with pytest.raises(InputError) as nobody:
            drafted(second, **{unknown: ["nobody/node"]})
        assert nobody.value.code == "unknown-name"


def test_a_node_is_not_readmitted_with_a_key_that_it_gave_up():
    announced = [rotation(POLICE, POLICE, "second")]
    without = drafted(drafted(rotations=announced), rotations=announced, without=[POLICE])
    with pytest.raises(InputError) as given_up:
        drafted(without, rotations=announced, readmit=[POLICE])
    assert given_up.value.code == "key-given-up"


def test_an_announcement_the_signers_do_not_trust_is_left_out():
    roster = drafted(rotations=[rotation(POLICE, POLICE, "next")], keep_key=[POLICE])
    assert identity(roster, POLICE) == signer(POLICE).public_key
    with pytest.raises(InputError) as unknown:
        drafted(keep_key=["nobody"])
    assert unknown.value.code == "unknown-name"


def test_announcements_in_a_circle_end():
    circle = [rotation(POLICE, POLICE, "next"), rotation(POLICE, "next", POLICE, 1)]
    assert identity(drafted(rotations=circle), POLICE) == signer("next").public_key


def test_a_key_announced_by_two_nodes_is_no_roster():
    both = [rotation(POLICE, POLICE, "next"), rotation(HEALTH, HEALTH, "next")]
    with pytest.raises(DecodeError, match="twice"):
        drafted(rotations=both)


def test_freshness_keys_stay_until_others_are_named():
    first = drafted(freshness=[signer("one").public_key])
    assert drafted(first).freshness_keys == first.freshness_keys == (signer("one").public_key,)
    assert drafted(first, freshness=[signer("two").public_key]).freshness_keys == (signer("two").public_key,)


def test_root_keys_are_handed_over_once():
    roots = next_roots([signer(name).public_key for name in "abc"], 2)
    first = drafted(next_roots=roots)
    assert first.roots == roots
    assert drafted(first).roots is None
    assert next_roots([], 2) is None
    for keys, threshold in (([b"k" * 32] * 2, 1), ([b"k" * 32], 2), ([b"k" * 32], 0)):
        with pytest.raises(InputError):
            next_roots(keys, threshold)


# -- what it tells its signers -----------------------------------------------------------------------


def test_changes_are_told_in_words(world: Collaboration):
    before = world.roster()
    after = replace(
        before,
        nodes=tuple(
            replace(node, identity_key=signer("next").public_key) if node.name == POLICE else node
            for node in before.nodes
            if node.name != HEALTH
        ),
        organisations=tuple(o for o in before.organisations if o.name != organisation_of(HEALTH)),
        freshness_keys=(),
        suite=1,
    )
    watch = fingerprint(signer("freshness").public_key)
    assert changes(before, after) == [
        "organisation health.gz.example leaves: nothing it signs counts any more",
        "node health.gz.example/node-a leaves: nothing it signs counts any more",
        "node police.gz.example/node-a has another identity key",
        f"  before  {fingerprint(signer(POLICE).public_key)}",
        f"  now     {fingerprint(signer('next').public_key)}",
        f"freshness key {watch} leaves: nothing it signs counts any more",
        "sealing suite 2 becomes 1",
    ]
    assert changes(before, before) == [
        "nobody joins, nobody leaves, no key changes: the same for another while"
    ]
    assert changes(None, before) == ["the first roster: everything in it is new"]


@pytest.mark.parametrize("place", [0, 1])
def test_a_witness_key_swapped_in_the_draft_shows_to_who_signs_it(world: Collaboration, place: int):
    before = world.roster()
    stolen = list(witness_vkeys(POLICE))
    stolen[place] = witness_vkeys(POLICE, "thief")[place]
    after = replace(
        before,
        nodes=tuple(
            replace(node, witness_vkeys=tuple(stolen)) if node.name == POLICE else node
            for node in before.nodes
        ),
    )
    told = changes(before, after)
    key = VerifierKey.parse(stolen[place])
    assert told[0] == f"node {POLICE} has another {'second ' * place}witness key"
    assert told[2] == f"  now     {key.label}  {fingerprint(key.public_key)}"
    lines = node_lines(after.node(POLICE))
    assert lines[0] == f"node      {POLICE}  {fingerprint(signer(POLICE).public_key)}"
    assert lines[1 + place] == f"witness   {key.label}  {fingerprint(key.public_key)}"
    assert set(lines) - set(node_lines(before.node(POLICE))) == {lines[1 + place]}


def test_a_log_that_is_not_the_nodes_own_shows_even_in_the_first_roster(world: Collaboration):
    node = world.roster().node(POLICE)
    swapped = str(VerifierKey(f"{POLICE}/journal/1", ED25519, signer("thief").public_key))
    lines = node_lines(replace(node, journal_vkey=swapped))
    assert f"journal   {POLICE}/journal/1+" in lines[1]
    assert fingerprint(signer("thief").public_key) in lines[1]


def test_the_coordinators_journal_is_proposed_and_another_one_shows():
    name = NodeName("bureau.gz.example/coordinator")
    keys = [signer(f"bureau {n}").public_key for n in (1, 2)]
    one, two = (RosterCoordinator(name, str(VerifierKey(f"{name}/journal/1", ED25519, key))) for key in keys)
    current = drafted(coordinator=one)
    assert drafted(current, coordinator=one).coordinator == one
    after = drafted(current, coordinator=two)
    told = changes(current, after)
    assert told[0] == f"coordinator {name} has another journal"
    assert told[1].endswith(fingerprint(keys[0]))
    assert told[2].endswith(fingerprint(keys[1]))
    joins = changes(drafted(), drafted(drafted(), coordinator=one))
    assert joins[0] == f"coordinator {name} joins"
    assert fingerprint(keys[0]) in joins[1]


def test_who_joins_is_told_with_every_key(world: Collaboration):
    after = world.roster()
    before = replace(after, nodes=after.nodes[1:], analysts=after.analysts[1:])
    told = changes(before, after)
    node, analyst = after.nodes[0], after.analysts[0]
    assert f"node {node.name} joins" in told
    assert f"  identity key  {fingerprint(node.identity_key)}" in told
    assert f"  TLS key  {node.tls_spki_sha256}" in told
    assert f"analyst {analyst.name} joins" in told
    assert f"  signing key  {fingerprint(analyst.key)}" in told


def test_a_hand_over_names_every_root_key_and_how_many_sign():
    keys = [signer(name).public_key for name in "abc"]
    told = hand_over(drafted(next_roots=next_roots(keys, 2)))
    assert told[0] == "the root keys change: from the next roster on, 2 of these 3 sign"
    assert sorted(told[1:]) == sorted(f"  root key  {fingerprint(key)}" for key in keys)
    assert hand_over(drafted()) == []


# -- what is signed ----------------------------------------------------------------------------------


def test_a_confirmation_is_of_a_key_that_the_roster_names(world: Collaboration):
    roster = world.roster()
    watch: KeySigner = signer("freshness")
    envelope = confirm(roster, watch, NOW)
    assert verify(envelope, FRESHNESS, {"": watch.public_key})
    assert Freshness.decode(envelope.payload) == Freshness("gz.example", 1, roster.digest, NOW)
    with pytest.raises(InputError) as other:
        confirm(roster, signer("li"), NOW)
    assert other.value.code == "not-a-freshness-key"


def test_draft_signed_draft_and_statement_are_told_apart(world: Collaboration):
    roster = world.roster()
    one, _ = sign_roster(roster.encode() + b"\n", world.roots_signers[0])
    both, read = sign_roster(one.encode(), world.roots_signers[1])
    assert (read, len(both.signatures)) == (roster, 2)
    for data in (roster.encode(), one.encode(), both.encode() + b"\n"):
        assert read_roster(data) == roster
    statement = confirm(roster, signer("freshness"), NOW)
    for envelope in (both, statement):
        assert decode_published(envelope.encode() + b"\n") == envelope
    job = sign("other", b"{}", world.roots_signers)
    for wrong in (roster.encode(), job.encode(), b"", b"{"):
        with pytest.raises(DecodeError) as unfit:
            decode_published(wrong)
        assert unfit.value.code == "bad-roster"
    for wrong in (statement.encode(), job.encode(), b"{}", b"{"):
        with pytest.raises(MinshuError):
            read_roster(wrong)
