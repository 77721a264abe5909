"""The program of a worker process, `node.trainer.worker CPU_S MEMORY_MB NICENESS ROWS_FD UNFENCED`.

Its standard input begins with what it must not be able to read: u32 length ‖ paths, each ended by a zero
byte. Then it takes frames there and answers on its standard output; see `protocols.training.work`. Whatever
a recipe prints goes to standard error. The order matters: limits and fence stand before anything else is
loaded.
"""

import os
import random
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Final

from node.trainer import fence
from protocols.errors import DecodeError, MinshuError, StateConflict
from protocols.training.work import (
    MAX_FRAME_BYTES,
    Answer,
    Ask,
    Begin,
    Failed,
    FromParty,
    FromWorker,
    Go,
    Handle,
    Ready,
    decode_of_party,
    encode,
)

_LENGTH: Final = 4


class Pipe:
    """The worker's two pipes, where no print and no library can write."""

    def __init__(self) -> None:
        """Take standard input and output away from everything else."""
        self._in, self._out = os.dup(0), os.dup(1)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(2, 1)
        fence.end_with(self._in)

    def take(self) -> FromParty:
        """Return the next frame; end the process where there is none.

        Raises:
            DecodeError: it is no frame.
        """
        length = int.from_bytes(self._read(_LENGTH), "big")
        if length > MAX_FRAME_BYTES:
            raise DecodeError(f"frame of {length} bytes, at most {MAX_FRAME_BYTES} accepted", code="too-long")
        return decode_of_party(self._read(length))

    def _read(self, count: int) -> bytes:
        data, at = bytearray(count), 0
        while at < count:
            taken = os.readv(self._in, [memoryview(data)[at:]])
            if not taken:
                os._exit(0)  # the party is done
            at += taken
        return bytes(data)

    def give(self, frame: FromWorker) -> None:
        """Answer."""
        body = encode(frame)
        left = memoryview(len(body).to_bytes(_LENGTH, "big") + body)
        while left:
            left = left[os.write(self._out, left) :]

    def ask(self, frame: Ask) -> Answer:
        """Put a question to the party."""
        self.give(frame)
        answer = self.take()
        if not isinstance(answer, Answer):
            raise DecodeError("not an answer", code="wrong-frame")
        return answer


def main(argv: list[str]) -> None:
    """Serve one party until it closes the pipe or something fails."""
    cpu_s, memory_mb, niceness, rows_fd = map(int, argv[:4])
    fence.limit(cpu_s, memory_mb, niceness)
    wide, layers = None, tuple[str, ...]()
    try:
        layers = fence.erect(Path.cwd(), private_of(0))
    except StateConflict as error:
        wide = error
    pipe = Pipe()
    try:
        _work(pipe, _begin(pipe, layers, argv[4], wide), rows_fd, layers)
    except MinshuError as error:
        pipe.give(Failed(error.code))
    except MemoryError:
        pipe.give(Failed("worker-memory"))
    except PermissionError:  # the fence's own, or the kernel's
        pipe.give(Failed("worker-forbidden"))
    except Exception:  # noqa: BLE001 - the outermost loop; what an exception says may hold values of rows
        pipe.give(Failed("recipe-failed"))
    os._exit(0)


def private_of(pipe: int) -> list[Path]:
    """Return the paths that the party names before its first frame; end the process where there are none."""
    with os.fdopen(os.dup(pipe), "rb", buffering=0) as stream:

        def read(count: int) -> bytes:
            data = b""
            while len(data) < count:
                taken = stream.read(count - len(data))
                if not taken:
                    os._exit(0)  # the party is done
                data += taken
            return data

        paths = read(int.from_bytes(read(_LENGTH), "big")).split(b"\0")
    return [Path(os.fsdecode(path)) for path in paths if path]


def _begin(pipe: Pipe, layers: tuple[str, ...], unfenced: str, wide: StateConflict | None) -> Begin:
    begin = pipe.take()
    if not isinstance(begin, Begin):
        raise DecodeError("not a beginning", code="wrong-frame")
    if wide is not None:
        raise wide
    # Before anything of the recipe is loaded: what it could do without a fence, it could do at once.
    fence.check_level(layers, unfenced, own=isinstance(begin.recipe, str))
    return begin


def _work(pipe: Pipe, begin: Begin, rows_fd: int, layers: tuple[str, ...]) -> None:
    from flwr.supercore.task_identity import TaskIdentity

    from node.trainer import contributing, leading, recipes

    # Flower keeps who a process is in one place for all of it: one job per process.
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, begin.run, begin.node
    random.seed(begin.seed)  # strategies sample nodes with the global generator
    recipe = recipes.load(begin.recipe)
    part = (
        leading.Lead(begin, recipe, pipe.ask, rows_fd)
        if begin.role == "lead"
        else contributing.Contribution(begin, recipe, rows_fd)
    )
    pipe.give(Ready(part.words, _versions(), layers))
    if isinstance(part, leading.Lead):
        if not isinstance(pipe.take(), Go):
            raise DecodeError("not the word to go", code="wrong-frame")
        pipe.give(part.run())
        return
    while True:
        handle = pipe.take()
        if not isinstance(handle, Handle):
            raise DecodeError("not a message to handle", code="wrong-frame")
        pipe.give(part.handle(handle))


def _versions() -> dict[str, str]:
    """Return the versions of what computes and is loaded."""
    return {name: version(name) for name in ("flwr", "numpy", "torch", "opacus") if name in sys.modules}


if __name__ == "__main__":
    main(sys.argv[1:])
