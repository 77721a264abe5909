"""What an audit found: the checklist's questions, each with an answer and the entries that show it.

A check answers *holds*, *fails* or *not checkable*, never nothing: what an auditor was not given the means to
see is said as such, with what to ask for.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

MAX_FINDINGS: Final = 100
"""Most findings kept of one check; `Check.count` says how many there were."""

MAX_EVIDENCE: Final = 12
"""Most places named as evidence of one check."""


class Answer(StrEnum):
    """What a check came to."""

    HOLDS = "holds"
    FAILS = "fails"
    NOT_CHECKABLE = "not checkable"


@dataclass(frozen=True, slots=True)
class Question:
    """One line of the auditor's checklist (domain §6)."""

    id: str
    en: str
    zh: str


CHECKLIST: Final = (
    Question("signed", "Every entry is signed for, and the chain is unbroken", "每条记录均有签名, 链条完整"),
    Question("witnessed", "Heads agree across the organisations", "各机构所见的日志一致"),
    Question("keys", "Every signer's key was valid at the time", "签名密钥在当时有效"),
    Question(
        "separation", "Who asks, approves, receives and computes are apart", "申请、审批、接收、计算相互分离"
    ),
    Question(
        "executed", "What ran is what was approved, by code on record", "执行内容即审批内容, 代码版本有记录"
    ),
    Question("basis", "Purpose and legal basis are on record", "目的与法律依据有记录"),
    Question("clauses", "Every admission follows from the policy of that moment", "每次准入均符合当时的策略"),
    Question("columns", "Columns touched are among those approved", "所用字段未超出审批"),
    Question(
        "inputs",
        "Row counts, snapshot dates and quality figures are committed to",
        "数据行数、快照日期、质量指标均已承诺",
    ),
    Question(
        "outputs",
        "Class, recipient and row cap of every release are as permitted",
        "每项结果的类别、接收方、行数上限均合规",
    ),
    Question("disclosure", "Disclosure control holds when it is run again", "重新运行披露控制, 结果成立"),
    Question("budgets", "Budgets and quotas add up", "预算与配额核算无误"),
    Question("overlaps", "Repeated and overlapping questions, by purpose", "按目的统计的重复与重叠查询"),
    Question("identifiers", "No identifier stands in journal or objects", "日志与附件中没有个人标识"),
    Question("leakage", "The leakage statement matches the run", "泄露说明与执行一致"),
    Question("committed", "Released keys are of the committed inputs", "所发布的标识均来自已承诺的输入"),
    Question("deletions", "What had to be deleted has its receipt", "应删除的数据均有删除凭证"),
    Question("verification", "Lists of persons were verified by people", "人员名单经人工核实"),
    Question("refusals", "Refused and failed jobs are journaled, too", "被拒绝与失败的任务同样有记录"),
    Question("time", "The time source is sound", "时间来源可靠"),
)
"""The questions, in the order in which a report answers them."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is off. `where`: `entry 12`, or a file; `code` is stable; `what` names no value."""

    code: str
    where: str
    what: str


@dataclass(slots=True)
class Check:
    """One question's answer. Begins as not checkable, for want of anything looked at.

    Attributes:
        question: its id in the `CHECKLIST`.
        looked_at: things that were checked.
        count: findings, more perhaps than are kept.
        findings: the first of them.
        missing: what it would take to check what could not be; empty where everything could.
        evidence: the first places that show it, `entry 12`.
        figures: what a report says beside it, name to number or text.
    """

    question: str
    looked_at: int = 0
    count: int = 0
    findings: list[Finding] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    evidence: list[str] = field(default_factory=list)
    figures: dict[str, int | str] = field(default_factory=dict)

    @property
    def answer(self) -> Answer:
        """What the check came to; one finding fails it, one gap leaves it open."""
        if self.count:
            return Answer.FAILS
        return Answer.HOLDS if self.looked_at and not self.missing else Answer.NOT_CHECKABLE

    def saw(self, where: str, count: int = 1) -> None:
        """Count something that holds."""
        self.looked_at += count
        if len(self.evidence) < MAX_EVIDENCE:
            self.evidence.append(where)

    def found(self, code: str, where: str, what: str) -> None:
        """Count something that is off."""
        self.looked_at += 1
        self.count += 1
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(Finding(code, where, what))

    def lacks(self, what: str) -> None:
        """Say, once, what was not there to check with."""
        if what not in self.missing:
            self.missing.append(what)

    def document(self) -> dict[str, Any]:
        """Return the check as plain JSON values."""
        return {
            "question": self.question,
            "answer": self.answer.value,
            "looked_at": self.looked_at,
            "count": self.count,
            "findings": [{"code": f.code, "where": f.where, "what": f.what} for f in self.findings],
            "missing": list(self.missing),
            "evidence": list(self.evidence),
            "figures": dict(self.figures),
        }


class Checks:
    """All questions of the checklist, each answered once."""

    def __init__(self) -> None:
        """Begin with nothing looked at."""
        self._checks = {question.id: Check(question.id) for question in CHECKLIST}

    def __getitem__(self, question: str) -> Check:
        """Return the check of that question."""
        return self._checks[question]

    def __iter__(self) -> Iterator[Check]:
        """Yield the checks in the checklist's order."""
        return iter(self._checks.values())

    @property
    def ok(self) -> bool:
        """Whether nothing fails. What was not checkable does not fail."""
        return all(check.count == 0 for check in self._checks.values())
