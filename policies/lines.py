"""Where things stand in a TOML file: path → 1-based line, so that an error can point at its cause.

`tomllib` forgets positions. This scanner runs over text that `tomllib` has accepted, so it never judges
syntax; it only follows it. Source: TOML 1.0.0.
"""

import re
import tomllib
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

Path = tuple[str | int, ...]
"""Keys and array indices from the root: `("rules", 0, "max_rows")`."""

_BLANK: Final = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE: Final = re.compile(r"[ \t]*")
_KEY: Final = re.compile(r"""[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|'[^']*'""")
_STRING: Final = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}(?!")' r"|'''.*?'{3,5}(?!')" r'|"(?:[^"\\]|\\.)*"' r"|'[^']*'",
    re.DOTALL,
)
_BARE: Final = re.compile(r"[^,\]}#\n]+")


@dataclass(frozen=True, slots=True)
class Lines:
    """The line of every table, array item and value of one TOML text."""

    at: Mapping[Path, int]

    def line(self, path: Path) -> int:
        """Return the line of `path`, or of the nearest thing around it that has one; 0 for the root."""
        while path:
            if path in self.at:
                return self.at[path]
            path = path[:-1]
        return 0


def locate(text: str) -> Lines:
    """Return the lines of everything in `text`, which `tomllib.loads` must have accepted."""
    return Lines(_Scanner(text).scan())


class _Scanner:
    """One pass over the text. A path keeps the line where it was first named."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.pos = 0
        self.newlines = [m.start() for m in re.finditer("\n", text)]
        self.found: dict[Path, int] = {}
        self.last_index: dict[Path, int] = {}

    def scan(self) -> dict[Path, int]:
        table: Path = ()
        while self.skip(_BLANK):
            if self.text.startswith("[[", self.pos):
                table = self.header("[[")
            elif self.text[self.pos] == "[":
                table = self.header("[")
            else:
                self.assignment(table)
        return self.found

    def line(self) -> int:
        return bisect_left(self.newlines, self.pos) + 1

    def skip(self, pattern: re.Pattern[str]) -> bool:
        """Move past `pattern`, which may match nothing; return whether text is left."""
        match = pattern.match(self.text, self.pos)
        self.pos = match.end() if match else self.pos
        return self.pos < len(self.text)

    def mark(self, path: Path, line: int) -> None:
        self.found.setdefault(path, line)

    def header(self, bracket: str) -> Path:
        line = self.line()
        self.pos += len(bracket)
        parts = self.key()
        self.pos += len(bracket)
        path: Path = ()
        for at, part in enumerate(parts):
            path = (*path, part)
            if bracket == "[[" and at == len(parts) - 1:
                self.mark(path, line)
                self.last_index[path] = self.last_index.get(path, -1) + 1
            if path in self.last_index:
                # A header below an array of tables speaks of its newest item.
                path = (*path, self.last_index[path])
            self.mark(path, line)
        return path

    def key(self) -> list[str]:
        """Read a dotted key and the blanks around it."""
        parts: list[str] = []
        while True:
            self.skip(_SPACE)
            match = _KEY.match(self.text, self.pos)
            if match is None:
                raise ValueError("the text is not TOML")
            self.pos = match.end()
            raw = match.group()
            parts.append(next(iter(tomllib.loads(f"{raw} = 0"))) if raw[0] in "\"'" else raw)
            self.skip(_SPACE)
            if self.text[self.pos] != ".":
                return parts
            self.pos += 1

    def assignment(self, table: Path) -> None:
        line = self.line()
        path = table
        for part in self.key():
            path = (*path, part)
            self.mark(path, line)
        self.pos += 1  # the equals sign
        self.skip(_SPACE)
        self.value(path)

    def value(self, path: Path) -> None:
        if self.text[self.pos] == "[":
            self.pos += 1
            index = 0
            while self.skip(_BLANK) and self.text[self.pos] != "]":
                self.mark((*path, index), self.line())
                self.value((*path, index))
                index += 1
                self.after_item()
            self.pos += 1
        elif self.text[self.pos] == "{":
            self.pos += 1
            while self.skip(_BLANK) and self.text[self.pos] != "}":
                self.assignment(path)
                self.after_item()
            self.pos += 1
        elif not (match := _STRING.match(self.text, self.pos)):
            self.skip(_BARE)
        else:
            self.pos = match.end()

    def after_item(self) -> None:
        self.skip(_BLANK)
        if self.text[self.pos] == ",":
            self.pos += 1
