"""What holds for every outcome, wherever it is filed, kept or shown."""

from datetime import datetime
from typing import Final

from protocols.errors import DecodeError, InputError, Refused
from protocols.ids import JobId
from protocols.wire import Outcome

MAX_OUTCOMES: Final = 16
"""Outcomes of one job; each is a later state of the verification."""


def new_outcome(job: JobId, by: str, *, checked: int, confirmed: int, note: str, filed: datetime) -> Outcome:
    """Return an outcome that its readers will accept, the note on one line.

    Raises:
        InputError: figures or note cannot be used.
    """
    outcome = Outcome(job, by, checked, confirmed, " ".join(note.split()), filed)
    try:
        Outcome.decode(outcome.encode())
    except DecodeError as error:
        raise InputError(
            error.message,
            code=error.code,
            hint="0 <= confirmed <= checked, and a note of one sentence that names nobody",
        ) from None
    return outcome


def figures(outcome: Outcome) -> tuple[int, int, int]:
    """Return every group an outcome speaks of: checked, confirmed, and what is left of the checked."""
    return outcome.checked, outcome.confirmed, outcome.checked - outcome.confirmed


def check_figures(outcome: Outcome, smallest: int) -> None:
    """Refuse figures of groups smaller than `smallest`.

    Raises:
        Refused: `small-count`.
    """
    if any(0 < figure < smallest for figure in figures(outcome)):
        raise Refused(
            f"a figure of the outcome, or the difference of both, is between 1 and {smallest - 1}",
            code="small-count",
            hint="file it once more has been checked; what is known of so few stays with the department",
        )


def too_many(limit: int = MAX_OUTCOMES) -> Refused:
    """Return the refusal of one more outcome than a job may have."""
    return Refused(
        f"{limit} outcomes are filed for this job, no more are kept",
        code="too-many-outcomes",
        hint="an outcome is a later state of the whole verification, not of one more person",
    )


def confirmed_words(checked: int, confirmed: int) -> str:
    """Return `3,351 of 5,718 confirmed (58.6 %)`."""
    share = f" ({100 * confirmed / checked:.1f} %)" if checked else ""
    return f"{confirmed:,} of {checked:,} confirmed{share}"
