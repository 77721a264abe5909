"""Small tables for tests: a spec, rows of each department, and all parties with seeded randomness."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import pyarrow as pa
from crosscheck_case import CTX, ZERO, seeded

from protocols.ids import DatasetName, KeyId, NodeName, Role
from protocols.jobs.job_type import AGGREGATOR, UNIT, Content, Setup, Unit, source
from protocols.jobs.table import CrossTable, Params
from protocols.party import Party, Sent, run
from protocols.tables.tally import Tally
from protocols.wire import Constraints, InputSummary, JobInput, JobSpec, organisation_of

CROSS_TABLE: Final = CrossTable()
PERSON: Final = Unit("code", 12)
OPEN: Final = Constraints(min_group_size=1)
"""Limits that withhold nothing for being small, for tests of something else."""

DISTRICT: Final = {"slot": "district", "values": ["east", "west"]}
AGE: Final = {"slot": "age", "bins": ["0", "18", "60"]}
INCOME: Final = {"slot": "income", "bounds": ["0", "5000"], "decimals": 1, "of": ["sum"]}

Row = Mapping[str, Any]  # slot -> value; "unit" is the person


def table_spec(sources: int = 3, *, key_holder: int = 1, **params: Any) -> JobSpec:
    """Return a valid spec, by district and age unless `params` say otherwise; params of None are left out."""
    nodes = {source(i): f"department-{i}.example/a" for i in range(1, sources + 1)}
    if sources > 1:
        nodes[AGGREGATOR] = "statistics.example/a"
    roles = {Role(role): NodeName(node) for role, node in nodes.items()}
    filled: dict[str, Any] = {"axes": [DISTRICT, AGE], "areas": "demo-city"}
    if sources > 1:
        filled["key_holder"] = source(key_holder)
    filled = {name: value for name, value in {**filled, **params}.items() if value is not None}
    parts = [*filled.get("axes", ()), *filled.get("filters", ()), *filled.get("measures", ())]
    slots = {part["slot"]: f"the_{part['slot']}" for part in parts if isinstance(part, Mapping)}
    return JobSpec(
        job_type="table/1",
        params=filled,
        inputs=tuple(
            JobInput(role, organisation_of(node), DatasetName("people"), slots)
            for role, node in roles.items()
            if role != AGGREGATOR
        ),
        roles=roles,
        purpose="P-1",
        legal_basis="L-1",
        expected_use="规划学位和养老服务",
        recipients=(),
        requester=KeyId(ZERO),
        collaboration="example",
        roster_digest=ZERO,
        created=datetime(2026, 1, 1, tzinfo=UTC),
        expires=datetime(2026, 2, 1, tzinfo=UTC),
        nonce="0" * 32,
    )


def tallied(spec: JobSpec, rows: Sequence[Row], *, number: int = 1) -> Tally:
    """Return rows as the node of that source would prepare them."""
    builder = CROSS_TABLE.builder(spec, source(number), PERSON)
    if rows:
        kinds = {"age": pa.int64(), "income": pa.float64()}
        slots = [*spec.inputs[number - 1].columns, UNIT]
        builder.add(
            {slot: pa.array([row.get(slot) for row in rows], kinds.get(slot, pa.string())) for slot in slots}
        )
    tally = builder.finish()
    assert isinstance(tally, Tally)
    return tally


def crowd(department: int, persons: int = 400) -> list[Row]:
    """So many persons, evenly spread, with incomes that do not stand out."""
    return [
        {
            "unit": f"{department}{number:017}",
            "district": DISTRICT["values"][number % 2],
            "age": number // 2 % 90,
            "income": 1000 + number % 7 / 10,
        }
        for number in range(persons)
    ]


@dataclass
class TableCase:
    """One table, ready to run."""

    spec: JobSpec
    setup: Setup
    tallies: dict[Role, Tally]
    parties: dict[Role, Party]
    sent: list[Sent] = field(default_factory=list)

    def released(self) -> Content:
        """Play it whole and return the table; `sent` has every message afterwards."""
        outputs = run(self.parties, observe=self.sent.append)
        (content,) = outputs.pop(CROSS_TABLE.releases(self.spec)[0].made_by)
        assert not any(outputs.values())
        return content

    @property
    def params(self) -> Params:
        """What the spec asks."""
        return Params.of(self.spec)


def table_case(
    tables: Sequence[Sequence[Row]], *, constraints: Constraints = OPEN, seed: object = 0, **params: Any
) -> TableCase:
    """Return a table of these rows, one list for each source."""
    spec = table_spec(len(tables), **params)
    CROSS_TABLE.check(spec)
    tallies = {
        source(number): tallied(spec, rows, number=number) for number, rows in enumerate(tables, start=1)
    }
    return case_of(spec, tallies, constraints=constraints, seed=seed)


def case_of(
    spec: JobSpec, tallies: dict[Role, Tally], *, constraints: Constraints = OPEN, seed: object = 0
) -> TableCase:
    """Return a table of these tallies."""
    summaries = {
        role: InputSummary(100, 100, 100, tally.commitment(bytes(32)), "2026-01-01", ZERO, tally.rule_version)
        for role, tally in tallies.items()
    }
    setup = Setup(spec, 1, CTX, constraints, summaries)
    parties = {
        role: CROSS_TABLE.party(role, setup, tallies.get(role), seeded(f"{seed}/{role}"))
        for role in spec.roles
    }
    return TableCase(spec, setup, tallies, parties)


def cells_of(content: Content) -> dict[tuple[str, ...], float]:
    """Return labels and measure → value of what is not withheld."""
    *axes, measure, value, withheld = (column.tolist() for column in content.table.columns.values())
    return {
        (*labels, word): number
        for *labels, word, number, hidden in zip(*axes, measure, value, withheld, strict=True)
        if not hidden
    }
