"""The one form in which tables of cells are released: a row for each figure of each cell.

Columns: one for each axis, named by its slot, with the cell's label, "" for the sum over that axis;
`measure`, what the figure is; `value`; with noise `low` and `high`, an interval around it; `withheld`, where
true the value is no number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from protocols.jobs.job_type import Content, Table
from protocols.tables.layout import Axis

PERSONS = "persons"
"""What the figure is that counts persons. A measure's figures have brackets, so none has this name."""

ROWS = "rows"
"""What the figure is that counts rows: those about nobody, or several of one person."""

Floats = npt.NDArray[np.float64]
Texts = npt.NDArray[np.str_]


def sum_of(slot: str) -> str:
    """Return what the sum of a measure is called in the column `measure`."""
    return f"sum({slot})"


def mean_of(slot: str) -> str:
    """Return what the mean of a measure is called in the column `measure`."""
    return f"mean({slot})"


@dataclass(frozen=True, slots=True, eq=False)
class Figure:
    """One number for each of k cells.

    Attributes:
        measure: what it is: `persons`, `sum(slot)`, `mean(slot)`, or another word.
        labels: slot → text of each cell, k of them; every figure of a table has the same slots.
        values: k numbers; whatever stands at a withheld cell is not released.
        withheld: which cells are not released; None for none.
        low: where the interval around each value begins; every figure of a table has one, or none has.
        high: where it ends.
    """

    measure: str
    labels: Mapping[str, Texts]
    values: Floats
    withheld: npt.NDArray[np.bool_] | None = None
    low: Floats | None = None
    high: Floats | None = None

    @property
    def hidden(self) -> npt.NDArray[np.bool_]:
        """Which cells are not released."""
        return np.zeros(len(self.values), dtype=np.bool_) if self.withheld is None else self.withheld


def cell_labels(axes: Sequence[Axis], *, margins: bool = False) -> dict[str, Texts]:
    """Return slot → label of every cell, the last axis fastest; with margins, "" last on each axis.

    A table without axes has one cell and no labels.
    """
    texts = [[*axis.labels, ""] if margins else [*axis.labels] for axis in axes]
    sizes = [len(each) for each in texts]
    return {
        axis.slot: np.tile(np.repeat(np.array(each, dtype=np.str_), prod(sizes[at + 1 :])), prod(sizes[:at]))
        for at, (axis, each) in enumerate(zip(axes, texts, strict=True))
    }


def content(name: str, figures: Sequence[Figure], facts: Mapping[str, int | str]) -> Content:
    """Return the release of these figures, one after the other.

    Args:
        name: of the planned release.
        figures: one or more.
        facts: numbers about the run that may be shown with it.
    """
    columns: dict[str, npt.NDArray[Any]] = {
        slot: np.concatenate([figure.labels[slot] for figure in figures]) for slot in figures[0].labels
    }
    sizes = [len(figure.values) for figure in figures]
    columns["measure"] = np.concatenate(
        [np.full(size, figure.measure) for figure, size in zip(figures, sizes, strict=True)]
    )
    columns["value"] = np.concatenate([_shown(figure.values, figure) for figure in figures])
    for word, ends in (("low", [each.low for each in figures]), ("high", [each.high for each in figures])):
        given = [_shown(end, figure) for end, figure in zip(ends, figures, strict=True) if end is not None]
        if given:
            columns[word] = np.concatenate(given)
    columns["withheld"] = np.concatenate([figure.hidden for figure in figures])
    if len({len(column) for column in columns.values()}) != 1:
        raise ValueError("the figures of a table differ in length, in slots or in having intervals")
    return Content(name, Table(columns), facts)


def _shown(values: Floats, figure: Figure) -> Floats:
    return np.where(figure.hidden, np.nan, values)


def exact_ratios(totals: npt.NDArray[np.int64], by: npt.NDArray[np.int64] | int) -> Floats:
    """Return each total divided by its divisor, the double nearest to the exact quotient; NaN for 0.

    Not an array division, which would round numbers beyond 2^53 before it divides.
    """
    divisors = repeat(by, totals.size) if isinstance(by, int) else by.ravel().tolist()
    ratios = (
        total / divisor if divisor else np.nan
        for total, divisor in zip(totals.ravel().tolist(), divisors, strict=True)
    )
    return np.fromiter(ratios, dtype=np.float64, count=totals.size)
