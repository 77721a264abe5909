"""`minshu-node doctor`: what could keep this node from working, each with what to do about it."""

import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from node.clock import Heard
from node.home import Enrolled, Home
from node.shelf import entries_of
from node.state import Reader, read_state
from policies.index import source_of
from protocols.errors import InputError, MinshuError, Refused
from protocols.succession import CLOCK_TOLERANCE, fresh_until
from protocols.wire import utc_text

if TYPE_CHECKING:
    from node.activation import InForce
    from node.sources import Access

MIN_DISK_BYTES: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: `ok`, `warning` or `error`, what was found, and what to do."""

    what: str
    state: str
    found: str
    hint: str = ""


def examine(home: Home, now: datetime) -> Iterator[Finding]:
    """Yield what is found, in the order in which a new node gets things right.

    Raises:
        InputError: there is no node in this folder.
    """
    config = home.config
    yield Finding("settings", "ok", f"{config.name}, suite {config.suite}")
    yield _try("keys", lambda: _keys(home))
    yield _try("temporary directory", _temporary)
    yield _disk(home)
    yield from shelf_findings(home)
    enrolled = None
    try:
        enrolled = home.enrolled()
    except MinshuError as error:
        yield Finding("enrolment", "error", error.message, error.hint)
    if enrolled is None:
        yield Finding(
            "enrolment", "error", "not enrolled", "ask for a token and run minshu-node enrol TOKEN --roots …"
        )
    else:
        yield Finding("enrolment", "ok", f"{enrolled.collaboration}, {len(enrolled.roots)} root keys")
        yield _certificate(home, now)
        yield _network(config.coordinator or enrolled.address)
    yield from _stored(home, enrolled, now)


def _try(what: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(what, "ok", check())
    except MinshuError as error:
        return Finding(what, "error", error.message, error.hint)


def _keys(home: Home) -> str:
    from policies.keyfile import fingerprint
    from protocols.channel.suites import public_key

    public_key(home.config.suite, home.recipient_private())
    return f"identity {fingerprint(home.signer.public_key)}"


def _temporary() -> str:
    from protocols.psi.group import load

    load()
    return f"{tempfile.gettempdir()} allows libsodium to load"


def _disk(home: Home) -> Finding:
    free = shutil.disk_usage(home.path).free
    state = "ok" if free >= MIN_DISK_BYTES else "warning"
    hint = "" if state == "ok" else "free space: a full disk makes this node refuse jobs"
    return Finding("disk", state, f"{free / (1 << 30):.1f} GiB free", hint)


def shelf_findings(home: Home) -> Iterator[Finding]:
    """Look for what others than this node's account may open: keys of look-up tables lie on a shelf."""
    from node.series import lies_here

    try:
        entries, open_to_others = entries_of(home)
        series = lies_here(home)
    except MinshuError as error:
        yield Finding("shelf", "error", error.message, error.hint)
        return
    if open_to_others:
        yield Finding(
            "shelf",
            "error",
            f"{open_to_others} of {entries} files and folders in shelf/ may be opened by other accounts",
            "run chmod -R go= on the folder shelf/; if others have read it, have the datasets' keys "
            "changed with minshu-node lookup rotate DATASET",
        )
    elif entries:
        hint = (
            "keys of a series lie in shelf/, and what is deleted there stays on the disk until it is written "
            "over: have the disk encrypted, and keep shelf/ out of backups and snapshots"
        )
        yield Finding("shelf", "ok", "this node's account alone can open it", hint if series else "")


def _certificate(home: Home, now: datetime) -> Finding:
    from node.renew import validity_of

    try:
        validity = validity_of(home.leaf_pem.read_bytes())
    except (OSError, InputError):
        return Finding("certificate", "error", "tls/leaf.pem is missing or damaged", "enrol again")
    try:
        validity.check_not_expired(now)
    except InputError as error:
        return Finding("certificate", "error", f"expired {utc_text(validity.ends)}", error.hint)
    if now < validity.begins - CLOCK_TOLERANCE:
        return Finding(
            "certificate",
            "error",
            "it is not valid yet by this node's clock",
            "set the clock: the coordinator's is ahead",
        )
    if now > validity.begins + (validity.ends - validity.begins) / 2:
        return Finding(
            "certificate",
            "warning",
            f"valid until {utc_text(validity.ends)}, not renewed though due since {utc_text(validity.due)}",
            "keep minshu-node run connected, it renews by itself; node.log says why it could not",
        )
    return Finding(
        "certificate",
        "ok",
        f"valid until {utc_text(validity.ends)}, renewed by itself from {utc_text(validity.due)}",
    )


def _network(address: str) -> Finding:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=5):
            return Finding("network", "ok", f"{address} answers")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        return Finding(
            "network",
            "error",
            f"{address} cannot be reached ({why})",
            "check route and firewall (outgoing TCP is enough), and that the coordinator runs",
        )


def _stored(home: Home, enrolled: Enrolled | None, now: datetime) -> Iterator[Finding]:
    """Look at roster, clock, policy and datasets as the node knows them."""
    from node.activation import InForce, own_keys

    try:
        with read_state(home.database) as reader:
            force = InForce.load(reader, home.name, home.signer.public_key)
            if home.witness_pem.exists() and home.witness_mldsa_pem.exists():
                force.own = own_keys(home)
            yield from _roster(force, enrolled, now)
            yield from _witnesses(home, reader, force, now)
            yield from _clock(force, Heard.read(home.path), now)
            yield from _policy(force, reader, now)
            yield from _datasets(reader, home.config.access)
    except MinshuError as error:
        yield Finding("state", "error", error.message, error.hint)


def _roster(force: "InForce", enrolled: Enrolled | None, now: datetime) -> Iterator[Finding]:
    roster = force.roster
    if roster is None:
        if enrolled is not None:
            yield Finding(
                "roster", "warning", "none yet", "have the root keys sign a roster that lists this node"
            )
        return
    yield _try("roster", lambda: f"version {roster.version}, {force.me().name} is listed")
    try:
        force.fresh(now)
    except Refused as error:
        # A clock behind the roster's signers shows in the line on the clock.
        if error.code != "roster-not-valid":
            yield Finding("freshness", "error", error.message, error.hint)
        return
    until = fresh_until(roster, force.freshness)
    state = "warning" if until - now < timedelta(days=2) else "ok"
    hint = "" if state == "ok" else "remind the owner of a freshness key: minshu-coordinator roster freshen"
    yield Finding("freshness", state, f"the roster counts as the newest until {utc_text(until)}", hint)


def _witnesses(home: Home, reader: Reader, force: "InForce", now: datetime) -> Iterator[Finding]:
    """Look at how far others have seen this node's journal."""
    from node.cosigning import Standing

    if force.roster is None:
        return
    standing = Standing.of(home.journal, reader, force)
    late = timedelta(seconds=home.config.witness_wait_s)
    if standing.required and not standing.witnesses.possible:
        there = len(standing.witnesses.organisations)
        yield Finding(
            "witnesses",
            "error",
            f"{standing.witnesses.quorum} organisations have to cosign, {there} can: every job is refused",
            "have the nodes of more organisations enrolled with witness keys, or change [witnesses] quorum",
        )
    elif standing.before is not None:
        yield Finding(
            "witnesses",
            "error",
            f"the witnesses changed: {standing.owed()}; until then every job is refused",
            "keep minshu-node run connected; if those organisations' nodes are gone for good, have a roster "
            "signed without them",
        )
    elif standing.since is not None and now - standing.since > late:
        yield Finding(
            "witnesses",
            "error" if standing.required else "warning",
            standing.line(),
            "keep minshu-node run connected; lines witness-… in node.log say whose nodes do not answer",
        )
    else:
        yield Finding("witnesses", "ok", standing.line())


def _clock(force: "InForce", heard: Heard | None, now: datetime) -> Iterator[Finding]:
    """Compare this machine's clock with what is known of others': the roster's signers, the coordinator."""
    if force.roster is None and heard is None:
        return
    # The root key holders' clock, at least, was not behind this when they signed.
    behind = timedelta() if force.roster is None else force.roster.issued - now
    if behind > CLOCK_TOLERANCE:
        yield Finding("clock", "error", f"{behind} behind the roster's signers", "set the clock")
    elif heard is not None and abs(heard.behind) > CLOCK_TOLERANCE:
        side = "behind" if heard.behind > timedelta() else "ahead of"
        yield Finding(
            "clock",
            "error",
            f"this node's clock is {abs(heard.behind)} {side} the coordinator's, heard {utc_text(heard.at)}",
            "set this machine's clock; the node refuses jobs until it has connected again and they agree; "
            "if the coordinator's clock is the wrong one, tell its operator",
        )
    else:
        yield Finding("clock", "ok", utc_text(now))


def _policy(force: "InForce", reader: Reader, now: datetime) -> Iterator[Finding]:
    if not reader.pins():
        yield Finding("policy", "error", "no signers pinned", "run minshu-node policy pin")
        return
    active = force.policy
    if active is None:
        yield Finding(
            "policy", "error", "none active: every job is refused", "run minshu-node policy activate"
        )
        return
    expires = active.policy.expires.astimezone(UTC)
    state = "error" if now >= expires else "warning" if expires - now < timedelta(days=14) else "ok"
    yield Finding(
        "policy",
        state,
        f"version {active.policy.version}, until {utc_text(expires)}",
        "" if state == "ok" else "sign and activate the next version",
    )
    known = {dataset.name for dataset in reader.datasets()}
    for alias, dataset in sorted(active.policy.datasets.items()):
        source = source_of(dataset)
        if source not in known:
            yield Finding(
                f"dataset {alias}",
                "error",
                "opened by the policy, but not registered",
                f"run minshu-node dataset add {source} FILE",
            )


def _datasets(reader: Reader, access: "Access") -> Iterator[Finding]:
    from node.datasets import open_dataset

    for dataset in reader.datasets():
        try:
            with open_dataset(dataset, access) as source:
                columns, snapshot = source.columns(), source.snapshot()
        except MinshuError as error:
            yield Finding(f"dataset {dataset.name}", "error", error.message, error.hint)
            continue
        missing = [c.name for c in dataset.columns if c not in columns]
        if missing:
            yield Finding(
                f"dataset {dataset.name}",
                "error",
                f"column {missing[0]} is gone or has another type",
                "register the dataset again",
            )
        else:
            fresh = "" if snapshot == dataset.snapshot else f", changed since it was registered: {snapshot}"
            yield Finding(f"dataset {dataset.name}", "ok", f"{dataset.rows} rows{fresh}")
