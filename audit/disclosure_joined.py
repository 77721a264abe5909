"""Released statistics of joined persons looked at again: exact tables for what follows, noisy ones for noise.

What a table has to look like follows from the job that asked for it and from what its participants demanded;
never from the table itself. A number whose noise was left out looks like one that has it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from audit.disclosure import Problem
from audit.disclosure_tables import NEAR, NUMBERS, Rows, examine_exact
from protocols.errors import InputError
from protocols.ids import Role
from protocols.jobs.joined_moments import Params as Moments
from protocols.jobs.joined_table import Params, Total, exact_table, least_room, noisy_table
from protocols.joined.moments import again, places_of
from protocols.statistics.suppress import ROUNDING
from protocols.tables.released import PERSONS, as_texts, mean_of, sum_of
from protocols.wire import Constraints, JobSpec

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_ROUGH: Final = 1e-6
"""The same for figures that other processors reckon otherwise in the last digits."""

_FAR: Final = float(1 << 60)
"""No total is beyond it: words hold no more."""

_FINER: Final = 100
"""Steps of an exact mean in one of its amounts."""

_LAST: Final = 2.0**-50
"""By which part a float may be off that stands for a fraction."""

_WHOLE: Final = 51
"""Up to so many bits a whole number follows from the float of its quotient by a power of ten."""


def examine_joined_table(
    columns: Mapping[str, Sequence[Any]],
    facts: Mapping[str, Any] | None,
    spec: JobSpec,
    limits: Constraints,
) -> list[Problem]:
    """Return what is wrong with a table of `joined-table/1`.

    Args:
        columns: as the release has them.
        facts: what is stated beside the table; None for a CSV file alone.
        spec: the job that asked for it.
        limits: what all participants demanded.
    """
    try:
        params = Params.of(spec)
        if params.budget is None:
            return _exact(columns, facts, params, limits)
        return _noisy(columns, facts, params, limits)
    except InputError as error:
        return [Problem(error.code, error.message)]


def against(facts: Mapping[str, Any] | None, expected: Mapping[str, int | str]) -> list[Problem]:
    """Return what is stated beside a table and is not what the job makes it, no more and no less.

    One fact more could be the exact number. None: a CSV file alone, beside which nothing is ever stated.
    """
    if facts is None:
        return []
    wrong = [key for key, fact in expected.items() if _differ(facts.get(key), fact)]
    problems = [Problem("wrong-facts", f"its {key} is not what the job makes it") for key in wrong]
    if facts.keys() - expected.keys():
        problems.append(Problem("wrong-facts", "more is stated beside it than the job makes"))
    return problems


def _differ(stated: object, expected: int | str) -> bool:
    return type(stated) is not type(expected) or stated != expected


# -- exact ---------------------------------------------------------------------------------------------------


def _exact(
    columns: Mapping[str, Sequence[Any]], facts: Mapping[str, Any] | None, params: Params, limits: Constraints
) -> list[Problem]:
    """(1) What holds of every exact table, see `examine_exact`. (2) What stands beside it is what the job
    makes of it. (3) Sums and means are such as so many persons have, and in none one may stand out.
    """
    # (1) Facts are looked at below, more strictly.
    problems = examine_exact(columns, {}, params, limits, persons=True)
    if any(problem.code == "bad-table" for problem in problems):
        return problems
    cells = [np.zeros(params.layout.shape, dtype=np.int64) for _ in params.totals]
    made = exact_table(params, limits, cells)
    texts = {name: each for name, each in made.table.columns.items() if name not in NUMBERS}
    rows = Rows.of(columns, texts, intervals=False)
    if (np.abs(rows.value[~rows.withheld]) > _FAR).any():
        return [*problems, Problem("bad-table", "a number is none that whole totals make")]
    value = dict(zip(params.figures, rows.value.reshape(len(params.figures), -1), strict=True))
    dark = dict(zip(params.figures, rows.withheld.reshape(len(params.figures), -1), strict=True))
    # (2)
    problems += against(facts, {**made.facts, "withheld_cells": int(dark[PERSONS].sum())})
    # (3)
    problems += _sums(value, dark, params, int(made.facts["minimum_group"]))
    return problems


def _sums(
    value: Mapping[str, Floats], dark: Mapping[str, Bools], params: Params, minimum: int
) -> list[Problem]:
    """Hold sums and means of every published cell against each number of persons that rounds to its own.

    There has to be one of whom all of them can be, means rounded as they have to be; and one of whom nobody
    stands out in any, as `exact_table` keeps to.
    """
    there = ~dark[PERSONS] & (value[PERSONS] > 0)
    shown = np.where(there, value[PERSONS], 0)
    # What it takes for totals of so many persons to stay whole numbers of 64 bits.
    if float(shown.max(initial=0)) * max(total.most for total in params.totals) > _FAR:
        return [Problem("bad-table", "a number is none that whole totals make")]
    counts = shown.astype(np.int64)
    fits, safe = ~there, ~there
    for off in range(-(ROUNDING // 2), (ROUNDING - 1) // 2 + 1):
        persons = counts + off
        may = can = persons >= 1
        for total in params.totals[1:]:
            least, most = _range(total, value, dark, persons)
            room = least_room(total, minimum)
            may = may & (least <= most)
            can = can & (
                np.maximum(least, total.low * persons + room) <= np.minimum(most, total.high * persons - room)
            )
        fits, safe = fits | may, safe | can
    if not fits.all():
        what = "its sums and means are none that so many persons have within the bounds, rounded as they are"
        return [Problem("does-not-add-up", what)]
    if not safe.all():
        what = "a sum is published in which one person may stand out, by the bounds of its amounts"
        return [Problem("dominated", what)]
    return []


def _range(
    total: Total, value: Mapping[str, Floats], dark: Mapping[str, Bools], persons: Ints
) -> tuple[Ints, Ints]:
    """Return the least and the greatest that a total of so many persons can be, as its figures show it.

    Where the first is above the second, there is none.
    """
    least, most = total.low * persons, total.high * persons
    for name in total.figures:
        mean = name == mean_of(total.name)
        step = 10**total.decimals * (_FINER if mean else 1)
        # In whole steps: of sums no more than words hold, of means none that is out of bounds.
        ends = (_FINER * total.low - 1, _FINER * total.high + 1) if mean else (-_FAR, _FAR)
        seen = np.where(dark[name], 0, value[name])
        nearest = np.rint(seen * step)
        real = (nearest >= ends[0]) & (nearest <= ends[1])
        real &= np.abs(nearest / step - seen) <= _LAST * np.abs(seen)
        steps = np.where(real, nearest, 0).astype(np.int64)
        # Beyond 2^51 a float may be that of a neighbour.
        near = np.abs(steps) >> _WHOLE
        low, high = steps - near, steps + near
        if mean:
            low, high = _halves(low, -1, persons), _halves(high, 1, persons) - 1
        least = np.where(dark[name], least, np.where(real, np.maximum(least, low), most + 1))
        most = np.where(dark[name], most, np.minimum(most, high))
    return least, most


def _halves(means: Ints, more: int, persons: Ints) -> Ints:
    """Return the least whole number from persons·(2·means + more)/(2·`_FINER`) on.

    A mean is the whole number of steps nearest to its quotient, the larger of two equally near.
    """
    whole, left = np.divmod(means, _FINER)
    return whole * persons - -(2 * left + more) * persons // (2 * _FINER)


# -- noisy ---------------------------------------------------------------------------------------------------


def _noisy(
    columns: Mapping[str, Sequence[Any]], facts: Mapping[str, Any] | None, params: Params, limits: Constraints
) -> list[Problem]:
    """(1) It has the cells of the job, and what stands beside it is what the job makes of it. (2) A cell is
    shown, or withheld, in all its figures, and none of too few noisy persons is shown. (3) Numbers are those
    of whole totals, and intervals those of the noise that the job paid for. Where a value was cut, by how
    much is not known: its interval may be shorter.
    """
    shape = params.layout.shape
    names = params.figures
    made = noisy_table(params, limits, [np.zeros(shape, dtype=np.int64) for _ in params.totals])
    texts = {name: each for name, each in made.table.columns.items() if name not in NUMBERS}
    # (1)
    rows = Rows.of(columns, texts, intervals=True)
    if (np.abs(np.stack([rows.value, rows.low, rows.high])[:, ~rows.withheld]) > _FAR).any():
        raise InputError("a number is none that whole totals make", code="bad-table")
    dark = rows.withheld.reshape(len(names), -1)
    problems = against(facts, {**made.facts, "withheld_cells": int(dark[0].sum())})
    # (2)
    if (dark != dark[0]).any():
        problems.append(
            Problem("not-withheld", "a cell is withheld in one of its figures, and not in another")
        )
        return problems
    there = ~dark[0]
    value = dict(zip(names, np.where(rows.withheld, 0, rows.value).reshape(len(names), -1), strict=True))
    counts = value[PERSONS]
    if (there & (counts < int(made.facts["shown_from"]))).any():
        problems.append(Problem("small-cell", "a number of fewer than the smallest group is published"))
        return problems
    # (3)
    totals, free = [_whole(counts)], {PERSONS: np.zeros(len(counts), dtype=np.bool_)}
    for total in params.totals[1:]:
        step, summed, mean = 10**total.decimals, sum_of(total.name), mean_of(total.name)
        if summed in value:
            # A sum that cannot be below zero was cut there.
            cut = (value[summed] == 0) & (total.low >= 0)
            whole = _whole(value[summed] * step)
        else:
            cut = (value[mean] * step <= total.low) | (value[mean] * step >= total.high)
            whole = _whole((value[mean] * step - total.centre) * np.maximum(counts, 1))
        totals.append(np.where(there, whole, 0))
        free |= dict.fromkeys(total.figures, cut)
    again = noisy_table(params, limits, [each.reshape(shape) for each in totals]).table.columns
    unknown = np.concatenate([free[name] for name in names])
    near = NEAR * np.maximum(1, np.abs(rows.value))
    shown = ~rows.withheld
    off = np.zeros(len(shown), dtype=np.bool_)
    for name, numbers in (("value", rows.value), ("low", rows.low), ("high", rows.high)):
        off |= np.abs(numbers - again[name]) > near
    longer = (rows.low < again["low"] - near) | (rows.high > again["high"] + near)
    wrong = np.where(unknown, longer & ~_of_means(names, len(counts)), off)
    outside = ~((rows.low <= rows.value) & (rows.value <= rows.high))
    if (shown & (wrong | outside)).any():
        what = "an interval is not the one of the noise that the job's budget pays for"
        problems.append(Problem("wrong-interval", what))
    return problems


def _of_means(names: Sequence[str], cells: int) -> Bools:
    """Return which rows are means: of one that was cut, no interval is known."""
    return np.repeat([name.startswith("mean(") for name in names], cells)


def _whole(values: Floats) -> Ints:
    """Return totals.

    Raises:
        InputError: `bad-table`: numbers of no whole totals.
    """
    nearest = np.rint(values)
    if (np.abs(values - nearest) > 1e-6 * np.maximum(1, np.abs(values))).any():
        raise InputError("a number is none that whole totals make", code="bad-table")
    return nearest.astype(np.int64)


# -- moments -------------------------------------------------------------------------------------------------


def examine_joined_moments(
    columns: Mapping[str, Sequence[Any]],
    facts: Mapping[str, Any] | None,
    spec: JobSpec,
    limits: Constraints,
    keys: Mapping[Role, int],
) -> list[Problem]:
    """Return what is wrong with a table of `joined-moments/1`.

    (1) It has the figures of the job, each once and in order; of a CSV file alone no more can be said than
    that, and whether values are in their intervals. (2) The moments beside it are of enough persons, such as
    persons can have, and of columns that may be shown together; all else that is stated is what the job
    makes of them. (3) So is every figure.

    Args:
        columns: as the release has them.
        facts: what is stated beside the table; None for a CSV file alone.
        spec: the job that asked for it.
        limits: what all participants demanded.
        keys: the distinct keys of each list, as admitted.
    """
    try:
        params = Moments.of(spec)
        question = params.question(min(keys[owner] for owner in params.lists.owners), limits)
        # (1)
        texts = {
            name: as_texts(each)
            for name, each in zip(("measure", "a", "b"), zip(*places_of(question), strict=True), strict=True)
        }
        rows = Rows.of(columns, texts, intervals=True)
        if facts is None:
            return _within(rows)
        # (2)
        if not facts:
            return [Problem("wrong-facts", "no moments are stated beside it")]
        made = again(question, facts)
    except InputError as error:
        return [Problem(error.code, error.message)]
    except (ArithmeticError, ValueError):  # of numbers that nobody's rows have
        return [Problem("bad-table", "the facts beside it are moments that nothing can be reckoned from")]
    # How fine numbers are follows from how long the lists were, not from the table.
    problems = against(facts, {**made.facts, "largest_q": question.columns[0].most})
    least = int(made.facts["fewest_persons"])
    if int(made.facts["n"]) < least:
        problems.append(Problem("small-cell", f"moments of fewer than {least} persons are published"))
    # (3)
    expected = made.table.columns
    if (rows.withheld & ~expected["withheld"]).any():
        problems.append(Problem("bad-table", "a figure is withheld that the moments beside it make"))
    if (expected["withheld"] & ~rows.withheld).any():
        problems.append(Problem("not-withheld", "a figure is published that has to be withheld"))
    both = ~rows.withheld & ~expected["withheld"]
    for name, numbers, code in (
        ("value", rows.value, "does-not-add-up"),
        ("low", rows.low, "wrong-interval"),
        ("high", rows.high, "wrong-interval"),
    ):
        # Exact figures are the doubles nearest to what moments make; noisy ones were reckoned in doubles.
        ends = np.abs(np.stack([expected["value"], expected["low"], expected["high"]]))
        near = NEAR * np.abs(expected[name]) if question.noise is None else _ROUGH * ends.max(axis=0)
        if (both & (np.abs(numbers - expected[name]) > near)).any():
            problems.append(Problem(code, f"a {name} is not what the moments beside the table make"))
    return problems


def _within(rows: Rows) -> list[Problem]:
    """Return whether a value is outside its own interval."""
    if (~rows.withheld & ~((rows.low <= rows.value) & (rows.value <= rows.high))).any():
        return [Problem("wrong-interval", "a value is outside its own interval")]
    return []
