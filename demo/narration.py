"""What a demonstration prints while it plays."""

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from rich.console import Console

from demo.collaboration import CommandFailed
from protocols.errors import MinshuError

_FOLLOWING: Final = 30
"""Lines of a log that are printed with an error."""


class Failed(MinshuError):
    """The demo did not show what it is there to show."""

    default_code = "demo-failed"


class Narrator:
    """Prints steps, sentences and quotations, with the time since it began."""

    def __init__(self) -> None:
        """Begin."""
        self.console = Console(highlight=False, soft_wrap=not sys.stdout.isatty(), record=True)
        self.started = time.perf_counter()

    def step(self, title: str) -> None:
        """Print the heading of a step."""
        self.console.print(f"\n[bold]{title}[/bold]  [dim]{time.perf_counter() - self.started:.0f} s[/dim]")

    def say(self, text: str) -> None:
        """Print a sentence."""
        self.console.print(f"  {text}")

    def quote(self, text: str) -> None:
        """Print what somebody in the demo is shown."""
        self.console.print()
        for line in text.splitlines():
            self.console.print(f"  │ {line}", markup=False, style="dim" if line.startswith("…") else None)
        self.console.print()


@contextlib.contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Print what processes logged below `folder` if something fails inside: the folder is about to go.

    Raises:
        Failed: a command failed that must not.
        MinshuError: whatever else was raised inside.
    """
    try:
        yield
    except CommandFailed as error:
        _print_logged_errors(folder)
        raise Failed(str(error), hint="this is a defect; please report it with the lines above") from None
    except MinshuError:
        _print_logged_errors(folder)
        raise


def _print_logged_errors(folder: Path) -> None:
    """Print what processes logged as errors."""
    for log in sorted(folder.glob("**/*.log")):
        lines = log.read_text(errors="replace").splitlines()
        errors = [at for at, line in enumerate(lines) if " error " in line.lower()]
        for at in errors[-3:]:
            # With what follows: where it happened.
            for line in lines[at : at + _FOLLOWING]:
                print(f"{log.relative_to(folder)}: {line}", file=sys.stderr)
