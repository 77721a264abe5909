"""What a source is: a table somewhere in the department, of which a job may read declared columns."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

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

    Errors name columns, types, line numbers and counts, never a value or a path.
    """

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


def open_source(path: Path, limits: ReadLimits) -> Source:
    """Return the source in a file, by its ending.

    Raises:
        InputError: no such file, or an ending nobody here reads.
    """
    from node.sources.files import CsvFile, ParquetFile

    match path.suffix.lower():
        case ".csv":
            return CsvFile(path, limits)
        case ".tsv":
            return CsvFile(path, limits, delimiter="\t")
        case ".parquet" | ".pq":
            return ParquetFile(path, limits)
    raise InputError(
        "the file's ending names no format this node reads",
        code="unknown-format",
        hint="give a .csv, .tsv or .parquet file",
    )
