"""Admissions: what a node says of itself before an attempt, and what it checks of everybody's before it runs.

`prepare` reads the declared columns and nothing else. `check_admissions` stands between a coordinator that
may lie to each node differently and the first byte derived from data (P4): every participant signed the same
job, attempt, roster and participants, and this node's own words are among them unchanged.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from node.answers import question_here
from node.catalogue import rounded
from node.datasets import open_dataset
from node.gate import About, Allowed
from node.rpc import Attempt
from node.sources import Access, Source
from node.state import Dataset
from policies.attempts import Agreed, agree, mismatch
from protocols.encoding import canonical_json, sha256_digest
from protocols.envelope import ADMISSION, Signer, sign
from protocols.errors import InputError
from protocols.ids import DatasetName, Digest, NodeName, Role
from protocols.jobs import job_type
from protocols.jobs.job_type import UNIT, InputBuilder, PreparedInput
from protocols.party import Rand
from protocols.wire import Admission, InputSummary, JobSpec, parse_utc

SALT_BYTES: Final = 32
QUALITY_SCHEMA: Final = "minshu-quality/1"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A node's input, ready to run, and what may be said of it. The salt stays here, for auditors.

    Attributes:
        input: None once the party has it.
        question: the digest of what is asked of the data that was read, see `question_here`.
        about: whom its rows are about, as the policy said when they were read.
        counts: how many rows were read, and how many of them do not count, by reason. Of a dataset whose size
            nobody is told, the quality record does not say it: this stays in the node's database, and is in
            no log.
    """

    input: PreparedInput | None
    dataset: DatasetName
    summary: InputSummary
    salt: bytes
    quality: bytes
    question: Digest
    about: About | None
    counts: Mapping[str, int]


def prepare(
    spec: JobSpec,
    role: Role,
    dataset: Dataset,
    access: Access,
    *,
    about: About | None,
    rand: Rand,
    go_on: Callable[[], None],
) -> Prepared:
    """Read what `role` brings and prepare it.

    Args:
        spec: the job.
        role: this node's seat.
        dataset: the catalogue entry that the job's dataset is.
        access: how datasets are read.
        about: whom a row is about, see `node.gate.about_of`.
        rand: for salts.
        go_on: called between batches; raises when the attempt is over.

    Raises:
        InputError: an unknown column, bytes that are no text, a file that changed meanwhile, identifiers of
            which none is usable, or what the job type's builder refuses.
    """
    brings = spec.input_of(role)
    assert brings is not None
    asked = job_type(spec.job_type)
    with open_dataset(dataset, access) as source:
        snapshot = source.snapshot()
        # Identifiers are judged as of the data's own day: the job does not choose whose are valid.
        unit = None if about is None else replace(about.unit, as_of=parse_utc(snapshot).date())
        builder = asked.builder(spec, role, unit)
        question = question_here(spec, snapshot, source)
        columns = dict(brings.columns) if about is None else {**brings.columns, UNIT: about.column}
        read_into(builder, source, columns, go_on)
        if question_here(spec, snapshot, source) != question:
            raise InputError(
                "the dataset's file changed while it was read",
                code="changed-while-reading",
                hint="replace the file in one step (write aside, then rename) and run the job again",
            )
    found = builder.finish()
    reasons = dict(found.quality())
    if asked.states_sizes and found.rows and not found.distinct_keys:
        most = max(reasons, key=lambda code: reasons[code], default="unknown")
        raise InputError(
            f"none of the dataset's rows has a usable key, most often: {most}",
            code="no-usable-key",
            hint="check which column holds the identifiers, and that it is stored as text",
        )
    salt = rand(SALT_BYTES)
    # What others are told of a dataset's size: what it is, or what the catalogue says of it anyway.
    rows = found.rows if asked.states_sizes else rounded(dataset.rows)
    distinct = found.distinct_keys if asked.states_sizes else dataset.published_keys
    # The record has its own salt: counts are easily guessed, and its digest is seen by every participant.
    quality = canonical_json(
        {
            "schema": QUALITY_SCHEMA,
            "dataset": dataset.name,
            "snapshot": snapshot,
            "rows": rows,
            "distinct_keys": distinct,
            **({"rejected": reasons} if asked.states_sizes else {}),
            "rule_version": found.rule_version,
            "salt": rand(SALT_BYTES).hex(),
        }
    )
    summary = InputSummary(
        rows=rows,
        distinct_keys=distinct,
        catalogue_keys=dataset.published_keys,
        commitment=found.commitment(salt),
        snapshot=snapshot,
        quality_sha256=sha256_digest(quality),
        rule_version=found.rule_version,
    )
    counts = {"rows": found.rows, "distinct-keys": found.distinct_keys, **reasons}
    return Prepared(found, brings.dataset, summary, salt, quality, question, about, counts)


def read_into(
    builder: InputBuilder, source: Source, columns: Mapping[str, str], go_on: Callable[[], None]
) -> None:
    """Feed the declared columns, slot by slot, batch by batch; nothing else is read.

    Raises:
        InputError: as `Source.read`; or no column is declared.
    """
    if not columns:
        raise InputError(
            "the job reads no column of this dataset",
            code="no-columns",
            hint="ask for an axis or a filter; how many rows there are, the catalogue says",
        )
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


def check_admissions(
    envelopes: Sequence[bytes],
    own: bytes,
    allowed: Allowed,
    attempt: Attempt,
    *,
    now: datetime,
) -> Agreed:
    """Return what everybody's admissions agree on.

    This node's own admission is among them, byte for byte; and see `policies.attempts.agree`.

    Args:
        envelopes: as the coordinator handed them out.
        own: the envelope this node handed in.
        allowed: what this node decided, again, just now.
        attempt: the attempt it is about.
        now: the clock.

    Raises:
        ProtocolAborted: `admission-mismatch` or another code that says what does not hold.
    """
    if own not in envelopes:
        raise mismatch("this node's own admission is not among those handed out")
    return agree(
        envelopes,
        spec=allowed.spec,
        roster=allowed.roster,
        attempt=attempt.number,
        permit=allowed.permit,
        now=now,
    )
