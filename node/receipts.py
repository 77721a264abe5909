"""Receipts: what a node releases stands in the journals of all that took part, and of the coordinator.

The receipt is owed from the very transaction on that commits the release, and is handed over until each of
them has said that it is journaled, or why it never will be. It is signed when it is sent, by the identity key
of that time. The coordinator carries it and may lose it, or say for somebody that it was kept: auditors then
find it on one side only.

Whoever is handed one checks it: (1) it is signed by the node it names, which the roster lists, and is about
that node's own log; (2) that node and this one take part in that job; (3) this node admitted that attempt;
(4) it does not contradict an earlier one, and there are not too many.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from node.letters import Letters
from node.rpc import Attempt, HandReceipt, ReceiptKept
from protocols.encoding import sha256_digest
from protocols.envelope import RECEIPT, Signer, decode_envelope, key_id, sign, verify
from protocols.errors import DecodeError, MinshuError, Refused, SignatureInvalid, Unreachable
from protocols.ids import Digest, NodeName
from protocols.wire import JobSpec, Receipt, Roster

if TYPE_CHECKING:
    from node.activation import InForce
    from node.logs import Log
    from node.releases import SealedRelease
    from node.state import Change, DueReceipt, State
    from protocols.wire import RosterNode

SOON_S: Final = 2.0
REPEAT_S: Final = 60.0
GIVE_UP: Final = timedelta(days=30)
MAX_UNDER_WAY: Final = 16
"""Receipts that one peer is handed at one time."""
MAX_PER_ATTEMPT: Final = 8
"""Releases of one node in one attempt that are taken note of."""
PASSING: Final = frozenset({"not-in-roster", "receipt-forged"})
"""Codes that may change: the peer may not have the newest roster yet."""


def owe(
    change: "Change",
    spec: JobSpec,
    attempt: Attempt,
    roster: Roster,
    node: NodeName,
    *,
    release: "SealedRelease",
    log: str,
    seq: int,
) -> None:
    """Owe everybody else in a job the receipt of a release, in the transaction that commits it.

    Args:
        change: that transaction.
        spec: the job.
        attempt: which try.
        roster: says who the coordinator is.
        node: this node.
        release: what was committed.
        log: origin of this node's log.
        seq: of the `output.commit` entry in it.
    """
    receipt = Receipt(
        job=attempt.job,
        attempt=attempt.number,
        node=node,
        kind="output.commit",
        release=release.release,
        sha256=release.note.sha256,
        note_sha256=sha256_digest(release.note_envelope),
        log=log,
        seq=seq,
        issued=release.note.created,
    )
    payload = receipt.encode()
    peers = {*spec.roles.values()} - {node}
    if roster.coordinator is not None:
        peers.add(roster.coordinator.name)
    for peer in sorted(peers):
        change.add_receipt(sha256_digest(payload), peer, payload)


class Receipts:
    """Hands over what this node owes, and takes what others hand it. Used on the event loop."""

    def __init__(
        self,
        state: "State",
        force: "InForce",
        signer: Signer,
        letters: Letters,
        *,
        now: Callable[[], datetime],
        log: "Log",
    ) -> None:
        """Send with `letters`, signed by `signer`."""
        self._state = state
        self._force = force
        self._signer = signer
        self._letters = letters
        self._now = now
        self._log = log
        self._woken = asyncio.Event()
        self._under_way: dict[tuple[str, str], asyncio.Task[None]] = {}

    # -- what this node owes -------------------------------------------------------------------------------

    def wake(self) -> None:
        """Hand over now: something was committed, or the link is up again."""
        self._woken.set()

    async def run(self) -> None:
        """Hand over until cancelled: at once when woken, again soon after, then now and then."""
        wait_s = REPEAT_S
        try:
            while True:
                try:
                    async with asyncio.timeout(wait_s):
                        await self._woken.wait()
                except TimeoutError:
                    pass
                wait_s = SOON_S if self._woken.is_set() else REPEAT_S
                self._woken.clear()
                try:
                    self._hand_over()
                except MinshuError as error:
                    self._log.failure(error.code, sentence=error.message)
        finally:
            for task in self._under_way.values():
                task.cancel()

    def _hand_over(self) -> None:
        busy = Counter(peer for _, peer in self._under_way)
        for due in self._state.receipts_due():
            key = (due.sha256, due.peer)
            if key not in self._under_way and busy[due.peer] < MAX_UNDER_WAY:
                busy[due.peer] += 1
                task = self._under_way[key] = asyncio.create_task(self._hand(due))
                task.add_done_callback(lambda _, key=key: self._under_way.pop(key))  # type: ignore[misc]  # mypy: lambda default

    async def _hand(self, due: "DueReceipt") -> None:
        try:
            envelope = sign(RECEIPT, due.payload, [self._signer]).encode()
            kept = await self._letters.ask(due.peer, HandReceipt(envelope), ReceiptKept)
            if kept.sha256 != due.sha256:
                return  # about another one: not an answer to this
            if kept.code:
                self._log.seldom("receipt-refused", due.peer, reason=kept.code)
            if kept.code not in PASSING or Receipt.decode(due.payload).issued + GIVE_UP < self._now():
                with self._state.change() as change:
                    change.settle_receipt(due.sha256, due.peer)
        except Unreachable:
            pass  # handed over again
        except MinshuError as error:
            self._log.failure(error.code, sentence=error.message)

    # -- what this node is handed ---------------------------------------------------------------------------

    def take(self, handed: HandReceipt) -> ReceiptKept | None:
        """Journal a receipt, once; return what became of it, None where it is not even a receipt.

        Raises:
            StateConflict: it cannot be journaled now; nothing is answered then.
        """
        try:
            payload = decode_envelope(handed.receipt).payload
            receipt = Receipt.decode(payload)
        except DecodeError:
            return None
        digest = sha256_digest(payload)
        try:
            self._check_signer(handed.receipt, receipt)
            fresh = self._check(receipt, digest)
        except (Refused, SignatureInvalid) as error:
            # Of nobody on the roster any name may stand there.
            self._log.seldom(error.code, receipt.node if self._listed(receipt.node) else "", job=receipt.job)
            return ReceiptKept(digest, error.code)
        if fresh:
            self._keep(receipt, digest, handed.receipt)
        return ReceiptKept(digest, "")

    def _check_signer(self, envelope: bytes, receipt: Receipt) -> None:
        # (1)
        listed = self._listed(receipt.node)
        if listed is None:
            raise Refused("the receipt is of no node on the roster", code="not-in-roster")
        try:
            verify(decode_envelope(envelope), RECEIPT, {key_id(listed.identity_key): listed.identity_key})
        except SignatureInvalid:
            raise SignatureInvalid(
                "the receipt is not signed by the node it names", code="receipt-forged"
            ) from None
        if not receipt.log.startswith(f"{receipt.node}/journal/"):
            raise Refused("the receipt is about another node's log", code="wrong-subject")

    def _listed(self, node: NodeName) -> "RosterNode | None":
        roster = self._force.roster
        return None if roster is None else roster.node(node)

    def _check(self, receipt: Receipt, digest: Digest) -> bool:
        """Return whether an authentic receipt is a new one."""
        attempt = Attempt(receipt.job, receipt.attempt)
        # (2)
        data = self._state.job(receipt.job)
        if data is None:
            raise Refused("the job is not known here", code="unknown-attempt")
        seats = JobSpec.decode(decode_envelope(data).payload).roles.values()
        if receipt.node not in seats or receipt.node == self._force.name:
            raise Refused("the receipt is of nobody else who takes part", code="not-a-participant")
        # (3)
        run = self._state.run(attempt)
        if run is None or not run.charged:
            raise Refused("this node did not admit that attempt", code="unknown-attempt")
        # (4)
        kept = self._state.receipts_kept(attempt, receipt.node)
        if receipt.release in kept:
            if kept[receipt.release] != digest:
                raise Refused("the receipt contradicts an earlier one", code="receipt-contradicts")
            return False
        if len(kept) >= MAX_PER_ATTEMPT:
            raise Refused("a node gave too many receipts for one attempt", code="too-many-receipts")
        return True

    def _keep(self, receipt: Receipt, digest: Digest, envelope: bytes) -> None:
        attempt = Attempt(receipt.job, receipt.attempt)
        body = {
            "peer": receipt.node,
            "sha256": receipt.sha256,
            "kind": receipt.kind,
            "release": receipt.release,
            "log": receipt.log,
            "seq": receipt.seq,
            "envelope_sha256": self._state.journal.put_object(envelope),
        }
        with self._state.change() as change:
            change.keep_receipt(attempt, receipt.node, receipt.release, digest)
            change.log("peer.receipt", body, attempt=attempt)
