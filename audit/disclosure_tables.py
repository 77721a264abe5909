"""Released tables of cells looked at again: exact ones for what follows, noisy ones for their noise.

What a table has to look like follows from the job that asked for it, which the log holds, and from what its
participants demanded; never from the table itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
from scipy.optimize import linprog  # type: ignore[import-untyped]  # it comes without types
from scipy.sparse import csr_array, eye_array, hstack, vstack  # type: ignore[import-untyped]  # the same

from audit.disclosure import Problem, cell_text, truth
from protocols.dp.tree import deviations, estimate
from protocols.errors import InputError
from protocols.jobs.table import Params as Exact
from protocols.releases.figures import CONFIDENCE, content
from protocols.releases.params import Params as Noisy
from protocols.releases.plan import Plan, geography, middle, plan
from protocols.statistics.cross_table import MAX_MINIMUM, boxed, least_persons
from protocols.statistics.suppress import MIN_GROUP, ROUNDING, rounded
from protocols.tables.layout import Layout
from protocols.tables.released import PERSONS, ROWS, Texts, as_texts, cell_labels, mean_of, sum_of
from protocols.wire import Constraints, JobSpec

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

MAX_SOLVED: Final = 1 << 15
"""Most cells, each times the sums that it is in, of a table that linear programs are asked about. Interval
arithmetic over the sums is asked about every table."""

MAX_PROGRAMS: Final = 200
"""Most linear programs about one table; each settles as many cells as it can."""

_ROUNDS: Final = 200
NEAR: Final = 1e-9
"""By which part a number may be off for having been a 64-bit float."""

_SLACK: Final = 1e-3
"""What a solver may be off; counts are whole numbers."""

_INFEASIBLE: Final = 2
_LEVELS: Final = ("low", "high")
NUMBERS: Final = ("value", "low", "high", "withheld")
"""Columns of a released table that are no texts."""


def examine_cells(
    columns: Mapping[str, Sequence[Any]],
    facts: Mapping[str, Any],
    spec: JobSpec,
    limits: Constraints,
    *,
    persons: bool = True,
) -> list[Problem]:
    """Return what is wrong with a table of `table/1` or `release/1`.

    Args:
        columns: as the release has them.
        facts: what is stated beside the table; empty for none.
        spec: the job that asked for it.
        limits: what all participants demanded.
        persons: False where the policy of the department that made it names nobody whom its rows are about.
    """
    try:
        if spec.job_type == "table/1":
            params = Exact.of(spec)
            return examine_exact(columns, facts, params, limits, persons=persons or params.sources > 1)
        return _noisy(columns, facts, plan(Noisy.of(spec)), limits)
    except InputError as error:
        return [Problem(error.code, error.message)]


@dataclass(frozen=True, slots=True)
class Rows:
    """A table of cells or regions, row by row. A withheld row has no numbers."""

    value: Floats
    withheld: Bools
    low: Floats
    high: Floats

    @classmethod
    def of(
        cls, columns: Mapping[str, Sequence[Any]], texts: Mapping[str, Texts], *, intervals: bool
    ) -> "Rows":
        """Read the columns.

        Args:
            columns: as the release has them.
            texts: axes, or lists, and `measure` as they have to be, row by row.
            intervals: whether the table has them.

        Raises:
            InputError: `bad-table`, other columns, or rows that the job did not ask for.
        """
        wrong = InputError("its rows are not those of the table that the job asked for", code="bad-table")
        ends = _LEVELS if intervals else ()
        if set(columns) != {*texts, "value", "withheld", *ends}:
            raise wrong
        for name, expected in texts.items():
            if list(map(cell_text, columns[name])) != expected.tolist():
                raise wrong
        try:
            withheld = np.array([truth(each) for each in columns["withheld"]], np.bool_)
            numbers = {
                name: np.array([float(each) for each in columns[name]], np.float64)
                for name in ("value", *ends)
            }
        except (TypeError, ValueError):
            raise wrong from None
        # Nothing but NaN in a withheld row: of two infinities, the sign would tell something.
        whole = all(len(each) == len(withheld) for each in numbers.values())
        if not whole or any(
            (np.isnan(each) != withheld).any() or np.isinf(each).any() for each in numbers.values()
        ):
            raise InputError("a withheld row has a number, or one that is not has none", code="bad-table")
        value = numbers["value"]
        return cls(value, withheld, numbers.get("low", value), numbers.get("high", value))


def _asked(limits: Constraints) -> int:
    return MIN_GROUP if limits.min_group_size is None else limits.min_group_size


def _against(facts: Mapping[str, Any], expected: Mapping[str, int | str], asked: int) -> list[Problem]:
    """Return what is stated beside a table and is not so; what is not stated is not missed."""
    problems = [
        Problem("wrong-facts", f"its {key} is stated as another than the job or the table has")
        for key, value in expected.items()
        if facts.get(key, value) != value
    ]
    stated = facts.get("minimum_group", asked)
    if not isinstance(stated, int) or stated < asked:
        problems.append(Problem("wrong-facts", f"its smallest group is stated as less than {asked}"))
    return problems


# -- noisy ---------------------------------------------------------------------------------------------------

_STATED: Final = (
    "statistic",
    "mechanism",
    "rho",
    "epsilon",
    "delta",
    "least_named",
    "contributors",
    "honest_contributors",
    "rows_per_person",
    "departments_per_person",
)
"""What stands beside a noisy table and follows from its job."""


def _noisy(
    columns: Mapping[str, Sequence[Any]], facts: Mapping[str, Any], made: Plan, limits: Constraints
) -> list[Problem]:
    """(1) It has the cells of the job, and what stands beside it is so. (2) Every interval holds its value.
    (3) No number is of fewer than the smallest group, as far as noisy counts tell. (4) The intervals are
    those of the noise that the job's budget pays for. (5) The levels of a tree add up.
    """
    params, asked = made.params, _asked(limits)
    empty = content(made, np.zeros(0 if params.keys else made.words, np.int64), asked)
    texts = {name: each for name, each in empty.table.columns.items() if name not in NUMBERS}
    if params.keys:
        names = [cell_text(each) for each in columns.get(params.keys, ())]
        if len(set(names)) != len(names):
            raise InputError("a key is there twice", code="bad-table")
        texts = {params.keys: as_texts(names), "measure": as_texts([PERSONS] * len(names))}
    # (1)
    rows = Rows.of(columns, texts, intervals=True)
    stated = {key: empty.facts[key] for key in _STATED if key in empty.facts}
    problems = _against(facts, stated | {"withheld_cells": int(rows.withheld.sum())}, asked)
    # (2)
    there = ~rows.withheld
    if (there & ~((rows.low <= rows.value) & (rows.value <= rows.high))).any():
        problems.append(Problem("wrong-interval", "a value is outside its own interval"))
    if problems:
        return problems
    match params.statistic:
        case "tree":
            return _tree(rows, made, asked)
        case "quantile":
            return _quantiles(rows, made)
        case _:
            return _again(rows, made, asked, tuple(texts[params.keys].tolist()) if params.keys else ())


def _again(rows: Rows, made: Plan, asked: int, keys: Sequence[str]) -> list[Problem]:
    """(3) (4) Hold numbers against those that this version makes of totals which round to the same values.

    What was rounded off is not known: an interval has to lie between those for the least and for the largest
    totals.
    """
    there = ~rows.withheld
    parts, free = _totals(rows, made)
    least_low = least_high = np.full(len(rows.value), np.inf)
    most_low = most_high = np.full(len(rows.value), -np.inf)
    for ups in product((False, True), repeat=len(parts)):
        offs = [
            (noise.scale - 1) // 2 if up else -(noise.scale // 2)
            for up, noise in zip(ups, made.noises, strict=True)
        ]
        words = [part * noise.scale + off for part, noise, off in zip(parts, made.noises, offs, strict=True)]
        table = content(made, np.concatenate(words), asked, keys).table
        if table.rows != len(there) or (there & table.columns["withheld"]).any():
            return [Problem("small-cell", "a number of fewer than the smallest group is published")]
        low, high = table.columns["low"], table.columns["high"]
        least_low, most_low = np.fmin(least_low, low), np.fmax(most_low, low)
        least_high, most_high = np.fmin(least_high, high), np.fmax(most_high, high)
    near = NEAR * np.maximum(1, np.abs(rows.value))
    fits = (least_low - near <= rows.low) & (rows.low <= most_low + near)
    fits &= (least_high - near <= rows.high) & (rows.high <= most_high + near)
    if (there & ~fits & ~free).any():
        what = "an interval is not the one of the noise that the job's budget pays for"
        return [Problem("wrong-interval", what)]
    return []


def _totals(rows: Rows, made: Plan) -> tuple[tuple[Ints, ...], Bools]:
    """Return the whole totals that a table was made of, and of which rows it does not tell them.

    Raises:
        InputError: `bad-table`, numbers of no such totals.
    """
    params = made.params
    values = np.where(rows.withheld, 0, rows.value)
    unknown = np.zeros(len(values), np.bool_)
    if params.statistic not in ("sum", "mean"):
        return (_whole(values, made),), unknown
    (measure,) = params.layout.measures
    figure, counts = values.reshape(2, -1)
    step, dark = 10**measure.decimals, rows.withheld.reshape(2, -1)
    if (dark[0] != dark[1]).any():
        raise InputError("a number is withheld, and its count is not, or the other way", code="bad-table")
    by = _whole(counts, made)
    if params.statistic == "sum":
        # A sum that cannot be below zero was cut there.
        cut = (figure == 0) & (measure.low >= 0)
        total = _whole(figure * step, made)
    else:
        cut = (figure * step <= measure.low) | (figure * step >= measure.high)
        total = _whole(np.where(dark[0], 0, (figure * step - middle(params)) * np.maximum(by, 1)), made)
    unknown[: len(cut)] = cut
    return (total, by), unknown


def _whole(values: Floats, made: Plan) -> Ints:
    nearest = np.rint(values)
    largest = made.bound / max(noise.scale for noise in made.noises)
    if (np.abs(values - nearest) > 1e-6 * np.maximum(1, np.abs(values))).any() or (
        np.abs(values) > largest
    ).any():
        raise InputError("a number is none that whole totals make", code="bad-table")
    return nearest.astype(np.int64)


def _tree(rows: Rows, made: Plan, asked: int) -> list[Problem]:
    """(3) (4) (5) of a tree. How far its intervals reach depends on noise and geography alone."""
    problems = []
    tree = geography(made.params).tree
    nobody = [np.zeros(size, np.int64) for size in tree.sizes]
    spread = estimate(tree, nobody, [noise.variance for noise in made.noises]).variances
    off = deviations(CONFIDENCE, heavy=made.heavy) * np.sqrt(np.concatenate(spread))
    there = ~rows.withheld
    if (rows.value[there] < max(asked, 1) * made.params.most_rows).any():
        problems.append(Problem("small-cell", "a number of fewer than the smallest group is published"))
    # An interval is cut at zero, and drawn out to the value where adding up moved that outside.
    width, cut = rows.high - rows.low, rows.low == 0
    drawn = (rows.low == rows.value) | (rows.high == rows.value)
    near = NEAR * (1 + off)
    if (there & ((~cut & (width < 2 * off - near)) | (~drawn & (width > 2 * off + 2 + near)))).any():
        what = "an interval is not the one of the noise that the job's budget pays for"
        problems.append(Problem("wrong-interval", what))
    ends = np.cumsum(tree.sizes)[:-1]
    counts, dark = np.split(np.where(there, rows.value, 0), ends), np.split(rows.withheld, ends)
    for level, parents in enumerate(tree.parents):
        sums = np.bincount(parents, counts[level + 1], len(counts[level]))
        partly = np.bincount(parents, dark[level + 1], len(counts[level])) > 0
        # A parent is withheld only where it is smaller than whatever is published.
        wrong = np.where(dark[level], sums > 0, np.where(partly, sums > counts[level], sums != counts[level]))
        if wrong.any():
            problems.append(Problem("does-not-add-up", "an area is not the sum of those in it"))
            break
    return problems


def _quantiles(rows: Rows, made: Plan) -> list[Problem]:
    """(4) The bounds of an interval are bounds of bins, and a higher quantile is not below a lower one."""
    (axis,) = made.params.layout.axes
    edges = np.array([float(each) for each in (*axis.bins, made.params.end)])
    there = ~rows.withheld
    ends = np.isin(rows.low[there], edges) & np.isin(rows.high[there], edges)
    if not ends.all() or (np.diff(rows.value[there]) < 0).any():
        return [Problem("wrong-interval", "quantiles out of order, or bounds that are those of no bin")]
    return []


# -- exact ---------------------------------------------------------------------------------------------------


class ExactTable(Protocol):
    """What decides how an exact table has to look."""

    @property
    def layout(self) -> Layout:
        """Cells and measures; in so many cells one person may be."""
        ...

    @property
    def sources(self) -> int:
        """How many departments give data."""
        ...

    @property
    def persons_in(self) -> int:
        """How often one person may be counted in one cell."""
        ...

    @property
    def margins(self) -> bool:
        """Whether sums over axes are published, too."""
        ...


def examine_exact(
    columns: Mapping[str, Sequence[Any]],
    facts: Mapping[str, Any],
    params: ExactTable,
    limits: Constraints,
    *,
    persons: bool,
) -> list[Problem]:
    """Return what is wrong with an exact table.

    (1) It has the cells of the job, and what stands beside it is so. (2) Counts are rounded, and none is
    of more than zero and fewer than the smallest group, in margins times how often one person may be counted.
    (3) A cell without its count has no sum and no mean. (4) No withheld cell follows from the others.

    (2) to (4) are about persons; of rows that are about nobody, any number may be known.
    """
    layout = params.layout
    names = [PERSONS if persons else ROWS]
    for measure in layout.measures:
        names += [sum_of(measure.slot)] if "sum" in measure.of else []
        names += [mean_of(measure.slot)] if "mean" in measure.of else []
    labels = cell_labels(layout.axes, margins=params.margins)
    cells = prod(len(axis.labels) + params.margins for axis in layout.axes)
    texts = {slot: np.tile(each, len(names)) for slot, each in labels.items()}
    # (1)
    rows = Rows.of(columns, texts | {"measure": np.repeat(as_texts(names), cells)}, intervals=False)
    figures = dict(zip(names, rows.value.reshape(len(names), -1), strict=True))
    hidden = dict(zip(names, rows.withheld.reshape(len(names), -1), strict=True))
    dark, counts = hidden[names[0]], figures[names[0]]
    asked = max(_asked(limits), 1)
    stated = {
        "contributors": params.sources,
        "rows_per_person": layout.unit_rows,
        "departments_per_person": params.persons_in,
        "withheld_cells": int(dark.sum()),
    }
    problems = _against(facts, stated, asked if persons else 0)
    if not persons:
        return problems
    base = facts.get("rounding_base", ROUNDING)
    if not isinstance(base, int) or base < ROUNDING:
        return [*problems, Problem("wrong-facts", f"it is rounded to less than {ROUNDING}")]
    # (2)
    minimum = min(asked * params.persons_in, MAX_MINIMUM)
    least = (
        least_persons(layout.shape, minimum, layout.unit_rows)
        if params.margins
        else np.full(layout.shape, minimum, np.int64)
    )
    shown = np.where(dark, 0, counts)
    if (shown % base != 0).any() or (shown < 0).any():
        problems.append(Problem("not-rounded", f"a count is no multiple of {base}"))
    floor = np.array([rounded(int(each), base) for each in np.unique(least)])
    small = (shown > 0) & (shown < floor[np.searchsorted(np.unique(least), least.ravel())])
    # (3)
    for name in names[1:]:
        if (dark & ~hidden[name]).any():
            problems.append(Problem("not-withheld", f"{name} is published of a cell whose count is withheld"))
        small |= ~dark & ~hidden[name] & (counts == 0) & (figures[name] != 0)
    if small.any():
        problems.append(Problem("small-cell", f"a cell of fewer than {minimum} persons is published"))
    # (4)
    if problems or not params.margins:
        return problems
    shape = least.shape
    within = _Known.of_counts(shown.reshape(shape), dark.reshape(shape), least, base)
    if not boxed(within.dark)[within.dark].all():
        problems.append(Problem("unshielded", "a withheld cell has no others that hide it in every sum"))
    problems += within.problems(least)
    for measure in layout.measures:
        if "sum" in measure.of and not problems:
            name = sum_of(measure.slot)
            sums = np.where(dark, 0, figures[name]).reshape(shape)
            problems += _Known.of_sums(sums, within.dark).problems(np.zeros_like(least))
    if not problems and layout.cells << len(layout.shape) <= MAX_SOLVED:
        problems = _solved(within, least)
    return problems


@dataclass(frozen=True, slots=True)
class _Known:
    """What a reader knows of each cell of a table with margins: it is from `low` to `high`."""

    low: Floats
    high: Floats
    dark: Bools
    near: float

    @classmethod
    def of_counts(cls, shown: Floats, dark: Bools, least: Ints, base: int) -> "_Known":
        """Return what rounded counts tell. No withheld cell is empty, and none below `least` is published."""
        above, below = (base - 1) // 2, base // 2  # of two equally near multiples the larger is shown
        empty = np.where(above >= least, above, 0)
        low = np.where(shown == 0, 0, np.maximum(shown - below, least))
        high = np.where(shown == 0, empty, shown + above)
        return cls(np.where(dark, 1.0, low), np.where(dark, np.inf, high), dark, 0.0)

    @classmethod
    def of_sums(cls, shown: Floats, dark: Bools) -> "_Known":
        """Return what exact sums of amounts tell that are not below zero."""
        near = NEAR * float(shown.max(initial=0))
        return cls(np.where(dark, 0, shown - near), np.where(dark, np.inf, shown + near), dark, near)

    def problems(self, least: Ints) -> list[Problem]:
        """Return what interval arithmetic over the sums tells of withheld cells."""
        low, high = self._narrowed()
        if (low > high + self.near).any():
            return [Problem("does-not-add-up", "parts and sums contradict each other")]
        if (self.dark & (high - low <= 3 * self.near)).any():
            return [Problem("recoverable", "a withheld cell follows from the others")]
        if (self.dark & (high < least)).any():
            return [Problem("too-narrow", "of a withheld cell a reader can tell that it is too small")]
        return []

    def _narrowed(self) -> tuple[Floats, Floats]:
        """Return what is left once every line's margin is between the sums of what its parts can be."""
        low, high = self.low.copy(), self.high.copy()
        for _ in range(_ROUNDS):
            before = low.copy(), high.copy()
            for axis in range(low.ndim):
                at_low, at_high = np.moveaxis(low, axis, -1), np.moveaxis(high, axis, -1)
                parts, margin = (..., slice(-1)), (..., slice(-1, None))
                lows = at_low[parts].sum(-1, keepdims=True)
                endless = np.isinf(at_high[parts])
                highs = np.where(endless, 0, at_high[parts]).sum(-1, keepdims=True)
                # A sum with one endless part says nothing of the others, but something of that one.
                others = endless.sum(-1, keepdims=True) - endless
                rest = np.where(others > 0, np.inf, highs - np.where(endless, 0, at_high[parts]))
                whole = np.where(endless.any(-1, keepdims=True), np.inf, highs)
                at_low[margin] = np.maximum(at_low[margin], lows - self.near)
                at_high[margin] = np.minimum(at_high[margin], whole + self.near)
                left = at_high[margin] - (lows - at_low[parts]) + self.near
                at_low[parts] = np.maximum(at_low[parts], at_low[margin] - rest - self.near)
                at_high[parts] = np.minimum(at_high[parts], left)
            if (low > high + self.near).any() or ((low == before[0]).all() and (high == before[1]).all()):
                break
        return low, high


def _solved(known: _Known, least: Ints) -> list[Problem]:
    """Return what a reader with a solver tells: a withheld cell that in no table at all is large enough.

    Each program looks for a table in which as many withheld cells as can be are as large as may be published,
    until each has been so in one of them, or one cannot be in any.
    """
    inner = tuple(size - 1 for size in known.low.shape)
    sums = _sums_of(inner, known.low.shape)
    low, high = known.low.ravel(), known.high.ravel()
    places = np.flatnonzero(known.dark)
    count, goals = len(places), least.ravel()[places]
    if not count:
        return []
    # No cell is larger than the largest sum that is known, or it is in no sum and may be anything.
    most = float(high[np.isfinite(high)].max(initial=0) + least.max())
    parts = np.ravel_multi_index(np.indices(inner).reshape(len(inner), -1), known.low.shape)
    bounded = np.isfinite(high)
    # Unknown are the cells without margins, and how much of its goal each withheld cell has.
    program = vstack(
        [
            hstack([sums[bounded], csr_array((int(bounded.sum()), count))]),
            hstack([-sums, csr_array((low.size, count))]),
            hstack([-sums[places], eye_array(count)]),
        ]
    ).tocsr()
    limits = np.concatenate([high[bounded], -low, np.zeros(count)])
    bounds = [*zip(low[parts], np.minimum(high[parts], most), strict=True)]
    bounds += [(0.0, float(each)) for each in goals]
    left, alone = np.ones(count, np.bool_), False
    for _ in range(MAX_PROGRAMS):
        wanted = np.flatnonzero(left)[: 1 if alone else None]
        aim = np.zeros(parts.size + count)
        aim[parts.size + wanted] = -1
        found = linprog(aim, A_ub=program, b_ub=limits, bounds=bounds, method="highs")
        if found.status == _INFEASIBLE:
            return [Problem("does-not-add-up", "its counts are of no table: they contradict each other")]
        if found.status:
            break  # out of time or of digits, which says nothing of the table
        large = left & (sums[places] @ found.x[: parts.size] >= goals - _SLACK)
        if alone and not large[wanted].all():
            return [Problem("too-narrow", "of a withheld cell a reader can tell that it is too small")]
        alone = not large.any()
        left &= ~large
        if not left.any():
            break
    return []


def _sums_of(inner: tuple[int, ...], shape: tuple[int, ...]) -> Any:
    """Return the matrix that makes a table with margins, flat, of one without."""
    cells = np.indices(inner).reshape(len(inner), -1)
    columns = np.arange(cells.shape[1])
    rows = [
        np.ravel_multi_index(
            [
                np.full_like(at, size) if summed else at
                for at, size, summed in zip(cells, inner, over, strict=True)
            ],
            shape,
        )
        for over in product((False, True), repeat=len(inner))
    ]
    ones = np.ones(len(rows) * len(columns))
    return csr_array(
        (ones, (np.concatenate(rows), np.tile(columns, len(rows)))), shape=(prod(shape), len(columns))
    )
