"""Months as whole numbers: year x 12 + month - 1, from columns of dates, times or months."""

import re
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protocols.errors import InputError

UNKNOWN_MONTH: Final = 0
"""Stands for a month that is not known."""

FIRST_MONTH: Final = 1900 * 12
END_MONTH: Final = 2200 * 12

_MONTH: Final = re.compile(r"(19|20|21)[0-9]{2}-(0[1-9]|1[0-2])")
_ISO_MONTH: Final = rf"^{_MONTH.pattern}(-[0-9]{{2}})?$"
_COMPACT_MONTH: Final = r"^([0-9]{4})([0-9]{2})$"


def month_number(text: str) -> int:
    """Return the number of a month such as 2025-12.

    Raises:
        ValueError: another text, or no month of 1900 to 2199.
    """
    if not _MONTH.fullmatch(text):
        raise ValueError("no month of 1900-01 to 2199-12")
    return int(text[:4]) * 12 + int(text[5:]) - 1


def month_text(month: int) -> str:
    """Return `2026-11`, or nothing where the month is unknown.

    Raises:
        ValueError: no month between 1900 and 2199, nor UNKNOWN_MONTH.
    """
    if month == UNKNOWN_MONTH:
        return ""
    if not FIRST_MONTH <= month < END_MONTH:
        raise ValueError("no month of 1900 to 2199")
    return f"{month // 12:04d}-{month % 12 + 1:02d}"


def months_of(column: Any, rows: int, what: str) -> npt.NDArray[np.uint16]:
    """Return the month of each row; UNKNOWN_MONTH where it is null, unreadable or not in 1900 to 2199.

    Each different text or number is read once.

    Args:
        column: a date, a time, or a month such as 2026-11 or 202611; None: no month is known.
        rows: how many there are.
        what: the slot, for the error.

    Raises:
        InputError: `not-a-date`: a column of another type.
    """
    import pyarrow as pa

    if column is None or pa.types.is_null(column.type):
        return np.full(rows, UNKNOWN_MONTH, dtype=np.uint16)
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if pa.types.is_string_view(column.type):
        column = column.cast(pa.string())
    repeating = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer)
    if any(test(column.type) for test in repeating):
        column = column.dictionary_encode()
    if not pa.types.is_dictionary(column.type):
        return _read(column, what)
    months = np.append(_read(column.dictionary, what), np.uint16(UNKNOWN_MONTH))
    places = column.indices.cast(pa.int64()).fill_null(len(column.dictionary))
    read: npt.NDArray[np.uint16] = months[places.to_numpy(zero_copy_only=False)]
    return read


def _read(column: Any, what: str) -> npt.NDArray[np.uint16]:
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    try:
        if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
            year, month = pc.year(column), pc.month(column)
        else:
            fits = (
                pa.types.is_string,
                pa.types.is_large_string,
                pa.types.is_string_view,
                pa.types.is_integer,
            )
            if not any(fit(kind) for fit in fits):
                raise InputError(
                    f"the {what} column is of type {kind}, expected a date, a time, text or whole numbers",
                    code="not-a-date",
                    hint="cast it to a date at the source, or give months such as 2026-11 or 202611",
                )
            text = pc.replace_substring_regex(column.cast(pa.string()), _COMPACT_MONTH, r"\1-\2")
            text = pc.if_else(pc.match_substring_regex(text, _ISO_MONTH), text, "0000-01")
            year = pc.utf8_slice_codeunits(text, 0, 4).cast(pa.int64())
            month = pc.utf8_slice_codeunits(text, 5, 7).cast(pa.int64())
    except pa.ArrowException:
        raise InputError(
            f"the {what} column cannot be read as dates", code="not-a-date", hint="cast it at the source"
        ) from None
    number = pc.fill_null(pc.add(pc.multiply(year, 12), month), 1)
    months = np.asarray(number.to_numpy(zero_copy_only=False), dtype=np.int64) - 1
    months[(months < FIRST_MONTH) | (months >= END_MONTH)] = UNKNOWN_MONTH
    return months.astype(np.uint16)
