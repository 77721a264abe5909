"""The one result format of all measurements, and its files."""

import json
import os
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "bench-out"


@dataclass(frozen=True, slots=True)
class Row:
    """One figure, beside its peer where there is one. Times in s, memory in MB (1e6 bytes)."""

    what: str
    value: float
    unit: str
    peer: str | None = None
    peer_value: float | None = None

    @property
    def ratio(self) -> float | None:
        """`value / peer_value`, None without a peer."""
        return None if self.peer_value is None else self.value / self.peer_value


def commit() -> str:
    """Return the commit that was measured, with `+` if files differ from it."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    dirty = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=False)
    return (head.stdout.strip() or "unknown") + ("+" if dirty.stdout.strip() else "")


class Results:
    """The rows of one measurement; each is on disk as soon as it is known, so a long one can be resumed."""

    def __init__(self, name: str, *, resume: bool = False) -> None:
        """Start `bench-out/<name>.json`, keeping rows of the same commit if `resume`."""
        self.name = name
        self.path = OUT / f"{name}.json"
        self.rows: list[Row] = []
        if resume and self.path.exists():
            known = json.loads(self.path.read_text())
            if known["commit"] == commit():
                self.rows = [_row(item) for item in known["rows"]]

    def has(self, what: str) -> bool:
        """Return whether a row of that name is already measured."""
        return any(row.what == what for row in self.rows)

    def add(self, row: Row) -> None:
        """Add a row and write the file."""
        self.rows.append(row)
        OUT.mkdir(exist_ok=True)
        document = {
            "name": self.name,
            "commit": commit(),
            "cores": os.cpu_count(),
            "rows": [{**asdict(each), "ratio": each.ratio} for each in self.rows],
        }
        partial = self.path.with_suffix(".json.tmp")
        partial.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
        partial.replace(self.path)


def _row(item: Mapping[str, Any]) -> Row:
    return Row(item["what"], item["value"], item["unit"], item["peer"], item["peer_value"])


def number(value: float | None) -> str:
    """Return `value` with four significant digits, empty for None."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def table(rows: Iterable[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = ["| what | value | unit | peer | peer value | ratio |", "|---|---:|---|---|---:|---:|"]
    lines += [
        "| "
        + " | ".join((r.what, number(r.value), r.unit, r.peer or "", number(r.peer_value), number(r.ratio)))
        + " |"
        for r in rows
    ]
    return "\n".join(lines)


def render(out: Path = OUT, page: Path = ROOT / "docs" / "benchmarks.md") -> None:
    """Write docs/benchmarks.md from every bench-out/*.json; what was measured elsewhere stays as it is."""
    before = page.read_text() if page.exists() else ""
    parts = {part.partition("\n")[0]: part.strip() for part in before.split("\n## ")[1:]}
    for path in sorted(out.glob("*.json")):
        document = json.loads(path.read_text())
        said = f"Commit {document['commit']}, {document['cores']} cores."
        rows = table(_row(item) for item in document["rows"])
        parts[document["name"]] = f"{document['name']}\n\n{said}\n\n{rows}"
    head = (
        "# Benchmarks\n\n"
        "Rendered by `make bench` from `bench-out/*.json`; each is made by `python -m bench NAME`. A ratio\n"
        "is value / peer value, both measured in the same run on the same machine; read ratios, not seconds."
        "\n"
    )
    page.write_text("\n## ".join([head, *(f"{parts[name]}\n" for name in sorted(parts))]))
