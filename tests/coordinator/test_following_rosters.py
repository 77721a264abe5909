"""An analyst's home follows the chain of rosters from the root keys it pinned, and goes by no stale one."""

from datetime import timedelta
from pathlib import Path

import pytest
from collaboration import POLICE, STREETS, SUITE, signer

from coordinator.client.home import AnalystHome, connect
from coordinator.client.sdk import Bureau
from coordinator.drafting import next_roots
from coordinator.registry import Registry
from coordinator.store.sql import SqlStore
from minshu.v1 import relay_pb2
from protocols.encoding import sha256_digest
from protocols.envelope import decode_envelope
from protocols.errors import MinshuError, Refused, SignatureInvalid, StateConflict

pytestmark = pytest.mark.alone  # a whole coordinator each time, 9 s together

JOB_TOML = Path(__file__).with_name("crosscheck.toml")
WATCH = signer("freshness").public_key


def code_of(call) -> str:
    with pytest.raises(MinshuError) as error:
        call()
    assert error.value.hint
    return error.value.code


@pytest.fixture
def beside(live):
    """A registry on the same home, as the operator's commands have it."""
    store = SqlStore(live.home.database)
    yield Registry(store, live.home.roots(), SUITE, live.world.now)
    store.close()


def versions(live) -> list[str]:
    return sorted(path.name for path in live.analyst.rosters.iterdir())


def hand_over(live, name: str):
    """Have the root keys hand over to three others, whose holders sign from then on."""
    holders = tuple(signer(f"{name} {n}") for n in range(3))
    live.world.roots_signers = (*live.world.roots_signers[:2], *holders[:2])
    live.publish(signatures=4, next_roots=next_roots([one.public_key for one in holders], 2))
    live.world.roots_signers = holders


def test_a_home_that_was_away_follows_two_changes_of_root_keys(live, beside):
    with Bureau.connect(live.analyst.path) as bureau:
        bureau.roster()
        hand_over(live, "second")
        live.publish()
        hand_over(live, "third")
        newest = live.publish(freshness=[WATCH])
        assert bureau.roster() == newest
    assert versions(live) == [f"{n:08d}.dsse" for n in range(1, 6)]
    # What was kept is enough to go on from, and nothing but the pinned keys vouches for it.
    with Bureau.connect(live.analyst.path) as bureau:
        assert bureau.roster() == newest
    assert live.analyst.chain().roots.keys == tuple(
        sorted(one.public_key for one in live.world.roots_signers)
    )


def test_a_home_that_pinned_the_first_root_keys_and_never_asked_follows_too(live):
    hand_over(live, "second")
    newest = live.publish()
    with Bureau.connect(live.analyst.path) as bureau:
        assert bureau.roster() == newest
    assert versions(live) == ["00000002.dsse", "00000003.dsse"]


def test_a_long_absence_is_made_up_in_portions(live, monkeypatch):
    with Bureau.connect(live.analyst.path) as bureau:
        bureau.roster()
        for _ in range(4):
            newest = live.publish()
        monkeypatch.setattr("coordinator.registry.MAX_BETWEEN_BYTES", 0)
        assert bureau.roster() == newest
    assert len(versions(live)) == 5


def test_a_coordinator_that_leaves_out_a_roster_is_refused(live):
    with Bureau.connect(live.analyst.path) as bureau:
        seen = bureau.roster()
        live.publish()
        live.publish()
        live.coordinator.registry.between = lambda _version: []
        assert code_of(bureau.roster) == "roster-fast-forward"
        assert live.analyst.chain().roster == seen


def test_a_stale_roster_is_refused_until_somebody_confirms_it(live, beside):
    eight_days_ago = live.world.now() - timedelta(days=8)
    roster = live.publish(now=eight_days_ago, freshness=[WATCH])
    with Bureau.connect(live.analyst.path) as bureau:
        with pytest.raises(Refused) as stale:
            bureau.submit(JOB_TOML)
        assert (stale.value.code, "freshen" in stale.value.hint) == ("roster-stale", True)
        beside.publish_freshness(live.world.freshness(roster))
        assert bureau.roster() == roster
        assert versions(live) == ["00000002.dsse", "00000002.fresh"]
    # A coordinator that hides the statement again gains nothing: it was kept.
    live.coordinator.registry.refresh = lambda: None
    live.coordinator.registry._freshness = b""
    with Bureau.connect(live.analyst.path) as bureau:
        assert bureau.roster() == roster


def test_an_expired_roster_is_refused(live):
    with Bureau.connect(live.analyst.path) as bureau:
        bureau.roster()
        bureau._now = lambda: live.roster.expires
        assert code_of(bureau.roster) == "roster-expired"


def test_two_rosters_of_one_version_are_told_apart(live):
    with Bureau.connect(live.analyst.path) as bureau:
        seen = bureau.roster()
        other = live.world.roster(1, suite=SUITE)
        live.coordinator.registry.refresh = lambda: None
        live.coordinator.registry._envelope = live.world.signed(other)
        assert code_of(bureau.roster) == "roster-forked"
        assert live.analyst.chain().roster == seen


def test_a_roster_changed_in_the_home_is_found(live):
    with Bureau.connect(live.analyst.path) as bureau:
        bureau.roster()
    live.analyst.keep_roster(1, live.world.signed(live.world.roster(), 1))
    with Bureau.connect(live.analyst.path) as bureau, pytest.raises(StateConflict) as changed:
        bureau.roster()
    assert changed.value.code == "roster-changed"


def test_new_analysts_and_nodes_are_handed_the_root_keys_in_force(live):
    hand_over(live, "second")
    answer = live.loop.run(live.enrol(*enrolment(live)))
    assert sha256_digest(answer.roots) == live.world.roots.fingerprint


def test_a_home_takes_a_new_address_from_an_invitation_under_the_next_root_keys(live):
    with Bureau.connect(live.analyst.path) as bureau:
        bureau.roster()
        hand_over(live, "second")
        line, fingerprint = live.invite(), live.world.roots.fingerprint
        with pytest.raises(StateConflict) as unknown:
            connect(AnalystHome(live.analyst.path), line, fingerprint)
        assert unknown.value.code == "roots-pinned"
        bureau.roster()
    pinned = live.analyst.roots()
    connect(AnalystHome(live.analyst.path), line, fingerprint)
    assert live.analyst.roots() == pinned
    with Bureau.connect(live.analyst.path) as bureau:
        assert bureau.roster().version == 2


def test_a_statement_from_another_terminal_reaches_nodes_that_are_connected(live, beside):
    roster = live.publish(freshness=[WATCH])
    live.start(POLICE)
    said = live.world.freshness(roster)
    beside.publish_freshness(said)
    node = live.nodes[POLICE]
    live.until(lambda: node.got("freshness"))
    assert [update.freshness for update in node.got("freshness")] == [said]
    assert live.coordinator.registry.freshness_envelope == said
    live.loop.run(node.stop())
    live.start(POLICE)
    assert node.got("welcome")[0].freshness == said
    live.until(lambda: journaled(live, "roster.fresh"))


def test_a_node_announces_its_next_key_over_the_wire_and_the_next_draft_proposes_it(live):
    live.start(POLICE)
    node = live.nodes[POLICE]
    envelope = live.world.rotation(POLICE, "police, next")
    rotation = relay_pb2.KeyRotation(rotation=envelope)
    live.loop.run(node.say(rotation=rotation))
    live.until(lambda: node.got("filed"))
    assert node.got("filed")[0].sha256 == decode_envelope(envelope).payload_digest
    proposed = live.publish(rotations=live.coordinator.store.rotations())
    assert proposed.node(POLICE).identity_key == signer("police, next").public_key
    assert proposed.node(POLICE).journal_vkey.startswith(f"{POLICE}/journal/1+")
    live.until(lambda: journaled(live, "peer.receipt"))


def journaled(live, kind: str) -> bool:
    return any(entry.kind == kind for entry in live.coordinator._journal.entries())


def enrolment(live):
    secret = b"\x77" * 16
    live.coordinator.registry.new_token(POLICE, secret)
    return live.world.enrolment(POLICE, secret)


def test_a_release_opens_after_its_node_has_changed_its_key_but_not_after_it_has_left(live, beside):
    live.start()
    with Bureau.connect(live.analyst.path) as bureau:
        job = bureau.submit(JOB_TOML)
        assert job.wait(progress=False).succeeded
        beside.announce_rotation(POLICE, live.world.rotation(POLICE, "police, next"))
        changed = live.publish(rotations=live.coordinator.store.rotations())
        assert changed.node(POLICE).identity_key == signer("police, next").public_key
        assert job.release().to_arrow().to_pydict() == STREETS
        live.publish(rotations=live.coordinator.store.rotations(), without=[POLICE])
        with pytest.raises(SignatureInvalid):
            job.release()
