"""The worker processes of one attempt: started when its party asks for one, ended with it, whatever they do.

A party sees a `protocols.training.work.Worker` and knows of no process, no memory and no limit. Training
comes with the extra `train`; a node without it starts as ever and refuses such jobs.
"""

import contextlib
import os
import platform
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy.typing as npt
from msgspec import structs

from node.config import Config
from node.home import Home
from node.state import read_state
from policies.decision import Refuse
from protocols.errors import StateConflict
from protocols.training.work import Begin, FromParty, FromWorker, Ready, RecipeFailed, Worker, WorkerGone

if TYPE_CHECKING:
    from node.logs import Log
    from node.trainer.rows import Rows

Columns = Mapping[str, npt.NDArray[Any]]
Started = tuple[Worker, Callable[[], None]]
"""A worker, and what kills it from another thread."""

UNAVAILABLE: Final = Refuse(
    "training-unavailable",
    "This node is installed without what training needs.",
    "本节点未安装训练所需组件。",
    "have its operator run: pip install 'minshu[train]'",
    "请运维人员执行: pip install 'minshu[train]'",
)

_NEEDED: Final = ("flwr",)


def available() -> bool:
    """Tell whether what training needs is installed; nothing of it is loaded."""
    return all(find_spec(name) is not None for name in _NEEDED)


def private(config: Config) -> tuple[Path, ...]:
    """Return what no worker may be able to read: the node's folder, datasets and passwords.

    Raises:
        StateConflict: the node's state cannot be read.
    """
    if config.home is None:
        return ()
    with read_state(Home(config.home).database) as reader:
        files = (file for dataset in reader.datasets() for file in dataset.place.files())
        passwords = (file for each in config.connections.values() for file in each.secrets())
        return (config.home, *files, *passwords)


def start_process(rows: "Rows | None", config: Config) -> Started:
    """Start a worker process over these rows.

    Raises:
        StateConflict: `worker-failed`: the system starts no more processes; or see `private`.
    """
    from node.trainer.process import Limits, WorkerProcess

    try:
        process = WorkerProcess(rows, Limits.of(config.trainer), private=private(config))
    except OSError as error:
        raise StateConflict(
            f"no worker process can be started ({error.strerror})",
            code="worker-failed",
            hint="free memory and processes on this machine, then submit the job again",
        ) from None
    # A descriptor of the process, since its number may be another's once it has ended.
    handle = os.pidfd_open(process.pid)

    def kill() -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)

    return _Closing(process, lambda: os.close(handle)), kill


@dataclass(slots=True)
class _Closing:
    """A worker with one thing more to do at its end."""

    worker: Worker
    then: Callable[[], None]
    closed: bool = False

    def step(self, frame: FromParty) -> FromWorker:
        return self.worker.step(frame)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.worker.close()
            self.then()


@dataclass(slots=True, eq=False)
class Workers:
    """The workers of one attempt. Its party's thread starts, asks and closes them; any thread may stop them.

    `go_on` raises why the attempt is over, if it is. `log` is told of a worker that failed, or that has not
    all of its fence.
    """

    config: Config
    go_on: Callable[[], None]
    log: "Log | None" = None
    _rows: dict[int, tuple[Columns, "Rows"]] = field(default_factory=dict)
    _started: dict[int, Started] = field(default_factory=dict)
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def start(self, columns: Columns | None) -> Worker:
        """Start a worker that has these columns as its rows, or none.

        Raises:
            MinshuError: the attempt is over.
            StateConflict: `training-unavailable`, or no process can be started.
            InputError: columns that are no rows.
        """
        self.go_on()
        if not available():
            raise StateConflict(
                "this node is installed without what training needs",
                code=UNAVAILABLE.code,
                hint="pip install 'minshu[train]'",
            )
        rows = None if columns is None else self._shared(columns)
        started = start_process(rows, self.config)
        worker = _Tended(self, started[0], rows)
        with self._guard:
            self._started[id(worker)] = started
        try:
            self.go_on()  # a stop that came in between found nothing to stop
        except BaseException:
            worker.close()
            raise
        return worker

    def _shared(self, columns: Columns) -> "Rows":
        """Return these columns in memory that a process can be given; one started again gets the same."""
        from node.trainer.rows import Rows

        known = self._rows.get(id(columns))
        if known is None:
            known = self._rows[id(columns)] = (columns, Rows(columns))
        return known[1]

    def look_at(self, ready: Ready) -> None:
        """Warn of a worker that runs without all of its fence; which recipes may, it has checked itself."""
        from node.trainer.fence import LAYERS

        lacking = [layer for layer in LAYERS if layer not in ready.fence]
        if lacking and self.log is not None:
            self.log.warning("fence-missing", layers=",".join(lacking), system=platform.release())

    def failed(self, error: WorkerGone | RecipeFailed) -> None:
        """Say in this node's own log why a worker failed; others hear that a source is absent."""
        if self.log is not None:
            self.log.failure(error.code, sentence=error.message, hint=error.hint)

    def ended(self, worker: "_Tended") -> None:
        """A worker's end: it is killed no more."""
        with self._guard:
            self._started.pop(id(worker), None)

    def stop(self) -> None:
        """Kill every worker, so that whoever waits for its answer waits no longer."""
        with self._guard:
            for _, kill in self._started.values():
                kill()

    def close(self) -> None:
        """End every worker and free the rows; from the thread that asks them, or once it has ended."""
        with self._guard:
            left = list(self._started.values())
            self._started.clear()
        for worker, _ in left:
            worker.close()
        for _, rows in self._rows.values():
            rows.close()
        self._rows.clear()


class _Tended:
    """A worker as its party has it: told where its rows lie, and gone for the reason the attempt is over."""

    def __init__(self, workers: Workers, worker: Worker, rows: "Rows | None") -> None:
        self._workers, self._worker, self._rows = workers, worker, rows

    def step(self, frame: FromParty) -> FromWorker:
        self._workers.go_on()
        if isinstance(frame, Begin) and self._rows is not None:
            frame = structs.replace(frame, columns=self._rows.columns)
        try:
            answer = self._worker.step(frame)
        except (WorkerGone, RecipeFailed) as error:
            self._workers.go_on()
            self._workers.failed(error)
            raise
        if isinstance(answer, Ready):
            self._workers.look_at(answer)
        return answer

    def close(self) -> None:
        self._workers.ended(self)
        self._worker.close()
