"""The catalogue: which datasets this department has, as other organisations may see them.

Adding a dataset scans it once: its columns, its rows, and how many distinct keys its key column holds. What
is published are names, types and rounded counts, never a path or a row. `published_keys` is fixed when the
dataset is added, so a list that is emptied or replaced later no longer fits what was published.

A column whose name no job can use is not published either: it may be anything, such as a record that stands
where the names should.
"""

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from functools import cache
from typing import TYPE_CHECKING, Any, Final, get_args

from msgspec import structs

from node.datasets import open_place
from node.description import NO_DESCRIPTION, Description
from node.journal import names as named
from node.mapping import pinned
from node.sources import Access, Place, Source, SourceColumn, check_columns
from node.state import Announced, Change, Dataset, State
from protocols.catalogue import SCHEMA, Line, may_be_published, read_catalogue
from protocols.encoding import canonical_json, sha256_digest
from protocols.envelope import CATALOGUE, Signer, sign
from protocols.errors import DecodeError, InputError
from protocols.ids import DatasetName, NodeName
from protocols.quality import SEED_BYTES, DistinctKeys
from protocols.wire import utc_text

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from protocols.identifiers import AreaTable

MAX_BYTES: Final = 760 << 10
"""Of what is signed. With its signature and in base64 it is within the MiB that a coordinator takes."""
ROOM_FOR_QUALITY: Final = 60 << 10
"""Bytes left for figures that change with the data, and that nobody may find too long then."""
NO_QUALITY: Final[Mapping[str, Mapping[str, Any]]] = {}
SAMPLE_ROWS: Final = 1000
SHOWN_DIGITS: Final = 3
_TITLE: Final = get_args(Line)[1]
_MAY_IDENTIFY: Final = ("text", "integer", "decimal")

_LONGEST_NODE: Final = NodeName(f"{'n' * 100}/{'n' * 64}")

_PUBLISHED: Final[tuple[str, ...]] = (
    "item", "organisation", "grade", "sharing", "purposes", "update_days", "definition", "legal_basis",
)  # fmt: skip
"""What a description says of the whole dataset to other organisations, beside its title."""

NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?")


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
    description: Description = NO_DESCRIPTION,
    tell: Callable[[int], object] = lambda _rows: None,
) -> Dataset:
    """Return the catalogue entry of a table.

    Args:
        name: the catalogue name that policies use, `local:NAME`.
        place: where the table lies; only this node ever sees it.
        title: for people; if empty, the description's, or the name.
        key: the column that holds identifiers; empty to look for it.
        published_keys: what to publish as the number of distinct keys; None for the scanned one.
        access: how datasets are read.
        today: the day on which ages are reckoned.
        persons: whether rows are about persons. Else there is no key column, each row counts as a key, and
            policies have to open the dataset as `personal = "none"`.
        description: what else is said about it.
        tell: told how many rows were counted so far.

    Raises:
        InputError: a name or title of another form, a table that cannot be read, an empty table, an unknown
            column, no column whose values are identifiers, a mapping of the column of identifiers, or of a
            table about no persons a key column or identifiers.
    """
    if not NAME.fullmatch(name):
        raise InputError(
            "the dataset's name does not have the expected form",
            code="bad-name",
            hint="use lower-case letters, digits, - and _, beginning with a letter",
        )
    _check_title(title)
    mapping = pinned(description.mapping, access.codes)
    description = structs.replace(description, mapping=mapping)
    with open_place(place, description, access) as source:
        columns = source.columns()
        description.check(columns)
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
        check_key(key, description)
        snapshot = source.snapshot()
        if persons:
            rows, distinct = _count_keys(source, key, today, tell) if key else (0, 0)
        else:
            rows = distinct = count_rows(source, columns[0].name, tell)
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
        title=title or description.title or name,
        place=place,
        key=key,
        columns=columns,
        rows=rows,
        distinct_keys=distinct,
        published_keys=rounded(distinct) if published_keys is None else published_keys,
        snapshot=snapshot,
        description=description,
    )


def _check_title(title: str) -> None:
    """Refuse a title that no catalogue may show."""
    if title and not _is_title(title):
        raise InputError(
            f"the title is not {_TITLE.description}",
            code="bad-title",
            hint="leave out what cannot be seen, and eleven or more digits in a row",
        )


def _is_title(text: str) -> bool:
    return re.fullmatch(str(_TITLE.pattern), text) is not None


def check_key(key: str, description: Description) -> None:
    """Refuse a mapping of the column of identifiers: it would make one person of several.

    Raises:
        InputError: `key-mapped`.
    """
    if key and key in description.mapping:
        raise InputError(
            f"column {key} holds the identifiers, and the description maps it",
            code="key-mapped",
            hint="take the column out of the description's mapping",
        )


def unpublished(columns: Sequence[SourceColumn]) -> int:
    """Return how many columns the catalogue does not list, for jobs cannot name them."""
    return sum(not may_be_published(each.name) for each in columns)


def log_registered(state: State, change: Change, dataset: Dataset) -> None:
    """Journal what a dataset is from here on; how its values become codes lies beside the journal."""
    names = [column.name for column in dataset.columns]
    body: dict[str, Any] = {
        "dataset": dataset.name,
        "rows": dataset.rows,
        "distinct_keys": dataset.distinct_keys,
        "columns": named(names),
        "count": len(names),
        "snapshot": dataset.snapshot,
    }
    if dataset.description != NO_DESCRIPTION:
        body["description_sha256"] = dataset.description.digest
    record = dataset.description.mapping_record
    if record:
        state.journal.put_object(record)
        body["mapping_sha256"] = sha256_digest(record)
    change.log("dataset.registered", body, refs=[sha256_digest(record)] if record else [])


@cache
def every_area() -> "AreaTable":
    """Return a table of every area code there could be: what is counted by it is not judged by its area."""
    from protocols.identifiers import AreaTable

    return AreaTable.of(f"{first:02d}" for first in range(10, 100))


def _normalised(column: Any, today: date) -> "npt.NDArray[np.bytes_]":
    """Return the typed keys of a column under every area code there is: this counts, it does not judge."""
    from protocols.identifiers import normalise

    return normalise(column, "resident-id", as_of=today, areas=every_area()).keys


def _first_rows(source: Source, names: Sequence[str]) -> Any:
    """Return these columns of the first rows, a record batch; None without columns or rows."""
    batch = next(iter(source.read(list(names))), None) if names else None
    return None if batch is None or batch.num_rows == 0 else batch.slice(0, SAMPLE_ROWS)


def _check_no_persons(source: Source, names: Sequence[str], today: date) -> None:
    """Refuse a table about no persons that has identifiers in more than one of a hundred first rows.

    A serial number of 18 digits passes for one less than once in 10,000 times: one hit proves nothing.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    sample = _first_rows(source, names)
    for name in names if sample is not None else ():
        column = sample.column(name)
        if pa.types.is_floating(column.type):
            continue  # 18 digits are more than any of them holds
        if pa.types.is_integer(column.type) or pa.types.is_decimal(column.type):
            column = pc.replace_substring_regex(column.cast(pa.string()), pattern=r"\.0*$", replacement="")
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


def count_rows(source: Source, column: str, tell: Callable[[int], object]) -> int:
    """Return how many rows a source has, as many as its batches of one column hold."""
    rows = 0
    for batch in source.read([column]):
        rows += batch.num_rows
        tell(rows)
    return rows


def _count_keys(source: Source, key: str, today: date, tell: Callable[[int], object]) -> tuple[int, int]:
    """Return rows and distinct keys; memory is ten bytes for each distinct key."""
    rows, distinct = 0, DistinctKeys(secrets.token_bytes(SEED_BYTES))
    for batch in source.read([key]):
        rows += batch.num_rows
        distinct.add(_normalised(batch.column(0), today))
        tell(rows)
    return rows, distinct.count()


def rounded(count: int) -> int:
    """Return `count` with three digits that count, as the catalogue publishes it."""
    step = 10 ** max(len(str(count)) - SHOWN_DIGITS, 0)
    return int((count + step // 2) // step * step)


def publish(
    datasets: Sequence[Dataset],
    node: NodeName,
    signer: Signer,
    now: datetime,
    *,
    announced: Sequence[Announced] = (),
    quality: Mapping[str, Mapping[str, Any]] = NO_QUALITY,
) -> bytes:
    """Return the signed catalogue, an envelope; empty for a node that has nothing to list or to hide.

    Args:
        datasets: those that are registered; what is not `shown` is left out.
        node: whose catalogue it is.
        signer: its identity key.
        now: when it is signed.
        announced: datasets that are catalogued, but not registered yet.
        quality: of datasets by name, what their last preflight found: shares rounded to 0.1 %.

    Raises:
        DecodeError: nobody could read it.
    """
    if not datasets and not announced:
        return b""
    payload = document(datasets, announced, node, now, quality)
    if len(payload) > MAX_BYTES:  # registering leaves room for shares, if not for all of them
        payload = document(datasets, announced, node, now, NO_QUALITY)
    read_catalogue(payload)
    return sign(CATALOGUE, payload, [signer]).encode()


def document(
    datasets: Sequence[Dataset],
    announced: Sequence[Announced],
    node: NodeName,
    now: datetime,
    quality: Mapping[str, Mapping[str, Any]] = NO_QUALITY,
) -> bytes:
    """Return what a catalogue says, unsigned. `minshu-catalogue/2`."""
    return canonical_json(
        {
            "schema": SCHEMA,
            "node": node,
            "issued": utc_text(now),
            "datasets": [
                {
                    **_said(each.name, each.title, each.columns, each.description),
                    "key": each.key if may_be_published(each.key) else "",
                    "rows": rounded(each.rows),
                    "distinct_keys": each.published_keys,
                    "snapshot": each.snapshot,
                    **({"quality": _figures(quality[each.name])} if each.name in quality else {}),
                }
                for each in datasets
                if each.description.shown
            ],
            "announced": [
                _said(each.name, each.description.title or each.name, each.columns, each.description)
                for each in announced
                if each.description.shown
            ],
        }
    )


def check_room(datasets: Sequence[Dataset], announced: Sequence[Announced]) -> None:
    """Check that a catalogue of all of these can be handed out, and read by others.

    Raises:
        InputError: `catalogue-too-long`; or what no reader would take.
    """
    payload = document(datasets, announced, _LONGEST_NODE, datetime(9999, 1, 1, tzinfo=UTC))
    size = len(payload)
    if size > MAX_BYTES - ROOM_FOR_QUALITY:
        raise InputError(
            f"the catalogue would have {size} bytes, at most {MAX_BYTES - ROOM_FOR_QUALITY} can be published",
            code="catalogue-too-long",
            hint="describe columns more briefly, or leave out those that nobody may ask about",
        )
    try:
        read_catalogue(payload)
    except DecodeError as error:
        raise InputError(
            error.message, code=error.code, hint="describe the dataset in the forms that a catalogue has"
        ) from None


def _said(name: str, title: str, columns: Sequence[SourceColumn], description: Description) -> dict[str, Any]:
    """Return what is published about a dataset, registered or announced; what nobody said is left out."""
    plain = description.to_json()
    said = {key: plain[key] for key in _PUBLISHED if key in plain}
    published = [_column(each, description) for each in columns if may_be_published(each.name)]
    # Earlier releases took any title.
    shown = title if _is_title(title) else name
    return {**said, "name": name, "title": shown, "columns": published}


def _figures(quality: Mapping[str, Any]) -> dict[str, Any]:
    """Return figures of quality without those of columns that are not published."""
    return {
        name: {column: figure for column, figure in each.items() if may_be_published(column)}
        if isinstance(each, Mapping)
        else each
        for name, each in quality.items()
    }


def _column(column: SourceColumn, description: Description) -> dict[str, Any]:
    plain = description.column(column.name).to_json()
    if description.is_authoritative(column.name):
        plain["authoritative"] = True
    if table := description.code_table(column.name):
        plain["code_table"] = table
    return {**plain, "name": column.name, "type": column.type}
