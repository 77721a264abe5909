"""What another department wrote into a street column is never computed on the duty officer's machine."""

import pyarrow as pa
import pytest

from protocols.spreadsheet import for_office, plain_text


@pytest.mark.parametrize("cell", ["=HYPERLINK(1)", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_text_that_begins_like_a_formula_is_shown_not_computed(cell):
    assert plain_text(cell) == "'" + cell


@pytest.mark.parametrize("cell", ["", "990101001", "a=b", "东街"])
def test_other_text_stays_as_it_is(cell):
    assert plain_text(cell) == cell


def test_only_text_columns_change():
    table = pa.table({"street": ["=1", None, "x"], "count": [-1, 2, 3]})
    assert for_office(table).to_pydict() == {"street": ["'=1", None, "x"], "count": [-1, 2, 3]}
