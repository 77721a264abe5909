"""Small look-up sessions for tests: a spec, rows, shelves in memory, and both parties pumped by hand."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
from crosscheck_case import CTX, ZERO, person, seeded

from protocols.errors import ProtocolAborted
from protocols.ids import DatasetName, KeyId, NodeName, Organisation, Role
from protocols.jobs.job_type import Setup
from protocols.jobs.lookup import CLERK, OWNER, Lookups
from protocols.lookup.inputs import LookupList
from protocols.party import MAX_BODY_BYTES, Finished, Incoming, Outgoing, Rand, Sent, Serving, Step
from protocols.wire import Constraints, InputSummary, JobInput, JobSpec

LOOKUPS = Lookups()
STREETS = ("990101001", "990101002")
OPEN = Constraints(max_rows=100_000)
"""Limits that bind nothing a test does by accident."""

Row = tuple[str, str, str]  # street, status, month last seen
Rows = Mapping[int, Row]  # person number -> row


class MemoryShelf:
    """A shelf in memory: each blob whole or not there."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}

    def names(self) -> list[str]:
        """Return every name, sorted."""
        return sorted(self.blobs)

    def get(self, name: str) -> memoryview | None:
        """Return a blob."""
        blob = self.blobs.get(name)
        return None if blob is None else memoryview(blob)

    @contextmanager
    def put(self, name: str) -> Iterator[Callable[[bytes], object]]:
        """Give a writer; the blob is there when the block has ended well."""
        pieces: list[bytes] = []
        yield lambda data: pieces.append(bytes(data))
        self.blobs[name] = b"".join(pieces)

    def drop(self, name: str) -> None:
        """Remove a blob."""
        self.blobs.pop(name, None)


class Clock:
    """Seconds that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def lookup_spec(**params: Any) -> JobSpec:
    """Return a valid spec; params of None are left out, `columns` are further ones of the owner."""
    filled: dict[str, Any] = {
        "lookups": 500,
        "session_s": 3600,
        "scope": {"street": STREETS[0]},
        "fields": ["status", "seen"],
        "areas": "demo-city",
    }
    columns = params.pop("columns", {})
    filled = {name: value for name, value in (filled | params).items() if value is not None}
    slots = {*filled.get("scope", {}), *filled["fields"]}
    return JobSpec(
        job_type="lookup/1",
        params=filled,
        inputs=(
            JobInput(
                OWNER,
                Organisation("civil-affairs.example"),
                DatasetName("people"),
                {"key": "id", **{slot: f"the_{slot}" for slot in sorted(slots)}, **columns},
            ),
        ),
        roles={OWNER: NodeName("civil-affairs.example/a"), CLERK: NodeName("street-office.example/a")},
        purpose="P-1",
        legal_basis="L-1",
        expected_use="窗口办事时核验, 群众不必再填",
        recipients=(Organisation("street-office.example"),),
        requester=KeyId(ZERO),
        collaboration="example",
        roster_digest=ZERO,
        created=datetime(2026, 1, 1, tzinfo=UTC),
        expires=datetime(2026, 2, 1, tzinfo=UTC),
        nonce="0" * 32,
    )


def prepared(spec: JobSpec, rows: Sequence[tuple[int, Row]]) -> LookupList:
    """Return rows as the owner's node would prepare them."""
    builder = LOOKUPS.builder(spec, OWNER)
    columns = {
        "key": [person(number) for number, _ in rows],
        "street": [row[0] for _, row in rows],
        "status": [row[1] for _, row in rows],
        "seen": [row[2] for _, row in rows],
        "last_seen": [row[2] for _, row in rows],
    }
    slots = [*spec.inputs[0].columns]
    builder.add({slot: pa.array(columns[slot], pa.string()) for slot in slots})
    found = builder.finish()
    assert isinstance(found, LookupList)
    return found


@dataclass
class Session:
    """One session whose messages are delivered when a test says so."""

    spec: JobSpec
    setup: Setup
    people: LookupList
    parties: dict[Role, Serving]
    clock: Clock
    sent: list[Sent] = field(default_factory=list)
    records: dict[Role, list[Mapping[str, int | str]]] = field(default_factory=lambda: {OWNER: [], CLERK: []})
    answers: dict[int, Any] = field(default_factory=dict)
    outputs: dict[Role, Any] = field(default_factory=dict)
    inbox: dict[Role, deque[Incoming]] = field(default_factory=lambda: {OWNER: deque(), CLERK: deque()})
    change: Callable[[Role, Outgoing], Outgoing | None] | None = None
    asked: int = 0
    ended: set[tuple[Role, int]] = field(default_factory=set)

    def take(self, role: Role, step: Step) -> None:
        """Do what a node does with a step: record, send, hand over."""
        if isinstance(step, Finished):
            self.outputs[role] = step.output
        elif step.record is not None:
            self.records[role].append(dict(step.record))
        for message in step.outgoing:
            changed = message if self.change is None else self.change(role, message)
            if changed is None:
                continue
            if (role, changed.round) in self.ended or len(changed.body) > MAX_BODY_BYTES:
                raise ProtocolAborted("a message after the last of its stream, or too long")
            if changed.last:
                self.ended.add((role, changed.round))
            self.sent.append(Sent(role, changed.to, changed.round, changed.body, changed.last))
            self.inbox[changed.to].append(Incoming(role, changed.round, changed.body, changed.last))
        if not isinstance(step, Finished):
            self.answers |= {answer.number: answer.body for answer in step.answers}

    def deliver(self) -> "Session":
        """Deliver until nothing is under way."""
        while any(self.inbox.values()):
            for role, waiting in self.inbox.items():
                if waiting:
                    assert role not in self.outputs, "a message came after the end"
                    self.take(role, self.parties[role].receive(waiting.popleft()))
        return self

    def open(self) -> "Session":
        """Start both and let the table come."""
        for role, party in self.parties.items():
            self.take(role, party.start())
        return self.deliver()

    def ask(self, *people: int | str, fields: Sequence[str] | None = None) -> Any:
        """Put a question about persons by number, or ids as typed, and return its answer."""
        self.asked += 1
        keys = [person(each) if isinstance(each, int) else each for each in people]
        question: dict[str, Any] = {"keys": keys}
        if fields is not None:
            question["fields"] = list(fields)
        self.take(CLERK, self.parties[CLERK].ask(self.asked, question))
        self.deliver()
        return self.answers.get(self.asked)

    def rows(self, *people: int | str) -> Any:
        """Return what is found for persons."""
        return self.ask(*people)["rows"]

    def close(self, role: Role = CLERK) -> dict[Role, Any]:
        """End the session at a node and return both outputs."""
        self.take(role, self.parties[role].close())
        self.deliver()
        return self.outputs

    def bodies(self, number: int) -> bytes:
        """Return everything that was sent in a round."""
        return b"".join(m.body for m in self.sent if m.round == number)


@dataclass
class Office:
    """An owner and a clerk with their shelves, from session to session."""

    owner: MemoryShelf = field(default_factory=MemoryShelf)
    clerk: MemoryShelf = field(default_factory=MemoryShelf)
    sessions: int = 0

    def session(
        self,
        rows: Rows | Sequence[tuple[int, Row]],
        *,
        constraints: Constraints = OPEN,
        spec: JobSpec | None = None,
        seed: object = 0,
        clock: Clock | None = None,
        clerk: MemoryShelf | None = None,
        **params: Any,
    ) -> Session:
        """Return a session about these rows, not opened yet; with another clock or shelf if given."""
        self.sessions += 1
        spec = spec or lookup_spec(**params)
        LOOKUPS.check(spec)
        people = prepared(spec, list(rows.items()) if isinstance(rows, Mapping) else rows)
        summary = InputSummary(
            people.rows,
            people.distinct_keys,
            people.distinct_keys,
            people.commitment(bytes(32)),
            "2026-01-01",
            ZERO,
            people.rule_version,
        )
        setup, clock = Setup(spec, 1, CTX, constraints, {OWNER: summary}), clock or Clock()
        clerk = self.clerk if clerk is None else clerk

        def rand(role: Role) -> Rand:
            return seeded(f"{seed}/{self.sessions}/{role}")

        parties = {
            OWNER: LOOKUPS.serving(OWNER, setup, people, rand(OWNER), shelf=self.owner, monotonic=clock),
            CLERK: LOOKUPS.serving(CLERK, setup, None, rand(CLERK), shelf=clerk, monotonic=clock),
        }
        return Session(spec, setup, people, parties, clock)


def some(count: int, *, first: int = 0, street: int = 0, status: str = "married") -> dict[int, Row]:
    """Return rows of so many persons."""
    return {
        number: (STREETS[street], f"{status}-{number % 3}", f"2025-{1 + number % 12:02d}")
        for number in range(first, first + count)
    }


def expected(rows: Rows, number: int) -> dict[str, str] | None:
    """Return what a clerk of the first street finds of a person."""
    row = rows.get(number)
    return {"status": row[1], "seen": row[2]} if row is not None and row[0] == STREETS[0] else None
