"""What node and coordinator say to each other, as frozen values; only here are generated messages read.

`read_control` is the only way in: an unknown kind, a malformed job id or an attempt out of range is refused
there, and past it nothing is checked twice. The functions below it build what the node sends.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from minshu.v1 import relay_pb2 as pb
from protocols.errors import DecodeError
from protocols.ids import JobId, NodeName
from protocols.party import Progress

PROTOCOL_VERSION: Final = 1
PIECE_BYTES: Final = 1 << 20
MAX_ATTEMPT: Final = 1 << 20
OUTCOME_REFUSED: Final = "outcome."
"""Begins the code of a stop that says why an outcome is not kept; nothing is stopped by it."""

_JOB = re.compile(r"sha256:[0-9a-f]{64}")
_ID = re.compile(r"[0-9a-f]{32}")
# What a journal takes as a code; eleven digits in a row could be part of an identifier.
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


Message = Welcome | NewRoster | NewFreshness | Offer | Admit | Start | Stop | Stored | Noted | Filed | Explain
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
    raise DecodeError(
        "the coordinator sent a message of an unknown kind",
        code="unknown-message",
        hint="update this node: the coordinator speaks a newer protocol",
    )


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
    """Tell how far a run is."""
    return ControlRequest(
        progress=pb.RunProgress(attempt=_plain(attempt), phase=step.phase, done=step.done, total=step.total)
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
