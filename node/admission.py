"""Admissions: what a node says of itself before an attempt, and what it checks of everybody's before it runs.

`prepare` reads the declared columns and nothing else. `check_admissions` stands between a coordinator that
may lie to each node differently and the first byte derived from data (P4): every participant signed the same
job, attempt, roster and participants, and this node's own words are among them unchanged.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from node.answers import question_here
from node.catalogue import rounded
from node.datasets import open_dataset
from node.gate import About, Allowed
from node.mapping import unmapped_of
from node.quality import Look, Preflight, cited
from node.rpc import Attempt
from node.sources import Access, Source, check_unchanged
from node.sources.database import cancelling
from node.sources.drift import check_registered
from node.sources.grouped import can_count, count_there
from node.sources.persistence import persist
from node.sources.words import ReadRows
from node.state import Dataset
from policies.attempts import Agreed, agree, mismatch
from policies.quality import Threshold
from protocols.encoding import canonical_json, sha256_digest
from protocols.envelope import ADMISSION, Signer, sign
from protocols.errors import InputError
from protocols.ids import DatasetName, Digest, NodeName, Role
from protocols.jobs import job_type
from protocols.jobs.job_type import UNIT, Dated, InputBuilder, PreparedInput, Spills, TakesGroups
from protocols.party import Rand
from protocols.resources import Resources
from protocols.wire import Admission, InputSummary, JobSpec, civil_day, parse_utc

SALT_BYTES: Final = 32
QUALITY_SCHEMA: Final = "minshu-quality/2"

_UNABLE: Final = ("source-failed", "source-refused", "bad-value")
"""Codes of a source that may come of a statement rather than of its rows: a function it does not have."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A node's input, ready to run, and what may be said of it. The salt stays here, for auditors.

    Attributes:
        input: None once the party has it.
        question: the digest of what is asked of the data that was read, see `question_here`.
        about: whom its rows are about, as the policy said when they were read.
        mapping: the digest of how its values became codes, see `protocols.codes.record`; None where none do.
        counts: how many rows were read, and how many of them do not count, by reason. Of a dataset whose size
            nobody is told, the quality record does not say it: this stays in the node's database, and is in
            no log.
        looked: how good the dataset was when it was read; None where nobody looked.
        thresholds: how good it had to be, by the policy of then.
        read_because: why a database that can count by itself was read row by row; empty where it counted, or
            cannot. For this node's own log: peers cannot tell which.
    """

    input: PreparedInput | None
    dataset: DatasetName
    summary: InputSummary
    salt: bytes
    quality: bytes
    question: Digest
    about: About | None
    counts: Mapping[str, int]
    mapping: Digest | None = None
    looked: Preflight | None = None
    thresholds: tuple[Threshold, ...] = ()
    read_because: str = ""


@dataclass(frozen=True, slots=True)
class _Taken:
    """A builder that has all it needs, and how it came by it."""

    builder: InputBuilder
    unmapped: Mapping[str, int]
    read_because: str = ""


class _NotCounted(Exception):
    """The source failed to count by itself; it may well hand out its rows."""


def prepare(
    spec: JobSpec,
    role: Role,
    dataset: Dataset,
    access: Access,
    *,
    about: About | None,
    rand: Rand,
    go_on: Callable[[], None],
    cut_by: Callable[[Callable[[], None]], AbstractContextManager[object]] = nullcontext,
    resources: Resources | None = None,
    look: Look | None = None,
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
        cut_by: is given what cuts a reading short, from any thread; its block lasts as long as that may be.
        resources: where a list goes that does not fit into memory; None: it is held there, however long.
        look: how good the dataset has to be, None for nothing; it is read once more where that is not known
            of it as it is.

    Raises:
        InputError: an unknown column or one that is not what was registered, bytes that are no text, a table
            that changed meanwhile or whose database went away more than once, identifiers of which none is
            usable, or what the job type's builder refuses.
        TooLow: the dataset is not as good as the policy asks; no column was read for the job.
    """
    brings = spec.input_of(role)
    assert brings is not None
    asked = job_type(spec.job_type)

    def read(*, counted: bool) -> tuple[_Taken, str, Digest, Preflight | None]:
        opened = open_dataset(dataset, access)
        with cut_by(cancelling(opened)), opened as source:
            # Before the first look: all that is read here is of one state, or nothing of it is used.
            mark, snapshot = source.fingerprint(), source.snapshot()
            question = question_here(spec, snapshot, source)
            looked = None if look is None else look.at(source, dataset, access, rand=rand, go_on=go_on)
            # Identifiers are judged as of the data's own day: the job does not choose whose are valid.
            day = civil_day(parse_utc(snapshot))
            unit = None if about is None else replace(about.unit, as_of=day)

            def make() -> InputBuilder:
                if isinstance(asked, Dated):
                    return asked.builder_as_of(spec, role, unit, day)
                if resources is None or not isinstance(asked, Spills):
                    return asked.builder(spec, role, unit)
                return asked.builder_with(spec, role, unit, resources)

            columns = dict(brings.columns) if about is None else {**brings.columns, UNIT: about.column}
            check_registered(dataset.columns, source.columns(), list(columns.values()))
            taken = _take(make, source, columns, go_on, counted=counted)
            check_unchanged(source, mark)
        return taken, snapshot, question, looked

    try:
        taken, snapshot, question, looked = persist(lambda: read(counted=True), go_on)
    except _NotCounted:
        # A transaction in which a statement failed is over.
        taken, snapshot, question, looked = persist(lambda: read(counted=False), go_on)
    found = taken.builder.finish()
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
    record = dataset.description.mapping_record
    mapping = sha256_digest(record) if record else None
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
            **({"mapping": mapping} if mapping else {}),
            **({} if look is None else cited(looked, dataset, look.now, counts=asked.states_sizes)),
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
    if unmapped := sum(taken.unmapped.values()):
        counts["unmapped"] = unmapped
    return Prepared(
        input=found,
        dataset=brings.dataset,
        summary=summary,
        salt=salt,
        quality=quality,
        question=question,
        about=about,
        counts=counts,
        mapping=mapping,
        looked=looked,
        thresholds=() if look is None else look.thresholds,
        read_because=taken.read_because,
    )


def _take(
    make: Callable[[], InputBuilder],
    source: Source,
    columns: Mapping[str, str],
    go_on: Callable[[], None],
    *,
    counted: bool,
) -> _Taken:
    """Return a builder with all rows: counted by the source where that comes to the same, else read.

    Raises:
        _NotCounted: with `counted`, the source does not know how to count.
        InputError: as `read_into`.
    """
    builder, because = make(), "" if counted else "the database failed to answer in groups"
    if counted and columns and isinstance(builder, TakesGroups) and can_count(source):
        try:
            return _Taken(builder, count_there(builder, source, columns, go_on))
        except ReadRows as error:
            builder, because = make(), str(error)
        except InputError as error:
            if error.code in _UNABLE:
                raise _NotCounted from None
            raise
    read_into(builder, source, columns, go_on)
    # A look at the whole dataset has counted other columns, too.
    unmapped = {name: rows for name, rows in unmapped_of(source).items() if name in columns.values()}
    return _Taken(builder, unmapped, because)


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
