"""Counts of a geography, noisy at every level and made consistent: city, districts, streets, communities. SPEC.md, "Tree".

Each level is released with noise of its own. What follows uses only these noisy counts, so it costs nothing
more: a weighted average up and down, which is the least-squares estimate (Hay et al. 2010, arXiv:0904.0942;
here with variances that may differ between levels), then whole numbers, none below zero, that add up exactly.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from protocols.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]
    Floats = npt.NDArray[np.float64]


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
            known = len(parents) and parents.min() >= 0 and parents.max() < size
            if not known or len(np.unique(parents)) != size:
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
    """A consistent table: for each level its counts, and the variance of each before rounding."""

    counts: tuple["Ints", ...]
    variances: tuple["Floats", ...]


def totals(tree: Tree, leaves: "Ints") -> tuple["Ints", ...]:
    """Return the sums at every level of counts at the last one."""
    import numpy as np

    levels = [np.asarray(leaves, np.int64)]
    for parents, size in zip(reversed(tree.parents), reversed(tree.sizes[:-1]), strict=True):
        levels.insert(0, _summed(levels[0], parents, size))
    return tuple(levels)


def estimate(tree: Tree, noisy: Sequence["Ints"], variances: Sequence[float | Fraction]) -> Estimate:
    """Return the consistent table for noisy counts.

    (1) Up: z_v = (y_v/σ² + S/V_S)/(1/σ² + 1/V_S), S = Σ z_child, V_S = Σ var. (2) Down: h_c = z_c + (h_p - S)
    var_c/V_S. (3) From the top, among the children of each node: the nearest point with no part below zero
    and the parent's whole number as sum (a projection on a simplex), then largest remainders.

    Args:
        tree: the geography.
        noisy: counts with independent noise, one array per level.
        variances: of that noise, one per level, above zero.

    Raises:
        InputError: levels or sizes that are not the tree's, or a variance of zero.
    """
    import numpy as np

    if tuple(map(len, noisy)) != tree.sizes or len(variances) != len(tree.sizes):
        raise InputError("the noisy levels are not those of the geography", code="bad-tree")
    if min(variances) <= 0:
        raise InputError("a level without noise has no variance to weigh it with", code="bad-noise")
    up = [np.asarray(noisy[-1], np.float64)]
    var = [np.full(len(noisy[-1]), float(variances[-1]))]
    # (1)
    below: list[tuple[Floats, Floats]] = []
    for level in range(len(noisy) - 2, -1, -1):
        parents, size, own = tree.parents[level], tree.sizes[level], float(variances[level])
        total, spread = _summed(up[0], parents, size), _summed(var[0], parents, size)
        below.insert(0, (total, spread))
        precision = 1 / own + 1 / spread
        up.insert(0, (noisy[level] / own + total / spread) / precision)
        var.insert(0, 1 / precision)
    # (2)
    down, final = [up[0]], [var[0]]
    for level, parents in enumerate(tree.parents):
        total, spread = below[level]
        share = var[level + 1] / spread[parents]
        down.append(up[level + 1] + (down[level] - total)[parents] * share)
        # What the parent's estimate still does not know is spread over the children in the same shares.
        final.append(var[level + 1] * (1 - share) + share**2 * final[level][parents])
    # (3)
    counts = [np.maximum(np.rint(down[0]), 0).astype(np.int64)]
    for level, parents in enumerate(tree.parents):
        counts.append(_whole(down[level + 1], parents, counts[level]))
    return Estimate(tuple(counts), tuple(final))


def _whole(values: "Floats", parents: "Ints", sums: "Ints") -> "Ints":
    """Return integers, none negative, that add up to `sums` by parent and lie nearest to `values`."""
    import numpy as np

    order = np.lexsort((-values, parents))
    group, sorted_ = parents[order], values[order]
    starts = np.searchsorted(group, np.arange(len(sums)))
    rank = np.arange(len(group)) - starts[group]
    running = np.cumsum(sorted_)
    before = running[starts] - sorted_[starts]
    # Duchi et al. 2008: the projection cuts the same height θ off the largest k parts and leaves no other.
    theta = (running - before[group] - sums[group]) / (rank + 1)
    kept = np.maximum.reduceat(np.where(sorted_ > theta, rank, 0), starts)
    height = theta[starts + kept]
    parts = np.empty_like(values)
    parts[order] = np.maximum(sorted_ - height[group], 0)
    whole = np.floor(parts).astype(np.int64)
    missing = sums - _summed(whole, parents, len(sums))
    # Largest remainders; of equal ones the first in the list, so that everybody rounds alike.
    order = np.lexsort((np.arange(len(parts)), whole - parts, parents))
    rank = np.empty_like(order)
    rank[order] = (
        np.arange(len(order)) - np.searchsorted(parents[order], np.arange(len(sums)))[parents[order]]
    )
    whole[rank < missing[parents]] += 1
    return whole


def _summed(values: "npt.NDArray[np.float64 | np.int64]", parents: "Ints", size: int) -> "npt.NDArray[np.float64 | np.int64]":  # fmt: skip
    import numpy as np

    summed = np.zeros(size, values.dtype)
    np.add.at(summed, parents, values)
    return summed
