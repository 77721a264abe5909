"""Three departments with health checks of their own districts, and a fourth that adds up what they train."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simulator import BUREAU, World, person
from table_world import AGGREGATOR as ADDING
from table_world import SOURCES

from protocols.ids import DatasetName, Organisation, Role
from protocols.wire import JobInput, JobSpec

STREETS = ("S0", "S1", "S2")
EDGES = ("30", "50", "70")
PEOPLE = 150

_RULE = """[[rules]]
id = "R2"
requesters = ["bureau"]
purposes = ["P-1"]
job_types = ["train/1"]
recipients = ["{bureau}"]
roles = {roles}
approvals = {approvals}
{more}"""

_CHECKS = """[quotas.models]
dataset = "checks"
counts = "queries"
limit = 20
period = "calendar-month"
scope = "all-requesters"
[budgets.privacy]
dataset = "checks"
notion = "zcdp"
limit = "{limit}"
period = "calendar-quarter"
scope = "all-requesters"
[datasets.checks]
source = "local:checks"
grade = "general-4"
personal = "sensitive"
unit = {{ column = "id", max_rows = 1 }}
[datasets.checks.columns]
id = {{ type = "resident-id", use = ["join"] }}
street = {{ type = "enum", use = ["train", "filter"], values = ["S0", "S1", "S2"] }}
age = {{ type = "int", use = ["train"], range = [0, 120], bins = [30, 50, 70] }}
sex = {{ type = "enum", use = ["train", "group"], values = ["1", "2"] }}
vaccinated = {{ type = "enum", use = ["train"], values = ["0", "1"] }}
"""

Check = tuple[int, str, int, str, str]
"""Person, street, age, sex, vaccinated."""


def checks(department: str) -> list[Check]:
    """Return a department's people: the older ones, and those of one street, are vaccinated more often."""
    first = 3000 + 1000 * SOURCES.index(department)
    rows = []
    for n in range(PEOPLE):
        street, age = STREETS[(n + n // 7) % 3], 18 + n * 37 % 72
        likely = age // 9 + 3 * (street == "S1")
        rows.append((first + n, street, age, str(1 + n % 2), str(int((n * 29 + n // 3) % 11 < likely))))
    return rows


class TrainWorld(World):
    """`limit`: of every department's budget, ρ a quarter."""

    limit = "1"
    approvals = 0

    def policy_of(self, name: str, **changes: Any) -> str:
        """Return the policy with a rule for models, before the tables of datasets that it ends with."""
        text = super().policy_of(name, **changes)
        if name == ADDING:
            return text + _RULE.format(
                bureau=BUREAU, roles='["aggregator"]', approvals=0, more='recipes = ["logistic", "boost"]\n'
            )
        columns = json.dumps(["street", "age", "sex", "vaccinated"])
        more = f'datasets = ["checks"]\ncolumns = {columns}\nrecipes = ["logistic", "boost"]\n'
        more += 'persons_in = 1\nquotas = ["models"]\nbudget = "privacy"\n'
        if self.approvals:
            more += 'approvers = ["dpo", "owner"]\n'
        rule = _RULE.format(bureau=BUREAU, roles='["source"]', approvals=self.approvals, more=more)
        return text + rule + _CHECKS.format(limit=self.limit)

    def write_checks(self, name: str, rows: Sequence[Check]) -> Path:
        """Write a department's file, with a phone number that no job may read."""
        lines = ["id,street,age,sex,vaccinated,phone"]
        lines += [f"{person(who)},{','.join(map(str, rest))},1390000{who:04d}" for who, *rest in rows]
        path = self.folder / f"{name}-checks.csv"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    def _furnish(self, name: str) -> None:
        super()._furnish(name)
        if name in SOURCES:
            self.put_file(name, "checks", self.write_checks(name, checks(name)))

    def model(self, **changes: Any) -> JobSpec:
        """Return a logistic model of who is vaccinated; `params` among the changes are laid over."""
        roles = {Role(f"source-{n + 1}"): self.homes[name].name for n, name in enumerate(SOURCES)}
        roles[Role("aggregator")] = self.homes[ADDING].name
        params: dict[str, Any] = {
            "recipe": "logistic",
            "settings": {"clip": "2", "step": "2"},
            "features": [
                {"slot": "street", "codes": list(STREETS)},
                {"slot": "age", "edges": list(EDGES)},
            ],
            "label": {"slot": "vaccinated", "positive": ["1"]},
            "rounds": 8,
            "evaluate": {"every": 4, "bins": 16, "rho": "0.2"},
            "rho": "0.6",
            "persons_in": 1,
            "areas": "demo-city",
            **changes.pop("params", {}),
        }
        columns = {"street": "street", "age": "age", "vaccinated": "vaccinated"}
        inputs = tuple(
            JobInput(
                Role(f"source-{n + 1}"), Organisation(f"{name}.gz.example"), DatasetName("checks"), columns
            )
            for n, name in enumerate(SOURCES)
        )
        return self.spec(
            job_type="train/1", params=params, inputs=inputs, roles=roles, recipients=(), **changes
        )
