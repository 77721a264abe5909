"""The malicious police lists: nothing to match, or nobody who exists."""

import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from demo.city import PROFILES, SNAPSHOT, empty_register, garbage_register, generate
from demo.city.identity import _STEP, NOBODY, nobody
from protocols.errors import InputError
from protocols.identifiers import demo_area_table, normalise


def keys_of(path: Path, column: str = "resident_id") -> np.ndarray:
    found = normalise(
        pq.read_table(path, columns=[column])[column].drop_null(),
        "resident-id",
        as_of=SNAPSHOT,
        areas=demo_area_table(),
    )
    return found.keys


def test_both_have_the_columns_and_types_of_the_real_register(tmp_path: Path) -> None:
    generate("ci", 1, tmp_path / "city")
    real = pq.read_schema(tmp_path / "city/registers/police/population.parquet")
    empty, garbage = empty_register(tmp_path / "empty"), garbage_register(tmp_path / "garbage", 10, 1)
    assert pq.read_schema(empty).equals(real)
    assert pq.read_schema(garbage).equals(real)
    assert pq.read_metadata(empty).num_rows == 0


def test_the_garbage_register_has_the_right_number_of_valid_ids_of_nobody(tmp_path: Path) -> None:
    generate("demo", 1, tmp_path / "city", workers=2)
    path = garbage_register(tmp_path / "garbage", 92_000, 1)
    keys = keys_of(path)
    assert len(keys) == pq.read_metadata(path).num_rows == len(np.unique(keys)) == 92_000
    for column in ("resident_id", "known_as"):
        people = keys_of(tmp_path / "city/truth/persons.parquet", column)
        assert not np.isin(keys, people).any()


def test_garbage_is_the_same_for_the_same_seed_and_other_for_another(tmp_path: Path) -> None:
    one, again, other = (
        garbage_register(tmp_path / name, 1_000, seed)
        for name, seed in (("one", 5), ("again", 5), ("other", 6))
    )
    assert one.read_bytes() == again.read_bytes()
    assert len(np.intersect1d(keys_of(one), keys_of(other))) < 100


def test_ids_of_nobody_suffice_for_the_largest_city_and_never_repeat() -> None:
    needed = PROFILES["city"].population * 92 // 100
    assert needed <= NOBODY
    area, male, day, slot = nobody(0, 1_000_000, 3)
    assert len(np.unique((((area * 2 + male) * 40_000) + day) * 1_000 + slot)) == 1_000_000
    beginning, again = (np.array(nobody(first, 1, 2**64 - 1)) for first in (0, NOBODY))
    assert (beginning == again).all()  # the walk closes after NOBODY steps and, a cycle, not before
    assert math.gcd(_STEP, NOBODY) == 1


@pytest.mark.parametrize("count", [-1, 10**9])
def test_an_impossible_number_of_ids_is_refused_and_leaves_nothing_behind(tmp_path: Path, count: int) -> None:
    with pytest.raises(InputError) as caught:
        garbage_register(tmp_path / "garbage", count, 1)
    assert caught.value.code == "bad-count"
    assert not (tmp_path / "garbage").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError) as caught:
        empty_register(tmp_path / "file" / "police")
    assert caught.value.code == "output-not-writable"
