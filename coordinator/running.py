"""Opens the store of a home, and runs the coordinator in the foreground until it is told to stop."""

import asyncio
import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime

from coordinator.home import Home
from coordinator.registry import Registry
from coordinator.store import Store


@contextmanager
def opened(home: Home, now: Callable[[], datetime]) -> Iterator[tuple[Store, Registry]]:
    """Give store and registry of a home; a coordinator may be running on it.

    Raises:
        InputError: the home is incomplete.
    """
    from coordinator.store.sql import SqlStore

    config, roots = home.config, home.roots()
    store = SqlStore(home.database)
    try:
        yield store, Registry(store, roots, config.suite, now)
    finally:
        store.close()


async def serve(home: Home, ready: Callable[[dict[str, str]], None]) -> None:
    """Run the coordinator until SIGTERM or Ctrl-C; `ready` is told the addresses once both ports listen.

    Raises:
        MinshuError: the home is incomplete or in use, a port is taken, or the journal proved to be an older
            copy of itself.
    """
    from coordinator.service import Coordinator

    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    coordinator = Coordinator(home)
    try:
        await coordinator.start()
        ready({"public": coordinator.public_address, "nodes": coordinator.nodes_address})
        ends = [asyncio.ensure_future(event.wait()) for event in (stop, coordinator.failed)]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            end.cancel()
    finally:
        await coordinator.stop()
    if coordinator.error is not None:
        raise coordinator.error
