"""What a department says about a dataset: for people, for its catalogue, and for how its values are read.

It is written by hand as TOML (`minshu-node dataset add --description FILE`) or comes from a spreadsheet
(`minshu-node catalogue import`). All of it but `mapping` and `shown` is for other organisations to see.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

import msgspec

from node.mapping import ColumnMapping, record_of
from node.sources import SourceColumn, check_columns
from policies.model import ColumnName
from policies.strict import build, read_toml
from protocols.catalogue import (
    CodeTableId,
    Definition,
    Grade,
    ItemId,
    Line,
    LongLine,
    Sharing,
    Unit,
    UpdateDays,
)
from protocols.codes import cited
from protocols.codes.record import encode_record
from protocols.encoding import canonical_json, sha256_digest
from protocols.errors import DecodeError, InputError, PolicyInvalid
from protocols.ids import Digest

MAX_FILE_BYTES: Final = 1 << 20
MAX_COLUMNS: Final = 1024
MAX_PURPOSES: Final = 32


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A table of the file: every key known; what is left at its default is left out again."""


class ColumnDescription(_Table, frozen=True, kw_only=True):
    """What is said about one column.

    Attributes:
        title: what people call it; who is responsible for a field is found by it.
        item: its own catalogue id, where each field has one.
        code_table: the table of its codes and its version.
        unit: of its numbers.
        nullable: whether it may be missing.
        authoritative: whether this dataset is its one source (一数一源).
        organisation: who is responsible for it; None for whoever is for the dataset.
    """

    title: Line | None = None
    item: ItemId | None = None
    code_table: CodeTableId | None = None
    unit: Unit | None = None
    nullable: bool = True
    authoritative: bool = False
    organisation: Line | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the plain JSON form; what is left at its default is left out."""
        return dict(msgspec.to_builtins(self))


class Description(_Table, frozen=True, kw_only=True):
    """What is said about one dataset; nothing by default.

    Attributes:
        title: what people call it.
        item: its catalogue id.
        organisation: who is responsible for it, by roster name or as people write it; None for this node's.
        authoritative: columns that this dataset is the one source of (一数一源).
        grade: GB/T 43697-2024.
        sharing: how the general catalogue shares it.
        purposes: what it is held for.
        update_days: how often it is brought up to date, in days.
        definition: which definition it follows.
        legal_basis: by what right it is held.
        columns: what is said about single columns.
        mapping: how local values of a column become standard codes; stays at the node.
        shown: whether the catalogue publishes the dataset.
    """

    title: Line | None = None
    item: ItemId | None = None
    organisation: Line | None = None
    authoritative: tuple[ColumnName, ...] = ()
    grade: Grade | None = None
    sharing: Sharing | None = None
    purposes: tuple[Line, ...] = ()
    update_days: UpdateDays | None = None
    definition: Definition | None = None
    legal_basis: LongLine | None = None
    columns: dict[ColumnName, ColumnDescription] = {}
    mapping: dict[ColumnName, ColumnMapping] = {}
    shown: bool = True

    def column(self, name: str) -> ColumnDescription:
        """Return what is said about a column, nothing for one that is not described."""
        return self.columns.get(name, _NOTHING)

    def is_authoritative(self, column: str) -> bool:
        """Whether the dataset is the one source of a column."""
        return column in self.authoritative or self.column(column).authoritative

    def code_table(self, column: str) -> str | None:
        """Return the table of a column's codes, as others see them: after mapping.

        None where values that are in no table are kept as they are.
        """
        mapped = self.mapping.get(column)
        if mapped is None:
            return self.column(column).code_table
        return None if mapped.default == "keep" else mapped.table

    @property
    def mapping_record(self) -> bytes:
        """The record of how columns become codes, see `protocols.codes.record`; empty if none does."""
        return encode_record(self.mapped)

    @property
    def mapped(self) -> dict[str, Digest]:
        """Column → digest of how its values become codes."""
        return record_of(self.mapping)

    @property
    def digest(self) -> Digest:
        """Of all that is said, but for how values become codes, which `mapping_record` stands for."""
        said = {key: value for key, value in self.to_json().items() if key != "mapping"}
        return sha256_digest(canonical_json(said))

    def check(self, columns: Sequence[SourceColumn]) -> None:
        """Check that every column that is described exists.

        Raises:
            InputError: one does not, with the closest that do.
        """
        check_columns(columns, [*self.authoritative, *self.columns, *self.mapping])

    def to_json(self) -> dict[str, Any]:
        """Return the plain JSON form; what is left at its default is left out."""
        return dict(msgspec.to_builtins(self))

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Self:
        """Read the plain JSON form strictly.

        Raises:
            DecodeError: an unknown key, or a value not of its form.
        """
        try:
            found = msgspec.convert(plain, cls, strict=True)
        except msgspec.ValidationError as error:
            raise DecodeError(
                f"a dataset's description is wrong at {str(error).rpartition(' - at ')[2]}",
                code="bad-description",
                hint="read it again from its file",
            ) from None
        if _too_long(found):
            raise DecodeError("a dataset's description is too long", code="bad-description")
        return found

    def whole(self) -> Self:
        """Return the same with the text of the definition that it cites.

        Raises:
            InputError: as `protocols.codes.cited`.
        """
        if self.definition is None:
            return self
        return msgspec.structs.replace(self, definition=cited(self.definition))


def said_of(table: Description | ColumnDescription) -> dict[str, Any]:
    """Return the fields of a table that are not left at their default."""
    bare = type(table)()
    values = {name: getattr(table, name) for name in table.__struct_fields__}
    return {name: value for name, value in values.items() if value != getattr(bare, name)}


_NOTHING: Final = ColumnDescription()

NO_DESCRIPTION: Final = Description()
"""Of a dataset about which nothing was said."""


def _too_long(found: Description) -> str:
    """Return what a description has too many of, empty for nothing."""
    if max(len(found.columns), len(found.authoritative), len(found.mapping)) > MAX_COLUMNS:
        return f"more than {MAX_COLUMNS} columns"
    return f"more than {MAX_PURPOSES} purposes" if len(found.purposes) > MAX_PURPOSES else ""


def read_description(path: Path) -> Description:
    """Return the description in a TOML file.

    Raises:
        InputError: `no-description`: no such file; or what is wrong in it, with line and key.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InputError(
            f"{path.name} cannot be read ({error.strerror})",
            code="no-description",
            hint="name the TOML file that describes the dataset",
        ) from None
    try:
        document = read_toml(data, limit=MAX_FILE_BYTES, what=path.name)
        found: Description = build(document, Description, document.root, ())
        if fault := _too_long(found):
            document.fail((), fault, hint="describe the columns that others may ask about")
    except PolicyInvalid as error:
        code = "bad-description" if error.code == PolicyInvalid.default_code else error.code
        raise InputError(f"{path.name}, {error.message}", code=code, hint=error.hint) from None
    return found.whole()
