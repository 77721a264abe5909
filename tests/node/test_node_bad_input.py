"""Bad input: each a clear answer, a journal entry where the node decided, nothing half-done."""

import asyncio
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from simulator import START, Station, Task, World, approve_all, over, person, running

from node import catalogue
from node.answers import IN_CHINESE
from node.catalogue import rounded
from node.sources import Access, FilePlace
from protocols.errors import InputError


def play(world: World) -> tuple[Task, dict[str, list[str]]]:
    """Run the standard job; return how it went and what each node's journal holds."""

    async def go() -> tuple[Task, dict[str, list[str]]]:
        async with running(world) as (post, stations):
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            task = await over(post, job)
            assert not any(s.state.outputs() for s in stations.values()) or _done(task)
            return task, {name: _ends(station) for name, station in stations.items()}

    return asyncio.run(go())


def _done(task: Task) -> bool:
    return all(e.state == "DONE" for e in task.ended.values())


def _ends(station: Station) -> list[str]:
    entries = [*station.entries("job.failed"), *station.entries("job.aborted")]
    return [entry.body["code"] for entry in entries]


def changed(world: World, name: str, edit: Callable[[list[str]], list[str]]) -> None:
    """Rewrite a department's file after it was registered."""
    path = world.folder.parents[1] / "founded" / f"{name}.csv"
    lines = path.read_text(encoding="utf-8").splitlines()
    own = world.folder / f"{name}-own.csv"
    own.write_text("\n".join(edit(lines)) + "\n", encoding="utf-8")
    repoint(world, name, own)


def repoint(world: World, name: str, path: Path) -> None:
    """Point a registered dataset at another file, as if that had taken its place."""
    state = world.open(name)
    with state.journal.transaction() as connection:
        connection.execute("UPDATE dataset SET place = json_object('file', ?)", (str(path),))
    state.close()


def failed(world: World, name: str, code: str) -> Task:
    """Check that a job fails at one node for one reason, which its journal and the coordinator have."""
    task, ends = play(world)
    assert (task.ended[name].state, task.ended[name].code) == ("FAILED", code)
    sentence, hint = IN_CHINESE[code]
    assert task.ended[name].sentence.endswith(f" {sentence}")
    assert task.ended[name].hint.endswith(f" {hint}")
    assert ends[name] == [code]
    assert {e.code for n, e in task.ended.items() if n != name} <= {"peer-failed", code}
    return task


def test_a_column_that_vanished_from_the_file(world: World) -> None:
    changed(world, "health", lambda lines: [lines[0].replace("street", "strasse"), *lines[1:]])
    task = failed(world, "health", "schema-drift")
    assert "street" in task.ended["health"].sentence


def test_identifiers_of_the_wrong_type(world: World) -> None:
    path = world.folder / "numbers.parquet"
    pq.write_table(pa.table({"id": list(range(120)), "street": ["a"] * 120, "seen": ["2026-01"] * 120}), path)
    repoint(world, "health", path)
    task = failed(world, "health", "column-type-changed")
    assert "integer" in task.ended["health"].sentence


def test_wholly_invalid_identifiers(world: World) -> None:
    changed(
        world, "health", lambda lines: [lines[0], *("nobody," + line.split(",", 1)[1] for line in lines[1:])]
    )
    task = failed(world, "health", "no-usable-key")
    assert "bad-length" in task.ended["health"].sentence


def test_text_that_is_not_utf8(world: World) -> None:
    path = world.folder / "gbk.csv"
    path.write_bytes(b"id,street,seen\n" + person(1).encode() + ",东区,2026-01\n".encode("gb18030"))
    repoint(world, "health", path)
    task = failed(world, "health", "not-utf8")
    assert person(1) not in task.ended["health"].sentence


def test_a_file_that_is_gone(world: World) -> None:
    repoint(world, "health", world.folder / "gone.csv")
    task = failed(world, "health", "file-missing")
    assert "gone.csv" not in task.ended["health"].SerializeToString().decode("utf-8", "replace")


def test_an_emptied_source_is_stopped_before_anything_leaves(world: World) -> None:
    changed(world, "health", lambda lines: lines[:1])
    task, ends = play(world)
    assert "guard-empty-list" in ends["police"]
    assert not any(e.opened for e in task.ended.values())


@pytest.mark.parametrize("people", [[], [5], list(range(60))])
def test_a_register_that_is_not_what_its_catalogue_says_is_stopped_by_everybody(
    world: World, people: list[int]
) -> None:
    world.write_list("police", people, at=world.folder / "p.csv")
    repoint(world, "police", world.folder / "p.csv")
    task, ends = play(world)
    assert "guard-list-size" in {code for codes in ends.values() for code in codes}
    assert not any(e.opened for e in task.ended.values())
    assert not _done(task)


def test_a_garbage_register_of_the_right_size_gets_nothing(world: World) -> None:
    world.write_list("police", range(2000, 2120), at=world.folder / "g.csv")
    repoint(world, "police", world.folder / "g.csv")
    task, ends = play(world)
    assert task.ended["statistics"].code.startswith("guard-")
    assert ends["statistics"] == [task.ended["statistics"].code]


def test_repeats_are_counted_once(world: World) -> None:
    changed(world, "health", lambda lines: [*lines, *lines[1:], *lines[1:20]])
    task, _ = play(world)
    assert _done(task)


def test_a_source_of_one_row_and_an_empty_answer_are_no_error(world: World) -> None:
    changed(world, "human-resources", lambda lines: lines[:2])
    task, _ = play(world)
    assert _done(task)


# -- dataset add -------------------------------------------------------------------------------------------


def scanned(path: Path, **how: object) -> catalogue.Dataset:
    options = {"title": "", "key": "", "published_keys": None, "access": Access(), "today": START.date()}
    place = FilePlace(path)
    return catalogue.scan("people", place, **(options | how))  # type: ignore[arg-type]  # names checked by the call


def written(folder: Path, text: str) -> Path:
    path = folder / "list.csv"
    path.write_text(text, encoding="utf-8")
    return path


def refuses(code: str, path: Path, **how: object) -> InputError:
    with pytest.raises(InputError) as caught:
        scanned(path, **how)
    assert caught.value.code == code
    return caught.value


def test_adding_a_dataset_counts_rows_and_distinct_keys(folder: Path) -> None:
    ids = [person(n) for n in range(10)]
    spelt = [ids[0].lower(), f" {ids[1]}", "nonsense"]
    found = scanned(written(folder, "name,id\n" + "".join(f"x,{i}\n" for i in ids + spelt)))
    assert (found.key, found.rows, found.distinct_keys, found.published_keys) == ("id", 13, 10, 10)


def test_adding_a_list_of_one_row_works(folder: Path) -> None:
    found = scanned(written(folder, f"id\n{person(1)}\n"))
    assert (found.rows, found.distinct_keys) == (1, 1)


def test_adding_an_empty_table_is_refused_unless_it_says_what_to_publish(folder: Path) -> None:
    path = written(folder, "id,street\n")
    refuses("empty-table", path)
    found = scanned(path, published_keys=92_000)
    assert (found.rows, found.distinct_keys, found.published_keys) == (0, 0, 92_000)


def test_adding_a_table_without_identifiers_is_refused(folder: Path) -> None:
    path = written(folder, "name,age\n" + "x,1\n" * 20)
    refuses("no-key-column", path)
    refuses("no-usable-key", path, key="name")
    assert "closest: name" in refuses("unknown-column", path, key="names").message


def test_adding_identifiers_stored_as_numbers_is_refused(folder: Path) -> None:
    path = folder / "n.parquet"
    pq.write_table(pa.table({"id": [int(person(n)[:17]) for n in range(20)]}), path)
    refuses("no-key-column", path)
    refuses("not-text", path, key="id")


def test_a_dataset_name_is_a_name(folder: Path) -> None:
    path = written(folder, f"id\n{person(1)}\n")
    with pytest.raises(InputError):
        catalogue.scan(
            "../people",
            FilePlace(path),
            title="",
            key="",
            published_keys=None,
            access=Access(),
            today=date(2026, 1, 1),
        )


@pytest.mark.parametrize(
    ("count", "shown"), [(0, 0), (7, 7), (999, 999), (1000, 1000), (1234, 1230), (92_456, 92_500)]
)
def test_published_counts_have_three_digits(count: int, shown: int) -> None:
    assert rounded(count) == shown
