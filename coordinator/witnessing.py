"""The coordinator's journal before witnesses: the nodes cosign it, and tell what they saw of it before.

Witnesses are the nodes of other organisations than the coordinator's own. Nothing here waits for them: a
journal without its quorum is a fact that `minshu-coordinator status` states, and auditors see.
"""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from typing import TYPE_CHECKING, Final

from audit.cosigning import Cosigner, Trouble
from audit.folder import CHECKPOINT, COSIGNED
from audit.note import MAX_NOTE_BYTES, Checkpoint, Note, VerifierKey, verify_note
from audit.quorum import Quorum
from coordinator.files import read_bounded
from coordinator.letters import Letters
from coordinator.registry import Registry
from policies.witnesses import Witnesses, witnesses_of
from protocols.errors import DecodeError, MinshuError, SignatureInvalid, StateConflict
from protocols.ids import NodeName, Organisation
from protocols.wire import Roster, organisation_of

if TYPE_CHECKING:
    from audit.log import Journal
    from coordinator.home import Home

ANSWER_S: Final = 10.0
MAX_HEADS: Final = 8
"""Questions for one node's last head under way at most: who reconnects faster is not asked each time."""

AGAIN_S: Final = 60.0
"""How long nothing is gathered after the journal's own files could not be read."""

_ANOTHER_HISTORY: Final = frozenset({"witness-ahead", "witness-conflict"})

_log = logging.getLogger("minshu.coordinator")


class Witnessing:
    """Gathers cosignatures, and looks for proof that this journal is an older copy. One event loop's."""

    def __init__(
        self,
        journal: "Journal",
        registry: Registry,
        letters: Letters,
        *,
        own: Organisation,
        now: Callable[[], datetime],
        rolled_back: Callable[[StateConflict], None],
    ) -> None:
        """Ask through `letters`.

        Args:
            journal: the coordinator's.
            registry: knows who the witnesses are.
            letters: the post office.
            own: the coordinator's organisation, whose nodes do not count.
            now: the clock.
            rolled_back: is told once it is proven that entries are missing or others stand in their place.
        """
        self._journal = journal
        self._registry = registry
        self._letters = letters
        self._own = own
        self._rolled_back = rolled_back
        self._heads: dict[NodeName, set[asyncio.Task[None]]] = {}
        self.cosigner = Cosigner(journal, self._cosign, now, timeout_s=ANSWER_S, report=self._troubled)
        self.roster_changed()

    def roster_changed(self) -> None:
        """Take the witnesses from the roster in force."""
        if self._registry.roster is not None:
            witnesses = witnesses_of(None, self._registry.roster, self._own)
            self.cosigner.set_witnesses(witnesses.nodes, witnesses.quorum)

    def connected(self, node: NodeName) -> None:
        """Ask a node that connects what it saw last, and for what it may have missed."""
        self._ask_head(node)
        self.cosigner.reconnected()

    async def run(self) -> None:
        """Gather until cancelled."""
        try:
            while True:
                try:
                    await self.cosigner.run()
                except Exception:  # noqa: BLE001  # the outermost loop: a bad disk must not end the program
                    _log.exception("cosignatures cannot be gathered; it is tried again")
                    await asyncio.sleep(AGAIN_S)
        finally:
            for task in chain.from_iterable(self._heads.values()):
                task.cancel()

    async def _cosign(self, witness: str, body: bytes) -> tuple[int, bytes]:
        return await self._letters.add_checkpoint(NodeName(witness), body, ANSWER_S)

    def _troubled(self, trouble: Trouble) -> None:
        _log.warning("cosigning: %s %s, %d entries", trouble.code, trouble.witness, trouble.size)
        if trouble.code in _ANOTHER_HISTORY and not self._heads.get(NodeName(trouble.witness)):
            self._ask_head(NodeName(trouble.witness))

    def _ask_head(self, node: NodeName) -> None:
        # One that is still under way may have gone to a connection that has ended: it is no reason to wait.
        asked = self._heads.setdefault(node, set())
        if len(asked) >= MAX_HEADS:
            return
        task = asyncio.get_running_loop().create_task(self._compare_head(node))
        asked.add(task)
        task.add_done_callback(asked.discard)

    async def _compare_head(self, node: NodeName) -> None:
        """Ask a node what it saw last of this journal; what it cannot prove changes nothing."""
        with contextlib.suppress(MinshuError):
            # Who passes the checkpoint on, and when, adds nothing to what this log's own signature proves.
            _, checkpoint = await self._letters.ask_head(
                node, secrets.token_bytes(32), self._journal.origin, ANSWER_S
            )
            if not checkpoint:
                return
            if await asyncio.to_thread(contradicts, self._journal, checkpoint):
                self._rolled_back(
                    StateConflict(
                        f"{node} holds a checkpoint that this journal's key signed and that this journal,"
                        f" with {self._journal.size} entries, does not lead to",
                        code="journal-rolled-back",
                        hint="this is an older copy: put the newest one back; if there is none, go on with"
                        " minshu-coordinator journal successor",
                    )
                )


def contradicts(journal: "Journal", note: bytes) -> bool:
    """Return whether a note is a checkpoint of this very log, signed by its key, of another history.

    Raises:
        DecodeError, SignatureInvalid: it is not this log's.
        StateConflict: the journal's tiles cannot be read.
    """
    verified, _ = verify_note(note, [VerifierKey.parse(journal.vkey)])
    seen = Checkpoint.decode(verified.text)
    if seen.origin != journal.origin:
        raise SignatureInvalid("the checkpoint is another log's", code="wrong-origin")
    if seen.size > journal.size:
        return True
    return 0 < seen.size <= journal.published and journal.root_at(seen.size) != seen.root


@dataclass(frozen=True, slots=True)
class JournalStatus:
    """How far the journal in a home is cosigned.

    Attributes:
        origin: the log's name.
        size: entries under its newest checkpoint.
        cosigned: entries under the newest one that had its quorum.
        votes: the organisations that cosigned that one.
        witnesses: who they are now, None before there is a roster.
        listed: the roster lists this very log; else nobody cosigns it.
    """

    origin: str
    size: int
    cosigned: int
    votes: frozenset[Organisation]
    witnesses: Witnesses | None
    listed: bool

    def lines(self) -> list[str]:
        """Return it in words."""
        done = f"{self.cosigned} of them cosigned" if self.cosigned else "none of them cosigned"
        lines = [f"journal   {self.origin}: {self.size} entries, {done}"]
        if not self.listed:
            return [*lines, "witnesses none before a roster lists this journal: roster draft, sign, publish"]
        if self.witnesses is None or not self.witnesses.possible:
            return [*lines, "witnesses the roster lists none of another organisation"]
        needed = f"{self.witnesses.quorum} of {len(self.witnesses.organisations)} organisations are needed"
        last = f"; last: {', '.join(sorted(self.votes))}" if self.votes else ""
        return [*lines, f"witnesses {needed}{last}"]


def journal_status(home: "Home", roster: Roster | None) -> JournalStatus:
    """Read it from the files; the coordinator may be running.

    Raises:
        InputError, DecodeError, SignatureInvalid: a checkpoint is damaged or another log's.
    """
    own = VerifierKey.parse(home.journal_vkey)
    witnesses = None if roster is None else witnesses_of(None, roster, organisation_of(home.config.name))
    newest, cosigned = _kept(home, CHECKPOINT, own), _kept(home, COSIGNED, own)
    quorum = Quorum.of_nodes(witnesses.nodes, witnesses.quorum) if witnesses else Quorum({}, 1)
    return JournalStatus(
        own.name,
        Checkpoint.decode(newest.text).size if newest else 0,
        Checkpoint.decode(cosigned.text).size if cosigned else 0,
        quorum.votes(cosigned) if cosigned else frozenset(),
        witnesses,
        roster is not None
        and roster.coordinator is not None
        and roster.coordinator.journal_vkey == home.journal_vkey,
    )


def _kept(home: "Home", name: str, key: VerifierKey) -> Note | None:
    path = home.journal / name
    if not path.exists():
        return None
    note, _ = verify_note(read_bounded(path, MAX_NOTE_BYTES), [key])
    if Checkpoint.decode(note.text).origin != key.name:
        raise DecodeError(f"{name} is another log's checkpoint", code="wrong-origin")
    return note
