"""What `decide` answers, as values: `Permit`, `Ask` or `Refuse`, and on what terms a rule allows a job."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from protocols.dp.cost import Cost
from protocols.ids import Digest, KeyId
from protocols.jobs.job_type import PlannedRelease, Statement
from protocols.statistics.differencing import Query
from protocols.wire import Approval, Constraints, CostLine


@dataclass(frozen=True, slots=True)
class VerifiedApproval:
    """An approval whose signature and wording held when it was checked; `decide` looks again at what ages."""

    approver: str
    key: KeyId
    approval: Approval
    digest: Digest


@dataclass(frozen=True, slots=True)
class Leak:
    """One line of the leakage statement: what these roles together can compute. `ours`: this node is one."""

    coalition: tuple[str, ...]
    statement: Statement
    ours: bool


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms a rule allows the job; the same before and after the approvals.

    Attributes:
        rule: id of the rule.
        constraints: what this node demands of the run.
        releases: what would leave, recipients resolved.
        cost: the most this attempt may cost the source.
        whole: the most all attempts of the job together may cost; approvals sign `whole.encode()`. Another
            than `cost` only where rounds of a run in rounds are spent already.
        rounds: of a run in rounds, the most of each turn that this attempt may have here; else empty.
        spent: those that earlier attempts of the job had here.
        lines: what that means for each budget and quota of the rule.
        source: catalogue name of the dataset, without `local:`; empty for a seat without one.
        unit: the column that says whom a row is about, empty where the policy names none.
        query: what the job selects of the source, None without a dataset.
        partners: the datasets that the job joins the source with; see `policies.history.partners_of`.
        persons_in: in how many of how many departments the job takes one person to be at most; None where its
            type counts nobody across departments.
    """

    rule: str
    constraints: Constraints
    releases: tuple[PlannedRelease, ...]
    cost: Cost
    whole: Cost
    rounds: tuple[tuple[str, int], ...]
    spent: tuple[tuple[str, int], ...]
    lines: tuple[CostLine, ...]
    source: str
    unit: str
    query: Query | None
    partners: tuple[str, ...]
    persons_in: tuple[int, int] | None
    _learnt: Callable[[], tuple[Leak, ...]] = field(repr=False, compare=False)

    @property
    def leaks(self) -> tuple[Leak, ...]:
        """The leakage statement, smallest coalitions first; computed when asked."""
        return self._learnt()


@dataclass(frozen=True, slots=True)
class Permit:
    """Yes. `approvals` are those that were counted: they are used up by this job."""

    terms: Terms
    approvals: tuple[VerifiedApproval, ...]
    code: str = "permitted"
    sentence: str = "The job fits the rule."
    zh: str = "任务符合规则。"
    hint: str = ""
    hint_zh: str = ""

    @property
    def rule(self) -> str:
        """Id of the rule that allows the job."""
        return self.terms.rule


@dataclass(frozen=True, slots=True)
class Ask:
    """Yes, once `missing` more of `approvers` have approved, and not before `opens` where that is set."""

    terms: Terms
    missing: int
    approvers: tuple[str, ...]
    approvals: tuple[VerifiedApproval, ...]
    sentence: str
    zh: str
    hint: str
    hint_zh: str
    code: str = "approval-needed"
    opens: datetime | None = None

    @property
    def rule(self) -> str:
        """Id of the rule that asks for approvals."""
        return self.terms.rule


@dataclass(frozen=True, slots=True)
class Refuse:
    """No. `rule` is the rule that decided, empty where none applied; `hint` says what would make it pass."""

    code: str
    sentence: str
    zh: str
    hint: str
    hint_zh: str
    rule: str = ""


Decision = Permit | Ask | Refuse
