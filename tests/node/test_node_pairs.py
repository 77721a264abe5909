"""Budgets for each pair of datasets at a node: what its ledger remembers, and what officers read of it."""

import asyncio
import contextlib
import json
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from simulator import START, Post, World, answered, approve_all, over, running, until

from node import ledger
from node.budgets import accounts, page
from node.cli import main
from node.ledger import Ledger, Row, RowState
from node.state import FORMAT, RunState, read_state
from policies.history import Past
from policies.index import index_of
from policies.limits import charge, look_back
from policies.model import ActivePolicy
from policies.parse import parse_policy
from protocols.dp.cost import Cost
from protocols.encoding import canonical_json, sha256_digest
from protocols.envelope import decode_envelope
from protocols.errors import StateConflict
from protocols.ids import JobId, KeyId
from protocols.wire import CostLine

HEALTH, HOUSING, TAX = (f"{name}.gz.example:people" for name in ("health", "housing", "tax"))
OWN = ["health.gz.example:people", "police.gz.example:people"]
ONE = Cost(rows=10, queries=1)


def past(number: int, partners: tuple[str, ...] | None, cost: Cost = ONE) -> Past:
    return Past(
        job=JobId(sha256_digest(f"job {number}".encode())),
        attempt=1,
        time=START,
        requester=KeyId(sha256_digest(b"analyst")),
        purpose="P-1",
        job_type="crosscheck/1",
        source="people",
        unit="",
        cost=cost,
        query=None,
        charged=False,
        exact=True,
        rule="R1",
        partners=partners,
    )


@pytest.fixture
def book() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    for statement in ledger.SCHEMA:
        connection.execute(statement)
    yield connection
    connection.close()


def reserve(book: sqlite3.Connection, row: Past) -> None:
    read = Ledger(book)
    read.of("people")
    ledger.reserve(book, Row(row), read.version("people"))


@pytest.mark.parametrize("partners", [None, (), (HEALTH,), (HEALTH, HOUSING)])
def test_the_ledger_remembers_with_whom_through_every_change(
    book: sqlite3.Connection, partners: tuple[str, ...] | None
) -> None:
    reserve(book, past(1, partners))
    job = past(1, partners).job
    line = CostLine("q", "queries", "1", "5", "5", START)
    for change in (
        lambda: None,
        lambda: ledger.charge(book, job, 1, ONE, (line,)),
        lambda: ledger.answering(book, job, 1),
    ):
        change()
        [found] = Ledger(book).of("people")
        assert found.partners == partners


def test_partners_that_were_altered_behind_its_back_are_found(book: sqlite3.Connection) -> None:
    reserve(book, past(1, (HEALTH,)))
    for text in (f'["{TAX}"]', "[]", None, "{}", "[1]"):
        book.execute("UPDATE ledger SET partners = ?", (text,))
        with pytest.raises(StateConflict) as caught:
            Ledger(book).of("people")
        assert caught.value.code == "ledger-damaged"


def forget_places(connection: sqlite3.Connection) -> None:
    """Make the datasets those of a release to which every table was a file."""
    connection.execute("ALTER TABLE dataset RENAME COLUMN place TO path")
    connection.execute("UPDATE dataset SET path = json_extract(path, '$.file')")
    connection.execute("ALTER TABLE dataset DROP COLUMN description")


def older(database: Path) -> None:
    """Turn a database into one of format 3, whose ledger did not say with whom."""
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection:
        stored = Ledger(connection).rows("people")
        forget_places(connection)
        connection.execute("ALTER TABLE ledger DROP COLUMN partners")
        connection.execute("ALTER TABLE ledger DROP COLUMN rounds")
        for row in stored:
            forgotten = replace(row, past=replace(row.past, partners=None))
            *_, digest = forgotten.values()
            connection.execute("UPDATE ledger SET digest = ? WHERE job = ?", (digest, row.past.job))
        connection.execute("PRAGMA user_version = 3")


def test_a_ledger_of_the_release_before_is_read_on_and_its_rows_count_for_every_pair(world: World) -> None:
    home = world.homes["health"]
    state = world.open("health")
    with state.journal.transaction() as connection:
        for number in (1, 2):
            reserve(connection, past(number, (HEALTH,)))
    state.close()
    older(home.database)
    with pytest.raises(StateConflict) as caught, read_state(home.database):
        raise AssertionError("read before it was brought up to date")
    assert caught.value.code == "state-format"
    assert "start the node once" in (caught.value.hint or "")
    for _ in range(2):
        state = world.open("health")
        assert [row.partners for row in state.ledger().of("people")] == [None, None]
        state.close()
    state = world.open("health")
    with state.journal.transaction() as connection:
        reserve(connection, past(3, (TAX,)))
    assert [row.partners for row in state.ledger().of("people")] == [None, None, (TAX,)]
    state.close()
    with read_state(home.database) as reader:
        assert len(reader.ledger().of("people")) == 3
    with contextlib.closing(sqlite3.connect(home.database)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (FORMAT,)


def test_a_ledger_of_format_4_which_knew_no_rounds_is_read_on(world: World) -> None:
    home = world.homes["health"]
    state = world.open("health")
    with state.journal.transaction() as connection:
        reserve(connection, past(1, (HEALTH,)))
    before = state.ledger().rows("people")
    state.close()
    with contextlib.closing(sqlite3.connect(home.database, isolation_level=None)) as connection:
        forget_places(connection)
        connection.execute("ALTER TABLE ledger DROP COLUMN rounds")
        connection.execute("PRAGMA user_version = 4")
    state = world.open("health")
    assert state.ledger().rows("people") == before
    state.close()
    with contextlib.closing(sqlite3.connect(home.database)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (FORMAT,)


def test_a_dataset_of_format_5_which_was_a_file_is_found_where_it_was(world: World) -> None:
    home = world.homes["health"]
    with read_state(home.database) as reader:
        before = reader.datasets()
    with contextlib.closing(sqlite3.connect(home.database, isolation_level=None)) as connection:
        forget_places(connection)
        connection.execute("PRAGMA user_version = 5")
    world.open("health").close()
    with read_state(home.database) as reader:
        assert reader.datasets() == before
        assert reader.datasets()


def test_the_digest_of_a_row_without_partners_is_the_one_that_format_3_had() -> None:
    *plain, partners, rounds, digest = Row(past(1, None)).values()
    assert (partners, rounds) == (None, None)
    assert digest == _sha256(b"minshu/ledger/1\0" + canonical_json(plain))


def _sha256(data: bytes) -> str:
    return sha256_digest(data).removeprefix("sha256:")


# -- what is left, through a running node and on its pages ---------------------------------------------------


def test_a_second_job_with_the_same_departments_is_refused_after_a_restart_too(world: World) -> None:
    world.activate("human-resources", scope="per-pair", queries=1)

    async def ask(expected: RunState) -> None:
        async with running(world, Post(world)) as (post, stations):
            job = post.submit(world.spec())
            if expected is RunState.REFUSED:
                await answered(post, job)
            else:
                await approve_all(post, stations, job)
                await over(post, job)
            await until(lambda: stations["human-resources"].run(job) is expected)

    for expected in (RunState.DONE, RunState.REFUSED):
        asyncio.run(ask(expected))
    state = world.open("human-resources")
    assert [row.partners for row in state.ledger().of("people")] == [tuple(OWN)]
    state.close()


def test_officers_read_what_each_pair_has_left(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.page._now", world.clock)
    world.activate("health", scope="per-pair", queries=4, rows=None)

    def told(*words: str) -> str:
        capsys.readouterr()
        assert main(["budget", *words, "--home", str(world.homes["health"].path)]) == 0
        return capsys.readouterr().out

    [empty] = json.loads(told("--json"))["accounts"]
    assert (empty["whose"], empty["scope"], empty["spent"], empty["remaining"]) == ("", "per-pair", "0", "4")
    state = world.open("health")
    with state.journal.transaction() as connection:
        for number, partners in enumerate([(HOUSING,), (HOUSING, TAX), (), None]):
            reserve(connection, past(number, partners))
    state.close()
    found = {each["whose"]: each for each in json.loads(told("--json"))["accounts"]}
    left = {whose: (each["reserved"], each["remaining"], len(each["by"])) for whose, each in found.items()}
    # What nobody remembers the partners of counts for each.
    assert left == {HOUSING: ("3", "1", 3), TAX: ("2", "2", 2), "alone": ("2", "2", 2)}
    text = told()
    assert f"配额 quota queries [{HOUSING}]" in text
    assert "for each dataset of others that it is joined with" in text
    assert "按与之联合的每个他方数据集分别计算" in text


# -- races and crashes ---------------------------------------------------------------------------------------


@pytest.fixture
def active(world: World) -> ActivePolicy:
    text = world.policy("health", scope="per-pair", queries=3, rows=None)
    parsed = parse_policy(decode_envelope(text).payload)
    return ActivePolicy(parsed.policy, parsed.digest)


@pytest.mark.parametrize("seed", range(3))
def test_whoever_races_and_wherever_it_crashes_no_pair_is_given_more(
    tmp_path: Path, active: ActivePolicy, seed: int
) -> None:
    """Four threads decide and reserve over one file; some free, some charge, some die in mid-transaction."""
    database = tmp_path / "ledger.db"
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        for statement in ledger.SCHEMA:
            connection.execute(statement)
    index = index_of(active.policy)
    [clause] = index.clauses
    limits = clause.limits["people"]

    def work(number: int) -> None:
        rand = Random(seed * 100 + number)
        for turn in range(12):
            partners = tuple(sorted(rand.sample([HEALTH, HOUSING, TAX], rand.randrange(4))))
            with contextlib.closing(
                sqlite3.connect(database, isolation_level=None, timeout=20)
            ) as connection:
                read = Ledger(connection)
                row = past(1000 * number + turn, partners)
                lines = charge(
                    index, limits, look_back(read, "people"), row.cost, moment=START, alias="bureau",
                    purpose="P-1", partners=partners, rule="R1",
                )  # fmt: skip
                if not isinstance(lines, tuple):
                    continue
                connection.execute("BEGIN IMMEDIATE")
                with contextlib.suppress(StateConflict):
                    ledger.reserve(connection, Row(row, lines), read.version("people"))
                    if rand.random() < 0.2:
                        continue  # the process dies: what was not committed never was
                    connection.execute("COMMIT")
                    connection.execute("BEGIN IMMEDIATE")
                    if rand.random() < 0.3:
                        ledger.release(connection, row.job, 1)
                    elif rand.random() < 0.7:
                        ledger.charge(connection, row.job, 1, row.cost, lines)
                    connection.execute("COMMIT")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection:
        rows = Ledger(connection).rows("people")
    counting = [row.past for row in rows if row.state is not RowState.RELEASED]
    spent = {
        pair: sum(row.cost.queries for row in counting if pair in (row.partners or ("alone",)))
        for pair in (HEALTH, HOUSING, TAX, "alone")
    }
    assert 0 < max(spent.values()) <= 3
    found = accounts(active, _read(database), START)
    assert {a.whose: 3 - int(a.remaining) for a in found} == {p: n for p, n in spent.items() if n}
    assert page(found, active.policy)


def _read(database: Path) -> Ledger:
    return Ledger(sqlite3.connect(database, isolation_level=None))
