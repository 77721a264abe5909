"""The rosters that root keys sign: coordinator and analysts judge them alike."""

from datetime import datetime, timedelta
from typing import Final

from protocols.envelope import ROSTER, decode_envelope, key_id, verify
from protocols.errors import InputError, StateConflict
from protocols.roots import Roots
from protocols.wire import Roster

ROOTS: Final = "roots.json"
MAX_ROSTER_LIFE: Final = timedelta(days=90)


def open_roster(roots: Roots, envelope: bytes, now: datetime) -> Roster:
    """Return the roster in `envelope`.

    (1) Enough distinct root keys signed it. (2) It is this collaboration's. (3) It is in force: issued, not
    expired, and for at most 90 days.

    Raises:
        SignatureInvalid: (1).
        DecodeError: not a roster.
        InputError: (2), (3).
    """
    # (1)
    document = decode_envelope(envelope)
    verify(document, ROSTER, {key_id(key): key for key in roots.keys}, roots.threshold)
    roster = Roster.decode(document.payload)
    # (2)
    if roster.collaboration != roots.collaboration:
        raise InputError(
            f"the roster is of the collaboration {roster.collaboration}, expected {roots.collaboration}",
            code="wrong-collaboration",
            hint="get the roster that this collaboration's root key holders signed",
        )
    # (3)
    if not roster.issued <= now + timedelta(minutes=5):
        raise InputError(
            "the roster is dated in the future", code="roster-not-valid", hint="check this machine's clock"
        )
    if now >= roster.expires or roster.expires - roster.issued > MAX_ROSTER_LIFE:
        raise InputError(
            "the roster has expired, or is valid for more than 90 days",
            code="roster-expired",
            hint="the coordinator's operator drafts a new one and the root key holders sign it",
        )
    return roster


def follows(roster: Roster, current: Roster | None) -> None:
    """Check that `roster` may replace `current` here.

    A reader may have missed versions, so `previous` is compared only where it must be the one at hand.

    Raises:
        StateConflict: `roster-rollback`.
    """
    if current is None:
        return
    if roster.version < current.version or (
        roster.version == current.version and roster.digest != current.digest
    ):
        raise StateConflict(
            f"the roster has version {roster.version}, but version {current.version} was seen before",
            code="roster-rollback",
            hint="do not go on: ask the root key holders which roster they signed last",
        )
    if roster.version == current.version + 1 and roster.previous != current.digest:
        raise StateConflict(
            f"roster version {roster.version} does not name version {current.version} as its predecessor",
            code="roster-rollback",
            hint="do not go on: ask the root key holders which roster they signed last",
        )
