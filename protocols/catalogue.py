"""A node's catalogue as it is signed: `minshu-catalogue/2`, and the forms of what may stand in it.

One reader for all: a node signs nothing that it does not read, a coordinator keeps nothing else, and analysts
read by it. What another version would add is refused, so that nobody passes on what nobody checks.
"""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from protocols.encoding import decode_json
from protocols.errors import DecodeError
from protocols.freetext import UNREADABLE, could_identify
from protocols.ids import NodeName
from protocols.wire import is_column, is_node, parse_utc

SCHEMA: Final = "minshu-catalogue/2"
EARLIER: Final = "minshu-catalogue/1"
"""Of nodes that know no descriptions: names, types and counts alone."""

MAX_CATALOGUE: Final = 1 << 20
MAX_DATASETS: Final = 4096
MAX_COLUMNS: Final = 4096
MAX_COUNT: Final = 2**53 - 1

_SHOWN = f"(?!.*\\d{{11}})[^{UNREADABLE.pattern[1:-1]}]"
"""One line that people can read; eleven digits in a row, as many as a mobile number has, are in none."""

_HINT: Final = {"hint": "leave out what cannot be seen, and eleven or more digits in a row"}

Line = Annotated[
    str,
    Meta(
        pattern=rf"^{_SHOWN}{{1,128}}\Z",
        description="a text of 1 to 128 characters on one line, without eleven digits in a row",
        examples=["常住人口基本信息"],
        extra=_HINT,
    ),
]
LongLine = Annotated[
    str,
    Meta(
        pattern=rf"^{_SHOWN}{{1,1024}}\Z",
        description="a text of 1 to 1024 characters on one line, without eleven digits in a row",
        examples=["居住半年以上的人口"],
        extra=_HINT,
    ),
]
ItemId = Annotated[
    str,
    Meta(
        pattern=r"^(?!.*\d{11})[0-9A-Za-z](?:[0-9A-Za-z._/-]{0,62}[0-9A-Za-z])?\Z",
        description="a catalogue id of letters, digits and . _ / -, without eleven digits in a row",
        examples=["4401-001"],
    ),
]
CodeTableId = Annotated[
    str,
    Meta(
        pattern=r"^(?!.*\d{11})[a-z0-9](?:[a-z0-9._-]{0,46}[a-z0-9])?@[a-z0-9](?:[a-z0-9.-]{0,14}[a-z0-9])?\Z",
        description="a code table and its version",
        examples=["gbt2261.1@2003"],
    ),
]
Unit = Annotated[
    str,
    Meta(
        pattern=rf"^{_SHOWN}{{1,32}}\Z",
        description="a unit of 1 to 32 characters",
        examples=["yuan"],
        extra=_HINT,
    ),
]
UpdateDays = Annotated[int, Meta(ge=1, le=3_660, description="days, from 1 to 3660", examples=[7])]
Grade = Literal["core", "important", "general-4", "general-3", "general-2", "general-1"]
"""GB/T 43697-2024."""
Sharing = Literal["unconditional", "conditional", "none"]
"""无条件共享, 有条件共享, 不予共享 (国发〔2016〕51 号)."""
Kind = Literal["text", "integer", "decimal", "date", "time", "boolean", "other"]

_Count = Annotated[int, Meta(ge=0, le=MAX_COUNT)]
_Name = Annotated[str, Meta(pattern=r"^[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?\Z")]
_SHARE: Final = re.compile(r"[a-z][a-z_-]{0,31}")
_DEEPEST: Final = 4


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Every key known; what is left at its default is left out again."""


class Definition(_Strict, frozen=True, kw_only=True):
    """Which of several definitions of its words a dataset follows (口径), such as that of a resident.

    Attributes:
        id: `resident-population`.
        version: of the text; whoever changes the text gives it another.
        text: who or what counts; None where only its name is known.
    """

    id: ItemId
    version: ItemId
    text: LongLine | None = None

    @property
    def name(self) -> str:
        """`ID@VERSION`."""
        return f"{self.id}@{self.version}"


class PublishedColumn(_Strict, frozen=True, kw_only=True):
    """One column, as jobs can name it."""

    name: str
    type: Kind
    title: Line | None = None
    item: ItemId | None = None
    code_table: CodeTableId | None = None
    unit: Unit | None = None
    nullable: bool = True
    authoritative: bool = False
    organisation: Line | None = None


class Announced(_Strict, frozen=True, kw_only=True):
    """A dataset that is catalogued and that no job can name yet."""

    name: _Name
    title: Line
    columns: Annotated[tuple[PublishedColumn, ...], Meta(max_length=MAX_COLUMNS)]
    item: ItemId | None = None
    organisation: Line | None = None
    grade: Grade | None = None
    sharing: Sharing | None = None
    purposes: Annotated[tuple[Line, ...], Meta(max_length=32)] = ()
    update_days: UpdateDays | None = None
    definition: Definition | None = None
    legal_basis: LongLine | None = None


class Published(Announced, frozen=True, kw_only=True):
    """A registered dataset; `key` is empty where no column of identifiers is published."""

    key: str
    rows: _Count
    distinct_keys: _Count
    snapshot: str
    quality: dict[str, Any] = {}


class Document(_Strict, frozen=True, kw_only=True):
    """All that a node publishes; `issued` is when it was signed."""

    schema: Literal["minshu-catalogue/2"]
    node: str
    issued: str
    datasets: Annotated[tuple[Published, ...], Meta(max_length=MAX_DATASETS)]
    announced: Annotated[tuple[Announced, ...], Meta(max_length=MAX_DATASETS)] = ()

    @property
    def name(self) -> NodeName:
        """Whose it is."""
        return NodeName(self.node)

    @property
    def moment(self) -> datetime:
        """When it was signed."""
        return parse_utc(self.issued)


_FIELDS: Final = {
    name for each in (Document, Published, PublishedColumn, Definition) for name in each.__struct_fields__
}
_PATH: Final = re.compile(rf"`\$(?:\.(?:{'|'.join(sorted(_FIELDS))})|\[(?:[0-9]{{1,6}}|\.\.\.)\])*`")
"""Where something stands, as msgspec has it, in words of this module alone."""


def may_be_published(column: object) -> bool:
    """Whether a column's name may stand in a catalogue: a job can use it, and it can be nobody's number."""
    return is_column(column) and not could_identify(str(column))


def read_catalogue(payload: bytes) -> Document:
    """Read a catalogue strictly; one of `minshu-catalogue/1` as what it says in the newer form.

    (1) Canonical JSON of at most a MiB, of a known schema. (2) Every field known and of its form. (3) Columns
    have names that jobs can use, each dataset one of a name. (4) The catalogue lists no dataset twice.

    Raises:
        DecodeError: with the step that fails; the message repeats nothing of what stands there.
    """
    # (1)
    plain = decode_json(payload, limit=MAX_CATALOGUE)
    schema = plain.get("schema") if isinstance(plain, dict) else None
    if schema == EARLIER:
        plain = _newer(plain)
    elif schema != SCHEMA:
        raise DecodeError(
            f"the catalogue has an unknown schema, expected {SCHEMA}",
            code="unknown-schema",
            hint="both sides need a release that knows it",
        )
    # (2)
    try:
        found = msgspec.convert(plain, Document, strict=True)
    except msgspec.ValidationError as error:
        # An unknown key stands in the message as its author wrote it, and may read like the end of one.
        where = str(error).rpartition(" - at ")[2]
        raise _bad(f"{where if _PATH.fullmatch(where) else 'it'} is not of its form") from None
    if not is_node(found.node):
        raise _bad("its node is no node's name")
    parse_utc(found.issued)
    for each in (*found.datasets, *found.announced):
        # (3)
        names = [column.name for column in each.columns]
        if not all(map(may_be_published, names)) or len(set(names)) != len(names):
            raise _bad("a column has a name that no job can use, or that another one has")
        if isinstance(each, Published):
            if each.key and not may_be_published(each.key):
                raise _bad("a key column has a name that no job can use")
            parse_utc(each.snapshot)
            if not _is_quality(each.quality):
                raise _bad("figures of quality are not of their form")
    # (4)
    every = [each.name for each in (*found.datasets, *found.announced)]
    if len(set(every)) != len(every):
        raise _bad("it lists a dataset twice")
    return found


def _bad(what: str) -> DecodeError:
    return DecodeError(
        f"a catalogue cannot be read: {what}",
        code="bad-catalogue",
        hint="have its node publish it again, with a release that knows this form",
    )


def _newer(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return an earlier catalogue in the newer form; columns that jobs cannot name are left out."""
    found = {**plain, "schema": SCHEMA}
    datasets = found.get("datasets")
    if isinstance(datasets, list):
        found["datasets"] = [
            {**each, "columns": [c for c in each["columns"] if _can_be_named(c)]}
            if isinstance(each, dict) and isinstance(each.get("columns"), list)
            else each
            for each in datasets
        ]
    return found


def _can_be_named(column: Any) -> bool:
    return not isinstance(column, dict) or may_be_published(column.get("name"))


def _is_quality(value: Any, deep: int = 0) -> bool:
    """Whether figures are numbers, flags and short texts, under names of columns or of figures."""
    if isinstance(value, dict):
        known = all(isinstance(key, str) and (is_column(key) or _SHARE.fullmatch(key)) for key in value)
        return (
            deep < _DEEPEST
            and len(value) <= MAX_COLUMNS
            and known
            and all(_is_quality(each, deep + 1) for each in value.values())
        )
    if isinstance(value, str):
        return len(value) <= 64 and not UNREADABLE.search(value)
    return deep > 0 and isinstance(value, int | float)
