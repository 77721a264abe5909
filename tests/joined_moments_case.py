"""Small joined moments for tests: specs of every form, lists, and all parties with seeded randomness."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import joined_cases
import numpy as np
import numpy.typing as npt
from crosscheck_case import CTX
from joined_cases import PERSON, S1, S2, S3, SEATS, Case, Row, columns_of
from joined_cases import amount as column
from sources_case import spec_of

from protocols.ids import Role
from protocols.jobs.job_type import AGGREGATOR, Content, source
from protocols.jobs.joined_moments import JoinedMoments
from protocols.joined.lists import JoinedList
from protocols.wire import Constraints, JobSpec

__all__ = ["PERSON", "S1", "S2", "S3", "SEATS", "Case", "Row", "column"]

MOMENTS: Final = JoinedMoments()
EARNED: Final = column(1, "income", "0", "20000", decimals=2)
YEARS: Final = column(2, "years", "0", "45")
AGE: Final = column(2, "age", "16", "70")
INSURED: Final = column(3, "insured", "0", "1")


def moments_spec(sources: int = 2, **params: Any) -> JobSpec:
    """Return a spec; each source brings the slots that are its own, and params of None are left out."""
    filled = {"columns": [EARNED, YEARS, AGE][: 1 + sources], "areas": "demo-city", **params}
    spec = spec_of(MOMENTS, sources, filled, {})
    inputs = tuple(
        replace(given, columns=columns_of(spec.params, given.role, "columns", "filters"))
        for given in spec.inputs
    )
    roles = {role: node for role, node in spec.roles.items() if role != AGGREGATOR}
    return replace(spec, roles={**roles, **SEATS}, inputs=inputs)


def listed(spec: JobSpec, role: Role, rows: Sequence[Row]) -> JoinedList:
    """Return rows as the node of that source would prepare them."""
    return joined_cases.listed(MOMENTS, spec, role, rows)


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
    return joined_cases.case_of(MOMENTS, spec, ready, constraints=constraints, seed=seed, ctx=ctx)


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
