"""P3 at a node: no roster and no policy older than the newest that was ever activated here."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from simulator import START, World, new_signer

from node.activation import InForce, activate_policy, activate_roster, pin_signers
from node.home import Enrolled
from node.state import State
from protocols.envelope import POLICY, ROSTER, decode_envelope, key_id, sign
from protocols.errors import MinshuError
from protocols.ids import Digest


class Desk:
    def __init__(self, world: World) -> None:
        self.world, self.home = world, world.homes["health"]
        self.state: State = world.open("health")
        self.force = self.loaded()
        enrolled = self.home.enrolled()
        assert enrolled is not None
        self.enrolled: Enrolled = enrolled

    def loaded(self) -> InForce:
        return InForce.load(self.state, self.home.name, self.home.signer.public_key)

    def roster(self, envelope: bytes) -> bool:
        return activate_roster(self.state, self.force, envelope, self.enrolled, self.world.clock)

    def policy(self, envelope: bytes) -> None:
        activate_policy(self.state, self.force, envelope, self.world.clock)

    @property
    def digest(self) -> Digest:
        stored = self.state.policy()
        assert stored is not None
        return stored.digest

    def last(self) -> tuple[str, dict[str, Any]]:
        entry = list(self.state.journal.entries())[-1]
        return entry.kind, dict(entry.body)


@pytest.fixture
def desk(world: World) -> Iterator[Desk]:
    made = Desk(world)
    yield made
    made.state.close()


def fails(code: str, act: Callable[[], Any]) -> None:
    with pytest.raises(MinshuError) as caught:
        act()
    assert caught.value.code == code


# -- rosters -----------------------------------------------------------------------------------------------


def test_a_roster_of_two_root_keys_comes_into_force_and_is_journaled(desk: Desk) -> None:
    assert desk.roster(desk.world.roster_envelope)
    assert desk.force.roster == desk.world.roster
    kind, body = desk.last()
    assert (kind, body["version"], body["sha256"]) == ("roster.activate", 1, desk.world.roster.digest)
    assert desk.loaded().roster == desk.world.roster


def test_the_same_roster_again_changes_nothing(desk: Desk) -> None:
    desk.roster(desk.world.roster_envelope)
    size = desk.state.journal.size
    assert not desk.roster(desk.world.roster_envelope)
    assert desk.state.journal.size == size


def test_one_root_key_is_not_enough(desk: Desk) -> None:
    fails("too-few-signatures", lambda: desk.roster(desk.world.sign_roster(desk.world.make_roster(), 1)))


def test_one_root_key_signing_twice_is_one_key(desk: Desk) -> None:
    root = desk.world.roots[0]
    envelope = sign(ROSTER, desk.world.make_roster().encode(), [root, root]).encode()
    fails("too-few-signatures", lambda: desk.roster(envelope))


def test_keys_that_were_not_pinned_sign_nothing(desk: Desk) -> None:
    envelope = sign(ROSTER, desk.world.make_roster().encode(), [new_signer(), new_signer()]).encode()
    fails("too-few-signatures", lambda: desk.roster(envelope))


def test_a_roster_under_another_type_is_refused(desk: Desk) -> None:
    envelope = sign(POLICY, desk.world.make_roster().encode(), desk.world.roots).encode()
    fails("wrong-payload-type", lambda: desk.roster(envelope))


def test_no_roster_older_than_the_newest_activated_p3(desk: Desk) -> None:
    first = desk.world.make_roster()
    second = desk.world.make_roster(2, first.digest)
    desk.roster(desk.world.sign_roster(first))
    desk.roster(desk.world.sign_roster(second))
    fails("roster-rollback", lambda: desk.roster(desk.world.sign_roster(first)))
    assert desk.force.roster == second
    assert desk.loaded().roster == second


def test_another_text_of_the_same_roster_version_is_refused_p3(desk: Desk) -> None:
    first = desk.world.make_roster()
    desk.roster(desk.world.sign_roster(first))
    other = replace(first, expires=first.expires - timedelta(days=1))
    fails("roster-forked", lambda: desk.roster(desk.world.sign_roster(other)))


def test_the_next_roster_names_the_one_before(desk: Desk) -> None:
    desk.roster(desk.world.roster_envelope)
    stranger = desk.world.make_roster(2, Digest("sha256:" + "0" * 64))
    fails("roster-forked", lambda: desk.roster(desk.world.sign_roster(stranger)))


def test_a_node_that_was_off_takes_the_versions_it_missed_one_by_one(desk: Desk) -> None:
    desk.roster(desk.world.roster_envelope)
    fourth = desk.world.make_roster(4, Digest("sha256:" + "3" * 64))
    fails("roster-fast-forward", lambda: desk.roster(desk.world.sign_roster(fourth)))
    second = desk.world.make_roster(2, desk.world.roster.digest)
    third = desk.world.make_roster(3, second.digest)
    assert desk.roster(desk.world.sign_roster(second))
    assert desk.roster(desk.world.sign_roster(third))


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("wrong-collaboration", {"collaboration": "sz.example"}),
        ("roster-life", {"expires": START + timedelta(days=200)}),
        ("roster-not-valid", {"issued": START + timedelta(hours=1)}),
    ],
)
def test_a_roster_that_does_not_hold_now_is_refused(desk: Desk, code: str, changes: dict[str, Any]) -> None:
    fails(code, lambda: desk.roster(desk.world.sign_roster(desk.world.make_roster(**changes))))


def test_an_expired_roster_is_walked_through_and_never_gone_by(desk: Desk) -> None:
    old = desk.world.make_roster(issued=START - timedelta(days=50), expires=START)
    assert desk.roster(desk.world.sign_roster(old))
    assert desk.last()[1]["code"] == "roster-expired"
    fails("roster-expired", lambda: desk.force.fresh(START))
    assert desk.roster(desk.world.sign_roster(desk.world.make_roster(2, old.digest)))
    assert desk.force.fresh(START).version == 2


# -- policies ----------------------------------------------------------------------------------------------


def refused(desk: Desk, code: str, envelope: bytes) -> None:
    """Check that a policy is refused, that the journal says so, and that the old one stays in force."""
    before = desk.force.policy
    fails(code, lambda: desk.policy(envelope))
    kind, body = desk.last()
    assert (kind, body["code"]) == ("policy.refused", code)
    assert desk.force.policy == before == desk.loaded().policy


def test_a_policy_of_two_people_comes_into_force_and_is_journaled(desk: Desk) -> None:
    envelope = desk.world.policy("health", version=2, previous=desk.digest, max_rows=9)
    desk.policy(envelope)
    kind, body = desk.last()
    assert (kind, body["version"]) == ("policy.activate", 2)
    assert len(body["signers"]) == 2
    assert desk.loaded().policy == desk.force.policy
    text = desk.state.journal.get_object(body["sha256"])
    assert text == decode_envelope(envelope).payload


def test_one_signature_does_not_activate_a_policy(desk: Desk) -> None:
    whole = decode_envelope(desk.world.policy("health", version=2, previous=desk.digest))
    one = replace(whole, signatures=whole.signatures[:1]).encode()
    refused(desk, "too-few-signatures", one)


def test_one_person_signing_twice_does_not_activate_a_policy(desk: Desk) -> None:
    whole = decode_envelope(desk.world.policy("health", version=2, previous=desk.digest))
    dpo = desk.world.staff["health"].dpo
    refused(desk, "too-few-signatures", sign(POLICY, whole.payload, [dpo, dpo]).encode())


def test_no_policy_older_than_the_newest_activated_p3(desk: Desk) -> None:
    first = desk.world.policies["health"]
    desk.policy(desk.world.policy("health", version=2, previous=desk.digest))
    refused(desk, "policy-rollback", first)


def test_another_text_of_the_same_policy_version_is_refused_p3(desk: Desk) -> None:
    refused(desk, "same-version-other-text", desk.world.policy("health", max_rows=5))


def test_a_policy_must_name_the_one_before_it_p3(desk: Desk) -> None:
    refused(desk, "previous-mismatch", desk.world.policy("health", version=2, previous="sha256:" + "0" * 64))


def test_an_expired_policy_is_not_activated(desk: Desk) -> None:
    expired = {"not_before": "2026-10-01T00:00:00+08:00", "expires": "2026-11-01T00:00:00+08:00"}
    refused(desk, "policy-expired", desk.world.policy("health", version=2, previous=desk.digest, **expired))


def test_a_policy_of_another_node_is_refused(desk: Desk) -> None:
    staff = desk.world.staff["health"]
    text = decode_envelope(desk.world.policies["police"]).payload
    refused(desk, "policy-of-another-node", sign(POLICY, text, [staff.dpo, staff.owner]).encode())


def test_a_policy_file_swapped_in_the_database_is_found_at_the_next_start_p3(desk: Desk) -> None:
    other = desk.world.policy("health", max_rows=999_999)
    with desk.state.journal.transaction() as connection:
        connection.execute("UPDATE policy SET envelope = ?", (other,))
    fails("policy-changed", desk.loaded)


def test_signers_are_pinned_once(desk: Desk) -> None:
    fails(
        "already-pinned",
        lambda: pin_signers(desk.state, new_signer().public_key, new_signer().public_key),
    )


def test_who_signs_policies_stands_in_the_journal(desk: Desk) -> None:
    staff = desk.world.staff["health"]
    [entry] = [e for e in desk.state.journal.entries() if e.kind == "signers.pinned"]
    assert entry.body["signers"] == [key_id(staff.dpo.public_key), key_id(staff.owner.public_key)]
    assert entry.body["roles"] == ["dpo", "owner"]


def test_before_signers_are_pinned_no_policy_is_activated(desk: Desk) -> None:
    with desk.state.journal.transaction() as connection:
        connection.execute("DELETE FROM pin")
    fails("no-signers", lambda: desk.policy(desk.world.policies["health"]))
    key = new_signer().public_key
    fails("same-key", lambda: pin_signers(desk.state, key, key))
