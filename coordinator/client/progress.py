"""How a job goes, on stderr: live bars in a terminal, one line per change elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from coordinator.client.view import RunStatus, View
from policies.words import measure

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from protocols.wire import Verdict


@contextmanager
def bars(console: "Console | None" = None) -> Iterator[Callable[[View], None]]:
    """Give a function that shows a view; what a terminal shows last stays there."""
    from rich.console import Console

    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True))
        return
    from rich.live import Live

    with Live(console=console, refresh_per_second=8) as live:
        yield lambda view: live.update(_table(view))


class _Lines:
    """Prints what changed since the last view."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._job = ""
        self._runs: dict[str, str] = {}

    def __call__(self, view: View) -> None:
        for run in view.runs:
            line = f"{run.node} ({run.role}): {says(run)}"
            if self._runs.get(run.node) != line:
                self._runs[run.node] = line
                self._write(line)
        job = f"job {view.job[:19]}…: {view.state}, attempt {view.attempt}"
        job += f": {view.sentence}" if view.sentence else ""
        if job != self._job:
            self._job = job
            self._write(job)


_EXPLAINED: Final = ("REFUSED", "FAILED", "LOST", "TIMED_OUT", "EXPIRED")
"""States in which a run's sentence tells more than the state."""


def says(run: RunStatus) -> str:
    """Return a run's state in one line."""
    if run.state == "AWAITING_APPROVAL":
        said = run.said
        if run.approvals_given >= run.approvals_needed:
            return f"{run.state}, {run.sentence}" if run.sentence else run.state
        who = f", still by {', '.join(said.approvers)}" if said is not None and said.approvers else ""
        return f"{run.state}, {run.approvals_given} of {run.approvals_needed} approvals{who}{_costs(said)}"
    if run.state == "ACCEPTED":
        return f"{run.state}{_costs(run.said)}"
    if run.state in ("RUNNING", "RELEASING") and run.phase:
        share = f" {100 * run.done // run.total} %" if run.total else ""
        figures = "".join(f", {name} {value}" for name, value in run.figures.items())
        return f"{run.state}, {run.phase}{share}{figures}"
    if run.state == "CANCELLED":
        # What ended it lies elsewhere and stands there; here the code says which kind of reason.
        return f"{run.state} ({run.code})" if run.code else run.state
    return f"{run.state}, {run.sentence}" if run.sentence and run.state in _EXPLAINED else run.state


def _costs(said: "Verdict | None") -> str:
    if said is None or not said.costs:
        return ""
    return (
        f"; costs {', '.join(f'{measure(each.notion, each.cost)[0]} ({each.budget})' for each in said.costs)}"
    )


def _table(view: View) -> "Table":
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_row(
        Text(f"job {view.job[:19]}…", style="bold"),
        "",
        Text(f"{view.state}  attempt {view.attempt}", style=_style(view.state)),
        Text(view.sentence),
    )
    for run in view.runs:
        total = run.total or 1
        done = total if run.state == "DONE" else min(run.done, total)
        table.add_row(
            Text(run.node),
            Text(run.role),
            ProgressBar(total=total, completed=done, width=24),
            Text(says(run)),
        )
    return table


def _style(state: str) -> str:
    return {
        "SUCCEEDED": "green",
        "FAILED": "red",
        "REFUSED": "red",
        "CANCELLED": "yellow",
        "EXPIRED": "yellow",
    }.get(state, "cyan")
