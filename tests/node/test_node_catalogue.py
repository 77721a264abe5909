"""The catalogue: one file has one name, so that what was spent on it is counted once."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from simulator import START, World

from node import catalogue
from node.desk import register
from node.sources import ReadLimits
from node.sources.files import fingerprint, same_file
from node.state import Dataset, State
from protocols.errors import InputError


def scanned(name: str, path: Path) -> Dataset:
    return catalogue.scan(
        name, path, title="", key="id", published_keys=None, limits=ReadLimits(), today=START.date()
    )


@pytest.fixture
def health(world: World) -> Iterator[State]:
    """The health department's state; `people` is its one dataset."""
    state = world.open("health")
    yield state
    state.close()


def registered(state: State) -> Path:
    [people] = state.datasets()
    return people.path


def twice(state: State, path: Path) -> InputError:
    size = state.journal.size
    with pytest.raises(InputError) as caught:
        register(state, scanned("again", path))
    assert [dataset.name for dataset in state.datasets()] == ["people"]
    assert state.journal.size == size
    return caught.value


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_file_that_has_a_name_gets_no_second_one_under_any_path(health: State, folder: Path, link) -> None:  # type: ignore[no-untyped-def]  # os functions
    known = registered(health)
    assert twice(health, known).code == "source-twice"
    other = folder / "other.csv"
    link(known, other)
    error = twice(health, other)
    assert error.code == "source-twice"
    assert "people" in error.message
    assert str(folder) not in error.message + error.hint


def test_a_registered_file_that_is_away_for_now_keeps_its_name(health: State) -> None:
    known = registered(health)
    found = scanned("again", known)
    known.rename(known.with_suffix(".away"))
    with pytest.raises(InputError) as caught:
        register(health, found)
    assert caught.value.code == "source-twice"


def test_a_dataset_is_registered_again_under_its_name_and_another_file_under_another(
    health: State, folder: Path
) -> None:
    known = registered(health)
    register(health, scanned("people", known))
    copy = folder / "copy.csv"
    copy.write_bytes(known.read_bytes())
    register(health, scanned("more", copy))
    assert [dataset.name for dataset in health.datasets()] == ["more", "people"]


def test_paths_lead_to_one_file_or_to_two(folder: Path) -> None:
    one, two = folder / "one", folder / "two"
    one.write_bytes(b"")
    two.write_bytes(b"")
    assert same_file(one, folder / "." / "one")
    assert not same_file(one, two)
    assert not same_file(one, folder / "gone")


def test_a_fingerprint_tells_every_writing_apart(folder: Path) -> None:
    path = folder / "list.csv"
    path.write_text("id\n1\n")
    os.utime(path, ns=(0, 5 * 10**9))
    first = fingerprint(path)
    assert fingerprint(path) == first
    os.utime(path, ns=(0, 5 * 10**9 + 1))
    assert fingerprint(path) != first
    path.write_text("id\n12\n")
    os.utime(path, ns=(0, 5 * 10**9))
    assert fingerprint(path) != first
    path.unlink()
    with pytest.raises(InputError) as caught:
        fingerprint(path)
    assert caught.value.code == "file-missing"
