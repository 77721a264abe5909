"""`minshu-node run`: puts the agent together from a home and runs it until it is told to stop."""

import asyncio
import secrets
import signal
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from node.agent import Agent
from node.clock import CLOCK_FILE, Clock
from node.home import Home
from node.journal import open_journal
from node.link import Backoff, GrpcLink
from node.logs import Log
from node.record import Recorder
from node.renew import Renewal, read_credentials, validity_of
from node.state import open_state
from protocols.errors import InputError


def _now() -> datetime:
    return datetime.now(UTC)


def run_node(home: Home, record: Path | None, say: Callable[[str], None]) -> None:
    """Run the node in `home` until SIGTERM or Ctrl-C.

    Args:
        home: the node's folder.
        record: where to keep messages unsealed, for demonstrations; None for nowhere.
        say: told once the node runs.

    Raises:
        InputError: the node is not enrolled, or its TLS certificate has expired.
        StateConflict: another process runs it, or what is stored contradicts itself.
    """
    config, enrolled = home.config, home.enrolled()
    if enrolled is None:
        raise InputError(
            "this node is not enrolled", code="not-enrolled", hint="run minshu-node enrol TOKEN --roots …"
        )
    credentials = read_credentials(home)
    validity_of(credentials.leaf).check_not_expired(_now())
    state = open_state(open_journal(home, _now), home.database)
    log = Log(home.log, _now, sys.stderr)
    recorder = None if record is None else Recorder(record)
    try:
        clock = Clock(_now, time.monotonic, home.path / CLOCK_FILE)
        draw = secrets.SystemRandom().random
        link = GrpcLink(
            config.coordinator or enrolled.address,
            credentials,
            Backoff(config.backoff_min_s, config.backoff_max_s),
            draw=draw,
            log=log,
            keepalive_s=config.keepalive_s,
            recorder=recorder,
            clock=clock,
        )
        renewal = Renewal(home, link, credentials, now=_now, draw=draw, log=log)
        agent = Agent(
            home,
            config,
            state,
            enrolled,
            link,
            signer=home.signer,
            log=log,
            now=_now,
            monotonic=time.monotonic,
            rand=secrets.token_bytes,
            recorder=recorder,
            clock=clock,
        )
        log.info("started", node=config.name, entries=state.journal.size)
        say(f"{config.name} is running; Ctrl-C stops it")
        asyncio.run(_until_stopped(agent, renewal))
        log.info("stopped")
    finally:
        state.close()
        log.close()


async def _until_stopped(agent: Agent, renewal: Renewal) -> None:
    running = asyncio.gather(agent.run(), renewal.run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, running.cancel)
    try:
        await running
    except asyncio.CancelledError:
        pass  # told to stop: every run was ended and reported
