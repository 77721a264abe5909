"""One sheet of an .xlsx workbook through openpyxl: the first row names the columns, further rows are records.

A sheet has no column types, only cells: what is read is text, as from a CSV file. Text stays as it is;
a number is written out with the 15 digits a spreadsheet keeps, a date as `2026-11-22`, a date with time as
`2026-11-22 08:00:00`, a truth value as `true` or `false`. A date whose format shows no time is read without
one; where the format shows only a year or a month, it is still read as the whole day.

What a person sees in a sheet may be another thing than what is stored in it. Where the two can differ, or a
value is lost already, the sheet is refused, with the cell: formulas, error values, merged cells, hidden rows
and columns, blank rows between records, values without a column name, identifiers stored as numbers, and
numbers that are shown with digits they do not have. All columns are looked at, whichever a job reads, and all
of it before the first row is handed over; rows are kept in Arrow until then, in bounded memory.

`sheet_rows` reads other sheets, which are no datasets, with the same eyes.
"""

import datetime as dt
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Final, TypeAlias

from node.sources.files import File, gone, identity
from node.sources.source import ReadLimits, SourceColumn, changed, check_columns, check_header
from protocols.errors import InputError

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

    import pyarrow as pa

MAX_PARTS: Final = 10_000
MAX_UNPACKED_BYTES: Final = 1 << 30
"""A sheet of the largest size, a million rows of twenty columns, unpacks to less."""

MAX_ROWS: Final = 1_048_576
MAX_COLUMNS: Final = 16_384
"""As ECMA-376 and the programs that write sheets have it."""

MAX_ITEM_BYTES: Final = 4 << 20
MAX_ITEM_ELEMENTS: Final = 8 * MAX_COLUMNS
MAX_OTHERS: Final = 1 << 20
"""What one row, or another item of a sheet such as a link, may come to; and how many others than rows."""

MAX_VALUES_HELD: Final = 1 << 20
MAX_CHARACTERS_HELD: Final = 8 << 20
"""Of rows that are not in Arrow yet."""

TREE_BYTES: Final = 1024
"""What an XML element comes to of which openpyxl makes an object."""

STRING_BYTES: Final = 64
"""What is left of one among the texts that cells share."""

EXACT: Final = 10**15
"""A spreadsheet keeps 15 digits of a number: of larger ones the last are not what was typed."""

_OLE: Final = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_WORKSHEET: Final = re.compile(r"/?xl/worksheets/[^/]+\.xml")
_MANY: Final = 10
_LEAST_HEIGHT: Final = 1.0  # points
_LEAST_WIDTH: Final = 0.5  # characters
# Of a number format: a text to show as it is, one character of it, a blank as wide as one, one that fills.
_LITERAL = re.compile(r'"([^"]*)"?|[\\!](.)|_.|\*(.)')
_ESCAPED: Final = re.compile("_x([0-9A-Fa-f]{4})_")
_CONDITION = re.compile(r"\[(<=|>=|<>|<|>|=)\s*(-?[0-9]+(?:\.[0-9]+)?)\]")
_BRACKETS = re.compile(r"\[([^\]]*)\]")
# ECMA-376 part 1, 18.8.30: what these mean in a workbook made in Chinese; openpyxl does not know them.
_ZH_DATES: Final = frozenset({*range(27, 32), 36, *range(50, 55), 57, 58})
_ZH_TIMES: Final = frozenset({32, 33, 34, 35, 55, 56})
_BROKEN: Final = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    NotImplementedError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What zipfile, expat and openpyxl raise on bytes that are no workbook; their messages may quote cells."""


class CellError(InputError):
    """What is wrong with a place of a sheet.

    Attributes:
        place: `cell A3`, `cells A2:A3`, `row 3`, `column B`; empty for the sheet as a whole.
        what: the rest of the sentence.
    """

    def __init__(self, place: str, what: str, *, code: str, hint: str) -> None:
        """Make the message of both."""
        super().__init__(f"{place} {what}", code=code, hint=hint)
        self.place, self.what = place, what


Fault: TypeAlias = Callable[[CellError], object]
"""Told of what is wrong with a sheet: raises it, or notes it so that reading goes on."""


def _raise(error: CellError) -> None:
    raise error


@dataclass(frozen=True, slots=True)
class ExcelSheet(File):
    """A sheet of an .xlsx workbook; empty for the only one that is shown."""

    sheet: str = ""

    def columns(self) -> tuple[SourceColumn, ...]:
        """Return the header's columns; each is text. Raises as `Source.columns`."""
        with self._opened() as sheet:
            return tuple(SourceColumn(name, "text") for name in sheet.header())

    def read(self, columns: Sequence[str]) -> Iterator["pa.RecordBatch"]:
        """Yield batches of text columns, once the whole sheet is found in order.

        Raises:
            InputError: as `Source.read`; or a cell that may not be what it seems, see this module.
        """
        before = identity(self.path)
        with self._opened() as sheet:
            batches = sheet.batches(columns)
        if identity(self.path) != before:
            raise changed()
        batches.reverse()
        while batches:
            yield batches.pop()

    @contextmanager
    def _opened(self) -> Iterator["_Sheet"]:
        try:
            file = self.path.open("rb")
        except OSError as error:
            raise gone(error) from None
        with file, _opened(file, self.sheet, self.limits, _raise, MAX_UNPACKED_BYTES) as sheet:
            yield sheet


def sheet_rows(
    file: BinaryIO, limits: ReadLimits, fault: Fault, *, most: int
) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of a workbook's first sheet that hold anything: number from 1, and the texts of cells.

    Blank rows and cells without a header may stand in it. A cell that is at fault comes as an empty text.

    Args:
        file: the workbook, at its beginning.
        limits: of this reading.
        fault: told of each cell, row or column that may not be what it seems; merged cells come last.
        most: bytes that the workbook may unpack to.

    Raises:
        InputError: the file is no workbook, or takes more memory than it may; or what `fault` raises.
    """
    with _opened(file, None, limits, fault, most) as sheet:
        first = True
        for number, cells in sheet.rows():
            sheet.check_row_shown(number)
            texts = [""] * cells[-1].column
            for cell in cells:
                texts[cell.column - 1] = sheet.text(cell) or ""
            if first:
                sheet.check_columns_shown(len(texts))
                first = False
            yield number, texts
        sheet.check_merged()


@dataclass(frozen=True, slots=True)
class _Cell:
    """A cell that holds something."""

    row: int
    column: int
    value: Any
    kind: str
    style: int

    @property
    def place(self) -> str:
        return f"cell {a1(self.row, self.column)}"


class _Part:
    """A part of the package, of which no more is unpacked than its parser makes something of."""

    def __init__(self, part: IO[bytes]) -> None:
        self._part = part
        self.since = 0

    def read(self, size: int = -1, /) -> bytes:
        data = self._part.read(size)
        self.since += len(data)
        if self.since > MAX_ITEM_BYTES:
            raise _too_large(f"a row or another item of the sheet has more than {MAX_ITEM_BYTES >> 20} MiB")
        return data


@dataclass(slots=True)
class _Sheet:
    """One reading of a sheet: openpyxl's parser of its cells, and what the workbook says of them.

    Attributes:
        workbook: openpyxl's, of which this sheet is one.
        parser: openpyxl's, for one cell at a time.
        part: the sheet's own part, at its beginning.
        limits: of this reading.
        fault: told of what is wrong.
    """

    workbook: Any
    parser: Any
    part: _Part
    limits: ReadLimits
    fault: Fault
    _kinds: dict[int, str] = field(default_factory=dict)
    _formats: dict[int, str] = field(default_factory=dict)
    _hidden: list[int] = field(default_factory=list)
    _low: bool = False
    _hides: bool = False
    _merged: str = ""
    _rows: Iterator[tuple[int, list[_Cell]]] | None = None

    def rows(self) -> Iterator[tuple[int, list[_Cell]]]:
        """Return what is left of the rows that hold anything; after each, `check_row_shown` tells of it.

        Raises:
            InputError: too much for one sheet.
            ValueError: rows or cells out of order.
        """
        if self._rows is None:
            self._rows = self._parsed()
        return self._rows

    def _parsed(self) -> Iterator[tuple[int, list[_Cell]]]:
        from openpyxl.xml.functions import iterparse

        # What is under the root: sections, and in these items such as rows. Of both nothing is kept.
        path: list[Element] = []
        last = others = elements = 0
        for event, element in iterparse(self.part, events=("start", "end")):
            if event == "start":
                path.append(element)
                elements += 1
                if elements > MAX_ITEM_ELEMENTS:
                    raise _too_large("a row or another item of the sheet has too many parts")
                continue
            path.pop()
            if len(path) > 2:
                continue
            name = element.tag.rpartition("}")[2]
            section = path[-1].tag.rpartition("}")[2] if path else ""
            if (section, name) == ("sheetData", "row"):
                last, cells = self._row(element, last)
                if cells:
                    yield last, cells
            else:
                others += 1
                if others > MAX_OTHERS:
                    raise _too_large("the sheet has too many parts")
                self._about(section, name, element)
            if path:
                path[-1].remove(element)
            self.part.since = elements = 0

    def _about(self, section: str, name: str, element: "Element") -> None:
        """Note what a sheet says of its columns, of rows in general, and of merged cells."""
        if name == "sheetFormatPr":
            height = element.get("defaultRowHeight")
            self._low = _true(element.get("zeroHeight")) or _less(height, _LEAST_HEIGHT)
        elif (section, name) == ("cols", "col"):
            first = int(element.attrib["min"])
            hidden = _true(element.get("hidden")) or _less(element.get("width"), _LEAST_WIDTH)
            if hidden and first <= MAX_COLUMNS:
                self._hidden.append(first)
        elif (section, name) == ("mergeCells", "mergeCell"):
            self._merged = self._merged or element.attrib["ref"]

    def _row(self, row: "Element", last: int) -> tuple[int, list[_Cell]]:
        """Return a row's number and its cells that hold something."""
        from openpyxl.utils.cell import coordinate_to_tuple

        number = int(row.get("r", last + 1))
        if not last < number <= MAX_ROWS:
            raise ValueError
        self.parser.row_counter, self.parser.col_counter = number, 0
        cells: list[_Cell] = []
        column = 0
        for element in row:
            if not element.tag.endswith("}c"):
                continue
            if not len(element):
                place = element.get("r")
                self.parser.col_counter = (
                    coordinate_to_tuple(place)[1] if place else self.parser.col_counter + 1
                )
                continue
            told = self.parser.parse_cell(element)
            # Where two cells claim one place, programs differ in which they show.
            if told["row"] != number or not column < told["column"] <= MAX_COLUMNS:
                raise ValueError
            column = told["column"]
            if told["value"] not in (None, ""):
                cells.append(_Cell(number, column, told["value"], told["data_type"], int(told["style_id"])))
        height = row.get("ht")
        low = self._low and height is None
        self._hides = _true(row.get("hidden")) or _less(height, _LEAST_HEIGHT) or low
        return number, cells

    def check_row_shown(self, number: int) -> None:
        """Look whether the row that was read last is hidden."""
        if self._hides:
            self.fault(CellError(f"row {number}", "is hidden", code="hidden-cells", hint=_HIDDEN_HINT))

    def check_columns_shown(self, columns: int) -> None:
        """Look for hidden ones among the first columns."""
        for column in sorted(set(self._hidden)):
            if column <= columns:
                where = f"column {_letters(column)}"
                self.fault(CellError(where, "is hidden", code="hidden-cells", hint=_HIDDEN_HINT))

    def check_merged(self) -> None:
        """Look for merged cells; they are told behind the last row."""
        for _ in self.rows():
            pass
        if self._merged:
            hint = "unmerge them and fill in every cell; a title belongs on another sheet"
            self.fault(CellError(f"cells {self._merged}", "are merged", code="merged-cells", hint=hint))

    def header(self) -> list[str]:
        """Return the names in the first row.

        Raises:
            InputError: there is none; or as `check_header`.
        """
        number, cells = next(self.rows(), (0, []))
        if number != 1:
            raise InputError("the sheet has no header in its first row", code="no-header", hint=_HEADER_HINT)
        names = [""] * cells[-1].column
        for cell in cells:
            names[cell.column - 1] = self.text(cell) or ""
        if not all(names):
            where = f"cell {a1(1, names.index('') + 1)}"
            raise CellError(where, "of the header is empty", code="no-header", hint=_HEADER_HINT)
        check_header(names)
        self.check_row_shown(1)
        self.check_columns_shown(len(names))
        return names

    def batches(self, wanted: Sequence[str]) -> list["pa.RecordBatch"]:
        """Return all rows of some columns.

        Raises:
            InputError: as `ExcelSheet.read`.
        """
        taken: list[pa.RecordBatch] = []
        first: InputError | None = None
        try:
            self._take(wanted, taken)
        except InputError as error:
            first = error
        # Merged cells are often the cause of what was found in one.
        self.check_merged()
        if first is not None:
            raise first from None
        return taken

    def _take(self, wanted: Sequence[str], taken: list["pa.RecordBatch"]) -> None:
        import pyarrow as pa

        names = self.header()
        check_columns([SourceColumn(name, "text") for name in names], wanted)
        places = {names.index(name) + 1: name for name in wanted}
        held: dict[str, list[str | None]] = {name: [] for name in wanted}
        size, last = 0, 1
        rows = characters = 0

        def let_go() -> None:
            nonlocal size, rows, characters
            batch = pa.RecordBatch.from_arrays(
                [pa.array(held[name], pa.string()) for name in wanted], names=list(wanted)
            )
            for values in held.values():
                values.clear()
            rows = characters = 0
            size += batch.nbytes
            if size > self.limits.memory_mb << 20:
                raise _too_large("the columns read of the sheet take more memory than this node allows")
            taken.append(batch)

        for number, cells in self.rows():
            if number != last + 1:
                raise CellError(
                    f"row {last + 1}",
                    "of the sheet is empty, and records follow",
                    code="blank-row",
                    hint="delete it, or move what follows to another sheet",
                )
            last = number
            self.check_row_shown(number)
            row: dict[str, str | None] = dict.fromkeys(places.values())
            for cell in cells:
                if cell.column > len(names):
                    what = "stands in a column without a name"
                    raise CellError(cell.place, what, code="no-header", hint=_HEADER_HINT)
                # Looked at whether wanted or not: a column that no job could read is not registered.
                text = self.text(cell)
                if cell.column in places:
                    row[places[cell.column]] = text
                    characters += len(text or "")
            for name, value in row.items():
                held[name].append(value)
            rows += 1
            if (
                rows == self.limits.batch_rows
                or rows * len(wanted) >= MAX_VALUES_HELD
                or characters >= MAX_CHARACTERS_HELD
            ):
                let_go()
        if rows:
            let_go()

    def text(self, cell: _Cell) -> str | None:
        """Return a cell as text; None for one that is at fault."""
        try:
            return self._text(cell)
        except CellError as error:
            self.fault(error)
            return None

    def _text(self, cell: _Cell) -> str:
        value, where = cell.value, cell.place
        if cell.kind == "f":
            hint = "copy the column and paste it as values"
            raise CellError(where, "is a formula", code="formula-cell", hint=hint)
        if cell.kind == "e":
            hint = "correct it, or empty it"
            raise CellError(where, "shows an error such as #N/A", code="error-cell", hint=hint)
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, int | float):
            style = self._kind(cell.style)
            if style:
                return self._moment(value, style, where)
            if not -EXACT < value < EXACT:
                raise CellError(
                    where,
                    "is a number of more than 15 digits, and a spreadsheet keeps only 15",
                    code="identifiers-as-numbers",
                    hint="take the column from its origin once more, formatted as text before it is filled",
                )
            text = _number(value)
            self._check_shown(text, cell)
            return text
        if isinstance(value, dt.date | dt.time | dt.timedelta):
            return _written(value, self._kind(cell.style))
        return _ESCAPED.sub(_unescaped, str(value))

    def _check_shown(self, text: str, cell: _Cell) -> None:
        """Refuse a number whose format shows other digits than it has, or nothing at all."""
        shown = self._formats[cell.style]
        if shown == "General":
            return
        for section in _sections(shown, text):
            if _hides_number(section, text):
                what = "holds a number that its format hides"
                raise CellError(cell.place, what, code="hidden-cells", hint=_HIDDEN_HINT)
            if _adds_digits(section, text):
                raise CellError(
                    cell.place,
                    "is a number that its format shows with digits it does not have",
                    code="identifiers-as-numbers",
                    hint="take the column from its origin once more, formatted as text before it is filled",
                )

    def _moment(self, value: float, style: str, where: str) -> str:
        from openpyxl.utils.datetime import from_excel

        try:
            moment = from_excel(value, self.workbook.epoch, timedelta=style == "duration")
        except (OverflowError, ValueError):
            raise CellError(
                where,
                "is formatted as a date, but holds none",
                code="error-cell",
                hint="format the column as what it holds: identifiers as text",
            ) from None
        return _written(moment, style)

    def _kind(self, style: int) -> str:
        """Return what a style makes of a number: `date`, `datetime`, `time`, `duration`; empty for none."""
        if style not in self._kinds:
            number = self.workbook._cell_styles[style].numFmtId  # noqa: SLF001  # where openpyxl looks too
            self._formats[style] = self._format(number)
            self._kinds[style] = self._kind_of(number, self._formats[style])
        return self._kinds[style]

    def _format(self, number: int) -> str:
        from openpyxl.styles import numbers

        if number < numbers.BUILTIN_FORMATS_MAX_SIZE:
            return numbers.builtin_format_code(number) or "General"
        return str(self.workbook._number_formats[number - numbers.BUILTIN_FORMATS_MAX_SIZE])  # noqa: SLF001  # as above

    @staticmethod
    def _kind_of(number: int, shown: str) -> str:
        from openpyxl.styles import numbers

        if number in _ZH_DATES:
            return "date"
        if number in _ZH_TIMES:
            return "time"
        if numbers.is_timedelta_format(shown):
            return "duration"
        if not numbers.is_date_format(shown):
            return ""
        # openpyxl takes the letters of `[$-zh-CN]` for a time's, and `HH:MM` for none.
        bare = _BRACKETS.sub("", _LITERAL.sub("", shown)).partition(";")[0].lower()
        time = re.search("[hs]|a/p|am/pm|上午/下午", bare)
        if not time:
            return "date"
        return "datetime" if re.search("[dy]", bare) else "time"


_HEADER_HINT: Final = "name every column in the first row, each name once, and write nothing beside the table"
_HIDDEN_HINT: Final = "show it, or delete it: what is hidden would be read like the rest"


@contextmanager
def _opened(
    file: BinaryIO,
    name: str | None,
    limits: ReadLimits,
    fault: Fault,
    most: int,
) -> Iterator[_Sheet]:
    """Open a sheet, the first for None; whatever breaks meanwhile becomes an error that quotes nothing."""
    import warnings

    try:
        from openpyxl.reader.excel import ExcelReader
        from openpyxl.styles.stylesheet import apply_stylesheet
        from openpyxl.worksheet._reader import WorkSheetParser
    except ImportError:
        raise InputError(
            "this node has no openpyxl, which reads spreadsheets",
            code="package-missing",
            hint="have the operator run: pip install 'minshu[excel]'",
        ) from None

    # It warns of parts that it leaves out, which nobody here asks for.
    warnings.filterwarnings("ignore", module=r"openpyxl(\.|$)")
    try:
        _check_package(file, limits, most)
        # As `load_workbook`, which also looks for each sheet's dimensions: to its end where none are told.
        book = ExcelReader(file, read_only=True, keep_links=False)
        book.read_manifest()
        strings = _check_parts(book, limits)
        texts = _texts(book, strings) if strings else []
        book.read_workbook()
        apply_stylesheet(book.archive, book.wb)
        chosen = _chosen(book, name)
        _elements(book.archive, chosen, 0)
        with book.archive.open(chosen) as part:
            # Dates are told apart here: the parser's own way warns with the value of what is none.
            parser = WorkSheetParser(part, texts, epoch=book.wb.epoch)
            parser.parse_formula = lambda _element: "="  # type: ignore[method-assign]  # none is read
            yield _Sheet(book.wb, parser, _Part(part), limits, fault)
    except _BROKEN:
        raise InputError(
            "the dataset's file is not what its ending says",
            code="bad-file",
            hint="open it in a spreadsheet program and save it as .xlsx again",
        ) from None


def _chosen(book: Any, name: str | None) -> str:
    """Return the part of the sheet of a name, the only shown one for an empty name, the first for None."""
    found = [
        (sheet, rel.target)
        for sheet, rel in book.parser.find_sheets()
        if rel.target in book.valid_files and "chartsheet" not in rel.Type
    ]
    sheets: dict[str, str] = {sheet.name: target for sheet, target in found}
    shown = [sheet.name for sheet, _ in found if sheet.state == "visible"]
    if name and name not in sheets:
        raise InputError(
            "the workbook has no sheet of that name",
            code="unknown-sheet",
            hint="register it again, with one of its sheets",
        )
    if name == "" and len(shown) != 1:
        raise InputError(
            f"the workbook has {len(shown)} sheets",
            code="sheet-needed",
            hint=f"say which with --sheet: {', '.join(shown[:_MANY])}",
        )
    title = next(iter(sheets)) if name is None else name or shown[0]
    if title not in shown:
        raise InputError("the sheet is hidden", code="hidden-cells", hint=_HIDDEN_HINT)
    return sheets[title]


def _check_package(file: BinaryIO, limits: ReadLimits, most: int) -> None:
    """Refuse what is no .xlsx, and one that unpacks to more than it may.

    zipfile reads no part further than the size that its entry states. Sheets are read row by row. What the
    other parts come to that are read, `_check_parts` looks at, once openpyxl has read the list of them all.
    """
    from openpyxl.xml.constants import ARC_CONTENT_TYPES

    if file.read(len(_OLE)) == _OLE:
        raise _protected()
    with zipfile.ZipFile(file) as package:
        parts = package.infolist()
        if any(part.flag_bits & 1 for part in parts):
            raise _protected()
        held = [part for part in parts if not _WORKSHEET.fullmatch(part.filename)]
        if (
            len(parts) > MAX_PARTS
            or sum(part.file_size for part in parts) > most
            or sum(part.file_size for part in held) > limits.memory_mb << 18  # a quarter: texts grow too
        ):
            raise _unpacks_to_much()
        _check_elements(package, {ARC_CONTENT_TYPES: TREE_BYTES}, limits)
    file.seek(0)


def _check_parts(book: Any, limits: ReadLimits) -> str:
    """Refuse parts that come to more than they may when openpyxl reads them; return that of shared texts.

    Raises:
        InputError: they do.
        ValueError: one is named like a sheet, whose size nobody bounded, or stands for two things.
    """
    from openpyxl.packaging.relationship import get_rels_path
    from openpyxl.reader.excel import _find_workbook_part  # type: ignore[attr-defined]  # its stubs lack it
    from openpyxl.xml.constants import ARC_CONTENT_TYPES, ARC_STYLE, SHARED_STRINGS

    # openpyxl takes the first character off, whatever it is.
    workbook = _find_workbook_part(book.package).PartName[1:]
    rels = get_rels_path(workbook)  # type: ignore[no-untyped-call]  # openpyxl leaves it open
    trees = {ARC_CONTENT_TYPES, workbook, rels, ARC_STYLE}
    found = book.package.find(SHARED_STRINGS)
    strings = "" if found is None else str(found.PartName[1:])
    if strings in trees or any(map(_WORKSHEET.fullmatch, {*trees, strings})):
        raise ValueError
    parts = dict.fromkeys(trees & set(book.valid_files), TREE_BYTES)
    if strings:
        parts[strings] = STRING_BYTES
    _check_elements(book.archive, parts, limits)
    return strings


def _check_elements(package: zipfile.ZipFile, parts: Mapping[str, int], limits: ReadLimits) -> None:
    """Refuse parts, each with what its elements come to, that take more memory than they may."""
    left = limits.memory_mb << 20
    for name, each in parts.items():
        left -= each * _elements(package, name, left // each)
        if left < 0:
            raise _unpacks_to_much()


def _elements(package: zipfile.ZipFile, name: str, most: int) -> int:
    """Return how many elements a part has; past `most` it is looked at no further.

    Raises:
        ValueError: it is no XML, or declares a DTD, which ECMA-376 part 2 forbids: its entities would make
            many elements of few bytes.
    """
    from xml.parsers.expat import ExpatError, ParserCreate

    count = 0

    def begins(_name: str, _attributes: object) -> None:
        nonlocal count
        count += 1

    def declares(*_: object) -> None:
        raise ValueError

    parser = ParserCreate()
    parser.StartElementHandler = begins
    parser.StartDoctypeDeclHandler = declares
    with package.open(name) as part:
        while count <= most and (data := part.read(1 << 16)):
            try:
                parser.Parse(data)
            except ExpatError:
                raise ValueError from None
    return count


def _texts(book: Any, name: str) -> list[str]:
    """Return the texts that cells share, as they are written: openpyxl's own reader takes `x005F_` out.

    Raises:
        InputError: too much for one text.
    """
    from openpyxl.cell.text import Text
    from openpyxl.xml.constants import SHEET_MAIN_NS
    from openpyxl.xml.functions import iterparse

    texts: list[str] = []
    elements = 0
    with book.archive.open(name) as part:
        for _, element in iterparse(part):
            elements += 1
            if elements > MAX_ITEM_ELEMENTS:
                raise _too_large("a text of the workbook has too many parts")
            if element.tag == f"{{{SHEET_MAIN_NS}}}si":
                text: Any = Text.from_tree(element)
                texts.append(text.content)
                element.clear()
                elements = 0
    return texts


def _unpacks_to_much() -> InputError:
    return _too_large("the workbook unpacks to more than this node reads")


def _protected() -> InputError:
    return InputError(
        "the workbook is protected by a password, or is an .xls file with another ending",
        code="protected-file",
        hint="save it as .xlsx without a password",
    )


def _too_large(message: str) -> InputError:
    return InputError(
        message, code="memory-limit", hint="save the sheet as CSV, or raise duckdb_memory_mb in node.toml"
    )


def _true(stored: str | None) -> bool:
    return stored in {"1", "true"}


def _less(stored: str | None, least: float) -> bool:
    """Whether a size is given and not at least this."""
    return stored is not None and not float(stored) >= least


def a1(row: int, column: int) -> str:
    """Return the name of a cell such as `C7`; both are counted from 1."""
    return f"{_letters(column)}{row}"


def _letters(column: int) -> str:
    letters = ""
    while column > 0:
        column, rest = divmod(column - 1, 26)
        letters = chr(ord("A") + rest) + letters
    return letters


def _unescaped(found: re.Match[str]) -> str:
    """Return the character that `_x000D_` stands for (ECMA-376 part 1, 22.9.2.19); half of one is none."""
    code = int(found[1], 16)
    return found[0] if 0xD800 <= code <= 0xDFFF else chr(code)


def _number(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    text = format(Decimal(f"{value:.15g}"), "f")
    return "0" if text == "-0" else text


def _sections(shown: str, number: str) -> list[str]:
    """Return the sections of a number format that may show a number, without colours and the like."""
    sections: list[str] = []
    at = begin = 0
    while at < len(shown):
        found = _LITERAL.match(shown, at)
        if shown[at] == ";":
            sections.append(shown[begin:at])
            begin = at + 1
        at = found.end() if found else at + 1
    sections.append(shown[begin:])
    sections = sections[:3]
    if not _CONDITION.search(shown):
        # For numbers above zero, below it, and zero, as far as there are so many.
        sign = 1 if number.startswith("-") else 2 if not number.strip("0.") else 0
        chosen = sections[sign : sign + 1] or sections[:1]
    else:
        chosen = []
        for section in sections:
            condition = _CONDITION.search(section)
            if condition is None or _holds(Decimal(number), condition[1], Decimal(condition[2])):
                chosen.append(section)
                if condition:
                    break
    return [_BRACKETS.sub(_currency, section) for section in chosen]


def _holds(number: Decimal, sign: str, other: Decimal) -> bool:
    return (
        ("<" in sign and number < other)
        or (">" in sign and number > other)
        or ("=" in sign and number == other)
    )


def _currency(bracket: re.Match[str]) -> str:
    """Return what brackets of a number format show: a currency, of `[$¥-804]`."""
    inner = bracket[1]
    return f'"{inner[1:].partition("-")[0]}"' if inner.startswith("$") else ""


def _hides_number(section: str, number: str) -> bool:
    """Whether a section of a number format shows nothing of a number; a text in place of zero is as good."""
    bare = _LITERAL.sub("", section)
    if re.search(r"[0#?@]|General", bare):
        return False
    is_zero = not number.strip("0.-")
    return not (is_zero and section.strip())


def _adds_digits(section: str, number: str) -> bool:
    """Whether a section of a number format shows zeros before a number, or digits of its own."""
    literal = "".join("".join(filter(None, found.groups())) for found in _LITERAL.finditer(section))
    bare = _LITERAL.sub("", section)
    if any(c.isdigit() for c in literal) or re.search("[1-9]", bare.partition("/")[0]):
        return True
    whole = re.split(r"[.Ee/]", bare)[0]
    return whole.count("0") > max(1, len(number.lstrip("-").partition(".")[0]))


def _written(moment: dt.date | dt.time | dt.timedelta, style: str) -> str:
    """Return a moment in the forms of ISO 8601.

    A day has the time where its style shows one, and no time where it shows a date alone; elsewhere it has
    one unless it is midnight.
    """
    if isinstance(moment, dt.timedelta):
        seconds = round(moment.total_seconds())
        sign = "-" if seconds < 0 else ""
        minutes, second = divmod(abs(seconds), 60)
        return f"{sign}{minutes // 60}:{minutes % 60:02d}:{second:02d}"
    if isinstance(moment, dt.datetime):
        if style == "date" or (moment.time() == dt.time() and style != "datetime"):
            return moment.date().isoformat()
        return moment.isoformat(sep=" ", timespec="milliseconds" if moment.microsecond else "seconds")
    if isinstance(moment, dt.time):
        return moment.isoformat("milliseconds" if moment.microsecond else "seconds")
    return moment.isoformat()
