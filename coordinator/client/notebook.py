"""How jobs and releases show themselves in a notebook; every text that comes from elsewhere is escaped."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Final

from coordinator.client.progress import says
from coordinator.client.verdicts import cost_line, leaving_line
from coordinator.client.view import View

if TYPE_CHECKING:
    from coordinator.client.explanation import Explanation
    from coordinator.client.release import Release

SHOWN_ROWS: Final = 50


def job_html(view: View) -> str:
    """Return a job's state and its runs as HTML."""
    head = f"<p><b>{escape(view.job_type)}</b> {escape(view.job[:19])}… — {escape(view.state)}"
    if view.sentence:
        head += f": {escape(view.sentence)}"
    if view.hint:
        head += f"<br><i>{escape(view.hint)}</i>"
    about = [
        f"{escape(view.purpose)}, {escape(view.legal_basis)}",
        *([escape(view.expected_use)] if view.expected_use else []),
        *([f"answered by {escape(view.answered_by)}"] if view.answered_by else []),
        *(f"outcome: {escape(str(outcome))}" for outcome in view.outcomes),
        *(
            [f"{view.doubtful} outcome(s) not shown: no key in the roster vouches for them"]
            if view.doubtful
            else []
        ),
    ]
    rows = [(run.node, run.role, says(run)) for run in view.runs]
    return f"{head}<br>{'<br>'.join(about)}</p>" + _table(("node", "role", "state"), rows)


def explanation_html(explanation: "Explanation") -> str:
    """Return the dry answers as HTML, both languages where they differ."""
    spec = explanation.spec
    head = f"<p><b>{escape(spec.job_type)}</b> {escape(spec.purpose)}, {escape(spec.legal_basis)}<br>"
    head += f"{escape(spec.expected_use)}</p>"
    rows = []
    for answer in explanation.answers:
        said = answer.verdict
        rows.append(
            (
                answer.headline("zh"),
                answer.headline("en"),
                ""
                if said is None
                else f"{said.rule} {said.sentence} {said.sentence_zh} {said.hint} {said.hint_zh}",
                "" if said is None else "; ".join(cost_line(line, "en") for line in said.costs),
                "" if said is None else "; ".join(leaving_line(line, "en") for line in said.leaves),
            )
        )
    table = _table(("试答", "dry answer", "reason", "cost", "leaves"), rows)
    foot = f"<p>{escape(explanation.next('zh'))}<br>{escape(explanation.next('en'))}</p>"
    return head + table + foot


def release_html(release: "Release") -> str:
    """Return a release's first rows, facts and statement as HTML; of a model its card in words."""
    if release.is_model:
        model = release.model()
        texts = (escape("\n".join(model.describe(lang))) for lang in ("zh", "en"))
        return "".join(f"<pre>{text}</pre>" for text in texts)
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
