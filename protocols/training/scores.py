"""Measures of a model from histograms of its scores: AUC, loss, calibration, errors by group, membership.

A node counts its rows by side (trained on, held out), group, label and bin of the score; a secure sum adds
the counts up. A row is in one cell, so all measures together cost one histogram: ℓ2 sensitivity 1 for each
row of a unit. Bins are of the chance that the model gives, so their edges are public.

Every measure is a pure function of the counts, with or without noise. Beside it stands the standard deviation
that noise of one variance on every count gives it, to first order (delta method); an interval of 95 % is
`WITHIN` of them to each side. Ratios of noisy sums have a bias of second order in noise over counts: state
them where counts are well above their noise.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from protocols.dp.mechanism import Vector
from protocols.errors import InputError
from protocols.training.recipe import Layout, sigmoid
from protocols.training.schema import Floats, Ints, Rows

MAX_BINS: Final = 1 << 12

TRAINED: Final = 0
"""The side of rows that the model was trained on, first axis of `Bins.tables`."""

HELD_OUT: Final = 1
"""The side of rows that it was not."""

WITHIN: Final = 1.96
"""Half width of an interval that holds a normal number with 95 %, in standard deviations."""


@dataclass(frozen=True, slots=True)
class Bins:
    """Bins of a chance, all public.

    Attributes:
        edges: ascending between 0 and 1 and symmetric about ½, which is one of them: bin k is
            [edge k-1, edge k), and the chance of a row's own label falls into the same bins.
        groups: how many groups rows are told apart by, 1 or more.

    Raises:
        InputError: `bad-bins`.
    """

    edges: tuple[float, ...]
    groups: int = 1

    def __post_init__(self) -> None:
        """Check the edges."""
        edges = np.array((0.0, *self.edges, 1.0))
        ascending = bool((np.diff(edges) > 0).all()) and len(self.edges) % 2 == 1
        if not ascending or np.abs(edges + edges[::-1] - 1).max() > 1e-9 or self.groups < 1:
            raise InputError(
                f"{len(self.edges) + 1} bins: not an even number, symmetric about one half",
                code="bad-bins",
                hint="ask for an even number of bins of equal width, such as 32",
            )

    @classmethod
    def even(cls, count: int, groups: int = 1) -> "Bins":
        """Return so many bins of equal width, an even number."""
        return cls(tuple((np.arange(1, count) / count).tolist()), groups)

    @property
    def size(self) -> int:
        """Cells in all: 2 sides × groups × 2 labels × bins."""
        return 2 * self.groups * 2 * (len(self.edges) + 1)

    def layout(self, rows_per_unit: int = 1) -> Layout:
        """Return what a histogram is as a vector."""
        return Layout(Vector("scores", self.size, rows_per_unit, rows_per_unit**2), 1)

    def count(
        self,
        margins: Floats,
        rows: Rows,
        group: npt.NDArray[np.integer] | None = None,
        held: npt.NDArray[np.bool_] | None = None,
    ) -> Ints:
        """Return a node's histogram: numbers of rows by side, group, label and bin.

        Args:
            margins: n log-odds.
            rows: n, of which the labels count.
            group: n numbers below `groups`; None where all rows are one group.
            held: n, which rows were held out; None where all were, as in a public test set.
        """
        side = np.full(len(rows), HELD_OUT) if held is None else held.astype(np.int64)
        of_group = np.zeros(len(rows), np.int64) if group is None else group.astype(np.int64)
        place = np.searchsorted(np.array(self.edges), sigmoid(margins), side="right")
        cell = ((side * self.groups + of_group) * 2 + rows.labels) * (len(self.edges) + 1) + place
        return np.bincount(cell, minlength=self.size)

    def tables(self, histogram: npt.NDArray[np.generic]) -> Floats:
        """Return 2 sides × groups × 2 labels × bins, label 0 first."""
        return histogram.astype(np.float64).reshape(2, self.groups, 2, len(self.edges) + 1)


# -- AUC ----------------------------------------------------------------------------------------------------


def auc(table: Floats) -> float:
    """Return the area under the ROC curve of 2 × bins counts; ties in a bin count half.

    With exact counts it is within `auc_error` of the AUC of the scores themselves. NaN where a label has no
    rows, or noise has left it fewer than none.
    """
    negatives, positives = table
    if not _masses(table):
        return float("nan")
    below = np.cumsum(negatives) - negatives / 2
    return float(np.clip(positives @ below / (negatives.sum() * positives.sum()), 0, 1))


def _masses(table: Floats) -> bool:
    """Return whether both labels have rows, going by counts that may carry noise."""
    return bool((table.sum(axis=1) > 0).all())


def auc_error(table: Floats) -> float:
    """Return the most by which bins change the AUC: half of the pairs that fall into one bin."""
    negatives, positives = np.maximum(table, 0)
    pairs = float(negatives.sum() * positives.sum())
    return float(negatives @ positives / pairs / 2) if pairs > 0 else float("nan")


def auc_deviation(table: Floats, variance: float) -> float:
    """Return the standard deviation that noise of this variance on every count gives the AUC.

    The derivative by a positive count is (part of negatives below - AUC)/positives, and by a negative one
    (part of positives above - AUC)/negatives.
    """
    negatives, positives = table
    if not _masses(table):
        return float("nan")
    rate = auc(table)
    below = (np.cumsum(negatives) - negatives / 2) / negatives.sum() - rate
    above = 1 - (np.cumsum(positives) - positives / 2) / positives.sum() - rate
    slopes = float(((below / positives.sum()) ** 2).sum() + ((above / negatives.sum()) ** 2).sum())
    return float(np.sqrt(variance * slopes))


# -- loss ---------------------------------------------------------------------------------------------------


def log_loss(table: Floats, edges: tuple[float, ...]) -> float:
    """Return the mean log loss of 2 × bins counts, every row at the middle of its bin; NaN without rows.

    With exact counts it is off by what a bin's width changes: bins of width w change a row's loss by about
    w/2 over the chance of its label.
    """
    number = float(table.sum())
    return float((table * _losses(edges)).sum() / number) if number > 0 else float("nan")


def log_loss_deviation(table: Floats, edges: tuple[float, ...], variance: float) -> float:
    """Return the standard deviation that noise of this variance on every count gives the loss.

    The derivative by a count is (loss in its cell - mean loss)/rows.
    """
    if not table.sum() > 0:
        return float("nan")
    slopes = (_losses(edges) - log_loss(table, edges)) / table.sum()
    return float(np.sqrt(variance * (slopes**2).sum()))


def _losses(edges: tuple[float, ...]) -> Floats:
    """Return the loss of each label in the middle of each bin, 2 × bins."""
    chances = middles(edges)
    return -np.log(np.stack((1 - chances, chances)))


def middles(edges: tuple[float, ...]) -> Floats:
    """Return the chance in the middle of each bin."""
    ends = np.concatenate(([0.0], edges, [1.0]))
    return (ends[:-1] + ends[1:]) / 2


# -- calibration and errors ---------------------------------------------------------------------------------


def calibration(table: Floats, edges: tuple[float, ...], fewest: float) -> tuple[Floats, Floats, float]:
    """Return for each bin the chance in its middle and the part of positives, and the expected error.

    Args:
        table: 2 × bins.
        edges: of the bins.
        fewest: bins of fewer rows are merged with their neighbours above, and what is left over at the end
            with the one below; say 10 standard deviations of noise. Of fewer rows in all there is no bin.
    """
    merged: list[tuple[Floats, float]] = []
    held, middle = np.zeros(2), 0.0
    for counts, chance in zip(table.T, middles(edges).tolist(), strict=True):
        held = held + counts
        middle += max(float(counts.sum()), 0) * chance
        if held.sum() >= fewest and held.sum() > 0:
            merged.append((held, middle))
            held, middle = np.zeros(2), 0.0
    if not merged:
        return np.zeros(0), np.zeros(0), float("nan")
    # Noise may take away more than is there: then nothing is left over.
    if held.sum() > 0:
        last, below = merged[-1]
        merged[-1] = (last + held, below + middle)
    weights = np.array([counts.sum() for counts, _ in merged])
    found = np.array([total for _, total in merged]) / weights
    seen = np.clip(np.array([counts[1] for counts, _ in merged]) / weights, 0, 1)
    return found, seen, float(np.average(np.abs(found - seen), weights=weights))


def errors(table: Floats, edges: tuple[float, ...], threshold: float) -> tuple[float, float]:
    """Return the part of negatives at or above a threshold and of positives below it: two kinds of error.

    Args:
        table: 2 × bins.
        edges: of the bins, the threshold among them.
        threshold: chance from which a row counts as positive.
    """
    at = edges.index(threshold) + 1
    negatives, positives = table
    false_alarms = negatives[at:].sum() / negatives.sum() if negatives.sum() > 0 else np.nan
    misses = positives[:at].sum() / positives.sum() if positives.sum() > 0 else np.nan
    return float(np.clip(false_alarms, 0, 1)), float(np.clip(misses, 0, 1))


def errors_deviation(
    table: Floats, edges: tuple[float, ...], threshold: float, variance: float
) -> tuple[float, float]:
    """Return the standard deviations that noise of this variance on every count gives the two `errors`.

    Of a part r = a/n, where a is the sum of m of k counts and n of all, it is √(m(1-r)² + (k-m)r²)/n times
    the noise's own.
    """
    at, bins = edges.index(threshold) + 1, table.shape[1]
    found = []
    for rate, wrong, rows in zip(
        errors(table, edges, threshold), (bins - at, at), table.sum(axis=1).tolist(), strict=True
    ):
        spread = variance * (wrong * (1 - rate) ** 2 + (bins - wrong) * rate**2)
        found.append(float(np.sqrt(spread)) / rows if rows > 0 else float("nan"))
    return found[0], found[1]


# -- membership ---------------------------------------------------------------------------------------------


def membership(tables: Floats) -> Floats:
    """Return 2 × bins counts of held-out and of trained-on rows by the chance that their own label was given.

    What an attacker has who takes whoever has a small loss for one who was trained on (Yeom et al. 2018,
    arXiv:1709.01604): `auc`, `auc_error` and `auc_deviation` of this table are those of the attack, one half
    at best for the model. Each of its counts is the sum of 2 × groups counts of the histogram, and its noise
    has so many times their variance.

    Args:
        tables: 2 sides × groups × 2 labels × bins.
    """
    by_side = tables.sum(axis=1)
    # Edges are symmetric about ½: of label 0 the chance of the own label is in the bin counted from behind.
    own = by_side[:, 1] + by_side[:, 0, ::-1]
    return np.stack((own[HELD_OUT], own[TRAINED]))
