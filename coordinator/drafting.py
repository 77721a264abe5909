"""Rosters on paper: an analyst's card, a draft and what it changes, signatures, a freshness statement.

Publishing is the registry's.
"""

import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final, Self

from audit.note import ED25519, VerifierKey
from coordinator.handout import COLLABORATION
from coordinator.store import Enrolment, StoredRotation
from policies.keyfile import fingerprint
from protocols.encoding import canonical_json, decode_json
from protocols.envelope import (
    FRESHNESS,
    ROSTER,
    Envelope,
    Signer,
    decode_envelope,
    pae,
    sign,
    verify_signature,
)
from protocols.errors import DecodeError, InputError, SignatureInvalid
from protocols.ids import NodeName, Organisation
from protocols.roots import Roots
from protocols.succession import MAX_LIFE
from protocols.wire import (
    Fields,
    Freshness,
    NextRoots,
    Roster,
    RosterAnalyst,
    RosterCoordinator,
    RosterNode,
    RosterOrganisation,
    organisation_of,
)

MAX_CARD_BYTES: Final = 16 << 10
MAX_ROSTER_BYTES: Final = 2 << 20

ANALYST_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._@-]{0,98}")


@dataclass(frozen=True, slots=True)
class Card:
    """What an analyst hands to the coordinator's operator; all of it public. `minshu-analyst/1`."""

    name: str
    organisation: Organisation
    key: bytes
    recipient_key: bytes

    def encode(self) -> bytes:
        """Return the canonical JSON."""
        return canonical_json(
            {
                "schema": "minshu-analyst/1",
                "name": self.name,
                "organisation": self.organisation,
                "key": self.key.hex(),
                "recipient_key": self.recipient_key.hex(),
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read a card strictly; a line break at its end is allowed.

        Raises:
            DecodeError: with the field that is wrong.
        """
        f = Fields(decode_json(data.rstrip(b"\n"), limit=MAX_CARD_BYTES), "analyst card")
        f.schema("minshu-analyst/1")
        result = cls(
            name=f.text("name", ANALYST_NAME),
            organisation=Organisation(f.text("organisation", COLLABORATION)),
            key=bytes.fromhex(f.text("key", re.compile(r"[0-9a-f]{64}"))),
            recipient_key=bytes.fromhex(f.text("recipient_key", re.compile(r"(?:[0-9a-f]{2})*"), limit=8192)),
        )
        f.finish()
        return result


def draft(
    current: Roster | None,
    *,
    collaboration: str,
    suite: int,
    enrolments: Iterable[Enrolment],
    cards: Sequence[Card],
    titles: Mapping[str, str],
    without: Iterable[str],
    days: int,
    now: datetime,
    coordinator: RosterCoordinator | None = None,
    rotations: Iterable[StoredRotation] = (),
    keep_key: Iterable[str] = (),
    readmit: Iterable[str] = (),
    freshness: Sequence[bytes] = (),
    next_roots: NextRoots | None = None,
) -> Roster:
    """Return the roster that follows `current`: its nodes, who enrolled since, its analysts, the new cards.

    What `current` does not list although it was there when `current` was issued was left out by those who
    signed it, a node as much as an announced key: it is not proposed again.

    Args:
        current: the newest published roster.
        collaboration: its name.
        suite: its sealing suite.
        enrolments: what each node handed in last.
        cards: new analysts; one replaces the analyst of its name.
        titles: what organisations are called; one not given is the current title, or the name.
        without: nodes, analysts or whole organisations to leave out.
        days: how long the roster is valid.
        now: when it is issued.
        coordinator: whose journal the nodes witness.
        rotations: identity keys that nodes announced; each is proposed in the place of the one before, the
            first one where there are several.
        keep_key: nodes whose announced key is not proposed: their line stays as it is.
        readmit: nodes that were left out, to be listed again with the keys they enrolled with.
        freshness: raw keys that confirm the roster; none given, the current ones.
        next_roots: root keys that sign from the next roster on; None, the present ones stay.

    Raises:
        InputError: a name in `without`, `titles`, `keep_key` or `readmit` that stands for nobody, a life
            above 90 days, or a node to readmit that has given up the key it enrolled with.
        DecodeError: names or keys that clash.
    """
    if not timedelta(0) < timedelta(days=days) <= MAX_LIFE:
        raise InputError(
            f"a roster lives 1 to {MAX_LIFE.days} days, not {days}",
            code="bad-expiry",
            hint="draft the next one before this one ends; the root key holders sign each",
        )
    out = set(without)
    analysts = {analyst.name: analyst for analyst in (current.analysts if current else ())}
    analysts |= {
        card.name: RosterAnalyst(card.name, card.organisation, card.key, card.recipient_key) for card in cards
    }
    kept, back = set(keep_key), set(readmit)
    enrolled = {enrolment.node: enrolment for enrolment in enrolments}
    announced = list(rotations)
    nodes = {node.name: node for node in (current.nodes if current else ())}
    given_up = {(one.node, one.previous_key) for one in announced if not one.refused}
    for name, enrolment in enrolled.items():
        if name not in nodes and name in back:
            _check_readmitted(enrolment, given_up)
        # A roster's date has no fractions of a second: a node listed under its next key enrolled before.
        elif not _since(enrolment.enrolled, current) or (
            name in nodes
            and nodes[name].identity_key != enrolment.identity_key
            and (name, enrolment.identity_key) in given_up
        ):
            continue
        nodes[name] = _enrolled(enrolment)
    following = {
        (one.node, one.previous_key): one.next_key
        for one in announced
        if not one.refused and one.node not in kept and _since(one.arrived, current)
    }
    nodes = {name: _following(node, following) for name, node in nodes.items()}
    members = {organisation_of(node) for node in nodes} | {a.organisation for a in analysts.values()}
    if unknown := sorted(
        (out | set(titles)) - {*nodes, *enrolled, *analysts, *members} | (kept | back) - set(nodes)
    ):
        raise InputError(
            f"{unknown[0]} is no enrolled node, analyst or organisation",
            code="unknown-name",
            hint="minshu-coordinator roster draft prints the names it knows",
        )
    kept_nodes = [n for name, n in sorted(nodes.items()) if not {name, organisation_of(name)} & out]
    kept_analysts = [a for name, a in sorted(analysts.items()) if not {name, a.organisation} & out]
    named = {str(o.name): o.title for o in (current.organisations if current else ())} | dict(titles)
    listed = sorted({organisation_of(n.name) for n in kept_nodes} | {a.organisation for a in kept_analysts})
    issued = now.replace(microsecond=0)
    roster = Roster(
        collaboration=collaboration,
        version=current.version + 1 if current else 1,
        previous=current.digest if current else None,
        suite=suite,
        issued=issued,
        expires=issued + timedelta(days=days),
        organisations=tuple(RosterOrganisation(name, named.get(name, name)) for name in listed),
        nodes=tuple(kept_nodes),
        analysts=tuple(kept_analysts),
        freshness_keys=tuple(freshness) or (current.freshness_keys if current else ()),
        roots=next_roots,
        coordinator=coordinator,
    )
    # What root key holders sign is what every node will decode: a clash shows now.
    return Roster.decode(roster.encode())


def left_out(
    current: Roster | None,
    after: Roster,
    enrolments: Iterable[Enrolment],
    rotations: Iterable[StoredRotation] = (),
) -> list[str]:
    """Return what a draft does not propose although it is there, or proposes although it is in doubt.

    A line each, in words for the coordinator's operator.
    """
    lines = [
        f"node {one.node} is left out as in the roster before; list it again: --with {one.node}"
        for one in enrolments
        if after.node(one.node) is None
        and not _since(one.enrolled, current)
        and (current is None or current.node(one.node) is None)
    ]
    away: dict[tuple[NodeName, bytes], list[StoredRotation]] = {}
    for rotation in rotations:
        listed = None if current is None else current.node(rotation.node)
        if listed is not None and listed.identity_key == rotation.previous_key:
            away.setdefault((rotation.node, rotation.previous_key), []).append(rotation)
    for (node, _), announced in sorted(away.items()):
        fresh = [one for one in announced if _since(one.arrived, current)]
        proposed = after.node(node)
        if len(fresh) > 1:
            lines.append(f"node {node} announced {len(fresh)} different keys, one of them may be a thief's:")
            lines += [
                f"  {fingerprint(one.next_key)}{'  proposed' * _lists(proposed, one.next_key)}"
                for one in fresh
            ]
            lines.append(f"  ask its operators; propose none of them: --keep-key {node}")
        lines += [
            f"node {node}: the announced key {fingerprint(one.next_key)} was declined in the roster before"
            for one in announced
            if one not in fresh and not one.refused and not _lists(proposed, one.next_key)
        ]
    return lines


def _lists(node: RosterNode | None, key: bytes) -> bool:
    return node is not None and node.identity_key == key


def _since(moment: datetime, current: Roster | None) -> bool:
    return current is None or moment > current.issued


def _enrolled(enrolment: Enrolment) -> RosterNode:
    return RosterNode(
        enrolment.node,
        enrolment.identity_key,
        enrolment.tls_spki_sha256,
        enrolment.journal_vkey,
        enrolment.recipient_key,
        enrolment.witness_vkeys,
    )


def _check_readmitted(enrolment: Enrolment, given_up: Container[tuple[NodeName, bytes]]) -> None:
    if (enrolment.node, enrolment.identity_key) in given_up:
        raise InputError(
            f"{enrolment.node} has announced another key than the one it enrolled with, so neither is taken"
            " back",
            code="key-given-up",
            hint=f"have it enrol anew: minshu-coordinator token {enrolment.node}",
        )


def _following(node: RosterNode, announced: Mapping[tuple[NodeName, bytes], bytes]) -> RosterNode:
    """Return a node's line with the identity key that it announced; log and witness keys stay."""
    key = node.identity_key
    seen = {key}
    while (following := announced.get((node.name, key))) is not None and following not in seen:
        key = following
        seen.add(key)
    if key == node.identity_key:
        return node
    origin = VerifierKey.parse(node.journal_vkey).name
    return replace(node, identity_key=key, journal_vkey=str(VerifierKey(origin, ED25519, key)))


def next_roots(keys: Sequence[bytes], threshold: int) -> NextRoots | None:
    """Return what a roster says of the root keys after it, None where no key is given.

    Raises:
        InputError: a key twice, or a threshold that the keys cannot reach.
    """
    return NextRoots(threshold, Roots.of("", threshold, keys).keys) if keys else None


def changes(before: Roster | None, after: Roster) -> list[str]:
    """Return what a roster changes against the one before, a line each, in words for who signs it.

    What it says of root keys stands in it whole, see `hand_over`.
    """
    if before is None:
        return ["the first roster: everything in it is new"]
    return [
        *_listed("organisation", _titles(before), _titles(after)),
        *_listed("node", _nodes(before), _nodes(after)),
        *_listed("coordinator", _coordinator(before), _coordinator(after)),
        *_listed("analyst", _analysts(before), _analysts(after)),
        *_listed(
            "freshness key", *({fingerprint(k): {} for k in one.freshness_keys} for one in (before, after))
        ),
        *([f"sealing suite {before.suite} becomes {after.suite}"] if before.suite != after.suite else []),
    ] or (
        ["nobody joins, nobody leaves, no key changes: the same for another while"]
        if after.roots is None
        else []
    )


def node_lines(node: RosterNode) -> list[str]:
    """Return the lines on a node's keys that people compare.

    Its log has the identity key and is of generation 1, or a line says which log it is.
    """
    log = VerifierKey.parse(node.journal_vkey)
    usual = VerifierKey(f"{node.name}/journal/1", ED25519, node.identity_key)
    return [
        f"node      {node.name}  {fingerprint(node.identity_key)}",
        *([f"journal   {named(node.journal_vkey)}"] if log != usual else []),
        *(f"witness   {named(vkey)}" for vkey in node.witness_vkeys),
    ]


def hand_over(roster: Roster) -> list[str]:
    """Return the lines on the root keys that a roster hands over to."""
    if roster.roots is None:
        return []
    number, threshold = len(roster.roots.keys), roster.roots.threshold
    return [
        f"the root keys change: from the next roster on, {threshold} of these {number} sign",
        *(f"  root key  {fingerprint(key)}" for key in roster.roots.keys),
    ]


def _titles(roster: Roster) -> dict[str, dict[str, str]]:
    return {o.name: {"title": o.title} for o in roster.organisations}


def _nodes(roster: Roster) -> dict[str, dict[str, str]]:
    return {
        n.name: {
            "identity key": fingerprint(n.identity_key),
            "TLS key": n.tls_spki_sha256,
            "journal": named(n.journal_vkey),
            "key for sealed lists": fingerprint(n.recipient_key),
            "witness key": named(*n.witness_vkeys[:1]),
            "second witness key": named(*n.witness_vkeys[1:]),
        }
        for n in roster.nodes
    }


def _coordinator(roster: Roster) -> dict[str, dict[str, str]]:
    one = roster.coordinator
    return {} if one is None else {one.name: {"journal": named(one.journal_vkey)}}


def named(*vkeys: str) -> str:
    """Return a vkey line's label and the fingerprint of its key, for people to compare; `none` for no line.

    The label's key id has 32 bits, which a patient forger can hit; the fingerprint has all.
    """
    keys = [VerifierKey.parse(vkey) for vkey in vkeys]
    return ", ".join(f"{key.label}  {fingerprint(key.public_key)}" for key in keys) or "none"


def _analysts(roster: Roster) -> dict[str, dict[str, str]]:
    return {
        a.name: {
            "organisation": a.organisation,
            "signing key": fingerprint(a.key),
            "key for sealed releases": fingerprint(a.recipient_key),
        }
        for a in roster.analysts
    }


def _listed(
    what: str, before: Mapping[str, Mapping[str, str]], after: Mapping[str, Mapping[str, str]]
) -> Iterator[str]:
    for name in sorted(before.keys() - after.keys()):
        yield f"{what} {name} leaves: nothing it signs counts any more"
    for name in sorted(after.keys() - before.keys()):
        yield f"{what} {name} joins"
        yield from (f"  {thing}  {value}" for thing, value in after[name].items())
    for name in sorted(after.keys() & before.keys()):
        for thing, value in after[name].items():
            if before[name][thing] != value:
                yield f"{what} {name} has another {thing}"
                yield f"  before  {before[name][thing]}"
                yield f"  now     {value}"


def confirm(roster: Roster, signer: Signer, now: datetime) -> Envelope:
    """Return a signed statement that `roster` is the newest.

    Raises:
        InputError: the roster does not name the signer's key.
    """
    if signer.public_key not in roster.freshness_keys:
        raise InputError(
            f"the key is none of the {len(roster.freshness_keys)} freshness keys of roster version"
            f" {roster.version}",
            code="not-a-freshness-key",
            hint="sign with one of them, or draft a roster that names this one: roster draft --freshness PUB",
        )
    statement = Freshness(roster.collaboration, roster.version, roster.digest, now.replace(microsecond=0))
    return sign(FRESHNESS, statement.encode(), [signer])


def read_roster(data: bytes) -> Roster:
    """Return the roster in a draft or in an envelope, with whatever signatures that has.

    Raises:
        DecodeError: neither, or not canonical.
        SignatureInvalid: an envelope of another type.
    """
    return _opened(data)[1]


def sign_roster(data: bytes, signer: Signer) -> tuple[Envelope, Roster]:
    """Return the envelope with one more signature; `data` is a draft or an envelope with signatures.

    Raises:
        DecodeError: neither, or not canonical.
        SignatureInvalid: an envelope of another type, or the key has signed already.
    """
    envelope, roster = _opened(data)
    message = pae(ROSTER, envelope.payload)
    if any(verify_signature(signer.public_key, one.sig, message) for one in envelope.signatures):
        raise SignatureInvalid(
            "this key has signed the roster already",
            code="signed-twice",
            hint="the other root key holders sign next",
        )
    return envelope.with_signature(signer), roster


def _opened(data: bytes) -> tuple[Envelope, Roster]:
    data = data.rstrip(b"\n")
    value = decode_json(data, limit=MAX_ROSTER_BYTES)
    if not isinstance(value, dict) or "payloadType" not in value:
        return Envelope(ROSTER, data, ()), Roster.decode(data)
    envelope = decode_envelope(data)
    if envelope.payload_type != ROSTER:
        raise SignatureInvalid("the document is no roster", code="wrong-payload-type")
    return envelope, Roster.decode(envelope.payload)


def decode_published(data: bytes) -> Envelope:
    """Return the envelope in a file: a signed roster, or a freshness statement.

    Raises:
        DecodeError: neither.
    """
    try:
        envelope = decode_envelope(data.rstrip(b"\n"))
    except DecodeError:
        envelope = None
    if envelope is None or envelope.payload_type not in (ROSTER, FRESHNESS):
        raise DecodeError(
            "the file is neither a signed roster nor a freshness statement",
            code="bad-roster",
            hint="sign it first: minshu-coordinator roster sign, or roster freshen",
        )
    return envelope
