"""This node as a witness: it cosigns other logs' checkpoints, and says what it saw last of them.

A log is known if the roster lists its key. What was cosigned is in the database before the cosignature
leaves, so a restarted node contradicts itself no more than a running one. One that was put back to an older
copy would, so nothing is cosigned before this node knows what others saw last of its own log; what it saw of
theirs it says at once, or nobody could begin.

A log that contradicts itself is not cosigned: both checkpoints are kept beside this node's own log, and an
entry names them. It proves something where the log signed two roots for one size; that a proof was missing
may be the fault of whoever carried it, and is journaled less often, so that it never takes the other's place.
Nothing else that a witness does is journaled, or logs would feed each other for ever.

A log that grows faster than `NEW_PER_S` waits for its turn, and the same checkpoint is not signed twice
within `SAME_S`: what one log asks costs this node's own work little.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from audit.note import Checkpoint, Note, NoteSignature, VerifierKey, keys_among
from audit.witness import NO_CONSISTENCY_PROOF, SPLIT_VIEW, Conflict, add_checkpoint
from node.letters import Later
from node.rpc import AddCheckpoint, AskHead, Cosigned, HeadSaid
from protocols.encoding import sha256_digest
from protocols.envelope import HEAD, Signer, sign
from protocols.errors import MinshuError, StateConflict
from protocols.ids import Digest
from protocols.wire import Head, Roster

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

    from audit.witness import CosignerKeys
    from node.activation import InForce
    from node.logs import Log
    from node.state import State

MAX_CONFLICTS: Final[Mapping[str, int]] = {SPLIT_VIEW: 8, NO_CONSISTENCY_PROOF: 2}
"""Conflicts of one log that are journaled on one day, by code. Only the log's own key makes the first kind;
whoever holds honest checkpoints can show one after another of the second."""
NEW_PER_S: Final = 2.0
"""Checkpoints of one log that are cosigned each second, in the long run."""
NEW_AT_ONCE: Final = 16
"""How many it may show at once after a silence."""
READY_S: Final = 0.25
"""How often a node that has just started looks whether it may cosign now."""
SAME_S: Final = timedelta(seconds=10)
"""For how long the cosignatures of one checkpoint are handed out again: auditors go by their time."""


@dataclass(frozen=True, slots=True)
class MlDsaSigner:
    """A signer that holds its ML-DSA-44 private key in memory."""

    private_key: "MLDSA44PrivateKey"

    @property
    def public_key(self) -> bytes:
        """The raw 1,312-byte public key."""
        return self.private_key.public_key().public_bytes_raw()

    def sign(self, data: bytes) -> bytes:
        """Return the 2,420-byte signature of `data`."""
        return self.private_key.sign(data)


@dataclass(slots=True)
class _Shown:
    """What one log asked for lately.

    Attributes:
        left: new checkpoints that it may show at once.
        at: when that was so, on the monotonic clock.
        text: the note text that was cosigned last.
        lines: our cosignatures on it.
        signed: when.
    """

    left: float
    at: float
    text: bytes = b""
    lines: tuple[NoteSignature, ...] = ()
    signed: datetime | None = None


class _TooSoon(MinshuError):
    """A log shows new checkpoints faster than they are cosigned."""


class Witness:
    """Answers other logs. One per node, used on the event loop."""

    def __init__(
        self,
        state: "State",
        force: "InForce",
        keys: "CosignerKeys",
        signer: Signer,
        *,
        trusted: Callable[[], datetime | None],
        monotonic: Callable[[], float],
        knows: Callable[[], bool],
        log: "Log",
    ) -> None:
        """Cosign with `keys`.

        Args:
            state: where what was cosigned is kept.
            force: whose roster says which logs there are.
            keys: this node's own, listed by the roster.
            signer: its identity key, which signs what it saw last.
            trusted: the clock where it can be believed, else None.
            monotonic: seconds that never go back.
            knows: tells whether this node knows what others saw last of its own log, as far as they can say.
            log: for lines.
        """
        self._state = state
        self._force = force
        self._keys = keys
        self._signer = signer
        self._trusted = trusted
        self._monotonic = monotonic
        self._knows = knows
        self._log = log
        self._shown: dict[str, _Shown] = {}
        self._known: tuple[Digest | None, dict[str, VerifierKey]] = (None, {})
        # Also what a crash kept from being written.
        self._unwritten = dict(state.witness_heads())

    def cosign(self, sender: str, asked: AddCheckpoint) -> Cosigned | Later:
        """Answer a log that asks for a cosignature; later if it asks too often, or this node is not ready.

        It is not while its clock is in doubt, or what others saw of its own log is unknown.

        Args:
            sender: who handed it in, as the coordinator says.
            asked: the request.

        Raises:
            StateConflict: it cannot be made durable; nothing is answered then.
        """
        now = self._trusted()
        if now is None or not self._knows():
            # The time is a part of what would be signed, and so is a memory without a gap.
            return Later(READY_S)
        try:
            answer = add_checkpoint(
                asked.body,
                known=self.keys_of,
                store=_Store(self._state),
                sign=lambda text: self._sign(text, now),
            )
        except _TooSoon:
            return Later(1 / NEW_PER_S)
        if answer.stored is not None:
            self._unwritten[answer.log] = answer.stored
        if answer.conflict is not None:
            self._keep(answer.conflict, sender, now)
        return Cosigned(answer.status, answer.body)

    def _sign(self, text: bytes, now: datetime) -> tuple[NoteSignature, ...]:
        """Return this node's cosignatures on a checkpoint that goes on from the last one, or is that.

        Raises:
            _TooSoon: its log has shown too many new ones.
        """
        at, origin = self._monotonic(), Checkpoint.decode(text).origin
        # There are as many as the roster lists logs: no other gets here.
        shown = self._shown.setdefault(origin, _Shown(NEW_AT_ONCE, at))
        if shown.text == text and shown.signed is not None and abs(now - shown.signed) <= SAME_S:
            return shown.lines
        shown.left, shown.at = min(NEW_AT_ONCE, shown.left + (at - shown.at) * NEW_PER_S), at
        if shown.left < 1:
            raise _TooSoon("too many new checkpoints", code="too-soon")
        shown.left -= 1
        lines = self._keys.sign(text, int(now.timestamp()))
        shown.text, shown.lines, shown.signed = text, lines, now
        return lines

    def head(self, asked: AskHead) -> HeadSaid | None:
        """Say what this node saw last of a log; None for a log that it does not know."""
        now = self._trusted()
        if now is None or not self.keys_of(asked.log):
            return None
        note = self._state.witness_head(asked.log)
        size, root = 0, None
        if note is not None:
            seen = Checkpoint.decode(Note.decode(note).text)
            if seen.size:
                size, root = seen.size, Digest(f"sha256:{seen.root.hex()}")
        head = Head(asked.nonce, asked.log, size, root, self._force.name, now)
        return HeadSaid(sign(HEAD, head.encode(), [self._signer]).encode(), note if note and size else b"")

    def keys_of(self, origin: str) -> Sequence[VerifierKey]:
        """Return the key of another log that the roster lists, none for any other and for this node's own."""
        roster = self._force.roster
        if roster is None:
            return ()
        if self._known[0] != roster.digest:
            self._known = (roster.digest, _logs(roster, self._force.name))
        key = self._known[1].get(origin)
        return () if key is None else (key,)

    def write(self) -> None:
        """Put what was cosigned lately beside this node's own log, for auditors."""
        while self._unwritten:
            origin, note = self._unwritten.popitem()
            try:
                self._state.journal.set_witnessed(origin, note)
            except MinshuError:
                self._unwritten.setdefault(origin, note)
                raise

    def _keep(self, conflict: Conflict, sender: str, now: datetime) -> None:
        """Journal that a log contradicts itself, with both checkpoints; once, and not without end."""
        digest, day = sha256_digest(conflict.conflicting), f"{now:%Y-%m-%d}"
        if conflict.code == NO_CONSISTENCY_PROOF:
            self._log.seldom("witness-unproven", conflict.log, size=conflict.size)
        known = self._state.conflict_known(digest)
        if known or self._state.conflicts(conflict.log, conflict.code, day) >= MAX_CONFLICTS[conflict.code]:
            return
        journal = self._state.journal
        body = {
            "log": conflict.log,
            "checkpoint_sha256": journal.put_object(conflict.cosigned),
            "conflicting_sha256": journal.put_object(conflict.conflicting),
            "size": conflict.size,
            "root": f"sha256:{conflict.root.hex()}",
            "code": conflict.code,
            "peer": sender,
        }
        with self._state.change() as change:
            change.add_conflict(digest, conflict.log, conflict.code, day)
            change.log("witness.conflict", body)
        if conflict.code == SPLIT_VIEW:
            self._log.failure("witness-conflict", log=conflict.log, size=conflict.size)


@dataclass(frozen=True, slots=True)
class _Store:
    """What this node cosigned last, in its database."""

    state: "State"

    def get(self, origin: str) -> bytes | None:
        """Return that log's note."""
        return self.state.witness_head(origin)

    def swap(self, origin: str, expected: bytes | None, new: bytes) -> bool:
        """Put `new` in place of `expected`; durable on return."""
        if expected == new:
            return self.get(origin) == new
        try:
            with self.state.change() as change:
                return change.swap_head(origin, expected, new)
        except StateConflict as error:
            if error.code != "journal-unpublished":
                raise
            return True  # stored; that entries wait for their checkpoint is another matter


def _logs(roster: Roster, own: str) -> dict[str, VerifierKey]:
    """Return the keys of the logs that a roster lists, by origin, without that of the node `own`."""
    lines = [node.journal_vkey for node in roster.nodes if node.name != own]
    if roster.coordinator is not None:
        lines.append(roster.coordinator.journal_vkey)
    return {key.name: key for key in keys_among(lines)}
