"""Workbooks as people make them: what may not be what it seems is refused, with its cell and no value."""

import re
import struct
import sys
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pytest
from conformance.check_source import CANARY, SMALL
from openpyxl.worksheet.worksheet import Worksheet

from node.sources import Access, FilePlace, ReadLimits, excel, open_source
from protocols.errors import InputError
from protocols.identifiers import AreaTable, normalise

GOOD = [["id", "name", "born"], [CANARY, "张三", "1949-12-31"], ["11010519491231002X", None, "1950"]]


def workbook(folder: Path, change: Callable[[Worksheet], object] = lambda _sheet: None) -> Path:
    """Write the good sheet as a workbook after a change."""
    made = openpyxl.Workbook()
    sheet = made.active
    assert isinstance(sheet, Worksheet)
    sheet.title = "人员"
    for row in GOOD:
        sheet.append(row)
    change(sheet)
    path = folder / "t.xlsx"
    made.save(path)
    return path


def read(path: Path, columns: list[str], sheet: str = "") -> list[dict[str, Any]]:
    batches = list(open_source(FilePlace(path, sheet=sheet), SMALL).read(columns))
    return [row for batch in batches for row in batch.to_pylist()]


def refused(path: Path, columns: list[str], sheet: str = "", access: Access = SMALL) -> InputError:
    """Return the error of reading; not one batch came before it."""
    batches: list[Any] = []
    with pytest.raises(InputError) as caught:
        batches.extend(open_source(FilePlace(path, sheet=sheet), access).read(columns))
    assert not batches
    error = caught.value
    assert CANARY not in f"{error} {error.hint} {error.__cause__}"
    assert error.__suppress_context__ or error.__context__ is None
    return error


def put(sheet: Worksheet, cell: str, value: Any, shown: str = "") -> None:
    sheet[cell] = value
    if shown:
        sheet[cell].number_format = shown


@pytest.mark.parametrize(
    ("code", "said", "change"),
    [
        ("formula-cell", "cell A3", lambda s: put(s, "A3", '="11010519491231002"&"X"')),
        ("error-cell", "cell A3", lambda s: put(s, "A3", "#N/A")),
        ("error-cell", "cell A2", lambda s: put(s, "A2", 110105194912310, "yyyy-mm-dd")),
        ("identifiers-as-numbers", "cell A3", lambda s: put(s, "A3", int(CANARY))),
        ("identifiers-as-numbers", "cell A3", lambda s: put(s, "A3", 1.1010519491231e17)),
        ("identifiers-as-numbers", "cell A2", lambda s: put(s, "A2", -(10**15))),
        ("merged-cells", "cells A2:A3", lambda s: s.merge_cells("A2:A3")),
        ("hidden-cells", "row 3", lambda s: setattr(s.row_dimensions[3], "hidden", True)),
        ("hidden-cells", "row 1", lambda s: setattr(s.row_dimensions[1], "hidden", True)),
        ("hidden-cells", "column B", lambda s: setattr(s.column_dimensions["B"], "hidden", True)),
        ("blank-row", "row 4", lambda s: put(s, "A5", "合计")),
        ("no-header", "cell E3", lambda s: put(s, "E3", "see note")),
        ("no-header", "cell D1", lambda s: put(s, "E1", "note")),
        ("no-header", "first row", lambda s: s.insert_rows(1)),
        ("duplicate-column", "twice", lambda s: put(s, "B1", "id")),
        ("formula-cell", "cell B1", lambda s: put(s, "B1", "=A1")),
        ("identifiers-as-numbers", "cell D1", lambda s: put(s, "D1", int(CANARY))),
    ],
)
def test_what_may_not_be_what_it_seems_is_refused_with_its_cell_and_no_value(
    tmp_path: Path, code: str, said: str, change: Callable[[Worksheet], object]
) -> None:
    error = refused(workbook(tmp_path, change), ["id", "name"])
    assert error.code == code
    assert said in error.message
    assert error.hint


def test_a_title_over_merged_cells_is_called_that_and_not_a_missing_header(tmp_path: Path) -> None:
    def title(sheet: Worksheet) -> None:
        sheet.insert_rows(1)
        sheet["A1"] = "登记表"
        sheet.merge_cells("A1:C1")

    assert refused(workbook(tmp_path, title), ["id"]).code == "merged-cells"


def test_a_column_that_no_job_could_read_is_refused_with_the_others(tmp_path: Path) -> None:
    for change, code in (("=1949+1", "formula-cell"), (int(CANARY), "identifiers-as-numbers")):
        path = workbook(tmp_path, lambda s, change=change: put(s, "C3", change))  # type: ignore[misc]  # at once
        error = refused(path, ["id"])
        assert (error.code, error.message[:7]) == (code, "cell C3")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (12, "000000"),
        (12, '"4401"00'),
        (12, "\\4\\400"),
        (12, "*0#"),
        (12, "[$44-804]#"),
        (-7, "0;-000"),
        (7, "[<10]00;0"),
        (0, "0;-0;000"),
        (5, "1#"),
        (13800138, "00000000000"),
    ],
)
def test_a_number_that_is_shown_with_digits_it_does_not_have_is_refused(
    tmp_path: Path, value: int, shown: str
) -> None:
    error = refused(workbook(tmp_path, lambda s: put(s, "A2", value, shown)), ["id"])
    assert (error.code, error.message[:7]) == ("identifiers-as-numbers", "cell A2")


@pytest.mark.parametrize(("value", "shown"), [(7, ";;;"), (7, "0;;"), (0, "0;-0;;@"), (1, '"男"')])
def test_a_number_that_its_format_hides_is_refused(tmp_path: Path, value: int, shown: str) -> None:
    change = (
        (lambda s: put(s, "A2", -value, shown)) if shown == "0;;" else lambda s: put(s, "A2", value, shown)
    )
    assert refused(workbook(tmp_path, change), ["id"]).code == "hidden-cells"


@pytest.mark.parametrize(
    "shown",
    [
        "0", "00", "#,##0.00", "0.00E+00", "# ?/8", '_ * #,##0.00_ ;_ * \\-#,##0.00_ ;_ * "-"??_ ;_ @_ ',
        "[$¥-804]#,##0", "[Red][>99]0;[DBNum1][$-804]General", '0"元"', "0%", "@", "##0.0E+0", "0!.0,",
    ],
)  # fmt: skip
def test_a_number_in_an_ordinary_format_is_read(tmp_path: Path, shown: str) -> None:
    assert read(workbook(tmp_path, lambda s: put(s, "A2", 12, shown)), ["id"])[0] == {"id": "12"}


SHEET = "xl/worksheets/sheet1.xml"


def rewritten(folder: Path, change: Callable[[bytes], bytes]) -> Path:
    """Write the good sheet with its own part changed."""
    path = workbook(folder)
    with zipfile.ZipFile(path) as package:
        sheet = package.read(SHEET)
    assert change(sheet) != sheet
    return repacked(path, {SHEET: change(sheet)})


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b'<row r="3"', b'<row r="3" ht="0" customHeight="1"', "row 3"),
        (b'<row r="3"', b'<row r="3" ht="0.1"', "row 3"),
        (b"<sheetData>", b'<cols><col min="2" max="2" width="0"/></cols><sheetData>', "column B"),
        (b"<sheetData>", b'<cols><col min="1" max="9" hidden="true"/></cols><sheetData>', "column A"),
        (b"<sheetFormatPr ", b'<sheetFormatPr zeroHeight="1" ', "row 1"),
    ],
)
def test_what_is_hidden_by_its_size_is_hidden(tmp_path: Path, old: bytes, new: bytes, said: str) -> None:
    error = refused(rewritten(tmp_path, lambda sheet: sheet.replace(old, new)), ["id"])
    assert (error.code, error.message) == ("hidden-cells", f"{said} is hidden")


def test_a_hidden_sheet_is_never_read(tmp_path: Path) -> None:
    def hide(sheet: Worksheet) -> None:
        other = sheet.parent.create_sheet("备注")
        other.append(["id"])
        other.sheet_state = "veryHidden"

    path = workbook(tmp_path, hide)
    assert refused(path, ["id"], "备注").code == "hidden-cells"
    assert len(read(path, ["id"])) == 2  # the only one that is shown


@pytest.mark.parametrize(
    ("old", "new"),
    [(b'r="B1"', b'r="A1"'), (b'r="B2"', b'r="A2"'), (b'r="A2"', b'r="A3"'), (b'r="C3"', b'r="XFE3"'),
     (b'row r="3"', b'row r="2"'), (b'row r="3"', b'row r="1048577"')],
)  # fmt: skip
def test_cells_and_rows_out_of_their_order_are_refused(tmp_path: Path, old: bytes, new: bytes) -> None:
    """Where two claim one place, programs differ in which they show."""
    assert refused(rewritten(tmp_path, lambda sheet: sheet.replace(old, new)), ["id"]).code == "bad-file"


@pytest.mark.parametrize(
    ("inserted", "code"),
    [
        (b'<row r="4">' + b"<c/>" * 3000 + b"</row>", "memory-limit"),
        (
            b'<row r="4"><c r="A4" t="inlineStr"><is><t>' + b"x" * 300_000 + b"</t></is></c></row>",
            "memory-limit",
        ),
        (b"<!--" + b"x" * 300_000 + b"-->", "memory-limit"),
        (b"<row/>" * 1200, "bad-file"),
    ],
    ids=["cells", "text", "comment", "rows"],
)
def test_a_sheet_that_grows_without_end_is_read_no_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inserted: bytes, code: str
) -> None:
    monkeypatch.setattr(excel, "MAX_ROWS", 1000)
    monkeypatch.setattr(excel, "MAX_ITEM_ELEMENTS", 2000)
    monkeypatch.setattr(excel, "MAX_ITEM_BYTES", 200_000)
    path = rewritten(tmp_path, lambda sheet: sheet.replace(b"</sheetData>", inserted + b"</sheetData>"))
    assert refused(path, ["id"]).code == code


def test_rows_and_links_are_let_go_as_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever one row may come to, many may come to more; and no tree of them is kept."""
    monkeypatch.setattr(excel, "MAX_ITEM_ELEMENTS", 2000)
    monkeypatch.setattr(excel, "MAX_ITEM_BYTES", 100_000)

    def peak(count: int) -> int:
        links = b"<hyperlinks>" + b'<hyperlink ref="A2" location="somewhere"/>' * count + b"</hyperlinks>"
        rows = b"".join(b'<row r="%d" ht="15"/>' % row for row in range(4, 4 + count))
        path = rewritten(
            tmp_path,
            lambda sheet: sheet.replace(b"</sheetData>", rows + b"</sheetData>").replace(
                b"<pageMargins", links + b"<pageMargins"
            ),
        )
        tracemalloc.start()
        try:
            assert len(read(path, ["id"])) == 2
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(6000) < peak(500) + (512 << 10)


BOOK = "xl/workbook.xml"
TYPES = "[Content_Types].xml"


def changed(folder: Path, part: str, old: bytes, new: bytes, **more: bytes) -> Path:
    """Write the good sheet with something put into a part of the package."""
    path = workbook(folder)
    with zipfile.ZipFile(path) as package:
        data = package.read(part)
    assert old in data
    return repacked(path, {part: data.replace(old, new, 1), **more})


def strings(part: str) -> bytes:
    kind = "application/vnd.openxmlformats-officedocument.spreadsheetml.sharedStrings+xml"
    return f'<Override PartName="{part}" ContentType="{kind}"/></Types>'.encode()


@pytest.mark.parametrize(
    ("part", "old", "new"),
    [
        (TYPES, b"</Types>", b'<Default Extension="a" ContentType="b"/>' * 2100 + b"</Types>"),
        (BOOK, b"<sheets>", b"<sheets>" + b"<sheet/>" * 2100),
        ("xl/_rels/workbook.xml.rels", b"</Relationships>", b"<Relationship/>" * 2100 + b"</Relationships>"),
        ("xl/styles.xml", b"</cellXfs>", b"<xf/>" * 2100 + b"</cellXfs>"),
    ],
)
def test_parts_that_are_kept_as_trees_count_as_what_these_take(
    tmp_path: Path, part: str, old: bytes, new: bytes
) -> None:
    few = Access(ReadLimits(memory_mb=2, batch_rows=2048))
    assert refused(changed(tmp_path, part, old, new), ["id"], access=few).code == "memory-limit"


def test_texts_that_cells_share_count_and_parts_that_nobody_reads_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = Access(ReadLimits(memory_mb=2, batch_rows=2048))
    texts = b'<sst xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main">%s</sst>'
    many = {"xl/texts.xml": texts % (b"<si/>" * 40_000)}
    path = changed(tmp_path, TYPES, b"</Types>", strings("/xl/texts.xml"), **many)
    assert refused(path, ["id"], access=few).code == "memory-limit"
    path = repacked(workbook(tmp_path), many)
    assert len(list(open_source(FilePlace(path), few).read(["id"]))) == 1
    monkeypatch.setattr(excel, "MAX_ITEM_ELEMENTS", 2000)
    many = {"xl/texts.xml": texts % (b"<si>" + b"<r/>" * 2000 + b"</si>")}
    path = changed(tmp_path, TYPES, b"</Types>", strings("/xl/texts.xml"), **many)
    assert refused(path, ["id"]).code == "memory-limit"


@pytest.mark.parametrize(
    "named", ["/xl/worksheets/s.xml", "Xxl/worksheets/s.xml", "//xl/worksheets/s.xml", "/xl/workbook.xml"]
)
def test_shared_texts_are_no_sheet_and_no_other_part(tmp_path: Path, named: str) -> None:
    part = {} if named.endswith(BOOK) else {named[1:]: b"<sst/>"}
    assert refused(changed(tmp_path, TYPES, b"</Types>", strings(named), **part), ["id"]).code == "bad-file"


@pytest.mark.parametrize("first", ["/", "X"])
def test_the_workbooks_own_part_is_not_named_like_a_sheet(tmp_path: Path, first: str) -> None:
    with zipfile.ZipFile(workbook(tmp_path)) as package:
        rels = package.read("xl/_rels/workbook.xml.rels")
        moved = {"xl/worksheets/w.xml": package.read(BOOK), "xl/worksheets/_rels/w.xml.rels": rels}
    named = f'PartName="{first}xl/worksheets/w.xml"'.encode()
    assert (
        refused(changed(tmp_path, TYPES, b'PartName="/xl/workbook.xml"', named, **moved), ["id"]).code
        == "bad-file"
    )


@pytest.mark.parametrize(
    ("part", "root"), [("xl/styles.xml", b"<styleSheet "), (BOOK, b"<workbook "), (SHEET, b"<worksheet ")]
)
def test_a_part_that_declares_entities_is_refused(tmp_path: Path, part: str, root: bytes) -> None:
    """Many elements would come of few bytes."""
    path = changed(tmp_path, part, root, b'<!DOCTYPE x [<!ENTITY a "b">]>' + root)
    assert refused(path, ["id"]).code == "bad-file"


def test_another_sheet_is_not_looked_into(tmp_path: Path) -> None:
    path = workbook(tmp_path, lambda s: s.parent.create_sheet("备注").append(["id"]))
    path = repacked(path, {"xl/worksheets/sheet2.xml": b"<worksheet><sheetData><row>"})
    assert len(read(path, ["id"], "人员")) == 2


def test_an_error_in_the_last_row_lets_no_earlier_row_out(tmp_path: Path) -> None:
    def long(sheet: Worksheet) -> None:
        for _ in range(SMALL.limits.batch_rows):
            sheet.append([CANARY, "x", "y"])
        sheet.append(["=1", "x", "y"])

    error = refused(workbook(tmp_path, long), ["id"])
    assert error.message == f"cell A{4 + SMALL.limits.batch_rows} is a formula"


def test_rows_that_are_formatted_and_empty_are_no_records(tmp_path: Path) -> None:
    def trailing(sheet: Worksheet) -> None:
        for row in range(4, 40):
            put(sheet, f"A{row}", None, "@")
        sheet.row_dimensions[50].hidden = True
        sheet.column_dimensions["H"].hidden = True

    assert len(read(workbook(tmp_path, trailing), ["id"])) == 2


def test_cells_are_read_as_canonical_text(tmp_path: Path) -> None:
    cells = [
        ("  a,b\n'c' ", "", "  a,b\n'c' "),
        (7, "", "7"),
        (7.0, "", "7"),
        (-0.0, "", "0"),
        (110105491231002, "", "110105491231002"),
        (0.1 + 0.2, "", "0.3"),
        (1e-7, "", "0.0000001"),
        (1234567.25, "#,##0.00", "1234567.25"),
        (0.5, "0%", "0.5"),
        (Decimal("12.50"), "", "12.5"),
        (True, "", "true"),
        (False, "", "false"),
        (date(1949, 12, 31), "", "1949-12-31"),
        (datetime(2026, 11, 22, 8, 0, 1), "", "2026-11-22 08:00:01"),
        (datetime(2026, 11, 22), "yyyy-mm-dd hh:mm:ss", "2026-11-22 00:00:00"),
        (date(2026, 11, 22), 'yyyy"年"m"月"d"日"', "2026-11-22"),
        (time(8, 30), "", "08:30:00"),
        (timedelta(hours=30, minutes=5), "", "30:05:00"),
        ("２０２６", "", "２０２６"),
        ("", "", None),
    ]

    def fill(sheet: Worksheet) -> None:
        for row, (value, shown, _) in enumerate(cells, 2):
            put(sheet, f"A{row}", value, shown)
            sheet[f"B{row}"] = "x"

    found = read(workbook(tmp_path, fill), ["id"])
    assert [row["id"] for row in found] == [expected for _, _, expected in cells]


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        ("yyyy-mm-dd", "1949-12-31"),
        ("[$-zh-CN]yyyy/m/d;@", "1949-12-31"),
        ('yyyy"h"', "1949-12-31"),
        ("mmm", "1949-12-31"),
        ("yyyy-mm-dd HH:MM", "1949-12-31 12:00:00"),
        ("YYYY-MM-DD AM/PM", "1949-12-31 12:00:00"),
        ("h:mm", "1949-12-31 12:00:00"),
    ],
)
def test_a_date_has_a_time_where_its_format_shows_one(tmp_path: Path, shown: str, expected: str) -> None:
    path = workbook(tmp_path, lambda s: put(s, "A2", 18263.5, shown))
    assert read(path, ["id"])[0] == {"id": expected}


def test_a_cell_without_its_name_stands_behind_the_one_before_it(tmp_path: Path) -> None:
    path = rewritten(
        tmp_path,
        lambda sheet: re.sub(
            rb'<row r="3".*?</row>', b'<row r="3"><c/><c r="B3"/><c><v>7</v></c></row>', sheet
        ),
    )
    assert read(path, ["id", "name", "born"])[1] == {"id": None, "name": None, "born": "7"}


def test_characters_that_are_written_as_codes_are_read(tmp_path: Path) -> None:
    texts = ["11010519491231002X_x000D_", "_x4e00_", "_xD83D_", "_x005F_x000D_", "_x000D", "张_x0009_三"]

    def fill(sheet: Worksheet) -> None:
        for row, text in enumerate(texts, 2):
            put(sheet, f"A{row}", text)
            put(sheet, f"B{row}", "x")

    found = [row["id"] for row in read(workbook(tmp_path, fill), ["id"])]
    assert found == ["11010519491231002X\r", "一", "_xD83D_", "_x000D_", "_x000D", "张\t三"]
    keys = normalise(
        pa.array(found[:1]), "resident-id", as_of=date(2026, 11, 22), areas=AreaTable.of(["110105"])
    )
    assert len(keys.keys) == 1
    assert (
        refused(workbook(tmp_path, lambda s: put(s, "B1", "姓名_x000D_")), ["id"]).code == "unreadable-name"
    )


def test_a_date_in_a_format_of_chinese_spreadsheets_is_a_date(tmp_path: Path) -> None:
    def chinese(sheet: Worksheet) -> None:
        for cell, number in (("A2", 31), ("A3", 57), ("B2", 33)):
            put(sheet, cell, 18263 if cell < "B" else 18263.5, "yyyy")
            sheet[cell]._style.numFmtId = number

    found = read(workbook(tmp_path, chinese), ["id", "name"])
    assert [row["id"] for row in found] == ["1949-12-31", "1949-12-31"]
    assert found[0]["name"] == "1949-12-31 12:00:00"


def test_strings_that_cells_share_are_read(tmp_path: Path) -> None:
    path = workbook(tmp_path)
    with zipfile.ZipFile(path) as package:
        sheet = package.read("xl/worksheets/sheet1.xml")
        types = package.read("[Content_Types].xml")
    space = b'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    rich = "<si><r><t>张</t></r><r><t>三</t></r></si>".encode()
    kind = b"application/vnd.openxmlformats-officedocument.spreadsheetml.sharedStrings+xml"
    named = b'<Override PartName="/xl/sharedStrings.xml" ContentType="%s" /></Types>' % kind
    parts = {
        "[Content_Types].xml": types.replace(b"</Types>", named),
        "xl/sharedStrings.xml": b"<sst %s><si><t>%s</t></si>%s</sst>" % (space, CANARY.encode(), rich),
        "xl/worksheets/sheet1.xml": re.sub(
            rb'<c r="([AB])([23])".*?(?:</c>|/>)', rb'<c r="\1\2" t="s"><v>1</v></c>', sheet
        ).replace(b'<c r="A2" t="s"><v>1', b'<c r="A2" t="s"><v>0'),
    }
    assert read(repacked(path, parts), ["id"]) == [{"id": CANARY}, {"id": "张三"}]


def test_a_workbook_whose_days_begin_in_1904_has_the_same_dates(tmp_path: Path) -> None:
    made = openpyxl.Workbook()
    made.epoch = openpyxl.utils.datetime.MAC_EPOCH
    sheet = made.active
    assert isinstance(sheet, Worksheet)
    sheet.append(["id"])
    sheet.append([date(1949, 12, 31)])
    made.save(tmp_path / "t.xlsx")
    assert read(tmp_path / "t.xlsx", ["id"]) == [{"id": "1949-12-31"}]


def test_of_several_sheets_one_has_to_be_named(tmp_path: Path) -> None:
    path = workbook(tmp_path, lambda s: s.parent.create_sheet("备注").append(["id"]))
    error = refused(path, ["id"])
    assert error.code == "sheet-needed"
    assert "人员, 备注" in error.hint
    assert len(read(path, ["id"], "人员")) == 2
    assert read(path, ["id"], "备注") == []
    assert refused(path, ["id"], "人").code == "unknown-sheet"


def test_a_workbook_behind_a_password_and_an_old_one_are_told_as_such(tmp_path: Path) -> None:
    path = tmp_path / "t.xlsx"
    path.write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + CANARY.encode() * 100)
    assert refused(path, ["id"]).code == "protected-file"
    old = path.rename(tmp_path / "t.xls")
    with pytest.raises(InputError, match="a kind this node does not read") as caught:
        open_source(FilePlace(old), SMALL)
    assert "xlsx" in caught.value.hint


def repacked(path: Path, parts: dict[str, bytes]) -> Path:
    """Write a workbook with other parts in place of some of its own."""
    with zipfile.ZipFile(path) as package:
        held = {name: package.read(name) for name in package.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as package:
        for name, data in (held | parts).items():
            package.writestr(name, data)
    return path


def test_a_workbook_that_unpacks_to_too_much_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = repacked(workbook(tmp_path), {"xl/sharedStrings.xml": b" " * (300 << 10)})
    assert path.stat().st_size < 20_000
    few = Access(ReadLimits(memory_mb=1, batch_rows=2048))
    opened = "openpyxl.reader.excel.ExcelReader"
    monkeypatch.setattr(opened, lambda *_a, **_k: pytest.fail("it was opened"))
    assert refused(path, ["id"], access=few).code == "memory-limit"
    monkeypatch.setattr(excel, "MAX_UNPACKED_BYTES", 1000)
    assert refused(workbook(tmp_path), ["id"]).code == "memory-limit"
    monkeypatch.undo()
    monkeypatch.setattr(excel, "MAX_PARTS", 3)
    assert refused(workbook(tmp_path), ["id"]).code == "memory-limit"


def test_a_part_that_states_less_than_it_unpacks_to_is_read_no_further(tmp_path: Path) -> None:
    path = workbook(tmp_path)
    with zipfile.ZipFile(path) as package:
        name = "xl/worksheets/sheet1.xml"
        size = package.getinfo(name).file_size
    data = bytearray(path.read_bytes())
    # The size unpacked stands 24 bytes into an entry of the directory at the end, its name 46.
    at = data.rindex(name.encode()) - 46
    assert struct.unpack_from("<I", data, at + 24) == (size,)
    struct.pack_into("<I", data, at + 24, 100)
    path.write_bytes(data)
    assert refused(path, ["id"]).code == "bad-file"


def test_much_text_in_few_strings_is_held_within_the_memory_that_is_allowed(tmp_path: Path) -> None:
    def long(sheet: Worksheet) -> None:
        for _ in range(300):
            sheet.append(["x" * 30_000, "y", "z"])

    few = Access(ReadLimits(memory_mb=4, batch_rows=50))
    assert refused(workbook(tmp_path, long), ["id"], access=few).code == "memory-limit"
    assert len(list(open_source(FilePlace(tmp_path / "t.xlsx"), few).read(["name"]))) == 7


def test_rows_are_let_go_before_they_fill_the_memory_as_objects(tmp_path: Path) -> None:
    def long(sheet: Worksheet) -> None:
        for _ in range(300):
            sheet.append(["x" * 30_000, "y", "z"])

    def batches(columns: list[str]) -> list[int]:
        source = open_source(FilePlace(tmp_path / "t.xlsx"), Access())
        return [batch.num_rows for batch in source.read(columns)]

    workbook(tmp_path, long)
    assert batches(["id"]) == [282, 20]
    assert batches(["name"]) == [302]
    names = [f"c{n}" for n in range(1024)]
    head = "".join(f'<c t="inlineStr"><is><t>{name}</t></is></c>' for name in names)
    rows = f"<sheetData><row>{head}</row>" + "<row><c><v>1</v></c></row>" * 1030 + "</sheetData>"
    rewritten(tmp_path, lambda sheet: re.sub(rb"<sheetData>.*</sheetData>", rows.encode(), sheet))
    assert batches(names) == [1024, 6]


def damaged(path: Path) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as package:
        sheet = package.read("xl/worksheets/sheet1.xml")
        book = package.read("xl/workbook.xml")
    yield "xl/worksheets/sheet1.xml", sheet[: len(sheet) // 2]
    for cell in (b'<c r="A2" t="s"><v>7</v></c>', b'<c r="A2"><v>%sx</v></c>' % CANARY.encode()):
        yield "xl/worksheets/sheet1.xml", re.sub(rb'<c r="A2".*?</c>', cell, sheet)
    yield "xl/workbook.xml", book[:50]
    yield "[Content_Types].xml", b"<Types/>"
    bomb = b'<!DOCTYPE x [<!ENTITY a "' + b"a" * 1000 + b'"><!ENTITY b "' + b"&a;" * 1000 + b'">'
    bomb += (
        b'<!ENTITY c "'
        + b"&b;" * 1000
        + b'"><!ENTITY d "'
        + b"&c;" * 1000
        + b'">]><worksheet>&d;</worksheet>'
    )
    yield "xl/worksheets/sheet1.xml", bomb


def test_bytes_that_are_no_workbook_are_a_clear_error(tmp_path: Path) -> None:
    for n, (name, data) in enumerate(damaged(workbook(tmp_path))):
        folder = tmp_path / str(n)
        folder.mkdir()
        assert refused(repacked(workbook(folder), {name: data}), ["id"]).code == "bad-file", name
    path = tmp_path / "t.xlsx"
    for data in (b"", b"PK\x03\x04" + CANARY.encode(), CANARY.encode() * 10):
        path.write_bytes(data)
        assert refused(path, ["id"]).code == "bad-file"


def test_a_workbook_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = workbook(tmp_path)
    check = excel._check_package

    def rewrites(*arguments: Any) -> None:
        check(*arguments)
        workbook(tmp_path, lambda s: s.append(["x", "y", "z"]))

    monkeypatch.setattr(excel, "_check_package", rewrites)
    assert refused(path, ["id"]).code in {"changed-while-reading", "bad-file"}


def test_a_node_without_the_package_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = workbook(tmp_path)
    monkeypatch.setitem(sys.modules, "openpyxl.reader.excel", None)
    error = refused(path, ["id"])
    assert (error.code, "minshu[excel]" in error.hint) == ("package-missing", True)
