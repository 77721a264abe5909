"""Statistics on the joined population, from "tagged" to "released": six nodes and their coordinator.

Each node is a process that plays its party over sealed frames, TLS and the coordinator's relay, as
`bench.rig.nodes` says. Parties are the job types' own, of lists that their own builders read. Tagging is
measured by `tagging`; here lists are given their tags beforehand, so that the clock runs from when every list
is tagged until the matcher has sealed its release and the disk has it. Every released figure is compared with
the plain one, so a fast wrong answer is no figure. `rss` is the most that any node's process held meanwhile,
of memory, in MB; reading its list came before.

Every list has a tenth more persons than are on all of them. The peer of `moments` is mpyc with the same
columns, see `bench.peers.moments`: three processes, rows aligned from the start, no TLS, nothing to check.
"""

import hashlib
import json
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from bench.rig.lists import COLUMN, id_lines
from bench.rig.nodes import Nodes, running
from bench.rig.turns import take_turns
from bench.rows import Results, Row
from demo.collaboration import DEPARTMENTS
from node.home import write_durably
from node.releases import STATEMENTS, decode_content, encode_content
from protocols.channel import suites
from protocols.encoding import sha256_digest
from protocols.ids import DatasetName, KeyId, NodeName, Organisation, Role
from protocols.jobs import job_type
from protocols.jobs.job_type import UNIT, OutputClass, Setup, Unit
from protocols.party import Finished, Incoming, Outgoing, Party, Step
from protocols.psi import owner
from protocols.psi.tagging import TAG_BYTES, Plan, Tagged
from protocols.statistics.suppress import ROUNDING
from protocols.wire import Constraints, InputSummary, JobInput, JobSpec

if TYPE_CHECKING:
    import pyarrow as pa

ROWS: Final = 1_000_000
TURNS: Final = 3
TIMEOUT_S: Final = 600.0
TOLERANCE: Final = 1e-5

SUITE: Final = 2
STREETS: Final = tuple(f"{1 + number:03d}" for number in range(176))
BANDS: Final = tuple(f"band-{number}" for number in range(10))
TWENTY: Final = tuple(f"{number:02d}" for number in range(20))

_SEATS: Final = {
    Role("source-1"): DEPARTMENTS[0],
    Role("source-2"): DEPARTMENTS[1],
    Role("source-3"): DEPARTMENTS[2],
    Role("matcher"): DEPARTMENTS[5],
    Role("helper"): DEPARTMENTS[4],
    Role("dealer"): DEPARTMENTS[3],
}
_CTX: Final = hashlib.sha256(b"minshu/bench/joined").digest()
_SALT: Final = bytes(16)
_INFO: Final = b"minshu/bench/release"
KEY_HOLDER: Final = Role("source-1")
TAGGING: Final = 0x0100
"""A round of tagging."""

MPYC_PARTY: Final = Path(__file__).parent / "peers" / "moments.py"
"""A program, never imported: whoever imports mpyc is a party."""

MPYC: Final = "mpyc 0.11, 3 parties, aligned rows, no TLS"
_LIMITS: Final = Constraints(min_group_size=10)

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of amounts, in units of 10^-decimals, around a middle that goes with what others have."""

    name: str
    source: Role
    low: int
    high: int
    decimals: int
    middle: float
    spread: float
    shared: float
    """How much of the spread is that of the person, not of the column."""


COLUMNS: Final = (
    Column("age", Role("source-1"), 0, 120, 0, 45, 15, 0.6),
    Column("months", Role("source-1"), 0, 480, 0, 150, 80, 0.7),
    Column("insured", Role("source-2"), 0, 40_000_00, 2, 8_000_00, 3_000_00, 0.8),
    Column("paid", Role("source-2"), 0, 3_000_00, 2, 640_00, 300_00, 0.5),
    Column("income", Role("source-3"), 0, 200_000_00, 2, 60_000_00, 25_000_00, 0.7),
    Column("area", Role("source-3"), 50, 3_000, 1, 900, 300, 0.3),
)
TARGET: Final = "income"


@dataclass(frozen=True, slots=True)
class Question:
    """A job to measure: its type, its params, who takes part, and each source's slots."""

    job_type: str
    params: Mapping[str, Any]
    seats: tuple[Role, ...]
    slots: Mapping[Role, tuple[str, ...]]


def _bounds(column: Column) -> dict[str, str]:
    step = 10**column.decimals
    return {"low": str(column.low // step), "high": str(column.high // step)}


def _axis(source: str, slot: str, values: Iterable[str], *, is_open: bool = False) -> dict[str, Any]:
    return {
        "source": source,
        "slot": slot,
        "values": list(values),
        **({"open": "yes"} if is_open else {}),
    }


QUESTIONS: Final[Mapping[str, Question]] = {
    "moments": Question(
        "joined-moments/1",
        {
            "columns": [
                {"source": each.source, "slot": each.name, "decimals": each.decimals, **_bounds(each)}
                for each in COLUMNS
            ],
            "target": TARGET,
        },
        tuple(_SEATS),
        {
            source: tuple(each.name for each in COLUMNS if each.source == source)
            for source in (Role("source-1"), Role("source-2"), Role("source-3"))
        },
    ),
    "open table": Question(
        "joined-table/1",
        {
            "axes": [
                _axis("source-1", "street", STREETS, is_open=True),
                _axis("source-2", "band", BANDS),
            ]
        },
        tuple(role for role in _SEATS if role not in ("source-3", "dealer")),
        {Role("source-1"): ("street",), Role("source-2"): ("band",)},
    ),
    "hidden table": Question(
        "joined-table/1",
        {"axes": [_axis("source-1", "one", TWENTY), _axis("source-2", "other", TWENTY)]},
        tuple(role for role in _SEATS if role != "source-3"),
        {Role("source-1"): ("one",), Role("source-2"): ("other",)},
    ),
}
_VALUES: Final = {"street": STREETS, "band": BANDS, "one": TWENTY, "other": TWENTY}


# -- the lists -----------------------------------------------------------------------------------------------


def keys_of_a_list(rows: int) -> int:
    """Return how many persons a list has, of whom `rows` are on every list."""
    return rows + rows // 10


def persons_of(source: Role, rows: int) -> Ints:
    """Return who is on a source's list, in random order."""
    place, own = int(source.rpartition("-")[2]) - 1, rows // 10
    everybody = np.concatenate([np.arange(rows), rows + place * own + np.arange(own)])
    return np.random.Generator(np.random.Philox(100 + place)).permutation(everybody)


def amounts(column: Column, rows: int) -> Ints:
    """Return a column of everybody, whoever is on which list."""
    total = rows + len(COLUMNS) * (rows // 10)
    common = np.random.Generator(np.random.Philox(1)).standard_normal(total)
    own = np.random.Generator(np.random.Philox(10 + COLUMNS.index(column))).standard_normal(total)
    drawn = column.shared * common + (1 - column.shared**2) ** 0.5 * own
    scaled = np.rint(column.middle + column.spread * drawn)
    cut: Ints = np.clip(scaled, column.low, column.high).astype(np.int64)
    return cut


def places(slot: str, rows: int) -> Ints:
    """Return where everybody stands along an axis."""
    total, seed = rows + len(COLUMNS) * (rows // 10), 50 + sorted(_VALUES).index(slot)
    return np.random.Generator(np.random.Philox(seed)).integers(0, len(_VALUES[slot]), total)


def batch_of(source: Role, slots: Iterable[str], rows: int) -> "dict[str, pa.Array]":
    """Return a source's whole dataset: the key and the slots."""
    import pyarrow as pa

    persons = persons_of(source, rows)
    digits = np.frombuffer(id_lines(persons), dtype=np.uint8).reshape(len(persons), -1)[:, :-1]
    ids = np.ascontiguousarray(digits).view(f"S{digits.shape[1]}")[:, 0]
    batch = {"key": pa.array(ids.astype(str))}
    by_name = {column.name: column for column in COLUMNS}
    for slot in slots:
        if slot in by_name:
            column = by_name[slot]
            batch[slot] = pa.array(amounts(column, rows)[persons] / 10**column.decimals)
        else:
            batch[slot] = pa.array(np.array(_VALUES[slot])[places(slot, rows)[persons]])
    return batch


# -- in the nodes --------------------------------------------------------------------------------------------


def spec_of(question: Question, rows: int) -> JobSpec:
    """Return the job; what binds it to a roster and to people is made up, as nobody here asks for it."""
    zero = sha256_digest(b"minshu/bench")
    created = datetime(2026, 12, 1, tzinfo=UTC)
    roles = {role: NodeName(_SEATS[role].node) for role in question.seats}
    inputs = tuple(
        JobInput(
            role,
            Organisation(_SEATS[role].organisation),
            DatasetName(f"list-{rows}"),
            {"key": COLUMN, **{slot: slot for slot in slots}},
        )
        for role, slots in question.slots.items()
    )
    return JobSpec(
        job_type=question.job_type,
        params={"areas": "demo-city", **question.params},
        inputs=inputs,
        roles=roles,
        purpose="P-1",
        legal_basis="DPIA-1",
        expected_use="measurement",
        recipients=(),
        requester=KeyId(zero),
        collaboration="gz.example",
        roster_digest=zero,
        created=created,
        expires=created + timedelta(days=1),
        nonce="0" * 32,
    )


def party(role: Role, params: Mapping[str, Any]) -> Party:
    """Return a role's party, its list read and tagged; the matcher's makes its release durable."""
    question, rows = QUESTIONS[params["question"]], params["rows"]
    spec = spec_of(question, rows)
    known = job_type(spec.job_type)
    known.check(spec)
    keys = keys_of_a_list(rows)
    summary = InputSummary(keys, keys, keys, spec.roster_digest, "2026-12-01", spec.roster_digest, "bench")
    setup = Setup(spec, 1, _CTX, _LIMITS, dict.fromkeys(question.slots, summary))
    prepared = None
    if role in question.slots:
        builder = known.builder(spec, role, Unit("resident-id", 1, spec.day))
        batch = batch_of(role, question.slots[role], rows)
        builder.add({**batch, UNIT: batch["key"]})
        prepared = builder.finish()
        del batch
    # In this process, which plays nothing else.
    owner.Tagging = Pretagged  # type: ignore[assignment, attr-defined]  # it is imported there
    made = known.party(role, setup, prepared, secrets.token_bytes)
    if prepared is not None:
        return AfterTagging(made)
    return Releasing(made, Path(params["release"]), bytes.fromhex(params["public"]))


class Pretagged:
    """Stands in for `Tagging`: the list has its tags from the beginning, and any message says that it has."""

    def __init__(self, plan: Plan, role: Role, keys: npt.NDArray[np.bytes_], _rand: object) -> None:
        """Sort a list by its tags."""
        tags = tags_of(keys)
        by_tag = np.argsort(tags, kind="stable")
        values = np.zeros((len(keys), 0), dtype=np.uint8)  # for locks, of which there are none here
        self._tagged = Tagged(tags[by_tag], values, by_tag.astype(np.uint32))
        self.tagged: Tagged | None = None
        self.serving = False
        self.done = self.total = plan.counts[plan.owners.index(role)]

    def start(self) -> tuple[Outgoing, ...]:
        """Send nothing."""
        return ()

    def receive(self, _message: Incoming) -> tuple[Outgoing, ...]:
        """Have the list tagged."""
        self.tagged = self._tagged
        return ()


def tags_of(keys: npt.NDArray[np.bytes_]) -> npt.NDArray[np.bytes_]:
    """Return 16 bytes for each key that look random and that every list owner gets alike."""
    words = keys.astype("S32").view("<u8").reshape(len(keys), 4)
    found = np.empty((len(keys), 2), dtype="<u8")
    for place, odd in enumerate((0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F)):
        mixed = np.zeros(len(keys), dtype=np.uint64)
        for word in words.T:
            mixed ^= word
            mixed *= np.uint64(odd)
            mixed ^= mixed >> np.uint64(29)
            mixed *= np.uint64(0xBF58476D1CE4E5B9)
            mixed ^= mixed >> np.uint64(32)
        found[:, place] = mixed
    return found.view(f"S{TAG_BYTES}")[:, 0]


class AfterTagging:
    """A list owner whose list is tagged as soon as it starts."""

    def __init__(self, party: Party) -> None:
        """Wrap a list owner."""
        self._party = party

    def start(self) -> Step:
        """Start, and say that the list is tagged."""
        if tuple(self._party.start().outgoing):
            raise RuntimeError("a list that has its tags was sent around")
        return self._party.receive(Incoming(KEY_HOLDER, TAGGING, b"", last=True))

    def receive(self, message: Incoming) -> Step:
        """Pass on."""
        return self._party.receive(message)


class Releasing:
    """A party whose release, if it makes one, is sealed and on disk before it is done."""

    def __init__(self, party: Party, path: Path, public: bytes) -> None:
        """Wrap a party; its release goes to `path`, sealed to `public`."""
        self._party, self._path, self._public = party, path, public

    def start(self) -> Step:
        """Start."""
        return self._kept(self._party.start())

    def receive(self, message: Incoming) -> Step:
        """Pass on."""
        return self._kept(self._party.receive(message))

    def _kept(self, step: Step) -> Step:
        if isinstance(step, Finished):
            for content in step.output:
                plain = encode_content(content, STATEMENTS[OutputClass.AGGREGATE], _SALT)
                write_durably(self._path, suites.seal(SUITE, self._public, _INFO, plain))
        return step


# -- the measurement -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ran:
    """One job: seconds until its release was durable, the largest node's memory, and the release."""

    seconds: float
    rss_mb: float
    table: "pa.Table"
    facts: Mapping[str, Any]


class Rig:
    """Running nodes that answer questions over lists of one size."""

    def __init__(self, nodes: Nodes, folder: Path, rows: int) -> None:
        """Take nodes from `running`."""
        self._nodes, self._release, self.rows = nodes, folder / "release.sealed", rows
        self._private = suites.new_private_key(SUITE, secrets.token_bytes)

    def run(self, name: str) -> Ran:
        """Ask a question of `QUESTIONS`.

        Raises:
            RuntimeError: the answer is wrong.
        """
        self._release.unlink(missing_ok=True)
        public = suites.public_key(SUITE, self._private)
        params = {
            "question": name,
            "rows": self.rows,
            "release": str(self._release),
            "public": public.hex(),
        }
        seats = {role: _SEATS[role] for role in QUESTIONS[name].seats}
        played = self._nodes.play(seats, f"{__name__}:party", params).values()
        plain = suites.open_sealed(SUITE, self._private, _INFO, self._release.read_bytes())
        table, about = decode_content(plain)
        seconds = max(each.ended for each in played) - min(each.started for each in played)
        ran = Ran(seconds, max(each.peak_rss_mb for each in played), table, about["facts"])
        check(name, ran, self.rows)
        return ran


def measure(results: Results, *, long: bool) -> None:
    """Measure each question, the moments in turns with mpyc."""
    if results.has("coefficient error"):
        return
    turns = 3 * TURNS if long else TURNS
    with (
        tempfile.TemporaryDirectory(prefix="minshu-bench-") as temporary,
        running(Path(temporary), DEPARTMENTS) as (nodes, _),
    ):
        compare(results, Rig(nodes, Path(temporary), ROWS), turns)


def compare(results: Results, rig: Rig, turns: int) -> None:
    """Add the rows of every question at one size."""
    size = f"{rig.rows:.0e}".replace("e+0", "e")
    Rig.run(rig, "hidden table")  # opens every connection
    ran: list[Ran] = []

    def one() -> float:
        ran.append(rig.run("moments"))
        return ran[-1].seconds

    seconds, peers = take_turns(one, lambda: mpyc_s(rig.rows), turns)
    results.add(Row(f"moments {size} x {len(COLUMNS)}", seconds, "s", MPYC, peers))
    results.add(Row(f"moments {size} x {len(COLUMNS)} rss", max(each.rss_mb for each in ran), "MB"))
    results.add(Row("coefficient error", coefficient_error(ran[-1], rig.rows), "standard deviations"))
    for name in ("open table", "hidden table"):
        tables = [rig.run(name) for _ in range(turns)]
        results.add(Row(name, median(each.seconds for each in tables), "s"))
        results.add(Row(f"{name} rss", max(each.rss_mb for each in tables), "MB"))


def mpyc_s(rows: int) -> float:
    """Return the seconds that mpyc takes for the same moments.

    Raises:
        RuntimeError: it failed, or its answer is wrong.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = [sys.executable, str(MPYC_PARTY), "-M3", "--no-log", f"-B{port}", str(rows), "1"]
    done = subprocess.run(program, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise RuntimeError(f"mpyc gave no answer: {done.stderr[-500:]}")
    said = json.loads(lines[-1])
    if not said["right"]:
        raise RuntimeError("mpyc's moments are not those of the columns")
    return float(said["seconds"])


# -- right answers -------------------------------------------------------------------------------------------


def check(name: str, ran: Ran, rows: int) -> None:
    """Compare a release with the plain answer.

    Raises:
        RuntimeError: it is another one.
    """
    if name == "moments":
        check_moments(ran, rows)
    else:
        check_table(name, ran, rows)


def check_table(name: str, ran: Ran, rows: int) -> None:
    """Compare every cell that is shown; counts are rounded to multiples of `ROUNDING`."""
    first, second = (slots[0] for slots in QUESTIONS[name].slots.values())
    sizes = len(_VALUES[first]), len(_VALUES[second])
    cells = places(first, rows)[:rows] * sizes[1] + places(second, rows)[:rows]
    counts = np.bincount(cells, minlength=sizes[0] * sizes[1]).reshape(sizes)
    shown = wrong = 0
    for row in ran.table.to_pylist():
        if row[first] not in _VALUES[first] or row[second] not in _VALUES[second]:
            continue  # a margin
        true = counts[_VALUES[first].index(row[first]), _VALUES[second].index(row[second])]
        if row["value"] is not None:
            shown += 1
            wrong += abs(row["value"] - true) > ROUNDING / 2
    if wrong or shown < counts.size / 2:
        raise RuntimeError(f"{name}: {shown} of {counts.size} cells shown, {wrong} of them wrong")


def truth(rows: int) -> npt.NDArray[np.float64]:
    """Return the joined persons' columns in their own units, rows x columns."""
    return np.stack([amounts(each, rows)[:rows] / 10**each.decimals for each in COLUMNS], axis=1)


def check_moments(ran: Ran, rows: int) -> None:
    """Compare persons, means and standard deviations, these in standard deviations."""
    found, columns = figures(ran), truth(rows)
    off = [abs(found["persons", "", ""] - rows)]
    for column, values in zip(COLUMNS, columns.T, strict=True):
        off.append(abs(found["mean", column.name, ""] - values.mean()) / values.std())
        off.append(abs(found["variance", column.name, ""] ** 0.5 / values.std(ddof=1) - 1))
    if not max(off) < TOLERANCE:
        raise RuntimeError(f"moments: off by {max(off)}, expected less than {TOLERANCE}")


def figures(ran: Ran) -> dict[tuple[str, str, str], float]:
    """Return every figure of a table of moments: what it is, and of which columns."""
    return {(row["measure"], row["a"], row["b"]): row["value"] for row in ran.table.to_pylist()}


def coefficient_error(ran: Ran, rows: int) -> float:
    """Return how far a coefficient is from that of the pooled fit, at most.

    For one standard deviation of its column, in standard deviations of the target.
    """
    found, columns = figures(ran), truth(rows)
    scaled = (columns - columns.mean(axis=0)) / columns.std(axis=0)
    to = [column.name for column in COLUMNS].index(TARGET)
    others = [place for place in range(len(COLUMNS)) if place != to]
    pooled = np.linalg.lstsq(scaled[:, others], scaled[:, to], rcond=None)[0]
    by = columns.std(axis=0)
    shown = [found["coefficient", COLUMNS[at].name, TARGET] * by[at] / by[to] for at in others]
    return float(np.abs(np.array(shown) - pooled).max())
