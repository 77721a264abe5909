"""Arrow IPC streams read strictly: what is opened is no larger than what was sent.

Releases come from other organisations. Arrow's own reader decompresses whatever a stream says is compressed,
so that 100 KB become gigabytes, expands columns that have no bytes of their own, and does not look whether
offsets of texts lie where the texts are. Writers here use none of that. Format: Arrow Columnar Format 1.5,
"Serialization and Interprocess Communication"; the few fields of its FlatBuffers that matter are read here.
"""

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from protocols.errors import DecodeError
from protocols.freetext import UNREADABLE

if TYPE_CHECKING:
    import pyarrow as pa

_END: Final = b"\xff\xff\xff\xff\0\0\0\0"
"""How every stream ends."""

# Places of fields in the tables of Message.fbs.
_HEADER: Final = 2
_LENGTH, _BUFFERS, _COMPRESSION = 0, 2, 3


def read_table(data: bytes) -> "pa.Table":
    """Return the table of a stream, checked throughout; its columns lie in `data`, nothing is copied.

    (1) Columns have different, readable names and are of flat types: numbers, moments, truth values, texts or
    bytes. (2) Record batches follow and nothing else: no dictionaries, no compression. Buffers are no larger
    than what they lie in, and every cell takes a bit or more of the stream. (3) Offsets lie in their buffers
    and texts are UTF-8. The stream has its end, and nothing after it.

    Raises:
        DecodeError: `bad-release`.
    """
    import pyarrow as pa

    try:
        # (1)
        with pa.ipc.open_stream(data) as reader:
            _check_schema(reader.schema)
        # (2)
        rows = sum(_rows(message) for message in _batches(data))
        if rows * max(len(reader.schema), 1) > 8 * len(data):
            raise _bad("it has more cells than bits")
        # (3)
        source = pa.BufferReader(data)
        with pa.ipc.open_stream(source) as reader:
            table = reader.read_all()
        table.validate(full=True)
        if source.tell() != len(data) or not data.endswith(_END):
            raise _bad("it is cut, or goes on after its end")
    except (pa.ArrowException, OSError, ValueError, struct.error):
        raise _bad("it is none") from None
    return table


def _check_schema(schema: "pa.Schema") -> None:
    import pyarrow as pa

    if len(set(schema.names)) != len(schema) or any(map(UNREADABLE.search, schema.names)):
        raise _bad("a column is there twice, or has a name that cannot be read")
    flat = (
        pa.types.is_primitive,
        pa.types.is_boolean,
        pa.types.is_string,
        pa.types.is_binary,
        pa.types.is_null,
    )
    if not all(any(each(kind) for each in flat) for kind in schema.types):
        raise _bad("a column is of a type that no release has")


def _batches(data: bytes) -> Iterator["pa.Message"]:
    import pyarrow as pa

    messages = iter(pa.ipc.MessageReader.open_stream(pa.BufferReader(data)))
    next(messages, None)  # the schema, which has been looked at
    for message in messages:
        if message.type != "record batch":
            raise _bad("it has something else than rows, such as a dictionary")
        yield message


def _rows(message: "pa.Message") -> int:
    """Return how many rows a batch says it has; the library has verified that its metadata is whole."""
    data = memoryview(message.metadata)
    batch = _follow(data, _field(data, _follow(data, 0), _HEADER))
    if _field(data, batch, _COMPRESSION):
        raise _bad("it is compressed")
    total, buffers = 0, _field(data, batch, _BUFFERS)
    if buffers:
        at = _follow(data, buffers)
        (count,) = struct.unpack_from("<I", data, at)
        # Each is a struct of two i64: offset, length.
        for number in range(count):
            _, length = struct.unpack_from("<qq", data, at + 4 + 16 * number)
            total += max(length, 0)
    if total > len(message.body or b""):
        raise _bad("its buffers are larger than what they lie in")
    length_at = _field(data, batch, _LENGTH)
    rows: int = struct.unpack_from("<q", data, length_at)[0] if length_at else 0
    if rows < 0:
        raise _bad("a batch has fewer rows than none")
    return rows


def _follow(data: memoryview, at: int) -> int:
    """Return where the offset at a place leads."""
    (offset,) = struct.unpack_from("<I", data, at)
    return at + int(offset)


def _field(data: memoryview, table: int, place: int) -> int:
    """Return where a table's field is, 0 where it has none of that place."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    (size,) = struct.unpack_from("<H", data, vtable)
    entry = 4 + 2 * place
    offset = struct.unpack_from("<H", data, vtable + entry)[0] if entry < size else 0
    return table + int(offset) if offset else 0


def _bad(why: str) -> DecodeError:
    return DecodeError(
        f"the release is not an Arrow stream of this software: {why}",
        code="bad-release",
        hint="fetch the release again: minshu fetch JOB",
    )
