"""What every node of a job would answer, checked: the page that an analyst reads before submitting."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from coordinator.client.verdicts import Language, checked, cost_line, leaving_line
from protocols.errors import SignatureInvalid
from protocols.ids import NodeName, Role
from protocols.wire import JobSpec, Roster, Verdict

if TYPE_CHECKING:
    from minshu.v1 import jobs_pb2

_SILENT: Final = {
    "node-away": (
        "away: it is not connected, so nobody knows what it would answer",
        "离线: 节点未连接, 无法得知其答复",
    ),
    "no-answer": ("no answer came in time", "未在规定时间内答复"),
}


@dataclass(frozen=True, slots=True)
class NodeAnswer:
    """What one node would answer; `verdict` is None where it said nothing, and `code` says why.

    `envelope` is the verdict as the node signed it.
    """

    node: NodeName
    role: Role
    verdict: Verdict | None
    code: str = ""
    envelope: bytes = b""

    @property
    def missing(self) -> int:
        """Approvals that the node would wait for."""
        return 0 if self.verdict is None else self.verdict.approvals_needed - self.verdict.approvals_given

    def headline(self, language: Language) -> str:
        """Return the answer in one line."""
        zh = language == "zh"
        match self.verdict:
            case None:
                says = _SILENT.get(self.code, _SILENT["no-answer"])[zh]
            case Verdict(answer="permit"):
                says = "可以执行" if zh else "would run"
            case Verdict(answer="ask") if self.missing:
                who = ", ".join(self.verdict.approvers)
                says = (
                    f"需要 {self.missing} 份审批: {who}"
                    if zh
                    else f"needs {self.missing} approval(s) by {who}"
                )
            case Verdict(answer="ask"):
                says = "需要等待" if zh else "would wait"
            case _:
                says = "拒绝" if zh else "refused"
        return f"{self.node} ({self.role}): {says}"

    def lines(self, language: Language, *, leaves: bool = True) -> list[str]:
        """Return the answer's block: a headline, and below it rule, reason, cost and what would leave."""
        said = self.verdict
        if said is None:
            return [self.headline(language)]
        zh = language == "zh"
        sentence, hint = (said.sentence_zh, said.hint_zh) if zh else (said.sentence, said.hint)
        reason = f"{sentence} [{said.code}]" if said.code else sentence
        leaving = [leaving_line(each, language) for each in said.leaves] if leaves else []
        told = [
            (("规则" if zh else "rule"), [said.rule] if said.rule else []),
            (("理由" if zh else "reason"), [reason] if reason else []),
            (("建议" if zh else "hint"), [hint] if hint else []),
            (("占用额度" if zh else "cost"), [cost_line(line, language) for line in said.costs]),
            (("输出" if zh else "leaves"), leaving),
            (("已由先前任务答复" if zh else "answered before by"), [said.answered] if said.answered else []),
        ]
        return [self.headline(language), *(f"  {name}: {text}" for name, texts in told for text in texts)]


@dataclass(frozen=True, slots=True)
class Explanation:
    """The dry answers to one job, one for each of its nodes, in the order of their roles.

    They hold for the moment they were given: an approval, a new policy or another job may change them.
    """

    spec: JobSpec
    answers: tuple[NodeAnswer, ...]

    @property
    def refused(self) -> bool:
        """Whether some node would refuse, so that submitting it is of no use."""
        return self.answered_before is None and any(
            answer.verdict is not None and answer.verdict.answer == "refuse" for answer in self.answers
        )

    @property
    def answered_before(self) -> str | None:
        """The earlier job whose releases answer this one, if every node names the same."""
        earlier = {"" if answer.verdict is None else answer.verdict.answered for answer in self.answers}
        return earlier.pop() or None if len(earlier) == 1 else None

    def next(self, language: Language) -> str:
        """Return what would happen if it were submitted now, and what to do."""

        def pick(en: str, zh: str) -> str:
            return zh if language == "zh" else en

        if earlier := self.answered_before:
            return pick(
                f"submitted now, the releases of job {earlier} answer it at no cost, if they are still kept",
                f"现在提交: 如先前任务 {earlier} 的结果仍在保存期内, 将直接以其答复, 不占用额度",
            )
        if no := self._nodes("refuse"):
            return pick(
                f"submitted now, it would be refused by {no}; follow the hints above first",
                f"现在提交会被 {no} 拒绝; 请先按上述建议修改",
            )
        steps = []
        for one in self.answers:
            if one.verdict is None:
                steps.append(pick(f"until {one.node} is there", f"{one.node} 上线并答复"))
            elif one.verdict.answer == "ask" and one.missing:
                steps.append(
                    pick(
                        f"for {one.missing} approval(s) at {one.node}", f"{one.node} 的 {one.missing} 份审批"
                    )
                )
            elif one.verdict.answer == "ask":
                steps.append(pick(f"for the hours of {one.node}", f"{one.node} 的执行时段"))
        if steps:
            return pick("submitted now, it would wait ", "现在提交后将等待: ") + pick(", and ", "; ").join(
                steps
            )
        return pick("submitted now, it would run: minshu submit", "现在提交即可执行: minshu submit")

    def _nodes(self, answer: str | None) -> str:
        return ", ".join(one.node for one in self.answers if (one.verdict and one.verdict.answer) == answer)

    def lines(self, language: Language) -> list[str]:
        """Return the whole page."""
        spec, zh = self.spec, language == "zh"
        head = [
            f"{spec.job_type}, {spec.purpose}, {spec.legal_basis}",
            f"  {'预期用途' if zh else 'expected use'}: {spec.expected_use}",
            "  以下为试答: 未读取数据, 未执行, 未占用额度。"
            if zh
            else "  dry answers: no data was read, nothing ran, nothing was charged",
        ]
        # What would leave is said once where every node says the same, as it should be.
        leaves = {a.verdict.leaves for a in self.answers if a.verdict is not None and a.verdict.leaves}
        apart = len(leaves) > 1
        blocks = [line for answer in self.answers for line in ("", *answer.lines(language, leaves=apart))]
        if leaves and not apart:
            blocks += ["", "将会输出:" if zh else "what would leave:"]
            blocks += [f"  {leaving_line(each, language)}" for each in leaves.pop()]
        return [*head, *blocks, "", f"{'下一步' if zh else 'next'}: {self.next(language)}"]

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON; `verdict` is what the node signed, `envelope` its text with signature."""
        return {
            "job_type": self.spec.job_type,
            "purpose": self.spec.purpose,
            "legal_basis": self.spec.legal_basis,
            "expected_use": self.spec.expected_use,
            "answers": [
                {
                    "node": answer.node,
                    "role": answer.role,
                    "code": answer.code,
                    "verdict": None if answer.verdict is None else _plain(answer.verdict),
                    "envelope": answer.envelope.decode("utf-8"),
                }
                for answer in self.answers
            ],
            "refused": self.refused,
            "answered_before": self.answered_before,
            "next": {"zh": self.next("zh"), "en": self.next("en")},
        }

    def _repr_html_(self) -> str:
        from coordinator.client.notebook import explanation_html

        return explanation_html(self)


def _plain(verdict: Verdict) -> dict[str, Any]:
    from protocols.encoding import decode_json

    plain: dict[str, Any] = decode_json(verdict.encode())
    return plain


def explained(spec: JobSpec, roster: Roster, responses: Iterable["jobs_pb2.ExplainResponse"]) -> Explanation:
    """Check what the coordinator passed on; a node it says nothing of has not answered.

    Raises:
        SignatureInvalid, DecodeError: a verdict is not the node's own answer to this question, or of a node
            that takes no part, or a node's second one.
    """
    heard: dict[NodeName, NodeAnswer] = {}
    for response in responses:
        node = NodeName(response.node)
        role = spec.role_of(node)
        if role is None or node in heard:
            raise SignatureInvalid(
                "an answer of a node that takes no part in the job, or a second one", code="wrong-subject"
            )
        verdict = (
            checked(response.verdict, roster, node=node, job=spec.job_id, attempt=0)
            if response.verdict
            else None
        )
        heard[node] = NodeAnswer(node, role, verdict, response.code, response.verdict)
    return Explanation(
        spec,
        tuple(
            heard.get(node, NodeAnswer(node, role, None, "no-answer"))
            for role, node in sorted(spec.roles.items())
        ),
    )
