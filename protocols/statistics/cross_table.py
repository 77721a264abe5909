"""Disclosure control for counts in cross-tabs of one to four axes, and their margins. SPEC.md, 3 and 4.

Cells and sums of cells are published side by side, so a withheld cell could be got back by subtraction.
`protect_cross` withholds further cells until, for every withheld one, it has found other whole tables that
agree with everything published: the proof that nobody can tell which of them is the true one.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import product
from operator import ne
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protocols.errors import InputError
from protocols.statistics.suppress import P_PERCENT, TOP_SHARE

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Place = tuple[int, ...]
Line = tuple[int | slice, ...]

MAX_AXES: Final = 4
MAX_PROTECTED: Final = 1 << 15
"""Most cells of a table of one or two axes with margins, these not counted. A larger one goes out without
margins, where a withheld cell is in no sum, or district by district."""

MAX_PROTECTED_DEEP: Final = 1 << 12
"""The same with three or four axes, whose boxes have more corners: nothing can stop the search half-way."""

MAX_MINIMUM: Final = 1 << 32
MAX_PERSONS: Final = 1 << 48
MAX_AMOUNT: Final = 1 << 61
"""Largest sum of all cells of a table of amounts."""

_FAR: Final = 1 << 62
_CELL: Final = 10
"""A cell more costs as much as so many times `minimum` persons more in the withheld ones. Of fewer cells and
fewer persons one costs the other; here 5 % more persons come with a tenth fewer cells."""

_EMPTY: Final = 1 << 56
"""What it costs to withhold an empty cell: more than anything else."""

_WIDTH: Final = (0, 1 << 15, 48, 14, 7)
"""By number of axes: how many partners on each line are tried before all are."""

_STEPS: Final = 64
"""Most boxes of withheld cells by which one cell grows before more is withheld."""

_RECENT: Final = 2
"""Boxes that served the last cells, tried first for the next: on long lines it saves the search."""


def with_margins(cells: Ints) -> Ints:
    """Return the table with one more index at the end of each axis: the sum over that axis.

    Args:
        cells: int64[n1, …, nd].

    Returns:
        int64[n1 + 1, …, nd + 1]; index -1 stands for "all".
    """
    for axis in range(cells.ndim):
        cells = np.concatenate([cells, cells.sum(axis, keepdims=True, dtype=np.int64)], axis)
    return cells


def rounded_cells(cells: Ints, base: int) -> Ints:
    """Return the multiples of `base` nearest to each cell, the larger of two equally near; see `rounded`."""
    return (2 * cells + base) // (2 * base) * base


def least_persons(shape: Sequence[int], minimum: int, unit_cells: int = 1) -> Ints:
    """Return how many must be counted in each cell of a table with margins for it to be published.

    One person is counted once in a cell, but in a sum of m cells up to min(`unit_cells`, m) times: so many
    times larger has the count to be before it is certain to be of `minimum` persons.
    """
    parts = np.ones((1,) * len(shape), np.int64)
    for axis, size in enumerate(shape):
        along = [1] * len(shape)
        along[axis] = size + 1
        parts = parts * np.array([1] * size + [size], np.int64).reshape(along)
    return minimum * np.minimum(parts, unit_cells)


def check_protected(axes: int, cells: int) -> None:
    """Refuse a table that is too large to be published with margins.

    Raises:
        InputError: `too-many-cells`.
    """
    most = MAX_PROTECTED if axes <= 2 else MAX_PROTECTED_DEEP
    if cells > most:
        raise InputError(
            f"a table of {axes} axes and {cells} cells with margins, at most {most} can be protected",
            code="too-many-cells",
            hint='write margins = "no", list fewer values, or ask for fewer axes at a time',
        )


def protect_cross(
    counts: Ints,
    minimum: int,
    *,
    margins: bool,
    also: Bools | None = None,
    amounts: Sequence[tuple[Ints, int]] = (),
    unit_cells: int = 1,
) -> Bools:
    """Return which cells must be withheld.

    (1) Primary: a cell or margin with more than 0 persons and fewer than `minimum` (see `least_persons`), and
    whatever `also` names. An empty cell stays: it names nobody. (2) Secondary, with margins: further cells,
    cheap ones first, until every withheld cell is shown to be *open*. That is: there is a table of whole
    numbers with the same published cells, and no cell emptied, in which this one has as many persons as may
    be published, and another in which it has another number. In `amounts`, a cell of (1) has to be open to
    `P_PERCENT` above what it is. Cheap are few cells of few persons (see `_CELL`); of equally cheap ones the
    first by index.

    A reader is taken to know the exact published values, and which withheld cells have any persons.

    Args:
        counts: int64[n1, …, nd], 1 ≤ d ≤ `MAX_AXES`: persons by cell.
        minimum: smallest published count above zero, 1 or more.
        margins: whether the sums over every set of axes are published beside the cells.
        also: cells to withhold whatever they count, such as dominated ones: of the shape of `counts`, or with
            margins of the shape of `with_margins(counts)`.
        amounts: non-negative sums of measures that are published or withheld with the counts, each with the
            least amount that a person can add to a cell.
        unit_cells: in how many cells one person may be counted, 1 or more.

    Returns:
        With margins bool[n1 + 1, …, nd + 1], index -1 for "all"; without, bool[n1, …, nd].

    Raises:
        InputError: `too-many-cells`, see `check_protected`.
        ValueError: a shape, a bound, or a sum of all cells above `MAX_PERSONS` or `MAX_AMOUNT`.
    """
    _check(counts, minimum, amounts, unit_cells)
    if not margins:
        withheld: Bools = (counts > 0) & (counts < minimum)
        if also is not None:
            withheld |= _same_shape(also, counts.shape)
        return withheld
    check_protected(counts.ndim, counts.size)
    whole = with_margins(counts)
    least = least_persons(counts.shape, minimum, unit_cells)
    # (1)
    withheld = (whole > 0) & (whole < least)
    if also is not None and also.shape == whole.shape:
        withheld |= also
    elif also is not None:
        withheld[(slice(-1),) * counts.ndim] |= _same_shape(also, counts.shape)
    primary = withheld.copy()
    # (2)
    hidden = _Hidden(withheld, whole, _CELL * minimum)
    tables = [_Table(hidden, whole, np.minimum(whole, 1), np.maximum(least, whole + 1), whole < least)]
    for sums, low in amounts:
        total = with_margins(sums)
        known = np.where(whole > 0, np.minimum(total, low), 0)
        above = total + np.maximum(_times(total, Fraction(P_PERCENT, 100), up=True), 1)
        tables.append(_Table(hidden, total, known, above, primary))
    # A cell that is withheld for one table has to be open in the others, too.
    while any([table.settle() for table in tables]):  # noqa: C419  # each of them, not up to the first
        pass
    return withheld


def boxed(withheld: Bools) -> Bools:
    """Return which withheld cells of a table with margins are corners of a box of withheld cells.

    Such a cell follows from no sums of published ones; `protect_cross` leaves no other. SPEC.md, section 3.
    """
    ones = np.ones(withheld.shape, np.int64)
    table = _Table(_Hidden(withheld, ones, 1), ones, ones - 1, ones + 1, withheld)
    found = np.zeros(withheld.shape, np.bool_)
    for place in np.flatnonzero(withheld):
        at = _place(place, withheld.shape)
        other = None if found[at] else table.opposite(at)
        for corner, _ in () if other is None else _corners(at, other):
            found[corner] = True
    return found


def dominated_cells(totals: Ints, tops: Ints, seconds: Ints) -> Bools:
    """Return the cells of which sums over the sources do not show that no contributor stands out.

    Each source adds up, cell by cell, what its units contribute, and states its largest and second largest
    contribution of one unit, 0 where there is none. A cell that is not returned keeps both rules of
    `dominated`, also where a person is in several sources or, in a margin, in several cells. SPEC.md, 4.

    Args:
        totals: int64[...], sums of non-negative contributions over all sources.
        tops: sums of their largest.
        seconds: sums of their second largest.

    Raises:
        ValueError: a negative number, or shapes that differ.
    """
    if not totals.shape == tops.shape == seconds.shape:
        raise ValueError("totals, tops and seconds are not of one shape")
    if min(part.min(initial=0) for part in (totals, tops, seconds)) < 0:
        raise ValueError("contributions must not be negative")
    # The inequalities of `dominated`, divided so that nothing leaves 64 bits.
    stands_out = tops > _times(totals, TOP_SHARE)
    little_left = totals - tops - seconds < _times(tops, Fraction(P_PERCENT, 100), up=True)
    found: Bools = (totals > 0) & (stands_out | little_left)
    return found


def _times(values: Ints, share: Fraction, *, up: bool = False) -> Ints:
    """Return values·share, cut or rounded up; `share` is at most 1 and has a small denominator."""
    whole, left = np.divmod(values, share.denominator)
    more = share.denominator - 1 if up else 0
    return np.asarray(
        whole * share.numerator + (left * share.numerator + more) // share.denominator, np.int64
    )


def _check(counts: Ints, minimum: int, amounts: Sequence[tuple[Ints, int]], unit_cells: int) -> None:
    if not 1 <= counts.ndim <= MAX_AXES or counts.size == 0:
        raise ValueError(f"a table has 1 to {MAX_AXES} axes, and a cell")
    if not 1 <= minimum <= MAX_MINIMUM or unit_cells < 1 or any(low < 0 for _, low in amounts):
        raise ValueError("minimum and unit_cells must be 1 or more, least amounts not negative")
    for cells, most in ((counts, MAX_PERSONS), *((sums, MAX_AMOUNT) for sums, _ in amounts)):
        # In floats, which do not wrap; the largest error there is keeps it far below 2^62.
        if cells.shape != counts.shape or cells.min() < 0 or cells.sum(dtype=np.float64) > most:
            raise ValueError(f"tables are of one shape, no cell is negative, their sum is at most {most}")


def _same_shape(also: Bools, shape: Place) -> Bools:
    if also.shape != shape:
        raise ValueError("the cells to withhold are not of the table's shape")
    return also


# -- boxes ---------------------------------------------------------------------------------------------------


class _Hidden:
    """Which cells of a release are withheld, and what it costs to withhold another."""

    def __init__(self, withheld: Bools, persons: Ints, cell: int) -> None:
        """Begin with those that are; `persons` by cell, and what one `cell` more costs beside its persons."""
        self.withheld, self.persons = withheld, persons
        self.cost = np.where(withheld, 0, np.where(persons > 0, persons + cell, _EMPTY))
        # Nothing is hidden behind an empty cell, except another one.
        self.usable = (persons > 0) | withheld

    def add(self, at: Place) -> None:
        """Withhold one more."""
        self.withheld[at], self.cost[at], self.usable[at] = True, 0, True


class _Table:
    """One table of a release, and which of its withheld cells are shown to be open. SPEC.md, section 3.

    A *box* is two indices on each axis, and so 2^d corners. Changing these in turn by +δ and -δ, margins the
    other way round, leaves every margin the sum that it was: where all corners are withheld, no reader can
    exclude the result.
    """

    def __init__(self, hidden: _Hidden, cells: Ints, low: Ints, goal: Ints, far: Bools) -> None:
        """Begin with nothing shown.

        Args:
            hidden: shared by all tables of the release, and added to.
            cells: with margins, as they are.
            low: the least that a reader knows of each cell if it is withheld, at most what it is.
            goal: what a withheld cell has to be able to be.
            far: the cells that have to reach their goal; of the others it is enough that they can differ.
        """
        self._hidden, self._cells, self._low = hidden, cells, low
        self._far, self._goal = far, np.where(far, goal, cells + 1)
        self._now, self._open = cells.copy(), np.zeros(cells.shape, np.bool_)
        # Opposite corners that served the last cells: they often serve the next, and are tried first.
        self._recent: deque[Place] = deque(maxlen=_RECENT)
        sign = np.ones((1,) * cells.ndim, np.int64)
        for axis, size in enumerate(cells.shape):
            along = np.ones(size, np.int64)
            along[-1] = -1
            sign = sign * along.reshape([-1 if each == axis else 1 for each in range(cells.ndim)])
        self._plus: Bools = sign > 0
        # With margins counted negative, every line adds up to nothing. So counted, a cell can fall by [0] and
        # grow by [1].
        self._room = (
            np.where(self._plus, cells - low, _FAR),
            np.where(self._plus, _FAR, cells - low),
        )

    def settle(self) -> bool:
        """Show of every withheld cell that it is open, and withhold more until it is.

        Returns whether any was not shown to be open before.
        """
        left = np.flatnonzero(self._hidden.withheld & ~self._open)
        # Those that have furthest to go come first: what is withheld for them serves the others.
        need = (self._goal - self._cells).flat[left]
        for place in left[np.argsort(-need, kind="stable")]:
            at = _place(place, self._cells.shape)
            if not self._open[at]:
                self._show(at)
        return bool(left.size)

    def _show(self, at: Place) -> None:
        """Make a table in which a cell reaches its goal; all that have reached theirs in it are open."""
        need = int(self._goal[at] - self._cells[at])
        moved: set[Place] = set()
        boxes = self._boxes(at)
        while need:
            other = next(boxes, None) or self._cheapest(at, need)
            for corner, _ in _corners(at, other):
                self._hidden.add(corner)
            step = min(need, self._room_in(at, other))
            self._move(at, other, step, moved)
            need -= step
        if other not in self._recent:
            self._recent.appendleft(other)
        for corner in moved:
            there, was = self._now[corner], self._cells[corner]
            self._open[corner] |= there >= self._goal[corner] or (not self._far[corner] and there != was)
            self._put(corner, was)

    def _boxes(self, at: Place) -> Iterator[Place]:
        """Yield opposite corners of withheld boxes in which a cell can grow, as the table is by then."""
        for other in tuple(self._recent):
            if all(map(ne, at, other)) and self._room_in(at, other):
                yield other
        for _ in range(_STEPS):
            found = self._widest(at)
            if found is None:
                return
            yield found

    def _room_in(self, at: Place, other: Place) -> int:
        """Return by how much a cell can grow in a box."""
        first = bool(self._plus[at])
        return min(
            int(self._room[first == even][corner]) if self._hidden.withheld[corner] else 0
            for corner, even in _corners(at, other)
            if corner != at
        )

    def _move(self, at: Place, other: Place, step: int, moved: set[Place]) -> None:
        """Change the corners of a box so that the cell at `at` grows by `step`."""
        for corner, even in _corners(at, other):
            grows = (self._plus[corner] == self._plus[at]) == even
            self._put(corner, self._now[corner] + (step if grows else -step))
            moved.add(corner)

    def _put(self, at: Place, value: int) -> None:
        self._now[at] = value
        self._room[0 if self._plus[at] else 1][at] = value - self._low[at]

    def opposite(self, at: Place) -> Place | None:
        """Return the opposite corner of a withheld box, None where a cell is in none."""
        near = self._widest(at)
        return self._widest(at, width=max(self._cells.shape)) if near is None else near

    def _widest(self, at: Place, width: int = 0) -> Place | None:
        """Return the opposite corner of the withheld box in which a cell can grow most, None if in none.

        Of the partners on each line, the `width` that can give most are looked at.
        """
        partners = []
        for _, room in self._lines(at, self._hidden.withheld):
            found = np.flatnonzero(room)
            if found.size == 0:
                return None
            partners.append(found[_least(-room[found], width or _WIDTH[len(at)])])
        most = self._most(at, partners, self._hidden.withheld)
        best = int(np.argmax(most))
        return _opposite(partners, most.shape, best) if most.flat[best] else None

    def _cheapest(self, at: Place, need: int) -> Place:
        """Return the opposite corner of the box that costs least for what it adds to the `need`."""
        usable = self._hidden.usable if self._hidden.persons[at] else np.ones_like(self._hidden.usable)
        rooms, some = [], []
        for line, room in self._lines(at, usable):
            found = np.flatnonzero(room)
            price = self._hidden.cost[line][found] / np.minimum(room[found], need)
            rooms.append(found)
            some.append(found[_least(price, _WIDTH[len(at)])])
        for partners in (some, rooms):
            most = np.minimum(self._most(at, partners, usable), need)
            if most.any():
                cost = np.zeros((1,) * len(at), np.int64)
                for index, _ in _slabs(at, partners):
                    cost = cost + self._hidden.cost[index]
                price = np.where(most > 0, cost / np.maximum(most, 1), np.inf)
                return _opposite(partners, price.shape, int(np.argmin(price)))
        # SPEC.md, section 3: the box of a cell and its margins always serves.
        raise AssertionError("no box with room for a cell and its margins")

    def _lines(self, at: Place, allowed: Bools) -> Iterator[tuple[Line, Ints]]:
        """Yield each line through a cell, and what the others on it can give for the cell to grow."""
        room = self._room[not self._plus[at]]
        for axis in range(len(at)):
            line: Line = (*at[:axis], slice(None), *at[axis + 1 :])
            there = np.where(allowed[line], room[line], 0)
            there[at[axis]] = 0
            yield line, there

    def _most(self, at: Place, partners: Sequence[Ints], allowed: Bools) -> Ints:
        """Return by how much a cell can grow in each box, in one axis for each list of partners."""
        most = np.full((1,) * len(at), _FAR, np.int64)
        for index, even in _slabs(at, partners):
            room = self._room[bool(self._plus[at]) == even]
            most = np.minimum(most, np.where(allowed[index], room[index], 0))
        return most


def _least(values: Ints | Floats, count: int) -> Ints:
    """Return where the `count` least values are, in order of place; of equal ones the first are taken."""
    if values.size <= count:
        return np.arange(values.size)
    bound = np.partition(values, count - 1)[count - 1]
    below = np.flatnonzero(values < bound)
    return np.sort(np.append(below, np.flatnonzero(values == bound)[: count - below.size]))


def _corners(at: Place, other: Place) -> Iterator[tuple[Place, bool]]:
    """Yield the corners of a box, first `at`, and whether they change alike, margins counted negative."""
    for turns in product((False, True), repeat=len(at)):
        yield (
            tuple(there if turn else here for here, there, turn in zip(at, other, turns, strict=True)),
            sum(turns) % 2 == 0,
        )


def _slabs(at: Place, partners: Sequence[Ints]) -> Iterator[tuple[tuple[Ints, ...], bool]]:
    """Yield the corners of boxes, except `at`: where they are, and whether they change as it does."""
    here = [np.array([index]) for index in at]
    for turns in product((False, True), repeat=len(at)):
        if any(turns):
            places = [
                there if turn else mine for mine, there, turn in zip(here, partners, turns, strict=True)
            ]
            yield np.ix_(*places), sum(turns) % 2 == 0


def _place(number: int | np.integer[Any], shape: Place) -> Place:
    return tuple(int(index) for index in np.unravel_index(number, shape))


def _opposite(partners: Sequence[Ints], shape: Place, number: int) -> Place:
    return tuple(int(found[index]) for found, index in zip(partners, _place(number, shape), strict=True))
