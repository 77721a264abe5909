"""The roster and the policy in force, and the one way newer ones come into force.

Both are signed documents with a version and the digest of the version before. What was activated once is
remembered in the database, so an older file put back is refused (P3), and every activation is journaled in
the same transaction.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from audit.entries import format_time
from node.home import Enrolled
from node.journal import named
from node.state import Reader, Signed, State
from node.stops import in_force, lift, with_stops
from policies.model import ActivePolicy, PinnedSigners, StoredPolicy
from policies.sign import check_activation, reopen
from protocols import succession
from protocols.encoding import sha256_digest
from protocols.envelope import POLICY, Envelope, decode_envelope, key_id, verify
from protocols.errors import MinshuError, PolicyInvalid, Refused, SignatureInvalid, StateConflict
from protocols.ids import NodeName
from protocols.succession import Trusted
from protocols.wire import Freshness, Roster, RosterNode

if TYPE_CHECKING:
    from node.state import Change


@dataclass(slots=True)
class InForce:
    """What this node goes by right now. A fresh node has nothing, and therefore refuses everything.

    `roster` is the newest; whether it still counts, `fresh` says. `trusted` is the judged chain it ends.
    """

    name: NodeName
    identity_key: bytes
    roster: Roster | None = None
    policy: ActivePolicy | None = None
    freshness: Freshness | None = None
    trusted: Trusted | None = None

    @classmethod
    def load(cls, reader: Reader, name: NodeName, identity_key: bytes) -> "InForce":
        """Return what was activated here before.

        Raises:
            MinshuError: a stored document is not what was activated.
        """
        force = cls(name, identity_key)
        if (stored := reader.roster()) is not None:
            force.roster = Roster.decode(decode_envelope(stored.envelope).payload)
            if statement := reader.freshness(stored.version):
                force.freshness = Freshness.decode(decode_envelope(statement).payload)
        if (policy := reader.policy()) is not None:
            pinned = PinnedSigners(reader.pins())
            remembered = StoredPolicy(policy.version, policy.digest)
            force.policy = with_stops(reader, reopen(policy.envelope, pinned, remembered, node=name))
        return force

    def fresh(self, now: datetime) -> Roster:
        """Return the roster if it may be gone by now: issued, not expired, and confirmed within seven days.

        Raises:
            Refused: `no-roster`, `roster-not-valid`, `roster-expired`, `roster-stale`;
                `succession.IN_CHINESE` has their sentences in Chinese.
        """
        return succession.fresh(self.roster, self.freshness, now)

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

    def chain(self, reader: Reader, enrolled: Enrolled) -> Trusted:
        """Return what the rosters kept here add up to, from the root keys pinned at enrolment on.

        Raises:
            StateConflict: `roster-changed`: what is kept is not what was activated.
        """
        if self.trusted is None:
            rosters = reader.rosters()
            statement = reader.freshness(rosters[-1].version) if rosters else b""
            try:
                self.trusted = succession.restore(
                    Trusted(enrolled.pinned), [one.envelope for one in rosters], statement
                )
            except MinshuError as error:
                raise StateConflict(
                    f"the rosters in this node's database are not those it activated ({error.code})",
                    code="roster-changed",
                    hint="stop and keep the database as evidence; then make a new node and enrol it",
                ) from error
        return self.trusted

    def goes_by(self, trusted: Trusted) -> None:
        """Go by a judged chain from here on."""
        self.trusted, self.roster, self.freshness = trusted, trusted.roster, trusted.freshness


def activate_roster(
    state: State, force: InForce, envelope: bytes, enrolled: Enrolled, now: Callable[[], datetime]
) -> bool:
    """Take over the next roster of the chain; return whether it is a new one.

    `succession.advance` judges it. One that has expired since is kept and journaled too, so that the chain
    goes on behind it, but `InForce.fresh` refuses to go by it.

    Raises:
        MinshuError: see `succession.advance` and `InForce.chain`; the roster before stays.
    """
    before, held = force.chain(state, enrolled), force.roster
    after = succession.advance(before, envelope, now())
    if after is not before and after.roster is not None:
        _keep_roster(state, force, before, after.roster, envelope, expired=now() >= after.roster.expires)
    force.goes_by(after)
    return force.roster != held


def _keep_roster(
    state: State, force: InForce, before: Trusted, roster: Roster, envelope: bytes, *, expired: bool
) -> None:
    body = {
        "version": roster.version,
        "sha256": roster.digest,
        "envelope_sha256": sha256_digest(envelope),
        "signers": list(succession.signers(before, envelope)),
        "expires": format_time(roster.expires),
    }
    if roster.previous is not None:
        body["previous"] = roster.previous
    if expired:
        body["code"] = "roster-expired"
    # The envelope itself stands beside the log, so that an auditor can check every job against it.
    state.journal.put_object(envelope)
    # Until the change is through, the database alone knows what is trusted.
    force.trusted = None
    with state.change() as change:
        change.add_roster(Signed(roster.version, roster.digest, envelope))
        change.log("roster.activate", body)


def take_freshness(
    state: State, force: InForce, envelope: bytes, enrolled: Enrolled, now: Callable[[], datetime]
) -> bool:
    """Take over a freshness statement on the roster at hand; return whether it is newer than the one before.

    Raises:
        MinshuError: see `succession.freshen` and `InForce.chain`; the statement before stays.
    """
    before, held = force.chain(state, enrolled), force.freshness
    after = succession.freshen(before, envelope, now())
    if after is not before and after.roster is not None and after.freshness is not None:
        _keep_freshness(state, force, after.roster, after.freshness, envelope)
    force.goes_by(after)
    return force.freshness != held


def _keep_freshness(
    state: State, force: InForce, roster: Roster, statement: Freshness, envelope: bytes
) -> None:
    body = {
        "version": statement.version,
        "sha256": statement.sha256,
        "signers": list(succession.confirmers(roster, envelope)),
        "created": format_time(statement.issued),
        "expires": format_time(succession.fresh_until(roster, statement)),
    }
    kept = state.journal.put_object(envelope)
    force.trusted = None
    with state.change() as change:
        change.put_freshness(statement.version, envelope)
        change.log("roster.fresh", body, refs=[kept])


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
        change.log("signers.pinned", {"signers": [key_id(dpo), key_id(owner)], "roles": ["dpo", "owner"]})


def activate_policy(
    state: State, force: InForce, envelope: bytes, now: Callable[[], datetime]
) -> ActivePolicy:
    """Put a policy into force; a refused one leaves the old one in force. Both are journaled.

    Raises:
        MinshuError: see `policies.sign.check_activation`; `no-signers` before any key is pinned;
            `stop-changed`, see `node.stops.in_force`.
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
    stops = state.stops()
    held = in_force(state)
    try:
        active = check_activation(envelope, PinnedSigners(pinned), stored, now(), node=force.name, stops=held)
    except MinshuError as error:
        if error.code != "policy-already-active":
            with state.change() as change:
                _log_refusal(change, error, envelope)
        raise
    policy = active.policy
    signers = _signers(decode_envelope(envelope), pinned)
    body = {
        "version": policy.version,
        "sha256": active.digest,
        "envelope_sha256": sha256_digest(envelope),
        "policy_id": named(policy.policy_id),
        "signers": signers,
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
        lift(change, stops, active, signers)
    force.policy = with_stops(state, active)
    return active


def _signers(envelope: Envelope, pinned: dict[str, tuple[bytes, ...]]) -> list[str]:
    keys = {key_id(key): key for role in pinned.values() for key in role}
    return sorted(verify(envelope, POLICY, keys))


def _log_refusal(change: "Change", error: MinshuError, envelope: bytes) -> None:
    body: dict[str, str | int] = {"code": error.code, "sha256": sha256_digest(envelope)}
    if isinstance(error, PolicyInvalid) and error.line:
        body["line"] = error.line
    change.log("policy.refused", body)
