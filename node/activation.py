"""The roster and the policy in force, and the one way newer ones come into force.

Both are signed documents with a version and the digest of the version before. What was activated once is
remembered in the database, so an older file put back is refused (P3), and every activation is journaled in
the same transaction.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from audit.entries import format_time
from node.home import Enrolled
from node.journal import named
from node.state import Reader, Signed, State
from policies.decide import CLOCK_TOLERANCE
from policies.model import ActivePolicy, PinnedSigners, StoredPolicy
from policies.sign import check_activation, reopen
from protocols.encoding import sha256_digest
from protocols.envelope import POLICY, ROSTER, Envelope, decode_envelope, key_id, verify
from protocols.errors import MinshuError, PolicyInvalid, Refused, SignatureInvalid, StateConflict
from protocols.ids import NodeName
from protocols.wire import Roster, RosterNode

if TYPE_CHECKING:
    from node.state import Change

MAX_ROSTER_LIFE: Final = timedelta(days=90)


@dataclass(slots=True)
class InForce:
    """What this node goes by right now; both None on a fresh node, which therefore refuses everything."""

    name: NodeName
    identity_key: bytes
    roster: Roster | None = None
    policy: ActivePolicy | None = None

    @classmethod
    def load(cls, reader: Reader, name: NodeName, identity_key: bytes) -> "InForce":
        """Return what was activated here before.

        Raises:
            MinshuError: a stored document is not what was activated.
        """
        force = cls(name, identity_key)
        if (stored := reader.roster()) is not None:
            force.roster = Roster.decode(decode_envelope(stored.envelope).payload)
        if (policy := reader.policy()) is not None:
            pinned = PinnedSigners(reader.pins())
            remembered = StoredPolicy(policy.version, policy.digest)
            force.policy = reopen(policy.envelope, pinned, remembered, node=name)
        return force

    def me(self) -> RosterNode:
        """Return this node's line of the roster.

        Raises:
            Refused: there is no roster, or it lists this node not at all or under another identity key.
        """
        if self.roster is None:
            raise Refused(
                "this node holds no roster yet, so it knows nobody",
                code="no-roster",
                hint="publish a roster that lists this node, and let the node connect once",
            )
        mine = self.roster.node(self.name)
        if mine is None or mine.identity_key != self.identity_key:
            raise Refused(
                "the roster does not list this node with its identity key",
                code="not-in-roster",
                hint="compare the fingerprint that init printed, and sign a new roster",
            )
        return mine


def activate_roster(
    state: State, force: InForce, envelope: bytes, enrolled: Enrolled, now: Callable[[], datetime]
) -> bool:
    """Put a roster into force if it is newer; return whether it is a new one.

    (1) Signed by enough of the root keys pinned at enrolment; nothing is parsed before. (2) Of this
    collaboration, and valid now for at most 90 days. (3) Newer than the newest ever activated here; the next
    version names the digest of the one before. Versions in between may have been missed while this node was
    off: the root keys' signatures, not the chain, say who belongs.

    Raises:
        DecodeError: not an envelope or not a roster.
        SignatureInvalid: (1)
        StateConflict: `roster-of-another-collaboration`, `roster-not-valid`, `roster-expired`,
            `roster-rollback`.
    """
    signed = decode_envelope(envelope)
    stored = state.roster()
    if stored is not None and signed.payload_digest == stored.digest:
        return False
    # (1)
    signers = verify(signed, ROSTER, {key_id(key): key for key in enrolled.roots}, enrolled.threshold)
    roster = Roster.decode(signed.payload)
    # (2)
    if roster.collaboration != enrolled.collaboration:
        raise StateConflict(
            "the roster is of another collaboration than this node enrolled in",
            code="roster-of-another-collaboration",
        )
    if roster.issued > now() + CLOCK_TOLERANCE:
        raise StateConflict(
            "the roster is dated in the future",
            code="roster-not-valid",
            hint="run minshu-node doctor: this node's clock may be wrong",
        )
    if now() >= roster.expires or roster.expires - roster.issued > MAX_ROSTER_LIFE:
        raise StateConflict(
            "the roster has expired, or is valid for more than 90 days",
            code="roster-expired",
            hint="have the root keys sign a new roster",
        )
    # (3)
    if stored is not None and roster.version <= stored.version:
        raise StateConflict(
            f"roster version {roster.version} is not newer than version {stored.version}, activated here",
            code="roster-rollback",
            hint="ask the root key holders which roster they signed last",
        )
    follows = stored.digest if stored is not None else None
    if roster.version == (stored.version if stored is not None else 0) + 1 and roster.previous != follows:
        raise StateConflict(
            "the roster does not name the digest of the version before it",
            code="roster-rollback",
            hint="ask the root key holders which roster they signed",
        )
    body = {
        "version": roster.version,
        "sha256": roster.digest,
        "envelope_sha256": sha256_digest(envelope),
        "signers": sorted(signers),
        "expires": format_time(roster.expires),
    }
    if roster.previous is not None:
        body["previous"] = roster.previous
    # The envelope itself stands beside the log, so that an auditor can check every job against it.
    state.journal.put_object(envelope)
    with state.change() as change:
        change.add_roster(Signed(roster.version, roster.digest, envelope))
        change.log("roster.activate", body)
    force.roster = roster
    return True


def pin_signers(state: State, dpo: bytes, owner: bytes) -> None:
    """Pin the keys whose owners activate policies here. Once: a later change would undo every signature.

    Raises:
        StateConflict: keys are pinned already.
        SignatureInvalid: both are one key.
    """
    if state.pins():
        raise StateConflict(
            "the policy signers of this node are pinned already",
            code="already-pinned",
            hint="a change of people needs a new node home, which the roster then lists",
        )
    if dpo == owner:
        raise SignatureInvalid(
            "DPO and owner are one key, two people are needed",
            code="same-key",
            hint="make a key for each with minshu-policy key new",
        )
    with state.change() as change:
        change.pin("dpo", dpo)
        change.pin("owner", owner)


def activate_policy(
    state: State, force: InForce, envelope: bytes, now: Callable[[], datetime]
) -> ActivePolicy:
    """Put a policy into force; a refused one leaves the old one in force. Both are journaled.

    Raises:
        MinshuError: see `policies.sign.check_activation`; `no-signers` before any key is pinned.
    """
    pinned = state.pins()
    if not pinned:
        raise StateConflict(
            "nobody's keys are pinned to sign policies for this node",
            code="no-signers",
            hint="run minshu-node policy pin with the public keys of DPO and owner",
        )
    newest = state.policy()
    stored = None if newest is None else StoredPolicy(newest.version, newest.digest)
    try:
        active = check_activation(envelope, PinnedSigners(pinned), stored, now(), node=force.name)
    except MinshuError as error:
        if error.code != "policy-already-active":
            with state.change() as change:
                _log_refusal(change, error, envelope)
        raise
    policy = active.policy
    body = {
        "version": policy.version,
        "sha256": active.digest,
        "envelope_sha256": sha256_digest(envelope),
        "policy_id": named(policy.policy_id),
        "signers": _signers(decode_envelope(envelope), pinned),
        "not_before": format_time(policy.not_before),
        "expires": format_time(policy.expires),
    }
    if policy.previous is not None:
        body["previous"] = policy.previous
    # The text itself stands beside the log, so that an auditor can decide every job again.
    state.journal.put_object(envelope)
    state.journal.put_object(decode_envelope(envelope).payload)
    with state.change() as change:
        change.add_policy(Signed(policy.version, active.digest, envelope))
        change.log("policy.activate", body)
    force.policy = active
    return active


def _signers(envelope: Envelope, pinned: dict[str, tuple[bytes, ...]]) -> list[str]:
    keys = {key_id(key): key for role in pinned.values() for key in role}
    return sorted(verify(envelope, POLICY, keys))


def _log_refusal(change: "Change", error: MinshuError, envelope: bytes) -> None:
    body: dict[str, str | int] = {"code": error.code, "sha256": sha256_digest(envelope)}
    if isinstance(error, PolicyInvalid) and error.line:
        body["line"] = error.line
    change.log("policy.refused", body)
