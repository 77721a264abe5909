"""How exact a release would be, before anybody has spent anything: from the noise alone, never from data."""

from collections.abc import Iterator
from math import sqrt
from typing import Final

import numpy as np

from protocols.dp.cost import Cost
from protocols.dp.tree import deviations, estimate
from protocols.jobs.job_type import Forecast
from protocols.releases.figures import (
    CONFIDENCE,
    HALF_EACH,
    Sentence,
    counts_words,
    level_words,
    sums_words,
)
from protocols.releases.plan import Plan, geography, mean_reach

GROUP: Final = 1000
"""Rows of the group for which the exactness of a mean is foretold."""


def forecasts(plan: Plan, asking: Cost) -> tuple[Forecast, ...]:
    """Return one forecast for each kind of figure of a release.

    Args:
        plan: of the release.
        asking: what asking costs, whatever the privacy loss.
    """
    return tuple(
        Forecast(plan.params.budget.amount, what.en, what.zh, within, plan.cost + asking)
        for what, within in _figures(plan)
    )


def _figures(plan: Plan) -> Iterator[tuple[Sentence, float]]:
    params, widths = plan.params, [noise.half_width(CONFIDENCE) for noise in plan.noises]
    match params.statistic:
        case "sum":
            (measure,) = params.layout.measures
            yield sums_words(measure.slot), widths[0] / 10**measure.decimals
            yield counts_words(), widths[1]
        case "mean":
            (measure,) = params.layout.measures
            sums, counts = (noise.half_width(HALF_EACH) for noise in plan.noises)
            # With s within ±e of S and n within ±c of N: |s/n - S/N| ≤ (e + |S/N|·c)/(N - c).
            off = (sums + mean_reach(params) * counts) / max(GROUP - counts, 1)
            yield (
                Sentence(
                    f"each mean of {measure.slot} over {GROUP:,} rows",
                    f"{GROUP:,} 条记录的均值({measure.slot})",
                ),
                min(off, measure.high - measure.low) / 10**measure.decimals,
            )
            yield counts_words(), widths[1]
        case "tree":
            tree = geography(params).tree
            variances = [noise.variance for noise in plan.noises]
            # How exact it is does not depend on the counts.
            nothing = estimate(tree, [np.zeros(size) for size in tree.sizes], variances)
            for what, each in zip(
                level_words(params), nothing.half_widths(CONFIDENCE, heavy=plan.heavy), strict=True
            ):
                yield what, float(each.max())
        case "quantile":
            (axis,) = params.layout.axes
            # What lies below a bound is the sum of one node of each level but the first, at most.
            off = deviations(CONFIDENCE, heavy=plan.heavy) * sqrt(
                sum(noise.variance for noise in plan.noises[1:])
            )
            yield (
                Sentence(f"rows below a bound of {axis.slot}", f"低于某一分箱边界({axis.slot})的记录数"),
                off,
            )
        case "keys":
            least = plan.threshold
            yield (
                Sentence(
                    f"values of {params.keys} named from {least:,} noisy persons on (and the minimum group), "
                    "each count",
                    f"加噪后满 {least:,} 人且不少于最小分组才列出的取值({params.keys}), 每个计数",
                ),
                widths[0],
            )
        case _:
            yield counts_words(), widths[0]
