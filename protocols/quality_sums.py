"""The quality of several departments' tables as figures that add up: what is counted, and what is shown.

What a figure counts, `protocols.quality` defines, for a department's own look as for this. Here are the
places of the figures in a vector, and what may be published of totals: `protocols/sums/SPEC.md`, section 7.
"""

import hashlib
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from fractions import Fraction
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protocols.codes import NATIONAL
from protocols.dp.mechanism import Noise, Vector
from protocols.encoding import canonical_json
from protocols.errors import InputError
from protocols.identifiers import AreaTable, Reason, normalise, rule_version
from protocols.ids import Digest
from protocols.jobs.job_type import UNIT, ColumnNeed, Content, Domain, Unit
from protocols.quality import ColumnCounts, KeyCounts, QualityBuilder, QualityCounts
from protocols.releases.figures import CONFIDENCE, noisy_figure, whole_numbers
from protocols.statistics.suppress import ROUNDING, protect_table, rounded
from protocols.tables.layout import MAX_CELLS, MAX_ROWS, TEXT_TYPES, Reader, bad, read_slot
from protocols.tables.released import ROWS, Figure, as_texts, content
from protocols.tables.tally import IDENTIFIERS

TABLE: Final = "table"
SHARE: Final = "share"
"""What the figure is that says how large a part of all rows is."""

USE: Final = "quality"
"""The use by which a policy opens a column to be looked at."""

KINDS: Final = ("key", "code", "date", "text")
MAX_COLUMNS: Final = 32

RULES: Final = "quality/1"
"""Version of what is counted; a change that gives any table other figures raises it."""

MISSING: Final = "missing"
INVALID: Final = "invalid"
VALID: Final = "valid"

_REASONS: Final = tuple(reason.code for reason in Reason if reason)
_REPEATED: Final = ("first", "repeated")
_DAYS: Final = ("malformed", "early", "future")
_OF: Final = ("reasons", "repeated")
_ANY: Final = (
    *IDENTIFIERS, "passport", "identifier", *TEXT_TYPES, "int", "decimal", "bool", "date", "month"
)  # fmt: skip
_LABELS: Final = ("column", "part", "reason")
_COMMITMENT: Final = b"minshu/quality/1\0"
_SEED: Final = b"minshu/quality-seed/1\0"
_RUN: Final = 2

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Looked:
    """One column that is looked at.

    Attributes:
        slot: the job's word for it; names it in the released table, too.
        kind: one of `KINDS`.
        identifier: of a key, its type in a policy.
        of: of a key, what is told apart: `reasons`, `repeated`.
        table: of codes, the id of a national code table; empty where `codes` are listed.
        codes: of codes, all that the policy lists.
    """

    slot: str
    kind: str
    identifier: str = ""
    of: tuple[str, ...] = ()
    table: str = ""
    codes: tuple[str, ...] = ()

    @property
    def parts(self) -> Mapping[str, tuple[str, ...]]:
        """Each part that all rows fall into, and the reasons that its rows fall into; none where not told."""
        match self.kind:
            case "key":
                reasons = _REASONS if "reasons" in self.of else ()
                return {
                    MISSING: (),
                    INVALID: reasons,
                    VALID: _REPEATED if "repeated" in self.of else (),
                }
            case "code":
                return {MISSING: (), INVALID: (), VALID: ()}
            case "date":
                return {MISSING: (), INVALID: _DAYS, VALID: ()}
            case _:
                return {MISSING: (), VALID: ()}

    @property
    def need(self) -> ColumnNeed:
        """The column it takes."""
        match self.kind:
            case "key":
                return ColumnNeed(self.slot, USE, (self.identifier,))
            case "code":
                domain = Domain(named=self.codes, whole=True) if self.codes else None
                return ColumnNeed(self.slot, USE, TEXT_TYPES, domain=domain)
            case "date":
                return ColumnNeed(self.slot, USE, ("date",))
            case _:
                return ColumnNeed(self.slot, USE, _ANY)

    @property
    def known(self) -> Container[str] | None:
        """The codes that it may have; None where it is no column of codes."""
        if self.kind != "code":
            return None
        return NATIONAL[self.table] if self.table else frozenset(self.codes)

    def to_json(self) -> dict[str, Any]:
        """Return the plain JSON form; a code table with its digest, since a name is no content."""
        digest = NATIONAL[self.table].digest if self.table else ""
        return {
            "slot": self.slot,
            "kind": self.kind,
            "identifier": self.identifier,
            "of": sorted(self.of),
            "table": self.table,
            "digest": digest,
            "codes": sorted(self.codes),
        }


def read_columns(reader: Reader) -> tuple[Looked, ...]:
    """Read `columns` of a job.

    Raises:
        InputError: what is wrong, what was expected, what to do.
    """
    found = []
    for table in reader.tables("columns", MAX_COLUMNS, least=1):
        found.append(_read_column(table))
        table.finish()
    if len({each.slot for each in found}) != len(found):
        raise bad("two columns have one slot", "give each a slot of its own")
    if sum(each.kind == "key" for each in found) > 1:
        raise bad("two columns are keys", 'look at one as kind = "key", at others as kind = "text"')
    return tuple(found)


def _read_column(table: Reader) -> Looked:
    slot, kind = read_slot(table), table.choice("kind", KINDS)
    if kind == "key":
        identifier = table.choice("identifier", tuple(IDENTIFIERS), "resident-id")
        of = table.texts("of", len(_OF)) if table.has("of") else _OF
        if not set(of) <= set(_OF):
            raise bad("of a key something else is asked than can be told", f"choose from {', '.join(_OF)}")
        return Looked(slot, kind, identifier, of)
    if kind == "code":
        if table.has("codes") == table.has("table"):
            raise bad(
                "a column of codes has either a national code table or codes",
                'write table = "gbt2261.1@2003", or codes = all values that the policy lists',
            )
        if table.has("codes"):
            return Looked(slot, kind, codes=table.texts("codes", MAX_CELLS))
        return Looked(slot, kind, table=table.choice("table", [each.id for each in NATIONAL]))
    return Looked(slot, kind)


@dataclass(frozen=True, slots=True)
class Place:
    """What one figure counts: all rows, those of a part of a column, or of a reason within one."""

    column: str = ""
    part: str = ""
    reason: str = ""


def places(columns: Sequence[Looked]) -> tuple[tuple[Place, ...], ...]:
    """Return the figures of a job, in order, as runs of which each is one histogram of the same rows.

    All rows; then of each column its parts, then the reasons of each part that has some. One row is in one
    place of a run at most.
    """
    runs: list[tuple[Place, ...]] = [(Place(),)]
    for column in columns:
        runs.append(tuple(Place(column.slot, part) for part in column.parts))
        runs += [
            tuple(Place(column.slot, part, reason) for reason in reasons)
            for part, reasons in column.parts.items()
            if reasons
        ]
    return tuple(runs)


def flat(columns: Sequence[Looked]) -> tuple[Place, ...]:
    """Return the figures of a job, in order."""
    return tuple(place for run in places(columns) for place in run)


def vectors(columns: Sequence[Looked], most_rows: int) -> tuple[Vector, ...]:
    """Return each run as a vector with the most that the rows of one person change it by.

    A row adds 1 to one place. Of a repeated key it is one place, too: with it goes either the first of its
    key, or one that repeats it.
    """
    return tuple(
        Vector(_called(run[0]), len(run), most_rows, most_rows**2, Fraction(1)) for run in places(columns)
    )


def _called(place: Place) -> str:
    if not place.column:
        return ROWS
    return f"{place.column}, {place.part}" if place.reason else place.column


def counts_of(columns: Sequence[Looked], found: QualityCounts) -> I64:
    """Return what was counted of one department's table, int64[figures]."""
    numbers: list[int] = []
    parts = {
        column.slot: _parts(column, found.columns[column.slot], found.key if column.kind == "key" else None)
        for column in columns
    }
    for place in flat(columns):
        if not place.column:
            numbers.append(found.rows)
            continue
        reasons = parts[place.column][place.part]
        numbers.append(reasons[place.reason] if place.reason else sum(reasons.values()))
    return np.array(numbers, dtype=np.int64)


def _parts(column: Looked, counts: ColumnCounts, key: KeyCounts | None) -> Mapping[str, Mapping[str, int]]:
    """Return the rows of each part by reason; those of a part without reasons under the part's name."""
    present = counts.rows - counts.missing
    missing = {MISSING: counts.missing}
    if key is not None:
        rejected = {reason: key.rejected.get(reason, 0) for reason in _REASONS}
        return {
            MISSING: missing,
            INVALID: rejected,
            VALID: {"first": key.distinct, "repeated": key.repeated},
        }
    if column.kind == "code":
        return {
            MISSING: missing,
            INVALID: {INVALID: counts.outside},
            VALID: {VALID: present - counts.outside},
        }
    if column.kind == "date":
        wrong = {
            # A column of another type than days were ever read from holds none.
            "malformed": present if counts.early is None else counts.malformed,
            "early": counts.early or 0,
            "future": counts.future or 0,
        }
        return {MISSING: missing, INVALID: wrong, VALID: {VALID: present - sum(wrong.values())}}
    return {MISSING: missing, VALID: {VALID: present}}


# -- one department's part -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class QualityInput:
    """The figures of one department's table. Implements `PreparedInput`. Prints nothing of them."""

    columns: tuple[Looked, ...]
    rows: int
    distinct_keys: int
    rule_version: str
    counts: I64 = field(repr=False)
    _reasons: Mapping[str, int] = field(default_factory=dict, repr=False)

    def quality(self) -> Mapping[str, int]:
        """Return rows without a usable key, by reason, and `over-bound`: more rows of one unit than count."""
        return dict(self._reasons)

    def commitment(self, salt: bytes) -> Digest:
        r"""Return SHA-256(salt ‖ "minshu/quality/1\0" ‖ u32 length ‖ columns as canonical JSON ‖ figures).

        Figures as big-endian int64.

        Args:
            salt: 32 random bytes, which the node keeps for auditors.

        Raises:
            ValueError: the salt has another length.
        """
        if len(salt) != 32:
            raise ValueError(f"salt of {len(salt)} bytes, expected 32")
        said = canonical_json([column.to_json() for column in self.columns])
        digest = hashlib.sha256(salt + _COMMITMENT + len(said).to_bytes(4, "big") + said)
        digest.update(self.counts.astype(">i8").tobytes())
        return Digest("sha256:" + digest.hexdigest())


class QualityInputBuilder:
    """Takes the slots of the columns, and the unit's where there is one, batch by batch; keeps no row."""

    def __init__(
        self,
        columns: tuple[Looked, ...],
        *,
        unit: Unit | None,
        as_of: date,
        areas: AreaTable,
        bounded: int | None,
        binding: bytes,
    ) -> None:
        """Start without rows.

        Args:
            columns: what is looked at.
            unit: whom a row is about; None where rows are about nobody.
            as_of: the day after which a day lies in the future, and on which identifiers are judged, where
                `unit` does not say one.
            areas: the area codes that identifiers may have.
            bounded: how many rows of one unit count at most; None for all.
            binding: of one job, the same at every try. Hashes of keys depend on it: no data that was there
                before can have been made to collide.
        """
        day = as_of if unit is None or unit.as_of is None else unit.as_of
        seed = hashlib.sha256(_SEED + binding).digest()
        key = next((column for column in columns if column.kind == "key"), None)
        self._columns, self._key, self._areas = columns, key, areas
        self._counting = QualityBuilder(
            [column.slot for column in columns],
            key="" if key is None else key.slot,
            kind="" if key is None else IDENTIFIERS[key.identifier],
            as_of=day,
            areas=areas,
            seed=seed,
            codes={column.slot: column.known for column in columns if column.known is not None},
            days=[column.slot for column in columns if column.kind == "date"],
        )
        self._slots = {*(column.slot for column in columns), *({UNIT} if unit else ())}
        self._bound = (
            None
            if bounded is None or unit is None
            else FirstRows(unit.kind, min(unit.max_rows, bounded), as_of=day, areas=areas, seed=seed)
        )
        self._rows = self._over = 0

    def add(self, batch: Mapping[str, Any]) -> None:
        """Take one batch: slot → Arrow array, all of one length.

        Raises:
            InputError: a slot too many or too few, too many rows, or as `QualityBuilder.add`.
        """
        import pyarrow as pa

        if set(batch) != self._slots:
            raise InputError("a batch has not the slots of the columns", code="unknown-slot")
        if len({len(array) for array in batch.values()}) != 1:
            raise InputError("columns of a batch differ in length", code="length-mismatch")
        rows = len(next(iter(batch.values())))
        self._rows += rows
        if self._rows > MAX_ROWS:
            raise InputError(
                f"the table has more than {MAX_ROWS} rows",
                code="too-many-rows",
                hint="register the part of it that jobs are about as a dataset of its own",
            )
        kept = {column.slot: batch[column.slot] for column in self._columns}
        if self._bound is not None:
            keep = self._bound.take(batch[UNIT])
            if not keep.all():
                self._over += int((~keep).sum())
                kept = {slot: array.filter(pa.array(keep)) for slot, array in kept.items()}
        self._counting.add(kept)

    def finish(self) -> QualityInput:
        """Return what was counted.

        Raises:
            InputError: as `QualityBuilder.finish`.
        """
        found = self._counting.finish()
        reasons = {} if found.key is None else dict(found.key.rejected)
        if self._over:
            reasons["over-bound"] = self._over
        return QualityInput(
            columns=self._columns,
            rows=self._rows,
            distinct_keys=found.rows if found.key is None else found.key.distinct,
            rule_version=f"{RULES}+{rule_version(self._areas)}",
            counts=counts_of(self._columns, found),
            _reasons=reasons,
        )


class FirstRows:
    """Which rows are among the first of their unit, batch by batch: 16 bytes for each different unit.

    Units are told apart by keyed 64-bit hashes. Two that have one hash are bounded together, so that fewer
    rows count, and never more.
    """

    def __init__(self, kind: str, most: int, *, as_of: date, areas: AreaTable, seed: bytes) -> None:
        """Start without rows.

        Args:
            kind: the type of the unit's column, by the policy.
            most: rows of one unit that count.
            as_of: the day on which identifiers are judged.
            areas: the area codes that identifiers may have.
            seed: of the hashes.
        """
        self._kind, self._most, self._as_of, self._areas, self._seed = kind, most, as_of, areas, seed
        # Ascending hashes and how many rows each had, in runs of which each is twice as long as the next.
        self._runs: list[tuple[U64, I64]] = []

    def take(self, column: Any) -> Bools:
        """Return which rows of a batch count. A row whose unit cannot be read is somebody's of its own.

        Raises:
            InputError: the column is not text, or a text is not UTF-8.
        """
        keep: Bools = np.ones(len(column), dtype=np.bool_)
        rows, hashes = self._units(column)
        if not len(rows):
            return keep
        order = np.argsort(hashes, kind="stable")
        ascending = hashes[order]
        first = np.flatnonzero(np.append(True, ascending[1:] != ascending[:-1]))
        different, counts = ascending[first], np.diff(np.append(first, len(ascending)))
        nth = (
            np.arange(len(ascending)) - np.repeat(first, counts) + np.repeat(self._before(different), counts)
        )
        keep[rows[order]] = nth < self._most
        self._add(different, counts.astype(np.int64))
        return keep

    def _units(self, column: Any) -> tuple[I64, U64]:
        """Return the rows whose unit can be read, and a hash of each one's."""
        import pyarrow as pa
        import pyarrow.compute as pc

        kind = IDENTIFIERS.get(self._kind)
        if kind is not None:
            found = normalise(column, kind, as_of=self._as_of, areas=self._areas)
            keys, inverse = np.unique(found.keys, return_inverse=True)
            return found.rows, self._hashes(keys.tolist())[inverse]
        try:
            texts = pc.utf8_trim_whitespace(column.cast(pa.string()))
            texts.validate(full=True)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise InputError(
                "the unit's column is not text in UTF-8",
                code="bad-unit",
                hint="cast it to text at the source",
            ) from None
        coded = texts.dictionary_encode()
        named = [(value or "").encode("utf-8") for value in coded.dictionary.to_pylist()]
        places = np.asarray(pc.fill_null(coded.indices, -1), dtype=np.int64)
        empty = np.array([not value for value in named], dtype=np.bool_)
        rows = np.flatnonzero(places >= 0)
        rows = rows[~empty[places[rows]]] if len(rows) else rows
        return rows, self._hashes(named)[places[rows]]

    def _hashes(self, keys: Sequence[bytes]) -> U64:
        drawn = b"".join(hashlib.blake2b(key, digest_size=8, key=self._seed).digest() for key in keys)
        return np.frombuffer(drawn, dtype="<u8").astype(np.uint64)

    def _before(self, hashes: U64) -> I64:
        """Return how many rows each of these units had."""
        found = np.zeros(len(hashes), dtype=np.int64)
        for known, counts in self._runs:
            at = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
            found += np.where(known[at] == hashes, counts[at], 0)
        return found

    def _add(self, hashes: U64, counts: I64) -> None:
        self._runs.append((hashes, counts))
        while len(self._runs) > 1 and len(self._runs[-2][0]) < _RUN * len(self._runs[-1][0]):
            (one, mine), (other, theirs) = self._runs.pop(), self._runs.pop()
            merged, inverse = np.unique(np.concatenate([one, other]), return_inverse=True)
            summed = np.zeros(len(merged), dtype=np.int64)
            np.add.at(summed, inverse, np.concatenate([mine, theirs]))
            self._runs.append((merged, summed))


# -- what is shown of totals ---------------------------------------------------------------------------------


def withheld_figures(
    columns: Sequence[Looked], counts: I64, behind: I64, *, least: int, fewest: int
) -> Bools:
    """Return which figures are withheld, bool[figures]: small ones, few departments', and what reveals them.

    Args:
        columns: what is looked at.
        counts: int64[figures], totals.
        behind: how many departments have such rows, by figure.
        least: rows of a published figure that is not 0.
        fewest: departments behind such a figure.
    """
    at = {place: index for index, place in enumerate(flat(columns))}
    hidden = np.zeros(len(at), dtype=np.bool_)
    for column in columns:
        # A part without reasons is its own only one; no reason is called like a part.
        leaves = {
            reason or part: (part, reason)
            for part, reasons in column.parts.items()
            for reason in reasons or ("",)
        }
        named = {
            **{name: Place(column.slot, *leaf) for name, leaf in leaves.items()},
            **{part: Place(column.slot, part) for part in column.parts},
            "": Place(),
        }
        table = protect_table(
            {name: int(counts[at[named[name]]]) for name in leaves},
            {name: part for name, (part, _) in leaves.items()},
            least,
            ROUNDING,
            also={name for name, place in named.items() if behind[at[place]] < fewest},
        )
        if table.total is None:
            # What is left of all rows where one column may not show them, another one would.
            return np.ones(len(at), dtype=np.bool_)
        shown = {**table.streets, **table.districts}
        for name, place in named.items():
            if name:
                hidden[at[place]] = shown[name] is None
    return hidden


def exact_content(
    columns: Sequence[Looked],
    counts: I64,
    behind: I64,
    *,
    least: int,
    fewest: int,
    facts: Mapping[str, int | str],
) -> Content:
    """Return the table without noise: figures after disclosure control, and of parts their shares.

    Args:
        columns: what is looked at.
        counts: int64[figures], totals.
        behind: how many departments have such rows, by figure.
        least: rows of a published figure that is not 0.
        fewest: departments behind such a figure.
        facts: what is stated beside the table.
    """
    hidden = withheld_figures(columns, counts, behind, least=least, fewest=fewest)
    shown = np.array([rounded(count, ROUNDING) for count in counts.tolist()], dtype=np.float64)
    labels = labels_of(columns)
    parts = {name: texts[1:] for name, texts in labels.items()}
    nobody = np.full(len(parts["column"]), not shown[0])
    shares = np.divide(shown[1:], shown[0], out=np.zeros(len(nobody)), where=~nobody)
    figures = [Figure(ROWS, labels, shown, hidden), Figure(SHARE, parts, shares, hidden[1:] | nobody)]
    return content(TABLE, figures, {**facts, "rounding_base": ROUNDING, "withheld_cells": int(hidden.sum())})


def noisy_content(
    columns: Sequence[Looked],
    totals: I64,
    noises: Sequence[Noise],
    *,
    least: int,
    facts: Mapping[str, int | str],
) -> Content:
    """Return the table with noise and intervals; figures of too few noisy rows are withheld.

    Args:
        columns: what is looked at.
        totals: int64[figures], each run times the scale of its noise, with the noise of all departments.
        noises: of each run.
        least: noisy rows of a published figure.
        facts: what is stated beside the table.
    """
    labels, figures, start = labels_of(columns), [], 0
    for noise in noises:
        end = start + noise.size
        found = whole_numbers(totals[start:end], noise, CONFIDENCE, 0)
        named = {name: texts[start:end] for name, texts in labels.items()}
        figures.append(noisy_figure(ROWS, named, found, found.value < least))
        start = end
    withheld = sum(int(figure.hidden.sum()) for figure in figures)
    return content(TABLE, figures, {**facts, "withheld_cells": withheld})


def labels_of(columns: Sequence[Looked]) -> dict[str, npt.NDArray[np.object_]]:
    """Return the labels of every figure, in order."""
    found = flat(columns)
    return {name: as_texts([getattr(place, name) for place in found]) for name in _LABELS}
