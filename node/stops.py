"""Stops: a halt that one person signs, kept until a policy with two signatures lifts it.

What was applied once is remembered, so a stop neither vanishes with a restart nor comes back after it was
lifted. Each application and each lifting is a journal entry in the same transaction.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from node.journal import named
from node.state import State, StoredStop
from policies.decide import decide
from policies.decision import Refuse
from policies.model import ActivePolicy, PinnedSigners, Policy, Stop
from policies.parse import parse_stop
from policies.sign import SignedStop, check_stop, known_names, names_nobody
from protocols.encoding import sha256_digest
from protocols.envelope import STOP, decode_envelope, key_id, verify
from protocols.errors import MinshuError, StateConflict
from protocols.ids import Digest
from protocols.wire import JobSpec

if TYPE_CHECKING:
    from node.activation import InForce
    from node.state import Change, Reader


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
        for stop in signed.document.stops:
            body = _said(stop, signed.digest)
            body |= {"signers": [signed.key], "envelope_sha256": sha256_digest(envelope)}
            change.log("stop.applied", body, actor=signed.key)
    force.policy = with_stops(state, force.policy)
    return signed


def lift(change: "Change", stored: Sequence[StoredStop], active: ActivePolicy, signers: list[str]) -> None:
    """End the stops that a policy names, in the transaction that puts it into force."""
    for one in stored:
        if one.lifted is None and one.digest in active.policy.lifted_stops:
            change.lift_stop(one.digest, active.policy.version)
            for stop in parse_stop(decode_envelope(one.envelope).payload).stops:
                body = _said(stop, one.digest) | {"version": active.policy.version, "signers": signers}
                change.log("stop.lifted", body)


def with_stops(reader: "Reader", active: ActivePolicy | None) -> ActivePolicy | None:
    """Return a policy with the stops that hold now.

    Raises:
        StateConflict: `stop-changed`: a stored stop is not the document that was applied.
    """
    if active is None:
        return None
    return replace(active, stops=tuple(stop for stops in in_force(reader).values() for stop in stops))


def in_force(reader: "Reader") -> dict[Digest, tuple[Stop, ...]]:
    """Return the stop documents that hold now, digest → what it halts.

    Raises:
        StateConflict: `stop-changed`: a stored stop is not the document that was applied.
    """
    pinned = [key for keys in reader.pins().values() for key in keys]
    return {stored.digest: _held(stored, pinned) for stored in reader.stops() if stored.lifted is None}


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
    {"stopped", "clock-untrusted", "policy-of-another-node", "policy-not-yet-valid", "policy-expired"}
)
"""A stop's own refusal, and those that `decide` gives before it looks at stops."""

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


def _held(stored: StoredStop, pinned: Sequence[bytes]) -> tuple[Stop, ...]:
    try:
        envelope = decode_envelope(stored.envelope)
        verify(envelope, STOP, {key_id(key): key for key in pinned})
        if envelope.payload_digest == stored.digest:
            return parse_stop(envelope.payload).stops
    except MinshuError:
        pass  # said below: whatever is wrong with it, it is not what was applied
    raise StateConflict(
        "a stop in this node's database is not the one that was applied",
        code="stop-changed",
        hint="stop the node and keep node.db as evidence",
    )


def _said(stop: Stop, digest: Digest) -> dict[str, Any]:
    """Return what an entry says of one halt; a subject that is no name goes in as its digest."""
    subject = {} if stop.value is None else {"subject": named(stop.value)}
    return {"scope": stop.scope, "sha256": digest, **subject}
