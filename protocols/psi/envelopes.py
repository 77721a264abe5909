"""Envelopes: what a list says of a person, sealed by its owner for one recipient. SPEC.md, section 4.

Whoever carries an envelope cannot open it. It is named by its place in the tag order of its list, which says
nothing of the input, and the stream of envelopes is padded to a length that follows from public numbers.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from protocols.errors import ProtocolAborted
from protocols.identifiers import AreaTable, normalise, type_tag
from protocols.ids import Organisation, Role
from protocols.jobs.job_type import SUSPECTED, Content, Table
from protocols.months import month_text
from protocols.party import Incoming, Outgoing
from protocols.psi.keyed_list import MAX_STREET_BYTES, WAITING
from protocols.psi.locks import GCM_TAG_BYTES
from protocols.psi.tagging import check_chunk

KEY_TYPE: Final = "resident-id"
RECORDS: Final = "records"
"""What the release of opened envelopes is called."""

CONTENT_KEY_BYTES: Final = 32
CHUNK_RECORDS: Final = 8192

KEY_FIELD: Final = 32
STREET_FIELD: Final = MAX_STREET_BYTES + 1
PLAIN_BYTES: Final = KEY_FIELD + STREET_FIELD + 2
ENVELOPE_BYTES: Final = PLAIN_BYTES + GCM_TAG_BYTES
RECORD_BYTES: Final = 1 + 4 + ENVELOPE_BYTES

_ENVELOPE: Final = b"minshu/envelope/1"


class Listed(Protocol):
    """A list with what envelopes tell of a person: see `KeyedList`."""

    @property
    def keys(self) -> npt.NDArray[np.bytes_]:
        """Typed keys, n."""
        ...

    @property
    def streets(self) -> npt.NDArray[np.uint16]:
        """Place in `street_names`, n."""
        ...

    @property
    def months(self) -> npt.NDArray[np.uint16]:
        """Month last seen, n."""
        ...

    @property
    def street_names(self) -> tuple[str, ...]:
        """Names of streets, "" where unknown."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """What was in envelopes, n of each.

    Attributes:
        keys: typed keys, each valid, no two the same.
        streets: as text.
        months: as `2026-11`, "" where unknown.
        lists: the number of the list that each came from.
    """

    keys: npt.NDArray[np.bytes_]
    streets: list[str]
    months: list[str]
    lists: list[int]


def domain(ctx: bytes, index: int) -> bytes:
    """Return the associated data of envelopes of list `index` in the attempt of `ctx`."""
    return _ENVELOPE + ctx + index.to_bytes(1, "big")


def nonce(position: int) -> bytes:
    """Return the nonce of the envelope at a place in tag order; a content key seals each place once."""
    return position.to_bytes(12, "big")


def plaintexts(listed: Listed, rows: npt.NDArray[np.uint32]) -> bytes:
    """Return the envelope contents of these rows, `PLAIN_BYTES` each.

    u8 length ‖ key in 31 bytes ‖ u8 length ‖ street in 47 bytes ‖ u16 month, zeros behind the texts. Of a
    row that waits, zeros alone: nobody is to open that one.
    """
    plain = np.zeros((len(rows), PLAIN_BYTES), dtype=np.uint8)
    keys = listed.keys[rows]
    waiting = np.strings.startswith(keys, WAITING)
    # What marks a key that waits may make it longer than the field.
    keys = np.where(waiting, b"", keys).astype(f"S{min(keys.dtype.itemsize, KEY_FIELD - 1)}")
    width = keys.dtype.itemsize
    plain[:, 0] = np.strings.str_len(keys)
    plain[:, 1 : 1 + width] = np.ascontiguousarray(keys).view(np.uint8).reshape(len(rows), width)
    names = [name.encode() for name in listed.street_names]
    fields = np.frombuffer(
        b"".join(len(n).to_bytes(1, "big") + n.ljust(MAX_STREET_BYTES, b"\0") for n in names), dtype=np.uint8
    ).reshape(-1, STREET_FIELD)
    plain[:, KEY_FIELD : KEY_FIELD + STREET_FIELD] = fields[listed.streets[rows]]
    plain[:, -2:] = listed.months[rows].astype(">u2").view(np.uint8).reshape(-1, 2)
    plain[waiting] = 0
    return plain.tobytes()


def sealed(plain: bytes, content_key: bytes, ctx: bytes, index: int, start: int) -> Iterator[bytes]:
    """Yield the envelopes of contents that begin at place `start` of list `index`, `ENVELOPE_BYTES` each."""
    seal, data = AESGCM(content_key).encrypt, domain(ctx, index)
    for at in range(0, len(plain), PLAIN_BYTES):
        yield seal(nonce(start + at // PLAIN_BYTES), plain[at : at + PLAIN_BYTES], data)


def record(index: int, position: int, envelope: bytes) -> bytes:
    """Return an envelope with its list, 1 or more, and its place: `RECORD_BYTES`."""
    return index.to_bytes(1, "big") + position.to_bytes(4, "big") + envelope


def padded(to: Role, number: int, records: bytes, room: int) -> Iterator[Outgoing]:
    """Yield records, then as many of zeros as make `room`, in round `number`.

    The relay counts frames and sees their size class: what it sees depends on public numbers alone.
    """
    step, total = CHUNK_RECORDS * RECORD_BYTES, room * RECORD_BYTES
    for start in range(0, total or 1, step):
        piece = records[start : start + step].ljust(min(step, total - start), b"\0")
        yield Outgoing(to, number, piece, last=start + step >= total)


class Inbox:
    """The recipient's side: takes the padded stream, then opens what is in it."""

    def __init__(self, room: int, limit: int | None) -> None:
        """Expect a stream of `room` records, of which at most `limit` may come."""
        self.room, self._limit = room, limit
        self._records: list[bytes] = []
        self.received = 0
        self.complete = False

    def take(self, message: Incoming) -> None:
        """Take a message of the stream.

        Raises:
            ProtocolAborted: `bad-length`, `too-many-items`, `too-few-items`; `guard-rows`;
                `envelope-malformed`, padding that says something.
        """
        if self.complete:
            raise ProtocolAborted(
                f"round {message.round} from {message.sender}: no envelopes are due",
                code="unexpected-message",
            )
        if len(message.body) % RECORD_BYTES:
            raise ProtocolAborted(
                f"body of {len(message.body)} bytes, expected a multiple of {RECORD_BYTES}",
                code="bad-length",
            )
        found = len(message.body) // RECORD_BYTES
        # Whoever sends has guarded this; the receiver of records does not take its word for it.
        if self._limit is not None and self.received + found > self._limit:
            raise ProtocolAborted(
                f"more than the {self._limit} records that all rules allow", code="guard-rows"
            )
        check_chunk(self.received, found, self.room, CHUNK_RECORDS, last=message.last)
        self.received += found
        pieces = np.frombuffer(message.body, dtype=np.uint8).reshape(found, RECORD_BYTES)
        padding = pieces[:, 0] == 0
        if pieces[padding].any():
            raise ProtocolAborted("an envelope names a list that is no source", code="envelope-malformed")
        self._records.append(pieces[~padding].tobytes())
        self.complete = message.last

    def open(self, content_keys: Mapping[int, bytes], ctx: bytes, *, as_of: date, areas: AreaTable) -> Opened:
        """Open all envelopes and check what is in them.

        (1) Every envelope opens under its list's key, at its position, once. (2) Every text and month has
        the form an honest source writes. (3) Every key is a valid number, no key comes twice.

        Args:
            content_keys: by the number of the list.
            ctx: 32 bytes.
            as_of: the day as of which keys are judged.
            areas: area codes that were ever valid.

        Raises:
            ProtocolAborted: `envelope-repeated`, `envelope-malformed`, `envelope-broken`.
        """
        # (1)
        joined = b"".join(self._records)
        self._records = []
        pieces = [joined[at : at + RECORD_BYTES] for at in range(0, len(joined), RECORD_BYTES)]
        sealers = {index: AESGCM(key) for index, key in content_keys.items()}
        if len({piece[:5] for piece in pieces}) != len(pieces):
            raise ProtocolAborted("an envelope came twice", code="envelope-repeated")
        plain = b"".join(_opened(piece, sealers, ctx) for piece in pieces)
        # (2)
        keys, streets, months = parse(plain)
        # (3)
        tag = type_tag(KEY_TYPE).encode()
        bodies = [key.removeprefix(tag) for key in keys.tolist() if key.startswith(tag)]
        found = normalise(np.array(bodies, dtype=keys.dtype), KEY_TYPE, as_of=as_of, areas=areas)
        if len(found.keys) != len(keys) or bool((found.keys != keys).any()):
            raise ProtocolAborted("an envelope holds a key that is not valid", code="envelope-malformed")
        if len(np.unique(keys)) != len(keys):
            raise ProtocolAborted("two envelopes hold the same key", code="envelope-repeated")
        return Opened(keys, streets, months, [piece[0] for piece in pieces])


def _opened(piece: bytes, sealers: Mapping[int, AESGCM], ctx: bytes) -> bytes:
    index, position = piece[0], int.from_bytes(piece[1:5], "big")
    sealer = sealers.get(index)
    if sealer is None:
        raise ProtocolAborted("an envelope names a list that is no source", code="envelope-malformed")
    try:
        return sealer.decrypt(nonce(position), piece[5:], domain(ctx, index))
    except InvalidTag:
        raise ProtocolAborted(
            "an envelope does not open under its source's key and position", code="envelope-broken"
        ) from None


def check_selected(keys: npt.NDArray[np.bytes_], own: npt.NDArray[np.bytes_], *, on: bool) -> None:
    """Check that the recipient's own list has every key (`on`), or none.

    Args:
        keys: of the opened envelopes.
        own: the own list, ascending.
        on: whether the question is about persons on it.

    Raises:
        ProtocolAborted: `not-selected`.
    """
    # A list is ascending: isin would copy and sort a whole register.
    if len(own):
        place = np.searchsorted(own, keys)
        on_list = own[np.minimum(place, len(own) - 1)] == keys
    else:
        on_list = np.zeros(len(keys), dtype=np.bool_)
    if bool((on_list != on).any()):
        raise ProtocolAborted(
            "an envelope holds a person whom the question leaves out",
            code="not-selected",
            hint="a source bound a row to the tag of another person, or the matcher chose wrongly",
        )


def records(opened: Opened, owners: Mapping[int, tuple[Role, Organisation]]) -> Content:
    """Return the class-B release: key, street, last_seen, source, organisation, sorted by key.

    Args:
        opened: the envelopes' contents.
        owners: whose list each number stands for, and of which organisation it is.
    """
    order = np.argsort(opened.keys)
    table = Table(
        {
            "key": opened.keys[order].astype(np.str_),
            "street": np.array(opened.streets, dtype=np.str_)[order],
            "last_seen": np.array(opened.months, dtype=np.str_)[order],
            "source": np.array([owners[i][0] for i in opened.lists], dtype=np.str_)[order],
            "organisation": np.array([owners[i][1] for i in opened.lists], dtype=np.str_)[order],
        }
    )
    return Content(RECORDS, table, {"mark": SUSPECTED, "rows": table.rows})


def parse(plain: bytes) -> tuple[npt.NDArray[np.bytes_], list[str], list[str]]:
    """Return keys, streets and months of envelope contents, each in its one canonical form.

    Raises:
        ProtocolAborted: `envelope-malformed`.
    """
    keys: list[bytes] = []
    streets: list[str] = []
    months: list[str] = []
    try:
        for at in range(0, len(plain), PLAIN_BYTES):
            item = plain[at : at + PLAIN_BYTES]
            keys.append(_text(item[:KEY_FIELD]))
            streets.append(_text(item[KEY_FIELD : KEY_FIELD + STREET_FIELD]).decode())
            months.append(month_text(int.from_bytes(item[-2:], "big")))
    except ValueError:
        raise ProtocolAborted("an envelope's content is not of its form", code="envelope-malformed") from None
    if not all(street.isprintable() for street in streets):
        raise ProtocolAborted("an envelope's street is not printable", code="envelope-malformed")
    return np.array(keys, dtype=f"S{KEY_FIELD - 1}"), streets, months


def _text(field: bytes) -> bytes:
    """Return the text of a field: its length, the text, zeros."""
    length = field[0]
    if length >= len(field) or any(field[1 + length :]):
        raise ValueError("not a padded text")
    return field[1 : 1 + length]
