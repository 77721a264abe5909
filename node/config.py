"""`node.toml`: what a node's operator may set. Read once, at start; an unknown key is an error."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from node.sources.connections import Connection
from node.sources.source import Access, ReadLimits
from protocols.errors import InputError
from protocols.ids import NodeName
from protocols.resources import SPILL_ROWS

MAX_CONFIG_BYTES: Final = 64 << 10
NAME_HINT: Final = "write organisation and node in lower case, such as police.gz.example/node-a"

_NODE = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,98}[a-z0-9])?/[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
_CONNECTION = re.compile(r"[a-z][a-z0-9_-]{0,62}")

_OR_NONE: Final = {"least": 0}
"""Of a setting that may be 0."""

_NOT_SET: Final = {"set": False}
"""Of what no file sets."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Trainer:
    """The table `[trainer]`: what one worker process may use. A job in rounds has one at each node.

    Attributes:
        memory_mb: address space, in MiB; 0 for no limit. PyTorch alone takes about 1,400.
        cpu_s: processor time in all, in seconds; 0 for no limit.
        threads: threads of numeric libraries.
        step_s: longest time for one update, in seconds.
        niceness: added to the node's own.
        unfenced: which recipes may run where the system has not all of a worker's fence (seccomp, and
            Landlock of Linux 5.13 and later): `none`; `built-in`, Minshu's own alone, with a warning in the
            log; `all`, also those from elsewhere, which may then read what the node's account may, its keys
            included.
    """

    memory_mb: int = field(default=4096, metadata=_OR_NONE)
    cpu_s: int = field(default=0, metadata=_OR_NONE)
    threads: int = 1
    step_s: float = 600.0
    niceness: int = field(default=5, metadata=_OR_NONE)
    unfenced: str = field(default="built-in", metadata={"one_of": ("none", "built-in", "all")})


@dataclass(frozen=True, slots=True)
class Compute:
    """The table `[compute]`: where exponentiations of long lists are done; else on the cores of this process.

    Attributes:
        processes: so many processes of their own; 0 for none.
        cluster: the scheduler of a Dask cluster of the department's own, `tls://host:port`. Its workers see
            identifiers and this node's keys of an attempt: they are part of the node, and whoever gets in
            runs code as this node's account, with its keys. `tcp://` only on this machine, and it
            authenticates nobody: each account of the machine gets in. Empty for none.
        ca: who vouches for the cluster's machines, a file of certificates in PEM. Each certificate of it gets
            in.
        cert: this node's certificate for the cluster, in PEM.
        key: its private key, in PEM.
        timeout_s: the longest wait for one piece of work, some 50 ms of one core, in seconds.
    """

    processes: int = field(default=0, metadata=_OR_NONE)
    cluster: str = ""
    ca: str = ""
    cert: str = ""
    key: str = ""
    timeout_s: float = 120.0


@dataclass(frozen=True, slots=True)
class Config:
    """The settings of one node. Everything but the name has a default.

    Attributes:
        name: full node name, `police.gz.example/node-a`.
        suite: sealing suite of the recipient key; the roster's must be the same.
        coordinator: host:port to dial; empty for the address learned at enrolment.
        backoff_min_s: shortest wait before dialling again, in seconds.
        backoff_max_s: longest wait before dialling again, in seconds.
        keepalive_s: a silent link is probed after that many seconds.
        desk_poll_s: how often commands of other terminals are looked for, in seconds.
        default_runtime_s: longest run where no participant sets `max_runtime_s`, in seconds.
        witness_wait_s: how long an attempt waits for a quorum of witnesses before it is given up, and how
            old the oldest entry without one may be before new jobs are refused, in seconds.
        release_days: how long a release may wait for its recipient, in days.
        duckdb_memory_mb: what DuckDB may use while reading a dataset, in MiB.
        duckdb_threads: threads that read a dataset.
        batch_rows: rows handed over at a time while reading a dataset.
        queue_frames: frames waiting between link and protocol in each direction, at most 1 MiB each.
        spill_rows: rows of a list that are held in memory at once; longer lists go to the folder scratch/,
            encrypted. Some 0.5 KB of memory for each.
        trainer: limits of worker processes.
        compute: where exponentiations are done.
        connections: the tables `[connections.NAME]`: databases with datasets, by name.
        home: the folder that the settings were read in; no setting. What lies there no worker may read.
    """

    name: NodeName
    suite: int = 1
    coordinator: str = ""
    backoff_min_s: float = 0.2
    backoff_max_s: float = 5.0
    keepalive_s: float = 30.0
    desk_poll_s: float = 0.1
    default_runtime_s: float = 3600.0
    witness_wait_s: float = 300.0
    release_days: int = 30
    duckdb_memory_mb: int = 256
    duckdb_threads: int = 1
    batch_rows: int = 65_536
    queue_frames: int = 16
    spill_rows: int = SPILL_ROWS
    trainer: Trainer = Trainer()
    compute: Compute = Compute()
    connections: Mapping[str, Connection] = field(default_factory=dict, metadata=_NOT_SET)
    home: Path | None = field(default=None, metadata=_NOT_SET)

    @property
    def access(self) -> Access:
        """How datasets are read."""
        limits = ReadLimits(self.duckdb_memory_mb, self.duckdb_threads, self.batch_rows)
        codes = None if self.home is None else self.home / "codes"
        return Access(limits, codes=codes, connections=self.connections)


def load_config(path: Path) -> Config:
    """Return the settings in `path`.

    Raises:
        InputError: no such file, not TOML, an unknown key, a value of another type or out of range.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise InputError(
            f"{path.name} cannot be read ({error.strerror})",
            code="no-home",
            hint="give the node's folder with --home, or make one with minshu-node init",
        ) from None
    if len(data) > MAX_CONFIG_BYTES:
        raise InputError(f"{path.name} is longer than {MAX_CONFIG_BYTES} bytes", code="bad-config")
    try:
        plain = tomllib.loads(data.decode("utf-8"))
    except ValueError as error:
        raise InputError(f"{path.name} is not TOML in UTF-8: {error}", code="bad-config") from None
    connections = _connections(plain, path.name, path.parent)
    return replace(_config(plain, path.name), connections=connections, home=path.parent)


def _connections(plain: dict[str, Any], where: str, folder: Path) -> dict[str, Connection]:
    """Take `[connections.NAME]` out of the settings and return them by name."""
    tables = plain.pop("connections", {})
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise InputError(
            f"{where}: connections is not a table of tables",
            code="bad-config",
            hint="write [connections.NAME]",
        )
    found: dict[str, Connection] = {}
    seen: dict[tuple[str, str, int, str, str], str] = {}
    for name, table in tables.items():
        at = f"{where}, [connections.{name}]"
        if not _CONNECTION.fullmatch(name):
            raise InputError(
                f"{where}: the name of a connection does not have the expected form",
                code="bad-config",
                hint="use lower-case letters, digits, - and _, beginning with a letter",
            )
        if "url" not in table:
            raise InputError(f"{at}: url is missing", code="bad-config", hint="name the database")
        connection = replace(_read(Connection, table, at), name=name, folder=folder)
        connection.check()
        to = connection.address
        same = (to.dialect, connection.socket or to.host, to.port, to.database, connection.schema)
        # Two names for one database would let one table be registered twice, each with quotas of its own.
        for other in {same, (*same[:4], "")} if connection.schema else [k for k in seen if k[:4] == same[:4]]:
            if other in seen:
                raise InputError(
                    f"{at}: names the database of [connections.{seen[other]}] again",
                    code="bad-config",
                    hint="a database has one connection here; name schemas where it has several",
                )
        found[name] = connection
        seen[same] = name
    return found


_TABLES: Final[dict[str, type[Any]]] = {"trainer": Trainer, "compute": Compute}


def _config(plain: dict[str, Any], where: str) -> Config:
    tables: dict[str, Any] = {}
    for name, kind in _TABLES.items():
        table = plain.pop(name, {})
        if not isinstance(table, dict):
            raise InputError(f"{where}: {name} is not a table", code="bad-config", hint=f"write [{name}]")
        tables[name] = _read(kind, table, f"{where}, [{name}]")
    node_name(plain.get("name"))
    return _read(Config, {**plain, **tables}, where)


def _read(kind: type[_T], plain: dict[str, Any], where: str) -> _T:
    every = fields(kind)  # type: ignore[arg-type]  # one of the two classes above
    known = {each.name: each for each in every if each.metadata.get("set", True)}
    unknown = sorted(set(plain) - set(known))
    if unknown:
        raise InputError(
            f"{where}: unknown setting {unknown[0]}",
            code="unknown-setting",
            hint="known settings: " + ", ".join(known),
        )
    for key, value in plain.items():
        setting = known[key]
        kinds: dict[Any, Any] = {int: int, float: (int, float), Trainer: Trainer, Compute: Compute}
        expected = kinds.get(setting.type, str)
        if not isinstance(value, expected) or isinstance(value, bool):
            raise InputError(f"{where}: {key} has a value of another type", code="bad-config")
        if isinstance(value, int | float):
            zero = "least" in setting.metadata
            if not (value >= 0 if zero else value > 0):
                least = "not be below zero" if zero else "be greater than zero"
                raise InputError(f"{where}: {key} must {least}", code="bad-config")
        if value not in setting.metadata.get("one_of", (value,)):
            choices = ", ".join(setting.metadata["one_of"])
            raise InputError(f"{where}: {key} is none of {choices}", code="bad-config")
    return kind(**plain)


def node_name(text: Any) -> NodeName:
    """Return `text` as a node's full name.

    Raises:
        InputError: it is none.
    """
    if not isinstance(text, str) or not _NODE.fullmatch(text):
        raise InputError("the name is not a node's full name", code="bad-name", hint=NAME_HINT)
    return NodeName(text)


def write_config(path: Path, name: NodeName, suite: int) -> None:
    """Write a new `node.toml`.

    Raises:
        InputError: the file exists or cannot be written.
    """
    text = (
        "# Settings of this node. Unknown keys are refused; docs: minshu-node --help.\n"
        f'name = "{name}"\n'
        f"suite = {suite}\n"
        '# coordinator = "host:port"   # only to override the address learned at enrolment\n'
    )
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise InputError(
            "this folder holds a node already",
            code="home-exists",
            hint="choose another folder with --home",
        ) from None
    except OSError as error:
        raise InputError(
            f"{path.name} cannot be written ({error.strerror})", code="home-unwritable"
        ) from None
