"""`minshu-audit`: verify, compare, prove, watch and report on logs; offline, with keys the auditor brings."""

import argparse
import importlib.metadata
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NoReturn

from audit import page, timestamps
from audit.bundle import Bundle, entries_of, export, open_bundle, open_bundles, tile_reader
from audit.cross import Crossed, Side, cross, gather
from audit.entries import ENTRY_KINDS, Entry
from audit.folder import CHECKPOINT, COSIGNED
from audit.merkle import MAX_ENTRY_BYTES, inclusion_proof, leaf_hash, verify_inclusion
from audit.note import MAX_NOTE_BYTES, Checkpoint, Note
from audit.proof import TlogProof
from audit.quorum import TrustPolicy, cosigners
from audit.review import Review, Watching, review
from audit.trust import Trust, logs_of, quorum_of, read_files, read_input, read_trust, rosters_of
from audit.watch import MIN_EVERY_S, watch
from protocols.envelope import MAX_ENVELOPE_BYTES
from protocols.errors import DecodeError, InputError, MinshuError, SignatureInvalid
from protocols.ids import NodeName
from protocols.wire import Roster, utc_text

VERIFIED: Final = 0
FAILED: Final = 1
USAGE: Final = 2

_MAX_CANARY_BYTES: Final = 8 << 20
_MAX_RELEASE_BYTES: Final = 256 << 20
_MAX_PROOF_BYTES: Final = MAX_NOTE_BYTES + (1 << 20)
_BUNDLE: Final = "folder with checkpoint and tile/, or a .zip of it"


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
    except KeyboardInterrupt:
        _complain("interrupted", "nothing was verified")
        return FAILED
    except Exception as error:  # noqa: BLE001  # outermost: what it reads may be made to break it
        _complain(
            f"it ended with {type(error).__name__}; nothing was verified",
            "what it reads may have been made to break it: keep that, and have this program mended",
        )
        return FAILED


def _now() -> datetime:
    return datetime.now(UTC)


# -- arguments ---------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="minshu-audit",
        description="Verify journals offline: signatures, history, decisions, what they say of each other."
        " Exit status: 0 verified, 1 not, 2 usage error.",
    )
    parser.add_argument(
        "--version", action="version", version=f"minshu-audit {importlib.metadata.version('minshu')}"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], about: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.")
        made.set_defaults(run=run)
        return made

    verify = command("verify", _verify, "check one journal: signatures, entries, decisions, who has seen it")
    _bundle_argument(verify)
    _trust_arguments(verify)
    verify.add_argument(
        "--since",
        type=Path,
        metavar="CHECKPOINT",
        help="the checkpoint file you kept from an earlier verification: nothing it covers may have changed",
    )
    _more_arguments(verify)
    _json_argument(verify)

    bundle = command("bundle", _bundle, "copy what an auditor needs out of a journal, without payloads")
    bundle.add_argument("journal", type=Path, metavar="FOLDER", help="a journal's folder; it may be growing")
    bundle.add_argument(
        "--out", type=Path, required=True, metavar="OUT", help="the new bundle: a folder, or a name in .zip"
    )
    _json_argument(bundle)

    crossing = command("cross", _cross, "hold several journals against each other")
    _bundle_argument(crossing, several=True)
    _trust_arguments(crossing)
    _json_argument(crossing)

    inclusion = command(
        "inclusion", _inclusion, "prove that one entry is in a journal, or check such a proof"
    )
    inclusion.add_argument("bundle", type=Path, nargs="?", metavar="BUNDLE", help=_BUNDLE)
    inclusion.add_argument("seq", type=_natural, nargs="?", metavar="SEQ", help="the entry's number, from 0")
    inclusion.add_argument(
        "--out", type=Path, metavar="FILE", help="where the proof goes; else it is printed"
    )
    inclusion.add_argument("--check", type=Path, metavar="PROOF", help="check this proof instead")
    inclusion.add_argument(
        "--entry", type=Path, metavar="FILE", help="the entry's exact bytes: written, or with --check read"
    )
    _trust_arguments(inclusion, rosters=False)
    _json_argument(inclusion)

    report = command("report", _report, "write everything into one HTML page, readable on paper")
    _bundle_argument(report, several=True)
    report.add_argument("--out", type=Path, required=True, metavar="FILE", help="the page to write")
    report.add_argument("--lang", choices=("en", "zh"), default="en", help="its language; en unless given")
    _trust_arguments(report)
    _more_arguments(report)
    _json_argument(report)

    watching = command("watch", _watch, "follow journals and stop at the first inconsistency")
    _bundle_argument(watching, several=True)
    watching.add_argument(
        "--state", type=Path, required=True, metavar="DIR", help="the monitor's own folder: what it saw last"
    )
    watching.add_argument(
        "--every", type=_seconds, default=60.0, metavar="S", help="seconds between two looks"
    )
    watching.add_argument("--once", action="store_true", help="look once")
    _trust_arguments(watching)

    stamp = command("timestamp", _usage, "have a checkpoint time-stamped by an authority (RFC 3161)")
    steps = stamp.add_subparsers(required=True, metavar="STEP")
    ask = steps.add_parser("request", help="write the request over the newest checkpoint")
    ask.add_argument("journal", type=Path, metavar="FOLDER", help="a journal's folder")
    ask.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="the request; FILE.checkpoint is kept beside it",
    )
    _json_argument(ask)
    ask.set_defaults(run=_timestamp_request)
    attach = steps.add_parser("attach", help="keep the authority's answer in the journal's folder")
    attach.add_argument("journal", type=Path, metavar="FOLDER", help="the journal's folder")
    attach.add_argument("reply", type=Path, metavar="REPLY", help="what the authority sent (.tsr)")
    attach.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="what was stamped; else it is looked for in the folder",
    )
    attach.add_argument("--tsa-root", type=Path, metavar="PEM", help="check it against these certificates")
    _json_argument(attach)
    attach.set_defaults(run=_timestamp_attach)

    show = command("show", _show, "print a journal's entries, without checking them")
    _bundle_argument(show)
    show.add_argument("--kind", metavar="K", help="only entries of this kind, such as job.refused")
    show.add_argument("--job", metavar="J", help="only entries about this job: its id, or how its id begins")
    show.add_argument("--json", action="store_true", help="print each entry as one line of JSON")

    keys = command("keys", _keys, "write the keys that signed rosters list, one file per journal and witness")
    keys.add_argument("--roots", type=Path, required=True, metavar="FILE", help="the roots document")
    keys.add_argument(
        "--roster",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="signed rosters in order, or bundles",
    )
    keys.add_argument("--out", type=Path, required=True, metavar="DIR", help="the new folder")
    _json_argument(keys)
    return parser


def _bundle_argument(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    if several:
        parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE", help=_BUNDLE)
    else:
        parser.add_argument("bundle", type=Path, metavar="BUNDLE", help=_BUNDLE)


def _trust_arguments(parser: argparse.ArgumentParser, *, rosters: bool = True) -> None:
    group = parser.add_argument_group("what you bring; never take it from a bundle")
    group.add_argument(
        "--keys",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        metavar="PATH",
        help="verifier key lines of journals and witnesses: files, or folders of files",
    )
    group.add_argument(
        "--quorum", type=Path, metavar="FILE", help="whose cosignatures it takes: a C2SP tlog-policy"
    )
    if not rosters:
        return
    group.add_argument(
        "--roots",
        type=Path,
        metavar="FILE",
        help="the collaboration's root keys: rosters are verified by them",
    )
    group.add_argument(
        "--officers",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        metavar="PATH",
        help="public keys, or key ids, of those who may sign policies",
    )
    group.add_argument(
        "--tsa-root",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        metavar="PEM",
        help="root certificates of time-stamping authorities",
    )


def _more_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--release",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="releases that their recipient opened and saved: disclosure control is run on them again",
    )
    parser.add_argument(
        "--canaries",
        type=Path,
        metavar="FILE",
        help="planted identifiers, one to a line: they must be nowhere",
    )


def _json_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")


def _natural(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 16:
        raise argparse.ArgumentTypeError("expected a whole number")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not MIN_EVERY_S <= seconds <= 1e6:
        raise argparse.ArgumentTypeError(f"expected {MIN_EVERY_S:g} seconds or more")
    return seconds


def _trust(arguments: argparse.Namespace) -> Trust:
    trust = read_trust(
        keys=arguments.keys,
        quorum=arguments.quorum,
        roots=getattr(arguments, "roots", None),
        officers=getattr(arguments, "officers", ()),
        tsa_roots=getattr(arguments, "tsa_root", ()),
    )
    if not trust.keys and trust.roots is None:
        raise InputError(
            "nothing to hold it against: no key was given",
            code="no-keys",
            hint="give --keys or --roots, as the operators or root key holders handed them out",
        )
    return trust


# -- commands ----------------------------------------------------------------------------------------------


def _verify(arguments: argparse.Namespace) -> int:
    trust = _trust(arguments)
    earlier = None if arguments.since is None else _read_note(arguments.since, "earlier checkpoint")
    brought = _brought(arguments)
    with open_bundle(arguments.bundle) as bundle:
        found = _reviewed(bundle, trust, brought, earlier=earlier)
    _print(arguments, found.document(), page.review(found))
    return _verdict(found.ok, "this journal", sum(check.count for check in found.checks))


@dataclass(frozen=True, slots=True)
class _Brought:
    """What else an auditor may bring."""

    canaries: tuple[str, ...]
    opened: Mapping[str, bytes]


def _brought(arguments: argparse.Namespace) -> _Brought:
    canaries: tuple[str, ...] = ()
    if arguments.canaries is not None:
        try:
            text = read_input(arguments.canaries, _MAX_CANARY_BYTES, "file of planted identifiers").decode()
        except UnicodeDecodeError:
            raise InputError(
                "the file of planted identifiers is not UTF-8 text", code="unreadable", hint="one to a line"
            ) from None
        # Shorter ones would be found by chance.
        canaries = tuple(dict.fromkeys(line.strip() for line in text.split("\n") if len(line.strip()) >= 6))
    opened: dict[str, bytes] = {}
    for path in (file for each in arguments.release for file in read_files(each, "release")):
        if path.name in opened:
            raise InputError(
                f"two files are called {path.name}", code="same-name", hint="give each release once"
            )
        opened[path.name] = read_input(path, _MAX_RELEASE_BYTES, "release")
    return _Brought(canaries, opened)


def _reviewed(
    bundle: Bundle,
    trust: Trust,
    brought: _Brought,
    *,
    earlier: bytes | None = None,
    also: Callable[[Entry], None] | None = None,
) -> Review:
    with page.progress(bundle.label) as progress:
        return review(
            bundle,
            trust,
            earlier=earlier,
            canaries=brought.canaries,
            opened=brought.opened,
            now=_now(),
            also=also,
            progress=progress,
        )


def _bundle(arguments: argparse.Namespace) -> int:
    made = export(arguments.journal, arguments.out)
    lines = [
        f"bundle    {page.plain(os.fspath(made.path))}",
        f"log       {page.plain(made.origin)}",
        f"entries   {made.size}",
        f"files     {made.files:,}, of these {page.count(made.objects, 'object')}; {made.bytes:,} bytes",
    ]
    _print(arguments, made.document(), lines)
    return VERIFIED


def _cross(arguments: argparse.Namespace) -> int:
    trust = _trust(arguments)
    with ExitStack() as opened:
        sides = []
        for bundle in open_bundles(arguments.bundles):
            opened.enter_context(bundle)
            with page.progress(bundle.label) as progress:
                watching = Watching(progress, bundle)
                sides.append(gather(bundle, trust, watching.visit, _now()))
        found = cross(sides)
    _print(arguments, found.document(), page.crossed(found))
    return _verdict(found.ok, "these journals", _problems(found))


def _problems(found: Crossed) -> int:
    inside = sum(side.verdict.problem_count for side in found.sides if side.verdict is not None)
    return inside + sum(check.count for check in found.checks.values())


def _inclusion(arguments: argparse.Namespace) -> int:
    if arguments.check is not None:
        return _check_inclusion(arguments)
    if arguments.bundle is None or arguments.seq is None:
        raise InputError(
            "neither BUNDLE and SEQ nor --check were given",
            code="bad-arguments",
            hint="minshu-audit inclusion BUNDLE SEQ, or minshu-audit inclusion --check PROOF --entry FILE",
        )
    with open_bundle(arguments.bundle) as bundle:
        proof, entry = _prove(bundle, arguments.seq)
    text = proof.encode()
    if arguments.entry is not None:
        _write(arguments.entry, entry)
    if arguments.out is not None:
        _write(arguments.out, text)
    checkpoint = Checkpoint.decode(Note.decode(proof.checkpoint).text)
    if arguments.out is None and not arguments.json:
        print(text.decode(), end="")
        return VERIFIED
    facts = {"seq": proof.index, "origin": checkpoint.origin, "size": checkpoint.size, "proof": text.decode()}
    what = f"entry {proof.index} of {page.plain(checkpoint.origin)}, in the tree of {checkpoint.size}"
    _print(arguments, facts, [f"proof     {what}"])
    return VERIFIED


def _prove(bundle: Bundle, seq: int) -> tuple[TlogProof, bytes]:
    """Return the proof of one entry and its bytes; under the cosigned checkpoint, if that covers it."""
    newest = bundle.read_checkpoint()
    if newest is None:
        raise _no_checkpoint()
    size = Checkpoint.decode(Note.decode(newest).text).size
    cosigned = bundle.read_checkpoint(COSIGNED)
    note = newest
    if cosigned is not None and seq < Checkpoint.decode(Note.decode(cosigned).text).size <= size:
        note = cosigned
    checkpoint = Checkpoint.decode(Note.decode(note).text)
    if seq >= checkpoint.size:
        raise InputError(
            f"there is no entry {seq}: {CHECKPOINT} covers {checkpoint.size}",
            code="no-entry",
            hint="entries are numbered from 0",
        )
    entry = next(entries_of(bundle, size, seq))
    proof = inclusion_proof(tile_reader(bundle, size), seq, checkpoint.size)
    verify_inclusion(leaf_hash(entry), seq, checkpoint.size, proof, checkpoint.root)
    return TlogProof(seq, tuple(proof), note), entry


def _check_inclusion(arguments: argparse.Namespace) -> int:
    if arguments.entry is None:
        raise InputError(
            "a proof says nothing without its entry",
            code="bad-arguments",
            hint="give --entry FILE with the entry's exact bytes",
        )
    trust = _trust(arguments)
    data = read_input(arguments.entry, MAX_ENTRY_BYTES, "entry")
    proof = TlogProof.decode(read_input(arguments.check, _MAX_PROOF_BYTES, "proof"))
    note, checkpoint = proof.verify(data, trust.log_keys)
    votes = sorted(key.label for key in cosigners(note, trust.witness_keys, _now()))
    enough = None if trust.quorum is None else trust.quorum.satisfied(note, _now())
    said = _entry_said(data)
    facts = {
        "ok": enough is not False,
        "seq": proof.index,
        "origin": checkpoint.origin,
        "size": checkpoint.size,
        "cosigned_by": votes,
        "quorum": enough,
    }
    lines = [
        f"log       {page.plain(checkpoint.origin)}",
        f"entry     {proof.index}, {said}, is in its tree of {checkpoint.size}",
        f"cosigned  {', '.join(map(page.plain, votes)) or 'by nobody whose key you brought'}",
    ]
    if enough is not None:
        lines.append("OK: the proof holds, the quorum has seen it" if enough else "NOT OK")
    else:
        lines.append("OK: the proof holds")
    _print(arguments, facts, lines)
    if enough is False:
        _complain("the proof holds, but too few witnesses have seen its checkpoint", "ask for a newer proof")
        return FAILED
    return VERIFIED


def _entry_said(data: bytes) -> str:
    """Return what an entry is; another program's log may hold anything."""
    try:
        entry = Entry.decode(data)
    except DecodeError:
        return f"{len(data)} bytes"
    return f"{entry.kind} of {entry.time}"


def _report(arguments: argparse.Namespace) -> int:
    from audit.report import render

    trust, brought = _trust(arguments), _brought(arguments)
    with ExitStack() as opened:
        reviews, sides = [], []
        for bundle in open_bundles(arguments.bundles):
            side = Side(opened.enter_context(bundle), trust)
            reviews.append(_reviewed(bundle, trust, brought, also=side.visit))
            sides.append(side.take(reviews[-1]))
        crossed = cross(sides) if len(sides) > 1 else None
        if crossed is not None:
            crossed.tell(reviews)
    text = render(reviews, crossed, arguments.lang, made=_now())
    _write(arguments.out, text.encode())
    ok = all(each.ok for each in reviews) and (crossed is None or crossed.ok)
    facts = {
        "ok": ok,
        "out": os.fspath(arguments.out),
        "reviews": [each.document() for each in reviews],
        "cross": None if crossed is None else crossed.document(),
    }
    lines = [
        f"{each.label}: {page.plain(each.verdict.origin) or 'no log'}, {'OK' if each.ok else 'NOT OK'}"
        for each in reviews
    ]
    if crossed is not None:
        lines.append("the logs agree" if crossed.ok else "the logs contradict each other")
    _print(arguments, facts, [*lines, f"report    {page.plain(os.fspath(arguments.out))}"])
    problems = sum(check.count for each in reviews for check in each.checks)
    return _verdict(ok, "what is reported", problems)


def _watch(arguments: argparse.Namespace) -> int:
    def tell(line: str) -> None:
        print(f"{utc_text(_now())}  {page.plain(line)}", flush=True)

    every_s = None if arguments.once else arguments.every
    if watch(arguments.bundles, _trust(arguments), arguments.state, tell=tell, every_s=every_s, now=_now):
        return VERIFIED
    _complain(
        "a journal is inconsistent, or could not be followed",
        "keep the state folder: evidence/ in it holds what was shown of one that is inconsistent",
    )
    return FAILED


def _usage(_: argparse.Namespace) -> int:
    return USAGE


def _timestamp_request(arguments: argparse.Namespace) -> int:
    with open_bundle(arguments.journal) as bundle:
        checkpoint = bundle.read_checkpoint(COSIGNED) or bundle.read_checkpoint()
    if checkpoint is None:
        raise _no_checkpoint()
    request = timestamps.request(checkpoint)
    kept = arguments.out.with_name(f"{arguments.out.name}.checkpoint")
    _write(kept, checkpoint)
    _write(arguments.out, request)
    size = Checkpoint.decode(Note.decode(checkpoint).text).size
    facts = {"size": size, "request": os.fspath(arguments.out), "checkpoint": os.fspath(kept)}
    _print(arguments, facts, [f"request   {arguments.out}, over {size} entries", f"kept      {kept}"])
    return VERIFIED


def _timestamp_attach(arguments: argparse.Namespace) -> int:
    reply = read_input(arguments.reply, timestamps.MAX_REPLY_BYTES, "answer")
    roots = None if arguments.tsa_root is None else read_trust(tsa_roots=[arguments.tsa_root]).tsa_roots
    if arguments.checkpoint is not None:
        checkpoint = _read_note(arguments.checkpoint, "checkpoint")
    else:
        checkpoint = timestamps.find(arguments.journal, reply)
    size = timestamps.attach(arguments.journal, checkpoint, reply, roots)
    checked = "" if roots else "; not checked against any certificate"
    _print(arguments, {"size": size, "checked": bool(roots)}, [f"attached  over {size} entries{checked}"])
    return VERIFIED


def _show(arguments: argparse.Namespace) -> int:
    if arguments.kind is not None and arguments.kind not in ENTRY_KINDS:
        raise InputError(
            "there is no such kind of entry", code="unknown-kind", hint=f"one of: {', '.join(ENTRY_KINDS)}"
        )
    job = None if arguments.job is None else "sha256:" + arguments.job.removeprefix("sha256:")
    with open_bundle(arguments.bundle) as bundle:
        data = bundle.read_checkpoint()
        if data is None:
            raise _no_checkpoint()
        for entry in map(Entry.decode, entries_of(bundle, Checkpoint.decode(Note.decode(data).text).size)):
            if arguments.kind in (None, entry.kind) and (job is None or entry.job.startswith(job)):
                print(page.plain_json(entry.encode().decode()) if arguments.json else page.entry(entry))
    return VERIFIED


def _keys(arguments: argparse.Namespace) -> int:
    """Write what any C2SP tool needs: `keys/<node>`, `keys/<node>.witness`, and `quorum/<node>` per log."""
    trust, wrong = read_trust(roots=arguments.roots).with_rosters(_rosters(arguments.roster))
    if wrong:
        raise SignatureInvalid(
            f"the rosters do not follow from the root keys: {wrong[0].what}",
            code=wrong[0].code,
            hint="give them in order, from the first that these root keys signed",
        )
    roster = trust.newest
    if roster is None:
        raise SignatureInvalid(
            "none of these is a roster that the root keys signed",
            code="no-roster",
            hint="compare the roots document's fingerprint with the root key holders",
        )
    files = dict(_key_files(roster))
    if os.path.lexists(arguments.out):
        raise InputError(
            f"{arguments.out.name} is there already", code="out-exists", hint="name a new folder"
        )
    for name, text in files.items():
        path = arguments.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
    fingerprint = trust.roots.fingerprint if trust.roots is not None else ""
    facts = {
        "roots": fingerprint,
        "version": roster.version,
        "issued": utc_text(roster.issued),
        "expires": utc_text(roster.expires),
        "files": sorted(files),
    }
    lines = [
        f"roots     {fingerprint}; compare it with the root key holders",
        f"roster    version {roster.version}, issued {utc_text(roster.issued)}",
        *(f"wrote     {arguments.out / name}" for name in sorted(files)),
    ]
    _print(arguments, facts, lines)
    return VERIFIED


def _rosters(paths: Iterable[Path]) -> Iterable[bytes]:
    for path in paths:
        if path.is_dir() or path.suffix == ".zip":
            with open_bundle(path) as bundle:
                yield from rosters_of(bundle)[0]
        else:
            yield read_input(path, MAX_ENVELOPE_BYTES, "roster").rstrip(b"\n")


def _key_files(roster: Roster) -> Iterable[tuple[str, bytes]]:
    owners: list[tuple[NodeName, tuple[str, ...]]] = [
        (node.name, node.witness_vkeys) for node in roster.nodes
    ]
    if roster.coordinator is not None:
        owners.append((roster.coordinator.name, ()))
    for name, witness_vkeys in owners:
        file = name.replace("/", "_")
        logs = [key for key in logs_of(roster) if key.name.startswith(f"{name}/")]
        if logs:
            yield f"keys/{file}", "".join(f"{key}\n" for key in logs).encode()
            quorum = quorum_of(None, roster, name)
            if quorum.possible:
                yield f"quorum/{file}", TrustPolicy.of(logs, quorum).encode()
        if witness_vkeys:
            yield f"keys/{file}.witness", "".join(f"{line}\n" for line in witness_vkeys).encode()


# -- input and output --------------------------------------------------------------------------------------


def _read_note(path: Path, what: str) -> bytes:
    return read_input(path, MAX_NOTE_BYTES, what)


def _no_checkpoint() -> InputError:
    return InputError(
        "there is no checkpoint in this folder",
        code="no-checkpoint",
        hint="give the folder that holds checkpoint and tile/",
    )


def _write(path: Path, data: bytes) -> None:
    """Put a file in its place in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _print(arguments: argparse.Namespace, facts: Any, lines: Iterable[str]) -> None:
    if arguments.json:
        print(page.plain_json(json.dumps(facts, ensure_ascii=False, sort_keys=True)))
    else:
        for line in lines:
            print(line)


def _verdict(ok: bool, what: str, problems: int) -> int:
    if ok:
        return VERIFIED
    does = "do not" if what.endswith("s") else "does not"
    _complain(
        f"{what} {does} verify: {page.count(problems, 'problem')}",
        "keep the folder as it is, it is evidence; fetch a second copy and compare",
    )
    return FAILED


def _complain(message: str, hint: str) -> None:
    print(f"minshu-audit: error: {page.plain(message)}", file=sys.stderr)
    if hint:
        print(f"hint: {page.plain(hint)}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
