"""Admissions: what a node says of itself before an attempt, and what it checks of everybody's before it runs.

`prepare` reads the declared columns and nothing else. `check_admissions` stands between a coordinator that
may lie to each node differently and the first byte derived from data (P4): every participant signed the same
job, attempt, roster and participants, and this node's own words are among them unchanged.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from node.gate import Allowed
from node.rpc import Attempt
from node.sources import ReadLimits, Source, open_source
from node.state import Dataset
from policies.decide import check_merged
from protocols.channel import suites
from protocols.encoding import canonical_json, sha256_digest
from protocols.envelope import ADMISSION, Signer, decode_envelope, key_id, sign, verify
from protocols.errors import DecodeError, InputError, ProtocolAborted, SignatureInvalid
from protocols.ids import DatasetName, NodeName, Role
from protocols.jobs import job_type
from protocols.jobs.job_type import InputBuilder, PreparedInput
from protocols.party import Rand
from protocols.wire import Admission, Constraints, InputSummary, JobSpec, context, strictest

SALT_BYTES: Final = 32
QUALITY_SCHEMA: Final = "minshu-quality/1"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A node's input, ready to run, and what may be said of it. The salt stays here, for auditors."""

    input: PreparedInput
    dataset: DatasetName
    summary: InputSummary
    salt: bytes
    quality: bytes


def prepare(
    spec: JobSpec, role: Role, dataset: Dataset, limits: ReadLimits, *, rand: Rand, go_on: Callable[[], None]
) -> Prepared:
    """Read what `role` brings and prepare it.

    Args:
        spec: the job.
        role: this node's seat.
        dataset: the catalogue entry that the job's dataset is.
        limits: for reading.
        rand: for salts.
        go_on: called between batches; raises when the attempt is over.

    Raises:
        InputError: an unknown column, bytes that are no text, or identifiers of which none is usable.
    """
    brings = spec.input_of(role)
    assert brings is not None
    source = open_source(dataset.path, limits)
    builder = job_type(spec.job_type).builder(spec, role)
    snapshot = source.snapshot()
    read_into(builder, source, brings.columns, go_on)
    found = builder.finish()
    reasons = dict(found.quality())
    if found.rows and not found.distinct_keys:
        most = max(reasons, key=lambda code: reasons[code], default="unknown")
        raise InputError(
            f"none of the dataset's rows has a usable key, most often: {most}",
            code="no-usable-key",
            hint="check which column holds the identifiers, and that it is stored as text",
        )
    salt = rand(SALT_BYTES)
    # The record has its own salt: counts are easily guessed, and its digest is seen by every participant.
    quality = canonical_json(
        {
            "schema": QUALITY_SCHEMA,
            "dataset": dataset.name,
            "snapshot": snapshot,
            "rows": found.rows,
            "distinct_keys": found.distinct_keys,
            "rejected": reasons,
            "rule_version": found.rule_version,
            "salt": rand(SALT_BYTES).hex(),
        }
    )
    summary = InputSummary(
        rows=found.rows,
        distinct_keys=found.distinct_keys,
        catalogue_keys=dataset.published_keys,
        commitment=found.commitment(salt),
        snapshot=snapshot,
        quality_sha256=sha256_digest(quality),
        rule_version=found.rule_version,
    )
    return Prepared(found, brings.dataset, summary, salt, quality)


def read_into(
    builder: InputBuilder, source: Source, columns: Mapping[str, str], go_on: Callable[[], None]
) -> None:
    """Feed the declared columns, slot by slot, batch by batch; nothing else is read."""
    slots = sorted(columns)
    wanted = list(dict.fromkeys(columns[slot] for slot in slots))
    for batch in source.read(wanted):
        go_on()
        builder.add({slot: batch.column(columns[slot]) for slot in slots})


def make_admission(
    allowed: Allowed,
    attempt: Attempt,
    node: NodeName,
    *,
    prepared: Prepared | None,
    key: bytes,
    until: datetime,
) -> Admission:
    """Return this node's words on one attempt; `key` is the public half of a key for this attempt alone."""
    return Admission(
        job=attempt.job,
        attempt=attempt.number,
        node=node,
        suite=allowed.roster.suite,
        key=key,
        roster_digest=allowed.roster.digest,
        participants=dict(allowed.spec.roles),
        policy_version=allowed.active.policy.version,
        policy_digest=allowed.active.digest,
        rule=allowed.permit.rule,
        constraints=allowed.permit.terms.constraints,
        inputs={} if prepared is None else {prepared.dataset: prepared.summary},
        not_after=until,
    )


def seal_admission(admission: Admission, signer: Signer) -> bytes:
    """Return the signed admission, an envelope."""
    return sign(ADMISSION, admission.encode(), [signer]).encode()


@dataclass(frozen=True, slots=True)
class Agreed:
    """What all participants have agreed on for one attempt."""

    admissions: Mapping[Role, Admission]
    ctx: bytes
    constraints: Constraints
    inputs: Mapping[Role, InputSummary]


def check_admissions(
    envelopes: Sequence[bytes],
    own: bytes,
    allowed: Allowed,
    attempt: Attempt,
    *,
    node: NodeName,
    now: datetime,
) -> Agreed:
    """Return what everybody's admissions agree on.

    (1) This node's own admission is among them, byte for byte. (2) Each is signed by the identity key that
    the roster gives for the node it names. (3) One per participant, of nobody else. (4) All name this job,
    attempt, roster, suite and these participants, and none has run out. (5) Each speaks of exactly the
    dataset that its seat brings. (6) The strictest constraints of all are at least this node's own, and the
    job satisfies them. (7) The job type's own guards on sizes hold.

    Args:
        envelopes: as the coordinator handed them out.
        own: the envelope this node handed in.
        allowed: what this node decided, again, just now.
        attempt: the attempt it is about.
        node: this node.
        now: the clock.

    Raises:
        ProtocolAborted: `admission-mismatch` or another code that says what does not hold.
    """
    spec = allowed.spec
    # (1)
    if own not in envelopes:
        raise _mismatch("this node's own admission is not among those handed out")
    found: dict[Role, Admission] = {}
    for data in envelopes:
        admission, role = _open(data, allowed)  # (2)
        if role in found:
            raise _mismatch(f"{role} has two admissions")
        _compare(admission, role, allowed, attempt, now)  # (4) (5)
        found[role] = admission
    # (3)
    if set(found) != set(spec.roles):
        raise _mismatch(f"{len(found)} admissions for {len(spec.roles)} participants")
    inputs = {role: s for role, a in found.items() for s in a.inputs.values()}
    merged = strictest(found[role].constraints for role in sorted(found))
    # (6)
    refused = check_merged(allowed.permit, merged, spec)
    if refused is not None:
        raise ProtocolAborted(refused.sentence, code=refused.code, hint=refused.hint)
    # (7)
    job_type(spec.job_type).check_inputs(spec, inputs, merged)
    assert node in spec.roles.values()
    return Agreed(found, context(found.values()), merged, inputs)


def _open(data: bytes, allowed: Allowed) -> tuple[Admission, Role]:
    """Return an admission and the seat of the node that signed it; nothing is parsed before that."""
    spec, roster = allowed.spec, allowed.roster
    seats = {}
    for role, name in spec.roles.items():
        listed = roster.node(name)
        if listed is not None:
            seats[key_id(listed.identity_key)] = (role, name, listed.identity_key)
    try:
        envelope = decode_envelope(data)
        signers = verify(envelope, ADMISSION, {identifier: key for identifier, (_, _, key) in seats.items()})
        admission = Admission.decode(envelope.payload)
    except (DecodeError, SignatureInvalid) as error:
        raise _mismatch(f"an admission does not verify ({error.code})") from None
    role, name, _ = seats[min(signers)]
    if len(signers) != 1 or admission.node != name:
        raise _mismatch("an admission is not signed by the node it names")
    return admission, role


def _compare(admission: Admission, role: Role, allowed: Allowed, attempt: Attempt, now: datetime) -> None:
    spec, roster = allowed.spec, allowed.roster
    if (admission.job, admission.attempt) != (attempt.job, attempt.number):
        raise _mismatch(f"the admission of {role} is for another job or attempt")
    if admission.roster_digest != roster.digest or admission.suite != roster.suite:
        raise _mismatch(f"{role} goes by another roster than this node")
    if dict(admission.participants) != dict(spec.roles):
        raise _mismatch(f"{role} was told of other participants than this node")
    if admission.not_after <= now:
        raise ProtocolAborted(
            f"the admission of {role} has run out",
            code="admission-expired",
            hint="the nodes' clocks differ, or the start was delayed; try again",
        )
    brings = spec.input_of(role)
    if set(admission.inputs) != ({brings.dataset} if brings is not None else set()):
        raise _mismatch(f"{role} speaks of other datasets than the job gives it")
    try:
        suites.seal(admission.suite, admission.key, b"", b"")
    except (DecodeError, InputError, ValueError):
        raise _mismatch(f"{role} gave a key that is none of the roster's suite") from None


def _mismatch(what: str) -> ProtocolAborted:
    return ProtocolAborted(
        what,
        code="admission-mismatch",
        hint="the coordinator told the nodes different things; compare the nodes' journals",
    )
