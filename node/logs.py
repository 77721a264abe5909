"""Log lines: time, level, code, and a few fields that can hold no identifier.

    2026-11-22T08:00:00Z warning not-utf8 job=sha256:0c4f… attempt=1

Only texts that our own code wrote (codes, sentences, names from the roster) and numbers are logged.
"""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final, TextIO

from protocols.wire import utc_text

_PLAIN: Final = re.compile(r"[\w.:/@+=-]+")
_MAX_SELDOM: Final = 64


@dataclass(slots=True)
class Log:
    """Appends lines to a file, and to a stream if given. One line is one write."""

    path: Path | None
    now: Callable[[], datetime]
    stream: TextIO | None = None
    _file: TextIO | None = field(default=None, init=False)
    _minute: str = field(default="", init=False)
    _said: set[tuple[str, str]] = field(default_factory=set, init=False)

    def info(self, code: str, **fields: str | int) -> None:
        """Log something that is as it should be."""
        self._line("info", code, fields)

    def warning(self, code: str, **fields: str | int) -> None:
        """Log something that somebody should look at."""
        self._line("warning", code, fields)

    def failure(self, code: str, **fields: str | int) -> None:
        """Log something that stopped a run or this node."""
        self._line("error", code, fields)

    def seldom(self, code: str, peer: str = "", **fields: str | int) -> None:
        """Warn of what others can bring about as often as they like: once a minute of each code and peer."""
        minute = utc_text(self.now())[:16]
        if minute != self._minute:
            self._minute = minute
            self._said.clear()
        if (code, peer) not in self._said and len(self._said) < _MAX_SELDOM:
            self._said.add((code, peer))
            self.warning(code, **({"peer": peer} if peer else {}), **fields)

    def _line(self, level: str, code: str, fields: dict[str, str | int]) -> None:
        shown = "".join(f" {key}={_quoted(value)}" for key, value in fields.items())
        line = f"{utc_text(self.now())} {level} {code}{shown}\n"
        if self._file is None and self.path is not None:
            try:
                self._file = self.path.open("a", encoding="utf-8")
            except OSError:
                # A full or read-only disk must not stop refusals from going out.
                self.path = None
                self.stream = self.stream or sys.stderr
        for target in (self._file, self.stream):
            if target is not None:
                try:
                    target.write(line)
                    target.flush()
                except OSError:
                    pass  # the disk is full; the journal decides what may go on, not the log

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _quoted(value: str | int) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) else '"' + text.replace('"', "'").replace("\n", " ") + '"'
