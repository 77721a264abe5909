"""Virtual environments of peers, each built once below `bench-out/` from pinned requirements."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from bench.rows import OUT

REQUIREMENTS: Final = Path(__file__).with_name("requirements.txt")
_READY: Final = ".ready"


def folder(requirements: Path = REQUIREMENTS) -> Path:
    """Return where the environment of these requirements and this Python is, or will be."""
    pinned = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()
    return OUT / "peers" / f"venv-{pinned[:12]}"


def interpreter(requirements: Path = REQUIREMENTS) -> Path:
    """Return the environment's Python; the first time, build it with pip from the package index.

    Raises:
        RuntimeError: pip could not install what is pinned, with the end of what it said.
    """
    home = folder(requirements)
    python = home / "bin" / "python"
    if (home / _READY).exists():
        return python
    print(f"building the peers' environment in {home} …", file=sys.stderr)
    shutil.rmtree(home, ignore_errors=True)  # one that was cut short
    create: list[str | Path] = [sys.executable, "-m", "venv", home]
    install: list[str | Path] = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--only-binary=:all:",
        "--requirement",
        requirements,
    ]
    for command in (create, install):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = "\n".join(done.stderr.splitlines()[-5:])
            raise RuntimeError(f"the peers' environment cannot be built (Python 3.10 or 3.11):\n{last}")
    (home / _READY).touch()
    return python
