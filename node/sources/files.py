"""CSV and Parquet files through DuckDB: only the declared columns, streamed, in bounded memory.

DuckDB gets the one file and nothing else: no other path, no extension, no network, no spill file. Everything
in a CSV file is read as text: an identifier read as a number loses leading zeros and the check character X.
A file in GB18030 reaches DuckDB as a pipe of UTF-8 text, so that all encodings have one parser and one fence;
no other copy of it is made.
"""

import csv
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Final, Self

from node.sources.encodings import not_text, texts
from node.sources.place import FilePlace
from node.sources.source import ReadLimits, Source, SourceColumn, changed, check_columns, check_header
from protocols.encoding import sha256_digest
from protocols.errors import InputError
from protocols.wire import utc_text

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

MAX_HEADER_BYTES: Final = 1 << 20
COMMA: Final = ","
TAB: Final = "\t"
FORMATS: Final = ".csv, .tsv, .txt, .parquet or .xlsx"

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


def open_file(place: FilePlace, limits: ReadLimits) -> Source:
    """Return the source of a file, by its ending.

    Raises:
        InputError: an ending nobody here reads.
    """
    match place.path.suffix.lower():
        case ".csv" | ".txt":
            return CsvFile(place.path, limits, place.delimiter or COMMA, place.encoding)
        case ".tsv":
            return CsvFile(place.path, limits, place.delimiter or TAB, place.encoding)
        case ".parquet" | ".pq":
            return ParquetFile(place.path, limits)
        case ".xlsx":
            from node.sources.excel import ExcelSheet

            return ExcelSheet(place.path, limits, place.sheet)
        case ".xls" | ".xlsm" | ".xlsb" | ".et":
            raise InputError(
                "the file is a spreadsheet of a kind this node does not read",
                code="unknown-format",
                hint="save it as .xlsx, without macros",
            )
    raise InputError(
        "the file's ending names no format this node reads",
        code="unknown-format",
        hint=f"give a {FORMATS} file",
    )


@dataclass(frozen=True, slots=True)
class File:
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
        return written(self.path)

    def fingerprint(self) -> str:
        """Return a digest of which file it is. Raises as `Source.fingerprint`."""
        return sha256_digest(repr(identity(self.path)).encode())


@dataclass(frozen=True, slots=True)
class CsvFile(File):
    """A CSV file with one header line.

    A value that is empty, in quotes or not, is missing.
    """

    delimiter: str = COMMA
    encoding: str = "utf-8"

    def columns(self) -> tuple[SourceColumn, ...]:
        """Return the header's columns; each is text. Raises as `Source.columns`."""
        try:
            with self.path.open("rb") as file:
                # A header without a line end would otherwise pull the whole file into memory.
                head = file.readline(MAX_HEADER_BYTES)
            line = "".join(texts(BytesIO(head), self.encoding)).removeprefix("\ufeff")
            header = next(csv.reader([line.rstrip("\r\n")], delimiter=self.delimiter, strict=True), [])
        except OSError as error:
            raise gone(error) from None
        except csv.Error:
            raise InputError("the header line is not CSV", code="bad-file", hint=_CSV_HINT) from None
        check_header(header)
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
        return self._read(query)

    def _read(self, query: str) -> Iterator["pa.RecordBatch"]:
        try:
            yield from _stream(self.path, self.limits, query, self.encoding)
        except InputError as error:
            if error.message == _BAD_FILE and (line := _mixed_ends(self.path)):
                raise InputError(
                    f"line {line} of the file ends in another way than the first",
                    code="bad-file",
                    hint="write the file again with line ends of one kind, as by sed 's/\\r$//'",
                ) from None
            raise


@dataclass(frozen=True, slots=True)
class ParquetFile(File):
    """A Parquet file; columns keep their stored types."""

    def columns(self) -> tuple[SourceColumn, ...]:
        """Return the stored columns. Raises as `Source.columns`."""
        written(self.path)
        with _connect(self.path.absolute(), self.limits) as connection, _reading():
            import pyarrow.parquet as pq

            # DuckDB gives a name that comes twice, by its case or not, another one.
            names = pq.read_schema(self.path).names
            check_header(names)
            query = f"DESCRIBE SELECT * FROM {_PARQUET}"  # noqa: S608  # nothing of a file's is in it
            rows = connection.execute(query, {"path": _alone(self.path.absolute())}).fetchall()
            if [str(row[0]) for row in rows] != names:
                raise OSError
        return tuple(SourceColumn(name, _type(str(row[1]))) for name, row in zip(names, rows, strict=True))

    def read(self, columns: Sequence[str]) -> Iterator["pa.RecordBatch"]:
        """Yield batches of the columns. Raises as `Source.read`."""
        check_columns(self.columns(), columns)
        query = f"SELECT {_select(columns)} FROM {_PARQUET}"  # noqa: S608  # _select quotes names
        return _stream(self.path, self.limits, query)


_PARQUET: Final = "read_parquet($path, hive_partitioning=false)"
"""A file alone: folders that it lies in say nothing of its columns."""

_BAD_FILE: Final = "the dataset's file is not what its ending says"
_CSV_HINT: Final = "give one header line of distinct column names, and the delimiter the file was added with"


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


def written(path: Path) -> str:
    """Return when a file was last written. Raises as `Source.snapshot`."""
    try:
        return utc_text(datetime.fromtimestamp(path.stat().st_mtime, UTC))
    except OSError as error:
        raise gone(error) from None


def identity(path: Path) -> tuple[int, int, int, int]:
    """Return which file it is, in which state. Raises as `Source.fingerprint`.

    Whoever writes a file can set the time of its contents back, but not that of its inode.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise gone(error) from None
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def gone(error: OSError) -> InputError:
    """Return why a file cannot be read, without its path."""
    return InputError(
        f"the dataset's file cannot be read ({error.strerror})",
        code="file-missing",
        hint="put the file back, or register its new place with minshu-node dataset add",
    )


def _connect(path: Path | str, limits: ReadLimits) -> "duckdb.DuckDBPyConnection":
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
    connection.execute(f"SET allowed_paths = [{_literal(str(path))}, {_literal(_alone(path))}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def _alone(path: Path | str) -> str:
    """Return the pattern that only this path matches: DuckDB takes every path for one."""
    return re.sub(r"[*?\[]", r"[\g<0>]", str(path))


def _stream(
    path: Path, limits: ReadLimits, query: str, encoding: str = "utf-8"
) -> Iterator["pa.RecordBatch"]:
    """Yield the query's batches; refuse a file that changed in the meantime."""
    before = identity(path)
    with _Utf8(path, encoding) as text:
        try:
            with _connect(text.path, limits) as connection, _reading():
                relation = connection.sql(query, params={"path": _alone(text.path)})
                yield from relation.to_arrow_reader(limits.batch_rows)
        except InputError:
            text.check(ended=False)  # what DuckDB says of the rest is about the cut
            raise
        text.check(ended=True)
    if identity(path) != before:
        raise changed()


class _Utf8:
    """A text file as UTF-8: itself, or a pipe that a thread fills as fast as it is read."""

    def __init__(self, path: Path, encoding: str) -> None:
        self.path = str(path.absolute())
        self._file = path
        self._encoding = encoding
        self._error: InputError | None = None
        self._whole = False
        self._thread: Thread | None = None
        self._read_end = -1

    def __enter__(self) -> Self:
        if self._encoding != "utf-8":
            self._read_end, write_end = os.pipe()
            self.path = f"/dev/fd/{self._read_end}"
            self._thread = Thread(target=self._fill, args=(write_end,), daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            # A thread that still writes gets EPIPE now, and ends.
            os.close(self._read_end)
            self._thread.join()

    def check(self, *, ended: bool) -> None:
        """Raise what kept the file from being text; once the reader met an end, it must be the file's own."""
        if self._error is not None:
            raise self._error from None
        if ended and self._thread is not None and not self._whole:
            raise not_text(self._encoding, 0)

    def _fill(self, write_end: int) -> None:
        # What went wrong is noted before the pipe ends: whoever reads its end looks for it.
        with suppress(BrokenPipeError), os.fdopen(write_end, "wb", buffering=0) as pipe:
            try:
                with self._file.open("rb") as file:
                    for text in texts(file, self._encoding):
                        data = memoryview(text.encode())
                        while data:
                            data = data[pipe.write(data) :]
                self._whole = True
            except InputError as error:
                self._error = error
            except BrokenPipeError:
                raise  # the reader has enough
            except OSError as error:
                self._error = gone(error)


def _mixed_ends(path: Path) -> int:
    """Return the number of the first line that ends in another way than the first, 0 for none.

    Line ends inside quotes are part of a value.
    """
    first, inside = b"", False
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_HEADER_BYTES):
            inside ^= line.count(b'"') % 2 == 1
            if not line.endswith(b"\n"):
                continue
            number += 1
            if not inside:
                end = b"\r\n" if line.endswith(b"\r\n") else b"\n"
                if end != (first := first or end):
                    return number
    return 0


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
        if _NOT_UTF8.search(str(error)):
            raise not_text("utf-8", int(found.group(1)) if found else 0) from None
        line = f", line {found.group(1)}" if found else ""
        raise InputError(
            f"{_BAD_FILE}{line}",
            code="bad-file",
            hint="check that every line has as many values as the header, or write the file again",
        ) from None
