"""Small joined moments for tests: specs of every form, lists, and all parties with seeded randomness."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from crosscheck_case import CTX, ZERO, person, seeded
from sources_case import spec_of

from protocols.ids import NodeName, Role
from protocols.jobs.job_type import AGGREGATOR, UNIT, Content, Setup, Unit, source
from protocols.jobs.joined_moments import JoinedMoments
from protocols.joined.lists import JoinedList
from protocols.joined.params import DEALER, HELPER, MATCHER
from protocols.party import Party, Sent, run
from protocols.wire import Constraints, InputSummary, JobSpec

MOMENTS: Final = JoinedMoments()
PERSON: Final = Unit("resident-id", 5)
S1, S2, S3 = (source(i) for i in (1, 2, 3))
SEATS: Final[Mapping[Role, NodeName]] = {
    MATCHER: NodeName("statistics.example/a"),
    HELPER: NodeName("archives.example/a"),
    DEALER: NodeName("notary.example/a"),
}

Row = Mapping[str, Any]
"""slot → value, and "who", the number of a person"""


def column(number: int, slot: str, low: str, high: str, **more: Any) -> dict[str, Any]:
    """Return a column of a source."""
    return {"source": source(number), "slot": slot, "low": low, "high": high, **more}


EARNED: Final = column(1, "income", "0", "20000", decimals=2)
YEARS: Final = column(2, "years", "0", "45")
AGE: Final = column(2, "age", "16", "70")
INSURED: Final = column(3, "insured", "0", "1")


def moments_spec(sources: int = 2, **params: Any) -> JobSpec:
    """Return a spec; each source brings the slots that are its own, and params of None are left out."""
    filled = {"columns": [EARNED, YEARS, AGE][: 1 + sources], "areas": "demo-city", **params}
    spec = spec_of(MOMENTS, sources, filled, {})
    inputs = tuple(replace(given, columns=_columns(spec.params, given.role)) for given in spec.inputs)
    roles = {role: node for role, node in spec.roles.items() if role != AGGREGATOR}
    return replace(spec, roles={**roles, **SEATS}, inputs=inputs)


def _columns(params: Mapping[str, Any], role: Role) -> dict[str, str]:
    parts = [part for name in ("columns", "filters") for part in params.get(name) or ()]
    own = [part["slot"] for part in parts if isinstance(part, Mapping) and part.get("source") == role]
    return {"key": "id"} | {slot: f"the_{slot}" for slot in own}


def listed(spec: JobSpec, role: Role, rows: Sequence[Row]) -> JoinedList:
    """Return rows as the node of that source would prepare them."""
    builder = MOMENTS.builder(spec, role, PERSON)
    given = spec.input_of(role)
    assert given is not None
    if rows:
        keys = pa.array([person(row["who"]) for row in rows], pa.string())
        columns = {slot: pa.array([row.get(slot) for row in rows]) for slot in given.columns if slot != "key"}
        builder.add({"key": keys, UNIT: keys, **columns})
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
    sent: list[Sent] = field(default_factory=list)

    def released(self) -> Content:
        """Play it whole and return the table; `sent` has every message afterwards."""
        outputs = run(self.parties, observe=self.sent.append)
        (content,) = outputs.pop(MATCHER)
        assert not any(outputs.values())
        return content


def moments_case(
    spec: JobSpec,
    lists: Sequence[Sequence[Row]],
    *,
    constraints: Constraints = Constraints(),  # noqa: B008  # frozen
    seed: object = 0,
    ctx: bytes = CTX,
) -> Case:
    """Return a job about these rows, one list for each source."""
    MOMENTS.check(spec)
    ready = {source(i): listed(spec, source(i), rows) for i, rows in enumerate(lists, start=1)}
    summaries = {
        role: InputSummary(
            max(found.rows, found.distinct_keys),
            found.distinct_keys,
            found.distinct_keys,
            found.commitment(bytes(32)),
            "2026-01-01",
            ZERO,
            found.rule_version,
        )
        for role, found in ready.items()
    }
    setup = Setup(spec, 1, ctx, constraints, summaries)
    parties = {
        role: MOMENTS.party(role, setup, ready.get(role), seeded(f"{seed}/{role}")) for role in spec.roles
    }
    return Case(spec, setup, ready, parties)


def people(n: int, seed: int = 1) -> npt.NDArray[np.int64]:
    """Return income in cents, years, age and a flag of n persons, which depend on each other."""
    rng = np.random.default_rng(seed)
    age = rng.integers(16, 71, n)
    years = np.clip(np.rint((age - 16) * rng.uniform(0.0, 1.0, n)), 0, 45)
    flag = rng.random(n) < 0.4
    income = 9000 + 100 * years - 900 * flag + rng.uniform(-8000, 6000, n)
    return np.stack([np.rint(income * 100), years, age, flag], axis=1).astype(np.int64)


def as_lists(
    rows: npt.NDArray[np.int64], *, only_first: int = 20, only_second: int = 30
) -> list[list[dict[str, Any]]]:
    """Return the two lists of persons who are on both, and of some who are on one alone."""
    n = len(rows)
    extra = people(only_first + only_second, seed=99)
    first = [{"who": i, "income": rows[i, 0] / 100} for i in range(n)]
    first += [{"who": n + i, "income": extra[i, 0] / 100} for i in range(only_first)]
    second = [{"who": i, "years": int(rows[i, 1]), "age": int(rows[i, 2])} for i in reversed(range(n))]
    second += [
        {"who": n + only_first + i, "years": int(extra[-1 - i, 1]), "age": int(extra[-1 - i, 2])}
        for i in range(only_second)
    ]
    return [first, second]


def shown_rows(content: Content) -> dict[tuple[str, str, str], tuple[float, float, float]]:
    """Return (measure, a, b) → value, low, high of what is not withheld."""
    at = content.table.columns
    names = ("measure", "a", "b", "value", "low", "high", "withheld")
    return {
        (measure, a, b): (float(value), float(low), float(high))
        for measure, a, b, value, low, high, withheld in zip(*(at[name] for name in names), strict=True)
        if not withheld
    }
