"""Outcomes: what the recipient of a list found out about it, filed at the node that received the list.

(1) This node received a list of that job. (2) The figures fit together and the note names nobody. (3) No
figure is of a group smaller than any participant of the job lets be shown, nor does it differ by fewer from
what was filed before. (4) The job has fewer than 16 outcomes.

Filed means journaled here; it then goes to the coordinator, with every welcome and now and then, until that
has stored it, or has said why it does not. It is signed when it is sent, by the identity key of that time.
"""

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from node import rpc
from node.rpc import ControlRequest
from node.state import Reader, State, StoredOutcome, StoredOutput
from protocols.encoding import sha256_digest
from protocols.envelope import OUTCOME, Signer, sign
from protocols.errors import InputError, Refused
from protocols.ids import JobId
from protocols.jobs.job_type import OutputClass
from protocols.outcomes import MAX_OUTCOMES, check_figures, confirmed_words, figures, new_outcome, too_many
from protocols.statistics.suppress import MIN_GROUP
from protocols.wire import Outcome, organisation_of, utc_text

if TYPE_CHECKING:
    from node.activation import InForce
    from node.logs import Log


class Outcomes:
    """Files outcomes and brings them to the coordinator."""

    def __init__(
        self,
        state: State,
        force: "InForce",
        signer: Signer,
        *,
        now: Callable[[], datetime],
        log: "Log",
        post: Callable[[ControlRequest], None],
    ) -> None:
        """Send with `post`, which may lose what it is given."""
        self._state = state
        self._force = force
        self._signer = signer
        self._now = now
        self._post = post
        self._log = log

    def file(self, job: JobId, checked: int, confirmed: int, note: str) -> dict[str, Any]:
        """Journal an outcome and send it; return it as plain JSON.

        Raises:
            InputError: (1) or (2).
            Refused: (3) or (4).
        """
        # (1)
        received = _received(self._state, job, organisation_of(self._force.name))
        # (2)
        outcome = new_outcome(
            job, self._force.name, checked=checked, confirmed=confirmed, note=note, filed=self._now()
        )
        payload = outcome.encode()
        # (3)
        smallest = self._smallest_group(received)
        check_figures(outcome, smallest)
        filed_before = self._state.outcomes(job)
        for known in filed_before:
            before = figures(Outcome.decode(known.payload))
            if any(
                0 < abs(one - other) < smallest for one, other in zip(figures(outcome), before, strict=True)
            ):
                raise Refused(
                    f"a figure differs by 1 to {smallest - 1} from that of an outcome filed before",
                    code="small-count",
                    hint="file it once more has been checked: the difference would tell of so few",
                )
        # (4)
        if sum(not known.code for known in filed_before) >= MAX_OUTCOMES:
            raise too_many()
        digest = sha256_digest(payload)
        envelope = sign(OUTCOME, payload, [self._signer]).encode()
        body = {
            "sha256": digest,
            "release": received.release,
            "recipient": received.recipient,
            "checked": checked,
            "confirmed": confirmed,
            "envelope_sha256": self._state.journal.put_object(envelope),
        }
        with self._state.change() as change:
            change.add_outcome(digest, job, payload)
            change.log("outcome.filed", body, attempt=received.attempt)
        self.resend()
        return outcome_json(StoredOutcome(digest, job, payload, stored=False, code=""))

    def _smallest_group(self, received: StoredOutput) -> int:
        """Return the smallest group that all participants of the attempt let be shown, as it was admitted."""
        for entry in self._state.journal.entries():
            place = (entry.kind, entry.job, entry.attempt)
            if place == ("job.admitted", received.attempt.job, received.attempt.number):
                return int(entry.body.get("min_group_size", MIN_GROUP))
        return MIN_GROUP

    def resend(self) -> None:
        """Send what the coordinator has not confirmed."""
        for waiting in self._state.outcomes():
            if not waiting.stored and not waiting.code:
                envelope = sign(OUTCOME, waiting.payload, [self._signer]).encode()
                self._post(rpc.outcome(envelope))

    def stored(self, sha256: str) -> None:
        """The coordinator has a statement; if it is an outcome, it need not be sent again."""
        with self._state.change() as change:
            change.settle_outcome(sha256)

    def refused(self, job: JobId, code: str) -> None:
        """The coordinator does not keep what is still under way for a job, and says why."""
        for waiting in self._state.outcomes(job):
            if not waiting.stored and not waiting.code:
                with self._state.change() as change:
                    change.settle_outcome(waiting.sha256, code)
                self._log.warning(code, job=job)


def _received(reader: Reader, job: JobId, organisation: str) -> StoredOutput:
    """Return the list that came here with a job.

    Raises:
        InputError: none did.
    """
    for output in reader.outputs(job):
        if output.output_class == OutputClass.DIRECTED and output.recipient == organisation:
            return output
    raise InputError(
        "no list of this job was received here",
        code="not-a-recipient",
        hint="who got a list files at the node that got it; who got a table: minshu outcome",
    )


def outcome_json(stored: StoredOutcome) -> dict[str, Any]:
    """Return a filed outcome as plain JSON; `state` is filed, stored, or why the coordinator refused it."""
    outcome = Outcome.decode(stored.payload)
    return {
        "sha256": stored.sha256,
        "job": stored.job,
        "checked": outcome.checked,
        "confirmed": outcome.confirmed,
        "note": outcome.note,
        "filed": utc_text(outcome.filed),
        "state": stored.code or ("stored" if stored.stored else "filed"),
    }


def outcome_line(plain: dict[str, Any]) -> str:
    """Return `outcome_json`'s output for people."""
    found = confirmed_words(plain["checked"], plain["confirmed"])
    where = {"stored": "the coordinator has it", "filed": "not yet at the coordinator"}
    state = where.get(plain["state"], f"refused by the coordinator: {plain['state']}")
    note = f": {plain['note']}" if plain["note"] else ""
    return f"{found}, {plain['filed']}, {state}{note}"
