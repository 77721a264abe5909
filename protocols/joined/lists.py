"""One department's list as a joined job uses it: distinct typed keys, each with the values that are wanted.

Built batch by batch from Arrow columns; no row becomes a Python object. Of each row stay its key, its cells,
its amounts, and how recent it is. Which row of a person is kept depends on that person's rows alone.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from math import prod
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protocols.encoding import canonical_json
from protocols.errors import InputError
from protocols.identifiers import AreaTable, normalise, rule_version, type_tag
from protocols.ids import Digest, Role
from protocols.jobs.job_type import Unit
from protocols.months import UNKNOWN_MONTH, month_number, months_of
from protocols.overlap.lists import KEY, without_unit
from protocols.psi.keyed_list import (
    COMMIT_ROWS,
    WAITING,
    StreetCodes,
)
from protocols.tables.layout import Axis, Filter
from protocols.tables.tally import LATEST, NEVER, Amounts, AxisCells, FilterRows, amounts_of, moments_of

STREET: Final = "street"
LAST_SEEN: Final = "last_seen"
"""Slots of what an envelope tells of a person."""

RULES: Final = "joined/1"
"""Version of the rules by which a row is chosen and its values are read; see `JoinedListBuilder`."""

I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Keys = npt.NDArray[np.bytes_]

_COMMITMENT: Final = b"minshu/joined-list/1\0"


@dataclass(frozen=True, slots=True)
class Amount:
    """A column whose amounts are counted on, person by person.

    Attributes:
        slot: the job's word for the column.
        low, high: least and greatest amount, in units of 10^-decimals.
        decimals: digits after the point that count; an amount is rounded to them, half to even.
        outside: what becomes of an amount out of bounds: it is `clip`ped to them and counted, or the list is
            `refuse`d.
        until: None, or a month such as 2025-12: the column is of dates or months, and the amount is the
            number of months from the row's to that one.
    """

    slot: str
    low: int
    high: int
    decimals: int = 0
    outside: str = "clip"
    until: str | None = None

    @property
    def most(self) -> int:
        """Largest absolute amount."""
        return max(abs(self.low), abs(self.high))

    def to_json(self) -> dict[str, Any]:
        """Return the plain JSON form."""
        return {
            "slot": self.slot,
            "low": self.low,
            "high": self.high,
            "decimals": self.decimals,
            "outside": self.outside,
            "until": self.until,
        }


@dataclass(frozen=True, slots=True)
class Wanted:
    """One source's part of a joined job: which of its rows count, and what of them.

    Attributes:
        source: whose list it is.
        open: axes along which the matcher sees where a person without a name stands.
        hidden: axes along which nobody does; together they make one cell, the last axis fastest.
        amounts: in the order of the list's columns.
        filters: which rows count.
        envelope: whether street and last sight of each person are wanted.
    """

    source: Role
    open: tuple[Axis, ...] = ()
    hidden: tuple[Axis, ...] = ()
    amounts: tuple[Amount, ...] = ()
    filters: tuple[Filter, ...] = ()
    envelope: bool = False

    @property
    def cells(self) -> int:
        """Cells of the hidden axes; 1 without any."""
        return prod(axis.size for axis in self.hidden)

    @property
    def open_sizes(self) -> tuple[int, ...]:
        """Groups along each open axis."""
        return tuple(axis.size for axis in self.open)

    @property
    def required(self) -> frozenset[str]:
        """Slots that the dataset has to fill."""
        parts: tuple[Axis | Amount | Filter, ...] = (*self.open, *self.hidden, *self.amounts, *self.filters)
        return frozenset({KEY, *(part.slot for part in parts), *([STREET] if self.envelope else [])})

    @property
    def known(self) -> frozenset[str]:
        """Slots that it may fill."""
        return self.required | {LATEST, *([LAST_SEEN] if self.envelope else [])}

    def to_json(self) -> dict[str, Any]:
        """Return the plain JSON form, the same in whatever order filters and their values are listed."""
        kept = [{**each.to_json(), "values": sorted(each.values)} for each in self.filters]
        return {
            "open": [axis.to_json() for axis in self.open],
            "hidden": [axis.to_json() for axis in self.hidden],
            "amounts": [amount.to_json() for amount in self.amounts],
            "filters": sorted(kept, key=lambda plain: str(plain["slot"])),
            "envelope": self.envelope,
        }


@dataclass(frozen=True, slots=True, eq=False)
class JoinedList:
    """A list, sorted by key, each key once. Implements `PreparedInput`. Prints nothing of it.

    A person without a row that counts stands in it, too: the key behind `WAITING` and the source's name,
    equal to no key of any other list, with zeros for values. So how many keys there are says nothing of
    filters, axes and amounts.
    """

    wanted: Wanted
    rows: int
    keys: Keys  # n, ascending
    counted: Mask  # n: whether the person counts
    codes: npt.NDArray[np.uint16]  # n x open axes: place along each
    cells: npt.NDArray[np.int32]  # n: place in the hidden axes' cells
    amounts: I64  # n x amounts, in units of 10^-decimals, within bounds
    streets: npt.NDArray[np.uint16]  # n: place in `street_names`; none without an envelope
    months: npt.NDArray[np.uint16]  # n: year x 12 + month - 1, or UNKNOWN_MONTH; none without an envelope
    street_names: tuple[str, ...]  # "" where unknown
    rule_version: str
    reasons: Mapping[str, int] = field(default_factory=dict)

    @property
    def distinct_keys(self) -> int:
        """Keys left after normalisation and removal of repeats, waiting ones among them."""
        return len(self.keys)

    def quality(self) -> Mapping[str, int]:
        """Return what became of rows and amounts, by reason.

        The reasons of `normalise`: rows without a usable key. Of rows with one: `not-selected`, a filter or
        an axis leaves them out; `no-value`, else an amount is missing; `no-date`, `latest` or a date that a
        filter asks for cannot be read; `repeated-key`, another row of that person is kept. `out-of-range`:
        amounts of rows that count which were cut to the bounds. With an envelope, persons that count with
        `no-street` or `no-month`. A reason that never applies is left out.
        """
        return dict(self.reasons)

    def block(self, rows: npt.NDArray[Any], amounts: I64 | None = None) -> I64:
        """Return the words of these rows: of each hidden cell [1, amounts], zeros but for the person's own.

        A person who does not count has zeros everywhere.

        Args:
            rows: k places in the list.
            amounts: k x m, put in the place of the list's own amounts.

        Returns:
            k x cells·(1 + m): the cell slowest.
        """
        counts = self.counted[rows]
        inner = self.amounts[rows] if amounts is None else amounts
        each = np.empty((len(counts), 1 + inner.shape[1]), dtype=np.int64)
        each[:, 0] = counts
        np.multiply(inner, counts[:, np.newaxis], out=each[:, 1:])
        if self.wanted.cells == 1:
            return each
        words = np.zeros((len(counts), self.wanted.cells, each.shape[1]), dtype=np.int64)
        words[np.arange(len(counts)), self.cells[rows]] = each
        return words.reshape(len(counts), self.wanted.cells * each.shape[1])

    def commitment(self, salt: bytes) -> Digest:
        r"""Return SHA-256(salt ‖ "minshu/joined-list/1\0" ‖ u32 length ‖ head ‖ rows), numbers big-endian.

        The head is canonical JSON of what the job wants, of the source, the streets' names, how many rows
        there are and how many bytes a key takes. A row is its key, zeros after its end, u8 whether it counts,
        u16 for each open axis, u32 cell, i64 for each amount, and with an envelope u16 street and u16 month.

        Args:
            salt: 32 random bytes, which the node keeps for auditors.

        Raises:
            ValueError: the salt has another length.
        """
        if len(salt) != 32:
            raise ValueError(f"salt of {len(salt)} bytes, expected 32")
        head = canonical_json(
            {
                "source": self.wanted.source,
                "wanted": self.wanted.to_json(),
                "streets": [*self.street_names],
                "rows": len(self.keys),
                "width": self.keys.dtype.itemsize,
            }
        )
        digest = hashlib.sha256(salt + _COMMITMENT + len(head).to_bytes(4, "big") + head)
        for block in self._blocks():
            digest.update(block)
        return Digest("sha256:" + digest.hexdigest())

    def _blocks(self) -> Iterator[bytes]:
        for at in range(0, len(self.keys), COMMIT_ROWS):
            here = slice(at, at + COMMIT_ROWS)
            parts = [
                self.keys[here],
                self.counted[here].astype(np.uint8),
                self.codes[here].astype(">u2"),
                self.cells[here].astype(">u4"),
                self.amounts[here].astype(">i8"),
            ]
            if self.wanted.envelope:
                parts += [self.streets[here].astype(">u2"), self.months[here].astype(">u2")]
            columns = [np.ascontiguousarray(part).view(np.uint8).reshape(len(part), -1) for part in parts]
            yield np.concatenate(columns, axis=1).tobytes()

    def __repr__(self) -> str:
        return f"JoinedList({self.rows} rows, {self.distinct_keys} keys)"


@dataclass(slots=True, eq=False)
class _Rows:
    """What is kept of rows with a key, one array per batch."""

    keys: list[Keys] = field(default_factory=list)
    counts: list[Mask] = field(default_factory=list)
    codes: list[npt.NDArray[np.uint16]] = field(default_factory=list)
    cells: list[npt.NDArray[np.int32]] = field(default_factory=list)
    amounts: list[I64] = field(default_factory=list)
    latest: list[I64] = field(default_factory=list)
    streets: list[npt.NDArray[np.uint16]] = field(default_factory=list)
    months: list[npt.NDArray[np.uint16]] = field(default_factory=list)


class JoinedListBuilder:
    """Takes the slots that are wanted, and with a unit its column, batch by batch.

    A row counts if every filter keeps it, every axis has a place for it and it has every amount. Of a
    person's rows one that counts is kept; of these the latest, by the slots `latest` and then `last_seen`
    where they are mapped; of equals the one whose values come first, in the order open axes, cell, amounts,
    street. So the list does not depend on the order of rows.
    """

    def __init__(
        self,
        wanted: Wanted,
        *,
        as_of: date,
        areas: AreaTable,
        unit: Unit | None,
        kind: str = "resident-id",
    ) -> None:
        """Start an empty list.

        Args:
            wanted: this source's part of the job.
            as_of: the day as of which keys are judged where `unit` does not say one.
            areas: area codes that were ever valid.
            unit: whom a row is about, which has to be the key; None where it is about nobody.
            kind: the keys' type.

        Raises:
            ValueError: a type whose keys do not sort before those that wait.
        """
        if not type_tag(kind).encode() < WAITING:
            raise ValueError("keys of this type would sort behind those that wait")
        self._wanted, self._unit, self._kind = wanted, unit, kind
        self._as_of, self._areas = (unit.as_of if unit and unit.as_of else as_of), areas
        self._open = [AxisCells(axis) for axis in wanted.open]
        self._hidden = [AxisCells(axis) for axis in wanted.hidden]
        self._filters = [FilterRows(each) for each in wanted.filters]
        self._streets = StreetCodes()
        self._streets.coded(None, 0)  # there is room for "", the street of those who wait
        self._found = _Rows()
        self._slots: frozenset[str] | None = None
        self._reasons: Counter[str] = Counter()
        self._rows = self._bad = self._beyond = 0

    def add(self, batch: Mapping[str, Any]) -> None:
        """Take one batch: slot → Arrow array, all of one length.

        Raises:
            InputError: `key-not-unit`; `unknown-slot`, a slot too many or too few; `length-mismatch`;
                `not-text`, `not-a-number`, `not-a-date`, a column of another type; `bad-street`,
                `too-many-streets`.
        """
        slots = without_unit(batch, self._unit)
        wanted = self._wanted
        if not wanted.required <= set(slots) <= wanted.known:
            raise InputError(
                f"a batch of {len(slots)} slot(s), expected {', '.join(sorted(wanted.required))}",
                code="unknown-slot",
            )
        if self._slots not in (None, set(slots)) or len({len(array) for array in slots.values()}) != 1:
            raise InputError("columns of a batch differ in length, or come and go", code="length-mismatch")
        self._slots = frozenset(slots)
        columns = {slot: _whole(column) for slot, column in slots.items()}
        count = len(columns[KEY])
        self._rows += count
        # (1) Keys. (2) Which rows count, and where they stand. (3) Amounts. (4) What decides between rows.
        found = normalise(columns[KEY], self._kind, as_of=self._as_of, areas=self._areas)
        self._reasons.update(found.counts())
        here = found.rows
        self._found.keys.append(found.keys)
        codes, cells, counts, undated = self._placed(columns, count)
        self._reasons["not-selected"] += int((~counts[here]).sum())
        amounts = self._amounts(columns, counts, here)
        counts = counts[here]
        self._found.counts.append(counts)
        self._found.codes.append(np.where(counts[:, np.newaxis], codes[here], 0).astype(np.uint16))
        self._found.cells.append(np.where(counts, cells[here], 0).astype(np.int32))
        self._found.amounts.append(amounts)
        if LATEST in columns:
            latest = moments_of(columns[LATEST])
            undated |= latest == NEVER
            self._found.latest.append(latest[here])
        self._reasons["no-date"] += int(undated[here].sum())
        if wanted.envelope:
            self._found.streets.append(self._streets.coded(columns[STREET], count)[here])
            self._found.months.append(months_of(columns.get(LAST_SEEN), count, LAST_SEEN)[here])

    def _placed(self, columns: Mapping[str, Any], count: int) -> tuple[I64, I64, Mask, Mask]:
        """Return each row's places along the open axes, its cell, whether filters and axes keep it, and
        whether a filter asks for a date that it does not have.
        """
        counts, undated = np.ones(count, dtype=np.bool_), np.zeros(count, dtype=np.bool_)
        for each in self._filters:
            passes, dateless = each.passes(columns[each.slot])
            counts &= passes
            undated |= dateless
        codes = np.empty((count, len(self._open)), dtype=np.int64)
        for place, axis in enumerate(self._open):
            codes[:, place] = along = axis.place(columns[axis.slot])
            counts &= along >= 0
        cells = np.zeros(count, dtype=np.int64)
        for axis in self._hidden:
            along = axis.place(columns[axis.slot])
            counts &= along >= 0
            cells = cells * axis.size + along
        return codes, cells, counts, undated

    def _amounts(self, columns: Mapping[str, Any], counts: Mask, here: I64) -> I64:
        """Return the amounts of the rows `here`; take rows without one out of `counts`.

        Whether a column is sound is a matter of all its rows: which ones a job selects makes no difference.
        """
        wanted = self._wanted.amounts
        amounts = np.zeros((len(here), len(wanted)), dtype=np.int64)
        selected, cuts = counts.copy(), []
        spoilt = np.zeros(len(counts), dtype=np.bool_)
        for place, amount in enumerate(wanted):
            read = _read(columns[amount.slot], amount)
            spoilt |= read.bad
            counts &= read.present
            amounts[:, place] = read.amounts[here]
            if amount.outside == "refuse":
                self._beyond += int(read.cut.sum())
            else:
                cuts.append(read.cut)
        self._bad += int(spoilt.sum())
        self._reasons["no-value"] += int((selected & ~counts)[here].sum())
        self._reasons["out-of-range"] += sum(int((cut & counts)[here].sum()) for cut in cuts)
        amounts[~counts[here]] = 0
        return amounts

    def finish(self) -> JoinedList:
        """Keep one row of each person, and return the list.

        Raises:
            InputError: `bad-measure`, an amount is no finite number; `out-of-range`, one is out of bounds
                that refuse it.
        """
        if self._bad:
            raise InputError(
                f"{self._bad} rows have an amount that is no finite number",
                code="bad-measure",
                hint="write a plain number, or leave the amount empty where there is none",
            )
        if self._beyond:
            raise InputError(
                f"{self._beyond} amounts are out of the bounds of the job, which hold the policy's range",
                code="out-of-range",
                hint="correct the data, or state the range that it really has in the policy",
            )
        found, self._found = self._found, _Rows()
        wanted = self._wanted
        names, rank = self._streets.ranked()
        keys = _joined(found.keys, np.empty(0, dtype="S1"))
        counts = _joined(found.counts, np.empty(0, dtype=np.bool_))
        codes = _joined(found.codes, np.empty((0, len(wanted.open)), dtype=np.uint16))
        cells = _joined(found.cells, np.empty(0, dtype=np.int32))
        amounts = _joined(found.amounts, np.empty((0, len(wanted.amounts)), dtype=np.int64))
        latest = _joined(found.latest, np.empty(0, dtype=np.int64))
        streets = rank[_joined(found.streets, np.empty(0, dtype=np.uint16))]
        months = _joined(found.months, np.empty(0, dtype=np.uint16))
        # Least first; ~ turns the order round.
        deciding: list[npt.NDArray[Any]] = [~counts]
        if len(latest):
            deciding.append(~latest)
        if wanted.envelope:
            deciding.append(~months)
        deciding += [*codes.T, cells, *amounts.T]
        if wanted.envelope:
            deciding.append(streets)
        kept = _one_each(keys, deciding)
        self._reasons["repeated-key"] += len(keys) - len(kept)
        # Every key that waits sorts behind every other one.
        kept = np.concatenate([kept[counts[kept]], kept[~counts[kept]]])
        counted = counts[kept]
        if wanted.envelope:
            streets, months, names = _of_counted(streets[kept], months[kept], counted, names)
            self._reasons["no-street"] += int((streets[counted] == 0).sum())
            if LAST_SEEN in (self._slots or ()):
                self._reasons["no-month"] += int((months[counted] == UNKNOWN_MONTH).sum())
        return JoinedList(
            wanted=wanted,
            rows=self._rows,
            keys=_waiting(keys[kept], counted, wanted.source),
            counted=counted,
            codes=codes[kept],
            cells=cells[kept],
            amounts=amounts[kept],
            streets=streets,
            months=months,
            street_names=tuple(names),
            rule_version=f"{RULES}+{rule_version(self._areas)}",
            reasons={code: count for code, count in self._reasons.items() if count},
        )


def _whole(column: Any) -> Any:
    import pyarrow as pa

    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _read(column: Any, amount: Amount) -> Amounts:
    """Return a column's amounts, within bounds.

    Raises:
        InputError: `not-a-number`, `not-a-date`.
    """
    if amount.until is None:
        return amounts_of(column, amount.slot, amount.decimals, amount.low, amount.high)
    months = months_of(column, len(column), amount.slot).astype(np.int64)
    present = months != UNKNOWN_MONTH
    apart = np.where(present, month_number(amount.until) - months, 0)
    cut = present & ((apart < amount.low) | (apart > amount.high))
    within = np.where(present, np.clip(apart, amount.low, amount.high), 0)
    return Amounts(within, present, cut, np.zeros(len(column), dtype=np.bool_))


def _joined(parts: list[Any], none: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the parts in one, and let go of them."""
    whole = np.concatenate(parts) if parts else none
    parts.clear()
    return whole


def _one_each(keys: Keys, deciding: Sequence[npt.NDArray[Any]]) -> I64:
    """Return one row of each key, in ascending order of keys: of a key's rows the least by `deciding`."""
    order, first = _ascending(keys)
    kept = order[first]
    if len(kept) == len(keys):
        return kept
    # Most persons have one row: only the others are compared.
    groups = np.cumsum(first) - 1
    several = np.flatnonzero(np.bincount(groups)[groups] > 1)
    rows, groups = order[several], groups[several]
    by = np.lexsort([*(each[rows] for each in reversed(deciding)), groups])
    groups = groups[by]
    begins = np.ones(len(groups), dtype=np.bool_)
    begins[1:] = groups[1:] != groups[:-1]
    kept[groups[begins]] = rows[by][begins]
    return kept


def _ascending(keys: Keys) -> tuple[I64, Mask]:
    """Return the rows in ascending order of keys, and which of them is the first of its key.

    Keys are packed into as few words as hold them, each letter as its rank among those that occur in its
    place, and words are sorted: a resident's number takes one.
    """
    if not len(keys):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.bool_)
    letters = np.ascontiguousarray(keys).view(np.uint8).reshape(len(keys), -1).T
    words = [np.zeros(len(keys), dtype=np.uint64)]
    span = 1
    for column in letters:
        seen = np.flatnonzero(np.bincount(column, minlength=256))
        if len(seen) == 1:
            continue
        if span * len(seen) > 1 << 64:
            words.append(np.zeros(len(keys), dtype=np.uint64))
            span = 1
        rank = np.zeros(256, dtype=np.uint64)
        rank[seen] = np.arange(len(seen))
        words[-1] *= np.uint64(len(seen))
        words[-1] += rank[column]
        span *= len(seen)
    order = np.argsort(words[0], kind="stable") if len(words) == 1 else np.lexsort(words[::-1])
    first = np.zeros(len(keys), dtype=np.bool_)
    first[0] = True
    for word in words:
        ordered = word[order]
        first[1:] |= ordered[1:] != ordered[:-1]
    return order, first


def _waiting(keys: Keys, counted: Mask, source: Role) -> Keys:
    """Return the keys, those of persons who do not count behind `WAITING` and the source's name.

    With one mark for all sources, a person who waits on every list would be joined.
    """
    mark = WAITING + source.encode() + b":"
    width = len(mark) + keys.dtype.itemsize  # whether anybody waits or not
    marked = keys.astype(f"S{width}")
    marked[~counted] = np.strings.add(mark, keys[~counted])
    return marked


def _of_counted(
    streets: npt.NDArray[np.uint16], months: npt.NDArray[np.uint16], counted: Mask, names: Sequence[str]
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint16], list[str]]:
    """Return streets and months of persons who count, neither of others, and the streets' names."""
    used = np.zeros(len(names), dtype=np.bool_)
    used[streets[counted]] = True
    kept = [""] + [name for name, there in zip(names, used, strict=True) if there and name]
    places = {name: place for place, name in enumerate(kept)}
    place = np.array([places.get(name, 0) for name in names] or [0], dtype=np.uint16)
    return (
        np.where(counted, place[streets], 0).astype(np.uint16),
        np.where(counted, months, UNKNOWN_MONTH).astype(np.uint16),
        kept,
    )
