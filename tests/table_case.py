"""Small tables for tests: a spec, rows of each department, and all parties with seeded randomness."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import sources_case
from sources_case import Row, SourcesCase, spec_of, tally_of

from protocols.ids import Role
from protocols.jobs.job_type import Content, Unit, source
from protocols.jobs.table import CrossTable
from protocols.tables.tally import Tally
from protocols.wire import Constraints, JobSpec

CROSS_TABLE: Final = CrossTable()
PERSON: Final = Unit("code", 12)
OPEN: Final = Constraints(min_group_size=1)
"""Limits that withhold nothing for being small, for tests of something else."""

DISTRICT: Final = {"slot": "district", "values": ["east", "west"]}
AGE: Final = {"slot": "age", "bins": ["0", "18", "60"]}
INCOME: Final = {"slot": "income", "bounds": ["0", "5000"], "decimals": 1, "of": ["sum"]}


def table_spec(sources: int = 3, *, key_holder: int = 1, **params: Any) -> JobSpec:
    """Return a valid spec, by district and age unless `params` say otherwise; params of None are left out."""
    filled: dict[str, Any] = {"axes": [DISTRICT, AGE], "areas": "demo-city"}
    if sources > 1:
        filled["key_holder"] = source(key_holder)
    filled |= params
    parts = [part for name in ("axes", "filters", "measures") for part in filled.get(name) or ()]
    columns = {part["slot"]: f"the_{part['slot']}" for part in parts if isinstance(part, Mapping)}
    return spec_of(CROSS_TABLE, sources, filled, columns)


def tallied(spec: JobSpec, rows: Sequence[Row], *, number: int = 1) -> Tally:
    """Return rows as the node of that source would prepare them."""
    return tally_of(CROSS_TABLE, spec, rows, unit=PERSON, number=number)


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


def table_case(
    tables: Sequence[Sequence[Row]], *, constraints: Constraints = OPEN, seed: object = 0, **params: Any
) -> SourcesCase:
    """Return a table of these rows, one list for each source."""
    spec = table_spec(len(tables), **params)
    CROSS_TABLE.check(spec)
    tallies = {
        source(number): tallied(spec, rows, number=number) for number, rows in enumerate(tables, start=1)
    }
    return case_of(spec, tallies, constraints=constraints, seed=seed)


def case_of(
    spec: JobSpec, tallies: dict[Role, Tally], *, constraints: Constraints = OPEN, seed: object = 0
) -> SourcesCase:
    """Return a table of these tallies."""
    return sources_case.case_of(CROSS_TABLE, spec, tallies, constraints=constraints, seed=seed)


def cells_of(content: Content) -> dict[tuple[str, ...], float]:
    """Return labels and measure → value of what is not withheld."""
    *axes, measure, value, withheld = (column.tolist() for column in content.table.columns.values())
    return {
        (*labels, word): number
        for *labels, word, number, hidden in zip(*axes, measure, value, withheld, strict=True)
        if not hidden
    }
