"""Small releases for tests: a spec of each statistic, rows, and all parties with seeded randomness."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import pyarrow as pa
from crosscheck_case import CTX, ZERO, seeded

from protocols.ids import DatasetName, KeyId, NodeName, Role
from protocols.jobs.job_type import AGGREGATOR, UNIT, Content, Setup, Unit, source
from protocols.jobs.release import Release
from protocols.party import Party, Sent, run
from protocols.releases.params import Params
from protocols.releases.plan import plan
from protocols.tables.tally import Tally
from protocols.wire import Constraints, InputSummary, JobInput, JobSpec, organisation_of

RELEASE: Final = Release()
PERSON: Final = Unit("code", 1000)
OPEN: Final = Constraints(min_group_size=0)
"""Limits that withhold nothing but empty cells, for tests of something else."""

STREETS: Final = ("990101001", "990101002", "990102001", "990103001", "990103002")
AXIS: Final = {"slot": "street", "values": list(STREETS)}
BY_AGE: Final = {"slot": "age", "bins": ["0", "18", "60"]}

ASKS: Final[Mapping[str, Mapping[str, Any]]] = {
    "count": {},
    "histogram": {"axes": [AXIS, BY_AGE]},
    "sum": {"axes": [AXIS], "measure": {"slot": "income", "bounds": ["-10", "5000"], "decimals": 1}},
    "mean": {"axes": [AXIS], "measure": {"slot": "income", "bounds": ["0", "5000"]}},
    "quantile": {
        "measure": {"slot": "age", "bins": ["0", "6", "18", "35", "60", "80"], "end": "120"},
        "at": ["0.1", "0.5", "0.9"],
    },
    "tree": {"axes": [AXIS], "levels": [6]},
    "keys": {"slot": "job", "delta": "0.000001"},
}
"""What each statistic asks, beyond what every release says."""

Row = Mapping[str, Any]  # slot -> value; "unit" is the person


def release_spec(statistic: str, sources: int = 1, /, **params: Any) -> JobSpec:
    """Return a valid spec; params of None are left out."""
    nodes = {source(i): f"department-{i}.example/a" for i in range(1, sources + 1)}
    if sources > 1:
        nodes[AGGREGATOR] = "statistics.example/a"
    roles = {Role(role): NodeName(node) for role, node in nodes.items()}
    filled: dict[str, Any] = {"statistic": statistic, "areas": "demo-city", **ASKS[statistic]}
    if not {"rho", "epsilon"} & set(params):
        filled["rho"] = "0.5"
    if sources > 1:
        filled["key_holder"] = "source-1"
    filled = {name: value for name, value in {**filled, **params}.items() if value is not None}
    spec = JobSpec(
        job_type="release/1",
        params=filled,
        inputs=(),
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
    inputs = tuple(
        JobInput(role, organisation_of(node), DatasetName("people"), columns_of(filled))
        for role, node in roles.items()
        if role != AGGREGATOR
    )
    object.__setattr__(spec, "inputs", inputs)
    return spec


def columns_of(params: Mapping[str, Any]) -> dict[str, str]:
    """Return slot → column for whatever the params are about; what is no table is left out."""
    parts = [*params.get("axes", ()), *params.get("filters", ()), params.get("measure", {}), params]
    slots = [part["slot"] for part in parts if isinstance(part, Mapping) and "slot" in part]
    return {slot: f"the_{slot}" for slot in slots}


def tallied(spec: JobSpec, rows: Sequence[Row], *, unit: Unit | None = PERSON, number: int = 1) -> Tally:
    """Return rows as the node of that source would prepare them."""
    builder = RELEASE.builder(spec, source(number), unit)
    slots = [*spec.inputs[number - 1].columns, *([UNIT] if unit else [])]
    kinds = {UNIT: pa.string(), "age": pa.int64(), "income": pa.float64(), "latest": pa.int64()}
    if rows:
        builder.add(
            {slot: pa.array([row.get(slot) for row in rows], kinds.get(slot, pa.string())) for slot in slots}
        )
    tally = builder.finish()
    assert isinstance(tally, Tally)
    return tally


@dataclass
class ReleaseCase:
    """One release, ready to run."""

    spec: JobSpec
    setup: Setup
    tallies: dict[Role, Tally]
    parties: dict[Role, Party]
    sent: list[Sent] = field(default_factory=list)

    def released(self) -> Content:
        """Play it whole and return the table; `sent` has every message afterwards."""
        outputs = run(self.parties, observe=self.sent.append)
        (content,) = outputs.pop(RELEASE.releases(self.spec)[0].made_by)
        assert not any(outputs.values())
        return content


def release_case(
    spec: JobSpec, tables: Sequence[Sequence[Row]], *, constraints: Constraints = OPEN, seed: object = 0
) -> ReleaseCase:
    """Return a release of these rows, one list for each source."""
    RELEASE.check(spec)
    tallies = {
        source(number): tallied(spec, rows, number=number) for number, rows in enumerate(tables, start=1)
    }
    return case_of(spec, tallies, constraints=constraints, seed=seed)


def case_of(
    spec: JobSpec, tallies: dict[Role, Tally], *, constraints: Constraints = OPEN, seed: object = 0
) -> ReleaseCase:
    """Return a release of these tallies; parties draw their noise here."""
    summaries = {
        role: InputSummary(100, 100, 100, tally.commitment(bytes(32)), "2026-01-01", ZERO, tally.rule_version)
        for role, tally in tallies.items()
    }
    setup = Setup(spec, 1, CTX, constraints, summaries)
    parties = {
        role: RELEASE.party(role, setup, tallies.get(role), seeded(f"{seed}/{role}")) for role in spec.roles
    }
    return ReleaseCase(spec, setup, tallies, parties)


def params_of(spec: JobSpec) -> Params:
    """Return what a spec asks."""
    return Params.of(spec)


def planned(spec: JobSpec) -> Any:
    """Return the plan of a spec."""
    return plan(Params.of(spec))
