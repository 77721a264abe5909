"""Dry answers: what this node would say to a job, asked by an analyst before submitting it.

A question is a job signed as a question, so that neither can be made of the other. (1) It is small enough and
well-formed. (2) An analyst whom the roster lists signed it, and is the requester it names. (3) It was made
just now, and not answered before: whoever carries questions must not ask again in the analyst's name, to
watch a ledger go down or to use up what the analyst may ask. (4) That analyst has not asked too often.
(5) The gate judges it as it would judge the job now, ledger included.

Nothing runs, nothing is set aside and no data is touched. Each answer is signed, for attempt 0, which no
attempt has. What is refused under (3) or (4) is not journaled; every other answer stands in the journal.
"""

from collections import deque
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from node.answers import ANSWERS, make_verdict, refusal
from node.gate import Gate, authentic
from node.journal import named, policy_ref
from policies.decision import Ask, Refuse
from protocols.encoding import sha256_digest
from protocols.envelope import EXPLAIN, Signer, decode_envelope
from protocols.errors import MinshuError
from protocols.ids import JobId
from protocols.wire import JobSpec

if TYPE_CHECKING:
    from node.activation import InForce
    from node.logs import Log
    from node.state import State

MAX_A_MINUTE: Final = 60
"""Questions of one analyst that are answered in a minute, and as many that nobody on the roster signed."""

MAX_AGE: Final = timedelta(minutes=10)
"""How far a question's time of making may be from this node's clock, either way."""

_NOBODY: Final = ""

TOO_MANY: Final = Refuse(
    "too-many-questions",
    f"{MAX_A_MINUTE} questions of this analyst were answered within a minute, no more are.",
    f"该分析员一分钟内的询问已达 {MAX_A_MINUTE} 次, 暂不再答复。",
    "ask again in a minute",
    "请一分钟后再问",
)

OUTDATED: Final = Refuse(
    "question-outdated",
    f"The question was not made within {MAX_AGE.seconds // 60} minutes of this node's clock.",
    f"该询问的生成时间与本节点时钟相差超过 {MAX_AGE.seconds // 60} 分钟。",
    "ask again; if it was made just now, synchronise the clocks",
    "请重新询问; 若刚刚生成, 请校准时钟",
)
REPLAYED: Final = Refuse(
    "question-replayed",
    "This very question was answered before, each is answered once.",
    "该询问已答复过, 每条询问只答复一次。",
    "ask again with minshu explain, which makes a new one",
    "请用 minshu explain 重新询问",
)


class Explaining:
    """Answers questions. One per node, used from the thread that uses the gate."""

    def __init__(
        self,
        state: "State",
        force: "InForce",
        gate: Gate,
        signer: Signer,
        *,
        monotonic: Callable[[], float],
        log: "Log",
    ) -> None:
        """Answer as `gate` would, by its clock; `monotonic` counts seconds and never goes back."""
        self._state = state
        self._force = force
        self._gate = gate
        self._signer = signer
        self._monotonic = monotonic
        self._log = log
        self._asked: dict[str, deque[float]] = {}
        # Oldest first. No more than the analysts may ask while a question can still be repeated.
        self._answered: dict[JobId, float] = {}

    def answer(self, request: bytes) -> bytes | None:
        """Return the signed dry answer, an envelope; None to one forged or repeated question too many.

        Raises:
            DecodeError: not even an envelope.
            StateConflict: it cannot be journaled, so it is not answered.
        """
        # (1)
        job = JobId(decode_envelope(request).payload_digest)
        try:
            # (2)
            spec = authentic(self._force, job, request, EXPLAIN)
        except MinshuError as error:
            if not self._may_ask(_NOBODY):
                return None
            no = refusal(error)
            self._record(job, request, no.code, {"state": ANSWERS[Refuse]})
            return self._refuse(job, no)
        # (3)
        stale = self._check_new(job, spec)
        if stale is not None:
            self._log.warning(stale.code, job=job)
            return self._refuse(job, stale) if self._may_ask(_NOBODY) else None
        # (4)
        if not self._may_ask(spec.requester):
            self._log.warning(TOO_MANY.code, job=job)
            return self._refuse(job, TOO_MANY)
        # (5)
        decision, verdict = self._gate.dry(spec)
        facts: dict[str, str | int] = {
            "state": ANSWERS[type(decision)],
            "requester": spec.requester,
            "job_type": spec.job_type,
            "purpose": named(spec.purpose),
        }
        if isinstance(decision, Ask):
            given = len(decision.approvals)
            facts |= {"approvals": given, "needed": given + decision.missing}
        self._record(job, request, decision.code, facts, rule=decision.rule, actor=spec.requester)
        self._answered[job] = self._monotonic()
        return verdict

    def _check_new(self, job: JobId, spec: JobSpec) -> Refuse | None:
        """Refuse an old question and one that was answered; without a clock, the gate refuses it anyway."""
        now = self._gate.trusted()  # one clock decides on jobs and on questions
        if now is not None and abs(spec.created - now) > MAX_AGE:
            return OUTDATED
        # A question made 10 minutes ahead of the clock can be repeated until it is 10 minutes old.
        forgotten = self._monotonic() - 2 * MAX_AGE.total_seconds() - 60
        while self._answered and next(iter(self._answered.values())) < forgotten:
            del self._answered[next(iter(self._answered))]
        return REPLAYED if job in self._answered else None

    def _may_ask(self, who: str) -> bool:
        now = self._monotonic()
        asked = self._asked.setdefault(who, deque())
        while asked and asked[0] <= now - 60:
            asked.popleft()
        if len(asked) >= MAX_A_MINUTE:
            return False
        asked.append(now)
        return True

    def _refuse(self, job: JobId, no: Refuse) -> bytes:
        return make_verdict(no, job, 0, self._force.name, signer=self._signer)

    def _record(
        self,
        job: JobId,
        request: bytes,
        code: str,
        facts: dict[str, str | int],
        *,
        rule: str = "",
        actor: str = "",
    ) -> None:
        body = {"code": code, "envelope_sha256": sha256_digest(request), **facts}
        with self._state.change() as change:
            policy = policy_ref(self._force.policy, rule)
            change.log("job.explained", body, job=job, policy=policy, actor=actor)
