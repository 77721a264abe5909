"""The `minshu-demo` command: a synthetic city, and everything else shown on it.

A subcommand is one `_add_…` function, called once in `_parser`; it sets `run`, which returns the exit status.
"""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from protocols.errors import MinshuError

if TYPE_CHECKING:
    from demo.city import Expected, Manifest

PROGRAM = "minshu-demo"


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in the words of the other errors."""

    def error(self, message: str) -> NoReturn:
        _complain(message, f"see {self.prog} --help")
        raise SystemExit(2)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, 1 for an error, 2 for wrong usage, 130 when interrupted."""
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except MinshuError as error:
        _complain(error.message, error.hint)
        return 1
    except KeyboardInterrupt:
        _complain("interrupted", "")
        return 130
    return status


def _complain(message: str, hint: str) -> None:
    print(f"{PROGRAM}: error: {message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog=PROGRAM, description="Minshu on a synthetic city.")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {version('minshu')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_run(commands)
    _add_scenario(commands)
    _add_city(commands)
    return parser


def _add_run(commands: "argparse._SubParsersAction[_Parser]") -> None:
    parser = commands.add_parser(
        "run",
        help="play the main job on a synthetic city, with every attack it must refuse",
        description="Start a coordinator, six nodes and an analyst on this machine, ask the main question, "
        "replay the attacks, check every journal, search for leaks, and leave the results in OUT.",
    )
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="default: %(default)s")
    parser.add_argument("--profile", default="demo", help="city profile: ci, demo (the default) or bench")
    parser.add_argument("--seed", type=int, default=1, help="of the city (default 1)")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from demo.run import run

    with _stopped_by_signal():
        return run(arguments.out, profile=arguments.profile, seed=arguments.seed)


def _add_scenario(commands: "argparse._SubParsersAction[_Parser]") -> None:
    from demo.scenario import NUMBERS

    parser = commands.add_parser(
        "scenario",
        help="play one question on a synthetic city and hold the answer against the truth",
        description="Start the departments that the scenario takes on this machine, ask its questions, "
        "compare what is released with the truth, and leave table, pictures and journals in OUT. "
        "2: the dead on the register and on the pension list (应销未销, 养老金续领); "
        "3: registered in one place, living in another (人户分离); 4: school places (学位缺口); "
        "5: insurance, income and businesses of the same people (灵活就业); "
        "6: a model of who is vaccinated (接种率模型); "
        "7: leads to people whom an illness has made poor (因病致贫); "
        "8: marital status, as two departments have it (婚姻状况校核); "
        "9: urban villages (城中村实有人口); 10: a street clerk verifies residents (以核代填).",
    )
    numbers = ", ".join(map(str, NUMBERS))
    parser.add_argument("number", metavar="N", type=int, help=f"which scenario: {numbers}")
    parser.add_argument("--out", type=Path, help="default: scenario-N-out")
    parser.add_argument("--profile", default="demo", help="city profile: ci, demo (the default) or bench")
    parser.add_argument("--seed", type=int, default=1, help="of the city (default 1)")
    parser.set_defaults(run=_scenario)


def _scenario(arguments: argparse.Namespace) -> int:
    from demo.scenario import run

    out = arguments.out or Path(f"scenario-{arguments.number}-out")
    with _stopped_by_signal():
        return run(arguments.number, out, profile=arguments.profile, seed=arguments.seed)


def _add_city(commands: "argparse._SubParsersAction[_Parser]") -> None:
    parser = commands.add_parser(
        "city",
        help="build a synthetic city: registers, truth, right answers",
        description="Build a synthetic city in the folder OUT, whole or not at all. "
        "The same profile and seed give the same bytes, whatever the number of workers.",
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="folder that does not exist yet, or is empty")
    parser.add_argument(
        "--profile",
        default="demo",
        help="ci (1e4 people), demo (1e5, the default), bench (1e6) or city (2.3e7)",
    )
    parser.add_argument("--seed", type=int, default=1, help="0 to 2^64 - 1 (default 1)")
    parser.add_argument(
        "--workers", type=int, default=_cores(), help="threads (default: one per core, here %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print the manifest and the right answer as JSON")
    parser.set_defaults(run=_city)


def _cores() -> int:
    return min(len(os.sched_getaffinity(0)), 16) if hasattr(os, "sched_getaffinity") else 1


def _city(arguments: argparse.Namespace) -> int:
    from demo.city import generate, load_expected

    started = time.monotonic()
    with _stopped_by_signal(), _progress(f"city {arguments.profile}") as progress:
        manifest = generate(
            arguments.profile, arguments.seed, arguments.out, workers=arguments.workers, progress=progress
        )
    seconds = time.monotonic() - started
    expected = load_expected(arguments.out)
    if arguments.json:
        answer = {"manifest": asdict(manifest), "expected": expected.to_json(), "seconds": round(seconds, 3)}
        print(json.dumps(answer, ensure_ascii=False, sort_keys=True))
    else:
        print(_summary(manifest, expected))
        print(f"Written to {arguments.out} in {seconds:.1f} s.")
    return 0


def _summary(manifest: "Manifest", expected: "Expected") -> str:
    size = f"City of {manifest.population:,} people, profile {manifest.profile}, seed {manifest.seed}"
    lines = [f"{size}, extracts of {manifest.snapshot}.", "", f"{'register':32}{'rows':>12}{'people':>12}"]
    for path, file in manifest.files.items():
        if path.startswith("registers/"):
            name = path.removeprefix("registers/").removesuffix(".parquet")
            people = f"{file.distinct_keys:,}" if file.distinct_keys >= 0 else ""
            lines.append(f"{name:32}{file.rows:>12,}{people:>12}".rstrip())
    lines.append("")
    if manifest.inflated:
        lines.append(f"Inflated here, so that few people show them: {', '.join(manifest.inflated)}.")
    flagged = f"In {expected.min_sources} sources or more and not on the police's list: {expected.flagged:,}"
    lines.append(f"{flagged}; of these {expected.confirmed:,} truly unregistered.")
    return "\n".join(lines)


@contextmanager
def _stopped_by_signal() -> Iterator[None]:
    """Let SIGTERM unwind the stack as Ctrl-C does, so that nothing half-built is left."""

    def stop(_number: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def _progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """Show progress on stderr: a bar in a terminal, else at most ten plain lines."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(title, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
    else:

        def line(done: int, total: int) -> None:
            if done * 10 // total > (done - 1) * 10 // total:
                print(f"{title}: {done * 100 // total} %", file=sys.stderr, flush=True)

        yield line


if __name__ == "__main__":
    raise SystemExit(main())
