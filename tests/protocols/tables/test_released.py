"""The form of a released table: labels that are right and kept once, and no table that no memory holds."""

import tracemalloc
from itertools import product
from math import isnan, prod

import numpy as np
import pyarrow as pa
import pytest

from protocols.errors import InputError
from protocols.tables.layout import MAX_TEXT, Axis
from protocols.tables.released import (
    MAX_FIGURES,
    MAX_TEXT_BYTES,
    Figure,
    as_texts,
    cell_labels,
    check_size,
    content,
)


def axes_of(*sizes: int, length: int = 4, letter: str = "x") -> list[Axis]:
    """Return axes of so many values, each a text of so many characters."""
    return [
        Axis(f"axis_{at}", values=tuple(str(i).rjust(length, letter) for i in range(size)))
        for at, size in enumerate(sizes)
    ]


def released(axes: list[Axis], measures: list[str], *, margins: bool = False) -> dict[str, np.ndarray]:
    """Return the columns of a table whose cells are numbered."""
    labels = cell_labels(axes, margins=margins)
    cells = prod(axis.size + margins for axis in axes)
    figures = [Figure(measure, labels, np.arange(float(cells))) for measure in measures]
    return dict(content("table", figures, {}).table.columns)


@pytest.mark.parametrize("margins", [False, True])
@pytest.mark.parametrize("sizes", [(), (1,), (5,), (2, 3), (3, 1, 2, 4)])
def test_each_row_has_the_labels_of_its_cell_and_its_figure(sizes, margins):
    axes, measures = axes_of(*sizes), ["persons", "sum(pay)", "mean(pay)"]
    columns = released(axes, measures, margins=margins)
    texts = [[*axis.labels, ""] if margins else axis.labels for axis in axes]
    cells = list(product(*texts))
    expected = [(*cell, measure, float(i)) for measure in measures for i, cell in enumerate(cells)]
    wanted = [*(axis.slot for axis in axes), "measure", "value"]
    assert list(zip(*(columns[name].tolist() for name in wanted), strict=True)) == expected


def test_a_label_is_kept_once_however_many_rows_it_stands_in():
    axes = axes_of(8, 8, 8, 8, length=MAX_TEXT)
    measures = [f"sum({'m' * 50}{i})" for i in range(32)]
    tracemalloc.start()
    columns = released(axes, measures)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    rows = 8**4 * 32
    # In an array of texts one of the five that each row has would take 256 bytes alone.
    assert peak < rows * 256
    assert {len({id(each) for each in columns[axis.slot]}) for axis in axes} == {8}


def test_a_table_of_no_rows_still_says_which_columns_are_texts():
    none = Figure("persons", {"job": as_texts([])}, np.zeros(0), low=np.zeros(0), high=np.zeros(0))
    columns = content("table", [none], {}).table.columns
    kinds = {name: str(pa.array(values).type) for name, values in columns.items()}
    assert kinds == {
        **dict.fromkeys(("job", "measure"), "string"),
        **dict.fromkeys(("value", "low", "high"), "double"),
        "withheld": "bool",
    }


def test_a_withheld_row_has_no_number():
    dark = np.array([True, False])
    figure = Figure("persons", {"job": as_texts(["a", "b"])}, np.ones(2), dark, np.zeros(2), np.full(2, 3.0))
    columns = content("table", [figure], {}).table.columns
    for name in ("value", "low", "high"):
        assert [isnan(each) for each in columns[name]] == [True, False]


# ---------------------------------------------------------------- how large


def refused(axes: list[Axis], measures: list[str], *, margins: bool = False) -> str:
    with pytest.raises(InputError) as error:
        check_size(axes, measures, margins=margins)
    assert error.value.code == "too-many-cells"
    assert error.value.hint
    return error.value.message


def test_a_job_of_a_few_kilobytes_cannot_ask_for_a_table_of_gigabytes():
    measures = ["persons", *(f"{of}(m{i})" for i in range(8) for of in ("sum", "mean"))]
    assert "has 20160657 rows" in refused(axes_of(*[32] * 4, length=63), measures, margins=True)


def test_rows_are_the_figures_of_all_cells_and_margins():
    check_size(axes_of(1024, 1024), ["persons"])
    assert MAX_FIGURES == 1024 * 1024
    refused(axes_of(1024, 1024), ["persons"], margins=True)
    refused(axes_of(1024, 1024), ["sum(m)", "mean(m)"])
    check_size(axes_of(1023, 1023), ["persons"], margins=True)
    check_size([], ["persons"])


@pytest.mark.parametrize(("letter", "size"), [("x", 1), ("街", 3)])
def test_labels_are_short_where_there_are_very_many_rows(letter, size):
    # Together with the names of figures: as many bytes as the columns will have.
    axes, rows = axes_of(1024, 512, length=50, letter=letter), 1024 * 512
    texts = sum(len("".join(axis.labels).encode()) * rows // axis.size for axis in axes) + rows * len(
        "persons"
    )
    assert (texts <= MAX_TEXT_BYTES) == (size == 1)
    if size == 1:
        check_size(axes, ["persons"])
        spare = (MAX_TEXT_BYTES - texts) // rows
        check_size(axes, ["persons" + "s" * spare])
        refused(axes, ["persons" + "s" * (spare + 1)])
    else:
        assert f"have {texts} bytes" in refused(axes, ["persons"])
