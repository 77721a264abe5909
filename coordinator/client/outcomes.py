"""Outcomes as the analyst sees them: each checked with the key of whoever filed it."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from protocols.envelope import OUTCOME, decode_envelope, key_id, verify
from protocols.errors import MinshuError, SignatureInvalid
from protocols.ids import JobId, KeyId, NodeName, Organisation
from protocols.wire import Outcome, Roster, organisation_of


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
        share = f" ({100 * self.confirmed / self.checked:.1f} %)" if self.checked else ""
        note = f": {self.note}" if self.note else ""
        return (
            f"{self.confirmed:,} of {self.checked:,} confirmed{share}, {self.by}, {self.filed:%Y-%m-%d}{note}"
        )


def read_outcomes(
    envelopes: Iterable[bytes], job: JobId, roster: Roster
) -> tuple[tuple[FiledOutcome, ...], int]:
    """Return a job's outcomes, newest first, and how many the roster in force does not vouch for.

    Keys leave the roster, so an old outcome may be one of those; it is not shown as if it held.
    """
    held: list[FiledOutcome] = []
    doubtful = 0
    for envelope in envelopes:
        try:
            held.append(_read(envelope, job, roster))
        except MinshuError:
            doubtful += 1
    return tuple(sorted(held, key=lambda one: one.filed)[::-1]), doubtful


def _read(envelope: bytes, job: JobId, roster: Roster) -> FiledOutcome:
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
    return FiledOutcome(*who, outcome.checked, outcome.confirmed, outcome.note, outcome.filed)
