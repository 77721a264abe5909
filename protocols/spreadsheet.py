"""Tables on their way into office programs: text stays text."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa


def plain_text(cell: str) -> str:
    """Return `cell` so that an office program shows it and never computes it.

    A cell that begins like a formula gets an apostrophe before it (OWASP, "CSV injection").
    """
    return "'" + cell if cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell


def for_office(table: "pa.Table") -> "pa.Table":
    """Return the table with every text cell as `plain_text`; other columns and nulls stay as they are."""
    import pyarrow as pa

    for place, column in enumerate(table.columns):
        if pa.types.is_string(column.type):
            cells = [None if cell is None else plain_text(cell) for cell in column.to_pylist()]
            table = table.set_column(place, table.field(place).name, pa.array(cells, pa.string()))
    return table
