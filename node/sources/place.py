"""Where a table lies: a word of this node alone, never of its catalogue."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeAlias


@dataclass(frozen=True, slots=True)
class FilePlace:
    """A file.

    What reading it takes is said once, when it is registered, and never guessed again.

    Attributes:
        path: absolute; its ending says the format.
        encoding: of a text file, `utf-8` or `gb18030`; a byte-order mark belongs to neither.
        delimiter: of a text file, one character; empty for what the ending says.
        sheet: of a workbook, its sheet; empty for the only one.
    """

    path: Path
    encoding: str = "utf-8"
    delimiter: str = ""
    sheet: str = ""

    def files(self) -> Iterator[Path]:
        """Yield the files that hold the table."""
        yield self.path

    def same(self, other: "Place") -> bool:
        """Whether both are one table, by whatever links; of files that are gone, whether they would be."""
        if not isinstance(other, FilePlace):
            return False
        if self.sheet and other.sheet and self.sheet != other.sheet:
            return False
        try:
            return self.path.samefile(other.path)
        except OSError:
            return self.path.resolve() == other.path.resolve()

    def to_json(self) -> dict[str, Any]:
        """Return the plain JSON form; what is left at its default is left out."""
        plain = {"file": str(self.path)}
        if self.encoding != "utf-8":
            plain["encoding"] = self.encoding
        if self.delimiter:
            plain["delimiter"] = self.delimiter
        if self.sheet:
            plain["sheet"] = self.sheet
        return plain

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Self:
        """Read the plain JSON form."""
        return cls(
            Path(plain["file"]),
            encoding=plain.get("encoding", "utf-8"),
            delimiter=plain.get("delimiter", ""),
            sheet=plain.get("sheet", ""),
        )


@dataclass(frozen=True, slots=True)
class TablePlace:
    """A table or view in one of the department's databases.

    Attributes:
        connection: its name in `node.toml`.
        table: its name there; its schema is the connection's.
        updated: the column whose greatest value says when the table was last written; empty for none.
    """

    connection: str
    table: str
    updated: str = ""

    def files(self) -> Iterator[Path]:
        """Yield nothing: what holds the table is the server's."""
        yield from ()

    def same(self, other: "Place") -> bool:
        """Whether both are one table. Case tells no tables apart: some servers fold it."""
        return (
            isinstance(other, TablePlace)
            and self.connection == other.connection
            and self.table.casefold() == other.table.casefold()
        )

    def to_json(self) -> dict[str, Any]:
        """Return the plain JSON form; what is left at its default is left out."""
        plain = {"connection": self.connection, "table": self.table}
        if self.updated:
            plain["updated"] = self.updated
        return plain

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Self:
        """Read the plain JSON form."""
        return cls(plain["connection"], plain["table"], plain.get("updated", ""))


Place: TypeAlias = FilePlace | TablePlace
"""Where a table can lie."""


def place_from_json(plain: Mapping[str, Any]) -> Place:
    """Return the place of `Place.to_json`'s output."""
    return TablePlace.from_json(plain) if "connection" in plain else FilePlace.from_json(plain)
