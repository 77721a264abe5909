"""Small jobs over joined rows for tests, of any type: lists and all parties with seeded randomness."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa
from crosscheck_case import CTX, ZERO, person, seeded

from protocols.ids import NodeName, Role
from protocols.jobs.job_type import UNIT, Content, JobType, Setup, Unit, source
from protocols.joined.lists import JoinedList
from protocols.joined.params import DEALER, HELPER, MATCHER
from protocols.party import Party, Sent, run
from protocols.wire import Constraints, InputSummary, JobSpec

PERSON: Final = Unit("resident-id", 5)
S1, S2, S3, S4 = (source(i) for i in (1, 2, 3, 4))
SEATS: Final[Mapping[Role, NodeName]] = {
    MATCHER: NodeName("statistics.example/a"),
    HELPER: NodeName("archives.example/a"),
    DEALER: NodeName("notary.example/a"),
}

Row = Mapping[str, Any]
"""slot → value, and "who", the number of a person"""

_TEXTS: Final = frozenset({"street", "last_seen"})


def amount(number: int, slot: str, low: str = "0", high: str = "100", **more: Any) -> dict[str, Any]:
    """Return a column of amounts of a source, as params say it."""
    return {"source": source(number), "slot": slot, "low": low, "high": high, **more}


def columns_of(params: Mapping[str, Any], role: Role, *names: str) -> dict[str, str]:
    """Return slot → column of one source: its key, and what stands under these names of the params."""
    parts = [part for name in names for part in params.get(name) or ()]
    own = [part["slot"] for part in parts if isinstance(part, Mapping) and part.get("source") == role]
    return {"key": "id"} | {slot: f"the_{slot}" for slot in own if slot.isidentifier()}


def listed(
    job_type: JobType, spec: JobSpec, role: Role, rows: Sequence[Row], unit: Unit | None = PERSON
) -> JoinedList:
    """Return rows as the node of that source would prepare them."""
    builder = job_type.builder(spec, role, unit)
    given = spec.input_of(role)
    assert given is not None
    if rows:
        keys = pa.array([person(row["who"]) for row in rows], pa.string())
        columns = {
            slot: pa.array([row.get(slot) for row in rows], pa.string() if slot in _TEXTS else None)
            for slot in given.columns
            if slot != "key"
        }
        builder.add({"key": keys, **({UNIT: keys} if unit else {}), **columns})
    found = builder.finish()
    assert isinstance(found, JoinedList)
    return found


@dataclass
class Case:
    """One job, ready to run."""

    spec: JobSpec
    setup: Setup
    lists: dict[Role, JoinedList]
    parties: dict[Role, Party]
    maker: Role
    sent: list[Sent] = field(default_factory=list)

    def released(self) -> Content:
        """Play it whole and return what is released; `sent` has every message afterwards."""
        outputs = run(self.parties, observe=self.sent.append)
        (content,) = outputs.pop(self.maker)
        assert not any(outputs.values())
        return content

    def found(self) -> list[str]:
        """Play it whole and return the keys of the records that are released."""
        keys: list[str] = self.released().table.columns["key"].tolist()
        return keys


def case_of(
    job_type: JobType,
    spec: JobSpec,
    lists: Mapping[Role, JoinedList],
    *,
    constraints: Constraints,
    seed: object = 0,
    ctx: bytes = CTX,
    catalogue: Mapping[Role, int] | None = None,
) -> Case:
    """Return a job about these lists; `catalogue` says how many keys it has of a list, if not as many."""
    summaries = {
        role: InputSummary(
            max(found.rows, found.distinct_keys),
            found.distinct_keys,
            (catalogue or {}).get(role, found.distinct_keys),
            found.commitment(bytes(32)),
            "2026-01-01",
            ZERO,
            found.rule_version,
        )
        for role, found in lists.items()
    }
    setup = Setup(spec, 1, ctx, constraints, summaries)
    parties = {
        role: job_type.party(role, setup, lists.get(role), seeded(f"{seed}/{role}")) for role in spec.roles
    }
    return Case(spec, setup, dict(lists), parties, job_type.releases(spec)[0].made_by)
