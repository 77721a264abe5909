"""A department's own catalogue (数源目录) as a spreadsheet, read strictly: all of it, or none.

One row is about one field, or about a whole dataset where it names no field. Headers are found by their
names, Chinese or English; `HEADERS` lists them. What is wrong is told with its cell, and nothing is imported.
"""

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeAlias

import msgspec

from node.catalogue import NAME, check_room, log_registered
from node.description import (
    MAX_COLUMNS,
    MAX_PURPOSES,
    ColumnDescription,
    Description,
    said_of,
)
from node.sources import ReadLimits, SourceColumn
from node.sources.encodings import decoded
from node.sources.excel import CellError, a1, sheet_rows
from node.state import Announced, Dataset, State
from policies.model import ColumnName
from protocols.catalogue import CodeTableId, Definition, ItemId, Line, LongLine, Unit, UpdateDays
from protocols.codes import cited
from protocols.errors import DecodeError, InputError
from protocols.freetext import folded, printable
from protocols.ids import DatasetName

MAX_FILE_BYTES: Final = 16 << 20
MAX_UNPACKED_BYTES: Final = 128 << 20
MAX_ROWS: Final = 20_000
MAX_CELLS: Final = 1_000_000
MAX_FAULTS: Final = 20
"""Most faults that are listed."""

MAX_NAME: Final = 128
"""Characters of a header or of a type; a longer one is none that is known."""

MAX_KNOWN: Final = 1000
"""Most that are looked for."""

HEADERS: Final[Mapping[str, tuple[str, ...]]] = {
    "item": ("目录编号", "信息资源代码", "数据项编号", "编号", "item", "catalogue id"),
    "field_title": ("数据项名称", "信息项名称", "字段中文名", "数据项", "field title"),
    "organisation": (
        "责任部门", "提供方", "信息资源提供方", "数源部门", "数源单位", "责任单位", "organisation", "owner",
    ),
    "dataset": ("数据集", "数据集标识", "dataset"),
    "title": ("数据集名称", "信息资源名称", "目录名称", "数据资源名称", "title"),
    "column": ("字段名", "字段英文名", "字段", "column", "field"),
    "type": ("字段类型", "数据类型", "类型", "type"),
    "code_table": ("代码表", "代码集", "字典", "code table"),
    "unit": ("计量单位", "unit"),
    "nullable": ("可空", "是否可空", "nullable"),
    "authoritative": ("权威数据源", "一数一源", "是否数源", "authoritative"),
    "sharing": ("共享属性", "共享类型", "sharing"),
    "grade": ("分级", "数据分级", "数据级别", "grade"),
    "update_days": ("更新周期", "更新频率", "update period"),
    "purposes": ("用途", "使用用途", "purposes"),
    "definition_id": ("口径编号", "definition"),
    "definition_version": ("口径版本", "definition version"),
    "definition_text": ("口径说明", "口径", "definition text"),
    "legal_basis": ("法律依据", "采集依据", "legal basis"),
}  # fmt: skip
"""What a sheet may say, and the headers that say it; the first of each is the template's."""

_OF_FIELD: Final = frozenset(
    {
        "item",
        "field_title",
        "organisation",
        "column",
        "type",
        "code_table",
        "unit",
        "nullable",
        "authoritative",
    }
)
"""What differs from field to field; the rest is about the dataset, and is the same or blank in its rows."""

_TYPES: Final[Mapping[str, tuple[str, ...]]] = {
    "text": (
        "字符型", "字符串型", "字符串", "字符", "文本", "文本型", "c", "char", "varchar", "varchar2",
        "nvarchar", "string", "text",
    ),
    "integer": ("整数型", "整数", "整型", "长整型", "i", "int", "integer", "bigint", "smallint"),
    "decimal": (
        "数值型", "数值", "数字型", "小数", "浮点型", "货币型", "n", "number", "numeric", "decimal",
        "double", "float",
    ),
    "date": ("日期型", "日期", "d", "date"),
    "time": ("日期时间型", "日期时间", "时间型", "时间", "时间戳", "t", "time", "datetime", "timestamp"),
    "boolean": ("布尔型", "布尔", "逻辑型", "l", "b", "bool", "boolean"),
    "other": ("二进制型", "二进制", "图片", "附件", "其他", "binary", "blob", "other"),
}  # fmt: skip

_SHARING: Final = {
    "无条件共享": "unconditional", "有条件共享": "conditional", "不予共享": "none",
    "unconditional": "unconditional", "conditional": "conditional", "none": "none",
}  # fmt: skip

_GRADES: Final = {
    "核心": "core", "重要": "important", **{f"一般{n}级": f"general-{n}" for n in (4, 3, 2, 1)},
    "核心数据": "core", "重要数据": "important", "core": "core", "important": "important",
    **{f"{form}{n}级": f"general-{n}" for form in ("一般数据", "") for n in (4, 3, 2, 1)},
    **{f"{form}{n}": f"general-{n}" for form in ("general-", "l") for n in (4, 3, 2, 1)},
}  # fmt: skip

_PERIODS: Final[Mapping[str, int | None]] = {
    "实时": 1, "每日": 1, "每天": 1, "每周": 7, "每月": 31, "每季度": 92, "每季": 92, "每半年": 184,
    "每年": 366, "不定期": None,
    "daily": 1, "weekly": 7, "monthly": 31, "quarterly": 92, "yearly": 366, "irregular": None,
}  # fmt: skip

_FLAGS: Final = {
    "是": True, "y": True, "yes": True, "true": True, "1": True, "√": True,
    "否": False, "n": False, "no": False, "false": False, "0": False,
}  # fmt: skip

_TAKES: Final[Mapping[str, str]] = {
    "item": "数据集或字段的编号, 如 4401-001; 不得有连续 11 位数字",
    "field_title": "字段的中文名称; 不填字段名的行, 为数据集名称",
    "organisation": "必填: 对数据集负责的部门; 字段另有责任部门的, 填在该字段的行",
    "dataset": "数据集在节点上的名称: 小写字母、数字、- 和 _; 不填则取目录编号",
    "title": "数据集的中文名称",
    "column": "字段在表中的名称; 不填则本行说明整个数据集",
    "type": "、".join(names[0] for names in _TYPES.values()),
    "code_table": "代码表及版本, 如 GB/T 2261.1-2003 或 gbt2261.1@2003",
    "unit": "数值的计量单位, 如 元",
    "nullable": "是或否",
    "authoritative": "本数据集是否该字段的唯一数据源: 是或否",
    "sharing": "无条件共享、有条件共享或不予共享",
    "grade": "核心、重要、一般4级 至 一般1级 (GB/T 43697-2024)",
    "update_days": "实时、每日、每周、每月、每季度、每半年、每年、不定期, 或天数",
    "purposes": "用途, 以顿号或分号分隔",
    "definition_id": "口径的编号; 须同时填写版本",
    "definition_version": "口径的版本, 如 2024",
    "definition_text": "口径的一句话说明",
    "legal_basis": "采集或持有数据的依据",
}
"""What each column of a sheet takes, for the template's second sheet."""

_DAYS: Final = re.compile(r"([1-9][0-9]{0,3})(?:天|日| ?days?)?")
_STANDARD: Final = re.compile(r"gb(/?[tz])?([0-9]{1,6}(?:\.[0-9]{1,3})?)[-—–]([0-9]{4})")
_SEPARATORS: Final = re.compile(r"[、,，;；\n]")

Row: TypeAlias = tuple[int, Sequence[str]]
"""A row's number in its sheet, from 1, and the text of its cells."""


@dataclass
class _Faults:
    """What is wrong with a sheet, in the order in which it was found."""

    known: list[str] = field(default_factory=list)

    def add(self, place: str, what: str) -> None:
        """Note a fault at a cell such as `C7`, or at a row."""
        self.known.append(f"{place}: {what}")

    def cell(self, error: CellError) -> None:
        """Note what is wrong with a cell of a workbook; past MAX_KNOWN, the rest is not looked at."""
        self.add(error.place.removeprefix("cell ").removeprefix("cells "), error.what)
        if len(self.known) >= MAX_KNOWN:
            self.refuse("the workbook")

    def refuse(self, what: str) -> None:
        """Raise InputError if there is any."""
        if not self.known:
            return
        shown = "".join(f"\n  {fault}" for fault in self.known[:MAX_FAULTS])
        more = len(self.known) - MAX_FAULTS
        raise InputError(
            f"nothing of {what} is imported, faults: {len(self.known)}{shown}"
            + (f"\n  and {more} more" if more > 0 else ""),
            code="bad-sheet",
            hint="correct these cells; minshu-node catalogue template FILE shows what is expected",
        )


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a sheet says of one dataset, and where.

    Attributes:
        name: the dataset's catalogue name.
        columns: its fields in the order of their rows; none where the sheet lists none.
        description: all else.
        row: the first row about it.
        rows: of each field.
        typed: fields whose type the sheet states; that of others is `other`.
        flags: `nullable` and `authoritative`, as far as the sheet has such a column.
    """

    name: DatasetName
    columns: tuple[SourceColumn, ...]
    description: Description
    row: int
    rows: dict[str, int]
    typed: frozenset[str]
    flags: frozenset[str]


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import leads to.

    Attributes:
        described: registered datasets with what the sheet says of them.
        announced: datasets that are not registered yet.
    """

    described: tuple[Dataset, ...]
    announced: tuple[Announced, ...]

    @property
    def count(self) -> int:
        """How many datasets the sheet is about."""
        return len(self.described) + len(self.announced)


@dataclass(frozen=True, slots=True)
class Sheet:
    """A sheet that was read: its entries, and the headers that nobody here knows, which are left alone."""

    entries: tuple[Entry, ...]
    ignored: tuple[str, ...]


def entries_to_json(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Return entries as plain JSON."""
    return list(msgspec.to_builtins(entries))


def entries_from_json(plain: Any) -> tuple[Entry, ...]:
    """Return the entries of `entries_to_json`'s output.

    Raises:
        DecodeError: `bad-entries`: another form.
    """
    try:
        return msgspec.convert(plain, tuple[Entry, ...])
    except msgspec.ValidationError:
        raise DecodeError(
            "the entries of a catalogue are not of their form",
            code="bad-entries",
            hint="import the sheet again, with the release that the node runs",
        ) from None


def read_sheet(name: str, data: bytes, *, owner: str = "") -> Sheet:
    """Return what a spreadsheet says.

    Args:
        name: the file's name; its ending says whether it is .xlsx or .csv.
        data: its bytes.
        owner: only rows with this 责任部门 are meant; empty for all.

    Raises:
        InputError: `bad-sheet`: formulas, merged cells, a missing header, a missing owner, an id or a field
            twice, a value that is none; all of them with their cells, and at most 20.
    """
    faults = _Faults()
    rows = _cells(name, data, faults)
    faults.refuse(name)
    if not rows:
        raise InputError(f"{name} has no rows", code="bad-sheet", hint="put the headers into the first row")
    places, ignored = _headers(rows[0], faults)
    faults.refuse(name)
    entries = _entries(rows[1:], places, folded(owner), faults)
    faults.refuse(name)
    if not entries:
        raise InputError(
            f"{name} lists no dataset" + (" of that owner" if owner else ""),
            code="bad-sheet",
            hint="write one row for each field, or for each dataset",
        )
    return Sheet(entries, ignored)


def template(name: str) -> bytes:
    """Return an empty sheet with every header, and what each takes; .csv has the headers alone.

    Raises:
        InputError: another ending.
    """
    first = [aliases[0] for aliases in HEADERS.values()]
    match Path(name).suffix.lower():
        case ".csv":
            return ("\ufeff" + ",".join(first) + "\r\n").encode("utf-8")
        case ".xlsx":
            return _workbook(first)
    raise _unknown_format()


def _workbook(first: list[str]) -> bytes:
    from openpyxl import Workbook

    book = Workbook()
    sheet = book.worksheets[0]
    sheet.title = "目录"
    sheet.append(first)
    sheet.freeze_panes = "A2"
    about = book.create_sheet("说明")
    about.append(["列", "也可写作", "填写"])
    for name, aliases in HEADERS.items():
        about.append([aliases[0], ", ".join(aliases[1:]), _TAKES[name]])
    made = io.BytesIO()
    book.save(made)
    return made.getvalue()


def match(entries: Sequence[Entry], datasets: Iterable[Dataset], what: str) -> Imported:
    """Return what becomes of a sheet's entries at a node that has these datasets.

    What the sheet does not say of a registered dataset stays as it was.

    Raises:
        InputError: `bad-sheet`: a field that a registered table does not have, or has with another type.
    """
    faults = _Faults()
    registered = {dataset.name: dataset for dataset in datasets}
    described, announced = [], []
    for entry in entries:
        dataset = registered.get(entry.name)
        if dataset is None:
            announced.append(Announced(entry.name, entry.columns, entry.description))
            continue
        types = {column.name: column.type for column in dataset.columns}
        for column in entry.columns:
            place = f"row {entry.rows[column.name]}"
            if column.name not in types:
                faults.add(place, f"the registered dataset {entry.name} has no column {column.name}")
            elif column.name in entry.typed and not _fits(column.type, types[column.name]):
                faults.add(
                    place, f"column {column.name} of {entry.name} is {types[column.name]} in its table"
                )
        described.append(_described(dataset, entry))
    faults.refuse(what)
    return Imported(tuple(described), tuple(announced))


def _described(dataset: Dataset, entry: Entry) -> Dataset:
    before, now = dataset.description, entry.description
    columns = dict(before.columns)
    for column in entry.columns:
        new = now.column(column.name)
        flags = {flag: getattr(new, flag) for flag in entry.flags}
        columns[column.name] = ColumnDescription(
            **(said_of(before.column(column.name)) | said_of(new) | flags)
        )
    said = said_of(before) | said_of(now) | {"columns": columns}
    if "authoritative" in entry.flags:
        listed = {column.name for column in entry.columns}
        said["authoritative"] = tuple(name for name in before.authoritative if name not in listed)
    return replace(dataset, title=now.title or dataset.title, description=Description(**said))


def _fits(said: str, stored: str) -> bool:
    kinds = {said, stored}
    return said == stored or "other" in kinds or kinds <= {"integer", "decimal"} or kinds <= {"date", "time"}


def import_entries(state: State, entries: Sequence[Entry], sha256: str) -> Imported:
    """Put a sheet's entries into the catalogue: descriptions of registered datasets, and announced ones.

    The sheet is the whole of what is announced: a dataset that it no longer lists is announced no longer.

    Args:
        state: the node's.
        entries: of the sheet.
        sha256: digest of the file, for the journal.

    Raises:
        InputError: as `match`, or `catalogue-too-long`; nothing is imported.
    """
    datasets = state.datasets()
    found = match(entries, datasets, "the sheet")
    described = {dataset.name: dataset for dataset in found.described}
    before = {dataset.name: dataset.description for dataset in datasets}
    check_room([described.get(each.name, each) for each in datasets], found.announced)
    with state.change() as change:
        for dataset in found.described:
            change.put_dataset(dataset)
            if dataset.description != before[dataset.name]:
                log_registered(state, change, dataset)
        change.announce(found.announced)
        change.log("catalogue.imported", {"count": found.count, "sha256": sha256})
    return found


# -- cells ---------------------------------------------------------------------------------------------------


def _cells(name: str, data: bytes, faults: _Faults) -> list[Row]:
    """Return the rows of a sheet that are not blank."""
    match Path(name).suffix.lower():
        case ".xlsx":
            found = _excel(name, data, faults)
        case ".csv":
            found = _csv(data, faults)
        case _:
            raise _unknown_format()
    rows: list[Row] = []
    count = 0
    for number, cells in found:
        texts = [cell.strip() for cell in cells]
        if not any(texts):
            continue
        rows.append((number, texts))
        count += len(texts)
        if len(rows) > MAX_ROWS or count > MAX_CELLS:
            raise InputError(
                f"{name} has more than {MAX_ROWS} rows or {MAX_CELLS} cells",
                code="too-long",
                hint="divide the catalogue by department",
            )
    return rows


def _unknown_format() -> InputError:
    return InputError(
        "the file's ending names no spreadsheet that is read here",
        code="unknown-format",
        hint="take a name that ends in .xlsx or .csv",
    )


def _excel(name: str, data: bytes, faults: _Faults) -> Iterator[Row]:
    """Yield the rows of the first sheet, by the parser that reads datasets, and as strictly."""
    try:
        yield from sheet_rows(io.BytesIO(data), ReadLimits(), faults.cell, most=MAX_UNPACKED_BYTES)
    except InputError as error:
        if error.code != "bad-file":
            raise
        raise InputError(
            f"{name} is no workbook that can be read",
            code="bad-sheet",
            hint="save it again as .xlsx, or as .csv",
        ) from None


def _csv(data: bytes, faults: _Faults) -> Iterator[Row]:
    number = 0
    try:
        for number, cells in enumerate(csv.reader(io.StringIO(decoded(data), newline=""), strict=True), 1):
            for at, cell in enumerate(cells, 1):
                if cell.lstrip().startswith("="):
                    faults.add(a1(number, at), "is a formula")
            yield number, cells
    except csv.Error:
        faults.add(f"row {number + 1}", "no line of CSV")


# -- headers -------------------------------------------------------------------------------------------------

_FIELD_OF: Final = {folded(alias): name for name, aliases in HEADERS.items() for alias in aliases}


def _bare(said: str) -> str:
    """Return a folded header or type without brackets at its end; empty for one that is too long."""
    if len(said) > MAX_NAME:
        return ""
    return said.partition("(")[0] if said.endswith(")") else said


def _headers(row: Row, faults: _Faults) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return where each thing is said, and the headers that say nothing known."""
    number, cells = row
    places: dict[str, int] = {}
    ignored = []
    for at, text in enumerate(cells):
        name = _FIELD_OF.get(_bare(folded(text).replace("*", "")))
        if name is None:
            if text:
                ignored.append(printable(text[:40]))
        elif name in places:
            faults.add(a1(number, at + 1), f"says the same as {a1(number, places[name] + 1)}")
        else:
            places[name] = at
    if "organisation" not in places:
        faults.add(f"row {number}", f"no header {HEADERS['organisation'][0]} (organisation)")
    if not places.keys() & {"dataset", "item"}:
        wanted = f"{HEADERS['dataset'][0]} (dataset) or {HEADERS['item'][0]} (item)"
        faults.add(f"row {number}", f"no header {wanted}")
    return places, tuple(ignored)


# -- rows ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Said:
    """One row: what it says, and in which cell."""

    number: int
    values: Mapping[str, str]
    places: Mapping[str, int]

    def cell(self, name: str) -> str:
        return a1(self.number, self.places[name] + 1)

    def get(self, name: str) -> str:
        return self.values.get(name, "")


def _entries(
    rows: Iterable[Row], places: Mapping[str, int], owner: str, faults: _Faults
) -> tuple[Entry, ...]:
    groups: dict[str, list[_Said]] = {}
    for number, cells in rows:
        values = {name: cells[at] for name, at in places.items() if at < len(cells) and cells[at]}
        said = _Said(number, values, places)
        given = "dataset" if said.get("dataset") else "item"
        name = said.get(given) if given == "dataset" else said.get(given).lower()
        if not name:
            faults.add(f"row {number}", "names neither a dataset nor a catalogue id")
        elif not NAME.fullmatch(name):
            faults.add(said.cell(given), "no name of a dataset: lower-case letters, digits, - and _")
        else:
            groups.setdefault(name, []).append(said)
    found = [_entry(DatasetName(name), group, faults) for name, group in groups.items()]
    _check_ids(groups, faults)
    return tuple(each for each in found if not owner or folded(each.description.organisation or "") == owner)


def _check_ids(groups: Mapping[str, Sequence[_Said]], faults: _Faults) -> None:
    first: dict[str, tuple[str, str]] = {}
    for name, group in groups.items():
        for said in group:
            if item := said.get("item"):
                other, cell = first.setdefault(item, (name, said.cell("item")))
                if other != name:
                    faults.add(said.cell("item"), f"the id of another dataset, see {cell}")


def _entry(name: DatasetName, group: Sequence[_Said], faults: _Faults) -> Entry:
    read = _Values(faults)
    whole: dict[str, _Said] = {}
    for said in group:
        for key in said.values:
            if key in _OF_FIELD:
                continue
            before = whole.setdefault(key, said)
            if before.get(key) != said.get(key):
                faults.add(said.cell(key), f"another value than {before.cell(key)}, of the same dataset")
    values: dict[str, Any] = {
        key: read.of(key, said) for key, said in whole.items() if key not in _DEFINITION and key != "dataset"
    }
    values["definition"] = read.definition(whole)
    owners = [said for said in group if said.get("organisation")]
    if owners:
        values["organisation"] = read.of("organisation", owners[0])
    else:
        faults.add(f"row {group[0].number}", f"no {HEADERS['organisation'][0]} (organisation)")
    alone = [said for said in group if not said.get("column")]
    for said in alone[1:]:
        faults.add(f"row {said.number}", f"about the dataset of row {alone[0].number} again, without a field")
    for said in alone[:1]:
        values.setdefault("title", read.of("field_title", said))
    fields = [said for said in group if said.get("column")]
    ids = [said.get("item") for said in fields if said.get("item")]
    numbered = len(set(ids)) > 1
    if not numbered:
        ofall = next((said for said in (*alone, *fields) if said.get("item")), None)
        values["item"] = read.of("item", ofall) if ofall else None
    elif alone:
        values["item"] = read.of("item", alone[0])
    columns: dict[str, SourceColumn] = {}
    described: dict[str, ColumnDescription] = {}
    seen: dict[str, str] = {}
    for said in fields:
        column = read.of("column", said) or ""
        if column in columns:
            faults.add(said.cell("column"), f"the field of row {read.rows[column]} again")
            continue
        read.rows[column] = said.number
        if numbered and (item := said.get("item")):
            if item in seen:
                faults.add(said.cell("item"), f"the id of another field, see {seen[item]}")
            seen.setdefault(item, said.cell("item"))
        columns[column] = SourceColumn(column, read.of("type", said) or "other")
        described[column] = _column(said, read, values.get("organisation"), numbered=numbered)
    if len(columns) > MAX_COLUMNS:
        faults.add(f"row {group[0].number}", f"a dataset of more than {MAX_COLUMNS} fields")
    known = {key: value for key, value in values.items() if value is not None}
    bare = ColumnDescription()
    known["columns"] = {column: about for column, about in described.items() if about != bare}
    return Entry(
        name=name,
        columns=tuple(columns.values()),
        description=Description(**known),
        row=group[0].number,
        rows=read.rows,
        typed=frozenset(said.get("column") for said in fields if said.get("type")),
        flags=frozenset({"nullable", "authoritative"} & group[0].places.keys()),
    )


def _column(said: _Said, read: "_Values", organisation: str | None, *, numbered: bool) -> ColumnDescription:
    values = {
        "title": read.of("field_title", said),
        "item": read.of("item", said) if numbered else None,
        "code_table": read.of("code_table", said),
        "unit": read.of("unit", said),
        "nullable": read.of("nullable", said),
        "authoritative": read.of("authoritative", said),
        "organisation": read.of("organisation", said),
    }
    if values["organisation"] == organisation:
        values["organisation"] = None
    return ColumnDescription(**{key: value for key, value in values.items() if value is not None})


class _Values:
    """Reads what cells say; what cannot be read is noted, and None."""

    def __init__(self, faults: _Faults) -> None:
        self.faults = faults
        self.rows: dict[str, int] = {}

    def of(self, name: str, said: _Said) -> Any:
        """Return what a row says of something; None for a blank cell."""
        text = said.get(name)
        if not text:
            return None
        try:
            return _READERS[name](text)
        except ValueError as error:
            self.faults.add(said.cell(name), str(error))
            return None

    def definition(self, whole: Mapping[str, _Said]) -> Definition | None:
        """Return which definition rows name."""
        said = {key: self.of(key, whole[key]) for key in _DEFINITION if key in whole}
        if not said:
            return None
        identifier, version = said.get("definition_id"), said.get("definition_version")
        if identifier is None or version is None:
            where = next(iter(whole[key].cell(key) for key in _DEFINITION if key in whole))
            self.faults.add(where, "a definition takes its id and its version")
            return None
        try:
            return cited(Definition(id=identifier, version=version, text=said.get("definition_text")))
        except InputError as error:
            self.faults.add(whole["definition_id"].cell("definition_id"), f"{error.message}; {error.hint}")
            return None


_DEFINITION: Final = ("definition_id", "definition_version", "definition_text")


def _text_of(kind: Any) -> Callable[[str], str]:
    """Return a reader of texts of a type that says what it is in words."""
    expected = kind.__metadata__[0].description

    def read(text: str) -> str:
        try:
            return str(msgspec.convert(text, kind))
        except msgspec.ValidationError:
            raise ValueError(f"expected {expected}") from None

    return read


def _one_of(known: Mapping[str, Any], what: str) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return known[folded(text)]
        except KeyError:
            raise ValueError(f"unknown {what}; known: {_spelt(known)}") from None

    return read


def _spelt(known: Mapping[str, Any]) -> str:
    """Return each value as it is spelt first."""
    first: dict[Any, str] = {}
    for word, value in known.items():
        first.setdefault(value, word)
    return ", ".join(first.values())


def _type(text: str) -> str:
    """Return a column's type: `字符型`, `varchar(50)`, `数值型N`."""
    bare = _bare(folded(text))
    for form in (bare, re.sub(r"(?<=[^\x00-\x7f])[a-z]$", "", bare)):
        for kind, names in _TYPES.items():
            if form in names:
                return kind
    first = ", ".join(names[0] for names in _TYPES.values())
    raise ValueError(f"unknown type; known: {first}")


def _period(text: str) -> int | None:
    said = folded(text)
    if said in _PERIODS:
        return _PERIODS[said]
    days = _DAYS.fullmatch(said)
    try:
        return msgspec.convert(int(days.group(1)) if days else None, UpdateDays)
    except msgspec.ValidationError:
        raise ValueError(f"unknown period; known: {_spelt(_PERIODS)}, or days from 1 to 3660") from None


def _code_table(text: str) -> str:
    """Return a code table's id; `GB/T 2261.1-2003` is `gbt2261.1@2003`."""
    said = folded(text)
    if standard := _STANDARD.fullmatch(said):
        kind, number, year = standard.groups()
        said = f"gb{(kind or '').removeprefix('/')}{number}@{year}"
    return _text_of(CodeTableId)(said)


def _purposes(text: str) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(filter(None, (part.strip() for part in _SEPARATORS.split(text)))))
    if len(found) > MAX_PURPOSES:
        raise ValueError(f"more than {MAX_PURPOSES} purposes")
    return tuple(map(_text_of(Line), found))


_line: Final = _text_of(Line)
_long: Final = _text_of(LongLine)
_id: Final = _text_of(ItemId)
_flag: Final = _one_of(_FLAGS, "answer")

_READERS: Final[Mapping[str, Callable[[str], Any]]] = {
    "item": _id,
    "field_title": _line,
    "organisation": _line,
    "title": _line,
    "column": _text_of(ColumnName),
    "type": _type,
    "code_table": _code_table,
    "unit": _text_of(Unit),
    "nullable": _flag,
    "authoritative": _flag,
    "sharing": _one_of(_SHARING, "sharing"),
    "grade": _one_of(_GRADES, "grade"),
    "update_days": _period,
    "purposes": _purposes,
    "definition_id": _id,
    "definition_version": _id,
    "definition_text": _long,
    "legal_basis": _long,
}
