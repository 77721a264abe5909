"""From noisy totals to the released table: whole numbers, intervals, what is withheld, and plain words.

Nothing here sees data: it works on numbers that are private already, so it costs nothing more.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor, log10
from typing import TYPE_CHECKING, Final

from protocols.dp import quantile
from protocols.dp.mechanism import Noise
from protocols.dp.quantile import estimate_quantiles
from protocols.dp.tree import deviations, estimate
from protocols.dp.unknown_keys import release_keys
from protocols.jobs.job_type import Content
from protocols.releases.params import Params
from protocols.releases.plan import Plan, count_of, counted_as, geography, middle
from protocols.tables import released
from protocols.tables.layout import decimal_text
from protocols.tables.released import PERSONS, Figure, as_texts, cell_labels, mean_of, sum_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]
    Floats = npt.NDArray[np.float64]
    Mask = npt.NDArray[np.bool_]
    Texts = npt.NDArray[np.object_]

TABLE: Final = "table"
CONFIDENCE: Final = Fraction(95, 100)
HALF_EACH: Final = (1 + CONFIDENCE) / 2
"""Confidence of each of two intervals that hold together with `CONFIDENCE`: a union bound."""

_DIGITS: Final = 3


@dataclass(frozen=True, slots=True)
class Sentence:
    """A plain sentence in both languages."""

    en: str
    zh: str


def content(plan: Plan, totals: "Ints", minimum: int, keys: Sequence[str] = ()) -> Content:
    """Return the released table of noisy totals.

    One row per cell and measure: the axes' labels, `measure`, `value`, `low`, `high`, `withheld`; the numbers
    of a withheld row are NaN. SPEC.md, "`release/1`".

    Args:
        plan: of the release.
        totals: the vectors of all departments, scaled and with all noise; int64[words].
        minimum: fewest persons of a published cell.
        keys: for unknown keys, what the totals count, in order.
    """
    least = max(minimum, 1) * plan.params.most_rows
    figures, sentence = _figures(plan, totals, least, keys)
    withheld = sum(int(figure.hidden.sum()) for figure in figures)
    return released.content(TABLE, figures, _facts(plan, minimum, least, withheld, sentence))


def _figures(plan: Plan, totals: "Ints", least: int, keys: Sequence[str]) -> tuple[list[Figure], Sentence]:
    match plan.params.statistic:
        case "count" | "histogram":
            return _counts(plan, totals, least)
        case "sum":
            return _sums(plan, plan.split(totals), least)
        case "mean":
            return _means(plan, plan.split(totals), least)
        case "tree":
            return _tree(plan, plan.split(totals), least)
        case "quantile":
            return _quantiles(plan, plan.split(totals), least)
        case "keys":
            return _keys(plan, totals, least, keys)


# -- numbers --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Whole:
    """Whole numbers with the whole numbers between which the true ones lie."""

    value: "Ints"
    low: "Ints | Floats"
    high: "Ints | Floats"


def whole_numbers(noisy: "Ints", noise: Noise, confidence: Fraction, least: int | None) -> Whole:
    """Return what noisy totals say of whole numbers that are at least `least`.

    In integers to the end: a bound that a float moved past a whole number would lose that number.
    """
    import numpy as np

    scale = noise.scale
    reach = round(noise.half_width(confidence) * scale)
    value = (2 * noisy + scale) // (2 * scale)
    low, high = -((reach - noisy) // scale), (noisy + reach) // scale
    # The true number is not below `least`, so what lies below it can be cut off all three.
    if least is not None:
        value, low, high = (np.maximum(each, least) for each in (value, low, high))
    return Whole(value, np.minimum(low, value), np.maximum(high, value))


def _counts(plan: Plan, totals: "Ints", least: int) -> tuple[list[Figure], Sentence]:
    (noise,) = plan.noises
    found = whole_numbers(totals, noise, CONFIDENCE, 0)
    figure = noisy_figure(counted_as(plan.params), _cells(plan.params), found, found.value < least)
    return [figure], within_each((counts_words(), noise.half_width(CONFIDENCE)))


def _sums(plan: Plan, totals: Sequence["Ints"], least: int) -> tuple[list[Figure], Sentence]:
    (measure,) = plan.params.layout.measures
    cells, step = _cells(plan.params), 10**measure.decimals
    sums, counts = totals
    count = whole_numbers(counts, plan.noises[1], CONFIDENCE, 0)
    total = whole_numbers(sums, plan.noises[0], CONFIDENCE, 0 if measure.low >= 0 else None)
    hidden = count.value < least
    figures = [
        noisy_figure(sum_of(measure.slot), cells, total, hidden, step),
        noisy_figure(count_of(measure.slot), cells, count, hidden),
    ]
    widths = [noise.half_width(CONFIDENCE) for noise in plan.noises]
    return figures, within_each((sums_words(measure.slot), widths[0] / step), (counts_words(), widths[1]))


def _means(plan: Plan, totals: Sequence["Ints"], least: int) -> tuple[list[Figure], Sentence]:
    """Return means between bounds that hold where those of sum and count both do."""
    (measure,) = plan.params.layout.measures
    cells, step, centre = _cells(plan.params), 10**measure.decimals, middle(plan.params)
    sums, counts = totals
    total = whole_numbers(sums, plan.noises[0], HALF_EACH, None)
    # A mean is one of somebody: where there is one, at least one row has an amount.
    by = whole_numbers(counts, plan.noises[1], HALF_EACH, 1)
    value, low, high = means_between(total, by, centre, (measure.low, measure.high), step)
    count = whole_numbers(counts, plan.noises[1], CONFIDENCE, 0)
    hidden = count.value < least
    figures = [
        Figure(mean_of(measure.slot), cells, value, hidden, low, high),
        noisy_figure(count_of(measure.slot), cells, count, hidden),
    ]
    width = _plus(plan.noises[1].half_width(CONFIDENCE))
    return figures, Sentence(
        f"each mean of {measure.slot} is between its low and its high with 95 %; {counts_words().en} is "
        f"within ±{width} with 95 %",
        f"每个均值({measure.slot})有 95 % 的把握在其 low 与 high 之间; {counts_words().zh}有 95 % 的把握在 "
        f"±{width} 以内",
    )


def means_between(
    total: Whole, by: Whole, centre: int, bounds: tuple[int, int], step: int
) -> tuple["Floats", "Floats", "Floats"]:
    """Return means with their least and largest, of sums of (amount - centre), cut to the amounts' bounds.

    Args:
        total: what is known of the sums.
        by: what is known of how many amounts there are, 1 or more.
        centre: in the smallest unit of the amounts.
        bounds: least and greatest amount, in that unit.
        step: how many of it make one.
    """
    import numpy as np

    ends = (
        total.value / by.value,
        total.low / np.where(total.low < 0, by.low, by.high),
        total.high / np.where(total.high < 0, by.high, by.low),
    )
    value, low, high = (np.clip(centre + end, *bounds) / step for end in ends)
    return value, low, high


def _tree(plan: Plan, totals: Sequence["Ints"], least: int) -> tuple[list[Figure], Sentence]:
    import numpy as np

    (axis,) = plan.params.layout.axes
    shape = geography(plan.params)
    found = estimate(shape.tree, [*_unscaled(plan, totals)], _variances(plan))
    figures, widths = [], []
    wide = deviations(CONFIDENCE, heavy=plan.heavy)
    levels = zip(shape.names, found.counts, found.values, found.variances, strict=True)
    for names, counts, values, variances in levels:
        # Around the estimate before it was made whole and consistent, outwards to whole numbers.
        off = wide * np.sqrt(variances)
        low, high = np.maximum(np.floor(values - off), 0), np.ceil(values + off)
        around = Whole(counts, np.minimum(low, counts), np.maximum(high, counts))
        labels = {axis.slot: as_texts(names)}
        figures.append(noisy_figure(counted_as(plan.params), labels, around, counts < least))
        widths.append(float(np.ceil(off).max()))
    return figures, within_each(*zip(level_words(plan.params), widths, strict=True))


def _quantiles(plan: Plan, totals: Sequence["Ints"], least: int) -> tuple[list[Figure], Sentence]:
    import numpy as np

    params = plan.params
    (axis,) = params.layout.axes
    tree, noisy, variances = quantile.levels(axis.size), [*_unscaled(plan, totals)], _variances(plan)
    edges = (*axis.bins, params.end)
    found = estimate_quantiles(
        tree, noisy, variances, edges, params.at, confidence=CONFIDENCE, heavy=plan.heavy
    )
    few = int(estimate(tree, noisy, variances).counts[0][0]) < least
    figures = []
    for share, each in zip(params.at, found, strict=True):
        # Of nobody there is no quantile, whatever the minimum.
        numbers = (each.value, each.low, each.high) if each else (np.nan,) * 3
        value, low, high = (np.array([number]) for number in numbers)
        name = f"quantile({axis.slot}, {decimal_text(share)})"
        figures.append(Figure(name, {}, value, np.array([few or each is None]), low, high))
    return figures, Sentence(
        f"each quantile of {axis.slot} is between its low and its high with 95 %; both are bounds of bins",
        f"每个分位数({axis.slot})有 95 % 的把握在其 low 与 high 之间, 二者均为分箱边界",
    )


def _keys(plan: Plan, totals: "Ints", least: int, names: Sequence[str]) -> tuple[list[Figure], Sentence]:
    import numpy as np

    (noise,) = plan.noises
    # A name is not shown beside a withheld number: what is below the minimum is not named at all.
    named = release_keys(names, totals, least_named(plan, least))
    found = whole_numbers(np.array([count for _, count in named], np.int64), noise, CONFIDENCE, 0)
    labels = {plan.params.keys: as_texts([name for name, _ in named])}
    return [noisy_figure(PERSONS, labels, found, np.zeros(len(named), np.bool_))], within_each(
        (counts_words(), noise.half_width(CONFIDENCE))
    )


def least_named(plan: Plan, least: int) -> int:
    """Return the noisy count from which on a key is named: what both the budget and the minimum allow."""
    return max(plan.threshold, least)


def _unscaled(plan: Plan, totals: Sequence["Ints"]) -> Iterable["Floats"]:
    return (each / noise.scale for each, noise in zip(totals, plan.noises, strict=True))


def _variances(plan: Plan) -> list[float]:
    return [noise.variance for noise in plan.noises]


def _cells(params: Params) -> Mapping[str, "Texts"]:
    return cell_labels(params.layout.axes)


def noisy_figure(
    measure: str, labels: Mapping[str, "Texts"], found: Whole, hidden: "Mask", step: int = 1
) -> Figure:
    """Return whole numbers with their intervals as a figure, in units of which `step` make one."""
    return Figure(measure, labels, found.value / step, hidden, found.low / step, found.high / step)


# -- words --------------------------------------------------------------------------------


def counts_words() -> Sentence:
    """What a count is called."""
    return Sentence("each count", "每个计数")


def sums_words(slot: str) -> Sentence:
    """What a sum is called."""
    return Sentence(f"each sum of {slot}", f"每个合计({slot})")


def level_words(params: Params) -> tuple[Sentence, ...]:
    """What the counts of each level of a tree are called."""
    between = (
        Sentence(f"each count by {length} characters", f"每个前 {length} 位代码的计数")
        for length in params.levels
    )
    (axis,) = params.layout.axes
    return (
        Sentence("the whole", "总数"),
        *between,
        Sentence(f"each count by {axis.slot}", f"每个 {axis.slot} 的计数"),
    )


def within_each(*parts: tuple[Sentence, float]) -> Sentence:
    """Return that each number of some kinds is within so much of the true one."""
    return Sentence(
        "; ".join(f"{what.en} is within ±{_plus(width)} with 95 %" for what, width in parts),
        "; ".join(f"{what.zh}有 95 % 的把握在 ±{_plus(width)} 以内" for what, width in parts),
    )


def _plus(width: float) -> str:
    """Return a width of three digits, or more where it is larger; never less than it is."""
    if width >= 10**_DIGITS or width == int(width):
        return f"{ceil(width):,}"
    digits = _DIGITS - 1 - floor(log10(width))
    return decimal_text(Fraction(ceil(Fraction(width) * 10**digits), 10**digits))


def _facts(plan: Plan, minimum: int, least: int, withheld: int, sentence: Sentence) -> dict[str, int | str]:
    params = plan.params
    notion = "rho" if params.budget.notion == "zcdp" else "epsilon"
    shape = "discrete Laplace" if plan.heavy else "discrete Gaussian"
    shown: dict[str, int | str] = {"shown_from": least}
    if params.keys:
        shown = {"delta": decimal_text(params.delta), "least_named": least_named(plan, least)}
    return {
        "statistic": params.statistic,
        "mechanism": shape,
        notion: decimal_text(params.budget.amount),
        **shown,
        "contributors": params.sources,
        "honest_contributors": params.honest,
        "rows_per_person": params.layout.unit_rows,
        "departments_per_person": params.persons_in,
        "confidence": "95 %",
        "minimum_group": minimum,
        "withheld_cells": withheld,
        "within": sentence.en[0].upper() + sentence.en[1:],
        "within_zh": sentence.zh,
        "suppression": (
            "noise and suppression apply to the same cells: one of fewer than "
            f"{least} noisy rows is withheld, and one that is shown may truly have fewer"
        ),
        "suppression_zh": (
            f"同一单元格先加噪声再作抑制: 加噪后少于 {least} 条的不公布, 公布的单元格真实数也可能更少"
        ),
        "not_covered": (
            "the intervals hold the noise alone, each by itself and before it is decided what is shown: "
            "where many cells truly have few rows, those that are shown are the ones whose noise is high, "
            "and far fewer than 95 % of these can lie in their intervals; some may truly be empty. "
            f"Nor do they hold rows beyond {params.layout.unit_rows} per person and department, persons "
            "counted in several departments, amounts cut to their bounds, or errors in the data"
        ),
        "not_covered_zh": (
            "区间仅反映噪声, 各自单独成立, 且针对决定是否公布之前: 若许多单元格真实数很小, "
            "公布的往往是噪声偏大者, 真实值落在区间内的比例可能远低于 95 %, 有的实际可能为空。"
            f"也不包括每人每部门超出 {params.layout.unit_rows} 条的记录、"
            "多个部门重复计数、截断到上下限的数值以及数据本身的错误"
        ),
    }
