"""Processes that a measurement starts, commands and stops.

A worker runs `async def work(talk, *arguments)` of any module. Both sides speak lines of JSON over its stdin
and stdout, one command and one answer at a time; what else it prints goes to a log.
"""

import asyncio
import json
import os
import select
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from bench.rows import ROOT
from demo.child import die_with_parent

ANSWER_TIMEOUT_S: Final = 600.0
STOP_TIMEOUT_S: Final = 10.0


class Talk:
    """A worker's side of the conversation."""

    async def hear(self) -> dict[str, Any] | None:
        """Return the next command, None when there will be none."""
        line = await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        return json.loads(line) if line else None

    def say(self, **answer: Any) -> None:
        """Answer."""
        print(json.dumps(answer), flush=True)


Work = Callable[..., Awaitable[None]]


class Worker:
    """The measurement's side: a process that runs `work` until this context is left."""

    def __init__(self, work: Work, *arguments: str | Path, log: Path) -> None:
        """Start it. Its parent-death signal is tied to this thread, so call from the main one."""
        self._log = log
        self._name = f"{work.__module__}:{work.__name__}"
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "bench.rig.worker",
                    str(os.getpid()),
                    self._name,
                    *map(str, arguments),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                process_group=0,
                cwd=ROOT,
            )

    def __enter__(self) -> Self:
        """Return self."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close its stdin, which ends it, and kill it if it does not end."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.close()
            process.wait(STOP_TIMEOUT_S)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            process.kill()
            process.wait()
        process.stdout.close()

    def tell(self, **command: Any) -> None:
        """Give it a command; `answer` returns what it says to it."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failed() from None

    def answer(self) -> dict[str, Any]:
        """Wait for its answer as `answers` does, and return it."""
        return answers([self])[0]

    def fileno(self) -> int:
        """Return what `select` watches."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def read(self) -> dict[str, Any]:
        """Return the line it has said.

        Raises:
            RuntimeError: it ended instead.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._failed()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _failed(self) -> RuntimeError:
        last = "\n".join(self._log.read_text(errors="replace").splitlines()[-5:])
        return RuntimeError(f"{self._name} gave no answer; its log {self._log} ends:\n{last}")


def answers(workers: Sequence[Worker]) -> list[dict[str, Any]]:
    """Return each worker's answer; the first one that fails ends the waiting for the others.

    Raises:
        RuntimeError: one ended, with the end of its log, or none spoke for ANSWER_TIMEOUT_S.
    """
    heard: dict[Worker, dict[str, Any]] = {}
    while missing := [worker for worker in workers if worker not in heard]:
        # No line waits in a buffer: a worker says one, then listens for a command.
        ready, _, _ = select.select(missing, [], [], ANSWER_TIMEOUT_S)
        if not ready:
            raise RuntimeError(f"{len(missing)} worker(s) said nothing for {ANSWER_TIMEOUT_S:.0f} s")
        heard |= {worker: worker.read() for worker in ready}
    return [heard[worker] for worker in workers]


def main(argv: list[str]) -> None:
    """Run `argv` = parent's process id, module:function, arguments."""
    parent, name, *arguments = argv
    die_with_parent(int(parent))
    module, _, function = name.partition(":")
    work: Callable[..., Any] = getattr(import_module(module), function)
    asyncio.run(work(Talk(), *arguments))


if __name__ == "__main__":
    main(sys.argv[1:])
