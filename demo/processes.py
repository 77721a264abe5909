"""Child processes that never outlive the demo: own group, parent-death signal, peak memory read in time."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from protocols.errors import MinshuError, Unreachable

STOP_TIMEOUT_S = 10.0


@dataclass(slots=True)
class Child:
    """One running command, its name in the summary and the file its output goes to."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    peak_rss_mb: float = 0.0

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self.process.poll() is None

    def note_peak(self) -> None:
        """Read the high-water mark of resident memory (VmHWM), in MB; once gone, the last one stays."""
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
        except OSError:
            return
        for line in status.splitlines():
            if line.startswith("VmHWM:"):
                self.peak_rss_mb = max(self.peak_rss_mb, int(line.split()[1]) * 1024 / 1e6)

    def stop(self) -> None:
        """Ask it to stop, wait, and kill its whole group if it does not."""
        self.note_peak()
        if self.alive:
            self.process.terminate()
            try:
                self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                pass  # killed below, with whatever it started
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Children:
    """All children of one run; leaving the context stops every one of them.

    The parent-death signal is tied to the thread that starts a child, so only the main thread may start any.
    """

    def __init__(self) -> None:
        """Start with none."""
        self.all: list[Child] = []

    def __enter__(self) -> Self:
        """Return self."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop every child, newest first."""
        for child in reversed(self.all):
            child.stop()

    def start(self, name: str, command: list[str], log: Path) -> Child:
        """Start one of our commands, e.g. ["minshu-node", "run", "--home", …], with its output in `log`."""
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "demo.child", str(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        child = Child(name, process, log)
        self.all.append(child)
        return child

    @contextlib.contextmanager
    def watched(self, give_up: Callable[[], object]) -> Iterator[None]:
        """Call `give_up` if a child ends meanwhile, so that nobody waits for ever for what it should do.

        Raises:
            Unreachable: a child has ended.
        """
        over = threading.Event()

        def watch() -> None:
            while not over.wait(1.0):
                if not all(child.alive for child in self.all):
                    with contextlib.suppress(MinshuError):
                        give_up()
                    return

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()
            self.check()

    def check(self) -> None:
        """Check that every child is alive.

        Raises:
            Unreachable: one has ended, with the last lines it wrote.
        """
        for child in self.all:
            if not child.alive:
                last = child.log.read_text(errors="replace").strip().splitlines()[-3:]
                raise Unreachable(
                    f"{child.name} ended with code {child.process.returncode}: {' / '.join(last)}",
                    code="process-ended",
                    hint=f"its output is in {child.log}",
                )

    def peaks(self) -> dict[str, float]:
        """Return each child's peak resident memory in MB."""
        for child in self.all:
            child.note_peak()
        return {child.name: round(child.peak_rss_mb, 1) for child in self.all}
