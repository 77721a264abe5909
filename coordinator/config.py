"""The coordinator's configuration: one frozen value, read once from coordinator.toml."""

import tomllib
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Final, Self

from coordinator.lifecycle import Limits
from protocols.errors import InputError, StateConflict
from protocols.ids import NodeName

CONFIG: Final = "coordinator.toml"
MAX_CONFIG_BYTES: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class Config:
    """What the operator decides. Units stand in the names; an address is host:port, port 0 any free one."""

    name: NodeName
    collaboration: str
    suite: int = 1  # sealing suite that drafted rosters name
    public_address: str = "127.0.0.1:0"  # analysts and enrolment: TLS without client certificate
    nodes_address: str = "127.0.0.1:0"  # nodes: mutual TLS
    host: str = ""  # the name others dial, where it is not the host listened on
    grace_s: int = 10  # how long a node may be gone from a running attempt
    admit_timeout_s: int = 300
    run_timeout_s: int = 3600  # where no admission says another
    max_attempts: int = 2
    max_attempts_in_rounds: int = 10  # of jobs that go on after their last round
    max_live_jobs: int = 1000
    max_release_bytes: int = 256 << 20
    relay_frames: int = 64  # frames under way, per attempt
    relay_bytes: int = 64 << 20  # bytes under way, per attempt

    @property
    def limits(self) -> Limits:
        """The scheduler's part."""
        return Limits(
            self.admit_timeout_s, self.run_timeout_s, self.max_attempts, self.max_attempts_in_rounds
        )

    @classmethod
    def load(cls, home: Path) -> Self:
        """Read HOME/coordinator.toml.

        Raises:
            InputError: missing, not TOML, an unknown key, a value of another type or below 0.
        """
        path = home / CONFIG
        try:
            with path.open("rb") as file:
                text = file.read(MAX_CONFIG_BYTES + 1)
        except OSError as error:
            raise InputError(
                f"{path} cannot be read ({error.strerror})",
                code="no-home",
                hint="run minshu-coordinator init, or name the right folder with --home",
            ) from None
        if len(text) > MAX_CONFIG_BYTES:
            raise _bad(path, f"more than {MAX_CONFIG_BYTES} bytes")
        try:
            found: dict[str, Any] = tomllib.loads(text.decode("utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise _bad(path, f"not TOML: {error}") from None
        known = {f.name: f for f in fields(cls)}
        if unknown := sorted(set(found) - set(known)):
            raise _bad(path, f"unknown key {unknown[0]}")
        for name, f in known.items():
            if name not in found:
                if f.default is MISSING:
                    raise _bad(path, f"{name} is missing")
                continue
            kind = int if isinstance(f.default, int) else str
            if type(found[name]) is not kind:
                raise _bad(path, f"{name} is {type(found[name]).__name__}, expected {kind.__name__}")
            if kind is int and found[name] < 0:
                raise _bad(path, f"{name} is negative")
        return cls(**found)


def _bad(path: Path, why: str) -> InputError:
    return InputError(f"{path.name}: {why}", code="bad-config", hint=f"correct {path}")


def new_config(home: Path, name: NodeName, collaboration: str, suite: int) -> None:
    """Write a HOME/coordinator.toml with every key at its default.

    Raises:
        StateConflict: there is one already.
    """
    config = Config(name, collaboration, suite)
    lines = []
    for f in fields(Config):
        value = getattr(config, f.name)
        # Names and addresses hold neither quotes nor backslashes, so this is their TOML form.
        lines.append(f"{f.name} = {value}\n" if isinstance(value, int) else f'{f.name} = "{value}"\n')
    try:
        with (home / CONFIG).open("x", encoding="utf-8") as file:
            file.writelines(lines)
    except FileExistsError:
        raise StateConflict(
            f"{home} is a coordinator's home already",
            code="home-exists",
            hint="choose another folder with --home",
        ) from None
