"""A whole job over tables in real databases: the same answer as over files, and no password anywhere."""

import asyncio
import time
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow.csv as pacsv
import pytest
from databases.servers import Server
from databases.tables import allow, create
from simulator import START, World, approve_all, over, person, running, until

from node import catalogue, dataset_cli
from node.cli import main
from node.desk import register
from node.doctor import examine
from node.gate import BELIEVED
from node.home import Home
from node.quality import stored_preflight
from node.releases import decode_content, kept, open_release, release_info
from node.sources import TablePlace
from node.sources.dialects import LOCK_WAIT_S
from node.state import RunState
from protocols.channel import suites
from protocols.envelope import decode_envelope
from protocols.errors import InputError
from protocols.ids import DatasetName
from protocols.wire import ReleaseNote

pytestmark = pytest.mark.alone


def move(world: World, name: str, server: Server) -> str:
    """Put a department's list into a database, as its engineer would; return the table."""
    table = server.new_name("people")
    text = pacsv.ConvertOptions(column_types=dict.fromkeys(("id", "street", "seen", "phone"), "string"))
    create(server, table, pacsv.read_csv(world.folder / f"{name}.csv", convert_options=text))
    home = world.homes[name]
    secret = home.path / "registers.password"
    secret.touch(mode=0o600)
    secret.write_text(server.reader_password)
    with (home.path / "node.toml").open("a", encoding="utf-8") as file:
        file.write(
            f'[connections.registers]\nurl = "{server.url}"\nuser = "{server.reader}"\n'
            'password_file = "registers.password"\n'
        )
    world.homes[name] = home = Home(home.path)  # settings are read once
    state = world.open(name)
    found = catalogue.scan(
        "people",
        TablePlace("registers", table),
        title="",
        key="id",
        published_keys=None,
        access=home.config.access,
        today=START.date(),
    )
    with state.change() as change:
        change.put_dataset(found)
    state.close()
    return table


def play(world: World) -> tuple[list[dict[str, Any]], set[str], bytes]:
    """Return what the standard question is answered with: the table, the list, and all that went out."""

    async def go() -> tuple[list[dict[str, Any]], set[str], bytes]:
        async with running(world) as (post, stations):
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            task = await over(post, job)
            assert {e.state for e in task.ended.values()} == {"DONE"}, [e.code for e in task.ended.values()]
            police = stations["police"]
            await until(lambda: police.run(job) is RunState.DONE)
            [release] = task.uploads
            info = release_info(release, job)
            opened = suites.open_sealed(2, world.analyst_private, info, post.release(job))
            table, _ = decode_content(opened)
            [records] = [o for o in police.state.outputs(job) if o.output_class == "B"]
            note = ReleaseNote.decode(decode_envelope(records.note).payload)
            sealed = kept(police.home.releases, records)
            listed, _ = open_release(sealed, note, police.home.recipient_private())
            sent = b"".join(post.control) + b"".join(frame for _, frame in post.frames)
            return table.to_pylist(), set(listed.column("key").to_pylist()), sent

    return asyncio.run(go())


def test_a_cross_check_over_tables_has_the_answer_that_files_have(
    postgres: Server, mariadb: Server, tmp_path: Path
) -> None:
    world = World(tmp_path / "files")
    of_files = play(world)
    there = World(tmp_path / "tables")
    move(there, "health", postgres)
    move(there, "human-resources", mariadb)
    of_tables = play(there)
    assert of_tables[:2] == of_files[:2]
    assert of_tables[1] == {f"RIC:{person(n)}" for n in range(300, 312)}

    # No password, role or port is in anything but node.toml and the password's own file.
    for server, name in ((postgres, "health"), (mariadb, "human-resources")):
        for file in there.homes[name].path.rglob("*"):
            if file.is_file() and file.name not in ("node.toml", "registers.password"):
                data = file.read_bytes()
                assert server.reader_password.encode() not in data, file.name
                assert server.reader.encode() not in data, file.name
        assert server.reader_password.encode() not in of_tables[2]
        assert server.reader.encode() not in of_tables[2]


def test_a_table_has_one_name_and_the_doctor_says_what_became_of_it(postgres: Server, tmp_path: Path) -> None:
    world = World(tmp_path)
    table = move(world, "health", postgres)
    home = world.homes["health"]
    state = world.open("health")
    [dataset] = state.datasets()
    with pytest.raises(InputError) as caught:
        register(state, replace(dataset, name=DatasetName("others")))
    assert caught.value.code == "source-twice"
    state.close()

    def finding() -> tuple[str, str]:
        [found] = [each for each in examine(home, START) if each.what == "dataset people"]
        return found.state, found.found

    assert finding()[0] == "ok"
    postgres.run(f"ALTER TABLE {table} ALTER COLUMN street TYPE integer USING 1")
    assert finding()[0] != "ok"
    postgres.run(f"DROP TABLE {table}")
    state_now, says = finding()
    assert state_now == "error"
    assert table not in says


def test_a_job_on_a_column_that_changed_type_is_refused_before_a_row_is_read(
    postgres: Server, tmp_path: Path
) -> None:
    world = World(tmp_path)
    table = move(world, "health", postgres)
    postgres.run(f"ALTER TABLE {table} ALTER COLUMN street TYPE integer USING 1")

    async def go() -> list[str]:
        async with running(world) as (post, stations):
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            task = await over(post, job)
            assert not task.uploads
            return [task.ended["health"].state, task.ended["health"].code]

    assert asyncio.run(go()) == ["FAILED", "column-type-changed"]


def test_whoever_registers_a_table_is_told_that_nothing_says_when_it_was_written(
    postgres: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = World(tmp_path)
    table = move(world, "police", postgres)
    postgres.run(f"ALTER TABLE {table} ADD COLUMN day date", f"UPDATE {table} SET day = '2026-03-02'")

    postgres.run(f"CREATE VIEW {table}_v AS SELECT * FROM {table}")
    allow(postgres, f"{table}_v")
    home = str(world.homes["police"].path)

    def added(*words: str, name: str = table) -> str:
        place = ["--connection", "registers", "--table", name, "--key", "id"]
        assert main(["dataset", "add", "people", *place, *words, "--home", home]) == 0
        return capsys.readouterr().out

    def checked() -> str:
        assert main(["dataset", "check", "people", "--home", home]) == 0
        return capsys.readouterr().out

    assert dataset_cli.UNKNOWN_WRITE in added()
    assert dataset_cli.UNKNOWN_WRITE not in added("--updated", "day")
    # So is whoever checks it, of what its database does by itself.
    assert "are counted in the database" in checked()
    added("--updated", "day", name=f"{table}_v")
    assert "its rows are read, for table/1 and release/1, too: nobody can say" in checked()


def test_a_job_over_a_table_that_nobody_knows_the_age_of_is_refused_where_the_policy_bounds_it(
    postgres: Server, tmp_path: Path
) -> None:
    world = World(tmp_path)
    move(world, "health", postgres)

    async def go() -> tuple[str, str]:
        async with running(world) as (post, stations):
            job = post.submit(world.spec())
            task = post.tasks[job]
            await until(lambda: len(task.verdicts) == 4)
            await approve_all(post, stations, job)
            health = stations["health"]
            await until(lambda: task.verdicts["health"].answer == "refuse" or len(task.ended) == 4)
            found = stored_preflight(health.state, health.state.dataset("people"))
            assert found is not None
            assert found.quality.written is False
            # For a while nobody is asked again to approve what would be refused, and nothing is read for it.
            again = post.tasks[post.submit(world.spec())]
            await until(lambda: "health" in again.verdicts)
            assert (again.verdicts["health"].code, again.admit_asked) == ("quality-too-low", False)
            world.clock.at += BELIEVED + timedelta(seconds=2)
            later = post.tasks[post.submit(world.spec())]
            await until(lambda: "health" in later.verdicts)
            assert later.verdicts["health"].answer == "ask"
            return task.verdicts["health"].code, task.verdicts["health"].sentence

    world.activate("health", quality="max_age_days = 7")
    code, sentence = asyncio.run(go())
    assert code == "quality-too-low"
    assert "nothing says when it was written (asked: written at most 7 days ago)" in sentence


def test_a_job_that_is_stopped_does_not_wait_for_a_table_that_somebody_holds(
    postgres: Server, tmp_path: Path
) -> None:
    world = World(tmp_path)
    table = move(world, "health", postgres)

    async def go() -> float:
        async with running(world) as (post, stations):
            job = post.submit(world.spec())
            task = post.tasks[job]
            await until(lambda: len(task.verdicts) == 4)
            with closing(postgres.connect()) as other:
                other.execute("BEGIN")
                other.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
                await approve_all(post, stations, job)
                await until(lambda: waits_for_a_lock(postgres))
                began = time.monotonic()
                post.stop(job, "cancelled", task.attempt)
                await until(lambda: stations["health"].run(job) is RunState.CANCELLED)
                await until(lambda: not waits_for_a_lock(postgres))
                return time.monotonic() - began

    assert asyncio.run(go()) < LOCK_WAIT_S / 2


def waits_for_a_lock(server: Server) -> bool:
    waiting = server.run(
        "SELECT count(*) FROM pg_stat_activity "
        f"WHERE usename = '{server.reader}' AND wait_event_type = 'Lock'"
    )
    return bool(waiting[0][0])
