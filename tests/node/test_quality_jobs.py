"""The quality of four departments' tables through real nodes: what analyst, nodes and auditor see of it."""

import asyncio
import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from auditing import audited, findings
from simulator import BUREAU, DEPARTMENTS, World, answered, over, person, running

from audit.findings import Answer
from node.releases import decode_content, release_info
from protocols.channel import suites
from protocols.encoding import canonical_json
from protocols.ids import DatasetName, Organisation, Role
from protocols.wire import JobInput, JobSpec

pytestmark = pytest.mark.alone  # four whole nodes each time

SOURCES = ("police", "human-resources", "health", "housing")
AGGREGATOR = "statistics"
NAME = "欧阳测试"
COLUMNS = (
    {"slot": "id", "kind": "key"},
    {"slot": "sex", "kind": "code", "table": "gbt2261.1@2003"},
    {"slot": "ward", "kind": "code", "codes": ["a", "b"]},
    {"slot": "day", "kind": "date"},
    {"slot": "name", "kind": "text"},
)

_RULE = """[[rules]]
id = "Q1"
requesters = ["bureau"]
purposes = ["P-1"]
job_types = ["quality/1"]
recipients = ["{bureau}"]
roles = {roles}
approvals = 0
{more}"""

_VISITS = """[budgets.noise]
dataset = "visits"
notion = "zcdp"
limit = "1"
period = "calendar-quarter"
scope = "all-requesters"
[quotas.looks]
dataset = "visits"
counts = "queries"
limit = 5
period = "calendar-month"
scope = "all-requesters"
[datasets.visits]
source = "local:visits"
grade = "general-3"
personal = "sensitive"
unit = { column = "id", max_rows = 2 }
[datasets.visits.columns]
id = { type = "resident-id", use = ["join", "quality"] }
sex = { type = "code", use = ["group", "quality"] }
ward = { type = "enum", use = ["quality"], values = ["a", "b"] }
day = { type = "date", use = ["filter", "quality"] }
name = { type = "text", use = ["quality"] }
phone2 = { type = "text", use = ["carry"] }
"""


def visits(department: str) -> list[dict[str, str]]:
    """Eighty rows of a department: 2 of 3 with an identifier that holds, 1 of 4 without a name."""
    first, rows = 100 * SOURCES.index(department), []
    for n in range(80):
        key = person(first + n)
        wrong = key[:-1] + ("1" if key[-1] != "1" else "2")
        rows.append(
            {
                "id": wrong if n % 6 == 0 else "" if n % 6 == 3 else key,
                "sex": "1" if n % 5 else "男",
                "ward": "a" if n % 8 else "z",
                "day": "2026-05-01" if n % 10 else "2199-01-01",
                "name": "" if n % 4 == 0 else f"{NAME}{n}",
                "phone2": f"1380000{n:04d}",
            }
        )
    return rows


class QualityWorld(World):
    """Four departments with `visits`, a fifth that adds up; with `budget`, their rules want noise."""

    departments = (*DEPARTMENTS, "housing")
    budget = False

    def policy_of(self, name: str, **changes: Any) -> str:
        text = super().policy_of(name, **({"quorum": 0 if name == AGGREGATOR else 3} | changes))
        if name == AGGREGATOR:
            return text + _RULE.format(bureau=BUREAU, roles='["aggregator"]', more="")
        more = 'datasets = ["visits"]\ncolumns = ["id", "sex", "ward", "day", "name"]\npersons_in = 1\n'
        more += 'min_organisations = 3\nquotas = ["looks"]\n' + ('budget = "noise"\n' if self.budget else "")
        rule = _RULE.format(bureau=BUREAU, roles='["source", "key-holder"]', more=more)
        return text + rule + _VISITS

    def _furnish(self, name: str) -> None:
        super()._furnish(name)
        if name == AGGREGATOR:
            return
        path = self.folder / f"{name}-visits.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, visits(name)[0])
            writer.writeheader()
            writer.writerows(visits(name))
        self.put_file(name, "visits", path)

    def look(self, departments: tuple[str, ...] = SOURCES, **params: Any) -> JobSpec:
        """Return the question how good the departments' visits are."""
        roles = {Role(f"source-{n + 1}"): self.homes[name].name for n, name in enumerate(departments)}
        inputs = tuple(
            JobInput(
                role,
                Organisation(f"{name}.gz.example"),
                DatasetName("visits"),
                {column["slot"]: column["slot"] for column in params.get("columns", COLUMNS)},
            )
            for role, name in zip(roles, departments, strict=True)
        )
        asked = {
            "columns": list(COLUMNS),
            "key_holder": "source-2",
            "areas": "demo-city",
            "persons_in": 1,
            "unit_rows": 2,
        }
        return self.spec(
            job_type="quality/1",
            params=asked | params,
            inputs=inputs,
            roles={**roles, Role("aggregator"): self.homes[AGGREGATOR].name},
            recipients=(),
        )


@pytest.fixture(scope="module")
def exact(memory: Path) -> QualityWorld:
    return QualityWorld(memory / "exact")


def test_a_bureau_learns_of_four_departments_together_and_not_of_three_once_more(
    exact: QualityWorld, folder: Path
) -> None:
    world = exact.clone(folder / "world")
    spec = world.look()

    async def play() -> bytes:
        async with running(world) as (post, stations):
            job = post.submit(spec)
            task = await answered(post, job)
            assert {verdict.answer for verdict in task.verdicts.values()} == {"permit"}, task.verdicts
            task = await over(post, job)
            assert {end.state for end in task.ended.values()} == {"DONE"}, task.ended
            # With one department less, the difference would be that one's; the same again is the same.
            less = post.submit(world.look(SOURCES[:3]))
            verdicts = (await answered(post, less)).verdicts
            assert {verdicts[name].code for name in SOURCES[:3]} == {"differencing"}
            again = post.submit(world.look())
            assert {v.answer for v in (await answered(post, again)).verdicts.values()} == {"permit"}
            [release] = task.uploads
            frames = b"".join(frame for _, frame in post.frames)
            assert NAME.encode() not in frames
            for name in SOURCES:
                said = b"".join(canonical_json(entry.body) for entry in stations[name].entries(""))
                assert NAME.encode() not in said
                assert person(100).encode() not in said
            return suites.open_sealed(2, world.analyst_private, release_info(release, job), post.release(job))

    content = asyncio.run(play())
    table = decode_content(content)[0]
    rows = table.to_pylist()
    shown: Mapping[tuple[str, str, str, str], Any] = {
        (row["column"], row["part"], row["reason"], row["measure"]): row["value"]
        for row in rows
        if not row["withheld"]
    }
    true = [row for name in SOURCES for row in visits(name)]
    assert shown["", "", "", "rows"] == len(true) == 320
    without = sum(n % 6 in (0, 3) for n in range(80)) * 4
    missing, wrong = shown["id", "missing", "", "rows"], shown["id", "invalid", "", "rows"]
    assert abs(missing + wrong - without) < 10
    share = shown["id", "missing", "", "share"] + shown["id", "invalid", "", "share"]
    assert share == pytest.approx(without / 320, abs=0.02)
    assert shown["name", "missing", "", "rows"] == 80
    assert abs(shown["sex", "invalid", "", "rows"] - 64) < 5
    assert abs(shown["ward", "invalid", "", "rows"] - 40) < 5
    assert abs(shown["day", "invalid", "future", "rows"] - 32) < 5
    # No department's own number: of each of four, a quarter of these.
    own = {20.0, 80.0, 16.0, 13.0}
    assert not own & {shown["name", "missing", "", "rows"] / 2, shown["", "", "", "rows"] / 2}
    # What left is held against job and policy again, and its disclosure control is taken again.
    for name in SOURCES:
        checks = audited(world, name, opened={"table.arrow": content})
        assert findings(checks) == set(), name
    check = audited(world, "human-resources", opened={"table.arrow": content})["disclosure"]
    assert (check.answer, check.looked_at) == (Answer.HOLDS, 1)


def test_jobs_that_would_say_more_than_quality_are_refused_before_data_is_read(
    exact: QualityWorld, folder: Path
) -> None:
    world = exact.clone(folder / "world")
    looked = {column["slot"]: column for column in COLUMNS}
    closed = [{"slot": "phone2", "kind": "text"}]
    asks = {
        # A chosen list of values would count persons by them.
        "column-values": world.look(columns=[{**looked["ward"], "codes": ["a"]}]),
        "column-not-allowed": world.look(columns=closed),
        "no-budget": world.look(rho="0.1"),
        # The policies let a person have two.
        "unit-rows": world.look(unit_rows=1),
    }

    async def play() -> None:
        async with running(world) as (post, _):
            for code, spec in asks.items():
                job = post.submit(spec)
                verdicts = (await answered(post, job)).verdicts
                assert {verdicts[name].code for name in SOURCES} == {code}

    asyncio.run(play())


class Noisy(QualityWorld):
    """Whose rules have noise paid for."""

    budget = True


def test_with_a_budget_departments_want_noise_and_it_is_charged_and_asked_again(memory: Path) -> None:
    world = Noisy(memory / "noisy")

    async def play() -> None:
        async with running(world) as (post, _):
            refused = post.submit(world.look())
            verdicts = (await answered(post, refused)).verdicts
            assert {verdicts[name].code for name in SOURCES} == {"noise-required"}
            for columns in (COLUMNS, COLUMNS[:1]):  # another question about the same rows
                job = post.submit(world.look(rho="0.5", columns=list(columns), mode="mask"))
                await answered(post, job)
                task = await over(post, job)
                assert {end.state for end in task.ended.values()} == {"DONE"}, task.ended
            job = post.submit(world.look(rho="0.1"))
            verdicts = (await answered(post, job)).verdicts
            assert {verdicts[name].code for name in SOURCES} == {"budget-exceeded"}

    asyncio.run(play())
    assert [findings(audited(world, name)) for name in SOURCES] == [set()] * 4
