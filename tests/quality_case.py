"""The quality of small tables for tests: a spec, rows of each department, and all parties."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa
from crosscheck_case import CTX, ZERO, seeded
from sources_case import spec_of

from protocols.ids import Role
from protocols.jobs.job_type import UNIT, Content, Setup, Unit, source
from protocols.jobs.quality import QualityAcross
from protocols.party import Party, Sent, run
from protocols.quality_sums import QualityInput
from protocols.wire import Constraints, InputSummary, JobSpec

QUALITY: Final = QualityAcross()
PERSON: Final = Unit("code", 1)
OPEN: Final = Constraints(min_group_size=1)
"""Limits that withhold nothing for being small, for tests of something else."""

KEY: Final = {"slot": "id", "kind": "key"}
SEX: Final = {"slot": "sex", "kind": "code", "table": "gbt2261.1@2003"}
KIND: Final = {"slot": "kind", "kind": "code", "codes": ["a", "b"]}
DAY: Final = {"slot": "day", "kind": "date"}
NAME: Final = {"slot": "name", "kind": "text"}

Row = Mapping[str, Any]


def quality_spec(sources: int = 3, *, key_holder: int = 1, **params: Any) -> JobSpec:
    """Return a valid spec, of keys, sexes, days and names unless `params` say otherwise; None leaves out."""
    filled: dict[str, Any] = {
        "columns": [KEY, SEX, DAY, NAME],
        "areas": "demo-city",
        "key_holder": source(key_holder),
    } | params
    columns = {each["slot"]: f"the_{each['slot']}" for each in filled["columns"]}
    return spec_of(QUALITY, sources, filled, columns)


def looked_at(
    spec: JobSpec, rows: Sequence[Row], *, number: int = 1, unit: Unit | None = PERSON
) -> QualityInput:
    """Return rows as the node of that source would prepare them; every row is its own person's by default."""
    builder = QUALITY.builder(spec, source(number), unit)
    slots = [*spec.inputs[number - 1].columns, *([UNIT] if unit else [])]
    for start in range(0, len(rows), 7):
        part = rows[start : start + 7]
        own = {UNIT: [row.get("unit", f"{number}-{start + n}") for n, row in enumerate(part)]}
        builder.add(
            {slot: pa.array(own.get(slot) or [row.get(slot) for row in part], pa.string()) for slot in slots}
        )
    found = builder.finish()
    assert isinstance(found, QualityInput)
    return found


@dataclass
class QualityCase:
    """One job, ready to run."""

    spec: JobSpec
    inputs: dict[Role, QualityInput]
    parties: dict[Role, Party]
    sent: list[Sent] = field(default_factory=list)

    def released(self) -> Content:
        """Play it whole and return the table; `sent` has every message afterwards."""
        outputs = run(self.parties, observe=self.sent.append)
        (content,) = outputs.pop(QUALITY.releases(self.spec)[0].made_by)
        assert not any(outputs.values())
        return content


def quality_case(
    tables: Sequence[Sequence[Row]],
    *,
    constraints: Constraints = OPEN,
    unit: Unit | None = PERSON,
    seed: object = 0,
    **params: Any,
) -> QualityCase:
    """Return a job about these rows, one list for each source."""
    spec = quality_spec(len(tables), **({"mode": "mask"} | params))
    QUALITY.check(spec)
    inputs = {
        source(number): looked_at(spec, rows, number=number, unit=unit)
        for number, rows in enumerate(tables, start=1)
    }
    summaries = {
        role: InputSummary(100, 100, 100, each.commitment(bytes(32)), "2026-01-01", ZERO, each.rule_version)
        for role, each in inputs.items()
    }
    setup = Setup(spec, 1, CTX, constraints, summaries)
    parties = {
        role: QUALITY.party(role, setup, inputs.get(role), seeded(f"{seed}/{role}")) for role in spec.roles
    }
    return QualityCase(spec, inputs, parties)


def figures_of(content: Content, measure: str = "rows") -> dict[tuple[str, str, str], float | None]:
    """Return column, part and reason → value, None where withheld."""
    table = {name: values.tolist() for name, values in content.table.columns.items()}
    return {
        (column, part, reason): None if hidden else value
        for column, part, reason, kind, value, hidden in zip(
            *(table[name] for name in ("column", "part", "reason", "measure", "value", "withheld")),
            strict=True,
        )
        if kind == measure
    }
