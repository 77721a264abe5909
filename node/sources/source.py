"""What a source is: a table somewhere in the department, of which a job may read declared columns."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Final, Protocol, Self

from node.sources.place import Place
from protocols.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa


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
            InputError: the table is gone or cannot be understood.
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
    """What this node's settings say of reading: how much, and which places it can reach."""

    limits: ReadLimits = ReadLimits()


DEFAULT_ACCESS: Final = Access()


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


def open_source(place: Place, access: Access) -> Source:
    """Return the source at a place; of a file, by its ending.

    Raises:
        InputError: no such file, or an ending nobody here reads.
    """
    from node.sources.files import CsvFile, ParquetFile

    path = place.path
    match path.suffix.lower():
        case ".csv":
            return CsvFile(path, access.limits)
        case ".tsv":
            return CsvFile(path, access.limits, delimiter="\t")
        case ".parquet" | ".pq":
            return ParquetFile(path, access.limits)
    raise InputError(
        "the file's ending names no format this node reads",
        code="unknown-format",
        hint="give a .csv, .tsv or .parquet file",
    )
