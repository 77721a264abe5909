"""A stream from another organisation is opened to no more than what was sent, or refused."""

import io

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.disclosure import read_arrow
from coordinator.client.release import files_in
from node.releases import decode_content
from protocols.arrow import read_table
from protocols.errors import DecodeError, MinshuError

TABLE = pa.table(
    {
        "street": pa.array(["天河", "", None, "b"]),
        "count": pa.array([1, 2, 3, None]),
        "share": pa.array([0.5, None, 1.0, 2.0]),
        "withheld": pa.array([True, None, False, True]),
        "data": pa.array([b"\0\1", b"", None, b"x"]),
        "nothing": pa.nulls(4),
    }
)


def stream(table: pa.Table, times: int = 1, **options: object) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        for _ in range(times):
            writer.write_table(table)
    return sink.getvalue()


def refused(data: bytes) -> str:
    with pytest.raises(DecodeError) as error:
        read_table(data)
    assert (error.value.code, bool(error.value.hint)) == ("bad-release", True)
    return error.value.message


@pytest.mark.parametrize("times", [1, 3])
def test_what_a_release_holds_is_read_as_it_was_written(times):
    assert read_table(stream(TABLE, times)).equals(pa.concat_tables([TABLE] * times))
    assert read_table(stream(TABLE.slice(0, 0))).equals(TABLE.slice(0, 0))
    assert read_table(stream(TABLE.slice(1, 2))).equals(TABLE.slice(1, 2))


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_a_compressed_stream_is_refused_before_it_takes_memory(codec):
    one = pa.table({"file": ["a"], "data": pa.array([bytes(1 << 24)], pa.binary())})
    bomb = stream(one, 20, compression=codec)
    assert len(bomb) < 2 << 20
    own = pa.default_memory_pool()
    counted = pa.proxy_memory_pool(own)
    pa.set_memory_pool(counted)
    try:
        assert "it is compressed" in refused(bomb)
        for read in (files_in, read_arrow, decode_content):
            with pytest.raises(MinshuError) as error:
                read(bomb)
            assert error.value.code == "bad-release"
    finally:
        pa.set_memory_pool(own)
    assert counted.max_memory() < 1 << 16


def test_columns_without_bytes_are_no_larger_than_their_stream():
    nulls = stream(pa.table({f"c{n}": pa.nulls(1 << 26) for n in range(8)}))
    assert len(nulls) < 4096
    assert "more cells than bits" in refused(nulls)
    none = pa.RecordBatch.from_struct_array(pa.array([{}] * 100_000, pa.struct([])))
    assert (none.num_rows, none.num_columns) == (100_000, 0)
    assert "more cells than bits" in refused(stream(pa.Table.from_batches([none])))


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["a", "a"]).dictionary_encode(),
        pa.array([[1], [2]]),
        pa.array([{"a": 1}, {"a": 2}]),
        pa.array(["a", "b"], pa.string_view()),
        pa.RunEndEncodedArray.from_arrays([2], ["a"]),
        pa.array([b"", b""], pa.binary(0)),
    ],
    ids=lambda column: str(column.type).split("<")[0],
)
def test_types_that_no_release_has_are_refused(column):
    assert "a type that no release has" in refused(stream(pa.table({"a": column})))


@pytest.mark.parametrize("names", [["a", "a"], ["a", "b\x1b[2J"], ["a", "\u202eb"]])
def test_columns_have_one_readable_name_each(names):
    assert "twice, or has a name" in refused(
        stream(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=names))
    )


def test_texts_lie_where_their_offsets_say():
    outside = pa.StringArray.from_buffers(
        2, pa.py_buffer(np.array([0, 1 << 20, 2], np.int32)), pa.py_buffer(b"ab")
    )
    backwards = pa.StringArray.from_buffers(
        3, pa.py_buffer(np.array([0, 2, 0, 2], np.int32)), pa.py_buffer(b"ab")
    )
    latin = pa.StringArray.from_buffers(1, pa.py_buffer(np.array([0, 1], np.int32)), pa.py_buffer(b"\xff"))
    for array in (outside, backwards, latin):
        refused(stream(pa.table({"a": array})))


def test_a_stream_that_is_cut_or_goes_on_is_refused():
    data = stream(TABLE)
    for cut in (data[:-8], data[:-1], data[: len(data) // 2], b"", data + bytes(8), data + data):
        refused(cut)


WHOLE = stream(TABLE)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
def test_a_flipped_byte_gives_a_sound_table_or_none(at, flip):
    data = bytearray(WHOLE)
    data[at] ^= flip
    try:
        table = read_table(bytes(data))
    except DecodeError:
        return
    table.validate(full=True)
    assert table.nbytes <= 2 * len(WHOLE)
    assert len(table.to_pylist()) <= 8 * len(WHOLE)
