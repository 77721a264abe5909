"""A release as vectors of whole numbers: how much one person changes each, what noise it gets, what it costs.

Everything follows from the params, so every node and the analyst reckon the same. SPEC.md of `protocols/dp`.
"""

from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from math import ceil
from typing import TYPE_CHECKING, Final

from protocols.dp import quantile
from protocols.dp.cost import UNIT, Cost
from protocols.dp.mechanism import Noise, Vector, calibrate
from protocols.dp.tree import MAX_COUNT, Tree, totals
from protocols.dp.unknown_keys import threshold
from protocols.errors import InputError
from protocols.party import Rand
from protocols.releases.params import Params
from protocols.sums.plan import MAX_TOTAL
from protocols.tables.layout import MAX_ROWS
from protocols.tables.released import PERSONS, ROWS, check_size, mean_of, sum_of
from protocols.tables.tally import Tally

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]

COUNT: Final = "count"
SUM: Final = "sum"

GROUP_SHARE: Final = Fraction(1, 10)
"""Part of a sum's budget that counts its rows: without it nobody could tell which cells are too small."""


@dataclass(frozen=True, slots=True, eq=False)
class Geography:
    """The levels of a tree release: what each node is called, and who is above whom."""

    tree: Tree
    names: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What a release adds up, and the noise of each vector.

    Attributes:
        params: of the job.
        vectors: with the sensitivities of one person, in all departments together.
        noises: of each vector.
        cost: what the release costs every dataset.
        threshold: noisy count from which on the budget allows an unknown key to be named; 0 where there are
            none. Unknown keys have one contributor, so the scale of their noise is 1.
    """

    params: Params
    vectors: tuple[Vector, ...]
    noises: tuple[Noise, ...]
    cost: Cost
    threshold: int = 0

    @property
    def words(self) -> int:
        """Length of all vectors together."""
        return sum(vector.size for vector in self.vectors)

    @property
    def bound(self) -> int:
        """No total of the noisy, scaled vectors is beyond it; each source's part is at most its share."""
        return self.params.sources * max(
            MAX_ROWS * (self._most(vector) * noise.scale) + noise.reach
            for vector, noise in zip(self.vectors, self.noises, strict=True)
        )

    def _most(self, vector: Vector) -> int:
        """Return the most that one row changes a vector."""
        return vector.l1 // self.params.most_rows

    def noisy(self, tally: Tally, rand: Rand) -> "Ints":
        """Return one department's vectors in one, each times its scale and with its share of noise.

        Args:
            tally: of its rows.
            rand: see `Noise.draw`. Each call draws fresh noise.
        """
        import numpy as np

        parts = counted(self.params, tally)
        noises = (replace(noise, size=len(part)) for part, noise in zip(parts, self.noises, strict=True))
        shares = [part * noise.scale + noise.draw(rand) for part, noise in zip(parts, noises, strict=True)]
        return np.concatenate(shares, dtype=np.int64)

    def split(self, words: "Ints") -> tuple["Ints", ...]:
        """Return the vectors again that `noisy` put into one."""
        import numpy as np

        ends = np.cumsum([vector.size for vector in self.vectors])
        return tuple(np.split(words, ends[:-1]))

    @property
    def heavy(self) -> bool:
        """Whether its noise is discrete Laplace, whose tails reach further than a Gaussian's."""
        return self.noises[0].kind != "gaussian"


@lru_cache(maxsize=32)
def plan(params: Params) -> Plan:
    """Return what these params add up, with noise of all contributors that hides one person.

    (1) A table that can be made. (2) Noise that can be drawn, and a threshold that can be found. (3) No
    total, and nothing reckoned with one, leaves its range, whatever the data are: once they have left, it
    would be too late.

    Raises:
        InputError: no such noise can be drawn, or it would be so large that nothing is left to see; or the
            table or its totals would be too large.
    """
    # (1)
    # Quantiles have a row each, and a spec has no room for more areas of a tree than a table has rows.
    if params.statistic not in ("quantile", "tree"):
        check_size(params.layout.axes, figures_of_a_cell(params))
    # (2)
    found = vectors(params)
    noises, cost = calibrate(found, params.budget, honest=params.honest, contributors=params.sources)
    least = 0
    if params.keys:
        least = threshold(noises[0], width=1, keys=params.most_rows, delta=params.delta)
    made = Plan(params, found, noises, cost + Cost(delta=ceil(params.delta * UNIT)), least)
    # (3)
    # A mean adds up amounts before it takes the middle off them, each of which may be that far from zero.
    apart = [2 * MAX_ROWS * measure.most for measure in params.layout.measures if params.statistic == "mean"]
    most = max([made.bound, *apart])
    if most > MAX_TOTAL:
        raise InputError(
            f"a total of up to {most} does not fit into 63 bits",
            code="sum-too-large",
            hint="declare closer bounds for the measure, or fewer decimals",
        )
    if params.statistic in ("tree", "quantile"):
        off = max(noise.reach // noise.scale + 1 for noise in noises)
        if params.sources * MAX_ROWS + off > MAX_COUNT:
            raise InputError(
                f"the noise of one count could be {off}, beyond what a {params.statistic} is reckoned with",
                code="noise-too-large",
                hint="spend more of the budget, or count fewer rows of each person",
            )
    return made


def figures_of_a_cell(params: Params) -> tuple[str, ...]:
    """Return what each figure of a cell is called in the column `measure`, for statistics of cells."""
    if params.statistic in ("sum", "mean"):
        (measure,) = params.layout.measures
        called = sum_of if params.statistic == "sum" else mean_of
        return called(measure.slot), count_of(measure.slot)
    return (counted_as(params),)


def counted_as(params: Params) -> str:
    """Return what a count is called in the column `measure`: with one row of each, rows are persons."""
    return PERSONS if params.layout.unit_rows == 1 else ROWS


def count_of(slot: str) -> str:
    """Return what the number of rows with an amount is called in the column `measure`."""
    return f"count({slot})"


def vectors(params: Params) -> tuple[Vector, ...]:
    """Return every vector with its sensitivities: what one person more or less changes it by, at most.

    One person has at most m·D rows that count. A row adds 1 to one cell of a count, and one amount to one
    cell of a sum. All rows may be in one cell, so ℓ2 is no smaller than ℓ1.
    """
    rows, cells = params.most_rows, params.layout.cells
    match params.statistic:
        case "count" | "histogram":
            return (_vector(COUNT, cells, rows, Fraction(1)),)
        case "sum":
            (measure,) = params.layout.measures
            return (
                _vector(SUM, cells, rows * measure.most, 1 - GROUP_SHARE),
                _vector(COUNT, cells, rows, GROUP_SHARE),
            )
        case "mean":
            return (
                _vector(SUM, cells, rows * mean_reach(params), Fraction(1, 2)),
                _vector(COUNT, cells, rows, Fraction(1, 2)),
            )
        case "tree":
            return _levels(geography(params).tree, rows)
        case "quantile":
            return _levels(quantile.levels(cells), rows)
        case "keys":
            # How many there are is not known before: size 1 stands for each of them. One person changes the
            # count of at most m keys, each by 1.
            return (Vector(COUNT, 1, rows, rows),)


def _vector(name: str, size: int, most: int, weight: Fraction) -> Vector:
    return Vector(name, size, most, most**2, weight)


def _levels(tree: Tree, rows: int) -> tuple[Vector, ...]:
    sizes = tree.sizes
    return tuple(
        _vector(f"level {level}", size, rows, Fraction(1, len(sizes))) for level, size in enumerate(sizes)
    )


def middle(params: Params) -> int:
    """Return the amount that a mean is centred on, halfway between the bounds or just below."""
    (measure,) = params.layout.measures
    return (measure.low + measure.high) // 2


def mean_reach(params: Params) -> int:
    """Return how far an amount can be from that middle: half the width of the bounds, rounded up."""
    (measure,) = params.layout.measures
    return max(measure.high - middle(params), middle(params) - measure.low)


def counted(params: Params, tally: Tally) -> tuple["Ints", ...]:
    """Return the vectors of one department's rows, in the order of `vectors`, without scale and noise."""
    match params.statistic:
        case "count" | "histogram":
            return (tally.counted(),)
        case "sum":
            (measure,) = params.layout.measures
            return tally.total(measure.slot), tally.present(measure.slot)
        case "mean":
            (measure,) = params.layout.measures
            return tally.centred(measure.slot, middle(params)), tally.present(measure.slot)
        case "tree":
            return totals(geography(params).tree, tally.counted())
        case "quantile":
            return totals(quantile.levels(params.layout.cells), tally.counted())
        case "keys":
            return (tally.persons(),)


@lru_cache(maxsize=8)
def geography(params: Params) -> Geography:
    """Return the levels that the values' prefixes make: the whole, each length of `levels`, the values."""
    import numpy as np

    (axis,) = params.layout.axes
    names: list[tuple[str, ...]] = [("",)]
    parents = []
    for length in (*params.levels, None):
        here = tuple(dict.fromkeys(value[:length] for value in axis.values))
        above = {name: place for place, name in enumerate(names[-1])}
        parents.append(np.array([above[name[: len(names[-1][0])]] for name in here], np.int64))
        names.append(here)
    return Geography(Tree(tuple(parents)), tuple(names))
