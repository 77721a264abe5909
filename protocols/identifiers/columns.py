"""Columns of text, from Arrow or numpy, as blocks of bytes with starts and lengths.

Everything after this module works on bytes: a string column, a binary column and a dictionary cost the same,
and no value becomes a Python object unless it needs cleaning.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from protocols.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

U8: TypeAlias = npt.NDArray[np.uint8]
I64: TypeAlias = npt.NDArray[np.int64]
Mask: TypeAlias = npt.NDArray[np.bool_]
Column: TypeAlias = "pa.Array[Any] | pa.ChunkedArray[Any] | npt.NDArray[Any]"
"""Text or bytes: Arrow string, binary, their large, view and dictionary forms, or numpy U, S, T or object."""

BLOCK_ROWS: Final = 1 << 15
"""Rows worked on at a time: few enough for the second-level cache, enough to hide the cost of a call."""

_TEXT_HINT: Final = (
    "cast the column to text at the source; a number loses leading zeros and the check character X"
)


@dataclass(frozen=True, slots=True, eq=False)
class Values:
    """Byte strings inside one buffer."""

    data: U8
    starts: I64  # n
    lengths: I64  # n

    @classmethod
    def of(cls, items: list[bytes]) -> Self:
        """Return these byte strings."""
        lengths = np.fromiter(map(len, items), dtype=np.int64, count=len(items))
        return cls(np.frombuffer(b"".join(items), dtype=np.uint8), np.cumsum(lengths) - lengths, lengths)

    def __len__(self) -> int:
        return len(self.starts)

    def select(self, rows: I64) -> "Values":
        """Return the values of these rows."""
        return Values(self.data, self.starts[rows], self.lengths[rows])

    def joined(self) -> "Values":
        """Return the same values without a gap between them."""
        starts = np.cumsum(self.lengths) - self.lengths
        at = np.repeat(self.starts - starts, self.lengths)
        at += np.arange(len(at))
        return Values(self.data[at], starts, self.lengths)

    def item(self, row: int) -> bytes:
        """Return one value."""
        start = int(self.starts[row])
        return self.data[start : start + int(self.lengths[row])].tobytes()

    def matrix(self, length: int) -> U8:
        """Return n x `length` bytes; every value must have that length."""
        if len(self) and int(self.starts[-1] - self.starts[0]) == (len(self) - 1) * length:
            # Starts ascend by at least `length`, so this sum leaves no gap: a view, not a copy.
            first = int(self.starts[0])
            return self.data[first : first + len(self) * length].reshape(-1, length)
        if not len(self):
            return np.zeros((0, length), dtype=np.uint8)
        # Every place at which a value may begin, as one item: gathered so, a value is copied at once.
        places = np.ndarray(self.data.size - length + 1, f"V{length}", self.data, strides=(1,))
        return places[self.starts].view(np.uint8).reshape(-1, length)

    def padded(self, width: int) -> U8:
        """Return n x `width` bytes, zeros after the end of each value; longer values are cut."""
        offsets = np.arange(width)
        if not self.data.size:
            return np.zeros((len(self), width), dtype=np.uint8)
        at = np.minimum(self.starts[:, np.newaxis] + offsets, self.data.size - 1)
        characters: U8 = self.data[at]
        characters[offsets >= self.lengths[:, np.newaxis]] = 0
        return characters


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Consecutive rows of a column."""

    first: int  # index of its first row in the column
    values: Values
    valid: Mask | None  # None where no row is null


def require_text(column: Column, name: str = "column") -> int:
    """Return the number of rows of a column of text.

    Raises:
        InputError: not an Arrow or numpy column, or one whose type is not text.
    """
    if isinstance(column, np.ndarray):
        if column.ndim != 1 or column.dtype.kind not in "USTO":
            raise InputError(
                f"{name} is a numpy array of dtype {column.dtype} with {column.ndim} dimensions, "
                "expected one dimension of text (U, S, T or object)",
                code="not-text",
                hint=_TEXT_HINT,
            )
        return len(column)
    import pyarrow as pa

    if not isinstance(column, pa.Array | pa.ChunkedArray):
        raise InputError(
            f"{name} is a {type(column).__name__}, expected a pyarrow Array, ChunkedArray or numpy array",
            code="not-a-column",
            hint="wrap the values with pyarrow.array(values, pyarrow.string())",
        )
    if not _is_text(column.type):
        raise InputError(
            f"{name} is of type {_type_name(column.type)}, expected string or binary",
            code="not-text",
            hint=_TEXT_HINT,
        )
    return len(column)


def blocks(column: Column, name: str = "column", rows: int = BLOCK_ROWS) -> Iterator[Block]:
    """Yield the rows of `column` in blocks of at most `rows`, in order.

    Raises:
        InputError: as `require_text`, or an object array holds something else than text.
    """
    require_text(column, name)
    first = 0
    for chunk in _chunks(column):
        for start in range(0, len(chunk), rows):
            piece = chunk[start : start + rows]
            if isinstance(piece, np.ndarray):
                piece = _from_numpy(piece, name)
            yield _block(first, piece)
            first += len(piece)


def categories(column: Column, name: str) -> tuple[list[bytes | None], I64]:
    """Return the distinct values of a column of few, None for null, and each row's index among them.

    Raises:
        InputError: as `blocks`.
    """
    import pyarrow as pa

    total = require_text(column, name)
    numbers: dict[bytes | None, int] = {None: 0}
    of_row = np.zeros(total, dtype=np.int64)
    first = 0
    for chunk in _chunks(column):
        piece = _from_numpy(chunk, name) if isinstance(chunk, np.ndarray) else chunk
        if pa.types.is_dictionary(piece.type):
            piece = piece.dictionary_decode()
        # As bytes, because a string that is not UTF-8 must not end the run.
        coded = piece.cast(pa.large_binary()).dictionary_encode()
        here = [numbers.setdefault(value, len(numbers)) for value in coded.dictionary.to_pylist()]
        # Null rows point one past the dictionary.
        codes = coded.indices.fill_null(len(here)).to_numpy(zero_copy_only=False)
        of_row[first : first + len(piece)] = np.array([*here, 0], dtype=np.int64)[codes]
        first += len(piece)
    return list(numbers), of_row


def _chunks(column: Any) -> list[Any]:
    return column.chunks if hasattr(column, "chunks") else [column]


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    is_ = pa.types
    if is_.is_dictionary(kind):
        return _is_text(kind.value_type)
    return any(
        test(kind)
        for test in (
            is_.is_string,
            is_.is_large_string,
            is_.is_string_view,
            is_.is_binary,
            is_.is_large_binary,
            is_.is_binary_view,
            is_.is_fixed_size_binary,
            is_.is_null,  # what a file with an empty column is read as
        )
    )


def _type_name(kind: Any) -> str:
    """Name a type without the names and values that a nested type may carry."""
    import pyarrow as pa

    return f"nested type {type(kind).__name__}" if pa.types.is_nested(kind) else str(kind)


def _from_numpy(piece: npt.NDArray[Any], name: str) -> Any:
    """Return a numpy piece as an Arrow array; None, NaN and NA are nulls."""
    import pyarrow as pa

    try:
        array = pa.array(piece, from_pandas=True)
    except (pa.ArrowException, UnicodeError, ValueError, TypeError):
        array = None
    if array is None or not _is_text(array.type):
        # Arrow's own message may quote the value, so only the types are named.
        found = ", ".join(sorted({type(value).__name__ for value in piece.tolist()}))
        raise InputError(
            f"{name} is an object array that holds {found}, expected well-formed str or bytes and nulls only",
            code="not-text",
            hint=_TEXT_HINT,
        ) from None
    return array


def _block(first: int, piece: Any) -> Block:
    """Return the bytes of an Arrow array without copying them where its layout allows."""
    import pyarrow as pa

    if pa.types.is_dictionary(piece.type):
        piece = piece.dictionary_decode()
    rows = len(piece)
    if pa.types.is_null(piece.type):
        nothing = np.zeros(rows, dtype=np.int64)
        return Block(
            first, Values(np.zeros(0, dtype=np.uint8), nothing, nothing), np.zeros(rows, dtype=np.bool_)
        )
    if not any(
        test(piece.type)
        for test in (
            pa.types.is_string,
            pa.types.is_large_string,
            pa.types.is_binary,
            pa.types.is_large_binary,
        )
    ):
        piece = piece.cast(pa.large_string() if pa.types.is_string_view(piece.type) else pa.large_binary())
    wide = pa.types.is_large_string(piece.type) or pa.types.is_large_binary(piece.type)
    _, offset_buffer, data_buffer = piece.buffers()
    if rows == 0 or offset_buffer is None:
        nothing = np.zeros(rows, dtype=np.int64)
        return Block(first, Values(np.zeros(0, dtype=np.uint8), nothing, nothing), None)
    stored = np.frombuffer(offset_buffer, dtype=np.int64 if wide else np.int32)
    offsets: I64 = stored[piece.offset : piece.offset + rows + 1].astype(np.int64)
    data = np.frombuffer(data_buffer if data_buffer is not None else b"", dtype=np.uint8)
    # Only this block's bytes: what is scanned for dirt must not be the whole column again.
    data = data[offsets[0] : offsets[-1]]
    offsets -= offsets[0]
    valid = None
    if piece.null_count:
        valid = np.asarray(piece.is_valid().to_numpy(zero_copy_only=False), dtype=np.bool_)
    return Block(first, Values(data, offsets[:-1], np.diff(offsets)), valid)
