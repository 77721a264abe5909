"""One department's list as a matching job uses it: distinct typed keys, each with a street and a month.

Built batch by batch from Arrow columns, about 30 bytes per row; no row becomes a Python object. A list longer
than a node holds in memory lies in its scratch, and is read block by block.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protocols.errors import InputError
from protocols.identifiers import AreaTable, normalise, rule_version, type_tag
from protocols.ids import Digest
from protocols.months import UNKNOWN_MONTH, months_of
from protocols.psi.runs import Rows, Runs, taken, words
from protocols.resources import Resources, in_memory

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

    def key_blocks(self) -> Iterator[npt.NDArray[np.bytes_]]:
        """Yield the keys in ascending order, block by block."""
        for start in range(0, len(self.keys), COMMIT_ROWS):
            yield self.keys[start : start + COMMIT_ROWS]

    def commitment(self, salt: bytes) -> Digest:
        """Return SHA-256(salt ‖ every key in ascending order, each after its length as u16).

        Args:
            salt: 32 random bytes, which the node keeps for auditors.

        Raises:
            ValueError: the salt has another length.
        """
        return commit(self.key_blocks(), salt)

    def waiting(self, rows: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
        """Return which of these rows, given by their places, wait for their day."""
        return np.strings.startswith(self.keys[rows], WAITING)

    def __repr__(self) -> str:
        return f"KeyedList({self.rows} rows, {self.distinct_keys} keys)"


@dataclass(frozen=True, slots=True, eq=False)
class Entries:
    """Some rows of a list."""

    keys: npt.NDArray[np.bytes_]
    streets: npt.NDArray[np.uint16]
    months: npt.NDArray[np.uint16]
    street_names: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class SpilledList:
    """A `KeyedList` that lies in scratch. Implements `PreparedInput`, as long as the scratch is there.

    Attributes:
        rows: as read.
        entries: rows of `entry_type`, ascending by key, each key once.
        street_names: "" where unknown.
        rule_version: of the identifier rules.
        reasons: see `quality`.
    """

    rows: int
    entries: Rows
    street_names: tuple[str, ...]
    rule_version: str
    reasons: Mapping[str, int] = field(default_factory=dict)

    @property
    def distinct_keys(self) -> int:
        """Keys left after normalisation and removal of repeats."""
        return len(self.entries)

    def quality(self) -> Mapping[str, int]:
        """Return what `KeyedList.quality` does."""
        return dict(self.reasons)

    def key_blocks(self) -> Iterator[npt.NDArray[np.bytes_]]:
        """Yield the keys in ascending order, block by block.

        Raises:
            StateConflict: see `Store.read`.
        """
        return (np.ascontiguousarray(block["key"]) for block in self.entries.blocks(COMMIT_ROWS))

    def commitment(self, salt: bytes) -> Digest:
        """Return what `KeyedList.commitment` does.

        Raises:
            ValueError: the salt has another length.
            StateConflict: see `Store.read`.
        """
        return commit(self.key_blocks(), salt)

    def of(self, block: npt.NDArray[Any]) -> Entries:
        """Return rows of `entries`, in whatever order."""
        return Entries(block["key"], block["street"], block["month"], self.street_names)

    def __repr__(self) -> str:
        return f"SpilledList({self.rows} rows, {self.distinct_keys} keys)"


def entry_type(width: int) -> np.dtype[Any]:
    """Return the type of a row: key of at most `width` bytes, place of its street in the names, month."""
    return np.dtype([("key", f"S{width}"), ("street", np.uint16), ("month", np.uint16)])


class KeyedListBuilder:
    """Takes slots `key`, and where the role has them `street`, `last_seen` and `since`, batch by batch.

    Of the rows of one key the one last seen stays; of equals the one whose street sorts first. With `until`,
    a row counts only if it is dated, and not later than that day: of the rows of one key one that counts
    stays, and where none does, the key goes behind `WAITING`. So there are as many keys for every day.
    """

    def __init__(
        self,
        *,
        as_of: date,
        areas: AreaTable,
        kind: str = "resident-id",
        until: date | None = None,
        resources: Resources | None = None,
    ) -> None:
        """Start an empty list whose keys are of type `kind`, judged as of a day with a table of areas.

        Args:
            as_of: the day.
            areas: the table.
            kind: the keys' type.
            until: last date in the slot `since` of a row that counts; None: there is no such slot.
            resources: where rows go that are more than a node holds in memory; None: all are held.
        """
        self._as_of, self._areas, self._kind, self._until = as_of, areas, kind, until
        self._resources = resources or in_memory()
        self._rows = 0
        self._usable = 0
        self._reasons: Counter[str] = Counter()
        self._slots: set[str] = set()
        self._codes = StreetCodes()
        self._runs: Runs | None = None  # from the first batch on, which says how wide a key is

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
        self._usable += len(found.rows)
        self._slots.update(batch)
        self._reasons.update(found.counts())
        kept = np.empty(len(found.rows), dtype=_row_type(found.keys.dtype.itemsize))
        kept["key"], kept["past"] = found.keys, True
        if self._until is not None:
            kept["past"] = self._dated(batch["since"], found.rows, self._until)
        kept["street"] = self._codes.coded(batch.get("street"), len(column))[found.rows]
        kept["month"] = months_of(batch.get("last_seen"), len(column), "last_seen")[found.rows]
        if self._runs is None:
            self._runs = Runs(self._resources, kept.dtype, "key", self._one_each)
        self._runs.add(kept)

    def _dated(self, column: Any, rows: npt.NDArray[Any], until: date) -> npt.NDArray[np.bool_]:
        """Return which of these rows count by their dates, and count the reasons of the others."""
        days = _days(column)[rows]
        undated = np.isnat(days)
        past: npt.NDArray[np.bool_] = days <= np.datetime64(until, "D")
        self._reasons["no-date"] += int(undated.sum())
        self._reasons["within-grace"] += int((~past & ~undated).sum())
        return past

    def _one_each(self, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return rows sorted by key, of each key the one that stays."""
        # Names that come later do not change the order of those that are there.
        _, rank = self._codes.ranked()
        streets, months, past = rank[rows["street"]], ~rows["month"], ~rows["past"]
        rows = taken(rows, np.lexsort((streets, months, past, *words(rows["key"]))))
        first = np.ones(len(rows), dtype=np.bool_)
        first[1:] = rows["key"][1:] != rows["key"][:-1]
        return rows if first.all() else taken(rows, np.flatnonzero(first))

    def finish(self) -> KeyedList | SpilledList:
        """Return the list: in scratch where it has more rows than are held in memory.

        Raises:
            StateConflict: see `Store`.
        """
        names, rank = self._codes.ranked()
        runs, self._runs = self._runs, None
        blocks = iter(()) if runs is None else runs.merged()
        finished = _Finished(rank, self._kind, dated=self._until is not None)
        entries: Rows | None = None
        held = np.empty(0, dtype=entry_type(1))
        if runs is not None and runs.spilled:
            entries = self._spilled(finished, blocks)
        else:
            held = finished.whole(next(blocks, np.empty(0, dtype=_row_type(1))))
        count = len(held) if entries is None else len(entries)
        reasons = self._reasons.copy()
        reasons["repeated-key"] = self._usable - count
        if "street" in self._slots and "" in names:
            reasons["no-street"] = int(finished.by_street[names.index("")])
        if "last_seen" in self._slots:
            reasons["no-month"] = finished.no_month
        about = {code: number for code, number in reasons.items() if number}
        version = rule_version(self._areas)
        if entries is not None:
            return SpilledList(self._rows, entries, tuple(names), version, about)
        return KeyedList(
            rows=self._rows,
            keys=np.ascontiguousarray(held["key"]),
            streets=np.ascontiguousarray(held["street"]),
            months=np.ascontiguousarray(held["month"]),
            street_names=tuple(names),
            rule_version=version,
            reasons=about,
        )

    def _spilled(self, finished: "_Finished", blocks: Iterator[npt.NDArray[Any]]) -> Rows:
        """Write the list: what counts and what waits each by itself, then the one behind the other."""
        stores: list[Rows] = []
        for block in blocks:
            parts = finished.parts(block)
            stores = stores or [Rows(self._resources.scratch.store(), part.dtype) for part in parts]
            for store, part in zip(stores, parts, strict=True):
                store.append(part)
        first, *others = stores
        for other in others:
            for block in other.blocks(COMMIT_ROWS):
                first.append(block)
            other.drop()
        return first


class _Finished:
    """Makes rows what they are in a list, once all streets are known; counts what a list lacks."""

    def __init__(self, rank: npt.NDArray[np.uint16], kind: str, *, dated: bool) -> None:
        """Take each street's place among the names, the keys' type, and whether rows count by their dates."""
        self._rank, self._dated = rank, dated
        self._waiting_last = type_tag(kind).encode() < WAITING
        self.by_street = np.zeros(len(rank), dtype=np.int64)
        self.no_month = 0

    def parts(self, rows: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        """Return the list's rows of a block in ascending order, in parts that stay in order block by block.

        Each key is there once: a key in rows that count and in others would be two otherwise.
        """
        width = rows.dtype["key"].itemsize
        made = np.empty(len(rows), dtype=entry_type(width + len(WAITING) if self._dated else width))
        made["key"], made["street"], made["month"] = rows["key"], self._rank[rows["street"]], rows["month"]
        self.by_street += np.bincount(made["street"], minlength=len(self._rank))
        self.no_month += int((made["month"] == UNKNOWN_MONTH).sum())
        if not self._dated:
            return [made]
        counted, waiting = made[rows["past"]], made[~rows["past"]]
        waiting["key"] = np.strings.add(WAITING, waiting["key"])
        return [counted, waiting] if self._waiting_last else [waiting, counted]

    def whole(self, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the list that one block is."""
        return np.concatenate(self.parts(rows))


def _row_type(width: int) -> np.dtype[Any]:
    """Return the type of a row before streets are ranked: `street` is a code, `past` whether it counts."""
    return np.dtype([*entry_type(width).descr, ("past", np.bool_)])


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
