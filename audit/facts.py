"""What a report tells of one log, entry by entry: days, jobs, budgets by purpose, refusals, releases.

Nothing is judged here, and every list is bounded: a year of a busy node does not fit on paper.
"""

from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

from audit.entries import Entry

MAX_LISTED: Final = 2000
"""Most jobs, releases, receipts and acts of government that are listed; the rest are counted."""

MAX_STEPS: Final = 60
"""Most steps of one job that are listed."""

ROUND: Final = "training.round"
"""A kind of which a job may have thousands; they are counted."""

GOVERNANCE: Final = frozenset(
    {
        "log.open", "log.successor", "key.rotate", "key.announced", "clock.step",
        "policy.activate", "policy.refused", "signers.pinned", "stop.applied", "stop.lifted",
        "roster.activate", "roster.published", "node.enrolled", "dataset.registered", "catalogue.imported",
        "witness.conflict",
    }
)  # fmt: skip
"""Kinds that say who may do what, and with which keys; listed on their own."""


@dataclass(frozen=True, slots=True)
class Step:
    """One entry, cut to what a timeline tells. `what`: a peer, a role, a release, a version; may be empty."""

    seq: int
    time: str
    kind: str
    attempt: int = 0
    code: str = ""
    what: str = ""


@dataclass(slots=True)
class JobFacts:
    """One job's way through this log.

    `rounds`: of training, of which the first is listed; `more`: other steps that are not.
    """

    job: str
    job_type: str = ""
    purpose: str = ""
    legal_basis: str = ""
    requester: str = ""
    recipients: tuple[str, ...] = ()
    steps: list[Step] = field(default_factory=list)
    rounds: int = 0
    more: int = 0

    def add(self, step: Step) -> None:
        """Count one more entry about the job."""
        if step.kind == ROUND:
            self.rounds += 1
            if self.rounds > 1:
                return
        if len(self.steps) < MAX_STEPS:
            self.steps.append(step)
        else:
            self.more += 1


@dataclass(slots=True)
class BudgetFacts:
    """What was charged to one budget or quota for one purpose, as entries say.

    Attributes:
        budget: its name in the policy.
        purpose: what for.
        notion: `zcdp`, `rows`, …
        charges: how many.
        charged: their sum.
        spent: of the whole budget after the last of them, whatever the purpose.
        limit: of the whole budget, then.
        entries: seq of the first and last charge.
    """

    budget: str
    purpose: str
    notion: str = ""
    charges: int = 0
    charged: Decimal = Decimal(0)
    spent: str = ""
    limit: str = ""
    entries: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class ReleaseFacts:
    """An output that became final here. `left`: seq of the entry that says it left, or None."""

    seq: int
    time: str
    job: str
    release: str
    output_class: str
    sha256: str
    rows: int | None
    recipient: str
    left: int | None = None


@dataclass(slots=True)
class Facts:
    """What a report tells of a log. Each list ends at `MAX_LISTED`; `left_out` counts the rest.

    Attributes:
        days: date → kind → entries.
        jobs: job id → its way.
        refusals: code → entries; of refused, failed, aborted, cancelled, expired.
        budgets: (budget, purpose) → charges.
        releases: release id → what became final.
        deletions: deletion receipts.
        governance: who may do what, and with which keys.
    """

    days: dict[str, Counter[str]] = field(default_factory=dict)
    jobs: dict[str, JobFacts] = field(default_factory=dict)
    refusals: dict[str, Counter[str]] = field(default_factory=dict)
    budgets: dict[tuple[str, str], BudgetFacts] = field(default_factory=dict)
    releases: dict[str, ReleaseFacts] = field(default_factory=dict)
    deletions: list[Step] = field(default_factory=list)
    governance: list[Step] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def visit(self, entry: Entry) -> None:
        """Take in one entry."""
        self.days.setdefault(entry.time[:10], Counter())[entry.kind] += 1
        step = _step(entry)
        if entry.job:
            self._job(entry, step)
        if entry.kind in GOVERNANCE:
            self._list("governance", self.governance, step)
        match entry.kind:
            case "job.refused" | "job.failed" | "job.aborted" | "job.cancelled" | "job.expired":
                self.refusals.setdefault(entry.kind, Counter())[step.code or "no code"] += 1
            case "budget.charged":
                self._charge(entry)
            case "budget.returned":
                self._returned(entry)
            case "output.commit":
                self._commit(entry)
            case "output.released":
                self._left(entry)
            case "deletion.receipt":
                self._list("deletions", self.deletions, step)

    def _list(self, what: str, listed: list[Step], step: Step) -> None:
        if len(listed) < MAX_LISTED:
            listed.append(step)
        else:
            self.left_out[what] += 1

    def _job(self, entry: Entry, step: Step) -> None:
        job = self.jobs.get(entry.job)
        if job is None:
            if len(self.jobs) >= MAX_LISTED:
                self.left_out["job steps"] += 1
                return
            job = self.jobs[entry.job] = JobFacts(entry.job)
        body = entry.body
        job.job_type = job.job_type or body.get("job_type", "")
        job.purpose = job.purpose or body.get("purpose", "")
        job.legal_basis = job.legal_basis or body.get("legal_basis", "")
        job.requester = job.requester or body.get("requester", "")
        job.recipients = job.recipients or tuple(body.get("recipients", ()))
        job.add(step)

    def _charge(self, entry: Entry) -> None:
        body = entry.body
        job = self.jobs.get(entry.job)
        purpose = body.get("purpose", job.purpose if job else "")
        key = body["budget"], purpose
        budget = self.budgets.get(key)
        if budget is None:
            if len(self.budgets) >= MAX_LISTED:
                self.left_out["budgets"] += 1
                return
            budget = self.budgets[key] = BudgetFacts(*key, entries=(entry.seq, entry.seq))
        budget.charges += 1
        budget.charged += Decimal(body["cost"])
        budget.notion = body.get("notion", budget.notion)
        budget.spent = body.get("spent", budget.spent)
        budget.limit = body.get("limit", budget.limit)
        budget.entries = (budget.entries[0], entry.seq)

    def _returned(self, entry: Entry) -> None:
        body = entry.body
        job = self.jobs.get(entry.job)
        budget = self.budgets.get((body["budget"], body.get("purpose", job.purpose if job else "")))
        if budget is not None:
            budget.charged -= Decimal(body["returned"])
            budget.entries = (budget.entries[0], entry.seq)

    def _commit(self, entry: Entry) -> None:
        body = entry.body
        if len(self.releases) >= MAX_LISTED:
            self.left_out["releases"] += 1
            return
        self.releases[body["release"]] = ReleaseFacts(
            entry.seq,
            entry.time,
            entry.job,
            body["release"],
            body["class"],
            body["sha256"],
            body.get("rows"),
            body.get("recipient", ""),
        )

    def _left(self, entry: Entry) -> None:
        known = self.releases.get(entry.body["release"])
        if known is not None and known.left is None:
            self.releases[known.release] = ReleaseFacts(
                known.seq, known.time, known.job, known.release, known.output_class, known.sha256,
                known.rows, known.recipient or entry.body.get("recipient", ""), entry.seq,
            )  # fmt: skip

    def document(self) -> dict[str, Any]:
        """Return the facts as plain JSON values."""
        return {
            "days": {day: dict(sorted(kinds.items())) for day, kinds in sorted(self.days.items())},
            "jobs": [
                {
                    "job": job.job,
                    "job_type": job.job_type,
                    "purpose": job.purpose,
                    "legal_basis": job.legal_basis,
                    "requester": job.requester,
                    "recipients": list(job.recipients),
                    "steps": [_step_document(step) for step in job.steps],
                    "rounds": job.rounds,
                    "more_steps": job.more,
                }
                for job in self.jobs.values()
            ],
            "refusals": {kind: dict(codes.most_common()) for kind, codes in sorted(self.refusals.items())},
            "budgets": [
                {
                    "budget": each.budget,
                    "purpose": each.purpose,
                    "notion": each.notion,
                    "charges": each.charges,
                    "charged": str(each.charged),
                    "spent": each.spent,
                    "limit": each.limit,
                    "entries": list(each.entries),
                }
                for each in self.budgets.values()
            ],
            "releases": [
                {
                    "seq": each.seq,
                    "time": each.time,
                    "job": each.job,
                    "release": each.release,
                    "class": each.output_class,
                    "sha256": each.sha256,
                    "rows": each.rows,
                    "recipient": each.recipient,
                    "left": each.left,
                }
                for each in self.releases.values()
            ],
            "deletions": [_step_document(step) for step in self.deletions],
            "governance": [_step_document(step) for step in self.governance],
            "left_out": dict(sorted(self.left_out.items())),
        }


def _step(entry: Entry) -> Step:
    body = entry.body
    what = next((str(body[key]) for key in _TELLING if key in body), "")
    return Step(entry.seq, entry.time, entry.kind, entry.attempt, body.get("code", ""), what)


_TELLING: Final = (
    "release", "peer", "budget", "approver", "subject", "scope", "version", "log", "node", "dataset", "what",
    "turn", "role", "requester",
)  # fmt: skip
"""Which body key tells most of an entry, in one word."""


def _step_document(step: Step) -> dict[str, Any]:
    said = {"seq": step.seq, "time": step.time, "kind": step.kind}
    more = {"attempt": step.attempt, "code": step.code, "what": step.what}
    return said | {key: value for key, value in more.items() if value}
