"""Records what this node sends before it is sealed, so that a leak scan can search it.

For demonstrations on invented data only: the files hold protocol messages in the clear.
"""

import threading
from pathlib import Path
from typing import Final

from node.rpc import Attempt
from protocols.ids import Role
from protocols.party import Outgoing

WARNING: Final = (
    "frame bodies are recorded before sealing; this is for demonstrations on invented data only, "
    "never for real registers"
)


class Recorder:
    """Appends bodies and control messages to files in a folder; safe from several threads."""

    def __init__(self, folder: Path) -> None:
        """Record into `folder`, which is made."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._writing = threading.Lock()

    def body(self, attempt: Attempt, me: Role, message: Outgoing) -> None:
        """Record a frame body: `frame-<job>-<attempt>-<from>-to-<to>-round-<n>.bin`."""
        job = attempt.job.removeprefix("sha256:")[:12]
        name = f"frame-{job}-{attempt.number}-{me}-to-{message.to}-round-{message.round}.bin"
        self._append(name, message.body)

    def control(self, direction: str, message: bytes) -> None:
        """Record a control message: `control-up.bin` or `control-down.bin`."""
        self._append(f"control-{direction}.bin", message)

    def _append(self, name: str, data: bytes) -> None:
        with self._writing, (self._folder / name).open("ab") as file:
            file.write(data)
