"""A coordinator and its nodes as processes, ready to play any party of any protocol.

Homes, keys, roster and certificates are made by the commands of a real collaboration. The coordinator is the
whole program, only that an exchange is opened by command instead of by a job. A node is the real link, frames
and exchange around a party; gate, datasets, journal and releases take no part. So what is measured is the
path of every frame: sealed, through TLS to the relay, through TLS to the receiver, opened.
"""

import asyncio
import contextlib
import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from bench.rig.usage import forget_peak, peak_rss_mb
from bench.rig.worker import Talk, Worker, answers
from coordinator.home import Home as CoordinatorHome
from demo.collaboration import Collaboration, Department
from demo.processes import Children
from node import rpc
from node.exchange import Exchange
from node.home import Home, read_private
from node.link import Backoff, Credentials, GrpcLink
from node.logs import Log
from node.runner import Playing
from protocols.channel import suites
from protocols.channel.frame import FrameOpener, FrameSealer
from protocols.encoding import sha256_digest
from protocols.ids import JobId, NodeName, Role
from protocols.party import Party

JOB: Final = JobId(sha256_digest(b"minshu/bench"))
_LINGER_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Played:
    """When a node called its party's `start`, and when the party was done: seconds of the machine's clock.

    `peak_rss_mb`: the most memory that the node's process held from when the party was made, in MB.
    """

    started: float
    ended: float
    peak_rss_mb: float


class Nodes:
    """Running nodes, each in its own process, and the coordinator between them."""

    def __init__(self, coordinator: Worker, nodes: Mapping[Department, Worker]) -> None:
        """Take both from `running`."""
        self._coordinator = coordinator
        self._nodes = nodes
        self._keys = dict(zip(nodes, answers(list(nodes.values())), strict=True))
        self._attempts = 0

    def play(
        self, seats: Mapping[Role, Department], maker: str, params: Mapping[str, Any]
    ) -> dict[Role, Played]:
        """Play one attempt; every party starts at the same time, once all streams are open.

        Args:
            seats: who takes which role.
            maker: `module:function`; called in each node as `function(role, params)` and returns its party.
            params: plain values.
        """
        self._attempts += 1
        attempt = {"job": JOB, "attempt": self._attempts}
        self._coordinator.tell(**attempt, seats={role: seat.node for role, seat in seats.items()})
        self._coordinator.answer()
        keys = {role: self._keys[seat] for role, seat in seats.items()}
        ctx = secrets.token_hex(32)
        for role, seat in seats.items():
            self._nodes[seat].tell(**attempt, role=role, keys=keys, ctx=ctx, maker=maker, params=params)
        workers = [self._nodes[seat] for seat in seats.values()]
        answers(workers)
        for worker in workers:
            worker.tell(go=True)
        return {role: Played(**said) for role, said in zip(seats, answers(workers), strict=True)}


@contextmanager
def running(folder: Path, departments: tuple[Department, ...]) -> Iterator[tuple[Nodes, Collaboration]]:
    """Set up a collaboration in `folder` and run these departments' nodes."""
    with contextlib.ExitStack() as stack:
        children = stack.enter_context(Children())
        collaboration = Collaboration(folder, folder, children)
        collaboration.found()
        collaboration.enrol()
        # Its place is taken by the same program under our command.
        children.all.pop().stop()
        logs = collaboration.logs
        coordinator = stack.enter_context(
            Worker(run_coordinator, collaboration.coordinator, log=logs / "bench-coordinator.log")
        )
        address = coordinator.answer()["address"]
        nodes = {
            department: stack.enter_context(
                Worker(
                    run_node, collaboration.home(department), address, log=logs / f"{department.folder}.log"
                )
            )
            for department in departments
        }
        yield Nodes(coordinator, nodes), collaboration


# -- in the processes -------------------------------------------------------------------------------------


async def run_coordinator(talk: Talk, home: str) -> None:
    """Run the coordinator of a home; each command opens the exchange of an attempt."""
    from coordinator.service import Coordinator

    coordinator = Coordinator(CoordinatorHome(Path(home)))
    await coordinator.start()
    talk.say(address=coordinator.nodes_address)
    try:
        while (command := await talk.hear()) is not None:
            seats = {Role(role): NodeName(node) for role, node in command["seats"].items()}
            coordinator.relay.open(JobId(command["job"]), command["attempt"], seats)
            talk.say(open=command["attempt"])
    finally:
        await coordinator.stop()


async def run_node(talk: Talk, folder: str, address: str) -> None:
    """Run the node of a home; each command plays one attempt."""
    home = Home(Path(folder))
    config = home.config
    log = Log(home.log, lambda: datetime.now(UTC), sys.stderr)
    link = GrpcLink(
        address,
        Credentials(home.authority_pem.read_bytes(), home.leaf_pem.read_bytes(), read_private(home.tls_pem)),
        Backoff(config.backoff_min_s, config.backoff_max_s),
        draw=secrets.SystemRandom().random,
        log=log,
        keepalive_s=config.keepalive_s,
    )
    welcome = asyncio.Event()

    async def take(_message: rpc.Message) -> None:
        welcome.set()

    dialling = asyncio.create_task(link.run(lambda: rpc.hello(config.name, 0, b"", ()), take))
    try:
        await welcome.wait()
        private = suites.new_private_key(config.suite, secrets.token_bytes)
        sealing = suites.public_key(config.suite, private)
        talk.say(identity=home.signer.public_key.hex(), sealing=sealing.hex())
        while (command := await talk.hear()) is not None:
            await _attempt(talk, home, link, private, command)
    finally:
        dialling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await dialling
        log.close()


async def _attempt(talk: Talk, home: Home, link: GrpcLink, private: bytes, command: dict[str, Any]) -> None:
    """Open the attempt's stream, say so, play the party when told to, and say when it started and ended."""
    config, role = home.config, Role(command["role"])
    attempt, ctx = rpc.Attempt(JobId(command["job"]), command["attempt"]), bytes.fromhex(command["ctx"])
    peers = {Role(peer): keys for peer, keys in command["keys"].items() if peer != role}
    sealer = FrameSealer(
        suite=config.suite,
        job=attempt.job,
        attempt=attempt.number,
        ctx=ctx,
        me=role,
        signer=home.signer,
        peers={peer: bytes.fromhex(keys["sealing"]) for peer, keys in peers.items()},
        rand=secrets.token_bytes,
    )
    opener = FrameOpener(
        suite=config.suite,
        job=attempt.job,
        attempt=attempt.number,
        ctx=ctx,
        me=role,
        private=private,
        peers={peer: bytes.fromhex(keys["identity"]) for peer, keys in peers.items()},
    )
    module, _, function = command["maker"].partition(":")
    party: Party = getattr(import_module(module), function)(role, command["params"])
    exchange = Exchange(await link.open_data(attempt), config.queue_frames)
    playing = Playing(
        attempt=attempt,
        role=role,
        sealer=sealer,
        opener=opener,
        exchange=exchange,
        recorder=None,
        monotonic=time.monotonic,
        progress=lambda _progress: None,
        answering=lambda: None,  # there is no ledger to remember it in
    )
    forget_peak()
    talk.say(ready=True)
    await talk.hear()

    def play() -> tuple[float, float]:
        started = time.monotonic()
        playing.run(party)
        return started, time.monotonic()

    started, ended = await asyncio.to_thread(play)
    await exchange.finish()
    talk.say(started=started, ended=ended, peak_rss_mb=peak_rss_mb())
    await exchange.close(_LINGER_S)
