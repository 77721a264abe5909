"""One party of a peer's protocol, as a program of the peers' own environment; nothing of ours is imported.

    python -P party.py LIBRARY PROTOCOL RANK LIST OUT OWN_PORT OTHER_PORT

Rank 0 receives: it alone writes OUT, the rows of its LIST that are on the other's, too. It says
{"ready": true} once its libraries are imported, begins when it is told to on stdin, and says what it took.
Times are of the machine's monotonic clock, in s; memory is in MB.
"""

import csv
import json
import os
import resource
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Final

RETRY_MS: Final = 50
TIMEOUT_S: Final = 600
FALSE_POSITIVES: Final = 1e-9
"""Of openmined-psi's compressed set, its default form."""

Play = Callable[[], tuple[int, int | None]]
"""The protocol, connected; returns how many rows are in common, -1 where this party does not learn it, and
how many bytes it sent, None where the library does not say."""


def spu(protocol: str, rank: int, table: Path, out: Path, ports: tuple[int, int]) -> Callable[[], Play]:
    """SecretFlow's spu: its file-to-file interface, each list known to be without repeats."""
    link = import_module("spu.libspu").link
    psi = import_module("spu.psi")

    def connect() -> Play:
        description = link.Desc()
        # By default it tries again after a second, and would spend most of a small run waiting.
        description.connect_retry_interval_ms, description.connect_retry_times = RETRY_MS, 1000
        description.recv_timeout_ms = TIMEOUT_S * 1000
        own, other = (f"127.0.0.1:{port}" for port in ports)
        for place in (0, 1):
            description.add_party(f"party-{place}", own if place == rank else other)
        context = link.create_brpc(description, rank)
        curve = psi.EcdhParams(curve=psi.EllipticCurveType.CURVE_25519)
        config = psi.PsiExecuteConfig(
            protocol_conf=psi.PsiProtocolConfig(
                protocol=getattr(psi.PsiProtocol, f"PROTOCOL_{protocol}"),
                receiver_rank=0,
                broadcast_result=False,
                **({"ecdh_params": curve} if protocol == "ECDH" else {}),
            ),
            input_params=psi.InputParams(path=str(table), selected_keys=[_header(table)], keys_unique=True),
            output_params=psi.OutputParams(path=str(out), disable_alignment=True),
        )
        return lambda: (int(psi.psi_execute(config, context).intersection_count), None)

    return connect


def openmined(protocol: str, rank: int, table: Path, out: Path, ports: tuple[int, int]) -> Callable[[], Play]:
    """openmined-psi: ECDH, three messages over one socket; rank 1 is its server."""
    library = import_module("private_set_intersection.python")
    if protocol != "ECDH":
        raise SystemExit(f"openmined-psi has no {protocol}")

    def connect() -> Play:
        if rank:
            with socket.create_server(("127.0.0.1", ports[0])) as listening:
                channel = listening.accept()[0]
            return partial(serve, channel)
        return partial(receive, _dial(ports[1]))

    def serve(channel: socket.socket) -> tuple[int, int]:
        server = library.server.CreateWithNewKey(reveal_intersection=True)
        items = _items(table)
        request = library.Request()
        request.ParseFromString(_read(channel))
        count = len(request.encrypted_elements)
        sent = _write(channel, server.CreateSetupMessage(FALSE_POSITIVES, count, items).SerializeToString())
        sent += _write(channel, server.ProcessRequest(request).SerializeToString())
        return -1, sent

    def receive(channel: socket.socket) -> tuple[int, int]:
        client = library.client.CreateWithNewKey(reveal_intersection=True)
        items = _items(table)
        sent = _write(channel, client.CreateRequest(items).SerializeToString())
        setup, response = library.ServerSetup(), library.Response()
        setup.ParseFromString(_read(channel))
        response.ParseFromString(_read(channel))
        found = client.GetIntersection(setup, response)
        with out.open("w", encoding="utf-8") as file:
            file.write(_header(table) + "\n" + "".join(items[place] + "\n" for place in found))
        return len(found), sent

    return connect


LIBRARIES: Final = {"spu": spu, "openmined": openmined}


def _header(table: Path) -> str:
    with table.open(encoding="utf-8", newline="") as file:
        return next(csv.reader(file))[0]


def _items(table: Path) -> list[str]:
    return table.read_text(encoding="utf-8").split("\n")[1:-1]


def _dial(port: int) -> socket.socket:
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port))
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(RETRY_MS / 1000)


def _write(channel: socket.socket, message: bytes) -> int:
    channel.sendall(len(message).to_bytes(8, "big"))
    channel.sendall(message)
    return 8 + len(message)


def _read(channel: socket.socket) -> bytes:
    return _exactly(channel, int.from_bytes(_exactly(channel, 8), "big"))


def _exactly(channel: socket.socket, size: int) -> bytes:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        taken = channel.recv_into(view)
        if not taken:
            raise SystemExit("the other party went away")
        view = view[taken:]
    return bytes(data)


def _cpu_s() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


def _peak_mb() -> float:
    """Return VmHWM; getrusage would count what the process that started this one held."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e6


def main(argv: list[str]) -> None:
    """Run `argv` as this module says."""
    library, protocol, rank, table, out, own, other = argv
    # The libraries log to stdout: what they say goes where errors go.
    say: Any = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    connect = LIBRARIES[library](protocol, int(rank), Path(table), Path(out), (int(own), int(other)))
    print(json.dumps({"ready": True}), file=say, flush=True)
    sys.stdin.readline()
    started, before = time.monotonic(), _cpu_s()
    play = connect()
    connected = time.monotonic()
    found, sent = play()
    ended = time.monotonic()
    answer = {
        "started": started,
        "connected": connected,
        "ended": ended,
        "cpu_s": _cpu_s() - before,
        "rss_mb": _peak_mb(),
        "found": found,
        "sent": sent,
    }
    print(json.dumps(answer), file=say, flush=True)
    sys.stdin.readline()  # the other one may still need this end of the connection
    os._exit(0)  # their threads would be waited for


if __name__ == "__main__":
    main(sys.argv[1:])
