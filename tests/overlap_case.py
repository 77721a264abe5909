"""Small overlaps for tests: a spec of each form, lists of persons, and all parties with seeded randomness."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa
from crosscheck_case import CTX, ZERO, person, seeded
from sources_case import spec_of

from protocols.ids import NodeName, Role
from protocols.jobs.job_type import AGGREGATOR, UNIT, Content, Setup, Unit, source
from protocols.jobs.overlap import MATCHER, Overlap
from protocols.party import Party, Sent, run
from protocols.psi.keyed_list import KeyedList
from protocols.wire import Constraints, InputSummary, JobSpec

OVERLAP: Final = Overlap()
PERSON: Final = Unit("resident-id", 3)
S1, S2, S3 = (source(i) for i in (1, 2, 3))
PAIRED: Final[Mapping[str, Any]] = {"epsilon": "1", "delta": "1/1000000000", "areas": "demo-city"}
MATCHED: Final[Mapping[str, Any]] = {"epsilon": "1", "areas": "demo-city"}


def pair_spec(**params: Any) -> JobSpec:
    """Return a valid spec of two departments; params of None are left out."""
    spec = spec_of(OVERLAP, 2, {**PAIRED, **params}, {"key": "id"})
    return _with_roles(spec, {S1, S2})


def venn_spec(sources: int = 3, **params: Any) -> JobSpec:
    """Return a valid spec of several departments and a matcher; params of None are left out."""
    filled = dict(MATCHED)
    if "rho" in params:
        del filled["epsilon"]
    spec = spec_of(OVERLAP, sources, {**filled, **params}, {"key": "id"})
    return _with_roles(spec, {MATCHER, *(source(i + 1) for i in range(sources))})


def _with_roles(spec: JobSpec, roles: set[Role]) -> JobSpec:
    from dataclasses import replace

    nodes = {role: node for role, node in spec.roles.items() if role != AGGREGATOR}
    nodes[MATCHER] = NodeName("statistics.example/a")
    return replace(spec, roles={role: node for role, node in nodes.items() if role in roles})


def listed(spec: JobSpec, role: Role, people: Sequence[int], unit: Unit | None = PERSON) -> KeyedList:
    """Return persons as the node of that source would prepare them; one may come several times."""
    builder = OVERLAP.builder(spec, role, unit)
    keys = pa.array([person(number) for number in people], pa.string())
    builder.add({"key": keys} | ({UNIT: keys} if unit else {}))
    found = builder.finish()
    assert isinstance(found, KeyedList)
    return found


@dataclass
class Case:
    """One overlap, ready to run."""

    spec: JobSpec
    setup: Setup
    lists: dict[Role, KeyedList]
    parties: dict[Role, Party]
    sent: list[Sent] = field(default_factory=list)

    def released(self) -> Content:
        """Play it whole and return the table; `sent` has every message afterwards."""
        outputs = run(self.parties, observe=self.sent.append)
        (content,) = outputs.pop(OVERLAP.releases(self.spec)[0].made_by)
        assert not any(outputs.values())
        return content

    def value(self) -> float:
        """Play it whole and return the first figure."""
        return float(self.released().table.columns["value"][0])


def overlap_case(
    lists: Sequence[Sequence[int]],
    *,
    spec: JobSpec | None = None,
    constraints: Constraints = Constraints(),  # noqa: B008  # frozen
    seed: object = 0,
    ctx: bytes = CTX,
    **params: Any,
) -> Case:
    """Return an overlap of these lists: of two departments alone, unless a spec says otherwise."""
    asked = spec or pair_spec(**params)
    OVERLAP.check(asked)
    ready = {source(i): listed(asked, source(i), people) for i, people in enumerate(lists, start=1)}
    summaries = {
        role: InputSummary(
            found.rows,
            found.distinct_keys,
            found.distinct_keys,
            found.commitment(bytes(32)),
            "2026-01-01",
            ZERO,
            found.rule_version,
        )
        for role, found in ready.items()
    }
    setup = Setup(asked, 1, ctx, constraints, summaries)
    parties = {
        role: OVERLAP.party(role, setup, ready.get(role), seeded(f"{seed}/{role}")) for role in asked.roles
    }
    return Case(asked, setup, ready, parties)
