"""CSV and Parquet files through DuckDB: only the declared columns, streamed, in bounded memory.

DuckDB gets the one file and nothing else: no other path, no extension, no network, no spill file. Everything
in a CSV file is read as text: an identifier read as a number loses leading zeros and the check character X.
"""

import csv
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from node.sources.source import ReadLimits, SourceColumn, check_columns
from protocols.encoding import sha256_digest
from protocols.errors import InputError
from protocols.wire import utc_text

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

MAX_HEADER_BYTES: Final = 1 << 20

_LINE = re.compile(r"CSV Error on Line: (\d+)")
_NOT_UTF8 = re.compile(r"not utf-?8 encoded|invalid (?:unicode|utf-?8|string encoding)", re.IGNORECASE)
_TYPES: Final = {
    "VARCHAR": "text",
    "BLOB": "text",
    "BOOLEAN": "boolean",
    "DATE": "date",
    "FLOAT": "decimal",
    "DOUBLE": "decimal",
    **dict.fromkeys(
        (
            "TINYINT",
            "SMALLINT",
            "INTEGER",
            "BIGINT",
            "HUGEINT",
            "UTINYINT",
            "USMALLINT",
            "UINTEGER",
            "UBIGINT",
        ),
        "integer",
    ),
}


@dataclass(frozen=True, slots=True)
class _File:
    """What the sources of files have in common: nothing is open between readings."""

    path: Path
    limits: ReadLimits

    def __enter__(self) -> Self:
        """Begin to read."""
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is open."""

    def snapshot(self) -> str:
        """Return when the file was last written. Raises as `Source.snapshot`."""
        return _written(self.path)

    def fingerprint(self) -> str:
        """Return a digest of which file it is. Raises as `Source.fingerprint`."""
        return sha256_digest(repr(_identity(self.path)).encode())


@dataclass(frozen=True, slots=True)
class CsvFile(_File):
    """A CSV file in UTF-8 with one header line."""

    delimiter: str = ","

    def columns(self) -> tuple[SourceColumn, ...]:
        """Return the header's columns; each is text. Raises as `Source.columns`."""
        try:
            with self.path.open("rb") as file:
                # A header without a line end would otherwise pull the whole file into memory.
                line = file.readline(MAX_HEADER_BYTES).decode("utf-8-sig")
            header = next(csv.reader([line.rstrip("\r\n")], delimiter=self.delimiter, strict=True), [])
        except OSError as error:
            raise _gone(error) from None
        except UnicodeDecodeError:
            raise _not_utf8(", line 1") from None
        except csv.Error:
            raise InputError("the header line is not CSV", code="bad-file", hint=_CSV_HINT) from None
        if not header or not all(header):
            raise InputError(
                "the file has no header line, or a column without a name", code="no-header", hint=_CSV_HINT
            )
        if len(set(header)) != len(header):
            raise InputError("the header names a column twice", code="duplicate-column", hint=_CSV_HINT)
        return tuple(SourceColumn(name, "text") for name in header)

    def read(self, columns: Sequence[str]) -> Iterator["pa.RecordBatch"]:
        """Yield batches of text columns. Raises as `Source.read`."""
        known = self.columns()
        check_columns(known, columns)
        described = ", ".join(f"{_literal(c.name)}: 'VARCHAR'" for c in known)
        options = (
            "auto_detect=false, header=true, all_varchar=true, quote='\"', escape='\"', "
            f"delim={_literal(self.delimiter)}, columns={{{described}}}"
        )
        query = f"SELECT {_select(columns)} FROM read_csv($path, {options})"  # noqa: S608  # quoted above
        return _stream(self.path, self.limits, query)


@dataclass(frozen=True, slots=True)
class ParquetFile(_File):
    """A Parquet file; columns keep their stored types."""

    def columns(self) -> tuple[SourceColumn, ...]:
        """Return the stored columns. Raises as `Source.columns`."""
        _written(self.path)
        with _connect(self.path, self.limits) as connection, _reading():
            rows = connection.execute(
                "DESCRIBE SELECT * FROM read_parquet($path)", {"path": str(self.path.absolute())}
            ).fetchall()
        return tuple(SourceColumn(str(row[0]), _type(str(row[1]))) for row in rows)

    def read(self, columns: Sequence[str]) -> Iterator["pa.RecordBatch"]:
        """Yield batches of the columns. Raises as `Source.read`."""
        check_columns(self.columns(), columns)
        query = f"SELECT {_select(columns)} FROM read_parquet($path)"  # noqa: S608  # _select quotes names
        return _stream(self.path, self.limits, query)


_CSV_HINT: Final = "give UTF-8 text, comma-separated, with one header line of distinct column names"


def _type(stored: str) -> str:
    if stored.startswith("DECIMAL"):
        return "decimal"
    if stored.startswith("TIME"):
        return "time"
    return _TYPES.get(stored, "other")


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _select(columns: Sequence[str]) -> str:
    return ", ".join('"' + name.replace('"', '""') + '"' for name in columns)


def _written(path: Path) -> str:
    try:
        return utc_text(datetime.fromtimestamp(path.stat().st_mtime, UTC))
    except OSError as error:
        raise _gone(error) from None


def _gone(error: OSError) -> InputError:
    return InputError(
        f"the dataset's file cannot be read ({error.strerror})",
        code="file-missing",
        hint="put the file back, or register its new place with minshu-node dataset add",
    )


def _not_utf8(line: str) -> InputError:
    return InputError(
        f"the file is not UTF-8 text{line}",
        code="not-utf8",
        hint="convert it first, for example with iconv -f GB18030 -t UTF-8",
    )


def _connect(path: Path, limits: ReadLimits) -> "duckdb.DuckDBPyConnection":
    import duckdb

    connection = duckdb.connect(
        ":memory:",
        config={
            "memory_limit": f"{limits.memory_mb}MB",
            "threads": limits.threads,
            # Of equally late rows of one person those read first count: the same at every reading.
            "preserve_insertion_order": True,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        },
    )
    connection.execute("SET temp_directory = ''")
    connection.execute(f"SET allowed_paths = [{_literal(str(path.absolute()))}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def _stream(path: Path, limits: ReadLimits, query: str) -> Iterator["pa.RecordBatch"]:
    """Yield the query's batches; refuse a file that changed in the meantime."""
    before = _identity(path)
    with _connect(path, limits) as connection, _reading():
        relation = connection.sql(query, params={"path": str(path.absolute())})
        yield from relation.to_arrow_reader(limits.batch_rows)
    if _identity(path) != before:
        raise InputError(
            "the dataset's file changed while it was read",
            code="changed-while-reading",
            hint="replace the file in one step (write aside, then rename) and run the job again",
        )


def _identity(path: Path) -> tuple[int, int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise _gone(error) from None
    return status.st_ino, status.st_size, status.st_mtime_ns


@contextmanager
def _reading() -> Iterator[None]:
    """Turn what DuckDB and Arrow raise into our codes; their own messages quote whole rows."""
    import duckdb
    import pyarrow as pa

    try:
        yield
    except duckdb.OutOfMemoryException:
        raise InputError(
            "reading the dataset needs more memory than this node allows",
            code="memory-limit",
            hint="raise duckdb_memory_mb in node.toml",
        ) from None
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        found = _LINE.search(str(error))
        line = f", line {found.group(1)}" if found else ""
        if _NOT_UTF8.search(str(error)):
            raise _not_utf8(line) from None
        raise InputError(
            f"the dataset's file is not what its ending says{line}",
            code="bad-file",
            hint="check that every line has as many values as the header, or write the file again",
        ) from None
