"""Small cross-checks for tests: a spec, lists, and all parties with seeded randomness."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from fractions import Fraction
from functools import cache
from typing import Any

import pyarrow as pa

from protocols.identifiers import resident_id
from protocols.ids import DatasetName, Digest, KeyId, NodeName, Organisation, Role
from protocols.jobs.crosscheck import MATCHER, REGISTER, Crosscheck
from protocols.jobs.job_type import Content, Setup, source
from protocols.party import Party, Rand, Sent, run
from protocols.psi.keyed_list import Entries, KeyedList, SpilledList
from protocols.psi.tagging import SpilledTags
from protocols.resources import Resources, in_memory
from protocols.wire import Constraints, InputSummary, JobInput, JobSpec, organisation_of

CROSSCHECK = Crosscheck()
ZERO = Digest("sha256:" + "0" * 64)
CTX = hashlib.sha256(b"a context for tests").digest()
LOOSE = Constraints(
    min_group_size=3, max_rows=1000, max_fraction=Fraction(1), min_coverage=Fraction(0)
)  # limits that never bind, for tests of something else

Row = tuple[str, str]  # street, month last seen
Lists = Sequence[Mapping[int, Row]]  # person number -> row; the register first


@cache
def person(number: int) -> str:
    """Return the identity number of a fictional person."""
    return resident_id(f"9901{1 + number % 11:02d}", date(1950 + number // 900, 1, 1), number % 900)


def seeded(seed: object) -> Rand:
    """Return a reproducible source of bytes."""
    drawn = 0

    def rand(count: int) -> bytes:
        nonlocal drawn
        drawn += 1
        return hashlib.shake_256(f"{seed}/{drawn}".encode()).digest(count)

    return rand


def job_spec(sources: int = 3, *, key_holder: int = 1, **params: Any) -> JobSpec:
    """Return a valid spec: `k=2`, or `present_in="all"`."""
    nodes = {REGISTER: "police.example/a", MATCHER: "statistics.example/a"}
    nodes |= {source(i): f"department-{i}.example/a" for i in range(1, sources + 1)}
    roles = {Role(role): NodeName(node) for role, node in nodes.items()}
    filled: dict[str, Any] = {
        "present_in": "all" if params.get("present_in") == "all" else "at_least",
        "key_holder": source(key_holder),
        "areas": "demo-city",
    }
    columns = {"key": "id", "street": "street", "last_seen": "seen"}
    return JobSpec(
        job_type="crosscheck/1",
        params=filled | params,
        inputs=tuple(
            JobInput(
                role,
                organisation_of(node),
                DatasetName("people"),
                {"key": "id"} if role == REGISTER else columns,
            )
            for role, node in roles.items()
            if role != MATCHER
        ),
        roles=roles,
        purpose="P-1",
        legal_basis="L-1",
        expected_use="核实名单并补登",
        recipients=(Organisation("police.example"),),
        requester=KeyId(ZERO),
        collaboration="example",
        roster_digest=ZERO,
        created=datetime(2026, 1, 1, tzinfo=UTC),
        expires=datetime(2026, 2, 1, tzinfo=UTC),
        nonce="0" * 32,
    )


def graced_spec(sources: int = 2, **params: Any) -> JobSpec:
    """Return a valid spec of `present_in="all"` with 60 days of grace, where `params` say nothing else."""
    spec = job_spec(sources, present_in="all", **({"grace_days": 60} | params))
    columns = {"key": "id", "street": "street", "last_seen": "seen", "since": "died"}
    inputs = tuple(i if i.role == REGISTER else replace(i, columns=columns) for i in spec.inputs)
    return replace(spec, inputs=inputs)


HELD_ROWS: int | None = None
"""How many rows parties hold in memory; None: all. Tests that run on both paths set it."""


def resources() -> Resources:
    """Return what a party may use, with room in memory for `HELD_ROWS`; each has its own."""
    return in_memory() if HELD_ROWS is None else Resources(spill_rows=HELD_ROWS)


def prepared(
    spec: JobSpec, role: Role, rows: Mapping[int, Row], on: Resources | None = None
) -> KeyedList | SpilledList:
    """Return a list as its node would prepare it."""
    builder = CROSSCHECK.builder_with(spec, role, None, on or in_memory())
    batch: dict[str, Any] = {"key": pa.array([person(number) for number in rows], pa.string())}
    if role != REGISTER:
        batch["street"] = pa.array([street for street, _ in rows.values()], pa.string())
        batch["last_seen"] = pa.array([month for _, month in rows.values()], pa.string())
    builder.add(batch)
    listed = builder.finish()
    assert isinstance(listed, KeyedList | SpilledList)
    return listed


def entries(listed: KeyedList | SpilledList) -> Entries:
    """Return all rows of a list."""
    if isinstance(listed, SpilledList):
        return listed.of(listed.entries.read(0, len(listed.entries)))
    return Entries(listed.keys, listed.streets, listed.months, listed.street_names)


def under_tags(party: Any) -> list[tuple[bytes, bytes]]:
    """Return key and V of each row of a list owner, in the order of tags; it has tagged its list."""
    tagged = party._tagged()
    if isinstance(tagged, SpilledTags):
        rows = tagged.rows.read(0, len(tagged.rows))
        return list(zip(rows["key"].tolist(), (value.tobytes() for value in rows["value"]), strict=True))
    keys = party.listed.keys[tagged.order].tolist()
    return list(zip(keys, (value.tobytes() for value in tagged.values), strict=True))


@dataclass
class Case:
    """One cross-check, ready to run."""

    spec: JobSpec
    setup: Setup
    lists: dict[Role, KeyedList | SpilledList]
    parties: dict[Role, Party]
    on: dict[Role, Resources]
    sent: list[Sent] = field(default_factory=list)

    def run(self) -> dict[Role, Any]:
        """Play it whole and return the outputs; `sent` has every message afterwards."""
        return run(self.parties, observe=self.sent.append)

    def released(self) -> tuple[Content, Content]:
        """Play it whole and return records and street table."""
        records, table = self.run()[REGISTER]
        return records, table


def case(
    lists: Lists,
    *,
    constraints: Constraints = LOOSE,
    seed: object = 0,
    catalogue: int | None = None,
    key_holder: int = 1,
    **params: Any,
) -> Case:
    """Return a cross-check of these lists, the register's first; `catalogue` is its published number."""
    spec = job_spec(len(lists) - 1, key_holder=key_holder, **params)
    CROSSCHECK.check(spec)
    owners = (REGISTER, *(source(i) for i in range(1, len(lists))))
    on = {role: resources() for role in spec.roles}
    ready = {role: prepared(spec, role, rows, on[role]) for role, rows in zip(owners, lists, strict=True)}
    summaries = {
        role: InputSummary(
            listed.rows,
            listed.distinct_keys,
            listed.distinct_keys,
            listed.commitment(bytes(32)),
            "2026-01-01",
            ZERO,
            listed.rule_version,
        )
        for role, listed in ready.items()
    }
    if catalogue is not None:
        summaries[REGISTER] = replace(summaries[REGISTER], catalogue_keys=catalogue)
    setup = Setup(spec, 1, CTX, constraints, summaries)
    parties = {
        role: CROSSCHECK.party_on(role, setup, ready.get(role), seeded(f"{seed}/{role}"), resources=on[role])
        for role in spec.roles
    }
    return Case(spec, setup, ready, parties, on)
