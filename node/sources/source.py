"""What a source is: a table somewhere in the department, of which a job may read declared columns."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, Self

from node.sources.connections import Connection
from node.sources.place import Place, TablePlace
from protocols.errors import InputError
from protocols.freetext import UNREADABLE

if TYPE_CHECKING:
    import pyarrow as pa

_PERMIT = re.compile(r"[A-Z]{1,2}[0-9]{7,10}", re.IGNORECASE)
"""A passport or a permit; its digits alone are too few to tell."""


@dataclass(frozen=True, slots=True)
class SourceColumn:
    """One column as it is stored: `text`, `integer`, `decimal`, `date`, `time`, `boolean` or `other`."""

    name: str
    type: str


class Source(Protocol):
    """One table. Opening it reads no row; a source is read from start to end, as often as asked.

    It is used in a `with` block: what one block reads is one state of the table, or an error. Errors name
    columns, types, line numbers and counts, never a value, a path or a host.
    """

    def __enter__(self) -> Self:
        """Begin to read."""
        ...

    def __exit__(self, *_: object) -> None:
        """Let go of whatever was opened."""
        ...

    def columns(self) -> tuple[SourceColumn, ...]:
        """Return all columns in their order.

        Raises:
            InputError: the table is gone or cannot be understood; or as `check_header`.
        """
        ...

    def snapshot(self) -> str:
        """Return the moment the table was last written, `2026-11-22T08:00:00Z`.

        Raises:
            InputError: the table is gone.
        """
        ...

    def fingerprint(self) -> str:
        """Return a digest that changes whenever the table is written, twice within one second too.

        It stays at this node: a snapshot says when a table was written, this would help to guess its size.

        Raises:
            InputError: the table is gone.
        """
        ...

    def read(self, columns: Sequence[str]) -> Iterator["pa.RecordBatch"]:
        """Yield batches with exactly these columns, in this order; nothing for a table without rows.

        Rows come in the order in which they are stored, at every reading.

        Raises:
            InputError: an unknown column, bytes that are no text, or a table that changed while it was read.
        """
        ...


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """What reading one source may use: memory in MiB, threads, rows per batch."""

    memory_mb: int = 256
    threads: int = 1
    batch_rows: int = 65_536


@dataclass(frozen=True, slots=True)
class Access:
    """What this node's settings say of reading: how much, and which places it can reach.

    Attributes:
        limits: what reading may use.
        codes: the folder of the department's own code tables, None for none.
        connections: how its databases are reached, by name.
    """

    limits: ReadLimits = ReadLimits()
    codes: Path | None = None
    connections: Mapping[str, Connection] = field(default_factory=dict)


DEFAULT_ACCESS: Final = Access()


def check_header(names: Sequence[str], *, folded: bool = True) -> None:
    """Check that names can be those of columns: the catalogue publishes them, commands and errors print them.

    Where a table begins without a header, its first record stands in the place of names; an identifier gives
    it away. Nothing of a name is in the error.

    Args:
        names: of all columns, in their order.
        folded: whether two names that differ by their case are one.

    Raises:
        InputError: `no-header`: no columns, one without a name, or what looks like a record;
            `unreadable-name`: a character that cannot be seen; `duplicate-column`.
    """
    from audit.identifiers_scan import identifying

    if not names or not all(names):
        raise InputError(
            "the table has no header, or a column without a name",
            code="no-header",
            hint="name every column, in the first line of a file",
        )
    for at, name in enumerate(names, 1):
        if identifying(name) or _PERMIT.fullmatch(name.strip()):
            raise InputError(
                f"the header holds what looks like records: column {at} is named like an identifier",
                code="no-header",
                hint="write a line with the columns' names before the first record",
            )
        if UNREADABLE.search(name):
            raise InputError(
                f"the name of column {at} has a character that cannot be seen, such as a line end",
                code="unreadable-name",
                hint="rename the column; one of a database's table in a view",
            )
    first: dict[str, int] = {}
    for at, name in enumerate(names, 1):
        same = first.setdefault(name.casefold() if folded else name, at)
        if same != at:
            raise InputError(
                f"the header names a column twice: columns {same} and {at}"
                + (", if case is left aside" if name != names[same - 1] else ""),
                code="duplicate-column",
                hint="give each column a name of its own, whose case alone tells it from no other",
            )


def check_columns(known: Sequence[SourceColumn], wanted: Sequence[str]) -> None:
    """Check that every wanted column exists.

    Raises:
        InputError: one does not, with the closest that do.
    """
    names = [column.name for column in known]
    for name in wanted:
        if name not in names:
            close = get_close_matches(name, names, n=3, cutoff=0.5)
            raise InputError(
                f"the dataset has no column {name}, closest: {', '.join(close) if close else 'none'}",
                code="unknown-column",
                hint="name a column that the catalogue lists",
            )


def check_unchanged(source: Source, mark: str) -> None:
    """Check that a table is still the one that was begun to be read.

    Args:
        source: it.
        mark: its `fingerprint` before anything was read.

    Raises:
        InputError: `changed-while-reading`.
    """
    try:
        same = source.fingerprint() == mark
    except InputError:
        same = False
    if not same:
        raise changed()


def changed() -> InputError:
    """Return why a file that was written while it was read gives no answer."""
    return InputError(
        "the dataset's file changed while it was read",
        code="changed-while-reading",
        hint="replace the file in one step (write aside, then rename) and run the job again",
    )


def open_source(place: Place, access: Access) -> Source:
    """Return the source at a place; of a file, by its ending.

    Raises:
        InputError: no such file, an ending nobody here reads, or a connection that is not configured.
    """
    if isinstance(place, TablePlace):
        from node.sources.database import open_table

        return open_table(place, access.connections, access.limits)
    from node.sources.files import open_file

    return open_file(place, access.limits)
