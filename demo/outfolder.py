"""The folder that a demonstration leaves: whole, or as it was before."""

import contextlib
import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from protocols.errors import InputError, StateConflict


@contextlib.contextmanager
def alone(out: Path) -> Iterator[None]:
    """Hold the lock beside `out`.

    Raises:
        StateConflict: another demo is running there.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with (out.parent / f".{out.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateConflict(
                f"another demo is writing {out}",
                code="demo-running",
                hint="wait for it, or choose another folder with --out",
            ) from None
        yield


@contextlib.contextmanager
def whole(out: Path) -> Iterator[Path]:
    """Yield a hidden folder beside `out` to work in; at the end its `result` takes the place of `out`.

    An earlier demo's `out` is replaced, and known by its summary.json. After an error nothing has changed.

    Raises:
        InputError: `out` exists and is no earlier demo's folder.
        StateConflict: another demo is running there.
    """
    out = out.absolute()
    if out.exists() and not (out / "summary.json").exists():
        raise InputError(
            f"{out} exists and is no earlier demo's folder",
            code="out-exists",
            hint="choose another folder with --out",
        )
    with alone(out):
        for left in out.parent.glob(f".{out.name}.work-*"):
            shutil.rmtree(
                left, ignore_errors=True
            )  # of a demo that was killed; the lock says none is running
        work = Path(tempfile.mkdtemp(prefix=f".{out.name}.work-", dir=out.parent))
        try:
            yield work
            _publish(work / "result", out)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _publish(result: Path, out: Path) -> None:
    """Put `result` in the place of `out`."""
    before = result.with_name("before")
    if out.exists():
        out.rename(before)
    result.rename(out)
