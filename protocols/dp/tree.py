"""Counts of a geography, noisy at every level and made consistent. SPEC.md, "Tree".

Each level (city, districts, streets, communities) is released with noise of its own. What follows uses only
these noisy counts, so it costs nothing more: a weighted average up and down, which is the least-squares
estimate (Hay et al. 2010, arXiv:0904.0942; here with variances that may differ between levels), then whole
numbers, none below zero, that add up exactly.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import inf, log, sqrt
from statistics import NormalDist
from typing import TYPE_CHECKING, Final

from protocols.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]
    Floats = npt.NDArray[np.float64]

MAX_COUNT: Final = 1 << 40
"""Largest noisy count, so that a float holds it to a 2^-12th and every sum comes out whole."""


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """A geography: level 0 has one node, and `parents[l]` gives each node of level l+1 its parent in level l.

    Raises:
        InputError: a parent that is not in the level above, or a node above the last level without children.
    """

    parents: tuple["Ints", ...]

    def __post_init__(self) -> None:
        """Check that it is a tree."""
        import numpy as np

        size = 1
        for parents in self.parents:
            shaped = parents.ndim == 1 and parents.dtype.kind == "i" and len(parents) > 0
            if not shaped or parents.min() < 0 or parents.max() >= size or len(np.unique(parents)) != size:
                raise InputError(
                    "a level of the geography has a node without parent, or one above it without children",
                    code="bad-tree",
                    hint="list every street under its district, and leave out districts that have none",
                )
            size = len(parents)

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many nodes each level has."""
        return (1, *(len(parents) for parents in self.parents))


@dataclass(frozen=True, slots=True, eq=False)
class Estimate:
    """A consistent table, for each level one array of each.

    Attributes:
        counts: whole numbers, none below zero; children add up to their parent.
        values: the least-squares estimate they were rounded from.
        variances: of `values`.
        own: variance of what is known of a node without what is above and beside it: its own noisy count and
            those below it.
    """

    counts: tuple["Ints", ...]
    values: tuple["Floats", ...]
    variances: tuple["Floats", ...]
    own: tuple["Floats", ...]

    def half_widths(self, confidence: Fraction, *, heavy: bool = False) -> tuple["Ints", ...]:
        """Return w for each node: its true count is within ±w of `counts` with that confidence.

        With that confidence of each by itself, not of all together.

        Args:
            confidence: above 0 and below 1.
            heavy: the noise is discrete Laplace, whose tails reach further than a Gaussian's.

        Raises:
            InputError: a confidence that is none.
        """
        import numpy as np

        wide = deviations(confidence, heavy=heavy)
        # Up to the next whole number: this takes in what rounding moved, and a true count is whole.
        return tuple(np.ceil(wide * np.sqrt(each)).astype(np.int64) for each in self.variances)


def deviations(confidence: Fraction, *, heavy: bool = False) -> float:
    """Return how many standard deviations an estimate is off at most, with that confidence. SPEC.md, "Tree".

    Args:
        confidence: above 0 and below 1.
        heavy: for sums of discrete Laplace noise, whose tail is at most that of one Laplace variable.

    Raises:
        InputError: a confidence that is none.
    """
    if not 0 < confidence < 1:
        raise InputError(
            f"a confidence of {confidence} is none",
            code="bad-confidence",
            hint="0.95 is usual: 95 of 100 such intervals hold the true count",
        )
    gaussian = NormalDist().inv_cdf(float((1 + confidence) / 2))
    return max(gaussian, -log(1 - confidence) / sqrt(2)) if heavy else gaussian


def totals(tree: Tree, leaves: "Ints") -> tuple["Ints", ...]:
    """Return the sums at every level of counts at the last one."""
    import numpy as np

    levels = [np.asarray(leaves, np.int64)]
    for parents, size in zip(reversed(tree.parents), reversed(tree.sizes[:-1]), strict=True):
        levels.insert(0, _added(levels[0], parents, size))
    return tuple(levels)


def estimate(tree: Tree, noisy: Sequence["Ints | Floats"], variances: Sequence[float | Fraction]) -> Estimate:
    """Return the consistent table for noisy counts.

    (1) Up: z_v = (y_v/σ² + S/V_S)/(1/σ² + 1/V_S), S = Σ z_child, V_S = Σ var. (2) Down: h_c = z_c + (h_p - S)
    var_c/V_S. (3) From the top, among the children of each node: the nearest point with no part below zero
    and the parent's whole number as sum (a projection on a simplex), then largest remainders.

    Args:
        tree: the geography.
        noisy: counts with independent noise, one array per level; fractions where noise was drawn in parts.
        variances: of that noise, one per level, above zero.

    Raises:
        InputError: levels that are not the tree's, a variance that is none, or a count beyond `MAX_COUNT`.
    """
    import numpy as np

    _check(tree, noisy, variances)
    # (1)
    up = [np.asarray(noisy[-1], np.float64)]
    own = [np.full(len(noisy[-1]), float(variances[-1]))]
    below: list[tuple[Floats, Floats]] = []
    for level in reversed(range(len(tree.parents))):
        parents, size, variance = tree.parents[level], tree.sizes[level], float(variances[level])
        total, spread = _summed(up[0], parents, size), _summed(own[0], parents, size)
        below.insert(0, (total, spread))
        precision = 1 / variance + 1 / spread
        up.insert(0, (noisy[level] / variance + total / spread) / precision)
        own.insert(0, 1 / precision)
    # (2)
    down, final = [up[0]], [own[0]]
    for level, parents in enumerate(tree.parents):
        total, spread = below[level]
        share = own[level + 1] / spread[parents]
        down.append(up[level + 1] + (down[level] - total)[parents] * share)
        # What the parent's estimate still does not know is spread over the children in the same shares.
        final.append(own[level + 1] * (1 - share) + share**2 * final[level][parents])
    # (3)
    counts = [np.maximum(np.rint(down[0]), 0).astype(np.int64)]
    for level, parents in enumerate(tree.parents):
        counts.append(_whole(down[level + 1], parents, counts[level]))
    return Estimate(tuple(counts), tuple(down), tuple(final), tuple(own))


def _check(tree: Tree, noisy: Sequence["Ints | Floats"], variances: Sequence[float | Fraction]) -> None:
    import numpy as np

    if tuple(map(np.shape, noisy)) != tuple((size,) for size in tree.sizes) or len(variances) != len(noisy):
        raise InputError(
            f"noisy levels of {tuple(map(len, noisy))} counts and {len(variances)} variances, expected "
            f"levels of {tree.sizes}",
            code="bad-tree",
        )
    if not all(0 < variance < inf for variance in variances):
        raise InputError("a level without noise has no variance to weigh it with", code="bad-noise")
    if not all(np.abs(level.astype(np.float64)).max() <= MAX_COUNT for level in noisy):
        raise InputError(
            f"a noisy count is not a number within ±{MAX_COUNT}",
            code="count-too-large",
            hint="count persons, or amounts in a larger unit",
        )


def _whole(values: "Floats", parents: "Ints", sums: "Ints") -> "Ints":
    """Return integers, none negative, that add up to `sums` by parent and lie nearest to `values`."""
    import numpy as np

    families = np.bincount(parents, minlength=len(sums))
    starts = np.cumsum(families) - families
    # Around their mean, so that a running sum over all families stays small and loses no digits.
    values = values - (_summed(values, parents, len(sums)) / families)[parents]
    order = np.lexsort((-values, parents))
    family, largest_first = parents[order], values[order]
    rank = np.arange(len(order)) - starts[family]
    running = np.cumsum(largest_first)
    before = running[starts] - largest_first[starts]
    # Duchi et al. 2008: the projection cuts the same height off the largest k parts and leaves no other.
    height = (running - before[family] - sums[family]) / (rank + 1)
    kept = np.maximum.reduceat(np.where(largest_first > height, rank, 0), starts)
    parts = np.maximum(values - height[starts + kept][parents], 0)
    whole: Ints = np.floor(parts).astype(np.int64)
    missing = sums - _added(whole, parents, len(sums))
    # Largest remainders; of equal ones the first in the list, so that everybody rounds alike.
    order = np.lexsort((np.arange(len(parts)), whole - parts, parents))
    place = np.empty_like(order)
    place[order] = np.arange(len(order)) - starts[parents[order]]
    whole[place < missing[parents]] += 1
    return whole


def _summed(values: "Floats", parents: "Ints", size: int) -> "Floats":
    import numpy as np

    summed = np.zeros(size)
    np.add.at(summed, parents, values)
    return summed


def _added(values: "Ints", parents: "Ints", size: int) -> "Ints":
    """Return the sums by parent of integers, exact."""
    import numpy as np

    added = np.zeros(size, np.int64)
    np.add.at(added, parents, values)
    return added
