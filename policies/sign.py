"""Signing a policy or a stop, and the tests that stand between a signed file and what a node obeys.

policy.toml stays a readable file; policy.dsse beside it carries its exact bytes and the signatures. Two
people sign, with keys that the department pinned on its node: no policy can change who may sign policies.
A stop only tightens, so one of them is enough; to lift it takes both, in a policy. What is done with an
accepted document, on disk and in the journal, is the node's part.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from policies.model import ActivePolicy, PinnedSigners, Policy, Stop, StopDocument, StoredPolicy
from policies.parse import ParsedPolicy, parse_policy, parse_stop
from protocols.envelope import POLICY, STOP, Envelope, Signer, decode_envelope, key_id, sign, verify
from protocols.errors import InputError, PolicyInvalid, SignatureInvalid, StateConflict
from protocols.freetext import could_identify
from protocols.ids import Digest, KeyId, NodeName
from protocols.succession import CLOCK_TOLERANCE
from protocols.wire import utc_text

SIGNATURES: Final = 2
"""How many people of different roles activate a policy."""

MAX_STOP_AGE: Final = timedelta(days=7)
"""How long after it was issued a stop may first be applied: an old one that turns up is looked into."""


@dataclass(frozen=True, slots=True)
class SignedStop:
    """A stop document that holds here: what it halts, the digest of its exact bytes, and who signed it."""

    document: StopDocument
    digest: Digest
    role: str
    key: KeyId


def sign_policy(data: bytes, signer: Signer, envelope: Envelope | None = None) -> Envelope:
    """Return `envelope`, or a new one, with one more signature over the exact bytes of policy.toml.

    Args:
        data: policy.toml; it is parsed, because nobody should sign what no node would accept.
        signer: who signs.
        envelope: what others have signed before.

    Raises:
        PolicyInvalid: the policy is wrong.
        InputError: the envelope is over another text, or this key has signed already.
    """
    parse_policy(data)
    if envelope is None:
        return sign(POLICY, data, [signer])
    if envelope.payload_type != POLICY or envelope.payload != data:
        raise InputError(
            "the envelope holds another text than this policy.toml",
            code="other-policy-text",
            hint="sign the text that the others signed, or start a new envelope with --out",
        )
    identifier = key_id(signer.public_key)
    try:
        verify(envelope, POLICY, {identifier: signer.public_key})
    except SignatureInvalid:
        return envelope.with_signature(signer)
    raise InputError(
        "this key has signed the policy already", code="signed-already", hint="the second person signs next"
    )


def check_activation(
    envelope_bytes: bytes,
    pinned: PinnedSigners,
    stored: StoredPolicy | None,
    now: datetime,
    *,
    node: NodeName,
    stops: Mapping[Digest, Sequence[Stop]] | None = None,
) -> ActivePolicy:
    """Return the policy in a signed envelope if it may become the active one.

    (1) It is a policy, signed with pinned keys by people of two different roles; nothing is parsed before.
    (2) The text is a well-formed policy. (3) It is for this node. (4) It is newer than the newest ever
    activated here, and says so: version greater, `previous` the digest of that one. (5) It is valid now.
    (6) It lifts only stops that are in force, and knows every name that the others halt: under a new name the
    same thing would go on.

    Args:
        envelope_bytes: policy.dsse.
        pinned: whose signatures count here.
        stored: the newest policy ever activated here, None where there never was one.
        now: the node's time.
        node: this node.
        stops: the stop documents in force here, digest → what it halts. What the policy returned leaves of
            them, the caller puts into its `stops`.

    Raises:
        DecodeError: not an envelope.
        SignatureInvalid: `wrong-payload-type` or `too-few-signatures`.
        PolicyInvalid: the text is wrong, with its line; `unknown-stop`.
        StateConflict: `policy-of-another-node`, `policy-already-active`, `same-version-other-text`,
            `policy-rollback`, `previous-mismatch`, `policy-expired`, `policy-not-yet-valid`,
            `stopped-name-gone`.
    """
    stops = stops or {}
    parsed = _signed_policy(envelope_bytes, pinned, node)  # (1) (2) (3)
    _check_succession(parsed, stored)  # (4)
    policy = parsed.policy
    # (5)
    if now >= policy.expires:
        raise StateConflict(
            f"the policy expired at {utc_text(policy.expires)}",
            code="policy-expired",
            hint="sign a version whose validity has not ended",
        )
    if now < policy.not_before:
        raise StateConflict(
            f"the policy holds from {utc_text(policy.not_before)} on; until then nothing would be allowed",
            code="policy-not-yet-valid",
            hint="activate it at that time; the present policy goes on until then",
        )
    # (6)
    for index, lifted in enumerate(policy.lifted_stops):
        if lifted not in stops:
            # Later versions need not repeat it: a slip of the pen must not pass for a stop that was lifted.
            parsed.document.fail(
                ("lifted_stops", index),
                "no stop document with this digest is in force here",
                code="unknown-stop",
                hint="remove it; in force: " + (", ".join(sorted(stops)) or "none"),
            )
    for digest, halts in stops.items():
        if digest not in policy.lifted_stops and (stop := names_nobody(halts, policy)) is not None:
            raise StateConflict(
                f"{stop.scope} {stop.value} is stopped here, and this version no longer knows it",
                code="stopped-name-gone",
                hint=f"keep the name, or lift the stop: write {digest} under lifted_stops",
            )
    return ActivePolicy(policy, parsed.digest)


def reopen(
    envelope_bytes: bytes, pinned: PinnedSigners, stored: StoredPolicy, *, node: NodeName
) -> ActivePolicy:
    """Return the policy this node activated before, from its file, as at start-up.

    Expiry is not looked at: `decide` refuses under an expired policy, and says so.

    Raises:
        DecodeError: not an envelope.
        SignatureInvalid: `wrong-payload-type` or `too-few-signatures`.
        PolicyInvalid: the text is wrong, with its line.
        StateConflict: `policy-of-another-node`, or `policy-changed`: the file is not the stored version.
    """
    parsed = _signed_policy(envelope_bytes, pinned, node)
    if (parsed.policy.version, parsed.digest) != (stored.version, stored.digest):
        raise StateConflict(
            f"the policy file is not the version {stored.version} that was activated here",
            code="policy-changed",
            hint="restore policy.dsse as it was activated, or activate a newer version",
        )
    return ActivePolicy(parsed.policy, parsed.digest)


def sign_stop(data: bytes, signer: Signer) -> Envelope:
    """Return a signed stop: an envelope over the exact bytes of a `minshu-stop/1` document.

    Raises:
        PolicyInvalid: the document is wrong, with its line, or `bad-reason`; nobody should sign what no node
            would accept.
    """
    _stop_document(data)
    return sign(STOP, data, [signer])


def check_stop(
    envelope_bytes: bytes,
    pinned: PinnedSigners,
    now: datetime,
    *,
    node: NodeName,
    known: Container[Digest],
) -> SignedStop:
    """Return the stop in a signed envelope if it is to be applied here.

    (1) It is a stop, signed with a pinned key of any role: a stop only tightens; nothing is parsed before.
    (2) The text is a well-formed stop document, whose reasons name nobody: requesters read them. (3) It is
    for this node. (4) It was issued by now, and within the last seven days. (5) It was not applied here
    before, or it would come back after it was lifted.

    Args:
        envelope_bytes: stop.dsse.
        pinned: whose signatures count here.
        now: the node's time.
        node: this node.
        known: digests of every stop ever applied here, lifted ones included.

    Raises:
        DecodeError: not an envelope.
        SignatureInvalid: `wrong-payload-type` or `too-few-signatures`.
        PolicyInvalid: the text is wrong, with its line; `bad-reason`.
        StateConflict: `stop-of-another-node`, `stop-not-yet-valid`, `stop-too-old`, `stop-applied-before`.
    """
    envelope = decode_envelope(envelope_bytes)
    # (1)
    if envelope.payload_type != STOP:
        raise SignatureInvalid(
            f"the document is signed as another type than {STOP}",
            code="wrong-payload-type",
            hint="make it with minshu-policy stop; a policy is activated instead",
        )
    role, key = next(
        (
            (role, min(signed))
            for role in sorted(pinned.roles)
            if (signed := _signed_by(envelope, STOP, pinned.roles[role]))
        ),
        ("", KeyId("")),
    )
    if not role:
        raise SignatureInvalid(
            "the stop is signed by nobody whose key is pinned here, one signature is needed",
            code="too-few-signatures",
            hint="have one of these sign it with minshu-policy stop: "
            + (", ".join(sorted(pinned.roles)) or "nobody is pinned yet"),
        )
    document = _stop_document(envelope.payload)  # (2)
    digest = envelope.payload_digest
    # (3)
    if document.policy_id != node:
        raise StateConflict(
            f"the stop is for {document.policy_id}, this node is {node}",
            code="stop-of-another-node",
            hint=f"make one with --node {node}, if this node is meant",
        )
    # (4)
    if document.issued > now + CLOCK_TOLERANCE:
        raise StateConflict(
            f"the stop was issued at {utc_text(document.issued)}, which is later than this node's clock",
            code="stop-not-yet-valid",
            hint="synchronise the clocks, or make the stop again",
        )
    if document.issued < now - MAX_STOP_AGE:
        raise StateConflict(
            f"the stop was issued at {utc_text(document.issued)}, more than {MAX_STOP_AGE.days} days ago",
            code="stop-too-old",
            hint="make it again if it is still meant",
        )
    # (5)
    if digest in known:
        raise StateConflict(
            "this stop was applied here before",
            code="stop-applied-before",
            hint="if it was lifted and is to hold again, make a new one",
        )
    return SignedStop(document, digest, role, key)


def _stop_document(data: bytes) -> StopDocument:
    document = parse_stop(data)
    if any(could_identify(stop.reason) for stop in document.stops):
        raise PolicyInvalid(
            "the reason of a stop has a number that could be an identifier",
            code="bad-reason",
            hint="every requester it stops reads the reason: name no person",
        )
    return document


def names_nobody(stops: Sequence[Stop], policy: Policy) -> Stop | None:
    """Return the first stop of a requester, purpose or dataset that a policy does not know, None for none."""
    for stop in stops:
        if stop.scope in ("requester", "purpose", "dataset") and stop.value not in known_names(stop, policy):
            return stop
    return None


def known_names(stop: Stop, policy: Policy) -> list[str]:
    """Return the names in a policy that a stop of this scope can name; none for all and for a job."""
    match stop.scope:
        case "requester":
            return sorted(policy.requesters)
        case "purpose":
            return sorted(policy.purposes)
        case "dataset":
            return sorted(policy.datasets)
    return []


def _signed_policy(envelope_bytes: bytes, pinned: PinnedSigners, node: NodeName) -> ParsedPolicy:
    envelope = decode_envelope(envelope_bytes)
    if envelope.payload_type != POLICY:
        raise SignatureInvalid(
            f"the document is signed as another type than {POLICY}",
            code="wrong-payload-type",
            hint="sign policy.toml with minshu-policy sign",
        )
    roles = [role for role in sorted(pinned.roles) if _signed_by(envelope, POLICY, pinned.roles[role])]
    if len(roles) < SIGNATURES:
        raise SignatureInvalid(
            f"signed by {len(roles)} of the pinned roles ({', '.join(roles) or 'none'}), "
            f"{SIGNATURES} different ones needed",
            code="too-few-signatures",
            hint="have the missing person sign with minshu-policy sign; pinned roles: "
            + ", ".join(sorted(pinned.roles)),
        )
    parsed = parse_policy(envelope.payload)
    if parsed.policy.policy_id != node:
        raise StateConflict(
            f"the policy is for {parsed.policy.policy_id}, this node is {node}",
            code="policy-of-another-node",
            hint=f'write policy_id = "{node}", if the policy is meant for this node',
        )
    return parsed


def _signed_by(envelope: Envelope, payload_type: str, keys: tuple[bytes, ...]) -> frozenset[KeyId]:
    """Return which of `keys` signed, by id; none where nobody did."""
    try:
        return verify(envelope, payload_type, {key_id(key): key for key in keys})
    except SignatureInvalid:
        return frozenset()


def _check_succession(parsed: ParsedPolicy, stored: StoredPolicy | None) -> None:
    version, previous = parsed.policy.version, parsed.policy.previous
    if stored is not None and version < stored.version:
        raise StateConflict(
            f"version {version} is older than version {stored.version}, which was activated here",
            code="policy-rollback",
            hint=f"write a version {stored.version + 1}",
        )
    if stored is not None and version == stored.version:
        if parsed.digest == stored.digest:
            raise StateConflict(
                f"version {version} is active already, nothing changed", code="policy-already-active"
            )
        raise StateConflict(
            f"another text was activated here as version {version}",
            code="same-version-other-text",
            hint=f"give the new text version {version + 1}",
        )
    expected = stored.digest if stored is not None else None
    if previous != expected:
        raise StateConflict(
            f"previous does not name the policy before it, which is {expected}"
            if expected is not None
            else f"no policy was ever activated here, but this is version {version} with a previous one",
            code="previous-mismatch",
            hint=f'write previous = "{expected}"'
            if expected is not None
            else "start with version 1, or restore this node's journal and policy from its backup",
        )
