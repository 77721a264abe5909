"""Means, variances, correlations and regressions of joined persons, from n, Σq and Σqqᵀ. SPEC.md, section 5.

Nothing here sees a row. Whole numbers q stand for amounts; what is reckoned from their sums without noise is
reckoned in rational numbers and rounded once, to the nearest double. Sums with noise are private already, so
what is made of them costs nothing more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from itertools import combinations
from math import isqrt, lcm, log, sqrt
from statistics import NormalDist
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from protocols.dp.cost import Cost
from protocols.dp.mechanism import CONFIDENCE, Budget, Noise, Vector, calibrate
from protocols.dp.tree import deviations
from protocols.errors import InputError
from protocols.jobs.job_type import Content
from protocols.joined.lists import Amount
from protocols.party import Rand
from protocols.statistics.suppress import TOP_SHARE
from protocols.tables.layout import decimal_text
from protocols.tables.released import PERSONS, Figure, as_texts, content

TABLE: Final = "moments"

FEWEST: Final = 100
"""Fewest joined persons whose moments are released."""

MAX_COLUMNS: Final = 16
MAX_REACH: Final = 1 << 17
"""No |q| is beyond it where there is noise, or where lists are as long as they may be."""
FINEST: Final = 1 << 26
"""No |q| is beyond it, however short the lists are."""
MAX_SUM: Final = 1 << 60
"""No sum is so large: beyond, a word would stand for another number."""

PRECISION: Final = Fraction(1, 10**5)
"""What rounding amounts to q may change a coefficient by, as a part of it; beyond, none is shown."""

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Matrix = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of amounts x, in units of 10^-decimals, as whole numbers q: 2x ≈ twice_centre + twice_step·q.

    Attributes:
        slot: the job's word for it.
        low, high: least and greatest amount, public.
        decimals: digits after the point.
        most: a power of two, no |q| is beyond it.
    """

    slot: str
    low: int
    high: int
    decimals: int = 0
    most: int = MAX_REACH

    @classmethod
    def of(cls, amount: Amount, most: int = MAX_REACH) -> Self:
        """Return the column of an amount."""
        return cls(amount.slot, amount.low, amount.high, amount.decimals, most)

    @property
    def width(self) -> int:
        """From the least amount to the greatest; 1 or more."""
        return self.high - self.low

    @property
    def twice_step(self) -> int:
        """A power of two: the least for which no |q| is beyond `most`.

        With an odd width that is small, the centre lies between two amounts and a step is half a unit: so the
        two values of a flag are -1 and 1, and noise on their sums is no more than it has to be.
        """
        if self.width % 2 and self.width <= self.most:
            return 1
        half = (self.width + 1) // 2
        return 2 << ((half - 1) // self.most).bit_length()

    @property
    def twice_centre(self) -> int:
        """Twice the amount whose q is 0: the middle of the bounds, or half a unit below it."""
        both = self.low + self.high
        return both if self.twice_step == 1 else both // 2 * 2

    @property
    def exact(self) -> bool:
        """Whether every amount is some q."""
        return self.twice_step <= 2

    @property
    def ends(self) -> tuple[int, int]:
        """Return q of the least and of the greatest amount."""
        low, high = self.quantised(np.array([self.low, self.high])).tolist()
        return low, high

    @property
    def reach(self) -> int:
        """Largest |q|: what one person adds to the sum, at most."""
        return max(map(abs, self.ends))

    @property
    def step(self) -> Fraction:
        """What one more in q stands for, in the amounts' own unit."""
        return Fraction(self.twice_step, 2 * 10**self.decimals)

    @property
    def centre(self) -> Fraction:
        """The amount whose q is 0, in the amounts' own unit."""
        return Fraction(self.twice_centre, 2 * 10**self.decimals)

    def quantised(self, amounts: Ints) -> Ints:
        """Return q of amounts within the bounds: (2x - twice_centre) / twice_step, halves upwards."""
        step = self.twice_step
        found: Ints = (2 * amounts - self.twice_centre + step // 2) >> (step.bit_length() - 1)
        return found


def finest(persons: int) -> int:
    """Return the largest |q| for which no product of so many persons' q reaches `MAX_SUM`, a power of two."""
    return min(1 << (isqrt((MAX_SUM - 1) // max(persons, 1)).bit_length() - 1), FINEST)


@dataclass(frozen=True, slots=True)
class Moments:
    """What is known of the joined persons, exact or with noise.

    Attributes:
        n: how many.
        sums: Σq of each column.
        products: Σqqᵀ, symmetric.
    """

    n: int
    sums: tuple[int, ...]
    products: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, n: int, sums: Ints, products: Ints, order: Sequence[int]) -> Self:
        """Return moments of columns in another order: `order[i]` is the word of column i."""
        at = np.array(order)
        return cls(n, tuple(sums[at].tolist()), tuple(map(tuple, products[np.ix_(at, at)].tolist())))

    def only(self, kept: Sequence[int]) -> "Moments":
        """Return the moments of some of the columns."""
        return Moments(
            self.n,
            tuple(self.sums[i] for i in kept),
            tuple(tuple(self.products[i][j] for j in kept) for i in kept),
        )

    def spread(self) -> list[list[int]]:
        """Return n·Σqqᵀ - Σq(Σq)ᵀ: n² times the covariance over all joined persons."""
        return [
            [self.n * product - mine * theirs for product, theirs in zip(row, self.sums, strict=True)]
            for row, mine in zip(self.products, self.sums, strict=True)
        ]

    def possible(self, columns: Sequence[Column]) -> bool:
        """Return whether persons within bounds could have them: sums by the bounds, products by the sums."""
        spread = self.spread()
        return all(
            self.n * low <= total <= self.n * high
            for total, (low, high) in zip(self.sums, (column.ends for column in columns), strict=True)
        ) and all(
            spread[i][i] >= 0 and spread[i][j] ** 2 <= spread[i][i] * spread[j][j]
            for i, j in pairs(len(self.sums))
        )

    def facts(self) -> dict[str, int | str]:
        """Return the numbers in full, to stand beside the table; products row by row, each from q_i² on."""
        upper = (self.products[i][j] for i, j in pairs(len(self.sums)))
        return {
            "n": self.n,
            "sums": " ".join(map(str, self.sums)),
            "products": " ".join(map(str, upper)),
        }

    @classmethod
    def read(cls, facts: Mapping[str, Any], columns: int) -> Self:
        """Return the moments that `facts` says of so many columns.

        Raises:
            InputError: `bad-table`: it says none.
        """
        try:
            n, sums, upper = int(facts["n"]), _whole(facts["sums"]), _whole(facts["products"])
            known = dict(zip([(at, -1) for at in range(columns)] + pairs(columns), sums + upper, strict=True))
        except (KeyError, TypeError, ValueError):
            raise InputError(
                "the facts beside the table have no moments, or of another number of columns",
                code="bad-table",
                hint="check a table together with its facts",
            ) from None
        full = ([known[min(i, j), max(i, j)] for j in range(columns)] for i in range(columns))
        return cls(n, tuple(known[at, -1] for at in range(columns)), tuple(map(tuple, full)))


def _whole(text: Any) -> list[int]:
    return [int(word) for word in str(text).split()]


def pairs(columns: int) -> list[tuple[int, int]]:
    """Return the places of the upper triangle, row by row, its diagonal among them."""
    return [(i, j) for i in range(columns) for j in range(i, columns)]


# -- noise -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Noises:
    """The noise on moments.

    Attributes:
        budget: what all of it costs.
        count: on n, of the matcher alone.
        sums: on each Σq, of matcher and helper, who each add all of it.
        products: on the upper triangle of Σqqᵀ, likewise.
        cost: of the whole release, for every list.
    """

    budget: Budget
    count: Noise
    sums: tuple[Noise, ...]
    products: tuple[Noise, ...]
    cost: Cost

    def draw(self, rand: Rand) -> tuple[Ints, Ints]:
        """Return what one of the two adds: 1 x columns, and columns x columns, symmetric."""
        size = len(self.sums)
        sums = np.array([[int(noise.draw(rand)[0]) for noise in self.sums]], np.int64)
        products = np.zeros((size, size), np.int64)
        for (i, j), noise in zip(pairs(size), self.products, strict=True):
            products[i, j] = products[j, i] = int(noise.draw(rand)[0])
        return sums, products

    @property
    def heavy(self) -> bool:
        """Whether it is discrete Laplace, whose tails reach further than a Gaussian's."""
        return self.count.kind != "gaussian"


@lru_cache(maxsize=32)
def noises(columns: tuple[Column, ...], budget: Budget) -> Noises:
    """Return the noise that hides one joined person. SPEC.md, "What one person changes".

    Raises:
        InputError: no such noise can be drawn.
    """
    reach = [column.reach for column in columns]
    parts = (
        [("count", 1)],
        [(f"sum {column.slot}", column.reach) for column in columns],
        [(f"product {i} {j}", reach[i] * reach[j]) for i, j in pairs(len(columns))],
    )
    vectors = [
        Vector(name, 1, most, most**2, _weight(len(part), budget) / len(part))
        for part in parts
        for name, most in part
    ]
    found, cost = calibrate(vectors, budget, honest=1, contributors=2)
    ends = 1 + len(columns)
    return Noises(budget, replace(found[0], contributors=1), found[1:ends], found[ends:], cost)


def _weight(size: int, budget: Budget) -> Fraction:
    """Return the share of a part with so many numbers, against 1 for one number: least sum of variances."""
    if budget.notion == "zcdp":
        return Fraction(isqrt(size * 10**6), 1000)
    return Fraction(round(size ** (2 / 3) * 1000), 1000)


def reaches(columns: Sequence[Column], noise: Noises | None, persons: int) -> int:
    """Return what no |sum| or |product| of so many persons is beyond, noise of both included."""
    most = [column.reach for column in columns]
    sums = [persons * each for each in most]
    products = [persons * most[i] * most[j] for i, j in pairs(len(columns))]
    if noise is not None:
        sums = [one + two.reach for one, two in zip(sums, noise.sums, strict=True)]
        products = [one + two.reach for one, two in zip(products, noise.products, strict=True)]
    return max(sums + products)


# -- what may be shown without noise -----------------------------------------------------------------------


def shown(columns: Sequence[Column], moments: Moments, least: int) -> tuple[int, ...]:
    """Return the columns whose exact moments may be released together. SPEC.md, "Without noise".

    One after the other, a column is left out if with those before it (1) fewer than `least` persons could
    have all that is above its lower bound, or below its upper one; (2) one person too large a part of what is
    at a corner of two columns' bounds, or fewer than `least` be there, of two flags; (3) some combination of
    columns could be the same for all but a few, fewer than `least` or `FEWEST_APART`. Of one that follows
    from those before it for every joined person, (3) and so (1) hold already.

    Args:
        columns: with their public bounds.
        moments: of all of them, exact.
        least: the smallest group.
    """
    spread = moments.spread()
    kept: list[int] = []
    free: list[int] = []
    for at in range(len(columns)):
        if spread[at][at] == 0:
            # The same for all: beside it nothing has another part of a sum than by itself.
            kept.append(at)
            continue
        within = [*free, at]
        follows = _adjugate([[spread[i][j] for j in within] for i in within]) is None
        varying = [other for other in kept if spread[other][other]]
        if _corners(columns, moments, at, varying, least) and (
            follows
            or (
                _ends(columns, moments, at, least)
                and _leverage(columns, moments, within) * max(FEWEST_APART, least) <= _ONE
            )
        ):
            free += [] if follows else [at]
            kept.append(at)
    return tuple(kept)


FEWEST_APART: Final = 10
"""Persons, at least so many, for whom a combination of shown columns that is not the same for all differs
from any one value; so that nobody has more than a tenth of the sum of one that is not below zero. More where
the smallest group is larger."""

_ONE: Final = 1 + 1e-6
"""More than 1 by what floats can be off: persons are whole, and k(1 - 1e-6) of them, k below a million, are
k."""


def _ends(columns: Sequence[Column], moments: Moments, at: int, least: int) -> bool:
    """Return whether what is above the lower bound is certainly that of `least` persons, and below the upper.

    With f how far an amount is from the bound, (Σf)²/Σf² is at most the number of persons with f above 0
    (Cauchy and Schwarz); of a flag it is that number.
    """
    n, total, square = moments.n, moments.sums[at], moments.products[at][at]
    return all(
        (total - n * end) ** 2 >= least * (square - 2 * end * total + n * end * end)
        for end in columns[at].ends
    )


@dataclass(frozen=True, slots=True)
class _Part:
    """A combination of columns that is from 0 to 1 for every joined person: (Σ weights·q + constant)/whole.

    Attributes:
        of: the columns, none twice.
        weights: of each of them.
        constant: what is added.
        whole: what it is divided by.
        flag: whether it is 0 or 1.
    """

    of: tuple[int, ...]
    weights: tuple[int, ...]
    constant: int
    whole: int
    flag: bool

    def total(self, other: "_Part", moments: Moments) -> Fraction:
        """Return the sum of the products of both."""
        sums, products = moments.sums, moments.products
        both = moments.n * self.constant * other.constant
        both += self.constant * sum(by * sums[j] for j, by in zip(other.of, other.weights, strict=True))
        both += other.constant * sum(by * sums[i] for i, by in zip(self.of, self.weights, strict=True))
        both += sum(
            mine * theirs * products[i][j]
            for i, mine in zip(self.of, self.weights, strict=True)
            for j, theirs in zip(other.of, other.weights, strict=True)
        )
        return Fraction(both, self.whole * other.whole)


def _distances(columns: Sequence[Column], at: int) -> tuple[_Part, _Part]:
    """Return how far, from 0 to 1, amounts are from the lower and from the upper bound."""
    (low, high), flag = columns[at].ends, columns[at].width == 1
    return (
        _Part((at,), (1,), -low, high - low, flag),
        _Part((at,), (-1,), high, high - low, flag),
    )


def _between(columns: Sequence[Column], moments: Moments, one: int, other: int) -> list[_Part]:
    """Return the flag that two flags make of which nobody has some pair of values: who has neither.

    Where nobody has f = g = 1, f and g being flags or what is left of them to 1, the combination 1 - f - g is
    a flag. If two pairs are missing, one flag follows from the other and there is nothing new.
    """
    sides = [(f, g) for f in _distances(columns, one) for g in _distances(columns, other)]
    if not all(f.flag and g.flag for f, g in sides):
        return []
    missing = [(f, g) for f, g in sides if f.total(g, moments) == 0]
    if len(missing) != 1:
        return []
    ((f, g),) = missing
    # Flags have one divisor, their two steps.
    return [
        _Part(
            (one, other),
            (-f.weights[0], -g.weights[0]),
            f.whole - f.constant - g.constant,
            f.whole,
            flag=True,
        )
    ]


def _corners(columns: Sequence[Column], moments: Moments, at: int, others: Sequence[int], least: int) -> bool:
    """Return whether at each corner of two columns' bounds there is nothing, or enough.

    With f and g how far, from 0 to 1, a person's two amounts are from the bounds opposite to the corner, Σfg
    is 0, or so much that one person, who has at most 1 of it, has no larger part than `TOP_SHARE`. Of two
    flags it is a number of persons: 0 or `least`. A flag that two columns make, of which some corner is
    empty, is taken for one of the columns, too.
    """
    mine = [*_distances(columns, at)]
    mine += [part for other in others for part in _between(columns, moments, at, other)]
    theirs = [part for other in others for part in _distances(columns, other)]
    theirs += [part for i, j in combinations(others, 2) for part in _between(columns, moments, i, j)]
    made = mine[2:]
    tried = [(f, g) for f in mine for g in theirs] + [*combinations(made, 2)]
    tried += [(f, g) for f in made for g in mine[:2]]
    return not any(
        0 < f.total(g, moments) < (Fraction(least) if f.flag and g.flag else 1 / TOP_SHARE) for f, g in tried
    )


def _leverage(columns: Sequence[Column], moments: Moments, within: Sequence[int]) -> float:
    """Return the leverage that no row has whose amounts are within bounds, in a regression on these columns.

    1/n + vᵀ(XᵀX)⁻¹v for the v furthest from the means, X centred: at a corner of the bounds, as it is convex.
    """
    n, spread = moments.n, moments.spread()
    ends = [columns[i].ends for i in within]
    widths = [high - low for low, high in ends]
    # Quotients of whole numbers, each rounded once.
    centred = np.array(
        [
            [spread[i][j] / (n * n * here * there) for j, there in zip(within, widths, strict=True)]
            for i, here in zip(within, widths, strict=True)
        ]
    )
    sides = [
        [(n * end - moments.sums[i]) / (n * width) for end in pair]
        for i, pair, width in zip(within, ends, widths, strict=True)
    ]
    corners = np.stack([each.ravel() for each in np.meshgrid(*sides, indexing="ij")])
    try:
        away = np.linalg.solve(np.linalg.cholesky(centred), corners)
    except np.linalg.LinAlgError:
        return float("inf")  # so near to singular that floats do not tell it from it
    return (1 + float((away**2).sum(axis=0).max())) / n


# -- the table ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Question:
    """What is made of the moments.

    Attributes:
        columns: in the order of the table.
        target: which of them the others are to explain; None: nothing is regressed.
        ridge: penalty λ: n·λ·(half width of the bounds · coefficient)² is added for each predictor.
        noise: on the moments; None: they are exact.
        least: the smallest group of persons.
    """

    columns: tuple[Column, ...]
    target: int | None = None
    ridge: Fraction = Fraction(0)
    noise: Noises | None = None
    least: int = 10


@dataclass(frozen=True, slots=True)
class _Number:
    """A figure and its interval."""

    value: float
    low: float
    high: float

    @classmethod
    def just(cls, value: Fraction | float) -> Self:
        return cls(float(value), float(value), float(value))


Key = tuple[str, str, str]  # measure, a, b
Numbers = dict[Key, _Number | None]


def released(question: Question, moments: Moments) -> Content:
    """Return the table of moments, as the matcher releases it.

    Args:
        question: what is asked.
        moments: of all columns in their order; with all noise where there is some.
    """
    if question.noise is not None:
        return table(question, moments, range(len(question.columns)))
    kept = shown(question.columns, moments, question.least)
    return table(question, moments.only(kept), kept)


def again(question: Question, facts: Mapping[str, Any]) -> Content:
    """Return the table that the facts beside a released one make: what an auditor compares it with.

    Floats of other processors may differ from it in the last digits where there is noise.

    Raises:
        InputError: `bad-table`: no such moments are there, they are of too few persons, or beyond what words
            hold; or exact ones of columns that must not be shown.
    """
    known = {column.slot: at for at, column in enumerate(question.columns)}
    slots = str(facts.get("columns", "")).split()
    if [slot for slot in known if slot in slots] != slots:
        raise InputError("the facts name other columns than the job", code="bad-table")
    kept = [known[slot] for slot in slots]
    if question.noise is None:
        # How fine q is follows from how long the lists were.
        most = facts.get("largest_q")
        if type(most) is not int or most not in [1 << bits for bits in range(FINEST.bit_length())]:
            raise InputError("the facts say no power of two as the largest q", code="bad-table")
        question = replace(question, columns=tuple(replace(each, most=most) for each in question.columns))
    moments = Moments.read(facts, len(kept))
    fewest = max(FEWEST, question.least)
    if moments.n < fewest:
        raise InputError(f"moments of {moments.n} persons, fewer than {fewest}", code="bad-table")
    if any(abs(each) >= MAX_SUM for each in (moments.n, *moments.sums, *sum(moments.products, ()))):
        raise InputError("moments beyond what any lists can have", code="bad-table")
    if question.noise is None:
        columns = [question.columns[at] for at in kept]
        if not moments.possible(columns):
            raise InputError("moments that no persons within the bounds have", code="bad-table")
        if shown(columns, moments, question.least) != tuple(range(len(kept))):
            raise InputError("exact moments of columns that must not be shown together", code="bad-table")
    return table(question, moments, kept)


def table(question: Question, moments: Moments, kept: Sequence[int]) -> Content:
    """Return the table of moments of those columns that may be shown; figures of others are withheld.

    A row is a figure of columns `a` and `b`: `persons`; `mean`, `variance`; `covariance`, `correlation`; and
    with a target b `intercept`, `coefficient`, `standard-error` (of the intercept where a is empty),
    `residual-variance`, `r-squared`. Its `value` is between `low` and `high`: SPEC.md, "Intervals".

    Args:
        question: what is asked.
        moments: of the columns that are kept alone.
        kept: their places.
    """
    columns = [question.columns[at] for at in kept]
    target = question.target if len(kept) == len(question.columns) else None
    if question.noise is None:
        numbers = _exact(columns, moments)
        state = "withheld"
        if target is not None:
            state = _fit(columns, moments, target, question.ridge, numbers)
    else:
        reckoned = _Noisy.of(columns, moments, question.noise)
        numbers, state = reckoned.numbers(), "shown"
        if target is not None:
            numbers |= reckoned.fit(target, float(question.ridge))
    places = places_of(question)
    figures = []
    for measure in dict.fromkeys(key[0] for key in places):
        keys = [key for key in places if key[0] == measure]
        found = [numbers.get(key) or _NONE for key in keys]
        value, low, high = (
            np.array([getattr(each, end) for each in found]) for end in ("value", "low", "high")
        )
        labels = {"a": as_texts([key[1] for key in keys]), "b": as_texts([key[2] for key in keys])}
        withheld = np.array([numbers.get(key) is None for key in keys])
        figures.append(Figure(measure, labels, value, withheld, low, high))
    facts = _facts(question, columns, moments)
    if question.target is not None:
        facts["coefficients"] = state
    return content(TABLE, figures, facts)


_NONE: Final = _Number.just(float("nan"))


def places_of(question: Question) -> list[Key]:
    """Return every row that the table has, in order."""
    slots = [column.slot for column in question.columns]
    found = [(PERSONS, "", "")]
    found += [(measure, slot, "") for measure in ("mean", "variance") for slot in slots]
    found += [
        (measure, one, other)
        for measure in ("covariance", "correlation")
        for one, other in combinations(slots, 2)
    ]
    if question.target is None:
        return found
    to = slots[question.target]
    predictors = [slot for slot in slots if slot != to]
    found += [("intercept", "", to), *(("coefficient", slot, to) for slot in predictors)]
    if question.noise is None:
        found += [("standard-error", slot, to) for slot in ("", *predictors)]
        found += [("residual-variance", "", to), ("r-squared", "", to)]
    return found


# -- without noise: in rational numbers --------------------------------------------------------------------


def _exact(columns: Sequence[Column], moments: Moments) -> Numbers:
    n, spread = moments.n, moments.spread()
    numbers: Numbers = {(PERSONS, "", ""): _Number.just(n)}
    for i, column in enumerate(columns):
        numbers["mean", column.slot, ""] = _Number.just(
            column.centre + column.step * Fraction(moments.sums[i], n)
        )
        numbers["variance", column.slot, ""] = _Number.just(
            column.step**2 * Fraction(spread[i][i], n * (n - 1))
        )
    for (i, one), (j, other) in combinations(enumerate(columns), 2):
        both = spread[i][j]
        numbers["covariance", one.slot, other.slot] = _Number.just(
            one.step * other.step * Fraction(both, n * (n - 1))
        )
        squares = spread[i][i] * spread[j][j]
        numbers["correlation", one.slot, other.slot] = (
            _Number.just(_root(Fraction(both * both, squares)) * (1 if both > 0 else -1)) if squares else None
        )
    return numbers


def _root(value: Fraction) -> float:
    """Return the square root of the nearest double: of 1 it is 1."""
    return sqrt(float(value))


def _fit(columns: Sequence[Column], moments: Moments, target: int, ridge: Fraction, numbers: Numbers) -> str:
    """Add coefficients, standard errors and t intervals of ordinary or ridge regression; return how it went.

    `shown`; `singular`, where predictors follow from each other; `imprecise`, where they nearly do and
    rounding amounts to q could change a coefficient by more than `PRECISION`.
    """
    n, spread = moments.n, moments.spread()
    on = [i for i in range(len(columns)) if i != target]
    size = len(on)
    within = [[spread[i][j] for j in on] for i in on]
    beside = [spread[i][target] for i in on]
    # In q, and times n: K + P, with P = n·nλ(half width)² on the diagonal; times `scale` in whole numbers.
    penalties = [n * n * ridge * Fraction(columns[i].width, columns[i].twice_step) ** 2 for i in on]
    scale = lcm(*(penalty.denominator for penalty in penalties))
    regular = [
        [scale * within[i][j] + (int(scale * penalties[i]) if i == j else 0) for j in range(size)]
        for i in range(size)
    ]
    found = _adjugate(regular)
    if found is None:
        return "singular"
    det, adjugate = found
    # (K + P)⁻¹ is scale·adjugate/det.
    if any(
        Fraction(n * n * scale * adjugate[at][at], 12 * det) > PRECISION
        for at, i in enumerate(on)
        if not columns[i].exact
    ):
        return "imprecise"
    raw = _times(adjugate, [[each] for each in beside])
    slopes = [Fraction(scale * each[0], det) for each in raw]
    product = _times(adjugate, within)
    sandwich = _times(product, adjugate)
    # Rests: n·Σ(y - ŷ)² = K_yy - 2b·K_xy + bᵀK_xx b.
    lost = _times(within, raw)
    rest = (
        spread[target][target]
        - Fraction(2 * scale * sum(x[0] * y for x, y in zip(raw, beside, strict=True)), det)
        + Fraction(scale * scale * sum(x[0] * y[0] for x, y in zip(raw, lost, strict=True)), det * det)
    )
    free = n - 1 - Fraction(scale * sum(product[i][i] for i in range(size)), det)
    to = columns[target]
    residual = rest / n / free  # in q²
    ratios = [to.step / columns[i].step for i in on]
    means = [columns[i].centre + columns[i].step * Fraction(moments.sums[i], n) for i in on]
    coefficients = [slope * ratio for slope, ratio in zip(slopes, ratios, strict=True)]
    across = residual * n * Fraction(scale * scale, det * det)
    variances = [across * sandwich[i][i] * ratios[i] ** 2 for i in range(size)]
    tilted = [mean * ratio for mean, ratio in zip(means, ratios, strict=True)]
    pulled = sum(tilted[i] * sandwich[i][j] * tilted[j] for i in range(size) for j in range(size))
    intercept = (
        to.centre
        + to.step * Fraction(moments.sums[target], n)
        - sum(slope * mean for slope, mean in zip(coefficients, means, strict=True))
    )
    about = t_quantile(float(free))
    named = [("intercept", "", intercept, residual * to.step**2 / n + across * pulled)]
    named += [
        ("coefficient", columns[i].slot, value, variance)
        for i, value, variance in zip(on, coefficients, variances, strict=True)
    ]
    for measure, slot, value, variance in named:
        error, middle = _root(variance), float(value)
        numbers[measure, slot, to.slot] = _Number(middle, middle - about * error, middle + about * error)
        numbers["standard-error", slot, to.slot] = _Number.just(error)
    numbers["residual-variance", "", to.slot] = _Number.just(residual * to.step**2)
    total = spread[target][target]
    numbers["r-squared", "", to.slot] = _Number.just(1 - rest / total) if total else None
    return "shown"


def _adjugate(matrix: Matrix) -> tuple[int, list[list[int]]] | None:
    """Return determinant and adjugate of a positive semidefinite integer matrix, None where it is singular.

    Bareiss 1968, "Sylvester's identity and multistep integer-preserving Gaussian elimination", Gauss-Jordan
    form: all divisions are exact. A leading minor of such a matrix is zero only if the whole is singular.
    """
    size = len(matrix)
    rows = [[*row, *(int(i == j) for j in range(size))] for i, row in enumerate(matrix)]
    before = 1
    for at in range(size):
        pivot, line = rows[at][at], rows[at]
        if pivot == 0:
            return None
        for i in range(size):
            if i != at:
                by = rows[i][at]
                rows[i] = [
                    (pivot * mine - by * theirs) // before for mine, theirs in zip(rows[i], line, strict=True)
                ]
        before = pivot
    return before, [row[size:] for row in rows]


def _times(left: Matrix, right: Matrix) -> list[list[int]]:
    across = list(zip(*right, strict=True))
    return [[sum(x * y for x, y in zip(row, column, strict=True)) for column in across] for row in left]


def t_quantile(freedom: float) -> float:
    """Return the 97.5 % quantile of Student's t with 80 degrees of freedom or more, to 1e-8.

    Abramowitz and Stegun 1964, 26.7.5.
    """
    z = NormalDist().inv_cdf(float((1 + CONFIDENCE) / 2))
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, start=1))


# -- with noise --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Noisy:
    """Figures of noisy moments, q divided by its reach: columns within ±1.

    How far noise moves a figure is reckoned to first order: `turn_…` are gradients by the noisy numbers, in
    the order n, sums, upper triangle; `variances` are those of the noise on them.
    """

    columns: Sequence[Column]
    n: float
    means: Floats  # m
    centred: Floats  # m x m: Σ(x - mean)(x - mean)ᵀ, as noise left it
    projected: Floats  # m x m: the nearest positive semidefinite matrix
    variances: Floats  # 1 + m + m(m+1)/2
    turn_means: Floats  # m x …
    turn_centred: Floats  # m x m x …
    wide: float
    off_count: float

    @classmethod
    def of(cls, columns: Sequence[Column], moments: Moments, noise: Noises) -> Self:
        size, n = len(columns), float(moments.n)
        reach = np.array([float(column.reach) for column in columns])
        sums = np.array(moments.sums, np.float64) / reach
        means = sums / n
        centred = np.array(moments.products, np.float64) / np.outer(reach, reach) - np.outer(sums, means)
        order = pairs(size)
        variances = np.array(
            [
                noise.count.variance,
                *(each.variance / by**2 for each, by in zip(noise.sums, reach, strict=True)),
                *(
                    each.variance / (reach[i] * reach[j]) ** 2
                    for each, (i, j) in zip(noise.products, order, strict=True)
                ),
            ]
        )
        turn_means = np.zeros((size, len(variances)))
        turn_means[:, 0] = -means / n
        turn_means[np.arange(size), 1 + np.arange(size)] = 1 / n
        turn_centred = np.zeros((size, size, len(variances)))
        for at, (i, j) in enumerate(order):
            turn = turn_centred[i, j]
            turn[1 + size + at] = 1
            turn[1 + i] -= means[j]
            turn[1 + j] -= means[i]
            turn[0] = means[i] * means[j]
            turn_centred[j, i] = turn
        values, vectors = np.linalg.eigh(centred)
        projected = (vectors * np.maximum(values, 0)) @ vectors.T
        wide = deviations(CONFIDENCE, heavy=noise.heavy)
        return cls(
            columns, n, means, centred, (projected + projected.T) / 2, variances, turn_means, turn_centred,
            wide, noise.count.half_width(),
        )  # fmt: skip

    def _off(self, turn: Floats) -> float:
        """Return how far a figure is moved at most, with 95 %."""
        return self.wide * float(np.sqrt(turn**2 @ self.variances))

    def _number(
        self, value: float, raw: float, turn: Floats, least: float = -np.inf, most: float = np.inf
    ) -> _Number:
        """Return a figure with an interval around what noise left of it, both cut to what there can be."""
        off, shown_ = self._off(turn), float(np.clip(value, least, most))
        low, high = np.clip([raw - off, raw + off], least, most)
        return _Number(shown_, min(float(low), shown_), max(float(high), shown_))

    def numbers(self) -> Numbers:
        """Return everything but a regression."""
        n, slots = self.n, [column.slot for column in self.columns]
        units = [float(column.step) * column.reach for column in self.columns]
        numbers: Numbers = {(PERSONS, "", ""): _Number(n, max(n - self.off_count, 0.0), n + self.off_count)}
        for i, column in enumerate(self.columns):
            step = 10**column.decimals
            mean = float(column.centre) + units[i] * float(self.means[i])
            numbers["mean", slots[i], ""] = self._number(
                mean, mean, units[i] * self.turn_means[i], column.low / step, column.high / step
            )
        for i, j in pairs(len(slots)):
            by = units[i] * units[j] / (n - 1)
            turn = self.turn_centred[i, j].copy()
            turn[0] -= self.centred[i, j] / (n - 1)
            same = i == j
            numbers["variance" if same else "covariance", slots[i], "" if same else slots[j]] = self._number(
                by * float(self.projected[i, j]),
                by * float(self.centred[i, j]),
                by * turn,
                0.0 if same else -np.inf,
            )
            if not same:
                numbers["correlation", slots[i], slots[j]] = self._correlation(i, j)
        return numbers

    def _correlation(self, i: int, j: int) -> _Number | None:
        """Return a correlation; None where noise alone could have made one of the variances."""
        one, other = float(self.projected[i, i]), float(self.projected[j, j])
        if one <= self._off(self.turn_centred[i, i]) or other <= self._off(self.turn_centred[j, j]):
            return None
        both = sqrt(one * other)
        value = float(self.projected[i, j]) / both
        turn = self.turn_centred[i, j] / both
        turn = turn - value / 2 * (self.turn_centred[i, i] / one + self.turn_centred[j, j] / other)
        return self._number(value, value, turn, -1.0, 1.0)

    def penalty(self, on: Sequence[int]) -> float:
        """Return the ridge that AdaSSP adds: Wang 2018 (arXiv:1803.02596), with the noise of both.

        λ̃ = max(0, λ_min - s(2√d + √(2 ln(6/.05)))) and max(0, √(d ln(2d²/.05))·s - λ̃), s the standard
        deviation of the noise on the noisiest of the d x d numbers.
        """
        s = max(float(np.sqrt(self.turn_centred[i, j] ** 2 @ self.variances)) for i in on for j in on)
        return adassp_ridge(self.centred[np.ix_(on, on)], s)

    def fit(self, target: int, ridge: float) -> Numbers:
        """Return coefficients by AdaSSP, with intervals of what noise moves them by."""
        on = [i for i in range(len(self.columns)) if i != target]
        most = max(self.penalty(on), self.n * ridge)
        inverse = np.linalg.inv(self.projected[np.ix_(on, on)] + most * np.eye(len(on)))
        slopes = inverse @ self.projected[on, target]
        # δb = A⁻¹(δXᵀy - δXᵀX b)
        moved = self.turn_centred[on, target] - np.einsum(
            "jkv,k->jv", self.turn_centred[np.ix_(on, on)], slopes
        )
        turns = inverse @ moved
        units = [float(column.step) * column.reach for column in self.columns]
        to = self.columns[target]
        numbers: Numbers = {}
        intercept = float(to.centre) + units[target] * float(self.means[target])
        turn = units[target] * self.turn_means[target]
        for at, i in enumerate(on):
            by = units[target] / units[i]
            slope, mean = (
                by * float(slopes[at]),
                float(self.columns[i].centre) + units[i] * float(self.means[i]),
            )
            numbers["coefficient", self.columns[i].slot, to.slot] = self._number(slope, slope, by * turns[at])
            intercept -= slope * mean
            turn = turn - by * turns[at] * mean - slope * units[i] * self.turn_means[i]
        numbers["intercept", "", to.slot] = self._number(intercept, intercept, turn)
        return numbers


_MISS: Final = 0.05
"""Chance that AdaSSP's ridge is smaller than the noise asks for."""


def adassp_ridge(moments: Floats, s: float) -> float:
    """Return the ridge for noisy second moments: Wang 2018 (arXiv:1803.02596), algorithm 2.

    λ̃ = max(0, λ_min - s(2√d + √(2 ln(6/.05)))) and max(0, √(d ln(2d²/.05))·s - λ̃). λ_min is of the noisy
    matrix, which is released anyway.

    Args:
        moments: d x d, of rows of norm 1 at most, symmetric, noise included.
        s: standard deviation of the noise on the noisiest of these numbers.
    """
    size, least = len(moments), float(np.linalg.eigvalsh(moments)[0])
    sure = max(0.0, least - s * (2 * sqrt(size) + sqrt(2 * log(6 / _MISS))))
    return max(0.0, sqrt(size * log(2 * size**2 / _MISS)) * s - sure)


# -- words -------------------------------------------------------------------------------------------------


def _facts(question: Question, columns: Sequence[Column], moments: Moments) -> dict[str, int | str]:
    noise = question.noise
    hidden = [column.slot for column in question.columns if column not in columns]
    facts: dict[str, int | str] = {
        "statistic": "moments",
        "fewest_persons": max(FEWEST, question.least),
        "minimum_group": question.least,
        "columns": " ".join(column.slot for column in columns),
        "withheld_columns": " ".join(hidden),
        "largest_q": question.columns[0].most,
        "scales": "; ".join(
            f"{column.slot} = {decimal_text(column.centre)} + {decimal_text(column.step)} q"
            for column in columns
        ),
        **moments.facts(),
    }
    if question.target is not None:
        facts["target"] = question.columns[question.target].slot
        facts["ridge"] = decimal_text(question.ridge)
    if noise is None:
        return facts | _EXACT
    letter = "rho" if noise.budget.notion == "zcdp" else "epsilon"
    return facts | {
        "mechanism": "discrete Laplace" if noise.heavy else "discrete Gaussian",
        letter: decimal_text(noise.budget.amount),
        **_NOISY,
    }


_EXACT: Final[dict[str, int | str]] = {
    "mechanism": "none",
    "confidence": "95 %",
    "within": (
        "Persons, means, variances, covariances and correlations are exact for the joined persons, whose "
        "interval is the number itself; intervals of coefficients are Student's, for persons drawn at random "
        "from a larger population, errors of equal variance; with a ridge they hold what it shrinks to"
    ),
    "within_zh": (
        "人数、均值、方差、协方差和相关系数对关联人群而言是精确值, 区间即其本身; 系数区间为 95 % 的 t 区间, "
        "以关联人群为更大总体的随机样本、误差同方差为前提; 采用岭回归时, 区间针对收缩后的系数"
    ),
    "rounding": (
        "n, sums and products are exact in q; figures are the nearest doubles to what these make exactly"
    ),
    "suppression": (
        "a column is withheld if by it and those before it fewer persons than the minimum group could be "
        "told from all others, or one have too large a part of a sum; closer bounds or more persons help"
    ),
    "suppression_zh": (
        "若某列与其前各列合起来可能区分出少于最小分组的若干人, 或个别人在合计中占比过大, 则该列不公布; "
        "可收窄上下限或扩大人群"
    ),
    "not_covered": "persons missing on a list, amounts cut to their bounds, errors in the data",
    "not_covered_zh": "不包括清单缺漏的人员、被截断到上下限的数值以及数据本身的错误",
}

_NOISY: Final[dict[str, int | str]] = {
    "confidence": "95 %",
    "within": (
        "Each figure would be between its low and its high with 95 % without the noise, each by itself and "
        "to first order in the noise; coefficients by AdaSSP, whose ridge shrinks them: the interval holds "
        "what the same ridge makes of numbers without noise"
    ),
    "within_zh": (
        "若不加噪声, 每个数字有 95 % 的把握落在其 low 与 high 之间, 各自单独成立, 按噪声的一阶近似计算; "
        "系数按 AdaSSP 估计, 其岭参数使系数收缩, 区间针对相同岭参数、无噪声时的系数"
    ),
    "rounding": "n, sums and products have all the noise, whole in q; figures are doubles made of them",
    "not_covered": (
        "persons as a sample of a larger population, persons missing on a list, amounts cut to their bounds, "
        "errors in the data; a correlation is withheld where noise alone could have made a variance"
    ),
    "not_covered_zh": (
        "不包括抽样误差、清单缺漏的人员、被截断到上下限的数值以及数据本身的错误; "
        "若方差可能仅由噪声造成, 则不公布相关系数"
    ),
}
