"""P2: a budget is never over-spent, in any order of steps, crashes and restarts, against a naive model.

Nor is it spent on nothing: of a job type that tells nothing before it begins to answer, no failure costs.
"""

import shutil
import sqlite3
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from ledger_race import Case, active_of, case_of, connect, founded, roster_of
from simulator import START, World

from node import ledger
from node.gate import Allowed
from node.ledger import Ledger, RowState
from node.rpc import Attempt
from policies.decision import Permit
from protocols.dp.cost import Cost
from protocols.ids import JobId

COMMITTED = st.integers(0, 9).map(bool)  # one step in ten dies before its commit
QUERIES = 4
ROWS = 3000
EACH = 1000


@dataclass
class Known:
    """What the model knows of an attempt; `opened` and `answered` are what really happened on the wire."""

    state: RowState
    silent: bool
    rows: int = EACH
    live: bool = True
    opened: bool = False
    answered: bool = False

    @property
    def told(self) -> bool:
        """Something of the data may have left."""
        return self.answered or (self.opened and not self.silent)


class Spending(RuleBasedStateMachine):
    """One node's ledger. Every step is committed, or the process dies before it is."""

    world: ClassVar[World]
    memory: ClassVar[Path]

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=self.memory))
        self.database = self.folder / "ledger.db"
        self.book: sqlite3.Connection = founded(self.database)
        self.known: dict[JobId, Known] = {}
        spec = self.world.spec()
        self.spec = spec
        self.case: Case = case_of(self.world, spec, queries=QUERIES, rows=ROWS)

    def teardown(self) -> None:
        if hasattr(self, "book"):
            self.book.close()
            shutil.rmtree(self.folder)

    # -- what the node does --------------------------------------------------------------------------------

    @rule(number=st.integers(0, 2**32), silent=st.booleans(), committed=COMMITTED)
    def accept(self, number: int, silent: bool, committed: bool) -> None:
        spec = replace(self.spec, nonce=f"{number:032x}")
        if spec.job_id in self.known:
            return
        case = replace(self.case, spec=spec.encode())
        fits = self.counted() + EACH <= ROWS and len(self.counting()) + 1 <= QUERIES
        answer = self.set_aside(case, silent)
        assert answer == ("permitted" if fits else "budget-exceeded")
        if not committed:
            self.crash()
            return
        if fits:
            self.book.execute("COMMIT")
            self.known[spec.job_id] = Known(RowState.RESERVED, silent)

    def set_aside(self, case: Case, silent: bool) -> str:
        """Decide and set aside, and leave the transaction open; return the answer's code."""
        read = Ledger(self.book)
        decision, spec = case.decide(read)
        if isinstance(decision, Permit):
            version = read.version(decision.terms.source)
            allowed = Allowed(spec, decision, active_of(case.policy), roster_of(case.roster), version, START)
            row = allowed.row(Attempt(spec.job_id, 1))
            kind = "table/1" if silent else "crosscheck/1"
            self.book.execute("BEGIN IMMEDIATE")
            ledger.reserve(self.book, replace(row, past=replace(row.past, job_type=kind)), version)
        return decision.code

    @precondition(lambda self: self.live())
    @rule(which=st.integers(0, 9), rows=st.integers(0, EACH), steps=st.integers(1, 4), committed=COMMITTED)
    def go_on(self, which: int, rows: int, steps: int, committed: bool) -> None:
        """An attempt does what comes next: it is charged, opens its stream, answers, ends."""
        live = self.live()
        job, known = live[which % len(live)]
        for step in range(1, steps + 1):
            if not known.live:
                break  # it is over
            durable = committed or step < steps
            if known.state is RowState.RESERVED:
                self.charge(job, known, rows, durable)
            elif not known.opened:
                known.opened = True
            elif not known.answered:
                self.answer(job, known, durable)
            else:
                self.finish(job, known, durable)

    def charge(self, job: JobId, known: Known, rows: int, committed: bool) -> None:
        self.book.execute("BEGIN IMMEDIATE")
        ledger.charge(self.book, job, 1, Cost(rows=rows, queries=1), ())
        if committed:
            self.book.execute("COMMIT")
            known.state, known.rows = RowState.CHARGED, rows
        else:
            self.crash()

    def answer(self, job: JobId, known: Known, committed: bool) -> None:
        self.book.execute("BEGIN IMMEDIATE")
        ledger.answering(self.book, job, 1)
        if committed:
            self.book.execute("COMMIT")
            known.answered = True  # only now may a frame go out
        else:
            self.crash()

    @precondition(lambda self: self.live())
    @rule(which=st.integers(0, 9), committed=COMMITTED)
    def end(self, which: int, committed: bool) -> None:
        """An attempt ends, wherever it is; this process knows whether its stream was opened."""
        live = self.live()
        self.finish(*live[which % len(live)], committed)

    def finish(self, job: JobId, known: Known, committed: bool) -> None:
        self.book.execute("BEGIN IMMEDIATE")
        freed = ledger.release(self.book, job, 1, unopened=not known.opened)
        if freed is None:
            ledger.settle(self.book, job, 1)
        if not committed:
            self.crash()
            return
        self.book.execute("COMMIT")
        known.live = False
        if not known.told:
            known.state = RowState.RELEASED

    @precondition(lambda self: len(self.known) > 1)
    @rule()
    def crash(self) -> None:
        """The process dies and starts again: what was charged stays, unless it told nothing."""
        self.book.close()
        self.book = connect(self.database)
        self.book.execute("BEGIN IMMEDIATE")
        for row in Ledger(self.book).under_way():
            if ledger.release(self.book, row.past.job, 1) is None:
                ledger.settle(self.book, row.past.job, 1)
        self.book.execute("COMMIT")
        for known in self.known.values():
            # Whether a stream was opened, nobody knows any more.
            if known.live and (known.state is RowState.RESERVED or (known.silent and not known.answered)):
                known.state = RowState.RELEASED
            known.live = False

    # -- what always holds ---------------------------------------------------------------------------------

    @invariant()
    def what_left_is_within_the_limits(self) -> None:
        if not hasattr(self, "known"):
            return
        left = [known for known in self.known.values() if known.told]
        assert sum(known.rows for known in left) <= ROWS
        assert len(left) <= QUERIES
        assert all(known.state is RowState.CHARGED for known in left)

    @invariant()
    def what_is_over_and_told_nothing_costs_nothing(self) -> None:
        if not hasattr(self, "known"):
            return
        over = {job for job, known in self.known.items() if known.silent and not known.live}
        counted = {past.job for past in Ledger(self.book).of("people")}
        assert {job for job in over if self.known[job].answered} == over & counted

    @invariant()
    def the_ledger_says_what_the_model_says(self) -> None:
        if not hasattr(self, "known"):
            return
        rows = {row.past.job: row for row in Ledger(self.book).rows("people")}
        assert {job: row.state for job, row in rows.items()} == {j: k.state for j, k in self.known.items()}
        assert {job: row.past.cost.rows for job, row in rows.items()} == {
            job: known.rows for job, known in self.known.items()
        }
        assert sum(past.cost.rows for past in Ledger(self.book).of("people")) <= ROWS

    @invariant()
    def an_answer_that_may_have_left_is_remembered(self) -> None:
        if not hasattr(self, "known"):
            return
        for past in Ledger(self.book).of("people"):
            known = self.known[past.job]
            assert past.exact or not known.answered
            if not known.live and not known.answered:
                assert not past.exact

    # -- the model -----------------------------------------------------------------------------------------

    def live(self) -> list[tuple[JobId, Known]]:
        return [(job, known) for job, known in self.known.items() if known.live]

    def counting(self) -> list[Known]:
        return [known for known in self.known.values() if known.state is not RowState.RELEASED]

    def counted(self) -> int:
        return sum(known.rows for known in self.counting())


@pytest.fixture
def machine(founded: World, memory: Path) -> type[Spending]:
    return type("Machine", (Spending,), {"world": founded, "memory": memory})


def run(machine: type[Spending], examples: int) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    chosen = settings(
        max_examples=examples,
        stateful_step_count=25,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=chosen)  # type: ignore[no-untyped-call]  # hypothesis


@pytest.mark.alone  # 11 s
def test_p2_no_order_of_steps_and_crashes_overspends_a_budget(machine: type[Spending]) -> None:
    run(machine, 40)


@pytest.mark.long
def test_p2_no_order_of_steps_and_crashes_overspends_a_budget_at_length(machine: type[Spending]) -> None:
    run(machine, 1500)
