"""Retention: what is deleted when, and the receipt that each deletion leaves in the journal.

Releases go when their notes say so. Job texts, approvals, and the salts and quality records of inputs go
`retention.journal_days` after the job came, from the database and from beside the log. The journal itself
stays whole, and so does the ledger: a budget that forgets what was spent is none.

Bytes are removed first and their receipt is written then, so no receipt claims what did not happen; if the
disk refuses either, the next look finds the same thing due again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

from audit.entries import format_time
from node.home import Home, flush_folder
from node.journal import named
from node.logs import Log
from node.releases import ENDINGS
from node.rpc import Attempt
from node.state import OldRecord, State, StoredOutput
from policies.model import ActivePolicy
from protocols.encoding import sha256_digest
from protocols.errors import MinshuError, StateConflict
from protocols.jobs.job_type import OutputClass
from protocols.wire import utc_text


def check_kept(output: StoredOutput, now: datetime) -> None:
    """Refuse to open a list whose time is over, whether its bytes are gone already or not.

    Raises:
        StateConflict: `release-expired`.
    """
    if output.deleted or output.expires <= now:
        raise StateConflict(
            f"this list was kept until {utc_text(output.expires)}; it is deleted",
            code="release-expired",
            hint="if it is still needed, have the question asked and approved again",
        )


def delete_due(
    state: State, home: Home, active: ActivePolicy | None, now: datetime, log: Log
) -> list[Attempt]:
    """Delete what is due; return the attempts whose releases expired before the coordinator took them.

    Without a policy nobody said how long a job's text is kept, so none is deleted. One thing that cannot be
    deleted keeps no other from it: it is logged, and due again at the next look.
    """
    unsent: set[Attempt] = set()
    for output in state.outputs():
        here = output.output_class == OutputClass.DIRECTED
        if output.deleted or output.expires > now or (output.stored and not here):
            continue  # what the coordinator took is not here any more
        with _logged(log):
            _delete_release(state, home.releases if here else home.outbox, output)
            if not here:
                unsent.add(output.attempt)
    if active is not None:
        for record in state.old_records(now - timedelta(days=active.policy.retention.journal_days)):
            with _logged(log):
                _forget(state, record)
    return sorted(unsent)


def _delete_release(state: State, folder: Path, output: StoredOutput) -> None:
    try:
        for ending in ENDINGS:
            (folder / f"{output.release}.{ending}").unlink(missing_ok=True)
        flush_folder(folder)
    except OSError as error:
        raise StateConflict(
            f"an expired release cannot be deleted ({error.strerror})",
            code="deletion-failed",
            hint="check the folders releases/ and outbox/ of this node's home",
        ) from None
    body = {
        "what": "release",
        "release": output.release,
        "sha256": output.sha256,
        "expires": format_time(output.expires),
    }
    with state.change() as change:
        change.mark_deleted(output.release)
        change.log("deletion.receipt", body, attempt=output.attempt)


def _forget(state: State, record: OldRecord) -> None:
    approvals = [sha256_digest(approval.envelope) for approval in state.approvals(record.job)]
    texts = [] if record.envelope is None else [sha256_digest(record.envelope)]
    for digest in (*(quality for _, _, quality in record.inputs), *approvals, *texts):
        state.journal.delete_object(digest)
    with state.change() as change:
        change.forget(record.job)
        for attempt, dataset, quality in record.inputs:
            body = {"what": "input-record", "dataset": named(dataset), "sha256": quality}
            change.log("deletion.receipt", body, attempt=attempt)
        for digest in approvals:
            change.log("deletion.receipt", {"what": "approval", "sha256": digest}, job=record.job)
        for digest in texts:
            change.log("deletion.receipt", {"what": "job-text", "sha256": digest}, job=record.job)


@contextmanager
def _logged(log: Log) -> Iterator[None]:
    try:
        yield
    except MinshuError as error:
        log.failure(error.code, sentence=error.message)
