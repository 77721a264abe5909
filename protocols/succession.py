"""Which roster a reader goes by: one judge for nodes, coordinator and analysts. Rules only, without I/O.

Each roster is signed by the root keys in force, names the one before it and may hand the signing over to
other root keys, so a reader that pinned the first keys follows the chain on its own. After The Update
Framework, section 5.3 (updating the root role), with a freshness statement in the place of its timestamp.

What a coordinator that carries rosters can do: nothing but withhold. It cannot make one, go back, skip one or
show two readers different ones of a version unnoticed. Withholding the newest delays a revocation until the
roster at hand is stale: at most `FRESH_FOR` after the last freshness statement, or after the roster was
issued. A freshness key that colludes with it delays that up to the roster's expiry, at most `MAX_LIFE`; one
that signs nothing makes the collaboration stop, not err.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from protocols.envelope import FRESHNESS, ROSTER, Envelope, decode_envelope, key_id, verify
from protocols.errors import InputError, Refused, SignatureInvalid, StateConflict
from protocols.ids import KeyId
from protocols.roots import Roots
from protocols.wire import Freshness, Roster, utc_text

MAX_LIFE: Final = timedelta(days=90)
"""Longest time from a roster's `issued` to its `expires`."""

FRESH_FOR: Final = timedelta(days=7)
"""How long a roster, or a statement that it still holds, counts as fresh."""

CLOCK_TOLERANCE: Final = timedelta(minutes=5)
"""How far ahead of the reader's clock a signer's may be."""

MAX_VERSION: Final = 1 << 20
"""No collaboration signs more rosters; a first one far ahead would leave no room for the next."""

_ASK_ROOTS: Final = "do not go on: ask the root key holders which roster they signed last"


@dataclass(frozen=True, slots=True)
class Trusted:
    """What a reader goes by: the root keys in force, the newest roster they signed, the newest word on it.

    `roots` are those pinned at enrolment, or those that the newest roster or one before it handed over to.
    `roster` may have expired since: `in_force` and `fresh` say whether it may be gone by.
    """

    roots: Roots
    roster: Roster | None = None
    freshness: Freshness | None = None

    @property
    def version(self) -> int:
        """The roster's version, 0 without one."""
        return 0 if self.roster is None else self.roster.version


def advance(trusted: Trusted, envelope: bytes, now: datetime) -> Trusted:
    """Return what is trusted after a roster was presented; the very one at hand changes nothing.

    (1) Its type is a roster's, and as many distinct root keys in force as their threshold signed it. Nothing
    of it is read before. (2) It is this collaboration's, and lives at most 90 days. (3) It continues the
    chain: exactly the next version, naming the digest of the one at hand. A reader without a roster takes any
    version, but only from its pinned root keys. (4) Where it hands over to other root keys, as many of those
    as their threshold signed it too: nobody hands over to keys that nobody holds. (5) It was not issued in
    the future.

    An expired roster is walked through, so that a reader that was off for long catches up; `in_force` tells.

    Raises:
        SignatureInvalid: `wrong-payload-type`, `too-few-signatures`: (1) or (4).
        DecodeError: not an envelope, or not a roster.
        InputError: `wrong-collaboration`, `roster-life`: (2).
        StateConflict: `roster-rollback`, `roster-fast-forward`, `roster-forked`: (3).
            `roster-not-valid`: (5).
    """
    after = _follow(trusted, decode_envelope(envelope))
    # (5)
    if after is not trusted and after.roster is not None and after.roster.issued > now + CLOCK_TOLERANCE:
        raise StateConflict(
            f"the roster was issued at {utc_text(after.roster.issued)}, which lies in the future",
            code="roster-not-valid",
            hint="check this machine's clock, then that of whoever drafted the roster",
        )
    return after


def walk(trusted: Trusted, envelopes: Sequence[bytes], now: datetime) -> Iterator[tuple[bytes, Trusted]]:
    """Yield each roster of a chain, oldest first, that moves the reader on, and what is trusted after it.

    A reader without a roster starts at the oldest one that its pinned root keys signed: those before it may
    be from root keys that signed before its time. Not at a newer one, so that keys which have handed over
    cannot sign a shorter way.

    Raises:
        MinshuError: see `advance`; what was yielded before holds.
    """
    for envelope in _from_its_start(trusted, envelopes):
        after = advance(trusted, envelope, now)
        if after is not trusted:
            trusted = after
            yield envelope, trusted


def restore(trusted: Trusted, envelopes: Sequence[bytes], freshness: bytes = b"") -> Trusted:
    """Return what a reader trusted when it had kept these rosters too, oldest first, and this statement.

    The signatures are checked again, so a changed file or database shows. The clock is not asked. Root keys
    that were pinned anew since count as in `walk`.

    Raises:
        MinshuError: see `advance` and `freshen`: they are not what was kept.
    """
    for envelope in _from_its_start(trusted, envelopes):
        trusted = _follow(trusted, decode_envelope(envelope))
    return _freshened(trusted, decode_envelope(freshness)) if freshness else trusted


def signers(trusted: Trusted, envelope: bytes) -> tuple[KeyId, ...]:
    """Return the ids of the root keys in force that signed a roster, sorted.

    Raises:
        SignatureInvalid: fewer than their threshold.
    """
    return tuple(sorted(_verified(trusted.roots, decode_envelope(envelope))))


def confirmers(roster: Roster, envelope: bytes) -> tuple[KeyId, ...]:
    """Return the ids of the freshness keys of `roster` that signed a statement on it, sorted.

    Raises:
        SignatureInvalid: none did, or it is no such statement.
    """
    keys = {key_id(key): key for key in roster.freshness_keys}
    return tuple(sorted(verify(decode_envelope(envelope), FRESHNESS, keys)))


def freshen(trusted: Trusted, envelope: bytes, now: datetime) -> Trusted:
    """Return what is trusted after a freshness statement was presented; an older one changes nothing.

    (1) One of the freshness keys that the roster at hand names signed it. (2) It is about this collaboration
    and this very roster. (3) It was not issued in the future. (4) The newest counts, in any order of arrival;
    one from before the roster was issued adds nothing to it.

    Raises:
        SignatureInvalid: `wrong-payload-type`, `too-few-signatures`: (1).
        DecodeError: not an envelope, or not a freshness statement.
        InputError: `wrong-collaboration`.
        StateConflict: `no-roster`; `freshness-mismatch`: about another version; `roster-forked`: about
            another text of this version; `freshness-not-valid`: (3).
    """
    after = _freshened(trusted, decode_envelope(envelope))
    # (3)
    statement = after.freshness
    if after is not trusted and statement is not None and statement.issued > now + CLOCK_TOLERANCE:
        raise StateConflict(
            f"the freshness statement was issued at {utc_text(statement.issued)}, which lies in the future",
            code="freshness-not-valid",
            hint="check this machine's clock, then that of the freshness key's owner",
        )
    return after


def signing_keys(roster: Roster) -> frozenset[bytes]:
    """Return every raw key that the roster lets sign something: no two of them may be one key."""
    return frozenset(
        (
            *(node.identity_key for node in roster.nodes),
            *(analyst.key for analyst in roster.analysts),
            *roster.freshness_keys,
        )
    )


def in_force(roster: Roster | None, now: datetime) -> Roster:
    """Return the roster if it may be gone by now, as far as its own dates say.

    Raises:
        Refused: `no-roster`, `roster-not-valid`, `roster-expired`.
    """
    if roster is None:
        raise Refused(
            "there is no roster yet, so nobody is known",
            code="no-roster",
            hint="have the root key holders sign a roster and the coordinator's operator publish it",
        )
    if roster.issued > now + CLOCK_TOLERANCE:
        raise Refused(
            f"the roster was issued at {utc_text(roster.issued)}, after what this machine's clock shows",
            code="roster-not-valid",
            hint="set this machine's clock",
        )
    if now >= roster.expires:
        raise Refused(
            f"roster version {roster.version} expired at {utc_text(roster.expires)}",
            code="roster-expired",
            hint="the coordinator's operator drafts the next one, the root key holders sign it",
        )
    return roster


def fresh_until(roster: Roster, freshness: Freshness | None) -> datetime:
    """Return when a roster stops being fresh; `freshness` is about this very one. It may expire before."""
    said = roster.issued if freshness is None else max(roster.issued, freshness.issued)
    return said + FRESH_FOR


def fresh(roster: Roster | None, freshness: Freshness | None, now: datetime) -> Roster:
    """Return the roster if it is in force, and somebody said lately enough that it is the newest.

    Raises:
        Refused: see `in_force`; `roster-stale`: not fresh any more.
    """
    roster = in_force(roster, now)
    until = fresh_until(roster, freshness)
    if now >= until:
        raise Refused(
            f"roster version {roster.version} was fresh until {utc_text(until)}, nobody has confirmed since"
            " that it is the newest",
            code="roster-stale",
            hint="the owner of a freshness key signs a statement: minshu-coordinator roster freshen;"
            " if that was done, ask the coordinator's operator why it did not arrive",
        )
    return roster


IN_CHINESE: Final[Mapping[str, tuple[str, str]]] = {
    "no-roster": ("尚无成员名册, 无法识别任何人。", "请根密钥持有人签署名册, 由协调方管理员发布"),
    "roster-not-valid": ("名册的签发时间晚于本机时钟。", "请校准本机时钟"),
    "roster-expired": ("成员名册已过期。", "请协调方管理员拟定新名册, 由根密钥持有人签署"),
    "roster-stale": ("超过 7 天未确认名册仍为最新。", "请新鲜度密钥持有人签署确认, 或询问协调方管理员"),
}
"""What `in_force` and `fresh` refuse with, in Chinese: code → sentence, what to do next."""


def _follow(trusted: Trusted, document: Envelope) -> Trusted:
    at_hand = trusted.roster
    if at_hand is not None and document.payload_type == ROSTER and document.payload == at_hand.encode():
        return trusted
    # (1)
    _verified(trusted.roots, document)
    roster = Roster.decode(document.payload)
    # (2)
    _same_collaboration(roster.collaboration, trusted)
    if not timedelta(0) < roster.expires - roster.issued <= MAX_LIFE:
        raise InputError(
            f"the roster is not valid for more than 0 and at most {MAX_LIFE.days} days",
            code="roster-life",
            hint="draft it again with --days of at most 90",
        )
    # (3)
    _continues(roster, at_hand)
    # (4)
    if roster.roots is None:
        return replace(trusted, roster=roster, freshness=None)
    after = trusted.roots.handed_over(roster.roots)
    try:
        _verified(after, document)
    except SignatureInvalid as error:
        raise SignatureInvalid(
            f"the roster hands over to root keys of which too few signed it: {error.message}",
            code=error.code,
            hint="have the holders of the next root keys sign it too, before it is published",
        ) from None
    return Trusted(after, roster)


def _continues(roster: Roster, at_hand: Roster | None) -> None:
    version = 0 if at_hand is None else at_hand.version
    if at_hand is not None and roster.version < version:
        raise StateConflict(
            f"the roster has version {roster.version}, but version {version} was seen before",
            code="roster-rollback",
            hint=_ASK_ROOTS,
        )
    highest = MAX_VERSION if at_hand is None else version + 1
    if roster.version > highest:
        raise StateConflict(
            f"the roster has version {roster.version}, expected at most {highest}",
            code="roster-fast-forward",
            hint="fetch the rosters in between; if the coordinator has none, ask the root key holders",
        )
    if at_hand is None:
        chained = (roster.previous is None) == (roster.version == 1)
    else:
        # The same version here is another text: the very one at hand returned before.
        chained = roster.version == version + 1 and roster.previous == at_hand.digest
    if not chained:
        raise StateConflict(
            f"roster version {roster.version} does not continue the chain of rosters seen here: there are two"
            " of one version, or it names another predecessor",
            code="roster-forked",
            hint=_ASK_ROOTS,
        )


def _freshened(trusted: Trusted, document: Envelope) -> Trusted:
    roster = trusted.roster
    if roster is None:
        raise StateConflict(
            "a freshness statement came before any roster", code="no-roster", hint="fetch the roster first"
        )
    # (1)
    _typed(document, FRESHNESS)
    verify(document, FRESHNESS, {key_id(key): key for key in roster.freshness_keys})
    statement = Freshness.decode(document.payload)
    # (2)
    _same_collaboration(statement.collaboration, trusted)
    if statement.version != roster.version:
        raise StateConflict(
            f"the freshness statement is about roster version {statement.version}, at hand is version"
            f" {roster.version}",
            code="freshness-mismatch",
            hint="fetch the newest roster; if this is the newest, have a statement about it signed",
        )
    if statement.sha256 != roster.digest:
        raise StateConflict(
            f"the freshness statement is about another text of roster version {roster.version}",
            code="roster-forked",
            hint=_ASK_ROOTS,
        )
    # (4)
    if statement.issued < roster.issued or (
        trusted.freshness is not None and statement.issued <= trusted.freshness.issued
    ):
        return trusted
    return replace(trusted, freshness=statement)


def _verified(roots: Roots, document: Envelope) -> frozenset[KeyId]:
    _typed(document, ROSTER)
    return verify(document, ROSTER, {key_id(key): key for key in roots.keys}, roots.threshold)


def _typed(document: Envelope, kind: str) -> None:
    if document.payload_type != kind:
        raise SignatureInvalid(
            f"the document is signed as another type than {kind}",
            code="wrong-payload-type",
            hint="a roster and a freshness statement are two documents; give the one that is asked for",
        )


def _from_its_start(trusted: Trusted, envelopes: Sequence[bytes]) -> Sequence[bytes]:
    """Return a chain from where a reader without a roster may take it up; the last one, if nowhere."""
    if trusted.roster is not None:
        return envelopes
    for place, envelope in enumerate(envelopes):
        try:
            _verified(trusted.roots, decode_envelope(envelope))
        except SignatureInvalid:
            continue
        return envelopes[place:]
    return envelopes[-1:]


def _same_collaboration(named: str, trusted: Trusted) -> None:
    if named != trusted.roots.collaboration:
        raise InputError(
            f"the document is of the collaboration {named}, expected {trusted.roots.collaboration}",
            code="wrong-collaboration",
            hint="get the document that this collaboration's key holders signed",
        )
