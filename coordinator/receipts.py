"""Receipts: a node says that a release of its own is final, and the coordinator's journal says so, too.

So whoever compares two journals sees a release that one of them leaves out.
"""

from typing import Final

from coordinator.registry import Registry
from coordinator.store import Entry, JobRecord, Store, StoredReceipt
from minshu.v1 import audit_pb2
from protocols.encoding import sha256_digest
from protocols.envelope import decode_envelope
from protocols.errors import DecodeError, MinshuError, Refused, SignatureInvalid
from protocols.ids import NodeName
from protocols.wire import JobSpec, Receipt

_MAX_CODE: Final = 80


class Receipts:
    """What nodes hand in; nothing of it touches a job."""

    def __init__(self, registry: Registry, store: Store) -> None:
        """Check with `registry`, keep in `store`."""
        self._registry = registry
        self._store = store

    def take(self, node: NodeName, envelope: bytes) -> audit_pb2.ReceiptKept | None:
        """Keep what a node says of a release of its own, and make it due in the journal, once.

        (1) Signed by the node's identity key in the roster, about a release in its own log. (2) The job is
        known, and the node takes part in it. (3) That attempt was started here. (4) The node has not said
        something else of that release, nor spoken of more releases than it was to make.

        Returns:
            What to answer: an empty code if it is kept, else why it never will be; None where nothing is
            known of who said it.
        """
        try:
            # (1)
            receipt = self._registry.receipt(node, envelope)
        except (DecodeError, SignatureInvalid):
            return None
        digest = sha256_digest(receipt.encode())
        try:
            self._keep(receipt, envelope)
        except MinshuError as error:
            return audit_pb2.ReceiptKept(sha256=digest, code=error.code[:_MAX_CODE])
        return audit_pb2.ReceiptKept(sha256=digest)

    def _keep(self, receipt: Receipt, envelope: bytes) -> None:
        node = receipt.node
        # (2)
        record = self._store.job(receipt.job)
        if record is None or record.job.run(node) is None:
            raise Refused("no such job of this node", code="unknown-job")
        # (3)
        if not self._store.started(receipt.job, receipt.attempt):
            raise Refused("that attempt was not started", code="attempt-not-started")
        # (4)
        entry = Entry(
            "peer.receipt",
            {
                "peer": node,
                "sha256": receipt.sha256,
                "kind": receipt.kind,
                "release": receipt.release,
                "log": receipt.log,
                "seq": receipt.seq,
                "envelope_sha256": sha256_digest(envelope),
            },
            job=receipt.job,
            attempt=receipt.attempt,
            objects=(envelope,),
        )
        self._store.add_receipt(
            StoredReceipt(
                receipt.job, receipt.attempt, node, receipt.release, sha256_digest(receipt.encode())
            ),
            _planned(record, node),
            [entry],
        )


def _planned(record: JobRecord, node: NodeName) -> int:
    """Return how many releases of an attempt a node makes, of any class."""
    from protocols.jobs import job_type

    spec = JobSpec.decode(decode_envelope(record.envelope).payload)
    return sum(spec.roles[planned.made_by] == node for planned in job_type(spec.job_type).releases(spec))
