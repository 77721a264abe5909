"""What both sides of a look-up session know before it starts, and the messages they send. SPEC.md."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from hashlib import sha256
from typing import Any, Final

from protocols.encoding import canonical_json
from protocols.errors import ProtocolAborted
from protocols.ids import Role
from protocols.psi.oprf import Mode

HAVE: Final = 1  # clerk → owner: digest of the manifest of the table it has, 32 bytes, or nothing
BUILT: Final = 2  # owner → clerk: u64 rows ready; the last message says that the table is
GO_ON: Final = 3  # clerk → owner: nothing, one for each BUILT
OFFER: Final = 4  # owner → clerk: JSON, see `table.Offer`
REMOVED: Final = 5  # owner → clerk: tags that are gone
ROWS: Final = 6  # owner → clerk: rows that are new or have changed
HELD: Final = 7  # clerk → owner: digest of the manifest of the table that it now has
ASK: Final = 8  # clerk → owner: u32 number ‖ blinded elements; the last message is empty
EVALUATED: Final = 9  # owner → clerk: u32 number ‖ u8 status ‖ …; the last message is empty

MAX_ASK: Final = 4096
"""Most elements of one request."""

MAX_REFUSALS: Final = 100
"""Requests of a session that its owner refuses; then it closes."""

EVALUATION: Final = 0  # elements ‖ proof
EXHAUSTED: Final = 1
TOO_FAST: Final = 2
CLOSING: Final = 3  # the owner ends the session; number 0 where nobody asked

REFUSALS: Final[Mapping[int, tuple[str, str]]] = {
    EXHAUSTED: (
        "lookups-exhausted",
        "本次会话的查询次数已用完 (the look-ups of this session are used up)",
    ),
    TOO_FAST: (
        "rate-exceeded",
        "查询过于频繁, 请稍后再试 (more look-ups a minute than the owner allows; try again later)",
    ),
    CLOSING: ("session-closed", "会话正在结束 (the session is being closed)"),
}
"""Status of an answer → code and sentence of a refusal."""

BAD_ROW: Final = (
    "bad-row",
    "核查表中有记录已损坏, 请通知数据提供部门更换密钥 (a row cannot be read; have its owner rotate the key)",
)
"""Code and sentence where a row that was asked about does not open. Never told to the owner."""

TOO_MANY: Final = (
    "too-many-items",
    "一次最多还可查询 {0} 人 (at most {0} persons can be asked about at once)",
)
"""Code and sentence where fewer persons could be asked about."""


@dataclass(frozen=True, slots=True)
class Lookup:
    """What is public of one session.

    Attributes:
        owner: who has the rows.
        clerk: who asks.
        table: names the key and the table: hex, see `table_name`.
        dataset: the owner's.
        mode: whether evaluations are proved.
        fields: what a row holds, in order.
        rows: distinct keys of the scope, as admitted.
        lookups: most look-ups of the session.
        per_minute: most look-ups in any minute, None: no limit.
        session_s: seconds after which the session ends.
        day: on which the job was created, by which a key's age is counted.
    """

    owner: Role
    clerk: Role
    table: str
    dataset: str
    mode: Mode
    fields: tuple[str, ...]
    rows: int
    lookups: int
    per_minute: int | None
    session_s: int
    day: date


def table_name(meaning: Mapping[str, Any]) -> str:
    """Return 32 hex digits that name a table: who owns it, for which node, its scope, fields and mode."""
    return sha256(b"minshu/lookup/1 table" + canonical_json(dict(meaning))).hexdigest()[:32]


def unexpected(number: int, sender: Role) -> ProtocolAborted:
    """Return the error of a message that has no place here."""
    return ProtocolAborted(
        f"round {number} from {sender} is not expected at this point", code="unexpected-message"
    )
