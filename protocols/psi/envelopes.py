"""Envelopes: what a list says of a person, sealed by its owner for one recipient. SPEC.md, section 4.

Whoever carries an envelope cannot open it. It is named by its place in the tag order of its list, which says
nothing of the input, and the stream of envelopes is padded to a length that follows from public numbers.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from typing import Any, Final, Protocol

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
from protocols.psi.runs import Rows, Shuffle
from protocols.psi.tagging import check_chunk
from protocols.resources import Resources, in_memory

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
    """What was in envelopes, n of each; no object of Python for any of them.

    Attributes:
        keys: typed keys, each valid, no two the same.
        streets: of each the place of its street in `street_names`.
        months: last seen, see `protocols.months`.
        lists: the number of the list that each came from.
        street_names: in no order.
    """

    keys: npt.NDArray[np.bytes_]
    streets: npt.NDArray[np.uint32]
    months: npt.NDArray[np.uint16]
    lists: npt.NDArray[np.uint8]
    street_names: tuple[str, ...]

    def by_street(self) -> Counter[str]:
        """Return how many there are of each street."""
        counts = np.bincount(self.streets, minlength=len(self.street_names)).tolist()
        return Counter(dict(zip(self.street_names, counts, strict=True)))


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
    fields = _street_fields(listed.street_names)
    plain[:, KEY_FIELD : KEY_FIELD + STREET_FIELD] = fields[listed.streets[rows]]
    plain[:, -2:] = listed.months[rows].astype(">u2").view(np.uint8).reshape(-1, 2)
    plain[waiting] = 0
    return plain.tobytes()


# A list is sealed some thousand rows at a time, and has the names of tens of thousands of streets.
@lru_cache(maxsize=4)
def _street_fields(names: tuple[str, ...]) -> npt.NDArray[np.uint8]:
    """Return u8 length ‖ name in 47 bytes of each street."""
    encoded = [name.encode() for name in names]
    return np.frombuffer(
        b"".join(len(n).to_bytes(1, "big") + n.ljust(MAX_STREET_BYTES, b"\0") for n in encoded),
        dtype=np.uint8,
    ).reshape(-1, STREET_FIELD)


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
    step = CHUNK_RECORDS * RECORD_BYTES
    return _filled(to, number, (records[at : at + step] for at in range(0, len(records), step)), room)


def padded_shuffle(to: Role, number: int, records: Shuffle, room: int) -> Iterator[Outgoing]:
    """Yield what `padded` does of records in the order that they are drawn in."""
    return _filled(to, number, iter(lambda: records.take(CHUNK_RECORDS).tobytes(), b""), room)


def _filled(to: Role, number: int, pieces: Iterator[bytes], room: int) -> Iterator[Outgoing]:
    step, total = CHUNK_RECORDS * RECORD_BYTES, room * RECORD_BYTES
    for start in range(0, total or 1, step):
        piece = next(pieces, b"").ljust(min(step, total - start), b"\0")
        yield Outgoing(to, number, piece, last=start + step >= total)


class Inbox:
    """The recipient's side: takes the padded stream, then opens what is in it."""

    def __init__(self, room: int, limit: int | None, resources: Resources | None = None) -> None:
        """Expect a stream of `room` records, of which at most `limit` may come.

        Args:
            room: records and padding.
            limit: None: `room` is the limit.
            resources: where records wait that are more than a node holds in memory; None: all are held.
        """
        self.room, self._limit = room, limit
        self._records = Rows((resources or in_memory()).store(room), f"V{RECORD_BYTES}")
        self._heads: list[npt.NDArray[np.uint64]] = []
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
        kept = pieces[~padding]
        self._records.append(kept.reshape(-1).view(self._records.dtype) if len(kept) else kept[:0, 0])
        self._heads.append(_heads(kept))
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
        heads = np.sort(np.concatenate([np.empty(0, np.uint64), *self._heads]))
        if bool((heads[1:] == heads[:-1]).any()):
            raise ProtocolAborted("an envelope came twice", code="envelope-repeated")
        sealers = {index: AESGCM(key) for index, key in content_keys.items()}
        count = len(self._records)
        keys = np.empty(count, dtype=f"S{KEY_FIELD - 1}")
        streets, months = np.empty(count, dtype=np.uint32), np.empty(count, dtype=np.uint16)
        names: dict[str, int] = {}
        tag = type_tag(KEY_TYPE).encode()
        for start in range(0, count, CHUNK_RECORDS):
            block = slice(start, start + CHUNK_RECORDS)
            raw = self._records.read(start, min(start + CHUNK_RECORDS, count)).tobytes()
            plain = b"".join(
                _opened(raw[at : at + RECORD_BYTES], sealers, ctx) for at in range(0, len(raw), RECORD_BYTES)
            )
            # (2)
            found, texts, numbers = _parsed(plain)
            # (3)
            bodies = [key.removeprefix(tag) for key in found.tolist() if key.startswith(tag)]
            valid = normalise(np.array(bodies, dtype=found.dtype), KEY_TYPE, as_of=as_of, areas=areas).keys
            if len(valid) != len(found) or bool((valid != found).any()):
                raise ProtocolAborted("an envelope holds a key that is not valid", code="envelope-malformed")
            keys[block], months[block] = found, numbers
            streets[block] = [names.setdefault(text, len(names)) for text in texts]
        self._records.drop()
        lists = (np.concatenate([np.empty(0, np.uint64), *self._heads]) >> np.uint64(32)).astype(np.uint8)
        ordered = np.sort(keys)
        if bool((ordered[1:] == ordered[:-1]).any()):
            raise ProtocolAborted("two envelopes hold the same key", code="envelope-repeated")
        return Opened(keys, streets, months, lists, tuple(names))


def _heads(pieces: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """Return list and position of records as one number each: list x 2^32 + position."""
    wide = np.zeros((len(pieces), 8), dtype=np.uint8)
    wide[:, 3:] = pieces[:, :5]
    return wide.reshape(-1).view(">u8").astype(np.uint64)


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


def check_selected(
    keys: npt.NDArray[np.bytes_],
    own: npt.NDArray[np.bytes_] | Iterable[npt.NDArray[np.bytes_]],
    *,
    on: bool,
) -> None:
    """Check that the recipient's own list has every key (`on`), or none.

    Args:
        keys: of the opened envelopes, each once.
        own: the own list, ascending; whole, or block by block.
        on: whether the question is about persons on it.

    Raises:
        ProtocolAborted: `not-selected`.
        StateConflict: the own list lies in scratch, and cannot be read.
    """
    blocks = (own,) if isinstance(own, np.ndarray) else own
    wanted = np.sort(keys)
    found = 0
    # A list is ascending, and so are its blocks: no copy of a whole register is made.
    for block in blocks:
        if not len(block):
            continue
        low, high = np.searchsorted(wanted, block[[0]], "left"), np.searchsorted(wanted, block[[-1]], "right")
        near = wanted[int(low[0]) : int(high[0])]
        found += int((block[np.searchsorted(block, near)] == near).sum())
    if found != (len(keys) if on else 0):
        raise ProtocolAborted(
            "an envelope holds a person whom the question leaves out",
            code="not-selected",
            hint="a source bound a row to the tag of another person, or the matcher chose wrongly",
        )


def records(opened: Opened, owners: Mapping[int, tuple[Role, Organisation]]) -> Content:
    """Return the class-B release: key, street, last_seen, source, organisation, sorted by key.

    Texts that many rows share are there once: a table of millions takes some 120 bytes a row.

    Args:
        opened: the envelopes' contents.
        owners: whose list each number stands for, and of which organisation it is.
    """
    order = np.argsort(opened.keys)
    months, month_of = np.unique(opened.months, return_inverse=True)
    numbers, owner_of = np.unique(opened.lists, return_inverse=True)
    whose = [owners[number] for number in numbers.tolist()]
    table = Table(
        {
            "key": opened.keys[order].astype(np.str_),
            "street": _shared(opened.street_names, opened.streets[order]),
            "last_seen": _shared([month_text(month) for month in months.tolist()], month_of[order]),
            "source": _shared([role for role, _ in whose], owner_of[order]),
            "organisation": _shared([organisation for _, organisation in whose], owner_of[order]),
        }
    )
    return Content(RECORDS, table, {"mark": SUSPECTED, "rows": table.rows})


def _shared(names: Sequence[str], places: npt.NDArray[np.integer[Any]]) -> npt.NDArray[Any]:
    """Return the text at each place: an array of objects with each text once, or an empty one of texts."""
    if not len(places):
        return np.empty(0, dtype=np.str_)
    texts = np.empty(len(names), dtype=np.object_)
    texts[:] = [str(name) for name in names]
    found: npt.NDArray[Any] = texts[places]
    return found


def parse(plain: bytes) -> tuple[npt.NDArray[np.bytes_], list[str], list[str]]:
    """Return keys, streets and months of envelope contents, each in its one canonical form.

    Raises:
        ProtocolAborted: `envelope-malformed`.
    """
    keys, streets, months = _parsed(plain)
    return keys, streets, [month_text(month) for month in months]


def _parsed(plain: bytes) -> tuple[npt.NDArray[np.bytes_], list[str], list[int]]:
    """Return what `parse` does, months as numbers."""
    keys: list[bytes] = []
    streets: list[str] = []
    months: list[int] = []
    try:
        for at in range(0, len(plain), PLAIN_BYTES):
            item = plain[at : at + PLAIN_BYTES]
            keys.append(_text(item[:KEY_FIELD]))
            streets.append(_text(item[KEY_FIELD : KEY_FIELD + STREET_FIELD]).decode())
            months.append(int.from_bytes(item[-2:], "big"))
            month_text(months[-1])
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
