"""The catalogue: which datasets this department has, as other organisations may see them.

Adding a dataset scans it once: its columns, its rows, and how many distinct keys its key column holds. What
is published are names, types and rounded counts, never a path or a row. `published_keys` is fixed when the
dataset is added, so a list that is emptied or replaced later no longer fits what was published.
"""

import re
from collections.abc import Sequence
from datetime import date, datetime
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from node.sources import Access, Place, Source, check_columns, open_source
from node.state import Dataset
from protocols.encoding import canonical_json
from protocols.envelope import CATALOGUE, Signer, sign
from protocols.errors import InputError
from protocols.ids import DatasetName, NodeName
from protocols.wire import utc_text

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from protocols.identifiers import AreaTable

SCHEMA: Final = "minshu-catalogue/1"
SAMPLE_ROWS: Final = 1000
SHOWN_DIGITS: Final = 3
_MAY_IDENTIFY: Final = ("text", "integer", "decimal")

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?")


def scan(
    name: str,
    place: Place,
    *,
    title: str,
    key: str,
    published_keys: int | None,
    access: Access,
    today: date,
    persons: bool = True,
) -> Dataset:
    """Return the catalogue entry of a table.

    Args:
        name: the catalogue name that policies use, `local:NAME`.
        place: where the table lies; only this node ever sees it.
        title: for people; the name if empty.
        key: the column that holds identifiers; empty to look for it.
        published_keys: what to publish as the number of distinct keys; None for the scanned one.
        access: how datasets are read.
        today: the day on which ages are reckoned.
        persons: whether rows are about persons. Else there is no key column, each row counts as a key, and
            policies have to open the dataset as `personal = "none"`.

    Raises:
        InputError: a name of another form, a table that cannot be read, an empty table, an unknown column, no
            column whose values are identifiers, or of a table about no persons a key column or identifiers.
    """
    if not _NAME.fullmatch(name):
        raise InputError(
            "the dataset's name does not have the expected form",
            code="bad-name",
            hint="use lower-case letters, digits, - and _, beginning with a letter",
        )
    with open_source(place, access) as source:
        columns = source.columns()
        if not persons:
            if key:
                raise InputError(
                    "a table about no persons has no column of identifiers",
                    code="key-without-persons",
                    hint="leave out --key, or --no-persons",
                )
            _check_no_persons(source, [c.name for c in columns if c.type in _MAY_IDENTIFY], today)
        elif key:
            check_columns(columns, [key])
        else:
            key = _key_column(source, [c.name for c in columns if c.type == "text"], today)
        snapshot = source.snapshot()
        if persons:
            rows, distinct = _count_keys(source, key, today) if key else (0, 0)
        else:
            rows = distinct = sum(batch.num_rows for batch in source.read([columns[0].name]))
    # A department that says what it publishes may register a list before it is filled.
    if published_keys is None and rows == 0:
        raise InputError(
            "the table has no rows",
            code="empty-table",
            hint="register the dataset once it has data, or say what to publish with --published-keys",
        )
    if published_keys is None and distinct == 0:
        raise InputError(
            f"none of the {rows} rows has a usable identifier in column {key}",
            code="no-usable-key",
            hint="name the column that holds the identifiers with --key; it must be stored as text",
        )
    return Dataset(
        name=DatasetName(name),
        title=title or name,
        place=place,
        key=key,
        columns=columns,
        rows=rows,
        distinct_keys=distinct,
        published_keys=rounded(distinct) if published_keys is None else published_keys,
        snapshot=snapshot,
    )


@cache
def _every_area() -> "AreaTable":
    from protocols.identifiers import AreaTable

    return AreaTable.of(f"{first:02d}" for first in range(10, 100))


def _normalised(column: Any, today: date) -> "npt.NDArray[np.bytes_]":
    """Return the typed keys of a column under every area code there is: this counts, it does not judge."""
    from protocols.identifiers import normalise

    return normalise(column, "resident-id", as_of=today, areas=_every_area()).keys


def _first_rows(source: Source, names: Sequence[str]) -> Any:
    """Return these columns of the first rows, a record batch; None without columns or rows."""
    batch = next(iter(source.read(list(names))), None) if names else None
    return None if batch is None or batch.num_rows == 0 else batch.slice(0, SAMPLE_ROWS)


def _check_no_persons(source: Source, names: Sequence[str], today: date) -> None:
    """Refuse a table about no persons that has identifiers in more than one of a hundred first rows.

    A serial number of 18 digits passes for one less than once in 10,000 times: one hit proves nothing.
    """
    import pyarrow as pa

    sample = _first_rows(source, names)
    for name in names if sample is not None else ():
        column = sample.column(name)
        if pa.types.is_integer(column.type) or pa.types.is_decimal(column.type):
            column = column.cast(pa.string())
        if 100 * len(_normalised(column, today)) > sample.num_rows:
            raise InputError(
                f"the table is said to be about no persons, but column {name} holds identifiers of persons",
                code="persons-found",
                hint=f"leave out --no-persons and give --key {name}, or take that column out of the file",
            )


def _key_column(source: Source, names: Sequence[str], today: date) -> str:
    """Return the text column in which most of the first rows hold identifiers, empty for an empty table."""
    best, found = "", 0
    sample = _first_rows(source, names)
    if names and sample is None:
        return ""
    for name in names:
        hits = len(_normalised(sample.column(name), today))
        if hits > found:
            best, found = name, hits
    if sample is None or 2 * found < sample.num_rows:
        raise InputError(
            "no column of text holds identifiers in most of its rows",
            code="no-key-column",
            hint="name the column with --key; identifiers must be stored as text, never as numbers",
        )
    return best


def _count_keys(source: Source, key: str, today: date) -> tuple[int, int]:
    """Return rows and distinct keys; memory is the keys, not the table."""
    import numpy as np

    rows = 0
    parts: list[npt.NDArray[np.bytes_]] = []
    for batch in source.read([key]):
        rows += batch.num_rows
        parts.append(_normalised(batch.column(0), today))
    if not parts:
        return 0, 0
    keys = np.concatenate(parts)
    return rows, len(np.unique(keys))


def rounded(count: int) -> int:
    """Return `count` with three digits that count, as the catalogue publishes it."""
    step = 10 ** max(len(str(count)) - SHOWN_DIGITS, 0)
    return int((count + step // 2) // step * step)


def publish(datasets: Sequence[Dataset], node: NodeName, signer: Signer, now: datetime) -> bytes:
    """Return the signed catalogue, an envelope; empty for a node without datasets."""
    if not datasets:
        return b""
    payload = canonical_json(
        {
            "schema": SCHEMA,
            "node": node,
            "issued": utc_text(now),
            "datasets": [
                {
                    "name": dataset.name,
                    "title": dataset.title,
                    "key": dataset.key,
                    "columns": [{"name": c.name, "type": c.type} for c in dataset.columns],
                    "rows": rounded(dataset.rows),
                    "distinct_keys": dataset.published_keys,
                    "snapshot": dataset.snapshot,
                }
                for dataset in datasets
            ],
        }
    )
    return sign(CATALOGUE, payload, [signer]).encode()
