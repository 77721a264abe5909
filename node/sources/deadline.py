"""Ends what waits for a server that has stopped to answer: its own limits end nothing any more.

A driver waits in its own code, where nothing else of this process can reach it. What can be ended from
outside is the connection: its sockets are shut, and whoever waits for one of them gets an error.
"""

import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class Deadline:
    """The sockets of one source, and the time that one answer may take.

    Attributes:
        over: whether the sockets were shut.
    """

    def __init__(self) -> None:
        """Hold nothing yet."""
        self.over = False
        self._held: list[socket.socket] = []
        self._lock = threading.Lock()

    def hold(self, descriptor: int) -> None:
        """Take part in the socket of a connection; one that is there after the end is shut at once."""
        # A descriptor of our own: the connection's number may soon be another file's.
        own = socket.socket(fileno=os.dup(descriptor))
        with self._lock:
            self._held.append(own)
        if self.over:
            self.cut()

    def cut(self) -> None:
        """Shut all sockets, from any thread."""
        self.over = True
        with self._lock:
            for held in self._held:
                with suppress(OSError):  # gone already
                    held.shutdown(socket.SHUT_RDWR)

    def release(self) -> None:
        """Let go of the sockets."""
        with self._lock:
            for held in self._held:
                held.close()
            self._held.clear()

    @contextmanager
    def within(self, seconds: float, cut: Callable[[], None] | None = None) -> Iterator[None]:
        """Shut the sockets if the block takes longer.

        Args:
            seconds: how long it may take.
            cut: called instead of `cut`, in another thread.
        """
        timer = threading.Timer(seconds, cut or self.cut)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


def sockets_to(descriptor: int) -> dict[int, int]:
    """Return this process's sockets to where this one leads: inode → descriptor. The socket itself is one."""
    with socket.socket(fileno=os.dup(descriptor)) as one:
        peer = one.getpeername()
    found: dict[int, int] = {}
    for path in Path("/dev/fd").iterdir():
        # Other threads open and close files meanwhile.
        with suppress(OSError):
            status = os.fstat(int(path.name))
            if not stat.S_ISSOCK(status.st_mode):
                continue
            with socket.socket(fileno=os.dup(int(path.name))) as other:
                if other.getpeername() == peer:
                    found[status.st_ino] = int(path.name)
    return found
