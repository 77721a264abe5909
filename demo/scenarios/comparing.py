"""Holds a released table against the truth of the synthetic city, and against a reader who subtracts."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import comb, isnan
from typing import TYPE_CHECKING, Final

from demo.narration import Failed
from protocols.statistics.suppress import ROUNDING, rounded

if TYPE_CHECKING:
    import pyarrow as pa

Cell = tuple[str, ...]

CONFIDENCE: Final = 0.95
_CHANCE: Final = 1e-6
"""Chance that an honest table is taken for a wrong one: noise is not seeded, so a run may be unlucky."""

_ANY: Final = 1 << 40
"""More people than any cell has."""

_MANY: Final = 500
"""Of so many 95 % intervals a tenth misses the truth less often than `_CHANCE`."""


@dataclass(frozen=True, slots=True)
class Released:
    """One released figure; all numbers are NaN where it is withheld, `low` and `high` where it is exact."""

    value: float
    low: float
    high: float

    @property
    def withheld(self) -> bool:
        """Whether there is no figure."""
        return isnan(self.value)

    def row(self) -> tuple[float | None, float | None, float | None, bool]:
        """Return value, low, high and whether it is withheld; None for what is not there."""
        value, low, high = (None if isnan(each) else each for each in (self.value, self.low, self.high))
        return value, low, high, self.withheld


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How the figures of a noisy table compare with the truth.

    Args:
        cells: figures, withheld ones included.
        withheld: of these, how many were.
        covered: share of the others whose 95 % interval holds the truth.
        mean_error: mean distance from the truth.
        largest_error: largest one.
        mean_half_width: half of an interval's mean length.
    """

    cells: int
    withheld: int
    covered: float
    mean_error: float
    largest_error: float
    mean_half_width: float

    def __str__(self) -> str:
        shown = self.cells - self.withheld
        return (
            f"{shown:,} figures, {self.withheld:,} withheld; off by {self.mean_error:.1f} on average and by "
            f"{self.largest_error:.0f} at most; {100 * self.covered:.1f} % of the 95 % intervals "
            f"(±{self.mean_half_width:.1f} on average) hold the truth"
        )


def read_figures(table: "pa.Table", slots: Iterable[str], measure: str) -> dict[Cell, Released]:
    """Return one measure's figures of a released table by the labels of its axes.

    Raises:
        Failed: a cell stands there twice, or a withheld one has a number.
    """
    rows = table.to_pylist()
    nothing = float("nan")
    found: dict[Cell, Released] = {}
    for row in rows:
        if row["measure"] != measure:
            continue
        cell = tuple(row[slot] for slot in slots)
        figure = Released(row["value"], row.get("low", nothing), row.get("high", nothing))
        if cell in found or figure.withheld != row["withheld"]:
            raise Failed("a released cell stands there twice, or is withheld and has a number all the same")
        found[cell] = figure
    return found


def check_exact(released: Mapping[Cell, Released], truth: Mapping[Cell, int], minimum: int) -> int:
    """Check a table that has no noise against the truth; return how many cells are withheld.

    (1) It has the cells of the truth. (2) A published cell is the truth, rounded to 5. (3) None of them is of
    fewer than `minimum` people, but of nobody. (4) No withheld cell can be told from the published ones.

    Args:
        released: by labels of both axes, "" for the sum over one.
        truth: the same.
        minimum: smallest published count above zero.

    Raises:
        Failed: which of them does not hold.
    """
    if released.keys() != truth.keys():
        raise Failed("the exact table has other cells than were asked for")
    for cell, figure in released.items():
        if figure.withheld:
            continue
        if figure.value != rounded(truth[cell], ROUNDING):
            raise Failed("a published exact cell is not the truth rounded to 5")
        if 0 < truth[cell] < minimum:
            raise Failed(f"a cell of fewer than {minimum} people was published")
    hidden = {cell for cell, figure in released.items() if figure.withheld}
    for cell, (low, high) in deducible({cell: truth[cell] for cell in truth.keys() - hidden}, hidden).items():
        if low == high or high < minimum:
            raise Failed(f"a withheld cell can be told from the published ones: {'/'.join(cell)}")
    return len(hidden)


def deducible(published: Mapping[Cell, int], hidden: set[Cell]) -> dict[Cell, tuple[int, int]]:
    """Return between which numbers a reader who knows the published cells exactly places each hidden one.

    Every row and every column of the table adds up to its margin. From each such line follows a bound for
    each of its hidden cells, from the bounds of the others; until nothing new follows (the shuttle algorithm:
    Buzzigoli and Giusti 1999). The reader also knows that no hidden cell is empty.
    """
    bounds = dict.fromkeys(hidden, (1, _ANY))
    lines = _lines({*published, *hidden})
    changed = True
    while changed:
        changed = False
        for total, parts in lines:
            signed = {total: -1, **dict.fromkeys(parts, 1)}
            open_ = [cell for cell in signed if cell in hidden]
            known = sum(sign * published[cell] for cell, sign in signed.items() if cell not in hidden)
            for cell in open_:
                others = [(signed[other], bounds[other]) for other in open_ if other != cell]
                least = sum(low if sign > 0 else -high for sign, (low, high) in others)
                greatest = sum(high if sign > 0 else -low for sign, (low, high) in others)
                # All of a line, the total taken off, is nothing.
                ends = (-(known + greatest), -(known + least)) if signed[cell] > 0 else (
                    known + least, known + greatest)  # fmt: skip
                low, high = bounds[cell]
                closer = (max(low, ends[0]), min(high, ends[1]))
                if closer != (low, high):
                    bounds[cell] = closer
                    changed = True
    return bounds


def _lines(cells: set[Cell]) -> list[tuple[Cell, list[Cell]]]:
    """Return each margin with the cells that it is the sum of, of a table with two axes."""
    rows: list[str] = sorted({row for row, _ in cells if row})
    columns: list[str] = sorted({column for _, column in cells if column})
    found: list[tuple[Cell, list[Cell]]] = []
    found += [((row, ""), [(row, column) for column in columns]) for row in (*rows, "")]
    found += [(("", column), [(row, column) for row in rows]) for column in (*columns, "")]
    return found


def accuracy(released: Mapping[Cell, Released], truth: Mapping[Cell, int], least: int) -> Accuracy:
    """Compare a noisy table with the truth.

    (1) It has the cells of the truth. (2) No figure is below `least`. (3) Not more intervals miss the truth
    than may, of all cells. (4) Nor of those that the noise cannot have hidden. Among the others those are
    shown whose noise was upwards, so of a table that is mostly withheld fewer than 95 % hold.

    Args:
        released: by labels.
        truth: the same.
        least: smallest noisy figure that is shown.

    Raises:
        Failed: which of them does not hold; (3) and (4) fail by chance once in a million tables.
    """
    # (1)
    if released.keys() != truth.keys():
        raise Failed("the noisy table has other cells than were asked for")
    shown = {cell: figure for cell, figure in released.items() if not figure.withheld}
    # (2)
    if any(figure.value < least for figure in shown.values()):
        raise Failed(f"a noisy figure below {least} was released")
    errors = [abs(figure.value - truth[cell]) for cell, figure in shown.items()]
    held = {cell for cell, figure in shown.items() if figure.low <= truth[cell] <= figure.high}
    reach = max((figure.high - figure.low for figure in shown.values()), default=0)
    clear = {cell for cell in released if truth[cell] >= least + reach}
    # (3), (4)
    for missed, cells in ((len(shown) - len(held), len(released)), (len(clear - held), len(clear))):
        if missed > most_missed(cells):
            raise Failed(f"{missed} of {cells} 95 % intervals do not hold the truth")
    some = max(len(shown), 1)
    return Accuracy(
        len(released),
        len(released) - len(shown),
        len(held) / some if shown else 1.0,
        sum(errors) / some,
        max(errors, default=0.0),
        sum(figure.high - figure.low for figure in shown.values()) / 2 / some,
    )


def most_missed(intervals: int) -> int:
    """Return how many of so many 95 % intervals may miss the truth: more do so once in a million times.

    A tenth of them at least, as figures of one tree hang together; of many, that is rarer still.
    """
    if intervals > _MANY:
        return intervals // 10
    miss = 1 - CONFIDENCE
    tail, most = 1.0, -1
    while tail > _CHANCE and most < intervals:
        most += 1
        tail -= comb(intervals, most) * miss**most * CONFIDENCE ** (intervals - most)
    return max(most, intervals // 10)
