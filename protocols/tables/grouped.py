"""A tally that was counted where the rows are: what is asked of such a source, and what it answers.

A database groups and adds up what `tally.py` would, and hands out one row for each cell instead of one for
each person. No SQL here: what is asked is data, and `node.sources.grouped` says it in a database's words.

Which texts name a cell, which pass a filter and which identifiers are sound, this node's own rules decide,
not the database: it is asked for the different values first. An identifier is left to the database only where
it certainly is its own canonical spelling (`Form`); rows with any other are read one by one, together with
all other rows of the persons they turn out to be about. No unit is then in both parts, so that every vector
of one part is simply added to the other's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Final

import numpy as np
import numpy.typing as npt

from protocols.errors import InputError
from protocols.identifiers.areas import AreaTable
from protocols.identifiers.resident import CHECK_CHARACTERS, WEIGHTS
from protocols.jobs.job_type import Unit
from protocols.tables.layout import MAX_CELLS, MAX_ROWS, MAX_TEXT, Layout

I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

MAX_PREFIXES: Final = 4096
"""Most prefixes of area codes that are written into one question."""

OLDEST: Final = 120
"""Completed years; see `protocols.identifiers`."""

DIGITS: Final = "0123456789"
_PERMITS: Final = ("810000", "820000", "830000")
_USCC_ALPHABET: Final = "0123456789ABCDEFGHJKLMNPQRTUWXY"


@dataclass(frozen=True, slots=True)
class Checksum:
    """The sum over all characters of weight times worth is `remainder`, modulo `modulus`.

    Attributes:
        alphabet: a character is worth its place in it.
        weights: of each character.
    """

    alphabet: str
    weights: tuple[int, ...]
    modulus: int
    remainder: int


@dataclass(frozen=True, slots=True)
class Birth:
    """Eight characters yyyymmdd from `start`, a day of the calendar, after `after` and not after `until`."""

    start: int  # counted from 1
    after: str
    until: str

    @property
    def days(self) -> tuple[str, ...]:
        """Every mmdd of a leap year."""
        lengths = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
        return tuple(f"{m:02d}{d:02d}" for m, most in enumerate(lengths, start=1) for d in range(1, most + 1))

    @property
    def leap_years(self) -> tuple[str, ...]:
        """The years between that have a 29 February."""
        years = range(int(self.after[:4]), int(self.until[:4]) + 1)
        return tuple(f"{y:04d}" for y in years if y % 4 == 0 and (y % 100 != 0 or y % 400 == 0))


@dataclass(frozen=True, slots=True)
class Form:
    """Texts that are certainly keys as they stand: `normalise` takes each for itself, and no two for one.

    Others may be keys as well; of them nothing is said.

    Attributes:
        pattern: a regular expression of the whole text: classes of ASCII characters, counts and anchors only.
        length: characters of it; 0 where the pattern says enough.
        segments: with a length, the same once more: start counted from 1, length, and the characters of which
            each of a segment is one; without gaps.
        prefixes: (start counted from 1, length) → texts of which one stands there, of any such pair. Empty:
            anything may.
        never: beginnings that no such text has.
        birth: the day of birth in it.
        checksum: the check over it.
        not_these: whole texts that are none.
    """

    pattern: str
    length: int = 0
    segments: tuple[tuple[int, int, str], ...] = ()
    prefixes: Mapping[tuple[int, int], tuple[str, ...]] = field(default_factory=dict)
    never: tuple[str, ...] = ()
    birth: Birth | None = None
    checksum: Checksum | None = None
    not_these: tuple[str, ...] = ()


PLAIN: Final = Form(pattern="^[!-~]([ -~]{0,254}[!-~])?$")
"""Text of a type without a canonical form: printable ASCII, no blank at either end."""


def form_of(kind: str, as_of: date, areas: AreaTable) -> Form | None:
    """Return which texts of a column of units are certainly keys as they stand; None: nobody can say.

    Args:
        kind: the type of the column, by the policy; see `tally.IDENTIFIERS`.
        as_of: the day on which identifiers are judged.
        areas: the area codes that identifiers may have.
    """
    match kind:
        case "resident-id":
            prefixes = _area_prefixes(areas)
            return None if prefixes is None else _citizen(as_of, prefixes, never=_PERMITS)
        case "residence-permit":
            return _citizen(as_of, {(1, 6): _PERMITS})
        case "permanent-resident":
            provinces = tuple(f"9{code:02d}" for code in np.flatnonzero(areas.provinces()))
            return _citizen(as_of, {(1, 3): provinces})
        case "uscc":
            weights = (*(pow(3, place, 31) for place in range(17)), 1)
            letters = "0-9A-HJ-NPQRTUWXY"  # without I, O, S, V and Z
            return Form(
                pattern=f"^[{letters}]{{2}}[0-9]{{6}}[{letters}]{{10}}$",
                length=18,
                segments=((1, 2, _USCC_ALPHABET), (3, 6, DIGITS), (9, 10, _USCC_ALPHABET)),
                checksum=Checksum(_USCC_ALPHABET, weights, 31, 0),
                not_these=tuple(digit * 18 for digit in DIGITS),
            )
        case "phone":  # mostly stored in national form, which is never its own key
            return None
    return PLAIN


def _citizen(
    as_of: date, prefixes: Mapping[tuple[int, int], tuple[str, ...]], never: tuple[str, ...] = ()
) -> Form | None:
    if as_of.year <= OLDEST + 1:
        return None
    # yyyymmdd numbers differ by 10,000 for each completed year.
    after = f"{as_of.year - OLDEST - 1:04d}{as_of:%m%d}"
    alphabet = DIGITS + "X"
    remainder = (alphabet.index(chr(CHECK_CHARACTERS[0]))) % 11  # of seventeen zeros
    return Form(
        pattern="^[0-9]{17}[0-9X]$",
        length=18,
        segments=((1, 17, DIGITS), (18, 1, DIGITS + "X")),
        prefixes=prefixes,
        never=never,
        birth=Birth(7, after, f"{as_of:%Y%m%d}"),
        checksum=Checksum(alphabet, (*WEIGHTS, 1), 11, remainder),
    )


def _area_prefixes(areas: AreaTable) -> dict[tuple[int, int], tuple[str, ...]] | None:
    """Return the listed codes by the shortest prefixes that say them, None where these are too many."""
    found: dict[tuple[int, int], tuple[str, ...]] = {}
    left = areas.listed.copy()
    for length in (2, 4, 6):
        span = 10 ** (6 - length)
        whole = left.reshape(-1, span).all(axis=1)
        codes = np.flatnonzero(whole)
        if len(codes):
            found[(1, length)] = tuple(f"{code:0{length}d}" for code in codes)
        left.reshape(-1, span)[whole] = False
    return found if sum(map(len, found.values())) <= MAX_PREFIXES else None


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """What a source is asked to count, in the place of `TallyBuilder`.

    Attributes:
        layout: the cells, filters and measures.
        unit: whom a row is about, by kind; None where every row is its own.
        as_of: the day on which identifiers are judged.
        areas: the area codes that they may have.
        form: which of its texts are keys as they stand; None: that cannot be said, so rows are read.
        identifiers: whether such a unit has a canonical form.
        most: most rows of one unit that count, the policy's and the job's bound together.
        clamp: an amount out of bounds counts as the bound; else there must be none, and contributions are
            ranked.
        keys: the slot whose own values are the cells, instead of a layout's axes.
        covered: places along each axis in which rows count; None for all; of no use where `splits` is False.
        splits: whether the cells in which rows count are all combinations of such places.
    """

    layout: Layout
    unit: Unit | None
    as_of: date
    areas: AreaTable
    form: Form | None
    identifiers: bool
    most: int
    clamp: bool
    keys: str
    covered: tuple[Mask, ...] | None
    splits: bool

    def ranked(self, place: int) -> bool:
        """Whether the largest contributions to the measure at `place` are asked for."""
        return not self.clamp and self.layout.measures[place].low >= 0


def covered_places(covered: Mask | None, shape: tuple[int, ...]) -> tuple[tuple[Mask, ...] | None, bool]:
    """Return the places along each axis in which rows count, and whether these say all that `covered` does.

    Args:
        covered: bool[cells], None for all.
        shape: cells along each axis.
    """
    if covered is None:
        return None, True
    cells = covered.reshape(shape)
    along = tuple(
        np.asarray(cells.any(axis=tuple(other for other in range(cells.ndim) if other != axis)))
        for axis in range(cells.ndim)
    )
    product = np.ones((), dtype=np.bool_)
    for places in along:
        product = np.logical_and.outer(product, places)
    return along, bool((product == cells).all())


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """What a source counted: one entry for each cell with a kept row, none of them twice.

    Attributes:
        cells: int64[n], places in the layout; of keys all 0.
        keys: n texts where cells are a column's own values, else empty.
        persons: int64[n], units with a kept row.
        counted: int64[n], kept rows.
        present: int64[measures, n], kept rows with an amount.
        total: int64[measures, n], in units of 10^-decimals.
        tops: int64[2, measures, n], largest and second largest sum of one unit; 0 of measures not ranked.
        rows: rows that the source looked at for this, whether or not they count.
        here: those of them that pass the filters and have a cell.
        units: different units of the rows `here`; `here` where every row is its own.
        undated: rows `here` without a readable `latest`.
        no_value: amounts that are missing in rows `here`, over all measures.
        clamped: amounts of rows `here` that were cut to a bound.
    """

    cells: I64
    keys: tuple[str, ...]
    persons: I64
    counted: I64
    present: I64
    total: I64
    tops: I64
    rows: int
    here: int
    units: int
    undated: int = 0
    no_value: int = 0
    clamped: int = 0

    def check(self, asked: Asked) -> None:
        """Refuse what no rows could give: bounds on one person rest on these numbers.

        (1) Shapes and cells. (2) Rows, units and counts. (3) Amounts within n times the bounds. (4) Largest
        contributions that are part of the sum and within what one unit may add.

        Raises:
            InputError: `count-mismatch`.
        """
        layout, measures, n = asked.layout, len(asked.layout.measures), len(self.cells)
        wrong: list[bool | np.bool_] = []
        # (1)
        if (
            self.persons.shape != (n,)
            or self.counted.shape != (n,)
            or self.present.shape != (measures, n)
            or self.total.shape != (measures, n)
            or self.tops.shape != (2, measures, n)
            or len(self.keys) != (n if asked.keys else 0)
        ):
            raise _mismatch("shape")
        if asked.keys:
            named = all(
                key == key.strip() and 1 <= len(key) <= MAX_TEXT and key.isprintable() for key in self.keys
            )
            wrong += [not named, len(set(self.keys)) != n, n > MAX_CELLS]
        elif n:
            wrong += [
                self.cells.min() < 0,
                self.cells.max() >= layout.cells,
                len(np.unique(self.cells)) != n,
            ]
        # (2)
        persons, counted = self.persons, self.counted
        if n and max(int(persons.max()), int(counted.max())) > MAX_ROWS:
            raise _mismatch("number")
        kept, bound = int(counted.sum()), 1 if asked.unit is None else asked.most
        wrong += [
            not 0 <= self.here <= self.rows,
            not 0 <= self.units <= self.here,
            (self.here == 0) != (n == 0),
            kept > self.here,
            kept > bound * self.units,
            kept < self.units,
            bool(n) and int(persons.max()) > self.units,
            bool(n) and int(persons.sum()) < self.units,
            (persons < 1).any(),
            (persons > counted).any(),
            (counted > bound * persons).any(),
            asked.unit is None and (self.units != self.here or kept != self.here),
            not 0 <= self.undated <= self.here,
            not 0 <= self.no_value <= self.here * measures,
            not 0 <= self.clamped <= self.here * measures - self.no_value,
            (self.present < 0).any(),
            (self.present > counted).any(),
        ]
        if any(wrong):
            raise _mismatch("number")
        # (3)
        for place, measure in enumerate(layout.measures):
            present, total = self.present[place], self.total[place]
            wrong += [(total < present * measure.low).any(), (total > present * measure.high).any()]
            # (4)
            top, second = self.tops[:, place]
            if asked.ranked(place):
                wrong += [
                    (second < 0).any(),
                    (second > top).any(),
                    (top > bound * measure.high).any(),
                    (top > total - second).any(),
                    ((second > 0) & (persons < 2)).any(),
                    (-(-total // persons) > top).any(),
                ]
            else:
                wrong += [top.any(), second.any()]
        if any(wrong):
            raise _mismatch("sum")


def _mismatch(what: str) -> InputError:
    return InputError(
        f"what the source counted cannot be true of any rows: a {what} contradicts another",
        code="count-mismatch",
        hint="check the view or table at the source: it may change while it is read, or be damaged",
    )
