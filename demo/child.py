"""One of our commands as a child that dies with its parent: `python -m demo.child PID minshu-node run …`."""

import ctypes
import os
import signal
import sys
from importlib import import_module
from typing import Final

_PR_SET_PDEATHSIG: Final = 1

COMMANDS: Final = {
    "minshu": "coordinator.client.cli",
    "minshu-node": "node.cli",
    "minshu-coordinator": "coordinator.cli",
    "minshu-policy": "policies.cli",
    "minshu-audit": "audit.cli",
}
"""Command name → module with `main(argv) -> int`."""


def die_with_parent(parent: int) -> None:
    """Ask Linux to end this process when process `parent` ends, however it ends; elsewhere do nothing."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # the parent was gone before the request was made
        sys.exit(1)


def main(argv: list[str]) -> int:
    """Run `argv` = parent's process id, command name, arguments."""
    parent, name, *arguments = argv
    die_with_parent(int(parent))
    module = import_module(COMMANDS[name])
    return int(module.main(arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
