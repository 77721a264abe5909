"""Flower's own deployed round on this machine: one SuperLink, n SuperNodes, loopback, nothing but messages.

The app trains nothing: it hands a model of `words` float64 down and one of the same size up, so what is
measured is Flower's round beyond compute. One exchange is one `send_and_receive` of train messages to every
node; a FedAvg round that also evaluates makes two. The clock runs inside the ServerApp, so starting the
programs, building and installing the app are left out; the first exchange is reported apart, because nodes
fetch the app with it.

Everything stays in one folder (`FLWR_HOME`) and on 127.0.0.1; telemetry, the update check and the
installation of dependencies are off. Ports are taken free from the kernel just before they are used.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import IO, Final, Literal

Isolation = Literal["subprocess", "process"]

START_TIMEOUT_S: Final = 90.0
EXCHANGE_TIMEOUT_S: Final = 120.0
STOP_TIMEOUT_S: Final = 10.0

_APP: Final = """\
import json, os, time
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

client = ClientApp()
server = ServerApp()


@client.train()
def train(message, context):
    model = message.content["model"]["w"].numpy()
    reply = {"model": ArrayRecord({"w": Array(model + 1)}), "metrics": MetricRecord({"rows": 1})}
    return Message(RecordDict(reply), reply_to=message)


@server.main()
def main(grid, context):
    config = context.run_config
    while len(nodes := sorted(grid.get_node_ids())) < config["nodes"]:
        time.sleep(0.05)
    model, spent = np.zeros(config["words"]), []
    for number in range(config["exchanges"]):
        began = time.perf_counter()
        records = {"model": ArrayRecord({"w": Array(model)}), "config": ConfigRecord({"round": number})}
        messages = [Message(RecordDict(records), dst_node_id=node, message_type="train") for node in nodes]
        replies = list(grid.send_and_receive(messages, timeout=config["timeout-s"]))
        errors = [reply.error.reason for reply in replies if reply.has_error()]
        if errors or len(replies) != len(nodes):
            break
        model = np.mean([reply.content["model"]["w"].numpy() for reply in replies], axis=0)
        spent.append(time.perf_counter() - began)
    with open(config["report"] + ".part", "w") as file:
        json.dump({"seconds": spent, "first": float(model[0]), "errors": errors}, file)
    os.replace(config["report"] + ".part", config["report"])
"""

_PROJECT: Final = """\
[project]
name = "round"
version = "1.0.0"
license = "Apache-2.0"
dependencies = ["flwr>=1.41"]
[tool.flwr.app]
publisher = "bench"
[tool.flwr.app.components]
serverapp = "round_app:server"
clientapp = "round_app:client"
[tool.flwr.app.config]
nodes = {nodes}
words = {words}
exchanges = {exchanges}
timeout-s = {timeout}
report = "{report}"
"""

_CONNECTION: Final = """\
[superlink]
default = "here"
[superlink.here]
address = "127.0.0.1:{port}"
insecure = true
"""


@dataclass(frozen=True, slots=True)
class Deployed:
    """What one run of Flower's deployment took, in seconds.

    Attributes:
        first_s: the first exchange, in which every node also fetches and installs the app.
        exchange_s: each later exchange, in order.
    """

    first_s: float
    exchange_s: tuple[float, ...]

    @property
    def median_s(self) -> float:
        """Median of the later exchanges."""
        return median(self.exchange_s)


def measure(
    nodes: int, words: int, exchanges: int, isolation: Isolation, *, keep: Path | None = None
) -> Deployed:
    """Start Flower's programs, run `exchanges` + 1 exchanges with `nodes` nodes, stop the programs.

    Args:
        nodes: SuperNodes, each a process with its SuperExec.
        words: float64 words of the model.
        exchanges: exchanges that count, beyond the first.
        isolation: who starts app processes: SuperLink and SuperNodes themselves, or SuperExecs beside them.
        keep: a folder for logs that stays; without one, a temporary folder.

    Raises:
        RuntimeError: a program ended, an exchange failed or nothing came in time; with the logs' last lines.
    """
    with contextlib.ExitStack() as stack:
        folder = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="minshu-bench-")))
        folder.mkdir(parents=True, exist_ok=True)
        report = folder / "report.json"
        report.unlink(missing_ok=True)
        _write_app(folder / "app", nodes, words, exchanges + 1, report)
        environment = _environment(folder)
        link, *runtimes = _free_ports(nodes + 1)
        home = folder / "flwr"
        home.mkdir(exist_ok=True)
        (home / "config.toml").write_text(_CONNECTION.format(port=link), "utf-8")

        def start(name: str, *command: str) -> None:
            stack.enter_context(_program(folder / f"{name}.log", environment, *command))

        shared = ("--isolation", isolation, "--host", "127.0.0.1")
        secret: tuple[str, ...] = ()
        if isolation == "process":
            secret_file = folder / "secret"
            secret_file.write_bytes(os.urandom(32))
            secret = ("--superexec-auth-secret-file", str(secret_file))
        start(
            "superlink",
            *("flower-superlink", "--insecure", *shared, "--port", str(link)),
            *("--disable-runtime-dependency-installation", *secret),
        )
        _wait_for_port(link, folder)
        for number, port in enumerate(runtimes):
            # Certificates are for links between machines; on loopback everything is in the clear.
            start(
                f"supernode-{number}",
                *("flower-supernode", "--insecure", *shared, "--port", str(port)),
                *("--superlink", f"127.0.0.1:{link}", *secret),
            )
        if isolation == "process":
            for name, port in (("link", link), *((str(i), port) for i, port in enumerate(runtimes))):
                _wait_for_port(port, folder)
                start(
                    f"superexec-{name}",
                    *(
                        "flower-superexec",
                        "--insecure",
                        "--runtime-api-address",
                        f"127.0.0.1:{port}",
                        *secret,
                    ),
                )
        submitted = subprocess.run(
            _command("flwr", "run", str(folder / "app"), "here"),
            env=environment,
            capture_output=True,
            text=True,
            timeout=START_TIMEOUT_S,
            check=False,
        )
        if submitted.returncode:
            raise RuntimeError(
                f"flwr run failed: {submitted.stdout[-500:]}{submitted.stderr[-500:]}\n{_logs(folder)}"
            )
        deadline = time.monotonic() + START_TIMEOUT_S + (exchanges + 1) * EXCHANGE_TIMEOUT_S
        while not report.exists():
            if time.monotonic() > deadline:
                raise RuntimeError(f"no report in time; logs end:\n{_logs(folder)}")
            time.sleep(0.1)
        found = json.loads(report.read_text("utf-8"))
        if len(found["seconds"]) != exchanges + 1 or found["first"] != exchanges + 1:
            raise RuntimeError(f"an exchange failed: {found['errors']}; logs end:\n{_logs(folder)}")
        return Deployed(found["seconds"][0], tuple(found["seconds"][1:]))


def _write_app(folder: Path, nodes: int, words: int, exchanges: int, report: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "round_app.py").write_text(_APP, "utf-8")
    project = _PROJECT.format(
        nodes=nodes, words=words, exchanges=exchanges, timeout=EXCHANGE_TIMEOUT_S, report=report
    )
    (folder / "pyproject.toml").write_text(project, "utf-8")


def _environment(folder: Path) -> dict[str, str]:
    """Return the environment of Flower's programs: no telemetry, no update check, state in `folder`."""
    own = {name: text for name, text in os.environ.items() if not name.startswith("FLWR_")}
    return own | {
        "FLWR_HOME": str(folder / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "OMP_NUM_THREADS": "1",
        # Flower's programs start one another by name.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }


def _command(name: str, *arguments: str) -> list[str]:
    return [str(Path(sys.executable).with_name(name)), *arguments]


@contextlib.contextmanager
def _program(log: Path, environment: dict[str, str], name: str, *arguments: str) -> Iterator[None]:
    """Run one of Flower's programs in a process group of its own, which ends with this context."""
    with log.open("wb") as lines:
        process = _start(_command(name, *arguments), environment, lines)
    try:
        yield
    finally:
        # SuperLink and SuperNodes start further programs in their group; a terminated one leaves them behind.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _start(command: Sequence[str], environment: dict[str, str], lines: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=lines, stderr=lines, process_group=0
    )


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for held in sockets:
            held.bind(("127.0.0.1", 0))
        return [held.getsockname()[1] for held in sockets]


def _wait_for_port(port: int, folder: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        time.sleep(0.05)
    raise RuntimeError(f"nothing listens on port {port}; logs end:\n{_logs(folder)}")


def _logs(folder: Path) -> str:
    ends = []
    for log in sorted(folder.glob("*.log")):
        lines = re.sub(r"\x1b\[\d+m", "", log.read_text("utf-8", "replace")).splitlines()[-6:]
        ends.append("\n".join([f"{log.name}:", *lines]))
    return "\n".join(ends)


def main() -> None:
    """Measure from the command line and print one line of JSON."""
    parser = argparse.ArgumentParser(description="seconds per exchange of Flower's deployment")
    parser.add_argument("--nodes", type=int, default=5)
    parser.add_argument("--words", type=int, default=124)
    parser.add_argument("--exchanges", type=int, default=3)
    parser.add_argument("--isolation", choices=("subprocess", "process"), default="subprocess")
    parser.add_argument("--keep", type=Path)
    asked = parser.parse_args()
    found = measure(asked.nodes, asked.words, asked.exchanges, asked.isolation, keep=asked.keep)
    print(
        json.dumps(
            {
                "nodes": asked.nodes,
                "words": asked.words,
                "isolation": asked.isolation,
                "first_s": round(found.first_s, 3),
                "exchange_s": [round(each, 3) for each in found.exchange_s],
                "median_s": round(found.median_s, 3),
            }
        )
    )


if __name__ == "__main__":
    main()
