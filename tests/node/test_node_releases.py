"""What a release looks like on its way out: encoded batch by batch, opened, written for people."""

import io

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node import releases
from node.releases import BATCH_ROWS, decode_content, encode_content, mark_records, write_table
from protocols.jobs.job_type import Content, Table

SALT = bytes(16)


def content(**columns) -> Content:
    return Content("records", Table(columns), {"rows": 3})


def opened(made: Content) -> pa.Table:
    return decode_content(encode_content(made, "statement", SALT))[0]


def as_before(made: Content) -> bytes:
    """Return the stream as releases of one batch have always been."""
    about = {"name": made.name, "facts": dict(made.facts), "statement": "statement", "salt": SALT.hex()}
    metadata = {releases.METADATA_KEY: releases.canonical_json(about)}
    table = pa.table({name: pa.array(values) for name, values in made.table.columns.items()})
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.replace_schema_metadata(metadata).schema) as writer:
        writer.write_table(table.replace_schema_metadata(metadata))
    return sink.getvalue()


def test_a_small_release_is_byte_for_byte_what_it_was():
    made = content(
        street=np.array(["990101001", "", "天河"]),
        count=np.array([-1, 10, 2**62]),
        withheld=np.array([True, False, False]),
        value=np.array([0.5, np.nan, -1.0]),
        label=np.array(["a", None, "b"], dtype=np.object_),
    )
    assert encode_content(made, "statement", SALT) == as_before(made)


def test_a_stream_of_one_batch_and_one_of_many_are_both_read(monkeypatch):
    made = content(key=np.arange(10).astype("S2"), month=np.arange(10).astype(np.str_))
    one = opened(made)
    monkeypatch.setattr(releases, "BATCH_ROWS", 3)
    many = opened(made)
    assert many.column("key").num_chunks == 4
    assert many.to_pydict() == one.to_pydict()
    assert many.schema == one.schema


def test_a_column_has_the_type_of_all_its_batches(monkeypatch):
    monkeypatch.setattr(releases, "BATCH_ROWS", 2)
    made = content(label=np.array([None, None, None, "last"], dtype=np.object_))
    assert opened(made).column("label").to_pylist() == [None, None, None, "last"]


@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), max_size=9))
def test_texts_arrive_as_they_were(texts):
    assert opened(content(text=np.array(texts, dtype=np.str_))).column("text").to_pylist() == texts


@pytest.mark.parametrize(
    "column",
    [
        np.array(["ab", "c", "ef", "g"])[::2],
        np.array(["ab", "ef"], dtype=">U2"),
        np.array(["ab", "ef"], dtype=np.object_),
        np.array([b"ab", b"ef"]),
    ],
    ids=["strided", "big-endian", "objects", "bytes"],
)
def test_however_texts_lie_in_memory_they_are_texts(column):
    assert opened(content(text=column)).column("text").to_pylist() == ["ab", "ef"]


def test_one_text_for_every_row_takes_no_memory_of_its_own():
    made = content(organisation=np.broadcast_to(np.array("health.example"), BATCH_ROWS + 1))
    assert set(opened(made).column("organisation").to_pylist()) == {"health.example"}


@pytest.mark.parametrize("lengths", [(2, 2), (1, 3)], ids=["of one length", "of several"])
def test_bytes_that_are_no_text_are_refused(lengths):
    with pytest.raises(ValueError, match="UTF"):
        encode_content(content(key=np.array([b"\xff" * length for length in lengths])), "statement", SALT)


def test_an_empty_release_keeps_its_columns():
    table = opened(content(key=np.empty(0, dtype="S20"), month=np.empty(0, dtype="U7")))
    assert (table.num_rows, table.column_names) == (0, ["key", "month"])


def test_columns_of_different_lengths_are_no_release():
    with pytest.raises(ValueError, match="length"):
        encode_content(content(a=np.zeros(2), b=np.zeros(3)), "statement", SALT)


@pytest.mark.parametrize("rows", [0, 2, 5, 6])
def test_a_table_in_batches_is_written_as_one_file(tmp_path, monkeypatch, rows):
    monkeypatch.setattr(releases, "BATCH_ROWS", 3)
    table = mark_records(pa.table({"key": pa.array([f"={n}" for n in range(rows)], pa.string())}), "疑似")
    write_table(table, tmp_path / "out.csv")
    lines = (tmp_path / "out.csv").read_bytes().decode("utf-8-sig").splitlines()
    assert lines == ['"key","mark"', *[f'"\'={n}","疑似"' for n in range(rows)]]
