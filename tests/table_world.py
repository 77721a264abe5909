"""A collaboration whose departments also have case files, about which they answer tables."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simulator import BUREAU, World, person

from protocols.ids import DatasetName, Organisation, Role
from protocols.wire import JobInput, JobSpec

SOURCES = ("police", "human-resources", "health")
AGGREGATOR = "statistics"
STREETS = ("S0", "S1", "S2")
CASES = ("street", "age", "paid", "day")

_RULE = """[[rules]]
id = "R2"
requesters = ["bureau"]
purposes = ["P-1"]
job_types = {types}
recipients = ["{bureau}"]
roles = {roles}
approvals = 0
{more}"""

_CASES = """[quotas.tables]
dataset = "cases"
counts = "queries"
limit = {queries}
period = "calendar-month"
scope = "all-requesters"
{budget}[datasets.cases]
source = "local:cases"
grade = "general-3"
personal = "{personal}"
{unit}[datasets.cases.columns]
id = {{ type = "resident-id", use = ["join"] }}
street = {{ type = "enum", use = ["group", "filter"], values = ["S0", "S1", "S2"] }}
age = {{ type = "int", use = ["group", "filter"], bins = [0, 18, 60] }}
paid = {{ type = "decimal", use = ["sum", "mean", "quantile"], range = [0, 1000] }}
day = {{ type = "date", use = ["filter"] }}
"""

Row = tuple[int, str, str, str, str]
"""Person, street, age, amount and day, as text; an empty text is no value."""


def case_rows(department: str) -> list[Row]:
    """Return a department's cases: 60 persons, every fourth with an older second case elsewhere."""
    first = 400 + 1000 * SOURCES.index(department)
    rows: list[Row] = []
    for n in range(60):
        rows.append((first + n, STREETS[n % 3], str(n), f"{10 + n}.50", "2026-05-01"))
        if n % 4 == 0:
            rows.append((first + n, STREETS[(n + 1) % 3], str(n), "900", "2025-05-01"))
    return rows


class TableWorld(World):
    """Three departments with `cases`, a fourth that adds up; `personal` and `unit` as every policy says."""

    personal = "personal"
    unit = 'unit = { column = "id", max_rows = 3 }\n'
    budget = ""
    types: Sequence[str] = ("table/1",)
    queries = 20

    def policy_of(self, name: str, **changes: Any) -> str:
        """Return the policy with a rule for tables, before the tables of datasets that it ends with."""
        text = super().policy_of(name, **changes)
        types = json.dumps(list(self.types))
        if name == AGGREGATOR:
            roles = '["aggregator"]'
            return text + _RULE.format(types=types, bureau=BUREAU, roles=roles, more="")
        limits = 'persons_in = 1\nquotas = ["tables"]\n' + ('budget = "privacy"\n' if self.budget else "")
        more = f'datasets = ["cases"]\ncolumns = ["street", "age", "paid", "day"]\n{limits}'
        rule = _RULE.format(types=types, bureau=BUREAU, roles='["source", "key-holder"]', more=more)
        cases = _CASES.format(
            queries=self.queries, budget=self.budget, personal=self.personal, unit=self.unit
        )
        return text + rule + cases

    def write_cases(self, name: str, rows: Sequence[Row], *, at: Path | None = None) -> Path:
        """Write a department's case file, with a phone number that no job may read."""
        lines = ["id,street,age,paid,day,phone"]
        lines += [f"{person(who)},{','.join(rest)},1390000{who:04d}" for who, *rest in rows]
        path = at or self.folder / f"{name}-cases.csv"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    def _furnish(self, name: str) -> None:
        super()._furnish(name)
        if name == AGGREGATOR:
            return
        self.put_file(name, "cases", self.write_cases(name, case_rows(name)))

    def table(self, departments: Sequence[str] = SOURCES, **changes: Any) -> JobSpec:
        """Return a table of persons by street and age with what was paid, of some departments.

        `params` given among the changes are laid over the usual ones; None takes one away.
        """
        roles = {Role(f"source-{n + 1}"): self.homes[name].name for n, name in enumerate(departments)}
        params: dict[str, Any] = {
            "areas": "demo-city",
            "axes": [
                {"slot": "street", "values": list(STREETS)},
                {"slot": "age", "bins": ["0", "18", "60"]},
            ],
            "measures": [{"slot": "paid", "bounds": ["0", "1000"], "decimals": 2, "of": ["sum", "mean"]}],
            "persons_in": 1,
        }
        if len(departments) > 1:
            roles[Role("aggregator")] = self.homes[AGGREGATOR].name
            params["key_holder"] = "source-1"
        given: Mapping[str, Any] = changes.pop("params", {})
        params = {key: value for key, value in {**params, **given}.items() if value is not None}
        columns = {"street": "street", "age": "age", "latest": "day"}
        columns |= {"paid": "paid"} if "measures" in params else {}
        columns = changes.pop("columns", columns)
        inputs = tuple(
            JobInput(
                Role(f"source-{n + 1}"), Organisation(f"{name}.gz.example"), DatasetName("cases"), columns
            )
            for n, name in enumerate(departments)
        )
        return self.spec(
            job_type="table/1", params=params, inputs=inputs, roles=roles, recipients=(), **changes
        )
