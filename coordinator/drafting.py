"""Rosters on paper: an analyst's card, a draft, signatures. Publishing is the registry's."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Self

from coordinator.handout import COLLABORATION
from coordinator.roots import MAX_ROSTER_LIFE
from coordinator.store import Enrolment
from protocols.encoding import canonical_json, decode_json
from protocols.envelope import ROSTER, Envelope, Signer, decode_envelope, pae, sign, verify_signature
from protocols.errors import DecodeError, InputError, SignatureInvalid
from protocols.ids import Organisation
from protocols.wire import (
    Fields,
    Roster,
    RosterAnalyst,
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
) -> Roster:
    """Return the roster that follows `current`: every enrolled node, the known analysts and the new cards.

    A card replaces the analyst of its name. `without` leaves out nodes, analysts or whole organisations.
    A title that is not given is the current one, or the organisation's name.

    Raises:
        InputError: a name in `without` or `titles` that stands for nobody, or a life above 90 days.
        DecodeError: names or keys that clash.
    """
    if not timedelta(0) < timedelta(days=days) <= MAX_ROSTER_LIFE:
        raise InputError(
            f"a roster lives 1 to {MAX_ROSTER_LIFE.days} days, not {days}",
            code="bad-expiry",
            hint="draft the next one before this one ends; the root key holders sign each",
        )
    out = set(without)
    analysts = {analyst.name: analyst for analyst in (current.analysts if current else ())}
    analysts |= {
        card.name: RosterAnalyst(card.name, card.organisation, card.key, card.recipient_key) for card in cards
    }
    nodes = {
        enrolment.node: RosterNode(
            enrolment.node,
            enrolment.identity_key,
            enrolment.tls_spki_sha256,
            enrolment.journal_vkey,
            enrolment.recipient_key,
        )
        for enrolment in enrolments
    }
    members = {organisation_of(node) for node in nodes} | {a.organisation for a in analysts.values()}
    if unknown := sorted((out | set(titles)) - {*nodes, *analysts, *members}):
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
    )
    # What root key holders sign is what every node will decode: a clash shows now.
    return Roster.decode(roster.encode())


def sign_roster(data: bytes, signer: Signer) -> tuple[Envelope, Roster]:
    """Return the envelope with one more signature; `data` is a draft or an envelope with signatures.

    Raises:
        DecodeError: neither, or not canonical.
        SignatureInvalid: an envelope of another type, or the key has signed already.
    """
    data = data.rstrip(b"\n")
    value = decode_json(data, limit=MAX_ROSTER_BYTES)
    if not isinstance(value, dict) or "payloadType" not in value:
        return sign(ROSTER, data, [signer]), Roster.decode(data)
    envelope = decode_envelope(data)
    if envelope.payload_type != ROSTER:
        raise SignatureInvalid("the document is no roster", code="wrong-payload-type")
    roster = Roster.decode(envelope.payload)
    message = pae(ROSTER, envelope.payload)
    if any(verify_signature(signer.public_key, one.sig, message) for one in envelope.signatures):
        raise SignatureInvalid(
            "this key has signed the roster already",
            code="signed-twice",
            hint="the other root key holders sign next",
        )
    return envelope.with_signature(signer), roster


def decode_roster_file(data: bytes) -> bytes:
    """Return the envelope in a file, without the line break at its end.

    Raises:
        DecodeError: not an envelope.
    """
    envelope = data.rstrip(b"\n")
    try:
        signed = decode_envelope(envelope).payload_type == ROSTER
    except DecodeError:
        signed = False
    if not signed:
        raise DecodeError(
            "the file is not a signed roster",
            code="bad-roster",
            hint="sign it first: minshu-coordinator roster sign",
        )
    return envelope
