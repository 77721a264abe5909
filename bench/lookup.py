"""Look-ups whole: two nodes, their coordinator and both journals, asked at the counter as commands ask.

`p99` is of single look-ups at 50 a second, whether the last one is answered or not: from the moment when each
is due until its answer is read at the socket, against a table of so many persons; both nodes' entries are
durable by then. `batch` is what a list gets beside the same group operations done bare, on all cores, by one
process that has nothing else to do. `build` is a table made from nothing, shelf and sealing included, beside
hashing and raising the same keys.
"""

import asyncio
import itertools
import json
import secrets
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from bench.rig.lists import COLUMN, write_lists
from bench.rig.turns import take_turns
from bench.rows import Results, Row
from demo.collaboration import Collaboration, Department
from demo.processes import Children
from demo.run import await_questions
from node.asking import Batch, Wish
from node.counter import Caller, socket_path
from node.home import Home
from node.shelf import DiskShelf
from protocols.errors import MinshuError
from protocols.ids import Role
from protocols.lookup.build import Build
from protocols.lookup.inputs import LookupList, LookupListBuilder
from protocols.lookup.plan import Lookup
from protocols.psi import group
from protocols.psi.oprf import Mode

if TYPE_CHECKING:
    from coordinator.client.sdk import Job

OWNER: Final = Department("civil-affairs", "民政 civil affairs", {"residents": "residents"})
CLERK: Final = Department("street-office", "街道 street office", asks=True)

SIZES: Final = {"1e6": 1_000_000}
LONG_SIZES: Final = {"1e7": 10_000_000}
BUILT: Final = 200_000
PER_SECOND: Final = 50
LOOKUPS: Final = 1_500
LISTED: Final = 16_384
CONNECTIONS: Final = 32
WARM: Final = 100
TURNS: Final = 3
READY_S: Final = 3_000.0
_POINTS: Final = 8_192
_BATCH_ROWS: Final = 65_536

_COMMON: Final = """schema = "minshu-policy/1"
policy_id = "{node}"
version = 1
not_before = 2026-12-01T00:00:00+08:00
expires = 2027-03-01T00:00:00+08:00
timezone = "Asia/Shanghai"
controller = "某市某局数据科"
[defaults]
min_group_size = 10
max_runtime_s = 7200
release_requires = "cosigned"
[requesters.window]
organisation = "street-office.gz.example"
keys = ["sha256:{a}"]
[purposes.P-1]
title = "窗口办事核验"
legal_basis = "DPIA-1"
valid_until = 2027-02-28
[approvers.dpo]
keys = ["sha256:{d}"]
[approvers.owner]
keys = ["sha256:{e}"]
[retention]
journal_days = 1095
release_days = 30
intermediate = "job-end"
[[rules]]
id = "R1"
requesters = ["window"]
purposes = ["P-1"]
job_types = ["lookup/1"]
recipients = ["street-office.gz.example"]
min_sources = 1
max_rows = 1000000
max_fraction = "1"
min_coverage = "1"
rate = {{ jobs = 10, per = "day" }}
approvals = 2
approvers = ["dpo", "owner"]
"""
_OWNS: Final = """max_per_minute = 1000000
roles = ["source"]
datasets = ["residents"]
columns = ["resident_id", "status"]
quotas = ["lookups"]
[quotas.lookups]
dataset = "residents"
counts = "rows"
limit = 2000000
period = "day"
scope = "per-requester"
[datasets.residents]
source = "local:residents"
grade = "general-4"
personal = "sensitive"
[datasets.residents.columns]
resident_id = { type = "resident-id", use = ["join"] }
status = { type = "enum", use = ["carry"], values = ["在册", "迁出"] }
"""
_ASKS: Final = 'roles = ["recipient"]\n'

_JOB: Final = f"""job_type = "lookup/1"
purpose = "P-1"
legal_basis = "DPIA-1"
expected_use = "窗口办事核验, 群众不必再填"
collaboration = "gz.example"
recipients = ["{CLERK.organisation}"]
valid_hours = 2
[params]
lookups = 500000
session_s = 7000
fields = ["status"]
areas = "demo-city"
[roles]
owner = "{OWNER.node}"
clerk = "{CLERK.node}"
[[inputs]]
role = "owner"
dataset = "residents"
columns = {{ key = "{COLUMN}", status = "status" }}
"""


def measure(results: Results, *, long: bool) -> None:
    """Measure `build`, then `p99` against each table, and `batch` against the first."""
    if not long and not results.has("build"):
        with tempfile.TemporaryDirectory(prefix="minshu-bench-") as folder:
            ours, raw = built(Path(folder))
        results.add(Row("build", ours, "rows/s", "libsodium: hash to group, one exponentiation", raw))
    for name, size in (LONG_SIZES if long else SIZES).items():
        if results.has(f"p99 {name}"):
            continue
        with session(size) as open_one:
            results.add(Row(f"p99 {name}", asyncio.run(open_one.p99_ms()), "ms"))
            if not long:
                rate, raw = take_turns(open_one.batch_rate, lambda: raw_lookups(LISTED), TURNS)
                what = "libsodium: the same group operations"
                results.add(Row("batch", rate, "look-ups/s", what, raw))


# -- one table, made in this process -------------------------------------------------------------------------


def built(folder: Path) -> tuple[float, float]:
    """Return rows a second of a table made from nothing, and of the group operations alone."""
    people = _list(_identifiers(folder, BUILT))
    keys: list[bytes] = people.keys.tolist()
    shelves = itertools.count()

    def ours() -> float:
        lookup = Lookup(
            owner=Role("owner"),
            clerk=Role("clerk"),
            table="0" * 32,
            dataset="residents",
            mode=Mode.VOPRF,
            fields=("status",),
            rows=BUILT,
            lookups=1,
            per_minute=None,
            session_s=60,
            day=date(2026, 12, 1),
        )
        started = time.perf_counter()
        shelf = DiskShelf(folder / f"shelf-{next(shelves)}")
        build = Build(lookup, people, shelf, secrets.token_bytes, b"")
        while not build.ready:
            build.step()
        build.settle()
        if not sum(len(body) for body in build.rows()):
            raise RuntimeError("the table is empty")
        return BUILT / (time.perf_counter() - started)

    def raw() -> float:
        key = group.random_scalar(secrets.token_bytes)
        started = time.perf_counter()
        for at in range(0, BUILT, _POINTS):
            group.power(group.hash_to_group(keys[at : at + _POINTS], b"minshu/bench"), key)
        return BUILT / (time.perf_counter() - started)

    return take_turns(ours, raw, TURNS)


def _identifiers(folder: Path, size: int) -> list[str]:
    return write_lists(folder, size).receiver.read_text("ascii").split()[1:]


def _list(identifiers: Sequence[str]) -> LookupList:
    import pyarrow as pa

    from protocols.identifiers import area_table

    builder = LookupListBuilder(("status",), {}, as_of=date(2026, 12, 1), areas=area_table("demo-city"))
    for at in range(0, len(identifiers), _BATCH_ROWS):
        part = identifiers[at : at + _BATCH_ROWS]
        builder.add({"key": pa.array(part), "status": pa.array(["在册"] * len(part))})
    return builder.finish()


def raw_lookups(count: int) -> float:
    """Return look-ups a second if nothing but their group operations had to be done, on all cores.

    Of each: hash to group, blind, evaluate, unblind; and of the proof, one exponentiation that makes the
    sum of all elements and two that make both sums again.
    """
    keys = [secrets.token_bytes(22) for _ in range(_POINTS)]
    drawn = b"".join(group.random_scalar(secrets.token_bytes) for _ in keys)
    blinds = np.frombuffer(drawn, dtype=np.uint8).reshape(_POINTS, -1)
    key = group.random_scalar(secrets.token_bytes)
    started = time.perf_counter()
    for _ in range(count // _POINTS):
        blinded = group.power_each(group.hash_to_group(keys, b"minshu/bench"), blinds)
        evaluated = group.power(blinded, key)
        group.power_each(evaluated, blinds)
        for sums in (blinded, blinded, evaluated):
            group.power_each(sums, blinds)
    return count / (time.perf_counter() - started)


# -- two nodes and their coordinator -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OpenSession:
    """A session that people can ask in: at which home, of which job, and who is in the table."""

    home: Home
    job: str
    people: Sequence[str]

    async def p99_ms(self) -> float:
        """Return the 99th percentile of single look-ups at `PER_SECOND`, in ms.

        Raises:
            RuntimeError: an answer was not the right one.
        """
        free: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
        for _ in range(CONNECTIONS):
            free.put_nowait(await asyncio.open_unix_connection(socket_path(self.home)))
        clock = asyncio.get_running_loop().time
        # Every fourth is nobody's in the table.
        drawn = enumerate(self._draw(LOOKUPS + WARM))
        asked = [(_nobody(who), False) if n % 4 == 3 else (who, True) for n, who in drawn]

        async def one(due: float, key: str, *, there: bool) -> float:
            await asyncio.sleep(max(0.0, due - clock()))
            reader, writer = line = await free.get()
            request = {"do": "ask", "id": 1, "job": self.job, "keys": [key]}
            writer.write(json.dumps(request).encode() + b"\n")
            said = json.loads(await reader.readline())
            took = clock() - due
            free.put_nowait(line)
            if [row is not None for row in said.get("rows", [])] != [there]:
                raise RuntimeError(f"a wrong answer: {said.get('error', {}).get('code', 'rows')}")
            return took

        begin = clock() + 1.0
        times = await asyncio.gather(
            *(one(begin + n / PER_SECOND, key, there=there) for n, (key, there) in enumerate(asked))
        )
        while not free.empty():
            free.get_nowait()[1].close()
        return statistics.quantiles(times[WARM:], n=100)[98] * 1000

    def batch_rate(self) -> float:
        """Return look-ups a second of a list."""
        keys = self._draw(LISTED)
        with Caller(self.home) as caller:
            batch = Batch(caller, Wish(self.job))
            started = time.perf_counter()
            for _ in batch.rows(keys):
                pass
            seconds = time.perf_counter() - started
        if batch.asked.found != LISTED:
            raise RuntimeError(f"{batch.asked.found} of {LISTED} persons were found")
        return LISTED / seconds

    def _draw(self, count: int) -> list[str]:
        return secrets.SystemRandom().sample(self.people, count)


def _nobody(person: str) -> str:
    """Return an identity number that no list here has: of a day before anybody's on one."""
    from protocols.identifiers import resident_id

    return resident_id(person[:6], date(1940, 1, 1), int(person[14:17]))


@contextmanager
def session(size: int) -> Iterator[OpenSession]:
    """Set up a collaboration over a register of `size` persons, and open a session over all of it."""
    from minshu import Bureau

    with tempfile.TemporaryDirectory(prefix="minshu-bench-") as temporary, Children() as children:
        folder = Path(temporary)
        people = _identifiers(folder, size)
        register = folder / "residents.parquet"
        _write_register(people, register)
        collaboration = Collaboration(folder / "homes", folder, children, departments=(OWNER, CLERK))
        collaboration.found()
        collaboration.enrol()
        collaboration.add_dataset(OWNER, "residents", register, "--key", COLUMN)
        for department, own in ((OWNER, _OWNS), (CLERK, _ASKS)):
            letters = {letter: letter * 64 for letter in "ade"}
            text = collaboration.policy(department, _COMMON.format(node=department.node, **letters) + own)
            collaboration.pin(department)
            collaboration.activate(department, collaboration.sign_policy(department, text, ("dpo", "owner")))
            collaboration.start_node(department)
        collaboration.await_nodes()
        question = folder / "job.toml"
        question.write_text(_JOB, encoding="utf-8")
        with Bureau.connect(collaboration.analyst) as bureau:
            job = bureau.submit(question)
            await_questions(job)
            for department, role in itertools.product((OWNER, CLERK), ("dpo", "owner")):
                collaboration.approve(department, job.id, role)
            home = Home(collaboration.home(CLERK))
            _await_table(home, job, people[0])
            yield OpenSession(home, job.id, people)


def _write_register(people: Sequence[str], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({COLUMN: pa.array(people), "status": pa.array(["在册"] * len(people))}), path)


def _await_table(home: Home, job: "Job", person: str) -> None:
    """Wait until somebody who is asked about is found.

    Raises:
        RuntimeError: the job ended, or it took too long.
    """
    deadline = time.monotonic() + READY_S
    while (said := _asked(home, job.id, person)) is None:
        view = job.view()
        if view.ended:
            raise RuntimeError(f"the session ended {view.state}: {view.code} {view.sentence}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"no table after {READY_S:.0f} s")
        time.sleep(0.5)
    if said != [{"status": "在册"}]:
        raise RuntimeError("the first look-up went wrong")


def _asked(home: Home, job: str, person: str) -> list[dict[str, str] | None] | None:
    """Return what is found of a person; None while nobody can ask yet."""
    request = {"do": "ask", "job": job, "keys": [person]}
    try:
        with Caller(home) as caller:
            said = caller.call(request)
    except MinshuError as error:
        if error.code in ("no-session", "not-ready"):
            return None
        raise
    found: list[dict[str, str] | None] = said["rows"]
    return found
