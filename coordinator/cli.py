"""`minshu-coordinator`: the data bureau's operator runs the post office and its timetable."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from coordinator import command
from protocols.errors import InputError, Refused

if TYPE_CHECKING:
    from coordinator.home import Home
    from coordinator.registry import Registry
    from coordinator.store import Store
    from protocols.wire import Roster


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    return command.run(_parser(), argv, lambda arguments: int(arguments.call(arguments)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("minshu-coordinator", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    init = commands.add_parser("init", help="make a home: keys, CA, configuration")
    init.add_argument("--name", required=True, help="such as bureau.gz.example/coordinator")
    init.add_argument("--collaboration", required=True, help="such as gz.example")
    init.add_argument(
        "--root", type=Path, action="append", required=True, metavar="PUB", help="root public key"
    )
    init.add_argument("--threshold", type=int, default=2, help="root signatures a roster needs (2)")
    init.add_argument("--suite", type=int, default=1, help="sealing suite of the collaboration (1)")
    init.set_defaults(call=_init)

    run = commands.add_parser("run", help="serve until stopped")
    run.set_defaults(call=_run)

    token = commands.add_parser("token", help="make a one-time token for a node, good for 15 minutes")
    token.add_argument("node", metavar="NODE", help="such as police.gz.example/node-a")
    token.set_defaults(call=_token)

    invite = commands.add_parser("invite", help="print the line analysts connect with")
    invite.set_defaults(call=_invite)

    roster = commands.add_parser("roster", help="draft, sign, publish and show the roster")
    steps = roster.add_subparsers(required=True, metavar="STEP")
    draft = steps.add_parser("draft", help="write the next roster for the root key holders to sign")
    draft.add_argument("--out", type=Path, required=True, metavar="FILE")
    draft.add_argument("--analyst", type=Path, action="append", default=[], metavar="CARD")
    draft.add_argument("--title", action="append", default=[], metavar="ORG=TITLE")
    draft.add_argument("--without", action="append", default=[], metavar="NAME", help="leave out")
    draft.add_argument("--days", type=int, default=90, help="how long it is valid (90)")
    draft.add_argument(
        "--freshness",
        type=Path,
        action="append",
        default=[],
        metavar="PUB",
        help="public key whose owner confirms the roster every week; default: the current ones",
    )
    draft.add_argument(
        "--with",
        dest="readmit",
        action="append",
        default=[],
        metavar="NODE",
        help="list a node again that was left out",
    )
    draft.add_argument(
        "--keep-key", action="append", default=[], metavar="NODE", help="do not propose the key it announced"
    )
    draft.add_argument(
        "--next-root",
        type=Path,
        action="append",
        default=[],
        metavar="PUB",
        help="root public key that signs from the next roster on; all of them, present ones too",
    )
    draft.add_argument(
        "--next-threshold", type=int, default=2, metavar="N", help="signatures that takes then (2)"
    )
    draft.set_defaults(call=_draft)
    sign = steps.add_parser("sign", help="add a root key's signature; needs no home")
    sign.add_argument("file", type=Path, metavar="FILE")
    sign.add_argument("--key", required=True, metavar="KEY", help="key file, or a pkcs11: URI")
    sign.add_argument("--out", type=Path, metavar="FILE", help="default: FILE with the ending .dsse")
    sign.add_argument("--previous", type=Path, metavar="FILE", help="the roster before: print what changes")
    sign.set_defaults(call=_sign)
    freshen = steps.add_parser("freshen", help="confirm, with a freshness key, that the roster is the newest")
    freshen.add_argument("file", type=Path, nargs="?", metavar="FILE", help="default: the newest in the home")
    freshen.add_argument("--key", required=True, metavar="KEY", help="key file, or a pkcs11: URI")
    freshen.add_argument("--out", type=Path, metavar="FILE", help="write it; needs no home if FILE is named")
    freshen.set_defaults(call=_freshen)
    publish = steps.add_parser("publish", help="put a signed roster, or a freshness statement, in force")
    publish.add_argument("file", type=Path, metavar="FILE")
    publish.set_defaults(call=_publish)
    show = steps.add_parser("show", help="print the newest roster and what it changed")
    show.add_argument("file", type=Path, nargs="?", metavar="FILE", help="print this draft or signed roster")
    show.set_defaults(call=_show)

    journal = commands.add_parser("journal", help="begin a new journal where the old one cannot go on")
    acts = journal.add_subparsers(required=True, metavar="STEP")
    successor = acts.add_parser("successor", help="begin the next generation, after a restored backup")
    successor.add_argument("--reason", required=True, metavar="CODE", help="such as restored-backup")
    successor.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="the newest one that a witness keeps, if newer"
    )
    successor.set_defaults(call=_successor)

    status = commands.add_parser("status", help="show whether it runs, and how far its journal is cosigned")
    status.set_defaults(call=_status)

    usage = commands.add_parser("usage", help="show what every organisation has asked and spent")
    usage.set_defaults(call=_usage)

    command.options(
        parser, init, run, token, invite, draft, sign, freshen, publish, show, successor, status, usage
    )
    return parser


def _now() -> datetime:
    return datetime.now(UTC)


def _home(arguments: argparse.Namespace) -> "Home":
    from coordinator.home import Home

    return Home(command.home_of(arguments))


def _init(arguments: argparse.Namespace) -> int:
    from coordinator.home import create
    from policies.keyfile import fingerprint, load_public

    home = create(
        command.home_of(arguments),
        name=arguments.name,
        collaboration=arguments.collaboration,
        roots=[load_public(path) for path in arguments.root],
        threshold=arguments.threshold,
        suite=arguments.suite,
        now=_now(),
    )
    identity = home.signer().public_key
    roots = home.roots()
    command.show(
        arguments,
        {
            "name": arguments.name,
            "identity": fingerprint(identity),
            "roots": roots.fingerprint,
            "journal_vkey": home.journal_vkey,
        },
        [
            f"{arguments.name} is ready in {home.path}",
            f"identity  {fingerprint(identity)}",
            f"journal   {home.journal_vkey}",
            f"roots     {roots.fingerprint}  ({roots.threshold} of {len(roots.keys)})",
        ],
    )
    return command.OK


def _run(arguments: argparse.Namespace) -> int:
    import asyncio

    from coordinator.running import serve

    def ready(addresses: dict[str, str]) -> None:
        command.show(
            arguments,
            addresses,
            [f"listening: public {addresses['public']}, nodes {addresses['nodes']}"],
        )
        if any(address.endswith(":0") for address in (config.public_address, config.nodes_address)):
            print(
                "minshu-coordinator: note: a port is 0, so a restart takes another one and nodes and "
                "analysts lose it; set public_address and nodes_address in coordinator.toml",
                file=sys.stderr,
            )

    home = _home(arguments)
    config = home.config
    asyncio.run(serve(home, ready))
    return command.OK


def _token(arguments: argparse.Namespace) -> int:
    import secrets

    from coordinator.handout import NodeToken

    home = _home(arguments)
    address = home.listening()["public"]
    secret = secrets.token_bytes(16)
    with _opened(home) as (_, registry):
        node = registry.new_token(arguments.node, secret)
    line = NodeToken(address, home.authority().pem.decode(), node, secret.hex()).encode()
    command.show(arguments, {"token": line}, [line])
    return command.OK


def _invite(arguments: argparse.Namespace) -> int:
    from coordinator.handout import Invite

    home = _home(arguments)
    address = home.listening()["public"]
    with _opened(home) as (_, registry):
        roots = registry.roots
    line = Invite(address, home.authority().pem.decode(), roots).encode()
    command.show(arguments, {"invite": line, "roots": roots.fingerprint}, [line])
    return command.OK


def _draft(arguments: argparse.Namespace) -> int:
    from coordinator.drafting import MAX_CARD_BYTES, Card, changes, draft, left_out, next_roots
    from coordinator.files import read_bounded, replace_file
    from policies.keyfile import load_public
    from protocols.wire import RosterCoordinator

    home = _home(arguments)
    with _opened(home) as (store, registry):
        current, enrolments, rotations = registry.roster, store.enrolments(), store.rotations()
        roster = draft(
            current,
            collaboration=home.config.collaboration,
            suite=home.config.suite,
            enrolments=enrolments,
            cards=[Card.decode(read_bounded(path, MAX_CARD_BYTES)) for path in arguments.analyst],
            titles=dict(_title(text) for text in arguments.title),
            without=arguments.without,
            days=arguments.days,
            now=_now(),
            coordinator=RosterCoordinator(home.config.name, home.journal_vkey),
            rotations=rotations,
            keep_key=arguments.keep_key,
            readmit=arguments.readmit,
            freshness=[load_public(path) for path in arguments.freshness],
            next_roots=next_roots(
                [load_public(path) for path in arguments.next_root], arguments.next_threshold
            ),
        )
    replace_file(arguments.out, roster.encode())
    changed, missing = changes(current, roster), left_out(current, roster, enrolments, rotations)
    command.show(
        arguments,
        {"file": str(arguments.out), **_summary(roster), "changes": changed, "left_out": missing},
        [
            *_lines(roster),
            *_changes(current, changed),
            *missing,
            f"written to {arguments.out}: compare each fingerprint, then sign",
        ],
    )
    return command.OK


def _title(text: str) -> tuple[str, str]:
    name, equals, title = text.partition("=")
    if not (name and equals and title):
        raise InputError("a title is not of the form ORG=TITLE", code="bad-title")
    return name, title


def _sign(arguments: argparse.Namespace) -> int:
    from coordinator.drafting import MAX_ROSTER_BYTES, changes, read_roster, sign_roster
    from coordinator.files import read_bounded, replace_file
    from policies.signers import open_signer

    data = read_bounded(arguments.file, MAX_ROSTER_BYTES)
    changed: list[str] = []
    if arguments.previous:
        before = read_roster(read_bounded(arguments.previous, MAX_ROSTER_BYTES))
        after = read_roster(data)
        if after.previous != before.digest:
            raise InputError(
                f"roster version {after.version} does not follow version {before.version} in"
                f" {arguments.previous}",
                code="roster-forked",
                hint="do not sign: ask the coordinator's operator which roster the draft follows",
            )
        changed = _changes(before, changes(before, after))
    envelope, roster = sign_roster(data, open_signer(arguments.key))
    out = arguments.out or arguments.file.with_suffix(".dsse")
    replace_file(out, envelope.encode())
    command.show(
        arguments,
        {"file": str(out), "signatures": len(envelope.signatures), **_summary(roster)},
        [*_lines(roster), *changed, f"signed, {len(envelope.signatures)} signature(s): {out}"],
    )
    return command.OK


def _freshen(arguments: argparse.Namespace) -> int:
    from coordinator.drafting import MAX_ROSTER_BYTES, confirm, read_roster
    from coordinator.files import read_bounded, replace_file
    from policies.signers import open_signer
    from protocols.succession import fresh_until
    from protocols.wire import Freshness, utc_text

    if arguments.file is not None:
        roster = read_roster(read_bounded(arguments.file, MAX_ROSTER_BYTES))
    else:
        with _opened(_home(arguments)) as (_, registry):
            roster = _published(registry)
    envelope = confirm(roster, open_signer(arguments.key), _now())
    until = utc_text(fresh_until(roster, Freshness.decode(envelope.payload)))
    result = {"version": roster.version, "digest": roster.digest, "fresh_until": until}
    lines = [f"roster version {roster.version} is confirmed, fresh until {until}: {roster.digest}"]
    if arguments.out is None:
        with _opened(_home(arguments)) as (_, registry):
            registry.publish_freshness(envelope.encode())
        lines.append("published")
    else:
        replace_file(arguments.out, envelope.encode())
        result["file"] = str(arguments.out)
        lines.append(f"written to {arguments.out}: publish it with roster publish")
    command.show(arguments, result, lines)
    return command.OK


def _publish(arguments: argparse.Namespace) -> int:
    from coordinator.drafting import MAX_ROSTER_BYTES, decode_published
    from coordinator.files import read_bounded
    from protocols.envelope import FRESHNESS
    from protocols.wire import utc_text

    envelope = decode_published(read_bounded(arguments.file, MAX_ROSTER_BYTES))
    with _opened(_home(arguments)) as (_, registry):
        if envelope.payload_type == FRESHNESS:
            statement = registry.publish_freshness(envelope.encode())
            issued = utc_text(statement.issued)
            command.show(
                arguments,
                {"version": statement.version, "digest": statement.sha256, "confirmed": issued},
                [f"roster version {statement.version} is confirmed as of {issued}: {statement.sha256}"],
            )
            return command.OK
        roster = registry.publish(envelope.encode())
    command.show(
        arguments, _summary(roster), [f"roster version {roster.version} is in force: {roster.digest}"]
    )
    return command.OK


def _show(arguments: argparse.Namespace) -> int:
    from coordinator.drafting import MAX_ROSTER_BYTES, changes, read_roster
    from coordinator.files import read_bounded
    from protocols.succession import fresh, fresh_until
    from protocols.wire import utc_text

    if arguments.file is not None:
        roster = read_roster(read_bounded(arguments.file, MAX_ROSTER_BYTES))
        command.show(arguments, _summary(roster), _lines(roster))
        return command.OK
    with _opened(_home(arguments)) as (_, registry):
        roster = _published(registry)
        freshness, before = registry.trusted.freshness, registry.before()
    until = utc_text(min(roster.expires, fresh_until(roster, freshness)))
    try:
        fresh(roster, freshness, _now())
        holds = f"counts    until {until}"
    except Refused as error:
        holds = f"counts    no more: {error.message}"
    # Without the roster before it, what the newest changed is not known here.
    changed = changes(before, roster) if before is not None or roster.version == 1 else []
    command.show(
        arguments,
        {**_summary(roster), "fresh_until": until, "changes": changed},
        [*_lines(roster), holds, *_changes(before, changed)],
    )
    return command.OK


def _published(registry: "Registry") -> "Roster":
    if registry.roster is None:
        raise InputError(
            "no roster is published yet",
            code="no-roster",
            hint="minshu-coordinator roster draft, sign, publish",
        )
    return registry.roster


def _changes(before: "Roster | None", changed: list[str]) -> list[str]:
    if before is None or not changed:
        return changed
    return [f"against version {before.version}:", *(f"  {line}" for line in changed)]


def _successor(arguments: argparse.Namespace) -> int:
    from audit.note import MAX_NOTE_BYTES
    from coordinator.drafting import named
    from coordinator.files import read_bounded

    home = _home(arguments)
    known = read_bounded(arguments.checkpoint, MAX_NOTE_BYTES) if arguments.checkpoint else None
    done = home.succeed_journal(arguments.reason, _now, known)
    command.show(
        arguments,
        {
            "journal_vkey": home.journal_vkey,
            "generation": done.generation,
            "before": done.before.origin,
            "entries_before": done.before.size,
            "kept": str(done.archive),
        },
        [
            f"{home.journal_origin} follows {done.before.origin}, which had {done.before.size} entries",
            f"journal   {named(home.journal_vkey)}",
            f"kept      {done.archive}",
            "nobody cosigns it before a roster lists it: minshu-coordinator roster draft",
        ],
    )
    return command.OK


def _status(arguments: argparse.Namespace) -> int:
    from coordinator.witnessing import journal_status

    home = _home(arguments)
    with _opened(home) as (_, registry):
        status = journal_status(home, registry.roster)
    try:
        addresses = home.listening()
    except InputError:
        addresses = {}
    listening = f"public {addresses['public']}, nodes {addresses['nodes']}" if addresses else ""
    needed = status.witnesses
    command.show(
        arguments,
        {
            "addresses": addresses,
            "journal": status.origin,
            "entries": status.size,
            "cosigned": status.cosigned,
            "cosigned_by": sorted(status.votes),
            "quorum": needed.quorum if needed else 0,
            "witnesses": sorted(needed.organisations) if needed else [],
        },
        [f"listening: {listening}" if listening else f"{home.config.name} is not running", *status.lines()],
    )
    return command.OK


def _usage(arguments: argparse.Namespace) -> int:
    from coordinator.metering import usage_json, usage_lines

    with _opened(_home(arguments)) as (store, _):
        rows = usage_json(store.usage())
    command.show(arguments, {"usage": rows}, usage_lines(rows, organisations=True))
    return command.OK


def _summary(roster: "Roster") -> dict[str, object]:
    from protocols.envelope import key_id

    return {
        "version": roster.version,
        "digest": roster.digest,
        "expires": roster.expires.isoformat(),
        "nodes": {node.name: key_id(node.identity_key) for node in roster.nodes},
        "analysts": {analyst.name: key_id(analyst.key) for analyst in roster.analysts},
        "journal_vkeys": {node.name: node.journal_vkey for node in roster.nodes},
        "witness_vkeys": {node.name: list(node.witness_vkeys) for node in roster.nodes},
        "coordinator": {roster.coordinator.name: roster.coordinator.journal_vkey}
        if roster.coordinator
        else {},
        "freshness_keys": [key_id(key) for key in roster.freshness_keys],
        "next_roots": [key_id(key) for key in roster.roots.keys] if roster.roots else [],
    }


def _lines(roster: "Roster") -> list[str]:
    from coordinator.drafting import hand_over, named, node_lines
    from policies.keyfile import fingerprint

    bureau = roster.coordinator
    return [
        f"roster {roster.collaboration} version {roster.version}, expires {roster.expires:%Y-%m-%d}",
        f"digest    {roster.digest}",
        *([] if bureau is None else [f"journal   {named(bureau.journal_vkey)}"]),
        *(f"member    {o.name}  {o.title}" for o in roster.organisations),
        *(line for node in roster.nodes for line in node_lines(node)),
        *(f"analyst   {a.name}  {a.organisation}  {fingerprint(a.key)}" for a in roster.analysts),
        *(f"freshness {fingerprint(key)}" for key in roster.freshness_keys),
        *([] if roster.freshness_keys else ["freshness no key: the roster counts for 7 days after its date"]),
        *hand_over(roster),
    ]


def _opened(home: "Home") -> "AbstractContextManager[tuple[Store, Registry]]":
    """Open the store beside a running coordinator: it notices what changes there."""
    from coordinator.running import opened

    return opened(home, _now)
