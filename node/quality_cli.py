"""`minshu-node quality`: how good the department's datasets are, and what the policy says to that."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from node.page import OK, Command, ask_node, home_of, print_result, utc_now

if TYPE_CHECKING:
    from node.dataset_cli import Tell
    from node.home import Home
    from node.quality import Preflight
    from node.quality_report import Report
    from node.state import Dataset
    from policies.model import Policy

TOO_LOW: Final = 1
"""Exit code where a job would be refused for a dataset's quality, or a dataset could not be looked at."""


def add_quality_command(group: Any, command: Command) -> None:
    """Add the command `quality`."""
    look = command(group, "quality", _quality, "find out how good the datasets are")
    look.add_argument("name", metavar="DATASET", nargs="?", help="one of them (default: all)")
    look.add_argument("--page", type=Path, metavar="FILE.html", help="write it as a page, too")


def _quality(arguments: argparse.Namespace) -> int:
    from node.dataset_cli import chosen, progress, registered

    home = home_of(arguments)
    named, policy = chosen(registered(home.database), arguments.name), _policy(home)
    with progress(quiet=arguments.json) as tell:
        reports = [_look(home, dataset, policy, tell) for dataset in named]
    if arguments.page is not None:
        from node.quality_page import render

        arguments.page.write_text(render(reports, home.name, utc_now()), encoding="utf-8")
    plain = {"datasets": [report.to_json() for report in reports]}
    lines = [line for report in reports for line in _lines(report)]
    print_result(arguments, plain, *(lines or ["no dataset is registered"]))
    return OK if all(report.ok for report in reports) else TOO_LOW


def _policy(home: "Home") -> "Policy | None":
    from node.activation import InForce
    from node.state import read_state

    with read_state(home.database) as reader:
        active = InForce.load(reader, home.name, home.signer.public_key).policy
    return None if active is None else active.policy


def _look(home: "Home", dataset: "Dataset", policy: "Policy | None", tell: "Tell") -> "Report":
    """Look at a dataset, and have the node keep what was found."""
    from node.quality_report import Report, reported
    from protocols.errors import InputError

    now = utc_now()
    try:
        found = look_at(home, dataset, policy, tell)
    except InputError as error:
        return Report(dataset, now, problem=error)
    ask_node(home, "quality", as_kept(found))
    return reported(dataset, found.quality, policy, now)


def look_at(home: "Home", dataset: "Dataset", policy: "Policy | None", tell: "Tell") -> "Preflight":
    """Return how good a dataset is now.

    Raises:
        InputError: as `measure`.
    """
    import secrets

    from node.datasets import open_dataset
    from node.quality import days_in, look

    access = home.config.access
    with open_dataset(dataset, access) as source:
        return look(
            source,
            dataset,
            access,
            now=utc_now(),
            rand=secrets.token_bytes,
            go_on=lambda: None,
            days=days_in(policy, dataset.name),
            tell=lambda rows: tell(rows, f"rows of {dataset.name}"),
        )


def as_kept(found: "Preflight") -> dict[str, str]:
    """Return what the node is told of a look."""
    from node.desk import encoded

    return {"fingerprint": found.fingerprint, "record": encoded(found.quality.record())}


def _lines(report: "Report") -> Iterator[str]:
    from node.quality_report import ALL_MET, NO_THRESHOLD
    from policies.words import figure

    dataset, quality = report.dataset, report.quality
    if quality is None:
        assert report.problem is not None
        yield f"error   {dataset.name}: {report.problem.message}"
        yield f"        hint: {report.problem.hint}"
        return
    yield f"{dataset.name} {dataset.title}: {figure(quality.counts.rows)} rows, {report.age_words()[0]}"
    yield from _table(report)
    if facts := report.key_facts():
        yield f"identifiers in {dataset.key}: " + "; ".join(f"{words[0]} {value}" for words, value in facts)
    if not report.findings:
        en, zh = ALL_MET if report.asked else NO_THRESHOLD
        yield f"{'ok' if report.asked else 'note':<8}{en}"
        yield f"        {zh}"
    for finding in report.findings:
        en, zh = finding.words()
        yield f"{'fails' if finding.refused else 'note':<8}{en}"
        yield f"        {zh}"
    yield ""


def _table(report: "Report") -> Iterator[str]:
    """Yield the table of columns, as wide as its longest cells; what no row has is a dot."""
    from node.quality_report import MISSING, completeness_words, days_words, distinct_words
    from policies.words import figure

    quality = report.quality
    assert quality is not None
    heads = ["column", "type", "complete", *MISSING, "not-in-table", "distinct"]
    dated = any(days_words(counts) for counts in quality.counts.columns.values())
    rows = []
    for name, kind in quality.types:
        counts = quality.counts.columns[name]
        numbers = [*(getattr(counts, each) for each in MISSING), counts.outside]
        shown = [figure(number) if number else "." for number in numbers]
        days = [days_words(counts) or "."] if dated else []
        rows.append([name, kind, completeness_words(counts), *shown, distinct_words(counts), *days])
    yield from _aligned([*heads, *(["future/before-1900/no-day"] if dated else [])], rows)


def _aligned(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    from rich.cells import cell_len

    widths = [max(map(cell_len, column)) for column in zip(heads, *rows, strict=True)]
    for row in (heads, *rows):
        texts = [
            cell + " " * (width - cell_len(cell)) if at < 2 else " " * (width - cell_len(cell)) + cell
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  " + "  ".join(texts).rstrip()
