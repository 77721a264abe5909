"""Whether a table is still what was registered: a catalogue that others read promises its columns."""

from collections.abc import Sequence

from node.sources.source import SourceColumn
from protocols.errors import InputError

_HINT = "register the dataset again with minshu-node dataset add, or bring the table back to what it was"


def drift(registered: Sequence[SourceColumn], found: Sequence[SourceColumn]) -> list[InputError]:
    """Return how a table's columns differ from what was registered; their order is of no meaning.

    Codes: `schema-drift` for a column that is gone or new, `column-type-changed`.
    """
    now = {column.name: column.type for column in found}
    before = {column.name: column.type for column in registered}
    gone = [_drift(f"column {name} was registered and is gone") for name in before if name not in now]
    changed = [
        InputError(
            f"column {name} was registered as {kind} and is {now[name]} now",
            code="column-type-changed",
            hint=_HINT,
        )
        for name, kind in before.items()
        if now.get(name, kind) != kind
    ]
    new = [_drift(f"column {name} is new, the catalogue has none") for name in now if name not in before]
    return gone + changed + new


def check_registered(
    registered: Sequence[SourceColumn], found: Sequence[SourceColumn], wanted: Sequence[str]
) -> None:
    """Check that the columns a reader wants are those that were registered.

    What was never registered is left to `check_columns`.

    Raises:
        InputError: `schema-drift`: a wanted column is gone; `column-type-changed`.
    """
    asked = [column for column in registered if column.name in wanted]
    names = {column.name for column in asked}
    for error in drift(asked, [column for column in found if column.name in names]):
        raise error


def _drift(message: str) -> InputError:
    return InputError(message, code="schema-drift", hint=_HINT)
