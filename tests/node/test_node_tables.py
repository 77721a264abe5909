"""Tables through real nodes: one department's own and three departments' together, and what goes wrong."""

import asyncio
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from auditing import audited
from simulator import Post, Station, Task, World, answered, over, person, running, until
from table_world import SOURCES, STREETS, Row, TableWorld, case_rows

from node import runner
from node.admission import Prepared
from node.gate import About
from node.ledger import RowState
from node.releases import decode_content, release_info
from node.rpc import Attempt
from node.sources import Access, FilePlace, ReadLimits, open_source
from node.state import RunState
from protocols.channel import suites
from protocols.channel.frame import Header
from protocols.encoding import decode_json
from protocols.envelope import decode_envelope
from protocols.ids import JobId
from protocols.jobs.job_type import Unit
from protocols.wire import Admission, JobSpec

pytestmark = pytest.mark.alone  # whole nodes, 15 s together


@pytest.fixture(scope="module")
def tables(memory: Path) -> TableWorld:
    return TableWorld(memory / "tables")


@pytest.fixture
def world(tables: TableWorld, folder: Path) -> TableWorld:
    """A collaboration about tables, of whose files a test may make what it likes."""
    return tables.clone(folder / "world")  # type: ignore[return-value]  # a copy of its own kind


def cells_of(world: World, post: Post, job: JobId) -> dict[tuple[str, str, str], float | None]:
    """Open the one release as the analyst does: street, age, measure → value, None where withheld."""
    [release] = post.tasks[job].uploads
    opened = suites.open_sealed(2, world.analyst_private, release_info(release, job), post.release(job))
    rows = decode_content(opened)[0].to_pylist()
    return {
        (row["street"], row["age"], row["measure"]): None if row["withheld"] else row["value"] for row in rows
    }


def plain_table(departments: Iterable[Sequence[Row]], unit_rows: int = 1) -> dict[tuple[str, str], list[Any]]:
    """Count by hand, of each person the latest rows: (street, age) → person and amount of each row."""
    found: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for rows in departments:
        of_person: dict[int, list[Row]] = defaultdict(list)
        for row in rows:
            of_person[row[0]].append(row)
        for who, own in of_person.items():
            for _, street, age, paid, _ in sorted(own, key=lambda row: row[4], reverse=True)[:unit_rows]:
                group = "[0, 18)" if int(age) < 18 else "[18, 60)" if int(age) < 60 else "60+"
                for at in ((street, group), (street, ""), ("", group), ("", "")):
                    found[at].append((who, Decimal(paid)))
    return found


def check_cells(cells: dict[tuple[str, str, str], float | None], plain: dict[tuple[str, str], Any]) -> None:
    shown = 0
    for street in (*STREETS, ""):
        for age in ("[0, 18)", "[18, 60)", "60+", ""):
            rows = plain.get((street, age), [])
            persons, paid = cells[street, age, "persons"], cells[street, age, "sum(paid)"]
            if paid is None:
                continue
            shown += 1
            assert paid == float(sum(amount for _, amount in rows))
            assert persons is not None
            assert abs(persons - len({who for who, _ in rows})) < 5  # rounded to 5
    assert shown >= 12


async def ended(post: Post, stations: dict[str, Station], job: JobId) -> Task:
    task = await answered(post, job)
    assert {verdict.answer for verdict in task.verdicts.values()} == {"permit"}, task.verdicts
    return await over(post, job)


async def done(post: Post, stations: dict[str, Station], job: JobId) -> Task:
    task = await ended(post, stations, job)
    assert {end.state for end in task.ended.values()} == {"DONE"}, task.ended
    for name in post.participants(task):
        await until(lambda name=name: stations[name].run(job) is RunState.DONE)  # type: ignore[misc]
    return task


# -- right answers -------------------------------------------------------------------------------------------


def test_a_department_publishes_a_table_of_its_own_and_nothing_else_leaves(world: TableWorld) -> None:
    async def play() -> None:
        async with running(world) as (post, stations):
            job = post.submit(world.table(["health"]))
            await done(post, stations, job)
            check_cells(cells_of(world, post, job), plain_table([case_rows("health")]))
            assert post.frames == []
            assert [name for name in stations if stations[name].run(job)] == ["health"]

    asyncio.run(play())


@pytest.mark.parametrize("mode", ["bfv", "mask"])
def test_three_departments_learn_one_table_of_all_their_persons(world: TableWorld, mode: str) -> None:
    async def play() -> None:
        async with running(world) as (post, stations):
            job = post.submit(world.table(params={"mode": mode}))
            await done(post, stations, job)
            check_cells(cells_of(world, post, job), plain_table(map(case_rows, SOURCES)))
            assert {(h.sender, h.to) for h, _ in post.frames}  # this one does send
            assert set(post.tasks[job].uploads) == {o.release for o in stations["police"].state.outputs(job)}

    asyncio.run(play())


@pytest.mark.parametrize(("asked", "kept"), [(1, 1), (2, 2), (500, 3)])
def test_a_person_counts_no_more_rows_than_policy_and_job_let(
    world: TableWorld, asked: int, kept: int
) -> None:
    rows = [
        (7000 + n, street, "30", "10", f"2026-0{month}-01")
        for n in range(40)
        for month, street in enumerate(("S0", "S0", "S1", "S0", "S1"), start=1)
    ]
    world.write_cases("health", rows)

    async def play() -> None:
        async with running(world) as (post, stations):
            job = post.submit(world.table(["health"], params={"unit_rows": asked, "measures": None}))
            await done(post, stations, job)
            cells = cells_of(world, post, job)
            # The latest are S1, S0, S1: a person stands in both streets from two rows on.
            assert cells["S1", "[18, 60)", "persons"] == 40
            assert cells["S0", "[18, 60)", "persons"] == (40 if kept > 1 else 0)
            assert stations["health"].state.input_counts(job)[1]["over-bound"] == 40 * (5 - kept)

    asyncio.run(play())


def test_a_table_about_no_persons_counts_rows(folder: Path) -> None:
    class Lamps(TableWorld):
        personal, unit = "none", ""

    world = Lamps(folder / "world")

    async def play() -> None:
        async with running(world, names=["health", "police", "human-resources"]) as (post, stations):
            params = {"measures": None, "persons_in": None}
            columns = {"street": "street", "age": "age"}
            job = post.submit(world.table(["health"], params=params, columns=columns))
            await done(post, stations, job)
            assert cells_of(world, post, job)["", "", "rows"] == 75  # no person to protect: none is hidden

    asyncio.run(play())


@pytest.mark.parametrize("departments", [["health"], SOURCES])
def test_an_auditor_takes_every_decision_about_tables_again_and_finds_it_right(
    world: TableWorld, departments: Sequence[str]
) -> None:
    world.write_cases("health", case_rows("health")[:-2])  # no longer what the catalogue says

    async def play() -> None:
        async with running(world) as (post, stations):
            await done(post, stations, post.submit(world.table(departments)))

    asyncio.run(play())
    for name in world.homes:
        checks = audited(world, name)
        assert [(check.question, f.code, f.where) for check in checks for f in check.findings] == []


# -- what leaves ---------------------------------------------------------------------------------------------

PLANTED = [person(row[0]) for name in SOURCES for row in case_rows(name)[:12]]


def found_in(data: bytes) -> bool:
    for identifier in PLANTED:
        raw = identifier.encode()
        spellings = [raw, raw.hex().encode()]
        for known in (raw, b"RIC:" + raw):
            digest = hashlib.sha256(known).digest()
            spellings += [digest, digest.hex().encode()]
        if any(spelling in data for spelling in spellings):
            return True
    return b"1390000" in data


@pytest.mark.parametrize("departments", [["health"], SOURCES])
def test_no_identifier_leaves_or_stands_in_logs_and_journals(
    world: TableWorld, departments: Sequence[str]
) -> None:
    record = world.folder / "recorded"

    async def play() -> Post:
        async with running(world, record=record) as (post, stations):
            await done(post, stations, post.submit(world.table(departments)))
            return post

    post = asyncio.run(play())
    assert not found_in(b"".join(post.control))
    assert not found_in(b"".join(frame for _, frame in post.frames))
    files = [file for home in world.homes.values() for file in home.path.rglob("*") if file.is_file()]
    bodies = [file for file in record.rglob("*") if file.is_file()]
    assert len(files) > 40
    assert bool(bodies) == (len(departments) > 1)
    for file in [*files, *bodies]:
        assert not found_in(file.read_bytes()), file.name
    assert found_in((world.folder / "health-cases.csv").read_bytes())  # the scan finds what is there


def test_admissions_and_journals_say_of_a_datasets_size_what_the_catalogue_says(world: TableWorld) -> None:
    """An exact number of rows is an answer about persons that no noise and no group size protects."""
    world.write_cases("health", [*case_rows("health"), *((9000 + n, "S0", "5", "1", "") for n in range(23))])

    async def play() -> None:
        async with running(world) as (post, stations):
            job = post.submit(world.table())
            task = await done(post, stations, job)
            admission = Admission.decode(decode_envelope(task.admissions["health"]).payload)
            [summary] = admission.inputs.values()
            assert (summary.rows, summary.distinct_keys, summary.catalogue_keys) == (75, 60, 60)
            health = stations["health"]
            [accepted], [admitted] = health.entries("job.accepted"), health.entries("job.admitted")
            assert (accepted.body["rows"], admitted.body["rows"]) == (75, 75)
            assert admitted.body["distinct_keys"] == 60
            quality = health.state.journal.get_object(summary.quality_sha256)
            assert quality is not None
            record = decode_json(quality)
            assert (record["rows"], record["distinct_keys"]) == (75, 60)
            assert "rejected" not in record
            # What was read, the department's database says, and nothing that may be carried elsewhere.
            counts = health.state.input_counts(job)[1]
            assert (counts["rows"], counts["distinct-keys"]) == (98, 83)
            log = health.home.log.read_text()
            assert str(job) in log
            assert not re.search(r"\b(98|83)\b|distinct-keys|over-bound", log)

    asyncio.run(play())


# -- bad data ------------------------------------------------------------------------------------------------


def spoil(rows: list[Row], place: int, value: str, count: int = 7) -> list[Row]:
    return [(*row[:place], value, *row[place + 1 :]) if n < count else row for n, row in enumerate(rows)]  # type: ignore[misc]  # of one length


def _edited(world: TableWorld, rows: list[Row], edit: Callable[[str], str], count: int) -> None:
    path = world.write_cases("health", rows)
    head, *lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([head, *map(edit, lines[:count]), *lines[count:]]) + "\n", encoding="utf-8")


def _without_id(world: TableWorld, rows: list[Row]) -> None:
    _edited(world, rows, lambda line: line[line.index(",") :], 7)


def _bad_ids(world: TableWorld, rows: list[Row]) -> None:
    _edited(world, rows, lambda line: "!" + line[1:], len(rows))


def _as_parquet(world: TableWorld, rows: list[Row]) -> None:
    """A table whose streets are fractions."""
    people = [person(row[0]) for row in rows]
    table = pa.table(
        {
            "id": people,
            "street": [0.5] * len(rows),
            "age": [int(row[2]) for row in rows],
            "paid": [float(row[3]) for row in rows],
            "day": [row[4] for row in rows],
        }
    )
    path = world.folder / "health-cases.parquet"
    pq.write_table(table, path)
    state = world.open("health")
    with state.journal.transaction() as connection:
        connection.execute(
            "UPDATE dataset SET place = json_object('file', ?) WHERE name = 'cases'", (str(path),)
        )
    state.close()


BAD: dict[str, tuple[Callable[[TableWorld, list[Row]], object], str]] = {
    "bad-measure": (lambda world, rows: world.write_cases("health", spoil(rows, 3, "NaN")), "7 rows"),
    "out-of-bounds": (
        lambda world, rows: world.write_cases("health", spoil(rows, 3, "1000.01")),
        "7 amounts",
    ),
    "unit-missing": (_without_id, "7 of 75 rows"),
    "no-usable-key": (_bad_ids, "none of the 75 rows"),
    "column-type-changed": (_as_parquet, "street was registered as text and is decimal now"),
}


def untouched(stations: dict[str, Station], job: JobId) -> None:
    """Nothing is spent, set aside or made anywhere."""
    for station in stations.values():
        assert [
            row.state for row in station.state.ledger().of_job(job) if row.state is not RowState.RELEASED
        ] == []
        assert station.state.outputs(job) == []


@pytest.mark.parametrize("departments", [["health"], SOURCES])
@pytest.mark.parametrize("code", BAD)
def test_bad_data_ends_a_job_with_its_reason_and_spends_nothing(
    world: TableWorld, code: str, departments: Sequence[str]
) -> None:
    make, told = BAD[code]
    make(world, case_rows("health"))

    async def play() -> None:
        async with running(world) as (post, stations):
            job = post.submit(world.table(departments))
            task = await ended(post, stations, job)
            end = task.ended["health"]
            assert (end.state, end.code) == ("FAILED", code)
            # How many rows are bad is the department's to know: its log says so, nobody else.
            assert told in stations["health"].home.log.read_text()
            assert not any(digit in end.sentence + end.hint for digit in "0123456789")
            for entry in stations["health"].entries("job."):
                assert "7 " not in json.dumps(entry.body)
            assert not post.frames
            untouched(stations, job)
            assert not found_in(b"".join(post.control))

    asyncio.run(play())
    for file in world.homes["health"].path.rglob("*"):
        assert not file.is_file() or not found_in(file.read_bytes()), file.name


def test_a_file_without_the_column_that_says_whom_a_row_is_about_is_refused_at_the_gate(
    world: TableWorld,
) -> None:
    state = world.open("health")
    [cases] = [dataset for dataset in state.datasets() if dataset.name == "cases"]
    with state.change() as change:
        change.put_dataset(replace(cases, columns=tuple(c for c in cases.columns if c.name != "id")))
    state.close()

    async def play() -> None:
        async with running(world) as (post, stations):
            job = post.submit(world.table(["health"]))
            task = await answered(post, job)
            assert (task.verdicts["health"].answer, task.verdicts["health"].code) == (
                "refuse",
                "unknown-column",
            )
            untouched(stations, job)

    asyncio.run(play())


def test_rows_bounded_under_another_policy_than_the_one_in_force_are_not_used(
    world: TableWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    def earlier(*arguments: Any, **named: Any) -> Prepared:
        return replace(real(*arguments, **named), about=About("id", Unit("resident-id", 99)))

    real = runner.prepare
    monkeypatch.setattr(runner, "prepare", earlier)

    async def play() -> None:
        async with running(world) as (post, stations):
            job = post.submit(world.table(["health"]))
            task = await ended(post, stations, job)
            assert task.ended["health"].code == "admission-outdated"
            untouched(stations, job)

    asyncio.run(play())


def test_a_job_that_reads_no_column_is_refused(folder: Path) -> None:
    class Lamps(TableWorld):
        personal, unit, types = "none", "", ("release/1",)

    world = Lamps(folder / "world")

    async def play() -> None:
        async with running(world, names=["health", "police", "human-resources"]) as (post, stations):
            spec = world.table(["health"], columns={})
            params = {"statistic": "count", "areas": "demo-city", "rho": "0.5"}
            job = post.submit(replace(spec, job_type="release/1", params=params))
            task = await ended(post, stations, job)
            assert task.ended["health"].code == "no-columns"
            untouched(stations, job)

    asyncio.run(play())


class Private(TableWorld):
    """Noisy answers, paid from a budget of each department."""

    types = ("release/1",)
    budget = """[budgets.privacy]
dataset = "cases"
notion = "zcdp"
limit = "0.75"
period = "calendar-quarter"
scope = "all-requesters"
"""

    def noisy(self, departments: Sequence[str], **params: Any) -> JobSpec:
        """Return a sum by street for rho = 0.5."""
        spec = self.table(departments, columns={"street": "street", "paid": "paid", "latest": "day"})
        asked = {
            "statistic": "sum",
            "rho": "0.5",
            "areas": "demo-city",
            "axes": [{"slot": "street", "values": list(STREETS)}],
            "measure": {"slot": "paid", "bounds": ["0", "1000"]},
            **({"key_holder": "source-1"} if len(departments) > 1 else {}),
            **params,
        }
        return replace(spec, job_type="release/1", params=asked)


@pytest.fixture(scope="module")
def budgets(memory: Path) -> Private:
    return Private(memory / "budgets")


@pytest.mark.parametrize("departments", [["health"], SOURCES])
def test_a_budget_pays_for_an_answer_and_not_for_a_failure(
    budgets: Private, folder: Path, departments: Sequence[str]
) -> None:
    world = budgets.clone(folder / "world")
    assert isinstance(world, Private)
    world.write_cases("health", spoil(case_rows("health"), 3, "inf"))

    def spent(station: Station) -> list[str]:
        return [entry.kind for entry in station.entries("budget.")]

    async def play() -> None:
        async with running(world) as (post, stations):
            failed = post.submit(world.noisy(departments))
            task = await ended(post, stations, failed)
            assert task.ended["health"].code == "bad-measure"
            untouched(stations, failed)
            assert spent(stations["health"]) == []
            # Half a unit of 0.75 is left for another: nothing was lost.
            world.write_cases("health", case_rows("health"))
            job = post.submit(world.noisy(departments))
            await done(post, stations, job)
            [row] = stations["health"].state.ledger().of_job(job)
            assert (row.state, row.past.query is not None and row.past.query.noisy) == (
                RowState.CHARGED,
                True,
            )
            third = post.submit(world.noisy(departments, areas="national"))
            verdicts = (await answered(post, third)).verdicts
            assert verdicts["health"].code == "budget-exceeded"

    asyncio.run(play())


# -- a second attempt ----------------------------------------------------------------------------------------


class Silent(Post):
    """Of a first attempt no frame arrives."""

    def carried(self, header: Header, frame: bytes) -> Iterable[bytes]:
        return () if header.attempt == 1 else (frame,)


async def cut_short(post: Post, stations: dict[str, Station], job: JobId) -> None:
    """Let the first attempt pass commit point 1 everywhere, and end before anybody answers."""
    names = post.participants(post.tasks[job])
    await until(lambda: all(stations[name].run(job) is RunState.RUNNING for name in names))
    await until(lambda: all((name, Attempt(job, 1)) in post.streams for name in names))
    post.stop(job, "peer-lost", 1)
    await until(lambda: all(stations[name].run(job) is RunState.CANCELLED for name in names))


def test_an_exact_joint_table_is_not_tried_again_over_other_data(world: TableWorld) -> None:
    async def play() -> None:
        async with running(world, Silent(world)) as (post, stations):
            job = post.submit(world.table())
            await cut_short(post, stations, job)
            world.write_cases("health", case_rows("health")[1:])
            post.again(job)
            task = await ended(post, stations, job)
            assert task.ended["health"].code == "data-changed"
            assert "new job" in task.ended["health"].hint
            assert stations["health"].run(job, 2) is RunState.FAILED
            # The first attempt's cost is free again, the second set nothing aside.
            rows = stations["health"].state.ledger().of_job(job)
            assert [(row.past.attempt, row.state) for row in rows] == [(1, RowState.RELEASED)]

    asyncio.run(play())


def test_an_exact_joint_table_is_tried_again_over_the_same_data(world: TableWorld) -> None:
    async def play() -> None:
        async with running(world, Silent(world)) as (post, stations):
            job = post.submit(world.table())
            await cut_short(post, stations, job)
            post.again(job)
            task = await ended(post, stations, job)
            assert {end.state for end in task.ended.values()} == {"DONE"}
            check_cells(cells_of(world, post, job), plain_table(map(case_rows, SOURCES)))

    asyncio.run(play())


# -- reading -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["csv", "parquet"])
@pytest.mark.parametrize("threads", [1, 4])
def test_rows_are_read_in_the_order_in_which_they_are_stored(folder: Path, ending: str, threads: int) -> None:
    path = folder / f"long.{ending}"
    numbers = pa.table({"n": np.arange(400_000).astype(str)})
    if ending == "csv":
        path.write_text("n\n" + "\n".join(numbers.column(0).to_pylist()) + "\n")
    else:
        pq.write_table(numbers, path, row_group_size=20_000)
    read = [
        batch.column(0)
        for batch in open_source(FilePlace(path), Access(ReadLimits(threads=threads))).read(["n"])
    ]
    assert pa.chunked_array(read).equals(numbers.column(0))


def test_of_equally_late_rows_the_first_in_the_file_counts(world: TableWorld) -> None:
    world.write_cases(
        "health", [(n, STREETS[k], "30", "1", "2026-01-01") for n in range(30) for k in (2, 0, 1)]
    )

    async def play() -> None:
        async with running(world) as (post, stations):
            job = post.submit(world.table(["health"], params={"measures": None}))
            await done(post, stations, job)
            cells = cells_of(world, post, job)
            assert [cells[street, "", "persons"] for street in STREETS] == [0, 0, 30]

    asyncio.run(play())
