"""What goes over the wire, as frozen values; and the one table between our errors and gRPC's statuses.

`read_control` is the only way in for what a node says: an unknown kind, a malformed id or a number out of
range is refused there, and past it nothing is checked twice. Errors travel as a status, the sentence as its
details, and code and hint in trailing metadata.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, NoReturn

import grpc

from coordinator.lifecycle import JobState, RunState
from coordinator.metering import rho_text
from coordinator.store import JobRecord, StoredOutcome, StoredRelease, Usage
from minshu.v1 import audit_pb2, jobs_pb2, relay_pb2
from protocols.errors import (
    DecodeError,
    InputError,
    MinshuError,
    PolicyInvalid,
    ProtocolAborted,
    Refused,
    SignatureInvalid,
    StateConflict,
    Unreachable,
)
from protocols.figures import checked
from protocols.ids import Digest, JobId, NodeName
from protocols.wire import utc_text

PROTOCOL_VERSION: Final = 1
MAX_PIECE_BYTES: Final = 1 << 20
MAX_ATTEMPT: Final = 1 << 20
MAX_LIVE: Final = 1024
MAX_TEXT: Final = 2048
MAX_NAME: Final = 200
_MAX_COUNT: Final = 2**64 - 1

CODE_KEY: Final = "minshu-code"
HINT_KEY: Final = "minshu-hint-bin"

_JOB = re.compile(r"sha256:[0-9a-f]{64}")
_ID = re.compile(r"[0-9a-f]{32}")
_CODE = re.compile(r"(?=.{0,80}\Z)(?!.*\d{11})(?:[a-z][a-z0-9]*(?:[-.][a-z0-9]+)*)?")
_REPORTED: Final = frozenset(
    {RunState.DONE, RunState.REFUSED, RunState.FAILED, RunState.CANCELLED, RunState.TIMED_OUT}
)

STATUSES: Final[Sequence[tuple[type[MinshuError], grpc.StatusCode]]] = (
    (InputError, grpc.StatusCode.INVALID_ARGUMENT),
    (DecodeError, grpc.StatusCode.INVALID_ARGUMENT),
    (PolicyInvalid, grpc.StatusCode.INVALID_ARGUMENT),
    (SignatureInvalid, grpc.StatusCode.UNAUTHENTICATED),
    (Refused, grpc.StatusCode.PERMISSION_DENIED),
    (ProtocolAborted, grpc.StatusCode.ABORTED),
    (StateConflict, grpc.StatusCode.FAILED_PRECONDITION),
    (Unreachable, grpc.StatusCode.UNAVAILABLE),
    (MinshuError, grpc.StatusCode.INTERNAL),
)
"""A status for every branch of the error tree; the other side makes the first branch of a status of it."""

STATUSES_BY_CODE: Final[Mapping[str, grpc.StatusCode]] = {
    "unknown-job": grpc.StatusCode.NOT_FOUND,
    "unknown-release": grpc.StatusCode.NOT_FOUND,
    "too-long": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "too-many-jobs": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "too-many-questions": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "too-many-outcomes": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "too-many-renewals": grpc.StatusCode.RESOURCE_EXHAUSTED,
}
"""Reason codes that have a status of their own."""

_ERRORS: Final[Mapping[grpc.StatusCode, type[MinshuError]]] = {
    status: kind for kind, status in reversed(STATUSES)
} | {grpc.StatusCode.NOT_FOUND: InputError, grpc.StatusCode.RESOURCE_EXHAUSTED: Refused}

_HINTS: Final[Mapping[str, str]] = {
    "unknown-schema": "another version of Minshu made the document; update the older side and make it again",
}
"""What to do about errors that know no way out where they are raised."""

_MAX_TRAILER: Final = 500
"""Characters of a sentence or hint in an error: trailing metadata is small."""


def status_of(error: MinshuError) -> grpc.StatusCode:
    """Return the status that an error travels as."""
    by_code = STATUSES_BY_CODE.get(error.code)
    return by_code or next(status for kind, status in STATUSES if isinstance(error, kind))


def hint_of(error: MinshuError) -> str:
    """Return what to do about an error."""
    return error.hint or _HINTS.get(error.code, "")


async def abort(context: "grpc.aio.ServicerContext[Any, Any]", error: MinshuError) -> NoReturn:
    """End a call with an error."""
    await context.abort(
        status_of(error),
        error.message[:_MAX_TRAILER],
        ((CODE_KEY, error.code), (HINT_KEY, hint_of(error)[:_MAX_TRAILER].encode("utf-8"))),
    )
    raise AssertionError  # abort raises


def error_of(error: grpc.RpcError) -> MinshuError:
    """Return the error that a failed call carries."""
    status: grpc.StatusCode = error.code()
    # A trailer is a pair (key, value); the stubs do not say so.
    trailers: Any = error.trailing_metadata() or ()
    metadata: dict[str, Any] = dict(trailers)
    code, hint = metadata.get(CODE_KEY), metadata.get(HINT_KEY, b"")
    if isinstance(code, str) and _CODE.fullmatch(code) and isinstance(hint, bytes):
        kind = _ERRORS.get(status, MinshuError)
        return kind(
            str(error.details() or "")[:MAX_TEXT], code=code, hint=hint.decode("utf-8", "replace")[:MAX_TEXT]
        )
    match status:
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.DEADLINE_EXCEEDED | grpc.StatusCode.CANCELLED:
            return Unreachable(
                "the coordinator cannot be reached, or its certificate is not the one expected",
                hint="check the network, and that the coordinator is running; then try again",
            )
        case grpc.StatusCode.RESOURCE_EXHAUSTED if "larger than max" in str(error.details()):
            return Refused(
                "the message is longer than the coordinator accepts",
                code="too-long",
                hint="a job names datasets and columns, it carries no data",
            )
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return Unreachable(
                "the coordinator has too many calls open",
                code="too-many-calls",
                hint="try again in a moment; if it stays so, tell the coordinator's operator",
            )
        case grpc.StatusCode.UNIMPLEMENTED:
            return Refused(
                "the coordinator does not know this call",
                code="unknown-method",
                hint="coordinator and SDK are of different versions; update the older one",
            )
    return MinshuError(f"the coordinator failed with status {status.name}")


# -- what nodes say ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at executing a job."""

    job: JobId
    number: int


@dataclass(frozen=True, slots=True)
class Hello:
    """The first message of a control stream."""

    node: NodeName
    roster_version: int
    catalogue: bytes
    live: frozenset[Attempt]


@dataclass(frozen=True, slots=True)
class Answer:
    """A signed verdict."""

    attempt: Attempt
    verdict: bytes


@dataclass(frozen=True, slots=True)
class AdmittedMessage:
    """A signed admission."""

    attempt: Attempt
    admission: bytes


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is: `done` of `total` units of `phase`, and figures that everybody may see."""

    attempt: Attempt
    phase: str
    done: int
    total: int
    figures: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunEnd:
    """How a run ended."""

    attempt: Attempt
    state: RunState
    code: str
    sentence: str
    hint: str


@dataclass(frozen=True, slots=True)
class Piece:
    """One piece of a sealed release; `note` is an envelope, in the first piece only."""

    attempt: Attempt
    release: str
    note: bytes
    offset: int
    data: bytes
    last: bool


@dataclass(frozen=True, slots=True)
class Explained:
    """A signed dry answer to the question `id`."""

    id: str
    verdict: bytes


@dataclass(frozen=True, slots=True)
class OutcomeFiled:
    """A signed outcome."""

    outcome: bytes


@dataclass(frozen=True, slots=True)
class KeyRotation:
    """A signed announcement of the node's next identity key."""

    rotation: bytes


@dataclass(frozen=True, slots=True)
class Letter:
    """A letter as a node handed it in: `to` is whom it is for, `plain` what is passed on."""

    id: str
    to: NodeName
    plain: audit_pb2.Letter


Message = (
    Hello
    | Answer
    | AdmittedMessage
    | Progress
    | RunEnd
    | Piece
    | Explained
    | OutcomeFiled
    | KeyRotation
    | Letter
)


def read_control(message: relay_pb2.ControlRequest) -> Message:
    """Return what a node says.

    Raises:
        DecodeError: a kind or version this coordinator does not know, or a field without its form.
    """
    match message.WhichOneof("kind"):
        case "hello":
            return _hello(message.hello)
        case "answer":
            return Answer(read_attempt(message.answer.attempt), message.answer.verdict)
        case "admitted":
            return AdmittedMessage(read_attempt(message.admitted.attempt), message.admitted.admission)
        case "progress":
            step = message.progress
            return Progress(
                read_attempt(step.attempt),
                _text(step.phase, 64),
                step.done,
                step.total,
                checked(step.figures),
            )
        case "ended":
            return _ended(message.ended)
        case "upload":
            piece = message.upload
            if not _ID.fullmatch(piece.release) or len(piece.piece) > MAX_PIECE_BYTES:
                raise _bad("an upload has no release id of 32 hex digits, or a piece above 1 MiB")
            return Piece(
                read_attempt(piece.attempt), piece.release, piece.note, piece.offset, piece.piece, piece.last
            )
        case "explained":
            if not _ID.fullmatch(message.explained.id):
                raise _bad("a dry answer has no id of 32 hex digits")
            return Explained(message.explained.id, message.explained.verdict)
        case "outcome":
            return OutcomeFiled(message.outcome.outcome)
        case "rotation":
            return KeyRotation(message.rotation.rotation)
        case "letter":
            return _letter(message.letter)
    raise DecodeError(
        "the node sent a message of an unknown kind",
        code="unknown-message",
        hint="update the coordinator: the node speaks a newer protocol",
    )


def read_attempt(message: relay_pb2.Attempt) -> Attempt:
    """Return a job and an attempt.

    Raises:
        DecodeError: they do not have their form.
    """
    if not _JOB.fullmatch(message.job) or not 1 <= message.attempt <= MAX_ATTEMPT:
        raise _bad("it names no job and attempt")
    return Attempt(JobId(message.job), message.attempt)


def read_code(code: str) -> str:
    """Return a reason code, or the empty text, as journals accept it.

    Raises:
        DecodeError: it is neither.
    """
    if not _CODE.fullmatch(code):
        raise _bad("a reason code is not kebab-case")
    return code


def _hello(hello: relay_pb2.Hello) -> Hello:
    if hello.version != PROTOCOL_VERSION:
        raise DecodeError(
            f"the node speaks protocol version {hello.version}, expected {PROTOCOL_VERSION}",
            code="unknown-version",
            hint="coordinator and node are of different versions; update the older one",
        )
    if len(hello.live) > MAX_LIVE or len(hello.node) > MAX_NAME:
        raise _bad("a hello names too many attempts or too long a node")
    live = frozenset(read_attempt(attempt) for attempt in hello.live)
    return Hello(NodeName(hello.node), hello.roster_version, hello.catalogue, live)


def _ended(ended: relay_pb2.RunEnded) -> RunEnd:
    attempt = read_attempt(ended.attempt)
    if ended.state not in _REPORTED or not _CODE.fullmatch(ended.code):
        raise _bad("a run's end has no known state or no reason code")
    state = RunState(ended.state)
    if state is not RunState.DONE and not ended.code:
        raise _bad("a run that did not finish has no reason code")
    return RunEnd(attempt, state, ended.code, _text(ended.sentence, MAX_TEXT), _text(ended.hint, MAX_TEXT))


def _letter(letter: audit_pb2.Letter) -> Letter:
    # Who sent it is what the connection proved, and never what it says.
    if not _ID.fullmatch(letter.id) or getattr(letter, "from") or not 0 < len(letter.to) <= MAX_NAME:
        raise _bad("a letter has no id of 32 hex digits, no addressee, or names its own sender")
    letter.DiscardUnknownFields()  # type: ignore[attr-defined]  # the stubs lack it
    return Letter(letter.id, NodeName(letter.to), letter)


def _text(text: str, limit: int) -> str:
    if len(text) > limit:
        raise _bad(f"a text of {len(text)} characters, at most {limit} accepted")
    return text


def _bad(why: str) -> DecodeError:
    return DecodeError(f"a message is malformed: {why}", code="bad-message")


# -- what the coordinator says -----------------------------------------------------------------------


def _plain(job: JobId, attempt: int) -> relay_pb2.Attempt:
    return relay_pb2.Attempt(job=job, attempt=attempt)


def welcome(
    coordinator: NodeName, roster: bytes, freshness: bytes, time: datetime
) -> relay_pb2.ControlResponse:
    """Answer a hello with the newest roster, and the newest statement that it still holds."""
    return relay_pb2.ControlResponse(
        welcome=relay_pb2.Welcome(
            coordinator=coordinator, roster=roster, freshness=freshness, time=utc_text(time)
        )
    )


def roster_update(roster: bytes) -> relay_pb2.ControlResponse:
    """Announce a newer roster."""
    return relay_pb2.ControlResponse(roster=relay_pb2.RosterUpdate(roster=roster))


def freshness_update(freshness: bytes) -> relay_pb2.ControlResponse:
    """Announce a newer freshness statement."""
    return relay_pb2.ControlResponse(freshness=relay_pb2.FreshnessUpdate(freshness=freshness))


def offer(job: JobId, attempt: int, envelope: bytes) -> relay_pb2.ControlResponse:
    """Ask a node to take part."""
    return relay_pb2.ControlResponse(offer=relay_pb2.JobOffer(attempt=_plain(job, attempt), job=envelope))


def admit(job: JobId, attempt: int) -> relay_pb2.ControlResponse:
    """Ask for an admission."""
    return relay_pb2.ControlResponse(admit=relay_pb2.Admit(attempt=_plain(job, attempt)))


def start(job: JobId, attempt: int, admissions: Sequence[bytes]) -> relay_pb2.ControlResponse:
    """Hand over all admissions."""
    return relay_pb2.ControlResponse(
        start=relay_pb2.Start(attempt=_plain(job, attempt), admissions=admissions)
    )


def stop(job: JobId, attempt: int, code: str, sentence: str) -> relay_pb2.ControlResponse:
    """End an attempt or, with attempt 0, a job."""
    return relay_pb2.ControlResponse(
        stop=relay_pb2.Stop(attempt=_plain(job, attempt), code=code, sentence=sentence[:MAX_TEXT])
    )


def stored(release: str) -> relay_pb2.ControlResponse:
    """Confirm a release."""
    return relay_pb2.ControlResponse(stored=relay_pb2.ReleaseStored(release=release))


def noted(job: JobId, attempt: int) -> relay_pb2.ControlResponse:
    """Confirm a run's end."""
    return relay_pb2.ControlResponse(noted=relay_pb2.RunNoted(attempt=_plain(job, attempt)))


def explain(identifier: str, question: bytes) -> relay_pb2.ControlResponse:
    """Ask a node for a dry answer."""
    return relay_pb2.ControlResponse(explain=relay_pb2.Explain(id=identifier, request=question))


def filed(sha256: Digest) -> relay_pb2.ControlResponse:
    """Confirm a statement."""
    return relay_pb2.ControlResponse(filed=relay_pb2.StatementStored(sha256=sha256))


def letter(sender: NodeName, plain: audit_pb2.Letter) -> relay_pb2.ControlResponse:
    """Hand a letter to its addressee; `sender` is who handed it in."""
    message = relay_pb2.ControlResponse(letter=plain)
    message.letter.ClearField("to")
    setattr(message.letter, "from", sender)  # a keyword of the language
    return message


def usage_row(usage: Usage) -> jobs_pb2.UsageRow:
    """Return what was asked and spent for one purpose."""
    return jobs_pb2.UsageRow(
        organisation=usage.organisation,
        purpose=usage.purpose,
        jobs=usage.jobs,
        succeeded=usage.succeeded,
        refused=usage.refused,
        # Sums of what nodes claim; no honest one comes near.
        rows=min(usage.rows, _MAX_COUNT),
        records=min(usage.records, _MAX_COUNT),
        rho=rho_text(usage),
        last=utc_text(usage.last),
    )


def view(
    record: JobRecord,
    releases: Sequence[StoredRelease] = (),
    outcomes: Sequence[StoredOutcome] = (),
    progress: Mapping[NodeName, Progress] | None = None,
    *,
    runs: bool = True,
) -> jobs_pb2.JobView:
    """Return a job as analysts see it; releases show once the job has succeeded.

    Args:
        record: the job.
        releases: those stored for it, or for the earlier job that answers it.
        outcomes: as they came in.
        progress: of the runs under way.
        runs: whether to show more than the job itself.
    """
    job = record.job
    steps = progress or {}
    shown = [
        jobs_pb2.RunView(
            node=run.node,
            role=run.role,
            state=run.state,
            attempt=job.attempt,
            code=run.code,
            sentence=run.sentence,
            hint=run.hint,
            verdict=run.verdict,
            phase=steps[run.node].phase if run.node in steps else "",
            done=steps[run.node].done if run.node in steps else 0,
            total=steps[run.node].total if run.node in steps else 0,
            approvals_needed=run.approvals_needed,
            approvals_given=run.approvals_given,
            figures=steps[run.node].figures if run.node in steps else {},
        )
        for run in job.runs
    ]
    return jobs_pb2.JobView(
        job=job.id,
        state=job.state,
        attempt=job.attempt,
        job_type=record.job_type,
        purpose=record.purpose,
        code=job.code,
        sentence=job.sentence,
        hint=job.hint,
        submitted=utc_text(record.submitted),
        runs=shown if runs else [],
        releases=[
            jobs_pb2.ReleaseView(
                release=release.release,
                name=release.name,
                output_class=release.output_class,
                node=release.node,
                bytes=release.size,
                expires=utc_text(release.expires),
            )
            for release in releases
            if runs and job.state is JobState.SUCCEEDED
        ],
        answered_by=job.answered_by,
        legal_basis=record.legal_basis,
        expected_use=record.expected_use,
        outcomes=[outcome.envelope for outcome in outcomes],
    )
