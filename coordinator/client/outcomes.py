"""Outcomes as the analyst sees them: each checked with the key of whoever filed it."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from protocols.envelope import OUTCOME, decode_envelope, key_id, verify
from protocols.errors import MinshuError, SignatureInvalid
from protocols.ids import JobId, KeyId, NodeName, Organisation
from protocols.outcomes import MAX_OUTCOMES, confirmed_words
from protocols.wire import JobSpec, Outcome, Roster, organisation_of


@dataclass(frozen=True, slots=True)
class FiledOutcome:
    """What a recipient found out: of `checked` persons or figures, `confirmed` turned out right.

    `by` is the node, or the analyst's name in the roster.
    """

    by: str
    organisation: Organisation
    checked: int
    confirmed: int
    note: str
    filed: datetime

    def __str__(self) -> str:
        found = confirmed_words(self.checked, self.confirmed)
        note = f": {self.note}" if self.note else ""
        return f"{found}, {self.by}, {self.filed:%Y-%m-%d}{note}"


Recipients = frozenset[tuple[Organisation, bool]]
"""Who receives a job's releases; True for a list of class B, which a node receives, else an analyst."""


def recipients(spec: JobSpec, organisation: Organisation) -> Recipients:
    """Return who receives the releases of a job that an analyst of `organisation` submitted."""
    from protocols.jobs import job_type
    from protocols.jobs.job_type import REQUESTER, OutputClass

    return frozenset(
        (
            organisation if planned.recipient == REQUESTER else Organisation(planned.recipient),
            planned.output_class is OutputClass.DIRECTED,
        )
        for planned in job_type(spec.job_type).releases(spec)
    )


def read_outcomes(
    envelopes: Sequence[bytes], job: JobId, roster: Roster, receiving: Recipients | None = None
) -> tuple[tuple[FiledOutcome, ...], int]:
    """Return a job's outcomes, newest first, and how many of them are in doubt.

    Keys leave the roster, so an old outcome may be in doubt: it is not shown as if it held. So is one of
    somebody who is none of `receiving`; None where that is not known.
    """
    held: list[FiledOutcome] = []
    for envelope in envelopes[:MAX_OUTCOMES]:  # the coordinator keeps no more for a job
        with suppress(MinshuError):
            held.append(_read(envelope, job, roster, receiving))
    doubtful = len(envelopes) - len(held)
    return tuple(sorted(held, key=lambda one: one.filed)[::-1]), doubtful


def _read(envelope: bytes, job: JobId, roster: Roster, receiving: Recipients | None) -> FiledOutcome:
    document = decode_envelope(envelope)
    keys = {key_id(node.identity_key): node.identity_key for node in roster.nodes}
    keys |= {key_id(analyst.key): analyst.key for analyst in roster.analysts}
    signers = verify(document, OUTCOME, keys)
    outcome = Outcome.decode(document.payload)
    # A node whose key has changed stands in what vouches for an old job with each of its keys.
    named = {key_id(node.identity_key) for node in roster.nodes if node.name == outcome.by}
    analyst = roster.analyst(KeyId(outcome.by))
    who: tuple[str, Organisation] | None = None
    if named & signers:
        who = outcome.by, organisation_of(NodeName(outcome.by))
    elif analyst is not None and outcome.by in signers:
        who = analyst.name, analyst.organisation
    if who is None or outcome.job != job:
        raise SignatureInvalid("the outcome is not its signer's, or about another job", code="wrong-subject")
    if receiving is not None and (who[1], bool(named & signers)) not in receiving:
        raise SignatureInvalid("the outcome is of nobody who received a release", code="not-a-recipient")
    return FiledOutcome(*who, outcome.checked, outcome.confirmed, outcome.note, outcome.filed)
