"""A collaboration whose departments count how many persons their lists have in common."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from simulator import BUREAU, World

from node.releases import decode_content, release_info
from protocols.channel import suites
from protocols.ids import DatasetName, JobId, Organisation, Role
from protocols.wire import JobInput, JobSpec

MATCHER = "statistics"

_RULE = """[[rules]]
id = "R2"
requesters = ["bureau"]
purposes = ["P-1"]
job_types = ["overlap/1"]
recipients = ["{bureau}"]
roles = {roles}
approvals = 0
{more}"""

_BUDGET = """[budgets.overlaps]
dataset = "people"
notion = "approximate-dp"
limit = "{limit}"
delta = "1e-8"
period = "calendar-quarter"
scope = "{scope}"
"""


class OverlapWorld(World):
    """Three departments with `people`, a fourth that may match them; every overlap is paid from a budget."""

    limit = "1.6"
    scope = "per-pair"

    def policy_of(self, name: str, **changes: Any) -> str:
        """Return the policy with a rule for overlaps, before the tables of datasets that it ends with."""
        text = super().policy_of(name, **changes)
        if name == MATCHER:
            return text + _RULE.format(bureau=BUREAU, roles='["matcher"]', more="")
        more = 'datasets = ["people"]\ncolumns = ["id"]\nbudget = "overlaps"\n'
        rule = _RULE.format(bureau=BUREAU, roles='["source", "key-holder"]', more=more)
        unit = '[datasets.people]\nunit = { column = "id", max_rows = 3 }\n'
        budget = _BUDGET.format(limit=self.limit, scope=self.scope)
        return text.replace("[datasets.people]\n", unit) + rule + budget

    def overlap(self, *departments: str, matched: bool = False, **changes: Any) -> JobSpec:
        """Return a question about the lists of these departments, the first the one that counts.

        `params` given among the changes are laid over the usual ones; None takes one away.
        """
        roles = {Role(f"source-{n + 1}"): self.homes[name].name for n, name in enumerate(departments)}
        params: dict[str, Any] = {"epsilon": "0.5", "areas": "demo-city"}
        if matched:
            roles[Role("matcher")] = self.homes[MATCHER].name
        else:
            params["delta"] = "1/1000000000"
        params = {k: v for k, v in {**params, **changes.pop("params", {})}.items() if v is not None}
        inputs = tuple(
            JobInput(
                Role(f"source-{n + 1}"),
                Organisation(f"{name}.gz.example"),
                DatasetName("people"),
                {"key": "id"},
            )
            for n, name in enumerate(departments)
        )
        spec = self.spec(job_type="overlap/1", params=params, inputs=inputs, roles=roles, recipients=())
        return replace(spec, **changes)

    def opened(self, post: Any, job: JobId) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Open the one release as the analyst does: its rows, and the facts beside them."""
        [opened] = self.release_of(post, job).values()
        table, about = decode_content(opened)
        return table.to_pylist(), about["facts"]

    def release_of(self, post: Any, job: JobId) -> dict[str, bytes]:
        """Open the one release as the analyst does: its file's name → content."""
        [release] = post.tasks[job].uploads
        opened = suites.open_sealed(2, self.analyst_private, release_info(release, job), post.release(job))
        return {"overlap.arrow": opened}

    def clone(self, folder: Path) -> "OverlapWorld":
        """Return a copy of its own kind."""
        other = super().clone(folder)
        assert isinstance(other, OverlapWorld)
        return other
