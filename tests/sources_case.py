"""Small jobs for tests whose departments count rows: spec, tallies, all parties with seeded randomness."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
from crosscheck_case import CTX, ZERO, seeded

from protocols.ids import DatasetName, KeyId, NodeName, Role
from protocols.jobs.job_type import AGGREGATOR, UNIT, Content, JobType, Setup, Unit, source
from protocols.party import Party, Sent, run
from protocols.tables.tally import Tally
from protocols.wire import Constraints, InputSummary, JobInput, JobSpec, organisation_of

Row = Mapping[str, Any]  # slot -> value; "unit" is the person


def spec_of(
    job_type: JobType, sources: int, params: Mapping[str, Any], columns: Mapping[str, str]
) -> JobSpec:
    """Return a spec with so many sources, each of which brings these columns; params of None are left out."""
    nodes = {source(i): f"department-{i}.example/a" for i in range(1, sources + 1)}
    if sources > 1:
        nodes[AGGREGATOR] = "statistics.example/a"
    roles = {Role(role): NodeName(node) for role, node in nodes.items()}
    return JobSpec(
        job_type=job_type.name,
        params={name: value for name, value in params.items() if value is not None},
        inputs=tuple(
            JobInput(role, organisation_of(node), DatasetName("people"), dict(columns))
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


def tally_of(
    job_type: JobType, spec: JobSpec, rows: Sequence[Row], *, unit: Unit | None, number: int
) -> Tally:
    """Return rows as the node of that source would prepare them."""
    builder = job_type.builder(spec, source(number), unit)
    slots = [*spec.inputs[number - 1].columns, *([UNIT] if unit else [])]
    kinds = {"age": pa.int64(), "income": pa.float64(), "latest": pa.int64()}
    if rows:
        builder.add(
            {slot: pa.array([row.get(slot) for row in rows], kinds.get(slot, pa.string())) for slot in slots}
        )
    tally = builder.finish()
    assert isinstance(tally, Tally)
    return tally


@dataclass
class SourcesCase:
    """One job, ready to run."""

    job_type: JobType
    spec: JobSpec
    setup: Setup
    tallies: dict[Role, Tally]
    parties: dict[Role, Party]
    sent: list[Sent] = field(default_factory=list)

    def released(self) -> Content:
        """Play it whole and return the table; `sent` has every message afterwards."""
        outputs = run(self.parties, observe=self.sent.append)
        (content,) = outputs.pop(self.job_type.releases(self.spec)[0].made_by)
        assert not any(outputs.values())
        return content


def case_of(
    job_type: JobType,
    spec: JobSpec,
    tallies: dict[Role, Tally],
    *,
    constraints: Constraints,
    seed: object = 0,
) -> SourcesCase:
    """Return a job about these tallies; parties draw their noise here."""
    summaries = {
        role: InputSummary(100, 100, 100, tally.commitment(bytes(32)), "2026-01-01", ZERO, tally.rule_version)
        for role, tally in tallies.items()
    }
    setup = Setup(spec, 1, CTX, constraints, summaries)
    parties = {
        role: job_type.party(role, setup, tallies.get(role), seeded(f"{seed}/{role}")) for role in spec.roles
    }
    return SourcesCase(job_type, spec, setup, tallies, parties)
