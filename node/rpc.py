"""What node and coordinator say to each other, as frozen values; only here are generated messages read.

`read_control` is the only way in: an unknown kind, a malformed job id or an attempt out of range is refused
there, and past it nothing is checked twice. The functions below it build what the node sends.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from audit.note import MAX_NOTE_BYTES
from minshu.v1 import audit_pb2
from minshu.v1 import relay_pb2 as pb
from protocols.errors import DecodeError
from protocols.figures import shown
from protocols.ids import JobId, NodeName
from protocols.party import Progress

PROTOCOL_VERSION: Final = 1
PIECE_BYTES: Final = 1 << 20
MAX_ATTEMPT: Final = 1 << 20
OUTCOME_REFUSED: Final = "outcome."
"""Begins the code of a stop that says why an outcome is not kept; nothing is stopped by it."""

MAX_STATEMENT_BYTES: Final = 16 << 10
"""Of the signed statement in a letter: a head, or a receipt."""
MAX_CHECKPOINT_BYTES: Final = MAX_NOTE_BYTES + (8 << 10)
"""Of a request to cosign: a signed note, and at most 63 lines of proof before it."""
MAX_COSIGNED_BYTES: Final = 64 << 10
"""Of a witness's answer: a few signature lines."""
NONCE_BYTES: Final = 32

_JOB = re.compile(r"sha256:[0-9a-f]{64}")
_ID = re.compile(r"[0-9a-f]{32}")
# What a journal takes as a code; eleven digits in a row could be part of an identifier.
_NODE = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,98}[a-z0-9])?/[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
_ORIGIN = re.compile(r"[^\s+\x00-\x1f]{1,200}")
_STATUSES = frozenset({200, 400, 403, 404, 409, 422})
_CODE = re.compile(r"(?!.*\d{11})(?=.{1,80}\Z)[a-z][a-z0-9]*(?:[-.][a-z0-9]+)*")


@dataclass(frozen=True, slots=True, order=True)
class Attempt:
    """One try at executing a job; number 0 stands for the whole job, in `Stop` alone."""

    job: JobId
    number: int


@dataclass(frozen=True, slots=True)
class Welcome:
    """The stream is up: the newest published roster and freshness statement, envelopes, or empty for none."""

    roster: bytes
    freshness: bytes = b""


@dataclass(frozen=True, slots=True)
class NewRoster:
    """A newer roster, an envelope."""

    envelope: bytes


@dataclass(frozen=True, slots=True)
class NewFreshness:
    """A newer statement that the newest roster still holds, an envelope."""

    envelope: bytes


@dataclass(frozen=True, slots=True)
class Filed:
    """A statement is durable at the coordinator; `sha256` is its payload's digest."""

    sha256: str


@dataclass(frozen=True, slots=True)
class Offer:
    """A signed job to take part in."""

    attempt: Attempt
    job: bytes


@dataclass(frozen=True, slots=True)
class Admit:
    """Every node has permitted: hand in the admission."""

    attempt: Attempt


@dataclass(frozen=True, slots=True)
class Start:
    """Everybody's admissions, as envelopes."""

    attempt: Attempt
    admissions: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Stop:
    """The attempt, or the whole job, is over."""

    attempt: Attempt
    code: str


@dataclass(frozen=True, slots=True)
class Stored:
    """A release is durable at the coordinator."""

    release: str


@dataclass(frozen=True, slots=True)
class Noted:
    """A run's end is durable at the coordinator."""

    attempt: Attempt


@dataclass(frozen=True, slots=True)
class Explain:
    """A question what would be answered to a job, an envelope; `id` names it on this stream."""

    id: str
    request: bytes


@dataclass(frozen=True, slots=True)
class AddCheckpoint:
    """Asks a witness to cosign; the request body of C2SP tlog-witness add-checkpoint."""

    body: bytes


@dataclass(frozen=True, slots=True)
class Cosigned:
    """A witness's answer: HTTP status and response body of C2SP tlog-witness."""

    status: int
    body: bytes


@dataclass(frozen=True, slots=True)
class AskHead:
    """Asks a witness what it saw last of a log; `nonce` is 32 bytes that nobody saw before."""

    nonce: bytes
    log: str


@dataclass(frozen=True, slots=True)
class HeadSaid:
    """What a witness saw last: a DSSE envelope, and the log's signed note of that size, empty for none."""

    statement: bytes
    checkpoint: bytes


@dataclass(frozen=True, slots=True)
class HandReceipt:
    """Hands over a receipt, a DSSE envelope."""

    receipt: bytes


@dataclass(frozen=True, slots=True)
class ReceiptKept:
    """What became of the receipt whose payload has this digest; `code` is empty where it is journaled."""

    sha256: str
    code: str


Question = AddCheckpoint | AskHead | HandReceipt
Reply = Cosigned | HeadSaid | ReceiptKept


@dataclass(frozen=True, slots=True)
class Letter:
    """One question or its answer. `sender` is who the coordinator says sent it: not to be relied upon."""

    id: str
    sender: str
    body: Question | Reply


Message = (
    Welcome
    | NewRoster
    | NewFreshness
    | Offer
    | Admit
    | Start
    | Stop
    | Stored
    | Noted
    | Filed
    | Explain
    | Letter
)
ControlRequest = pb.ControlRequest
"""What goes up the control stream, ready to send."""


def read_control(message: pb.ControlResponse) -> Message:
    """Return what the coordinator says.

    Raises:
        DecodeError: a kind this version does not know, or a field that does not have its form.
    """
    match message.WhichOneof("kind"):
        case "welcome":
            return Welcome(message.welcome.roster, message.welcome.freshness)
        case "roster":
            return NewRoster(message.roster.roster)
        case "freshness":
            return NewFreshness(message.freshness.freshness)
        case "offer":
            return Offer(_attempt(message.offer.attempt), message.offer.job)
        case "admit":
            return Admit(_attempt(message.admit.attempt))
        case "start":
            return Start(_attempt(message.start.attempt), tuple(message.start.admissions))
        case "stop":
            code = message.stop.code
            if not _CODE.fullmatch(code):
                raise DecodeError("a stop carries no reason code", code="bad-message")
            return Stop(_attempt(message.stop.attempt, lowest=0), code)
        case "stored":
            if not _ID.fullmatch(message.stored.release):
                raise DecodeError("a release id is not 32 hex digits", code="bad-message")
            return Stored(message.stored.release)
        case "noted":
            return Noted(_attempt(message.noted.attempt))
        case "filed":
            if not _JOB.fullmatch(message.filed.sha256):
                raise DecodeError("a confirmation names no statement", code="bad-message")
            return Filed(message.filed.sha256)
        case "explain":
            if not _ID.fullmatch(message.explain.id):
                raise DecodeError("a question has no id of 32 hex digits", code="bad-message")
            return Explain(message.explain.id, message.explain.request)
        case "letter":
            return _letter(message.letter)
    raise DecodeError(
        "the coordinator sent a message of an unknown kind",
        code="unknown-message",
        hint="update this node: the coordinator speaks a newer protocol",
    )


def _letter(message: audit_pb2.Letter) -> Letter:
    sender = getattr(message, "from")
    if not _ID.fullmatch(message.id) or not _NODE.fullmatch(sender) or message.to:
        raise DecodeError("a letter does not say whose it is", code="bad-letter")
    return Letter(message.id, sender, _letter_body(message))


def _letter_body(message: audit_pb2.Letter) -> Question | Reply:
    match message.WhichOneof("body"):
        case "add_checkpoint":
            return AddCheckpoint(_bounded(message.add_checkpoint.body, MAX_CHECKPOINT_BYTES))
        case "cosigned":
            if message.cosigned.status not in _STATUSES:
                raise DecodeError("a witness answers with an unknown status", code="bad-letter")
            return Cosigned(message.cosigned.status, _bounded(message.cosigned.body, MAX_COSIGNED_BYTES))
        case "ask_head":
            asked = message.ask_head
            if len(asked.nonce) != NONCE_BYTES or not _ORIGIN.fullmatch(asked.log):
                raise DecodeError("a question for a head has no nonce or names no log", code="bad-letter")
            return AskHead(asked.nonce, asked.log)
        case "head":
            return HeadSaid(
                _bounded(message.head.statement, MAX_STATEMENT_BYTES),
                _bounded(message.head.checkpoint, MAX_NOTE_BYTES),
            )
        case "receipt":
            return HandReceipt(_bounded(message.receipt.receipt, MAX_STATEMENT_BYTES))
        case "receipt_kept":
            kept = message.receipt_kept
            if not _JOB.fullmatch(kept.sha256) or (kept.code and not _CODE.fullmatch(kept.code)):
                raise DecodeError("a letter names no receipt", code="bad-letter")
            return ReceiptKept(kept.sha256, kept.code)
    raise DecodeError("a letter is about something unknown", code="bad-letter")


def _bounded(data: bytes, limit: int) -> bytes:
    if len(data) > limit:
        raise DecodeError(f"a letter carries {len(data)} bytes, at most {limit} accepted", code="too-long")
    return data


def _attempt(message: pb.Attempt, lowest: int = 1) -> Attempt:
    if not _JOB.fullmatch(message.job) or not lowest <= message.attempt <= MAX_ATTEMPT:
        raise DecodeError("a message names no job and attempt", code="bad-message")
    return Attempt(JobId(message.job), message.attempt)


def _plain(attempt: Attempt) -> pb.Attempt:
    return pb.Attempt(job=attempt.job, attempt=attempt.number)


def hello(node: NodeName, roster_version: int, catalogue: bytes, live: Iterable[Attempt]) -> ControlRequest:
    """Open a control stream; `live` are the attempts this process runs or releases right now."""
    return ControlRequest(
        hello=pb.Hello(
            version=PROTOCOL_VERSION,
            node=node,
            roster_version=roster_version,
            catalogue=catalogue,
            live=[_plain(attempt) for attempt in sorted(live)],
        )
    )


def answer(attempt: Attempt, verdict: bytes) -> ControlRequest:
    """Answer an offer with a signed verdict."""
    return ControlRequest(answer=pb.Answer(attempt=_plain(attempt), verdict=verdict))


def admitted(attempt: Attempt, admission: bytes) -> ControlRequest:
    """Hand in a signed admission."""
    return ControlRequest(admitted=pb.Admitted(attempt=_plain(attempt), admission=admission))


def progress(attempt: Attempt, step: Progress) -> ControlRequest:
    """Tell how far a run is; figures that may not be shown stay here."""
    return ControlRequest(
        progress=pb.RunProgress(
            attempt=_plain(attempt),
            phase=step.phase,
            done=step.done,
            total=step.total,
            figures=shown(step.figures),
        )
    )


def ended(
    attempt: Attempt, state: str, code: str, sentence: str, hint: str, *, opened: bool
) -> ControlRequest:
    """Tell a run's end."""
    return ControlRequest(
        ended=pb.RunEnded(
            attempt=_plain(attempt), state=state, code=code, sentence=sentence, hint=hint, opened=opened
        )
    )


def explained(identifier: str, verdict: bytes) -> ControlRequest:
    """Answer a question with a signed verdict."""
    return ControlRequest(explained=pb.Explained(id=identifier, verdict=verdict))


def outcome(envelope: bytes) -> ControlRequest:
    """Hand in what this node's people found out about a list."""
    return ControlRequest(outcome=pb.OutcomeFiled(outcome=envelope))


def rotation(envelope: bytes) -> ControlRequest:
    """Hand in the announcement of this node's next identity key."""
    return ControlRequest(rotation=pb.KeyRotation(rotation=envelope))


def letter(identifier: str, to: str, body: Question | Reply) -> ControlRequest:
    """Send a letter: a question under an id drawn for it, or the answer to the question of that id."""
    message = audit_pb2.Letter(id=identifier, to=to)
    match body:
        case AddCheckpoint(request):
            message.add_checkpoint.CopyFrom(audit_pb2.AddCheckpoint(body=request))
        case Cosigned(status, answer_body):
            message.cosigned.CopyFrom(audit_pb2.Cosigned(status=status, body=answer_body))
        case AskHead(nonce, log):
            message.ask_head.CopyFrom(audit_pb2.AskHead(nonce=nonce, log=log))
        case HeadSaid(statement, checkpoint):
            message.head.CopyFrom(audit_pb2.HeadSaid(statement=statement, checkpoint=checkpoint))
        case HandReceipt(receipt):
            message.receipt.CopyFrom(audit_pb2.HandReceipt(receipt=receipt))
        case ReceiptKept(sha256, code):
            message.receipt_kept.CopyFrom(audit_pb2.ReceiptKept(sha256=sha256, code=code))
    return ControlRequest(letter=message)


def upload(attempt: Attempt, release: str, note: bytes, sealed: bytes) -> Iterable[ControlRequest]:
    """Yield the pieces of a sealed release, in order; the note goes with the first."""
    for offset in range(0, max(len(sealed), 1), PIECE_BYTES):
        piece = sealed[offset : offset + PIECE_BYTES]
        yield ControlRequest(
            upload=pb.ReleaseUpload(
                attempt=_plain(attempt),
                note=b"" if offset else note,
                release=release,
                offset=offset,
                piece=piece,
                last=offset + len(piece) == len(sealed),
            )
        )
