"""What every command of `minshu-node` does alike: find its home, ask the node, print a result."""

import argparse
import json
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from protocols.errors import InputError
from protocols.freetext import UNREADABLE, printable

if TYPE_CHECKING:
    from node.home import Home

OK: Final = 0

Command: TypeAlias = Callable[[Any, str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]
"""Adds a command to a group: the group, the command's name, what it calls, what it is about."""


def whole_number(text: str) -> int:
    """Read a count that stands on the command line."""
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError("expected a whole number")
    return int(text)


def home_of(arguments: argparse.Namespace) -> "Home":
    """Return the node's folder that a command names.

    Raises:
        InputError: `no-home`.
    """
    from node.home import Home

    named = arguments.home or os.environ.get("MINSHU_HOME")
    if not named:
        raise InputError("no home folder is named", code="no-home", hint="give --home DIR or set MINSHU_HOME")
    return Home(Path(named))


def utc_now() -> datetime:
    """Return what this machine's clock says."""
    return _now()


def _now() -> datetime:
    return datetime.now(UTC)


def print_result(arguments: argparse.Namespace, result: Mapping[str, Any], *lines: str) -> int:
    """Print a result: `lines` for people, `result` with --json."""
    if arguments.json:
        plain = json.dumps(result, ensure_ascii=False)
        # All of these stand inside JSON's strings, so they can be written as its escapes.
        print(UNREADABLE.sub(lambda found: json.dumps(found.group())[1:-1], plain))
    else:
        print(*map(shown, lines), sep="\n")
    return OK


def shown(text: str) -> str:
    """Return a text of several lines for a terminal.

    A name that a table or another department chose moves no cursor and turns no line around.
    """
    return "\n".join(map(printable, text.split("\n")))


def ask_node(home: "Home", kind: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Have a command carried out by the node, running or not; see `node.desk`.

    Raises:
        MinshuError: as `Desk.handle`.
    """
    from node.desk import ask

    return ask(home, kind, body, signer=home.signer, now=utc_now)
