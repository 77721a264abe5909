"""`minshu-node lookup`: a person or a list is asked about, and what is found goes to whoever asked.

Identifiers, and what a look-up is for, are read from standard input or from a file, never from the command
line, which every account of the machine can read and a shell keeps; nothing that is printed about an error
repeats them.
"""

import csv
import io
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TextIO

from node.counter import MAX_AT_ONCE, MAX_KEY_CHARACTERS, MAX_REASON_CHARACTERS, Caller, no_session
from protocols.errors import InputError, MinshuError, Refused
from protocols.jobs.job_type import SUSPECTED
from protocols.spreadsheet import plain_text

CHUNK: Final = 512
"""Identifiers of one question of a list: somebody else's question comes in between."""
MAX_LIST_BYTES: Final = 64 << 20
MAX_REASON_BYTES: Final = 4 * MAX_REASON_CHARACTERS + 16
"""Of a file; a mark and the line's end are in it, too."""
TOO_FAST: Final = "rate-exceeded"
"""A list waits for its turn then; one person's question does not."""
PAUSE_S: Final = 5.0
"""How long, where the answer does not say."""

FOUND: Final = "found"
STATEMENT: Final = "statement"


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked of every identifier: in which job's session, which fields, and what for."""

    job: str
    fields: tuple[str, ...] = ()
    reason: str = ""

    def request(self, keys: Sequence[str]) -> dict[str, Any]:
        """Return the request for these identifiers."""
        wanted = {"fields": list(self.fields)} if self.fields else {}
        return {"do": "ask", "job": self.job, "keys": list(keys), "reason": self.reason, **wanted}


def ask_one(caller: Caller, wish: Wish, key: str) -> dict[str, Any]:
    """Return what is found of one person: `found`, `fields`, `statement`, and the digest of the reason.

    Raises:
        InputError: the identifier is none.
        Refused: the department asked refuses this look-up.
        MinshuError: see `Caller.take`.
    """
    said = caller.call(wish.request([key]))
    [row] = _rows(said)
    about = {"reason_sha256": said["reason_sha256"]} if "reason_sha256" in said else {}
    return {
        "job": said["job"],
        FOUND: row is not None,
        "fields": row or {},
        STATEMENT: said[STATEMENT],
        **about,
    }


@dataclass(slots=True)
class Asked:
    """How far a list has come: distinct identifiers answered, and of these, found."""

    answered: int = 0
    found: int = 0


@dataclass(slots=True)
class Batch:
    """Asks about a list, a few questions under way at once, as fast as the session allows.

    Attributes:
        caller: the counter.
        wish: what is asked of each.
        per_minute: most identifiers a minute, None for as many as come.
        sleep: waits for so many seconds.
        waiting: told how long a list waits for its turn.
    """

    caller: Caller
    wish: Wish
    per_minute: int | None = None
    sleep: Callable[[float], object] = time.sleep
    waiting: Callable[[float], object] = lambda _seconds: None
    asked: Asked = field(default_factory=Asked)

    def rows(self, keys: Sequence[str]) -> Iterator[tuple[Sequence[str], Sequence[Mapping[str, str] | None]]]:
        """Yield identifiers and what was found of each, part by part, in their order.

        Raises:
            MinshuError: what was answered until then was yielded; nothing more is asked.
        """
        size = min(CHUNK, self.per_minute or CHUNK)
        at_once = 1 if self.per_minute else MAX_AT_ONCE
        parts = [keys[at : at + size] for at in range(0, len(keys), size)]
        under_way: deque[int] = deque()
        early: dict[int, dict[str, Any]] = {}
        numbers: dict[int, Sequence[str]] = {}
        coming = iter(parts)
        while True:
            while len(under_way) < at_once and (part := next(coming, None)) is not None:
                number = self.caller.put(self.wish.request(part))
                numbers[number] = part
                under_way.append(number)
            if not under_way:
                return
            first = under_way.popleft()
            while first not in early:
                number, said = self.caller.take()
                early[number] = said
            part, said = numbers.pop(first), early.pop(first)
            while said.get("refused") == TOO_FAST:
                seconds = float(said.get("wait_s", PAUSE_S))
                self.waiting(seconds)
                self.sleep(seconds)
                said = self.caller.call(self.wish.request(part))
            found = _rows(said)
            self.asked.answered += len(part)
            self.asked.found += sum(row is not None for row in found)
            yield part, found


def _rows(said: Mapping[str, Any]) -> Sequence[Mapping[str, str] | None]:
    if "refused" in said:
        raise Refused(said.get("sentence", ""), code=said["refused"], hint=said.get("hint", ""))
    rows: Sequence[Mapping[str, str] | None] = said["rows"]
    return rows


# -- identifiers in ------------------------------------------------------------------------------------------


def read_one(stream: TextIO) -> str:
    """Return the identifier that somebody types, or that is on the first line of standard input.

    Raises:
        InputError: `no-identifier`, `too-long`, `bad-text`.
    """
    key = _typed(stream, "请输入证件号码 · identifier: ", 4 * MAX_KEY_CHARACTERS)
    if not key:
        raise InputError(
            "no identifier came",
            code="no-identifier",
            hint="type it, or pipe it in; never on the command line",
        )
    if len(key) > MAX_KEY_CHARACTERS:
        raise InputError(f"an identifier has at most {MAX_KEY_CHARACTERS} characters", code="too-long")
    return key


def read_reason(source: str, stream: TextIO) -> str:
    """Return what look-ups are for: the one line of a file, or the next line of standard input.

    Args:
        source: path of the file, `-` for standard input, empty where nobody says.
        stream: standard input.

    Raises:
        InputError: `no-reason`, `bad-reason`, `long-reason`, `bad-text`, or it cannot be read.
    """
    if not source:
        return ""
    if source == "-":
        text = _typed(stream, "请输入事由 · reason: ", 2 * MAX_REASON_CHARACTERS)
    else:
        text = _text(source, stream, MAX_REASON_BYTES, "reason").strip()
    if not text:
        raise InputError("no reason came", code="no-reason", hint="give the number of the case")
    if len(text.splitlines()) > 1:
        raise InputError("the reason has more than one line", code="bad-reason")
    if len(text) > MAX_REASON_CHARACTERS:
        raise InputError(
            f"the reason has more than {MAX_REASON_CHARACTERS} characters",
            code="long-reason",
            hint="give the number of the case",
        )
    return text


def _typed(stream: TextIO, prompt: str, most: int) -> str:
    """Return the next line of standard input without the blanks around it; `prompt` is for a terminal."""
    if stream.isatty():
        print(prompt, end="", file=sys.stderr, flush=True)
    try:
        return stream.readline(most).strip()
    except UnicodeDecodeError:
        raise InputError("standard input is not UTF-8", code="bad-text") from None


def read_list(source: str, column: str, stream: TextIO) -> list[str]:
    """Return the distinct identifiers of a list, in their order: one a line, or a column of a CSV file.

    Args:
        source: path of the file, `-` for standard input.
        column: the column's name in the file's first line; empty for a file without one.
        stream: standard input.

    Raises:
        InputError: it cannot be read, is no such list, or holds nobody.
    """
    text = _text(source, stream, MAX_LIST_BYTES, "list")
    try:
        found = csv.reader(io.StringIO(text), strict=True)
        if column:
            header = next(found, [])
            if header.count(column) != 1:
                raise InputError(
                    f"the first line does not name the column {column} once",
                    code="no-column",
                    hint="give --column as it stands in the file's first line",
                )
            at, width = header.index(column), len(header)
        else:
            at, width = 0, 1
        keys: dict[str, None] = {}
        for row in found:
            if not row or (len(row) == 1 and not row[0].strip()):
                continue
            if len(row) != width:
                raise InputError(
                    f"line {found.line_num} has {len(row)} columns, expected {width}",
                    code="bad-list",
                    hint="name the column with --column, or give one identifier a line",
                )
            key = row[at].strip()
            if not 1 <= len(key) <= MAX_KEY_CHARACTERS:
                raise InputError(
                    f"line {found.line_num} holds no identifier of 1 to {MAX_KEY_CHARACTERS} characters",
                    code="bad-list",
                )
            keys[key] = None
    except csv.Error:
        raise InputError("the list is not CSV", code="bad-list") from None
    if not keys:
        raise InputError("the list names nobody", code="empty-list")
    return list(keys)


def _text(source: str, stream: TextIO, most: int, what: str) -> str:
    """Return the text of a file of at most `most` bytes, `-` for standard input; `what` is for errors."""
    try:
        if source == "-":
            data = stream.buffer.read(most + 1)
        else:
            with Path(source).open("rb") as file:
                data = file.read(most + 1)
    except (OSError, ValueError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or "no such file"
        raise InputError(f"the {what} cannot be read ({why})", code="file-missing") from None
    if len(data) > most:
        raise InputError(f"the {what} is longer than {most} bytes", code="too-long")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"the {what} is not UTF-8", code="bad-text", hint="save it as UTF-8") from None


# -- answers out ---------------------------------------------------------------------------------------------


@contextmanager
def new_csv(path: Path) -> Iterator[TextIO]:
    """Give a new file that only its owner can read, with the mark that an office program needs for UTF-8.

    Raises:
        InputError: it exists, or cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        raise InputError(
            f"{path.name} exists already", code="file-exists", hint="choose another --out"
        ) from None
    except OSError as error:
        raise InputError(f"{path.name} cannot be written ({error.strerror})", code="unwritable") from None
    with os.fdopen(descriptor, "w", encoding="utf-8-sig", newline="") as file:
        yield file


class Sheet:
    """Writes answers as CSV; every row bears the mark that it needs verification."""

    def __init__(self, file: TextIO, fields: Sequence[str]) -> None:
        """Begin with the line that names the columns: `fields` are those that are handed out."""
        self._out = csv.writer(file)
        self._fields = fields
        self._out.writerow(["identifier", FOUND, *fields, STATEMENT])

    def add(self, keys: Sequence[str], found: Sequence[Mapping[str, str] | None]) -> None:
        """Write what was found of these identifiers."""
        for key, row in zip(keys, found, strict=True):
            cells = ["" if row is None else plain_text(str(row.get(name, ""))) for name in self._fields]
            self._out.writerow([plain_text(key), "yes" if row is not None else "no", *cells, SUSPECTED])


# -- the command ---------------------------------------------------------------------------------------------


def open_session(caller: Caller, given: str) -> dict[str, Any]:
    """Return the session of a job that is given by its id, or by the first four digits or more.

    Raises:
        InputError: `no-session`.
    """
    digits = given.removeprefix("sha256:")
    sessions: list[dict[str, Any]] = caller.call({"do": "sessions"})["sessions"]
    found = [s for s in sessions if len(digits) >= 4 and s["job"].removeprefix("sha256:").startswith(digits)]
    if len(found) != 1:
        raise no_session(several=bool(found))
    return found[0]


def ask_list(
    caller: Caller, wish: Wish, keys: Sequence[str], out: Path, *, quiet: bool = False
) -> dict[str, Any]:
    """Ask about a list and write what is found to a new file; return how many were asked about and found.

    Raises:
        MinshuError: why it ended early; what was answered until then is in the file.
    """
    session = open_session(caller, wish.job)
    fields = wish.fields or tuple(session["fields"])
    with new_csv(out) as file, _progress(len(keys), quiet=quiet) as (tell, waiting):
        sheet = Sheet(file, fields)
        batch = Batch(caller, wish, session["per_minute"], waiting=waiting)
        try:
            for part, found in batch.rows(keys):
                sheet.add(part, found)
                tell(batch.asked.answered)
        except MinshuError as error:
            done = f"{batch.asked.answered} of {len(keys)} are answered and in {out.name}"
            raise type(error)(
                f"{done}; then: {error.message}",
                code=error.code,
                hint=error.hint or "ask about the rest later",
            ) from None
    return {
        "job": session["job"],
        "asked": batch.asked.answered,
        FOUND: batch.asked.found,
        STATEMENT: SUSPECTED,
    }


@contextmanager
def _progress(
    total: int, *, quiet: bool
) -> Iterator[tuple[Callable[[int], object], Callable[[float], object]]]:
    """Show on stderr how far a list is: a bar in a terminal, else at most ten lines; `quiet`: nothing."""
    if quiet:
        yield lambda _done: None, lambda _seconds: None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        title = "查询 asking"
        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(title, total=total)

            def pause(seconds: float) -> None:
                bar.update(task, description=f"{title}, 等待 waiting {seconds:.0f} s")

            yield lambda done: bar.update(task, completed=done, description=title), pause
    else:
        tenth = -1

        def line(done: int) -> None:
            nonlocal tenth
            if done * 10 // total > tenth:
                tenth = done * 10 // total
                print(f"查询 asking: {done} / {total}", file=sys.stderr, flush=True)

        yield line, lambda _seconds: None
