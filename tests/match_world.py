"""A collaboration of which two departments also keep who is married, and compare that."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from match_case import MARITAL, Row
from simulator import Post, Station, World, person, until

from node.releases import kept, open_release
from node.state import RunState
from protocols.envelope import decode_envelope
from protocols.ids import DatasetName, JobId, Organisation
from protocols.jobs.job_type import SUSPECTED
from protocols.jobs.match import RECEIVER, SENDER
from protocols.wire import JobInput, JobSpec, ReleaseNote

RECEIVES, SENDS = "health", "police"
PAIR = (RECEIVES, SENDS)
VALUES = ("10", "20", "21", "22", "23", "30", "40")

_STATUS = """[[rules]]
id = "R2"
requesters = ["bureau"]
purposes = ["P-1"]
job_types = ["match/1"]
recipients = ["{receives}.gz.example"]
roles = ["{kind}"]
datasets = ["status"]
columns = ["id", "marital", "seen"{opened}]
min_sources = 2
max_rows = {max_rows}
max_fraction = "{max_fraction}"
min_coverage = "0.50"
quotas = ["asked", "listed"]
rate = {{ jobs = 50, per = "month" }}
approvals = 2
approvers = ["dpo", "owner"]
[quotas.asked]
dataset = "status"
counts = "queries"
limit = {queries}
period = "calendar-month"
scope = "all-requesters"
[quotas.listed]
dataset = "status"
counts = "rows"
limit = {rows}
period = "calendar-month"
scope = "all-requesters"
[datasets.status]
source = "local:status"
grade = "general-4"
personal = "sensitive"
[datasets.status.columns]
id = {{ type = "resident-id", use = ["join"] }}
marital = {{ type = "enum", use = ["carry"], values = {values} }}
seen = {{ type = "month", use = ["filter"] }}
[[negative_list]]
dataset = "status"
column = "phone"
reason = "负面清单 2"
"""


class MatchWorld(World):
    """Two departments with `status`; limits as class attributes, for both policies."""

    max_rows = 1000
    max_fraction = "1"
    queries = 20
    rows = 2000
    values: Sequence[str] = VALUES
    opened = ""

    def policy_of(self, name: str, **changes: Any) -> str:
        """Return the policy with a rule for matches, before the tables of datasets that it ends with."""
        text = super().policy_of(name, **changes)
        if name not in PAIR:
            return text
        return text + _STATUS.format(
            receives=RECEIVES,
            kind="recipient" if name == RECEIVES else "source",
            opened=self.opened,
            max_rows=self.max_rows,
            max_fraction=self.max_fraction,
            queries=self.queries,
            rows=self.rows,
            values=json.dumps(list(self.values)),
        )

    def write_status(self, name: str, rows: Sequence[Row]) -> Path:
        """Write a department's file, with a phone number that no job may read."""
        lines = ["id,marital,seen,phone"]
        lines += [f"{person(who)},{value},{seen},1390000{who:04d}" for who, value, seen in rows]
        path = self.folder / f"{name}-status.csv"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    def list_status(self, name: str, rows: Sequence[Row]) -> None:
        """Write a department's file and put it into its catalogue as it is."""
        self.catalogue(name, self.write_status(name, rows))

    def catalogue(self, name: str, path: Path) -> None:
        """Put a file into a department's catalogue."""
        self.put_file(name, "status", path)

    def published(self, name: str, keys: int) -> None:
        """Let a department's catalogue say that its list has so many keys."""
        state = self.open(name)
        [listed] = [known for known in state.datasets() if known.name == "status"]
        with state.change() as change:
            change.put_dataset(replace(listed, published_keys=keys))
        state.close()

    def _furnish(self, name: str) -> None:
        super()._furnish(name)
        if name in PAIR:
            self.list_status(name, STATUS[name])

    def match(self, *, receiver_keys: int = 200, columns: Any = None, **changes: Any) -> JobSpec:
        """Return a match of both departments' status; `values` makes it one of values that differ."""
        params: dict[str, Any] = {"receiver_keys": receiver_keys, "areas": "demo-city"}
        slots = {"key": "id"}
        if "values" in changes:
            params |= {"compare": "differs", "values": changes.pop("values")}
            slots |= {"value": "marital", "last_seen": "seen"}
        roles = {RECEIVER: self.homes[RECEIVES].name, SENDER: self.homes[SENDS].name}
        inputs = tuple(
            JobInput(role, Organisation(f"{name}.gz.example"), DatasetName("status"), columns or slots)
            for role, name in ((RECEIVER, RECEIVES), (SENDER, SENDS))
        )
        recipients = (Organisation(f"{RECEIVES}.gz.example"),)
        given = {"params": params, "inputs": inputs, "roles": roles, "recipients": recipients} | changes
        return self.spec(job_type="match/1", **given)


def _status(first: int, last: int, step: int) -> list[Row]:
    return [(n, VALUES[(n // step) % len(VALUES)], f"2026-0{1 + n % 9}") for n in range(first, last)]


STATUS = {RECEIVES: _status(0, 120, 1), SENDS: _status(60, 260, 2)}
"""Persons 60 to 119 are on both lists, most with another status."""

_GROUP = {value: number for number, group in enumerate(MARITAL) for value in group}


def held(receiver: Sequence[Row], sender: Sequence[Row]) -> set[str]:
    """Return by hand the keys on both lists."""
    return {f"RIC:{person(n)}" for n in {row[0] for row in receiver} & {row[0] for row in sender}}


def differing(receiver: Sequence[Row], sender: Sequence[Row]) -> set[str]:
    """Return by hand the keys on both lists with values of two groups; a person has one row."""
    theirs = {n: _GROUP[value] for n, value, _ in sender if value in _GROUP}
    ours = {n: _GROUP[value] for n, value, _ in receiver if value in _GROUP}
    return {f"RIC:{person(n)}" for n, group in ours.items() if n in theirs and theirs[n] != group}


async def finished(post: Post, stations: dict[str, Station], job: JobId) -> list[dict[str, Any]]:
    """Wait until the job is done at both nodes and return the records as the receiver opens them."""
    task = post.tasks[job]
    await until(lambda: set(task.ended) == set(PAIR))
    assert {end.state for end in task.ended.values()} == {"DONE"}, task.ended
    await until(lambda: all(stations[name].run(job) is RunState.DONE for name in PAIR))
    return opened(stations[RECEIVES], job)


def opened(station: Station, job: JobId) -> list[dict[str, Any]]:
    """Return the records of a job as the department that received them opens them."""
    [records] = station.state.outputs(job)
    note = ReleaseNote.decode(decode_envelope(records.note).payload)
    assert note.statement == SUSPECTED
    table, about = open_release(kept(station.home.releases, records), note, station.home.recipient_private())
    assert about["facts"]["rows"] == table.num_rows
    assert about["statement"] == SUSPECTED
    return table.to_pylist()
