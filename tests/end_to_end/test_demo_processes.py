"""However the demo ends, no process of it lives on, and what it left half-done goes away."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="reads /proc; parent-death signals are Linux's"
)

DEMO = Path(sys.executable).with_name("minshu-demo")
CHILDREN = 7


class Running:
    """One demo; its processes are told from others' by a mark in their environment."""

    def __init__(self, folder: Path) -> None:
        self.mark = f"MINSHU_TEST_MARK={uuid.uuid4().hex}"
        name, _, value = self.mark.partition("=")
        self.error = folder / f"{value}.stderr"
        with self.error.open("wb") as error:
            self.process = subprocess.Popen(
                [str(DEMO), "run", "--profile", "ci", "--out", "out"],
                cwd=folder, env={**os.environ, name: value}, stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=error, start_new_session=True,
            )  # fmt: skip

    def children(self) -> set[int]:
        """Return every living process with the mark but the demo itself."""
        found = set()
        for entry in Path("/proc").iterdir():
            # Gone in between, or another user's.
            with contextlib.suppress(OSError):
                if (
                    entry.name.isdigit()
                    and int(entry.name) != self.process.pid
                    and self.mark.encode() in (entry / "environ").read_bytes().split(b"\0")
                ):
                    found.add(int(entry.name))
        return found

    def until(self, reached: Callable[[], object], timeout: float = 120) -> None:
        deadline = time.monotonic() + timeout
        while not reached():
            assert self.process.poll() is None, self.error.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture
def demo(tmp_path) -> Iterator[Callable[[], Running]]:
    started: list[Running] = []

    def start() -> Running:
        started.append(Running(tmp_path))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.wait()
        for pid in each.children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def works(folder: Path) -> list[Path]:
    return list(folder.glob(".out.work-*"))


def mid_job(folder: Path) -> bool:
    """Whether data of the job is on its way: a node has recorded a frame."""
    return any(folder.glob(".out.work-*/homes/recorded/*/frame-*"))


def gone_within(seconds: float, demo: Running) -> bool:
    deadline = time.monotonic() + seconds
    while demo.children():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.long  # two demos
def test_a_killed_demo_leaves_no_child_and_the_next_one_cleans_up_and_stops_on_ctrl_c(demo, tmp_path):
    killed = demo()
    killed.until(lambda: mid_job(tmp_path))
    assert len(killed.children()) == CHILDREN
    killed.process.kill()
    killed.process.wait()
    assert gone_within(15, killed)
    (left,) = works(tmp_path)

    interrupted = demo()
    interrupted.until(lambda: not left.exists())
    interrupted.until(lambda: mid_job(tmp_path))
    assert len(interrupted.children()) == CHILDREN
    os.killpg(interrupted.process.pid, signal.SIGINT)
    assert interrupted.process.wait(60) == 130
    assert interrupted.children() == set()
    assert "minshu-demo: error: interrupted" in interrupted.error.read_text()
    assert {path.name for path in tmp_path.iterdir() if path.suffix != ".stderr"} == {".out.lock"}


@pytest.mark.long  # six seconds; the killed demo beside it is the harder case
def test_sigterm_while_the_nodes_start_leaves_neither_child_nor_folder(demo, tmp_path):
    stopped = demo()
    stopped.until(lambda: len(stopped.children()) > 2)
    stopped.process.terminate()
    assert stopped.process.wait(60) == 130
    assert stopped.children() == set()
    assert works(tmp_path) == []
    assert not (tmp_path / "out").exists()
