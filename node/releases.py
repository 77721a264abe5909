r"""Releases: how a table becomes sealed bytes, and how they wait until their recipient has them.

Content is an Arrow IPC stream whose schema metadata `minshu` is canonical JSON {"name", "facts",
"statement", "salt"}. It is sealed with the collaboration's suite to the recipient's key, with info =
b"minshu/release/1\0" ‖ release id ‖ b"\0" ‖ job id. The sealed bytes are durable before anything is said
about them, so that after a crash the same bytes are sent again.
"""

import io
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from errno import ENOSPC
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from node.home import write_durably
from node.rpc import Attempt
from node.state import StoredOutput
from protocols.arrow import read_table
from protocols.channel import suites
from protocols.encoding import canonical_json, decode_json, sha256_digest
from protocols.envelope import RELEASE, Signer, sign
from protocols.errors import DecodeError, InputError, ProtocolAborted, Refused, StateConflict
from protocols.ids import NodeName, Organisation
from protocols.jobs.job_type import SUSPECTED, Content, OutputClass, PlannedRelease
from protocols.party import Rand
from protocols.spreadsheet import for_office
from protocols.wire import JobSpec, ReleaseNote, Roster, organisation_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

METADATA_KEY: Final = b"minshu"
BATCH_ROWS: Final = 1 << 16
_MAX_ASCII: Final = 0x7F
_BOM: Final = b"\xef\xbb\xbf"  # office programs read UTF-8 only with this mark
ENDINGS: Final = ("sealed", "note")
"""Of the two files of a release."""
STATEMENTS: Final = {
    OutputClass.AGGREGATE: "统计结果, 已作最小分组、抑制与取整处理 (aggregate, after disclosure control)",
    OutputClass.DIRECTED: SUSPECTED,
    OutputClass.MODEL: "模型参数 (model parameters)",
}


@dataclass(frozen=True, slots=True)
class SealedRelease:
    """One release as it will leave, or stay: sealed bytes, and the signed note that names their digest."""

    planned: PlannedRelease
    release: str
    note: ReleaseNote
    note_envelope: bytes
    sealed: bytes
    rows: int

    def stored(self, attempt: Attempt) -> StoredOutput:
        """Return what the database keeps of it."""
        return StoredOutput(
            release=self.release,
            attempt=attempt,
            name=self.planned.name,
            output_class=self.planned.output_class,
            recipient=self.note.recipient,
            sha256=self.note.sha256,
            note=self.note_envelope,
            stored=False,
            expires=self.note.expires,
        )


def encode_content(content: Content, statement: str, salt: bytes) -> bytes:
    """Return the content as an Arrow IPC stream, in batches of `BATCH_ROWS`.

    Texts are texts, arrays of bytes of one width are UTF-8, and objects are what they are: bytes stay binary.

    `salt` keeps the digest of a small table, which the release note carries in the clear, from being guessed.

    Raises:
        ValueError: columns of different lengths, or bytes that are no UTF-8.
    """
    import pyarrow as pa

    metadata = canonical_json(
        {"name": content.name, "facts": dict(content.facts), "statement": statement, "salt": salt.hex()}
    )
    columns = content.table.columns
    if len({len(values) for values in columns.values()}) > 1:
        raise ValueError("columns of a release differ in length")
    types = {name: _type(values) for name, values in columns.items()}
    sink = io.BytesIO()
    writer = None
    # Batch by batch: Arrow's copy of a list of millions would be as large as the list.
    for start in range(0, content.table.rows or 1, BATCH_ROWS):
        part = slice(start, start + BATCH_ROWS)
        arrays = [_array(values[part], types[name]) for name, values in columns.items()]
        batch = pa.record_batch(arrays, names=list(columns)).replace_schema_metadata({METADATA_KEY: metadata})
        if writer is None:
            writer = pa.ipc.new_stream(sink, batch.schema)
        writer.write_batch(batch)
    if writer is not None:
        writer.close()
    return sink.getvalue()


def _type(values: "npt.NDArray[Any]") -> "pa.DataType":
    """Return the type of a whole column: a batch of nothing but nulls has none of its own."""
    import pyarrow as pa

    match values.dtype.kind:
        case "S" | "U":
            return pa.string()
        case "O":
            return pa.infer_type(values)
    return pa.from_numpy_dtype(values.dtype)


def _array(values: "npt.NDArray[Any]", kind: "pa.DataType") -> "pa.Array":
    """Return a batch of a column; ASCII texts several times as fast as Arrow takes them over."""
    import numpy as np
    import pyarrow as pa

    match values.dtype.kind:
        case "S":
            found = _texts(np.ascontiguousarray(values))
            found.validate(full=True)
            return found
        case "U" if values.dtype.itemsize:
            letters = np.ascontiguousarray(values, values.dtype.newbyteorder("=")).view(np.uint32)
            if not len(letters) or letters.max() <= _MAX_ASCII:
                return _texts(letters.astype(np.uint8).view(f"S{values.dtype.itemsize // 4}"))
    return pa.array(values, kind)


def _texts(values: "npt.NDArray[np.bytes_]") -> "pa.StringArray":
    """Return texts without the zeros that fill them up to one length."""
    import numpy as np
    import pyarrow as pa

    width = values.dtype.itemsize
    letters = values.view(np.uint8).reshape(len(values), width)
    if letters[:, -1].all():
        ends = np.arange(0, len(letters) * width + 1, width, dtype=np.int32)
    else:
        lengths = np.strings.str_len(values)
        ends = np.zeros(len(values) + 1, dtype=np.int32)
        np.cumsum(lengths, out=ends[1:])
        letters = letters[np.arange(width) < lengths[:, None]]
    return pa.StringArray.from_buffers(len(values), pa.py_buffer(ends), pa.py_buffer(letters))


def decode_content(data: bytes) -> tuple["pa.Table", Mapping[str, Any]]:
    """Return table and metadata of `encode_content`'s output.

    Raises:
        InputError: the bytes are no release.
    """
    try:
        table = read_table(data)
        about: Mapping[str, Any] = decode_json((table.schema.metadata or {})[METADATA_KEY])
    except (DecodeError, KeyError):
        raise InputError("the opened bytes are no release", code="bad-release") from None
    return table, about


def release_info(release: str, job: str) -> bytes:
    """Return the HPKE info that binds sealed bytes to their release and job."""
    return b"minshu/release/1\0" + release.encode("ascii") + b"\0" + job.encode("ascii")


@dataclass(frozen=True, slots=True)
class Sealing:
    """What all releases of one attempt share."""

    spec: JobSpec
    attempt: Attempt
    node: NodeName
    roster: Roster
    signer: Signer
    rand: Rand
    now: datetime
    keep_days: int


def seal_all(
    sealing: Sealing, planned: Sequence[PlannedRelease], contents: Sequence[Content]
) -> tuple[SealedRelease, ...]:
    """Seal what a party hands over: exactly the planned releases of this seat, each to its one recipient.

    Raises:
        ProtocolAborted: the party made another set of releases than planned.
        Refused: a recipient this node cannot seal to.
    """
    by_name = {content.name: content for content in contents}
    if len(by_name) != len(contents) or set(by_name) != {p.name for p in planned}:
        raise ProtocolAborted(
            f"the run made {len(contents)} release(s), {len(planned)} other ones were planned and permitted",
            code="unplanned-release",
        )
    return tuple(_seal(sealing, plan, by_name[plan.name]) for plan in planned)


def _seal(sealing: Sealing, plan: PlannedRelease, content: Content) -> SealedRelease:
    statement = STATEMENTS[plan.output_class]
    recipient, public = _recipient(sealing, plan)
    release = sealing.rand(16).hex()
    plain = encode_content(content, statement, sealing.rand(16))
    job = sealing.attempt.job
    sealed = suites.seal(sealing.roster.suite, public, release_info(release, job), plain)
    created = sealing.now.replace(microsecond=0)  # as documents say it, and the journal after them
    note = ReleaseNote(
        release=release,
        job=job,
        attempt=sealing.attempt.number,
        node=sealing.node,
        name=plan.name,
        output_class=plan.output_class,
        recipient=recipient,
        sealed_to=sha256_digest(public),
        suite=sealing.roster.suite,
        sha256=sha256_digest(sealed),
        content_sha256=sha256_digest(plain),
        statement=statement,
        created=created,
        expires=created + timedelta(days=sealing.keep_days),
    )
    envelope = sign(RELEASE, note.encode(), [sealing.signer]).encode()
    return SealedRelease(plan, release, note, envelope, sealed, content.table.rows)


def _recipient(sealing: Sealing, plan: PlannedRelease) -> tuple[Organisation, bytes]:
    """Return who gets a release, and the key to seal it to.

    (1) Class B stays at the node whose organisation it is for. (2) Classes A and C go to the requester.
    """
    # (1)
    if plan.output_class is OutputClass.DIRECTED:
        me = sealing.roster.node(sealing.node)
        if me is None or plan.recipient != organisation_of(sealing.node):
            raise Refused(
                "records would go to another organisation than this node's",
                code="recipient-not-here",
                hint="let the recipient's own node make the list",
            )
        return plan.recipient, me.recipient_key
    # (2)
    analyst = sealing.roster.analyst(sealing.spec.requester)
    if analyst is None or plan.recipient != analyst.organisation:
        raise Refused(
            "the release goes to nobody whose key the roster holds",
            code="recipient-unknown",
            hint="have the requester enrolled in the roster",
        )
    return analyst.organisation, analyst.recipient_key


def keep(folder: Path, release: str, sealed: bytes, note: bytes) -> None:
    """Make the sealed bytes and their note durable.

    Raises:
        StateConflict: the disk refused.
    """
    try:
        write_durably(folder / f"{release}.sealed", sealed)
        write_durably(folder / f"{release}.note", note)
    except OSError as error:
        raise StateConflict(
            f"the release cannot be written ({error.strerror})",
            code="disk-full" if error.errno == ENOSPC else "release-write-failed",
            hint="free disk space; the job may then be tried again",
        ) from None


def discard(folder: Path, release: str) -> None:
    """Remove a release's files. What cannot be removed now, the next start removes."""
    for ending in ENDINGS:
        with suppress(OSError):
            (folder / f"{release}.{ending}").unlink()


def kept(folder: Path, output: StoredOutput) -> bytes:
    """Return the sealed bytes of a committed release, the same as ever.

    Raises:
        StateConflict: they are gone or changed.
    """
    try:
        sealed = (folder / f"{output.release}.sealed").read_bytes()
    except OSError as error:
        raise StateConflict(
            f"a committed release cannot be read ({error.strerror})",
            code="release-lost",
            hint="restore the node's folder; a release is never computed a second time",
        ) from None
    if sha256_digest(sealed) != output.sha256:
        raise StateConflict(
            "a committed release is not the bytes that were committed",
            code="release-damaged",
            hint="restore the node's folder; a release is never computed a second time",
        )
    return sealed


def open_release(sealed: bytes, note: ReleaseNote, private: bytes) -> tuple["pa.Table", Mapping[str, Any]]:
    """Open a release sealed to this node; return its table and metadata.

    Raises:
        DecodeError: the bytes do not open with this key.
        InputError: the opened bytes are not those the note names.
    """
    plain = suites.open_sealed(note.suite, private, release_info(note.release, note.job), sealed)
    if sha256_digest(plain) != note.content_sha256:
        raise InputError("the opened bytes are not those the note names", code="bad-release")
    return decode_content(plain)


def mark_records(table: "pa.Table", statement: str) -> "pa.Table":
    """Return the records with the statement in a column of its own, so that no copy loses it."""
    import pyarrow as pa

    whole, rest = divmod(table.num_rows, BATCH_ROWS)
    batch = pa.repeat(pa.scalar(statement, pa.string()), BATCH_ROWS if whole else rest)
    column = pa.chunked_array([batch] * whole + [batch.slice(0, rest)], pa.string())  # one in memory, often
    return table.append_column("mark", column)


def write_table(table: "pa.Table", out: Path) -> None:
    """Write a table as CSV, or as an Arrow IPC stream where the name ends in .arrow; mode 0600.

    Raises:
        InputError: the file exists already, or cannot be written.
    """
    import pyarrow as pa
    import pyarrow.csv as pa_csv

    sink = io.BytesIO()
    if out.suffix == ".arrow":
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    else:
        sink.write(_BOM)
        # Batch by batch: cells on their way into office programs become Python's.
        for batch in table.to_batches(BATCH_ROWS) or [table.slice(0, 0)]:
            part = for_office(pa.table(batch.columns, names=table.column_names))
            pa_csv.write_csv(part, sink, pa_csv.WriteOptions(include_header=sink.tell() == len(_BOM)))
    if out.exists():
        raise InputError(f"{out.name} exists already", code="file-exists", hint="choose another --out")
    try:
        write_durably(out, sink.getvalue())
    except OSError as error:
        raise InputError(f"{out.name} cannot be written ({error.strerror})", code="file-unwritable") from None
