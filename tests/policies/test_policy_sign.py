from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.model import ActivePolicy, PinnedSigners, Stop, StoredPolicy
from policies.sign import SignedStop, check_activation, check_stop, reopen, sign_policy, sign_stop
from protocols.encoding import sha256_digest
from protocols.envelope import JOB, POLICY, STOP, Envelope, decode_envelope, sign
from protocols.errors import (
    DecodeError,
    InputError,
    MinshuError,
    PolicyInvalid,
    SignatureInvalid,
    StateConflict,
)
from protocols.ids import Digest
from protocols.wire import utc_text

DPO, OWNER = "human-resources dpo", "human-resources owner"


def signed(world: Any, text: str, *who: str) -> bytes:
    return sign(POLICY, text.encode(), [world.signer(name) for name in who]).encode()


def activate(world: Any, envelope: bytes, stored: StoredPolicy | None = None, **changes: Any) -> ActivePolicy:
    arguments = {"node": world.node("human-resources"), **changes}
    now = arguments.pop("now", world.now)
    pinned = arguments.pop("pinned", world.pinned())
    return check_activation(envelope, pinned, stored, now, **arguments)


def refused(world: Any, envelope: bytes, stored: StoredPolicy | None = None, **changes: Any) -> str:
    with pytest.raises(MinshuError) as caught:
        activate(world, envelope, stored, **changes)
    return caught.value.code


def next_version(world: Any, version: int, previous: str) -> str:
    return str(world.text(**{"version = 1 ": f'version = {version}\nprevious = "{previous}" '}))


def test_dpo_and_owner_together_activate_a_policy(world: Any):
    text = world.text()
    active = activate(world, signed(world, text, DPO, OWNER))
    assert active.digest == sha256_digest(text.encode())
    assert active.policy.version == 1


@pytest.mark.parametrize(
    "who",
    [
        (),
        (DPO,),
        (OWNER,),
        (DPO, DPO),
        (OWNER, OWNER, OWNER),
        (DPO, "stranger"),
        ("health dpo", "health owner"),
    ],
)
def test_less_than_two_people_of_different_roles_activate_nothing(world: Any, who: tuple[str, ...]):
    assert refused(world, signed(world, world.text(), *who)) == "too-few-signatures"


def test_two_people_of_one_role_are_not_two_roles(world: Any):
    pinned = PinnedSigners(
        {
            "dpo": (world.signer(DPO).public_key, world.signer("second dpo").public_key),
            "owner": (world.signer(OWNER).public_key,),
        }
    )
    text = world.text()
    assert refused(world, signed(world, text, DPO, "second dpo"), pinned=pinned) == "too-few-signatures"
    assert activate(world, signed(world, text, "second dpo", OWNER), pinned=pinned).policy.version == 1


def test_nobody_can_be_pinned_for_two_roles(world: Any):
    key = world.signer(DPO).public_key
    for roles in ({"dpo": (key,), "owner": (key,)}, {"dpo": (key, key)}, {"dpo": (key[:31],)}):
        with pytest.raises(InputError) as caught:
            PinnedSigners(roles)
        assert caught.value.code == "bad-pins"


def test_without_pinned_keys_nothing_is_activated(world: Any):
    assert (
        refused(world, signed(world, world.text(), DPO, OWNER), pinned=PinnedSigners({}))
        == "too-few-signatures"
    )


def test_keys_named_in_the_policy_itself_do_not_activate_it(world: Any):
    # The approvers of the policy are its own claim; only pinned keys count.
    pinned = PinnedSigners({"dpo": (world.signer("x").public_key,), "owner": (world.signer("y").public_key,)})
    assert refused(world, signed(world, world.text(), DPO, OWNER), pinned=pinned) == "too-few-signatures"


def test_a_signed_document_of_another_type_is_no_policy(world: Any):
    envelope = sign(JOB, world.text().encode(), [world.signer(DPO), world.signer(OWNER)])
    assert refused(world, envelope.encode()) == "wrong-payload-type"


def test_nothing_is_parsed_before_the_signatures_hold(world: Any):
    assert refused(world, signed(world, "not toml at all [", DPO)) == "too-few-signatures"
    assert refused(world, signed(world, "not toml at all [", DPO, OWNER)) == "not-toml"


@settings(deadline=None)
@given(data=st.data())
def test_no_byte_of_a_signed_policy_can_be_changed(world: Any, data: st.DataObject):
    envelope = sign(POLICY, world.text().encode(), [world.signer(DPO), world.signer(OWNER)])
    at = data.draw(st.integers(0, len(envelope.payload) - 1))
    payload = bytearray(envelope.payload)
    payload[at] ^= data.draw(st.integers(1, 255))
    changed = Envelope(POLICY, bytes(payload), envelope.signatures)
    assert refused(world, changed.encode()) == "too-few-signatures"


def test_a_newer_version_that_names_the_one_before_follows_it(world: Any):
    first = activate(world, signed(world, world.text(), DPO, OWNER))
    stored = StoredPolicy(1, first.digest)
    second = activate(world, signed(world, next_version(world, 2, first.digest), DPO, OWNER), stored)
    assert second.policy.version == 2
    # Versions may be skipped, as long as the one before is named.
    assert activate(world, signed(world, next_version(world, 9, first.digest), DPO, OWNER), stored)


def test_an_older_version_is_refused(world: Any):
    stored = StoredPolicy(7, Digest(sha256_digest(b"seven")))
    assert refused(world, signed(world, world.text(), DPO, OWNER), stored) == "policy-rollback"
    text = next_version(world, 6, sha256_digest(b"five"))
    assert refused(world, signed(world, text, DPO, OWNER), stored) == "policy-rollback"


def test_an_expired_older_version_is_still_called_a_rollback(world: Any):
    stored = StoredPolicy(7, Digest(sha256_digest(b"seven")))
    late = world.now + timedelta(days=400)
    assert refused(world, signed(world, world.text(), DPO, OWNER), stored, now=late) == "policy-rollback"


def test_the_same_version_with_another_text_is_refused(world: Any):
    first = activate(world, signed(world, world.text(), DPO, OWNER))
    stored = StoredPolicy(1, first.digest)
    text = world.text() + "# a comment\n"
    assert refused(world, signed(world, text, DPO, OWNER), stored) == "same-version-other-text"


def test_the_active_version_again_changes_nothing_and_says_so(world: Any):
    envelope = signed(world, world.text(), DPO, OWNER)
    stored = StoredPolicy(1, activate(world, envelope).digest)
    assert refused(world, envelope, stored) == "policy-already-active"


@pytest.mark.parametrize("stored", [None, StoredPolicy(1, Digest(sha256_digest(b"another first version")))])
def test_a_version_that_does_not_follow_what_was_active_here_is_refused(
    world: Any, stored: StoredPolicy | None
):
    text = next_version(world, 2, sha256_digest(b"some first version"))
    assert refused(world, signed(world, text, DPO, OWNER), stored) == "previous-mismatch"


def test_an_expired_or_premature_policy_is_not_activated(world: Any):
    envelope = signed(world, world.text(), DPO, OWNER)
    policy = activate(world, envelope).policy
    assert refused(world, envelope, now=policy.expires) == "policy-expired"
    assert refused(world, envelope, now=policy.not_before - timedelta(seconds=1)) == "policy-not-yet-valid"
    assert activate(world, envelope, now=policy.not_before)


def test_a_policy_for_another_node_is_refused(world: Any):
    envelope = signed(world, world.text(), DPO, OWNER)
    assert refused(world, envelope, node=world.node("health")) == "policy-of-another-node"


def test_a_stop_document_is_no_policy_whatever_it_is_signed_as(world: Any):
    text = '# halt\nschema = "minshu-stop/1"\n'
    with pytest.raises(PolicyInvalid) as caught:
        activate(world, signed(world, text, DPO, OWNER))
    assert (caught.value.code, caught.value.line) == ("unknown-schema", 2)
    assert "minshu-node stop" in caught.value.hint


def test_a_policy_lifts_only_stops_that_are_in_force(world: Any):
    stop, other = sha256_digest(b"a stop"), sha256_digest(b"another")
    text = world.text(**{"timezone =": f'lifted_stops = ["{stop}"]\ntimezone ='})
    envelope = signed(world, text, DPO, OWNER)
    assert activate(world, envelope, stops={other: (), stop: ()}).policy.lifted_stops == (stop,)
    for stops in ({}, {other: ()}):
        with pytest.raises(PolicyInvalid, match=r"lifted_stops\[0\]") as caught:
            activate(world, envelope, stops=stops)
        assert caught.value.code == "unknown-stop"
        assert text.split("\n")[caught.value.line - 1].startswith("lifted_stops")
        assert (other if stops else "none") in caught.value.hint


@pytest.mark.parametrize(
    ("scope", "value"), [("requester", "someone"), ("purpose", "P-0000-000"), ("dataset", "gone")]
)
def test_a_version_that_no_longer_knows_what_is_stopped_must_lift_the_stop(
    world: Any, scope: Any, value: str
):
    stop = sha256_digest(b"a stop")
    held = {stop: (Stop(scope="all", reason="x"), Stop(scope=scope, value=value, reason="x"))}
    with pytest.raises(StateConflict, match=value) as caught:
        activate(world, signed(world, world.text(), DPO, OWNER), stops=held)
    assert caught.value.code == "stopped-name-gone"
    assert stop in caught.value.hint
    text = world.text(**{"timezone =": f'lifted_stops = ["{stop}"]\ntimezone ='})
    assert activate(world, signed(world, text, DPO, OWNER), stops=held)
    known = {"requester": "requesters", "purpose": "purposes", "dataset": "datasets"}[scope]
    policy = activate(world, signed(world, world.text(), DPO, OWNER)).policy
    held = {stop: (Stop(scope=scope, value=min(getattr(policy, known)), reason="x"),)}
    assert activate(world, signed(world, world.text(), DPO, OWNER), stops=held)


def test_a_stopped_job_is_no_name_that_a_policy_could_lose(world: Any):
    job = sha256_digest(b"a job")
    held = {sha256_digest(b"a stop"): (Stop(scope="job", value=job, reason="x"),)}
    assert activate(world, signed(world, world.text(), DPO, OWNER), stops=held)


def test_a_wrong_policy_with_good_signatures_is_refused_with_its_line(world: Any):
    text = world.text().replace('grade = "general-4"', 'grade = "core"')
    with pytest.raises(PolicyInvalid) as caught:
        activate(world, signed(world, text, DPO, OWNER))
    assert caught.value.code == "core-data"
    assert caught.value.line > 0


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b"\xff", b'{"payload":"","payloadType":"","signatures":[{}]}']
)
def test_what_is_no_envelope_is_a_clean_error(world: Any, data: bytes):
    with pytest.raises(DecodeError):
        activate(world, data)


def test_a_policy_of_more_than_256_kib_is_refused(world: Any):
    assert refused(world, signed(world, "#" * (257 << 10), DPO, OWNER)) == "too-long"


def test_at_start_the_file_must_be_what_was_activated(world: Any):
    envelope = signed(world, world.text(), DPO, OWNER)
    active = activate(world, envelope)
    stored = StoredPolicy(1, active.digest)
    node = world.node("human-resources")
    assert reopen(envelope, world.pinned(), stored, node=node) == active
    other = signed(world, world.text() + "# other\n", DPO, OWNER)
    for other_stored, data in ((stored, other), (StoredPolicy(2, active.digest), envelope)):
        with pytest.raises(StateConflict) as caught:
            reopen(data, world.pinned(), other_stored, node=node)
        assert caught.value.code == "policy-changed"
    with pytest.raises(SignatureInvalid):
        reopen(signed(world, world.text(), DPO), world.pinned(), stored, node=node)


def test_people_sign_one_after_the_other(world: Any):
    data = world.text().encode()
    one = sign_policy(data, world.signer(DPO))
    two = sign_policy(data, world.signer(OWNER), decode_envelope(one.encode()))
    assert activate(world, two.encode()).policy.version == 1


def test_nobody_signs_twice_nor_another_text_nor_a_wrong_one(world: Any):
    data = world.text().encode()
    one = sign_policy(data, world.signer(DPO))
    with pytest.raises(InputError) as caught:
        sign_policy(data, world.signer(DPO), one)
    assert caught.value.code == "signed-already"
    with pytest.raises(InputError) as caught:
        sign_policy(data + b"# more\n", world.signer(OWNER), one)
    assert caught.value.code == "other-policy-text"
    with pytest.raises(PolicyInvalid):
        sign_policy(b"schema = 1", world.signer(DPO))


def stop_text(world: Any, **edits: str) -> bytes:
    text = f"""schema = "minshu-stop/1"
policy_id = "{world.node("human-resources")}"
issued = {utc_text(world.now)}
[[stops]]
scope = "purpose"
value = "P-2026-001"
reason = "under review"
"""
    return str(world.edited(text, edits)).encode()


def stopped(world: Any, data: bytes, *who: str, **changes: Any) -> SignedStop:
    envelope = sign(changes.pop("kind", STOP), data, [world.signer(name) for name in who])
    arguments = {"node": world.node("human-resources"), "known": (), **changes}
    now = arguments.pop("now", world.now)
    return check_stop(envelope.encode(), arguments.pop("pinned", world.pinned()), now, **arguments)


@pytest.mark.parametrize(("who", "role"), [(DPO, "dpo"), (OWNER, "owner")])
def test_one_signature_of_any_role_stops(world: Any, who: str, role: str):
    data = stop_text(world)
    stop = stopped(world, data, who)
    assert (stop.role, stop.key, stop.digest) == (role, world.key(who), sha256_digest(data))
    assert stop.document.stops[0].value == "P-2026-001"
    envelope = sign_stop(data, world.signer(who)).encode()
    again = check_stop(envelope, world.pinned(), world.now, node=world.node("human-resources"), known=())
    assert again == stop


@pytest.mark.parametrize(
    ("who", "changes", "code"),
    [
        ((), {}, "too-few-signatures"),
        (("stranger",), {}, "too-few-signatures"),
        (("health dpo",), {}, "too-few-signatures"),
        ((DPO,), {"pinned": PinnedSigners({})}, "too-few-signatures"),
        ((DPO,), {"kind": POLICY}, "wrong-payload-type"),
    ],
)
def test_nobody_else_stops_anything(world: Any, who: tuple[str, ...], changes: dict[str, Any], code: str):
    with pytest.raises(SignatureInvalid) as caught:
        stopped(world, b"not toml at all [", *who, **changes)
    assert caught.value.code == code


def test_a_stop_is_for_one_node_within_seven_days_of_its_issue(world: Any):
    data = stop_text(world)
    for change, code in (
        ({"node": world.node("health")}, "stop-of-another-node"),
        ({"now": world.now - timedelta(minutes=6)}, "stop-not-yet-valid"),
        ({"now": world.now + timedelta(days=7, seconds=1)}, "stop-too-old"),
    ):
        with pytest.raises(StateConflict) as caught:
            stopped(world, data, DPO, **change)
        assert caught.value.code == code
        assert caught.value.hint
    for now in (world.now - timedelta(minutes=4), world.now + timedelta(days=7)):
        assert stopped(world, data, DPO, now=now)


def test_a_stop_that_was_lifted_does_not_come_back(world: Any):
    data = stop_text(world)
    known = {stopped(world, data, DPO).digest}
    with pytest.raises(StateConflict) as caught:
        stopped(world, data, OWNER, known=known)
    assert caught.value.code == "stop-applied-before"
    later = stop_text(world, **{utc_text(world.now): utc_text(world.now + timedelta(seconds=1))})
    assert stopped(world, later, OWNER, known=known)


def test_nobody_signs_a_stop_that_no_node_would_accept(world: Any):
    for old, new in (('scope = "purpose"', 'scope = "all"'), ("reason", "because")):
        with pytest.raises(PolicyInvalid):
            sign_stop(stop_text(world, **{old: new}), world.signer(DPO))
    with pytest.raises(PolicyInvalid) as caught:
        stopped(world, world.text().encode(), DPO)
    assert caught.value.code == "unknown-schema"


@pytest.mark.parametrize("number", ["13900001234", "990101199001011234", "１３９００００１２３４"])
def test_a_reason_that_could_name_a_person_is_neither_signed_nor_applied(world: Any, number: str):
    data = stop_text(world, **{"under review": f"complaint of {number}"})
    for act in (lambda: sign_stop(data, world.signer(DPO)), lambda: stopped(world, data, DPO)):
        with pytest.raises(PolicyInvalid) as caught:
            act()
        assert caught.value.code == "bad-reason"
        assert number not in caught.value.message + caught.value.hint
    # File and case numbers are shorter.
    assert stopped(world, stop_text(world, **{"under review": "case 2026-0012345678"}), DPO)
