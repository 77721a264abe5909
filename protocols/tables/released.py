"""The one form in which tables of cells are released: a row for each figure of each cell.

Columns: one for each axis, named by its slot, with the cell's label, "" for the sum over that axis;
`measure`, what the figure is; `value`; with noise `low` and `high`, an interval around it; `withheld`, where
true the value is no number.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from math import prod
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protocols.errors import InputError
from protocols.jobs.job_type import Content, Table
from protocols.statistics.cross_table import rounded_cells
from protocols.tables.layout import Axis, Layout

PERSONS = "persons"
"""What the figure is that counts persons. A measure's figures have brackets, so none has this name."""

ROWS = "rows"
"""What the figure is that counts rows: those about nobody, or several of one person."""

MAX_FIGURES: Final = 1 << 20
"""Most rows of a released table: figures of all cells, margins included."""

MAX_TEXT_BYTES: Final = 1 << 26
"""Most bytes of all texts in a released table: a label is short, but stands in very many rows."""

_MEAN_DIGITS: Final = 2
"""Digits that a mean has more than its amounts, where it is exact but for rounding."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Texts = npt.NDArray[np.object_]
"""Arrays of `str`: a text that stands in many rows is kept once."""


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


def check_size(axes: Sequence[Axis], measures: Sequence[str], *, margins: bool = False) -> None:
    """Refuse a table too large to be made: a job of few bytes can ask for one that no memory holds.

    Args:
        axes: of the table.
        measures: what each figure of a cell is called.
        margins: whether each axis has the sum over it, too.

    Raises:
        InputError: `too-many-cells`: more rows than `MAX_FIGURES`, or more text than `MAX_TEXT_BYTES`.
    """
    cells = prod(axis.size + margins for axis in axes)
    rows = cells * len(measures)
    if rows > MAX_FIGURES:
        raise InputError(
            f"a table of {cells} cells with {len(measures)} figure(s) each has {rows} rows, at most "
            f"{MAX_FIGURES} are released",
            code="too-many-cells",
            hint="list fewer values or measures, or ask for fewer axes at a time",
        )
    along = sum(_bytes(axis.labels) * (cells // (axis.size + margins)) for axis in axes)
    size = along * len(measures) + _bytes(measures) * cells
    if size > MAX_TEXT_BYTES:
        raise InputError(
            f"the labels of a table of {rows} rows have {size} bytes, at most {MAX_TEXT_BYTES} are released",
            code="too-many-cells",
            hint="list shorter or fewer values, or ask for fewer axes at a time",
        )


def _bytes(texts: Iterable[str]) -> int:
    return sum(len(text.encode("utf-8")) for text in texts)


def cell_labels(axes: Sequence[Axis], *, margins: bool = False) -> dict[str, Texts]:
    """Return slot → label of every cell, the last axis fastest; with margins, "" last on each axis.

    A table without axes has one cell and no labels.
    """
    labels = [as_texts([*axis.labels, ""] if margins else axis.labels) for axis in axes]
    sizes = [len(each) for each in labels]
    return {
        axis.slot: np.tile(np.repeat(each, prod(sizes[at + 1 :])), prod(sizes[:at]))
        for at, (axis, each) in enumerate(zip(axes, labels, strict=True))
    }


def as_texts(texts: Sequence[str]) -> Texts:
    """Return texts as a column of labels."""
    return np.array(texts, dtype=np.object_)


def content(name: str, figures: Sequence[Figure], facts: Mapping[str, int | str]) -> Content:
    """Return the release of these figures, one after the other.

    Args:
        name: of the planned release.
        figures: one or more.
        facts: numbers about the run that may be shown with it.
    """
    sizes = [len(figure.values) for figure in figures]
    columns: dict[str, npt.NDArray[Any]] = {
        slot: _joined([figure.labels[slot] for figure in figures]) for slot in figures[0].labels
    }
    columns["measure"] = _joined(
        [np.full(size, figure.measure, np.object_) for figure, size in zip(figures, sizes, strict=True)]
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


def _joined(texts: Sequence[Texts]) -> npt.NDArray[Any]:
    joined = np.concatenate(texts)
    # Where there is no text, nothing else would say that it is a column of texts.
    return joined if len(joined) else joined.astype(np.str_)


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


def exact_figures(
    layout: Layout,
    hidden: npt.NDArray[np.bool_],
    counts: Ints,
    amounts: Sequence[tuple[Ints, Ints]],
    *,
    margins: bool,
    base: int | None,
) -> list[Figure]:
    """Return the figures of a table without noise, once it is known what is withheld.

    Persons are rounded; sums are exact; means have two digits more than the amounts: as an exact quotient a
    mean would give away how many amounts there are.

    Args:
        layout: of the table.
        hidden: bool[k], the cells that are withheld, in every figure.
        counts: k persons, or rows, in any shape.
        amounts: of each measure the sums and the numbers of amounts, in units of 10^-decimals.
        margins: whether the k cells are those with margins.
        base: what persons are rounded to; None where rows are counted that are about nobody, as they are.
    """
    labels = cell_labels(layout.axes, margins=margins)
    shown = counts if base is None else rounded_cells(counts, base)
    name = ROWS if base is None else PERSONS
    figures = [Figure(name, labels, shown.ravel().astype(np.float64), hidden)]
    for measure, (total, present) in zip(layout.measures, amounts, strict=True):
        step = 10**measure.decimals
        if "sum" in measure.of:
            figures.append(Figure(sum_of(measure.slot), labels, exact_ratios(total, step), hidden))
        if "mean" in measure.of:
            finer = 10**_MEAN_DIGITS
            by = np.maximum(present, 1)
            means = exact_ratios(total // by * finer + _nearest(total % by * finer, by), step * finer)
            # Where nobody is, there is no mean.
            figures.append(Figure(mean_of(measure.slot), labels, means, hidden | (present.ravel() == 0)))
    return figures


def _nearest(totals: Ints, by: Ints) -> Ints:
    """Return the whole numbers nearest to the quotients, of two equally near the larger."""
    return (2 * totals + by) // (2 * by)
