"""A whole collaboration on this machine: a coordinator, six nodes and an analyst, each in its own folder.

Everything is done with the commands a real department would type; only the typing is automatic.
"""

import contextlib
import io
import json
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from demo.child import COMMANDS
from demo.processes import Child, Children
from protocols.envelope import decode_envelope, key_id
from protocols.errors import Unreachable
from protocols.ids import JobId, NodeName
from protocols.wire import Roster

if TYPE_CHECKING:
    import pyarrow as pa

COLLABORATION: Final = "gz.example"
COORDINATOR: Final = "data-bureau.gz.example/coordinator"
BUREAU: Final = "data-bureau.gz.example"
ANALYST: Final = "analyst-1"
START_TIMEOUT_S: Final = 30.0
WITNESS_KEYS: Final = ("witness", "witness.ml-dsa-44")
"""What a witness's vkey files end in: Ed25519, type 4, and ML-DSA-44, type 6."""


@dataclass(frozen=True, slots=True)
class Department:
    """One department: its folder name, the title people know it by, and the datasets it offers.

    Rows of the datasets in `without_persons` are about nobody, so they have no column with identifiers. The
    analyst is of the department that `asks`; where none does, of the data bureau, which has no node.
    """

    folder: str
    title: str
    datasets: Mapping[str, str] = field(default_factory=dict, hash=False)
    without_persons: frozenset[str] = frozenset()
    asks: bool = False

    @property
    def organisation(self) -> str:
        """`police.gz.example`."""
        return f"{self.folder}.{COLLABORATION}"

    @property
    def node(self) -> str:
        """`police.gz.example/node-a`."""
        return f"{self.organisation}/node-a"


DEPARTMENTS: Final = (
    Department("police", "公安 police", {"population": "population"}),
    Department("human-resources", "人社 human resources", {"insured": "insured"}),
    Department("health", "卫健 health", {"patients": "patients"}),
    Department("education", "教育 education", {"enrolment": "enrolment"}),
    Department("housing", "住建 housing", {"leases": "leases"}),
    Department("statistics", "统计 statistics (neutral)"),
)
"""Scenario 1's six nodes; the neutral one matches and brings no data."""


class CommandFailed(Exception):
    """A command ended with another code than 0."""

    def __init__(self, command: Sequence[str], code: int, output: str, error: str) -> None:
        """Keep what it printed."""
        super().__init__(f"{' '.join(command)}: exit {code}\n{error or output}")
        self.code, self.output, self.error = code, output, error

    @property
    def reason(self) -> str:
        """The first line of the error, without the command's name."""
        first = (self.error.strip() or self.output.strip() or "no message").splitlines()[0]
        return re.sub(r"^[\w-]+: error: ", "", first)


def command(*arguments: str | Path) -> str:
    """Run one of our commands in this process, as a shell would, and return what it printed.

    Raises:
        CommandFailed: its exit code is not 0.
    """
    words = [str(argument) for argument in arguments]
    main = import_module(COMMANDS[words[0]]).main
    output, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(error):
        try:
            code = int(main(words[1:]))
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 2
    if code:
        raise CommandFailed(words, code, output.getvalue(), error.getvalue())
    return output.getvalue()


def command_json(*arguments: str | Path) -> Any:
    """Run a command with --json and return what it printed, parsed."""
    return json.loads(command(*arguments, "--json"))


def policy_text(template: str, *, analyst: str, dpo: str, owner: str, now: datetime) -> str:
    """Return a policy with this collaboration's key ids and dates in the places of the template's."""
    text = template
    day = (now - timedelta(days=1)).astimezone(UTC)
    for letter, identifier in (("a", analyst), ("d", dpo), ("e", owner)):
        text = text.replace(f"sha256:{letter * 64}", identifier)
    text = re.sub(r"(?m)^not_before = \S+", f"not_before = {day:%Y-%m-%d}T00:00:00+08:00", text)
    text = re.sub(
        r"(?m)^expires = \S+", f"expires = {day + timedelta(days=90):%Y-%m-%d}T00:00:00+08:00", text
    )
    return re.sub(r"(?m)^valid_until = \S+", f"valid_until = {day + timedelta(days=90):%Y-%m-%d}", text)


def for_a_city_of(people: int, text: str) -> str:
    """Return a policy or job for a larger city; caps and quotas as written are for one of 100,000 people."""
    times = max(1, people // 100_000)
    counted = r'(?m)^(max_rows = |receiver_keys = |counts = "rows"\nlimit = )(\d+)'
    return re.sub(counted, lambda found: f"{found[1]}{times * int(found[2])}", text)


def with_datasets(text: str, like: str, names: Sequence[str]) -> str:
    """Return a policy that opens further datasets, on the terms of its dataset `like`."""
    begins = text.index(f"[datasets.{like}]")
    ends = min(at for mark in ("[quotas.", "[[rules]]") if (at := text.find(mark, begins)) >= 0)
    section = text[begins:ends]
    more = "".join(
        section.replace(f"datasets.{like}", f"datasets.{name}").replace(f"local:{like}", f"local:{name}")
        for name in names
    )
    text = text.replace(f'datasets = ["{like}"]', f"datasets = {json.dumps([like, *names])}")
    return text.replace(section, section + more, 1)


def with_overlaps(text: str, dataset: str, clause: str) -> str:
    """Return a policy that also lets overlaps of its dataset be counted.

    Args:
        text: the policy.
        dataset: its dataset; noise hides one person, so it has to say whom a row is about.
        clause: purpose, budget and rule, with DATASET in the dataset's place.
    """
    begins = text.index(f"[datasets.{dataset}]\n")
    columns = text.index(f"[datasets.{dataset}.columns]", begins)
    unit = 'unit = { column = "resident_id", max_rows = 3 }\n\n'
    return text[:columns].rstrip() + "\n" + unit + text[columns:] + clause.replace("DATASET", dataset)


def trusted(out: Path) -> tuple[str | Path, ...]:
    """Return the options that say whom an auditor believes who was handed `out`."""
    return ("--keys", out / "vkeys", "--roots", out / "roots.json", "--officers", out / "officers")


class Collaboration:
    """Sets up and runs the collaboration below `folder`, with the registers of the city in `city`."""

    def __init__(
        self,
        folder: Path,
        city: Path,
        children: Children,
        *,
        departments: Sequence[Department] = DEPARTMENTS,
        record: bool = False,
    ) -> None:
        """Take the folder (made if missing), the city, and who looks after the processes.

        Args:
            folder: home of all homes.
            city: as `minshu-demo city` made it.
            children: started processes go here.
            departments: who takes part.
            record: have every node write frame bodies before sealing to `recorded/`, for the leak scan.
        """
        self.folder, self.city, self.children, self._record = folder, city, children, record
        self.departments = departments
        self.coordinator = folder / "coordinator"
        self.analyst = folder / "analyst"
        self.logs = folder / "logs"
        self.recorded = folder / "recorded"
        self.root_fingerprint = ""
        self.logs.mkdir(parents=True, exist_ok=True)

    @property
    def bureau(self) -> str:
        """The organisation of the analyst."""
        return next((department.organisation for department in self.departments if department.asks), BUREAU)

    def home(self, department: Department) -> Path:
        """Return a node's home."""
        return self.folder / "nodes" / department.folder

    def officer(self, department: Department, role: str) -> Path:
        """Return the private key of a department's dpo or owner."""
        return self.folder / "officers" / department.folder / f"{role}.pem"

    def register(self, department: Department, table: str) -> Path:
        """Return the file of one of a department's tables."""
        return self.city / "registers" / department.folder / f"{table}.parquet"

    @property
    def _freshness_key(self) -> Path:
        """The key whose owner says every week that the roster still holds."""
        return self.folder / "roots" / "freshness.pem"

    # -- set-up, in the order of a real one ---------------------------------------------------------------

    def found(self) -> None:
        """Make root keys, officers' keys and the coordinator, and start it."""
        roots = [self.folder / "roots" / f"root-{n}.pem" for n in (1, 2, 3)]
        for root in roots:
            root.parent.mkdir(parents=True, exist_ok=True)
            command("minshu-policy", "key", "new", "--role", "root", root)
        command("minshu-policy", "key", "new", "--role", "freshness", self._freshness_key)
        arguments: list[str | Path] = []
        for root in roots:
            arguments += ["--root", f"{root}.pub"]
        answer = command_json(
            "minshu-coordinator", "init", "--home", self.coordinator,
            "--name", COORDINATOR, "--collaboration", COLLABORATION, *arguments,
        )  # fmt: skip
        self.root_fingerprint = str(answer["roots"])
        self.start_coordinator()
        for department in self.departments:
            for role in ("dpo", "owner"):
                key = self.officer(department, role)
                key.parent.mkdir(parents=True, exist_ok=True)
                command("minshu-policy", "key", "new", "--role", role, key)

    def start_coordinator(self) -> Child:
        """Start the coordinator and wait until it has published its addresses."""
        child = self.children.start(
            "coordinator", ["minshu-coordinator", "run", "--home", str(self.coordinator)],
            self.logs / "coordinator.log",
        )  # fmt: skip
        self._await((self.coordinator / "addresses.json").exists, "the coordinator to listen")
        return child

    def enrol(self) -> None:
        """Enrol every node and the analyst; sign and publish the roster, two of three root keys."""
        roots = self.root_fingerprint
        for department in self.departments:
            home = self.home(department)
            command("minshu-node", "init", "--home", home, "--name", department.node)
            token = command(
                "minshu-coordinator", "token", department.node, "--home", self.coordinator
            ).strip()
            command("minshu-node", "enrol", token, "--roots", roots, "--home", home)
        command("minshu", "init", "--home", self.analyst, "--name", ANALYST, "--organisation", self.bureau)
        invite = command("minshu-coordinator", "invite", "--home", self.coordinator).strip()
        command("minshu", "connect", invite, "--roots", roots, "--home", self.analyst)
        draft, signed = self.folder / "roster.json", self.folder / "roster.dsse"
        titles: list[str] = []
        for department in self.departments:
            titles += ["--title", f"{department.organisation}={department.title}"]
        command(
            "minshu-coordinator", "roster", "draft", "--home", self.coordinator, "--out", draft,
            "--analyst", self.analyst / "analyst.card.json",
            "--freshness", f"{self._freshness_key}.pub", *titles,
        )  # fmt: skip
        for n, unsigned in ((1, draft), (2, signed)):
            key = self.folder / "roots" / f"root-{n}.pem"
            command("minshu-coordinator", "roster", "sign", unsigned, "--key", key, "--out", signed)
        command("minshu-coordinator", "roster", "publish", signed, "--home", self.coordinator)

    def add_datasets(self) -> None:
        """Register every department's datasets at its node."""
        for department in self.departments:
            for dataset, table in department.datasets.items():
                nobody = ("--no-persons",) if dataset in department.without_persons else ()
                self.add_dataset(department, dataset, self.register(department, table), *nobody)

    def add_dataset(self, department: Department, dataset: str, file: Path, *extra: str) -> None:
        """Register one dataset at a node."""
        command("minshu-node", "dataset", "add", dataset, file, "--home", self.home(department), *extra)

    def policy(self, department: Department, template: str | None = None) -> str:
        """Return the policy text that the department signs, from its example or another template."""
        from policies.keyfile import load_public

        example = files("policies.examples").joinpath(f"{department.folder}.toml")
        return policy_text(
            example.read_text("utf-8") if template is None else template,
            analyst=key_id(load_public(self.analyst / "keys" / "analyst.pem.pub")),
            dpo=key_id(load_public(Path(f"{self.officer(department, 'dpo')}.pub"))),
            owner=key_id(load_public(Path(f"{self.officer(department, 'owner')}.pub"))),
            now=datetime.now(UTC),
        )

    def sign_policy(
        self, department: Department, text: str, roles: Sequence[str], name: str = "policy"
    ) -> Path:
        """Write a policy text, have the named officers sign it, and return the envelope's path."""
        folder = self.folder / "policies" / department.folder
        folder.mkdir(parents=True, exist_ok=True)
        source, envelope = folder / f"{name}.toml", folder / f"{name}.dsse"
        source.write_text(text, encoding="utf-8")
        for role in roles:
            command(
                "minshu-policy", "sign", source, "--key", self.officer(department, role), "--out", envelope
            )
        return envelope

    def activate(self, department: Department, envelope: Path) -> None:
        """Activate a signed policy at its node."""
        command("minshu-node", "policy", "activate", envelope, "--home", self.home(department))

    def pin(self, department: Department) -> None:
        """Pin the officers' keys at their node."""
        dpo, owner = (f"{self.officer(department, role)}.pub" for role in ("dpo", "owner"))
        home = self.home(department)
        command("minshu-node", "policy", "pin", "--home", home, "--dpo", dpo, "--owner", owner)

    def start_node(self, department: Department) -> Child:
        """Start one node."""
        record: list[str] = []
        if self._record:
            record = ["--record-bodies", str(self.recorded / department.folder)]
        return self.children.start(
            department.folder, ["minshu-node", "run", "--home", str(self.home(department)), *record],
            self.logs / f"{department.folder}.log",
        )  # fmt: skip

    def await_nodes(self) -> None:
        """Wait until every node can answer: it has the roster from the coordinator, and its policy a quorum.

        Raises:
            Unreachable: it took longer than START_TIMEOUT_S, or a child ended.
        """
        self._await(lambda: all(self.roster(d) is not None for d in self.departments), "the nodes to connect")
        self.await_witnessed([department.folder for department in self.departments])

    def roster(self, department: Department) -> int | None:
        """Return the version of the roster that a node goes by."""
        version: int | None = command_json("minshu-node", "status", "--home", self.home(department))["roster"]
        return version

    def approve(self, department: Department, job: str, role: str) -> str:
        """Approve a job as the department's dpo or owner; return the prompt they saw."""
        return command(
            "minshu-node", "approve", job, "--home", self.home(department),
            "--key", self.officer(department, role), "--yes",
        )  # fmt: skip

    def open_records(self, department: Department, job: str) -> "pa.Table":
        """Open the sealed list of a job as its recipient's duty officer would, and leave no copy.

        Raises:
            Unreachable: other departments did not cosign the node's journal in time.
        """
        import pyarrow as pa

        self.await_witnessed([department.folder])
        opened = self.folder / "opened.arrow"
        command("minshu-node", "release", "open", job, "--out", opened, "--home", self.home(department))
        try:
            with pa.OSFile(str(opened)) as file:
                return pa.ipc.open_stream(file).read_all()
        finally:
            opened.unlink()

    def kept_job(self, job: str) -> bytes:
        """Return the signed envelope of a job as the analyst's home keeps it."""
        from coordinator.client.home import AnalystHome

        return AnalystHome(self.analyst).job(JobId(job)).read_bytes()

    def submit_raw(self, envelope: bytes) -> None:
        """Hand any bytes to the coordinator as a job, past the checks of the analyst's own tools.

        Raises:
            MinshuError: what the coordinator answers.
        """
        from coordinator.client.connection import Connection
        from coordinator.client.home import AnalystHome

        connection = Connection(AnalystHome(self.analyst), lambda: datetime.now(UTC))
        try:
            connection.submit(envelope)
        finally:
            connection.close()

    def signed_roster(self) -> Roster:
        """Return the roster that the root keys signed."""
        return Roster.decode(decode_envelope((self.folder / "roster.dsse").read_bytes()).payload)

    def journal_vkeys(self) -> dict[str, str]:
        """Return every journal's verifier key by full name, as the root keys signed them."""
        roster = self.signed_roster()
        assert roster.coordinator is not None
        keys: dict[str, str] = {node.name: node.journal_vkey for node in roster.nodes}
        return {roster.coordinator.name: roster.coordinator.journal_vkey, **keys}

    def witness_vkeys(self) -> dict[str, tuple[str, ...]]:
        """Return every witness's verifier keys by its node, Ed25519 first, as the root keys signed them."""
        return {node.name: node.witness_vkeys for node in self.signed_roster().nodes}

    def journal(self, name: str) -> Path:
        """Return the folder of a journal: the coordinator's, or that of the department of that folder."""
        home = self.coordinator if name == "coordinator" else self.folder / "nodes" / name
        return home / "journal"

    @property
    def journals(self) -> Mapping[str, str]:
        """Every journal's full name, by `coordinator` or its department's folder."""
        return {"coordinator": COORDINATOR, **{d.folder: d.node for d in self.departments}}

    def hand_over(self, out: Path) -> None:
        """Leave in `out` what auditors get: each journal as a bundle, and the keys whose owners they believe.

        Verifier keys, root keys and officers' keys come on another way than bundles: from others than the
        audited. See `trusted`.
        """
        self.await_witnessed(tuple(self.journals))
        for name in self.journals:
            bundle = out / "bundles" / name
            bundle.parent.mkdir(parents=True, exist_ok=True)
            command("minshu-audit", "bundle", self.journal(name), "--out", bundle)
        vkeys, officers = out / "vkeys", out / "officers"
        vkeys.mkdir(parents=True)
        officers.mkdir()
        logs, witnesses = self.journal_vkeys(), self.witness_vkeys()
        for name, full in self.journals.items():
            (vkeys / name).write_text(logs[full] + "\n", encoding="ascii")
            for key, ending in zip(witnesses.get(NodeName(full), ()), WITNESS_KEYS, strict=False):
                (vkeys / f"{name}.{ending}").write_text(key + "\n", encoding="ascii")
        (out / "roots.json").write_bytes(self.roots())
        for department in self.departments:
            for role in ("dpo", "owner"):
                public = Path(f"{self.officer(department, role)}.pub")
                shutil.copyfile(public, officers / f"{department.folder}-{role}.pub")

    def roots(self) -> bytes:
        """Return the root keys' document, as their holders hand it out."""
        from coordinator.home import Home

        return Home(self.coordinator).roots().encode()

    def await_witnessed(self, names: Sequence[str]) -> None:
        """Wait until the newest entry of each of these journals is cosigned by a quorum."""
        self._await(lambda: all(self._witnessed(self.journal(name)) for name in names), "the witnesses")

    def _witnessed(self, journal: Path) -> bool:
        from audit.folder import CHECKPOINT, COSIGNED
        from audit.note import Checkpoint, Note

        newest, cosigned = (
            Checkpoint.decode(Note.decode(file.read_bytes()).text) if file.exists() else None
            for file in (journal / CHECKPOINT, journal / COSIGNED)
        )
        return newest is not None and newest == cosigned

    def _await(self, ready: Callable[[], bool], what: str) -> None:
        """Wait until `ready`, checking that every child lives.

        Raises:
            Unreachable: it took longer than START_TIMEOUT_S, or a child ended.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        while not ready():
            self.children.check()
            if time.monotonic() > deadline:
                raise Unreachable(f"waited {START_TIMEOUT_S:.0f} s for {what}", hint=f"see {self.logs}")
            time.sleep(0.05)
