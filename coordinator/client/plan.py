"""What a release with noise would be worth at which price, reckoned on the analyst's own machine.

Nobody is asked: how exact a figure is follows from the job alone, so it can be read before anything is spent.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fractions import Fraction
from math import floor, log10
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from coordinator.client.verdicts import Language
from coordinator.files import read_bounded
from policies.jobfile import suppose_job
from policies.words import grouped
from protocols.dp.cost import Cost, Notion, decimal_up
from protocols.errors import InputError
from protocols.jobs import job_type
from protocols.jobs.job_type import Forecast, Forecaster
from protocols.tables.layout import decimal_text, fraction
from protocols.wire import MAX_JOB_BYTES, JobSpec

if TYPE_CHECKING:
    from rich.console import Console

Param = Literal["rho", "epsilon"]
"""The param that says how much privacy loss a job is given."""

Amount = str | int | float | Fraction

AMOUNTS: Final[dict[Param, tuple[str, ...]]] = {
    "rho": ("0.01", "0.03", "0.1", "0.3", "1"),
    "epsilon": ("0.1", "0.3", "1", "3", "10"),
}
"""What is shown where nobody names amounts."""

DELTA: Final = Fraction(1, 10**9)
"""The δ at which ε is shown."""

MAX_AMOUNTS: Final = 50

_MEASURES: Final[dict[str, Notion]] = {
    "ρ": "zcdp",
    "ε": "pure-dp",
    "ε (δ = 1e-9)": "approximate-dp",
}
"""What budgets count in, as it is written above the costs."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One amount of privacy loss: what it would cost each department, and how exact every figure would be.

    `own`: it is the amount that the job's file names.
    """

    amount: Fraction
    own: bool
    cost: Cost
    figures: tuple[Forecast, ...]

    @property
    def costs(self) -> dict[str, str | None]:
        """The cost in what budgets count in, rounded up to four digits; None where it has no such measure."""
        found = {name: self.cost.amount(notion, DELTA) for name, notion in _MEASURES.items()}
        return {name: None if value is None else _up(value, 4) for name, value in found.items()}


@dataclass(frozen=True, slots=True)
class Plan:
    """What each of several amounts of privacy loss would buy, the smallest first."""

    spec: JobSpec
    param: Param
    choices: tuple[Choice, ...]

    def head(self, language: Language) -> list[str]:
        """Return what is planned, in three lines."""
        spec, sources = self.spec, len(self.spec.inputs)
        if language == "zh":
            noise = f"{sources} 个部门共同加噪" if sources > 1 else "由一个部门加噪"
            return [
                f"{spec.job_type}, {spec.purpose}: 各 {self.param} 可换得的精度",
                "  仅在本机推算: 未询问任何节点, 未占用额度。",
                f"  {noise}; 误差仅指噪声, 不含截断和每人计入行数的限制。",
            ]
        noise = f"the noise of {sources} departments together" if sources > 1 else "one department's noise"
        return [
            f"{spec.job_type}, {spec.purpose}: what each {self.param} would buy",
            "  reckoned here: nobody was asked, nothing is spent",
            f"  {noise}; clamped amounts and bounded contributions come on top",
        ]

    def lines(self, language: Language) -> list[str]:
        """Return the whole page as plain lines."""
        zh = language == "zh"
        found = self.head(language)
        for choice in self.choices:
            costs = ", ".join(_priced(name, text) for name, text in choice.costs.items() if text is not None)
            own = f" ({_own(language)})" if choice.own else ""
            found += [
                "",
                f"{self.param} = {decimal_text(choice.amount)}{own}: {'占用' if zh else 'costs'} {costs}",
            ]
            for each in choice.figures:
                width = _width(each.within)
                found.append(
                    f"  {each.what_zh}: 误差不超过 ±{width} (95 %)"
                    if zh
                    else f"  {each.what}: within ±{width} with 95 %"
                )
        return found

    def show(self, console: "Console", language: Language) -> None:
        """Print it as a table."""
        from rich.table import Table

        zh = language == "zh"
        shown = [name for name in _MEASURES if any(choice.costs[name] for choice in self.choices)]
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
        table.add_column(self.param, justify="right", style="bold")
        table.add_column("指标" if zh else "figure")
        table.add_column("误差 (95 %)" if zh else "within (95 %)", justify="right")
        for name in shown:
            table.add_column(f"{'占用' if zh else 'costs'} {name}", justify="right")
        marked = any(choice.own for choice in self.choices)
        if marked:
            table.add_column()
        for choice in self.choices:
            # What belongs to the amount stands beside its first figure alone.
            amount = decimal_text(choice.amount)
            costs = [choice.costs[name] or "-" for name in shown]
            if marked:
                costs.append(_own(language) if choice.own else "")
            for each in choice.figures:
                what = each.what_zh if zh else each.what
                table.add_row(amount, what, f"±{_width(each.within)}", *costs)
                amount, costs = "", [""] * len(costs)
        console.print(*self.head(language), "", sep="\n", markup=False, highlight=False, soft_wrap=True)
        console.print(table)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON; `cost` is the exact text that approvals sign."""
        return {
            "job_type": self.spec.job_type,
            "purpose": self.spec.purpose,
            "param": self.param,
            "sources": len(self.spec.inputs),
            "confidence": "0.95",
            "delta": decimal_text(DELTA),
            "choices": [
                {
                    "amount": decimal_text(choice.amount),
                    "own": choice.own,
                    "cost": choice.cost.encode(),
                    "costs": {notion: choice.costs[name] for name, notion in _MEASURES.items()},
                    "figures": [
                        {"what": each.what, "what_zh": each.what_zh, "within": each.within}
                        for each in choice.figures
                    ],
                }
                for choice in self.choices
            ],
        }

    def __str__(self) -> str:
        return "\n".join(self.lines("en"))


def plan(
    job: str | Path | JobSpec,
    *,
    rho: Iterable[Amount] = (),
    epsilon: Iterable[Amount] = (),
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Plan:
    """Return how exact a job's figures would be for each amount of privacy loss. Nobody is asked.

    Args:
        job: the path of a job.toml, or a finished spec.
        rho: amounts of it; without any, and without `epsilon`, a few usual ones and the job's own.
        epsilon: amounts of it instead.
        now: when the job is supposed to be asked.

    Raises:
        InputError: the file, the job or an amount is not usable; `no-noise`: the job type adds none.
        Refused: `unknown-job-type`.
    """
    spec = job if isinstance(job, JobSpec) else suppose_job(read_bounded(Path(job), MAX_JOB_BYTES), now())
    known = job_type(spec.job_type)
    if not isinstance(known, Forecaster):
        raise InputError(
            f"{spec.job_type} adds no noise, so no amount of privacy loss makes it more exact",
            code="no-noise",
            hint="minshu explain says what it would cost; to choose an accuracy, ask for a release/1",
        )
    named: dict[Param, list[Fraction]] = {
        "rho": _amounts(rho, "rho"),
        "epsilon": _amounts(epsilon, "epsilon"),
    }
    if named["rho"] and named["epsilon"]:
        raise InputError(
            "amounts of rho and of epsilon", code="bad-privacy", hint="plan with one of them at a time"
        )
    own: Param = "epsilon" if "epsilon" in spec.params and "rho" not in spec.params else "rho"
    param: Param = next((name for name, amounts in named.items() if amounts), own)
    if param not in spec.params:
        # Planned with the other one: the file's own amount does not count.
        params = {name: value for name, value in spec.params.items() if name not in AMOUNTS}
        spec = replace(spec, params={**params, param: AMOUNTS[param][0]})
        mine = None
    else:
        mine = fraction(spec.params[param], f"params.{param}")
    known.check(spec)
    wanted = set(named[param] or [*map(Fraction, AMOUNTS[param]), *([] if mine is None else [mine])])
    found = known.forecast(spec, sorted(wanted))
    return Plan(spec, param, tuple(_choice(amount, mine, found) for amount in sorted(wanted)))


def _choice(amount: Fraction, mine: Fraction | None, forecasts: Sequence[Forecast]) -> Choice:
    figures = tuple(each for each in forecasts if each.amount == amount)
    return Choice(amount, amount == mine, figures[0].cost, figures)


def _amounts(given: Iterable[Amount], param: Param) -> list[Fraction]:
    found = [each if isinstance(each, Fraction) else fraction(str(each), param) for each in given]
    if len(found) > MAX_AMOUNTS:
        raise InputError(
            f"{len(found)} amounts of {param}, at most {MAX_AMOUNTS} are planned at once",
            code="bad-privacy",
            hint="name fewer of them",
        )
    return found


def _own(language: Language) -> str:
    return "任务文件所写" if language == "zh" else "the job's own"


def _priced(name: str, text: str) -> str:
    sign, _, at = name.partition(" ")
    return " ".join(part for part in (f"{sign} = {text}", at) if part)


def _width(within: float) -> str:
    return grouped(_up(Fraction(within), 3))


def _up(value: Fraction, digits: int) -> str:
    """Return a decimal of so many digits, or whole where it is larger, that is not below the value."""
    if not value:
        return "0"
    return decimal_up(value, max(0, digits - 1 - floor(log10(value))))
