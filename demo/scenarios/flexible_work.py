"""Scenario 5, 灵活就业: what the insured pay on, what they are taxed on, and the businesses they run.

Three departments' lists are joined without anybody seeing a row. Released are moments: means, variances,
correlations and a regression, exactly of those on all three lists, and with noise of those on two.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import sqrt
from typing import TYPE_CHECKING, Any, Final

from demo.city import Moments, load_flexible_work
from demo.collaboration import Department
from demo.narration import Failed
from demo.scenarios.comparing import Cell, Released, read_figures
from demo.scenarios.pictures import Estimate, flexible_work
from demo.scenarios.play import Play

if TYPE_CHECKING:
    import pyarrow as pa

SOURCES: Final = (
    Department("human-resources", "人社 human resources", {"insured": "insured"}),
    Department("tax", "税务 tax", {"income": "income"}),
    Department("market-regulation", "市场监管 market regulation", {"businesses": "businesses"}),
)
DEPARTMENTS: Final = (
    *SOURCES,
    Department("statistics", "统计 statistics (matcher)"),
    Department("cyberspace", "网信 cyberspace (helper)"),
    Department("archives", "档案 archives (dealer)"),
)
TARGETS: Final = {"three": "band", "two": "tax"}
"""What each question has the other columns explain."""

CLOSE: Final = 1e-5
"""How far a figure without noise may be from the pooled fit, as a part of it: amounts are rounded before."""

_REACH: Final = 6
"""Half-widths of a 95 % interval that no noise goes beyond: some twelve deviations."""


@dataclass(frozen=True, slots=True)
class Fit:
    """A least-squares fit with an intercept, of pooled rows.

    Args:
        intercept: where all predictors are zero.
        coefficients: by predictor.
        errors: standard errors by predictor, "" for the intercept's.
    """

    intercept: float
    coefficients: Mapping[str, float]
    errors: Mapping[str, float]


class FlexibleWorkScenario:
    """Exact moments of three lists, noisy ones of two, and what ends without an answer."""

    number: Final = 5
    title: Final = "灵活就业: insurance, income and businesses of the same people"
    departments: Sequence[Department] = DEPARTMENTS

    def play(self, play: Play) -> Mapping[str, Any]:
        """Ask the questions; see `Scenario`."""
        expected = load_flexible_work(play.city)
        refused = {"bank-account": play.refused("bank-account")}
        three, two = (expected.questions[name] for name in ("three", "two"))
        exact = self._exact(play, three)
        refused["two-exact"] = play.refused("two-exact")
        refused["few"] = play.ended("few")
        noisy = self._noisy(play, two)
        right = {name: figures_of(each, TARGETS[name]) for name, each in expected.questions.items()}
        play.write_table(
            ("question", "measure", "a", "b", "value", "low", "high", "withheld", "truth"),
            [
                (name, *cell, *figure.row(), right[name].get(cell))
                for name, found in (("three", exact), ("two", noisy))
                for cell, figure in found.items()
            ],
        )
        flexible_work(
            play.picture,
            {
                cell[1]: Estimate.of(exact[cell], truth)
                for cell, truth in right["three"].items()
                if cell[0] == "coefficient"
            },
            {cell: Estimate.of(noisy[cell], right["two"][cell]) for cell in _SHOWN},
            persons=(three.persons, two.persons),
        )
        return {
            "lists": dict(expected.lists),
            "joined": {name: each.persons for name, each in expected.questions.items()},
            "bounded": {
                name: dict(zip(each.columns, each.bounded, strict=True))
                for name, each in expected.questions.items()
            },
            "refused": refused,
            "coefficient_error": largest_error(exact, right["three"]),
            "noisy": {
                " ".join(part for part in cell if part): {
                    "value": noisy[cell].value,
                    "low": noisy[cell].low,
                    "high": noisy[cell].high,
                    "truth": right["two"][cell],
                }
                for cell in _SHOWN
            },
        }

    @staticmethod
    def _exact(play: Play, truth: Moments) -> Mapping[Cell, Released]:
        """Ask for the exact moments, and hold each of them against the pooled fit."""
        found = figures(play.ask("three", approvers=SOURCES).to_arrow())
        right = figures_of(truth, TARGETS["three"])
        if missing := right.keys() - found.keys():
            raise Failed(f"{len(missing)} figures of the pooled fit were not released")
        off = largest_error(found, right)
        if off > CLOSE:
            raise Failed(f"an exact figure is off the pooled fit by {off:.1e} of it")
        error = f"but for {off:.0e} of themselves" if off else "to the last digit"
        play.say(
            f"{truth.persons:,} people are on all three lists. {len(right)} figures are those of pooled "
            f"rows, which nobody has here, {error}."
        )
        for cell, one in found.items():
            if cell[0] == "coefficient":
                play.say(
                    f"A year more {_WORDS[cell[1]]} goes with {12 * one.value:+.3f} income bands "
                    f"(95 %: {12 * one.low:+.3f} to {12 * one.high:+.3f})."
                )
        return found

    @staticmethod
    def _noisy(play: Play, truth: Moments) -> Mapping[Cell, Released]:
        """Ask for the noisy moments, and hold them against the truth."""
        found = figures(play.ask("two").to_arrow())
        right = figures_of(truth, TARGETS["two"])
        held = 0
        for cell in _SHOWN:
            figure, said = found[cell], " ".join(part for part in cell if part)
            if figure.withheld:
                raise Failed(f"the noisy {said} is withheld")
            held += figure.low <= right[cell] <= figure.high
            if cell[0] in _REGRESSED:
                continue  # AdaSSP shrinks: its interval is about what the same ridge makes without noise
            reach = _REACH * max(figure.high - figure.value, figure.value - figure.low)
            if abs(figure.value - right[cell]) > reach:
                raise Failed(f"the noisy {said} is further from the truth than noise goes")
        play.say(
            f"{truth.persons:,} people are on both lists. {held} of {len(_SHOWN)} intervals of 95 % hold the "
            "truth."
        )
        return found


_WORDS: Final = {"insured": "of insurance", "open": "in business"}
_REGRESSED: Final = frozenset({"coefficient", "intercept"})
_SHOWN: Final[tuple[Cell, ...]] = (
    ("persons", "", ""),
    ("mean", "base", ""),
    ("mean", "tax", ""),
    ("variance", "base", ""),
    ("variance", "tax", ""),
    ("correlation", "base", "tax"),
    ("coefficient", "base", "tax"),
)


def figures(table: "pa.Table") -> dict[Cell, Released]:
    """Return every figure of a released table by measure and columns."""
    found: dict[Cell, Released] = {}
    for measure in dict.fromkeys(table["measure"].to_pylist()):
        found |= {
            (measure, *cell): figure for cell, figure in read_figures(table, ("a", "b"), measure).items()
        }
    return found


def largest_error(found: Mapping[Cell, Released], right: Mapping[Cell, float]) -> float:
    """Return by how much, as a part of itself, the worst of these figures is off."""
    worst = 0.0
    for cell, truth in right.items():
        if found[cell].withheld:
            return float("inf")
        if found[cell].value != truth:
            worst = max(worst, abs(found[cell].value - truth) / (abs(truth) or 1))
    return worst


def figures_of(moments: Moments, target: str) -> dict[Cell, float]:
    """Return what the pooled rows give: moments, and the regression of `target` on the other columns."""
    n, columns = moments.persons, moments.columns
    found: dict[Cell, float] = {("persons", "", ""): float(n)}
    spread = [[_spread(moments, i, j) for j in range(len(columns))] for i in range(len(columns))]
    for i, one in enumerate(columns):
        found["mean", one, ""] = float(Fraction(moments.sums[i], n))
        found["variance", one, ""] = float(spread[i][i] / (n - 1))
        for j in range(i + 1, len(columns)):
            other = columns[j]
            found["covariance", one, other] = float(spread[i][j] / (n - 1))
            found["correlation", one, other] = float(spread[i][j]) / sqrt(spread[i][i] * spread[j][j])
    fit = pooled(moments, target)
    found["intercept", "", target] = fit.intercept
    for slot, value in fit.coefficients.items():
        found["coefficient", slot, target] = value
    for slot, error in fit.errors.items():
        found["standard-error", slot, target] = error
    return found


def _spread(moments: Moments, i: int, j: int) -> Fraction:
    """Return the sum of products of what two columns are away from their means."""
    return moments.products[i][j] - Fraction(moments.sums[i] * moments.sums[j], moments.persons)


def pooled(moments: Moments, target: str) -> Fit:
    """Return the least-squares fit of pooled rows with these moments, in rational numbers to the last step.

    The normal equations with a column of ones; residual variance over n less the number of unknowns.
    """
    to = moments.columns.index(target)
    on = [i for i in range(len(moments.columns)) if i != to]
    sums, products = moments.sums, moments.products
    normal = [
        [Fraction(moments.persons), *(Fraction(sums[i]) for i in on)],
        *([Fraction(sums[i]), *(Fraction(products[i][j]) for j in on)] for i in on),
    ]
    beside = [Fraction(sums[to]), *(Fraction(products[i][to]) for i in on)]
    inverse = _inverse(normal)
    found = [sum((a * b for a, b in zip(row, beside, strict=True)), Fraction()) for row in inverse]
    rest = products[to][to] - sum(a * b for a, b in zip(found, beside, strict=True))
    variance = rest / (moments.persons - len(found))
    errors = [sqrt(variance * inverse[i][i]) for i in range(len(found))]
    names = [moments.columns[i] for i in on]
    return Fit(
        float(found[0]),
        dict(zip(names, map(float, found[1:]), strict=True)),
        dict(zip(("", *names), errors, strict=True)),
    )


def _inverse(matrix: list[list[Fraction]]) -> list[list[Fraction]]:
    """Return the inverse, by Gauss and Jordan.

    Raises:
        ValueError: it is singular.
    """
    size = len(matrix)
    rows = [[*row, *(Fraction(int(i == j)) for j in range(size))] for i, row in enumerate(matrix)]
    for at in range(size):
        pivot = next((i for i in range(at, size) if rows[i][at]), None)
        if pivot is None:
            raise ValueError("the columns determine each other")
        rows[at], rows[pivot] = rows[pivot], rows[at]
        rows[at] = [value / rows[at][at] for value in rows[at]]
        for i in range(size):
            if i != at and rows[i][at]:
                by = rows[i][at]
                rows[i] = [mine - by * theirs for mine, theirs in zip(rows[i], rows[at], strict=True)]
    return [row[size:] for row in rows]
