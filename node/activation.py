"""The roster and the policy in force, and the one way newer ones come into force.

Both are signed documents with a version and the digest of the version before. What was activated once is
remembered in the database, so an older file put back is refused (P3), and every activation is journaled in
the same transaction. So is it remembered, where one changes whose cosignatures count, that those who counted
before have to see that (`node.cosigning`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from audit.entries import format_time
from audit.note import ED25519, VerifierKey
from node.home import Enrolled, Home
from node.journal import named
from node.state import Reader, Signed, State
from node.stops import in_force, lift, with_stops
from policies.model import ActivePolicy, PinnedSigners, StoredPolicy
from policies.sign import check_activation, reopen
from policies.witnesses import Witnesses, witnesses_of
from protocols import succession
from protocols.channel import suites
from protocols.encoding import sha256_digest
from protocols.envelope import POLICY, decode_envelope, key_id, verify
from protocols.errors import MinshuError, PolicyInvalid, Refused, SignatureInvalid, StateConflict
from protocols.ids import NodeName
from protocols.succession import Trusted
from protocols.wire import Freshness, Roster, RosterNode, organisation_of

if TYPE_CHECKING:
    from node.state import Change


@dataclass(frozen=True, slots=True)
class OwnKeys:
    """What else a roster says of this node: its log's origin, its witness keys, its recipient key."""

    origin: str
    witness_vkeys: tuple[str, ...]
    recipient_key: bytes

    def listed(self, node: RosterNode) -> bool:
        """Tell whether a roster's line of this node has these keys, and the log's under its identity key."""
        vkey = str(VerifierKey(self.origin, ED25519, node.identity_key))
        ours = (vkey, self.witness_vkeys, self.recipient_key)
        return (node.journal_vkey, node.witness_vkeys, node.recipient_key) == ours


def own_keys(home: Home) -> OwnKeys:
    """Return the keys that a roster has to list for the node in a home, beside its identity key.

    Raises:
        InputError: one cannot be read.
    """
    recipient = suites.public_key(home.config.suite, home.recipient_private())
    return OwnKeys(home.origin, home.witness_vkeys, recipient)


@dataclass(slots=True)
class InForce:
    """What this node goes by right now. A fresh node has nothing, and therefore refuses everything.

    `roster` is the newest; whether it still counts, `fresh` says. `trusted` is the judged chain it ends.
    `own` are the keys that a roster has to list for this node, None where nobody compares them.
    """

    name: NodeName
    identity_key: bytes
    roster: Roster | None = None
    policy: ActivePolicy | None = None
    freshness: Freshness | None = None
    trusted: Trusted | None = None
    own: OwnKeys | None = None

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
            active = reopen(policy.envelope, pinned, remembered, node=name)
            force.policy = with_stops(reader, active, identity_key)
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
            Refused: there is no roster, or it lists this node not at all, or with other keys than its own.
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
        if self.own is not None and not self.own.listed(mine):
            raise Refused(
                "the roster lists this node with journal, witness or recipient keys that are not its own",
                code="roster-keys-differ",
                hint="compare them with minshu-node key show, and sign a roster that lists this node's own",
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
    body = roster_facts(before, roster, envelope)
    if expired:
        body["code"] = "roster-expired"
    # The envelope itself stands beside the log, so that an auditor can check every job against it.
    state.journal.put_object(envelope)
    # Until the change is through, the database alone knows what is trusted.
    force.trusted = None
    with state.change() as change:
        change.add_roster(Signed(roster.version, roster.digest, envelope))
        seq = change.log("roster.activate", body)
        sets = (_counting(force, force.policy, of) for of in (before.roster, roster))
        _note_witnesses(change, state, seq, *sets)


def roster_facts(before: Trusted, roster: Roster, envelope: bytes) -> dict[str, Any]:
    """Return what an entry says of a roster that follows what was trusted before."""
    body: dict[str, Any] = {
        "version": roster.version,
        "sha256": roster.digest,
        "envelope_sha256": sha256_digest(envelope),
        "signers": list(succession.signers(before, envelope)),
        "expires": format_time(roster.expires),
    }
    return body if roster.previous is None else body | {"previous": roster.previous}


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
    body = freshness_facts(roster, statement, envelope)
    kept = state.journal.put_object(envelope)
    force.trusted = None
    with state.change() as change:
        change.put_freshness(statement.version, envelope)
        change.log("roster.fresh", body, refs=[kept])


def freshness_facts(roster: Roster, statement: Freshness, envelope: bytes) -> dict[str, Any]:
    """Return what an entry says of somebody's word that a roster is still the newest."""
    return {
        "version": statement.version,
        "sha256": statement.sha256,
        "signers": list(succession.confirmers(roster, envelope)),
        "created": format_time(statement.issued),
        "expires": format_time(succession.fresh_until(roster, statement)),
    }


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
    # A key's id is the digest of its bytes: an auditor who knows whose it is finds it beside the log.
    for key in (dpo, owner):
        state.journal.put_object(key)
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
    held = in_force(state, force.identity_key)
    try:
        active = check_activation(envelope, PinnedSigners(pinned), stored, now(), node=force.name, stops=held)
    except MinshuError as error:
        if error.code != "policy-already-active":
            with state.change() as change:
                _log_refusal(change, error, envelope)
        raise
    body = policy_facts(active, envelope, pinned)
    # The text itself stands beside the log, so that an auditor can decide every job again.
    state.journal.put_object(envelope)
    state.journal.put_object(decode_envelope(envelope).payload)
    with state.change() as change:
        change.add_policy(Signed(active.policy.version, active.digest, envelope))
        seq = change.log("policy.activate", body)
        sets = (_counting(force, of, force.roster) for of in (force.policy, active))
        _note_witnesses(change, state, seq, *sets)
        lift(change, stops, active, body["signers"])
    force.policy = with_stops(state, active, force.identity_key)
    return active


def _counting(force: InForce, active: ActivePolicy | None, roster: Roster | None) -> Witnesses | None:
    """Return who counts as this log's witnesses under a policy and a roster; None where nobody does."""
    if active is None or roster is None:
        return None
    found = witnesses_of(active.policy, roster, organisation_of(force.name))
    return found if found.possible else None


def _note_witnesses(
    change: "Change", state: State, seq: int, before: Witnesses | None, after: Witnesses | None
) -> None:
    """Remember a change of those who count, for those before to see it; in the transaction that makes it."""
    if before is None or after is None or not before.counts_like(after):
        change.change_witnesses(state.journal.origin, seq, before)


def policy_facts(
    active: ActivePolicy, envelope: bytes, pinned: Mapping[str, tuple[bytes, ...]]
) -> dict[str, Any]:
    """Return what an entry says of a policy that people with pinned keys put into force."""
    policy = active.policy
    keys = {key_id(key): key for role in pinned.values() for key in role}
    body: dict[str, Any] = {
        "version": policy.version,
        "sha256": active.digest,
        "envelope_sha256": sha256_digest(envelope),
        "policy_id": named(policy.policy_id),
        "signers": sorted(verify(decode_envelope(envelope), POLICY, keys)),
        "not_before": format_time(policy.not_before),
        "expires": format_time(policy.expires),
    }
    return body if policy.previous is None else body | {"previous": policy.previous}


def _log_refusal(change: "Change", error: MinshuError, envelope: bytes) -> None:
    body: dict[str, str | int] = {"code": error.code, "sha256": sha256_digest(envelope)}
    if isinstance(error, PolicyInvalid) and error.line:
        body["line"] = error.line
    change.log("policy.refused", body)
