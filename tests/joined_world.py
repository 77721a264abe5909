"""A collaboration of six nodes: three with lists, and a matcher, a helper and a dealer with none.

Persons 40 to 239 are on all three lists. Where someone lives is known to the police alone, what someone earns
to human resources alone, what someone's illness costs to health alone.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from simulator import (
    BUREAU,
    Post,
    Station,
    World,
    answered,
    approve_all,
    over,
    person,
    policy_text,
    until,
)

from node.releases import release_info
from node.state import RunState
from protocols.channel import suites
from protocols.envelope import key_id
from protocols.ids import DatasetName, JobId, Organisation, Role
from protocols.wire import JobInput, JobSpec

SOURCES = ("police", "human-resources", "health")
NEUTRAL = {"matcher": "statistics", "helper": "archives", "dealer": "standards"}

EXACT, NOISY = "P-1", "P-2"
"""Purposes: of one rule each, since one that names a budget gives nothing without noise."""

LISTS = {"police": range(240), "human-resources": range(20, 260), "health": range(40, 280)}
JOINED = range(40, 240)

STREETS = ("S0", "S1", "S2")
BANDS = ("low", "middle", "high")

WAGE, BURDEN = 3500, 1000
"""Whoever earns no more, and whose costs are far above a tenth of that, is a lead: 36 persons."""

_PURPOSE = """[purposes."P-2"]
title = "统计"
legal_basis = "L-2"
valid_until = 2027-01-31
"""
_RULE = """[[rules]]
id = "{id}"
requesters = ["bureau"]
purposes = ["{purpose}"]
job_types = ["joined-table/1", "joined-moments/1"]
recipients = ["{bureau}"]
roles = {roles}
approvals = 0
{more}"""
_LIST = """[[rules]]
id = "J3"
requesters = ["bureau"]
purposes = ["P-1"]
job_types = ["joined-rule/1"]
recipients = ["health.gz.example"]
roles = {roles}
min_sources = 2
max_rows = 60
max_fraction = "0.50"
min_coverage = "1"
rate = {{ jobs = 50, per = "month" }}
{more}"""
_LIMITS = """[quotas.joins]
dataset = "records"
counts = "queries"
limit = {queries}
period = "calendar-month"
scope = "all-requesters"
[budgets.privacy]
dataset = "records"
notion = "zcdp"
limit = "{rho}"
period = "calendar-quarter"
scope = "all-requesters"
[datasets.records]
source = "local:records"
grade = "general-4"
personal = "sensitive"
unit = {{ column = "id", max_rows = 3 }}
[datasets.records.columns]
id = {{ type = "resident-id", use = ["join"] }}
seen = {{ type = "month", use = ["carry", "filter"] }}
{columns}[[negative_list]]
dataset = "records"
column = "phone"
reason = "负面清单 1"
"""
_COLUMNS = {
    "police": (
        'street = { type = "enum", use = ["group", "filter", "open-to-matcher"], '
        'values = ["S0", "S1", "S2"] }\n'
        'age = { type = "int", use = ["sum", "mean"], range = [0, 120] }\n'
    ),
    "human-resources": (
        'band = { type = "enum", use = ["group"], values = ["low", "middle", "high"] }\n'
        'wage = { type = "decimal", use = ["sum", "mean", "filter"], range = [0, 10000] }\n'
    ),
    "health": 'paid = { type = "decimal", use = ["sum", "mean", "filter"], range = [0, 2000] }\n',
}
_NAMES = {
    "police": ("street", "age"),
    "human-resources": ("band", "wage"),
    "health": ("paid",),
}


def street(n: int) -> str:
    """Return where a person lives."""
    return STREETS[n % 3]


def age(n: int) -> int:
    """Return how old a person is."""
    return 18 + n * 7 % 60


def band(n: int) -> str:
    """Return a person's wage band."""
    return BANDS[n * 5 % 7 % 3]


def wage(n: int) -> int:
    """Return what a person earns: more with age, but not only."""
    return 2000 + 10 * age(n) + n * 37 % 3000


def paid(n: int) -> int:
    """Return what a person's illness costs."""
    return 2 * age(n) + n * 53 % 800


COLUMNS = {"age": age, "wage": wage, "paid": paid}


def rows_of(name: str, n: int) -> list[str]:
    """Return the values of a person's row in a department's file."""
    return {
        "police": [street(n), str(age(n))],
        "human-resources": [band(n), f"{wage(n)}.00"],
        "health": [f"{paid(n)}.00"],
    }[name]


class JoinedWorld(World):
    """Limits as class attributes, for all three sources: questions a month, and ρ a quarter."""

    departments = (*SOURCES, *NEUTRAL.values())
    seats: Mapping[str, str] = {name: seat for seat, name in NEUTRAL.items()}
    queries = 20
    rho = "1"

    def policy_of(self, name: str, **changes: Any) -> str:
        """Return the policy with rules for joined jobs, before the tables of datasets that it ends with."""
        if name in SOURCES:
            return self._source_policy(super().policy_of(name, **{"quorum": 4} | changes), name)
        staff, asking = self.staff[name], key_id(self.analyst.public_key)
        officers = (key_id(staff.dpo.public_key), key_id(staff.owner.public_key))
        text = policy_text("statistics", asking, *officers, **changes)
        text = text.replace("statistics.gz.example", f"{name}.gz.example") + _PURPOSE
        roles = f'["{self.seats[name]}"]'
        for rule, purpose in (("J1", EXACT), ("J2", NOISY)):
            text += _RULE.format(id=rule, purpose=purpose, bureau=BUREAU, roles=roles, more="")
        return text + _LIST.format(roles=roles, more="approvals = 0\n")

    def _source_policy(self, text: str, name: str) -> str:
        columns = ", ".join(f'"{each}"' for each in ("id", "seen", *_NAMES[name]))
        gives = f'datasets = ["records"]\ncolumns = [{columns}]\nquotas = ["joins"]\n'
        roles = '["source", "key-holder"]'
        text += _PURPOSE
        text += _RULE.format(id="J1", purpose=EXACT, bureau=BUREAU, roles=roles, more=gives)
        more = gives + 'budget = "privacy"\n'
        text += _RULE.format(id="J2", purpose=NOISY, bureau=BUREAU, roles=roles, more=more)
        kinds = '["source", "key-holder", "recipient"]'
        approved = gives + 'approvals = 2\napprovers = ["dpo", "owner"]\n'
        text += _LIST.format(roles=kinds, more=approved)
        return text + _LIMITS.format(queries=self.queries, rho=self.rho, columns=_COLUMNS[name])

    def write_records(self, name: str, people: Sequence[int]) -> None:
        """Write a department's file, with a phone number that no job may read, and catalogue it."""
        lines = [",".join(["id", *_NAMES[name], "seen", "phone"])]
        lines += [
            ",".join([person(n), *rows_of(name, n), f"2026-{1 + n % 9:02d}", f"1390000{n:04d}"])
            for n in people
        ]
        path = self.folder / f"{name}-records.csv"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        self.put_file(name, "records", path)

    def _furnish(self, name: str) -> None:
        super()._furnish(name)
        if name in SOURCES:
            self.write_records(name, LISTS[name])

    # -- jobs ------------------------------------------------------------------------------------------------

    def joined(
        self,
        job_type: str,
        sources: Mapping[str, Mapping[str, str]],
        params: Mapping[str, Any],
        *,
        neutral: Sequence[str] = tuple(NEUTRAL),
        **changes: Any,
    ) -> JobSpec:
        """Return a joined job.

        Args:
            job_type: its name.
            sources: departments in order, each with its slots and their columns.
            params: without the area table.
            neutral: which of the seats without data there are.
            changes: of other fields.
        """
        roles = {Role(f"source-{i + 1}"): self.homes[name].name for i, name in enumerate(sources)}
        roles |= {Role(seat): self.homes[NEUTRAL[seat]].name for seat in neutral}
        inputs = tuple(
            JobInput(
                Role(f"source-{i + 1}"),
                Organisation(f"{name}.gz.example"),
                DatasetName("records"),
                {"key": "id", **slots},
            )
            for i, (name, slots) in enumerate(sources.items())
        )
        given = {"recipients": ()} | changes
        noisy = not {"rho", "epsilon"}.isdisjoint(params)
        if noisy:
            given = {"purpose": NOISY, "legal_basis": "L-2"} | given
        params = {"areas": "demo-city", **params}
        return self.spec(job_type=job_type, params=params, inputs=inputs, roles=roles, **given)

    def table(self, *, hidden: bool = False, **params: Any) -> JobSpec:
        """Return a table of joined persons by street and wage band, the street open or both hidden."""
        axes = [
            {"source": "source-1", "slot": "street", "values": list(STREETS)},
            {"source": "source-2", "slot": "band", "values": list(BANDS)},
        ]
        if not hidden:
            axes[0]["open"] = "yes"
        sources = {"police": {"street": "street"}, "human-resources": {"band": "band"}}
        seats = tuple(NEUTRAL) if hidden else ("matcher", "helper")
        return self.joined("joined-table/1", sources, {"axes": axes, **params}, neutral=seats)

    def moments(self, **params: Any) -> JobSpec:
        """Return the moments of age, wage and costs of those on all three lists, and a regression."""
        columns = [
            {"source": "source-1", "slot": "age", "low": "17", "high": "78"},
            {"source": "source-2", "slot": "wage", "low": "2200", "high": "5750", "decimals": 2},
            {"source": "source-3", "slot": "paid", "low": "60", "high": "950", "decimals": 2},
        ]
        sources = {
            "police": {"age": "age"},
            "human-resources": {"wage": "wage"},
            "health": {"paid": "paid"},
        }
        return self.joined("joined-moments/1", sources, {"columns": columns, **params})

    def leads(self) -> JobSpec:
        """Return a rule over wage and costs; whom it is true of, health receives with the police's street."""
        columns = [
            {"source": "source-2", "slot": "wage", "low": "0", "high": "10000", "decimals": 2},
            {"source": "source-3", "slot": "paid", "low": "0", "high": "2000", "decimals": 2},
        ]
        rule = [
            {"weights": {"wage": 1}, "at_most": str(WAGE)},
            {"weights": {"paid": 10, "wage": -1}, "at_least": str(BURDEN)},
        ]
        sources = {
            "police": {"street": "street", "last_seen": "seen"},
            "human-resources": {"wage": "wage"},
            "health": {"paid": "paid"},
        }
        params = {
            "join": {"source-1": "on", "source-2": "on", "source-3": "on"},
            "columns": columns,
            "rule": rule,
            "records_from": "source-1",
            "recipient": "source-3",
        }
        recipients = (Organisation("health.gz.example"),)
        return self.joined("joined-rule/1", sources, params, recipients=recipients)


class Annexed(JoinedWorld):
    """The archives, which help, have a part that would deal, and the police one that would help."""

    seats = JoinedWorld.seats | {"lab.archives": "dealer", "lab.police": "helper"}
    departments = (*JoinedWorld.departments, "lab.archives", "lab.police")


def plain_leads() -> set[str]:
    """Return by hand the keys of those whom the rule of `leads` is true of."""
    return {f"RIC:{person(n)}" for n in JOINED if wage(n) <= WAGE and 10 * paid(n) - wage(n) >= BURDEN}


def plain_table(joined: Sequence[int]) -> dict[tuple[str, str], int]:
    """Return by hand how many of these persons live where and earn what."""
    found = dict.fromkeys(((s, b) for s in STREETS for b in BANDS), 0)
    for n in joined:
        found[street(n), band(n)] += 1
    return found


def spellings(identifier: str) -> list[bytes]:
    """Return how an identifier could slip out."""
    raw = identifier.encode()
    plain = [raw, identifier.lower().encode(), raw.hex().encode()]
    for key in (raw, b"RIC:" + raw):
        for name in ("sha256", "md5", "sm3"):
            digest = hashlib.new(name, key).digest()
            plain += [digest, digest.hex().encode(), digest[:16]]
    return plain


def replaced(spec: JobSpec, seat: str, node: Any) -> JobSpec:
    """Return the job with another node in a seat."""
    return replace(spec, roles={**spec.roles, Role(seat): node})


def departments_of(spec: JobSpec) -> list[str]:
    """Return who takes part, by short name."""
    return [node.partition(".gz.example")[0] for node in spec.roles.values()]


# -- a job's way ---------------------------------------------------------------------------------------------


async def done(post: Post, stations: dict[str, Station], spec: JobSpec) -> JobId:
    """Submit a job, have it approved, and wait until it is done everywhere."""
    job = post.submit(spec)
    task = await answered(post, job)
    refused = {name: v.code for name, v in task.verdicts.items() if v.answer == "refuse"}
    assert not refused, refused
    await approve_all(post, stations, job)
    task = await over(post, job)
    assert {end.state for end in task.ended.values()} == {"DONE"}, task.ended or task.verdicts
    for name in post.participants(task):
        await until(lambda name=name: stations[name].run(job) is RunState.DONE)  # type: ignore[misc]
    return job


def opened(world: JoinedWorld, post: Post, job: JobId) -> bytes:
    """Open the one release as the analyst does."""
    [release] = post.tasks[job].uploads
    return suites.open_sealed(2, world.analyst_private, release_info(release, job), post.release(job))


# -- what must not be found ----------------------------------------------------------------------------------

PLANTED = [spelling for n in (0, 41, 100, 239, 250, 279) for spelling in spellings(person(n))]


def found_in(data: bytes) -> bool:
    """Tell whether a planted identifier stands in some bytes."""
    return any(spelling in data for spelling in PLANTED)


def scan(world: JoinedWorld, post: Post, record: Path) -> None:
    """Look for planted identifiers wherever something is written or sent; lists themselves lie elsewhere."""
    assert not found_in(b"".join(post.control))
    assert not found_in(b"".join(frame for _, frame in post.frames))
    bodies = [path for path in record.rglob("*") if path.is_file()]
    assert len(bodies) >= 8
    homes = [path for home in world.homes.values() for path in home.path.rglob("*") if path.is_file()]
    for path in (*bodies, *homes):
        assert not found_in(path.read_bytes()), path.name
