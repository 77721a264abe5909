"""What `minshu-coordinator` and `minshu` share: options, results to stdout, errors to stderr, exit codes."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from protocols.errors import InputError, MinshuError

OK: Final = 0
REFUSED: Final = 1
USAGE: Final = 2
INTERRUPTED: Final = 130


class _Version(argparse.Action):
    """`--version`; the metadata is read only when asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib.metadata import version

        print(f"{parser.prog.split()[0]} {version('minshu')}")
        parser.exit(OK)


def options(parser: argparse.ArgumentParser, *subcommands: argparse.ArgumentParser) -> None:
    """Add the options that every command takes, before the subcommand's name and after it."""
    parser.set_defaults(home=None, json=False)
    for each in (parser, *subcommands):
        # Without the default being suppressed, a subcommand would reset what stood before its name.
        each.add_argument(
            "--home",
            type=Path,
            metavar="DIR",
            default=argparse.SUPPRESS,
            help="the home folder, or MINSHU_HOME",
        )
        each.add_argument(
            "--json", action="store_true", default=argparse.SUPPRESS, help="print the result as JSON"
        )
        each.add_argument("--version", action=_Version, nargs=0, help="print the version")


def home_of(arguments: argparse.Namespace) -> Path:
    """Return the home that --home or MINSHU_HOME names.

    Raises:
        InputError: neither does.
    """
    if arguments.home is not None:
        return Path(arguments.home)
    if named := os.environ.get("MINSHU_HOME"):
        return Path(named)
    raise InputError("no home folder is named", code="no-home", hint="give --home DIR or set MINSHU_HOME")


def show(arguments: argparse.Namespace, result: Mapping[str, Any], lines: Sequence[str]) -> None:
    """Print a result: `lines` for people, `result` with --json."""
    if arguments.json:
        print(json.dumps(result, ensure_ascii=False), flush=True)
    else:
        print(*lines, sep="\n", flush=True)


def run(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, call: Callable[[argparse.Namespace], int]
) -> int:
    """Parse, call, and turn an error into two lines on stderr."""
    arguments = parser.parse_args(argv)
    try:
        return call(arguments)
    except MinshuError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return REFUSED
    except BrokenPipeError:
        # Whoever read our output has closed it; what they wanted they have.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return INTERRUPTED
