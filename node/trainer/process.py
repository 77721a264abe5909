"""A worker process as its party sees it: started, asked, ended for its time or memory.

The worker is `python -I -m node.trainer.worker` with two pipes, an environment that holds nothing of the
node's, no other open file but the rows, and a folder of its own. Its standard error goes nowhere: a traceback
may hold values.
"""

import contextlib
import fcntl
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Self

from node.config import Trainer
from node.trainer.fence import HINTS
from node.trainer.rows import Rows
from protocols.errors import DecodeError
from protocols.training.work import (
    MAX_FRAME_BYTES,
    Begin,
    Failed,
    FromParty,
    FromWorker,
    RecipeFailed,
    WorkerGone,
    decode_of_worker,
    encode,
)

PROGRAM: Final = ("-I", "-m", "node.trainer.worker")
"""Isolated: neither PYTHONPATH nor the folder it starts in adds code."""

_LENGTH: Final = 4  # bytes before a frame
_PIECE: Final = 1 << 20
_PREFIX: Final = "minshu-worker-"
_PASSED_ON: Final = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one worker may use.

    Attributes:
        begin_s: longest time until the recipe is loaded, in seconds.
        step_s: longest time for one frame, in seconds.
        cpu_s: processor time of the process in all, in seconds; 0 for no limit.
        memory_mb: address space, in MiB; 0 for no limit. PyTorch alone takes about 1,400.
        threads: threads of numeric libraries.
        niceness: added to the node's own.
        unfenced: what may run where not all of the fence holds: `none`, `built-in` or `all` recipes.
    """

    begin_s: float = 60.0
    step_s: float = 600.0
    cpu_s: int = 0
    memory_mb: int = 4096
    threads: int = 1
    niceness: int = 5
    unfenced: str = "built-in"

    @classmethod
    def of(cls, trainer: Trainer) -> Self:
        """Return what the node's operator has set."""
        return cls(**asdict(trainer))


class Folder:
    """A worker's own folder, locked by its party: what a killed one left is removed at the next start."""

    def __init__(self) -> None:
        """Make it, in the temporary folder of this machine."""
        sweep()
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
            with contextlib.suppress(FileNotFoundError):
                self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                fcntl.flock(self._lock, fcntl.LOCK_EX)
                if self.path.exists():
                    return
                os.close(self._lock)  # another party took it for a left one before it was locked

    def remove(self) -> None:
        """Remove it, whatever a worker put there."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def sweep() -> None:
    """Remove the folders of workers whose party was killed: those of this user that nobody holds."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(folder).st_uid == os.geteuid():
                    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(folder)


class WorkerProcess:
    """One worker; made anew for every start."""

    def __init__(
        self,
        rows: Rows | None,
        limits: Limits,
        *,
        private: Sequence[Path] = (),
        program: Sequence[str] = PROGRAM,
    ) -> None:
        """Start it.

        Args:
            rows: what it trains on; it can read them and no more.
            limits: enforced by the worker on itself before it loads anything, but for time, which is ours.
            private: the node's home and datasets; a worker that could read one of them is `fence-too-wide`.
            program: arguments to the interpreter before those of the worker.
        """
        self._limits = limits
        self._deadline_s, self._step_s, self._closed = limits.begin_s, limits.step_s, False
        paths = b"".join(os.fsencode(os.path.realpath(path)) + b"\0" for path in private)
        self._first = len(paths).to_bytes(_LENGTH, "big") + paths
        self._folder = Folder()
        command = [sys.executable, *program]
        command += [str(limits.cpu_s), str(limits.memory_mb), str(limits.niceness)]
        command += [str(rows.fd if rows is not None else -1), limits.unfenced]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=() if rows is None else (rows.fd,),
                env=self._environment(),
                cwd=self._folder.path,
                bufsize=0,
                start_new_session=True,
            )
        except OSError:
            self._folder.remove()
            raise
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._to, False)
        os.set_blocking(self._from, False)

    def _environment(self) -> dict[str, str]:
        threads = str(self._limits.threads)
        return {name: os.environ[name] for name in _PASSED_ON if name in os.environ} | {
            "HOME": str(self._folder.path),
            "TMPDIR": str(self._folder.path),
            "FLWR_HOME": str(self._folder.path),
            # Read by flwr when it is imported: it reports to its maker and asks for updates otherwise.
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "OMP_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
        }

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def step(self, frame: FromParty) -> FromWorker:
        """Send a frame and return its answer, as `Worker.step` says."""
        if self._closed:  # its file descriptors may be another's by now
            raise WorkerGone("the worker has been ended")
        deadline = time.monotonic() + self._deadline_s
        if isinstance(frame, Begin) and frame.deadline_s:
            self._step_s = min(self._step_s, frame.deadline_s)
        try:
            body = encode(frame)
            self._send(self._first, deadline)
            self._first = b""
            self._send(len(body).to_bytes(_LENGTH, "big"), deadline)
            self._send(body, deadline)
            answer = self._answer(deadline)
        except DecodeError:
            self.close()
            raise WorkerGone("the worker said what is no frame", code="worker-not-understood") from None
        except WorkerGone:
            self.close()
            raise
        self._deadline_s = self._step_s
        if isinstance(answer, Failed):
            self.close()
            hint = HINTS.get(answer.code, "")
            raise RecipeFailed(f"the worker ended with {answer.code}", code=answer.code, hint=hint)
        return answer

    def _answer(self, deadline: float) -> FromWorker:
        length = int.from_bytes(self._receive(_LENGTH, deadline), "big")
        if length > MAX_FRAME_BYTES:
            raise DecodeError(f"frame of {length} bytes, at most {MAX_FRAME_BYTES} accepted", code="too-long")
        return decode_of_worker(self._receive(length, deadline))

    def _send(self, data: bytes, deadline: float) -> None:
        left = memoryview(data)
        while left:
            self._await(self._to, select.POLLOUT, deadline)
            try:
                left = left[os.write(self._to, left[:_PIECE]) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise self._gone() from None

    def _receive(self, count: int, deadline: float) -> bytes:
        data, at = bytearray(count), 0
        view = memoryview(data)
        while at < count:
            self._await(self._from, select.POLLIN, deadline)
            try:
                taken = os.readv(self._from, [view[at : at + _PIECE]])
            except BlockingIOError:
                continue
            if not taken:
                raise self._gone()
            at += taken
        return bytes(data)

    def _await(self, fd: int, what: int, deadline: float) -> None:
        ready = select.poll()
        ready.register(fd, what)
        if not ready.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise WorkerGone("the worker did not answer in time", code="worker-deadline")

    def _gone(self) -> WorkerGone:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        code = {-signal.SIGXCPU: "worker-cpu", -signal.SIGKILL: "worker-killed"}.get(
            self._process.poll() or 0
        )
        return WorkerGone("the worker ended before it answered", code=code or "worker-gone")

    def close(self) -> None:
        """End it and what it may have started, and remove its folder. Called twice, it does nothing more."""
        if self._closed:
            return
        self._closed = True
        # It holds nothing that would need a good ending; killed, it cannot be slow about it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self._process.returncode is None:
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self._folder.remove()

    def __enter__(self) -> Self:
        """Return self."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self.close()
