"""Numbers as departments store them, read without an error: whole numbers, doubles, decimals, and text.

A bound of the job is a fraction. Which side of it a number lies on, and what a number is in whole units of
10^-d, is decided on the stored value itself: a double is the dyadic fraction that it is, a text what it says.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protocols.errors import InputError

I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_WHOLE: Final = r"^-?[0-9]{1,18}$"
_DECIMAL: Final = r"^[+-]?[0-9]{1,18}(\.[0-9]{0,20})?$"
_DOUBLE: Final = r"^[+-]?[0-9]{1,300}(\.[0-9]{0,300})?([eE][+-]?[0-9]{1,3})?$"
_TEXT_SCALE: Final = 20
_PRECISION: Final = 38

_FAR: Final = 2.0**53
"""No amount of a measure is so large, in its smallest unit."""

_SPLIT: Final = 134217729.0
_LEAST, _MOST = -(1 << 63), (1 << 63) - 1


@dataclass(frozen=True, slots=True, eq=False)
class Numbers:
    """Numbers of one exact form."""

    rows: I64  # where in the column they stand
    values: Any  # int64 or float64 as numpy, or decimal128 as Arrow; none null, none NaN or infinite
    scale: int | None = None  # digits after the point, of decimals


def read(column: Any, slot: str) -> tuple[list[Numbers], Mask]:
    """Return a column's numbers by form, and the rows that hold something which is no finite number.

    A null, and text without a character other than blanks, is neither. Text of up to 18 digits before the
    point and 20 after it is taken as it stands, longer text and such with an exponent as the nearest double.

    Args:
        column: an Arrow array of numbers or text.
        slot: what an error calls it.

    Raises:
        InputError: `not-a-number`: a column of another type.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    bad = np.zeros(len(column), dtype=np.bool_)
    try:
        if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
            return _of_text(column)
        valid = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
        present = column if len(valid) == len(column) else column.take(pa.array(valid))
        if pa.types.is_dictionary(column.type):
            present = present.dictionary_decode()
        if pa.types.is_null(kind):
            return [], bad
        if pa.types.is_uint64(kind):
            present, kind = present.cast(pa.decimal128(20, 0)), pa.decimal128(20, 0)
        if pa.types.is_integer(kind):
            return [Numbers(valid, present.cast(pa.int64()).to_numpy())], bad
        if pa.types.is_floating(kind):
            doubles = present.cast(pa.float64()).to_numpy()
            finite = np.isfinite(doubles)
            bad[valid[~finite]] = True
            return [Numbers(valid[finite], doubles[finite])], bad
        if pa.types.is_decimal(kind) and kind.scale >= 0:
            wide = pc.cast(present, pa.decimal128(_PRECISION, kind.scale))
            return [Numbers(valid, wide, kind.scale)], bad
    except pa.ArrowException:
        # Arrow's message may quote the value.
        raise InputError(
            f"the {slot} column cannot be read as numbers",
            code="not-a-number",
            hint="cast it at the source to whole numbers or decimals",
        ) from None
    named = f"nested type {type(kind).__name__}" if pa.types.is_nested(kind) else str(kind)
    raise InputError(
        f"the {slot} column is of type {named}, expected numbers, or text that says numbers",
        code="not-a-number",
        hint="cast it at the source to whole numbers or decimals",
    )


def _of_text(column: Any) -> tuple[list[Numbers], Mask]:
    import pyarrow as pa
    import pyarrow.compute as pc

    text = pc.utf8_trim_whitespace(column.cast(pa.string()))
    found: list[Numbers] = []
    left = np.flatnonzero(
        pc.greater(pc.fill_null(pc.binary_length(text), 0), 0).to_numpy(zero_copy_only=False)
    )
    for form in (_WHOLE, _DECIMAL, _DOUBLE):
        if not len(left):
            break
        here = text if len(left) == len(text) else text.take(pa.array(left))
        fits = pc.match_substring_regex(here, form)
        is_form = fits.to_numpy(zero_copy_only=False)
        if is_form.any():
            rows, plain = left[is_form], here.filter(fits)
            if form == _WHOLE:
                found.append(Numbers(rows, plain.cast(pa.int64()).to_numpy()))
            elif form == _DECIMAL:
                found.append(Numbers(rows, plain.cast(pa.decimal128(_PRECISION, _TEXT_SCALE)), _TEXT_SCALE))
            else:
                doubles = plain.cast(pa.float64()).to_numpy()
                finite = np.isfinite(doubles)
                found.append(Numbers(rows[finite], doubles[finite]))
                is_form[np.flatnonzero(is_form)[~finite]] = False
        left = left[~is_form]
    bad = np.zeros(len(column), dtype=np.bool_)
    bad[left] = True
    return found, bad


def passed(numbers: Numbers, bounds: Sequence[Fraction], *, beyond: bool = False) -> I64:
    """Return how many of the ascending bounds each number reaches; with `beyond`, how many it exceeds."""
    side: Any = "left" if beyond else "right"
    whole = floor if beyond else ceil
    if numbers.scale is not None:
        step = 10**numbers.scale
        limit = 1 << 127
        marks = [min(max(whole(bound * step), -limit), limit - 1) for bound in bounds]
        words = b"".join((mark + limit).to_bytes(16, "big") for mark in marks)
        placed = np.searchsorted(np.frombuffer(words, dtype="S16"), _sortable(numbers.values), side)
    elif numbers.values.dtype == np.float64:
        ends = np.array([_double(bound, up=not beyond) for bound in bounds])
        placed = np.searchsorted(ends, numbers.values, side)
    else:
        # A bound past the largest whole number is never reached.
        reachable = [max(whole(bound), _LEAST) for bound in bounds if bound <= _MOST]
        placed = np.searchsorted(np.array(reachable, dtype=np.int64), numbers.values, side)
    return placed.astype(np.int64)


def scaled(numbers: Numbers, decimals: int, low: int, high: int) -> tuple[I64, Mask]:
    """Return the numbers in units of 10^-decimals, half to even, cut to `low` … `high`; and which were cut.

    Args:
        numbers: of any form.
        decimals: digits after the point that count.
        low: least amount, in that unit.
        high: greatest amount; both at most 2^52 from zero.

    Raises:
        InputError: `not-a-number`: decimals of more digits than can be rounded.
    """
    step = 10**decimals
    if numbers.scale is not None:
        amounts, far = _round_decimals(numbers, decimals)
        cut = far | (amounts < low) | (amounts > high)
        return np.clip(amounts, low, high), cut
    if numbers.values.dtype == np.float64:
        amounts = _round_doubles(numbers.values, step)
        return np.clip(amounts, low, high), (amounts < low) | (amounts > high)
    below, above = numbers.values < -(-low // step), numbers.values > high // step
    amounts = np.where(below | above, 0, numbers.values) * step
    amounts[below], amounts[above] = low, high
    return amounts, below | above


def _round_doubles(values: npt.NDArray[np.float64], step: int) -> I64:
    """Return round-half-even(values · step), exact on the doubles as they are; far ones stay far.

    The product is rounded to a double first. That moves no value over a point halfway between two whole
    numbers, only onto it; there the error of the product, exact by Dekker 1971, says from which side.
    """
    near = np.clip(values, -_FAR / step, _FAR / step)
    product = near * step
    split = near * _SPLIT
    upper = split - (split - near)
    error = (upper * step - product) + (near - upper) * step
    whole = np.rint(product)
    halfway = (np.abs(product - whole) == 0.5) & (error != 0)
    whole = np.where(halfway, np.where(error > 0, np.ceil(product), np.floor(product)), whole)
    return whole.astype(np.int64)


def _round_decimals(numbers: Numbers, decimals: int) -> tuple[I64, Mask]:
    """Return round-half-even in units of 10^-decimals, and which are too far from zero for any bound."""
    import pyarrow as pa
    import pyarrow.compute as pc

    values = numbers.values
    rough = values.cast(pa.float64()).to_numpy()
    far = np.abs(rough) > _FAR / 10**decimals
    try:
        if far.any():
            values = pc.if_else(pa.array(far), pa.scalar(0).cast(values.type), values)
        if numbers.scale is not None and numbers.scale > decimals:
            values = pc.round(values, ndigits=decimals, round_mode="half_to_even")
        values = values.cast(pa.decimal128(_PRECISION, decimals))
    except pa.ArrowException:
        raise InputError(
            f"decimals of {numbers.scale} digits after the point cannot be rounded to {decimals}",
            code="not-a-number",
            hint="cast the column at the source to fewer digits",
        ) from None
    amounts = np.ascontiguousarray(_words(values)[:, 0])
    amounts[far] = np.where(rough[far] > 0, 1 << 53, -(1 << 53))
    return amounts, far


def _words(values: Any) -> I64:
    """Return n x 2: the low and the high word of each decimal."""
    stored = np.frombuffer(values.buffers()[1], dtype="<i8").reshape(-1, 2)
    return stored[values.offset : values.offset + len(values)].astype(np.int64)


def _sortable(values: Any) -> npt.NDArray[np.bytes_]:
    """Return 16 bytes for each decimal that sort as the decimals do."""
    words = _words(values).view(np.uint64)
    big = np.empty((len(words), 2), dtype=">u8")
    big[:, 0] = words[:, 1] ^ np.uint64(1 << 63)
    big[:, 1] = words[:, 0]
    return big.view("S16").ravel()


def _double(bound: Fraction, *, up: bool) -> float:
    """Return the least double that is not below a bound, or the greatest not above it."""
    nearest = float(bound)
    if up and Fraction(nearest) < bound:
        return float(np.nextafter(nearest, np.inf))
    if not up and Fraction(nearest) > bound:
        return float(np.nextafter(nearest, -np.inf))
    return nearest
