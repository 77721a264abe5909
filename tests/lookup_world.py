"""A collaboration of which one department answers look-ups about its residents, and two ask."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from session_case import ask
from simulator import Post, Station, World, approve_all, new_signer, person, until

from protocols.channel import suites
from protocols.envelope import JOB, KeySigner, key_id
from protocols.ids import DatasetName, JobId, Organisation
from protocols.jobs.lookup import CLERK, OWNER
from protocols.wire import JobInput, JobSpec, Roster, RosterAnalyst

OWNS = "human-resources"
CLERKS = ("police", "health")
NAMES = (OWNS, *CLERKS)
STREETS = ("990101001", "990101002")

PURPOSES = dict(zip(CLERKS, ("P-1", "P-2"), strict=True))
"""Of one purpose, records go to one recipient."""

_WINDOW = """[requesters.window-{clerk}]
organisation = "{clerk}.gz.example"
keys = ["{key}"]
"""
_ANOTHER = """[purposes."P-2"]
title = "核验"
legal_basis = "L-1"
valid_until = 2027-01-31
"""
_OWNS = """[[rules]]
id = "L-{clerk}"
requesters = ["window-{clerk}"]
purposes = ["{purpose}"]
job_types = ["lookup/1"]
recipients = ["{clerk}.gz.example"]
roles = ["source"]
datasets = ["residents"]
columns = ["id", "street", "status", "seen"]
min_sources = 1
max_rows = 500
rate = {{ jobs = 50, per = "month" }}
max_fraction = "1"
min_coverage = "1"
max_per_minute = {per_minute}
quotas = ["daily"]
approvals = 2
approvers = ["dpo", "owner"]
"""
_RESIDENTS = """[quotas.daily]
dataset = "residents"
counts = "rows"
limit = {daily}
period = "day"
scope = "per-requester"
[datasets.residents]
source = "local:residents"
grade = "general-4"
personal = "sensitive"
[datasets.residents.columns]
id = {{ type = "resident-id", use = ["join"] }}
street = {{ type = "enum", use = ["filter"], values = ["990101001", "990101002"] }}
status = {{ type = "text", use = ["carry"] }}
seen = {{ type = "month", use = ["carry", "filter"] }}
"""
_ASKS = """[[rules]]
id = "L-1"
requesters = ["window-{clerk}"]
purposes = ["{purpose}"]
job_types = ["lookup/1"]
recipients = ["{clerk}.gz.example"]
roles = ["recipient"]
min_sources = 1
max_rows = 500
rate = {{ jobs = 50, per = "month" }}
max_fraction = "1"
min_coverage = "1"
approvals = 2
approvers = ["dpo", "owner"]
"""

Row = tuple[int, str, str, str]
"""Person, street, status, month last seen."""


def residents(people: Sequence[int] = range(40)) -> list[Row]:
    """Return residents, every other one of the first street."""
    return [(n, STREETS[n % 2], f"在册-{n % 3}", f"2026-0{1 + n % 9}") for n in people]


class LookupWorld(World):
    """Limits as class attributes: look-ups a day and a minute of each who asks. Each clerk has an analyst."""

    daily = 1000
    per_minute = 500

    def __init__(self, folder: Path, **more: Any) -> None:
        """Make everything, the analysts of both clerks first."""
        self.windows = {clerk: new_signer() for clerk in CLERKS}
        super().__init__(folder, **more)

    def make_roster(self, version: int = 1, previous: Any = None, **changes: Any) -> Roster:
        """Return the roster with an analyst of each clerk's organisation."""
        roster = super().make_roster(version, previous, **changes)
        analysts = [
            RosterAnalyst(
                f"window-{clerk}",
                Organisation(f"{clerk}.gz.example"),
                signer.public_key,
                suites.public_key(self.suite, suites.new_private_key(self.suite, secrets.token_bytes)),
            )
            for clerk, signer in self.windows.items()
        ]
        return replace(roster, analysts=(*roster.analysts, *analysts))

    def sign_job(self, spec: JobSpec, signer: KeySigner | None = None, kind: str = JOB) -> bytes:
        """Sign as whoever the job says asks."""
        asking = {key_id(each.public_key): each for each in self.windows.values()}
        return super().sign_job(spec, signer or asking.get(spec.requester), kind)

    def policy_of(self, name: str, **changes: Any) -> str:
        """Return the policy with rules for look-ups, before the tables of datasets that it ends with."""
        text = super().policy_of(name, **changes)
        if name not in NAMES:
            return text
        asks = CLERKS if name == OWNS else (name,)
        text += _ANOTHER
        for clerk in asks:
            text += _WINDOW.format(clerk=clerk, key=key_id(self.windows[clerk].public_key))
        if name in CLERKS:
            return text + _ASKS.format(clerk=name, purpose=PURPOSES[name])
        rules = [
            _OWNS.format(clerk=clerk, purpose=PURPOSES[clerk], per_minute=self.per_minute) for clerk in CLERKS
        ]
        return text + "".join(rules) + _RESIDENTS.format(daily=self.daily)

    def list_residents(self, rows: Sequence[Row]) -> None:
        """Write the owner's file, with a phone number that no job may read, and put it into the catalogue."""
        lines = ["id,street,status,seen,phone"]
        lines += [
            f"{person(who)},{street},{status},{seen},1390000{who:04d}" for who, street, status, seen in rows
        ]
        path = self.folder / "residents.csv"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        self.put_file(OWNS, "residents", path)

    def _furnish(self, name: str) -> None:
        super()._furnish(name)
        if name == OWNS:
            self.list_residents(residents())

    def lookup(self, clerk: str = CLERKS[0], **params: Any) -> JobSpec:
        """Return a session of a clerk about residents of the first street."""
        given = {
            "lookups": 100,
            "session_s": 3000,
            "scope": {"street": STREETS[0]},
            "fields": ["status", "seen"],
            "areas": "demo-city",
        } | params
        columns = {"key": "id", "street": "street", "status": "status", "seen": "seen"}
        own = JobInput(OWNER, Organisation(f"{OWNS}.gz.example"), DatasetName("residents"), columns)
        return self.spec(
            job_type="lookup/1",
            purpose=PURPOSES[clerk],
            params=given,
            inputs=(own,),
            roles={OWNER: self.homes[OWNS].name, CLERK: self.homes[clerk].name},
            recipients=(Organisation(f"{clerk}.gz.example"),),
            requester=key_id(self.windows[clerk].public_key),
        )


async def open_one(post: Post, stations: Mapping[str, Station], spec: JobSpec) -> JobId:
    """Have a session opened, and wait until its table is there and people can ask."""
    job = post.submit(spec)
    await approve_all(post, stations, job)
    task = post.tasks[job]
    assert "refuse" not in {verdict.answer for verdict in task.verdicts.values()}, task.verdicts
    [clerk] = [s for s in stations.values() if s.home.name == spec.roles[CLERK]]
    await until(lambda: bool(task.ended) or any(e.job == job for e in clerk.entries("table.received")))
    assert not task.ended, task.ended
    return job


async def found(station: Station, job: str, *people: int) -> list[dict[str, str] | None]:
    """Return what is found about persons."""
    said: list[dict[str, str] | None] = (await ask(station, job, *map(person, people)))["rows"]
    return said
