"""`node.toml`: what a node's operator may set. Read once, at start; an unknown key is an error."""

import re
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from protocols.errors import InputError
from protocols.ids import NodeName

MAX_CONFIG_BYTES: Final = 64 << 10
NAME_HINT: Final = "write organisation and node in lower case, such as police.gz.example/node-a"

_NODE = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,98}[a-z0-9])?/[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")


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
    return _config(plain, path.name)


def _config(plain: dict[str, Any], where: str) -> Config:
    kinds = {f.name: f.type for f in fields(Config)}
    unknown = sorted(set(plain) - set(kinds))
    if unknown:
        raise InputError(
            f"{where}: unknown setting {unknown[0]}",
            code="unknown-setting",
            hint="known settings: " + ", ".join(kinds),
        )
    node_name(plain.get("name"))
    for key, value in plain.items():
        expected = str if kinds[key] in (str, NodeName) else int if kinds[key] is int else (int, float)
        if not isinstance(value, expected) or isinstance(value, bool):
            raise InputError(f"{where}: {key} has a value of another type", code="bad-config")
        if isinstance(value, int | float) and not value > 0:
            raise InputError(f"{where}: {key} must be greater than zero", code="bad-config")
    return Config(**plain)


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
