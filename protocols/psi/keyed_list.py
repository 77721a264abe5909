"""One department's list as a matching job uses it: distinct typed keys, each with a street and a month.

Built batch by batch from Arrow columns, about 40 bytes per row; no row becomes a Python object.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protocols.errors import InputError
from protocols.identifiers import AreaTable, normalise, rule_version
from protocols.ids import Digest
from protocols.months import UNKNOWN_MONTH, months_of

MAX_STREET_BYTES: Final = 47
MAX_STREETS: Final = 1 << 16

_FIRST_DAY: Final = np.datetime64("1900-01-01", "D")
_END_DAY: Final = np.datetime64("2200-01-01", "D")
_COMPACT_DAY: Final = r"^([0-9]{4})([0-9]{2})([0-9]{2})$"
_ISO_DAY: Final = r"^(19|20|21)[0-9]{2}-[0-9]{2}-[0-9]{2}([T ].*)?$"
WAITING: Final = b"WAITING:"
"""Stands before a key whose rows do not count by their dates: a tag of no identifier type, so equal to no key
of a list that has none."""

COMMIT_ROWS: Final = 1 << 16
"""How many items of a list are committed to at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class KeyedList:
    """A list, sorted by key, each key once. Implements `PreparedInput`.

    Where rows count by their dates, the keys of which none does stand in it behind `WAITING`: how many keys
    there are says nothing about days.
    """

    rows: int
    keys: npt.NDArray[np.bytes_]  # n, ascending
    streets: npt.NDArray[np.uint16]  # n: place in `street_names`
    months: npt.NDArray[np.uint16]  # n: see UNKNOWN_MONTH
    street_names: tuple[str, ...]  # "" where unknown
    rule_version: str
    reasons: Mapping[str, int] = field(default_factory=dict)

    @property
    def distinct_keys(self) -> int:
        """Keys left after normalisation and removal of repeats."""
        return len(self.keys)

    def quality(self) -> Mapping[str, int]:
        """Return rows without key by reason code, `repeated-key` rows, keys with `no-street`, `no-month`.

        Where rows count by their dates, also those with a key that are `within-grace` or have `no-date`;
        these are part of the list all the same. A reason that never applies is left out.
        """
        return dict(self.reasons)

    def commitment(self, salt: bytes) -> Digest:
        """Return SHA-256(salt ‖ every key in ascending order, each after its length as u16).

        Args:
            salt: 32 random bytes, which the node keeps for auditors.

        Raises:
            ValueError: the salt has another length.
        """
        blocks = (self.keys[at : at + COMMIT_ROWS] for at in range(0, len(self.keys), COMMIT_ROWS))
        return commit(blocks, salt)

    def waiting(self, rows: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
        """Return which of these rows, given by their places, wait for their day."""
        return np.strings.startswith(self.keys[rows], WAITING)

    def __repr__(self) -> str:
        return f"KeyedList({self.rows} rows, {self.distinct_keys} keys)"


class KeyedListBuilder:
    """Takes slots `key`, and where the role has them `street`, `last_seen` and `since`, batch by batch.

    Of the rows of one key the one last seen stays; of equals the one whose street sorts first. With `until`,
    a row counts only if it is dated, and not later than that day: of the rows of one key one that counts
    stays, and where none does, the key goes behind `WAITING`. So there are as many keys for every day.
    """

    def __init__(
        self, *, as_of: date, areas: AreaTable, kind: str = "resident-id", until: date | None = None
    ) -> None:
        """Start an empty list whose keys are of type `kind`, judged as of a day with a table of areas.

        Args:
            as_of: the day.
            areas: the table.
            kind: the keys' type.
            until: last date in the slot `since` of a row that counts; None: there is no such slot.
        """
        self._as_of, self._areas, self._kind, self._until = as_of, areas, kind, until
        self._rows = 0
        self._reasons: Counter[str] = Counter()
        self._slots: set[str] = set()
        self._codes = StreetCodes()
        self._keys: list[npt.NDArray[np.bytes_]] = []
        self._past: list[npt.NDArray[np.bool_]] = []
        self._streets: list[npt.NDArray[np.uint16]] = []
        self._months: list[npt.NDArray[np.uint16]] = []

    def add(self, batch: Mapping[str, Any]) -> None:
        """Take one batch.

        Args:
            batch: slot → pyarrow array; `key` and `street` text, `last_seen` a date, a time, or a month
                such as 2026-11 or 202611, as text or as a number; `since` a date, a time, or a day such as
                2026-11-30 or 20261130, as text or as a number.

        Raises:
            InputError: a column of another type or length, streets that are none, or no dates where rows
                count by their dates.
        """
        column = batch["key"]
        dated = frozenset() if self._until is None else frozenset({"since"})
        if unknown := set(batch) - {"key", "street", "last_seen"} - dated:
            raise InputError(f"{len(unknown)} unknown slot(s) in a batch", code="unknown-slot")
        if len({len(array) for array in batch.values()}) != 1:
            raise InputError("columns of a batch differ in length", code="length-mismatch")
        if missing := dated - set(batch):
            raise InputError(f"a batch without the slot {', '.join(missing)}", code="missing-slot")
        found = normalise(column, self._kind, as_of=self._as_of, areas=self._areas)
        self._rows += len(column)
        self._slots.update(batch)
        self._reasons.update(found.counts())
        rows = found.rows
        self._keys.append(found.keys)
        if self._until is not None:
            self._past.append(self._dated(batch["since"], rows, self._until))
        self._streets.append(self._codes.coded(batch.get("street"), len(column))[rows])
        self._months.append(months_of(batch.get("last_seen"), len(column), "last_seen")[rows])

    def _dated(self, column: Any, rows: npt.NDArray[Any], until: date) -> npt.NDArray[np.bool_]:
        """Return which of these rows count by their dates, and count the reasons of the others."""
        days = _days(column)[rows]
        undated = np.isnat(days)
        past: npt.NDArray[np.bool_] = days <= np.datetime64(until, "D")
        self._reasons["no-date"] += int(undated.sum())
        self._reasons["within-grace"] += int((~past & ~undated).sum())
        return past

    def finish(self) -> KeyedList:
        """Return the list."""
        keys = np.concatenate(self._keys) if self._keys else np.empty(0, dtype="S1")
        names, rank = self._codes.ranked()
        streets = rank[np.concatenate(self._streets)] if self._streets else np.empty(0, dtype=np.uint16)
        months = np.concatenate(self._months) if self._months else np.empty(0, dtype=np.uint16)
        past = np.concatenate(self._past) if self._past else None
        self._keys, self._streets, self._months, self._past = [], [], [], []
        order = np.lexsort((streets, ~months, keys) if past is None else (streets, ~months, ~past, keys))
        keys = keys[order]
        first = np.ones(len(keys), dtype=np.bool_)
        first[1:] = keys[1:] != keys[:-1]
        order, keys = order[first], keys[first]
        if past is not None:
            # Once each key is there once: a key in rows that count and in others would be two otherwise.
            keys = np.where(past[order], keys, np.strings.add(WAITING, keys))
            again = np.argsort(keys)
            keys, order = keys[again], order[again]
        streets, months = streets[order], months[order]
        reasons = self._reasons.copy()
        reasons["repeated-key"] = int(len(first) - len(keys))
        if "street" in self._slots and "" in names:
            reasons["no-street"] = int((streets == names.index("")).sum())
        if "last_seen" in self._slots:
            reasons["no-month"] = int((months == UNKNOWN_MONTH).sum())
        return KeyedList(
            rows=self._rows,
            keys=keys,
            streets=streets,
            months=months,
            street_names=tuple(names),
            rule_version=rule_version(self._areas),
            reasons={code: count for code, count in reasons.items() if count},
        )


class StreetCodes:
    """Numbers for streets, in order of first appearance, and their names."""

    def __init__(self) -> None:
        """Start without a street."""
        self._codes: dict[str, int] = {}

    def coded(self, column: Any, rows: int) -> npt.NDArray[np.uint16]:
        """Return the code of each row's street, that of "" where it is null or there is no column.

        Raises:
            InputError: `not-text`, `bad-street`, `too-many-streets`.
        """
        if column is None:
            return np.full(rows, self._code(""), dtype=np.uint16)
        texts, places = texts_of(column, "street")
        codes = np.zeros(len(texts) or 1, dtype=np.uint16)
        for place, text in enumerate(texts):
            codes[place] = self._code(text.strip())
        return codes[places]

    def ranked(self) -> tuple[list[str], npt.NDArray[np.uint16]]:
        """Return the names in order, and of each code its name's place there."""
        names = sorted(self._codes)
        rank = np.zeros(len(names) or 1, dtype=np.uint16)
        for place, name in enumerate(names):
            rank[self._codes[name]] = place
        return names, rank

    def _code(self, name: str) -> int:
        if len(name.encode()) > MAX_STREET_BYTES or not name.isprintable():
            raise InputError(
                f"a street of {len(name)} characters, expected {MAX_STREET_BYTES} bytes of printable text",
                code="bad-street",
                hint="give the code of the street, such as its nine digits of GB/T 10114",
            )
        if len(self._codes) == MAX_STREETS and name not in self._codes:
            raise InputError(
                f"more than {MAX_STREETS} different streets",
                code="too-many-streets",
                hint="the slot street takes the street or town, not the address",
            )
        return self._codes.setdefault(name, len(self._codes))


def _days(column: Any) -> npt.NDArray[np.datetime64]:
    """Return the day of each row; not-a-time where it is null, unreadable or not in 1900 to 2199."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    fits = (pa.types.is_string, pa.types.is_large_string, pa.types.is_dictionary, pa.types.is_integer)
    try:
        if any(fit(kind) for fit in fits):
            text = pc.replace_substring_regex(column.cast(pa.string()), _COMPACT_DAY, r"\1-\2-\3")
            text = pc.utf8_slice_codeunits(
                pc.if_else(pc.match_substring_regex(text, _ISO_DAY), text, ""), 0, 10
            )
            read = pc.strptime(text, format="%Y-%m-%d", unit="s", error_is_null=True)
            # A day that no month has, such as the 30th of February, is read as another one.
            column = pc.if_else(pc.equal(pc.strftime(read, format="%Y-%m-%d"), text), read, None)
        elif not (pa.types.is_date(kind) or pa.types.is_timestamp(kind)):
            raise InputError(
                f"the since column is of type {kind}, expected a date, a time, text or whole numbers",
                code="not-a-date",
                hint="cast it to a date at the source, or give days such as 2026-11-30 or 20261130",
            )
        number = column.cast(pa.date32(), safe=False).cast(pa.int32())
    except pa.ArrowException:
        raise InputError(
            "the since column cannot be read as dates", code="not-a-date", hint="cast it at the source"
        ) from None
    if isinstance(number, pa.ChunkedArray):
        number = number.combine_chunks()
    known = np.asarray(number.is_valid().to_numpy(zero_copy_only=False))
    plain = np.asarray(number.fill_null(0).to_numpy(zero_copy_only=False), dtype=np.int64)
    days = plain.astype("datetime64[D]")
    days[~known | (days < _FIRST_DAY) | (days >= _END_DAY)] = np.datetime64("NaT")
    return days


def commit(blocks: Iterable[npt.NDArray[np.bytes_]], salt: bytes) -> Digest:
    """Return SHA-256(salt ‖ every item in order, each after its length as u16).

    Args:
        blocks: the items of a list, block by block.
        salt: 32 random bytes.

    Raises:
        ValueError: the salt has another length.
    """
    if len(salt) != 32:
        raise ValueError(f"salt of {len(salt)} bytes, expected 32")
    digest = hashlib.sha256(salt)
    for block in blocks:
        width = block.dtype.itemsize
        letters = np.ascontiguousarray(block).view(np.uint8).reshape(len(block), width)
        if letters[:, -1].all():  # none is shorter than the others
            rows = np.empty((len(block), 2 + width), dtype=np.uint8)
            rows[:, :2] = divmod(width, 256)
            rows[:, 2:] = letters
            digest.update(rows.data)
            continue
        items: list[bytes] = block.tolist()
        digest.update(b"".join(len(item).to_bytes(2, "big") + item for item in items))
    return Digest("sha256:" + digest.hexdigest())


def texts_of(column: Any, what: str) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Return the different texts of a column, "" for null, and of each row its text's place among them.

    Args:
        column: a pyarrow array.
        what: the slot, for the error.

    Raises:
        InputError: `not-text`.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        plain = pc.fill_null(column.cast(pa.string()), "")
        plain.validate(full=True)
    except pa.ArrowException:
        # Arrow's message may quote the value.
        raise InputError(
            f"the {what} column is not text in UTF-8", code="not-text", hint="cast it to text at the source"
        ) from None
    if isinstance(plain, pa.ChunkedArray):
        plain = plain.combine_chunks()
    coded = plain.dictionary_encode()
    places = np.asarray(coded.indices.to_numpy(zero_copy_only=False), dtype=np.int64)
    return coded.dictionary.to_pylist(), places
