"""Where a table lies: a word of this node alone, never of its catalogue."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeAlias


@dataclass(frozen=True, slots=True)
class FilePlace:
    """A file.

    Attributes:
        path: absolute; its ending says the format.
    """

    path: Path

    def files(self) -> Iterator[Path]:
        """Yield the files that hold the table."""
        yield self.path

    def same(self, other: "Place") -> bool:
        """Whether both are one table, by whatever links; of files that are gone, whether they would be."""
        try:
            return self.path.samefile(other.path)
        except OSError:
            return self.path.resolve() == other.path.resolve()

    def to_json(self) -> dict[str, Any]:
        """Return the plain JSON form; what is left at its default is left out."""
        return {"file": str(self.path)}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Self:
        """Read the plain JSON form."""
        return cls(Path(plain["file"]))


Place: TypeAlias = FilePlace
"""Where a table can lie."""


def place_from_json(plain: Mapping[str, Any]) -> Place:
    """Return the place of `Place.to_json`'s output."""
    return FilePlace.from_json(plain)
