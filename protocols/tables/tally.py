"""One department's rows as the vectors of a table: every person bounded first, then counted and added up.

Built batch by batch from Arrow columns; no row becomes a Python object. Of each row that counts stay its
unit's key, its cell, when it is from, and its amounts. Which rows of one unit are kept depends on that
unit's rows alone: see SPEC.md 2.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protocols.encoding import canonical_json
from protocols.errors import InputError
from protocols.identifiers import AreaTable, Reason, normalise, rule_version
from protocols.identifiers.columns import blocks
from protocols.ids import Digest
from protocols.jobs.job_type import UNIT, Unit
from protocols.months import END_MONTH, FIRST_MONTH, UNKNOWN_MONTH, months_of
from protocols.tables import numbers
from protocols.tables.grouped import Asked, Form, Groups, covered_places, form_of
from protocols.tables.layout import MAX_CELLS, MAX_ROWS, MAX_TEXT, Axis, Filter, Layout

I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

LATEST: Final = "latest"
"""Slot of the column that says how recent a row is; of one unit's rows the latest count first."""

RULES: Final = "tables/1"
"""Version of the rules in SPEC.md; a change that gives any table other counts raises it."""

IDENTIFIERS: Final = {
    "resident-id": "resident-id",
    "residence-permit": "hmt-permit",
    "permanent-resident": "foreign-permanent-resident",
    "uscc": "uscc",
    "phone": "phone",
}
"""Column types of a policy whose values have one canonical form → what `normalise` calls them."""

MAX_UNIT_BYTES: Final = 256

_COMMITMENT: Final = b"minshu/tally/1\0"
NEVER: Final = -(1 << 63)
"""How recent a row is that does not say it; see `moments_of`."""

_SPAN: Final = 1 << 63
_WHOLE: Final = r"^-?[0-9]{1,18}$"
_ISO_MONTH: Final = r"^([0-9]{4})-([0-9]{2})$"
_ISO_DAY: Final = r"^([0-9]{4})-([0-9]{2})-([0-9]{2})([T ].*)?$"


@dataclass(frozen=True, slots=True, eq=False)
class _Added:
    """What the kept rows say of one measure, by cell."""

    present: I64
    total: I64
    tops: tuple[I64, I64] | None


@dataclass(frozen=True, eq=False)
class Tally:
    """The vectors of one department's table. Implements `PreparedInput`. Prints nothing of them."""

    layout: Layout
    rows: int
    distinct_keys: int  # units that count
    rule_version: str
    _persons: I64
    _counted: I64
    _added: Mapping[str, _Added]
    _keys: tuple[str, ...] = ()
    _reasons: Mapping[str, int] = field(default_factory=dict)
    about_units: bool = True
    """Whether rows are about somebody: else the policy says of no column whom it names."""

    def quality(self) -> Mapping[str, int]:
        """Return rows that do not count, by reason, and what else is worth knowing of those that do.

        `outside`: a filter, no cell, or one that the job says this source does not cover; the reasons of
        `normalise`: no usable identifier; `over-bound`: more rows of one unit than count. Of rows that count:
        `clamped` and `no-value` amounts, `no-date` rows without a readable `latest`. A reason that never
        applies is left out.
        """
        return dict(self._reasons)

    def persons(self) -> I64:
        """Return how many units have a kept row in each cell."""
        return self._persons

    def counted(self) -> I64:
        """Return how many kept rows each cell has."""
        return self._counted

    def present(self, slot: str) -> I64:
        """Return how many kept rows of each cell have an amount of a measure."""
        return self._added[slot].present

    def total(self, slot: str) -> I64:
        """Return each cell's sum of a measure, in units of 10^-decimals."""
        return self._added[slot].total

    def centred(self, slot: str, middle: int) -> I64:
        """Return each cell's sum of (amount - middle) over the kept rows with an amount.

        Args:
            slot: the measure.
            middle: in units of 10^-decimals.

        Raises:
            ValueError: a sum could leave 64 bits.
        """
        added = self._added[slot]
        most = int(added.present.max(initial=0)) * abs(middle) + int(np.abs(added.total).max(initial=0))
        if most >= _SPAN:
            raise ValueError("the middle lies so far from the amounts that a sum leaves 64 bits")
        return added.total - middle * added.present

    def tops(self, slot: str) -> tuple[I64, I64]:
        """Return the largest and the second largest sum that one unit adds to each cell; 0 for no such unit.

        Raises:
            ValueError: the measure may be below zero, or amounts were cut to bounds: neither has a
                dominance rule.
        """
        tops = self._added[slot].tops
        if tops is None:
            raise ValueError("contributions are only ranked for exact measures from zero upwards")
        return tops

    def keyed(self) -> tuple[list[str], I64]:
        """Return, where cells are a column's own values, each value that occurs, sorted, and its persons."""
        return list(self._keys), self._persons

    def commitment(self, salt: bytes) -> Digest:
        r"""Return SHA-256(salt ‖ "minshu/tally/1\0" ‖ u32 length ‖ layout ‖ u32 keys ‖ keys ‖ vectors).

        The layout with its filters as canonical JSON; each key after its length as u16; each vector as
        big-endian int64: persons, counted, then of each measure present, total and, where ranked, both tops.

        Args:
            salt: 32 random bytes, which the node keeps for auditors.

        Raises:
            ValueError: the salt has another length.
        """
        if len(salt) != 32:
            raise ValueError(f"salt of {len(salt)} bytes, expected 32")
        plain = {**self.layout.to_json(), "filters": [each.to_json() for each in self.layout.filters]}
        said = canonical_json(plain)
        digest = hashlib.sha256(salt + _COMMITMENT + len(said).to_bytes(4, "big") + said)
        digest.update(len(self._keys).to_bytes(4, "big"))
        for key in self._keys:
            text = key.encode("utf-8")
            digest.update(len(text).to_bytes(2, "big") + text)
        for vector in self._vectors():
            digest.update(vector.astype(">i8").tobytes())
        return Digest("sha256:" + digest.hexdigest())

    def _vectors(self) -> Iterator[I64]:
        yield self._persons
        yield self._counted
        for added in self._added.values():
            yield added.present
            yield added.total
            yield from added.tops or ()

    def __repr__(self) -> str:
        return f"Tally({self.layout.cells} cells, {len(self.layout.measures)} measures)"


@dataclass(slots=True, eq=False)
class _Rows:
    """What is kept of the rows that count, one array per batch."""

    cells: list[npt.NDArray[np.int32]] = field(default_factory=list)
    latest: list[I64] = field(default_factory=list)
    amounts: list[I64] = field(default_factory=list)  # measures x n
    present: list[Mask] = field(default_factory=list)  # measures x n


class Units:
    """Whom the rows that count are about, and which of them are kept: the part of a builder that says so."""

    def __init__(self, unit: Unit, as_of: date, areas: AreaTable, reasons: Counter[str]) -> None:
        """Start without rows.

        Args:
            unit: whom a row is about.
            as_of: the day on which identifiers are judged where `unit` does not say one.
            areas: the area codes that identifiers may have.
            reasons: the builder's own counts of rows that do not count; more are added to them.
        """
        self._unit, self._as_of, self._areas = unit, unit.as_of or as_of, areas
        self._reasons = reasons
        self._keys: list[Any] = []  # Arrow
        self._missing = self._usable = 0

    def take(self, column: Any, here: I64) -> I64:
        """Keep the units of the rows `here` of a batch, and return the rows of these that have a usable one.

        Raises:
            InputError: `bad-unit`, or as `normalise` does.
        """
        kind = IDENTIFIERS.get(self._unit.kind)
        if kind is None:
            keys, missing = _plain_units(column)
            self._missing += missing
            self._keys.append(_taken(keys, here))
            return here
        self._missing += column.null_count
        found = normalise(column, kind, as_of=self._as_of, areas=self._areas)
        self._usable += len(found.rows)
        reasons = found.reasons[here]
        numbered = np.bincount(reasons, minlength=len(Reason))
        self._reasons.update({each.code: int(numbered[each]) for each in Reason if each})
        here = here[reasons == Reason.ACCEPTED]
        all_count = len(here) == len(found.keys)
        self._keys.append(_fixed(found.keys if all_count else found.keys[np.searchsorted(found.rows, here)]))
        return here

    def take_counted(self, rows: int) -> None:
        """Go by so many rows that were counted elsewhere, all of units with a usable key."""
        self._usable += rows

    def form(self) -> Form | None:
        """Return which texts are certainly keys as they stand; None: nobody can say."""
        return form_of(self._unit.kind, self._as_of, self._areas)

    def refuse(self, rows: int) -> None:
        """Refuse data that do not say whom they are about; `rows` is how many there are in all.

        Raises:
            InputError: `unit-missing` or `no-usable-key`.
        """
        if self._missing:
            raise InputError(
                f"{self._missing} of {rows} rows do not say whom they are about",
                code="unit-missing",
                hint="fill the column that the policy names as the unit, or leave those rows out",
            )
        if self._unit.kind in IDENTIFIERS and rows and not self._usable:
            raise InputError(
                f"none of the {rows} rows has a usable identifier",
                code="no-usable-key",
                hint="check which column the policy names as the unit, its type there, and the area table",
            )

    def numbered(self) -> npt.NDArray[np.int32]:
        """Return a number for each row's unit."""
        return _numbered(self._keys)[0]

    def bounded(self, latest: I64 | None, most: int) -> tuple[npt.NDArray[np.int32], Any, Mask]:
        """Return a number for each row's unit, the units by number, in Arrow, and which rows are kept.

        Of each unit the latest rows are kept, at most as many as the policy and `most` allow; of equals,
        those read first. To be called once.

        Args:
            latest: how recent each row is, see `moments_of`; None where nothing says it.
            most: rows of one unit.
        """
        chunks, self._keys = self._keys, []
        units, keys = _numbered(chunks)
        keep = _bounded(units, len(keys), latest, min(self._unit.max_rows, most))
        if not keep.all():
            self._reasons["over-bound"] += int((~keep).sum())
        return units, keys, keep


class TallyBuilder:
    """Takes the slots of a layout, the unit's column, and where mapped `latest`, batch by batch."""

    def __init__(
        self,
        layout: Layout,
        *,
        unit: Unit | None,
        as_of: date,
        areas: AreaTable,
        clamp: bool,
        keys: str = "",
        covered: Mask | None = None,
    ) -> None:
        """Start an empty tally.

        Args:
            layout: the cells, filters and measures.
            unit: whom a row is about, None where each row is about somebody of its own.
            as_of: the day on which identifiers are judged where `unit` does not say one.
            areas: the area codes that identifiers may have.
            clamp: an amount out of bounds counts as the bound; else it is an error, and contributions are
                ranked for the dominance rule.
            keys: the slot whose own values are the cells, instead of a layout's axes.
            covered: bool[cells], in which cells rows count; None for all.

        Raises:
            InputError: `sum-too-wide`: the sum of a measure might not fit into 64 bits.
            ValueError: `keys` beside axes.
        """
        if any(MAX_ROWS * measure.most >= _SPAN for measure in layout.measures):
            raise InputError(
                f"a sum of amounts over {MAX_ROWS} rows, the most there are, may not fit into 64 bits",
                code="sum-too-wide",
                hint="state bounds nearer to zero, or fewer decimals",
            )
        if keys and layout.axes:
            raise ValueError("cells are either a column's own values or a layout's")
        self._layout, self._unit, self._clamp, self._keyed = layout, unit, clamp, keys
        self._areas, self._as_of = areas, as_of
        self._covered = covered
        self._axes = [AxisCells(axis) for axis in layout.axes]
        self._filters = [FilterRows(each) for each in layout.filters]
        self._codes: dict[str, int] = {}
        self._found = _Rows()
        self._rows = 0
        self._dated: bool | None = None
        self._reasons: Counter[str] = Counter()
        self._units = None if unit is None else Units(unit, as_of, areas, self._reasons)
        self._bad = self._beyond = self._clamped = 0
        self._groups: Groups | None = None

    @cached_property
    def _required(self) -> frozenset[str]:
        own = {UNIT} if self._unit else set()
        return frozenset({*self._layout.slots, *own, *([self._keyed] if self._keyed else [])})

    def add(self, batch: Mapping[str, Any]) -> None:
        """Take one batch: slot → Arrow array, all of one length.

        Raises:
            InputError: a slot too many or too few, a column of another type, or too many rows.
        """
        if not self._required <= set(batch) <= self._required | {LATEST}:
            raise InputError("a batch has not the slots of the layout", code="unknown-slot")
        dated = LATEST in batch
        if self._dated not in (None, dated) or len({len(array) for array in batch.values()}) != 1:
            raise InputError("columns of a batch differ in length, or come and go", code="length-mismatch")
        self._dated = dated
        rows = len(next(iter(batch.values())))
        self._count_rows(rows)
        if not rows:
            return
        # (1) Filters, then cells. (2) Units. (3) Amounts.
        cells = self._cells(batch, rows)
        here = np.flatnonzero(cells >= 0)
        self._reasons["outside"] += rows - len(here)
        if self._units is not None:
            here = self._units.take(batch[UNIT], here)
        self._take_amounts(batch, here)
        self._found.cells.append(cells[here].astype(np.int32))
        if dated:
            moments = moments_of(batch[LATEST])[here]
            self._reasons["no-date"] += int((moments == NEVER).sum())
            self._found.latest.append(moments)

    def asked(self) -> Asked:
        """Return what a source that counts by itself has to count: just what this builder would."""
        layout, unit = self._layout, self._unit
        along, splits = covered_places(self._covered, layout.shape)
        return Asked(
            layout=layout,
            unit=unit,
            as_of=self._as_of if unit is None or unit.as_of is None else unit.as_of,
            areas=self._areas,
            form=None if self._units is None else self._units.form(),
            identifiers=unit is not None and unit.kind in IDENTIFIERS,
            most=layout.unit_rows if unit is None else min(unit.max_rows, layout.unit_rows),
            clamp=self._clamp,
            keys=self._keyed,
            covered=along,
            splits=splits,
        )

    def add_groups(self, groups: Groups) -> None:
        """Take what a source counted of its rows, once; no unit of theirs is in a batch that is added.

        Raises:
            InputError: `count-mismatch`, or too many rows or keys.
            ValueError: this was done before.
        """
        if self._groups is not None:
            raise ValueError("a tally takes the groups of one source")
        groups.check(self.asked())
        self._groups = groups
        self._count_rows(groups.rows)
        if self._units is not None:
            self._units.take_counted(groups.rows)
        over = groups.here - int(groups.counted.sum())
        self._reasons.update(
            {
                "outside": groups.rows - groups.here,
                "over-bound": over,
                "no-date": groups.undated,
                "no-value": groups.no_value,
            }
        )
        self._clamped += groups.clamped

    def rests_on_order(self) -> bool:
        """Whether rows in another order might be counted otherwise: some unit has equally late ones.

        Of the batches so far. Only what an outsider may not choose is asked: rows that are equal in all that
        is counted are interchangeable.
        """
        if self._units is None:
            return False
        found = self._found
        latest = np.concatenate(found.latest) if found.latest else None
        cells = np.concatenate([np.zeros(0, dtype=np.int32), *found.cells]).astype(np.int64)
        told = [cells]
        for place in range(len(self._layout.measures)):
            told += [np.concatenate([np.zeros(0, np.int64), *(each[place] for each in found.amounts)])]
            told += [np.concatenate([np.zeros(0, np.int64), *(each[place] for each in found.present)])]
        return _straddles(self._units.numbered(), latest, told, self.asked().most)

    def finish(self) -> Tally:
        """Bound every unit's rows and return the vectors.

        Raises:
            InputError: `unit-missing`, `no-usable-key`, `bad-measure` or `out-of-bounds`.
        """
        self._refuse()
        kept, names = self._named(self._bound())
        counted, persons, distinct = kept.counted(), kept.persons(), kept.distinct
        added = {
            measure.slot: kept.added(place, ranked=not self._clamp and measure.low >= 0)
            for place, measure in enumerate(self._layout.measures)
        }
        if self._groups is not None:
            both = _Both(names, self._groups, kept.size, keyed=bool(self._keyed))
            names, distinct = both.names, distinct + self._groups.units
            counted = both.sum(counted, self._groups.counted)
            persons = both.sum(persons, self._groups.persons)
            added = {slot: both.added(each, place) for place, (slot, each) in enumerate(added.items())}
        return Tally(
            layout=self._layout,
            rows=self._rows,
            distinct_keys=distinct,
            rule_version=f"{RULES}+{rule_version(self._areas)}",
            _persons=persons,
            _counted=counted,
            _added=added,
            _keys=names,
            _reasons={code: count for code, count in self._reasons.items() if count},
            about_units=self._unit is not None,
        )

    def _count_rows(self, rows: int) -> None:
        self._rows += rows
        if self._rows > MAX_ROWS:
            raise InputError(
                f"the table has more than {MAX_ROWS} rows",
                code="too-many-rows",
                hint="register the part of it that jobs are about as a dataset of its own",
            )

    # -- batches ---------------------------------------------------------------------------------------------

    def _cells(self, batch: Mapping[str, Any], rows: int) -> I64:
        """Return each row's cell, -1 for a row that a filter refuses or that has none."""
        cells = np.zeros(rows, dtype=np.int64)
        for each in self._filters:
            cells[~each.passes(batch[each.slot])[0]] = -1
        for axis in self._axes:
            along = axis.place(batch[axis.slot])
            cells = np.where((cells < 0) | (along < 0), -1, cells * axis.size + along)
        if self._keyed:
            along = coded(batch[self._keyed], self._codes, self._keyed, grow=True)
            cells = np.where(cells < 0, -1, along)
        if self._covered is not None:
            cells[(cells >= 0) & ~self._covered[cells]] = -1
        return cells

    def _take_amounts(self, batch: Mapping[str, Any], here: I64) -> None:
        """Keep the amounts of these rows; whether a column is sound is a matter of all its rows."""
        measures = self._layout.measures
        if not measures:
            return
        rows = len(batch[measures[0].slot])
        amounts = np.zeros((len(measures), len(here)), dtype=np.int64)
        present = np.zeros((len(measures), len(here)), dtype=np.bool_)
        spoilt = np.zeros(rows, dtype=np.bool_)
        for place, measure in enumerate(measures):
            read = amounts_of(batch[measure.slot], measure.slot, measure.decimals, measure.low, measure.high)
            spoilt |= read.bad
            amounts[place], present[place] = read.amounts[here], read.present[here]
            self._beyond += int(read.cut.sum())
            self._clamped += int(read.cut[here].sum())
        self._bad += int(spoilt.sum())
        self._reasons["no-value"] += int((~present).sum())
        self._found.amounts.append(amounts)
        self._found.present.append(present)

    # -- the whole -------------------------------------------------------------------------------------------

    def _refuse(self) -> None:
        """Refuse data that are broken, by all rows: which ones a job selects must make no difference."""
        if self._units is not None:
            self._units.refuse(self._rows)
        if self._bad:
            raise InputError(
                f"{self._bad} rows have an amount that is no finite number",
                code="bad-measure",
                hint="write a plain number, or leave the amount empty where there is none",
            )
        if self._clamp:
            self._reasons["clamped"] = self._clamped
        elif self._beyond:
            raise InputError(
                f"{self._beyond} amounts are out of the bounds of the job, which hold the policy's range",
                code="out-of-bounds",
                hint="correct the data, or state the range that it really has in the policy",
            )

    def _bound(self) -> "_Kept":
        """Return the rows that are kept: of each unit the latest, at most as many as may count."""
        found, self._found = self._found, _Rows()
        none = len(self._layout.measures), 0
        cells = np.concatenate([np.zeros(0, dtype=np.int32), *found.cells])
        amounts = np.concatenate([np.zeros(none, dtype=np.int64), *found.amounts], axis=1)
        present = np.concatenate([np.zeros(none, dtype=np.bool_), *found.present], axis=1)
        if not self._layout.measures:
            amounts, present = np.zeros((0, len(cells)), np.int64), np.zeros((0, len(cells)), np.bool_)
        size = self._layout.cells
        if self._units is None:
            return _Kept(None, len(cells), cells, size, amounts, present)
        latest = np.concatenate(found.latest) if found.latest else None
        units, keys, keep = self._units.bounded(latest, self._layout.unit_rows)
        distinct = len(keys)
        if keep.all():
            return _Kept(units, distinct, cells, size, amounts, present)
        return _Kept(units[keep], distinct, cells[keep], size, amounts[:, keep], present[:, keep])

    def _named(self, kept: "_Kept") -> tuple["_Kept", tuple[str, ...]]:
        """Return the rows with the values that they have as cells, in the order of their names."""
        if not self._keyed:
            return kept, ()
        used = np.zeros(len(self._codes), dtype=np.bool_)
        used[kept.cells] = True
        names = tuple(sorted(name for name, code in self._codes.items() if used[code]))
        place = np.zeros(len(self._codes), dtype=np.int32)
        place[[self._codes[name] for name in names]] = np.arange(len(names), dtype=np.int32)
        return replace(kept, cells=place[kept.cells], size=len(names)), names


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    """The rows that make the vectors."""

    units: npt.NDArray[np.int32] | None  # n: the number of a unit; None where every row has its own
    distinct: int  # units
    cells: npt.NDArray[np.int32]  # n
    size: int  # cells of the table
    amounts: I64  # measures x n, 0 where there is none
    present: Mask  # measures x n

    def counted(self) -> I64:
        """Return the rows of each cell."""
        return _fixed_vector(np.bincount(self.cells, minlength=self.size))

    def persons(self) -> I64:
        """Return the units of each cell."""
        if self.units is None or self.distinct == len(self.units):
            return self.counted()
        pairs = np.sort(self.units.astype(np.int64) * self.size + self.cells)
        return _fixed_vector(np.bincount(pairs[_first_of_run(pairs)] % self.size, minlength=self.size))

    def added(self, place: int, *, ranked: bool) -> _Added:
        """Return what the rows say of one measure, with `ranked` the largest contributions, too."""
        there = np.bincount(self.cells[self.present[place]], minlength=self.size)
        total = np.zeros(self.size, dtype=np.int64)
        np.add.at(total, self.cells, self.amounts[place])  # exact, as a sum of doubles is not
        tops = self._tops(self.amounts[place]) if ranked else None
        return _Added(_fixed_vector(there), _fixed_vector(total), tops)

    def _tops(self, amounts: I64) -> tuple[I64, I64]:
        places = self.cells.astype(np.int64)
        if self.units is not None and self.distinct < len(self.units):
            pairs = self.units.astype(np.int64) * self.size + places
            order = np.argsort(pairs, kind="stable")
            starts = np.flatnonzero(_first_of_run(pairs[order]))
            amounts = np.add.reduceat(amounts[order], starts)
            places = pairs[order[starts]] % self.size
        top, second = np.zeros(self.size, dtype=np.int64), np.zeros(self.size, dtype=np.int64)
        np.maximum.at(top, places, amounts)
        leading = np.flatnonzero(amounts == top[places])
        leader = np.full(self.size, -1, dtype=np.int64)
        leader[places[leading]] = leading  # one of each cell's, whichever
        others = np.ones(len(amounts), dtype=np.bool_)
        others[leader[leader >= 0]] = False
        np.maximum.at(second, places[others], amounts[others])
        return _fixed_vector(top), _fixed_vector(second)


class _Both:
    """Adds what a source counted to what was counted here: of no unit is there anything in both."""

    def __init__(self, names: tuple[str, ...], groups: Groups, size: int, *, keyed: bool) -> None:
        """Find a place for every cell of both parts; `names` and `size` are of the cells here."""
        self.names, self._groups = names, groups
        self._size, self._own, self._theirs = size, np.arange(size), groups.cells
        if keyed:
            self.names = tuple(sorted({*names, *groups.keys}))
            place = {name: at for at, name in enumerate(self.names)}
            self._size = len(place)
            self._own = np.array([place[name] for name in names], dtype=np.int64)
            self._theirs = np.array([place[name] for name in groups.keys], dtype=np.int64)

    def sum(self, own: I64, theirs: I64) -> I64:
        """Return the sum of one vector."""
        found = self._spread(own)
        found[self._theirs] += theirs
        return _fixed_vector(found)

    def added(self, own: _Added, place: int) -> _Added:
        """Return what both say of the measure at `place`."""
        groups = self._groups
        tops = None
        if own.tops is not None:
            first, second = (self._spread(each) for each in own.tops)
            at = self._theirs
            top, next_ = groups.tops[:, place]
            # Of four, the two largest: a source's second is never above its first.
            second[at] = np.maximum(np.minimum(first[at], top), np.maximum(second[at], next_))
            first[at] = np.maximum(first[at], top)
            tops = _fixed_vector(first), _fixed_vector(second)
        present = self.sum(own.present, groups.present[place])
        return _Added(present, self.sum(own.total, groups.total[place]), tops)

    def _spread(self, own: I64) -> I64:
        found = np.zeros(self._size, dtype=np.int64)
        found[self._own] = own
        return found


def _fixed_vector(values: npt.NDArray[Any]) -> I64:
    vector = values.astype(np.int64, copy=False)
    vector.setflags(write=False)
    return vector


class AxisCells:
    """Where along an axis a row stands."""

    def __init__(self, axis: Axis) -> None:
        """Place rows along `axis`."""
        self.slot, self.size = axis.slot, axis.size
        self._bins = axis.bins
        self._places = {text: place for place, text in enumerate(axis.values)}

    def place(self, column: Any) -> I64:
        """Return each row's place, -1 for none.

        Raises:
            InputError: `not-text`, `not-a-number`: a column of another type.
        """
        if not self._bins:
            return coded(column, self._places, self.slot)
        along = np.full(len(column), -1, dtype=np.int64)
        for some in numbers.read(column, self.slot)[0]:
            along[some.rows] = numbers.passed(some, self._bins) - 1
        return along


class FilterRows:
    """Which rows a filter keeps."""

    def __init__(self, kept: Filter) -> None:
        """Keep what `kept` says."""
        self.slot = kept.slot
        self._low, self._high, self._months = kept.low, kept.high, kept.months
        self._texts = dict.fromkeys(kept.values, 0)

    def passes(self, column: Any) -> tuple[Mask, Mask]:
        """Return whether each row is kept, and whether it has no readable month where months are asked for.

        A row without a value is not kept.

        Raises:
            InputError: `not-text`, `not-a-number`, `not-a-date`: a column of another type.
        """
        passes = np.zeros(len(column), dtype=np.bool_)
        undated = np.zeros(len(column), dtype=np.bool_)
        if self._texts:
            return coded(column, self._texts, self.slot) >= 0, undated
        if self._months:
            months = months_of(column, len(column), self.slot)
            undated = months == UNKNOWN_MONTH
            first, last = int(self._low or FIRST_MONTH), int(self._high or END_MONTH)
            return (first <= months) & (months <= last) & ~undated, undated
        for some in numbers.read(column, self.slot)[0]:
            fits = np.ones(len(some.rows), dtype=np.bool_)
            if self._low is not None:
                fits &= numbers.passed(some, [self._low]) > 0
            if self._high is not None:
                fits &= numbers.passed(some, [self._high], beyond=True) == 0
            passes[some.rows] = fits
        return passes, undated


@dataclass(frozen=True, slots=True, eq=False)
class Amounts:
    """The amounts of a column, row by row."""

    amounts: I64  # n, cut to bounds; 0 where there is none
    present: Mask  # n
    cut: Mask  # n: it was out of bounds
    bad: Mask  # n: something that is no finite number


def amounts_of(column: Any, slot: str, decimals: int, low: int, high: int) -> Amounts:
    """Return a column's amounts in units of 10^-decimals, half to even, cut to `low` … `high`.

    Args:
        column: an Arrow array of numbers or text.
        slot: what an error calls it.
        decimals: digits after the point that count.
        low: least amount, in that unit.
        high: greatest amount.

    Raises:
        InputError: `not-a-number`: a column of another type.
    """
    rows = len(column)
    found, bad = numbers.read(column, slot)
    amounts = np.zeros(rows, dtype=np.int64)
    present, cut = np.zeros(rows, dtype=np.bool_), np.zeros(rows, dtype=np.bool_)
    for some in found:
        amounts[some.rows], cut[some.rows] = numbers.scaled(some, decimals, low, high)
        present[some.rows] = True
    return Amounts(amounts, present, cut, bad)


def coded(column: Any, codes: dict[str, int], slot: str, *, grow: bool = False) -> I64:
    """Return each row's code by its text without blanks around it, -1 for null and texts without a code.

    Args:
        column: text, whole numbers, days or flags, in Arrow.
        codes: text → code.
        slot: what an error calls the column.
        grow: give texts that have no code yet the next one, if they may name a cell.

    Raises:
        InputError: another type, bytes that are no text, or too many different texts.
    """
    import pyarrow as pa

    distinct, indices = _encoded(column, slot)
    of_text = np.full(len(distinct) + 1, -1, dtype=np.int64)  # the last is null's
    for place, value in enumerate(distinct):
        if value is None:
            continue
        text = value.strip()
        if grow and text not in codes and 1 <= len(text) <= MAX_TEXT and text.isprintable():
            if len(codes) == MAX_CELLS:
                raise InputError(
                    f"the {slot} column has more than {MAX_CELLS} different values",
                    code="too-many-cells",
                    hint="ask for a coarser column, or list the values as an axis",
                )
            codes[text] = len(codes)
        of_text[place] = codes.get(text, -1)
    places = indices.fill_null(len(distinct)).cast(pa.int64())
    found: I64 = of_text[places.to_numpy(zero_copy_only=False)]
    return found


def _encoded(column: Any, slot: str) -> tuple[list[str | None], Any]:
    """Return the distinct texts of a column, and each row's place among them, null for null."""
    import pyarrow as pa

    is_ = pa.types
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    kind = column.type.value_type if is_.is_dictionary(column.type) else column.type
    tests = (
        is_.is_string,
        is_.is_large_string,
        is_.is_string_view,
        is_.is_integer,
        is_.is_boolean,
        is_.is_date,
        is_.is_null,
    )
    if not any(test(kind) for test in tests):
        named = f"nested type {type(kind).__name__}" if is_.is_nested(kind) else str(kind)
        raise InputError(
            f"the {slot} column is of type {named}, expected text or whole numbers",
            code="not-text",
            hint="cast it to text at the source",
        )
    try:
        if not is_.is_dictionary(column.type):
            # Encoded before it is spelt out: numbers repeat as texts do.
            plain = column.cast(pa.string()) if is_.is_null(kind) or is_.is_string_view(kind) else column
            column = plain.dictionary_encode()
        texts = column.dictionary.cast(pa.string())
        texts.validate(full=True)
        distinct: list[str | None] = texts.to_pylist()
    except (pa.ArrowException, UnicodeDecodeError):
        # The message may quote the value.
        raise InputError(
            f"the {slot} column is not text in UTF-8", code="not-text", hint="cast it to text at the source"
        ) from None
    return distinct, column.indices


def _plain_units(column: Any) -> tuple[Any, int]:
    """Return the units of a column without a canonical form, as whole numbers or bytes; and rows without."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if pa.types.is_integer(column.type):
        return column, column.null_count
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_floating(kind) or pa.types.is_nested(kind):
        raise InputError(
            "the unit's column holds fractions or nested values, expected text or whole numbers",
            code="bad-unit",
            hint="store it as text: a number with a fraction does not keep every digit",
        )
    try:
        text = pc.fill_null(pc.utf8_trim_whitespace(column.cast(pa.string())), "")
        text.validate(full=True)
    except pa.ArrowException:
        raise InputError(
            "the unit's column is not text in UTF-8", code="bad-unit", hint="cast it to text at the source"
        ) from None
    longest = pc.max(pc.binary_length(text)).as_py() or 0
    if longest > MAX_UNIT_BYTES:
        raise InputError(
            f"a unit of {longest} bytes, at most {MAX_UNIT_BYTES} are compared",
            code="bad-unit",
            hint="name a column with one short code for each unit",
        )
    width = -(-(longest + 1) // 8) * 8
    keys = np.zeros((len(text), width), dtype=np.uint8)
    missing = 0
    for block in blocks(text):
        span = keys[block.first : block.first + len(block.values)]
        span[:] = block.values.padded(width)
        # An end mark: without it, a text and the same with zero bytes behind it would be one unit.
        span[np.arange(len(span)), block.values.lengths] = 1
        missing += int((block.values.lengths == 0).sum())
    return _fixed(keys.view(f"S{width}").ravel()), missing


def _fixed(keys: npt.NDArray[np.bytes_]) -> Any:
    """Return numpy's bytes as an Arrow array of that width, without a copy."""
    import pyarrow as pa

    whole = np.ascontiguousarray(keys)
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(whole.dtype.itemsize), len(whole), [None, pa.py_buffer(whole)]
    )


def _taken(column: Any, rows: I64) -> Any:
    import pyarrow as pa

    return column if len(rows) == len(column) else column.take(pa.array(rows))


def _numbered(chunks: list[Any]) -> tuple[npt.NDArray[np.int32], Any]:
    """Return a number for each row's unit, and the units by number, in Arrow."""
    import pyarrow as pa

    chunks = [chunk for chunk in chunks if len(chunk)]
    if not chunks:
        return np.zeros(0, dtype=np.int32), pa.nulls(0)
    widest = max((chunk.type.byte_width for chunk in chunks if _is_fixed(chunk)), default=0)
    alike = [_widened(chunk, widest) if _is_fixed(chunk) else chunk for chunk in chunks]
    coded = pa.chunked_array(alike).dictionary_encode()
    parts = [chunk.indices.to_numpy(zero_copy_only=False) for chunk in coded.chunks]
    return np.concatenate(parts).astype(np.int32, copy=False), coded.chunk(0).dictionary


def _is_fixed(chunk: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_fixed_size_binary(chunk.type))


def _widened(chunk: Any, width: int) -> Any:
    if chunk.type.byte_width == width:
        return chunk
    narrow = np.frombuffer(chunk.buffers()[1], dtype=f"S{chunk.type.byte_width}")
    return _fixed(narrow[chunk.offset : chunk.offset + len(chunk)].astype(f"S{width}"))


def _bounded(units: npt.NDArray[np.int32], distinct: int, latest: I64 | None, most: int) -> Mask:
    """Return which rows are kept: of each unit the latest `most`; of equals, those read first."""
    keep = np.ones(len(units), dtype=np.bool_)
    many = np.flatnonzero(np.bincount(units, minlength=distinct)[units] > most)
    if not len(many):
        return keep
    recent = np.zeros(len(many), dtype=np.int64) if latest is None else latest[many]
    keep[many] = False
    if most == 1:  # the usual bound needs no sorting
        best = np.full(distinct, NEVER, dtype=np.int64)
        np.maximum.at(best, units[many], recent)
        many = many[recent == best[units[many]]]
        first = np.zeros(distinct, dtype=np.int64)
        first[units[many[::-1]]] = many[::-1]  # of several writes the last one stays
        keep[first[units[many]]] = True
        return keep
    # Stable, so equals stay in the order in which they were read; ~ turns the order round.
    order = many[np.lexsort((~recent, units[many]))]
    keep[order[_rank(units[order]) < most]] = True
    return keep


def _straddles(
    units: npt.NDArray[np.int32], latest: I64 | None, told: list[npt.NDArray[Any]], most: int
) -> bool:
    """Whether some unit has equally late rows that differ in what is told, some kept and some not."""
    recent = np.zeros(len(units), dtype=np.int64) if latest is None else latest
    order = np.lexsort((~recent, units))
    who, when = units[order], recent[order]
    first = np.ones(len(order), dtype=np.bool_)
    first[1:] = (who[1:] != who[:-1]) | (when[1:] != when[:-1])
    starts = np.flatnonzero(first)
    before = _rank(who)[starts]
    after = before + np.diff(np.append(starts, len(order)))
    split = (before < most) & (most < after)
    alike = np.ones(len(order), dtype=np.bool_)
    for each in told:
        alike[1:] &= each[order][1:] == each[order][:-1]
    group = np.cumsum(first) - 1
    return bool((split[group] & ~first & ~alike).any())


def _rank(groups: npt.NDArray[Any]) -> I64:
    """Return each entry's place within its run of equal entries."""
    starts = np.flatnonzero(_first_of_run(groups))
    lengths = np.diff(np.append(starts, len(groups)))
    return np.arange(len(groups)) - np.repeat(starts, lengths)


def _first_of_run(groups: npt.NDArray[Any]) -> Mask:
    first = np.ones(len(groups), dtype=np.bool_)
    first[1:] = groups[1:] != groups[:-1]
    return first


def moments_of(column: Any) -> I64:
    """Return how recent each row is as one ascending number, `NEVER` where that cannot be read.

    Days, times and whole numbers as they are; text as a whole number, or as the day or month of an ISO date,
    a month before its days.

    Raises:
        InputError: `not-a-date`: a column of another type.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    is_ = pa.types
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if is_.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    try:
        if is_.is_string(kind) or is_.is_large_string(kind) or is_.is_string_view(kind):
            return _text_moments(column.cast(pa.string()))
        if is_.is_date32(kind):
            column = column.cast(pa.int32())
        fits = (is_.is_date, is_.is_timestamp, is_.is_integer, is_.is_decimal, is_.is_null)
        if any(test(kind) for test in fits):
            ages = pc.fill_null(column.cast(pa.int64()), NEVER)
            return np.asarray(ages.to_numpy(zero_copy_only=False), dtype=np.int64)
    except pa.ArrowException:
        pass
    named = f"nested type {type(kind).__name__}" if is_.is_nested(kind) else str(kind)
    raise InputError(
        f"the latest column is of type {named}, expected a date, a time, text or whole numbers",
        code="not-a-date",
        hint="cast it to a date at the source, or give months such as 2026-11 or 202611",
    )


def _text_moments(text: Any) -> I64:
    import pyarrow as pa
    import pyarrow.compute as pc

    coded = text.dictionary_encode()  # days repeat
    plain = pc.utf8_trim_whitespace(coded.dictionary)
    for form, order in ((_ISO_MONTH, r"\1\200"), (_ISO_DAY, r"\1\2\3")):
        plain = pc.replace_substring_regex(plain, form, order)
    plain = pc.if_else(pc.match_substring_regex(plain, _WHOLE), plain, pa.scalar(None, pa.string()))
    ages = pc.fill_null(plain.cast(pa.int64()).take(coded.indices), NEVER)
    return np.asarray(ages.to_numpy(zero_copy_only=False))
