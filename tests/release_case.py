"""Small releases for tests: a spec of each statistic, rows, and all parties with seeded randomness."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import sources_case
from sources_case import Row, SourcesCase, spec_of, tally_of

from protocols.ids import Role
from protocols.jobs.job_type import Unit, source
from protocols.jobs.release import Release
from protocols.releases.params import Params
from protocols.releases.plan import plan
from protocols.tables.tally import Tally
from protocols.wire import Constraints, JobSpec

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


def release_spec(statistic: str, sources: int = 1, /, **params: Any) -> JobSpec:
    """Return a valid spec; params of None are left out."""
    filled: dict[str, Any] = {"statistic": statistic, "areas": "demo-city", **ASKS[statistic]}
    if not {"rho", "epsilon"} & set(params):
        filled["rho"] = "0.5"
    if sources > 1:
        filled["key_holder"] = "source-1"
    filled |= params
    return spec_of(RELEASE, sources, filled, columns_of(filled))


def columns_of(params: Mapping[str, Any]) -> dict[str, str]:
    """Return slot → column for whatever the params are about; what is no table is left out."""
    parts = [*(params.get("axes") or ()), *(params.get("filters") or ()), params.get("measure"), params]
    slots = [part["slot"] for part in parts if isinstance(part, Mapping) and "slot" in part]
    return {slot: f"the_{slot}" for slot in slots}


def tallied(spec: JobSpec, rows: Sequence[Row], *, unit: Unit | None = PERSON, number: int = 1) -> Tally:
    """Return rows as the node of that source would prepare them."""
    return tally_of(RELEASE, spec, rows, unit=unit, number=number)


def release_case(
    spec: JobSpec, tables: Sequence[Sequence[Row]], *, constraints: Constraints = OPEN, seed: object = 0
) -> SourcesCase:
    """Return a release of these rows, one list for each source."""
    RELEASE.check(spec)
    tallies = {
        source(number): tallied(spec, rows, number=number) for number, rows in enumerate(tables, start=1)
    }
    return case_of(spec, tallies, constraints=constraints, seed=seed)


def case_of(
    spec: JobSpec, tallies: dict[Role, Tally], *, constraints: Constraints = OPEN, seed: object = 0
) -> SourcesCase:
    """Return a release of these tallies; parties draw their noise here."""
    return sources_case.case_of(RELEASE, spec, tallies, constraints=constraints, seed=seed)


def params_of(spec: JobSpec) -> Params:
    """Return what a spec asks."""
    return Params.of(spec)


def planned(spec: JobSpec) -> Any:
    """Return the plan of a spec."""
    return plan(Params.of(spec))
