"""Released quality of several departments' tables looked at again: what follows, what is small, what noise.

A column is a table of its own of three levels: reasons within parts within all rows. So each is looked at as
a table of streets, districts and a city is.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from audit.disclosure import Problem, examine
from audit.disclosure_tables import NEAR, NUMBERS, Rows
from protocols.errors import InputError
from protocols.jobs.quality import Params, published
from protocols.quality_sums import flat
from protocols.statistics.suppress import ROUNDING
from protocols.wire import Constraints, JobSpec


def examine_quality(
    columns: Mapping[str, Sequence[Any]],
    facts: Mapping[str, Any] | None,
    spec: JobSpec,
    limits: Constraints,
) -> list[Problem]:
    """Return what is wrong with a table of `quality/1`.

    (1) It has the figures of the job, each once and in order. (2) What stands beside it is what the job makes
    of it, no more and no less: one fact more could be a number that is withheld. (3) Exact: published numbers
    are rounded, no withheld one follows or is known to be small, none of fewer rows than a group is
    published, and shares are those of the published numbers. (4) With noise: no number of fewer than a group
    of noisy rows is published, and the intervals are those of the noise that the job paid for.

    That a number is of departments enough, no table tells.

    Args:
        columns: as the release has them.
        facts: what is stated beside the table; None where nothing is at hand.
        spec: the job that asked for it.
        limits: what all participants demanded.
    """
    try:
        params = Params.of(spec)
        # A table of other numbers: the same texts, and the same beside it.
        made = published(params, limits, np.zeros(params.words, dtype=np.int64))
        texts = {name: each for name, each in made.table.columns.items() if name not in NUMBERS}
        rows = Rows.of(columns, texts, intervals=params.budget is not None)  # (1)
    except InputError as error:
        return [Problem(error.code, error.message)]
    # (2)
    counted = rows.withheld[: params.figures]
    stated = {**made.facts, "withheld_cells": int(counted.sum())}
    problems = [
        Problem("wrong-facts", f"its {key} is not what the job makes it")
        for key in stated
        if facts is not None and facts.get(key) != stated[key]
    ]
    if facts is not None and facts.keys() - stated.keys():
        problems.append(Problem("wrong-facts", "more is stated beside it than the job makes"))
    least = int(made.facts["shown_from"])
    if params.budget is None:
        return problems or _exact(params, rows, least)
    return problems or _noisy(params, rows, limits)


def _exact(params: Params, rows: Rows, least: int) -> list[Problem]:
    """(3)"""
    figures = params.figures
    value, hidden = rows.value[:figures], rows.withheld[:figures]
    shares, unsaid = rows.value[figures:], rows.withheld[figures:]
    none = bool(hidden[0]) or value[0] == 0
    if (unsaid != (hidden[1:] | none)).any():
        return [Problem("bad-table", "a share is withheld where its number is not, or the other way round")]
    said = ~unsaid
    if (np.abs(shares[said] * value[0] - value[1:][said]) > NEAR * np.maximum(1, value[0])).any():
        return [Problem("bad-table", "a share is not the quotient of the published numbers")]
    there = value[~hidden]
    if (there < 0).any() or (there % ROUNDING).any():
        return [Problem("not-rounded", f"a number is no multiple of {ROUNDING}")]
    if hidden[0]:
        # Of all rows nothing is said, so what any column adds up to may not be, either.
        what = "a number is published where that of all rows is withheld"
        return [] if hidden.all() else [Problem("recoverable", what)]
    places = flat(params.columns)
    counts = [-1 if dark else int(number) for number, dark in zip(value, hidden, strict=True)]
    problems: list[Problem] = []
    for column in params.columns:
        cells = [("city", "", "", counts[0])]
        for place, count in zip(places, counts, strict=True):
            if place.column != column.slot:
                continue
            if place.reason:
                cells.append(("street", place.part, place.reason, count))
                continue
            cells.append(("district", place.part, "", count))
            if not column.parts[place.part]:
                cells.append(("street", place.part, place.part, count))
        names = ("level", "district", "street", "count")
        table: dict[str, list[Any]] = {name: [cell[at] for cell in cells] for at, name in enumerate(names)}
        table["withheld"] = [cell[3] < 0 for cell in cells]
        problems += [
            Problem(each.code, f"in column {column.slot}: {_said(each.what)}")
            for each in examine(table, minimum=least)
        ]
    return problems


def _said(what: str) -> str:
    """Return words about streets as words about figures."""
    for old, new in (
        ("persons", "rows"),
        ("street", "reason"),
        ("district", "part"),
        ("the city", "all rows"),
        ("a city", "all rows"),
    ):
        what = what.replace(old, new)
    return what


def _noisy(params: Params, rows: Rows, limits: Constraints) -> list[Problem]:
    """(4) What was rounded off is not known: an interval lies between those for the least and most totals."""
    there, problems = ~rows.withheld, []
    value = np.where(there, rows.value, 0)
    noises = params.noise()[0]
    most = params.sums(bytes(32)).bound // max(noise.scale for noise in noises)
    if (value < 0).any() or (value != np.rint(value)).any() or (value > most).any():
        return [Problem("bad-table", "a number is none that counts with noise make")]
    if (there & ~((rows.low <= rows.value) & (rows.value <= rows.high))).any():
        problems.append(Problem("wrong-interval", "a value is outside its own interval"))
    ends = []
    for up in (False, True):
        parts, start = [], 0
        for noise in noises:
            off = (noise.scale - 1) // 2 if up else -(noise.scale // 2)
            parts.append(value[start : start + noise.size].astype(np.int64) * noise.scale + off)
            start += noise.size
        table = published(params, limits, np.concatenate(parts)).table.columns
        if (there & table["withheld"]).any():
            return [*problems, Problem("small-cell", "a number of fewer rows than a group is published")]
        ends.append((table["low"], table["high"]))
    (least_low, least_high), (most_low, most_high) = ends
    fits = (least_low <= rows.low) & (rows.low <= most_low)
    fits &= (least_high <= rows.high) & (rows.high <= most_high)
    if (there & ~fits).any():
        what = "an interval is not the one of the noise that the job's budget pays for"
        problems.append(Problem("wrong-interval", what))
    return problems
