"""Two parties of a peer on this machine: two processes of its own environment that talk over 127.0.0.1."""

import json
import os
import select
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from bench.peers.environment import interpreter
from bench.rig.lists import Lists
from bench.rig.wire import Wire

PARTY: Final = Path(__file__).with_name("party.py")
TIMEOUT_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Peer:
    """A library and one of its protocols."""

    library: str
    protocol: str

    @property
    def name(self) -> str:
        """`spu RR22`."""
        return f"{self.library} {self.protocol}"


RR22: Final = Peer("spu", "RR22")
KKRT: Final = Peer("spu", "KKRT")
ECDH: Final = Peer("spu", "ECDH")
OPENMINED: Final = Peer("openmined", "ECDH")


@dataclass(frozen=True, slots=True)
class Used:
    """What one run took.

    Attributes:
        wall_s: from the moment both are connected, lists unread, to the result in its file.
        link_s: making the connections; not in `wall_s`, as ours stand before a job begins.
        cpu_s: of both processes and what they start, without imports, with `link_s`.
        rss_mb: peak of the larger process.
        wire_mb: what both parties send, by the library or else by the relay; zero where neither counted.
    """

    wall_s: float
    link_s: float
    cpu_s: float
    rss_mb: float
    wire_mb: float = 0.0


def play(peer: Peer, lists: Lists, *, count_wire: bool = False) -> Used:
    """Run a peer once on two lists and check its answer.

    With `count_wire` every connection passes a counting relay, which slows it down.

    Raises:
        RuntimeError: a party ended or said nothing, or the answer is wrong.
    """
    python = interpreter()
    with tempfile.TemporaryDirectory(prefix="minshu-peer-") as temporary, Wire() as wire:
        folder = Path(temporary)
        # It leaves a note beside a list that it has read, and would find it the next time.
        tables = [shutil.copy(each, folder / each.name) for each in (lists.receiver, lists.sender)]
        out = folder / "out.csv"
        ports = _free_ports(2)
        seen = [wire.before(port) for port in ports] if count_wire else ports
        parties = []
        try:
            for rank, table in enumerate(tables):
                arguments = [peer.library, peer.protocol, str(rank), str(table), str(out)]
                addresses = [str(ports[rank]), str(seen[1 - rank])]
                with (folder / f"{rank}.log").open("wb") as log:
                    parties.append(_start(python, [*arguments, *addresses], folder, log))
            _answers(parties, folder)
            _tell(parties)
            said = _answers(parties, folder)
            # Asked before the connections break.
            told = [party["sent"] for party in said]
            wire_mb = (wire.total if None in told else sum(told)) / 1e6
            _tell(parties)
        finally:
            for party in parties:
                party.kill()
                party.wait()
                party.stdin.close()  # type: ignore[union-attr]  # a pipe
                party.stdout.close()  # type: ignore[union-attr]  # a pipe
        with out.open("rb") as file:
            found = sum(1 for _ in file) - 1
    if found != lists.common:
        raise RuntimeError(f"{peer.name} found {found} in common, {lists.common} expected")
    connected = [party["connected"] for party in said]
    return Used(
        wall_s=max(party["ended"] for party in said) - max(connected),
        link_s=max(connected) - min(party["started"] for party in said),
        cpu_s=sum(party["cpu_s"] for party in said),
        rss_mb=max(party["rss_mb"] for party in said),
        wire_mb=wire_mb,
    )


_Process = subprocess.Popen[bytes]


def _start(python: Path, arguments: Sequence[str], folder: Path, log: IO[bytes]) -> _Process:
    return subprocess.Popen(
        [python, "-P", PARTY, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        cwd=folder,
        env={**os.environ, "TMPDIR": str(folder)},
        process_group=0,
    )


def _tell(parties: Sequence[_Process]) -> None:
    for party in parties:
        assert party.stdin is not None
        party.stdin.write(b"\n")
        party.stdin.flush()


def _answers(parties: Sequence[_Process], folder: Path) -> list[dict[str, Any]]:
    """Return a line of each; one that ends ends the waiting for the other."""
    said: dict[int, dict[str, Any]] = {}
    while len(said) < len(parties):
        waiting = {_stdout(party): rank for rank, party in enumerate(parties) if rank not in said}
        ready, _, _ = select.select(list(waiting), [], [], TIMEOUT_S)
        if not ready:
            raise RuntimeError(f"a peer said nothing for {TIMEOUT_S:.0f} s")
        for stream in ready:
            rank, line = waiting[stream], stream.readline()
            if not line:
                log = (folder / f"{rank}.log").read_text(errors="replace")
                raise RuntimeError("a peer ended; its log ends:\n" + "\n".join(log.splitlines()[-8:]))
            said[rank] = json.loads(line)
    return [said[rank] for rank in range(len(parties))]


def _stdout(party: _Process) -> IO[bytes]:
    assert party.stdout is not None
    return party.stdout


def _free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that nobody listens on right now."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(each.getsockname()[1]) for each in held]
    for each in held:
        each.close()
    return ports
