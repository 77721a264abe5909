"""What other processes of this machine use over time, read from /proc in regular steps."""

import ctypes
import os
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

_STEP_S: Final = 0.02
_TICKS: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Sample:
    """At `time`, seconds since 1970: the processor time of all watched processes, and what was counted."""

    time: float
    cpu_s: float
    counted: float


class Sampler:
    """Watches processes until this context is left."""

    def __init__(self, processes: Sequence[int], count: Callable[[], int] = lambda: 0) -> None:
        """Watch the processes of these ids; `count` is read along with them."""
        self._processes, self._count = processes, count
        self._samples: list[Sample] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="sampler", daemon=True)

    def __enter__(self) -> Self:
        """Begin."""
        self._take()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End."""
        self._over.set()
        self._thread.join()

    def at(self, moment: float) -> Sample:
        """Return what stood at a moment, in a straight line between samples."""
        if self._samples[-1].time < moment:
            self._take()
        samples = list(self._samples)
        place = bisect_left(samples, moment, key=lambda sample: sample.time)
        if place == 0:
            return samples[0]
        before, after = samples[place - 1], samples[min(place, len(samples) - 1)]
        span = after.time - before.time
        part = (moment - before.time) / span if span else 0.0
        return Sample(
            moment,
            before.cpu_s + part * (after.cpu_s - before.cpu_s),
            before.counted + part * (after.counted - before.counted),
        )

    def _watch(self) -> None:
        while not self._over.wait(_STEP_S):
            self._take()

    def _take(self) -> None:
        used = sum(cpu_s(process) for process in self._processes)
        self._samples.append(Sample(time.time(), used, self._count()))


def cpu_s(process: int) -> float:
    """Return the processor time, user and system, of a process, in seconds; zero for one that is gone."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="ascii")
    except OSError:
        return 0.0
    fields = stat.rpartition(")")[2].split()  # the name before it may hold anything
    return (int(fields[11]) + int(fields[12])) / _TICKS


def forget_peak() -> None:
    """Let this process's peak of resident memory begin anew, at what it holds now.

    What earlier work has freed and the C library kept is given back first.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_rss_mb() -> float:
    """Return this process's peak of resident memory (VmHWM) in MB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / 1e6
