"""The ledger: what was set aside, charged and freed; no race, crash or hand on the file overspends."""

import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from ledger_race import Bench
from simulator import START, World

from node import ledger
from node.ledger import Ledger, Rounds, Row, RowState
from policies.history import Past
from protocols.dp.cost import ORDERS, Cost
from protocols.encoding import sha256_digest
from protocols.errors import MinshuError
from protocols.ids import JobId, KeyId
from protocols.statistics.differencing import Between, Query
from protocols.wire import Constraints, CostLine

COST = Cost(rows=10, queries=1)


def job(number: int) -> JobId:
    return JobId(sha256_digest(f"job {number}".encode()))


def wanted(number: int = 1, attempt: int = 1, *, cost: Cost = COST, **changes: Any) -> Row:
    past = Past(
        job=job(number),
        attempt=attempt,
        time=START,
        requester=KeyId(sha256_digest(b"analyst")),
        purpose="P-1",
        job_type="crosscheck/1",
        source="people",
        unit="id",
        cost=cost,
        query=Query("all", {"age": Between(None, None), "district": frozenset({"东区"})}),
        charged=False,
        exact=True,
        rule="R1",
    )
    return Row(replace(past, **changes), (CostLine("q", "queries", "1", "5", "5", START),))


@pytest.fixture
def book() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    for statement in ledger.SCHEMA:
        connection.execute(statement)
    yield connection
    connection.close()


def reserve(book: sqlite3.Connection, row: Row) -> Row:
    read = Ledger(book)
    read.of(row.past.source)
    return ledger.reserve(book, row, read.version(row.past.source))


def fails(code: str, act: Callable[[], Any]) -> None:
    with pytest.raises(MinshuError) as caught:
        act()
    assert caught.value.code == code


def test_a_row_comes_back_as_it_went_in(book: sqlite3.Connection) -> None:
    stored = reserve(book, wanted())
    assert Ledger(book).row(job(1), 1) == stored
    assert stored == replace(wanted(), changes=1)
    assert Row.read(stored.values()) == stored


def test_what_is_set_aside_counts_until_it_is_freed(book: sqlite3.Connection) -> None:
    reserve(book, wanted())
    assert [past.cost for past in Ledger(book).of("people")] == [COST]
    ledger.release(book, job(1), 1)
    assert Ledger(book).of("people") == ()
    assert [row.state for row in Ledger(book).rows("people")] == [RowState.RELEASED]


def test_rows_belong_to_a_source_and_come_oldest_first(book: sqlite3.Connection) -> None:
    for number, source in ((1, "people"), (2, "other"), (3, "people"), (4, "")):
        reserve(book, wanted(number, source=source, query=None))
    read = Ledger(book)
    assert [past.job for past in read.of("people")] == [job(1), job(3)]
    assert [past.job for past in read.of("")] == [job(4)]
    assert read.of("unknown") == ()


def test_a_decision_on_rows_that_changed_since_sets_nothing_aside(book: sqlite3.Connection) -> None:
    decided = Ledger(book)
    decided.of("people")
    reserve(book, wanted(1))
    fails("ledger-conflict", lambda: ledger.reserve(book, wanted(2), decided.version("people")))
    assert Ledger(book).row(job(2), 1) is None


@pytest.mark.parametrize("act", ["charge", "release", "answering", "settle"])
def test_every_change_of_a_source_is_a_new_version(book: sqlite3.Connection, act: str) -> None:
    reserve(book, wanted(1))
    if act in ("answering", "settle"):
        ledger.charge(book, job(1), 1, COST, ())
    decided = Ledger(book)
    decided.of("people")
    change = {
        "charge": lambda: ledger.charge(book, job(1), 1, COST, ()),
        "release": lambda: ledger.release(book, job(1), 1),
        "answering": lambda: ledger.answering(book, job(1), 1),
        "settle": lambda: ledger.settle(book, job(1), 1),
    }
    change[act]()
    fails("ledger-conflict", lambda: ledger.reserve(book, wanted(2), decided.version("people")))


def test_a_decision_that_found_no_row_at_all_was_made_on_none(book: sqlite3.Connection) -> None:
    decided = Ledger(book)
    assert decided.newest() is None
    reserve(book, wanted(1))
    fails("ledger-conflict", lambda: ledger.reserve(book, wanted(2), decided.version("people")))


def test_another_source_is_not_in_the_way(book: sqlite3.Connection) -> None:
    decided = Ledger(book)
    decided.of("other")
    reserve(book, wanted(1))
    ledger.reserve(book, wanted(2, source="other"), decided.version("other"))


def test_a_charge_may_be_below_what_was_set_aside(book: sqlite3.Connection) -> None:
    reserve(book, wanted())
    ledger.charge(book, job(1), 1, Cost(rows=3, queries=1), ())
    [past] = Ledger(book).of("people")
    assert (past.cost.rows, past.charged) == (3, True)


@pytest.mark.parametrize(
    "dear",
    [
        replace(COST, rows=11),
        replace(COST, queries=2),
        replace(COST, delta=1),
        replace(COST, pure=1),
        replace(COST, pure=None),
        replace(COST, rdp=(0,) * (len(ORDERS) - 1) + (1,)),
    ],
    ids=["rows", "queries", "delta", "pure", "no pure bound", "one order"],
)
def test_a_charge_is_never_above_what_was_set_aside(book: sqlite3.Connection, dear: Cost) -> None:
    reserve(book, wanted())
    fails("cost-above-reservation", lambda: ledger.charge(book, job(1), 1, dear, ()))
    assert not ledger.covers(COST, dear)
    assert [past.charged for past in Ledger(book).of("people")] == [False]


def test_only_what_is_set_aside_is_charged_and_once(book: sqlite3.Connection) -> None:
    fails("not-reserved", lambda: ledger.charge(book, job(1), 1, COST, ()))
    reserve(book, wanted())
    ledger.charge(book, job(1), 1, COST, ())
    fails("not-reserved", lambda: ledger.charge(book, job(1), 1, COST, ()))


def test_an_answer_is_under_way_only_after_the_charge(book: sqlite3.Connection) -> None:
    reserve(book, wanted())
    fails("not-charged", lambda: ledger.answering(book, job(1), 1))


def test_what_was_charged_for_lists_is_freed_only_by_who_knows_that_nothing_left(
    book: sqlite3.Connection,
) -> None:
    reserve(book, wanted())
    ledger.charge(book, job(1), 1, COST, ())
    assert ledger.release(book, job(1), 1) is None
    assert len(Ledger(book).of("people")) == 1
    assert ledger.release(book, job(1), 1, unopened=True) is not None
    assert Ledger(book).of("people") == ()
    assert ledger.release(book, job(1), 1, unopened=True) is None  # once


def test_what_was_answered_is_never_freed(book: sqlite3.Connection) -> None:
    reserve(book, wanted())
    ledger.charge(book, job(1), 1, COST, ())
    ledger.answering(book, job(1), 1)
    assert ledger.release(book, job(1), 1, unopened=True) is None
    ledger.settle(book, job(1), 1)
    assert [past.exact for past in Ledger(book).of("people")] == [True]


SILENT = ["table/1", "release/1"]
"""What sends nothing made of data before it begins to answer."""


@pytest.mark.parametrize("kind", SILENT)
def test_what_told_nothing_is_free_again_though_its_stream_was_opened(
    book: sqlite3.Connection, kind: str
) -> None:
    reserve(book, wanted(job_type=kind))
    ledger.charge(book, job(1), 1, COST, ())
    freed = ledger.release(book, job(1), 1)
    assert freed is not None
    assert (freed.state, freed.past.charged, freed.past.exact) == (RowState.RELEASED, False, False)
    assert Ledger(book).of("people") == ()
    fails("not-charged", lambda: ledger.answering(book, job(1), 1))  # nor does it answer any more


@pytest.mark.parametrize("kind", SILENT)
def test_what_may_have_answered_is_never_free_again(book: sqlite3.Connection, kind: str) -> None:
    reserve(book, wanted(job_type=kind))
    ledger.charge(book, job(1), 1, COST, ())
    ledger.answering(book, job(1), 1)
    for unopened in (False, True):
        assert ledger.release(book, job(1), 1, unopened=unopened) is None
    assert [past.cost for past in Ledger(book).of("people")] == [COST]
    assert Ledger(book).under_way() == []  # nor after a restart


@pytest.mark.parametrize("kind", ["crosscheck/1", "sketch/1"])
def test_what_tells_something_by_stopping_or_is_unknown_keeps_its_cost(
    book: sqlite3.Connection, kind: str
) -> None:
    reserve(book, wanted(job_type=kind))
    ledger.charge(book, job(1), 1, COST, ())
    assert ledger.release(book, job(1), 1) is None
    assert [past.cost for past in Ledger(book).of("people")] == [COST]


def test_an_attempt_that_ended_before_it_answered_costs_but_answered_nothing(
    book: sqlite3.Connection,
) -> None:
    reserve(book, wanted())
    ledger.charge(book, job(1), 1, COST, ())
    ledger.settle(book, job(1), 1)
    assert [(past.exact, past.cost) for past in Ledger(book).of("people")] == [(False, COST)]


def cut_short(book: sqlite3.Connection, number: int, asks: str) -> bool:
    """End an attempt at a question before it answers; return whether it counts as an exact answer."""
    reserve(book, wanted(number, query=Query(asks)))
    ledger.charge(book, job(number), 1, COST, ())
    ledger.settle(book, job(number), 1)
    row = Ledger(book).row(job(number), 1)
    assert row is not None
    return row.past.exact


def test_a_threshold_is_not_searched_for_by_questions_that_fail(book: sqlite3.Connection) -> None:
    assert not cut_short(book, 1, "k = 2")  # what one failure may have told is forgiven
    assert not cut_short(book, 2, "k = 2")  # the same question again tells nothing of a difference
    assert cut_short(book, 3, "k = 3")
    ledger.settle(book, job(3), 1)  # as after a restart
    assert [past.exact for past in Ledger(book).of("people")] == [False, False, True]


def test_rows_of_a_job_are_found_whatever_became_of_them(book: sqlite3.Connection) -> None:
    for attempt in (1, 2):
        reserve(book, wanted(1, attempt))
    reserve(book, wanted(2))
    ledger.release(book, job(1), 1)
    states = [(row.past.attempt, row.state) for row in Ledger(book).of_job(job(1))]
    assert states == [(1, RowState.RELEASED), (2, RowState.RESERVED)]


def test_time_in_the_ledger_never_goes_back(book: sqlite3.Connection) -> None:
    later, earlier = START + timedelta(hours=1), START - timedelta(days=400)
    reserve(book, wanted(1, time=later, source="other"))
    assert reserve(book, wanted(2, time=earlier)).past.time == later
    assert Ledger(book).newest() == later


def test_rows_freed_still_hold_their_period_closed(book: sqlite3.Connection) -> None:
    reserve(book, wanted(1))
    ledger.release(book, job(1), 1)
    assert Ledger(book).newest() == START


def test_an_attempt_has_one_row(book: sqlite3.Connection) -> None:
    reserve(book, wanted())
    fails("ledger-unusable", lambda: reserve(book, wanted()))


def test_the_ledger_forgets_nothing(book: sqlite3.Connection) -> None:
    reserve(book, wanted())
    with pytest.raises(sqlite3.IntegrityError, match="forgets nothing"):
        book.execute("DELETE FROM ledger")


# -- a hand on the file ------------------------------------------------------------------------------------


def set_column(column: str, value: Any) -> Callable[[sqlite3.Connection], object]:
    return lambda book: book.execute(f"UPDATE ledger SET {column} = ? WHERE source = 'people'", (value,))


def remove(book: sqlite3.Connection) -> None:
    book.execute("DROP TRIGGER ledger_no_delete")
    book.execute("DELETE FROM ledger WHERE source = 'people'")


def put_back(book: sqlite3.Connection) -> None:
    """Put an older copy of the row in the place of the newest, its digest and all."""
    older = book.execute("SELECT * FROM ledger WHERE source = 'people'").fetchone()
    ledger.charge(book, job(1), 1, COST, ())
    marks = ", ".join("?" * len(older))
    remove(book)
    book.execute(f"INSERT INTO ledger VALUES ({marks})", older)


DAMAGE: dict[str, Callable[[sqlite3.Connection], object]] = {
    "another cost": set_column("cost", Cost(rows=1, queries=1).encode()),
    "no cost": set_column("cost", "free"),
    "a cost that is no text": set_column("cost", 5),
    "another state": set_column("state", "released"),
    "an unknown state": set_column("state", "forgiven"),
    "another time": set_column("time", "2020-01-01T00:00:00Z"),
    "no time": set_column("time", "yesterday"),
    "another query": set_column("query", Query("else").encode()),
    "no query": set_column("query", None),
    "not exact": set_column("exact", 0),
    "neither exact nor not": set_column("exact", 2),
    "another purpose": set_column("purpose", "P-2"),
    "another requester": set_column("requester", sha256_digest(b"else")),
    "another attempt": set_column("attempt", 7),
    "other lines": set_column("lines", "[]"),
    "no lines": set_column("lines", "{"),
    "another count of changes": set_column("changes", 9),
    "no digest": set_column("digest", ""),
    "a blob": set_column("cost", b"\xff\xfe"),
    "a row removed": remove,
    "an older row put back": put_back,
    "an older version": lambda book: book.execute(
        "UPDATE ledger_source SET version = 0 WHERE source = 'people'"
    ),
    "no version": lambda book: book.execute("DELETE FROM ledger_source WHERE source = 'people'"),
    "a row moved to another source": set_column("source", "other"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_source_whose_rows_were_touched_cannot_be_read(book: sqlite3.Connection, damage: str) -> None:
    reserve(book, wanted())
    reserve(book, wanted(2, source="untouched"))
    DAMAGE[damage](book)
    fails("ledger-damaged", lambda: Ledger(book).of("people"))
    assert len(Ledger(book).of("untouched")) == 1


def test_a_database_that_cannot_be_read_is_said_so() -> None:
    book = sqlite3.connect(":memory:")
    fails("ledger-unusable", lambda: Ledger(book).of("people"))
    fails("ledger-unusable", lambda: Ledger(book).newest())


def test_rows_read_before_are_read_again_once_they_changed(book: sqlite3.Connection) -> None:
    kept: dict[str, ledger.Read] = {}
    reserve(book, wanted(1))
    first = Ledger(book, kept).of("people")
    assert Ledger(book, kept).of("people") is first
    reserve(book, wanted(2))
    assert len(Ledger(book, kept).of("people")) == 2


# -- the last unit -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench(founded: World, memory: Path) -> Iterator[Bench]:
    with Bench(founded, memory) as made:
        yield made


def test_a_race_that_is_run_again_begins_with_an_empty_ledger(bench: Bench) -> None:
    for _ in range(2):
        bench.race(seed=SEED - 1)


REPETITIONS = 20
SEED = 20_261_122


@pytest.mark.alone  # twenty races of fifty jobs, 8 s
def test_of_fifty_jobs_for_the_last_unit_exactly_one_is_admitted(bench: Bench) -> None:
    for repetition in range(REPETITIONS):
        bench.race(seed=SEED + repetition)


@pytest.mark.long
def test_of_fifty_jobs_for_the_last_unit_exactly_one_is_admitted_a_thousand_times(bench: Bench) -> None:
    for repetition in range(1000):
        bench.race(seed=SEED + repetition)


# -- runs in rounds ------------------------------------------------------------------------------------------

MOST = {"train": 3, "evaluate": 1}


def in_rounds(book: sqlite3.Connection, attempt: int = 1, *, answering: bool = True) -> None:
    """Let an attempt in rounds be under way."""
    reserve(book, wanted(1, attempt, job_type="train/1"))
    rounds = Rounds(Constraints(min_group_size=3), {"q": Fraction("1e-9")})
    ledger.charge(book, job(1), attempt, COST, wanted().lines, rounds=rounds)
    if answering:
        ledger.answering(book, job(1), attempt)


def one_round(book: sqlite3.Connection, number: int, attempt: int = 1, turn: str = "train") -> Row:
    return ledger.record_round(book, job(1), attempt, turn=turn, number=number, most=MOST[turn])


def test_rounds_are_counted_by_turn_and_come_back_as_they_went_in(book: sqlite3.Connection) -> None:
    in_rounds(book)
    for number, turn in ((1, "train"), (2, "evaluate"), (5, "train")):
        one_round(book, number, turn=turn)
    row = Ledger(book).row(job(1), 1)
    assert row is not None
    assert row.rounds is not None
    assert (dict(row.rounds.turns), row.rounds.last, row.rounds.total) == ({"train": 2, "evaluate": 1}, 5, 3)
    assert Rounds.decode(row.rounds.encode()) == row.rounds
    assert Row.read(row.values()) == row


@pytest.mark.parametrize("number", [0, 1, 4, 5])
def test_a_number_is_used_once_in_whichever_attempt(book: sqlite3.Connection, number: int) -> None:
    in_rounds(book)
    one_round(book, 5)
    fails("round-repeated", lambda: one_round(book, number))
    in_rounds(book, 2)
    fails("round-repeated", lambda: one_round(book, number, 2))
    one_round(book, 6, 2)


def test_all_attempts_together_have_no_more_rounds_of_a_turn_than_the_job(book: sqlite3.Connection) -> None:
    in_rounds(book)
    one_round(book, 1)
    one_round(book, 2)
    in_rounds(book, 2)
    assert Ledger(book).rounds_of(job(1), 2) == {"train": 2}
    one_round(book, 3, 2)
    fails("turn-spent", lambda: one_round(book, 4, 2))
    one_round(book, 4, 2, "evaluate")
    fails("turn-spent", lambda: one_round(book, 5, 2, "evaluate"))
    assert Ledger(book).rounds_of(job(1), 3) == {"train": 3, "evaluate": 1}


def test_no_round_is_counted_before_it_is_durable_that_an_answer_is_under_way(
    book: sqlite3.Connection,
) -> None:
    in_rounds(book, answering=False)
    fails("not-charged", lambda: one_round(book, 1))


def test_an_attempt_that_answers_at_once_has_no_rounds(book: sqlite3.Connection) -> None:
    reserve(book, wanted())
    fails("not-charged", lambda: one_round(book, 1))
    ledger.charge(book, job(1), 1, COST, ())
    ledger.answering(book, job(1), 1)
    fails("not-charged", lambda: one_round(book, 1))


def test_an_end_gives_back_what_no_round_was_spent_on_and_takes_no_more(book: sqlite3.Connection) -> None:
    in_rounds(book)
    one_round(book, 1)
    fails("cost-above-reservation", lambda: ledger.give_back(book, job(1), 1, replace(COST, rows=11), ()))
    less = replace(COST, rows=4)
    lowered = ledger.give_back(book, job(1), 1, less, wanted().lines)
    assert lowered is not None
    assert [past.cost for past in Ledger(book).of("people")] == [less]
    assert ledger.give_back(book, job(1), 1, less, wanted().lines) is None
    fails("cost-above-reservation", lambda: ledger.give_back(book, job(1), 1, COST, wanted().lines))


def test_a_decision_before_a_round_was_counted_or_paid_back_sets_nothing_aside(
    book: sqlite3.Connection,
) -> None:
    in_rounds(book)
    for act in (
        lambda: one_round(book, 1),
        lambda: ledger.give_back(book, job(1), 1, replace(COST, rows=4), ()),
    ):
        decided = Ledger(book)
        decided.of("people")
        act()
        fails("ledger-conflict", lambda: ledger.reserve(book, wanted(2), decided.version("people")))  # noqa: B023  # called at once


@pytest.mark.parametrize("turns", ['{"train":1}', "{}"])
def test_a_round_that_somebody_takes_out_of_the_database_is_missed(
    book: sqlite3.Connection, turns: str
) -> None:
    in_rounds(book)
    one_round(book, 1)
    one_round(book, 2)
    [stored] = book.execute("SELECT rounds FROM ledger").fetchone()
    book.execute("UPDATE ledger SET rounds = ?", (stored.replace('{"train":2}', turns),))
    fails("ledger-damaged", lambda: Ledger(book).of("people"))
    fails("ledger-damaged", lambda: one_round(book, 3))


def test_an_older_row_put_back_with_its_own_digest_is_missed(book: sqlite3.Connection) -> None:
    in_rounds(book)
    one_round(book, 1)
    before = book.execute("SELECT rounds, changes, digest FROM ledger").fetchone()
    one_round(book, 2)
    book.execute("UPDATE ledger SET rounds = ?, changes = ?, digest = ?", before)
    fails("ledger-damaged", lambda: Ledger(book).of("people"))
