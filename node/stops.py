"""Stops: a halt that one person signs, kept until a policy with two signatures lifts it.

What was applied once is remembered, so a stop neither vanishes with a restart nor comes back after it was
lifted. Each application and each lifting is a journal entry in the same transaction.

One stop a node signs itself, with its identity key: that of everything, where its own history has a gap
(`node.generation`). Nothing but that generation applies it, and two signatures lift it, too.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Final

from audit.statements import stop_facts
from node.state import State, StoredStop
from policies.decide import decide
from policies.decision import Refuse
from policies.model import STOP_SCHEMA, ActivePolicy, PinnedSigners, Policy, Stop
from policies.parse import parse_stop
from policies.sign import SignedStop, check_stop, known_names, names_nobody, sign_stop
from protocols.encoding import sha256_digest
from protocols.envelope import STOP, Envelope, Signer, decode_envelope, key_id, verify
from protocols.errors import MinshuError, StateConflict
from protocols.ids import Digest, KeyId, NodeName
from protocols.wire import JobSpec, Roster, utc_text

if TYPE_CHECKING:
    from node.activation import InForce
    from node.state import Change, Reader

HISTORY_GAP: Final = "history-gap"
"""Why a node stops everything by itself: what it did after its backup was made, nobody knows."""

_BEGINS: Final = re.compile(rb"# ([!-~]+) begins: ")
"""How the text of such a stop begins, see `gap_stop`."""


def apply_stop(state: State, force: "InForce", envelope: bytes, now: Callable[[], datetime]) -> SignedStop:
    """Put a stop into force. Refused ones change nothing.

    Without a policy in force only `all` and jobs can be stopped: nobody could tell whom a name means.

    Raises:
        MinshuError: see `policies.sign.check_stop`; `no-signers` before any key is pinned;
            `stop-names-nobody`: the policy in force does not know what it names.
    """
    pinned = state.pins()
    if not pinned:
        raise StateConflict(
            "nobody's keys are pinned to sign stops for this node",
            code="no-signers",
            hint="run minshu-node policy pin with the public keys of DPO and owner",
        )
    known = {stored.digest for stored in state.stops()}
    signed = check_stop(envelope, PinnedSigners(pinned), now(), node=force.name, known=known)
    _check_names(signed.document.stops, None if force.policy is None else force.policy.policy)
    # The text itself stands beside the log, so that an auditor can decide every job again.
    state.journal.put_object(envelope)
    state.journal.put_object(decode_envelope(envelope).payload)
    with state.change() as change:
        change.add_stop(signed.digest, envelope)
        log_applied(change, signed.document.stops, envelope, [signed.key])
    force.policy = with_stops(state, force.policy, force.identity_key)
    return signed


def log_applied(
    change: "Change", stops: Sequence[Stop], envelope: bytes, signers: Sequence[KeyId], code: str = ""
) -> None:
    """Journal that a document's halts are in force, and why where that needs saying."""
    of = {
        "signers": [*signers],
        "envelope_sha256": sha256_digest(envelope),
        **({"code": code} if code else {}),
    }
    digest = decode_envelope(envelope).payload_digest
    for stop in stops:
        change.log("stop.applied", stop_facts(stop, digest) | of, actor=signers[0])


def gap_stop(node: NodeName, origin: str, identity: Signer, issued: datetime) -> Envelope:
    """Return a node's own stop of everything, as its journal `origin` begins: each has a text of its own."""
    text = "\n".join(
        (
            f"# {origin} begins: what was done and spent after the backup, nobody knows.",
            f'schema = "{STOP_SCHEMA}"',
            f'policy_id = "{node}"',
            f"issued = {utc_text(issued)}",
            "",
            "[[stops]]",
            'scope = "all"',
            f'reason = "{HISTORY_GAP}"',
            "",
        )
    )
    return sign_stop(text.encode(), identity)


def begins(text: bytes) -> str:
    """Return the origin of the journal that a gap's stop was made for, empty for any other text."""
    found = _BEGINS.match(text)
    return "" if found is None else found[1].decode()


def for_a_gap(stops: Sequence[Stop]) -> bool:
    """Tell whether a document stops just that which a node stops itself."""
    return tuple(stops) == (Stop(scope="all", reason=HISTORY_GAP),)


def lift(change: "Change", stored: Sequence[StoredStop], active: ActivePolicy, signers: list[str]) -> None:
    """End the stops that a policy names, in the transaction that puts it into force."""
    for one in stored:
        if one.lifted is None and one.digest in active.policy.lifted_stops:
            change.lift_stop(one.digest, active.policy.version)
            for stop in parse_stop(decode_envelope(one.envelope).payload).stops:
                body = stop_facts(stop, one.digest) | {"version": active.policy.version, "signers": signers}
                change.log("stop.lifted", body)


def with_stops(reader: "Reader", active: ActivePolicy | None, identity_key: bytes) -> ActivePolicy | None:
    """Return a policy with the stops that hold now.

    Raises:
        StateConflict: `stop-changed`: a stored stop is not the document that was applied.
    """
    if active is None:
        return None
    now = in_force(reader, identity_key).values()
    return replace(active, stops=tuple(stop for stops in now for stop in stops))


def in_force(reader: "Reader", identity_key: bytes) -> dict[Digest, tuple[Stop, ...]]:
    """Return the stop documents that hold now, digest → what it halts.

    Args:
        reader: of this node's state.
        identity_key: this node's, raw Ed25519: a gap's stop is signed with it, or with an earlier one.

    Raises:
        StateConflict: `stop-changed`: a stored stop is not the document that was applied.
    """
    return {
        stored.digest: held(stored, reader, identity_key)[0]
        for stored in reader.stops()
        if stored.lifted is None
    }


def covering(force: "InForce", spec: JobSpec, now: datetime | None) -> Refuse | None:
    """Return why a job that was permitted must not go on: a stop covers it; None where none does.

    Where there are stops, but nobody can tell whom they cover, they cover it.
    """
    active = force.policy
    if active is None or force.roster is None or not (active.stops or active.policy.stops):
        return None
    answer = decide(active, spec, node=force.name, roster=force.roster, now=now)
    if not isinstance(answer, Refuse) or answer.code not in _BEFORE_STOPS:
        return None
    return answer if answer.code == "stopped" else replace(_IN_DOUBT, rule=answer.rule)


_BEFORE_STOPS: Final = frozenset(
    {
        "stopped",
        "clock-untrusted",
        "policy-of-another-node",
        "policy-not-yet-valid",
        "policy-expired",
        "no-quorum-possible",
    }
)
"""A stop's own refusal, and those of policy and clock that `decide` gives before it looks at stops."""

_IN_DOUBT: Final = Refuse(
    "stopped",
    "A stop is in force, and what it covers cannot be told now.",
    "停止令生效中, 目前无法判断其范围。",
    "talk to the department",
    "请联系该部门",
)


def _check_names(stops: Sequence[Stop], policy: Policy | None) -> None:
    """Refuse a stop that would halt nothing: whoever signed it would believe that it does."""
    if policy is None:
        if any(stop.scope not in ("all", "job") for stop in stops):
            raise StateConflict(
                "no policy is in force here, so nobody can tell whom the stop names",
                code="stop-names-nobody",
                hint="stop all, or a job by its id; without a policy nothing is allowed anyway",
            )
        return
    stop = names_nobody(stops, policy)
    if stop is not None:
        raise StateConflict(
            f"the policy in force knows no {stop.scope} {stop.value}: this would stop nothing",
            code="stop-names-nobody",
            hint=f"it knows {', '.join(known_names(stop, policy)) or 'none'}; or stop all",
        )


def held(stored: StoredStop, reader: "Reader", identity_key: bytes) -> tuple[tuple[Stop, ...], list[KeyId]]:
    """Return what a kept stop document halts, and who of those that may signed it; see `in_force`.

    Raises:
        StateConflict: `stop-changed`.
    """
    try:
        envelope = decode_envelope(stored.envelope)
        document = parse_stop(envelope.payload)
        keys = {key for keys in reader.pins().values() for key in keys}
        if for_a_gap(document.stops):
            keys |= {identity_key, *_identities(reader, NodeName(document.policy_id))}
        signers = verify(envelope, STOP, {key_id(key): key for key in keys})
        if envelope.payload_digest == stored.digest:
            return document.stops, sorted(signers)
    except MinshuError:
        pass  # said below: whatever is wrong with it, it is not what was applied
    raise StateConflict(
        "a stop in this node's database is not the one that was applied",
        code="stop-changed",
        hint="stop the node and keep node.db as evidence",
    )


def _identities(reader: "Reader", node: NodeName) -> set[bytes]:
    """Return a node's identity keys by the rosters kept here: a stop outlasts a change of key."""
    rosters = (Roster.decode(decode_envelope(one.envelope).payload) for one in reader.rosters())
    listed = (roster.node(node) for roster in rosters)
    return {line.identity_key for line in listed if line is not None}
