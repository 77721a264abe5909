"""This node's own log before its witnesses: it is shown to them, and waits for them where the policy says so.

The log is shown to the witnesses of every other organisation on the roster; whose votes count, and how many
it takes, policy and roster say (`policies.witnesses`). A quorum that is not possible is never reached.

(1) Whatever the policy, this node decides nothing after a start before a quorum has said, under a fresh
    nonce, what they saw last of this log, and shows nothing before. Whoever shows more than the node has, or
    something else, under the log's own signature, proves that the node was put back to an older copy: it
    ends. A claim without that signature proves nothing and does not count.
(2) Where a newer policy or roster changes who counts or how many it takes, nothing is decided before that
    entry stands under a checkpoint that has the quorum of those who counted before, as far as the roster
    still lists them, and the one of those who count now. Else an older copy could be led past all who know
    better. What those before have still to see is in the database from the activation on.

Where the policy has `release_requires = "cosigned"`, this node

(3) decides nothing under it before a quorum has seen that it is in force;
(4) opens no data stream before a quorum has seen that the cost is charged;
(5) takes nothing new in while entries wait longer than `witness_wait_s` for their quorum.

(6) Where the policy in force, or the one that it was made under, asks for that, no release leaves before a
    quorum has seen that it is committed.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from audit.cosigning import Cosigner, Trouble
from audit.folder import CHECKPOINT, COSIGNED, Folder
from audit.merkle import Tile, root_from_tiles
from audit.note import Checkpoint, Note, VerifierKey, keys_among, verify_note
from audit.quorum import Quorum
from node.letters import LINK_CODES, Letters
from node.rpc import NONCE_BYTES, AddCheckpoint, AskHead, Cosigned, HeadSaid
from policies.witnesses import Witnesses, others, witnesses_of
from protocols.encoding import digest_bytes
from protocols.envelope import HEAD, decode_envelope, key_id, verify
from protocols.errors import DecodeError, MinshuError, Refused, SignatureInvalid, StateConflict, Unreachable
from protocols.ids import Digest, NodeName, Organisation
from protocols.wire import Head, Roster, organisation_of, utc_text

if TYPE_CHECKING:
    from node.activation import InForce
    from node.logs import Log
    from node.state import Reader, State
    from policies.model import ActivePolicy
    from protocols.party import Rand

COSIGN_S: Final = 5.0
"""How long a witness has to cosign."""
HEAD_S: Final = 3.0
"""How long it has to say what it saw."""
ASK_FIRST_S: Final = 1.0
ASK_OFTEN_S: Final = 4.0
ASK_SELDOM_S: Final = 60.0
"""First rest of one that does not, and the longest: while a quorum is missing, and else."""
NUDGE_S: Final = 0.2
SETTLING: Final = frozenset({"heads-unknown", "policy-unwitnessed"})
"""Hindrances of a node that has just started, or got a new policy: they pass within moments as a rule."""
_SUSPICIOUS: Final = frozenset({"witness-ahead", "witness-conflict"})


@dataclass(slots=True, eq=False)
class _Head:
    """What one witness saw last: `heard` once it said so; `again` has it asked, lately for `nudged_at`."""

    again: asyncio.Event
    task: asyncio.Task[None]
    heard: bool = False
    nudged_at: float = -NUDGE_S


class Cosigning:
    """Shows this node's log to its witnesses. One per node, used on the event loop."""

    def __init__(
        self,
        state: "State",
        force: "InForce",
        letters: Letters,
        *,
        wait_s: float,
        now: Callable[[], datetime],
        monotonic: Callable[[], float],
        rand: "Rand",
        log: "Log",
        settled: Callable[[], None],
    ) -> None:
        """Ask with `letters`.

        Args:
            state: what the node remembers, with its journal.
            force: the policy and roster that say who the witnesses are.
            letters: what is asked with.
            wait_s: how long something waits for its quorum, in seconds.
            now: the clock.
            monotonic: seconds that never go back.
            rand: draws nonces.
            log: for lines.
            settled: called when a hindrance of `SETTLING` has passed.
        """
        self._state = state
        self._force = force
        self._letters = letters
        self._wait_s = wait_s
        self._now = now
        self._monotonic = monotonic
        self._rand = rand
        self._log = log
        self._settled = settled
        self._journal = state.journal
        self._cosigner = Cosigner(
            state.journal,
            self._ask_to_cosign,
            now,
            timeout_s=COSIGN_S,
            report=self._report,
            monotonic=monotonic,
        )
        self._for: tuple[Digest | None, Digest | None] | None = None
        self._witnesses = Witnesses({}, frozenset(), 1)
        self._before: tuple[int, Witnesses] | None = None
        self._asked: dict[NodeName, tuple[str, ...]] = {}
        self._keys: frozenset[VerifierKey] = frozenset()
        self._heads: dict[NodeName, _Head] = {}
        self._cut_off: set[str] = set()
        self._known = False
        self._needed = 0
        self._unsettled_since = monotonic()
        self._look = asyncio.Event()
        self._asking = asyncio.Event()

    # -- what waits for witnesses ---------------------------------------------------------------------------

    @property
    def required(self) -> bool:
        """Whether the policy in force asks for cosignatures."""
        return requires_cosigned(self._force.policy)

    @property
    def covered(self) -> int:
        """Entries that a quorum has seen."""
        return self._cosigner.covered

    @property
    def knows(self) -> bool:
        """Whether a quorum has said what it saw last of this log, where there is one that could."""
        self.look()
        return self._known or not self._witnesses.possible

    def hindrance(self) -> Refused | None:
        """Return why nothing may be decided now, as far as it depends on witnesses; None for nothing."""
        self.look()
        if not self._witnesses.possible or not self._listed():
            return None  # nobody is asked for anything, or all is refused, which does not pass by itself
        if not self._known:
            return _heads_unknown(len(self._organisations()), self._witnesses.quorum)
        if self._cosigner.covered < self._wanted():
            return _POLICY_UNWITNESSED
        if self.required and self._cosigner.uncovered_s > self._wait_s:
            return _NO_QUORUM
        return None

    def settling(self) -> bool:
        """Tell whether a hindrance of `SETTLING` is so young that an offer had better wait for its end."""
        no = self.hindrance()
        young = self._monotonic() < self._unsettled_since + self._wait_s
        return no is not None and no.code in SETTLING and young

    async def until(self, size: int, required: bool = False) -> None:
        """Return once a quorum has seen the first `size` entries, or where nobody asks for that.

        Args:
            size: how many.
            required: somebody asks for that, whatever the policy in force says.

        Raises:
            Unreachable: `no-quorum`: not within `witness_wait_s`.
        """
        self.look()
        if required or self.required:
            await self._cosigner.until(size, self._wait_s)

    def _wanted(self) -> int:
        """Return how many entries have to be covered before anything is decided (2) (3)."""
        needed = self._needed if self.required else 0
        return needed if self._before is None else max(needed, self._before[0] + 1)

    # -- what happens meanwhile -----------------------------------------------------------------------------

    def look(self) -> None:
        """Go by the roster and policy in force now."""
        roster, active = self._force.roster, self._force.policy
        present = (
            None if roster is None else roster.digest,
            None if active is None else active.digest,
        )
        if roster is not None and present != self._for:
            if self._for is None or present[1] != self._for[1]:
                self._needed = self._journal.size
                self._unsettled_since = self._monotonic()
            self._for = present
            own = organisation_of(self._force.name)
            self._witnesses = witnesses_of(None if active is None else active.policy, roster, own)
            self._asked = others(roster, own)
            self._keys = own_log_keys(
                self._state, self._force.name, self._journal.origin, vkey=self._journal.vkey
            )
            self._look_back(roster)
            self._count()
            self._show()
            self._asking.set()
            self._look.set()

    def _look_back(self, roster: Roster) -> None:
        """Look whose quorum has still to see that others count now (2)."""
        before = owed(self._state, self._journal.origin, roster)
        if before is not None and before != self._before:
            self._unsettled_since = self._monotonic()
        self._before = before

    def _show(self) -> None:
        """Show the log to everybody, and count as it is now; before the heads are known, to nobody (1)."""
        counted = [self._witnesses] if self.required or self._before is None else []
        if self._before is not None:
            counted.append(self._before[1])
        if self._known and all(part.possible for part in counted):
            quorums = [Quorum.of_nodes(part.nodes, part.quorum) for part in counted]
            self._cosigner.set_witnesses(self._asked, self._witnesses.quorum, counted=quorums)
        else:
            self._cosigner.set_witnesses({}, 1)

    def connected(self) -> None:
        """The link is up: ask what is to be asked."""
        self.look()
        # After those have ended whose letters were lost with the link: they are not to rest for it.
        asyncio.get_running_loop().call_soon(self._cosigner.reconnected)
        for name in self._heads:
            self._ask_again(name)

    def heard_from(self, sender: str) -> None:
        """A node has written: if it is a witness that did not answer, it may now, so it is asked again."""
        name, now = NodeName(sender), self._monotonic()
        head = self._heads.get(name)
        if head is None or (head.heard and name not in self._cosigner.troubles):
            return
        # Anybody's name can stand there: not faster than now and then.
        if now >= head.nudged_at + NUDGE_S:
            head.nudged_at = now
            head.again.set()
            self._cosigner.reconnected()

    async def run(self) -> None:
        """Ask until cancelled.

        Raises:
            StateConflict: `journal-rolled-back`: this node was put back to an older copy.
                `journal-damaged`: its own log cannot be read.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                for part in (self._cosigner.run(), self._ask_heads(tasks), self._settle()):
                    tasks.create_task(part)
        except BaseExceptionGroup as several:
            raise _first(several) from None

    async def _settle(self) -> None:
        """Tell when the heads are known, and the entries that the policy in force stands in have a quorum."""
        while True:
            await self._look.wait()
            self._look.clear()
            while self._known and self._cosigner.covered < (wanted := self._wanted()):
                try:
                    await self._cosigner.until(wanted, self._wait_s)
                except Unreachable as error:
                    self._log.warning(error.code, sentence=error.message)
            self._pass()
            self._settled()

    def _pass(self) -> None:
        """Let the witnesses before go, once both sets have seen the change (2)."""
        self.look()
        covered = self._cosigner.covered
        if self._force.roster is None or self._before is None or covered <= self._before[0]:
            return
        try:
            with self._state.change() as change:
                change.witnesses_changed(self._journal.origin, covered)
        except MinshuError as error:
            # It stays owed, and this is tried again.
            self._log.failure(error.code, sentence=error.message)
            asyncio.get_running_loop().call_later(ASK_OFTEN_S, self._look.set)
            return
        self._log.info("witnesses-changed", size=covered)
        self._look_back(self._force.roster)
        self._show()

    async def _ask_to_cosign(self, witness: str, body: bytes) -> tuple[int, bytes]:
        try:
            answer = await self._letters.ask(witness, AddCheckpoint(body), Cosigned)
        except Unreachable as error:
            (self._cut_off.add if error.code in LINK_CODES else self._cut_off.discard)(witness)
            raise
        return answer.status, answer.body

    def _report(self, trouble: Trouble) -> None:
        witness = trouble.witness or self._force.name
        if trouble.code == "witness-unanswered" and witness in self._cut_off:
            return  # not the witness's doing
        self._log.warning(trouble.code, witness=witness, size=trouble.size)
        if trouble.code in _SUSPICIOUS:
            # It may be right: let it show what it has.
            self._ask_again(NodeName(trouble.witness))

    def _ask_again(self, witness: NodeName) -> None:
        head = self._heads.get(witness)
        if head is not None:
            head.again.set()

    # -- what the witnesses saw last ------------------------------------------------------------------------

    async def _ask_heads(self, tasks: asyncio.TaskGroup) -> None:
        """Ask whoever is a witness now."""
        while True:
            self._asking.clear()
            for gone in self._heads.keys() - self._asked.keys():
                self._heads.pop(gone).task.cancel()
            for name in self._asked.keys() - self._heads.keys():
                again = asyncio.Event()
                self._heads[name] = _Head(again, tasks.create_task(self._follow(name, again)))
            await self._asking.wait()

    async def _follow(self, witness: NodeName, again: asyncio.Event) -> None:
        """Ask one witness until its answer counts, and once more whenever there is a reason to."""
        failures = 0
        while True:
            again.clear()
            longest_s = ASK_SELDOM_S if self._known else ASK_OFTEN_S
            wait_s: float | None = min(ASK_FIRST_S * 2**failures, longest_s)
            if await self._ask_head(witness, again):
                wait_s, failures = None, 0
            else:
                failures = min(failures + 1, 10)
            try:
                async with asyncio.timeout(wait_s):
                    await again.wait()
            except TimeoutError:
                pass  # time to ask again

    async def _ask_head(self, witness: NodeName, anew: asyncio.Event) -> bool:
        """Ask one witness what it saw last; return whether its answer counts.

        It is given up once there is a reason to ask `anew`: a letter to a node that is not there is lost, and
        one that has just come writes letters itself.

        Raises:
            StateConflict: `journal-rolled-back`, or the log cannot be read.
        """
        nonce = self._rand(NONCE_BYTES)
        try:
            question = AskHead(nonce, self._journal.origin)
            said = await self._letters.ask(witness, question, HeadSaid, HEAD_S, unless=anew)
            counts = self._check_head(witness, nonce, said)
        except (DecodeError, SignatureInvalid) as error:
            self._log.warning(error.code, witness=witness, sentence=error.message)
            return False
        except Unreachable:
            return False  # asked again; what that keeps from happening has lines of its own
        head = self._heads.get(witness)
        if counts and head is not None and not head.heard:
            head.heard = True
            self._count()
        return counts

    def _check_head(self, witness: NodeName, nonce: bytes, said: HeadSaid) -> bool:
        """Return whether a head is this witness's, of this moment, and goes together with this log.

        Raises:
            DecodeError, SignatureInvalid: it is not, or claims what nothing proves.
            StateConflict: `journal-rolled-back`: it proves that this log was put back.
        """
        roster, journal = self._force.roster, self._journal
        listed = None if roster is None else roster.node(witness)
        if listed is None:
            return False
        envelope = decode_envelope(said.statement)
        verify(envelope, HEAD, {key_id(listed.identity_key): listed.identity_key})
        head = Head.decode(envelope.payload)
        if (head.witness, head.nonce, head.log) != (witness, nonce, journal.origin):
            raise SignatureInvalid("a head answers another question than was asked", code="stale-head")
        if head.size == 0 or head.root is None:
            return True
        root = digest_bytes(head.root)
        if head.size <= journal.published and journal.root_at(head.size) == root:
            return True
        note, _ = verify_note(said.checkpoint, self._keys)
        if Checkpoint.decode(note.text) != Checkpoint(journal.origin, head.size, root):
            raise SignatureInvalid("a head comes with another checkpoint than it names", code="wrong-head")
        raise rolled_back(witness, head.size, journal.published)

    def _count(self) -> None:
        """Note once a quorum of organisations has said what it saw."""
        if not self._known and self._witnesses.possible:
            self._known = len(self._organisations()) >= self._witnesses.quorum
            if self._known:
                self._log.info("heads-known", organisations=len(self._organisations()))
                self._show()
                self._look.set()

    def _organisations(self) -> frozenset[Organisation]:
        heard = {organisation_of(name) for name, head in self._heads.items() if head.heard}
        return self._witnesses.organisations & heard

    def _listed(self) -> bool:
        try:
            self._force.me()
        except Refused:
            return False
        return True


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a node's journal is cosigned, as its folder shows it.

    Attributes:
        required: the policy in force lets nothing leave before.
        size: entries that its newest checkpoint covers.
        covered: entries that a quorum has seen.
        by: the organisations that cosigned these.
        witnesses: who could.
        before: those who counted before and have still to see that these do now, None for nobody.
        since: when the oldest entry without a quorum was made, None where all have one.
    """

    required: bool
    size: int
    covered: int
    by: frozenset[Organisation]
    witnesses: Witnesses
    before: Witnesses | None
    since: datetime | None

    @classmethod
    def of(cls, folder: Path, reader: "Reader", force: "InForce") -> "Standing":
        """Look at a journal's folder.

        Raises:
            StateConflict: a checkpoint cannot be read.
        """
        active, roster = force.policy, force.roster
        policy = None if active is None else active.policy
        witnesses = (
            Witnesses({}, frozenset(), 1)
            if roster is None
            else witnesses_of(policy, roster, organisation_of(force.name))
        )
        newest, seen = checkpoint_note(folder), checkpoint_note(folder, COSIGNED)
        size, covered = _size(newest), _size(seen)
        by = frozenset[Organisation]()
        if seen is not None:
            by = Quorum.of_nodes(witnesses.nodes, witnesses.quorum).votes(seen)
        since = reader.logged_at(covered) if covered < size else None
        origin = "" if newest is None else Checkpoint.decode(newest.text).origin
        change = None if roster is None else owed(reader, origin, roster)
        before = None if change is None else change[1]
        return cls(requires_cosigned(active), size, covered, by, witnesses, before, since)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        return {
            "required": self.required,
            "size": self.size,
            "covered": self.covered,
            "organisations": sorted(self.by),
            "witnesses": sorted(self.witnesses.organisations),
            "quorum": self.witnesses.quorum,
            "before": None
            if self.before is None
            else {"witnesses": sorted(self.before.organisations), "quorum": self.before.quorum},
            "since": None if self.since is None else utc_text(self.since),
        }

    def owed(self) -> str:
        """Return for people who of those before has still to see that others count now, empty for nobody."""
        if self.before is None:
            return ""
        names = ", ".join(sorted(self.before.organisations))
        return f"{self.before.quorum} of those before have to see that, too ({names})"

    def line(self) -> str:
        """Return it for people."""
        if not self.witnesses.nodes:
            return "no other organisation's node has witness keys"
        found = f"{self.covered} of {self.size} entries"
        if self.covered:
            found += f", by {len(self.by)} of {len(self.witnesses.organisations)} organisations"
        found += f" ({self.witnesses.quorum} needed)"
        if self.before is not None:
            found += f"; the witnesses changed: {self.owed()}"
        return found if self.since is None else f"{found}; the rest waits since {utc_text(self.since)}"


def owed(reader: "Reader", origin: str, roster: Roster) -> tuple[int, Witnesses] | None:
    """Return the entry that changed who counts as a log's witnesses, and who has still to see it (2).

    None where nobody has, or nobody is left of those who counted before.
    """
    change = reader.witness_change(origin)
    if change is None:
        return None
    before = change.before.left(roster)
    return (change.seq, before) if before.organisations else None


def requires_cosigned(active: "ActivePolicy | None") -> bool:
    """Tell whether a policy lets nothing leave before others have seen it."""
    return active is not None and active.policy.defaults.release_requires == "cosigned"


def checkpoint_note(folder: Path, name: str = CHECKPOINT) -> Note | None:
    """Return a checkpoint in a journal's folder, None where there is none.

    Raises:
        StateConflict: it cannot be read.
    """
    try:
        note = Note.decode((folder / name).read_bytes())
        Checkpoint.decode(note.text)
    except FileNotFoundError:
        return None
    except (OSError, DecodeError):
        raise _damaged(name) from None
    return note


def _damaged(name: str = COSIGNED) -> StateConflict:
    return StateConflict(
        f"{name} in the journal's folder cannot be read, or is not what that journal signed",
        code="journal-damaged",
        hint="check the disk; keep the folder as evidence",
    )


def cosigned_size(state: "State", force: "InForce", origin: str, folder: Path, now: datetime) -> int:
    """Return how many entries of this node's journal, or of an earlier one, those who count now have seen.

    What a file claims counts for nothing: its checkpoint has to be signed by that journal's key, to lead to
    the root of its tree, and to bear the cosignatures of a quorum.

    Args:
        state: what the node remembers, with its journal.
        force: the policy and roster that say who the witnesses are.
        origin: which journal.
        folder: where that lies.
        now: the clock.

    Raises:
        StateConflict: a checkpoint or a tile cannot be read, or is not what that journal signed.
    """
    if force.roster is None:
        return 0
    if origin == state.journal.origin:
        data = state.journal.cosigned()  # as it was verified
        note = None if data is None else Note.decode(data)
    else:
        note = checkpoint_note(folder, COSIGNED)
        if note is not None:
            _check_own(note, folder, own_log_keys(state, force.name, origin))
    policy = None if force.policy is None else force.policy.policy
    counted = [witnesses_of(policy, force.roster, organisation_of(force.name))]
    if (change := owed(state, origin, force.roster)) is not None:
        counted.append(change[1])
    quorums = (Quorum.of_nodes(part.nodes, part.quorum) for part in counted if part.possible)
    seen = note is not None and counted[0].possible and all(quorum.reached(note, now) for quorum in quorums)
    return _size(note) if seen else 0


def _check_own(note: Note, folder: Path, keys: Iterable[VerifierKey]) -> None:
    """Refuse a checkpoint that the log in a folder did not sign, or that is not of its tree.

    Raises:
        StateConflict: `journal-damaged`.
    """
    files = Folder(folder)

    def read(tile: Tile) -> bytes:
        data = files.read_tile(tile)
        if data is None:
            raise DecodeError(f"{tile.path} is missing", code="tile-missing")
        return data

    checkpoint = Checkpoint.decode(note.text)
    try:
        verify_note(note.encode(), keys)
        root = root_from_tiles(read, checkpoint.size)
    except (DecodeError, SignatureInvalid, OSError) as error:
        raise _damaged() from error
    if root != checkpoint.root:
        raise _damaged()


def own_log_keys(reader: "Reader", name: NodeName, origin: str, *, vkey: str = "") -> frozenset[VerifierKey]:
    """Return every key that signed a log by what the rosters kept here say of its node, and `vkey`."""
    rosters = [Roster.decode(decode_envelope(one.envelope).payload) for one in reader.rosters()]
    lines = {node.journal_vkey for one in rosters if (node := one.node(name)) is not None}
    return frozenset(key for key in keys_among({*lines, vkey}) if key.name == origin and not key.cosigns)


def _size(note: Note | None) -> int:
    return 0 if note is None else Checkpoint.decode(note.text).size


def rolled_back(witness: str, size: int, here: int) -> StateConflict:
    """Return what a node ends with that was put back to an older copy."""
    return StateConflict(
        f"{witness} holds a checkpoint of {size} entries that this log's own key signed, and this node's "
        f"journal of {here} does not lead there: it was restored from an older copy",
        code="journal-rolled-back",
        hint="if a newer copy exists, restore that; else begin a new journal that says so: "
        "minshu-node journal successor --reason CODE",
    )


def _first(several: BaseExceptionGroup) -> BaseException:
    """Return one error of a group: ours where there is one, for it says what to do."""
    ours = several.subgroup(MinshuError)
    found: BaseException = several if ours is None else ours
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found


def _heads_unknown(heard: int, quorum: int) -> Refused:
    return Refused(
        f"{heard} of the {quorum} organisations that are needed have said what they saw last of this node",
        code="heads-unknown",
        hint="submit again in a moment; if it lasts, the other departments' nodes do not answer",
    )


_POLICY_UNWITNESSED: Final = Refused(
    "not enough organisations have seen yet which policy and witnesses this node goes by",
    code="policy-unwitnessed",
    hint="submit again in a moment; if it lasts, the other departments' nodes do not answer",
)
_NO_QUORUM: Final = Refused(
    "for too long not enough organisations have seen what this node did",
    code="no-quorum",
    hint="submit again when the other departments' nodes answer",
)
