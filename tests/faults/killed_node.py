"""Runs a whole job in this process and kills it with SIGKILL at one point of one node's work.

python killed_node.py FOLDER NODE KIND before|after [stopped]

KIND is the kind of an entry, or `cosigned.` and one: the moment when the first quorum of cosignatures that
comes after it is stored. stopped: nobody starts the attempt; once every node has accepted it, it is stopped.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

from simulator import Fragile, Post, Station, Task, World, approve_all, running, until

from audit.log import Journal
from audit.note import NoteSignature


class Killed(Fragile):
    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def kill_at_cosignatures(name: str, kind: str, when: str) -> None:
    """Kill the process around the storing of a quorum that comes after an entry of `kind`."""
    add = Journal.add_cosignatures

    def killing(self: Journal, text: bytes, lines: Iterable[NoteSignature], *, quorum: bool) -> None:
        now = quorum and name in self.origin and any(entry.kind == kind for entry in self.entries())
        if now and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        add(self, text, lines, quorum=quorum)
        if now:
            os.kill(os.getpid(), signal.SIGKILL)

    Journal.add_cosignatures = killing  # type: ignore[method-assign]  # this process is to die there


class Halting(Post):
    """Stops every attempt that could start."""

    def may_start(self, task: Task) -> bool:
        [job] = self.tasks
        self.stop(job, "cancelled-by-requester")
        return False


def main(folder: str, name: str, kind: str, when: str, ends: str = "") -> None:
    world = World.load(Path(folder))
    if kind.startswith("cosigned."):
        kill_at_cosignatures(name, kind.removeprefix("cosigned."), when)
    else:
        Killed.at, Killed.before = kind, when == "before"

    async def play() -> None:
        others = [n for n in world.homes if n != name]
        mail = Halting(world) if ends == "stopped" else Post(world)
        async with running(world, mail, others) as (post, stations):
            stations[name] = Station(world, post, name, Killed)
            await until(lambda: name in post.wires)
            spec = world.spec()
            (world.folder / "job.bin").write_bytes(world.sign_job(spec))
            job = post.submit(spec)
            await approve_all(post, stations, job)
            await asyncio.sleep(30)

    asyncio.run(play())


if __name__ == "__main__":
    main(*sys.argv[1:])
