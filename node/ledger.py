"""The ledger: what every attempt cost each of this node's sources, in the node's own database.

One row per attempt. It is *reserved* when the node accepts the attempt, *charged* at commit point 1 and
*released* where it is certain that nothing of the data was told; a row is never removed. `answering` says
that frames which an answer could be made of may have gone out, `exact` what that means for the differencing
guard. An attempt in rounds is charged whole; its row counts the rounds that were recorded, and at its end
costs what they cost.

Every source has a version, the number of changes ever made to its rows. Whoever reserves says on which one
the decision was made, and the UPDATE itself compares it, so two racing jobs cannot both spend the last unit.
Every row counts its own changes and carries a digest of itself: where a row was altered, put back or removed
behind the ledger's back, everything that touches its source is refused.

The functions here work inside the caller's transaction, on any connection to the database.
"""

import hashlib
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from fractions import Fraction
from typing import Any, Final, Self

from policies.attempts import forgiven, free_again
from policies.history import Past
from protocols.dp.cost import Cost
from protocols.encoding import canonical_json, decode_json
from protocols.errors import DecodeError, StateConflict
from protocols.ids import JobId, KeyId
from protocols.jobs.job_type import Turns
from protocols.statistics.differencing import Query
from protocols.wire import Constraints, CostLine, parse_utc, utc_text

SCHEMA: Final = (
    """CREATE TABLE IF NOT EXISTS ledger_source (
        source TEXT PRIMARY KEY, version INTEGER NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS ledger (
        row INTEGER PRIMARY KEY AUTOINCREMENT, job TEXT NOT NULL, attempt INTEGER NOT NULL,
        time TEXT NOT NULL, requester TEXT NOT NULL, purpose TEXT NOT NULL, job_type TEXT NOT NULL,
        source TEXT NOT NULL, unit TEXT NOT NULL, cost TEXT NOT NULL, query TEXT, rule TEXT NOT NULL,
        lines TEXT NOT NULL, state TEXT NOT NULL, answering INTEGER NOT NULL, exact INTEGER NOT NULL,
        changes INTEGER NOT NULL, digest TEXT NOT NULL, partners TEXT, rounds TEXT,
        UNIQUE (job, attempt))""",
    "CREATE INDEX IF NOT EXISTS ledger_by_source ON ledger (source)",
    "CREATE INDEX IF NOT EXISTS ledger_by_time ON ledger (time)",
    """CREATE TRIGGER IF NOT EXISTS ledger_no_delete BEFORE DELETE ON ledger
        BEGIN SELECT RAISE(ABORT, 'the ledger forgets nothing'); END""",
)

ADD_PARTNERS: Final = "ALTER TABLE ledger ADD COLUMN partners TEXT"
"""Makes the table of format 3 that of format 4."""

ADD_ROUNDS: Final = "ALTER TABLE ledger ADD COLUMN rounds TEXT"
"""Makes the table of format 4 that of format 5."""

_COLUMNS: Final = (
    "job, attempt, time, requester, purpose, job_type, source, unit, cost, query, rule, lines, state, "
    "answering, exact, changes, partners, rounds, digest"
)
_NAMES: Final = tuple(_COLUMNS.split(", "))


class RowState(StrEnum):
    """How far an attempt's cost is."""

    RESERVED = "reserved"
    CHARGED = "charged"
    RELEASED = "released"


@dataclass(frozen=True, slots=True)
class Rounds:
    """What an attempt in rounds has recorded, and what it takes to say afterwards what that costs.

    Attributes:
        constraints: what all participants agreed on, under which it was charged.
        deltas: see `policies.attempts.deltas_of`.
        turns: how many rounds of each turn.
        last: number of the newest one, 0 before the first.
    """

    constraints: Constraints
    deltas: Mapping[str, Fraction] = field(default_factory=dict)
    turns: Turns = field(default_factory=dict)
    last: int = 0

    @property
    def total(self) -> int:
        """How many, of all turns together."""
        return sum(self.turns.values())

    def encode(self) -> str:
        """Return the one text form."""
        plain = {
            "constraints": self.constraints.to_json(),
            "deltas": {name: str(delta) for name, delta in self.deltas.items()},
            "turns": dict(self.turns),
            "last": self.last,
        }
        return canonical_json(plain).decode("utf-8")

    @classmethod
    def decode(cls, text: str) -> Self:
        """Read `encode`'s form.

        Raises:
            DecodeError: another form.
        """
        plain = decode_json(text.encode("utf-8"))
        deltas = {name: Fraction(delta) for name, delta in plain["deltas"].items()}
        return cls(Constraints.from_json(plain["constraints"]), deltas, plain["turns"], plain["last"])


@dataclass(frozen=True, slots=True)
class Row:
    """One row as stored, with what it is to each budget, how far it is, and how often it was changed.

    `rounds`: what it has recorded, from its charge on, where its job type answers in rounds; else None.
    """

    past: Past
    lines: tuple[CostLine, ...] = ()
    state: RowState = RowState.RESERVED
    answering: bool = False
    changes: int = 0
    rounds: Rounds | None = None

    def values(self) -> tuple[Any, ...]:
        """Return the columns, the digest over the others last."""
        past = self.past
        plain = (
            past.job,
            past.attempt,
            utc_text(past.time),
            past.requester,
            past.purpose,
            past.job_type,
            past.source,
            past.unit,
            past.cost.encode(),
            None if past.query is None else past.query.encode(),
            past.rule,
            canonical_json([line.to_json() for line in self.lines]).decode("utf-8"),
            self.state.value,
            int(self.answering),
            int(past.exact),
            self.changes,
            None if past.partners is None else canonical_json(list(past.partners)).decode("utf-8"),
            None if self.rounds is None else self.rounds.encode(),
        )
        return (*plain, _digest(plain))

    @classmethod
    def read(cls, stored: Sequence[Any]) -> Self:
        """Return the row of stored columns.

        Raises:
            StateConflict: `ledger-damaged`: it is not as `values` wrote it.
        """
        *plain, digest = stored
        try:
            if digest != _digest(plain):
                raise _damaged()
            at = dict(zip(_NAMES, plain, strict=False))
            state = RowState(at["state"])
            past = Past(
                job=JobId(at["job"]),
                attempt=at["attempt"],
                time=parse_utc(at["time"]),
                requester=KeyId(at["requester"]),
                purpose=at["purpose"],
                job_type=at["job_type"],
                source=at["source"],
                unit=at["unit"],
                cost=Cost.decode(at["cost"]),
                query=None if at["query"] is None else Query.decode(at["query"]),
                charged=state is RowState.CHARGED,
                exact={0: False, 1: True}[at["exact"]],
                rule=at["rule"],
                partners=None if at["partners"] is None else _partners(at["partners"]),
            )
            lines = tuple(CostLine.from_json(line) for line in decode_json(at["lines"].encode("utf-8")))
            rounds = None if at["rounds"] is None else Rounds.decode(at["rounds"])
            return cls(past, lines, state, {0: False, 1: True}[at["answering"]], at["changes"], rounds)
        except (DecodeError, ValueError, KeyError, TypeError, AttributeError):
            raise _damaged() from None


def _partners(stored: str) -> tuple[str, ...]:
    found = decode_json(stored.encode("utf-8"))
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise _damaged()
    return tuple(found)


def _digest(plain: Sequence[Any]) -> str:
    if plain[-1] is None:
        plain = plain[:-1]  # of an attempt that answers at once, or of an earlier release
        if plain[-1] is None:
            plain = plain[:-1]  # of an earlier release, which did not remember the partners
    return hashlib.sha256(b"minshu/ledger/1\0" + canonical_json(list(plain))).hexdigest()


@dataclass(frozen=True, slots=True)
class Read:
    """A source's rows at one version, and those of them that count."""

    version: int
    rows: tuple[Row, ...]
    counting: tuple[Past, ...]


@dataclass(slots=True)
class Ledger:
    """A node's ledger, read for one decision: what `decide` goes by, and at which versions.

    `kept` is what was read before; give all readers of one process the same.
    """

    connection: sqlite3.Connection
    kept: MutableMapping[str, Read] = field(default_factory=dict)
    _seen: dict[str, int] = field(default_factory=dict)

    def version(self, source: str) -> int:
        """Return the version at which this object last read a source: what a decision was made on.

        0 for one it never read, the version before the first row: a decision that did not look found none.
        """
        return self._seen.get(source, 0)

    def of(self, source: str) -> Sequence[Past]:
        """Return every row of a source that counts, oldest first.

        Raises:
            StateConflict: as `rows`.
        """
        return self._read(source).counting

    def rows(self, source: str) -> tuple[Row, ...]:
        """Return every row of a source, released ones too, oldest first.

        Raises:
            StateConflict: `ledger-damaged`, or it cannot be read.
        """
        return self._read(source).rows

    def _read(self, source: str) -> Read:
        with _storage():
            newest = self.connection.execute(
                "SELECT version FROM ledger_source WHERE source = ?", (source,)
            ).fetchone()
            kept = self.kept.get(source)
            if newest is not None and kept is not None and kept.version == newest[0]:
                self._seen[source] = kept.version
                return kept
            # One statement sees one moment: version and rows belong together.
            found = self.connection.execute(
                f"SELECT version, {_COLUMNS} FROM (SELECT ? AS source) LEFT JOIN ledger_source USING (source)"  # noqa: S608  # our own columns
                " LEFT JOIN ledger USING (source) ORDER BY row",
                (source,),
            ).fetchall()
        version = found[0][0] or 0
        rows = tuple(Row.read(tuple(columns)) for _, *columns in found if columns[0] is not None)
        if version != sum(row.changes for row in rows):
            raise _damaged()
        counting = tuple(row.past for row in rows if row.state is not RowState.RELEASED)
        read = self.kept[source] = Read(version, rows, counting)
        self._seen[source] = version
        return read

    def newest(self) -> datetime | None:
        """Return the newest time of any row, None without rows.

        Raises:
            StateConflict: it cannot be read.
        """
        return _newest(self.connection)

    def sources(self) -> list[str]:
        """Return the sources that have rows, by name.

        Raises:
            StateConflict: it cannot be read.
        """
        with _storage():
            found = self.connection.execute("SELECT source FROM ledger_source ORDER BY source").fetchall()
        return [source for (source,) in found]

    def row(self, job: JobId, attempt: int) -> Row | None:
        """Return one attempt's row.

        Raises:
            StateConflict: `ledger-damaged`, or it cannot be read.
        """
        return _row(self.connection, job, attempt)

    def of_job(self, job: JobId) -> tuple[Row, ...]:
        """Return the rows of all attempts of a job, released ones too, oldest first.

        Raises:
            StateConflict: `ledger-damaged`, or it cannot be read.
        """
        with _storage():
            found = self.connection.execute(
                f"SELECT {_COLUMNS} FROM ledger WHERE job = ? ORDER BY row",  # noqa: S608  # our own columns
                (job,),
            ).fetchall()
        return tuple(Row.read(tuple(stored)) for stored in found)

    def rounds_of(self, job: JobId, attempt: int) -> dict[str, int]:
        """Return the rounds of each turn that other attempts of a job have recorded.

        Raises:
            StateConflict: `ledger-damaged`, or it cannot be read.
        """
        used: Counter[str] = Counter()
        for row in self.of_job(job):
            if row.past.attempt != attempt and row.rounds is not None:
                used.update(row.rounds.turns)
        return dict(used)

    def under_way(self) -> list[Row]:
        """Return the legible rows that are set aside, or charged for an answer nobody began to give."""
        with _storage():
            found = self.connection.execute(
                f"SELECT {_COLUMNS} FROM ledger WHERE state = 'reserved'"  # noqa: S608  # our own columns
                " OR (state = 'charged' AND exact = 1 AND answering = 0) ORDER BY row"
            ).fetchall()
        rows = []
        for stored in found:
            # A damaged row stays as it is, and refuses what touches its source.
            with suppress(StateConflict):
                rows.append(Row.read(tuple(stored)))
        return rows


def reserve(connection: sqlite3.Connection, wanted: Row, version: int) -> Row:
    """Set an attempt's cost aside.

    Args:
        connection: inside a transaction.
        wanted: the row; its time is moved forward to the newest of all, so that no period opens again.
        version: of the source, as it was when the decision was made.

    Returns:
        The row as stored.

    Raises:
        StateConflict: `ledger-conflict`: somebody else changed the source since: decide again.
            `ledger-damaged`, or it cannot be written.
    """
    source = wanted.past.source
    with _storage():
        connection.execute("INSERT OR IGNORE INTO ledger_source VALUES (?, 0)", (source,))
        # The UPDATE itself compares the version: of two jobs that saw the same rows, one gets through.
        moved = connection.execute(
            "UPDATE ledger_source SET version = version + 1 WHERE source = ? AND version = ?",
            (source, version),
        )
        if moved.rowcount != 1:
            raise StateConflict(
                "another job was set aside since this one was decided",
                code="ledger-conflict",
                hint="decide the job again",
            )
        newest = _newest(connection)
        time = wanted.past.time if newest is None else max(wanted.past.time, newest)
        row = replace(
            wanted,
            past=replace(wanted.past, time=time, charged=False, exact=True),
            state=RowState.RESERVED,
            answering=False,
            changes=1,
        )
        marks = ", ".join("?" * len(_NAMES))
        connection.execute(f"INSERT INTO ledger ({_COLUMNS}) VALUES ({marks})", row.values())  # noqa: S608
    return row


def charge(
    connection: sqlite3.Connection,
    job: JobId,
    attempt: int,
    cost: Cost,
    lines: Sequence[CostLine],
    *,
    rounds: Rounds | None = None,
) -> Row:
    """Charge what was set aside: `cost` under the merged constraints, `lines` what it is to each budget.

    `rounds`: of an attempt in rounds, none of which is recorded yet.

    Raises:
        StateConflict: `not-reserved`, or `cost-above-reservation`: merging may only make a job cheaper.
    """
    row = _expected(connection, job, attempt, RowState.RESERVED)
    if not covers(row.past.cost, cost):
        raise _dearer("the attempt would cost more than was set aside for it")
    past = replace(row.past, cost=cost, charged=True)
    charged = replace(row, past=past, lines=tuple(lines), state=RowState.CHARGED, rounds=rounds)
    return _store(connection, charged)


def answering(connection: sqlite3.Connection, job: JobId, attempt: int) -> Row:
    """Remember that frames an answer could be made of are about to go out.

    Raises:
        StateConflict: `not-charged`.
    """
    row = _expected(connection, job, attempt, RowState.CHARGED)
    return row if row.answering else _store(connection, replace(row, answering=True))


def record_round(
    connection: sqlite3.Connection, job: JobId, attempt: int, *, turn: str, number: int, most: int
) -> Row:
    """Count a round that is about to leave. What its party checked holds here whatever the party does.

    Args:
        connection: inside a transaction.
        job: whose.
        attempt: which try of it.
        turn: what the round is for.
        number: the round's; above that of every round of the job, in whichever attempt.
        most: rounds of that turn that all attempts of the job may have together.

    Raises:
        StateConflict: `not-charged`, or the attempt answers at once; `round-repeated`; `turn-spent`.
    """
    row = _expected(connection, job, attempt, RowState.CHARGED)
    if row.rounds is None or not row.answering:
        raise StateConflict("a round of an attempt that has none under way", code="not-charged")
    known = [each.rounds for each in Ledger(connection).of_job(job) if each.rounds is not None]
    newest = max(each.last for each in known)
    if number <= newest:
        raise StateConflict(
            f"round {number} of a job that has had round {newest}",
            code="round-repeated",
            hint="whoever leads the run numbered its rounds wrongly; compare the nodes' journals",
        )
    if sum(each.turns.get(turn, 0) for each in known) >= most:
        raise StateConflict(
            f"the job may have {most} rounds of {turn} here, and has had them",
            code="turn-spent",
            hint="whoever leads the run asks for more than the job says; compare the nodes' journals",
        )
    turns = {**row.rounds.turns, turn: row.rounds.turns.get(turn, 0) + 1}
    return _store(connection, replace(row, rounds=replace(row.rounds, turns=turns, last=number)))


def give_back(
    connection: sqlite3.Connection, job: JobId, attempt: int, cost: Cost, lines: Sequence[CostLine]
) -> Row | None:
    """Lower what an attempt in rounds is charged to what its rounds cost, at its end; None where it is that.

    Raises:
        StateConflict: `not-charged`, or `cost-above-reservation`: an attempt may only become cheaper.
    """
    row = _expected(connection, job, attempt, RowState.CHARGED)
    if not covers(row.past.cost, cost):
        raise _dearer("its rounds cost more than was charged for the attempt")
    if row.past.cost == cost:
        return None
    return _store(connection, replace(row, past=replace(row.past, cost=cost), lines=tuple(lines)))


def release(
    connection: sqlite3.Connection, job: JobId, attempt: int, *, unopened: bool = False
) -> Row | None:
    """Free the cost of an attempt that is over; None where it stays, or there is nothing to free.

    See `policies.attempts.free_again`. `unopened`: this very process knows that the attempt's data stream was
    never opened. What needs no such knowledge is freed after a restart as well: `answering` is durable first.
    """
    row = _row(connection, job, attempt)
    if row is None or row.state is RowState.RELEASED:
        return None
    if not free_again(row.past, answering=row.answering, unopened=unopened):
        return None
    past = replace(row.past, charged=False, exact=False)
    return _store(connection, replace(row, past=past, state=RowState.RELEASED))


def settle(connection: sqlite3.Connection, job: JobId, attempt: int) -> None:
    """Note an attempt's end: where it never began to answer, the cost stays, but no answer was given.

    Not where `policies.attempts.forgiven` says otherwise.
    """
    row = _row(connection, job, attempt)
    if row is None or row.state is not RowState.CHARGED or not row.past.exact or row.answering:
        return
    before = (other.past.query for other in Ledger(connection).rows(row.past.source) if _unanswered(other))
    if forgiven(row.past.query, before):
        _store(connection, replace(row, past=replace(row.past, exact=False)))


def _unanswered(row: Row) -> bool:
    return row.state is RowState.CHARGED and not row.answering and not row.past.exact


def _dearer(what: str) -> StateConflict:
    return StateConflict(what, code="cost-above-reservation", hint="submit the job again")


def covers(most: Cost, cost: Cost) -> bool:
    """Return whether `cost` is in no part above `most`."""
    pure = most.pure is None or (cost.pure is not None and cost.pure <= most.pure)
    return (
        pure
        and all(mine <= theirs for mine, theirs in zip(cost.rdp, most.rdp, strict=True))
        and (cost.delta <= most.delta and cost.rows <= most.rows and cost.queries <= most.queries)
    )


def _row(connection: sqlite3.Connection, job: JobId, attempt: int) -> Row | None:
    with _storage():
        found = connection.execute(
            f"SELECT {_COLUMNS} FROM ledger WHERE job = ? AND attempt = ?",  # noqa: S608  # our own columns
            (job, attempt),
        ).fetchone()
    return None if found is None else Row.read(tuple(found))


def _expected(connection: sqlite3.Connection, job: JobId, attempt: int, state: RowState) -> Row:
    row = _row(connection, job, attempt)
    if row is None or row.state is not state:
        raise StateConflict(
            f"nothing is {state.value} for this attempt in the ledger",
            code=f"not-{state.value}",
            hint="submit the job again",
        )
    return row


def _store(connection: sqlite3.Connection, row: Row) -> Row:
    row = replace(row, changes=row.changes + 1)
    places = ", ".join(f"{name} = ?" for name in _NAMES)
    with _storage():
        connection.execute(
            f"UPDATE ledger SET {places} WHERE job = ? AND attempt = ?",  # noqa: S608  # our own columns
            (*row.values(), row.past.job, row.past.attempt),
        )
        connection.execute(
            "UPDATE ledger_source SET version = version + 1 WHERE source = ?", (row.past.source,)
        )
    return row


def _newest(connection: sqlite3.Connection) -> datetime | None:
    with _storage():
        [time] = connection.execute("SELECT MAX(time) FROM ledger").fetchone()
    try:
        return None if time is None else parse_utc(time)
    except (DecodeError, TypeError):
        raise _damaged() from None


@contextmanager
def _storage() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise StateConflict(
            f"the ledger cannot be used ({getattr(error, 'sqlite_errorname', 'error')})",
            code="ledger-unusable",
            hint="check the disk and free space on it; nothing was set aside",
        ) from None


def _damaged() -> StateConflict:
    return StateConflict(
        "the ledger is not as it was written, so nothing can be said of what is left",
        code="ledger-damaged",
        hint="stop the node and keep node.db as evidence; its journal says what was charged",
    )
