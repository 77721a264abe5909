"""What a node went by at each moment, as its journal and its documents say: keys, policy, stops, roster.

Each document is judged as the node had to judge it: who signed, what it follows, whether it was valid then.
One that does not hold is reported, and what the node made of it goes on to be used, so that everything that
rests on it can still be compared. Whose the officers' keys and the root keys are, the log cannot say; the
auditor does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

from audit.entries import Entry, parse_time
from audit.evidence import Evidence
from audit.findings import Checks
from audit.note import VerifierKey
from audit.statements import stop_facts
from policies.decide import MAX_JOB_LIFETIME
from policies.model import ActivePolicy, PinnedSigners, Stop, StoredPolicy
from policies.parse import parse_policy, parse_stop
from policies.sign import check_activation, check_stop, reopen
from protocols import succession
from protocols.envelope import STOP, Envelope, decode_envelope, key_id, verify
from protocols.errors import MinshuError, SignatureInvalid
from protocols.ids import Digest, KeyId, NodeName
from protocols.roots import Roots
from protocols.succession import Trusted
from protocols.wire import Roster, RosterNode

CARRIED_OVER: Final = "carried-over"
"""The code of a statement that a new generation of a log makes again."""

HISTORY_GAP: Final = "history-gap"
"""The code of the stop that a node signs itself when its log begins anew."""

NO_OFFICERS: Final = "the officers' keys (--officers): who may sign this node's policies, its log alone says"
NO_ROOTS: Final = "the root keys (--roots): who signed its rosters, this log alone says"
SUCCESSOR: Final = "the log before this one: what it says was spent counts here, too"

_DAYS: Final = {"hour": 1, "day": 1, "week": 7, "month": 31, "quarter": 92, "year": 366}
_DIGITS: Final = 10
FIRST_SUCCESSOR: Final = 2
"""The number of the first log of a node that follows another."""

_EVER: Final = timedelta(days=36_500)


class Brought(Protocol):
    """What an auditor brings, as far as it is needed here; `audit.trust.Trust` has it."""

    @property
    def roots(self) -> Roots | None:
        """The collaboration's root keys."""
        ...

    @property
    def officers(self) -> frozenset[KeyId]:
        """Key ids of those who may sign policies."""
        ...


@dataclass(slots=True)
class Force:
    """What the log's node goes by, entry after entry.

    Attributes:
        since: when its policy was activated.
        carrying: a log that follows another states again what held there; nothing else has been said yet.
        gap_stopped: the node has stopped everything for what it does not know of the log before.
    """

    evidence: Evidence
    brought: Brought
    checks: Checks
    node: NodeName = field(default_factory=lambda: NodeName(""))
    key: bytes = b""
    active: ActivePolicy | None = None
    since: datetime = field(default_factory=lambda: datetime.min.replace(tzinfo=UTC))
    trusted: Trusted | None = None
    carrying: bool = False
    gap_stopped: bool = False
    _opening: Entry | None = None
    _began: datetime | None = None
    _again: set[str] = field(default_factory=set)
    _looks_back: tuple[Digest, timedelta] = (Digest(""), _EVER)
    _unproven: list[tuple[Roster, str]] = field(default_factory=list)
    _officers: dict[str, tuple[KeyId, ...]] = field(default_factory=dict)
    _pinned: PinnedSigners | None = None
    _stored: StoredPolicy | None = None
    _held: dict[Digest, tuple[Stop, ...]] = field(default_factory=dict)
    _applied: set[Digest] = field(default_factory=set)

    @property
    def roster(self) -> Roster | None:
        """The roster that the node goes by."""
        return None if self.trusted is None else self.trusted.roster

    def me(self) -> RosterNode | None:
        """Return the node's own line of its roster, None where it lists another key."""
        mine = None if self.roster is None else self.roster.node(self.node)
        return mine if mine is not None and mine.identity_key == self.key else None

    # -- a log that follows another --------------------------------------------------------------------------

    def succeeded(self, entry: Entry, where: str) -> None:
        """`log.successor`: the log before could not be continued. It stands second, or nowhere.

        What it excuses is much: history that this log does not have. So it has to be what the log's own
        opening and its name say.
        """
        opened, body, (name, number) = self._opening, entry.body, _generation(entry.log)
        fits = (
            opened is not None
            and (opened.seq, entry.seq) == (0, 1)
            and number >= FIRST_SUCCESSOR
            and body.get("log") == f"{name}{number - 1}"
            and body.get("generation") == opened.body.get("generation") == number
            and body["checkpoint_sha256"] == opened.body.get("checkpoint_sha256")
        )
        if not fits:
            self.checks["signed"].found(
                "stray-successor", where, "no log begins here that follows the one before it"
            )
            return
        self._began, self.carrying = parse_time(entry.time), True
        self.checks["signed"].saw(where)

    def begins(self, entry: Entry) -> None:
        """Take the second entry of a log, which names the log before, where the node had one."""
        number = _generation(entry.log)[1]
        if number >= FIRST_SUCCESSOR and entry.kind != "log.successor":
            self.checks["signed"].found(
                "no-successor", f"entry {entry.seq}", f"the node's log number {number} follows none"
            )

    def carries(self, entry: Entry) -> None:
        """Take any entry while what held before is stated again: the first about a job ends that."""
        if entry.job and entry.body.get("code") != HISTORY_GAP:
            self.carrying = False

    def follows(self, entry: Entry) -> bool:
        """Tell whether an entry may be about a release of the log before."""
        if self._began is None or self.active is None:
            return False
        kept = timedelta(days=self.active.policy.retention.release_days)
        return parse_time(entry.time) < self._began + kept

    @property
    def began(self) -> datetime | None:
        """When this log followed another, None where it follows none."""
        return self._began

    def looks_back(self) -> timedelta:
        """Return for how long anything can count that was answered: no period or guard is longer."""
        if self.active is None:
            return _EVER
        digest, longest = self._looks_back
        if digest != self.active.digest:
            policy = self.active.policy
            units = [
                *(each.period.removeprefix("calendar-") for each in policy.budgets.values()),
                *(each.period.removeprefix("calendar-") for each in policy.quotas.values()),
                *(rule.rate.per for rule in policy.rules if rule.rate is not None),
            ]
            days = [policy.defaults.differencing_days, *(_DAYS[unit] for unit in units)]
            longest = max(MAX_JOB_LIFETIME, timedelta(days=max(days)))
            self._looks_back = self.active.digest, longest
        return longest

    def _stated_again(self, entry: Entry, where: str, question: str) -> bool:
        """Tell whether an entry only states again what held in the log before: once, and at the beginning."""
        if entry.body.get("code") != CARRIED_OVER:
            return False
        if not self.carrying or entry.kind in self._again:
            self.checks[question].found(
                "not-carried-over", where, "no log before this one is carried over here"
            )
            return False
        self._again.add(entry.kind)
        return True

    # -- keys ------------------------------------------------------------------------------------------------

    def opened(self, entry: Entry, _: str) -> None:
        """`log.open`, `key.rotate`: from here on the log is signed with that key, the node's identity key."""
        self.node = NodeName(entry.log.partition("/journal/")[0])
        self.key = VerifierKey.parse(entry.body["vkey"]).public_key
        if entry.kind == "log.open":
            self._opening = entry

    def pinned(self, entry: Entry, where: str) -> None:
        """`signers.pinned`: whose two signatures make a policy."""
        check = self.checks["keys"]
        signers = [KeyId(Digest(signer)) for signer in entry.body["signers"]]
        roles = entry.body.get("roles", [])
        self._stated_again(entry, where, "keys")
        if self._officers:
            check.found("pinned-twice", where, "other officers than before, and nobody may exchange them")
        if len(roles) != len(signers) or len(set(signers)) != len(signers):
            check.found("bad-pins", where, f"{len(signers)} keys for {len(roles)} roles")
            return
        self._officers = {
            role: tuple(key for key, named in zip(signers, roles, strict=True) if named == role)
            for role in roles
        }
        if not self.brought.officers:
            self._lacks_officers()
        elif set(signers) <= self.brought.officers:
            check.saw(where)
        else:
            check.found(
                "unknown-officers", where, "keys are pinned that are none of the officers' you brought"
            )
        self._pinned = None
        raw = {signer: self.evidence.read(signer, "keys", where) for signer in signers} if entry.v > 2 else {}
        if None in raw.values() or not raw:
            return  # a key is not there, which has been said
        try:
            self._pinned = PinnedSigners(
                {role: tuple(raw[key] or b"" for key in keys) for role, keys in self._officers.items()}
            )
        except MinshuError as error:
            check.found(error.code, where, error.message)

    def _lacks_officers(self) -> None:
        for question in ("keys", "clauses"):
            self.checks[question].lacks(NO_OFFICERS)

    # -- policy ----------------------------------------------------------------------------------------------

    def activated(self, entry: Entry, where: str) -> None:
        """`policy.activate`: two officers signed it, it follows the one before, and it was valid then."""
        check = self.checks["clauses"]
        digest, envelope = entry.body["sha256"], entry.body.get("envelope_sha256", "")
        data = self.evidence.read(envelope, "clauses", where) if envelope else None
        document = self.evidence.document(envelope, decode_envelope, "clauses", where) if envelope else None
        if data is None or document is None:
            self.active = None
            return
        if document.payload_digest != digest:
            check.found("wrong-text", where, "the envelope it names holds another text than the one it names")
        active = self._judged(entry, where, data)
        if active is None:
            active = self._as_text(document, where)
        if active is None:
            self.active = None
            return
        if (active.policy.version, active.digest) != (entry.body["version"], digest):
            check.found("wrong-version", where, "the entry names another version than the text has")
        self._stored = StoredPolicy(active.policy.version, active.digest)
        for lifted in active.policy.lifted_stops:
            self._held.pop(Digest(lifted), None)
        self.active, self.since = active, parse_time(entry.time)
        self._with_stops()

    def _judged(self, entry: Entry, where: str, data: bytes) -> ActivePolicy | None:
        again = self._stated_again(entry, where, "clauses")
        if again:
            self.gap_stopped = False  # a policy from before the gap lifts nothing that was stopped for it
        if self._pinned is None:
            if self.brought.officers and not self._officers and entry.v > 1:
                self.checks["keys"].found(
                    "unknown-officers", where, "no signers.pinned before it says who may sign policies"
                )
            self._lacks_officers()
            return None
        try:
            if again:
                stated = StoredPolicy(entry.body["version"], Digest(entry.body["sha256"]))
                active = reopen(data, self._pinned, stated, node=self.node)
            else:
                active = check_activation(
                    data,
                    self._pinned,
                    self._stored,
                    parse_time(entry.time),
                    node=self.node,
                    stops=self._held,
                )
        except MinshuError as error:
            self.checks["clauses"].found(
                error.code, where, f"it must not have been activated: {error.message}"
            )
            return None
        self.checks["keys"].saw(where)
        return active

    def _as_text(self, document: Envelope, where: str) -> ActivePolicy | None:
        try:
            parsed = parse_policy(document.payload)
        except MinshuError as error:
            self.checks["clauses"].found(error.code, where, f"no policy that can be read: {error.message}")
            return None
        return ActivePolicy(parsed.policy, parsed.digest)

    # -- stops -----------------------------------------------------------------------------------------------

    def stopped(self, entry: Entry, where: str) -> None:
        """`stop.applied`: somebody who may, signed it, and it holds until a policy lifts it."""
        digest = Digest(entry.body["sha256"])
        if digest not in self._applied:
            self._applied.add(digest)
            self._held[digest] = self._halts(entry, where)
        elif digest not in self._held:
            self.checks["clauses"].found("stop-applied-before", where, "it was lifted before")
        if not any(
            stop_facts(stop, digest).items() <= dict(entry.body).items()
            for stop in self._held.get(digest, ())
        ):
            self.checks["clauses"].found("wrong-stop", where, "the document halts something else")
        self._with_stops()

    def _halts(self, entry: Entry, where: str) -> tuple[Stop, ...]:
        envelope = entry.body.get("envelope_sha256")
        data = None if envelope is None else self.evidence.read(envelope, "clauses", where)
        if data is None:
            scope, subject = entry.body["scope"], entry.body.get("subject")
            if scope not in ("all", "requester", "purpose", "dataset", "job"):
                return ()
            return (Stop(scope=scope, reason="-", value=subject),)
        try:
            document = decode_envelope(data)
            said = parse_stop(document.payload)
            stops = said.stops
            if entry.body.get("code") == HISTORY_GAP:
                self._for_a_gap(document, stops)
            elif self._pinned is not None:
                again = self.carrying and entry.body.get("code") == CARRIED_OVER
                moment = said.issued if again else parse_time(entry.time)
                check_stop(data, self._pinned, moment, node=self.node, known=frozenset())
            else:
                self._lacks_officers()
        except MinshuError as error:
            self.checks["clauses"].found(error.code, where, f"no stop that holds: {error.message}")
            return ()
        if document.payload_digest != entry.body["sha256"]:
            self.checks["clauses"].found("wrong-text", where, "the envelope it names holds another text")
        return stops

    def _for_a_gap(self, document: Envelope, stops: tuple[Stop, ...]) -> None:
        """The node's own stop; one for an earlier gap, which it carries over, may be by an earlier key."""
        try:
            verify(document, STOP, {key_id(self.key): self.key})
        except SignatureInvalid:
            if not self.carrying:
                raise
        else:
            self.gap_stopped = self.gap_stopped or any(stop.scope == "all" for stop in stops)

    def lifted(self, entry: Entry, where: str) -> None:
        """`stop.lifted`: the policy in force, with its two signatures, names it."""
        digest = entry.body["sha256"]
        if self.active is None or digest not in self.active.policy.lifted_stops:
            self.checks["clauses"].found("lifted-by-nobody", where, "no policy in force lifts this stop")

    def _with_stops(self) -> None:
        if self.active is not None:
            stops = tuple(stop for halts in self._held.values() for stop in halts)
            if stops != self.active.stops:
                self.active = replace(self.active, stops=stops)

    # -- roster ----------------------------------------------------------------------------------------------

    def followed(self, entry: Entry, where: str) -> None:
        """`roster.activate`: the root keys in force signed it, and it follows the one before."""
        envelope = entry.body.get("envelope_sha256")
        data = None if envelope is None else self.evidence.read(envelope, "keys", where)
        if data is None:
            self.trusted = None
            return
        judged = self._advanced(entry, where, data)
        if judged is None:
            judged = self._as_stated(data, where)
        self.trusted = judged
        if judged is not None and judged.roster is not None and judged.roster.digest != entry.body["sha256"]:
            self.checks["keys"].found("wrong-text", where, "the envelope it names holds another roster")

    def _advanced(self, entry: Entry, where: str, data: bytes) -> Trusted | None:
        roots = self.brought.roots
        if roots is None:
            for question in ("keys", "clauses"):
                self.checks[question].lacks(NO_ROOTS)
            return None
        before = self.trusted if self.trusted is not None and self.trusted.roots.keys else Trusted(roots)
        try:
            after = succession.advance(before, data, parse_time(entry.time))
        except MinshuError as error:
            # Root keys that handed over to those that were brought are known by what these signed later.
            if before.roster is not None or error.code != "too-few-signatures":
                self.checks["keys"].found(error.code, where, f"a roster that does not hold: {error.message}")
            elif (roster := self._read_roster(data, where)) is not None:
                self._unproven.append((roster, where))
            return None
        self.checks["keys"].saw(where)
        if before.roster is None and after.roster is not None:
            self._lead_to(after.roster)
        return after

    def _lead_to(self, first: Roster) -> None:
        """Of the rosters before the first by the root keys that were brought, tell which led to it."""
        chain = led_to(first, [roster for roster, _ in self._unproven])
        for roster, where in self._unproven:
            if roster.digest in chain:
                self.checks["keys"].saw(where)
            else:
                self._other_roots(where)
        self._unproven.clear()

    def _other_roots(self, where: str) -> None:
        self.checks["keys"].found(
            "other-roots", where, "a roster that neither the root keys you brought signed nor any before them"
        )

    def finish(self) -> None:
        """Say what only the end of the log tells: rosters that nothing led to."""
        for _, where in self._unproven:
            self._other_roots(where)
        self._unproven.clear()

    def _as_stated(self, data: bytes, where: str) -> Trusted | None:
        roster = self._read_roster(data, where)
        return None if roster is None else Trusted(Roots(roster.collaboration, 1, ()), roster)

    def _read_roster(self, data: bytes, where: str) -> Roster | None:
        try:
            return Roster.decode(decode_envelope(data).payload)
        except MinshuError as error:
            self.checks["keys"].found(error.code, where, f"no roster that can be read: {error.message}")
            return None

    def confirmed(self, entry: Entry, where: str) -> None:
        """`roster.fresh`: somebody whose key the roster names says that it is still the newest."""
        if self.trusted is None:
            return
        for digest in entry.refs:
            data = self.evidence.read(digest, "keys", where)
            if data is not None:
                try:
                    self.trusted = succession.freshen(self.trusted, data, parse_time(entry.time))
                except MinshuError as error:
                    self.checks["keys"].found(error.code, where, f"it confirms nothing: {error.message}")
                else:
                    self.checks["keys"].saw(where)

    def fresh(self, moment: datetime) -> MinshuError | None:
        """Return why the node could not go by its roster at that moment, None where it could."""
        if self.trusted is None:
            return None  # which has been said
        try:
            succession.fresh(self.trusted.roster, self.trusted.freshness, moment)
        except MinshuError as error:
            return error
        return None

    def identities(self) -> Mapping[KeyId, bytes]:
        """Return the log's own key, under which the node signs notes, by its id."""
        return {key_id(self.key): self.key}


def led_to(first: Roster, before: Sequence[Roster]) -> frozenset[str]:
    """Return the digests of the rosters that led to the first one that trusted root keys signed.

    Each roster names the one before it by its digest: whoever signed the first signed for them all.
    """
    known = {roster.digest: roster for roster in before}
    found: set[str] = set()
    digest = first.previous
    while digest is not None and digest in known and digest not in found:
        found.add(digest)
        digest = known[digest].previous
    return frozenset(found)


def _generation(origin: str) -> tuple[str, int]:
    """Return a log's name up to its number, and the number; 0 where it has none."""
    name, _, number = origin.rpartition("/")
    return f"{name}/", int(number) if number.isascii() and number.isdigit() and len(number) < _DIGITS else 0
