"""`minshu-coordinator`: the data bureau's operator runs the post office and its timetable."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from coordinator import command
from protocols.errors import InputError

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
    draft.set_defaults(call=_draft)
    sign = steps.add_parser("sign", help="add a root key's signature; needs no home")
    sign.add_argument("file", type=Path, metavar="FILE")
    sign.add_argument("--key", type=Path, required=True, metavar="PEM")
    sign.add_argument("--out", type=Path, metavar="FILE", help="default: FILE with the ending .dsse")
    sign.set_defaults(call=_sign)
    publish = steps.add_parser("publish", help="put a signed roster in force")
    publish.add_argument("file", type=Path, metavar="FILE")
    publish.set_defaults(call=_publish)
    show = steps.add_parser("show", help="print the roster in force")
    show.set_defaults(call=_show)

    command.options(parser, init, run, token, invite, draft, sign, publish, show)
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
    line = Invite(address, home.authority().pem.decode(), home.roots()).encode()
    command.show(arguments, {"invite": line, "roots": home.roots().fingerprint}, [line])
    return command.OK


def _draft(arguments: argparse.Namespace) -> int:
    from coordinator.drafting import MAX_CARD_BYTES, Card, draft
    from coordinator.files import read_bounded, replace_file

    home = _home(arguments)
    with _opened(home) as (store, registry):
        roster = draft(
            registry.roster,
            collaboration=home.config.collaboration,
            suite=home.config.suite,
            enrolments=store.enrolments(),
            cards=[Card.decode(read_bounded(path, MAX_CARD_BYTES)) for path in arguments.analyst],
            titles=dict(_title(text) for text in arguments.title),
            without=arguments.without,
            days=arguments.days,
            now=_now(),
        )
    replace_file(arguments.out, roster.encode())
    command.show(
        arguments,
        {"file": str(arguments.out), **_summary(roster)},
        [*_lines(roster), f"written to {arguments.out}: compare each fingerprint, then sign"],
    )
    return command.OK


def _title(text: str) -> tuple[str, str]:
    name, equals, title = text.partition("=")
    if not (name and equals and title):
        raise InputError("a title is not of the form ORG=TITLE", code="bad-title")
    return name, title


def _sign(arguments: argparse.Namespace) -> int:
    from coordinator.drafting import MAX_ROSTER_BYTES, sign_roster
    from coordinator.files import read_bounded, replace_file
    from policies.keyfile import load_signer

    data = read_bounded(arguments.file, MAX_ROSTER_BYTES)
    envelope, roster = sign_roster(data, load_signer(arguments.key))
    out = arguments.out or arguments.file.with_suffix(".dsse")
    replace_file(out, envelope.encode())
    command.show(
        arguments,
        {"file": str(out), "signatures": len(envelope.signatures), **_summary(roster)},
        [*_lines(roster), f"signed, {len(envelope.signatures)} signature(s): {out}"],
    )
    return command.OK


def _publish(arguments: argparse.Namespace) -> int:
    from coordinator.drafting import MAX_ROSTER_BYTES, decode_roster_file
    from coordinator.files import read_bounded

    envelope = decode_roster_file(read_bounded(arguments.file, MAX_ROSTER_BYTES))
    with _opened(_home(arguments)) as (_, registry):
        roster = registry.publish(envelope)
    command.show(
        arguments, _summary(roster), [f"roster version {roster.version} is in force: {roster.digest}"]
    )
    return command.OK


def _show(arguments: argparse.Namespace) -> int:
    with _opened(_home(arguments)) as (_, registry):
        roster = registry.roster
    if roster is None:
        raise InputError(
            "no roster is published yet",
            code="no-roster",
            hint="minshu-coordinator roster draft, sign, publish",
        )
    command.show(arguments, _summary(roster), _lines(roster))
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
    }


def _lines(roster: "Roster") -> list[str]:
    from policies.keyfile import fingerprint

    return [
        f"roster {roster.collaboration} version {roster.version}, expires {roster.expires:%Y-%m-%d}",
        f"digest    {roster.digest}",
        *(f"member    {o.name}  {o.title}" for o in roster.organisations),
        *(f"node      {n.name}  {fingerprint(n.identity_key)}" for n in roster.nodes),
        *(f"analyst   {a.name}  {a.organisation}  {fingerprint(a.key)}" for a in roster.analysts),
    ]


def _opened(home: "Home") -> "AbstractContextManager[tuple[Store, Registry]]":
    """Open the store beside a running coordinator: it notices what changes there."""
    from coordinator.running import opened

    return opened(home, _now)
