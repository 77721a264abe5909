"""`minshu-audit`: verify and read a log's folder, offline, with a key received on another way."""

import argparse
import importlib.metadata
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from audit.entries import ENTRY_KINDS, Entry
from audit.note import MAX_NOTE_BYTES, VerifierKey
from audit.verify import Verdict, read_entries, verify_directory
from protocols.encoding import b64encode
from protocols.errors import DecodeError, InputError, MinshuError

VERIFIED: Final = 0
FAILED: Final = 1
USAGE: Final = 2

_MAX_KEY_FILE_BYTES: Final = 1 << 16


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Leave with status 2, in the form of every other error."""
        _complain(message, f"run {self.prog} --help")
        sys.exit(USAGE)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0 verified, 1 verification failed, 2 usage error."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except InputError as error:
        _complain(error.message, error.hint)
        return USAGE
    except MinshuError as error:
        _complain(error.message, error.hint)
        return FAILED
    except BrokenPipeError:
        # The reader, `head` say, has enough. Python would complain again when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        _complain(error.strerror or "a file cannot be read", "check the path and its permissions")
        return FAILED


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="minshu-audit", description="Verify and read a node's or coordinator's journal.")
    parser.add_argument(
        "--version", action="version", version=f"minshu-audit {importlib.metadata.version('minshu')}"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    verify = commands.add_parser(
        "verify",
        help="check signature, entries, tiles and root of a journal",
        description="Check a journal's folder. Exit status: 0 it verifies, 1 it does not, 2 usage error.",
    )
    verify.add_argument("directory", type=Path, metavar="DIRECTORY", help="folder with checkpoint and tile/")
    verify.add_argument(
        "--vkey",
        type=Path,
        required=True,
        metavar="FILE",
        help="a verifier key that the log has or had, one line per key; never take it from the folder itself",
    )
    verify.add_argument(
        "--since",
        type=Path,
        metavar="CHECKPOINT",
        help="the checkpoint file you kept from an earlier verification: nothing it covers may have changed",
    )
    verify.add_argument("--json", action="store_true", help="print the verdict as one JSON object")
    verify.set_defaults(run=_verify)

    show = commands.add_parser(
        "show",
        help="print a journal's entries, without checking them",
        description="Print a journal's entries. Nothing is checked: run verify first.",
    )
    show.add_argument("directory", type=Path, metavar="DIRECTORY", help="folder with checkpoint and tile/")
    show.add_argument("--kind", metavar="K", help="only entries of this kind, such as job.refused")
    show.add_argument("--job", metavar="J", help="only entries about this job: its id, or how its id begins")
    show.add_argument("--json", action="store_true", help="print each entry as one line of JSON")
    show.set_defaults(run=_show)
    return parser


def _verify(arguments: argparse.Namespace) -> int:
    earlier = None if arguments.since is None else _read_checkpoint(arguments.since)
    verdict = verify_directory(arguments.directory, read_keys(arguments.vkey), earlier=earlier)
    if arguments.json:
        print(json.dumps(verdict.document(), ensure_ascii=False, sort_keys=True))
    else:
        _print_verdict(verdict)
    if verdict.ok:
        return VERIFIED
    _complain(
        f"this journal does not verify: {_count(verdict.problem_count, 'problem')}",
        "keep the folder as it is, it is evidence; fetch a second copy and compare",
    )
    return FAILED


def read_keys(path: Path) -> list[VerifierKey]:
    """Return the verifier keys in a file, one per line.

    Raises:
        InputError: it cannot be read, holds no key, or a line is none.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_KEY_FILE_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(
            f"the key file cannot be read: {reason}",
            code="bad-vkey-file",
            hint="give the file with the log's verifier key",
        ) from None
    lines = [line for line in text.splitlines() if line]
    if not lines:
        raise InputError("the key file is empty", code="bad-vkey-file", hint="it holds one key per line")
    try:
        return [VerifierKey.parse(line) for line in lines]
    except DecodeError as error:
        raise InputError(error.message, code=error.code, hint=error.hint) from None


def _read_checkpoint(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_NOTE_BYTES + 1)
    except OSError as error:
        raise InputError(
            f"the earlier checkpoint cannot be read: {error.strerror}",
            code="bad-earlier-checkpoint",
            hint="give a copy of the file checkpoint that you kept",
        ) from None


def _print_verdict(verdict: Verdict) -> None:
    if verdict.origin:
        # Whoever signs the origin writes it: it must not turn this text around.
        print(f"log       {verdict.origin if verdict.origin.isprintable() else ascii(verdict.origin)}")
        times = f", from {verdict.first} to {verdict.last}" if verdict.first else ""
        print(f"entries   {verdict.size}{times}")
        print(f"root      {b64encode(verdict.root)}")
        if len(verdict.keys) > 1:
            labels = [VerifierKey.parse(key).label for key in verdict.keys]
            print(f"keys      {', then '.join(labels)}")
        print(f"signed    {', '.join(verdict.signed_by)}")
    for kind, count in sorted(verdict.kinds.items()):
        print(f"  {count:>6}  {kind}")
    for problem in verdict.problems:
        print(f"problem   {problem.where}: {problem.what} [{problem.code}]")
    unlisted = verdict.problem_count - len(verdict.problems)
    if unlisted:
        print(f"          and {unlisted} more")
    if verdict.ok:
        print("OK: the signature holds; entries, tiles and root agree")
    else:
        print("NOT OK")


def _show(arguments: argparse.Namespace) -> int:
    if arguments.kind is not None and arguments.kind not in ENTRY_KINDS:
        raise InputError(
            "there is no such kind of entry", code="unknown-kind", hint=f"one of: {', '.join(ENTRY_KINDS)}"
        )
    job = None if arguments.job is None else "sha256:" + arguments.job.removeprefix("sha256:")
    for entry in read_entries(arguments.directory):
        if arguments.kind not in (None, entry.kind) or (job is not None and not entry.job.startswith(job)):
            continue
        print(entry.encode().decode() if arguments.json else _line(entry))
    return VERIFIED


def _line(entry: Entry) -> str:
    """Return one entry for a person: digests cut to twelve digits, a key that is over to its name and id."""
    said: dict[str, Any] = {}
    if entry.job:
        said["job"] = entry.job
    if entry.attempt:
        said["attempt"] = entry.attempt
    if entry.policy:
        said["policy"] = f"v{entry.policy.version}"
        said["rule"] = entry.policy.rule or "none"
    if entry.actor:
        said["actor"] = entry.actor
    said |= entry.body
    if "previous_vkey" in said:
        said["previous_vkey"] = VerifierKey.parse(said["previous_vkey"]).label
    if entry.refs:
        said["refs"] = list(entry.refs)
    return f"{entry.seq:>6}  {entry.time}  {entry.kind:<18}" + "".join(
        f"  {key}={_short(value)}" for key, value in said.items()
    )


def _short(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_short, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = str(value)
    return text.removeprefix("sha256:")[:12] if text.startswith("sha256:") else text


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _complain(message: str, hint: str) -> None:
    print(f"minshu-audit: error: {message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
