"""The catalogue: one file has one name, so that what was spent on it is counted once."""

import os
import random
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from simulator import START, World, person

from node import catalogue
from node.cli import main
from node.desk import register
from node.sources import DEFAULT_ACCESS, Access, FilePlace, open_source
from node.state import Dataset, State
from protocols.catalogue import read_catalogue
from protocols.envelope import decode_envelope
from protocols.errors import InputError
from protocols.ids import NodeName


def scanned(name: str, path: Path) -> Dataset:
    return catalogue.scan(
        name, FilePlace(path), title="", key="id", published_keys=None, access=Access(), today=START.date()
    )


@pytest.fixture
def health(world: World) -> Iterator[State]:
    """The health department's state; `people` is its one dataset."""
    state = world.open("health")
    yield state
    state.close()


def registered(state: State) -> Path:
    [people] = state.datasets()
    return people.place.path


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
    assert FilePlace(one).same(FilePlace(folder / "." / "one"))
    assert not FilePlace(one).same(FilePlace(two))
    assert not FilePlace(one).same(FilePlace(folder / "gone"))


def test_a_fingerprint_tells_every_writing_apart(folder: Path) -> None:
    path = folder / "list.csv"
    path.write_text("id\n1\n")
    os.utime(path, ns=(0, 5 * 10**9))
    first = open_source(FilePlace(path), DEFAULT_ACCESS).fingerprint()
    assert open_source(FilePlace(path), DEFAULT_ACCESS).fingerprint() == first
    os.utime(path, ns=(0, 5 * 10**9 + 1))
    assert open_source(FilePlace(path), DEFAULT_ACCESS).fingerprint() != first
    path.write_text("id\n12\n")
    os.utime(path, ns=(0, 5 * 10**9))
    assert open_source(FilePlace(path), DEFAULT_ACCESS).fingerprint() != first
    path.unlink()
    with pytest.raises(InputError) as caught:
        open_source(FilePlace(path), DEFAULT_ACCESS).fingerprint()
    assert caught.value.code == "file-missing"


# -- tables about no persons ---------------------------------------------------------------------------------


def lamps(folder: Path, count: int = 1234) -> Path:
    """Write a table of street lamps: nothing in it is an identifier."""
    path = folder / "lamps.csv"
    path.write_text("lamp,street\n" + "".join(f"L{n},S{n % 7}\n" for n in range(count)))
    return path


def unpersonal(path: Path, *, key: str = "", published_keys: int | None = None) -> Dataset:
    return catalogue.scan(
        "lamps",
        FilePlace(path),
        title="",
        key=key,
        published_keys=published_keys,
        access=Access(),
        today=START.date(),
        persons=False,
    )


def test_a_table_about_no_persons_is_registered_without_a_key_column(health: State, folder: Path) -> None:
    path = lamps(folder)
    with pytest.raises(InputError) as caught:
        scanned_anyhow(path)
    assert caught.value.code == "no-key-column"
    found = unpersonal(path)
    assert (found.key, found.rows, found.distinct_keys, found.published_keys) == ("", 1234, 1234, 1230)
    register(health, found)
    assert [dataset.name for dataset in health.datasets()] == ["lamps", "people"]
    assert unpersonal(path, published_keys=1200).published_keys == 1200


def scanned_anyhow(path: Path) -> Dataset:
    return catalogue.scan(
        "lamps", FilePlace(path), title="", key="", published_keys=None, access=Access(), today=START.date()
    )


def test_a_table_about_no_persons_has_no_key_column_and_some_rows(folder: Path) -> None:
    with pytest.raises(InputError) as caught:
        unpersonal(lamps(folder), key="lamp")
    assert caught.value.code == "key-without-persons"
    with pytest.raises(InputError) as caught:
        unpersonal(lamps(folder, 0))
    assert caught.value.code == "empty-table"
    assert unpersonal(lamps(folder, 0), published_keys=5).published_keys == 5


def test_the_command_registers_a_table_about_no_persons(
    world: World, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home, path = str(world.homes["health"].path), str(lamps(folder))
    assert main(["dataset", "add", "lamps", path, "--no-persons", "--home", home]) == 0
    out = capsys.readouterr().out
    assert "lamps: 1234 rows, about no persons" in out
    assert "published as 1230 keys" in out
    assert main(["dataset", "add", "lamps", path, "--no-persons", "--key", "lamp", "--home", home]) != 0
    assert "leave out --key, or --no-persons" in capsys.readouterr().err


@pytest.mark.parametrize("stored", ["csv", "parquet", "numbers", "cents"])
def test_a_table_with_a_column_of_resident_ids_is_not_about_no_persons(folder: Path, stored: str) -> None:
    people = [who for who in map(person, range(2000)) if who.isdigit()][:600]
    # One lamp in ten has somebody who looks after it.
    keepers = [people[n] if n % 10 == 0 else "" for n in range(600)]
    path = folder / ("lamps.csv" if stored == "csv" else "lamps.parquet")
    lamp = [f"L{n}" for n in range(600)]
    if stored == "csv":
        rows = "".join(f"{a},{b}\n" for a, b in zip(lamp, keepers, strict=True))
        path.write_text("lamp,keeper\n" + rows)
    elif stored == "parquet":
        pq.write_table(pa.table({"lamp": lamp, "keeper": keepers}), path)
    else:
        kind = pa.int64() if stored == "numbers" else pa.decimal128(20, 2)
        numbers = pa.array(
            [(int(k) if stored == "numbers" else Decimal(k)) if k else None for k in keepers], kind
        )
        pq.write_table(pa.table({"lamp": lamp, "keeper": numbers}), path)
    with pytest.raises(InputError) as caught:
        unpersonal(path)
    assert caught.value.code == "persons-found"
    assert "keeper" in caught.value.message
    assert "--key keeper" in caught.value.hint
    assert not any(who in caught.value.message + caught.value.hint for who in people)


def test_a_table_about_no_persons_may_have_floating_point_numbers(folder: Path) -> None:
    path = folder / "lamps.parquet"
    pq.write_table(
        pa.table({"lamp": ["a", "b"], "watts": [7.5, None], "lux": pa.array([1, 2], pa.float32())}), path
    )
    assert unpersonal(path).rows == 2


def test_serial_numbers_of_eighteen_digits_are_no_persons(folder: Path) -> None:
    path = folder / "lamps.csv"
    draw = random.Random(7)  # serial numbers, no secret
    numbers = [f"{draw.randrange(10**18):018d}" for _ in range(999)]
    path.write_text("lamp\n" + "\n".join([*numbers, person(1)]) + "\n")  # one hit in a thousand
    assert unpersonal(path).rows == 1000


# -- what is signed ------------------------------------------------------------------------------------------


def written(folder: Path, header: str) -> Path:
    path = folder / "table.csv"
    path.write_text(header + "\n" + "x,y\n" * 30, encoding="utf-8")
    return path


def about(path: Path, **said: Any) -> Dataset:
    given = {"title": "", "key": "", "published_keys": None, "persons": False, **said}
    return catalogue.scan("lamps", FilePlace(path), access=Access(), today=START.date(), **given)


@pytest.mark.parametrize("name", ["n" * 64, "a b", "街 道", "1a", "x-y", "n" * 600])
def test_a_column_that_no_job_can_name_is_not_published(
    world: World, health: State, folder: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = about(written(folder, f"{name},b"))
    assert catalogue.unpublished(found.columns) == 1
    register(health, found)
    said = read_catalogue(catalogue.document(health.datasets(), [], NodeName("health.gz.example/a"), START))
    lamps = next(each for each in said.datasets if each.name == "lamps")
    assert [column.name for column in lamps.columns] == ["b"]
    health.close()
    home = str(world.homes["health"].path)
    assert main(["dataset", "add", "lamps", str(folder / "table.csv"), "--no-persons", "--home", home]) == 0
    assert "not in the catalogue: 1 columns" in capsys.readouterr().out


def test_what_a_node_signs_everybody_can_read(world: World, health: State) -> None:
    signer, now = world.homes["health"].signer, START
    datasets = health.datasets()
    figures = {"people": {"completeness": {"id": "99.9", "a b": "50.0"}, "drift": "0.1"}}
    node = NodeName("health.gz.example/a")
    signed = catalogue.publish(datasets, node, signer, now, quality=figures)
    [people] = read_catalogue(decode_envelope(signed).payload).datasets
    assert people.quality == {"completeness": {"id": "99.9"}, "drift": "0.1"}
    # A title of an earlier release that no terminal should show gives way to the name.
    odd = [replace(datasets[0], title="\x1b[31mevil")]
    [people] = read_catalogue(decode_envelope(catalogue.publish(odd, node, signer, now)).payload).datasets
    assert people.title == "people"


@pytest.mark.parametrize("title", ["\x1b[31mevil", "a\u200bb", "x" * 129, "call 13800138000", " \n"])
def test_a_title_that_no_catalogue_may_show_is_refused(folder: Path, title: str) -> None:
    with pytest.raises(InputError) as caught:
        about(written(folder, "a,b"), title=title)
    assert caught.value.code == "bad-title"


def test_a_catalogue_that_nobody_could_read_is_not_registered(health: State) -> None:
    [people] = health.datasets()
    size = health.journal.size
    with pytest.raises(InputError) as caught:
        register(health, replace(people, snapshot="yesterday"))
    assert (caught.value.code, health.journal.size) == ("bad-time", size)
