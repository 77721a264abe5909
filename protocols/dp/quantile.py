"""Quantiles of a measure from noisy counts of its bins. SPEC.md, "Quantiles".

The bins are the leaves of a binary tree, and each level of it is a noisy histogram: what lies below a value
is then the sum of few counts, however many bins there are. Nothing here sees data, only noisy counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import inf
from typing import TYPE_CHECKING

from protocols.dp.tree import Estimate, Tree, deviations, estimate
from protocols.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]
    Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Quantile:
    """A quantile, in the measure's unit.

    Attributes:
        value: where the estimated counts reach the share asked for, evenly within its bin.
        low, high: bounds of bins that hold the true quantile between them with the confidence asked for.
    """

    value: float
    low: float
    high: float


def levels(bins: int) -> Tree:
    """Return the binary tree over that many bins: node i of a level has nodes 2i and 2i+1 of the next one.

    It has 1 + ceil(log2 bins) levels; one unit more or less changes one count of each by one.

    Raises:
        InputError: no bins.
    """
    import numpy as np

    if bins < 1:
        raise InputError("a quantile of no bins", code="bad-bins", hint="give the lower bound of each bin")
    parents: list[Ints] = []
    while bins > 1:
        parents.insert(0, np.arange(bins) // 2)
        bins = -(-bins // 2)
    return Tree(tuple(parents))


def estimate_quantiles(
    tree: Tree,
    noisy: Sequence["Ints | Floats"],
    variances: Sequence[float | Fraction],
    edges: Sequence[Fraction | float],
    at: Sequence[Fraction],
    *,
    confidence: Fraction = Fraction("0.95"),
    heavy: bool = False,
) -> list[Quantile | None]:
    """Return the quantile at each share of `at`; None for all where there may be nobody at all.

    The p-quantile is the least value at or below which at least p of all lie.

    Args:
        tree: see `levels`.
        noisy: counts of the tree's nodes with independent noise, one array per level.
        variances: of that noise, one per level.
        edges: ascending, where each bin begins and the last one ends.
        at: shares, above 0 and below 1.
        confidence: of each interval by itself.
        heavy: the noise is discrete Laplace, see `deviations`.

    Raises:
        InputError: bins that do not ascend or are not the tree's, a share or a confidence that is none, and
            what `tree.estimate` refuses.
    """
    bins = tree.sizes[-1]
    if len(edges) != bins + 1 or not all(-inf < low < high < inf for low, high in pairwise(edges)):
        raise InputError(
            f"{len(edges)} bounds of bins, expected {bins + 1} that ascend",
            code="bad-bins",
            hint="give where each bin begins, and where the last one ends",
        )
    if not all(0 < share < 1 for share in at):
        raise InputError(
            "a quantile is asked for at a share that is not between 0 and 1",
            code="bad-quantile",
            hint="0.5 is the median",
        )
    found = estimate(tree, noisy, variances)
    wide = deviations(confidence, heavy=heavy)
    # The quantile of nothing: with this confidence there may be nobody.
    if found.counts[0][0] < 1 or found.values[0][0] - wide * found.variances[0][0] ** 0.5 <= 0:
        return [None] * len(at)
    return [_quantile(tree, found, edges, share, wide) for share in at]


def _quantile(
    tree: Tree, found: Estimate, edges: Sequence[Fraction | float], share: Fraction, wide: float
) -> Quantile:
    import numpy as np

    # (1) The value: the first bin with which the counts, whole and none below zero, reach the share.
    reached = np.concatenate(([0], np.cumsum(found.counts[-1])))
    rank = share * int(reached[-1])
    bin_ = int(np.searchsorted(reached[1:], -(-rank.numerator // rank.denominator)))
    part = (rank - int(reached[bin_])) / int(found.counts[-1][bin_])
    begin, end = Fraction(edges[bin_]), Fraction(edges[bin_ + 1])
    # (2) The interval: from below, edge after edge while it is clear that less than the share lies below it;
    # from above, while it is clear that more does. Both stop at the first doubt: to go too far, the test at
    # one certain edge, that of the true quantile, has to be wrong.
    excess, deviation = _excess(tree, found, float(share))
    less, more = excess < -wide * deviation, excess > wide * deviation
    low = int(np.argmin([*less, False])) - 1
    high = len(more) - int(np.argmin([*more[::-1], False]))
    # (1) goes by whole counts, none below zero, and among empty bins these lie above the estimate.
    low, high = min(max(low, 0), bin_), max(min(high, len(more) - 1), bin_ + 1)
    return Quantile(float(begin + part * (end - begin)), float(edges[low]), float(edges[high]))


def _excess(tree: Tree, found: Estimate, share: float) -> tuple["Floats", "Floats"]:
    """Return for each edge how many more lie below it than `share` of all, and its standard deviation.

    Given a node's count h, what lies below an edge inside it is slope·h + …, with variance `rest`. The left
    child's count is s·h + …, s = var_c / V_S, with variance var_c (1-s), and the right one has the others.
    """
    import numpy as np

    bins, depth = tree.sizes[-1], len(tree.parents)
    edge = np.arange(bins)
    slope, rest = np.zeros(bins), np.zeros(bins)
    for level in range(depth, 0, -1):
        own, node = found.own[level], edge >> (depth - level)
        right = node % 2 == 1
        left = node - right
        # The last node may have no brother: then it is its parent.
        brother = np.append(own, 0.0)[left + 1]
        part = own[left] / (own[left] + brother)
        moved = np.where(right, 1 - slope, slope)
        rest = rest + moved**2 * own[left] * (1 - part)
        slope = np.where(right, slope + (1 - slope) * part, slope * part)
    # Below the last edge is everything.
    slope, rest = np.append(slope, 1.0), np.append(rest, 0.0)
    below = np.concatenate(([0.0], np.cumsum(found.values[-1])))
    variance = (slope - share) ** 2 * found.variances[0][0] + rest
    return below - share * found.values[0][0], np.sqrt(variance)
