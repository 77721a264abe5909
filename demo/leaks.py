"""Searches every byte that left a node, every log and every file for planted identifiers.

`audit.canaries` says in which forms they are looked for; here, in files of any size.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from audit.canaries import Canaries, forms

__all__ = ["BLOCK", "Finding", "Scanner", "forms"]

BLOCK = 16 << 20
"""Bytes read at a time."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One canary in one file: which canary (by number, never by value), in which form, where."""

    canary: int
    form: str
    file: Path
    offset: int


class Scanner(Canaries):
    """Finds any form of many identifiers in files."""

    def scan_file(self, path: Path) -> Iterator[Finding]:
        """Yield every finding in the file at `path`, reading it block by block."""
        with path.open("rb") as file:
            offset, tail = 0, b""
            while block := file.read(BLOCK):
                window = tail + block
                for number, form, place, length in self.search(window):
                    # What lies wholly in the tail was reported with the block before.
                    if place + length > len(tail):
                        yield Finding(number, form, path, offset - len(tail) + place)
                tail = window[-(self.longest - 1) :]
                offset += len(block)

    def scan(self, roots: Iterable[Path]) -> list[Finding]:
        """Return every finding in the files below `roots`, which may be files or folders."""
        findings: list[Finding] = []
        for root in roots:
            files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
            for path in files:
                findings.extend(self.scan_file(path))
        return findings
