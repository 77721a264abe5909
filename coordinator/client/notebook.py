"""How jobs and releases show themselves in a notebook; every text that comes from elsewhere is escaped."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Final

from coordinator.client.progress import says
from coordinator.client.view import View

if TYPE_CHECKING:
    from coordinator.client.release import Release

SHOWN_ROWS: Final = 50


def job_html(view: View) -> str:
    """Return a job's state and its runs as HTML."""
    head = f"<p><b>{escape(view.job_type)}</b> {escape(view.job[:19])}… — {escape(view.state)}"
    if view.sentence:
        head += f": {escape(view.sentence)}"
    if view.hint:
        head += f"<br><i>{escape(view.hint)}</i>"
    rows = [(run.node, run.role, says(run)) for run in view.runs]
    return head + "</p>" + _table(("node", "role", "state"), rows)


def release_html(release: "Release") -> str:
    """Return a release's first rows, facts and statement as HTML."""
    table = release.to_arrow()
    columns = [column.to_pylist() for column in table.slice(0, SHOWN_ROWS).columns]
    body = _table(table.column_names, zip(*columns, strict=True))
    facts = ", ".join(f"{escape(name)}: {escape(str(value))}" for name, value in release.facts.items())
    more = (
        f"<p>{table.num_rows} rows, the first {SHOWN_ROWS} shown</p>" if table.num_rows > SHOWN_ROWS else ""
    )
    return f"<p><b>{escape(release.name)}</b> — {escape(release.statement)}<br>{facts}</p>{body}{more}"


def _table(names: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    head = "".join(f"<th>{escape(str(name))}</th>" for name in names)
    body = "".join(
        "<tr>" + "".join(f"<td>{'' if cell is None else escape(str(cell))}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
